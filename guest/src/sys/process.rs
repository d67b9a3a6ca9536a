//! Processes: made, replaced by a program, and reaped.

use std::ffi::{CString, c_char, c_int};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::ptr;

use bothy_guest::protocol::ExitStatus;
use bothy_guest::spec::{Filter, Limit};

use super::signal::unblock_signals;

/// What became of init's children: its own, and those of programs that have ended.
pub(crate) enum Reaped {
    /// This one has ended.
    Child { pid: i32, status: ExitStatus },
    /// There are some, and all still run.
    NoneYet,
    /// There are none, so no other program runs on this machine.
    Nobody,
}

/// Takes the status of one child that has ended, if there is one. Does not wait.
pub(crate) fn reap() -> Reaped {
    let mut status = 0;
    #[expect(unsafe_code, reason = "std waits only for children of its own making, init for all")]
    // SAFETY: status is a live integer.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
    match pid {
        0 => Reaped::NoneYet,
        1.. if libc::WIFSIGNALED(status) => {
            Reaped::Child { pid, status: ExitStatus::Signal(byte(libc::WTERMSIG(status))) }
        }
        1.. => Reaped::Child { pid, status: ExitStatus::Code(byte(libc::WEXITSTATUS(status))) },
        // Without WUNTRACED and with a valid pointer, the only error is ECHILD.
        _ => Reaped::Nobody,
    }
}

/// Makes `command` start in a process group of its own, in the foreground of its standard input if
/// that is a terminal, and with no signal blocked.
#[expect(unsafe_code, reason = "pre_exec runs between fork and exec")]
pub(crate) fn in_foreground(command: &mut Command) {
    let between_fork_and_exec = || {
        // SAFETY: the calls are async-signal-safe and take no memory. SIGTTOU, which tcsetpgrp
        // raises in the background, is ignored meanwhile; where standard input is no terminal it
        // fails and changes nothing.
        unsafe {
            libc::setpgid(0, 0);
            libc::signal(libc::SIGTTOU, libc::SIG_IGN);
            libc::tcsetpgrp(0, libc::getpid());
            libc::signal(libc::SIGTTOU, libc::SIG_DFL);
        }
        unblock_signals()
    };
    // SAFETY: the closure only makes async-signal-safe calls, and init has a single thread.
    unsafe { command.pre_exec(between_fork_and_exec) };
}

/// Exit codes and signals have eight bits at most.
fn byte(value: c_int) -> u8 {
    u8::try_from(value).unwrap_or(u8::MAX)
}

/// Which of the two processes goes on behind [`fork_into`].
pub(crate) enum Forked {
    Child,
    Parent { pid: i32, pidfd: OwnedFd },
}

/// As fork(2), with the child in new namespaces (`CLONE_NEW..`) and in the cgroup whose directory
/// this is.
///
/// Only for a process with a single thread: the C library isn't told of the fork.
#[expect(unsafe_code, reason = "clone3 has no wrapper at all")]
pub(crate) fn fork_into(namespaces: c_int, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Forked> {
    let mut pidfd: RawFd = -1;
    // SAFETY: clone_args is made of integers; zero is what each of them means nothing by.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = u64::from((namespaces | libc::CLONE_PIDFD).cast_unsigned());
    args.pidfd = (&raw mut pidfd).expose_provenance() as u64;
    args.exit_signal = u64::from(libc::SIGCHLD.cast_unsigned());
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::from(cgroup.as_raw_fd().cast_unsigned());
    }
    // SAFETY: pointer and size are those of a live clone_args, whose pidfd points to a live
    // integer. Without CLONE_VM and with no stack given the child goes on here with a copy of
    // everything, as after fork; there is no other thread that could have held a lock.
    let result = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) };
    match i32::try_from(result) {
        Ok(0) => Ok(Forked::Child),
        // SAFETY: the kernel has put a new descriptor there, owned by nobody else.
        Ok(pid) if pid > 0 => Ok(Forked::Parent { pid, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Of `<linux/sched.h>`; wider than the type of libc's other flags.
const CLONE_INTO_CGROUP: u64 = 1 << 33;

/// `execve(2)`. Returns only on failure.
#[expect(unsafe_code, reason = "std's exec looks for programs in the wrong environment's PATH")]
pub(crate) fn exec(path: &CString, args: &[CString], env: &[CString]) -> io::Error {
    let pointers = |list: &[CString]| -> Vec<*const c_char> {
        list.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect()
    };
    let (args, env) = (pointers(args), pointers(env));
    // SAFETY: both vectors end with a null pointer, and all others point to NUL-terminated strings
    // that outlive the call.
    unsafe { libc::execve(path.as_ptr(), args.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// Ends this process at once: no destructors, no buffers.
pub(crate) fn exit_now(code: i32) -> ! {
    #[expect(unsafe_code, reason = "std's exit runs handlers that a forked child must not run")]
    // SAFETY: _exit takes nothing and never returns.
    unsafe {
        libc::_exit(code)
    }
}

/// Makes every descriptor from `first` on close when a program takes this process over.
pub(crate) fn close_on_exec_from(first: u32) -> io::Result<()> {
    #[expect(unsafe_code, reason = "close_range has no safe wrapper")]
    // SAFETY: with this flag nothing is closed now; the call takes no pointers.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes this open descriptor also the one with the number `number`, which stays open across exec.
pub(crate) fn duplicate_to(fd: BorrowedFd<'_>, number: RawFd) -> io::Result<()> {
    #[expect(unsafe_code, reason = "dup2 of a number that nobody owns has no safe wrapper")]
    // SAFETY: dup2 takes no pointers. The numbers are those of the standard streams, which std
    // never closes and owns in no value.
    super::check(unsafe { libc::dup2(fd.as_raw_fd(), number) }).map(drop)
}

/// Sets a resource limit. Where it takes a right to raise it that this process lacks, it becomes as
/// high as it may be.
pub(crate) fn set_limit(limit: &Limit) -> io::Result<()> {
    let set = |soft: u64, hard: u64| {
        let limits = libc::rlimit { rlim_cur: soft, rlim_max: hard };
        #[expect(unsafe_code, reason = "a resource by its number has no safe wrapper")]
        // SAFETY: the call reads one rlimit, which is live. A number that is no resource gives an
        // error.
        super::check(unsafe { libc::setrlimit(limit.resource, &raw const limits) }).map(drop)
    };
    match set(limit.soft, limit.hard) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
            let mut present = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            #[expect(unsafe_code, reason = "a resource by its number has no safe wrapper")]
            // SAFETY: the call writes one rlimit, which is live.
            super::check(unsafe { libc::getrlimit(limit.resource, &raw mut present) })?;
            set(limit.soft.min(present.rlim_max), limit.hard.min(present.rlim_max))
        }
        result => result,
    }
}

/// Installs a seccomp filter for this process and all that come of it. It takes CAP_SYS_ADMIN, or
/// no_new_privs.
pub(crate) fn install_filter(filter: &Filter) -> io::Result<()> {
    let program: Vec<libc::sock_filter> = filter
        .program
        .iter()
        .map(|step| libc::sock_filter {
            code: step.code,
            jt: step.jump_true,
            jf: step.jump_false,
            k: step.value,
        })
        .collect();
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(io::Error::other)?,
        filter: program.as_ptr().cast_mut(),
    };
    #[expect(unsafe_code, reason = "seccomp has no wrapper at all")]
    // SAFETY: the program is live, as long as said, and only read; the kernel checks each
    // instruction.
    let result = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, filter.flags, &raw const program)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes the cgroup that this process is in the root of the cgroups that it sees.
pub(crate) fn unshare_cgroup() -> io::Result<()> {
    #[expect(unsafe_code, reason = "unshare has no safe wrapper: some flags break what std relies on")]
    // SAFETY: this flag changes no descriptor, memory or thread; unshare takes no pointers.
    super::check(unsafe { libc::unshare(libc::CLONE_NEWCGROUP) }).map(drop)
}
