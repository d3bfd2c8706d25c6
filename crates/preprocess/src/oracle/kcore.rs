//! The largest part of the data in which every user and every item has enough events.

use crate::core::Bounds;

/// The events that peeling dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Peeled {
    /// Events of users that had too few when it was their turn.
    pub by_user: u64,
    /// Events of items that had too few when it was their turn.
    pub by_item: u64,
    /// The number of rounds, including the last one, which dropped nothing.
    pub rounds: u32,
}

/// Marks the events outside the core as not kept, in rounds: first those of users below their bound, then those of items, until nothing
/// changes. The core is the same in any order, but the bound that a dropped event is attributed to is not, so the order is fixed.
///
/// Ids are dense, so one count per id and one scan per round are far cheaper than a grouping query per round.
pub fn peel(users: &[u32], items: &[u32], keep: &mut [bool], bounds: Bounds) -> Peeled {
    let mut user_counts = counts(users, keep);
    let mut item_counts = counts(items, keep);
    let mut peeled = Peeled::default();
    loop {
        peeled.rounds += 1;
        // A sweep over small users drops all their events and so changes the count of no other user; likewise for items.
        let mut sweep = |of_users: bool| {
            let mut dropped = 0;
            for (at, kept) in keep.iter_mut().enumerate().filter(|(_, kept)| **kept) {
                let (user, item) = (&mut user_counts[users[at] as usize], &mut item_counts[items[at] as usize]);
                if if of_users { *user < bounds.user } else { *item < bounds.item } {
                    *kept = false;
                    *user -= 1;
                    *item -= 1;
                    dropped += 1;
                }
            }
            dropped
        };
        let (by_user, by_item) = (sweep(true), sweep(false));
        peeled.by_user += by_user;
        peeled.by_item += by_item;
        if by_user + by_item == 0 {
            return peeled;
        }
    }
}

fn counts(ids: &[u32], keep: &[bool]) -> Vec<u32> {
    let mut counts = vec![0; ids.iter().max().map_or(0, |&max| max as usize + 1)];
    for (&id, _) in ids.iter().zip(keep).filter(|(_, kept)| **kept) {
        counts[id as usize] += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Drops one user or item below its bound at a time and counts everything again.
    fn naive(events: &[(u32, u32)], bounds: Bounds) -> Vec<(u32, u32)> {
        let mut left = events.to_vec();
        loop {
            let few_user = |user| (left.iter().filter(|e| e.0 == user).count() as u32) < bounds.user;
            let few_item = |item| (left.iter().filter(|e| e.1 == item).count() as u32) < bounds.item;
            if let Some(&(user, _)) = left.iter().find(|e| few_user(e.0)) {
                left.retain(|e| e.0 != user);
            } else if let Some(&(_, item)) = left.iter().find(|e| few_item(e.1)) {
                left.retain(|e| e.1 != item);
            } else {
                return left;
            }
        }
    }

    fn peeled(events: &[(u32, u32)], bounds: Bounds) -> (Vec<(u32, u32)>, Peeled) {
        let (users, items): (Vec<u32>, Vec<u32>) = events.iter().copied().unzip();
        let mut keep = vec![true; events.len()];
        let peeled = peel(&users, &items, &mut keep, bounds);
        (events.iter().zip(keep).filter(|(_, kept)| *kept).map(|(event, _)| *event).collect(), peeled)
    }

    #[test]
    fn removing_one_small_item_removes_its_users_round_by_round() {
        // Item 2 has one event; without it user 1 has one; without user 1 item 1 has one.
        let events = [(0, 0), (0, 3), (1, 1), (1, 2), (2, 1), (2, 0), (3, 0), (3, 3)];
        let (left, peeled) = peeled(&events, Bounds { user: 2, item: 2 });
        assert_eq!(left, [(0, 0), (0, 3), (3, 0), (3, 3)]);
        assert_eq!(peeled, Peeled { by_user: 2, by_item: 2, rounds: 4 });
    }

    #[test]
    fn bounds_of_zero_and_one_drop_nothing() {
        for bound in [0, 1] {
            let (left, peeled) = peeled(&[(0, 0), (5, 7)], Bounds { user: bound, item: bound });
            assert_eq!((left.len(), peeled.rounds), (2, 1));
        }
        assert_eq!(peeled(&[], Bounds { user: 5, item: 5 }).0, []);
    }

    proptest! {
        #[test]
        fn the_core_equals_the_naive_one_and_is_a_fixed_point(
            events in proptest::collection::vec((0..8_u32, 0..8_u32), 0..60), user in 0..5_u32, item in 0..5_u32,
        ) {
            let bounds = Bounds { user, item };
            let (left, counts) = peeled(&events, bounds);
            prop_assert_eq!(&left, &naive(&events, bounds));
            prop_assert_eq!(left.len() as u64 + counts.by_user + counts.by_item, events.len() as u64);
            let (again, counts) = peeled(&left, bounds);
            prop_assert_eq!(again, left);
            prop_assert_eq!(counts.rounds, 1);
        }
    }
}
