//! `mp4sr recommend` for given histories: selects the users and the candidates, and writes the lists.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use mp4sr_artifact::{Items, files, role};
use mp4sr_pipeline::text::some_of;
use mp4sr_pipeline::{Context, print};
use mp4sr_run::{NewItems, TrainedModel};
use mp4sr_store::ItemStore;

use crate::condition::satisfying;
use crate::histories::{self, HistoriesFile, History, HistoryFormat};
use crate::lists::{self, ListFormat, ListRow};
use crate::{Answerer, CandidateItems, LoadedRun, Request, expect_candidates};

/// The flags of lists for given histories.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Lists for given histories")]
pub struct GivenArgs {
    /// Recommends for the histories in this file, or on standard input (`-`): JSON lines, CSV or Parquet with the columns `user_id` and
    /// `history`, or with one event per row in the columns `user_id`, `item_id` and, unless rows are in order of time, `timestamp`.
    #[arg(long, value_name = "FILE", conflicts_with = "history")]
    histories: Option<PathBuf>,
    /// Recommends for one history: ids of items separated by commas, oldest first.
    #[arg(long, value_name = "ID,ID,...")]
    history: Option<String>,
    /// The format of the histories; by default, it follows from the file name.
    #[arg(long, value_enum, value_name = "FORMAT", requires = "histories")]
    input_format: Option<HistoryFormat>,
    /// The length of a list; by default, the pipeline's `recommend.top`.
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    top: Option<u32>,
    /// Recommends only items whose ids are in this file, one per line.
    #[arg(long, value_name = "FILE")]
    only: Option<PathBuf>,
    /// Excludes items whose ids are in this file, one per line.
    #[arg(long, value_name = "FILE")]
    exclude: Option<PathBuf>,
    /// Recommends only items that satisfy this SQL condition on `item_id`, `title`, `sentences`, `images`, `categories`, `sounds` and
    /// `events`, the number of training events.
    #[arg(long, value_name = "CONDITION")]
    only_where: Option<String>,
    /// Excludes items that satisfy this SQL condition.
    #[arg(long, value_name = "CONDITION")]
    exclude_where: Option<String>,
    /// The file for the lists, with the extension .jsonl, .csv, .parquet or .txt; by default, standard output.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// The format of the lists; by default, it follows from the file name. On standard output, the default is a table on a terminal
    /// and JSON lines elsewhere.
    #[arg(long, value_enum, value_name = "FORMAT")]
    format: Option<ListFormat>,
}

impl GivenArgs {
    /// Whether none of the flags is given.
    pub fn is_empty(&self) -> bool {
        let Self { histories, history, input_format, top, only, exclude, only_where, exclude_where, out, format } =
            self;
        let files = [histories, only, exclude, out].iter().all(|file| file.is_none());
        let texts = [history, only_where, exclude_where].iter().all(|text| text.is_none());
        files && texts && input_format.is_none() && top.is_none() && format.is_none()
    }

    /// Rejects an output that cannot be written, or that would replace a file that is read.
    fn expect_own_output(&self, context: &Context) -> anyhow::Result<()> {
        let Some(out) = &self.out else { return Ok(()) };
        ensure!(!out.is_dir(), "`--out {}` is a folder; name a file in it", out.display());
        let is_below_file =
            out.ancestors().skip(1).find(|parent| parent.exists()).is_some_and(|parent| !parent.is_dir());
        ensure!(
            !is_below_file,
            "`--out {}` is below a file, so it cannot be written; name a file in a folder",
            out.display()
        );
        let is_out =
            |path: &PathBuf| path.canonicalize().is_ok_and(|path| out.canonicalize().is_ok_and(|out| out == path));
        for (flag, path) in [("--histories", &self.histories), ("--only", &self.only), ("--exclude", &self.exclude)] {
            ensure!(
                !path.as_ref().is_some_and(is_out),
                "`--out {}` would replace the file of `{flag}`; give another name",
                out.display()
            );
        }
        let layout = &context.layout;
        let mut of_run = TrainedModel::files(layout, &context.config);
        of_run.extend([(role::ITEMS.to_owned(), layout.items()), (role::USERS.to_owned(), layout.users())]);
        of_run.push(("the lists of `mp4sr recommend`".to_owned(), layout.recommendations()));
        of_run.push(("its configuration".to_owned(), layout.run_config()));
        let replaced = of_run.iter().find(|(_, path)| is_out(path));
        ensure!(
            replaced.is_none(),
            "`--out {}` would replace a file of the run ({}); give another name",
            out.display(),
            replaced.map_or("", |(role, _)| role)
        );
        Ok(())
    }

    fn format(&self) -> anyhow::Result<ListFormat> {
        let on_output = || if std::io::stdout().is_terminal() { ListFormat::Table } else { ListFormat::Jsonl };
        let format = match (self.format, &self.out) {
            (Some(format), _) => format,
            (None, None) => on_output(),
            (None, Some(path)) => ListFormat::of(path).with_context(|| {
                format!("the format of the lists cannot be determined from the name `{}`; use .jsonl, .csv, .parquet or .txt, or give `--format`", path.display())
            })?,
        };
        let to_output = self.out.is_none() && format == ListFormat::Parquet;
        ensure!(!to_output, "Parquet cannot be printed; name a file with `--out`");
        Ok(format)
    }
}

/// Everything that is read before the first list is computed.
struct Prepared {
    format: ListFormat,
    asked: Vec<History>,
    run: LoadedRun,
    selection: Selection,
    /// The length of a list.
    top: usize,
}

impl Prepared {
    fn read(context: &Context, args: &GivenArgs, new_items: Option<NewItems>) -> anyhow::Result<Self> {
        let format = args.format()?;
        args.expect_own_output(context)?;
        let asked = match (&args.histories, &args.history) {
            (Some(path), _) => {
                let HistoriesFile { histories, warning } = histories::read(path, args.input_format)?;
                warning.iter().for_each(|warning| context.progress.warn("recommend", warning));
                histories
            }
            (None, Some(ids)) => vec![histories::of_argument(ids)?],
            (None, None) => {
                anyhow::bail!(
                    "no histories are given; name a file with `--histories`, or ids of items with `--history`"
                )
            }
        };
        let run = LoadedRun::load(&context.layout, &context.config, new_items)?;
        for warning in run.warnings(&context.layout) {
            context.progress.warn("recommend", warning);
        }
        let selection = select(&run, args)?;
        selection.notes.iter().for_each(|note| context.progress.log(format!("recommend: {note}")));
        let top = args.top.map_or(context.config.recommend.top, |top| top as usize);
        Ok(Self { format, asked, run, selection, top })
    }
}

/// Reads everything that the lists need without computing them, and returns the number of histories and a sentence on what would be done.
pub fn check(context: &Context, args: &GivenArgs) -> anyhow::Result<(usize, String)> {
    let Prepared { format, asked, run, selection, top } = Prepared::read(context, args, ItemStore::peek(context)?)?;
    let answerer = run.answerer()?;
    expect_answers(&answerer, &asked, top)?;
    let items = run.catalogue.items.len();
    let candidates = selection.allowed.map_or(items, |allowed| allowed.iter().filter(|allowed| **allowed).count());
    let to = args.out.as_ref().map_or("standard output".to_owned(), |path| format!("`{}`", path.display()));
    let count = asked.len();
    let sentence =
        format!("list the best {top} of {candidates} items for {count} histories, and write {format} to {to}");
    Ok((count, sentence))
}

/// Computes the lists for the given histories.
pub fn for_histories(context: &Context, args: &GivenArgs) -> anyhow::Result<()> {
    let Prepared { format, asked, run, selection, top } =
        Prepared::read(context, args, ItemStore::open(context)?.read(context)?)?;
    let allowed = selection.allowed;
    let answerer = run.answerer()?;
    expect_answers(&answerer, &asked, top)?;
    let recommender = answerer.recommender()?;
    let bar = context.progress.bar("recommend", "histories", asked.len() as u64);
    let mut rows: Vec<ListRow> = Vec::with_capacity(asked.len());
    for block in asked.chunks(context.config.evaluate.batch) {
        let requests: Vec<Request> = block.iter().map(|history| request(history, top, allowed.as_ref())).collect();
        let answers = answerer.answer(&recommender, &requests)?;
        rows.extend(
            block
                .iter()
                .zip(answers)
                .map(|(history, answer)| ListRow::new(history.user_id.clone(), answer, &run.catalogue)),
        );
        bar.add(block.len() as u64);
    }
    drop(bar);
    ensure!(
        rows.iter().any(|row| !row.items.is_empty()),
        "every list is empty, because the items of a history are not listed again and no others may be listed; change `--only`, `--exclude` \
         and the conditions, or set `evaluate.seen_items=keep`"
    );
    let empty: Vec<&str> = rows.iter().filter(|row| row.items.is_empty()).map(|row| row.user_id.as_str()).collect();
    if !empty.is_empty() {
        let (count, named) = (empty.len(), some_of(&empty));
        let warning = format!("lists that are empty because no item may be listed: {count} ({named})");
        context.progress.warn("recommend", warning);
    }
    notes(&rows, &asked, top).iter().for_each(|note| context.progress.log(format!("recommend: {note}")));
    match &args.out {
        Some(path) => {
            let count = rows.len();
            lists::write(rows, format, path)?;
            context.progress.log(format!("recommend: lists in `{}`: {count}", path.display()));
            Ok(())
        }
        None => print(&lists::text(&rows, format)?),
    }
}

/// Returns the error of the first history that the model cannot rank for, before any list is computed.
fn expect_answers(answerer: &Answerer<'_>, asked: &[History], top: usize) -> anyhow::Result<()> {
    let refusal = asked.iter().find_map(|history| answerer.refusal(&request(history, top, None)));
    refusal.map_or(Ok(()), |refusal| Err(refusal.into()))
}

fn request(history: &History, k: usize, allowed: Option<&Arc<Vec<bool>>>) -> Request {
    let user = history.is_named.then(|| history.user_id.clone());
    Request { user, history: history.items.clone(), k, allowed: allowed.cloned(), removed: Vec::new() }
}

/// The items that may be listed.
#[derive(Default)]
struct Selection {
    /// For each item, whether it may be listed; `None` means every item.
    allowed: Option<Arc<Vec<bool>>>,
    /// Notes on ids that are not items of the run.
    notes: Vec<String>,
}

fn select(run: &LoadedRun, args: &GivenArgs) -> anyhow::Result<Selection> {
    let GivenArgs { only, exclude, only_where, exclude_where, .. } = args;
    if [only, exclude].iter().all(|file| file.is_none())
        && [only_where, exclude_where].iter().all(|text| text.is_none())
    {
        return Ok(Selection::default());
    }
    let (mut allowed, mut notes) = (vec![true; run.catalogue.items.len()], Vec::new());
    let mut keep = |selected: Vec<bool>, wanted: bool| {
        allowed.iter_mut().zip(selected).for_each(|(allowed, selected)| *allowed &= selected == wanted);
    };
    for (path, wanted) in only.iter().map(|path| (path, true)).chain(exclude.iter().map(|path| (path, false))) {
        let (selected, note) = of_file(run, path, wanted)?;
        keep(selected, wanted);
        notes.extend(note);
    }
    let conditions = only_where.iter().map(|text| (text, true)).chain(exclude_where.iter().map(|text| (text, false)));
    for (text, wanted) in conditions {
        let selected = selected_by(&run.catalogue.items, &run.catalogue.events, text)?;
        if !wanted && !selected.contains(&true) {
            notes.push(format!("the condition of `--exclude-where` is true for none of the {} items", selected.len()));
        }
        keep(selected, wanted);
    }
    expect_candidates(CandidateItems { allowed: Some(&allowed), removed: &[] }, allowed.len())?;
    Ok(Selection { allowed: Some(Arc::new(allowed)), notes })
}

fn selected_by(items: &Items, events: &[u32], text: &str) -> anyhow::Result<Vec<bool>> {
    Ok(satisfying(text, items, events)?)
}

/// For each item, whether its id is in a file, and a note on ids that are not items of the run. If the items are `wanted`, a file without an
/// item is an error; a list of items to exclude may well be empty, or name only items that are not in the run.
fn of_file(run: &LoadedRun, path: &Path, wanted: bool) -> anyhow::Result<(Vec<bool>, Option<String>)> {
    let text = files::read_to_string(path)?;
    let text = text.trim_start_matches('\u{feff}');
    let ids: Vec<&str> = text.lines().map(str::trim).filter(|id| !id.is_empty()).collect();
    ensure!(!ids.is_empty() || !wanted, "`{}` has no id; write one per line", path.display());
    let mut selected = vec![false; run.catalogue.items.len()];
    let mut unknown = Vec::new();
    for id in &ids {
        match run.catalogue.item(id) {
            Some(item) => selected[item as usize - 1] = true,
            None => unknown.push(*id),
        }
    }
    ensure!(
        unknown.len() < ids.len() || !wanted,
        "no id of `{}` is an item of the run ({}); write the ids as in `items.parquet`",
        path.display(),
        some_of(&unknown)
    );
    let note = || {
        format!(
            "{} of {} ids in `{}` are not items of the run: {}",
            unknown.len(),
            ids.len(),
            path.display(),
            some_of(&unknown)
        )
    };
    Ok((selected, (!unknown.is_empty()).then(note)))
}

/// What the reader of the lists should know.
fn notes(rows: &[ListRow], asked: &[History], top: usize) -> Vec<String> {
    let mut notes = Vec::new();
    let unknown: Vec<&str> = rows.iter().flat_map(|row| row.unknown.iter().map(String::as_str)).collect();
    if !unknown.is_empty() {
        let all: usize = asked.iter().map(|history| history.items.len()).sum();
        let people = rows.iter().filter(|row| !row.unknown.is_empty()).count();
        let (count, named) = (unknown.len(), some_of(&unknown));
        notes.push(format!(
            "ids that are not items of the run: {count} of {all}, in {people} of {} histories ({named})",
            rows.len()
        ));
    }
    let fallbacks: Vec<&str> =
        rows.iter().filter(|row| row.fallback.is_some()).map(|row| row.user_id.as_str()).collect();
    if !fallbacks.is_empty() {
        let (count, named) = (fallbacks.len(), some_of(&fallbacks));
        notes.push(format!("histories without a known item, which get the most popular items: {count} ({named})"));
    }
    let short = rows.iter().filter(|row| (1..top).contains(&row.items.len())).count();
    if short > 0 {
        notes.push(format!("lists shorter than {top}, because no further items may be listed: {short}"));
    }
    notes
}
