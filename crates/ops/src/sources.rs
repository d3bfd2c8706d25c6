//! The sizes and the options of attention whose scores are fused from several sources.

use candle_core::{Result, bail};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How attention combines the scores of several sources into one. The weight of a source is the softmax over the sources of
/// relu(S V + c) . v, S being a row of its scores; the linear map is of such rows side by side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ScoreFusion {
    /// By a weighted sum, whose weights a small network computes from each source's scores.
    #[default]
    Gate,
    /// By their sum.
    Sum,
    /// By a linear map of all scores.
    Concat,
}

/// The sizes of attention whose scores come from several sources.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceSizes {
    /// The width of each source's queries and keys, all heads together.
    pub sources: Vec<usize>,
    /// d, the width of values; scores are divided by the root of the width of one head's values.
    pub width: usize,
    /// The number of attention heads.
    pub heads: usize,
    /// n, the greatest length of a sequence. The parameters of a fusion are sized for rows of n scores.
    pub max_sequence_length: usize,
    /// How the sources' scores are combined.
    pub fusion: ScoreFusion,
}

impl SourceSizes {
    /// The width of the queries of all sources side by side.
    pub fn queries(&self) -> usize {
        self.sources.iter().sum()
    }

    /// The number of the fusion's parameters. The gate has V `[n, n]`, c `[n]`, v `[n]` and a scalar without effect; the concatenation has
    /// a weight `[sources n, n]` and a bias `[n]`.
    pub fn fusion_count(&self) -> usize {
        let n = self.max_sequence_length;
        match self.fusion {
            ScoreFusion::Sum => 0,
            ScoreFusion::Gate => n * n + 2 * n + 1,
            ScoreFusion::Concat => self.sources.len() * n * n + n,
        }
    }

    pub(crate) fn check(&self) -> Result<()> {
        let divides = |width: &usize| *width > 0 && width.is_multiple_of(self.heads);
        if self.heads == 0 || !divides(&self.width) || !self.sources.iter().all(divides) || self.sources.is_empty() {
            bail!("source attention: {} heads do not divide {:?} and {}", self.heads, self.sources, self.width);
        }
        Ok(())
    }
}

/// Which queries are computed, and which keys each of them sees.
#[derive(Clone, Copy, Debug)]
pub struct SourceScope<'a> {
    /// The number of real tokens of each sequence, if sequences are padded and a fusion sees the scores of all keys. Without it, a fusion
    /// sees 0 as the score of a key that the query may not see.
    pub real: Option<&'a [usize]>,
    /// Whether only the last real token of each sequence has a query.
    pub last_only: bool,
    /// Whether a token sees all real tokens of its sequence; otherwise, it sees those up to itself.
    pub bidirectional: bool,
}
