//! Memory that the guest doesn't need, and the host could use.
//!
//! By itself the kernel reports free memory some seconds after it became free, and only large
//! blocks of it. Two things are added:
//!
//! - when much has become free, the host is told, so that it can ask for it at once by the balloon.
//!   To notice costs one system call in a second. What a program frees and takes again in circles
//!   is left alone: memory counts as free when it still is at the next look;
//! - for some seconds after the start small blocks are reported as well: the boot leaves many of
//!   them behind. Later that would only take memory apart that is in use again soon.

use std::fs;
use std::io;
use std::time::{Duration, Instant};

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use crate::say;

/// Between two looks.
const PAUSE: Duration = Duration::from_secs(1);
/// Until the second look, when the first has found much.
const SECOND_LOOK: Duration = Duration::from_millis(250);
/// After the host was told: by then it has taken what it wants, and the guest has it back.
const REST: Duration = Duration::from_secs(4);
/// What is worth to be told, in bytes.
const MUCH: u64 = 64 << 20;
/// What stays with the guest for what comes next, in bytes: at least this, or a sixteenth of what
/// is free.
const KEPT: u64 = 16 << 20;
/// What may come and go between two looks, in bytes.
const UNREST: u64 = 16 << 20;
/// How long small blocks are reported. A report comes two seconds after something was freed.
const SWEEP: Duration = Duration::from_secs(7);

pub(crate) struct Reclaimable {
    look_at: Instant,
    /// The least that was free since the host was told last.
    least: u64,
    /// What was free at the last look.
    last: u64,
}

impl Reclaimable {
    /// What is free now is nothing new: most of it has never been used.
    pub(crate) fn new(now: Instant) -> Self {
        Self { look_at: now + PAUSE, least: u64::MAX, last: 0 }
    }

    /// When to [`look`](Self::look) next.
    pub(crate) fn look_at(&self) -> Instant {
        self.look_at
    }

    /// Looks, if it is time to, and returns what the host may have, in MiB. `free` asks how many
    /// bytes are free.
    pub(crate) fn look(&mut self, now: Instant, free: impl FnOnce() -> u64) -> Option<u32> {
        if now < self.look_at {
            return None;
        }
        let free = free();
        let is_calm = free.abs_diff(std::mem::replace(&mut self.last, free)) <= UNREST;
        self.least = self.least.min(free);
        let freed = free - self.least;
        self.look_at = now + if is_calm || freed < MUCH { PAUSE } else { SECOND_LOOK };
        if !is_calm || freed < MUCH {
            return None;
        }
        self.least = free;
        self.look_at = now + REST;
        let reclaimable = free.saturating_sub(KEPT.max(free / 16)).min(freed);
        u32::try_from(reclaimable >> 20).ok()
    }
}

/// Bytes of memory that nothing uses.
pub(crate) fn free_bytes() -> u64 {
    let info = rustix::system::sysinfo();
    info.freeram.saturating_mul(u64::from(info.mem_unit))
}

/// Small blocks are reported for a while.
pub(crate) enum Sweep {
    /// From then on: a command that has ended by then is not disturbed.
    From(Instant),
    /// Until then.
    Until(Instant),
    /// No more, or never.
    Over,
}

/// Where the kernel is told from which order on blocks are reported: a block is 2^order pages.
const ORDER: &str = "/sys/module/page_reporting/parameters/page_reporting_order";
/// 64 KiB. Smaller ones are many, and hold little.
const SMALL: &str = "4";
/// 2 MiB, a huge page: what the kernel begins with.
const HUGE: &str = "9";
/// What is taken and freed at once, in bytes: the kernel reports after something of that size was
/// freed.
const STIR: usize = 1 << 20;

impl Sweep {
    /// Before the first command.
    pub(crate) fn new(now: Instant) -> Self {
        Self::From(now + PAUSE)
    }

    /// When to [`act`](Self::act) next.
    pub(crate) fn act_at(&self) -> Option<Instant> {
        match self {
            Self::From(time) | Self::Until(time) => Some(*time),
            Self::Over => None,
        }
    }

    /// Begins or ends, if it is time to. Where there is no balloon nothing comes of it.
    pub(crate) fn act(&mut self, now: Instant) {
        if self.act_at().is_none_or(|time| now < time) {
            return;
        }
        let (order, then) = match self {
            Self::From(_) => (SMALL, Self::Until(now + SWEEP)),
            Self::Until(_) | Self::Over => (HUGE, Self::Over),
        };
        *self = then;
        if let Err(error) = fs::write(ORDER, order) {
            say!("which blocks of memory are reported can't be changed: {error}");
            *self = Self::Over;
        }
        if matches!(self, Self::Until(_)) {
            // If not even that much can be had, there is nothing to report.
            let _nothing_free = stir();
        }
    }
}

/// Takes some memory and frees it.
#[expect(unsafe_code, reason = "memory that is surely given back at once")]
fn stir() -> io::Result<()> {
    // SAFETY: a fresh mapping at an address of the kernel's choice touches nothing that exists, and
    // nobody else knows of it when it is unmapped. MAP_POPULATE has the kernel touch it.
    unsafe {
        let flags = MapFlags::PRIVATE | MapFlags::POPULATE;
        let start = mmap_anonymous(std::ptr::null_mut(), STIR, ProtFlags::READ | ProtFlags::WRITE, flags)?;
        munmap(start, STIR)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks at what is free, in MiB, as often as it should, and collects what is told, with the
    /// number of the look.
    fn told(free_mib: &[u64]) -> Vec<(usize, u32)> {
        let mut reclaimable = Reclaimable::new(Instant::now());
        let looks = free_mib.iter().enumerate().filter_map(|(number, mib)| {
            let now = reclaimable.look_at();
            reclaimable.look(now, || mib << 20).map(|mib| (number, mib))
        });
        looks.collect()
    }

    #[test]
    fn what_was_never_used_is_not_told() {
        assert_eq!(told(&[400, 400, 400]), []);
    }

    #[test]
    fn what_becomes_free_and_stays_so_is_told_once() {
        assert_eq!(told(&[400, 100, 100, 400, 400, 400, 400]), [(4, 300)]);
        assert_eq!(told(&[1600, 100, 1600, 1600]), [(3, 1500)]);
        assert_eq!(told(&[200, 0, 200, 200]), [(3, 184)], "some is kept");
    }

    #[test]
    fn what_is_taken_and_freed_in_circles_is_left_alone() {
        assert_eq!(told(&[400, 100, 400, 100, 400, 100, 400]), []);
        assert_eq!(told(&[100, 120, 140, 100, 150, 120]), []);
    }

    #[test]
    fn the_next_time_counts_from_the_last() {
        assert_eq!(told(&[400, 100, 400, 400, 100, 340, 355, 355]), [(3, 300), (6, 255)]);
    }

    #[test]
    fn a_look_follows_soon_where_much_was_found() {
        let start = Instant::now();
        let mut reclaimable = Reclaimable::new(start);
        for (seconds, free, next) in [(1, 400, PAUSE), (2, 100, PAUSE), (3, 400, SECOND_LOOK)] {
            let now = start + PAUSE * seconds;
            assert_eq!(reclaimable.look(now, || free << 20), None);
            assert_eq!(reclaimable.look_at(), now + next);
        }
    }
}
