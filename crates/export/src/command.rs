//! The command line of `mp4sr export`.

use anyhow::Context as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mp4sr_pipeline::config::ModelCatalog;
use mp4sr_pipeline::{Context, StageArgs};
use mp4sr_recommend::LoadedRun;
use mp4sr_recommend::command::unseen_users;
use mp4sr_store::ItemStore;
use serde_json::json;

use crate::dataset::ExportedDataset;
use crate::exported::Export;
use crate::folder::EXPORT;
pub use crate::format::ExportFormat;
use crate::histories::histories;
use crate::vectors::VectorFormat;
use crate::{folder, huggingface, lists, mmrec, recbole, vectors};

/// Exports a trained run as files for other programs: lists, vectors, datasets or a model folder.
///
/// The folder `--out` will hold only the formats that `--format` names: an earlier export there is replaced once the new one is
/// complete. docs/exports.md describes every file.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The flags of every stage.
    #[command(flatten)]
    pub stage: StageArgs,
    /// The formats to write, separated by commas.
    #[arg(long, value_enum, value_name = "FORMAT", required = true, value_delimiter = ',')]
    pub format: Vec<ExportFormat>,
    /// The folder to write; by default, `export` in the folder of the run.
    #[arg(long, value_name = "FOLDER")]
    pub out: Option<PathBuf>,
    /// The length of a list; by default, the pipeline's `recommend.top`.
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub top: Option<u32>,
}

/// Runs `mp4sr export`.
///
/// ```
/// use clap::Parser;
/// use mp4sr_artifact::files;
/// use mp4sr_export::command::{Args, run};
/// # use mp4sr_artifact::{Items, Layout, Sequences, TimeKind, Users};
/// # use mp4sr_run::{Checkpoint, CheckpointInfo, Inputs, TrainedPhase, build_model, last_phase};
///
/// #[derive(Parser)]
/// struct Command {
///     #[command(flatten)]
///     args: Args,
/// }
///
/// # let folder = tempfile::tempdir()?;
/// # let layout = Layout::new(folder.path(), "shop", "popularity");
/// # let texts = |texts: [&str; 4]| texts.map(str::to_owned).to_vec();
/// # let none = vec![Vec::new(); 4];
/// # let items = Items {
/// #     ids: texts(["cup", "pot", "pan", "lid"]),
/// #     titles: texts(["A cup", "A pot", "A pan", "A lid"]),
/// #     sentences: none.clone(),
/// #     images: none.clone(),
/// #     categories: none.clone(),
/// #     sounds: none,
/// # };
/// # items.write(&layout.items())?;
/// # Users { ids: vec!["ann".to_owned(), "bob".to_owned()] }.write(&layout.users())?;
/// # let sequences = Sequences {
/// #     offsets: vec![0, 4, 8],
/// #     items: vec![1, 2, 3, 4, 1, 3, 2, 4],
/// #     times: vec![1, 2, 3, 4, 1, 2, 3, 4],
/// #     item_hash: items.hash(),
/// #     item_count: 4,
/// #     user_hash: None,
/// #     time_kind: TimeKind::Unstated,
/// #     parts: None,
/// # };
/// # sequences.write(&layout.sequences(), serde_json::Value::Null)?;
/// # let text = "dataset.name = \"shop\"\nmodel.name = \"popularity\"\nevaluate.seen_items = \"keep\"";
/// # files::write_bytes(&layout.run_config(), text.as_bytes())?;
/// # let (config, _) = mp4sr_pipeline::Config::load(&layout.run_config(), &[], mp4sr_run::model_catalog())?;
/// # let inputs = Inputs { sequences, modalities: Vec::new(), encoders: Default::default(), categories: None };
/// # let model = build_model(&config, &inputs)?;
/// # let used = TrainedPhase { model: model.as_ref(), phase: last_phase(model.as_ref())? };
/// # let info = CheckpointInfo { phase: "finetune".to_owned(), ..CheckpointInfo::default() };
/// # Checkpoint::write(&layout.checkpoint("finetune"), &info, used, &items.hash(), Default::default())?;
/// # let (trained, exports) = (layout.run().display().to_string(), folder.path().join("exports"));
/// # let out = exports.display().to_string();
/// // `trained` is the folder of a run, such as `artifacts/sample/runs/mp4sr`; this one ranks items by popularity.
/// let flags = ["export", "--run", &trained, "--format", "lists-csv", "--top", "1", "--out", &out];
/// run(&Command::parse_from(flags).args, mp4sr_run::model_catalog())?;
/// let lists = files::read_to_string(&exports.join("lists/lists.csv"))?;
/// assert_eq!(lists, "user_id,rank,item_id,title,score,fallback,unknown\nann,1,cup,A cup,2,,\nbob,1,cup,A cup,2,,\n");
/// # Ok::<(), anyhow::Error>(())
/// ```
pub fn run(args: &Args, models: &Arc<ModelCatalog>) -> anyhow::Result<()> {
    mp4sr_ops::start_threads();
    let context = args.stage.context(models)?;
    let mut formats = args.format.clone();
    formats.sort_unstable();
    formats.dedup();
    let out = out(args, &context)?;
    expect_lists(args)?;
    folder::write(&out, EXPORT, |made| {
        let mut paths = write_dataset(&context, &formats, made)?;
        if formats.iter().any(|format| !format.is_of_dataset()) {
            paths.extend(write_run(&context, args.top, &formats, made)?);
        }
        let relative = |path: &PathBuf| path.strip_prefix(made).map(|path| path.display().to_string());
        let files: Vec<String> = paths.iter().map(relative).collect::<Result<_, _>>()?;
        Ok(json!({
            "files": files,
            "program": env!("CARGO_PKG_VERSION"),
            "dataset": context.config.dataset.name,
            "run": context.layout.run_name(),
            "model": context.config.model.name,
        }))
    })?;
    context.progress.log(format!("export: `{}` is complete", out.display()));
    Ok(())
}

/// The folder to write. A link to a folder stays a link.
fn out(args: &Args, context: &Context) -> anyhow::Result<PathBuf> {
    let out = args.out.clone().unwrap_or_else(|| context.layout.run().join("export"));
    // A separator at the end would follow the link.
    let out: PathBuf = out.components().collect();
    if !out.is_symlink() {
        return Ok(out);
    }
    let what =
        || format!("`{}` is a link to a folder that does not exist; create it, or name another folder", out.display());
    out.canonicalize().with_context(what)
}

/// Rejects a length of lists if no list is written.
fn expect_lists(args: &Args) -> anyhow::Result<()> {
    let has_lists = args.format.iter().any(|format| lists::list_format(*format).is_some());
    anyhow::ensure!(
        args.top.is_none() || has_lists,
        "`--top` has no effect, because none of the formats has lists; leave it out, or add a format such as `lists-csv`"
    );
    Ok(())
}

/// Reads everything that an export of a trained run needs, without writing anything, and returns a sentence on what would be done.
pub fn check(args: &Args, context: &Context) -> anyhow::Result<String> {
    if args.format.iter().any(|format| format.is_of_dataset()) {
        let dataset = ExportedDataset::read(context)?;
        if args.format.contains(&ExportFormat::Recbole) {
            recbole::expect_ids(&dataset)?;
        }
    }
    if args.format.iter().any(|format| !format.is_of_dataset()) {
        let run = LoadedRun::load(&context.layout, &context.config, ItemStore::peek(context)?)?;
        if args.format.iter().any(|format| format.vectors().is_some()) {
            vectors::expect_vectors(run.trained.model.as_ref(), &context.config.model.name)?;
        }
        if args.format.contains(&ExportFormat::Huggingface) {
            huggingface::check(context, &run.trained.inputs.sequences)?;
        }
    }
    let out = out(args, context)?;
    expect_lists(args)?;
    folder::check(&out, EXPORT)?;
    let names = args.format.iter().filter_map(clap::ValueEnum::to_possible_value);
    let names: Vec<String> = names.map(|value| value.get_name().to_owned()).collect();
    Ok(format!("write {} to `{}`", names.join(", "), out.display()))
}

/// Writes the formats that need only the dataset, so that they do not require a trained run.
fn write_dataset(context: &Context, formats: &[ExportFormat], made: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    let dataset = &context.config.dataset.name;
    for format in formats {
        match format {
            ExportFormat::Recbole => paths.extend(recbole::write(context, &made.join("recbole").join(dataset))?),
            ExportFormat::Mmrec => paths.extend(mmrec::write(context, &made.join("mmrec").join(dataset))?),
            _ => {}
        }
    }
    Ok(paths)
}

fn write_run(
    context: &Context,
    top: Option<u32>,
    formats: &[ExportFormat],
    made: &Path,
) -> anyhow::Result<Vec<PathBuf>> {
    let store = ItemStore::open(context)?;
    let run = LoadedRun::load(&context.layout, &context.config, store.read(context)?)?;
    let vector_formats: Vec<VectorFormat> = formats.iter().filter_map(|format| format.vectors()).collect();
    if !vector_formats.is_empty() {
        vectors::expect_vectors(run.trained.model.as_ref(), &context.config.model.name)?;
    }
    for warning in run.warnings(&context.layout) {
        context.progress.warn("export", warning);
    }
    let answerer = run.answerer()?;
    let sequences = &run.trained.inputs.sequences;
    let histories = histories(sequences, context.config.recommend.before_test_item);
    let users = (0..sequences.user_count()).filter(|&user| !sequences.of(user).is_empty()).count();
    let needs_histories =
        formats.iter().any(|format| lists::list_format(*format).is_some()) || !vector_formats.is_empty();
    if needs_histories && histories.len() < users {
        context.progress.log(format!(
            "export: {} of {users} users have no event before the test events and are left out; set \
             `recommend.before_test_item=false` to include them",
            users - histories.len()
        ));
    }
    let users_of_export = histories.iter().map(|own| own.user);
    if let Some(warning) = unseen_users(answerer.scorer(), users_of_export, &context.config.model.name)
        && needs_histories
    {
        context.progress.warn("export", warning);
    }
    let top = top.map_or(context.config.recommend.top, |top| top as usize);
    let export = Export { context, store: &store, run: &run, answerer: &answerer, histories: &histories, top };
    let mut paths = Vec::new();
    let list_formats: Vec<_> = formats.iter().filter_map(|format| lists::list_format(*format)).collect();
    if !list_formats.is_empty() {
        paths.extend(lists::write(&export, &list_formats, &made.join("lists"))?);
    }
    if !vector_formats.is_empty() {
        paths.extend(vectors::write(&export, &vector_formats, &made.join("vectors"))?);
    }
    if formats.contains(&ExportFormat::Huggingface) {
        paths.extend(huggingface::write(&export, &made.join("huggingface"))?);
    }
    Ok(paths)
}
