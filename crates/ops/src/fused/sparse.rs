//! Products with a sparse matrix, and the propagation of vectors over a graph.
//!
//! Every row of a result is computed by a single task, which sums the row's entries in order, so results do not depend on the number of
//! threads. Backward is the same routine with the transpose.

use candle_core::{Result, Tensor, bail};
use multiversion::multiversion;
use rayon::prelude::*;

use super::{Fused, Gradients, View, apply1};
use crate::SparseMatrix;
use crate::kernel::add_weighted_rows;
use crate::sparse::CompressedRows;

/// The approximate number of entries in a parallel piece.
const ENTRIES: usize = 2048;

pub(crate) fn sparse_product(matrix: &SparseMatrix, x: &Tensor) -> Result<Tensor> {
    apply1(Product(matrix.clone()), x)
}

pub(crate) fn propagate(adjacency: &SparseMatrix, x: &Tensor, layers: usize) -> Result<Tensor> {
    apply1(Propagation { adjacency: adjacency.clone(), layers }, x)
}

/// y += A x for the rows in `rows`.
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512bw+avx512vl+fma", "x86_64+avx2+fma"))]
fn multiply_rows(a: &CompressedRows, rows: std::ops::Range<usize>, x: &[f32], y: &mut [f32], d: usize) {
    for (row, y) in rows.zip(y.chunks_exact_mut(d)) {
        let entries = a.offsets[row]..a.offsets[row + 1];
        let weighed = a.weights[entries.clone()].iter().zip(&a.columns[entries]);
        add_weighted_rows(y, weighed.map(|(&weight, &column)| (weight, &x[column as usize * d..][..d])));
    }
}

/// y += A x.
fn multiply_add(a: &CompressedRows, x: &[f32], y: &mut [f32], d: usize) {
    let mut rest = y;
    let mut pieces = Vec::new();
    for rows in a.shards(ENTRIES) {
        let (piece, after) = std::mem::take(&mut rest).split_at_mut(rows.len() * d);
        pieces.push((rows, piece));
        rest = after;
    }
    pieces.into_par_iter().for_each(|(rows, y)| multiply_rows(a, rows, x, y, d));
}

struct Product(SparseMatrix);

impl Fused<1> for Product {
    const NAME: &'static str = "sparse_product";

    fn forward(&self, [x]: [View<'_>; 1]) -> Result<(Vec<f32>, Vec<usize>)> {
        let &[n, d] = x.dims else { bail!("sparse_product: expected a matrix, found {:?}", x.dims) };
        let rows = self.0.rows();
        if n != self.0.columns() || d == 0 {
            bail!("sparse_product: {} columns, {:?}", self.0.columns(), x.dims);
        }
        let mut y = vec![0.0; rows * d];
        multiply_add(&self.0.by_row, x.data, &mut y, d);
        Ok((y, vec![rows, d]))
    }

    fn backward(&self, [x]: [View<'_>; 1], _: &[f32], gradient: &[f32]) -> Result<Gradients<1>> {
        let d = x.dims[1];
        let mut dx = vec![0.0; x.data.len()];
        multiply_add(&self.0.by_column, gradient, &mut dx, d);
        Ok([Some(dx)])
    }
}

struct Propagation {
    adjacency: SparseMatrix,
    layers: usize,
}

impl Propagation {
    /// (x + A x + ... + A^layers x) / (layers + 1), by Horner's scheme, so that no layer has to be kept.
    fn mean(&self, a: &CompressedRows, x: &[f32], d: usize) -> Vec<f32> {
        let mut sum = x.to_vec();
        for _ in 0..self.layers {
            let mut next = x.to_vec();
            multiply_add(a, &sum, &mut next, d);
            sum = next;
        }
        let share = 1.0 / (self.layers + 1) as f32;
        sum.par_iter_mut().for_each(|value| *value *= share);
        sum
    }
}

impl Fused<1> for Propagation {
    const NAME: &'static str = "propagate";

    fn forward(&self, [x]: [View<'_>; 1]) -> Result<(Vec<f32>, Vec<usize>)> {
        let &[n, d] = x.dims else { bail!("propagate: expected a matrix, found {:?}", x.dims) };
        if n != self.adjacency.columns() || n != self.adjacency.rows() || d == 0 {
            bail!("propagate: {:?} over {} nodes", x.dims, self.adjacency.rows());
        }
        Ok((self.mean(&self.adjacency.by_row, x.data, d), vec![n, d]))
    }

    fn backward(&self, [x]: [View<'_>; 1], _: &[f32], gradient: &[f32]) -> Result<Gradients<1>> {
        Ok([Some(self.mean(&self.adjacency.by_column, gradient, x.dims[1]))])
    }
}
