//! `docs/configuration.md` is printed from the configuration types: this test prints it again and compares.
//! `MP4SR_BLESS=1 cargo test --release -p mp4sr-pipeline` writes it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fmt::Write as _;
use std::path::Path;

use mp4sr_pipeline::Config;
use serde_json::Value;

fn resolve<'a>(schema: &'a Value, root: &'a Value) -> &'a Value {
    if let Some(name) = schema["$ref"].as_str().and_then(|r| r.strip_prefix("#/$defs/")) {
        return resolve(&root["$defs"][name], root);
    }
    match schema["anyOf"].as_array().and_then(|a| a.iter().find(|s| s["type"] != "null")) {
        Some(inner) => resolve(inner, root),
        None => schema,
    }
}

fn one_line(text: &Value) -> String {
    text.as_str().unwrap_or_default().replace('\n', " ").replace('|', "\\|")
}

fn allowed(schema: &Value) -> String {
    if let Some(choices) = schema["oneOf"].as_array() {
        let each = choices.iter().map(|c| format!("`{}` {}", c["const"], one_line(&c["description"])));
        return each.collect::<Vec<_>>().join("<br>");
    }
    let kind = match &schema["type"] {
        Value::Array(kinds) => kinds[0].clone(),
        kind => kind.clone(),
    };
    match (schema["minimum"].as_f64(), schema["maximum"].as_f64()) {
        (Some(low), Some(high)) => format!("{} from {low} to {high}", kind.as_str().unwrap_or_default()),
        (Some(low), None) => format!("{}, at least {low}", kind.as_str().unwrap_or_default()),
        _ => kind.as_str().unwrap_or_default().to_owned(),
    }
}

fn section(out: &mut String, path: &str, schema: &Value, defaults: &Value, root: &Value) {
    let properties = schema["properties"].as_object().unwrap();
    let nested = |schema: &Value| resolve(schema, root)["properties"].is_object();
    if !path.is_empty() {
        let _ = writeln!(
            out,
            "\n## `[{path}]`\n\n{}\n\n| key | default | allowed | what |\n|---|---|---|---|",
            one_line(&schema["description"])
        );
        for (key, field) in properties.iter().filter(|(_, field)| !nested(field)) {
            let default = match &defaults[key] {
                Value::Null => "unset".to_owned(),
                value => format!("`{value}`"),
            };
            let _ = writeln!(
                out,
                "| `{key}` | {default} | {} | {} |",
                allowed(resolve(field, root)),
                one_line(&field["description"])
            );
        }
    }
    for (key, field) in properties.iter().filter(|(_, field)| nested(field)) {
        let inner = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        section(out, &inner, resolve(field, root), &defaults[key], root);
    }
}

#[test]
fn the_documentation_of_the_configuration_is_up_to_date() {
    let schema = schemars::schema_for!(Config).to_value();
    let defaults = serde_json::to_value(Config::default()).unwrap();
    let mut text = String::from(
        "# Configuration\n\nEvery key of a pipeline file. Printed from `crates/pipeline/src/config`; an unknown key, a wrong type or a \
         value outside its range is an error. `--set section.key=value`, or `SET=\"section.key=value\"` with make, replaces one.\n",
    );
    section(&mut text, "", &schema, &defaults, &schema);
    let path = Path::new(&std::env::var("CARGO_MANIFEST_DIR").unwrap()).join("../../docs/configuration.md");
    if std::env::var_os("MP4SR_BLESS").is_some() {
        mp4sr_artifact::files::write_bytes(&path, text.as_bytes()).unwrap();
    }
    let stored = mp4sr_artifact::files::read_to_string(&path).unwrap();
    assert!(stored == text, "docs/configuration.md is not what the types say; write it with MP4SR_BLESS=1");
}
