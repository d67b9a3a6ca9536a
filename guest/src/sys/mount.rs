//! Mounts, and what only ext4 has a word for.

use std::ffi::{CStr, c_void};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::check;

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

/// Grows the mounted ext4 that `inside` lies in to this many blocks. More blocks than the device has are an error, as many as there
/// are no change.
pub(crate) fn grow_ext4(inside: BorrowedFd<'_>, blocks: u64) -> io::Result<()> {
    #[expect(unsafe_code, reason = "EXT4_IOC_RESIZE_FS has no wrapper at all")]
    // SAFETY: the request reads one 64-bit number, which blocks is.
    check(unsafe { libc::ioctl(inside.as_raw_fd(), EXT4_IOC_RESIZE_FS, &raw const blocks) }).map(drop)
}

/// `_IOW('f', 16, __u64)`.
const EXT4_IOC_RESIZE_FS: libc::c_ulong = 0x4008_6610;
