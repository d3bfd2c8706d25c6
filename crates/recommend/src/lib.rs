//! Computes top-K lists: the items with the highest scores for each query.
//!
//! The crate takes a trained model and histories, and returns one list per history, best item first. It must not know training.

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests write damaged files"))]

pub mod command;
pub mod condition;
mod error;
pub mod for_histories;
pub mod histories;
pub mod lists;
mod loaded;
mod neighbours;
mod recommender;
mod top;

pub use error::RecommendError;
pub use loaded::{Answer, Answerer, Fallback, LoadedRun, Request, RunCatalogue, Search};
pub use neighbours::Neighbours;
pub use recommender::Recommender;
pub use top::{CandidateItems, ListQuery, Scored, expect_candidates};
