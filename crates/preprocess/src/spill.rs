//! `preprocess.memory`: events are written to disk while they are read, and from there divided into partitions by user.

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
        let mut paths = vec![Vec::new(); count as usize];
        let mut counts = vec![0; count as usize];
        let mut at = 0;
        let finest = self.chunks.iter().map(|chunk| chunk.digits).max().unwrap_or(0);
        for (number, Chunk { path, count: rows, digits }) in self.chunks.iter().enumerate() {
            // This cannot overflow: `Times` has checked the latest time whenever the unit became finer.
            let factor = lit(10_i64.pow((finest - digits).into()));
            let mut chunk = scan(std::slice::from_ref(path))?.with_column(col(TIME) * factor).collect()?;
            if let Some(satisfies) = satisfies {
                chunk.with_column(satisfies.slice(at, *rows as usize))?;
            }
            at += *rows as i64;
            for partition in 0..count {
                let own = (col(USER) % lit(count as u32)).eq(lit(partition as u32));
                let mut own = chunk.clone().lazy().filter(own).collect()?;
                counts[partition as usize] += own.height() as u64;
                let path = folder.join(format!("{partition}-{number}.parquet"));
                write(&path, &mut own)?;
                paths[partition as usize].push(path);
            }
            files::remove_if_present(path)?;
        }
        let parts = paths.into_iter().zip(counts).map(|(paths, count)| Partition::on_disk(paths, count)).collect();
        Ok(Partitions::on_disk(parts, folder))
    }
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
