//! Buffers that are reused, so that a step allocates next to nothing. They hold what an operator keeps between forward and backward, and
//! the intermediate values of shards.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

/// Idle buffers of at most this many different lengths are kept; a step of the models needs fewer.
const KEPT: usize = 1 << 14;

/// Idle buffers by length.
static IDLE: Mutex<BTreeMap<usize, Vec<Vec<f32>>>> = Mutex::new(BTreeMap::new());

/// A buffer of the requested length, with whatever its last user left in it. It becomes idle again when it is dropped.
pub(crate) struct Scratch {
    buffer: Vec<f32>,
    length: usize,
}

impl Scratch {
    /// An idle buffer that is long enough and not more than twice as long, or a new one.
    pub fn take(length: usize) -> Self {
        let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
        let found =
            idle.range_mut(length..=2 * length).next().map(|(&key, buffers)| (key, buffers.pop(), buffers.is_empty()));
        if let Some((key, _, true)) = found {
            idle.remove(&key);
        }
        drop(idle);
        let buffer = found.and_then(|(_, buffer, _)| buffer).unwrap_or_else(|| vec![0.0; length]);
        Self { buffer, length }
    }

    /// A buffer of zeros.
    pub fn zeros(length: usize) -> Self {
        let mut scratch = Self::take(length);
        scratch.fill(0.0);
        scratch
    }
}

impl Deref for Scratch {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.buffer[..self.length]
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.buffer[..self.length]
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.buffer);
        let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < KEPT && !buffer.is_empty() {
            idle.entry(buffer.len()).or_default().push(buffer);
        }
    }
}

/// Drops all idle buffers.
pub(crate) fn drop_idle() {
    std::mem::take(&mut *IDLE.lock().unwrap_or_else(PoisonError::into_inner));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_has_its_length_and_is_zeroed_on_request() {
        {
            let mut first = Scratch::take(1000);
            first.fill(7.0);
        }
        let again = Scratch::zeros(10);
        assert_eq!(again[..], [0.0; 10]);
        assert_eq!(Scratch::take(5000).len(), 5000);
        assert!(Scratch::take(0).is_empty());
    }
}
