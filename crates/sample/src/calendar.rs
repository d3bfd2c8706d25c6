//! Dates as the raw files write them.

use jiff::SignedDuration;
use jiff::civil::Date;

/// The day the shop opened.
const OPENING: Date = Date::constant(2015, 1, 1);
/// Unix seconds of midnight UTC of that day.
const OPENING_SECONDS: i64 = 1_420_070_400;
const SECONDS_PER_DAY: i64 = 86_400;

/// Unix seconds of midnight UTC of a day since opening.
pub(crate) fn unix(day: u32) -> i64 {
    OPENING_SECONDS + i64::from(day) * SECONDS_PER_DAY
}

fn date(day: u32) -> Date {
    OPENING.saturating_add(SignedDuration::from_secs(i64::from(day) * SECONDS_PER_DAY))
}

/// A day since opening as `MM D, YYYY`.
pub(crate) fn review_time(day: u32) -> String {
    date(day).strftime("%m %-d, %Y").to_string()
}

/// A day since opening as `YYYY-MM-DD`.
pub(crate) fn iso(day: u32) -> String {
    date(day).to_string()
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    #[test]
    fn days_become_dates() {
        assert_eq!(review_time(0), "01 1, 2015");
        assert_eq!(review_time(31 + 28 + 365), "02 29, 2016");
        assert_eq!(iso(31 + 28 + 365), "2016-02-29");
        for day in [0, 31 + 28 + 365, 1_000] {
            let time = Timestamp::from_second(unix(day)).unwrap();
            assert_eq!(time.strftime("%m %-d, %Y").to_string(), review_time(day));
        }
    }
}
