//! Comparisons as tables.

use mp4sr_pipeline::text::TextTable;
use mp4sr_protocol::Comparison;

/// Formats models by measures: the best bold, the second underlined, a star where the best is significantly better than the best
/// other, with the deviation over seeds after the value.
fn table(comparison: &Comparison, what: &str) -> TextTable {
    let mut table =
        TextTable::new([what.to_owned()].into_iter().chain(comparison.measures.iter().map(ToString::to_string)));
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

/// The table as Markdown, with what a reader has to know below it.
pub fn markdown(comparison: &Comparison, what: &str) -> String {
    let note = comparison.candidates_note().map_or_else(String::new, |note| format!("\n{note}\n"));
    table(comparison, what).markdown() + &note
}

/// Lists all that is known of a comparison, one row per model and measure.
pub fn details(comparison: &Comparison) -> TextTable {
    let mut table = TextTable::new([
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
        "Wilcoxon p after Holm",
    ]);
    for (name, entries) in &comparison.rows {
        for (measure, entry) in comparison.measures.iter().zip(entries) {
            let tests = entry.tests.map_or([const { String::new() }; 4], |tests| {
                [tests.t.p, tests.wilcoxon.p, tests.t_holm, tests.wilcoxon_holm].map(|p| format!("{p:e}"))
            });
            let mut row = vec![name.clone(), measure.to_string(), comparison.users.to_string()];
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

#[cfg(test)]
mod tests {
    use super::*;
    use mp4sr_protocol::{Measure, Reference, SeedRuns};

    #[test]
    fn the_best_is_bold_with_a_star_the_second_underlined() {
        let ranks = |period: u32| vec![(0..600).map(|u| if u % period == 0 { 50 } else { 1 }).collect::<Vec<u32>>()];
        let group =
            |name: &str, period| SeedRuns { name: name.to_owned(), ranks: ranks(period), ..SeedRuns::default() };
        let comparison =
            Comparison::new(&[group("a|b", 2), group("c", 6), group("d", 3)], &[Measure::Recall(20)], Reference::Best);
        let markdown = table(&comparison, "model").markdown();
        let lines: Vec<String> = markdown.lines().map(|line| line.replace(' ', "")).collect();
        assert_eq!(lines[2..], ["|a\\|b|0.5000|", "|c|**0.8333**\\*|", "|d|<u>0.6667</u>|"]);
        let details = details(&comparison);
        assert_eq!(details.rows.len(), 3);
        assert_eq!(details.rows[1][8], "", "the best is not tested against itself");
    }
}
