use std::sync::Arc;

use candle_core::{Result, bail};

/// Packed sequences: sequence j owns tokens `offsets[j]..offsets[j+1]`; none is empty.
#[derive(Clone, Debug)]
pub struct PackedOffsets {
    offsets: Arc<Vec<usize>>,
    /// On a card: the sequences' first tokens and the end, then the last token of each.
    #[cfg(feature = "cuda")]
    pub(crate) card: Arc<std::sync::OnceLock<crate::cuda::CardIndices>>,
}

impl PackedOffsets {
    /// From lengths, all at least 1.
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
            #[cfg(feature = "cuda")]
            card: Arc::default(),
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

    /// The place of every token in its sequence, from 0.
    pub fn positions(&self) -> Vec<u32> {
        (0..self.count()).flat_map(|j| 0..self.range(j).len() as u32).collect()
    }

    /// The same sequences `times` over.
    #[must_use]
    pub fn repeat(&self, times: usize) -> Self {
        let lengths = (0..times * self.count()).map(|j| self.range(j % self.count()).len());
        let mut offsets = vec![0];
        offsets.extend(lengths.scan(0, |end, length| {
            *end += length;
            Some(*end)
        }));
        Self::new(offsets)
    }

    /// Runs of whole sequences with about `tokens` tokens each: a function of the lengths alone.
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
