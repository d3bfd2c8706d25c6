use std::collections::BTreeMap;

use mp4sr_protocol::Metrics;
use serde::{Deserialize, Serialize};

/// One line of `metrics.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpochLine {
    /// The phase.
    pub phase: String,
    /// From 1.
    pub epoch: usize,
    /// Mean training loss of the epoch's samples.
    pub loss: f64,
    /// Mean over steps of the joint gradient norm before clipping.
    pub gradient_norm: f64,
    /// Validation metrics after the epoch: `R@K`, `N@K`.
    pub validation: BTreeMap<String, f64>,
    /// Mean cross-entropy of the test split after the epoch, where asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test_loss: Option<f64>,
    /// Whether it is the best epoch so far.
    pub best: bool,
    /// Seconds of training and of validation.
    pub seconds: (f64, f64),
}

impl EpochLine {
    pub(crate) fn named(metrics: &Metrics) -> BTreeMap<String, f64> {
        metrics.values.iter().map(|(measure, value)| (measure.to_string(), *value)).collect()
    }
}
