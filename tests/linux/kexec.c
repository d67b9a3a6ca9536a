// kexec KERNEL INITRD COMMAND-LINE: starts another kernel at once, with nothing stopped, written or unmounted before.
#include <fcntl.h>
#include <linux/reboot.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    int kernel = open(argv[1], O_RDONLY), initrd = open(argv[2], O_RDONLY);
    if (kernel < 0 || initrd < 0) return perror("open"), 1;
    if (syscall(SYS_kexec_file_load, kernel, initrd, strlen(argv[3]) + 1, argv[3], 0L)) return perror("kexec_file_load"), 1;
    syscall(SYS_reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_KEXEC, 0);
    perror("reboot");
    return 1;
}
