//! Statistics of the runs' lists that do not depend on accuracy.

use mp4sr_pipeline::text::TextTable;
use mp4sr_protocol::{ComparedLists, ListComparison, SIGNIFICANT, SeedLists, left_out, lists_note};

/// The statistics of the lists of all runs.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct ListsTable {
    pub(crate) rows: Vec<ListStatisticsRow>,
    /// What a reader has to know about the rows.
    pub(crate) notes: Vec<String>,
}

/// The statistics of one run's lists, cut at one K.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ListStatisticsRow {
    pub(crate) run: String,
    pub(crate) k: usize,
    /// In the order of [`COLUMNS`]; a value that does not exist is `None`.
    pub(crate) values: [Option<f64>; 7],
    /// Whether a value differs significantly from that of the last run.
    pub(crate) differs: [bool; 7],
}

/// The columns after the run and K, in order.
pub(crate) const COLUMNS: [&str; 7] = ["coverage", "Gini", "entropy", "popularity", "tail", "novelty", "diversity"];

impl ListsTable {
    /// Whether there is nothing to show: no run has lists.
    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.notes.is_empty()
    }

    /// Builds the rows of a comparison of the runs' lists at the cut-offs `ks`.
    pub(crate) fn new(runs: &[SeedLists], compared: &[ListComparison], ks: &[usize]) -> Self {
        let mut table = Self { rows: Vec::new(), notes: Vec::new() };
        for ListComparison { k, rows } in compared {
            for ComparedLists { name, of_all, of_lists } in rows {
                let mut row = ListStatisticsRow { run: name.clone(), k: *k, values: [None; 7], differs: [false; 7] };
                for (at, (_, seeds)) in of_all.iter().enumerate() {
                    row.values[at] = seeds.first().copied();
                }
                for (at, value) in of_lists.iter().enumerate() {
                    let at = of_all.len() + at;
                    row.values[at] = value.as_ref().map(|value| value.interval.mean);
                    let tests = value.as_ref().and_then(|value| value.tests);
                    row.differs[at] = tests.is_some_and(|tests| tests.t_holm < SIGNIFICANT);
                }
                table.rows.push(row);
            }
        }
        if !runs.is_empty() {
            table.notes.extend(left_out(runs, ks).map(|note| format!("{note}.")));
            table.notes.extend(lists_note(runs));
        }
        if let (true, Some(last)) = (table.rows.iter().any(|row| row.differs.contains(&true)), runs.last()) {
            table.notes.push(format!(
                "A star marks a value that differs from that of {} with p < {SIGNIFICANT} (paired t-test over users, Holm-corrected).",
                last.name
            ));
        }
        table
    }
}

/// Builds a table with one row per run and K. `format` formats a value, given whether it differs significantly from the last run's; a value
/// that does not exist is empty.
pub(crate) fn list_table(rows: &[ListStatisticsRow], format: impl Fn(f64, bool) -> String) -> TextTable {
    let mut table = TextTable::new(["run", "K"].into_iter().chain(COLUMNS));
    for ListStatisticsRow { run, k, values, differs } in rows {
        let cells = values.iter().zip(differs);
        let cells = cells.map(|(value, &differs)| value.map_or_else(String::new, |value| format(value, differs)));
        table.rows.push([run.clone(), k.to_string()].into_iter().chain(cells).collect());
    }
    table
}
