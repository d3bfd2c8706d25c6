//! A recipe defines how a model is named, configured and built. Every model's file contains its recipe, and
//! [`RECIPES`](crate::RECIPES) lists them.

use mp4sr_ops::{Error, Result, RngKey};
use schemars::{JsonSchema, Schema, generate::SchemaSettings};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{CandidateSampler, Data, Model, Phase, Refused, Renamed, TransformerConfig};

/// How a model is named, configured and built.
///
/// ```
/// use mp4sr_models::{RECIPES, recipe};
///
/// let sasrec = recipe("sasrec").expect("a baseline");
/// assert_eq!(sasrec.title, "SASRec");
/// assert!(sasrec.reads.transformer && !sasrec.reads.features);
/// assert!(RECIPES.iter().any(|recipe| recipe.name == "mp4sr"));
/// ```
#[derive(Debug)]
pub struct Recipe {
    /// The name of the model in the configuration (`model.name`), where its own section is `[model.<name>]`.
    pub name: &'static str,
    /// The name of the model in tables.
    pub title: &'static str,
    /// A description of the model in one sentence, for the configuration's reference.
    pub summary: &'static str,
    /// The publication of the model.
    pub paper: &'static str,
    /// The inputs of the model.
    pub reads: Reads,
    /// The optional abilities of the model.
    pub supports: Supports,
    /// The keys of the model's own section.
    pub section: Section,
    /// Whether a phase reads a key of the model's own section. A change of the other keys never causes that phase to be trained again.
    pub phase_reads: fn(settings: &ModelSettings<'_>, phase: &str, key: &str) -> bool,
    /// Keys of other sections that have a different default for this model, as TOML.
    pub defaults: &'static str,
    /// Named sets of keys (`run.preset`), as TOML.
    pub presets: &'static [Preset],
    /// The grid that `mp4sr search` tries if none is given: `section.key=value,value,...` per key.
    pub grid: &'static [&'static str],
    /// Keys that had another name in earlier releases.
    pub renamed: &'static [Renamed],
    /// The parameters with a row per item, the rows of the items last, if the model can rank items that training has not seen by their
    /// features. The rows of such items are zeros, as if the model had no ids. `None` if the model needs a trained id.
    pub item_tables: fn(settings: &ModelSettings<'_>) -> Option<&'static [&'static str]>,
    /// Refuses settings that the type and the range of a single key cannot exclude.
    pub check: fn(settings: &ModelSettings<'_>) -> std::result::Result<(), Refused>,
    /// The phases of the model under these settings.
    pub phases: fn(settings: &ModelSettings<'_>) -> Result<Vec<Phase>>,
    /// Creates a model whose initial parameters are determined by the key.
    pub build: fn(settings: &ModelSettings<'_>, data: Data, key: RngKey) -> Result<Box<dyn Model>>,
}

/// The search grid of the MP4SR paper (section 4.1.4), for models with weight decay.
pub(crate) const DECAY_GRID: &[&str] =
    &["finetune.learning_rate=1e-4,5e-4,1e-3", "finetune.batch=256,512,1024", "finetune.weight_decay=1e-4,5e-4,1e-3"];

/// The inputs of a model in addition to its own section and the training sequences.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reads {
    /// Whether it reads the features of `model.modalities`.
    pub features: bool,
    /// Whether it reads `[model.transformer]`.
    pub transformer: bool,
    /// The keys of its own section, and the values of these keys, for which it reads the items' categories.
    pub categories: &'static [(&'static str, &'static str)],
}

/// Optional abilities of a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Supports {
    /// Whether it can use `finetune.candidates`: the comparison with a sample of the items.
    pub candidates: bool,
    /// Whether several processes can train it together.
    pub processes: bool,
}

impl Supports {
    /// None of these abilities.
    pub const NOTHING: Self = Self { candidates: false, processes: false };
}

impl Reads {
    /// The key for which a model with this section reads the items' categories; `None` if it does not read them.
    pub fn category_key(&self, own: &Value) -> Option<&'static str> {
        self.categories.iter().find(|(key, value)| own[key] == *value).map(|(key, _)| *key)
    }
}

/// A set of keys that `run.preset` sets together.
#[derive(Clone, Copy, Debug)]
pub struct Preset {
    /// The value of `run.preset`.
    pub name: &'static str,
    /// The purpose of the preset.
    pub summary: &'static str,
    /// The keys, as TOML.
    pub keys: &'static str,
}

/// A section of the configuration: its keys with types, ranges and defaults.
#[derive(Clone, Copy, Debug)]
pub struct Section {
    schema: fn() -> Schema,
    /// Completes the section, so that it has a value for every key.
    pub resolve: fn(Value) -> serde_json::Result<Value>,
}

impl Section {
    /// The section that `T` is read from.
    pub const fn of<T: JsonSchema + Serialize + DeserializeOwned>() -> Self {
        Self { schema: schema_of::<T>, resolve: resolve_as::<T> }
    }

    /// The schema of the section's keys, with all references resolved.
    pub fn schema(&self) -> Schema {
        (self.schema)()
    }
}

fn schema_of<T: JsonSchema>() -> Schema {
    let settings = SchemaSettings::default().with(|settings| settings.inline_subschemas = true);
    settings.into_generator().into_root_schema_for::<T>()
}

fn resolve_as<T: Serialize + DeserializeOwned>(section: Value) -> serde_json::Result<Value> {
    serde_json::to_value(serde_json::from_value::<T>(section)?)
}

/// The section of a model without keys of its own, which must be empty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct NoKeys {}

/// The part of the configuration that a recipe sees.
#[derive(Clone, Copy, Debug)]
pub struct ModelSettings<'a> {
    /// The model's own section, with a value for every key.
    pub own: &'a Value,
    /// `[model.transformer]`, with a value for every key.
    pub transformer: &'a Value,
    /// The names in `model.modalities`, in order.
    pub modalities: &'a [String],
    /// Whether the pipeline includes pre-training.
    pub pretrains: bool,
    /// n of `finetune.candidates`, the number of items that a step's softmax draws; `None` if all items are candidates.
    pub candidates: Option<usize>,
    /// The minimum number of training events of the items that pre-training reads; 0 if it reads all items.
    pub pretrain_events: u32,
}

impl ModelSettings<'_> {
    /// Reads the model's own section as its type.
    pub fn own<T: DeserializeOwned>(&self) -> Result<T> {
        read(self.own, "the model's own section")
    }

    /// The sampler of a step's candidates; `None` if all items are candidates.
    pub(crate) fn candidate_sampler(&self, data: &Data) -> Result<Option<CandidateSampler>> {
        self.candidates.map(|drawn| CandidateSampler::new(drawn, data.items, &data.training)).transpose()
    }

    /// The items that pre-training reads, 1-based, ascending; `None` if it reads all items.
    pub(crate) fn pretrain_items(&self, data: &Data) -> Option<Vec<u32>> {
        (self.pretrain_events > 0).then(|| {
            let mut events = vec![0; data.items];
            data.training.items.iter().for_each(|&item| events[item as usize - 1] += 1);
            (1..).zip(events).filter(|(_, events)| *events >= self.pretrain_events).map(|(item, _)| item).collect()
        })
    }

    /// Reads the keys that transformers share.
    pub fn transformer(&self) -> Result<TransformerConfig> {
        read(self.transformer, "`[model.transformer]`")
    }
}

fn read<T: DeserializeOwned>(section: &Value, what: &str) -> Result<T> {
    serde_json::from_value(section.clone()).map_err(|error| Error::Msg(format!("failed to read {what}: {error}")))
}
