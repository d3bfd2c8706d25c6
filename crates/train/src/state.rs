//! The state of an unfinished phase, from which training resumes.

use std::collections::BTreeMap;
use std::path::Path;

use mp4sr_artifact::{EpochLine, Error, Fingerprint, Header, Result, StageSettings, Tensor, TensorFile};
use mp4sr_models::{Batch, Buffer, Parameters, ProcessGroup, Stored, TableShare};
use mp4sr_ops::AdamState;
use mp4sr_run::{ParameterTensor, buffer_tensor, take_buffer, write_divided};
use serde::{Deserialize, Serialize};

const FORMAT: &str = "state";
const VERSION: u32 = 2;
const REMEDY: &str = "delete it to train from the start, or use another run";

/// The error about the state at `path`, which has another setting or input `what`.
pub(crate) fn other_state(path: &Path, what: &str) -> Error {
    // Only keys of the configuration have sections.
    let (reason, resume) = if what.contains('.') {
        (
            format!("it is the state of an unfinished run with another `{what}`"),
            "restore the old setting to resume, or ",
        )
    } else {
        (format!("it is the state of an unfinished run, and its input `{what}` has changed since"), "")
    };
    Error::unusable(path, reason, format!("{resume}train from the start with `--restart` or by deleting the file"))
}

/// Everything that the next step depends on: an unfinished run resumes from it and ends as if it had never been interrupted. Of tables that
/// are divided among the processes of a group, and of their moments, every process holds its own rows.
#[derive(Clone, Debug, PartialEq)]
pub struct PhaseState {
    /// Everything that is not a tensor.
    pub progress: PhaseProgress,
    /// The names of the parameters that are trained.
    pub trained: Vec<String>,
    /// The weights after the last finished step.
    pub current: PhaseWeights,
    /// The weights after the best epoch.
    pub best: PhaseWeights,
    /// Adam's moments of the trained parameters.
    pub adam: AdamState,
}

/// The part of a model that a phase stores.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PhaseWeights {
    /// The parameters that the phase uses.
    pub parameters: Vec<Stored>,
    /// The model's buffers, by name.
    pub buffers: BTreeMap<String, Buffer>,
}

/// The parameters of a phase.
#[derive(Clone, Copy, Debug)]
pub struct PhaseParameters<'a> {
    /// All parameters of the model.
    pub all: &'a Parameters,
    /// The processes among which tables are divided, if there are several.
    pub group: Option<&'a ProcessGroup>,
    /// The names of the parameters that the phase uses.
    pub used: &'a [String],
    /// The names of the used parameters that the phase trains.
    pub trained: &'a [String],
}

/// The settings and inputs that a state must belong to.
#[derive(Debug)]
pub struct StateIdentity<'a> {
    /// The settings of the phase.
    pub settings: &'a StageSettings,
    /// Fingerprints of the inputs, by role.
    pub inputs: &'a BTreeMap<String, Fingerprint>,
    /// The limits of the phase, on which the weights so far do not depend.
    pub limits: PhaseLimits,
}

/// The limits at which a phase ends.
#[derive(Clone, Copy, Debug)]
pub struct PhaseLimits {
    /// The name of the phase.
    pub phase: &'static str,
    /// The maximum number of epochs.
    pub epochs: usize,
    /// The number of epochs without a better value after which the phase stops.
    pub patience: usize,
    /// Whether the phase stops early at all.
    pub stops: bool,
}

impl PhaseLimits {
    /// The key of the limit by which the phase would have ended before `progress`, if any.
    fn passed(&self, progress: &PhaseProgress) -> Option<String> {
        let key = |key: &str| Some(format!("{}.{key}", self.phase));
        if progress.epoch > self.epochs || (progress.epoch == self.epochs && progress.under_way.step > 0) {
            return key("epochs");
        }
        let mut best = 0;
        for (at, line) in progress.lines.iter().enumerate() {
            if self.stops && at > 0 && at - best >= self.patience {
                return key("patience");
            }
            if line.best {
                best = at + 1;
            }
        }
        None
    }
}

impl StateIdentity<'_> {
    /// The name of the first setting or input that differs from the recorded one.
    fn difference(&self, progress: &PhaseProgress) -> Option<String> {
        let mut recorded = progress.identity["settings"].clone();
        let phase = self.limits.phase;
        // A phase may go on with other limits; those that it has already passed are found below.
        for limit in ["epochs", "patience"] {
            if let Some(now) = self.settings.values()[phase].get(limit).filter(|_| recorded[phase].is_object()) {
                recorded[phase][limit] = now.clone();
            }
        }
        let changed = |(role, now): (&String, &Fingerprint)| {
            (progress.identity["inputs"][role] != serde_json::json!(now)).then(|| role.clone())
        };
        let settings = self.settings.changed_since(&recorded).or_else(|| self.limits.passed(progress));
        let recorded = progress.identity["inputs"].as_object();
        let unused = || recorded?.keys().find(|role| !self.inputs.contains_key(*role)).cloned();
        settings.or_else(|| self.inputs.iter().find_map(changed)).or_else(unused)
    }
}

/// The progress of a phase.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PhaseProgress {
    /// The phase's settings and the fingerprints of its inputs. A state can only be resumed with the same ones.
    pub identity: serde_json::Value,
    /// The number of finished epochs.
    pub epoch: usize,
    /// The number of finished steps in all epochs.
    pub steps: u64,
    /// The progress of the epoch after the finished ones.
    pub under_way: UnderWay,
    /// The number of the best of the finished epochs.
    pub best_epoch: usize,
    /// The best epoch's value of the metric that epochs are selected by.
    #[serde(alias = "best_recall")]
    pub best_value: f64,
    /// One line of the log per finished epoch.
    pub lines: Vec<EpochLine>,
}

/// The progress of an unfinished epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct UnderWay {
    /// The number of finished steps.
    pub step: usize,
    /// The sum of the losses of the samples of these steps.
    pub loss_sum: f64,
    /// The sum of the gradient norms of these steps.
    pub norm_sum: f64,
    /// The seconds spent in these steps.
    pub seconds: f64,
}

impl PhaseState {
    /// Writes the state of a model with these parameters atomically, and the samples of its next step if they are given: `batch.users`
    /// `[B]`, `batch.items` `[tokens]`, `batch.offsets` `[B+1]`, `batch.targets` `[B]`. In a group, this is a collective operation, and the
    /// first process writes.
    pub fn write(
        &self,
        path: &Path,
        items: &Fingerprint,
        PhaseParameters { all, group, .. }: PhaseParameters<'_>,
        next: Option<&Batch>,
    ) -> Result<()> {
        let header = Header {
            format: FORMAT.to_owned(),
            version: VERSION,
            stage: "train".to_owned(),
            items: items.clone(),
            settings: Header::settings_of(path, &self.progress)?,
            inputs: BTreeMap::new(),
        };
        let (mut tensors, mut parameters) = (Vec::new(), Vec::new());
        for (prefix, weights) in [("current", &self.current), ("best", &self.best)] {
            for (name, values, shape) in &weights.parameters {
                parameters.push(ParameterTensor::of(format!("{prefix}.{name}"), all, name, values, shape));
            }
            for (name, buffer) in &weights.buffers {
                tensors.push((format!("buffer.{prefix}.{name}"), buffer_tensor(buffer.clone())));
            }
        }
        let moments = self.adam.first.iter().zip(&self.adam.second).zip(&self.adam.steps);
        for (name, ((first, second), &steps)) in self.trained.iter().zip(moments) {
            for (prefix, moments) in [("first", first), ("second", second)] {
                let shape = [moments.len()];
                parameters.push(ParameterTensor::of(format!("{prefix}.{name}"), all, name, moments, &shape).flat());
            }
            tensors.push((format!("steps.{name}"), Tensor::I64(vec![steps as i64], vec![1])));
        }
        if let Some(batch) = next {
            let ends = (0..batch.offsets.count()).map(|j| batch.offsets.range(j).end as i64);
            let offsets: Vec<i64> = std::iter::once(0).chain(ends).collect();
            for (name, values) in [("users", &batch.users), ("items", &batch.items), ("targets", &batch.targets)] {
                tensors.push((format!("batch.{name}"), Tensor::U32(values.clone(), vec![values.len()])));
            }
            tensors.push(("batch.offsets".to_owned(), Tensor::I64(offsets.clone(), vec![offsets.len()])));
        }
        write_divided(path, &header, group, tensors, &parameters)
    }

    /// The name of the first setting or input of a stored state that differs from the expected one.
    pub fn other(path: &Path, expected: &StateIdentity<'_>) -> Result<Option<String>> {
        let file = TensorFile::read(path, FORMAT, VERSION, REMEDY)?;
        let progress: PhaseProgress = serde_json::from_value(file.header().settings.clone())
            .map_err(|e| Error::unreadable(path, "its settings", &e, REMEDY))?;
        Ok(expected.difference(&progress))
    }

    /// Reads a state for the parameters that are used and those that are trained, and refuses a state of another run. Of divided tables,
    /// only this process's rows are read.
    pub fn read(
        path: &Path,
        items: &Fingerprint,
        identity: &StateIdentity<'_>,
        parameters: PhaseParameters<'_>,
    ) -> Result<Self> {
        let mut file = TensorFile::read(path, FORMAT, VERSION, REMEDY)?;
        file.expect_items(items, REMEDY)?;
        let progress: PhaseProgress = serde_json::from_value(file.header().settings.clone())
            .map_err(|e| Error::unreadable(path, "its settings", &e, REMEDY))?;
        if let Some(what) = identity.difference(&progress) {
            return Err(other_state(path, &what));
        }
        let current = PhaseWeights::read(&mut file, "current", parameters)?;
        let best = PhaseWeights::read(&mut file, "best", parameters)?;
        let mut adam = AdamState::default();
        for name in parameters.trained {
            adam.first.push(parameters.read(&mut file, "first", name)?.0);
            adam.second.push(parameters.read(&mut file, "second", name)?.0);
            match file.take_i64(&format!("steps.{name}"))?.as_slice() {
                [steps] if *steps >= 0 => adam.steps.push(*steps as u64),
                other => return Err(file.wrong(format!("`steps.{name}`: expected one number, found {other:?}"))),
            }
        }
        Ok(Self { progress, trained: parameters.trained.to_vec(), current, best, adam })
    }
}

impl PhaseParameters<'_> {
    /// Reads the values and the shape of a parameter, or of a tensor that belongs to it; of a divided table, only this process's rows. A
    /// table of another size is read whole, so that the model refuses it.
    fn read(&self, file: &mut TensorFile, prefix: &str, parameter: &str) -> Result<(Vec<f32>, Vec<usize>)> {
        let name = format!("{prefix}.{parameter}");
        let is_whole = |share: &TableShare| {
            let count: usize = share.whole_shape.iter().product();
            file.shape(&name).is_some_and(|shape| *shape == share.whole_shape || *shape == [count])
        };
        match self.all.table_share(parameter).filter(is_whole) {
            Some(share) => Ok((file.take_f32_range(&name, share.own)?, share.own_shape)),
            None => file.take_f32(&name),
        }
    }
}

impl PhaseWeights {
    fn read(file: &mut TensorFile, prefix: &str, parameters: PhaseParameters<'_>) -> Result<Self> {
        let mut weights = Self::default();
        for name in parameters.used {
            let (values, shape) = parameters.read(file, prefix, name)?;
            weights.parameters.push((name.clone(), values, shape));
        }
        let start = format!("buffer.{prefix}.");
        for name in file.names() {
            if let Some(buffer) = name.strip_prefix(&start) {
                weights.buffers.insert(buffer.to_owned(), take_buffer(file, &name)?);
            }
        }
        Ok(weights)
    }
}
