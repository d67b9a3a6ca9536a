//! Signals: read as events, sent, and given back to what is started.

use std::ffi::c_int;
use std::fs::File;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

use super::check;

/// Blocks the signals for this process and returns a descriptor that reads them (`signalfd_siginfo`
/// each).
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

/// `kill(2)`; for init, process -1 is everybody else. An error means that there is no such process.
pub(crate) fn kill(pid: i32, signal: c_int) -> io::Result<()> {
    #[expect(unsafe_code, reason = "kill has no safe wrapper in std")]
    // SAFETY: kill takes no pointers. Only PID 1 of a guest gets here (`main` checks it).
    check(unsafe { libc::kill(pid, signal) }).map(drop)
}

#[expect(unsafe_code, reason = "signal sets have no safe wrapper in std")]
pub(super) fn unblock_signals() -> io::Result<()> {
    let mut none = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises the set, which outlives sigprocmask; a null old set is
    // allowed.
    check(unsafe {
        libc::sigemptyset(none.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut())
    })
    .map(drop)
}

/// Gives every signal back its default action, and blocks none.
#[expect(unsafe_code, reason = "signal has no safe wrapper in std")]
pub(crate) fn default_signals() -> io::Result<()> {
    for signal in 1..=LAST_SIGNAL {
        // SAFETY: SIG_DFL is no function of ours; for what is no signal, or can't be changed, there
        // is an error and no effect.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    unblock_signals()
}

const LAST_SIGNAL: c_int = 64;
