//! The significance of differences between models: tests over users, intervals, and the correction for several tests.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use statrs::distribution::{ContinuousCDF, Normal, StudentsT};
use statrs::stats_tests::ttest_onesample::ttest_onesample;
use statrs::stats_tests::{Alternative, NaNPolicy};

/// The result of a two-sided test.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Test {
    /// The statistic: t, or the normal z of the signed ranks; positive if the first sample is larger.
    pub statistic: f64,
    /// The p-value: the probability of a difference of at least this size if there is no true one.
    pub p: f64,
}

/// Formats p with four decimals; a smaller p is shown as `< 0.0001`, never as 0.
pub fn probability(p: f64) -> String {
    if p < 0.0001 { "< 0.0001".to_owned() } else { format!("{p:.4}") }
}

/// The result for samples that do not differ.
const EQUAL: Test = Test { statistic: 0.0, p: 1.0 };

/// Student's paired t-test of whether the mean of `a - b` differs from 0. Both slices hold one value per user, in the same order. If all
/// users have the same difference, t is infinite however few they are, and p is that of the exact sign test: 2^(1-n) for n users.
pub fn paired_t(a: &[f64], b: &[f64]) -> Test {
    let differences: Vec<f64> = a.iter().zip(b).map(|(a, b)| unrounded(a - b)).collect();
    let Some(&first) = differences.first() else { return EQUAL };
    if differences.len() < 2 || differences.iter().all(|&d| d == 0.0) {
        return EQUAL;
    }
    if differences.iter().all(|&d| d.to_bits() == first.to_bits()) {
        return Test { statistic: f64::INFINITY.copysign(first), p: 2.0_f64.powf(1.0 - differences.len() as f64) };
    }
    let freedom = differences.len() as f64 - 1.0;
    let Ok((statistic, _)) = ttest_onesample(differences, 0.0, Alternative::TwoSided, NaNPolicy::Error) else {
        return EQUAL;
    };
    // The library computes p as 1 minus a probability near 1, which loses small values.
    let p = StudentsT::new(0.0, 1.0, freedom).map_or(1.0, |t| 2.0 * t.sf(statistic.abs()));
    Test { statistic, p }
}

/// Removes rounding errors from a value: for means over three seeds, 1 - 2/3 and 2/3 - 1/3 are the same difference.
pub fn unrounded(value: f64) -> f64 {
    const STEPS: f64 = 1e9;
    // Adding 0 turns -0 into 0, because the two would count as different values.
    (value * STEPS).round() / STEPS + 0.0
}

/// Wilcoxon's signed-rank test on pairs by its normal approximation, with the correction for ties and without the correction for
/// continuity. Pairs that do not differ are left out.
pub fn wilcoxon(a: &[f64], b: &[f64]) -> Test {
    let mut differences: Vec<f64> = a.iter().zip(b).map(|(a, b)| unrounded(a - b)).filter(|&d| d != 0.0).collect();
    if differences.is_empty() {
        return EQUAL;
    }
    differences.sort_unstable_by(|a, b| a.abs().total_cmp(&b.abs()));
    let n = differences.len() as f64;
    let (mut positive, mut ties, mut before) = (0.0, 0.0, 0.0);
    for equal in differences.chunk_by(|a, b| a.abs().total_cmp(&b.abs()).is_eq()) {
        let count = equal.len() as f64;
        let rank = before + f64::midpoint(count, 1.0);
        positive += rank * equal.iter().filter(|&&d| d > 0.0).count() as f64;
        ties += count * count * count - count;
        before += count;
    }
    let variance = n * (n + 1.0) * (2.0 * n + 1.0) / 24.0 - ties / 48.0;
    let z = (positive - n * (n + 1.0) / 4.0) / variance.sqrt();
    Test { statistic: z, p: (2.0 * Normal::standard().sf(z.abs())).min(1.0) }
}

/// A mean with the bounds between which 95 % of the means of resampled users lie.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// The mean.
    pub mean: f64,
    /// The lower bound of the interval.
    pub low: f64,
    /// The upper bound of the interval.
    pub high: f64,
}

/// The percentile bootstrap of the mean over users: `rounds` samples, each of as many users as there are values, drawn with replacement.
/// `seed` determines the draws.
pub fn bootstrap(values: &[f64], rounds: usize, seed: u64) -> Interval {
    // The sum of no values is -0.
    let mean = |sum: f64| (sum + 0.0) / values.len().max(1) as f64;
    let mut draw = StdRng::seed_from_u64(seed);
    let mut round = || mean((0..values.len()).map(|_| values[draw.random_range(0..values.len())]).sum());
    let mut sampled: Vec<f64> = (0..rounds.max(1)).map(|_| round()).collect();
    sampled.sort_unstable_by(f64::total_cmp);
    let at = |share: f64| sampled[((sampled.len() - 1) as f64 * share).round() as usize];
    Interval { mean: mean(values.iter().sum()), low: at(0.025), high: at(0.975) }
}

/// Holm's correction of the p-values of several tests: the smallest is multiplied by the number of tests, the next by one less, and so on.
/// The results never decrease in this order, and are at most 1.
pub fn holm(ps: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..ps.len()).collect();
    order.sort_by(|&a, &b| ps[a].total_cmp(&ps[b]));
    let (mut corrected, mut least) = (vec![0.0; ps.len()], 0.0f64);
    for (rank, &at) in order.iter().enumerate() {
        least = least.max((ps[at] * (ps.len() - rank) as f64).min(1.0));
        corrected[at] = least;
    }
    corrected
}

/// The mean and the standard deviation (n - 1) over seeds; the deviation is `None` for a single seed.
pub fn mean_and_deviation(values: &[f64]) -> (f64, Option<f64>) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n.max(1.0);
    let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
    (mean, (values.len() > 1).then(|| (squares / (n - 1.0)).sqrt()))
}

#[cfg(test)]
mod tests {
    use super::*;

    // The expected values are those of scipy 1.15: `ttest_rel`, `wilcoxon(method="asymptotic", correction=False)`.
    const A: [f64; 10] = [0.63, 0.0, 1.0, 0.39, 0.5, 0.0, 1.0, 0.43, 0.0, 0.63];
    const B: [f64; 10] = [0.5, 0.0, 0.63, 0.43, 0.0, 0.0, 1.0, 0.39, 0.39, 0.5];

    fn close(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-9 * expected.abs().max(1.0), "{found} is not {expected}");
    }

    #[test]
    fn tests_agree_with_scipy() {
        close(paired_t(&A, &B).statistic, 0.972_375_720_719_833);
        close(paired_t(&A, &B).p, 0.356_270_689_150_262_3);
        close(wilcoxon(&A, &B).statistic, 1.102_645_608_583_962_2);
        close(wilcoxon(&A, &B).p, 0.270_181_095_710_233_5);
        let (a, b) = ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.5], [2.0, 1.0, 5.0, 1.0, 1.0, 0.0, 0.0, 0.0]);
        close(paired_t(&a, &b).p, 0.042_641_478_343_392_46);
        close(wilcoxon(&a, &b).p, 0.058_397_906_749_301_4);
        close(wilcoxon(&b, &a).statistic, -1.892_699_020_528_510_4);
        // p-values far out in the tail.
        let far = |share: usize| -> Vec<f64> { (0..300).map(|at| f64::from(at % share != 0)).collect() };
        let none = vec![0.0; 300];
        let expected =
            [(2, 6.439_332_545_471_477e-47), (4, 5.221_104_407_162_998e-92), (10, 1.536_243_017_287_262_7e-151)];
        for (share, expected) in expected {
            assert!((paired_t(&far(share), &none).p / expected - 1.0).abs() < 1e-6, "{share}");
        }
    }

    #[test]
    fn equal_differences_of_means_over_three_seeds_share_a_rank() {
        let thirds = |hits: &[u32]| hits.iter().map(|&hits| f64::from(hits) / 3.0).collect::<Vec<_>>();
        let (a, b) = ([3, 2, 1, 3, 0, 2, 3, 1], [2, 1, 0, 1, 1, 2, 2, 0]);
        // Thirds differ from whole numbers only in scale.
        let whole = |hits: &[u32]| hits.iter().map(|&hits| f64::from(hits)).collect::<Vec<_>>();
        assert_eq!(wilcoxon(&thirds(&a), &thirds(&b)), wilcoxon(&whole(&a), &whole(&b)));
        let (sum, parts) = (vec![0.1 + 0.2; 3], vec![0.3; 3]);
        assert_eq!(wilcoxon(&sum, &parts), EQUAL);
        assert_eq!(paired_t(&sum, &parts), EQUAL);
        // The same values of a user, added in another order of the seeds.
        let mean = |values: [f64; 3]| (values[0] + values[1] + values[2]) / 3.0;
        let (a, b) = (mean([0.1, 0.2, 0.3]), mean([0.3, 0.2, 0.1]));
        assert_ne!(a.to_bits(), b.to_bits());
        assert_eq!(paired_t(&[a, a, 0.0, a], &[b, b, 0.0, b]), EQUAL);
    }

    #[test]
    fn equal_values_are_not_significant_and_consistent_differences_are() {
        for test in [paired_t, wilcoxon] {
            assert_eq!(test(&A, &A), EQUAL);
            assert_eq!(test(&[], &[]), EQUAL);
        }
        assert_eq!(paired_t(&[1.0], &[0.0]), EQUAL, "one user shows nothing");
        assert!((paired_t(&[1.0; 4], &[0.0; 4]).p - 0.125).abs() < 1e-12, "so do four that agree");
        assert!(paired_t(&[1.0; 40], &[0.0; 40]).p < 1e-11);
        assert!(wilcoxon(&[1.0; 40], &[0.0; 40]).p < 1e-8);
    }

    #[test]
    fn holm_correction_matches_hand_computed_values() {
        // The smallest first: 0.01 * 3, 0.02 * 2, 0.03 * 1; the last is raised to 0.04, because the results never decrease.
        let corrected = holm(&[0.02, 0.03, 0.01]);
        assert!(corrected.iter().zip([0.04, 0.04, 0.03]).all(|(a, b)| (a - b).abs() < 1e-12), "{corrected:?}");
        assert_eq!(holm(&[0.9, 0.8]), [1.0, 1.0]);
        assert!(holm(&[]).is_empty());
    }

    #[test]
    fn the_bootstrap_finds_the_standard_error_and_is_a_function_of_its_seed() {
        // A share of 0.3 over 2,000 users: the 95 % interval is 1.96 sqrt(0.3 0.7 / 2000) = 0.0201 to either side.
        let values: Vec<f64> = (0..2000).map(|i| f64::from(i % 10 < 3)).collect();
        let found = bootstrap(&values, 1000, 1);
        assert!((found.mean - 0.3).abs() < 1e-12);
        assert!((found.high - 0.3201).abs() < 0.002 && (found.low - 0.2799).abs() < 0.002, "{found:?}");
        assert_eq!(found, bootstrap(&values, 1000, 1));
        assert_ne!(found, bootstrap(&values, 1000, 2));
        let of_nobody = bootstrap(&[], 10, 1);
        assert!([of_nobody.mean, of_nobody.low, of_nobody.high].iter().all(|value| value.to_bits() == 0), "not -0");
    }

    #[test]
    fn a_small_p_is_never_zero() {
        assert_eq!([0.0, 0.000_099, 0.0001, 1.0].map(probability), ["< 0.0001", "< 0.0001", "0.0001", "1.0000"]);
    }

    #[test]
    fn deviation_matches_hand_computed_values() {
        assert_eq!(mean_and_deviation(&[1.0, 3.0]), (2.0, Some(2f64.sqrt())));
        assert_eq!(mean_and_deviation(&[5.0]), (5.0, None));
    }
}
