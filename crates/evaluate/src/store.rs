use std::collections::BTreeMap;
use std::path::Path;

use mp4sr_artifact::{Fingerprint, Header, Result, Tensor, TensorFile, write_tensors};
use mp4sr_run::Split;
use serde::{Deserialize, Serialize};

const FORMAT: &str = "ranks";
const VERSION: u32 = 1;

/// One rank a user as stored (`ranks.<split>.safetensors`): every table is computed from it.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredRanks {
    /// `[U]`; 0 for a user whose sequence is too short for the split.
    pub ranks: Vec<u32>,
    /// Of what.
    pub info: RanksInfo,
}

/// What ranks are of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RanksInfo {
    /// `validation` or `test`.
    pub split: String,
    /// The resolved `[model]` section.
    pub model: serde_json::Value,
    /// The resolved `[evaluate]` section.
    pub evaluate: serde_json::Value,
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

    /// Reads and verifies the file for a dataset with items `items` and `users` users.
    pub fn read(path: &Path, items: &Fingerprint, users: usize, split: Split) -> Result<Self> {
        const REMEDY: &str = "run `make evaluate` again";
        let mut file = TensorFile::read(path, FORMAT, VERSION, REMEDY)?;
        file.expect_items(items, REMEDY)?;
        let info: RanksInfo = serde_json::from_value(file.header().settings.clone())
            .map_err(|e| file.wrong(format!("its settings can't be read ({e})")))?;
        let ranks = file.take_u32("rank")?;
        if ranks.len() != users {
            return Err(file.wrong(format!("`rank`: expected [{users}], found [{}]", ranks.len())));
        }
        if info.split != split.name() {
            return Err(file.wrong(format!("expected ranks of the split `{}`, found `{}`", split.name(), info.split)));
        }
        Ok(Self { ranks, info })
    }

    /// The ranks of users that have one.
    pub fn ranked(&self) -> Vec<u32> {
        self.ranks.iter().copied().filter(|&rank| rank > 0).collect()
    }
}
