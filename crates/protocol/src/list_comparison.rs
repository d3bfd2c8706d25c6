//! Compares the lists of models, each given as one run or as several runs that differ by their seed.

use mp4sr_artifact::{Error, Items, Layout, Result};

use crate::comparison::{UserValues, compare};
use crate::store::other_setting;
use crate::{
    ComparedValue, ItemFacts, ListStatistic, ListStatistics, OtherSetting, Reference, StoredLists, read_lists,
};

/// The lists of a model, by seed; in each, one list of items (1-based) per user, which is empty if the user has none.
#[derive(Clone, Debug, PartialEq)]
pub struct SeedLists {
    /// The name of the model.
    pub name: String,
    /// The lists, by seed.
    pub lists: Vec<StoredLists>,
}

/// The statistics of a model's lists.
#[derive(Clone, Debug, PartialEq)]
pub struct ComparedLists {
    /// The name of the model.
    pub name: String,
    /// The statistics of all lists together with the names of their columns, one value per seed.
    pub of_all: [(&'static str, Vec<f64>); 3],
    /// The statistics of single lists, in the order of [`ListStatistic::ALL`]; `None` if no user has a value in all lists.
    pub of_lists: [Option<ComparedValue>; 4],
}

/// The statistics of the lists of several models, at one K.
#[derive(Clone, Debug, PartialEq)]
pub struct ListComparison {
    /// K, the cut-off.
    pub k: usize,
    /// The models in the order in which they were given.
    pub rows: Vec<ComparedLists>,
}

impl SeedLists {
    /// Reads the lists of the runs of a model. Returns an error if they were computed with settings other than those of the first, or with
    /// the same seed, as far as they record these.
    pub fn read(name: &str, runs: &[Layout], items: &Items, users: usize) -> Result<Self> {
        let mut lists: Vec<StoredLists> = Vec::new();
        for run in runs {
            let stored = read_lists(run, items, users)?;
            let same_seed = |before: &StoredLists| stored.seed().is_some() && before.seed() == stored.seed();
            if let Some(at) = lists.iter().position(same_seed) {
                let of = runs[at].run_name();
                let reason =
                    format!("its lists have the same seed as those of the run `{of}`, and each seed counts only once");
                return Err(Error::unusable(&run.run(), reason, "group only runs that differ only by their seed"));
            }
            if let Some(first) = lists.first()
                && let Some(OtherSetting { key, own, others }) = made_otherwise(&stored, first)
            {
                let reason = format!(
                    "the `{key}` of its lists is {own}, but that of the run `{}`, which should differ only by its seed, is {others}",
                    runs[0].run_name()
                );
                return Err(Error::unusable(
                    &run.run(),
                    reason,
                    "group only runs whose lists were made in the same way",
                ));
            }
            lists.push(stored);
        }
        Ok(Self { name: name.to_owned(), lists })
    }

    /// The length that the lists of all users of every run reach, except for users without a list.
    fn reached(&self) -> usize {
        let lengths = |stored: &StoredLists| stored.lists.iter().map(Vec::len).filter(|&length| length > 0).min();
        self.lists.iter().map(|stored| lengths(stored).unwrap_or(0)).min().unwrap_or(0)
    }

    /// The length of the longest list of the run whose lists are the shortest.
    fn longest(&self) -> usize {
        let lengths = |stored: &StoredLists| stored.lists.iter().map(Vec::len).max().unwrap_or(0);
        self.lists.iter().map(lengths).min().unwrap_or(0)
    }
}

/// The first setting that differed when the lists of two runs of one model were computed.
fn made_otherwise(own: &StoredLists, other: &StoredLists) -> Option<OtherSetting> {
    let (a, b) = (own.before_test_item, other.before_test_item);
    let ends = (a != b).then(|| OtherSetting {
        key: "recommend.before_test_item".to_owned(),
        own: a.to_string(),
        others: b.to_string(),
    });
    ends.or_else(|| other_setting(&own.config, &other.config))
}

/// The note that the lists of some models were computed differently from those of others; `None` if all were computed in the same way.
pub fn lists_note(models: &[SeedLists]) -> Option<String> {
    let some = |differs: fn(&StoredLists) -> bool| {
        let names: Vec<&str> =
            models.iter().filter(|model| model.lists.iter().any(differs)).map(|model| model.name.as_str()).collect();
        (!names.is_empty() && names.len() < models.len()).then(|| names.join(", "))
    };
    let repeated = some(|lists| lists.repeat_history).map(|names| {
        format!(
            "The candidates differ: the lists of {names} have items of the users' histories and the others have none \
             (`evaluate.seen_items`), so these values are not comparable."
        )
    });
    let before = some(|lists| lists.before_test_item).map(|names| {
        format!(
            "The histories differ: those of {names} end before the test item and those of the others do not \
             (`recommend.before_test_item`), so these values are not comparable."
        )
    });
    let notes: Vec<String> = repeated.into_iter().chain(before).collect();
    (!notes.is_empty()).then(|| notes.join(" "))
}

/// The note that lists are not compared at some of the cut-offs `ks`, because some lists are shorter; `None` if all reach them.
pub fn left_out(models: &[SeedLists], ks: &[usize]) -> Option<String> {
    let model = models.iter().min_by_key(|model| (model.reached(), model.longest()))?;
    let (name, reached, longest) = (&model.name, model.reached(), model.longest());
    let missing: Vec<usize> = ks.iter().copied().filter(|&k| k > reached).collect();
    let last = missing.iter().max()?;
    if longest == 0 {
        return Some(format!(
            "no K is compared, because {name} has no lists; run `mp4sr recommend` for users with events"
        ));
    }
    let (few, short): (Vec<usize>, Vec<usize>) = missing.iter().partition(|&&k| k <= longest);
    let shown = |ks: &[usize]| ks.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let few = (!few.is_empty()).then(|| {
        format!(
            "K = {} is left out, because a list of {name} has only {reached} items, as there are no other candidates for its user; \
             `evaluate.seen_items = \"keep\"` makes the items of the histories candidates, too",
            shown(&few)
        )
    });
    let short = (!short.is_empty()).then(|| {
        format!(
            "K = {} is left out, because the lists of {name} have at most {longest} items; set `recommend.top` to {last} or more and compute \
             them again, if there are so many candidates",
            shown(&short)
        )
    });
    Some(few.into_iter().chain(short).collect::<Vec<_>>().join(". "))
}

impl ListComparison {
    /// Compares lists cut off at each K of `ks` that all non-empty lists reach. The other models are tested against the last one, for every
    /// statistic that a single list has, over the users with a value in all lists.
    pub fn all(models: &[SeedLists], ks: &[usize], facts: &ItemFacts) -> Vec<Self> {
        let reached = models.iter().map(SeedLists::reached).min().unwrap_or(0);
        ks.iter().filter(|&&k| k <= reached).filter_map(|&k| Self::at(models, k, facts)).collect()
    }

    /// Compares lists cut off at `k`; `None` if a run lists nothing.
    fn at(models: &[SeedLists], k: usize, facts: &ItemFacts) -> Option<Self> {
        let columns = ListStatistic::ALL.map(|statistic| column(models, k, statistic, facts));
        let rows = models.iter().enumerate().map(|(at, model)| {
            let statistics: Option<Vec<_>> =
                model.lists.iter().map(|stored| ListStatistics::of(&stored.lists, k, facts)).collect();
            let statistics = statistics?;
            let values = |column: usize| statistics.iter().map(|statistics| statistics.of_all()[column].1).collect();
            let names = statistics.first()?.of_all().map(|(name, _)| name);
            Some(ComparedLists {
                name: model.name.clone(),
                of_all: std::array::from_fn(|column| (names[column], values(column))),
                of_lists: std::array::from_fn(|column| columns[column].as_ref().map(|values| values[at].clone())),
            })
        });
        Some(Self { k, rows: rows.collect::<Option<_>>()? })
    }
}

/// One statistic of all models, over the users with a value in all lists; `None` if there is no such user.
fn column(models: &[SeedLists], k: usize, statistic: ListStatistic, facts: &ItemFacts) -> Option<Vec<ComparedValue>> {
    let of_list = |list: &Vec<u32>| statistic.of(&list[..list.len().min(k)], facts);
    let values: Vec<Vec<Vec<Option<f64>>>> = models
        .iter()
        .map(|model| model.lists.iter().map(|stored| stored.lists.iter().map(of_list).collect()).collect())
        .collect();
    let users = values.iter().flatten().map(Vec::len).min()?;
    let users: Vec<usize> =
        (0..users).filter(|&user| values.iter().flatten().all(|lists| lists[user].is_some())).collect();
    if users.is_empty() {
        return None;
    }
    let mean = |values: &mut dyn Iterator<Item = f64>, count: usize| values.sum::<f64>() / count as f64;
    let of_model = |seeds: &Vec<Vec<Option<f64>>>| UserValues {
        seeds: seeds.iter().map(|lists| mean(&mut users.iter().filter_map(|&user| lists[user]), users.len())).collect(),
        users: users.iter().map(|&user| mean(&mut seeds.iter().filter_map(|lists| lists[user]), seeds.len())).collect(),
    };
    Some(compare(&values.iter().map(of_model).collect::<Vec<_>>(), Reference::Last))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> ItemFacts {
        ItemFacts::new(vec![8, 4, 2, 1], vec![8, 4, 2, 1], 8)
    }

    fn model(name: &str, seeds: &[&[&[u32]]]) -> SeedLists {
        let stored = |lists: &&[&[u32]]| StoredLists {
            lists: lists.iter().map(|list| list.to_vec()).collect(),
            ..StoredLists::default()
        };
        SeedLists { name: name.to_owned(), lists: seeds.iter().map(stored).collect() }
    }

    #[test]
    fn statistics_of_seeds_match_hand_computed_values() {
        // The third user has no list under `b`, so the statistics of single lists are over two users.
        let a = model("a", &[&[&[1, 2], &[1, 3], &[4, 3]], &[&[1, 2], &[2, 1], &[4, 3]]]);
        let b = model("b", &[&[&[4, 3], &[3, 4], &[]]]);
        let models = [a, b];
        let found = ListComparison::all(&models, &[1, 2, 3], &facts());
        assert_eq!(found.iter().map(|comparison| comparison.k).collect::<Vec<_>>(), [1, 2], "no list has three items");
        let note = left_out(&models, &[1, 2, 3]).unwrap();
        assert!(note.starts_with("K = 3 is left out") && note.contains("`recommend.top` to 3"), "{note}");
        assert_eq!(left_out(&models, &[1, 2]), None);
        let [a, b] = &found[1].rows[..] else { panic!("{found:?}") };
        assert_eq!(a.of_all[0], ("coverage", vec![1.0, 1.0]));
        assert_eq!(b.of_all[0], ("coverage", vec![0.5]));
        // Popularity: (8 + 4) / 2 and (8 + 2) / 2 in the first seed, 6 and 6 in the second; 1.5 and 1.5 under `b`.
        let (own, other) = (a.of_lists[0].as_ref().unwrap(), b.of_lists[0].as_ref().unwrap());
        assert_eq!(own.seeds, [5.5, 6.0]);
        assert!((own.interval.mean - 5.75).abs() < 1e-12 && (other.interval.mean - 1.5).abs() < 1e-12);
        assert!((own.tests.unwrap().difference + 4.25).abs() < 1e-12, "against the last");
        assert!(other.tests.is_none() && a.of_lists[3].is_none(), "diversity requires features");
    }

    #[test]
    fn a_cut_off_that_one_list_does_not_reach_is_left_out() {
        let short = model("short", &[&[&[1, 2], &[3], &[]]]);
        let models = [short];
        let found = ListComparison::all(&models, &[1, 2], &facts());
        assert_eq!(found.iter().map(|comparison| comparison.k).collect::<Vec<_>>(), [1]);
        // Other lists have two items, so `recommend.top` is not the reason.
        let note = left_out(&models, &[1, 2]).unwrap();
        assert!(note.contains("short has only 1 items") && note.contains("`evaluate.seen_items"), "{note}");
    }

    #[test]
    fn lists_that_were_computed_differently_are_named() {
        let [mut a, mut b] = ["a", "b"].map(|name| model(name, &[&[&[1]]]));
        assert_eq!(lists_note(&[a.clone(), b.clone()]), None);
        a.lists[0].repeat_history = true;
        let note = lists_note(&[a.clone(), b.clone()]).unwrap();
        assert!(note.starts_with("The candidates differ: the lists of a have items"), "{note}");
        b.lists[0] = StoredLists { before_test_item: true, ..a.lists[0].clone() };
        let note = lists_note(&[a, b]).unwrap();
        assert!(note.starts_with("The histories differ: those of b end before the test item"), "{note}");
    }

    #[test]
    fn the_last_model_differs_from_another_and_not_from_itself() {
        let popular: Vec<&[u32]> = (0..100).map(|user| if user % 10 == 0 { &[4][..] } else { &[1][..] }).collect();
        let rare: Vec<&[u32]> = (0..100).map(|user| if user % 10 == 1 { &[1][..] } else { &[4][..] }).collect();
        let models = [model("popular", &[&popular]), model("same", &[&rare]), model("rare", &[&rare])];
        let found = ListComparison::all(&models, &[1], &facts());
        let p = |row: usize| found[0].rows[row].of_lists[0].as_ref().unwrap().tests.map(|tests| tests.t_holm);
        assert!(p(0).unwrap() < 1e-6);
        assert_eq!((p(1), p(2)), (Some(1.0), None));
    }

    #[test]
    fn without_a_list_there_is_nothing_to_compare() {
        assert_eq!(ListComparison::all(&[], &[1], &facts()), []);
        assert_eq!(ListComparison::all(&[model("a", &[&[&[]]])], &[1], &facts()), []);
    }
}
