//! LayerNorm, alone or of a residual sum with dropout on the branch.
//!
//! With v = x + Dropout(branch), n = (v - mean) / s and y = w n + b:
//! dv = (w dy - mean(w dy) - n mean(n w dy)) / s, and dx = dv, dbranch = mask dv, dw = sum of n dy, db = sum of dy.

use candle_core::{Result, Tensor, bail};
use multiversion::multiversion;
use rayon::prelude::*;

use super::{Fused, Gradients, View, apply2, apply3, ordered_sum};
use crate::kernel::{dot, sum};
use crate::{Dropout, LAYER_NORM_EPS};

/// Rows of a shard.
const ROWS: usize = 256;

pub(crate) fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    apply2(Norm, x, &Tensor::stack(&[weight, bias], 0)?)
}

pub(crate) fn add_norm(
    x: &Tensor,
    branch: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    dropout: Dropout,
) -> Result<Tensor> {
    apply3(AddNorm(dropout), x, branch, &Tensor::stack(&[weight, bias], 0)?)
}

struct Norm;
struct AddNorm(Dropout);

fn width(x: &View<'_>, norm: &View<'_>) -> Result<usize> {
    match (x.dims, norm.dims) {
        (&[_, d], &[2, d2]) if d == d2 && d > 0 => Ok(d),
        (x, n) => bail!("layer norm: {x:?} does not fit {n:?}"),
    }
}

impl Fused<2> for Norm {
    const NAME: &'static str = "layer_norm";

    fn forward(&self, [x, norm]: [View<'_>; 2]) -> Result<(Vec<f32>, Vec<usize>)> {
        let d = width(&x, &norm)?;
        Ok((forward(x.data, None, norm.data, d, Dropout::NONE), x.dims.to_vec()))
    }

    fn backward(&self, [x, norm]: [View<'_>; 2], _: &[f32], gradient: &[f32]) -> Result<Gradients<2>> {
        let (dv, _, dnorm) = backward(x.data, None, norm.data, gradient, x.dims[1], Dropout::NONE);
        Ok([Some(dv), Some(dnorm)])
    }
}

impl Fused<3> for AddNorm {
    const NAME: &'static str = "add_norm";

    fn forward(&self, [x, branch, norm]: [View<'_>; 3]) -> Result<(Vec<f32>, Vec<usize>)> {
        let d = width(&x, &norm)?;
        if branch.dims != x.dims {
            bail!("add_norm: {:?} does not fit {:?}", branch.dims, x.dims);
        }
        Ok((forward(x.data, Some(branch.data), norm.data, d, self.0), x.dims.to_vec()))
    }

    fn backward(&self, [x, branch, norm]: [View<'_>; 3], _: &[f32], gradient: &[f32]) -> Result<Gradients<3>> {
        let (dx, dbranch, dnorm) = backward(x.data, Some(branch.data), norm.data, gradient, x.dims[1], self.0);
        Ok([Some(dx), dbranch, Some(dnorm)])
    }
}

/// v = x + Dropout(branch) into `v`; gives mean and 1/s.
#[inline(always)]
fn residual(v: &mut [f32], x: &[f32], branch: Option<&[f32]>, first: u32, dropout: Dropout) -> (f32, f32) {
    match branch {
        None => v.copy_from_slice(x),
        Some(branch) if dropout.is_active() => {
            for (i, v) in v.iter_mut().enumerate() {
                *v = x[i] + branch[i] * dropout.factor(first.wrapping_add(i as u32));
            }
        }
        Some(branch) => v.iter_mut().zip(x.iter().zip(branch)).for_each(|(v, (x, b))| *v = x + b),
    }
    moments(v)
}

/// Mean and 1 / sqrt(variance + eps).
#[inline(always)]
pub(super) fn moments(v: &mut [f32]) -> (f32, f32) {
    let d = v.len() as f32;
    let mean = sum(v) / d;
    v.iter_mut().for_each(|v| *v -= mean);
    let variance = dot(v, v) / d;
    (mean, 1.0 / (variance + LAYER_NORM_EPS).sqrt())
}

#[multiversion(targets("x86_64+avx512f+avx512dq+avx512bw+avx512vl+fma", "x86_64+avx2+fma"))]
fn forward_rows(
    y: &mut [f32],
    x: &[f32],
    branch: Option<&[f32]>,
    norm: &[f32],
    d: usize,
    first: usize,
    dropout: Dropout,
) {
    let (w, b) = norm.split_at(d);
    for (row, y) in y.chunks_exact_mut(d).enumerate() {
        let at = row * d;
        let branch = branch.map(|branch| &branch[at..at + d]);
        let (_, inverse) = residual(y, &x[at..at + d], branch, (first + at) as u32, dropout);
        for i in 0..d {
            y[i] = y[i] * inverse * w[i] + b[i];
        }
    }
}

fn forward(x: &[f32], branch: Option<&[f32]>, norm: &[f32], d: usize, dropout: Dropout) -> Vec<f32> {
    let mut y = vec![0.0; x.len()];
    y.par_chunks_mut(ROWS * d).enumerate().for_each(|(shard, y)| {
        let range = shard * ROWS * d..shard * ROWS * d + y.len();
        forward_rows(y, &x[range.clone()], branch.map(|b| &b[range.clone()]), norm, d, range.start, dropout);
    });
    y
}

#[multiversion(targets("x86_64+avx512f+avx512dq+avx512bw+avx512vl+fma", "x86_64+avx2+fma"))]
#[allow(clippy::too_many_arguments)]
fn backward_rows(
    dx: &mut [f32],
    x: &[f32],
    branch: Option<&[f32]>,
    norm: &[f32],
    dy: &[f32],
    dnorm: &mut [f32],
    d: usize,
    first: usize,
    dropout: Dropout,
) {
    let w = &norm[..d];
    let (dw, db) = dnorm.split_at_mut(d);
    let mut n = vec![0.0f32; d];
    let mut g = vec![0.0f32; d];
    for (row, dx) in dx.chunks_exact_mut(d).enumerate() {
        let at = row * d;
        let dy = &dy[at..at + d];
        let branch = branch.map(|branch| &branch[at..at + d]);
        let (_, inverse) = residual(&mut n, &x[at..at + d], branch, (first + at) as u32, dropout);
        for i in 0..d {
            n[i] *= inverse;
            g[i] = w[i] * dy[i];
            dw[i] += n[i] * dy[i];
            db[i] += dy[i];
        }
        let (mean, along) = (sum(&g) / d as f32, dot(&n, &g) / d as f32);
        for i in 0..d {
            dx[i] = (g[i] - mean - n[i] * along) * inverse;
        }
    }
}

type Backward = (Vec<f32>, Option<Vec<f32>>, Vec<f32>);

fn backward(x: &[f32], branch: Option<&[f32]>, norm: &[f32], gradient: &[f32], d: usize, dropout: Dropout) -> Backward {
    let mut dx = vec![0.0; x.len()];
    let parts = dx
        .par_chunks_mut(ROWS * d)
        .enumerate()
        .map(|(shard, dx)| {
            let range = shard * ROWS * d..shard * ROWS * d + dx.len();
            let branch = branch.map(|b| &b[range.clone()]);
            let mut dnorm = vec![0.0; 2 * d];
            let dy = &gradient[range.clone()];
            backward_rows(dx, &x[range.clone()], branch, norm, dy, &mut dnorm, d, range.start, dropout);
            dnorm
        })
        .collect();
    let dbranch = branch.map(|_| {
        let mut out = dx.clone();
        if dropout.is_active() {
            out.par_iter_mut().enumerate().with_min_len(1 << 14).for_each(|(i, v)| *v *= dropout.factor(i as u32));
        }
        out
    });
    (dx, dbranch, ordered_sum(parts, 2 * d))
}
