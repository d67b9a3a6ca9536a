//! The monitor: a process between clients and a VM.
//!
//! The first client forks it before it has read environment, configuration or credentials
//! ([`fork`]), and erases arguments and environment from its memory. It has a single thread and one
//! loop over poll(2). It makes the state directory, opens what the VM is made of, forks the VM's
//! process, has the agent's connection, and releases all of it; nobody else removes the directory
//! or a socket. It trusts its client, and neither the VM's process nor the agent: a message of
//! theirs that is unexpected ends the VM.

mod guest;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};

use self::guest::Guest;
use super::channel::Channel;
use super::client::Unlaunched;
use super::protocol::{ContainerLaunch, Event, Launch, Request, Vm, VmEnd};
use super::state_dir::StateDir;
use crate::agent::Agent;
use crate::config::VmConfig;
use crate::launch;
use crate::launch::container::{ContainerVm, Parts};
use crate::poll::{self, Source};
use crate::sink;
use crate::sys::command_line::CommandLine;
use crate::sys::descriptors::{self, replace};
use crate::sys::process::{self, detach, end_with_parent};
use crate::timeline::{Mark, Timeline, Times};
use crate::virtio::{net, vsock};
use crate::vmm::control::{Command, Event as VmEvent, Events, Report};
use crate::vmm::process::VmProcess;

/// How long the VM may take to end after [`Command::Quit`].
const KILL_GRACE: Duration = Duration::from_secs(1);

/// How long the VM's process may take to send its report, once it has begun to.
const REPORT_TIME: Duration = Duration::from_secs(5);

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
        dir: &StateDir,
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
        dir: &StateDir,
        timeline: Timeline,
    ) -> anyhow::Result<VmProcess> {
        let held = vec![dir.lock().context("can't share a lock")?];
        let resources = vm.resources(config, parts, std::mem::take(&mut self.ports), held)?;
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
    // Until the VM runs nothing here notices that the client has died: an open may take long.
    end_with_parent(true);
    // A client that ends before it launches anything leaves nothing behind.
    let Ok((envelope, descriptors)) = client.wait::<Request>() else { return };
    let container = envelope.container;
    let launched = match envelope.body {
        Request::Launch(launch) => start(*launch, descriptors, hypervisor),
        _ => Err(anyhow!("the first message of a client must start a VM")),
    };
    let served = launched.and_then(|monitor| {
        end_with_parent(false);
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
    /// It has ended by itself; its VM hasn't.
    guest_has_ended: bool,
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
            Ok(Monitor { vm, events, guest: None, guest_has_ended: false, _socket: socket })
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
    let mut process = hypervisor.start(&vm, &config, parts, &dir, timeline)?;
    let events = process.events.take().context("the VM has no events")?;
    let guest = Guest::new(agent, dir, config, agent_timeout, vm.snapshot.is_some());
    Ok(Monitor { vm: process, events, guest: Some(guest), guest_has_ended: false, _socket: None })
}

impl Monitor {
    /// Serves the client until the VM has ended, and releases everything.
    fn serve(mut self, client: &mut Channel, container: &str) -> anyhow::Result<VmEnd> {
        let served = self.attend(client, container);
        if !matches!(served, Ok(true)) {
            self.end_vm();
        }
        let Self { vm, events, guest, .. } = self;
        let moments = guest.map(Guest::into_moments).unwrap_or_default();
        let report = events.report(REPORT_TIME).inspect_err(|_| vm.kill());
        served?;
        let (outcome, times, counts) = match report.context("the VM's report is unreadable")? {
            Some(Report::Ended { outcome, times, counts }) => (Ok(outcome), times, counts),
            Some(Report::Failed(chain)) => bail!(chain.join(": ")),
            None => (Err(format!("the VM's process {}", vm.autopsy())), Times::default(), None),
        };
        Ok(VmEnd { outcome, times, counts, moments })
    }

    /// Serves the client until the VM has ended by itself (true), or is to be ended.
    fn attend(&mut self, client: &mut Channel, container: &str) -> anyhow::Result<bool> {
        loop {
            let deadline = self.guest.as_ref().and_then(Guest::deadline);
            let sources = [
                Source::of(client, true, client.wants_to_send()),
                Source::readable(&self.events),
                self.guest.as_ref().map_or(Source::none(), |guest| Source::readable(guest)),
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
                    if matches!(envelope.body, Request::Finish) {
                        return Ok(false);
                    }
                    self.on_request(envelope.body)?;
                }
                if !is_open {
                    return Ok(false);
                }
            }
            if vm.readable && !agent.readable && self.on_vm_event(client, container)? {
                return Ok(true);
            }
        }
    }

    fn on_request(&mut self, request: Request) -> anyhow::Result<()> {
        match request {
            Request::Vm(command) => self.vm.send(command),
            Request::KillVm => self.vm.kill(),
            Request::Launch(_) => bail!("a client starts a VM where one runs already"),
            request => {
                let guest = self.guest.as_mut().context("this VM has no containers")?;
                guest.on_request(request)?;
            }
        }
        Ok(())
    }

    /// Reads an event of the VM's; true if it has ended.
    fn on_vm_event(&mut self, client: &mut Channel, container: &str) -> anyhow::Result<bool> {
        match self.events.read().context("can't read the VM's events")? {
            VmEvent::GuestEnded if std::mem::replace(&mut self.guest_has_ended, true) => {
                bail!("protocol error from the VM's process: its guest ends twice")
            }
            VmEvent::GuestEnded => {
                client.queue(container, Event::GuestEnded, vec![]).context("can't send to the client")?;
            }
            VmEvent::Snapshot { written: false } => bail!("the snapshot can't be written"),
            VmEvent::Snapshot { written: true } => match &mut self.guest {
                Some(guest) => guest.on_snapshot()?,
                None => bail!("protocol error from the VM's process: a snapshot that nobody has asked for"),
            },
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
            // Whatever it sends: it may not keep us by sending without end.
            if Instant::now() >= deadline {
                if killed {
                    return;
                }
                self.vm.kill();
                (killed, deadline) = (true, Instant::now() + KILL_GRACE);
            }
            match poll::wait([Source::readable(&self.events)], Some(deadline)) {
                Ok([ready]) if ready.readable => match self.events.read() {
                    Ok(VmEvent::GuestEnded | VmEvent::Snapshot { .. }) => {}
                    Ok(VmEvent::Report) | Err(_) => return,
                },
                Ok(_) => {}
                Err(error) => {
                    log::debug!("can't wait for the VM's end: {error}");
                    return self.vm.kill();
                }
            }
        }
    }
}
