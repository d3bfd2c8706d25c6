//! Ranks every user's target with a trained model.
//!
//! The crate takes a scorer, sequences and the evaluated set, and returns one rank per user. It must not know how the model was trained or
//! what the ranks are used for.

pub mod command;
mod loss;
mod ranking;

pub use loss::{mean_loss, mean_loss_in_group};
pub use ranking::{RankError, RankOptions, Ranks, rank_users, rank_users_in_group};
