//! Attention of one packed sequence, head by head, causal or not.
//!
//! With p = softmax(q k^T / sqrt(w)), m the dropout factors and o = (m p) v: dv = (m p)^T do, dp = m (do v^T),
//! ds = p (dp - sum of p dp), dq = ds k / sqrt(w), dk = ds^T q / sqrt(w). Backward computes p again.

use multiversion::multiversion;

use crate::Dropout;
use crate::kernel::{add_scaled_short, dot, exp};
use crate::plain::weight_index;

/// The tokens of one sequence: the number of its first token and its numbers of queries and keys, with the sizes of the layer.
#[derive(Clone, Copy)]
pub(super) struct SequenceRange {
    pub first: usize,
    pub queries: usize,
    pub keys: usize,
    pub d: usize,
    pub heads: usize,
    pub bidirectional: bool,
}

impl SequenceRange {
    /// The number of keys that query `i` sees, and the number of the query's token.
    #[inline(always)]
    fn seen(&self, i: usize) -> (usize, usize) {
        let index = self.keys - self.queries + i;
        (if self.bidirectional { self.keys } else { index + 1 }, self.first + index)
    }
}

/// Computes p of one query.
#[inline(always)]
fn softmax_row(q: &[f32], kv: &[f32], stride: usize, p: &mut [f32], scale: f32) {
    let width = q.len();
    let mut top = f32::NEG_INFINITY;
    for (j, p) in p.iter_mut().enumerate() {
        *p = dot(q, &kv[j * stride..][..width]) * scale;
        top = top.max(*p);
    }
    p.iter_mut().for_each(|p| *p = exp(*p - top));
    let total: f32 = p.iter().sum();
    p.iter_mut().for_each(|p| *p /= total);
}

/// Draws the dropout factors of one query's weights.
#[inline(always)]
fn draw(factors: &mut [f32], dropout: Dropout, token: usize, head: usize, heads: usize) {
    if dropout.is_active() {
        let first = weight_index(token, 0, head, heads);
        factors.iter_mut().enumerate().for_each(|(j, f)| *f = dropout.factor(first.wrapping_add(j as u32)));
    } else {
        factors.fill(1.0);
    }
}

#[inline(always)]
fn forward(
    out: &mut [f32],
    q: &[f32],
    kv: &[f32],
    range: SequenceRange,
    dropout: Dropout,
    work: &mut [f32],
    width: usize,
) {
    let SequenceRange { queries, d, heads, keys, .. } = range;
    let (p, factors) = work.split_at_mut(keys);
    let scale = 1.0 / (width as f32).sqrt();
    for head in 0..heads {
        let (key, value) = (head * width, d + head * width);
        for i in 0..queries {
            let (seen, token) = range.seen(i);
            let (p, factors) = (&mut p[..seen], &mut factors[..seen]);
            softmax_row(&q[i * d + key..][..width], &kv[key..], 2 * d, p, scale);
            draw(factors, dropout, token, head, heads);
            let out = &mut out[i * d + key..][..width];
            out.fill(0.0);
            for j in 0..seen {
                add_scaled_short(out, p[j] * factors[j], &kv[j * 2 * d + value..][..width]);
            }
        }
    }
}

/// Computes attention of one sequence from `q` `[queries, d]` and `kv` `[keys, 2 d]` to `out` `[queries, d]`; `work` has room for three
/// values per key.
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512bw+avx512vl+fma", "x86_64+avx2+fma"))]
pub(super) fn attend(out: &mut [f32], q: &[f32], kv: &[f32], range: SequenceRange, dropout: Dropout, work: &mut [f32]) {
    match range.d / range.heads {
        32 => forward(out, q, kv, range, dropout, work, 32),
        width => forward(out, q, kv, range, dropout, work, width),
    }
}

/// The inputs of the backward pass of one sequence's attention.
pub(super) struct AttentionInputs<'a> {
    /// The queries, `[queries, d]`.
    pub q: &'a [f32],
    /// The keys and values, `[keys, 2 d]`.
    pub kv: &'a [f32],
    /// The gradient of the result, `[queries, d]`.
    pub dout: &'a [f32],
}

/// Where the gradients of one sequence's attention are added.
pub(super) struct AttentionGradients<'a> {
    /// The gradient of the queries, `[queries, d]`.
    pub dq: &'a mut [f32],
    /// The gradient of the keys and values, `[keys, 2 d]`.
    pub dkv: &'a mut [f32],
}

#[inline(always)]
fn backward(
    AttentionGradients { dq, dkv }: AttentionGradients<'_>,
    AttentionInputs { q, kv, dout }: AttentionInputs<'_>,
    range: SequenceRange,
    dropout: Dropout,
    work: &mut [f32],
    width: usize,
) {
    let SequenceRange { queries, d, heads, keys, .. } = range;
    let (p, work) = work.split_at_mut(keys);
    let (dp, factors) = work.split_at_mut(keys);
    let scale = 1.0 / (width as f32).sqrt();
    for head in 0..heads {
        let (key, value) = (head * width, d + head * width);
        for i in 0..queries {
            let (seen, token) = range.seen(i);
            let (p, dp, factors) = (&mut p[..seen], &mut dp[..seen], &mut factors[..seen]);
            let q = &q[i * d + key..][..width];
            softmax_row(q, &kv[key..], 2 * d, p, scale);
            draw(factors, dropout, token, head, heads);
            let dout = &dout[i * d + key..][..width];
            for j in 0..seen {
                dp[j] = factors[j] * dot(dout, &kv[j * 2 * d + value..][..width]);
                add_scaled_short(&mut dkv[j * 2 * d + value..][..width], p[j] * factors[j], dout);
            }
            let along = dot(p, dp);
            let dq = &mut dq[i * d + key..][..width];
            for j in 0..seen {
                let ds = p[j] * (dp[j] - along) * scale;
                add_scaled_short(dq, ds, &kv[j * 2 * d + key..][..width]);
                add_scaled_short(&mut dkv[j * 2 * d + key..][..width], ds, q);
            }
        }
    }
}

/// Adds the gradients of one sequence to `outs`.
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512bw+avx512vl+fma", "x86_64+avx2+fma"))]
pub(super) fn attend_backward(
    outs: AttentionGradients<'_>,
    inputs: AttentionInputs<'_>,
    range: SequenceRange,
    dropout: Dropout,
    work: &mut [f32],
) {
    match range.d / range.heads {
        32 => backward(outs, inputs, range, dropout, work, 32),
        width => backward(outs, inputs, range, dropout, work, width),
    }
}
