//! vCPUs: setting one up, and the thread that runs it.
//!
//! A vCPU's thread (`vcpuN`) enters the guest, answers its port and MMIO accesses from the buses,
//! and leaves when the VM has ended. It owns the vCPU's descriptor. It never waits for anything but
//! the guest: devices that have work to do hand it to their own threads.

mod cpuid;
mod gate;
mod registers;
mod state;
mod stats;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use kvm_bindings::CpuId;
use kvm_ioctls::{VcpuExit, VcpuFd};
use thiserror::Error;
use vm_memory::GuestMemoryError;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

pub use gate::Gate;
pub use registers::Entry;
pub use state::State;
pub use stats::StatsFd;

use crate::bus::Bus;
use crate::kvm::{KvmError, Vm};
use crate::memory::GuestMemory;
use crate::outcome::{End, Outcome};
use crate::thread::Spawner;
use crate::timeline::{Mark, Timeline};

/// The most vCPUs of a VM.
pub const MAX_VCPUS: u8 = 64;

/// KVM_INTERNAL_ERROR_EMULATION: suberror of an instruction that KVM can't emulate.
const INTERNAL_ERROR_EMULATION: u32 = 1;
/// KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES.
const EMULATION_FLAG_BYTES: u64 = 1;

/// Why a vCPU can't be set up.
#[derive(Debug, Error)]
pub enum VcpuError {
    /// KVM refused to make it.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// An ioctl of the vCPU failed.
    #[error("{call} failed")]
    Ioctl {
        /// The ioctl's name.
        call: &'static str,
        /// Why.
        source: kvm_ioctls::Error,
    },
    /// Its tables don't fit into guest memory.
    #[error("can't write the boot processor's tables")]
    Memory(#[from] GuestMemoryError),
    /// The host's processors can do less than those that the vCPU's state comes from.
    #[error(
        "this host's processors, or its KVM, lack a feature that the guest has seen (CPUID leaf {leaf:#x})"
    )]
    Missing {
        /// Where the feature is.
        leaf: u32,
    },
    /// An MSR of a vCPU's state can't be set.
    #[error("this host's KVM refuses MSR {index:#x} with value {value:#x}")]
    Msr {
        /// Its number.
        index: u32,
        /// What it was to be.
        value: u64,
    },
    /// No thread for it.
    #[error("can't start the thread of vCPU {id}")]
    Thread {
        /// The vCPU's number.
        id: u8,
        /// Why not.
        source: io::Error,
    },
}

impl VcpuError {
    fn ioctl(call: &'static str) -> impl Fn(kvm_ioctls::Error) -> Self {
        move |source| Self::Ioctl { call, source }
    }
}

/// What all vCPUs of a VM share.
#[derive(Clone)]
pub struct Machine {
    /// Port I/O.
    pub ports: Arc<Bus>,
    /// Memory-mapped I/O.
    pub mmio: Arc<Bus>,
    /// Where an end is reported, and looked up.
    pub end: Arc<End>,
    /// Where vCPUs wait during a pause.
    pub gate: Arc<Gate>,
    /// Where the first instruction's time goes.
    pub timeline: Arc<Timeline>,
}

/// Exits that reached user space, by kind. One per vCPU: only its thread writes.
#[derive(Debug, Default)]
pub struct UserExits {
    /// IN, OUT, and their string forms.
    pub port_io: AtomicU64,
    /// Accesses to addresses without memory.
    pub mmio: AtomicU64,
    /// A signal, or a request to run again.
    pub interrupted: AtomicU64,
    /// Everything else.
    pub other: AtomicU64,
}

/// How an entry of the guest went.
enum Step {
    /// It wanted something, and has it.
    Served,
    /// It was left for no reason of its own.
    Interrupted,
    /// The VM can't go on.
    Ended(Outcome),
}

/// A vCPU that is set up and not yet running.
pub struct Vcpu {
    id: u8,
    fd: VcpuFd,
    exits: Arc<UserExits>,
}

/// Makes `count` vCPUs. The first one is the boot processor and starts at `entry`; the others wait
/// for the guest's INIT and SIPI. `supported` is what KVM can give a guest.
pub fn create_all(
    vm: &Vm,
    supported: &CpuId,
    mem: &GuestMemory,
    count: u8,
    entry: Entry,
) -> Result<Vec<Vcpu>, VcpuError> {
    let vcpus = (0..count).map(|id| create(vm, supported, id, count)).collect::<Result<Vec<_>, _>>()?;
    if let Some(boot) = vcpus.first() {
        registers::set_entry(&boot.fd, mem, entry)?;
    }
    Ok(vcpus)
}

/// Makes the vCPUs that other ones were. `supported` is what KVM can give a guest on this host.
pub fn restore_all(vm: &Vm, supported: &CpuId, states: &[State]) -> Result<Vec<Vcpu>, VcpuError> {
    let count = u8::try_from(states.len()).unwrap_or(u8::MAX);
    let restore = |(id, state): (u8, &State)| {
        let fd = vm.create_vcpu(id)?;
        state::put(&fd, &cpuid::for_vcpu(supported, id, count), state, id == 0)?;
        Ok(Vcpu { id, fd, exits: Arc::default() })
    };
    (0..count).zip(states).map(restore).collect()
}

fn create(vm: &Vm, supported: &CpuId, id: u8, count: u8) -> Result<Vcpu, VcpuError> {
    let fd = vm.create_vcpu(id)?;
    fd.set_cpuid2(&cpuid::for_vcpu(supported, id, count)).map_err(VcpuError::ioctl("KVM_SET_CPUID2"))?;
    registers::set_msrs(&fd)?;
    Ok(Vcpu { id, fd, exits: Arc::default() })
}

impl Vcpu {
    /// The counters that its thread will keep.
    pub fn exits(&self) -> Arc<UserExits> {
        self.exits.clone()
    }

    /// KVM's own counters of it.
    pub fn stats(&self) -> io::Result<StatsFd> {
        stats::open(&self.fd)
    }

    fn start(
        mut self,
        machine: Machine,
        finished: Sender<()>,
        spawner: &Spawner,
    ) -> io::Result<JoinHandle<()>> {
        spawner.spawn(&format!("vcpu{}", self.id), move || {
            self.run(&machine);
            drop(machine);
            if finished.send(()).is_err() {
                log::debug!("nobody waits for vCPU {}", self.id);
            }
        })
    }

    fn run(&mut self, machine: &Machine) {
        if self.id == 0 {
            machine.timeline.record(Mark::FirstInstruction);
        }
        while machine.end.outcome().is_none() {
            if machine.gate.is_closed() {
                self.finish_access(machine);
                machine.gate.wait(self.id, &self.fd);
                continue;
            }
            if let Step::Ended(outcome) = self.step(machine) {
                machine.end.report(outcome);
            }
        }
    }

    /// What the guest reads only arrives in its registers when it is entered the next time, and one
    /// instruction may have several accesses: enters it for as long as there are some, and no
    /// further.
    fn finish_access(&mut self, machine: &Machine) {
        self.fd.set_kvm_immediate_exit(1);
        loop {
            match self.step(machine) {
                Step::Served => {}
                Step::Interrupted => break,
                Step::Ended(outcome) => {
                    machine.end.report(outcome);
                    break;
                }
            }
        }
        self.fd.set_kvm_immediate_exit(0);
    }

    /// Enters the guest once and answers its exit.
    fn step(&mut self, machine: &Machine) -> Step {
        let exit = match self.fd.run() {
            Ok(exit) => exit,
            Err(error) if [libc::EINTR, libc::EAGAIN].contains(&error.errno()) => {
                count(&self.exits.interrupted);
                return Step::Interrupted;
            }
            Err(error) => {
                return Step::Ended(Outcome::KvmError(format!(
                    "KVM_RUN failed on vCPU {}: {error}",
                    self.id
                )));
            }
        };
        match exit {
            VcpuExit::MmioRead(addr, data) => {
                count(&self.exits.mmio);
                if !machine.mmio.read(addr, data) {
                    log::trace!("read of {addr:#x}, where nothing is");
                }
                Step::Served
            }
            VcpuExit::MmioWrite(addr, data) => {
                count(&self.exits.mmio);
                if !machine.mmio.write(addr, data) {
                    log::trace!("write of {data:x?} to {addr:#x}, where nothing is");
                }
                Step::Served
            }
            VcpuExit::IoIn(port, data) => {
                let (data, len) = (data.as_mut_ptr(), data.len());
                let size = self.unit_size();
                #[expect(unsafe_code, reason = "the slice had to be let go to read the unit's size")]
                // SAFETY: kvm-ioctls made this mutable slice from the vCPU's mapping, which lives
                // as long as `self.fd`; KVM doesn't touch it before the next KVM_RUN, and reading
                // the unit's size touched another part of the mapping.
                let data = unsafe { std::slice::from_raw_parts_mut(data, len) };
                for unit in data.chunks_mut(size) {
                    if !machine.ports.read(port.into(), unit) {
                        log::trace!("read of port {port:#x}, where nothing is");
                    }
                }
                Step::Served
            }
            VcpuExit::IoOut(port, data) => {
                let (data, len) = (data.as_ptr(), data.len());
                let size = self.unit_size();
                #[expect(unsafe_code, reason = "the slice had to be let go to read the unit's size")]
                // SAFETY: as above, but for a shared slice.
                let data = unsafe { std::slice::from_raw_parts(data, len) };
                for unit in data.chunks(size) {
                    if !machine.ports.write(port.into(), unit) {
                        log::trace!("write of {unit:x?} to port {port:#x}, where nothing is");
                    }
                }
                Step::Served
            }
            // The end of an interrupt that the guest wanted as a level. Devices raise edges only,
            // so nothing waits for it.
            VcpuExit::IoapicEoi(_) => {
                count(&self.exits.other);
                Step::Served
            }
            VcpuExit::Intr => {
                count(&self.exits.interrupted);
                Step::Interrupted
            }
            VcpuExit::Shutdown => {
                let at = format!("vCPU {} at RIP {}", self.id, self.rip());
                self.ended(Outcome::TripleFault(at))
            }
            VcpuExit::InternalError => {
                let reason = self.internal_error();
                self.ended(Outcome::KvmError(reason))
            }
            VcpuExit::FailEntry(reason, cpu) => self.ended(Outcome::KvmError(format!(
                "KVM can't enter the guest on vCPU {}: hardware reason {reason:#x} on host CPU {cpu}",
                self.id
            ))),
            other => {
                let reason = format!("unexpected exit of vCPU {}: {other:?}", self.id);
                self.ended(Outcome::KvmError(reason))
            }
        }
    }

    fn ended(&self, outcome: Outcome) -> Step {
        count(&self.exits.other);
        Step::Ended(outcome)
    }

    /// Bytes of one access of the last exit, which was a port access: a string instruction makes
    /// several at once.
    fn unit_size(&mut self) -> usize {
        count(&self.exits.port_io);
        let run = self.fd.get_kvm_run();
        #[expect(unsafe_code, reason = "kvm-ioctls doesn't tell the size of a unit")]
        // SAFETY: the last exit was KVM_EXIT_IO, so `io` is the union's active member.
        let size = unsafe { run.__bindgen_anon_1.io.size };
        usize::from(size).max(1)
    }

    /// Where the vCPU stands.
    fn rip(&self) -> String {
        self.fd.get_regs().map_or_else(|_| "unknown".to_owned(), |regs| format!("{:#x}", regs.rip))
    }

    fn internal_error(&mut self) -> String {
        let run = self.fd.get_kvm_run();
        #[expect(unsafe_code, reason = "kvm-ioctls doesn't pass the details on")]
        // SAFETY: the last exit was KVM_EXIT_INTERNAL_ERROR, so `internal` is the union's active
        // member.
        let internal = unsafe { run.__bindgen_anon_1.internal };
        let at = self.rip();
        if internal.suberror != INTERNAL_ERROR_EMULATION {
            let data =
                &internal.data[..usize::try_from(internal.ndata).map_or(0, |n| n.min(internal.data.len()))];
            return format!("KVM internal error {} at RIP {at}, data {data:x?}", internal.suberror);
        }
        let bytes = instruction_bytes(internal.ndata, &internal.data);
        let bytes = if bytes.is_empty() { "not known".to_owned() } else { hex(&bytes) };
        format!(
            "KVM can't emulate the instruction at RIP {at}, bytes {bytes}: \
             this host's KVM doesn't run this guest (see `bothy doctor`)"
        )
    }
}

/// The threads of a VM's vCPUs.
pub struct Running {
    threads: Vec<JoinHandle<()>>,
    done: Receiver<()>,
}

/// How long a vCPU may take to see that it was kicked before it is kicked again.
const KICK_AGAIN: Duration = Duration::from_millis(1);

extern "C" fn ignore_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// Starts a thread for each vCPU. They run until the machine's end is reported.
pub fn start_all(vcpus: Vec<Vcpu>, machine: &Machine, spawner: &Spawner) -> Result<Running, VcpuError> {
    // A signal with a handler makes KVM_RUN return.
    register_signal_handler(SIGRTMIN(), ignore_kick)
        .map_err(|error| VcpuError::Thread { id: 0, source: error.into() })?;
    let (finished, done) = channel();
    let mut threads = Vec::with_capacity(vcpus.len());
    for vcpu in vcpus {
        let id = vcpu.id;
        match vcpu.start(machine.clone(), finished.clone(), spawner) {
            Ok(thread) => threads.push(thread),
            Err(source) => {
                // Those that run already must not outlive the failure.
                machine.end.report(Outcome::Killed);
                Running { threads, done }.join();
                return Err(VcpuError::Thread { id, source });
            }
        }
    }
    Ok(Running { threads, done })
}

impl Running {
    /// Has all vCPUs leave the guest and wait, until the gate is opened, and returns what they are.
    /// `msrs` are the numbers of all that this host's KVM has. `None` if the VM ends meanwhile.
    pub fn pause(&self, machine: &Machine, msrs: Arc<[u32]>) -> Result<Option<Vec<State>>, VcpuError> {
        machine.gate.close();
        loop {
            self.kick();
            let all_wait = machine.gate.all_wait(self.threads.len(), KICK_AGAIN);
            if machine.end.outcome().is_some() {
                return Ok(None);
            }
            if all_wait {
                return machine.gate.states(msrs).map(Some);
            }
        }
    }

    /// Has those that are in the guest leave it. One that arrives between a vCPU's look at what it
    /// is to do and its entry is lost.
    fn kick(&self) {
        for thread in self.threads.iter().filter(|thread| !thread.is_finished()) {
            if let Err(error) = thread.kill(SIGRTMIN()) {
                log::debug!("kicking a vCPU: {error}");
            }
        }
    }

    /// Waits until no vCPU runs any more, and none holds the buses. Called once the machine's end
    /// is reported; kicks those that are in the guest.
    pub fn join(self) {
        let mut left = self.threads.len();
        while left > 0 {
            // Repeated, because a kick may be lost.
            self.kick();
            while left > 0 && self.done.recv_timeout(KICK_AGAIN).is_ok() {
                left -= 1;
            }
        }
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// The bytes of an instruction that KVM failed to emulate: data[0] holds flags, and where they say
/// so, the next 16 bytes a length and up to 15 bytes of the instruction stream.
fn instruction_bytes(ndata: u32, data: &[u64; 16]) -> Vec<u8> {
    if ndata < 3 || data[0] & EMULATION_FLAG_BYTES == 0 {
        return Vec::new();
    }
    let raw: Vec<u8> = data[1..3].iter().flat_map(|word| word.to_le_bytes()).collect();
    let (len, bytes) = raw.split_at(1);
    bytes[..usize::from(len[0]).min(15)].to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_of_a_failed_instruction_are_found_behind_their_length() {
        let mut data = [0; 16];
        data[0] = 1;
        data[1] = u64::from_le_bytes([3, 0xf3, 0x0f, 0xb8, 0xaa, 0, 0, 0]);
        assert_eq!(instruction_bytes(3, &data), [0xf3, 0x0f, 0xb8]);
        assert_eq!(instruction_bytes(1, &data), [0u8; 0]);
        data[0] = 0;
        assert_eq!(instruction_bytes(3, &data), [0u8; 0]);
        data[0] = 1;
        data[1] = 0xff;
        assert_eq!(instruction_bytes(3, &data).len(), 15);
    }
}
