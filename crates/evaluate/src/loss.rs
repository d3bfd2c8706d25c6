use mp4sr_models::{Result, Scorer};
use mp4sr_ops::cross_entropy;
use mp4sr_protocol::{EvalCase, Split};

/// The mean over users of the cross-entropy of a split's targets under softmax of the scores over all items, nothing dropped;
/// NaN where no user has a case.
pub fn mean_loss<'a>(
    scorer: &dyn Scorer,
    users: usize,
    sequence: impl Fn(usize) -> &'a [u32],
    split: Split,
    batch: usize,
) -> Result<f64> {
    let cases: Vec<EvalCase<'a>> = (0..users).filter_map(|user| EvalCase::of(sequence(user), split)).collect();
    let mut sum = 0.0;
    for block in cases.chunks(batch) {
        let histories: Vec<&[u32]> = block.iter().map(|case| case.history).collect();
        let targets: Vec<u32> = block.iter().map(|case| case.target - 1).collect();
        let losses = cross_entropy(&scorer.sequences(&histories)?, scorer.items(), &targets, 1.0)?;
        sum += losses.to_vec1::<f32>()?.iter().map(|&loss| f64::from(loss)).sum::<f64>();
    }
    Ok(sum / cases.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Tensor};

    /// Scores of the two items are the length of the history and 0.
    struct Lengths(Tensor);

    impl Scorer for Lengths {
        fn items(&self) -> &Tensor {
            &self.0
        }
        fn sequences(&self, histories: &[&[u32]]) -> Result<Tensor> {
            let lengths: Vec<f32> = histories.iter().map(|history| history.len() as f32).collect();
            Tensor::from_vec(lengths, (histories.len(), 1), &Device::Cpu)
        }
    }

    #[test]
    fn worked_by_hand_and_users_without_a_case_do_not_count() {
        let scorer = Lengths(Tensor::new(&[[1f32], [0.0]], &Device::Cpu).unwrap());
        let users: [&[u32]; 3] = [&[2, 1], &[1], &[1, 1, 2]];
        let loss = |batch| mean_loss(&scorer, 3, |user| users[user], Split::Test, batch).unwrap();
        // Scores (1, 0) with target 1, and (2, 0) with target 2.
        let expected = f64::midpoint((1.0 + (-1f64).exp()).ln(), (1.0 + 2f64.exp()).ln());
        assert!((loss(1) - expected).abs() < 1e-6 && (loss(9) - expected).abs() < 1e-6);
        assert!(mean_loss(&scorer, 0, |_| &[][..], Split::Test, 4).unwrap().is_nan());
    }
}
