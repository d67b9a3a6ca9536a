//! One command in one virtual machine, from the agent's hello to the end.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bothy_guest::protocol::{
    Command, ContainerSetup, ExitStatus, Hello, Machine, NotStarted, ProcessId, Report as Said, Request,
    Stdio, Token, VERSION, WindowSize,
};
use bothy_guest::spec::Rights;

use super::streams::{Purpose, Streams};
use super::workload::Workload;
use crate::agent::{Agent, Event};
use crate::commands::RUN_FAILED;
use crate::poll::{self, Source};
use crate::report::timing::RunMoments;
use crate::sys::signals::Signals;
use crate::sys::terminal;
use crate::timeline::{Times, now_ns};
use crate::vmm::control::{Counts, Heard, News, Order, Report};
use crate::vmm::process::VmProcess;

/// The first process of the VM's first container.
const INIT: ProcessId = ProcessId { container: 1, process: 1 };
/// How long the VM may take to end when it was told to.
const KILL_GRACE: Duration = Duration::from_secs(1);
/// How long the agent may take to open the streams of a command that has ended already.
const STREAM_GRACE: Duration = Duration::from_secs(10);
/// How often the VM may be told to take memory from its guest.
const RECLAIM_PAUSE: Duration = Duration::from_secs(2);
/// How many SIGINTs and SIGTERMs mean that the user has lost patience, as with docker.
const PATIENCE: u32 = 3;

/// What the agent is to be told.
pub(super) struct Job {
    machine: Machine,
    container: ContainerSetup,
    command: Command,
    purposes: Vec<(Token, Purpose)>,
}

impl Job {
    /// `size` is that of the command's terminal, if it is to have one.
    pub(super) fn new(
        machine: Machine,
        container: ContainerSetup,
        workload: Workload,
        rights: Rights,
        input: bool,
        size: Option<WindowSize>,
        mut token: impl FnMut() -> anyhow::Result<Token>,
    ) -> anyhow::Result<Self> {
        let mut purposes = Vec::new();
        let mut stream = |purpose| -> anyhow::Result<Token> {
            let token = token()?;
            purposes.push((token, purpose));
            Ok(token)
        };
        let stdio = match size {
            Some(size) => Stdio::Terminal { stream: stream(Purpose::Terminal { input })?, input, size },
            None => Stdio::Pipes {
                stdin: if input { Some(stream(Purpose::Stdin)?) } else { None },
                stdout: stream(Purpose::Stdout)?,
                stderr: stream(Purpose::Stderr)?,
            },
        };
        let Workload { args, env, cwd, user } = workload;
        Ok(Self { machine, container, command: Command { args, env, cwd, user, rights, stdio }, purposes })
    }
}

/// The end.
pub(super) struct Finished {
    /// For the caller.
    pub(super) code: u8,
    /// For the user, if there is something to say.
    pub(super) message: Option<String>,
    pub(super) times: Times,
    pub(super) counts: Option<Box<Counts>>,
    pub(super) moments: RunMoments,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The agent hasn't said hello.
    Calling,
    /// It has been told what to do.
    Starting,
    /// The command runs.
    Running,
    /// The command has ended, or never started; its output may still be on the way.
    Ended(u8),
}

pub(super) struct Session {
    vm: VmProcess,
    news: News,
    agent: Agent,
    signals: Signals,
    /// Until it has been sent.
    job: Option<Job>,
    streams: Streams,
    has_terminal: bool,
    phase: Phase,
    /// How long the agent may keep us waiting for its hello, and then for the command's start.
    patience: Duration,
    /// When the agent has kept us waiting for too long.
    deadline: Option<Instant>,
    /// The VM's process has said its last word, or nothing and is gone.
    vm_is_gone: bool,
    /// What came before the command ran.
    early_signals: Vec<i32>,
    /// How many of them asked for an end.
    pushes: u32,
    message: Option<String>,
    moments: RunMoments,
    /// When the VM was told last to take memory from its guest.
    reclaimed: Option<Instant>,
    /// The VM is to be written before it is told anything.
    wants_snapshot: bool,
}

impl Session {
    /// `patience` is how long the agent may take to say hello. `wants_snapshot` if the VM is to be written then.
    pub(super) fn new(
        mut vm: VmProcess,
        agent: Agent,
        signals: Signals,
        mut job: Job,
        patience: Duration,
        wants_snapshot: bool,
    ) -> anyhow::Result<Self> {
        let streams = Streams::new(std::mem::take(&mut job.purposes))?;
        let has_terminal = matches!(job.command.stdio, Stdio::Terminal { .. });
        Ok(Self {
            news: vm.news.take().context("the VM has been attended to already")?,
            vm,
            agent,
            signals,
            job: Some(job),
            streams,
            has_terminal,
            phase: Phase::Calling,
            patience,
            deadline: Some(Instant::now() + patience),
            vm_is_gone: false,
            early_signals: Vec::new(),
            pushes: 0,
            message: None,
            moments: RunMoments::default(),
            reclaimed: None,
            wants_snapshot,
        })
    }

    /// Attends to the command until it has ended and its output is written, and ends the VM, whatever happens.
    pub(super) fn attend(mut self) -> anyhow::Result<Finished> {
        let served = self.serve();
        if !self.vm_is_gone {
            self.end_vm();
        }
        let Self { vm, news, phase, message, moments, streams, .. } = self;
        let report = news.report().context("the VM's report is unreadable")?;
        let code = match (served, phase, &report) {
            (Ok(()), Phase::Ended(code), _) => code,
            (Err(error), ..) => return Err(error),
            // The VM has ended before the command did.
            (Ok(()), _, Some(Report::Failed(chain))) => bail!(chain.join(": ")),
            (Ok(()), _, Some(Report::Ended { outcome, .. })) => {
                let what = outcome.message();
                bail!(what.unwrap_or_else(|| "the virtual machine ended before the command did".into()))
            }
            (Ok(()), _, None) => bail!("the VM's process {}", vm.autopsy()),
        };
        // Output that is lost is no success.
        let (code, message) = match streams.unwritten() {
            Some(why) if code == 0 => (RUN_FAILED, Some(why)),
            Some(why) => (code, message.or(Some(why))),
            None => (code, message),
        };
        let (times, counts) = match report {
            Some(Report::Ended { times, counts, .. }) => (times, counts),
            _ => (Times::default(), None),
        };
        Ok(Finished { code, message, times, counts, moments })
    }

    /// Until the command has ended and all of its output is written, or the VM is gone.
    fn serve(&mut self) -> anyhow::Result<()> {
        loop {
            let news = if self.vm_is_gone { Source::none() } else { Source::readable(&self.news) };
            // Until the command has ended it doesn't matter that it has closed its output.
            let done =
                if matches!(self.phase, Phase::Ended(_)) { self.streams.source() } else { Source::none() };
            let sources = [news, Source::readable(&self.signals), Source::readable(&self.agent), done];
            let deadline = self.deadline.into_iter().chain(self.agent.deadline()).min();
            let [news, signal, agent, done] =
                poll::wait(sources, deadline).context("can't wait for events")?;
            // First the agent: what it said before the VM ended counts.
            let events = self.agent.serve().context("can't serve the agent's connections")?;
            for event in events {
                self.take(event)?;
            }
            if signal.readable {
                let signal = self.signals.take().context("can't read a signal")?;
                self.obey(signal)?;
                if self.pushes >= PATIENCE {
                    return Ok(());
                }
            }
            if matches!(self.phase, Phase::Ended(_)) && done.readable {
                return Ok(());
            }
            if news.readable && !agent.readable {
                match self.news.hear().context("can't hear the VM")? {
                    Heard::GuestEnded => {}
                    // That may have taken long; the agent's time to come again begins now.
                    Heard::Snapshot { written: true } if self.phase == Phase::Calling => {
                        self.deadline = Some(Instant::now() + self.patience);
                    }
                    Heard::Snapshot { written: true } => {}
                    Heard::Snapshot { written: false } => bail!("the snapshot can't be written"),
                    Heard::Report => {
                        self.vm_is_gone = true;
                        if !matches!(self.phase, Phase::Ended(_)) {
                            return Ok(());
                        }
                        // What it had sent is still to be written, and no stream is opened any more.
                        self.streams.expect_no_more();
                    }
                }
            }
            if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                self.give_up()?;
            }
        }
    }

    fn take(&mut self, event: Event) -> anyhow::Result<()> {
        match event {
            Event::Hello(hello) => self.greet(&hello),
            Event::Report(said) => self.hear(said),
            Event::Stream(token, socket, rest) => self.streams.open(token, socket, rest),
            Event::Gone if matches!(self.phase, Phase::Ended(_)) => Ok(()),
            Event::Gone => {
                self.deadline = Some(Instant::now() + self.patience);
                Ok(())
            }
            Event::Broken(error) => Err(error).context("the guest's agent talks nonsense"),
        }
    }

    fn greet(&mut self, hello: &Hello) -> anyhow::Result<()> {
        if hello.version != VERSION {
            bail!(
                "the guest's agent speaks version {} and bothy {VERSION}: build the guest again, with `make guest`",
                hello.version
            );
        }
        self.moments.hello.get_or_insert_with(now_ns);
        if std::mem::take(&mut self.wants_snapshot) {
            // Its connection doesn't outlive that: it comes again, and is told then.
            self.vm.order(Order::Snapshot);
            self.deadline = None;
            return Ok(());
        }
        // One that comes again goes on with what it was told.
        let Some(Job { machine, container, command, .. }) = self.job.take() else {
            self.deadline = None;
            return Ok(());
        };
        // As long again for all that comes before the command runs.
        self.deadline = Some(Instant::now() + self.patience);
        self.send(&Request::Machine(Box::new(machine)))?;
        self.send(&Request::Create { container: INIT.container, setup: Box::new(container) })?;
        self.send(&Request::Run { id: INIT, command: Box::new(command) })?;
        self.phase = Phase::Starting;
        Ok(())
    }

    fn hear(&mut self, said: Said) -> anyhow::Result<()> {
        match said {
            Said::Ready => {}
            Said::Created { container } if container == INIT.container => {
                self.moments.ready.get_or_insert_with(now_ns);
            }
            Said::Failed { message } => bail!("the guest can't be set up: {}", one_line(&message)),
            Said::NotCreated { message, .. } => {
                bail!("the container can't be created: {}", one_line(&message))
            }
            Said::Started { id: INIT } if self.phase == Phase::Starting => {
                self.deadline = None;
                self.moments.started.get_or_insert_with(now_ns);
                self.phase = Phase::Running;
                for signal in std::mem::take(&mut self.early_signals) {
                    self.send(&Request::Signal { id: INIT, signal })?;
                }
            }
            Said::NotStarted { id: INIT, reason, message } if self.phase == Phase::Starting => {
                self.deadline = None;
                self.message = Some(one_line(&message));
                self.streams.expect_no_more();
                self.phase = Phase::Ended(match reason {
                    NotStarted::NotFound => 127,
                    NotStarted::NotExecutable => 126,
                    NotStarted::Other => RUN_FAILED,
                });
            }
            Said::Ended { id: INIT, status } if self.phase == Phase::Running => {
                self.moments.ended.get_or_insert_with(now_ns);
                if let ExitStatus::Signal(signal) = status {
                    log::debug!("signal {signal} ended the command");
                }
                self.phase = Phase::Ended(status.shell_code());
                if self.streams.are_expected() {
                    self.deadline = Some(Instant::now() + STREAM_GRACE);
                }
            }
            Said::Reclaimable { mib } => {
                // Our agent says so every few seconds at most; whatever else says it is not to keep us busy.
                let now = Instant::now();
                if self.reclaimed.is_none_or(|last| now >= last + RECLAIM_PAUSE) {
                    self.reclaimed = Some(now);
                    self.vm.order(Order::Reclaim { mib });
                }
            }
            said => bail!("the guest's agent said something that wasn't its turn: {said:?}"),
        }
        Ok(())
    }

    /// The agent has kept us waiting for too long.
    fn give_up(&mut self) -> anyhow::Result<()> {
        if !matches!(self.phase, Phase::Ended(_)) {
            let seconds = self.patience.as_secs();
            let what = if self.phase == Phase::Calling { "answered" } else { "started the command" };
            bail!("the guest's agent has not {what} within {seconds} seconds (--agent-timeout)");
        }
        if self.streams.are_expected() {
            log::warn!("the guest's agent has not opened all of the command's streams");
            self.streams.expect_no_more();
        }
        self.deadline = None;
        Ok(())
    }

    /// Passes a signal on.
    fn obey(&mut self, signal: i32) -> anyhow::Result<()> {
        if self.has_terminal && signal == libc::SIGWINCH {
            return match (self.phase, terminal::size()) {
                (Phase::Running | Phase::Starting, Some(size)) => {
                    self.send(&Request::Resize { id: INIT, size })
                }
                _ => Ok(()),
            };
        }
        if [libc::SIGINT, libc::SIGTERM].contains(&signal) {
            self.pushes += 1;
            if self.pushes >= PATIENCE {
                self.message = Some(format!(
                    "{PATIENCE} signals to end, and the command runs on: the virtual machine is ended"
                ));
                self.phase = Phase::Ended(128 + u8::try_from(signal).unwrap_or_default());
                return Ok(());
            }
        }
        match self.phase {
            Phase::Calling | Phase::Starting => self.early_signals.push(signal),
            Phase::Running => self.send(&Request::Signal { id: INIT, signal })?,
            Phase::Ended(_) => {}
        }
        Ok(())
    }

    /// To an agent that has gone for now nothing is sent: what matters is asked for again by whoever wants it.
    fn send(&mut self, request: &Request) -> anyhow::Result<()> {
        match self.agent.send(request) {
            Err(error) if error.kind() == std::io::ErrorKind::NotConnected => {
                log::debug!("the agent isn't there");
                Ok(())
            }
            done => done.context("can't send to the guest's agent"),
        }
    }

    /// Ends the VM, and waits until it has let go of everything.
    fn end_vm(&mut self) {
        self.vm.order(Order::Quit);
        let mut deadline = Instant::now() + KILL_GRACE;
        let mut killed = false;
        loop {
            match poll::wait([Source::readable(&self.news)], Some(deadline)) {
                Ok([news]) if news.readable => match self.news.hear() {
                    Ok(Heard::GuestEnded | Heard::Snapshot { .. }) => {}
                    Ok(Heard::Report) | Err(_) => break,
                },
                _ if killed => break,
                _ => {
                    self.vm.kill();
                    (killed, deadline) = (true, Instant::now() + KILL_GRACE);
                }
            }
        }
        self.vm_is_gone = true;
    }
}

/// What the guest says, on one line: it is no more to be trusted than any output.
fn one_line(text: &str) -> String {
    text.chars().take(500).map(|c| if c.is_control() { ' ' } else { c }).collect()
}
