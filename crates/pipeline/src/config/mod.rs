//! Every key of a pipeline file, its default and its range. `docs/configuration.md` is printed from these types.

mod dataset;
mod download;
mod extract;
mod model;
mod preset;
mod training;

pub use dataset::{Columns, DataPreset, Dataset, Format, Missing, Preprocess, Repeated, Source};
pub use download::{Download, RawFile};
pub use extract::{BUILTIN, Extract, Extracted, ImageExtract, ImageFeatures, Storage, TextExtract};
pub use model::{
    CmclDirection, FINETUNE_KEYS, Logits, Modality, Model, ModelName, PoolingGradient, PoolingRows, Projection,
    SameTarget,
};
pub use preset::Preset;
pub use training::{Evaluate, Finetune, Pretrain, PretrainItems, Recommend, Report, Run, SeenItems, SequenceDropout};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use std::path::Path;

use crate::strict::{self, ConfigError};

/// A resolved pipeline: every key has a value.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// What the dataset is called and where its raw files lie.
    pub dataset: Dataset,
    /// What is fetched from elsewhere.
    pub download: Download,
    /// How to read the raw files.
    pub source: Source,
    /// Filters and text cleaning.
    pub preprocess: Preprocess,
    /// Encoders of sentences and images.
    pub extract: Extract,
    /// The recommender.
    pub model: Model,
    /// Pre-training with NIP and CMCL.
    pub pretrain: Pretrain,
    /// Fine-tuning with cross-entropy.
    pub finetune: Finetune,
    /// Ranking and metrics.
    pub evaluate: Evaluate,
    /// Top-K lists.
    pub recommend: Recommend,
    /// The report page.
    pub report: Report,
    /// What belongs to a run as a whole.
    pub run: Run,
}

impl Config {
    /// Reads a pipeline file and applies `overrides`, each `section.key=value`.
    pub fn load(path: &Path, overrides: &[String]) -> Result<Self, ConfigError> {
        let text = mp4sr_artifact::files::read_to_string(path)?;
        Self::parse(&text, &path.display().to_string(), overrides)
    }

    /// Parses the text of a pipeline file called `origin`.
    pub fn parse(text: &str, origin: &str, overrides: &[String]) -> Result<Self, ConfigError> {
        let mut table: toml::Table = text.parse().map_err(|e: toml::de::Error| ConfigError::syntax(origin, &e))?;
        for assignment in overrides {
            strict::assign(&mut table, assignment)?;
        }
        strict::check(&table, &schemars::schema_for!(Self), origin)?;
        preset::fill(&mut table);
        let mut config: Self = toml::Value::Table(table)
            .try_into()
            .map_err(|e: toml::de::Error| ConfigError::invalid(origin, e.message()))?;
        config.resolve();
        config.check(origin)?;
        Ok(config)
    }

    /// The configuration as a pipeline file that gives it again.
    pub fn to_toml(&self) -> Result<String, ConfigError> {
        toml::to_string_pretty(self).map_err(|e| ConfigError::invalid("the resolved configuration", &e.to_string()))
    }

    /// What decides a run's results, for the headers of its files: every section, but for places, names and looks.
    pub fn resolved(&self) -> serde_json::Value {
        let mut value = serde_json::to_value(self).unwrap_or_default();
        if let Some(sections) = value.as_object_mut() {
            for section in ["download", "recommend", "report"] {
                sections.remove(section);
            }
            for (section, key) in [("dataset", "data"), ("run", "name"), ("run", "save_seconds")] {
                sections.get_mut(section).and_then(|s| s.as_object_mut()).and_then(|keys| keys.remove(key));
            }
        }
        value
    }

    fn resolve(&mut self) {
        self.preprocess.resolve();
        if self.dataset.data.is_empty() {
            "data".clone_into(&mut self.dataset.data);
        }
    }

    /// What no single key's type or range can say.
    fn check(&self, origin: &str) -> Result<(), ConfigError> {
        let fail = |key: &str, value: String, allowed: &str| Err(ConfigError::value(origin, key, &value, allowed));
        if !self.model.width.is_multiple_of(self.model.heads) {
            return fail(
                "model.heads",
                self.model.heads.to_string(),
                &format!("a divisor of model.width = {}", self.model.width),
            );
        }
        let name = &self.dataset.name;
        if !is_name(name) {
            return fail("dataset.name", format!("{name:?}"), "letters, digits, `-`, `_`, `.`");
        }
        self.download.check().or_else(|(key, value, allowed)| fail(&key, value, &allowed))?;
        if self.model.modalities.is_empty() {
            return fail("model.modalities", "[]".to_owned(), "at least one modality");
        }
        for (at, modality) in self.model.modalities.iter().enumerate() {
            if self.model.modalities[..at].iter().any(|m| m.name == modality.name) {
                return fail("model.modalities", format!("{:?} twice", modality.name), "distinct names");
            }
        }
        let from = &self.pretrain.from;
        let is_run = from.split_once('/').is_some_and(|(dataset, run)| is_name(dataset) && is_name(run));
        if !from.is_empty() && !is_run {
            return fail("pretrain.from", format!("{from:?}"), "`<dataset>/<run>`");
        }
        let pretrain = &self.pretrain;
        let compares = pretrain.lambda > 0.0 && self.model.modalities.len() > 1;
        if pretrain.enabled && pretrain.nip_weight <= 0.0 && !compares {
            let allowed = "more than 0, or `pretrain.lambda` above 0 and two modalities: pre-training needs a loss";
            return fail("pretrain.nip_weight", pretrain.nip_weight.to_string(), allowed);
        }
        if let Some(zero) = self.evaluate.short_histories.iter().find(|&&events| events == 0) {
            return fail("evaluate.short_histories", zero.to_string(), "numbers from 1");
        }
        for modality in &self.model.modalities {
            for (key, share) in [("lost", modality.lost), ("swapped", modality.swapped)] {
                if !(0.0..=1.0).contains(&share) {
                    return fail(&format!("model.modalities.{key}"), share.to_string(), "a share from 0 to 1");
                }
            }
        }
        for name in &self.model.logit_modalities {
            if !self.model.modalities.iter().any(|m| m.name == *name) {
                let known: Vec<_> = self.model.modalities.iter().map(|m| m.name.as_str()).collect();
                return fail(
                    "model.logit_modalities",
                    format!("{name:?}"),
                    &format!("names from model.modalities: {}", known.join(", ")),
                );
            }
        }
        Ok(())
    }

    /// Which features of `[extract]` the modalities read.
    pub fn extracted(&self) -> Extracted {
        let reads = |name: &str, encoder: String| {
            self.model.modalities.iter().any(|modality| modality.name == name && self.feature_name(modality) == encoder)
        };
        Extracted {
            text: reads("text", self.extract.text.encoder_name()),
            image: reads("image", self.extract.image.encoder_name(&self.extract.text)),
        }
    }

    /// The encoder part of a modality's feature file name.
    pub fn feature_name(&self, modality: &Modality) -> String {
        if !modality.features.is_empty() {
            return modality.features.clone();
        }
        if modality.name == "image" {
            self.extract.image.encoder_name(&self.extract.text)
        } else {
            self.extract.text.encoder_name()
        }
    }
}

/// Whether it can name a dataset or a run: a folder inside the artifacts.
pub(crate) fn is_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    !name.is_empty() && !name.starts_with('.') && name.chars().all(allowed)
}
