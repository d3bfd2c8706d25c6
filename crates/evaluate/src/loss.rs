use mp4sr_models::{Result, Scorer};
use mp4sr_ops::cross_entropy;
use mp4sr_protocol::{Case, Split};

/// The mean over users of the cross-entropy of a split's targets under softmax of the scores over all items, nothing dropped;
/// NaN where no user has a case.
pub fn mean_loss<'a>(
    scorer: &dyn Scorer,
    users: usize,
    sequence: impl Fn(usize) -> &'a [u32],
    split: Split,
    batch: usize,
) -> Result<f64> {
    let cases: Vec<Case<'a>> = (0..users).filter_map(|user| Case::of(sequence(user), split)).collect();
    let mut sum = 0.0;
    for block in cases.chunks(batch) {
        let histories: Vec<&[u32]> = block.iter().map(|case| case.history).collect();
        let targets: Vec<u32> = block.iter().map(|case| case.target - 1).collect();
        let losses = cross_entropy(&scorer.sequences(&histories)?, scorer.items(), &targets, 1.0)?;
        sum += losses.to_vec1::<f32>()?.iter().map(|&loss| f64::from(loss)).sum::<f64>();
    }
    Ok(sum / cases.len() as f64)
}
