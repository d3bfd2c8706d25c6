//! The evaluation protocol (specification, section 8): which item is asked for, and what follows from its rank.
//!
//! In: sequences; one rank a user. Out: leave-one-out cases, R@K, N@K and MRR, groups of users, significance. Must not know:
//! models, scores, runs.

mod measure;
mod significance;
mod slices;
mod split;
mod store;

pub use measure::{BadScore, Measure, Metrics, means, rank};
pub use significance::{Interval, Test, bootstrap, holm, mean_and_deviation, paired_t, unrounded, wilcoxon};
pub use slices::{COLD_EVENTS, Facts, Slice, Slicing, slicings, training_events};
pub use split::{Case, Split, training_part};
pub use store::{RanksInfo, StoredRanks, WEIGHTS};
