//! Every count in and out of every filter, as `report.json` and as a printed table.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;
use std::num::NonZeroU64;

use comfy_table::{Cell, CellAlignment, Table};
use mp4sr_artifact::{
    CountSpread, DatasetStatistics, Downloads, EventAccounts, EventsRead, FilterStep, ItemsRead, JoinShares,
    PreprocessReport, Rejects, Table1Row,
};
use mp4sr_pipeline::config::{Config, Format, Preprocess, Source};
use mp4sr_pipeline::text::{count, terminal_table};

use polars::prelude::{DataFrame, DataType, IntoLazy as _, UnionArgs, concat};
use serde_json::{Value, json};

use crate::dataset::Dataset;
use crate::filters::USER;
use crate::partitions::Partitions;
use crate::{Error, Result, filters};

/// Keys that a dataset records only if they differ from their defaults, so that a dataset that was built without them keeps its bytes.
const LATER_KEYS: [&str; 11] = [
    "item_order",
    "where",
    "since",
    "until",
    "split",
    "split_ratio",
    "split_at",
    "split_test_at",
    "items_without_events",
    "min_described",
    "placeholders",
];

/// The settings of the filters as the files of a dataset record them. The manifest records all of them, to notice when a key is removed.
pub fn recorded(preprocess: &Preprocess) -> Value {
    let (mut settings, defaults) = (preprocess.deciding(), json!(Preprocess::default()));
    if let Some(settings) = settings.as_object_mut() {
        settings.retain(|key, value| !LATER_KEYS.contains(&key.as_str()) || *value != defaults[key]);
    }
    settings
}

/// Keys of `[source]` that a dataset records only if they differ from their defaults.
const LATER_SOURCE_KEYS: [&str; 9] = [
    "time",
    "separator",
    "interactions_header",
    "items_header",
    "encoding",
    "quoting",
    "quote_escape",
    "decimal_comma",
    "html",
];
/// Keys of `[source.columns]` that a dataset records only if they differ from their defaults.
const LATER_COLUMN_KEYS: [&str; 4] = ["item_separator", "text_separator", "image_separator", "sentences"];

/// The settings of `[source]` as the files of a dataset record them.
pub fn recorded_source(source: &Source) -> Value {
    let (mut settings, defaults) = (json!(source), json!(Source::default()));
    let keep = |settings: &mut Value, defaults: &Value, later: &[&str]| {
        if let Some(settings) = settings.as_object_mut() {
            settings.retain(|key, value| !later.contains(&key.as_str()) || *value != defaults[key]);
        }
    };
    keep(&mut settings, &defaults, &LATER_SOURCE_KEYS);
    keep(&mut settings["columns"], &defaults["columns"], &LATER_COLUMN_KEYS);
    settings
}

/// The lengths of the users' sequences, and their ties.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SequenceSpread {
    pub shortest: u64,
    pub median: u64,
    pub longest: u64,
    /// Events that share user and time with the one before.
    pub ties: u64,
}

impl SequenceSpread {
    /// Computes the spread of ordered events.
    pub fn of(events: &Partitions) -> Result<Self> {
        let mut frequencies = Vec::new();
        let mut ties = 0;
        for part in events.iter() {
            frequencies.push(part.query(|events| filters::frequency(events, USER))?.lazy());
            ties += number(&part.query(filters::ties)?, 0)?;
        }
        let spread = filters::spread(concat(frequencies, UnionArgs::default())?).collect()?;
        Ok(Self { shortest: number(&spread, 0)?, median: number(&spread, 1)?, longest: number(&spread, 2)?, ties })
    }
}

/// The number in a column of a frame of one row.
fn number(row: &DataFrame, column: usize) -> Result<u64> {
    Ok(row.columns()[column].cast(&DataType::UInt64)?.u64()?.get(0).unwrap_or_default())
}

fn statistics(dataset: &Dataset, spread: SequenceSpread) -> DatasetStatistics {
    let items = &dataset.items;
    let (users, events) = (dataset.sequences.user_count() as u64, dataset.sequences.items.len() as u64);
    let pairs = users as f64 * items.len() as f64;
    let rows_with =
        |test: &dyn Fn(&Vec<String>) -> bool, rows: &[Vec<String>]| rows.iter().filter(|row| test(row)).count() as u64;
    DatasetStatistics {
        users,
        items: items.len() as u64,
        events,
        items_without_events: None,
        average_length: events as f64 / users as f64,
        shortest: spread.shortest,
        median_length: spread.median,
        longest: spread.longest,
        density: events as f64 / pairs,
        ties: spread.ties,
        items_without_text: rows_with(&Vec::is_empty, &items.sentences),
        items_without_image: rows_with(&Vec::is_empty, &items.images),
        items_with_urls_only: rows_with(
            &|row| !row.is_empty() && row.iter().all(|image| Downloads::is_url(image)),
            &items.images,
        ),
        items_without_category: rows_with(&Vec::is_empty, &items.categories),
        categories: items.categories.iter().flatten().collect::<HashSet<_>>().len() as u64,
        sentences: CountSpread::of(items.sentences.iter().map(Vec::len)),
        images: CountSpread::of(items.images.iter().map(Vec::len)),
    }
}

/// The counts of reading and filtering.
pub struct Counted {
    pub interactions: EventsRead,
    pub items: ItemsRead,
    pub filters: Vec<FilterStep>,
    pub spread: SequenceSpread,
    pub shares: Option<JoinShares>,
}

pub fn new(
    config: &Config,
    counted: Counted,
    dataset: &Dataset,
    table1: Option<Table1Row>,
    mut warnings: Vec<String>,
) -> PreprocessReport {
    let Counted { interactions, items, filters, spread, shares } = counted;
    let mut dropped: BTreeMap<String, u64> = BTreeMap::new();
    for (reason, count) in filters.iter().flat_map(|step| &step.dropped) {
        *dropped.entry(reason.clone()).or_default() += count;
    }
    let with_events = filters.last().map_or(0, |step| step.items);
    let mut statistics = statistics(dataset, spread);
    statistics.items_without_events = NonZeroU64::new(statistics.items.saturating_sub(with_events));
    warnings.extend(about_missing_modalities(&statistics).map(str::to_owned));
    PreprocessReport {
        version: 1,
        dataset: config.dataset.name.clone(),
        format: format_name(config.source.format),
        preprocess: recorded(&config.preprocess),
        events: EventAccounts { read: filters.first().map_or(0, |raw| raw.events), kept: statistics.events, dropped },
        interactions,
        items,
        join: shares,
        filters,
        statistics,
        table1,
        warnings,
    }
}

/// The warnings about modalities that no item has.
pub fn about_missing_modalities(statistics: &DatasetStatistics) -> impl Iterator<Item = &'static str> {
    let modalities =
        [(statistics.items_without_text, "no item has text"), (statistics.items_without_image, "no item has an image")];
    let items = statistics.items;
    modalities.into_iter().filter(move |(without, _)| *without == items).map(|(_, warning)| warning)
}

/// Checks that the counts of the steps add up, so that nothing is lost between them.
pub fn check(report: &PreprocessReport) -> Result<()> {
    let law = |what: &str, left: u64, right: u64| {
        if left == right { Ok(()) } else { Err(Error::bug(format!("{what}: {left} is not {right}"))) }
    };
    let sides = [
        ("interactions", &report.interactions.files, &report.interactions.rejected),
        ("items", &report.items.files, &report.items.rejected),
    ];
    for (what, files, rejected) in sides {
        for file in files {
            let name = file.file.display();
            law(&format!("lines of `{name}`"), file.lines, file.accepted + file.rejected)?;
        }
        let total = files.iter().map(|file| file.rejected).sum();
        law(&format!("rejected lines of {what}"), total, rejected.total())?;
    }
    let accepted = report.interactions.files.iter().map(|file| file.accepted + count_of(file.further_events)).sum();
    law("events in accepted lines", accepted, report.events.read)?;
    law("events", report.events.read, report.events.kept + report.events.dropped.values().sum::<u64>())?;
    for pair in report.filters.windows(2) {
        let dropped: u64 = pair[1].dropped.values().sum();
        law(&format!("events before `{}`", pair[1].filter), pair[0].events, pair[1].events + dropped)?;
    }
    let last = report.filters.last().map(|step| (step.users, step.items, step.events)).unwrap_or_default();
    law("users", last.0, report.statistics.users)?;
    law("items", last.1 + count_of(report.statistics.items_without_events), report.statistics.items)?;
    law("events written", last.2, report.statistics.events)
}

fn count_of(number: Option<NonZeroU64>) -> u64 {
    number.map_or(0, NonZeroU64::get)
}

/// Formats the report as tables for people.
pub fn table(report: &PreprocessReport) -> String {
    let mut text = format!("{}\n{}\n\n", report.dataset, filter_table(report));
    for (what, rejected) in [
        ("lines of interactions", &report.interactions.rejected),
        ("lines of items", &report.items.rejected),
        ("texts of items", &report.items.dropped_texts),
        ("names of images", &report.items.refused_images),
        ("names of sound files", &report.items.refused_sounds),
    ] {
        if rejected.total() > 0 {
            let _ = write!(text, "rejected {what}\n{}\n\n", reject_table(rejected));
        }
    }
    let _ = writeln!(text, "{}", item_lines(report));
    if let Some(shares) = &report.join {
        let _ = writeln!(text, "{}", crate::join::described(shares));
    }
    let _ = writeln!(text, "\n{}", statistics_table(report));
    text
}

fn item_lines(report: &PreprocessReport) -> String {
    let read = &report.items;
    let lines = read.files.iter().map(|file| file.lines).sum();
    format!(
        "lines of items: {} read, {} rejected, {} repeat an item that was already described (the first line counts), {} describe items \
         without events; {} items with events have no line",
        count(lines),
        count(read.rejected.total()),
        count(read.repeated),
        count(read.without_events),
        count(read.without_line)
    )
}

fn filter_table(report: &PreprocessReport) -> Table {
    let mut table = terminal_table(["filter", "events", "dropped", "users", "items"]);
    let lines = report.interactions.files.iter().map(|file| file.lines).sum();
    let rejected = report.interactions.rejected.total();
    table.add_row(["lines read".into(), count(lines), String::new(), String::new(), String::new()]);
    for (at, step) in report.filters.iter().enumerate() {
        let dropped = if at == 0 { rejected } else { step.dropped.values().sum() };
        let name = if at == 0 { "usable lines" } else { step.filter.as_str() };
        table.add_row([name.into(), count(step.events), count(dropped), count(step.users), count(step.items)]);
        for (reason, events) in step.dropped.iter().filter(|_| step.dropped.len() > 1) {
            table.add_row([format!("  {reason}"), String::new(), count(*events), String::new(), String::new()]);
        }
    }
    to_the_right(&mut table, 1);
    table
}

fn statistics_table(report: &PreprocessReport) -> Table {
    let found = &report.statistics;
    let mut rows: Vec<(&str, String, Option<String>)> = vec![
        ("users", count(found.users), report.table1.as_ref().map(|row| count(row.users))),
        ("items", count(found.items), report.table1.as_ref().map(|row| count(row.items))),
        ("events", count(found.events), report.table1.as_ref().map(|row| count(row.events))),
        (
            "average length",
            format!("{:.2}", found.average_length),
            report.table1.as_ref().map(|row| format!("{:.2}", row.average_length)),
        ),
    ];
    let mut more = |name, value| rows.push((name, value, None));
    more("shortest, median, longest", format!("{}, {}, {}", found.shortest, found.median_length, found.longest));
    more("density", format!("{:.4} %", found.density * 100.0));
    more("events ordered by their position in the input", count(found.ties));
    more("titles with markup removed", count(report.items.cleaned_titles));
    more("items with markup removed from texts", count(report.items.cleaned_texts));
    more("items without text", count(found.items_without_text));
    more("items without image", count(found.items_without_image));
    more("items with image URLs only", count(found.items_with_urls_only));
    if found.categories > 0 {
        more("distinct categories", count(found.categories));
        more("items without category", count(found.items_without_category));
    }
    if let Some(items) = found.items_without_events {
        more("items without events", count(items.get()));
    }
    more("sentences per item", format!("{:.2}", found.sentences.mean));
    more("images per item", format!("{:.2}", found.images.mean));
    let paper = report.table1.as_ref().map(|row| format!("paper ({})", row.name));
    let mut table = match &paper {
        Some(paper) => terminal_table(["", report.dataset.as_str(), paper.as_str()]),
        None => terminal_table(["", report.dataset.as_str()]),
    };
    for (name, value, printed) in rows {
        let mut row = vec![name.to_owned(), value];
        row.extend(paper.is_some().then(|| printed.unwrap_or_default()));
        table.add_row(row);
    }
    to_the_right(&mut table, 1);
    table
}

fn format_name(format: Format) -> String {
    serde_json::to_value(format).ok().and_then(|name| name.as_str().map(str::to_owned)).unwrap_or_default()
}

fn reject_table(rejected: &Rejects) -> Table {
    let mut table = terminal_table(["reason", "number", "first occurrences"]);
    for (reason, rejected) in &rejected.0 {
        let examples = rejected.examples.iter().map(|example| {
            let name = example.file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            format!("{name}:{}: {}", example.line, example.found)
        });
        let examples = examples.collect::<Vec<_>>().join("\n");
        table.add_row([
            Cell::new(reason),
            Cell::new(count(rejected.count)).set_alignment(CellAlignment::Right),
            Cell::new(examples),
        ]);
    }
    table
}

fn to_the_right(table: &mut Table, from: usize) {
    table.column_iter_mut().skip(from).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
}
