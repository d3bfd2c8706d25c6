//! A recipe defines how a model is named, configured and built. Every model's file contains its recipe, and [`RECIPES`] lists them: no
//! other code knows which models exist.

use std::sync::Arc;

use mp4sr_ops::{Error, ProcessGroup, Ragged, Result, RngKey};
use schemars::{JsonSchema, Schema, generate::SchemaSettings};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::features::Categories;
use crate::{
    CandidateSampler, Device, Model, Phase, TransformerConfig, cl4srec, clcrec, difsr, dualgnn, esasrec, fdsa, grcn,
    lightgcn, masr, mp4sr, mvrnn, popularity, s3rec, sasrec, sine, unisrec,
};

/// All models; the first is the default of a pipeline that names none.
pub static RECIPES: [&Recipe; 16] = [
    &mp4sr::RECIPE,
    &popularity::RECIPE,
    &lightgcn::RECIPE,
    &sasrec::RECIPE,
    &esasrec::RECIPE,
    &cl4srec::RECIPE,
    &sine::RECIPE,
    &fdsa::RECIPE,
    &difsr::RECIPE,
    &unisrec::RECIPE,
    &s3rec::RECIPE,
    &grcn::RECIPE,
    &dualgnn::RECIPE,
    &mvrnn::RECIPE,
    &clcrec::RECIPE,
    &masr::RECIPE,
];

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

/// The recipe of the model `name`.
pub fn recipe(name: &str) -> Option<&'static Recipe> {
    RECIPES.iter().copied().find(|recipe| recipe.name == name)
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
    /// Whether a model with this section reads the items' categories.
    pub fn reads_categories(&self, own: &Value) -> bool {
        self.categories.iter().any(|(key, value)| own[key] == *value)
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

/// A key that had another name in an earlier release.
#[derive(Clone, Copy, Debug)]
pub struct Renamed {
    /// The earlier name with its sections, which still works.
    pub from: &'static str,
    /// The current name with its sections.
    pub to: &'static str,
    /// The values that were renamed too, each as the earlier and the current value.
    pub values: &'static [(&'static str, &'static str)],
}

impl Renamed {
    /// A key whose values have not changed.
    pub const fn key(from: &'static str, to: &'static str) -> Self {
        Self { from, to, values: &[] }
    }
}

/// A key with a value that is not allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The key with its sections.
    pub key: String,
    /// The value that is refused.
    pub value: String,
    /// A description of the values that are allowed.
    pub allowed: String,
}

impl Refused {
    /// Refuses the value of a key and says what would be allowed.
    pub fn new(key: &str, value: &impl ToString, allowed: impl Into<String>) -> Self {
        Self { key: key.to_owned(), value: value.to_string(), allowed: allowed.into() }
    }
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

/// The section of a model that has no keys.
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

    /// Reads the keys that transformers share.
    pub fn transformer(&self) -> Result<TransformerConfig> {
        read(self.transformer, "`[model.transformer]`")
    }
}

fn read<T: DeserializeOwned>(section: &Value, what: &str) -> Result<T> {
    serde_json::from_value(section.clone()).map_err(|error| Error::Msg(format!("failed to read {what}: {error}")))
}

/// One modality: its name and its features, an entry per item.
#[derive(Clone, Debug)]
pub struct Modality {
    /// The name of the modality: `text`, `image`, or any other.
    pub name: String,
    /// The rows of the items 1..=I.
    pub features: Ragged,
}

/// The data that a model is built from. It contains nothing of the validation and test sets.
#[derive(Clone, Debug)]
pub struct Data {
    /// I, the number of items.
    pub items: usize,
    /// The training events of all users.
    pub training: Arc<TrainingSequences>,
    /// The features by modality, in the configuration's order; empty for models that read none.
    pub modalities: Vec<Modality>,
    /// The categories of the items, if the dataset has any.
    pub categories: Option<Categories>,
    /// The device that computes the model.
    pub device: Device,
    /// The processes that compute the model together, if there are several.
    pub group: Option<ProcessGroup>,
}

/// The training events of all users, one user after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrainingSequences {
    /// User u (from 0) owns `items[offsets[u]..offsets[u + 1]]`.
    pub offsets: Vec<usize>,
    /// The items, 1-based, oldest first.
    pub items: Vec<u32>,
    /// The times of the events in Unix seconds; `None` if the data has no clock.
    pub times: Option<Vec<i64>>,
}

impl TrainingSequences {
    /// Joins the training sequences of users, in the dataset's order, without their times.
    pub fn new<'a>(users: impl IntoIterator<Item = &'a [u32]>) -> Self {
        let mut sequences = Self { offsets: vec![0], items: Vec::new(), times: None };
        for items in users {
            sequences.items.extend_from_slice(items);
            sequences.offsets.push(sequences.items.len());
        }
        sequences
    }

    /// U, the number of users.
    pub fn users(&self) -> usize {
        self.offsets.len() - 1
    }

    /// The training items of user `user`, from 0.
    pub fn of(&self, user: usize) -> &[u32] {
        &self.items[self.offsets[user]..self.offsets[user + 1]]
    }
}
