//! The interactions of a data set while they are brought over.

use indexmap::IndexSet;
use serde_json::{Value, json};

/// An event.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// The row of the user among [`Interactions::users`].
    pub user: u32,
    /// The row of the item among [`Interactions::items`].
    pub item: u32,
    /// The time; 0 if the data set has none.
    pub time: f64,
    /// 0 training, 1 validation, 2 test; 0 if the data set is not divided.
    pub part: u8,
    /// Cells of [`Interactions::columns`].
    pub further: Vec<String>,
}

/// All events with what their rows mean.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Interactions {
    /// Ids of users, in the order of their numbers.
    pub users: IndexSet<String>,
    /// Ids of items, in the order of their numbers.
    pub items: IndexSet<String>,
    /// The events; of equal users and times the earlier one comes first.
    pub events: Vec<Event>,
    /// Names of further columns, such as `rating`.
    pub columns: Vec<String>,
    /// Whether events have times.
    pub is_timed: bool,
    /// Whether the data set says to which part each event belongs.
    pub is_divided: bool,
}

/// What times are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// Unix time in seconds.
    Seconds,
    /// Unix time in milliseconds.
    Milliseconds,
    /// Positions in the user's sequence, as they are written.
    Positions,
    /// Numbers that order a user's events and mean nothing else, or no numbers at all.
    Order,
}

/// A time as it is written: whole numbers without a point.
pub fn written(time: f64) -> Value {
    if time.fract().abs() > 0.0 { json!(time) } else { json!(time as i64) }
}

impl Interactions {
    /// Whether a time is before 1970, which `mp4sr preprocess` does not take.
    pub fn has_early_times(&self) -> bool {
        self.events.iter().any(|event| event.time < 0.0)
    }

    /// What the times are, by the one in the middle: seconds from 1973 to 2286, or the same in milliseconds.
    pub fn clock(&self) -> Clock {
        let mut times: Vec<f64> = self.events.iter().map(|event| event.time).collect();
        if !self.is_timed || times.is_empty() || self.has_early_times() {
            return Clock::Order;
        }
        let middle = times.len() / 2;
        match *times.select_nth_unstable_by(middle, f64::total_cmp).1 {
            time if (1.0e8..1.0e10).contains(&time) => Clock::Seconds,
            time if (1.0e11..1.0e13).contains(&time) => Clock::Milliseconds,
            _ => Clock::Order,
        }
    }

    /// Puts each user's events together, in order of time.
    pub fn sort_by_time(&mut self) {
        self.events.sort_by(|a, b| a.user.cmp(&b.user).then(a.time.total_cmp(&b.time)));
    }

    /// Puts each user's events together, part by part and within a part in order of time.
    pub fn sort_by_part(&mut self) {
        self.events.sort_by(|a, b| a.user.cmp(&b.user).then(a.part.cmp(&b.part)).then(a.time.total_cmp(&b.time)));
    }

    /// Each user's events, which stand together.
    pub fn by_user(&self) -> impl Iterator<Item = &[Event]> {
        self.events.chunk_by(|a, b| a.user == b.user)
    }
}
