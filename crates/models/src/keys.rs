//! What a recipe says about single keys of the configuration: earlier names, and values that are not allowed.

/// A key that had another name in an earlier release.
#[derive(Clone, Copy, Debug)]
pub struct Renamed {
    /// The earlier name with its sections, which still works.
    pub from: &'static str,
    /// The current name with its sections.
    pub to: &'static str,
    /// The values that were renamed too, each as the earlier and the current value.
    pub values: &'static [(&'static str, &'static str)],
}

impl Renamed {
    /// A key whose values have not changed.
    pub const fn key(from: &'static str, to: &'static str) -> Self {
        Self { from, to, values: &[] }
    }
}

/// A key with a value that is not allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The key with its sections.
    pub key: String,
    /// The value that is refused.
    pub value: String,
    /// A description of the values that are allowed.
    pub allowed: String,
}

impl Refused {
    /// Refuses the value of a key and says what would be allowed.
    pub fn new(key: &str, value: &impl ToString, allowed: impl Into<String>) -> Self {
        Self { key: key.to_owned(), value: value.to_string(), allowed: allowed.into() }
    }
}
