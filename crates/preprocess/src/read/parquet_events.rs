//! Interactions of a Parquet file, read by polars.

use std::borrow::Cow;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::mpsc::sync_channel;
use std::thread;

use mp4sr_artifact::{files, guarded, open_parquet};
use mp4sr_pipeline::Bar;
use parquet::file::metadata::{ParquetMetaData, RowGroupMetaData};
use parquet::file::reader::{FileReader as _, SerializedFileReader};
use polars::prelude::*;
use serde_json::Number;

use super::RawCell;
use super::parquet_rows::{damaged, index_of};
use crate::rejects::{Fault, excerpt};
use crate::{Error, Result};

/// The number of rows that are held at once.
const CHUNK: usize = 1 << 17;
/// Names that cannot clash with those of the file's own columns, which are kept beside them.
const PARTS: [&str; 3] = ["\u{0}user", "\u{0}item", "\u{0}time"];

/// The names of the columns that make an event.
#[derive(Clone, Copy, Debug)]
pub struct EventColumns<'a> {
    /// User id.
    pub user: &'a str,
    /// Item id: the first of these columns that has a value in the row.
    pub item: &'a [String],
    /// Time or position; empty if there is none.
    pub time: &'a str,
    /// Further columns.
    pub named: &'a [String],
}

/// Some rows of a file.
#[derive(Debug)]
pub struct EventRows {
    /// The number of the first row, from 1.
    pub first: u64,
    parts: [ColumnPart; 3],
    /// The further columns, with their own types.
    pub named: DataFrame,
}

/// A column in the format that the cells of an event need.
#[derive(Debug)]
enum ColumnPart {
    Text(StringChunked),
    Bytes(BinaryChunked),
    Whole(Int64Chunked),
    Unsigned(UInt64Chunked),
    Fraction(Float64Chunked),
}

impl EventRows {
    /// The number of rows.
    pub fn len(&self) -> usize {
        match &self.parts[0] {
            ColumnPart::Text(cells) => cells.len(),
            ColumnPart::Bytes(cells) => cells.len(),
            ColumnPart::Whole(cells) => cells.len(),
            ColumnPart::Unsigned(cells) => cells.len(),
            ColumnPart::Fraction(cells) => cells.len(),
        }
    }

    /// The user, time and item of a row, or why one of them cannot be read.
    pub fn cells(&self, row: usize) -> std::result::Result<[RawCell<'_>; 3], Fault> {
        let [user, item, time] = &self.parts;
        Ok([user.cell(row)?, time.cell(row)?, item.cell(row)?])
    }
}

impl ColumnPart {
    fn new(column: &Column) -> PolarsResult<Self> {
        Ok(match column.dtype() {
            DataType::Binary => Self::Bytes(column.binary()?.clone()),
            DataType::Int64 => Self::Whole(column.i64()?.clone()),
            DataType::UInt64 => Self::Unsigned(column.u64()?.clone()),
            DataType::Float64 => Self::Fraction(column.f64()?.clone()),
            _ => Self::Text(column.str()?.clone()),
        })
    }

    fn cell(&self, row: usize) -> std::result::Result<RawCell<'_>, Fault> {
        let number = |number: Option<Number>| number.map_or(RawCell::Missing, |n| RawCell::Json(n.into()));
        Ok(match self {
            Self::Text(cells) => cells.get(row).map_or(RawCell::Missing, |text| RawCell::Text(Cow::Borrowed(text))),
            Self::Bytes(cells) => match cells.get(row).map(std::str::from_utf8) {
                None => RawCell::Missing,
                Some(Ok(text)) => RawCell::Text(Cow::Borrowed(text)),
                Some(Err(_)) => {
                    let shown = String::from_utf8_lossy(cells.get(row).unwrap_or_default()).into_owned();
                    return Err(Fault::new("invalid UTF-8", shown));
                }
            },
            Self::Whole(cells) => number(cells.get(row).map(Number::from)),
            Self::Unsigned(cells) => number(cells.get(row).map(Number::from)),
            // NaN counts as a missing value.
            Self::Fraction(cells) => number(cells.get(row).and_then(Number::from_f64)),
        })
    }
}

/// The names of the columns of a file.
pub fn columns(path: &Path) -> Result<Vec<String>> {
    let builder = open_parquet(files::open(path)?).map_err(|e| damaged(path, &e))?;
    Ok(builder.schema().fields().iter().map(|field| field.name().clone()).collect())
}

/// Whether polars can read the events of a file. It has no decimals of 256 bits, and panics on time zones that are offsets, such as
/// `+05:30`. If the items are lists, each row is a sequence, which is read by rows.
pub fn is_known(path: &Path, items: &[String]) -> Result<bool> {
    let footer = open_parquet(files::open(path)?).map_err(|e| damaged(path, &e))?;
    if footer.schema().fields().iter().any(|field| matches!(field.data_type(), arrow_schema::DataType::Decimal256(..)))
    {
        return Ok(false);
    }
    match guarded(|| schema(path)) {
        Ok(schema) => {
            let schema = schema?;
            let is_list = |item: &String| schema.get(item.as_str()).is_some_and(DataType::is_nested);
            Ok(!items.iter().any(is_list))
        }
        Err(_) => Ok(false),
    }
}

/// What the type of a column of times says about its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeType {
    /// Unix time, with this number of decimal digits of a second.
    Unix(u8),
    /// The type determines nothing: numbers and texts have their own notation.
    Other,
}

/// What the type of a time column says, in a file that polars can read.
pub fn time_type(path: &Path, name: &str) -> Result<TimeType> {
    let schema = schema(path)?;
    Ok(match schema.get(name) {
        Some(DataType::Date) => TimeType::Unix(0),
        Some(DataType::Datetime(TimeUnit::Milliseconds, _)) => TimeType::Unix(3),
        Some(DataType::Datetime(TimeUnit::Microseconds, _)) => TimeType::Unix(6),
        Some(DataType::Datetime(TimeUnit::Nanoseconds, _)) => TimeType::Unix(9),
        _ => TimeType::Other,
    })
}

/// Passes the rows of a file to `visit`, in chunks and in order. A column whose type has no meaning is refused before the first row.
pub fn for_each(
    path: &Path,
    columns: EventColumns<'_>,
    bar: &Bar,
    visit: &mut dyn FnMut(EventRows) -> Result<()>,
) -> Result<()> {
    let schema = guarded(|| schema(path)).map_err(|_| damaged(path, "its metadata is inconsistent"))??;
    check_pages(path)?;
    let footer = open_parquet(files::open(path)?).map_err(|e| damaged(path, &e))?;
    for name in columns.item.iter().map(String::as_str).chain([columns.user, columns.time]) {
        index_of(path, footer.schema(), name, true)?;
    }
    let [user, item, time] = PARTS;
    let mut wanted = vec![
        id(path, &schema, columns.user)?.alias(user),
        items(path, &schema, columns.item)?.alias(item),
        if columns.time.is_empty() {
            lit(0_i64).cast(DataType::Int64).alias(time)
        } else {
            clock(path, &schema, columns.time)?.alias(time)
        },
    ];
    wanted.extend(columns.named.iter().map(col));
    let query = scan(path)?.select(wanted);
    let bytes = path.metadata().map_or(0, |about| about.len());
    let rows = u64::try_from(footer.metadata().file_metadata().num_rows()).unwrap_or(0).max(1);

    thread::scope(|scope| {
        let (send, receive) = sync_channel(1);
        let to_us = PlanCallback::new(move |rows: DataFrame| Ok(send.send(rows).is_err()));
        let read = scope.spawn(move || {
            query
                .sink_batches(to_us, true, NonZeroUsize::new(CHUNK))?
                .collect_with_engine(Engine::Streaming)
                .map(|_| ())
        });
        let mut first = 1;
        for mut named in receive {
            let mut part = |name: &str| named.drop_in_place(name).and_then(|column| ColumnPart::new(&column));
            let parts = [part(user), part(item), part(time)].into_iter().collect::<PolarsResult<Vec<_>>>()?;
            let parts = parts.try_into().map_err(|_| Error::bug("three columns make an event"))?;
            let rows_here = EventRows { first, parts, named: as_in_conditions(path, first, named)? };
            let count = rows_here.len() as u64;
            visit(rows_here)?;
            first += count;
            bar.add(bytes * count / rows);
        }
        match read.join() {
            Ok(outcome) => outcome.map_err(|e| damaged(path, &e.to_string())),
            Err(_) => Err(damaged(path, "its metadata is inconsistent")),
        }
    })
}

/// Converts columns to the types in which conditions compute: whole numbers of 64 bits, text, and times in UTC. Numbers that are not
/// finite and blank text count as missing values, as in files of text.
fn as_in_conditions(path: &Path, first: u64, named: DataFrame) -> Result<DataFrame> {
    for column in named.columns().iter().filter(|column| column.dtype() == &DataType::Binary) {
        let cells = column.binary()?;
        let is_invalid = |cell: Option<&[u8]>| cell.is_some_and(|bytes| std::str::from_utf8(bytes).is_err());
        if let Some(at) = cells.iter().position(is_invalid) {
            let (name, row) = (column.name(), first + at as u64);
            return Err(Error::raw(
                path,
                format!(
                    "has invalid UTF-8 in `{name}` in row {row}, so it cannot be in a condition; name another column"
                ),
            ));
        }
    }
    let converted = |column: &Column| {
        let (name, kind) = (column.name(), column.dtype());
        let cells = col(name.clone());
        match kind {
            DataType::String | DataType::Binary | DataType::Categorical(..) | DataType::Enum(..) => {
                let text = cells.cast(DataType::String).str().strip_chars(lit(NULL));
                when(text.clone().eq(lit(""))).then(lit(NULL)).otherwise(text).alias(name.clone())
            }
            DataType::Datetime(unit, Some(_)) => cells.to_physical().cast(DataType::Datetime(*unit, None)),
            kind if kind.is_float() => when(cells.clone().is_finite()).then(cells).otherwise(lit(NULL)),
            kind if kind.is_integer() && kind != &DataType::UInt64 => cells.strict_cast(DataType::Int64),
            _ => cells,
        }
    };
    let columns: Vec<Expr> = named.columns().iter().map(converted).collect();
    if columns.is_empty() { Ok(named) } else { Ok(named.lazy().select(columns).collect()?) }
}

fn scan(path: &Path) -> Result<LazyFrame> {
    let text = path.to_str().ok_or_else(|| Error::raw(path, "has a name that is not UTF-8; rename it"))?;
    // Stars and brackets in a file's name are not wildcards.
    let args = ScanArgsParquet { glob: false, ..ScanArgsParquet::default() };
    LazyFrame::scan_parquet(text.into(), args).map_err(|e| damaged(path, &e.to_string()))
}

fn schema(path: &Path) -> Result<SchemaRef> {
    let footer = open_parquet(files::open(path)?).map_err(|e| damaged(path, &e))?;
    check_footer(footer.metadata(), path.metadata().map_or(0, |about| about.len())).map_err(|e| damaged(path, &e))?;
    scan(path)?.collect_schema().map_err(|e| damaged(path, &e.to_string()))
}

/// No codec compresses a column by more than this factor.
const MOST_COMPRESSED: u64 = 1 << 20;

/// Checks whether the numbers in a footer are possible in a file of `bytes` bytes, because polars trusts them and allocates memory
/// accordingly.
fn check_footer(footer: &ParquetMetaData, bytes: u64) -> std::result::Result<(), String> {
    let rows: i64 = footer.row_groups().iter().map(RowGroupMetaData::num_rows).fold(0, i64::saturating_add);
    if rows != footer.file_metadata().num_rows() {
        return Err(format!(
            "its row groups have {rows} rows, and its footer states {}",
            footer.file_metadata().num_rows()
        ));
    }
    for group in footer.row_groups() {
        for column in group.columns() {
            let name = column.column_path().string();
            if column.column_descr().max_rep_level() == 0 && column.num_values() != group.num_rows() {
                return Err(format!("`{name}` has {} values for {} rows", column.num_values(), group.num_rows()));
            }
            let (start, length) = column.byte_range();
            if start.checked_add(length).is_none_or(|end| end > bytes) {
                return Err(format!("`{name}` is outside the file"));
            }
            let size = u64::try_from(column.uncompressed_size()).unwrap_or(u64::MAX);
            if size / MOST_COMPRESSED > length {
                return Err(format!("`{name}` takes {length} bytes, and its footer states {size} without compression"));
            }
        }
    }
    Ok(())
}

/// Checks whether the numbers of values in the page headers add up to those of the footer. polars would use a wrong number as the size of
/// an allocation.
fn check_pages(path: &Path) -> Result<()> {
    let file = files::open(path)?;
    let added_up = || -> parquet::errors::Result<Option<String>> {
        let reader = SerializedFileReader::new(file)?;
        for group in 0..reader.num_row_groups() {
            let group = reader.get_row_group(group)?;
            for (at, column) in group.metadata().columns().iter().enumerate() {
                let (mut pages, mut values) = (group.get_column_page_reader(at)?, 0_usize);
                while let Some(page) = pages.peek_next_page()? {
                    values = values.saturating_add(page.num_levels.unwrap_or(0));
                    pages.skip_next_page()?;
                }
                if i64::try_from(values) != Ok(column.num_values()) {
                    return Ok(Some(column.column_path().string()));
                }
            }
        }
        Ok(None)
    };
    match guarded(added_up) {
        Ok(Ok(None)) => Ok(()),
        Ok(Ok(Some(name))) => Err(damaged(
            path,
            &format!("the pages of `{name}` have a different number of values than the footer states"),
        )),
        Ok(Err(error)) => Err(damaged(path, &error.to_string())),
        Err(_) => Err(damaged(path, "its metadata is inconsistent")),
    }
}

fn type_of<'s>(path: &Path, schema: &'s Schema, name: &str) -> Result<&'s DataType> {
    schema.get(name).ok_or_else(|| {
        let known = schema.iter_names().map(PlSmallStr::as_str).collect::<Vec<_>>().join(", ");
        Error::raw(path, format!("has no column `{name}`; it has {}; correct `[source.columns]`", excerpt(&known)))
    })
}

fn refuse(path: &Path, name: &str, kind: &DataType, expected: &str) -> Error {
    Error::raw(
        path,
        format!("has `{name}` of type {kind}, expected {expected}; convert the column, or name another one"),
    )
}

/// An id as text, or as bytes that should be text.
fn id(path: &Path, schema: &Schema, name: &str) -> Result<Expr> {
    let kind = type_of(path, schema, name)?;
    match kind {
        DataType::String | DataType::Binary => Ok(col(name)),
        DataType::Categorical(..) | DataType::Enum(..) | DataType::Decimal(_, 0) => {
            Ok(col(name).cast(DataType::String))
        }
        kind if kind.is_integer() => Ok(col(name).cast(DataType::String)),
        kind => Err(refuse(path, name, kind, "text or a whole number")),
    }
}

/// The first of several ids that a row has.
fn items(path: &Path, schema: &Schema, names: &[String]) -> Result<Expr> {
    let mut found = names.iter().filter(|name| schema.contains(name));
    let first = id(path, schema, found.next().unwrap_or(&names[0]))?;
    let others = found.map(|name| id(path, schema, name).map(|other| other.cast(DataType::String)));
    let mut all = others.collect::<Result<Vec<_>>>()?;
    if all.is_empty() {
        return Ok(first);
    }
    all.insert(0, first.cast(DataType::String));
    Ok(coalesce(&all))
}

/// A time as a number, in the unit of its type if it has one ([`time_type`]), or as text.
fn clock(path: &Path, schema: &Schema, name: &str) -> Result<Expr> {
    let kind = type_of(path, schema, name)?;
    match kind {
        DataType::String | DataType::Binary | DataType::UInt64 | DataType::Float64 => Ok(col(name)),
        DataType::Categorical(..) | DataType::Enum(..) => Ok(col(name).cast(DataType::String)),
        DataType::Date => Ok(col(name).to_physical().cast(DataType::Int64) * lit(86_400_i64)),
        DataType::Datetime(..) => Ok(col(name).to_physical().cast(DataType::Int64)),
        kind if kind.is_float() => Ok(col(name).cast(DataType::Float64)),
        // Text keeps all digits of a decimal.
        kind if kind.is_decimal() => Ok(col(name).cast(DataType::String)),
        kind if kind.is_integer() && !matches!(kind, DataType::Int128) => Ok(col(name).cast(DataType::Int64)),
        kind => Err(refuse(path, name, kind, "a date, a time, a number or text")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &Path) {
        let mut events = df!(
            "user_id" => ["007", "8", "7"], "item_id" => [-5_i64, 6, 7], "timestamp" => [1_i64, 2, 3],
            "rating" => [Some(1.5), None, Some(2.0)],
        )
        .unwrap();
        crate::partitions::write(path, &mut events).unwrap();
    }

    fn read(path: &Path) -> Result<Vec<String>> {
        let named = ["rating".to_owned()];
        let columns = EventColumns { user: "user_id", item: &["item_id".to_owned()], time: "timestamp", named: &named };
        let mut rows = Vec::new();
        for_each(path, columns, &mp4sr_pipeline::Progress::new(true).bytes("test", 0), &mut |some| {
            for row in 0..some.len() {
                let shown = |cells: [RawCell<'_>; 3]| cells.map(|cell| cell.shown()).join("|");
                let cells = some.cells(row).map_or_else(|fault| fault.reason.into_owned(), shown);
                rows.push(format!("{}: {cells}", some.first + row as u64));
            }
            Ok(())
        })?;
        Ok(rows)
    }

    #[test]
    fn rows_come_in_order_with_their_numbers() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("e[1]*.parquet");
        write(&path);
        assert_eq!(read(&path).unwrap(), ["1: 007|1|-5", "2: 8|2|6", "3: 7|3|7"]);
    }

    #[test]
    fn a_flipped_bit_anywhere_gives_rows_or_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("e.parquet");
        write(&path);
        let whole = std::fs::read(&path).unwrap();
        let mut refused = 0;
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1 << (at % 8);
            std::fs::write(&path, &damaged).unwrap();
            if let Err(error) = read(&path) {
                let message = error.to_string();
                assert!(message.contains("e.parquet") && message.contains(';'), "{at}: {message}");
                refused += 1;
            }
        }
        assert!(refused > 200, "{refused} of {} bytes", whole.len());
    }
}
