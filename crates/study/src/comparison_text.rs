//! Formats comparisons as tables.

use mp4sr_pipeline::text::TextTable;
use mp4sr_protocol::{
    ComparedLists, ComparedValue, Comparison, ListComparison, ListStatistic, SIGNIFICANT, mean_and_deviation,
};

/// Formats a table of models by metrics. The best value is bold and the second best underlined; a star marks a best value that is
/// significantly above the second best. The deviation over seeds follows the value.
fn table(comparison: &Comparison, what: &str) -> TextTable {
    let mut table =
        TextTable::new([what.to_owned()].into_iter().chain(comparison.metrics.iter().map(ToString::to_string)));
    for (name, entries) in &comparison.rows {
        let mut row = vec![name.clone()];
        for (column, entry) in entries.iter().enumerate() {
            let value = format!("{:.4}", entry.interval.mean);
            let star = if comparison.is_significant(column) { "\\*" } else { "" };
            let marked = match entry.better_models {
                _ if comparison.rows.len() == 1 || entry.interval.mean == 0.0 => value,
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

/// Formats the table as Markdown, followed by a note on the candidates if one is needed.
pub fn markdown(comparison: &Comparison, what: &str) -> String {
    let note = comparison.candidates_note().map_or_else(String::new, |note| format!("\n{note}\n"));
    table(comparison, what).markdown() + &note
}

/// Formats the statistics of lists as Markdown, one row per model and K. A star marks a statistic of single lists that differs
/// significantly from that of the last model.
pub fn lists_markdown(comparisons: &[ListComparison], what: &str) -> String {
    let mut table =
        TextTable::new([what.to_owned(), "K".to_owned()].into_iter().chain(list_columns().map(str::to_owned)));
    for ListComparison { k, rows } in comparisons {
        for ComparedLists { name, of_all, of_lists } in rows {
            let deviated = |(mean, deviation): (f64, Option<f64>), star: &str| match deviation {
                Some(deviation) => format!("{mean:.4}{star} ± {deviation:.4}"),
                None => format!("{mean:.4}{star}"),
            };
            let mut row = vec![name.clone(), k.to_string()];
            row.extend(of_all.iter().map(|(_, seeds)| deviated(mean_and_deviation(seeds), "")));
            row.extend(of_lists.iter().map(|value| {
                value.as_ref().map_or_else(String::new, |value| {
                    let differs = value.tests.is_some_and(|tests| tests.t_holm < SIGNIFICANT);
                    deviated((value.interval.mean, value.deviation), if differs { "\\*" } else { "" })
                })
            }));
            table.rows.push(row);
        }
    }
    format!(
        "\\* where the mean over users differs from that of the last row with p < {SIGNIFICANT} (paired t-test over users, Holm-corrected)\n\n{}",
        table.markdown()
    )
}

/// The names of the columns of statistics of lists.
fn list_columns() -> impl Iterator<Item = &'static str> {
    ["coverage", "Gini", "entropy"].into_iter().chain(ListStatistic::ALL.map(ListStatistic::name))
}

/// Lists all values and tests of statistics of lists, one row per model, K and statistic. The others are tested against the last model.
pub fn list_details(comparisons: &[ListComparison]) -> TextTable {
    let mut table = details_table("t-test p against the last row");
    for ListComparison { k, rows } in comparisons {
        for ComparedLists { name, of_all, of_lists } in rows {
            for (statistic, seeds) in of_all {
                let (mean, deviation) = mean_and_deviation(seeds);
                let mut row = vec![name.clone(), format!("{statistic}@{k}"), String::new(), mean.to_string()];
                row.extend([String::new(), String::new(), joined(seeds)]);
                row.push(deviation.map_or(String::new(), |d| d.to_string()));
                row.extend([const { String::new() }; 4]);
                table.rows.push(row);
            }
            for (statistic, value) in ListStatistic::ALL.into_iter().zip(of_lists) {
                let name_at_k = format!("{}@{k}", statistic.name());
                table.rows.extend(value.as_ref().map(|value| details_row(name, &name_at_k, value)));
            }
        }
    }
    table
}

/// Lists all values and tests of a comparison, one row per model and metric.
pub fn details(comparison: &Comparison) -> TextTable {
    let mut table = details_table("t-test p against the best row");
    for (name, entries) in &comparison.rows {
        for (metric, entry) in comparison.metrics.iter().zip(entries) {
            table.rows.push(details_row(name, &metric.to_string(), entry));
        }
    }
    table
}

fn details_table(first_test: &str) -> TextTable {
    TextTable::new([
        "model",
        "metric",
        "users",
        "mean",
        "low",
        "high",
        "seeds",
        "deviation",
        first_test,
        "Wilcoxon p",
        "t-test p after Holm",
        "Wilcoxon p after Holm",
    ])
}

fn details_row(model: &str, metric: &str, value: &ComparedValue) -> Vec<String> {
    let tests = value.tests.map_or([const { String::new() }; 4], |tests| {
        [tests.t.p, tests.wilcoxon.p, tests.t_holm, tests.wilcoxon_holm].map(|p| format!("{p:e}"))
    });
    let mut row = vec![model.to_owned(), metric.to_owned(), value.users.to_string()];
    row.extend([value.interval.mean, value.interval.low, value.interval.high].map(|v| v.to_string()));
    row.push(joined(&value.seeds));
    row.push(value.deviation.map_or(String::new(), |d| d.to_string()));
    row.extend(tests);
    row
}

fn joined(values: &[f64]) -> String {
    values.iter().map(f64::to_string).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use mp4sr_protocol::{Metric, Reference, SeedRuns};

    #[test]
    fn the_best_is_bold_with_a_star_the_second_underlined() {
        let ranks = |period: u32| vec![(0..600).map(|u| if u % period == 0 { 50 } else { 1 }).collect::<Vec<u32>>()];
        let group =
            |name: &str, period| SeedRuns { name: name.to_owned(), ranks: ranks(period), ..SeedRuns::default() };
        let comparison =
            Comparison::new(&[group("a|b", 2), group("c", 6), group("d", 3)], &[Metric::Recall(20)], Reference::Best);
        let markdown = table(&comparison, "model").markdown();
        let lines: Vec<String> = markdown.lines().map(|line| line.replace(' ', "")).collect();
        assert_eq!(lines[2..], ["|a\\|b|0.5000|", "|c|**0.8333**\\*|", "|d|<u>0.6667</u>|"]);
        let details = details(&comparison);
        assert_eq!(details.rows.len(), 3);
        assert_eq!(details.rows[1][8], "", "the best is not tested against itself");
    }
}
