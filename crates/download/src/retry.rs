//! How long to wait before the next attempt.

use std::time::Duration;

use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimeParser;

/// The longest wait within a run. If a server asks for more, the URL is left to the next run.
pub const LONGEST: Duration = Duration::from_mins(2);

const FIRST: Duration = Duration::from_millis(500);

/// The wait after attempt `attempt` (from 0). It doubles with each attempt, and up to half of it depends on `key`, so that URLs that failed
/// together are not retried together.
pub fn backoff(attempt: u32, key: u128) -> Duration {
    let whole = FIRST.saturating_mul(1 << attempt.min(16)).min(LONGEST);
    let spread = (key >> (attempt % 64)) as u16;
    whole / 2 + whole.mul_f64(f64::from(spread) / f64::from(u16::MAX) / 2.0)
}

/// The wait that `Retry-After` asks for, in seconds or as a date.
pub fn after(value: &str, now: Timestamp) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = DateTimeParser::new().relaxed_weekday(true).parse_timestamp(value).ok()?;
    Some(Duration::try_from(at.duration_since(now)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_bound() {
        for key in [0, u128::MAX, 12345] {
            let waits: Vec<_> = (0..20).map(|attempt| backoff(attempt, key)).collect();
            for (attempt, wait) in waits.iter().enumerate() {
                let whole = FIRST.saturating_mul(1 << attempt.min(16)).min(LONGEST);
                assert!(*wait >= whole / 2 && *wait <= whole + Duration::from_millis(1), "{attempt}: {wait:?}");
            }
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now: Timestamp = "2015-10-21T07:28:00Z".parse().unwrap();
        let read = |value| after(value, now).map(|wait| wait.as_secs());
        assert_eq!(read(" 120 "), Some(120));
        assert_eq!(read("Wed, 21 Oct 2015 07:28:30 GMT"), Some(30));
        assert_eq!(read("Wed, 21 Oct 2015 07:00:00 GMT"), Some(0));
        assert_eq!(read("soon"), None);
    }
}
