//! Attention pooling of ragged constant rows with the folded vector w.
//!
//! alpha = softmax(x_s . w) over the item's rows (and padding rows of zeros, whose score is 0), e = sum of alpha_s x_s.
//! Backward: dw = sum over items and rows of alpha_s (de . x_s - de . e) x_s; padding rows add nothing to the outer sum.

use candle_core::{Result, Tensor, bail};
use multiversion::multiversion;
use rayon::prelude::*;

use super::{Fused, Gradients, View, apply1, ordered_sum};
use crate::Ragged;
use crate::kernel::{add_scaled, dot, exp};

/// Items of a shard.
const ITEMS: usize = 64;

pub(crate) fn pool(features: &Ragged, w: &Tensor, pad_rows: Option<usize>) -> Result<Tensor> {
    apply1(Pool { features: features.clone(), pad_rows: pad_rows.unwrap_or(0) }, w)
}

struct Pool {
    features: Ragged,
    pad_rows: usize,
}

/// The softmax of an item's rows into `alpha`; padding rows join its denominator.
#[inline(always)]
fn weights(rows: &[f32], w: &[f32], pad_rows: usize, alpha: &mut Vec<f32>) {
    alpha.clear();
    alpha.extend(rows.chunks_exact(w.len()).map(|row| dot(row, w)));
    let padding = pad_rows.saturating_sub(alpha.len());
    let floor = if padding > 0 { 0.0 } else { f32::NEG_INFINITY };
    let top = alpha.iter().copied().fold(floor, f32::max);
    alpha.iter_mut().for_each(|a| *a = exp(*a - top));
    let total = alpha.iter().sum::<f32>() + if padding > 0 { padding as f32 * exp(-top) } else { 0.0 };
    alpha.iter_mut().for_each(|a| *a /= total);
}

#[multiversion(targets("x86_64+avx512f+avx512dq+avx512bw+avx512vl+fma", "x86_64+avx2+fma"))]
fn pool_item(rows: &[f32], w: &[f32], pad_rows: usize, alpha: &mut Vec<f32>, e: &mut [f32]) {
    weights(rows, w, pad_rows, alpha);
    for (row, &a) in rows.chunks_exact(w.len()).zip(alpha.iter()) {
        add_scaled(e, a, row);
    }
}

#[multiversion(targets("x86_64+avx512f+avx512dq+avx512bw+avx512vl+fma", "x86_64+avx2+fma"))]
fn pool_item_backward(
    rows: &[f32],
    w: &[f32],
    pad_rows: usize,
    alpha: &mut Vec<f32>,
    e: &[f32],
    de: &[f32],
    dw: &mut [f32],
) {
    weights(rows, w, pad_rows, alpha);
    let along = dot(de, e);
    for (row, &a) in rows.chunks_exact(w.len()).zip(alpha.iter()) {
        add_scaled(dw, a * (dot(de, row) - along), row);
    }
}

impl Fused<1> for Pool {
    const NAME: &'static str = "pool";

    fn forward(&self, [w]: [View<'_>; 1]) -> Result<(Vec<f32>, Vec<usize>)> {
        let d = self.features.width();
        if w.dims != [d, 1] {
            bail!("pool: expected a vector [{d}, 1], found {:?}", w.dims);
        }
        let mut out = vec![0.0; self.features.count() * d];
        out.par_chunks_mut(ITEMS * d).enumerate().for_each(|(shard, out)| {
            let mut alpha = Vec::new();
            for (i, e) in out.chunks_exact_mut(d).enumerate() {
                pool_item(self.features.rows(shard * ITEMS + i), w.data, self.pad_rows, &mut alpha, e);
            }
        });
        Ok((out, vec![self.features.count(), d]))
    }

    fn backward(&self, [w]: [View<'_>; 1], result: &[f32], gradient: &[f32]) -> Result<Gradients<1>> {
        let d = self.features.width();
        let shards = result.par_chunks(8 * ITEMS * d).zip(gradient.par_chunks(8 * ITEMS * d)).enumerate();
        let parts = shards
            .map(|(shard, (e, de))| {
                let (mut alpha, mut dw) = (Vec::new(), vec![0.0; d]);
                for (i, (e, de)) in e.chunks_exact(d).zip(de.chunks_exact(d)).enumerate() {
                    let rows = self.features.rows(shard * 8 * ITEMS + i);
                    pool_item_backward(rows, w.data, self.pad_rows, &mut alpha, e, de, &mut dw);
                }
                dw
            })
            .collect();
        Ok([Some(ordered_sum(parts, d))])
    }
}
