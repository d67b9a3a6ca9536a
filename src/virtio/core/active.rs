//! A queue at work: the ring, its doorbell and its interrupt in one, and the loop that a device
//! runs on them.
//!
//! Most devices call [`ActiveQueue::run`] with a closure that answers one chain, and are done. A
//! device that waits for more than its driver (a network device waits for packets) has a loop of
//! its own over `pop`, `complete`, `put_back` and `interrupt_if_needed`.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Instant;

use vmm_sys_util::eventfd::EventFd;

use super::chain::Chain;
use super::interrupt::{Interrupt, NeedsReset};
use super::limit::Throttle;
use super::queue::Queue;
use super::worker::Stop;
use crate::memory::GuestMemory;
use crate::poll::{self, Source};

/// When the driver hears of completed chains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notify {
    /// After each one: right where a chain takes long compared to an interrupt.
    EachChain,
    /// After all that are available, or [`BATCH`] bytes of them: right where many short ones come
    /// together.
    Burst,
}

/// Bytes of completed chains of which the driver hasn't heard, beyond which it should: what it does
/// about them it can do while the device goes on. Less would be an interrupt for each small chain.
const BATCH: u64 = 64 << 10;

/// A queue that the driver has set up, and its two signals. Moves into the device's worker at
/// `start`; as a descriptor (for [`poll::readable`]) it is readable when the driver has notified.
pub struct ActiveQueue {
    index: usize,
    queue: Queue,
    mem: Arc<GuestMemory>,
    // Readable when the driver has notified the queue. The same eventfd for the life of the VM.
    kick_evt: Arc<EventFd>,
    interrupt: Interrupt,
    needs_reset: NeedsReset,
    throttle: Arc<Throttle>,
    // Bytes of what was completed since the driver was last told.
    untold: u64,
}

impl AsRawFd for ActiveQueue {
    fn as_raw_fd(&self) -> RawFd {
        self.kick_evt.as_raw_fd()
    }
}

impl ActiveQueue {
    /// For transports. `kick_evt` must not block.
    pub fn new(
        index: usize,
        queue: Queue,
        mem: Arc<GuestMemory>,
        kick_evt: Arc<EventFd>,
        interrupt: Interrupt,
        needs_reset: NeedsReset,
    ) -> Self {
        Self { index, queue, mem, kick_evt, interrupt, needs_reset, throttle: Arc::default(), untold: 0 }
    }

    /// Which of the device's queues it is.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Serves it no faster than this from now on.
    pub fn limit(&mut self, throttle: Arc<Throttle>) {
        self.throttle = throttle;
    }

    /// When it may be served, by its limit; `None` if now. [`serve`](Self::serve) asks by itself.
    pub fn ready_at(&self) -> Option<Instant> {
        self.throttle.ready_at()
    }

    /// Counts a request of so many bytes against its limit, as [`serve`](Self::serve) does by
    /// itself.
    pub fn charge(&self, bytes: u64) {
        self.throttle.charge(bytes);
    }

    /// Number of descriptors.
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// The ring, for the `stop` of the device.
    pub fn into_queue(self) -> Queue {
        self.queue
    }

    /// The guest's memory.
    pub fn mem(&self) -> &Arc<GuestMemory> {
        &self.mem
    }

    /// Serves the queue until `stop` is set: waits for the driver, hands each chain to `answer`,
    /// which returns how many bytes it wrote from the start of the writable part, completes it, and
    /// interrupts where the driver wants it.
    pub fn run(&mut self, stop: &Stop, notify: Notify, mut answer: impl FnMut(&Chain, &GuestMemory) -> u32) {
        // What was available before `start` may have no kick to come.
        let mut wait = self.serve(stop, notify, &mut answer);
        while !stop.is_set() {
            // While it may not serve, a kick tells it nothing.
            let kick = if wait.is_none() { Source::readable(self) } else { Source::none() };
            poll::wait_readable([Source::readable(stop), kick], wait);
            self.drain_kick();
            wait = self.serve(stop, notify, &mut answer);
        }
    }

    /// Hands the chains that are available to `answer`, as `run` does, and returns. When a driver
    /// keeps adding more, it stops after one queue's worth and leaves the doorbell rung, so that a
    /// loop over several sources neglects none. When it has used up its limit it stops as well, and
    /// says when to serve it again: until then no kick is needed, and none may come.
    pub fn serve(
        &mut self,
        stop: &Stop,
        notify: Notify,
        mut answer: impl FnMut(&Chain, &GuestMemory) -> u32,
    ) -> Option<Instant> {
        self.disable_notification();
        let mut left = self.queue.size();
        while left > 0 && !stop.is_set() {
            if let Some(ready_at) = self.throttle.ready_at() {
                self.interrupt_if_needed();
                return Some(ready_at);
            }
            let Some(chain) = self.pop() else {
                self.interrupt_if_needed();
                if !self.enable_notification() {
                    return None;
                }
                self.disable_notification();
                // Counts as well: the index may promise a chain that `pop` never finds.
                left -= 1;
                continue;
            };
            let written = answer(&chain, &self.mem);
            let bytes = u64::from(chain.readable_len()) + u64::from(written);
            self.throttle.charge(bytes);
            self.complete(chain, written);
            match notify {
                Notify::EachChain => self.interrupt_if_needed(),
                Notify::Burst => self.interrupt_if_due(bytes),
            }
            left -= 1;
        }
        self.interrupt_if_needed();
        self.kick();
        None
    }

    /// Takes the next chain. When the driver has broken the ring: reports it, raises
    /// DEVICE_NEEDS_RESET, and from then on there is none.
    pub fn pop(&mut self) -> Option<Chain> {
        self.queue.pop(&self.mem).unwrap_or_else(|error| {
            self.needs_reset.raise(format_args!("queue {}: {error}", self.index));
            None
        })
    }

    /// Ends a chain into whose writable part `written` bytes went, from its start. Doesn't
    /// interrupt.
    pub fn complete(&mut self, chain: Chain, written: u32) {
        if let Err(error) = self.queue.complete(&self.mem, chain, written) {
            self.needs_reset.raise(format_args!("queue {}: {error}", self.index));
        }
    }

    /// Ends several chains, in this order, each with what was written to it: the driver sees all of
    /// them or none. Doesn't interrupt.
    pub fn complete_together(&mut self, chains: impl IntoIterator<Item = (Chain, u32)>) {
        if let Err(error) = self.queue.complete_together(&self.mem, chains) {
            self.needs_reset.raise(format_args!("queue {}: {error}", self.index));
        }
    }

    /// The driver has broken the rules of the device: says so, raises DEVICE_NEEDS_RESET, and from
    /// then on there is no chain.
    pub fn fail(&mut self, why: &str) {
        self.queue.fail();
        self.needs_reset.raise(format_args!("queue {}: {why}", self.index));
    }

    /// Undoes the last `pop`.
    pub fn put_back(&mut self, chain: Chain) {
        self.queue.put_back(chain);
    }

    /// Interrupts, if anything was completed since the last time and the driver wants to know.
    pub fn interrupt_if_needed(&mut self) {
        self.untold = 0;
        if self.queue.needs_interrupt(&self.mem) {
            self.interrupt.signal();
        }
    }

    /// The same, if the chains that were completed since are worth it: so many bytes more than when
    /// this was last called.
    pub fn interrupt_if_due(&mut self, bytes: u64) {
        self.untold += bytes;
        if self.untold >= BATCH {
            self.interrupt_if_needed();
        }
    }

    /// Tells the driver not to notify for now.
    pub fn disable_notification(&mut self) {
        self.queue.disable_notification(&self.mem);
    }

    /// Lets the driver notify again; true when chains came in the meantime, so that it may not.
    pub fn enable_notification(&mut self) -> bool {
        self.queue.enable_notification(&self.mem)
    }

    /// Forgets the notifications so far. Before looking at the ring, never after.
    pub fn drain_kick(&self) {
        // EAGAIN when there was none.
        let _ = self.kick_evt.read();
    }

    /// Rings the queue's own doorbell, so that the next wait returns at once.
    pub fn kick(&self) {
        // EAGAIN when the counter is full: rung enough.
        let _ = self.kick_evt.write(1);
    }
}

#[cfg(test)]
#[path = "active_tests.rs"]
mod tests;
