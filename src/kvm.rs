//! KVM: /dev/kvm, its capabilities, and the VM's irqchip, memory slots, irqfds, ioeventfds and
//! statistics.
//!
//! The interrupt controller is split: only the local APICs are in the kernel, the IOAPIC is a
//! device of ours. On the way to a guest's first instruction that is worth several milliseconds,
//! because the in-kernel PIC and IOAPIC sit on KVM's I/O bus, and every change to that bus (and
//! above all its tear-down) waits for an SRCU grace period. For the same reason nothing here
//! registers an ioeventfd before a queue goes live. There is no PIT: guests have the TSC deadline
//! timer and kvmclock.
//!
//! Owns the descriptors of /dev/kvm and the VM. Only `vmm` and `vcpu` name this module.

use std::fs::File;
use std::io;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::path::Path;
use std::sync::Arc;

use kvm_bindings::{
    CpuId, KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_X2APIC_API, KVM_IRQ_ROUTING_MSI, KVM_MAX_CPUID_ENTRIES,
    KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK, KVM_X2APIC_API_USE_32BIT_IDS, KvmIrqRouting, kvm_clock_data,
    kvm_enable_cap, kvm_irq_routing_entry, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, NoDatamatch, VcpuFd, VmFd};
use thiserror::Error;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use crate::bus::{Doorbell, MsiMessage};
use crate::memory::{GuestMemory, layout};

/// The KVM API version that has been the only one since 2007.
pub const API_VERSION: i32 = 12;
/// KVM_CAP_EXIT_ON_EMULATION_FAILURE, not yet in kvm-bindings: the failing instruction's bytes come
/// with the exit.
const CAP_EXIT_ON_EMULATION_FAILURE: u32 = 204;
/// KVM_CAP_BINARY_STATS_FD, not yet among kvm-ioctls' names.
const CAP_BINARY_STATS_FD: u32 = 203;

/// Why KVM can't be used.
#[derive(Debug, Error)]
pub enum KvmError {
    /// No /dev/kvm.
    #[error("this machine has no {path}: load the module kvm_intel or kvm_amd, and see `bothy doctor`")]
    Missing {
        /// The path that was tried.
        path: String,
    },
    /// No right to open it.
    #[error(
        "no right to open {path}: add yourself to its group (`sudo usermod -aG kvm $USER`, then log in again)"
    )]
    Denied {
        /// The path that was tried.
        path: String,
    },
    /// Any other reason.
    #[error("can't open {path}")]
    Open {
        /// The path that was tried.
        path: String,
        /// Why not.
        source: io::Error,
    },
    /// A kernel from before 2007, or no KVM at all.
    #[error("KVM has API version {0}, bothy needs {API_VERSION}")]
    ApiVersion(i32),
    /// A capability that bothy can't do without.
    #[error("this host's KVM lacks {name} ({why})")]
    Capability {
        /// Its name in the KVM API.
        name: &'static str,
        /// What needs it.
        why: &'static str,
    },
    /// An ioctl failed.
    #[error("{call} failed")]
    Ioctl {
        /// The ioctl's name.
        call: &'static str,
        /// Why.
        source: kvm_ioctls::Error,
    },
}

/// A capability that bothy asks for.
pub struct Capability {
    /// Its name in the KVM API.
    pub name: &'static str,
    /// Its number.
    number: u32,
    /// What needs it.
    pub why: &'static str,
    /// Whether there is no VM without it.
    pub required: bool,
}

/// All capabilities that bothy uses; `bothy doctor` lists them, [`open_vm`] checks the required
/// ones.
pub const CAPABILITIES: [Capability; 10] = [
    capability("KVM_CAP_USER_MEMORY", Cap::UserMemory as u32, "guest memory", true),
    capability(
        "KVM_CAP_SPLIT_IRQCHIP",
        KVM_CAP_SPLIT_IRQCHIP,
        "local APICs in the kernel, IOAPIC in bothy",
        true,
    ),
    capability("KVM_CAP_IRQFD", Cap::Irqfd as u32, "interrupts from device threads", true),
    capability("KVM_CAP_IRQ_ROUTING", Cap::IrqRouting as u32, "message-signalled interrupts", true),
    capability("KVM_CAP_IOEVENTFD", Cap::Ioeventfd as u32, "queue notifications without an exit", true),
    capability("KVM_CAP_EXT_CPUID", Cap::ExtCpuid as u32, "the guest's CPUID", true),
    capability("KVM_CAP_TSC_DEADLINE_TIMER", Cap::TscDeadlineTimer as u32, "the guest's timer", true),
    capability("KVM_CAP_X2APIC_API", KVM_CAP_X2APIC_API, "more than 8 bits of APIC id", false),
    capability("KVM_CAP_BINARY_STATS_FD", CAP_BINARY_STATS_FD, "exit counts in --timing", false),
    capability(
        "KVM_CAP_EXIT_ON_EMULATION_FAILURE",
        CAP_EXIT_ON_EMULATION_FAILURE,
        "telling why a guest died",
        false,
    ),
];

const fn capability(name: &'static str, number: u32, why: &'static str, required: bool) -> Capability {
    Capability { name, number, why, required }
}

impl Capability {
    /// Whether this host has it.
    pub fn present(&self, kvm: &Kvm) -> bool {
        kvm.check_extension_raw(self.number.into()) > 0
    }
}

/// Opens /dev/kvm (or another path, for tests). Called in the monitor's process.
pub fn open(path: &Path) -> Result<File, KvmError> {
    File::options().read(true).write(true).open(path).map_err(|source| {
        let path = path.display().to_string();
        match source.kind() {
            io::ErrorKind::NotFound => KvmError::Missing { path },
            io::ErrorKind::PermissionDenied => KvmError::Denied { path },
            _ => KvmError::Open { path, source },
        }
    })
}

/// Wraps what [`open`] opened.
pub fn system(file: File) -> Kvm {
    #[expect(unsafe_code, reason = "kvm-ioctls takes a descriptor only as a raw one")]
    // SAFETY: the descriptor is open and given up by `into_raw_fd`, so `Kvm` is its only owner.
    unsafe {
        Kvm::from_raw_fd(file.into_raw_fd())
    }
}

/// Whether the CPUs have hardware virtualization, from /proc/cpuinfo: `Some("vmx")`, `Some("svm")`
/// or `None`.
pub fn hardware_virtualization(cpuinfo: &str) -> Option<&'static str> {
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags"))?;
    ["vmx", "svm"].into_iter().find(|wanted| flags.split_whitespace().any(|flag| flag == *wanted))
}

/// Why this host's KVM is known not to run unmodified Linux, if it is: a KVM that works without
/// hardware virtualization (kvm_pvm) emulates kernel code, and an unmodified kernel's user space
/// dies at its first system call.
pub fn cannot_run_linux() -> Option<&'static str> {
    let hardware =
        std::fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| hardware_virtualization(&text).is_some());
    if Path::new("/sys/module/kvm_pvm").exists() && !hardware {
        Some("its KVM is the software module kvm_pvm, which does not run unmodified Linux")
    } else {
        None
    }
}

/// The CPUID leaves that this host's KVM can give a guest.
pub fn supported_cpuid(kvm: &Kvm) -> Result<CpuId, KvmError> {
    kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(ioctl("KVM_GET_SUPPORTED_CPUID"))
}

/// A virtual machine, as KVM knows it. It belongs to the process that made it.
pub struct Vm {
    fd: VmFd,
    kvm: Kvm,
}

/// Makes a VM with a split irqchip, after checking the API version and the required capabilities.
pub fn open_vm(kvm: Kvm) -> Result<Vm, KvmError> {
    let version = kvm.get_api_version();
    if version != API_VERSION {
        return Err(KvmError::ApiVersion(version));
    }
    if let Some(missing) = CAPABILITIES.iter().find(|cap| cap.required && !cap.present(&kvm)) {
        return Err(KvmError::Capability { name: missing.name, why: missing.why });
    }
    let fd = kvm.create_vm().map_err(ioctl("KVM_CREATE_VM"))?;
    let vm = Vm { fd, kvm };
    vm.enable(KVM_CAP_SPLIT_IRQCHIP, layout::IOAPIC_PINS.into()).map_err(ioctl("KVM_CAP_SPLIT_IRQCHIP"))?;
    vm.enable_if_present(
        KVM_CAP_X2APIC_API,
        (KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK).into(),
    );
    vm.enable_if_present(CAP_EXIT_ON_EMULATION_FAILURE, 1);
    // For real mode on Intel processors without unrestricted guests; elsewhere KVM accepts and
    // ignores them.
    vm.fd
        .set_identity_map_address(layout::KVM_IDENTITY_MAP_GPA)
        .map_err(ioctl("KVM_SET_IDENTITY_MAP_ADDR"))?;
    let tss = usize::try_from(layout::KVM_TSS_GPA).expect("an address below 4 GiB fits");
    vm.fd.set_tss_address(tss).map_err(ioctl("KVM_SET_TSS_ADDR"))?;
    Ok(vm)
}

fn ioctl(call: &'static str) -> impl Fn(kvm_ioctls::Error) -> KvmError {
    move |source| KvmError::Ioctl { call, source }
}

impl Vm {
    fn enable(&self, cap: u32, arg: u64) -> Result<(), kvm_ioctls::Error> {
        self.fd.enable_cap(&kvm_enable_cap { cap, args: [arg, 0, 0, 0], ..Default::default() })
    }

    fn enable_if_present(&self, cap: u32, arg: u64) {
        if let Err(error) = self.enable(cap, arg) {
            log::debug!("KVM capability {cap} not enabled: {error}");
        }
    }

    /// The most vCPUs that this host's KVM supports.
    pub fn max_vcpus(&self) -> usize {
        self.kvm.get_max_vcpus()
    }

    /// Makes each region of guest memory a memory slot.
    pub fn add_memory(&self, mem: &GuestMemory) -> Result<(), KvmError> {
        for (slot, region) in (0u32..).zip(mem.iter()) {
            let slot = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            #[expect(unsafe_code, reason = "KVM writes to the mapping behind Rust's back")]
            // SAFETY: the region is mapped for its whole length, and the VM's process keeps `mem`
            // until it exits; nobody holds references into it.
            unsafe { self.fd.set_user_memory_region(slot) }.map_err(ioctl("KVM_SET_USER_MEMORY_REGION"))?;
        }
        Ok(())
    }

    /// Makes vCPU number `id`, which is also its APIC id. Number 0 is the boot processor.
    pub fn create_vcpu(&self, id: u8) -> Result<VcpuFd, KvmError> {
        self.fd.create_vcpu(id.into()).map_err(ioctl("KVM_CREATE_VCPU"))
    }

    /// The guest's clock (kvmclock), as plain data.
    pub fn clock(&self) -> Result<kvm_clock_data, KvmError> {
        self.fd.get_clock().map_err(ioctl("KVM_GET_CLOCK"))
    }

    /// The guest's clock goes on from where another one stood: the time between is none for the
    /// guest.
    pub fn set_clock(&self, clock: &kvm_clock_data) -> Result<(), KvmError> {
        let clock = kvm_clock_data { clock: clock.clock, ..Default::default() };
        self.fd.set_clock(&clock).map_err(ioctl("KVM_SET_CLOCK"))
    }

    /// The numbers of all MSRs that are a part of a vCPU's state on this host.
    pub fn msrs(&self) -> Result<Arc<[u32]>, KvmError> {
        Ok(self.kvm.get_msr_index_list().map_err(ioctl("KVM_GET_MSR_INDEX_LIST"))?.as_slice().into())
    }

    /// Replaces the whole routing table: one MSI route for each `(gsi, message)`.
    pub fn set_msi_routes(&self, routes: &[(u32, MsiMessage)]) -> io::Result<()> {
        let entries: Vec<kvm_irq_routing_entry> =
            routes.iter().map(|(gsi, message)| msi_entry(*gsi, *message)).collect();
        let table =
            KvmIrqRouting::from_entries(&entries).map_err(|error| io::Error::other(format!("{error:?}")))?;
        Ok(self.fd.set_gsi_routing(&table)?)
    }

    /// From now on a write to `evt` raises `gsi`. A write that came before counts.
    pub fn add_irqfd(&self, evt: &EventFd, gsi: u32) -> io::Result<()> {
        Ok(self.fd.register_irqfd(evt, gsi)?)
    }

    /// Undoes [`Vm::add_irqfd`]; afterwards writes stay in `evt`.
    pub fn remove_irqfd(&self, evt: &EventFd, gsi: u32) -> io::Result<()> {
        Ok(self.fd.unregister_irqfd(evt, gsi)?)
    }

    /// From now on a guest's ringing of `bell` signals `evt` and causes no exit. This may wait for
    /// several milliseconds.
    pub fn add_ioeventfd(&self, evt: &EventFd, bell: Doorbell) -> io::Result<()> {
        let at = IoEventAddress::Mmio(bell.gpa);
        // Without a value there is no length either: on Intel such a write isn't even decoded.
        Ok(match bell.value {
            Some(value) => self.fd.register_ioevent(evt, &at, value),
            None => self.fd.register_ioevent(evt, &at, NoDatamatch),
        }?)
    }

    /// Undoes [`Vm::add_ioeventfd`].
    pub fn remove_ioeventfd(&self, evt: &EventFd, bell: Doorbell) -> io::Result<()> {
        let at = IoEventAddress::Mmio(bell.gpa);
        Ok(match bell.value {
            Some(value) => self.fd.unregister_ioevent(evt, &at, value),
            None => self.fd.unregister_ioevent(evt, &at, NoDatamatch),
        }?)
    }
}

fn msi_entry(gsi: u32, message: MsiMessage) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
    let [a0, a1, a2, a3, a4, a5, a6, a7] = message.address.to_le_bytes();
    entry.u.msi.address_lo = u32::from_le_bytes([a0, a1, a2, a3]);
    entry.u.msi.address_hi = u32::from_le_bytes([a4, a5, a6, a7]);
    entry.u.msi.data = message.data;
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_virtualization_is_read_from_the_flags_line_alone() {
        let text = "model name\t: a vmx machine\nflags\t\t: fpu svm sse2\n";
        assert_eq!(hardware_virtualization(text), Some("svm"));
        assert_eq!(hardware_virtualization("flags\t\t: fpu vmx\n"), Some("vmx"));
        assert_eq!(hardware_virtualization("flags\t\t: fpu vmxoff\n"), None);
        assert_eq!(hardware_virtualization("model name\t: svm\n"), None);
    }

    #[test]
    fn a_missing_and_a_foreign_kvm_device_are_told_apart() {
        let missing = open(Path::new("/nonexistent/kvm")).unwrap_err();
        assert!(matches!(missing, KvmError::Missing { .. }));
        let directory = open(Path::new("/")).unwrap_err();
        assert!(matches!(directory, KvmError::Open { .. }));
    }
}
