//! Offsets of sequences that are packed one after the other, without padding.

use std::sync::Arc;

use candle_core::{Result, bail};

/// Packed sequences: sequence j owns tokens `offsets[j]..offsets[j+1]`; none is empty.
#[derive(Clone, Debug)]
pub struct PackedOffsets {
    offsets: Arc<Vec<usize>>,
    /// The position of these sequences in a batch, if they are a share of one.
    share: Option<PackedShare>,
    /// On a GPU: the first tokens of the sequences and the end, then the last token of each sequence.
    #[cfg(feature = "cuda")]
    pub(crate) gpu: Arc<std::sync::OnceLock<crate::cuda::GpuIndices>>,
}

/// The position of a run of sequences in a batch. If the run is repeated, so is the batch: each copy of the run is a run of a copy of the
/// batch.
#[derive(Clone, Copy, Debug)]
struct PackedShare {
    /// The numbers of sequences of the run and of the batch.
    sequences: [usize; 2],
    /// The numbers of tokens of the run and of the batch.
    tokens: [usize; 2],
    first_sequence: usize,
    first_token: usize,
}

impl PackedOffsets {
    /// Builds the offsets from lengths, all of which must be at least 1.
    pub fn from_lengths(lengths: impl IntoIterator<Item = usize>) -> Result<Self> {
        let mut offsets = vec![0];
        let mut end = 0;
        for length in lengths {
            if length == 0 {
                bail!("a packed sequence must hold at least one token");
            }
            end += length;
            offsets.push(end);
        }
        Ok(Self::new(offsets))
    }

    fn new(offsets: Vec<usize>) -> Self {
        Self {
            offsets: Arc::new(offsets),
            share: None,
            #[cfg(feature = "cuda")]
            gpu: Arc::default(),
        }
    }

    /// The number of sequences.
    pub fn count(&self) -> usize {
        self.offsets.len() - 1
    }

    /// The number of tokens.
    pub fn tokens(&self) -> usize {
        self.offsets[self.count()]
    }

    /// The tokens of sequence `j`.
    pub fn range(&self, j: usize) -> std::ops::Range<usize> {
        self.offsets[j]..self.offsets[j + 1]
    }

    /// The last token of every sequence.
    pub fn last_tokens(&self) -> Vec<u32> {
        self.offsets[1..].iter().map(|&end| end as u32 - 1).collect()
    }

    /// The position of every token in its sequence, from 0.
    pub fn positions(&self) -> Vec<u32> {
        (0..self.count()).flat_map(|j| 0..self.range(j).len() as u32).collect()
    }

    /// The same sequences, repeated `times` times.
    #[must_use]
    pub fn repeat(&self, times: usize) -> Self {
        let lengths = (0..times * self.count()).map(|j| self.range(j % self.count()).len());
        let mut offsets = vec![0];
        offsets.extend(lengths.scan(0, |end, length| {
            *end += length;
            Some(*end)
        }));
        Self { share: self.share, ..Self::new(offsets) }
    }

    /// The sequences of a range. They keep the numbers that they have here, by which dropout is drawn, so a share of a batch gives the same
    /// results as in the whole batch.
    #[must_use]
    pub fn share(&self, sequences: std::ops::Range<usize>) -> Self {
        let first = self.offsets[sequences.start];
        let offsets: Vec<usize> = self.offsets[sequences.start..=sequences.end].iter().map(|at| at - first).collect();
        let share = PackedShare {
            sequences: [sequences.len(), self.count()],
            tokens: [offsets[sequences.len()], self.tokens()],
            first_sequence: sequences.start,
            first_token: first,
        };
        Self { share: Some(share), ..Self::new(offsets) }
    }

    /// Whether these sequences are a share of a batch.
    pub fn is_share(&self) -> bool {
        self.share.is_some()
    }

    /// The number of a token in the whole batch.
    pub(crate) fn token_number(&self, token: usize) -> usize {
        self.share.map_or(token, |share| number(token, share.tokens, share.first_token))
    }

    /// Cuts `range` into runs of tokens with consecutive numbers, and returns each with the number of its first token.
    pub(crate) fn token_runs(&self, range: std::ops::Range<usize>) -> Vec<(std::ops::Range<usize>, usize)> {
        runs(range, self.share.map(|share| (share.tokens, share.first_token)))
    }

    /// Cuts `range` into runs of sequences with consecutive numbers, and returns each with the number of its first sequence.
    pub(crate) fn sequence_runs(&self, range: std::ops::Range<usize>) -> Vec<(std::ops::Range<usize>, usize)> {
        runs(range, self.share.map(|share| (share.sequences, share.first_sequence)))
    }

    /// Runs of whole sequences with about `tokens` tokens each. They depend on the lengths alone.
    pub(crate) fn shards(&self, tokens: usize) -> Vec<std::ops::Range<usize>> {
        let mut shards = Vec::new();
        let mut start = 0;
        for j in 0..self.count() {
            if self.offsets[j + 1] - self.offsets[start] >= tokens || j + 1 == self.count() {
                shards.push(start..j + 1);
                start = j + 1;
            }
        }
        shards
    }
}

/// The number of element `at` of a repeated run in the repeated batch. A copy of the run has `own` elements and starts at element `first`
/// of its copy of the batch, which has `all` elements.
fn number(at: usize, [own, all]: [usize; 2], first: usize) -> usize {
    (at / own.max(1)) * all + first + at % own.max(1)
}

fn runs(range: std::ops::Range<usize>, share: Option<([usize; 2], usize)>) -> Vec<(std::ops::Range<usize>, usize)> {
    let Some((counts, first)) = share else { return vec![(range.clone(), range.start)] };
    let (mut runs, mut start) = (Vec::new(), range.start);
    while start < range.end {
        let end = ((start / counts[0] + 1) * counts[0]).min(range.end);
        runs.push((start..end, number(start, counts, first)));
        start = end;
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sequences have 2, 1, 3 and 1 tokens; the second and the third are the share, repeated three times.
    #[test]
    fn a_share_keeps_the_numbers_of_the_whole() {
        let all = PackedOffsets::from_lengths([2, 1, 3, 1]).unwrap();
        let share = all.share(1..3).repeat(3);
        assert_eq!((share.count(), share.tokens(), share.range(1), share.range(5)), (6, 12, 1..4, 9..12));
        let numbers: Vec<usize> = (0..12).map(|token| share.token_number(token)).collect();
        assert_eq!(numbers, [2, 3, 4, 5, 9, 10, 11, 12, 16, 17, 18, 19]);
        assert_eq!(share.token_runs(2..9), [(2..4, 4), (4..8, 9), (8..9, 16)]);
        assert_eq!(share.sequence_runs(0..5), [(0..2, 1), (2..4, 5), (4..5, 9)]);
        assert_eq!(all.token_runs(1..5), [(1..5, 1)]);
        assert!(all.share(2..2).repeat(2).token_runs(0..0).is_empty());
    }
}
