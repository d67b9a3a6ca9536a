//! The contract between a virtio device and its transport.
//!
//! The transport owns what the driver negotiates (status, features, queue registers) and answers the guest; the
//! device owns what it is for. They meet in [`VirtioDevice`], and what passes between them while the device runs is
//! [`Interrupt`]s and the kick eventfds of [`ActiveQueue`]: atomics and eventfds, nothing that takes a lock.
//!
//! A device's life: built (its threads and descriptors exist, parked) -> `start` at DRIVER_OK -> running ->
//! `stop` -> built again. Reset by the guest, pause and a snapshot are the same `stop` followed by different
//! code: for the last two the device says what it remembers (`state`), and it, or another one like it, is told before the next `start`
//! (`restore`). Nothing is created between `start` and `stop`: no thread, no descriptor, no ring.
//!
//! A device never handles a driver that breaks a ring: [`ActiveQueue`] stops serving that queue and raises
//! [`NeedsReset`] by itself. The other queues of the device go on.

use std::fmt::Display;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use vmm_sys_util::eventfd::EventFd;

pub use super::active::ActiveQueue;
use super::queue::Queue;
use super::state::Remembered;
use crate::bounded_log::BoundedLog;
use crate::bus::MsiRoute;
use crate::memory::GuestMemory;

/// A virtio device, as its transport sees it. All methods are called under the transport's lock, so never two at once.
pub trait VirtioDevice: Send {
    /// The device type (virtio 1.2 §5), e.g. 2 for a block device. Called at any time; constant.
    fn kind(&self) -> u32;

    /// The features that the device offers, its own and the ring's (virtio 1.2 §2.2, §6). Called at any time;
    /// constant. `VIRTIO_F_VERSION_1` is added by the transport, which accepts no driver without it.
    fn features(&self) -> u64;

    /// The largest size of each queue, a power of two up to 32768; the length is the number of queues.
    /// Called at any time; constant.
    fn queue_sizes(&self) -> &[u16];

    /// Reads device configuration space. Called on a vCPU thread, before and after `start`. Bytes past the end of
    /// the space are left as they are (ones). Most devices call [`read_config_bytes`].
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes device configuration space. Called on a vCPU thread, before and after `start`. Most devices have nothing
    /// writable: the default ignores the write.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// The driver is ready (DRIVER_OK): the queues *move* into the device's worker, which serves them until `stop`.
    /// Called on a vCPU thread when the device is stopped, never twice in a row. It only hands over; it doesn't wait for
    /// a request. There is one entry per queue of `queue_sizes`; a queue that the driver didn't enable is `None`.
    /// Chains may be waiting already, with no kick to come for them.
    /// On `Err` the device is still stopped, and the transport sets DEVICE_NEEDS_RESET.
    fn start(&mut self, activation: Activation) -> io::Result<()>;

    /// Takes the queues back from the worker and returns them as they stand, one entry per queue, with every popped chain
    /// completed or put back: requests in flight are finished first, those still on the avail ring stay there. Afterwards no
    /// thread of the device touches guest memory or raises an interrupt. Called on a vCPU thread (reset) or the VM's main
    /// thread (pause, the end). Twice is fine: a stopped device returns an empty vector.
    fn stop(&mut self) -> Vec<Option<Queue>>;

    /// What the device remembers of its driver that neither its configuration nor its queues say. Called when the device is stopped.
    /// The default is nothing.
    fn state(&self) -> Remembered {
        Remembered::Null
    }

    /// Makes the device what another one, of the same configuration, was when its `state` was taken: the next `start` goes on where that one
    /// stopped. Called when the device is stopped; what it is given is as little trusted as a guest. On `Err`, which says what is wrong with
    /// it, the device is as it was. The default takes nothing but nothing.
    fn restore(&mut self, state: &Remembered) -> Result<(), String> {
        if state.is_null() { Ok(()) } else { Err("it remembers nothing".to_owned()) }
    }
}

/// What a device gets at `start`.
pub struct Activation {
    /// The guest's memory.
    pub mem: Arc<GuestMemory>,
    /// The features that were negotiated: a subset of those offered.
    pub features: u64,
    /// One per queue, by index; `None` where the driver enabled none.
    pub queues: Vec<Option<ActiveQueue>>,
    /// Changes the configuration space and tells the driver.
    pub config_change: ConfigChange,
    /// Says that the device is beyond repair. Broken rings raise it by themselves.
    pub needs_reset: NeedsReset,
}

/// Copies what overlaps of a configuration space that is `space`, and leaves the rest of `data` as it is.
pub fn read_config_bytes(space: &[u8], offset: u64, data: &mut [u8]) {
    let rest = usize::try_from(offset).ok().and_then(|offset| space.get(offset..)).unwrap_or_default();
    let len = rest.len().min(data.len());
    data[..len].copy_from_slice(&rest[..len]);
}

/// Raises one kind of interrupt of one device. Only the transport that made it knows whether it stands for a line
/// with a status bit (MMIO) or for a vector (MSI-X).
#[derive(Clone)]
pub struct Interrupt(Way);

#[derive(Clone)]
enum Way {
    Line { evt: Arc<EventFd>, status: Arc<AtomicU32>, bit: u32 },
    Vector { vectors: Arc<[MsiRoute]>, chosen: Arc<AtomicU16> },
}

impl Interrupt {
    /// An interrupt that sets `bit` in `status` and then signals `evt`. For transports.
    pub fn line(evt: Arc<EventFd>, status: Arc<AtomicU32>, bit: u32) -> Self {
        Self(Way::Line { evt, status, bit })
    }

    /// An interrupt that is the one of `vectors` that `chosen` says at that moment, and none when there is no such. For transports.
    pub fn vector(vectors: Arc<[MsiRoute]>, chosen: Arc<AtomicU16>) -> Self {
        Self(Way::Vector { vectors, chosen })
    }

    /// Raises it. Callable from any thread; never blocks.
    pub fn signal(&self) {
        let evt = match &self.0 {
            Way::Line { evt, status, bit } => {
                // The bit must be visible before the guest's handler can run, and the eventfd write orders it so.
                status.fetch_or(*bit, Ordering::SeqCst);
                evt.as_ref()
            }
            Way::Vector { vectors, chosen } => {
                match vectors.get(usize::from(chosen.load(Ordering::SeqCst))) {
                    Some(vector) => &vector.evt,
                    None => return,
                }
            }
        };
        if let Err(error) = evt.write(1) {
            // EAGAIN: the counter is full, so an edge is pending anyway. Nothing else can happen to an eventfd.
            log::debug!("interrupt eventfd: {error}");
        }
    }
}

/// Changes a configuration space so that the driver never takes half of an old one and half of a new one for a whole.
///
/// The generation counter (virtio 1.2 §2.5.2, §4.2.2.1) and the space change under one lock, which the transport also
/// takes for each read of either.
#[derive(Clone)]
pub struct ConfigChange {
    generation: Arc<Mutex<u32>>,
    interrupt: Interrupt,
}

impl ConfigChange {
    /// With the generation at 0. For transports.
    pub fn new(interrupt: Interrupt) -> Self {
        Self { generation: Arc::new(Mutex::new(0)), interrupt }
    }

    /// Runs `change`, which writes the new values to where `read_config` finds them, and then tells the driver. Callable from
    /// any thread of the device; not from `read_config`.
    pub fn apply(&self, change: impl FnOnce()) {
        let mut generation = self.generation();
        change();
        *generation = generation.wrapping_add(1);
        drop(generation);
        self.interrupt.signal();
    }

    /// The generation; the space doesn't change while the guard lives. For transports.
    pub fn generation(&self) -> MutexGuard<'_, u32> {
        self.generation.lock().expect("a panic under this lock ends the process")
    }
}

/// Says that a device can't go on until the driver resets it: the status bit DEVICE_NEEDS_RESET and, when the driver is
/// running, a configuration interrupt (virtio 1.2 §2.1.2).
#[derive(Clone)]
pub struct NeedsReset {
    raised: Arc<AtomicBool>,
    config: Interrupt,
    log: Arc<BoundedLog>,
}

impl NeedsReset {
    /// Not raised. `config` is the device's configuration interrupt. For transports.
    pub fn new(config: Interrupt, log: Arc<BoundedLog>) -> Self {
        Self { raised: Arc::default(), config, log }
    }

    /// Raises it and tells the driver. Callable from any thread; never blocks.
    pub fn raise(&self, why: impl Display) {
        self.raise_unannounced(why);
        self.config.signal();
    }

    /// Raises it before DRIVER_OK, when no interrupt may be sent. For transports.
    pub fn raise_unannounced(&self, why: impl Display) {
        self.log.warn(format_args!("the driver must reset the device: {why}"));
        self.raised.store(true, Ordering::SeqCst);
    }

    /// Whether it is raised. For transports.
    pub fn is_raised(&self) -> bool {
        self.raised.load(Ordering::SeqCst)
    }

    /// Ends it, after the device has stopped. For transports.
    pub fn clear(&self) {
        self.raised.store(false, Ordering::SeqCst);
    }
}
