//! LayerNorm of the rows of a residual sum, with dropout on the branch.
//!
//! With v = x + Dropout(branch), n = (v - mean) / s and y = w n + b:
//! dv = (w dy - mean(w dy) - n mean(n w dy)) / s, and dx = dv, dbranch = mask dv, dw = sum of n dy, db = sum of dy.

use candle_core::{Result, Tensor, bail};
use multiversion::multiversion;
use rayon::prelude::*;

use super::{Fused, Gradients, View, apply3, ordered_sum};
use crate::kernel::{dot, sum};
use crate::scratch::Scratch;
use crate::{Dropout, LAYER_NORM_EPS};

/// The number of rows in a shard of [`layer_norm`].
const ROWS: usize = 512;

pub(crate) fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    apply3(LayerNorm, x, weight, bias)
}

struct LayerNorm;

impl Fused<3> for LayerNorm {
    const NAME: &'static str = "layer_norm";

    fn forward(&self, [x, weight, bias]: [View<'_>; 3]) -> Result<(Vec<f32>, Vec<usize>)> {
        let &[_, d] = x.dims else { bail!("layer_norm: expected [t, d], found {:?}", x.dims) };
        if weight.dims != [d] || bias.dims != [d] || d == 0 {
            bail!("layer_norm: {:?}, {:?} and {:?} do not fit", x.dims, weight.dims, bias.dims);
        }
        let mut y = vec![0.0; x.data.len()];
        y.par_chunks_mut(ROWS * d).zip(x.data.par_chunks(ROWS * d)).for_each(|(y, x)| {
            let (mut n, mut inverse) = (Scratch::take(x.len()), Scratch::take(x.len() / d));
            n.copy_from_slice(x);
            norm_rows(&mut n, &mut inverse, y, Norm { weight: weight.data, bias: bias.data });
        });
        Ok((y, x.dims.to_vec()))
    }

    fn backward(&self, [x, weight, bias]: [View<'_>; 3], _: &[f32], gradient: &[f32]) -> Result<Gradients<3>> {
        let d = weight.dims[0];
        let mut dx = gradient.to_vec();
        let parts: Vec<Scratch> = dx
            .par_chunks_mut(ROWS * d)
            .zip(x.data.par_chunks(ROWS * d))
            .map(|(dx, x)| {
                let (mut n, mut inverse, mut y) =
                    (Scratch::take(x.len()), Scratch::take(x.len() / d), Scratch::take(x.len()));
                n.copy_from_slice(x);
                norm_rows(&mut n, &mut inverse, &mut y, Norm { weight: weight.data, bias: bias.data });
                let mut sums = Scratch::zeros(2 * d);
                let (dw, db) = sums.split_at_mut(d);
                norm_rows_backward(dx, &n, &inverse, weight.data, NormGradients { weight: dw, bias: db });
                sums
            })
            .collect();
        let parts: Vec<&[f32]> = parts.iter().map(|part| &part[..]).collect();
        let mut dw = ordered_sum(&parts, 2 * d);
        let db = dw.split_off(d);
        Ok([Some(dx), Some(dw), Some(db)])
    }
}

/// Centres `v`; returns its mean and 1 / sqrt(variance + eps).
#[inline(always)]
pub(super) fn moments(v: &mut [f32]) -> (f32, f32) {
    let d = v.len() as f32;
    let mean = sum(v) / d;
    v.iter_mut().for_each(|v| *v -= mean);
    let variance = dot(v, v) / d;
    (mean, 1.0 / (variance + LAYER_NORM_EPS).sqrt())
}

/// v += Dropout(branch), element `first + i` of the dropout for the i-th value.
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512bw+avx512vl+fma", "x86_64+avx2+fma"))]
pub(super) fn add_dropped(v: &mut [f32], branch: &[f32], first: usize, dropout: Dropout) {
    if dropout.is_active() {
        for (i, (v, b)) in v.iter_mut().zip(branch).enumerate() {
            *v += b * dropout.factor((first as u32).wrapping_add(i as u32));
        }
    } else {
        v.iter_mut().zip(branch).for_each(|(v, b)| *v += b);
    }
}

/// x *= the factors of the dropout, element `first + i` for the i-th value.
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512bw+avx512vl+fma", "x86_64+avx2+fma"))]
pub(super) fn drop_all(x: &mut [f32], first: usize, dropout: Dropout) {
    if dropout.is_active() {
        for (i, x) in x.iter_mut().enumerate() {
            *x *= dropout.factor((first as u32).wrapping_add(i as u32));
        }
    }
}

/// The weight and the bias of a LayerNorm, `[d]` each.
#[derive(Clone, Copy)]
pub(super) struct Norm<'a> {
    pub weight: &'a [f32],
    pub bias: &'a [f32],
}

/// Turns the rows of v into n, and writes 1/s to `inverse` and w n + b to `y`.
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512bw+avx512vl+fma", "x86_64+avx2+fma"))]
pub(super) fn norm_rows(v: &mut [f32], inverse: &mut [f32], y: &mut [f32], norm: Norm<'_>) {
    let d = norm.weight.len();
    for ((n, y), inverse) in v.chunks_exact_mut(d).zip(y.chunks_exact_mut(d)).zip(inverse) {
        let (_, scale) = moments(n);
        *inverse = scale;
        for i in 0..d {
            n[i] *= scale;
            y[i] = n[i] * norm.weight[i] + norm.bias[i];
        }
    }
}

/// The gradients of a LayerNorm's parameters, `[d]` each.
pub(super) struct NormGradients<'a> {
    pub weight: &'a mut [f32],
    pub bias: &'a mut [f32],
}

/// Turns dy into dv, and adds the contributions of the rows to the parameters' gradients.
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512bw+avx512vl+fma", "x86_64+avx2+fma"))]
pub(super) fn norm_rows_backward(
    dy: &mut [f32],
    n: &[f32],
    inverse: &[f32],
    weight: &[f32],
    NormGradients { weight: dw, bias: db }: NormGradients<'_>,
) {
    let d = weight.len();
    for ((dy, n), &inverse) in dy.chunks_exact_mut(d).zip(n.chunks_exact(d)).zip(inverse) {
        for i in 0..d {
            dw[i] += n[i] * dy[i];
            db[i] += dy[i];
            dy[i] *= weight[i];
        }
        let (mean, along) = (sum(dy) / d as f32, dot(n, dy) / d as f32);
        for i in 0..d {
            dy[i] = (dy[i] - mean - n[i] * along) * inverse;
        }
    }
}
