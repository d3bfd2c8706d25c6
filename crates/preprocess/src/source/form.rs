//! The forms of raw data as fields of rows.

use std::path::Path;

use mp4sr_pipeline::config::{Format, Source};

use super::clock::Clock;
use crate::read::Shape;
use crate::{Error, Result};

/// The fields of a form. Where several names stand, the first that a row has counts.
#[derive(Clone, Debug)]
pub struct SourceForm {
    format: Format,
    /// User id, in interactions.
    pub user: String,
    /// Item id, in interactions.
    pub item: Vec<String>,
    /// Time or position, in interactions.
    pub time: String,
    /// The notation of `time`.
    pub clock: Clock,
    /// Item id, in items.
    pub item_id: Vec<String>,
    /// Title, in items; empty: none.
    pub title: String,
    /// Further texts, in items, in order.
    pub texts: Vec<String>,
    /// Images, in items: of the first that names any.
    pub images: Vec<String>,
    /// Categories, in items.
    pub categories: Vec<String>,
    /// What separates the categories in a text; empty: a text is one category.
    pub category_separator: String,
    /// Sound files, in items.
    pub sounds: Vec<String>,
    /// Whether each entry of a list is a text of its own, or they are joined to one.
    pub lists_are_texts: bool,
}

impl SourceForm {
    /// The form that `[source]` describes.
    pub fn new(source: &Source) -> Result<Self> {
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        let amazon = |clock: Clock| Self {
            format: source.format,
            user: "reviewerID".to_owned(),
            item: names(&["asin"]),
            time: "unixReviewTime".to_owned(),
            clock,
            item_id: names(&["asin"]),
            title: "title".to_owned(),
            texts: Vec::new(),
            images: Vec::new(),
            categories: names(&["categories"]),
            category_separator: String::new(),
            sounds: Vec::new(),
            lists_are_texts: true,
        };
        Ok(match source.format {
            Format::Amazon2014 => {
                Self { texts: names(&["brand", "description"]), images: names(&["imUrl"]), ..amazon(Clock::Seconds) }
            }
            Format::Amazon2018 => Self {
                texts: names(&["brand", "description", "feature"]),
                // The other list holds the same images at 40 pixels.
                images: names(&["imageURLHighRes", "imageURL"]),
                categories: names(&["category"]),
                ..amazon(Clock::Seconds)
            },
            Format::Amazon2023 => Self {
                user: "user_id".to_owned(),
                // Variants of a product share the parent, and only the parent has metadata.
                item: names(&["parent_asin", "asin"]),
                time: "timestamp".to_owned(),
                item_id: names(&["parent_asin", "asin"]),
                texts: names(&["store", "description", "features"]),
                images: names(&["images"]),
                ..amazon(Clock::Milliseconds)
            },
            Format::GoodReads => Self {
                user: "user_id".to_owned(),
                item: names(&["book_id"]),
                time: "date_added".to_owned(),
                item_id: names(&["book_id"]),
                texts: names(&["description"]),
                images: names(&["image_url"]),
                // Shelves are tags of readers, and the genres stand in another file.
                categories: Vec::new(),
                ..amazon(Clock::GoodReads)
            },
            Format::RecBole | Format::Tabular => Self::of_columns(source)?,
        })
    }

    fn of_columns(source: &Source) -> Result<Self> {
        let columns = &source.columns;
        let (time, clock) = match (columns.time.as_str(), columns.position.as_str()) {
            (_, position) if !position.is_empty() => (position, Clock::Position),
            ("", _) => {
                return Err(Error::Setting(
                    "`source.columns.time` and `source.columns.position` are both empty; name the column that orders a \
                     user's events"
                        .to_owned(),
                ));
            }
            (time, _) => (time, Clock::Seconds),
        };
        for (key, value) in [("user", &columns.user), ("item", &columns.item), ("item_id", &columns.item_id)] {
            if value.is_empty() {
                return Err(Error::Setting(format!("`source.columns.{key}` is empty; name the column")));
            }
        }
        Ok(Self {
            format: source.format,
            user: columns.user.clone(),
            item: vec![columns.item.clone()],
            time: time.to_owned(),
            clock,
            item_id: vec![columns.item_id.clone()],
            title: columns.title.clone(),
            texts: columns.texts.clone(),
            images: if columns.images.is_empty() { Vec::new() } else { vec![columns.images.clone()] },
            categories: columns.categories.clone(),
            sounds: if columns.sounds.is_empty() { Vec::new() } else { vec![columns.sounds.clone()] },
            category_separator: match (columns.category_separator.as_str(), source.format) {
                ("", Format::RecBole) => " ".to_owned(),
                (separator, _) => separator.to_owned(),
            },
            lists_are_texts: false,
        })
    }

    /// How the rows of a file of this form are written down.
    pub fn shape(&self, path: &Path, items: bool) -> Result<Shape> {
        match self.format {
            Format::Amazon2014 if items => Ok(Shape::JsonOrPythonLines),
            Format::Amazon2014 | Format::Amazon2018 | Format::Amazon2023 | Format::GoodReads => Ok(Shape::JsonLines),
            Format::RecBole => Ok(Shape::RecBole),
            Format::Tabular => Shape::of_name(path).ok_or_else(|| {
                Error::raw(
                    path,
                    "has a name that doesn't tell its form; expected .csv, .tsv, .jsonl, .json, .inter, .item (each also \
                     with .gz), .parquet",
                )
            }),
        }
    }
}
