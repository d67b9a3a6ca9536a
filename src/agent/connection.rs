//! One connection: before it has said what it is for, and the control connection.

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use bothy_guest::protocol::{Inbox, MAX_REPORT, Opening, Report};

/// The longest opening, in bytes: both are a few numbers.
const MAX_OPENING: usize = 64;
/// The most that is read at once, in bytes.
const PIECE: usize = 16 << 10;

/// A connection that hasn't said what it is for.
pub(super) struct Unknown {
    socket: UnixStream,
    inbox: Inbox,
    /// When it is closed if it still hasn't.
    pub(super) deadline: Instant,
}

impl Unknown {
    pub(super) fn new(socket: UnixStream, deadline: Instant) -> Self {
        Self { socket, inbox: Inbox::new(MAX_OPENING), deadline }
    }

    /// What it is for, if all of that has arrived. An end before it is an error.
    pub(super) fn read(&mut self) -> io::Result<Option<Opening>> {
        let mut piece = [0; MAX_OPENING];
        loop {
            if let Some(opening) = self.inbox.take()? {
                return Ok(Some(opening));
            }
            // The bytes behind the opening belong to whoever gets the socket.
            let missing = self.inbox.missing()?.min(MAX_OPENING);
            match self.socket.read(&mut piece[..missing]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(len) => self.inbox.push(&piece[..len]),
                Err(error) if crate::poll::is_passing(&error) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    /// The connection, of which the opening has been read and nothing behind it.
    pub(super) fn into_socket(self) -> UnixStream {
        self.socket
    }
}

/// The control connection.
pub(super) struct Control {
    socket: UnixStream,
    inbox: Inbox,
    unsent: Vec<u8>,
}

impl Control {
    pub(super) fn new(socket: UnixStream) -> Self {
        Self { socket, inbox: Inbox::new(MAX_REPORT), unsent: Vec::new() }
    }

    /// Reads one piece of what there is, and tells of each message in it. False at the connection's
    /// end; what doesn't decode is an error.
    pub(super) fn read(&mut self, mut tell: impl FnMut(Report)) -> io::Result<bool> {
        let mut piece = [0; PIECE];
        let going = match self.socket.read(&mut piece) {
            Ok(len) => {
                self.inbox.push(&piece[..len]);
                len > 0
            }
            Err(error) if crate::poll::is_passing(&error) => true,
            Err(error) => {
                log::debug!("the agent's connection: {error}");
                false
            }
        };
        while let Some(report) = self.inbox.take()? {
            tell(report);
        }
        Ok(going)
    }

    pub(super) fn queue(&mut self, bytes: &[u8]) {
        self.unsent.extend_from_slice(bytes);
    }

    /// Sends what the socket takes; true if nothing is left. What fails is seen by reading.
    pub(super) fn flush(&mut self) -> bool {
        while !self.unsent.is_empty() {
            match self.socket.write(&self.unsent) {
                Ok(sent) => drop(self.unsent.drain(..sent)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                Err(error) => {
                    log::debug!("the agent's connection: {error}");
                    self.unsent.clear();
                }
            }
        }
        true
    }
}

impl AsRawFd for Control {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}
