use std::collections::BTreeMap;
use std::path::Path;

use mp4sr_artifact::{
    Error, Fingerprint, Header, Layout, Manifest, Result, Sequences, Tensor, TensorFile, write_tensors,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::Split;

const FORMAT: &str = "ranks";
const VERSION: u32 = 2;

/// The role of the weights among the inputs of ranks.
pub const WEIGHTS: &str = "fine-tuned weights";

/// One rank per user as stored (`ranks.<split>.safetensors`): every table is computed from it.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredRanks {
    /// `[U]`; 0 for a user whose sequence is too short for the split.
    pub ranks: Vec<u32>,
    /// What the ranks are of.
    pub info: RanksInfo,
}

/// What ranks are of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RanksInfo {
    /// `validation` or `test`.
    pub split: String,
    /// The last events of each history that the model was shown; `None` if it was shown all.
    pub history: Option<usize>,
    /// Whether items of the history were excluded from the candidates; ranks of earlier releases do not record it.
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
            settings: serde_json::to_value(&self.info).unwrap_or_default(),
            inputs,
        };
        write_tensors(path, &header, &[("rank".to_owned(), Tensor::U32(self.ranks.clone(), vec![self.ranks.len()]))])
    }

    /// Reads and verifies the ranks of a run: they are of its sequences and weights as these are now, as far as the header says.
    pub fn read(layout: &Layout, sequences: &Sequences, split: Split, history: Option<usize>) -> Result<Self> {
        Self::read_as(layout, sequences, &name(split.name(), history), "")
    }

    /// The same for the ranks of one part of the users, such as `2-of-4`; those of the others are 0.
    pub fn read_part(
        layout: &Layout,
        sequences: &Sequences,
        split: Split,
        history: Option<usize>,
        part: &str,
    ) -> Result<Self> {
        Self::read_as(layout, sequences, &name(split.name(), history), &format!(".{part}"))
    }

    fn read_as(layout: &Layout, sequences: &Sequences, name: &str, part: &str) -> Result<Self> {
        const REMEDY: &str = "run `make evaluate` again";
        let path = layout.ranks(&format!("{name}{part}"));
        if !path.exists() {
            let remedy = format!("run `make evaluate RUN={}` with the run's own settings", layout.run_name());
            return Err(Error::unusable(&path, "it is missing", remedy));
        }
        let mut file = TensorFile::read(&path, FORMAT, VERSION, REMEDY)?;
        file.expect_items(&sequences.item_hash, REMEDY)?;
        let info: RanksInfo = serde_json::from_value(file.header().settings.clone())
            .map_err(|e| Error::unreadable(&path, "its settings", &e, REMEDY))?;
        let sources = [("sequences", layout.sequences()), (WEIGHTS, layout.checkpoint("finetune"))];
        for (role, source) in sources.into_iter().filter(|(_, source)| source.exists()) {
            let Some(then) = file.header().inputs.get(role) else { continue };
            if Fingerprint::of_file(&source)? != *then {
                let reason = format!("`{}` has changed since", source.display());
                let remedy = format!("run `make evaluate RUN={}` with the run's own settings", layout.run_name());
                return Err(Error::unusable(&path, reason, remedy));
            }
        }
        if let Some(features) = changed_features(layout)? {
            let reason = format!("the {features} have changed since");
            let remedy = format!("run `make evaluate RUN={}` with the run's own settings", layout.run_name());
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
            return Err(file.wrong(format!("expected ranks of the split `{name}`, found `{}`", info.name())));
        }
        Ok(Self { ranks, info })
    }
}

/// The role of the features that are not those that the run's ranks were made from, as far as its record says where they lie.
fn changed_features(layout: &Layout) -> Result<Option<String>> {
    let Some(record) = Manifest::find(&layout.run(), "evaluate") else { return Ok(None) };
    for (role, then) in record.inputs.iter().filter(|(role, _)| role.starts_with("features of ")) {
        let Some(name) = then.path.file_name() else { continue };
        let now = layout.features().join(name);
        if now.exists() && !then.is_of(&now)? {
            return Ok(Some(role.clone()));
        }
    }
    Ok(None)
}

/// What differs between runs of one row, or decides no rank.
const NOT_COMPARED: [&str; 10] = [
    "dataset",
    "run.seed",
    "run.device",
    "run.preset",
    "run.save_seconds",
    "pretrain.from",
    "evaluate.batch",
    "evaluate.k",
    "evaluate.measures",
    "evaluate.short_histories",
];

/// A setting that differs between two runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtherSetting {
    /// The key with its sections.
    pub key: String,
    /// The value of the one.
    pub own: String,
    /// The value of the other.
    pub others: String,
}

impl RanksInfo {
    /// The seed of the run; `None` if the ranks do not say.
    pub fn seed(&self) -> Option<u64> {
        self.config["run"]["seed"].as_u64()
    }

    /// The first setting beside the seed that is another in `other`, among those that both record.
    pub fn other_setting(&self, other: &Self) -> Option<OtherSetting> {
        if let (Some(own), Some(others)) = (self.removes_seen, other.removes_seen)
            && own != others
        {
            let named = |removes: bool| if removes { "remove" } else { "keep" }.to_owned();
            let key = "evaluate.seen_items".to_owned();
            return Some(OtherSetting { key, own: named(own), others: named(others) });
        }
        difference("", &self.config, &other.config)
    }

    /// What the file is called by: the split, with the length of the histories where they were cut.
    pub fn name(&self) -> String {
        name(&self.split, self.history)
    }
}

/// The path of the first value that both have and that differs.
fn difference(path: &str, a: &Value, b: &Value) -> Option<OtherSetting> {
    if NOT_COMPARED.contains(&path) {
        return None;
    }
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => a.iter().find_map(|(key, value)| {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            difference(&path, value, b.get(key)?)
        }),
        _ => (a != b).then(|| OtherSetting { key: path.to_owned(), own: a.to_string(), others: b.to_string() }),
    }
}

fn name(split: &str, history: Option<usize>) -> String {
    history.map_or_else(|| split.to_owned(), |events| format!("{split}.history-{events}"))
}
