//! State of a model that is not trained by gradients and belongs to its weights.

use std::cell::RefCell;
use std::collections::BTreeMap;

use mp4sr_ops::{Error, Result};

/// Values of a buffer, in row-major order.
#[derive(Clone, Debug, PartialEq)]
pub enum BufferValues {
    /// Floating-point numbers.
    F32(Vec<f32>),
    /// Counts or indices.
    I64(Vec<i64>),
}

/// A part of a model's state that the optimiser does not change.
#[derive(Clone, Debug, PartialEq)]
pub struct Buffer {
    /// The values of the buffer.
    pub values: BufferValues,
    /// The shape of the buffer, which never changes.
    pub shape: Vec<usize>,
}

impl Buffer {
    /// A buffer of floating-point numbers.
    pub fn f32(values: Vec<f32>, shape: &[usize]) -> Self {
        Self { values: BufferValues::F32(values), shape: shape.to_vec() }
    }

    /// A buffer of counts or indices.
    pub fn i64(values: Vec<i64>, shape: &[usize]) -> Self {
        Self { values: BufferValues::I64(values), shape: shape.to_vec() }
    }

    fn has_form_of(&self, other: &Self) -> bool {
        let same_type = std::mem::discriminant(&self.values) == std::mem::discriminant(&other.values);
        same_type && self.shape == other.shape
    }
}

/// The named buffers of a model.
#[derive(Debug, Default)]
pub struct Buffers {
    entries: RefCell<BTreeMap<String, Buffer>>,
}

impl Buffers {
    /// Creates buffers with their initial values.
    pub fn new(entries: impl IntoIterator<Item = (String, Buffer)>) -> Self {
        Self { entries: RefCell::new(entries.into_iter().collect()) }
    }

    /// Calls `read` with the buffer `name`.
    pub fn read<T>(&self, name: &str, read: impl FnOnce(&Buffer) -> T) -> Result<T> {
        let entries = self.entries.borrow();
        entries.get(name).map(read).ok_or_else(|| missing(name))
    }

    /// Calls `update` with the values of the buffer `name`, which it may change in place.
    pub fn update<T>(&self, name: &str, update: impl FnOnce(&mut BufferValues) -> T) -> Result<T> {
        let mut entries = self.entries.borrow_mut();
        entries.get_mut(name).map(|buffer| update(&mut buffer.values)).ok_or_else(|| missing(name))
    }

    /// The current state of all buffers, by name.
    pub fn snapshot(&self) -> BTreeMap<String, Buffer> {
        self.entries.borrow().clone()
    }

    /// Restores all buffers from a snapshot, which must have the same names, types and shapes.
    pub fn restore(&self, snapshot: BTreeMap<String, Buffer>) -> Result<()> {
        let mut entries = self.entries.borrow_mut();
        if let Some(name) = entries.keys().find(|name| !snapshot.contains_key(*name)) {
            return Err(Error::Msg(format!("buffer `{name}` is missing")));
        }
        for (name, buffer) in &snapshot {
            let own = entries.get(name).ok_or_else(|| missing(name))?;
            if !own.has_form_of(buffer) {
                let (expected, found) = (&own.shape, &buffer.shape);
                return Err(Error::Msg(format!("buffer `{name}`: expected {expected:?}, found {found:?}")));
            }
        }
        *entries = snapshot;
        Ok(())
    }
}

fn missing(name: &str) -> Error {
    Error::Msg(format!("the model has no buffer `{name}`"))
}
