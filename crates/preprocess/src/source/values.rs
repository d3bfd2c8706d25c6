//! Ids, texts and image names in the many ways that forms write them.

use std::borrow::Cow;

use indexmap::IndexSet;
use serde_json::Value;

use crate::read::RawCell;
use crate::rejects::Fault;
use crate::text;

/// The first id that is there, exactly as it stands.
pub fn id<'c>(names: &[String], cells: &'c [RawCell<'_>]) -> Result<Cow<'c, str>, Fault> {
    let Some((name, cell)) = names.iter().zip(cells).find(|(_, cell)| !matches!(cell, RawCell::Missing)) else {
        return Err(Fault::new(format!("no `{}`", names.join("` or `")), ""));
    };
    match cell.text() {
        Some(id) if id.trim().is_empty() => Err(Fault::new(format!("empty `{name}`"), cell.shown())),
        Some(id) => Ok(id),
        None => Err(Fault::new(format!("`{name}` is neither text nor a whole number"), cell.shown())),
    }
}

/// The texts in a field. A list gives a text an entry, or all its entries joined to one.
pub fn texts(cell: &RawCell<'_>, lists_are_texts: bool) -> Vec<String> {
    let mut found = Vec::new();
    match cell {
        RawCell::Missing => {}
        RawCell::Text(text) => found.push(text.clone().into_owned()),
        RawCell::Json(value) => gather_texts(value, &mut found),
    }
    if lists_are_texts || found.len() < 2 { found } else { vec![join(&found)] }
}

fn gather_texts(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::String(text) => found.push(text.clone()),
        Value::Number(number) => found.push(number.to_string()),
        Value::Array(values) => values.iter().for_each(|value| gather_texts(value, found)),
        _ => {}
    }
}

/// The names of categories in a field, each once, in their order there. Nested lists, as Amazon's paths of departments, are one
/// list of names; a text is split at `separator`.
pub fn categories(cell: &RawCell<'_>, separator: &str) -> Vec<String> {
    let mut names = IndexSet::new();
    for found in texts(cell, true) {
        match separator {
            "" => _ = names.insert(text::line(&found)),
            separator => names.extend(found.split(separator).map(text::line)),
        }
    }
    names.into_iter().filter(|name| !name.is_empty()).collect()
}

/// Genres and the like become one enumeration; entries that are sentences stay sentences.
fn join(texts: &[String]) -> String {
    let mut joined = String::new();
    for text in texts.iter().map(|text| text.trim()).filter(|text| !text.is_empty()) {
        if !joined.is_empty() {
            joined.push_str(if joined.ends_with(['.', '!', '?', ';', ',']) { " " } else { ", " });
        }
        joined.push_str(text);
    }
    joined
}

/// The image names in a field: a name, a list of names, a list of objects with several sizes, an object of lists.
pub fn images(cell: &RawCell<'_>) -> Vec<String> {
    let mut found = Vec::new();
    match cell {
        RawCell::Missing => {}
        RawCell::Text(text) => found.push(text.clone().into_owned()),
        RawCell::Json(value) => gather_images(value, &mut found),
    }
    found.retain(|name| !name.trim().is_empty() && !is_placeholder(name));
    let mut seen = std::collections::HashSet::new();
    found.retain(|name| seen.insert(name.clone()));
    found
}

fn gather_images(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::String(name) => found.push(name.clone()),
        Value::Array(values) => values.iter().for_each(|value| gather_images(value, found)),
        Value::Object(sizes) => {
            // `large` is some 500 pixels, enough for every image encoder, and always there; `hi_res` often is not.
            let filled = |value: &&Value| match value {
                Value::String(name) => !name.is_empty(),
                Value::Array(names) => names.iter().any(|name| name.as_str().is_some_and(|name| !name.is_empty())),
                _ => false,
            };
            let size = ["large", "hi_res", "thumb"].iter().find_map(|size| sizes.get(*size).filter(filled));
            if let Some(value) = size {
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
    fn the_first_id_that_is_there_counts_and_an_empty_one_is_refused() {
        let names = ["parent_asin".to_owned(), "asin".to_owned()];
        let read = |a, b| id(&names, &[cell(a), cell(b)]).map(Cow::into_owned).map_err(|f| f.reason.into_owned());
        assert_eq!(read(json!("P"), json!("A")).unwrap(), "P");
        assert_eq!(read(json!(null), json!("A\t\"\u{1f600}")).unwrap(), "A\t\"\u{1f600}");
        assert_eq!(read(json!(null), json!(null)).unwrap_err(), "no `parent_asin` or `asin`");
        assert_eq!(read(json!(" "), json!("A")).unwrap_err(), "empty `parent_asin`");
        assert_eq!(read(json!({}), json!("A")).unwrap_err(), "`parent_asin` is neither text nor a whole number");
    }

    #[test]
    fn lists_are_texts_or_one_enumeration() {
        let list = cell(json!(["One. Two.", "", ["Three"], null, 4]));
        assert_eq!(texts(&list, true), ["One. Two.", "", "Three", "4"]);
        assert_eq!(texts(&list, false), ["One. Two. Three, 4"]);
        assert_eq!(texts(&cell(json!(["Comedy", "Drama"])), false), ["Comedy, Drama"]);
        assert_eq!(texts(&cell(json!("a text")), false), ["a text"]);
        assert_eq!(texts(&cell(json!({"a": 1})), true), Vec::<String>::new());
    }

    #[test]
    fn categories_come_as_lists_nested_lists_and_separated_texts() {
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
}
