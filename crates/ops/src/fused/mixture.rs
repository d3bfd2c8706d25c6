//! The tail of the expert mixture for one use of an item: z = sum over k of g_k (w_k n_k + b_k), where n_k is the standardised
//! Dropout(product_k).
//!
//! With u = Dropout(product_k), s its deviation and c = g_k w_k dz: du = (c - mean(c) - n mean(n c)) / s,
//! dg_k = dz . (w_k n + b_k), dw_k = g_k n dz, db_k = g_k dz.

use multiversion::multiversion;

use super::norm::moments;
use crate::Dropout;
use crate::kernel::{dot, sum};

/// The widest expert: intermediate values are on the stack.
pub(super) const WIDEST: usize = 4096;

/// The width up to which they take little space there.
const NARROW: usize = 256;

/// The LayerNorm weights and biases of all experts, `[o d]` each.
#[derive(Clone, Copy)]
pub(super) struct Norms<'a> {
    pub weights: &'a [f32],
    pub biases: &'a [f32],
}

/// Computes n, the standardised Dropout(product) of one expert, and the factors of the dropout; returns 1/s.
#[inline(always)]
fn standardise(n: &mut [f32], factors: &mut [f32], product: &[f32], first: u32, dropout: Dropout) -> f32 {
    if dropout.is_active() {
        for i in 0..n.len() {
            factors[i] = dropout.factor(first.wrapping_add(i as u32));
            n[i] = product[i] * factors[i];
        }
    } else {
        n.copy_from_slice(product);
    }
    let (_, inverse) = moments(n);
    n.iter_mut().for_each(|n| *n *= inverse);
    inverse
}

#[inline(always)]
fn mix<const ROOM: usize>(
    z: &mut [f32],
    product: &[f32],
    gate: &[f32],
    norms: Norms<'_>,
    first: u32,
    dropout: Dropout,
    d: usize,
) {
    let (mut n, mut factors) = ([0.0; ROOM], [0.0; ROOM]);
    let (n, factors, z) = (&mut n[..d], &mut factors[..d], &mut z[..d]);
    z.fill(0.0);
    for (k, &g) in gate.iter().enumerate() {
        let product = &product[k * d..][..d];
        standardise(n, factors, product, first.wrapping_add((k * d) as u32), dropout);
        let (w, b) = (&norms.weights[k * d..][..d], &norms.biases[k * d..][..d]);
        for i in 0..d {
            z[i] += g * (n[i] * w[i] + b[i]);
        }
    }
}

/// Computes z of one use. The paper's width has its own code path, in which every length is known at compile time.
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512bw+avx512vl+fma", "x86_64+avx2+fma"))]
pub(super) fn mix_use(z: &mut [f32], product: &[f32], gate: &[f32], norms: Norms<'_>, first: u32, dropout: Dropout) {
    match z.len() {
        64 => mix::<64>(z, product, gate, norms, first, dropout, 64),
        d if d <= NARROW => mix::<NARROW>(z, product, gate, norms, first, dropout, d),
        d => mix::<WIDEST>(z, product, gate, norms, first, dropout, d),
    }
}

/// Where a use's gradients are added.
pub(super) struct Totals<'a> {
    /// The gradient of the item's products, `[o d]`.
    pub products: &'a mut [f32],
    /// The gradient of the item's gates, `[o]`.
    pub gate: &'a mut [f32],
    /// The gradients of the LayerNorms' weights and biases, `[o d]` each.
    pub weights: &'a mut [f32],
    pub biases: &'a mut [f32],
}

/// The inputs of one use's mixture.
#[derive(Clone, Copy)]
pub(super) struct UseInputs<'a> {
    /// The item's products, `[o d]`.
    pub product: &'a [f32],
    /// The item's gates, `[o]`.
    pub gate: &'a [f32],
    pub norms: Norms<'a>,
}

#[inline(always)]
fn mix_backward<const ROOM: usize>(
    dz: &[f32],
    UseInputs { product, gate, norms }: UseInputs<'_>,
    totals: &mut Totals<'_>,
    first: u32,
    dropout: Dropout,
    d: usize,
) {
    let (mut n, mut c, mut factors) = ([0.0; ROOM], [0.0; ROOM], [0.0; ROOM]);
    let (n, c, factors, dz) = (&mut n[..d], &mut c[..d], &mut factors[..d], &dz[..d]);
    for (k, &g) in gate.iter().enumerate() {
        let first = first.wrapping_add((k * d) as u32);
        let inverse = standardise(n, factors, &product[k * d..][..d], first, dropout);
        let (w, b) = (&norms.weights[k * d..][..d], &norms.biases[k * d..][..d]);
        let (dw, db) = (&mut totals.weights[k * d..][..d], &mut totals.biases[k * d..][..d]);
        for i in 0..d {
            c[i] = w[i] * dz[i];
            dw[i] += g * n[i] * dz[i];
            db[i] += g * dz[i];
        }
        let along = dot(n, c);
        totals.gate[k] += along + dot(b, dz);
        let (mean, along) = (g * sum(c) / d as f32, g * along / d as f32);
        let du = &mut totals.products[k * d..][..d];
        if dropout.is_active() {
            for i in 0..d {
                du[i] += (g * c[i] - mean - n[i] * along) * inverse * factors[i];
            }
        } else {
            for i in 0..d {
                du[i] += (g * c[i] - mean - n[i] * along) * inverse;
            }
        }
    }
}

/// Adds the gradients of one use to `totals`.
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512bw+avx512vl+fma", "x86_64+avx2+fma"))]
pub(super) fn mix_use_backward(
    dz: &[f32],
    inputs: UseInputs<'_>,
    totals: &mut Totals<'_>,
    first: u32,
    dropout: Dropout,
) {
    match dz.len() {
        64 => mix_backward::<64>(dz, inputs, totals, first, dropout, 64),
        d if d <= NARROW => mix_backward::<NARROW>(dz, inputs, totals, first, dropout, d),
        d => mix_backward::<WIDEST>(dz, inputs, totals, first, dropout, d),
    }
}

/// The softmax of a few values, in place.
pub(super) fn softmax(x: &mut [f32]) {
    let top = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    x.iter_mut().for_each(|x| *x = crate::kernel::exp(*x - top));
    let total: f32 = x.iter().sum();
    x.iter_mut().for_each(|x| *x /= total);
}

/// The gradient of a softmax's argument from that of its result `g`, in place.
pub(super) fn softmax_backward(g: &[f32], dg: &mut [f32]) {
    let along: f32 = g.iter().zip(&*dg).map(|(g, dg)| g * dg).sum();
    dg.iter_mut().zip(g).for_each(|(dg, g)| *dg = g * (*dg - along));
}
