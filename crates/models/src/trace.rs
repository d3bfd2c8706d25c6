//! Intermediate values for comparison with a reference. Nothing is kept unless [`collect`] asks for it.

use std::cell::RefCell;
use std::collections::BTreeMap;

use candle_core::Tensor;

thread_local! {
    static VALUES: RefCell<Option<BTreeMap<String, Tensor>>> = const { RefCell::new(None) };
}

/// Runs `work` and gives, beside its result, the named intermediate values that it recorded on this thread.
pub fn collect<T>(work: impl FnOnce() -> T) -> (T, BTreeMap<String, Tensor>) {
    VALUES.set(Some(BTreeMap::new()));
    let result = work();
    (result, VALUES.take().unwrap_or_default())
}

/// Whether values are collected, for those that cost something to compute.
pub(crate) fn is_on() -> bool {
    VALUES.with_borrow(Option::is_some)
}

/// Keeps `value` under a name where values are collected.
pub(crate) fn record(name: impl FnOnce() -> String, value: &Tensor) {
    VALUES.with_borrow_mut(|values| {
        if let Some(values) = values {
            values.insert(name(), value.clone());
        }
    });
}
