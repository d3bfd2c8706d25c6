//! Divides users into groups by properties of their cases: the sequence length, the popularity and age of the target, and short histories.

use std::collections::BTreeMap;

use mp4sr_artifact::{Sequences, TimeKind};

use crate::{EvalCase, Split, training_items};

/// An item with fewer training events than this is cold (specification, section 8).
pub const COLD_EVENTS: u32 = 10;

/// The number of groups of a breakdown by quantiles.
const GROUPS: usize = 5;
/// The greatest history length that has its own group.
const SHORT: usize = 3;
/// If the file does not say what its times are, they are Unix times if the latest one is at least this value (in 1973), and positions
/// otherwise.
const CLOCK: i64 = 100_000_000;

/// Counts the training events of every item, `[I]`.
pub fn training_events(sequences: &Sequences) -> Vec<u32> {
    let mut events = vec![0; sequences.item_count];
    for user in 0..sequences.user_count() {
        training_items(sequences, user).iter().for_each(|&item| events[item as usize - 1] += 1);
    }
    events
}

/// The facts about a user's case that do not depend on a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserFacts {
    /// The row of the user, from 0.
    pub user: usize,
    /// The number of events in the whole sequence.
    pub length: u32,
    /// The number of events in the history.
    pub history: u32,
    /// The number of training events of the target.
    pub target_events: u32,
    /// The seconds from the first event of the target by any user to the user's own event; `None` if the data has no timestamps.
    pub target_age: Option<u64>,
}

impl UserFacts {
    /// Collects the facts of every user that has a case in the evaluated set.
    pub fn of(sequences: &Sequences, split: Split) -> Vec<Self> {
        let events = training_events(sequences);
        let first = first_times(sequences);
        let facts = |user: usize| {
            let sequence = sequences.of(user);
            let case = EvalCase::of(sequences, user, split)?;
            let at = sequences.offsets[user] as usize + case.history.len();
            let item = case.target as usize - 1;
            let age = |first: &Vec<i64>| u64::try_from(sequences.times[at] - first[item]).unwrap_or_default();
            Some(Self {
                user,
                length: sequence.len() as u32,
                history: case.history.len() as u32,
                target_events: events[item],
                target_age: first.as_ref().map(age),
            })
        };
        (0..sequences.user_count()).filter_map(facts).collect()
    }
}

/// Whether the times of events are Unix seconds, rather than positions.
pub fn has_clock(sequences: &Sequences) -> bool {
    match sequences.time_kind {
        TimeKind::Seconds => true,
        TimeKind::Positions => false,
        TimeKind::Unstated => sequences.times.iter().max().is_some_and(|&last| last >= CLOCK),
    }
}

/// The time of every item's first event; `None` if times are positions.
fn first_times(sequences: &Sequences) -> Option<Vec<i64>> {
    if !has_clock(sequences) {
        return None;
    }
    let mut first = vec![i64::MAX; sequences.item_count];
    for (&item, &time) in sequences.items.iter().zip(&sequences.times) {
        let own = &mut first[item as usize - 1];
        *own = time.min(*own);
    }
    Some(first)
}

/// One group of users.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserGroup {
    /// The name of the group: the values, or the range of values, that its users have in common.
    pub name: String,
    /// The rows of the users, ascending.
    pub users: Vec<usize>,
}

/// A way to divide users into groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Breakdown {
    /// The name of the property that users are divided by.
    pub name: &'static str,
    /// The groups; none of them is empty.
    pub groups: Vec<UserGroup>,
}

/// Divides the users with a case by the length of their sequence.
pub fn by_sequence_length(facts: &[UserFacts]) -> Vec<UserGroup> {
    quantiles(facts, |f| Some(u64::from(f.length)))
}

/// Returns all breakdowns of the users with a case. Breakdowns without users, such as that by the target's age without timestamps, are left
/// out.
pub fn breakdowns(facts: &[UserFacts]) -> Vec<Breakdown> {
    let days = |seconds: u64| seconds / 86_400;
    let last_cold = COLD_EVENTS - 1;
    let warm = || format!("{COLD_EVENTS} or more");
    let mut all = vec![
        Breakdown { name: "sequence length", groups: by_sequence_length(facts) },
        Breakdown {
            name: "cold target",
            groups: [
                (format!("fewer than {COLD_EVENTS} training events"), 0, last_cold),
                (warm(), COLD_EVENTS, u32::MAX),
            ]
            .map(|(name, low, high)| group(&name, facts, |f| (low..=high).contains(&f.target_events)))
            .into(),
        },
        Breakdown {
            name: "target's training events",
            groups: [
                ("none".to_owned(), 0, 0),
                (format!("1 to {last_cold}"), 1, last_cold),
                (warm(), COLD_EVENTS, u32::MAX),
            ]
            .map(|(name, low, high)| group(&name, facts, |f| (low..=high).contains(&f.target_events)))
            .into(),
        },
        Breakdown { name: "target's popularity", groups: quantiles(facts, |f| Some(u64::from(f.target_events))) },
        Breakdown { name: "target's age in days", groups: quantiles(facts, |f| f.target_age.map(days)) },
        Breakdown {
            name: "history",
            groups: (1..=SHORT as u32)
                .map(|n| group(&format!("{n} event{}", if n == 1 { "" } else { "s" }), facts, |f| f.history == n))
                .collect(),
        },
    ];
    all.iter_mut().for_each(|breakdown| breakdown.groups.retain(|group| !group.users.is_empty()));
    all.retain(|breakdown| !breakdown.groups.is_empty());
    all
}

fn group(name: &str, facts: &[UserFacts], belongs: impl Fn(&UserFacts) -> bool) -> UserGroup {
    UserGroup { name: name.to_owned(), users: facts.iter().filter(|f| belongs(f)).map(|f| f.user).collect() }
}

/// Divides users into at most five groups of nearly equal size. Users with the same value are always in the same group, so there are fewer
/// groups if there are fewer distinct values.
fn quantiles(facts: &[UserFacts], value: impl Fn(&UserFacts) -> Option<u64>) -> Vec<UserGroup> {
    let mut counts: BTreeMap<u64, usize> = BTreeMap::new();
    facts.iter().filter_map(&value).for_each(|value| *counts.entry(value).or_default() += 1);
    let counts: Vec<(u64, usize)> = counts.into_iter().collect();
    let mut rest: usize = counts.iter().map(|(_, users)| users).sum();
    let (mut at, mut groups) = (0, Vec::new());
    while at < counts.len() {
        let later = GROUPS - 1 - groups.len();
        let share = rest as f64 / (later + 1) as f64;
        let (low, mut users) = counts[at];
        let mut high = low;
        at += 1;
        // Another value is added if that brings the group nearer to its share and leaves at least one value for every later group.
        while at + later < counts.len()
            && (later == 0 || ((users + counts[at].1) as f64 - share).abs() <= (users as f64 - share).abs())
        {
            high = counts[at].0;
            users += counts[at].1;
            at += 1;
        }
        rest -= users;
        let name = if low == high { low.to_string() } else { format!("{low} to {high}") };
        groups.push(group(&name, facts, |f| value(f).is_some_and(|v| (low..=high).contains(&v))));
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;
    use mp4sr_artifact::hash_ids;
    use proptest::prelude::*;

    fn sequences(users: &[&[u32]], items: usize, time: impl Fn(usize) -> i64) -> Sequences {
        let mut offsets = vec![0i64];
        users.iter().for_each(|u| offsets.push(offsets.last().unwrap() + u.len() as i64));
        let all = users.concat();
        let times = (0..all.len()).map(time).collect();
        Sequences {
            offsets,
            items: all,
            times,
            item_hash: hash_ids(["a"]),
            item_count: items,
            user_hash: None,
            time_kind: mp4sr_artifact::TimeKind::Unstated,
            parts: None,
        }
    }

    #[test]
    fn user_facts_match_a_hand_computed_example() {
        // Users: 1 2 3 | 1 2 | 3 | 1 1 2 4. Training items: [1], [], [], [1 1].
        let data = sequences(&[&[1, 2, 3], &[1, 2], &[3], &[1, 1, 2, 4]], 4, |at| CLOCK + 100 * at as i64);
        assert_eq!(training_events(&data), [3, 0, 0, 0]);
        let facts = |user, length, history, target_events, age| UserFacts {
            user,
            length,
            history,
            target_events,
            target_age: Some(age),
        };
        // Events are numbered from 0. The test targets are events 2, 4 and 9; their items 3, 2 and 4 first occur at events 2, 1 and 9.
        assert_eq!(
            UserFacts::of(&data, Split::Test),
            [facts(0, 3, 2, 0, 0), facts(1, 2, 1, 0, 300), facts(3, 4, 3, 0, 0)]
        );
        // The validation targets are events 1 and 8, both of item 2.
        assert_eq!(UserFacts::of(&data, Split::Validation), [facts(0, 3, 1, 0, 0), facts(3, 4, 2, 0, 700)]);
        let positions = sequences(&[&[1, 2, 3]], 3, |at| at as i64);
        assert_eq!(UserFacts::of(&positions, Split::Test)[0].target_age, None);
        let seconds = Sequences { time_kind: TimeKind::Seconds, ..positions };
        assert_eq!(UserFacts::of(&seconds, Split::Test)[0].target_age, Some(0));
    }

    #[test]
    fn user_groups_match_a_hand_computed_example() {
        let fact =
            |user: usize, target_events| UserFacts { user, length: 5, history: 4, target_events, target_age: None };
        let facts: Vec<UserFacts> =
            [0, 3, 9, 10, 11, 12, 13, 14, 15, 900].into_iter().zip(0..).map(|(e, u)| fact(u, e)).collect();
        let all = breakdowns(&facts);
        let names: Vec<_> = all.iter().map(|s| s.name).collect();
        assert_eq!(names, ["sequence length", "cold target", "target's training events", "target's popularity"]);
        let shown = |at: usize| all[at].groups.iter().map(|s| (s.name.as_str(), s.users.len())).collect::<Vec<_>>();
        assert_eq!(shown(0), [("5", 10)]);
        assert_eq!(shown(1), [("fewer than 10 training events", 3), ("10 or more", 7)]);
        assert_eq!(shown(2), [("none", 1), ("1 to 9", 2), ("10 or more", 7)]);
        assert_eq!(shown(3), [("0 to 3", 2), ("9 to 10", 2), ("11 to 12", 2), ("13 to 14", 2), ("15 to 900", 2)]);
        assert!(breakdowns(&[]).is_empty());

        // Half of the users have the same value; the others still form four groups.
        let facts: Vec<UserFacts> =
            [5, 5, 5, 5, 5, 5, 5, 5, 6, 6, 7, 7, 8, 9, 9, 30].into_iter().zip(0..).map(|(e, u)| fact(u, e)).collect();
        let found = quantiles(&facts, |f| Some(u64::from(f.target_events)));
        let found: Vec<_> = found.iter().map(|s| (s.name.as_str(), s.users.len())).collect();
        assert_eq!(found, [("5", 8), ("6", 2), ("7", 2), ("8 to 9", 3), ("30", 1)]);

        // Most users have the last value; the few others still form four groups.
        let facts: Vec<UserFacts> =
            [1, 2, 3, 4, 9, 9, 9, 9, 9, 9, 9, 9].into_iter().zip(0..).map(|(e, u)| fact(u, e)).collect();
        let found = quantiles(&facts, |f| Some(u64::from(f.target_events)));
        let found: Vec<_> = found.iter().map(|s| (s.name.as_str(), s.users.len())).collect();
        assert_eq!(found, [("1", 1), ("2", 1), ("3", 1), ("4", 1), ("9", 8)]);
    }

    proptest! {
        /// Whatever the lengths, each user with a case is in exactly one group of every breakdown that covers all users.
        #[test]
        fn every_user_is_in_one_group(lengths in prop::collection::vec(0usize..40, 1..60)) {
            let users: Vec<Vec<u32>> = lengths.iter().map(|&n| (0..n).map(|i| 1 + (i % 7) as u32).collect()).collect();
            let views: Vec<&[u32]> = users.iter().map(Vec::as_slice).collect();
            let data = sequences(&views, 7, |at| CLOCK + 90_000 * at as i64);
            let facts = UserFacts::of(&data, Split::Test);
            for breakdown in breakdowns(&facts).iter().filter(|s| s.name != "history") {
                let mut found: Vec<usize> = breakdown.groups.iter().flat_map(|s| s.users.clone()).collect();
                found.sort_unstable();
                let all: Vec<usize> = facts.iter().map(|f| f.user).collect();
                prop_assert_eq!(found, all, "{}", breakdown.name);
                prop_assert!(breakdown.groups.len() <= GROUPS);
            }
            let mut values: Vec<u32> = facts.iter().map(|f| f.length).collect();
            values.sort_unstable();
            values.dedup();
            let groups = quantiles(&facts, |f| Some(u64::from(f.length))).len();
            prop_assert_eq!(groups, values.len().min(GROUPS), "five groups wherever there are five lengths");
        }
    }
}
