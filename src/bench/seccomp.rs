//! Which system calls the filters of a running process permit. The kernel shows a process's filters to whoever may trace it and is root; here
//! they are run, for each system call in turn ([`run`]).

use std::io;

use bothy_guest::spec::Instruction;

use crate::spec::seccomp::run::{Call, run};

/// The classic BPF that filters are written in.
pub type Filter = Vec<Instruction>;

/// The numbers of x86-64's system calls as of Linux 6.12; the gap was left for other tables.
const FIRST: std::ops::RangeInclusive<u32> = 0..=335;
const SECOND: std::ops::RangeInclusive<u32> = 424..=462;
/// How many they are.
pub const ALL: usize = 336 + 39;
/// A request of ptrace(2) that libc has no name for.
const PTRACE_SECCOMP_GET_FILTER: libc::c_uint = 0x420c;
/// More than any filter has instructions.
const MOST_INSTRUCTIONS: usize = 4096;
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
    let pid = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
    trace(libc::PTRACE_SEIZE, pid, 0, std::ptr::null_mut())?;
    let stopped = stop(pid).and_then(|()| {
        let mut filters = Vec::new();
        loop {
            match filter(pid, filters.len()) {
                Ok(filter) => filters.push(filter),
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(filters),
                Err(error) => return Err(error),
            }
        }
    });
    let detached = trace(libc::PTRACE_DETACH, pid, 0, std::ptr::null_mut());
    let filters = stopped?;
    detached?;
    Ok(filters)
}

fn stop(pid: libc::pid_t) -> io::Result<()> {
    trace(libc::PTRACE_INTERRUPT, pid, 0, std::ptr::null_mut())?;
    let mut status = 0;
    #[expect(unsafe_code, reason = "std waits for no process of others")]
    // SAFETY: `status` is a valid place for the result.
    let ret = unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL) };
    if ret != pid {
        return Err(io::Error::last_os_error());
    }
    if !libc::WIFSTOPPED(status) {
        return Err(io::Error::other("it has ended"));
    }
    // Any other stop is for a signal, which would be lost when the process goes on.
    if status >> 16 == libc::PTRACE_EVENT_STOP {
        Ok(())
    } else {
        Err(io::Error::other("it has got a signal"))
    }
}

fn filter(pid: libc::pid_t, number: usize) -> io::Result<Filter> {
    let len = trace(PTRACE_SECCOMP_GET_FILTER, pid, number, std::ptr::null_mut())?;
    let len = usize::try_from(len).ok().filter(|len| *len <= MOST_INSTRUCTIONS);
    let len = len.ok_or_else(|| io::Error::other(MALFORMED))?;
    let mut filter = vec![libc::sock_filter { code: 0, jt: 0, jf: 0, k: 0 }; len];
    trace(PTRACE_SECCOMP_GET_FILTER, pid, number, filter.as_mut_ptr())?;
    let instruction = |step: libc::sock_filter| Instruction {
        code: step.code,
        jump_true: step.jt,
        jump_false: step.jf,
        value: step.k,
    };
    Ok(filter.into_iter().map(instruction).collect())
}

/// `data` is null, or has room for what the request writes.
fn trace(
    request: libc::c_uint,
    pid: libc::pid_t,
    address: usize,
    data: *mut libc::sock_filter,
) -> io::Result<libc::c_long> {
    #[expect(unsafe_code, reason = "std has no ptrace")]
    // SAFETY: of the requests here only one writes to our memory, and that within the filter whose length it has told before: filters are counted from the
    // oldest, are only added, and never change.
    let ret = unsafe { libc::ptrace(request, pid, address, data) };
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(ret) }
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
