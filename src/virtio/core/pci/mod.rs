//! The PCI transport (virtio 1.2 §4.1): a function with one BAR, in which everything is, and a
//! vector of MSI-X for each queue and one for changes of the configuration.
//!
//! An interrupt costs the guest nothing here: it neither asks which queue it is of nor acknowledges
//! it, and both would be exits ([`mmio`](super::mmio)). There is no INTx: a driver has to use
//! MSI-X. Registers are only read and written while a driver starts; a notification takes no lock.
//!
//! The BAR has its address from the start, and stays there: a driver can find out its size, and a
//! guest that moves it loses the device. Guests that are booted directly have no reason to.

mod config;
mod msix;

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;

pub use self::config::{CONFIG_LEN, ConfigSpace};
use self::config::{Effect, Registers};
use self::msix::Msix;
use super::device::{VirtioDevice, read_config_bytes};
use super::interrupt::Interrupt;
use super::spec::pci::{NO_VECTOR, common as reg, msix as msix_spec};
use super::state::{State, StateError, recall, remember};
use super::transport::{Attached, Signals, Transport, set_high, set_low};
use crate::bounded_log::BoundedLog;
use crate::bus::{BusDevice, Doorbell, Doorbells, MsiRoutes};
use crate::memory::GuestMemory;

/// Bytes of address space that a device takes, a power of two.
pub const BAR_LEN: u64 = 0x8000;

// What is where in the BAR.
const COMMON: Range<u64> = 0..reg::LEN as u64;
const ISR: Range<u64> = 0x1000..0x1001;
const DEVICE_SPECIFIC: Range<u64> = 0x2000..0x3000;
const NOTIFY: Range<u64> = 0x3000..0x4000;
const MSIX_TABLE: Range<u64> = 0x4000..0x5000;
const MSIX_PENDING: Range<u64> = 0x5000..0x6000;

/// Each queue has a place of its own to be notified at: this many bytes times its index (§4.1.4.4).
const NOTIFY_STRIDE: u32 = 4;
/// Queues and vectors that have room in their part of the BAR.
const MAX_VECTORS: u64 = (MSIX_TABLE.end - MSIX_TABLE.start) / msix_spec::ENTRY_LEN;

/// A virtio device as a function of a PCI bus. As a [`BusDevice`] it is its BAR.
pub struct Function {
    // Taken before `inner` where both are.
    registers: Mutex<Registers>,
    inner: Mutex<Inner>,
    msix: Mutex<Msix>,
    kick_evts: Vec<Arc<EventFd>>,
    bar_gpa: u64,
}

struct Inner {
    transport: Transport,
    device_feature_select: u32,
    driver_feature_select: u32,
    queue_select: u16,
    config_vector: Arc<AtomicU16>,
    queue_vectors: Vec<Arc<AtomicU16>>,
}

impl Function {
    /// Makes a function of `device`, with its BAR at `bar_gpa`. Makes an eventfd and a route per
    /// queue, and a route more.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        bar_gpa: u64,
        mem: Arc<GuestMemory>,
        routes: Arc<dyn MsiRoutes>,
        doorbells: Arc<dyn Doorbells>,
    ) -> io::Result<Arc<Self>> {
        let queues = device.queue_sizes().len();
        let vectors = u16::try_from(queues + 1).map_err(io::Error::other)?;
        assert!(u64::from(vectors) <= MAX_VECTORS, "a device has fewer queues");
        let log = Arc::new(BoundedLog::new(format!("virtio device {} at {bar_gpa:#x}", device.kind())));
        let msix = Msix::new(vectors, routes, log.clone())?;
        let vector = || Arc::new(AtomicU16::new(NO_VECTOR));
        let (config_vector, queue_vectors) = (vector(), (0..queues).map(|_| vector()).collect::<Vec<_>>());
        let interrupt = |chosen: &Arc<AtomicU16>| Interrupt::vector(msix.vectors().clone(), chosen.clone());
        let bell =
            |index| Doorbell { gpa: bar_gpa + NOTIFY.start + u64::from(NOTIFY_STRIDE) * index, value: None };
        let signals = Signals {
            queues: queue_vectors.iter().map(interrupt).collect(),
            config: interrupt(&config_vector),
            doorbells,
            bells: (0..queues as u64).map(bell).collect(),
        };
        let registers = Registers::new(device.kind(), bar_gpa, vectors);
        let transport = Transport::new(device, mem, signals, log)?;
        let kick_evts = transport.kick_evts();
        let inner = Inner {
            transport,
            device_feature_select: 0,
            driver_feature_select: 0,
            queue_select: 0,
            config_vector,
            queue_vectors,
        };
        Ok(Arc::new(Self {
            registers: Mutex::new(registers),
            inner: Mutex::new(inner),
            msix: Mutex::new(msix),
            kick_evts,
            bar_gpa,
        }))
    }

    /// Its configuration space.
    pub fn config_space(self: &Arc<Self>) -> ConfigSpace {
        ConfigSpace(self.clone())
    }

    fn read_config_space(&self, offset: u64, data: &mut [u8]) {
        let mut registers = lock(&self.registers);
        if let Some((at, len)) = registers.access(offset, data.len()) {
            let mut bytes = [0xff; 4];
            self.read_bar(at, &mut bytes[..len]);
            registers.access_data().copy_from_slice(&bytes);
        }
        registers.read(offset, data);
    }

    fn write_config_space(&self, offset: u64, data: &[u8]) {
        let mut registers = lock(&self.registers);
        match registers.write(offset, data) {
            Effect::None => {}
            Effect::Msix(control) => lock(&self.msix).set_control(control),
            Effect::Access { offset, len } => {
                let mut bytes = [0; 4];
                bytes.copy_from_slice(registers.access_data());
                self.write_bar(offset, &bytes[..len]);
            }
            Effect::Moved(base) => {
                // All ones are the question how large it is.
                let is_question = base == !(u32::try_from(BAR_LEN).expect("small") - 1);
                if u64::from(base) != self.bar_gpa && !is_question {
                    lock(&self.inner).transport.complain(format_args!("the BAR can't be moved to {base:#x}"));
                }
            }
        }
    }

    fn read_bar(&self, offset: u64, data: &mut [u8]) {
        if let Some(offset) = within(&DEVICE_SPECIFIC, offset) {
            lock(&self.inner).transport.read_config(offset, data);
        } else if let Some(offset) = within(&COMMON, offset) {
            read_config_bytes(&lock(&self.inner).common(), offset, data);
        } else if let Some(offset) = within(&MSIX_TABLE, offset) {
            lock(&self.msix).read_table(offset, data);
        } else if let Some(offset) = within(&MSIX_PENDING, offset) {
            lock(&self.msix).read_pending(offset, data);
        } else if within(&ISR, offset).is_some() || within(&NOTIFY, offset).is_some() {
            // §4.1.4.5: with MSI-X there is nothing to say; and a doorbell has nothing to read.
            data.fill(0);
        }
    }

    fn write_bar(&self, offset: u64, data: &[u8]) {
        if let Some(offset) = within(&NOTIFY, offset) {
            let index = usize::try_from(offset / u64::from(NOTIFY_STRIDE)).unwrap_or(usize::MAX);
            if let Some(kick_evt) = self.kick_evts.get(index) {
                // EAGAIN when the counter is full: rung enough.
                let _ = kick_evt.write(1);
            }
        } else if let Some(offset) = within(&DEVICE_SPECIFIC, offset) {
            lock(&self.inner).transport.write_config(offset, data);
        } else if let Some(offset) = within(&COMMON, offset) {
            lock(&self.inner).write_common(offset, data);
        } else if let Some(offset) = within(&MSIX_TABLE, offset) {
            lock(&self.msix).write_table(offset, data);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("a panic under this lock ends the process")
}

fn within(part: &Range<u64>, offset: u64) -> Option<u64> {
    part.contains(&offset).then(|| offset - part.start)
}

impl Inner {
    /// The common configuration as it reads now (§4.1.4.3).
    fn common(&self) -> [u8; reg::LEN] {
        let transport = &self.transport;
        let queue = u32::from(self.queue_select);
        let layout = transport.queue_layout(queue);
        let vector = |chosen: &AtomicU16| u64::from(chosen.load(Ordering::SeqCst));
        let queue_vector = self.queue_vectors.get(usize::from(self.queue_select));
        let has_queue = queue_vector.is_some();
        let mut image = [0; reg::LEN];
        let mut put = |at: u64, len: usize, value: u64| {
            let at = usize::try_from(at).expect("small");
            image[at..at + len].copy_from_slice(&value.to_le_bytes()[..len]);
        };
        put(reg::DEVICE_FEATURE_SELECT, 4, self.device_feature_select.into());
        put(reg::DEVICE_FEATURE, 4, transport.offered_features(self.device_feature_select).into());
        put(reg::DRIVER_FEATURE_SELECT, 4, self.driver_feature_select.into());
        put(reg::DRIVER_FEATURE, 4, transport.accepted_features(self.driver_feature_select).into());
        put(reg::CONFIG_MSIX_VECTOR, 2, vector(&self.config_vector));
        put(reg::NUM_QUEUES, 2, self.queue_vectors.len() as u64);
        put(reg::DEVICE_STATUS, 1, transport.status().into());
        put(reg::CONFIG_GENERATION, 1, u64::from(transport.generation() & 0xff));
        put(reg::QUEUE_SELECT, 2, queue.into());
        // §4.1.4.3.2: 0 for a queue that doesn't exist.
        put(reg::QUEUE_SIZE, 2, if has_queue { u64::from(layout.size & 0xffff) } else { 0 });
        put(reg::QUEUE_MSIX_VECTOR, 2, queue_vector.map_or(NO_VECTOR.into(), |chosen| vector(chosen)));
        put(reg::QUEUE_ENABLE, 2, transport.queue_ready(queue).into());
        put(reg::QUEUE_NOTIFY_OFF, 2, if has_queue { queue.into() } else { 0 });
        put(reg::QUEUE_DESC, 8, layout.desc_table);
        put(reg::QUEUE_DRIVER, 8, layout.avail_ring);
        put(reg::QUEUE_DEVICE, 8, layout.used_ring);
        image
    }

    /// §4.1.3.1: a driver writes each field in its own width, and the halves of addresses one by
    /// one.
    fn write_common(&mut self, offset: u64, data: &[u8]) {
        let mut bytes = [0; 8];
        bytes[..data.len()].copy_from_slice(data);
        let long = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let word = u16::from_le_bytes([bytes[0], bytes[1]]);
        let queue = u32::from(self.queue_select);
        match (offset, data.len()) {
            (reg::DEVICE_FEATURE_SELECT, 4) => self.device_feature_select = long,
            (reg::DRIVER_FEATURE_SELECT, 4) => self.driver_feature_select = long,
            (reg::DRIVER_FEATURE, 4) => self.transport.accept_features(self.driver_feature_select, long),
            (reg::CONFIG_MSIX_VECTOR, 2) => {
                self.config_vector.store(self.checked_vector(word), Ordering::SeqCst);
            }
            (reg::DEVICE_STATUS, 1) => self.set_status(bytes[0]),
            (reg::QUEUE_SELECT, 2) => self.queue_select = word,
            (reg::QUEUE_SIZE, 2) => {
                self.transport.set_queue_layout(queue, |layout| layout.size = word.into());
            }
            (reg::QUEUE_MSIX_VECTOR, 2) => {
                if let Some(chosen) = self.queue_vectors.get(usize::from(self.queue_select)) {
                    chosen.store(self.checked_vector(word), Ordering::SeqCst);
                }
            }
            // §4.1.4.3.2: a driver doesn't write 0; only a reset disables a queue.
            (reg::QUEUE_ENABLE, 2) => self.transport.set_queue_ready(queue, word == 1),
            (reg::QUEUE_DESC.., 4) if offset.is_multiple_of(4) => self.set_address(offset, |address| {
                if offset.is_multiple_of(8) { set_low(address, long) } else { set_high(address, long) }
            }),
            (reg::QUEUE_DESC.., 8) if offset.is_multiple_of(8) => {
                self.set_address(offset, |address| *address = u64::from_le_bytes(bytes));
            }
            _ => self.transport.complain(format_args!(
                "{} bytes were written to {offset:#x} of the common configuration, which can't be",
                data.len()
            )),
        }
    }

    fn set_address(&mut self, offset: u64, change: impl FnOnce(&mut u64)) {
        self.transport.set_queue_layout(self.queue_select.into(), |layout| {
            change(match offset & !7 {
                reg::QUEUE_DESC => &mut layout.desc_table,
                reg::QUEUE_DRIVER => &mut layout.avail_ring,
                _ => &mut layout.used_ring,
            });
        });
    }

    /// §4.1.5.1.2.1: a vector that doesn't exist reads back as none.
    fn checked_vector(&self, vector: u16) -> u16 {
        if usize::from(vector) <= self.queue_vectors.len() { vector } else { NO_VECTOR }
    }

    fn set_status(&mut self, status: u8) {
        self.transport.set_status(status.into());
        if status == 0 {
            self.device_feature_select = 0;
            self.driver_feature_select = 0;
            self.queue_select = 0;
            for chosen in self.queue_vectors.iter().chain([&self.config_vector]) {
                chosen.store(NO_VECTOR, Ordering::SeqCst);
            }
        }
    }
}

/// What the registers remember.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Remembered {
    config_space: Vec<u8>,
    msix: msix::State,
    device_feature_select: u32,
    driver_feature_select: u32,
    queue_select: u16,
    config_vector: u16,
    queue_vectors: Vec<u16>,
}

impl Attached for Function {
    fn stop(&self) {
        drop(lock(&self.inner).transport.stop());
    }

    fn suspend(&self) -> State {
        let (registers, mut inner) = (lock(&self.registers), lock(&self.inner));
        let state = inner.transport.suspend();
        let vector = |chosen: &Arc<AtomicU16>| chosen.load(Ordering::SeqCst);
        let registers = remember(&Remembered {
            config_space: registers.state(),
            msix: lock(&self.msix).state(),
            device_feature_select: inner.device_feature_select,
            driver_feature_select: inner.driver_feature_select,
            queue_select: inner.queue_select,
            config_vector: vector(&inner.config_vector),
            queue_vectors: inner.queue_vectors.iter().map(vector).collect(),
        });
        State { registers, ..state }
    }

    fn restore(&self, state: &State) -> Result<(), StateError> {
        let refuse = |why: &str| StateError { kind: state.kind, why: why.to_owned() };
        let old: Remembered = recall(&state.registers).map_err(|why| refuse(&why))?;
        let (mut registers, mut inner) = (lock(&self.registers), lock(&self.inner));
        if old.queue_vectors.len() != inner.queue_vectors.len() {
            return Err(refuse("it has another number of vectors"));
        }
        inner.transport.restore(state)?;
        let control = registers.restore(&old.config_space).ok_or_else(|| refuse("a configuration space"))?;
        lock(&self.msix).restore(&old.msix, control).map_err(refuse)?;
        let vectors = old.queue_vectors.iter().chain([&old.config_vector]);
        for (chosen, vector) in inner.queue_vectors.iter().chain([&inner.config_vector]).zip(vectors) {
            chosen.store(inner.checked_vector(*vector), Ordering::SeqCst);
        }
        inner.device_feature_select = old.device_feature_select;
        inner.driver_feature_select = old.driver_feature_select;
        inner.queue_select = old.queue_select;
        Ok(())
    }

    fn resume(&self) {
        lock(&self.inner).transport.resume();
    }
}

impl BusDevice for Function {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if lock(&self.registers).answers() {
            self.read_bar(offset, data);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        // A doorbell that isn't registered yet must not wait for somebody who sets the device up.
        if within(&NOTIFY, offset).is_some() || lock(&self.registers).answers() {
            self.write_bar(offset, data);
        }
    }
}

#[cfg(test)]
#[path = "../pci_tests.rs"]
mod tests;
