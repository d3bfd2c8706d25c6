//! The evaluation protocol (specification, section 8): selects the target of each user, and computes metrics from its rank.
//!
//! From sequences, the crate selects the cases of the validation set or the test set. From one rank per user, it computes R@K, N@K, MRR and
//! other metrics, groups of users and significance tests; from lists and the features of their items, it computes statistics of lists. It
//! must not know models or scores.

mod breakdown;
mod comparison;
mod diversity;
mod list_comparison;
mod lists;
mod metric;
mod popularity;
mod significance;
mod split;
mod store;
mod stored_lists;

pub use breakdown::{
    Breakdown, COLD_EVENTS, UserFacts, UserGroup, breakdowns, by_sequence_length, has_clock, training_events,
};
pub use comparison::{
    BOOTSTRAP_ROUNDS, ComparedModel, ComparedValue, Comparison, PairTests, Reference, SIGNIFICANT, SeedRuns,
};
pub use list_comparison::{ComparedLists, ListComparison, SeedLists, left_out, lists_note};
pub use lists::{ItemFacts, ListStatistic, ListStatistics};
pub use metric::{BadScore, Metric, MetricMeans, means, rank};
pub use popularity::popularity_value;
pub use significance::{Interval, Test, mean_and_deviation, probability};
pub use split::{EvalCase, Split, training_items, training_times};
pub use store::{OtherSetting, RanksInfo, StoredRanks};
pub use stored_lists::{StoredLists, expect_inputs_of_lists, read_lists};
