//! Statistics of the lists of the runs that do not depend on accuracy.

use mp4sr_pipeline::text::TextTable;
use mp4sr_protocol::ListFigures;

/// The lists of one run, cut at one K.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ListRow {
    pub(crate) run: String,
    pub(crate) figures: ListFigures,
}

/// The columns after the run and K, in order.
pub(crate) const COLUMNS: [&str; 6] = ["coverage", "Gini", "entropy", "popularity", "tail", "novelty"];

/// A row per run and K. `format` writes a value.
pub(crate) fn list_table(rows: &[ListRow], format: impl Fn(f64) -> String) -> TextTable {
    let mut table = TextTable::new(["run", "K"].into_iter().chain(COLUMNS));
    for ListRow { run, figures } in rows {
        let values = figures.values().map(|(_, value)| format(value));
        table.rows.push([run.clone(), figures.k.to_string()].into_iter().chain(values).collect());
    }
    table
}
