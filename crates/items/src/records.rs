//! Items that a program gives as records, with the bytes of their images.

use std::collections::HashSet;
use std::path::{Path, absolute};

use anyhow::{bail, ensure};
use mp4sr_artifact::{Items, files};
use mp4sr_pipeline::config::{Columns, Format, Source};
use mp4sr_pipeline::text::quoted;
use mp4sr_pipeline::{Context, Progress};
use mp4sr_preprocess::{marks_missing_value, read_items};
use serde_json::json;

/// An item that a program adds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ItemRecord {
    /// The item's id.
    pub id: String,
    /// The item's title.
    pub title: String,
    /// Further texts.
    pub texts: Vec<String>,
    /// The names of the item's categories.
    pub categories: Vec<String>,
    /// The bytes of the item's image files.
    pub images: Vec<Vec<u8>>,
}

/// The records with the first `most` images that can be decoded, and a note on each image that cannot, and on each item with more. Images
/// after these are not decoded, because decoding takes time.
pub fn with_usable_images(records: &[ItemRecord], most: usize) -> (Vec<ItemRecord>, Vec<String>) {
    let (mut usable, mut notes) = (records.to_vec(), Vec::new());
    for record in &mut usable {
        let (given, id) = (std::mem::take(&mut record.images), quoted(&record.id));
        let count = given.len();
        for (number, bytes) in (1..).zip(given) {
            if record.images.len() == most {
                notes.push(format!(
                    "only the first {most} usable of {count} images of {id} are used (`preprocess.max_images`)"
                ));
                break;
            }
            match mp4sr_image::decode(&bytes, mp4sr_image::MAX_PIXELS) {
                Ok(_) => record.images.push(bytes),
                Err(error) => notes.push(format!("image {number} of {id} cannot be used: {error}")),
            }
        }
    }
    (usable, notes)
}

/// Converts records to items of a dataset; their images are written to `folder`.
pub fn of_records(context: &Context, records: &[ItemRecord], folder: &Path) -> anyhow::Result<Items> {
    let folder = &absolute(folder)?;
    // Each text is a sentence or several; the values of one column would become an enumeration.
    let most = records.iter().map(|record| record.texts.len()).max().unwrap_or(0);
    let text_columns: Vec<String> = (0..most).map(|at| format!("text {at}")).collect();
    let mut lines = String::new();
    for record in records {
        let id = record.id.trim();
        ensure!(!id.is_empty(), "an item has no id; give every item one");
        ensure!(!marks_missing_value(id), "the id {} marks a missing value; give the item another id", quoted(id));
        let mut images = Vec::new();
        for bytes in &record.images {
            let name =
                format!("{}.{}", &blake3::hash(bytes).to_hex()[..32], mp4sr_image::extension(bytes).unwrap_or("jpg"));
            let path = folder.join(&name);
            if !path.exists() {
                files::write_bytes(&path, bytes)?;
            }
            images.push(name);
        }
        let ItemRecord { id, title, texts, categories, .. } = record;
        let mut line = json!({"item_id": id, "title": title, "categories": categories, "images": images});
        for (text, column) in texts.iter().zip(&text_columns) {
            line[column] = text.as_str().into();
        }
        lines.push_str(&format!("{line}\n"));
    }
    let mut config = context.config.clone();
    config.dataset.data = folder.to_string_lossy().into_owned();
    config.source = Source {
        format: Format::Tabular,
        columns: Columns {
            texts: text_columns,
            images: "images".to_owned(),
            categories: vec!["categories".to_owned()],
            ..Columns::default()
        },
        ..Source::default()
    };
    let path = folder.join("records.jsonl");
    files::write_bytes(&path, lines.as_bytes())?;
    // Warnings about a file that the user has not written would only confuse.
    let read = read_items(&config, std::slice::from_ref(&path), &Progress::new(true));
    files::remove_if_present(&path)?;
    let (items, read) = read?;
    if let Some((reason, rejected)) = read.rejected.0.iter().next() {
        let line = rejected.examples.first().and_then(|example| usize::try_from(example.line).ok()?.checked_sub(1));
        let item = line.and_then(|at| records.get(at)).map_or_else(String::new, |record| quoted(&record.id));
        bail!("the item {item} cannot be used: {reason}; correct it");
    }
    if read.repeated > 0 {
        let mut seen = HashSet::new();
        let twice = records.iter().map(|record| record.id.as_str()).find(|id| !seen.insert(id.trim()));
        let item = twice.map_or("an item".to_owned(), |id| format!("the item {}", quoted(id)));
        bail!("{item} is given twice; give each id once");
    }
    Ok(items)
}
