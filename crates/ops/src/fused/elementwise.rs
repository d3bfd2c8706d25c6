//! GELU, dropout, row normalisation, row gathering.

use candle_core::{Result, Tensor, bail};
use multiversion::multiversion;
use rayon::prelude::*;

use super::norm::drop_all;
use super::{Fused, Gradients, View, apply1};
use crate::kernel::{accumulate, dot, erf, exp};
use crate::{COSINE_EPS, Dropout, GatherIndex, PackedOffsets};

/// y = x Phi(x).
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512bw+avx512vl+fma", "x86_64+avx2+fma"))]
pub(super) fn gelu(x: &[f32], y: &mut [f32]) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y = 0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2));
    }
}

/// dx = dy (Phi(x) + x phi(x)) in place, with phi the standard normal density.
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512bw+avx512vl+fma", "x86_64+avx2+fma"))]
pub(super) fn gelu_backward(x: &[f32], dy: &mut [f32]) {
    const INV_SQRT_TAU: f32 = 0.398_942_3;
    for (dy, &x) in dy.iter_mut().zip(x) {
        let phi = INV_SQRT_TAU * exp(-0.5 * x * x);
        *dy *= 0.5 * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2)) + x * phi;
    }
}

pub(crate) fn gelu_activation(x: &Tensor) -> Result<Tensor> {
    apply1(Gelu, x)
}

/// The number of values in a parallel piece.
const PIECE: usize = 1 << 14;

struct Gelu;

impl Fused<1> for Gelu {
    const NAME: &'static str = "gelu";

    fn forward(&self, [x]: [View<'_>; 1]) -> Result<(Vec<f32>, Vec<usize>)> {
        let mut y = vec![0.0; x.data.len()];
        y.par_chunks_mut(PIECE).zip(x.data.par_chunks(PIECE)).for_each(|(y, x)| gelu(x, y));
        Ok((y, x.dims.to_vec()))
    }

    fn backward(&self, [x]: [View<'_>; 1], _: &[f32], gradient: &[f32]) -> Result<Gradients<1>> {
        let mut dx = gradient.to_vec();
        dx.par_chunks_mut(PIECE).zip(x.data.par_chunks(PIECE)).for_each(|(dx, x)| gelu_backward(x, dx));
        Ok([Some(dx)])
    }
}

pub(crate) fn dropout(x: &Tensor, dropout: Dropout) -> Result<Tensor> {
    if dropout.is_active() { apply1(Dropped(dropout), x) } else { Ok(x.clone()) }
}

struct Dropped(Dropout);

impl Dropped {
    fn of(&self, x: &[f32]) -> Vec<f32> {
        let mut out = x.to_vec();
        out.par_chunks_mut(PIECE).enumerate().for_each(|(piece, out)| drop_all(out, piece * PIECE, self.0));
        out
    }
}

pub(crate) fn dropout_tokens(x: &Tensor, dropout: Dropout, offsets: &PackedOffsets) -> Result<Tensor> {
    if x.dim(0)? != offsets.tokens() {
        bail!("dropout_tokens: {:?} for {} tokens", x.dims(), offsets.tokens());
    }
    if dropout.is_active() { apply1(DroppedTokens { dropout, offsets: offsets.clone() }, x) } else { Ok(x.clone()) }
}

struct DroppedTokens {
    dropout: Dropout,
    offsets: PackedOffsets,
}

impl DroppedTokens {
    fn of(&self, x: &[f32]) -> Vec<f32> {
        let (mut out, tokens) = (x.to_vec(), self.offsets.tokens());
        let d = x.len() / tokens.max(1);
        for (run, number) in self.offsets.token_runs(0..tokens) {
            let out = &mut out[run.start * d..run.end * d];
            let pieces = out.par_chunks_mut(PIECE).enumerate();
            pieces.for_each(|(piece, out)| drop_all(out, number * d + piece * PIECE, self.dropout));
        }
        out
    }
}

impl Fused<1> for DroppedTokens {
    const NAME: &'static str = "dropout_tokens";

    fn forward(&self, [x]: [View<'_>; 1]) -> Result<(Vec<f32>, Vec<usize>)> {
        Ok((self.of(x.data), x.dims.to_vec()))
    }

    fn backward(&self, _: [View<'_>; 1], _: &[f32], gradient: &[f32]) -> Result<Gradients<1>> {
        Ok([Some(self.of(gradient))])
    }
}

impl Fused<1> for Dropped {
    const NAME: &'static str = "dropout";

    fn forward(&self, [x]: [View<'_>; 1]) -> Result<(Vec<f32>, Vec<usize>)> {
        Ok((self.of(x.data), x.dims.to_vec()))
    }

    fn backward(&self, _: [View<'_>; 1], _: &[f32], gradient: &[f32]) -> Result<Gradients<1>> {
        Ok([Some(self.of(gradient))])
    }
}

pub(crate) fn normalize(x: &Tensor) -> Result<Tensor> {
    apply1(Normalize, x)
}

struct Normalize;

/// y = x / max(|x|, 1e-12).
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512bw+avx512vl+fma", "x86_64+avx2+fma"))]
fn normalize_row(y: &mut [f32], x: &[f32]) {
    let scale = 1.0 / dot(x, x).sqrt().max(COSINE_EPS);
    for i in 0..y.len() {
        y[i] = x[i] * scale;
    }
}

/// dx = (dy - y (y . dy)) / |x|; a norm that is clamped is a constant, so the second term vanishes.
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512bw+avx512vl+fma", "x86_64+avx2+fma"))]
fn normalize_row_backward(dx: &mut [f32], x: &[f32], y: &[f32], dy: &[f32]) {
    let norm = dot(x, x).sqrt();
    let along = if norm > COSINE_EPS { dot(y, dy) } else { 0.0 };
    let scale = 1.0 / norm.max(COSINE_EPS);
    for i in 0..dx.len() {
        dx[i] = (dy[i] - y[i] * along) * scale;
    }
}

impl Fused<1> for Normalize {
    const NAME: &'static str = "normalize";

    fn forward(&self, [x]: [View<'_>; 1]) -> Result<(Vec<f32>, Vec<usize>)> {
        let &[_, d] = x.dims else { bail!("normalize: expected [t, d], found {:?}", x.dims) };
        let mut y = vec![0.0; x.data.len()];
        let rows = y.par_chunks_mut(d.max(1)).zip(x.data.par_chunks(d.max(1)));
        rows.with_min_len(64).for_each(|(y, x)| normalize_row(y, x));
        Ok((y, x.dims.to_vec()))
    }

    fn backward(&self, [x]: [View<'_>; 1], result: &[f32], gradient: &[f32]) -> Result<Gradients<1>> {
        let d = x.dims[1].max(1);
        let mut dx = vec![0.0; x.data.len()];
        let rows = x.data.par_chunks(d).zip(result.par_chunks(d)).zip(gradient.par_chunks(d));
        let rows = dx.par_chunks_mut(d).zip(rows).with_min_len(64);
        rows.for_each(|(dx, ((x, y), dy))| normalize_row_backward(dx, x, y, dy));
        Ok([Some(dx)])
    }
}

pub(crate) fn gather(table: &Tensor, rows: &[u32]) -> Result<Tensor> {
    let n = table.dim(0)?;
    if let Some(row) = rows.iter().find(|&&row| row as usize >= n) {
        bail!("gather: row {row} of {n}");
    }
    apply1(Gather(GatherIndex::new(rows.to_vec(), n)), table)
}

struct Gather(GatherIndex);

impl Fused<1> for Gather {
    const NAME: &'static str = "gather";

    fn forward(&self, [table]: [View<'_>; 1]) -> Result<(Vec<f32>, Vec<usize>)> {
        let &[_, d] = table.dims else { bail!("gather: expected [n, d], found {:?}", table.dims) };
        let mut out = vec![0.0; self.0.count() * d];
        out.par_chunks_mut(d.max(1)).zip(self.0.item_of()).with_min_len(64).for_each(|(out, &row)| {
            out.copy_from_slice(&table.data[row as usize * d..][..d]);
        });
        Ok((out, vec![self.0.count(), d]))
    }

    fn backward(&self, [table]: [View<'_>; 1], _: &[f32], gradient: &[f32]) -> Result<Gradients<1>> {
        Ok([Some(scatter(&self.0, gradient, table.dims[1]))])
    }
}

/// For every row of the table, the sum of its uses' rows of `gradient` `[uses, d]`.
pub(super) fn scatter(index: &GatherIndex, gradient: &[f32], d: usize) -> Vec<f32> {
    let mut out = vec![0.0; index.items() * d];
    out.par_chunks_mut(d.max(1)).enumerate().with_min_len(16).for_each(|(row, out)| {
        for &occurrence in index.of(row) {
            accumulate(out, &gradient[occurrence as usize * d..][..d]);
        }
    });
    out
}
