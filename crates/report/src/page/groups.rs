//! The metrics of the runs on groups of users, and the comparison of the runs.

use maud::{Markup, html};
use mp4sr_pipeline::text::count;
use mp4sr_protocol::{BOOTSTRAP_ROUNDS, ComparedModel, Comparison, probability};

use crate::breakdown::BreakdownTable;

pub(super) fn section(tables: &[BreakdownTable]) -> Markup {
    html! {
        section #groups {
            h2 { "Groups of users" }
            p {
                "The metrics of the test set for groups of users. Lengths, popularity and ages are cut so that each group has "
                "about a fifth of the users; users with the same value stay together. The best value of a group is bold; in a "
                "small group, a difference may be due to chance."
            }
            div.side { @for table in tables { (breakdown_table(table)) } }
        }
    }
}

fn breakdown_table(table: &BreakdownTable) -> Markup {
    let own = table.runs.len().saturating_sub(1);
    html! {
        div.wide { table.breakdown {
            thead {
                tr {
                    th rowspan="2" { (table.breakdown) }
                    th rowspan="2" { "users" }
                    @for (at, run) in table.runs.iter().enumerate() {
                        th.run.own[at == own] colspan=(table.metrics.len()) { (run) }
                    }
                }
                tr.metrics {
                    @for at in 0..table.runs.len() {
                        @for metric in &table.metrics { th.own[at == own] { (metric) } }
                    }
                }
            }
            tbody { @for row in &table.rows {
                tr {
                    th { (row.name) }
                    td { (count(row.users as u64)) }
                    @for (at, (values, best)) in row.values.iter().zip(row.best()).enumerate() {
                        @for (value, best) in values.iter().zip(best) {
                            td.best[best].own[at == own] { (format!("{value:.4}")) }
                        }
                    }
                }
            } }
        } }
    }
}

/// The intervals and tests that are shown below the metrics of the test set.
pub(super) fn comparison(run: &str, found: &Comparison) -> Markup {
    let Some(((_, own), others)) = found.rows.split_last() else { return html! {} };
    html! {
        div.wide { table {
            thead { tr { th { (run) } th { "mean" } th { "95 % interval" } } }
            tbody { @for (metric, value) in found.metrics.iter().zip(own) {
                tr {
                    th { (metric) }
                    td { (format!("{:.4}", value.interval.mean)) }
                    td { (format!("{:.4} to {:.4}", value.interval.low, value.interval.high)) }
                }
            } }
        } }
        p.soft {
            "Bootstrap over users: the means of " (count(BOOTSTRAP_ROUNDS as u64)) " samples of as many users, drawn with "
            "replacement."
        }
        @if !others.is_empty() { (differences(run, found, others)) }
        @if let Some(note) = found.candidates_note() { p { (note) } }
    }
}

fn differences(run: &str, found: &Comparison, others: &[ComparedModel]) -> Markup {
    html! {
        div.wide { table {
            thead { tr {
                th { (run) " against" } th { "users" } th { "metric" } th { "difference" } th { "t-test p" } th { "Wilcoxon p" }
            } }
            tbody { @for (name, values) in others {
                @for (metric, value) in found.metrics.iter().zip(values) {
                    @if let Some(tests) = value.tests {
                        tr {
                            th { (name) }
                            td { (count(found.users as u64)) }
                            td { (metric) }
                            td { (format!("{:+.4}", tests.difference)) }
                            td { (probability(tests.t_holm)) }
                            td { (probability(tests.wilcoxon_holm)) }
                        }
                    }
                }
            } }
        } }
        p.soft {
            "Two-sided paired tests over users: Student's t-test and Wilcoxon's signed-rank test. p-values "
            "are Holm-corrected over the other runs: a p-value below 0.01 marks a difference that is unlikely to come from the "
            "choice of users. It says nothing about other seeds."
        }
    }
}
