//! What the values of a column are, in the words of messages, and which of them can be compared.

use polars::prelude::DataType;

/// Whether values of two types can be compared with one another.
pub fn comparable(first: &DataType, second: &DataType) -> bool {
    let both = |is: fn(&DataType) -> bool| is(first) && is(second);
    let same = both(DataType::is_string)
        || both(|kind| kind.is_primitive_numeric() || kind.is_decimal())
        || both(|kind| matches!(kind, DataType::Date | DataType::Datetime(..)))
        || both(DataType::is_duration)
        || both(DataType::is_bool);
    same || first == second || first.is_null() || second.is_null()
}

/// What the values of a type are.
pub fn kind(kind: &DataType) -> &'static str {
    match kind {
        DataType::String => "text",
        DataType::Boolean => "true or false",
        kind if kind.is_integer() => "a whole number",
        kind if kind.is_primitive_numeric() || kind.is_decimal() => "a number",
        DataType::Date => "a date",
        kind if kind.is_temporal() => "a time",
        _ => "a list or an object",
    }
}
