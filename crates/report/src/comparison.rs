//! The comparison of the run with those beside it, as Markdown.

use mp4sr_pipeline::text::TextTable;
use mp4sr_protocol::{Comparison, Interval, probability};

/// Formats the intervals of the last run of a comparison, then its tests against the other runs, if there are any.
pub(crate) fn markdown(comparison: &Comparison) -> String {
    let Some(((_, own), others)) = comparison.rows.split_last() else { return String::new() };
    let mut text = String::from("95 % bootstrap intervals over users:");
    for (at, (metric, value)) in comparison.metrics.iter().zip(own).enumerate() {
        let Interval { low, high, .. } = value.interval;
        text.push_str(&format!("{} {metric} {low:.4} to {high:.4}", if at > 0 { "," } else { "" }));
    }
    text.push_str(".\n");
    if others.is_empty() {
        return text;
    }
    let mut table =
        TextTable::new(["against", "users", "metric", "difference", "t-test p (Holm)", "Wilcoxon p (Holm)"]);
    for (name, values) in others {
        for (metric, value) in comparison.metrics.iter().zip(values) {
            let Some(tests) = value.tests else { continue };
            let [t, wilcoxon] = [tests.t_holm, tests.wilcoxon_holm].map(probability);
            let difference = format!("{:+.4}", tests.difference);
            let users = comparison.users.to_string();
            table.rows.push(vec![name.clone(), users, metric.to_string(), difference, t, wilcoxon]);
        }
    }
    let note = comparison.candidates_note().map_or_else(String::new, |note| format!("\n{note}\n"));
    format!("{text}\n{}{note}", table.markdown())
}

#[cfg(test)]
mod tests {
    use mp4sr_protocol::{Metric, Reference, SeedRuns};

    use super::*;

    #[test]
    fn tests_of_the_run_against_the_others_are_corrected_and_names_are_escaped() {
        let group = |name: &str, ranks: &[u32]| SeedRuns {
            name: name.to_owned(),
            ranks: vec![ranks.to_vec()],
            ..SeedRuns::default()
        };
        let own = group("mine", &[1, 1, 1, 0, 2, 1]);
        let groups = [group("a|", &[2, 1, 2, 1, 2, 0]), group("twin", &own.ranks[0]), own];
        let text = markdown(&Comparison::new(&groups, &[Metric::Recall(1)], Reference::Last));
        assert!(
            text.contains("| a\\|     |     4 | R@1    |    +0.5000 |          0.3634 |            0.3146 |\n"),
            "{text}"
        );
        let alone = markdown(&Comparison::new(&groups[2..], &[Metric::Recall(1)], Reference::Last));
        assert!(alone.starts_with("95 % bootstrap intervals over users") && !alone.contains('|'), "{alone}");
        assert_eq!(markdown(&Comparison::new(&[], &[Metric::Recall(1)], Reference::Last)), "");
    }
}
