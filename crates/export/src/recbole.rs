//! Writes RecBole's atomic files: <https://recbole.io/docs/user_guide/data/atomic_files.html>.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use mp4sr_artifact::files;
use mp4sr_pipeline::Context;
use serde_json::{Value, json};

use crate::dataset::{ExportedDataset, ModalityFeatures, expect_plain_ids};

/// The sets in the file names of a dataset that records where its validation and test events begin, rather than leaving out the last two
/// events.
pub const SETS: [&str; 3] = ["train", "valid", "test"];

/// Writes `<name>.inter`, `<name>.item`, one feature file per modality, and the settings with which RecBole reads them.
pub fn write(context: &Context, folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let name = &context.config.dataset.name;
    let dataset = ExportedDataset::read(context)?;
    expect_ids(&dataset)?;
    let at = |suffix: &str| folder.join(format!("{name}.{suffix}"));
    let (inter, item) = (at("inter"), at("item"));
    files::write_bytes(&inter, interactions(&dataset, None).as_bytes())?;
    files::write_bytes(&item, items(&dataset).as_bytes())?;
    let mut paths = vec![inter, item];
    if dataset.sequences.parts.is_some() {
        for (set, own) in SETS.iter().zip(0..) {
            let path = at(&format!("{set}.inter"));
            files::write_bytes(&path, interactions(&dataset, Some(own)).as_bytes())?;
            paths.push(path);
        }
    }
    for own in &dataset.features {
        let path = at(&suffix(&own.modality));
        files::write_bytes(&path, features(&dataset, own).as_bytes())?;
        paths.push(path);
    }
    paths.extend(dataset.write_extra(folder, &paths)?);
    let yaml = at("yaml");
    files::write_bytes(&yaml, settings(name, &dataset).as_bytes())?;
    paths.push(yaml);
    Ok(paths)
}

/// Rejects ids that the files cannot hold.
pub fn expect_ids(dataset: &ExportedDataset) -> anyhow::Result<()> {
    expect_plain_ids(&dataset.items.ids, "item")?;
    expect_plain_ids(&dataset.users.ids, "user")
}

/// The suffix of a modality's file.
pub fn suffix(modality: &str) -> String {
    format!("{modality}emb")
}

fn interactions(dataset: &ExportedDataset, only: Option<u8>) -> String {
    let mut text = "user_id:token\titem_id:token\ttimestamp:float\n".to_owned();
    for (user, item, time, _) in dataset.events().filter(|event| only.is_none_or(|set| set == event.3)) {
        let (user, item) = (&dataset.users.ids[user], &dataset.items.ids[item as usize - 1]);
        let _ = writeln!(text, "{user}\t{item}\t{time}");
    }
    text
}

/// Normalises white space, and replaces double quotation marks, which `pandas` would read as the start of a quoted cell.
fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('"', "'")
}

fn items(dataset: &ExportedDataset) -> String {
    let mut text = "item_id:token\ttitle:token_seq\tcategories:token_seq\tsentences:token_seq\n".to_owned();
    let items = &dataset.items;
    for row in 0..items.len() {
        // A `token_seq` is separated by spaces, so names must not contain any.
        let categories: Vec<String> = items.categories[row].iter().map(|name| words(name).replace(' ', "_")).collect();
        let (title, sentences) = (words(&items.titles[row]), words(&items.sentences[row].join(" ")));
        let _ = writeln!(text, "{}\t{title}\t{}\t{sentences}", items.ids[row], categories.join(" "));
    }
    text
}

fn features(dataset: &ExportedDataset, own: &ModalityFeatures) -> String {
    let modality = &own.modality;
    let mut text = format!("{modality}_iid:token\t{modality}_emb:float_seq\n");
    for (row, id) in dataset.items.ids.iter().enumerate() {
        if let Some(vector) = own.mean(row) {
            let numbers: Vec<String> = vector.iter().map(ToString::to_string).collect();
            let _ = writeln!(text, "{id}\t{}", numbers.join(" "));
        }
    }
    text
}

/// The settings for RecBole, as YAML; JSON values are valid YAML values.
fn settings(name: &str, dataset: &ExportedDataset) -> String {
    let modalities: Vec<&str> = dataset.features.iter().map(|own| own.modality.as_str()).collect();
    let all = |of: &dyn Fn(&str) -> (String, Value)| -> Value {
        Value::Object(modalities.iter().map(|modality| of(modality)).collect())
    };
    let mut columns =
        json!({ "inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "title", "categories"] });
    for modality in &modalities {
        columns[suffix(modality)] = json!([format!("{modality}_iid"), format!("{modality}_emb")]);
    }
    let split = if dataset.sequences.parts.is_some() {
        json!({ "order": "TO", "group_by": "user", "mode": "full" })
    } else {
        json!({ "split": { "LS": "valid_and_test" }, "order": "TO", "group_by": "user", "mode": "full" })
    };
    let mut keys = vec![
        ("dataset", json!(name)),
        ("field_separator", json!("\t")),
        ("seq_separator", json!(" ")),
        ("USER_ID_FIELD", json!("user_id")),
        ("ITEM_ID_FIELD", json!("item_id")),
        ("TIME_FIELD", json!("timestamp")),
        ("load_col", columns),
        ("eval_args", split),
    ];
    if dataset.sequences.parts.is_some() {
        keys.push(("benchmark_filename", json!(SETS)));
    }
    if !modalities.is_empty() {
        let suffixes: Vec<String> = modalities.iter().map(|modality| suffix(modality)).collect();
        let aliases: Vec<String> = modalities.iter().map(|modality| format!("{modality}_iid")).collect();
        keys.push(("additional_feat_suffix", json!(suffixes)));
        keys.push(("alias_of_item_id", json!(aliases)));
        let weights = |modality: &str| (format!("{modality}_iid"), json!(format!("{modality}_emb")));
        keys.push(("preload_weight", all(&weights)));
    }
    let mut text = "# How RecBole reads this folder; `data_path` is the folder above it.\n".to_owned();
    keys.iter().for_each(|(key, value)| _ = writeln!(text, "{key}: {value}"));
    text
}
