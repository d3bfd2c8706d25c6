//! The stage from raw files to a written dataset.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};

use mp4sr_artifact::{
    EventsRead, FilterStep, ItemsRead, JoinShares, Layout, PreprocessReport, Stage, StageSettings, files,
};
use mp4sr_pipeline::config::{Config, ItemOrder, Missing, Preprocess, Repeated, Source, SplitBy, WithoutEvents};
use mp4sr_pipeline::{Context, Progress, print, run_stage};
use polars::prelude::{IntoLazy as _, LazyFrame, df};
use serde_json::json;

use crate::condition::Condition;
use crate::core::{Bounds, core};
use crate::dataset::{Dataset, ItemNumbering, zero_times};
use crate::filters::ITEM;
use crate::images::{EmbeddedImages, ImageFolder, ImagePattern};
use crate::input::PreprocessInputs;
use crate::join::JoinedFiles;
use crate::junk::Junk;
use crate::partitions::{Counts, Partitions};
use crate::report::{Counted, SequenceSpread};
use crate::source::{Budget, Events, ItemCatalogue, NumberedIds, Reading, SourceFormat};
use crate::spill::MemoryLimit;
use crate::split::SplitRule;
use crate::window::{TimeScale, Window, check_numbers};
use crate::{Error, Result, filters, join, report, source, table1};

/// The version of the output. It is raised with every change after which the same raw files give other bytes.
const VERSION: u32 = 4;
/// The folder for images that files of items themselves contain, beside the dataset.
/// The folder for events that do not fit into memory, beside the dataset. A killed run leaves it behind; the next one replaces it.
const SPILL: &str = "spill";

/// Brings the dataset up to date and prints its statistics if there was anything to do.
pub fn run(context: &Context) -> anyhow::Result<()> {
    let config = &context.config;
    run_stage(
        context,
        "preprocess",
        &context.layout.dataset(),
        || stage(context),
        |stage| {
            let (report, outputs) = make(config, &context.layout, stage.settings().values(), &context.progress)?;
            stage.expect_unchanged_inputs()?;
            print(&report::table(&report))?;
            Ok(outputs)
        },
    )
}

/// Creates the stage from what it reads and the settings that decide what it writes.
pub fn stage(context: &Context) -> anyhow::Result<Stage> {
    let config = &context.config;
    // Errors that can be known now are reported before the last run's manifest is removed.
    check_settings(config)?;
    let inputs = PreprocessInputs::resolve(config)?;
    let mut settings = json!({
        "data": config.dataset.data,
        "table1": config.dataset.table1,
        "source": config.source,
        "preprocess": config.preprocess.deciding(),
        "image_names": inputs.image_names(config)?,
    });
    if config.preprocess.split == SplitBy::Time {
        // Earlier releases let later events decide which training events are kept.
        settings["kept_within"] = json!("sets");
    }
    let defaults = json!({ "source": Source::default(), "preprocess": Preprocess::default() });
    if config.preprocess.item_order == ItemOrder::Items && config.preprocess.items_without_events == WithoutEvents::Keep
    {
        // Earlier releases did not order the items without events by their lines.
        settings["items_without_events"] = json!("lines");
    }
    let columns = &config.source.columns;
    if !columns.title.is_empty() && columns.texts.contains(&columns.title) {
        // Earlier releases read such a title twice.
        settings["title_in_texts"] = json!("once");
    }
    let settings = StageSettings::new(settings, defaults).shown_as(&[
        ("data", "dataset.data"),
        ("table1", "dataset.table1"),
        ("kept_within", "preprocess.split"),
        ("items_without_events", "preprocess.items_without_events"),
        ("title_in_texts", "source.columns.texts"),
        ("image_names", "the names of the images"),
        ("image_files", "the files of the images"),
    ]);
    let stage = Stage::new("preprocess", VERSION, &context.layout.dataset(), settings, &inputs.by_role())?;
    let found = PreprocessInputs::found_since(config, &context.layout)?;
    Ok(stage.outdated_because(found.map(|path| format!("`{}` was missing before", path.display()))))
}

/// Rejects settings that are wrong for any raw files.
pub fn check_settings(config: &Config) -> Result<()> {
    table1::row(&config.dataset.table1)?;
    let format = SourceFormat::new(&config.source)?;
    let scale = TimeScale::unknown(format.clock.kind());
    FilterSettings::new(&config.preprocess, scale)?;
    SplitRule::new(&config.preprocess, scale)?;
    Condition::parse(&config.preprocess.r#where)?;
    MemoryLimit::new(&config.preprocess.memory, PathBuf::new())?;
    Ok(())
}

/// The raw files that a pipeline names, by role; an error says what is wrong with the first that cannot be read.
pub fn inputs(config: &Config) -> Result<Vec<(String, PathBuf)>> {
    Ok(PreprocessInputs::resolve(config)?.by_role())
}

/// Reads and filters everything that a pipeline names and accounts for it, without writing anything. This is for the fuzz targets.
#[doc(hidden)]
pub fn account(config: &Config) -> Result<PreprocessReport> {
    Ok(read(config, None, EmbeddedImages::Counted, RowLimits::default(), &Progress::new(true))?.0)
}

/// The number of rows of each file that are read; `None` means all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RowLimits {
    /// Rows of each file of interactions.
    pub interactions: Option<u64>,
    /// Rows of each file of items.
    pub items: Option<u64>,
}

/// Reads and filters the first rows of the files that a pipeline names and accounts for them as the stage does, without writing anything.
///
/// ```
/// use mp4sr_pipeline::config::ModelCatalog;
/// use mp4sr_pipeline::Config;
/// use mp4sr_preprocess::{RowLimits, trial};
///
/// # let folder = tempfile::tempdir()?;
/// # let rows: String = (0..60).map(|at| format!("u{},i{},{at}\n", at / 10, at % 10)).collect();
/// # mp4sr_artifact::files::write_bytes(&folder.path().join("sales.csv"), format!("user_id,item_id,timestamp\n{rows}").as_bytes())?;
/// let text = "[dataset]\nname = \"shop\"\n[source]\nformat = \"tabular\"\ninteractions = [\"sales.csv\"]";
/// # let data = format!("dataset.data={:?}", folder.path());
/// let (config, _) = Config::parse(text, "shop.toml", &[data], &ModelCatalog::unchecked())?;
/// let report = trial(&config, RowLimits::default())?;
/// assert_eq!((report.statistics.users, report.statistics.items, report.statistics.events), (6, 10, 60));
/// # Ok::<(), anyhow::Error>(())
/// ```
pub fn trial(config: &Config, limits: RowLimits) -> Result<PreprocessReport> {
    Ok(read(config, None, EmbeddedImages::Counted, limits, &Progress::new(true))?.0)
}

/// Counts the lines of a file of interactions, and those that are events. This is for the fuzz targets.
#[doc(hidden)]
pub fn count_events(path: &Path, source: &Source) -> Result<(u64, u64)> {
    source::count_events(path, &SourceFormat::new(source)?)
}

/// Counts the lines of a file of items, and those that are items. This is for the fuzz targets.
#[doc(hidden)]
pub fn count_items(path: &Path, source: &Source) -> Result<(u64, u64)> {
    source::count_items(path, &SourceFormat::new(source)?)
}

/// Reads, filters and writes the dataset.
fn make(
    config: &Config,
    layout: &Layout,
    settings: &serde_json::Value,
    progress: &Progress,
) -> Result<(PreprocessReport, Vec<PathBuf>)> {
    let spill = layout.dataset().join(SPILL);
    let memory = MemoryLimit::new(&config.preprocess.memory, spill.clone())?;
    if let Some(warning) = memory.as_ref().and_then(MemoryLimit::warning) {
        progress.warn("preprocess", warning);
    }
    let store = layout.embedded_images();
    // A run that was killed leaves it behind.
    files::remove_dir_if_present(&spill)?;
    let read = read(config, memory.as_ref(), EmbeddedImages::Stored(&store), RowLimits::default(), progress);
    let removed = files::remove_dir_if_present(&spill);
    let (report, dataset, missing) = read?;
    removed?;
    let mut settings = settings.clone();
    settings["preprocess"] = report::recorded(&config.preprocess);
    settings["source"] = report::recorded_source(&config.source);
    let mut outputs = dataset.write(layout, Path::new(&config.dataset.data), &settings)?;
    files::write_json(&layout.statistics(), &report)?;
    outputs.push(layout.statistics());
    if missing.is_empty() {
        files::remove_if_present(&layout.missing_files())?;
    } else {
        let data = Path::new(&config.dataset.data);
        let relative = missing.iter().map(|path| path.strip_prefix(data).unwrap_or(path)).collect::<Vec<_>>();
        files::write_json(&layout.missing_files(), &relative)?;
        outputs.push(layout.missing_files());
    }
    remove_other_images(&store, &dataset)?;
    Ok((report, outputs))
}

/// Removes the embedded images of earlier datasets, which are kept until a new dataset is written: if it cannot be made, the earlier one
/// stays up to date.
fn remove_other_images(store: &Path, dataset: &Dataset) -> Result<()> {
    if !store.exists() {
        return Ok(());
    }
    let named: HashSet<&Path> = dataset.items.images.iter().flatten().map(Path::new).collect();
    let others = files::list(store)?.into_iter().filter(|path| !named.contains(path.as_path()));
    for path in others {
        if path.is_dir() { files::remove_dir_if_present(&path)? } else { files::remove_if_present(&path)? }
    }
    Ok(())
}

/// Reads and filters the dataset, and lists the files that were looked for and not found. `embedded` says how
/// images that files of items themselves contain are treated.
fn read(
    config: &Config,
    memory: Option<&MemoryLimit>,
    embedded: EmbeddedImages<'_>,
    limits: RowLimits,
    progress: &Progress,
) -> Result<(PreprocessReport, Dataset, BTreeSet<PathBuf>)> {
    let table1 = table1::row(&config.dataset.table1)?;
    let (inputs, format) = (PreprocessInputs::resolve(config)?, SourceFormat::new(&config.source)?);
    let raw = RawDataset { config, inputs, format, memory, embedded, limits, progress };
    let mut budget = Budget::new(config.preprocess.max_bad_lines, config.preprocess.max_bad_share);
    let mut warnings = Vec::new();

    let FilteredEvents { user_ids, item_ids, scale, split, bounds, mut filtered, rows: interactions } =
        raw.events(&mut budget)?;
    let mut in_core = filtered.events.fork("core")?;
    let dropped_by_core = core(&mut in_core, bounds)?;
    let JoinedItems { mut catalogue, rows: items, shares } =
        raw.items(&in_core, &item_ids, &mut budget, &mut warnings)?;

    let core_name = format!("{} events per user, {} per item", bounds.user, bounds.item);
    let core_filter = Filter { name: &core_name, remedy: "lower `preprocess.user_core` or `preprocess.item_core`" };
    let dropped = match config.preprocess.missing {
        Some(Missing::Drop) => Some(("without text or image", &catalogue.is_complete)),
        Some(Missing::DropUndescribed) => Some(("without a line", &catalogue.has_line)),
        Some(Missing::Keep) | None => None,
    };
    if let Some((why, kept)) = dropped {
        drop(in_core);
        filtered.of_items(why, kept)?;
        let dropped = core(&mut filtered.events, bounds)?;
        filtered.step(core_filter, dropped)?;
    } else {
        filtered.events = in_core;
        filtered.step(core_filter, dropped_by_core)?;
    }
    if config.preprocess.missing == Some(Missing::Drop) {
        catalogue.drop_incomplete();
    }
    let (events, steps) = filtered.finish()?;

    if let Some(described) = split.described(scale) {
        progress.log(format!("preprocess: {described}"));
    }
    let spread = SequenceSpread::of(&events)?;
    let numbering = ItemNumbering { keep_others: raw.keeps_others(), order: config.preprocess.item_order };
    let missing = std::mem::take(&mut catalogue.missing_files);
    let dataset = Dataset::new(&events, scale, &split, user_ids, item_ids, catalogue, numbering)?;
    drop(events);
    warnings.extend(split.warnings(&config.preprocess, &dataset.sequences));
    warnings.extend(zero_times(&dataset.sequences));
    let counted = Counted { interactions, items, filters: steps, spread, shares };
    let report = report::new(config, counted, &dataset, table1, warnings);
    report::check(&report)?;
    report.warnings.iter().for_each(|warning| progress.warn("preprocess", warning));
    Ok((report, dataset, missing))
}

/// The raw files, and how they are read.
struct RawDataset<'r> {
    config: &'r Config,
    inputs: PreprocessInputs,
    format: SourceFormat,
    memory: Option<&'r MemoryLimit>,
    embedded: EmbeddedImages<'r>,
    limits: RowLimits,
    progress: &'r Progress,
}

/// The events after the filters that need no items, with the settings that depend on the notation of their times.
struct FilteredEvents {
    user_ids: NumberedIds,
    item_ids: NumberedIds,
    scale: TimeScale,
    split: SplitRule,
    bounds: Bounds,
    filtered: Filtered,
    rows: EventsRead,
}

/// The items of the core, and how well they match its events, unless no file of items is named.
struct JoinedItems {
    catalogue: ItemCatalogue,
    rows: ItemsRead,
    shares: Option<JoinShares>,
}

impl RawDataset<'_> {
    /// Whether items without events are kept.
    fn keeps_others(&self) -> bool {
        self.config.preprocess.items_without_events == WithoutEvents::Keep
    }

    fn events(&self, budget: &mut Budget) -> Result<FilteredEvents> {
        let &Self { config, ref inputs, ref format, memory, limits, progress, .. } = self;
        let preprocess = &config.preprocess;
        let condition = Condition::parse(&preprocess.r#where)?;
        let (events, rows) = Events::read(
            &inputs.interactions,
            format,
            condition.as_ref(),
            memory,
            limits.interactions,
            budget,
            progress,
        )?;
        let Events { user_ids, item_ids, chunks, named, known, scale } = events;
        check_numbers(
            [
                ("since", preprocess.since.as_str()),
                ("until", &preprocess.until),
                ("split_at", &preprocess.split_at),
                ("split_test_at", &preprocess.split_test_at),
            ],
            scale,
        )?;
        let settings = FilterSettings::new(preprocess, scale)?;
        let split = SplitRule::new(preprocess, scale)?;
        let file = inputs.interactions[0].display().to_string();
        let satisfies = condition.as_ref().map(|condition| condition.evaluate(named, &known, &file)).transpose()?;
        let missing = satisfies.as_ref().map_or(0, |satisfies| satisfies.null_count() as u64);
        let (users, items) = (user_ids.len() as u64, item_ids.len() as u64);
        let mut filtered = Filtered::new(chunks.partitioned(satisfies)?, users, items);
        if let Some(condition) = &condition {
            filtered.satisfying(condition.text(), missing)?;
        }
        filtered.ordered_within(settings, &split, scale, progress)?;
        Ok(FilteredEvents { user_ids, item_ids, scale, split, bounds: settings.bounds, filtered, rows })
    }

    /// Reads the items of the events in the core. Dropping incomplete items can only shrink the core, so no others are ever needed.
    fn items(
        &self,
        in_core: &Partitions,
        item_ids: &NumberedIds,
        budget: &mut Budget,
        warnings: &mut Vec<String>,
    ) -> Result<JoinedItems> {
        let &Self { config, ref inputs, ref format, embedded, limits, progress, .. } = self;
        let needed = in_core.item_marks(item_ids.len())?;
        let folder = image_folder(config, inputs, item_ids, warnings)?;
        if let Some(notice) = folder.notice() {
            progress.log(format!("preprocess: {notice}"));
        }
        let junk = Junk::new(&config.preprocess.placeholders);
        let reading = Reading {
            format,
            data: &inputs.data,
            item_ids,
            needed: &needed,
            folder: &folder,
            junk: &junk,
            embedded,
            max_sentences: config.preprocess.max_sentences,
            max_images: config.preprocess.max_images,
            keep_others: self.keeps_others(),
            may_lack_fields: false,
            limit: limits.items,
        };
        let (catalogue, rows, about_fields) = ItemCatalogue::read(&inputs.items, &reading, budget, progress)?;
        warnings.extend(about_fields);
        if inputs.items.is_empty() {
            return Ok(JoinedItems { catalogue, rows, shares: None });
        }
        let lines: u64 = rows.files.iter().map(|file| file.accepted).sum();
        let shares = join::shares(in_core, &catalogue, lines - rows.without_events, lines)?;
        if let Some(shares) = &shares {
            progress.log(format!("preprocess: {}", join::described(shares)));
            let files = JoinedFiles { interactions: &inputs.interactions[0], items: &inputs.items[0] };
            warnings.extend(join::judge(config, shares, &catalogue, item_ids, files)?);
        }
        Ok(JoinedItems { catalogue, rows, shares })
    }
}

/// The images of the folder, or of the pattern, that the pipeline names.
fn image_folder(
    config: &Config,
    inputs: &PreprocessInputs,
    item_ids: &NumberedIds,
    warnings: &mut Vec<String>,
) -> Result<ImageFolder> {
    let pattern = config.source.images.as_str();
    match &inputs.images {
        Some(folder) if folder.is_dir() && ImagePattern::is_in(pattern) => {
            Ok(ImageFolder::by_pattern(ImagePattern::parse(&inputs.data, pattern)?))
        }
        Some(folder) if folder.is_dir() => ImageFolder::read(folder, item_ids),
        Some(folder) => {
            warnings.push(format!("`{}` does not exist yet: no item has a local image from it", folder.display()));
            Ok(ImageFolder::default())
        }
        None => Ok(ImageFolder::default()),
    }
}

/// The settings of the filters of events.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FilterSettings {
    pub window: Window,
    pub repeated: Repeated,
    pub recent: u32,
    pub bounds: Bounds,
}

impl FilterSettings {
    fn new(preprocess: &Preprocess, scale: TimeScale) -> Result<Self> {
        // Unset bounds cannot occur in a resolved configuration.
        let bounds = Bounds { user: preprocess.user_core.unwrap_or(0), item: preprocess.item_core.unwrap_or(0) };
        // With a split by time, the most recent events of each of the three sets are kept.
        let sets = if preprocess.split == SplitBy::Time { 3 } else { 1 };
        if preprocess.recent > 0 && preprocess.recent.saturating_mul(sets) < bounds.user {
            return Err(Error::Setting(format!(
                "`preprocess.recent` = {} keeps fewer events per user than `preprocess.user_core` = {} requires, so no user would be left; \
                 raise the former or lower the latter",
                preprocess.recent, bounds.user
            )));
        }
        let window = Window::new(preprocess, scale)?;
        Ok(Self { window, repeated: preprocess.repeated, recent: preprocess.recent, bounds })
    }
}

/// A filter, as the report names it, and what the user can do if it leaves no events.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Filter<'f> {
    pub name: &'f str,
    pub remedy: &'static str,
}

/// The events that are left, and what every filter dropped.
#[derive(Debug)]
pub(crate) struct Filtered {
    pub events: Partitions,
    pub steps: Vec<FilterStep>,
    users: u64,
    /// The error of the first filter that left no events.
    nothing_left: Option<Error>,
}

impl Filtered {
    /// Starts with all events, of this number of users and items.
    pub fn new(events: Partitions, users: u64, items: u64) -> Self {
        let count = events.count();
        let raw = FilterStep { filter: "raw".to_owned(), dropped: BTreeMap::new(), events: count, users, items };
        Self { events, steps: vec![raw], users, nothing_left: None }
    }

    /// Records what is left after a filter.
    pub fn step(&mut self, filter: Filter<'_>, dropped: BTreeMap<String, u64>) -> Result<()> {
        let Counts { events, users, items } = self.events.counts()?;
        if events == 0 && self.nothing_left.is_none() {
            self.nothing_left = Some(Error::NothingLeft {
                filter: format!("the filter `{}`", filter.name),
                events: self.steps.last().map_or(0, |before| before.events),
                remedy: filter.remedy,
            });
        }
        self.steps.push(FilterStep { filter: filter.name.to_owned(), dropped, events, users, items });
        Ok(())
    }

    /// Returns the events that are left and the steps, unless a filter left no events.
    fn finish(self) -> Result<(Partitions, Vec<FilterStep>)> {
        self.nothing_left.map_or(Ok((self.events, self.steps)), Err)
    }

    /// Runs a filter that drops events for one reason.
    pub fn run(&mut self, filter: Filter<'_>, reason: &str, query: impl Fn(LazyFrame) -> LazyFrame) -> Result<()> {
        let before = self.events.count();
        self.events.filter(query)?;
        self.step(filter, only(reason, before - self.events.count()))
    }

    fn satisfying(&mut self, condition: &str, missing: u64) -> Result<()> {
        let before = self.events.count();
        self.events.filter(filters::satisfying)?;
        let mut dropped = only("condition not satisfied", before - self.events.count() - missing);
        dropped.extend(only("condition on a missing value", missing));
        let name = format!("where {condition}");
        self.step(Filter { name: &name, remedy: "change the condition" }, dropped)
    }

    /// Keeps the events of the time window, orders them, and drops those that are repeated or not recent enough.
    fn ordered_within(
        &mut self,
        settings: FilterSettings,
        split: &SplitRule,
        scale: TimeScale,
        progress: &Progress,
    ) -> Result<()> {
        let FilterSettings { window, repeated, recent, .. } = settings;
        if let Some(described) = window.described(scale) {
            progress.log(format!("preprocess: {described}"));
            self.within(window, &described)?;
        }
        self.order(repeated, &split.cuts())?;
        if recent > 0 {
            self.recent(recent, &split.cuts())?;
        }
        Ok(())
    }

    fn within(&mut self, window: Window, described: &str) -> Result<()> {
        let filter = Filter { name: described, remedy: "change `preprocess.since` or `preprocess.until`" };
        self.run(filter, "outside of the time window", |events| filters::within(events, window.since, window.until))
    }

    pub fn order(&mut self, repeated: Repeated, cuts: &[i64]) -> Result<()> {
        let (first, last) = self.events.times()?;
        let (users, span) = (self.users, first.abs_diff(last).saturating_add(1));
        // An event of each user and item is left, as with the filter below, so neither remedy is ever needed.
        let filter = Filter { name: "repeated events", remedy: "set `preprocess.repeated = \"all\"`" };
        self.run(filter, "repeated event", |events| {
            filters::without_repeats(filters::ordered(events, users, first, span), repeated, cuts)
        })
    }

    pub fn recent(&mut self, count: u32, cuts: &[i64]) -> Result<()> {
        let within = if cuts.is_empty() { "" } else { " in each set" };
        let name = format!("the last {count} events of a user{within}");
        let is_recent = filters::is_recent(count, cuts)?;
        self.run(Filter { name: &name, remedy: "raise `preprocess.recent`" }, "earlier event", |events| {
            events.filter(is_recent.clone())
        })
    }

    /// Keeps the events of these items; `why` says what the others lack.
    pub fn of_items(&mut self, why: &str, kept: &[bool]) -> Result<()> {
        let items: Vec<u32> = (0..).zip(kept).filter(|(_, kept)| **kept).map(|(item, _)| item).collect();
        let items = df!(ITEM => items)?;
        let name = format!("items {why}");
        let remedy = "set `preprocess.missing = \"keep\"`, or name files with texts and images in `[source]`";
        self.run(Filter { name: &name, remedy }, &format!("item {why}"), |events| {
            filters::of_items(events, items.clone().lazy())
        })
    }
}

fn only(reason: &str, count: u64) -> BTreeMap<String, u64> {
    (count > 0).then(|| (reason.to_owned(), count)).into_iter().collect()
}
