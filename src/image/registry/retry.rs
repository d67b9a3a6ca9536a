//! How often, and after which wait, something is tried again.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use super::error::RegistryError;
use crate::image::LOG;

/// Most failures in a row.
const MAX_FAILURES: u32 = 5;
/// Longest wait that a registry may ask for.
const MAX_WAIT: Duration = Duration::from_secs(60);
/// After the first failure; doubled after each.
const FIRST_WAIT: Duration = Duration::from_millis(250);
/// How long a wait goes on that isn't wanted any more.
const SLICE: Duration = Duration::from_millis(100);

/// Counts failures.
#[derive(Debug, Default)]
pub(super) struct Tries {
    failures: u32,
}

impl Tries {
    /// Waits, if trying again makes sense; otherwise gives the error back. `stop` ends the wait.
    pub(super) fn after(&mut self, error: RegistryError, stop: &AtomicBool) -> Result<(), RegistryError> {
        self.failures += 1;
        match wait(&error, self.failures) {
            Some(time) => {
                LOG.info(format_args!("{error}; trying again in {time:?}"));
                let end = Instant::now() + time;
                while !stop.load(Ordering::Relaxed) {
                    let left = end.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        break;
                    }
                    std::thread::sleep(left.min(SLICE));
                }
                Ok(())
            }
            None => Err(error),
        }
    }

    /// Something has come of it: failures count from the beginning.
    pub(super) fn succeeded(&mut self) {
        self.failures = 0;
    }

    /// Does `attempt` until it succeeds, or trying again makes no sense.
    pub(super) fn run<T>(mut attempt: impl FnMut() -> Result<T, RegistryError>) -> Result<T, RegistryError> {
        let mut tries = Self::default();
        loop {
            match attempt() {
                Ok(value) => return Ok(value),
                Err(error) => tries.after(error, &AtomicBool::new(false))?,
            }
        }
    }
}

fn wait(error: &RegistryError, failures: u32) -> Option<Duration> {
    if !error.is_transient() || failures >= MAX_FAILURES {
        return None;
    }
    let own = FIRST_WAIT * 2_u32.pow(failures - 1);
    match error {
        RegistryError::Busy { after: Some(after), .. } if *after > MAX_WAIT => None,
        RegistryError::Busy { after: Some(after), .. } => Some(own.max(*after)),
        _ => Some(own),
    }
}

/// What `Retry-After` says (RFC 9110, 10.2.3): seconds, or a date.
pub(super) fn parse_after(text: &str, now: SystemTime) -> Option<Duration> {
    let text = text.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn busy(after: Option<u64>) -> RegistryError {
        let after = after.map(Duration::from_secs);
        RegistryError::Busy { host: "a".into(), what: "b".into(), status: 429, after }
    }

    #[test]
    fn waits_grow_and_what_the_registry_asks_for_is_obeyed_within_bounds() {
        let waits: Vec<_> = (1..=5).map(|failures| wait(&busy(None), failures)).collect();
        let ms = |ms| Some(Duration::from_millis(ms));
        assert_eq!(waits, [ms(250), ms(500), ms(1000), ms(2000), None]);
        assert_eq!(wait(&busy(Some(3)), 1), ms(3000));
        assert_eq!(wait(&busy(Some(0)), 2), ms(500));
        assert_eq!(wait(&busy(Some(61)), 1), None, "too long");
        assert!(busy(Some(61)).to_string().ends_with("is busy (HTTP status 429 for b); try again in 61 s"));
        let missing = RegistryError::NotFound { host: "a".into(), what: "b".into() };
        assert_eq!(wait(&missing, 1), None);
        let page = |status| RegistryError::WebPage { host: "a".into(), what: "b".into(), status };
        assert_eq!((wait(&page(503), 1), wait(&page(403), 1), wait(&page(200), 1)), (ms(250), None, None));
    }

    #[test]
    fn failures_count_from_the_last_success() {
        let mut tries = Tries { failures: 4 };
        let (go_on, stop) = (AtomicBool::new(false), AtomicBool::new(true));
        assert!(tries.after(busy(None), &go_on).is_err());
        tries.succeeded();
        assert!(tries.after(busy(None), &go_on).is_ok());
        let start = Instant::now();
        assert!(tries.after(busy(Some(30)), &stop).is_ok());
        assert!(start.elapsed() < Duration::from_secs(10), "nobody waits for it");
    }

    #[test]
    fn a_time_to_wait_is_seconds_or_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_770);
        for (text, expected) in [
            ("7", Some(7)),
            (" 0 ", Some(0)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(7)),
            ("Sun, 06 Nov 1994 08:49:00 GMT", Some(0)),
            ("-1", None),
            ("soon", None),
        ] {
            assert_eq!(parse_after(text, now), expected.map(Duration::from_secs), "{text}");
        }
    }
}
