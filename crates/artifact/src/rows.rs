//! Reads Parquet files of any origin without panics.

use std::fmt::Display;
use std::fs::File;

use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData, RowGroupMetaData};

use crate::guarded;

/// Opens a Parquet file of any origin; the error says what is wrong with it.
pub fn open_parquet(file: File) -> Result<ParquetRecordBatchReaderBuilder<File>, String> {
    let length = file.metadata().map_err(|e| e.to_string())?.len();
    let builder = parquet_step(|| ParquetRecordBatchReaderBuilder::try_new(file))?;
    check(builder.metadata(), length)?;
    Ok(builder)
}

/// Runs one step of reading a Parquet file and turns a panic into an error, because the library panics on some damaged files.
pub fn parquet_step<T, E: Display>(step: impl FnOnce() -> Result<T, E>) -> Result<T, String> {
    match guarded(step) {
        Ok(outcome) => outcome.map_err(|e| e.to_string()),
        Err(_) => Err("its metadata is inconsistent".to_owned()),
    }
}

/// Refuses a footer that describes more than the file can hold, before the library allocates memory for it.
fn check(about: &ParquetMetaData, length: u64) -> Result<(), String> {
    if about.file_metadata().num_rows() < 0 || about.row_groups().iter().any(|group| group.num_rows() < 0) {
        return Err("its footer has a negative number of rows".to_owned());
    }
    for column in about.row_groups().iter().flat_map(RowGroupMetaData::columns) {
        if !is_inside(column, length) {
            return Err(format!("its footer places column `{}` outside of it", column.column_path().string()));
        }
        // The width in bytes of values of a fixed width; -1 for other types.
        if u64::try_from(column.column_descr().type_length()).is_ok_and(|width| width > length) {
            return Err(format!(
                "its footer gives column `{}` values wider than the file",
                column.column_path().string()
            ));
        }
    }
    Ok(())
}

fn is_inside(column: &ColumnChunkMetaData, length: u64) -> bool {
    let start = column.dictionary_page_offset().unwrap_or_else(|| column.data_page_offset());
    let end = u64::try_from(start).ok().zip(u64::try_from(column.compressed_size()).ok());
    column.num_values() >= 0 && end.and_then(|(start, size)| start.checked_add(size)).is_some_and(|end| end <= length)
}
