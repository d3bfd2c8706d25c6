//! The evaluation protocol (specification, section 8): which item is asked for, and what follows from its rank.
//!
//! In: sequences; one rank per user. Out: cases of a split, R@K, N@K, MRR and kin, groups of users, significance, figures of lists. Must not
//! know: models, scores, runs.

mod breakdown;
mod comparison;
mod lists;
mod measure;
mod significance;
mod split;
mod store;

pub use breakdown::{Breakdown, COLD_EVENTS, UserFacts, UserGroup, breakdowns, training_events};
pub use comparison::{
    BOOTSTRAP_ROUNDS, ComparedModel, ComparedValue, Comparison, PairTests, Reference, SIGNIFICANT, SeedRuns,
};
pub use lists::{ItemPopularity, ListFigures};
pub use measure::{BadScore, Measure, Metrics, means, rank};
pub use significance::{Interval, Test, mean_and_deviation};
pub use split::{EvalCase, Split, training_part};
pub use store::{OtherSetting, RanksInfo, StoredRanks, WEIGHTS};
