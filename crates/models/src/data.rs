//! The data that a model is built from: training sequences, features and categories.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use mp4sr_ops::{ProcessGroup, Ragged, Result, SparseEntry, SparseMatrix};

use crate::Device;

/// One modality: its name and its features, an entry per item.
#[derive(Clone, Debug)]
pub struct Modality {
    /// The name of the modality: `text`, `image`, or any other.
    pub name: String,
    /// The rows of the items 1..=I.
    pub features: Ragged,
}

/// The data that a model is built from. It contains nothing of the validation and test sets.
#[derive(Clone, Debug)]
pub struct Data {
    /// I, the number of items.
    pub items: usize,
    /// The training events of all users.
    pub training: Arc<TrainingSequences>,
    /// The features by modality, in the configuration's order; empty for models that read none.
    pub modalities: Vec<Modality>,
    /// The categories of the items, if the dataset has any.
    pub categories: Option<Categories>,
    /// The device that computes the model.
    pub device: Device,
    /// The processes that compute the model together, if there are several.
    pub group: Option<ProcessGroup>,
}

/// The training events of all users, one user after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrainingSequences {
    /// User u (from 0) owns `items[offsets[u]..offsets[u + 1]]`.
    pub offsets: Vec<usize>,
    /// The items, 1-based, oldest first.
    pub items: Vec<u32>,
    /// The times of the events in Unix seconds; `None` if the data has no timestamps.
    pub times: Option<Vec<i64>>,
}

impl TrainingSequences {
    /// Joins the training sequences of users, in the dataset's order, without their times.
    pub fn new<'a>(users: impl IntoIterator<Item = &'a [u32]>) -> Self {
        let mut sequences = Self { offsets: vec![0], items: Vec::new(), times: None };
        for items in users {
            sequences.items.extend_from_slice(items);
            sequences.offsets.push(sequences.items.len());
        }
        sequences
    }

    /// U, the number of users.
    pub fn users(&self) -> usize {
        self.offsets.len() - 1
    }

    /// The training items of user `user`, from 0.
    pub fn of(&self, user: usize) -> &[u32] {
        &self.items[self.offsets[user]..self.offsets[user + 1]]
    }
}

/// The categories of all items.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Categories {
    /// C, the number of categories.
    pub count: usize,
    /// Item i (1-based) owns `ids[offsets[i - 1]..offsets[i]]`; it may own none.
    pub offsets: Vec<usize>,
    /// The categories of the items, 1-based.
    pub ids: Vec<u32>,
}

impl Categories {
    /// Numbers the names of categories in alphabetical order, so that a name's number does not depend on the order of the items; `None` if
    /// no item has a category.
    pub fn of_names(items: &[Vec<String>]) -> Option<Self> {
        let names: BTreeSet<&str> = items.iter().flatten().map(String::as_str).collect();
        let numbers: HashMap<&str, u32> = names.iter().copied().zip(1..).collect();
        let mut categories = Self { count: names.len(), offsets: vec![0], ids: Vec::new() };
        for item in items {
            categories.ids.extend(item.iter().map(|name| numbers[name.as_str()]));
            categories.offsets.push(categories.ids.len());
        }
        (categories.count > 0).then_some(categories)
    }

    /// The categories of item row `row`, from 0.
    pub fn of(&self, row: usize) -> &[u32] {
        &self.ids[self.offsets[row]..self.offsets[row + 1]]
    }

    /// The matrix `[I, C]` that is 1 where an item has a category.
    pub(crate) fn labels(&self) -> Result<SparseMatrix> {
        let rows = 0..self.offsets.len() - 1;
        let entries = rows.flat_map(|row| {
            let own = distinct(self.of(row));
            own.into_iter().map(move |id| SparseEntry { row: row as u32, column: id - 1, weight: 1.0 })
        });
        SparseMatrix::new(self.offsets.len() - 1, self.count, entries.collect())
    }

    /// The matrix `[I, C]` that sums, or averages, the vectors of each item's categories.
    pub(crate) fn matrix(&self, averages: bool) -> Result<SparseMatrix> {
        let mut entries: Vec<SparseEntry> = Vec::with_capacity(self.ids.len());
        for row in 0..self.offsets.len() - 1 {
            let mut own = self.of(row).to_vec();
            own.sort_unstable();
            let share = if averages { 1.0 / own.len().max(1) as f32 } else { 1.0 };
            for run in own.chunk_by(|a, b| a == b) {
                entries.push(SparseEntry { row: row as u32, column: run[0] - 1, weight: share * run.len() as f32 });
            }
        }
        SparseMatrix::new(self.offsets.len() - 1, self.count, entries)
    }
}

/// The distinct items of a sequence, ascending.
pub(crate) fn distinct(items: &[u32]) -> Vec<u32> {
    let mut own = items.to_vec();
    own.sort_unstable();
    own.dedup();
    own
}
