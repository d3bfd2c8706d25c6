//! Differentiable operators of the models, counter-based random numbers, and Adam.
//!
//! In and out: candle tensors. Every operator exists twice: [`plain`] (candle operations only, any device, the oracle of
//! tests) and `fused` (CPU, hand-written backward); the functions here pick by device. No result depends on the number of
//! threads: work is cut into fixed shards and partial sums are added in their order.
//! Must not know: items, users, files.

mod adam;
mod fused;
mod kernel;
pub mod plain;
mod random;
mod segments;

pub use adam::{Adam, AdamState};
pub use candle_core::{Error, Result};
pub use kernel::start_threads;
pub use plain::{attention_weights, experts, pooling_weights};
pub use random::{Dropout, Stream};
pub use segments::{Mask, Ragged, SameGroup, Segments, Uses};

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

/// GELU with the error function, element by element.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    dispatch!(x, gelu(x))
}

/// Zeroes elements with the probability of `dropout` and scales the others by its inverse.
pub fn dropout(x: &Tensor, dropout: Dropout) -> Result<Tensor> {
    dispatch!(x, dropout(x, dropout))
}

/// LayerNorm over the last axis: `[t, d]`, weight and bias `[d]`.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    dispatch!(x, layer_norm(x, weight, bias))
}

/// LayerNorm(x + Dropout(branch)): `[t, d]` twice, weight and bias `[d]`.
pub fn add_norm(x: &Tensor, branch: &Tensor, weight: &Tensor, bias: &Tensor, dropout: Dropout) -> Result<Tensor> {
    dispatch!(x, add_norm(x, branch, weight, bias, dropout))
}

/// x / max(|x|, 1e-12) by row: `[t, d]`.
pub fn normalize(x: &Tensor) -> Result<Tensor> {
    dispatch!(x, normalize(x))
}

/// Rows of `table` `[n, d]` by index: `[t]` -> `[t, d]`.
pub fn gather(table: &Tensor, rows: &[u32]) -> Result<Tensor> {
    dispatch!(table, gather(table, rows))
}

/// Attention pooling of ragged rows with the folded vector w = W1 W2 (specification, section 3): `[d, 1]` -> `[n, d]`, an
/// item without rows pools to zeros. `pad_rows` adds rows of zeros up to that number to every softmax.
pub fn pool(features: &Ragged, w: &Tensor, pad_rows: Option<usize>) -> Result<Tensor> {
    dispatch!(w, pool(features, w, pad_rows))
}

/// The tail of the expert mixture, once per use: z = sum over k of g_k LayerNorm_k(Dropout(product_k)).
/// `products` `[n, o d_0]` holds e W_k + b_k of n distinct items, `gate` `[n, o]` their softmax, `norms` `[2, o d_0]` the
/// experts' LayerNorm weights and biases; the result is `[uses, d_0]`.
pub fn mixture(products: &Tensor, gate: &Tensor, norms: &Tensor, uses: &Uses, dropout: Dropout) -> Result<Tensor> {
    dispatch!(products, mixture(products, gate, norms, uses, dropout))
}

/// Causal attention in packed sequences. `query` `[q, d]` has a row for every token, or, when `last_only`, for the last token
/// of every sequence; `key_value` `[t, 2 d]` has keys, then values. Dropout is on the weights.
pub fn attention(
    query: &Tensor,
    key_value: &Tensor,
    segments: &Segments,
    heads: usize,
    last_only: bool,
    dropout: Dropout,
) -> Result<Tensor> {
    dispatch!(query, attention(query, key_value, segments, heads, last_only, dropout))
}

/// log of the sum over columns of exp(scale * a b^T), by row: `[n, d]`, `[m, d]` -> `[n]`, never holding the whole matrix.
/// A row whose columns are all left out gives -inf.
pub fn row_logsumexp(a: &Tensor, b: &Tensor, scale: f32, mask: &Mask) -> Result<Tensor> {
    dispatch!(a, row_logsumexp(a, b, scale, mask))
}
