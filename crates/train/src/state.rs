use std::path::Path;

use mp4sr_artifact::{Error, Fingerprint, Header, Result, Tensor, TensorFile, write_tensors};
use mp4sr_models::{Batch, Stored};
use mp4sr_ops::AdamState;
use serde::{Deserialize, Serialize};

use crate::EpochLine;

const FORMAT: &str = "state";
const VERSION: u32 = 2;

/// Everything that the next step depends on: a killed run goes on from it and ends as if it had not been killed.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// What is not a tensor.
    pub progress: Progress,
    /// Weights after the last finished step.
    pub current: Vec<Stored>,
    /// Weights after the best epoch.
    pub best: Vec<Stored>,
    /// Adam's moments.
    pub adam: AdamState,
}

/// Where a phase stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// The phase, its settings and the fingerprints of its inputs: a state is only good for the same.
    pub identity: serde_json::Value,
    /// Finished epochs.
    pub epoch: usize,
    /// The epoch after those.
    pub under_way: UnderWay,
    /// The best of them.
    pub best_epoch: usize,
    /// Its validation R@20.
    pub best_recall: f64,
    /// A line a finished epoch.
    pub lines: Vec<EpochLine>,
}

/// Where an unfinished epoch stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct UnderWay {
    /// Finished steps.
    pub step: usize,
    /// Sum of the losses of its samples.
    pub loss_sum: f64,
    /// Sum of the gradient norms of its steps.
    pub norm_sum: f64,
    /// Seconds spent in its steps.
    pub seconds: f64,
}

impl State {
    /// Writes the state atomically, with the samples of its next step where they are given: `batch.items` `[tokens]`,
    /// `batch.offsets` `[B+1]`, `batch.targets` `[B]`.
    pub fn write(&self, path: &Path, items: &Fingerprint, next: Option<&Batch>) -> Result<()> {
        let header = Header {
            format: FORMAT.to_owned(),
            version: VERSION,
            stage: "train".to_owned(),
            items: items.clone(),
            settings: serde_json::to_value(&self.progress).unwrap_or_default(),
            inputs: std::collections::BTreeMap::new(),
        };
        let mut tensors = Vec::new();
        for (prefix, parameters) in [("current", &self.current), ("best", &self.best)] {
            for (name, values, shape) in parameters {
                tensors.push((format!("{prefix}.{name}"), Tensor::F32(values.clone(), shape.clone())));
            }
        }
        for (at, ((name, ..), (first, second))) in
            self.current.iter().zip(self.adam.first.iter().zip(&self.adam.second)).enumerate()
        {
            tensors.push((format!("first.{name}"), Tensor::F32(first.clone(), vec![first.len()])));
            tensors.push((format!("second.{name}"), Tensor::F32(second.clone(), vec![second.len()])));
            tensors.push((format!("steps.{name}"), Tensor::I64(vec![self.adam.steps[at] as i64], vec![1])));
        }
        if let Some(batch) = next {
            let ends = (0..batch.count()).map(|j| batch.offsets.range(j).end as i64);
            let offsets: Vec<i64> = std::iter::once(0).chain(ends).collect();
            for (name, values) in [("items", &batch.items), ("targets", &batch.targets)] {
                tensors.push((format!("batch.{name}"), Tensor::U32(values.clone(), vec![values.len()])));
            }
            tensors.push(("batch.offsets".to_owned(), Tensor::I64(offsets.clone(), vec![offsets.len()])));
        }
        write_tensors(path, &header, &tensors)
    }

    /// Reads a state for the parameters `names` (in their order), and refuses one of another run.
    pub fn read(path: &Path, items: &Fingerprint, identity: &serde_json::Value, names: &[String]) -> Result<Self> {
        const REMEDY: &str = "delete it to train from the start, or use another run";
        let mut file = TensorFile::read(path, FORMAT, VERSION, REMEDY)?;
        file.expect_items(items, REMEDY)?;
        let progress: Progress = serde_json::from_value(file.header().settings.clone())
            .map_err(|e| Error::unreadable(path, "its settings", &e, REMEDY))?;
        if progress.identity != *identity {
            let what = difference("", &progress.identity, identity).unwrap_or_else(|| "settings".to_owned());
            let reason = format!("it is the state of an unfinished run with another `{what}`");
            return Err(Error::unusable(
                path,
                reason,
                "put the old setting back to go on, or delete it to train from the start",
            ));
        }
        let mut state = Self { progress, current: Vec::new(), best: Vec::new(), adam: AdamState::default() };
        for name in names {
            let (values, shape) = file.take_f32(&format!("current.{name}"))?;
            state.current.push((name.clone(), values, shape));
            let (values, shape) = file.take_f32(&format!("best.{name}"))?;
            state.best.push((name.clone(), values, shape));
            state.adam.first.push(file.take_f32(&format!("first.{name}"))?.0);
            state.adam.second.push(file.take_f32(&format!("second.{name}"))?.0);
            match file.take_i64(&format!("steps.{name}"))?.as_slice() {
                [steps] if *steps >= 0 => state.adam.steps.push(*steps as u64),
                other => return Err(file.wrong(format!("`steps.{name}`: expected one number, found {other:?}"))),
            }
        }
        Ok(state)
    }
}

fn difference(prefix: &str, a: &serde_json::Value, b: &serde_json::Value) -> Option<String> {
    let (Some(a_keys), Some(b_keys)) = (a.as_object(), b.as_object()) else {
        return (a != b).then(|| prefix.trim_start_matches('.').to_owned());
    };
    a_keys
        .keys()
        .chain(b_keys.keys())
        .find_map(|key| difference(&format!("{prefix}.{key}"), &a[key.as_str()], &b[key.as_str()]))
}
