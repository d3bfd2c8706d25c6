//! The interactions of a dataset during an import.

use indexmap::IndexSet;
use jiff::Timestamp;
use serde_json::{Value, json};

/// The set to which an event belongs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum EventSet {
    #[default]
    Training,
    Validation,
    Test,
}

impl EventSet {
    /// All sets, in the order of a user's events.
    pub const ALL: [Self; 3] = [Self::Training, Self::Validation, Self::Test];

    /// The set of an event that comes after the beginning of the validation set, and after that of the test set.
    pub fn of(is_after_training: bool, is_after_validation: bool) -> Self {
        match (is_after_training, is_after_validation) {
            (_, true) => Self::Test,
            (true, false) => Self::Validation,
            (false, false) => Self::Training,
        }
    }
}

/// An event of the dataset.
#[derive(Clone, Debug, PartialEq)]
pub struct ImportedEvent {
    /// The row of the user among [`Interactions::users`].
    pub user: u32,
    /// The row of the item among [`Interactions::items`].
    pub item: u32,
    /// The time; 0 if the dataset has none.
    pub time: f64,
    /// The set; training if the dataset is not divided.
    pub set: EventSet,
    /// The values of [`Interactions::columns`].
    pub further: Vec<String>,
}

/// All events, with the ids of their users and items.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Interactions {
    /// The ids of the users, by row.
    pub users: IndexSet<String>,
    /// The ids of the items, by row.
    pub items: IndexSet<String>,
    /// The events. Of events with the same user and time, the earlier one comes first.
    pub events: Vec<ImportedEvent>,
    /// The names of further columns, such as `rating`.
    pub columns: Vec<String>,
    /// Whether events have times.
    pub is_timed: bool,
    /// Whether the dataset says to which set each event belongs.
    pub is_divided: bool,
}

/// What the times of events mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImportClock {
    /// Unix time in seconds.
    Seconds,
    /// Unix time in seconds, which is written as dates, so that early times are not taken for positions.
    Dates,
    /// Unix time in milliseconds.
    Milliseconds,
    /// Positions in the user's sequence, written unchanged.
    Positions,
    /// Numbers that only order a user's events. Datasets without times also have this kind.
    Order,
}

/// A time as it is written: a date, or a number, without a decimal point if it is whole.
pub fn written(time: f64, clock: ImportClock) -> Value {
    if clock == ImportClock::Dates
        && let Ok(date) = Timestamp::from_second(time as i64)
    {
        return json!(date.to_string());
    }
    if time.fract().abs() > 0.0 { json!(time) } else { json!(time as i64) }
}

impl Interactions {
    /// Whether any time is before 1970, which `mp4sr preprocess` does not accept.
    pub fn has_early_times(&self) -> bool {
        self.events.iter().any(|event| event.time < 0.0)
    }

    /// Guesses what the times mean from the median: seconds from 1973 to 2286, or milliseconds of the same years.
    pub fn clock(&self) -> ImportClock {
        let mut times: Vec<f64> = self.events.iter().map(|event| event.time).collect();
        if !self.is_timed || times.is_empty() || self.has_early_times() {
            return ImportClock::Order;
        }
        let middle = times.len() / 2;
        match *times.select_nth_unstable_by(middle, f64::total_cmp).1 {
            time if (1.0e8..1.0e10).contains(&time) => ImportClock::Seconds,
            time if (1.0e11..1.0e13).contains(&time) => ImportClock::Milliseconds,
            _ => ImportClock::Order,
        }
    }

    /// Groups the events by user, each user's in order of time.
    pub fn sort_by_time(&mut self) {
        self.events.sort_by(|a, b| a.user.cmp(&b.user).then(a.time.total_cmp(&b.time)));
    }

    /// Groups the events by user, each user's by set and then in order of time.
    pub fn sort_by_set(&mut self) {
        self.events.sort_by(|a, b| a.user.cmp(&b.user).then(a.set.cmp(&b.set)).then(a.time.total_cmp(&b.time)));
    }

    /// The events of each user; events must be grouped by user.
    pub fn by_user(&self) -> impl Iterator<Item = &[ImportedEvent]> {
        self.events.chunk_by(|a, b| a.user == b.user)
    }
}
