//! `preprocess.memory`: events are written to disk while they are read, and from there divided into partitions by user.

use std::ops::Range;
use std::path::PathBuf;

use mp4sr_artifact::files;
use polars::prelude::*;

use crate::filters::{ITEM, SATISFIES, TIME, USER};
use crate::partitions::{Partition, Partitions, scan, write};
use crate::{Error, Result};

/// The number of bytes of an event: two numbers of 32 bits and a time of 64 bits.
const EVENT: u64 = 16;
/// The memory that a partition takes while it is ordered and filtered, as a multiple of its size, with room for everything else.
const WORKSPACE: u64 = 16;
/// The minimum number of events that are written at once, however small the limit is.
const LEAST_ROWS: u64 = 1 << 12;

/// The number of events below which a limit makes so many files that they take longer and hardly less memory, that of 64 MiB.
const FEW_ROWS: u64 = (64 << 20) / (EVENT * WORKSPACE);

/// A limit of memory, and the folder for the events beyond it.
#[derive(Clone, Debug)]
pub struct MemoryLimit {
    /// The number of events that are held in memory while they are read, and the number that a partition may have.
    rows: u64,
    folder: PathBuf,
}

impl MemoryLimit {
    /// Reads `preprocess.memory`; `None` if it is empty.
    pub fn new(text: &str, folder: PathBuf) -> Result<Option<Self>> {
        let text = text.trim();
        if text.is_empty() {
            return Ok(None);
        }
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let unit = match text[digits..].trim() {
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1_u64 << 30,
            _ => 0,
        };
        let bytes = text[..digits].parse::<f64>().map_or(0.0, |number| number * unit as f64) as u64;
        if bytes == 0 {
            return Err(Error::Setting(format!(
                "`preprocess.memory` = {text:?} is not an amount of memory; expected a number and KiB, MiB or GiB, as in \
                 \"4GiB\""
            )));
        }
        Ok(Some(Self { rows: (bytes / (EVENT * WORKSPACE)).max(LEAST_ROWS), folder }))
    }

    /// A warning about a limit that is too low to be of use.
    pub fn warning(&self) -> Option<&'static str> {
        (self.rows < FEW_ROWS).then_some(
            "`preprocess.memory` below 64MiB makes many small files, which take longer and hardly less memory; raise it",
        )
    }

    /// A limit with which `events` events need `partitions` partitions.
    #[cfg(test)]
    pub fn of_partitions(events: u64, partitions: u64, folder: PathBuf) -> Self {
        Self { rows: events.div_ceil(partitions).max(1), folder }
    }

    /// Creates the folder for what does not fit.
    pub fn make_folder(&self) -> Result<PathBuf> {
        files::create_dir_all(&self.folder)?;
        Ok(self.folder.clone())
    }
}

/// Some events in a file.
#[derive(Debug)]
struct Chunk {
    path: PathBuf,
    count: u64,
    /// The number of decimal digits in the unit of their times.
    digits: u8,
}

/// Events on disk, in the order of the input.
#[derive(Debug)]
pub struct Spill {
    limit: MemoryLimit,
    chunks: Vec<Chunk>,
    named: Vec<PathBuf>,
}

impl Spill {
    /// Starts without events.
    pub fn new(limit: MemoryLimit) -> Self {
        Self { limit, chunks: Vec::new(), named: Vec::new() }
    }

    /// The number of events after which a chunk is written.
    pub fn chunk(&self) -> usize {
        self.limit.rows as usize
    }

    /// Writes a chunk of events, with the columns that a condition names. Later chunks may have times in a finer unit (more `digits`).
    pub fn push(&mut self, mut events: DataFrame, mut named: DataFrame, digits: u8) -> Result<()> {
        let count = events.height() as u64;
        let path = |what: &str| self.limit.folder.join(format!("{what}-{}.parquet", self.chunks.len()));
        let (own, beside) = (path("events"), path("columns"));
        write(&own, &mut events)?;
        if named.width() > 0 {
            write(&beside, &mut named)?;
            self.named.push(beside);
        }
        self.chunks.push(Chunk { path: own, count, digits });
        Ok(())
    }

    /// The columns that a condition names, of all events.
    pub fn named(&self) -> Result<LazyFrame> {
        let chunks = self.named.iter().map(|path| scan(std::slice::from_ref(path))).collect::<Result<Vec<_>>>()?;
        Ok(concat(chunks, UnionArgs { to_supertypes: true, ..UnionArgs::default() })?)
    }

    /// Divides the events by user. `satisfies` says which of them satisfy the condition.
    pub fn partitioned(self, satisfies: Option<&Column>) -> Result<Partitions> {
        let folder = self.limit.folder.join("partitions");
        files::create_dir_all(&folder)?;
        let events: u64 = self.chunks.iter().map(|chunk| chunk.count).sum();
        let count = events.div_ceil(self.limit.rows).max(1);
        let mut division = Division { count, rows: self.limit.rows, folder: folder.clone(), written: 0 };
        let mut shares = Share::of(&(0..count));
        let mut at = 0;
        let finest = self.chunks.iter().map(|chunk| chunk.digits).max().unwrap_or(0);
        for Chunk { path, count: rows, digits } in &self.chunks {
            // This cannot overflow: `Times` has checked the latest time whenever the unit became finer.
            let factor = lit(10_i64.pow((finest - digits).into()));
            let mut chunk = scan(std::slice::from_ref(path))?.with_column(col(TIME) * factor).collect()?;
            if let Some(satisfies) = satisfies {
                chunk.with_column(satisfies.slice(at, *rows as usize))?;
            }
            at += *rows as i64;
            division.distribute(&chunk, &mut shares)?;
            files::remove_if_present(path)?;
        }
        let mut parts = Vec::with_capacity(count as usize);
        shares.into_iter().try_for_each(|share| division.divide(share, &mut parts))?;
        Ok(Partitions::on_disk(parts, folder))
    }
}

/// The number of files into which a portion of the events is divided at once. More partitions are divided in several steps, so that the
/// number of files is a multiple of the number of partitions and not its square.
const FILES: u64 = 64;

/// The events of a range of partitions, in files in the order of the input.
#[derive(Debug)]
struct Share {
    partitions: Range<u64>,
    files: Vec<(PathBuf, u64)>,
}

impl Share {
    /// At most [`FILES`] shares of a range of partitions, without events.
    fn of(partitions: &Range<u64>) -> Vec<Self> {
        let each = (partitions.end - partitions.start).div_ceil(FILES);
        let starts = partitions.clone().step_by(each as usize);
        starts.map(|start| Self { partitions: start..partitions.end.min(start + each), files: Vec::new() }).collect()
    }
}

/// Divides events into partitions: an event belongs to the partition whose number is the remainder of its user divided by `count`.
#[derive(Debug)]
struct Division {
    count: u64,
    /// The number of events that are held in memory.
    rows: u64,
    folder: PathBuf,
    /// The number of files that were written, which names the next one.
    written: usize,
}

impl Division {
    /// Appends events to the shares to which they belong.
    fn distribute(&mut self, events: &DataFrame, shares: &mut [Share]) -> Result<()> {
        for Share { partitions, files } in shares {
            let partition = || col(USER) % lit(self.count as u32);
            let is_own =
                partition().gt_eq(lit(partitions.start as u32)).and(partition().lt(lit(partitions.end as u32)));
            let mut own = events.clone().lazy().filter(is_own).collect()?;
            // A partition without events has one file, for its columns.
            if own.height() == 0 && !files.is_empty() {
                continue;
            }
            let path = self.folder.join(format!("{}.parquet", self.written));
            self.written += 1;
            write(&path, &mut own)?;
            files.push((path, own.height() as u64));
        }
        Ok(())
    }

    /// Divides a share until each partition has its own files.
    fn divide(&mut self, share: Share, parts: &mut Vec<Partition>) -> Result<()> {
        let Share { partitions, files } = share;
        if partitions.end - partitions.start == 1 {
            let count = files.iter().map(|(_, count)| count).sum();
            parts.push(Partition::on_disk(files.into_iter().map(|(path, _)| path).collect(), count));
            return Ok(());
        }
        let mut shares = Share::of(&partitions);
        for portion in portions(files, self.rows) {
            self.distribute(&scan(&portion)?.collect()?, &mut shares)?;
            portion.iter().try_for_each(|path| files::remove_if_present(path))?;
        }
        shares.into_iter().try_for_each(|share| self.divide(share, parts))
    }
}

/// Groups files into portions of at most `rows` events; a larger file is a portion by itself.
fn portions(files: Vec<(PathBuf, u64)>, rows: u64) -> Vec<Vec<PathBuf>> {
    let mut portions: Vec<Vec<PathBuf>> = Vec::new();
    let mut held = 0;
    for (path, count) in files {
        match portions.last_mut().filter(|_| held + count <= rows) {
            Some(portion) => portion.push(path),
            None => {
                portions.push(vec![path]);
                held = 0;
            }
        }
        held += count;
    }
    portions
}

/// Events as they were read.
#[derive(Debug)]
pub enum Chunks {
    /// All of them, in memory.
    Memory(DataFrame),
    /// On disk.
    Disk(Spill),
}

impl Default for Chunks {
    fn default() -> Self {
        Self::Memory(DataFrame::default())
    }
}

impl Chunks {
    /// The events to be filtered. `satisfies` says which of them satisfy the condition.
    pub fn partitioned(self, satisfies: Option<Column>) -> Result<Partitions> {
        let satisfies = satisfies.map(|column| column.with_name(SATISFIES.into()));
        match self {
            Self::Disk(spill) => spill.partitioned(satisfies.as_ref()),
            Self::Memory(mut events) => {
                satisfies.map(|column| events.with_column(column).map(|_| ())).transpose()?;
                Ok(Partitions::in_memory(events))
            }
        }
    }
}

/// A frame of events.
pub fn events(users: Vec<u32>, items: Vec<u32>, times: Vec<i64>) -> Result<DataFrame> {
    Ok(df!(USER => users, ITEM => items, TIME => times)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::rows;

    #[test]
    fn events_of_many_partitions_are_divided_in_steps_that_keep_their_order() {
        let folder = tempfile::tempdir().unwrap();
        // There are enough partitions to need two steps; each user has one, and the other partitions have no events.
        let (partitions, users, count) = (300, 200, 12_000_u32);
        let of = |event: u32| (event.wrapping_mul(2_654_435_761) % users, event % 17, i64::from(event));
        let mut spill = Spill::new(MemoryLimit::of_partitions(count.into(), partitions, folder.path().to_owned()));
        for first in (0..count).step_by(1000) {
            let chunk: Vec<_> = (first..first + 1000).map(of).collect();
            let columns = |f: fn(&(u32, u32, i64)) -> u32| chunk.iter().map(f).collect();
            let times = chunk.iter().map(|event| event.2).collect();
            let frame = events(columns(|event| event.0), columns(|event| event.1), times).unwrap();
            spill.push(frame, DataFrame::default(), 0).unwrap();
        }
        let divided = spill.partitioned(None).unwrap();
        assert_eq!((divided.iter().count() as u64, divided.count()), (partitions, count.into()));
        let mut all = Vec::new();
        for (at, part) in divided.iter().enumerate() {
            let own: Vec<_> = rows(&part.query(|events| events).unwrap()).unwrap().collect();
            assert!(own.iter().all(|(user, ..)| *user as usize == at));
            assert!(own.is_sorted_by_key(|event| event.2), "{at}");
            assert_eq!(own.len() as u64, part.count());
            all.extend(own);
        }
        all.sort_by_key(|event| event.2);
        assert_eq!(all, (0..count).map(of).collect::<Vec<_>>());
        let files = std::fs::read_dir(folder.path().join("partitions")).unwrap().count();
        assert!(files < 3000, "{files} files, and 12 chunks times 300 partitions are 3600");
    }

    #[test]
    fn amounts_of_memory() {
        let rows = |text: &str| MemoryLimit::new(text, PathBuf::new()).map(|limit| limit.map(|limit| limit.rows));
        assert_eq!(rows("").unwrap(), None);
        assert_eq!(rows("4GiB").unwrap(), Some(1 << 24));
        assert_eq!(rows("1.5 MiB").unwrap(), Some(3 << 11));
        assert_eq!(rows("1KiB").unwrap(), Some(LEAST_ROWS));
        for text in ["4", "GiB", "4GB", "-1GiB", "0MiB", "lots"] {
            assert!(rows(text).unwrap_err().to_string().contains("expected a number and KiB, MiB or GiB"), "{text}");
        }
    }
}
