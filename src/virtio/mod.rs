//! Virtio devices (virtio 1.2), each built on the contract in [`core::device`].
//!
//! A device names no transport and nothing of the VM around it: it gets guest memory, queues and
//! interrupts, and gives back what it did with them. One directory or file per device; siblings
//! don't see each other.

pub mod balloon;
pub mod blk;
pub mod console;
pub mod core;
pub mod net;
pub mod rng;
pub mod vsock;
