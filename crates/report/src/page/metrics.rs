//! The metrics of the runs.

use maud::{Markup, html};
use mp4sr_pipeline::text::count;
use mp4sr_protocol::Split;

use super::{Page, groups};
use crate::lists::{COLUMNS, ListsTable};
use crate::table::{MetricsTable, percent};

impl Page<'_> {
    pub(super) fn metrics_section(&self) -> Markup {
        html! {
            section #metrics {
                h2 { "Metrics" }
                p {
                    "Each user's next item is ranked among all candidates (`evaluate.seen_items`); ties count against the model. "
                    "R@K is the share of users whose item is among the first K; in N@K, an item of rank r counts "
                    "1\u{a0}/\u{a0}log" sub { "2" } "(r\u{a0}+\u{a0}1) instead of 1. Both are means over users; the best of a column is bold."
                }
                @for table in self.tables {
                    h3 { @if table.split == Split::Test { "Test: each user's first item in the test set" }
                        @else { "Validation: each user's first item in the validation set" } }
                    (metrics_table(table))
                    @if table.split == Split::Test { (groups::comparison(self.run, self.comparison)) }
                }
                @if !self.lists.is_empty() { (lists_table(self.run, self.lists)) }
            }
        }
    }
}

fn lists_table(own: &str, table: &ListsTable) -> Markup {
    html! {
        h3 { "The lists, independently of accuracy" }
        p {
            "Coverage is the share of all items that is in any list of K. The Gini index is 0 if all items are listed equally "
            "often and nearly 1 if a few take all list positions; entropy is that of the listed items in nats, divided by the number of "
            "distinct ones. Popularity is the mean number of training events of a listed item, tail the share of list positions that go "
            "to the tenth of the items with training events that have the fewest, novelty the mean of \u{2212}log" sub { "2" } " of the "
            "share of users who have training events of the item, diversity the mean over pairs of listed items of 1 \u{2212} the "
            "cosine similarity of their features. The columns from coverage to tail are defined as in RecBole's evaluator, without its "
            "padding item."
        }
        div.wide { table {
            thead { tr { th { "run" } th { "K" } @for name in COLUMNS { th { (name) } } } }
            tbody { @for row in &table.rows {
                tr.own[row.run == own] {
                    th { (row.run) }
                    td { (row.k) }
                    @for (value, differs) in row.values.iter().zip(row.differs) {
                        td { @if let Some(value) = value { (format!("{value:.4}")) @if differs { "*" } } }
                    }
                }
            } }
        } }
        @for note in &table.notes { p { (note) } }
    }
}

fn metrics_table(table: &MetricsTable) -> Markup {
    let improvement = table.improvement();
    html! {
        div.wide { table {
            thead { tr { th { "run" } th { "users" } @for name in table.columns() { th { (name) } } } }
            tbody {
                @for (at, (row, best)) in table.rows.iter().zip(table.best()).enumerate() {
                    tr.own[at + 1 == table.rows.len()] {
                        th { (row.run) }
                        td { (count(row.means.users as u64)) }
                        @for (value, best) in row.values().into_iter().zip(best) {
                            td.best[best] { (format!("{value:.4}")) }
                        }
                    }
                }
                @if !improvement.is_empty() {
                    tr.gain {
                        th { (table.rows.last().map_or("", |row| row.run.as_str())) " over the best other" }
                        td {}
                        @for change in improvement { td { (percent(change)) } }
                    }
                }
            }
        } }
    }
}
