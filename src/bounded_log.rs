//! What guests, images and registries can cause to be logged, in a bounded dose.
//!
//! A guest may do a wrong thing a million times a second. The first few are worth a line each, the
//! rest would bury everything else and fill a disk. So each source has a budget, which is full
//! again after a while; the first line of the next budget says how many were left out.

use std::borrow::Cow;
use std::fmt::Display;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use log::Level;

/// Lines of one source in [`PERIOD`].
const BUDGET: u32 = 8;
/// How long a budget lasts.
const PERIOD: Duration = Duration::from_secs(60);

/// The log of one source: a device, a connection, a load. Shared between threads; takes no lock.
#[derive(Debug)]
pub struct BoundedLog {
    who: Cow<'static, str>,
    used: AtomicU32,
    left_out: AtomicU32,
    /// When the present budget began, in milliseconds since the first that any log had.
    since: AtomicU64,
}

impl BoundedLog {
    /// A full budget for the source that `who` names at the start of each line.
    pub fn new(who: impl Into<String>) -> Self {
        Self { who: Cow::Owned(who.into()), ..Self::fixed("") }
    }

    /// The same for a static.
    pub const fn fixed(who: &'static str) -> Self {
        Self {
            who: Cow::Borrowed(who),
            used: AtomicU32::new(0),
            left_out: AtomicU32::new(0),
            since: AtomicU64::new(0),
        }
    }

    /// The source's name.
    pub fn who(&self) -> &str {
        &self.who
    }

    /// Logs `what` as an error, unless the budget is spent. Returns whether it was logged.
    pub fn error(&self, what: impl Display) -> bool {
        self.log_at(Level::Error, &what, now_ms())
    }

    /// Logs `what` as a warning, unless the budget is spent. Returns whether it was logged.
    pub fn warn(&self, what: impl Display) -> bool {
        self.log_at(Level::Warn, &what, now_ms())
    }

    /// Logs `what` as information, unless the budget is spent. Returns whether it was logged.
    pub fn info(&self, what: impl Display) -> bool {
        self.log_at(Level::Info, &what, now_ms())
    }

    fn log_at(&self, level: Level, what: &dyn Display, now_ms: u64) -> bool {
        if log::max_level() < level {
            return false;
        }
        let since = self.since.load(Ordering::Relaxed);
        let is_over = u128::from(now_ms.saturating_sub(since)) >= PERIOD.as_millis();
        // One thread begins the next budget.
        if is_over && self.since.compare_exchange(since, now_ms, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        {
            self.used.store(0, Ordering::Relaxed);
        }
        // Looked at before it counts, so that the counter can't wrap.
        if self.used.load(Ordering::Relaxed) >= BUDGET || self.used.fetch_add(1, Ordering::Relaxed) >= BUDGET
        {
            let left_out = self.left_out.load(Ordering::Relaxed).saturating_add(1);
            self.left_out.store(left_out, Ordering::Relaxed);
            return false;
        }
        match self.left_out.swap(0, Ordering::Relaxed) {
            0 => log::log!(level, "{}: {what}", self.who),
            left_out => log::log!(level, "{}: {what} ({left_out} lines were left out before)", self.who),
        }
        true
    }
}

fn now_ms() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    let elapsed = START.get_or_init(Instant::now).elapsed();
    u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_gets_a_bounded_number_of_lines_in_each_period() {
        log::set_max_level(log::LevelFilter::Warn);
        let log = BoundedLog::fixed("test");
        let minute = 60_000;
        let logged = |from: u64| (0..1000).filter(|i| log.log_at(Level::Warn, i, from + i)).count();
        assert_eq!(logged(0), 8);
        assert_eq!(log.left_out.load(Ordering::Relaxed), 992);
        assert_eq!(logged(minute - 1000), 0);
        assert_eq!(logged(minute), 8);
        assert_eq!(log.left_out.load(Ordering::Relaxed), 992, "counted anew");
        assert!(!log.log_at(Level::Debug, &"", 10 * minute), "not asked for");
    }
}
