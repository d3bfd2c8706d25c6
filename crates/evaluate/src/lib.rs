//! A model and a dataset to one rank a user; ranks to metrics.
//!
//! In: a scorer, sequences, a split; or stored ranks. Out: ranks, R@K and N@K. Must not know: how a model was trained.

mod rank;
mod ranking;
mod store;

pub use rank::{BadScore, Metrics, ndcg, rank, recall};
pub use ranking::{Protocol, RankError, Ranks, rank_users};
pub use store::{RanksInfo, StoredRanks};
