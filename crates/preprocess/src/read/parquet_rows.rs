//! Reads the rows of a Parquet file, one batch at a time.

use std::borrow::Cow;
use std::path::Path;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, Float64Type, Int64Type, UInt64Type};
use arrow_array::{Array, ArrayRef};
use arrow_cast::display::{ArrayFormatter, FormatOptions};
use arrow_schema::{ArrowError, DataType, Schema};
use mp4sr_artifact::{files, open_parquet, parquet_step};
use mp4sr_pipeline::Bar;
use parquet::arrow::ProjectionMask;
use parquet::errors::ParquetError;
use serde_json::{Map, Number, Value};

use super::{RawCell, RawRow};
use crate::images::data_url;
use crate::rejects::{Fault, excerpt};
use crate::{Error, Result};

const BATCH: usize = 8192;

/// Passes the rows of a file, or the first `limit`, to `visit`. A column whose type has no meaning is refused before the first row.
pub fn for_each(
    path: &Path,
    optional: bool,
    fields: &[&str],
    limit: Option<u64>,
    bar: &Bar,
    visit: &mut dyn FnMut(RawRow<'_, '_>) -> Result<()>,
) -> Result<()> {
    let damaged = |e: String| damaged(path, &e);
    let file = files::open(path)?;
    let bytes = file.metadata().map_or(0, |about| about.len());
    let mut builder = open_parquet(file).map_err(damaged)?;
    if let Some(limit) = limit {
        builder = builder.with_limit(limit as usize);
    }
    let schema = builder.schema().clone();
    let wanted = fields.iter().map(|field| index_of(path, &schema, field, optional)).collect::<Result<Vec<_>>>()?;
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
                || columns.iter().map(|column| column.map_or(Ok(RawCell::Missing), |array| cell(array, row))).collect();
            let cells: std::result::Result<Vec<RawCell<'_>>, Fault> =
                parquet_step(|| Ok::<_, ParquetError>(cells())).map_err(damaged)?;
            match cells {
                Ok(cells) => visit((number, Ok(&cells)))?,
                Err(fault) => visit((number, Err(fault)))?,
            }
        }
        bar.add(bytes * batch.num_rows() as u64 / rows);
    }
    Ok(())
}

/// The position of a wanted column; an empty name is one that is not wanted.
pub(super) fn index_of(path: &Path, schema: &Schema, field: &str, optional: bool) -> Result<Option<usize>> {
    if field.is_empty() {
        return Ok(None);
    }
    let mut found = schema.fields().iter().enumerate().filter(|(_, known)| known.name() == field);
    let Some((at, column)) = found.next() else {
        if optional {
            return Ok(None);
        }
        let known: Vec<&str> = schema.fields().iter().map(|known| known.name().as_str()).collect();
        let near =
            mp4sr_pipeline::nearest(field, &known).map_or(String::new(), |near| format!(" (did you mean `{near}`?)"));
        let known = excerpt(&known.join(", "));
        return Err(Error::raw(
            path,
            format!("has no column `{field}`{near}; it has {known}; correct `[source.columns]`"),
        ));
    };
    if found.next().is_some() {
        return Err(Error::raw(path, format!("has the column `{field}` twice; write it with distinct names")));
    }
    if let Some(part) = without_meaning(column.data_type()) {
        return Err(Error::raw(
            path,
            format!(
                "has `{field}` of type {}, and {part} is read neither as text nor as a number; convert the column, or name another one",
                column.data_type()
            ),
        ));
    }
    Ok(Some(at))
}

/// The error of a file that cannot be read.
pub(super) fn damaged(path: &Path, problem: &str) -> Error {
    let problem = problem.lines().next().unwrap_or_default();
    Error::raw(path, format!("cannot be read as Parquet: {problem}; fetch it again, or write it with snappy or zstd"))
}

/// The columns whose types are read neither as text nor as numbers, with their types.
pub fn unreadable_columns(path: &Path) -> Result<Vec<(String, String)>> {
    let footer = open_parquet(files::open(path)?).map_err(|e| damaged(path, &e))?;
    let fields = footer.schema().fields();
    let unreadable = fields.iter().filter(|field| without_meaning(field.data_type()).is_some());
    Ok(unreadable.map(|field| (field.name().clone(), field.data_type().to_string())).collect())
}

/// The part of a type that has no meaning as text, number, list or object.
fn without_meaning(kind: &DataType) -> Option<DataType> {
    match kind {
        DataType::List(field)
        | DataType::LargeList(field)
        | DataType::ListView(field)
        | DataType::LargeListView(field)
        | DataType::FixedSizeList(field, _)
        | DataType::Map(field, _) => without_meaning(field.data_type()),
        DataType::Struct(fields) => fields.iter().find_map(|field| without_meaning(field.data_type())),
        DataType::Dictionary(_, values) => without_meaning(values),
        // Sixteen bytes are a UUID, and hardly ever text.
        DataType::Union(..)
        | DataType::RunEndEncoded(..)
        | DataType::Interval(_)
        | DataType::Duration(_)
        | DataType::FixedSizeBinary(16) => Some(kind.clone()),
        _ => None,
    }
}

fn cell(array: &ArrayRef, row: usize) -> std::result::Result<RawCell<'_>, Fault> {
    if array.is_null(row) {
        return Ok(RawCell::Missing);
    }
    let text = match array.data_type() {
        DataType::Utf8 => Some(array.as_string::<i32>().value(row)),
        DataType::LargeUtf8 => Some(array.as_string::<i64>().value(row)),
        DataType::Utf8View => Some(array.as_string_view().value(row)),
        _ => None,
    };
    text.map_or_else(|| value(array, row).map(RawCell::of_json), |text| Ok(RawCell::Text(Cow::Borrowed(text))))
}

/// Converts a value to JSON.
fn value(array: &ArrayRef, row: usize) -> std::result::Result<Value, Fault> {
    if array.is_null(row) {
        return Ok(Value::Null);
    }
    let list = |values: ArrayRef| {
        (0..values.len()).map(|at| value(&values, at)).collect::<std::result::Result<_, Fault>>().map(Value::Array)
    };
    let cast = |to: &DataType| {
        let one = arrow_cast::cast(&array.slice(row, 1), to);
        one.map_err(|e| Fault::new(format!("a value of type {} that cannot be read", array.data_type()), e.to_string()))
    };
    Ok(match array.data_type() {
        DataType::Utf8 => array.as_string::<i32>().value(row).into(),
        DataType::LargeUtf8 => array.as_string::<i64>().value(row).into(),
        DataType::Utf8View => array.as_string_view().value(row).into(),
        DataType::Binary => text_of(array.as_binary::<i32>().value(row))?,
        DataType::LargeBinary => text_of(array.as_binary::<i64>().value(row))?,
        DataType::BinaryView => text_of(array.as_binary_view().value(row))?,
        DataType::FixedSizeBinary(_) => text_of(array.as_fixed_size_binary().value(row))?,
        DataType::Int64 => array.as_primitive::<Int64Type>().value(row).into(),
        DataType::UInt64 => array.as_primitive::<UInt64Type>().value(row).into(),
        DataType::Float16 => return value(&cast(&DataType::Float32)?, 0),
        // The shortest decimal number with the same value in 32 bits: 9.99 and not 9.989999771118164.
        DataType::Float32 => {
            array.as_primitive::<Float32Type>().value(row).to_string().parse().ok().map_or(Value::Null, float)
        }
        DataType::Float64 => float(array.as_primitive::<Float64Type>().value(row)),
        DataType::Boolean => array.as_boolean().value(row).into(),
        DataType::List(_) => list(array.as_list::<i32>().value(row))?,
        DataType::LargeList(_) => list(array.as_list::<i64>().value(row))?,
        DataType::ListView(_) => list(array.as_list_view::<i32>().value(row))?,
        DataType::LargeListView(_) => list(array.as_list_view::<i64>().value(row))?,
        DataType::FixedSizeList(..) => list(array.as_fixed_size_list().value(row))?,
        DataType::Map(..) => {
            let entries = array.as_map().value(row);
            let mut map = Map::new();
            for at in 0..entries.len() {
                let key = match value(entries.column(0), at)? {
                    Value::String(key) => key,
                    other => other.to_string(),
                };
                map.insert(key, value(entries.column(1), at)?);
            }
            Value::Object(map)
        }
        DataType::Struct(fields) => {
            let columns = array.as_struct().columns().iter();
            let named =
                fields.iter().zip(columns).map(|(field, column)| Ok((field.name().clone(), value(column, row)?)));
            Value::Object(named.collect::<std::result::Result<_, Fault>>()?)
        }
        DataType::Dictionary(_, values) => return value(&cast(values)?, 0),
        // Values are in UTC, and the formatter does not know the names of zones.
        DataType::Timestamp(unit, Some(zone)) if !is_offset(zone) => {
            return value(&cast(&DataType::Timestamp(*unit, Some("+00:00".into())))?, 0);
        }
        kind if kind.is_integer() => return value(&cast(&DataType::Int64)?, 0),
        DataType::Null => Value::Null,
        // Dates, times and decimals become text.
        _ => {
            let options = FormatOptions::new().with_timestamp_format(Some("%Y-%m-%dT%H:%M:%S%.f"));
            let options = options.with_timestamp_tz_format(Some("%Y-%m-%dT%H:%M:%S%.f%:z"));
            let failed = |e: ArrowError| {
                Fault::new(format!("a value of type {} that cannot be read", array.data_type()), e.to_string())
            };
            let formatter = ArrayFormatter::try_new(array, &options).map_err(failed)?;
            formatter.value(row).try_to_string().map_err(failed)?.into()
        }
    })
}

fn is_offset(zone: &str) -> bool {
    zone.starts_with(['+', '-'])
}

/// Whether the values of a column are dates or times by their type, which rows have as text in ISO 8601.
pub fn holds_times(path: &Path, name: &str) -> Result<bool> {
    let builder = open_parquet(files::open(path)?).map_err(|e| damaged(path, &e))?;
    let kind = builder.schema().field_with_name(name).ok().map(|field| field.data_type().clone());
    Ok(match kind {
        Some(DataType::List(field) | DataType::LargeList(field)) => field.data_type().is_temporal(),
        Some(kind) => kind.is_temporal(),
        None => false,
    })
}

fn text_of(bytes: &[u8]) -> std::result::Result<Value, Fault> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.into()),
        // An image, as Hugging Face datasets store it beside its path.
        Err(_) if mp4sr_image::extension(bytes).is_some() => Ok(data_url(bytes).into()),
        Err(_) => Err(Fault::new("invalid UTF-8", String::from_utf8_lossy(bytes))),
    }
}

fn float(x: f64) -> Value {
    Number::from_f64(x).map_or(Value::Null, Value::Number)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;
    use std::sync::Arc;

    use arrow_array::builder::{FixedSizeListBuilder, MapBuilder, StringBuilder};
    use arrow_array::types::Int32Type;
    use arrow_array::{
        BinaryArray, Date32Array, Decimal128Array, DurationSecondArray, FixedSizeBinaryArray, Float32Array, Int32Array,
        ListArray, RecordBatch, StringArray, StructArray, TimestampMillisecondArray, TimestampNanosecondArray,
    };
    use arrow_schema::{DataType, Field, Schema};
    use parquet::arrow::ArrowWriter;
    use parquet::basic::{Compression, ZstdLevel};
    use parquet::file::properties::WriterProperties;

    use super::super::testing::rows;
    use super::super::{FileFormat, Shape};

    /// Writes two rows with a column of every kind.
    fn write(path: &std::path::Path, properties: Option<WriterProperties>) {
        let columns: Vec<(&str, arrow_array::ArrayRef)> = vec![
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
    fn text_numbers_clocks_and_lists_are_read_unchanged() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.parquet");
        let properties = WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::default())).build();
        write(&path, Some(properties));
        assert_eq!(
            rows(&path, &FileFormat::of(Shape::Parquet), &["when", "user", "", "item"]).unwrap(),
            ["1: 2017-07-14T02:40:00.999|007|-|-5", "2: 1970-01-01T00:00:00|-|-|6"]
        );
        let message = rows(&path, &FileFormat::of(Shape::Parquet), &["time"]).unwrap_err().to_string();
        assert!(
            message.contains("no column `time`") && message.contains("; it has user, item, when, tags, key"),
            "{message}"
        );
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        let message = rows(&path, &FileFormat::of(Shape::Parquet), &["user"]).unwrap_err().to_string();
        assert!(message.contains("x.parquet") && message.contains("fetch it again"), "{message}");
    }

    #[test]
    fn every_type_has_a_meaning_or_is_refused_before_the_first_row() {
        let mut tags = FixedSizeListBuilder::new(StringBuilder::new(), 2);
        let mut attributes = MapBuilder::new(None, StringBuilder::new(), StringBuilder::new());
        for (first, second) in [("a heist", "a chase"), ("a ship", "a cat")] {
            tags.values().append_value(first);
            tags.values().append_value(second);
            tags.append(true);
            attributes.keys().append_value("plot");
            attributes.values().append_value(second);
            attributes.append(true).unwrap();
        }
        let image = StructArray::from(vec![(
            Arc::new(Field::new("bytes", DataType::Binary, true)),
            Arc::new(BinaryArray::from(vec![b"\xff\xd8\xff\xe0".as_slice(), b"\x89PNG\r\n\x1a\n"]))
                as arrow_array::ArrayRef,
        )]);
        let columns: Vec<(&str, arrow_array::ArrayRef)> = vec![
            ("bytes", Arc::new(BinaryArray::from(vec![b"u1".as_slice(), b"\xff"]))),
            ("fixed", Arc::new(FixedSizeBinaryArray::try_from_iter([b"ab", b"cd"].into_iter()).unwrap())),
            ("price", Arc::new(Float32Array::from(vec![9.99, 0.1]))),
            ("cost", Arc::new(Decimal128Array::from(vec![1250, -5]).with_precision_and_scale(9, 2).unwrap())),
            ("day", Arc::new(Date32Array::from(vec![9479, 0]))),
            (
                "when",
                Arc::new(TimestampNanosecondArray::from(vec![1_500_000_000_123_456_789, 0]).with_timezone("+00:00")),
            ),
            ("tags", Arc::new(tags.finish())),
            ("attributes", Arc::new(attributes.finish())),
            ("image", Arc::new(image)),
            ("span", Arc::new(DurationSecondArray::from(vec![1, 2]))),
            ("uuid", Arc::new(FixedSizeBinaryArray::try_from_iter([[65; 16], [66; 16]].into_iter()).unwrap())),
        ];
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.parquet");
        let schema =
            Schema::new(columns.iter().map(|(n, c)| Field::new(*n, c.data_type().clone(), true)).collect::<Vec<_>>());
        let batch =
            RecordBatch::try_new(Arc::new(schema), columns.into_iter().map(|(_, column)| column).collect()).unwrap();
        let mut writer = ArrowWriter::try_new(std::fs::File::create(&path).unwrap(), batch.schema(), None).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        let mut shown = Vec::new();
        let fields = ["fixed", "price", "cost", "day", "when", "tags", "attributes"];
        let bar = mp4sr_pipeline::Progress::new(true).bytes("test", 0);
        super::for_each(&path, false, &fields, None, &bar, &mut |(_, row)| {
            shown.push(row.unwrap().iter().map(super::RawCell::shown).collect::<Vec<_>>().join("|"));
            Ok(())
        })
        .unwrap();
        assert_eq!(
            shown,
            [
                "ab|9.99|12.50|1995-12-15|2017-07-14T02:40:00.123456789+00:00|[\"a heist\",\"a chase\"]|{\"plot\":\"a chase\"}",
                "cd|0.1|-0.05|1970-01-01|1970-01-01T00:00:00+00:00|[\"a ship\",\"a cat\"]|{\"plot\":\"a cat\"}",
            ]
        );
        let format = FileFormat::of(Shape::Parquet);
        let bytes = rows(&path, &format, &["bytes"]).unwrap();
        assert!(bytes[0] == "1: u1" && bytes[1].starts_with("2: invalid UTF-8 ("), "{bytes:?}");
        let message = rows(&path, &format, &["span"]).unwrap_err().to_string();
        assert!(
            message.contains("has `span` of type ") && message.contains("is read neither as text nor"),
            "{message}"
        );
        let mut images = Vec::new();
        super::for_each(&path, false, &["image"], None, &bar, &mut |(_, row)| {
            images.push(row.unwrap()[0].shown());
            Ok(())
        })
        .unwrap();
        assert_eq!(images, ["{\"bytes\":\"data:;base64,/9j/4A==\"}", "{\"bytes\":\"data:;base64,iVBORw0KGgo=\"}"]);
    }

    #[test]
    fn no_flipped_bit_of_a_footer_makes_a_reader_panic() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.parquet");
        write(&path, None);
        let whole = std::fs::read(&path).unwrap();
        let footer = u32::from_le_bytes(*whole[..whole.len() - 4].last_chunk().unwrap()) as usize;
        // The bytes are changed in place, because rewriting the file for each change would take most of the time.
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        let mut refused = 0;
        for at in whole.len() - 8 - footer..whole.len() {
            for bit in 0..8 {
                file.write_all_at(&[whole[at] ^ 1 << bit], at as u64).unwrap();
                if let Err(error) =
                    rows(&path, &FileFormat::of(Shape::Parquet), &["when", "user", "item", "tags", "key"])
                {
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
