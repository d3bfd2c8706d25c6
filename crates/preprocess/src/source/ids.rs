//! Numbers ids in the order of their first event.

use std::collections::HashMap;
use std::hash::BuildHasher as _;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use compact_str::CompactString;
use foldhash::quality::FixedState;
use indexmap::IndexSet;
use polars::prelude::{BooleanChunked, DataFrame, NewChunkedArray as _, df};

use crate::partitions::{scan, write};
use crate::{Error, Result};

/// Ids in the order of their first event. Short ones are stored in the set itself, so that looking one up reads no other memory.
pub type Ids = IndexSet<CompactString, foldhash::fast::RandomState>;

/// The number of bytes of ids that are sent for numbering at once.
const BATCH: usize = 1 << 18;
/// The number of bytes of names that are written to a file at once.
const NAMES: usize = 1 << 26;
/// The column of names in those files.
const NAME: &str = "name";

/// Ids that are numbered by their hash; their names are on disk, in the order of their numbers.
#[derive(Debug)]
pub struct HashedIds {
    /// By the hash of an id: its number, and a second hash that distinguishes ids with the same first one.
    numbers: HashMap<u64, (u32, u32), foldhash::fast::FixedState>,
    hashes: [FixedState; 2],
    /// The bits of the first hash that are used.
    mask: u64,
    folder: PathBuf,
    files: Vec<PathBuf>,
    names: Vec<String>,
    bytes: usize,
}

impl HashedIds {
    /// Starts without ids. The files of their names are written to `folder`.
    pub fn new(folder: PathBuf) -> Self {
        Self {
            numbers: HashMap::default(),
            hashes: [FixedState::with_seed(1), FixedState::with_seed(2)],
            mask: u64::MAX,
            folder,
            files: Vec::new(),
            names: Vec::new(),
            bytes: 0,
        }
    }

    fn number(&mut self, id: &str) -> Result<u32> {
        let [hash, check] = [0, 1].map(|at| self.hashes[at].hash_one(id));
        let (hash, check) = (hash & self.mask, check as u32);
        if let Some(&(number, other)) = self.numbers.get(&hash) {
            return if other == check { Ok(number) } else { Err(Error::Collision { id: id.to_owned() }) };
        }
        let number = self.numbers.len() as u32;
        self.numbers.insert(hash, (number, check));
        self.bytes += id.len() + size_of::<String>();
        self.names.push(id.to_owned());
        if self.bytes >= NAMES {
            self.write_names()?;
        }
        Ok(number)
    }

    fn write_names(&mut self) -> Result<()> {
        let path = self.folder.join(format!("names-{}.parquet", self.files.len()));
        write(&path, &mut df!(NAME => std::mem::take(&mut self.names))?)?;
        self.files.push(path);
        self.bytes = 0;
        Ok(())
    }

    /// The names of the ids that are marked, in the order of their numbers.
    fn names_of(mut self, marks: &[bool]) -> Result<Vec<String>> {
        self.numbers = HashMap::default();
        self.write_names()?;
        let (mut names, mut rest) = (Vec::new(), marks);
        for path in &self.files {
            let held: DataFrame = scan(std::slice::from_ref(path))?.collect()?;
            let (own, later) = rest.split_at(held.height());
            rest = later;
            let kept = held.filter(&BooleanChunked::from_slice("kept".into(), own))?;
            names.extend(kept.column(NAME)?.str()?.iter().flatten().map(str::to_owned));
        }
        Ok(names)
    }
}

/// Users' ids: with their names in memory, or by hash.
#[derive(Debug)]
pub enum UserIds {
    InMemory(Ids),
    Hashed(HashedIds),
}

impl Default for UserIds {
    fn default() -> Self {
        Self::InMemory(Ids::default())
    }
}

impl UserIds {
    /// The number of ids.
    pub fn len(&self) -> usize {
        match self {
            Self::InMemory(ids) => ids.len(),
            Self::Hashed(ids) => ids.numbers.len(),
        }
    }

    fn number(&mut self, id: &str) -> Result<u32> {
        match self {
            Self::InMemory(ids) => Ok(number(ids, id)),
            Self::Hashed(ids) => ids.number(id),
        }
    }

    /// The names of the ids that are marked, in the order of their numbers.
    pub fn names_of(self, marks: &[bool]) -> Result<Vec<String>> {
        match self {
            Self::InMemory(ids) => Ok(names_of(ids, marks)),
            Self::Hashed(ids) => ids.names_of(marks),
        }
    }
}

/// The names of the ids that are marked, in the order of their numbers.
fn names_of(ids: Ids, marks: &[bool]) -> Vec<String> {
    ids.into_iter().zip(marks).filter(|(_, mark)| **mark).map(|(id, _)| id.into_string()).collect()
}

fn number(ids: &mut Ids, id: &str) -> u32 {
    // Most ids are known already and need no copy.
    match ids.get_index_of(id) {
        Some(known) => known as u32,
        None => ids.insert_full(id.into()).0 as u32,
    }
}

/// Ids to be numbered, one after the other without separators.
#[derive(Default)]
struct Batch {
    text: String,
    ends: Vec<usize>,
}

/// A request to the thread that numbers ids.
pub enum NumberingRequest {
    /// Numbers these ids.
    Ids(IdBatch),
    /// Returns the numbers of all ids since the last such request.
    Take(SyncSender<Vec<u32>>),
}

/// Ids that are sent at once.
pub struct IdBatch(Batch);

/// Sends ids to the thread that numbers them.
pub struct Numbering {
    batch: Batch,
    requests: SyncSender<NumberingRequest>,
}

impl Numbering {
    /// Creates the end that sends ids, and the end for the thread.
    pub fn new() -> (Self, Receiver<NumberingRequest>) {
        let (requests, received) = sync_channel(4);
        (Self { batch: Batch::default(), requests }, received)
    }

    /// Adds an id to the batch, which is sent when it is large enough.
    pub fn push(&mut self, id: &str) {
        self.batch.text.push_str(id);
        self.batch.ends.push(self.batch.text.len());
        if self.batch.text.len() >= BATCH {
            self.send();
        }
    }

    /// The numbers of all ids since the last call; `None` if the thread has stopped; joining it returns the reason.
    pub fn take(&mut self) -> Option<Vec<u32>> {
        self.send();
        let (reply, numbers) = sync_channel(1);
        self.requests.send(NumberingRequest::Take(reply)).ok()?;
        numbers.recv().ok()
    }

    fn send(&mut self) {
        // The thread can only be gone after a panic or an error, which joining it returns.
        let _ = self.requests.send(NumberingRequest::Ids(IdBatch(std::mem::take(&mut self.batch))));
    }
}

/// Numbers ids until the channel of requests is closed.
pub fn number_users(requests: Receiver<NumberingRequest>, mut ids: UserIds) -> Result<UserIds> {
    number_all(requests, |id| ids.number(id))?;
    Ok(ids)
}

/// Numbers ids until the channel of requests is closed.
pub fn number_items(requests: Receiver<NumberingRequest>) -> Result<Ids> {
    let mut ids = Ids::default();
    number_all(requests, |id| Ok(number(&mut ids, id)))?;
    Ok(ids)
}

fn number_all(requests: Receiver<NumberingRequest>, mut number: impl FnMut(&str) -> Result<u32>) -> Result<()> {
    let mut numbers = Vec::new();
    for request in requests {
        match request {
            NumberingRequest::Ids(IdBatch(Batch { text, ends })) => {
                let mut start = 0;
                for end in ends {
                    numbers.push(number(&text[start..end])?);
                    start = end;
                }
            }
            NumberingRequest::Take(reply) => drop(reply.send(std::mem::take(&mut numbers))),
        }
    }
    Ok(())
}

/// The number of ids without events that are kept in order to find the cause.
const KEPT: usize = 10_000;

/// The first ids of lines of items without events, with their lines.
#[derive(Debug, Default)]
pub struct UnusedIds(pub Vec<(Box<str>, u64)>);

impl UnusedIds {
    /// Keeps an id unless there are enough.
    pub fn push(&mut self, id: &str, line: u64) {
        if self.0.len() < KEPT {
            self.0.push((id.into(), line));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashed_ids_have_the_numbers_and_names_of_those_in_memory() {
        let folder = tempfile::tempdir().unwrap();
        let (mut hashed, mut plain) = (HashedIds::new(folder.path().to_owned()), Ids::default());
        let ids: Vec<String> = (0..5000_u64).map(|n| format!("\u{1f600}{}\n", n * n % 1777)).collect();
        for (at, id) in ids.iter().enumerate() {
            assert_eq!(hashed.number(id).unwrap(), number(&mut plain, id));
            if at % 1000 == 0 {
                hashed.write_names().unwrap();
            }
        }
        let marks: Vec<bool> = (0..plain.len()).map(|at| at % 3 == 0).collect();
        assert_eq!(hashed.names_of(&marks).unwrap(), names_of(plain, &marks));
    }

    #[test]
    fn two_ids_with_one_hash_are_an_error_and_not_one_user() {
        let folder = tempfile::tempdir().unwrap();
        let mut ids = HashedIds { mask: 0xff, ..HashedIds::new(folder.path().to_owned()) };
        let error = (0..300).find_map(|n| ids.number(&n.to_string()).err()).unwrap().to_string();
        assert!(error.contains("has the same 64-bit hash as another id; unset `preprocess.memory`"), "{error}");
    }
}
