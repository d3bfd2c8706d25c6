//! LayerNorm of the rows of a residual sum, with dropout on the branch.
//!
//! With v = x + Dropout(branch), n = (v - mean) / s and y = w n + b:
//! dv = (w dy - mean(w dy) - n mean(n w dy)) / s, and dx = dv, dbranch = mask dv, dw = sum of n dy, db = sum of dy.

use multiversion::multiversion;

use crate::kernel::{dot, sum};
use crate::{Dropout, LAYER_NORM_EPS};

/// Centres `v`; gives its mean and 1 / sqrt(variance + eps).
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

/// x times the dropout's factors.
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512bw+avx512vl+fma", "x86_64+avx2+fma"))]
pub(super) fn drop_all(x: &mut [f32], first: usize, dropout: Dropout) {
    if dropout.is_active() {
        for (i, x) in x.iter_mut().enumerate() {
            *x *= dropout.factor((first as u32).wrapping_add(i as u32));
        }
    }
}

/// A LayerNorm's weight, then its bias.
#[derive(Clone, Copy)]
pub(super) struct Norm<'a> {
    pub weight: &'a [f32],
    pub bias: &'a [f32],
}

/// Rows of v become n in place, 1/s goes to `inverse`, w n + b to `y`.
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

/// dy becomes dv in place; what the rows add to dw and db is added to `dnorm`.
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512bw+avx512vl+fma", "x86_64+avx2+fma"))]
pub(super) fn norm_rows_backward(
    dy: &mut [f32],
    n: &[f32],
    inverse: &[f32],
    weight: &[f32],
    (dw, db): (&mut [f32], &mut [f32]),
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
