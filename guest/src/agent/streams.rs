//! The standard streams of commands: each a connection of its own to the host, relayed to and from
//! a pipe or a terminal.
//!
//! A stream that has said all waits, for a bounded time, until the host closes its end: what the
//! kernel hasn't sent when the machine powers off is lost.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use bothy_guest::protocol::{self, Opening, ProcessId, Token};
use rustix::event::PollFlags;
use rustix::io::ioctl_fionbio;

use super::dial::{Connection, Host};
use super::relay::{Progress, Relay};
use crate::watch::{Ready, Watch};

/// How long a host may take to read the rest of a stream whose command is gone. A reader that has
/// stalled keeps nothing but its stream.
const LINGER: Duration = Duration::from_secs(600);

/// What a terminal makes the end of input of (VEOF).
const END_OF_INPUT: u8 = 4;

/// One stream.
pub(crate) struct Stream {
    /// The command's whose terminal it is.
    terminal_of: Option<ProcessId>,
    connection: Connection,
    to_host: Relay,
    /// What the command writes, while it is open.
    source: Option<OwnedFd>,
    /// What the host writes, while both sides are open.
    from_host: Option<FromHost>,
    /// Whether the host's end of sending is known, so that it needs no more looking for.
    host_is_done: bool,
    until: Option<Instant>,
    over: bool,
}

struct FromHost {
    relay: Relay,
    sink: OwnedFd,
    is_terminal: bool,
}

impl Stream {
    /// From the pipe to the host.
    pub(crate) fn output(host: &Host, token: Token, pipe: OwnedFd) -> io::Result<Self> {
        Self::open(host, token, Some(pipe), None)
    }

    /// From the host to the pipe.
    pub(crate) fn input(host: &Host, token: Token, pipe: OwnedFd) -> io::Result<Self> {
        Self::open(host, token, None, Some((pipe, false)))
    }

    /// Both ways; from the host only if it sends anything.
    pub(crate) fn terminal(
        host: &Host,
        token: Token,
        master: OwnedFd,
        input: bool,
        id: ProcessId,
    ) -> io::Result<Self> {
        let sink = if input { Some((master.try_clone()?, true)) } else { None };
        Ok(Self { terminal_of: Some(id), ..Self::open(host, token, Some(master), sink)? })
    }

    /// The terminal of this command, if this is its stream and the command still has it.
    pub(crate) fn terminal_of(&self, id: ProcessId) -> Option<&OwnedFd> {
        self.source.as_ref().filter(|_| self.terminal_of == Some(id))
    }

    fn open(
        host: &Host,
        token: Token,
        source: Option<OwnedFd>,
        sink: Option<(OwnedFd, bool)>,
    ) -> io::Result<Self> {
        for end in source.iter().chain(sink.iter().map(|(sink, _)| sink)) {
            ioctl_fionbio(end, true)?;
        }
        Ok(Self {
            terminal_of: None,
            connection: host.dial()?,
            to_host: Relay::new(protocol::encode(&Opening::Stream(token))?),
            source,
            from_host: sink.map(|(sink, is_terminal)| FromHost {
                relay: Relay::new(Vec::new()),
                sink,
                is_terminal,
            }),
            host_is_done: false,
            until: None,
            over: false,
        })
    }

    /// Whether nothing is left to do. Dropping it closes the connection.
    pub(crate) fn is_over(&self) -> bool {
        self.over
    }

    /// Whether the host's side has all that there is to say. It may still keep its end open, for
    /// what it never sends.
    pub(crate) fn is_delivered(&self) -> bool {
        self.until.is_some() && self.connection.unsent_bytes() == 0
    }

    pub(crate) fn watch<'a>(&'a self, watch: &mut Watch<'a>) {
        let mut interest = PollFlags::empty();
        if self.to_host.wants_sink() {
            interest |= PollFlags::OUT;
        }
        match &self.from_host {
            Some(from_host) if from_host.relay.wants_source() => interest |= PollFlags::IN,
            Some(_) => {}
            None if !self.host_is_done => interest |= PollFlags::RDHUP,
            None => {}
        }
        // A hang-up that can't be acted on until the sink takes what was before it would wake for
        // ever.
        if !interest.is_empty() || self.from_host.is_none() {
            self.connection.watch(watch, interest);
        }
        if let Some(source) = &self.source
            && self.to_host.wants_source()
        {
            watch.add(source, PollFlags::IN);
        }
        if let Some(from_host) = &self.from_host
            // A pipe wakes when its reader is gone; a terminal that hangs up tells its source.
            && (from_host.relay.wants_sink() || !from_host.is_terminal)
        {
            let wants = from_host.relay.wants_sink();
            watch.add(&from_host.sink, if wants { PollFlags::OUT } else { PollFlags::empty() });
        }
        if let Some(until) = self.until {
            watch.until(until);
        }
    }

    pub(crate) fn act(&mut self, ready: &Ready) {
        match self.connection.is_connected(ready) {
            Ok(true) => {}
            Ok(false) => return,
            Err(_) => return self.end(),
        }
        let socket = ready.of(&self.connection);
        // Where the host sends, what it sent before it left comes first.
        if socket.intersects(PollFlags::ERR | PollFlags::HUP) && self.from_host.is_none() {
            return self.end();
        }
        if !self.host_is_done && self.from_host.is_none() && socket.contains(PollFlags::RDHUP) {
            self.host_has_ended();
        }
        self.relay_to_host(ready);
        self.relay_from_host(ready);
        if self.until.is_some_and(|until| Instant::now() >= until) {
            self.end();
        }
    }

    fn relay_to_host(&mut self, ready: &Ready) {
        if self.over || self.until.is_some() {
            return;
        }
        let Some(source) = &self.source else {
            // Only the opening goes this way.
            if self.to_host.write(&self.connection).is_err() {
                self.end();
            }
            return;
        };
        let is_due = if self.to_host.wants_sink() {
            !ready.of(&self.connection).is_empty()
        } else {
            !ready.of(source).is_empty()
        };
        if !is_due {
            return;
        }
        match self.to_host.pump(source, &self.connection) {
            Progress::Going => {}
            Progress::Refused => self.end(),
            Progress::Done => {
                self.source = None;
                self.from_host = None;
                self.connection.end_sending();
                self.until = Some(Instant::now() + LINGER);
            }
        }
    }

    fn relay_from_host(&mut self, ready: &Ready) {
        let Some(from_host) = &mut self.from_host else { return };
        let sink = ready.of(&from_host.sink);
        if sink.contains(PollFlags::ERR) {
            return self.end();
        }
        let waits_for = if from_host.relay.wants_sink() { sink } else { ready.of(&self.connection) };
        if waits_for.is_empty() {
            return;
        }
        match from_host.relay.pump(&self.connection, &from_host.sink) {
            Progress::Going => {}
            Progress::Refused if from_host.is_terminal => self.from_host = None,
            Progress::Refused => self.end(),
            Progress::Done if !from_host.is_terminal => self.end(),
            Progress::Done => self.host_has_ended(),
        }
    }

    /// The host sends nothing more: it has gone, or only ended this direction.
    fn host_has_ended(&mut self) {
        self.host_is_done = true;
        if !self.connection.host_listens() {
            return self.end();
        }
        if let Some(from_host) = self.from_host.take() {
            // The terminal's program learns of it as from a key. If there is no room for it now,
            // nobody reads there.
            let _ = rustix::io::write(&from_host.sink, &[END_OF_INPUT]);
        }
    }

    /// Closes the command's side at once: who writes gets EPIPE, who reads the end.
    fn end(&mut self) {
        self.source = None;
        self.from_host = None;
        self.over = true;
    }
}
