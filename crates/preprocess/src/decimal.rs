//! Exact decimal numbers: times must not lose a digit before events are ordered.

/// `value` times ten to the power of `-digits`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decimal {
    /// The digits without the point.
    pub value: i128,
    /// The number of digits after the decimal point; the last of these is not 0.
    pub digits: u8,
}

/// The number of digits that are read of a number; more would not fit into 128 bits.
const MOST: usize = 36;

impl Decimal {
    /// A whole number.
    pub fn whole(value: i64) -> Self {
        Self { value: value.into(), digits: 0 }
    }

    /// A number of billionths.
    pub fn of_nanoseconds(value: i128) -> Self {
        Self { value, digits: 9 }.shortened()
    }

    /// `value` in units of ten to the power of `-digits`.
    pub fn of_units(value: i64, digits: u8) -> Self {
        Self { value: value.into(), digits }.shortened()
    }

    /// Reads a number such as `-12`, `1600000000.5` or `8.8e8`; with `comma`, one comma may replace the point.
    pub fn parse(text: &str, comma: bool) -> Option<Self> {
        let text = text.trim();
        let (mantissa, exponent) = match text.find(['e', 'E']) {
            Some(at) => (&text[..at], text[at + 1..].parse::<i32>().ok()?),
            None => (text, 0),
        };
        let (negative, mantissa) = match mantissa.as_bytes().first()? {
            b'-' => (true, &mantissa[1..]),
            b'+' => (false, &mantissa[1..]),
            _ => (false, mantissa),
        };
        let point = mantissa.find('.').or_else(|| mantissa.find(',').filter(|_| comma));
        let (whole, fraction) = point.map_or((mantissa, ""), |at| (&mantissa[..at], &mantissa[at + 1..]));
        let is_number = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        if whole.len() + fraction.len() == 0 || !is_number(whole) || !is_number(fraction) {
            return None;
        }
        let fraction = fraction.trim_end_matches('0');
        let whole = whole.trim_start_matches('0');
        let kept = fraction.len().min(MOST.checked_sub(whole.len())?);
        let mut value = 0_i128;
        for byte in whole.bytes().chain(fraction.bytes().take(kept)) {
            value = value * 10 + i128::from(byte - b'0');
        }
        let mut digits = i32::try_from(kept).ok()?.checked_sub(exponent)?;
        if value == 0 {
            digits = 0;
        }
        while digits < 0 {
            value = value.checked_mul(10)?;
            digits += 1;
        }
        if digits > MOST as i32 {
            // A power that does not fit is greater than any value.
            let over = digits.abs_diff(MOST as i32);
            value = 10_i128.checked_pow(over).map_or(0, |power| value / power);
            digits = MOST as i32;
        }
        let value = if negative { -value } else { value };
        Some(Self { value, digits: digits as u8 }.shortened())
    }

    fn shortened(mut self) -> Self {
        // Nearly all numbers fit into 64 bits, whose division takes a tenth of the time.
        if let Ok(mut value) = i64::try_from(self.value) {
            while self.digits > 0 && value % 10 == 0 {
                value /= 10;
                self.digits -= 1;
            }
            self.value = value.into();
        }
        while self.digits > 0 && self.value % 10 == 0 {
            self.value /= 10;
            self.digits -= 1;
        }
        self
    }

    /// The same number times ten to the power of `-power`.
    pub fn scaled_down(self, power: u8) -> Self {
        let kept = self.cut(MOST as u8 - power);
        Self { value: kept.value, digits: kept.digits + power }.shortened()
    }

    /// The number with at most `digits` digits after the point; further digits are cut off.
    pub fn cut(self, digits: u8) -> Self {
        let over = self.digits.saturating_sub(digits);
        if over == 0 {
            return self;
        }
        Self { value: self.value.div_euclid(10_i128.pow(over.into())), digits: self.digits - over }.shortened()
    }

    /// The number in units of ten to the power of `-digits`, rounded up if it lies between two; `None` if it does not fit.
    pub fn units(self, digits: u8) -> Option<i64> {
        let scaled = match digits.checked_sub(self.digits) {
            Some(0) => self.value,
            Some(more) => self.value.checked_mul(10_i128.checked_pow(more.into())?)?,
            None => {
                let unit = 10_i128.pow((self.digits - digits).into());
                self.value.div_euclid(unit) + i128::from(self.value.rem_euclid(unit) != 0)
            }
        };
        i64::try_from(scaled).ok()
    }

    /// Whether it is less than another number.
    pub fn is_less(self, other: Self) -> bool {
        let fraction = |number: Self| {
            let unit = 10_i128.pow(number.digits.into());
            number.value.rem_euclid(unit) * 10_i128.pow(u32::from(MOST as u8 - number.digits))
        };
        (self.floor(), fraction(self)) < (other.floor(), fraction(other))
    }

    /// The largest whole number that is not greater than this number.
    pub fn floor(self) -> i128 {
        if self.digits == 0 {
            return self.value;
        }
        self.value.div_euclid(10_i128.pow(self.digits.into()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Option<(i128, u8)> {
        Decimal::parse(text, false).map(|number| (number.value, number.digits))
    }

    #[test]
    fn numbers_keep_all_written_digits() {
        for (text, expected) in [
            ("881250949", Some((881_250_949, 0))),
            (" 8.8e8 ", Some((880_000_000, 0))),
            ("1600000000.9", Some((16_000_000_009, 1))),
            ("1600000001.000", Some((1_600_000_001, 0))),
            ("1600000000.123456789", Some((1_600_000_000_123_456_789, 9))),
            ("-0.5", Some((-5, 1))),
            ("+.25", Some((25, 2))),
            ("5.", Some((5, 0))),
            ("1.5881E12", Some((1_588_100_000_000, 0))),
            ("2.5e-3", Some((25, 4))),
            ("0e400", Some((0, 0))),
            ("1e300", None),
            ("1e-2147483000", Some((0, 0))),
            ("15e-36", Some((15, 36))),
            ("125e-37", Some((12, 36))),
            ("nan", None),
            ("", None),
            ("-", None),
            (".", None),
            ("1,5", None),
            ("0x10", None),
            ("1 000", None),
            ("2020-07-05", None),
        ] {
            assert_eq!(read(text), expected, "{text}");
        }
        assert_eq!(Decimal::parse("1600000000,5", true), Decimal::parse("1600000000.5", false));
        assert_eq!(Decimal::parse("1,600,000", true), None);
    }

    #[test]
    fn bounds_between_two_units_are_rounded_up() {
        let number = Decimal::parse("1.25", false).unwrap();
        assert_eq!(
            (number.units(0), number.units(1), number.units(2), number.units(3)),
            (Some(2), Some(13), Some(125), Some(1250))
        );
        assert_eq!(Decimal::parse("-1.25", false).unwrap().units(0), Some(-1));
        assert_eq!(number.units(30), None);
    }

    proptest! {
        #[test]
        fn digits_round_trip(whole in 0_i64..1_000_000_000_000, fraction in 0_u32..1_000_000_000) {
            let number = Decimal::parse(&format!("{whole}.{fraction:09}"), false).unwrap();
            prop_assert_eq!(number.units(9).map(i128::from), i64::try_from(i128::from(whole) * 1_000_000_000 + i128::from(fraction)).ok().map(i128::from));
            prop_assert_eq!(number.floor(), i128::from(whole));
        }

        #[test]
        fn any_text_is_a_number_or_none(text in "[-+0-9.,eE]{0,60}") {
            let _ = Decimal::parse(&text, true).map(|number| (number.units(9), number.cut(9), number.floor()));
        }
    }
}
