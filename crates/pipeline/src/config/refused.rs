//! Values that a key must not have.

/// A key with a value that is not allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedValue {
    /// The key, with the names of its sections.
    pub key: String,
    /// Its value.
    pub value: String,
    /// The values that are allowed.
    pub allowed: String,
}
