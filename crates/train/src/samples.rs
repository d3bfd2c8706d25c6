//! The samples of a phase, and their batches.

use std::ops::Range;

use mp4sr_artifact::Sequences;
use mp4sr_models::{BatchUnit, RngKey, Sample, Samples};
use mp4sr_protocol::training_items;

/// The samples of a phase, and how they are divided into batches.
#[derive(Debug)]
pub struct SampleList {
    kind: Samples,
    /// The items of all users' training events, one user after the other.
    items: Vec<u32>,
    entries: Vec<UserSamples>,
}

/// A sample: its user, from 0, and the range of its history in the items. If it has a target, that is the item at the range's end.
#[derive(Clone, Copy, Debug)]
struct UserSamples {
    user: u32,
    start: u32,
    end: u32,
}

impl SampleList {
    /// Collects all samples of the training set, in order of users and time, after removing the items for which `keep` is false.
    pub fn new(kind: Samples, sequences: &Sequences, keep: impl Fn(u32) -> bool) -> Self {
        let (mut items, mut entries) = (Vec::new(), Vec::new());
        for user in 0..sequences.user_count() {
            let start = items.len() as u32;
            items.extend(training_items(sequences, user).iter().copied().filter(|&item| keep(item)));
            let (user, own) = (user as u32, start..items.len() as u32);
            match kind {
                Samples::None => {}
                Samples::Prefixes => entries.extend(own.skip(1).map(|end| UserSamples { user, start, end })),
                Samples::Events => entries.extend(own.map(|at| UserSamples { user, start: at, end: at })),
                Samples::Sequences { at_least, .. } => {
                    entries.extend((own.len() >= at_least.max(1)).then_some(UserSamples { user, start, end: own.end }));
                }
            }
        }
        Self { kind, items, entries }
    }

    /// The number of samples and of the steps that they make in an epoch, in words.
    pub fn described(&self, batch: usize, max_sequence_length: usize) -> String {
        let in_order: Vec<u32> = (0..self.count() as u32).collect();
        let steps = self.batches(&in_order, batch, max_sequence_length).len();
        let (samples, about, unit) = match self.kind {
            Samples::None | Samples::Prefixes => ("sample", "", "samples"),
            Samples::Events => ("event", "", "events"),
            Samples::Sequences { batch: BatchUnit::Sequences, .. } => ("sequence", "", "sequences"),
            // How many pairs a batch holds beyond its size depends on the order of the sequences.
            Samples::Sequences { batch: BatchUnit::Pairs, .. } => {
                ("sequence", "about ", "pairs of neighbouring events")
            }
        };
        let several = |count: usize, noun: &str| format!("{count} {noun}{}", if count == 1 { "" } else { "s" });
        let (samples, steps) = (several(self.count(), samples), several(steps, "step"));
        format!("{samples}, {about}{steps} per epoch in batches of {batch} {unit}")
    }

    /// The number of samples.
    pub fn count(&self) -> usize {
        self.entries.len()
    }

    /// The sample with the index `i`.
    pub fn get(&self, i: usize) -> Sample<'_> {
        let UserSamples { user, start, end } = self.entries[i];
        let has_target = !matches!(self.kind, Samples::Sequences { .. });
        let history = &self.items[start as usize..end as usize];
        Sample { user, history, target: has_target.then(|| self.items[end as usize]) }
    }

    /// The shuffled order of an epoch, determined by the key.
    pub fn shuffled(&self, key: RngKey) -> Vec<u32> {
        key.permutation(self.count())
    }

    /// The ranges of the batches of `order`. `batch` counts samples, or pairs of neighbouring events if the phase counts those; the last
    /// batch may be smaller.
    pub fn batches(&self, order: &[u32], batch: usize, max_sequence_length: usize) -> Vec<Range<usize>> {
        let size = |sample: u32| match self.kind {
            Samples::Sequences { batch: BatchUnit::Pairs, .. } => {
                self.get(sample as usize).history.len().min(max_sequence_length).saturating_sub(1)
            }
            _ => 1,
        };
        let (mut batches, mut start, mut held) = (Vec::new(), 0, 0);
        for (at, &sample) in order.iter().enumerate() {
            held += size(sample);
            if held >= batch || at + 1 == order.len() {
                batches.push(start..at + 1);
                (start, held) = (at + 1, 0);
            }
        }
        batches
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mp4sr_artifact::{SequenceParts, hash_ids};

    /// The last two events of each user are validation and test.
    fn sequences() -> Sequences {
        Sequences {
            offsets: vec![0, 5, 7, 10, 16],
            items: vec![1, 2, 3, 4, 5, 1, 2, 3, 1, 2, 5, 3, 4, 5, 1, 1],
            times: vec![0; 16],
            item_hash: hash_ids(["a"]),
            item_count: 5,
            user_hash: None,
            time_kind: mp4sr_artifact::TimeKind::Unstated,
            parts: None,
        }
    }

    fn samples(kind: Samples, keep: fn(u32) -> bool) -> Vec<(u32, Vec<u32>, Option<u32>)> {
        let samples = SampleList::new(kind, &sequences(), keep);
        let sample = |i| samples.get(i);
        (0..samples.count()).map(sample).map(|s| (s.user, s.history.to_vec(), s.target)).collect()
    }

    #[test]
    fn every_prefix_of_the_training_events_is_a_sample_and_nothing_else() {
        let last = [(3, vec![5], Some(3)), (3, vec![5, 3], Some(4)), (3, vec![5, 3, 4], Some(5))];
        let first = [(0, vec![1], Some(2)), (0, vec![1, 2], Some(3))];
        assert_eq!(samples(Samples::Prefixes, |_| true), [&first[..], &last].concat());
        let closed_up = [(0, vec![1], Some(2)), (3, vec![5], Some(4)), (3, vec![5, 4], Some(5))];
        assert_eq!(samples(Samples::Prefixes, |item| item != 3), closed_up);
        assert!(samples(Samples::None, |_| true).is_empty());
    }

    #[test]
    fn sequence_samples_are_whole_training_sequences_and_event_samples_are_single_events() {
        let of_users = |at_least| samples(Samples::Sequences { at_least, batch: BatchUnit::Sequences }, |_| true);
        let whole = [(0, vec![1, 2, 3], None), (2, vec![3], None), (3, vec![5, 3, 4, 5], None)];
        assert_eq!(of_users(1), whole);
        assert_eq!(of_users(2), [whole[0].clone(), whole[2].clone()]);
        let events: Vec<(u32, u32)> = samples(Samples::Events, |item| item != 4)
            .iter()
            .map(|(user, _, target)| (*user, target.unwrap()))
            .collect();
        assert_eq!(events, [(0, 1), (0, 2), (0, 3), (2, 3), (3, 5), (3, 3), (3, 5)]);
    }

    #[test]
    fn the_recorded_split_decides_what_is_a_sample() {
        // All events of the second user and most of the last user's are after the cut-off; all of the third user's are before it.
        let parts = SequenceParts { validation: vec![4, 0, 3, 1], test: vec![5, 1, 3, 2] };
        let divided = Sequences { parts: Some(parts), ..sequences() };
        let samples = SampleList::new(Samples::Events, &divided, |_| true);
        let events: Vec<(u32, u32)> =
            (0..samples.count()).map(|i| samples.get(i)).map(|s| (s.user, s.target.unwrap())).collect();
        assert_eq!(events, [(0, 1), (0, 2), (0, 3), (0, 4), (2, 3), (2, 1), (2, 2), (3, 5)]);
    }

    #[test]
    fn batches_count_samples_or_pairs() {
        let prefixes = SampleList::new(Samples::Prefixes, &sequences(), |_| true);
        assert_eq!(prefixes.batches(&[4, 0, 2, 1, 3], 2, 50), [0..2, 2..4, 4..5]);
        assert_eq!(prefixes.described(2, 50), "5 samples, 3 steps per epoch in batches of 2 samples");
        let pairs = Samples::Sequences { at_least: 1, batch: BatchUnit::Pairs };
        let pairs = SampleList::new(pairs, &sequences(), |_| true);
        // The sequences have two pairs, none, and three.
        assert_eq!(pairs.batches(&[1, 0, 2], 2, 50), [0..2, 2..3]);
        assert_eq!(pairs.batches(&[0, 1, 2], 3, 50), [0..3; 1]);
        assert_eq!(pairs.batches(&[2, 0, 1], 2, 2), [0..2, 2..3], "a cut sequence has fewer");
        assert_eq!(
            pairs.described(9, 50),
            "3 sequences, about 1 step per epoch in batches of 9 pairs of neighbouring events"
        );
    }
}
