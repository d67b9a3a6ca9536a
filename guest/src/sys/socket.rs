//! Sockets of the families that std has no type for, and waiting for any descriptor.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::check;

/// Connects a vsock socket to this port of the host. One that doesn't wait says `EINPROGRESS`.
pub(crate) fn connect_to_host(socket: BorrowedFd<'_>, port: u32) -> io::Result<()> {
    #[expect(unsafe_code, reason = "neither std nor rustix has vsock addresses")]
    // SAFETY: sockaddr_vm is made of integers, and zero is valid for each.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = u16::try_from(libc::AF_VSOCK).map_err(io::Error::other)?;
    address.svm_cid = libc::VMADDR_CID_HOST;
    address.svm_port = port;
    let length = u32::try_from(size_of::<libc::sockaddr_vm>()).map_err(io::Error::other)?;
    #[expect(unsafe_code, reason = "neither std nor rustix has vsock addresses")]
    // SAFETY: pointer and length are those of a live sockaddr_vm.
    check(unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), length) }).map(drop)
}
