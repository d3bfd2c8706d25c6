//! Finds the `mp4sr preprocess` split that reproduces the division of an imported dataset.

use super::events::{EventSet, ImportedEvent, Interactions};

/// The number of positions that each set can hold: validation begins at this position, and test at twice that.
pub const SET_STEP: u64 = 1_000_000_000;

/// A division that `preprocess.split` can express.
#[derive(Clone, Debug, PartialEq)]
pub enum Division {
    /// The last event is for the test, and the one before it for validation.
    LeaveOneOut,
    /// Each user's events are divided by these shares of training, validation and test, rounded as in RecBole.
    Ratio([f64; 3]),
    /// Events from these times on are for validation and for the test.
    Time { validation: f64, test: f64 },
    /// Events carry positions that restart at [`SET_STEP`] for validation and at twice that for the test.
    Positions,
}

/// Finds the division of events that are in order of time; their sets may be in another order. `ratios` are tried before times. If
/// `is_cut`, both are tried before leave-one-out, which may describe the same sets.
pub fn decide(interactions: &Interactions, ratios: &[[f64; 3]], is_cut: bool) -> Division {
    if !interactions.is_divided {
        return Division::LeaveOneOut;
    }
    let is = |starts: &dyn Fn(usize) -> (usize, usize)| {
        interactions.by_user().all(|events| {
            let (validation, test) = starts(events.len());
            let set = |at: usize| EventSet::of(at >= validation, at >= test);
            events.iter().enumerate().all(|(at, event)| event.set == set(at))
        })
    };
    let leaves_one_out = is(&|length| (length.saturating_sub(2), length.saturating_sub(1)));
    if leaves_one_out && !is_cut {
        return Division::LeaveOneOut;
    }
    if let Some(ratio) = ratios.iter().find(|ratio| is(&|length| starts_by_ratio(length, ratio))) {
        return Division::Ratio(*ratio);
    }
    let other = || if leaves_one_out { Division::LeaveOneOut } else { Division::Positions };
    by_time(interactions).unwrap_or_else(other)
}

/// The indices at which validation and test begin in a sequence of `length` events, as `_calcu_split_ids` of RecBole computes them.
fn starts_by_ratio(length: usize, ratio: &[f64; 3]) -> (usize, usize) {
    let share = |set: usize| ratio[set] * length as f64;
    let mut sizes = [1, 2].map(|set| (share(set) + 1e-9) as usize);
    for set in [2, 1] {
        let left = length.saturating_sub(sizes[0] + sizes[1]);
        if left > 1 && share(set) < 1.0 - 1e-9 {
            sizes[set - 1] += 1;
        }
    }
    (length - sizes[1] - sizes[0], length - sizes[1])
}

/// Finds two times that divide the events of all users; the set of every event must follow from its time.
fn by_time(interactions: &Interactions) -> Option<Division> {
    let first = |set: EventSet| {
        let own = interactions.events.iter().filter(|event| event.set == set);
        own.min_by(|a: &&ImportedEvent, b: &&ImportedEvent| a.time.total_cmp(&b.time))
    };
    let (validation, test) = (first(EventSet::Validation)?, first(EventSet::Test)?);
    let of = |event: &ImportedEvent| EventSet::of(event.time >= validation.time, event.time >= test.time);
    let divides = interactions.is_timed
        && validation.time < test.time
        && interactions.events.iter().all(|event| event.set == of(event));
    divides.then_some(Division::Time { validation: validation.time, test: test.time })
}
