//! The operators in terms of candle's operations only. They run on any device and are the oracle of the fused ones.
//!
//! candle's own fused LayerNorm and softmax silently cut the gradient, so both are written out here.

use candle_core::{D, DType, Result, Tensor};

use crate::layout::Positions;
use crate::mask::MaskEntry;
use crate::sources::{ScoreFusion, SourceScope, SourceSizes};
use crate::{
    COSINE_EPS, Cell, Dropout, Edges, GatherIndex, ItemRows, LAYER_NORM_EPS, LayerDropout, LayerSizes, Mask,
    MixtureSizes, PackedOffsets, Ragged, Rows, Side, SparseMatrix,
};

/// See [`crate::linear`].
pub fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    x.matmul(weight)?.broadcast_add(bias)
}

/// See [`crate::product`].
pub fn product(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    x.matmul(weight)
}

/// GELU with the error function.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    ((x * ((x / std::f64::consts::SQRT_2)?.erf()? + 1.0)?)? * 0.5)?.contiguous()
}

/// Zeroes elements with the probability p of `dropout`, and multiplies the others by 1 / (1 - p).
pub fn dropout(x: &Tensor, dropout: Dropout) -> Result<Tensor> {
    if !dropout.is_active() {
        return Ok(x.clone());
    }
    let factors: Vec<f32> = (0..x.elem_count() as u32).map(|i| dropout.factor(i)).collect();
    x * Tensor::from_vec(factors, x.shape(), x.device())?
}

/// LayerNorm over the last axis: `[t, d]`, weight and bias `[d]`.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    let scaled = centred.broadcast_div(&(variance + f64::from(LAYER_NORM_EPS))?.sqrt()?)?;
    scaled.broadcast_mul(weight)?.broadcast_add(bias)
}

/// LayerNorm(x + Dropout(branch)): `[t, d]` twice, weight and bias `[d]`.
pub fn add_norm(x: &Tensor, branch: &Tensor, weight: &Tensor, bias: &Tensor, drop: Dropout) -> Result<Tensor> {
    layer_norm(&(x + dropout(branch, drop)?)?, weight, bias)
}

/// See [`crate::normalize`].
pub fn normalize(x: &Tensor) -> Result<Tensor> {
    let norm = x.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?.maximum(f64::from(COSINE_EPS))?;
    x.broadcast_div(&norm)
}

/// See [`crate::gather`].
pub fn gather(table: &Tensor, rows: &[u32]) -> Result<Tensor> {
    table.index_select(&Tensor::from_slice(rows, rows.len(), table.device())?, 0)
}

/// The logistic function, without overflow.
pub fn sigmoid(x: &Tensor) -> Result<Tensor> {
    ((x * 0.5)?.tanh()? + 1.0)? * 0.5
}

/// log(1 + e^x), without overflow.
pub fn softplus(x: &Tensor) -> Result<Tensor> {
    x.relu()? + (x.abs()?.neg()?.exp()? + 1.0)?.log()?
}

/// Leaky ReLU: x where it is positive, and a hundredth of x elsewhere.
pub fn leaky_relu(x: &Tensor) -> Result<Tensor> {
    ((x.relu()? * 0.99)? + (x * 0.01)?)?.contiguous()
}

/// The softmax over the last axis.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    let shifted = x.broadcast_sub(&x.max_keepdim(D::Minus1)?.detach())?.exp()?;
    shifted.broadcast_div(&shifted.sum_keepdim(D::Minus1)?)
}

/// The attention pooling weights of all real rows, item by item: `[rows]`.
pub fn pooling_weights(features: &Ragged, w: &Tensor, pooling_rows: Option<usize>) -> Result<Tensor> {
    let (alpha, longest) = padded_weights(features, w, pooling_rows)?;
    let real: Vec<u32> = (0..features.count())
        .flat_map(|i| (0..features.rows_of(i) as u32).map(move |s| (i * longest) as u32 + s))
        .collect();
    gather(&alpha.flatten_all()?.unsqueeze(1)?, &real)?.squeeze(1)
}

fn padded_values(features: &Ragged, w: &Tensor, pooling_rows: Option<usize>) -> Result<(Tensor, Tensor, usize)> {
    let (n, d) = (features.count(), features.width());
    let longest = (0..n).map(|i| features.rows_of(i)).max().unwrap_or(0).max(pooling_rows.unwrap_or(0)).max(1);
    let mut values = vec![0.0f32; n * longest * d];
    let mut mask = vec![f32::NEG_INFINITY; n * longest];
    let mut room = Vec::new();
    for i in 0..n {
        let rows = features.rows(i, &mut room);
        values[i * longest * d..][..rows.len()].copy_from_slice(rows);
        let open = (rows.len() / d).max(pooling_rows.unwrap_or(0));
        // An item without rows attends to one row of zeros, which pools to zeros.
        mask[i * longest..][..open.max(1)].fill(0.0);
    }
    let values = Tensor::from_vec(values, (n, longest, d), w.device())?;
    let mask = Tensor::from_vec(mask, (n, longest), w.device())?;
    Ok((values, mask, longest))
}

fn padded_weights(features: &Ragged, w: &Tensor, pooling_rows: Option<usize>) -> Result<(Tensor, usize)> {
    let (values, mask, longest) = padded_values(features, w, pooling_rows)?;
    let (n, _, d) = values.dims3()?;
    let scores = values.reshape((n * longest, d))?.matmul(w)?.reshape((n, longest))?;
    Ok((softmax(&(scores + mask)?)?, longest))
}

/// Attention pooling of ragged rows with the vector w `[d, 1]`: `[n, d]`.
pub fn pool(features: &Ragged, w: &Tensor, pooling_rows: Option<usize>) -> Result<Tensor> {
    if features.count() == 0 {
        return Tensor::zeros((0, features.width()), DType::F32, w.device());
    }
    let (alpha, _) = padded_weights(features, w, pooling_rows)?;
    let (values, _, _) = padded_values(features, w, pooling_rows)?;
    values.broadcast_mul(&alpha.unsqueeze(2)?)?.sum(1)
}

/// The experts' outputs of every use, LayerNorm_k(Dropout(product_k)): `[uses, o, d_0]`.
pub fn experts(
    products: &Tensor,
    norms: &Tensor,
    experts: usize,
    index: &GatherIndex,
    drop: Dropout,
) -> Result<Tensor> {
    let width = products.dim(1)? / experts;
    let used = dropout(&gather(products, index.item_of())?, drop)?;
    let split = used.reshape((index.count(), experts, width))?;
    let part = |i: usize| norms.get(i)?.reshape((experts, width));
    let ones = Tensor::ones(width, DType::F32, products.device())?;
    layer_norm(&split, &ones, &ones.zeros_like()?)?.broadcast_mul(&part(0)?)?.broadcast_add(&part(1)?)
}

/// The tail of the expert mixture, once per use. `products` `[n, o d]` holds e W_k + b_k of n items, `gate` `[n, o]` their
/// softmax, `norms` `[2, o d]` the experts' LayerNorm weights and biases: `[uses, d]`.
pub fn mixture(products: &Tensor, gate: &Tensor, norms: &Tensor, index: &GatherIndex, drop: Dropout) -> Result<Tensor> {
    let experts = experts(products, norms, gate.dim(1)?, index, drop)?;
    experts.broadcast_mul(&gather(gate, index.item_of())?.unsqueeze(2)?)?.sum(1)
}

/// The attention weights of one sequence and head before dropout, `[q, k]`; the queries are the last ones. Causal, or over all keys.
pub fn attention_weights(query: &Tensor, key: &Tensor, bidirectional: bool) -> Result<Tensor> {
    let (q, width) = query.dims2()?;
    let k = key.dim(0)?;
    let closed = |i: usize, j: usize| if j > k - q + i && !bidirectional { f32::NEG_INFINITY } else { 0.0 };
    let mask: Vec<f32> = (0..q).flat_map(|i| (0..k).map(move |j| closed(i, j))).collect();
    let scores = (query.matmul(&key.t()?)? / (width as f64).sqrt())?;
    softmax(&(scores + Tensor::from_vec(mask, (q, k), query.device())?)?)
}

/// Attention in packed sequences, causal unless `sizes` says otherwise. `query` `[q, d]` has a row for every token, or, if `last_only`, for
/// the last token of every sequence; `key_value` `[t, 2 d]` has the keys, then the values. Dropout is applied to the attention weights.
pub fn attention(
    query: &Tensor,
    key_value: &Tensor,
    offsets: &PackedOffsets,
    sizes: LayerSizes,
    last_only: bool,
    drop: Dropout,
) -> Result<Tensor> {
    let (d, heads) = (query.dim(1)?, sizes.heads);
    let width = d / heads;
    let mut outputs = Vec::with_capacity(offsets.count());
    for j in 0..offsets.count() {
        let tokens = offsets.range(j);
        let queries = if last_only { j..j + 1 } else { tokens.clone() };
        let mut parts = Vec::with_capacity(heads);
        for head in 0..heads {
            let q = query.narrow(0, queries.start, queries.len())?.narrow(1, head * width, width)?.contiguous()?;
            let keys_values = key_value.narrow(0, tokens.start, tokens.len())?;
            let k = keys_values.narrow(1, head * width, width)?.contiguous()?;
            let v = keys_values.narrow(1, d + head * width, width)?.contiguous()?;
            let mut weights = attention_weights(&q, &k, sizes.bidirectional)?;
            if drop.is_active() {
                let first = tokens.len() - queries.len();
                let factors: Vec<f32> = (0..queries.len())
                    .flat_map(|i| (0..tokens.len()).map(move |at| (i, at)))
                    .map(|(i, at)| drop.factor(weight_index(tokens.start + first + i, at, head, heads)))
                    .collect();
                weights = (weights * Tensor::from_vec(factors, (queries.len(), tokens.len()), query.device())?)?;
            }
            parts.push(weights.matmul(&v)?);
        }
        outputs.push(Tensor::cat(&parts, 1)?);
    }
    Tensor::cat(&outputs, 0)
}

/// The index of an attention weight for dropout, from its query's token, its key's position in the sequence and its head. Indices wrap at
/// 2^32, so two distant tokens may share a mask, which does no harm.
pub(crate) fn weight_index(token: usize, key_index: usize, head: usize, heads: usize) -> u32 {
    ((token * heads + head) as u32).wrapping_mul(0x0001_0003).wrapping_add(key_index as u32)
}

/// See [`crate::row_logsumexp`].
pub fn row_logsumexp(a: &Tensor, b: &Tensor, scale: f32, mask: &Mask) -> Result<Tensor> {
    let mut logits = (a.matmul(&b.t()?)? * f64::from(scale))?;
    let (n, m) = logits.dims2()?;
    if let Mask::FalseNegatives { .. } = mask {
        let entries: Vec<MaskEntry> =
            (0..n).flat_map(|row| (0..m).map(move |column| mask.entry(row, column))).collect();
        let pick = |f: fn(MaskEntry) -> f32| {
            Tensor::from_vec(entries.iter().map(|&e| f(e)).collect::<Vec<_>>(), (n, m), a.device())
        };
        let keep = pick(|e| if e == MaskEntry::Keep { 1.0 } else { 0.0 })?;
        let closed = pick(|e| if e == MaskEntry::Drop { f32::NEG_INFINITY } else { 0.0 })?;
        logits = ((logits * keep)? + closed)?;
    }
    let top = logits.max_keepdim(1)?.detach().maximum(f64::from(f32::MIN))?;
    (logits.broadcast_sub(&top)?.exp()?.sum_keepdim(1)?.log()? + top)?.squeeze(1)
}

/// See [`crate::cross_entropy`].
pub fn cross_entropy(a: &Tensor, b: &Tensor, targets: &[u32], scale: f32) -> Result<Tensor> {
    let hits = ((a * gather(b, targets)?)?.sum(D::Minus1)? * f64::from(scale))?;
    row_logsumexp(a, b, scale, &Mask::None)? - hits
}

/// See [`crate::sampled_cross_entropy`].
pub fn sampled_cross_entropy(a: &Tensor, b: &Tensor, targets: &[u32], shifts: &[f32], scale: f32) -> Result<Tensor> {
    let hits = ((a * gather(b, targets)?)?.sum(D::Minus1)? * f64::from(scale))?;
    let columns = b.dim(0)?;
    let mut shifts = shifts.repeat(targets.len());
    targets.iter().enumerate().for_each(|(row, &target)| shifts[row * columns + target as usize] = 0.0);
    let shifts = Tensor::from_vec(shifts, (targets.len(), columns), a.device())?;
    let logits = ((a.matmul(&b.t()?)? * f64::from(scale))? + shifts)?;
    let top = logits.max_keepdim(1)?.detach();
    (logits.broadcast_sub(&top)?.exp()?.sum_keepdim(1)?.log()? + top)?.squeeze(1)? - hits
}

/// The intermediate values of the item encoder for n items, and the parameters of its LayerNorms.
pub struct Encoded {
    /// The pooled vectors e, `[n, d]`.
    pub pooled: Tensor,
    /// The gates after their softmax, `[n, o]`.
    pub gate: Tensor,
    /// The products e W_k + b_k, `[n, o d_0]`.
    pub products: Tensor,
    /// The LayerNorms' weights, then their biases, `[2, o d_0]`.
    pub norms: Tensor,
}

/// See [`crate::encode`]: the part for one modality that does not depend on the uses.
pub fn encoded(rows: &ItemRows, w: &Tensor, packed: &Tensor) -> Result<Encoded> {
    let sizes = rows.sizes();
    let MixtureSizes { features: d, experts, width } = sizes;
    let weights = MixtureSizes::part(packed, &sizes.weights(), &[experts, d, width])?;
    let weights = (0..experts).map(|k| weights.get(k)).collect::<Result<Vec<_>>>()?;
    let gate = MixtureSizes::part(packed, &sizes.gate(), &[d, experts])?;
    let biases = MixtureSizes::part(packed, &sizes.biases(), &[experts * width])?;
    let norms = [sizes.norm_weights(), sizes.norm_biases()];
    let norms = norms.map(|range| MixtureSizes::part(packed, &range, &[experts * width]));
    let norms = Tensor::stack(&norms.into_iter().collect::<Result<Vec<_>>>()?, 0)?;
    let pooled = pool(&rows.features, &w.unsqueeze(1)?, rows.pooling_rows)?;
    let products = linear(&pooled, &Tensor::cat(&weights, 1)?, &biases)?;
    let gate = softmax(&product(&pooled, &gate)?)?;
    Ok(Encoded { pooled, gate, products, norms })
}

/// See [`crate::encode`].
pub fn encode(modalities: &[ItemRows], w: &Tensor, packed: &Tensor, index: &GatherIndex) -> Result<Tensor> {
    let (mut first_w, mut first) = (0, 0);
    let mut z = Vec::new();
    for rows in modalities {
        let sizes = rows.sizes();
        let (w, packed) = (w.narrow(0, first_w, sizes.features)?, packed.narrow(0, first, sizes.count())?);
        (first_w, first) = (first_w + sizes.features, first + sizes.count());
        let Encoded { gate, products, norms, .. } = encoded(rows, &w, &packed)?;
        z.push(mixture(&products, &gate, &norms, index, rows.dropout)?);
    }
    Tensor::cat(&z, 0)
}

/// See [`crate::sequence_input`].
pub fn sequence_input(z: Rows<'_>, ids: Option<Rows<'_>>, positions: Rows<'_>, drop: Dropout) -> Result<Tensor> {
    let mut x = gather(z.table, z.rows)?;
    if let Some(ids) = ids {
        x = (x + gather(ids.table, ids.rows)?)?;
    }
    let (table, weight, bias) = Positions::unpack(positions.table)?;
    let x = (x + gather(&table, positions.rows)?)?;
    dropout(&layer_norm(&x, &weight, &bias)?, drop)
}

/// The intermediate values of a transformer layer.
pub struct LayerSteps {
    /// The queries, `[q, d]`.
    pub query: Tensor,
    /// The keys, then the values, `[tokens, 2 d]`.
    pub key_value: Tensor,
    /// The result of the first LayerNorm, `[q, d]`.
    pub attention: Tensor,
    /// The result of the second LayerNorm and of the layer, `[q, d]`.
    pub layer: Tensor,
}

/// See [`crate::transformer_layer`]; this returns the intermediate values too.
pub fn layer_steps(
    x: &Tensor,
    packed: &Tensor,
    sizes: LayerSizes,
    offsets: &PackedOffsets,
    last_only: bool,
    drop: LayerDropout,
) -> Result<LayerSteps> {
    let p = sizes.unpack(packed)?;
    let query_rows = if last_only { gather(x, &offsets.last_tokens())? } else { x.clone() };
    let query = linear(&query_rows, &p.query, &p.query_bias)?;
    let key_value = linear(x, &p.key_value, &p.key_value_bias)?;
    let attended = attention(&query, &key_value, offsets, sizes, last_only, drop.weights)?;
    let branch = linear(&attended, &p.output, &p.output_bias)?;
    let attention = add_norm(&query_rows, &branch, &p.attention_norm, &p.attention_norm_bias, drop.attention)?;
    let branch = linear(&gelu(&linear(&attention, &p.up, &p.up_bias)?)?, &p.down, &p.down_bias)?;
    let layer = add_norm(&attention, &branch, &p.feed_forward_norm, &p.feed_forward_norm_bias, drop.feed_forward)?;
    Ok(LayerSteps { query, key_value, attention, layer })
}

/// See [`crate::transformer_layer`].
pub fn transformer_layer(
    x: &Tensor,
    packed: &Tensor,
    sizes: LayerSizes,
    offsets: &PackedOffsets,
    last_only: bool,
    drop: LayerDropout,
) -> Result<Tensor> {
    Ok(layer_steps(x, packed, sizes, offsets, last_only, drop)?.layer)
}

/// See [`crate::candidates`].
pub fn candidates(z: &Tensor, starts: &[usize], items: usize, ids: Option<&Tensor>, cosine: bool) -> Result<Tensor> {
    let part = |&start: &usize| {
        let mut part = z.narrow(0, start, items)?;
        if let Some(ids) = ids {
            part = (part + ids.narrow(0, ids.dim(0)? - items, items)?)?;
        }
        if cosine { normalize(&part) } else { Ok(part) }
    };
    Tensor::cat(&starts.iter().map(part).collect::<Result<Vec<_>>>()?, 1)
}

/// See [`crate::sparse_product`].
pub fn sparse_product(matrix: &SparseMatrix, x: &Tensor) -> Result<Tensor> {
    let rows = &matrix.by_row;
    let row_of = (0..matrix.rows()).flat_map(|row| vec![row as u32; rows.offsets[row + 1] - rows.offsets[row]]);
    let row_of = Tensor::from_vec(row_of.collect::<Vec<u32>>(), matrix.entries(), x.device())?;
    let weights = Tensor::from_slice(&rows.weights, (matrix.entries(), 1), x.device())?;
    let messages = gather(x, &rows.columns)?.broadcast_mul(&weights)?;
    Tensor::zeros((matrix.rows(), x.dim(1)?), DType::F32, x.device())?.index_add(&row_of, &messages, 0)
}

/// See [`crate::propagate`].
pub fn propagate(adjacency: &SparseMatrix, x: &Tensor, layers: usize) -> Result<Tensor> {
    let (mut layer, mut sum) = (x.clone(), x.clone());
    for _ in 0..layers {
        layer = sparse_product(adjacency, &layer)?;
        sum = (sum + &layer)?;
    }
    sum / (layers + 1) as f64
}

/// See [`crate::additive_scores`].
pub fn additive_scores(h: &Tensor, w: &Tensor) -> Result<Tensor> {
    let (k, d) = w.dims2()?;
    h.reshape((h.dim(0)?, k, d))?.tanh()?.broadcast_mul(w)?.sum(D::Minus1)
}

/// See [`crate::segment_softmax`].
pub fn segment_softmax(x: &Tensor, offsets: &PackedOffsets) -> Result<Tensor> {
    let (t, k) = x.dims2()?;
    let lengths = || (0..offsets.count()).map(|j| offsets.range(j).len());
    let longest = lengths().max().unwrap_or(0);
    let closed = Tensor::full(f32::NEG_INFINITY, (1, k), x.device())?;
    let index = |j: usize, at: usize| if at < offsets.range(j).len() { offsets.range(j).start + at } else { t };
    let padded: Vec<u32> = (0..offsets.count()).flat_map(|j| (0..longest).map(move |at| index(j, at) as u32)).collect();
    let rows = gather(&Tensor::cat(&[x, &closed], 0)?, &padded)?.reshape((offsets.count(), longest, k))?;
    let weights = softmax(&rows.transpose(1, 2)?.contiguous()?)?.transpose(1, 2)?.contiguous()?;
    let real: Vec<u32> =
        lengths().enumerate().flat_map(|(j, length)| (0..length).map(move |at| (j * longest + at) as u32)).collect();
    gather(&weights.reshape((offsets.count() * longest, k))?, &real)
}

fn sequence_of(offsets: &PackedOffsets) -> Vec<u32> {
    (0..offsets.count()).flat_map(|j| vec![j as u32; offsets.range(j).len()]).collect()
}

/// The k vectors of each token's sequence, `[t, k, d]`.
fn vectors_of_tokens(vectors: &Tensor, offsets: &PackedOffsets) -> Result<Tensor> {
    let (rows, d) = vectors.dims2()?;
    let k = rows / offsets.count();
    gather(&vectors.reshape((offsets.count(), k * d))?, &sequence_of(offsets))?.reshape((offsets.tokens(), k, d))
}

/// See [`crate::segment_sum`].
pub fn segment_sum(weights: &Tensor, x: &Tensor, offsets: &PackedOffsets) -> Result<Tensor> {
    let (k, d) = (weights.dim(1)?, x.dim(1)?);
    let weighted = weights.unsqueeze(2)?.broadcast_mul(&x.unsqueeze(1)?)?.reshape((offsets.tokens(), k * d))?;
    let sequences = Tensor::from_vec(sequence_of(offsets), offsets.tokens(), x.device())?;
    let sums = Tensor::zeros((offsets.count(), k * d), DType::F32, x.device())?.index_add(&sequences, &weighted, 0)?;
    sums.reshape((offsets.count() * k, d))
}

/// See [`crate::segment_dot`].
pub fn segment_dot(x: &Tensor, vectors: &Tensor, offsets: &PackedOffsets) -> Result<Tensor> {
    vectors_of_tokens(vectors, offsets)?.broadcast_mul(&x.unsqueeze(1)?)?.sum(D::Minus1)
}

/// See [`crate::segment_mix`].
pub fn segment_mix(weights: &Tensor, vectors: &Tensor, offsets: &PackedOffsets) -> Result<Tensor> {
    vectors_of_tokens(vectors, offsets)?.broadcast_mul(&weights.unsqueeze(2)?)?.sum(1)
}

/// See [`crate::row_softplus`].
pub fn row_softplus(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    softplus(&a.matmul(&b.t()?)?)?.sum(1)
}

/// The intermediate values of attention over several sources.
pub struct SourceSteps {
    /// The result, `[q, d]`.
    pub result: Tensor,
    /// The attention weights of every sequence before dropout, `[heads, queries, keys]`.
    pub weights: Vec<Tensor>,
    /// The weights of the sources for every sequence, `[heads, queries, sources]`; empty without a gate.
    pub gates: Vec<Tensor>,
}

/// See [`crate::source_attention`].
pub fn source_attention(
    query: &Tensor,
    key_value: &Tensor,
    fusion: Option<&Tensor>,
    sizes: &SourceSizes,
    offsets: &PackedOffsets,
    scope: SourceScope<'_>,
    drop: Dropout,
) -> Result<Tensor> {
    Ok(source_attention_steps(query, key_value, fusion, sizes, offsets, scope, drop)?.result)
}

/// See [`crate::source_attention`]; this returns the intermediate values too.
pub fn source_attention_steps(
    query: &Tensor,
    key_value: &Tensor,
    fusion: Option<&Tensor>,
    sizes: &SourceSizes,
    offsets: &PackedOffsets,
    scope: SourceScope<'_>,
    drop: Dropout,
) -> Result<SourceSteps> {
    sizes.check()?;
    let (heads, d, wide, n) = (sizes.heads, sizes.width, sizes.queries(), sizes.max_sequence_length);
    let (mut outputs, mut all_weights, mut gates) = (Vec::new(), Vec::new(), Vec::new());
    for j in 0..offsets.count() {
        let tokens = offsets.range(j);
        let (keys, real) = (tokens.len(), scope.real.map_or(tokens.len(), |real| real[j]));
        let (rows, first) = if scope.last_only { (j..j + 1, real - 1) } else { (tokens.clone(), 0) };
        let q = rows.len();
        let seen = |i: usize| if scope.bidirectional { real } else { (first + i + 1).min(real) };
        let mask = |closed: f32, open: f32| {
            let entry = |i: usize, at: usize| if at < seen(i) { open } else { closed };
            let entries: Vec<f32> =
                (0..q).flat_map(|i| (0..keys).map(move |at| (i, at))).map(|(i, at)| entry(i, at)).collect();
            Tensor::from_vec(entries, (q, keys), query.device())
        };
        let (mut parts, mut weights_of_heads, mut gates_of_heads) = (Vec::new(), Vec::new(), Vec::new());
        for head in 0..heads {
            let (mut scores, mut from) = (Vec::new(), 0);
            for source in &sizes.sources {
                let width = source / heads;
                let asked = query.narrow(0, rows.start, q)?.narrow(1, from + head * width, width)?.contiguous()?;
                let key =
                    key_value.narrow(0, tokens.start, keys)?.narrow(1, from + head * width, width)?.contiguous()?;
                let score = asked.matmul(&key.t()?)?;
                scores.push(if scope.real.is_some() { score } else { (score * mask(0.0, 1.0)?)? });
                from += source;
            }
            let fused = match (sizes.fusion, fusion) {
                (ScoreFusion::Gate, Some(fusion)) => {
                    let hidden = fusion.narrow(0, 0, n * n)?.reshape((n, n))?.narrow(0, 0, keys)?.contiguous()?;
                    let (bias, score) = (fusion.narrow(0, n * n, n)?, fusion.narrow(0, n * n + n, n)?.unsqueeze(1)?);
                    let last = fusion.narrow(0, n * n + 2 * n, 1)?;
                    let energy = |s: &Tensor| {
                        s.matmul(&hidden)?.broadcast_add(&bias)?.relu()?.matmul(&score)?.broadcast_add(&last)
                    };
                    let energies = scores.iter().map(energy).collect::<Result<Vec<_>>>()?;
                    let gate = softmax(&Tensor::cat(&energies, 1)?)?;
                    let weighted =
                        scores.iter().enumerate().map(|(s, score)| score.broadcast_mul(&gate.narrow(1, s, 1)?));
                    let weighted = Tensor::stack(&weighted.collect::<Result<Vec<_>>>()?, 0)?.sum(0)?;
                    gates_of_heads.push(gate);
                    weighted
                }
                (ScoreFusion::Concat, Some(fusion)) => {
                    let count = sizes.sources.len();
                    let weight = fusion.narrow(0, 0, count * n * n)?.reshape((count, n, n))?;
                    let map = |s: usize| weight.get(s)?.narrow(0, 0, keys)?.narrow(1, 0, keys)?.contiguous();
                    let mapped = scores.iter().enumerate().map(|(s, score)| score.matmul(&map(s)?));
                    let mapped = Tensor::stack(&mapped.collect::<Result<Vec<_>>>()?, 0)?.sum(0)?;
                    mapped.broadcast_add(&fusion.narrow(0, count * n * n, keys)?)?
                }
                _ => Tensor::stack(&scores, 0)?.sum(0)?,
            };
            let scaled = (fused / ((d / heads) as f64).sqrt())?;
            let mut weights = softmax(&(scaled + mask(f32::NEG_INFINITY, 0.0)?)?)?;
            weights_of_heads.push(weights.clone());
            if drop.is_active() {
                let index = |i: usize, at: usize| drop.factor(weight_index(tokens.start + first + i, at, head, heads));
                let factors: Vec<f32> =
                    (0..q).flat_map(|i| (0..keys).map(move |at| (i, at))).map(|(i, at)| index(i, at)).collect();
                weights = (weights * Tensor::from_vec(factors, (q, keys), query.device())?)?;
            }
            let width = d / heads;
            let values =
                key_value.narrow(0, tokens.start, keys)?.narrow(1, wide + head * width, width)?.contiguous()?;
            parts.push(weights.matmul(&values)?);
        }
        outputs.push(Tensor::cat(&parts, 1)?);
        all_weights.push(Tensor::stack(&weights_of_heads, 0)?);
        if !gates_of_heads.is_empty() {
            gates.push(Tensor::stack(&gates_of_heads, 0)?);
        }
    }
    Ok(SourceSteps { result: Tensor::cat(&outputs, 0)?, weights: all_weights, gates })
}

/// See [`crate::expert_products`].
pub fn expert_products(
    table: &Tensor,
    rows: &[u32],
    weights: &Tensor,
    experts: usize,
    drop: Dropout,
) -> Result<Tensor> {
    let (x, d) = (gather(table, rows)?.detach(), table.dim(1)?);
    // Element i of row r under expert k has the index (r experts + k) d + i.
    let wide = dropout(&Tensor::cat(&vec![x; experts], 1)?, drop)?;
    let product =
        |k: usize| wide.narrow(1, k * d, d)?.contiguous()?.matmul(&weights.narrow(0, k * d, d)?.contiguous()?);
    Tensor::cat(&(0..experts).map(product).collect::<Result<Vec<_>>>()?, 1)
}

/// See [`crate::edge_dot`].
pub fn edge_dot(rows: &Tensor, columns: &Tensor, edges: &Edges) -> Result<Tensor> {
    (gather(rows, &edges.ends(Side::Rows))? * gather(columns, &edges.ends(Side::Columns))?)?.sum(D::Minus1)
}

/// See [`crate::edge_softmax`].
pub fn edge_softmax(scores: &Tensor, edges: &Edges, side: Side) -> Result<Tensor> {
    if edges.count() == 0 {
        return Ok(scores.clone());
    }
    // The edges are sorted by node, so the edges of a node are a segment.
    let ends = edges.of(side);
    let lengths =
        (0..edges.nodes(side)).map(|node| ends.offsets[node + 1] - ends.offsets[node]).filter(|&length| length > 0);
    let offsets = PackedOffsets::from_lengths(lengths)?;
    let by_node = segment_softmax(&gather(&scores.unsqueeze(1)?, &ends.edges)?, &offsets)?;
    let mut index_of = vec![0; edges.count()];
    ends.edges.iter().zip(0..).for_each(|(&edge, at)| index_of[edge as usize] = at);
    gather(&by_node, &index_of)?.squeeze(1)
}

/// See [`crate::edge_sum`].
pub fn edge_sum(weights: &Tensor, x: &Tensor, edges: &Edges, to: Side) -> Result<Tensor> {
    let messages = gather(x, &edges.ends(to.other()))?.broadcast_mul(&weights.unsqueeze(1)?)?;
    let nodes = Tensor::from_vec(edges.ends(to), edges.count(), x.device())?;
    Tensor::zeros((edges.nodes(to), x.dim(1)?), DType::F32, x.device())?.index_add(&nodes, &messages, 0)
}

/// See [`crate::picked_dot`].
pub fn picked_dot(a: &Tensor, table: &Tensor, picked: &[u32]) -> Result<Tensor> {
    let (n, d) = a.dims2()?;
    let rows = gather(table, picked)?.reshape((n, picked.len() / n, d))?;
    rows.broadcast_mul(&a.unsqueeze(1)?)?.sum(D::Minus1)
}

/// See [`crate::recurrent`].
pub fn recurrent(x: &Tensor, hidden: &Tensor, offsets: &PackedOffsets, cell: Cell) -> Result<Tensor> {
    let w = hidden.dim(0)?;
    let mut outputs = Vec::with_capacity(offsets.tokens());
    for j in 0..offsets.count() {
        let (mut h, mut s): (Option<Tensor>, Option<Tensor>) = (None, None);
        for token in offsets.range(j) {
            let x = x.narrow(0, token, 1)?;
            let block = |of: &Tensor, at: usize, count: usize| of.narrow(1, at * w, count * w)?.contiguous();
            let next = match cell {
                Cell::Lstm => {
                    let all = match &h {
                        Some(h) => (&x + h.matmul(hidden)?)?,
                        None => x,
                    };
                    let gate = |at: usize| sigmoid(&block(&all, at, 1)?);
                    let mut state = (gate(0)? * block(&all, 2, 1)?.tanh()?)?;
                    if let Some(before) = &s {
                        state = (state + (gate(1)? * before)?)?;
                    }
                    let next = (gate(3)? * state.tanh()?)?;
                    s = Some(state);
                    next
                }
                Cell::Gru => {
                    let (gates, candidate) = (block(&x, 0, 2)?, block(&x, 2, 1)?);
                    match &h {
                        Some(h) => {
                            let gates = sigmoid(&(gates + h.matmul(&block(hidden, 0, 2)?)?)?)?;
                            let (z, r) = (block(&gates, 0, 1)?, block(&gates, 1, 1)?);
                            let candidate = (candidate + (r * h)?.matmul(&block(hidden, 2, 1)?)?)?.tanh()?;
                            (h + (z * (candidate - h)?)?)?
                        }
                        None => (sigmoid(&block(&gates, 0, 1)?)? * candidate.tanh()?)?,
                    }
                }
            };
            outputs.push(next.clone());
            h = Some(next);
        }
    }
    Tensor::cat(&outputs, 0)
}
