/* Prints what a program in a container finds of the kernel: a line for each feature, `NAME ok` or
 * `NAME ERRNO`.
 *
 * features         what needs no privilege
 * features all     the rest, for a privileged container
 */
#define _GNU_SOURCE
#include <asm/ldt.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/inet_diag.h>
#include <linux/landlock.h>
#include <linux/mempolicy.h>
#include <linux/netfilter_ipv4/ip_tables.h>
#include <linux/netlink.h>
#include <linux/pkt_sched.h>
#include <linux/rtnetlink.h>
#include <linux/sock_diag.h>
#include <linux/unix_diag.h>
#include <linux/userfaultfd.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef IPPROTO_MPTCP
#define IPPROTO_MPTCP 262
#endif
#define MIB (1 << 20)

/* A feature whose call returned `result`; -1 is an error, with errno. */
static void report(const char *name, long result)
{
	const char *error = result < 0 ? strerrorname_np(errno) : "ok";

	printf("%s %s\n", name, error);
	fflush(stdout);
}

/* Whether the file can be read, and has the word unless it is NULL. */
static void file(const char *name, const char *path, const char *word)
{
	static char text[65536 + 8];
	int fd = open(path, O_RDONLY);
	ssize_t len = fd < 0 ? -1 : read(fd, text, 65536);

	if (len >= 0) {
		text[len] = 0;
		if (word && !strstr(text, word)) {
			errno = ENOMSG;
			len = -1;
		}
	}
	report(name, len);
	if (fd >= 0)
		close(fd);
}

/* Sends a netlink request; -1 if it couldn't be, or if the answer is an error. */
static int netlink(int protocol, struct nlmsghdr *request)
{
	static char answer[65536];
	struct nlmsghdr *header = (struct nlmsghdr *)answer;
	int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, protocol);
	ssize_t len = -1;

	if (fd < 0)
		return -1;
	if (send(fd, request, request->nlmsg_len, 0) >= 0)
		len = recv(fd, answer, sizeof answer, 0);
	close(fd);
	if (len < (ssize_t)sizeof *header)
		return -1;
	if (header->nlmsg_type == NLMSG_ERROR) {
		errno = -((struct nlmsgerr *)NLMSG_DATA(header))->error;
		return errno ? -1 : 0;
	}
	return 0;
}

static int inet_diag(int family, int protocol)
{
	struct {
		struct nlmsghdr header;
		struct inet_diag_req_v2 body;
	} request = {
		.header = {
			.nlmsg_len = sizeof request,
			.nlmsg_type = SOCK_DIAG_BY_FAMILY,
			.nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP,
		},
		.body = {
			.sdiag_family = family,
			.sdiag_protocol = protocol,
			.idiag_states = -1,
		},
	};
	return netlink(NETLINK_SOCK_DIAG, &request.header);
}

static int unix_diag(void)
{
	struct {
		struct nlmsghdr header;
		struct unix_diag_req body;
	} request = {
		.header = {
			.nlmsg_len = sizeof request,
			.nlmsg_type = SOCK_DIAG_BY_FAMILY,
			.nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP,
		},
		.body = { .sdiag_family = AF_UNIX, .udiag_states = -1 },
	};
	return netlink(NETLINK_SOCK_DIAG, &request.header);
}

static void *put(struct nlmsghdr *header, int type, const void *data, size_t len)
{
	struct rtattr *attribute = (struct rtattr *)((char *)header + NLMSG_ALIGN(header->nlmsg_len));

	attribute->rta_type = type;
	attribute->rta_len = RTA_LENGTH(len);
	memcpy(RTA_DATA(attribute), data, len);
	header->nlmsg_len = NLMSG_ALIGN(header->nlmsg_len) + RTA_ALIGN(attribute->rta_len);
	return attribute;
}

/* `tc qdisc add dev lo root KIND` */
static int queue(const char *kind)
{
	struct {
		struct nlmsghdr header;
		struct tcmsg body;
		char room[256];
	} request = {
		.header = {
			.nlmsg_len = NLMSG_LENGTH(sizeof request.body),
			.nlmsg_type = RTM_NEWQDISC,
			.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE,
		},
		.body = { .tcm_family = AF_UNSPEC, .tcm_ifindex = 1, .tcm_parent = TC_H_ROOT },
	};
	put(&request.header, TCA_KIND, kind, strlen(kind) + 1);
	return netlink(NETLINK_ROUTE, &request.header);
}

/* iptables-legacy: makes the table. */
static int table(const char *name)
{
	struct ipt_getinfo info = { 0 };
	socklen_t len = sizeof info;
	int fd = socket(AF_INET, SOCK_RAW, IPPROTO_RAW);
	int result;

	if (fd < 0)
		return -1;
	strcpy(info.name, name);
	result = getsockopt(fd, IPPROTO_IP, IPT_SO_GET_INFO, &info, &len);
	close(fd);
	return result;
}

static void policies(void)
{
	unsigned long nodes = 1;
	void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int mode;

	report("get_mempolicy", syscall(SYS_get_mempolicy, &mode, NULL, 0, NULL, 0));
	report("mbind", syscall(SYS_mbind, page, 4096L, MPOL_BIND, &nodes, 2L, 0));
}

static void fault_handler(void)
{
	struct uffdio_api api = { .api = UFFD_API };
	int fd = syscall(SYS_userfaultfd, O_CLOEXEC);

	report("userfaultfd", fd < 0 ? fd : ioctl(fd, UFFDIO_API, &api));
}

static void without_privilege(void)
{
	struct user_desc segment = { .entry_number = 0, .limit = 1, .seg_32bit = 1 };

	file("pagemap", "/proc/self/pagemap", NULL);
	file("smaps", "/proc/self/smaps", "Pss:");
	file("vmstat", "/proc/vmstat", "pgfault");
	file("io", "/proc/self/io", "read_bytes");
	file("children", "/proc/thread-self/children", NULL);
	file("numa_maps", "/proc/self/numa_maps", "N0=");
	file("node0", "/sys/devices/system/node/node0/meminfo", "MemTotal");
	file("swaps", "/proc/swaps", "Filename");
	file("huge pages", "/proc/meminfo", "Hugepagesize:");
	file("pressure", "/proc/pressure/memory", "some avg10");
	file("delays", "/proc/sys/kernel/task_delayacct", NULL);
	file("config.gz", "/proc/config.gz", NULL);
	file("congestion control", "/proc/sys/net/ipv4/tcp_available_congestion_control", "bbr");
	report("modify_ldt", syscall(SYS_modify_ldt, 1, &segment, sizeof segment));
	report("landlock", syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION));
	report("memfd_secret", syscall(SYS_memfd_secret, 0));
	report("mptcp", socket(AF_INET, SOCK_STREAM, IPPROTO_MPTCP));
	report("mptcp6", socket(AF_INET6, SOCK_STREAM, IPPROTO_MPTCP));
	report("tcp_diag", inet_diag(AF_INET, IPPROTO_TCP));
	report("udp_diag", inet_diag(AF_INET6, IPPROTO_UDP));
	report("unix_diag", unix_diag());
	/* These are refused to containers, but they exist. */
	report("swapon", swapon("/no/such/file", 0));
	policies();
	fault_handler();
}

static void with_privilege(void)
{
	void *huge;
	int fd = open("/proc/sys/vm/nr_hugepages", O_WRONLY);

	report("swapon", swapon("/no/such/file", 0));
	policies();
	fault_handler();
	report("nr_hugepages", fd < 0 ? fd : write(fd, "1", 1));
	huge = mmap(NULL, 2 * MIB, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
	report("huge page", huge == MAP_FAILED ? -1 : 0);
	mkdir("/mnt/huge", 0755);
	report("hugetlbfs", mount("none", "/mnt/huge", "hugetlbfs", 0, NULL));
	mkdir("/mnt/misc", 0755);
	report("binfmt_misc", mount("none", "/mnt/misc", "binfmt_misc", 0, NULL));
	mkdir("/mnt/security", 0755);
	report("securityfs", mount("none", "/mnt/security", "securityfs", 0, NULL));
	mkdir("/mnt/tmpfs", 0755);
	report("tmpfs", mount("none", "/mnt/tmpfs", "tmpfs", 0, NULL));
	mkdir("/mnt/tmpfs/lower", 0755);
	mkdir("/mnt/tmpfs/upper", 0755);
	mkdir("/mnt/tmpfs/work", 0755);
	report("overlay index", mount("none", "/mnt", "overlay", 0,
		"index=on,lowerdir=/mnt/tmpfs/lower,upperdir=/mnt/tmpfs/upper,workdir=/mnt/tmpfs/work"));
	/* It is gone from there if the kernel gave it up. */
	file("overlay index kept", "/proc/self/mounts", "index=on");
	for (const char **kind = (const char *[]){ "fq_codel", "fq", "sfq", "codel", NULL }; *kind; kind++)
		report(*kind, queue(*kind));
	for (const char **name = (const char *[]){ "filter", "mangle", "nat", "raw", NULL }; *name; name++)
		report(*name, table(*name));
}

int main(int argc, char **argv)
{
	if (argc > 1 && !strcmp(argv[1], "all"))
		with_privilege();
	else
		without_privilege();
}
