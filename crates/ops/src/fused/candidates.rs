//! The item matrix of the logits: F + E of every modality, side by side, each of length one if logits are cosines.

use candle_core::{Result, Tensor, bail};
use multiversion::multiversion;
use rayon::prelude::*;

use super::{Fused, Gradients, View, apply1, apply2};
use crate::COSINE_EPS;
use crate::kernel::dot;

/// The minimum number of items in a parallel piece.
const ITEMS: usize = 64;

pub(crate) fn candidates(
    z: &Tensor,
    starts: &[usize],
    items: usize,
    ids: Option<&Tensor>,
    cosine: bool,
) -> Result<Tensor> {
    let joined = Joined { starts: starts.to_vec(), items, cosine };
    match ids {
        Some(ids) => apply2(WithIds(joined), z, ids),
        None => apply1(joined, z),
    }
}

struct Joined {
    /// The row of z of each modality's first item.
    starts: Vec<usize>,
    items: usize,
    cosine: bool,
}

struct WithIds(Joined);

/// y = v / max(|v|, eps) with v = z + id, or y = v without `cosine`; returns |v|.
#[inline(always)]
fn join(y: &mut [f32], z: &[f32], id: Option<&[f32]>, cosine: bool) -> f32 {
    y.copy_from_slice(z);
    if let Some(id) = id {
        y.iter_mut().zip(id).for_each(|(y, id)| *y += id);
    }
    let norm = dot(y, y).sqrt();
    if cosine {
        let scale = 1.0 / norm.max(COSINE_EPS);
        y.iter_mut().for_each(|y| *y *= scale);
    }
    norm
}

#[multiversion(targets("x86_64+avx512f+avx512dq+avx512bw+avx512vl+fma", "x86_64+avx2+fma"))]
fn join_row(y: &mut [f32], z: &[f32], id: Option<&[f32]>, cosine: bool) {
    join(y, z, id, cosine);
}

/// dv = (dy - y (y . dy)) / |v|; a norm that is clamped is a constant, so the second term vanishes. `y` is a buffer for y.
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512bw+avx512vl+fma", "x86_64+avx2+fma"))]
fn join_row_backward(dv: &mut [f32], dy: &[f32], y: &mut [f32], z: &[f32], id: Option<&[f32]>, cosine: bool) {
    let norm = join(y, z, id, cosine);
    dv.copy_from_slice(dy);
    if cosine {
        let along = if norm > COSINE_EPS { dot(y, dy) } else { 0.0 };
        let scale = 1.0 / norm.max(COSINE_EPS);
        dv.iter_mut().zip(y).for_each(|(dv, y)| *dv = (*dv - *y * along) * scale);
    }
}

impl Joined {
    /// Whether the ids have one row per item, or one more row, for padding, before them.
    fn fits_ids(&self, dims: &[usize], d: usize) -> bool {
        dims == [self.items, d] || dims == [self.items + 1, d]
    }

    fn forward(&self, z: View<'_>, ids: Option<View<'_>>) -> Result<(Vec<f32>, Vec<usize>)> {
        let &[rows, d] = z.dims else { bail!("candidates: expected [n, d], found {:?}", z.dims) };
        let fits = self.starts.iter().all(|start| start + self.items <= rows);
        if !fits || d == 0 || ids.as_ref().is_some_and(|ids| !self.fits_ids(ids.dims, d)) {
            bail!("candidates: {} items from {:?} do not fit {:?}", self.items, self.starts, z.dims);
        }
        let width = self.starts.len() * d;
        let mut y = vec![0.0; self.items * width];
        y.par_chunks_mut(width).enumerate().with_min_len(ITEMS).for_each(|(item, y)| {
            for (y, start) in y.chunks_exact_mut(d).zip(&self.starts) {
                let id = ids.as_ref().map(|ids| &ids.data[(ids.dims[0] - self.items + item) * d..][..d]);
                join_row(y, &z.data[(start + item) * d..][..d], id, self.cosine);
            }
        });
        Ok((y, vec![self.items, width]))
    }

    fn backward(&self, z: &View<'_>, ids: Option<&[f32]>, gradient: &[f32]) -> (Vec<f32>, Option<Vec<f32>>) {
        let d = z.dims[1];
        let width = self.starts.len() * d;
        let mut dz = vec![0.0; z.data.len()];
        for (m, start) in self.starts.iter().enumerate() {
            let rows = dz[start * d..(start + self.items) * d].par_chunks_mut(d).enumerate().with_min_len(ITEMS);
            rows.for_each_init(
                || vec![0.0; d],
                |y, (item, dz)| {
                    let id = ids.map(|ids| &ids[ids.len() - (self.items - item) * d..][..d]);
                    let dy = &gradient[item * width + m * d..][..d];
                    join_row_backward(dz, dy, y, &z.data[(start + item) * d..][..d], id, self.cosine);
                },
            );
        }
        let d_ids = ids.map(|ids| {
            let mut d_ids = vec![0.0; ids.len()];
            d_ids[ids.len() - self.items * d..].par_chunks_mut(d).enumerate().with_min_len(ITEMS).for_each(
                |(item, d_id)| {
                    for start in &self.starts {
                        d_id.iter_mut().zip(&dz[(start + item) * d..][..d]).for_each(|(d_id, dz)| *d_id += dz);
                    }
                },
            );
            d_ids
        });
        (dz, d_ids)
    }
}

impl Fused<1> for Joined {
    const NAME: &'static str = "candidates";

    fn forward(&self, [z]: [View<'_>; 1]) -> Result<(Vec<f32>, Vec<usize>)> {
        self.forward(z, None)
    }

    fn backward(&self, [z]: [View<'_>; 1], _: &[f32], gradient: &[f32]) -> Result<Gradients<1>> {
        Ok([Some(self.backward(&z, None, gradient).0)])
    }
}

impl Fused<2> for WithIds {
    const NAME: &'static str = "candidates";

    fn forward(&self, [z, ids]: [View<'_>; 2]) -> Result<(Vec<f32>, Vec<usize>)> {
        self.0.forward(z, Some(ids))
    }

    fn backward(&self, [z, ids]: [View<'_>; 2], _: &[f32], gradient: &[f32]) -> Result<Gradients<2>> {
        let (dz, d_ids) = self.0.backward(&z, Some(ids.data), gradient);
        Ok([Some(dz), d_ids])
    }
}
