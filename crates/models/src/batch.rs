//! Samples and queries as a model reads them, with their histories packed.

use std::ops::Range;

use mp4sr_ops::{PackedOffsets, Result};

/// The samples of a step. The parts that a phase does not sample are empty: [`Samples::Events`](crate::Samples::Events) has no histories,
/// [`Samples::Sequences`](crate::Samples::Sequences) has no targets.
#[derive(Clone, Debug)]
pub struct Batch {
    /// `[B]`: the row of each sample's user in the dataset, from 0.
    pub users: Vec<u32>,
    /// The offsets of the histories in `items`.
    pub offsets: PackedOffsets,
    /// `[tokens]`: the items of the histories, 1-based, oldest first, one history after the other.
    pub items: Vec<u32>,
    /// `[B]`: the item that follows each history.
    pub targets: Vec<u32>,
}

/// One sample of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample<'a> {
    /// The row of the user in the dataset, from 0.
    pub user: u32,
    /// The items of the history, 1-based, oldest first.
    pub history: &'a [u32],
    /// The item after the history, if the phase has targets.
    pub target: Option<u32>,
}

/// The user and the history to rank items for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Query<'a> {
    /// The row of the user in the dataset, from 0; `None` for a user who was not in the training data.
    pub user: Option<u32>,
    /// The items of the history, 1-based, oldest first.
    pub history: &'a [u32],
}

impl<'a> Query<'a> {
    /// A query for a user who was not in the training data.
    pub fn of_history(history: &'a [u32]) -> Self {
        Self { user: None, history }
    }
}

impl Batch {
    /// Packs samples, keeping the last `max_sequence_length` items of each history.
    pub fn new<'a>(samples: impl IntoIterator<Item = Sample<'a>>, max_sequence_length: usize) -> Result<Self> {
        let (mut users, mut lengths, mut items, mut targets) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for Sample { user, history, target } in samples {
            let recent = &history[history.len().saturating_sub(max_sequence_length)..];
            users.push(user);
            if !recent.is_empty() {
                lengths.push(recent.len());
                items.extend_from_slice(recent);
            }
            targets.extend(target);
        }
        Ok(Self { users, offsets: PackedOffsets::from_lengths(lengths)?, items, targets })
    }

    /// Packs histories of unknown users and the items after them.
    pub fn of_histories<'a>(
        samples: impl IntoIterator<Item = (&'a [u32], u32)>,
        max_sequence_length: usize,
    ) -> Result<Self> {
        let sample = |(history, target)| Sample { user: 0, history, target: Some(target) };
        Self::new(samples.into_iter().map(sample), max_sequence_length)
    }

    /// Packs the histories of queries, none of which may be empty.
    pub fn of_queries<'a>(queries: &[Query<'a>], max_sequence_length: usize) -> Result<Self> {
        let sample =
            |query: &Query<'a>| Sample { user: query.user.unwrap_or_default(), history: query.history, target: None };
        Self::new(queries.iter().map(sample), max_sequence_length)
    }

    /// A range of the samples as a separate batch, whose tokens and sequences keep the numbers by which dropout is drawn.
    #[must_use]
    pub fn share(&self, samples: Range<usize>) -> Self {
        let offsets = self.offsets.share(samples.clone());
        let first =
            if samples.start < self.count() { self.offsets.range(samples.start).start } else { self.items.len() };
        Self {
            users: self.users[samples.clone()].to_vec(),
            items: self.items[first..first + offsets.tokens()].to_vec(),
            // Batches of queries have no targets.
            targets: self.targets.get(samples).unwrap_or_default().to_vec(),
            offsets,
        }
    }

    /// B, the number of samples.
    pub fn count(&self) -> usize {
        self.users.len()
    }
}
