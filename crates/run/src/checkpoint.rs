use std::collections::BTreeMap;
use std::path::Path;

use mp4sr_artifact::{Error, Fingerprint, Header, Result, Tensor, TensorFile, write_tensors};
use mp4sr_models::{Model, Phase, Stored};
use serde::{Deserialize, Serialize};

const FORMAT: &str = "checkpoint";
const VERSION: u32 = 1;
const REMEDY: &str = "train again, or use another run";

/// How a checkpoint came to be.
/// A program of a user's own need not say any of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CheckpointInfo {
    /// The training phase; empty means fine-tuning.
    pub phase: String,
    /// The epoch whose weights these are; 0 for a model that is not trained.
    pub epoch: usize,
    /// Its validation R@20.
    pub validation_recall_20: f64,
    /// The resolved configuration ([`mp4sr_pipeline::Config::resolved`]).
    pub config: serde_json::Value,
}

/// A model's parameters on disk.
#[derive(Debug)]
pub struct Checkpoint {
    /// How it came to be.
    pub info: CheckpointInfo,
    inputs: BTreeMap<String, Fingerprint>,
    parameters: Vec<Stored>,
}

impl Checkpoint {
    /// Writes the parameters that `phase` uses.
    pub fn write(
        path: &Path,
        info: &CheckpointInfo,
        parameters: &[Stored],
        items: &Fingerprint,
        inputs: BTreeMap<String, Fingerprint>,
    ) -> Result<()> {
        let header = Header {
            format: FORMAT.to_owned(),
            version: VERSION,
            stage: info.phase.clone(),
            items: items.clone(),
            settings: serde_json::to_value(info).unwrap_or_default(),
            inputs,
        };
        let tensors: Vec<(String, Tensor)> = parameters
            .iter()
            .map(|(name, values, shape)| (name.clone(), Tensor::F32(values.clone(), shape.clone())))
            .collect();
        write_tensors(path, &header, &tensors)
    }

    /// Reads and verifies a checkpoint of `phase` for a dataset whose items are `items`.
    pub fn read(path: &Path, phase: Phase, items: &Fingerprint) -> Result<Self> {
        let file = Self::open(path)?;
        file.expect_items(items, REMEDY)?;
        Self::take(path, file, phase)
    }

    /// The same of whatever items: for parameters that belong to none of them, such as those of pre-training.
    pub fn read_of_any_items(path: &Path, phase: Phase) -> Result<Self> {
        Self::take(path, Self::open(path)?, phase)
    }

    fn open(path: &Path) -> Result<TensorFile> {
        TensorFile::read(path, FORMAT, VERSION, REMEDY)
    }

    fn take(path: &Path, mut file: TensorFile, phase: Phase) -> Result<Self> {
        let info: CheckpointInfo = match file.header().settings.clone() {
            serde_json::Value::Null => CheckpointInfo::default(),
            settings => serde_json::from_value(settings).map_err(|e| {
                Error::unreadable(path, "its settings", &e, format!("run `make {}` again", phase.name()))
            })?,
        };
        if !info.phase.is_empty() && info.phase != phase.name() {
            let reason = format!("it holds weights of the phase `{}`, expected `{}`", info.phase, phase.name());
            return Err(Error::unusable(path, reason, format!("run `make {}` again", phase.name())));
        }
        let inputs = file.header().inputs.clone();
        let mut parameters = Vec::new();
        for name in file.names() {
            let (values, shape) = file.take_f32(&name)?;
            parameters.push((name, values, shape));
        }
        Ok(Self { info, inputs, parameters })
    }

    /// What to tell a user whose sequences or features have changed since the training: nothing where they have not. Weights
    /// may well serve newer events, so it is no error.
    pub fn trained_on_others(&self, inputs: &BTreeMap<String, Fingerprint>) -> Option<String> {
        let changed = inputs.iter().filter(|(role, now)| self.inputs.get(*role).is_some_and(|then| then != *now));
        let changed: Vec<&str> = changed.map(|(role, _)| role.as_str()).collect();
        (!changed.is_empty()).then(|| {
            format!("the weights were trained on other {}; `make finetune` trains on these", changed.join(", "))
        })
    }

    /// Sets the model's parameters that both `phase` and the checkpoint's own phase use. A parameter that the model lacks
    /// or has in another shape is refused; so is one that the checkpoint lacks, unless its own phase does not use it. The
    /// biases of attention pooling cancel in its softmax: other programs may store them, and they are not read.
    pub fn load_into(&self, model: &dyn Model, phase: Phase, path: &Path) -> Result<()> {
        const REMEDY: &str = "it was trained with other `[model]` settings: use those, or another run";
        let own = if self.info.phase == Phase::Pretrain.name() { Phase::Pretrain } else { Phase::Finetune };
        let cancels = |name: &str| name.ends_with(".pool.b1") || name.ends_with(".pool.b2");
        let read = self.parameters.iter().filter(|(name, ..)| model.uses(phase, name) && !cancels(name));
        for (name, values, shape) in read {
            let set = model.parameters().set(name, values.clone(), shape);
            set.map_err(|e| Error::unusable(path, e.to_string(), REMEDY))?;
        }
        let missing = model.parameters().iter().map(|(name, _)| name).find(|name| {
            model.uses(phase, name) && model.uses(own, name) && !self.parameters.iter().any(|(n, ..)| n == name)
        });
        match missing {
            Some(name) => Err(Error::unusable(path, format!("parameter `{name}` is missing"), REMEDY)),
            None => Ok(()),
        }
    }
}
