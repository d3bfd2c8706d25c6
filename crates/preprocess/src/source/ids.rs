//! Numbers ids in the order of their first event.

use std::collections::HashMap;
use std::hash::BuildHasher as _;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use compact_str::CompactString;
use foldhash::quality::FixedState;
use indexmap::IndexSet;
use polars::prelude::{DataFrame, df};

use crate::partitions::{scan, write};
use crate::spill::MemoryLimit;
use crate::{Error, Result};

/// Ids in the order of their first event. Short ones are stored in the set itself, so looking one up reads no other memory.
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
    /// What has these ids, which names the files.
    whose: &'static str,
    /// By the hash of an id: its number, and a second hash that distinguishes ids with the same first one.
    numbers: HashMap<u64, (u32, u32), foldhash::fast::FixedState>,
    hashes: [FixedState; 2],
    /// The bits of the first hash that are used.
    mask: u64,
    folder: PathBuf,
    files: Vec<PathBuf>,
    /// The names that are not in a file yet, which are those of the last ids.
    names: Vec<String>,
    bytes: usize,
}

impl HashedIds {
    /// Starts without ids. The files of their names are written to `folder`; `whose` is part of their names.
    pub fn new(folder: PathBuf, whose: &'static str) -> Self {
        Self {
            whose,
            numbers: HashMap::default(),
            hashes: [FixedState::with_seed(1), FixedState::with_seed(2)],
            mask: u64::MAX,
            folder,
            files: Vec::new(),
            names: Vec::new(),
            bytes: 0,
        }
    }

    /// The hash of an id, and the second one.
    fn hash(&self, id: &str) -> (u64, u32) {
        let [hash, check] = [0, 1].map(|at| self.hashes[at].hash_one(id));
        (hash & self.mask, check as u32)
    }

    fn find(&self, id: &str) -> Option<u32> {
        let (hash, check) = self.hash(id);
        // Another second hash means that it is another id.
        self.numbers.get(&hash).filter(|(_, other)| *other == check).map(|(number, _)| *number)
    }

    fn number(&mut self, id: &str) -> Result<u32> {
        let (hash, check) = self.hash(id);
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
        let path = self.folder.join(format!("{}-{}.parquet", self.whose, self.files.len()));
        write(&path, &mut df!(NAME => std::mem::take(&mut self.names))?)?;
        self.files.push(path);
        self.bytes = 0;
        Ok(())
    }

    fn visit(&self, marks: &[bool], mut visit: impl FnMut(usize, &str)) -> Result<()> {
        let mut first = 0;
        for path in &self.files {
            let names: DataFrame = scan(std::slice::from_ref(path))?.collect()?;
            let numbered = (first..).zip(names.column(NAME)?.str()?.iter().flatten());
            numbered.filter(|(number, _)| marks[*number]).for_each(|(number, name)| visit(number, name));
            first += names.height();
        }
        let numbered = (first..).zip(&self.names);
        numbered.filter(|(number, _)| marks[*number]).for_each(|(number, name)| visit(number, name));
        Ok(())
    }
}

/// Ids by their number: with their names in memory, or by hash.
#[derive(Debug)]
pub enum NumberedIds {
    InMemory(Ids),
    Hashed(HashedIds),
}

impl Default for NumberedIds {
    fn default() -> Self {
        Self::InMemory(Ids::default())
    }
}

impl FromIterator<CompactString> for NumberedIds {
    fn from_iter<I: IntoIterator<Item = CompactString>>(ids: I) -> Self {
        Self::InMemory(ids.into_iter().collect())
    }
}

impl NumberedIds {
    /// Starts without ids. With a limit of memory, names are written to its folder.
    pub fn new(memory: Option<&MemoryLimit>, whose: &'static str) -> Result<Self> {
        Ok(match memory {
            Some(limit) => Self::Hashed(HashedIds::new(limit.make_folder()?, whose)),
            None => Self::default(),
        })
    }

    /// The number of ids.
    pub fn len(&self) -> usize {
        match self {
            Self::InMemory(ids) => ids.len(),
            Self::Hashed(ids) => ids.numbers.len(),
        }
    }

    /// The number of an id, which it gets if it has none yet.
    fn number(&mut self, id: &str) -> Result<u32> {
        match self {
            // Most ids are known already and need no copy.
            Self::InMemory(ids) => Ok(match ids.get_index_of(id) {
                Some(known) => known as u32,
                None => ids.insert_full(id.into()).0 as u32,
            }),
            Self::Hashed(ids) => ids.number(id),
        }
    }

    /// The number of an id; `None` if it has none.
    pub fn find(&self, id: &str) -> Option<u32> {
        match self {
            Self::InMemory(ids) => ids.get_index_of(id).map(|number| number as u32),
            Self::Hashed(ids) => ids.find(id),
        }
    }

    /// Calls `visit` with the number and the name of each id that is marked, in the order of the numbers.
    pub fn visit(&self, marks: &[bool], mut visit: impl FnMut(usize, &str)) -> Result<()> {
        match self {
            Self::InMemory(ids) => {
                let marked = ids.iter().enumerate().filter(|(number, _)| marks[*number]);
                marked.for_each(|(number, name)| visit(number, name));
                Ok(())
            }
            Self::Hashed(ids) => ids.visit(marks, visit),
        }
    }

    /// The names of the ids that are marked, in the order of their numbers.
    pub fn names_of(mut self, marks: &[bool]) -> Result<Vec<String>> {
        match &mut self {
            Self::InMemory(ids) => {
                let marked = std::mem::take(ids).into_iter().zip(marks).filter(|(_, mark)| **mark);
                return Ok(marked.map(|(name, _)| name.into_string()).collect());
            }
            // Only names are needed from here on, and hashes take memory.
            Self::Hashed(ids) => ids.numbers = HashMap::default(),
        }
        let mut names = Vec::new();
        self.visit(marks, |_, name| names.push(name.to_owned()))?;
        Ok(names)
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
pub fn number_all(requests: Receiver<NumberingRequest>, mut ids: NumberedIds) -> Result<NumberedIds> {
    let mut numbers = Vec::new();
    for request in requests {
        match request {
            NumberingRequest::Ids(IdBatch(Batch { text, ends })) => {
                let mut start = 0;
                for end in ends {
                    numbers.push(ids.number(&text[start..end])?);
                    start = end;
                }
            }
            NumberingRequest::Take(reply) => drop(reply.send(std::mem::take(&mut numbers))),
        }
    }
    Ok(ids)
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
        let mut hashed = HashedIds::new(folder.path().to_owned(), "users");
        let mut plain = NumberedIds::default();
        let ids: Vec<String> = (0..5000_u64).map(|n| format!("\u{1f600}{}\n", n * n % 1777)).collect();
        for (at, id) in ids.iter().enumerate() {
            assert_eq!(hashed.number(id).unwrap(), plain.number(id).unwrap());
            if at % 1000 == 0 {
                hashed.write_names().unwrap();
            }
        }
        let hashed = NumberedIds::Hashed(hashed);
        for id in ids.iter().map(String::as_str).chain(["1", ""]) {
            assert_eq!(hashed.find(id), plain.find(id));
        }
        let marks: Vec<bool> = (0..plain.len()).map(|at| at % 3 == 0).collect();
        let visited = |ids: &NumberedIds| {
            let mut visited = Vec::new();
            ids.visit(&marks, |number, name| visited.push((number, name.to_owned()))).unwrap();
            visited
        };
        assert_eq!(visited(&hashed), visited(&plain));
        assert_eq!(hashed.names_of(&marks).unwrap(), plain.names_of(&marks).unwrap());
    }

    #[test]
    fn two_ids_with_one_hash_are_an_error_and_not_one_user() {
        let folder = tempfile::tempdir().unwrap();
        let mut ids = HashedIds { mask: 0xff, ..HashedIds::new(folder.path().to_owned(), "users") };
        let error = (0..300).find_map(|n| ids.number(&n.to_string()).err()).unwrap().to_string();
        assert!(error.contains("has the same 64-bit hash as another id; unset `preprocess.memory`"), "{error}");
        let known = (0..300).filter(|n| ids.find(&n.to_string()).is_some()).count();
        assert_eq!(known, ids.numbers.len(), "an id with the hash of another one is not that one");
    }
}
