//! The monitor: a process between clients and a VM.
//!
//! The first client forks it before it has read environment, configuration or credentials
//! ([`fork`]), and erases arguments and environment from its memory. It has a single thread and one
//! loop over poll(2). It makes the state directory, opens what the VM is made of, forks the VM's
//! process, has the agent's connection, and releases all of it; nobody else removes the directory or
//! a socket. It trusts its client, and neither the VM's process nor the agent: a message of theirs
//! that is unexpected ends the VM.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bothy_guest::protocol::{
    self, ContainerSetup, Hello, ProcessId, Report as AgentReport, Request as AgentRequest, Token,
};

use super::channel::Channel;
use super::client::Unlaunched;
use super::protocol::{ContainerLaunch, Event, Launch, Program, Request, Stdio, Stream, Vm, VmEnd};
use super::state_dir::StateDir;
use crate::agent::{Agent, Event as AgentEvent};
use crate::config::VmConfig;
use crate::launch;
use crate::launch::container::{ContainerVm, Parts};
use crate::poll::{self, Source};
use crate::sink;
use crate::sys::command_line::CommandLine;
use crate::sys::descriptors::{self, replace};
use crate::sys::process::{self, detach};
use crate::timeline::{Mark, RunMoments, Timeline, Times, now_ns};
use crate::virtio::{net, vsock};
use crate::vmm::control::{Command, Event as VmEvent, Events, Report};
use crate::vmm::process::VmProcess;

/// The number of a VM's only container.
const CONTAINER: u32 = 1;
/// How long the VM may take to end after [`Command::Quit`].
const KILL_GRACE: Duration = Duration::from_secs(1);
/// How often the VM may be asked to take memory from its guest.
const RECLAIM_PAUSE: Duration = Duration::from_secs(2);
/// How often the agent is served after the VM's end, at most: what it sent before counts.
const LAST_TURNS: u32 = 64;

/// What runs a container's VM.
pub trait Hypervisor {
    /// Listens for the agent, and opens the VM's taps, whose names `config` then has.
    fn listen(&mut self, config: &mut VmConfig, dir: &StateDir) -> anyhow::Result<Agent>;

    /// Starts the VM. What its process opens by path stays open as long as this value.
    fn start(
        &mut self,
        vm: &ContainerVm,
        config: &VmConfig,
        parts: Parts,
        timeline: Timeline,
    ) -> anyhow::Result<VmProcess>;
}

/// bothy.
#[derive(Default)]
pub struct Own {
    ports: Vec<net::Ports>,
}

impl Hypervisor for Own {
    fn listen(&mut self, config: &mut VmConfig, dir: &StateDir) -> anyhow::Result<Agent> {
        let agent = Agent::listen(&dir.vsock()).context("can't listen for the guest's agent")?;
        self.ports = launch::ports(&mut config.net)?;
        Ok(agent)
    }

    fn start(
        &mut self,
        vm: &ContainerVm,
        config: &VmConfig,
        parts: Parts,
        timeline: Timeline,
    ) -> anyhow::Result<VmProcess> {
        let resources = vm.resources(config, parts, std::mem::take(&mut self.ports))?;
        VmProcess::spawn(config, resources, None, timeline).context("can't start the VM's process")
    }
}

/// Forks the monitor. To be called first thing in `main`: what the process has read by then, the
/// monitor has in its memory.
pub fn fork(command_line: &CommandLine, hypervisor: &mut dyn Hypervisor) -> std::io::Result<Unlaunched> {
    let (ours, theirs) = Channel::pair()?;
    let Some(child) = process::fork()? else {
        drop(ours);
        command_line.erase("bothy: monitor");
        process::in_child(|| run(theirs, hypervisor))
    };
    Ok(Unlaunched::new(ours, child))
}

/// The monitor's whole life.
fn run(mut client: Channel, hypervisor: &mut dyn Hypervisor) {
    detach();
    // A client that ends before it launches anything leaves nothing behind.
    let Ok((envelope, descriptors)) = client.wait::<Request>() else { return };
    let container = envelope.container;
    let launched = match envelope.body {
        Request::Launch(launch) => start(*launch, descriptors, hypervisor),
        _ => Err(anyhow::anyhow!("the first message of a client must start a VM")),
    };
    let served = launched.and_then(|monitor| {
        client.queue(&container, Event::Launched, vec![]).context("can't send to the client")?;
        // Now everything that the client named by a path is open, /dev/stdin and the like included.
        descriptors::close_inherited();
        let null = null()?;
        replace(libc::STDIN_FILENO, &null);
        replace(libc::STDOUT_FILENO, &null);
        monitor.serve(&mut client, &container)
    });
    let event = match served {
        Ok(end) => Event::Ended(Box::new(end)),
        Err(error) => Event::Failed { is_usage: launch::is_usage(&error), message: format!("{error:#}") },
    };
    // Whoever reads the client's output waits for its last descriptor, which isn't to be ours.
    if let Ok(null) = null() {
        let streams = libc::STDIN_FILENO..=libc::STDERR_FILENO;
        sink::descriptors().into_iter().chain(streams).for_each(|fd| replace(fd, &null));
    }
    if let Err(error) = client.queue(&container, event, vec![]).and_then(|()| client.flush_all()) {
        log::debug!("the client has gone: {error}");
    }
}

fn null() -> anyhow::Result<File> {
    File::options().read(true).write(true).open("/dev/null").context("can't open /dev/null")
}

/// A VM that runs.
struct Monitor {
    vm: VmProcess,
    events: Events,
    /// Of a VM for containers.
    guest: Option<Guest>,
    /// The vsock device's socket, to be removed.
    _socket: Option<Socket>,
}

/// A socket that the monitor removes.
struct Socket(vsock::Place);

impl Drop for Socket {
    fn drop(&mut self) {
        self.0.clean_up();
    }
}

/// The agent and its containers.
struct Guest {
    agent: Agent,
    /// Removed when the VM has ended, after the agent's socket.
    _dir: StateDir,
    config: VmConfig,
    patience: Duration,
    /// What the agent has kept us waiting for, and until when.
    awaited: Option<(Awaited, Instant)>,
    /// The VM is to be written before the agent gets its first request.
    wants_snapshot: bool,
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
enum Awaited {
    Hello,
    Start,
}

/// What the monitor does next.
enum Next {
    Go,
    /// The VM is to be ended.
    End,
    /// The VM has ended.
    Ended,
}

/// Opens everything, and starts the VM.
fn start(
    launch: Launch,
    descriptors: Vec<OwnedFd>,
    hypervisor: &mut dyn Hypervisor,
) -> anyhow::Result<Monitor> {
    let mut descriptors = descriptors.into_iter();
    let mut next = || descriptors.next().context("a descriptor is missing");
    if launch.has_log_file {
        sink::Log::to_file(&File::from(next()?)).context("--log-file")?;
    }
    sink::start_log(launch.log_filters.as_deref());
    let timeline = Timeline::default();
    timeline.record_at(Mark::Exec, launch.exec_ns);
    timeline.record_at(Mark::Requested, launch.requested_ns);
    match launch.vm {
        Vm::Boot(boot) => {
            let console = boot.has_console().then(&mut next).transpose()?.map(UnixStream::from);
            let (config, resources) = boot.open()?;
            let socket = resources.backends.vsock.as_ref().map(|listener| Socket(listener.place().clone()));
            let mut vm = VmProcess::spawn(&config, resources, console, timeline)
                .context("can't start the VM's process")?;
            let events = vm.events.take().context("the VM has no events")?;
            Ok(Monitor { vm, events, guest: None, _socket: socket })
        }
        Vm::Container(container) => start_for_containers(*container, next()?, hypervisor, timeline),
    }
}

fn start_for_containers(
    launch: ContainerLaunch,
    image: OwnedFd,
    hypervisor: &mut dyn Hypervisor,
    timeline: Timeline,
) -> anyhow::Result<Monitor> {
    let ContainerLaunch { name, base, vm, agent_timeout } = launch;
    let dir = StateDir::make(&base, &name)?;
    let mut config = vm.config(dir.vsock());
    config.validate(launch::host_memory_mib())?;
    let parts = Parts::open(&vm, image)?;
    launch::must_run_linux("")?;
    let agent = hypervisor.listen(&mut config, &dir)?;
    let mut process = hypervisor.start(&vm, &config, parts, timeline)?;
    let events = process.events.take().context("the VM has no events")?;
    let guest = Guest {
        agent,
        _dir: dir,
        config,
        patience: agent_timeout,
        awaited: Some((Awaited::Hello, Instant::now() + agent_timeout)),
        wants_snapshot: vm.snapshot.is_some(),
        early: Some(Vec::new()),
        streams: Vec::new(),
        starting: BTreeSet::new(),
        running: BTreeSet::new(),
        has_run: false,
        moments: RunMoments::default(),
        reclaimed: None,
    };
    Ok(Monitor { vm: process, events, guest: Some(guest), _socket: None })
}

impl Monitor {
    /// Serves the client until the VM has ended, and releases everything.
    fn serve(mut self, client: &mut Channel, container: &str) -> anyhow::Result<VmEnd> {
        let served = self.attend(client, container);
        if !matches!(served, Ok(Next::Ended)) {
            self.end_vm();
        }
        let Self { vm, events, guest, .. } = self;
        let moments = guest.map(|guest| guest.moments).unwrap_or_default();
        let report = events.report();
        served?;
        let (outcome, times, counts) = match report.context("the VM's report is unreadable")? {
            Some(Report::Ended { outcome, times, counts }) => (Ok(outcome), times, counts),
            Some(Report::Failed(chain)) => bail!(chain.join(": ")),
            None => (Err(format!("the VM's process {}", vm.autopsy())), Times::default(), None),
        };
        Ok(VmEnd { outcome, times, counts, moments })
    }

    fn attend(&mut self, client: &mut Channel, container: &str) -> anyhow::Result<Next> {
        loop {
            let deadline = self.guest.as_ref().and_then(Guest::deadline);
            let sources = [
                Source::of(client, true, client.wants_to_send()),
                Source::readable(&self.events),
                self.guest.as_ref().map_or(Source::none(), |guest| Source::readable(&guest.agent)),
            ];
            let [request, vm, agent] = poll::wait(sources, deadline).context("can't wait for events")?;
            // First the agent: what it sent before the VM ended counts.
            if let Some(guest) = &mut self.guest {
                guest.serve_agent(&mut self.vm, client, container)?;
                guest.check_deadline()?;
            }
            if request.writable {
                client.flush().context("can't send to the client")?;
            }
            if request.readable {
                let is_open = client.fill().context("can't read from the client")?;
                while let Some((envelope, _)) = client.take().context("can't read from the client")? {
                    if envelope.container != container {
                        bail!("a client's message is for another container: {:?}", envelope.container);
                    }
                    if let Next::End = self.on_request(envelope.body)? {
                        return Ok(Next::End);
                    }
                }
                if !is_open {
                    return Ok(Next::End);
                }
            }
            if vm.readable && !agent.readable && self.on_vm_event(client, container)? {
                return Ok(Next::Ended);
            }
        }
    }

    fn on_request(&mut self, request: Request) -> anyhow::Result<Next> {
        match request {
            Request::Vm(command) => self.vm.send(command),
            Request::KillVm => self.vm.kill(),
            Request::Finish => return Ok(Next::End),
            Request::Launch(_) => bail!("a client starts a VM where one runs already"),
            request => {
                let guest = self.guest.as_mut().context("this VM has no containers")?;
                guest.on_request(request)?;
            }
        }
        Ok(Next::Go)
    }

    /// Reads an event of the VM's; true if it has ended.
    fn on_vm_event(&mut self, client: &mut Channel, container: &str) -> anyhow::Result<bool> {
        match self.events.read().context("can't read the VM's events")? {
            VmEvent::GuestEnded => {
                client.queue(container, Event::GuestEnded, vec![]).context("can't send to the client")?;
            }
            VmEvent::Snapshot { written: false } => bail!("the snapshot can't be written"),
            VmEvent::Snapshot { written: true } => {
                if let Some(guest) = &mut self.guest {
                    guest.on_snapshot();
                }
            }
            VmEvent::Report => {
                if let Some(guest) = &mut self.guest {
                    guest.serve_to_the_end(&mut self.vm, client, container)?;
                }
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Ends the VM, and waits until it has released everything.
    fn end_vm(&mut self) {
        self.vm.send(Command::Quit);
        let mut deadline = Instant::now() + KILL_GRACE;
        let mut killed = false;
        loop {
            match poll::wait([Source::readable(&self.events)], Some(deadline)) {
                Ok([ready]) if ready.readable => match self.events.read() {
                    Ok(VmEvent::GuestEnded | VmEvent::Snapshot { .. }) => {}
                    Ok(VmEvent::Report) | Err(_) => break,
                },
                _ if killed => break,
                _ => {
                    self.vm.kill();
                    (killed, deadline) = (true, Instant::now() + KILL_GRACE);
                }
            }
        }
    }
}

impl Guest {
    fn deadline(&self) -> Option<Instant> {
        self.awaited.map(|(_, deadline)| deadline).into_iter().chain(self.agent.deadline()).min()
    }

    fn check_deadline(&self) -> anyhow::Result<()> {
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
    fn serve_agent(
        &mut self,
        vm: &mut VmProcess,
        client: &mut Channel,
        container: &str,
    ) -> anyhow::Result<()> {
        for event in self.agent.serve().context("can't serve the agent's connections")? {
            let (event, descriptors) = match self.on_agent_event(vm, event)? {
                Some(event) => event,
                None => continue,
            };
            client.queue(container, event, descriptors).context("can't send to the client")?;
        }
        Ok(())
    }

    /// Serves what had arrived when the VM ended.
    fn serve_to_the_end(
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
        if std::mem::take(&mut self.wants_snapshot) {
            // The connection doesn't outlive the snapshot: the agent connects again, and gets its
            // first request then.
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
    fn on_snapshot(&mut self) {
        if self.early.is_some() {
            self.expect(Awaited::Hello);
        }
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
                // Our agent reports it every few seconds at most; anything else is not to keep us busy.
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

    fn on_request(&mut self, request: Request) -> anyhow::Result<()> {
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
