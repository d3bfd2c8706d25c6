//! A value of a raw file, whatever the format.

use std::borrow::Cow;

use serde_json::Value;

use crate::decimal::Decimal;
use crate::rejects::Fault;

/// The content of one field of a row.
#[derive(Clone, Debug, PartialEq)]
pub enum RawCell<'a> {
    /// No content: the field is missing or null.
    Missing,
    /// Text, exactly as in the file.
    Text(Cow<'a, str>),
    /// A number with more digits than [`Value`] holds, as it is written.
    Number(Cow<'a, str>),
    /// Any other number, a list, an object or a boolean.
    Json(Value),
}

impl RawCell<'_> {
    /// The cell of a JSON value.
    pub fn of_json(value: Value) -> Self {
        match value {
            Value::Null => Self::Missing,
            Value::String(text) => Self::Text(Cow::Owned(text)),
            other => Self::Json(other),
        }
    }

    /// Text, or a number as text: ids are kept unchanged, including leading zeros.
    pub fn text(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Text(text) => Some(Cow::Borrowed(text)),
            Self::Number(number) if is_whole(number) => Some(Cow::Borrowed(number)),
            // A whole number beyond 64 bits has become a float here and no longer equals the one in the file.
            Self::Json(Value::Number(number)) if number.is_i64() || number.is_u64() => {
                Some(Cow::Owned(number.to_string()))
            }
            _ => None,
        }
    }

    /// A whole number of 64 bits, as most times are.
    pub fn whole(&self) -> Option<i64> {
        match self {
            Self::Text(text) => text.trim().parse().ok(),
            Self::Json(Value::Number(number)) => number.as_i64(),
            _ => None,
        }
    }

    /// A number with all of its digits. With `comma`, a text may have a decimal comma.
    pub fn decimal(&self, comma: bool) -> Option<Decimal> {
        match self {
            Self::Text(text) => self.whole().map(Decimal::whole).or_else(|| Decimal::parse(text, comma)),
            Self::Number(text) => Decimal::parse(text, false),
            Self::Json(Value::Number(number)) => match number.as_i64() {
                Some(whole) => Some(Decimal::whole(whole)),
                None => Decimal::parse(&number.to_string(), false),
            },
            _ => None,
        }
    }

    /// Whether it is a number of 64 bits with a fraction, which may have lost digits.
    pub fn is_float(&self) -> bool {
        matches!(self, Self::Json(Value::Number(number)) if number.is_f64())
    }

    /// Whether the cell is missing, blank, or an empty list or object.
    pub fn is_blank(&self) -> bool {
        match self {
            Self::Missing => true,
            Self::Text(text) => text.trim().is_empty(),
            Self::Json(Value::Array(values)) => values.is_empty(),
            Self::Json(Value::Object(values)) => values.is_empty(),
            _ => false,
        }
    }

    /// The cell without borrowed content.
    pub fn into_owned(self) -> RawCell<'static> {
        match self {
            Self::Missing => RawCell::Missing,
            Self::Text(text) => RawCell::Text(Cow::Owned(text.into_owned())),
            Self::Number(text) => RawCell::Number(Cow::Owned(text.into_owned())),
            Self::Json(value) => RawCell::Json(value),
        }
    }

    /// The value as messages show it.
    pub fn shown(&self) -> String {
        match self {
            Self::Missing => "nothing".to_owned(),
            Self::Text(text) | Self::Number(text) => text.to_string(),
            Self::Json(value) => value.to_string(),
        }
    }
}

fn is_whole(number: &str) -> bool {
    let digits = number.strip_prefix('-').unwrap_or(number);
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
}

/// One line of a file: its number and, for each wanted field in order, its content; or why it cannot be read.
pub type RawRow<'r, 'a> = (u64, std::result::Result<&'r [RawCell<'a>], Fault>);

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ids_are_kept_as_written() {
        let text = |value| RawCell::of_json(value).text().map(Cow::into_owned);
        assert_eq!(text(json!("007")).as_deref(), Some("007"));
        assert_eq!(text(json!(7)).as_deref(), Some("7"));
        assert_eq!(text(json!(18_446_744_073_709_551_615_u64)).as_deref(), Some("18446744073709551615"));
        assert_eq!(text(json!(1.5)), None);
        assert_eq!(text(json!(["a"])), None);
        assert_eq!(text(json!(null)), None);
        assert_eq!(RawCell::Number("18446744073709551616".into()).text().as_deref(), Some("18446744073709551616"));
        assert_eq!(RawCell::Number("1.50000000000000001".into()).text(), None);
    }

    #[test]
    fn numbers_come_as_numbers_or_text_with_all_of_their_digits() {
        for (cell, expected) in [
            (RawCell::Text("881250949".into()), Some((881_250_949, 0))),
            (RawCell::Text(" 8.8e8 ".into()), Some((880_000_000, 0))),
            (RawCell::Json(json!(12.9)), Some((129, 1))),
            (RawCell::Json(json!(-3)), Some((-3, 0))),
            (RawCell::Json(json!(18_446_744_073_709_551_615_u64)), Some((18_446_744_073_709_551_615, 0))),
            (RawCell::Number("0.1000000000000000055".into()), Some((1_000_000_000_000_000_055, 19))),
            (RawCell::Text("1e300".into()), None),
            (RawCell::Text("nan".into()), None),
            (RawCell::Text(String::new().into()), None),
            (RawCell::Json(json!(true)), None),
            (RawCell::Missing, None),
        ] {
            assert_eq!(cell.decimal(false).map(|n| (n.value, n.digits)), expected, "{cell:?}");
        }
    }
}
