//! Runs a seccomp filter as the kernel does, for a call that is only thought of.

use bothy_guest::spec::Instruction;

/// The kernel's `struct seccomp_data`, in bytes.
const DATA_LEN: u32 = 64;

/// A system call, as a filter sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Call {
    /// Its number.
    pub number: u32,
    /// Whose number (`AUDIT_ARCH_...`).
    pub arch: u32,
    /// Its arguments.
    pub arguments: [u64; 6],
}

/// x86-64 and x32.
pub const X86_64: u32 = 0xc000_003e;
/// i386.
pub const I386: u32 = 0x4000_0003;

impl Call {
    /// A call of x86-64 whose arguments are all 0.
    pub fn native(number: u32) -> Self {
        Self { number, arch: X86_64, ..Self::default() }
    }

    /// 32 bits of it. It comes from nowhere: the address is 0.
    fn word(&self, offset: u32) -> Option<u32> {
        match offset {
            0 => Some(self.number),
            4 => Some(self.arch),
            8 | 12 => Some(0),
            _ if offset.is_multiple_of(4) && offset < DATA_LEN => {
                let argument = self.arguments.get((offset as usize - 16) / 8)?;
                let shift = if offset.is_multiple_of(8) { 0 } else { 32 };
                u32::try_from((argument >> shift) & u64::from(u32::MAX)).ok()
            }
            _ => None,
        }
    }
}

/// What a filter returns for a system call (`SECCOMP_RET_...`). `None` for one that the kernel
/// would not take.
pub fn run(program: &[Instruction], call: &Call) -> Option<u32> {
    let (mut a, mut x, mut memory, mut at) = (0_u32, 0_u32, [0_u32; 16], 0_usize);
    // All jumps lead forward, so this ends.
    loop {
        let Instruction { code, jump_true, jump_false, value } = *program.get(at)?;
        let code = u32::from(code);
        at += 1;
        let operand = if code & libc::BPF_X == 0 { value } else { x };
        match code & 7 {
            libc::BPF_LD if code & 0xe0 == libc::BPF_ABS => a = call.word(value)?,
            libc::BPF_LD if code & 0xe0 == libc::BPF_IMM => a = value,
            libc::BPF_LD if code & 0xe0 == libc::BPF_MEM => a = *memory.get(value as usize)?,
            libc::BPF_LD if code & 0xe0 == libc::BPF_LEN => a = DATA_LEN,
            libc::BPF_LDX if code & 0xe0 == libc::BPF_IMM => x = value,
            libc::BPF_LDX if code & 0xe0 == libc::BPF_MEM => x = *memory.get(value as usize)?,
            libc::BPF_LDX if code & 0xe0 == libc::BPF_LEN => x = DATA_LEN,
            libc::BPF_ST => *memory.get_mut(value as usize)? = a,
            libc::BPF_STX => *memory.get_mut(value as usize)? = x,
            libc::BPF_ALU => {
                a = match code & 0xf0 {
                    libc::BPF_ADD => a.wrapping_add(operand),
                    libc::BPF_SUB => a.wrapping_sub(operand),
                    libc::BPF_MUL => a.wrapping_mul(operand),
                    libc::BPF_DIV => a.checked_div(operand)?,
                    libc::BPF_OR => a | operand,
                    libc::BPF_AND => a & operand,
                    libc::BPF_XOR => a ^ operand,
                    libc::BPF_LSH => a.checked_shl(operand)?,
                    libc::BPF_RSH => a.checked_shr(operand)?,
                    libc::BPF_NEG => a.wrapping_neg(),
                    _ => return None,
                }
            }
            libc::BPF_JMP => {
                let holds = match code & 0xf0 {
                    libc::BPF_JA => {
                        at = at.checked_add(value as usize)?;
                        continue;
                    }
                    libc::BPF_JEQ => a == operand,
                    libc::BPF_JGT => a > operand,
                    libc::BPF_JGE => a >= operand,
                    libc::BPF_JSET => a & operand != 0,
                    _ => return None,
                };
                at += usize::from(if holds { jump_true } else { jump_false });
            }
            libc::BPF_RET => return Some(if code & 0x18 == libc::BPF_A { a } else { value }),
            libc::BPF_MISC if code & 0xf8 == libc::BPF_TAX => x = a,
            libc::BPF_MISC if code & 0xf8 == libc::BPF_TXA => a = x,
            _ => return None,
        }
    }
}
