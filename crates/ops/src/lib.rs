//! Differentiable operators of the models, counter-based random numbers, and Adam.
//!
//! Operators take and return candle tensors. An operator has up to three implementations, and the functions here choose one by device:
//! [`plain`] uses candle's operations only, runs on any device and is the oracle of the tests; `fused` runs on the CPU and has a
//! hand-written backward pass; `cuda`, behind the feature of that name, runs hand-written kernels on NVIDIA GPUs. No result depends on the
//! number of threads: work is cut into fixed shards, and their partial sums are added in order. The crate must not know users or files, and
//! it knows items only as rows of numbers.
//!
//! ```
//! use candle_core::{Device, Tensor, Var};
//! use mp4sr_ops::cross_entropy;
//!
//! // All scores of the query are 0, so both items have the probability 1/2. The first one is the target.
//! let query = Var::new(&[[0f32, 0.0]], &Device::Cpu)?;
//! let items = Tensor::new(&[[1f32, 0.0], [0.0, 1.0]], &Device::Cpu)?;
//! let loss = cross_entropy(&query, &items, &[0], 1.0)?.mean_all()?;
//! assert!((loss.to_scalar::<f32>()? - std::f32::consts::LN_2).abs() < 1e-5);
//!
//! // The gradient is the mean of the items under these probabilities, minus the target.
//! let gradients = loss.backward()?;
//! let gradient = gradients.get(query.as_tensor()).expect("the query is a variable").to_vec2::<f32>()?;
//! assert!((gradient[0][0] + 0.5).abs() < 1e-5 && (gradient[0][1] - 0.5).abs() < 1e-5);
//! # Ok::<(), mp4sr_ops::Error>(())
//! ```

mod adam;
mod arguments;
mod contrastive;
mod convolution;
#[cfg(feature = "cuda")]
mod cuda;
mod device;
mod edges;
mod encoder;
mod fused;
mod gather_index;
mod group;
mod inference;
mod kernel;
mod layout;
mod mask;
mod nearest;
mod packed;
pub mod plain;
mod process;
mod ragged;
mod random;
mod residual;
mod scan;
mod scratch;
mod sources;
mod sparse;
mod timing;

pub use adam::{Adam, AdamState, Pending, StepOutcome};
pub use arguments::{COSINE_EPS, Cell, ItemRows, LAYER_NORM_EPS, LayerDropout, Rows};
pub use candle_core::{Error, Result};
pub use contrastive::{
    CmclDirection, Contrast, ContrastiveTerms, contrastive, contrastive_in_group, next_item_prediction,
};
pub use convolution::{DeviceResNet, InferenceBottleneck, InferenceConvolution};
pub use device::{ComputeDevice, Precision, check_precision, set_precision, with_precision};
pub use edges::{Edges, Side};
pub use encoder::{DeviceEncoder, DeviceTransformer, EncoderInput, EncoderParts, Readout};
pub use gather_index::GatherIndex;
pub use group::{
    BlockReader, DividedValues, ProcessGroup, RowRequests, Traffic, Transport, fetch_rows, gather_rows, lend_blocks,
    merge_logsumexp, run_threads,
};
pub use inference::{
    Activation, InferenceLayer, InferenceLinear, InferenceNorm, InferenceShape, InferenceTransformer, RelativeBias,
};
pub use layout::{LayerParts, LayerSizes, MixtureSizes};
pub use mask::{FalseNegatives, Mask};
pub use nearest::{Neighbour, nearest};
pub use packed::PackedOffsets;
pub use process::{
    avoid_huge_pages, keep_memory, release_memory, release_thread_memory, report_file_limit, start_threads, threads,
};
pub use ragged::{Ragged, StoredValues};
pub use random::{Dropout, RngKey};
pub use residual::InferenceResNet;
pub use scan::{Removed, ScoreBlocks, count_at_least};
pub use sources::{ScoreFusion, SourceScope, SourceSizes};
pub use sparse::{SparseEntry, SparseMatrix};
pub use timing::take_timings;

use candle_core::{D, DType, Tensor};

macro_rules! dispatch {
    ($tensor:expr, $($call:tt)*) => {
        match $tensor.device() {
            candle_core::Device::Cpu => fused::$($call)*,
            #[cfg(feature = "cuda")]
            candle_core::Device::Cuda(_) => cuda::$($call)*,
            _ => plain::$($call)*,
        }
    };
}

/// Dispatches an operator whose kernels for GPUs are missing or untested: on a GPU, the plain implementation runs.
macro_rules! dispatch_plain {
    ($tensor:expr, $($call:tt)*) => {
        if $tensor.device().is_cpu() { fused::$($call)* } else { plain::$($call)* }
    };
}

#[cfg(feature = "cuda")]
use device::precision;

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

/// The item encoders (specification, section 3): z of every use of an item, one modality after the other, `[modalities uses, d_0]`.
/// Attention pooling of an item's rows with the folded vector w = W1 W2 gives e (zeros for an item without rows); z = sum over k of g_k
/// LayerNorm_k(Dropout(e W_k + b_k)), g = softmax(e W3). `w` concatenates the pooling vectors `[d]` of the modalities, and `packed` the
/// parameters of their mixtures, each laid out as [`MixtureSizes`] says.
pub fn encode(modalities: &[ItemRows], w: &Tensor, packed: &Tensor, index: &GatherIndex) -> Result<Tensor> {
    dispatch!(w, encode(modalities, w, packed, index))
}

/// The input of the transformer (specification, section 4): Dropout(LayerNorm(z + id + position)), `[tokens, d]`. The table of `positions`
/// is `[n + 2, d]`: the embeddings of the n positions, then the weight and the bias of the LayerNorm.
pub fn sequence_input(z: Rows<'_>, ids: Option<Rows<'_>>, positions: Rows<'_>, dropout: Dropout) -> Result<Tensor> {
    dispatch!(z.table, sequence_input(z, ids, positions, dropout))
}

/// A post-norm transformer layer over packed sequences, causal unless `sizes` says otherwise (specification, section 4): `[tokens, d]` ->
/// `[tokens, d]`, or `[sequences, d]` for the last tokens alone. `packed` holds the layer's parameters at [`LayerSizes::ranges`].
pub fn transformer_layer(
    x: &Tensor,
    packed: &Tensor,
    sizes: LayerSizes,
    offsets: &PackedOffsets,
    last_only: bool,
    dropout: LayerDropout,
) -> Result<Tensor> {
    // On a GPU, bidirectional layers use the plain operators, because the kernels have not been tested with them.
    if sizes.bidirectional {
        return dispatch_plain!(x, transformer_layer(x, packed, sizes, offsets, last_only, dropout));
    }
    dispatch!(x, transformer_layer(x, packed, sizes, offsets, last_only, dropout))
}

/// The item matrix of the logits, `[items, modalities d]`, with the modalities side by side: for each, the rows `start..start + items` of z
/// plus the last `items` rows of the id embeddings, which may have one more row before them. If logits are cosines, each part is normalised
/// to length one.
pub fn candidates(z: &Tensor, starts: &[usize], items: usize, ids: Option<&Tensor>, cosine: bool) -> Result<Tensor> {
    dispatch!(z, candidates(z, starts, items, ids, cosine))
}

/// Cross-entropy of softmax(scale a b^T) with one target column per row: `[n, d]`, `[m, d]` -> `[n]`.
pub fn cross_entropy(a: &Tensor, b: &Tensor, targets: &[u32], scale: f32) -> Result<Tensor> {
    dispatch!(a, cross_entropy(a, b, targets, scale))
}

/// Cross-entropy of softmax(scale a b^T + shifts) with one target column per row, whose own logit is not shifted: `[n, d]`, `[m, d]` ->
/// `[n]`. If `shifts` `[m]` holds minus the logarithm of each column's probability of being drawn, the sum under the logarithm is, in
/// expectation, the sum over all columns.
pub fn sampled_cross_entropy(a: &Tensor, b: &Tensor, targets: &[u32], shifts: &[f32], scale: f32) -> Result<Tensor> {
    dispatch_plain!(a, sampled_cross_entropy(a, b, targets, shifts, scale))
}

/// The logarithm of the sum over columns of exp(scale * a b^T), by row: `[n, d]`, `[m, d]` -> `[n]`. On the CPU, the whole matrix is never
/// held. A row whose columns are all left out gives -inf.
pub fn row_logsumexp(a: &Tensor, b: &Tensor, scale: f32, mask: &Mask) -> Result<Tensor> {
    dispatch!(a, row_logsumexp(a, b, scale, mask))
}

/// Rounds x as a product on the CPU with `columns` columns on its right side rounds it in the current precision: `[n, d]` -> `[n, d]`. The
/// gradient passes unchanged. An inner product that is subtracted from such products must be computed from rounded values, too, or the
/// rounding of the two does not cancel.
pub fn rounded_as_factor(x: &Tensor, columns: usize) -> Result<Tensor> {
    if !x.device().is_cpu() || !kernel::rounds(x.dim(D::Minus1)?, columns) {
        return Ok(x.clone());
    }
    let exact = x.detach();
    let rounded = exact.to_dtype(DType::BF16)?.to_dtype(DType::F32)?;
    x + (rounded - exact)?
}

/// y = A x with a constant sparse matrix A `[n, m]`: `[m, d]` -> `[n, d]`.
pub fn sparse_product(matrix: &SparseMatrix, x: &Tensor) -> Result<Tensor> {
    dispatch!(x, sparse_product(matrix, x))
}

/// (x + A x + ... + A^layers x) / (layers + 1) with a constant sparse square matrix A `[n, n]`: `[n, d]` -> `[n, d]`. This is the mean of
/// the layers of a graph convolution without weights.
pub fn propagate(adjacency: &SparseMatrix, x: &Tensor, layers: usize) -> Result<Tensor> {
    dispatch!(x, propagate(adjacency, x, layers))
}

/// Dropout of the tokens of packed sequences, `[tokens, d]`. If the sequences are a share of a batch, it is drawn by the tokens' numbers in
/// the whole batch. There is only an implementation for the CPU.
pub fn dropout_tokens(x: &Tensor, dropout: Dropout, offsets: &PackedOffsets) -> Result<Tensor> {
    fused::dropout_tokens(x, dropout, offsets)
}

/// Zeroes elements with the probability p of `dropout`, and multiplies the others by 1 / (1 - p).
pub fn dropout(x: &Tensor, dropout: Dropout) -> Result<Tensor> {
    dispatch_plain!(x, dropout(x, dropout))
}

/// LayerNorm of every row: `[t, d]`, weight and bias `[d]` -> `[t, d]`.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    dispatch_plain!(x, layer_norm(x, weight, bias))
}

/// Scores of additive attention, sum over d of tanh(h) w: `[t, k d]`, `[k, d]` -> `[t, k]`.
pub fn additive_scores(h: &Tensor, w: &Tensor) -> Result<Tensor> {
    dispatch_plain!(h, additive_scores(h, w))
}

/// The softmax over the tokens of each sequence, column by column: `[t, k]` -> `[t, k]`.
pub fn segment_softmax(x: &Tensor, offsets: &PackedOffsets) -> Result<Tensor> {
    dispatch_plain!(x, segment_softmax(x, offsets))
}

/// k weighted sums of each sequence's tokens: weights `[t, k]`, x `[t, d]` -> `[sequences k, d]`.
pub fn segment_sum(weights: &Tensor, x: &Tensor, offsets: &PackedOffsets) -> Result<Tensor> {
    dispatch_plain!(x, segment_sum(weights, x, offsets))
}

/// Inner products of each token with the k vectors of its sequence: x `[t, d]`, vectors `[sequences k, d]` -> `[t, k]`.
pub fn segment_dot(x: &Tensor, vectors: &Tensor, offsets: &PackedOffsets) -> Result<Tensor> {
    dispatch_plain!(x, segment_dot(x, vectors, offsets))
}

/// For each token, a weighted sum of the k vectors of its sequence: weights `[t, k]`, vectors `[sequences k, d]` -> `[t, d]`.
pub fn segment_mix(weights: &Tensor, vectors: &Tensor, offsets: &PackedOffsets) -> Result<Tensor> {
    dispatch_plain!(vectors, segment_mix(weights, vectors, offsets))
}

/// GELU with the error function.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    dispatch_plain!(x, gelu(x))
}

/// The sum over columns of log(1 + exp(a b^T)), by row: `[n, d]`, `[m, d]` -> `[n]`. On the CPU, the whole matrix is never held.
pub fn row_softplus(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    dispatch_plain!(a, row_softplus(a, b))
}

/// Attention in packed sequences whose scores come from several sources. `query` `[q, w]` has a row for every token, or for the last real
/// token of every sequence, with the sources' queries side by side; w is [`SourceSizes::queries`]. `key_value` `[t, w + d]` has the
/// sources' keys side by side, then the values. The result is `[q, d]`. `fusion` holds the parameters of the fusion, if it has any. Dropout
/// is applied to the attention weights.
pub fn source_attention(
    query: &Tensor,
    key_value: &Tensor,
    fusion: Option<&Tensor>,
    sizes: &SourceSizes,
    offsets: &PackedOffsets,
    scope: SourceScope<'_>,
    dropout: Dropout,
) -> Result<Tensor> {
    dispatch_plain!(query, source_attention(query, key_value, fusion, sizes, offsets, scope, dropout))
}

/// Products of rows of a constant table with every expert's weights, each under its own dropout mask: row r of the result has Dropout(x of
/// `rows[r]`) W_k for every expert k, side by side. `table` `[n, d]`, `weights` `[experts d, d_0]` -> `[rows, experts d_0]`. Only the
/// weights have a gradient.
pub fn expert_products(
    table: &Tensor,
    rows: &[u32],
    weights: &Tensor,
    experts: usize,
    dropout: Dropout,
) -> Result<Tensor> {
    dispatch_plain!(weights, expert_products(table, rows, weights, experts, dropout))
}

/// The inner product of the two ends of every edge: `[rows, d]`, `[columns, d]` -> `[edges]`.
pub fn edge_dot(rows: &Tensor, columns: &Tensor, edges: &Edges) -> Result<Tensor> {
    dispatch_plain!(rows, edge_dot(rows, columns, edges))
}

/// The softmax over the edges of each node of a side: `[edges]` -> `[edges]`.
pub fn edge_softmax(scores: &Tensor, edges: &Edges, side: Side) -> Result<Tensor> {
    dispatch_plain!(scores, edge_softmax(scores, edges, side))
}

/// For every node of the side `to`, the weighted sum of the vectors at the other ends of its edges: `[edges]`,
/// `[nodes of the other side, d]` -> `[nodes, d]`.
pub fn edge_sum(weights: &Tensor, x: &Tensor, edges: &Edges, to: Side) -> Result<Tensor> {
    dispatch_plain!(x, edge_sum(weights, x, edges, to))
}

/// Inner products of each row of `a` with k rows of a table, of which `picked` lists those for row 0 first: `[n, d]`, `[m, d]` -> `[n, k]`.
pub fn picked_dot(a: &Tensor, table: &Tensor, picked: &[u32]) -> Result<Tensor> {
    dispatch_plain!(a, picked_dot(a, table, picked))
}

/// The hidden state after every token of packed sequences, from an initial state of zeros: `x` `[t, gates w]` is the contribution of inputs
/// and biases to the gates, and `hidden` `[w, gates w]` maps the previous state -> `[t, w]`.
pub fn recurrent(x: &Tensor, hidden: &Tensor, offsets: &PackedOffsets, cell: Cell) -> Result<Tensor> {
    dispatch_plain!(x, recurrent(x, hidden, offsets, cell))
}
