//! Products of constant rows with every expert's weights, each under its own dropout mask.
//!
//! y_k = (m_k x) W_k; dW_k = (m_k x)^T dy_k. Masks are drawn again in backward. The parts of the shards of rows are summed in order.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::norm::drop_all;
use super::{Fused, Gradients, View, apply1, ordered_sum, with_slices};
use crate::Dropout;
use crate::kernel::{Mat, matmul};
use crate::scratch::Scratch;

/// The number of rows in a block, whose masked copy fits the second-level cache.
const ROWS: usize = 128;

/// The largest number of shards in backward, each of which holds a gradient of all weights.
const SHARDS: usize = 16;

pub(crate) fn expert_products(
    table: &Tensor,
    rows: &[u32],
    weights: &Tensor,
    experts: usize,
    dropout: Dropout,
) -> Result<Tensor> {
    let n = table.dim(0)?;
    if let Some(row) = rows.iter().find(|&&row| row as usize >= n) {
        bail!("expert_products: row {row} of {n}");
    }
    let table = table.detach().contiguous()?;
    apply1(ExpertProducts { table, rows: rows.to_vec(), experts, dropout }, weights)
}

struct ExpertProducts {
    /// The constant table, `[n, d]`.
    table: Tensor,
    rows: Vec<u32>,
    experts: usize,
    dropout: Dropout,
}

impl ExpertProducts {
    /// Returns d and the width of a product.
    fn sizes(&self, weights: &View<'_>) -> Result<(usize, usize)> {
        match (self.table.dims(), weights.dims) {
            (&[_, d], &[rows, width]) if rows == self.experts * d && d * width > 0 => Ok((d, width)),
            (table, weights) => bail!("expert_products: {table:?} does not fit {weights:?}, {} experts", self.experts),
        }
    }

    /// Writes the table's rows `rows`, the first of which is row `first` of the result, under the mask of expert `k` to `out` `[rows, d]`.
    fn masked(&self, table: &[f32], first: usize, rows: &[u32], k: usize, out: &mut [f32]) {
        let d = out.len() / rows.len();
        for (at, (out, &row)) in out.chunks_exact_mut(d).zip(rows).enumerate() {
            out.copy_from_slice(&table[row as usize * d..][..d]);
            drop_all(out, ((first + at) * self.experts + k) * d, self.dropout);
        }
    }
}

impl Fused<1> for ExpertProducts {
    const NAME: &'static str = "expert_products";

    fn forward(&self, [weights]: [View<'_>; 1]) -> Result<(Vec<f32>, Vec<usize>)> {
        let (d, width) = self.sizes(&weights)?;
        let wide = self.experts * width;
        let mut y = vec![0.0; self.rows.len() * wide];
        with_slices([&self.table], |[table]| {
            y.par_chunks_mut(ROWS * wide).zip(self.rows.par_chunks(ROWS)).enumerate().for_each(|(block, (y, rows))| {
                let (mut x, mut product) = (Scratch::take(rows.len() * d), Scratch::take(rows.len() * width));
                for k in 0..self.experts {
                    self.masked(table, block * ROWS, rows, k, &mut x);
                    let weight = Mat::new(&weights.data[k * d * width..][..d * width], d, width);
                    matmul(&mut product, Mat::new(&x, rows.len(), d), weight, false);
                    for (y, product) in y.chunks_exact_mut(wide).zip(product.chunks_exact(width)) {
                        y[k * width..(k + 1) * width].copy_from_slice(product);
                    }
                }
            });
            Ok(())
        })?;
        Ok((y, vec![self.rows.len(), wide]))
    }

    fn backward(&self, [weights]: [View<'_>; 1], _: &[f32], gradient: &[f32]) -> Result<Gradients<1>> {
        let (d, width) = self.sizes(&weights)?;
        let wide = self.experts * width;
        let size = self.rows.len().div_ceil(ROWS).div_ceil(SHARDS).max(1) * ROWS;
        let parts: Vec<Scratch> = with_slices([&self.table], |[table]| {
            let shards = self.rows.par_chunks(size).zip(gradient.par_chunks(size * wide)).enumerate();
            let parts = shards.map(|(shard, (rows, dy))| {
                let mut dw = Scratch::zeros(weights.data.len());
                let mut x = Scratch::take(ROWS * d);
                for (block, (rows, dy)) in rows.chunks(ROWS).zip(dy.chunks(ROWS * wide)).enumerate() {
                    let x = &mut x[..rows.len() * d];
                    for k in 0..self.experts {
                        self.masked(table, shard * size + block * ROWS, rows, k, x);
                        let dy = Mat::strided(&dy[k * width..], rows.len(), width, wide);
                        matmul(&mut dw[k * d * width..][..d * width], Mat::new(x, rows.len(), d).t(), dy, true);
                    }
                }
                dw
            });
            Ok(parts.collect())
        })?;
        let parts: Vec<&[f32]> = parts.iter().map(|part| &part[..]).collect();
        Ok([Some(ordered_sum(&parts, weights.data.len()))])
    }
}
