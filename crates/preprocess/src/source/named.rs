//! Further columns of interactions, those that `preprocess.where` names.

use std::path::{Path, PathBuf};

use polars::prelude::*;

use crate::Result;
use crate::read::RawCell;
use crate::rejects::excerpt;

/// A column while its cells arrive as text: its type is known when all of them have been seen.
#[derive(Debug)]
struct TextColumn {
    name: PlSmallStr,
    cells: StringChunkedBuilder,
    integers: bool,
    numbers: bool,
    truths: bool,
    /// The first cell that is not a number.
    first_text: Option<TextPlace>,
}

/// A cell that made a column one of text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextPlace {
    /// The path of the file.
    pub path: PathBuf,
    /// The number of the line.
    pub line: u64,
    /// The cell, cut short.
    pub found: String,
}

impl TextColumn {
    fn new(name: &str) -> Self {
        let cells = StringChunkedBuilder::new(name.into(), 0);
        Self { name: name.into(), cells, integers: true, numbers: true, truths: true, first_text: None }
    }

    fn push(&mut self, cell: &RawCell<'_>, path: &Path, line: u64) {
        let text = match cell {
            RawCell::Missing => None,
            RawCell::Text(text) => Some(text.trim()).filter(|text| !text.is_empty()).map(str::to_owned),
            RawCell::Json(value) => Some(value.to_string()),
        };
        let Some(text) = text else { return self.cells.append_null() };
        self.integers = self.integers && is_integer(&text);
        let is_number = is_number(&text);
        self.numbers = self.numbers && is_number;
        self.truths = self.truths && truth(&text).is_some();
        if !is_number && self.first_text.is_none() {
            self.first_text = Some(TextPlace { path: path.to_owned(), line, found: excerpt(&text) });
        }
        self.cells.append_value(&text);
    }

    fn finish(self) -> Result<Column> {
        let text = self.cells.finish();
        Ok(if text.null_count() == text.len() {
            // Of any type, and of none.
            Column::full_null(self.name, text.len(), &DataType::Null)
        } else if self.integers {
            text.into_column().strict_cast(&DataType::Int64)?
        } else if self.numbers {
            text.into_column().strict_cast(&DataType::Float64)?
        } else if self.truths {
            let truths = text.iter().map(|text| text.and_then(truth));
            BooleanChunked::from_iter_options(self.name, truths).into_column()
        } else {
            text.into_column()
        })
    }
}

/// A whole number as a table writes it; with zeros before it, it is an id or a code, which would lose them.
fn is_integer(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    (digits == "0" || !digits.starts_with('0')) && text.parse::<i64>().is_ok() && !text.starts_with('+')
}

fn is_number(text: &str) -> bool {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    let padded = digits.len() > 1 && digits.starts_with('0') && digits.as_bytes()[1].is_ascii_digit();
    // The names of what is no number, such as `nan` and `inf`, parse as well.
    !padded && digits.starts_with(|c: char| c.is_ascii_digit() || c == '.') && text.parse::<f64>().is_ok()
}

fn truth(text: &str) -> Option<bool> {
    match text {
        "true" | "True" | "TRUE" => Some(true),
        "false" | "False" | "FALSE" => Some(false),
        _ => None,
    }
}

/// The columns that a condition names, in the order of the events.
#[derive(Debug)]
pub struct NamedColumns {
    texts: Vec<TextColumn>,
    /// Cells of Parquet files, which have types of their own; none where a file of text is among the files, because a column has
    /// one type over all of them.
    typed: Option<Vec<DataFrame>>,
}

/// The columns when all events have been read.
#[derive(Debug, Default)]
pub struct NamedFrame {
    /// A column for each name, with the names of the files.
    pub frame: DataFrame,
    /// Where a column has its first cell that is not a number.
    pub texts: Vec<(String, TextPlace)>,
}

impl NamedColumns {
    /// Columns of these names, without cells; `typed` where all files have types.
    pub fn new(names: &[String], typed: bool) -> Self {
        let texts = names.iter().map(|name| TextColumn::new(name)).collect();
        Self { texts, typed: typed.then(Vec::new) }
    }

    /// Adds the cells of an event, one for each name.
    pub fn push(&mut self, cells: &[RawCell<'_>], places: &[usize], path: &Path, line: u64) {
        for (column, &place) in self.texts.iter_mut().zip(places) {
            column.push(&cells[place], path, line);
        }
    }

    /// Adds the cells of many events of a Parquet file, whose first one is in row `first`.
    pub fn extend(&mut self, cells: DataFrame, path: &Path, first: u64) -> Result<()> {
        if let Some(typed) = &mut self.typed {
            typed.push(cells);
            return Ok(());
        }
        for column in &mut self.texts {
            let text = cells.column(&column.name)?.cast(&DataType::String)?;
            for (at, cell) in text.str()?.iter().enumerate() {
                let cell = cell.map_or(RawCell::Missing, |text| RawCell::Text(text.into()));
                column.push(&cell, path, first + at as u64);
            }
        }
        Ok(())
    }

    /// Gives every column its type.
    pub fn finish(self) -> Result<NamedFrame> {
        if let Some(typed) = self.typed.filter(|_| !self.texts.is_empty()) {
            let parts: Vec<LazyFrame> = typed.into_iter().map(DataFrame::lazy).collect();
            let supertypes = UnionArgs { to_supertypes: true, ..UnionArgs::default() };
            return Ok(NamedFrame { frame: concat(parts, supertypes)?.collect()?, texts: Vec::new() });
        }
        let texts = self.texts.iter().filter_map(|c| Some((c.name.to_string(), c.first_text.clone()?))).collect();
        let columns = self.texts.into_iter().map(TextColumn::finish).collect::<Result<Vec<_>>>()?;
        Ok(NamedFrame { frame: DataFrame::new_infer_height(columns)?, texts })
    }
}
