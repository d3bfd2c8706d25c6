//! Candidates of a training step: the softmax runs over all items, or over a sample that represents them.
//!
//! A sample consists of the batch's targets and of items that are drawn uniformly. The logit of every column except the row's own target is
//! raised by -log Q, where Q is the probability that the column is in the sample (Bengio and Senécal, 2008), so that the expected sum of
//! exponentials is that over all items. A row's own target is always in the sample, so its logit is not changed (Khrylchenko et al., 2025,
//! arXiv 2507.09331).

use std::collections::HashSet;

use mp4sr_ops::{Error, Result, RngKey};

use crate::{Batch, TrainingSequences};

/// Draws the columns of a step's softmax.
#[derive(Clone, Debug)]
pub struct CandidateSampler {
    /// The number of items that are drawn in every step.
    drawn: usize,
    /// `[I]`: the number of samples of which each item is the target.
    targets: Vec<u32>,
    /// The number of all samples.
    samples: u64,
}

/// The columns of a step's softmax that represent all items.
#[derive(Clone, Debug, PartialEq)]
pub struct SampledItems {
    /// The rows of the items, from 0, ascending.
    pub items: Vec<u32>,
    /// `[B]`: the index in `items` of each sample's target.
    pub targets: Vec<u32>,
    /// -log of each item's probability of being in the sample.
    pub shifts: Vec<f32>,
}

impl CandidateSampler {
    /// Creates a sampler that draws `drawn` of `items` items per step in addition to the targets. The samples are the prefixes of the
    /// training sequences, so every event except the first of a sequence is a target.
    pub fn new(drawn: usize, items: usize, training: &TrainingSequences) -> Result<Self> {
        if drawn == 0 {
            return Err(Error::Msg("at least one item has to be drawn as a candidate".to_owned()));
        }
        let mut targets = vec![0; items];
        for user in 0..training.users() {
            for &item in training.of(user).iter().skip(1) {
                targets[item as usize - 1] += 1;
            }
        }
        let samples = targets.iter().map(|&count| u64::from(count)).sum();
        Ok(Self { drawn: drawn.min(items), targets, samples })
    }

    /// Draws the sample for a batch with these targets (1-based), determined by the key.
    pub fn draw(&self, targets: &[u32], key: RngKey) -> SampledItems {
        let mut chosen = self.uniform(key);
        chosen.extend(targets.iter().map(|target| target - 1));
        let mut items: Vec<u32> = chosen.into_iter().collect();
        items.sort_unstable();
        let index = |target: &u32| items.partition_point(|item| *item < target - 1) as u32;
        SampledItems {
            targets: targets.iter().map(index).collect(),
            shifts: items.iter().map(|&item| self.shift(item, targets.len())).collect(),
            items,
        }
    }

    /// Draws distinct rows of items; all sets of that size are equally likely (Floyd's algorithm).
    fn uniform(&self, key: RngKey) -> HashSet<u32> {
        let items = self.targets.len();
        let mut chosen = HashSet::with_capacity(2 * self.drawn);
        for last in items - self.drawn..items {
            let draw = (key.uniform(last as u64) * (last + 1) as f64) as u32;
            if !chosen.insert(draw) {
                chosen.insert(last as u32);
            }
        }
        chosen
    }

    /// -log of the probability that an item is drawn or is the target of one of the other samples of a batch, given that it is not that of
    /// the row's own sample.
    fn shift(&self, item: u32, batch: usize) -> f32 {
        let drawn = self.drawn as f64 / self.targets.len() as f64;
        let is_no_target = none_of(u64::from(self.targets[item as usize]), self.samples, batch as u64);
        -(1.0 - (1.0 - drawn) * is_no_target).ln() as f32
    }
}

/// The probability that a batch that contains the row's sample contains none of `own` other samples, if it is drawn without replacement from
/// `samples` samples: C(samples - 1 - own, batch - 1) / C(samples - 1, batch - 1).
fn none_of(own: u64, samples: u64, batch: u64) -> f64 {
    let (others, drawn) = (samples.saturating_sub(1), batch.saturating_sub(1));
    if own + drawn > others {
        return 0.0;
    }
    let (few, many) = (own.min(drawn), own.max(drawn));
    (0..few).map(|i| (others - many - i) as f64 / (others - i) as f64).product()
}

/// Appends to `items` (rows from 0, ascending) the items of a batch's histories that are not among them, in ascending order. Returns the
/// index of each token's item.
pub(crate) fn add_history(items: &mut Vec<u32>, batch: &Batch) -> Vec<u32> {
    let count = items.len();
    let mut own: Vec<u32> = batch.items.iter().map(|item| item - 1).collect();
    own.sort_unstable();
    own.dedup();
    own.retain(|item| items.binary_search(item).is_err());
    items.extend_from_slice(&own);
    let index = |item: u32| match items[..count].binary_search(&item) {
        Ok(at) => at,
        Err(_) => count + own.partition_point(|other| *other < item),
    };
    batch.items.iter().map(|item| index(item - 1) as u32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Four users over eight items; item 8 is never a target.
    fn training() -> TrainingSequences {
        TrainingSequences::new([&[1, 2, 3][..], &[8, 2, 4, 5], &[7, 2, 3], &[6, 1, 7, 6]])
    }

    #[test]
    fn a_sample_has_all_targets_and_as_many_others_as_were_asked_for() {
        let sampler = CandidateSampler::new(3, 8, &training()).unwrap();
        for step in 0..200 {
            let sample = sampler.draw(&[2, 7, 2], RngKey::new(1).fold_in_index(step));
            assert!(sample.items.windows(2).all(|pair| pair[0] < pair[1]));
            assert!((3..=5).contains(&sample.items.len()), "{:?}", sample.items);
            let found: Vec<u32> = sample.targets.iter().map(|&at| sample.items[at as usize] + 1).collect();
            assert_eq!(found, [2, 7, 2]);
            assert_eq!(sample, sampler.draw(&[2, 7, 2], RngKey::new(1).fold_in_index(step)));
        }
    }

    #[test]
    fn every_item_is_drawn_equally_often() {
        let sampler = CandidateSampler::new(3, 8, &training()).unwrap();
        let mut counts = [0; 8];
        let draws = 8000;
        for step in 0..draws {
            sampler.uniform(RngKey::new(2).fold_in_index(step)).iter().for_each(|&item| counts[item as usize] += 1);
        }
        // 3000 times each, with a standard deviation of 43.
        assert!(counts.iter().all(|&count| (2800..3200).contains(&count)), "{counts:?}");
    }

    /// For batches of 5 of the 10 samples, compares the shift of an item with how often it is in the sample if it is not the first row's
    /// target.
    #[test]
    fn the_shift_is_the_logarithm_of_how_often_an_item_is_in_the_sample() {
        let sampler = CandidateSampler::new(2, 8, &training()).unwrap();
        let targets: Vec<u32> = (0..4).flat_map(|user| training().of(user)[1..].to_vec()).collect();
        let (mut found, mut rows) = ([0.0; 8], [0.0; 8]);
        for step in 0..30_000 {
            let key = RngKey::new(3).fold_in_index(step);
            let mut order: Vec<usize> = (0..targets.len()).collect();
            order.sort_by(|a, b| key.uniform(*a as u64 + 100).total_cmp(&key.uniform(*b as u64 + 100)));
            let batch: Vec<u32> = order[..5].iter().map(|&at| targets[at]).collect();
            let sample = sampler.draw(&batch, key.fold_in("candidates"));
            for item in (0..8).filter(|&item| item + 1 != batch[0]) {
                rows[item as usize] += 1.0;
                found[item as usize] += f64::from(u8::from(sample.items.contains(&item)));
            }
        }
        for item in 0..8 {
            let expected = f64::from((-sampler.shift(item, 5)).exp());
            let seen = found[item as usize] / rows[item as usize];
            // The standard deviation of `seen` is at most 0.003.
            assert!((seen - expected).abs() < 0.012, "item {item}: {seen} against {expected}");
        }
    }

    #[test]
    fn the_chance_of_no_other_target_matches_hand_computed_values() {
        // The own samples, all samples and the size of the batch. C(7, 4) / C(9, 4) = 35 / 126.
        let cases = [
            ((1, 10, 10), 0.0),
            ((0, 10, 10), 1.0),
            ((3, 10, 2), 6.0 / 9.0),
            ((2, 10, 5), 35.0 / 126.0),
            ((10, 10, 3), 0.0),
            ((0, 0, 1), 1.0),
        ];
        for ((own, samples, batch), expected) in cases {
            assert!((none_of(own, samples, batch) - expected).abs() < 1e-12, "{own} {samples} {batch}");
        }
    }

    #[test]
    fn a_sample_of_all_items_changes_nothing() {
        let sample = CandidateSampler::new(100, 8, &training()).unwrap().draw(&[3], RngKey::new(4));
        assert_eq!((sample.items, sample.targets), ((0..8).collect(), vec![2]));
        assert!(sample.shifts.iter().all(|shift| *shift == 0.0));
    }
}
