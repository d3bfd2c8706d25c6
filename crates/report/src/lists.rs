//! Statistics of the runs' lists that do not depend on accuracy.

use mp4sr_pipeline::text::TextTable;
use mp4sr_protocol::ListStatistics;

/// The statistics of one run's lists, cut at one K.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ListStatisticsRow {
    pub(crate) run: String,
    pub(crate) statistics: ListStatistics,
}

/// The columns after the run and K, in order.
pub(crate) const COLUMNS: [&str; 7] = ["coverage", "Gini", "entropy", "popularity", "tail", "novelty", "diversity"];

/// Makes a table with one row per run and K. `format` formats a value; a value that does not exist is empty.
pub(crate) fn list_table(rows: &[ListStatisticsRow], format: impl Fn(f64) -> String) -> TextTable {
    let mut table = TextTable::new(["run", "K"].into_iter().chain(COLUMNS));
    for ListStatisticsRow { run, statistics } in rows {
        let values = statistics.values().map(|(_, value)| value.map_or_else(String::new, &format));
        table.rows.push([run.clone(), statistics.k.to_string()].into_iter().chain(values).collect());
    }
    table
}
