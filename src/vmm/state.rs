//! A VM at rest: everything about it but its memory, as plain data; how one gets there, and how one
//! goes on from there.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;

use kvm_bindings::kvm_clock_data;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::Vmm;
use crate::config::{Balloon, Console, Transport, VmConfig};
use crate::devices::{ioapic, serial};
use crate::kvm::KvmError;
use crate::memory;
use crate::snapshot;
use crate::vcpu::{self, Running, VcpuError};
use crate::virtio::blk;
use crate::virtio::core::state as virtio;

/// Everything about a VM but its memory.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct State {
    /// What of its configuration a guest can tell, but for what the devices' states say.
    pub(super) shape: Shape,
    pub(super) vcpus: Vec<vcpu::State>,
    pub(super) clock: kvm_clock_data,
    pub(super) ioapic: ioapic::Registers,
    pub(super) serial: Option<serial::Port>,
    /// Of the Generic Event Device.
    pub(super) events: u32,
    /// In the order in which they are plugged in.
    pub(super) devices: Vec<virtio::State>,
}

/// What two VMs have to have in common, so that one can go on where the other was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Shape {
    memory_mib: u64,
    cpus: u8,
    console: Console,
    transport: Transport,
    balloon: Balloon,
    disks: Vec<Disk>,
}

/// A disk whose content, as far as the guest has it in its memory, must still be that.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Disk {
    id: Option<String>,
    /// The name of a file that is only read; one of an image says what is in it.
    content: Option<OsString>,
}

impl Shape {
    pub(super) fn of(config: &VmConfig) -> Self {
        let disk = |disk: &blk::Config| {
            let name = disk.path.file_name().filter(|_| disk.read_only);
            Disk { id: disk.id.clone(), content: name.map(OsStr::to_owned) }
        };
        Self {
            memory_mib: config.memory_mib(),
            cpus: config.cpus(),
            console: config.console(),
            transport: config.transport(),
            balloon: config.balloon(),
            disks: config.disk.iter().map(disk).collect(),
        }
    }
}

impl Shape {
    /// What this one, of a snapshot, has that the VM's own has not, for people.
    pub(super) fn difference(&self, own: &Self) -> Option<String> {
        let disks = |shape: &Self| {
            let name = |disk: &Disk| {
                let (id, content) = (disk.id.as_deref().unwrap_or("disk"), disk.content.as_deref());
                format!("{id} {}", content.map(OsStr::to_string_lossy).unwrap_or_default())
            };
            shape.disks.iter().map(name).collect::<Vec<_>>().join(", ")
        };
        let of = |shape: &Self| {
            [
                ("MiB of memory", shape.memory_mib.to_string()),
                ("vCPUs", shape.cpus.to_string()),
                ("its console", format!("{:?}", shape.console)),
                ("its transport", format!("{:?}", shape.transport)),
                ("its balloon", format!("{:?}", shape.balloon)),
                ("its disks", disks(shape)),
            ]
        };
        let pairs = of(self).into_iter().zip(of(own));
        let (there, here) = pairs.into_iter().find(|(there, here)| there != here)?;
        Some(format!("{}: {} there, {} here", there.0, there.1, here.1))
    }
}

/// Why a VM can't be brought to rest, or written.
#[derive(Debug, Error)]
pub(super) enum RestError {
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    #[error(transparent)]
    Kvm(#[from] KvmError),
    #[error("the VM ended meanwhile")]
    Ended,
    #[error("can't write the snapshot")]
    Write(#[from] io::Error),
}

impl Vmm {
    /// Brings the VM to rest, writes it to an empty file, and has it go on. Called on the VM's main
    /// thread.
    pub(super) fn write_to(&self, vcpus: &Running, file: &File) -> Result<(), RestError> {
        let states = vcpus.pause(&self.machine, self.vm.msrs()?);
        let written = match states {
            Ok(Some(states)) => self.write_at_rest(states, file),
            Ok(None) => Err(RestError::Ended),
            Err(error) => Err(error.into()),
        };
        // Whatever came of it, the guest goes on.
        self.machine.gate.open();
        written
    }

    fn write_at_rest(&self, vcpus: Vec<vcpu::State>, file: &File) -> Result<(), RestError> {
        // First, because the vCPUs' time stamps are from just now: the guest compares the two.
        let clock = self.vm.clock();
        let devices = self.devices.iter().map(|device| device.suspend()).collect();
        let state = clock.map(|clock| State {
            shape: self.shape.clone(),
            vcpus,
            clock,
            ioapic: self.ioapic.state(),
            serial: self.serial.as_ref().map(|serial| serial.state()),
            events: self.events.state(),
            devices,
        });
        let written = state.map_err(RestError::from).and_then(|state| {
            let len = self.mem.iter().map(|region| region.len()).sum();
            let memory = |offset| memory::image::write(&self.mem, file, offset).map(drop);
            Ok(snapshot::write(file, &state, len, memory)?)
        });
        for device in &self.devices {
            device.resume();
        }
        written
    }
}
