//! The shared steps of models whose batches are computed by several processes: rows of item tables for the histories, and the softmax over
//! a catalogue that is divided among the processes.

use std::ops::Range;

use candle_core::Tensor;
use mp4sr_ops::{
    Mask, ProcessGroup, Result, RowRequests, fetch_rows, gather, gather_rows, merge_logsumexp, rounded_as_factor,
    row_logsumexp,
};

use crate::Batch;
use crate::features::DistinctItems;

/// A batch of which every process computes a range of the samples.
#[derive(Debug)]
pub(crate) struct SharedBatch<'a> {
    pub group: &'a ProcessGroup,
    /// All samples.
    pub all: &'a Batch,
    /// The range of samples of each process.
    pub shares: Vec<Range<usize>>,
    /// The samples of this process.
    pub own: Batch,
}

/// Rows of a table for the tokens of this process's samples.
pub(crate) struct TokenRows {
    /// A row per distinct item.
    pub table: Tensor,
    /// The row of each token.
    pub rows: Vec<u32>,
}

impl<'a> SharedBatch<'a> {
    pub fn new(group: &'a ProcessGroup, all: &'a Batch) -> Self {
        let shares = group.shares(all.count());
        let own = all.share(shares[group.rank()].clone());
        Self { group, all, shares, own }
    }

    /// The index of this process's first token among all tokens.
    pub fn first_token(&self) -> usize {
        let start = self.own_samples().start;
        if start < self.all.count() { self.all.offsets.range(start).start } else { self.all.items.len() }
    }

    /// The range of this process's samples among all samples.
    pub fn own_samples(&self) -> Range<usize> {
        self.shares[self.group.rank()].clone()
    }

    /// Fetches the rows of a table for this process's tokens. Row `item + before` of the whole table is that of item `item`, from 0.
    /// `owned` has the range of rows of each process, and `table` the rows of this one.
    pub fn token_rows(&self, table: &Tensor, owned: &[Range<usize>], before: usize) -> Result<TokenRows> {
        let distinct = |samples: &Range<usize>| DistinctItems::of(&self.all.share(samples.clone()).items);
        let of_all: Vec<DistinctItems> = self.shares.iter().map(distinct).collect();
        let rows = of_all[self.group.rank()].inverse.clone();
        let wanted = |items: DistinctItems| items.rows.iter().map(|row| row + before as u32).collect();
        let requests = RowRequests { owned: owned.to_vec(), wanted: of_all.into_iter().map(wanted).collect() };
        Ok(TokenRows { table: fetch_rows(self.group, "item rows", table, requests)?, rows })
    }

    /// Gathers the vectors of all samples; `queries` are those of this process's samples.
    pub fn gather_queries(&self, queries: &Tensor) -> Result<Tensor> {
        let counts: Vec<usize> = self.shares.iter().map(Range::len).collect();
        gather_rows(self.group, "queries", queries, &counts)
    }

    /// This process's part of the mean cross-entropy of softmax(scale a b^T). `queries` are the vectors of its own samples, `candidates`
    /// those of the items `items`, from 0.
    pub fn cross_entropy(
        &self,
        queries: &Tensor,
        candidates: &Tensor,
        items: &Range<usize>,
        scale: f32,
    ) -> Result<Tensor> {
        let queries = self.gather_queries(queries)?;
        let own = row_logsumexp(&queries, candidates, scale, &Mask::None)?;
        let sums = merge_logsumexp(self.group, "log-sum-exp", &own)?;
        let samples = self.own_samples();
        let sums = sums.narrow(0, samples.start, samples.len())?.sum_all()?;
        // The process that has the item of a target subtracts the target's logit.
        let targets = self.all.targets.iter().enumerate().map(|(j, target)| (j as u32, *target as usize - 1));
        let (rows, columns): (Vec<u32>, Vec<u32>) = targets
            .filter(|(_, target)| items.contains(target))
            .map(|(j, target)| (j, (target - items.start) as u32))
            .unzip();
        let width = items.len();
        let (queries, candidates) = (rounded_as_factor(&queries, width)?, rounded_as_factor(candidates, width)?);
        let hits = (gather(&queries, &rows)? * gather(&candidates, &columns)?)?.sum_all()?;
        (sums - (hits * f64::from(scale))?)? / self.all.count() as f64
    }
}
