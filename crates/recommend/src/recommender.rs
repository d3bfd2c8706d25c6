//! Lists for queries by all scores of a scorer.

use mp4sr_models::{Query, Scorer};
use mp4sr_ops::ScoreBlocks;

use crate::top::Best;
use crate::{CandidateItems, ListQuery, RecommendError, Scored};

/// A scorer with its item matrix prepared for many lists.
///
/// ```
/// use mp4sr_models::Query;
/// use mp4sr_recommend::Recommender;
/// # use mp4sr_artifact::{Sequences, hash_ids};
/// # use mp4sr_pipeline::Config;
/// # use mp4sr_run::{Inputs, build_model, last_phase, model_catalog};
///
/// # let text = "[dataset]\nname = \"shop\"\n[model]\nname = \"popularity\"";
/// # let (config, _) = Config::parse(text, "example", &[], model_catalog())?;
/// # let sequences = Sequences {
/// #     offsets: vec![0, 4, 8],
/// #     items: vec![2, 3, 1, 3, 2, 1, 1, 3],
/// #     times: vec![1, 2, 3, 4, 1, 2, 3, 4],
/// #     item_hash: hash_ids(["cup", "pot", "pan"]),
/// #     item_count: 3,
/// #     user_hash: None,
/// #     time_kind: mp4sr_artifact::TimeKind::Unstated,
/// #     parts: None,
/// # };
/// # let model = build_model(&config, &Inputs { sequences, modalities: Vec::new(), encoders: Default::default(), categories: None })?;
/// # let scorer = model.scorer(last_phase(model.as_ref())?)?;
/// // `scorer` is usually that of a `mp4sr_run::TrainedModel`; this one counts how often an item occurs in training.
/// let recommender = Recommender::new(scorer.as_ref())?;
/// let lists = recommender.top_k(&[Query::of_history(&[1]), Query::of_history(&[2, 3])], 2, true)?;
/// assert_eq!(lists[0], [(2, 2.0), (3, 1.0)]);
/// assert_eq!(lists[1], [(1, 1.0)]);
/// # Ok::<(), anyhow::Error>(())
/// ```
pub struct Recommender<'a> {
    scorer: &'a dyn Scorer,
    blocks: ScoreBlocks,
}

impl<'a> Recommender<'a> {
    /// Prepares a scorer for recommendation.
    pub fn new(scorer: &'a dyn Scorer) -> Result<Self, RecommendError> {
        Ok(Self { scorer, blocks: ScoreBlocks::new(scorer.items())? })
    }

    /// The item matrix in the blocks in which it is scored.
    pub fn blocks(&self) -> &ScoreBlocks {
        &self.blocks
    }

    /// The `k` items with the highest scores for each query, best first, ties by item. Histories must not be empty; with `remove_seen`, the
    /// items of a query's own history are excluded.
    pub fn top_k(
        &self,
        queries: &[Query<'_>],
        k: usize,
        remove_seen: bool,
    ) -> Result<Vec<Vec<Scored>>, RecommendError> {
        self.top_k_of_targets(queries, &[], k, remove_seen)
    }

    /// Like [`top_k`](Self::top_k) for queries with known next items (`targets`, one per query), ranked as in evaluation: the target stays
    /// a candidate even if it is in the history, and is placed after all other items of the same score. It is in a list of length `k` if
    /// and only if its rank is at most `k`.
    pub fn top_k_of_targets(
        &self,
        queries: &[Query<'_>],
        targets: &[Option<u32>],
        k: usize,
        remove_seen: bool,
    ) -> Result<Vec<Vec<Scored>>, RecommendError> {
        let target = |at: usize| targets.get(at).copied().flatten();
        let seen = |(at, query): (usize, &Query<'_>)| {
            let mut seen = query.history.to_vec();
            seen.retain(|item| remove_seen && Some(*item) != target(at));
            seen.sort_unstable();
            seen
        };
        let removed: Vec<Vec<u32>> = queries.iter().enumerate().map(seen).collect();
        let asked = queries.iter().zip(&removed).enumerate().map(|(at, (query, removed))| ListQuery {
            query: *query,
            target: target(at),
            k,
            candidates: CandidateItems { allowed: None, removed },
        });
        self.top_among(&asked.collect::<Vec<_>>())
    }

    /// The `k` candidates with the highest scores for each query, best first, ties by item.
    pub fn top_among(&self, queries: &[ListQuery<'_>]) -> Result<Vec<Vec<Scored>>, RecommendError> {
        // A product of a single row is summed in another order than one of several, so a single query is computed twice: lists must not
        // depend on how queries are divided among blocks and shards.
        if let [only] = queries {
            let mut lists = self.top_among(&[*only; 2])?;
            lists.truncate(1);
            return Ok(lists);
        }
        let of_scorer: Vec<Query<'_>> = queries.iter().map(|own| own.query).collect();
        let make = || queries.iter().map(|own| Best::new(own.candidates, own.target, own.k)).collect();
        let (vectors, interests) = (self.scorer.queries(&of_scorer)?, self.scorer.interests());
        let runs = self.blocks.scan_in_runs(&vectors, interests, make, Best::visit)?;
        let joined = runs.into_iter().reduce(|mut all, run| {
            all.iter_mut().zip(run).for_each(|(all, run)| all.join(run));
            all
        });
        let joined = joined.unwrap_or_default();
        joined.into_iter().enumerate().map(|(history, best)| best.finished(history)).collect()
    }
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
        fn queries(&self, queries: &[Query<'_>]) -> mp4sr_models::Result<Tensor> {
            Tensor::from_vec(self.1.clone(), (queries.len(), 1), &Device::Cpu)
        }
    }

    #[test]
    fn lists_are_ordered_with_ties_by_item_and_without_seen_items() {
        let items = Tensor::new(&[[1f32], [3.0], [2.0], [3.0], [0.0]], &Device::Cpu).unwrap();
        let scorer = Fixed(items, vec![1.0, -1.0]);
        let lists = Recommender::new(&scorer)
            .unwrap()
            .top_k(&[&[4], &[1]].map(|history| Query::of_history(history)), 3, false)
            .unwrap();
        assert_eq!(lists[0], [(2, 3.0), (4, 3.0), (3, 2.0)]);
        assert_eq!(lists[1].iter().map(|l| l.0).collect::<Vec<_>>(), [5, 1, 3]);
        let lists = Recommender::new(&scorer)
            .unwrap()
            .top_k(&[&[4], &[1]].map(|history| Query::of_history(history)), 9, true)
            .unwrap();
        assert_eq!(lists[0].iter().map(|l| l.0).collect::<Vec<_>>(), [2, 3, 1, 5]);
    }

    #[test]
    fn a_score_that_is_not_a_number_is_an_error() {
        let items = Tensor::new(&[[1f32], [f32::INFINITY]], &Device::Cpu).unwrap();
        assert!(
            Recommender::new(&Fixed(items, vec![1.0; 2]))
                .unwrap()
                .top_k(&[Query::of_history(&[1])], 1, false)
                .unwrap_err()
                .to_string()
                .contains("item 2")
        );
    }
}
