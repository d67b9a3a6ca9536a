//! `bothy run`: a command of an image, in a virtual machine of its own.
//!
//! ```text
//! image      IMAGE -> a file system in the store, leased
//! workload   the image's defaults and the flags -> arguments, environment, directory, user
//! security   the flags -> what the container and its processes may do
//! ```
//!
//! What comes of them is a request to the monitor ([`crate::container`]), and a session that is
//! attached to the command.
//!
//! Nothing particular to one run is on the kernel's command line or in the initramfs: all of it
//! goes to the agent once it has said hello. What is written in the container is gone with it, so
//! nothing has to be flushed when its command has ended: the virtual machine is ended at once.

mod environment;
pub(super) mod image;
mod security;
mod workload;

use std::io::{self, IsTerminal};
use std::path::Path;

use anyhow::{Context, anyhow, bail};
use bothy_guest::protocol::WindowSize;

use super::{Failure, launch, say, say_timing};
use crate::cli::{Network, RunArgs, TimingFormat};
use crate::container::client::Unlaunched;
use crate::container::protocol::{ContainerLaunch, Stdio, Vm};
use crate::container::session::{self, Finished, Job};
use crate::container::state_dir::runtime_dir;
use crate::guest_files::dir_variable;
use crate::image::rootfs::Limits;
use crate::image::{Image, LoadOptions, Naming, PullOptions};
use crate::launch::container::ContainerVm;
use crate::launch::scratch_dir;
use crate::random;
use crate::report::timing::Timing;
use crate::sys::signals::Signals;
use crate::sys::terminal::{self, RawTerminal};
use crate::timeline;

/// The size of a terminal that doesn't tell its own.
const USUAL_SIZE: WindowSize = WindowSize { rows: 24, columns: 80 };

/// Runs the command and gives its exit code. Every error is bothy's own.
pub(super) fn run(args: &RunArgs, exec_ns: u64, monitor: Unlaunched) -> Result<u8, Failure> {
    if args.interactive && args.tty && !io::stdin().is_terminal() {
        return Err(anyhow!("-t with -i needs a terminal as standard input: leave out one of them").into());
    }
    let (image, command) = args.words.split_first().context("IMAGE is missing")?;
    let load =
        LoadOptions { naming: Naming::Source, platform: args.platform.clone(), limits: Limits::default() };
    let options = PullOptions { policy: args.pull, insecure: args.insecure_registry, load };
    let (Image { config: image, .. }, lease) = image::find(image, &options)?;
    let id = random::name::<6>().context("can't get random numbers")?;
    let host_name = args.hostname.as_ref().unwrap_or(&id);
    check_host_name(host_name)?;
    let name = args.name.clone().unwrap_or_else(|| id.clone());
    let job = Job {
        read_only: args.read_only,
        spec: security::container(args, host_name),
        program: workload::program(&image, args, command, host_name, security::rights(args)?)?,
        stdio: match args.tty {
            true => Stdio::Terminal { input: args.interactive, size: terminal::size().unwrap_or(USUAL_SIZE) },
            false => Stdio::Pipes { stdin: args.interactive },
        },
    };
    let vm = Vm::Container(Box::new(ContainerLaunch {
        name,
        base: runtime_dir(),
        vm: machine(args, lease.path()),
        agent_timeout: args.agent_timeout,
    }));
    let mut signals = Signals::all().context("can't take signals")?;
    let descriptors = vec![lease.into_fd()];
    let (client, early) = launch(monitor, id, exec_ns, vm, None, descriptors, &mut signals)?;
    let raw = match args.tty && args.interactive {
        true => RawTerminal::enter().context("can't make the terminal raw")?,
        false => None,
    };
    let finished = session::attach(client, job, signals, early);
    drop(raw);
    let finished = finished?;
    report(&finished, args.timing);
    Ok(finished.code)
}

/// The machine for this image's file system.
fn machine(args: &RunArgs, image: &Path) -> ContainerVm {
    ContainerVm {
        image: image.to_owned(),
        guest: dir_variable(),
        kernel: args.kernel.clone(),
        cpus: args.cpus,
        memory: args.memory,
        nets: match &args.net {
            Network::None => Vec::new(),
            Network::Tap(net) => vec![net.clone()],
        },
        balloon: args.balloon,
        transport: args.transport,
        scratch: args.scratch.map(|size| (size, scratch_dir())),
        lend: args.lend.clone(),
        from: args.from.clone(),
        snapshot: args.snapshot.clone(),
        count: args.timing.is_some(),
    }
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
