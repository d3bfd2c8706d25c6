//! Compares models, each given as one run or as several runs that differ by their seed. Every interval and test that a report, a comparison
//! or a study prints comes from this module.

use mp4sr_artifact::{Error, Layout, Result, Sequences};

use crate::significance::{Interval, Test, bootstrap, holm, mean_and_deviation, paired_t, unrounded, wilcoxon};
use crate::{Metric, OtherSetting, RanksInfo, Split, StoredRanks, means};

/// A difference is marked as significant if its corrected p-value is below this (paper, Table 2).
pub const SIGNIFICANT: f64 = 0.01;
/// The number of bootstrap samples of the users per interval.
pub const BOOTSTRAP_ROUNDS: usize = 1000;
/// The seed of the bootstrap samples. It is fixed, so that the same ranks give the same interval.
const BOOTSTRAP_SEED: u64 = 0;

/// The ranks of a model, one list per seed. Every list has one rank per user, 0 for a user without a rank.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SeedRuns {
    /// The name of the model.
    pub name: String,
    /// The lists of ranks, one per seed.
    pub ranks: Vec<Vec<u32>>,
    /// Whether items of the history were excluded from the candidates; `None` if the ranks do not record it.
    pub removes_seen: Option<bool>,
}

impl SeedRuns {
    /// Reads the ranks of several runs of one model. Returns an error unless they differ by their seed, and by nothing else.
    pub fn read(
        name: &str,
        runs: &[Layout],
        sequences: &Sequences,
        split: Split,
        history: Option<usize>,
    ) -> Result<Self> {
        const REMEDY: &str = "group only runs that differ only by their seed";
        let mut group = Self { name: name.to_owned(), ..Self::default() };
        let mut earlier: Vec<(&str, RanksInfo)> = Vec::new();
        for run in runs {
            let StoredRanks { ranks, info } = StoredRanks::read(run, sequences, split, history)?;
            let refuse = |reason: String| Err(Error::unusable(&run.run(), reason, REMEDY));
            if let Some((of, first)) = earlier.first()
                && let Some(OtherSetting { key, own, others }) = info.other_setting(first)
            {
                return refuse(format!(
                    "its `{key}` is {own}, but the run `{of}`, which should differ only by its seed, has {others}"
                ));
            }
            let same_seed = |(_, before): &&(&str, RanksInfo)| info.seed().is_some() && before.seed() == info.seed();
            if let Some((of, _)) = earlier.iter().find(same_seed) {
                return refuse(format!("it has the same seed as the run `{of}`, and each seed counts only once"));
            }
            group.removes_seen = info.removes_seen;
            earlier.push((run.run_name(), info));
            group.ranks.push(ranks);
        }
        Ok(group)
    }

    /// Returns the same runs with the ranks of the given users (rows) only.
    #[must_use]
    pub fn of_users(&self, users: &[usize]) -> Self {
        let pick = |ranks: &Vec<u32>| users.iter().map(|&user| ranks[user]).collect();
        Self { ranks: self.ranks.iter().map(pick).collect(), ..self.clone() }
    }

    fn values(&self, metric: Metric) -> UserValues {
        let users = self.ranks.first().map_or(0, Vec::len);
        let value = |user: usize| self.ranks.iter().map(|ranks| metric.of(ranks[user])).sum::<f64>();
        UserValues {
            seeds: self.ranks.iter().map(|ranks| means(ranks, &[metric])[0]).collect(),
            users: (0..users).map(|user| value(user) / self.ranks.len() as f64).collect(),
        }
    }
}

/// The values of one model for one metric.
#[derive(Clone, Debug, PartialEq)]
pub struct ComparedValue {
    /// The number of users whose values these are.
    pub users: usize,
    /// The means over users, one per seed.
    pub seeds: Vec<f64>,
    /// The mean over seeds, with its bootstrap interval over users.
    pub interval: Interval,
    /// The standard deviation over seeds; `None` for a single seed.
    pub deviation: Option<f64>,
    /// The number of models with a higher mean.
    pub better_models: usize,
    /// The tests of the reference against this model; `None` for the reference itself.
    pub tests: Option<PairTests>,
}

/// Tests of the reference against another model on pairs of values of the same user.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PairTests {
    /// The mean of the reference minus the mean of the other model.
    pub difference: f64,
    /// The paired t-test.
    pub t: Test,
    /// Wilcoxon's signed-rank test.
    pub wilcoxon: Test,
    /// The p-value of the t-test after Holm's correction over all other models.
    pub t_holm: f64,
    /// The p-value of Wilcoxon's test after the same correction.
    pub wilcoxon_holm: f64,
}

/// The model that the others are tested against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reference {
    /// The best model, chosen for each metric separately.
    Best,
    /// The last model of the list, whether or not it is the best.
    Last,
}

/// The name of a model and its values, one per metric.
pub type ComparedModel = (String, Vec<ComparedValue>);

/// The values of several models for several metrics.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// The metrics that the models are compared by.
    pub metrics: Vec<Metric>,
    /// The number of users that have a rank in every run of every model; other users are left out.
    pub users: usize,
    /// The models in the order in which they were given.
    pub rows: Vec<ComparedModel>,
    /// The names of the models that exclude items of the history from the candidates, if other models keep them.
    pub without_seen: Vec<String>,
}

impl Comparison {
    /// Compares models on the users that all of them rank, and tests the others against `reference`.
    pub fn new(groups: &[SeedRuns], metrics: &[Metric], reference: Reference) -> Self {
        let count = groups.iter().flat_map(|group| &group.ranks).map(Vec::len).min().unwrap_or(0);
        let ranked = |&user: &usize| groups.iter().flat_map(|group| &group.ranks).all(|ranks| ranks[user] > 0);
        let users: Vec<usize> = (0..count).filter(ranked).collect();
        let groups: Vec<SeedRuns> = groups.iter().map(|group| group.of_users(&users)).collect();
        let mut rows: Vec<ComparedModel> = groups.iter().map(|group| (group.name.clone(), Vec::new())).collect();
        for &metric in metrics {
            let values: Vec<UserValues> = groups.iter().map(|group| group.values(metric)).collect();
            for (row, value) in rows.iter_mut().zip(compare(&values, reference)) {
                row.1.push(value);
            }
        }
        let named = |removes: bool| groups.iter().filter(move |group| group.removes_seen == Some(removes));
        let differ = named(false).next().is_some();
        let without_seen = named(true).filter(|_| differ).map(|group| group.name.clone()).collect();
        Self { metrics: metrics.to_vec(), users: users.len(), rows, without_seen }
    }

    /// Returns a note for the reader if the models were not ranked among the same candidates.
    pub fn candidates_note(&self) -> Option<String> {
        let names = self.without_seen.join(", ");
        (!names.is_empty()).then(|| {
            format!(
                "The candidates differ: items of the history are left out for {names} and kept for the others \
                 (`evaluate.seen_items`), so these values are not comparable."
            )
        })
    }

    /// Whether the best model of a column is significantly better than the second best, or than all models that share the second rank.
    pub fn is_significant(&self, column: usize) -> bool {
        let others =
            || self.rows.iter().filter_map(|(_, values)| Some((values[column].better_models, values[column].tests?)));
        let second = others().map(|(better, _)| better).min();
        second.is_some() && others().all(|(better, tests)| Some(better) != second || tests.t_holm < SIGNIFICANT)
    }
}

/// The values of one model for one metric.
pub(crate) struct UserValues {
    /// The means over users, one per seed.
    pub(crate) seeds: Vec<f64>,
    /// The means over seeds, one per user.
    pub(crate) users: Vec<f64>,
}

/// Compares the values of models for the same users.
pub(crate) fn compare(models: &[UserValues], reference: Reference) -> Vec<ComparedValue> {
    let mut compared: Vec<ComparedValue> = models
        .iter()
        .map(|UserValues { seeds, users }| {
            let interval = bootstrap(users, BOOTSTRAP_ROUNDS, BOOTSTRAP_SEED);
            let deviation = mean_and_deviation(seeds).1;
            ComparedValue {
                users: users.len(),
                seeds: seeds.clone(),
                interval,
                deviation,
                better_models: 0,
                tests: None,
            }
        })
        .collect();
    let means: Vec<f64> = compared.iter().map(|value| unrounded(value.interval.mean)).collect();
    for (value, own) in compared.iter_mut().zip(&means) {
        value.better_models = means.iter().filter(|&other| other > own).count();
    }
    let reference = match reference {
        Reference::Best => compared.iter().position(|value| value.better_models == 0),
        Reference::Last => compared.len().checked_sub(1),
    };
    let Some(reference) = reference else { return compared };
    let others: Vec<usize> = (0..compared.len()).filter(|&at| at != reference).collect();
    let t: Vec<Test> = others.iter().map(|&at| paired_t(&models[reference].users, &models[at].users)).collect();
    let wilcoxon: Vec<Test> = others.iter().map(|&at| wilcoxon(&models[reference].users, &models[at].users)).collect();
    let corrected = |tests: &[Test]| holm(&tests.iter().map(|test| test.p).collect::<Vec<_>>());
    let (t_holm, wilcoxon_holm) = (corrected(&t), corrected(&wilcoxon));
    for (index, &at) in others.iter().enumerate() {
        compared[at].tests = Some(PairTests {
            difference: compared[reference].interval.mean - compared[at].interval.mean,
            t: t[index],
            wilcoxon: wilcoxon[index],
            t_holm: t_holm[index],
            wilcoxon_holm: wilcoxon_holm[index],
        });
    }
    compared
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(name: &str, ranks: &[&[u32]]) -> SeedRuns {
        SeedRuns { name: name.to_owned(), ranks: ranks.iter().map(|r| r.to_vec()).collect(), removes_seen: None }
    }

    #[test]
    fn ranks_seeds_and_users_match_a_hand_computed_example() {
        // The second user has no rank under `b`, and the third differs between the seeds of `a`.
        let groups = [group("a", &[&[1, 1, 9, 2], &[1, 1, 1, 2]]), group("b", &[&[1, 0, 9, 9], &[1, 0, 9, 9]])];
        let found = Comparison::new(&groups, &[Metric::Recall(5), Metric::ReciprocalRank], Reference::Best);
        assert_eq!(found.users, 3);
        let (a, b) = (&found.rows[0].1[0], &found.rows[1].1[0]);
        assert_eq!(a.seeds, [2.0 / 3.0, 1.0]);
        assert!((a.interval.mean - 5.0 / 6.0).abs() < 1e-12);
        assert!((a.deviation.unwrap() - (1.0 / 3.0) / 2f64.sqrt()).abs() < 1e-12);
        assert_eq!((a.better_models, b.better_models), (0, 1));
        assert!(a.tests.is_none() && b.tests.is_some());
        assert!(!found.is_significant(0), "three users show nothing");
        assert_eq!(Comparison::new(&[], &[Metric::Recall(5)], Reference::Best).rows, []);
        let alike = [group("a", &[&[1, 9]]), group("b", &[&[9, 1]]), group("c", &[&[9, 9]])];
        let positions = Comparison::new(&alike, &[Metric::Recall(5)], Reference::Best)
            .rows
            .into_iter()
            .map(|row| row.1[0].better_models);
        assert_eq!(positions.collect::<Vec<_>>(), [0, 0, 2], "equal models share a rank");
    }

    #[test]
    fn a_clear_difference_is_significant_and_an_equal_model_is_not() {
        let better: Vec<u32> = (0..400).map(|u| if u % 3 == 0 { 50 } else { 1 }).collect();
        let worse: Vec<u32> = (0..400).map(|u| if u % 2 == 0 { 50 } else { 1 }).collect();
        let of = |others: &[&[u32]]| {
            let mut groups = vec![group("best", &[&better])];
            groups.extend(others.iter().map(|ranks| group("other", &[ranks])));
            Comparison::new(&groups, &[Metric::Recall(20)], Reference::Best).is_significant(0)
        };
        assert!(of(&[&worse]) && of(&[&worse, &worse]));
        assert!(!of(&[&better]) && !of(&[&worse, &better]), "it is the best other that counts");
        assert!(!of(&[]));
        // Two other models have the same mean, but only one of them differs significantly: the mark does not depend on their order.
        let near: Vec<u32> = better.iter().enumerate().map(|(u, &r)| if u % 9 == 1 { 50 } else { r }).collect();
        let lost = near.iter().filter(|&&rank| rank > 20).count();
        let hits: Vec<u32> = (0..400).filter(|u| u % 3 != 0).take(lost).collect();
        let far: Vec<u32> = (0..400).map(|u| if hits.contains(&u) { 50 } else { 1 }).collect();
        assert_eq!(of(&[&near, &far]), of(&[&far, &near]));
        assert!(of(&[&near]) && !of(&[&far]), "only one of them differs for sure");
        assert!(!of(&[&near, &far]));
    }

    #[test]
    fn tests_pair_users_and_are_corrected_over_the_others() {
        // The fourth user has no rank in `mine`, and the last has none in `a`. For the others, R@1 is 1, 1, 1, 0 against 0, 1, 0, 0, so t =
        // 3^(1/2) with 3 degrees of freedom and p = 1/2 - 1/pi. Two signed ranks remain, both positive: z = 2^(1/2), p = erfc(1).
        let (mine, a) = (group("mine", &[&[1, 1, 1, 0, 2, 1]]), group("a", &[&[2, 1, 2, 1, 2, 0]]));
        let alone = Comparison::new(&[a.clone(), mine.clone()], &[Metric::Recall(1)], Reference::Last);
        let (t, signed) = (0.5 - std::f64::consts::FRAC_1_PI, 0.157_299_207_050_285_13);
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-9, "{a} is not {b}");
        let found = alone.rows[0].1[0].tests.unwrap();
        assert_eq!(alone.users, 4);
        close(found.difference, 0.5);
        close(found.t.p, t);
        close(found.wilcoxon.p, signed);
        assert_eq!(Comparison::new(&[a.clone(), mine.clone()], &[Metric::Recall(1)], Reference::Best), alone);

        // A copy of the reference does not differ from it, so the smaller p-value is doubled.
        let twin = SeedRuns { name: "twin".to_owned(), ..mine.clone() };
        let three = Comparison::new(&[a.clone(), twin, mine.clone()], &[Metric::Recall(1)], Reference::Last);
        let found = three.rows[0].1[0].tests.unwrap();
        close(found.t_holm, 2.0 * t);
        close(found.wilcoxon_holm, 2.0 * signed);
        let same = three.rows[1].1[0].tests.unwrap();
        assert_eq!((same.difference, same.t_holm, same.wilcoxon_holm), (0.0, 1.0, 1.0));

        // A worse reference is tested in the same way, and the difference is negative.
        let worse = Comparison::new(&[mine, a], &[Metric::Recall(1)], Reference::Last);
        let found = worse.rows[0].1[0].tests.unwrap();
        close(found.difference, -0.5);
        close(found.t.p, t);
        assert!(worse.rows[1].1[0].tests.is_none());
    }

    #[test]
    fn intervals_are_over_users_with_a_rank_and_the_same_each_time() {
        // Of 200 users every second one has no rank, and of the remaining 100 every fourth is a hit.
        let ranks: Vec<u32> =
            (0..200).map(|user| if user % 2 == 1 { 0 } else { 1 + user % 4 * 9 + user % 8 }).collect();
        let found = Comparison::new(&[group("mine", &[&ranks])], &[Metric::Recall(1)], Reference::Last);
        let Interval { mean, low, high } = found.rows[0].1[0].interval;
        assert!((mean - 0.25).abs() < 1e-12, "{mean}");
        // 1.96 (0.25 0.75 / 100)^(1/2) = 0.085 to either side.
        assert!((low - 0.165).abs() < 0.02 && (high - 0.335).abs() < 0.02, "{low} to {high}");
        assert_eq!(Comparison::new(&[group("mine", &[&ranks])], &[Metric::Recall(1)], Reference::Last), found);
    }
}
