use std::borrow::Cow;

use serde_json::Value;

/// What stands in one field of a row.
#[derive(Clone, Debug, PartialEq)]
pub enum RawCell<'a> {
    /// Nothing: no such field, or null.
    Missing,
    /// Text, exactly as it stands.
    Text(Cow<'a, str>),
    /// A number, a list, an object, a truth value.
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

    /// Text, or a number as text: ids are kept as they stand, leading zeros and all.
    pub fn text(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Text(text) => Some(Cow::Borrowed(text)),
            // A whole number past 64 bits has become a float here and is no longer what stood in the file.
            Self::Json(Value::Number(number)) if number.is_i64() || number.is_u64() => {
                Some(Cow::Owned(number.to_string()))
            }
            _ => None,
        }
    }

    /// A whole number; a fraction is cut off, as time stamps are seconds.
    pub fn whole(&self) -> Option<i64> {
        let of_float = |x: f64| (x.abs() < 9.0e18).then(|| x.floor() as i64);
        match self {
            Self::Text(text) => {
                let text = text.trim();
                text.parse().ok().or_else(|| text.parse().ok().and_then(of_float))
            }
            Self::Json(Value::Number(number)) => number.as_i64().or_else(|| number.as_f64().and_then(of_float)),
            _ => None,
        }
    }

    /// For messages.
    pub fn shown(&self) -> String {
        match self {
            Self::Missing => "nothing".to_owned(),
            Self::Text(text) => text.to_string(),
            Self::Json(value) => value.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ids_stay_as_they_stand() {
        let text = |value| RawCell::of_json(value).text().map(Cow::into_owned);
        assert_eq!(text(json!("007")).as_deref(), Some("007"));
        assert_eq!(text(json!(7)).as_deref(), Some("7"));
        assert_eq!(text(json!(18_446_744_073_709_551_615_u64)).as_deref(), Some("18446744073709551615"));
        assert_eq!(text(json!(1.5)), None);
        assert_eq!(text(json!(["a"])), None);
        assert_eq!(text(json!(null)), None);
    }

    #[test]
    fn whole_numbers_come_as_numbers_or_text() {
        for (cell, expected) in [
            (RawCell::Text("881250949".into()), Some(881_250_949)),
            (RawCell::Text(" 8.8e8 ".into()), Some(880_000_000)),
            (RawCell::Json(json!(12.9)), Some(12)),
            (RawCell::Json(json!(-3)), Some(-3)),
            (RawCell::Text("1e300".into()), None),
            (RawCell::Text("nan".into()), None),
            (RawCell::Text(String::new().into()), None),
            (RawCell::Json(json!(true)), None),
            (RawCell::Missing, None),
        ] {
            assert_eq!(cell.whole(), expected, "{cell:?}");
        }
    }
}
