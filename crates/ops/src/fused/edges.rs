//! Operators on the edges of a graph: inner products of an edge's ends, softmaxes over the edges of a node, and weighted sums over the
//! neighbours of a node.
//!
//! With s_e = a_r . b_c and y_v = sum of w_e x_e, the gradients of a and b are sums weighted by ds, the gradient of w consists of inner
//! products with dy, and the gradient of x is the weighted sum of dy from the other side. Every node is computed by a single task, which
//! processes the node's edges in order, so results do not depend on the number of threads.

use candle_core::{Result, Tensor, bail};
use multiversion::multiversion;
use rayon::prelude::*;

use super::{Fused, Gradients, View, apply1, apply2, cut};
use crate::kernel::{add_weighted_rows, dot, exp};
use crate::{Edges, Side};

/// The approximate number of edges in a parallel piece.
const EDGES: usize = 2048;

pub(crate) fn edge_dot(rows: &Tensor, columns: &Tensor, edges: &Edges) -> Result<Tensor> {
    apply2(Dot(edges.clone()), rows, columns)
}

pub(crate) fn edge_softmax(scores: &Tensor, edges: &Edges, side: Side) -> Result<Tensor> {
    apply1(Softmax { edges: edges.clone(), side }, scores)
}

pub(crate) fn edge_sum(weights: &Tensor, x: &Tensor, edges: &Edges, to: Side) -> Result<Tensor> {
    apply2(Sum { edges: edges.clone(), to }, weights, x)
}

#[multiversion(targets("x86_64+avx512f+avx512dq+avx512bw+avx512vl+fma", "x86_64+avx2+fma"))]
fn dots(out: &mut [f32], others: &[u32], own: &[f32], table: &[f32]) {
    let d = own.len();
    for (out, &other) in out.iter_mut().zip(others) {
        *out = dot(own, &table[other as usize * d..][..d]);
    }
}

#[multiversion(targets("x86_64+avx512f+avx512dq+avx512bw+avx512vl+fma", "x86_64+avx2+fma"))]
fn weighted(out: &mut [f32], edges: &[u32], others: &[u32], weights: &[f32], table: &[f32]) {
    let d = out.len();
    let ends = edges.iter().zip(others);
    add_weighted_rows(out, ends.map(|(&edge, &other)| (weights[edge as usize], &table[other as usize * d..][..d])));
}

/// Computes a_r . b_c of every edge.
fn dot_of(edges: &Edges, rows: &[f32], columns: &[f32], d: usize) -> Vec<f32> {
    let by_row = edges.of(Side::Rows);
    let mut out = vec![0.0; edges.count()];
    let shards = by_row.shards(EDGES);
    let lengths = shards.iter().map(|shard| by_row.offsets[shard.end] - by_row.offsets[shard.start]);
    cut(&mut out, lengths, 1).into_par_iter().zip(&shards).for_each(|(mut out, shard)| {
        for row in shard.clone() {
            let range = by_row.offsets[row]..by_row.offsets[row + 1];
            let (own, rest) = std::mem::take(&mut out).split_at_mut(range.len());
            out = rest;
            dots(own, &by_row.others[range], &rows[row * d..][..d], columns);
        }
    });
    out
}

/// For every node of `to`, the sum over its edges of the weight times the vector at the other end.
fn sum_of(edges: &Edges, to: Side, weights: &[f32], x: &[f32], d: usize) -> Vec<f32> {
    let nodes = edges.of(to);
    let mut out = vec![0.0; nodes.count() * d];
    let shards = nodes.shards(EDGES);
    cut(&mut out, shards.iter().map(ExactSizeIterator::len), d).into_par_iter().zip(&shards).for_each(
        |(out, shard)| {
            for (node, out) in shard.clone().zip(out.chunks_exact_mut(d)) {
                let range = nodes.offsets[node]..nodes.offsets[node + 1];
                weighted(out, &nodes.edges[range.clone()], &nodes.others[range], weights, x);
            }
        },
    );
    out
}

struct Dot(Edges);

impl Fused<2> for Dot {
    const NAME: &'static str = "edge_dot";

    fn forward(&self, [rows, columns]: [View<'_>; 2]) -> Result<(Vec<f32>, Vec<usize>)> {
        let (n, m) = (self.0.nodes(Side::Rows), self.0.nodes(Side::Columns));
        match (rows.dims, columns.dims) {
            (&[r, d], &[c, d2]) if r == n && c == m && d == d2 && d > 0 => {
                Ok((dot_of(&self.0, rows.data, columns.data, d), vec![self.0.count()]))
            }
            (rows, columns) => bail!("edge_dot: {rows:?} and {columns:?} do not fit {n} and {m} nodes"),
        }
    }

    fn backward(&self, [rows, columns]: [View<'_>; 2], _: &[f32], gradient: &[f32]) -> Result<Gradients<2>> {
        let d = rows.dims[1];
        let to_rows = sum_of(&self.0, Side::Rows, gradient, columns.data, d);
        Ok([Some(to_rows), Some(sum_of(&self.0, Side::Columns, gradient, rows.data, d))])
    }
}

struct Sum {
    edges: Edges,
    to: Side,
}

impl Fused<2> for Sum {
    const NAME: &'static str = "edge_sum";

    fn forward(&self, [weights, x]: [View<'_>; 2]) -> Result<(Vec<f32>, Vec<usize>)> {
        let (from, to) = (self.edges.nodes(self.to.other()), self.edges.nodes(self.to));
        match (weights.dims, x.dims) {
            (&[count], &[n, d]) if count == self.edges.count() && n == from && d > 0 => {
                Ok((sum_of(&self.edges, self.to, weights.data, x.data, d), vec![to, d]))
            }
            (weights, x) => bail!("edge_sum: {weights:?} and {x:?} do not fit {} edges", self.edges.count()),
        }
    }

    fn backward(&self, [weights, x]: [View<'_>; 2], _: &[f32], gradient: &[f32]) -> Result<Gradients<2>> {
        let d = x.dims[1];
        let dweights = match self.to {
            Side::Rows => dot_of(&self.edges, gradient, x.data, d),
            Side::Columns => dot_of(&self.edges, x.data, gradient, d),
        };
        Ok([Some(dweights), Some(sum_of(&self.edges, self.to.other(), weights.data, gradient, d))])
    }
}

struct Softmax {
    edges: Edges,
    side: Side,
}

impl Softmax {
    /// Calls `work` for every node with the values of two vectors at its edges, and with the result's values there.
    fn by_node(&self, a: &[f32], b: &[f32], work: impl Fn(&[f32], &[f32], &mut [f32]) + Sync) -> Vec<f32> {
        let nodes = self.edges.of(self.side);
        let shards = nodes.shards(EDGES);
        let parts: Vec<Vec<f32>> = shards
            .par_iter()
            .map(|shard| {
                let first = nodes.offsets[shard.start];
                let mut out = vec![0.0; nodes.offsets[shard.end] - first];
                let (mut own_a, mut own_b) = (Vec::new(), Vec::new());
                for node in shard.clone() {
                    let range = nodes.offsets[node]..nodes.offsets[node + 1];
                    own_a.clear();
                    own_b.clear();
                    for &edge in &nodes.edges[range.clone()] {
                        own_a.push(a[edge as usize]);
                        own_b.push(b[edge as usize]);
                    }
                    work(&own_a, &own_b, &mut out[range.start - first..range.end - first]);
                }
                out
            })
            .collect();
        let mut all = vec![0.0; a.len()];
        nodes.edges.iter().zip(parts.iter().flatten()).for_each(|(&edge, &value)| all[edge as usize] = value);
        all
    }
}

impl Fused<1> for Softmax {
    const NAME: &'static str = "edge_softmax";

    fn forward(&self, [scores]: [View<'_>; 1]) -> Result<(Vec<f32>, Vec<usize>)> {
        if scores.dims != [self.edges.count()] {
            bail!("edge_softmax: {:?} does not fit {} edges", scores.dims, self.edges.count());
        }
        let out = self.by_node(scores.data, scores.data, |x, _, y| {
            let top = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            y.iter_mut().zip(x).for_each(|(y, x)| *y = exp(x - top));
            let total: f32 = y.iter().sum();
            y.iter_mut().for_each(|y| *y /= total);
        });
        Ok((out, scores.dims.to_vec()))
    }

    /// dx = y (dy - sum over the node's edges of y dy).
    fn backward(&self, _: [View<'_>; 1], result: &[f32], gradient: &[f32]) -> Result<Gradients<1>> {
        let dx = self.by_node(result, gradient, |y, dy, dx| {
            let along: f32 = y.iter().zip(dy).map(|(y, dy)| y * dy).sum();
            dx.iter_mut().zip(y.iter().zip(dy)).for_each(|(dx, (y, dy))| *dx = y * (dy - along));
        });
        Ok([Some(dx)])
    }
}
