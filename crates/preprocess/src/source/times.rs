//! The times of events as whole numbers of one unit, which becomes finer whenever a time needs it.

use crate::decimal::Decimal;
use crate::{Error, Result};

/// Times in units of ten to the power of `-digits` of a second, or of a position.
#[derive(Debug, Default)]
pub struct Times {
    units: Vec<i64>,
    digits: u8,
    /// The greatest of all times, in the same units.
    last: i64,
}

impl Times {
    /// The number of times that are held.
    pub fn len(&self) -> usize {
        self.units.len()
    }

    /// The number of decimal digits in the unit.
    pub fn digits(&self) -> u8 {
        self.digits
    }

    /// Takes the times that are held.
    pub fn take(&mut self) -> Vec<i64> {
        std::mem::take(&mut self.units)
    }

    /// Adds a time. A time with more digits than can be represented together with the greatest time is an error, because it could not be
    /// ordered.
    pub fn push(&mut self, field: &str, time: Decimal) -> Result<()> {
        if time.digits > self.digits {
            self.refine(field, time)?;
        }
        let unit = time.units(self.digits).ok_or_else(|| too_long(field, time))?;
        self.last = self.last.max(unit);
        self.units.push(unit);
        Ok(())
    }

    fn refine(&mut self, field: &str, time: Decimal) -> Result<()> {
        let factor = 10_i64.checked_pow((time.digits - self.digits).into());
        let factor = factor.filter(|factor| self.last.checked_mul(*factor).is_some());
        let factor = factor.ok_or_else(|| too_long(field, time))?;
        self.units.iter_mut().for_each(|unit| *unit *= factor);
        self.last *= factor;
        self.digits = time.digits;
        Ok(())
    }
}

fn too_long(field: &str, time: Decimal) -> Error {
    Error::Setting(format!(
        "`{field}` has values that cannot be represented together: {} has {} decimal places; round them",
        time.value, time.digits
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_becomes_finer_and_overflow_is_refused() {
        let mut times = Times::default();
        for text in ["1600000000", "1600000000.5", "3", "1600000000.123456789", "2.25"] {
            times.push("t", Decimal::parse(text, false).unwrap()).unwrap();
        }
        assert_eq!(times.digits(), 9);
        let expected = [
            1_600_000_000_000_000_000,
            1_600_000_000_500_000_000,
            3_000_000_000,
            1_600_000_000_123_456_789,
            2_250_000_000,
        ];
        assert_eq!(times.take(), expected);
        let refused = times.push("t", Decimal::parse("0.12345678901", false).unwrap()).unwrap_err();
        assert!(refused.to_string().contains("`t` has values that cannot be represented together"));
        assert!(times.push("t", Decimal::parse("1e18", false).unwrap()).is_err());
        assert_eq!((times.len(), times.digits()), (0, 9));
    }
}
