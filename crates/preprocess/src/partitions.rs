//! The events in one frame in memory, or in partitions by user on disk: every filter runs over one partition after the other.
//!
//! All events of a user are in one partition, in the order of the input until they are ordered. A filter that looks at one user at a time
//! therefore gives the same events for any number of partitions; counts of items are added up over the partitions.

use std::path::{Path, PathBuf};

use mp4sr_artifact::files;
use polars::prelude::*;

use crate::filters::{self, ITEM, USER};
use crate::{Error, Result};

/// Where the rows of a frame are.
#[derive(Clone, Debug)]
enum PartitionRows {
    Memory(DataFrame),
    /// Parquet files, one after the other.
    Files(Vec<PathBuf>),
}

/// The events of some of the users.
#[derive(Clone, Debug)]
pub struct Partition {
    rows: PartitionRows,
    count: u64,
}

impl Partition {
    /// Events in memory.
    pub fn in_memory(events: DataFrame) -> Self {
        Self { count: events.height() as u64, rows: PartitionRows::Memory(events) }
    }

    /// Events in files.
    pub fn on_disk(paths: Vec<PathBuf>, count: u64) -> Self {
        Self { rows: PartitionRows::Files(paths), count }
    }

    /// The number of events.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Runs a query over the events.
    pub fn query(&self, query: impl FnOnce(LazyFrame) -> LazyFrame) -> Result<DataFrame> {
        Ok(match &self.rows {
            PartitionRows::Memory(events) => query(events.clone().lazy()).collect()?,
            PartitionRows::Files(paths) => collect_streaming(query(scan(paths)?))?,
        })
    }
}

/// All events.
#[derive(Debug)]
pub struct Partitions {
    parts: Vec<Partition>,
    /// The folder of the files; `None` if the events are in memory.
    folder: Option<PathBuf>,
    /// The number of files that were written, which names the next one.
    written: usize,
}

/// The numbers of what is left after a filter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub events: u64,
    pub users: u64,
    pub items: u64,
}

impl Partitions {
    /// One frame in memory.
    pub fn in_memory(events: DataFrame) -> Self {
        Self { parts: vec![Partition::in_memory(events)], folder: None, written: 0 }
    }

    /// Partitions on disk, in a folder to which later ones are written as well.
    pub fn on_disk(parts: Vec<Partition>, folder: PathBuf) -> Self {
        Self { parts, folder: Some(folder), written: 0 }
    }

    /// A copy of the events that can be filtered separately.
    pub fn fork(&self, name: &str) -> Result<Self> {
        let folder = self.folder.as_ref().map(|folder| folder.join(name));
        folder.as_deref().map(files::create_dir_all).transpose()?;
        Ok(Self { parts: self.parts.clone(), folder, written: 0 })
    }

    /// The partitions.
    pub fn iter(&self) -> impl Iterator<Item = &Partition> {
        self.parts.iter()
    }

    /// The number of events.
    pub fn count(&self) -> u64 {
        self.parts.iter().map(|part| part.count).sum()
    }

    /// Replaces each partition by what a query leaves of it.
    pub fn filter(&mut self, query: impl Fn(LazyFrame) -> LazyFrame) -> Result<()> {
        if self.folder.is_some() {
            return self.replace(|part| part.query(&query).map(Some));
        }
        for part in &mut self.parts {
            // The frame is moved out, so that the query has the only copy and can free it while it runs.
            if let PartitionRows::Memory(events) = std::mem::replace(&mut part.rows, PartitionRows::Files(Vec::new())) {
                *part = Partition::in_memory(query(events.lazy()).collect()?);
            }
        }
        Ok(())
    }

    /// Replaces each partition by the result of `left`; if that is `None`, the partition stays.
    pub fn replace(&mut self, mut left: impl FnMut(&Partition) -> Result<Option<DataFrame>>) -> Result<()> {
        for part in &mut self.parts {
            let Some(mut events) = left(part)? else { continue };
            let count = events.height() as u64;
            let rows = match &self.folder {
                None => PartitionRows::Memory(events),
                Some(folder) => {
                    let path = folder.join(format!("filtered-{}.parquet", self.written));
                    self.written += 1;
                    write(&path, &mut events)?;
                    if let PartitionRows::Files(paths) = &part.rows {
                        // The files of the partitions from which these were forked stay.
                        let own = paths.iter().filter(|path| path.parent() == Some(folder.as_path()));
                        own.into_iter().try_for_each(|path| files::remove_if_present(path))?;
                    }
                    PartitionRows::Files(vec![path])
                }
            };
            *part = Partition { rows, count };
        }
        Ok(())
    }

    /// The first and the last time of all events; both are 0 if there are no events.
    pub fn times(&self) -> Result<(i64, i64)> {
        let mut ends = None;
        for part in self.parts.iter().filter(|part| part.count > 0) {
            let times = part.query(filters::times)?;
            let end = |at: usize| -> Result<i64> { Ok(times.columns()[at].i64()?.get(0).unwrap_or_default()) };
            let (first, last) = ends.unwrap_or((end(0)?, end(1)?));
            ends = Some((end(0)?.min(first), end(1)?.max(last)));
        }
        Ok(ends.unwrap_or_default())
    }

    /// Which of the first `count` items have an event.
    pub fn item_marks(&self, count: usize) -> Result<Vec<bool>> {
        let mut marks = vec![false; count];
        for part in &self.parts {
            let items = part.query(|events| events.select([col(ITEM)]))?;
            items.column(ITEM)?.u32()?.into_no_null_iter().for_each(|item| marks[item as usize] = true);
        }
        Ok(marks)
    }

    /// The numbers of events, users and items.
    pub fn counts(&self) -> Result<Counts> {
        let mut items = DataFrame::default();
        let mut counts = Counts { events: self.count(), ..Counts::default() };
        for part in &self.parts {
            let users = part.query(filters::users)?;
            counts.users += users.column(USER)?.cast(&DataType::UInt64)?.u64()?.get(0).unwrap_or_default();
            let own = part.query(filters::distinct_items)?;
            // Each partition may have all items, so they are not held for all partitions.
            items =
                if items.width() == 0 { own } else { filters::distinct_items(items.vstack(&own)?.lazy()).collect()? };
        }
        counts.items = items.height() as u64;
        Ok(counts)
    }
}

/// Writes a frame that is read again soon.
pub fn write(path: &Path, frame: &mut DataFrame) -> Result<()> {
    #[expect(clippy::disallowed_methods, reason = "the file is of no use to another process")]
    let file = std::fs::File::create(path).map_err(|e| mp4sr_artifact::Error::io("write", path, e))?;
    let writer = ParquetWriter::new(file).with_compression(ParquetCompression::Lz4Raw);
    writer
        .finish(frame)
        .map_err(|e| Error::raw(path, format!("could not be written: {e}; free disk space if the disk is full")))?;
    Ok(())
}

/// The rows of Parquet files that this program wrote, one file after the other.
pub fn scan(paths: &[PathBuf]) -> Result<LazyFrame> {
    let paths = paths
        .iter()
        .map(|path| path.to_str().map(PlRefPath::new))
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| Error::Setting("the artifacts folder has a name that is not UTF-8; rename it".to_owned()))?;
    let args = ScanArgsParquet { glob: false, ..ScanArgsParquet::default() };
    Ok(LazyFrame::scan_parquet_files(paths.into(), args)?)
}

/// Runs a query on the streaming engine.
pub fn collect_streaming(query: LazyFrame) -> Result<DataFrame> {
    // Only several queries return several frames.
    Ok(query.collect_with_engine(Engine::Streaming)?.unwrap_single())
}
