//! Ranks every user's target with a trained model: one rank per user.
//!
//! In: a scorer, sequences, a split. Out: ranks. Must not know: how a model was trained, what the ranks are used for.

pub mod command;
mod loss;
mod ranking;

pub use loss::{mean_loss, mean_loss_in_group};
pub use ranking::{RankError, RankOptions, Ranks, rank_users, rank_users_in_group};
