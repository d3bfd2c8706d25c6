use mp4sr_artifact::Sequences;
use mp4sr_models::RngKey;
use mp4sr_protocol::training_part;

/// Every training prefix of length >= 1 as one sample: (i1) -> i2, (i1, i2) -> i3, ...
#[derive(Debug)]
pub struct Samples {
    /// Training parts, one after the other.
    items: Vec<u32>,
    /// Where a history starts, and where its target is.
    places: Vec<(u32, u32)>,
}

impl Samples {
    /// All samples of the training parts, in order of users and time, after items for which `keep` does not hold were taken
    /// out of them.
    pub fn new(sequences: &Sequences, keep: impl Fn(u32) -> bool) -> Self {
        let (mut items, mut places) = (Vec::new(), Vec::new());
        for user in 0..sequences.user_count() {
            let start = items.len();
            items.extend(training_part(sequences.of(user)).iter().copied().filter(|&item| keep(item)));
            places.extend((start + 1..items.len()).map(|target| (start as u32, target as u32)));
        }
        Self { items, places }
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.places.len()
    }

    /// History and target of sample `i`.
    pub fn get(&self, i: usize) -> (&[u32], u32) {
        let (start, target) = self.places[i];
        (&self.items[start as usize..target as usize], self.items[target as usize])
    }

    /// The order of an epoch.
    pub fn shuffled(&self, key: RngKey) -> Vec<u32> {
        key.permutation(self.count())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mp4sr_artifact::hash_ids;

    #[test]
    fn every_prefix_of_the_training_part_is_a_sample_and_nothing_else() {
        let sequences = Sequences {
            offsets: vec![0, 5, 7, 10, 16],
            items: vec![1, 2, 3, 4, 5, 1, 2, 3, 1, 2, 5, 3, 4, 5, 1, 1],
            times: vec![0; 16],
            item_hash: hash_ids(["a"]),
            item_count: 5,
            user_hash: None,
        };
        let all = |keep: fn(u32) -> bool| {
            let samples = Samples::new(&sequences, keep);
            (0..samples.count()).map(|i| (samples.get(i).0.to_vec(), samples.get(i).1)).collect::<Vec<_>>()
        };
        // The last two events of each user are validation and test; the second and third have no two before them.
        let last = [(vec![5], 3), (vec![5, 3], 4), (vec![5, 3, 4], 5)];
        let expected: Vec<_> = [(vec![1], 2), (vec![1, 2], 3)].into_iter().chain(last).collect();
        assert_eq!(all(|_| true), expected);
        assert_eq!(all(|item| item != 3), [(vec![1], 2), (vec![5], 4), (vec![5, 4], 5)], "what is left closes up");
    }
}
