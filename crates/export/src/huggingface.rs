//! A model folder in the layout of the Hugging Face hub: a configuration, the weights and a model card. It also holds the run with its
//! catalogue, so that this program can recommend from the folder wherever it is.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use mp4sr_artifact::{Layout, Sequences, files};
use mp4sr_models::FINETUNE;
use mp4sr_pipeline::config::{Precision, StoreUrl};
use mp4sr_pipeline::text::TextTable;
use mp4sr_pipeline::{Config, Context};
use mp4sr_protocol::{Metric, MetricMeans, Split, StoredRanks};
use mp4sr_run::Inputs;
use serde_json::{Value, json};

use crate::exported::Export;

/// The folder of the run, in the layout of artifacts.
const ARTIFACTS: &str = "artifacts";

/// Writes the folder, and returns the paths of its files.
pub fn write(export: &Export<'_>, folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let context = export.context;
    let mut paths = copy_run(export, &folder.join(ARTIFACTS))?;
    let weights = folder.join("model.safetensors");
    files::copy(&context.layout.checkpoint(FINETUNE), &weights)?;
    let config = folder.join("config.json");
    files::write_json(&config, &configuration(export))?;
    let card = folder.join("README.md");
    files::write_bytes(&card, card_text(export)?.as_bytes())?;
    paths.extend([weights, config, card]);
    Ok(paths)
}

/// Checks that the stored ranks, if there are any, belong to the run.
pub fn check(context: &Context, sequences: &Sequences) -> anyhow::Result<()> {
    metrics(&context.config, &context.layout, sequences).map(drop)
}

/// Copies what `mp4sr recommend` reads: the dataset, the features of the model, the weights, the configuration and the added items.
fn copy_run(export: &Export<'_>, artifacts: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let (config, layout) = (&export.context.config, &export.context.layout);
    let own = Layout::new(artifacts, &config.dataset.name, layout.run_name());
    let mut sources: Vec<PathBuf> = Inputs::files(layout, config).into_iter().map(|(_, path)| path).collect();
    sources.extend([layout.items(), layout.users(), layout.checkpoint(FINETUNE)]);
    sources.sort();
    sources.dedup();
    let mut paths = export.store.copy(export.context, &own)?;
    for source in sources {
        let relative = source.strip_prefix(layout.root()).context("a file of the run is outside of its artifacts")?;
        let path = own.root().join(relative);
        files::copy(&source, &path)?;
        paths.push(path);
    }
    // The data folder of this machine does not exist on another one.
    let mut elsewhere: Config = config.clone();
    "data".clone_into(&mut elsewhere.dataset.data);
    // The added items are in the folder of the copied run.
    elsewhere.serve.store = StoreUrl::default();
    // The other machine may have no GPU, and new items can be encoded in 32 bits everywhere.
    "cpu".clone_into(&mut elsewhere.run.device);
    elsewhere.extract.precision = Precision::F32;
    if elsewhere.train.precision == Precision::Tf32 {
        elsewhere.train.precision = Precision::F32;
    }
    files::write_bytes(&own.run_config(), elsewhere.to_toml()?.as_bytes())?;
    paths.push(own.run_config());
    Ok(paths)
}

fn configuration(export: &Export<'_>) -> Value {
    let (config, trained) = (&export.context.config, &export.run.trained);
    let sequences = &trained.inputs.sequences;
    let info = &trained.checkpoint.info;
    let modalities = config.model.modalities.iter();
    let features: Vec<Value> = modalities
        .map(|own| {
            let encoder = trained.inputs.encoders.get(&own.name);
            json!({ "modality": own.name, "features": config.feature_name(own), "encoder": encoder })
        })
        .collect();
    json!({
        "model_type": config.model.name,
        "library_name": "mp4sr",
        "mp4sr_version": env!("CARGO_PKG_VERSION"),
        "dataset": config.dataset.name,
        "run": export.context.layout.run_name(),
        "users": sequences.user_count(),
        "items": sequences.item_count,
        "new_items": export.run.catalogue.new_items,
        "interests": export.answerer.scorer().interests(),
        "vector_width": export.answerer.scorer().items().dims().last(),
        "modalities": if trained.inputs.modalities.is_empty() { Vec::new() } else { features },
        "epoch": info.epoch,
        "settings": info.settings_of_results(&export.context.layout, config),
    })
}

fn card_text(export: &Export<'_>) -> anyhow::Result<String> {
    let (config, layout) = (&export.context.config, &export.context.layout);
    let sequences = &export.run.trained.inputs.sequences;
    let (model, dataset, run) = (&config.model.name, &config.dataset.name, layout.run_name());
    let metrics = metrics(config, layout, sequences)?;
    let mut text = "---\n".to_owned();
    for (key, value) in front_matter(model, dataset, metrics.as_ref()) {
        // A JSON value is a YAML value.
        let _ = writeln!(text, "{key}: {value}");
    }
    let _ = writeln!(
        text,
        "---\n\n# {run}: {model} on {dataset}\n\nThis folder contains the model `{model}`, trained by mp4sr {} on the dataset \
         `{dataset}`, with the catalogue that it ranks.\n\nThe folder `{ARTIFACTS}` contains the users' ids and histories, the items' ids, titles \
         and texts, and their features. The model needs them to rank; inspect them before you publish the folder. This card does not name a licence; \
         add one that the data permit.\n",
        env!("CARGO_PKG_VERSION")
    );
    text += &statistics(export, sequences);
    text += &metrics.map_or_else(
        || "## Metrics\n\nThe run was not evaluated; `mp4sr evaluate` before the export fills this section.\n\n".to_owned(),
        |metrics| {
            let mut table = TextTable::new(["metric", "test"]);
            let row = |(metric, value): &(Metric, f64)| vec![metric.to_string(), format!("{value:.4}")];
            table.rows.extend(metrics.values.iter().map(row));
            format!(
                "## Metrics\n\nThe next item of {} users is ranked among all candidates; ties count against the model.\n\n{}\n",
                metrics.users,
                table.markdown()
            )
        },
    );
    // Other ids would have to be quoted, in a way that depends on the shell.
    let is_plain = |id: &&String| {
        id.starts_with(|c: char| c.is_ascii_alphanumeric())
            && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    };
    let id = export.run.catalogue.items.ids.iter().find(is_plain).map_or("ITEM_ID", String::as_str);
    let path = format!("{ARTIFACTS}/{dataset}/runs/{run}");
    let _ = writeln!(
        text,
        "## How to use it\n\nWith mp4sr, in this folder:\n\n    mp4sr recommend --run {path} --history '{id}'\n    mp4sr serve --run \
         {path}\n\nThe parameters in Python:\n\n```python\nimport json\nfrom safetensors import safe_open\n\nsettings = \
         json.load(open(\"config.json\"))\nwith safe_open(\"model.safetensors\", \"numpy\") as file:\n    parameters = {{name: \
         file.get_tensor(name) for name in file.keys()}}\n```\n\n`config.json` has every setting of the weights. `mp4sr export --format \
         vectors-npy` writes the vectors that scores are made of."
    );
    Ok(text)
}

/// The metrics of the test set; `None` if the run was not evaluated.
fn metrics(config: &Config, layout: &Layout, sequences: &Sequences) -> anyhow::Result<Option<MetricMeans>> {
    if !layout.ranks(Split::Test.name()).exists() {
        return Ok(None);
    }
    let stored = StoredRanks::read(layout, sequences, Split::Test, None)?;
    Ok(Some(MetricMeans::of(&stored.ranks, &Metric::table(&config.evaluate.k, &config.evaluate.metrics))))
}

/// The metadata of the model card, as the hub reads them.
fn front_matter(model: &str, dataset: &str, metrics: Option<&MetricMeans>) -> Vec<(&'static str, Value)> {
    let tags: indexmap::IndexSet<&str> = ["recommendation", "sequential-recommendation", "mp4sr", model].into();
    let mut keys = vec![("library_name", json!("mp4sr")), ("tags", json!(tags.iter().collect::<Vec<_>>()))];
    if let Some(metrics) = metrics {
        let kind = |metric: Metric| match metric {
            Metric::Recall(k) => format!("recall_at_{k}"),
            Metric::Ndcg(k) => format!("ndcg_at_{k}"),
            Metric::ReciprocalRank => "mrr".to_owned(),
            Metric::Hit(k) => format!("hit_at_{k}"),
            Metric::Precision(k) => format!("precision_at_{k}"),
            Metric::AveragePrecision(k) => format!("map_at_{k}"),
            Metric::ReciprocalRankAt(k) => format!("mrr_at_{k}"),
        };
        let values: Vec<Value> = metrics
            .values
            .iter()
            .map(|(metric, value)| json!({ "type": kind(*metric), "name": metric.to_string(), "value": value }))
            .collect();
        keys.push((
            "model-index",
            json!([{ "name": model, "results": [{
                "task": { "type": "recommendation", "name": "Next-item recommendation" },
                "dataset": { "type": dataset, "name": dataset, "split": "test" },
                "metrics": values,
            }]}]),
        ));
    }
    keys
}

fn statistics(export: &Export<'_>, sequences: &Sequences) -> String {
    let (users, items, events) = (sequences.user_count(), sequences.item_count, sequences.items.len());
    let per_user = events as f64 / users.max(1) as f64;
    let density = events as f64 / (users.max(1) as f64 * items.max(1) as f64);
    let new = export.run.catalogue.new_items;
    let mut table = TextTable::new(["statistic", "value"]);
    let mut row = |name: &str, value: String| table.rows.push(vec![name.to_owned(), value]);
    row("users", users.to_string());
    row("items", items.to_string());
    row("interactions", events.to_string());
    row("interactions per user", format!("{per_user:.2}"));
    row("density", format!("{:.4} %", 100.0 * density));
    if new > 0 {
        row("items added after training", new.to_string());
    }
    for modality in &export.run.trained.inputs.modalities {
        let features = &modality.features;
        let covered = (0..features.count()).filter(|&item| features.rows_of(item) > 0).count();
        row(&format!("items with `{}`", modality.name), covered.to_string());
    }
    format!("## Data\n\n{}\n", table.markdown())
}
