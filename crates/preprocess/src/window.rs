//! `preprocess.since` and `preprocess.until`: which part of the time counts.

use jiff::Timestamp;
use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use mp4sr_pipeline::config::Preprocess;

use crate::source::Clock;
use crate::{Error, Result};

/// A part of the time, in the unit of the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// The first time that counts.
    pub since: Option<i64>,
    /// The first time that does not count any more.
    pub until: Option<i64>,
}

impl Window {
    /// Reads both keys.
    pub fn new(preprocess: &Preprocess, clock: Clock) -> Result<Self> {
        let since = bound("since", &preprocess.since, clock)?;
        let until = bound("until", &preprocess.until, clock)?;
        if since.zip(until).is_some_and(|(since, until)| since >= until) {
            return Err(Error::Setting(format!(
                "`preprocess.since` = {:?} is not before `preprocess.until` = {:?}; no event could lie between them",
                preprocess.since, preprocess.until
            )));
        }
        Ok(Self { since, until })
    }

    /// What the keys were read as, for people; none where both are empty.
    pub fn described(self, clock: Clock) -> Option<String> {
        let shown = |time| shown(time, clock);
        match (self.since, self.until) {
            (None, None) => None,
            (Some(since), None) => Some(format!("events from {} on", shown(since))),
            (None, Some(until)) => Some(format!("events before {}", shown(until))),
            (Some(since), Some(until)) => Some(format!("events from {} on and before {}", shown(since), shown(until))),
        }
    }
}

/// A time in the unit of the file, for people.
pub fn shown(time: i64, clock: Clock) -> String {
    match clock {
        Clock::Position => format!("position {time}"),
        _ => Timestamp::from_second(time.div_euclid(clock.units())).map_or(time.to_string(), |time| time.to_string()),
    }
}

/// A time in the unit of the file; none where the text is empty.
pub fn bound(key: &str, text: &str, clock: Clock) -> Result<Option<i64>> {
    let text = text.trim();
    if text.is_empty() {
        return Ok(None);
    }
    if let Ok(time) = text.parse::<i64>() {
        return Ok(Some(time));
    }
    if clock == Clock::Position {
        return Err(Error::Setting(format!(
            "`preprocess.{key}` = {text:?} is not a position, and these interactions have no clock; give a whole number"
        )));
    }
    let seconds = parse(text).ok_or_else(|| {
        Error::Setting(format!(
            "`preprocess.{key}` = {text:?} is not a time; expected a date like \"2018-09-30\", a date and a time like \
             \"2018-09-30T12:00:00\" or \"2018-09-30T12:00:00+02:00\" (UTC where no zone is given), or a whole number in the \
             unit of the file"
        ))
    })?;
    Ok(Some(seconds * clock.units()))
}

fn parse(text: &str) -> Option<i64> {
    let utc = |time: DateTime| time.to_zoned(TimeZone::UTC).ok().map(|time| time.timestamp().as_second());
    // A date is parsed from the whole text only: a time with an offset would pass for its date.
    if text.len() == "2018-09-30".len() {
        return text.parse::<Date>().ok().and_then(|date| utc(date.at(0, 0, 0, 0)));
    }
    let with_zone = text.parse::<Timestamp>().ok().map(Timestamp::as_second);
    with_zone.or_else(|| text.parse::<DateTime>().ok().and_then(utc))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, clock: Clock) -> std::result::Result<Option<i64>, String> {
        bound("since", text, clock).map_err(|e| e.to_string())
    }

    #[test]
    fn dates_times_and_numbers_are_read_in_the_unit_of_the_file() {
        assert_eq!(read("", Clock::Seconds), Ok(None));
        assert_eq!(read("2018-09-30", Clock::Seconds), Ok(Some(1_538_265_600)));
        assert_eq!(read("2018-09-30", Clock::Milliseconds), Ok(Some(1_538_265_600_000)));
        assert_eq!(read("2018-09-30T12:00:00", Clock::Seconds), Ok(Some(1_538_308_800)));
        assert_eq!(read("2018-09-30 12:00", Clock::GoodReads), Ok(Some(1_538_308_800)));
        assert_eq!(read("2018-09-30T12:00:00Z", Clock::Seconds), Ok(Some(1_538_308_800)));
        assert_eq!(read("2018-09-30T12:00:00+02:00", Clock::Seconds), Ok(Some(1_538_301_600)));
        assert_eq!(read(" 17 ", Clock::Position), Ok(Some(17)));
        assert!(read("2018-09-30", Clock::Position).unwrap_err().contains("no clock"));
        for text in ["2018-13-01", "yesterday", "2018-09-30T", "30.09.2018"] {
            assert!(read(text, Clock::Seconds).unwrap_err().contains("is not a time"), "{text}");
        }
    }

    #[test]
    fn a_window_says_what_it_was_read_as_and_is_never_empty() {
        let window = |since: &str, until: &str| {
            Window::new(
                &Preprocess { since: since.to_owned(), until: until.to_owned(), ..Preprocess::default() },
                Clock::Seconds,
            )
        };
        let read = window("2018-01-01", "2019-01-01").unwrap();
        assert_eq!(
            read.described(Clock::Seconds).unwrap(),
            "events from 2018-01-01T00:00:00Z on and before 2019-01-01T00:00:00Z"
        );
        assert_eq!(window("", "").unwrap().described(Clock::Seconds), None);
        assert!(window("2019-01-01", "2018-01-01").unwrap_err().to_string().contains("is not before"));
    }
}
