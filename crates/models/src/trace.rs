//! Records intermediate values for comparison with a reference. Nothing is kept outside [`collect`].

use std::cell::RefCell;
use std::collections::BTreeMap;

use candle_core::Tensor;

thread_local! {
    static VALUES: RefCell<Option<BTreeMap<String, Tensor>>> = const { RefCell::new(None) };
}

/// Runs `work` and returns its result together with the named intermediate values that it recorded on this thread.
pub fn collect<T>(work: impl FnOnce() -> T) -> (T, BTreeMap<String, Tensor>) {
    VALUES.set(Some(BTreeMap::new()));
    let result = work();
    (result, VALUES.take().unwrap_or_default())
}

/// Whether values are collected. It lets callers skip computing values that only the trace needs.
pub(crate) fn is_on() -> bool {
    VALUES.with_borrow(Option::is_some)
}

/// Records `value` under a name if values are collected.
pub(crate) fn record(name: impl FnOnce() -> String, value: &Tensor) {
    VALUES.with_borrow_mut(|values| {
        if let Some(values) = values {
            values.insert(name(), value.clone());
        }
    });
}
