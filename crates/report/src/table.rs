//! Metrics of runs side by side, as text for a terminal, Markdown or CSV.

use mp4sr_pipeline::text::TextTable;
use mp4sr_protocol::{Metric, MetricMeans, Split};

/// The metrics of one run on one set.
#[derive(Clone, Debug, PartialEq)]
pub struct RunMetrics {
    /// The name of the run.
    pub run: String,
    /// The mean of each metric.
    pub means: MetricMeans,
}

impl RunMetrics {
    /// The values of the metrics, in the order of the columns.
    pub fn values(&self) -> Vec<f64> {
        self.means.values.iter().map(|(_, value)| *value).collect()
    }
}

/// The runs on one set; the last row is the run that the report is about.
#[derive(Clone, Debug, PartialEq)]
pub struct MetricsTable {
    /// The evaluated set.
    pub split: Split,
    /// The metrics, one per column.
    pub metrics: Vec<Metric>,
    /// The rows of the other runs, then that of the run itself.
    pub rows: Vec<RunMetrics>,
}

/// For each value of equally long rows, whether no row has a higher value in its column; false if the value is zero.
pub(crate) fn best_of(rows: &[Vec<f64>]) -> Vec<Vec<bool>> {
    let most = |column: usize| rows.iter().map(|row| row[column]).fold(0.0, f64::max);
    let is_best = |(column, &value): (usize, &f64)| value > 0.0 && value >= most(column);
    rows.iter().map(|row| row.iter().enumerate().map(is_best).collect()).collect()
}

impl MetricsTable {
    /// The names of the columns: `R@5`, ..., `N@5`, ..., `MRR`.
    pub fn columns(&self) -> Vec<String> {
        self.metrics.iter().map(Metric::to_string).collect()
    }

    /// For each row and column, whether no run has a higher value; false if all values of the column are zero.
    pub fn best(&self) -> Vec<Vec<bool>> {
        best_of(&self.rows.iter().map(RunMetrics::values).collect::<Vec<_>>())
    }

    /// By how many percent the run is above the best of the others, by column; empty if there is only one run.
    pub fn improvement(&self) -> Vec<Option<f64>> {
        let Some((own, others)) = self.rows.split_last().filter(|(_, others)| !others.is_empty()) else {
            return Vec::new();
        };
        let others: Vec<Vec<f64>> = others.iter().map(RunMetrics::values).collect();
        let above = |(column, own): (usize, f64)| {
            let best = others.iter().map(|row| row[column]).fold(0.0, f64::max);
            (best > 0.0).then(|| 100.0 * (own - best) / best)
        };
        own.values().into_iter().enumerate().map(above).collect()
    }

    /// Formats the table as Markdown; with `emphasis`, the best value of each column is bold.
    pub fn markdown(&self, emphasis: bool) -> String {
        let mut table = TextTable::new(["run", "users"]);
        table.header.extend(self.columns());
        for (own, best) in self.rows.iter().zip(self.best()) {
            let mut row = vec![own.run.clone(), own.means.users.to_string()];
            let shown = |(value, best)| match (own.means.users, best && emphasis) {
                (0, _) => "-".to_owned(),
                (_, true) => format!("**{value:.4}**"),
                (_, false) => format!("{value:.4}"),
            };
            row.extend(own.values().into_iter().zip(best).map(shown));
            table.rows.push(row);
        }
        let improvement = self.improvement();
        if !improvement.is_empty() {
            let mut row = vec!["over the best other".to_owned(), String::new()];
            row.extend(improvement.into_iter().map(percent));
            table.rows.push(row);
        }
        table.markdown()
    }
}

/// Lists the values of all sets in full: run, set (column `split`), users, values.
pub(crate) fn metric_values(tables: &[MetricsTable]) -> TextTable {
    let mut all = TextTable::new(["run", "split", "users"]);
    all.header.extend(tables.first().map_or_else(Vec::new, MetricsTable::columns));
    for table in tables {
        for own in &table.rows {
            let mut row = vec![own.run.clone(), table.split.name().to_owned(), own.means.users.to_string()];
            let shown = |value: f64| if own.means.users == 0 { String::new() } else { value.to_string() };
            row.extend(own.values().into_iter().map(shown));
            all.rows.push(row);
        }
    }
    all
}

/// Formats a change with its sign, or as a dash if there is nothing to compare with.
pub(crate) fn percent(change: Option<f64>) -> String {
    change.map_or_else(|| "-".to_owned(), |change| format!("{change:+.1} %"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const METRICS: [Metric; 2] = [Metric::Recall(1), Metric::Ndcg(1)];

    fn table(runs: &[(&str, &[u32])]) -> MetricsTable {
        let row = |&(run, ranks): &(&str, &[u32])| RunMetrics {
            run: run.to_owned(),
            means: MetricMeans::of(ranks, &METRICS),
        };
        MetricsTable { split: Split::Test, metrics: METRICS.into(), rows: runs.iter().map(row).collect() }
    }

    #[test]
    fn the_best_is_bold_and_the_gain_is_over_the_best_other() {
        let table = table(&[("popular", &[1, 9, 9, 9]), ("b", &[1, 1, 9, 9]), ("mine", &[1, 1, 1, 9])]);
        assert_eq!(
            table.markdown(true),
            "| run                 | users |        R@1 |        N@1 |\n\
             |---------------------|------:|-----------:|-----------:|\n\
             | popular             |     4 |     0.2500 |     0.2500 |\n\
             | b                   |     4 |     0.5000 |     0.5000 |\n\
             | mine                |     4 | **0.7500** | **0.7500** |\n\
             | over the best other |       |    +50.0 % |    +50.0 % |\n"
        );
        assert!(!table.markdown(false).contains('*'));
        let csv = metric_values(&[table]).csv().unwrap();
        assert!(csv.starts_with("run,split,users,R@1,N@1\npopular,test,4,0.25,0.25\n"), "{csv}");
    }

    #[test]
    fn without_others_or_hits_nothing_is_compared() {
        assert!(table(&[("mine", &[1])]).improvement().is_empty());
        let nothing = table(&[("a", &[9]), ("mine", &[1])]);
        assert_eq!(nothing.improvement(), [None, None]);
        assert_eq!(nothing.best(), [[false, false], [true, true]]);
        assert_eq!(table(&[("a", &[9]), ("b", &[9])]).best(), [[false; 2]; 2]);
    }
}
