//! The guest's own code, assembled into the test program, and copied from there into ELF files.
//!
//! Three pieces, all at fixed addresses once loaded ([`CODE_GPA`]): the 32-bit interpreter of a
//! [`Script`](super::script::Script), a 64-bit prologue that works off a small table of its own and
//! then falls back to 32 bits, and a 16-bit trampoline for further processors. Addresses are
//! written as differences of labels, so the linker has nothing to relocate.

use std::arch::global_asm;

/// Where the code is loaded.
pub(crate) const CODE_GPA: u32 = 0x11_0000;
/// Where the 32-bit entry stores what it found: see [`super::boot_state`].
pub(crate) const STATE_32_GPA: u32 = 0x18_0000;
/// Where the 64-bit entry does.
pub(crate) const STATE_64_GPA: u32 = 0x18_1000;
/// The 64-bit prologue's table: a CR3 (0: keep it), 8 unused bytes, then entries of operation (1
/// write, 2 read, 0 end), address, value, and 8 unused bytes.
pub(crate) const LONG_TABLE_GPA: u32 = 0x1c_0000;
/// The script: entries of operation and three operands, 32 bits each.
pub(crate) const SCRIPT_GPA: u32 = 0x20_0000;
/// Where the trampoline runs once it is copied there.
pub(crate) const TRAMPOLINE_GPA: u32 = 0x1_0000;
/// Where it writes: a byte for each APIC id, at 0x100 the x2APIC ids, at 0x400 the number of
/// processors.
pub(crate) const TRAMPOLINE_DATA_GPA: u32 = 0x1_1000;

global_asm!(
    r#"
    .pushsection .rodata.bothy_test_guest, "a", @progbits
    .balign 16
    .set BASE, 0x110000

    .globl bothy_guest_start
bothy_guest_start:
    .code32
    movl %eax, 0x180000
    movl %ebx, 0x180004
    movl %ecx, 0x180008
    movl %edx, 0x18000c
    movl %esi, 0x180010
    movl %edi, 0x180014
    movl %ebp, 0x180018
    movl %esp, 0x18001c
    movl $0x1a0000, %esp
    pushfl
    popl %eax
    movl %eax, 0x180020
    movl %cr0, %eax
    movl %eax, 0x180024
    movl %cr3, %eax
    movl %eax, 0x180028
    movl %cr4, %eax
    movl %eax, 0x18002c
    xorl %eax, %eax
    movw %cs, %ax
    movl %eax, 0x180030
    movw %ds, %ax
    movl %eax, 0x180034
    movw %es, %ax
    movl %eax, 0x180038
    movw %ss, %ax
    movl %eax, 0x18003c
    strw %ax
    movl %eax, 0x180040
    sgdtl 0x180048
    sidtl 0x180050
    movl $0xc0000080, %ecx
    rdmsr
    movl %eax, 0x180058

.Lscript:
    cld
    movl $0x1a0000, %esp
    movl $0x200000, %ebp
.Lnext:
    movl 0(%ebp), %eax
    movl 4(%ebp), %ebx
    movl 8(%ebp), %ecx
    movl 12(%ebp), %edx
    addl $16, %ebp
    jmp *(BASE + .Ltable - bothy_guest_start)(,%eax,4)

    .balign 4
.Ltable:
    .long BASE + .Lreset - bothy_guest_start
    .long BASE + .Lout8 - bothy_guest_start
    .long BASE + .Lout16 - bothy_guest_start
    .long BASE + .Lout32 - bothy_guest_start
    .long BASE + .Lin8 - bothy_guest_start
    .long BASE + .Lin16 - bothy_guest_start
    .long BASE + .Lin32 - bothy_guest_start
    .long BASE + .Lwrite8 - bothy_guest_start
    .long BASE + .Lwrite16 - bothy_guest_start
    .long BASE + .Lwrite32 - bothy_guest_start
    .long BASE + .Lread8 - bothy_guest_start
    .long BASE + .Lread16 - bothy_guest_start
    .long BASE + .Lread32 - bothy_guest_start
    .long BASE + .Lput - bothy_guest_start
    .long BASE + .Lwait - bothy_guest_start
    .long BASE + .Lcopy - bothy_guest_start
    .long BASE + .Ltriple - bothy_guest_start
    .long BASE + .Lpopcnt - bothy_guest_start
    .long BASE + .Lspin - bothy_guest_start
    .long BASE + .Lhalt - bothy_guest_start
    .long BASE + .Louts8 - bothy_guest_start
    .long BASE + .Louts32 - bothy_guest_start
    .long BASE + .Lins8 - bothy_guest_start
    .long BASE + .Lins32 - bothy_guest_start
    .long BASE + .Lreceive - bothy_guest_start
    .long BASE + .Lflood - bothy_guest_start
    .long BASE + .Lcpuid - bothy_guest_start
    .long BASE + .Lreset - bothy_guest_start
    .long BASE + .Lfill - bothy_guest_start
    .long BASE + .Lsleep - bothy_guest_start
    .long BASE + .Lecho - bothy_guest_start
    .long BASE + .Lexecute - bothy_guest_start
    .long BASE + .Lout_now - bothy_guest_start

.Lreset:
    movb $0xfe, %al
    outb %al, $0x64
.Lhalt:
    cli
    hlt
    jmp .Lhalt
.Lspin:
    jmp .Lspin

.Lout8:
    movl %ecx, %eax
    movl %ebx, %edx
    outb %al, %dx
    jmp .Lnext
.Lout16:
    movl %ecx, %eax
    movl %ebx, %edx
    outw %ax, %dx
    jmp .Lnext
.Lout32:
    movl %ecx, %eax
    movl %ebx, %edx
    outl %eax, %dx
    jmp .Lnext
.Lin8:
    movl %edx, %eax
    movl %ebx, %edx
    inb %dx, %al
    movl %eax, (%ecx)
    jmp .Lnext
.Lin16:
    movl %edx, %eax
    movl %ebx, %edx
    inw %dx, %ax
    movl %eax, (%ecx)
    jmp .Lnext
.Lin32:
    movl %ebx, %edx
    inl %dx, %eax
    movl %eax, (%ecx)
    jmp .Lnext

.Lwrite8:
    movb %cl, (%ebx)
    jmp .Lnext
.Lwrite16:
    movw %cx, (%ebx)
    jmp .Lnext
.Lwrite32:
    movl %ecx, (%ebx)
    jmp .Lnext
.Lread8:
    movl %edx, %eax
    movb (%ebx), %al
    movl %eax, (%ecx)
    jmp .Lnext
.Lread16:
    movl %edx, %eax
    movw (%ebx), %ax
    movl %eax, (%ecx)
    jmp .Lnext
.Lread32:
    movl (%ebx), %eax
    movl %eax, (%ecx)
    jmp .Lnext

    // The transmitter's FIFO takes 16 bytes when it is empty.
.Lput:
    movl %ebx, %esi
    movl %ecx, %edi
1:  testl %edi, %edi
    jz .Lnext
    movl $0x3fd, %edx
2:  inb %dx, %al
    testb $0x20, %al
    jz 2b
    movl $16, %ecx
    cmpl %ecx, %edi
    jae 3f
    movl %edi, %ecx
3:  subl %ecx, %edi
    movl $0x3f8, %edx
    rep outsb
    jmp 1b

    // Bounded by the time stamp counter: 2^24 ticks are a unit.
.Lwait:
    movl %edx, %edi
    rdtsc
    shrdl $24, %edx, %eax
    movl %eax, %esi
1:  movl (%ebx), %eax
    andl %ecx, %eax
    cmpl %edi, %eax
    je .Lnext
    rdtsc
    shrdl $24, %edx, %eax
    subl %esi, %eax
    cmpl $1500, %eax
    jb 1b
    movl $0x3f8, %edx
    movb $'T', %al
    outb %al, %dx
    movb $'!', %al
    outb %al, %dx
    jmp .Lreset

.Lsleep:
    rdtsc
    shrdl $24, %edx, %eax
    movl %eax, %esi
1:  rdtsc
    shrdl $24, %edx, %eax
    subl %esi, %eax
    cmpl %ebx, %eax
    jb 1b
    jmp .Lnext

.Lcopy:
    movl %ebx, %edi
    movl %ecx, %esi
    movl %edx, %ecx
    rep movsb
    jmp .Lnext
.Lfill:
    movl %ebx, %edi
    movl %ecx, %eax
    movl %edx, %ecx
    rep stosb
    jmp .Lnext

    // An exception with an empty IDT, and another, and another.
.Ltriple:
    pushl $0
    pushl $0
    lidtl (%esp)
    xorl %edx, %edx
    xorl %ebx, %ebx
    divl %ebx
    jmp .Ltriple

    // An instruction that no KVM emulates, on an address without memory: hardware KVM has to
    // emulate it as well.
.Lpopcnt:
    popcntl 0xd0f00000, %eax
    jmp .Lnext

    // Code where there is no memory.
.Lexecute:
    jmp *%ebx

.Louts8:
    movl %ecx, %esi
    movl %edx, %ecx
    movl %ebx, %edx
    rep outsb
    jmp .Lnext
.Louts32:
    movl %ecx, %esi
    movl %edx, %ecx
    movl %ebx, %edx
    rep outsl
    jmp .Lnext
.Lins8:
    movl %ecx, %edi
    movl %edx, %ecx
    movl %ebx, %edx
    rep insb
    jmp .Lnext
.Lins32:
    movl %ecx, %edi
    movl %edx, %ecx
    movl %ebx, %edx
    rep insl
    jmp .Lnext

.Lreceive:
    movl %ebx, %edi
1:  testl %ecx, %ecx
    jz .Lnext
    movl $0x3fd, %edx
2:  inb %dx, %al
    testb $1, %al
    jz 2b
    movl $0x3f8, %edx
    inb %dx, %al
    movb %al, (%edi)
    incl %edi
    decl %ecx
    jmp 1b

.Lecho:
1:  testl %ebx, %ebx
    jz .Lnext
    movl $0x3fd, %edx
2:  inb %dx, %al
    testb $1, %al
    jz 2b
    movl $0x3f8, %edx
    inb %dx, %al
    movb %al, %cl
    movl $0x3fd, %edx
3:  inb %dx, %al
    testb $0x20, %al
    jz 3b
    movb %cl, %al
    movl $0x3f8, %edx
    outb %al, %dx
    decl %ebx
    jmp 1b

    // Without a look at the transmitter: what a careless guest does.
.Lout_now:
    movl %ebx, %esi
    movl $0x3f8, %edx
    rep outsb
    jmp .Lnext

.Lflood:
    xorl %edi, %edi
1:  movl $0x3fd, %edx
    inb %dx, %al
    testb $0x20, %al
    jz 2f
    movl $0x200000, %esi
    movl $16, %ecx
    movl $0x3f8, %edx
    rep outsb
    jmp .Lflood
2:  incl %edi
    cmpl %ebx, %edi
    jb 1b
    jmp .Lnext

.Lcpuid:
    movl %edx, %edi
    movl %ebx, %eax
    cpuid
    movl %eax, 0(%edi)
    movl %ebx, 4(%edi)
    movl %ecx, 8(%edi)
    movl %edx, 12(%edi)
    jmp .Lnext

    .globl bothy_guest_long
bothy_guest_long:
    .code64
    movq %rax, 0x181000
    movq %rbx, 0x181008
    movq %rcx, 0x181010
    movq %rdx, 0x181018
    movq %rsi, 0x181020
    movq %rdi, 0x181028
    movq %rbp, 0x181030
    movq %rsp, 0x181038
    movq $0x1a0000, %rsp
    pushfq
    popq %rax
    movq %rax, 0x181040
    movq %cr0, %rax
    movq %rax, 0x181048
    movq %cr3, %rax
    movq %rax, 0x181050
    movq %cr4, %rax
    movq %rax, 0x181058
    movl $0xc0000080, %ecx
    rdmsr
    movl %eax, 0x181060
    xorl %eax, %eax
    movw %cs, %ax
    movq %rax, 0x181068
    movw %ds, %ax
    movq %rax, 0x181070
    movw %ss, %ax
    movq %rax, 0x181078
    movw %es, %ax
    movq %rax, 0x181080

    movq 0x1c0000, %rax
    testq %rax, %rax
    jz 1f
    movq %rax, %cr3
1:  movl $0x1c0010, %ebp
2:  movq 0(%rbp), %rax
    movq 8(%rbp), %rbx
    cmpq $1, %rax
    je 3f
    cmpq $2, %rax
    jne 4f
    movq (%rbx), %rax
    movq %rax, 16(%rbp)
    addq $32, %rbp
    jmp 2b
3:  movq 16(%rbp), %rax
    movq %rax, (%rbx)
    addq $32, %rbp
    jmp 2b

4:  lgdt BASE + .Lgdt_pointer - bothy_guest_start
    pushq $8
    pushq $(BASE + .Lcompat - bothy_guest_start)
    lretq

    .balign 8
.Lgdt:
    .quad 0
    .quad 0x00cf9b000000ffff
    .quad 0x00cf93000000ffff
.Lgdt_pointer:
    .word 23
    .quad BASE + .Lgdt - bothy_guest_start

    .code32
.Lcompat:
    movl $16, %eax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movl %cr0, %eax
    andl $0x7fffffff, %eax
    movl %eax, %cr0
    movl $0xc0000080, %ecx
    rdmsr
    andl $0xfffffeff, %eax
    wrmsr
    jmp .Lscript

    .balign 16
    .globl bothy_guest_trampoline
bothy_guest_trampoline:
    .code16
    cli
    movw $0x1100, %ax
    movw %ax, %ds
    movl $1, %eax
    cpuid
    shrl $24, %ebx
    movw %bx, %di
    movb $1, (%di)
    shlw $2, %di
    movl $0xb, %eax
    xorl %ecx, %ecx
    cpuid
    movl %edx, 0x100(%di)
    lock incl 0x400
1:  cli
    hlt
    jmp 1b

    .globl bothy_guest_end
bothy_guest_end:
    .code64
    .popsection
"#,
    options(att_syntax)
);

// SAFETY: nothing is called; the statics are bytes that the assembler above has put into read-only
// data.
unsafe extern "C" {
    static bothy_guest_start: u8;
    static bothy_guest_long: u8;
    static bothy_guest_trampoline: u8;
    static bothy_guest_end: u8;
}

fn offset(of: *const u8) -> u32 {
    u32::try_from(of.addr() - (&raw const bothy_guest_start).addr()).expect("a few KiB")
}

/// All of the code, to be loaded at [`CODE_GPA`].
pub(crate) fn code() -> &'static [u8] {
    let len = offset(&raw const bothy_guest_end);
    // SAFETY: both symbols are in the same section with only initialised bytes between them, and
    // nothing ever writes there.
    unsafe { std::slice::from_raw_parts(&raw const bothy_guest_start, len as usize) }
}

/// The 64-bit entry.
pub(crate) fn long_entry() -> u32 {
    CODE_GPA + offset(&raw const bothy_guest_long)
}

/// Where the trampoline is loaded, and how long it is.
pub(crate) fn trampoline() -> (u32, u32) {
    let start = offset(&raw const bothy_guest_trampoline);
    (CODE_GPA + start, offset(&raw const bothy_guest_end) - start)
}
