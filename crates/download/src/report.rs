//! The counts of a run, as tables and as JSON.

use std::collections::BTreeMap;

use comfy_table::{CellAlignment, Table};
use mp4sr_pipeline::{Bug, text};
use serde::{Deserialize, Serialize};

use crate::outcome::Fate;
use crate::{Error, Result};

/// What a run found and fetched.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DownloadReport {
    /// The raw files, in the order of `download.files`.
    pub files: Vec<RawReport>,
    /// The images; `None` as long as `items.parquet` does not exist.
    pub images: Option<ImageReport>,
}

/// A raw file that is in place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RawReport {
    /// The path below the data folder.
    pub path: String,
    /// Whether this run downloaded it.
    pub fetched: bool,
    /// Whether its SHA-256 was compared.
    pub verified: bool,
    /// The size in bytes.
    pub bytes: u64,
}

/// The number of image URLs by outcome.
///
/// ```
/// use mp4sr_download::{Fate, ImageReport};
///
/// let fates = [(Fate::Done, 7), (Fate::Gone, 2)].into();
/// let report = ImageReport { urls: 10, fates, missing: 1, ..ImageReport::default() };
/// assert!(report.check().is_ok(), "7 images, 2 URLs that are gone, and 1 that offline mode left out");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ImageReport {
    /// The number of distinct image URLs in `items.parquet`.
    #[serde(rename = "addresses")]
    pub urls: u64,
    /// The number of URLs per outcome.
    pub fates: BTreeMap<Fate, u64>,
    /// The number of URLs that offline mode left out.
    pub missing: u64,
    /// The number of URLs per outcome, among those that this run settled.
    pub settled_now: BTreeMap<Fate, u64>,
    /// The size in bytes of the images that this run added.
    pub bytes: u64,
}

impl ImageReport {
    /// Checks that every URL has one outcome or is missing.
    pub fn check(&self) -> Result<()> {
        let counted = self.missing + self.fates.values().sum::<u64>();
        if counted == self.urls {
            return Ok(());
        }
        Err(Error::Bug(Bug(format!("{} URLs were read, but {counted} have an outcome", self.urls))))
    }

    fn table(&self) -> Table {
        let mut table = new_table(["image URLs", "all", "this run"]);
        let count = |counts: &BTreeMap<Fate, u64>, fate| counts.get(&fate).copied().unwrap_or(0);
        for fate in Fate::ALL {
            table.add_row([
                fate.name().to_owned(),
                count(&self.fates, fate).to_string(),
                count(&self.settled_now, fate).to_string(),
            ]);
        }
        if self.missing > 0 {
            table.add_row(["missing (offline)".to_owned(), self.missing.to_string(), String::new()]);
        }
        let settled: u64 = self.settled_now.values().sum();
        table.add_row(["total".to_owned(), self.urls.to_string(), settled.to_string()]);
        table
    }
}

impl DownloadReport {
    /// Formats the counts as tables.
    pub fn table(&self) -> String {
        let mut text = String::new();
        if !self.files.is_empty() {
            let mut table = new_table(["raw file", "bytes", "this run"]);
            for file in &self.files {
                let done = match (file.fetched, file.verified) {
                    (true, true) => "downloaded, verified",
                    (true, false) => "downloaded",
                    (false, true) => "already present, verified",
                    (false, false) => "already present",
                };
                table.add_row([file.path.clone(), file.bytes.to_string(), done.to_owned()]);
            }
            text.push_str(&format!("{table}\n"));
        }
        if let Some(images) = &self.images {
            text.push_str(&format!("{}\n", images.table()));
        }
        text
    }
}

fn new_table(header: [&str; 3]) -> Table {
    let mut table = text::terminal_table(header);
    table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    table
}
