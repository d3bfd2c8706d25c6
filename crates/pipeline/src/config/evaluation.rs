//! `[evaluate]`: the metrics, and the candidates of a ranking.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Whether items of the history are candidates in rankings and lists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SeenItems {
    /// They are candidates for sequential models and removed for general ones, as in `RecBole`.
    #[default]
    ByModel,
    /// They are candidates like all other items.
    Keep,
    /// They are not candidates.
    Remove,
}

/// `[evaluate]`: ranking and metrics.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Evaluate {
    /// The values of K for R@K and N@K.
    #[schemars(length(min = 1))]
    pub k: Vec<usize>,
    /// Further columns of the tables: `Hit@K`, `P@K` (precision), `MAP@K`, `MRR@K`, or R@K and N@K of other K. They are computed from the
    /// stored ranks, so no earlier stage has to run again.
    pub metrics: Vec<String>,
    /// Whether items of the history are candidates in rankings and lists.
    pub seen_items: SeenItems,
    /// The number of users that are scored at once.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub batch: usize,
    /// Numbers of events. For each of them, the test targets are ranked again with only that many of the most recent events of every
    /// history, as if the users were new.
    pub short_histories: Vec<usize>,
}

impl Default for Evaluate {
    fn default() -> Self {
        Self {
            k: vec![5, 10, 20],
            metrics: Vec::new(),
            seen_items: SeenItems::default(),
            batch: 256,
            short_histories: Vec::new(),
        }
    }
}
