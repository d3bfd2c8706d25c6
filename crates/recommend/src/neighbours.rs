//! Finds the items nearest to a vector, by cosine similarity of the vectors by which a model ranks items.

use candle_core::Tensor;
use mp4sr_ops::{ScoreBlocks, normalize};

use crate::top::{Best, CandidateItems};
use crate::{RecommendError, Scored};

/// The item matrix with rows of length one.
pub struct Neighbours(ScoreBlocks);

impl Neighbours {
    /// Normalises the rows of an item matrix `[I, k]`.
    pub fn new(items: &Tensor) -> Result<Self, RecommendError> {
        Ok(Self(ScoreBlocks::new(&normalize(items)?)?))
    }

    /// The `k` candidates nearest to each of the vectors `[n, k]` by cosine similarity, best first, ties by item.
    pub fn nearest(
        &self,
        vectors: &Tensor,
        k: usize,
        candidates: &[CandidateItems<'_>],
    ) -> Result<Vec<Vec<Scored>>, RecommendError> {
        let mut best: Vec<Best<'_>> = candidates.iter().map(|own| Best::new(*own, None, k)).collect();
        self.0.scan(&normalize(vectors)?, 1, &mut best, Best::visit)?;
        let finished = best.into_iter().enumerate().map(|(history, best)| best.finished(history));
        finished.collect()
    }
}
