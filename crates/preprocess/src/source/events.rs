//! Reads the interactions of raw files as numbers.

use std::borrow::Cow;
use std::num::NonZeroU64;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::thread::{self, ScopedJoinHandle};

use mp4sr_artifact::{EventsRead, FileCount, Rejects, TimeKind};
use mp4sr_pipeline::Progress;
use polars::prelude::{BooleanChunked, DataFrame, IntoLazy as _, NewChunkedArray as _};
use serde_json::Value;

use super::clock::{Notation, TimeSetting};
use super::ids::{NumberedIds, Numbering, number_all};
use super::named::{NamedColumns, NamedFrame};
use super::values::id;
use super::{SourceFormat, times::Times};
use crate::condition::Condition;
use crate::decimal::Decimal;
use crate::read::{
    EventColumns, FileFormat, RawCell, Shape, TimeType, columns, for_each_event_rows, for_each_row, holds_times,
    literal_of, polars_knows, sample, time_type,
};
use crate::rejects::{Fault, reject};
use crate::spill::{Chunks, MemoryLimit, Spill, events};
use crate::window::TimeScale;
use crate::{Error, Result};

/// The number of rows that are inspected to recognise the content of a file.
const SAMPLED: u64 = 1000;

/// Every accepted event, in input order. Ids are numbered in the order of their first event.
pub struct Events {
    pub user_ids: NumberedIds,
    pub item_ids: NumberedIds,
    /// The columns of [`crate::filters`].
    pub chunks: Chunks,
    /// The columns that the condition names, with their names in the files.
    pub named: NamedFrame,
    /// The names of all columns in the headers or first lines of the files, if there is a condition.
    pub known: Vec<String>,
    /// The unit and kind of the times.
    pub scale: TimeScale,
}

/// How many lines may be rejected, over all files.
#[derive(Debug)]
pub struct Budget {
    limit: u64,
    left: u64,
    /// The greatest share of the lines of interactions, and of those of items.
    share: f64,
}

impl Budget {
    pub fn new(limit: u64, share: f64) -> Self {
        Self { limit, left: limit, share }
    }

    /// Refuses files of which too large a share was rejected: their format is probably another one than was assumed.
    pub fn check_share(&self, files: &[FileCount], rejected: &Rejects) -> Result<()> {
        let (total, lines) = (rejected.total(), files.iter().map(|file| file.lines).sum::<u64>());
        match rejected.most_frequent() {
            Some((reason, count)) if total as f64 > self.share * lines as f64 => Err(Error::TooLargeShare {
                path: files[0].file.clone(),
                others: files.len() - 1,
                total,
                lines,
                count,
                reason: reason.to_owned(),
                share: self.share,
            }),
            _ => Ok(()),
        }
    }

    fn spend(&mut self, path: &Path, line: u64, reason: &str) -> Result<()> {
        self.left = self.left.checked_sub(1).ok_or_else(|| Error::TooManyBadLines {
            limit: self.limit,
            path: path.to_owned(),
            line,
            reason: reason.to_owned(),
        })?;
        Ok(())
    }
}

/// Uses a row, or returns why it cannot be used.
pub type Visit<'t> = dyn FnMut(u64, &[RawCell<'_>]) -> Result<std::result::Result<(), Fault>> + 't;

/// A file and which fields of it are read.
#[derive(Clone, Copy)]
pub struct FileReading<'f> {
    pub path: &'f Path,
    pub format: &'f FileFormat,
    pub fields: &'f [&'f str],
    /// The maximum number of rows that are read; `None` means all.
    pub limit: Option<u64>,
}

/// Reads all rows of a file; those that `visit` refuses are rejected like unreadable ones.
pub fn read_file(
    file: FileReading<'_>,
    rejected: &mut Rejects,
    budget: &mut Budget,
    progress: &Progress,
    visit: &mut Visit<'_>,
) -> Result<FileCount> {
    let FileReading { path, format, fields, limit } = file;
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let bar = progress.bytes(&name, path.metadata().map_or(0, |about| about.len()));
    let mut count = FileCount { file: path.to_owned(), ..FileCount::default() };
    for_each_row(path, format, fields, limit, &bar, &mut |(line, row)| {
        count.lines += 1;
        let outcome = match row {
            Ok(cells) => visit(line, cells)?,
            Err(fault) => Err(fault),
        };
        match outcome {
            Ok(()) => count.accepted += 1,
            Err(fault) => {
                count.rejected += 1;
                let reason = fault.reason.clone();
                reject(rejected, path, line, fault);
                budget.spend(path, line, &reason)?;
            }
        }
        Ok(())
    })?;
    Ok(count)
}

/// The format of a file with the dialect of its first lines, which is reported if it differs from what the name implies.
pub fn resolved(path: &Path, format: &FileFormat, fields: &[&str], progress: &Progress) -> Result<FileFormat> {
    let (format, notice) = format.resolved(path, fields)?;
    if let Some(notice) = notice {
        progress.log(format!("preprocess: {notice}"));
    }
    Ok(format)
}

/// How a file of interactions is read.
struct EventFile {
    format: FileFormat,
    /// Whether polars reads it.
    by_polars: bool,
    notation: Notation,
    /// Whether text cells contain lists of items.
    has_lists: bool,
}

impl EventFile {
    fn new(
        path: &Path,
        format: &SourceFormat,
        fields: &[&str],
        limit: Option<u64>,
        progress: &Progress,
    ) -> Result<Self> {
        let file = resolved(path, &format.file(path, false)?, fields, progress)?;
        // polars reads whole files and one event per row, whereas reading by rows can stop at the limit and divides sequences.
        let is_whole = limit.is_none() && format.item_separator.is_empty();
        let by_polars = file.shape == Shape::Parquet && is_whole && polars_knows(path, &format.item)?;
        let notation = notation(path, format, &file, by_polars)?;
        let has_lists =
            format.item_separator.is_empty() && file.shape != Shape::Parquet && holds_lists(path, format, &file)?;
        if has_lists {
            progress.log(format!(
                "preprocess: `{}` of `{}` contains lists: each line is a sequence of events",
                format.item[0],
                path.display()
            ));
        }
        Ok(Self { format: file, by_polars, notation, has_lists })
    }
}

/// How times of a file are written.
fn notation(path: &Path, format: &SourceFormat, file: &FileFormat, by_polars: bool) -> Result<Notation> {
    let TimeSetting::Known(known) = &format.clock else {
        if by_polars && let TimeType::Unix(digits) = time_type(path, &format.time)? {
            return Ok(Notation::Typed(digits));
        }
        let comma = file.dialect.decimal_comma;
        let mut cells = sample(path, file, &format.time, SAMPLED)?;
        let whole = Notation::recognised(&cells, comma);
        let filled = cells.iter().filter(|cell| !cell.is_blank());
        let reads_most = |notation: &Notation| {
            let read = filled.clone().filter(|cell| whole_time(notation, &format.time, cell, comma).is_some());
            read.count() * 2 > filled.clone().count()
        };
        // The separator of items may occur within one time, such as the blank before a time of day.
        if !matches!(&whole, Ok(Some(notation)) if reads_most(notation)) {
            cells = cells.into_iter().flat_map(|cell| times_of(&cell, format).unwrap_or_else(|| vec![cell])).collect();
        }
        let recognised = Notation::recognised(&cells, comma);
        let recognised = recognised.map_err(|problem| {
            Error::raw(
                path,
                format!(
                    "has times in `{}` whose notation cannot be determined: {problem}; see `source.time`",
                    format.time
                ),
            )
        })?;
        return Ok(recognised.unwrap_or(Notation::Unix(0)));
    };
    if known.is_position() || file.shape != Shape::Parquet {
        return Ok(known.clone());
    }
    // The type of a column is certain, whatever the key says. Rows have times as text.
    if by_polars && let TimeType::Unix(digits) = time_type(path, &format.time)? {
        return Ok(Notation::Typed(digits));
    }
    if !by_polars && holds_times(path, &format.time)? {
        return Ok(Notation::Iso);
    }
    Ok(known.clone())
}

/// Whether the items of a file are lists that are written as text.
fn holds_lists(path: &Path, format: &SourceFormat, file: &FileFormat) -> Result<bool> {
    if !format.has_named_columns() {
        return Ok(false);
    }
    let cells = sample(path, file, &format.item[0], SAMPLED)?;
    let mut texts = cells.iter().filter(|cell| !cell.is_blank()).peekable();
    let is_list =
        |cell: &RawCell<'_>| matches!(cell, RawCell::Text(text) if matches!(literal_of(text), Some(Value::Array(_))));
    Ok(texts.peek().is_some() && texts.all(is_list))
}

/// The values of a cell that contains a sequence; `None` if it contains a single value.
fn times_of(cell: &RawCell<'_>, format: &SourceFormat) -> Option<Vec<RawCell<'static>>> {
    match cell {
        RawCell::Json(Value::Array(values)) => Some(values.iter().cloned().map(RawCell::of_json).collect()),
        RawCell::Text(text) if !format.item_separator.is_empty() && text.trim().contains(&format.item_separator) => {
            Some(parts(text, &format.item_separator).map(|part| RawCell::Text(Cow::Owned(part.to_owned()))).collect())
        }
        RawCell::Text(text) => match literal_of(text) {
            Some(Value::Array(values)) => Some(values.into_iter().map(RawCell::of_json).collect()),
            _ => None,
        },
        _ => None,
    }
}

/// Reads the whole text of a cell as one time; `None` if it is not a time, or if it is a number with a comma, which may also be two numbers.
fn whole_time(notation: &Notation, field: &str, cell: &RawCell<'_>, comma: bool) -> Option<Decimal> {
    let is_number = comma && cell.decimal(comma).is_some();
    notation.read(field, cell, comma).ok().filter(|_| !is_number)
}

/// The parts of a cell. If the separator is a blank, any number of blanks is one separator.
fn parts<'t>(text: &'t str, separator: &str) -> impl Iterator<Item = &'t str> {
    let blank = separator.trim().is_empty();
    text.trim()
        .split(separator.to_owned().as_str())
        .map(str::trim)
        .filter(move |part| !(blank && part.is_empty()))
        .collect::<Vec<_>>()
        .into_iter()
}

impl Events {
    /// Reads the files of interactions, one after the other, with the columns that `condition` names. Events beyond `memory` are written to
    /// disk. With a `limit`, only that many rows of each file are read.
    pub fn read(
        paths: &[PathBuf],
        format: &SourceFormat,
        condition: Option<&Condition>,
        memory: Option<&MemoryLimit>,
        limit: Option<u64>,
        budget: &mut Budget,
        progress: &Progress,
    ) -> Result<(Self, EventsRead)> {
        let names = condition.map(Condition::columns).unwrap_or_default();
        let (fields, indices) = fields(format, &names);
        // Fields of the condition are not checked here: JSON fields may first occur late in a file, and the condition reports them better.
        let of_event = &fields[..2 + format.item.len()];
        let files = paths
            .iter()
            .map(|path| EventFile::new(path, format, of_event, limit, progress))
            .collect::<Result<Vec<EventFile>>>()?;
        let known = condition.map(|condition| known_columns(paths, &files, condition)).transpose()?.unwrap_or_default();
        let recognised = format.clock == TimeSetting::Recognised;
        let mut times = Vec::new();
        for (path, file) in paths.iter().zip(&files).filter(|_| recognised) {
            let reported =
                format!("`{}` of `{}` is read as {}", format.time, path.display(), file.notation.described());
            progress.log(format!("preprocess: {reported}"));
            times.push(reported);
        }
        let named = NamedColumns::new(&names, files.iter().all(|file| file.by_polars));
        let [user_ids, item_ids] = [NumberedIds::new(memory, "users")?, NumberedIds::new(memory, "items")?];
        // Numbering ids waits for memory about as long as reading lines takes, so each has its own threads.
        let (read, users, items) = thread::scope(|scope| {
            let (to_users, requests) = Numbering::new();
            let users = scope.spawn(move || number_all(requests, user_ids));
            let (to_items, requests) = Numbering::new();
            let items = scope.spawn(move || number_all(requests, item_ids));
            let spill = memory.map(|limit| Spill::new(limit.clone()));
            let sink = EventSink {
                format,
                users: [format.user.clone()],
                user_ids: to_users,
                item_ids: to_items,
                times: Times::default(),
                count: 0,
                named,
                spill,
            };
            let plan = ReadingPlan { paths, files: &files, fields: &fields, indices: &indices, names: &names, limit };
            let read = read_events(plan, budget, progress, sink);
            (read, join(users), join(items))
        });
        // If numbering stopped, its own error is the cause.
        let (user_ids, item_ids) = (users?, items?);
        let (mut read, held) = read?;
        read.times = times;
        if held.count == 0 {
            return Err(nothing_usable(&paths[0], format, &read.rejected));
        }
        budget.check_share(&read.files, &read.rejected)?;
        let mut units = files.iter().map(|file| file.notation.unit());
        let unit = units.next().flatten().filter(|unit| units.all(|other| other == Some(*unit)));
        let are_dates = files.iter().all(|file| file.notation.is_date());
        let kind = if are_dates { TimeKind::Seconds } else { format.clock.kind() };
        let scale = TimeScale { kind, unit, digits: held.digits };
        Ok((Self { user_ids, item_ids, chunks: held.chunks, named: held.named, known, scale }, read))
    }
}

/// The fields of an event and those that a condition names, and the positions of the latter. A column may be both.
fn fields<'f>(format: &'f SourceFormat, names: &'f [String]) -> (Vec<&'f str>, Vec<usize>) {
    let mut fields = vec![format.user.as_str(), format.time.as_str()];
    fields.extend(format.item.iter().map(String::as_str));
    let mut indices = Vec::with_capacity(names.len());
    for name in names {
        indices.push(fields.iter().position(|field| field == name).unwrap_or(fields.len()));
        if indices.last() == Some(&fields.len()) {
            fields.push(name);
        }
    }
    (fields, indices)
}

/// The error of files that gave no event.
fn nothing_usable(path: &Path, format: &SourceFormat, rejected: &Rejects) -> Error {
    let Some((reason, count)) = rejected.most_frequent() else {
        return Error::raw(
            path,
            "has no line after its header; fetch it again, or name another file in `source.interactions`",
        );
    };
    let of_time = !format.time.is_empty() && reason.starts_with(&format!("`{}` ", format.time));
    let remedy = if of_time {
        "times are Unix time in seconds, milliseconds, microseconds or nanoseconds, ISO 8601 dates such as `2018-09-30 12:00:00`, \
         or the notation that `source.time` names, such as \"ms\" or \"%d.%m.%Y\""
    } else if format.has_named_columns() {
        "correct the file, or name other columns in `[source.columns]`"
    } else {
        "is `source.format` the format of this file?"
    };
    let lines = rejected.total();
    Error::raw(
        path,
        format!("contains no event: {lines} lines were read and none could be used, {count} for: {reason}; {remedy}"),
    )
}

fn join<T>(numbered: ScopedJoinHandle<'_, T>) -> T {
    numbered.join().unwrap_or_else(|panic| resume_unwind(panic))
}

/// The columns of the files, by their headers or first lines. A condition that names a column that a table lacks is refused.
fn known_columns(paths: &[PathBuf], files: &[EventFile], condition: &Condition) -> Result<Vec<String>> {
    let mut known: Vec<String> = Vec::new();
    for (path, file) in paths.iter().zip(files) {
        let columns = columns(path, &file.format)?;
        // Fields of JSON may first occur late in a file.
        if file.format.shape != Shape::JsonLines {
            condition.check_columns(&columns, &path.display().to_string())?;
        }
        known.extend(columns.into_iter().filter(|column| !known.contains(column)).collect::<Vec<_>>());
    }
    Ok(known)
}

/// Collects the accepted events.
struct EventSink<'f> {
    format: &'f SourceFormat,
    users: [String; 1],
    user_ids: Numbering,
    item_ids: Numbering,
    times: Times,
    count: u64,
    named: NamedColumns,
    spill: Option<Spill>,
}

/// The events of all files.
struct HeldEvents {
    count: u64,
    chunks: Chunks,
    named: NamedFrame,
    digits: u8,
}

/// Items or times of a row.
enum Several<T> {
    One(T),
    Many(Vec<T>),
}

impl EventSink<'_> {
    /// Adds the events in the cells of a row: user, time, items. Returns their number.
    fn push(&mut self, cells: &[RawCell<'_>], file: &EventFile) -> Result<std::result::Result<u64, Fault>> {
        let read = id(&self.users, &cells[..1]).and_then(|user| Ok((user, items(self.format, file, &cells[2..])?)));
        let (user, items) = match read {
            Ok(read) => read,
            Err(fault) => return Ok(Err(fault)),
        };
        let times = match self.times_of(file, &cells[1], &items) {
            Ok(times) => times,
            Err(fault) => return Ok(Err(fault)),
        };
        // With the order of lines, the items of a sequence are ordered as in their line.
        let line_order = file.notation == Notation::LineOrder;
        let time_at = |at: usize, count: u64| match &times {
            _ if line_order => Decimal::whole(count as i64),
            Several::One(time) => *time,
            Several::Many(times) => times[at],
        };
        match &items {
            Several::One(item) => {
                self.event(&user, item, time_at(0, self.count))?;
                Ok(Ok(1))
            }
            Several::Many(items) => {
                for (at, item) in items.iter().enumerate() {
                    self.event(&user, item, time_at(at, self.count))?;
                }
                Ok(Ok(items.len() as u64))
            }
        }
    }

    /// The times of a row: one, or one per item if the row is a sequence.
    fn times_of(
        &self,
        file: &EventFile,
        cell: &RawCell<'_>,
        items: &Several<Cow<'_, str>>,
    ) -> std::result::Result<Several<Decimal>, Fault> {
        let (format, comma) = (self.format, file.format.dialect.decimal_comma);
        if file.notation == Notation::LineOrder {
            return Ok(Several::One(Decimal::whole(0)));
        }
        let read = |cell: &RawCell<'_>| file.notation.read(&format.time, cell, comma);
        let Several::Many(items) = items else { return read(cell).map(Several::One) };
        let Some(times) = times_of(cell, format) else { return read(cell).map(Several::One) };
        if let Some(time) = whole_time(&file.notation, &format.time, cell, comma) {
            return Ok(Several::One(time));
        }
        if times.len() != items.len() {
            return Err(Fault::new(
                format!("different numbers of values in `{}` and `{}`", format.time, format.item[0]),
                format!("{} and {}", times.len(), items.len()),
            ));
        }
        times.iter().map(read).collect::<std::result::Result<_, _>>().map(Several::Many)
    }

    fn event(&mut self, user: &str, item: &str, time: Decimal) -> Result<()> {
        // Numbers are 32 bits wide here and in the files.
        if self.count >= u64::from(u32::MAX) - 1 {
            return Err(Error::Setting(format!("more than {} events; split the data", u32::MAX - 1)));
        }
        self.times.push(&self.format.time, time)?;
        self.count += 1;
        self.user_ids.push(user);
        self.item_ids.push(item);
        Ok(())
    }

    /// Writes the events in memory to disk if there are enough for a chunk.
    fn spill_some(&mut self) -> Result<()> {
        match &self.spill {
            Some(spill) if self.times.len() >= spill.chunk() => self.spill_all(),
            _ => Ok(()),
        }
    }

    fn spill_all(&mut self) -> Result<()> {
        let digits = self.times.digits();
        let (events, named) = (self.take()?, self.named.take()?);
        self.spill.as_mut().map_or(Ok(()), |spill| spill.push(events, named, digits))
    }

    /// Takes the events in memory.
    fn take(&mut self) -> Result<DataFrame> {
        let stopped = || Error::bug("the thread that numbers ids has stopped");
        let users = self.user_ids.take().ok_or_else(stopped)?;
        let items = self.item_ids.take().ok_or_else(stopped)?;
        events(users, items, self.times.take())
    }

    fn finish(mut self) -> Result<HeldEvents> {
        // The last chunk of a file may just have been written.
        if self.spill.is_some() && self.times.len() > 0 {
            self.spill_all()?;
        }
        let digits = self.times.digits();
        let (chunks, named) = match self.spill {
            Some(spill) => {
                let has_columns = self.count > 0 && !self.named.is_empty();
                let named = if has_columns { self.named.finish(spill.named()?, true) } else { NamedFrame::default() };
                (Chunks::Disk(spill), named)
            }
            None => {
                let (events, cells) = (self.take()?, self.named.take()?);
                (Chunks::Memory(events), self.named.finish(cells.lazy(), false))
            }
        };
        Ok(HeldEvents { count: self.count, chunks, named, digits })
    }
}

/// The files to read, and what to read of them.
#[derive(Clone, Copy)]
struct ReadingPlan<'p> {
    paths: &'p [PathBuf],
    files: &'p [EventFile],
    fields: &'p [&'p str],
    /// The positions of the columns that a condition names.
    indices: &'p [usize],
    names: &'p [String],
    /// The number of rows that are read of each file; `None` means all.
    limit: Option<u64>,
}

/// Reads the lines of all files.
fn read_events(
    plan: ReadingPlan<'_>,
    budget: &mut Budget,
    progress: &Progress,
    mut sink: EventSink<'_>,
) -> Result<(EventsRead, HeldEvents)> {
    let mut read = EventsRead::default();
    let format = sink.format;
    let of_event = 2 + format.item.len();
    for (path, file) in plan.paths.iter().zip(plan.files) {
        if file.by_polars {
            let columns =
                EventColumns { user: &format.user, item: &format.item, time: &format.time, named: plan.names };
            read.files.push(read_parquet(path, file, columns, &mut read.rejected, budget, progress, &mut sink)?);
            continue;
        }
        let mut further = 0;
        let reading = FileReading { path, format: &file.format, fields: plan.fields, limit: plan.limit };
        sink.named.set_decimal_comma(file.format.dialect.decimal_comma);
        let mut count = read_file(reading, &mut read.rejected, budget, progress, &mut |line, cells| {
            let outcome = sink.push(&cells[..of_event], file)?;
            Ok(match outcome {
                Ok(events) => {
                    (0..events).for_each(|_| sink.named.push(cells, plan.indices, path, line));
                    further += events - 1;
                    sink.spill_some()?;
                    Ok(())
                }
                Err(fault) => Err(fault),
            })
        })?;
        count.further_events = NonZeroU64::new(further);
        read.files.push(count);
    }
    Ok((read, sink.finish()?))
}

/// Reads the rows of a Parquet file.
fn read_parquet(
    path: &Path,
    file: &EventFile,
    columns: EventColumns<'_>,
    rejected: &mut Rejects,
    budget: &mut Budget,
    progress: &Progress,
    sink: &mut EventSink<'_>,
) -> Result<FileCount> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let bar = progress.bytes(&name, path.metadata().map_or(0, |about| about.len()));
    let mut count = FileCount { file: path.to_owned(), ..FileCount::default() };
    for_each_event_rows(path, columns, &bar, &mut |rows| {
        let mut used = Vec::with_capacity(rows.len());
        for row in 0..rows.len() {
            count.lines += 1;
            let outcome = match rows.cells(row) {
                Ok(cells) => sink.push(&cells, file)?,
                Err(fault) => Err(fault),
            };
            used.push(outcome.is_ok());
            match outcome {
                Ok(_) => count.accepted += 1,
                Err(fault) => {
                    count.rejected += 1;
                    let (line, reason) = (rows.first + row as u64, fault.reason.clone());
                    reject(rejected, path, line, fault);
                    budget.spend(path, line, &reason)?;
                }
            }
        }
        if !columns.named.is_empty() {
            let used = BooleanChunked::from_slice("used".into(), &used);
            sink.named.extend(&rows.named, &used, path, rows.first)?;
        }
        sink.spill_some()
    })?;
    Ok(count)
}

/// The items in the cells of a row. The first cell that is not missing counts.
fn items<'c>(
    format: &SourceFormat,
    file: &EventFile,
    cells: &'c [RawCell<'_>],
) -> std::result::Result<Several<Cow<'c, str>>, Fault> {
    let separated = match cells.iter().find(|cell| !matches!(cell, RawCell::Missing)) {
        Some(RawCell::Json(Value::Array(values))) => Some(of_list(values.iter().cloned())),
        Some(RawCell::Text(text)) if !format.item_separator.is_empty() => {
            Some(parts(text, &format.item_separator).map(|part| RawCell::Text(Cow::Owned(part.to_owned()))).collect())
        }
        Some(RawCell::Text(text)) if file.has_lists => match literal_of(text) {
            Some(Value::Array(values)) => Some(of_list(values.into_iter())),
            _ => None,
        },
        _ => None,
    };
    let Some(separated) = separated else { return id(&format.item, cells).map(Several::One) };
    if separated.is_empty() {
        return Err(Fault::new(format!("empty `{}`", format.item[0]), ""));
    }
    let one = |cell: &RawCell<'static>| {
        id(&format.item[..1], std::slice::from_ref(cell)).map(|id| Cow::Owned(id.into_owned()))
    };
    separated.iter().map(one).collect::<std::result::Result<_, _>>().map(Several::Many)
}

fn of_list(values: impl Iterator<Item = Value>) -> Vec<RawCell<'static>> {
    values.map(RawCell::of_json).collect()
}

/// Counts the lines of a file of interactions, and those that are events, without keeping any. This is for the fuzz targets.
pub fn count(path: &Path, format: &SourceFormat) -> Result<(u64, u64)> {
    let fields = fields(format, &[]).0;
    let users = [format.user.clone()];
    let progress = Progress::new(true);
    let file = EventFile::new(path, format, &fields, None, &progress)?;
    let comma = file.format.dialect.decimal_comma;
    let mut visit = |_: u64, cells: &[RawCell<'_>]| {
        let read = id(&users, &cells[..1]).and_then(|_| items(format, &file, &cells[2..]));
        Ok(match read {
            Ok(Several::One(_)) if file.notation != Notation::LineOrder => {
                file.notation.read(&format.time, &cells[1], comma).map(|_| ())
            }
            read => read.map(|_| ()),
        })
    };
    let mut rejected = Rejects::default();
    let budget = &mut Budget::new(u64::MAX, 1.0);
    let reading = FileReading { path, format: &file.format, fields: &fields, limit: None };
    let count = read_file(reading, &mut rejected, budget, &progress, &mut visit)?;
    Ok((count.lines, count.accepted))
}

#[cfg(test)]
pub(crate) mod tests {
    use mp4sr_pipeline::config::{Columns, Format, Source};

    use super::*;

    /// The events in `content`, as `user item time`, and the reasons for rejected lines.
    fn read(source: &Source, name: &str, content: &str) -> Result<(Vec<String>, Vec<String>)> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        let (events, read) = Events::read(
            &[path],
            &SourceFormat::new(source)?,
            None,
            None,
            None,
            &mut Budget::new(3, 1.0),
            &Progress::new(true),
        )?;
        let Chunks::Memory(frame) = events.chunks else { panic!() };
        let names = |ids: NumberedIds| {
            let all = vec![true; ids.len()];
            ids.names_of(&all).unwrap()
        };
        let (users, items) = (names(events.user_ids), names(events.item_ids));
        let count = &read.files[0];
        assert_eq!(count.lines, count.accepted + count.rejected);
        assert_eq!(count.rejected, read.rejected.total());
        // A line with a sequence has several events.
        if source.columns.item_separator.is_empty() {
            assert_eq!(count.accepted, frame.height() as u64);
        }
        let shown = crate::dataset::rows(&frame)
            .unwrap()
            .map(|(user, item, time)| format!("{} {} {time}", users[user as usize], items[item as usize]));
        Ok((shown.collect(), read.rejected.0.into_keys().collect()))
    }

    fn of(format: Format) -> Source {
        Source { format, ..Source::default() }
    }

    #[test]
    fn amazon_of_each_year() {
        let old =
            "{\"reviewerID\": \"A1\", \"asin\": \"0001\", \"unixReviewTime\": 5}\n{\"asin\": \"0001\"}\n{\"reviewer";
        let expected = (vec!["A1 0001 5".to_owned()], vec!["broken JSON".to_owned(), "no `reviewerID`".to_owned()]);
        assert_eq!(read(&of(Format::Amazon2014), "r.json", old).unwrap(), expected);
        assert_eq!(read(&of(Format::Amazon2018), "r.json", old).unwrap(), expected);
        let new = "{\"user_id\": \"U\", \"asin\": \"B\", \"parent_asin\": \"P\", \"timestamp\": 1588615855070}\n\
                   {\"user_id\": \"U\", \"asin\": \"B\", \"timestamp\": 1588615855}\n\
                   {\"user_id\": \"U\", \"asin\": \"B\", \"timestamp\": 1588615855071}\n";
        let (events, reasons) = read(&of(Format::Amazon2023), "r.jsonl", new).unwrap();
        assert_eq!(events, ["U P 1588615855070", "U B 1588615855071"]);
        assert_eq!(reasons, ["`timestamp` is not a Unix time in milliseconds (seconds?)"]);
    }

    #[test]
    fn goodreads() {
        let line =
            "{\"user_id\": \"8842\", \"book_id\": \"0042\", \"date_added\": \"Fri Sep 08 10:44:24 -0700 2017\"}\n";
        assert_eq!(read(&of(Format::GoodReads), "g.json", line).unwrap().0, ["8842 0042 1504892664"]);
    }

    #[test]
    fn tables_by_column_names_with_a_clock_or_a_position() {
        let recbole = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t007\t3\t8.81250949e8\n";
        assert_eq!(read(&of(Format::RecBole), "ml.inter", recbole).unwrap().0, ["1 007 881250949"]);
        let columns = Columns { user: "who".into(), item: "what".into(), position: "n".into(), ..Columns::default() };
        let tabular = Source { format: Format::Tabular, columns, ..Source::default() };
        assert_eq!(read(&tabular, "a.csv", "n,what,who\n3,\"a,b\",x\n").unwrap().0, ["x a,b 3"]);
        assert_eq!(read(&tabular, "a.jsonl", "{\"who\": 1, \"what\": 2, \"n\": 0}\n").unwrap().0, ["1 2 0"]);
        assert_eq!(read(&tabular, "a.txt", "n|what|who\n3|a,b|x\n").unwrap().0, ["x a,b 3"]);
        let message = read(&tabular, "a.txt", "n,what,who\n").unwrap_err().to_string();
        assert!(message.contains("has no line after its header"), "{message}");
    }

    #[test]
    fn the_one_time_of_a_sequence_may_contain_the_separator_of_its_items() {
        let columns = Columns {
            user: "user".into(),
            item: "items".into(),
            time: "time".into(),
            item_separator: " ".into(),
            ..Columns::default()
        };
        let source = Source { format: Format::Tabular, columns, ..Source::default() };
        let rows = |time: &str| read(&source, "a.tsv", &format!("user\titems\ttime\nu\ta b\t{time}\n")).unwrap().0;
        assert_eq!(rows("1970-01-02 00:00:01"), ["u a 86401", "u b 86401"]);
        assert_eq!(rows("11/21/2019 9:05:58 AM"), ["u a 1574327158", "u b 1574327158"]);
        assert_eq!(rows("1600000000 1600000007"), ["u a 1600000000", "u b 1600000007"]);
    }

    #[test]
    fn too_many_bad_lines_stop_the_run_at_the_line_that_was_too_many() {
        let source = of(Format::Amazon2018);
        let message = read(&source, "r.json", "{\n{\n{\n{\n").unwrap_err().to_string();
        assert!(message.contains("allows 3,") && message.contains("line 4 of") && message.contains("r.json"));
        let message = read(&source, "r.json", "{\n[]\n{\n").unwrap_err().to_string();
        assert!(message.contains("3 lines were read and none could be used, 2 for: broken JSON"), "{message}");
    }
}
