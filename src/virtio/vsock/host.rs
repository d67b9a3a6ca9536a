//! The host's ends: Unix sockets at a path of the user's, and at that path with `_PORT` behind it for services.

use std::ffi::OsString;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect as connect_to, socket_with,
};

/// Listens at `path`. A socket that somebody left there and nobody listens to is replaced.
pub(super) fn listen(path: &Path) -> io::Result<UnixListener> {
    match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            remove_abandoned(path);
            UnixListener::bind(path)
        }
        done => done,
    }
}

/// Removes a socket that nobody listens to, and nothing else: a file of another kind refuses connections as well.
pub(super) fn remove_abandoned(path: &Path) {
    let is_socket = path.symlink_metadata().is_ok_and(|found| found.file_type().is_socket());
    if is_socket
        && UnixStream::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
    {
        remove(path);
    }
}

/// Connects to the service behind a port, without waiting: one whose queue is full refuses.
pub(super) fn connect(path: &Path, port: u32) -> io::Result<UnixStream> {
    let address = SocketAddrUnix::new(service(path, port))?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect_to(&socket, &address)?;
    Ok(socket.into())
}

/// Where a service listens.
pub(super) fn service(path: &Path, port: u32) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(format!("_{port}"));
    name.into()
}

/// Removes the socket.
pub(super) fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_file(path) {
        log::debug!("{}: {error}", path.display());
    }
}
