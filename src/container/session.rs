//! A client that is attached to a container's command, from its start to its end: signals go to the
//! command, its streams to this process, and its status becomes the exit code.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bothy_guest::protocol::{ExitStatus, NotStarted, WindowSize};
use bothy_guest::spec::Container;

use super::client::Client;
use super::protocol::{Event, Program, Request, Stdio, VmEnd};
use super::streams::Streams;
use crate::poll::{self, Source};
use crate::sys::signals::Signals;
use crate::sys::terminal;
use crate::timeline::{RunMoments, Times};
use crate::vmm::control::Counts;

/// The number of a container's first process.
const INIT: u32 = 1;
/// How long the streams of a command that has ended may take to be connected.
const STREAM_GRACE: Duration = Duration::from_secs(10);
/// How long the monitor may take to end the VM: it gives the VM's process two seconds itself.
const END_GRACE: Duration = Duration::from_secs(10);
/// After so many SIGINTs and SIGTERMs the VM is ended, as with docker.
const FORCE_AFTER: u32 = 3;
/// What `bothy run` returns when it is bothy that fails, as docker does.
pub const RUN_FAILED: u8 = 125;

/// A container and its first process.
#[derive(Debug)]
pub struct Job {
    /// Whether the container's root is read-only.
    pub read_only: bool,
    /// Its namespaces, mounts and protections.
    pub spec: Container,
    /// The process's program.
    pub program: Program,
    /// Its standard streams.
    pub stdio: Stdio,
}

/// The end.
#[derive(Debug)]
pub struct Finished {
    /// For the caller.
    pub code: u8,
    /// For the user, if there is something to say.
    pub message: Option<String>,
    /// When each step of the VM's life happened.
    pub times: Times,
    /// What was counted, if that was requested.
    pub counts: Option<Box<Counts>>,
    /// When each step of the command's life happened.
    pub moments: RunMoments,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The command is to be started.
    Starting,
    Running,
    /// The command has ended, or never started; its output may still be on the way.
    Ended(u8),
}

/// Runs the command, and attends to it until it has ended and its output is written. Ends the VM,
/// whatever happens.
pub fn attach(client: Client, job: Job, signals: Signals, early: Vec<i32>) -> anyhow::Result<Finished> {
    let session = Session {
        client,
        signals,
        streams: Streams::new(job.stdio)?,
        terminal: match job.stdio {
            Stdio::Terminal { size, .. } => Some(size),
            Stdio::Pipes { .. } => None,
        },
        phase: Phase::Starting,
        deadline: None,
        end: None,
        early_signals: Vec::new(),
        ends_wished: 0,
        message: None,
    };
    session.attend(job, early)
}

struct Session {
    client: Client,
    signals: Signals,
    streams: Streams,
    /// The size of the command's terminal, if it has one.
    terminal: Option<WindowSize>,
    phase: Phase,
    /// Until when streams may be connected.
    deadline: Option<Instant>,
    /// The VM has ended so.
    end: Option<VmEnd>,
    /// Signals that came before the command ran.
    early_signals: Vec<i32>,
    /// How many signals asked for an end.
    ends_wished: u32,
    message: Option<String>,
}

impl Session {
    fn attend(mut self, job: Job, early: Vec<i32>) -> anyhow::Result<Finished> {
        let served = self.start(job, early).and_then(|()| self.serve());
        // Whatever has happened, everything is released before this returns.
        let ended = if self.end.is_none() { self.end_vm() } else { Ok(()) };
        match served.and(ended) {
            // The command's status counts.
            Err(error) if matches!(self.phase, Phase::Ended(_)) => log::debug!("{error:#}"),
            done => done?,
        }
        let Self { phase, end, message, streams, .. } = self;
        let (outcome, times, counts, moments) = match end {
            Some(VmEnd { outcome, times, counts, moments }) => (Some(outcome), times, counts, moments),
            None => (None, Times::default(), None, RunMoments::default()),
        };
        let code = match (phase, outcome) {
            (Phase::Ended(code), _) => code,
            (_, Some(Ok(outcome))) => {
                let what = outcome.message();
                bail!(what.unwrap_or_else(|| "the virtual machine ended before the command did".into()))
            }
            (_, Some(Err(died))) => bail!(died),
            (_, None) => bail!("the virtual machine did not end in time, and was killed"),
        };
        // Output that is lost is no success.
        let (code, message) = match streams.unwritten() {
            Some(why) if code == 0 => (RUN_FAILED, Some(why)),
            Some(why) => (code, message.or(Some(why))),
            None => (code, message),
        };
        Ok(Finished { code, message, times, counts, moments })
    }

    fn start(&mut self, job: Job, early: Vec<i32>) -> anyhow::Result<()> {
        let Job { read_only, spec, program, stdio } = job;
        self.client.send(Request::Create { read_only, spec })?;
        self.client.send(Request::Run { process: INIT, program: Box::new(program), stdio })?;
        early.into_iter().try_for_each(|signal| self.on_signal(signal))
    }

    /// Until the command has ended and all of its output is written, or the VM has ended.
    fn serve(&mut self) -> anyhow::Result<()> {
        loop {
            let events = if self.end.is_some() { Source::none() } else { Source::readable(&self.client) };
            // Until the command has ended it doesn't matter that it has closed its output.
            let done =
                if matches!(self.phase, Phase::Ended(_)) { self.streams.source() } else { Source::none() };
            let sources = [events, Source::readable(&self.signals), done];
            let [events, signal, done] =
                poll::wait(sources, self.deadline).context("can't wait for events")?;
            if events.readable {
                for (event, descriptors) in self.client.read()? {
                    self.on_event(event, descriptors)?;
                }
                if self.end.is_some() && !matches!(self.phase, Phase::Ended(_)) {
                    return Ok(());
                }
            }
            if signal.readable {
                let signal = self.signals.take().context("can't read a signal")?;
                self.on_signal(signal)?;
                if self.ends_wished >= FORCE_AFTER {
                    return Ok(());
                }
            }
            if matches!(self.phase, Phase::Ended(_)) && done.readable {
                return Ok(());
            }
            if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                log::warn!("the guest's agent has not connected all of the command's streams");
                self.streams.expect_no_more();
                self.deadline = None;
            }
        }
    }

    fn on_event(&mut self, event: Event, descriptors: Vec<OwnedFd>) -> anyhow::Result<()> {
        match event {
            Event::Started { process: INIT } => {
                self.phase = Phase::Running;
                // A new size that came before there was a terminal has been lost.
                if let (Some(old), Some(size)) = (self.terminal, terminal::size())
                    && old != size
                {
                    self.client.send(Request::Resize { process: INIT, size })?;
                }
                for signal in std::mem::take(&mut self.early_signals) {
                    self.client.send(Request::Signal { process: INIT, signal })?;
                }
            }
            Event::NotStarted { process: INIT, reason, message } => {
                self.message = Some(message);
                self.streams.expect_no_more();
                self.phase = Phase::Ended(match reason {
                    NotStarted::NotFound => 127,
                    NotStarted::NotExecutable => 126,
                    NotStarted::Other => RUN_FAILED,
                });
            }
            Event::Exited { process: INIT, status } => {
                if let ExitStatus::Signal(signal) = status {
                    log::debug!("signal {signal} ended the command");
                }
                self.phase = Phase::Ended(status.shell_code());
                if self.streams.are_expected() {
                    self.deadline = Some(Instant::now() + STREAM_GRACE);
                }
            }
            Event::Stream { process: INIT, stream } => {
                let socket = descriptors.into_iter().next().context("a stream has no descriptor")?;
                self.streams.open(stream, socket.into())?;
            }
            Event::GuestEnded => {}
            Event::Ended(end) => {
                self.end = Some(*end);
                // What the command had sent is still to be written, and no stream is connected any
                // more.
                self.streams.expect_no_more();
            }
            Event::Failed { message, .. } => bail!(message),
            event => bail!("unexpected message from bothy's monitor: {event:?}"),
        }
        Ok(())
    }

    /// Passes a signal on.
    fn on_signal(&mut self, signal: i32) -> anyhow::Result<()> {
        if self.terminal.is_some() && signal == libc::SIGWINCH {
            return match (self.phase, terminal::size()) {
                (Phase::Running, Some(size)) => self.client.send(Request::Resize { process: INIT, size }),
                _ => Ok(()),
            };
        }
        if [libc::SIGINT, libc::SIGTERM].contains(&signal) {
            self.ends_wished += 1;
            if self.ends_wished >= FORCE_AFTER {
                self.message = Some(format!(
                    "{FORCE_AFTER} signals to end, and the command runs on: the virtual machine is ended"
                ));
                self.phase = Phase::Ended(128 + u8::try_from(signal).unwrap_or_default());
                return Ok(());
            }
        }
        match self.phase {
            Phase::Starting => self.early_signals.push(signal),
            Phase::Running => self.client.send(Request::Signal { process: INIT, signal })?,
            Phase::Ended(_) => {}
        }
        Ok(())
    }

    /// Has the monitor end the VM, and waits until everything is released.
    fn end_vm(&mut self) -> anyhow::Result<()> {
        self.client.send(Request::Finish)?;
        let deadline = Instant::now() + END_GRACE;
        loop {
            let ready = poll::wait([Source::readable(&self.client)], Some(deadline));
            if !ready.context("can't wait for bothy's monitor")?[0].readable {
                self.client.kill_monitor();
                return Ok(());
            }
            for (event, _) in self.client.read()? {
                match event {
                    Event::Ended(end) => {
                        self.end = Some(*end);
                        return Ok(());
                    }
                    Event::Failed { message, .. } => bail!(message),
                    _ => {}
                }
            }
        }
    }
}
