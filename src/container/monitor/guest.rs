//! The agent's side of the monitor: what it has been asked for, and what its reports mean.
//!
//! The agent is not trusted: a report that answers nothing ends the VM.

use std::collections::BTreeSet;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bothy_guest::protocol::{
    self, ContainerSetup, Hello, ProcessId, Report as AgentReport, Request as AgentRequest, Token,
};

use crate::agent::{Agent, Event as AgentEvent};
use crate::config::VmConfig;
use crate::container::channel::Channel;
use crate::container::protocol::{Event, Program, Request, Stdio, Stream};
use crate::container::state_dir::StateDir;
use crate::launch;
use crate::poll::{self, Source};
use crate::timeline::{RunMoments, now_ns};
use crate::vmm::control::Command;
use crate::vmm::process::VmProcess;

/// The number of a VM's only container.
const CONTAINER: u32 = 1;
/// How often the VM may be asked to take memory from its guest.
const RECLAIM_PAUSE: Duration = Duration::from_secs(2);
/// How often the agent is served after the VM's end, at most: what it sent before counts.
const LAST_TURNS: u32 = 64;

/// The agent and its containers.
pub(super) struct Guest {
    agent: Agent,
    /// Removed when the VM has ended, after the agent's socket.
    _dir: StateDir,
    config: VmConfig,
    patience: Duration,
    /// What the agent has kept us waiting for, and until when.
    awaited: Option<(Awaited, Instant)>,
    snapshot: Snapshot,
    /// Requests until the agent has connected.
    early: Option<Vec<AgentRequest>>,
    streams: Vec<(Token, u32, Stream)>,
    starting: BTreeSet<u32>,
    running: BTreeSet<u32>,
    has_run: bool,
    moments: RunMoments,
    /// When the VM was asked last to take memory from its guest.
    reclaimed: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Snapshot {
    /// None is wanted, or it is written.
    None,
    /// The VM is to be written before the agent gets its first request.
    Wanted,
    /// It is being written.
    Requested,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Awaited {
    Hello,
    Start,
}

impl Guest {
    /// The VM has been started; its agent is to connect within `patience`.
    pub(super) fn new(
        agent: Agent,
        dir: StateDir,
        config: VmConfig,
        patience: Duration,
        wants_snapshot: bool,
    ) -> Self {
        Self {
            agent,
            _dir: dir,
            config,
            patience,
            awaited: Some((Awaited::Hello, Instant::now() + patience)),
            snapshot: if wants_snapshot { Snapshot::Wanted } else { Snapshot::None },
            early: Some(Vec::new()),
            streams: Vec::new(),
            starting: BTreeSet::new(),
            running: BTreeSet::new(),
            has_run: false,
            moments: RunMoments::default(),
            reclaimed: None,
        }
    }

    /// Releases the agent's socket and the state directory, and returns when what happened.
    pub(super) fn into_moments(self) -> RunMoments {
        self.moments
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.awaited.map(|(_, deadline)| deadline).into_iter().chain(self.agent.deadline()).min()
    }

    pub(super) fn check_deadline(&self) -> anyhow::Result<()> {
        match self.awaited {
            Some((awaited, deadline)) if Instant::now() >= deadline => {
                let what = match awaited {
                    Awaited::Hello => "connected",
                    Awaited::Start => "started the command",
                };
                let seconds = self.patience.as_secs();
                bail!("the guest's agent has not {what} within {seconds} seconds (--agent-timeout)")
            }
            _ => Ok(()),
        }
    }

    /// Waits for this from now on.
    fn expect(&mut self, awaited: Awaited) {
        self.awaited = Some((awaited, Instant::now() + self.patience));
    }

    /// Serves the agent's connections once.
    pub(super) fn serve_agent(
        &mut self,
        vm: &mut VmProcess,
        client: &mut Channel,
        container: &str,
    ) -> anyhow::Result<()> {
        for event in self.agent.serve().context("can't serve the agent's connections")? {
            if let Some((event, descriptors)) = self.on_agent_event(vm, event)? {
                client.queue(container, event, descriptors).context("can't send to the client")?;
            }
        }
        Ok(())
    }

    /// Serves what had arrived when the VM ended.
    pub(super) fn serve_to_the_end(
        &mut self,
        vm: &mut VmProcess,
        client: &mut Channel,
        container: &str,
    ) -> anyhow::Result<()> {
        for _ in 0..LAST_TURNS {
            let ready = poll::wait([Source::readable(&self.agent)], Some(Instant::now()));
            if !ready.is_ok_and(|[agent]| agent.readable) {
                break;
            }
            self.serve_agent(vm, client, container)?;
        }
        Ok(())
    }

    fn on_agent_event(
        &mut self,
        vm: &mut VmProcess,
        event: AgentEvent,
    ) -> anyhow::Result<Option<(Event, Vec<OwnedFd>)>> {
        match event {
            AgentEvent::Hello(hello) => self.on_hello(vm, &hello)?,
            AgentEvent::Report(report) => {
                return Ok(self.on_report(vm, report)?.map(|event| (event, vec![])));
            }
            AgentEvent::Stream(token, socket) => {
                let place = self.streams.iter().position(|(known, ..)| *known == token);
                // A token that was made here and is used already was refused by the agent's room.
                let Some(place) = place else { return Ok(None) };
                let (_, process, stream) = self.streams.swap_remove(place);
                return Ok(Some((Event::Stream { process, stream }, vec![socket.into()])));
            }
            AgentEvent::Gone if self.has_run && self.running.is_empty() && self.starting.is_empty() => {}
            AgentEvent::Gone => self.expect(Awaited::Hello),
            AgentEvent::Broken(error) => return Err(error).context("protocol error from the guest agent"),
        }
        Ok(None)
    }

    fn on_hello(&mut self, vm: &mut VmProcess, hello: &Hello) -> anyhow::Result<()> {
        let version = protocol::VERSION;
        if hello.version != version {
            bail!(
                "the guest's agent has version {} of the protocol and bothy {version}: build the guest again, with `make guest`",
                hello.version
            );
        }
        self.moments.hello.get_or_insert_with(now_ns);
        self.awaited = None;
        if self.snapshot == Snapshot::Wanted {
            // The connection doesn't outlive the snapshot: the agent connects again, and gets its
            // first request then.
            self.snapshot = Snapshot::Requested;
            vm.send(Command::Snapshot);
            return Ok(());
        }
        // One that connects again goes on with what it has got.
        if let Some(early) = self.early.take() {
            let machine = launch::container::machine(&self.config).context("can't get random numbers")?;
            self.send(&AgentRequest::Machine(Box::new(machine)))?;
            for request in early {
                self.send(&request)?;
            }
        }
        if !self.starting.is_empty() {
            self.expect(Awaited::Start);
        }
        Ok(())
    }

    /// The VM is written, which may have taken long; the agent's time to connect again begins now.
    pub(super) fn on_snapshot(&mut self) -> anyhow::Result<()> {
        if std::mem::replace(&mut self.snapshot, Snapshot::None) != Snapshot::Requested {
            bail!("protocol error from the VM's process: a snapshot that nobody has asked for");
        }
        if self.early.is_some() {
            self.expect(Awaited::Hello);
        }
        Ok(())
    }

    fn on_report(&mut self, vm: &mut VmProcess, report: AgentReport) -> anyhow::Result<Option<Event>> {
        Ok(match report {
            AgentReport::Ready => None,
            AgentReport::Failed { message } => {
                bail!("the guest can't be set up: {}", one_line(&message))
            }
            AgentReport::Created { container: CONTAINER } => {
                self.moments.ready.get_or_insert_with(now_ns);
                None
            }
            AgentReport::NotCreated { container: CONTAINER, message } => {
                bail!("the container can't be created: {}", one_line(&message))
            }
            AgentReport::Started { id: ProcessId { container: CONTAINER, process } }
                if self.starting.remove(&process) =>
            {
                self.on_start();
                self.running.insert(process);
                self.moments.started.get_or_insert_with(now_ns);
                Some(Event::Started { process })
            }
            AgentReport::NotStarted { id: ProcessId { container: CONTAINER, process }, reason, message }
                if self.starting.remove(&process) =>
            {
                self.on_start();
                Some(Event::NotStarted { process, reason, message: one_line(&message) })
            }
            AgentReport::Ended { id: ProcessId { container: CONTAINER, process }, status }
                if self.running.remove(&process) =>
            {
                self.moments.ended.get_or_insert_with(now_ns);
                Some(Event::Exited { process, status })
            }
            AgentReport::Reclaimable { mib } => {
                // Our agent reports it every few seconds at most; anything else is not to keep us
                // busy.
                let now = Instant::now();
                if self.reclaimed.is_none_or(|last| now >= last + RECLAIM_PAUSE) {
                    self.reclaimed = Some(now);
                    vm.send(Command::Reclaim { mib });
                }
                None
            }
            report => bail!("unexpected message from the guest agent: {report:?}"),
        })
    }

    /// A process has started, or hasn't.
    fn on_start(&mut self) {
        self.has_run = true;
        if self.starting.is_empty() {
            self.awaited = None;
        }
    }

    pub(super) fn on_request(&mut self, request: Request) -> anyhow::Result<()> {
        let id = |process| ProcessId { container: CONTAINER, process };
        match request {
            Request::Create { read_only, spec } => {
                let root = launch::container::root(&self.config, read_only);
                let setup = Box::new(ContainerSetup { root, spec });
                self.send_or_keep(AgentRequest::Create { container: CONTAINER, setup })
            }
            Request::Run { process, program, stdio } => {
                if self.starting.contains(&process) || self.running.contains(&process) {
                    bail!("a client starts process {process}, which runs already");
                }
                let stdio = self.stdio(process, stdio)?;
                let Program { args, env, cwd, user, rights } = *program;
                let command = Box::new(protocol::Command { args, env, cwd, user, rights, stdio });
                self.starting.insert(process);
                if self.early.is_none() {
                    self.expect(Awaited::Start);
                }
                self.send_or_keep(AgentRequest::Run { id: id(process), command })
            }
            Request::Signal { process, signal } => {
                self.send_or_keep(AgentRequest::Signal { id: id(process), signal })
            }
            Request::Resize { process, size } => {
                self.send_or_keep(AgentRequest::Resize { id: id(process), size })
            }
            Request::Launch(_) | Request::Vm(_) | Request::KillVm | Request::Finish => Ok(()),
        }
    }

    /// Makes a token for each stream.
    fn stdio(&mut self, process: u32, stdio: Stdio) -> anyhow::Result<protocol::Stdio> {
        let mut token = |stream| -> anyhow::Result<Token> {
            let token = self.agent.token().context("can't get random numbers")?;
            self.streams.push((token, process, stream));
            Ok(token)
        };
        Ok(match stdio {
            Stdio::Terminal { input, size } => {
                protocol::Stdio::Terminal { stream: token(Stream::Terminal)?, input, size }
            }
            Stdio::Pipes { stdin } => protocol::Stdio::Pipes {
                stdin: if stdin { Some(token(Stream::Stdin)?) } else { None },
                stdout: token(Stream::Stdout)?,
                stderr: token(Stream::Stderr)?,
            },
        })
    }

    fn send_or_keep(&mut self, request: AgentRequest) -> anyhow::Result<()> {
        match &mut self.early {
            Some(early) => {
                early.push(request);
                Ok(())
            }
            None => self.send(&request),
        }
    }

    /// To an agent that has gone for now nothing is sent: a client asks again for what matters.
    fn send(&mut self, request: &AgentRequest) -> anyhow::Result<()> {
        match self.agent.send(request) {
            Err(error) if error.kind() == std::io::ErrorKind::NotConnected => {
                log::debug!("the agent isn't there");
                Ok(())
            }
            done => done.context("can't send to the guest's agent"),
        }
    }
}

/// What the guest sends, on one line: it is no more to be trusted than any output.
fn one_line(text: &str) -> String {
    text.chars().take(500).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

impl AsRawFd for Guest {
    fn as_raw_fd(&self) -> RawFd {
        self.agent.as_raw_fd()
    }
}
