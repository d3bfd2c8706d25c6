//! l_j = log of the sum over columns i of exp(scale a_j . b_i), computed in blocks of the matrix; cross-entropy with targets t subtracts
//! scale a_j . b_t. If the columns are a sample, a shift is added to all logits of a row except that of its target.
//!
//! Forward keeps a running maximum and sum per row. Backward computes each block of logits again: with p_ji = exp(scale a_j . b_i - l_j)
//! dl_j, less dl_j at the target, da = scale p b and db = scale p^T a. Shards of columns own their part of db; da is the ordered sum of the
//! shards' parts.

use candle_core::{Result, Tensor, bail};
use multiversion::multiversion;
use rayon::prelude::*;

use super::{Fused, Gradients, View, apply2, ordered_sum};
use crate::kernel::{Mat, dot_as_product, exp, matmul, transpose};
use crate::scratch::Scratch;
use crate::{FalseNegatives, Mask};

/// The rows and columns of a block: 128 x 512 logits are 256 KiB.
pub(super) const ROWS: usize = 128;
pub(super) const COLUMNS: usize = 512;

/// The largest number of shards of columns in backward, each of which holds a whole da.
const SHARDS: usize = 16;

pub(crate) fn row_logsumexp(a: &Tensor, b: &Tensor, scale: f32, mask: &Mask) -> Result<Tensor> {
    apply2(RowLogSumExp { scale, mask: mask.clone(), targets: Vec::new(), shifts: Vec::new() }, a, b)
}

pub(crate) fn cross_entropy(a: &Tensor, b: &Tensor, targets: &[u32], scale: f32) -> Result<Tensor> {
    let columns = b.dim(0)?;
    if let Some(target) = targets.iter().find(|&&target| target as usize >= columns) {
        bail!("cross_entropy: target {target} of {columns}");
    }
    apply2(RowLogSumExp { scale, mask: Mask::None, targets: targets.to_vec(), shifts: Vec::new() }, a, b)
}

pub(crate) fn sampled_cross_entropy(
    a: &Tensor,
    b: &Tensor,
    targets: &[u32],
    shifts: &[f32],
    scale: f32,
) -> Result<Tensor> {
    let columns = b.dim(0)?;
    if let Some(target) = targets.iter().find(|&&target| target as usize >= columns) {
        bail!("sampled_cross_entropy: target {target} of {columns}");
    }
    if shifts.len() != columns {
        bail!("sampled_cross_entropy: {} shifts of {columns} columns", shifts.len());
    }
    // Logits are scaled after the shift is added.
    let shifts = shifts.iter().map(|shift| shift / scale).collect();
    apply2(RowLogSumExp { scale, mask: Mask::None, targets: targets.to_vec(), shifts }, a, b)
}

struct RowLogSumExp {
    scale: f32,
    mask: Mask,
    /// The column of each row whose logit is subtracted; empty if none is.
    targets: Vec<u32>,
    /// The shift of each column's logits, divided by the scale. It does not apply to the row whose target the column is. Empty without
    /// shifts.
    shifts: Vec<f32>,
}

impl RowLogSumExp {
    /// The logit of row j's target, or 0 without targets. It is computed from the same values as the target's logit in its block, so that
    /// their rounding cancels.
    fn hit(&self, j: usize, a: &[f32], b: &[f32], d: usize) -> f32 {
        self.targets.get(j).map_or(0.0, |&target| {
            let target = target as usize;
            let columns = COLUMNS.min(b.len() / d - target / COLUMNS * COLUMNS);
            self.scale * dot_as_product(&a[j * d..][..d], &b[target * d..][..d], columns)
        })
    }

    /// Subtracts the gradient of the rows' targets from a block of weights of `columns` columns. The weight of a row that is sure of its
    /// target is then 0 in any precision.
    fn subtract_targets(&self, weights: &mut [f32], columns: usize, start: BlockStart, dl: &[f32]) {
        let targets = self.targets.iter().skip(start.row);
        for ((weights, &target), &dl) in weights.chunks_exact_mut(columns).zip(targets).zip(dl) {
            let at = (target as usize).checked_sub(start.column);
            if let Some(weight) = at.and_then(|at| weights.get_mut(at)) {
                *weight -= dl * self.scale;
            }
        }
    }

    /// Shifts a block of logits of `columns` columns.
    fn shift_block(&self, logits: &mut [f32], columns: usize, start: BlockStart) {
        if self.shifts.is_empty() {
            return;
        }
        let shifts = &self.shifts[start.column..][..columns];
        for (logits, &target) in logits.chunks_exact_mut(columns).zip(&self.targets[start.row..]) {
            let own = (target as usize).checked_sub(start.column).filter(|&at| at < columns);
            let kept = own.map(|at| logits[at]);
            logits.iter_mut().zip(shifts).for_each(|(x, shift)| *x += shift);
            if let (Some(at), Some(kept)) = (own, kept) {
                logits[at] = kept;
            }
        }
    }
}

/// The row and the column of a block's first logit.
#[derive(Clone, Copy)]
pub(super) struct BlockStart {
    pub(super) row: usize,
    pub(super) column: usize,
}

/// Sets the masked entries of a row of logits to `left_out`, or to `zeroed` if the mask sets them to 0. The loop is written so that the
/// comparison of groups vectorises; the row's own column is restored afterwards.
#[inline(always)]
fn apply_mask(
    logits: &mut [f32],
    mask: &Mask,
    BlockStart { row, column: first }: BlockStart,
    left_out: f32,
    zeroed: f32,
) {
    let Mask::FalseNegatives { groups, false_negatives, diagonal, first_row } = mask else { return };
    let row = row + first_row;
    let own = row.checked_sub(first).filter(|&at| at < logits.len());
    let kept = own.map(|at| logits[at]);
    let masked = match false_negatives {
        FalseNegatives::Exclude => Some(left_out),
        FalseNegatives::ZeroLogit => Some(zeroed),
        FalseNegatives::Keep => None,
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
    start: BlockStart,
    state: &mut [(f32, f32)],
) {
    for (i, (logits, (top, total))) in logits.chunks_exact_mut(columns).zip(state).enumerate() {
        logits.iter_mut().for_each(|x| *x *= scale);
        apply_mask(logits, mask, BlockStart { row: start.row + i, ..start }, f32::NEG_INFINITY, 0.0);
        let block_top = crate::kernel::max(logits);
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
fn weight_block(logits: &mut [f32], columns: usize, scale: f32, mask: &Mask, start: BlockStart, l: &[f32], dl: &[f32]) {
    for (i, (logits, (&l, &dl))) in logits.chunks_exact_mut(columns).zip(l.iter().zip(dl)).enumerate() {
        // A row without columns has l = -inf and no gradient.
        let (l, dl) = if l == f32::NEG_INFINITY { (0.0, 0.0) } else { (l, dl * scale) };
        logits.iter_mut().for_each(|x| *x = exp(*x * scale - l) * dl);
        // A logit that the mask set to 0 is a constant without a gradient, like one that is left out.
        apply_mask(logits, mask, BlockStart { row: start.row + i, ..start }, 0.0, 0.0);
    }
}

/// Blocks of columns, each transposed to `[d, columns]`.
pub(super) fn transposed_blocks(b: &[f32], d: usize) -> Scratch {
    let mut transposed = Scratch::take(b.len());
    let blocks = transposed.par_chunks_mut(COLUMNS * d).zip(b.par_chunks(COLUMNS * d));
    blocks.for_each(|(to, from)| transpose(to, from, d));
    transposed
}

impl Fused<2> for RowLogSumExp {
    const NAME: &'static str = "row_logsumexp";

    fn forward(&self, [a, b]: [View<'_>; 2]) -> Result<(Vec<f32>, Vec<usize>)> {
        let (&[n, d], &[m, d2]) = (a.dims, b.dims) else {
            bail!("row_logsumexp: expected two matrices, found {:?} and {:?}", a.dims, b.dims)
        };
        let fits = match &self.mask {
            Mask::None => true,
            Mask::FalseNegatives { groups, first_row, .. } => groups.len() == m && first_row + n <= m,
        };
        if d != d2 || d == 0 || !fits || !(self.targets.is_empty() || self.targets.len() == n) {
            bail!("row_logsumexp: {:?} and {:?} do not fit each other and the mask", a.dims, b.dims);
        }
        let transposed = transposed_blocks(b.data, d);
        let mut out = vec![0.0; n];
        out.par_chunks_mut(ROWS).enumerate().for_each(|(shard, out)| {
            let rows = out.len();
            let a = Mat::new(&a.data[shard * ROWS * d..][..rows * d], rows, d);
            let mut logits = Scratch::take(rows * COLUMNS);
            let mut state = vec![(f32::NEG_INFINITY, 0.0); rows];
            for (block, b) in transposed.chunks(COLUMNS * d).enumerate() {
                let columns = b.len() / d;
                let logits = &mut logits[..rows * columns];
                matmul(logits, a, Mat::new(b, d, columns), false);
                let start = BlockStart { row: shard * ROWS, column: block * COLUMNS };
                self.shift_block(logits, columns, start);
                gather_block(logits, columns, self.scale, &self.mask, start, &mut state);
            }
            out.iter_mut().zip(state).for_each(|(out, (top, total))| *out = top + total.ln());
        });
        out.iter_mut().enumerate().for_each(|(j, out)| *out -= self.hit(j, a.data, b.data, d));
        Ok((out, vec![n]))
    }

    fn backward(&self, [a, b]: [View<'_>; 2], result: &[f32], gradient: &[f32]) -> Result<Gradients<2>> {
        let sums: Vec<f32> =
            result.iter().enumerate().map(|(j, l)| l + self.hit(j, a.data, b.data, a.dims[1])).collect();
        Ok(product_gradients(a, b, |logits, columns, start| {
            let rows = start.row..start.row + logits.len() / columns;
            let (l, dl) = (&sums[rows.clone()], &gradient[rows]);
            self.shift_block(logits, columns, start);
            weight_block(logits, columns, self.scale, &self.mask, start, l, dl);
            self.subtract_targets(logits, columns, start, dl);
        }))
    }
}

/// The gradients of a function of the products of all rows of `a` `[n, d]` with all rows of `b` `[m, d]`. `weigh` turns the products of a
/// block, with its number of columns and its first row and column, into their gradients.
pub(super) fn product_gradients(
    a: View<'_>,
    b: View<'_>,
    weigh: impl Fn(&mut [f32], usize, BlockStart) + Sync,
) -> Gradients<2> {
    let (n, d, m) = (a.dims[0], a.dims[1], b.dims[0]);
    // A shard has whole blocks, so the division depends on the number of columns alone.
    let shard_columns = m.div_ceil(COLUMNS).div_ceil(SHARDS).max(1) * COLUMNS;
    let transposed = transposed_blocks(b.data, d);
    let mut db = vec![0.0; b.data.len()];
    let parts: Vec<Scratch> = db
        .par_chunks_mut(shard_columns * d)
        .enumerate()
        .map(|(shard, db)| {
            let mut da = Scratch::zeros(n * d);
            let mut logits = Scratch::take(ROWS * COLUMNS);
            for (block, db) in db.chunks_mut(COLUMNS * d).enumerate() {
                let columns = db.len() / d;
                let first = shard * shard_columns + block * COLUMNS;
                let b = Mat::new(&b.data[first * d..][..columns * d], columns, d);
                let transposed = Mat::new(&transposed[first * d..][..columns * d], d, columns);
                for row in (0..n).step_by(ROWS) {
                    let rows = ROWS.min(n - row);
                    let a = Mat::new(&a.data[row * d..][..rows * d], rows, d);
                    let logits = &mut logits[..rows * columns];
                    matmul(logits, a, transposed, false);
                    weigh(logits, columns, BlockStart { row, column: first });
                    let p = Mat::new(logits, rows, columns);
                    matmul(&mut da[row * d..(row + rows) * d], p, b, true);
                    matmul(db, p.t(), a, true);
                }
            }
            da
        })
        .collect();
    let da = ordered_sum(&parts.iter().map(|part| &part[..]).collect::<Vec<_>>(), n * d);
    [Some(da), Some(db)]
}
