//! Counts or estimates the rows of a raw file without reading all of it.

use std::path::Path;

use mp4sr_artifact::{files, open_parquet};
use mp4sr_pipeline::Progress;
use mp4sr_pipeline::config::Config;

use crate::read::{Shape, count_first_rows};
use crate::source::SourceFormat;
use crate::{Error, Result};

/// The number of bytes of text that are read.
const READ: u64 = 32 << 20;

/// The number of rows of a file: its records without the header, whether they can be used or not, as in the report of a dataset.
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
    let (rows, is_exact) = count_first_rows(path, &format, READ, &bar)?;
    if is_exact {
        return Ok(RowCount { rows, is_exact });
    }
    let share = bar.position().min(size) as f64 / size.max(1) as f64;
    Ok(RowCount { rows: (rows as f64 / share.max(1e-9)) as u64, is_exact })
}
