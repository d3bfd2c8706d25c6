//! The model of a run, as training, evaluation and recommendation share it.
//!
//! In: dataset, features, configuration, checkpoints. Out: a [`Model`](mp4sr_models::Model) with its data; parameters on
//! disk. Must not know: epochs, metrics, top-K lists.

mod catalog;
mod checkpoint;
mod divided;
mod inputs;
mod new_items;
mod provenance;
mod registry;
mod trained;

pub use catalog::model_catalog;
pub use checkpoint::{Checkpoint, CheckpointInfo, TrainedPhase, buffer_tensor, take_buffer};
pub use divided::{ParameterTensor, write_divided};
pub use inputs::Inputs;
pub use new_items::{CurrentItems, NewItems, item_tables};
pub use registry::{build_model, build_model_in_group, last_phase, removes_seen};
pub use trained::TrainedModel;
