//! The time that was spent in each operator, from which benchmarks compute its share of a step.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

static SPENT: Mutex<BTreeMap<(&str, &str), Duration>> = Mutex::new(BTreeMap::new());

/// Runs `f`, one direction of an operator, and adds its duration to the totals.
pub(crate) fn timed<T>(operator: &'static str, direction: &'static str, f: impl FnOnce() -> T) -> T {
    let began = Instant::now();
    let result = f();
    let mut spent = SPENT.lock().unwrap_or_else(PoisonError::into_inner);
    *spent.entry((operator, direction)).or_default() += began.elapsed();
    result
}

/// Returns the time by operator and direction (`forward`, `backward`) since the last call.
pub fn take_timings() -> BTreeMap<(&'static str, &'static str), Duration> {
    std::mem::take(&mut *SPENT.lock().unwrap_or_else(PoisonError::into_inner))
}
