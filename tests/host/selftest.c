/* Does this /dev/kvm run guests as hardware does? Boots a few instructions in real mode, among them
 * popcnt, which the emulator of software KVM lacks, and looks at what they write to port 0x3f8.
 * Prints one line; exit status 0 if all is well. */
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

static int wrong(const char *what)
{
	perror(what);
	return 1;
}

int main(void)
{
	static const unsigned char code[] = {
		0x66, 0xb8, 0xff, 0x0f, 0x00, 0x00, /* mov eax, 0xfff */
		0xf3, 0x66, 0x0f, 0xb8, 0xc0,       /* popcnt eax, eax: 12 */
		0x04, 0x30,                         /* add al, '0': '<' */
		0xba, 0xf8, 0x03,                   /* mov dx, 0x3f8 */
		0xee,                               /* out dx, al */
		0xf4,                               /* hlt */
	};
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (kvm < 0)
		return wrong("/dev/kvm");
	int version = ioctl(kvm, KVM_GET_API_VERSION, 0);
	int vm = ioctl(kvm, KVM_CREATE_VM, 0);
	if (version != KVM_API_VERSION || vm < 0)
		return wrong("KVM_CREATE_VM");
	unsigned char *memory = mmap(NULL, 0x1000, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		return wrong("mmap");
	memcpy(memory, code, sizeof code);
	struct kvm_userspace_memory_region region = {
		.guest_phys_addr = 0x1000, .memory_size = 0x1000, .userspace_addr = (unsigned long)memory
	};
	if (ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region) < 0)
		return wrong("KVM_SET_USER_MEMORY_REGION");
	int vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
	int size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	if (vcpu < 0 || size < 0)
		return wrong("KVM_CREATE_VCPU");
	struct kvm_run *run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	if (run == MAP_FAILED)
		return wrong("mmap of kvm_run");
	struct kvm_sregs sregs;
	if (ioctl(vcpu, KVM_GET_SREGS, &sregs) < 0)
		return wrong("KVM_GET_SREGS");
	sregs.cs.base = 0;
	sregs.cs.selector = 0;
	struct kvm_regs regs = { .rip = 0x1000, .rflags = 2 };
	if (ioctl(vcpu, KVM_SET_SREGS, &sregs) < 0 || ioctl(vcpu, KVM_SET_REGS, &regs) < 0)
		return wrong("KVM_SET_REGS");
	int seen = 0;
	while (ioctl(vcpu, KVM_RUN, 0) == 0) {
		if (run->exit_reason == KVM_EXIT_IO && run->io.port == 0x3f8) {
			seen = *((unsigned char *)run + run->io.data_offset);
		} else if (run->exit_reason == KVM_EXIT_HLT) {
			printf("API version %d, guest wrote '%c'\n", version, seen);
			return seen != '<';
		} else {
			printf("exit reason %u\n", run->exit_reason);
			return 1;
		}
	}
	return wrong("KVM_RUN");
}
