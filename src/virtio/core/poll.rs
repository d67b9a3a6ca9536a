//! Waiting for several descriptors at once, with one system call and no state in the kernel.

use std::os::fd::AsRawFd;

/// What can be waited for: `None` stands for a source that is not of interest now.
pub type Source<'a> = Option<&'a dyn AsRawFd>;

/// Blocks until at least one source is readable, closed or broken, and says which are.
///
/// With nothing but `None` it would block for ever: there is always the stop signal.
#[expect(unsafe_code, reason = "poll(2) has no wrapper among our crates")]
pub fn wait<const N: usize>(sources: [Source<'_>; N]) -> [bool; N] {
    // poll(2) skips negative descriptors.
    let mut fds = sources.map(|source| libc::pollfd {
        fd: source.map_or(-1, AsRawFd::as_raw_fd),
        events: libc::POLLIN,
        revents: 0,
    });
    loop {
        // SAFETY: `fds` is an array of N initialised pollfd that outlives the call.
        let n = unsafe { libc::poll(fds.as_mut_ptr(), N as libc::nfds_t, -1) };
        if n >= 0 {
            return fds.map(|fd| fd.revents != 0);
        }
        let error = std::io::Error::last_os_error();
        // EFAULT and EINVAL can't be, and a handful of descriptors needs no memory: only EINTR is left.
        assert!(error.kind() == std::io::ErrorKind::Interrupted, "poll: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm_sys_util::eventfd::EventFd;

    #[test]
    fn only_the_readable_source_is_reported() {
        let quiet = EventFd::new(0).unwrap();
        let rung = EventFd::new(0).unwrap();
        rung.write(1).unwrap();
        assert_eq!(wait([Some(&quiet), None, Some(&rung)]), [false, false, true]);
    }
}
