//! One post-norm transformer layer over packed sequences in one operator: attention, feed-forward block with GELU, both
//! with dropout, residual and LayerNorm.
//!
//! Work is done in chunks of whole sequences whose intermediate values fit the second-level cache. Backward needs these values too, except
//! for attention weights and GELU, which it computes again. Chunks depend on the lengths alone, shards are runs of chunks, and the
//! contributions of the shards to the weights' gradients are summed in order.

use std::sync::{Mutex, PoisonError};

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::attention::{AttentionGradients, AttentionInputs, SequenceRange, attend, attend_backward};
use super::elementwise::{gelu, gelu_backward};
use super::norm::{Norm, NormGradients, add_dropped, drop_all, norm_rows, norm_rows_backward};
use super::{Fused, Gradients, View, apply2, cut, ordered_sum};
use crate::kernel::{Mat, add_rows, matmul};
use crate::layout::LayerParts;
use crate::scratch::Scratch;
use crate::{LayerDropout, LayerSizes, PackedOffsets};

/// The approximate number of tokens in a chunk.
const TOKENS: usize = 128;

/// The largest number of shards, each of which holds a gradient of all weights.
const SHARDS: usize = 32;

pub(crate) fn transformer_layer(
    x: &Tensor,
    packed: &Tensor,
    sizes: LayerSizes,
    offsets: &PackedOffsets,
    last_only: bool,
    dropout: LayerDropout,
) -> Result<Tensor> {
    let op = Layer {
        sizes,
        offsets: offsets.clone(),
        last_only,
        dropout,
        keeps: x.track_op() || packed.track_op(),
        kept: Mutex::new(Vec::new()),
    };
    apply2(op, x, packed)
}

struct Layer {
    sizes: LayerSizes,
    offsets: PackedOffsets,
    last_only: bool,
    dropout: LayerDropout,
    keeps: bool,
    /// The values that forward computed, by shard and chunk.
    kept: Mutex<Vec<Vec<Values>>>,
}

/// A run of whole sequences.
struct Chunk {
    sequences: std::ops::Range<usize>,
    /// Its tokens.
    tokens: std::ops::Range<usize>,
    /// Its rows in the result: its tokens, or its sequences if only the last tokens are requested.
    rows: std::ops::Range<usize>,
}

/// The values that forward computes for a chunk.
struct Values {
    /// The rows of x from which queries are computed: all tokens, or the last ones.
    query_rows: Scratch,
    query: Scratch,
    key_value: Scratch,
    attended: Scratch,
    /// The standardised rows n and 1/s, after attention (1) and after the feed-forward block (2).
    n1: Scratch,
    inverse1: Scratch,
    x1: Scratch,
    up: Scratch,
    n2: Scratch,
    inverse2: Scratch,
}

fn product(out: &mut [f32], x: &[f32], weight: &[f32], bias: &[f32], a: usize) {
    out.chunks_exact_mut(bias.len()).for_each(|row| row.copy_from_slice(bias));
    matmul(out, Mat::new(x, x.len() / a, a), Mat::new(weight, a, bias.len()), true);
}

/// Adds the contribution of y = x W + b to dW and db.
fn weight_gradient(dw: &mut [f32], db: &mut [f32], x: &[f32], dy: &[f32]) {
    let (a, b) = (dw.len() / db.len(), db.len());
    matmul(dw, Mat::new(x, x.len() / a, a).t(), Mat::new(dy, dy.len() / b, b), true);
    add_rows(db, dy);
}

/// dx = dy W^T, or dx += dy W^T if `add`.
fn input_gradient(dx: &mut [f32], weight: &[f32], dy: &[f32], b: usize, add: bool) {
    let a = weight.len() / b;
    matmul(dx, Mat::new(dy, dy.len() / b, b), Mat::new(weight, a, b).t(), add);
}

impl Layer {
    fn chunk(&self, sequences: std::ops::Range<usize>) -> Chunk {
        let tokens = self.offsets.range(sequences.start).start..self.offsets.range(sequences.end - 1).end;
        let rows = if self.last_only { sequences.clone() } else { tokens.clone() };
        Chunk { sequences, tokens, rows }
    }

    /// Runs of chunks; their number depends on the number of chunks alone.
    fn shards(&self) -> Vec<Vec<Chunk>> {
        let chunks: Vec<Chunk> = self.offsets.shards(TOKENS).into_iter().map(|s| self.chunk(s)).collect();
        let size = chunks.len().div_ceil(SHARDS).max(1);
        let mut chunks = chunks.into_iter();
        std::iter::from_fn(|| Some(chunks.by_ref().take(size).collect()).filter(|shard: &Vec<_>| !shard.is_empty()))
            .collect()
    }

    fn sequence_range(&self, sequence: usize) -> SequenceRange {
        let range = self.offsets.range(sequence);
        let queries = if self.last_only { 1 } else { range.len() };
        let LayerSizes { width: d, heads, bidirectional, .. } = self.sizes;
        let first = self.offsets.token_number(range.start);
        SequenceRange { first, queries, keys: range.len(), d, heads, bidirectional }
    }

    /// The range of each of a chunk's sequences, with its rows and its tokens counted from the chunk's first ones.
    fn ranges<'a>(
        &'a self,
        chunk: &'a Chunk,
    ) -> impl Iterator<Item = (SequenceRange, std::ops::Range<usize>, std::ops::Range<usize>)> + 'a {
        chunk.sequences.clone().map(|sequence| {
            let (range, start) = (self.sequence_range(sequence), self.offsets.range(sequence).start);
            let row = if self.last_only { sequence } else { start } - chunk.rows.start;
            let token = start - chunk.tokens.start;
            (range, row..row + range.queries, token..token + range.keys)
        })
    }

    /// The runs of a chunk's result, with rows of `width` values, in which numbers are consecutive. Each comes with the number of its first
    /// value, by which dropout is drawn.
    fn runs(&self, chunk: &Chunk, width: usize) -> impl Iterator<Item = (std::ops::Range<usize>, usize)> + use<> {
        let runs = if self.last_only {
            self.offsets.sequence_runs(chunk.rows.clone())
        } else {
            self.offsets.token_runs(chunk.rows.clone())
        };
        let first = chunk.rows.start;
        runs.into_iter()
            .map(move |(run, number)| ((run.start - first) * width..(run.end - first) * width, number * width))
    }

    /// Computes the layer for a chunk, from x `[tokens, d]` to y `[rows, d]`.
    fn forward_chunk(&self, chunk: &Chunk, x: &[f32], p: &LayerParts<&[f32]>, y: &mut [f32]) -> Values {
        let LayerSizes { width: d, feed_forward: f, .. } = self.sizes;
        let (rows, tokens) = (chunk.rows.len(), chunk.tokens.len());
        let mut v = Values {
            query_rows: Scratch::take(rows * d),
            query: Scratch::take(rows * d),
            key_value: Scratch::take(tokens * 2 * d),
            attended: Scratch::take(rows * d),
            n1: Scratch::take(rows * d),
            inverse1: Scratch::take(rows),
            x1: Scratch::take(rows * d),
            up: Scratch::take(rows * f),
            n2: Scratch::take(rows * d),
            inverse2: Scratch::take(rows),
        };
        let mut work = self.work(chunk);
        for (range, row, token) in self.ranges(chunk) {
            let last = (token.end - range.queries) * d..token.end * d;
            v.query_rows[row.start * d..row.end * d].copy_from_slice(&x[last]);
        }
        product(&mut v.query, &v.query_rows, p.query, p.query_bias, d);
        product(&mut v.key_value, x, p.key_value, p.key_value_bias, d);
        for (range, row, token) in self.ranges(chunk) {
            let (row, token) = (row.start * d..row.end * d, token.start * 2 * d..token.end * 2 * d);
            let (q, kv) = (&v.query[row.clone()], &v.key_value[token]);
            attend(&mut v.attended[row], q, kv, range, self.dropout.weights, &mut work);
        }
        let mut branch = Scratch::take(rows * d);
        product(&mut branch, &v.attended, p.output, p.output_bias, d);
        v.n1.copy_from_slice(&v.query_rows);
        for (run, number) in self.runs(chunk, d) {
            add_dropped(&mut v.n1[run.clone()], &branch[run], number, self.dropout.attention);
        }
        let (w1, b1) = (p.attention_norm, p.attention_norm_bias);
        let (w2, b2) = (p.feed_forward_norm, p.feed_forward_norm_bias);
        norm_rows(&mut v.n1, &mut v.inverse1, &mut v.x1, Norm { weight: w1, bias: b1 });
        product(&mut v.up, &v.x1, p.up, p.up_bias, d);
        let mut activated = Scratch::take(rows * f);
        gelu(&v.up, &mut activated);
        product(&mut branch, &activated, p.down, p.down_bias, f);
        v.n2.copy_from_slice(&v.x1);
        for (run, number) in self.runs(chunk, d) {
            add_dropped(&mut v.n2[run.clone()], &branch[run], number, self.dropout.feed_forward);
        }
        norm_rows(&mut v.n2, &mut v.inverse2, y, Norm { weight: w2, bias: b2 });
        v
    }

    /// Room for three values per key of the longest sequence.
    fn work(&self, chunk: &Chunk) -> Scratch {
        Scratch::take(3 * chunk.sequences.clone().map(|s| self.offsets.range(s).len()).max().unwrap_or(0))
    }

    /// Computes a chunk's gradients from dy `[rows, d]`, which is overwritten: dx `[tokens, d]`, and the chunk's contribution, which is
    /// added to `dp`.
    fn backward_chunk(
        &self,
        chunk: &Chunk,
        x: &[f32],
        mut v: Values,
        p: &LayerParts<&[f32]>,
        dy: &mut [f32],
        dx: &mut [f32],
        dp: &mut LayerParts<&mut [f32]>,
    ) {
        let LayerSizes { width: d, feed_forward: f, .. } = self.sizes;
        let (rows, tokens) = (chunk.rows.len(), chunk.tokens.len());
        let mut branch = Scratch::take(rows * d);
        let (dw1, db1) = (&mut dp.attention_norm, &mut dp.attention_norm_bias);
        let (dw2, db2) = (&mut dp.feed_forward_norm, &mut dp.feed_forward_norm_bias);
        norm_rows_backward(dy, &v.n2, &v.inverse2, p.feed_forward_norm, NormGradients { weight: dw2, bias: db2 });
        let mut dx1 = Scratch::take(rows * d);
        dx1.copy_from_slice(dy);
        for (run, number) in self.runs(chunk, d) {
            drop_all(&mut dy[run], number, self.dropout.feed_forward);
        }
        let mut activated = Scratch::take(rows * f);
        gelu(&v.up, &mut activated);
        weight_gradient(dp.down, dp.down_bias, &activated, dy);
        let mut dup = Scratch::take(rows * f);
        input_gradient(&mut dup, p.down, dy, d, false);
        gelu_backward(&v.up, &mut dup);
        weight_gradient(dp.up, dp.up_bias, &v.x1, &dup);
        input_gradient(&mut dx1, p.up, &dup, f, true);

        norm_rows_backward(&mut dx1, &v.n1, &v.inverse1, p.attention_norm, NormGradients { weight: dw1, bias: db1 });
        branch.copy_from_slice(&dx1);
        for (run, number) in self.runs(chunk, d) {
            drop_all(&mut branch[run], number, self.dropout.attention);
        }
        weight_gradient(dp.output, dp.output_bias, &v.attended, &branch);
        let (d_attended, mut work) = (&mut v.attended, self.work(chunk));
        input_gradient(d_attended, p.output, &branch, d, false);
        let (mut dq, mut dkv) = (Scratch::zeros(rows * d), Scratch::zeros(tokens * 2 * d));
        for (range, row, token) in self.ranges(chunk) {
            let (row, token) = (row.start * d..row.end * d, token.start * 2 * d..token.end * 2 * d);
            let inputs = AttentionInputs {
                q: &v.query[row.clone()],
                kv: &v.key_value[token.clone()],
                dout: &d_attended[row.clone()],
            };
            let outs = AttentionGradients { dq: &mut dq[row], dkv: &mut dkv[token] };
            attend_backward(outs, inputs, range, self.dropout.weights, &mut work);
        }
        weight_gradient(dp.query, dp.query_bias, &v.query_rows, &dq);
        weight_gradient(dp.key_value, dp.key_value_bias, x, &dkv);
        input_gradient(&mut dx1, p.query, &dq, d, true);
        input_gradient(dx, p.key_value, &dkv, 2 * d, false);
        for (range, row, token) in self.ranges(chunk) {
            let last = (token.end - range.queries) * d..token.end * d;
            dx[last].iter_mut().zip(&dx1[row.start * d..row.end * d]).for_each(|(dx, d1)| *dx += d1);
        }
    }
}

fn rows_of(shard: &[Chunk]) -> usize {
    shard.iter().map(|chunk| chunk.rows.len()).sum()
}

fn tokens_of(shard: &[Chunk]) -> usize {
    shard.iter().map(|chunk| chunk.tokens.len()).sum()
}

impl Fused<2> for Layer {
    const NAME: &'static str = "transformer_layer";

    fn forward(&self, [x, packed]: [View<'_>; 2]) -> Result<(Vec<f32>, Vec<usize>)> {
        let LayerSizes { width: d, heads, .. } = self.sizes;
        if x.dims != [self.offsets.tokens(), d] || packed.dims != [self.sizes.count()] || !d.is_multiple_of(heads) {
            let tokens = self.offsets.tokens();
            bail!("transformer_layer: {:?} and {:?} do not fit {tokens} tokens, {:?}", x.dims, packed.dims, self.sizes);
        }
        let shards = self.shards();
        let rows: usize = shards.iter().map(|s| rows_of(s)).sum();
        let mut y = vec![0.0; rows * d];
        let parts = self.sizes.parts(packed.data);
        let outs = cut(&mut y, shards.iter().map(|s| rows_of(s)), d);
        let kept: Vec<Vec<Values>> = outs
            .into_par_iter()
            .zip(&shards)
            .map(|(mut y, shard)| {
                let mut kept = Vec::new();
                for chunk in shard {
                    let (own, rest) = std::mem::take(&mut y).split_at_mut(chunk.rows.len() * d);
                    y = rest;
                    let x = &x.data[chunk.tokens.start * d..chunk.tokens.end * d];
                    let values = self.forward_chunk(chunk, x, &parts, own);
                    kept.extend(self.keeps.then_some(values));
                }
                kept
            })
            .collect();
        if self.keeps {
            *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = kept;
        }
        Ok((y, vec![rows, d]))
    }

    fn backward(&self, [x, packed]: [View<'_>; 2], _: &[f32], gradient: &[f32]) -> Result<Gradients<2>> {
        let d = self.sizes.width;
        let shards = self.shards();
        let mut dx = vec![0.0; x.data.len()];
        let parts = self.sizes.parts(packed.data);
        let mut kept = std::mem::take(&mut *self.kept.lock().unwrap_or_else(PoisonError::into_inner));
        kept.resize_with(shards.len(), Vec::new);
        let sums: Vec<Scratch> = cut(&mut dx, shards.iter().map(|s| tokens_of(s)), d)
            .into_par_iter()
            .zip(&shards)
            .zip(kept)
            .map(|((mut dx, shard), kept)| {
                let mut kept = kept.into_iter();
                let mut sums = Scratch::zeros(packed.data.len());
                let mut dp = self.sizes.parts_mut(&mut sums);
                for chunk in shard {
                    let (own, rest) = std::mem::take(&mut dx).split_at_mut(chunk.tokens.len() * d);
                    dx = rest;
                    let x = &x.data[chunk.tokens.start * d..chunk.tokens.end * d];
                    let mut dy = Scratch::take(chunk.rows.len() * d);
                    dy.copy_from_slice(&gradient[chunk.rows.start * d..chunk.rows.end * d]);
                    // A second backward pass finds nothing kept and computes the values again.
                    let values = kept.next().unwrap_or_else(|| {
                        self.forward_chunk(chunk, x, &parts, &mut Scratch::take(chunk.rows.len() * d))
                    });
                    self.backward_chunk(chunk, x, values, &parts, &mut dy, own, &mut dp);
                }
                sums
            })
            .collect();
        let sums: Vec<&[f32]> = sums.iter().map(|s| &s[..]).collect();
        Ok([Some(dx), Some(ordered_sum(&sums, packed.data.len()))])
    }
}
