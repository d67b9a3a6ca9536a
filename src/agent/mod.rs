//! The host's side of the guest's agent: a socket that the agent reaches by vsock, its control
//! connection, and the streams that it opens. The socket is a Unix socket beside bothy's own vsock
//! device, or a vsock socket where another hypervisor has the guest. The messages are in
//! [`bothy_guest::protocol`].
//!
//! [`Agent`] is one descriptor to wait for and one function to call when it is readable; it never
//! blocks. It knows nothing of images, of virtual machines, or of what a command is for: whoever
//! has it decides what is sent and what answers mean.
//!
//! **The agent is not trusted**, nor is whoever else in the guest opens a connection. A message has
//! a length limit; a connection that doesn't say what it is for within [`OPENING_TIME`] is closed,
//! and so is the oldest when there are more than [`MAX_UNKNOWN`] of them; a stream is only handed
//! out for a token that was made here and hasn't been used; a second control connection is refused
//! while there is one. What is to be sent is bounded by what the caller sends; so are what is
//! logged and how many connections are accepted in one turn. How long to wait for the agent is the
//! caller's business.
//!
//! Owns the listening socket, an epoll set, and the connections until they are handed out.

mod connection;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bothy_guest::protocol::{self, Hello, Opening, Report, Request, Token};
use libc::VMADDR_PORT_ANY;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vsock::{VMADDR_CID_ANY, VsockAddr, VsockListener};

use connection::{Control, Unknown};

use crate::bounded_log::BoundedLog;
use crate::{random, unix_socket};

/// How long a connection may take to say what it is for.
const OPENING_TIME: Duration = Duration::from_secs(10);
/// The most connections that haven't said what they are for.
const MAX_UNKNOWN: usize = 32;
/// Connections that are accepted in one turn, before whoever serves this does other things.
const MAX_ACCEPTED: usize = 32;
/// The listening socket, in the epoll set.
const LISTENER: u64 = 0;
/// The control connection, in the epoll set. Unknown ones have larger numbers.
const CONTROL: u64 = 1;

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// The agent is there, or there again.
    Hello(Hello),
    /// It said this.
    Report(Report),
    /// It opened a stream that was requested.
    Stream(Token, UnixStream),
    /// The control connection has ended; the agent may come again.
    Gone,
    /// What came can't be from our agent.
    Broken(io::Error),
}

/// What the agent connects to.
enum Listener {
    /// At this path.
    Unix(UnixListener, PathBuf),
    /// For this guest alone.
    Vsock(VsockListener, u32),
}

impl Listener {
    /// A connection, if there is one. It doesn't block.
    fn accept(&self) -> io::Result<UnixStream> {
        match self {
            Self::Unix(listener, _) => unix_socket::accept(listener),
            Self::Vsock(listener, guest) => {
                let (socket, from) = listener.accept()?;
                if from.cid() != *guest {
                    return Err(io::Error::other(format!("guest {} is not ours", from.cid())));
                }
                // What is done with it is the same for all sockets that are streams.
                let socket = UnixStream::from(OwnedFd::from(socket));
                socket.set_nonblocking(true)?;
                Ok(socket)
            }
        }
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Self::Unix(listener, _) => listener.as_raw_fd(),
            Self::Vsock(listener, _) => listener.as_raw_fd(),
        }
    }
}

/// Where the agent connects to.
pub struct Agent {
    listener: Listener,
    epoll: Epoll,
    control: Option<Control>,
    unknown: BTreeMap<u64, Unknown>,
    next: u64,
    tokens: Vec<Token>,
    /// For what anything in the guest can cause.
    log: BoundedLog,
}

impl Agent {
    /// Listens beside the vsock device's socket at `vsock`, where the device looks for
    /// [`protocol::PORT`].
    pub fn listen(vsock: &Path) -> io::Result<Self> {
        let mut name = vsock.as_os_str().to_owned();
        name.push(format!("_{}", protocol::PORT));
        let path = PathBuf::from(name);
        Self::new(Listener::Unix(unix_socket::listen_at(&path)?, path))
    }

    /// Listens for a guest whose vsock device is the kernel's (vhost). The number is the port.
    pub fn listen_to_guest(cid: u32) -> io::Result<(Self, u32)> {
        let listener = VsockListener::bind(&VsockAddr::new(VMADDR_CID_ANY, VMADDR_PORT_ANY))?;
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        Ok((Self::new(Listener::Vsock(listener, cid))?, port))
    }

    fn new(listener: Listener) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        watch(&epoll, &listener, LISTENER, EventSet::IN)?;
        Ok(Self {
            listener,
            epoll,
            control: None,
            unknown: BTreeMap::new(),
            next: CONTROL + 1,
            tokens: Vec::new(),
            log: BoundedLog::fixed("connections of the guest"),
        })
    }

    /// A token for a stream that the agent will be asked for.
    pub fn token(&mut self) -> io::Result<Token> {
        let token = Token(random::bytes()?);
        self.tokens.push(token);
        Ok(token)
    }

    /// Sends a request, or the first part of it; the rest follows in [`Agent::serve`]. Without a
    /// control connection it is an error.
    pub fn send(&mut self, request: &Request) -> io::Result<()> {
        let control = self.control.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        control.queue(&protocol::encode(request)?);
        self.flush()
    }

    /// Does what there is to do without waiting. Called when the descriptor is readable, and at
    /// [`Agent::deadline`].
    pub fn serve(&mut self) -> io::Result<Vec<Event>> {
        let mut ready = [EpollEvent::default(); 16];
        let count = match self.epoll.wait(0, &mut ready) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            done => done?,
        };
        let mut events = Vec::new();
        for event in &ready[..count] {
            match event.data() {
                LISTENER => self.accept()?,
                CONTROL => self.hear(&mut events)?,
                number => self.open(number, &mut events)?,
            }
        }
        let now = Instant::now();
        self.unknown.retain(|_, connection| connection.deadline > now);
        Ok(events)
    }

    /// When to call [`Agent::serve`] although nothing is readable.
    pub fn deadline(&self) -> Option<Instant> {
        self.unknown.values().map(|connection| connection.deadline).min()
    }

    fn accept(&mut self) -> io::Result<()> {
        for _ in 0..MAX_ACCEPTED {
            let socket = match self.listener.accept() {
                Ok(socket) => socket,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                // The peer has given up already, or we have no descriptor left for it.
                Err(error) => {
                    log::debug!("a connection of the guest's: {error}");
                    return Ok(());
                }
            };
            if self.unknown.len() == MAX_UNKNOWN {
                self.unknown.pop_first();
            }
            watch(&self.epoll, &socket, self.next, EventSet::IN)?;
            self.unknown.insert(self.next, Unknown::new(socket, Instant::now() + OPENING_TIME));
            self.next += 1;
        }
        Ok(())
    }

    /// Reads what a connection is for.
    fn open(&mut self, number: u64, events: &mut Vec<Event>) -> io::Result<()> {
        let Some(mut connection) = self.unknown.remove(&number) else { return Ok(()) };
        let opening = match connection.read() {
            Ok(Some(opening)) => opening,
            Ok(None) => {
                self.unknown.insert(number, connection);
                return Ok(());
            }
            Err(error) => {
                log::debug!("a connection of the guest's: {error}");
                return Ok(());
            }
        };
        let socket = connection.into_socket();
        self.epoll.ctl(ControlOperation::Delete, socket.as_raw_fd(), EpollEvent::default())?;
        match opening {
            Opening::Control(_) if self.control.is_some() => {
                self.log.warn("one claims to be the agent's, which is there already");
            }
            Opening::Control(hello) => {
                watch(&self.epoll, &socket, CONTROL, EventSet::IN)?;
                self.control = Some(Control::new(socket));
                events.push(Event::Hello(hello));
                self.hear(events)?;
            }
            Opening::Stream(token) => match self.tokens.iter().position(|known| *known == token) {
                Some(position) => {
                    self.tokens.swap_remove(position);
                    socket.set_nonblocking(false)?;
                    events.push(Event::Stream(token, socket));
                }
                None => {
                    self.log.warn("one is for a stream that nobody has asked for");
                }
            },
        }
        Ok(())
    }

    fn hear(&mut self, events: &mut Vec<Event>) -> io::Result<()> {
        let Some(control) = &mut self.control else { return Ok(()) };
        let heard = control.read(|report| events.push(Event::Report(report)));
        match heard {
            Ok(true) => self.flush(),
            Ok(false) => {
                self.control = None;
                events.push(Event::Gone);
                Ok(())
            }
            Err(error) => {
                self.control = None;
                events.push(Event::Broken(error));
                Ok(())
            }
        }
    }

    /// Sends what the connection takes. An agent that has gone is noticed by reading.
    fn flush(&mut self) -> io::Result<()> {
        let Some(control) = &mut self.control else { return Ok(()) };
        let wanted = if control.flush() { EventSet::IN } else { EventSet::IN | EventSet::OUT };
        let event = EpollEvent::new(wanted, CONTROL);
        self.epoll.ctl(ControlOperation::Modify, control.as_raw_fd(), event)
    }
}

impl AsRawFd for Agent {
    fn as_raw_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Listener::Unix(_, path) = &self.listener
            && let Err(error) = std::fs::remove_file(path)
        {
            log::debug!("{}: {error}", path.display());
        }
    }
}

fn watch(epoll: &Epoll, fd: &impl AsRawFd, number: u64, events: EventSet) -> io::Result<()> {
    epoll.ctl(ControlOperation::Add, fd.as_raw_fd(), EpollEvent::new(events, number))
}
