//! s_j = sum over columns i of log(1 + exp(a_j . b_i)), computed in blocks of the matrix: the binary cross-entropy of many zero labels.
//!
//! Backward computes each block of logits again: with p_ji = sigmoid(a_j . b_i) ds_j, da = p b and db = p^T a. Shards of columns own their
//! part of db; da is the ordered sum of the shards' parts.

use candle_core::{Result, Tensor, bail};
use multiversion::multiversion;
use rayon::prelude::*;

use super::logsumexp::{product_gradients, transposed_blocks};
use super::{Fused, Gradients, View, apply2};
use crate::kernel::{Mat, exp, matmul, sum};
use crate::scratch::Scratch;

/// The number of rows in a block.
const ROWS: usize = super::logsumexp::ROWS;

/// The number of columns in a block, that of [`transposed_blocks`].
const COLUMNS: usize = super::logsumexp::COLUMNS;

pub(crate) fn row_softplus(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    apply2(RowSoftplus, a, b)
}

/// log(1 + e^x): the larger of x and 0, plus log(1 + y) with y = e^-|x| as 2 atanh(y / (2 + y)), whose series is cut at terms below 5e-10.
#[inline(always)]
fn softplus(x: f32) -> f32 {
    let y = exp(-x.abs());
    let z = y / (2.0 + y);
    let square = z * z;
    let mut p = 1.0 / 15.0;
    p = p * square + 1.0 / 13.0;
    p = p * square + 1.0 / 11.0;
    p = p * square + 1.0 / 9.0;
    p = p * square + 1.0 / 7.0;
    p = p * square + 1.0 / 5.0;
    p = p * square + 1.0 / 3.0;
    p = p * square + 1.0;
    let larger = if x > 0.0 { x } else { 0.0 };
    larger + 2.0 * z * p
}

#[multiversion(targets("x86_64+avx512f+avx512dq+avx512bw+avx512vl+fma", "x86_64+avx2+fma"))]
fn sum_block(logits: &mut [f32], columns: usize, totals: &mut [f64]) {
    for (logits, total) in logits.chunks_exact_mut(columns).zip(totals) {
        for x in logits.iter_mut() {
            *x = softplus(*x);
        }
        *total += f64::from(sum(logits));
    }
}

#[multiversion(targets("x86_64+avx512f+avx512dq+avx512bw+avx512vl+fma", "x86_64+avx2+fma"))]
fn weight_block(logits: &mut [f32], columns: usize, gradient: &[f32]) {
    for (logits, &ds) in logits.chunks_exact_mut(columns).zip(gradient) {
        for x in logits.iter_mut() {
            *x = ds / (1.0 + exp(-*x));
        }
    }
}

struct RowSoftplus;

impl Fused<2> for RowSoftplus {
    const NAME: &'static str = "row_softplus";

    fn forward(&self, [a, b]: [View<'_>; 2]) -> Result<(Vec<f32>, Vec<usize>)> {
        let (n, d) = match (a.dims, b.dims) {
            (&[n, d], &[_, d2]) if d == d2 && d > 0 => (n, d),
            (a, b) => bail!("row_softplus: {a:?} does not fit {b:?}"),
        };
        let transposed = transposed_blocks(b.data, d);
        let mut out = vec![0.0; n];
        out.par_chunks_mut(ROWS).zip(a.data.par_chunks(ROWS * d)).for_each(|(out, a)| {
            let rows = out.len();
            let mut logits = Scratch::take(rows * COLUMNS);
            let mut totals = vec![0.0f64; rows];
            for b in transposed.chunks(COLUMNS * d) {
                let columns = b.len() / d;
                let logits = &mut logits[..rows * columns];
                matmul(logits, Mat::new(a, rows, d), Mat::new(b, d, columns), false);
                sum_block(logits, columns, &mut totals);
            }
            out.iter_mut().zip(totals).for_each(|(out, total)| *out = total as f32);
        });
        Ok((out, vec![n]))
    }

    fn backward(&self, [a, b]: [View<'_>; 2], _: &[f32], gradient: &[f32]) -> Result<Gradients<2>> {
        Ok(product_gradients(a, b, |logits, columns, start| {
            weight_block(logits, columns, &gradient[start.row..start.row + logits.len() / columns]);
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::softplus;

    #[test]
    fn softplus_agrees_with_double_precision() {
        for at in -4000..4000 {
            let x = at as f32 * 0.01;
            let want = f64::from(x).exp().ln_1p();
            assert!((f64::from(softplus(x)) - want).abs() <= 3e-7 * want, "{x}");
        }
    }
}
