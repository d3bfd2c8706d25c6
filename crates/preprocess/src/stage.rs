//! The stage from raw files to a written dataset.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use mp4sr_artifact::{FilterStep, Layout, Stage, StageSettings, files};
use mp4sr_pipeline::config::{Config, Missing, Preprocess, Source};
use mp4sr_pipeline::{Context, Progress, print, run_stage};
use serde_json::json;

use crate::dataset::Dataset;
use crate::filter::{Ordered, order};
use crate::images::ImageFolder;
use crate::input::Inputs;
use crate::kcore::Bounds;
use crate::report::Report;
use crate::source::{Budget, Catalogue, Events, Reading, SourceForm};
use crate::{Error, Result, report, source, table1};

/// Raised with every change after which the same raw files give other bytes.
const VERSION: u32 = 3;

/// Brings the dataset up to date and prints its statistics when there was anything to do.
pub fn run(context: &Context) -> anyhow::Result<()> {
    let config = &context.config;
    let folder = context.layout.dataset();
    let make_stage = || -> anyhow::Result<Stage> {
        // Errors that can be known now are reported before the last run's manifest is removed.
        table1::row(&config.dataset.table1)?;
        SourceForm::new(&config.source)?;
        let inputs = Inputs::resolve(config)?;
        let settings = json!({
            "data": config.dataset.data,
            "table1": config.dataset.table1,
            "source": config.source,
            "preprocess": config.preprocess,
            "image_names": inputs.image_names(config)?,
        });
        let defaults = json!({ "source": Source::default(), "preprocess": Preprocess::default() });
        let settings = StageSettings::new(settings, defaults);
        Ok(Stage::new("preprocess", VERSION, &folder, settings, &inputs.by_role())?)
    };
    run_stage(context, "preprocess", &folder, make_stage, |stage| {
        let (report, outputs) = make(config, &context.layout, stage.settings().values(), &context.progress)?;
        print(&report::table(&report))?;
        Ok(outputs)
    })
}

/// Reads and filters all that a pipeline names and accounts for it, without writing anything: for the fuzz targets.
#[doc(hidden)]
pub fn account(config: &Config) -> Result<Report> {
    Ok(read(config, &Progress::new(true))?.0)
}

/// Lines of a file of interactions, and how many of them are events: for the fuzz targets.
#[doc(hidden)]
pub fn count_events(path: &Path, source: &Source) -> Result<(u64, u64)> {
    source::count_events(path, &SourceForm::new(source)?)
}

/// The same of a file of items.
#[doc(hidden)]
pub fn count_items(path: &Path, source: &Source) -> Result<(u64, u64)> {
    source::count_items(path, &SourceForm::new(source)?)
}

/// Reads, filters, writes.
fn make(
    config: &Config,
    layout: &Layout,
    settings: &serde_json::Value,
    progress: &Progress,
) -> Result<(Report, Vec<PathBuf>)> {
    let (report, dataset) = read(config, progress)?;
    let mut outputs = dataset.write(layout, settings)?;
    files::write_json(&layout.statistics(), &report)?;
    outputs.push(layout.statistics());
    Ok((report, outputs))
}

fn read(config: &Config, progress: &Progress) -> Result<(Report, Dataset)> {
    let table1 = table1::row(&config.dataset.table1)?;
    let inputs = Inputs::resolve(config)?;
    let form = SourceForm::new(&config.source)?;
    let preprocess = &config.preprocess;
    let mut budget = Budget::new(preprocess.max_bad_lines);
    let mut warnings = Vec::new();

    let (events, events_read) = Events::read(&inputs.interactions, &form, &mut budget, progress)?;
    let Events { user_ids, item_ids, users, items, times, units } = events;
    let accepted = users.len() as u64;
    let mut steps = vec![FilterStep {
        filter: "raw".to_owned(),
        dropped: BTreeMap::new(),
        events: accepted,
        users: user_ids.len() as u64,
        items: item_ids.len() as u64,
    }];
    let mut ordered = order(users, items, times, preprocess.repeated);
    let repeats = accepted - ordered.kept();
    steps.push(ordered.step("repeated events", only("repeated event", repeats)));

    if preprocess.recent > 0 {
        let dropped = ordered.keep_recent(preprocess.recent);
        let filter = format!("the last {} events of a user", preprocess.recent);
        steps.push(ordered.step(&filter, only("earlier event", dropped)));
    }

    // Unset bounds can't occur in a resolved configuration.
    let bounds = Bounds { user: preprocess.user_core.unwrap_or(0), item: preprocess.item_core.unwrap_or(0) };
    let before_core = ordered.keep.clone();
    let dropped_by_core = ordered.core(bounds);
    // Dropping incomplete items can only shrink the core, so that nothing outside of it is ever needed.
    let needed = ordered.marks(&ordered.items, item_ids.len());

    let folder = match &inputs.images {
        Some(folder) if folder.is_dir() => ImageFolder::read(folder, &item_ids)?,
        Some(folder) => {
            warnings.push(format!("`{}` is not there yet: no item has a local image from it", folder.display()));
            ImageFolder::default()
        }
        None => ImageFolder::default(),
    };
    let reading = Reading {
        form: &form,
        data: &inputs.data,
        item_ids: &item_ids,
        needed: &needed,
        folder: &folder,
        max_sentences: preprocess.max_sentences,
        max_images: preprocess.max_images,
    };
    let (catalogue, items_read) = Catalogue::read(&inputs.items, &reading, &mut budget, progress)?;

    let core_filter = format!("{} events a user, {} an item", bounds.user, bounds.item);
    if preprocess.missing == Some(Missing::Drop) {
        ordered.keep = before_core;
        let dropped = ordered.drop_items(&catalogue.is_complete);
        steps.push(ordered.step("items without text or image", only("item without text or image", dropped)));
        let dropped = ordered.core(bounds);
        steps.push(ordered.step(&core_filter, dropped));
    } else {
        steps.push(ordered.step(&core_filter, dropped_by_core));
    }
    check_something_left(&steps)?;

    let ties = count_ties(&ordered);
    let dataset = Dataset::new(ordered, units, user_ids, item_ids, catalogue);
    let report = report::new(config, events_read, items_read, steps, ties, &dataset, table1, warnings);
    report::check(&report)?;
    report.warnings.iter().for_each(|warning| progress.log(format!("preprocess: {warning}")));
    Ok((report, dataset))
}

fn only(reason: &str, count: u64) -> BTreeMap<String, u64> {
    (count > 0).then(|| (reason.to_owned(), count)).into_iter().collect()
}

fn check_something_left(steps: &[FilterStep]) -> Result<()> {
    let Some(at) = steps.iter().position(|step| step.events == 0) else { return Ok(()) };
    let filter = &steps[at].filter;
    let remedy = if filter.starts_with("items without") {
        "set `preprocess.missing = \"keep\"`, or name files with texts and images in `[source]`"
    } else {
        "lower `preprocess.user_core` or `preprocess.item_core`"
    };
    Err(Error::NothingLeft {
        filter: format!("the filter `{filter}`"),
        events: at.checked_sub(1).map_or(0, |before| steps[before].events),
        remedy: remedy.to_owned(),
    })
}

/// Events that share user and time with the one before: their order is that of the input.
fn count_ties(events: &Ordered) -> u64 {
    let mut before = None;
    let mut ties = 0;
    for at in (0..events.users.len()).filter(|&at| events.keep[at]) {
        let now = (events.users[at], events.times[at]);
        ties += u64::from(before == Some(now));
        before = Some(now);
    }
    ties
}
