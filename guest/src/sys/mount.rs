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
    // SAFETY: the target is a NUL-terminated string; a remount without data may have null for the
    // other three.
    check(unsafe {
        libc::mount(std::ptr::null(), target.as_ptr(), std::ptr::null(), flags, std::ptr::null())
    })
    .map(drop)
}

/// Makes a mount read-only that is attached nowhere yet, with all that is mounted in it.
pub(crate) fn make_read_only(mount: BorrowedFd<'_>) -> io::Result<()> {
    let attributes =
        libc::mount_attr { attr_set: libc::MOUNT_ATTR_RDONLY, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let flags = libc::AT_EMPTY_PATH | libc::AT_RECURSIVE;
    #[expect(unsafe_code, reason = "mount_setattr has no wrapper at all")]
    // SAFETY: the path is an empty string with its NUL; the attributes are live and as long as
    // said.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Grows the mounted ext4 that `inside` lies in to this many blocks. More blocks than the device
/// has are an error, as many as there are no change.
pub(crate) fn grow_ext4(inside: BorrowedFd<'_>, blocks: u64) -> io::Result<()> {
    #[expect(unsafe_code, reason = "EXT4_IOC_RESIZE_FS has no wrapper at all")]
    // SAFETY: the request reads one 64-bit number, which blocks is.
    check(unsafe { libc::ioctl(inside.as_raw_fd(), EXT4_IOC_RESIZE_FS, &raw const blocks) }).map(drop)
}

/// `_IOW('f', 16, __u64)`.
const EXT4_IOC_RESIZE_FS: libc::c_ulong = 0x4008_6610;
