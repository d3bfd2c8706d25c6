//! Builds, loads and stores the model of a run, for training, evaluation and recommendation.
//!
//! The crate reads a dataset, features, a configuration and checkpoints. It returns a [`Model`](mp4sr_models::Model) with its data, and
//! writes the model's parameters to disk. It must not train, rank or list.

mod catalog;
mod checkpoint;
mod data_settings;
mod divided;
mod inputs;
mod new_items;
mod provenance;
mod registry;
mod trained;

pub use catalog::model_catalog;
pub use checkpoint::{Checkpoint, CheckpointInfo, TrainedPhase, buffer_tensor, take_buffer};
pub use data_settings::{other_data_settings, other_settings, record_data};
pub use divided::{ParameterTensor, write_divided};
pub use inputs::{Inputs, training_sequences};
pub use new_items::{CurrentItems, NewItems, OtherEncoder, item_tables, other_added_items};
pub use registry::{build_model, build_model_in_group, last_phase, removes_seen};
pub use trained::TrainedModel;
