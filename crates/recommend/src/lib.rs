//! Top-K lists: a scorer and histories to the items with the highest scores.
//!
//! In: a model ready to rank, histories. Out: lists, best first. Must not know: training.

use mp4sr_models::{Error, Scorer};

/// An item (1-based) and its score.
pub type Scored = (u32, f32);

/// What can go wrong while recommending.
#[derive(Debug, thiserror::Error)]
pub enum RecommendError {
    /// A score that is no number.
    #[error("the score of item {item} for history {history} is {score}; the model is not usable, train it again")]
    Score {
        /// The history, from 0.
        history: usize,
        /// The item, 1-based.
        item: usize,
        /// Its score.
        score: f32,
    },
    /// The model failed.
    #[error(transparent)]
    Model(#[from] Error),
}

/// The `k` items with the highest scores for each history (none empty), best first, ties by item; with `remove_seen`,
/// a history's own items are left out.
pub fn top_k(
    scorer: &dyn Scorer,
    histories: &[&[u32]],
    k: usize,
    remove_seen: bool,
) -> Result<Vec<Vec<Scored>>, RecommendError> {
    let items = scorer.items().t()?.contiguous()?;
    let scores = mp4sr_ops::product(&scorer.sequences(histories)?, &items)?.to_vec2::<f32>()?;
    let mut lists = Vec::with_capacity(histories.len());
    for (at, (scores, history)) in scores.into_iter().zip(histories).enumerate() {
        if let Some(item) = scores.iter().position(|s| !s.is_finite()) {
            return Err(RecommendError::Score { history: at, item: item + 1, score: scores[item] });
        }
        let candidates = scores.into_iter().zip(1u32..).map(|(score, item)| (item, score));
        let mut candidates: Vec<Scored> =
            candidates.filter(|(item, _)| !remove_seen || !history.contains(item)).collect();
        let better = |a: &Scored, b: &Scored| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        if candidates.len() > k {
            candidates.select_nth_unstable_by(k, better);
            candidates.truncate(k);
        }
        candidates.sort_unstable_by(better);
        lists.push(candidates);
    }
    Ok(lists)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Tensor};

    struct Fixed(Tensor, Vec<f32>);

    impl Scorer for Fixed {
        fn items(&self) -> &Tensor {
            &self.0
        }
        fn sequences(&self, histories: &[&[u32]]) -> mp4sr_models::Result<Tensor> {
            Tensor::from_vec(self.1.clone(), (histories.len(), 1), &Device::Cpu)
        }
    }

    #[test]
    fn lists_are_ordered_ties_go_by_item_and_seen_items_leave() {
        let items = Tensor::new(&[[1f32], [3.0], [2.0], [3.0], [0.0]], &Device::Cpu).unwrap();
        let scorer = Fixed(items, vec![1.0, -1.0]);
        let lists = top_k(&scorer, &[&[4], &[1]], 3, false).unwrap();
        assert_eq!(lists[0], [(2, 3.0), (4, 3.0), (3, 2.0)]);
        assert_eq!(lists[1].iter().map(|l| l.0).collect::<Vec<_>>(), [5, 1, 3]);
        let lists = top_k(&scorer, &[&[4], &[1]], 9, true).unwrap();
        assert_eq!(lists[0].iter().map(|l| l.0).collect::<Vec<_>>(), [2, 3, 1, 5]);
    }

    #[test]
    fn a_score_that_is_no_number_is_an_error() {
        let items = Tensor::new(&[[1f32], [f32::INFINITY]], &Device::Cpu).unwrap();
        assert!(top_k(&Fixed(items, vec![1.0]), &[&[1]], 1, false).unwrap_err().to_string().contains("item 2"));
    }
}
