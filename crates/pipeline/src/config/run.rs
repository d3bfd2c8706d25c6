use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `[run]`: what belongs to a run as a whole.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Run {
    /// The run's name when `RUN=` and `--run` give none.
    pub name: String,
    /// Every random draw is a function of this, its purpose and its place.
    pub seed: u64,
    /// Sets several keys together; keys that the pipeline sets win over it.
    pub preset: String,
    /// Training writes the state that a killed run goes on from after every epoch, and within an epoch when this many
    /// seconds have passed.
    #[schemars(range(min = 0.0, max = 86400.0))]
    pub save_seconds: f64,
    /// Where training, evaluation, recommendation and extraction compute: `cpu`, or `cuda:0` for the first NVIDIA card, which needs
    /// a program that was built with `make build CUDA=1`.
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
