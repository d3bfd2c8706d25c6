//! The arguments of operators, and the constants that all implementations share.

use candle_core::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Dropout, MixtureSizes, Ragged};

/// The least norm by which cosines divide: `x / max(|x|, 1e-12)`.
pub const COSINE_EPS: f32 = 1e-12;

/// The value that is added to the variance in every LayerNorm of a model; encoders with fixed weights have their own.
pub const LAYER_NORM_EPS: f32 = 1e-12;

/// The inputs of one modality's item encoder.
#[derive(Clone, Debug)]
pub struct ItemRows {
    /// The feature rows of the items.
    pub features: Ragged,
    /// The number of rows up to which rows of zeros pad every pooling, if any.
    pub pooling_rows: Option<usize>,
    /// O, the number of experts.
    pub experts: usize,
    /// `d_0`, the width of an expert.
    pub width: usize,
    /// The dropout of the experts, drawn for every use of an item.
    pub dropout: Dropout,
}

impl ItemRows {
    /// The sizes of the modality's mixture of experts.
    pub fn sizes(&self) -> MixtureSizes {
        MixtureSizes { features: self.features.width(), experts: self.experts, width: self.width }
    }
}

/// A table, and the row that each token takes from it.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// The table, `[n, d]`.
    pub table: &'a Tensor,
    /// The row of each token, `[tokens]`.
    pub rows: &'a [u32],
}

impl<'a> Rows<'a> {
    /// The rows `rows` of `table`.
    pub fn new(table: &'a Tensor, rows: &'a [u32]) -> Self {
        Self { table, rows }
    }
}

/// The dropouts of a transformer layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerDropout {
    /// The dropout of the attention weights.
    pub weights: Dropout,
    /// The dropout of the attention branch.
    pub attention: Dropout,
    /// The dropout of the feed-forward branch.
    pub feed_forward: Dropout,
}

/// A recurrent cell. The blocks of a map are, of an LSTM, input gate, forget gate, candidate and output gate; of a GRU, update gate (which
/// weights the new state), reset gate (which acts before the hidden map) and candidate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Cell {
    /// A long short-term memory.
    #[default]
    Lstm,
    /// A gated recurrent unit.
    Gru,
}

impl Cell {
    /// The number of blocks in the cell's maps.
    pub fn gates(self) -> usize {
        match self {
            Self::Lstm => 4,
            Self::Gru => 3,
        }
    }
}
