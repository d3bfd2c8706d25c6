//! Runs on groups of users, and against each other.

use maud::{Markup, html};

use super::number;
use crate::breakdown::BreakdownTable;
use crate::comparison::{Against, Comparison, Difference, probability};

pub(super) fn section(tables: &[BreakdownTable]) -> Markup {
    html! {
        section #groups {
            h2 { "Groups of users" }
            p {
                "The test split again, by what is known of a user before any model is asked. Lengths, popularity and ages are "
                "cut so that each group has about a fifth of the users; users with the same value stay together. The best of "
                "a group is bold; a difference within a small group may well be chance."
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
                        th.run.own[at == own] colspan=(table.measures.len()) { (run) }
                    }
                }
                tr.measures {
                    @for at in 0..table.runs.len() {
                        @for measure in &table.measures { th.own[at == own] { (measure) } }
                    }
                }
            }
            tbody { @for row in &table.rows {
                tr {
                    th { (row.name) }
                    td { (number(row.users as u64)) }
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

/// What stands below the test table.
pub(super) fn comparison(run: &str, found: &Comparison) -> Markup {
    html! {
        div.wide { table {
            thead { tr { th { (run) } th { "mean" } th { "95 % interval" } } }
            tbody { @for (measure, interval) in found.measures.iter().zip(&found.intervals) {
                tr {
                    th { (measure) }
                    td { (format!("{:.4}", interval.mean)) }
                    td { (format!("{:.4} to {:.4}", interval.low, interval.high)) }
                }
            } }
        } }
        p.soft { "Bootstrap over users: the means of 1,000 samples of as many users, drawn with replacement." }
        @if !found.others.is_empty() { (differences(run, found)) }
    }
}

fn differences(run: &str, found: &Comparison) -> Markup {
    html! {
        div.wide { table.breakdown {
            thead {
                tr {
                    th rowspan="2" { (run) " against" }
                    th rowspan="2" { "users" }
                    @for measure in &found.measures { th.run colspan="3" { (measure) } }
                }
                tr.measures {
                    @for _ in &found.measures { th { "difference" } th { "t-test p" } th { "Wilcoxon p" } }
                }
            }
            tbody { @for Against { run, users, differences } in &found.others {
                tr {
                    th { (run) }
                    td { (number(*users as u64)) }
                    @for Difference { mean, t, wilcoxon } in differences {
                        td { (format!("{mean:+.4}")) }
                        td { (probability(*t)) }
                        td { (probability(*wilcoxon)) }
                    }
                }
            } }
        } }
        p.soft {
            "Two-sided tests over pairs of values of the same user: Student's t of the means, Wilcoxon's signed ranks. p is "
            "corrected by Holm over the other runs: below 0.05 the difference is hardly chance of who the users are. It says "
            "nothing of another seed."
        }
    }
}
