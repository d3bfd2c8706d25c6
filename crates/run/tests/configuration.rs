//! Tests the configuration with the sections of all models: errors, presets, earlier names of keys, and `docs/configuration.md`, which is
//! generated from the types. `MP4SR_BLESS=1 cargo test --release --workspace --test configuration` writes that page.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fmt::Write as _;
use std::path::Path;

use mp4sr_models::{ModelSettings, Samples, recipe};
use mp4sr_pipeline::Config;
use mp4sr_run::model_catalog;
use serde_json::{Value, json};

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

fn row(out: &mut String, key: &str, field: &Value, default: &Value, root: &Value) {
    let default = match default {
        Value::Null => "unset".to_owned(),
        value => format!("`{value}`"),
    };
    let (allowed, what) = (allowed(resolve(field, root)), one_line(&field["description"]));
    let _ = writeln!(out, "| `{key}` | {what} | {default} | {allowed} |");
}

fn section(out: &mut String, path: &str, schema: &Value, defaults: &Value, root: &Value) {
    let properties = schema["properties"].as_object().unwrap();
    let nested = |schema: &Value| resolve(schema, root)["properties"].is_object();
    if !path.is_empty() {
        let description = one_line(&schema["description"]);
        let description = description.strip_prefix(&format!("`[{path}]`: ")).unwrap_or(&description);
        let (first, rest) = description.split_at(description.chars().next().map_or(0, char::len_utf8));
        let _ = writeln!(
            out,
            "\n## `[{path}]`\n\n{}{rest}\n\n| key | what | default | allowed |\n|---|---|---|---|",
            first.to_uppercase()
        );
        for (key, field) in properties.iter().filter(|(_, field)| !nested(field)) {
            row(out, key, field, &defaults[key], root);
            let entry = resolve(&field["items"], root);
            for (name, field) in entry["properties"].as_object().into_iter().flatten() {
                row(out, &format!("{key}[].{name}"), field, &defaults[key][0][name], root);
            }
        }
    }
    for (key, field) in properties.iter().filter(|(_, field)| nested(field)) {
        let inner = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        section(out, &inner, resolve(field, root), &defaults[key], root);
    }
}

#[test]
fn the_documentation_of_the_configuration_is_up_to_date() {
    let schema = model_catalog().schema();
    let mut defaults = serde_json::to_value(parse(BASE)).unwrap();
    defaults["dataset"]["name"] = json!("");
    for model in model_catalog().models() {
        defaults["model"][model.name()] = (model.section().resolve)(json!({})).unwrap();
    }
    let mut text = String::from(
        "# Configuration\n\nThis page lists every key of a pipeline file. It is generated from the types of the configuration and of the models. An \
         unknown key, a wrong type and a value outside its range are errors. `--set section.key=value`, or `SET=\"section.key=value\"` with \
         make, sets the value of a key. `mp4sr STAGE --help` names the environment variables that replace flags, such as `MP4SR_PIPELINE`.\n\nSome models have defaults of their own:\n\n| `model.name` | keys |\n|---|---|\n",
    );
    for model in model_catalog().models().filter(|model| !model.defaults().is_empty()) {
        let keys = model.defaults().lines().map(|line| format!("`{}`", line.replace(" = ", "="))).collect::<Vec<_>>();
        let _ = writeln!(text, "| `{}` | {} |", model.name(), keys.join(", "));
    }
    section(&mut text, "", &schema, &defaults, &schema);
    let path = Path::new(&std::env::var("CARGO_MANIFEST_DIR").unwrap()).join("../../docs/configuration.md");
    if std::env::var_os("MP4SR_BLESS").is_some() {
        mp4sr_artifact::files::write_bytes(&path, text.as_bytes()).unwrap();
    }
    let stored = mp4sr_artifact::files::read_to_string(&path).unwrap();
    assert!(stored == text, "docs/configuration.md is not what the types say; write it with MP4SR_BLESS=1");
}

const BASE: &str = "[dataset]\nname = \"x\"\n";

fn parse(text: &str) -> Config {
    let (config, warnings) = Config::parse(text, "p.toml", &[], model_catalog()).unwrap_or_else(|e| panic!("{e}"));
    assert!(warnings.is_empty(), "{warnings:?}");
    config
}

fn with(lines: &str) -> Config {
    parse(&format!("dataset.name = \"x\"\n{lines}"))
}

fn message(text: &str, overrides: &[&str]) -> String {
    let overrides: Vec<String> = overrides.iter().map(|&s| s.to_owned()).collect();
    match Config::parse(text, "p.toml", &overrides, model_catalog()) {
        Ok(_) => "accepted".to_owned(),
        Err(e) => e.to_string(),
    }
}

#[test]
fn an_unknown_key_names_the_nearest() {
    let reported = message(&format!("{BASE}[finetune]\nlearning_rat = 0.1\n"), &[]);
    assert_eq!(reported, "`p.toml`: unknown key `finetune.learning_rat`; did you mean `learning_rate`?");
    let reported = message(&format!("{BASE}[fintune]\n"), &[]);
    assert_eq!(reported, "`p.toml`: unknown key `fintune`; did you mean `finetune`?");
    let reported = message(&format!("{BASE}[source.columns]\nzzz = \"\"\n"), &[]);
    assert!(reported.contains("unknown key `source.columns.zzz`; known here: "), "{reported}");
    let reported = message(&format!("{BASE}[[model.modalities]]\nnam = \"text\"\n"), &[]);
    assert_eq!(reported, "`p.toml`: unknown key `model.modalities[0].nam`; did you mean `name`?");
}

#[test]
fn a_wrong_type_or_range_names_key_value_and_what_is_allowed() {
    let cases = [
        (
            "model.transformer.width=\"wide\"",
            "`{}`: `model.transformer.width` = \"wide\" is not allowed; expected a whole number from 1 to 4096",
        ),
        (
            "model.transformer.width=0",
            "`{}`: `model.transformer.width` = 0 is not allowed; expected a whole number from 1 to 4096",
        ),
        (
            "model.transformer.width=1.5",
            "`{}`: `model.transformer.width` = 1.5 is not allowed; expected a whole number from 1 to 4096",
        ),
        ("model.mp4sr.rho=1.5", "`{}`: `model.mp4sr.rho` = 1.5 is not allowed; expected a number from 0 to 1"),
        ("model.mp4sr.rho=nan", "`{}`: `model.mp4sr.rho` = nan is not allowed; expected a number from 0 to 1"),
        ("pretrain.enabled=1", "`{}`: `pretrain.enabled` = 1 is not allowed; expected true or false"),
        (
            "preprocess.user_core=-1",
            "`{}`: `preprocess.user_core` = -1 is not allowed; expected a whole number from 0 to 1000000",
        ),
        ("evaluate.k=[]", "`{}`: `evaluate.k` = [] is not allowed; expected at least one entry"),
        ("evaluate.k=[5, -1]", "`{}`: `evaluate.k[1]` = -1 is not allowed; expected a whole number, at least 0"),
        (
            "model.transformer.heads=3",
            "`{}`: `model.transformer.heads` = 3 is not allowed; expected a divisor of model.transformer.width = 64",
        ),
        (
            "model.modalities=[{name=\"text\",lost=0.6,swapped=0.5}]",
            "`{}`: `model.modalities.swapped` = 0.5 is not allowed; expected a share that is at most 1 together with `lost`",
        ),
    ];
    for (assignment, expected) in cases {
        assert_eq!(message(BASE, &[assignment]), expected.replace("{}", &format!("--set {assignment}")));
    }
    let reported = message(BASE, &["model.name=masr", "model.transformer.max_sequence_length=1"]);
    assert!(
        reported.contains("`model.transformer.max_sequence_length` = 1 is not allowed; expected at least 2"),
        "{reported}"
    );
    let reported = message(BASE, &["model.mp4sr.logits=cosin"]);
    assert!(
        reported.contains("`model.mp4sr.logits` = \"cosin\"") && reported.contains("did you mean \"cosine\"?"),
        "{reported}"
    );
}

/// `finetune.candidates` is a number with or without quotes, or the word `all`; models that cannot sample candidates refuse a number.
#[test]
fn candidates_are_all_items_or_a_number_of_them() {
    for (value, drawn) in [("64", Some(64)), ("\"64\"", Some(64)), ("\"all\"", None), ("all", None)] {
        let overrides = [format!("finetune.candidates={value}")];
        let (config, _) = Config::parse(BASE, "p.toml", &overrides, model_catalog()).unwrap();
        assert_eq!(config.finetune.drawn_candidates(), Ok(drawn), "{value}");
    }
    for value in ["0", "-3", "1.5", "many", "\"\""] {
        let reported = message(BASE, &[&format!("finetune.candidates={value}")]);
        assert!(reported.ends_with("is not allowed; expected \"all\", or a number of items from 1"), "{reported}");
    }
    let reported = message(BASE, &["model.name=lightgcn", "finetune.candidates=64"]);
    assert!(reported.contains("`finetune.candidates` = 64 is not allowed; expected \"all\": LightGCN"), "{reported}");
}

#[test]
fn overrides_win_and_errors_in_them_show_the_notation() {
    let overrides = ["model.transformer.layers=3".to_owned(), "preprocess.preset=table1".to_owned()];
    let (config, warnings) = Config::parse(BASE, "p.toml", &overrides, model_catalog()).unwrap();
    assert!(warnings.is_empty());
    assert_eq!(config.model.section("transformer")["layers"], 3);
    assert_eq!((config.preprocess.user_core, config.preprocess.item_core), (Some(5), Some(0)));
    // Blanks around the `=` are notation; without one before it, they belong to the value.
    let spaced = ["model.name = sasrec".to_owned(), "source.separator= ".to_owned()];
    let (config, _) = Config::parse(BASE, "p.toml", &spaced, model_catalog()).unwrap();
    assert_eq!((&*config.model.name, &*config.source.separator), ("sasrec", " "));
    for bad in ["layers=3", "model.transformer.layers", "dataset.name.x=1"] {
        assert!(message(BASE, &[bad]).contains("write `--set section.key=value`"), "{bad}");
    }
}

#[test]
fn a_resolved_configuration_round_trips() {
    let config = parse(BASE);
    let again = parse(&config.to_toml().unwrap());
    assert_eq!(config, again);
}

#[test]
fn invalid_toml_is_reported_with_its_position() {
    let reported = message("[dataset\nname = 1", &[]);
    assert!(reported.starts_with("`p.toml` is not a TOML file: ") && reported.contains("line 1"), "{reported}");
}

/// The values of keys, each of which is given with its sections.
fn values(config: &Config, keys: &[&str]) -> Vec<Value> {
    let config = serde_json::to_value(config).unwrap();
    let value = |key: &&str| key.split('.').fold(config.clone(), |section, name| section[name].clone());
    keys.iter().map(value).collect()
}

/// Every row of the specification's section 10 that has a switch.
#[test]
fn presets_set_every_switch_of_section_10() {
    const SWITCHES: [&str; 15] = [
        "model.mp4sr.pooling_gradient",
        "model.mp4sr.pooling_rows",
        "model.mp4sr.sequence_dropout",
        "model.mp4sr.projection",
        "model.mp4sr.false_negatives",
        "model.mp4sr.cmcl_direction",
        "model.mp4sr.logits",
        "finetune.patience",
        "pretrain.patience",
        "finetune.clip_norm",
        "pretrain.clip_norm",
        "preprocess.user_core",
        "preprocess.item_core",
        "preprocess.repeated",
        "preprocess.missing",
    ];
    let switches = |preset: &str| json!(values(&with(&format!("run.preset = \"{preset}\"")), &SWITCHES));
    let default = json!([
        "learned",
        "masked",
        "fixed",
        "on",
        "exclude",
        "symmetric",
        "cosine",
        10,
        20,
        5.0,
        5.0,
        5,
        5,
        "last",
        "keep"
    ]);
    assert_eq!(json!(values(&with(""), &SWITCHES)), default);
    assert_eq!(switches("default"), default);
    let paper =
        json!(["learned", "masked", "fixed", "on", "keep", "symmetric", "dot", 10, 20, 5.0, 5.0, 5, 5, "last", "keep"]);
    assert_eq!(switches("paper"), paper);
    let released = json!([
        "frozen",
        "unmasked",
        "uniform",
        "off",
        "zero_logit",
        "row_sums",
        "cosine",
        20,
        20,
        5.0,
        5.0,
        5,
        0,
        "last",
        "keep"
    ]);
    assert_eq!(switches("released"), released);
}

#[test]
fn tuned_changes_three_keys_of_the_defaults() {
    let expected =
        with("model.mp4sr.projection = \"off\"\npretrain.learning_rate = 0.002\nfinetune.weight_decay = 0.0");
    let mut tuned = with("run.preset = \"tuned\"");
    assert_eq!(tuned.run.preset, "tuned");
    tuned.run.preset = "default".to_owned();
    assert_eq!(tuned, expected);
    let own = with("run.preset = \"tuned\"\nmodel.mp4sr.projection = \"on\"");
    assert_eq!(values(&own, &["model.mp4sr.projection"]), ["on"], "single keys win over a preset");
}

#[test]
fn a_model_has_its_own_defaults_below_presets_and_the_file() {
    let decay = |lines: &str| with(&format!("model.name = \"sasrec\"\n{lines}")).finetune.settings.weight_decay;
    assert_eq!((decay(""), decay("finetune.weight_decay = 0.5")), (0.0, 0.5));
    assert!((with("").finetune.settings.weight_decay - 0.0001).abs() < 1e-12);
}

#[test]
fn the_grid_of_every_model_has_keys_and_values_that_the_model_accepts() {
    for model in model_catalog().models() {
        for grid in model.grid() {
            let (key, values) = grid.split_once('=').unwrap();
            for value in values.split(',') {
                with(&format!("model.name = {:?}\n{key} = {value}", model.name()));
            }
        }
        let config = with(&format!("model.name = {:?}", model.name()));
        let settings = ModelSettings {
            own: config.model.own(),
            transformer: config.model.section("transformer"),
            modalities: &config.model.modality_names(),
            pretrains: true,
            candidates: None,
            pretrain_events: 0,
        };
        let phases = (recipe(model.name()).unwrap().phases)(&settings).unwrap();
        let is_trained = phases.iter().any(|phase| phase.samples != Samples::None);
        assert_eq!(model.grid().is_empty(), !is_trained, "{}", model.name());
    }
}

#[test]
fn earlier_names_of_keys_work_with_a_warning_in_files_and_overrides() {
    let text = "[dataset]\nname = \"x\"\n[model]\npositions = 7\nsame_target = \"zero\"\n[pretrain]\nrho = 0.5\n[evaluate]\nmeasures = [\"MAP@5\"]\n";
    let overrides = ["model.same_target=leave_out".to_owned(), "finetune.end_to_end=true".to_owned()];
    let (config, warnings) = Config::parse(text, "p.toml", &overrides, model_catalog()).unwrap();
    let keys = [
        "model.transformer.max_sequence_length",
        "model.mp4sr.false_negatives",
        "model.mp4sr.rho",
        "model.mp4sr.end_to_end",
        "evaluate.metrics",
    ];
    assert_eq!(json!(values(&config, &keys)), json!([7, "exclude", 0.5, true, ["MAP@5"]]));
    assert_eq!(warnings.len(), 6, "{warnings:?}");
    assert!(warnings.iter().any(|w| w.contains("`model.positions` is now `model.transformer.max_sequence_length`")));
    let both = message(&format!("{text}[model.mp4sr]\nrho = 0.1\n"), &[]);
    assert!(both.contains("both `model.mp4sr.rho` and its earlier name `pretrain.rho`"), "{both}");
}

#[test]
fn model_settings_that_no_single_key_can_exclude_are_refused() {
    let reported = message(BASE, &["model.mp4sr.nip_weight=0", "model.mp4sr.lambda=0"]);
    assert!(reported.contains("`model.mp4sr.nip_weight` = 0") && reported.contains("needs a loss"), "{reported}");
    let reported = message(BASE, &["model.mp4sr.id_dropout=0.1", "model.mp4sr.id_embedding=false"]);
    assert!(reported.contains("`model.mp4sr.id_dropout` = 0.1 is not allowed; expected 0, because"), "{reported}");
    let without = ["model.mp4sr.nip_weight=0", "model.mp4sr.lambda=0", "pretrain.enabled=false"];
    assert_eq!(message(BASE, &without), "accepted");
    let reported = message(BASE, &["model.mp4sr.logit_modalities=[\"sound\"]"]);
    assert!(reported.contains("\"sound\"") && reported.contains("text, image"), "{reported}");
    let reported = message(BASE, &["model.name=esasrec", "model.esasrec.loss=softmax", "model.esasrec.log_q=true"]);
    assert!(reported.contains("`model.esasrec.log_q` = true") && reported.contains("does not sample"), "{reported}");
    assert!(message(BASE, &["model.name=sasre"]).contains("did you mean \"sasrec\"?"));
    assert!(message(BASE, &["run.preset=tune"]).contains("did you mean \"tuned\"?"));
}

/// Checks which models and phases a change of one key makes stale.
#[test]
fn a_phase_depends_on_the_keys_that_its_model_reads_and_on_no_others() {
    let stale = |model: &str, phase: &str, key: &str| {
        let base = with(&format!("model.name = \"{model}\""));
        let changed = with(&format!("model.name = \"{model}\"\n{key}"));
        assert_ne!(base, changed, "{key}");
        let recorded = model_catalog().phase_settings(&base, phase).values().clone();
        model_catalog().phase_settings(&changed, phase).changed_since(&recorded).is_some()
    };
    let cases = [
        // A key, then whether it makes stale: pre-training and fine-tuning of MP4SR, fine-tuning of SASRec, fine-tuning of popularity.
        ("model.mp4sr.logits = \"dot\"", [false, true, false, false]),
        ("model.mp4sr.rho = 0.4", [true, false, false, false]),
        ("model.mp4sr.projection = \"off\"", [true, false, false, false]),
        ("model.mp4sr.experts = 2", [true, true, false, false]),
        ("model.mp4sr.end_to_end = true", [false, true, false, false]),
        ("model.transformer.width = 32", [true, true, true, false]),
        ("model.modalities = [{ name = \"text\" }]", [true, true, false, false]),
        ("pretrain.epochs = 3", [true, false, false, false]),
        ("pretrain.items = \"warm\"", [true, false, false, false]),
        ("finetune.batch = 64", [false, true, true, true]),
        ("evaluate.k = [5]", [false; 4]),
        ("evaluate.metrics = [\"MAP@5\"]", [false; 4]),
        ("evaluate.batch = 7", [false; 4]),
        ("evaluate.seen_items = \"keep\"", [true; 4]),
        ("run.seed = 1", [true; 4]),
        ("recommend.top = 3", [false; 4]),
    ];
    for (key, expected) in cases {
        let runs = [("mp4sr", "pretrain"), ("mp4sr", "finetune"), ("sasrec", "finetune"), ("popularity", "finetune")];
        assert_eq!(runs.map(|(model, phase)| stale(model, phase, key)), expected, "{key}");
    }
    // The keys of eSASRec's negatives matter only for losses that use negatives.
    for (loss, negatives, calibration) in
        [("sampled_softmax", true, false), ("gbce", true, true), ("softmax", false, false)]
    {
        let base = |keys: &str| with(&format!("model.name = \"esasrec\"\n[model.esasrec]\nloss = \"{loss}\"\n{keys}"));
        let recorded = model_catalog().phase_settings(&base(""), "finetune").values().clone();
        let stale = |keys| model_catalog().phase_settings(&base(keys), "finetune").changed_since(&recorded).is_some();
        assert_eq!((stale("negatives = 3"), stale("calibration = 0.5")), (negatives, calibration), "{loss}");
    }
    let end_to_end = "model.mp4sr.end_to_end = true\n";
    let recorded = model_catalog().phase_settings(&with(end_to_end), "finetune").values().clone();
    let other = with(&format!("{end_to_end}model.mp4sr.rho = 0.4"));
    let changed = model_catalog().phase_settings(&other, "finetune").changed_since(&recorded);
    assert_eq!(changed.unwrap(), "model.mp4sr.rho", "end to end reads the keys of pre-training");
}

/// Reads the settings that the previous release recorded for a finished run (tests/records).
#[test]
fn a_run_of_the_previous_release_is_up_to_date() {
    let config = with("pretrain.epochs = 12\npretrain.batch = 256\nfinetune.epochs = 30\nfinetune.batch = 256");
    for phase in ["pretrain", "finetune"] {
        let path = Path::new(&std::env::var("CARGO_MANIFEST_DIR").unwrap()).join(format!("tests/records/{phase}.json"));
        let recorded: Value = serde_json::from_str(&mp4sr_artifact::files::read_to_string(&path).unwrap()).unwrap();
        let settings = model_catalog().phase_settings(&config, phase);
        assert_eq!(settings.changed_since(&recorded), None, "{phase}");
        let mut other = config.clone();
        other.run.seed += 1;
        assert_eq!(model_catalog().phase_settings(&other, phase).changed_since(&recorded).unwrap(), "run.seed");
    }
}

#[test]
fn every_recipe_has_defaults_phases_and_a_title_that_can_be_used() {
    let pipeline = "[dataset]\nname = \"x\"\n[source]\ninteractions = [\"x.tsv\"]\n";
    let parse =
        |text: &str, set: &[String]| Config::parse(text, "x.toml", set, model_catalog()).map(|(config, _)| config);
    let mut titles = Vec::new();
    for model in model_catalog().models() {
        let name = model.name();
        let own = [format!("model.name={name}")];
        let config = parse(pipeline, &own).unwrap_or_else(|error| panic!("{name}: {error}"));
        // Defaults are not read as a pipeline file is, which refuses unknown keys and values that are not allowed.
        parse(&format!("{}\n{pipeline}", model.defaults()), &own).unwrap_or_else(|error| panic!("{name}: {error}"));
        let text = config.to_toml().unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(parse(&text, &[]).unwrap(), config, "{name}");
        let phases = model.phases(&config);
        assert!(matches!(phases[..], ["finetune"] | ["pretrain", "finetune"]), "{name}: {phases:?}");
        assert!(!titles.contains(&model.title()), "{name}: another model is called {}", model.title());
        titles.push(model.title());
    }
}
