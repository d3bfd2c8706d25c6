//! The parts of `dataset/report.json` (written by preprocess) and `features/report.json` (by extract) that the page shows.

use std::collections::BTreeMap;
use std::path::Path;

use mp4sr_artifact::{Error, Sequences, expect_recorded, files};
use serde::Deserialize;

use crate::Result;

/// The file, as far as it is shown; what tells it from other files must be there, what else it lacks is left out of the page.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Statistics {
    pub(crate) dataset: String,
    pub(crate) interactions: Lines,
    #[serde(default)]
    pub(crate) items: Lines,
    #[serde(default)]
    pub(crate) filters: Vec<Step>,
    #[serde(rename = "statistics")]
    pub(crate) counts: Counts,
    #[serde(default)]
    pub(crate) table1: Option<Printed>,
    #[serde(default)]
    pub(crate) warnings: Vec<String>,
    #[serde(skip)]
    pub(crate) pictures: Option<Pictures>,
}

/// What became of the items' images.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Pictures {
    pub(crate) images: u64,
    pub(crate) described: u64,
    #[serde(default)]
    pub(crate) items_without_image: u64,
    #[serde(default)]
    pub(crate) unusable: Vec<Unusable>,
}

/// An image that can't be used.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Unusable {
    pub(crate) item_id: String,
    pub(crate) image: String,
    pub(crate) reason: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Lines {
    pub(crate) files: Vec<FileCount>,
    pub(crate) rejected: BTreeMap<String, Rejected>,
    pub(crate) refused_images: BTreeMap<String, Rejected>,
    pub(crate) repeated: u64,
    pub(crate) without_events: u64,
    pub(crate) without_line: u64,
    pub(crate) cleaned_titles: u64,
    pub(crate) cleaned_texts: u64,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct FileCount {
    pub(crate) file: String,
    pub(crate) lines: u64,
    pub(crate) accepted: u64,
    pub(crate) rejected: u64,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Rejected {
    pub(crate) count: u64,
    pub(crate) examples: Vec<Example>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Example {
    pub(crate) file: String,
    pub(crate) line: u64,
    pub(crate) found: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Step {
    pub(crate) filter: String,
    pub(crate) dropped: BTreeMap<String, u64>,
    pub(crate) events: u64,
    pub(crate) users: u64,
    pub(crate) items: u64,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Counts {
    pub(crate) users: u64,
    pub(crate) items: u64,
    pub(crate) events: u64,
    #[serde(default)]
    pub(crate) average_length: f64,
    #[serde(default)]
    pub(crate) shortest: u64,
    #[serde(default)]
    pub(crate) median_length: u64,
    #[serde(default)]
    pub(crate) longest: u64,
    #[serde(default)]
    pub(crate) density: f64,
    #[serde(default)]
    pub(crate) ties: u64,
    #[serde(default)]
    pub(crate) items_without_text: u64,
    #[serde(default)]
    pub(crate) items_without_image: u64,
    #[serde(default)]
    pub(crate) items_with_addresses_only: u64,
    #[serde(default)]
    pub(crate) sentences: Spread,
    #[serde(default)]
    pub(crate) images: Spread,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Spread {
    pub(crate) mean: f64,
}

/// A row of the paper's Table 1.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Printed {
    pub(crate) name: String,
    pub(crate) users: u64,
    pub(crate) items: u64,
    pub(crate) events: u64,
    pub(crate) average_length: f64,
}

impl Statistics {
    /// None where preprocess's file is not there: a dataset may come from a program that counts nothing. So may features.
    pub(crate) fn read(preprocess: &Path, extract: &Path, sequences: &Sequences) -> Result<Option<Self>> {
        const REMEDY: &str = "run `make preprocess` again";
        let Some(mut read) = read_json::<Self>(preprocess, "preprocess", REMEDY)? else { return Ok(None) };
        let (found, expected) = (
            (read.counts.users, read.counts.items, read.counts.events),
            (sequences.user_count() as u64, sequences.item_count as u64, sequences.items.len() as u64),
        );
        if found != expected {
            let reason = format!(
                "it tells of {} users, {} items, {} events, and the sequences beside it hold {}, {}, {}",
                found.0, found.1, found.2, expected.0, expected.1, expected.2
            );
            return Err(Error::unusable(preprocess, reason, REMEDY).into());
        }
        read.pictures = read_json(extract, "extract", "run `make extract` again")?;
        Ok(Some(read))
    }
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path, stage: &str, remedy: &str) -> Result<Option<T>> {
    if !path.exists() {
        return Ok(None);
    }
    expect_recorded(path, stage, remedy)?;
    let read = serde_json::from_slice(&files::read(path)?).map_err(|e| Error::unreadable(path, "it", &e, remedy))?;
    Ok(Some(read))
}
