//! The input of the transformer: Dropout(LayerNorm(z + id + position)), gathered token by token.

use candle_core::{Result, Tensor, bail};
use multiversion::multiversion;
use rayon::prelude::*;

use super::elementwise::scatter;
use super::norm::{Norm, NormGradients, drop_all, norm_rows, norm_rows_backward};
use super::{Fused, Gradients, View, apply2, apply3, ordered_sum};
use crate::layout::Positions;
use crate::scratch::Scratch;
use crate::{Dropout, GatherIndex, Rows};

/// The number of tokens in a shard.
const TOKENS: usize = 512;

pub(crate) fn sequence_input(
    z: Rows<'_>,
    ids: Option<Rows<'_>>,
    positions: Rows<'_>,
    dropout: Dropout,
) -> Result<Tensor> {
    let index = |Rows { table, rows }: Rows<'_>| -> Result<GatherIndex> {
        let n = table.dim(0)?;
        match rows.iter().find(|&&row| row as usize >= n) {
            Some(row) => bail!("sequence_input: row {row} of {n}"),
            None => Ok(GatherIndex::new(rows.to_vec(), n)),
        }
    };
    let input = Input { z: index(z)?, positions: positions.rows.to_vec(), dropout };
    match ids {
        Some(ids) => apply3(WithIds { input, ids: index(ids)? }, z.table, positions.table, ids.table),
        None => apply2(input, z.table, positions.table),
    }
}

struct Input {
    z: GatherIndex,
    /// The position of each token in its sequence.
    positions: Vec<u32>,
    dropout: Dropout,
}

struct WithIds {
    input: Input,
    ids: GatherIndex,
}

#[multiversion(targets("x86_64+avx512f+avx512dq+avx512bw+avx512vl+fma", "x86_64+avx2+fma"))]
fn add_row(v: &mut [f32], row: &[f32]) {
    v.iter_mut().zip(row).for_each(|(v, x)| *v += x);
}

/// A table, and the row that each token takes from it.
type TableIndex<'a> = (&'a [f32], &'a GatherIndex);

impl Input {
    fn sums(&self, first: usize, v: &mut [f32], z: &[f32], ids: Option<TableIndex<'_>>, positions: &[f32], d: usize) {
        for (i, v) in v.chunks_exact_mut(d).enumerate() {
            let token = first + i;
            let row = |table: &[f32], row: u32| row as usize * d..(row as usize * d + d).min(table.len());
            v.copy_from_slice(&z[row(z, self.z.item_of()[token])]);
            if let Some((table, ids)) = ids {
                add_row(v, &table[row(table, ids.item_of()[token])]);
            }
            add_row(v, &positions[row(positions, self.positions[token])]);
        }
    }

    fn forward(
        &self,
        z: View<'_>,
        packed: View<'_>,
        ids: Option<(View<'_>, &GatherIndex)>,
    ) -> Result<(Vec<f32>, Vec<usize>)> {
        let (&[_, d], &[rows, d2]) = (z.dims, packed.dims) else {
            bail!("sequence_input: expected two matrices, found {:?} and {:?}", z.dims, packed.dims)
        };
        let last = self.positions.iter().copied().max().unwrap_or(0) as usize;
        let one_width = d == d2 && ids.as_ref().is_none_or(|(ids, _)| ids.dims[1] == d);
        if !one_width || rows < 3 || last + 2 >= rows || self.positions.len() != self.z.count() {
            bail!("sequence_input: {:?} and {:?} do not fit each other and position {last}", z.dims, packed.dims);
        }
        let Positions { table: positions, norm_weight: weight, norm_bias: bias } = Positions::of(packed.data, d);
        let norm = Norm { weight, bias };
        let ids = ids.as_ref().map(|(ids, index)| (ids.data, *index));
        let mut y = vec![0.0; self.z.count() * d];
        y.par_chunks_mut(TOKENS * d).enumerate().for_each(|(shard, y)| {
            let (mut v, mut inverse) = (Scratch::take(y.len()), Scratch::take(y.len() / d));
            self.sums(shard * TOKENS, &mut v, z.data, ids, positions, d);
            norm_rows(&mut v, &mut inverse, y, norm);
            drop_all(y, shard * TOKENS * d, self.dropout);
        });
        Ok((y, vec![self.z.count(), d]))
    }

    /// The gradients of z, of the packed positions, and of the ids.
    fn backward(
        &self,
        z: &[f32],
        packed: &[f32],
        ids: Option<TableIndex<'_>>,
        gradient: &[f32],
        d: usize,
    ) -> (Vec<f32>, Vec<f32>, Option<Vec<f32>>) {
        let Positions { table: positions, norm_weight: weight, norm_bias: bias } = Positions::of(packed, d);
        let norm = Norm { weight, bias };
        let mut dv = Scratch::take(gradient.len());
        let parts: Vec<Vec<f32>> = dv
            .par_chunks_mut(TOKENS * d)
            .enumerate()
            .map(|(shard, dv)| {
                let first = shard * TOKENS;
                let (mut n, mut y) = (Scratch::take(dv.len()), Scratch::take(dv.len()));
                let mut inverse = Scratch::take(dv.len() / d);
                self.sums(first, &mut n, z, ids, positions, d);
                norm_rows(&mut n, &mut inverse, &mut y, norm);
                dv.copy_from_slice(&gradient[first * d..first * d + dv.len()]);
                drop_all(dv, first * d, self.dropout);
                let mut sums = vec![0.0; 2 * d];
                let (dw, db) = sums.split_at_mut(d);
                norm_rows_backward(dv, &n, &inverse, norm.weight, NormGradients { weight: dw, bias: db });
                sums
            })
            .collect();
        let mut d_packed = scatter(&GatherIndex::new(self.positions.clone(), positions.len() / d), &dv, d);
        d_packed.extend(ordered_sum(&parts.iter().map(Vec::as_slice).collect::<Vec<_>>(), 2 * d));
        (scatter(&self.z, &dv, d), d_packed, ids.map(|(_, ids)| scatter(ids, &dv, d)))
    }
}

impl Fused<2> for Input {
    const NAME: &'static str = "sequence_input";

    fn forward(&self, [z, packed]: [View<'_>; 2]) -> Result<(Vec<f32>, Vec<usize>)> {
        self.forward(z, packed, None)
    }

    fn backward(&self, [z, packed]: [View<'_>; 2], _: &[f32], gradient: &[f32]) -> Result<Gradients<2>> {
        let (dz, d_packed, _) = self.backward(z.data, packed.data, None, gradient, z.dims[1]);
        Ok([Some(dz), Some(d_packed)])
    }
}

impl Fused<3> for WithIds {
    const NAME: &'static str = "sequence_input";

    fn forward(&self, [z, packed, ids]: [View<'_>; 3]) -> Result<(Vec<f32>, Vec<usize>)> {
        self.input.forward(z, packed, Some((ids, &self.ids)))
    }

    fn backward(&self, [z, packed, ids]: [View<'_>; 3], _: &[f32], gradient: &[f32]) -> Result<Gradients<3>> {
        let ids = Some((ids.data, &self.ids));
        let (dz, d_packed, d_ids) = self.input.backward(z.data, packed.data, ids, gradient, z.dims[1]);
        Ok([Some(dz), Some(d_packed), d_ids])
    }
}
