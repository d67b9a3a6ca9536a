//! `bothy run`: a command of an image, in a virtual machine of its own.
//!
//! ```text
//! image      IMAGE -> a file system in the store, leased
//! workload   the image's defaults and the flags -> arguments, environment, directory, user
//! security   the flags -> what the container and its processes may do
//! place      a directory for sockets, named after the container
//! scratch    a disk for what is written
//! qemu       QEMU in the place of bothy's own virtual machine
//! session    hello, set-up, run; signals; the end
//! streams    the command's standard streams, carried by threads
//! ```
//!
//! Nothing particular to one run is on the kernel's command line or in the initramfs: all of it goes to the agent once it has said hello. What is written
//! in the container is gone with it, so nothing has to be flushed when its command has ended: the virtual machine is ended at once.

mod environment;
pub(super) mod image;
mod place;
mod qemu;
mod scratch;
mod security;
mod session;
mod streams;
mod workload;

use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use bothy_guest::protocol::{Root, Setup, Upper, WindowSize};
use bothy_guest::spec::Rights;

use self::place::Place;
pub(super) use self::place::base as runtime_dir;
use self::qemu::Qemu;
use self::session::{Finished, Job, Session};
use self::workload::Workload;
use super::{machine, random_name, say};
use crate::agent::Agent;
use crate::boot::image::Blob;
use crate::cli::{Network, RunArgs, TimingFormat, Vmm};
use crate::config::{Console, VmConfig};
use crate::guest_files::GuestFiles;
use crate::image::rootfs::Limits;
use crate::image::{Image, ImageLease, LoadOptions, Naming, PullOptions, RunConfig};
use crate::random;
use crate::report::timing::Timing;
use crate::sys::signals::Signals;
use crate::sys::terminal::{self, RawTerminal};
use crate::timeline::{self, Mark, Timeline};
use crate::virtio::blk::Cache;
use crate::virtio::{blk, net, vsock};
use crate::vmm::process::VmProcess;
use crate::vmm::{AtEnd, Backends, Kernel, Origin, Resources};

/// The size of a terminal that doesn't tell its own.
const USUAL_SIZE: WindowSize = WindowSize { rows: 24, columns: 80 };
/// What the guest calls its disks, in their order. The image is the first.
const DEVICES: [&str; 3] = ["vda", "vdb", "vdc"];
/// The disk for what is written, and the one that is lent.
const SCRATCH: &str = "scratch";
const LENT: &str = "lent";

/// Runs the command and gives its exit code. Every error is bothy's own.
pub(super) fn run(args: &RunArgs, exec_ns: u64) -> anyhow::Result<u8> {
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
    let id = random_name::<6>().context("can't get random numbers")?;
    let host_name = args.hostname.as_ref().unwrap_or(&id);
    check_host_name(host_name)?;
    let workload = Workload::new(&image, args, command, host_name)?;
    let rights = security::rights(args)?;
    let place = Place::make(args.name.as_deref().unwrap_or(&id))?;
    let mut config = configuration(args, &lease, place.vsock());
    config.validate(machine::host_memory_mib())?;
    let parts = Parts::open(args, lease)?;
    machine::must_run_linux("")?;
    let (qemu, nets, mut agent) = match args.vmm {
        Vmm::Bothy => {
            let agent = Agent::listen(&place.vsock()).context("can't listen for the guest's agent")?;
            (None, machine::taps(&mut config.net)?, agent)
        }
        // It opens its taps itself, those that there are.
        Vmm::Qemu if config.net.iter().any(|net| net.backend == net::Backend::OwnTap) => {
            bail!("--net: tap=auto is not for QEMU")
        }
        Vmm::Qemu => Qemu::listen().map(|(qemu, agent)| (Some(qemu), Vec::new(), agent))?,
    };
    let job = job(args, workload, rights, host_name, &config, &mut agent)?;
    let signals = Signals::all().context("can't take signals")?;
    // What QEMU opens must stay open here.
    let (vm, _open) = match qemu {
        None => {
            let resources = resources(&config, args, &place, parts, nets)?;
            let vm = VmProcess::spawn(&config, resources, timeline);
            (vm.context("can't start the VM's process")?, None)
        }
        Some(qemu) => {
            let (vm, open) = qemu.start(&config, &parts)?;
            (vm, Some((open, parts)))
        }
    };
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

fn configuration(args: &RunArgs, lease: &ImageLease, socket: PathBuf) -> VmConfig {
    let image = blk::Config {
        path: lease.path().into(),
        read_only: true,
        id: Some("image".into()),
        ..Default::default()
    };
    // The path stands for a file that never has one.
    let scratch = blk::Config { path: SCRATCH.into(), id: Some(SCRATCH.into()), ..Default::default() };
    let scratch = args.scratch.map(|_| scratch);
    let lent = args.lend.as_ref().map(|path| blk::Config {
        path: path.clone(),
        read_only: true,
        id: Some(LENT.into()),
        ..Default::default()
    });
    VmConfig {
        kernel: args.kernel.clone(),
        cpus: Some(args.cpus),
        memory: Some(args.memory),
        console: Some(Console::None),
        disk: std::iter::once(image).chain(scratch).chain(lent).collect(),
        net: match &args.net {
            Network::None => Vec::new(),
            Network::Tap(net) => vec![net.clone()],
        },
        vsock: Some(vsock::Config { path: socket, cid: None }),
        balloon: args.balloon,
        transport: args.transport,
        ..VmConfig::default()
    }
}

/// The files that a virtual machine is made of, whoever runs it.
struct Parts {
    kernel: Blob,
    agent: Blob,
    disks: Vec<DiskFile>,
}

struct DiskFile {
    file: OwnedFd,
    read_only: bool,
}

impl Parts {
    fn open(args: &RunArgs, image: ImageLease) -> anyhow::Result<Self> {
        let guest = GuestFiles::find()?;
        let kernel = match &args.kernel {
            Some(path) => Blob::open(path).context("--kernel")?,
            None => guest.kernel,
        };
        let mut disks = vec![DiskFile { file: image.into_fd(), read_only: true }];
        if let Some(size) = args.scratch {
            let file = scratch::make(&guest.scratch, size)?.into();
            disks.push(DiskFile { file, read_only: false });
        }
        if let Some(path) = &args.lend {
            let file = Blob::open(path).context("--lend")?.file.into();
            disks.push(DiskFile { file, read_only: true });
        }
        Ok(Self { kernel, agent: guest.agent, disks })
    }
}

/// Opens everything else that the VM needs; afterwards only the VM itself can fail.
fn resources(
    config: &VmConfig,
    args: &RunArgs,
    place: &Place,
    parts: Parts,
    nets: Vec<net::Tap>,
) -> anyhow::Result<Resources> {
    let kernel = match &args.kernel {
        Some(_) => machine::given_kernel(parts.kernel)?,
        None => machine::own_kernel(parts.kernel)?,
    };
    let disks = parts.disks.into_iter().map(|disk| {
        // What is written goes with the VM: nobody misses it when the host crashes.
        let cache = if disk.read_only { Cache::Writeback } else { Cache::Unsafe };
        let mut disk = blk::Disk::from_fd(disk.file, disk.read_only, cache)?;
        disk.open_again();
        io::Result::Ok(disk)
    });
    let disks = disks.collect::<Result<_, _>>().context("can't use a disk")?;
    let kvm = machine::kvm()?;
    let listener = config.vsock.as_ref().map(vsock::Config::listen).transpose();
    let origin = match &args.from {
        Some(path) => {
            Origin::Snapshot(snapshot_at(path).with_context(|| format!("--from {}", path.display()))?)
        }
        None => Origin::Kernel(Kernel {
            kernel,
            initrd: Some(parts.agent),
            cmdline: format!("{} {}", machine::own_kernel_words(config.transport()), bothy_guest::KEY_AGENT),
        }),
    };
    let snapshot = args.snapshot.as_ref().map(|path| {
        // It has the guest's memory in it.
        let file = File::options().write(true).create_new(true).mode(0o600).open(path);
        file.with_context(|| format!("--snapshot {}", path.display()))
    });
    let own = place.share().context("can't share a lock")?;
    let at_end = AtEnd { descriptors: own.descriptors().into(), act: Box::new(move || own.remove()) };
    Ok(Resources {
        kvm,
        origin,
        snapshot: snapshot.transpose()?,
        backends: Backends {
            disks,
            nets,
            vsock: listener.context("can't listen for the guest")?,
            console_size: None,
        },
        at_end: Some(at_end),
        count: args.timing.is_some(),
    })
}

/// A snapshot that nobody else can have written: what it holds becomes the state of a process of the user's. (Another process of the same
/// user can write it, as it can do anything else that the user may.)
fn snapshot_at(path: &Path) -> anyhow::Result<File> {
    // Opened without waiting: a pipe is none.
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        bail!("it is not a file");
    }
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        bail!("it belongs to another user; make one of your own with --snapshot");
    }
    if metadata.mode() & 0o022 != 0 {
        bail!("its group or others can write it; chmod go-w it, if you trust what is in it");
    }
    Ok(file)
}

/// What the guest calls the disk of this serial number, if there is one.
fn device(config: &VmConfig, id: &str) -> Option<String> {
    let place = config.disk.iter().position(|disk| disk.id.as_deref() == Some(id))?;
    DEVICES.get(place).map(|name| (*name).to_owned())
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
    let setup = Setup {
        time_ns: u64::try_from(now.as_nanos()).unwrap_or_default(),
        seed: random::bytes().context(random)?,
        networks: config.net.iter().map(|net| machine::network(net).to_string()).collect(),
        root: Root {
            image: DEVICES[0].into(),
            upper: match device(config, SCRATCH) {
                Some(name) => Upper::Scratch(name),
                None if args.read_only => Upper::ReadOnly,
                None => Upper::Memory,
            },
            lent: device(config, LENT),
        },
        container: security::container(args, host_name),
    };
    let size = args.tty.then(|| terminal::size().unwrap_or(USUAL_SIZE));
    Job::new(setup, workload, rights, args.interactive, size, || agent.token().context(random))
}

fn report(finished: &Finished, timing: Option<TimingFormat>) {
    if let Some(message) = &finished.message {
        say(&format!("bothy: {message}"));
    }
    if let Some(format) = timing {
        let now = timeline::now_ns();
        let counts = finished.counts.as_deref();
        machine::say_timing(&Timing::of_run(&finished.times, &finished.moments, now, counts), format);
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_snapshot_that_others_can_write_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        std::fs::write(&path, "").unwrap();
        let with_mode = |mode| {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            snapshot_at(&path).map(drop).map_err(|error| error.to_string())
        };
        assert_eq!(with_mode(0o600), Ok(()));
        assert_eq!(with_mode(0o644), Ok(()));
        for mode in [0o620, 0o602, 0o666] {
            assert!(with_mode(mode).unwrap_err().contains("group or others can write it"), "{mode:o}");
        }
        assert!(snapshot_at(dir.path()).unwrap_err().to_string().contains("not a file"));
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&path, Some(1), None).unwrap();
            assert!(with_mode(0o600).unwrap_err().contains("another user"));
        }
    }
}
