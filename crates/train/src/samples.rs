use mp4sr_artifact::Sequences;
use mp4sr_models::Stream;
use mp4sr_run::training_part;

/// Every training prefix of length >= 1 as one sample: (i1) -> i2, (i1, i2) -> i3, ...
#[derive(Debug)]
pub struct Samples<'a> {
    sequences: &'a Sequences,
    /// User (0-based) and the length of the prefix.
    places: Vec<(u32, u32)>,
}

impl<'a> Samples<'a> {
    /// All samples of the training parts, in order of users and time.
    pub fn new(sequences: &'a Sequences) -> Self {
        let prefixes = |user: usize| {
            let length = training_part(sequences.of(user)).len();
            (1..length).map(move |prefix| (user as u32, prefix as u32))
        };
        Self { sequences, places: (0..sequences.user_count()).flat_map(prefixes).collect() }
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.places.len()
    }

    /// History and target of sample `i`.
    pub fn get(&self, i: usize) -> (&'a [u32], u32) {
        let (user, prefix) = self.places[i];
        let training = training_part(self.sequences.of(user as usize));
        (&training[..prefix as usize], training[prefix as usize])
    }

    /// The order of an epoch.
    pub fn shuffled(&self, draw: Stream) -> Vec<u32> {
        draw.permutation(self.count())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mp4sr_artifact::hash_ids;

    #[test]
    fn every_prefix_of_the_training_part_is_a_sample_and_nothing_else() {
        let sequences = Sequences {
            offsets: vec![0, 5, 7, 10],
            items: vec![1, 2, 3, 4, 5, 1, 2, 3, 1, 2],
            times: vec![0; 10],
            item_hash: hash_ids(["a"]),
            item_count: 5,
        };
        let samples = Samples::new(&sequences);
        let all: Vec<_> = (0..samples.count()).map(|i| samples.get(i)).collect();
        // Events 4, 5 of the first user and all of the others are validation and test, or have no history.
        assert_eq!(all, [(&[1u32][..], 2), (&[1, 2][..], 3)]);
    }
}
