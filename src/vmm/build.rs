//! The one recipe by which a VM is assembled, from plain configuration and open files.

use std::fs::File;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;

use bothy_guest::protocol::WindowSize;
use kvm_bindings::CpuId;
use thiserror::Error;
use vmm_sys_util::eventfd::EventFd;

use super::event_loop::Wakeups;
use super::kvm_routes::{DoorbellQueue, KvmRoutes};
use super::{Backends, Kernel, Origin, Resources, Vmm, state};
use crate::boot::acpi::{self, VirtioSlot};
use crate::boot::{self, BootError, Protocol};
use crate::bus::{Bus, BusError};
use crate::config::{Balloon, Console, Transport, VmConfig};
use crate::devices::acpi::{AcpiRegisters, Events};
use crate::devices::ioapic::Ioapic;
use crate::devices::ports::{I8042Reset, Pvpanic, TimingPort};
use crate::devices::serial::Serial;
use crate::kvm::{self, KvmError};
use crate::memory::{self, GuestMemory, MemoryError, layout};
use crate::outcome::End;
use crate::snapshot::{self, SnapshotError};
use crate::thread::Spawner;
use crate::timeline::{Mark, Timeline};
use crate::vcpu::{self, Entry, Machine, Vcpu, VcpuError};
use crate::virtio::core::device::VirtioDevice;
use crate::virtio::core::mmio::MmioTransport;
use crate::virtio::core::pci;
use crate::virtio::core::state::StateError;
use crate::virtio::core::transport::Attached;
use crate::virtio::{balloon, blk, console, net, rng, vsock};

/// Why a VM can't be assembled.
#[derive(Debug, Error)]
pub enum BuildError {
    /// KVM refused.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// No memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Kernel or initramfs can't be loaded.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// A vCPU can't be made.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    /// The snapshot can't be read.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// A device's state isn't one of this VM's.
    #[error(transparent)]
    State(#[from] StateError),
    /// The snapshot is of another VM.
    #[error("the snapshot is of another kind of VM: {0}")]
    Foreign(String),
    /// Two devices on one address. A bug of ours.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// More vCPUs than this host's KVM has.
    #[error("--cpus: {wanted} is more than the {max} vCPUs that this host's KVM supports")]
    TooManyVcpus {
        /// What was asked for.
        wanted: u8,
        /// The limit.
        max: usize,
    },
    /// An eventfd, a thread or a socket can't be had.
    #[error("can't make {what}")]
    Io {
        /// What was to be made.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
}

fn io(what: &'static str) -> impl Fn(io::Error) -> BuildError {
    move |source| BuildError::Io { what, source }
}

/// Assembles a VM; nothing of the guest has run yet when it returns. `console` is the command's end
/// of the console.
pub(super) fn build(
    config: &VmConfig,
    resources: Resources,
    console: Option<UnixStream>,
    timeline: Arc<Timeline>,
) -> Result<Vmm, BuildError> {
    let Resources { kvm, origin, snapshot, backends, .. } = resources;
    let wakeups = Wakeups::new().map_err(io("an eventfd"))?;
    let end = Arc::new(End::new(wakeups.end_evt.try_clone().map_err(io("an eventfd"))?));
    let spawner = Spawner::default();
    let cpuid = CpuidQuery::start(&kvm, &spawner)?;
    let vm = Arc::new(kvm::open_vm(kvm::system(kvm))?);
    check_vcpus(&vm, config.cpus())?;
    timeline.record(Mark::KvmReady);

    let base = Base { vm, end, timeline, spawner, wakeups };
    let (platform, vcpus) = match origin {
        Origin::Kernel(kernel) => boot(config, base, cpuid, backends, &kernel)?,
        Origin::Snapshot(file) => resume(config, base, cpuid, backends, &file)?,
    };
    let (ports, mmio) = (Arc::new(platform.buses.ports), Arc::new(platform.buses.mmio));
    let Base { vm, end, timeline, spawner, wakeups } = platform.base;
    Ok(Vmm {
        vm,
        mem: platform.mem,
        machine: Machine { ports, mmio, end, gate: Arc::default(), timeline },
        vcpus,
        devices: platform.virtio,
        ioapic: platform.ioapic,
        shape: state::Shape::of(config),
        snapshot,
        has_disks: !config.disk.is_empty(),
        events: platform.events,
        serial: platform.serial,
        port: platform.port,
        balloon: platform.balloon,
        console,
        doorbells: platform.doorbells,
        wakeups,
        spawner,
    })
}

/// The guest begins at its kernel's entry.
fn boot(
    config: &VmConfig,
    base: Base,
    cpuid: CpuidQuery,
    backends: Backends,
    origin: &Kernel,
) -> Result<(Platform, Vec<Vcpu>), BuildError> {
    let mem = memory::create(config.memory_mib(), config.backing())?;
    let platform = Platform::assemble(config, base, mem, backends)?;
    let start = boot::load(&boot::Request {
        mem: &platform.mem,
        memory_mib: config.memory_mib(),
        kernel: &origin.kernel,
        initrd: origin.initrd.as_ref(),
        cmdline: &origin.cmdline,
        platform: &acpi::Platform {
            cpus: config.cpus(),
            serial: platform.serial.is_some(),
            virtio: platform.slots.clone(),
            pci: config.transport() == Transport::Pci,
        },
    })?;
    platform.base.timeline.record(Mark::KernelLoaded);
    let entry = match start.protocol {
        Protocol::Pvh => Entry::Pvh { rip: start.rip },
        Protocol::Linux64 => Entry::Linux64 { rip: start.rip },
    };
    let supported = cpuid.finish()?;
    let vcpus = vcpu::create_all(&platform.base.vm, &supported, &platform.mem, config.cpus(), entry)?;
    Ok((platform, vcpus))
}

/// The guest goes on where another VM was.
fn resume(
    config: &VmConfig,
    base: Base,
    cpuid: CpuidQuery,
    backends: Backends,
    file: &File,
) -> Result<(Platform, Vec<Vcpu>), BuildError> {
    let (state, part) = snapshot::read::<state::State>(file)?;
    check_shape(config, &state, part.len)?;
    let mem = memory::image::map(config.memory_mib(), file, part.offset)?;
    acpi::renew_generation(&mem)?;
    let platform = Platform::assemble(config, base, mem, backends)?;
    platform.ioapic.restore(state.ioapic).map_err(BuildError::Foreign)?;
    if state.devices.len() != platform.virtio.len() {
        let (wanted, own) = (state.devices.len(), platform.virtio.len());
        return Err(BuildError::Foreign(format!("{wanted} virtio devices, where this VM has {own}")));
    }
    for (device, state) in platform.virtio.iter().zip(&state.devices) {
        device.restore(state)?;
    }
    platform.base.timeline.record(Mark::KernelLoaded);
    let supported = cpuid.finish()?;
    // Close to the time stamps, which the guest compares it with.
    platform.base.vm.set_clock(&state.clock)?;
    let vcpus = vcpu::restore_all(&platform.base.vm, &supported, &state.vcpus)?;
    // What raises interrupts comes when there is somebody to hear them.
    if let (Some(serial), Some(state)) = (&platform.serial, state.serial) {
        serial.restore(state).map_err(BuildError::Foreign)?;
    }
    platform.events.renew(state.events);
    Ok((platform, vcpus))
}

/// A VM without memory, and what all of its parts use.
struct Base {
    vm: Arc<kvm::Vm>,
    end: Arc<End>,
    timeline: Arc<Timeline>,
    spawner: Spawner,
    wakeups: Wakeups,
}

/// Everything of a VM but its vCPUs and what is in its memory: the same whether a guest begins or
/// goes on.
struct Platform {
    base: Base,
    mem: Arc<GuestMemory>,
    buses: Buses,
    ioapic: Arc<Ioapic>,
    events: Arc<Events>,
    serial: Option<Arc<Serial>>,
    port: Option<Arc<console::Port>>,
    balloon: Option<balloon::Handle>,
    doorbells: Arc<DoorbellQueue>,
    virtio: Plugged,
    /// What the guest has to be told of `virtio`.
    slots: Vec<VirtioSlot>,
}

impl Platform {
    fn assemble(
        config: &VmConfig,
        base: Base,
        mem: GuestMemory,
        backends: Backends,
    ) -> Result<Self, BuildError> {
        let Base { vm, wakeups, spawner, .. } = &base;
        let mem = Arc::new(mem);
        vm.add_memory(&mem)?;
        base.timeline.record(Mark::MemoryReady);

        let mut buses = Buses::default();
        let routes = Arc::new(KvmRoutes::new(vm.clone()));
        let ioapic = Arc::new(Ioapic::new(routes.clone()));
        buses.mmio.insert(layout::IOAPIC_GPA, layout::IOAPIC_LEN, ioapic.clone())?;
        let events = plug_platform(&mut buses, &ioapic, &base.end, &base.timeline)?;
        let serial = match config.console() {
            Console::Serial | Console::Virtio => Some(plug_serial(&mut buses, &ioapic, wakeups)?),
            Console::None => None,
        };

        let doorbell_evt = wakeups.doorbell_evt.try_clone().map_err(io("an eventfd"))?;
        let doorbells = Arc::new(DoorbellQueue::new(doorbell_evt));
        let console_size = backends.console_size;
        let mut devices = virtio_devices(config, backends, spawner)?;
        let port = plug_console(config, console_size, &mut devices, wakeups, spawner)?;
        let balloon = plug_balloon(config, &mut devices, spawner)?;
        let mut sockets =
            Sockets { buses: &mut buses, ioapic: &ioapic, routes: &routes, mem: &mem, doorbells: &doorbells };
        let (slots, virtio) = match config.transport() {
            Transport::Mmio => sockets.plug_mmio(devices)?,
            Transport::Pci => (Vec::new(), sockets.plug_pci(devices)?),
        };
        Ok(Self { base, mem, buses, ioapic, events, serial, port, balloon, doorbells, virtio, slots })
    }
}

/// Asks for KVM's CPUID on a thread of its own while the VM is made. KVM executes CPUID for every
/// leaf, and where the host is a virtual machine itself each of those is an exit: together a tenth
/// of the way to the first instruction.
struct CpuidQuery(JoinHandle<Result<CpuId, KvmError>>);

impl CpuidQuery {
    fn start(kvm: &File, spawner: &Spawner) -> Result<Self, BuildError> {
        let kvm = kvm.try_clone().map_err(io("a copy of /dev/kvm"))?;
        let thread = spawner.spawn("cpuid", || kvm::supported_cpuid(&kvm::system(kvm)));
        Ok(Self(thread.map_err(io("a thread"))?))
    }

    fn finish(self) -> Result<CpuId, KvmError> {
        self.0.join().expect("a panic in a thread ends the process")
    }
}

/// What a guest that goes on could tell.
fn check_shape(config: &VmConfig, state: &state::State, memory_len: u64) -> Result<(), BuildError> {
    if let Some(difference) = state.shape.difference(&state::Shape::of(config)) {
        return Err(BuildError::Foreign(difference));
    }
    if memory_len != config.memory_mib() << 20 || state.vcpus.len() != usize::from(config.cpus()) {
        return Err(BuildError::Foreign("its memory or its vCPUs are not what it says".to_owned()));
    }
    Ok(())
}

fn check_vcpus(vm: &kvm::Vm, wanted: u8) -> Result<(), BuildError> {
    let max = vm.max_vcpus();
    if usize::from(wanted) > max { Err(BuildError::TooManyVcpus { wanted, max }) } else { Ok(()) }
}

#[derive(Default)]
struct Buses {
    ports: Bus,
    mmio: Bus,
}

fn plug_platform(
    buses: &mut Buses,
    ioapic: &Ioapic,
    end: &Arc<End>,
    timeline: &Arc<Timeline>,
) -> Result<Arc<Events>, BuildError> {
    let interrupt = ioapic.wire(layout::ACPI_GED_GSI).map_err(io("an eventfd"))?;
    let events = Arc::new(Events::new(interrupt));
    let registers = AcpiRegisters::new(end.clone(), events.clone());
    let ports = &mut buses.ports;
    ports.insert(layout::ACPI_PORT.into(), layout::ACPI_PORT_LEN.into(), Arc::new(registers))?;
    ports.insert(layout::PVPANIC_PORT.into(), 1, Arc::new(Pvpanic::new(end.clone())))?;
    ports.insert(layout::I8042_PORT.into(), 1, Arc::new(I8042Reset::new(end.clone())))?;
    ports.insert(layout::TIMING_PORT.into(), 1, Arc::new(TimingPort::new(timeline.clone())))?;
    Ok(events)
}

fn plug_serial(buses: &mut Buses, ioapic: &Ioapic, wakeups: &Wakeups) -> Result<Arc<Serial>, BuildError> {
    let interrupt = ioapic.wire(layout::SERIAL_GSI).map_err(io("an eventfd"))?;
    let serial = Arc::new(Serial::new(interrupt, wakeups.console_evt.try_clone().map_err(io("an eventfd"))?));
    buses.ports.insert(layout::SERIAL_PORT.into(), layout::SERIAL_LEN.into(), serial.clone())?;
    Ok(serial)
}

/// Devices in the order in which the guest finds them: disks, network, entropy, vsock.
fn virtio_devices(
    config: &VmConfig,
    backends: Backends,
    spawner: &Spawner,
) -> Result<Vec<Box<dyn VirtioDevice>>, BuildError> {
    let mut devices: Vec<Box<dyn VirtioDevice>> = Vec::new();
    for (index, (config, disk)) in config.disk.iter().zip(backends.disks).enumerate() {
        let device =
            blk::Block::new(config, disk, &format!("blk{index}"), spawner).map_err(io("a disk's thread"))?;
        devices.push(Box::new(device));
    }
    for (index, (config, tap)) in config.net.iter().zip(backends.nets).enumerate() {
        let device =
            net::Net::new(config, tap, &format!("net{index}"), spawner).map_err(io("a network thread"))?;
        devices.push(Box::new(device));
    }
    devices.push(Box::new(rng::Rng::new("rng0", spawner).map_err(io("the entropy thread"))?));
    if let (Some(config), Some(listener)) = (&config.vsock, backends.vsock) {
        let device =
            vsock::Vsock::new(config, listener, "vsock0", spawner).map_err(io("the vsock thread"))?;
        devices.push(Box::new(device));
    }
    Ok(devices)
}

fn plug_console(
    config: &VmConfig,
    size: Option<WindowSize>,
    devices: &mut Vec<Box<dyn VirtioDevice>>,
    wakeups: &Wakeups,
    spawner: &Spawner,
) -> Result<Option<Arc<console::Port>>, BuildError> {
    if config.console() != Console::Virtio {
        return Ok(None);
    }
    let host_evt = wakeups.console_evt.try_clone().map_err(io("an eventfd"))?;
    let console = console::Console::new("console0", size, host_evt, spawner);
    let console = console.map_err(io("the console's thread"))?;
    let port = console.port();
    devices.push(Box::new(console));
    Ok(Some(port))
}

/// The last of the virtio devices, so that what the guest needs first is found first.
fn plug_balloon(
    config: &VmConfig,
    devices: &mut Vec<Box<dyn VirtioDevice>>,
    spawner: &Spawner,
) -> Result<Option<balloon::Handle>, BuildError> {
    if config.balloon() == Balloon::Off {
        return Ok(None);
    }
    let balloon = balloon::Balloon::new("balloon0", spawner).map_err(io("the balloon's thread"))?;
    let handle = balloon.handle();
    devices.push(Box::new(balloon));
    Ok(Some(handle))
}

/// Where devices are plugged in.
struct Sockets<'a> {
    buses: &'a mut Buses,
    ioapic: &'a Ioapic,
    routes: &'a Arc<KvmRoutes>,
    mem: &'a Arc<GuestMemory>,
    doorbells: &'a Arc<DoorbellQueue>,
}

impl Sockets<'_> {
    /// Each a page of registers and a line of the IOAPIC. Returns as well what the guest has to be
    /// told of them.
    fn plug_mmio(
        &mut self,
        devices: Vec<Box<dyn VirtioDevice>>,
    ) -> Result<(Vec<VirtioSlot>, Plugged), BuildError> {
        let places =
            (0u64..).map(|n| layout::VIRTIO_MMIO_GPA + n * layout::VIRTIO_MMIO_LEN).zip(layout::VIRTIO_GSIS);
        let (mut slots, mut plugged): (_, Plugged) = (Vec::new(), Vec::new());
        for (device, (gpa, gsi)) in devices.into_iter().zip(places) {
            let evt: Arc<EventFd> = Arc::new(self.ioapic.wire(gsi).map_err(io("an eventfd"))?);
            let transport = MmioTransport::new(device, gpa, self.mem.clone(), &evt, self.doorbells.clone());
            let transport = Arc::new(transport.map_err(io("a virtio device"))?);
            self.buses.mmio.insert(gpa, layout::VIRTIO_MMIO_LEN, transport.clone())?;
            slots.push(VirtioSlot { gpa, gsi });
            plugged.push(transport);
        }
        Ok((slots, plugged))
    }

    /// Each the only function of its device on the PCI bus, in order; the guest finds them by
    /// itself.
    fn plug_pci(&mut self, devices: Vec<Box<dyn VirtioDevice>>) -> Result<Plugged, BuildError> {
        let mut plugged: Plugged = Vec::new();
        for (device, n) in devices.into_iter().zip(0..layout::PCI_DEVICES) {
            let bar_gpa = layout::PCI_WINDOW_GPA + n * layout::PCI_BAR_STRIDE;
            let config_gpa = layout::PCI_ECAM_GPA + n * layout::PCI_ECAM_STRIDE;
            let (routes, doorbells) = (self.routes.clone(), self.doorbells.clone());
            let function = pci::Function::new(device, bar_gpa, self.mem.clone(), routes, doorbells);
            let function = function.map_err(io("a virtio device"))?;
            self.buses.mmio.insert(bar_gpa, pci::BAR_LEN, function.clone())?;
            self.buses.mmio.insert(config_gpa, pci::CONFIG_LEN, Arc::new(function.config_space()))?;
            plugged.push(function);
        }
        Ok(plugged)
    }
}

/// Devices that were plugged in.
type Plugged = Vec<Arc<dyn Attached>>;
