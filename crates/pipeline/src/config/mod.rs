//! Every key of a pipeline file, with its default and its range. `docs/configuration.md` is generated from these types.

mod catalog;
mod dataset;
mod download;
mod evaluation;
mod extract;
mod model;
mod read;
mod refused;
mod renamed;
mod results;
mod run;
mod serve;
mod training;

pub use catalog::{ModelCatalog, ModelType, PresetKeys, SectionType, SharedSection};
pub use dataset::{
    Columns, DataPreset, Dataset, Format, ItemOrder, Missing, Preprocess, Quoting, Repeated, Source, SplitBy,
    WithoutEvents,
};
pub use download::{Download, RawFile};
pub use evaluation::{Evaluate, SeenItems};
pub use extract::{AudioExtract, BUILTIN, Extract, Extracted, ImageExtract, ImageFeatures, TextExtract};
pub use model::{Modality, Model};
pub use mp4sr_artifact::{FINETUNE, PRETRAIN};
pub use refused::RefusedValue;
pub use renamed::RenamedKey;
pub use results::{Recommend, Report};
pub use run::Run;
pub use serve::{Serve, StoreUrl};
pub use training::{Finetune, PhaseSettings, Precision, Pretrain, PretrainItems, Train};

use std::collections::BTreeSet;
use std::path::PathBuf;

use mp4sr_artifact::{Layout, role};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::strict::ConfigError;

/// A resolved pipeline: every key has a value.
///
/// ```
/// use mp4sr_pipeline::config::ModelCatalog;
/// use mp4sr_pipeline::Config;
///
/// let text = "[dataset]\nname = \"shop\"\n[finetune]\nbatch = 256";
/// let overrides = ["finetune.epochs=5".to_owned()];
/// let (config, warnings) = Config::parse(text, "shop.toml", &overrides, &ModelCatalog::unchecked())?;
/// assert_eq!((config.finetune.settings.batch, config.finetune.settings.epochs), (256, 5));
/// assert!(warnings.is_empty());
///
/// let unknown = Config::parse("[finetune]\nbatchh = 256", "shop.toml", &[], &ModelCatalog::unchecked());
/// assert!(unknown.unwrap_err().to_string().contains("unknown key `finetune.batchh`"));
/// # Ok::<(), mp4sr_pipeline::ConfigError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The name of the dataset and the folder of its raw files.
    pub dataset: Dataset,
    /// What is downloaded.
    pub download: Download,
    /// How to read the raw files.
    pub source: Source,
    /// Filters and text cleaning.
    pub preprocess: Preprocess,
    /// Encoders of sentences, images and sounds.
    pub extract: Extract,
    /// The recommender.
    pub model: Model,
    /// Training, in either phase.
    pub train: Train,
    /// Pre-training.
    pub pretrain: Pretrain,
    /// Fine-tuning.
    pub finetune: Finetune,
    /// Ranking and metrics.
    pub evaluate: Evaluate,
    /// Top-K lists.
    pub recommend: Recommend,
    /// The report page.
    pub report: Report,
    /// Where added items are kept.
    pub serve: Serve,
    /// What belongs to a run as a whole.
    pub run: Run,
}

impl Config {
    /// The configuration as the text of a pipeline file, from which it can be read again.
    pub fn to_toml(&self) -> Result<String, ConfigError> {
        let mut own = self.clone();
        for section in own.model.sections.values_mut() {
            *section = renamed::without_nulls(std::mem::take(section));
        }
        toml::to_string_pretty(&own).map_err(|e| ConfigError::invalid("the resolved configuration", &e.to_string()))
    }

    /// The settings that decide a run's results, for the headers of its files: every section, without paths, names and the appearance of
    /// results.
    pub fn resolved(&self) -> serde_json::Value {
        let mut value = serde_json::to_value(self).unwrap_or_default();
        if let Some(sections) = value.as_object_mut() {
            for section in ["download", "recommend", "report", "serve"] {
                sections.remove(section);
            }
            for (section, key) in [("dataset", "data"), ("run", "name"), ("run", "save_seconds")] {
                sections.get_mut(section).and_then(|s| s.as_object_mut()).and_then(|keys| keys.remove(key));
            }
        }
        value
    }

    /// The section of a phase in the form in which manifests record it.
    pub(crate) fn phase_section(&self, phase: &str) -> Json {
        let section = match phase {
            PRETRAIN => serde_json::to_value(&self.pretrain),
            _ => serde_json::to_value(&self.finetune),
        };
        section.unwrap_or_default()
    }

    /// The settings of a phase: its epochs, steps and optimiser.
    pub fn phase(&self, phase: &str) -> &PhaseSettings {
        match phase {
            PRETRAIN => &self.pretrain.settings,
            _ => &self.finetune.settings,
        }
    }

    fn resolve(&mut self) {
        self.preprocess.resolve();
        if self.dataset.data.is_empty() {
            "data".clone_into(&mut self.dataset.data);
        }
    }

    /// Checks conditions that the type or range of a single key cannot express.
    fn check(&self, origin: &str) -> Result<(), ConfigError> {
        let fail = |key: &str, value: String, allowed: &str| Err(ConfigError::value(origin, key, &value, allowed));
        let name = &self.dataset.name;
        if let Err(allowed) = check_name(name) {
            return fail("dataset.name", format!("{name:?}"), &allowed);
        }
        self.download.check().or_else(|refused| fail(&refused.key, refused.value, &refused.allowed))?;
        if self.model.modalities.is_empty() {
            return fail("model.modalities", "[]".to_owned(), "at least one modality");
        }
        for (at, modality) in self.model.modalities.iter().enumerate() {
            if self.model.modalities[..at].iter().any(|m| m.name == modality.name) {
                let names: Vec<&str> = self.model.modalities.iter().map(|m| m.name.as_str()).collect();
                return fail("model.modalities", format!("{names:?}"), "distinct names");
            }
        }
        let from = &self.pretrain.from;
        let is_run =
            from.split_once('/').is_some_and(|(dataset, run)| check_name(dataset).and(check_name(run)).is_ok());
        if !from.is_empty() && !is_run {
            return fail("pretrain.from", format!("{from:?}"), "`<dataset>/<run>`");
        }
        if !self.serve.store.has_known_form() {
            // A text that is not a URL may still contain a password.
            let allowed = "`postgres://USER:PASSWORD@HOST:PORT/DATABASE`, `env:NAME`, `file:PATH`, or nothing";
            return fail("serve.store", "\"...\"".to_owned(), allowed);
        }
        let device = &self.run.device;
        let is_gpu = device.strip_prefix("cuda:").is_some_and(|gpu| gpu.parse::<u16>().is_ok());
        if device != "cpu" && !is_gpu {
            return fail("run.device", format!("{device:?}"), "\"cpu\", or \"cuda:0\" with the number of a GPU");
        }
        let precisions = [("train.precision", self.train.precision), ("extract.precision", self.extract.precision)];
        for (key, precision) in precisions {
            if device == "cpu" && precision == Precision::Tf32 {
                return fail(key, "\"tf32\" on the CPU".to_owned(), "\"f32\" or \"bf16\", or a GPU in `run.device`");
            }
        }
        if let Err(allowed) = self.finetune.drawn_candidates() {
            return fail("finetune.candidates", format!("{:?}", self.finetune.candidates), allowed);
        }
        for (key, numbers) in
            [("evaluate.k", &self.evaluate.k), ("evaluate.short_histories", &self.evaluate.short_histories)]
        {
            let distinct: BTreeSet<&usize> = numbers.iter().collect();
            if distinct.contains(&0) || distinct.len() < numbers.len() {
                return fail(key, format!("{numbers:?}"), "numbers from 1, each once");
            }
        }
        let metrics = &self.evaluate.metrics;
        if metrics.iter().collect::<BTreeSet<_>>().len() < metrics.len() {
            return fail("evaluate.metrics", format!("{metrics:?}"), "metrics, each once");
        }
        let reads_sounds = |modality: &&Modality| modality.name == "audio" && modality.features.is_empty();
        if self.extract.audio.model.is_empty() && self.model.modalities.iter().any(|modality| reads_sounds(&modality)) {
            return fail("extract.audio.model", "\"\"".to_owned(), "a Whisper model, for the modality `audio`");
        }
        for modality in &self.model.modalities {
            for (key, share) in [("lost", modality.lost), ("swapped", modality.swapped)] {
                if !(0.0..=1.0).contains(&share) {
                    return fail(&format!("model.modalities.{key}"), share.to_string(), "a share from 0 to 1");
                }
            }
            if modality.lost + modality.swapped > 1.0 + 1e-9 {
                let allowed = "a share that is at most 1 together with `lost`";
                return fail("model.modalities.swapped", modality.swapped.to_string(), allowed);
            }
        }
        Ok(())
    }

    /// The run whose pre-trained weights fine-tuning starts from: the run of `layout` itself, or that of `pretrain.from`.
    pub fn pretraining_run(&self, layout: &Layout) -> Layout {
        self.pretrain.from.split_once('/').map_or_else(|| layout.clone(), |(dataset, run)| layout.of(dataset, run))
    }

    /// The features of `[extract]` that the modalities read.
    pub fn extracted(&self) -> Extracted {
        let reads = |name: &str, encoder: String| {
            self.model.modalities.iter().any(|modality| modality.name == name && self.feature_name(modality) == encoder)
        };
        Extracted {
            text: reads("text", self.extract.text.encoder_name()),
            image: reads("image", self.extract.image.encoder_name(&self.extract.text)),
            audio: reads("audio", self.extract.audio.encoder_name()),
        }
    }

    /// The encoder part of a modality's feature file name.
    pub fn feature_name(&self, modality: &Modality) -> String {
        if !modality.features.is_empty() {
            return modality.features.clone();
        }
        match modality.name.as_str() {
            "image" => self.extract.image.encoder_name(&self.extract.text),
            "audio" => self.extract.audio.encoder_name(),
            _ => self.extract.text.encoder_name(),
        }
    }

    /// The feature files of all modalities, by the role that records give them.
    pub fn feature_files(&self, layout: &Layout) -> Vec<(String, PathBuf)> {
        let file = |modality: &Modality| {
            let path = layout.feature_file(&modality.name, &self.feature_name(modality));
            (role::features(&modality.name), path)
        };
        self.model.modalities.iter().map(file).collect()
    }
}

/// The maximum number of characters in the name of a dataset or a run. It is less than the limit for file names, because these contain
/// more than this name.
const LONGEST_NAME: usize = 200;

/// Refuses a text that cannot be the name of a dataset or a run, which is also the name of a folder. The error says which names are
/// allowed.
pub(crate) fn check_name(name: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.is_empty() || name.starts_with('.') || !name.chars().all(allowed) {
        return Err("letters, digits, `-`, `_` and `.`, with no `.` at the start".to_owned());
    }
    if name.len() > LONGEST_NAME {
        return Err(format!("a shorter name: it has {} characters, and {LONGEST_NAME} are allowed", name.len()));
    }
    Ok(())
}
