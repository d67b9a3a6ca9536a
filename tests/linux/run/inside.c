/* What the tests do inside of containers.
 *
 * inside list ROOT [SKIP...]  every file below ROOT: owner, mode, links, extended attributes and content, sorted
 * inside knock PORT           opens vsock connections to the host's port and says what nobody should believe; counts those that are closed
 * inside flood PORT COUNT     opens so many vsock connections to the host's port, each of which claims to be the agent's
 * inside eat                  takes memory until there is none
 * inside bomb SECONDS         forks as fast as it can, in all of its processes, and exits with 7
 * inside winch                prints the terminal's size whenever it changes, until SIGINT, and exits with 5
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/vm_sockets.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <sys/xattr.h>
#include <unistd.h>

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

/* ---- list ---- */

#define MOST 10000

static char **skipped;
static struct { dev_t device; ino_t inode; char *path; } seen[MOST];
static int seen_count;

/* The first path of a file with several. */
static const char *first_path(const struct stat *st, const char *path)
{
	for (int i = 0; i < seen_count; i++)
		if (seen[i].device == st->st_dev && seen[i].inode == st->st_ino)
			return seen[i].path;
	if (seen_count == MOST)
		fail("too many files");
	seen[seen_count].device = st->st_dev;
	seen[seen_count].inode = st->st_ino;
	return seen[seen_count++].path = strdup(path);
}

static int by_name(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

static void print_attributes(const char *path)
{
	static char names[65536], value[65536];
	ssize_t len = llistxattr(path, names, sizeof names);
	char *sorted[256];
	int count = 0;

	for (char *name = names; name < names + len && count < 256; name += strlen(name) + 1)
		sorted[count++] = name;
	qsort(sorted, count, sizeof *sorted, by_name);
	for (int i = 0; i < count; i++) {
		ssize_t size = lgetxattr(path, sorted[i], value, sizeof value);
		printf(" %s=", sorted[i]);
		for (ssize_t n = 0; n < size; n++)
			printf("%02x", (unsigned char)value[n]);
	}
}

static void print_content(const char *path)
{
	static unsigned char bytes[65536];
	uint64_t hash = 0xcbf29ce484222325;
	int fd = open(path, O_RDONLY);
	ssize_t len;

	if (fd < 0)
		fail(path);
	while ((len = read(fd, bytes, sizeof bytes)) > 0)
		for (ssize_t n = 0; n < len; n++)
			hash = (hash ^ bytes[n]) * 0x100000001b3;
	if (len < 0)
		fail(path);
	close(fd);
	printf(" %016llx", (unsigned long long)hash);
}

static void list(const char *root, const char *path)
{
	char target[4096], whole[8192];
	struct stat st;

	for (char **skip = skipped; *skip; skip++)
		if (!strcmp(*skip, path))
			return;
	snprintf(whole, sizeof whole, "%s%s", root, path);
	if (lstat(whole, &st))
		fail(whole);
	printf("%s %o %u:%u %lld", *path ? path : "/", st.st_mode, st.st_uid, st.st_gid, (long long)st.st_mtime);
	if (!S_ISDIR(st.st_mode))
		printf(" %lld links=%ld of=%s", (long long)st.st_size, (long)st.st_nlink, first_path(&st, path));
	if (S_ISCHR(st.st_mode) || S_ISBLK(st.st_mode))
		printf(" %u,%u", major(st.st_rdev), minor(st.st_rdev));
	print_attributes(whole);
	if (S_ISLNK(st.st_mode)) {
		ssize_t len = readlink(whole, target, sizeof target - 1);
		printf(" -> %.*s", (int)len, target);
	}
	if (S_ISREG(st.st_mode))
		print_content(whole);
	putchar('\n');
	if (!S_ISDIR(st.st_mode))
		return;
	struct dirent **entries;
	int count = scandir(whole, &entries, NULL, NULL);
	if (count < 0)
		fail(whole);
	char **names = calloc(count, sizeof *names);
	for (int i = 0; i < count; i++)
		names[i] = entries[i]->d_name;
	qsort(names, count, sizeof *names, by_name);
	for (int i = 0; i < count; i++) {
		if (!strcmp(names[i], ".") || !strcmp(names[i], ".."))
			continue;
		char below[4096];
		snprintf(below, sizeof below, "%s/%s", path, names[i]);
		list(root, below);
	}
}

/* ---- knock ---- */

static int dial(unsigned port)
{
	struct sockaddr_vm address = { .svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_HOST, .svm_port = port };
	int fd = socket(AF_VSOCK, SOCK_STREAM, 0);

	if (fd < 0)
		fail("socket");
	if (connect(fd, (struct sockaddr *)&address, sizeof address)) {
		close(fd);
		return -1;
	}
	return fd;
}

/* Whether the host closes a connection that says this, without a word of its own. */
static int is_closed(unsigned port, const char *bytes, size_t len)
{
	struct timeval patience = { .tv_sec = 20 };
	char answer;
	int fd = dial(port);

	if (fd < 0)
		return 1;
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
	(void)!write(fd, bytes, len);
	errno = 0;
	ssize_t got = read(fd, &answer, 1);
	close(fd);
	return got == 0 || (got < 0 && errno == ECONNRESET);
}

static void knock(unsigned port)
{
	/* A length that is too long; a stream of a guessed token; another agent; no message at all; a message that does not decode. */
	static const struct { const char *bytes; size_t len; } words[] = {
		{ "\xff\xff\xff\xff", 4 },
		{ "\x11\0\0\0\x01" "0123456789abcdef", 21 },
		{ "\x03\0\0\0\0\x01\x01", 7 },
		{ "GET / HTTP/1.0\r\n\r\n", 18 },
		{ "\x01\0\0\0\x07", 5 },
	};
	int count = sizeof words / sizeof *words, closed = 0;

	signal(SIGPIPE, SIG_IGN);
	for (int i = 0; i < count; i++)
		closed += is_closed(port, words[i].bytes, words[i].len);
	printf("closed %d of %d\n", closed, count);
	/* Many that say nothing: the oldest have to go, and nothing else. */
	int open = 0;
	for (int i = 0; i < 100; i++)
		open += dial(port) >= 0;
	printf("silent %s\n", open > 0 ? "yes" : "no");
}

static void flood(unsigned port, int count)
{
	int opened = 0;

	signal(SIGPIPE, SIG_IGN);
	for (int i = 0; i < count; i++) {
		int fd = dial(port);
		if (fd < 0)
			continue;
		(void)!write(fd, "\x03\0\0\0\0\x01\x01", 7);
		close(fd);
		opened++;
	}
	printf("flooded %s\n", opened > count / 2 ? "yes" : "no");
}

/* ---- eat, bomb, winch ---- */

static void eat(void)
{
	for (;;) {
		size_t len = 1 << 20;
		char *piece = malloc(len);
		if (!piece)
			fail("malloc");
		memset(piece, 0x55, len);
	}
}

static void bomb(int seconds)
{
	if (fork() == 0) {
		/* As the parent is PID 1 of the container, all of these end with it. */
		for (;;)
			if (fork() < 0)
				usleep(1000);
	}
	sleep(seconds);
	_exit(7);
}

static volatile sig_atomic_t interrupted;

static void on_signal(int number)
{
	if (number == SIGINT)
		interrupted = 1;
}

static void print_size(void)
{
	struct winsize size;

	if (ioctl(0, TIOCGWINSZ, &size))
		fail("TIOCGWINSZ");
	printf("size %d %d.\n", size.ws_row, size.ws_col);
	fflush(stdout);
}

static void winch(void)
{
	struct sigaction action = { .sa_handler = on_signal };
	sigset_t blocked, usual;

	sigaction(SIGWINCH, &action, NULL);
	sigaction(SIGINT, &action, NULL);
	sigfillset(&blocked);
	sigprocmask(SIG_BLOCK, &blocked, &usual);
	while (!interrupted) {
		print_size();
		sigsuspend(&usual);
	}
	puts("interrupted");
	exit(5);
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";

	if (!strcmp(what, "list") && argc > 2) {
		skipped = argv + 3;
		list(argv[2], "");
	} else if (!strcmp(what, "knock") && argc == 3) {
		knock(atoi(argv[2]));
	} else if (!strcmp(what, "flood") && argc == 4) {
		flood(atoi(argv[2]), atoi(argv[3]));
	} else if (!strcmp(what, "eat")) {
		eat();
	} else if (!strcmp(what, "bomb") && argc == 3) {
		bomb(atoi(argv[2]));
	} else if (!strcmp(what, "winch")) {
		winch();
	} else {
		fputs("inside: unknown words\n", stderr);
		return 2;
	}
	return 0;
}
