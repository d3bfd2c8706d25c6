//! Attention pooling of one item's constant rows with the folded vector w.
//!
//! alpha = softmax(x_s . w) over the item's rows (and padding rows of zeros, whose score is 0), e = sum of alpha_s x_s.
//! Backward: dw = sum over items and rows of alpha_s (de . x_s - de . e) x_s; padding rows add nothing to the outer sum.

use multiversion::multiversion;

use crate::kernel::{add_scaled, dot, exp};

/// Writes the softmax weights of an item's rows to `alpha`; padding rows enter the denominator.
#[inline(always)]
fn weights(rows: &[f32], w: &[f32], pooling_rows: usize, alpha: &mut Vec<f32>) {
    // A plain loop: the closure of an iterator adaptor would be compiled without the caller's vector instructions.
    alpha.clear();
    for row in rows.chunks_exact(w.len()) {
        alpha.push(dot(row, w));
    }
    let padding = pooling_rows.saturating_sub(alpha.len());
    let floor = if padding > 0 { 0.0 } else { f32::NEG_INFINITY };
    let top = alpha.iter().copied().fold(floor, f32::max);
    alpha.iter_mut().for_each(|a| *a = exp(*a - top));
    let total = alpha.iter().sum::<f32>() + if padding > 0 { padding as f32 * exp(-top) } else { 0.0 };
    alpha.iter_mut().for_each(|a| *a /= total);
}

/// Computes e of one item; zeros without rows.
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512bw+avx512vl+fma", "x86_64+avx2+fma"))]
pub(super) fn pool_item(rows: &[f32], w: &[f32], pooling_rows: usize, alpha: &mut Vec<f32>, e: &mut [f32]) {
    if rows.len() == w.len() && pooling_rows < 2 {
        e.copy_from_slice(rows);
        return;
    }
    e.fill(0.0);
    weights(rows, w, pooling_rows, alpha);
    for (row, &a) in rows.chunks_exact(w.len()).zip(alpha.iter()) {
        add_scaled(e, a, row);
    }
}

/// Whether the item's pooling has a gradient: the weight of a single row is 1, whatever w is.
pub(super) fn learns(rows: usize, pooling_rows: usize) -> bool {
    rows > 1 || (rows == 1 && pooling_rows > 1)
}

/// Adds one item's contribution to dw.
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512bw+avx512vl+fma", "x86_64+avx2+fma"))]
pub(super) fn pool_item_backward(
    rows: &[f32],
    w: &[f32],
    pooling_rows: usize,
    alpha: &mut Vec<f32>,
    e: &[f32],
    de: &[f32],
    dw: &mut [f32],
) {
    weights(rows, w, pooling_rows, alpha);
    let along = dot(de, e);
    for (row, &a) in rows.chunks_exact(w.len()).zip(alpha.iter()) {
        add_scaled(dw, a * (dot(de, row) - along), row);
    }
}
