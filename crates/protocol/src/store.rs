//! The stored ranks of a run, and whether they belong to its data and weights.

use std::collections::BTreeMap;
use std::path::Path;

use mp4sr_artifact::{
    Error, FINETUNE, Fingerprint, Header, Layout, Manifest, Result, Sequences, Tensor, TensorFile, role, write_tensors,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::Split;

const FORMAT: &str = "ranks";
const VERSION: u32 = 2;

/// One rank per user, as stored in `ranks.<set>.safetensors`. Every table is computed from these files.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredRanks {
    /// `[U]`: the rank of each user's target; 0 for a user without a target in the evaluated set.
    pub ranks: Vec<u32>,
    /// The evaluated set and the settings under which the ranks were computed.
    pub info: RanksInfo,
}

/// The evaluated set and the settings under which ranks were computed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RanksInfo {
    /// `validation` or `test`.
    pub split: String,
    /// The number of last events of each history that the model was given; `None` if it was given all.
    pub history: Option<usize>,
    /// Whether items of the history were excluded from the candidates; `None` for ranks of earlier releases, which do not record it.
    #[serde(default)]
    pub removes_seen: Option<bool>,
    /// The resolved configuration of model, training and evaluation, as in the header of the weights.
    pub config: Value,
}

impl StoredRanks {
    /// Writes the file.
    pub fn write(&self, path: &Path, items: &Fingerprint, inputs: BTreeMap<String, Fingerprint>) -> Result<()> {
        let header = Header {
            format: FORMAT.to_owned(),
            version: VERSION,
            stage: "evaluate".to_owned(),
            items: items.clone(),
            settings: Header::settings_of(path, &self.info)?,
            inputs,
        };
        write_tensors(path, &header, &[("rank".to_owned(), Tensor::U32(self.ranks.clone(), vec![self.ranks.len()]))])
    }

    /// The name of the ranks of a set, by whole histories or by the last events only, which is part of the file's name.
    pub fn name(split: Split, history: Option<usize>) -> String {
        name(split.name(), history)
    }

    /// Reads the ranks of a run and checks that they belong to its current sequences, weights and features, as far as the header and the
    /// stage's record name these.
    pub fn read(layout: &Layout, sequences: &Sequences, split: Split, history: Option<usize>) -> Result<Self> {
        Self::read_as(layout, sequences, &name(split.name(), history), "")
    }

    /// Like [`Self::read`], for the ranks of one shard of the users, such as `2-of-4`; the ranks of the other users are 0.
    pub fn read_shard(
        layout: &Layout,
        sequences: &Sequences,
        split: Split,
        history: Option<usize>,
        shard: &str,
    ) -> Result<Self> {
        Self::read_as(layout, sequences, &name(split.name(), history), &format!(".{shard}"))
    }

    fn read_as(layout: &Layout, sequences: &Sequences, name: &str, suffix: &str) -> Result<Self> {
        const REMEDY: &str = "run `mp4sr evaluate` again";
        let path = layout.ranks(&format!("{name}{suffix}"));
        if !path.exists() {
            let remedy = format!("run `mp4sr evaluate --run {}` with the run's own settings", layout.run_name());
            return Err(Error::unusable(&path, "it is missing", remedy));
        }
        let mut file = TensorFile::read(&path, FORMAT, VERSION, REMEDY)?;
        file.expect_items(&sequences.item_hash, REMEDY)?;
        let info: RanksInfo = serde_json::from_value(file.header().settings.clone())
            .map_err(|e| Error::unreadable(&path, "its settings", &e, REMEDY))?;
        let sources = [(role::SEQUENCES, layout.sequences()), (role::WEIGHTS, layout.checkpoint(FINETUNE))];
        for (role, source) in sources.into_iter().filter(|(_, source)| source.exists()) {
            let Some(then) = file.header().inputs.get(role) else { continue };
            if Fingerprint::of_file(&source)? != *then {
                let reason = format!("`{}` has changed since the ranks were computed", source.display());
                let remedy = format!(
                    "delete it, and run `mp4sr evaluate --run {}` with the run's own settings",
                    layout.run_name()
                );
                return Err(Error::unusable(&path, reason, remedy));
            }
        }
        if let Some(features) = changed_features(layout)? {
            let reason = format!("the {features} have changed since the ranks were computed");
            let remedy =
                format!("delete it, and run `mp4sr evaluate --run {}` with the run's own settings", layout.run_name());
            return Err(Error::unusable(&path, reason, remedy));
        }
        let ranks = file.take_u32("rank")?;
        let users = sequences.user_count();
        if ranks.len() != users {
            return Err(file.wrong(format!("`rank`: expected [{users}], found [{}]", ranks.len())));
        }
        if let Some(beyond) = ranks.iter().find(|&&rank| rank as usize > sequences.item_count) {
            return Err(file.wrong(format!("`rank`: found {beyond} among {} items", sequences.item_count)));
        }
        if info.name() != name {
            return Err(file.wrong(format!("expected ranks of the `{name}` set, found `{}`", info.name())));
        }
        Ok(Self { ranks, info })
    }
}

/// The role of features that have changed since the run's ranks were computed, as far as the stage's record names their files.
fn changed_features(layout: &Layout) -> Result<Option<String>> {
    let Some(record) = Manifest::read(&layout.run(), "evaluate")? else { return Ok(None) };
    for (role, then) in record.inputs.iter().filter(|(role, _)| role::modality(role).is_some()) {
        let Some(name) = then.path.file_name() else { continue };
        let now = layout.features().join(name);
        if now.exists() && !then.is_of(&now)? {
            return Ok(Some(role.clone()));
        }
    }
    Ok(None)
}

/// The keys that may differ between runs of one model, or that do not affect the ranks.
const NOT_COMPARED: [&str; 10] = [
    "dataset",
    "run.seed",
    "run.device",
    "run.preset",
    "pretrain.from",
    "finetune.log_test_loss",
    "evaluate.batch",
    "evaluate.k",
    "evaluate.metrics",
    "evaluate.short_histories",
];

const SEEN_ITEMS: &str = "evaluate.seen_items";

/// A setting that differs between two runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtherSetting {
    /// The key with its sections.
    pub key: String,
    /// The value in the run itself.
    pub own: String,
    /// The value in the other run.
    pub others: String,
}

impl RanksInfo {
    /// The seed of the run; `None` if the ranks do not record it.
    pub fn seed(&self) -> Option<u64> {
        self.config["run"]["seed"].as_u64()
    }

    /// The first setting, other than the seed, that both record and that differs in `other`.
    pub fn other_setting(&self, other: &Self) -> Option<OtherSetting> {
        let (Some(own), Some(others)) = (self.removes_seen, other.removes_seen) else {
            return other_setting(&self.config, &other.config);
        };
        if own != others {
            let named = |removes: bool| if removes { "remove" } else { "keep" }.to_owned();
            return Some(OtherSetting { key: SEEN_ITEMS.to_owned(), own: named(own), others: named(others) });
        }
        // The setting may name the same candidates in two ways.
        difference("", &self.config, &other.config, &|path| path != SEEN_ITEMS && is_compared(path))
            .or_else(|| other_pretraining(&self.config, &other.config))
    }

    /// The name of the ranks in file names: the evaluated set, with the length of the histories if they were cut.
    pub fn name(&self) -> String {
        name(&self.split, self.history)
    }
}

/// The first setting that two runs both record, that should be equal in runs of one model, and that differs.
pub(crate) fn other_setting(own: &Value, other: &Value) -> Option<OtherSetting> {
    difference("", own, other, &is_compared).or_else(|| other_pretraining(own, other))
}

/// `pretrain.from` of two runs whose pre-trained weights are from different datasets. Runs of several seeds may take their weights from
/// different runs of one dataset.
fn other_pretraining(own: &Value, other: &Value) -> Option<OtherSetting> {
    if [own, other].iter().all(|config| config["pretrain"]["from"] == "") {
        return None;
    }
    let dataset = |config: &Value| -> Option<String> {
        let from = config["pretrain"]["from"].as_str()?;
        let dataset = from.split_once('/').map(|(dataset, _)| dataset).or_else(|| config["dataset"]["name"].as_str());
        dataset.filter(|_| config["pretrain"]["enabled"] == true).map(str::to_owned)
    };
    let shown = |config: &Value| config["pretrain"]["from"].to_string();
    let differs = dataset(own).zip(dataset(other)).is_some_and(|(own, other)| own != other);
    differs.then(|| OtherSetting { key: "pretrain.from".to_owned(), own: shown(own), others: shown(other) })
}

fn is_compared(path: &str) -> bool {
    !NOT_COMPARED.contains(&path)
}

/// The first value at a path that is compared, that both have and that differs.
fn difference(path: &str, a: &Value, b: &Value, is_compared: &dyn Fn(&str) -> bool) -> Option<OtherSetting> {
    if !is_compared(path) {
        return None;
    }
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => a.iter().find_map(|(key, value)| {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            difference(&path, value, b.get(key)?, is_compared)
        }),
        _ => (a != b).then(|| OtherSetting { key: path.to_owned(), own: a.to_string(), others: b.to_string() }),
    }
}

fn name(split: &str, history: Option<usize>) -> String {
    history.map_or_else(|| split.to_owned(), |events| format!("{split}.history-{events}"))
}
