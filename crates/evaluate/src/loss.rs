//! The cross-entropy of the held-out targets.

use candle_core::{D, Tensor};
use mp4sr_models::{Error, ProcessGroup, Query, Result, Scorer};
use mp4sr_ops::{Mask, cross_entropy, gather, merge_logsumexp, plain, row_logsumexp};
use mp4sr_protocol::EvalCase;

/// The mean cross-entropy of the targets of all users with a case, under the softmax of the scores over all items, without dropout;
/// `None` if no user has a case.
pub fn mean_loss<'a>(
    scorer: &dyn Scorer,
    users: usize,
    case: impl Fn(usize) -> Option<EvalCase<'a>>,
    batch: usize,
) -> Result<Option<f64>> {
    let cases: Vec<(u32, EvalCase<'a>)> = (0..users).filter_map(|user| Some((user as u32, case(user)?))).collect();
    let mut sum = 0.0;
    for block in cases.chunks(batch) {
        let query = |(user, case): &(u32, EvalCase<'a>)| Query { user: Some(*user), history: case.history };
        let queries = scorer.queries(&block.iter().map(query).collect::<Vec<_>>())?;
        let targets: Vec<u32> = block.iter().map(|(_, case)| case.target - 1).collect();
        let losses = match scorer.interests() {
            1 => cross_entropy(&queries, scorer.items(), &targets, 1.0)?,
            interests => of_interests(&queries, scorer.items(), &targets, interests)?,
        };
        sum += losses.to_vec1::<f32>()?.iter().map(|&loss| f64::from(loss)).sum::<f64>();
    }
    Ok((!cases.is_empty()).then(|| sum / cases.len() as f64))
}

/// Like [`mean_loss`], computed by a group of processes, each of which has a scorer of its own items. Every process gets the mean, which
/// differs from that of a single process only by rounding.
pub fn mean_loss_in_group<'a>(
    group: &ProcessGroup,
    scorer: &dyn Scorer,
    users: usize,
    case: impl Fn(usize) -> Option<EvalCase<'a>>,
    batch: usize,
) -> Result<Option<f64>> {
    if scorer.interests() != 1 {
        let interests = scorer.interests();
        return Err(Error::Msg(format!("the loss of {interests} interests per query is computed by one process only")));
    }
    let cases: Vec<(u32, EvalCase<'a>)> = (0..users).filter_map(|user| Some((user as u32, case(user)?))).collect();
    let (first, items) = (scorer.first_item(), scorer.items());
    let mut sum = 0.0;
    for block in cases.chunks(batch) {
        let query = |(user, case): &(u32, EvalCase<'a>)| Query { user: Some(*user), history: case.history };
        let queries = scorer.queries(&block.iter().map(query).collect::<Vec<_>>())?;
        let own = row_logsumexp(&queries, items, 1.0, &Mask::None)?;
        let sums = merge_logsumexp(group, "log-sum-exp", &own)?.to_vec1::<f32>()?;
        sum += sums.iter().map(|&sum| f64::from(sum)).sum::<f64>();
        // The process that has the item of a target subtracts the target's logit.
        let targets = block.iter().zip(0u32..).filter_map(|((_, case), row)| {
            let column = (case.target as usize - 1).checked_sub(first).filter(|&column| column < items.dims()[0])?;
            Some((row, column as u32))
        });
        let (rows, columns): (Vec<u32>, Vec<u32>) = targets.unzip();
        let hits = (gather(&queries, &rows)? * gather(items, &columns)?)?.sum(D::Minus1)?.to_vec1::<f32>()?;
        let hits = group.scalars(&[hits.iter().map(|&hit| f64::from(hit)).sum()])?;
        sum -= hits.iter().map(|of| of[0]).sum::<f64>();
    }
    Ok((!cases.is_empty()).then(|| sum / cases.len() as f64))
}

/// The cross-entropy of each target if a score is the greatest over several vectors of a query.
fn of_interests(queries: &Tensor, items: &Tensor, targets: &[u32], interests: usize) -> Result<Tensor> {
    let scores = plain::product(queries, &items.t()?.contiguous()?)?;
    let scores = scores.reshape((targets.len(), interests, items.dim(0)?))?.max(1)?;
    let columns = Tensor::from_slice(targets, (targets.len(), 1), scores.device())?;
    scores.log_sum_exp(D::Minus1)? - scores.gather(&columns, 1)?.squeeze(1)?
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    /// A scorer that gives the first of two items the length of the history and the second 0; further interests score the first item lower.
    struct Lengths(Tensor, usize);

    impl Scorer for Lengths {
        fn items(&self) -> &Tensor {
            &self.0
        }
        fn interests(&self) -> usize {
            self.1
        }
        fn queries(&self, queries: &[Query<'_>]) -> Result<Tensor> {
            let lengths = queries.iter().flat_map(|query| (0..self.1).map(|at| query.history.len() as f32 - at as f32));
            Tensor::from_vec(lengths.collect::<Vec<_>>(), (queries.len() * self.1, 1), &Device::Cpu)
        }
    }

    #[test]
    fn losses_match_hand_computed_values_and_users_without_a_case_are_skipped() {
        let scorer = |interests| Lengths(Tensor::new(&[[1f32], [0.0]], &Device::Cpu).unwrap(), interests);
        let users: [&[u32]; 3] = [&[2, 1], &[1], &[1, 1, 2]];
        let loss = |batch, interests| {
            mean_loss(&scorer(interests), 3, |user| EvalCase::last_of(users[user]), batch).unwrap().unwrap()
        };
        // The scores are (1, 0) with target 1, and (2, 0) with target 2.
        let expected = f64::midpoint((1.0 + (-1f64).exp()).ln(), (1.0 + 2f64.exp()).ln());
        for interests in [1, 2] {
            let losses = [loss(1, interests), loss(9, interests)];
            assert!(losses.iter().all(|loss| (loss - expected).abs() < 1e-6), "{losses:?}");
        }
        assert_eq!(mean_loss(&scorer(1), 0, |_| None, 4).unwrap(), None);
    }
}
