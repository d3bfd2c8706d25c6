//! Models side by side, each as one run or as several that differ by their seed.

use mp4sr_artifact::{Layout, Sequences};
use mp4sr_protocol::{
    Interval, Measure, Split, StoredRanks, Test, bootstrap, holm, mean_and_deviation, means, paired_t, unrounded,
    wilcoxon,
};

/// Below this a difference is marked (paper, Table 2).
pub const SIGNIFICANT: f64 = 0.01;
/// Samples of a bootstrap interval.
const ROUNDS: usize = 1000;

/// A model's ranks, one list a seed; every list has a rank a user, 0 for none.
#[derive(Clone, Debug, PartialEq)]
pub struct SeedRuns {
    /// What the model is called.
    pub name: String,
    /// By seed.
    pub ranks: Vec<Vec<u32>>,
}

impl SeedRuns {
    /// Reads the ranks of runs of one model.
    pub fn read(
        name: &str,
        runs: &[Layout],
        sequences: &Sequences,
        split: Split,
        history: Option<usize>,
    ) -> mp4sr_artifact::Result<Self> {
        let mut group = Self { name: name.to_owned(), ranks: Vec::new() };
        let mut first: Option<(&str, serde_json::Value)> = None;
        for run in runs {
            let StoredRanks { ranks, info } = StoredRanks::read(run, sequences, split, history)?;
            let model = info.config["model"].clone();
            let (of, expected) = first.get_or_insert_with(|| (run.run_name(), model.clone()));
            if *expected != model {
                let reason =
                    format!("its `[model]` is not that of the run `{of}`, named as the same under another seed");
                let remedy = "name runs together that differ by their seed alone";
                return Err(mp4sr_artifact::Error::unusable(&run.run(), reason, remedy));
            }
            group.ranks.push(ranks);
        }
        Ok(group)
    }

    /// The same of some users (rows) alone.
    #[must_use]
    pub fn of_users(&self, users: &[usize]) -> Self {
        let pick = |ranks: &Vec<u32>| users.iter().map(|&user| ranks[user]).collect();
        Self { name: self.name.clone(), ranks: self.ranks.iter().map(pick).collect() }
    }

    /// Each user's value, the mean over seeds.
    fn per_user(&self, measure: Measure) -> Vec<f64> {
        let users = self.ranks.first().map_or(0, Vec::len);
        let value = |user: usize| self.ranks.iter().map(|ranks| measure.of(ranks[user])).sum::<f64>();
        (0..users).map(|user| value(user) / self.ranks.len() as f64).collect()
    }
}

/// One model at one measure.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The mean over users, by seed.
    pub seeds: Vec<f64>,
    /// The mean over seeds, with its bootstrap interval over users.
    pub interval: Interval,
    /// The standard deviation over seeds, where there are several.
    pub deviation: Option<f64>,
    /// Its place among the models: how many are better.
    pub place: usize,
    /// The best against this one; none for the best.
    pub tests: Option<Tests>,
}

/// Tests of the best model against another.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tests {
    /// Paired t-test over users.
    pub t: Test,
    /// Wilcoxon's signed ranks.
    pub wilcoxon: Test,
    /// The t-test's p after Holm's correction over all other models.
    pub holm: f64,
}

/// Models by measures.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// The columns.
    pub measures: Vec<Measure>,
    /// Users that every model has a rank for.
    pub users: usize,
    /// The rows: name and an entry a column.
    pub rows: Vec<(String, Vec<Entry>)>,
}

impl Comparison {
    /// Compares models on the users that all of them rank.
    pub fn new(groups: &[SeedRuns], measures: &[Measure]) -> Self {
        let count = groups.iter().flat_map(|group| &group.ranks).map(Vec::len).min().unwrap_or(0);
        let ranked = |&user: &usize| groups.iter().flat_map(|group| &group.ranks).all(|ranks| ranks[user] > 0);
        let users: Vec<usize> = (0..count).filter(ranked).collect();
        let groups: Vec<SeedRuns> = groups.iter().map(|group| group.of_users(&users)).collect();
        let mut rows: Vec<(String, Vec<Entry>)> = groups.iter().map(|group| (group.name.clone(), Vec::new())).collect();
        for &measure in measures {
            for (row, entry) in rows.iter_mut().zip(column(&groups, measure)) {
                row.1.push(entry);
            }
        }
        Self { measures: measures.to_vec(), users: users.len(), rows }
    }

    /// Whether the best of a column is significantly better than the best other, or all others that share its place.
    pub fn is_significant(&self, column: usize) -> bool {
        let others =
            || self.rows.iter().filter_map(|(_, entries)| Some((entries[column].place, entries[column].tests?)));
        let second = others().map(|(place, _)| place).min();
        second.is_some() && others().all(|(place, tests)| Some(place) != second || tests.holm < SIGNIFICANT)
    }
}

fn column(groups: &[SeedRuns], measure: Measure) -> Vec<Entry> {
    let values: Vec<Vec<f64>> = groups.iter().map(|group| group.per_user(measure)).collect();
    let mut entries: Vec<Entry> = groups
        .iter()
        .zip(&values)
        .map(|(group, values)| {
            let seeds: Vec<f64> = group.ranks.iter().map(|ranks| means(ranks, &[measure])[0]).collect();
            let deviation = mean_and_deviation(&seeds).1;
            Entry { seeds, interval: bootstrap(values, ROUNDS, 0), deviation, place: 0, tests: None }
        })
        .collect();
    let mut order: Vec<usize> = (0..entries.len()).collect();
    let mean = |at: usize| unrounded(entries[at].interval.mean);
    order.sort_by(|&a, &b| mean(b).total_cmp(&mean(a)));
    let better: Vec<usize> =
        (0..entries.len()).map(|at| order.iter().filter(|&&o| mean(o) > mean(at)).count()).collect();
    entries.iter_mut().zip(better).for_each(|(entry, place)| entry.place = place);
    if let Some((&best, others)) = order.split_first() {
        let tests: Vec<Test> = others.iter().map(|&at| paired_t(&values[best], &values[at])).collect();
        let corrected = holm(&tests.iter().map(|test| test.p).collect::<Vec<_>>());
        for ((&at, t), holm) in others.iter().zip(tests).zip(corrected) {
            let wilcoxon = wilcoxon(&values[best], &values[at]);
            entries[at].tests = Some(Tests { t, wilcoxon, holm });
        }
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(name: &str, ranks: &[&[u32]]) -> SeedRuns {
        SeedRuns { name: name.to_owned(), ranks: ranks.iter().map(|r| r.to_vec()).collect() }
    }

    #[test]
    fn places_seeds_and_users_worked_by_hand() {
        // The second user has no rank under `b`; the third seed-wise differs under `a`.
        let groups = [group("a", &[&[1, 1, 9, 2], &[1, 1, 1, 2]]), group("b", &[&[1, 0, 9, 9], &[1, 0, 9, 9]])];
        let found = Comparison::new(&groups, &[Measure::Recall(5), Measure::ReciprocalRank]);
        assert_eq!(found.users, 3);
        let (a, b) = (&found.rows[0].1[0], &found.rows[1].1[0]);
        assert_eq!(a.seeds, [2.0 / 3.0, 1.0]);
        assert!((a.interval.mean - 5.0 / 6.0).abs() < 1e-12);
        assert!((a.deviation.unwrap() - (1.0 / 3.0) / 2f64.sqrt()).abs() < 1e-12);
        assert_eq!((a.place, b.place), (0, 1));
        assert!(a.tests.is_none() && b.tests.is_some());
        assert!(!found.is_significant(0), "three users show nothing");
        assert_eq!(Comparison::new(&[], &[Measure::Recall(5)]).rows, []);
        let alike = [group("a", &[&[1, 9]]), group("b", &[&[9, 1]]), group("c", &[&[9, 9]])];
        let places = Comparison::new(&alike, &[Measure::Recall(5)]).rows.into_iter().map(|row| row.1[0].place);
        assert_eq!(places.collect::<Vec<_>>(), [0, 0, 2], "equal models share a place");
    }

    #[test]
    fn a_clear_difference_is_significant_and_an_equal_model_is_not() {
        let better: Vec<u32> = (0..400).map(|u| if u % 3 == 0 { 50 } else { 1 }).collect();
        let worse: Vec<u32> = (0..400).map(|u| if u % 2 == 0 { 50 } else { 1 }).collect();
        let of = |others: &[&[u32]]| {
            let mut groups = vec![group("best", &[&better])];
            groups.extend(others.iter().map(|ranks| group("other", &[ranks])));
            Comparison::new(&groups, &[Measure::Recall(20)]).is_significant(0)
        };
        assert!(of(&[&worse]) && of(&[&worse, &worse]));
        assert!(!of(&[&better]) && !of(&[&worse, &better]), "it is the best other that counts");
        assert!(!of(&[]));
        // Two others of one mean, of which only one differs for sure: the star does not depend on their order.
        let near: Vec<u32> = better.iter().enumerate().map(|(u, &r)| if u % 9 == 1 { 50 } else { r }).collect();
        let lost = near.iter().filter(|&&rank| rank > 20).count();
        let hits: Vec<u32> = (0..400).filter(|u| u % 3 != 0).take(lost).collect();
        let far: Vec<u32> = (0..400).map(|u| if hits.contains(&u) { 50 } else { 1 }).collect();
        assert_eq!(of(&[&near, &far]), of(&[&far, &near]));
        assert!(of(&[&near]) && !of(&[&far]), "only one of them differs for sure");
        assert!(!of(&[&near, &far]));
    }
}
