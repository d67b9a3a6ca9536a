//! Waiting for several descriptors at once, with one system call and no state in the kernel.

use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

/// One descriptor and what is wanted of it.
pub struct Source<'a> {
    fd: Option<&'a dyn AsRawFd>,
    events: libc::c_short,
}

/// What a [`Source`] is ready for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ready {
    /// It can be read, or its end or an error can be seen by reading.
    pub readable: bool,
    /// It can be written, or an error can be seen by writing.
    pub writable: bool,
}

impl<'a> Source<'a> {
    /// Waits to read.
    pub fn readable(fd: &'a dyn AsRawFd) -> Self {
        Self { fd: Some(fd), events: libc::POLLIN }
    }

    /// Waits for what is asked for. With neither, only an error or a hang-up is reported.
    pub fn of(fd: &'a dyn AsRawFd, readable: bool, writable: bool) -> Self {
        let events = if readable { libc::POLLIN } else { 0 } | if writable { libc::POLLOUT } else { 0 };
        Self { fd: Some(fd), events }
    }

    /// Ready (readable and writable) when a tap's interface is gone, and for nothing else. The
    /// kernel tells of that as it tells of a packet, so that who asks for errors alone isn't woken;
    /// urgent data, which a tap never has, is woken for as well.
    pub fn gone(tap: &'a dyn AsRawFd) -> Self {
        Self { fd: Some(tap), events: libc::POLLPRI }
    }

    /// Never ready.
    pub fn none() -> Self {
        Self { fd: None, events: 0 }
    }
}

/// Blocks until a source is ready or `deadline` passes; then none is.
pub fn wait<const N: usize>(sources: [Source<'_>; N], deadline: Option<Instant>) -> io::Result<[Ready; N]> {
    // poll(2) skips negative descriptors.
    let mut fds = sources.map(|source| libc::pollfd {
        fd: source.fd.map_or(-1, AsRawFd::as_raw_fd),
        events: source.events,
        revents: 0,
    });
    loop {
        let timeout = deadline.map_or(-1, |deadline| {
            // Rounded up, so that a wake-up isn't too early and the loop doesn't spin for a
            // millisecond.
            let left = deadline.saturating_duration_since(Instant::now()) + Duration::from_micros(999);
            libc::c_int::try_from(left.as_millis()).unwrap_or(libc::c_int::MAX)
        });
        #[expect(unsafe_code, reason = "poll(2) has no safe wrapper among our crates")]
        // SAFETY: `fds` is an array of N initialised pollfd that outlives the call; the descriptors
        // are borrowed, so open.
        let ready = unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout) };
        if ready >= 0 {
            let gone = libc::POLLHUP | libc::POLLERR | libc::POLLNVAL;
            return Ok(fds.map(|fd| Ready {
                readable: fd.revents & (libc::POLLIN | gone) != 0,
                writable: fd.revents & (libc::POLLOUT | gone) != 0,
            }));
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Whether a transfer failed only for now: it would block, or was interrupted.
pub fn is_passing(error: &io::Error) -> bool {
    [io::ErrorKind::WouldBlock, io::ErrorKind::Interrupted].contains(&error.kind())
}

/// Blocks until at least one of the sources is readable, closed or broken, and says which are.
/// `None` stands for a source that is not of interest now; with nothing but `None` this would block
/// for ever.
pub fn readable<const N: usize>(sources: [Option<&dyn AsRawFd>; N]) -> [bool; N] {
    wait_readable(sources.map(|fd| fd.map_or(Source::none(), Source::readable)), None)
}

/// The same for sources of any kind, and no longer than until `deadline`: then none is.
pub fn wait_readable<const N: usize>(sources: [Source<'_>; N], deadline: Option<Instant>) -> [bool; N] {
    // EFAULT and EINVAL can't be, and a handful of descriptors needs no memory.
    let ready =
        wait(sources, deadline).expect("poll fails for nothing but an interruption, which is repeated");
    ready.map(|ready| ready.readable)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    #[test]
    fn only_what_is_ready_is_reported() {
        let (a, mut b) = UnixStream::pair().unwrap();
        b.write_all(b"x").unwrap();
        let sources = [Source::readable(&a), Source::none(), Source::of(&b, true, true)];
        let ready = wait(sources, None).unwrap();
        assert_eq!(ready.map(|r| (r.readable, r.writable)), [(true, false), (false, false), (false, true)]);
    }

    #[test]
    fn a_deadline_ends_the_wait() {
        let (a, _b) = UnixStream::pair().unwrap();
        let start = Instant::now();
        let deadline = start + Duration::from_millis(20);
        assert_eq!(wait([Source::readable(&a)], Some(deadline)).unwrap(), [Ready::default()]);
        assert!(start.elapsed() >= Duration::from_millis(20));
    }

    #[test]
    fn a_closed_peer_is_readable() {
        let (a, b) = UnixStream::pair().unwrap();
        drop(b);
        assert!(wait([Source::of(&a, false, false)], None).unwrap()[0].readable);
    }
}
