//! Recurrent cells over packed sequences.
//!
//! LSTM: (i, f, o) = sigmoid, g = tanh of x + h U; s' = f s + i g; h' = o tanh(s'). GRU, with the reset gate before the hidden map: (z, r)
//! = sigmoid of x + h U, g = tanh(x_g + (r h) U_g); h' = (1 - z) h + z g. The sequences of a shard are sorted by length, so step t
//! processes the first ones, without padding. Shards have the same number of sequences whatever the number of threads, and their gradients
//! of U are summed in order. Forward keeps the gates; the gradient of U is one product over all steps.

use std::sync::{Mutex, PoisonError};

use candle_core::{Result, Tensor, bail};
use multiversion::multiversion;
use rayon::prelude::*;

use super::{Fused, Gradients, View, apply2, cut, ordered_sum};
use crate::kernel::{Mat, exp, matmul};
use crate::scratch::Scratch;
use crate::{Cell, PackedOffsets};

/// The number of sequences in a shard.
const SEQUENCES: usize = 64;

pub(crate) fn recurrent(x: &Tensor, hidden: &Tensor, offsets: &PackedOffsets, cell: Cell) -> Result<Tensor> {
    let keeps = x.track_op() || hidden.track_op();
    apply2(Recurrent { offsets: offsets.clone(), cell, keeps, kept: Mutex::new(Vec::new()) }, x, hidden)
}

struct Recurrent {
    offsets: PackedOffsets,
    cell: Cell,
    keeps: bool,
    /// The values that forward computed, by shard.
    kept: Mutex<Vec<Values>>,
}

/// Where the gradients of a shard are written.
struct StepGradients<'a> {
    /// The gradient of its tokens' inputs, `[tokens, gates w]`.
    dx: &'a mut [f32],
    /// The gradient of U, to which the shard's contribution is added.
    dhidden: &'a mut [f32],
}

/// A run of sequences, of which the longest come first.
struct Shard {
    sequences: std::ops::Range<usize>,
    /// The rows of every step: one for each sequence that is long enough.
    steps: Vec<std::ops::Range<usize>>,
    /// The token of every row, counted from the shard's first.
    tokens: Vec<usize>,
}

/// The values that forward computes, by row.
struct Values {
    /// The activated gates, `[rows, gates w]`.
    gates: Scratch,
    /// s of an LSTM, `[rows, w]`.
    cells: Scratch,
    /// h, `[rows, w]`.
    outputs: Scratch,
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

#[inline(always)]
fn tanh(x: f32) -> f32 {
    1.0 - 2.0 / (exp(2.0 * x) + 1.0)
}

#[multiversion(targets("x86_64+avx512f+avx512dq+avx512bw+avx512vl+fma", "x86_64+avx2+fma"))]
fn sigmoid_all(x: &mut [f32]) {
    for x in x.iter_mut() {
        *x = sigmoid(*x);
    }
}

/// Computes one row of an LSTM: activates the gates in place, and writes s and h.
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512bw+avx512vl+fma", "x86_64+avx2+fma"))]
fn lstm_row(gates: &mut [f32], before: Option<&[f32]>, s: &mut [f32], h: &mut [f32]) {
    let w = h.len();
    let (input, rest) = gates.split_at_mut(w);
    let (forget, rest) = rest.split_at_mut(w);
    let (candidate, output) = rest.split_at_mut(w);
    for at in 0..w {
        input[at] = sigmoid(input[at]);
        forget[at] = sigmoid(forget[at]);
        candidate[at] = tanh(candidate[at]);
        output[at] = sigmoid(output[at]);
        s[at] = input[at] * candidate[at];
    }
    if let Some(before) = before {
        for at in 0..w {
            s[at] += forget[at] * before[at];
        }
    }
    for at in 0..w {
        h[at] = output[at] * tanh(s[at]);
    }
}

/// Writes the gradients of one row of an LSTM before its activations to `d`, and turns ds into that of the previous step.
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512bw+avx512vl+fma", "x86_64+avx2+fma"))]
fn lstm_row_backward(d: &mut [f32], gates: &[f32], s: &[f32], before: Option<&[f32]>, dh: &[f32], ds: &mut [f32]) {
    let w = dh.len();
    let (i, f, g, o) = (&gates[..w], &gates[w..2 * w], &gates[2 * w..3 * w], &gates[3 * w..4 * w]);
    let (di, rest) = d.split_at_mut(w);
    let (df, rest) = rest.split_at_mut(w);
    let (dg, d_o) = rest.split_at_mut(w);
    for at in 0..w {
        let t = tanh(s[at]);
        ds[at] += dh[at] * o[at] * (1.0 - t * t);
        d_o[at] = dh[at] * t * o[at] * (1.0 - o[at]);
        di[at] = ds[at] * g[at] * i[at] * (1.0 - i[at]);
        dg[at] = ds[at] * i[at] * (1.0 - g[at] * g[at]);
        df[at] = 0.0;
    }
    if let Some(before) = before {
        for at in 0..w {
            df[at] = ds[at] * before[at] * f[at] * (1.0 - f[at]);
        }
    }
    for at in 0..w {
        ds[at] *= f[at];
    }
}

/// Computes h of one row of a GRU from the activated z and from g, which is activated in place.
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512bw+avx512vl+fma", "x86_64+avx2+fma"))]
fn gru_row(gates: &mut [f32], before: Option<&[f32]>, h: &mut [f32]) {
    let w = h.len();
    let (z, rest) = gates.split_at_mut(w);
    let g = &mut rest[w..];
    for at in 0..w {
        g[at] = tanh(g[at]);
        h[at] = z[at] * g[at];
    }
    if let Some(before) = before {
        for at in 0..w {
            h[at] += (1.0 - z[at]) * before[at];
        }
    }
}

/// Writes the gradients of z and g before their activations, and turns dh into its direct part for the previous step.
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512bw+avx512vl+fma", "x86_64+avx2+fma"))]
fn gru_row_backward(d: &mut [f32], gates: &[f32], before: Option<&[f32]>, dh: &mut [f32]) {
    let w = dh.len();
    let (z, g) = (&gates[..w], &gates[2 * w..]);
    for at in 0..w {
        d[2 * w + at] = dh[at] * z[at] * (1.0 - g[at] * g[at]);
        d[at] = dh[at] * g[at] * z[at] * (1.0 - z[at]);
        d[w + at] = 0.0;
    }
    if let Some(before) = before {
        for at in 0..w {
            d[at] -= dh[at] * before[at] * z[at] * (1.0 - z[at]);
            dh[at] *= 1.0 - z[at];
        }
    }
}

impl Recurrent {
    fn shards(&self) -> Vec<Shard> {
        let count = self.offsets.count();
        let starts = (0..count).step_by(SEQUENCES);
        starts
            .map(|start| {
                let sequences = start..count.min(start + SEQUENCES);
                let first = self.offsets.range(start).start;
                let mut order: Vec<usize> = sequences.clone().collect();
                order.sort_by_key(|&j| std::cmp::Reverse(self.offsets.range(j).len()));
                let (mut steps, mut tokens) = (Vec::new(), Vec::new());
                loop {
                    let (step, from) = (steps.len(), tokens.len());
                    let own = order.iter().map(|&j| self.offsets.range(j)).take_while(|range| range.len() > step);
                    tokens.extend(own.map(|range| range.start - first + step));
                    if tokens.len() == from {
                        break;
                    }
                    steps.push(from..tokens.len());
                }
                Shard { sequences, steps, tokens }
            })
            .collect()
    }

    fn first_token(&self, shard: &Shard) -> usize {
        self.offsets.range(shard.sequences.start).start
    }

    /// A shard's forward pass over its tokens' x `[tokens, gates w]`.
    fn pass(&self, shard: &Shard, x: &[f32], hidden: &[f32], w: usize) -> Values {
        let (rows, wide) = (shard.tokens.len(), self.cell.gates() * w);
        let mut gates = Scratch::take(rows * wide);
        for (row, &token) in gates.chunks_exact_mut(wide).zip(&shard.tokens) {
            row.copy_from_slice(&x[token * wide..][..wide]);
        }
        let is_lstm = self.cell == Cell::Lstm;
        let mut cells = Scratch::take(if is_lstm { rows * w } else { 0 });
        let mut outputs = Scratch::take(rows * w);
        let mut room = Scratch::take(SEQUENCES * wide);
        for (t, step) in shard.steps.iter().enumerate() {
            let n = step.len();
            let before = (t > 0).then(|| shard.steps[t - 1].start * w);
            let (done, own) = outputs.split_at_mut(step.start * w);
            let h = before.map(|from| &done[from..][..n * w]);
            let gates = &mut gates[step.start * wide..step.end * wide];
            if is_lstm {
                if let Some(h) = h {
                    rows_product(gates, h, w, Mat::new(hidden, w, wide), true);
                }
                let (cells_done, cells) = cells.split_at_mut(step.start * w);
                for row in 0..n {
                    let s = before.map(|from| &cells_done[from + row * w..][..w]);
                    let part = row * w..(row + 1) * w;
                    lstm_row(&mut gates[row * wide..][..wide], s, &mut cells[part.clone()], &mut own[part]);
                }
                continue;
            }
            if let Some(h) = h {
                let product = &mut room[..n * 2 * w];
                rows_product(product, h, w, Mat::strided(hidden, w, 2 * w, wide), false);
                add_columns(gates, product, 0, wide);
            }
            gates.chunks_exact_mut(wide).for_each(|row| sigmoid_all(&mut row[..2 * w]));
            if let Some(h) = h {
                let mut reset = Scratch::take(n * w);
                reset_rows(&mut reset, gates, h, w);
                let product = &mut room[..n * w];
                rows_product(product, &reset, w, Mat::strided(&hidden[2 * w..], w, w, wide), false);
                add_columns(gates, product, 2 * w, wide);
            }
            for row in 0..n {
                let part = row * w..(row + 1) * w;
                gru_row(&mut gates[row * wide..][..wide], h.map(|h| &h[part.clone()]), &mut own[part]);
            }
        }
        Values { gates, cells, outputs }
    }

    /// Computes a shard's gradients: dx of its tokens, and its contribution to the gradient of U.
    fn pass_backward(
        &self,
        shard: &Shard,
        values: &Values,
        hidden: &[f32],
        dh: &[f32],
        StepGradients { dx, dhidden }: StepGradients<'_>,
    ) {
        let w = dh.len() / shard.tokens.len();
        let (rows, wide) = (shard.tokens.len(), self.cell.gates() * w);
        let first = shard.steps.first().map_or(0, ExactSizeIterator::len);
        let Values { gates, cells, outputs } = values;
        let mut d = Scratch::take(rows * wide);
        // The gradients of h and s from the next step.
        let (mut carried, mut ds) = (Scratch::zeros(first * w), Scratch::zeros(first * w));
        let mut room = Scratch::take(SEQUENCES * w);
        for (t, step) in shard.steps.iter().enumerate().rev() {
            let n = step.len();
            let before = (t > 0).then(|| shard.steps[t - 1].start * w);
            let own = &mut carried[..n * w];
            for (own, &token) in own.chunks_exact_mut(w).zip(&shard.tokens[step.clone()]) {
                own.iter_mut().zip(&dh[token * w..][..w]).for_each(|(own, dh)| *own += dh);
            }
            let d = &mut d[step.start * wide..step.end * wide];
            for row in 0..n {
                let (at, part) = (step.start + row, row * w..(row + 1) * w);
                let (d, gates) = (&mut d[row * wide..][..wide], &gates[at * wide..][..wide]);
                if self.cell == Cell::Lstm {
                    let s = before.map(|from| &cells[from + row * w..][..w]);
                    lstm_row_backward(d, gates, &cells[at * w..][..w], s, &own[part.clone()], &mut ds[part]);
                } else {
                    let h = before.map(|from| &outputs[from + row * w..][..w]);
                    gru_row_backward(d, gates, h, &mut own[part]);
                }
            }
            let Some(from) = before else { continue };
            if self.cell == Cell::Lstm {
                matmul(own, Mat::new(d, n, wide), Mat::new(hidden, w, wide).t(), false);
                continue;
            }
            // Through the candidate: d(r h) = dg U_g^T, which contributes to both r and h.
            let h = &outputs[from..][..n * w];
            let product = &mut room[..n * w];
            let candidate = Mat::strided(&d[2 * w..], n, w, wide);
            matmul(product, candidate, Mat::strided(&hidden[2 * w..], w, w, wide).t(), false);
            for row in 0..n {
                let r = &gates[(step.start + row) * wide + w..][..w];
                let d = &mut d[row * wide + w..][..w];
                for at in 0..w {
                    let (dr, own) = (product[row * w + at], &mut own[row * w + at]);
                    d[at] = dr * h[row * w + at] * r[at] * (1.0 - r[at]);
                    *own += dr * r[at];
                }
            }
            let both = Mat::strided(d, n, 2 * w, wide);
            matmul(own, both, Mat::strided(hidden, w, 2 * w, wide).t(), true);
        }
        for (row, &token) in d.chunks_exact(wide).zip(&shard.tokens) {
            dx[token * wide..][..wide].copy_from_slice(row);
        }
        // The previous step's h, for every row after the first step.
        let later = rows - first;
        if later == 0 {
            return;
        }
        let mut previous = Scratch::take(later * w);
        for (t, step) in shard.steps.iter().enumerate().skip(1) {
            let from = shard.steps[t - 1].start * w;
            previous[(step.start - first) * w..(step.end - first) * w]
                .copy_from_slice(&outputs[from..][..step.len() * w]);
        }
        let d = &d[first * wide..];
        if self.cell == Cell::Lstm {
            matmul(dhidden, Mat::new(&previous, later, w).t(), Mat::new(d, later, wide), true);
            return;
        }
        let mut product = Scratch::take(w * 2 * w);
        matmul(&mut product, Mat::new(&previous, later, w).t(), Mat::strided(d, later, 2 * w, wide), false);
        add_columns(dhidden, &product, 0, wide);
        let mut reset = Scratch::take(later * w);
        reset_rows(&mut reset, &gates[first * wide..], &previous, w);
        let product = &mut product[..w * w];
        matmul(product, Mat::new(&reset, later, w).t(), Mat::strided(&d[2 * w..], later, w, wide), false);
        add_columns(dhidden, product, 2 * w, wide);
    }

    /// Checks the shapes and returns w.
    fn width(&self, x: &View<'_>, hidden: &View<'_>) -> Result<usize> {
        let gates = self.cell.gates();
        match (x.dims, hidden.dims) {
            (&[t, wide], &[w, wide2]) if t == self.offsets.tokens() && wide == wide2 && wide == gates * w && w > 0 => {
                Ok(w)
            }
            (x, hidden) => bail!("recurrent: {x:?} and {hidden:?} do not fit {} tokens", self.offsets.tokens()),
        }
    }
}

/// Computes the rows of r h; r is the second of the activated gates.
fn reset_rows(out: &mut [f32], gates: &[f32], h: &[f32], w: usize) {
    for ((out, gates), h) in out.chunks_exact_mut(w).zip(gates.chunks_exact(3 * w)).zip(h.chunks_exact(w)) {
        out.iter_mut().zip(&gates[w..2 * w]).zip(h).for_each(|((out, r), h)| *out = r * h);
    }
}

/// The product of rows of width `w` with a matrix. A single row is computed as two, because a product of one row is summed in another order,
/// and a sequence must not depend on how many others are as long.
fn rows_product(out: &mut [f32], rows: &[f32], w: usize, matrix: Mat<'_>, adds: bool) {
    let n = rows.len() / w;
    if n > 1 {
        matmul(out, Mat::new(rows, n, w), matrix, adds);
        return;
    }
    let (mut two, mut products) = (Scratch::take(2 * w), Scratch::take(2 * out.len()));
    two.chunks_exact_mut(w).for_each(|row| row.copy_from_slice(rows));
    products.chunks_exact_mut(out.len()).for_each(|row| row.copy_from_slice(out));
    matmul(&mut products, Mat::new(&two, 2, w), matrix, adds);
    out.copy_from_slice(&products[..out.len()]);
}

/// Adds `part` to the columns from `from` on of `out`, whose rows are `stride` apart.
fn add_columns(out: &mut [f32], part: &[f32], from: usize, stride: usize) {
    let rows = out.len() / stride;
    let width = part.len() / rows.max(1);
    for (out, part) in out.chunks_exact_mut(stride).zip(part.chunks_exact(width.max(1))) {
        out[from..from + width].iter_mut().zip(part).for_each(|(out, part)| *out += part);
    }
}

impl Fused<2> for Recurrent {
    const NAME: &'static str = "recurrent";

    fn forward(&self, [x, hidden]: [View<'_>; 2]) -> Result<(Vec<f32>, Vec<usize>)> {
        let w = self.width(&x, &hidden)?;
        let (shards, wide) = (self.shards(), self.cell.gates() * w);
        let mut out = vec![0.0; self.offsets.tokens() * w];
        let outs = cut(&mut out, shards.iter().map(|shard| shard.tokens.len()), w);
        let kept: Vec<Values> = outs
            .into_par_iter()
            .zip(&shards)
            .map(|(out, shard)| {
                let x = &x.data[self.first_token(shard) * wide..][..shard.tokens.len() * wide];
                let values = self.pass(shard, x, hidden.data, w);
                for (h, &token) in values.outputs.chunks_exact(w).zip(&shard.tokens) {
                    out[token * w..][..w].copy_from_slice(h);
                }
                values
            })
            .collect();
        if self.keeps {
            *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = kept;
        }
        Ok((out, vec![self.offsets.tokens(), w]))
    }

    fn backward(&self, [x, hidden]: [View<'_>; 2], _: &[f32], gradient: &[f32]) -> Result<Gradients<2>> {
        let w = self.width(&x, &hidden)?;
        let (shards, wide) = (self.shards(), self.cell.gates() * w);
        let mut kept: Vec<Option<Values>> =
            std::mem::take(&mut *self.kept.lock().unwrap_or_else(PoisonError::into_inner))
                .into_iter()
                .map(Some)
                .collect();
        kept.resize_with(shards.len(), || None);
        let mut dx = vec![0.0; x.data.len()];
        let parts: Vec<Scratch> = cut(&mut dx, shards.iter().map(|shard| shard.tokens.len()), wide)
            .into_par_iter()
            .zip(&shards)
            .zip(kept)
            .map(|((dx, shard), kept)| {
                let (first, count) = (self.first_token(shard), shard.tokens.len());
                let mut dhidden = Scratch::zeros(hidden.data.len());
                // A second backward pass finds nothing kept and computes the values again.
                let values =
                    kept.unwrap_or_else(|| self.pass(shard, &x.data[first * wide..][..count * wide], hidden.data, w));
                let dh = &gradient[first * w..][..count * w];
                self.pass_backward(shard, &values, hidden.data, dh, StepGradients { dx, dhidden: &mut dhidden });
                dhidden
            })
            .collect();
        let parts: Vec<&[f32]> = parts.iter().map(|part| &part[..]).collect();
        Ok([Some(dx), Some(ordered_sum(&parts, hidden.data.len()))])
    }
}
