//! Numbers and writes the users, items and events that are left after the filters.

use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use mp4sr_artifact::{Items, Layout, SequenceParts, Sequences, TimeKind, Users};
use mp4sr_pipeline::config::ItemOrder;

use polars::prelude::{DataFrame, PolarsResult};

use crate::Result;
use crate::filters::{EVENTS, ITEM, TIME, USER, frequency};
use crate::partitions::Partitions;
use crate::source::{EARLIEST, ItemCatalogue, NumberedIds, RawItem};
use crate::split::SplitRule;
use crate::window::TimeScale;

/// The dataset as the other stages read it.
#[derive(Debug)]
pub struct Dataset {
    pub sequences: Sequences,
    pub items: Items,
    pub users: Users,
}

/// Which items are numbered, and in which order.
#[derive(Clone, Copy, Debug)]
pub struct ItemNumbering {
    /// Whether items without events follow the others.
    pub keep_others: bool,
    /// What decides the numbers of items with events.
    pub order: ItemOrder,
}

impl ItemNumbering {
    /// The marked items in the order of their numbers.
    fn order(self, marks: &[bool], catalogue: &ItemCatalogue) -> Vec<u32> {
        let by_events = (0..marks.len() as u32).filter(|&item| marks[item as usize]);
        match self.order {
            ItemOrder::Interactions => by_events.collect(),
            ItemOrder::Items => {
                let with_line = catalogue.line_order.iter().copied().filter(|&item| marks[item as usize]);
                with_line.chain(by_events.filter(|&item| !catalogue.has_line[item as usize])).collect()
            }
        }
    }
}

impl Dataset {
    /// Numbers the users and items that are left from 1: users in the order of their first line in the raw files, items as `numbering`
    /// says. The events must be ordered, and `scale` describes their times.
    pub fn new(
        events: &Partitions,
        scale: TimeScale,
        split: &SplitRule,
        user_ids: NumberedIds,
        item_ids: NumberedIds,
        mut catalogue: ItemCatalogue,
        numbering: ItemNumbering,
    ) -> Result<Self> {
        let lengths = lengths(events, user_ids.len())?;
        let user_marks: Vec<bool> = lengths.iter().map(|&length| length > 0).collect();
        let item_marks = events.item_marks(item_ids.len())?;
        let users = Users { ids: user_ids.names_of(&user_marks)? };
        let others = if numbering.keep_others {
            without_events(&item_marks, &item_ids, &mut catalogue, numbering.order)?
        } else {
            Vec::new()
        };
        let order = numbering.order(&item_marks, &catalogue);
        let mut names = item_ids.names_of(&item_marks)?;
        let name_at = numbers(&item_marks);
        let mut items = Items::default();
        for &item in &order {
            items.ids.push(std::mem::take(&mut names[name_at[item as usize] as usize - 1]));
            push(&mut items, catalogue.records.remove(&item).unwrap_or_default());
        }
        drop(names);
        for (id, record) in others {
            items.ids.push(id);
            push(&mut items, record);
        }
        let mut item_numbers = vec![0; item_marks.len()];
        (1..).zip(&order).for_each(|(number, &item)| item_numbers[item as usize] = number);
        let count = events.count() as usize;
        let mut sequences = Sequences {
            offsets: offsets(&lengths),
            items: vec![0; count],
            times: vec![0; count],
            item_hash: items.hash(),
            item_count: items.len(),
            user_hash: Some(users.hash()),
            time_kind: scale.kind,
            parts: split
                .is_stored()
                .then(|| SequenceParts { validation: vec![0; users.ids.len()], test: vec![0; users.ids.len()] }),
        };
        drop(lengths);
        fill(&mut sequences, events, scale, split, &numbers(&user_marks), &item_numbers)?;
        split.check(&sequences)?;
        Ok(Self { sequences, items, users })
    }

    /// Writes the three files. Images and sounds are named relative to the folder `data`.
    pub fn write(&self, layout: &Layout, data: &Path, settings: &serde_json::Value) -> Result<Vec<PathBuf>> {
        self.items.write_relative(&layout.items(), data)?;
        self.users.write(&layout.users())?;
        self.sequences.write(&layout.sequences(), settings.clone())?;
        Ok(vec![layout.items(), layout.users(), layout.sequences()])
    }
}

/// Takes the items that have a line and no events out of the catalogue, with their ids: in the order of their lines, or those whose events
/// were all dropped in the order of their first events, followed by those that never had any.
fn without_events(
    item_marks: &[bool],
    item_ids: &NumberedIds,
    catalogue: &mut ItemCatalogue,
    order: ItemOrder,
) -> Result<Vec<(String, RawItem)>> {
    let is_dropped = item_marks.iter().zip(&catalogue.has_line).map(|(mark, has_line)| !mark && *has_line);
    let is_dropped: Vec<bool> = is_dropped.collect();
    let mut dropped = IndexMap::new();
    item_ids.visit(&is_dropped, |item, id| {
        let record = catalogue.records.remove(&(item as u32));
        dropped.extend(record.map(|record| (item as u32, (id.to_owned(), record))));
    })?;
    let never_seen = std::mem::take(&mut catalogue.others).into_iter().map(|(id, record)| (id.into_string(), record));
    if order == ItemOrder::Interactions {
        return Ok(dropped.into_values().chain(never_seen).collect());
    }
    let mut never_seen = never_seen.zip(&catalogue.before_others).peekable();
    let mut others = Vec::new();
    for (at, item) in catalogue.line_order.iter().enumerate() {
        while let Some((other, _)) = never_seen.next_if(|(_, before)| **before <= at) {
            others.push(other);
        }
        others.extend(dropped.swap_remove(item));
    }
    others.extend(never_seen.map(|(other, _)| other));
    Ok(others)
}

/// The beginnings of the sequences of the users who have events, and the end of the last.
fn offsets(lengths: &[u32]) -> Vec<i64> {
    let mut end = 0;
    let ends = lengths.iter().filter(|length| **length > 0).map(|&length| {
        end += i64::from(length);
        end
    });
    std::iter::once(0).chain(ends).collect()
}

/// Writes the items, times and parts of every user, whose numbers are given by raw user and item.
fn fill(
    sequences: &mut Sequences,
    events: &Partitions,
    scale: TimeScale,
    split: &SplitRule,
    user_numbers: &[u32],
    item_numbers: &[u32],
) -> Result<()> {
    let unit = 10_i64.pow(scale.digits.into());
    for part in events.iter() {
        let own = part.query(|events| events)?;
        let (mut current, mut at) = (None, 0);
        for (user, item, time) in rows(&own)? {
            if current != Some(user) {
                current = Some(user);
                at = sequences.offsets[user_numbers[user as usize] as usize - 1] as usize;
            }
            sequences.items[at] = item_numbers[item as usize];
            sequences.times[at] = time.div_euclid(unit);
            at += 1;
        }
        if let Some(parts) = &mut sequences.parts {
            split.starts(&own, |user, validation, test| {
                let row = user_numbers[user as usize] as usize - 1;
                (parts.validation[row], parts.test[row]) = (validation, test);
            })?;
        }
    }
    Ok(())
}

/// The warning that the times of some events may be missing: they are 0, and those of all other events are far from it.
pub fn zero_times(sequences: &Sequences) -> Option<String> {
    let zeros = sequences.times.iter().filter(|&&time| time == 0).count();
    let first = sequences.times.iter().copied().filter(|&time| time != 0).min()?;
    if zeros == 0 || sequences.time_kind == TimeKind::Positions || i128::from(first) < EARLIEST {
        return None;
    }
    let first = TimeScale::unknown(sequences.time_kind).shown(first);
    Some(format!(
        "{zeros} events have the time 0, which is 1970-01-01, and all others are from {first} on; if 0 means that a time is missing, set \
         `preprocess.since` to a date after 1970 to leave these events out"
    ))
}

fn push(items: &mut Items, record: RawItem) {
    items.titles.push(record.title);
    items.sentences.push(record.sentences);
    items.images.push(record.images);
    items.categories.push(record.categories);
    items.sounds.push(record.sounds);
}

/// User, item and time of each event.
pub fn rows(events: &DataFrame) -> PolarsResult<impl Iterator<Item = (u32, u32, i64)> + '_> {
    let users = events.column(USER)?.u32()?.into_no_null_iter();
    let items = events.column(ITEM)?.u32()?.into_no_null_iter();
    let times = events.column(TIME)?.i64()?.into_no_null_iter();
    Ok(users.zip(items).zip(times).map(|((user, item), time)| (user, item, time)))
}

/// The number of events of each of the first `count` users.
fn lengths(events: &Partitions, count: usize) -> Result<Vec<u32>> {
    let mut lengths = vec![0; count];
    for part in events.iter() {
        let frequencies = part.query(|events| frequency(events, USER))?;
        let users = frequencies.column(USER)?.u32()?.into_no_null_iter();
        let counts = frequencies.column(EVENTS)?.u32()?.into_no_null_iter();
        users.zip(counts).for_each(|(user, count)| lengths[user as usize] = count);
    }
    Ok(lengths)
}

/// Numbers the marked entries from 1; the others get 0.
fn numbers(marks: &[bool]) -> Vec<u32> {
    let mut next = 0;
    marks
        .iter()
        .map(|&mark| {
            next += u32::from(mark);
            if mark { next } else { 0 }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use polars::prelude::*;

    use super::*;

    #[test]
    fn a_time_of_zero_among_dates_is_pointed_out() {
        let of = |times: &[i64], time_kind| {
            zero_times(&Sequences {
                offsets: vec![0, times.len() as i64],
                items: vec![1; times.len()],
                times: times.to_vec(),
                item_hash: mp4sr_artifact::hash_ids(["a"]),
                item_count: 1,
                user_hash: None,
                time_kind,
                parts: None,
            })
        };
        let warning = of(&[0, 0, 1_262_304_000], TimeKind::Unstated).unwrap();
        assert!(warning.starts_with("2 events have the time 0"), "{warning}");
        assert!(warning.contains("others are from 2010-01-01T00:00:00Z on"), "{warning}");
        assert_eq!(of(&[0, 1, 2], TimeKind::Unstated), None);
        assert_eq!(of(&[0, 1_262_304_000], TimeKind::Positions), None);
        assert_eq!(of(&[0, 0], TimeKind::Unstated), None);
    }

    #[test]
    fn remaining_ids_are_numbered_in_the_order_of_the_input() {
        let ids = |ids: &[&str]| ids.iter().map(|&id| id.into()).collect::<NumberedIds>();
        let events = df!(USER => [1_u32, 1, 3], ITEM => [3_u32, 1, 1], TIME => [1500_i64, 1999, 0]).unwrap();
        let record = RawItem {
            title: "T".into(),
            sentences: vec!["S".into()],
            images: vec!["i.jpg".into()],
            categories: vec!["C".into()],
            sounds: vec!["s.wav".into()],
        };
        let of_number = |title: &str| RawItem { title: title.into(), ..RawItem::default() };
        let catalogue = || ItemCatalogue {
            records: HashMap::from([(3, record.clone()), (0, of_number("P"))]),
            has_line: vec![true, false, false, true],
            line_order: vec![3, 0],
            others: [("new".into(), of_number("New"))].into_iter().collect(),
            before_others: vec![1],
            ..ItemCatalogue::default()
        };
        let (users, items) = (|| ids(&["a", "b", "c", "d"]), || ids(&["p", "q", "r", "s"]));
        let events = Partitions::in_memory(events);
        let scale = TimeScale { kind: TimeKind::Unstated, unit: Some(3), digits: 3 };
        let numbered = |keep_others: bool, order: ItemOrder| {
            let (rule, numbering) = (SplitRule::LeaveOneOut, ItemNumbering { keep_others, order });
            Dataset::new(&events, scale, &rule, users(), items(), catalogue(), numbering).unwrap()
        };
        let made = |keep_others| numbered(keep_others, ItemOrder::Interactions);
        let with_others = made(true);
        assert_eq!(with_others.items.ids, ["q", "s", "p", "new"]);
        assert_eq!(with_others.items.titles, ["", "T", "P", "New"]);
        assert_eq!((with_others.sequences.items, with_others.sequences.item_count), (vec![2, 1, 1], 4));
        let dataset = made(false);
        assert_eq!(dataset.users.ids, ["b", "d"]);
        assert_eq!(dataset.items.ids, ["q", "s"]);
        assert_eq!(dataset.items.titles, ["", "T"]);
        assert_eq!(dataset.items.categories, [vec![], vec!["C"]]);
        assert_eq!(dataset.items.sounds, [vec![], vec!["s.wav"]]);
        assert_eq!(dataset.sequences.offsets, [0, 2, 3]);
        assert_eq!(dataset.sequences.items, [2, 1, 1]);
        assert_eq!(dataset.sequences.times, [1, 1, 0]);
        assert_eq!(dataset.sequences.item_count, 2);
        let by_lines = numbered(false, ItemOrder::Items);
        assert_eq!(
            (by_lines.items.ids, by_lines.items.titles),
            (vec!["s".into(), "q".into()], vec!["T".into(), String::new()])
        );
        assert_eq!(by_lines.sequences.items, [1, 2, 2]);
        assert_eq!(numbered(true, ItemOrder::Items).items.ids, ["s", "q", "new", "p"]);
    }
}
