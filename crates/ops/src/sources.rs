use candle_core::{Result, bail};

/// How attention makes one score out of those of several sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScoreFusion {
    /// Their sum.
    Sum,
    /// Their weighted sum: a source's weight is the softmax over the sources of relu(S V + c) . v, S being a row of its scores.
    Gate,
    /// A linear map of a row of all their scores side by side.
    Concat,
}

/// Sizes of attention whose scores come from several sources.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceSizes {
    /// Widths of the sources' queries and keys, all heads together, in order.
    pub sources: Vec<usize>,
    /// d, the width of values; a score is divided by the root of a head's part of it.
    pub width: usize,
    /// Attention heads.
    pub heads: usize,
    /// n, the longest sequence: rows of scores are that long where a fusion maps them.
    pub positions: usize,
    /// How the sources' scores become one.
    pub fusion: ScoreFusion,
}

impl SourceSizes {
    /// The width of queries: of all sources side by side.
    pub fn queries(&self) -> usize {
        self.sources.iter().sum()
    }

    /// The number of the fusion's parameters: for the gate V `[n, n]`, c `[n]`, v `[n]` and a number without effect, for the
    /// concatenation a weight `[sources n, n]` and a bias `[n]`.
    pub fn fusion_count(&self) -> usize {
        let n = self.positions;
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

/// Which scores and which queries there are.
#[derive(Clone, Copy, Debug)]
pub struct SourceScope<'a> {
    /// The number of real tokens of each sequence, where sequences are padded and a fusion sees the scores of all keys. Without it,
    /// a fusion sees the scores of a key that the query may not see as 0.
    pub real: Option<&'a [usize]>,
    /// Whether only the last real token of each sequence asks.
    pub last_only: bool,
    /// Whether a token sees all real tokens of its sequence; without it, those up to itself.
    pub bidirectional: bool,
}
