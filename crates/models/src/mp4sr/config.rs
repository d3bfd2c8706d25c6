//! `[model.mp4sr]`: the keys of MP4SR.

use mp4sr_ops::FalseNegatives;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::interface::{FINETUNE, PRETRAIN};
use crate::{CmclDirection, Phase, Pooling, PoolingGradient};

/// The number of rows to which the released code pads every item with rows of zeros.
const RELEASED_ROWS: usize = 10;

/// Which rows share the softmax of attention pooling.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PoolingRows {
    /// The item's own rows (paper).
    #[default]
    Masked,
    /// The item's rows and rows of zeros that pad them to `padded_rows` (released code).
    Unmasked,
}

/// Whether pre-training has projection heads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Projection {
    /// One head per modality (paper).
    #[default]
    On,
    /// The losses are computed on the sequence vectors themselves (released code; the paper's `w/o Proj`).
    Off,
}

/// The items that NIP compares the sequences of a step with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NipCandidates {
    /// The targets of the batch (paper).
    #[default]
    Batch,
    /// All items that pre-training reads, as in fine-tuning.
    All,
}

/// How fine-tuning computes scores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Logits {
    /// Cosine over the temperature (released code).
    #[default]
    Cosine,
    /// Inner product (paper).
    Dot,
}

/// How the share of items that sequence dropout drops is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SequenceDropout {
    /// It is always `rho` (paper).
    #[default]
    Fixed,
    /// It is drawn from U(0, `rho`) once per batch (released code).
    Uniform,
}

/// `[model.mp4sr]`: hyper-parameters of MP4SR.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// `d_a`, the width of attention pooling.
    #[schemars(range(min = 1, max = 4096))]
    pub attention: usize,
    /// O, the number of experts of a modality's encoder.
    #[schemars(range(min = 1, max = 256))]
    pub experts: usize,
    /// The dropout probability of the experts.
    #[schemars(range(min = 0.0, max = 0.95))]
    pub expert_dropout: f64,
    /// tau, the temperature of all similarities.
    #[schemars(range(min = 0.0001, max = 100.0))]
    pub temperature: f64,
    /// Whether one item encoder serves all modalities (variant `Shared`).
    pub shared_encoder: bool,
    /// Whether items have id embeddings in fine-tuning.
    pub id_embedding: bool,
    /// The probability that fine-tuning reads an item of a history without its id embedding.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub id_dropout: f64,
    /// The modalities in the logits (variants `T`, `V`). Empty: all.
    pub logit_modalities: Vec<String>,
    /// What happens to the gradient of attention pooling.
    pub pooling_gradient: PoolingGradient,
    /// Which rows share the softmax of attention pooling.
    pub pooling_rows: PoolingRows,
    /// The number of rows that `pooling_rows = "unmasked"` pads every item to.
    #[schemars(range(min = 1, max = 10000))]
    pub padded_rows: usize,
    /// Whether pre-training has projection heads.
    pub projection: Projection,
    /// How samples of the batch that share the sample's target are treated in NIP and CMCL.
    pub false_negatives: FalseNegatives,
    /// How the second direction of CMCL is computed.
    pub cmcl_direction: CmclDirection,
    /// How fine-tuning computes scores.
    pub logits: Logits,
    /// rho, the probability that sequence dropout drops an item.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub rho: f64,
    /// How the share of dropped items is chosen.
    pub sequence_dropout: SequenceDropout,
    /// The minimum swap probability of mixup, which is drawn once per batch.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub mixup_min: f64,
    /// The maximum swap probability of mixup; 0 disables mixup (variant `w/o C-Mixup`).
    #[schemars(range(min = 0.0, max = 1.0))]
    pub mixup_max: f64,
    /// The weight of NIP; 0 is the variant `w/o NIP`.
    #[schemars(range(min = 0.0, max = 1000.0))]
    pub nip_weight: f64,
    /// The items that NIP compares every sequence with.
    pub nip_candidates: NipCandidates,
    /// lambda, the weight of CMCL; 0 is the variant `w/o CMCL`.
    #[schemars(range(min = 0.0, max = 1000.0))]
    pub lambda: f64,
    /// Whether fine-tuning starts from random weights and every step adds the loss of pre-training (variant `E2E`).
    pub end_to_end: bool,
}

/// The settings of the paper, except for `false_negatives` and `logits`; the preset `paper` sets these to the paper's values.
impl Default for Config {
    fn default() -> Self {
        Self {
            attention: 64,
            experts: 8,
            expert_dropout: 0.2,
            temperature: 0.07,
            shared_encoder: false,
            id_embedding: true,
            id_dropout: 0.0,
            logit_modalities: Vec::new(),
            pooling_gradient: PoolingGradient::default(),
            pooling_rows: PoolingRows::default(),
            padded_rows: RELEASED_ROWS,
            projection: Projection::default(),
            false_negatives: FalseNegatives::default(),
            cmcl_direction: CmclDirection::default(),
            logits: Logits::default(),
            rho: 0.2,
            sequence_dropout: SequenceDropout::default(),
            mixup_min: 0.0,
            mixup_max: 0.5,
            nip_weight: 1.0,
            nip_candidates: NipCandidates::default(),
            lambda: 0.01,
            end_to_end: false,
        }
    }
}

impl Config {
    pub(super) fn pooling(&self) -> Pooling {
        Pooling {
            attention: self.attention,
            gradient: self.pooling_gradient,
            pooling_rows: match self.pooling_rows {
                PoolingRows::Masked => None,
                PoolingRows::Unmasked => Some(self.padded_rows),
            },
        }
    }

    /// The range from which the swap probability of mixup is drawn.
    pub(super) fn mixup(&self) -> (f64, f64) {
        (self.mixup_min, self.mixup_max)
    }
}

const PRETRAINED: [Phase; 2] = [Phase::of_prefixes(PRETRAIN), Phase::of_prefixes(FINETUNE)];

/// Both phases, or only fine-tuning if the model is trained end to end.
pub(super) fn phases(config: &Config) -> Vec<Phase> {
    PRETRAINED[usize::from(config.end_to_end)..].to_vec()
}
