//! Reads ids, texts and image names in the various notations of raw data.

use std::borrow::Cow;
use std::path::Path;

use indexmap::IndexSet;
use mp4sr_artifact::Downloads;
use serde_json::{Map, Value};

use crate::images::{DATA, is_image_name};
use crate::junk::is_missing;
use crate::read::{RawCell, literal_of, replace_halves};
use crate::rejects::Fault;

fn holds_objects(cell: &RawCell<'_>) -> bool {
    match cell {
        RawCell::Json(Value::Array(values)) => values.iter().any(Value::is_object),
        RawCell::Json(value) => value.is_object(),
        _ => false,
    }
}

/// The first id that is present and not a marker of a missing value, without blanks around it. Half a surrogate pair, as at the end of a name
/// that was cut off, is written as its escape sequence.
pub fn id<'c>(names: &[String], cells: &'c [RawCell<'_>]) -> Result<Cow<'c, str>, Fault> {
    written_id(names, cells).map(|id| replace_halves(id, |code| format!("\\u{code:04x}")))
}

fn written_id<'c>(names: &[String], cells: &'c [RawCell<'_>]) -> Result<Cow<'c, str>, Fault> {
    let mut marker = None;
    for (name, cell) in names.iter().zip(cells).filter(|(_, cell)| !matches!(cell, RawCell::Missing)) {
        match cell.text() {
            Some(id) if is_missing(id.trim()) => marker = marker.or(Some((name, cell))),
            Some(id) if id.trim().is_empty() => return Err(Fault::new(format!("empty `{name}`"), cell.shown())),
            Some(id) if id.trim().len() == id.len() => return Ok(id),
            Some(Cow::Borrowed(id)) => return Ok(Cow::Borrowed(id.trim())),
            Some(Cow::Owned(id)) => return Ok(Cow::Owned(id.trim().to_owned())),
            None => {
                let what = if holds_objects(cell) {
                    "holds objects, and not ids"
                } else {
                    "is neither text nor a whole number"
                };
                return Err(Fault::new(format!("`{name}` {what}"), cell.shown()));
            }
        }
    }
    Err(match marker {
        Some((name, cell)) => Fault::new(format!("`{name}` is a marker of a missing value"), cell.shown()),
        None => Fault::new(format!("no `{}`", names.join("` or `")), ""),
    })
}

/// The texts in a field. Each entry of a list is a separate text, and a text is split at `separator` unless that is empty.
pub fn entries(cell: &RawCell<'_>, separator: &str) -> Vec<String> {
    let mut found = Vec::new();
    match cell {
        RawCell::Missing => {}
        RawCell::Json(value) => gather_texts(value, &mut found),
        RawCell::Text(text) | RawCell::Number(text) => match literal_of(text) {
            Some(value) => gather_texts(&value, &mut found),
            None if separator.is_empty() => found.push(text.clone().into_owned()),
            None => found.extend(text.split(separator).map(|part| part.trim().to_owned())),
        },
    }
    let whole = |text: String| replace_halves(Cow::Owned(text), |_| char::REPLACEMENT_CHARACTER.into()).into_owned();
    found.into_iter().map(whole).collect()
}

/// The keys under which an object may have a name, beside numbers and URLs, as in the genres of TMDB and Steam.
const NAMES: [&str; 6] = ["name", "title", "label", "description", "value", "text"];

fn gather_texts(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Null => {}
        Value::String(text) if text.starts_with(DATA) => {}
        Value::String(text) => found.push(text.clone()),
        Value::Number(number) => found.push(number.to_string()),
        Value::Bool(truth) => found.push(truth.to_string()),
        Value::Array(values) => values.iter().for_each(|value| gather_texts(value, found)),
        Value::Object(fields) => match name_of(fields) {
            Some(name) => found.push(name.to_owned()),
            None => {
                for (key, value) in fields {
                    let mut inner = Vec::new();
                    gather_texts(value, &mut inner);
                    inner.retain(|text| !text.trim().is_empty());
                    if !inner.is_empty() {
                        found.push(format!("{key}: {}", inner.join(", ")));
                    }
                }
            }
        },
    }
}

/// The name in an object, if the object also has an identifier or has nothing else.
fn name_of(fields: &Map<String, Value>) -> Option<&str> {
    let is_id = |key: &String| key == "id" || key.ends_with("_id") || key.starts_with("iso_");
    let identified = fields.keys().any(is_id);
    let named = NAMES.iter().find_map(|name| fields.get(*name)?.as_str());
    named.filter(|_| identified || fields.len() == 1)
}

/// The names of categories in a field, each once, in their order there. Nested lists, such as Amazon's paths of departments, become one
/// list of names; a text is split at `separator`.
pub fn categories(cell: &RawCell<'_>, separator: &str, clean: &impl Fn(&str) -> String) -> Vec<String> {
    let mut names = IndexSet::new();
    for found in entries(cell, "") {
        match separator {
            "" => _ = names.insert(clean(&found)),
            separator => names.extend(found.split(separator).map(clean)),
        }
    }
    names.into_iter().filter(|name| !name.is_empty()).collect()
}

/// Joins texts. Genres and the like become one enumeration; entries that are sentences stay sentences.
pub fn join(texts: &[String]) -> String {
    let mut joined = String::new();
    for text in texts.iter().map(|text| text.trim()).filter(|text| !text.is_empty()) {
        if !joined.is_empty() {
            joined.push_str(if joined.ends_with(['.', '!', '?', ';', ',']) { " " } else { ", " });
        }
        joined.push_str(text);
    }
    joined
}

/// The image names in a field: a name, several names, a list of names, a list of objects with several sizes, an object of lists.
pub fn images(cell: &RawCell<'_>, separator: &str) -> Vec<String> {
    let mut found = Vec::new();
    match cell {
        RawCell::Missing => {}
        RawCell::Json(value) => gather_images(value, &mut found),
        RawCell::Text(text) | RawCell::Number(text) => match literal_of(text) {
            Some(value) => gather_images(&value, &mut found),
            None => found.extend(split_images(text, separator).into_iter().map(str::to_owned)),
        },
    }
    let mut found: Vec<String> = found.iter().map(|name| as_url(name)).collect();
    found.retain(|name| !name.trim().is_empty() && !is_placeholder(name));
    let mut seen = std::collections::HashSet::new();
    found.retain(|name| seen.insert(name.clone()));
    found
}

/// Characters between several names in a cell.
const BETWEEN: [char; 3] = ['|', ',', ';'];

/// Splits a cell into several names: at `separator`, before each further URL, or between names that all end as image files do.
fn split_images<'t>(text: &'t str, separator: &str) -> Vec<&'t str> {
    if !separator.is_empty() {
        return text.split(separator).map(str::trim).collect();
    }
    let parts = |c: char| BETWEEN.contains(&c) || c.is_whitespace();
    let begins = |at: usize| {
        let rest = &text[at..];
        let scheme = |scheme: &str| rest.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme));
        (scheme("http://") || scheme("https://") || rest.starts_with("//"))
            && text[..at].chars().next_back().is_none_or(parts)
    };
    let starts: Vec<usize> = text.char_indices().map(|(at, _)| at).filter(|&at| begins(at)).collect();
    if starts.len() > 1 {
        let ends = starts[1..].iter().copied().chain([text.len()]);
        return starts.iter().zip(ends).map(|(&start, end)| text[start..end].trim_end_matches(parts)).collect();
    }
    let names: Vec<&str> = text.split(BETWEEN).map(str::trim).filter(|name| !name.is_empty()).collect();
    let is_file = |name: &&str| is_image_name(Path::new(name)) && !name.contains("://");
    if names.len() > 1 && names.iter().all(is_file) { names } else { vec![text] }
}

/// A URL as a browser would request it. Web pages also write `//host`, `&amp;` and, in scripts, `\/`.
fn as_url(name: &str) -> String {
    let name = name.trim();
    let start = name.get(..5).unwrap_or_default().to_ascii_lowercase();
    let is_url = name.starts_with("//") || start == "http:" || start == "https" && name.get(5..6) == Some(":");
    if !is_url {
        return name.to_owned();
    }
    let mut url = name.replace("\\/", "/").replace('\\', "/").replace("&amp;", "&").replace(' ', "%20");
    if url.starts_with("//") {
        url.insert_str(0, "https:");
    }
    url
}

fn gather_images(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::String(name) => found.push(name.clone()),
        Value::Array(values) => values.iter().for_each(|value| gather_images(value, found)),
        Value::Object(sizes) => {
            // `large` has about 500 pixels, enough for every image encoder, and is always there; `hi_res` often is not.
            let filled = |value: &&Value| match value {
                Value::String(name) => !name.is_empty(),
                Value::Array(names) => names.iter().any(|name| name.as_str().is_some_and(|name| !name.is_empty())),
                _ => false,
            };
            const KEYS: [&str; 11] =
                ["bytes", "large", "hi_res", "thumb", "url", "src", "href", "link", "path", "file_name", "filename"];
            // The values of these may be captions, so a URL under any other key comes first.
            const LAST_KEYS: [&str; 3] = ["file", "image", "name"];
            let filled_key = |keys: &[&str]| keys.iter().find_map(|key| sizes.get(*key).filter(filled));
            let url = |value: &&Value| value.as_str().is_some_and(Downloads::is_url);
            let found_value = filled_key(&KEYS).or_else(|| sizes.values().find(url)).or_else(|| filled_key(&LAST_KEYS));
            if let Some(value) = found_value {
                gather_images(value, found);
            }
        }
        _ => {}
    }
}

/// `GoodReads` gives books without a cover the same drawing.
fn is_placeholder(name: &str) -> bool {
    name.contains("/nophoto/")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn cell(value: Value) -> RawCell<'static> {
        RawCell::of_json(value)
    }

    #[test]
    fn captions_in_objects_of_images_come_after_urls() {
        let names = |value: Value| images(&cell(value), "");
        assert_eq!(names(json!([{"name": "Front view", "uri": "https://e.org/a.jpg"}])), ["https://e.org/a.jpg"]);
        assert_eq!(names(json!([{"file": "a.jpg", "name": "Front"}, {"image": "b.jpg"}])), ["a.jpg", "b.jpg"]);
    }

    #[test]
    fn halves_of_surrogate_pairs_stay_different_in_ids_and_are_replaced_in_texts() {
        let object =
            literal_of(r#"{"a": "bob\ud83d", "b": "bob\ud83e", "c": "bob\udfff \ud83d\ude00", "d": "bob"}"#).unwrap();
        let of = |name: &str| cell(object[name].clone());
        let read = |name: &str| id(&[name.to_owned()], &[of(name)]).unwrap().into_owned();
        assert_eq!(["a", "b", "c", "d"].map(read), [r"bob\ud83d", r"bob\ud83e", "bob\\udfff \u{1f600}", "bob"]);
        assert_eq!(entries(&of("a"), ""), ["bob\u{fffd}"]);
        assert_eq!(entries(&of("c"), ""), ["bob\u{fffd} \u{1f600}"]);
    }

    #[test]
    fn the_first_id_that_is_present_is_used_and_an_empty_one_is_refused() {
        let names = ["parent_asin".to_owned(), "asin".to_owned()];
        let read = |a, b| id(&names, &[cell(a), cell(b)]).map(Cow::into_owned).map_err(|f| f.reason.into_owned());
        assert_eq!(read(json!("P"), json!("A")).unwrap(), "P");
        assert_eq!(read(json!(null), json!("A\t\"\u{1f600}")).unwrap(), "A\t\"\u{1f600}");
        assert_eq!(read(json!(" P\u{a0}"), json!("A")).unwrap(), "P", "blanks are not part of an id");
        assert_eq!(read(json!(null), json!(null)).unwrap_err(), "no `parent_asin` or `asin`");
        assert_eq!(read(json!(" "), json!("A")).unwrap_err(), "empty `parent_asin`");
        for mark in ["NULL", "null", r"\N", "None", "nan", "<NA>", " N/A "] {
            assert_eq!(read(json!(mark), json!("A")).unwrap(), "A");
            assert_eq!(read(json!(mark), json!(null)).unwrap_err(), "`parent_asin` is a marker of a missing value");
        }
        assert_eq!(read(json!("None of these"), json!("A")).unwrap(), "None of these");
        assert_eq!(read(json!(1.5), json!("A")).unwrap_err(), "`parent_asin` is neither text nor a whole number");
        assert_eq!(read(json!([{ "id": 1 }]), json!("A")).unwrap_err(), "`parent_asin` holds objects, and not ids");
    }

    #[test]
    fn lists_are_texts_or_one_enumeration() {
        let list = cell(json!(["One. Two.", "", ["Three"], null, 4]));
        assert_eq!(entries(&list, ""), ["One. Two.", "", "Three", "4"]);
        assert_eq!(join(&entries(&list, "")), "One. Two. Three, 4");
        assert_eq!(join(&entries(&cell(json!(["Comedy", "Drama"])), "")), "Comedy, Drama");
        assert_eq!(entries(&cell(json!("a text")), ""), ["a text"]);
        assert_eq!(entries(&cell(json!("Action|Crime")), "|"), ["Action", "Crime"]);
        assert_eq!(entries(&cell(json!("Action|Crime")), ""), ["Action|Crime"]);
    }

    #[test]
    fn lists_and_objects_give_their_texts_however_they_are_written() {
        for (value, expected) in [
            (json!([{"id": 28, "name": "Action"}, {"id": 80, "name": "Crime"}]), &["Action", "Crime"][..]),
            (json!([{"id": "1", "description": "Action"}]), &["Action"]),
            (json!([{"iso_639_1": "en", "name": "English"}, {"name": "Deutsch"}]), &["English", "Deutsch"]),
            (
                json!({"Color": "Blue", "Material": "Oak", "Size": null, "Tags": ["a", "b"]}),
                &["Color: Blue", "Material: Oak", "Tags: a, b"],
            ),
            (json!({"name": "x", "Color": "Blue"}), &["name: x", "Color: Blue"]),
            (json!("['Action', 'Crime']"), &["Action", "Crime"]),
            (json!("[\"Horror\", \"Sci-Fi\"]"), &["Horror", "Sci-Fi"]),
            (json!("['Calms the skin.' 'Made in small batches.']"), &["Calms the skin.", "Made in small batches."]),
            (json!("{'Color': 'Blue'}"), &["Color: Blue"]),
            (json!("[{'id': 28, 'name': 'Action'}]"), &["Action"]),
            (json!("[]"), &[]),
            (json!("[REC]"), &["[REC]"]),
            (json!("(500)"), &["(500)"]),
        ] {
            let mut found = entries(&cell(value.clone()), "");
            let mut expected: Vec<String> = expected.iter().map(|&text| text.to_owned()).collect();
            // Objects of serde_json are ordered by key unless a dependency asks otherwise.
            found.sort();
            expected.sort();
            assert_eq!(found, expected, "{value}");
        }
    }

    #[test]
    fn categories_come_as_lists_nested_lists_and_separated_texts() {
        let categories = |cell: &RawCell<'_>, separator: &str| {
            super::categories(cell, separator, &|name: &str| crate::text::Markup::Html.line(name))
        };
        assert_eq!(categories(&cell(json!(["Comedy", " Drama ", "", "Comedy"])), ""), ["Comedy", "Drama"]);
        let paths = json!([["Home", "Kitchen"], ["Home", "Arts &amp; Crafts"]]);
        assert_eq!(categories(&cell(paths), ""), ["Home", "Kitchen", "Arts & Crafts"]);
        assert_eq!(categories(&cell(json!("Action|Sci-Fi||Action")), "|"), ["Action", "Sci-Fi"]);
        assert_eq!(categories(&cell(json!("Animation Comedy")), " "), ["Animation", "Comedy"]);
        assert_eq!(categories(&cell(json!("Home & Garden")), ""), ["Home & Garden"]);
        assert!(categories(&cell(json!(null)), "|").is_empty());
    }

    #[test]
    fn images_come_in_every_notation() {
        let images = |cell: &RawCell<'_>| super::images(cell, "");
        assert_eq!(images(&cell(json!("images/1.jpg"))), ["images/1.jpg"]);
        assert_eq!(images(&cell(json!(["u", "v", "", "u"]))), ["u", "v"]);
        let of_2023 =
            json!([{"thumb": "t", "large": "l", "hi_res": null}, {"large": "", "hi_res": "h"}, {"variant": "MAIN"}]);
        assert_eq!(images(&cell(of_2023)), ["l", "h"]);
        assert_eq!(images(&cell(json!({"hi_res": [null, "h"], "large": ["l", "m"]}))), ["l", "m"]);
        assert_eq!(
            images(&cell(json!("https://s.gr-assets.com/assets/nophoto/book/111x148-x.png"))),
            Vec::<String>::new()
        );
        assert_eq!(images(&cell(json!(null))), Vec::<String>::new());
    }

    #[test]
    fn several_images_in_a_cell_are_several() {
        for (text, separator, expected) in [
            ("https://e.org/1.jpg|https://e.org/1b.jpg", "", &["https://e.org/1.jpg", "https://e.org/1b.jpg"][..]),
            ("https://e.org/3.jpg, HTTP://e.org/3b.jpg", "", &["https://e.org/3.jpg", "HTTP://e.org/3b.jpg"]),
            ("https://e.org/a,b.jpg;https://e.org/c.jpg;", "", &["https://e.org/a,b.jpg", "https://e.org/c.jpg"]),
            ("//e.org/1.jpg //e.org/2.jpg", "", &["https://e.org/1.jpg", "https://e.org/2.jpg"]),
            ("https://e.org/?u=https://f.org/1.jpg", "", &["https://e.org/?u=https://f.org/1.jpg"]),
            ("https://e.org/1.jpg?w=1&amp;h=2", "", &["https://e.org/1.jpg?w=1&h=2"]),
            (r"https:\/\/e.org\/a b.jpg", "", &["https://e.org/a%20b.jpg"]),
            (r"http:\\e.org\1.jpg", "", &["http://e.org/1.jpg"]),
            ("a.jpg|b.png", "", &["a.jpg", "b.png"]),
            ("a,b.jpg", "", &["a,b.jpg"]),
            ("a.jpg#b.jpg", "#", &["a.jpg", "b.jpg"]),
            ("['https://e.org/1.jpg', 'https://e.org/2.jpg']", "", &["https://e.org/1.jpg", "https://e.org/2.jpg"]),
            (
                "{'hi_res': array([None, 'https://e.org/h.jpg'], dtype=object), 'large': array(['https://e.org/l.jpg'], dtype=object)}",
                "",
                &["https://e.org/l.jpg"],
            ),
        ] {
            assert_eq!(images(&cell(json!(text)), separator), expected, "{text}");
        }
        assert_eq!(
            images(&cell(json!([{"url": "//e.org/1.jpg"}, {"photo": "https://e.org/2.jpg", "id": 3}])), ""),
            ["https://e.org/1.jpg", "https://e.org/2.jpg"]
        );
    }
}
