//! Descriptors by their numbers: what a child closes, and what takes the place of a standard
//! stream.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};

/// Closes every descriptor that isn't in `keep`. For a child that [`fork`](super::process::fork)
/// has made, and that never goes back to what its parent did.
pub fn keep_only(keep: impl IntoIterator<Item = RawFd>) {
    let mut keep: Vec<RawFd> = keep.into_iter().collect();
    keep.sort_unstable();
    let mut first = 0;
    for fd in keep.into_iter().chain([RawFd::MAX]) {
        if fd > first {
            #[expect(unsafe_code, reason = "std has no close_range")]
            // SAFETY: what is closed here belongs to values of the parent's that the child never
            // uses or drops again: they live in frames to which it doesn't return.
            let ret = unsafe { libc::close_range(first.unsigned_abs(), (fd - 1).unsigned_abs(), 0) };
            if ret != 0 {
                log::debug!("close_range: {}", io::Error::last_os_error());
            }
        }
        first = first.max(fd.saturating_add(1));
    }
}

/// Closes what the program that started this one has left open for it, the standard streams
/// excepted: those descriptors alone aren't close-on-exec.
pub fn close_inherited() {
    let Ok(directory) = std::fs::read_dir("/proc/self/fd") else { return };
    let numbers = directory.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    for fd in numbers.filter(|fd| *fd > libc::STDERR_FILENO).collect::<Vec<RawFd>>() {
        #[expect(unsafe_code, reason = "descriptors without an owner")]
        // SAFETY: F_GETFD takes no pointer. All descriptors that values of this process own are
        // close-on-exec, so nobody uses the ones that are closed here. One that is closed already
        // is refused.
        unsafe {
            let flags = libc::fcntl(fd, libc::F_GETFD);
            if flags >= 0 && flags & libc::FD_CLOEXEC == 0 {
                libc::close(fd);
            }
        }
    }
}

/// Makes the number `fd`, which is a standard stream's or a sink's, a copy of `other`.
pub fn replace(fd: RawFd, other: &impl AsFd) {
    #[expect(unsafe_code, reason = "a standard stream is replaced by its number")]
    // SAFETY: dup2 closes `fd` and makes it a copy of `other`: the number stays open all the time,
    // and std's handles of the standard streams go by it.
    let ret = unsafe { libc::dup2(other.as_fd().as_raw_fd(), fd) };
    if ret < 0 {
        log::debug!("dup2: {}", io::Error::last_os_error());
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::super::process::{exit_now, fork};
    use super::super::testing::is_alone;
    use super::*;

    #[test]
    fn what_is_inherited_is_closed_and_nothing_else() {
        let test = "sys::descriptors::tests::what_is_inherited_is_closed_and_nothing_else";
        if !is_alone("BOTHY_TEST_CLOSES_INHERITED", test, "exec 7</dev/null 9</dev/null;") {
            return;
        }
        let own = File::open("/dev/null").unwrap();
        let is_open = |fd: RawFd| std::fs::read_link(format!("/proc/self/fd/{fd}")).is_ok();
        assert!(is_open(7) && is_open(9));
        let Some(child) = fork().unwrap() else {
            close_inherited();
            let right = !is_open(7) && !is_open(9) && is_open(own.as_raw_fd()) && (0..3).all(is_open);
            exit_now(if right { 0 } else { 1 })
        };
        assert_eq!(child.wait().unwrap().exit_status(), Some(0));
    }

    #[test]
    fn a_child_keeps_what_it_is_told_to_and_nothing_else() {
        let test = "sys::descriptors::tests::a_child_keeps_what_it_is_told_to_and_nothing_else";
        if !is_alone("BOTHY_TEST_KEEPS_DESCRIPTORS", test, "") {
            return;
        }
        let files: Vec<File> = (0..5).map(|_| File::open("/dev/null").unwrap()).collect();
        let kept = [files[1].as_raw_fd(), files[3].as_raw_fd()];
        let Some(child) = fork().unwrap() else {
            keep_only(kept);
            let is_open = |fd: RawFd| std::fs::read_link(format!("/proc/self/fd/{fd}")).is_ok();
            let right = (0..100).all(|fd| is_open(fd) == kept.contains(&fd));
            exit_now(if right { 0 } else { 1 })
        };
        assert_eq!(child.wait().unwrap().exit_status(), Some(0));
    }
}
