//! The page of the report. maud escapes everything that comes from data. The two exceptions are the style sheet and the charts, whose texts
//! plotters has escaped.

use maud::{DOCTYPE, PreEscaped, html};
use mp4sr_artifact::{ExtractReport, Items, PreprocessReport, Timing};
use mp4sr_protocol::Comparison;

use crate::breakdown::BreakdownTable;
use crate::curves::Panel;
use crate::lists::ListsTable;
use crate::table::MetricsTable;
use crate::users::{ShownUser, UserCounts};
use crate::words::Words;

mod dataset;
mod groups;
mod made;
mod metrics;
mod times;
mod training;
mod users;
mod words;

/// Everything that the page shows.
pub(crate) struct Page<'a> {
    pub(crate) dataset: &'a str,
    pub(crate) run: &'a str,
    pub(crate) tables: &'a [MetricsTable],
    /// The comparison on the test set, to which the breakdowns belong too.
    pub(crate) comparison: &'a Comparison,
    /// The statistics of the lists.
    pub(crate) lists: &'a ListsTable,
    pub(crate) breakdowns: &'a [BreakdownTable],
    pub(crate) panels: &'a [Panel],
    /// The runs without a training log.
    pub(crate) untrained: &'a [String],
    /// The counts of preprocessing; `None` if another program wrote the dataset.
    pub(crate) counts: Option<&'a PreprocessReport>,
    /// The counts of extraction; `None` if another program wrote the features.
    pub(crate) image_counts: Option<&'a ExtractReport>,
    pub(crate) users: &'a [ShownUser],
    pub(crate) user_counts: UserCounts,
    pub(crate) items: &'a Items,
    /// The words of images; `None` if the run's features do not use words.
    pub(crate) words: Option<&'a Words>,
    pub(crate) timings: &'a [Timing],
    /// The run's resolved configuration.
    pub(crate) config: &'a str,
    /// The files from which the report was built, with their versions.
    pub(crate) made_from: &'a [(String, String)],
}

impl Page<'_> {
    pub(crate) fn render(&self) -> String {
        let users = self.users_section();
        let page = html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    // The page loads nothing and runs no scripts, whatever a title may contain.
                    meta http-equiv="Content-Security-Policy"
                        content="default-src 'none'; img-src data:; style-src 'unsafe-inline'";
                    title { (self.run) " on " (self.dataset) }
                    style { (PreEscaped(include_str!("page.css"))) }
                }
                body {
                    header {
                        h1 { (self.run) " on " (self.dataset) }
                        p.soft { "MP4SR: multimodal pre-training for sequential recommendation (arXiv 2303.11879)" }
                        nav {
                            a href="#metrics" { "Metrics" }
                            @if !self.breakdowns.is_empty() { a href="#groups" { "Groups of users" } }
                            @if !self.panels.is_empty() { a href="#training" { "Training" } }
                            @if self.counts.is_some() { a href="#dataset" { "Dataset" } }
                            @if self.words.is_some() { a href="#words" { "Words that CLIP chose" } }
                            @if !self.users.is_empty() { a href="#users" { "Recommendations" } }
                            a href="#made" { "How this report was made" }
                        }
                    }
                    (self.metrics_section())
                    @if !self.breakdowns.is_empty() { (groups::section(self.breakdowns)) }
                    (self.training_section())
                    @if let Some(counts) = self.counts { (dataset::section(counts, self.image_counts)) }
                    @if let Some(words) = self.words { (words::section(words, self.items)) }
                    (users)
                    (self.made_section())
                }
            }
        };
        page.into_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RunMetrics;
    use crate::breakdown::{RunRanks, breakdown_tables};
    use mp4sr_artifact::{RejectExample, Rejected};
    use mp4sr_protocol::{
        ItemFacts, ListComparison, Metric, MetricMeans, Reference, SeedLists, SeedRuns, Split, StoredLists, UserFacts,
    };

    const HOSTILE: &str = "</title><script>alert(\"1\")</script> & <b>'bold'";

    #[test]
    fn any_data_is_shown_as_text() {
        let items = Items {
            ids: vec!["<i>id</i>".into(), "b".into()],
            titles: vec![HOSTILE.into(), String::new()],
            sentences: vec![vec![], vec![]],
            images: vec![vec!["\" onerror=\"alert(1)".into(), "Cargo.toml".into()], vec![]],
            categories: vec![vec![], vec![]],
            sounds: vec![vec![], vec![]],
        };
        let user = ShownUser {
            user: 1,
            user_id: HOSTILE.into(),
            history: vec![1, 0],
            target: Some(0),
            list: vec![0, 1],
            rank: Some(1),
        };
        let metrics = vec![Metric::Recall(5)];
        let means = MetricMeans::of(&[1], &metrics);
        let tables =
            [MetricsTable { split: Split::Test, metrics, rows: vec![RunMetrics { run: HOSTILE.into(), means }] }];
        let ranked = [HOSTILE, "r"].map(|run| RunRanks { run: run.to_owned(), ranks: vec![1], removes_seen: None });
        let groups =
            [HOSTILE, "r"].map(|run| SeedRuns { name: run.to_owned(), ranks: vec![vec![1]], ..SeedRuns::default() });
        let comparison = Comparison::new(&groups, &[Metric::Recall(5)], Reference::Last);
        let facts = [UserFacts { user: 0, length: 3, history: 2, target_events: 1, target_age: None }];
        let stored = StoredLists { lists: vec![vec![1, 2]], ..StoredLists::default() };
        let models = [SeedLists { name: HOSTILE.into(), lists: vec![stored] }];
        let compared = ListComparison::all(&models, &[2], &ItemFacts::new(vec![3, 1], vec![3, 1], 4));
        let lists = ListsTable::new(&models, &compared, &[2]);
        let breakdowns = breakdown_tables(&facts, &ranked, &[Metric::Recall(5)]);
        let mut counts = PreprocessReport { dataset: HOSTILE.into(), ..PreprocessReport::default() };
        let example = RejectExample { file: "a/b<c".into(), line: 3, found: HOSTILE.into() };
        let rejected = Rejected { count: 1, examples: vec![example] };
        counts.interactions.rejected.0.insert(HOSTILE.into(), rejected);
        let page = Page {
            dataset: HOSTILE,
            run: "r",
            tables: &tables,
            comparison: &comparison,
            lists: &lists,
            breakdowns: &breakdowns,
            panels: &[],
            untrained: &[],
            counts: Some(&counts),
            image_counts: None,
            users: &[user],
            user_counts: UserCounts { users: 1, known: 1, hits: 1 },
            items: &items,
            words: None,
            timings: &[],
            config: HOSTILE,
            made_from: &[(HOSTILE.into(), HOSTILE.into())],
        };
        let text = page.render();
        assert!(!text.contains("<script") && !text.contains("<b>") && !text.contains("<i>id"));
        assert!(!text.contains("\" onerror"), "no attribute can be left");
        assert!(text.contains("&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt; &amp; &lt;b&gt;"));
        assert_eq!(text.matches("true next item</span>").count(), 2, "after the history and in the list");
        assert!(text.contains("image does not decode") && text.contains("no image"));
        assert!(text.contains("(no title)"));
        assert_eq!(text.matches("<th class=\"run\" colspan=\"1\">&lt;/title").count(), breakdowns.len());
        assert!(
            !text.contains("id=\"words\"") && !text.contains("peak memory"),
            "sections without content are left out"
        );
    }
}
