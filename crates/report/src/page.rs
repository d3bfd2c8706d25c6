//! The page. Everything that comes from data goes through maud, which escapes it; the two exceptions are the style sheet
//! and the charts, whose texts plotters has escaped.

use std::collections::{BTreeMap, HashMap};

use maud::{DOCTYPE, Markup, PreEscaped, html};
use mp4sr_artifact::Items;
use mp4sr_pipeline::Timing;
use mp4sr_protocol::Split;

use crate::breakdown::BreakdownTable;
use crate::comparison::Comparison;
use crate::curves::Panel;
use crate::statistics::{Lines, Pictures, Rejected, Statistics, Unusable};
use crate::table::{MetricsTable, percent};
use crate::thumbnail::{Picture, thumbnail};
use crate::users::{Choice, Shown};
use crate::words::Words;

mod groups;
mod times;
mod words;

/// How many pictures that can't be used are named.
const PICTURE_EXAMPLES: usize = 3;

/// Users are left out of the page before they make it longer than this.
const MOST_BYTES: usize = 2_600_000;

/// All that a page shows.
pub(crate) struct Page<'a> {
    pub(crate) dataset: &'a str,
    pub(crate) run: &'a str,
    pub(crate) tables: &'a [MetricsTable],
    /// Of the test split, like the breakdowns.
    pub(crate) comparison: Option<&'a Comparison>,
    pub(crate) breakdowns: &'a [BreakdownTable],
    pub(crate) panels: &'a [Panel],
    /// Runs without a log of training.
    pub(crate) untrained: &'a [String],
    pub(crate) statistics: Option<&'a Statistics>,
    pub(crate) users: &'a [Shown],
    pub(crate) choice: Choice,
    pub(crate) items: &'a Items,
    /// None where the run's features are no words.
    pub(crate) words: Option<&'a Words>,
    pub(crate) timings: &'a [Timing],
    /// The run's resolved configuration.
    pub(crate) config: &'a str,
    /// What, which.
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
                    // Nothing is fetched and nothing runs, whatever a title may hold.
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
                            @if self.statistics.is_some() { a href="#dataset" { "Dataset" } }
                            @if self.words.is_some() { a href="#words" { "What CLIP saw" } }
                            @if !self.users.is_empty() { a href="#users" { "Recommendations" } }
                            a href="#made" { "How it was made" }
                        }
                    }
                    (self.metrics_section())
                    @if !self.breakdowns.is_empty() { (groups::section(self.breakdowns)) }
                    (self.training_section())
                    @if let Some(statistics) = self.statistics { (statistics_section(statistics)) }
                    @if let Some(words) = self.words { (words::section(words, self.items)) }
                    (users)
                    (self.made_section())
                }
            }
        };
        page.into_string()
    }

    fn metrics_section(&self) -> Markup {
        html! {
            section #metrics {
                h2 { "Metrics" }
                p {
                    "Each user's next item is ranked among all items; ties count against the model. "
                    "R@K is the share of users whose item is among the first K, in N@K place r counts "
                    "1\u{a0}/\u{a0}log" sub { "2" } "(r\u{a0}+\u{a0}1) instead of 1. Both are means over users; the best of a column is bold."
                }
                @for table in self.tables {
                    h3 { @if table.split == Split::Test { "Test: the last item of each user" }
                        @else { "Validation: the last but one" } }
                    (metrics_table(table))
                    @if let Some(comparison) = self.comparison.filter(|_| table.split == Split::Test) {
                        (groups::comparison(self.run, comparison))
                    }
                }
            }
        }
    }

    fn training_section(&self) -> Markup {
        if self.panels.is_empty() {
            return html! {};
        }
        html! {
            section #training {
                h2 { "Training" }
                p { "A large ring marks the epoch whose weights were kept: the best validation R@20 of its phase." }
                @if !self.untrained.is_empty() {
                    p.soft { "Not trained in epochs, so without a curve: " (self.untrained.join(", ")) "." }
                }
                div.charts {
                    @for panel in self.panels {
                        figure role="img" aria-label={ (panel.phase) ": " (panel.what) " by epoch" } {
                            (PreEscaped(&panel.svg))
                        }
                    }
                }
            }
        }
    }

    fn users_section(&self) -> Markup {
        if self.users.is_empty() {
            return html! {};
        }
        let Choice { users, known, hits } = self.choice;
        let mut pictures = HashMap::new();
        let (mut body, mut shown) = (String::new(), 0);
        for user in self.users {
            let next = self.user(user, &mut pictures).into_string();
            if body.len() + next.len() > MOST_BYTES {
                break;
            }
            body.push_str(&next);
            shown += 1;
        }
        html! {
            section #users {
                h2 { "Recommendations" }
                @if known > 0 {
                    p {
                        "The true next item is in the list of " (number(hits as u64)) " of " (number(known as u64))
                        " users (" (format!("{:.1}", 100.0 * hits as f64 / known as f64)) " %). "
                        "The users below are not picked by hand: half of them are taken from those, half from the others, "
                        "each spread evenly over the user numbers (one kind fills up for the other where it is short). "
                        "So the page shows hits more often than they happen."
                    }
                } @else {
                    p {
                        "The next items are not known: lists follow whole sequences. The users below are not picked by hand "
                        "but spread evenly over all " (number(users as u64)) "."
                    }
                }
                (PreEscaped(body))
                @if shown < self.users.len() {
                    p.soft { (self.users.len() - shown) " more users are left out to keep this page small." }
                }
            }
        }
    }

    fn user(&self, user: &Shown, pictures: &mut HashMap<usize, Picture>) -> Markup {
        let (recent, top) = (user.recent(), user.top());
        let hit = user.target.and_then(|target| user.list.iter().position(|&item| item == target));
        html! {
            section.user {
                h3 { "User " (user.user) " " span.soft { "(" (user.user_id) ")" } }
                @if user.target.is_some() {
                    p {
                        @if let Some(at) = hit { "The true next item is at place " (at + 1) " of the list." }
                        @else { "The true next item is not in the list" @if let Some(rank) = user.rank {
                            "; its rank is " (number(rank.into())) " of " (number(self.items.len() as u64)) } "." }
                    }
                }
                h4 {
                    "History, oldest first"
                    @if recent.len() < user.history.len() {
                        " (the last " (recent.len()) " of " (user.history.len()) " items)"
                    }
                    @if user.target.is_some() { ", and what came next" }
                }
                ol.cards {
                    @for &item in recent { (self.card(item, None, false, pictures)) }
                    @if let Some(target) = user.target { (self.card(target, None, true, pictures)) }
                }
                h4 {
                    "Recommended, best first"
                    @if top.len() < user.list.len() { " (the first " (top.len()) " of " (user.list.len()) ")" }
                }
                ol.cards {
                    @for (at, &item) in top.iter().enumerate() {
                        (self.card(item, Some(at + 1), user.target == Some(item), pictures))
                    }
                }
            }
        }
    }

    fn card(&self, item: usize, place: Option<usize>, next: bool, pictures: &mut HashMap<usize, Picture>) -> Markup {
        let text = |column: &[String]| column.get(item).filter(|text| !text.is_empty()).cloned();
        let title = text(&self.items.titles);
        let name = title.clone().or_else(|| text(&self.items.ids)).unwrap_or_default();
        let images = self.items.images.get(item).map_or(&[][..], Vec::as_slice);
        let picture = pictures.entry(item).or_insert_with(|| thumbnail(images));
        html! {
            li.card.next[next] title=(name) {
                @match picture {
                    Picture::Shown(address) => img src=(address) alt="" loading="lazy";,
                    Picture::None => span.none { "no picture" },
                    Picture::NotFetched => span.none { "picture not fetched" },
                    Picture::Missing => span.none { "picture file is missing" },
                    Picture::Broken => span.none { "picture does not decode" },
                }
                @if let Some(place) = place { span.place { (place) } }
                span.name { (name) }
                @if title.is_none() { span.place { "(no title)" } }
                @if next { span.label { "true next item" } }
            }
        }
    }

    fn made_section(&self) -> Markup {
        html! {
            section #made {
                h2 { "How it was made" }
                @if !self.timings.is_empty() { (times::table(self.timings)) }
                div.wide { table {
                    @for (what, which) in self.made_from { tr { th.text { (what) } td.text { code { (which) } } } }
                } }
                details {
                    summary { "Resolved configuration of the run" }
                    pre { (self.config) }
                }
            }
        }
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
                        td { (number(row.metrics.users as u64)) }
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

fn statistics_section(found: &Statistics) -> Markup {
    let counts = &found.counts;
    let printed = found.table1.as_ref();
    let rows: [(&str, String, Option<String>); 4] = [
        ("users", number(counts.users), printed.map(|row| number(row.users))),
        ("items", number(counts.items), printed.map(|row| number(row.items))),
        ("events", number(counts.events), printed.map(|row| number(row.events))),
        (
            "average length",
            format!("{:.2}", counts.average_length),
            printed.map(|row| format!("{:.2}", row.average_length)),
        ),
    ];
    let more = [
        ("shortest, median, longest", format!("{}, {}, {}", counts.shortest, counts.median_length, counts.longest)),
        ("density", format!("{:.4} %", 100.0 * counts.density)),
        ("events ordered by input", number(counts.ties)),
        ("titles with markup removed", number(found.items.cleaned_titles)),
        ("items with markup removed from texts", number(found.items.cleaned_texts)),
        ("items without text", number(counts.items_without_text)),
        ("items without image", number(counts.items_without_image)),
        ("items with image addresses only", number(counts.items_with_addresses_only)),
        ("sentences per item", format!("{:.2}", counts.sentences.mean)),
        ("images per item", format!("{:.2}", counts.images.mean)),
    ];
    html! {
        section #dataset {
            h2 { "Dataset" }
            div.wide { table {
                thead { tr {
                    th {} th { (found.dataset) }
                    @if let Some(row) = printed { th { "paper (" (row.name) ")" } }
                } }
                tbody {
                    @for (name, value, paper) in rows {
                        tr { th { (name) } td { (value) } @if let Some(paper) = paper { td { (paper) } } }
                    }
                    @for (name, value) in more {
                        tr { th { (name) } td { (value) } @if printed.is_some() { td {} } }
                    }
                }
            } }
            h3 { "Filters" }
            (filter_table(found))
            h3 { "Lines read" }
            (lines_table(found))
            (rejects("Rejected lines of interactions", &found.interactions.rejected))
            (rejects("Rejected lines of items", &found.items.rejected))
            (rejects("Refused names of images", &found.items.refused_images))
            @if let Some(pictures) = &found.pictures { (pictures_part(pictures)) }
            @for warning in &found.warnings { p { "Note: " (warning) "." } }
        }
    }
}

fn pictures_part(pictures: &Pictures) -> Markup {
    let examples = pictures.unusable.iter().take(PICTURE_EXAMPLES);
    html! {
        h3 { "Pictures" }
        p {
            (number(pictures.described)) " of " (number(pictures.images)) " described in words, "
            (number(pictures.unusable.len() as u64)) " that can't be used, "
            (number(pictures.items_without_image)) " items left without."
        }
        @if !pictures.unusable.is_empty() {
            div.wide { table {
                thead { tr { th { "item" } th { "picture" } th { "reason" } } }
                tbody { @for Unusable { item_id, image, reason } in examples {
                    tr { td { (item_id) } td { code { (image) } } td { (reason) } }
                } }
            } }
        }
    }
}

fn filter_table(found: &Statistics) -> Markup {
    html! {
        div.wide { table {
            thead { tr { th { "filter" } th { "events" } th { "dropped" } th { "users" } th { "items" } } }
            tbody { @for (at, step) in found.filters.iter().enumerate() {
                tr {
                    th { (if at == 0 { "usable lines" } else { step.filter.as_str() }) }
                    td { (number(step.events)) }
                    td { @if at > 0 { (number(step.dropped.values().sum())) } }
                    td { (number(step.users)) }
                    td { (number(step.items)) }
                }
                @if step.dropped.len() > 1 {
                    @for (reason, count) in &step.dropped {
                        tr { td.soft { "\u{2003}" (reason) } td {} td.soft { (number(*count)) } td {} td {} }
                    }
                }
            } }
        } }
    }
}

fn lines_table(found: &Statistics) -> Markup {
    let kinds: [(&str, &Lines); 2] = [("interactions", &found.interactions), ("items", &found.items)];
    html! {
        div.wide { table {
            thead { tr { th { "file" } th { "of" } th { "lines" } th { "accepted" } th { "rejected" } } }
            tbody { @for (kind, lines) in kinds {
                @for file in &lines.files {
                    tr {
                        td { code { (file_name(&file.file)) } }
                        td { (kind) }
                        td { (number(file.lines)) }
                        td { (number(file.accepted)) }
                        td { (number(file.rejected)) }
                    }
                }
            } }
        } }
        p.soft {
            "Lines of items: " (number(found.items.repeated)) " of an item already described, "
            (number(found.items.without_events)) " of items without events; " (number(found.items.without_line))
            " items of events have no line."
        }
    }
}

fn rejects(what: &str, rejected: &BTreeMap<String, Rejected>) -> Markup {
    if rejected.is_empty() {
        return html! {};
    }
    html! {
        h3 { (what) }
        div.wide { table {
            thead { tr { th { "reason" } th { "number" } th.text { "first places" } } }
            tbody { @for (reason, rejected) in rejected {
                tr {
                    td { (reason) }
                    td { (number(rejected.count)) }
                    td.found { @for example in &rejected.examples {
                        div { (file_name(&example.file)) ":" (example.line) ": " code { (example.found) } }
                    } }
                }
            } }
        } }
    }
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// With separators for thousands.
fn number(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Row;
    use crate::breakdown::{Ranked, breakdown_tables};
    use mp4sr_protocol::{Measure, Metrics, UserFacts};

    const HOSTILE: &str = "</title><script>alert(\"1\")</script> & <b>'bold'";

    #[test]
    fn whatever_data_holds_appears_as_text() {
        let items = Items {
            ids: vec!["<i>id</i>".into(), "b".into()],
            titles: vec![HOSTILE.into(), String::new()],
            sentences: vec![vec![], vec![]],
            images: vec![vec!["\" onerror=\"alert(1)".into(), "Cargo.toml".into()], vec![]],
        };
        let user = Shown {
            user: 1,
            user_id: HOSTILE.into(),
            history: vec![1, 0],
            target: Some(0),
            list: vec![0, 1],
            rank: Some(1),
        };
        let measures = vec![Measure::Recall(5)];
        let metrics = Metrics::of(&[1], &measures);
        let tables = [MetricsTable { split: Split::Test, measures, rows: vec![Row { run: HOSTILE.into(), metrics }] }];
        let ranked = [HOSTILE, "r"].map(|run| Ranked { run: run.to_owned(), ranks: vec![1] });
        let comparison = Comparison::of(&ranked, &[Measure::Recall(5)]);
        let facts = [UserFacts { user: 0, length: 3, history: 2, target_events: 1, target_age: None }];
        let breakdowns = breakdown_tables(&facts, &ranked, &[Measure::Recall(5)]);
        let mut statistics = Statistics { dataset: HOSTILE.into(), ..Statistics::default() };
        let example = crate::statistics::Example { file: "a/b<c".into(), line: 3, found: HOSTILE.into() };
        let rejected = Rejected { count: 1, examples: vec![example] };
        statistics.interactions.rejected.insert(HOSTILE.into(), rejected);
        let page = Page {
            dataset: HOSTILE,
            run: "r",
            tables: &tables,
            comparison: comparison.as_ref(),
            breakdowns: &breakdowns,
            panels: &[],
            untrained: &[],
            statistics: Some(&statistics),
            users: &[user],
            choice: Choice { users: 1, known: 1, hits: 1 },
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
        assert!(text.contains("picture does not decode") && text.contains("no picture"));
        assert!(text.contains("(no title)"));
        assert_eq!(text.matches("<th class=\"run\" colspan=\"1\">&lt;/title").count(), breakdowns.len());
        assert!(!text.contains("id=\"words\"") && !text.contains("peak memory"), "nothing known, nothing said");
    }

    #[test]
    fn numbers_have_separators() {
        assert_eq!([0, 999, 1000, 1_234_567].map(number), ["0", "999", "1,000", "1,234,567"]);
    }
}
