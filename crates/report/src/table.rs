//! Runs side by side: as text for a terminal, as Markdown, as CSV.

use std::fmt::Write as _;

use mp4sr_protocol::{Measure, Metrics, Split};

/// One run in one split.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The run.
    pub run: String,
    /// How it did.
    pub metrics: Metrics,
}

impl Row {
    /// In the order of the columns.
    pub fn values(&self) -> Vec<f64> {
        self.metrics.values.iter().map(|(_, value)| *value).collect()
    }
}

/// The runs of one split; the last row is the run that the report is about.
#[derive(Clone, Debug, PartialEq)]
pub struct MetricsTable {
    /// Which split.
    pub split: Split,
    /// Its columns.
    pub measures: Vec<Measure>,
    /// Those beside it, then the run itself.
    pub rows: Vec<Row>,
}

impl MetricsTable {
    /// Names of the columns: `R@5`, ..., `N@5`, ..., `MRR`.
    pub fn columns(&self) -> Vec<String> {
        self.measures.iter().map(Measure::to_string).collect()
    }

    /// For each row and column, whether no run has more; nowhere where nobody has anything.
    pub fn best(&self) -> Vec<Vec<bool>> {
        let values: Vec<Vec<f64>> = self.rows.iter().map(Row::values).collect();
        let most = |column: usize| values.iter().map(|row| row[column]).fold(0.0, f64::max);
        let is_best = |(column, &value): (usize, &f64)| value > 0.0 && value >= most(column);
        values.iter().map(|row| row.iter().enumerate().map(is_best).collect()).collect()
    }

    /// How far, in percent, the run is above the best of the others, by column; empty where there is no other run.
    pub fn improvement(&self) -> Vec<Option<f64>> {
        let Some((own, others)) = self.rows.split_last().filter(|(_, others)| !others.is_empty()) else {
            return Vec::new();
        };
        let others: Vec<Vec<f64>> = others.iter().map(Row::values).collect();
        let above = |(column, own): (usize, f64)| {
            let best = others.iter().map(|row| row[column]).fold(0.0, f64::max);
            (best > 0.0).then(|| 100.0 * (own - best) / best)
        };
        own.values().into_iter().enumerate().map(above).collect()
    }

    /// Markdown whose columns also line up in a terminal; with `emphasis` the best of each column is bold.
    pub fn markdown(&self, emphasis: bool) -> String {
        let mut lines = vec![vec!["run".to_owned(), "users".to_owned()]];
        lines[0].extend(self.columns());
        for (row, best) in self.rows.iter().zip(self.best()) {
            let mut line = vec![row.run.replace('|', "\\|"), row.metrics.users.to_string()];
            let shown = row.values().into_iter().zip(best);
            line.extend(
                shown.map(
                    |(value, best)| if best && emphasis { format!("**{value:.4}**") } else { format!("{value:.4}") },
                ),
            );
            lines.push(line);
        }
        let improvement = self.improvement();
        if !improvement.is_empty() {
            let mut line = vec!["over the best other".to_owned(), String::new()];
            line.extend(improvement.into_iter().map(percent));
            lines.push(line);
        }
        aligned(&lines)
    }

    /// Adds the rows to a CSV table: run, split, users, values in full.
    pub(crate) fn add_to_csv(&self, table: &mut csv::Writer<Vec<u8>>) -> csv::Result<()> {
        for row in &self.rows {
            let mut line = vec![row.run.clone(), self.split.name().to_owned(), row.metrics.users.to_string()];
            line.extend(row.values().into_iter().map(|value| value.to_string()));
            table.write_record(line)?;
        }
        Ok(())
    }
}

/// The tables of all splits as CSV.
pub(crate) fn to_csv(tables: &[MetricsTable]) -> csv::Result<Vec<u8>> {
    let mut out = csv::Writer::from_writer(Vec::new());
    if let Some(first) = tables.first() {
        let mut header: Vec<String> = ["run", "split", "users"].map(str::to_owned).into();
        header.extend(first.columns());
        out.write_record(header)?;
    }
    tables.iter().try_for_each(|table| table.add_to_csv(&mut out))?;
    out.into_inner().map_err(|e| csv::Error::from(e.into_error()))
}

/// With its sign; nothing to compare with is a dash.
pub(crate) fn percent(change: Option<f64>) -> String {
    change.map_or_else(|| "-".to_owned(), |change| format!("{change:+.1} %"))
}

pub(crate) fn aligned(lines: &[Vec<String>]) -> String {
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0).max(3);
    let widths: Vec<usize> = (0..lines.first().map_or(0, Vec::len)).map(width).collect();
    let mut text = String::new();
    for (at, line) in lines.iter().enumerate() {
        for (column, (cell, &width)) in line.iter().zip(&widths).enumerate() {
            let _ = if column == 0 { write!(text, "| {cell:width$} ") } else { write!(text, "| {cell:>width$} ") };
        }
        text.push_str("|\n");
        if at == 0 {
            for (column, &width) in widths.iter().enumerate() {
                let _ = write!(text, "|{}{}", "-".repeat(width + 1), if column == 0 { '-' } else { ':' });
            }
            text.push_str("|\n");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEASURES: [Measure; 2] = [Measure::Recall(1), Measure::Ndcg(1)];

    fn table(runs: &[(&str, &[u32])]) -> MetricsTable {
        let row = |&(run, ranks): &(&str, &[u32])| Row { run: run.to_owned(), metrics: Metrics::of(ranks, &MEASURES) };
        MetricsTable { split: Split::Test, measures: MEASURES.into(), rows: runs.iter().map(row).collect() }
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
        let csv = String::from_utf8(to_csv(&[table]).unwrap()).unwrap();
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
