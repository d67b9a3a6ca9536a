//! The contract between a virtio device and its transport.
//!
//! The transport owns what the driver negotiates (status, features, queue registers) and answers
//! the guest; the device owns what it is for. They meet in [`VirtioDevice`], and what passes
//! between them while the device runs is [`Interrupt`](super::interrupt::Interrupt)s and the kick
//! eventfds of [`ActiveQueue`]: atomics and eventfds, nothing that takes a lock.
//!
//! A device's life: built (its threads and descriptors exist, parked) -> `start` at DRIVER_OK ->
//! running -> `stop` -> built again. Reset by the guest, pause and a snapshot are the same `stop`
//! followed by different code: for the last two the device says what it remembers (`state`), and
//! it, or another one like it, is told before the next `start` (`restore`). Nothing is created
//! between `start` and `stop`: no thread, no descriptor, no ring.
//!
//! A device never handles a driver that breaks a ring: [`ActiveQueue`] stops serving that queue and
//! raises [`NeedsReset`] by itself. The other queues of the device go on.

use std::io;
use std::sync::Arc;

use super::active::ActiveQueue;
use super::interrupt::{ConfigChange, NeedsReset};
use super::queue::Queue;
use super::state::Remembered;
use crate::memory::GuestMemory;

/// A virtio device, as its transport sees it. All methods are called under the transport's lock, so
/// never two at once.
pub trait VirtioDevice: Send {
    /// The device type (virtio 1.2 §5), e.g. 2 for a block device. Called at any time; constant.
    fn kind(&self) -> u32;

    /// The features that the device offers, its own and the ring's (virtio 1.2 §2.2, §6). Called at
    /// any time; constant. `VIRTIO_F_VERSION_1` is added by the transport, which accepts no driver
    /// without it.
    fn features(&self) -> u64;

    /// The largest size of each queue, a power of two up to 32768; the length is the number of
    /// queues. Called at any time; constant.
    fn queue_sizes(&self) -> &[u16];

    /// Reads device configuration space. Called on a vCPU thread, before and after `start`. Bytes
    /// past the end of the space are left as they are (ones). Most devices call
    /// [`read_config_bytes`].
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes device configuration space. Called on a vCPU thread, before and after `start`. Most
    /// devices have nothing writable: the default ignores the write.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// The driver is ready (DRIVER_OK): the queues *move* into the device's worker, which serves
    /// them until `stop`. Called on a vCPU thread when the device is stopped, never twice in a row.
    /// It only hands over; it doesn't wait for a request. There is one entry per queue of
    /// `queue_sizes`; a queue that the driver didn't enable is `None`. Chains may be waiting
    /// already, with no kick to come for them. On `Err` the device is still stopped, and the
    /// transport sets DEVICE_NEEDS_RESET.
    fn start(&mut self, activation: Activation) -> io::Result<()>;

    /// Takes the queues back from the worker and returns them as they stand, one entry per queue,
    /// with every popped chain completed or put back: requests in flight are finished first, those
    /// still on the avail ring stay there. Afterwards no thread of the device touches guest memory
    /// or raises an interrupt. Called on a vCPU thread (reset) or the VM's main thread (pause, the
    /// end). Twice is fine: a stopped device returns an empty vector.
    fn stop(&mut self) -> Vec<Option<Queue>>;

    /// What the device remembers of its driver that neither its configuration nor its queues say.
    /// Called when the device is stopped. The default is nothing.
    fn state(&self) -> Remembered {
        Remembered::Null
    }

    /// Makes the device what another one, of the same configuration, was when its `state` was
    /// taken: the next `start` goes on where that one stopped. Called when the device is stopped;
    /// what it is given is as little trusted as a guest. On `Err`, which says what is wrong with
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

/// Copies what overlaps of a configuration space that is `space`, and leaves the rest of `data` as
/// it is.
pub fn read_config_bytes(space: &[u8], offset: u64, data: &mut [u8]) {
    let rest = usize::try_from(offset).ok().and_then(|offset| space.get(offset..)).unwrap_or_default();
    let len = rest.len().min(data.len());
    data[..len].copy_from_slice(&rest[..len]);
}
