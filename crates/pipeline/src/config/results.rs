//! `[recommend]` and `[report]`: the lists and the page.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `[recommend]`: top-K lists.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Recommend {
    /// K, the length of a list.
    #[schemars(range(min = 1, max = 100_000))]
    pub top: usize,
    /// Whether histories end before the test item, so that lists can be evaluated against it; otherwise a history is the user's whole
    /// sequence.
    pub before_test_item: bool,
    /// The share of the training events, the most recent ones, that are counted for the list of a user without a known item; 1 counts all
    /// of them. Less than 1 needs data with times.
    #[schemars(range(min = 0.000_001, max = 1.0))]
    pub fallback_share: f64,
}

impl Default for Recommend {
    fn default() -> Self {
        Self { top: 10, before_test_item: true, fallback_share: 1.0 }
    }
}

/// `[report]`: the report page.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Report {
    /// Other runs of the same dataset to show beside this one in the tables.
    pub beside: Vec<String>,
    /// The number of users shown with their history and their list.
    #[schemars(range(min = 0, max = 1000))]
    pub users: usize,
}

impl Default for Report {
    fn default() -> Self {
        Self { beside: Vec::new(), users: 8 }
    }
}
