//! What is left after the filters, numbered and written.

use std::path::PathBuf;

use mp4sr_artifact::{Items, Layout, Sequences, Users};

use crate::Result;
use crate::filter::Ordered;
use crate::source::{Catalogue, Ids};

/// The dataset as the other stages read it.
#[derive(Debug)]
pub struct Dataset {
    pub sequences: Sequences,
    pub items: Items,
    pub users: Users,
}

impl Dataset {
    /// Numbers the users and items that are left from 1, in the order of their first line in the raw files. `units` of the
    /// events' times make one of what is stored.
    pub fn new(events: Ordered, units: i64, user_ids: Ids, item_ids: Ids, mut catalogue: Catalogue) -> Self {
        let user_marks = events.marks(&events.users, user_ids.len());
        let item_marks = events.marks(&events.items, item_ids.len());
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
            items.categories.push(record.categories);
            items.sounds.push(record.sounds);
        }
        let item_numbers = numbers(&item_marks);
        let mut sequences = Sequences {
            offsets: Vec::with_capacity(users.ids.len() + 1),
            items: Vec::with_capacity(events.kept() as usize),
            times: Vec::with_capacity(events.kept() as usize),
            item_hash: items.hash(),
            item_count: items.len(),
            user_hash: Some(users.hash()),
        };
        // The columns go as soon as they are copied.
        let Ordered { users: event_users, items: event_items, times, keep } = events;
        let mut current = None;
        for at in (0..event_users.len()).filter(|&at| keep[at]) {
            if current != Some(event_users[at]) {
                current = Some(event_users[at]);
                sequences.offsets.push(sequences.items.len() as i64);
            }
            sequences.items.push(item_numbers[event_items[at] as usize]);
            sequences.times.push(times[at].div_euclid(units));
        }
        sequences.offsets.push(sequences.items.len() as i64);
        Self { sequences, items, users }
    }

    /// Writes the three files.
    pub fn write(&self, layout: &Layout, settings: &serde_json::Value) -> Result<Vec<PathBuf>> {
        self.items.write(&layout.items())?;
        self.users.write(&layout.users())?;
        self.sequences.write(&layout.sequences(), settings.clone())?;
        Ok(vec![layout.items(), layout.users(), layout.sequences()])
    }
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

    use super::*;
    use crate::source::ItemRecord;

    #[test]
    fn what_is_left_is_numbered_in_the_order_of_the_input() {
        let ids = |ids: &[&str]| ids.iter().map(|&id| id.into()).collect::<Ids>();
        let events = Ordered {
            users: vec![0, 1, 1, 3, 3],
            items: vec![0, 3, 1, 1, 3],
            times: vec![7, 1500, 1999, 0, 1],
            keep: vec![false, true, true, true, false],
        };
        let record = ItemRecord {
            title: "T".into(),
            sentences: vec!["S".into()],
            images: vec!["i.jpg".into()],
            categories: vec!["C".into()],
            sounds: vec!["s.wav".into()],
        };
        let catalogue = Catalogue { records: HashMap::from([(3, record)]), is_complete: Vec::new() };
        let dataset = Dataset::new(events, 1000, ids(&["a", "b", "c", "d"]), ids(&["p", "q", "r", "s"]), catalogue);
        assert_eq!(dataset.users.ids, ["b", "d"]);
        assert_eq!(dataset.items.ids, ["q", "s"]);
        assert_eq!(dataset.items.titles, ["", "T"]);
        assert_eq!(dataset.items.categories, [vec![], vec!["C"]]);
        assert_eq!(dataset.items.sounds, [vec![], vec!["s.wav"]]);
        assert_eq!(dataset.sequences.offsets, [0, 2, 3]);
        assert_eq!(dataset.sequences.items, [2, 1, 1]);
        assert_eq!(dataset.sequences.times, [1, 1, 0]);
        assert_eq!(dataset.sequences.item_count, 2);
    }
}
