use std::path::PathBuf;

use anyhow::Context as _;
use mp4sr_artifact::{Layout, MappedFeatures, MappedValues, Sequences};
use mp4sr_models::{Modality, Ragged, StoredValues};
use mp4sr_pipeline::Config;
use mp4sr_pipeline::config::ModelName;

/// What a model is built from and trained on.
#[derive(Debug)]
pub struct Inputs {
    /// Users' events.
    pub sequences: Sequences,
    /// Features by modality, in the order of the configuration; empty for models that read none.
    pub modalities: Vec<Modality>,
}

impl Inputs {
    /// The files that a run reads, by role.
    pub fn files(layout: &Layout, config: &Config) -> Vec<(String, PathBuf)> {
        let mut files = vec![("sequences".to_owned(), layout.sequences())];
        if reads_features(config.model.name) {
            for modality in &config.model.modalities {
                let path = layout.feature_file(&modality.name, &config.feature_name(modality));
                files.push((format!("features of {}", modality.name), path));
            }
        }
        files
    }

    /// Reads and verifies them.
    pub fn load(layout: &Layout, config: &Config) -> anyhow::Result<Self> {
        let sequences = Sequences::read(&layout.sequences())?;
        let mut modalities = Vec::new();
        if reads_features(config.model.name) {
            for modality in &config.model.modalities {
                let path = layout.feature_file(&modality.name, &config.feature_name(modality));
                let features = MappedFeatures::open(&path, &sequences.item_hash, sequences.item_count)?;
                let offsets: Vec<usize> = features.offsets.iter().map(|&o| o as usize).collect();
                let values = match features.values {
                    MappedValues::F32(values) => StoredValues::F32(values),
                    MappedValues::F16(values) => StoredValues::F16(values),
                    MappedValues::Bf16(values) => StoredValues::Bf16(values),
                };
                let rows = Ragged::stored(values, features.width, &offsets)
                    .with_context(|| format!("failed to use `{}`", path.display()))?;
                modalities.push(Modality { name: modality.name.clone(), features: rows });
            }
        }
        Ok(Self { sequences, modalities })
    }
}

fn reads_features(model: ModelName) -> bool {
    match model {
        ModelName::Mp4sr => true,
        ModelName::Sasrec | ModelName::Popularity => false,
    }
}
