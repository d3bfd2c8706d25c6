//! Statistics of top-K lists that do not depend on accuracy: how much of the catalogue they cover, how evenly, how popular the
//! listed items are, and how different from each other.
//!
//! Coverage, Gini index, entropy, average popularity and tail share are those of RecBole 1.2.1's evaluator. Novelty is the mean
//! self-information of the listed items (Zhou et al., 2010), and diversity the intra-list diversity of Smyth and McClave (2001).

use std::collections::BTreeSet;
use std::path::PathBuf;

use mp4sr_artifact::{Error, MappedFeatures, Sequences};

use crate::diversity::ItemVectors;
use crate::{training_events, training_items};

/// The share of the items with training events that forms the tail: those with the fewest events.
const TAIL: f64 = 0.1;

/// What the statistics of lists need to know about the items.
#[derive(Clone, Debug, PartialEq)]
pub struct ItemFacts {
    /// `[I]`: the number of training events of each item.
    events: Vec<u32>,
    /// `[I]`: the number of users with training events of each item.
    users_of: Vec<u32>,
    /// `[I]`: whether the item belongs to the tail.
    is_tail: Vec<bool>,
    /// The number of users of the dataset.
    users: usize,
    vectors: ItemVectors,
}

/// A statistic of a single list; that of a run is the mean over its lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListStatistic {
    /// The mean number of training events of a listed item.
    Popularity,
    /// The share of the list positions that are taken by items of the tail: the tenth of the items with training events that have the fewest
    /// events.
    Tail,
    /// The mean over listed items of -log2 of the share of users who have training events of the item. An item without events counts as one
    /// of a single user.
    Novelty,
    /// The mean over the pairs of listed items of 1 minus the cosine similarity of their features, averaged over the modalities. An
    /// item's vector in a modality is the mean of its rows; items without rows and modalities without a pair do not count.
    Diversity,
}

/// Statistics of the lists of all users, cut off at K.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ListStatistics {
    /// K, the cut-off.
    pub k: usize,
    /// The share of all items that are in at least one list.
    pub coverage: f64,
    /// The Gini index of how often each item is listed: 0 if all items are listed equally often, nearly 1 if a few items take all list
    /// positions.
    pub gini: f64,
    /// The entropy of the listed items in nats, divided by the number of distinct listed items.
    pub entropy: f64,
    /// The means of the statistics of single lists, in the order of [`ListStatistic::ALL`]; `None` if no list has a value.
    pub means: [Option<f64>; 4],
}

impl ItemFacts {
    /// Computes the facts from the number of training events of every item and of the users who have them, `[I]` each, and the number of
    /// all users.
    pub fn new(events: Vec<u32>, users_of: Vec<u32>, users: usize) -> Self {
        let mut known: Vec<usize> = (0..events.len()).filter(|&item| events[item] > 0).collect();
        known.sort_by_key(|&item| (events[item], item));
        let mut is_tail = vec![false; events.len()];
        for &item in &known[..((known.len() as f64 * TAIL) as usize).max(1).min(known.len())] {
            is_tail[item] = true;
        }
        Self { events, users_of, is_tail, users, vectors: ItemVectors::default() }
    }

    /// Computes the facts about the items of a dataset that do not depend on features.
    pub fn of(sequences: &Sequences) -> Self {
        let mut users_of = vec![0; sequences.item_count];
        for user in 0..sequences.user_count() {
            let items: BTreeSet<u32> = training_items(sequences, user).iter().copied().collect();
            items.into_iter().for_each(|item| users_of[item as usize - 1] += 1);
        }
        Self::new(training_events(sequences), users_of, sequences.user_count())
    }

    /// Computes the facts about the items of a dataset. `features` has the role and the path of each feature file; diversity uses the files
    /// that exist. If one of them cannot be read, the facts lack diversity, and the error is returned beside them, because models that read
    /// no features do not need them to be up to date.
    pub fn read(sequences: &Sequences, features: &[(String, PathBuf)]) -> (Self, Option<Error>) {
        let mut facts = Self::of(sequences);
        for (_, path) in features.iter().filter(|(_, path)| path.exists()) {
            match MappedFeatures::open(path, &sequences.item_hash, sequences.item_count) {
                Ok(features) => facts.vectors.add(&features),
                Err(error) => return (Self::of(sequences), Some(error)),
            }
        }
        (facts, None)
    }

    fn novelty(&self, item: usize) -> f64 {
        // A difference, because the negative of 0 would be printed as -0.
        0.0 - (f64::from(self.users_of[item].max(1)) / self.users.max(1) as f64).log2()
    }
}

impl ListStatistic {
    /// All statistics of single lists, in the order of their columns.
    pub const ALL: [Self; 4] = [Self::Popularity, Self::Tail, Self::Novelty, Self::Diversity];

    /// The name of the column.
    pub fn name(self) -> &'static str {
        match self {
            Self::Popularity => "popularity",
            Self::Tail => "tail",
            Self::Novelty => "novelty",
            Self::Diversity => "diversity",
        }
    }

    /// Computes the value of a list of items (1-based); `None` if the list is empty, or, for diversity, if no pair has features.
    pub fn of(self, list: &[u32], facts: &ItemFacts) -> Option<f64> {
        if list.is_empty() {
            return None;
        }
        let mean = |value: &dyn Fn(usize) -> f64| {
            Some(list.iter().map(|&item| value(item as usize - 1)).sum::<f64>() / list.len() as f64)
        };
        match self {
            Self::Popularity => mean(&|item| f64::from(facts.events[item])),
            Self::Tail => mean(&|item| f64::from(u8::from(facts.is_tail[item]))),
            Self::Novelty => mean(&|item| facts.novelty(item)),
            Self::Diversity => facts.vectors.diversity(list),
        }
    }
}

impl ListStatistics {
    /// Computes the statistics of the first `k` items (1-based) of every list; `None` if nothing is listed.
    pub fn of(lists: &[Vec<u32>], k: usize, facts: &ItemFacts) -> Option<Self> {
        let lists = || lists.iter().map(|list| &list[..list.len().min(k)]);
        let mut listed = vec![0u64; facts.events.len()];
        lists().flatten().for_each(|&item| listed[item as usize - 1] += 1);
        let slots = listed.iter().sum::<u64>() as f64;
        if slots == 0.0 {
            return None;
        }
        listed.sort_unstable();
        let items = listed.len() as f64;
        let shown: Vec<f64> = listed.iter().filter(|&&count| count > 0).map(|&count| count as f64).collect();
        let inequality: f64 =
            listed.iter().zip(1..).map(|(&count, at)| (2.0 * f64::from(at) - items - 1.0) * count as f64).sum();
        let entropy: f64 = shown.iter().map(|count| (count / slots) * (count / slots).ln()).sum();
        let mean = |statistic: ListStatistic| {
            let values: Vec<f64> = lists().filter_map(|list| statistic.of(list, facts)).collect();
            (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
        };
        Some(Self {
            k,
            coverage: shown.len() as f64 / items,
            gini: inequality / (items * slots),
            entropy: (0.0 - entropy) / shown.len() as f64,
            means: ListStatistic::ALL.map(mean),
        })
    }

    /// The statistics of all lists together, which no single list has, with the names of their columns.
    pub fn of_all(&self) -> [(&'static str, f64); 3] {
        [("coverage", self.coverage), ("Gini", self.gini), ("entropy", self.entropy)]
    }

    /// All statistics with the names of their columns.
    pub fn values(&self) -> [(&'static str, Option<f64>); 7] {
        let [a, b, c] = self.of_all().map(|(name, value)| (name, Some(value)));
        let [d, e, f, g] = std::array::from_fn(|at| (ListStatistic::ALL[at].name(), self.means[at]));
        [a, b, c, d, e, f, g]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lists() -> Vec<Vec<u32>> {
        [[1, 2, 3, 4], [2, 1, 5, 3], [2, 6, 1, 7], [8, 2, 3, 1], [2, 1, 9, 10]].map(Vec::from).into()
    }

    /// The popularity of thirteen items; no user has an event with the last one.
    fn popularity(users: usize) -> ItemFacts {
        let events = vec![9, 12, 5, 1, 4, 3, 1, 2, 1, 2, 3, 1, 0];
        ItemFacts::new(events.clone(), events, users)
    }

    /// The expected values are those of RecBole 1.2.1's evaluator for the same lists, with `data.num_items` 13.
    #[test]
    fn statistics_of_lists_are_those_of_recbole() {
        let expected = [
            (2, [0.307_692_307_692, 0.8, 0.292_070_612_544, 9.2, 0.0]),
            (4, [0.769_230_769_231, 0.515_384_615_385, 0.202_622_147_404, 6.7, 0.05]),
        ];
        for (k, expected) in expected {
            let statistics = ListStatistics::of(&lists(), k, &popularity(20)).unwrap();
            for ((name, found), expected) in statistics.values().into_iter().zip(expected) {
                let found = found.unwrap();
                assert!((found - expected).abs() < 1e-11, "{name}@{k}: {found}, expected {expected}");
            }
        }
    }

    #[test]
    fn novelty_counts_users_and_not_their_repeated_events() {
        // Both of the two users have the first item, one of them twice, and one has the second.
        let facts = ItemFacts::new(vec![3, 1], vec![2, 1], 2);
        let novelty = |list: &[u32]| ListStatistic::Novelty.of(list, &facts).unwrap();
        assert_eq!((novelty(&[1]).to_string(), novelty(&[2]), novelty(&[1, 2])), ("0".to_owned(), 1.0, 0.5));
        let one = ListStatistics::of(&[vec![1]], 1, &facts).unwrap();
        assert_eq!(one.entropy.to_string(), "0");
    }

    #[test]
    fn novelty_matches_hand_computed_values() {
        // With 16 users, items 2 and 4 (12 events and 1 event) have log2(16/12) and 4; item 13 counts as one event.
        let statistics = ListStatistics::of(&[vec![2, 4], vec![13]], 2, &popularity(16)).unwrap();
        let expected = f64::midpoint(f64::midpoint((16.0f64 / 12.0).log2(), 4.0), 4.0);
        let novelty = statistics.means[2].unwrap();
        assert!((novelty - expected).abs() < 1e-12, "{novelty}");
        assert_eq!(statistics.means[3], None, "diversity requires features");
    }

    #[test]
    fn even_lists_have_no_inequality_and_empty_lists_have_no_statistics() {
        let every: Vec<Vec<u32>> = (1..=13).map(|item| vec![item]).collect();
        let statistics = ListStatistics::of(&every, 1, &popularity(20)).unwrap();
        assert!(statistics.gini.abs() < 1e-12 && (statistics.coverage - 1.0).abs() < 1e-12);
        assert_eq!(ListStatistics::of(&[Vec::new()], 3, &popularity(20)), None);
        assert_eq!(ListStatistics::of(&[], 3, &popularity(20)), None);
    }
}
