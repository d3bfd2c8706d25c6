//! The counts of the first stages: `dataset/report.json` of preprocess and `features/report.json` of extract.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::{Error, Result, expect_recorded, files};

/// The content of `dataset/report.json`. The settings of the filters are of a type that only preprocess knows; other readers
/// keep them as JSON.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PreprocessReport<Settings = serde_json::Value> {
    /// The version of the file format.
    pub version: u32,
    /// The name of the dataset.
    pub dataset: String,
    /// The name of the format of the raw files.
    pub format: String,
    /// The settings of the filters.
    pub preprocess: Settings,
    /// The counts of the lines of interactions.
    pub interactions: EventsRead,
    /// The counts of the lines of items.
    pub items: ItemsRead,
    /// The state after each filter, in order; the first is the raw data.
    pub filters: Vec<FilterStep>,
    /// The accepted events that were kept, and those that were dropped.
    pub events: EventAccounts,
    /// How well interactions and items match; `None` if no file of items was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub join: Option<JoinShares>,
    /// The statistics of the dataset as written.
    pub statistics: DatasetStatistics,
    /// The paper's numbers for this dataset; null if the pipeline names none.
    #[serde(deserialize_with = "Option::deserialize")]
    pub table1: Option<Table1Row>,
    /// The warnings for the user.
    pub warnings: Vec<String>,
}

impl PreprocessReport {
    /// Reads the report; `None` if the file does not exist, because another program may have written the dataset.
    pub fn read(path: &Path) -> Result<Option<Self>> {
        read(path, "preprocess")
    }
}

/// The counts of the lines of interactions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventsRead {
    /// The lines of each file.
    pub files: Vec<FileCount>,
    /// The rejected lines by reason.
    pub rejected: Rejects,
    /// How the times of each file are written.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub times: Vec<String>,
}

/// The counts of the lines of items.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ItemsRead {
    /// The lines of each file.
    pub files: Vec<FileCount>,
    /// The rejected lines by reason.
    pub rejected: Rejects,
    /// The number of accepted lines of an item that an earlier line describes; only the first line is used.
    pub repeated: u64,
    /// The number of accepted lines of items without interactions.
    pub without_events: u64,
    /// The number of items with interactions that no line describes.
    pub without_line: u64,
    /// The names of images that were refused, by reason.
    pub refused_images: Rejects,
    /// The names of sound files that were refused, by reason.
    pub refused_sounds: Rejects,
    /// The texts of items that have no content, such as marks of a missing value, by reason.
    #[serde(default, skip_serializing_if = "Rejects::is_empty")]
    pub dropped_texts: Rejects,
    /// The number of items with events from whose titles tags or entities were removed.
    pub cleaned_titles: u64,
    /// The number of items with events from whose further texts tags or entities were removed.
    pub cleaned_texts: u64,
}

/// The counts of the lines of one file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileCount {
    /// The path of the file.
    pub file: PathBuf,
    /// The number of lines that were read. In a CSV file, records are counted, and in a Parquet file, rows; the header does not count.
    pub lines: u64,
    /// The number of lines that were used.
    pub accepted: u64,
    /// The number of events beyond one per used line; `None` if no line contains several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub further_events: Option<NonZeroU64>,
    /// The number of lines that cannot be used.
    pub rejected: u64,
}

/// How well the interactions and the lines of items match, as shares from 0 to 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct JoinShares {
    /// The share of the events within the core whose item has a line.
    pub events_with_line: f64,
    /// The share of the items of these events that have a line.
    pub items_with_line: f64,
    /// The share of the lines of items whose item has an event in the raw files.
    pub lines_used: f64,
    /// The share of the items of these events that have a title.
    pub items_with_title: f64,
    /// The share of the items of these events that have a sentence.
    pub items_with_text: f64,
    /// The share of the items of these events that have an image, which may be a file or a URL.
    pub items_with_image: f64,
}

/// One rejected line, as an example in the report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RejectExample {
    /// The path of the file.
    pub file: PathBuf,
    /// The number of the line, from 1. In a Parquet file, it is the number of the row; in a folder, the number of the file.
    pub line: u64,
    /// The text that was found there, shortened.
    pub found: String,
}

/// How often a reason occurred, with examples.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejected {
    /// The number of occurrences.
    pub count: u64,
    /// The first occurrences.
    pub examples: Vec<RejectExample>,
}

/// Rejected lines (or names of images) by reason.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Rejects(pub BTreeMap<String, Rejected>);

impl Rejects {
    /// Whether nothing was rejected.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The number of rejected lines over all reasons.
    pub fn total(&self) -> u64 {
        self.0.values().map(|rejected| rejected.count).sum()
    }

    /// The most frequent reason, with its count.
    pub fn most_frequent(&self) -> Option<(&str, u64)> {
        self.0.iter().map(|(reason, rejected)| (reason.as_str(), rejected.count)).max_by_key(|(_, count)| *count)
    }
}

/// The state of the data after a filter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilterStep {
    /// The name of the filter.
    pub filter: String,
    /// The events that the filter dropped, by reason.
    pub dropped: BTreeMap<String, u64>,
    /// The number of events left.
    pub events: u64,
    /// The number of users left.
    pub users: u64,
    /// The number of items left.
    pub items: u64,
}

/// The accepted events: events read = events kept + events dropped.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventAccounts {
    /// The number of events in accepted lines.
    pub read: u64,
    /// The number of events in the dataset.
    pub kept: u64,
    /// The number of events that a filter dropped, by reason.
    pub dropped: BTreeMap<String, u64>,
}

/// The statistics of the dataset as written.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DatasetStatistics {
    /// The number of users.
    pub users: u64,
    /// The number of items.
    pub items: u64,
    /// The number of events.
    pub events: u64,
    /// The number of items without events, which `preprocess.items_without_events` keeps; `None` if every item has events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub items_without_events: Option<NonZeroU64>,
    /// The mean number of events per user.
    pub average_length: f64,
    /// The smallest number of events of a user.
    pub shortest: u64,
    /// Half of the users have at most this many events.
    pub median_length: u64,
    /// The largest number of events of a user.
    pub longest: u64,
    /// The number of events divided by the number of user-item pairs.
    pub density: f64,
    /// The number of events that are ordered by their position in the input, because they have the user and the time of the event before.
    pub ties: u64,
    /// The number of items without a sentence.
    pub items_without_text: u64,
    /// The number of items without an image, whether a local file or a URL.
    pub items_without_image: u64,
    /// The number of items whose images are all URLs to download.
    #[serde(rename = "items_with_addresses_only")]
    pub items_with_urls_only: u64,
    /// The number of items without a category.
    pub items_without_category: u64,
    /// The number of distinct categories.
    pub categories: u64,
    /// The number of sentences per item.
    pub sentences: CountSpread,
    /// The number of images per item.
    pub images: CountSpread,
}

/// How many sentences or images the items have.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CountSpread {
    /// The mean over all items.
    pub mean: f64,
    /// `items[n]` is the number of items that have n.
    pub items: Vec<u64>,
}

impl CountSpread {
    /// Counts items by the number that each of them has.
    pub fn of(counts: impl Iterator<Item = usize>) -> Self {
        let (mut items, mut sum, mut total) = (Vec::new(), 0, 0);
        for count in counts {
            if items.len() <= count {
                items.resize(count + 1, 0);
            }
            items[count] += 1;
            sum += count;
            total += 1;
        }
        Self { mean: sum as f64 / f64::from(total.max(1)), items }
    }
}

/// A row of the paper's Table 1 (arXiv 2303.11879).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Table1Row {
    /// The name of the dataset.
    pub name: String,
    /// The number of users.
    pub users: u64,
    /// The number of items.
    pub items: u64,
    /// The number of interactions.
    pub events: u64,
    /// The average length of a sequence, as printed.
    pub average_length: f64,
}

/// The content of `features/report.json`: counts of texts and images, and of the encoders' work.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExtractReport {
    /// The number of sentences of all items.
    pub sentences: usize,
    /// The number of items without a sentence.
    pub items_without_text: usize,
    /// The number of images of all items.
    pub images: usize,
    /// The number of these images that have a vector.
    pub described: usize,
    /// The number of items without an image that has a vector.
    pub items_without_image: usize,
    /// The number of words in the dictionary.
    pub dictionary_words: usize,
    /// The work of the sentence encoder, including sentences that consist of image words.
    pub sentence_encoder: EncoderWork,
    /// The work of CLIP on words.
    pub word_encoder: EncoderWork,
    /// The work of the image encoder on image files.
    pub image_encoder: EncoderWork,
    /// Images that cannot be used.
    pub unusable: Vec<UnusableImage>,
    /// The number of sound files that items name.
    pub sounds: usize,
    /// The number of items without a sound that can be used.
    pub items_without_sound: usize,
    /// The work of the audio encoder on sound files.
    pub audio_encoder: EncoderWork,
    /// Sound files that cannot be used.
    pub unusable_sounds: Vec<UnusableSound>,
}

impl ExtractReport {
    /// Reads the report; `None` if the file does not exist, because another program may have written the features.
    pub fn read(path: &Path) -> Result<Option<Self>> {
        read(path, "extract")
    }
}

/// How many vectors an encoder computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EncoderWork {
    /// The number of distinct inputs.
    pub distinct: u64,
    /// The number of these that were computed; the others were in the cache.
    pub computed: u64,
}

/// A sound file that cannot be used.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnusableSound {
    /// The id of the item that the file belongs to.
    pub item_id: String,
    /// The name of the file in `items.parquet`.
    pub sound: String,
    /// The reason why it cannot be used.
    pub reason: String,
}

/// Describes an encoder's folder in the cache of vectors (`about.json`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EncoderAbout {
    /// The model's name in the configuration.
    pub model: String,
    /// What was encoded: sentences, words, images, sounds.
    pub content: String,
    /// d, the width of a vector.
    pub width: usize,
    /// The number of vectors that all runs have computed.
    pub computed: u64,
    /// The seconds that this took, including reading files and writing the cache.
    pub seconds: f64,
}

impl EncoderAbout {
    /// The file's name in an encoder's folder.
    pub const FILE: &str = "about.json";
}

/// An image that cannot be used.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnusableImage {
    /// The id of the item that the image belongs to.
    pub item_id: String,
    /// The name of the image in `items.parquet`.
    pub image: String,
    /// The reason why the image cannot be used.
    pub reason: String,
}

fn read<T: DeserializeOwned>(path: &Path, stage: &str) -> Result<Option<T>> {
    if !path.exists() {
        return Ok(None);
    }
    let remedy = format!("run `mp4sr {stage}` again");
    expect_recorded(path, stage, &remedy)?;
    serde_json::from_slice(&files::read(path)?).map(Some).map_err(|e| Error::unreadable(path, "it", &e, remedy))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spreads_count_items_by_number() {
        let spread = CountSpread::of([0, 2, 2, 1].into_iter());
        assert_eq!((spread.mean, spread.items), (1.25, vec![1, 1, 2]));
        assert_eq!(CountSpread::of(std::iter::empty()), CountSpread::default());
    }

    /// Copies of an object that each lack one field, at every depth.
    fn without_each_field(whole: &serde_json::Value) -> Vec<(String, serde_json::Value)> {
        let mut found = Vec::new();
        for (field, value) in whole.as_object().into_iter().flatten() {
            let mut cut = whole.clone();
            cut.as_object_mut().unwrap().remove(field);
            found.push((field.clone(), cut));
            // The keys of these maps are settings, reasons and filters, and none of them is required.
            if ["preprocess", "rejected", "refused_images", "refused_sounds", "dropped"].contains(&field.as_str()) {
                continue;
            }
            for (inner, part) in without_each_field(value) {
                let mut cut = whole.clone();
                cut[field] = part;
                found.push((inner, cut));
            }
        }
        found
    }

    #[test]
    fn a_missing_field_is_an_error_that_names_file_line_and_field() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.json");
        assert_eq!(PreprocessReport::read(&path).unwrap(), None);
        let report = PreprocessReport { preprocess: serde_json::json!({}), ..PreprocessReport::default() };
        files::write_json(&path, &report).unwrap();
        assert_eq!(PreprocessReport::read(&path).unwrap(), Some(report.clone()));
        let cuts = without_each_field(&serde_json::to_value(&report).unwrap());
        assert!(cuts.len() > 40, "{}", cuts.len());
        for (field, cut) in cuts {
            files::write_json(&path, &cut).unwrap();
            let message = PreprocessReport::read(&path).unwrap_err().to_string();
            assert!(message.contains("report.json") && message.contains("line "), "{message}");
            assert!(message.contains(&format!("missing field `{field}`")), "{field}: {message}");
        }
        for (field, cut) in without_each_field(&serde_json::to_value(ExtractReport::default()).unwrap()) {
            files::write_json(&path, &cut).unwrap();
            let message = ExtractReport::read(&path).unwrap_err().to_string();
            assert!(message.contains(&format!("missing field `{field}`")), "{field}: {message}");
        }
    }
}
