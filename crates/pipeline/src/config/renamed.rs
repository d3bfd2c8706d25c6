//! Keys that earlier releases had under another name: they keep working for one more release, with a warning that names the new key.

use serde_json::Value as Json;
use toml::{Table, Value};

use crate::strict::{Assignment, ConfigError};

/// A key that an earlier release had under another name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RenamedKey {
    /// The name that still works, with its sections.
    pub from: String,
    /// The present name, with its sections.
    pub to: String,
    /// The values that are written differently now, each as the earlier and the present value.
    pub values: Vec<(String, String)>,
}

impl RenamedKey {
    fn warning(&self) -> String {
        format!("`{}` is now `{}`; the earlier name still works in this release", self.from, self.to)
    }

    fn translate(&self, value: Value) -> Value {
        let now = value.as_str().and_then(|text| self.values.iter().find(|(then, _)| then == text));
        match now {
            Some((_, now)) => Value::String(now.clone()),
            None => value,
        }
    }
}

/// The renamed keys outside of the sections of models.
pub(super) fn of_stages() -> [RenamedKey; 1] {
    let key = |from: &str, to: &str| RenamedKey { from: from.to_owned(), to: to.to_owned(), values: Vec::new() };
    [key("evaluate.measures", "evaluate.metrics")]
}

/// Gives the keys of a pipeline file their present names, and a warning for each.
pub(super) fn rename(table: &mut Table, renamed: &[RenamedKey], origin: &str) -> Result<Vec<String>, ConfigError> {
    let mut warnings = Vec::new();
    for key in renamed {
        let Some(value) = take(table, &key.from) else { continue };
        if find(table, &key.to).is_some() {
            let reason = format!("it sets both `{}` and its earlier name `{}`", key.to, key.from);
            return Err(ConfigError::invalid(origin, &reason));
        }
        warnings.push(key.warning());
        put(table, &key.to, key.translate(value));
    }
    Ok(warnings)
}

/// Gives the key of an override its present name, and a warning.
pub(super) fn rename_assignment(assignment: &mut Assignment<'_>, renamed: &[RenamedKey]) -> Option<String> {
    let key = renamed.iter().find(|key| key.from == assignment.key)?;
    assignment.key.clone_from(&key.to);
    assignment.value = key.translate(assignment.value.clone());
    Some(key.warning())
}

/// Gives the settings in the record of a finished stage their present names.
pub(super) fn rename_recorded(recorded: Json, renamed: &[RenamedKey]) -> Json {
    let Ok(mut table) = Table::try_from(without_nulls(recorded.clone())) else { return recorded };
    for key in renamed {
        if let Some(value) = take(&mut table, &key.from) {
            put(&mut table, &key.to, key.translate(value));
        }
    }
    serde_json::to_value(table).unwrap_or(recorded)
}

/// TOML has no null; a key without a value counts as missing.
pub(super) fn without_nulls(value: Json) -> Json {
    match value {
        Json::Object(keys) => keys
            .into_iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(key, value)| (key, without_nulls(value)))
            .collect(),
        other => other,
    }
}

fn find<'a>(table: &'a Table, path: &str) -> Option<&'a Value> {
    match path.split_once('.') {
        Some((section, rest)) => find(table.get(section)?.as_table()?, rest),
        None => table.get(path),
    }
}

fn take(table: &mut Table, path: &str) -> Option<Value> {
    match path.split_once('.') {
        Some((section, rest)) => take(table.get_mut(section)?.as_table_mut()?, rest),
        // A section of that name is not the key.
        None if table.get(path).is_some_and(Value::is_table) => None,
        None => table.remove(path),
    }
}

fn put(table: &mut Table, path: &str, value: Value) {
    match path.split_once('.') {
        Some((section, rest)) => {
            let section = table.entry(section.to_owned()).or_insert_with(|| Value::Table(Table::new()));
            if let Some(section) = section.as_table_mut() {
                put(section, rest, value);
            }
        }
        None => drop(table.insert(path.to_owned(), value)),
    }
}
