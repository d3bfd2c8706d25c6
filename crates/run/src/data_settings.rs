//! Compares the settings of a pipeline with those by which the dataset and the features of a run were made, as far as these record theirs.

use std::path::Path;

use mp4sr_artifact::{Layout, Manifest, recorded_settings};
use mp4sr_models::FINETUNE;
use mp4sr_pipeline::Config;
use mp4sr_pipeline::config::{Extract, ImageFeatures, Modality, ModelCatalog, Preprocess, Source};
use serde_json::{Map, Value, json};

use crate::{CheckpointInfo, Inputs, model_catalog};

/// The settings by which a file that a run reads was made.
struct MadeBy {
    /// What was made, as the subject of a sentence.
    what: String,
    /// The stage that made it.
    stage: &'static str,
    /// The recorded settings, with the names of their sections.
    recorded: Value,
    /// The same settings of the pipeline.
    now: Value,
}

impl MadeBy {
    fn dataset(layout: &Layout, config: &Config) -> Option<Self> {
        let recorded = Manifest::find(&layout.dataset(), "preprocess")?.settings;
        let mut now = Map::new();
        for (section, keys) in [("source", json!(config.source)), ("preprocess", config.preprocess.deciding())] {
            if recorded[section].is_object() {
                now.insert(section.to_owned(), keys);
            }
        }
        let recorded = now.keys().map(|section| (section.clone(), recorded[section].clone())).collect::<Map<_, _>>();
        Some(Self {
            what: "the dataset was made".to_owned(),
            stage: "preprocess",
            recorded: recorded.into(),
            now: now.into(),
        })
    }

    /// The features of a modality in the file at `path`. Another program's file has no such record.
    fn features(path: &Path, modality: &str, config: &Config) -> Option<Self> {
        let recorded = recorded_settings(path)?;
        let all = json!(config.extract);
        let by_words = modality == "image" && config.extract.image.features == ImageFeatures::Words;
        let is_read = |key: &str| key == modality || key == "storage" || key == "text" && by_words;
        let keys = all.as_object()?.iter().filter(|(key, _)| is_read(key) && !recorded[key.as_str()].is_null());
        let now: Map<String, Value> = keys.map(|(key, value)| (key.clone(), value.clone())).collect();
        let recorded = now.keys().map(|key| (key.clone(), recorded[key].clone())).collect::<Map<_, _>>();
        Some(Self {
            what: format!("the features of `{modality}` were computed"),
            stage: "extract",
            recorded: json!({ "extract": recorded }),
            now: json!({ "extract": now }),
        })
    }

    /// The dataset and the features that a run reads, without those that record nothing.
    fn all(layout: &Layout, config: &Config) -> Vec<Self> {
        let features = if Inputs::reads_features(config) { &config.model.modalities[..] } else { &[] };
        let extracted = features.iter().filter(|modality| modality.features.is_empty());
        let of_modality = |modality: &Modality| {
            let path = layout.feature_file(&modality.name, &config.feature_name(modality));
            Self::features(&path, &modality.name, config)
        };
        Self::dataset(layout, config).into_iter().chain(extracted.filter_map(of_modality)).collect()
    }

    fn warning(&self, models: &ModelCatalog) -> Option<String> {
        let defaults =
            json!({ "source": Source::default(), "preprocess": Preprocess::default(), "extract": Extract::default() });
        let key = models.settings(self.now.clone(), defaults).changed_since(&self.recorded)?;
        let (then, now) = (shown(&self.recorded, &key), shown(&self.now, &key));
        let Self { what, stage, .. } = self;
        Some(format!("{what} with `{key}` = {then}, not {now}; `mp4sr {stage}` uses this setting"))
    }
}

/// Returns warnings about settings of `config` with which the dataset and the features of a run were not made.
pub fn other_data_settings(layout: &Layout, config: &Config) -> Vec<String> {
    MadeBy::all(layout, config).iter().filter_map(|made| made.warning(model_catalog())).collect()
}

/// Returns warnings about settings of `config` with which the data and the weights of a run were not made. These are not errors, because
/// what exists may well be used, but a user may believe that it was made with these settings.
pub fn other_settings(layout: &Layout, config: &Config) -> Vec<String> {
    let models = model_catalog();
    let mut warnings = other_data_settings(layout, config);
    let recorded = recorded_settings(&layout.checkpoint(FINETUNE));
    if let Some(info) = recorded.and_then(|settings| serde_json::from_value::<CheckpointInfo>(settings).ok()) {
        warnings.extend(info.other_pretraining(models, layout, config));
        warnings.extend(info.other_training(models, config, FINETUNE));
    }
    warnings
}

/// Replaces the settings of the dataset and the features in `resolved` by those with which they were made.
pub fn record_data(resolved: &mut Value, layout: &Layout, config: &Config) {
    for made in MadeBy::all(layout, config) {
        overlay(resolved, &made.recorded);
    }
}

/// Replaces the values of the keys that both have.
fn overlay(to: &mut Value, from: &Value) {
    match (to, from) {
        (Value::Object(to), Value::Object(from)) => {
            for (key, value) in from {
                if let Some(own) = to.get_mut(key) {
                    overlay(own, value);
                }
            }
        }
        (to, from) => *to = from.clone(),
    }
}

/// The value of a key with its sections, as text; a key that is not recorded had its default.
pub(crate) fn shown(settings: &Value, key: &str) -> String {
    let pointer = format!("/{}", key.replace('[', "/").replace(']', "").replace('.', "/"));
    settings.pointer(&pointer).map_or_else(|| "its default".to_owned(), Value::to_string)
}
