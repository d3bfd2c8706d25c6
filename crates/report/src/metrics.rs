use std::path::Path;

use mp4sr_artifact::{Fingerprint, TensorFile};

use crate::Result;

/// Means of R@K and N@K over the users that have a rank.
///
/// Defined in section 8 of the specification; computed here again from the stored ranks, so that a page never needs the
/// model that gave them.
#[derive(Clone, Debug, PartialEq)]
pub struct Metrics {
    /// Users with a rank.
    pub users: usize,
    /// By K, in the order asked for.
    pub recall: Vec<f64>,
    /// By K, in the order asked for.
    pub ndcg: Vec<f64>,
}

impl Metrics {
    /// Of one rank a user, 0 where there is none.
    pub fn of(ranks: &[u32], ks: &[usize]) -> Self {
        let ranked: Vec<u32> = ranks.iter().copied().filter(|&rank| rank > 0).collect();
        let mean = |gain: &dyn Fn(u32) -> f64| match ranked.len() {
            0 => 0.0,
            users => ranked.iter().map(|&rank| gain(rank)).sum::<f64>() / users as f64,
        };
        let recall = |k: usize| mean(&|rank| f64::from(rank as usize <= k));
        let ndcg = |k: usize| mean(&|rank| if rank as usize <= k { 1.0 / (f64::from(rank) + 1.0).log2() } else { 0.0 });
        Self {
            users: ranked.len(),
            recall: ks.iter().map(|&k| recall(k)).collect(),
            ndcg: ks.iter().map(|&k| ndcg(k)).collect(),
        }
    }
}

/// Reads `ranks.<split>.safetensors` of a dataset with these items.
pub(crate) fn read_ranks(path: &Path, items: &Fingerprint) -> Result<Vec<u32>> {
    const REMEDY: &str = "run `make evaluate` again";
    let mut file = TensorFile::read(path, "ranks", 1, REMEDY)?;
    file.expect_items(items, REMEDY)?;
    Ok(file.take_u32("rank")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worked_by_hand_and_users_without_a_rank_do_not_count() {
        // Ranks 1, 3, 25 of three users; N@5 = (1/log2(2) + 1/log2(4)) / 3.
        let metrics = Metrics::of(&[1, 0, 3, 25], &[1, 5, 20]);
        assert_eq!(metrics.users, 3);
        let close = |a: &[f64], b: [f64; 3]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-12);
        assert!(close(&metrics.recall, [1.0 / 3.0, 2.0 / 3.0, 2.0 / 3.0]), "{metrics:?}");
        assert!(close(&metrics.ndcg, [1.0 / 3.0, 0.5, 0.5]), "{metrics:?}");
    }

    #[test]
    fn nobody_gives_zeros() {
        assert_eq!(Metrics::of(&[0], &[5]), Metrics { users: 0, recall: vec![0.0], ndcg: vec![0.0] });
        assert_eq!(Metrics::of(&[u32::MAX], &[5]).ndcg, [0.0]);
    }
}
