//! Terminals.

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::check;

/// How many bytes a terminal or a socket has taken but not yet sent; 0 for what doesn't count them.
/// The request is SIOCOUTQ as well.
pub(crate) fn unsent_bytes(fd: BorrowedFd<'_>) -> usize {
    let mut count: c_int = 0;
    #[expect(unsafe_code, reason = "TIOCOUTQ has no safe wrapper in std")]
    // SAFETY: TIOCOUTQ writes one int, which count is.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCOUTQ, &raw mut count) };
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
/// Init keeps it: were a shell the session's leader, its end would hang the terminal up, and what
/// the terminal hasn't sent by then would be lost.
#[expect(unsafe_code, reason = "sessions have no safe wrapper in std")]
pub(crate) fn control_terminal(terminal: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: neither call takes memory. Where init leads a session already, setsid fails and
    // changes nothing.
    check(unsafe {
        libc::setsid();
        libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY, 0)
    })
    .map(drop)
}
