//! Checks whether weights match the settings and features that they are used with.

use std::path::Path;

use mp4sr_artifact::{Error, Fingerprint, Layout, Manifest, Result, StageSettings, role};
use mp4sr_models::{FINETUNE, PRETRAIN};
use mp4sr_pipeline::Config;
use mp4sr_pipeline::config::{ModelCatalog, Pretrain};
use serde_json::{Value, json};

use crate::data_settings::{record_data, shown};
use crate::{CheckpointInfo, Inputs};

/// The sections of the settings by which weights were trained. The seed and the preset come from `[run]`.
const TRAINING: [&str; 4] = ["model", "train", PRETRAIN, FINETUNE];
/// The keys of `[run]` that belong to these settings.
const RUN: [&str; 2] = ["seed", "preset"];

impl CheckpointInfo {
    /// Refuses weights of `phase` if their training had other settings of the model than `config`. Only the settings that both `phase` and
    /// `used_in` read are compared: with other values, weights of the right shape would give different results. A user's own program may
    /// record no settings.
    pub fn expect_model(
        &self,
        models: &ModelCatalog,
        config: &Config,
        phase: &str,
        used_in: &str,
        path: &Path,
    ) -> Result<()> {
        let name = &self.config["model"]["name"];
        if name.is_string() && *name != config.model.name {
            let reason =
                format!("its weights are those of the model {name}, but the pipeline sets {:?}", config.model.name);
            let remedy =
                format!("run `mp4sr train {phase}` to train this model, or set `model.name` to that of the weights");
            return Err(Error::unusable(path, reason, remedy));
        }
        let settings = models.model_settings_of(config, &[phase, used_in]);
        let seeds = (&self.config["run"]["seed"], json!(config.run.seed));
        let (key, then, now) = match self.changed(&settings, &json!({ "model": self.config["model"] })) {
            Some(key) => (key.clone(), shown(&self.config, &key), shown(settings.values(), &key)),
            // Weights of pre-training may be used under several seeds.
            None if phase == used_in && models.reads_noise(config) && seeds.0.is_number() && *seeds.0 != seeds.1 => (
                "run.seed".to_owned(),
                seeds.0.to_string(),
                format!("{}, and the seed decides which items have noise", seeds.1),
            ),
            None => return Ok(()),
        };
        let reason = format!("its weights were trained with `{key}` = {then}, but the pipeline sets {now}");
        let remedy = format!("run `mp4sr train {phase}` to train with this setting, or restore the earlier value");
        Err(Error::unusable(path, reason, remedy))
    }

    /// Returns a warning if the weights were trained with other training settings than those of `config` for `phase`. These settings do not
    /// change what trained weights compute, but a user may believe that the weights were trained with them.
    pub fn other_training(&self, models: &ModelCatalog, config: &Config, phase: &str) -> Option<String> {
        let key = self.changed_in_training(models, config, phase)?;
        let (recorded, settings) = (self.recorded_training(config, phase), models.training_settings(config, phase));
        let (then, now) = (shown(&recorded, &key), shown(settings.values(), &key));
        let is_of_another_run = phase == PRETRAIN && !config.pretrain.from.is_empty();
        let key = if key == "seed" { "run.seed" } else { &key };
        let remedy = if is_of_another_run && key.ends_with(".features") {
            "both must be vectors of the same encoder".to_owned()
        } else if is_of_another_run {
            "the setting has no effect on weights of another run".to_owned()
        } else {
            format!("`mp4sr train {phase}` trains with this setting")
        };
        Some(format!("the weights were trained with `{key}` = {then}, not {now}; {remedy}"))
    }

    /// The first setting of the training of `phase` that differs in `config`.
    fn changed_in_training(&self, models: &ModelCatalog, config: &Config, phase: &str) -> Option<String> {
        self.changed(&models.training_settings(config, phase), &self.recorded_training(config, phase))
    }

    /// The recorded settings of training, in the form of [`ModelCatalog::training_settings`].
    fn recorded_training(&self, config: &Config, phase: &str) -> Value {
        // Runs of several seeds may start from the weights of one run.
        let is_of_another_run = phase == PRETRAIN && !config.pretrain.from.is_empty();
        let seed = if is_of_another_run { json!(config.run.seed) } else { self.config["run"]["seed"].clone() };
        json!({
            phase: self.config[phase],
            "model": self.config["model"],
            "seed": seed,
            "train": self.config["train"],
        })
    }

    /// Returns a warning if the weights that these were trained from were not those that `config` names, or had other training settings.
    pub fn other_pretraining(&self, models: &ModelCatalog, layout: &Layout, config: &Config) -> Option<String> {
        let could_start = Config { pretrain: Pretrain { enabled: true, ..config.pretrain.clone() }, ..config.clone() };
        if !self.config.is_object() || !models.starts_pretrained(&could_start) {
            return None;
        }
        let (then, now) = (&self.config[PRETRAIN], json!(config.pretrain));
        let differs = |key: &str| !then[key].is_null() && then[key] != now[key];
        let key = if differs("enabled") {
            "enabled"
        } else if config.pretrain.enabled && differs("from") && !starts_from(layout, config) {
            "from"
        } else {
            // The settings of weights from another run are that run's own, and a setting that both phases read is reported for the last one.
            let has_own = config.pretrain.enabled && config.pretrain.from.is_empty();
            let is_reported = |key: &String| self.changed_in_training(models, config, FINETUNE).as_ref() == Some(key);
            let changed = self.changed_in_training(models, config, PRETRAIN).filter(|key| has_own && !is_reported(key));
            return changed.and_then(|_| self.other_training(models, config, PRETRAIN));
        };
        Some(format!(
            "the weights were trained with `{PRETRAIN}.{key}` = {}, not {}; `mp4sr train {FINETUNE}` trains with this setting",
            then[key], now[key]
        ))
    }

    fn changed(&self, settings: &StageSettings, recorded: &Value) -> Option<String> {
        if self.config.is_object() { settings.changed_since(recorded) } else { None }
    }

    /// The settings to record with the results of these weights: the weights' own settings of training, those by which the data were made,
    /// and all others from `config`.
    pub fn settings_of_results(&self, layout: &Layout, config: &Config) -> Value {
        let mut resolved = config.resolved();
        record_data(&mut resolved, layout, config);
        for section in TRAINING {
            copy(&self.config, &mut resolved, section);
        }
        for key in RUN {
            copy(&self.config["run"], &mut resolved["run"], key);
        }
        resolved
    }

    /// Replaces the settings of pre-training in `resolved` by those with which these weights were trained. `resolved` goes into the header
    /// of the weights that are trained from these.
    pub fn record_in(&self, resolved: &mut Value, models: &ModelCatalog, config: &Config) {
        let Some(model) = models.model(&config.model.name).filter(|_| self.config.is_object()) else { return };
        if let (Some(then), Some(now)) = (self.config[PRETRAIN].as_object(), resolved[PRETRAIN].as_object_mut()) {
            let own = then.iter().filter(|(key, _)| !["enabled", "from"].contains(&key.as_str()));
            now.extend(own.map(|(key, value)| (key.clone(), value.clone())));
        }
        let name = &config.model.name;
        let (then, now) = (&self.config["model"][name], &mut resolved["model"][name]);
        let keys: Vec<String> = now.as_object().into_iter().flat_map(|keys| keys.keys().cloned()).collect();
        let reads = |phase, key: &str| model.phase_reads(config, phase, key);
        for key in keys.iter().filter(|key| reads(PRETRAIN, key) && !reads(FINETUNE, key)) {
            copy(then, now, key);
        }
    }

    /// Refuses pre-trained weights of the same dataset that were trained on other features of a modality than those of `config`. If both name
    /// their encoders, [`Self::expect_encoders`] has compared these. In another dataset, features of one encoder may have another name.
    /// `is_same` says whether the file of a modality's features is the very file of training.
    pub fn expect_features(
        &self,
        config: &Config,
        inputs: &Inputs,
        is_same: impl Fn(&str) -> bool,
        path: &Path,
    ) -> Result<()> {
        let recorded = self.config["model"]["modalities"].as_array();
        let then = |name: &str| recorded.into_iter().flatten().find(|modality| modality["name"] == name);
        for modality in &config.model.modalities {
            let Some(then) = then(&modality.name).and_then(|then| then["features"].as_str()) else { continue };
            let names_encoder =
                self.encoders.contains_key(&modality.name) && inputs.encoders.contains_key(&modality.name);
            let is_read = inputs.modalities.iter().any(|read| read.name == modality.name);
            if is_read && then != modality.features && !names_encoder && !is_same(&modality.name) {
                let named = |features: &str| match features {
                    "" => "those of `[extract]`".to_owned(),
                    own => format!("`{own}`"),
                };
                let (name, then, now) = (&modality.name, named(then), named(&modality.features));
                let reason = format!(
                    "its weights were trained on other features of `{name}` ({then}) than the pipeline names ({now}, \
                     `model.modalities.features`)"
                );
                let remedy = format!("run `mp4sr train {PRETRAIN}` with these features, or restore the earlier value");
                return Err(Error::unusable(path, reason, remedy));
            }
        }
        Ok(())
    }

    /// Refuses weights that were trained on features of other encoders than those of `inputs`: their vectors are not comparable.
    pub fn expect_encoders(&self, inputs: &Inputs, path: &Path) -> Result<()> {
        let other =
            inputs.encoders.iter().find(|(name, now)| self.encoders.get(*name).is_some_and(|then| then != *now));
        let Some((modality, _)) = other else { return Ok(()) };
        let reason = format!("its weights were trained on features of `{modality}` from a different encoder");
        Err(Error::unusable(path, reason, "use the encoder of its training in `[extract]`, or train with this one"))
    }
}

/// Whether the run was fine-tuned from the very weights that `config` names, although under another name.
fn starts_from(layout: &Layout, config: &Config) -> bool {
    let record = Manifest::find(&layout.run(), FINETUNE);
    let then =
        record.and_then(|record| record.inputs.get(role::PRETRAINED_WEIGHTS).map(|input| input.fingerprint.clone()));
    let now = Fingerprint::of_file(&config.pretraining_run(layout).checkpoint(PRETRAIN)).ok();
    then.is_some() && then == now
}

fn copy(from: &Value, to: &mut Value, key: &str) {
    if let Some(value) = from.get(key).filter(|value| !value.is_null()) {
        to[key] = value.clone();
    }
}
