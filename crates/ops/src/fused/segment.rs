//! Operators on the segments of packed tokens: a softmax over the tokens of each sequence, and products of the values of tokens with the
//! values of their sequence.
//!
//! Every sequence is computed by a single task, so results do not depend on the number of threads. With S = W^T X, D = X V^T and M = W V
//! for each sequence, the backward pass of each product consists of the other two.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::{Fused, Gradients, View, apply1, apply2, cut};
use crate::PackedOffsets;
use crate::kernel::{Mat, exp, matmul};

/// The approximate number of tokens in a parallel piece.
const TOKENS: usize = 1024;

pub(crate) fn segment_softmax(x: &Tensor, offsets: &PackedOffsets) -> Result<Tensor> {
    apply1(Softmax(offsets.clone()), x)
}

pub(crate) fn segment_sum(weights: &Tensor, x: &Tensor, offsets: &PackedOffsets) -> Result<Tensor> {
    apply2(Product { kind: Kind::Sum, offsets: offsets.clone() }, weights, x)
}

pub(crate) fn segment_dot(x: &Tensor, vectors: &Tensor, offsets: &PackedOffsets) -> Result<Tensor> {
    apply2(Product { kind: Kind::Dot, offsets: offsets.clone() }, x, vectors)
}

pub(crate) fn segment_mix(weights: &Tensor, vectors: &Tensor, offsets: &PackedOffsets) -> Result<Tensor> {
    apply2(Product { kind: Kind::Mix, offsets: offsets.clone() }, weights, vectors)
}

struct Softmax(PackedOffsets);

impl Softmax {
    /// Calls `work` with the parts of every sequence, `[tokens, k]` each, of two inputs and of the result.
    fn by_sequence(
        &self,
        a: &[f32],
        b: &[f32],
        k: usize,
        work: impl Fn(&[f32], &[f32], &mut [f32]) + Sync,
    ) -> Vec<f32> {
        let mut out = vec![0.0; a.len()];
        let shards = self.0.shards(TOKENS);
        let tokens = |s: &std::ops::Range<usize>| self.0.range(s.start).start..self.0.range(s.end - 1).end;
        let outs = cut(&mut out, shards.iter().map(|s| tokens(s).len()), k);
        outs.into_par_iter().zip(&shards).for_each(|(mut out, shard)| {
            for sequence in shard.clone() {
                let range = self.0.range(sequence);
                let (own, rest) = std::mem::take(&mut out).split_at_mut(range.len() * k);
                out = rest;
                let part = range.start * k..range.end * k;
                work(&a[part.clone()], &b[part], own);
            }
        });
        out
    }
}

impl Fused<1> for Softmax {
    const NAME: &'static str = "segment_softmax";

    fn forward(&self, [x]: [View<'_>; 1]) -> Result<(Vec<f32>, Vec<usize>)> {
        let &[t, k] = x.dims else { bail!("segment_softmax: expected [t, k], found {:?}", x.dims) };
        if t != self.0.tokens() || k == 0 {
            bail!("segment_softmax: {:?} does not fit {} tokens", x.dims, self.0.tokens());
        }
        let y = self.by_sequence(x.data, x.data, k, |x, _, y| {
            for column in 0..k {
                let top = x.iter().skip(column).step_by(k).copied().fold(f32::NEG_INFINITY, f32::max);
                let mut total = 0.0;
                for (y, x) in y.iter_mut().skip(column).step_by(k).zip(x.iter().skip(column).step_by(k)) {
                    *y = exp(x - top);
                    total += *y;
                }
                y.iter_mut().skip(column).step_by(k).for_each(|y| *y /= total);
            }
        });
        Ok((y, x.dims.to_vec()))
    }

    /// dx = y (dy - sum over the sequence of y dy).
    fn backward(&self, [x]: [View<'_>; 1], result: &[f32], gradient: &[f32]) -> Result<Gradients<1>> {
        let k = x.dims[1];
        let dx = self.by_sequence(result, gradient, k, |y, dy, dx| {
            for column in 0..k {
                let pairs = || y.iter().zip(dy).skip(column).step_by(k);
                let along: f32 = pairs().map(|(y, dy)| y * dy).sum();
                let dx = dx.iter_mut().skip(column).step_by(k);
                dx.zip(pairs()).for_each(|(dx, (y, dy))| *dx = y * (dy - along));
            }
        });
        Ok([Some(dx)])
    }
}

#[derive(Clone, Copy)]
enum Kind {
    /// W `[tokens, k]`, X `[tokens, d]` to W^T X, `[k, d]` per sequence.
    Sum,
    /// X `[tokens, d]`, V `[k, d]` per sequence, to X V^T, `[tokens, k]`.
    Dot,
    /// W `[tokens, k]`, V `[k, d]` per sequence, to W V, `[tokens, d]`.
    Mix,
}

struct Product {
    kind: Kind,
    offsets: PackedOffsets,
}

impl Product {
    /// Computes the product `kind` of `a` and `b`, with k vectors of width d per sequence.
    fn multiply(&self, kind: Kind, a: &[f32], b: &[f32], k: usize, d: usize) -> Vec<f32> {
        let offsets = &self.offsets;
        let (of_tokens, length) = match kind {
            Kind::Sum => (None, offsets.count() * k * d),
            Kind::Dot => (Some(k), offsets.tokens() * k),
            Kind::Mix => (Some(d), offsets.tokens() * d),
        };
        let mut out = vec![0.0; length];
        let shards = offsets.shards(TOKENS);
        let rows = |sequence: usize| offsets.range(sequence).len();
        let size = |sequence: usize| of_tokens.map_or(k * d, |width| rows(sequence) * width);
        let outs = cut(&mut out, shards.iter().map(|shard| shard.clone().map(size).sum()), 1);
        outs.into_par_iter().zip(&shards).for_each(|(mut out, shard)| {
            for sequence in shard.clone() {
                let (own, rest) = std::mem::take(&mut out).split_at_mut(size(sequence));
                out = rest;
                let range = offsets.range(sequence);
                let tokens = |width: usize| range.start * width..range.end * width;
                let (n, sequence) = (range.len(), sequence * k * d..(sequence + 1) * k * d);
                match kind {
                    Kind::Sum => {
                        let (w, x) = (&a[tokens(k)], &b[tokens(d)]);
                        matmul(own, Mat::new(w, n, k).t(), Mat::new(x, n, d), false);
                    }
                    Kind::Dot => {
                        let (x, v) = (&a[tokens(d)], &b[sequence]);
                        matmul(own, Mat::new(x, n, d), Mat::new(v, k, d).t(), false);
                    }
                    Kind::Mix => {
                        let (w, v) = (&a[tokens(k)], &b[sequence]);
                        matmul(own, Mat::new(w, n, k), Mat::new(v, k, d), false);
                    }
                }
            }
        });
        out
    }

    /// Returns k and d.
    fn sizes(&self, a: &View<'_>, b: &View<'_>) -> Result<(usize, usize)> {
        let (tokens, sequences) = (self.offsets.tokens(), self.offsets.count());
        let (&[rows, first], &[others, second]) = (a.dims, b.dims) else {
            bail!("segment product: expected two matrices, found {:?} and {:?}", a.dims, b.dims)
        };
        let per_sequence = others / sequences.max(1);
        let whole = sequences * per_sequence == others;
        let (fits, k, d) = match self.kind {
            Kind::Sum => (others == tokens, first, second),
            Kind::Dot => (whole && first == second, per_sequence, first),
            Kind::Mix => (whole && first == per_sequence, first, second),
        };
        if rows != tokens || !fits || k * d == 0 {
            bail!("segment product: {:?} and {:?} do not fit {tokens} tokens of {sequences} sequences", a.dims, b.dims);
        }
        Ok((k, d))
    }
}

impl Fused<2> for Product {
    const NAME: &'static str = "segment_product";

    fn forward(&self, [a, b]: [View<'_>; 2]) -> Result<(Vec<f32>, Vec<usize>)> {
        let (k, d) = self.sizes(&a, &b)?;
        let dims = match self.kind {
            Kind::Sum => vec![self.offsets.count() * k, d],
            Kind::Dot => vec![self.offsets.tokens(), k],
            Kind::Mix => vec![self.offsets.tokens(), d],
        };
        Ok((self.multiply(self.kind, a.data, b.data, k, d), dims))
    }

    fn backward(&self, [a, b]: [View<'_>; 2], _: &[f32], gradient: &[f32]) -> Result<Gradients<2>> {
        let (k, d) = self.sizes(&a, &b)?;
        let multiply = |kind, first: &[f32], second: &[f32]| Some(self.multiply(kind, first, second, k, d));
        Ok(match self.kind {
            Kind::Sum => [multiply(Kind::Dot, b.data, gradient), multiply(Kind::Mix, a.data, gradient)],
            Kind::Dot => [multiply(Kind::Mix, gradient, b.data), multiply(Kind::Sum, gradient, a.data)],
            Kind::Mix => [multiply(Kind::Dot, gradient, b.data), multiply(Kind::Sum, a.data, gradient)],
        })
    }
}
