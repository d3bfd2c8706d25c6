//! The recommendation models, built from the operators of `mp4sr-ops`: MP4SR (M2SE and its losses), and the baselines, one file each.
//!
//! A model takes features, training sequences, batches and its own settings. It returns a loss to differentiate, and an item matrix and
//! query vectors to rank by. The crate must not know files, epochs or metrics.
//!
//! The rest of the program uses a model through [`Model`] and [`Scorer`]. A [`Recipe`] in the model's own file defines how it is named,
//! configured and built, and [`RECIPES`] lists all of them.

pub mod augment;
mod batch;
mod buffers;
mod candidates;
pub mod cl4srec;
pub mod clcrec;
mod data;
pub mod difsr;
pub mod dualgnn;
mod encoder;
pub mod esasrec;
pub mod fdsa;
mod features;
mod graph;
pub mod grcn;
mod group_batch;
mod interface;
mod keys;
pub mod lightgcn;
mod maps;
pub mod masr;
pub mod mp4sr;
pub mod mvrnn;
mod negatives;
mod parameters;
mod popularity;
mod recipe;
mod recipes;
pub mod s3rec;
mod sasrec;
pub mod sine;
pub mod trace;
mod transformer;
pub mod unisrec;

pub use batch::{Batch, Query, Sample};
pub use buffers::{Buffer, BufferValues, Buffers};
pub use candidates::{CandidateSampler, SampledItems};
pub use candle_core::Device;
pub use cl4srec::Cl4sRec;
pub use clcrec::ClcRec;
pub use data::{Categories, Data, Modality, TrainingSequences};
pub use difsr::DifSr;
pub use dualgnn::DualGnn;
pub use encoder::{ItemEncoder, Pooling, PoolingGradient};
pub use esasrec::ESasRec;
pub use fdsa::Fdsa;
pub use features::{RowMean, mean_rows};
pub use grcn::Grcn;
pub use interface::{
    BatchUnit, FINETUNE, Model, PRETRAIN, Phase, Samples, Scorer, Step, Stop, query_vectors, scorer_of,
};
pub use keys::{Refused, Renamed};
pub use lightgcn::LightGcn;
pub use masr::Masr;
pub use mp4sr::Mp4sr;
pub use mp4sr_ops::{
    BlockReader, CmclDirection, ComputeDevice, DividedValues, Error, FalseNegatives, ProcessGroup, Ragged, Result,
    RngKey, StoredValues, lend_blocks,
};
pub use mvrnn::MvRnn;
pub use negatives::NegativeSampler;
pub use parameters::{Initial, PackedParameter, Parameters, Stored, TableShare};
pub use popularity::{Config as PopularityConfig, Popularity, count_latest, popularity_scores};
pub use recipe::{ModelSettings, Preset, Reads, Recipe, Section, Supports};
pub use recipes::{RECIPES, recipe};
pub use s3rec::S3Rec;
pub use sasrec::SasRec;
pub use sine::Sine;
pub use transformer::{LayerStack, Transformer, TransformerConfig};
pub use unisrec::UniSRec;
