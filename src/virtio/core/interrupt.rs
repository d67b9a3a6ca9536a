//! What a device tells its driver while it runs, besides used chains: interrupts, changes of its
//! configuration, and that it has to be reset.

use std::fmt::Display;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use vmm_sys_util::eventfd::EventFd;

use crate::bounded_log::BoundedLog;
use crate::bus::MsiRoute;

/// Raises one kind of interrupt of one device. Only the transport that made it knows whether it
/// stands for a line with a status bit (MMIO) or for a vector (MSI-X).
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

    /// An interrupt that is the one of `vectors` that `chosen` says at that moment, and none when
    /// there is no such. For transports.
    pub fn vector(vectors: Arc<[MsiRoute]>, chosen: Arc<AtomicU16>) -> Self {
        Self(Way::Vector { vectors, chosen })
    }

    /// Raises it. Callable from any thread; never blocks.
    pub fn signal(&self) {
        let evt = match &self.0 {
            Way::Line { evt, status, bit } => {
                // The bit must be visible before the guest's handler can run, and the eventfd write
                // orders it so.
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
            // EAGAIN: the counter is full, so an edge is pending anyway. Nothing else can happen to
            // an eventfd.
            log::debug!("interrupt eventfd: {error}");
        }
    }
}

/// Changes a configuration space so that the driver never takes half of an old one and half of a
/// new one for a whole.
///
/// The generation counter (virtio 1.2 §2.5.2, §4.2.2.1) and the space change under one lock, which
/// the transport also takes for each read of either.
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

    /// Runs `change`, which writes the new values to where `read_config` finds them, and then tells
    /// the driver. Callable from any thread of the device; not from `read_config`.
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

/// Says that a device can't go on until the driver resets it: the status bit DEVICE_NEEDS_RESET
/// and, when the driver is running, a configuration interrupt (virtio 1.2 §2.1.2).
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
