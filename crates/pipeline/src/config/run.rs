//! `[run]`: the name, the seed, the preset and the device of a run.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `[run]`: the name, seed and device of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Run {
    /// The name of the run, unless `RUN=` or `--run` gives one.
    pub name: String,
    /// The seed. Every random number is derived from the seed and from the purpose of the number.
    pub seed: u64,
    /// A named set of values for several keys; keys that the pipeline sets take precedence over it.
    pub preset: String,
    /// The number of seconds between saved states within an epoch. A killed run resumes from the last saved state; one is also saved
    /// after every epoch.
    #[schemars(range(min = 0.0, max = 86400.0))]
    pub save_seconds: f64,
    /// The device for training, evaluation, recommendation, extraction and the service: `cpu`, or `cuda:0` for the first NVIDIA GPU, which
    /// needs a program built with `make build CUDA=1`.
    pub device: String,
}

impl Default for Run {
    fn default() -> Self {
        Self {
            name: "mp4sr".to_owned(),
            seed: 2020,
            preset: "default".to_owned(),
            save_seconds: 60.0,
            device: "cpu".to_owned(),
        }
    }
}
