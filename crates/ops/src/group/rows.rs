//! Operators whose arguments or results are spread over several processes.
//!
//! The loss of a step is the sum of the losses of all processes. The gradient that arrives at a result is that of this process's loss
//! alone; the contributions of the other losses are received in backward, so every process must call forward and backward in the same
//! order.

use std::ops::Range;

use candle_core::{Result, Tensor, bail};

use super::ProcessGroup;
use crate::fused::{Fused, Gradients, View, apply1};
use crate::kernel::accumulate;

/// The rows of all processes by rank: `[own, d]` -> `[total, d]`; `counts` has the number of rows of each process. The gradient of this
/// process's rows is the sum of their gradients on all processes.
pub fn gather_rows(group: &ProcessGroup, kind: &'static str, x: &Tensor, counts: &[usize]) -> Result<Tensor> {
    if x.dim(0)? != counts[group.rank()] {
        bail!("gather_rows: {:?} where process {} has {} rows", x.dims(), group.rank(), counts[group.rank()]);
    }
    apply1(GatherRows { group: group.clone(), kind, counts: counts.to_vec() }, x)
}

struct GatherRows {
    group: ProcessGroup,
    kind: &'static str,
    counts: Vec<usize>,
}

impl GatherRows {
    fn lengths(&self, d: usize) -> Vec<usize> {
        self.counts.iter().map(|count| count * d).collect()
    }
}

impl Fused<1> for GatherRows {
    const NAME: &'static str = "gather_rows";

    fn forward(&self, [x]: [View<'_>; 1]) -> Result<(Vec<f32>, Vec<usize>)> {
        let &[_, d] = x.dims() else { bail!("gather_rows: expected [rows, d], found {:?}", x.dims()) };
        let all = self.group.all_gather(self.kind, x.data(), &self.lengths(d))?;
        Ok((all, vec![self.counts.iter().sum(), d]))
    }

    fn backward(&self, [x]: [View<'_>; 1], _: &[f32], gradient: &[f32]) -> Result<Gradients<1>> {
        let lengths = self.lengths(x.dims()[1]);
        Ok([Some(self.group.reduce_scatter(self.kind, gradient, &lengths)?)])
    }
}

/// The rows that each process requests of a table whose rows are divided among processes. Every process knows the requests of all
/// processes.
#[derive(Clone, Debug)]
pub struct RowRequests {
    /// The rows of the table that each process owns.
    pub owned: Vec<Range<usize>>,
    /// The rows that each process requests, ascending.
    pub wanted: Vec<Vec<u32>>,
}

impl RowRequests {
    /// The rows that `from` owns and `to` requests.
    fn between(&self, from: usize, to: usize) -> &[u32] {
        let (owned, wanted) = (&self.owned[from], &self.wanted[to]);
        let at = |row: usize| wanted.partition_point(|&other| (other as usize) < row);
        &wanted[at(owned.start)..at(owned.end)]
    }

    /// The number of values that `rank` sends to each process, and that it receives from each, with `d` values per row.
    fn lengths(&self, rank: usize, d: usize) -> [Vec<usize>; 2] {
        let all = 0..self.owned.len();
        let sent = all.clone().map(|to| d * self.between(rank, to).len());
        let received = all.map(|from| d * self.between(from, rank).len());
        [sent.collect(), received.collect()]
    }
}

/// The rows that this process requests of a table of which it owns `[own, d]` -> `[wanted, d]`. The gradient of its own rows is the sum, in
/// the order of ranks, of their gradients on the processes that requested them.
pub fn fetch_rows(group: &ProcessGroup, kind: &'static str, own: &Tensor, requests: RowRequests) -> Result<Tensor> {
    if own.dim(0)? != requests.owned[group.rank()].len() {
        let owned = &requests.owned[group.rank()];
        bail!("fetch_rows: {:?} where process {} has rows {owned:?}", own.dims(), group.rank());
    }
    apply1(FetchRows { group: group.clone(), kind, requests }, own)
}

struct FetchRows {
    group: ProcessGroup,
    kind: &'static str,
    requests: RowRequests,
}

impl Fused<1> for FetchRows {
    const NAME: &'static str = "fetch_rows";

    fn forward(&self, [own]: [View<'_>; 1]) -> Result<(Vec<f32>, Vec<usize>)> {
        let &[_, d] = own.dims() else { bail!("fetch_rows: expected [rows, d], found {:?}", own.dims()) };
        let rank = self.group.rank();
        let first = self.requests.owned[rank].start;
        let [sent, received] = self.requests.lengths(rank, d);
        let mut parts = Vec::with_capacity(sent.iter().sum());
        for to in 0..self.group.size() {
            for &row in self.requests.between(rank, to) {
                parts.extend_from_slice(&own.data()[(row as usize - first) * d..][..d]);
            }
        }
        let rows = self.group.exchange(self.kind, &parts, &sent, &received)?;
        Ok((rows, vec![self.requests.wanted[rank].len(), d]))
    }

    fn backward(&self, [own]: [View<'_>; 1], _: &[f32], gradient: &[f32]) -> Result<Gradients<1>> {
        let (rank, d) = (self.group.rank(), own.dims()[1]);
        let first = self.requests.owned[rank].start;
        let [sent, received] = self.requests.lengths(rank, d);
        let parts = self.group.exchange(self.kind, gradient, &received, &sent)?;
        let rows = (0..self.group.size()).flat_map(|to| self.requests.between(rank, to));
        let mut total = vec![0.0; own.data().len()];
        for (&row, part) in rows.zip(parts.chunks_exact(d.max(1))) {
            accumulate(&mut total[(row as usize - first) * d..][..d], part);
        }
        Ok([Some(total)])
    }
}

/// The logarithm of the sum over processes of exp(l), by row: `[n]` -> `[n]`, the same on every process. A row may be -inf on some
/// processes.
pub fn merge_logsumexp(group: &ProcessGroup, kind: &'static str, l: &Tensor) -> Result<Tensor> {
    apply1(MergeLogSumExp { group: group.clone(), kind }, l)
}

struct MergeLogSumExp {
    group: ProcessGroup,
    kind: &'static str,
}

impl Fused<1> for MergeLogSumExp {
    const NAME: &'static str = "merge_logsumexp";

    fn forward(&self, [l]: [View<'_>; 1]) -> Result<(Vec<f32>, Vec<usize>)> {
        let n = l.data().len();
        let all = self.group.all_gather(self.kind, l.data(), &vec![n; self.group.size()])?;
        let merged = |j: usize| {
            let of_row = || all.iter().skip(j).step_by(n);
            let top = of_row().copied().fold(f32::NEG_INFINITY, f32::max);
            if top == f32::NEG_INFINITY { top } else { top + of_row().map(|l| (l - top).exp()).sum::<f32>().ln() }
        };
        Ok(((0..n).map(merged).collect(), vec![n]))
    }

    fn backward(&self, [l]: [View<'_>; 1], result: &[f32], gradient: &[f32]) -> Result<Gradients<1>> {
        let total = self.group.all_reduce(self.kind, gradient)?;
        let share = |(l, y): (&f32, &f32)| if *y == f32::NEG_INFINITY { 0.0 } else { (l - y).exp() };
        Ok([Some(l.data().iter().zip(result).map(share).zip(total).map(|(share, total)| share * total).collect())])
    }
}
