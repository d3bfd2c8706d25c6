//! Inner products of a row with some rows of a table, as sampled negatives need them, without a copy of the rows.

use candle_core::{Result, Tensor, bail};
use multiversion::multiversion;
use rayon::prelude::*;

use super::{Fused, Gradients, View, apply2};
use crate::GatherIndex;
use crate::kernel::{add_weighted_rows, dot};

pub(crate) fn picked_dot(a: &Tensor, table: &Tensor, picked: &[u32]) -> Result<Tensor> {
    let n = table.dim(0)?;
    if let Some(row) = picked.iter().find(|&&row| row as usize >= n) {
        bail!("picked_dot: row {row} of {n}");
    }
    apply2(PickedDot(GatherIndex::new(picked.to_vec(), n)), a, table)
}

struct PickedDot(GatherIndex);

#[multiversion(targets("x86_64+avx512f+avx512dq+avx512bw+avx512vl+fma", "x86_64+avx2+fma"))]
fn dots(out: &mut [f32], picked: &[u32], own: &[f32], table: &[f32]) {
    let d = own.len();
    for (out, &row) in out.iter_mut().zip(picked) {
        *out = dot(own, &table[row as usize * d..][..d]);
    }
}

#[multiversion(targets("x86_64+avx512f+avx512dq+avx512bw+avx512vl+fma", "x86_64+avx2+fma"))]
fn weighted(out: &mut [f32], rows: impl Iterator<Item = (usize, f32)> + Clone, table: &[f32]) {
    let d = out.len();
    add_weighted_rows(out, rows.map(|(row, weight)| (weight, &table[row * d..][..d])));
}

impl PickedDot {
    /// The number of picked rows per row of a.
    fn picks(&self, rows: usize) -> usize {
        self.0.count() / rows.max(1)
    }
}

impl Fused<2> for PickedDot {
    const NAME: &'static str = "picked_dot";

    fn forward(&self, [a, table]: [View<'_>; 2]) -> Result<(Vec<f32>, Vec<usize>)> {
        let (n, d) = match (a.dims, table.dims) {
            (&[n, d], &[_, d2]) if d == d2 && d > 0 && self.picks(n) * n == self.0.count() => (n, d),
            (a, table) => bail!("picked_dot: {a:?} and {table:?} do not fit {} picks", self.0.count()),
        };
        let k = self.picks(n);
        let mut out = vec![0.0; self.0.count()];
        let rows = out.par_chunks_mut(k.max(1)).zip(self.0.item_of().par_chunks(k.max(1))).zip(a.data.par_chunks(d));
        rows.with_min_len(16).for_each(|((out, picked), own)| dots(out, picked, own, table.data));
        Ok((out, vec![n, k]))
    }

    fn backward(&self, [a, table]: [View<'_>; 2], _: &[f32], gradient: &[f32]) -> Result<Gradients<2>> {
        let (n, d) = (a.dims[0], a.dims[1]);
        let k = self.picks(n).max(1);
        let (mut da, mut dtable) = (vec![0.0; a.data.len()], vec![0.0; table.data.len()]);
        let rows = da.par_chunks_mut(d).zip(self.0.item_of().par_chunks(k)).zip(gradient.par_chunks(k));
        rows.with_min_len(16).for_each(|((da, picked), dy)| {
            weighted(da, picked.iter().map(|&row| row as usize).zip(dy.iter().copied()), table.data);
        });
        dtable.par_chunks_mut(d).enumerate().with_min_len(16).for_each(|(row, out)| {
            weighted(out, self.0.of(row).iter().map(|&pick| (pick as usize / k, gradient[pick as usize])), a.data);
        });
        Ok([Some(da), Some(dtable)])
    }
}
