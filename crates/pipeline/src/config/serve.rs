//! `[serve]`: where a service keeps the items that are added to a run.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer};

use crate::hide_passwords;

/// `[serve]`: where items that are added to a trained run are stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Serve {
    /// Where added items are stored. Empty: in the run's folder. `postgres://USER:PASSWORD@HOST:PORT/DATABASE`: in PostgreSQL, which all
    /// replicas of the service share. `env:NAME` and `file:PATH`: in PostgreSQL, at the URL that an environment variable or a file
    /// contains. Passwords are left out of every record of the configuration.
    pub store: StoreUrl,
    /// The number of seconds between two checks for items that another replica has added or removed.
    #[schemars(range(min = 0.05, max = 3600.0))]
    pub poll_seconds: f64,
}

impl Default for Serve {
    fn default() -> Self {
        Self { store: StoreUrl::default(), poll_seconds: 1.0 }
    }
}

/// Where added items are stored, as the pipeline gives it. It may contain a password, which is neither printed nor written.
#[derive(Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct StoreUrl(String);

impl StoreUrl {
    /// The text of the pipeline, with the password if it has one.
    pub fn as_written(&self) -> &str {
        &self.0
    }

    /// Whether the text has one of the forms of a URL.
    pub(crate) fn has_known_form(&self) -> bool {
        let starts = ["postgres://", "postgresql://", "env:", "file:"];
        self.0.is_empty() || starts.iter().any(|start| self.0.strip_prefix(start).is_some_and(|rest| !rest.is_empty()))
    }
}

impl From<String> for StoreUrl {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", hide_passwords(&self.0))
    }
}

impl Serialize for StoreUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hide_passwords(&self.0))
    }
}
