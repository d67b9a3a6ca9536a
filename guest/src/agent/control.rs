//! The control connection: requests in, reports out, and dialled again whenever it breaks.

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use bothy_guest::protocol::{self, Hello, Inbox, MAX_REQUEST, Opening, Report, Request, VERSION};
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};

use super::dial::{Connection, Host};
use crate::say;
use crate::watch::{Ready, Watch};

/// Between two attempts: twice as long each time, from the first to the last of these.
const PAUSES: [Duration; 2] = [Duration::from_millis(1), Duration::from_millis(200)];
/// A connection that ends so soon, and on which the host has said nothing, was refused: the host
/// may not have noticed yet that the one before is gone.
const REFUSED_WITHIN: Duration = Duration::from_secs(3);
const PIECE_BYTES: usize = 64 << 10;

/// The connection, or the lack of it. What is to be reported waits for the next one.
pub(crate) struct Control {
    host: Host,
    link: Link,
    reports: VecDeque<Vec<u8>>,
}

enum Link {
    Down { again: Instant, pause: Duration },
    Up(Up),
}

struct Up {
    connection: Connection,
    inbox: Inbox,
    /// The hello until it is written, then the first of the reports.
    message: Option<Vec<u8>>,
    written: usize,
    /// When the hello was written, if it is.
    greeted: Option<Instant>,
    /// What was reported behind it, until it is known that somebody listens.
    unheard: Vec<Vec<u8>>,
    is_heard: bool,
    pause: Duration,
}

impl Control {
    /// Begins to connect.
    pub(crate) fn new(host: Host) -> Self {
        let link = Link::Down { again: Instant::now(), pause: PAUSES[0] };
        let mut control = Self { host, link, reports: VecDeque::new() };
        control.dial();
        control
    }

    /// Sends it, if need be on the next connection. A report of which only a part could be sent
    /// goes again, whole.
    pub(crate) fn report(&mut self, report: &Report) {
        match protocol::encode(report) {
            Ok(bytes) => self.reports.push_back(bytes),
            Err(error) => say!("a report can't be sent: {error}"),
        }
        self.flush();
    }

    pub(crate) fn watch<'a>(&'a self, watch: &mut Watch<'a>) {
        match &self.link {
            Link::Down { again, .. } => watch.until(*again),
            Link::Up(up) => {
                let mut interest = PollFlags::IN;
                if up.message.is_some() || !self.reports.is_empty() {
                    interest |= PollFlags::OUT;
                }
                up.connection.watch(watch, interest);
            }
        }
    }

    /// Does what is to be done, and returns the requests that have arrived.
    pub(crate) fn act(&mut self, ready: &Ready) -> Vec<Request> {
        if let Link::Down { again, .. } = self.link
            && Instant::now() >= again
        {
            self.dial();
        }
        let mut requests = Vec::new();
        if let Link::Up(up) = &mut self.link
            && let Err(error) = up.receive(ready, &mut requests)
        {
            self.broke(&error);
        }
        self.flush();
        requests
    }

    fn dial(&mut self) {
        let pause = match &self.link {
            Link::Down { pause, .. } => *pause,
            Link::Up(up) => up.pause,
        };
        match (self.host.dial(), hello()) {
            (Ok(connection), Ok(hello)) => {
                self.link = Link::Up(Up::new(connection, hello, pause));
                self.flush();
            }
            _ => self.down(pause),
        }
    }

    fn down(&mut self, pause: Duration) {
        self.link = Link::Down { again: Instant::now() + pause, pause: (pause * 2).min(PAUSES[1]) };
    }

    fn broke(&mut self, error: &io::Error) {
        let Link::Up(up) = &mut self.link else { return };
        if error.kind() == io::ErrorKind::InvalidData {
            say!("the host sends what is no request: {error}");
        }
        // The hello is made anew for each connection.
        if let Some(greeted) = up.greeted {
            let unheard =
                std::mem::take(&mut up.unheard).into_iter().filter(|_| greeted.elapsed() < REFUSED_WITHIN);
            let again: Vec<_> = unheard.chain(up.message.take()).collect();
            again.into_iter().rev().for_each(|report| self.reports.push_front(report));
        }
        let pause = up.pause;
        self.down(pause);
    }

    fn flush(&mut self) {
        let Link::Up(up) = &mut self.link else { return };
        if let Err(error) = up.send(&mut self.reports) {
            self.broke(&error);
        }
    }
}

impl Up {
    fn new(connection: Connection, hello: Vec<u8>, pause: Duration) -> Self {
        Self {
            connection,
            inbox: Inbox::new(MAX_REQUEST),
            message: Some(hello),
            written: 0,
            greeted: None,
            unheard: Vec::new(),
            is_heard: false,
            pause,
        }
    }

    fn receive(&mut self, ready: &Ready, requests: &mut Vec<Request>) -> io::Result<()> {
        if !self.connection.is_connected(ready)? || ready.of(&self.connection).is_empty() {
            return Ok(());
        }
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            match rustix::io::read(&self.connection, &mut piece) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(length) => {
                    // Somebody listens: this is a connection that works.
                    (self.is_heard, self.unheard, self.pause) = (true, Vec::new(), PAUSES[0]);
                    self.inbox.push(piece.get(..length).unwrap_or_default());
                }
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            while let Some(request) = self.inbox.take()? {
                requests.push(request);
            }
        }
    }

    fn send(&mut self, reports: &mut VecDeque<Vec<u8>>) -> io::Result<()> {
        loop {
            if self.message.is_none() {
                (self.message, self.written) = (reports.pop_front(), 0);
            }
            let Some(message) = &self.message else { return Ok(()) };
            match rustix::io::write(&self.connection, message.get(self.written..).unwrap_or_default()) {
                Ok(length) => self.written += length,
                // NOTCONN: it is still on its way.
                Err(Errno::AGAIN | Errno::NOTCONN) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            if self.written >= message.len() {
                let message = self.message.take();
                match self.greeted {
                    None => self.greeted = Some(Instant::now()),
                    Some(greeted) if !self.is_heard && greeted.elapsed() < REFUSED_WITHIN => {
                        self.unheard.extend(message);
                    }
                    Some(_) => self.unheard = Vec::new(),
                }
            }
        }
    }
}

fn hello() -> io::Result<Vec<u8>> {
    let up = clock_gettime(ClockId::Boottime);
    let uptime_us =
        u64::try_from(up.tv_sec).unwrap_or(0) * 1_000_000 + u64::try_from(up.tv_nsec).unwrap_or(0) / 1000;
    protocol::encode(&Opening::Control(Hello { version: VERSION, uptime_us }))
}
