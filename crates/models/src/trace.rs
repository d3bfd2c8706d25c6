use std::cell::RefCell;
use std::collections::BTreeMap;

use candle_core::Tensor;

/// Collects named intermediate values on request, for comparison with a reference. Off, it costs nothing.
#[derive(Debug, Default)]
pub struct Trace(Option<RefCell<BTreeMap<String, Tensor>>>);

impl Trace {
    /// Collects nothing.
    pub const OFF: Self = Self(None);

    /// Collects everything.
    pub fn on() -> Self {
        Self(Some(RefCell::default()))
    }

    /// Whether values are collected.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Keeps `value` under a name.
    pub fn record(&self, name: impl FnOnce() -> String, value: &Tensor) {
        if let Some(values) = &self.0 {
            values.borrow_mut().insert(name(), value.clone());
        }
    }

    /// All that was kept.
    pub fn into_values(self) -> BTreeMap<String, Tensor> {
        self.0.map(RefCell::into_inner).unwrap_or_default()
    }
}
