//! Every key of a pipeline file is known, of the right type and in its range, or the user learns which one is not.

use schemars::Schema;
use serde_json::Value as Json;
use toml::{Table, Value};

/// What is wrong with a pipeline file.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It can't be read.
    #[error(transparent)]
    File(#[from] mp4sr_artifact::Error),
    /// It is not TOML.
    #[error("`{origin}` is not a TOML file: {reason}; mend that line")]
    Syntax {
        /// The file.
        origin: String,
        /// Where and what.
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
        /// What would be.
        allowed: String,
    },
    /// An override that is not `section.key=value`.
    #[error("`--set {assignment}` can't be used: {reason}; write `--set section.key=value`")]
    Assignment {
        /// As typed.
        assignment: String,
        /// What is wrong.
        reason: String,
    },
    /// Anything else.
    #[error("`{origin}` can't be used: {reason}; mend it")]
    Invalid {
        /// The file.
        origin: String,
        /// What is wrong.
        reason: String,
    },
}

impl ConfigError {
    pub(crate) fn syntax(origin: &str, error: &toml::de::Error) -> Self {
        Self::Syntax { origin: origin.to_owned(), reason: error.to_string().trim().replace('\n', " ") }
    }

    pub(crate) fn invalid(origin: &str, reason: &str) -> Self {
        Self::Invalid { origin: origin.to_owned(), reason: reason.to_owned() }
    }

    pub(crate) fn value(origin: &str, key: &str, value: &str, allowed: &str) -> Self {
        Self::Value {
            origin: origin.to_owned(),
            key: key.to_owned(),
            value: value.to_owned(),
            allowed: allowed.to_owned(),
        }
    }
}

/// Puts `section.key=value` into the table. The value is TOML; what is not TOML is taken as text.
pub(crate) fn assign(table: &mut Table, assignment: &str) -> Result<(), ConfigError> {
    let fail = |reason: &str| ConfigError::Assignment { assignment: assignment.to_owned(), reason: reason.to_owned() };
    let (key, text) = assignment.split_once('=').ok_or_else(|| fail("it has no `=`"))?;
    let (sections, last) = key.trim().rsplit_once('.').ok_or_else(|| fail("its key has no section"))?;
    let value = format!("value = {text}").parse::<Table>().ok().and_then(|mut t| t.remove("value"));
    let value = value.unwrap_or_else(|| Value::String(text.to_owned()));
    let mut place = table;
    for section in sections.split('.') {
        let entry = place.entry(section.to_owned()).or_insert_with(|| Value::Table(Table::new()));
        place = entry.as_table_mut().ok_or_else(|| fail(&format!("`{section}` is not a section")))?;
    }
    place.insert(last.to_owned(), value);
    Ok(())
}

/// Checks a pipeline file against the schema of the configuration types.
pub(crate) fn check(table: &Table, schema: &Schema, origin: &str) -> Result<(), ConfigError> {
    let checker = Checker { definitions: schema.get("$defs"), origin };
    checker.value("", &Value::Table(table.clone()), schema.as_value())
}

struct Checker<'a> {
    definitions: Option<&'a Json>,
    origin: &'a str,
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
                if values.len() < schema["minItems"].as_u64().unwrap_or(0) as usize {
                    return self.refuse(key, value, "at least one entry");
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
        let Some(properties) = schema["properties"].as_object() else {
            return Ok(());
        };
        for (name, value) in table {
            let path = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
            let Some(schema) = properties.get(name) else {
                let known: Vec<&str> = properties.keys().map(String::as_str).collect();
                let hint = nearest(name, &known).map_or_else(
                    || format!("known here: {}", known.join(", ")),
                    |near| format!("did you mean `{near}`?"),
                );
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

    /// Follows references, and looks through `null` of optional keys.
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
        "string" => "a text in quotes",
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

fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let scored = known.iter().map(|k| (strsim::jaro_winkler(word, k), *k));
    scored.filter(|(score, _)| *score > 0.75).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, k)| k)
}

#[cfg(test)]
mod tests {
    use crate::Config;

    fn message(text: &str, overrides: &[&str]) -> String {
        let overrides: Vec<String> = overrides.iter().map(|&s| s.to_owned()).collect();
        match Config::parse(text, "p.toml", &overrides) {
            Ok(_) => "accepted".to_owned(),
            Err(e) => e.to_string(),
        }
    }

    const BASE: &str = "[dataset]\nname = \"x\"\n";

    #[test]
    fn an_unknown_key_names_the_nearest() {
        let said = message(&format!("{BASE}[finetune]\nlearning_rat = 0.1\n"), &[]);
        assert_eq!(said, "`p.toml`: unknown key `finetune.learning_rat`; did you mean `learning_rate`?");
        let said = message(&format!("{BASE}[fintune]\n"), &[]);
        assert_eq!(said, "`p.toml`: unknown key `fintune`; did you mean `finetune`?");
        let said = message(&format!("{BASE}[source.columns]\nzzz = \"\"\n"), &[]);
        assert!(said.contains("unknown key `source.columns.zzz`; known here: "), "{said}");
        let said = message(&format!("{BASE}[[model.modalities]]\nnam = \"text\"\n"), &[]);
        assert_eq!(said, "`p.toml`: unknown key `model.modalities[0].nam`; did you mean `name`?");
    }

    #[test]
    fn a_wrong_type_or_range_names_key_value_and_what_is_allowed() {
        let cases = [
            (
                "model.width=\"wide\"",
                "`p.toml`: `model.width` = \"wide\" is not allowed; expected a whole number from 1 to 4096",
            ),
            ("model.width=0", "`p.toml`: `model.width` = 0 is not allowed; expected a whole number from 1 to 4096"),
            ("model.width=1.5", "`p.toml`: `model.width` = 1.5 is not allowed; expected a whole number from 1 to 4096"),
            ("pretrain.rho=1.5", "`p.toml`: `pretrain.rho` = 1.5 is not allowed; expected a number from 0 to 1"),
            ("pretrain.rho=nan", "`p.toml`: `pretrain.rho` = nan is not allowed; expected a number from 0 to 1"),
            ("pretrain.enabled=1", "`p.toml`: `pretrain.enabled` = 1 is not allowed; expected true or false"),
            (
                "preprocess.user_core=-1",
                "`p.toml`: `preprocess.user_core` = -1 is not allowed; expected a whole number from 0 to 1000000",
            ),
            ("evaluate.k=[]", "`p.toml`: `evaluate.k` = [] is not allowed; expected at least one entry"),
            (
                "evaluate.k=[5, -1]",
                "`p.toml`: `evaluate.k[1]` = -1 is not allowed; expected a whole number, at least 0",
            ),
            ("model.heads=3", "`p.toml`: `model.heads` = 3 is not allowed; expected a divisor of model.width = 64"),
        ];
        for (assignment, expected) in cases {
            assert_eq!(message(BASE, &[assignment]), expected);
        }
        let said = message(BASE, &["model.logits=cosin"]);
        assert!(said.contains("`model.logits` = \"cosin\"") && said.contains("did you mean \"cosine\"?"), "{said}");
    }

    #[test]
    fn overrides_win_and_bad_ones_say_how_to_write_them() {
        let overrides = ["model.layers=3".to_owned(), "preprocess.preset=table1".to_owned()];
        let config = Config::parse(BASE, "p.toml", &overrides).unwrap();
        assert_eq!(config.model.layers, 3);
        assert_eq!((config.preprocess.user_core, config.preprocess.item_core), (Some(5), Some(0)));
        for bad in ["layers=3", "model.layers", "dataset.name.x=1"] {
            assert!(message(BASE, &[bad]).contains("write `--set section.key=value`"), "{bad}");
        }
    }

    #[test]
    fn a_resolved_configuration_gives_itself_again() {
        let config = Config::parse(BASE, "p.toml", &[]).unwrap();
        let again = Config::parse(&config.to_toml().unwrap(), "q.toml", &[]).unwrap();
        assert_eq!(config, again);
    }

    #[test]
    fn what_is_not_toml_says_where() {
        let said = message("[dataset\nname = 1", &[]);
        assert!(said.starts_with("`p.toml` is not a TOML file: ") && said.contains("line 1"), "{said}");
    }
}
