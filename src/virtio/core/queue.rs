//! A split virtqueue (virtio 1.2 §2.7), from the device's side: takes chains off the avail ring,
//! puts them on the used ring.
//!
//! The avail ring is `virtio-queue`'s, with its arithmetic and its memory barriers. The walk along
//! a chain is ours ([`Chain`]), because it refuses what that crate passes over, and so is the used
//! ring, because that crate has no way to show the driver several entries at once. A queue is plain
//! data: it holds no thread, no descriptor and no guest memory, so where the driver put it
//! ([`QueueLayout`]) and how far it got ([`Position`]) is all there is to it.
//!
//! A malformed ring or chain is reported once, by the `pop` that met it. From then on the queue is
//! *failed*: it pops nothing any more, while chains that are in flight can still be completed.

use std::sync::atomic::{Ordering, fence};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use virtio_queue::{QueueOwnedT, QueueState, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::chain::{Chain, ChainError, Segment};
use super::spec::{feature, ring};
use crate::memory::GuestMemory;

/// Where the driver put a queue, as it says: nothing is checked yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueueLayout {
    /// Number of descriptors.
    pub size: u32,
    /// GPA of the descriptor table.
    pub desc_table: u64,
    /// GPA of the avail ring (the "driver area").
    pub avail_ring: u64,
    /// GPA of the used ring (the "device area").
    pub used_ring: u64,
}

/// How far a queue got: 0 and 0 when it begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Position {
    /// The index in the avail ring from which the next chain will be taken.
    pub next_avail: u16,
    /// The index in the used ring at which the next one will be put.
    pub next_used: u16,
    /// The driver has broken it.
    pub failed: bool,
}

/// What a driver can do wrong with a queue.
#[derive(Debug, Error)]
pub enum QueueError {
    /// §2.7: a power of two, and not more than the device offers.
    #[error("a queue of {size} descriptors, where {max} is the most")]
    Size {
        /// What the driver wants.
        size: u32,
        /// What the device offers.
        max: u16,
    },
    /// §2.7: each part has its alignment; and none is at 0, which is where one ends up that was
    /// never set.
    #[error("the {part} at {gpa:#x} is misaligned or was not set")]
    Misplaced {
        /// Which part of the queue.
        part: &'static str,
        /// Where it is.
        gpa: u64,
    },
    /// The device would read or write nothing there.
    #[error("the {part} at {gpa:#x} is not in memory")]
    OutsideMemory {
        /// Which part of the queue.
        part: &'static str,
        /// Where it is.
        gpa: u64,
    },
    /// More chains are on offer than there are descriptors.
    #[error("the avail ring is ahead by more than the queue's size, or a chain is on it twice")]
    TooManyAvailable,
    /// A chain is malformed.
    #[error("malformed descriptor chain: {0}")]
    Chain(#[from] ChainError),
    /// Anything else about the ring.
    #[error("malformed ring: {0}")]
    Ring(virtio_queue::Error),
}

impl From<virtio_queue::Error> for QueueError {
    fn from(error: virtio_queue::Error) -> Self {
        match error {
            virtio_queue::Error::InvalidAvailRingIndex => Self::TooManyAvailable,
            other => Self::Ring(other),
        }
    }
}

/// A queue that the driver has set up.
#[derive(Debug)]
pub struct Queue {
    ring: virtio_queue::Queue,
    indirect: bool,
    failed: bool,
    in_flight: u16,
    // Chains that were completed since `needs_interrupt` last answered.
    unsignalled: u16,
    // Lists of finished chains, for the next ones: steady traffic allocates nothing.
    spare: Vec<Vec<Segment>>,
}

impl Queue {
    /// A fresh queue, everything about it checked. `max_size` is what the device offers, `features`
    /// what was negotiated.
    pub fn new(
        layout: &QueueLayout,
        max_size: u16,
        features: u64,
        mem: &GuestMemory,
    ) -> Result<Self, QueueError> {
        Self::at(Position::default(), layout, max_size, features, mem)
    }

    /// The same, for one that got so far already. Any position is good: one that the driver doesn't
    /// know of is found out by [`pop`](Self::pop).
    pub fn at(
        position: Position,
        layout: &QueueLayout,
        max_size: u16,
        features: u64,
        mem: &GuestMemory,
    ) -> Result<Self, QueueError> {
        let size = u16::try_from(layout.size)
            .ok()
            .filter(|size| size.is_power_of_two() && *size <= max_size)
            .ok_or(QueueError::Size { size: layout.size, max: max_size })?;
        let entries = usize::from(size);
        // Sizes and alignments of §2.7: 16 bytes a descriptor; flags, index, 2 bytes an entry and
        // used_event; flags, index, 8 bytes an entry and avail_event.
        for (part, gpa, align, len) in [
            ("descriptor table", layout.desc_table, 16, 16 * entries),
            ("avail ring", layout.avail_ring, 2, 6 + 2 * entries),
            ("used ring", layout.used_ring, 4, 6 + 8 * entries),
        ] {
            if gpa == 0 || gpa % align != 0 {
                return Err(QueueError::Misplaced { part, gpa });
            }
            if !mem.check_range(GuestAddress(gpa), len) {
                return Err(QueueError::OutsideMemory { part, gpa });
            }
        }
        let ring = virtio_queue::Queue::try_from(QueueState {
            max_size,
            next_avail: position.next_avail,
            next_used: position.next_used,
            event_idx_enabled: features & feature::EVENT_IDX != 0,
            size,
            ready: true,
            desc_table: layout.desc_table,
            avail_ring: layout.avail_ring,
            used_ring: layout.used_ring,
        })?;
        let indirect = features & feature::INDIRECT_DESC != 0;
        let failed = position.failed;
        Ok(Self { ring, indirect, failed, in_flight: 0, unsignalled: 0, spare: Vec::new() })
    }

    /// How far it got. No chain may be in flight.
    pub fn position(&self) -> Position {
        debug_assert_eq!(self.in_flight, 0, "a position is taken when every chain is completed");
        let (next_avail, next_used) = (self.ring.next_avail(), self.ring.next_used());
        Position { next_avail, next_used, failed: self.failed }
    }

    /// Number of descriptors.
    pub fn size(&self) -> u16 {
        self.ring.size()
    }

    /// Whether the driver has broken the queue.
    pub fn failed(&self) -> bool {
        self.failed
    }

    /// From now on the queue is failed.
    pub fn fail(&mut self) {
        self.failed = true;
    }

    /// Takes the next chain, if there is one. An error comes once; afterwards the queue is failed
    /// and empty.
    pub fn pop(&mut self, mem: &GuestMemory) -> Result<Option<Chain>, QueueError> {
        if self.failed {
            return Ok(None);
        }
        self.try_pop(mem).inspect_err(|_| self.failed = true)
    }

    fn try_pop(&mut self, mem: &GuestMemory) -> Result<Option<Chain>, QueueError> {
        let Some(head) = self.ring.iter(mem)?.next().map(|chain| chain.head_index()) else {
            return Ok(None);
        };
        let size = self.ring.size();
        let chain = if self.in_flight == size {
            Err(QueueError::TooManyAvailable)
        } else {
            let table = GuestAddress(self.ring.desc_table());
            let segments = self.spare.pop().unwrap_or_default();
            Chain::walk(mem, table, size, head, self.indirect, segments).map_err(QueueError::from)
        };
        let chain = chain.inspect_err(|_| self.ring.go_to_previous_position())?;
        self.in_flight += 1;
        Ok(Some(chain.popped_at(self.ring.next_avail())))
    }

    /// Gives the last popped chain back to the avail ring, as if it had not been popped.
    pub fn put_back(&mut self, chain: Chain) {
        assert_eq!(chain.position(), self.ring.next_avail(), "only the last popped chain can go back");
        self.ring.go_to_previous_position();
        self.retire(chain);
    }

    /// Ends a chain: the driver may have it back. The device has written `written` bytes from the
    /// start of its writable part (§2.7.8).
    pub fn complete(&mut self, mem: &GuestMemory, chain: Chain, written: u32) -> Result<(), QueueError> {
        self.complete_together(mem, [(chain, written)])
    }

    /// Ends several chains, in this order, each with what was written to it. The driver sees all of
    /// them or none.
    pub fn complete_together(
        &mut self,
        mem: &GuestMemory,
        chains: impl IntoIterator<Item = (Chain, u32)>,
    ) -> Result<(), QueueError> {
        let ring = self.ring.used_ring();
        let mut next = self.ring.next_used();
        let mut done = Ok(());
        for (chain, written) in chains {
            debug_assert!(written <= chain.writable_len(), "a device writes only what it may");
            let (head, written) = (chain.head(), written.min(chain.writable_len()));
            self.retire(chain);
            let entry = u64::from(head) | u64::from(written) << 32;
            let slot = ring + 4 + u64::from(next % self.ring.size()) * 8;
            done = done.and(mem.write_slice(&entry.to_le_bytes(), GuestAddress(slot)));
            next = next.wrapping_add(1);
            // At the most everything that there can be: then the answer is yes in any case.
            self.unsignalled = self.unsignalled.saturating_add(1);
        }
        self.ring.set_next_used(next);
        // §2.7.8.2: the entries come before the index that says that they are there.
        let done = done.and_then(|()| mem.store(next.to_le(), GuestAddress(ring + 2), Ordering::Release));
        done.map_err(|error| {
            self.failed = true;
            virtio_queue::Error::GuestMemory(error).into()
        })
    }

    fn retire(&mut self, chain: Chain) {
        self.in_flight -= 1;
        let mut segments = chain.finish();
        segments.clear();
        self.spare.push(segments);
    }

    /// Whether the driver wants an interrupt for what was completed since this was last asked
    /// (§2.7.7, §2.7.10).
    pub fn needs_interrupt(&mut self, mem: &GuestMemory) -> bool {
        let completed = std::mem::take(&mut self.unsignalled);
        if completed == 0 {
            return false;
        }
        // The used index must be out before the driver's wish is read: the driver does it the other
        // way round (§2.7.10.1).
        fence(Ordering::SeqCst);
        // In doubt, one interrupt too many.
        if self.ring.event_idx_enabled() {
            // §2.7.10: whether the index that the driver waits for is among those that were just
            // used.
            let used_event = self.ring.avail_ring() + 4 + u64::from(self.ring.size()) * 2;
            let wanted = mem.load::<u16>(GuestAddress(used_event), Ordering::Relaxed);
            return wanted.map_or(true, |wanted| {
                self.ring.next_used().wrapping_sub(u16::from_le(wanted)).wrapping_sub(1) < completed
            });
        }
        let flags = mem.load::<u16>(GuestAddress(self.ring.avail_ring()), Ordering::Relaxed);
        flags.map_or(true, |flags| u16::from_le(flags) & ring::AVAIL_F_NO_INTERRUPT == 0)
    }

    /// Tells the driver not to notify: the device is looking anyway.
    pub fn disable_notification(&mut self, mem: &GuestMemory) {
        if self.ring.disable_notification(mem).is_err() {
            self.failed = true;
        }
    }

    /// Asks the driver to notify again, and returns whether a chain came in the meantime without
    /// one: then look again.
    pub fn enable_notification(&mut self, mem: &GuestMemory) -> bool {
        !self.failed && self.ring.enable_notification(mem).unwrap_or(false)
    }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
