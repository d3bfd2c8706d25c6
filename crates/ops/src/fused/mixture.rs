//! The tail of the expert mixture: z = sum over k of g_k (w_k n_k + b_k), n_k = standardised Dropout(product_k).
//!
//! Forward runs over uses. Backward runs over items, each with all its uses, so that the gradients of products and gates
//! have one writer; those of the LayerNorms are ordered sums over shards of items. With u = Dropout(product_k), s its
//! deviation and c = g_k w_k dz: du = (c - mean(c) - n mean(n c)) / s, dg_k = dz . (w_k n + b_k), dw_k = g_k n dz,
//! db_k = g_k dz.

use candle_core::{Result, Tensor, bail};
use multiversion::multiversion;
use rayon::prelude::*;

use super::norm::moments;
use super::{Fused, Gradients, View, apply3, ordered_sum};
use crate::kernel::{dot, sum};
use crate::{Dropout, Uses};

/// Uses of a forward shard.
const USES: usize = 64;

/// Items of a backward shard.
const ITEMS: usize = 32;

pub(crate) fn mixture(
    products: &Tensor,
    gate: &Tensor,
    norms: &Tensor,
    uses: &Uses,
    dropout: Dropout,
) -> Result<Tensor> {
    apply3(Mixture { uses: uses.clone(), dropout }, products, gate, norms)
}

struct Mixture {
    uses: Uses,
    dropout: Dropout,
}

/// n = standardised Dropout(product) of one expert; gives 1/s.
#[inline(always)]
fn standardise(n: &mut [f32], product: &[f32], first: u32, dropout: Dropout) -> f32 {
    if dropout.is_active() {
        for (i, n) in n.iter_mut().enumerate() {
            *n = product[i] * dropout.factor(first.wrapping_add(i as u32));
        }
    } else {
        n.copy_from_slice(product);
    }
    let (_, inverse) = moments(n);
    n.iter_mut().for_each(|n| *n *= inverse);
    inverse
}

#[multiversion(targets("x86_64+avx512f+avx512dq+avx512bw+avx512vl+fma", "x86_64+avx2+fma"))]
fn mix_use(z: &mut [f32], product: &[f32], gate: &[f32], norms: &[f32], n: &mut [f32], first: u32, dropout: Dropout) {
    let d = z.len();
    let (weights, biases) = norms.split_at(product.len());
    for (k, &g) in gate.iter().enumerate() {
        let part = k * d..(k + 1) * d;
        standardise(n, &product[part.clone()], first.wrapping_add((k * d) as u32), dropout);
        let (w, b) = (&weights[part.clone()], &biases[part]);
        for i in 0..d {
            z[i] += g * (n[i] * w[i] + b[i]);
        }
    }
}

struct Totals<'a> {
    products: &'a mut [f32],
    gate: &'a mut [f32],
    norms: &'a mut [f32],
}

#[multiversion(targets("x86_64+avx512f+avx512dq+avx512bw+avx512vl+fma", "x86_64+avx2+fma"))]
fn mix_use_backward(
    dz: &[f32],
    (product, gate, norms): (&[f32], &[f32], &[f32]),
    totals: &mut Totals<'_>,
    (n, c): (&mut [f32], &mut [f32]),
    first: u32,
    dropout: Dropout,
) {
    let d = dz.len();
    let (weights, biases) = norms.split_at(product.len());
    let (dw_all, db_all) = totals.norms.split_at_mut(product.len());
    for (k, &g) in gate.iter().enumerate() {
        let part = k * d..(k + 1) * d;
        let first = first.wrapping_add((k * d) as u32);
        let inverse = standardise(n, &product[part.clone()], first, dropout);
        let (w, b) = (&weights[part.clone()], &biases[part.clone()]);
        let (dw, db) = (&mut dw_all[part.clone()], &mut db_all[part.clone()]);
        for i in 0..d {
            c[i] = w[i] * dz[i];
            dw[i] += g * n[i] * dz[i];
            db[i] += g * dz[i];
        }
        let along = dot(n, c);
        totals.gate[k] += along + dot(b, dz);
        let (mean, along) = (g * sum(c) / d as f32, g * along / d as f32);
        let du = &mut totals.products[part];
        if dropout.is_active() {
            for i in 0..d {
                let factor = dropout.factor(first.wrapping_add(i as u32));
                du[i] += (g * c[i] - mean - n[i] * along) * inverse * factor;
            }
        } else {
            for i in 0..d {
                du[i] += (g * c[i] - mean - n[i] * along) * inverse;
            }
        }
    }
}

impl Fused<3> for Mixture {
    const NAME: &'static str = "mixture";

    fn forward(&self, [products, gate, norms]: [View<'_>; 3]) -> Result<(Vec<f32>, Vec<usize>)> {
        let (&[items, all], &[items2, experts]) = (products.dims, gate.dims) else {
            bail!("mixture: expected [n, o d] and [n, o], found {:?} and {:?}", products.dims, gate.dims)
        };
        if items != items2 || experts == 0 || all % experts != 0 || norms.dims != [2, all] {
            bail!("mixture: {:?}, {:?} and {:?} do not fit", products.dims, gate.dims, norms.dims);
        }
        let d = all / experts;
        let mut z = vec![0.0; self.uses.count() * d];
        z.par_chunks_mut(USES * d).enumerate().for_each(|(shard, z)| {
            let mut n = vec![0.0; d];
            for (at, z) in z.chunks_exact_mut(d).enumerate() {
                let use_ = shard * USES + at;
                let item = self.uses.item_of()[use_] as usize;
                let (product, gate) = (&products.data[item * all..][..all], &gate.data[item * experts..][..experts]);
                mix_use(z, product, gate, norms.data, &mut n, (use_ * all) as u32, self.dropout);
            }
        });
        Ok((z, vec![self.uses.count(), d]))
    }

    fn backward(&self, [products, gate, norms]: [View<'_>; 3], _: &[f32], gradient: &[f32]) -> Result<Gradients<3>> {
        let (all, experts) = (products.dims[1], gate.dims[1]);
        let d = all / experts;
        let mut d_products = vec![0.0; products.data.len()];
        let mut d_gate = vec![0.0; gate.data.len()];
        let shards = d_products.par_chunks_mut(ITEMS * all).zip(d_gate.par_chunks_mut(ITEMS * experts)).enumerate();
        let parts: Vec<Vec<f32>> = shards
            .map(|(shard, (d_products, d_gate))| {
                let mut d_norms = vec![0.0; 2 * all];
                let (mut n, mut c) = (vec![0.0; d], vec![0.0; d]);
                let items = d_products.chunks_exact_mut(all).zip(d_gate.chunks_exact_mut(experts));
                for (at, (d_product, d_gate)) in items.enumerate() {
                    let item = shard * ITEMS + at;
                    let inputs =
                        (&products.data[item * all..][..all], &gate.data[item * experts..][..experts], norms.data);
                    let mut totals = Totals { products: d_product, gate: d_gate, norms: &mut d_norms };
                    for &use_ in self.uses.of(item) {
                        let dz = &gradient[use_ as usize * d..][..d];
                        let first = (use_ as usize * all) as u32;
                        mix_use_backward(dz, inputs, &mut totals, (&mut n, &mut c), first, self.dropout);
                    }
                }
                d_norms
            })
            .collect();
        Ok([Some(d_products), Some(d_gate), Some(ordered_sum(parts, 2 * all))])
    }
}
