//! The formats of files: their shape and their dialect.

use std::path::Path;

use super::Dialect;

/// The file format of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// One JSON object per line, or an array of objects; Python dictionaries likewise.
    JsonLines,
    /// Separated by commas.
    Csv,
    /// Separated by tabs.
    Tsv,
    /// Separated by tabs, with types in the header (`user_id:token`).
    RecBole,
    /// Parquet.
    Parquet,
}

impl Shape {
    /// The shape that the file's extension implies.
    pub(super) fn of_name(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_string_lossy().to_lowercase();
        let name = name.strip_suffix(".gz").unwrap_or(&name);
        let ends = |ends: &[&str]| ends.iter().any(|end| name.ends_with(end));
        if ends(&[".csv"]) {
            Some(Self::Csv)
        } else if ends(&[".tsv", ".tab"]) {
            Some(Self::Tsv)
        } else if ends(&[".inter", ".item"]) {
            Some(Self::RecBole)
        } else if ends(&[".json", ".jsonl", ".ndjson"]) {
            Some(Self::JsonLines)
        } else if ends(&[".parquet", ".pq"]) {
            Some(Self::Parquet)
        } else {
            None
        }
    }

    /// The separator of columns if nothing else is known.
    pub fn separator(self) -> &'static str {
        if self == Self::Csv { "," } else { "\t" }
    }
}

/// How a file is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileFormat {
    pub shape: Shape,
    /// The dialect of delimited text.
    pub dialect: Dialect,
    /// Whether columns may be missing: a published format has fields that not every file has.
    pub optional: bool,
    /// Whether it is a file of items.
    pub items: bool,
}

impl FileFormat {
    /// A file of interactions, with nothing known of its dialect.
    pub fn of(shape: Shape) -> Self {
        Self { shape, dialect: Dialect::default(), optional: false, items: false }
    }

    pub(super) fn is_json(&self) -> bool {
        self.shape == Shape::JsonLines
    }

    /// Whether it is a table of text.
    pub fn is_table(&self) -> bool {
        matches!(self.shape, Shape::Csv | Shape::Tsv | Shape::RecBole)
    }
}
