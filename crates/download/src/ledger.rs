//! The outcome for each URL, across runs, as one JSON object per line. The file is append-only.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use mp4sr_artifact::{Downloads, Error, Result, files};
use serde::{Deserialize, Serialize};

use crate::check::ImageSize;
use crate::outcome::{Fate, Verdict};

/// A line of `ledger.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LedgerEntry {
    /// The URL, as in `items.parquet`.
    pub url: String,
    /// The outcome.
    pub fate: Fate,
    /// The reason for the outcome, as a clause.
    pub reason: String,
    /// The last HTTP status, if the server answered.
    pub status: Option<u16>,
    /// The size of the image file in bytes.
    pub bytes: Option<u64>,
    /// The width of the image in pixels.
    pub width: Option<u32>,
    /// The height of the image in pixels.
    pub height: Option<u32>,
    /// The time of the outcome, in Unix seconds.
    pub when: i64,
}

impl LedgerEntry {
    pub(crate) fn kept(url: &str, reason: &str, status: Option<u16>, bytes: u64, (width, height): ImageSize) -> Self {
        Self {
            url: url.to_owned(),
            fate: Fate::Done,
            reason: reason.to_owned(),
            status,
            bytes: Some(bytes),
            width: Some(width),
            height: Some(height),
            when: jiff::Timestamp::now().as_second(),
        }
    }

    pub(crate) fn lost(url: &str, verdict: Verdict) -> Self {
        Self {
            url: url.to_owned(),
            fate: verdict.fate,
            reason: verdict.reason,
            status: verdict.status,
            bytes: None,
            width: None,
            height: None,
            when: jiff::Timestamp::now().as_second(),
        }
    }
}

/// The content of the last line about a URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastOutcome {
    pub fate: Fate,
    pub bytes: Option<u64>,
}

/// The last line about each URL, by [`Downloads::key`]. Memory use is about forty bytes per URL.
pub type Past = HashMap<u128, LastOutcome>;

/// What a ledger holds.
#[derive(Debug)]
pub struct LedgerContent {
    /// The entries.
    pub past: Past,
    /// The number of lines that cannot be parsed.
    pub broken: u64,
    /// Whether the last line ends with a line break.
    is_ended: bool,
}

impl LedgerContent {
    /// Reads the file of a ledger.
    pub fn read(path: &Path) -> Result<Self> {
        let mut reader = BufReader::new(files::open(path)?);
        let mut content = Self { past: Past::new(), broken: 0, is_ended: true };
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).map_err(|e| Error::io("read", path, e))? > 0 {
            content.is_ended = line.ends_with(b"\n");
            match serde_json::from_slice::<LedgerEntry>(&line) {
                Ok(entry) => {
                    let last = LastOutcome { fate: entry.fate, bytes: entry.bytes };
                    content.past.insert(Downloads::key(&entry.url), last);
                }
                Err(_) => content.broken += 1,
            }
            line.clear();
        }
        Ok(content)
    }
}

/// The open ledger file.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    file: File,
}

impl Ledger {
    /// Opens the ledger. Returns it with the entries so far and the number of lines that cannot be parsed; a killed process leaves one.
    pub fn open(path: &Path) -> Result<(Self, Past, u64)> {
        let file = files::append(path)?;
        let LedgerContent { past, broken, is_ended } = LedgerContent::read(path)?;
        let mut ledger = Self { path: path.to_owned(), file };
        if !is_ended {
            ledger.write(b"\n")?;
        }
        Ok((ledger, past, broken))
    }

    /// Appends a line.
    pub fn add(&mut self, entry: &LedgerEntry) -> Result<()> {
        let mut line = serde_json::to_vec(entry).map_err(|e| Error::io("write", &self.path, e.into()))?;
        line.push(b'\n');
        self.write(&line)
    }

    /// Writes the bytes in one call, so that a killed process leaves at most one broken line.
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|e| Error::io("write", &self.path, e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_counts_and_a_line_truncated_by_a_kill_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger.jsonl");
        let lost = |url, fate| LedgerEntry::lost(url, Verdict::new(fate, "answered"));
        let (mut ledger, past, broken) = Ledger::open(&path).unwrap();
        assert_eq!((past.len(), broken), (0, 0));
        for entry in
            [lost("a", Fate::Failed), lost("b", Fate::Gone), LedgerEntry::kept("a", "fetched", Some(200), 7, (3, 2))]
        {
            ledger.add(&entry).unwrap();
        }
        ledger.write(b"{\"url\": \"c\", \"fa").unwrap();
        let (mut ledger, past, broken) = Ledger::open(&path).unwrap();
        assert_eq!((past.len(), broken), (2, 1));
        assert_eq!(past[&Downloads::key("a")], LastOutcome { fate: Fate::Done, bytes: Some(7) });
        ledger.add(&lost("c", Fate::Refused)).unwrap();
        let (_, past, broken) = Ledger::open(&path).unwrap();
        assert_eq!((past.len(), broken), (3, 1), "a line behind a broken one is whole");
        assert_eq!(past[&Downloads::key("c")].fate, Fate::Refused);
    }
}
