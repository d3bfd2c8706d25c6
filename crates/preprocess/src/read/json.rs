//! Reads files with one JSON object per line.

use std::borrow::Cow;
use std::fmt;

use indexmap::IndexSet;
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;
use serde_json::error::Category;

use super::lines::{self, Lines};
use super::literal::Literal;
use super::{RawCell, RawRow, literal};
use crate::Result;
use crate::rejects::{BLANK_LINE, Fault};

/// Reads every line, or every object of an array, as a JSON object or as a literal that is nearly one: a Python dictionary, or JSON with
/// `NaN`. A field that is wanted twice is returned twice.
pub fn for_each(
    lines: &mut Lines<'_>,
    fields: &[&str],
    visit: &mut dyn FnMut(RawRow<'_, '_>) -> Result<()>,
) -> Result<()> {
    let distinct: IndexSet<&str> = fields.iter().copied().collect();
    let indices: Vec<usize> = fields.iter().filter_map(|field| distinct.get_index_of(field)).collect();
    let distinct: Vec<&str> = distinct.into_iter().collect();
    let elements = lines.holds_elements()?;
    let mut line = Vec::new();
    while lines.begins_record()
        && let Some((number, outcome)) = next(lines, elements, &mut line)?
    {
        let cells = outcome.and_then(|()| lines::text(&line)).and_then(|text| cells(text, &distinct));
        match cells {
            Ok(cells) if indices.len() > cells.len() => {
                let cells: Vec<RawCell<'_>> = indices.iter().map(|&at| cells[at].clone()).collect();
                visit((number, Ok(&cells)))?;
            }
            Ok(cells) => visit((number, Ok(&cells)))?,
            Err(fault) => visit((number, Err(fault)))?,
        }
    }
    Ok(())
}

type Next = Option<(u64, std::result::Result<(), Fault>)>;

fn next(lines: &mut Lines<'_>, elements: bool, line: &mut Vec<u8>) -> Result<Next> {
    if elements { lines.next_element(line) } else { lines.next(line) }
}

/// The keys of the first `count` objects, in the order of their first occurrence.
pub fn columns(lines: &mut Lines<'_>, count: u64) -> Result<Vec<String>> {
    let mut names = IndexSet::new();
    let elements = lines.holds_elements()?;
    let mut line = Vec::new();
    for _ in 0..count {
        let Some((_, outcome)) = next(lines, elements, &mut line)? else { break };
        let Ok(text) = outcome.and_then(|()| lines::text(&line)) else { continue };
        let object = serde_json::from_str(text).ok().or_else(|| literal_of_line(text).map(|literal| literal.value));
        if let Some(Value::Object(object)) = object {
            names.extend(object.into_iter().map(|(name, _)| name));
        }
    }
    Ok(names.into_iter().collect())
}

fn cells(text: &str, fields: &[&str]) -> std::result::Result<Vec<RawCell<'static>>, Fault> {
    if text.trim_ascii().is_empty() {
        return Err(Fault::new(BLANK_LINE, ""));
    }
    match pick(text, fields) {
        Err(fault) if fault.reason == BROKEN => literal_cells(text, fields).unwrap_or(Err(fault)),
        Ok(mut cells) => {
            if cells.iter().any(RawCell::is_float)
                && has_long_number(text)
                && let Some(literal) = literal::parse(text)
            {
                restore_digits(&mut cells, &literal.numbers, fields);
            }
            Ok(cells)
        }
        picked => picked,
    }
}

/// The fields of a line that is not JSON, if it is a literal.
fn literal_cells(text: &str, fields: &[&str]) -> Option<std::result::Result<Vec<RawCell<'static>>, Fault>> {
    let literal = literal_of_line(text)?;
    let Value::Object(mut object) = literal.value else { return Some(Err(Fault::new("not an object", text))) };
    if let Some(field) = fields.iter().find(|field| literal.repeated.iter().any(|key| key == *field)) {
        return Some(twice(field, text));
    }
    let mut cells: Vec<_> =
        fields.iter().map(|field| object.remove(*field).map_or(RawCell::Missing, RawCell::of_json)).collect();
    if has_long_number(text) {
        restore_digits(&mut cells, &literal.numbers, fields);
    }
    Some(Ok(cells))
}

/// The literal in a line. An array that was written by hand, one object per line, may lack its brackets.
fn literal_of_line(text: &str) -> Option<Literal<'_>> {
    literal::parse(text.trim_end().trim_end_matches(','))
}

/// The number of digits that survive the conversion to a 64-bit float and back.
const SAFE: usize = 15;

/// Replaces numbers that 64 bits may not hold by their text. `numbers` has the texts by field.
fn restore_digits(cells: &mut [RawCell<'static>], numbers: &[(String, &str)], fields: &[&str]) {
    for (cell, field) in cells.iter_mut().zip(fields).filter(|(cell, _)| cell.is_float()) {
        if let Some((_, number)) = numbers.iter().find(|(key, _)| key == field) {
            *cell = RawCell::Number(Cow::Owned((*number).to_owned()));
        }
    }
}

/// Whether a text has more consecutive digits than a 64-bit float can hold.
fn has_long_number(text: &str) -> bool {
    let mut length = 0;
    text.bytes().any(|byte| {
        length = if byte.is_ascii_digit() || byte == b'.' { length + 1 } else { 0 };
        length > SAFE
    })
}

/// A field that occurs twice is refused, because it is unknown which of the two is meant.
fn twice<T>(field: &str, text: &str) -> std::result::Result<T, Fault> {
    Err(Fault::new(format!("field `{field}` twice"), text))
}

const BROKEN: &str = "broken JSON";

/// The wanted fields of an object; the others are skipped without being held.
fn pick(text: &str, fields: &[&str]) -> std::result::Result<Vec<RawCell<'static>>, Fault> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let fault = |e: serde_json::Error| match e.classify() {
        Category::Data => Fault::new("not an object", text),
        _ => Fault::new(BROKEN, tail(text, offset(text, &e))),
    };
    let picked = Pick(fields).deserialize(&mut deserializer).map_err(fault)?;
    deserializer.end().map_err(fault)?;
    match picked.repeated {
        Some(at) => twice(fields[at], text),
        None => Ok(picked.cells),
    }
}

/// The number of bytes before the position of an error.
fn offset(text: &str, error: &serde_json::Error) -> usize {
    let lines = text.split_inclusive('\n').take(error.line().saturating_sub(1));
    lines.map(str::len).sum::<usize>() + error.column().saturating_sub(1)
}

/// The text from shortly before the position of an error.
fn tail(text: &str, at: usize) -> String {
    let at = text.floor_char_boundary(at);
    let from = text.floor_char_boundary(at.saturating_sub(40));
    let cut = if from > 0 { "..." } else { "" };
    format!("{cut}{}", &text[from..])
}

struct Picked {
    cells: Vec<RawCell<'static>>,
    repeated: Option<usize>,
}

struct Pick<'f>(&'f [&'f str]);

impl<'de> DeserializeSeed<'de> for Pick<'_> {
    type Value = Picked;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> std::result::Result<Picked, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Pick<'_> {
    type Value = Picked;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Picked, A::Error> {
        let mut cells = vec![RawCell::Missing; self.0.len()];
        let (mut seen, mut repeated) = (vec![false; self.0.len()], None);
        while let Some(at) = map.next_key_seed(Key(self.0))? {
            let Some(at) = at else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            if std::mem::replace(&mut seen[at], true) {
                repeated = Some(at);
            }
            cells[at] = map.next_value_seed(Field)?;
        }
        Ok(Picked { cells, repeated })
    }
}

/// The position of a key among the wanted ones.
struct Key<'f>(&'f [&'f str]);

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = Option<usize>;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> std::result::Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Key<'_> {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> std::result::Result<Self::Value, E> {
        Ok(self.0.iter().position(|field| *field == key))
    }
}

struct Field;

impl<'de> DeserializeSeed<'de> for Field {
    type Value = RawCell<'static>;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> std::result::Result<Self::Value, D::Error> {
        let value: Value = serde::Deserialize::deserialize(deserializer)?;
        Ok(match value {
            Value::String(text) => RawCell::Text(Cow::Owned(text)),
            other => RawCell::of_json(other),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::FileFormat;
    use super::super::testing::rows_of;

    #[test]
    fn wanted_fields_are_returned_in_order_and_the_rest_is_skipped() {
        let lines =
            b"{\"b\": 2, \"x\": {\"a\": [1, {\"b\": 0}]}, \"a\": \"00\\u0031\\ud83d\\ude00\"}\n{\"a\": null}\r\n";
        assert_eq!(rows_of("x.json", lines, &["a", "b"]).unwrap(), ["1: 001\u{1f600}|2", "2: -|-"]);
        assert_eq!(rows_of("x.json", lines, &["b", "a", "b"]).unwrap(), ["1: 2|001\u{1f600}|2", "2: -|-|-"]);
    }

    #[test]
    fn the_columns_of_lines_that_end_in_commas_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.jsonl");
        std::fs::write(&path, "{\"a\": 1},\n{\"b\": 2},\n").unwrap();
        let format = FileFormat::of_name(&path).unwrap();
        assert_eq!(super::super::columns(&path, &format).unwrap(), ["a", "b"]);
        assert_eq!(rows_of("x.jsonl", b"{\"a\": 1},\n{\"b\": 2},\n", &["a"]).unwrap(), ["1: 1", "2: -"]);
        let long = b"{\"a\": 12345678901234567890000},\n";
        assert_eq!(rows_of("x.jsonl", long, &["a"]).unwrap(), ["1: 12345678901234567890000"]);
    }

    #[test]
    fn each_fault_has_its_reason() {
        let deep = format!("{{\"a\": {}1{}}}", "[".repeat(500), "]".repeat(500));
        let cases: [(&[u8], &str); 10] = [
            (b"{\"a\": \"cut in ha", "broken JSON"),
            (b"{\"a\": 1} trailing", "broken JSON"),
            (b"{'a': 1", "broken JSON"),
            (b"{\"a\": NONE}", "broken JSON"),
            (deep.as_bytes(), "broken JSON"),
            (b"[1, 2]", "not an object"),
            (b"17", "not an object"),
            (b"   ", "blank line"),
            (b"{\"a\": \"\xff\xfe\"}\n\"\xc3\xa9\"", "invalid UTF-8"),
            (b"{\"a\": 1, \"b\": 2, \"a\": 3}", "field `a` twice"),
        ];
        for (line, reason) in cases {
            let rows = rows_of("x.json", line, &["a"]).unwrap();
            assert!(rows[0].starts_with(&format!("1: {reason} (")), "{rows:?}");
        }
    }

    #[test]
    fn the_excerpt_of_an_object_over_several_lines_is_from_the_line_of_the_error() {
        let object = format!("{{\n\"a\": \"{}\",\n\"b\": NONE\n}}\n", "long ".repeat(20));
        let rows = rows_of("x.json", object.as_bytes(), &["a"]).unwrap();
        assert!(rows[0].contains("NONE"), "{rows:?}");
    }

    #[test]
    fn literals_that_are_nearly_json_are_read() {
        let lines = b"{'a': u'it\\'s', 'b': 3}\n{\"a\": \"x\"}\n{'a': \n('a',)\n{'a': 1, 'b': 2, 'a': 1}\n{'a': 1, 'c': 2, 'c': 3}\n\
                      {\"a\": \"n\", \"b\": NaN, \"c\": -Infinity}\n{\"a\": \"\\ud83d\"}\n";
        let rows = rows_of("meta.json", lines, &["a", "b"]).unwrap();
        assert_eq!(rows[..2], ["1: it's|3", "2: x|-"]);
        assert!(rows[2].starts_with("3: broken JSON (") && rows[3].starts_with("4: not an object ("));
        assert!(rows[4].starts_with("5: field `a` twice ("), "{rows:?}");
        assert_eq!(rows_of("x.json", b"{\"a\": 1},\n", &["a"]).unwrap(), ["1: 1"]);
        assert_eq!(rows[5..], ["6: 1|-", "7: n|-", "8: \u{10f03d}|-"], "of what nobody asks for it does not matter");
    }

    #[test]
    fn arrays_and_objects_over_several_lines_are_read() {
        let array = b"[\n  {\n    \"a\": 1\n  },\n  {\"a\": 2, \"b\": NaN}, 3\n]\n";
        assert_eq!(rows_of("x.json", array, &["a"]).unwrap(), ["2: 1", "5: 2", "5: not an object (3)"]);
        assert_eq!(rows_of("x.json", b"{\n\"a\": 1\n}\n{\n\"a\": 2\n}\n", &["a"]).unwrap(), ["1: 1", "4: 2"]);
    }

    #[test]
    fn numbers_keep_the_digits_that_64_bits_do_not_hold() {
        let line = b"{\"a\": 1600000000.000000003, \"b\": 18446744073709551616, \"c\": 5.0}\n";
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.json");
        std::fs::write(&path, line).unwrap();
        let mut shown = Vec::new();
        let bar = mp4sr_pipeline::Progress::new(true).bytes("test", 0);
        super::super::for_each_row(
            &path,
            &FileFormat::of_name(&path).unwrap(),
            &["a", "b", "c"],
            None,
            &bar,
            &mut |(_, row)| {
                shown.extend(row.unwrap().iter().map(super::RawCell::shown));
                Ok(())
            },
        )
        .unwrap();
        assert_eq!(shown, ["1600000000.000000003", "18446744073709551616", "5.0"]);
    }
}
