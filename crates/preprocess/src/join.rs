//! Checks whether the ids of interactions match those of the items' lines.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use mp4sr_artifact::JoinShares;
use mp4sr_pipeline::config::{Config, Format, Missing};
use mp4sr_pipeline::text::quoted;

use crate::filters::{EVENTS, ITEM, frequency};
use crate::partitions::Partitions;
use crate::source::{ItemCatalogue, NumberedIds};
use crate::{Error, Result};

/// The share of events with a line below which ids are shown even if no cause is found.
const SUSPICIOUS: f64 = 0.5;

/// The share of the ids without a line that must be equal to ids with one, because few ids may resemble others by chance.
const MANY: f64 = 0.2;
/// The number of ids without a line that are compared with those that have one.
const COMPARED: usize = 100_000;

/// Why ids that were once equal may differ, and a function that removes this difference.
type Cause = (&'static str, fn(&str) -> String);

/// The known causes of such differences.
const CAUSES: [Cause; 4] = [
    ("spaces or quotation marks around ids are part of them in one of the files; remove them", |id| {
        id.trim().trim_matches(['"', '\'']).to_owned()
    }),
    ("the ids differ in letter case; use the same case", str::to_lowercase),
    (
        "one of the files has ids with a fraction, as pandas writes numbers in a column with missing values; write ids as text",
        |id| id.strip_suffix(".0").unwrap_or(id).to_owned(),
    ),
    ("leading zeros were lost in one of the files; write ids as text", |id| {
        let id = id.strip_suffix(".0").unwrap_or(id).trim_start_matches('0');
        id.to_owned()
    }),
];

/// Shares of the events within the core, and of their items.
pub fn shares(events: &Partitions, catalogue: &ItemCatalogue, used: u64, lines: u64) -> Result<Option<JoinShares>> {
    let mut counts = vec![0_u64; catalogue.has_line.len()];
    for part in events.iter() {
        let frequencies = part.query(|events| frequency(events, ITEM))?;
        let items = frequencies.column(ITEM)?.u32()?.into_no_null_iter();
        let numbers = frequencies.column(EVENTS)?.u32()?.into_no_null_iter();
        items.zip(numbers).for_each(|(item, number)| counts[item as usize] += u64::from(number));
    }
    let total: u64 = counts.iter().sum();
    if total == 0 {
        return Ok(None);
    }
    let present: Vec<usize> = (0..counts.len()).filter(|&item| counts[item] > 0).collect();
    let with_line: u64 = present.iter().filter(|&&item| catalogue.has_line[item]).map(|&item| counts[item]).sum();
    let share = |part: u64, of: u64| if of == 0 { 0.0 } else { part as f64 / of as f64 };
    let items = present.len() as u64;
    let of_items =
        |test: &dyn Fn(usize) -> bool| share(present.iter().filter(|&&item| test(item)).count() as u64, items);
    let record = |item: usize| catalogue.records.get(&(item as u32));
    Ok(Some(JoinShares {
        events_with_line: share(with_line, total),
        items_with_line: of_items(&|item| catalogue.has_line[item]),
        lines_used: share(used, lines),
        items_with_title: of_items(&|item| record(item).is_some_and(|record| !record.title.is_empty())),
        items_with_text: of_items(&|item| record(item).is_some_and(|record| !record.sentences.is_empty())),
        items_with_image: of_items(&|item| record(item).is_some_and(|record| !record.images.is_empty())),
    }))
}

/// Describes the shares in words.
pub fn described(shares: &JoinShares) -> String {
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    format!(
        "{} of the events have an item with a line, {} of the lines have an item with events; of the items, {} have a title, \
         {} a text, {} an image",
        percent(shares.events_with_line),
        percent(shares.lines_used),
        percent(shares.items_with_title),
        percent(shares.items_with_text),
        percent(shares.items_with_image)
    )
}

/// The files that messages name.
#[derive(Clone, Copy, Debug)]
pub struct JoinedFiles<'a> {
    /// The first file of interactions.
    pub interactions: &'a Path,
    /// The first file of items.
    pub items: &'a Path,
}

/// The columns whose ids are joined, if the pipeline names them.
fn id_columns(config: &Config) -> String {
    let columns = &config.source.columns;
    if config.source.format == Format::Tabular {
        format!(", `{}` and `{}`,", columns.item, columns.item_id)
    } else {
        String::new()
    }
}

/// Returns an error if too few events have an item with a line, and a warning if many have none or if the cause can be found.
pub fn judge(
    config: &Config,
    shares: &JoinShares,
    catalogue: &ItemCatalogue,
    item_ids: &NumberedIds,
    files: JoinedFiles<'_>,
) -> Result<Option<String>> {
    let bound = config.preprocess.min_described;
    let below = shares.events_with_line < bound;
    let mismatch = Mismatch::find(catalogue, item_ids)?;
    let is_explained = mismatch.as_ref().is_some_and(|mismatch| mismatch.cause.is_some());
    if !is_explained && shares.events_with_line >= SUSPICIOUS && !below {
        return Ok(undescribed(config, shares));
    }
    let (interactions, items) = (files.interactions.display(), files.items.display());
    let among_events = mismatch.as_ref().is_some_and(|mismatch| mismatch.line.is_none());
    let why = match mismatch {
        Some(Mismatch { without_line, other, line: Some(line), cause: Some(cause) }) => format!(
            "{} of `{interactions}` has no line, and `{items}` has {} in line {line}: {cause}",
            quoted(&without_line),
            quoted(&other)
        ),
        Some(Mismatch { without_line, other, line: None, cause: Some(cause) }) => format!(
            "{} has no line, and {}, which also has events, has one in `{items}`: {cause}",
            quoted(&without_line),
            quoted(&other)
        ),
        Some(Mismatch { without_line, other, line: Some(line), cause: None }) => format!(
            "{} of `{interactions}` has no line, and {} in line {line} of `{items}` has no event; check that both files belong to one \
             dataset and that the id columns{} are correct",
            quoted(&without_line),
            quoted(&other),
            id_columns(config)
        ),
        _ => format!("`{items}` has no line for the others"),
    };
    let percent = 100.0 * shares.events_with_line;
    if below {
        return Err(Error::Setting(format!(
            "only {percent:.1} % of the events have an item with a line, but `preprocess.min_described` requires {:.1} %: {why}",
            100.0 * bound
        )));
    }
    if among_events {
        return Ok(Some(format!("some items are written in two ways: {why}")));
    }
    Ok(Some(format!("{percent:.1} % of the events have an item with a line: {why}")))
}

/// A warning about kept items without a line, such as those that have left the catalogue.
fn undescribed(config: &Config, shares: &JoinShares) -> Option<String> {
    let are_kept = matches!(config.preprocess.missing, None | Some(Missing::Keep));
    (are_kept && shares.items_with_line < 1.0).then(|| {
        let percent = 100.0 * (1.0 - shares.items_with_line);
        let share = if percent < 0.1 { "less than 0.1 %".to_owned() } else { format!("{percent:.1} %") };
        format!(
            "{share} of the items with events have no line in the items files, so they may be recommended without a title or a text; if \
             they have left the catalogue, drop them with `preprocess.missing = \"drop_undescribed\"`"
        )
    })
}

struct Mismatch {
    /// An id of an event without a line.
    without_line: String,
    /// An id of a line.
    other: String,
    /// The number of the line; `None` if it has events of its own.
    line: Option<u64>,
    cause: Option<&'static str>,
}

/// Ids by their normal form under each of the [`CAUSES`]; of ids with the same form, the first.
struct NormalIds([HashMap<String, (usize, String)>; CAUSES.len()]);

impl NormalIds {
    fn new() -> Self {
        Self(Default::default())
    }

    fn add(&mut self, at: usize, id: &str) {
        for ((_, normal), ids) in CAUSES.iter().zip(&mut self.0) {
            ids.entry(normal(id)).or_insert_with(|| (at, id.to_owned()));
        }
    }

    /// By cause: the id that is equal to this one without the difference.
    fn equal<'n>(&'n self, id: &str) -> impl Iterator<Item = Option<&'n (usize, String)>> {
        CAUSES.iter().zip(&self.0).map(move |((_, normal), ids)| ids.get(&normal(id)))
    }
}

impl Mismatch {
    /// An id of an event and an id of a line that were once equal, with the cause of their difference; otherwise the first of each, if there
    /// are any.
    fn find(catalogue: &ItemCatalogue, item_ids: &NumberedIds) -> Result<Option<Self>> {
        let without_line: Vec<bool> = catalogue.has_line.iter().map(|has_line| !has_line).collect();
        if !without_line.contains(&true) {
            return Ok(None);
        }
        let unused = &catalogue.unused.0;
        let mut of_lines = NormalIds::new();
        unused.iter().enumerate().for_each(|(at, (id, _))| of_lines.add(at, id));
        let mut first_without_line = None;
        // By cause: the first of the ids of lines that is equal to an id of an event without the difference, and that id.
        let mut found: [Option<(usize, String)>; CAUSES.len()] = Default::default();
        item_ids.visit(&without_line, |_, id| {
            for (found, equal) in found.iter_mut().zip(of_lines.equal(id)) {
                if let Some((at, _)) = equal.filter(|(at, _)| found.as_ref().is_none_or(|(first, _)| at < first)) {
                    *found = Some((*at, id.to_owned()));
                }
            }
            first_without_line.get_or_insert_with(|| id.to_owned());
        })?;
        let of_line = |at: usize, without_line: String, cause: Option<&'static str>| {
            let (other, line) = &unused[at];
            Self { without_line, other: other.to_string(), line: Some(*line), cause }
        };
        let caused = CAUSES.iter().zip(found).find_map(|((cause, _), found)| {
            let (at, without_line) = found?;
            Some(of_line(at, without_line, Some(cause)))
        });
        if caused.is_some() {
            return Ok(caused);
        }
        let among_events = Self::among_events(catalogue, item_ids, &without_line)?;
        Ok(among_events.or_else(|| unused.first().and_then(|_| Some(of_line(0, first_without_line?, None)))))
    }

    /// Finds an id that has events and no line in the files of items, and that resembles an id with a line: the two differ only by one of the
    /// [`CAUSES`]. If many ids do, the files of interactions write the same items in two ways; otherwise returns nothing.
    fn among_events(catalogue: &ItemCatalogue, item_ids: &NumberedIds, without_line: &[bool]) -> Result<Option<Self>> {
        let (mut of_events, mut count) = (NormalIds::new(), 0);
        item_ids.visit(without_line, |_, id| {
            if count < COMPARED {
                of_events.add(count, id);
                count += 1;
            }
        })?;
        let mut found: [Resembling; CAUSES.len()] = Default::default();
        item_ids.visit(&catalogue.has_line, |_, id| {
            for (found, equal) in found.iter_mut().zip(of_events.equal(id)) {
                if let Some((at, without_line)) = equal {
                    found.ids.insert(*at);
                    found.first.get_or_insert_with(|| (without_line.clone(), id.to_owned()));
                }
            }
        })?;
        Ok(CAUSES.iter().zip(found).find_map(|((cause, _), Resembling { ids, first })| {
            let (without_line, other) = first.filter(|_| ids.len() as f64 >= MANY * count as f64)?;
            Some(Self { without_line, other, line: None, cause: Some(cause) })
        }))
    }
}

/// For one cause: which ids without a line resemble an id with a line, and the first such pair.
#[derive(Default)]
struct Resembling {
    ids: HashSet<usize>,
    first: Option<(String, String)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_of_ids_that_differ_is_found() {
        for (event, line, expected) in [
            ("0108775015", "108775015", Some("leading zeros")),
            ("12", "12.0", Some("ids with a fraction")),
            ("012", "12.0", Some("leading zeros")),
            ("B01a", "B01A", Some("letter case")),
            ("7", " 7", Some("spaces")),
            ("7", "\"7\"", Some("spaces or quotation marks")),
            ("7", "8", None),
        ] {
            let item_ids: NumberedIds = [event].into_iter().map(Into::into).collect();
            let mut catalogue = ItemCatalogue { has_line: vec![false], ..ItemCatalogue::default() };
            catalogue.unused.push("other", 2);
            catalogue.unused.push(line, 3);
            let found = Mismatch::find(&catalogue, &item_ids).unwrap().unwrap();
            match expected {
                Some(expected) => {
                    assert_eq!((found.without_line.as_str(), found.other.as_str()), (event, line));
                    assert_eq!(found.line, Some(3));
                    assert!(found.cause.unwrap().contains(expected), "{event} {line}");
                }
                None => assert_eq!((found.other.as_str(), found.cause), ("other", None)),
            }
        }
    }

    #[test]
    fn items_that_are_written_in_two_ways_are_found_without_an_unused_line() {
        let find = |ids: &[&str], has_line: &[bool]| {
            let item_ids: NumberedIds = ids.iter().map(|&id| id.into()).collect();
            let catalogue = ItemCatalogue { has_line: has_line.to_vec(), ..ItemCatalogue::default() };
            Mismatch::find(&catalogue, &item_ids).unwrap()
        };
        let found = find(&["0032", "32", "7"], &[true, false, true]).unwrap();
        assert_eq!((found.without_line.as_str(), found.other.as_str(), found.line), ("32", "0032", None));
        assert!(found.cause.unwrap().contains("leading zeros"));
        assert!(find(&["0032", "32"], &[true, true]).is_none());
        // One of six ids resembles another by chance.
        let other = find(&["aB", "ab", "c", "d", "e", "f", "g"], &[true, false, false, false, false, false, false]);
        assert!(other.is_none());
    }
}
