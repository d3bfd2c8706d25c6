//! Raw files as rows of wanted fields, one row at a time: memory does not grow with the file.

mod cell;
mod delimited;
mod gunzip;
mod json;
mod lines;
mod open;
mod parquet_events;
mod parquet_rows;
mod python;

use std::path::Path;

use mp4sr_pipeline::Bar;

pub use cell::RawCell;
pub use parquet_events::{EventColumns, for_each as for_each_event_rows, is_known as polars_knows};

use crate::rejects::Fault;
use crate::{Error, Result};

/// How rows are written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A JSON object a line.
    JsonLines,
    /// A JSON object or a Python dictionary literal a line.
    JsonOrPythonLines,
    /// Separated by commas, `"` quotes; a header line.
    Csv,
    /// Separated by tabs, nothing quotes; a header line.
    Tsv,
    /// The same with types in the header (`user_id:token`).
    RecBole,
    /// Parquet.
    Parquet,
}

impl Shape {
    /// By the end of the file's name.
    pub fn of_name(path: &Path) -> Option<Self> {
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
}

/// One line of a file: its number and, for each wanted field in order, what stands there; or why it can't be read.
pub type Row<'r, 'a> = (u64, std::result::Result<&'r [RawCell<'a>], Fault>);

/// Gives every row of a file to `visit`. `bar` moves with the bytes that were read.
pub fn for_each_row(
    path: &Path,
    shape: Shape,
    fields: &[&str],
    bar: &Bar,
    visit: &mut dyn FnMut(Row<'_, '_>) -> Result<()>,
) -> Result<()> {
    if shape == Shape::Parquet {
        return parquet_rows::for_each(path, fields, bar, visit);
    }
    let mut lines = open::open(path, shape, bar)?;
    match shape {
        Shape::JsonLines => json::for_each(&mut lines, fields, false, visit),
        Shape::JsonOrPythonLines => json::for_each(&mut lines, fields, true, visit),
        Shape::Csv => delimited::for_each_quoted(&mut lines, fields, visit),
        Shape::Tsv => delimited::for_each_plain(&mut lines, fields, false, visit),
        Shape::RecBole => delimited::for_each_plain(&mut lines, fields, true, visit),
        Shape::Parquet => Err(Error::bug("Parquet files have no lines")),
    }
}

/// Lines of JSON that are looked at for the names of their fields.
const SAMPLED: u64 = 1000;

/// The names of the columns of a file, for lines of JSON those of its first lines.
pub fn columns(path: &Path, shape: Shape) -> Result<Vec<String>> {
    if shape == Shape::Parquet {
        return parquet_events::columns(path);
    }
    let bar = mp4sr_pipeline::Progress::new(true).bytes("", 0);
    let mut lines = open::open(path, shape, &bar)?;
    match shape {
        Shape::JsonLines | Shape::JsonOrPythonLines => json::columns(&mut lines, SAMPLED),
        Shape::Csv => delimited::columns_quoted(&mut lines),
        _ => delimited::columns_plain(&mut lines, shape == Shape::RecBole),
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// Every row of a file as text: `line: field|field` or `line: reason (found)`.
    pub(crate) fn rows(path: &Path, shape: Shape, fields: &[&str]) -> Result<Vec<String>> {
        let bar = mp4sr_pipeline::Progress::new(true).bytes("test", 0);
        let mut rows = Vec::new();
        for_each_row(path, shape, fields, &bar, &mut |(line, row)| {
            rows.push(match row {
                Ok(cells) => {
                    let cells: Vec<String> =
                        cells.iter().map(|cell| cell.text().unwrap_or("-".into()).into()).collect();
                    format!("{line}: {}", cells.join("|"))
                }
                Err(fault) => format!("{line}: {} ({})", fault.reason, fault.found),
            });
            Ok(())
        })?;
        Ok(rows)
    }

    /// The same of a file with this content.
    pub(crate) fn rows_of(name: &str, content: &[u8], fields: &[&str]) -> Result<Vec<String>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        rows(&path, Shape::of_name(&path).unwrap(), fields)
    }

    pub(crate) fn gzip(content: &[u8]) -> Vec<u8> {
        use std::io::Write;
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }
}
