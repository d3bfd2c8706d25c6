//! Statistics of top-K lists that do not depend on accuracy: how much of the catalogue they cover, how evenly, and how popular the
//! listed items are.
//!
//! Coverage, Gini index, entropy, average popularity and tail share are those of RecBole 1.2.1's evaluator. Novelty is the mean
//! self-information of the listed items (Zhou et al., 2010).

/// The share of items with the fewest events that is the tail.
const TAIL: f64 = 0.1;

/// How popular items are in training.
#[derive(Clone, Debug, PartialEq)]
pub struct ItemPopularity {
    /// `[I]`.
    events: Vec<u32>,
    /// `[I]`: whether the item is of the tail.
    is_tail: Vec<bool>,
    users: usize,
}

/// Figures of the lists of all users, cut at K.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ListFigures {
    /// K.
    pub k: usize,
    /// The share of all items that is in any list.
    pub coverage: f64,
    /// The Gini index of how often each item is listed: 0 where all are equally often, nearly 1 where a few take all places.
    pub gini: f64,
    /// The entropy of the listed items in nats, over the number of different ones.
    pub entropy: f64,
    /// The mean number of training events of a listed item.
    pub popularity: f64,
    /// The share of places that items of the tail have: the tenth of the items with training events that has the fewest.
    pub tail: f64,
    /// The mean of -log2 of the share of users that an item has an event with. An item without events counts as one with one.
    pub novelty: f64,
}

impl ItemPopularity {
    /// From the number of training events of every item, `[I]`, and the number of users.
    pub fn new(events: Vec<u32>, users: usize) -> Self {
        let mut known: Vec<usize> = (0..events.len()).filter(|&item| events[item] > 0).collect();
        known.sort_by_key(|&item| (events[item], item));
        let mut is_tail = vec![false; events.len()];
        for &item in &known[..((known.len() as f64 * TAIL) as usize).max(1).min(known.len())] {
            is_tail[item] = true;
        }
        Self { events, is_tail, users }
    }
}

impl ListFigures {
    /// Figures of the first `k` items (1-based) of every list; `None` if nothing is listed.
    pub fn of(lists: &[Vec<u32>], k: usize, popularity: &ItemPopularity) -> Option<Self> {
        let lists = || lists.iter().map(|list| &list[..list.len().min(k)]).filter(|list| !list.is_empty());
        let mut listed = vec![0u64; popularity.events.len()];
        lists().flatten().for_each(|&item| listed[item as usize - 1] += 1);
        let (users, places) = (lists().count() as f64, listed.iter().sum::<u64>() as f64);
        if places == 0.0 {
            return None;
        }
        let per_user = |value: &dyn Fn(usize) -> f64| {
            let of = |list: &[u32]| list.iter().map(|&item| value(item as usize - 1)).sum::<f64>() / list.len() as f64;
            lists().map(of).sum::<f64>() / users
        };
        let users_of_training = popularity.users.max(1) as f64;
        let information =
            |item: usize| -(f64::from(popularity.events[item].max(1)) / users_of_training).min(1.0).log2();
        listed.sort_unstable();
        let items = listed.len() as f64;
        let shown: Vec<f64> = listed.iter().filter(|&&count| count > 0).map(|&count| count as f64).collect();
        let inequality: f64 =
            listed.iter().zip(1..).map(|(&count, at)| (2.0 * f64::from(at) - items - 1.0) * count as f64).sum();
        let entropy: f64 = shown.iter().map(|count| -(count / places) * (count / places).ln()).sum();
        Some(Self {
            k,
            coverage: shown.len() as f64 / items,
            gini: inequality / (items * places),
            entropy: entropy / shown.len() as f64,
            popularity: per_user(&|item| f64::from(popularity.events[item])),
            tail: per_user(&|item| f64::from(u8::from(popularity.is_tail[item]))),
            novelty: per_user(&information),
        })
    }

    /// The figures by the names of their columns.
    pub fn values(&self) -> [(&'static str, f64); 6] {
        [
            ("coverage", self.coverage),
            ("Gini", self.gini),
            ("entropy", self.entropy),
            ("popularity", self.popularity),
            ("tail", self.tail),
            ("novelty", self.novelty),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lists() -> Vec<Vec<u32>> {
        [[1, 2, 3, 4], [2, 1, 5, 3], [2, 6, 1, 7], [8, 2, 3, 1], [2, 1, 9, 10]].map(Vec::from).into()
    }

    /// Thirteen items, the last of which no user has.
    fn popularity(users: usize) -> ItemPopularity {
        ItemPopularity::new(vec![9, 12, 5, 1, 4, 3, 1, 2, 1, 2, 3, 1, 0], users)
    }

    /// The figures of RecBole 1.2.1's evaluator for the same lists, with `data.num_items` 13.
    #[test]
    fn figures_of_lists_are_those_of_recbole() {
        let expected = [
            (2, [0.307_692_307_692, 0.8, 0.292_070_612_544, 9.2, 0.0]),
            (4, [0.769_230_769_231, 0.515_384_615_385, 0.202_622_147_404, 6.7, 0.05]),
        ];
        for (k, expected) in expected {
            let figures = ListFigures::of(&lists(), k, &popularity(20)).unwrap();
            for ((name, found), expected) in figures.values().into_iter().zip(expected) {
                assert!((found - expected).abs() < 1e-11, "{name}@{k}: {found}, expected {expected}");
            }
        }
    }

    #[test]
    fn novelty_worked_by_hand() {
        // Of 16 users, items 2 and 4 (12 and 1 events): log2(16/12) and 4; item 13 counts as one event.
        let figures = ListFigures::of(&[vec![2, 4], vec![13]], 2, &popularity(16)).unwrap();
        let expected = f64::midpoint(f64::midpoint((16.0f64 / 12.0).log2(), 4.0), 4.0);
        assert!((figures.novelty - expected).abs() < 1e-12, "{}", figures.novelty);
    }

    #[test]
    fn even_lists_have_no_inequality_and_nothing_listed_has_no_figures() {
        let every: Vec<Vec<u32>> = (1..=13).map(|item| vec![item]).collect();
        let figures = ListFigures::of(&every, 1, &popularity(20)).unwrap();
        assert!(figures.gini.abs() < 1e-12 && (figures.coverage - 1.0).abs() < 1e-12);
        assert_eq!(ListFigures::of(&[Vec::new()], 3, &popularity(20)), None);
        assert_eq!(ListFigures::of(&[], 3, &popularity(20)), None);
    }
}
