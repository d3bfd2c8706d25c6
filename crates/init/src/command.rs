//! The command line of `mp4sr init`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use mp4sr_artifact::{PreprocessReport, files};
use mp4sr_pipeline::config::{Format, ModelCatalog, Source};
use mp4sr_pipeline::text::{count, tokens};
use mp4sr_pipeline::{Config, print};
use mp4sr_preprocess::survey::{KnownLayout, Survey};
use mp4sr_preprocess::{RowLimits, about_missing_modalities, described_shares, trial};

use crate::data_folder::{DataFolder, dataset_name};
use crate::draft::{ColumnRoles, CoreThresholds, Draft, Modalities, TINY_IMAGE, TINY_TEXT};
use crate::events::{EventOrder, InteractionColumns, NamedEvents};
use crate::found::{self, Doubt};
use crate::image_folders;
use crate::items::{ImageKind, ItemColumns, NamedItems};
use crate::join::{EVENT_ROWS, ITEM_ROWS, NamedIds, joins};
use crate::{Error, Result};

/// Inspects files of interactions and of items, guesses the meaning of each column, and writes a commented pipeline file.
///
/// Reads the first 5,000 lines of each file to guess, and the first 100,000 lines of interactions and 500,000 of items to check that
/// their ids match. Prints what it found, what it was unsure of, and which flag or key changes each guess. Nothing is overwritten
/// without `--force`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A file of interactions: CSV, TSV and other delimited text, JSON or Parquet, optionally compressed with gzip. May be given
    /// several times.
    #[arg(long, value_name = "FILE", required = true, num_args = 1..)]
    interactions: Vec<PathBuf>,
    /// A file of items. May be given several times. Without one, the pipeline uses a model that needs only ids.
    #[arg(long, value_name = "FILE", num_args = 1..)]
    items: Vec<PathBuf>,
    /// A folder of images that are named by the item's id, or by a column of the items.
    #[arg(long, value_name = "FOLDER")]
    images: Option<PathBuf>,
    /// The pipeline file to write; by default, it is named after the dataset.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Overwrites the pipeline file if it exists.
    #[arg(long)]
    force: bool,
    /// The name of the dataset; by default, it is derived from the name of the folder or of the file.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// The column of interactions that holds the user id.
    #[arg(long, value_name = "COLUMN")]
    user: Option<String>,
    /// The column of interactions that holds the item id.
    #[arg(long, value_name = "COLUMN")]
    item: Option<String>,
    /// The column of interactions that holds the time.
    #[arg(long, value_name = "COLUMN")]
    time: Option<String>,
    /// How times are written: `s`, `ms`, `us`, `ns`, `iso`, `mixed`, or a pattern such as `%d/%m/%Y`.
    #[arg(long, value_name = "FORMAT")]
    time_format: Option<String>,
    /// Orders events by their lines and ignores times.
    #[arg(long, conflicts_with_all = ["time", "time_format"])]
    line_order: bool,
    /// The column of items that holds the item id.
    #[arg(long, value_name = "COLUMN", requires = "items")]
    item_id: Option<String>,
    /// The column of items that holds the title.
    #[arg(long, value_name = "COLUMN", requires = "items")]
    title: Option<String>,
    /// A column of items that holds a further text. May be given several times.
    #[arg(long, value_name = "COLUMN", num_args = 1.., requires = "items")]
    text: Vec<String>,
    /// A column of items that holds categories. May be given several times.
    #[arg(long, value_name = "COLUMN", num_args = 1.., requires = "items")]
    category: Vec<String>,
    /// The column of items that holds images.
    #[arg(long, value_name = "COLUMN", requires = "items")]
    image_column: Option<String>,
    /// The separator of columns in delimited text.
    #[arg(long, value_name = "TEXT")]
    separator: Option<String>,
    /// The encoding of text files, such as `latin-1`.
    #[arg(long, value_name = "NAME")]
    encoding: Option<String>,
    /// Whether the first line of interactions holds the names of the columns.
    #[arg(long, value_name = "YES|NO", value_parser = yes_or_no)]
    header: Option<bool>,
    /// Whether the first line of items holds the names of the columns.
    #[arg(long, value_name = "YES|NO", value_parser = yes_or_no, requires = "items")]
    items_header: Option<bool>,
    /// The sentence encoder: `tiny` (built into the program), `minilm`, `mpnet`, a folder, or a name on the hub.
    #[arg(long, value_name = "NAME", default_value = "tiny")]
    encoder: String,
    /// The image encoder: `tiny` (built into the program), `clip`, a folder, or a name on the hub.
    #[arg(long, value_name = "NAME", default_value = "tiny")]
    image_encoder: String,
    /// The model; by default `mp4sr`, or one that reads only ids if items have neither text nor images.
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
}

fn yes_or_no(text: &str) -> std::result::Result<bool, String> {
    match text {
        "yes" | "true" => Ok(true),
        "no" | "false" => Ok(false),
        _ => Err("expected `yes` or `no`".to_owned()),
    }
}

/// The limits to try, from the usual ones to none.
const CORES: [CoreThresholds; 4] = [
    CoreThresholds { user: 5, item: 5 },
    CoreThresholds { user: 5, item: 0 },
    CoreThresholds { user: 3, item: 0 },
    CoreThresholds { user: 0, item: 0 },
];

/// Runs `mp4sr init`.
///
/// ```
/// use std::sync::Arc;
///
/// use clap::Parser;
/// use mp4sr_init::command::{Args, run};
/// use mp4sr_pipeline::config::ModelCatalog;
///
/// #[derive(Parser)]
/// struct Command {
///     #[command(flatten)]
///     args: Args,
/// }
///
/// # let folder = tempfile::tempdir()?;
/// # let path = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
/// # let rows: String = (0..60).map(|at| format!("u{},i{},2024-01-{:02}\n", at / 10, at % 10, 1 + at % 28)).collect();
/// # mp4sr_artifact::files::write_bytes(&folder.path().join("sales.csv"), format!("customer,product,day\n{rows}").as_bytes())?;
/// let (sales, out) = (path("sales.csv"), path("sales.toml"));
/// let command = Command::parse_from(["init", "--interactions", &sales, "--out", &out]);
/// run(&command.args, &Arc::new(ModelCatalog::unchecked()))?;
/// assert!(mp4sr_artifact::files::read_to_string(out.as_ref())?.contains("user = \"customer\""));
/// # Ok::<(), anyhow::Error>(())
/// ```
pub fn run(args: &Args, models: &Arc<ModelCatalog>) -> anyhow::Result<()> {
    let made = Made::of(args, models)?;
    files::write_bytes(&made.out, made.text.as_bytes())?;
    print(&made.summary)
}

/// A generated pipeline, and the summary that is printed.
struct Made {
    out: PathBuf,
    text: String,
    summary: String,
}

/// The surveys of both files, and the meaning of their columns.
struct Inspected {
    events: Survey,
    items: Option<Survey>,
    columns: ColumnRoles,
    encoding: String,
    doubts: Vec<Doubt>,
}

impl Made {
    fn of(args: &Args, models: &Arc<ModelCatalog>) -> Result<Self> {
        if let Some(out) = &args.out {
            expect_free(out, args)?;
        }
        if let Some(folder) = args.images.as_deref().filter(|folder| !folder.is_dir()) {
            return Err(Error::Unknown(format!("`--images {0}`: `{0}` is not a folder", folder.display())));
        }
        let inspected = Inspected::at(args)?;
        let data_folder = data_folder(args)?;
        let files: Vec<&Path> = args.interactions.iter().chain(&args.items).map(PathBuf::as_path).collect();
        let title = || Ok::<_, Error>(DataFolder::of(&files, &[])?.title());
        let title = args.name.clone().map_or_else(title, |name| Ok(Some(name)))?;
        let name = dataset_name(&title.unwrap_or_else(|| stem(&args.interactions[0])));
        let out = args.out.clone().unwrap_or_else(|| PathBuf::from(format!("{name}.toml")));
        expect_free(&out, args)?;
        let beside = inspected.images_are_beside();
        let mut draft = Draft {
            name,
            data: data_folder.path.clone(),
            interactions: args.interactions.iter().map(|path| data_folder.name(path)).collect::<Result<_>>()?,
            items: args.items.iter().map(|path| data_folder.name(path)).collect::<Result<_>>()?,
            images: match args.images.as_deref().filter(|_| !beside) {
                Some(folder) => data_folder.name(folder)?,
                None => String::new(),
            },
            of_events: &inspected.events,
            of_items: inspected.items.as_ref(),
            columns: inspected.columns.clone(),
            time_is_given: args.time_format.is_some(),
            encoding: inspected.encoding.clone(),
            modalities: Modalities::default(),
            core: CORES[3],
            core_reason: String::new(),
            encoder: encoder(&args.encoder),
            image_encoder: image_encoder(&args.image_encoder),
            model: args.model.clone().unwrap_or_default(),
            models,
            out: out.display().to_string(),
        };
        let parse = |text: &str| Config::parse(text, &out.display().to_string(), &[], models);
        // The first trial has no limits, because they would drop what a few lines hold.
        let (mut config, _) = parse(&draft.text())?;
        let limits = RowLimits { interactions: Some(EVENT_ROWS), items: Some(ITEM_ROWS) };
        let first = trial(&config, RowLimits { interactions: Some(EVENT_ROWS), items: Some(ITEM_ROWS) });
        let whole_items = |report: &PreprocessReport| report.items.files.iter().all(|file| file.lines < ITEM_ROWS);
        let report = match first {
            Ok(report) => report,
            Err(error) if args.items.is_empty() => return Err(error.into()),
            Err(error) => {
                config.preprocess.min_described = 0.0;
                match trial(&config, limits) {
                    // Only the first items were checked; the missing ones may come later.
                    Ok(report) if !whole_items(&report) => report,
                    _ => return Err(error.into()),
                }
            }
        };
        let is_whole = whole_items(&report) && report.interactions.files.iter().all(|file| file.lines < EVENT_ROWS);
        draft.modalities = modalities(&report);
        draft.expect_features()?;
        let mut doubts = inspected.doubts.clone();
        if draft.images.is_empty() && !draft.modalities.image && !args.items.is_empty() {
            doubts.extend(image_folders::unused(&config, limits));
        }
        (draft.core, draft.core_reason) = core(&config, limits, is_whole, &mut doubts)?;
        if !whole_items(&report) {
            doubts.push(Doubt::new(
                format!(
                    "the items' files have more than the {} lines that were read, so more of the events may have an item with a line",
                    count(ITEM_ROWS)
                ),
                "`mp4sr preprocess` checks all of them",
            ));
        }
        doubts.extend(about_trial(&report, is_whole));
        let text = draft.text();
        parse(&text)?;
        let summary = summary(args, &inspected, &draft, &report, &doubts, is_whole);
        Ok(Self { out, text, summary })
    }
}

/// Fails if the file exists and must not be replaced, or is one of the files that are inspected.
fn expect_free(out: &Path, args: &Args) -> Result<()> {
    let is_out =
        |path: &&PathBuf| out.canonicalize().is_ok_and(|out| path.canonicalize().is_ok_and(|path| path == out));
    if args.interactions.iter().chain(&args.items).any(|path| is_out(&path)) {
        return Err(Error::Unknown(format!(
            "`--out {0}`: `{0}` is a file of the data; give another name",
            out.display()
        )));
    }
    if out.exists() && !args.force { Err(Error::Exists(out.to_owned())) } else { Ok(()) }
}

fn stem(path: &Path) -> String {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    name.split('.').next().unwrap_or_default().to_owned()
}

fn encoder(name: &str) -> String {
    match name {
        "tiny" => TINY_TEXT.to_owned(),
        "minilm" => "sentence-transformers/all-MiniLM-L6-v2".to_owned(),
        "mpnet" => "sentence-transformers/all-mpnet-base-v2".to_owned(),
        other => other.to_owned(),
    }
}

fn image_encoder(name: &str) -> String {
    match name {
        "tiny" => TINY_IMAGE.to_owned(),
        "clip" => "openai/clip-vit-base-patch32".to_owned(),
        other => other.to_owned(),
    }
}

/// Chooses the data folder, which contains all files.
fn data_folder(args: &Args) -> Result<DataFolder> {
    let files: Vec<&Path> = args.interactions.iter().chain(&args.items).map(PathBuf::as_path).collect();
    let folders: Vec<&Path> = args.images.iter().map(PathBuf::as_path).collect();
    DataFolder::of(&files, &folders)
}

impl Inspected {
    fn at(args: &Args) -> Result<Self> {
        let source = Source {
            separator: args.separator.clone().unwrap_or_default(),
            encoding: args.encoding.clone().unwrap_or_default(),
            ..Source::default()
        };
        let known = |header| KnownLayout { source: Some(&source), header };
        let events = Survey::of(&args.interactions[0], false, known(args.header))?;
        let items = args.items.first().map(|path| Survey::of(path, true, known(args.items_header))).transpose()?;
        let encoding = match &args.encoding {
            Some(encoding) => encoding.clone(),
            None => encoding(&events, items.as_ref())?,
        };
        expect_tables(args, &events, items.as_ref())?;
        let mut doubts = header_doubts(&events, items.as_ref());
        doubts.extend(set_doubt(&args.interactions));
        for (survey, (name, kind)) in std::iter::once(&events)
            .chain(&items)
            .flat_map(|survey| survey.unread.iter().map(move |column| (survey, column)))
        {
            doubts.push(Doubt::new(
                format!("`{name}` of `{}` is not read, because it has the type {kind}", survey.path.display()),
                "write it as text or numbers",
            ));
        }
        if !encoding.is_empty() && args.encoding.is_none() {
            doubts.push(Doubt::new(
                format!("text that is not UTF-8 appears to be {encoding}"),
                "`--encoding NAME`, `source.encoding`",
            ));
        }
        let columns = match published(&events, items.as_ref()).filter(|_| !args.names_columns()) {
            Some(format) => ColumnRoles::Published(format),
            None => Self::guessed(args, &events, items.as_ref(), &mut doubts)?,
        };
        Ok(Self { events, items, columns, encoding, doubts })
    }

    fn guessed(args: &Args, events: &Survey, items: Option<&Survey>, doubts: &mut Vec<Doubt>) -> Result<ColumnRoles> {
        if let Some(name) = &args.item {
            found::named(events, "--item", name)?;
        }
        if let (Some(items), Some(name)) = (items, &args.item_id) {
            found::named(items, "--item-id", name)?;
        }
        let ids = NamedIds { item: args.item.as_deref(), id: args.item_id.as_deref(), user: args.user.as_deref() };
        let joins = items.map_or(Ok(Vec::new()), |items| joins(events, items, ids))?;
        let named = NamedEvents {
            user: args.user.clone(),
            item: args.item.clone(),
            time: args.time.clone(),
            time_format: args.time_format.clone(),
            line_order: args.line_order,
        };
        let of_events = InteractionColumns::guess(events, &joins, &named)?;
        doubts.extend(of_events.doubts.iter().cloned());
        let join = joins.iter().find(|join| join.item == of_events.item);
        let named = NamedItems {
            id: args.item_id.clone(),
            title: args.title.clone(),
            texts: args.text.clone(),
            categories: args.category.clone(),
            image: args.image_column.clone(),
            images: args.images.clone(),
        };
        let of_items = items.map(|items| ItemColumns::guess(items, join, &named)).transpose()?;
        doubts.extend(of_items.iter().flat_map(|items| items.doubts.iter().cloned()));
        Ok(ColumnRoles::Guessed { events: of_events, items: of_items })
    }

    /// Whether a column names image files relative to the folder of the items' file.
    fn images_are_beside(&self) -> bool {
        self.image_kind().is_some_and(|kind| matches!(kind, ImageKind::Files))
    }

    fn image_kind(&self) -> Option<&ImageKind> {
        let ColumnRoles::Guessed { items: Some(items), .. } = &self.columns else { return None };
        items.images.as_ref().map(|images| &images.kind)
    }
}

impl Args {
    /// Whether a flag names columns; a published format has no keys for them.
    fn names_columns(&self) -> bool {
        let named =
            [&self.user, &self.item, &self.time, &self.time_format, &self.item_id, &self.title, &self.image_column];
        self.line_order
            || !self.text.is_empty()
            || !self.category.is_empty()
            || named.iter().any(|named| named.is_some())
    }
}

/// The published format whose fields both files have.
fn published(events: &Survey, items: Option<&Survey>) -> Option<Format> {
    let has = |survey: &Survey, names: &[&str]| names.iter().all(|name| survey.column(name).is_some());
    let of_items = |names: &[&str]| items.is_some_and(|items| names.iter().any(|name| items.column(name).is_some()));
    let id_of = |names: &[&str]| items.is_none_or(|items| names.iter().any(|name| items.column(name).is_some()));
    if has(events, &["reviewerID", "asin", "unixReviewTime"]) && id_of(&["asin"]) {
        let is_old = of_items(&["imUrl", "related", "salesRank"]);
        return Some(if is_old { Format::Amazon2014 } else { Format::Amazon2018 });
    }
    let is_2023 = has(events, &["user_id", "timestamp", "parent_asin"]);
    if is_2023 && id_of(&["parent_asin"]) {
        return Some(Format::Amazon2023);
    }
    (has(events, &["user_id", "book_id", "date_added"]) && id_of(&["book_id"])).then_some(Format::GoodReads)
}

/// The encoding of both files, because a pipeline has one key for both; empty if they are UTF-8.
fn encoding(events: &Survey, items: Option<&Survey>) -> Result<String> {
    let Some(items) = items else { return Ok(events.encoding.clone().unwrap_or_default()) };
    let conflict = |a: &Survey, b: &Survey| {
        let named = |survey: &Survey| survey.encoding.clone().unwrap_or_else(|| "UTF-8".to_owned());
        Error::Unknown(format!(
            "`{}` is {} and `{}` is {}; a pipeline has one encoding: save one of the files in the encoding of the other, or name the \
             encoding of both with `--encoding`",
            a.path.display(),
            named(a),
            b.path.display(),
            named(b)
        ))
    };
    // In UTF-16, ASCII has other bytes.
    let reads_ascii = |encoding: &str| !encoding.starts_with("utf-16");
    match (&events.encoding, &items.encoding) {
        (Some(a), Some(b)) if a != b => Err(conflict(events, items)),
        (Some(a), None) if !(items.is_ascii && reads_ascii(a)) => Err(conflict(events, items)),
        (None, Some(b)) if !(events.is_ascii && reads_ascii(b)) => Err(conflict(events, items)),
        (a, b) => Ok(a.clone().or_else(|| b.clone()).unwrap_or_default()),
    }
}

/// Rejects flags that describe tables of text if no file is one.
fn expect_tables(args: &Args, events: &Survey, items: Option<&Survey>) -> Result<()> {
    let any = |is: &dyn Fn(&Survey) -> bool| is(events) || items.is_some_and(is);
    let (tables, texts) = (any(&|survey| survey.is_table), any(&|survey| survey.is_text()));
    let flags = [
        ("--separator", args.separator.is_some(), tables, "a table of text"),
        ("--encoding", args.encoding.is_some(), texts, "text"),
        ("--header", args.header.is_some(), events.is_table, "a table of text"),
        ("--items-header", args.items_header.is_some(), items.is_some_and(|items| items.is_table), "a table of text"),
    ];
    match flags.iter().find(|(_, is_given, has_effect, _)| *is_given && !has_effect) {
        Some((flag, .., what)) => Err(Error::Unknown(format!(
            "`{flag}` has no effect, because no file that it concerns is {what}; leave it out"
        ))),
        None => Ok(()),
    }
}

/// What is lost if the files of interactions are the sets of a split.
fn set_doubt(files: &[PathBuf]) -> Option<Doubt> {
    let words = |path: &PathBuf| path.file_stem().map(|name| tokens(&name.to_string_lossy())).unwrap_or_default();
    let has = |set: &[&str]| files.iter().any(|path| words(path).iter().any(|word| set.contains(&word.as_str())));
    (has(&["train", "training"]) && has(&["test", "valid", "validation", "val", "dev"])).then(|| {
        Doubt::new(
            "the files of interactions seem to be the sets of a split, which is not kept: their events are divided anew",
            "`preprocess.split`; `mp4sr import recbole` keeps the sets of RecBole's files",
        )
    })
}

fn header_doubts(events: &Survey, items: Option<&Survey>) -> Vec<Doubt> {
    let flags = [(Some(events), "--header"), (items, "--items-header")];
    let doubtful =
        flags.into_iter().filter_map(|(survey, flag)| Some((survey.filter(|survey| survey.header_doubt)?, flag)));
    let doubt = |(survey, flag): (&Survey, &str)| {
        let is = if survey.has_header { "is taken as a header" } else { "is not taken as a header" };
        let (other, key) = if survey.has_header { ("no", "header` names columns") } else { ("yes", "header`") };
        let prefix = if flag == "--header" { "interactions_" } else { "items_" };
        Doubt::new(
            format!("the first line of `{}` {is}", survey.path.display()),
            format!("`{flag} {other}`; `source.{prefix}{key}"),
        )
    };
    doubtful.map(doubt).collect()
}

fn modalities(report: &PreprocessReport) -> Modalities {
    let statistics = &report.statistics;
    let with_image = statistics.items - statistics.items_without_image;
    Modalities {
        text: statistics.items_without_text < statistics.items,
        image: with_image > statistics.items_with_urls_only,
        image_urls: statistics.items_with_urls_only > 0,
    }
}

/// The first of [`CORES`] that leaves any events, and the reason if it is not the usual one.
fn core(
    config: &Config,
    limits: RowLimits,
    is_whole: bool,
    doubts: &mut Vec<Doubt>,
) -> Result<(CoreThresholds, String)> {
    let remedy = "`preprocess.user_core`, `preprocess.item_core`";
    let leaves = |core: CoreThresholds| {
        let mut config = config.clone();
        (config.preprocess.user_core, config.preprocess.item_core) = (Some(core.user), Some(core.item));
        // Only the limits matter here.
        config.preprocess.min_described = 0.0;
        match trial(&config, limits) {
            Ok(report) => Ok(Some(report.statistics)),
            Err(mp4sr_preprocess::Error::NothingLeft { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    };
    if !is_whole {
        if leaves(CORES[0])?.is_none() {
            doubts.push(Doubt::new(
                "in the lines that were read, no user and no item has five events; in the complete file, some may",
                remedy,
            ));
        }
        return Ok((CORES[0], String::new()));
    }
    for core in CORES {
        if leaves(core)?.is_some() {
            if core == CORES[0] {
                return Ok((core, String::new()));
            }
            let reason = format!(
                "Users and items with fewer events are dropped. The usual limits, 5 and 5, would leave nothing here; {} and {} leave some.",
                core.user, core.item
            );
            doubts.push(Doubt::new(
                format!(
                    "five events per user and item would leave nothing, so the limits are {} and {}",
                    core.user, core.item
                ),
                remedy,
            ));
            return Ok((core, reason));
        }
    }
    Ok((CORES[3], String::new()))
}

/// What the user should know about the trial.
fn about_trial(report: &PreprocessReport, is_whole: bool) -> Vec<Doubt> {
    let mut doubts: Vec<Doubt> = Vec::new();
    for (what, rejected) in [("interactions", &report.interactions.rejected), ("items", &report.items.rejected)] {
        for (reason, rejected) in &rejected.0 {
            let first = rejected
                .examples
                .first()
                .map_or(String::new(), |example| format!(", the first in line {} (`{}`)", example.line, example.found));
            let many = count(rejected.count);
            doubts.push(Doubt::new(
                format!("{many} lines of {what} cannot be used: {reason}{first}"),
                "they are counted and left out",
            ));
        }
    }
    if report.items.repeated > 0 {
        doubts.push(Doubt::new(
            format!(
                "{} lines of items repeat an earlier id; the first line of an item counts",
                count(report.items.repeated)
            ),
            "`--item-id COLUMN`",
        ));
    }
    // The pipeline does not name modalities that no item has, so no warning about them is needed.
    let needless: Vec<&str> = about_missing_modalities(&report.statistics).collect();
    let warnings = report.warnings.iter().filter(|warning| !needless.contains(&warning.as_str()));
    doubts.extend(warnings.map(|warning| Doubt::new(warning.clone(), "`--item`, `--item-id`")));
    if report.statistics.longest < 3 && is_whole {
        doubts.push(Doubt::new(
            format!(
                "no user has three events, so no user can be evaluated: the longest history has {} events",
                report.statistics.longest
            ),
            "`--user COLUMN`",
        ));
    } else if report.statistics.longest == 3 && is_whole {
        doubts.push(Doubt::new(
            "no user has four events: two of a user's events are held out, and training needs two more".to_owned(),
            "`--user COLUMN`, or use longer histories",
        ));
    }
    doubts
}

/// The summary that is printed.
fn summary(
    args: &Args,
    inspected: &Inspected,
    draft: &Draft<'_>,
    report: &PreprocessReport,
    doubts: &[Doubt],
    is_whole: bool,
) -> String {
    let mut text = summary_of_events(inspected);
    text += &summary_of_items(inspected, draft);
    if !draft.images.is_empty() {
        let by = if inspected.image_kind().is_some() { "the column of images" } else { "the id of the item" };
        text.push_str(&format!("images        {}, named by {by}\n", draft.images));
    }
    text += &summary_of_trial(args, report, is_whole);
    if !doubts.is_empty() {
        text.push_str("uncertain\n");
        doubts.iter().for_each(|doubt| text.push_str(&format!("  - {} ({})\n", doubt.what, doubt.remedy)));
    }
    let out = draft.out.as_str();
    text.push_str(&format!("wrote {out}; next: `mp4sr doctor --pipeline {out}`, then `mp4sr run --pipeline {out}`\n"));
    text
}

/// The rows of a file that were inspected.
fn inspected_rows(survey: &Survey) -> String {
    let part = if survey.is_whole { "all" } else { "the first" };
    let inspected = count(survey.rows + survey.unreadable);
    format!("{}: {}; {part} {inspected} lines inspected", survey.path.display(), survey.format)
}

/// The values of a column.
fn described_values(survey: &Survey, name: &str, are_ids: bool) -> String {
    survey.column(name).map_or(String::new(), |column| found::values(column, survey.rows, are_ids))
}

/// A line about a column.
fn summary_line(name: &str, text: impl std::fmt::Display) -> String {
    format!("  {name:<12} {text}\n")
}

fn summary_of_events(inspected: &Inspected) -> String {
    let survey = &inspected.events;
    let mut text = format!("interactions  {}\n", inspected_rows(survey));
    let events = match &inspected.columns {
        ColumnRoles::Published(format) => {
            return text + &summary_line("format", format_args!("{format:?}, whose fields have known names"));
        }
        ColumnRoles::Guessed { events, .. } => events,
    };
    text += &summary_line("user", format_args!("`{}`: {}", events.user, described_values(survey, &events.user, true)));
    text += &summary_line("item", format_args!("`{}`: {}", events.item, described_values(survey, &events.item, true)));
    text += &match &events.clock {
        EventOrder::Time { column, notation } => summary_line(
            "time",
            format_args!("`{column}`: {}; {}", notation.described, described_values(survey, column, false)),
        ),
        EventOrder::Position(column) => {
            summary_line("time", format_args!("none; the position of an event is `{column}`"))
        }
        EventOrder::LineOrder => summary_line("time", "none; events are in the order of their lines"),
    };
    if let Some(kind) = &events.kind {
        let of = described_values(survey, kind, false);
        text += &summary_line(
            "kinds",
            format_args!("`{kind}`: not read, so every event counts; `preprocess.where` can keep one kind; {of}"),
        );
    }
    if let Some(rating) = &events.rating {
        text += &summary_line(
            "rating",
            format_args!("`{rating}`: not read, so every event counts; `preprocess.where` can keep the good ones"),
        );
    }
    if !events.unused.is_empty() {
        text += &summary_line("not read", found::unused(survey, &events.unused));
    }
    text
}

fn summary_of_items(inspected: &Inspected, draft: &Draft<'_>) -> String {
    let Some(survey) = &inspected.items else {
        let reads = if draft.images.is_empty() { "the model reads only ids" } else { "items have no texts" };
        return format!("items         no file of items, so {reads}\n");
    };
    let mut text = format!("items         {}\n", inspected_rows(survey));
    let ColumnRoles::Guessed { items: Some(items), .. } = &inspected.columns else { return text };
    text += &summary_line("id", format_args!("`{}`: {}", items.id, described_values(survey, &items.id, true)));
    text += &if items.title.is_empty() {
        summary_line("title", "none")
    } else {
        summary_line("title", format_args!("`{}`: {}", items.title, described_values(survey, &items.title, false)))
    };
    for name in &items.texts {
        text += &summary_line("text", format_args!("`{name}`: {}", described_values(survey, name, false)));
    }
    if !items.categories.is_empty() {
        text += &summary_line("categories", format_args!("`{}`", items.categories.join("`, `")));
    }
    if let Some(images) = &items.images {
        text += &summary_line(
            "images",
            format_args!("`{}`: {}", images.name, described_values(survey, &images.name, false)),
        );
    }
    if !items.unused.is_empty() {
        text += &summary_line("not read", found::unused(survey, &items.unused));
    }
    text
}

fn summary_of_trial(args: &Args, report: &PreprocessReport, is_whole: bool) -> String {
    let read = |files: &[mp4sr_artifact::FileCount]| count(files.iter().map(|file| file.lines).sum());
    let part = if is_whole { "all" } else { "the first" };
    let mut text = format!("test read     {part} {} lines of interactions", read(&report.interactions.files));
    if !args.items.is_empty() {
        text.push_str(&format!(" and {} of items", read(&report.items.files)));
    }
    text.push_str(&format!(": {} users, {} items\n", count(report.statistics.users), count(report.statistics.items)));
    if let Some(shares) = &report.join {
        text.push_str(&format!("  {}\n", described_shares(shares)));
    }
    text
}
