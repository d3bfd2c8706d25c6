//! `preprocess.since` and `preprocess.until`: the window of time in which events are kept.

use jiff::Timestamp;
use mp4sr_artifact::TimeKind;
use mp4sr_pipeline::config::Preprocess;

use crate::decimal::Decimal;
use crate::source::iso;
use crate::{Error, Result};

/// The unit and kind of times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeScale {
    /// Whether they are positions or times of a clock, as far as this is certain.
    pub kind: TimeKind,
    /// The number of decimal digits of a second in the unit of the files; `None` if the unit is unknown or differs between files.
    pub unit: Option<u8>,
    /// The number of decimal digits in the unit of the times, which are whole numbers of it.
    pub digits: u8,
}

impl TimeScale {
    /// The scale before any file has been read.
    pub fn unknown(kind: TimeKind) -> Self {
        Self { kind, unit: None, digits: 0 }
    }

    /// Converts a time to units. A time between two units becomes the later one, which divides events in the same way.
    pub fn units(self, time: Decimal) -> i64 {
        time.units(self.digits).unwrap_or(if time.value < 0 { i64::MIN } else { i64::MAX })
    }

    /// Formats a time for people.
    pub fn shown(self, time: i64) -> String {
        let time = Decimal::of_units(time, self.digits);
        if self.kind == TimeKind::Positions {
            let point = 10_i128.pow(time.digits.into());
            let fraction = time.value.rem_euclid(point);
            return match time.digits {
                0 => format!("position {}", time.value),
                digits => format!("position {}.{fraction:0digits$}", time.floor(), digits = usize::from(digits)),
            };
        }
        let nanoseconds = time.units(9).map(i128::from);
        let timestamp = nanoseconds.and_then(|nanoseconds| Timestamp::from_nanosecond(nanoseconds).ok());
        timestamp.map_or_else(|| time.value.to_string(), |time| time.to_string())
    }
}

/// A window of time, in the units of the events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// The first time inside the window.
    pub since: Option<i64>,
    /// The first time after the window.
    pub until: Option<i64>,
}

impl Window {
    /// Reads both keys.
    pub fn new(preprocess: &Preprocess, scale: TimeScale) -> Result<Self> {
        let since = bound("since", &preprocess.since, scale)?;
        let until = bound("until", &preprocess.until, scale)?;
        if since.zip(until).is_some_and(|(since, until)| !since.is_before(until, scale)) {
            return Err(Error::Setting(format!(
                "`preprocess.since` = {:?} is not before `preprocess.until` = {:?}; no event can be between them",
                preprocess.since, preprocess.until
            )));
        }
        let units = |bound: Option<Bound>| bound.map(|bound| scale.units(bound.time));
        Ok(Self { since: units(since), until: units(until) })
    }

    /// A description of how the keys were read; `None` if both are empty.
    pub fn described(self, scale: TimeScale) -> Option<String> {
        let shown = |time| scale.shown(time);
        match (self.since, self.until) {
            (None, None) => None,
            (Some(since), None) => Some(format!("events from {} on", shown(since))),
            (None, Some(until)) => Some(format!("events before {}", shown(until))),
            (Some(since), Some(until)) => Some(format!("events from {} on and before {}", shown(since), shown(until))),
        }
    }
}

/// A time that a key names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    /// The time in seconds, or the position.
    pub time: Decimal,
    /// Whether it was written as a number, in the unit of the files.
    is_number: bool,
}

impl Bound {
    /// Whether it is before another one. If the unit of the files is unknown, a number and a date always count as in order.
    pub fn is_before(self, other: Self, scale: TimeScale) -> bool {
        let comparable = self.is_number == other.is_number || scale.unit.is_some() || scale.kind == TimeKind::Positions;
        !comparable || self.time.is_less(other.time)
    }
}

/// Reads the time that a key names; `None` if the text is empty.
pub fn bound(key: &str, text: &str, scale: TimeScale) -> Result<Option<Bound>> {
    let text = text.trim();
    if text.is_empty() {
        return Ok(None);
    }
    if let Some(number) = Decimal::parse(text, false) {
        return Ok(Some(Bound { time: number.scaled_down(scale.unit.unwrap_or(0)), is_number: true }));
    }
    if scale.kind == TimeKind::Positions {
        return Err(Error::Setting(format!(
            "`preprocess.{key}` = {text:?} is not a position, and these interactions have no timestamps; give a number"
        )));
    }
    let time = iso(text).ok_or_else(|| {
        Error::Setting(format!(
            "`preprocess.{key}` = {text:?} is not a time; expected a date like \"2018-09-30\", a date and a time like \
             \"2018-09-30T12:00:00\" or \"2018-09-30T12:00:00+02:00\" (UTC if no zone is given), or a number in the unit of \
             the file"
        ))
    })?;
    Ok(Some(Bound { time, is_number: false }))
}

/// Refuses numbers in these keys if the times of the files are dates, or numbers of several units.
pub fn check_numbers<'k>(keys: impl IntoIterator<Item = (&'k str, &'k str)>, scale: TimeScale) -> Result<()> {
    for (key, text) in keys {
        if scale.unit.is_none() && bound(key, text, scale)?.is_some_and(|bound| bound.is_number) {
            return Err(Error::Setting(format!(
                "`preprocess.{key}` = {text:?} is a number, and the times of the interactions are dates, or numbers of several units; \
                 give a date like \"2018-09-30\""
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scale(unit: u8, digits: u8) -> TimeScale {
        TimeScale { kind: TimeKind::Unstated, unit: Some(unit), digits }
    }

    const POSITIONS: TimeScale = TimeScale { kind: TimeKind::Positions, unit: Some(0), digits: 0 };

    fn read(text: &str, scale: TimeScale) -> std::result::Result<Option<i64>, String> {
        bound("since", text, scale).map(|bound| bound.map(|bound| scale.units(bound.time))).map_err(|e| e.to_string())
    }

    #[test]
    fn dates_times_and_numbers_are_read_in_the_unit_of_the_file() {
        let seconds = scale(0, 0);
        assert_eq!(read("", seconds), Ok(None));
        assert_eq!(read("2018-09-30", seconds), Ok(Some(1_538_265_600)));
        assert_eq!(read("2018-09-30", scale(3, 3)), Ok(Some(1_538_265_600_000)));
        assert_eq!(read("1538265600123", scale(3, 3)), Ok(Some(1_538_265_600_123)));
        assert_eq!(read("1538265600123", scale(3, 6)), Ok(Some(1_538_265_600_123_000)));
        assert_eq!(read("1538265600123", scale(3, 0)), Ok(Some(1_538_265_601)), "between two whole seconds");
        assert_eq!(read("2018-09-30T12:00:00", seconds), Ok(Some(1_538_308_800)));
        assert_eq!(read("2018-09-30 12:00", seconds), Ok(Some(1_538_308_800)));
        assert_eq!(read("2018-09-30T12:00:00Z", seconds), Ok(Some(1_538_308_800)));
        assert_eq!(read("2018-09-30T12:00:00+02:00", seconds), Ok(Some(1_538_301_600)));
        assert_eq!(read(" 17 ", POSITIONS), Ok(Some(17)));
        assert!(read("2018-09-30", POSITIONS).unwrap_err().contains("no timestamps"));
        for text in ["2018-13-01", "yesterday", "2018-09-30T", "30.09.2018"] {
            assert!(read(text, seconds).unwrap_err().contains("is not a time"), "{text}");
        }
    }

    #[test]
    fn a_window_reports_how_it_was_read_and_is_never_empty() {
        let window = |since: &str, until: &str, scale: TimeScale| {
            let preprocess = Preprocess { since: since.to_owned(), until: until.to_owned(), ..Preprocess::default() };
            Window::new(&preprocess, scale)
        };
        let read = window("2018-01-01", "2019-01-01", scale(0, 0)).unwrap();
        assert_eq!(
            read.described(scale(0, 0)).unwrap(),
            "events from 2018-01-01T00:00:00Z on and before 2019-01-01T00:00:00Z"
        );
        assert_eq!(window("", "", POSITIONS).unwrap().described(scale(0, 0)), None);
        let fine = TimeScale { digits: 1, ..POSITIONS };
        assert_eq!(
            window("1.5", "2", fine).unwrap().described(fine).unwrap(),
            "events from position 1.5 on and before position 2"
        );
        let refused = |since, until, scale| window(since, until, scale).unwrap_err().to_string();
        assert!(refused("2019-01-01", "2018-01-01", scale(0, 0)).contains("is not before"));
        assert!(refused("1546300800000", "2018-01-01", scale(3, 3)).contains("is not before"));
        assert!(window("1546300800000", "2020-01-01", TimeScale::unknown(TimeKind::Unstated)).is_ok());
        let several = TimeScale::unknown(TimeKind::Unstated);
        assert!(check_numbers([("since", "2018-01-01"), ("until", "")], several).is_ok());
        assert!(check_numbers([("since", "5")], several).unwrap_err().to_string().contains("give a date"));
    }
}
