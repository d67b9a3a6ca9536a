//! What every virtio device stands on.
//!
//! - [`device`] is the contract between a device and its transport.
//! - [`active`] is a queue at work: it runs the device's loop and raises its interrupts.
//! - [`queue`] and [`chain`] are the ring and what the driver puts on it, checked.
//! - [`iovec`] moves bytes between guest memory and file descriptors without copying.
//! - [`limit`] holds a device to so many operations and bytes in a second.
//! - [`worker`] is the thread that a device runs on.
//! - [`transport`] holds what the driver negotiates; [`mmio`] and [`pci`] are two kinds of
//!   registers in front of it.
//! - [`spec`] has the specification's numbers.
//!
//! Nothing here names a particular device (but for the numbers in `spec`).

pub mod active;
pub mod chain;
pub mod device;
pub mod interrupt;
pub mod iovec;
pub mod limit;
pub mod mmio;
pub mod pci;
pub mod queue;
pub mod spec;
pub mod state;
#[cfg(test)]
pub mod testing;
pub mod transport;
pub mod worker;
