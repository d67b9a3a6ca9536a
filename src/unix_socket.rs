//! Unix sockets at paths, for processes of the same user alone.
//!
//! A path may lie in a directory where others write, /tmp for example. So a socket has mode 0600
//! from the moment that it exists, each peer's user is looked up (SO_PEERCRED), and a path that is
//! a symbolic link is refused. Root may connect, and may serve: it could do as it likes anyway.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, fchmod, fstat, open};
use rustix::net::sockopt::socket_peercred;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};
use rustix::process::geteuid;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;
const FLAGS: SocketFlags = SocketFlags::CLOEXEC.union(SocketFlags::NONBLOCK);

/// Listens at `path`, without blocking.
pub fn listen_at(path: &Path) -> io::Result<UnixListener> {
    let address = SocketAddrUnix::new(path)?;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, FLAGS, None)?;
    // The file takes the mode that the socket has when it is bound, less the umask.
    fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    bind(&socket, &address)?;
    listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

/// The next connection, if there is one. One of another user is closed, and is an error.
pub fn accept(listener: &UnixListener) -> io::Result<UnixStream> {
    let stream = listener.accept()?.0;
    stream.set_nonblocking(true)?;
    check_peer(&stream)?;
    Ok(stream)
}

/// Connects to the socket at `path`, without waiting: one whose queue is full refuses.
pub fn connect_to(path: &Path) -> io::Result<UnixStream> {
    let file = open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    if FileType::from_raw_mode(fstat(&file)?.st_mode) != FileType::Socket {
        return Err(rustix::io::Errno::NOTSOCK.into());
    }
    // What is connected to is what was looked at, whatever is at the path by now.
    let address = SocketAddrUnix::new(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, FLAGS, None)?;
    connect(&socket, &address)?;
    let stream = UnixStream::from(socket);
    check_peer(&stream)?;
    Ok(stream)
}

fn check_peer(stream: &impl AsFd) -> io::Result<()> {
    let peer = socket_peercred(stream)?.uid;
    if peer.is_root() || peer == geteuid() {
        return Ok(());
    }
    let text = format!("the process at the other end belongs to user {}", peer.as_raw());
    Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_socket_is_for_its_user_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = listen_at(&path).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let _stream = connect_to(&path).unwrap();
        accept(&listener).unwrap();
        assert_eq!(accept(&listener).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn links_and_other_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let [path, link, file] = ["socket", "link", "file"].map(|name| dir.path().join(name));
        let _listener = listen_at(&path).unwrap();
        symlink(&path, &link).unwrap();
        std::fs::write(&file, "").unwrap();
        for other in [&link, &file] {
            assert_eq!(connect_to(other).unwrap_err().raw_os_error(), Some(libc::ENOTSOCK), "{other:?}");
        }
        assert_eq!(listen_at(&link).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }
}
