//! When an event happened, in each form's notation.

use jiff::Timestamp;
use jiff::fmt::strtime;

use crate::read::RawCell;
use crate::rejects::Fault;

/// 2100-01-01: no event is later.
const LATEST: i64 = 4_102_444_800;
/// Milliseconds below this are before March 1973, in truth seconds.
const EARLIEST_MILLISECONDS: i64 = 100_000_000_000;
/// `Fri Sep 08 10:44:24 -0700 2017`.
const GOODREADS: &str = "%a %b %d %H:%M:%S %z %Y";

/// A notation of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// Unix seconds.
    Seconds,
    /// Unix milliseconds.
    Milliseconds,
    /// `Fri Sep 08 10:44:24 -0700 2017`.
    GoodReads,
    /// No clock: the position in the user's sequence.
    Position,
}

impl Clock {
    /// The time in this notation's own unit: milliseconds order events that share a second.
    pub fn read(self, field: &str, cell: &RawCell<'_>) -> Result<i64, Fault> {
        let is_nothing =
            matches!(cell, RawCell::Missing) || matches!(cell, RawCell::Text(text) if text.trim().is_empty());
        if is_nothing {
            return Err(Fault::new(format!("no `{field}`"), cell.shown()));
        }
        let number = match self {
            Self::GoodReads => cell.text().and_then(|text| {
                let time = strtime::parse(GOODREADS, text.trim()).ok()?;
                time.to_timestamp().ok().map(Timestamp::as_second)
            }),
            _ => cell.whole(),
        };
        let Some(number) = number else {
            let expected = match self {
                Self::GoodReads => "a date like `Fri Sep 08 10:44:24 -0700 2017`",
                _ => "a whole number",
            };
            return Err(Fault::new(format!("`{field}` is not {expected}"), cell.shown()));
        };
        let refuse = |what: &str| Err(Fault::new(format!("`{field}` {what}"), cell.shown()));
        match self {
            _ if number < 0 => refuse("is negative"),
            Self::Milliseconds if number < EARLIEST_MILLISECONDS => {
                refuse("is not a Unix time in milliseconds (seconds?)")
            }
            Self::Milliseconds if number / 1000 > LATEST => refuse("is after the year 2100"),
            Self::Seconds if number > LATEST => refuse("is after the year 2100 (milliseconds?)"),
            Self::GoodReads if number > LATEST => refuse("is after the year 2100"),
            _ => Ok(number),
        }
    }

    /// How many of the notation's units make what is stored: seconds, or positions.
    pub fn units(self) -> i64 {
        if self == Self::Milliseconds { 1000 } else { 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(clock: Clock, text: &str) -> Result<i64, String> {
        clock.read("t", &RawCell::Text(text.into())).map_err(|fault| fault.reason.into_owned())
    }

    #[test]
    fn each_notation_reads_its_own_and_refuses_the_others() {
        assert_eq!(read(Clock::Seconds, "1529193600"), Ok(1_529_193_600));
        assert_eq!(read(Clock::Seconds, "0"), Ok(0));
        assert_eq!(read(Clock::Seconds, "1529193600000").unwrap_err(), "`t` is after the year 2100 (milliseconds?)");
        assert_eq!(read(Clock::Seconds, "-1").unwrap_err(), "`t` is negative");
        assert_eq!(read(Clock::Seconds, "06 17, 2018").unwrap_err(), "`t` is not a whole number");
        assert_eq!(read(Clock::Seconds, " ").unwrap_err(), "no `t`");
        assert_eq!(read(Clock::Milliseconds, "1529193600123"), Ok(1_529_193_600_123));
        assert!(read(Clock::Milliseconds, "1529193600").unwrap_err().contains("seconds?"));
        assert_eq!(read(Clock::Position, "5000000000"), Ok(5_000_000_000));
        assert_eq!(read(Clock::Position, "-1").unwrap_err(), "`t` is negative");
    }

    #[test]
    fn goodreads_dates_have_their_own_zone() {
        assert_eq!(read(Clock::GoodReads, "Fri Sep 08 10:44:24 -0700 2017"), Ok(1_504_892_664));
        assert_eq!(read(Clock::GoodReads, "Mon Jan 01 00:00:00 -0800 0001").unwrap_err(), "`t` is negative");
        assert!(read(Clock::GoodReads, "2017-09-08").unwrap_err().contains("is not a date like"));
        assert_eq!(read(Clock::GoodReads, "").unwrap_err(), "no `t`");
    }
}
