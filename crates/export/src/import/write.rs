//! Writes an import: raw files, a pipeline for them, and features beside the resulting dataset.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail, ensure};
use indexmap::IndexSet;
use mp4sr_artifact::{FeatureType, Features, Items, Layout, PreprocessReport, Sequences, files};
use mp4sr_pipeline::config::{ModelCatalog, ModelType};
use mp4sr_pipeline::{Bug, Config, Progress, StageArgs};
use serde_json::{Map, Value, json};

use super::args::ImportArgs;
use super::events::{ImportClock, Interactions, written};
use super::items::ImportedItem;
use super::split::{Division, SET_STEP, decide};
use crate::dataset::{About, ModalityFeatures, ragged_files, read_item_lines};
use crate::folder::{self, IMPORT};
use crate::npy;

/// A dataset as it was read.
pub struct Imported {
    /// The program that the dataset comes from, in lower case.
    pub format: &'static str,
    /// The name of the dataset unless the user gives one.
    pub default_name: String,
    pub interactions: Interactions,
    /// The items, one per item of the interactions, in the same order.
    pub items: Vec<ImportedItem>,
    /// The features of the items, in the same order.
    pub features: Vec<ModalityFeatures>,
    /// The record of this program, if it exported the dataset.
    pub about: Option<About>,
    /// Notes for the user.
    pub notes: Vec<String>,
}

/// Reads the items that this program exported beside the other format, in the order of `ids`; `None` if it did not export the dataset.
pub fn exported_items<'i>(
    args: &ImportArgs,
    about: Option<&About>,
    ids: impl Iterator<Item = &'i String>,
    notes: &mut Vec<String>,
) -> anyhow::Result<Option<Vec<ImportedItem>>> {
    let Some(lines) = about.map(|_| read_item_lines(&args.folder)).transpose()?.flatten() else { return Ok(None) };
    let mut by_id: HashMap<String, _> = lines.into_iter().map(|line| (line.item_id.clone(), line)).collect();
    let (mut left_out, mut unknown) = (0, 0);
    let items = ids.map(|id| match by_id.remove(id) {
        Some(line) => ImportedItem::of_line(line, args.images.is_some(), &mut left_out),
        None => {
            unknown += 1;
            ImportedItem::of_id(id)
        }
    });
    let items = items.collect();
    if left_out > 0 {
        notes.push(format!(
            "{left_out} names of image and sound files are left out; `--images FOLDER` names the folder of the files"
        ));
    }
    if unknown > 0 {
        notes.push(format!("`mp4sr/items.jsonl` does not describe {unknown} items: they have no texts"));
    }
    Ok(Some(items))
}

/// Reads the feature rows that this program exported beside the matrix at `path`, which holds only their means, in the order of `ids`.
/// Returns the matrix itself if it has changed since, or if every item has one row.
pub fn features_of(
    folder: &Path,
    path: &Path,
    about: Option<&About>,
    ids: &IndexSet<String>,
    matrix: ModalityFeatures,
) -> anyhow::Result<ModalityFeatures> {
    let (rows_file, offsets_file) = ragged_files(folder, &matrix.modality);
    let is_own = about.map_or(Ok(false), |about| about.knows(path))?;
    if !is_own || !rows_file.exists() || !offsets_file.exists() {
        return Ok(matrix);
    }
    let Some(lines) = read_item_lines(folder)? else { return Ok(matrix) };
    let (rows, offsets) = (npy::NpyMatrix::read(&rows_file)?, npy::read_i64(&offsets_file)?);
    let fits = offsets.len() == lines.len() + 1
        && offsets[0] == 0
        && offsets.is_sorted()
        && offsets[lines.len()] == rows.rows() as i64
        && rows.width == matrix.width;
    ensure!(fits, "`{}` does not match the files beside it; export the dataset again", rows_file.display());
    let stored =
        ModalityFeatures { modality: matrix.modality.clone(), offsets, values: rows.values, width: rows.width };
    let by_id: HashMap<&str, usize> = lines.iter().map(|line| line.item_id.as_str()).zip(0..).collect();
    let (mut offsets, mut values) = (vec![0_i64], Vec::new());
    for (row, id) in ids.iter().enumerate() {
        // An item that was added after the export only has its row of the matrix.
        values.extend_from_slice(by_id.get(id.as_str()).map_or_else(|| matrix.rows(row), |&own| stored.rows(own)));
        offsets.push((values.len() / stored.width) as i64);
    }
    Ok(ModalityFeatures { offsets, values, ..stored })
}

/// Writes the import, and logs the next command.
pub fn write(
    args: &ImportArgs,
    mut read: Imported,
    models: &Arc<ModelCatalog>,
    progress: &Progress,
) -> anyhow::Result<()> {
    let name = args.name.clone().unwrap_or_else(|| plain_name(&read.default_name));
    expect_free(args, &name)?;
    read.interactions.sort_by_time();
    let ratios: Vec<[f64; 3]> = read.about.iter().filter_map(|about| about.ratio).chain([[0.8, 0.1, 0.1]]).collect();
    let is_cut = read.about.as_ref().is_some_and(|about| about.is_cut);
    let division = decide(&read.interactions, &ratios, is_cut);
    let clock = match &read.about {
        _ if division == Division::Positions => ImportClock::Order,
        Some(about) if about.positions => ImportClock::Positions,
        Some(_) if read.interactions.has_early_times() => ImportClock::Order,
        Some(about) if about.dates => ImportClock::Dates,
        Some(_) => ImportClock::Seconds,
        None => read.interactions.clock(),
    };
    // With `ImportClock::Order`, positions are written instead of the times, so a split by time would not divide the users as before.
    let division = match division {
        Division::Time { .. } if clock == ImportClock::Order => Division::Positions,
        other => other,
    };
    if division == Division::Positions {
        read.interactions.sort_by_set();
    }
    let format = read.format;
    folder::write(&args.out, IMPORT, |made| {
        files::write_bytes(&made.join("interactions.jsonl"), events(&read.interactions, clock, &division)?.as_bytes())?;
        let items: Vec<String> = read.items.iter().map(serde_json::to_string).collect::<Result<_, _>>()?;
        files::write_bytes(&made.join("items.jsonl"), (items.join("\n") + "\n").as_bytes())?;
        let pipeline = pipeline(&name, &ImportPaths::of(args), &read, clock, &division, models);
        Config::parse(&pipeline, "the pipeline of the import", &[], models)?;
        files::write_bytes(&made.join("pipeline.toml"), pipeline.as_bytes())?;
        Ok(json!({ "format": format, "dataset": name, "program": env!("CARGO_PKG_VERSION") }))
    })?;
    progress.log(format!("import: {}", described(&division, clock)));
    let pipeline = args.out.join("pipeline.toml");
    let stage = StageArgs {
        pipeline: pipeline.clone(),
        artifacts: args.artifacts.clone(),
        quiet: args.quiet,
        ..StageArgs::default()
    };
    let context = stage.context(models)?;
    mp4sr_preprocess::run(&context)?;
    let items = Items::read(&context.layout.items())?;
    let sequences = Sequences::read(&context.layout.sequences())?;
    let (events, kept) = (read.interactions.events.len(), sequences.items.len());
    if events != kept || items.len() != read.items.len() {
        let found =
            format!("{kept} of {events} events and {} of {} items were imported", items.len(), read.items.len());
        match rejected(&context.layout)? {
            Some(why) => bail!("{found}, because {why}; correct this in `{}`", args.folder.display()),
            None => return Err(Bug(found).into()),
        }
    }
    for own in &read.features {
        let path = context.layout.feature_file(&own.modality, format);
        let features = in_order(own, &read.items, &items)?;
        features.write(&path, "import", json!({ "format": format }))?;
        progress.log(format!("import: features of `{}` in `{}`", own.modality, path.display()));
    }
    progress.log(format!("import: next, `mp4sr run --pipeline {}`", pipeline.display()));
    Ok(())
}

/// Why the lines of an import could not be used, if some could not, with an example.
fn rejected(layout: &Layout) -> anyhow::Result<Option<String>> {
    let Some(PreprocessReport { interactions, items, .. }) = PreprocessReport::read(&layout.statistics())? else {
        return Ok(None);
    };
    let mut all = interactions.rejected.0.into_iter().chain(items.rejected.0);
    Ok(all.next().map(|(reason, rejected)| {
        let example = rejected.examples.first().map_or(String::new(), |example| format!(" ({})", example.found));
        format!("{} lines were rejected: {reason}{example}", rejected.count)
    }))
}

/// Rejects a name if the artifacts have a dataset of that name which is not an earlier import to the same folder: its runs would be lost.
fn expect_free(args: &ImportArgs, name: &str) -> anyhow::Result<()> {
    let layout = Layout::new(&args.artifacts, name, "");
    let record = args.out.join(IMPORT);
    let is_again = || {
        let record: Option<Value> = serde_json::from_slice(&files::read(&record).ok()?).ok();
        record.filter(|record| record["dataset"] == name)
    };
    if layout.sequences().exists() && is_again().is_none() {
        bail!(
            "`{}` already contains a dataset, which would be lost; give this one another name with `--name`",
            layout.root().display()
        );
    }
    Ok(())
}

/// Converts a name to one that is valid for a dataset.
fn plain_name(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' };
    name.trim_start_matches('.').chars().map(plain).take(100).collect()
}

fn events(interactions: &Interactions, clock: ImportClock, division: &Division) -> anyhow::Result<String> {
    let mut text = String::new();
    for own in interactions.by_user() {
        let mut counts = [0_u64; 3];
        for (at, event) in own.iter().enumerate() {
            let time = match (division, clock) {
                (Division::Positions, _) => {
                    let set = event.set as usize;
                    counts[set] += 1;
                    json!(SET_STEP * set as u64 + counts[set] - 1)
                }
                (_, ImportClock::Order) => json!(at),
                _ => written(event.time, clock),
            };
            let mut fields = Map::new();
            for (name, cell) in interactions.columns.iter().zip(&event.further) {
                fields.insert(name.clone(), value_of(cell));
            }
            let of = |ids: &IndexSet<String>, row: u32| ids.get_index(row as usize).cloned();
            let user = of(&interactions.users, event.user).context("a user has no id")?;
            let item = of(&interactions.items, event.item).context("an item has no id")?;
            fields.extend([
                ("user_id".to_owned(), user.into()),
                ("item_id".to_owned(), item.into()),
                (time_column(clock).to_owned(), time),
            ]);
            text += &serde_json::to_string(&fields)?;
            text.push('\n');
        }
    }
    Ok(text)
}

/// A time without quotation marks.
fn bare(time: &Value) -> String {
    time.as_str().map_or_else(|| time.to_string(), str::to_owned)
}

fn time_column(clock: ImportClock) -> &'static str {
    match clock {
        ImportClock::Seconds | ImportClock::Dates | ImportClock::Milliseconds => "timestamp",
        ImportClock::Positions | ImportClock::Order => "position",
    }
}

/// The value of a cell: a number if it is one, otherwise text; null if it is empty.
fn value_of(cell: &str) -> Value {
    if cell.is_empty() {
        return Value::Null;
    }
    let number: Option<serde_json::Number> = serde_json::from_str(cell).ok();
    number.map_or_else(|| cell.into(), Value::Number)
}

fn described(division: &Division, clock: ImportClock) -> String {
    let shown = |time: f64| bare(&written(time, clock));
    let divided = match division {
        Division::LeaveOneOut => "each user's last event is for the test, and the one before it for validation".to_owned(),
        Division::Ratio(shares) => format!("each user's events are divided in the shares {shares:?}, in their original order"),
        Division::Time { validation, test } => {
            let (validation, test) = (shown(*validation), shown(*test));
            format!("events from {validation} on are for validation, those from {test} on for the test, in their original order")
        }
        Division::Positions => {
            "the sets match no split by leave-one-out, ratio or time: they are kept, each user's events are ordered set by set, and \
             times are discarded".to_owned()
        }
    };
    match clock {
        ImportClock::Order if *division != Division::Positions => {
            format!("{divided}; the events have no timestamps, so they keep their order")
        }
        _ => divided,
    }
}

/// The paths that the pipeline names.
struct ImportPaths {
    data: String,
    interactions: String,
    items: String,
}

impl ImportPaths {
    /// The files of images and sounds are in the data folder. If that is not the output folder, the raw files are named by absolute paths.
    fn of(args: &ImportArgs) -> Self {
        let shown = |path: PathBuf| path.display().to_string();
        let (interactions, items) = ("interactions.jsonl", "items.jsonl");
        let whole =
            |name: &str| shown(std::path::absolute(args.out.join(name)).unwrap_or_else(|_| args.out.join(name)));
        match &args.images {
            Some(images) => {
                Self { data: shown(images.clone()), interactions: whole(interactions), items: whole(items) }
            }
            None => {
                Self { data: shown(args.out.clone()), interactions: interactions.to_owned(), items: items.to_owned() }
            }
        }
    }
}

fn pipeline(
    name: &str,
    paths: &ImportPaths,
    read: &Imported,
    clock: ImportClock,
    division: &Division,
    models: &ModelCatalog,
) -> String {
    let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
    let has = |of: &dyn Fn(&ImportedItem) -> bool| read.items.iter().any(of);
    let mut text = format!(
        "# A dataset of {}, imported by `mp4sr import`.\n\n[dataset]\nname = {}\ndata = {}\n\n[source]\nformat = \"tabular\"\n\
         interactions = [{}]\nitems = [{}]\nhtml = []\n",
        if read.format == "recbole" { "RecBole" } else { "MMRec" },
        quoted(name),
        quoted(&paths.data),
        quoted(&paths.interactions),
        quoted(&paths.items),
    );
    match clock {
        ImportClock::Seconds => text += "time = \"s\"\n",
        ImportClock::Dates => text += "time = \"iso\"\n",
        ImportClock::Milliseconds => text += "time = \"ms\"\n",
        ImportClock::Positions | ImportClock::Order => {}
    }
    text += "\n[source.columns]\n";
    if time_column(clock) == "position" {
        text += "position = \"position\"\n";
    }
    type Column<'c> = (&'c str, &'c str, &'c dyn Fn(&ImportedItem) -> bool);
    let columns: [Column<'_>; 5] = [
        ("sentences", "\"sentences\"", &|item| !item.sentences.is_empty()),
        ("texts", "[\"texts\"]", &|item| !item.texts.is_empty()),
        ("images", "\"images\"", &|item| !item.images.is_empty()),
        ("categories", "[\"categories\"]", &|item| !item.categories.is_empty()),
        ("sounds", "\"sounds\"", &|item| !item.sounds.is_empty()),
    ];
    for (key, value, _) in columns.iter().filter(|(.., used)| has(used)) {
        let _ = writeln!(text, "{key} = {value}");
    }
    text += "\n# Nothing is filtered, so that the dataset is the one that was imported, and the features are of its items.\n[preprocess]\n\
             user_core = 0\nitem_core = 0\nmissing = \"keep\"\nrepeated = \"all\"\nitem_order = \"items\"\n\
             items_without_events = \"keep\"\nmin_described = 0\nmax_sentences = 1000\nmax_images = 1000\n";
    match division {
        Division::LeaveOneOut => {}
        Division::Ratio(shares) => _ = writeln!(text, "split = \"ratio\"\nsplit_ratio = {shares:?}"),
        Division::Time { validation, test } => {
            let at = |time: f64| quoted(&bare(&written(time, clock)));
            let _ = writeln!(text, "split = \"time\"\nsplit_at = {}\nsplit_test_at = {}", at(*validation), at(*test));
        }
        Division::Positions => {
            let _ = writeln!(text, "split = \"time\"\nsplit_at = \"{SET_STEP}\"\nsplit_test_at = \"{}\"", 2 * SET_STEP);
        }
    }
    text += "\n[model]\n";
    let own =
        |own: &ModalityFeatures| format!("{{ name = {}, features = {} }}", quoted(&own.modality), quoted(read.format));
    let modalities: Vec<String> = read.features.iter().map(own).collect();
    if !modalities.is_empty() {
        let _ = writeln!(text, "modalities = [{}]", modalities.join(", "));
    } else if has(&|item| !item.title.is_empty() || !item.sentences.is_empty() || !item.texts.is_empty()) {
        text += "modalities = [{ name = \"text\" }]\n";
    } else {
        let model = models.id_model().map_or("", ModelType::name);
        let _ = writeln!(
            text,
            "# The data has neither text nor features, so the model reads only ids.\nname = {}",
            quoted(model)
        );
    }
    text
}

/// The feature rows in the order of the dataset's items.
fn in_order(own: &ModalityFeatures, from: &[ImportedItem], items: &Items) -> anyhow::Result<Features> {
    let rows: HashMap<&str, usize> = from.iter().map(|item| item.item_id.as_str()).zip(0..).collect();
    let (mut offsets, mut values) = (vec![0_i64], Vec::with_capacity(own.values.len()));
    for id in &items.ids {
        let row = *rows.get(id.as_str()).with_context(|| format!("the item {id:?} was not imported"))?;
        values.extend_from_slice(own.rows(row));
        offsets.push((values.len() / own.width.max(1)) as i64);
    }
    Features::from_f32(offsets, &values, own.width, FeatureType::F32, items.hash())
        .with_context(|| format!("the features of `{}` contain a value that is not finite", own.modality))
}

/// The path of the file with this name, if it is among `paths`.
pub fn file_with(paths: &[PathBuf], name: &str) -> Option<PathBuf> {
    paths.iter().find(|path| path.file_name().is_some_and(|own| own == name)).cloned()
}
