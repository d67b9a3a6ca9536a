//! A device and its driver at rest, as plain data: what one virtual machine hands over, and another
//! goes on with.
//!
//! A [`State`] is all about a device that neither its configuration nor guest memory says. It may
//! come from anywhere, so that it is as little trusted as a guest: whoever takes it checks
//! everything, and refuses what could not have come about.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::queue::{Position, QueueLayout};

/// What a device itself, or the registers in front of it, remember: of a shape that only they know.
/// `Null` for nothing.
pub type Remembered = serde_json::Value;

/// Everything about a device and its driver.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// The device type.
    pub kind: u32,
    /// The device status, as the driver has set it.
    pub status: u32,
    /// The features that the driver has chosen.
    pub features: u64,
    /// DEVICE_NEEDS_RESET.
    pub needs_reset: bool,
    /// Of the configuration space.
    pub generation: u32,
    /// Whether the device was at work: DRIVER_OK, and nothing was wrong with it.
    pub running: bool,
    /// One for each of the device's queues.
    pub queues: Vec<QueueState>,
    /// What the device remembers.
    pub device: Remembered,
    /// What the transport's registers remember.
    pub registers: Remembered,
}

/// A queue, set up or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueueState {
    /// Where the driver has put it.
    pub layout: QueueLayout,
    /// Whether the driver has enabled it.
    pub enabled: bool,
    /// How far it got.
    pub position: Position,
}

/// Why a state can't be taken over.
#[derive(Debug, Error)]
#[error("the state of virtio device {kind} is not one of this device's: {why}")]
pub struct StateError {
    /// The device type.
    pub kind: u32,
    /// What is wrong.
    pub why: String,
}

/// What is remembered, as the type that knows its shape.
pub fn recall<T: for<'a> Deserialize<'a>>(remembered: &Remembered) -> Result<T, String> {
    T::deserialize(remembered).map_err(|error| error.to_string())
}

/// The other way round.
pub fn remember(what: &impl Serialize) -> Remembered {
    serde_json::to_value(what).expect("numbers, lists and names")
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
