//! Checks that every key of a pipeline file is known, of the right type and within its range; the error names the key that is not.

use std::collections::BTreeMap;

use serde_json::Value as Json;
use toml::{Table, Value};

use crate::hide_passwords;

/// An error in a pipeline file or in an override.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error(transparent)]
    File(#[from] mp4sr_artifact::Error),
    /// It is not TOML.
    #[error("`{origin}` is not a TOML file: {reason}; correct that line")]
    Syntax {
        /// The file.
        origin: String,
        /// The position and the problem.
        reason: String,
    },
    /// A key that nothing reads.
    #[error("`{origin}`: unknown key `{key}`; {hint}")]
    UnknownKey {
        /// The file.
        origin: String,
        /// The key with its sections.
        key: String,
        /// The nearest key, or all of them.
        hint: String,
    },
    /// A value of the wrong type or outside its range.
    #[error("`{origin}`: `{key}` = {value} is not allowed; expected {allowed}")]
    Value {
        /// The file.
        origin: String,
        /// The key with its sections.
        key: String,
        /// The value as written.
        value: String,
        /// The values that are allowed.
        allowed: String,
    },
    /// An override that is not `section.key=value`.
    #[error("`--set {assignment}` is invalid: {reason}; write `--set section.key=value`")]
    Assignment {
        /// The assignment as typed.
        assignment: String,
        /// What is wrong.
        reason: String,
    },
    /// Anything else.
    #[error("`{origin}` is invalid: {reason}; fix it")]
    Invalid {
        /// The file.
        origin: String,
        /// What is wrong.
        reason: String,
    },
}

impl ConfigError {
    pub(crate) fn syntax(origin: &str, error: &toml::de::Error) -> Self {
        Self::Syntax { origin: origin.to_owned(), reason: hide_passwords(error.to_string().trim()).replace('\n', " ") }
    }

    pub(crate) fn invalid(origin: &str, reason: &str) -> Self {
        Self::Invalid { origin: origin.to_owned(), reason: reason.to_owned() }
    }

    /// Names the assignment of `--set` instead of the file, if it set the key that the error is about. `set` has them by key.
    pub(crate) fn of_override(mut self, set: &BTreeMap<String, String>) -> Self {
        if let Self::UnknownKey { origin, key, .. } | Self::Value { origin, key, .. } = &mut self {
            let is_within = |inner: &str, outer: &str| {
                inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
            };
            let of_key = |(name, _): &(&String, &String)| is_within(key, name) || is_within(name, key);
            if let Some((_, assignment)) = set.iter().find(of_key) {
                // In a text that is not a URL, the password may be anywhere, so the whole value is hidden.
                *origin = match assignment.split_once('=') {
                    Some((name, _)) if key == "serve.store" => format!("--set {name}=..."),
                    _ => format!("--set {}", hide_passwords(assignment)),
                };
            }
        }
        self
    }

    pub(crate) fn value(origin: &str, key: &str, value: &str, allowed: &str) -> Self {
        Self::Value {
            origin: origin.to_owned(),
            key: key.to_owned(),
            value: hide_passwords(value),
            allowed: allowed.to_owned(),
        }
    }
}

/// An override as typed, `section.key=value`.
pub(crate) struct Assignment<'a> {
    text: &'a str,
    /// The key with its sections.
    pub key: String,
    /// The value as TOML; a value that is not TOML is text.
    pub value: Value,
}

impl<'a> Assignment<'a> {
    pub fn parse(text: &'a str) -> Result<Self, ConfigError> {
        let fail =
            |reason: &str| ConfigError::Assignment { assignment: hide_passwords(text), reason: reason.to_owned() };
        let (key, value) = text.split_once('=').ok_or_else(|| fail("it has no `=`"))?;
        if !key.contains('.') {
            return Err(fail("its key has no section"));
        }
        // Without quotes, a blank belongs to the value only if there is none before the `=`.
        let value = if key.ends_with(char::is_whitespace) { value.trim_start() } else { value };
        let parsed = format!("value = {value}").parse::<Table>().ok().and_then(|mut table| table.remove("value"));
        let value = parsed.unwrap_or_else(|| Value::String(value.to_owned()));
        Ok(Self { text, key: key.trim().to_owned(), value })
    }

    /// Inserts the value into the table.
    pub fn apply(self, table: &mut Table) -> Result<(), ConfigError> {
        let fail = |section: &str| ConfigError::Assignment {
            assignment: hide_passwords(self.text),
            reason: format!("`{section}` is not a section"),
        };
        let (sections, last) = self.key.rsplit_once('.').unwrap_or(("", &self.key));
        let mut section = table;
        for name in sections.split('.') {
            let entry = section.entry(name.to_owned()).or_insert_with(|| Value::Table(Table::new()));
            section = entry.as_table_mut().ok_or_else(|| fail(name))?;
        }
        section.insert(last.to_owned(), self.value);
        Ok(())
    }
}

/// Replaces keys of `base` by those of `over`, section by section.
pub(crate) fn merge(base: &mut Table, over: Table) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(Value::Table(base)), Value::Table(over)) => merge(base, over),
            (_, value) => drop(base.insert(key, value)),
        }
    }
}

/// Checks a pipeline file against the schema of the configuration types.
pub(crate) fn check(table: &Table, schema: &Json, origin: &str) -> Result<(), ConfigError> {
    let checker = Checker { definitions: schema.get("$defs"), origin };
    checker.value("", &Value::Table(table.clone()), schema)
}

struct Checker<'a> {
    definitions: Option<&'a Json>,
    origin: &'a str,
}

/// How many entries an array must have.
fn entries(least: usize, most: usize) -> String {
    match (least, most) {
        (least, most) if least == most => format!("{least} entries"),
        (1, usize::MAX) => "at least one entry".to_owned(),
        (least, usize::MAX) => format!("at least {least} entries"),
        (least, most) => format!("{least} to {most} entries"),
    }
}

impl<'a> Checker<'a> {
    fn value(&self, key: &str, value: &Value, schema: &'a Json) -> Result<(), ConfigError> {
        let schema = self.resolve(schema);
        if let Some(choices) = choices(schema) {
            let known = value.as_str().is_some_and(|text| choices.contains(&text));
            return if known { Ok(()) } else { self.refuse(key, value, &one_of(&choices, value)) };
        }
        match (value, type_of(schema)) {
            (Value::Table(table), "object") => self.table(key, table, schema),
            (Value::Array(values), "array") => {
                let bound = |key: &str| schema[key].as_u64().map(|count| count as usize);
                let (least, most) = (bound("minItems").unwrap_or(0), bound("maxItems").unwrap_or(usize::MAX));
                if !(least..=most).contains(&values.len()) {
                    return self.refuse(key, value, &entries(least, most));
                }
                let numbered = |at: usize| format!("{key}[{at}]");
                values.iter().enumerate().try_for_each(|(at, v)| self.value(&numbered(at), v, &schema["items"]))
            }
            (Value::String(_), "string") | (Value::Boolean(_), "boolean") => Ok(()),
            (Value::Integer(n), "integer" | "number") => self.range(key, value, *n as f64, schema),
            (Value::Float(x), "number") if x.is_finite() => self.range(key, value, *x, schema),
            (_, expected) => self.refuse(key, value, &with_range(expected, schema)),
        }
    }

    fn table(&self, key: &str, table: &Table, schema: &'a Json) -> Result<(), ConfigError> {
        let properties = schema["properties"].as_object();
        // The schema of a section without keys allows no others.
        if properties.is_none() && schema["additionalProperties"] != false {
            return Ok(());
        }
        for (name, value) in table {
            let path = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
            let Some(schema) = properties.and_then(|properties| properties.get(name)) else {
                if schema["additionalProperties"] == true {
                    continue;
                }
                let known: Vec<&str> =
                    properties.into_iter().flat_map(|known| known.keys()).map(String::as_str).collect();
                let hint = match nearest(name, &known) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None if known.is_empty() => "this section has no keys".to_owned(),
                    None => format!("known here: {}", known.join(", ")),
                };
                return Err(ConfigError::UnknownKey { origin: self.origin.to_owned(), key: path, hint });
            };
            self.value(&path, value, schema)?;
        }
        Ok(())
    }

    fn range(&self, key: &str, value: &Value, number: f64, schema: &Json) -> Result<(), ConfigError> {
        let low = schema["minimum"].as_f64().unwrap_or(f64::NEG_INFINITY);
        let high = schema["maximum"].as_f64().unwrap_or(f64::INFINITY);
        if (low..=high).contains(&number) {
            Ok(())
        } else {
            self.refuse(key, value, &with_range(type_of(schema), schema))
        }
    }

    fn refuse(&self, key: &str, value: &Value, allowed: &str) -> Result<(), ConfigError> {
        Err(ConfigError::value(self.origin, key, &value.to_string(), allowed))
    }

    /// Follows references, and skips the `null` alternative of optional keys.
    fn resolve(&self, schema: &'a Json) -> &'a Json {
        if let Some(name) = schema["$ref"].as_str().and_then(|r| r.strip_prefix("#/$defs/")) {
            return self.definitions.map_or(schema, |d| self.resolve(&d[name]));
        }
        if let Some(inner) = schema["anyOf"].as_array().and_then(|a| a.iter().find(|s| s["type"] != "null")) {
            return self.resolve(inner);
        }
        schema
    }
}

fn type_of(schema: &Json) -> &str {
    match &schema["type"] {
        Json::String(name) => name,
        Json::Array(names) => names.iter().filter_map(Json::as_str).find(|n| *n != "null").unwrap_or("value"),
        _ => "value",
    }
}

fn choices(schema: &Json) -> Option<Vec<&str>> {
    if let Some(values) = schema["enum"].as_array() {
        return values.iter().map(Json::as_str).collect();
    }
    schema["oneOf"].as_array()?.iter().map(|s| s["const"].as_str()).collect()
}

fn one_of(choices: &[&str], value: &Value) -> String {
    let hint = value
        .as_str()
        .and_then(|text| nearest(text, choices))
        .map_or(String::new(), |n| format!("; did you mean \"{n}\"?"));
    let quoted: Vec<_> = choices.iter().map(|c| format!("\"{c}\"")).collect();
    format!("one of {}{hint}", quoted.join(", "))
}

fn with_range(expected: &str, schema: &Json) -> String {
    let noun = match expected {
        "integer" => "a whole number",
        "number" => "a number",
        "string" => "a quoted string",
        "boolean" => "true or false",
        "array" => "a list",
        "object" => "a section",
        other => other,
    };
    match (schema["minimum"].as_f64(), schema["maximum"].as_f64()) {
        (Some(low), Some(high)) => format!("{noun} from {low} to {high}"),
        (Some(low), None) => format!("{noun}, at least {low}"),
        (None, Some(high)) => format!("{noun}, at most {high}"),
        (None, None) => noun.to_owned(),
    }
}

/// The known word that is most similar to this one, if any is similar enough.
pub fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let scored = known.iter().map(|k| (strsim::jaro_winkler(word, k), *k));
    scored.filter(|(score, _)| *score > 0.75).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, k)| k)
}
