//! The processes of all containers that the host has asked for: start, report, signal, reap.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};

use bothy_guest::protocol::{Command, ExitStatus, ProcessId, Report, Stdio, Token, WindowSize};
use rustix::event::PollFlags;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::termios::{Winsize, tcsetwinsize};

use super::dial::Host;
use super::refusal::{Failing, Refusal, shortened};
use super::setup::Container;
use super::start::{self, Child, Message, Place, Streams};
use super::streams::Stream;
use crate::watch::{Ready, Watch};
use crate::{say, sys};

/// All of them, and their streams.
pub(crate) struct Commands {
    host: Host,
    running: Vec<Running>,
    streams: Vec<Stream>,
    /// Containers whose first process has ended, and their namespaces with it.
    ended: BTreeSet<u32>,
}

struct Running {
    id: ProcessId,
    child: Child,
    is_first: bool,
    phase: Phase,
    /// Of a command with a terminal, until there is one.
    awaited: Option<Terminal>,
}

#[derive(Debug, PartialEq, Eq)]
enum Phase {
    /// It has not become its program yet.
    Starting,
    Started,
    /// It could not, which has been reported.
    Refused,
}

/// Where the bytes of a terminal go, and whether any come from there.
struct Terminal {
    stream: Token,
    input: bool,
}

impl Commands {
    pub(crate) fn new(host: Host) -> Self {
        Self { host, running: Vec::new(), streams: Vec::new(), ended: BTreeSet::new() }
    }

    /// Whether any command still runs.
    pub(crate) fn any(&self) -> bool {
        !self.running.is_empty()
    }

    /// Whether the host's side has everything that commands have said.
    pub(crate) fn are_delivered(&self) -> bool {
        self.streams.iter().all(Stream::is_delivered)
    }

    pub(crate) fn watch<'a>(&'a self, watch: &mut Watch<'a>) {
        for running in &self.running {
            if running.phase == Phase::Starting {
                watch.add(&running.child.messages, PollFlags::IN);
            }
        }
        self.streams.iter().for_each(|stream| stream.watch(watch));
    }

    /// Relays, and returns what is to be reported of commands that have started or haven't.
    pub(crate) fn act(&mut self, ready: &Ready) -> Vec<Report> {
        let mut reports = Vec::new();
        for running in &mut self.running {
            if running.phase == Phase::Starting && !ready.of(&running.child.messages).is_empty() {
                running.read(&self.host, &mut self.streams, &mut reports);
            }
        }
        self.streams.iter_mut().for_each(|stream| stream.act(ready));
        self.streams.retain(|stream| !stream.is_over());
        reports
    }

    /// Begins to start a command.
    pub(crate) fn run(
        &mut self,
        container: &Container,
        id: ProcessId,
        command: &Command,
    ) -> Result<(), Refusal> {
        // What has been refused is only still to be reaped.
        let mut running = self
            .running
            .iter()
            .filter(|running| running.phase != Phase::Refused && running.id.container == id.container);
        if running.clone().any(|running| running.id == id) {
            return Err(Refusal::other(format!("there is a process {id} already")));
        }
        let first = running.find(|running| running.is_first);
        let place = match first {
            Some(first) if first.phase == Phase::Started => Place::Beside(first.child.pidfd.as_fd()),
            Some(_) => return Err(Refusal::other("the container has not started yet")),
            None if self.ended.contains(&id.container) => {
                return Err(Refusal::other("the container has ended"));
            }
            None => Place::First,
        };
        let (streams, relays, awaited) = self.open(&command.stdio)?;
        let child = start::start(id, command, &streams, container, place)?;
        self.streams.extend(relays);
        let is_first = matches!(place, Place::First);
        self.running.push(Running { id, child, is_first, phase: Phase::Starting, awaited });
        Ok(())
    }

    fn open(&self, stdio: &Stdio) -> Result<(Streams, Vec<Stream>, Option<Terminal>), Refusal> {
        match *stdio {
            Stdio::Terminal { stream, input, size } => {
                Ok((Streams::Terminal(size), Vec::new(), Some(Terminal { stream, input })))
            }
            Stdio::Pipes { stdin, stdout, stderr } => {
                let pipe = || pipe_with(PipeFlags::CLOEXEC).failing("pipe");
                let mut relays = Vec::new();
                let stdin = match stdin {
                    None => None,
                    Some(token) => {
                        let (reader, writer) = pipe()?;
                        relays.push(Stream::input(&self.host, token, writer));
                        Some(reader)
                    }
                };
                let mut output = |token| -> Result<OwnedFd, Refusal> {
                    let (reader, writer) = pipe()?;
                    relays.push(Stream::output(&self.host, token, reader));
                    Ok(writer)
                };
                let (stdout, stderr) = (output(stdout)?, output(stderr)?);
                let relays =
                    relays.into_iter().collect::<Result<_, _>>().failing("cannot connect a stream")?;
                Ok((Streams::Pipes { stdin, stdout, stderr }, relays, None))
            }
        }
    }

    /// Sends a signal to a command that still runs.
    pub(crate) fn signal(&self, id: ProcessId, signal: i32) {
        if let Some(running) = self.running.iter().find(|running| running.id == id)
            && (1..=64).contains(&signal)
        {
            // It has not been reaped, so the number is still its own.
            let _ = sys::kill(running.child.pid, signal);
        }
    }

    /// Sends a signal to all of them.
    pub(crate) fn signal_all(&self, signal: i32) {
        self.running.iter().for_each(|running| self.signal(running.id, signal));
    }

    /// Asks all of them to end. The first one of a container is PID 1 of its namespace, to which
    /// SIGTERM means nothing unless it asks for it: it is killed if it doesn't.
    pub(crate) fn terminate(&self) {
        for running in &self.running {
            let status =
                fs::read_to_string(format!("/proc/{}/status", running.child.pid)).unwrap_or_default();
            let ignores =
                running.is_first && running.phase == Phase::Started && !handles(&status, libc::SIGTERM);
            self.signal(running.id, if ignores { libc::SIGKILL } else { libc::SIGTERM });
            // A stopped command acts on no signal but SIGKILL until it is continued.
            self.signal(running.id, libc::SIGCONT);
        }
    }

    /// Tells a command's terminal how large it is now.
    pub(crate) fn resize(&self, id: ProcessId, size: WindowSize) {
        if let Some(terminal) = self.streams.iter().find_map(|stream| stream.terminal_of(id)) {
            let size = Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
            // A terminal that nobody has open any more needs no size.
            let _ = tcsetwinsize(terminal, size);
        }
    }

    /// A process has ended. Returns what is to be reported if it was a command.
    pub(crate) fn ended(&mut self, pid: i32, status: ExitStatus) -> Vec<Report> {
        let mut reports = Vec::new();
        let Some(at) = self.running.iter().position(|running| running.child.pid == pid) else {
            return reports;
        };
        let mut running = self.running.swap_remove(at);
        // What it said before its end comes before it.
        if running.phase == Phase::Starting {
            running.read(&self.host, &mut self.streams, &mut reports);
        }
        if running.phase != Phase::Refused {
            if running.is_first {
                self.ended.insert(running.id.container);
            }
            reports.push(Report::Ended { id: running.id, status });
        }
        reports
    }
}

/// Whether a process, by its /proc/PID/status, handles the signal, or blocks it in order to take it
/// in another way. What can't be read does.
fn handles(status: &str, signal: i32) -> bool {
    let mask = |key| {
        let text = status.lines().find_map(|line: &str| line.strip_prefix(key))?;
        u64::from_str_radix(text.trim(), 16).ok()
    };
    let (Some(blocked), Some(caught)) = (mask("SigBlk:"), mask("SigCgt:")) else { return true };
    (blocked | caught) & (1 << (signal - 1)) != 0
}

impl Running {
    /// Reads all that the child has sent.
    fn read(&mut self, host: &Host, streams: &mut Vec<Stream>, reports: &mut Vec<Report>) {
        while self.phase == Phase::Starting {
            match start::receive(&self.child.messages) {
                Message::Nothing => return,
                Message::Terminal(master) => match self.connect(host, master) {
                    Ok(stream) => streams.extend(stream),
                    Err(error) => say!("a terminal has no connection: {}", error.message),
                },
                Message::Refused(refusal) => {
                    self.phase = Phase::Refused;
                    reports.push(Report::NotStarted {
                        id: self.id,
                        reason: refusal.reason,
                        message: shortened(refusal.message),
                    });
                }
                Message::Gone => {
                    self.phase = Phase::Started;
                    reports.push(Report::Started { id: self.id });
                }
            }
        }
    }

    fn connect(&mut self, host: &Host, master: OwnedFd) -> Result<Option<Stream>, Refusal> {
        let Some(Terminal { stream, input }) = self.awaited.take() else { return Ok(None) };
        Stream::terminal(host, stream, master, input, self.id).map(Some).failing("terminal")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_handles_what_it_catches_or_blocks() {
        let status = |blocked: u64, caught: u64| {
            format!("Name:\tx\nSigBlk:\t{blocked:016x}\nSigCgt:\t{caught:016x}\n")
        };
        assert!(handles(&status(0, 0x4000), libc::SIGTERM));
        assert!(handles(&status(0x4000, 0), libc::SIGTERM));
        assert!(!handles(&status(0x8000, 0x2000), libc::SIGTERM));
        assert!(handles("", libc::SIGTERM));
    }
}
