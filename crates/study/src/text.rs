//! Tables as Markdown and CSV.

use comfy_table::{CellAlignment, Table};
use mp4sr_artifact::{Error, Result, files};
use std::path::Path;

use crate::compare::Comparison;

/// A table of text: a header and rows of as many runs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rows {
    /// The first row.
    pub header: Vec<String>,
    /// The others.
    pub rows: Vec<Vec<String>>,
}

impl Rows {
    /// A table with a header and no row yet.
    pub fn new<S: Into<String>>(header: impl IntoIterator<Item = S>) -> Self {
        Self { header: header.into_iter().map(Into::into).collect(), rows: Vec::new() }
    }

    /// As Markdown; numbers stand right.
    pub fn markdown(&self) -> String {
        let mut table = Table::new();
        table.load_style(comfy_table::presets::ASCII_MARKDOWN);
        let escaped = |runs: &[String]| runs.iter().map(|run| run.replace('|', "\\|")).collect::<Vec<_>>();
        table.set_header(escaped(&self.header));
        self.rows.iter().for_each(|row| {
            table.add_row(escaped(row));
        });
        for (at, column) in table.column_iter_mut().enumerate() {
            let is_text = |row: &Vec<String>| row[at].starts_with(char::is_alphabetic);
            if !self.rows.iter().any(is_text) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        format!("{table}\n")
    }

    /// As CSV.
    pub fn csv(&self) -> csv::Result<String> {
        let mut out = csv::Writer::from_writer(Vec::new());
        std::iter::once(&self.header).chain(&self.rows).try_for_each(|row| out.write_record(row))?;
        let bytes = out.into_inner().map_err(|e| csv::Error::from(e.into_error()))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Writes it as CSV.
    pub fn write_csv(&self, path: &Path) -> Result<()> {
        let text = self.csv().map_err(|e| Error::io("write", path, e.into()))?;
        files::write_bytes(path, text.as_bytes())
    }
}

impl Comparison {
    /// Models by measures: the best bold, the second underlined, a star where the best is significantly better than the best
    /// other, the deviation over seeds behind the value.
    pub fn table(&self, what: &str) -> Rows {
        let mut table = Rows::new([what.to_owned()].into_iter().chain(self.measures.iter().map(ToString::to_string)));
        for (name, entries) in &self.rows {
            let mut row = vec![name.clone()];
            for (column, entry) in entries.iter().enumerate() {
                let value = format!("{:.4}", entry.interval.mean);
                let star = if self.is_significant(column) { "\\*" } else { "" };
                let marked = match entry.place {
                    _ if self.rows.len() == 1 || entry.interval.mean == 0.0 => value,
                    0 => format!("**{value}**{star}"),
                    1 => format!("<u>{value}</u>"),
                    _ => value,
                };
                row.push(match entry.deviation {
                    Some(deviation) => format!("{marked} ± {deviation:.4}"),
                    None => marked,
                });
            }
            table.rows.push(row);
        }
        table
    }

    /// All that is known, a row a model and measure.
    pub fn details(&self) -> Rows {
        let mut table = Rows::new([
            "model",
            "measure",
            "users",
            "mean",
            "low",
            "high",
            "seeds",
            "deviation",
            "best against it: t-test p",
            "Wilcoxon p",
            "t-test p after Holm",
        ]);
        for (name, entries) in &self.rows {
            for (measure, entry) in self.measures.iter().zip(entries) {
                let tests = entry.tests.map_or([const { String::new() }; 3], |tests| {
                    [tests.t.p, tests.wilcoxon.p, tests.holm].map(|p| format!("{p:e}"))
                });
                let mut row = vec![name.clone(), measure.to_string(), self.users.to_string()];
                let interval = entry.interval;
                row.extend([interval.mean, interval.low, interval.high].map(|v| v.to_string()));
                row.push(entry.seeds.iter().map(f64::to_string).collect::<Vec<_>>().join(" "));
                row.push(entry.deviation.map_or(String::new(), |d| d.to_string()));
                row.extend(tests);
                table.rows.push(row);
            }
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SeedRuns;
    use mp4sr_protocol::Measure;

    #[test]
    fn the_best_is_bold_with_a_star_the_second_underlined() {
        let ranks = |period: u32| vec![(0..600).map(|u| if u % period == 0 { 50 } else { 1 }).collect::<Vec<u32>>()];
        let group = |name: &str, period| SeedRuns { name: name.to_owned(), ranks: ranks(period) };
        let comparison = Comparison::new(&[group("a|b", 2), group("c", 6), group("d", 3)], &[Measure::Recall(20)]);
        let markdown = comparison.table("model").markdown();
        let lines: Vec<String> = markdown.lines().map(|line| line.replace(' ', "")).collect();
        assert_eq!(lines[2..], ["|a\\|b|0.5000|", "|c|**0.8333**\\*|", "|d|<u>0.6667</u>|"]);
        let details = comparison.details();
        assert_eq!(details.rows.len(), 3);
        assert_eq!(details.rows[1][8], "", "the best is not tested against itself");
    }
}
