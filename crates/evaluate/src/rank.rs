//! Ranks and metrics (specification, section 8).

/// A score that is not a number, or infinite: an error, never a rank.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error("the score of item {item} is {score}")]
pub struct BadScore {
    /// The item, 1-based.
    pub item: u32,
    /// Its score.
    pub score: f32,
}

/// The rank of `target` (1-based item) among all items: 1 + items scored higher + other items scored equal, so ties count
/// against the model. Items for which `removed` holds are no candidates; the target always is one.
pub fn rank(scores: &[f32], target: u32, removed: impl Fn(u32) -> bool) -> Result<u32, BadScore> {
    if let Some(at) = scores.iter().position(|s| !s.is_finite()) {
        return Err(BadScore { item: at as u32 + 1, score: scores[at] });
    }
    let own = scores[target as usize - 1];
    let ahead = scores.iter().zip(1..).filter(|&(&s, item)| item != target && s >= own && !removed(item)).count();
    Ok(ahead as u32 + 1)
}

/// R@K: whether the rank is among the first K.
pub fn recall(rank: u32, k: usize) -> f64 {
    f64::from(rank as usize <= k)
}

/// N@K: 1 / log2(rank + 1) among the first K, 0 after them.
pub fn ndcg(rank: u32, k: usize) -> f64 {
    if rank as usize <= k { 1.0 / f64::from(rank + 1).log2() } else { 0.0 }
}

/// Means of R@K and N@K over users, by K.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Metrics {
    /// How many users.
    pub users: usize,
    /// K, R@K, N@K.
    pub at: Vec<(usize, f64, f64)>,
}

impl Metrics {
    /// Of ranks, for every K; zeros without users.
    pub fn of(ranks: &[u32], ks: &[usize]) -> Self {
        let mean = |f: &dyn Fn(u32) -> f64| {
            if ranks.is_empty() { 0.0 } else { ranks.iter().map(|&r| f(r)).sum::<f64>() / ranks.len() as f64 }
        };
        let at = ks.iter().map(|&k| (k, mean(&|r| recall(r, k)), mean(&|r| ndcg(r, k)))).collect();
        Self { users: ranks.len(), at }
    }

    /// R@K, where K was asked for.
    pub fn recall_at(&self, k: usize) -> Option<f64> {
        self.at.iter().find(|(at, _, _)| *at == k).map(|(_, recall, _)| *recall)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_count_against_the_model_and_removed_items_do_not_count() {
        let scores = [0.5, 0.9, 0.5, 0.1, 0.5];
        assert_eq!(rank(&scores, 1, |_| false).unwrap(), 4);
        assert_eq!(rank(&scores, 1, |i| i == 2 || i == 3).unwrap(), 2);
        assert_eq!(rank(&scores, 2, |i| i == 2).unwrap(), 1, "the target itself stays");
        assert_eq!(rank(&scores, 4, |_| false).unwrap(), 5);
        let bad = rank(&[0.0, f32::NAN], 1, |_| false).unwrap_err();
        assert_eq!(bad.item, 2);
    }

    #[test]
    fn metrics_worked_by_hand() {
        // Ranks 1, 3, 25: R@5 = 2/3, N@5 = (1 + 1/2) / 3; at 20 the same.
        let metrics = Metrics::of(&[1, 3, 25], &[5, 20, 25]);
        assert!((metrics.recall_at(5).unwrap() - 2.0 / 3.0).abs() < 1e-12);
        assert!((metrics.at[0].2 - 0.5).abs() < 1e-12);
        assert!((metrics.recall_at(25).unwrap() - 1.0).abs() < 1e-12);
        assert!((metrics.at[2].2 - (1.5 + 1.0 / 26f64.log2()) / 3.0).abs() < 1e-12);
    }
}
