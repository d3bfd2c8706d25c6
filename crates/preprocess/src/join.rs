//! Checks whether the ids of interactions match those of the items' lines.

use std::collections::HashMap;
use std::path::Path;

use mp4sr_artifact::JoinShares;
use mp4sr_pipeline::config::Config;
use mp4sr_pipeline::text::quoted;

use crate::filters::{EVENTS, ITEM, frequency};
use crate::partitions::Partitions;
use crate::source::{ItemCatalogue, NumberedIds};
use crate::{Error, Result};

/// The share of events with a line below which ids are shown even if no cause is found.
const SUSPICIOUS: f64 = 0.5;

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
        return Ok(None);
    }
    let (interactions, items) = (files.interactions.display(), files.items.display());
    let why = match mismatch {
        Some(Mismatch { without_line, unused, line, cause: Some(cause) }) => format!(
            "{} of `{interactions}` has no line, and `{items}` has {} in line {line}: {cause}",
            quoted(&without_line),
            quoted(unused)
        ),
        Some(Mismatch { without_line, unused, line, cause: None }) => format!(
            "{} of `{interactions}` has no line, and {} in line {line} of `{items}` has no event; check that both files belong to one \
             dataset and that the id columns are correct",
            quoted(&without_line),
            quoted(unused)
        ),
        None => format!("`{items}` has no line for the others"),
    };
    let percent = 100.0 * shares.events_with_line;
    if below {
        return Err(Error::Setting(format!(
            "only {percent:.1} % of the events have an item with a line, but `preprocess.min_described` requires {:.1} %: {why}",
            100.0 * bound
        )));
    }
    Ok(Some(format!("{percent:.1} % of the events have an item with a line: {why}")))
}

struct Mismatch<'a> {
    without_line: String,
    unused: &'a str,
    line: u64,
    cause: Option<&'static str>,
}

impl<'a> Mismatch<'a> {
    /// An id of an event and an id of a line that were once equal, with the cause of their difference; otherwise the first of each, if there
    /// are any.
    fn find(catalogue: &'a ItemCatalogue, item_ids: &NumberedIds) -> Result<Option<Self>> {
        let unused = &catalogue.unused.0;
        if unused.is_empty() {
            return Ok(None);
        }
        let by_normal = CAUSES.map(|(_, normal)| {
            let mut by_normal: HashMap<String, usize> = HashMap::new();
            unused.iter().enumerate().for_each(|(at, (id, _))| _ = by_normal.entry(normal(id)).or_insert(at));
            by_normal
        });
        let mut first_without_line = None;
        // By cause: the first of the ids of lines that is equal to an id of an event without the difference, and that id.
        let mut equal: [Option<(usize, String)>; CAUSES.len()] = Default::default();
        let without_line: Vec<bool> = catalogue.has_line.iter().map(|has_line| !has_line).collect();
        item_ids.visit(&without_line, |_, id| {
            for (number, (_, normal)) in CAUSES.iter().enumerate() {
                let found = by_normal[number].get(&normal(id));
                if let Some(&at) = found.filter(|at| equal[number].as_ref().is_none_or(|(first, _)| *at < first)) {
                    equal[number] = Some((at, id.to_owned()));
                }
            }
            first_without_line.get_or_insert_with(|| id.to_owned());
        })?;
        let of = |at: usize, without_line: String, cause: Option<&'static str>| {
            let (unused, line) = &unused[at];
            Self { without_line, unused, line: *line, cause }
        };
        let caused = CAUSES.iter().zip(equal).find_map(|((cause, _), equal)| {
            let (at, without_line) = equal?;
            Some(of(at, without_line, Some(cause)))
        });
        Ok(caused.or_else(|| Some(of(0, first_without_line?, None))))
    }
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
                    assert_eq!((found.without_line.as_str(), found.unused, found.line), (event, line, 3));
                    assert!(found.cause.unwrap().contains(expected), "{event} {line}");
                }
                None => assert_eq!((found.unused, found.cause), ("other", None)),
            }
        }
    }
}
