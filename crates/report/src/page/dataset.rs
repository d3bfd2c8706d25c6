//! The counts of the preprocess and extract stages.

use std::borrow::Cow;
use std::path::Path;

use maud::{Markup, html};
use mp4sr_artifact::{ExtractReport, FileCount, PreprocessReport, Rejects, UnusableImage};
use mp4sr_pipeline::text::count;

/// The maximum number of unusable images that the page names.
const IMAGE_EXAMPLES: usize = 3;

pub(super) fn section(found: &PreprocessReport, images: Option<&ExtractReport>) -> Markup {
    let counts = &found.statistics;
    let printed = found.table1.as_ref();
    let rows: [(&str, String, Option<String>); 4] = [
        ("users", count(counts.users), printed.map(|row| count(row.users))),
        ("items", count(counts.items), printed.map(|row| count(row.items))),
        ("events", count(counts.events), printed.map(|row| count(row.events))),
        (
            "average length",
            format!("{:.2}", counts.average_length),
            printed.map(|row| format!("{:.2}", row.average_length)),
        ),
    ];
    let share = |name: &'static str, share: Option<f64>| share.map(|share| (name, format!("{:.1} %", 100.0 * share)));
    let joined = [
        share("events whose item has a line", found.join.map(|join| join.events_with_line)),
        share("lines whose item has events", found.join.map(|join| join.lines_used)),
        share("items with a title", found.join.map(|join| join.items_with_title)),
    ];
    let more = [
        ("shortest, median, longest", format!("{}, {}, {}", counts.shortest, counts.median_length, counts.longest)),
        ("density", format!("{:.4} %", 100.0 * counts.density)),
        ("events ordered by their position in the input", count(counts.ties)),
        ("titles with markup removed", count(found.items.cleaned_titles)),
        ("items with markup removed from texts", count(found.items.cleaned_texts)),
        ("items without text", count(counts.items_without_text)),
        ("items without image", count(counts.items_without_image)),
        ("items with image URLs only", count(counts.items_with_urls_only)),
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
                    @for (name, value) in joined.into_iter().flatten().chain(more) {
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
            (rejects("Texts without content", &found.items.dropped_texts))
            (rejects("Rejected names of images", &found.items.refused_images))
            (rejects("Rejected names of sound files", &found.items.refused_sounds))
            @if let Some(images) = images { (images_part(images)) }
            @for times in &found.interactions.times { p.soft { (times) "." } }
            @for warning in &found.warnings { p { "Note: " (warning) "." } }
        }
    }
}

fn images_part(images: &ExtractReport) -> Markup {
    let examples = images.unusable.iter().take(IMAGE_EXAMPLES);
    html! {
        h3 { "Images" }
        p {
            (count(images.described as u64)) " of " (count(images.images as u64)) " images have vectors, "
            (count(images.unusable.len() as u64)) " cannot be used; "
            (count(images.items_without_image as u64)) " items have no usable image."
        }
        @if !images.unusable.is_empty() {
            div.wide { table {
                thead { tr { th { "item" } th { "image" } th { "reason" } } }
                tbody { @for UnusableImage { item_id, image, reason } in examples {
                    tr { td { (item_id) } td { code { (image) } } td { (reason) } }
                } }
            } }
        }
    }
}

fn filter_table(found: &PreprocessReport) -> Markup {
    html! {
        div.wide { table {
            thead { tr { th { "filter" } th { "events" } th { "dropped" } th { "users" } th { "items" } } }
            tbody { @for (at, step) in found.filters.iter().enumerate() {
                tr {
                    th { (if at == 0 { "usable lines" } else { step.filter.as_str() }) }
                    td { (count(step.events)) }
                    td { @if at > 0 { (count(step.dropped.values().sum())) } }
                    td { (count(step.users)) }
                    td { (count(step.items)) }
                }
                @if step.dropped.len() > 1 {
                    @for (reason, events) in &step.dropped {
                        tr { td.soft { "\u{2003}" (reason) } td {} td.soft { (count(*events)) } td {} td {} }
                    }
                }
            } }
        } }
    }
}

fn lines_table(found: &PreprocessReport) -> Markup {
    let kinds: [(&str, &[FileCount]); 2] = [("interactions", &found.interactions.files), ("items", &found.items.files)];
    html! {
        div.wide { table {
            thead { tr { th { "file" } th { "content" } th { "lines" } th { "accepted" } th { "rejected" } } }
            tbody { @for (kind, files) in kinds {
                @for file in files {
                    tr {
                        td { code { (file_name(&file.file)) } }
                        td { (kind) }
                        td { (count(file.lines)) }
                        td { (count(file.accepted)) }
                        td { (count(file.rejected)) }
                    }
                }
            } }
        } }
        p.soft {
            "Lines of items: " (count(found.items.repeated)) " repeat an item that was already described, "
            (count(found.items.without_events)) " describe items without events; " (count(found.items.without_line))
            " items with events have no line."
        }
    }
}

fn rejects(what: &str, rejected: &Rejects) -> Markup {
    if rejected.0.is_empty() {
        return html! {};
    }
    html! {
        h3 { (what) }
        div.wide { table {
            thead { tr { th { "reason" } th { "count" } th.text { "first occurrences" } } }
            tbody { @for (reason, rejected) in &rejected.0 {
                tr {
                    td { (reason) }
                    td { (count(rejected.count)) }
                    td.found { @for example in &rejected.examples {
                        div { (file_name(&example.file)) ":" (example.line) ": " code { (example.found) } }
                    } }
                }
            } }
        } }
    }
}

fn file_name(path: &Path) -> Cow<'_, str> {
    path.file_name().map_or_else(Cow::default, |name| name.to_string_lossy())
}
