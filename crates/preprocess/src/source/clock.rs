//! Reads the times of events in many notations.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use jiff::civil::{Date, DateTime, Time};
use jiff::fmt::strtime;
use jiff::tz::{Offset, TimeZone};
use mp4sr_artifact::TimeKind;

use crate::decimal::Decimal;
use crate::read::RawCell;
use crate::rejects::{Fault, excerpt};
use crate::{Error, Result};

/// 2100-01-01: no event is later.
const LATEST: i128 = 4_102_444_800;
/// The Unix time of the year 100: dates of earlier years have years of two digits.
const OF_TWO_DIGITS: i128 = -59_011_459_200;
/// A Unix time in a finer unit than seconds that would be before March 1973 is really in a coarser unit.
pub const EARLIEST: i128 = 100_000_000;
/// The number of digits of a large number that spreadsheet programs show at most.
const SHOWN_DIGITS: usize = 6;
/// `Fri Sep 08 10:44:24 -0700 2017`.
pub const GOODREADS: &str = "%a %b %d %H:%M:%S %z %Y";
/// The units of Unix time: the number of decimal digits of a second, the key, the name.
const UNITS: [(u8, &str, &str); 4] =
    [(0, "s", "seconds"), (3, "ms", "milliseconds"), (6, "us", "microseconds"), (9, "ns", "nanoseconds")];
/// Patterns of dates, in addition to ISO 8601. Those that begin with the day and those that begin with the month cannot always be
/// distinguished.
const DATES: [&str; 11] = [
    "%d/%m/%Y",
    "%m/%d/%Y",
    "%d.%m.%Y",
    "%d-%m-%Y",
    "%m-%d-%Y",
    "%d-%b-%Y",
    "%d-%b-%y",
    "%B %d, %Y",
    "%b %d, %Y",
    "%d %B %Y",
    "%d %b %Y",
];
/// Patterns of the time of day after such a date.
const TIMES: [&str; 6] = ["", " %H:%M", " %H:%M:%S", " %H:%M:%S%.f", " %I:%M %p", " %I:%M:%S %p"];
/// Other patterns.
const OTHERS: [&str; 3] = [GOODREADS, "%a, %d %b %Y %H:%M:%S %z", "%m %d, %Y"];
/// Patterns of digits without separators, by the number of digits.
const DIGITS: [(usize, &str); 4] = [(8, "%Y%m%d"), (10, "%Y%m%d%H"), (12, "%Y%m%d%H%M"), (14, "%Y%m%d%H%M%S")];
/// The percentage of values that may be in another notation than the rest.
const STRAYS: usize = 5;

/// All patterns that are tried.
static PATTERNS: LazyLock<Vec<Arc<str>>> = LazyLock::new(|| {
    let dates = DATES.iter().flat_map(|date| TIMES.iter().map(move |time| format!("{date}{time}")));
    OTHERS.iter().map(|&other| other.to_owned()).chain(dates).map(Into::into).collect()
});

/// A notation of time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Notation {
    /// Unix time in units of 10^-n seconds, where n is this number.
    Unix(u8),
    /// Unix time by the type of a column, whose unit is certain.
    Typed(u8),
    /// ISO 8601: a date, or a date and a time with or without a zone.
    Iso,
    /// A `strptime` pattern.
    Pattern(Arc<str>),
    /// Each value has its own notation.
    Mixed,
    /// No clock: the position in the user's sequence.
    Position,
    /// No clock: the position of the line.
    LineOrder,
}

/// How times of a format are written: known, or to be recognised in each file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TimeSetting {
    Recognised,
    Known(Notation),
}

impl TimeSetting {
    /// Reads `source.time`; `None` if it is empty.
    pub fn parse(text: &str) -> Result<Option<Self>> {
        let known = |notation| Ok(Some(Self::Known(notation)));
        if let Some((digits, ..)) = UNITS.iter().find(|(_, key, name)| *key == text || *name == text) {
            return known(Notation::Unix(*digits));
        }
        match text {
            "" => Ok(None),
            "iso" => known(Notation::Iso),
            "mixed" => known(Notation::Mixed),
            "line-order" => known(Notation::LineOrder),
            pattern if pattern.contains('%') => {
                let example = DateTime::constant(2018, 9, 30, 12, 34, 56, 0).to_zoned(TimeZone::UTC);
                let written = example.ok().and_then(|time| strtime::format(pattern, &time).ok());
                match written.and_then(|written| by_pattern(pattern, &written)) {
                    Some(_) => known(Notation::Pattern(pattern.into())),
                    None => Err(Error::Setting(format!(
                        "`source.time` = {pattern:?} is not a pattern of a date; expected one such as \"%Y-%m-%d\" or \
                         \"%d.%m.%Y %H:%M:%S\", in the notation of `strptime`"
                    ))),
                }
            }
            other => Err(Error::Setting(format!(
                "`source.time` = {other:?} is not a notation of time; expected \"s\", \"ms\", \"us\", \"ns\" (Unix time), \"iso\", a \
                 pattern such as \"%Y-%m-%d\", \"mixed\" or \"line-order\""
            ))),
        }
    }

    /// The kind of times before any is read. Bare numbers may be positions even if they are read as Unix times.
    pub fn kind(&self) -> TimeKind {
        match self {
            Self::Known(notation) if notation.is_position() => TimeKind::Positions,
            _ => TimeKind::Unstated,
        }
    }
}

impl Notation {
    /// Whether it gives positions, which determine only the order.
    pub fn is_position(&self) -> bool {
        matches!(self, Self::Position | Self::LineOrder)
    }

    /// Whether values are dates or typed times, and never bare numbers, which may be positions.
    pub fn is_date(&self) -> bool {
        matches!(self, Self::Typed(_) | Self::Iso | Self::Pattern(_))
    }

    /// Whether values are dates of digits without separators.
    fn is_date_of_digits(&self) -> bool {
        matches!(self, Self::Pattern(own) if DIGITS.iter().any(|(_, pattern)| *pattern == &**own))
    }

    /// The number of decimal digits of a second in the unit of a bare number; `None` if times are not numbers of a unit.
    pub fn unit(&self) -> Option<u8> {
        match self {
            Self::Unix(digits) => Some(*digits),
            Self::Position | Self::LineOrder => Some(0),
            Self::Typed(_) | Self::Iso | Self::Pattern(_) | Self::Mixed => None,
        }
    }

    /// The value of `source.time` that names the notation; `None` if the type of a column or another key determines it.
    pub fn key(&self) -> Option<String> {
        match self {
            Self::Unix(digits) => UNITS.iter().find(|unit| unit.0 == *digits).map(|unit| unit.1.to_owned()),
            Self::Iso => Some("iso".to_owned()),
            Self::Pattern(pattern) => Some(pattern.to_string()),
            Self::Mixed => Some("mixed".to_owned()),
            Self::LineOrder => Some("line-order".to_owned()),
            Self::Typed(_) | Self::Position => None,
        }
    }

    /// Describes the notation in words.
    pub fn described(&self) -> String {
        match self {
            Self::Unix(digits) | Self::Typed(digits) => {
                let unit = UNITS.iter().find(|unit| unit.0 == *digits).map_or("seconds", |unit| unit.2);
                format!("Unix time in {unit}")
            }
            Self::Iso => "ISO 8601 dates (UTC if they have no time zone)".to_owned(),
            Self::Pattern(pattern) => format!("dates written as `{pattern}`"),
            Self::Mixed => "times of any notation".to_owned(),
            Self::Position => "positions".to_owned(),
            Self::LineOrder => "the order of lines".to_owned(),
        }
    }

    /// Reads the time in seconds, or the position, with all of its digits. With `comma`, numbers may have a decimal comma.
    pub fn read(&self, field: &str, cell: &RawCell<'_>, comma: bool) -> std::result::Result<Decimal, Fault> {
        // This is the fast path for nearly all times of nearly all files.
        if let (Self::Unix(digits), Some(whole)) = (self, cell.whole())
            && whole >= 0
            && wrong_unit(Decimal::whole(whole), *digits).is_none()
        {
            return Ok(Decimal::of_units(whole, *digits));
        }
        if cell.is_blank() {
            return Err(Fault::new(format!("no `{field}`"), cell.shown()));
        }
        let refuse = |what: &str| Err(Fault::new(format!("`{field}` {what}"), cell.shown()));
        let seconds = match self {
            Self::Unix(digits) | Self::Typed(digits) => {
                let Some(number) = cell.decimal(comma) else { return refuse("is not a number") };
                if let (Self::Unix(_), Some(problem)) = (self, wrong_unit(number, *digits)) {
                    return refuse(&problem);
                }
                number.scaled_down(*digits)
            }
            Self::Position | Self::LineOrder => match cell.decimal(comma) {
                Some(number) if number.value < 0 => return refuse("is negative"),
                Some(number) => return Ok(number),
                None => return refuse("is not a number"),
            },
            Self::Iso => match cell.text().and_then(|text| iso(&text)) {
                Some(time) => time,
                None => return refuse("is not a date like `2018-09-30` or `2018-09-30T12:00:00Z`"),
            },
            Self::Pattern(pattern) => match cell.text().and_then(|text| by_pattern(pattern, text.trim())) {
                Some(time) => time,
                None if &**pattern == GOODREADS => {
                    return refuse("is not a date like `Fri Sep 08 10:44:24 -0700 2017`");
                }
                None => return refuse(&format!("is not a date like `{pattern}`")),
            },
            Self::Mixed => {
                let mut notations = of_cell(cell, comma);
                if notations.iter().any(Self::is_date_of_digits) {
                    notations.retain(Self::is_date_of_digits);
                }
                match &without_repeats(notations)[..] {
                    [notation] => return notation.read(field, cell, comma),
                    [] if is_rounded(cell, comma) => return refuse("is rounded"),
                    [] => return refuse("is not a recognised time"),
                    _ => return refuse("may have the day or the month first"),
                }
            }
        };
        if seconds.value < 0 {
            let is_date = matches!(self, Self::Iso | Self::Pattern(_) | Self::Mixed);
            return refuse(match self {
                Self::Pattern(pattern) if &**pattern != GOODREADS && seconds.floor() < OF_TWO_DIGITS => {
                    "has a year of two digits; write `%y` instead of `%Y` in `source.time`"
                }
                _ if is_date => "is before the year 1970",
                _ => "is negative",
            });
        }
        if seconds.floor() > LATEST {
            return refuse("is after the year 2100");
        }
        // In 64 bits, times of this range fit no unit finer than nanoseconds.
        Ok(seconds.cut(9))
    }

    /// The notation of most values of a column, or why it cannot be determined; `None` if no value has a known notation.
    pub fn recognised(cells: &[RawCell<'_>], comma: bool) -> std::result::Result<Option<Self>, String> {
        let mut values = Vec::new();
        for cell in cells.iter().filter(|cell| !cell.is_blank()) {
            // Zero is a missing time in any unit, and a negative number is not a time.
            if cell.decimal(comma).is_none_or(|number| number.value > 0) {
                values.push((cell, of_cell(cell, comma)));
            }
        }
        let rounded: Vec<_> = values.iter().filter(|(cell, _)| is_rounded(cell, comma)).collect();
        if rounded.len() * 2 > values.len() {
            return Err(format!(
                "`{}` is rounded, as spreadsheet programs do; export the times with all digits, or, if they are exact, name their unit \
                 in `source.time`, as in `source.time = \"s\"`",
                excerpt(&rounded[0].0.shown())
            ));
        }
        let mut votes: BTreeMap<&Self, usize> = BTreeMap::new();
        values
            .iter()
            .flat_map(|(_, notations)| notations)
            .for_each(|notation| *votes.entry(notation).or_default() += 1);
        if let Some(of_digits) = most_dates_of_digits(&values)? {
            return Ok(Some(of_digits));
        }
        votes.retain(|notation, _| !notation.is_date_of_digits());
        let Some(most) = votes.values().max().copied() else { return Ok(None) };
        let best = votes.iter().filter(|(_, count)| **count == most).map(|(notation, _)| (*notation).clone());
        let best = without_repeats(best.collect());
        let chosen = &best[0];
        let same_values =
            |other: &Self| values.iter().all(|(_, notations)| notations.contains(chosen) == notations.contains(other));
        if best.len() > 1 && best[1..].iter().all(same_values) {
            let shown = values.iter().find(|(_, notations)| notations.contains(chosen));
            let shown = shown.map_or(String::new(), |(cell, _)| excerpt(&cell.shown()));
            let ways = best.iter().map(Self::described).collect::<Vec<_>>().join(" or ");
            return Err(format!(
                "`{shown}` may be {ways}; name the pattern in `source.time`, as in `source.time = \"%d/%m/%Y\"`"
            ));
        }
        let strays: Vec<_> =
            values.iter().filter(|(_, notations)| !notations.is_empty() && !notations.contains(chosen)).collect();
        if !are_few(strays.len(), values.len()) {
            let (usual, _) = values.iter().find(|(_, notations)| notations.contains(chosen)).unwrap_or(&values[0]);
            let (stray, notations) = strays[0];
            return Err(format!(
                "`{}` is {} and `{}` is {}; set `source.time = \"mixed\"` to recognise each value separately, or convert them",
                excerpt(&usual.shown()),
                chosen.described(),
                excerpt(&stray.shown()),
                notations[0].described()
            ));
        }
        Ok(Some(chosen.clone()))
    }
}

/// Whether so many of all values may be in another notation than the rest.
fn are_few(strays: usize, all: usize) -> bool {
    strays <= 1 || strays * 100 <= all * STRAYS
}

/// The notation of values that are dates of digits, such as `20180930`, which are also Unix times of 1970 or of the future. An error if most
/// values are such dates, and too many are not.
fn most_dates_of_digits(values: &[(&RawCell<'_>, Vec<Notation>)]) -> std::result::Result<Option<Notation>, String> {
    let patterns = DIGITS.iter().map(|(_, pattern)| Notation::Pattern((*pattern).into()));
    let read = |notation: &Notation| values.iter().filter(|(_, notations)| notations.contains(notation)).count();
    let Some((count, dates)) = patterns.map(|own| (read(&own), own)).max_by_key(|(count, _)| *count) else {
        return Ok(None);
    };
    if count * 2 <= values.len() {
        return Ok(None);
    }
    match values.iter().find(|(_, notations)| !notations.contains(&dates)) {
        Some((other, _)) if !are_few(values.len() - count, values.len()) => {
            let key = dates.key().unwrap_or_default();
            Err(format!(
                "most of them are {}, and `{}` is not; correct the others, or name the notation in `source.time`, as in \
                 `source.time = {key:?}`, which rejects the lines of the others, or \"mixed\", which recognises each value separately",
                dates.described(),
                excerpt(&other.shown())
            ))
        }
        _ => Ok(Some(dates)),
    }
}

/// What is wrong with a number as a Unix time in this unit.
fn wrong_unit(number: Decimal, digits: u8) -> Option<String> {
    let value = number.floor();
    let unit = if digits == 0 { 1 } else { 10_i128.pow(digits.into()) };
    if value < 0 {
        return Some("is negative".to_owned());
    }
    let is_late = value > LATEST * unit;
    if !is_late && (digits == 0 || value >= EARLIEST * unit) {
        return None;
    }
    let fits = |other: &&(u8, &str, &str)| {
        let unit = 10_i128.pow(other.0.into());
        value <= LATEST * unit && (other.0 == 0 || value >= EARLIEST * unit)
    };
    let other = UNITS.iter().filter(|other| other.0 != digits).find(fits);
    let maybe = other.map_or(String::new(), |other| format!(" ({}?)", other.2));
    let name = UNITS.iter().find(|own| own.0 == digits).map_or("", |own| own.2);
    Some(if is_late {
        format!("is after the year 2100{maybe}")
    } else {
        format!("is not a Unix time in {name}{maybe}")
    })
}

/// Whether a number has been rounded, as spreadsheet programs round what they show: `1.59002E+09`.
fn is_rounded(cell: &RawCell<'_>, comma: bool) -> bool {
    let RawCell::Text(text) = cell else { return false };
    let Some(exponent) = text.find(['e', 'E']) else { return false };
    let Some(number) = cell.decimal(comma) else { return false };
    let significant = text[..exponent].bytes().filter(u8::is_ascii_digit).count();
    significant <= SHOWN_DIGITS && number.floor() >= EARLIEST
}

/// The notations that a value may have.
fn of_cell(cell: &RawCell<'_>, comma: bool) -> Vec<Notation> {
    let mut found = Vec::new();
    if is_rounded(cell, comma) {
        return found;
    }
    if let Some(number) = cell.decimal(comma) {
        let value = number.floor();
        let fits = |digits: u8| {
            let unit = 10_i128.pow(digits.into());
            value >= 0 && value <= LATEST * unit && (digits == 0 || value >= EARLIEST * unit)
        };
        found.extend(UNITS.iter().map(|unit| unit.0).find(|digits| fits(*digits)).map(Notation::Unix));
        let text = cell.text().unwrap_or_default();
        let digits = DIGITS.iter().find(|(length, _)| text.trim().len() == *length);
        found.extend(
            digits.filter(|(_, p)| is_recent(by_pattern(p, text.trim()))).map(|(_, p)| Notation::Pattern((*p).into())),
        );
    } else if let Some(text) = cell.text() {
        let text = text.trim();
        if iso(text).is_some() {
            found.push(Notation::Iso);
        } else {
            let fits = PATTERNS.iter().filter(|pattern| by_pattern(pattern, text).is_some());
            found.extend(fits.cloned().map(Notation::Pattern));
        }
    }
    found
}

/// Leaves out patterns beside a better one for values that both read: with a fraction of a second beside the one without it, with the full
/// name of a month beside the one with its short name, because May has only one, and with the year 20 beside the one with the year 2020.
fn without_repeats(mut notations: Vec<Notation>) -> Vec<Notation> {
    let all = notations.clone();
    let is_left = |pattern: String| all.contains(&Notation::Pattern(pattern.into()));
    notations.retain(|notation| {
        let Notation::Pattern(pattern) = notation else { return true };
        let is_replaced = |part: &str, by: &str| pattern.contains(part) && is_left(pattern.replace(part, by));
        ![("%.f", ""), ("%B", "%b"), ("%Y", "%y")].iter().any(|(part, by)| is_replaced(part, by))
    });
    notations
}

fn is_recent(time: Option<Decimal>) -> bool {
    time.is_some_and(|time| (0..=LATEST).contains(&time.floor()))
}

fn utc(time: DateTime, offset: Offset) -> Option<Decimal> {
    let nanoseconds = offset.to_timestamp(time).ok()?.as_nanosecond();
    Some(Decimal::of_nanoseconds(nanoseconds))
}

fn by_pattern(pattern: &str, text: &str) -> Option<Decimal> {
    // HTTP and older mail write the name of the zone in place of its offset.
    let before_zone =
        if pattern.ends_with(" %z") { text.strip_suffix(" GMT").or_else(|| text.strip_suffix(" UTC")) } else { None };
    let text = before_zone.map_or(Cow::Borrowed(text), |start| format!("{start} +0000").into());
    let time = strtime::parse(pattern, &*text).ok()?;
    if let Ok(timestamp) = time.to_timestamp() {
        return Some(Decimal::of_nanoseconds(timestamp.as_nanosecond()));
    }
    let midnight = || time.to_date().map(|date| date.to_datetime(Time::midnight()));
    utc(time.to_datetime().or_else(|_| midnight()).ok()?, Offset::UTC)
}

/// Reads a number of `least` to `most` digits at the start of a text, and returns it with the rest.
fn number(text: &str, least: usize, most: usize) -> Option<(i16, &str)> {
    let length = text.bytes().take(most).take_while(u8::is_ascii_digit).count();
    let value = text.get(..length).filter(|_| length >= least)?.parse().ok()?;
    Some((value, &text[length..]))
}

/// Seconds of a date such as `2018-09-30`, `2018/9/30 12:00`, `20180930T120000Z` or `2018-09-30T12:00:00.123+02:00`.
pub fn iso(text: &str) -> Option<Decimal> {
    let text = text.trim();
    let (year, rest) = number(text, 4, 4)?;
    let (month, day, rest) = match rest.as_bytes().first()? {
        separator @ (b'-' | b'/') => {
            let separator = char::from(*separator);
            let (month, rest) = number(&rest[1..], 1, 2)?;
            let (day, rest) = number(rest.strip_prefix(separator)?, 1, 2)?;
            (month, day, rest)
        }
        _ => {
            let (month, rest) = number(rest, 2, 2)?;
            let (day, rest) = number(rest, 2, 2)?;
            (month, day, rest)
        }
    };
    let date = Date::new(year, month as i8, day as i8).ok()?;
    let rest = match rest.as_bytes() {
        [] => return utc(date.to_datetime(Time::midnight()), Offset::UTC),
        [b'T' | b't' | b' ' | b'_', ..] => rest[1..].trim_start(),
        _ => return None,
    };
    let (hour, rest) = number(rest, 1, 2)?;
    let colon = rest.starts_with(':');
    let (minute, rest) = number(rest.strip_prefix(':').unwrap_or(rest), 2, 2)?;
    let (mut second, mut rest, mut fraction) = (0, rest, "");
    let seconds = if colon {
        rest.strip_prefix(':')
    } else {
        Some(rest).filter(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    };
    if let Some(after) = seconds {
        (second, rest) = number(after, 2, 2)?;
        if let Some(after) = rest.strip_prefix(['.', ',']) {
            let end = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
            (fraction, rest) = after.split_at(end);
            if fraction.is_empty() {
                return None;
            }
        }
    }
    // A leap second counts as the second before it.
    let time = Time::new(hour as i8, minute as i8, second.min(59) as i8, 0).ok().filter(|_| second <= 60)?;
    let offset = zone(rest.trim())?;
    let whole = utc(date.to_datetime(time), offset)?;
    let mut nanoseconds = 0;
    for at in 0..9 {
        nanoseconds = nanoseconds * 10 + fraction.as_bytes().get(at).map_or(0, |byte| i128::from(byte - b'0'));
    }
    let value = whole.floor().checked_mul(1_000_000_000)?.checked_add(nanoseconds)?;
    Some(Decimal::of_nanoseconds(value))
}

/// Reads a time zone: `Z`, `UTC`, `+02:00`, `-0700`, `+02`, or nothing.
fn zone(text: &str) -> Option<Offset> {
    if text.is_empty() || ["z", "utc", "gmt"].iter().any(|name| text.eq_ignore_ascii_case(name)) {
        return Some(Offset::UTC);
    }
    let (sign, rest) = match text.as_bytes().first()? {
        b'+' => (1, &text[1..]),
        b'-' => (-1, &text[1..]),
        _ => return None,
    };
    let (hours, rest) = number(rest, 2, 2)?;
    let rest = rest.strip_prefix(':').unwrap_or(rest);
    let (minutes, rest) = if rest.is_empty() { (0, rest) } else { number(rest, 2, 2)? };
    if !rest.is_empty() || minutes > 59 {
        return None;
    }
    Offset::from_seconds(sign * (i32::from(hours) * 3600 + i32::from(minutes) * 60)).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn read(notation: &Notation, text: &str) -> std::result::Result<String, String> {
        let read = notation.read("t", &RawCell::Text(text.into()), false);
        read.map(|time| {
            let units = time.units(time.digits).unwrap();
            if time.digits == 0 { units.to_string() } else { format!("{units}e-{}", time.digits) }
        })
        .map_err(|fault| fault.reason.into_owned())
    }

    fn refused(notation: &Notation, text: &str) -> String {
        read(notation, text).unwrap_err()
    }

    #[test]
    fn each_unit_reads_its_own_numbers_and_names_the_unit_of_others() {
        let [s, ms, us, ns] = [0, 3, 6, 9].map(Notation::Unix);
        assert_eq!(read(&s, "1529193600").unwrap(), "1529193600");
        assert_eq!(read(&s, "0").unwrap(), "0");
        assert_eq!(read(&s, "1529193600.25").unwrap(), "152919360025e-2");
        assert_eq!(refused(&s, "1529193600000"), "`t` is after the year 2100 (milliseconds?)");
        assert_eq!(refused(&s, "1529193600000000000"), "`t` is after the year 2100 (nanoseconds?)");
        assert_eq!(refused(&s, "-1"), "`t` is negative");
        assert_eq!(refused(&s, "06 17, 2018"), "`t` is not a number");
        assert_eq!(refused(&s, " "), "no `t`");
        assert_eq!(read(&ms, "1529193600123").unwrap(), "1529193600123e-3");
        assert_eq!(read(&ms, "1529193600000").unwrap(), "1529193600");
        assert_eq!(refused(&ms, "1529193600"), "`t` is not a Unix time in milliseconds (seconds?)");
        assert_eq!(read(&us, "1529193600123456").unwrap(), "1529193600123456e-6");
        assert_eq!(read(&ns, "1529193600123456789").unwrap(), "1529193600123456789e-9");
        assert_eq!(read(&Notation::Typed(3), "0").unwrap(), "0");
        assert_eq!(read(&Notation::Position, "5000000000").unwrap(), "5000000000");
        assert_eq!(read(&Notation::Position, "1.5").unwrap(), "15e-1");
        assert_eq!(refused(&Notation::Position, "-1"), "`t` is negative");
    }

    #[test]
    fn goodreads_dates_have_their_own_zone() {
        let goodreads = Notation::Pattern(GOODREADS.into());
        assert_eq!(read(&goodreads, "Fri Sep 08 10:44:24 -0700 2017").unwrap(), "1504892664");
        assert_eq!(refused(&goodreads, "Mon Jan 01 00:00:00 -0800 0001"), "`t` is before the year 1970");
        assert!(refused(&goodreads, "2017-09-08").contains("is not a date like"));
        assert_eq!(refused(&goodreads, ""), "no `t`");
    }

    #[test]
    fn dates_of_iso_8601() {
        for (text, expected) in [
            ("2018-09-30", "1538265600"),
            ("2018/9/30", "1538265600"),
            ("20180930", "1538265600"),
            ("2018-09-30T12:00:00", "1538308800"),
            ("2018-09-30 12:00", "1538308800"),
            ("20180930T120000Z", "1538308800"),
            ("2018-09-30T12:00:00Z", "1538308800"),
            ("2018-09-30 12:00:00 UTC", "1538308800"),
            ("2018-09-30T12:00:00+02:00", "1538301600"),
            ("2018-09-30 12:00:00-0700", "1538334000"),
            ("2020-07-05 05:27:48.378", "1593926868378e-3"),
            ("2020-07-05T05:27:48,378000001+00", "1593926868378000001e-9"),
            ("2016-12-31T23:59:60Z", "1483228799"),
        ] {
            assert_eq!(read(&Notation::Iso, text).unwrap(), expected, "{text}");
        }
        for text in [
            "2018-13-01",
            "2018-02-30",
            "yesterday",
            "2018-09-30T",
            "30.09.2018",
            "2018-09-30T25:00",
            "2018-09-30T12:00+2",
            "2018-09",
        ] {
            assert!(refused(&Notation::Iso, text).contains("is not a date like"), "{text}");
        }
        assert_eq!(refused(&Notation::Iso, "1969-12-31"), "`t` is before the year 1970");
        let two_digits = "`t` has a year of two digits; write `%y` instead of `%Y` in `source.time`";
        assert_eq!(refused(&Notation::Pattern("%d.%m.%Y".into()), "31.12.20"), two_digits);
        assert_eq!(refused(&Notation::Iso, "2101-01-01"), "`t` is after the year 2100");
    }

    #[test]
    fn a_notation_is_recognised_from_values() {
        let of = |values: &[&str]| {
            let cells: Vec<RawCell<'_>> = values.iter().map(|value| RawCell::Text((*value).into())).collect();
            Notation::recognised(&cells, false).map(|notation| notation.map(|notation| notation.described()))
        };
        for (values, expected) in [
            (&["1", "2", "1600000000.5"][..], "Unix time in seconds"),
            (&["1600000000123", "0", ""], "Unix time in milliseconds"),
            (&["1600000000123456"], "Unix time in microseconds"),
            (&["1600000000123456789"], "Unix time in nanoseconds"),
            (&["2020-07-05 05:27:48.378", "2018-09-20"], "ISO 8601 dates (UTC if they have no time zone)"),
            (&["20180920", "20181231"], "dates written as `%Y%m%d`"),
            (&["20180920123456"], "dates written as `%Y%m%d%H%M%S`"),
            (&["20180920", "20181331", "20180921"], "dates written as `%Y%m%d`"),
            (&["20180920", "99991231", "20180921"], "dates written as `%Y%m%d`"),
            (&["20180920", "20181331"], "Unix time in seconds"),
            (&["2015021021", "2015021022"], "dates written as `%Y%m%d%H`"),
            (&["2015021021", "2033000000", "2033000001"], "Unix time in seconds"),
            (&["201402012400", "201402280930", "201402270930", "0"], "dates written as `%Y%m%d%H%M`"),
            (&["13/01/2018", "01/02/2018"], "dates written as `%d/%m/%Y`"),
            (&["01/13/2018 5:27:48 PM", "01/02/2018 11:00:00 AM"], "dates written as `%m/%d/%Y %I:%M:%S %p`"),
            (&["30.09.2018 12:00"], "dates written as `%d.%m.%Y %H:%M`"),
            (&["06 17, 2018"], "dates written as `%m %d, %Y`"),
            (&["May 5, 2018", "June 17, 2018"], "dates written as `%B %d, %Y`"),
            (&["May 5, 2018", "May 17, 2018"], "dates written as `%b %d, %Y`"),
            (&["14 Sep 2020 15:25:51", "3 May 2020 01:02:03"], "dates written as `%d %b %Y %H:%M:%S`"),
            (&["3 Sep 2020", "3 May 2020", "4 May 2020", "5 May 2020"], "dates written as `%d %b %Y`"),
            (&["13-Sep-20", "01-OCT-20"], "dates written as `%d-%b-%y`"),
            (&["13-Sep-2020"], "dates written as `%d-%b-%Y`"),
            (&["Sep 13, 2020 5:27 PM"], "dates written as `%b %d, %Y %I:%M %p`"),
            (&["Fri Sep 08 10:44:24 -0700 2017"], "dates written as `%a %b %d %H:%M:%S %z %Y`"),
            (
                &["Mon, 06 Jan 2020 10:00:00 GMT", "Mon, 06 Jan 2020 11:00:00 +0100"],
                "dates written as `%a, %d %b %Y %H:%M:%S %z`",
            ),
        ] {
            assert_eq!(of(values), Ok(Some(expected.to_owned())), "{values:?}");
        }
        assert_eq!(of(&["yesterday", ""]), Ok(None));
        let wrong = of(&["20180920", "20180921", "20180922", "20180931", "20180932"]).unwrap_err();
        assert!(wrong.contains("most of them are dates written as `%Y%m%d`, and `20180931` is not"), "{wrong}");
        let ambiguous = of(&["01/02/2018"]).unwrap_err();
        assert!(ambiguous.contains("`01/02/2018` may be dates written as `%d/%m/%Y` or"), "{ambiguous}");
        let rounded = of(&["1.59E+09", "1.6E+09", "1.59002E+09"]).unwrap_err();
        assert!(rounded.contains("`1.59E+09` is rounded"), "{rounded}");
        assert_eq!(of(&["8.81250949E8", "1.6E9", "1.588687729E9"]), Ok(Some("Unix time in seconds".to_owned())));
        let mixed = of(&["1600000000", "1600000001", "2018-09-20", "2018-09-21"]).unwrap_err();
        assert!(mixed.contains("source.time = \"mixed\""), "{mixed}");
        let mut values = vec!["1600000000"; 99];
        values.push("1600000000000");
        assert_eq!(of(&values), Ok(Some("Unix time in seconds".to_owned())), "a stray line is rejected by itself");
        assert_eq!(
            Notation::recognised(&[RawCell::of_json(json!(1_588_687_728_923_u64))], false),
            Ok(Some(Notation::Unix(3)))
        );
    }

    #[test]
    fn the_key_names_units_patterns_and_orders() {
        let parse = |text: &str| TimeSetting::parse(text).map_err(|e| e.to_string());
        assert_eq!(parse(""), Ok(None));
        assert_eq!(parse("ms"), Ok(Some(TimeSetting::Known(Notation::Unix(3)))));
        assert_eq!(parse("%d.%m.%y"), Ok(Some(TimeSetting::Known(Notation::Pattern("%d.%m.%y".into())))));
        assert_eq!(parse("line-order").unwrap().unwrap().kind(), TimeKind::Positions);
        for (text, expected) in [
            ("minutes", "is not a notation of time"),
            ("%H:%M", "is not a pattern of a date"),
            ("%Q", "is not a pattern"),
        ] {
            assert!(parse(text).unwrap_err().contains(expected), "{text}");
        }
        let mixed = Notation::Mixed;
        assert_eq!(read(&mixed, "1600000000500").unwrap(), "16000000005e-1");
        assert_eq!(read(&mixed, "2020-09-13T12:26:40Z").unwrap(), "1600000000");
        assert_eq!(read(&mixed, "13 May 2020 12:26:40").unwrap(), "1589372800");
        assert_eq!(read(&mixed, "20140513").unwrap(), "1399939200");
        assert_eq!(refused(&mixed, "1.4e9"), "`t` is rounded");
        assert_eq!(refused(&mixed, "01/02/2018"), "`t` may have the day or the month first");
        assert_eq!(refused(&mixed, "soon"), "`t` is not a recognised time");
    }

    proptest! {
        #[test]
        fn any_text_is_a_time_or_a_reason(text in "[-0-9T:. /+Zapm]{0,30}|\\PC{0,20}") {
            for notation in [Notation::Unix(0), Notation::Iso, Notation::Mixed, Notation::Position] {
                let _ = read(&notation, &text);
            }
        }

        #[test]
        fn dates_are_those_of_jiff(seconds in 0..4_102_444_800_i64, nanoseconds in 0..1_000_000_000_i32, hours in -12..=14_i8) {
            let time = jiff::Timestamp::new(seconds, nanoseconds).unwrap();
            let offset = jiff::tz::offset(hours);
            let expected = Decimal::of_nanoseconds(time.as_nanosecond());
            prop_assert_eq!(iso(&time.to_string()), Some(expected));
            prop_assert_eq!(iso(&time.display_with_offset(offset).to_string()), Some(expected));
        }
    }
}
