//! Connections to the host: vsock in a machine, a Unix socket where the agent is tested without
//! one.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, sockopt};

use crate::sys;
use crate::watch::{Ready, Watch};

/// Where the host is.
#[derive(Clone, Debug)]
pub(crate) enum Host {
    /// This port of context 2.
    Vsock(u32),
    /// Whoever listens at this socket.
    Unix(PathBuf),
}

/// A connection that may still be on its way.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: OwnedFd,
    connected: bool,
}

impl Host {
    /// Begins to connect.
    pub(crate) fn dial(&self) -> io::Result<Connection> {
        let family = match self {
            Self::Vsock(_) => AddressFamily::VSOCK,
            Self::Unix(_) => AddressFamily::UNIX,
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = net::socket_with(family, SocketType::STREAM, flags, None)?;
        let result = match self {
            Self::Vsock(port) => sys::connect_to_host(socket.as_fd(), *port),
            Self::Unix(path) => Ok(net::connect(&socket, &SocketAddrUnix::new(path)?)?),
        };
        match result {
            Ok(()) => Ok(Connection { socket, connected: true }),
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {
                Ok(Connection { socket, connected: false })
            }
            Err(error) => Err(error),
        }
    }
}

impl Connection {
    pub(crate) fn watch<'a>(&'a self, watch: &mut Watch<'a>, interest: PollFlags) {
        watch.add(self, if self.connected { interest } else { PollFlags::OUT });
    }

    /// Whether it is there by now. An error ends it.
    pub(crate) fn is_connected(&mut self, ready: &Ready) -> io::Result<bool> {
        if !self.connected && !ready.of(&*self).is_empty() {
            sockopt::socket_error(&self.socket)??;
            self.connected = true;
        }
        Ok(self.connected)
    }

    /// Whether the host still receives: it may have ended both directions, or only the one to here.
    pub(crate) fn host_listens(&self) -> bool {
        !matches!(
            net::send(&self.socket, &[], SendFlags::NOSIGNAL),
            Err(Errno::PIPE | Errno::NOTCONN | Errno::CONNRESET)
        )
    }

    /// What has been written and hasn't reached the host's side yet. None where the kernel doesn't
    /// count it.
    pub(crate) fn unsent_bytes(&self) -> usize {
        sys::unsent_bytes(self.socket.as_fd())
    }

    /// Tells the host that nothing more comes.
    pub(crate) fn end_sending(&self) {
        // One that is broken needs no end.
        let _ = net::shutdown(&self.socket, net::Shutdown::Write);
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
