//! The stage from raw files to a written dataset.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use mp4sr_artifact::{FilterStep, Layout, Stage, StageSettings, files};
use mp4sr_pipeline::config::{Config, Missing, Preprocess, Repeated, Source};
use mp4sr_pipeline::{Context, Progress, print, run_stage};
use polars::prelude::{Column, DataFrame, IntoLazy as _, LazyFrame, df};
use serde_json::json;

use crate::condition::Condition;
use crate::core::{Bounds, core};
use crate::dataset::{Dataset, marks};
use crate::filters::{ITEM, SATISFIES, TIME, USER};
use crate::images::ImageFolder;
use crate::input::Inputs;
use crate::report::{Report, SequenceSpread};
use crate::source::{Budget, Catalogue, Clock, Events, Reading, SourceForm};
use crate::split::SplitRule;
use crate::window::Window;
use crate::{Error, Result, filters, report, source, table1};

/// Raised with every change after which the same raw files give other bytes.
const VERSION: u32 = 2;

/// Brings the dataset up to date and prints its statistics when there was anything to do.
pub fn run(context: &Context) -> anyhow::Result<()> {
    let config = &context.config;
    let folder = context.layout.dataset();
    let make_stage = || -> anyhow::Result<Stage> {
        // Errors that can be known now are reported before the last run's manifest is removed.
        table1::row(&config.dataset.table1)?;
        let form = SourceForm::new(&config.source)?;
        FilterSettings::new(&config.preprocess, form.clock)?;
        SplitRule::new(&config.preprocess, form.clock)?;
        Condition::parse(&config.preprocess.r#where)?;
        let inputs = Inputs::resolve(config)?;
        let settings = json!({
            "data": config.dataset.data,
            "table1": config.dataset.table1,
            "source": config.source,
            "preprocess": report::recorded(&config.preprocess),
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

    let condition = Condition::parse(&preprocess.r#where)?;
    let settings = FilterSettings::new(preprocess, form.clock)?;
    let split = SplitRule::new(preprocess, form.clock)?;
    let FilterSettings { window, bounds, .. } = settings;
    let (events, events_read) = Events::read(&inputs.interactions, &form, condition.as_ref(), &mut budget, progress)?;
    let Events { user_ids, item_ids, frame, named, known, units } = events;
    let mut filtered = Filtered::new(frame, user_ids.len() as u64, item_ids.len() as u64);
    if let Some(condition) = &condition {
        let file = inputs.interactions[0].display().to_string();
        filtered.satisfying(condition, condition.evaluate(named, &known, &file)?)?;
    }
    if let Some(described) = window.described(form.clock) {
        progress.log(format!("preprocess: {described}"));
        filtered.within(window, &described)?;
    }
    filtered.order(settings.repeated)?;
    if settings.recent > 0 {
        filtered.recent(settings.recent)?;
    }

    let (in_core, dropped_by_core) = core(filtered.events.clone(), bounds)?;
    // Dropping incomplete items can only shrink the core, so that nothing outside of it is ever needed.
    let needed = marks(&in_core, ITEM, item_ids.len())?;

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
        drop(in_core);
        filtered.complete(&catalogue.is_complete)?;
        let (in_core, dropped) = core(std::mem::take(&mut filtered.events), bounds)?;
        filtered.step(&core_filter, in_core, dropped)?;
    } else {
        filtered.step(&core_filter, in_core, dropped_by_core)?;
    }
    let Filtered { events, steps } = filtered;
    check_something_left(&steps)?;

    if let Some(described) = split.described(form.clock) {
        progress.log(format!("preprocess: {described}"));
    }
    let spread = SequenceSpread::of(&events)?;
    let dataset = Dataset::new(&events, units, &split, user_ids, item_ids, catalogue)?;
    let report = report::new(config, events_read, items_read, steps, spread, &dataset, table1, warnings);
    report::check(&report)?;
    report.warnings.iter().for_each(|warning| progress.log(format!("preprocess: {warning}")));
    Ok((report, dataset))
}

/// What the filters of events ask for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FilterSettings {
    pub window: Window,
    pub repeated: Repeated,
    pub recent: u32,
    pub bounds: Bounds,
}

impl FilterSettings {
    fn new(preprocess: &Preprocess, clock: Clock) -> Result<Self> {
        // Unset bounds can't occur in a resolved configuration.
        let bounds = Bounds { user: preprocess.user_core.unwrap_or(0), item: preprocess.item_core.unwrap_or(0) };
        let window = Window::new(preprocess, clock)?;
        Ok(Self { window, repeated: preprocess.repeated, recent: preprocess.recent, bounds })
    }
}

/// The events that are left, and what every filter dropped.
#[derive(Debug)]
pub(crate) struct Filtered {
    pub events: DataFrame,
    pub steps: Vec<FilterStep>,
}

impl Filtered {
    pub fn new(events: DataFrame, users: u64, items: u64) -> Self {
        let count = events.height() as u64;
        let raw = FilterStep { filter: "raw".to_owned(), dropped: BTreeMap::new(), events: count, users, items };
        Self { events, steps: vec![raw] }
    }

    /// Takes the events that a filter left.
    pub fn step(&mut self, filter: &str, left: DataFrame, dropped: BTreeMap<String, u64>) -> Result<()> {
        self.events = left;
        let counts = filters::counts(self.events.clone().lazy()).collect()?;
        self.steps.push(FilterStep {
            filter: filter.to_owned(),
            dropped,
            events: report::number(&counts, 0)?,
            users: report::number(&counts, 1)?,
            items: report::number(&counts, 2)?,
        });
        Ok(())
    }

    /// Runs a filter that drops events for one reason.
    pub fn run(&mut self, filter: &str, reason: &str, query: impl FnOnce(LazyFrame) -> LazyFrame) -> Result<()> {
        let before = self.events.height();
        let left = query(std::mem::take(&mut self.events).lazy()).collect()?;
        let dropped = only(reason, (before - left.height()) as u64);
        self.step(filter, left, dropped)
    }

    fn satisfying(&mut self, condition: &Condition, mut satisfies: Column) -> Result<()> {
        let missing = satisfies.null_count() as u64;
        satisfies.rename(SATISFIES.into());
        self.events.with_column(satisfies)?;
        let (before, filter) = (self.events.height() as u64, format!("where {}", condition.text()));
        let left = filters::satisfying(std::mem::take(&mut self.events).lazy()).collect()?;
        let unsatisfied = before - left.height() as u64 - missing;
        let mut dropped = only("condition not satisfied", unsatisfied);
        dropped.extend(only("condition on a missing value", missing));
        self.step(&filter, left, dropped)
    }

    fn within(&mut self, window: Window, described: &str) -> Result<()> {
        self.run(described, "outside of the time window", |events| filters::within(events, window.since, window.until))
    }

    pub fn order(&mut self, repeated: Repeated) -> Result<()> {
        let (users, times) = (self.events.column(USER)?.u32()?.max(), self.events.column(TIME)?.i64()?);
        let (first, last) = (times.min().unwrap_or_default(), times.max().unwrap_or_default());
        let users = users.map_or(0, |max| u64::from(max) + 1);
        let events = std::mem::take(&mut self.events).lazy();
        self.events = filters::ordered(events, users, first, first.abs_diff(last).saturating_add(1)).collect()?;
        self.run("repeated events", "repeated event", |events| filters::without_repeats(events, repeated))
    }

    pub fn recent(&mut self, count: u32) -> Result<()> {
        let filter = format!("the last {count} events of a user");
        self.run(&filter, "earlier event", |events| filters::recent(events, count))
    }

    pub fn complete(&mut self, is_complete: &[bool]) -> Result<()> {
        let items: Vec<u32> = (0..).zip(is_complete).filter(|(_, complete)| **complete).map(|(item, _)| item).collect();
        let items = df!(ITEM => items)?.lazy();
        self.run("items without text or image", "item without text or image", |events| filters::of_items(events, items))
    }
}

fn only(reason: &str, count: u64) -> BTreeMap<String, u64> {
    (count > 0).then(|| (reason.to_owned(), count)).into_iter().collect()
}

fn check_something_left(steps: &[FilterStep]) -> Result<()> {
    let Some(at) = steps.iter().position(|step| step.events == 0) else { return Ok(()) };
    let filter = &steps[at].filter;
    let remedy = if filter.starts_with("where ") {
        "change the condition"
    } else if filter.starts_with("events ") {
        "change `preprocess.since` or `preprocess.until`"
    } else if filter.starts_with("items without") {
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
