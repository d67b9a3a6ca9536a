//! How much of the host a device may use in a second: token buckets for operations and for bytes.
//!
//! A device asks [`Throttle::ready_at`] before it begins something, and [`Throttle::charge`]s what
//! it turned out to cost. So what was begun is done at once however large it is, and what comes
//! next waits until the debt is paid: nothing has to be put back. Idle time is worth a tenth of a
//! second's allowance and no more.

use std::num::NonZeroU64;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::size::{self, Base};

/// How long a full bucket lasts.
const BURST: Duration = Duration::from_millis(100);
const NANOS: u128 = 1_000_000_000;

/// The limits of a device, or of one direction of it. Shared by its threads.
#[derive(Debug, Default)]
pub struct Throttle(Option<Mutex<Buckets>>);

#[derive(Debug)]
struct Buckets {
    operations: Option<Bucket>,
    bytes: Option<Bucket>,
}

/// Earns so many tokens in a second, and holds what it earns in [`BURST`]. It may be in debt.
#[derive(Debug)]
struct Bucket {
    per_second: u64,
    /// When the debt is paid, or was: what lies before now is what it holds.
    paid_at: Instant,
}

impl Bucket {
    fn new(per_second: u64, now: Instant) -> Self {
        Self { per_second, paid_at: now.checked_sub(BURST).unwrap_or(now) }
    }

    fn charge(&mut self, tokens: u64, now: Instant) {
        let fullest = now.checked_sub(BURST).unwrap_or(now);
        let nanos = u128::from(tokens) * NANOS / u128::from(self.per_second.max(1));
        // No request costs a day.
        let nanos = u64::try_from(nanos).unwrap_or(u64::MAX).min(86_400_000_000_000);
        self.paid_at = self.paid_at.max(fullest) + Duration::from_nanos(nanos);
    }
}

impl Throttle {
    /// With at most so many operations and bytes in a second; `None` is without limit.
    pub fn new(operations: Option<u64>, bytes: Option<u64>) -> Self {
        if operations.is_none() && bytes.is_none() {
            return Self(None);
        }
        let now = Instant::now();
        let bucket = |limit: Option<u64>| limit.map(|limit| Bucket::new(limit, now));
        Self(Some(Mutex::new(Buckets { operations: bucket(operations), bytes: bucket(bytes) })))
    }

    /// When something may begin; `None` if it may now.
    pub fn ready_at(&self) -> Option<Instant> {
        self.0.as_ref()?;
        self.ready_after(Instant::now())
    }

    fn ready_after(&self, now: Instant) -> Option<Instant> {
        let buckets = self.0.as_ref()?.lock().expect("a panic under this lock ends the process");
        let paid = [&buckets.operations, &buckets.bytes].into_iter().flatten().map(|bucket| bucket.paid_at);
        paid.max().filter(|paid_at| *paid_at > now)
    }

    /// Counts one operation of so many bytes.
    pub fn charge(&self, bytes: u64) {
        if self.0.is_some() {
            self.charge_at(bytes, Instant::now());
        }
    }

    /// Counts bytes of an operation that is counted already.
    pub fn charge_bytes(&self, bytes: u64) {
        let Some(buckets) = &self.0 else { return };
        let mut buckets = buckets.lock().expect("a panic under this lock ends the process");
        if let Some(bucket) = &mut buckets.bytes {
            bucket.charge(bytes, Instant::now());
        }
    }

    fn charge_at(&self, bytes: u64, now: Instant) {
        let Some(buckets) = &self.0 else { return };
        let mut buckets = buckets.lock().expect("a panic under this lock ends the process");
        if let Some(bucket) = &mut buckets.operations {
            bucket.charge(1, now);
        }
        if let Some(bucket) = &mut buckets.bytes {
            bucket.charge(bytes, now);
        }
    }
}

/// An amount in a second like `512K`, `100M` or `2G`. It isn't 0.
pub fn parse_amount(text: &str, base: Base) -> Result<NonZeroU64, String> {
    let amount = size::parse(text, base).map_err(|error| error.to_string())?;
    NonZeroU64::new(amount).ok_or_else(|| format!("`{text}` in a second is nothing at all"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How long a thousand operations of so many bytes take, one after the other.
    fn time_of(throttle: &Throttle, bytes: u64) -> Duration {
        let start = Instant::now();
        let mut now = start;
        for _ in 0..1000 {
            now = throttle.ready_after(now).unwrap_or(now);
            throttle.charge_at(bytes, now);
        }
        now - start
    }

    #[test]
    fn a_second_has_what_it_may_have_and_a_tenth_of_it_at_first() {
        let near = |time: Duration, millis: u64| {
            let off = time.abs_diff(Duration::from_millis(millis));
            assert!(off <= Duration::from_millis(15), "{time:?} and not {millis} ms");
        };
        near(time_of(&Throttle::new(Some(100), None), 0), 9_900);
        near(time_of(&Throttle::new(None, Some(1 << 20)), 4096), 1000 * 4096 * 1000 / (1 << 20) - 100);
        near(time_of(&Throttle::new(Some(100), Some(1 << 30)), 4096), 9_900);
        near(time_of(&Throttle::new(Some(1_000_000), Some(1 << 20)), 1 << 20), 999_000 - 100);
        assert_eq!(time_of(&Throttle::default(), u64::MAX), Duration::ZERO);
    }

    #[test]
    fn idle_time_is_not_saved() {
        let throttle = Throttle::new(Some(10), None);
        let later = Instant::now() + Duration::from_secs(100);
        for _ in 0..2 {
            assert_eq!(throttle.ready_after(later), None);
            throttle.charge_at(0, later);
        }
        assert_eq!(throttle.ready_after(later), Some(later + Duration::from_millis(100)));
    }

    #[test]
    fn amounts_are_sizes_and_not_nothing() {
        let amount = |text, base| parse_amount(text, base).map(NonZeroU64::get);
        assert_eq!(amount("1.5M", Base::Decimal), Ok(1_500_000));
        assert_eq!(amount("1m", Base::Binary), Ok(1 << 20));
        assert_eq!(amount("0M", Base::Binary), Err("`0M` in a second is nothing at all".into()));
        assert!(amount("5 X", Base::Binary).unwrap_err().contains("not a size"));
    }

    #[test]
    fn nothing_costs_for_ever() {
        let throttle = Throttle::new(None, Some(1));
        let now = Instant::now();
        throttle.charge_at(u64::MAX, now);
        assert!(throttle.ready_after(now).unwrap() <= now + Duration::from_secs(86_400));
    }
}
