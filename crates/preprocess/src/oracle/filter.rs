//! Drops repeated events, incomplete items, and small users and items, and orders what is left.

use std::collections::BTreeMap;

use mp4sr_artifact::FilterStep;
use mp4sr_pipeline::config::Repeated;
use rayon::prelude::*;

use super::kcore::peel;
use crate::core::Bounds;

/// Events in the order of user, time, input; `keep` marks those that no filter has dropped.
#[derive(Debug, Default)]
pub struct Ordered {
    pub users: Vec<u32>,
    pub items: Vec<u32>,
    pub times: Vec<i64>,
    pub keep: Vec<bool>,
}

/// Orders events by user, time and input and marks repeats as not kept.
///
/// Users are numbers without gaps, so one counting pass finds every user's index, and only single sequences are left to sort. A library's
/// sort of the table took three times the memory.
pub fn order(mut users: Vec<u32>, items: Vec<u32>, times: Vec<i64>, repeated: Repeated) -> Ordered {
    let counts = counts(&users);
    let mut rows = rows_by_user(&users, &counts);
    let mut keep = vec![true; rows.len()];
    let sequences = split(&mut rows, &counts).into_par_iter().zip(split(&mut keep, &counts));
    sequences.for_each_init(Vec::new, |indices, (rows, keep)| {
        rows.sort_unstable_by_key(|&row| (times[row as usize], row));
        if repeated != Repeated::All {
            drop_repeats(|index| items[rows[index as usize] as usize], repeated == Repeated::Last, keep, indices);
        }
    });
    let mut at = 0;
    for (user, &count) in counts.iter().enumerate() {
        users[at..at + count].fill(user as u32);
        at += count;
    }
    Ordered { users, items: gather(items, &rows), times: gather(times, &rows), keep }
}

#[allow(clippy::needless_pass_by_value, reason = "frees the column: memory holds one more column, not two")]
fn gather<T: Copy>(column: Vec<T>, rows: &[u32]) -> Vec<T> {
    rows.iter().map(|&row| column[row as usize]).collect()
}

fn counts(users: &[u32]) -> Vec<usize> {
    let mut counts = vec![0; users.iter().max().map_or(0, |&max| max as usize + 1)];
    users.iter().for_each(|&user| counts[user as usize] += 1);
    counts
}

/// The rows of user 0 in input order, then those of user 1, ...
fn rows_by_user(users: &[u32], counts: &[usize]) -> Vec<u32> {
    let mut next: Vec<usize> = counts
        .iter()
        .scan(0, |sum, &count| {
            *sum += count;
            Some(*sum - count)
        })
        .collect();
    let mut rows = vec![0; users.len()];
    for (row, &user) in users.iter().enumerate() {
        rows[next[user as usize]] = row as u32;
        next[user as usize] += 1;
    }
    rows
}

fn split<'a, T>(mut rest: &'a mut [T], counts: &[usize]) -> Vec<&'a mut [T]> {
    let part = |&count: &usize| rest.split_off_mut(..count).unwrap_or_default();
    counts.iter().map(part).collect()
}

/// Keeps the first or the last of the indices of one sequence that hold the same item. `indices` is scratch.
fn drop_repeats(item_at: impl Fn(u32) -> u32, last: bool, keep: &mut [bool], indices: &mut Vec<u32>) {
    indices.clear();
    indices.extend(0..keep.len() as u32);
    indices.sort_unstable_by_key(|&index| (item_at(index), index));
    for pair in indices.windows(2).filter(|pair| item_at(pair[0]) == item_at(pair[1])) {
        keep[pair[usize::from(!last)] as usize] = false;
    }
}

impl Ordered {
    /// Drops the events of the items that are not marked.
    pub fn drop_items(&mut self, keep: &[bool]) -> u64 {
        let mut dropped = 0;
        for (kept, &item) in self.keep.iter_mut().zip(&self.items) {
            if *kept && !keep[item as usize] {
                *kept = false;
                dropped += 1;
            }
        }
        dropped
    }

    /// Drops all but the last `count` kept events of each user.
    pub fn keep_recent(&mut self, count: u32) -> u64 {
        let (mut user, mut later, mut dropped) = (None, 0, 0);
        for at in (0..self.keep.len()).rev() {
            if !self.keep[at] {
                continue;
            }
            if user != Some(self.users[at]) {
                (user, later) = (Some(self.users[at]), 0);
            }
            if later == count {
                self.keep[at] = false;
                dropped += 1;
            } else {
                later += 1;
            }
        }
        dropped
    }

    /// Drops small users and items until nothing changes.
    pub fn core(&mut self, bounds: Bounds) -> BTreeMap<String, u64> {
        let peeled = peel(&self.users, &self.items, &mut self.keep, bounds);
        BTreeMap::from([
            (format!("user below {} events", bounds.user), peeled.by_user),
            (format!("item below {} events", bounds.item), peeled.by_item),
        ])
        .into_iter()
        .filter(|(_, count)| *count > 0)
        .collect()
    }

    /// The number of events left.
    pub fn kept(&self) -> u64 {
        self.keep.iter().filter(|kept| **kept).count() as u64
    }

    /// Which of the first `count` ids are left.
    pub fn marks(&self, ids: &[u32], count: usize) -> Vec<bool> {
        let mut marks = vec![false; count];
        ids.iter().zip(&self.keep).filter(|(_, kept)| **kept).for_each(|(&id, _)| marks[id as usize] = true);
        marks
    }

    /// The state after a filter.
    pub fn step(&self, filter: &str, dropped: BTreeMap<String, u64>) -> FilterStep {
        let distinct = |ids: &[u32]| {
            let count = ids.iter().max().map_or(0, |&max| max as usize + 1);
            self.marks(ids, count).into_iter().filter(|mark| *mark).count() as u64
        };
        FilterStep {
            filter: filter.to_owned(),
            dropped,
            events: self.kept(),
            users: distinct(&self.users),
            items: distinct(&self.items),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Event = (u32, u32, i64);

    fn ordered(events: &[Event], repeated: Repeated) -> Vec<Event> {
        let users = events.iter().map(|e| e.0).collect();
        let items = events.iter().map(|e| e.1).collect();
        let times = events.iter().map(|e| e.2).collect();
        let ordered = order(users, items, times, repeated);
        (0..ordered.users.len())
            .filter(|&at| ordered.keep[at])
            .map(|at| (ordered.users[at], ordered.items[at], ordered.times[at]))
            .collect()
    }

    #[test]
    fn the_last_of_equal_times_is_the_later_line() {
        // User 0 has three events with item 1, two of them at time 5.
        let events = [(0, 1, 5), (0, 2, 5), (0, 1, 3), (0, 1, 5), (1, 1, 0)];
        assert_eq!(ordered(&events, Repeated::Last), [(0, 2, 5), (0, 1, 5), (1, 1, 0)]);
        assert_eq!(ordered(&events, Repeated::First), [(0, 1, 3), (0, 2, 5), (1, 1, 0)]);
        assert_eq!(ordered(&events, Repeated::All), [(0, 1, 3), (0, 1, 5), (0, 2, 5), (0, 1, 5), (1, 1, 0)]);
    }

    /// Sorts stably, then decides by comparing every pair.
    fn naive(events: &[Event], repeated: Repeated) -> Vec<Event> {
        let mut sorted = events.to_vec();
        sorted.sort_by_key(|e| (e.0, e.2));
        let same = |a: &Event, b: &Event| (a.0, a.1) == (b.0, b.1);
        let is_kept = |at: &usize| match repeated {
            Repeated::All => true,
            Repeated::First => !sorted[..*at].iter().any(|e| same(e, &sorted[*at])),
            Repeated::Last => !sorted[*at + 1..].iter().any(|e| same(e, &sorted[*at])),
        };
        (0..sorted.len()).filter(is_kept).map(|at| sorted[at]).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn order_and_repeats_equal_those_of_a_naive_filter(
            events in proptest::collection::vec((0..4_u32, 0..5_u32, 0..6_i64), 0..50)
        ) {
            for repeated in [Repeated::Last, Repeated::First, Repeated::All] {
                prop_assert_eq!(ordered(&events, repeated), naive(&events, repeated));
            }
        }

        #[test]
        fn dropping_items_before_or_after_a_core_gives_the_same_core(
            events in proptest::collection::vec((0..6_u32, 0..6_u32, 0..3_i64), 0..50),
            complete in proptest::collection::vec(any::<bool>(), 6),
        ) {
            let bounds = Bounds { user: 2, item: 2 };
            let make = || {
                let columns = |f: fn(&Event) -> u32| events.iter().map(f).collect::<Vec<_>>();
                let times = events.iter().map(|e| e.2).collect();
                order(columns(|e| e.0), columns(|e| e.1), times, Repeated::Last)
            };
            let mut before = make();
            before.drop_items(&complete);
            before.core(bounds);
            let mut after = make();
            after.core(bounds);
            after.drop_items(&complete);
            after.core(bounds);
            prop_assert_eq!(before.keep, after.keep);
        }
    }
}
