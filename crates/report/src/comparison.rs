//! How sure the run's measures are, and whether it differs from the runs beside it by more than chance.

use mp4sr_protocol::{Interval, Measure, bootstrap, holm, paired_t, wilcoxon};

use crate::breakdown::Ranked;
use crate::table::aligned;

/// Samples of users for an interval.
const ROUNDS: usize = 1000;
/// The same ranks give the same interval.
const SEED: u64 = 1;

/// What is known of the run and of each other, by measure.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Comparison {
    pub(crate) measures: Vec<Measure>,
    /// Of the run's own means, by measure.
    pub(crate) intervals: Vec<Interval>,
    pub(crate) others: Vec<Against>,
}

/// The run against another, over the users that both have a rank of.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Against {
    pub(crate) run: String,
    pub(crate) users: usize,
    /// By measure.
    pub(crate) differences: Vec<Difference>,
}

/// A difference in one measure.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Difference {
    /// The mean of the run less that of the other.
    pub(crate) mean: f64,
    /// p of the paired t-test, corrected over the other runs.
    pub(crate) t: f64,
    /// p of Wilcoxon's signed-rank test, likewise.
    pub(crate) wilcoxon: f64,
}

impl Comparison {
    /// The last run against each of the others.
    pub(crate) fn of(runs: &[Ranked], measures: &[Measure]) -> Option<Self> {
        let (own, others) = runs.split_last()?;
        let ranks: Vec<u32> = own.ranks.iter().copied().filter(|&rank| rank > 0).collect();
        let interval = |measure: &Measure| bootstrap(&values(&ranks, *measure), ROUNDS, SEED);
        let mut found: Vec<Against> = others.iter().map(|other| against(own, other, measures)).collect();
        for at in 0..measures.len() {
            correct(&mut found, |against| &mut against.differences[at].t);
            correct(&mut found, |against| &mut against.differences[at].wilcoxon);
        }
        Some(Self { measures: measures.to_vec(), intervals: measures.iter().map(interval).collect(), others: found })
    }

    /// Markdown: intervals, then the others where there are any.
    pub(crate) fn markdown(&self) -> String {
        let mut text = String::from("Over users, 95 % of the means lie in (bootstrap):");
        for (at, (measure, interval)) in self.measures.iter().zip(&self.intervals).enumerate() {
            let Interval { low, high, .. } = interval;
            text.push_str(&format!("{} {measure} {low:.4} to {high:.4}", if at > 0 { "," } else { "" }));
        }
        text.push_str(".\n");
        if !self.others.is_empty() {
            let mut header = vec!["against".to_owned(), "users".to_owned()];
            for measure in &self.measures {
                header.extend([measure.to_string(), "t-test p".to_owned(), "Wilcoxon p".to_owned()]);
            }
            let line = |against: &Against| {
                let mut line = vec![against.run.replace('|', "\\|"), against.users.to_string()];
                for Difference { mean, t, wilcoxon } in &against.differences {
                    line.extend([format!("{mean:+.4}"), probability(*t), probability(*wilcoxon)]);
                }
                line
            };
            let lines: Vec<_> = [header].into_iter().chain(self.others.iter().map(line)).collect();
            text.push_str(&format!("\n{}", aligned(&lines)));
        }
        text
    }
}

fn values(ranks: &[u32], measure: Measure) -> Vec<f64> {
    ranks.iter().map(|&rank| measure.of(rank)).collect()
}

fn against(own: &Ranked, other: &Ranked, measures: &[Measure]) -> Against {
    let pairs = own.ranks.iter().copied().zip(other.ranks.iter().copied());
    let (a, b): (Vec<u32>, Vec<u32>) = pairs.filter(|&(a, b)| a > 0 && b > 0).unzip();
    let difference = |&measure: &Measure| {
        let (a, b) = (values(&a, measure), values(&b, measure));
        let mean = (a.iter().sum::<f64>() - b.iter().sum::<f64>()) / a.len().max(1) as f64;
        Difference { mean, t: paired_t(&a, &b).p, wilcoxon: wilcoxon(&a, &b).p }
    };
    Against { run: other.run.clone(), users: a.len(), differences: measures.iter().map(difference).collect() }
}

/// Replaces one p of each by its corrected one.
fn correct(found: &mut [Against], p: impl Fn(&mut Against) -> &mut f64) {
    let corrected = holm(&found.iter_mut().map(|against| *p(against)).collect::<Vec<_>>());
    found.iter_mut().zip(corrected).for_each(|(against, corrected)| *p(against) = corrected);
}

/// p with four decimals; one that they can't tell from 0 is never written as 0.
pub(crate) fn probability(p: f64) -> String {
    if p < 0.0001 { "< 0.0001".to_owned() } else { format!("{p:.4}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranked(run: &str, ranks: &[u32]) -> Ranked {
        Ranked { run: run.to_owned(), ranks: ranks.to_vec() }
    }

    #[test]
    fn tests_pair_users_and_are_corrected_over_the_others() {
        // The fourth user has no rank in the run, the last none in `a`; of the others R@1 is 1, 1, 1, 0 against 0, 1, 0, 0.
        // So t = 3^(1/2) with 3 degrees of freedom: p = 1/2 - 1/pi. Two signed ranks, both positive: z = 2^(1/2), p = erfc(1).
        let own = ranked("mine", &[1, 1, 1, 0, 2, 1]);
        let a = ranked("a|", &[2, 1, 2, 1, 2, 0]);
        let alone = Comparison::of(&[a.clone(), own.clone()], &[Measure::Recall(1)]).unwrap();
        let found = &alone.others[0];
        let (t, signed) = (0.5 - std::f64::consts::FRAC_1_PI, 0.157_299_207_050_285_13);
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-9, "{a} is not {b}");
        assert_eq!((found.run.as_str(), found.users), ("a|", 4));
        close(found.differences[0].mean, 0.5);
        close(found.differences[0].t, t);
        close(found.differences[0].wilcoxon, signed);

        // The same run again differs by nothing, so the smaller p counts twice.
        let twin = Ranked { run: "twin".to_owned(), ..own.clone() };
        let three = Comparison::of(&[a, twin, own], &[Measure::Recall(1)]).unwrap();
        close(three.others[0].differences[0].t, 2.0 * t);
        close(three.others[0].differences[0].wilcoxon, 2.0 * signed);
        assert_eq!(three.others[1].differences, [Difference { mean: 0.0, t: 1.0, wilcoxon: 1.0 }]);
        assert!(
            three.markdown().contains("| a\\|     |     4 | +0.5000 |   0.3634 |     0.3146 |\n"),
            "{}",
            three.markdown()
        );
    }

    #[test]
    fn intervals_are_over_users_with_a_rank_and_the_same_each_time() {
        // 100 users, every fourth a hit, with as many users without a rank among them.
        let ranks: Vec<u32> =
            (0..200).map(|user| if user % 2 == 1 { 0 } else { 1 + user % 4 * 9 + user % 8 }).collect();
        let runs = [ranked("mine", &ranks)];
        let found = Comparison::of(&runs, &[Measure::Recall(1)]).unwrap();
        let Interval { mean, low, high } = found.intervals[0];
        assert!((mean - 0.25).abs() < 1e-12, "{mean}");
        // 1.96 (0.25 0.75 / 100)^(1/2) = 0.085 to either side.
        assert!((low - 0.165).abs() < 0.02 && (high - 0.335).abs() < 0.02, "{low} to {high}");
        assert_eq!(Comparison::of(&runs, &[Measure::Recall(1)]), Some(found.clone()));
        assert!(found.others.is_empty() && !found.markdown().contains('|'));
        assert_eq!(Comparison::of(&[], &[]), None);
    }

    #[test]
    fn a_small_p_is_never_zero() {
        assert_eq!([0.0, 0.000_099, 0.0001, 1.0].map(probability), ["< 0.0001", "< 0.0001", "0.0001", "1.0000"]);
    }
}
