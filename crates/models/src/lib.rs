//! The recommenders: M2SE with its losses (MP4SR), and the baselines, one file each, over `mp4sr-ops`.
//!
//! In: features, batches of histories and targets, named parameters. Out: a loss to differentiate, an item matrix and
//! sequence vectors to rank by. Must not know: files, epochs, metrics.

pub mod augment;
mod batch;
mod contrastive;
mod encoder;
mod mp4sr;
mod parameters;
mod popularity;
mod sasrec;
mod trace;
mod transformer;

pub use batch::Batch;
pub use contrastive::CmclDirection;
pub use encoder::{ItemEncoder, PoolingGradient};
pub use mp4sr::{Config, Logits, Modality, Mp4sr, Pretraining};
pub use mp4sr_ops::{Error, Ragged, Result, RngKey, SameGroup, StoredValues};
pub use parameters::{Initial, Parameters, Stored};
pub use popularity::Popularity;
pub use sasrec::SasRec;
pub use trace::Trace;
pub use transformer::{Transformer, TransformerConfig};

use candle_core::Tensor;

/// A part of training with its own loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Contrastive pre-training.
    Pretrain,
    /// Fine-tuning on the next item.
    Finetune,
}

impl Phase {
    /// Its name in files and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pretrain => "pretrain",
            Self::Finetune => "finetune",
        }
    }
}

/// What training, evaluation and recommendation see of a recommender.
pub trait Model {
    /// The named parameters, in a fixed order.
    fn parameters(&self) -> &Parameters;

    /// The phases that train the model, in order; none for a model that is ready when built.
    fn phases(&self) -> &'static [Phase];

    /// Whether `phase` uses the parameter, and so trains and stores it.
    fn uses(&self, phase: Phase, name: &str) -> bool;

    /// The loss of a batch, a scalar to differentiate. Every random draw comes from `key`.
    fn loss(&self, phase: Phase, batch: &Batch, key: RngKey) -> Result<Tensor>;

    /// The model as `phase` leaves it, ready to rank; nothing is dropped or drawn.
    fn scorer(&self, phase: Phase) -> Result<Box<dyn Scorer + '_>>;

    /// Whether the order of a history matters. General models have seen items removed from the candidates.
    fn is_sequential(&self) -> bool;
}

/// Scores of items: `sequences(histories) items()^T`.
pub trait Scorer {
    /// The item matrix, `[I, k]`: row i-1 is item i.
    fn items(&self) -> &Tensor;

    /// Vectors of histories (items 1-based, oldest first, none empty), `[B, k]`.
    fn sequences(&self, histories: &[&[u32]]) -> Result<Tensor>;
}
