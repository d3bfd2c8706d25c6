//! The filters over flat arrays: an implementation without polars, with which tests compare the expressions.

pub mod filter;
pub mod kcore;

use std::collections::BTreeMap;
use std::path::Path;

use mp4sr_artifact::FilterStep;
use mp4sr_pipeline::config::Repeated;
use polars::prelude::*;
use proptest::prelude::*;

use self::filter::{Ordered, order};
use crate::core::{Bounds, core};
use crate::dataset::rows;
use crate::filters::{self, ITEM, TIME, USER};
use crate::partitions::Partitions;
use crate::spill::{MemoryLimit, Spill};
use crate::stage::{Filter, FilterSettings, Filtered};
use crate::window::Window;

type Event = (u32, u32, i64);

/// Runs the filters over flat arrays, and returns the events that are left and the steps.
fn flat(events: &[Event], settings: &FilterSettings, complete: Option<&[bool]>) -> (Vec<Event>, Vec<FilterStep>) {
    let inside = |e: &&Event| {
        settings.window.since.is_none_or(|since| e.2 >= since) && settings.window.until.is_none_or(|until| e.2 < until)
    };
    let inside: Vec<Event> = events.iter().filter(inside).copied().collect();
    let only = |reason: &str, count: u64| (count > 0).then(|| (reason.to_owned(), count)).into_iter().collect();
    let columns = |f: fn(&Event) -> u32| inside.iter().map(f).collect::<Vec<_>>();
    let mut ordered =
        order(columns(|e| e.0), columns(|e| e.1), inside.iter().map(|e| e.2).collect(), settings.repeated);
    let mut steps = Vec::new();
    let repeats = inside.len() as u64 - ordered.kept();
    steps.push(ordered.step("repeated events", only("repeated event", repeats)));
    if settings.recent > 0 {
        let dropped = ordered.keep_recent(settings.recent);
        let filter = format!("the last {} events of a user", settings.recent);
        steps.push(ordered.step(&filter, only("earlier event", dropped)));
    }
    if let Some(complete) = complete {
        let dropped = ordered.drop_items(complete);
        steps.push(ordered.step("items without text or image", only("item without text or image", dropped)));
    }
    let dropped = ordered.core(settings.bounds);
    steps.push(ordered.step("core", dropped));
    (kept(&ordered), steps)
}

fn kept(ordered: &Ordered) -> Vec<Event> {
    let at = |at: usize| (ordered.users[at], ordered.items[at], ordered.times[at]);
    (0..ordered.users.len()).filter(|&at| ordered.keep[at]).map(at).collect()
}

/// Does the same with expressions.
fn by_expressions(
    events: &[Event],
    settings: &FilterSettings,
    complete: Option<&[bool]>,
    partitions: Option<u64>,
    cuts: &[i64],
) -> (Vec<Event>, Vec<FilterStep>) {
    let columns = |f: fn(&Event) -> u32| events.iter().map(f).collect::<Vec<_>>();
    let times: Vec<i64> = events.iter().map(|e| e.2).collect();
    let frame = df!(USER => columns(|e| e.0), ITEM => columns(|e| e.1), TIME => times).unwrap();
    let users = events.iter().map(|event| u64::from(event.0) + 1).max().unwrap_or(0);
    let folder = tempfile::tempdir().unwrap();
    let mut filtered = Filtered::new(partitioned(frame, partitions, folder.path()), users, 0);
    let window = settings.window;
    let named = |name| Filter { name, remedy: "" };
    filtered.run(named("window"), "outside", |events| filters::within(events, window.since, window.until)).unwrap();
    filtered.order(settings.repeated, cuts).unwrap();
    if settings.recent > 0 {
        filtered.recent(settings.recent, cuts).unwrap();
    }
    if let Some(complete) = complete {
        filtered.of_items("without text or image", complete).unwrap();
    }
    let dropped = core(&mut filtered.events, settings.bounds).unwrap();
    filtered.step(named("core"), dropped).unwrap();
    let mut left = Vec::new();
    for part in filtered.events.iter() {
        left.extend(rows(&part.query(|events| events).unwrap()).unwrap());
    }
    // Users are distributed over the partitions; a stable sort restores their order.
    left.sort_by_key(|event| event.0);
    (left, filtered.steps.split_off(2))
}

/// The events in memory, or in partitions on disk.
fn partitioned(events: DataFrame, partitions: Option<u64>, folder: &Path) -> Partitions {
    let Some(partitions) = partitions else { return Partitions::in_memory(events) };
    let limit = MemoryLimit::of_partitions(events.height() as u64, partitions, folder.to_owned());
    let mut spill = Spill::new(limit);
    let half = events.height() / 2;
    spill.push(events.slice(0, half), DataFrame::default(), 0).unwrap();
    spill.push(events.slice(half as i64, events.height() - half), DataFrame::default(), 0).unwrap();
    spill.partitioned(None).unwrap()
}

prop_compose! {
    fn settings()(
        user in 0..5_u32, item in 0..5_u32, recent in 0..4_u32, since in proptest::option::of(0..3_i64),
        until in proptest::option::of(3..6_i64), repeated in 0..3_usize,
    ) -> FilterSettings {
        FilterSettings {
            window: Window { since, until },
            repeated: [Repeated::Last, Repeated::First, Repeated::All][repeated],
            recent,
            bounds: Bounds { user, item },
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// There are few users, items and times, so that ties, repeats, and small users and items are frequent. The ids have gaps.
    #[test]
    fn expressions_keep_and_count_the_same_events_as_flat_arrays(
        events in proptest::collection::vec((0..7_u32, 0..7_u32, 0..6_i64), 0..80),
        stretch in prop_oneof![Just(1_i64), Just(1 << 40), Just(1 << 60)],
        settings in settings(),
        partitions in prop_oneof![4 => Just(None), 1 => (1..4_u64).prop_map(Some)],
        complete in proptest::option::of(proptest::collection::vec(any::<bool>(), 14)),
    ) {
        // Times that are far apart need more bits than a single key has beside the user.
        let spread = |&(user, item, time): &Event| (user * 3, item * 2, time * stretch);
        let events: Vec<Event> = events.iter().map(spread).collect();
        let complete = complete.as_deref();
        let (left, steps) = by_expressions(&events, &settings, complete, partitions, &[]);
        let (expected, expected_steps) = flat(&events, &settings, complete);
        prop_assert_eq!(left, expected);
        prop_assert_eq!(steps, expected_steps);
    }

    /// An event of one set decides nothing in another one.
    #[test]
    fn each_set_keeps_what_it_keeps_alone(
        events in proptest::collection::vec((0..4_u32, 0..4_u32, 0..6_i64), 0..60),
        repeated in prop_oneof![Just(Repeated::Last), Just(Repeated::All)],
        recent in 0..4_u32,
        partitions in prop_oneof![4 => Just(None), 1 => (1..4_u64).prop_map(Some)],
    ) {
        let cuts = [2, 4];
        let bounds = Bounds { user: 0, item: 0 };
        let settings = FilterSettings { window: Window::default(), repeated, recent, bounds };
        let set_of = |event: &Event| cuts.iter().filter(|&&cut| event.2 >= cut).count();
        let mut apart = Vec::new();
        for set in 0..=cuts.len() {
            let own: Vec<Event> = events.iter().filter(|event| set_of(event) == set).copied().collect();
            apart.extend(by_expressions(&own, &settings, None, None, &[]).0);
        }
        apart.sort_by_key(|event| event.0);
        prop_assert_eq!(by_expressions(&events, &settings, None, partitions, &cuts).0, apart);
    }
}

#[test]
fn dropped_counts_equal_those_of_the_flat_rounds() {
    // Item 2 has one event; without it user 1 has one; without user 1 item 1 has one.
    let events = [(0, 0, 0), (0, 3, 0), (1, 1, 0), (1, 2, 0), (2, 1, 0), (2, 0, 0), (3, 0, 0), (3, 3, 0)];
    let bounds = Bounds { user: 2, item: 2 };
    let settings = FilterSettings { window: Window::default(), repeated: Repeated::Last, recent: 0, bounds };
    let (left, steps) = by_expressions(&events, &settings, None, None, &[]);
    assert_eq!(left, [(0, 0, 0), (0, 3, 0), (3, 0, 0), (3, 3, 0)]);
    let dropped = BTreeMap::from([("item below 2 events".to_owned(), 2), ("user below 2 events".to_owned(), 2)]);
    assert_eq!(steps[1].dropped, dropped);
}
