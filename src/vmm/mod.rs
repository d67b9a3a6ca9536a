//! A virtual machine: assembled by [`build`], run in a process of its own ([`process`]), served by
//! its main thread.
//!
//! The monitor opens files and forks; the child inherits the plain configuration and the open
//! descriptors, makes the VM (KVM ties a VM to the process that made it) and opens nothing by path.
//! They are connected by a socket pair ([`control`]); the console's bytes go directly between the
//! VM and the client. If the monitor dies, its end closes and the VM ends.

mod build;
pub mod control;
mod event_loop;
mod kvm_routes;
pub mod process;
mod state;

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bothy_guest::protocol::WindowSize;
pub use build::BuildError;

use crate::boot::image::{Blob, KernelImage};
use crate::devices::acpi::Events;
use crate::devices::ioapic::Ioapic;
use crate::devices::serial::Serial;
use crate::kvm::Vm;
use crate::memory::GuestMemory;
use crate::outcome::Outcome;
use crate::thread::Spawner;
use crate::timeline::Mark;
use crate::vcpu::{self, Machine, StatsFd, Vcpu, VcpuError};
use crate::virtio::core::transport::Attached;
use crate::virtio::{balloon, blk, console, net, vsock};
use control::{Counts, Exits, UserExits};
use event_loop::Wakeups;
use kvm_routes::DoorbellQueue;

/// Everything that the VM needs from outside, opened by the monitor.
pub struct Resources {
    /// /dev/kvm.
    pub kvm: File,
    /// Where the guest begins.
    pub origin: Origin,
    /// Where the VM is written to when that is asked for: an empty file.
    pub snapshot: Option<File>,
    /// What the devices are made on.
    pub backends: Backends,
    /// What stays open as long as the VM's process lives, such as a lock.
    pub held: Vec<OwnedFd>,
    /// Whether the report is to say what was counted.
    pub count: bool,
}

/// What devices are made on, in the order of their configurations.
#[derive(Default)]
pub struct Backends {
    /// Block devices.
    pub disks: Vec<blk::Disk>,
    /// Network devices.
    pub nets: Vec<net::Ports>,
    /// The vsock device's socket.
    pub vsock: Option<vsock::Listener>,
    /// The size of the terminal, if there is one: a virtio console has it.
    pub console_size: Option<WindowSize>,
}

/// Where a guest begins.
pub enum Origin {
    /// At its kernel's entry.
    Kernel(Kernel),
    /// Where another VM, of the same shape, was when it was written to this file.
    Snapshot(File),
}

/// What a guest boots from.
pub struct Kernel {
    /// The kernel itself.
    pub kernel: KernelImage,
    /// The initramfs.
    pub initrd: Option<Blob>,
    /// The kernel's whole command line.
    pub cmdline: String,
}

impl Origin {
    fn descriptors(&self) -> Vec<RawFd> {
        match self {
            Self::Kernel(Kernel { kernel, initrd, .. }) => {
                let blobs = initrd.iter().chain([&kernel.blob]);
                blobs.map(|blob| blob.file.as_raw_fd()).collect()
            }
            Self::Snapshot(file) => vec![file.as_raw_fd()],
        }
    }
}

impl Resources {
    /// Every descriptor in it.
    fn descriptors(&self) -> Vec<RawFd> {
        let mut fds = vec![self.kvm.as_raw_fd()];
        fds.extend(self.origin.descriptors());
        fds.extend(self.snapshot.iter().map(AsRawFd::as_raw_fd));
        fds.extend(self.held.iter().map(AsRawFd::as_raw_fd));
        fds.extend(self.backends.disks.iter().flat_map(blk::Disk::descriptors));
        fds.extend(self.backends.nets.iter().flat_map(net::Ports::descriptors));
        fds.extend(self.backends.vsock.iter().map(AsRawFd::as_raw_fd));
        fds
    }
}

/// An assembled VM.
struct Vmm {
    vm: Arc<Vm>,
    mem: Arc<GuestMemory>,
    machine: Machine,
    vcpus: Vec<Vcpu>,
    devices: Vec<Arc<dyn Attached>>,
    ioapic: Arc<Ioapic>,
    shape: state::Shape,
    snapshot: Option<File>,
    /// Whether stopping the devices may take long.
    has_disks: bool,
    events: Arc<Events>,
    serial: Option<Arc<Serial>>,
    port: Option<Arc<console::Port>>,
    balloon: Option<balloon::Handle>,
    console: Option<UnixStream>,
    doorbells: Arc<DoorbellQueue>,
    wakeups: Wakeups,
    spawner: Spawner,
}

/// The counters of running vCPUs, and of the balloon.
struct Counters {
    vcpus: Vec<(Arc<vcpu::UserExits>, Option<StatsFd>)>,
    balloon: Option<balloon::Handle>,
}

/// What must outlive the VM's report: letting go of it waits for the kernel, and nobody needs to
/// wait for that.
struct Remains {
    _vm: Arc<Vm>,
    _mem: Arc<GuestMemory>,
}

impl Vmm {
    /// Opens the counters that a report wants; called before the vCPUs start.
    fn counters(&self) -> Counters {
        let stats = |vcpu: &Vcpu| {
            vcpu.stats().inspect_err(|error| log::debug!("this host's KVM has no statistics: {error}")).ok()
        };
        let vcpus = self.vcpus.iter().map(|vcpu| (vcpu.exits(), stats(vcpu))).collect();
        Counters { vcpus, balloon: self.balloon.clone() }
    }

    /// Starts the vCPUs, serves them until the VM has ended, finishes requests in flight and lets
    /// go of disks and taps.
    fn run(mut self, control: &mut UnixStream) -> Result<(Outcome, Remains), VcpuError> {
        // Those that go on from a snapshot; others have nothing to go on with.
        for device in &self.devices {
            device.resume();
        }
        let vcpus = vcpu::start_all(std::mem::take(&mut self.vcpus), &self.machine, &self.spawner)?;
        let outcome = event_loop::run(&mut self, &vcpus, control).unwrap_or_else(|error| {
            Outcome::KvmError(format!("the VM's main thread can't wait for events: {error}"))
        });
        if self.has_disks && !matches!(outcome, Outcome::Quit | Outcome::Killed) {
            control::send_guest_ended(control);
        }
        // Whatever ended the VM, its vCPUs must see it.
        self.machine.end.report(outcome.clone());
        self.machine.timeline.record(Mark::Ended);
        vcpus.join();
        for device in &self.devices {
            device.stop();
        }
        // Everything else goes with `self`: the buses and devices with their files and threads.
        Ok((outcome, Remains { _vm: self.vm, _mem: self.mem }))
    }
}

impl Counters {
    fn sum(self) -> Counts {
        let mut exits = Exits::default();
        for (user, stats) in self.vcpus {
            let of = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
            exits.user = UserExits {
                port_io: exits.user.port_io + of(&user.port_io),
                mmio: exits.user.mmio + of(&user.mmio),
                interrupted: exits.user.interrupted + of(&user.interrupted),
                other: exits.user.other + of(&user.other),
            };
            let kvm = stats.and_then(|stats| stats.read().inspect_err(|error| log::debug!("{error}")).ok());
            for (name, value) in kvm.unwrap_or_default() {
                match exits.kvm.iter_mut().find(|(known, _)| *known == name) {
                    Some((_, sum)) => *sum += value,
                    None => exits.kvm.push((name, value)),
                }
            }
        }
        Counts { exits, memory: self.balloon.map(|balloon| balloon.figures()) }
    }
}
