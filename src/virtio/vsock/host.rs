//! The host's ends: Unix sockets at a path of the user's, and at that path with `_PORT` behind it
//! for services.
//!
//! A socket that was left behind is replaced, and nothing else that is at the path; one that was
//! made is removed, and nothing else that has come to its place. Two VMs that start at one
//! abandoned path at the same moment may still take it from each other.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use crate::unix_socket;

/// The listening socket of a device that is still to be made.
pub struct Listener {
    socket: UnixListener,
    pub(super) place: Place,
}

/// A socket that was made at a path.
#[derive(Clone, Debug)]
pub struct Place {
    pub(super) path: PathBuf,
    /// Device and inode.
    id: (u64, u64),
}

impl Listener {
    /// Listens at `path`, without blocking.
    pub(super) fn new(path: &Path) -> io::Result<Self> {
        let socket = match unix_socket::listen_at(path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_abandoned(path) => {
                std::fs::remove_file(path)?;
                unix_socket::listen_at(path)
            }
            done => done,
        }?;
        Ok(Self { socket, place: Place { path: path.to_owned(), id: id(path)? } })
    }

    /// Where it is, to be cleaned up.
    pub fn place(&self) -> &Place {
        &self.place
    }

    pub(super) fn accept(&self) -> io::Result<UnixStream> {
        unix_socket::accept(&self.socket)
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl Place {
    /// Removes the socket, if it is still there.
    pub fn clean_up(&self) {
        if id(&self.path).is_ok_and(|id| id == self.id)
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            log::debug!("{}: {error}", self.path.display());
        }
    }
}

fn id(path: &Path) -> io::Result<(u64, u64)> {
    let found = path.symlink_metadata()?;
    Ok((found.dev(), found.ino()))
}

/// Whether a socket is at `path` that nobody listens to. (A file of another kind refuses
/// connections as well.)
fn is_abandoned(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|found| found.file_type().is_socket())
        && unix_socket::connect_to(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

/// Connects to the service behind a port, without waiting: one whose queue is full refuses.
pub(super) fn connect(path: &Path, port: u32) -> io::Result<UnixStream> {
    unix_socket::connect_to(&service(path, port))
}

/// Where a service listens.
pub(super) fn service(path: &Path, port: u32) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(format!("_{port}"));
    name.into()
}
