//! The formats of raw data, described by the fields of their rows.

use std::path::Path;

use mp4sr_pipeline::config::{Columns, Format, Source};

use super::clock::{GOODREADS, Notation, TimeSetting};
use crate::read::{Dialect, FileFormat, Shape};
use crate::{Error, Result};

/// The fields of a format. Of several names for an id, the first one that a row has counts.
#[derive(Clone, Debug)]
pub struct SourceFormat {
    format: Format,
    /// The column of interactions that holds the user id.
    pub user: String,
    /// The column of interactions that holds the item id.
    pub item: Vec<String>,
    /// The separator of the items in a cell that contains a sequence; empty if there is none.
    pub item_separator: String,
    /// The column of interactions that holds the time or the position; empty for the order of lines.
    pub time: String,
    /// The notation of `time`.
    pub clock: TimeSetting,
    /// The column of items that holds the item id.
    pub item_id: Vec<String>,
    /// The column of items that holds the title; empty if there is none.
    pub title: String,
    /// The columns of items that hold further texts, in order.
    pub texts: Vec<String>,
    /// The separator of several texts in a cell; empty if there is none.
    pub text_separator: String,
    /// The columns of items that hold images; the first one that names any counts.
    pub images: Vec<String>,
    /// The separator of several images in a cell; empty for the usual ones.
    pub image_separator: String,
    /// The columns of items that hold categories.
    pub categories: Vec<String>,
    /// The separator of the categories in a text; empty if a text is one category.
    pub category_separator: String,
    /// The columns of items that hold sound files.
    pub sounds: Vec<String>,
    /// The columns of items that hold lists of sentences, which are used unchanged.
    pub sentences: Vec<String>,
    /// Whether each entry of a list is a separate text; otherwise the entries are joined.
    pub lists_are_texts: bool,
    /// The fields whose HTML is removed; `None` means all.
    pub html: Option<Vec<String>>,
    dialects: [Dialect; 2],
}

impl SourceFormat {
    /// The format that `[source]` describes.
    pub fn new(source: &Source) -> Result<Self> {
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        let dialects = [Dialect::new(source, false)?, Dialect::new(source, true)?];
        let known = TimeSetting::parse(&source.time)?;
        let clock = |notation: Notation| known.clone().unwrap_or(TimeSetting::Known(notation));
        let amazon = |notation: Notation| Self {
            format: source.format,
            user: "reviewerID".to_owned(),
            item: names(&["asin"]),
            item_separator: String::new(),
            time: "unixReviewTime".to_owned(),
            clock: clock(notation),
            item_id: names(&["asin"]),
            title: "title".to_owned(),
            texts: Vec::new(),
            text_separator: String::new(),
            images: Vec::new(),
            image_separator: String::new(),
            categories: names(&["categories"]),
            category_separator: String::new(),
            sounds: Vec::new(),
            sentences: Vec::new(),
            lists_are_texts: true,
            html: source.html.clone(),
            dialects: dialects.clone(),
        };
        let mut format = match source.format {
            Format::Amazon2014 => {
                Self { texts: names(&["brand", "description"]), images: names(&["imUrl"]), ..amazon(Notation::Unix(0)) }
            }
            Format::Amazon2018 => Self {
                texts: names(&["brand", "description", "feature"]),
                // The other list holds the same images at 40 pixels.
                images: names(&["imageURLHighRes", "imageURL"]),
                categories: names(&["category"]),
                ..amazon(Notation::Unix(0))
            },
            Format::Amazon2023 => Self {
                user: "user_id".to_owned(),
                // Variants of a product share the parent, and only the parent has metadata.
                item: names(&["parent_asin", "asin"]),
                time: "timestamp".to_owned(),
                item_id: names(&["parent_asin", "asin"]),
                texts: names(&["store", "description", "features"]),
                images: names(&["images"]),
                ..amazon(Notation::Unix(3))
            },
            Format::GoodReads => Self {
                user: "user_id".to_owned(),
                item: names(&["book_id"]),
                time: "date_added".to_owned(),
                item_id: names(&["book_id"]),
                texts: names(&["description"]),
                images: names(&["image_url"]),
                // Shelves are tags of readers, and the genres are in another file.
                categories: Vec::new(),
                ..amazon(Notation::Pattern(GOODREADS.into()))
            },
            Format::RecBole | Format::Tabular => Self::of_columns(source, known, dialects)?,
        };
        if format.clock == TimeSetting::Known(Notation::LineOrder) {
            format.time.clear();
        }
        format.check_html()?;
        Ok(format)
    }

    /// Refuses a name in `source.html` that is not one of the fields that are read.
    fn check_html(&self) -> Result<()> {
        let mut known: Vec<&str> = vec![&self.title];
        known.extend(self.texts.iter().chain(&self.categories).map(String::as_str));
        known.retain(|name| !name.is_empty());
        let unknown = self.html.iter().flatten().find(|name| !known.contains(&name.as_str()));
        unknown.map_or(Ok(()), |name| {
            Err(Error::Setting(format!(
                "`source.html` names `{name}`, which is not a column of texts; expected one or more of {}",
                known.join(", ")
            )))
        })
    }

    fn of_columns(source: &Source, known: Option<TimeSetting>, dialects: [Dialect; 2]) -> Result<Self> {
        let columns = &source.columns;
        let (time, clock) = order_of_events(source, known)?;
        expect_columns(columns)?;
        Ok(Self {
            format: source.format,
            user: columns.user.clone(),
            item: vec![columns.item.clone()],
            item_separator: columns.item_separator.clone(),
            time: time.to_owned(),
            clock,
            item_id: vec![columns.item_id.clone()],
            title: columns.title.clone(),
            // The title is a text of its own.
            texts: columns.texts.iter().filter(|name| **name != columns.title).cloned().collect(),
            text_separator: columns.text_separator.clone(),
            image_separator: columns.image_separator.clone(),
            images: if columns.images.is_empty() { Vec::new() } else { vec![columns.images.clone()] },
            categories: columns.categories.clone(),
            sounds: if columns.sounds.is_empty() { Vec::new() } else { vec![columns.sounds.clone()] },
            sentences: if columns.sentences.is_empty() { Vec::new() } else { vec![columns.sentences.clone()] },
            category_separator: match (columns.category_separator.as_str(), source.format) {
                ("", Format::RecBole) => " ".to_owned(),
                (separator, _) => separator.to_owned(),
            },
            lists_are_texts: false,
            html: source.html.clone(),
            dialects,
        })
    }

    /// The file format of a file of this format.
    pub fn file(&self, path: &Path, items: bool) -> Result<FileFormat> {
        let dialect = self.dialects[usize::from(items)].clone();
        let (shape, optional) = match self.format {
            Format::RecBole => (Shape::RecBole, false),
            Format::Tabular => (Shape::of(path, dialect.encoding)?, false),
            // These formats are published as JSON lines, and on the Hugging Face hub as Parquet.
            Format::Amazon2014 | Format::Amazon2018 | Format::Amazon2023 | Format::GoodReads => {
                match Shape::of(path, dialect.encoding)? {
                    shape @ (Shape::Parquet | Shape::Csv) => (shape, true),
                    _ => (Shape::JsonLines, true),
                }
            }
        };
        Ok(FileFormat { shape, dialect, optional, items })
    }

    /// Whether the columns have names that the pipeline gives.
    pub fn has_named_columns(&self) -> bool {
        matches!(self.format, Format::RecBole | Format::Tabular)
    }
}

/// The column that orders a user's events, empty for the order of lines, and how it denotes times. `known` is the notation of times that
/// the pipeline names.
fn order_of_events(source: &Source, known: Option<TimeSetting>) -> Result<(&str, TimeSetting)> {
    let columns = &source.columns;
    let line_order = known == Some(TimeSetting::Known(Notation::LineOrder));
    let names_time = !columns.time.is_empty() && columns.time != Columns::default().time;
    if line_order && (names_time || !columns.position.is_empty()) {
        return Err(Error::Setting(format!(
            "`source.time` = \"line-order\" and `source.columns.{}` contradict each other: only one of them orders a user's events; set \
             the latter to \"\"",
            if names_time { "time" } else { "position" }
        )));
    }
    Ok(match (columns.time.as_str(), columns.position.as_str()) {
        _ if line_order => ("", TimeSetting::Known(Notation::LineOrder)),
        (_, position) if !position.is_empty() => {
            if names_time {
                return Err(Error::Setting(format!(
                    "`source.columns.time` = {:?} and `source.columns.position` = {position:?} contradict each other: only one of them \
                     orders a user's events; set the other one to \"\"",
                    columns.time
                )));
            }
            if known.is_some() {
                return Err(Error::Setting(format!(
                    "`source.time` = {:?} and `source.columns.position` = {position:?} contradict each other: a position has \
                     no notation of time; set `source.columns.position = \"\"` and name the column in `source.columns.time`",
                    source.time
                )));
            }
            (position, TimeSetting::Known(Notation::Position))
        }
        ("", _) => {
            return Err(Error::Setting(
                "`source.columns.time` and `source.columns.position` are both empty; name the column that orders a \
                 user's events, or set `source.time = \"line-order\"` if the lines are in order"
                    .to_owned(),
            ));
        }
        (time, _) => (time, known.unwrap_or(TimeSetting::Recognised)),
    })
}

/// Refuses columns that are not named, or that are named twice.
fn expect_columns(columns: &Columns) -> Result<()> {
    for (key, value) in [("user", &columns.user), ("item", &columns.item), ("item_id", &columns.item_id)] {
        if value.is_empty() {
            return Err(Error::Setting(format!("`source.columns.{key}` is empty; name the column")));
        }
    }
    if columns.user == columns.item {
        return Err(Error::Setting(format!(
            "`source.columns.user` and `source.columns.item` are both {:?}; name two columns",
            columns.user
        )));
    }
    expect_distinct("texts", &columns.texts)?;
    expect_distinct("categories", &columns.categories)
}

/// Refuses a column that a list of columns names twice.
fn expect_distinct(key: &str, names: &[String]) -> Result<()> {
    let twice = names.iter().enumerate().find(|(at, name)| names[..*at].contains(name));
    twice.map_or(Ok(()), |(_, name)| {
        Err(Error::Setting(format!("`source.columns.{key}` names {name:?} twice; name each column once")))
    })
}
