//! The dataset and the features that a model reads.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use mp4sr_artifact::{Error, Fingerprint, Items, Layout, MappedFeatures, MappedValues, Sequences, role};
use mp4sr_models::{Categories, Data, Device, Modality, Ragged, RngKey, StoredValues, TrainingSequences, recipe};
use mp4sr_pipeline::Config;
use mp4sr_pipeline::config;
use mp4sr_protocol::{has_clock, training_items, training_times};

/// The share of items with a row of a modality below which a warning is given.
const SPARSE: f64 = 0.05;

/// The data that a model is built from and trained on.
#[derive(Debug)]
pub struct Inputs {
    /// The users' events.
    pub sequences: Sequences,
    /// Features by modality, in the order of the configuration; empty for models that read none.
    pub modalities: Vec<Modality>,
    /// The fingerprints of the encoders of these features, by modality; missing for features that do not name theirs.
    pub encoders: BTreeMap<String, String>,
    /// The items' categories; `None` for models that do not read them, and if no item has any.
    pub categories: Option<Categories>,
}

impl Inputs {
    /// The files that a run reads, by role.
    pub fn files(layout: &Layout, config: &Config) -> Vec<(String, PathBuf)> {
        let mut files = vec![(role::SEQUENCES.to_owned(), layout.sequences())];
        if Self::reads_features(config) {
            files.extend(config.feature_files(layout));
        }
        if reads_categories(config) {
            files.push((role::ITEMS.to_owned(), layout.items()));
        }
        files
    }

    /// Whether a run with this configuration reads features.
    pub(crate) fn reads_features(config: &Config) -> bool {
        recipe(&config.model.name).is_some_and(|recipe| recipe.reads.features)
    }

    /// Reads and verifies these files.
    pub fn load(layout: &Layout, config: &Config) -> anyhow::Result<Self> {
        let sequences = Sequences::read(&layout.sequences())?;
        expect_items(layout, &sequences)?;
        let (mut modalities, mut encoders) = (Vec::new(), BTreeMap::new());
        if Self::reads_features(config) {
            for modality in &config.model.modalities {
                let (hash, count) = (&sequences.item_hash, sequences.item_count);
                let ModalityRows { rows, encoder } = read_features(layout, config, modality, hash, count)?;
                encoders.extend(encoder.map(|encoder| (modality.name.clone(), encoder)));
                expect_rows(
                    &rows,
                    &modality.name,
                    &layout.feature_file(&modality.name, &config.feature_name(modality)),
                )?;
                let features = noisy(rows, modality, RngKey::new(config.run.seed));
                modalities.push(Modality { name: modality.name.clone(), features });
            }
        }
        let categories = if reads_categories(config) {
            Categories::of_names(&items_of(layout, &sequences)?.categories)
        } else {
            None
        };
        Ok(Self { sequences, modalities, encoders, categories })
    }

    /// Returns a warning for each modality that few items have, because the model sees no features of it for most items.
    pub fn sparse_modalities(&self) -> Vec<String> {
        let reported = |Modality { name, features }: &Modality| {
            let (count, covered) =
                (features.count(), (0..features.count()).filter(|&i| features.rows_of(i) > 0).count());
            ((covered as f64) < SPARSE * count as f64)
                .then(|| format!("only {covered} of {count} items have features of the modality `{name}`"))
        };
        self.modalities.iter().filter_map(reported).collect()
    }

    /// I, the number of items, including those that were added after training, which have features but no events.
    pub fn item_count(&self) -> usize {
        self.modalities.first().map_or(self.sequences.item_count, |modality| modality.features.count())
    }

    /// The data that a model is built from. Of the sequences it contains only the training events.
    pub fn data(&self, device: &Device) -> Data {
        Data {
            items: self.item_count(),
            training: Arc::new(training_sequences(&self.sequences)),
            modalities: self.modalities.clone(),
            categories: self.categories.clone(),
            device: device.clone(),
            group: None,
        }
    }
}

/// The training events of all users, with their times if the data has a clock.
pub fn training_sequences(sequences: &Sequences) -> TrainingSequences {
    let users = || 0..sequences.user_count();
    let times =
        has_clock(sequences).then(|| users().flat_map(|user| training_times(sequences, user)).copied().collect());
    TrainingSequences { times, ..TrainingSequences::new(users().map(|user| training_items(sequences, user))) }
}

/// The features of a modality as they are stored.
pub(crate) struct ModalityRows {
    pub(crate) rows: Ragged,
    /// The fingerprint of the encoder, if the features name it.
    pub(crate) encoder: Option<String>,
}

/// Reads the features of a modality, which must belong to `item_count` items with the hash `item_hash`.
pub(crate) fn read_features(
    layout: &Layout,
    config: &Config,
    modality: &config::Modality,
    item_hash: &Fingerprint,
    item_count: usize,
) -> anyhow::Result<ModalityRows> {
    let path = layout.feature_file(&modality.name, &config.feature_name(modality));
    let features = MappedFeatures::open(&path, item_hash, item_count)?;
    let encoder = features.settings["encoder"].as_str().map(str::to_owned);
    let offsets: Vec<usize> = features.offsets.iter().map(|&o| o as usize).collect();
    let values = match features.values {
        MappedValues::F32(values) => StoredValues::F32(values),
        MappedValues::F16(values) => StoredValues::F16(values),
        MappedValues::Bf16(values) => StoredValues::Bf16(values),
    };
    let rows = Ragged::stored(values, features.width, &offsets);
    let rows = rows.with_context(|| format!("failed to use `{}`", path.display()))?;
    Ok(ModalityRows { rows, encoder })
}

/// Checks the number of items against the item table, if there is one, because this number decides how much memory a model needs.
fn expect_items(layout: &Layout, sequences: &Sequences) -> mp4sr_artifact::Result<()> {
    let path = layout.items();
    let rows = if path.exists() { Items::count(&path)? } else { return Ok(()) };
    if rows != sequences.item_count as u64 {
        let reason = format!("it has {} items, but `{}` has {rows}", sequences.item_count, path.display());
        return Err(Error::unusable(&layout.sequences(), reason, "run `mp4sr preprocess` again"));
    }
    Ok(())
}

/// A modality without any row is an error, because the model would silently train on zeros.
fn expect_rows(features: &Ragged, modality: &str, path: &Path) -> mp4sr_artifact::Result<()> {
    if features.row_count() > 0 {
        return Ok(());
    }
    let remedy = format!(
        "leave `{modality}` out of `model.modalities`, or give the items its raw data and run `mp4sr extract` again"
    );
    Err(Error::unusable(path, format!("no item has a row of `{modality}`"), remedy))
}

/// Reads the item table, which must contain the items of the sequences.
fn items_of(layout: &Layout, sequences: &Sequences) -> mp4sr_artifact::Result<Items> {
    let path = layout.items();
    let items = Items::read(&path)?;
    if items.hash() == sequences.item_hash {
        Ok(items)
    } else {
        Err(Error::unusable(
            &path,
            "it contains different items from the sequences beside it",
            "run `mp4sr preprocess` again",
        ))
    }
}

/// Applies `lost` and `swapped` to the features. A random order of the items is drawn for the modality; swapped items come from its start
/// and lost items from its end, so that a larger share includes the items of a smaller one.
fn noisy(features: Ragged, modality: &config::Modality, key: RngKey) -> Ragged {
    let count = features.count();
    let number = |share: f64| (share * count as f64).round() as usize;
    let (lost, swapped) = (number(modality.lost), number(modality.swapped));
    if lost + swapped == 0 {
        return features;
    }
    let order = key.fold_in("noise").fold_in(&modality.name).permutation(count);
    let mut sources: Vec<Option<u32>> = (0..count as u32).map(Some).collect();
    for (at, &item) in order.iter().take(swapped).enumerate() {
        sources[item as usize] = Some(order[(at + 1) % count]);
    }
    order.iter().rev().take(lost).for_each(|&item| sources[item as usize] = None);
    features.rearranged(&sources)
}

fn reads_categories(config: &Config) -> bool {
    recipe(&config.model.name).is_some_and(|recipe| recipe.reads.category_key(config.model.own()).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_of_items_loses_its_features_and_another_share_gets_those_of_others() {
        let features = Ragged::new((0..40).map(|v| v as f32).collect(), 1, &(0..=40).collect::<Vec<_>>()).unwrap();
        let make = |lost, swapped| {
            let modality = config::Modality { name: "text".to_owned(), lost, swapped, ..config::Modality::default() };
            let noisy = noisy(features.clone(), &modality, RngKey::new(1));
            assert_eq!(noisy.count(), 40);
            noisy
        };
        let rows = |noisy: &Ragged| noisy.row_count();
        assert_eq!(rows(&make(0.0, 0.0)), 40);
        assert_eq!(rows(&make(0.25, 0.0)), 30);
        assert_eq!(rows(&make(1.0, 0.0)), 0);
        let swapped = make(0.0, 0.5);
        assert_eq!(rows(&swapped), 40);
        let own = (0..40u32).filter(|&i| swapped.rows(i as usize, &mut Vec::new()) == [i as f32]).count();
        assert_eq!(own, 20, "half of the items keep their own");
    }
}
