//! Every count in and out of every filter, as `report.json` and as a printed table.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use comfy_table::{Cell, CellAlignment, LineStyle, Table, TableStyle};
use mp4sr_pipeline::config::{Config, Format, Preprocess};
use serde::{Deserialize, Serialize};

use crate::dataset::Dataset;
use crate::filter::Step;
use crate::rejects::Rejects;
use crate::source::{EventsRead, ItemsRead};
use crate::table1::Table1Row;
use crate::{Error, Result};

/// A line under the header, and nothing else.
const STYLE: TableStyle =
    TableStyle::new().header_separator(LineStyle::new('\u{2500}', '\u{2500}', '\u{2500}', '\u{2500}'));

/// The content of `report.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PreprocessReport {
    /// Version of this file's form.
    pub version: u32,
    /// The dataset's name.
    pub dataset: String,
    /// The form of the raw files.
    pub format: Format,
    /// The filters' settings.
    pub preprocess: Preprocess,
    /// Lines of interactions.
    pub interactions: EventsRead,
    /// Lines of items.
    pub items: ItemsRead,
    /// The state after each filter, in order; the first is the raw data.
    pub filters: Vec<Step>,
    /// Where the accepted events went.
    pub events: Accounts,
    /// The dataset as written.
    pub statistics: Statistics,
    /// The paper's numbers for it, where the pipeline names them.
    pub table1: Option<Table1Row>,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// Events in = events kept + events dropped, by reason.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accounts {
    /// Events in accepted lines.
    pub read: u64,
    /// Events in the dataset.
    pub kept: u64,
    /// Events that a filter dropped, by reason.
    pub dropped: BTreeMap<String, u64>,
}

/// The dataset as written.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Statistics {
    /// Users.
    pub users: u64,
    /// Items.
    pub items: u64,
    /// Events.
    pub events: u64,
    /// Events a user.
    pub average_length: f64,
    /// The fewest events of a user.
    pub shortest: u64,
    /// Half of the users have at most this many events.
    pub median_length: u64,
    /// The most events of a user.
    pub longest: u64,
    /// Share of the user-item pairs that are events.
    pub density: f64,
    /// Events ordered by their place in the input, because user and time are those of the event before.
    pub ties: u64,
    /// Items without a sentence.
    pub items_without_text: u64,
    /// Items without an image, local or address.
    pub items_without_image: u64,
    /// Items whose images are all addresses to fetch.
    pub items_with_addresses_only: u64,
    /// Sentences an item.
    pub sentences: LengthSpread,
    /// Images an item.
    pub images: LengthSpread,
}

/// How many an item has.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LengthSpread {
    /// Mean over all items.
    pub mean: f64,
    /// Items by number: `items[n]` have n.
    pub items: Vec<u64>,
}

impl LengthSpread {
    fn of(counts: impl Iterator<Item = usize>) -> Self {
        let (mut items, mut sum, mut total) = (Vec::new(), 0, 0);
        for count in counts {
            if items.len() <= count {
                items.resize(count + 1, 0);
            }
            items[count] += 1;
            sum += count;
            total += 1;
        }
        Self { mean: sum as f64 / f64::from(total.max(1)), items }
    }
}

impl Statistics {
    fn new(dataset: &Dataset, ties: u64) -> Self {
        let sequences = &dataset.sequences;
        let items = &dataset.items;
        let mut lengths: Vec<u64> = sequences.offsets.windows(2).map(|user| (user[1] - user[0]) as u64).collect();
        lengths.sort_unstable();
        let (users, events) = (lengths.len() as u64, sequences.items.len() as u64);
        let pairs = users as f64 * items.len() as f64;
        let is_address = |image: &String| image.starts_with("http://") || image.starts_with("https://");
        let count = |test: &dyn Fn(&Vec<String>) -> bool, rows: &[Vec<String>]| {
            rows.iter().filter(|row| test(row)).count() as u64
        };
        Self {
            users,
            items: items.len() as u64,
            events,
            average_length: events as f64 / users as f64,
            shortest: lengths.first().copied().unwrap_or_default(),
            median_length: lengths.get(lengths.len().saturating_sub(1) / 2).copied().unwrap_or_default(),
            longest: lengths.last().copied().unwrap_or_default(),
            density: events as f64 / pairs,
            ties,
            items_without_text: count(&Vec::is_empty, &items.sentences),
            items_without_image: count(&Vec::is_empty, &items.images),
            items_with_addresses_only: count(&|row| !row.is_empty() && row.iter().all(is_address), &items.images),
            sentences: LengthSpread::of(items.sentences.iter().map(Vec::len)),
            images: LengthSpread::of(items.images.iter().map(Vec::len)),
        }
    }
}

impl PreprocessReport {
    pub(crate) fn new(
        config: &Config,
        interactions: EventsRead,
        items: ItemsRead,
        filters: Vec<Step>,
        ties: u64,
        dataset: &Dataset,
        table1: Option<Table1Row>,
        mut warnings: Vec<String>,
    ) -> Self {
        let mut dropped: BTreeMap<String, u64> = BTreeMap::new();
        for (reason, count) in filters.iter().flat_map(|step| &step.dropped) {
            *dropped.entry(reason.clone()).or_default() += count;
        }
        let statistics = Statistics::new(dataset, ties);
        if statistics.items_without_text == statistics.items {
            warnings.push("no item has text".to_owned());
        }
        if statistics.items_without_image == statistics.items {
            warnings.push("no item has an image".to_owned());
        }
        Self {
            version: 1,
            dataset: config.dataset.name.clone(),
            format: config.source.format,
            preprocess: config.preprocess.clone(),
            events: Accounts { read: filters.first().map_or(0, |raw| raw.events), kept: statistics.events, dropped },
            interactions,
            items,
            filters,
            statistics,
            table1,
            warnings,
        }
    }

    /// Nothing may be lost between two counts.
    pub(crate) fn check(&self) -> Result<()> {
        let law = |what: &str, left: u64, right: u64| {
            if left == right { Ok(()) } else { Err(Error::bug(format!("{what}: {left} is not {right}"))) }
        };
        let sides = [
            ("interactions", &self.interactions.files, &self.interactions.rejected),
            ("items", &self.items.files, &self.items.rejected),
        ];
        for (what, files, rejected) in sides {
            for file in files {
                let name = file.file.display();
                law(&format!("lines of `{name}`"), file.lines, file.accepted + file.rejected)?;
            }
            let total = files.iter().map(|file| file.rejected).sum();
            law(&format!("rejected lines of {what}"), total, rejected.total())?;
        }
        let accepted = self.interactions.files.iter().map(|file| file.accepted).sum();
        law("accepted lines and events", accepted, self.events.read)?;
        law("events", self.events.read, self.events.kept + self.events.dropped.values().sum::<u64>())?;
        for pair in self.filters.windows(2) {
            let dropped: u64 = pair[1].dropped.values().sum();
            law(&format!("events before `{}`", pair[1].filter), pair[0].events, pair[1].events + dropped)?;
        }
        let last = self.filters.last().map(|step| (step.users, step.items, step.events)).unwrap_or_default();
        law("users", last.0, self.statistics.users)?;
        law("items", last.1, self.statistics.items)?;
        law("events written", last.2, self.statistics.events)
    }

    /// The statistics for people.
    pub fn table(&self) -> String {
        let mut text = format!("{}\n{}\n\n", self.dataset, self.filter_table());
        for (what, rejected) in [
            ("lines of interactions", &self.interactions.rejected),
            ("lines of items", &self.items.rejected),
            ("names of images", &self.items.refused_images),
        ] {
            if rejected.total() > 0 {
                let _ = write!(text, "rejected {what}\n{}\n\n", reject_table(rejected));
            }
        }
        let _ = writeln!(text, "{}\n\n{}", self.item_lines(), self.statistics_table());
        text
    }

    fn item_lines(&self) -> String {
        let read = &self.items;
        let lines = read.files.iter().map(|file| file.lines).sum();
        format!(
            "lines of items: {} read, {} rejected, {} of an item already described, {} of items without events; {} items of \
             events have no line",
            number(lines),
            number(read.rejected.total()),
            number(read.repeated),
            number(read.without_events),
            number(read.without_line)
        )
    }

    fn filter_table(&self) -> Table {
        let mut table = new_table(["filter", "events", "dropped", "users", "items"]);
        let lines = self.interactions.files.iter().map(|file| file.lines).sum();
        let rejected = self.interactions.rejected.total();
        table.add_row(["lines read".into(), number(lines), String::new(), String::new(), String::new()]);
        for (at, step) in self.filters.iter().enumerate() {
            let dropped = if at == 0 { rejected } else { step.dropped.values().sum() };
            let name = if at == 0 { "usable lines" } else { step.filter.as_str() };
            table.add_row([name.into(), number(step.events), number(dropped), number(step.users), number(step.items)]);
            for (reason, count) in step.dropped.iter().filter(|_| step.dropped.len() > 1) {
                table.add_row([format!("  {reason}"), String::new(), number(*count), String::new(), String::new()]);
            }
        }
        to_the_right(&mut table, 1);
        table
    }

    fn statistics_table(&self) -> Table {
        let found = &self.statistics;
        let mut rows: Vec<(&str, String, Option<String>)> = vec![
            ("users", number(found.users), self.table1.as_ref().map(|row| number(row.users))),
            ("items", number(found.items), self.table1.as_ref().map(|row| number(row.items))),
            ("events", number(found.events), self.table1.as_ref().map(|row| number(row.events))),
            (
                "average length",
                format!("{:.2}", found.average_length),
                self.table1.as_ref().map(|row| format!("{:.2}", row.average_length)),
            ),
        ];
        let mut more = |name, value| rows.push((name, value, None));
        more("shortest, median, longest", format!("{}, {}, {}", found.shortest, found.median_length, found.longest));
        more("density", format!("{:.4} %", found.density * 100.0));
        more("events ordered by input", number(found.ties));
        more("titles with markup removed", number(self.items.cleaned_titles));
        more("items with markup removed from texts", number(self.items.cleaned_texts));
        more("items without text", number(found.items_without_text));
        more("items without image", number(found.items_without_image));
        more("items with image addresses only", number(found.items_with_addresses_only));
        more("sentences per item", format!("{:.2}", found.sentences.mean));
        more("images per item", format!("{:.2}", found.images.mean));
        let paper = self.table1.as_ref().map(|row| format!("paper ({})", row.name));
        let mut table = match &paper {
            Some(paper) => new_table(["", self.dataset.as_str(), paper.as_str()]),
            None => new_table(["", self.dataset.as_str()]),
        };
        for (name, value, printed) in rows {
            let mut row = vec![name.to_owned(), value];
            row.extend(paper.is_some().then(|| printed.unwrap_or_default()));
            table.add_row(row);
        }
        to_the_right(&mut table, 1);
        table
    }
}

fn reject_table(rejected: &Rejects) -> Table {
    let mut table = new_table(["reason", "number", "first places"]);
    for (reason, rejected) in &rejected.0 {
        let places = rejected.examples.iter().map(|example| {
            let name = example.file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            format!("{name}:{}: {}", example.line, example.found)
        });
        let places = places.collect::<Vec<_>>().join("\n");
        table.add_row([
            Cell::new(reason),
            Cell::new(number(rejected.count)).set_alignment(CellAlignment::Right),
            Cell::new(places),
        ]);
    }
    table
}

fn new_table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(STYLE).set_header(header);
    table
}

fn to_the_right(table: &mut Table, from: usize) {
    table.column_iter_mut().skip(from).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
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

    #[test]
    fn numbers_have_separators() {
        assert_eq!([0, 999, 1000, 1_234_567].map(number), ["0", "999", "1,000", "1,234,567"]);
    }

    #[test]
    fn spreads_count_items_by_number() {
        let spread = LengthSpread::of([0, 2, 2, 1].into_iter());
        assert_eq!((spread.mean, spread.items), (1.25, vec![1, 1, 2]));
        assert_eq!(LengthSpread::of(std::iter::empty()), LengthSpread::default());
    }
}
