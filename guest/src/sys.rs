//! The system calls that std has no word for, each as a small safe function. All of the init's unsafe code is here.

use std::ffi::{CStr, CString, c_int, c_void};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use bothy_guest::{TIMING_PORT, TimingMark};

/// Writes the mark to the timing port. Where the kernel doesn't allow it, nothing happens: timing is a luxury.
#[expect(unsafe_code, reason = "ioperm and the out instruction")]
pub(crate) fn mark_time(mark: TimingMark) {
    // SAFETY: ioperm takes no pointers; it only allows this one port to this process.
    if unsafe { libc::ioperm(TIMING_PORT.into(), 1, 1) } != 0 {
        return;
    }
    // SAFETY: the port was just allowed, so `out` does not fault. On bothy's machine the port only notes the time;
    // on others nothing that matters listens there. No memory is touched.
    unsafe {
        std::arch::asm!("out dx, al", in("dx") TIMING_PORT, in("al") mark as u8,
            options(nomem, nostack, preserves_flags));
    }
    // SAFETY: as above. Programs that init starts must not inherit the port.
    unsafe { libc::ioperm(TIMING_PORT.into(), 1, 0) };
}

/// `mount(2)`. What is mounted already counts as mounted.
pub(crate) fn mount(source: &CStr, target: &CStr, kind: &CStr, flags: u64, data: &CStr) -> io::Result<()> {
    #[expect(unsafe_code, reason = "mount has no safe wrapper in std")]
    // SAFETY: all five pointers are to NUL-terminated strings that outlive the call.
    let result = unsafe {
        libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, data.as_ptr().cast::<c_void>())
    };
    match check(result) {
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Ok(()),
        result => result.map(drop),
    }
}

/// Unmounts, or else makes read-only, so that what is on the disk is complete.
#[expect(unsafe_code, reason = "umount2 and mount have no safe wrapper in std")]
pub(crate) fn unmount(target: &CStr) -> io::Result<()> {
    // SAFETY: the pointer is to a NUL-terminated string that outlives the call.
    if unsafe { libc::umount2(target.as_ptr(), 0) } == 0 {
        return Ok(());
    }
    let flags = libc::MS_REMOUNT | libc::MS_RDONLY;
    // SAFETY: the target is a NUL-terminated string; a remount without data may have null for the other three.
    check(unsafe {
        libc::mount(std::ptr::null(), target.as_ptr(), std::ptr::null(), flags, std::ptr::null())
    })
    .map(drop)
}

/// Blocks the signals for this process and returns a descriptor that reads them (`signalfd_siginfo` each).
#[expect(unsafe_code, reason = "signal sets and signalfd have no safe wrapper in std")]
pub(crate) fn signal_fd(signals: &[c_int]) -> io::Result<File> {
    let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises the set that it is given.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    for &signal in signals {
        // SAFETY: the set was initialised above; a number that is no signal only gives an error.
        unsafe { libc::sigaddset(set.as_mut_ptr(), signal) };
    }
    // SAFETY: the set is initialised and outlives the call; a null old set is allowed.
    check(unsafe { libc::sigprocmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut()) })?;
    // SAFETY: -1 asks for a new descriptor; the set is initialised and outlives the call.
    let fd = check(unsafe { libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) })?;
    // SAFETY: the descriptor is new and owned by nobody else.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// Waits until one of the descriptors can be read; tells for each whether it can (or has hung up).
pub(crate) fn wait_readable(fds: &[BorrowedFd<'_>], timeout: Option<Duration>) -> io::Result<Vec<bool>> {
    let mut polled: Vec<libc::pollfd> =
        fds.iter().map(|fd| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 }).collect();
    let timeout = timeout.map_or(-1, |t| c_int::try_from(t.as_millis()).unwrap_or(c_int::MAX));
    let count = libc::nfds_t::try_from(polled.len()).unwrap_or(libc::nfds_t::MAX);
    #[expect(unsafe_code, reason = "poll has no safe wrapper in std")]
    // SAFETY: the pointer and the count are those of a live vector of pollfd.
    let result = unsafe { libc::poll(polled.as_mut_ptr(), count, timeout) };
    match check(result) {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
        result => drop(result?),
    }
    Ok(polled.iter().map(|p| p.revents != 0).collect())
}

/// What became of init's children: its own, and those of programs that have ended.
pub(crate) enum Reaped {
    /// This one has ended, with the status that a shell would give it.
    Child { pid: i32, status: i32 },
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
            Reaped::Child { pid, status: 128_i32.saturating_add(libc::WTERMSIG(status)) }
        }
        1.. => Reaped::Child { pid, status: libc::WEXITSTATUS(status) },
        // Without WUNTRACED and with a valid pointer, the only error is ECHILD.
        _ => Reaped::Nobody,
    }
}

/// `kill(2)`; for init, process -1 is everybody else. An error means that there is no such process.
pub(crate) fn kill(pid: i32, signal: c_int) -> io::Result<()> {
    #[expect(unsafe_code, reason = "kill has no safe wrapper in std")]
    // SAFETY: kill takes no pointers. Only PID 1 of a guest gets here (`main` checks it).
    check(unsafe { libc::kill(pid, signal) }).map(drop)
}

/// `sync(2)`: returns when everything is written.
pub(crate) fn sync() {
    #[expect(unsafe_code, reason = "sync has no safe wrapper in std")]
    // SAFETY: sync takes nothing and cannot fail.
    unsafe {
        libc::sync();
    };
}

/// `reboot(2)` with one of the `RB_` commands. Returns only on failure.
pub(crate) fn reboot(command: c_int) -> io::Error {
    #[expect(unsafe_code, reason = "reboot has no safe wrapper in std")]
    // SAFETY: reboot takes no pointers.
    match check(unsafe { libc::reboot(command) }) {
        Err(error) => error,
        Ok(_) => io::Error::other("reboot returned"),
    }
}

/// `sethostname(2)`.
pub(crate) fn set_host_name(name: &str) -> io::Result<()> {
    #[expect(unsafe_code, reason = "sethostname has no safe wrapper in std")]
    // SAFETY: pointer and length are those of a live string; it needs no NUL.
    check(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) }).map(drop)
}

/// Loads the kernel module in `file`, without parameters.
pub(crate) fn load_module(file: &File) -> io::Result<()> {
    #[expect(unsafe_code, reason = "finit_module has no wrapper at all")]
    // SAFETY: the descriptor is open, the parameter string is NUL-terminated and static, and no flags are set.
    let result = unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) };
    check(c_int::try_from(result).unwrap_or(-1)).map(drop)
}

/// A socket for talking to the kernel about interfaces, addresses and routes. Reading and writing is as on a file.
#[expect(unsafe_code, reason = "std has no netlink sockets")]
pub(crate) fn netlink_socket() -> io::Result<File> {
    // SAFETY: socket takes no pointers.
    let fd = check(unsafe {
        libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_ROUTE)
    })?;
    // SAFETY: the descriptor is new and owned by nobody else.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// How many bytes a terminal has taken but not yet sent; 0 for what is no terminal.
pub(crate) fn unsent_bytes(terminal: BorrowedFd<'_>) -> usize {
    let mut count: c_int = 0;
    #[expect(unsafe_code, reason = "TIOCOUTQ has no safe wrapper in std")]
    // SAFETY: TIOCOUTQ writes one int, which count is.
    let result = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCOUTQ, &raw mut count) };
    if result == 0 { usize::try_from(count).unwrap_or(0) } else { 0 }
}

/// Tells a terminal how large it is; serial lines can't know.
pub(crate) fn set_window_size(terminal: BorrowedFd<'_>, columns: u16, rows: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    #[expect(unsafe_code, reason = "TIOCSWINSZ has no safe wrapper in std")]
    // SAFETY: TIOCSWINSZ reads one struct winsize, which size is.
    check(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) }).map(drop)
}

/// Makes `terminal` the controlling terminal of init's own session.
///
/// Init keeps it: were a shell the session's leader, its end would hang the terminal up, and what the terminal hasn't sent by then
/// would be lost.
#[expect(unsafe_code, reason = "sessions have no safe wrapper in std")]
pub(crate) fn control_terminal(terminal: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: neither call takes memory. Where init leads a session already, setsid fails and changes nothing.
    check(unsafe {
        libc::setsid();
        libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY, 0)
    })
    .map(drop)
}

/// Makes `command` start in a process group of its own, in the foreground of its standard input if that is a terminal, and with no
/// signal blocked.
#[expect(unsafe_code, reason = "pre_exec runs between fork and exec")]
pub(crate) fn in_foreground(command: &mut Command) {
    let between_fork_and_exec = || {
        // SAFETY: the calls are async-signal-safe and take no memory. SIGTTOU, which tcsetpgrp raises in the background, is
        // ignored meanwhile; where standard input is no terminal it fails and changes nothing.
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

#[expect(unsafe_code, reason = "signal sets have no safe wrapper in std")]
fn unblock_signals() -> io::Result<()> {
    let mut none = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises the set, which outlives sigprocmask; a null old set is allowed.
    check(unsafe {
        libc::sigemptyset(none.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut())
    })
    .map(drop)
}

/// A string for the kernel. A NUL inside ends it early, which no path in a mount table contains.
pub(crate) fn c_string(text: &str) -> CString {
    let until_nul: Vec<u8> = text.bytes().take_while(|&b| b != 0).collect();
    CString::new(until_nul).unwrap_or_default()
}

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
