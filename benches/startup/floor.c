/* The floor: the least that any program must do to run a guest on this host's KVM and leave again. It makes a VM
 * with a split interrupt controller, one memory slot and one vCPU, runs a guest that writes one byte to port 0x3f8
 * and resets, and exits. `bothy bench-startup` compares with it, so that each host shows its own floor. */
#include <fcntl.h>
#include <linux/kvm.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define TRY(call) ((call) < 0 ? (_exit(1), 0) : 0)

static const unsigned char guest[] = {
    0xba, 0xf8, 0x03, /* mov dx, 0x3f8 */
    0xb0, 'A',        /* mov al, 'A' */
    0xee,             /* out dx, al */
    0xb0, 0xfe,       /* mov al, 0xfe */
    0xe6, 0x64,       /* out 0x64, al */
    0xf4,             /* hlt */
};

int main(void) {
    int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC), vm, vcpu, size;
    TRY(kvm);
    TRY(vm = ioctl(kvm, KVM_CREATE_VM, 0));
    struct kvm_enable_cap split = {.cap = KVM_CAP_SPLIT_IRQCHIP, .args = {24}};
    TRY(ioctl(vm, KVM_ENABLE_CAP, &split));
    char *memory = mmap(0, 128 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return 1;
    memcpy(memory + 0x1000, guest, sizeof guest);
    struct kvm_userspace_memory_region slot = {.memory_size = 128 << 20, .userspace_addr = (unsigned long)memory};
    TRY(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slot));
    TRY(vcpu = ioctl(vm, KVM_CREATE_VCPU, 0));
    TRY(size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0));
    struct kvm_run *run = mmap(0, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
    if (run == MAP_FAILED) return 1;
    struct kvm_sregs sregs;
    TRY(ioctl(vcpu, KVM_GET_SREGS, &sregs));
    sregs.cs.base = 0;
    sregs.cs.selector = 0;
    TRY(ioctl(vcpu, KVM_SET_SREGS, &sregs));
    struct kvm_regs regs = {.rip = 0x1000, .rflags = 2};
    TRY(ioctl(vcpu, KVM_SET_REGS, &regs));
    for (;;) {
        TRY(ioctl(vcpu, KVM_RUN, 0));
        if (run->exit_reason != KVM_EXIT_IO) return 2;
        unsigned char byte = *((unsigned char *)run + run->io.data_offset);
        if (run->io.port == 0x3f8 && write(1, &byte, 1) != 1) return 1;
        if (run->io.port == 0x64) return 0;
    }
}
