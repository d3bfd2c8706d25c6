//! Finds the best items of a query among its candidates.

use mp4sr_models::Query;

use crate::RecommendError;

/// An item (1-based) and its score.
pub type Scored = (u32, f32);

/// The items that may be listed for a query.
#[derive(Clone, Copy, Debug, Default)]
pub struct CandidateItems<'a> {
    /// For each item, whether it may be listed, `[I]`; `None` means every item.
    pub allowed: Option<&'a [bool]>,
    /// The items that must not be listed, 1-based, ascending.
    pub removed: &'a [u32],
}

impl CandidateItems<'_> {
    /// Whether an item, 1-based, may be listed.
    pub fn has(&self, item: u32) -> bool {
        self.allowed.is_none_or(|allowed| allowed[item as usize - 1]) && self.removed.binary_search(&item).is_err()
    }
}

/// Checks that a selection of candidates leaves at least one of the `items` items of the run.
pub fn expect_candidates(candidates: CandidateItems<'_>, items: usize) -> Result<(), RecommendError> {
    let left = (1..=items as u32).any(|item| candidates.has(item));
    if left { Ok(()) } else { Err(RecommendError::NoCandidate { items }) }
}

/// A query with the length and the candidates of its list.
#[derive(Clone, Copy, Debug)]
pub struct ListQuery<'a> {
    /// The query; its history is not empty.
    pub query: Query<'a>,
    /// The known next item, which is placed after all other items of the same score, as in evaluation.
    pub target: Option<u32>,
    /// The length of the list.
    pub k: usize,
    /// The items that may be listed.
    pub candidates: CandidateItems<'a>,
}

/// The order of a list: by score, with the target last among equal scores, then by item.
pub(crate) fn order(target: Option<u32>) -> impl Fn(&Scored, &Scored) -> std::cmp::Ordering {
    let is_target = move |scored: &Scored| Some(scored.0) == target;
    move |a, b| b.1.total_cmp(&a.1).then(is_target(a).cmp(&is_target(b))).then(a.0.cmp(&b.0))
}

/// Collects the best candidates while blocks of scores are visited.
pub(crate) struct Best<'a> {
    candidates: CandidateItems<'a>,
    target: Option<u32>,
    k: usize,
    /// At most 2 k candidates, which include the k best so far.
    found: Vec<Scored>,
    bad: Option<Scored>,
}

impl<'a> Best<'a> {
    pub(crate) fn new(candidates: CandidateItems<'a>, target: Option<u32>, k: usize) -> Self {
        Self { candidates, target, k, found: Vec::new(), bad: None }
    }

    pub(crate) fn visit(&mut self, first: usize, scores: &[f32]) {
        // A score below the k-th best of the last cut cannot enter the list.
        let mut bound = self.bound();
        for (&score, item) in scores.iter().zip(first as u32 + 1..) {
            if !score.is_finite() {
                self.bad = self.bad.or(Some((item, score)));
                return;
            }
            if score < bound || !self.candidates.has(item) {
                continue;
            }
            self.found.push((item, score));
            if self.found.len() > 2 * self.k {
                self.cut();
                bound = self.bound();
            }
        }
        self.cut();
    }

    /// Adds the candidates that were found in later blocks.
    pub(crate) fn join(&mut self, later: Self) {
        self.bad = self.bad.or(later.bad);
        self.found.extend(later.found);
        self.cut();
    }

    /// The lowest score with which a new item can enter.
    fn bound(&self) -> f32 {
        if self.found.len() < self.k {
            return f32::NEG_INFINITY;
        }
        self.found.iter().map(|scored| scored.1).fold(f32::INFINITY, f32::min)
    }

    fn cut(&mut self) {
        if self.found.len() > self.k {
            self.found.select_nth_unstable_by(self.k, order(self.target));
            self.found.truncate(self.k);
        }
    }

    /// Returns the sorted list. `history` is the index of the query, for the error.
    pub(crate) fn finished(mut self, history: usize) -> Result<Vec<Scored>, RecommendError> {
        if let Some((item, score)) = self.bad {
            return Err(RecommendError::Score { history, item: item as usize, score });
        }
        self.found.sort_unstable_by(order(self.target));
        Ok(self.found)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};
    use mp4sr_models::{RngKey, Scorer};

    use super::*;
    use crate::Recommender;

    struct Fixed(Tensor);

    impl Scorer for Fixed {
        fn items(&self) -> &Tensor {
            &self.0
        }
        fn queries(&self, queries: &[Query<'_>]) -> mp4sr_models::Result<Tensor> {
            Tensor::ones((queries.len(), 1), candle_core::DType::F32, &Device::Cpu)
        }
    }

    /// Compares the lists with a sort of all candidates. There are few distinct scores, so that many are tied.
    #[test]
    fn lists_are_the_head_of_the_sorted_candidates() {
        let key = RngKey::new(5);
        let scores: Vec<f32> = (0..2500).map(|i| (key.bits(i) % 40) as f32 - 20.0).collect();
        let allowed: Vec<bool> = (0..2500).map(|i| !key.fold_in("allowed").bits(i).is_multiple_of(3)).collect();
        let scorer = Fixed(Tensor::from_vec(scores.clone(), (2500, 1), &Device::Cpu).unwrap());
        let recommender = Recommender::new(&scorer).unwrap();
        let removed: Vec<u32> = (1..=2500).step_by(7).collect();
        for (allowed, removed) in [(None, &[][..]), (Some(&allowed[..]), &[][..]), (Some(&allowed[..]), &removed[..])] {
            let candidates = CandidateItems { allowed, removed };
            let mut expected: Vec<Scored> = (1..=2500).zip(scores.iter().copied()).collect();
            expected.retain(|(item, _)| {
                allowed.is_none_or(|allowed| allowed[*item as usize - 1]) && !removed.contains(item)
            });
            expected.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            for k in [1, 10, 300, 5000] {
                let query = ListQuery { query: Query::of_history(&[1]), target: None, k, candidates };
                let lists = recommender.top_among(&[query]).unwrap();
                assert_eq!(lists[0], expected[..k.min(expected.len())], "{k}");
            }
        }
    }
}
