//! Attention in packed sequences whose scores come from several sources, each with its own queries and keys.
//!
//! The scores of one sequence are a matrix `[heads sources queries, keys]`, so that the gate's hidden layer is one product per sequence.
//! With a the fused scores, p = softmax(a / sqrt(w)), m the dropout factors and o = (m p) v: dv = (m p)^T do, dp = m (do v^T), da = p (dp -
//! sum of p dp) / sqrt(w); a gate of weights g over scores s has ds = g da + de V^T and dg = da . s. Backward computes p and the gate
//! again. Shards of sequences own their gradients, except for those of the fusion, which are summed in the order of the shards.

use std::sync::Arc;

use candle_core::{Result, Tensor, bail};
use multiversion::multiversion;
use rayon::prelude::*;

use super::norm::drop_all;
use super::{Fused, Gradients, View, apply2, apply3, cut, ordered_sum};
use crate::kernel::{Mat, add_rows, dot, exp, matmul, max, sum};
use crate::plain::weight_index;
use crate::scratch::Scratch;
use crate::sources::{ScoreFusion, SourceScope, SourceSizes};
use crate::{Dropout, PackedOffsets};

/// The approximate number of tokens in a shard.
const TOKENS: usize = 512;

pub(crate) fn source_attention(
    query: &Tensor,
    key_value: &Tensor,
    fusion: Option<&Tensor>,
    sizes: &SourceSizes,
    offsets: &PackedOffsets,
    scope: SourceScope<'_>,
    dropout: Dropout,
) -> Result<Tensor> {
    let op = SourceAttention {
        sizes: sizes.clone(),
        offsets: offsets.clone(),
        real: scope.real.map(Into::into),
        last_only: scope.last_only,
        bidirectional: scope.bidirectional,
        dropout,
    };
    match fusion {
        Some(fusion) => apply3(op, query, key_value, fusion),
        None => apply2(op, query, key_value),
    }
}

struct SourceAttention {
    sizes: SourceSizes,
    offsets: PackedOffsets,
    real: Option<Arc<[usize]>>,
    last_only: bool,
    bidirectional: bool,
    dropout: Dropout,
}

/// The ranges of one sequence's queries and keys.
struct Sequence {
    /// Its rows among the queries.
    rows: std::ops::Range<usize>,
    /// Its tokens.
    tokens: std::ops::Range<usize>,
    /// The position of the first query in the sequence.
    first: usize,
    /// The number of real tokens.
    real: usize,
    bidirectional: bool,
}

impl Sequence {
    fn queries(&self) -> usize {
        self.rows.len()
    }

    fn keys(&self) -> usize {
        self.tokens.len()
    }

    /// The number of keys that query `i` sees.
    fn seen(&self, i: usize) -> usize {
        if self.bidirectional { self.real } else { (self.first + i + 1).min(self.real) }
    }
}

/// The inputs of one sequence's backward pass.
struct SequenceInputs<'a> {
    /// The queries of all sources, `[queries, wide]`.
    query: &'a [f32],
    /// The keys of all sources and the values, `[keys, wide + d]`.
    key_value: &'a [f32],
    /// The parameters of the fusion.
    fusion: &'a [f32],
    /// The gradient of the result, `[queries, d]`.
    dout: &'a [f32],
}

/// Where the gradients of one sequence are written. That of the fusion is added to those of earlier sequences.
struct SequenceGradients<'a> {
    dquery: &'a mut [f32],
    dkey_value: &'a mut [f32],
    dfusion: &'a mut [f32],
}

/// The values that forward computes for one sequence.
struct Scores {
    /// The scores, `[heads, sources, queries, keys]`; 0 if a score does not enter the fusion.
    sources: Scratch,
    /// The gate's hidden layer before its ReLU, `[heads sources queries, n]`.
    hidden: Scratch,
    /// The gate's weights, `[heads, sources, queries]`.
    gate: Scratch,
    /// p, `[heads, queries, keys]`; 0 for keys that are not seen.
    weights: Scratch,
}

/// The softmax of `scale` x in place.
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512bw+avx512vl+fma", "x86_64+avx2+fma"))]
fn softmax(x: &mut [f32], scale: f32) {
    let top = max(x);
    for x in x.iter_mut() {
        *x = exp((*x - top) * scale);
    }
    let share = 1.0 / sum(x);
    for x in x.iter_mut() {
        *x *= share;
    }
}

/// Turns the gradient of the weights p into that of their scores before the scale.
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512bw+avx512vl+fma", "x86_64+avx2+fma"))]
fn softmax_backward(da: &mut [f32], p: &[f32], scale: f32) {
    let along = dot(p, da);
    for i in 0..da.len() {
        da[i] = p[i] * (da[i] - along) * scale;
    }
}

/// relu(h) . v.
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512bw+avx512vl+fma", "x86_64+avx2+fma"))]
fn energy(h: &[f32], v: &[f32], room: &mut [f32]) -> f32 {
    for i in 0..h.len() {
        room[i] = if h[i] > 0.0 { h[i] * v[i] } else { 0.0 };
    }
    sum(room)
}

/// Turns h into its gradient, from the gradient de of its energy, and adds the row's contribution to dv.
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512bw+avx512vl+fma", "x86_64+avx2+fma"))]
fn energy_backward(h: &mut [f32], v: &[f32], de: f32, dv: &mut [f32]) {
    for i in 0..h.len() {
        let open = h[i] > 0.0;
        dv[i] += if open { de * h[i] } else { 0.0 };
        h[i] = if open { de * v[i] } else { 0.0 };
    }
}

impl SourceAttention {
    fn sequence(&self, at: usize) -> Sequence {
        let tokens = self.offsets.range(at);
        let real = self.real.as_ref().map_or(tokens.len(), |real| real[at]);
        let (rows, first) = if self.last_only { (at..at + 1, real - 1) } else { (tokens.clone(), 0) };
        Sequence { rows, tokens, first, real, bidirectional: self.bidirectional }
    }

    /// The first column of source `s` of head `h` in a row of queries or keys, and its width.
    fn part(&self, h: usize, s: usize) -> (usize, usize) {
        let width = self.sizes.sources[s] / self.sizes.heads;
        (self.sizes.sources[..s].iter().sum::<usize>() + h * width, width)
    }

    /// Zeroes the scores that do not enter the fusion, in blocks `[queries, keys]`.
    fn close(&self, blocks: &mut [f32], sequence: &Sequence) {
        if self.real.is_some() {
            return;
        }
        let keys = sequence.keys();
        for block in blocks.chunks_exact_mut(sequence.queries() * keys) {
            for (i, row) in block.chunks_exact_mut(keys).enumerate() {
                row[sequence.seen(i)..].fill(0.0);
            }
        }
    }

    fn scale(&self) -> f32 {
        1.0 / ((self.sizes.width / self.sizes.heads) as f32).sqrt()
    }

    fn scores(&self, sequence: &Sequence, query: &[f32], key_value: &[f32], fusion: &[f32]) -> Scores {
        let SourceSizes { heads, max_sequence_length: n, width: d, .. } = self.sizes;
        let (count, wide) = (self.sizes.sources.len(), self.sizes.queries());
        let (q, keys) = (sequence.queries(), sequence.keys());
        let block = q * keys;
        let mut sources = Scratch::take(heads * count * block);
        for (at, out) in sources.chunks_exact_mut(block).enumerate() {
            let (from, width) = self.part(at / count, at % count);
            let asked = Mat::strided(&query[from..], q, width, wide);
            matmul(out, asked, Mat::strided(&key_value[from..], keys, width, wide + d).t(), false);
        }
        self.close(&mut sources, sequence);
        let mut weights = Scratch::zeros(heads * block);
        let (mut hidden, mut gate) = (Scratch::take(0), Scratch::take(0));
        match self.sizes.fusion {
            ScoreFusion::Sum => {
                for (h, out) in weights.chunks_exact_mut(block).enumerate() {
                    for s in 0..count {
                        add(out, &sources[(h * count + s) * block..][..block], 1.0);
                    }
                }
            }
            ScoreFusion::Gate => {
                let (v1, rest) = fusion.split_at(n * n);
                let (c1, rest) = rest.split_at(n);
                hidden = Scratch::take(heads * count * q * n);
                hidden.chunks_exact_mut(n).for_each(|row| row.copy_from_slice(c1));
                let rows = heads * count * q;
                matmul(&mut hidden, Mat::new(&sources, rows, keys), Mat::new(&v1[..keys * n], keys, n), true);
                gate = Scratch::take(rows);
                let mut room = Scratch::take(n);
                for (gate, hidden) in gate.iter_mut().zip(hidden.chunks_exact(n)) {
                    *gate = energy(hidden, &rest[..n], &mut room);
                }
                let mut own = vec![0.0; count];
                for h in 0..heads {
                    for i in 0..q {
                        let index = |s: usize| (h * count + s) * q + i;
                        (0..count).for_each(|s| own[s] = gate[index(s)]);
                        softmax(&mut own, 1.0);
                        for s in 0..count {
                            gate[index(s)] = own[s];
                            let out = &mut weights[(h * q + i) * keys..][..keys];
                            add(out, &sources[index(s) * keys..][..keys], own[s]);
                        }
                    }
                }
            }
            ScoreFusion::Concat => {
                let (weight, bias) = fusion.split_at(count * n * n);
                for (h, out) in weights.chunks_exact_mut(block).enumerate() {
                    out.chunks_exact_mut(keys).for_each(|row| row.copy_from_slice(&bias[..keys]));
                    for s in 0..count {
                        let scores = Mat::new(&sources[(h * count + s) * block..][..block], q, keys);
                        matmul(out, scores, Mat::strided(&weight[s * n * n..], keys, keys, n), true);
                    }
                }
            }
        }
        let scale = self.scale();
        for (at, row) in weights.chunks_exact_mut(keys).enumerate() {
            let (seen, unseen) = row.split_at_mut(sequence.seen(at % q));
            softmax(seen, scale);
            unseen.fill(0.0);
        }
        Scores { sources, hidden, gate, weights }
    }

    /// The dropout factors of all weights, `[heads, queries, keys]`; `None` without dropout.
    fn factors(&self, sequence: &Sequence) -> Option<Scratch> {
        if !self.dropout.is_active() {
            return None;
        }
        let (q, keys, heads) = (sequence.queries(), sequence.keys(), self.sizes.heads);
        let mut factors = Scratch::take(heads * q * keys);
        for (at, row) in factors.chunks_exact_mut(keys).enumerate() {
            let token = sequence.tokens.start + sequence.first + at % q;
            let first = weight_index(token, 0, at / q, heads);
            row.fill(1.0);
            drop_all(row, first as usize, self.dropout);
        }
        Some(factors)
    }

    fn attend(&self, sequence: &Sequence, query: &[f32], key_value: &[f32], fusion: &[f32], out: &mut [f32]) {
        let (d, heads, wide) = (self.sizes.width, self.sizes.heads, self.sizes.queries());
        let (q, keys, width) = (sequence.queries(), sequence.keys(), d / heads);
        let Scores { mut weights, .. } = self.scores(sequence, query, key_value, fusion);
        if let Some(factors) = self.factors(sequence) {
            weights.iter_mut().zip(&factors[..]).for_each(|(p, f)| *p *= f);
        }
        let mut part = Scratch::take(q * width);
        for (h, p) in weights.chunks_exact(q * keys).enumerate() {
            let values = Mat::strided(&key_value[wide + h * width..], keys, width, wide + d);
            matmul(&mut part, Mat::new(p, q, keys), values, false);
            write_columns(out, &part, h * width, width, d);
        }
    }

    /// Writes the gradients of one sequence to `outs`.
    fn attend_backward(&self, sequence: &Sequence, inputs: &SequenceInputs<'_>, outs: SequenceGradients<'_>) {
        let &SequenceInputs { query, key_value, fusion, dout } = inputs;
        let SequenceGradients { dquery, dkey_value, dfusion } = outs;
        let SourceSizes { heads, max_sequence_length: n, width: d, .. } = self.sizes;
        let (count, wide) = (self.sizes.sources.len(), self.sizes.queries());
        let (q, keys, width) = (sequence.queries(), sequence.keys(), d / heads);
        let block = q * keys;
        let Scores { sources, mut hidden, gate, mut weights } = self.scores(sequence, query, key_value, fusion);
        let factors = self.factors(sequence);
        let mut dscores = Scratch::take(heads * block);
        let (mut dropped, mut part) = (Scratch::take(block), Scratch::take(keys * width));
        let scale = self.scale();
        for (h, (da, p)) in dscores.chunks_exact_mut(block).zip(weights.chunks_exact_mut(block)).enumerate() {
            let dout = Mat::strided(&dout[h * width..], q, width, d);
            matmul(da, dout, Mat::strided(&key_value[wide + h * width..], keys, width, wide + d).t(), false);
            dropped.copy_from_slice(p);
            if let Some(factors) = &factors {
                let own = &factors[h * block..][..block];
                dropped.iter_mut().zip(own).for_each(|(p, f)| *p *= f);
                da.iter_mut().zip(own).for_each(|(dp, f)| *dp *= f);
            }
            matmul(&mut part, Mat::new(&dropped, q, keys).t(), dout, false);
            write_columns(dkey_value, &part, wide + h * width, width, wide + d);
            for (da, p) in da.chunks_exact_mut(keys).zip(p.chunks_exact(keys)) {
                softmax_backward(da, p, scale);
            }
        }
        let mut dsources = Scratch::zeros(heads * count * block);
        match self.sizes.fusion {
            ScoreFusion::Sum => {
                for (at, ds) in dsources.chunks_exact_mut(block).enumerate() {
                    ds.copy_from_slice(&dscores[at / count * block..][..block]);
                }
            }
            ScoreFusion::Gate => {
                let (v1, rest) = fusion.split_at(n * n);
                let (dv1, drest) = dfusion.split_at_mut(n * n);
                let (dc1, dv2) = drest.split_at_mut(n);
                let mut dgate = vec![0.0; count];
                for h in 0..heads {
                    for i in 0..q {
                        let row = |s: usize| (h * count + s) * q + i;
                        let da = &dscores[(h * q + i) * keys..][..keys];
                        (0..count).for_each(|s| dgate[s] = dot(da, &sources[row(s) * keys..][..keys]));
                        let along: f32 = (0..count).map(|s| gate[row(s)] * dgate[s]).sum();
                        for s in 0..count {
                            let g = gate[row(s)];
                            add(&mut dsources[row(s) * keys..][..keys], da, g);
                            let hidden = &mut hidden[row(s) * n..][..n];
                            energy_backward(hidden, &rest[n..2 * n], g * (dgate[s] - along), &mut dv2[..n]);
                        }
                    }
                }
                let rows = heads * count * q;
                let dhidden = Mat::new(&hidden, rows, n);
                matmul(&mut dsources, dhidden, Mat::new(&v1[..keys * n], keys, n).t(), true);
                matmul(&mut dv1[..keys * n], Mat::new(&sources, rows, keys).t(), dhidden, true);
                add_rows(dc1, &hidden);
            }
            ScoreFusion::Concat => {
                let (weight, _) = fusion.split_at(count * n * n);
                let (dweight, dbias) = dfusion.split_at_mut(count * n * n);
                let mut square = Scratch::take(keys * keys);
                for (at, ds) in dsources.chunks_exact_mut(block).enumerate() {
                    let s = at % count;
                    let da = Mat::new(&dscores[at / count * block..][..block], q, keys);
                    matmul(ds, da, Mat::strided(&weight[s * n * n..], keys, keys, n).t(), false);
                    matmul(&mut square, Mat::new(&sources[at * block..][..block], q, keys).t(), da, false);
                    for (row, square) in square.chunks_exact(keys).enumerate() {
                        add(&mut dweight[(s * n + row) * n..][..keys], square, 1.0);
                    }
                }
                add_rows(&mut dbias[..keys], &dscores);
            }
        }
        self.close(&mut dsources, sequence);
        for (at, ds) in dsources.chunks_exact(block).enumerate() {
            let (from, width) = self.part(at / count, at % count);
            let ds = Mat::new(ds, q, keys);
            let mut part = Scratch::take(q.max(keys) * width);
            matmul(&mut part[..q * width], ds, Mat::strided(&key_value[from..], keys, width, wide + d), false);
            write_columns(dquery, &part[..q * width], from, width, wide);
            matmul(&mut part[..keys * width], ds.t(), Mat::strided(&query[from..], q, width, wide), false);
            write_columns(dkey_value, &part[..keys * width], from, width, wide + d);
        }
    }

    fn run(&self, query: View<'_>, key_value: View<'_>, fusion: &[f32]) -> Result<(Vec<f32>, Vec<usize>)> {
        self.sizes.check()?;
        let (d, wide, tokens) = (self.sizes.width, self.sizes.queries(), self.offsets.tokens());
        let rows = if self.last_only { self.offsets.count() } else { tokens };
        let fits = query.dims == [rows, wide] && key_value.dims == [tokens, wide + d];
        let longest = (0..self.offsets.count()).map(|j| self.offsets.range(j).len()).max().unwrap_or(0);
        let long = self.sizes.fusion != ScoreFusion::Sum && longest > self.sizes.max_sequence_length;
        let real = self.real.as_ref().is_none_or(|real| {
            real.len() == self.offsets.count()
                && real.iter().enumerate().all(|(j, &real)| real >= 1 && real <= self.offsets.range(j).len())
        });
        if !fits || long || !real || fusion.len() != self.sizes.fusion_count() {
            bail!(
                "source attention: {:?}, {:?} and {} parameters do not fit {tokens} tokens, {:?}",
                query.dims,
                key_value.dims,
                fusion.len(),
                self.sizes
            );
        }
        let shards = self.offsets.shards(TOKENS);
        let mut out = vec![0.0; rows * d];
        let of_shard = |shard: &std::ops::Range<usize>| shard.clone().map(|j| self.sequence(j).queries()).sum();
        let outs = cut(&mut out, shards.iter().map(of_shard), d);
        outs.into_par_iter().zip(&shards).for_each(|(mut out, shard)| {
            for sequence in shard.clone().map(|j| self.sequence(j)) {
                let (own, rest) = std::mem::take(&mut out).split_at_mut(sequence.queries() * d);
                out = rest;
                let query = &query.data[sequence.rows.start * wide..sequence.rows.end * wide];
                let tokens = sequence.tokens.start * (wide + d)..sequence.tokens.end * (wide + d);
                self.attend(&sequence, query, &key_value.data[tokens], fusion, own);
            }
        });
        Ok((out, vec![rows, d]))
    }

    fn run_backward(&self, query: View<'_>, key_value: View<'_>, fusion: &[f32], dout: &[f32]) -> [Vec<f32>; 3] {
        let (d, wide) = (self.sizes.width, self.sizes.queries());
        let shards = self.offsets.shards(TOKENS);
        let (mut dquery, mut dkey_value) = (vec![0.0; query.data.len()], vec![0.0; key_value.data.len()]);
        let queries = |shard: &std::ops::Range<usize>| shard.clone().map(|j| self.sequence(j).queries()).sum();
        let keys = |shard: &std::ops::Range<usize>| shard.clone().map(|j| self.sequence(j).keys()).sum();
        let parts: Vec<Scratch> = cut(&mut dquery, shards.iter().map(queries), wide)
            .into_par_iter()
            .zip(cut(&mut dkey_value, shards.iter().map(keys), wide + d))
            .zip(&shards)
            .map(|((mut dquery, mut dkey_value), shard)| {
                let mut dfusion = Scratch::zeros(fusion.len());
                for sequence in shard.clone().map(|j| self.sequence(j)) {
                    let (own_query, rest) = std::mem::take(&mut dquery).split_at_mut(sequence.queries() * wide);
                    dquery = rest;
                    let (own_keys, rest) = std::mem::take(&mut dkey_value).split_at_mut(sequence.keys() * (wide + d));
                    dkey_value = rest;
                    let rows = sequence.rows.clone();
                    let query = &query.data[rows.start * wide..rows.end * wide];
                    let tokens = sequence.tokens.start * (wide + d)..sequence.tokens.end * (wide + d);
                    let dout = &dout[rows.start * d..rows.end * d];
                    let inputs = SequenceInputs { query, key_value: &key_value.data[tokens], fusion, dout };
                    let outs = SequenceGradients { dquery: own_query, dkey_value: own_keys, dfusion: &mut dfusion };
                    self.attend_backward(&sequence, &inputs, outs);
                }
                dfusion
            })
            .collect();
        let parts: Vec<&[f32]> = parts.iter().map(|part| &part[..]).collect();
        let dfusion = ordered_sum(&parts, fusion.len());
        [dquery, dkey_value, dfusion]
    }
}

/// y += c x.
fn add(y: &mut [f32], x: &[f32], c: f32) {
    crate::kernel::add_scaled(y, c, x);
}

/// Copies the rows of `part` to the columns from `from` on of `out`, whose rows are `stride` apart.
fn write_columns(out: &mut [f32], part: &[f32], from: usize, width: usize, stride: usize) {
    for (out, part) in out.chunks_exact_mut(stride).zip(part.chunks_exact(width)) {
        out[from..from + width].copy_from_slice(part);
    }
}

const NAME: &str = "source_attention";

impl Fused<2> for SourceAttention {
    const NAME: &'static str = NAME;

    fn forward(&self, [query, key_value]: [View<'_>; 2]) -> Result<(Vec<f32>, Vec<usize>)> {
        self.run(query, key_value, &[])
    }

    fn backward(&self, [query, key_value]: [View<'_>; 2], _: &[f32], gradient: &[f32]) -> Result<Gradients<2>> {
        let [dquery, dkey_value, _] = self.run_backward(query, key_value, &[], gradient);
        Ok([Some(dquery), Some(dkey_value)])
    }
}

impl Fused<3> for SourceAttention {
    const NAME: &'static str = NAME;

    fn forward(&self, [query, key_value, fusion]: [View<'_>; 3]) -> Result<(Vec<f32>, Vec<usize>)> {
        self.run(query, key_value, fusion.data)
    }

    fn backward(&self, [query, key_value, fusion]: [View<'_>; 3], _: &[f32], gradient: &[f32]) -> Result<Gradients<3>> {
        Ok(self.run_backward(query, key_value, fusion.data, gradient).map(Some))
    }
}
