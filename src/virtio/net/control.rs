//! The control queue (virtio 1.2 §5.1.6.5): how many queue pairs the driver uses. There is one
//! where a device has several pairs.
//!
//! The kernel spreads an interface's packets over all of its queues, so those that the driver
//! doesn't use are detached from it.

use std::sync::{Arc, Mutex, MutexGuard};

use vmm_sys_util::eventfd::EventFd;

use super::port::Port;
use crate::bounded_log::BoundedLog;
use crate::memory::GuestMemory;
use crate::virtio::core::chain::Chain;
use crate::virtio::core::spec::net::ctrl;

/// The queues of a tap, and who serves them.
pub(super) struct Pairs {
    queues: Vec<(Arc<dyn Port>, Arc<EventFd>)>,
    /// How many are attached.
    count: Mutex<usize>,
    log: BoundedLog,
}

impl Pairs {
    /// `queues` are the tap's, each with what wakes its thread. The first is attached.
    pub(super) fn new(queues: Vec<(Arc<dyn Port>, Arc<EventFd>)>, log: BoundedLog) -> Self {
        Self { queues, count: Mutex::new(1), log }
    }

    /// How many queues get packets.
    pub(super) fn count(&self) -> usize {
        *self.lock()
    }

    fn lock(&self) -> MutexGuard<'_, usize> {
        self.count.lock().expect("a panic under this lock ends the process")
    }

    /// From now on packets come to the first `count` queues alone.
    pub(super) fn set_count(&self, count: usize) {
        let mut before = self.lock();
        // Each change waits for all of the host's network: none that isn't one.
        for index in count.min(*before)..count.max(*before) {
            let (queue, wake) = &self.queues[index];
            // A tap that is gone refuses.
            if let Err(error) = queue.attach(index < count) {
                log::debug!("{}: queue {index}: {error}", self.log.who());
            }
            // EAGAIN when the counter is full: woken enough.
            let _ = wake.write(1);
        }
        *before = count;
    }

    /// Obeys the command in `chain`, and returns how many bytes of its writable part are written.
    pub(super) fn obey(&self, chain: &Chain, mem: &GuestMemory) -> u32 {
        let mut reader = chain.reader(mem);
        let command: Option<[u8; 2]> = reader.read_array();
        let count: Option<[u8; 2]> = reader.read_array();
        let count = count.map(|count| usize::from(u16::from_le_bytes(count)));
        let ack = match (command, count) {
            (Some([ctrl::MQ, ctrl::MQ_VQ_PAIRS_SET]), Some(count))
                if (1..=self.queues.len()).contains(&count) =>
            {
                self.set_count(count);
                ctrl::OK
            }
            _ => {
                self.log.warn("a command that the control queue doesn't know");
                ctrl::ERR
            }
        };
        // The last byte, and there is no other (§5.1.6.5).
        chain.writer(mem).write(&[ack])
    }
}
