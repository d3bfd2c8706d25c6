//! The further columns of interactions that `preprocess.where` names.

use std::path::{Path, PathBuf};

use polars::prelude::*;

use crate::read::RawCell;
use crate::rejects::excerpt;
use crate::types::{comparable, kind as described};
use crate::{Error, Result};

/// A column whose cells arrive as text. Its type is known when all of them have been read.
struct TextColumn {
    name: PlSmallStr,
    cells: StringChunkedBuilder,
    integers: bool,
    numbers: bool,
    truths: bool,
    has_cells: bool,
    /// The first cell that is not a number.
    first_text: Option<TextLocation>,
    /// Whether numbers have a decimal comma.
    decimal_comma: bool,
}

/// The cell because of which a column is text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextLocation {
    /// The path of the file.
    pub path: PathBuf,
    /// The number of the line.
    pub line: u64,
    /// The content of the cell, shortened.
    pub found: String,
}

impl TextColumn {
    fn new(name: &str) -> Self {
        let cells = StringChunkedBuilder::new(name.into(), 0);
        let name = name.into();
        Self {
            name,
            cells,
            integers: true,
            numbers: true,
            truths: true,
            has_cells: false,
            first_text: None,
            decimal_comma: false,
        }
    }

    fn push(&mut self, cell: &RawCell<'_>, path: &Path, line: u64) {
        let text = match cell {
            RawCell::Missing => None,
            RawCell::Text(text) => {
                Some(text.trim()).filter(|text| !text.is_empty()).map(|text| with_point(text, self.decimal_comma))
            }
            RawCell::Number(text) => Some(text.clone().into_owned()),
            RawCell::Json(value) => Some(value.to_string()),
        };
        let Some(text) = text else { return self.cells.append_null() };
        self.has_cells = true;
        self.integers = self.integers && is_integer(&text);
        let is_number = is_number(&text);
        self.numbers = self.numbers && is_number;
        self.truths = self.truths && is_truth(&text);
        if !is_number && self.first_text.is_none() {
            self.first_text = Some(TextLocation { path: path.to_owned(), line, found: excerpt(&text) });
        }
        self.cells.append_value(&text);
    }

    /// The cells since the last call.
    fn take(&mut self) -> Column {
        let rest = StringChunkedBuilder::new(self.name.clone(), 0);
        std::mem::replace(&mut self.cells, rest).finish().into_column()
    }

    /// Converts the column of text to the type that all of its cells have.
    fn typed(&self) -> Expr {
        let text = || col(self.name.clone());
        if !self.has_cells {
            // The column has the null type, so it can be compared with anything. One null alone would be too short.
            when(text().is_null()).then(lit(Null {})).otherwise(lit(Null {})).alias(self.name.clone())
        } else if self.integers {
            text().strict_cast(DataType::Int64)
        } else if self.numbers {
            text().strict_cast(DataType::Float64)
        } else if self.truths {
            text().str().to_lowercase().eq(lit("true"))
        } else {
            text()
        }
    }
}

/// Replaces the decimal comma of a number by a point, if numbers may have one. Other text is unchanged.
fn with_point(text: &str, comma: bool) -> String {
    let pointed = text.replacen(',', ".", 1);
    if comma && text.contains(',') && is_number(&pointed) { pointed } else { text.to_owned() }
}

/// Whether a text is a whole number. A text with leading zeros is an id or a code, and would lose the zeros as a number.
fn is_integer(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    (digits == "0" || !digits.starts_with('0')) && text.parse::<i64>().is_ok() && !text.starts_with('+')
}

fn is_number(text: &str) -> bool {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    let padded = digits.len() > 1 && digits.starts_with('0') && digits.as_bytes()[1].is_ascii_digit();
    // Names such as `nan` and `inf` would parse as numbers.
    !padded && digits.starts_with(|c: char| c.is_ascii_digit() || c == '.') && text.parse::<f64>().is_ok()
}

fn is_truth(text: &str) -> bool {
    matches!(text, "true" | "True" | "TRUE" | "false" | "False" | "FALSE")
}

/// The columns that a condition names, in the order of the events.
pub struct NamedColumns {
    texts: Vec<TextColumn>,
    /// Cells of Parquet files, which have their own types; `None` if any file is text, because a column has one type over all files.
    typed: Option<Vec<DataFrame>>,
    /// The type of each typed column in the first file in which it has one.
    kinds: Vec<Option<(DataType, PathBuf)>>,
}

/// The columns when all events have been read.
#[derive(Default)]
pub struct NamedFrame {
    /// A column for each name, named as in the files.
    pub query: LazyFrame,
    /// Whether the cells are on disk.
    pub streaming: bool,
    /// The first cell that is not a number, by column.
    pub texts: Vec<(String, TextLocation)>,
    /// Columns without any value.
    pub empty: Vec<String>,
}

impl NamedColumns {
    /// Columns of these names, without cells. `typed` means that all files have types.
    pub fn new(names: &[String], typed: bool) -> Self {
        let texts = names.iter().map(|name| TextColumn::new(name)).collect();
        Self { texts, typed: typed.then(Vec::new), kinds: vec![None; names.len()] }
    }

    /// Whether there are no names.
    pub fn is_empty(&self) -> bool {
        self.texts.is_empty()
    }

    /// Sets whether numbers have a decimal comma in the cells that are added from now on.
    pub fn set_decimal_comma(&mut self, comma: bool) {
        self.texts.iter_mut().for_each(|column| column.decimal_comma = comma);
    }

    /// Adds the cells of an event, one for each name.
    pub fn push(&mut self, cells: &[RawCell<'_>], indices: &[usize], path: &Path, line: u64) {
        for (column, &index) in self.texts.iter_mut().zip(indices) {
            column.push(&cells[index], path, line);
        }
    }

    /// Adds the cells of a Parquet file from row `first` on; `used` says which rows are events. A column whose type differs from that in an
    /// earlier file is refused.
    pub fn extend(&mut self, cells: &DataFrame, used: &BooleanChunked, path: &Path, first: u64) -> Result<()> {
        if let Some(typed) = &mut self.typed {
            for (known, column) in self.kinds.iter_mut().zip(cells.columns()) {
                let kind = column.dtype();
                match known {
                    Some((earlier, file)) if !comparable(earlier, kind) && !kind.is_null() => {
                        return Err(Error::raw(
                            path,
                            format!(
                                "has {} in `{}`, and `{}` has {} there; write both files with the same type",
                                described(kind),
                                column.name(),
                                file.display(),
                                described(earlier)
                            ),
                        ));
                    }
                    Some(_) => {}
                    None => *known = (!kind.is_null()).then(|| (kind.clone(), path.to_owned())),
                }
            }
            typed.push(cells.filter(used)?);
            return Ok(());
        }
        for column in &mut self.texts {
            let text = cells.column(&column.name)?.cast(&DataType::String)?;
            let rows = (first..).zip(text.str()?.iter()).zip(used.iter()).filter(|(_, used)| *used == Some(true));
            for ((row, cell), _) in rows {
                let cell = cell.map_or(RawCell::Missing, |text| RawCell::Text(text.into()));
                column.push(&cell, path, row);
            }
        }
        Ok(())
    }

    /// The cells since the last call, as one column for each name.
    pub fn take(&mut self) -> Result<DataFrame> {
        if self.texts.is_empty() {
            return Ok(DataFrame::default());
        }
        match &mut self.typed {
            Some(typed) => {
                let parts: Vec<LazyFrame> = std::mem::take(typed).into_iter().map(DataFrame::lazy).collect();
                Ok(concat(parts, UnionArgs { to_supertypes: true, ..UnionArgs::default() })?.collect()?)
            }
            None => Ok(DataFrame::new_infer_height(self.texts.iter_mut().map(TextColumn::take).collect())?),
        }
    }

    /// Converts every column of `cells`, which are all that were taken, to its type.
    pub fn finish(self, cells: LazyFrame, streaming: bool) -> NamedFrame {
        let texts = self.texts.iter().filter_map(|c| Some((c.name.to_string(), c.first_text.clone()?))).collect();
        if self.typed.is_some() {
            return NamedFrame { query: cells, streaming, texts: Vec::new(), empty: Vec::new() };
        }
        let empty =
            self.texts.iter().filter(|column| !column.has_cells).map(|column| column.name.to_string()).collect();
        let query = cells.select(self.texts.iter().map(TextColumn::typed).collect::<Vec<_>>());
        NamedFrame { query, streaming, texts, empty }
    }
}
