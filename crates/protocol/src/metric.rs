//! The metrics of a rank: Recall@K, N@K, MRR and others.

use std::fmt;
use std::str::FromStr;

/// A score that is NaN or infinite, which is an error and never gives a rank.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error("the score of item {item} is {score}")]
pub struct BadScore {
    /// The item, 1-based.
    pub item: u32,
    /// The score of the item.
    pub score: f32,
}

/// The rank of `target` (1-based item) among all items: 1 + items scored higher + other items scored equal, so ties count
/// against the model. Items for which `removed` holds are not candidates; the target always is.
pub fn rank(scores: &[f32], target: u32, removed: impl Fn(u32) -> bool) -> Result<u32, BadScore> {
    if let Some(at) = scores.iter().position(|s| !s.is_finite()) {
        return Err(BadScore { item: at as u32 + 1, score: scores[at] });
    }
    let own = scores[target as usize - 1];
    let ahead = scores.iter().zip(1..).filter(|&(&s, item)| item != target && s >= own && !removed(item)).count();
    Ok(ahead as u32 + 1)
}

/// A metric of one rank, from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Metric {
    /// R@K: whether the rank is among the first K.
    Recall(usize),
    /// N@K: 1 / log2(rank + 1) among the first K, 0 after them.
    Ndcg(usize),
    /// 1 / rank; its mean is MRR.
    ReciprocalRank,
    /// Hit@K: the same as R@K, because every user has one target.
    Hit(usize),
    /// P@K: the share of the first K items that are targets, 1 / K or 0.
    Precision(usize),
    /// MAP@K: the average precision of the first K, which for one target is 1 / rank, or 0 after them.
    AveragePrecision(usize),
    /// MRR@K: 1 / rank among the first K, 0 after them.
    ReciprocalRankAt(usize),
}

impl Metric {
    /// R@K and N@K for every K, then MRR: the columns of a table.
    pub fn columns(ks: &[usize]) -> Vec<Self> {
        let (recall, ndcg) = (ks.iter().map(|&k| Self::Recall(k)), ks.iter().map(|&k| Self::Ndcg(k)));
        recall.chain(ndcg).chain([Self::ReciprocalRank]).collect()
    }

    /// [`Metric::columns`], followed by the metrics named in `others`, without repeats. Names are checked when the configuration is read;
    /// unknown ones are ignored here.
    pub fn table(ks: &[usize], others: &[String]) -> Vec<Self> {
        let mut columns = Self::columns(ks);
        for metric in others.iter().filter_map(|name| name.parse().ok()) {
            if !columns.contains(&metric) {
                columns.push(metric);
            }
        }
        columns
    }

    /// The metric by which epochs are selected among rankings of `items` items: this one, or MRR if this one has the same value for every
    /// ranking.
    #[must_use]
    pub fn selecting(self, items: usize) -> Self {
        match self {
            Self::Recall(k) | Self::Hit(k) | Self::Precision(k) if k >= items => Self::ReciprocalRank,
            metric => metric,
        }
    }

    /// The last rank that counts; `None` if all do.
    fn cut(self) -> Option<usize> {
        match self {
            Self::Recall(k)
            | Self::Ndcg(k)
            | Self::Hit(k)
            | Self::Precision(k)
            | Self::AveragePrecision(k)
            | Self::ReciprocalRankAt(k) => Some(k),
            Self::ReciprocalRank => None,
        }
    }

    /// The value of the metric for a rank, which counts from 1.
    pub fn of(self, rank: u32) -> f64 {
        if self.cut().is_some_and(|k| rank as usize > k) {
            return 0.0;
        }
        match self {
            Self::Recall(_) | Self::Hit(_) => 1.0,
            Self::Precision(k) => 1.0 / k as f64,
            Self::Ndcg(_) => 1.0 / (f64::from(rank) + 1.0).log2(),
            Self::ReciprocalRank | Self::AveragePrecision(_) | Self::ReciprocalRankAt(_) => 1.0 / f64::from(rank),
        }
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Recall(k) => write!(f, "R@{k}"),
            Self::Ndcg(k) => write!(f, "N@{k}"),
            Self::ReciprocalRank => write!(f, "MRR"),
            Self::Hit(k) => write!(f, "Hit@{k}"),
            Self::Precision(k) => write!(f, "P@{k}"),
            Self::AveragePrecision(k) => write!(f, "MAP@{k}"),
            Self::ReciprocalRankAt(k) => write!(f, "MRR@{k}"),
        }
    }
}

/// The error for a name that is not that of a metric.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("unknown metric `{0}`; use R@K, N@K, Hit@K, P@K, MAP@K or MRR@K (K from 1), or MRR")]
pub struct UnknownMetric(String);

impl FromStr for Metric {
    type Err = UnknownMetric;

    fn from_str(name: &str) -> Result<Self, UnknownMetric> {
        let k = |text: &str| text.parse().ok().filter(|&k| k > 0);
        match name.split_once('@') {
            None if name == "MRR" => Some(Self::ReciprocalRank),
            Some(("R", text)) => k(text).map(Self::Recall),
            Some(("N", text)) => k(text).map(Self::Ndcg),
            Some(("Hit", text)) => k(text).map(Self::Hit),
            Some(("P", text)) => k(text).map(Self::Precision),
            Some(("MAP", text)) => k(text).map(Self::AveragePrecision),
            Some(("MRR", text)) => k(text).map(Self::ReciprocalRankAt),
            _ => None,
        }
        .ok_or_else(|| UnknownMetric(name.to_owned()))
    }
}

/// The mean of each metric over ranks; zeros if there are no ranks.
pub fn means(ranks: &[u32], metrics: &[Metric]) -> Vec<f64> {
    let users = ranks.len().max(1) as f64;
    // The sum of no numbers is -0.0.
    metrics.iter().map(|metric| ranks.iter().fold(0.0, |sum, &rank| sum + metric.of(rank)) / users).collect()
}

/// The means of metrics over the users that have a rank.
///
/// ```
/// use mp4sr_protocol::{Metric, MetricMeans};
///
/// // The targets of four users had the ranks 1, 3, 12 and 1; a rank of 0 marks a user without a target.
/// let metrics = ["R@5".parse::<Metric>()?, "MRR".parse()?];
/// let means = MetricMeans::of(&[1, 3, 12, 1, 0], &metrics);
/// assert_eq!(means.get(metrics[0]), Some(0.75));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct MetricMeans {
    /// The number of users that have a rank.
    pub users: usize,
    /// Each metric with its mean.
    pub values: Vec<(Metric, f64)>,
}

impl MetricMeans {
    /// Computes the means from one rank per user; users with the rank 0 have none and do not count.
    pub fn of(ranks: &[u32], metrics: &[Metric]) -> Self {
        let ranked: Vec<u32> = ranks.iter().copied().filter(|&rank| rank > 0).collect();
        let values = metrics.iter().copied().zip(means(&ranked, metrics)).collect();
        Self { users: ranked.len(), values }
    }

    /// The mean of a metric; `None` if it was not computed.
    pub fn get(&self, metric: Metric) -> Option<f64> {
        self.values.iter().find(|(m, _)| *m == metric).map(|(_, value)| *value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_count_against_the_model_and_removed_items_do_not_count() {
        let scores = [0.5, 0.9, 0.5, 0.1, 0.5];
        assert_eq!(rank(&scores, 1, |_| false).unwrap(), 4);
        assert_eq!(rank(&scores, 1, |i| i == 2 || i == 3).unwrap(), 2);
        assert_eq!(rank(&scores, 2, |i| i == 2).unwrap(), 1, "the target itself stays");
        assert_eq!(rank(&scores, 4, |_| false).unwrap(), 5);
        let bad = rank(&[0.0, f32::NAN], 1, |_| false).unwrap_err();
        assert_eq!(bad.item, 2);
    }

    #[test]
    fn metrics_match_hand_computed_values_and_users_without_a_rank_are_skipped() {
        // Ranks 1, 3, 25 of three users: R@5 = 2/3, N@5 = (1 + 1/2) / 3, MRR = (1 + 1/3 + 1/25) / 3.
        let means = MetricMeans::of(&[1, 0, 3, 25], &Metric::columns(&[5, 25]));
        let close = |metric, expected: f64| (means.get(metric).unwrap() - expected).abs() < 1e-12;
        assert_eq!(means.users, 3);
        assert!(close(Metric::Recall(5), 2.0 / 3.0) && close(Metric::Recall(25), 1.0));
        assert!(close(Metric::Ndcg(5), 0.5) && close(Metric::Ndcg(25), (1.5 + 1.0 / 26f64.log2()) / 3.0));
        assert!(close(Metric::ReciprocalRank, (1.0 + 1.0 / 3.0 + 0.04) / 3.0));
        assert_eq!(means.get(Metric::Recall(10)), None);
    }

    /// The expected values are those of RecBole 1.2.1's evaluator (Hit, MRR, MAP, Recall, NDCG, Precision) for eight users with one target
    /// each.
    #[test]
    fn metrics_of_ranks_are_those_of_recbole() {
        let ranks = [1, 3, 25, 7, 10, 2, 11, 5];
        let expected = [
            ("Hit@5", 0.5),
            ("Hit@10", 0.75),
            ("MRR@5", 0.254_166_666_667),
            ("MRR@10", 0.284_523_809_524),
            ("MAP@5", 0.254_166_666_667),
            ("MAP@10", 0.284_523_809_524),
            ("R@5", 0.5),
            ("R@10", 0.75),
            ("N@5", 0.314_722_820_101),
            ("N@10", 0.392_522_590_057),
            ("P@5", 0.1),
            ("P@10", 0.075),
        ];
        for (name, expected) in expected {
            let found = means(&ranks, &[name.parse().unwrap()])[0];
            assert!((found - expected).abs() < 1e-11, "{name}: {found}, expected {expected}");
        }
    }

    #[test]
    fn no_users_and_the_largest_rank_give_zeros() {
        assert_eq!(MetricMeans::of(&[0], &[Metric::Recall(5)]).values, [(Metric::Recall(5), 0.0)]);
        assert_eq!(means(&[u32::MAX], &[Metric::Ndcg(5), Metric::Recall(5)]), [0.0, 0.0]);
    }

    #[test]
    fn names_round_trip_and_unknown_names_are_refused() {
        let others = ["Hit@3", "P@3", "MAP@3", "MRR@3", "R@20", "P@3"].map(str::to_owned);
        let metrics = Metric::table(&[1, 20], &others);
        assert_eq!(metrics.len(), 5 + 4, "each once: {metrics:?}");
        for metric in metrics {
            assert_eq!(metric.to_string().parse(), Ok(metric));
        }
        for name in ["", "R", "R@", "R@0", "R@-1", "N@x", "MRR@", "MAP", "Hit@0", "recall@5", "mrr"] {
            let error = name.parse::<Metric>().unwrap_err().to_string();
            assert!(error.contains(&format!("`{name}`")), "{error}");
        }
    }
}
