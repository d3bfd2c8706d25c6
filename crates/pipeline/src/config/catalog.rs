//! What a pipeline file may contain about models. This crate does not know any model: a program fills the catalogue with its own.

use std::fmt::Debug;

use mp4sr_artifact::{Layout, StageSettings, recorded_settings};
use schemars::Schema;
use serde_json::{Map, Value, json};
use toml::Table;

use super::Config;
use super::refused::RefusedValue;
use super::renamed::{self, RenamedKey, rename_recorded};

/// A named set of keys (`run.preset`).
#[derive(Clone, Debug, PartialEq)]
pub struct PresetKeys {
    /// The value of `run.preset`.
    pub name: String,
    /// The purpose of the preset.
    pub summary: String,
    /// The keys, as TOML.
    pub keys: String,
}

/// One model, as the pipeline sees it.
pub trait ModelType: Debug + Send + Sync {
    /// The value of `model.name`, and the name of its own section.
    fn name(&self) -> &str;
    /// The name of the model in tables.
    fn title(&self) -> &str;
    /// A description of the model in one sentence.
    fn summary(&self) -> &str;
    /// Whether the model reads the features of `model.modalities`.
    fn reads_features(&self) -> bool;
    /// Whether a setting of the model makes it read the categories of items.
    fn reads_categories(&self) -> bool;
    /// The key that makes the model read the categories of items under the given settings; `None` if it does not read them.
    fn category_key(&self, config: &Config) -> Option<String>;
    /// The shared sections that the model reads.
    fn shared_sections(&self) -> &[&'static str];
    /// The model's own section.
    fn section(&self) -> SectionType;
    /// Keys of other sections that have another default for this model, as TOML.
    fn defaults(&self) -> &str;
    /// The presets of the model.
    fn presets(&self) -> Vec<PresetKeys>;
    /// The grid of a search that names none: `section.key=value,value,...` per key; empty for a model that is not trained.
    fn grid(&self) -> &[&'static str];
    /// Keys that earlier releases had under another name.
    fn renamed(&self) -> Vec<RenamedKey>;
    /// Refuses settings that no single key's type and range can exclude.
    fn check(&self, config: &Config) -> Result<(), RefusedValue>;
    /// The names of the model's phases under the given settings.
    fn phases(&self, config: &Config) -> Vec<&'static str>;
    /// Whether the last phase is trained in epochs. Popularity, for example, is not.
    fn has_epochs(&self, config: &Config) -> bool {
        self.training_events(config) > 0
    }
    /// The number of training events that a user must have for a sample in every phase; 0 for a model that is not trained in epochs.
    fn training_events(&self, config: &Config) -> usize;
    /// Whether a phase reads a key of the model's own section.
    fn phase_reads(&self, config: &Config, phase: &str, key: &str) -> bool;
}

/// Keys with types and ranges, and how their defaults are filled in.
#[derive(Clone, Debug)]
pub struct SectionType {
    /// The JSON schema of the section, without references.
    pub schema: Schema,
    /// Gives the section a value for every key.
    pub resolve: fn(Value) -> serde_json::Result<Value>,
}

/// A section that several models read.
#[derive(Clone, Debug)]
pub struct SharedSection {
    /// The name of the section within `[model]`.
    pub name: &'static str,
    /// The keys of the section.
    pub section: SectionType,
    /// Keys that earlier releases had under another name.
    pub renamed: Vec<RenamedKey>,
}

/// All models of a program.
#[derive(Debug, Default)]
pub struct ModelCatalog {
    models: Vec<Box<dyn ModelType>>,
    shared: Vec<SharedSection>,
}

impl ModelCatalog {
    /// Creates a catalogue of models. The first one is the default of a pipeline that names none.
    pub fn new(models: Vec<Box<dyn ModelType>>, shared: Vec<SharedSection>) -> Self {
        Self { models, shared }
    }

    /// The catalogue of a program without models, which accepts every `[model]` section without checking it.
    pub fn unchecked() -> Self {
        Self::default()
    }

    pub(super) fn is_unchecked(&self) -> bool {
        self.models.is_empty()
    }

    /// All models, in their order.
    pub fn models(&self) -> impl Iterator<Item = &dyn ModelType> {
        self.models.iter().map(AsRef::as_ref)
    }

    /// A model by name.
    pub fn model(&self, name: &str) -> Option<&dyn ModelType> {
        self.models().find(|model| model.name() == name)
    }

    /// The model for data without texts and images: the first one that reads sequences of ids alone.
    pub fn id_model(&self) -> Option<&dyn ModelType> {
        self.models().find(|model| !model.reads_features() && !model.shared_sections().is_empty())
    }

    pub(super) fn shared(&self) -> &[SharedSection] {
        &self.shared
    }

    /// All presets.
    pub fn presets(&self) -> Vec<PresetKeys> {
        self.models().flat_map(ModelType::presets).collect()
    }

    pub(super) fn renamed(&self) -> Vec<RenamedKey> {
        let shared = self.shared.iter().flat_map(|shared| shared.renamed.clone());
        self.models().flat_map(ModelType::renamed).chain(shared).chain(renamed::of_stages()).collect()
    }

    /// The section called `name` within `[model]`.
    pub(super) fn section(&self, name: &str) -> Option<SectionType> {
        let shared = self.shared.iter().find(|shared| shared.name == name).map(|shared| shared.section.clone());
        shared.or_else(|| self.model(name).map(ModelType::section))
    }

    /// Whether training includes the phase: the model has it, it is not switched off, and its weights do not come from another run.
    pub fn trains(&self, config: &Config, phase: &str) -> bool {
        let has = self.model(&config.model.name).is_some_and(|model| model.phases(config).contains(&phase));
        has && (phase != super::PRETRAIN || (config.pretrain.enabled && config.pretrain.from.is_empty()))
    }

    /// Whether the last phase starts from the weights of pre-training, its own or another run's.
    pub fn starts_pretrained(&self, config: &Config) -> bool {
        let model = self.model(&config.model.name);
        config.pretrain.enabled && model.is_some_and(|model| model.phases(config).contains(&super::PRETRAIN))
    }

    /// Whether the model reads features that `lost` or `swapped` changes. The seed decides which items these are.
    pub fn reads_noise(&self, config: &Config) -> bool {
        let reads = self.model(&config.model.name).is_some_and(ModelType::reads_features);
        reads && config.model.modalities.iter().any(|modality| modality.lost > 0.0 || modality.swapped > 0.0)
    }

    /// The settings of `[model]` that affect a phase: the model's name, and the keys that the phase reads.
    pub fn model_settings(&self, config: &Config, phase: &str) -> Value {
        let model = &config.model;
        let mut settings = Map::from_iter([("name".to_owned(), json!(model.name))]);
        let Some(kind) = self.model(&model.name) else { return json!(model) };
        if kind.reads_features() {
            settings.insert("modalities".to_owned(), json!(model.modalities));
        }
        for shared in kind.shared_sections() {
            settings.insert((*shared).to_owned(), model.section(shared).clone());
        }
        let mut own = model.own().clone();
        if let Some(keys) = own.as_object_mut() {
            keys.retain(|key, _| kind.phase_reads(config, phase, key));
        }
        settings.insert(model.name.clone(), own);
        Value::Object(settings)
    }

    /// The settings that, together with the files that it reads, decide the weights of a phase.
    pub fn phase_settings(&self, config: &Config, phase: &str) -> StageSettings {
        self.stage_settings(config, |config: &Config| self.phase_values(config, phase))
    }

    /// The first setting of an unfinished training of a phase that differs from `config`. The limits of its epochs may differ: it may also end
    /// at other ones.
    pub fn changed_since_begun(&self, config: &Config, layout: &Layout, phase: &str) -> Option<String> {
        let settings = self.phase_settings(config, phase);
        let mut begun = recorded_settings(&layout.training_state(phase))?["identity"]["settings"].take();
        for limit in ["epochs", "patience"] {
            if begun[phase].is_object() {
                begun[phase][limit] = settings.values()[phase][limit].clone();
            }
        }
        settings.changed_since(&begun)
    }

    fn phase_values(&self, config: &Config, phase: &str) -> Value {
        let mut section = config.phase_section(phase);
        if let Some(keys) = section.as_object_mut() {
            // The origin of the weights decides whether the phase runs, not what it computes.
            keys.retain(|key, _| key != "enabled" && key != "from");
        }
        json!({
            phase: section,
            "model": self.model_settings(config, phase),
            "seed": config.run.seed,
            "evaluate": { "seen_items": config.evaluate.seen_items },
            "train": config.train,
        })
    }

    /// The keys of `[model]` that all of `phases` read. Weights of one phase can be used in another only if these are equal.
    pub fn model_settings_of(&self, config: &Config, phases: &[&str]) -> StageSettings {
        let values = |config: &Config| {
            let mut model = phases.first().map_or(Value::Null, |phase| self.model_settings(config, phase));
            if let (Some(kind), Some(own)) = (self.model(&config.model.name), model[&config.model.name].as_object_mut())
            {
                own.retain(|key, _| phases.iter().all(|phase| kind.phase_reads(config, phase, key)));
            }
            if phases.iter().any(|phase| *phase != phases[0])
                && let Some(keys) = model.as_object_mut()
            {
                // Weights may be used with another dataset, whose features have other names.
                keys.remove("modalities");
            }
            json!({ "model": model })
        };
        self.stage_settings(config, values)
    }

    /// The settings that training a phase reads, without those that only its validation reads.
    pub fn training_settings(&self, config: &Config, phase: &str) -> StageSettings {
        let values = |config: &Config| {
            let mut values = self.phase_values(config, phase);
            if let Some(keys) = values.as_object_mut() {
                keys.remove("evaluate");
            }
            values
        };
        self.stage_settings(config, values)
    }

    /// The settings that decide the results of a stage that ranks with a trained model: `sections`, and the keys that the model reads.
    pub fn ranking_settings(&self, config: &Config, sections: impl Fn(&Config) -> Value) -> StageSettings {
        let values = |config: &Config| {
            let mut values = sections(config);
            values["model"] = self.model_settings(config, super::FINETUNE);
            if self.reads_noise(config) {
                values["seed"] = json!(config.run.seed);
            }
            values
        };
        self.stage_settings(config, values)
    }

    fn stage_settings(&self, config: &Config, values: impl Fn(&Config) -> Value) -> StageSettings {
        let defaults = Config::of_model(&config.model.name, self).map_or(Value::Null, |config| values(&config));
        self.settings(values(config), defaults)
    }

    /// Sections of a configuration, to be compared with those of an earlier run, which may have had earlier names of keys.
    pub fn settings(&self, values: Value, defaults: Value) -> StageSettings {
        let renamed = self.renamed();
        StageSettings::new(values, defaults)
            .with_earlier_names(move |recorded| rename_recorded(recorded, &renamed))
            .shown_as(&[("seed", "run.seed")])
    }

    /// The schema of the whole configuration, with the sections of models.
    pub fn schema(&self) -> Value {
        let mut schema = schemars::schema_for!(Config).to_value();
        let model = &mut schema["$defs"]["Model"];
        if self.is_unchecked() {
            model["additionalProperties"] = json!(true);
            return schema;
        }
        let names: Vec<Value> =
            self.models().map(|m| json!({ "const": m.name(), "description": m.summary() })).collect();
        model["properties"]["name"]["oneOf"] = json!(names);
        let shared = self.shared.iter().map(|shared| (shared.name, shared.section.schema.clone()));
        let own = self.models.iter().map(|model| (model.name(), model.section().schema));
        for (name, section) in shared.chain(own) {
            model["properties"][name] = section.to_value();
        }
        let default = json!({ "const": "default", "description": "The defaults of this page." });
        let presets = self.presets().into_iter().map(|p| json!({ "const": p.name, "description": p.summary }));
        schema["$defs"]["Run"]["properties"]["preset"]["oneOf"] = [default].into_iter().chain(presets).collect();
        schema
    }

    /// The keys that a model and a preset set beneath those of the pipeline file, in the order of their precedence.
    pub(super) fn layers(&self, model: &str, preset: &str) -> Result<Vec<Table>, toml::de::Error> {
        let defaults = self.model(model).map(|model| model.defaults().to_owned());
        let preset = self.presets().into_iter().find(|p| p.name == preset).map(|preset| preset.keys);
        defaults.into_iter().chain(preset).map(|text| text.parse()).collect()
    }
}
