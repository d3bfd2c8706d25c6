//! Trains a model on a dataset and writes its checkpoints and `metrics.jsonl`.
//!
//! The crate takes a [`Model`](mp4sr_models::Model), training sequences and the settings of one phase. It writes the weights of the epoch
//! with the best validation metric, a line per epoch, and a state to resume from. It must not know how a model computes, or which one it
//! is.

pub mod command;
mod launch;
#[cfg(feature = "mpi")]
mod mpi;
mod phase;
mod samples;
mod state;

pub use launch::Launch;
pub use phase::{PhaseOutcome, TrainError, TrainSettings, Training};
pub use samples::SampleList;
pub use state::{PhaseLimits, PhaseParameters, PhaseProgress, PhaseState, PhaseWeights, StateIdentity, UnderWay};
