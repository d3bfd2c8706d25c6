//! Processes that compute a step together: their communication, and the operators whose gradients cross between processes.
//!
//! A [`Transport`] moves blocks of numbers; a [`ProcessGroup`] adds them up. Every sum is formed in the order of the processes' ranks, so
//! the same number of processes gives the same bytes with every transport.

mod blocks;
mod rows;
mod threads;

pub use blocks::{BlockReader, DividedValues, lend_blocks};
pub use rows::{RowRequests, fetch_rows, gather_rows, merge_logsumexp};
pub use threads::run_threads;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use candle_core::Result;
use rayon::prelude::*;

use crate::kernel::accumulate;

/// Moves numbers between processes. All processes must call the same functions in the same order, with lengths that fit each other.
pub trait Transport: Debug + Send + Sync {
    /// The number of this process, from 0.
    fn rank(&self) -> usize;

    /// The number of processes.
    fn size(&self) -> usize;

    /// Concatenates the blocks of all processes by rank. `lengths` has the length of each process's block, that of `own` included.
    fn all_gather(&self, own: &[f32], lengths: &[usize]) -> Result<Vec<f32>>;

    /// Sends each process its part of `parts`, which are in the order of ranks and have the lengths `sent`, and concatenates the received
    /// parts by rank, which have the lengths `received`.
    fn exchange(&self, parts: &[f32], sent: &[usize], received: &[usize]) -> Result<Vec<f32>>;

    /// Concatenates a few numbers of every process by rank; all processes pass the same number of them.
    fn all_gather_scalars(&self, own: &[f64]) -> Result<Vec<f64>>;
}

/// The cost of one kind of messages for a process.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Traffic {
    /// The number of collective operations.
    pub calls: u64,
    /// The number of bytes that this process sent to others, each counted once per receiver.
    pub sent_bytes: u64,
    /// The seconds in these operations, including the time that the process waited for others.
    pub seconds: f64,
}

/// The processes of one training run, as seen by one of them.
#[derive(Clone, Debug)]
pub struct ProcessGroup {
    transport: Arc<dyn Transport>,
    traffic: Arc<Mutex<BTreeMap<&'static str, Traffic>>>,
}

impl ProcessGroup {
    /// The processes that `transport` connects.
    pub fn new(transport: impl Transport + 'static) -> Self {
        Self { transport: Arc::new(transport), traffic: Arc::default() }
    }

    /// The number of this process, from 0.
    pub fn rank(&self) -> usize {
        self.transport.rank()
    }

    /// The number of processes.
    pub fn size(&self) -> usize {
        self.transport.size()
    }

    /// Whether this process is the one that writes files and messages.
    pub fn is_first(&self) -> bool {
        self.rank() == 0
    }

    /// Divides `count` elements into one run per process, by rank. Their lengths differ by at most one.
    pub fn shares(&self, count: usize) -> Vec<Range<usize>> {
        let size = self.size();
        (0..size).map(|rank| count * rank / size..count * (rank + 1) / size).collect()
    }

    /// This process's run of `count` elements.
    pub fn share(&self, count: usize) -> Range<usize> {
        self.shares(count).swap_remove(self.rank())
    }

    /// The cost of each kind of messages since the last call.
    pub fn take_traffic(&self) -> BTreeMap<&'static str, Traffic> {
        std::mem::take(&mut self.traffic.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn counted<T>(&self, kind: &'static str, sent_bytes: usize, call: impl FnOnce() -> Result<T>) -> Result<T> {
        let started = Instant::now();
        let result = call();
        let mut traffic = self.traffic.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = traffic.entry(kind).or_default();
        entry.calls += 1;
        entry.sent_bytes += sent_bytes as u64;
        entry.seconds += started.elapsed().as_secs_f64();
        result
    }

    /// Concatenates the blocks of all processes by rank; `lengths` has the length of each.
    pub fn all_gather(&self, kind: &'static str, own: &[f32], lengths: &[usize]) -> Result<Vec<f32>> {
        let sent = size_of_val(own) * (self.size() - 1);
        self.counted(kind, sent, || self.transport.all_gather(own, lengths))
    }

    /// Sends every process its part of `parts` and concatenates the received parts; both lengths are by rank.
    pub fn exchange(&self, kind: &'static str, parts: &[f32], sent: &[usize], received: &[usize]) -> Result<Vec<f32>> {
        let bytes = size_of::<f32>() * (sent.iter().sum::<usize>() - sent[self.rank()]);
        self.counted(kind, bytes, || self.transport.exchange(parts, sent, received))
    }

    /// Exchanges a few numbers, and returns those of every process, `[size][own.len()]`.
    pub fn scalars(&self, own: &[f64]) -> Result<Vec<Vec<f64>>> {
        let sent = size_of_val(own) * (self.size() - 1);
        let all = self.counted("scalars", sent, || self.transport.all_gather_scalars(own))?;
        Ok(all.chunks(own.len().max(1)).map(<[f64]>::to_vec).collect())
    }

    /// The lowest rank of a process that failed, if any did. Every process reports whether it failed.
    pub fn first_failure(&self, failed: bool) -> Result<Option<usize>> {
        let all = self.scalars(&[f64::from(u8::from(failed))])?;
        Ok(all.iter().position(|failed| failed[0] > 0.0))
    }

    /// The sum over processes of each value, in the order of ranks, on every process.
    pub fn all_reduce(&self, kind: &'static str, values: &[f32]) -> Result<Vec<f32>> {
        let shares: Vec<usize> = self.shares(values.len()).into_iter().map(|share| share.len()).collect();
        let own = self.reduce_scatter(kind, values, &shares)?;
        self.all_gather(kind, &own, &shares)
    }

    /// This process's part of the sum over processes of their `values`, in the order of ranks. `lengths` has the length of every process's
    /// part.
    pub fn reduce_scatter(&self, kind: &'static str, values: &[f32], lengths: &[usize]) -> Result<Vec<f32>> {
        let own = lengths[self.rank()];
        let parts = self.exchange(kind, values, lengths, &vec![own; self.size()])?;
        let mut total = vec![0.0; own];
        total.par_chunks_mut(PIECE).enumerate().for_each(|(piece, total)| {
            for part in parts.chunks(own.max(1)) {
                accumulate(total, &part[piece * PIECE..][..total.len()]);
            }
        });
        Ok(total)
    }

    /// The blocks of all processes by rank on the first process, and nothing on the others.
    pub fn gather_to_first(&self, kind: &'static str, own: &[f32], lengths: &[usize]) -> Result<Vec<f32>> {
        let mut sent = vec![0; self.size()];
        sent[0] = own.len();
        let nothing = vec![0; self.size()];
        self.exchange(kind, own, &sent, if self.is_first() { lengths } else { &nothing })
    }
}

/// The number of values in a parallel piece of a sum.
const PIECE: usize = 1 << 14;
