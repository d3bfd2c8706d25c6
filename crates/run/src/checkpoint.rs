//! The weights of a phase, with what they were trained on.

use std::collections::BTreeMap;
use std::path::Path;

use mp4sr_artifact::{Error, Fingerprint, Header, Result, Tensor, TensorFile, role};
use mp4sr_models::{Buffer, BufferValues, Model, Phase, Stored};
use serde::{Deserialize, Serialize};

use crate::{ParameterTensor, write_divided};

const FORMAT: &str = "checkpoint";
const VERSION: u32 = 1;
const REMEDY: &str = "train again, or use another run";
/// The prefix of the names of buffers.
const BUFFER: &str = "buffer.";

/// How a checkpoint was created. A user's own program may leave out all of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CheckpointInfo {
    /// The training phase; empty means fine-tuning.
    pub phase: String,
    /// The epoch whose weights these are; 0 for a model that is not trained.
    pub epoch: usize,
    /// The validation R@20 of that epoch, which is logged beside the metric that selects epochs (`train.metric`).
    pub validation_recall_20: f64,
    /// The fingerprints of the encoders whose features it was trained on, by modality; missing for features that do not name theirs.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub encoders: BTreeMap<String, String>,
    /// The hash of the users' ids, in their order, if the model has parameters for every user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub users: Option<Fingerprint>,
    /// The resolved configuration ([`mp4sr_pipeline::Config::resolved`]).
    pub config: serde_json::Value,
}

/// A model and the phase that trained it.
#[derive(Clone, Copy)]
pub struct TrainedPhase<'a> {
    /// The model.
    pub model: &'a dyn Model,
    /// The phase.
    pub phase: &'a Phase,
}

/// A model's parameters on disk.
#[derive(Debug)]
pub struct Checkpoint {
    /// How it was created.
    pub info: CheckpointInfo,
    inputs: BTreeMap<String, Fingerprint>,
    parameters: Vec<Stored>,
    buffers: BTreeMap<String, Buffer>,
}

impl Checkpoint {
    /// Writes the parameters that `phase` uses, and the model's buffers. In a group of processes this is a collective operation, and the
    /// first process writes the file.
    pub fn write(
        path: &Path,
        info: &CheckpointInfo,
        weights: TrainedPhase<'_>,
        items: &Fingerprint,
        inputs: BTreeMap<String, Fingerprint>,
    ) -> Result<()> {
        let TrainedPhase { model, phase } = weights;
        let header = Header {
            format: FORMAT.to_owned(),
            version: VERSION,
            stage: info.phase.clone(),
            items: items.clone(),
            settings: Header::settings_of(path, info)?,
            inputs,
        };
        let unreadable = |e: mp4sr_models::Error| Error::unusable(path, e.to_string(), "report this as a bug");
        let mut parameters = model.parameters().own_values().map_err(unreadable)?;
        parameters.retain(|(name, ..)| model.uses(phase, name));
        let parameters: Vec<_> = parameters
            .iter()
            .map(|(name, values, shape)| ParameterTensor::of(name.clone(), model.parameters(), name, values, shape))
            .collect();
        let buffers = model.buffers().map(mp4sr_models::Buffers::snapshot).unwrap_or_default();
        let buffers = buffers.into_iter().map(|(name, buffer)| (format!("{BUFFER}{name}"), buffer_tensor(buffer)));
        write_divided(path, &header, model.group(), buffers.collect(), &parameters)
    }

    /// Reads and verifies a checkpoint of `phase` for a dataset whose items are `items`.
    pub fn read(path: &Path, phase: &str, items: &Fingerprint) -> Result<Self> {
        let file = Self::open(path)?;
        file.expect_items(items, REMEDY)?;
        Self::from_file(path, file, phase)
    }

    /// Reads a checkpoint that may have been written for other items: for parameters that do not depend on them, such as those of
    /// pre-training.
    pub fn read_of_any_items(path: &Path, phase: &str) -> Result<Self> {
        Self::from_file(path, Self::open(path)?, phase)
    }

    fn open(path: &Path) -> Result<TensorFile> {
        TensorFile::read(path, FORMAT, VERSION, REMEDY)
    }

    fn from_file(path: &Path, mut file: TensorFile, phase: &str) -> Result<Self> {
        let info: CheckpointInfo = match file.header().settings.clone() {
            serde_json::Value::Null => CheckpointInfo::default(),
            settings => serde_json::from_value(settings)
                .map_err(|e| Error::unreadable(path, "its settings", &e, format!("run `mp4sr train {phase}` again")))?,
        };
        if !info.phase.is_empty() && info.phase != phase {
            let reason = format!("it contains weights of the phase `{}`, expected `{}`", info.phase, phase);
            return Err(Error::unusable(path, reason, format!("run `mp4sr train {phase}` again")));
        }
        let inputs = file.header().inputs.clone();
        let (mut parameters, mut buffers) = (Vec::new(), BTreeMap::new());
        for name in file.names() {
            if let Some(buffer) = name.strip_prefix(BUFFER) {
                buffers.insert(buffer.to_owned(), take_buffer(&mut file, &name)?);
            } else {
                let (values, shape) = file.take_f32(&name)?;
                parameters.push((name, values, shape));
            }
        }
        Ok(Self { info, inputs, parameters, buffers })
    }

    /// Refuses weights of a model with parameters for every user if the users differ from those of training.
    pub(crate) fn expect_users(&self, model: &dyn Model, now: Option<&Fingerprint>, path: &Path) -> Result<()> {
        match (&self.info.users, now) {
            (Some(then), Some(now)) if model.has_user_vectors() && then != now => {
                let reason = "it has a vector for each user of the dataset on which it was trained, and the users have changed since";
                Err(Error::unusable(path, reason, "train it again with `mp4sr train finetune`"))
            }
            _ => Ok(()),
        }
    }

    /// Whether the file of a modality's features among `inputs` is the one that the weights were trained on.
    pub fn was_trained_on(&self, modality: &str, inputs: &BTreeMap<String, Fingerprint>) -> bool {
        let role = role::features(modality);
        self.inputs.get(&role).is_some_and(|then| inputs.get(&role) == Some(then))
    }

    /// Returns a warning if the sequences or features have changed since `phase` was trained. This is not an error, because weights may well
    /// be used with newer events.
    pub fn trained_on_others(&self, inputs: &BTreeMap<String, Fingerprint>, phase: &str) -> Option<String> {
        let changed = inputs.iter().filter(|(role, now)| self.inputs.get(*role).is_some_and(|then| then != *now));
        let changed: Vec<&str> = changed.map(|(role, _)| role.as_str()).collect();
        (!changed.is_empty()).then(|| {
            format!("the weights were trained on other {}; `mp4sr train {phase}` trains on these", changed.join(", "))
        })
    }

    /// Appends `rows` rows of zeros to the parameters that `tables` names, whose last rows belong to the items.
    pub(crate) fn append_rows(&mut self, tables: &[&str], rows: usize) {
        for (_, values, shape) in self.tables(tables) {
            // A parameter without a dimension is refused when it is loaded into the model.
            if let Some(first) = shape.first_mut() {
                *first += rows;
                values.resize(shape.iter().product(), 0.0);
            }
        }
    }

    /// Returns the same weights with the last `items` rows of the parameters that `tables` names replaced by `rows` rows of zeros.
    pub(crate) fn with_other_items(&self, tables: &[&str], items: usize, rows: usize) -> Self {
        let other = |(name, values, shape): &Stored| {
            let mut shape = shape.clone();
            if !tables.contains(&name.as_str()) {
                return (name.clone(), values.clone(), shape);
            }
            // As in `append_rows`.
            let Some(first) = shape.first_mut() else { return (name.clone(), values.clone(), shape) };
            let kept = first.saturating_sub(items);
            *first = kept;
            let mut values = values[..shape.iter().product()].to_vec();
            shape[0] = kept + rows;
            values.resize(shape.iter().product(), 0.0);
            (name.clone(), values, shape)
        };
        Self {
            info: self.info.clone(),
            inputs: self.inputs.clone(),
            parameters: self.parameters.iter().map(other).collect(),
            buffers: self.buffers.clone(),
        }
    }

    fn tables(&mut self, names: &[&str]) -> impl Iterator<Item = &mut Stored> {
        self.parameters.iter_mut().filter(|(name, ..)| names.contains(&name.as_str()))
    }

    /// Sets the model's parameters that both `phase` and the checkpoint's own phase use, and, if the two are the same phase, the model's
    /// buffers. A parameter that the model lacks or has in another shape is an error; so is one that the checkpoint lacks, unless its own
    /// phase does not use it. Parameters that have no effect are skipped.
    pub fn load_into(&self, model: &dyn Model, phase: &Phase, path: &Path) -> Result<()> {
        const REMEDY: &str = "it was trained with other `[model]` settings: use those, or another run";
        let own = model.phases().iter().find(|own| own.name == self.info.phase).unwrap_or(phase);
        let read = self.parameters.iter().filter(|(name, ..)| model.uses(phase, name) && !model.has_no_effect(name));
        for (name, values, shape) in read {
            let set = model.parameters().set(name, values, shape);
            set.map_err(|e| Error::unusable(path, e.to_string(), REMEDY))?;
        }
        let missing = model.parameters().names().find(|name| {
            model.uses(phase, name) && model.uses(own, name) && !self.parameters.iter().any(|(n, ..)| n == name)
        });
        if let Some(name) = missing {
            return Err(Error::unusable(path, format!("parameter `{name}` is missing"), REMEDY));
        }
        match model.buffers() {
            Some(buffers) if own == phase => {
                buffers.restore(self.buffers.clone()).map_err(|e| Error::unusable(path, e.to_string(), REMEDY))
            }
            _ => Ok(()),
        }
    }
}

/// Converts a buffer to the tensor that is stored.
pub fn buffer_tensor(buffer: Buffer) -> Tensor {
    match buffer.values {
        BufferValues::F32(values) => Tensor::F32(values, buffer.shape),
        BufferValues::I64(values) => Tensor::I64(values, buffer.shape),
    }
}

/// Takes a buffer out of a file.
pub fn take_buffer(file: &mut TensorFile, name: &str) -> Result<Buffer> {
    file.take(name).and_then(|tensor| match tensor {
        Tensor::F32(values, shape) => Ok(Buffer { values: BufferValues::F32(values), shape }),
        Tensor::I64(values, shape) => Ok(Buffer { values: BufferValues::I64(values), shape }),
        _ => Err(file.wrong(format!("buffer `{name}`: expected F32 or I64"))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A table of three items after a row of padding, and a parameter that has nothing to do with items.
    fn checkpoint() -> Checkpoint {
        let parameters = vec![
            ("ids".to_owned(), (0..8).map(|value| value as f32).collect(), vec![4, 2]),
            ("bias".to_owned(), vec![9.0, 9.0], vec![2]),
        ];
        Checkpoint { info: CheckpointInfo::default(), inputs: BTreeMap::new(), parameters, buffers: BTreeMap::new() }
    }

    #[test]
    fn items_without_ids_have_rows_of_zeros() {
        let mut appended = checkpoint();
        appended.append_rows(&["ids"], 2);
        assert_eq!(appended.parameters[0].1, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 0.0, 0.0, 0.0, 0.0]);
        assert_eq!(
            (&appended.parameters[0].2[..], &appended.parameters[1]),
            (&[6, 2][..], &checkpoint().parameters[1])
        );
        // Other items replace the three, and the padding row stays.
        let other = checkpoint().with_other_items(&["ids"], 3, 1);
        assert_eq!((&other.parameters[0].1[..], &other.parameters[0].2[..]), (&[0.0, 1.0, 0.0, 0.0][..], &[2, 2][..]));
        assert_eq!(other.parameters[1], checkpoint().parameters[1]);
    }
}
