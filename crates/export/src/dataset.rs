//! A dataset with its features, in the form that other programs read. What their formats cannot hold is written to the folder `mp4sr/`
//! beside their files.

use std::path::{Path, PathBuf};

use anyhow::ensure;
use mp4sr_artifact::{Error, Features, Fingerprint, Items, Sequences, TimeKind, Users, files};
use mp4sr_pipeline::Context;
use mp4sr_pipeline::config::SplitBy;
use serde::{Deserialize, Serialize};

use crate::npy;

/// The folder for what the other format cannot hold.
pub const EXTRA: &str = "mp4sr";
const ABOUT: &str = "dataset.json";
const ITEMS: &str = "items.jsonl";
/// What to do about a file in `mp4sr/` that cannot be read.
const REMEDY: &str =
    "export the dataset again, or delete the file, without which the folder is read as another program's";

/// A dataset with its features.
pub struct ExportedDataset {
    pub sequences: Sequences,
    pub items: Items,
    pub users: Users,
    pub features: Vec<ModalityFeatures>,
    /// The shares of training, validation and test, if the pipeline splits each user's events by ratio.
    pub ratio: Option<[f64; 3]>,
}

/// The features of one modality.
pub struct ModalityFeatures {
    /// The modality's name, such as `text` or `image`.
    pub modality: String,
    /// `[I+1]`: item i has the rows `offsets[i-1]..offsets[i]`.
    pub offsets: Vec<i64>,
    /// The values of all rows, `[rows * width]`.
    pub values: Vec<f32>,
    /// The width of a row.
    pub width: usize,
}

/// The description of an item, one line of `mp4sr/items.jsonl`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ItemLine {
    pub item_id: String,
    pub title: String,
    /// The sentences without the title's.
    pub sentences: Vec<String>,
    /// Paths relative to the data folder, or URLs.
    pub images: Vec<String>,
    pub categories: Vec<String>,
    pub sounds: Vec<String>,
}

/// The content of `mp4sr/dataset.json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct About {
    /// Whether the times are positions.
    pub positions: bool,
    /// Whether the times are those of dates, and never positions.
    pub dates: bool,
    /// Whether the dataset records where each user's validation and test events begin; otherwise these are the last two events.
    pub is_cut: bool,
    /// The shares of training, validation and test, if each user's events were split by ratio.
    pub ratio: Option<[f64; 3]>,
    /// The modalities of the pipeline that have features, in its order, which decides how their weights are initialised.
    pub modalities: Vec<String>,
    /// The hashes of the files that `mp4sr/` supplements. A file that has changed since is read without the supplement.
    pub files: std::collections::BTreeMap<String, String>,
}

impl ExportedDataset {
    /// Reads the dataset of a run, and those features of its modalities that exist. Items that were added after training are not included.
    /// A modality without a single row is left out, and the log says so, because the other programs cannot read it.
    pub fn read(context: &Context) -> anyhow::Result<Self> {
        let (config, layout) = (&context.config, &context.layout);
        let sequences = Sequences::read(&layout.sequences())?;
        let (items, users) = (Items::read(&layout.items())?, Users::read(&layout.users())?);
        sequences.expect_tables(layout, &items, &users)?;
        let mut features = Vec::new();
        for modality in &config.model.modalities {
            let path = layout.feature_file(&modality.name, &config.feature_name(modality));
            if path.exists() {
                let own = Features::read(&path, &sequences.item_hash, sequences.item_count)?;
                if own.rows() == 0 {
                    let name = &modality.name;
                    context.progress.log(format!("export: no item has features of `{name}`, so they are left out"));
                    continue;
                }
                features.push(ModalityFeatures {
                    modality: modality.name.clone(),
                    width: own.width(),
                    values: own.to_f32(),
                    offsets: own.offsets,
                });
            }
        }
        let ratio = match config.preprocess.split_ratio[..] {
            [training, validation, test] if config.preprocess.split == SplitBy::Ratio => {
                Some([training, validation, test])
            }
            _ => None,
        };
        Ok(Self { sequences, items, users, features, ratio })
    }

    /// Each event as the user's row, the item (1-based), the time and the set (0 training, 1 validation, 2 test), user by user in order of
    /// time.
    pub fn events(&self) -> impl Iterator<Item = (usize, u32, i64, u8)> + '_ {
        let sequences = &self.sequences;
        (0..sequences.user_count()).flat_map(move |user| {
            let (validation, test) = sequences.parts_of(user);
            let start = sequences.offsets[user] as usize;
            sequences.of(user).iter().enumerate().map(move |(at, &item)| {
                let set = u8::from(at >= validation) + u8::from(at >= test);
                (user, item, sequences.times[start + at], set)
            })
        })
    }

    /// Writes what the other format cannot hold. `added_to` are the files of `folder` that it supplements.
    pub fn write_extra(&self, folder: &Path, added_to: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
        let extra = folder.join(EXTRA);
        let mut paths = vec![extra.join(ITEMS), extra.join(ABOUT)];
        let lines: Vec<String> =
            (0..self.items.len()).map(|row| serde_json::to_string(&self.line(row))).collect::<Result<_, _>>()?;
        files::write_bytes(&paths[0], (lines.join("\n") + "\n").as_bytes())?;
        for own in self.features.iter().filter(|own| !own.is_a_row_per_item()) {
            let (rows, offsets) = ragged_files(folder, &own.modality);
            npy::write(&rows, &own.values, &[own.values.len() / own.width, own.width])?;
            npy::write(&offsets, &own.offsets, &[own.offsets.len()])?;
            paths.extend([rows, offsets]);
        }
        let kind = self.sequences.time_kind;
        let (positions, dates) = (kind == TimeKind::Positions, kind == TimeKind::Seconds);
        let mut about =
            About { positions, dates, is_cut: self.sequences.parts.is_some(), ratio: self.ratio, ..About::default() };
        about.modalities = self.features.iter().map(|own| own.modality.clone()).collect();
        for path in added_to {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            about.files.insert(name, Fingerprint::of_file(path)?.as_str().to_owned());
        }
        files::write_json(&paths[1], &about)?;
        Ok(paths)
    }

    fn line(&self, row: usize) -> ItemLine {
        let title = &self.items.titles[row];
        let sentences = &self.items.sentences[row];
        let has_title = sentences.first().is_some_and(|first| first == title);
        ItemLine {
            item_id: self.items.ids[row].clone(),
            title: title.clone(),
            sentences: sentences[usize::from(has_title)..].to_vec(),
            images: self.items.images[row].clone(),
            categories: self.items.categories[row].clone(),
            sounds: self.items.sounds[row].clone(),
        }
    }
}

/// The files of rows and offsets of a modality in which some items do not have exactly one row.
pub fn ragged_files(folder: &Path, modality: &str) -> (PathBuf, PathBuf) {
    let extra = folder.join(EXTRA);
    (extra.join(format!("{modality}_rows.npy")), extra.join(format!("{modality}_offsets.npy")))
}

/// Reads the record in `mp4sr/`; `None` if this program did not write the folder.
pub fn read_about(folder: &Path) -> anyhow::Result<Option<About>> {
    let path = folder.join(EXTRA).join(ABOUT);
    if !path.exists() {
        return Ok(None);
    }
    let about = serde_json::from_slice(&files::read(&path)?);
    Ok(Some(about.map_err(|e| Error::unreadable(&path, "it", &e, REMEDY))?))
}

impl About {
    /// Whether a file is unchanged since it was written.
    pub fn knows(&self, path: &Path) -> anyhow::Result<bool> {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let Some(then) = self.files.get(&name) else { return Ok(false) };
        Ok(Fingerprint::of_file(path)?.as_str() == then)
    }
}

/// The place of a modality among those of an imported dataset: in the order of the exported pipeline, or else texts, images and others.
pub fn place_of_modality(about: Option<&About>, modality: &str) -> usize {
    let usual = ["text", "image"].map(str::to_owned);
    let order = about.map_or(&[][..], |about| &about.modalities);
    let order = if order.is_empty() { &usual[..] } else { order };
    order.iter().position(|own| own == modality).unwrap_or(order.len())
}

/// Reads the items of `mp4sr/items.jsonl`; `None` if the file does not exist.
pub fn read_item_lines(folder: &Path) -> anyhow::Result<Option<Vec<ItemLine>>> {
    let path = folder.join(EXTRA).join(ITEMS);
    if !path.exists() {
        return Ok(None);
    }
    let text = files::read_to_string(&path)?;
    let item = |(number, line)| {
        serde_json::from_str(line).map_err(|e| Error::unreadable(&path, &format!("line {number}"), &e, REMEDY))
    };
    Ok(Some((1..).zip(text.lines()).map(item).collect::<Result<_, _>>()?))
}

impl ModalityFeatures {
    /// Whether every item has exactly one row.
    pub fn is_a_row_per_item(&self) -> bool {
        self.offsets.windows(2).all(|pair| pair[1] - pair[0] == 1)
    }

    /// The rows of an item (0-based), one after the other.
    pub fn rows(&self, item: usize) -> &[f32] {
        &self.values[self.offsets[item] as usize * self.width..self.offsets[item + 1] as usize * self.width]
    }

    /// The mean of an item's rows, or `None` if it has none. A single row is returned unchanged.
    pub fn mean(&self, item: usize) -> Option<Vec<f32>> {
        mean_of(self.rows(item), self.width)
    }
}

/// The mean of the rows in `values`, or `None` if there are none.
pub fn mean_of(values: &[f32], width: usize) -> Option<Vec<f32>> {
    let rows = values.len() / width;
    if rows == 1 {
        return Some(values.to_vec());
    }
    let mean = |column: usize| {
        let sum: f64 = values.iter().skip(column).step_by(width).map(|&value| f64::from(value)).sum();
        (sum / rows as f64) as f32
    };
    (rows > 0).then(|| (0..width).map(mean).collect())
}

/// Rejects ids that `pandas` would not read back unchanged from a tab-separated file.
pub fn expect_plain_ids(ids: &[String], what: &str) -> anyhow::Result<()> {
    const MISSING: [&str; 18] = [
        "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA",
        "NULL", "NaN", "None", "nan", "null",
    ];
    for id in ids {
        ensure!(
            !id.contains(['\t', '\n', '\r', '"']) && !MISSING.contains(&id.as_str()) && id != "n/a",
            "the {what} id {id:?} cannot be a token of RecBole, which reads its files with pandas: ids must not contain tabs, line \
             breaks or quotation marks, nor be a marker of a missing value; rename it in the raw files, or export \
             `mmrec`, which uses numbers instead of ids"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_row_equals_its_mean_exactly_and_no_rows_have_no_mean() {
        let values = vec![0.1, -0.0, 1.0, 3.0, 2.0, 5.0];
        let own = ModalityFeatures { modality: "text".into(), offsets: vec![0, 1, 1, 3], values, width: 2 };
        assert_eq!(
            own.mean(0).unwrap().iter().map(|v| v.to_bits()).collect::<Vec<_>>(),
            [0.1_f32.to_bits(), (-0.0_f32).to_bits()]
        );
        assert_eq!(own.mean(1), None);
        assert_eq!(own.mean(2).unwrap(), [1.5, 4.0]);
        assert!(!own.is_a_row_per_item());
    }
}
