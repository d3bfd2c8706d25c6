//! Metrics of the runs on groups of users of the test set, computed from stored ranks alone.

use mp4sr_pipeline::text::TextTable;
use mp4sr_protocol::{Metric, UserFacts, breakdowns, means};

use crate::table::best_of;

/// The ranks of a run, one rank per user and 0 for a user without one, in an order of users that all runs share.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RunRanks {
    pub(crate) run: String,
    pub(crate) ranks: Vec<u32>,
    /// Whether items of the history were excluded from the candidates; `None` if the ranks do not record it.
    pub(crate) removes_seen: Option<bool>,
}

/// The users of one breakdown, runs side by side; the last run is the one that the report is about.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct BreakdownTable {
    /// The property by which users are divided.
    pub(crate) breakdown: &'static str,
    pub(crate) runs: Vec<String>,
    pub(crate) metrics: Vec<Metric>,
    pub(crate) rows: Vec<GroupRow>,
}

/// The metrics of one group.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct GroupRow {
    pub(crate) name: String,
    pub(crate) users: usize,
    /// The values, `[runs][metrics]`.
    pub(crate) values: Vec<Vec<f64>>,
}

/// R@K and N@K of the largest K.
pub(crate) fn headline(ks: &[usize]) -> Vec<Metric> {
    ks.iter().max().map_or(Vec::new(), |&k| vec![Metric::Recall(k), Metric::Ndcg(k)])
}

/// Builds one table per breakdown, over the users for whom every run has a rank.
pub(crate) fn breakdown_tables(facts: &[UserFacts], runs: &[RunRanks], metrics: &[Metric]) -> Vec<BreakdownTable> {
    let is_ranked = |facts: &&UserFacts| runs.iter().all(|run| run.ranks.get(facts.user).is_some_and(|&rank| rank > 0));
    let ranked: Vec<UserFacts> = facts.iter().filter(is_ranked).copied().collect();
    let row = |name: String, users: &[usize]| {
        let of = |run: &RunRanks| means(&users.iter().map(|&user| run.ranks[user]).collect::<Vec<_>>(), metrics);
        GroupRow { name, users: users.len(), values: runs.iter().map(of).collect() }
    };
    let table = |breakdown: mp4sr_protocol::Breakdown| BreakdownTable {
        breakdown: breakdown.name,
        runs: runs.iter().map(|run| run.run.clone()).collect(),
        metrics: metrics.to_vec(),
        rows: breakdown.groups.into_iter().map(|group| row(group.name, &group.users)).collect(),
    };
    breakdowns(&ranked).into_iter().map(table).collect()
}

impl GroupRow {
    /// For each run and metric, whether no run has a higher value; false if all values are zero or there is only one run.
    pub(crate) fn best(&self) -> Vec<Vec<bool>> {
        match &self.values[..] {
            [only] => vec![vec![false; only.len()]],
            several => best_of(several),
        }
    }
}

impl BreakdownTable {
    /// Formats the table as Markdown, with the best value of each group in bold.
    pub(crate) fn markdown(&self) -> String {
        let mut table = TextTable::new([self.breakdown, "users"]);
        for run in &self.runs {
            table.header.extend(self.metrics.iter().map(|metric| format!("{run} {metric}")));
        }
        for group in &self.rows {
            let mut row = vec![group.name.clone(), group.users.to_string()];
            let shown = group.values.iter().flatten().zip(group.best().into_iter().flatten());
            row.extend(shown.map(|(value, best)| if best { format!("**{value:.4}**") } else { format!("{value:.4}") }));
            table.rows.push(row);
        }
        table.markdown()
    }
}

/// Lists the values of all tables in full, one value per row.
pub(crate) fn breakdown_values(tables: &[BreakdownTable]) -> TextTable {
    let mut all = TextTable::new(["breakdown", "group", "users", "run", "metric", "value"]);
    for table in tables {
        for group in &table.rows {
            for (run, values) in table.runs.iter().zip(&group.values) {
                for (metric, value) in table.metrics.iter().zip(values) {
                    let (users, metric, value) = (group.users.to_string(), metric.to_string(), value.to_string());
                    let (breakdown, name) = (table.breakdown.to_owned(), group.name.clone());
                    all.rows.push(vec![breakdown, name, users, run.clone(), metric, value]);
                }
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(user: usize, length: u32, target_events: u32) -> UserFacts {
        UserFacts { user, length, history: length - 1, target_events, target_age: None }
    }

    fn ranked(run: &str, ranks: &[u32]) -> RunRanks {
        RunRanks { run: run.to_owned(), ranks: ranks.to_vec(), removes_seen: None }
    }

    /// User 1 has no test case, and user 4 has no rank in one of the runs, so neither is in any group.
    fn tables() -> Vec<BreakdownTable> {
        let facts = [facts(0, 3, 0), facts(2, 3, 5), facts(3, 9, 12), facts(4, 9, 12), facts(5, 9, 40)];
        let runs = [ranked("a|b", &[1, 7, 3, 9, 0, 2]), ranked("mine", &[1, 1, 1, 3, 1, 9])];
        breakdown_tables(&facts, &runs, &[Metric::Recall(2), Metric::Ndcg(3)])
    }

    #[test]
    fn groups_match_hand_computed_values_and_exclude_users_without_a_rank() {
        let tables = tables();
        let names: Vec<_> = tables.iter().map(|table| table.breakdown).collect();
        assert_eq!(
            names,
            ["sequence length", "cold target", "target's training events", "target's popularity", "history"]
        );
        // Length 3: users 0 and 2, with the ranks 1, 3 and 1, 1. Length 9: users 3 and 5, with the ranks 9, 2 and 3, 9.
        let (half, third) = (0.5, 1.0 / 3f64.log2());
        let expected = [
            ("3", vec![vec![half, 0.75], vec![1.0, 1.0]], vec![vec![false; 2], vec![true; 2]]),
            ("9", vec![vec![half, third / 2.0], vec![0.0, 0.25]], vec![vec![true; 2], vec![false; 2]]),
        ];
        for (row, (name, values, best)) in tables[0].rows.iter().zip(expected) {
            assert_eq!((row.name.as_str(), row.users), (name, 2));
            let close = |(a, b): (&f64, &f64)| (a - b).abs() < 1e-12;
            assert!(row.values.iter().flatten().zip(values.iter().flatten()).all(close), "{row:?}");
            assert_eq!(row.best(), best);
        }
        let shown = |at: usize| tables[at].rows.iter().map(|row| (row.name.as_str(), row.users)).collect::<Vec<_>>();
        assert_eq!(shown(1), [("fewer than 10 training events", 2), ("10 or more", 2)]);
        assert_eq!(shown(2), [("none", 1), ("1 to 9", 1), ("10 or more", 2)]);
    }

    #[test]
    fn markdown_and_csv_hold_every_value_and_escape_names() {
        let tables = tables();
        assert_eq!(
            tables[0].markdown(),
            "| sequence length | users |   a\\|b R@2 |   a\\|b N@3 |   mine R@2 |   mine N@3 |\n\
             |-----------------|------:|-----------:|-----------:|-----------:|-----------:|\n\
             | 3               |     2 |     0.5000 |     0.7500 | **1.0000** | **1.0000** |\n\
             | 9               |     2 | **0.5000** | **0.3155** |     0.0000 |     0.2500 |\n"
        );
        let csv = breakdown_values(&tables[..1]).csv().unwrap();
        let lines: Vec<&str> = csv.lines().collect();
        assert_eq!(lines.len(), 9);
        assert_eq!(lines[..2], ["breakdown,group,users,run,metric,value", "sequence length,3,2,a|b,R@2,0.5"]);
        assert_eq!(lines[8], "sequence length,9,2,mine,N@3,0.25");
    }

    #[test]
    fn a_single_run_is_not_marked_as_best_and_no_ranked_users_give_no_table() {
        let metrics = headline(&[5, 20, 10]);
        assert_eq!(metrics, [Metric::Recall(20), Metric::Ndcg(20)]);
        let alone = breakdown_tables(&[facts(0, 3, 0)], &[ranked("mine", &[1])], &metrics);
        assert_eq!(alone[0].rows[0].best(), [[false; 2]]);
        assert!(breakdown_tables(&[facts(0, 3, 0)], &[ranked("mine", &[0])], &metrics).is_empty());
        assert!(breakdown_tables(&[], &[ranked("mine", &[])], &metrics).is_empty());
    }
}
