//! Rows of a Parquet file, a batch at a time.

use std::borrow::Cow;
use std::path::Path;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{DataType, Float32Type, Float64Type, Int64Type, TimeUnit, UInt64Type};
use mp4sr_artifact::{files, open_parquet, parquet_step};
use mp4sr_pipeline::Bar;
use parquet::arrow::ProjectionMask;
use parquet::errors::ParquetError;
use serde_json::{Number, Value};

use super::{RawCell, Row};
use crate::{Error, Result};

const BATCH: usize = 8192;

pub fn for_each(
    path: &Path,
    fields: &[&str],
    bar: &Bar,
    visit: &mut dyn FnMut(Row<'_, '_>) -> Result<()>,
) -> Result<()> {
    let damaged = |e: String| {
        Error::raw(path, format!("can't be read as Parquet: {e}; fetch it again, or write it with snappy or zstd"))
    };
    let file = files::open(path)?;
    let bytes = file.metadata().map_or(0, |about| about.len());
    let builder = open_parquet(file).map_err(damaged)?;
    let schema = builder.schema().clone();
    let wanted: Vec<Option<usize>> = fields.iter().map(|field| schema.index_of(field).ok()).collect();
    let absent = fields.iter().zip(&wanted).find(|(field, place)| place.is_none() && !field.is_empty());
    if let Some((field, _)) = absent {
        let known = schema.fields().iter().map(|f| f.name().as_str()).collect::<Vec<_>>().join(", ");
        let known = crate::rejects::excerpt(&known);
        return Err(Error::raw(path, format!("has no column `{field}`; it has {known}; mend `[source.columns]`")));
    }
    let mask = ProjectionMask::roots(builder.parquet_schema(), wanted.iter().copied().flatten());
    let rows = builder.metadata().file_metadata().num_rows().max(1) as u64;
    let reader = || builder.with_projection(mask).with_batch_size(BATCH).build();
    let mut reader = parquet_step(reader).map_err(damaged)?;
    let mut number = 0;
    while let Some(batch) = parquet_step(|| reader.next().transpose()).map_err(damaged)? {
        let columns: Vec<Option<&ArrayRef>> = fields.iter().map(|field| batch.column_by_name(field)).collect();
        for row in 0..batch.num_rows() {
            number += 1;
            let cells =
                || columns.iter().map(|column| column.map_or(RawCell::Missing, |array| cell(array, row))).collect();
            let cells: Vec<RawCell<'_>> = parquet_step(|| Ok::<_, ParquetError>(cells())).map_err(damaged)?;
            visit((number, Ok(&cells)))?;
        }
        bar.add(bytes * batch.num_rows() as u64 / rows);
    }
    Ok(())
}

fn cell(array: &ArrayRef, row: usize) -> RawCell<'_> {
    if array.is_null(row) {
        return RawCell::Missing;
    }
    let text = match array.data_type() {
        DataType::Utf8 => Some(array.as_string::<i32>().value(row)),
        DataType::LargeUtf8 => Some(array.as_string::<i64>().value(row)),
        DataType::Utf8View => Some(array.as_string_view().value(row)),
        _ => None,
    };
    text.map_or_else(|| RawCell::of_json(value(array, row)), |text| RawCell::Text(Cow::Borrowed(text)))
}

/// A value as JSON would have it; what has no such form is null, and counted as missing.
fn value(array: &ArrayRef, row: usize) -> Value {
    if array.is_null(row) {
        return Value::Null;
    }
    let list = |values: ArrayRef| Value::Array((0..values.len()).map(|at| value(&values, at)).collect());
    let cast = |to: &DataType| arrow::compute::cast(&array.slice(row, 1), to).ok();
    match array.data_type() {
        DataType::Utf8 => array.as_string::<i32>().value(row).into(),
        DataType::LargeUtf8 => array.as_string::<i64>().value(row).into(),
        DataType::Utf8View => array.as_string_view().value(row).into(),
        DataType::Int64 => array.as_primitive::<Int64Type>().value(row).into(),
        DataType::UInt64 => array.as_primitive::<UInt64Type>().value(row).into(),
        DataType::Float32 => float(f64::from(array.as_primitive::<Float32Type>().value(row))),
        DataType::Float64 => float(array.as_primitive::<Float64Type>().value(row)),
        DataType::Boolean => array.as_boolean().value(row).into(),
        DataType::List(_) => list(array.as_list::<i32>().value(row)),
        DataType::LargeList(_) => list(array.as_list::<i64>().value(row)),
        DataType::Struct(fields) => {
            let columns = array.as_struct().columns();
            fields.iter().zip(columns).map(|(field, column)| (field.name().clone(), value(column, row))).collect()
        }
        DataType::Dictionary(_, values) => cast(values).map_or(Value::Null, |one| value(&one, 0)),
        // Clocks become Unix seconds.
        DataType::Timestamp(_, zone) => cast(&DataType::Timestamp(TimeUnit::Second, zone.clone()))
            .and_then(|seconds| arrow::compute::cast(&seconds, &DataType::Int64).ok())
            .map_or(Value::Null, |one| value(&one, 0)),
        kind if kind.is_integer() => cast(&DataType::Int64).map_or(Value::Null, |one| value(&one, 0)),
        _ => Value::Null,
    }
}

fn float(x: f64) -> Value {
    Number::from_f64(x).map_or(Value::Null, Value::Number)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;
    use std::sync::Arc;

    use arrow::array::{FixedSizeBinaryArray, Int32Array, ListArray, StringArray, TimestampMillisecondArray};
    use arrow::datatypes::Int32Type;
    use arrow::record_batch::RecordBatch;
    use parquet::arrow::ArrowWriter;
    use parquet::basic::{Compression, ZstdLevel};
    use parquet::file::properties::WriterProperties;

    use super::super::Shape;
    use super::super::testing::rows;

    /// Two rows of a column of every kind.
    fn write(path: &std::path::Path, properties: Option<WriterProperties>) {
        let columns: Vec<(&str, arrow::array::ArrayRef)> = vec![
            ("user", Arc::new(StringArray::from(vec![Some("007"), None]))),
            ("item", Arc::new(Int32Array::from(vec![-5, 6]))),
            ("when", Arc::new(TimestampMillisecondArray::from(vec![1_500_000_000_999, 0]))),
            ("tags", Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>([Some([Some(1), None]), None]))),
            ("key", Arc::new(FixedSizeBinaryArray::try_from_iter([[1; 16], [2; 16]].into_iter()).unwrap())),
        ];
        let batch = RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, c)| (n, c, true))).unwrap();
        let file = std::fs::File::create(path).unwrap();
        let mut writer = ArrowWriter::try_new(file, batch.schema(), properties).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
    }

    #[test]
    fn text_numbers_clocks_and_lists_come_as_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.parquet");
        let properties = WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::default())).build();
        write(&path, Some(properties));
        assert_eq!(
            rows(&path, Shape::Parquet, &["when", "user", "", "item"]).unwrap(),
            ["1: 1500000000|007|-|-5", "2: 0|-|-|6"]
        );
        let message = rows(&path, Shape::Parquet, &["time"]).unwrap_err().to_string();
        assert!(message.contains("no column `time`; it has user, item, when, tags, key"), "{message}");
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        let message = rows(&path, Shape::Parquet, &["user"]).unwrap_err().to_string();
        assert!(message.contains("x.parquet") && message.contains("fetch it again"), "{message}");
    }

    #[test]
    fn no_flipped_bit_of_a_footer_makes_a_reader_panic() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.parquet");
        write(&path, None);
        let whole = std::fs::read(&path).unwrap();
        let footer = u32::from_le_bytes(*whole[..whole.len() - 4].last_chunk().unwrap()) as usize;
        // Cutting the file for each change would visit most of the time.
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        let mut refused = 0;
        for at in whole.len() - 8 - footer..whole.len() {
            for bit in 0..8 {
                file.write_all_at(&[whole[at] ^ 1 << bit], at as u64).unwrap();
                if let Err(error) = rows(&path, Shape::Parquet, &["when", "user", "item", "tags", "key"]) {
                    let message = error.to_string();
                    assert!(message.contains("x.parquet") && message.contains(';'), "{at}, {bit}: {message}");
                    refused += 1;
                }
            }
            file.write_all_at(&whole[at..=at], at as u64).unwrap();
        }
        assert!(refused > 1000, "{refused} of {footer} bytes");
    }
}
