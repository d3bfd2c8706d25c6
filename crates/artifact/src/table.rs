//! Parquet files with columns of texts, lists and numbers.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use arrow_array::builder::{Float32Builder, ListBuilder, StringBuilder};
use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, Float64Type, UInt32Type};
use arrow_array::{Array, ArrayRef, Float32Array, RecordBatch, StringArray, UInt32Array};
use arrow_schema::{DataType, Field, Schema};
use parquet::arrow::arrow_reader::ArrowReaderBuilder;
use parquet::arrow::{ArrowWriter, ProjectionMask};
use parquet::basic::Compression;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use serde_json::Value;

use crate::rows::{open_parquet, parquet_step};
use crate::{Error, EventTime, Result, data_files, files};

/// A column of a [`Table`]. No value is ever null.
#[derive(Clone, Debug, PartialEq)]
pub enum Column {
    /// Unsigned integers.
    U32(Vec<u32>),
    /// Floats.
    F32(Vec<f32>),
    /// Text.
    Text(Vec<String>),
    /// Lists of text.
    Texts(Vec<Vec<String>>),
    /// Lists of floats.
    F32s(Vec<Vec<f32>>),
}

impl Column {
    fn into_array(self) -> ArrayRef {
        match self {
            Self::U32(v) => Arc::new(UInt32Array::from(v)),
            Self::F32(v) => Arc::new(Float32Array::from(v)),
            Self::Text(v) => Arc::new(StringArray::from(v)),
            Self::Texts(rows) => {
                let mut list = ListBuilder::new(StringBuilder::new());
                for row in rows {
                    for text in row {
                        list.values().append_value(text);
                    }
                    list.append(true);
                }
                Arc::new(list.finish())
            }
            Self::F32s(rows) => {
                let mut list = ListBuilder::new(Float32Builder::new());
                for row in rows {
                    list.values().append_slice(&row);
                    list.append(true);
                }
                Arc::new(list.finish())
            }
        }
    }
}

/// Named columns of equal length, stored as a Parquet file.
#[derive(Debug)]
pub struct Table {
    columns: Vec<(String, ArrayRef)>,
    /// The inputs and settings that the table was built from.
    source: Option<Value>,
    origin: Option<(std::path::PathBuf, String)>,
}

/// The key of a table's source in the metadata of its file.
const SOURCE: &str = "mp4sr.source";

impl Table {
    /// Creates a table from columns of equal length.
    pub fn new(columns: Vec<(&str, Column)>) -> Self {
        let columns = columns.into_iter().map(|(name, column)| (name.to_owned(), column.into_array())).collect();
        Self { columns, source: None, origin: None }
    }

    /// Adds a record of the inputs and settings that the table was built from.
    #[must_use]
    pub fn with_source(self, source: &Value) -> Self {
        Self { source: Some(source.clone()), ..self }
    }

    /// Makes the file names in the text column `name` relative to the data folder.
    #[must_use]
    pub fn with_files_in(mut self, name: &str, data: &Path) -> Self {
        for (_, array) in self.columns.iter_mut().filter(|(column, _)| column == name) {
            let names = array.as_string_opt::<i32>().into_iter().flat_map(|texts| texts.iter().flatten());
            let names: Vec<String> = names.map(|name| data_files::below(data, name)).collect();
            *array = Column::Text(names).into_array();
        }
        self.with_source(&data_files::source())
    }

    /// Takes a column of file names. Names that are relative to the data folder are resolved against `data`.
    pub fn take_files(&mut self, name: &str, data: &Path) -> Result<Vec<String>> {
        let start_in_data = data_files::start_in_data(self.source());
        let names = self.take_text(name)?;
        Ok(if start_in_data { names.iter().map(|name| data_files::within(data, name)).collect() } else { names })
    }

    /// The record of [`Self::with_source`]; `None` for a file of another program.
    pub fn source(&self) -> Option<&Value> {
        self.source.as_ref()
    }

    /// Writes the table, atomically. The same content gives the same bytes.
    pub fn write(&self, path: &Path) -> Result<()> {
        let fields: Vec<Field> =
            self.columns.iter().map(|(name, array)| Field::new(name, array.data_type().clone(), false)).collect();
        let schema = Arc::new(Schema::new(fields));
        let arrays = self.columns.iter().map(|(_, array)| array.clone()).collect();
        files::write_atomic(path, |out| -> std::io::Result<()> {
            let batch = RecordBatch::try_new(schema.clone(), arrays).map_err(std::io::Error::other)?;
            let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
            let mut writer = ArrowWriter::try_new(out, schema, Some(properties))?;
            for (name, array) in &self.columns {
                let mut content = ColumnHasher::default();
                content.add(array);
                writer.append_key_value_metadata(KeyValue::new(checksum_key(name), content.finish()));
            }
            if let Some(source) = &self.source {
                writer.append_key_value_metadata(KeyValue::new(SOURCE.to_owned(), source.to_string()));
            }
            writer.write(&batch)?;
            writer.close()?;
            Ok(())
        })
    }

    /// Reads a whole table. `remedy` tells the user how to create it again.
    pub fn read(path: &Path, remedy: &str) -> Result<Self> {
        let damaged = |e: String| Error::damaged(path, format!("it is not a complete Parquet file ({e})"), remedy);
        let reader = open_parquet(files::open(path)?).map_err(damaged)?;
        let schema = reader.schema().clone();
        let checksums = Checksums::of(&reader);
        let metadata = reader.metadata().file_metadata().key_value_metadata().into_iter().flatten();
        let source = metadata.filter(|entry| entry.key == SOURCE).find_map(|entry| entry.value.as_deref());
        let source = source.and_then(|text| serde_json::from_str(text).ok());
        let batches = || reader.build().and_then(|r| r.collect::<std::result::Result<Vec<_>, _>>().map_err(Into::into));
        let batches = parquet_step(batches).map_err(damaged)?;
        let batch = parquet_step(|| arrow_select::concat::concat_batches(&schema, &batches)).map_err(damaged)?;
        for (field, array) in schema.fields().iter().zip(batch.columns()) {
            let mut content = ColumnHasher::default();
            content.add(array);
            checksums.check(path, field.name(), &content, remedy)?;
        }
        let columns = schema
            .fields()
            .iter()
            .zip(batch.columns())
            .map(|(field, array)| (field.name().clone(), array.clone()))
            .collect();
        Ok(Self { columns, source, origin: Some((path.to_owned(), remedy.to_owned())) })
    }

    /// The number of rows of a table, which is read from the metadata alone.
    pub fn rows(path: &Path, remedy: &str) -> Result<u64> {
        let damaged = |e: String| Error::damaged(path, format!("it is not a complete Parquet file ({e})"), remedy);
        let reader = open_parquet(files::open(path)?).map_err(damaged)?;
        Ok(reader.metadata().file_metadata().num_rows().unsigned_abs())
    }

    /// Calls `each` with every text in a column of lists of text, in order, until it returns [`ControlFlow::Break`]. Only some rows of that
    /// one column are in memory at a time.
    pub fn each_of_texts(
        path: &Path,
        name: &str,
        remedy: &str,
        mut each: impl FnMut(&str) -> ControlFlow<()>,
    ) -> Result<()> {
        let damaged = |e: String| Error::damaged(path, format!("it is not a complete Parquet file ({e})"), remedy);
        let reader = open_parquet(files::open(path)?).map_err(damaged)?;
        let missing = |_| Error::unusable(path, format!("column `{name}` is missing"), remedy);
        let column = reader.schema().index_of(name).map_err(missing)?;
        let only = ProjectionMask::roots(reader.parquet_schema(), [column]);
        let (checksums, mut content) = (Checksums::of(&reader), ColumnHasher::default());
        let mut batches = parquet_step(|| reader.with_projection(only).build()).map_err(damaged)?;
        while let Some(batch) = parquet_step(|| batches.next().transpose()).map_err(damaged)? {
            let columns = vec![(name.to_owned(), batch.column(0).clone())];
            content.add(&columns[0].1);
            let mut table = Self { columns, source: None, origin: Some((path.to_owned(), remedy.to_owned())) };
            for text in table.take_texts(name)?.iter().flatten() {
                if each(text).is_break() {
                    return Ok(());
                }
            }
        }
        checksums.check(path, name, &content, remedy)
    }

    /// Takes a column of unsigned integers.
    pub fn take_u32(&mut self, name: &str) -> Result<Vec<u32>> {
        let array = self.take(name)?;
        let values = array.as_primitive_opt::<UInt32Type>().filter(|a| a.null_count() == 0);
        values.map(|a| a.values().to_vec()).ok_or_else(|| self.mismatch(name, "unsigned 32-bit integers", &array))
    }

    /// Takes a column of floats.
    pub fn take_f32(&mut self, name: &str) -> Result<Vec<f32>> {
        let array = self.take(name)?;
        let values = array.as_primitive_opt::<Float32Type>().filter(|a| a.null_count() == 0);
        values.map(|a| a.values().to_vec()).ok_or_else(|| self.mismatch(name, "32-bit floats", &array))
    }

    /// Takes a column of text.
    pub fn take_text(&mut self, name: &str) -> Result<Vec<String>> {
        let array = self.take(name)?;
        texts(&array).ok_or_else(|| self.mismatch(name, "text", &array))
    }

    /// Takes a column of ids: texts, or whole numbers, which become decimal text.
    pub fn take_ids(&mut self, name: &str) -> Result<Vec<String>> {
        let array = self.take(name)?;
        ids(&array).ok_or_else(|| self.mismatch(name, "ids (text or whole numbers)", &array))
    }

    /// Takes a column of lists of ids: texts, or whole numbers, which become decimal text.
    pub fn take_id_lists(&mut self, name: &str) -> Result<Vec<Vec<String>>> {
        let array = self.take(name)?;
        let read = || -> Option<Vec<Vec<String>>> {
            if let Some(list) = array.as_list_opt::<i32>().filter(|a| a.null_count() == 0) {
                return (0..list.len()).map(|row| ids(&list.value(row))).collect();
            }
            let list = array.as_list_opt::<i64>().filter(|a| a.null_count() == 0)?;
            (0..list.len()).map(|row| ids(&list.value(row))).collect()
        };
        read().ok_or_else(|| self.mismatch(name, "lists of ids (text or whole numbers)", &array))
    }

    /// Takes a column of times: numbers of any type, dates and times, or texts that are numbers.
    pub fn take_times(&mut self, name: &str) -> Result<Vec<EventTime>> {
        let array = self.take(name)?;
        let expected = "a finite number, a date or a time in every row (not NaN)";
        times(&array).ok_or_else(|| self.mismatch(name, expected, &array))
    }

    /// The names of the columns, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.columns.iter().map(|(name, _)| name.as_str())
    }

    /// Takes a column of lists of text.
    pub fn take_texts(&mut self, name: &str) -> Result<Vec<Vec<String>>> {
        let array = self.take(name)?;
        let read = || -> Option<Vec<Vec<String>>> {
            let list = array.as_list_opt::<i32>().filter(|a| a.null_count() == 0)?;
            (0..list.len()).map(|row| texts(&list.value(row))).collect()
        };
        read().ok_or_else(|| self.mismatch(name, "lists of text", &array))
    }

    /// Whether the table has a column.
    pub fn has(&self, name: &str) -> bool {
        self.columns.iter().any(|(column, _)| column == name)
    }

    /// Takes a column of lists of floats.
    pub fn take_f32s(&mut self, name: &str) -> Result<Vec<Vec<f32>>> {
        let array = self.take(name)?;
        let read = || -> Option<Vec<Vec<f32>>> {
            let list = array.as_list_opt::<i32>().filter(|a| a.null_count() == 0)?;
            (0..list.len())
                .map(|row| list.value(row).as_primitive_opt::<Float32Type>().map(|a| a.values().to_vec()))
                .collect()
        };
        read().ok_or_else(|| self.mismatch(name, "lists of 32-bit floats", &array))
    }

    fn take(&mut self, name: &str) -> Result<ArrayRef> {
        match self.columns.iter().position(|(n, _)| n == name) {
            Some(at) => Ok(self.columns.swap_remove(at).1),
            None => Err(self.wrong(format!("column `{name}` is missing"))),
        }
    }

    fn mismatch(&self, name: &str, expected: &str, found: &ArrayRef) -> Error {
        let inner = found.as_list_opt::<i32>().map_or(0, |list| list.values().null_count());
        let nulls = found.null_count() + inner;
        let nulls = if nulls > 0 { format!(" with {nulls} missing values") } else { String::new() };
        self.wrong(format!("column `{name}`: expected {expected}, found {}{nulls}", found.data_type()))
    }

    fn wrong(&self, reason: String) -> Error {
        match &self.origin {
            Some((path, remedy)) => Error::unusable(path, reason, remedy.clone()),
            None => Error::unusable(Path::new("(a table in memory)"), reason, "report this as a bug"),
        }
    }
}

/// The hashes of the columns' content in the file's metadata, which reveal a damaged file. A file of another program has none.
struct Checksums(Vec<KeyValue>);

impl Checksums {
    fn of<T>(reader: &ArrowReaderBuilder<T>) -> Self {
        Self(reader.metadata().file_metadata().key_value_metadata().cloned().unwrap_or_default())
    }

    fn check(&self, path: &Path, column: &str, content: &ColumnHasher, remedy: &str) -> Result<()> {
        let key = checksum_key(column);
        let stored = self.0.iter().find(|entry| entry.key == key).and_then(|entry| entry.value.as_deref());
        if stored.is_some_and(|stored| stored != content.finish()) {
            let reason = format!("its column `{column}` does not match its checksum");
            return Err(Error::damaged(path, reason, remedy));
        }
        Ok(())
    }
}

fn checksum_key(column: &str) -> String {
    format!("mp4sr.checksum.{column}")
}

/// Hashes a column row by row, so that its division into batches does not matter.
#[derive(Default)]
struct ColumnHasher(blake3::Hasher);

impl ColumnHasher {
    fn add(&mut self, array: &ArrayRef) {
        if let Some(numbers) = array.as_primitive_opt::<UInt32Type>() {
            self.0.update(bytemuck::cast_slice(numbers.values()));
        } else if let Some(numbers) = array.as_primitive_opt::<Float32Type>() {
            self.0.update(bytemuck::cast_slice(numbers.values()));
        } else if let Some(lists) = array.as_list_opt::<i32>() {
            for row in 0..lists.len() {
                let values = lists.value(row);
                self.0.update(&(values.len() as u64).to_le_bytes());
                self.add(&values);
            }
        } else if let Some(texts) = texts(array) {
            for text in texts {
                self.0.update(&(text.len() as u64).to_le_bytes()).update(text.as_bytes());
            }
        }
    }

    fn finish(&self) -> String {
        self.0.finalize().to_hex().to_string()
    }
}

/// Texts, or whole numbers as text; `None` if a value is missing or of another type.
fn ids(array: &ArrayRef) -> Option<Vec<String>> {
    if let DataType::Dictionary(_, values) = array.data_type() {
        return ids(&arrow_cast::cast(array, values).ok()?);
    }
    if array.data_type().is_integer() && array.null_count() == 0 {
        return texts(&arrow_cast::cast(array, &DataType::Utf8).ok()?);
    }
    texts(array)
}

/// Numbers, or dates and times as numbers of their unit; `None` if a value is missing, not finite or of another type.
fn times(array: &ArrayRef) -> Option<Vec<EventTime>> {
    let of_texts = |texts: Vec<String>| texts.iter().map(|text| EventTime::parse(text)).collect();
    if let Some(texts) = texts(array) {
        return of_texts(texts);
    }
    if array.data_type().is_floating() {
        let floats = arrow_cast::cast(array, &DataType::Float64).ok()?;
        let floats = floats.as_primitive_opt::<Float64Type>().filter(|a| a.null_count() == 0)?;
        let is_finite = floats.values().iter().all(|value| value.is_finite());
        return is_finite.then(|| floats.values().iter().map(|value| EventTime::of_float(*value)).collect());
    }
    let numbers = match array.data_type() {
        kind if kind.is_numeric() => array.clone(),
        DataType::Date32 => arrow_cast::cast(array, &DataType::Int32).ok()?,
        kind if kind.is_temporal() => arrow_cast::cast(array, &DataType::Int64).ok()?,
        _ => return None,
    };
    // A text keeps all digits of 64-bit integers and of decimals.
    of_texts(texts(&arrow_cast::cast(&numbers, &DataType::Utf8).ok()?)?)
}

fn texts(array: &ArrayRef) -> Option<Vec<String>> {
    let to_vec = |values: &mut dyn Iterator<Item = Option<&str>>| values.map(|v| v.map(str::to_owned)).collect();
    if let Some(a) = array.as_string_opt::<i32>() {
        return to_vec(&mut a.iter());
    }
    if let Some(a) = array.as_string_opt::<i64>() {
        return to_vec(&mut a.iter());
    }
    array.as_string_view_opt().and_then(|a| to_vec(&mut a.iter()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;

    #[test]
    fn a_table_round_trips_and_names_what_is_wrong() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.parquet");
        let scores = vec![vec![0.5, -1.0], vec![]];
        let table = Table::new(vec![
            ("n", Column::U32(vec![1, 2])),
            ("x", Column::F32(vec![0.25, f32::MAX])),
            ("scores", Column::F32s(scores.clone())),
        ]);
        table.write(&path).unwrap();
        let mut read = Table::read(&path, "make it again").unwrap();
        assert_eq!(read.take_u32("n").unwrap(), [1, 2]);
        assert_eq!(read.take_f32s("scores").unwrap(), scores);
        let message = read.take_text("x").unwrap_err().to_string();
        assert!(message.contains("t.parquet") && message.contains("expected text, found Float32"), "{message}");
        assert!(read.take_u32("n").unwrap_err().to_string().contains("column `n` is missing"));
    }

    #[test]
    fn ids_may_be_categories_and_missing_ones_in_lists_are_named() {
        use arrow_array::types::Int32Type;
        use arrow_array::{DictionaryArray, ListArray};
        let of = |array: ArrayRef| Table { columns: vec![("h".to_owned(), array)], source: None, origin: None };
        let categories: DictionaryArray<Int32Type> = ["b", "a", "b"].into_iter().collect();
        assert_eq!(of(Arc::new(categories)).take_ids("h").unwrap(), ["b", "a", "b"]);
        let lists = ListArray::from_iter_primitive::<Int32Type, _, _>([Some(vec![Some(7), None]), Some(vec![Some(8)])]);
        let message = of(Arc::new(lists)).take_id_lists("h").unwrap_err().to_string();
        assert!(message.contains("with 1 missing values"), "{message}");
    }

    #[test]
    fn times_of_every_type_keep_their_order() {
        use arrow_array::{Date32Array, Float64Array, Int64Array, TimestampMillisecondArray};
        let of = |array: ArrayRef| {
            Table { columns: vec![("t".to_owned(), array)], source: None, origin: None }.take_times("t")
        };
        let cases: [ArrayRef; 6] = [
            Arc::new(Int64Array::from(vec![20, 3])),
            Arc::new(Int64Array::from(vec![20_240_101_120_000_002, 20_240_101_120_000_001])),
            Arc::new(Float64Array::from(vec![4.5, -1.0])),
            Arc::new(TimestampMillisecondArray::from(vec![1_500_000_000_000, 1_400_000_000_000])),
            Arc::new(Date32Array::from(vec![17_000, 16_000])),
            Arc::new(StringArray::from(vec!["20", " 3.5"])),
        ];
        for array in cases {
            let times = of(array.clone()).unwrap();
            assert!(times[0] > times[1], "{:?}: {times:?}", array.data_type());
        }
        for array in [
            Arc::new(Int64Array::from(vec![Some(1), None])) as ArrayRef,
            Arc::new(Float64Array::from(vec![f64::NAN])),
            Arc::new(StringArray::from(vec!["noon"])),
        ] {
            let message = of(array).unwrap_err().to_string();
            assert!(message.contains("`t`: expected a finite number, a date or a time in every row"), "{message}");
        }
    }

    #[test]
    fn a_truncated_table_is_refused_with_its_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.parquet");
        Table::new(vec![("n", Column::U32((0..1000).collect()))]).write(&path).unwrap();
        let bytes = files::read(&path).unwrap();
        files::write_bytes(&path, &bytes[..bytes.len() / 2]).unwrap();
        let message = Table::read(&path, "make it again").unwrap_err().to_string();
        assert!(message.contains("t.parquet") && message.ends_with("make it again"), "{message}");
    }
    #[test]
    fn no_flipped_bit_of_a_footer_makes_a_reader_panic() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.parquet");
        let names: Vec<Vec<String>> = (0..40).map(|row| vec![format!("name {}", row % 7); row % 3]).collect();
        let table = Table::new(vec![
            ("n", Column::U32((0..40).collect())),
            ("x", Column::F32(vec![0.5; 40])),
            ("id", Column::Text((0..40).map(|row| format!("id {row}")).collect())),
            ("names", Column::Texts(names)),
        ]);
        table.write(&path).unwrap();
        let whole = files::read(&path).unwrap();
        let footer = u32::from_le_bytes(*whole[..whole.len() - 4].last_chunk().unwrap()) as usize;
        // The bytes are changed in place, because rewriting the file for each change would take most of the time.
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        let mut refused = 0;
        for at in whole.len() - 8 - footer..whole.len() {
            for bit in 0..8 {
                file.write_all_at(&[whole[at] ^ 1 << bit], at as u64).unwrap();
                let names = Table::each_of_texts(&path, "names", "make it again", |_| ControlFlow::Continue(()));
                for message in [Table::read(&path, "make it again").err(), names.err()].into_iter().flatten() {
                    let message = message.to_string();
                    assert!(message.contains("t.parquet") && message.ends_with("make it again"), "{message}");
                    refused += 1;
                }
            }
            file.write_all_at(&whole[at..=at], at as u64).unwrap();
        }
        assert!(refused > 1000, "{refused} of {footer} bytes");
    }
}
