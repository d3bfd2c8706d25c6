//! The evaluation protocol (specification, section 8): selects the target of each user, and computes metrics from its rank.
//!
//! In: sequences; one rank per user; lists, and the features of their items. Out: the cases of a split; R@K, N@K, MRR and other metrics;
//! groups of users; significance tests; statistics of lists. Must not know: models, scores.

mod breakdown;
mod comparison;
mod diversity;
mod list_comparison;
mod lists;
mod metric;
mod significance;
mod split;
mod store;
mod stored_lists;

pub use breakdown::{Breakdown, COLD_EVENTS, UserFacts, UserGroup, breakdowns, training_events};
pub use comparison::{
    BOOTSTRAP_ROUNDS, ComparedModel, ComparedValue, Comparison, PairTests, Reference, SIGNIFICANT, SeedRuns,
};
pub use list_comparison::{ComparedLists, ListComparison, SeedLists};
pub use lists::{ItemFacts, ListStatistic, ListStatistics};
pub use metric::{BadScore, Metric, MetricMeans, means, rank};
pub use significance::{Interval, Test, mean_and_deviation};
pub use split::{EvalCase, Split, training_part};
pub use store::{OtherSetting, RanksInfo, StoredRanks, WEIGHTS};
pub use stored_lists::{expect_weights_of_lists, read_lists};
