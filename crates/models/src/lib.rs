//! The recommenders: M2SE with its losses (MP4SR), and the baselines, one file each, over `mp4sr-ops`.
//!
//! In: features, training sequences, batches, a model's own settings. Out: a loss to differentiate, an item matrix and query
//! vectors to rank by. Must not know: files, epochs, metrics.
//!
//! [`Model`] and [`Scorer`] are what everything else sees of a model; a [`Recipe`] in the model's own file says how it is named,
//! configured and built, and [`RECIPES`] lists them.

pub mod augment;
mod batch;
mod buffers;
pub mod cl4srec;
mod encoder;
mod interface;
pub mod lightgcn;
pub mod mp4sr;
mod negatives;
mod parameters;
mod popularity;
mod recipe;
mod sasrec;
pub mod trace;
mod transformer;

pub use batch::{Batch, Sample};
pub use buffers::{Buffer, BufferValues, Buffers};
pub use candle_core::Device;
pub use cl4srec::Cl4sRec;
pub use encoder::{ItemEncoder, Pooling, PoolingGradient};
pub use interface::{BatchUnit, FINETUNE, Model, PRETRAIN, Phase, Query, Samples, Scorer, Step, Stop};
pub use lightgcn::LightGcn;
pub use mp4sr::Mp4sr;
pub use mp4sr_ops::{CmclDirection, ComputeDevice, Error, FalseNegatives, Ragged, Result, RngKey, StoredValues};
pub use negatives::NegativeSampler;
pub use parameters::{Initial, Parameters, Part, Stored};
pub use popularity::Popularity;
pub use recipe::{
    Data, Modality, Preset, RECIPES, Reads, Recipe, Refused, Renamed, Section, Settings, TrainingSequences, recipe,
};
pub use sasrec::SasRec;
pub use transformer::{Transformer, TransformerConfig};
