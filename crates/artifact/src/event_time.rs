//! Times of events with all their decimal places.

use std::cmp::Ordering;

/// The time of an event as a number of any unit, with the digits that a 64-bit float would lose: only the order of times matters.
#[derive(Clone, Copy, Debug, Default)]
pub struct EventTime {
    whole: i128,
    /// The rest, from 0 to below 1.
    fraction: f64,
}

impl EventTime {
    /// Reads a number such as `1600000000`, `-1.5` or `1.6e9`; `None` if the text is not a finite number.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let value: f64 = text.parse().ok().filter(|value: &f64| value.is_finite())?;
        let digits = text.trim_start_matches(['-', '+']);
        if !digits.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
            return Some(Self::of_float(value));
        }
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        let Ok(whole) = format!("0{whole}").parse::<i128>() else { return Some(Self::of_float(value)) };
        let fraction = format!("0.{fraction}0").parse().ok()?;
        Some(match text.starts_with('-') {
            true if fraction > 0.0 => Self { whole: -whole - 1, fraction: 1.0 - fraction },
            true => Self { whole: -whole, fraction },
            false => Self { whole, fraction },
        })
    }

    /// A finite number.
    pub fn of_float(value: f64) -> Self {
        Self { whole: value.floor() as i128, fraction: value - value.floor() }
    }
}

impl Ord for EventTime {
    fn cmp(&self, other: &Self) -> Ordering {
        self.whole.cmp(&other.whole).then(self.fraction.total_cmp(&other.fraction))
    }
}

impl PartialOrd for EventTime {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for EventTime {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for EventTime {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_ordered_by_all_of_their_digits() {
        let ascending = [
            "-1e300",
            "-20240101120000001.5",
            "-20240101120000001.25",
            "-20240101120000001",
            "-2",
            "-1.5",
            "-.5",
            "0",
            "0.25",
            " 1.6e9",
            "1600000000.123456789",
            "+1600000000.123456790",
            "20240101120000001",
            "20240101120000002",
            "20240101120000002.5",
            "1600000000000000000000000000000000000000000",
        ];
        let times: Vec<EventTime> = ascending.iter().map(|text| EventTime::parse(text).unwrap()).collect();
        for pair in times.windows(2).zip(ascending.windows(2)) {
            assert!(pair.0[0] < pair.0[1], "{:?}", pair.1);
        }
        assert_eq!(EventTime::parse("-0.0"), EventTime::parse("0"));
        for text in ["", "nan", "inf", "-", ".", "1.2.3", "noon", "1_000"] {
            assert_eq!(EventTime::parse(text), None, "{text}");
        }
    }
}
