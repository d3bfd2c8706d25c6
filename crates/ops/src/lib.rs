//! Differentiable operators of the models, counter-based random numbers, and Adam.
//!
//! In and out: candle tensors. Every operator exists twice: [`plain`] (candle operations only, any device, the oracle of
//! tests) and `fused` (CPU, hand-written backward); the functions here pick by device. No result depends on the number of
//! threads: work is cut into fixed shards and partial sums are added in their order.
//! Must not know: items, users, files.

mod adam;
mod fused;
mod inference;
mod kernel;
pub mod plain;
mod random;
mod scan;
mod scratch;
mod segments;
mod timing;

pub use adam::{Adam, AdamState};
pub use candle_core::{Error, Result};
pub use inference::{
    Activation, InferenceLayer, InferenceLinear, InferenceNorm, InferenceShape, InferenceTransformer, RelativeBias,
};
pub use kernel::{keep_memory, start_threads, threads};
pub use random::{Dropout, RngKey};
pub use scan::{ScoreBlocks, count_at_least};
pub use segments::{GatherIndex, Mask, PackedOffsets, Ragged, SameGroup, StoredValues};
pub use timing::take_timings;

use candle_core::Tensor;

/// Width below which a norm counts as zero in cosines (`x / max(|x|, 1e-12)`).
pub const COSINE_EPS: f32 = 1e-12;

/// Added to the variance in every LayerNorm.
pub const LAYER_NORM_EPS: f32 = 1e-12;

macro_rules! dispatch {
    ($tensor:expr, $($call:tt)*) => {
        if $tensor.device().is_cpu() { fused::$($call)* } else { plain::$($call)* }
    };
}

/// y = x W + b: `[t, a]`, `[a, b]`, `[b]` -> `[t, b]`.
pub fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    dispatch!(x, linear(x, weight, bias))
}

/// y = x W: `[t, a]`, `[a, b]` -> `[t, b]`.
pub fn product(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    dispatch!(x, product(x, weight))
}

/// x / max(|x|, 1e-12) by row: `[t, d]`.
pub fn normalize(x: &Tensor) -> Result<Tensor> {
    dispatch!(x, normalize(x))
}

/// Rows of `table` `[n, d]` by index: `[t]` -> `[t, d]`.
pub fn gather(table: &Tensor, rows: &[u32]) -> Result<Tensor> {
    dispatch!(table, gather(table, rows))
}

/// What one modality's item encoder works on.
#[derive(Clone, Debug)]
pub struct ItemRows {
    /// Rows of the items.
    pub features: Ragged,
    /// Rows of zeros pad every pooling up to this number.
    pub pad_rows: Option<usize>,
    /// O.
    pub experts: usize,
    /// `d_0`.
    pub width: usize,
    /// Of the experts, drawn for every use.
    pub dropout: Dropout,
}

/// The item encoders (specification, section 3): z of every use, the modalities one after the other,
/// `[modalities uses, d_0]`. Attention pooling of an item's rows with the folded vector w = W1 W2 gives e (zeros for an item
/// without rows); z = sum over k of g_k LayerNorm_k(Dropout(e W_k + b_k)), g = softmax(e W3). `w` is one vector of all
/// modalities' `[d]`; so is `packed` of their W_k `[d, d_0]` one after the other, W3 `[d, o]`, all b_k, all LayerNorm weights,
/// all LayerNorm biases `[o d_0]`.
pub fn encode(modalities: &[ItemRows], w: &Tensor, packed: &Tensor, uses: &GatherIndex) -> Result<Tensor> {
    dispatch!(w, encode(modalities, w, packed, uses))
}

/// What enters the transformer (specification, section 4): Dropout(LayerNorm(z + id + position)), `[tokens, d]`. `z`, `ids`
/// and `positions` are tables with the row that each token takes; two more rows under the positions hold the LayerNorm's
/// weight and bias.
pub fn sequence_input(
    z: (&Tensor, &[u32]),
    ids: Option<(&Tensor, &[u32])>,
    positions: (&Tensor, &[u32]),
    dropout: Dropout,
) -> Result<Tensor> {
    dispatch!(z.0, sequence_input(z, ids, positions, dropout))
}

/// Widths of a transformer layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerSizes {
    /// `d_0`, the width of tokens.
    pub width: usize,
    /// Attention heads.
    pub heads: usize,
    /// Width between the two maps of the feed-forward block.
    pub feed_forward: usize,
}

/// The dropouts of a transformer layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerDropout {
    /// On attention weights.
    pub weights: Dropout,
    /// On the branch of attention.
    pub attention: Dropout,
    /// On the branch of the feed-forward block.
    pub feed_forward: Dropout,
}

/// A post-norm transformer layer over packed sequences, causal (specification, section 4): `[tokens, d]` -> `[tokens, d]`, or
/// `[sequences, d]` for the last tokens alone. `packed` is one vector: weights of query `[d, d]`, key and value `[d, 2 d]`,
/// output `[d, d]`, their biases, weight and bias up, weight and bias down, weight and bias of the LayerNorms after
/// attention and after the feed-forward block.
pub fn transformer_layer(
    x: &Tensor,
    packed: &Tensor,
    sizes: LayerSizes,
    segments: &PackedOffsets,
    last_only: bool,
    dropout: LayerDropout,
) -> Result<Tensor> {
    dispatch!(x, transformer_layer(x, packed, sizes, segments, last_only, dropout))
}

/// The item matrix of the logits, `[items, modalities d]`: rows `start..start + items` of z for every modality's `start`, side
/// by side, plus rows `1..=items` of the id embeddings; each part of length one where logits are cosines.
pub fn candidates(z: &Tensor, starts: &[usize], items: usize, ids: Option<&Tensor>, cosine: bool) -> Result<Tensor> {
    dispatch!(z, candidates(z, starts, items, ids, cosine))
}

/// Cross-entropy of softmax(scale a b^T) with one target column a row: `[n, d]`, `[m, d]` -> `[n]`.
pub fn cross_entropy(a: &Tensor, b: &Tensor, targets: &[u32], scale: f32) -> Result<Tensor> {
    dispatch!(a, cross_entropy(a, b, targets, scale))
}

/// Joins tensors to one vector, in order: parameters of an operator that has more than candle passes.
pub fn pack(tensors: &[&Tensor]) -> Result<Tensor> {
    Tensor::cat(&tensors.iter().map(|t| t.flatten_all()).collect::<Result<Vec<_>>>()?, 0)
}

/// log of the sum over columns of exp(scale * a b^T), by row: `[n, d]`, `[m, d]` -> `[n]`, never holding the whole matrix.
/// A row whose columns are all left out gives -inf.
pub fn row_logsumexp(a: &Tensor, b: &Tensor, scale: f32, mask: &Mask) -> Result<Tensor> {
    dispatch!(a, row_logsumexp(a, b, scale, mask))
}
