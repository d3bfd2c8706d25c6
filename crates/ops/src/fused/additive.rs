//! Scores of additive attention: for every row, k sums over d of tanh(h) w.

use candle_core::{Result, Tensor, bail};
use multiversion::multiversion;
use rayon::prelude::*;

use super::{Fused, Gradients, View, apply2, ordered_sum};
use crate::kernel::{exp, sum};
use crate::scratch::Scratch;

/// The number of rows in a shard.
const ROWS: usize = 512;

pub(crate) fn additive_scores(h: &Tensor, w: &Tensor) -> Result<Tensor> {
    apply2(Scores, h, w)
}

/// tanh, from the exponential: exact to a few units in the last place of 1.
#[inline(always)]
fn tanh(x: f32) -> f32 {
    1.0 - 2.0 / (exp(2.0 * x) + 1.0)
}

/// Computes the k scores of one row `[k d]` of h.
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512bw+avx512vl+fma", "x86_64+avx2+fma"))]
fn score_row(out: &mut [f32], h: &[f32], w: &[f32], room: &mut [f32]) {
    let d = room.len();
    for (k, out) in out.iter_mut().enumerate() {
        let (h, w) = (&h[k * d..][..d], &w[k * d..][..d]);
        for i in 0..d {
            room[i] = tanh(h[i]) * w[i];
        }
        *out = sum(room);
    }
}

/// Adds one row's contribution to dw, and writes its dh = dy w (1 - tanh(h)^2).
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512bw+avx512vl+fma", "x86_64+avx2+fma"))]
fn score_row_backward(dh: &mut [f32], dw: &mut [f32], h: &[f32], w: &[f32], dy: &[f32]) {
    let d = h.len() / dy.len();
    for (k, &dy) in dy.iter().enumerate() {
        let range = k * d..(k + 1) * d;
        let (dh, dw) = (&mut dh[range.clone()], &mut dw[range.clone()]);
        let (h, w) = (&h[range.clone()], &w[range]);
        for i in 0..d {
            let y = tanh(h[i]);
            dw[i] += dy * y;
            dh[i] = dy * w[i] * (1.0 - y * y);
        }
    }
}

struct Scores;

/// Returns k and d.
fn sizes(h: &View<'_>, w: &View<'_>) -> Result<(usize, usize)> {
    match (h.dims, w.dims) {
        (&[_, width], &[k, d]) if width == k * d && width > 0 => Ok((k, d)),
        (h, w) => bail!("additive_scores: {h:?} does not fit {w:?}"),
    }
}

impl Fused<2> for Scores {
    const NAME: &'static str = "additive_scores";

    fn forward(&self, [h, w]: [View<'_>; 2]) -> Result<(Vec<f32>, Vec<usize>)> {
        let (k, d) = sizes(&h, &w)?;
        let mut out = vec![0.0; h.dims[0] * k];
        out.par_chunks_mut(ROWS * k).zip(h.data.par_chunks(ROWS * k * d)).for_each(|(out, h)| {
            let mut room = Scratch::take(d);
            for (out, h) in out.chunks_exact_mut(k).zip(h.chunks_exact(k * d)) {
                score_row(out, h, w.data, &mut room);
            }
        });
        Ok((out, vec![h.dims[0], k]))
    }

    fn backward(&self, [h, w]: [View<'_>; 2], _: &[f32], gradient: &[f32]) -> Result<Gradients<2>> {
        let (k, d) = sizes(&h, &w)?;
        let mut dh = vec![0.0; h.data.len()];
        let rows =
            dh.par_chunks_mut(ROWS * k * d).zip(h.data.par_chunks(ROWS * k * d)).zip(gradient.par_chunks(ROWS * k));
        let parts: Vec<Scratch> = rows
            .map(|((dh, h), dy)| {
                let mut dw = Scratch::zeros(k * d);
                let rows = dh.chunks_exact_mut(k * d).zip(h.chunks_exact(k * d)).zip(dy.chunks_exact(k));
                rows.for_each(|((dh, h), dy)| score_row_backward(dh, &mut dw, h, w.data, dy));
                dw
            })
            .collect();
        let parts: Vec<&[f32]> = parts.iter().map(|part| &part[..]).collect();
        Ok([Some(dh), Some(ordered_sum(&parts, k * d))])
    }
}
