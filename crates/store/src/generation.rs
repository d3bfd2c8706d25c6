//! Converts added items between rows of a database and the files that a run reads.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, ensure};
use half::{bf16, f16};
use mp4sr_artifact::{FeatureType, Features, Items, Layout, MappedFeatures, MappedValues, RowsHeader};
use mp4sr_pipeline::Config;
use mp4sr_pipeline::text::quoted;
use serde::{Deserialize, Serialize};
use serde_json::json;

/// The stage that feature files name as their writer.
const NAME: &str = "store";

/// The texts of an item and the names of its files, as in `items.parquet`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ItemTexts {
    title: String,
    sentences: Vec<String>,
    images: Vec<String>,
    categories: Vec<String>,
    sounds: Vec<String>,
}

/// The features of one item in one modality, as they are stored in the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredRows {
    /// The modality's name.
    pub modality: String,
    /// The fingerprint of the encoder.
    pub encoder: String,
    /// d, the width of a row.
    pub width: usize,
    /// The type of a value: `f16`, `bf16` or `f32`.
    pub kind: String,
    /// The rows one after the other, little endian.
    pub values: Vec<u8>,
}

/// An added item with everything that a run reads of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredItem {
    /// The item's id.
    pub id: String,
    pub(crate) texts: ItemTexts,
    /// The item's features by modality.
    pub features: Vec<StoredRows>,
    /// The bytes of the item's image files, in the order of their names; `None` for a file that could not be read. Empty if the files are
    /// stored elsewhere.
    pub images: Vec<Option<Vec<u8>>>,
}

impl StoredItem {
    /// The texts in the form in which the database stores them.
    pub(crate) fn texts_as_json(&self) -> serde_json::Result<String> {
        serde_json::to_string(&self.texts)
    }

    /// Reads the items of a generation in the folder `own` with their features. Their files keep their names, and are not read. Items of a
    /// generation that has no features of a modality under the settings of `config` are read without them.
    pub fn read(own: &Layout, config: &Config) -> anyhow::Result<Vec<Self>> {
        let items = Items::read_in(&own.items(), Path::new(&config.dataset.data))?;
        let mut stored: Vec<Self> = (0..items.len())
            .map(|row| {
                let texts = ItemTexts {
                    title: items.titles[row].clone(),
                    sentences: items.sentences[row].clone(),
                    images: items.images[row].clone(),
                    categories: items.categories[row].clone(),
                    sounds: items.sounds[row].clone(),
                };
                Self { id: items.ids[row].clone(), texts, features: Vec::new(), images: Vec::new() }
            })
            .collect();
        for modality in &config.model.modalities {
            let path = own.feature_file(&modality.name, &config.feature_name(modality));
            if path.try_exists().is_ok_and(|exists| !exists) {
                continue;
            }
            let features = MappedFeatures::open(&path, &items.hash(), items.len())?;
            let encoder = features.settings["encoder"].as_str().unwrap_or_default().to_owned();
            let (kind, bytes): (&str, &[u8]) = match &features.values {
                MappedValues::F16(values) => ("f16", bytemuck::cast_slice((**values).as_ref())),
                MappedValues::Bf16(values) => ("bf16", bytemuck::cast_slice((**values).as_ref())),
                MappedValues::F32(values) => ("f32", bytemuck::cast_slice((**values).as_ref())),
            };
            let row_bytes = features.width * size_of_kind(kind).context("a type without a size")?;
            for (item, range) in stored.iter_mut().zip(features.offsets.windows(2)) {
                let values = bytes[range[0] as usize * row_bytes..range[1] as usize * row_bytes].to_vec();
                item.features.push(StoredRows {
                    modality: modality.name.clone(),
                    encoder: encoder.clone(),
                    width: features.width,
                    kind: kind.to_owned(),
                    values,
                });
            }
        }
        Ok(stored)
    }

    /// Whether all items have features of the same modalities, each from one encoder.
    pub fn have_one_encoder<'a>(items: impl IntoIterator<Item = &'a Self>) -> bool {
        let encoders = |item: &'a Self| -> BTreeMap<&str, (&str, usize)> {
            item.features.iter().map(|rows| (rows.modality.as_str(), (rows.encoder.as_str(), rows.width))).collect()
        };
        let mut all = items.into_iter().map(encoders);
        let first = all.next();
        all.all(|own| Some(own) == first)
    }

    /// Whether the item has features of every modality that the model of `config` reads.
    pub fn is_complete(&self, config: &Config) -> bool {
        let mut modalities = config.model.modalities.iter();
        modalities.all(|modality| self.features.iter().any(|rows| rows.modality == modality.name))
    }

    /// The table of the items.
    pub fn table(stored: &[Self]) -> Items {
        let mut items = Items::default();
        for Self { id, texts, .. } in stored {
            let ItemTexts { title, sentences, images, categories, sounds } = texts.clone();
            items.ids.push(id.clone());
            items.titles.push(title);
            items.sentences.push(sentences);
            items.images.push(images);
            items.categories.push(categories);
            items.sounds.push(sounds);
        }
        items
    }

    /// The item with the bytes of its images, which are named by their content. `image` reads an image file by its name.
    pub fn with_images<E>(
        mut self,
        image: impl Fn(&str) -> std::result::Result<Option<Vec<u8>>, E>,
    ) -> std::result::Result<Self, E> {
        self.images = self.texts.images.iter().map(|name| image(name)).collect::<std::result::Result<_, E>>()?;
        self.texts.images = self.images.iter().map(|bytes| name_of(bytes.as_deref())).collect();
        Ok(self)
    }
}

/// The name of an image file: a hash of its content.
fn name_of(bytes: Option<&[u8]>) -> String {
    bytes.map_or_else(|| "missing".to_owned(), |bytes| blake3::hash(bytes).to_hex()[..32].to_owned())
}

fn size_of_kind(kind: &str) -> Option<usize> {
    match kind {
        "f16" | "bf16" => Some(2),
        "f32" => Some(4),
        _ => None,
    }
}

/// Writes the item table and the features of stored items to the folder `own`, as `mp4sr items add` does in the folder of a run.
pub fn write(own: &Layout, config: &Config, stored: &[StoredItem]) -> anyhow::Result<()> {
    let items = StoredItem::table(stored);
    items.write_relative(&own.items(), Path::new(&config.dataset.data))?;
    for modality in &config.model.modalities {
        let mut rows_of_items = Vec::with_capacity(stored.len());
        for item in stored {
            let rows = item
                .features
                .iter()
                .find(|rows| rows.modality == modality.name)
                .with_context(|| no_features(&item.id, &modality.name))?;
            rows_of_items.push((item, rows));
        }
        let Some(&(first, like)) = rows_of_items.first() else { continue };
        for (item, rows) in &rows_of_items {
            let same = (&rows.encoder, rows.width) == (&like.encoder, like.width);
            ensure!(same, two_encoders(&modality.name, &first.id, &item.id));
        }
        write_features(own, config, &modality.name, &items, &rows_of_items)?;
    }
    Ok(())
}

/// The error about an added item that lacks features of a modality.
pub(crate) fn no_features(id: &str, modality: &str) -> String {
    format!(
        "the added item {} has no features of `{modality}`, because the run did not read them when it was added; add all items again with \
         one `mp4sr items add`, or remove those without them with `mp4sr items remove`",
        quoted(id)
    )
}

/// The error about added items whose features of a modality come from two encoders.
pub(crate) fn two_encoders(modality: &str, one: &str, other: &str) -> String {
    format!(
        "the features of `{modality}` of the added items {} and {} come from two encoders; add all items again with one `mp4sr items add`, \
         or remove those of the earlier encoder with `mp4sr items remove`",
        quoted(one),
        quoted(other)
    )
}

fn write_features(
    own: &Layout,
    config: &Config,
    modality: &str,
    items: &Items,
    rows_of_items: &[(&StoredItem, &StoredRows)],
) -> anyhow::Result<()> {
    let Some((_, like)) = rows_of_items.first() else { return Ok(()) };
    // Items that were added before and after a change of `extract.storage` are stored in the type that holds all of their values.
    let is_one_type = rows_of_items.iter().all(|(_, rows)| rows.kind == like.kind);
    let as_type = match like.kind.as_str() {
        "f16" if is_one_type => FeatureType::F16,
        "bf16" if is_one_type => FeatureType::Bf16,
        _ => FeatureType::F32,
    };
    let (mut offsets, mut values) = (vec![0_i64], Vec::new());
    for (item, rows) in rows_of_items {
        let size = size_of_kind(&rows.kind).with_context(|| format!("`{}` is not a type of features", rows.kind))?;
        let is_whole = like.width > 0 && rows.values.len().is_multiple_of(like.width * size);
        ensure!(is_whole, "the features of the added item {} are incomplete; add it again", quoted(&item.id));
        values.extend(rows.values.chunks_exact(size).map(|bytes| match *bytes {
            [a, b] if rows.kind == "f16" => f16::from_le_bytes([a, b]).to_f32(),
            [a, b] => bf16::from_le_bytes([a, b]).to_f32(),
            [a, b, c, d] => f32::from_le_bytes([a, b, c, d]),
            _ => f32::NAN,
        }));
        offsets.push((values.len() / like.width) as i64);
    }
    let own_modality = config.model.modalities.iter().find(|own| own.name == modality);
    let name = own_modality.map(|own| config.feature_name(own)).unwrap_or_default();
    let header = RowsHeader {
        stage: NAME,
        settings: json!({ "encoder": like.encoder }),
        item_hash: items.hash(),
        offsets: &offsets,
        width: like.width,
        as_type,
    };
    let path = own.feature_file(modality, &name);
    let refused = Features::write_rows(&path, header, || values.chunks_exact(like.width))?;
    ensure!(
        refused.is_none(),
        "the features of `{modality}` of the added items have values that are not finite; add them again"
    );
    Ok(())
}
