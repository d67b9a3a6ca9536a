//! Notices that much memory has become free, so that the host can have it at once: by itself the kernel tells of free memory after
//! seconds, and not of all of it.
//!
//! It looks once a second, which costs one system call. What a program frees and takes again in circles is left alone: memory
//! counts as free when it still is at the next look.

use std::time::{Duration, Instant};

/// Between two looks.
const PAUSE: Duration = Duration::from_secs(1);
/// After the host was told: by then it has taken what it wants, and the guest has it back.
const REST: Duration = Duration::from_secs(4);
/// What is worth to be told, in bytes.
const MUCH: u64 = 64 << 20;
/// What stays with the guest for what comes next, in bytes: at least this, or a sixteenth of what is free.
const KEPT: u64 = 16 << 20;
/// What may come and go between two looks, in bytes.
const UNREST: u64 = 16 << 20;

pub(crate) struct Spare {
    look_at: Instant,
    /// The least that was free since the host was told last.
    least: u64,
    /// What was free at the last look.
    last: u64,
}

impl Spare {
    /// What is free now is nothing new: most of it has never been used.
    pub(crate) fn new(now: Instant) -> Self {
        Self { look_at: now + PAUSE, least: u64::MAX, last: 0 }
    }

    /// When to [`look`](Self::look) next.
    pub(crate) fn look_at(&self) -> Instant {
        self.look_at
    }

    /// Looks, if it is time to, and returns what the host may have, in MiB. `free` asks how many bytes are free.
    pub(crate) fn look(&mut self, now: Instant, free: impl FnOnce() -> u64) -> Option<u32> {
        if now < self.look_at {
            return None;
        }
        let free = free();
        let is_calm = free.abs_diff(std::mem::replace(&mut self.last, free)) <= UNREST;
        self.least = self.least.min(free);
        self.look_at = now + PAUSE;
        if !is_calm || free - self.least < MUCH {
            return None;
        }
        self.least = free;
        self.look_at = now + REST;
        let spare = free.saturating_sub(KEPT.max(free / 16));
        u32::try_from(spare >> 20).ok()
    }
}

/// Bytes of memory that nothing uses.
pub(crate) fn free_bytes() -> u64 {
    let info = rustix::system::sysinfo();
    info.freeram.saturating_mul(u64::from(info.mem_unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks once a second at what is free, in MiB, and collects what is told, with the second.
    fn told(free_mib: &[u64]) -> Vec<(usize, u32)> {
        let start = Instant::now();
        let mut spare = Spare::new(start);
        let looks = free_mib.iter().enumerate().filter_map(|(second, mib)| {
            let now = start + PAUSE * u32::try_from(second + 1).unwrap();
            spare.look(now, || mib << 20).map(|mib| (second, mib))
        });
        looks.collect()
    }

    #[test]
    fn what_was_never_used_is_not_told() {
        assert_eq!(told(&[400, 400, 400]), []);
    }

    #[test]
    fn what_becomes_free_and_stays_so_is_told_once() {
        assert_eq!(told(&[400, 100, 100, 400, 400, 400, 400, 400, 400, 400]), [(4, 375)]);
        assert_eq!(told(&[1600, 100, 1600, 1600]), [(3, 1500)]);
    }

    #[test]
    fn what_is_taken_and_freed_in_circles_is_left_alone() {
        assert_eq!(told(&[400, 100, 400, 100, 400, 100, 400]), []);
        assert_eq!(told(&[100, 120, 140, 100, 150, 120]), []);
    }

    #[test]
    fn the_next_time_counts_from_the_last() {
        assert_eq!(
            told(&[400, 100, 400, 400, 0, 0, 300, 300, 290, 350, 350, 355, 100, 355, 355]),
            [(3, 375), (11, 332)]
        );
    }
}
