//! l_j = log of the sum over columns i of exp(scale a_j . b_i), by blocks of the matrix.
//!
//! Forward keeps a running maximum and sum a row. Backward computes the block of logits again: with
//! p_ji = exp(scale a_j . b_i - l_j) dl_j, da = scale p b and db = scale p^T a. Shards of columns own their part of db; da is
//! the ordered sum of the shards' parts.

use candle_core::{Result, Tensor, bail};
use multiversion::multiversion;
use rayon::prelude::*;

use super::{Fused, Gradients, View, apply2, ordered_sum};
use crate::kernel::{Mat, exp, matmul};
use crate::{Mask, SameGroup};

/// Rows and columns of a block: 64 x 512 logits are 128 KiB.
const ROWS: usize = 64;
const COLUMNS: usize = 512;

/// At most this many shards of columns in backward, because each holds a whole da.
const SHARDS: usize = 16;

pub(crate) fn row_logsumexp(a: &Tensor, b: &Tensor, scale: f32, mask: &Mask) -> Result<Tensor> {
    apply2(RowLogSumExp { scale, mask: mask.clone() }, a, b)
}

struct RowLogSumExp {
    scale: f32,
    mask: Mask,
}

/// Sets the masked entries of a row of logits to `left_out`, or to `zeroed` where the mask says 0. Written so that the
/// comparison of groups vectorises; the row's own column is mended after.
#[inline(always)]
fn apply_mask(logits: &mut [f32], mask: &Mask, (row, first): (usize, usize), left_out: f32, zeroed: f32) {
    let Mask::Groups { groups, same, diagonal } = mask else { return };
    let own = row.checked_sub(first).filter(|&at| at < logits.len());
    let kept = own.map(|at| logits[at]);
    let masked = match same {
        SameGroup::LeaveOut => Some(left_out),
        SameGroup::Zero => Some(zeroed),
        SameGroup::Keep => None,
    };
    if let Some(masked) = masked {
        let group = groups[row];
        for (x, &other) in logits.iter_mut().zip(&groups[first..]) {
            *x = if other == group { masked } else { *x };
        }
    }
    if let (Some(at), Some(kept)) = (own, kept) {
        logits[at] = if *diagonal { kept } else { left_out };
    }
}

#[multiversion(targets("x86_64+avx512f+avx512dq+avx512bw+avx512vl+fma", "x86_64+avx2+fma"))]
fn gather_block(
    logits: &mut [f32],
    columns: usize,
    scale: f32,
    mask: &Mask,
    place: (usize, usize),
    state: &mut [(f32, f32)],
) {
    for (i, (logits, (top, total))) in logits.chunks_exact_mut(columns).zip(state).enumerate() {
        logits.iter_mut().for_each(|x| *x *= scale);
        apply_mask(logits, mask, (place.0 + i, place.1), f32::NEG_INFINITY, 0.0);
        let block_top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        if block_top > *top {
            *total *= exp(*top - block_top);
            *top = block_top;
        }
        if *top > f32::NEG_INFINITY {
            logits.iter_mut().for_each(|x| *x = exp(*x - *top));
            *total += crate::kernel::sum(logits);
        }
    }
}

#[multiversion(targets("x86_64+avx512f+avx512dq+avx512bw+avx512vl+fma", "x86_64+avx2+fma"))]
fn weight_block(
    logits: &mut [f32],
    columns: usize,
    scale: f32,
    mask: &Mask,
    place: (usize, usize),
    l: &[f32],
    dl: &[f32],
) {
    for (i, (logits, (&l, &dl))) in logits.chunks_exact_mut(columns).zip(l.iter().zip(dl)).enumerate() {
        // A row without columns has l = -inf and no gradient.
        let (l, dl) = if l == f32::NEG_INFINITY { (0.0, 0.0) } else { (l, dl * scale) };
        logits.iter_mut().for_each(|x| *x = exp(*x * scale - l) * dl);
        // A logit that the mask set to 0 is a constant: no gradient, like one left out.
        apply_mask(logits, mask, (place.0 + i, place.1), 0.0, 0.0);
    }
}

impl Fused<2> for RowLogSumExp {
    const NAME: &'static str = "row_logsumexp";

    fn forward(&self, [a, b]: [View<'_>; 2]) -> Result<(Vec<f32>, Vec<usize>)> {
        let (&[n, d], &[m, d2]) = (a.dims, b.dims) else {
            bail!("row_logsumexp: expected two matrices, found {:?} and {:?}", a.dims, b.dims)
        };
        let square = match &self.mask {
            Mask::None => true,
            Mask::Groups { groups, .. } => groups.len() == n && n == m,
        };
        if d != d2 || d == 0 || !square {
            bail!("row_logsumexp: {:?} and {:?} do not fit each other and the mask", a.dims, b.dims);
        }
        let mut out = vec![0.0; n];
        out.par_chunks_mut(ROWS).enumerate().for_each(|(shard, out)| {
            let rows = out.len();
            let a = Mat::new(&a.data[shard * ROWS * d..][..rows * d], rows, d);
            let mut logits = vec![0.0; rows * COLUMNS];
            let mut state = vec![(f32::NEG_INFINITY, 0.0); rows];
            for (block, b) in b.data.chunks(COLUMNS * d).enumerate() {
                let columns = b.len() / d;
                let logits = &mut logits[..rows * columns];
                matmul(logits, a, Mat::new(b, columns, d).t(), false);
                gather_block(logits, columns, self.scale, &self.mask, (shard * ROWS, block * COLUMNS), &mut state);
            }
            out.iter_mut().zip(state).for_each(|(out, (top, total))| *out = top + total.ln());
        });
        Ok((out, vec![n]))
    }

    fn backward(&self, [a, b]: [View<'_>; 2], result: &[f32], gradient: &[f32]) -> Result<Gradients<2>> {
        let (n, d, m) = (a.dims[0], a.dims[1], b.dims[0]);
        // Whole blocks a shard, so that the cut depends on the number of columns alone.
        let shard_columns = m.div_ceil(COLUMNS).div_ceil(SHARDS).max(1) * COLUMNS;
        let mut db = vec![0.0; b.data.len()];
        let parts = db
            .par_chunks_mut(shard_columns * d)
            .enumerate()
            .map(|(shard, db)| {
                let mut da = vec![0.0; n * d];
                let mut logits = vec![0.0; ROWS * COLUMNS];
                for (block, db) in db.chunks_mut(COLUMNS * d).enumerate() {
                    let columns = db.len() / d;
                    let first = shard * shard_columns + block * COLUMNS;
                    let b = Mat::new(&b.data[first * d..][..columns * d], columns, d);
                    for row in (0..n).step_by(ROWS) {
                        let rows = ROWS.min(n - row);
                        let a = Mat::new(&a.data[row * d..][..rows * d], rows, d);
                        let logits = &mut logits[..rows * columns];
                        matmul(logits, a, b.t(), false);
                        let (l, dl) = (&result[row..row + rows], &gradient[row..row + rows]);
                        weight_block(logits, columns, self.scale, &self.mask, (row, first), l, dl);
                        let p = Mat::new(logits, rows, columns);
                        matmul(&mut da[row * d..(row + rows) * d], p, b, true);
                        matmul(db, p.t(), a, true);
                    }
                }
                da
            })
            .collect();
        Ok([Some(ordered_sum(parts, n * d)), Some(db)])
    }
}
