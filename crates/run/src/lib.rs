//! A run's model: what train, evaluate and recommend share.
//!
//! In: dataset, features, configuration, checkpoints. Out: a [`Model`](mp4sr_models::Model) with its data; parameters on
//! disk. Must not know: epochs, metrics, top-K lists.

mod checkpoint;
mod inputs;
mod registry;

pub use checkpoint::{Checkpoint, CheckpointInfo};
pub use inputs::Inputs;
pub use registry::{build_model, removes_seen};
