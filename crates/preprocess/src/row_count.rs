//! Counts or estimates the rows of a raw file without reading all of it.

use std::path::Path;

use mp4sr_artifact::{files, open_parquet};
use mp4sr_pipeline::Progress;
use mp4sr_pipeline::config::Config;

use crate::read::{Shape, open_lines};
use crate::source::SourceFormat;
use crate::{Error, Result};

/// The number of bytes of text that are read.
const READ: u64 = 32 << 20;

/// The number of rows of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowCount {
    /// The number, which may be an estimate.
    pub rows: u64,
    /// Whether the number is exact.
    pub is_exact: bool,
}

/// Counts the rows of a raw file of a pipeline: exactly for Parquet files and for files that are read to the end, otherwise by the share of
/// the file that the first lines take.
pub fn count_rows(config: &Config, path: &Path, items: bool) -> Result<RowCount> {
    let format = SourceFormat::new(&config.source)?.file(path, items)?;
    if format.shape == Shape::Parquet {
        let file = open_parquet(files::open(path)?).map_err(|e| {
            Error::raw(path, format!("cannot be read as Parquet: {e}; fetch it again, or write it with snappy or zstd"))
        })?;
        let rows = file.metadata().file_metadata().num_rows().max(0) as u64;
        return Ok(RowCount { rows, is_exact: true });
    }
    let size = files::length(path)?.unwrap_or(0);
    let bar = Progress::new(true).bytes("", size);
    let mut lines = open_lines(path, &format, &bar)?;
    let (mut rows, mut bytes) = (0, 0);
    let mut line = Vec::new();
    let elements = format.shape == Shape::JsonLines && lines.holds_elements()?;
    loop {
        let next = if elements { lines.next_element(&mut line)? } else { lines.next(&mut line)? };
        if next.is_none() {
            let header = u64::from(format.is_table() && format.dialect.names.is_empty() && rows > 0);
            return Ok(RowCount { rows: rows - header, is_exact: true });
        }
        rows += 1;
        bytes += line.len() as u64 + 1;
        if bytes >= READ {
            break;
        }
    }
    let share = bar.position().min(size) as f64 / size.max(1) as f64;
    Ok(RowCount { rows: (rows as f64 / share.max(1e-9)) as u64, is_exact: false })
}
