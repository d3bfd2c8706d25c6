//! Causal attention in packed sequences: shards are runs of whole sequences, each sequence and head by itself.
//!
//! With p = softmax(q k^T / sqrt(w)), m the dropout factors and o = (m p) v: dv = (m p)^T do, dp = m (do v^T),
//! ds = p (dp - sum of p dp), dq = ds k / sqrt(w), dk = ds^T q / sqrt(w). Backward computes p again.

use candle_core::{Result, Tensor, bail};
use multiversion::multiversion;
use rayon::prelude::*;

use super::{Fused, Gradients, View, apply2};
use crate::kernel::{add_scaled, dot, exp};
use crate::plain::weight_index;
use crate::{Dropout, Segments};

/// Tokens of a shard, about.
const TOKENS: usize = 256;

pub(crate) fn attention(
    query: &Tensor,
    key_value: &Tensor,
    segments: &Segments,
    heads: usize,
    last_only: bool,
    dropout: Dropout,
) -> Result<Tensor> {
    apply2(Attention { segments: segments.clone(), heads, last_only, dropout }, query, key_value)
}

struct Attention {
    segments: Segments,
    heads: usize,
    last_only: bool,
    dropout: Dropout,
}

/// One sequence: its first token, its lengths, the model width, the heads.
#[derive(Clone, Copy)]
struct Place {
    first: usize,
    queries: usize,
    keys: usize,
    d: usize,
    heads: usize,
}

impl Place {
    /// The keys that query `i` sees, and the token it belongs to.
    #[inline(always)]
    fn seen(&self, i: usize) -> (usize, usize) {
        let place = self.keys - self.queries + i;
        (place + 1, self.first + place)
    }
}

#[inline(always)]
fn softmax_row(q: &[f32], kv: &[f32], stride: usize, p: &mut [f32], scale: f32) {
    let width = q.len();
    let mut top = f32::NEG_INFINITY;
    for (j, p) in p.iter_mut().enumerate() {
        *p = dot(q, &kv[j * stride..][..width]) * scale;
        top = top.max(*p);
    }
    let mut total = 0.0;
    for p in p.iter_mut() {
        *p = exp(*p - top);
        total += *p;
    }
    p.iter_mut().for_each(|p| *p /= total);
}

#[multiversion(targets("x86_64+avx512f+avx512dq+avx512bw+avx512vl+fma", "x86_64+avx2+fma"))]
fn attend(out: &mut [f32], q: &[f32], kv: &[f32], place: Place, dropout: Dropout, p: &mut [f32]) {
    let Place { queries, d, heads, .. } = place;
    let width = d / heads;
    let scale = 1.0 / (width as f32).sqrt();
    for head in 0..heads {
        let (key, value) = (head * width, d + head * width);
        for i in 0..queries {
            let (seen, token) = place.seen(i);
            let p = &mut p[..seen];
            softmax_row(&q[i * d + key..][..width], &kv[key..], 2 * d, p, scale);
            let out = &mut out[i * d + key..][..width];
            for (j, &p) in p.iter().enumerate() {
                let factor =
                    if dropout.is_active() { dropout.factor(weight_index(token, j, head, heads)) } else { 1.0 };
                add_scaled(out, p * factor, &kv[j * 2 * d + value..][..width]);
            }
        }
    }
}

#[multiversion(targets("x86_64+avx512f+avx512dq+avx512bw+avx512vl+fma", "x86_64+avx2+fma"))]
fn attend_backward(
    (dq, dkv): (&mut [f32], &mut [f32]),
    (q, kv, dout): (&[f32], &[f32], &[f32]),
    place: Place,
    dropout: Dropout,
    (p, dp): (&mut [f32], &mut [f32]),
) {
    let Place { queries, d, heads, .. } = place;
    let width = d / heads;
    let scale = 1.0 / (width as f32).sqrt();
    for head in 0..heads {
        let (key, value) = (head * width, d + head * width);
        for i in 0..queries {
            let (seen, token) = place.seen(i);
            let (p, dp) = (&mut p[..seen], &mut dp[..seen]);
            let q = &q[i * d + key..][..width];
            softmax_row(q, &kv[key..], 2 * d, p, scale);
            let dout = &dout[i * d + key..][..width];
            for j in 0..seen {
                let factor =
                    if dropout.is_active() { dropout.factor(weight_index(token, j, head, heads)) } else { 1.0 };
                dp[j] = factor * dot(dout, &kv[j * 2 * d + value..][..width]);
                add_scaled(&mut dkv[j * 2 * d + value..][..width], p[j] * factor, dout);
            }
            let along = dot(p, dp);
            let dq = &mut dq[i * d + key..][..width];
            for j in 0..seen {
                let ds = p[j] * (dp[j] - along) * scale;
                add_scaled(dq, ds, &kv[j * 2 * d + key..][..width]);
                add_scaled(&mut dkv[j * 2 * d + key..][..width], ds, q);
            }
        }
    }
}

impl Attention {
    fn queries_before(&self, j: usize) -> usize {
        if self.last_only {
            j
        } else if j == self.segments.count() {
            self.segments.tokens()
        } else {
            self.segments.range(j).start
        }
    }

    fn place(&self, j: usize, d: usize) -> Place {
        let range = self.segments.range(j);
        let queries = if self.last_only { 1 } else { range.len() };
        Place { first: range.start, queries, keys: range.len(), d, heads: self.heads }
    }

    /// Cuts a slice with `width` values a query into the shards' parts.
    fn cut(mut data: &mut [f32], ends: impl Iterator<Item = usize>, width: usize) -> Vec<&mut [f32]> {
        let mut start = 0;
        let mut parts = Vec::new();
        for end in ends {
            let (part, rest) = data.split_at_mut((end - start) * width);
            parts.push(part);
            data = rest;
            start = end;
        }
        parts
    }
}

impl Fused<2> for Attention {
    const NAME: &'static str = "attention";

    fn forward(&self, [query, key_value]: [View<'_>; 2]) -> Result<(Vec<f32>, Vec<usize>)> {
        let (&[rows, d], &[tokens, d2]) = (query.dims, key_value.dims) else {
            bail!("attention: expected two matrices, found {:?} and {:?}", query.dims, key_value.dims)
        };
        let expected = self.queries_before(self.segments.count());
        if d2 != 2 * d || d % self.heads != 0 || tokens != self.segments.tokens() || rows != expected {
            bail!(
                "attention: {:?} and {:?} do not fit {tokens} tokens, {expected} queries",
                query.dims,
                key_value.dims
            );
        }
        let shards = self.segments.shards(TOKENS);
        let mut out = vec![0.0; query.data.len()];
        let parts = Self::cut(&mut out, shards.iter().map(|s| self.queries_before(s.end)), d);
        parts.into_par_iter().zip(&shards).for_each(|(out, shard)| {
            let first = self.queries_before(shard.start);
            let mut p = Vec::new();
            for j in shard.clone() {
                let place = self.place(j, d);
                p.resize(p.len().max(place.keys), 0.0);
                let rows = self.queries_before(j)..self.queries_before(j) + place.queries;
                let q = &query.data[rows.start * d..rows.end * d];
                let kv = &key_value.data[place.first * 2 * d..][..place.keys * 2 * d];
                attend(&mut out[(rows.start - first) * d..(rows.end - first) * d], q, kv, place, self.dropout, &mut p);
            }
        });
        Ok((out, query.dims.to_vec()))
    }

    fn backward(&self, [query, key_value]: [View<'_>; 2], _: &[f32], gradient: &[f32]) -> Result<Gradients<2>> {
        let d = query.dims[1];
        let shards = self.segments.shards(TOKENS);
        let (mut dq, mut dkv) = (vec![0.0; query.data.len()], vec![0.0; key_value.data.len()]);
        let dq_parts = Self::cut(&mut dq, shards.iter().map(|s| self.queries_before(s.end)), d);
        let dkv_parts = Self::cut(&mut dkv, shards.iter().map(|s| self.segments.range(s.end - 1).end), 2 * d);
        dq_parts.into_par_iter().zip(dkv_parts).zip(&shards).for_each(|((dq, dkv), shard)| {
            let (first, first_token) = (self.queries_before(shard.start), self.segments.range(shard.start).start);
            let (mut p, mut dp) = (Vec::new(), Vec::new());
            for j in shard.clone() {
                let place = self.place(j, d);
                p.resize(p.len().max(place.keys), 0.0);
                dp.resize(p.len(), 0.0);
                let rows = self.queries_before(j) * d..(self.queries_before(j) + place.queries) * d;
                let keys = place.first * 2 * d..(place.first + place.keys) * 2 * d;
                let dq = &mut dq[rows.start - first * d..rows.end - first * d];
                let dkv = &mut dkv[keys.start - first_token * 2 * d..keys.end - first_token * 2 * d];
                let inputs = (&query.data[rows.clone()], &key_value.data[keys], &gradient[rows]);
                attend_backward((dq, dkv), inputs, place, self.dropout, (&mut p, &mut dp));
            }
        });
        Ok([Some(dq), Some(dkv)])
    }
}
