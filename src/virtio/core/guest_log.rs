//! What a guest can make us say, in a measured dose.
//!
//! A guest may do a wrong thing a million times a second; the first few times are worth a line each, the rest would only
//! bury everything else. So each device has a budget for its life, which a reset doesn't refill.

use std::fmt::Display;
use std::sync::atomic::{AtomicU32, Ordering};

/// Lines that a guest may cause for one device.
const BUDGET: u32 = 8;

/// Warnings about one device that its guest can trigger. Shared between the device's threads; takes no lock.
#[derive(Debug)]
pub struct GuestLog {
    who: String,
    used: AtomicU32,
}

impl GuestLog {
    /// A full budget for the device that `who` names at the start of each line.
    pub fn new(who: impl Into<String>) -> Self {
        Self { who: who.into(), used: AtomicU32::new(0) }
    }

    /// The device's name, for lines that the host itself causes.
    pub fn who(&self) -> &str {
        &self.who
    }

    /// Logs `what` as a warning, or nothing when the budget is spent. Returns whether it was said.
    pub fn warn(&self, what: impl Display) -> bool {
        // Checked before it counts, so that the counter can't wrap.
        if self.used.load(Ordering::Relaxed) >= BUDGET {
            return false;
        }
        match self.used.fetch_add(1, Ordering::Relaxed) {
            n if n + 1 < BUDGET => log::warn!("{}: {what}", self.who),
            n if n + 1 == BUDGET => log::warn!("{}: {what} (no more of this will be reported)", self.who),
            _ => return false,
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_gets_a_bounded_number_of_lines() {
        let log = GuestLog::new("test");
        let said = (0..1000).filter(|i| log.warn(i)).count();
        assert_eq!(said, BUDGET as usize);
    }
}
