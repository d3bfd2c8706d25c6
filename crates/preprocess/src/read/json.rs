use std::borrow::Cow;
use std::fmt;

use indexmap::IndexSet;
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;
use serde_json::error::Category;

use super::lines::{self, Lines};
use super::{RawCell, Row, python};
use crate::Result;
use crate::rejects::Fault;

/// Every line as a JSON object, or where `python` as a Python dictionary literal. A field that is wanted twice is given twice.
pub fn for_each(
    lines: &mut Lines<'_>,
    fields: &[&str],
    python: bool,
    visit: &mut dyn FnMut(Row<'_, '_>) -> Result<()>,
) -> Result<()> {
    let distinct: IndexSet<&str> = fields.iter().copied().collect();
    let places: Vec<usize> = fields.iter().filter_map(|field| distinct.get_index_of(field)).collect();
    let distinct: Vec<&str> = distinct.into_iter().collect();
    let mut line = Vec::new();
    while let Some((number, outcome)) = lines.next(&mut line)? {
        let cells = outcome.and_then(|()| lines::text(&line)).and_then(|text| cells(text, &distinct, python));
        match cells {
            Ok(cells) if places.len() > cells.len() => {
                let cells: Vec<RawCell<'_>> = places.iter().map(|&at| cells[at].clone()).collect();
                visit((number, Ok(&cells)))?;
            }
            Ok(cells) => visit((number, Ok(&cells)))?,
            Err(fault) => visit((number, Err(fault)))?,
        }
    }
    Ok(())
}

/// The keys of the objects in the first `count` lines, in the order of their first occurrence.
pub fn columns(lines: &mut Lines<'_>, count: u64) -> Result<Vec<String>> {
    let mut names = IndexSet::new();
    let mut line = Vec::new();
    while let Some((number, _)) = lines.next(&mut line)? {
        if let Ok(object) = serde_json::from_slice::<serde_json::Map<String, Value>>(&line) {
            names.extend(object.into_iter().map(|(name, _)| name));
        }
        if number >= count {
            break;
        }
    }
    Ok(names.into_iter().collect())
}

fn cells(text: &str, fields: &[&str], python: bool) -> std::result::Result<Vec<RawCell<'static>>, Fault> {
    if text.trim_ascii().is_empty() {
        return Err(Fault::new("blank line", ""));
    }
    match pick(text, fields) {
        Err(fault) if python && fault.reason == BROKEN => python_cells(text, fields),
        picked => picked,
    }
}

fn python_cells(text: &str, fields: &[&str]) -> std::result::Result<Vec<RawCell<'static>>, Fault> {
    let Some(literal) = python::parse(text) else { return Err(Fault::new("broken JSON or Python literal", text)) };
    let Value::Object(mut object) = literal.value else { return Err(Fault::new("not an object", text)) };
    match fields.iter().find(|field| literal.repeated.iter().any(|key| key == *field)) {
        Some(field) => twice(field, text),
        None => {
            Ok(fields.iter().map(|field| object.remove(*field).map_or(RawCell::Missing, RawCell::of_json)).collect())
        }
    }
}

/// Which of the two is meant can't be known.
fn twice<T>(field: &str, text: &str) -> std::result::Result<T, Fault> {
    Err(Fault::new(format!("field `{field}` twice"), text))
}

const BROKEN: &str = "broken JSON";

/// The wanted fields of an object; the others are passed over without being held.
fn pick(text: &str, fields: &[&str]) -> std::result::Result<Vec<RawCell<'static>>, Fault> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let fault = |e: serde_json::Error| match e.classify() {
        Category::Data => Fault::new("not an object", text),
        _ => Fault::new(BROKEN, tail(text, e.column())),
    };
    let picked = Pick(fields).deserialize(&mut deserializer).map_err(fault)?;
    deserializer.end().map_err(fault)?;
    match picked.repeated {
        Some(at) => twice(fields[at], text),
        None => Ok(picked.cells),
    }
}

/// The place where it breaks, with what is before it.
fn tail(text: &str, column: usize) -> String {
    let at = text.floor_char_boundary(column.saturating_sub(1));
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
    use super::super::Shape;
    use super::super::testing::{rows, rows_of};

    #[test]
    fn wanted_fields_come_in_order_and_the_rest_is_passed_over() {
        let lines =
            b"{\"b\": 2, \"x\": {\"a\": [1, {\"b\": 0}]}, \"a\": \"00\\u0031\\ud83d\\ude00\"}\n{\"a\": null}\r\n";
        assert_eq!(rows_of("x.json", lines, &["a", "b"]).unwrap(), ["1: 001\u{1f600}|2", "2: -|-"]);
        assert_eq!(rows_of("x.json", lines, &["b", "a", "b"]).unwrap(), ["1: 2|001\u{1f600}|2", "2: -|-|-"]);
    }

    #[test]
    fn each_fault_has_its_reason() {
        let deep = format!("{{\"a\": {}1{}}}", "[".repeat(500), "]".repeat(500));
        let cases: [(&[u8], &str); 10] = [
            (b"{\"a\": \"cut in ha", "broken JSON"),
            (b"{\"a\": 1} trailing", "broken JSON"),
            (b"{'a': 1}", "broken JSON"),
            (b"{\"a\": NaN}", "broken JSON"),
            (deep.as_bytes(), "broken JSON"),
            (b"[1, 2]", "not an object"),
            (b"17", "not an object"),
            (b"   ", "blank line"),
            (b"{\"a\": \"\xff\xfe\"}", "invalid UTF-8"),
            (b"{\"a\": 1, \"b\": 2, \"a\": 3}", "field `a` twice"),
        ];
        for (line, reason) in cases {
            let rows = rows_of("x.json", line, &["a"]).unwrap();
            assert!(rows[0].starts_with(&format!("1: {reason} (")), "{rows:?}");
        }
    }

    #[test]
    fn python_literals_are_read_where_they_may_stand() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("meta.json");
        std::fs::write(
            &path,
            "{'a': u'it\\'s', 'b': 3}\n{\"a\": \"x\"}\n{'a': \n('a',)\n\
                     {'a': 1, 'b': 2, 'a': 1}\n{'a': 1, 'c': 2, 'c': 3}\n",
        )
        .unwrap();
        let rows = rows(&path, Shape::JsonOrPythonLines, &["a", "b"]).unwrap();
        assert_eq!(rows[..2], ["1: it's|3", "2: x|-"]);
        assert!(rows[2].starts_with("3: broken JSON or Python literal (") && rows[3].starts_with("4: not an object ("));
        assert!(rows[4].starts_with("5: field `a` twice ("), "{rows:?}");
        assert_eq!(rows[5], "6: 1|-", "of what nobody asks for it does not matter");
    }
}
