//! Which system calls the filters of a running process permit. The kernel shows a process's filters
//! to whoever may trace it and is root; here they are run, for each system call in turn ([`run`]).

use std::io;

use bothy_guest::spec::Instruction;

use crate::spec::seccomp::run::{Call, run};
use crate::sys::trace;

/// The classic BPF that filters are written in.
pub type Filter = Vec<Instruction>;

/// The numbers of x86-64's system calls as of Linux 6.12; the gap was left for other tables.
const FIRST: std::ops::RangeInclusive<u32> = 0..=335;
const SECOND: std::ops::RangeInclusive<u32> = 424..=462;
/// How many they are.
pub const ALL: usize = 336 + 39;
/// Why a filter is not believed.
const MALFORMED: &str = "a filter that can't be understood";

/// How many system calls all of these filters permit, if all arguments are 0.
///
/// # Errors
///
/// A filter that the kernel would not have taken.
pub fn permitted(filters: &[Filter]) -> io::Result<usize> {
    let mut count = 0;
    for number in FIRST.chain(SECOND) {
        let mut permitted = true;
        for filter in filters {
            let action = run(filter, &Call::native(number)).ok_or_else(|| io::Error::other(MALFORMED))?;
            let action = action & libc::SECCOMP_RET_ACTION_FULL;
            permitted &= action == libc::SECCOMP_RET_ALLOW || action == libc::SECCOMP_RET_LOG;
        }
        count += usize::from(permitted);
    }
    Ok(count)
}

/// The filters of a process. It is stopped for a moment.
///
/// # Errors
///
/// The kernel's: it takes root, and a process that nobody else traces.
pub fn filters_of(pid: u32) -> io::Result<Vec<Filter>> {
    let instruction = |step: &libc::sock_filter| Instruction {
        code: step.code,
        jump_true: step.jt,
        jump_false: step.jf,
        value: step.k,
    };
    let filters = trace::filters_of(pid)?;
    Ok(filters.iter().map(|filter| filter.iter().map(instruction).collect()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(code: u32, jump_true: u8, jump_false: u8, value: u32) -> Instruction {
        Instruction { code: u16::try_from(code).unwrap(), jump_true, jump_false, value }
    }

    const LOAD: u32 = libc::BPF_LD | libc::BPF_ABS;
    const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
    const ERRNO: u32 = libc::SECCOMP_RET_ERRNO | 1;

    /// Permits numbers below 10 of x86-64 and nothing else.
    fn ten() -> Filter {
        vec![
            op(LOAD, 0, 0, 4),
            op(libc::BPF_JMP | libc::BPF_JEQ, 1, 0, crate::spec::seccomp::run::X86_64),
            op(libc::BPF_RET, 0, 0, libc::SECCOMP_RET_KILL_PROCESS),
            op(LOAD, 0, 0, 0),
            op(libc::BPF_JMP | libc::BPF_JGE, 0, 1, 10),
            op(libc::BPF_RET, 0, 0, ERRNO),
            op(libc::BPF_RET, 0, 0, ALLOW),
        ]
    }

    #[test]
    fn all_filters_must_permit_a_call() {
        assert_eq!(permitted(&[]).unwrap(), ALL);
        assert_eq!(permitted(&[ten()]).unwrap(), 10);
        // Even numbers: bit 0 is not set.
        let even = vec![
            op(LOAD, 0, 0, 0),
            op(libc::BPF_JMP | libc::BPF_JSET, 0, 1, 1),
            op(libc::BPF_RET, 0, 0, ERRNO),
            op(libc::BPF_RET, 0, 0, ALLOW),
        ];
        assert_eq!(permitted(&[ten(), even]).unwrap(), 5);
    }

    #[test]
    fn a_filter_without_an_end_is_no_filter() {
        assert!(permitted(&[vec![]]).is_err());
        assert!(permitted(&[vec![op(LOAD, 0, 0, 0)]]).is_err());
        assert!(permitted(&[vec![op(LOAD, 0, 0, 400), op(libc::BPF_RET, 0, 0, ALLOW)]]).is_err());
        assert!(permitted(&[vec![op(libc::BPF_JMP | libc::BPF_JA, 0, 0, u32::MAX)]]).is_err());
    }
}
