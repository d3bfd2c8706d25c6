//! What is left after the filters, numbered and written.

use std::path::PathBuf;

use mp4sr_artifact::{Items, Layout, Sequences, Users};

use polars::prelude::{DataFrame, PolarsResult};

use crate::Result;
use crate::filters::{ITEM, TIME, USER};
use crate::source::{Catalogue, Ids};
use crate::split::SplitRule;

/// The dataset as the other stages read it.
#[derive(Debug)]
pub struct Dataset {
    pub sequences: Sequences,
    pub items: Items,
    pub users: Users,
}

impl Dataset {
    /// Numbers the users and items that are left from 1, in the order of their first line in the raw files. The events are
    /// ordered; `units` of their times make one of what is stored.
    pub fn new(
        events: &DataFrame,
        units: i64,
        split: &SplitRule,
        user_ids: Ids,
        item_ids: Ids,
        mut catalogue: Catalogue,
    ) -> Result<Self> {
        let user_marks = marks(events, USER, user_ids.len())?;
        let item_marks = marks(events, ITEM, item_ids.len())?;
        let left = |ids: Ids, marks: &[bool]| {
            ids.into_iter().zip(marks).filter(|(_, mark)| **mark).map(|(id, _)| id.into_string()).collect::<Vec<_>>()
        };
        let users = Users { ids: left(user_ids, &user_marks) };
        let mut items = Items { ids: left(item_ids, &item_marks), ..Items::default() };
        for item in (0..item_marks.len()).filter(|&item| item_marks[item]) {
            let record = catalogue.records.remove(&(item as u32)).unwrap_or_default();
            items.titles.push(record.title);
            items.sentences.push(record.sentences);
            items.images.push(record.images);
        }
        let item_numbers = numbers(&item_marks);
        let mut sequences = Sequences {
            offsets: Vec::with_capacity(users.ids.len() + 1),
            items: Vec::with_capacity(events.height()),
            times: Vec::with_capacity(events.height()),
            item_hash: items.hash(),
            item_count: items.len(),
            user_hash: Some(users.hash()),
            parts: None,
        };
        let mut current = None;
        for (user, item, time) in rows(events)? {
            if current != Some(user) {
                current = Some(user);
                sequences.offsets.push(sequences.items.len() as i64);
            }
            sequences.items.push(item_numbers[item as usize]);
            sequences.times.push(time.div_euclid(units));
        }
        sequences.offsets.push(sequences.items.len() as i64);
        sequences.parts = split.parts(events)?;
        Ok(Self { sequences, items, users })
    }

    /// Writes the three files.
    pub fn write(&self, layout: &Layout, settings: &serde_json::Value) -> Result<Vec<PathBuf>> {
        self.items.write(&layout.items())?;
        self.users.write(&layout.users())?;
        self.sequences.write(&layout.sequences(), settings.clone())?;
        Ok(vec![layout.items(), layout.users(), layout.sequences()])
    }
}

/// User, item and time of each event.
pub fn rows(events: &DataFrame) -> PolarsResult<impl Iterator<Item = (u32, u32, i64)> + '_> {
    let users = events.column(USER)?.u32()?.into_no_null_iter();
    let items = events.column(ITEM)?.u32()?.into_no_null_iter();
    let times = events.column(TIME)?.i64()?.into_no_null_iter();
    Ok(users.zip(items).zip(times).map(|((user, item), time)| (user, item, time)))
}

/// Which of the users or items up to `count` have an event.
pub fn marks(events: &DataFrame, key: &str, count: usize) -> Result<Vec<bool>> {
    let mut marks = vec![false; count];
    events.column(key)?.u32()?.into_no_null_iter().for_each(|id| marks[id as usize] = true);
    Ok(marks)
}

/// From 1, for those that are marked.
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
    use crate::source::ItemRecord;

    #[test]
    fn what_is_left_is_numbered_in_the_order_of_the_input() {
        let ids = |ids: &[&str]| ids.iter().map(|&id| id.into()).collect::<Ids>();
        let events = df!(USER => [1_u32, 1, 3], ITEM => [3_u32, 1, 1], TIME => [1500_i64, 1999, 0]).unwrap();
        let record = ItemRecord { title: "T".into(), sentences: vec!["S".into()], images: vec!["i.jpg".into()] };
        let catalogue = Catalogue { records: HashMap::from([(3, record)]), is_complete: Vec::new() };
        let (users, items) = (ids(&["a", "b", "c", "d"]), ids(&["p", "q", "r", "s"]));
        let dataset = Dataset::new(&events, 1000, &SplitRule::LeaveOneOut, users, items, catalogue).unwrap();
        assert_eq!(dataset.users.ids, ["b", "d"]);
        assert_eq!(dataset.items.ids, ["q", "s"]);
        assert_eq!(dataset.items.titles, ["", "T"]);
        assert_eq!(dataset.sequences.offsets, [0, 2, 3]);
        assert_eq!(dataset.sequences.items, [2, 1, 1]);
        assert_eq!(dataset.sequences.times, [1, 1, 0]);
        assert_eq!(dataset.sequences.item_count, 2);
    }
}
