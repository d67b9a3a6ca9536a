//! `bothy run`: a command of an image, in a virtual machine of its own.
//!
//! ```text
//! image      IMAGE -> a file system in the store, leased
//! workload   the image's defaults and the flags -> arguments, environment, directory, user
//! security   the flags -> what the container and its processes may do
//! place      a directory for sockets, named after the container
//! session    hello, set-up, run; signals; the end
//! streams    the command's standard streams, carried by threads
//! ```
//!
//! Nothing particular to one run is on the kernel's command line or in the initramfs: all of it goes to the agent once it has said hello. What is written
//! in the container is gone with it, so nothing has to be flushed when its command has ended: the virtual machine is ended at once.

mod environment;
pub(super) mod image;
mod place;
mod security;
mod session;
mod streams;
mod workload;

use std::io::{self, IsTerminal};
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use bothy_guest::protocol::{ContainerSetup, Machine, WindowSize};
use bothy_guest::spec::Rights;

pub(super) use self::place::{Place, base as runtime_dir};
use self::session::{Finished, Job, Session};
use self::workload::Workload;
use super::{say, say_timing};
use crate::agent::Agent;
use crate::cli::{Network, RunArgs, TimingFormat};
use crate::config::VmConfig;
use crate::image::rootfs::Limits;
use crate::image::{Image, LoadOptions, Naming, PullOptions};
use crate::launch;
use crate::launch::container::{ContainerVm, Parts};
use crate::random;
use crate::report::timing::Timing;
use crate::sys::signals::Signals;
use crate::sys::terminal::{self, RawTerminal};
use crate::timeline::{self, Mark, Timeline};
use crate::virtio::net;
use crate::vmm::AtEnd;
use crate::vmm::process::VmProcess;

/// The size of a terminal that doesn't tell its own.
const USUAL_SIZE: WindowSize = WindowSize { rows: 24, columns: 80 };
/// What runs a container's virtual machine.
pub(super) trait Hypervisor {
    /// Listens for the agent, and opens the machine's taps, whose names `config` then has.
    fn listen(&mut self, config: &mut VmConfig, place: &Place) -> anyhow::Result<Agent>;

    /// Starts the machine. What its process opens by path stays open as long as this value.
    fn start(
        &mut self,
        vm: &ContainerVm<'_>,
        config: &VmConfig,
        parts: Parts,
        place: &Place,
        timeline: Timeline,
    ) -> anyhow::Result<VmProcess>;
}

/// bothy.
#[derive(Default)]
pub(super) struct Own {
    taps: Vec<net::Tap>,
}

impl Hypervisor for Own {
    fn listen(&mut self, config: &mut VmConfig, place: &Place) -> anyhow::Result<Agent> {
        let agent = Agent::listen(&place.vsock()).context("can't listen for the guest's agent")?;
        self.taps = launch::taps(&mut config.net)?;
        Ok(agent)
    }

    fn start(
        &mut self,
        vm: &ContainerVm<'_>,
        config: &VmConfig,
        parts: Parts,
        place: &Place,
        timeline: Timeline,
    ) -> anyhow::Result<VmProcess> {
        let own = place.share().context("can't share a lock")?;
        let at_end = AtEnd { descriptors: own.descriptors().into(), act: Box::new(move || own.remove()) };
        let resources = vm.resources(config, parts, std::mem::take(&mut self.taps), at_end)?;
        VmProcess::spawn(config, resources, timeline).context("can't start the VM's process")
    }
}

/// Runs the command and gives its exit code. Every error is bothy's own.
pub(super) fn run(args: &RunArgs, exec_ns: u64, hypervisor: &mut dyn Hypervisor) -> anyhow::Result<u8> {
    let timeline = Timeline::default();
    timeline.record_at(Mark::Exec, exec_ns);
    if args.interactive && args.tty && !io::stdin().is_terminal() {
        bail!("-t with -i needs a terminal as standard input: leave out one of them");
    }
    let (image, command) = args.words.split_first().context("IMAGE is missing")?;
    let load =
        LoadOptions { naming: Naming::Source, platform: args.platform.clone(), limits: Limits::default() };
    let options = PullOptions { policy: args.pull, insecure: args.insecure_registry, load };
    let (Image { config: image, .. }, lease) = image::find(image, &options)?;
    let id = random::name::<6>().context("can't get random numbers")?;
    let host_name = args.hostname.as_ref().unwrap_or(&id);
    check_host_name(host_name)?;
    let workload = Workload::new(&image, args, command, host_name)?;
    let rights = security::rights(args)?;
    let place = Place::make(args.name.as_deref().unwrap_or(&id))?;
    let vm = ContainerVm {
        kernel: args.kernel.as_deref(),
        cpus: args.cpus,
        memory: args.memory,
        nets: match &args.net {
            Network::None => &[],
            Network::Tap(net) => std::slice::from_ref(net),
        },
        balloon: args.balloon,
        transport: args.transport,
        scratch: args.scratch,
        lend: args.lend.as_deref(),
        from: args.from.as_deref(),
        snapshot: args.snapshot.as_deref(),
        count: args.timing.is_some(),
    };
    let mut config = vm.config(&lease, place.vsock());
    config.validate(launch::host_memory_mib())?;
    let parts = Parts::open(&vm, lease)?;
    launch::must_run_linux("")?;
    let mut agent = hypervisor.listen(&mut config, &place)?;
    let job = job(args, workload, rights, host_name, &config, &mut agent)?;
    let signals = Signals::all().context("can't take signals")?;
    let vm = hypervisor.start(&vm, &config, parts, &place, timeline)?;
    let raw = match args.tty && args.interactive {
        true => RawTerminal::enter().context("can't make the terminal raw")?,
        false => None,
    };
    let session = Session::new(vm, agent, signals, job, args.agent_timeout, args.snapshot.is_some())?;
    let finished = session.attend();
    drop(raw);
    drop(place);
    let finished = finished?;
    report(&finished, args.timing);
    Ok(finished.code)
}

/// What the agent is to be told.
fn job(
    args: &RunArgs,
    workload: Workload,
    rights: Rights,
    host_name: &str,
    config: &VmConfig,
    agent: &mut Agent,
) -> anyhow::Result<Job> {
    let random = "can't get random numbers";
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let machine = Machine {
        time_ns: u64::try_from(now.as_nanos()).unwrap_or_default(),
        seed: random::bytes().context(random)?,
        networks: config.net.iter().map(|net| launch::network(net).to_string()).collect(),
    };
    let container = ContainerSetup {
        root: launch::container::root(config, args.read_only),
        spec: security::container(args, host_name),
    };
    let size = args.tty.then(|| terminal::size().unwrap_or(USUAL_SIZE));
    Job::new(machine, container, workload, rights, args.interactive, size, || agent.token().context(random))
}

fn report(finished: &Finished, timing: Option<TimingFormat>) {
    if let Some(message) = &finished.message {
        say(&format!("bothy: {message}"));
    }
    if let Some(format) = timing {
        let now = timeline::now_ns();
        let counts = finished.counts.as_deref();
        say_timing(&Timing::of_run(&finished.times, &finished.moments, now, counts), format);
    }
}

/// What the kernel, and whoever reads /etc/hosts, takes.
fn check_host_name(name: &str) -> anyhow::Result<()> {
    let fits = (1..=63).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
        && !name.starts_with(['-', '.']);
    if fits {
        Ok(())
    } else {
        bail!("--hostname: {name:?} is not a host name of up to 63 letters, digits, - and .")
    }
}
