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

/// The descriptors that this process has besides the standard streams and `own`.
pub fn open_besides(own: RawFd) -> Vec<RawFd> {
    // The directory's own descriptor is closed again, and another one may get its number later.
    let Ok(directory) = std::fs::read_dir("/proc/self/fd") else { return Vec::new() };
    let numbers = directory.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let found: Vec<RawFd> = numbers.filter(|fd| *fd > libc::STDERR_FILENO && *fd != own).collect();
    found.into_iter().filter(|fd| is_open(*fd)).collect()
}

fn is_open(fd: RawFd) -> bool {
    #[expect(unsafe_code, reason = "a number that may be no descriptor")]
    // SAFETY: F_GETFD takes no pointer, and changes nothing.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
    flags >= 0
}

/// Closes descriptors that no value of this process owns: its caller left them open for it.
pub fn close(descriptors: impl IntoIterator<Item = RawFd>) {
    for fd in descriptors {
        #[expect(unsafe_code, reason = "descriptors without an owner")]
        // SAFETY: the caller says that nobody in this process owns it.
        unsafe {
            libc::close(fd);
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
    use super::*;

    #[test]
    fn a_child_keeps_what_it_is_told_to_and_nothing_else() {
        const CHILD: &str = "BOTHY_TEST_KEEPS_DESCRIPTORS";
        if std::env::var_os(CHILD).is_none() {
            // By itself, in a process with one thread.
            let name = "sys::descriptors::tests::a_child_keeps_what_it_is_told_to_and_nothing_else";
            let status = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", name, "--test-threads=1"])
                .env(CHILD, "")
                .status()
                .unwrap();
            return assert!(status.success());
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
