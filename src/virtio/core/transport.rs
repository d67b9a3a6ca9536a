//! What the driver negotiates with a device, whatever registers it does it through: status,
//! features, queues, reset.
//!
//! [`mmio`](super::mmio) or [`pci`](super::pci) stands in front of it. Nothing here knows an offset
//! or an access width. It owns the kick eventfds, and is called under its owner's lock.

use std::fmt::Display;
use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::active::ActiveQueue;
use super::device::{Activation, VirtioDevice};
use super::interrupt::{ConfigChange, Interrupt, NeedsReset};
use super::queue::{Queue, QueueError, QueueLayout};
use super::spec::{feature, status};
use super::state::{QueueState, Remembered, State, StateError};
use crate::bounded_log::BoundedLog;
use crate::bus::{Doorbell, Doorbells};
use crate::memory::GuestMemory;

/// How a transport reaches the driver.
pub(super) struct Signals {
    /// One per queue.
    pub(super) queues: Vec<Interrupt>,
    /// For changes of the configuration space and of the status.
    pub(super) config: Interrupt,
    /// Takes `add` and `remove` of the doorbells.
    pub(super) doorbells: Arc<dyn Doorbells>,
    /// What the driver does to notify a queue, one per queue.
    pub(super) bells: Vec<Doorbell>,
}

struct QueueSlot {
    max_size: u16,
    layout: QueueLayout,
    ready: bool,
    kick_evt: Arc<EventFd>,
    interrupt: Interrupt,
    bell: Doorbell,
    /// Whether the doorbell is asked for.
    doorbell: bool,
}

/// A device behind a transport of either kind, as the VM sees it. Called on the VM's main thread,
/// when no vCPU runs.
pub trait Attached: Send + Sync {
    /// Stops the device: requests in flight are finished, and afterwards nothing touches guest
    /// memory. Twice is fine.
    fn stop(&self);

    /// The same for a pause, which [`resume`](Self::resume) ends: the driver sees nothing of it.
    /// Returns everything about the device.
    fn suspend(&self) -> State;

    /// Makes the device what another one, of the same configuration, was when it was suspended.
    /// Guest memory must be what it was then; nothing reads it but the addresses of queues. On
    /// `Err` the device is good for nothing but its end.
    fn restore(&self, state: &State) -> Result<(), StateError>;

    /// Goes on after `suspend` or `restore`. Every interrupt is raised once: one that was on its
    /// way may be lost, and to a driver one too many is nothing. So the driver also looks at the
    /// configuration space again, where something may have changed meanwhile.
    fn resume(&self);
}

/// All bits of the status that a driver may set.
const KNOWN_STATUS: u32 =
    status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK | status::FAILED;

/// Whether a device is at work.
enum Life {
    Stopped,
    Running,
    /// It was at work, and is to go on with these.
    Suspended(Vec<Option<Queue>>),
}

pub(super) struct Transport {
    device: Box<dyn VirtioDevice>,
    mem: Arc<GuestMemory>,
    queues: Vec<QueueSlot>,
    doorbells: Arc<dyn Doorbells>,
    config_change: ConfigChange,
    needs_reset: NeedsReset,
    log: Arc<BoundedLog>,
    status: u32,
    driver_features: u64,
    life: Life,
}

impl Transport {
    pub(super) fn new(
        device: Box<dyn VirtioDevice>,
        mem: Arc<GuestMemory>,
        signals: Signals,
        log: Arc<BoundedLog>,
    ) -> io::Result<Self> {
        let ways = signals.queues.into_iter().zip(signals.bells);
        let queues = device.queue_sizes().iter().zip(ways).map(|(max_size, (interrupt, bell))| {
            Ok(QueueSlot {
                max_size: *max_size,
                layout: QueueLayout { size: u32::from(*max_size), ..Default::default() },
                ready: false,
                kick_evt: Arc::new(EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?),
                interrupt,
                bell,
                doorbell: false,
            })
        });
        Ok(Self {
            queues: queues.collect::<io::Result<_>>()?,
            device,
            mem,
            doorbells: signals.doorbells,
            config_change: ConfigChange::new(signals.config.clone()),
            needs_reset: NeedsReset::new(signals.config, log.clone()),
            log,
            status: 0,
            driver_features: 0,
            life: Life::Stopped,
        })
    }

    pub(super) fn device(&self) -> &dyn VirtioDevice {
        self.device.as_ref()
    }

    /// By queue index; signalled when the driver notifies.
    pub(super) fn kick_evts(&self) -> Vec<Arc<EventFd>> {
        self.queues.iter().map(|queue| queue.kick_evt.clone()).collect()
    }

    /// Says what the driver did wrong, within its budget.
    pub(super) fn complain(&self, what: impl Display) {
        self.log.warn(what);
    }

    pub(super) fn generation(&self) -> u32 {
        *self.config_change.generation()
    }

    pub(super) fn read_config(&self, offset: u64, data: &mut [u8]) {
        let _unchanged = self.config_change.generation();
        self.device.read_config(offset, data);
    }

    pub(super) fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.device.write_config(offset, data);
    }

    /// Bits 32 * `word` and up of what is offered.
    pub(super) fn offered_features(&self, word: u32) -> u32 {
        word_of(self.device.features() | feature::VERSION_1, word)
    }

    /// The driver's choice, until it is sealed by FEATURES_OK.
    pub(super) fn accept_features(&mut self, word: u32, value: u32) {
        if self.status & status::FEATURES_OK != 0 {
            self.complain("features were written after FEATURES_OK");
            return;
        }
        let shift = match word {
            0 => 0,
            1 => 32,
            _ => return,
        };
        let mask = u64::from(u32::MAX) << shift;
        self.driver_features = (self.driver_features & !mask) | (u64::from(value) << shift);
    }

    /// Bits 32 * `word` and up of what the driver has chosen so far.
    pub(super) fn accepted_features(&self, word: u32) -> u32 {
        word_of(self.driver_features, word)
    }

    pub(super) fn queue_max_size(&self, index: u32) -> u32 {
        self.slot(index).map_or(0, |queue| u32::from(queue.max_size))
    }

    pub(super) fn queue_ready(&self, index: u32) -> bool {
        self.slot(index).is_some_and(|queue| queue.ready)
    }

    fn slot(&self, index: u32) -> Option<&QueueSlot> {
        self.queues.get(usize::try_from(index).ok()?)
    }

    /// As the driver has set it so far.
    pub(super) fn queue_layout(&self, index: u32) -> QueueLayout {
        self.slot(index).map(|queue| queue.layout).unwrap_or_default()
    }

    /// Changes where a queue is, unless it is live.
    pub(super) fn set_queue_layout(&mut self, index: u32, change: impl FnOnce(&mut QueueLayout)) {
        let driver_ok = self.status & status::DRIVER_OK != 0;
        let queue = usize::try_from(index).ok().and_then(|index| self.queues.get_mut(index));
        match queue {
            Some(queue) if !driver_ok && !queue.ready => change(&mut queue.layout),
            _ => self.complain(format_args!("queue {index} was written to, and is live or does not exist")),
        }
    }

    /// Enables a queue, or disables it while that is still possible (before DRIVER_OK).
    pub(super) fn set_queue_ready(&mut self, index: u32, ready: bool) {
        let driver_ok = self.status & status::DRIVER_OK != 0;
        let Some(queue) = usize::try_from(index).ok().and_then(|index| self.queues.get_mut(index)) else {
            self.complain(format_args!("there is no queue {index} to enable"));
            return;
        };
        if driver_ok {
            self.complain(format_args!("queue {index} was enabled or disabled while the device runs"));
            return;
        }
        queue.ready = false;
        if !ready {
            return;
        }
        // Checked again at DRIVER_OK; here it shows the driver at once which queue is bad.
        match Queue::new(&queue.layout, queue.max_size, self.driver_features, &self.mem) {
            Ok(_) => queue.ready = true,
            Err(error) => self.needs_reset.raise_unannounced(format_args!("queue {index}: {error}")),
        }
    }

    /// The status with what the device adds to it (virtio 1.2 §2.1).
    pub(super) fn status(&self) -> u32 {
        self.status | if self.needs_reset.is_raised() { status::NEEDS_RESET } else { 0 }
    }

    /// What the driver writes to the status: 0 resets, anything else adds bits, each in its turn
    /// (§3.1.1).
    pub(super) fn set_status(&mut self, value: u32) {
        if value == 0 {
            self.reset();
            return;
        }
        // Drivers write back what they read, the device's own bit included.
        let value = value & 0xff & !status::NEEDS_RESET;
        if self.status & !value != 0 {
            self.complain("a status bit was cleared other than by a reset");
            return;
        }
        let added = value & !self.status;
        self.status |= added & !(status::FEATURES_OK | status::DRIVER_OK);
        if added & status::FEATURES_OK != 0 {
            self.seal_features();
        }
        if added & status::DRIVER_OK != 0 {
            self.go_live();
        }
    }

    /// FEATURES_OK stays clear, which the driver reads back, when the device can't work with the
    /// driver's choice (§3.1.1).
    fn seal_features(&mut self) {
        let offered = self.device.features() | feature::VERSION_1;
        if self.driver_features & !offered != 0 {
            self.complain("the driver wants features that are not offered");
        } else if self.driver_features & feature::VERSION_1 == 0 {
            self.complain("the driver is a legacy one: it does not accept VIRTIO_F_VERSION_1");
        } else if self.status & status::DRIVER == 0 {
            self.complain("FEATURES_OK came before DRIVER");
        } else {
            self.status |= status::FEATURES_OK;
        }
    }

    fn go_live(&mut self) {
        if self.status & status::FEATURES_OK == 0 {
            self.complain("DRIVER_OK came before FEATURES_OK");
            return;
        }
        self.status |= status::DRIVER_OK;
        if self.needs_reset.is_raised() {
            return;
        }
        match self.fresh_queues() {
            Ok(queues) => self.launch(queues),
            Err(error) => self.needs_reset.raise(error),
        }
    }

    fn fresh_queues(&self) -> Result<Vec<Option<Queue>>, QueueError> {
        let fresh = |slot: &QueueSlot| {
            let queue = || Queue::new(&slot.layout, slot.max_size, self.driver_features, &self.mem);
            slot.ready.then(queue).transpose()
        };
        self.queues.iter().map(fresh).collect()
    }

    fn launch(&mut self, queues: Vec<Option<Queue>>) {
        let activate = |(index, (slot, queue)): (usize, (&QueueSlot, Option<Queue>))| {
            queue.map(|queue| {
                let (kick_evt, interrupt) = (slot.kick_evt.clone(), slot.interrupt.clone());
                ActiveQueue::new(
                    index,
                    queue,
                    self.mem.clone(),
                    kick_evt,
                    interrupt,
                    self.needs_reset.clone(),
                )
            })
        };
        let queues = self.queues.iter().zip(queues).enumerate().map(activate).collect();
        let activation = Activation {
            mem: self.mem.clone(),
            features: self.driver_features,
            queues,
            config_change: self.config_change.clone(),
            needs_reset: self.needs_reset.clone(),
        };
        if let Err(error) = self.device.start(activation) {
            return self.needs_reset.raise(format_args!("the device did not start: {error}"));
        }
        self.life = Life::Running;
        // Last: a doorbell is a speed-up, and until it is there the driver's writes arrive as
        // exits.
        for slot in self.queues.iter_mut().filter(|slot| slot.ready) {
            self.doorbells.add(slot.bell, &slot.kick_evt);
            slot.doorbell = true;
        }
    }

    /// Stops the device and removes its doorbells. The driver sees nothing of it. Returns the
    /// queues as they stand, or nothing when the device doesn't run.
    pub(super) fn stop(&mut self) -> Vec<Option<Queue>> {
        for slot in &mut self.queues {
            if std::mem::take(&mut slot.doorbell) {
                self.doorbells.remove(slot.bell, &slot.kick_evt);
            }
        }
        match std::mem::replace(&mut self.life, Life::Stopped) {
            Life::Running => self.device.stop(),
            Life::Suspended(queues) => queues,
            Life::Stopped => Vec::new(),
        }
    }

    /// Stops the device until `resume`. What the registers remember is the caller's to fill in.
    pub(super) fn suspend(&mut self) -> State {
        let queues = self.stop();
        let running = !queues.is_empty();
        let position = |index: usize| queues.get(index).and_then(Option::as_ref).map(Queue::position);
        let state = State {
            kind: self.device.kind(),
            status: self.status,
            features: self.driver_features,
            needs_reset: self.needs_reset.is_raised(),
            generation: self.generation(),
            running,
            queues: (0..)
                .zip(&self.queues)
                .map(|(index, slot)| QueueState {
                    layout: slot.layout,
                    enabled: slot.ready,
                    position: position(index).unwrap_or_default(),
                })
                .collect(),
            // Of a driver that is gone nothing is worth remembering.
            device: if running { self.device.state() } else { Remembered::Null },
            registers: Remembered::Null,
        };
        if running {
            self.life = Life::Suspended(queues);
            if let Err(why) = self.device.restore(&state.device) {
                self.log.error(format_args!("it refuses its own state: {why}"));
            }
        }
        state
    }

    /// Becomes what was suspended. The device must be fresh.
    pub(super) fn restore(&mut self, state: &State) -> Result<(), StateError> {
        self.take_over(state).map_err(|why| StateError { kind: self.device.kind(), why })
    }

    fn take_over(&mut self, state: &State) -> Result<(), String> {
        let refuse = |refused: bool, why: &str| if refused { Err(why.to_owned()) } else { Ok(()) };
        let (kind, offered) = (self.device.kind(), self.device.features() | feature::VERSION_1);
        refuse(state.kind != kind, "it is of another kind of device")?;
        refuse(state.queues.len() != self.queues.len(), "it has another number of queues")?;
        let is_sealed = state.status & status::FEATURES_OK != 0;
        refuse(is_sealed && state.features & !offered != 0, "its driver uses features that are not offered")?;
        let is_sound = is_sealed && state.features & feature::VERSION_1 != 0;
        refuse(state.status & !KNOWN_STATUS != 0, "its status has bits that mean nothing")?;
        refuse(state.status & status::DRIVER_OK != 0 && !is_sound, "its driver was ready too early")?;
        refuse(state.running && state.status & status::DRIVER_OK == 0, "it was at work without a driver")?;
        let queue = |(index, (slot, queue)): (usize, (&QueueSlot, &QueueState))| {
            let (layout, max_size) = (&queue.layout, slot.max_size);
            let made = || Queue::at(queue.position, layout, max_size, state.features, &self.mem);
            queue.enabled.then(made).transpose().map_err(|error| format!("queue {index}: {error}"))
        };
        let queues = self.queues.iter().zip(&state.queues).enumerate().map(queue);
        let queues = queues.collect::<Result<Vec<_>, _>>()?;
        if state.running {
            self.device.restore(&state.device)?;
        } else {
            refuse(!state.device.is_null(), "it remembers a driver that is not there")?;
        }
        for (slot, queue) in self.queues.iter_mut().zip(&state.queues) {
            slot.layout = queue.layout;
            slot.ready = queue.enabled;
        }
        self.status = state.status;
        self.driver_features = state.features;
        *self.config_change.generation() = state.generation;
        if state.needs_reset {
            self.needs_reset.raise_unannounced("it had to when it was suspended");
        }
        self.life = if state.running { Life::Suspended(queues) } else { Life::Stopped };
        Ok(())
    }

    /// Goes on after `suspend` or `restore`; nothing if the device was not at work.
    pub(super) fn resume(&mut self) {
        match std::mem::replace(&mut self.life, Life::Stopped) {
            Life::Suspended(queues) => self.launch(queues),
            other => {
                self.life = other;
                if self.needs_reset.is_raised() && self.status & status::DRIVER_OK != 0 {
                    self.config_change.apply(|| {});
                }
                return;
            }
        }
        for slot in self.queues.iter().filter(|slot| slot.ready) {
            slot.interrupt.signal();
        }
        // What stands in the space may be another machine's by now.
        self.config_change.apply(|| {});
    }

    /// §2.4.1, §4.2.2.1: everything as it was before the driver came.
    fn reset(&mut self) {
        drop(self.stop());
        for slot in &mut self.queues {
            slot.layout = QueueLayout { size: u32::from(slot.max_size), ..Default::default() };
            slot.ready = false;
            // A notification from before says nothing about what comes.
            let _ = slot.kick_evt.read();
        }
        self.driver_features = 0;
        self.status = 0;
        self.needs_reset.clear();
    }
}

/// Sets the low half of an address.
pub(super) fn set_low(address: &mut u64, value: u32) {
    *address = (*address & !u64::from(u32::MAX)) | u64::from(value);
}

/// Sets the high half of an address.
pub(super) fn set_high(address: &mut u64, value: u32) {
    *address = (*address & u64::from(u32::MAX)) | (u64::from(value) << 32);
}

fn word_of(features: u64, word: u32) -> u32 {
    let bits = features.checked_shr(word.saturating_mul(32)).unwrap_or(0) & u64::from(u32::MAX);
    u32::try_from(bits).expect("masked to 32 bits")
}
