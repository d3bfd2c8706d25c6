//! Interactions of raw files as numbers.

use std::borrow::Cow;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, ScopedJoinHandle};

use indexmap::IndexSet;
use mp4sr_artifact::{EventsRead, FileCount, Rejects};
use mp4sr_pipeline::Progress;
use polars::prelude::{BooleanChunked, DataFrame, NamedFrom as _, NewChunkedArray as _, df};

use super::SourceForm;
use super::named::{NamedColumns, NamedFrame};
use super::values::id;
use crate::condition::Condition;
use crate::filters::{ITEM, TIME, USER};
use crate::read::{EventColumns, RawCell, Shape, columns, for_each_event_rows, for_each_row};
use crate::rejects::{Fault, reject};
use crate::{Error, Result};

/// Ids in the order of their first event.
pub type Ids = IndexSet<Box<str>, foldhash::fast::RandomState>;

/// Bytes of ids that are handed over for numbering at once.
const BATCH: usize = 1 << 18;

/// Every accepted event, in input order. Ids are numbered in the order of their first event.
#[derive(Debug, Default)]
pub struct Events {
    pub user_ids: Ids,
    pub item_ids: Ids,
    /// The columns of [`crate::filters`].
    pub frame: DataFrame,
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

/// Ids on their way to be numbered, one after the other without anything between them.
#[derive(Default)]
struct Batch {
    text: String,
    ends: Vec<usize>,
}

/// Gives ids to the thread that numbers them.
struct Numbering {
    batch: Batch,
    batches: SyncSender<Batch>,
}

impl Numbering {
    fn push(&mut self, id: &str) {
        self.batch.text.push_str(id);
        self.batch.ends.push(self.batch.text.len());
        if self.batch.text.len() >= BATCH {
            self.send();
        }
    }

    fn send(&mut self) {
        // Who numbers them can only be gone after a panic, which the join tells.
        let _ = self.batches.send(std::mem::take(&mut self.batch));
    }
}

impl Events {
    /// Reads the files of interactions, one after the other, with the columns that `condition` names.
    pub fn read(
        paths: &[PathBuf],
        form: &SourceForm,
        condition: Option<&Condition>,
        budget: &mut Budget,
        progress: &Progress,
    ) -> Result<(Self, EventsRead)> {
        let names = condition.map(Condition::columns).unwrap_or_default();
        let known = condition.map(|condition| known_columns(paths, form, condition)).transpose()?.unwrap_or_default();
        let shapes = paths.iter().map(|path| form.shape(path, false)).collect::<Result<Vec<_>>>()?;
        let mut named = NamedColumns::new(&names, shapes.iter().all(|shape| *shape == Shape::Parquet));
        // Numbering ids waits for memory as long as reading lines takes: each has a thread.
        let (times, read, users, items) = thread::scope(|scope| {
            let numbering = || {
                let (batches, received) = sync_channel(4);
                (Numbering { batch: Batch::default(), batches }, scope.spawn(move || number_all(received)))
            };
            let ((user_ids, users), (item_ids, items)) = (numbering(), numbering());
            let mut sink = EventSink { form, user_ids, item_ids, times: Vec::new(), users: [form.user.clone()] };
            let read = read_events(paths, &shapes, &names, budget, progress, &mut sink, &mut named);
            let times = sink.finish();
            let join = |numbered: ScopedJoinHandle<'_, _>| numbered.join().unwrap_or_else(|panic| resume_unwind(panic));
            (times, read, join(users), join(items))
        });
        let read = read?;
        if times.is_empty() {
            let lines = read.rejected.total();
            let why = match read.rejected.most_frequent() {
                Some((reason, count)) => {
                    format!("gave no event: {lines} lines were read and none could be used, {count} for: {reason}")
                }
                None => "has no line after its header".to_owned(),
            };
            return Err(Error::raw(&paths[0], format!("{why}; is `source.format` the form of this file?")));
        }
        let ((user_ids, users), (item_ids, items)) = (users, items);
        let frame = df!(USER => users, ITEM => items, TIME => times)?;
        Ok((Self { user_ids, item_ids, frame, named: named.finish()?, known, units: form.clock.units() }, read))
    }
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

fn number_all(batches: Receiver<Batch>) -> (Ids, Vec<u32>) {
    let (mut ids, mut numbers) = (Ids::default(), Vec::new());
    for Batch { text, ends } in batches {
        let mut start = 0;
        for end in ends {
            numbers.push(number(&mut ids, &text[start..end]));
            start = end;
        }
    }
    (ids, numbers)
}

/// Where accepted events go.
struct EventSink<'f> {
    form: &'f SourceForm,
    users: [String; 1],
    user_ids: Numbering,
    item_ids: Numbering,
    times: Vec<i64>,
}

impl EventSink<'_> {
    /// Takes the event in the cells of a row: user, time, items.
    fn push(&mut self, cells: &[RawCell<'_>]) -> Result<std::result::Result<(), Fault>> {
        let (user, item, time) = match event(self.form, &self.users, cells) {
            Ok(event) => event,
            Err(fault) => return Ok(Err(fault)),
        };
        // Numbers are 32 bits wide here and in the files.
        if self.times.len() >= u32::MAX as usize - 1 {
            return Err(Error::Setting(format!("more than {} events; split the data", u32::MAX - 1)));
        }
        self.user_ids.push(&user);
        self.item_ids.push(&item);
        self.times.push(time);
        Ok(Ok(()))
    }

    fn finish(mut self) -> Vec<i64> {
        self.user_ids.send();
        self.item_ids.send();
        self.times
    }
}

/// Reads the lines of all files.
fn read_events(
    paths: &[PathBuf],
    shapes: &[Shape],
    names: &[String],
    budget: &mut Budget,
    progress: &Progress,
    sink: &mut EventSink<'_>,
    named: &mut NamedColumns,
) -> Result<EventsRead> {
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
    for (path, &shape) in paths.iter().zip(shapes) {
        if shape == Shape::Parquet {
            let columns = EventColumns { user: &form.user, item: &form.item[0], time: &form.time, named: names };
            read.files.push(read_parquet(path, columns, &mut read.rejected, budget, progress, sink, named)?);
            continue;
        }
        let count = read_file(path, shape, &fields, &mut read.rejected, budget, progress, &mut |line, cells| {
            let outcome = sink.push(&cells[..of_event])?;
            if outcome.is_ok() && !places.is_empty() {
                named.push(cells, &places, path, line);
            }
            Ok(outcome)
        })?;
        read.files.push(count);
    }
    Ok(read)
}

/// Reads the rows of a Parquet file.
fn read_parquet(
    path: &Path,
    columns: EventColumns<'_>,
    rejected: &mut Rejects,
    budget: &mut Budget,
    progress: &Progress,
    sink: &mut EventSink<'_>,
    named: &mut NamedColumns,
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
            named.extend(rows.named.filter(&used)?, path, rows.first)?;
        }
        Ok(())
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

fn number(ids: &mut Ids, id: &str) -> u32 {
    // Most ids are known already: no copy for them.
    match ids.get_index_of(id) {
        Some(known) => known as u32,
        None => ids.insert_full(id.into()).0 as u32,
    }
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
            Events::read(&[path], &SourceForm::new(source)?, None, &mut Budget::new(3), &Progress::new(true))?;
        let count = &read.files[0];
        assert_eq!(count.lines, count.accepted + count.rejected);
        assert_eq!((count.accepted, count.rejected), (events.frame.height() as u64, read.rejected.total()));
        let shown = crate::dataset::rows(&events.frame).unwrap().map(|(user, item, time)| {
            format!("{} {} {time}", events.user_ids[user as usize], events.item_ids[item as usize])
        });
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
