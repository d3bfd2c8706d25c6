//! The item encoders of all modalities in one operator: pooling, one product for all experts and the gate, and the mixture of every use.
//!
//! Items are cut into shards by their number alone. Forward keeps the pooled vectors and the products of all items. Backward processes a
//! shard's items in blocks that fit the second-level cache: it computes the gradients of the products from the items' uses, and at once
//! their contributions to the gradients of the weights and, through the pooled vectors, of w.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::mixture::{Norms, Totals, UseInputs, WIDEST, mix_use, mix_use_backward, softmax, softmax_backward};
use super::pool::{learns, pool_item, pool_item_backward};
use super::{Fused, Gradients, View, apply2, cut, ordered_sum};
use crate::kernel::{Mat, add_rows, matmul, transpose};
use crate::scratch::Scratch;
use crate::{GatherIndex, ItemRows, MixtureSizes};

/// The largest number of items in a block.
const BLOCK: usize = 512;

/// The largest number of shards, each of which holds a gradient of all weights.
const SHARDS: usize = 32;

/// The number of uses in a parallel piece of the mixture.
const PIECE_USES: usize = 64;

pub(crate) fn encode(modalities: &[ItemRows], w: &Tensor, packed: &Tensor, index: &GatherIndex) -> Result<Tensor> {
    let mut encoders = Vec::new();
    let (mut first_w, mut first) = (0, 0);
    for rows in modalities {
        if rows.features.count() != index.items() {
            bail!("encode: {} items, uses of {}", rows.features.count(), index.items());
        }
        let sizes = rows.sizes();
        if rows.experts == 0 || rows.width == 0 || rows.width > WIDEST {
            bail!("encode: {} experts of width {}; expected widths from 1 to {WIDEST}", rows.experts, rows.width);
        }
        encoders.push(Encoder {
            rows: rows.clone(),
            pooling_rows: rows.pooling_rows.unwrap_or(0),
            sizes,
            w: first_w..first_w + sizes.features,
            packed: first..first + sizes.count(),
        });
        (first_w, first) = (first_w + sizes.features, first + sizes.count());
    }
    if w.dims() != [first_w]
        || packed.dims() != [first]
        || encoders.iter().any(|e| e.sizes.width != encoders[0].sizes.width)
    {
        bail!("encode: {:?} and {:?} do not fit, expected [{first_w}] and [{first}]", w.dims(), packed.dims());
    }
    let op = Encode {
        encoders,
        index: index.clone(),
        pooling_learns: w.track_op(),
        keeps: w.track_op() || packed.track_op(),
        kept: Mutex::new(None),
    };
    apply2(op, w, packed)
}

impl MixtureSizes {
    /// The columns of the product: the experts', then the gate's, then zeros up to whole vectors, because a product whose last columns do
    /// not fill a vector is a fifth slower.
    fn columns(self) -> usize {
        (self.outputs() + self.experts).next_multiple_of(16)
    }

    /// The gate's columns.
    fn gates(self) -> Range<usize> {
        self.outputs()..self.outputs() + self.experts
    }

    fn norms(self, packed: &[f32]) -> Norms<'_> {
        Norms { weights: &packed[self.norm_weights()], biases: &packed[self.norm_biases()] }
    }

    /// The weights as one matrix `[d, columns]`.
    fn matrix(self, packed: &[f32]) -> Scratch {
        let mut matrix = Scratch::take(self.features * self.columns());
        let (experts, gate) = (&packed[self.weights()], &packed[self.gate()]);
        for (row, out) in matrix.chunks_exact_mut(self.columns()).enumerate() {
            let (out, out_gate) = out.split_at_mut(self.outputs());
            for (k, out) in out.chunks_exact_mut(self.width).enumerate() {
                out.copy_from_slice(&experts[(k * self.features + row) * self.width..][..self.width]);
            }
            let (out_gate, padding) = out_gate.split_at_mut(self.experts);
            out_gate.copy_from_slice(&gate[row * self.experts..][..self.experts]);
            padding.fill(0.0);
        }
        matrix
    }

    /// The gradient of the packed vector from the gradient of the matrix, transposed `[columns, d]`, and the gradients of the parameters
    /// after the gate.
    fn packed(self, matrix: &[f32], tail: &[f32]) -> Vec<f32> {
        let mut packed = vec![0.0; self.gate().end];
        let (experts, gate) = packed.split_at_mut(self.gate().start);
        let expert = self.width * self.features;
        let (weights, gates) = matrix.split_at(self.outputs() * self.features);
        let blocks = weights.par_chunks(expert);
        experts.par_chunks_mut(expert).zip(blocks).for_each(|(to, from)| transpose(to, from, self.features));
        transpose(gate, &gates[..gate.len()], self.features);
        packed.extend_from_slice(tail);
        packed
    }
}

/// The values of forward that backward needs.
struct Kept {
    /// The pooled vectors, `[n, d]`.
    pooled: Scratch,
    /// The products e W_k + b_k, then the gate after its softmax, `[n, columns]`.
    products: Scratch,
}

/// The encoder of one modality.
struct Encoder {
    rows: ItemRows,
    pooling_rows: usize,
    sizes: MixtureSizes,
    /// The ranges of its parameters in the arguments.
    w: Range<usize>,
    packed: Range<usize>,
}

struct Encode {
    encoders: Vec<Encoder>,
    index: GatherIndex,
    pooling_learns: bool,
    keeps: bool,
    kept: Mutex<Option<Vec<Kept>>>,
}

/// The number of items in a shard.
fn shard_items(items: usize) -> usize {
    let shards = (4 * items.div_ceil(8 * BLOCK)).clamp(1, SHARDS);
    items.div_ceil(shards).max(1)
}

impl Encoder {
    /// Computes the pooled vectors and the products of the items from `first` on.
    fn products(&self, first: usize, w: &[f32], matrix: &[f32], biases: &[f32], pooled: &mut [f32], out: &mut [f32]) {
        let MixtureSizes { features: d, .. } = self.sizes;
        let (all, columns) = (self.sizes.outputs(), self.sizes.columns());
        let (mut alpha, mut room) = (Vec::new(), Vec::new());
        for (i, e) in pooled.chunks_exact_mut(d).enumerate() {
            pool_item(self.rows.features.rows(first + i, &mut room), w, self.pooling_rows, &mut alpha, e);
        }
        for out in out.chunks_exact_mut(columns) {
            out[..all].copy_from_slice(biases);
            out[all..].fill(0.0);
        }
        let items = pooled.len() / d;
        matmul(out, Mat::new(pooled, items, d), Mat::new(matrix, d, columns), true);
        out.chunks_exact_mut(columns).for_each(|out| softmax(&mut out[self.sizes.gates()]));
    }

    fn compute(&self, w: &[f32], packed: &[f32]) -> Kept {
        let (w, packed) = (&w[self.w.clone()], &packed[self.packed.clone()]);
        let (d, columns) = (self.sizes.features, self.sizes.columns());
        let items = self.rows.features.count();
        let (mut pooled, mut products) = (Scratch::take(items * d), Scratch::take(items * columns));
        let matrix = self.sizes.matrix(packed);
        let size = shard_items(items).min(BLOCK);
        let shards = pooled.par_chunks_mut(size * d).zip(products.par_chunks_mut(size * columns)).enumerate();
        shards.for_each(|(shard, (pooled, out))| {
            self.products(shard * size, w, &matrix, &packed[self.sizes.biases()], pooled, out);
        });
        Kept { pooled, products }
    }

    fn mix(&self, occurrence: usize, products: &[f32], norms: Norms<'_>, z: &mut [f32]) {
        let (product, gate) = (&products[..self.sizes.outputs()], &products[self.sizes.gates()]);
        mix_use(z, product, gate, norms, (occurrence * self.sizes.outputs()) as u32, self.rows.dropout);
    }

    /// Computes z if every item is used once and nothing is kept: the products of a block are dropped before the next block.
    fn stream(&self, w: &[f32], packed: &[f32], z: &mut [f32]) {
        let (w, packed) = (&w[self.w.clone()], &packed[self.packed.clone()]);
        let MixtureSizes { features: d, width, .. } = self.sizes;
        let columns = self.sizes.columns();
        let matrix = self.sizes.matrix(packed);
        z.par_chunks_mut(BLOCK * width).enumerate().for_each(|(block, z)| {
            let (first, items) = (block * BLOCK, z.len() / width);
            let (mut pooled, mut products) = (Scratch::take(items * d), Scratch::take(items * columns));
            self.products(first, w, &matrix, &packed[self.sizes.biases()], &mut pooled, &mut products);
            for (i, (z, products)) in z.chunks_exact_mut(width).zip(products.chunks_exact(columns)).enumerate() {
                self.mix(first + i, products, self.sizes.norms(packed), z);
            }
        });
    }

    /// Computes z of all uses from the products.
    fn mix_all(&self, index: &GatherIndex, kept: &Kept, packed: &[f32], z: &mut [f32]) {
        let (width, columns) = (self.sizes.width, self.sizes.columns());
        let norms = self.sizes.norms(&packed[self.packed.clone()]);
        z.par_chunks_mut(PIECE_USES * width).enumerate().for_each(|(piece, z)| {
            for (at, z) in z.chunks_exact_mut(width).enumerate() {
                let occurrence = piece * PIECE_USES + at;
                let item = index.item_of()[occurrence] as usize;
                self.mix(index.number(occurrence), &kept.products[item * columns..][..columns], norms, z);
            }
        });
    }

    /// Computes the gradients of the products and gates of the items from `first` on, from their uses.
    fn product_gradients(
        &self,
        first: usize,
        UseGradients { index, gradient }: UseGradients<'_>,
        kept: &Kept,
        norms: Norms<'_>,
        part: &mut ShardGradients,
    ) {
        let (width, all, columns) = (self.sizes.width, self.sizes.outputs(), self.sizes.columns());
        let (weights, biases) = part.tail[all..].split_at_mut(all);
        for (i, dp) in part.products.chunks_exact_mut(columns).enumerate() {
            let item = first + i;
            let (products, gate) = dp.split_at_mut(all);
            let gate = &mut gate[..self.sizes.experts];
            let mut totals = Totals { products, gate, weights: &mut *weights, biases: &mut *biases };
            let products = &kept.products[item * columns..][..columns];
            let (product, g) = (&products[..all], &products[self.sizes.gates()]);
            for &occurrence in index.of(item) {
                let dz = &gradient[occurrence as usize * width..][..width];
                let dropped = (index.number(occurrence as usize) * all) as u32;
                mix_use_backward(dz, UseInputs { product, gate: g, norms }, &mut totals, dropped, self.rows.dropout);
            }
            softmax_backward(g, totals.gate);
        }
    }

    /// Adds the contribution of a block's items to dw, through de of the items whose pooling has a gradient.
    fn pooling_gradients(&self, first: usize, w: &[f32], transposed: &[f32], kept: &Kept, part: &mut ShardGradients) {
        let MixtureSizes { features: d, .. } = self.sizes;
        let columns = self.sizes.columns();
        let items = part.products.len() / columns;
        let learning: Vec<usize> =
            (0..items).filter(|i| learns(self.rows.features.rows_of(first + i), self.pooling_rows)).collect();
        let mut dp = Scratch::take(learning.len() * columns);
        for (to, &i) in dp.chunks_exact_mut(columns).zip(&learning) {
            to.copy_from_slice(&part.products[i * columns..][..columns]);
        }
        let mut de = Scratch::take(learning.len() * d);
        matmul(&mut de, Mat::new(&dp, learning.len(), columns), Mat::new(transposed, columns, d), false);
        let (mut alpha, mut room) = (Vec::new(), Vec::new());
        for (de, &i) in de.chunks_exact(d).zip(&learning) {
            let (rows, e) = (self.rows.features.rows(first + i, &mut room), &kept.pooled[(first + i) * d..][..d]);
            pool_item_backward(rows, w, self.pooling_rows, &mut alpha, e, de, &mut part.w);
        }
    }

    /// Computes the contribution of a shard's items to the gradients.
    fn shard_gradients(
        &self,
        items: Range<usize>,
        EncoderParts { w, packed, transposed }: EncoderParts<'_>,
        gradients: UseGradients<'_>,
        kept: &Kept,
        pooling_learns: bool,
    ) -> ShardGradients {
        let MixtureSizes { features: d, .. } = self.sizes;
        let (all, columns) = (self.sizes.outputs(), self.sizes.columns());
        let mut part = ShardGradients {
            w: vec![0.0; d],
            matrix: Scratch::zeros(d * columns),
            tail: vec![0.0; 3 * all],
            products: Scratch::take(0),
        };
        let block = items.len().div_ceil(items.len().div_ceil(BLOCK).max(1)).max(1);
        for first in items.clone().step_by(block) {
            let count = block.min(items.end - first);
            part.products = Scratch::zeros(count * columns);
            self.product_gradients(first, gradients, kept, self.sizes.norms(packed), &mut part);
            for dp in part.products.chunks_exact(columns) {
                add_rows(&mut part.tail[..all], &dp[..all]);
            }
            let pooled = Mat::new(&kept.pooled[first * d..][..count * d], count, d);
            matmul(&mut part.matrix, Mat::new(&part.products, count, columns).t(), pooled, true);
            if pooling_learns {
                self.pooling_gradients(first, w, transposed, kept, &mut part);
            }
        }
        part
    }
}

/// The parameters of one modality's encoder.
#[derive(Clone, Copy)]
struct EncoderParts<'a> {
    /// The vector of the pooling, `[d]`.
    w: &'a [f32],
    packed: &'a [f32],
    /// The matrix of `packed`, transposed: `[columns, d]`.
    transposed: &'a [f32],
}

/// The gradients of all uses, `[uses, width]`, and the item of each use.
#[derive(Clone, Copy)]
struct UseGradients<'a> {
    index: &'a GatherIndex,
    gradient: &'a [f32],
}

/// The contribution of a shard to the gradients.
struct ShardGradients {
    w: Vec<f32>,
    /// The gradient of the weights, transposed: `[columns, d]`.
    matrix: Scratch,
    /// The gradients of the biases, the LayerNorm weights and the LayerNorm biases.
    tail: Vec<f32>,
    /// The gradients of the products of the current block.
    products: Scratch,
}

impl Fused<2> for Encode {
    const NAME: &'static str = "encode";

    fn forward(&self, [w, packed]: [View<'_>; 2]) -> Result<(Vec<f32>, Vec<usize>)> {
        let (count, width) = (self.index.count(), self.encoders.first().map_or(1, |e| e.sizes.width));
        let rows = self.encoders.len() * count;
        let mut z = vec![0.0; rows * width];
        let parts = cut(&mut z, self.encoders.iter().map(|_| count), width).into_iter().zip(&self.encoders);
        if !self.keeps && self.index.are_each_once() {
            parts.for_each(|(z, encoder)| encoder.stream(w.data, packed.data, z));
            return Ok((z, vec![rows, width]));
        }
        let mut all = Vec::new();
        for (z, encoder) in parts {
            let kept = encoder.compute(w.data, packed.data);
            encoder.mix_all(&self.index, &kept, packed.data, z);
            all.push(kept);
        }
        if self.keeps {
            *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(all);
        }
        Ok((z, vec![rows, width]))
    }

    fn backward(&self, [w, packed]: [View<'_>; 2], _: &[f32], gradient: &[f32]) -> Result<Gradients<2>> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner).take();
        let kept = kept.unwrap_or_else(|| self.encoders.iter().map(|e| e.compute(w.data, packed.data)).collect());
        let transposed = |e: &Encoder| {
            let mut transposed = Scratch::take(e.sizes.features * e.sizes.columns());
            transpose(&mut transposed, &e.sizes.matrix(&packed.data[e.packed.clone()]), e.sizes.columns());
            transposed
        };
        let matrices: Vec<Scratch> = self.encoders.par_iter().map(transposed).collect();
        let items = self.index.items();
        let (size, count) = (shard_items(items), self.index.count());
        let shards = items.div_ceil(size).max(1);
        // The shards of all modalities side by side keep every thread busy to the end.
        let parts: Vec<ShardGradients> = (0..shards * self.encoders.len())
            .into_par_iter()
            .map(|at| {
                let (m, shard) = (at / shards, at % shards);
                let encoder = &self.encoders[m];
                let parameters = EncoderParts {
                    w: &w.data[encoder.w.clone()],
                    packed: &packed.data[encoder.packed.clone()],
                    transposed: &matrices[m],
                };
                let own = &gradient[m * count * encoder.sizes.width..][..count * encoder.sizes.width];
                let range = shard * size..items.min((shard + 1) * size);
                let gradients = UseGradients { index: &self.index, gradient: own };
                encoder.shard_gradients(range, parameters, gradients, &kept[m], self.pooling_learns)
            })
            .collect();
        let (mut dw, mut d_packed) = (Vec::new(), Vec::new());
        for (encoder, parts) in self.encoders.iter().zip(parts.chunks(shards)) {
            let column = |pick: fn(&ShardGradients) -> &[f32], length| {
                ordered_sum(&parts.iter().map(pick).collect::<Vec<_>>(), length)
            };
            let MixtureSizes { features: d, .. } = encoder.sizes;
            dw.extend(column(|p| &p.w, d));
            let (matrix, tail) = (d * encoder.sizes.columns(), 3 * encoder.sizes.outputs());
            d_packed.extend(encoder.sizes.packed(&column(|p| &p.matrix, matrix), &column(|p| &p.tail, tail)));
        }
        Ok([self.pooling_learns.then_some(dw), Some(d_packed)])
    }
}
