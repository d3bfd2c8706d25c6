//! Interactions of raw files as numbers.

use std::borrow::Cow;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::thread::{self, ScopedJoinHandle};

use mp4sr_artifact::{EventsRead, FileCount, Rejects};
use mp4sr_pipeline::Progress;
use polars::prelude::{BooleanChunked, DataFrame, IntoLazy as _, NewChunkedArray as _};

use super::SourceForm;
use super::ids::{HashedIds, Ids, Numbering, UserIds, number_items, number_users};
use super::named::{NamedColumns, NamedFrame};
use super::values::id;
use crate::condition::Condition;
use crate::read::{EventColumns, RawCell, Shape, columns, for_each_event_rows, for_each_row, polars_knows};
use crate::rejects::{Fault, reject};
use crate::spill::{Chunks, MemoryLimit, Spill, events};
use crate::{Error, Result};

/// Every accepted event, in input order. Ids are numbered in the order of their first event.
#[derive(Default)]
pub struct Events {
    pub user_ids: UserIds,
    pub item_ids: Ids,
    /// The columns of [`crate::filters`].
    pub chunks: Chunks,
    /// The columns that the condition names, with their names in the files.
    pub named: NamedFrame,
    /// All names of columns that the first lines of the files have, where a condition names any.
    pub known: Vec<String>,
    /// How many units of `times` make one of what is stored.
    pub units: i64,
}

/// How many lines may be rejected, over all files.
#[derive(Debug)]
pub struct Budget {
    limit: u64,
    left: u64,
}

impl Budget {
    pub fn new(limit: u64) -> Self {
        Self { limit, left: limit }
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

/// Takes a row, or says why it can't be used.
pub type Visit<'t> = dyn FnMut(u64, &[RawCell<'_>]) -> Result<std::result::Result<(), Fault>> + 't;

/// Reads all rows of a file; those that `visit` refuses are rejected like unreadable ones.
pub fn read_file(
    path: &Path,
    shape: Shape,
    fields: &[&str],
    rejected: &mut Rejects,
    budget: &mut Budget,
    progress: &Progress,
    visit: &mut Visit<'_>,
) -> Result<FileCount> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let bar = progress.bytes(&name, path.metadata().map_or(0, |about| about.len()));
    let mut count = FileCount { file: path.to_owned(), ..FileCount::default() };
    for_each_row(path, shape, fields, &bar, &mut |(line, row)| {
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

impl Events {
    /// Reads the files of interactions, one after the other, with the columns that `condition` names; beyond `memory` they go to
    /// disk.
    pub fn read(
        paths: &[PathBuf],
        form: &SourceForm,
        condition: Option<&Condition>,
        memory: Option<&MemoryLimit>,
        budget: &mut Budget,
        progress: &Progress,
    ) -> Result<(Self, EventsRead)> {
        let names = condition.map(Condition::columns).unwrap_or_default();
        let known = condition.map(|condition| known_columns(paths, form, condition)).transpose()?.unwrap_or_default();
        let shapes = paths.iter().map(|path| form.shape(path, false)).collect::<Result<Vec<_>>>()?;
        let by_polars = paths
            .iter()
            .zip(&shapes)
            .map(|(path, shape)| Ok(*shape == Shape::Parquet && polars_knows(path)?))
            .collect::<Result<Vec<bool>>>()?;
        let named = NamedColumns::new(&names, by_polars.iter().all(|by_polars| *by_polars));
        let user_ids = match memory {
            Some(limit) => UserIds::Hashed(HashedIds::new(limit.make_folder()?)),
            None => UserIds::default(),
        };
        // Numbering ids waits for memory as long as reading lines takes: each has a thread.
        let (read, users, items) = thread::scope(|scope| {
            let (to_users, requests) = Numbering::new();
            let users = scope.spawn(move || number_users(requests, user_ids));
            let (to_items, requests) = Numbering::new();
            let items = scope.spawn(move || number_items(requests));
            let spill = memory.map(|limit| Spill::new(limit.clone()));
            let sink = EventSink {
                form,
                users: [form.user.clone()],
                user_ids: to_users,
                item_ids: to_items,
                times: Vec::new(),
                count: 0,
                named,
                spill,
            };
            let read = read_events(paths, &shapes, &by_polars, &names, budget, progress, sink);
            (read, join(users), join(items))
        });
        // Where numbering stopped, it knows why.
        let (user_ids, item_ids) = (users?, items?);
        let (read, count, chunks, named) = read?;
        if count == 0 {
            let lines = read.rejected.total();
            let why = match read.rejected.most_frequent() {
                Some((reason, count)) => {
                    format!("gave no event: {lines} lines were read and none could be used, {count} for: {reason}")
                }
                None => "has no line after its header".to_owned(),
            };
            return Err(Error::raw(&paths[0], format!("{why}; is `source.format` the form of this file?")));
        }
        Ok((Self { user_ids, item_ids, chunks, named, known, units: form.clock.units() }, read))
    }
}

fn join<T>(numbered: ScopedJoinHandle<'_, T>) -> T {
    numbered.join().unwrap_or_else(|panic| resume_unwind(panic))
}

/// The columns that the files have, by their headers or first lines; refuses a condition that names another one of a table.
fn known_columns(paths: &[PathBuf], form: &SourceForm, condition: &Condition) -> Result<Vec<String>> {
    let mut known: Vec<String> = Vec::new();
    for path in paths {
        let shape = form.shape(path, false)?;
        let columns = columns(path, shape)?;
        // Fields of JSON may come late.
        if shape != Shape::JsonLines {
            condition.check_columns(&columns, &path.display().to_string())?;
        }
        known.extend(columns.into_iter().filter(|column| !known.contains(column)).collect::<Vec<_>>());
    }
    Ok(known)
}

/// Where accepted events go.
struct EventSink<'f> {
    form: &'f SourceForm,
    users: [String; 1],
    user_ids: Numbering,
    item_ids: Numbering,
    times: Vec<i64>,
    count: u64,
    named: NamedColumns,
    spill: Option<Spill>,
}

impl EventSink<'_> {
    /// Takes the event in the cells of a row: user, time, items.
    fn push(&mut self, cells: &[RawCell<'_>]) -> Result<std::result::Result<(), Fault>> {
        let (user, item, time) = match event(self.form, &self.users, cells) {
            Ok(event) => event,
            Err(fault) => return Ok(Err(fault)),
        };
        // Numbers are 32 bits wide here and in the files.
        if self.count >= u64::from(u32::MAX) - 1 {
            return Err(Error::Setting(format!("more than {} events; split the data", u32::MAX - 1)));
        }
        self.count += 1;
        self.user_ids.push(&user);
        self.item_ids.push(&item);
        self.times.push(time);
        Ok(Ok(()))
    }

    /// Writes the events that are held where they are enough for a chunk.
    fn spill_some(&mut self) -> Result<()> {
        match &self.spill {
            Some(spill) if self.times.len() >= spill.chunk() => self.spill_all(),
            _ => Ok(()),
        }
    }

    fn spill_all(&mut self) -> Result<()> {
        let (events, named) = (self.take()?, self.named.take()?);
        self.spill.as_mut().map_or(Ok(()), |spill| spill.push(events, named))
    }

    /// The events that are held.
    fn take(&mut self) -> Result<DataFrame> {
        let stopped = || Error::bug("ids are not numbered any more");
        let users = self.user_ids.take().ok_or_else(stopped)?;
        let items = self.item_ids.take().ok_or_else(stopped)?;
        events(users, items, std::mem::take(&mut self.times))
    }

    fn finish(mut self) -> Result<(u64, Chunks, NamedFrame)> {
        if self.spill.is_some() && self.count > 0 {
            self.spill_all()?;
        }
        match self.spill {
            Some(spill) => {
                let has_columns = self.count > 0 && !self.named.is_empty();
                let named = if has_columns { self.named.finish(spill.named()?, true) } else { NamedFrame::default() };
                Ok((self.count, Chunks::Disk(spill), named))
            }
            None => {
                let (events, cells) = (self.take()?, self.named.take()?);
                Ok((self.count, Chunks::Memory(events), self.named.finish(cells.lazy(), false)))
            }
        }
    }
}

/// Reads the lines of all files.
fn read_events(
    paths: &[PathBuf],
    shapes: &[Shape],
    by_polars: &[bool],
    names: &[String],
    budget: &mut Budget,
    progress: &Progress,
    mut sink: EventSink<'_>,
) -> Result<(EventsRead, u64, Chunks, NamedFrame)> {
    let mut read = EventsRead::default();
    let form = sink.form;
    let mut fields = vec![form.user.as_str(), form.time.as_str()];
    fields.extend(form.item.iter().map(String::as_str));
    let of_event = fields.len();
    // A column may be a part of the event as well.
    let mut places = Vec::with_capacity(names.len());
    for name in names {
        places.push(fields.iter().position(|field| field == name).unwrap_or(fields.len()));
        if places.last() == Some(&fields.len()) {
            fields.push(name);
        }
    }
    for ((path, &shape), &by_polars) in paths.iter().zip(shapes).zip(by_polars) {
        if by_polars {
            let columns = EventColumns { user: &form.user, item: &form.item[0], time: &form.time, named: names };
            read.files.push(read_parquet(path, columns, &mut read.rejected, budget, progress, &mut sink)?);
            continue;
        }
        let count = read_file(path, shape, &fields, &mut read.rejected, budget, progress, &mut |line, cells| {
            let outcome = sink.push(&cells[..of_event])?;
            if outcome.is_ok() {
                sink.named.push(cells, &places, path, line);
                sink.spill_some()?;
            }
            Ok(outcome)
        })?;
        read.files.push(count);
    }
    let (count, chunks, named) = sink.finish()?;
    Ok((read, count, chunks, named))
}

/// Reads the rows of a Parquet file.
fn read_parquet(
    path: &Path,
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
                Ok(cells) => sink.push(&cells)?,
                Err(fault) => Err(fault),
            };
            used.push(outcome.is_ok());
            match outcome {
                Ok(()) => count.accepted += 1,
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
            sink.named.extend(rows.named.filter(&used)?, path, rows.first)?;
        }
        sink.spill_some()
    })?;
    Ok(count)
}

/// User, item and time in the cells of a row.
fn event<'c>(
    form: &SourceForm,
    users: &[String],
    cells: &'c [RawCell<'_>],
) -> std::result::Result<(Cow<'c, str>, Cow<'c, str>, i64), Fault> {
    let user = id(users, &cells[..1])?;
    let item = id(&form.item, &cells[2..])?;
    Ok((user, item, form.clock.read(&form.time, &cells[1])?))
}

/// Lines of one file of interactions and how many of them are events, without keeping any: for the fuzz targets.
pub fn count(path: &Path, form: &SourceForm) -> Result<(u64, u64)> {
    let mut fields = vec![form.user.as_str(), form.time.as_str()];
    fields.extend(form.item.iter().map(String::as_str));
    let users = [form.user.clone()];
    let shape = form.shape(path, false)?;
    let mut visit = |_: u64, cells: &[RawCell<'_>]| Ok(event(form, &users, cells).map(|_| ()));
    let mut rejected = Rejects::default();
    let (budget, progress) = (&mut Budget::new(u64::MAX), Progress::new(true));
    let count = read_file(path, shape, &fields, &mut rejected, budget, &progress, &mut visit)?;
    Ok((count.lines, count.accepted))
}

#[cfg(test)]
pub(crate) mod tests {
    use mp4sr_pipeline::config::{Columns, Format, Source};

    use super::*;

    /// The events in `content`, as `user item time`, and the reasons of what was rejected.
    fn read(source: &Source, name: &str, content: &str) -> Result<(Vec<String>, Vec<String>)> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        let (events, read) =
            Events::read(&[path], &SourceForm::new(source)?, None, None, &mut Budget::new(3), &Progress::new(true))?;
        let (Chunks::Memory(frame), UserIds::InMemory(user_ids)) = (events.chunks, events.user_ids) else { panic!() };
        let count = &read.files[0];
        assert_eq!(count.lines, count.accepted + count.rejected);
        assert_eq!((count.accepted, count.rejected), (frame.height() as u64, read.rejected.total()));
        let shown = crate::dataset::rows(&frame)
            .unwrap()
            .map(|(user, item, time)| format!("{} {} {time}", user_ids[user as usize], events.item_ids[item as usize]));
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
        let recbole = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t007\t3\t8.8e8\n";
        assert_eq!(read(&of(Format::RecBole), "ml.inter", recbole).unwrap().0, ["1 007 880000000"]);
        let columns = Columns { user: "who".into(), item: "what".into(), position: "n".into(), ..Columns::default() };
        let tabular = Source { format: Format::Tabular, columns, ..Source::default() };
        assert_eq!(read(&tabular, "a.csv", "n,what,who\n3,\"a,b\",x\n").unwrap().0, ["x a,b 3"]);
        assert_eq!(read(&tabular, "a.jsonl", "{\"who\": 1, \"what\": 2, \"n\": 0}\n").unwrap().0, ["1 2 0"]);
        let message = read(&tabular, "a.txt", "n,what,who\n").unwrap_err().to_string();
        assert!(message.contains("a name that doesn't tell its form"), "{message}");
    }

    #[test]
    fn too_many_bad_lines_stop_the_run_at_the_line_that_was_too_many() {
        let source = of(Format::Amazon2018);
        let message = read(&source, "r.json", "{\n{\n{\n{\n").unwrap_err().to_string();
        assert!(message.contains("more than 3 lines") && message.contains("line 4 of") && message.contains("r.json"));
        let message = read(&source, "r.json", "{\n[]\n{\n").unwrap_err().to_string();
        assert!(message.contains("3 lines were read and none could be used, 2 for: broken JSON"), "{message}");
    }
}
