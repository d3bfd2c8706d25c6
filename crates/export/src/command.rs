//! The command line of `mp4sr export`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use mp4sr_pipeline::config::ModelCatalog;
use mp4sr_pipeline::{Context, StageArgs};
use mp4sr_recommend::{Answerer, LoadedRun};
use serde_json::json;

use crate::folder::EXPORT;
use crate::histories::{UserHistory, histories};
use crate::vectors::VectorForm;
use crate::{folder, huggingface, lists, mmrec, recbole, vectors};

/// Writes what a trained run knows as files for other programs: lists, vectors, data sets, a model folder.
///
/// `--out` becomes a folder that holds what `--format` names, and nothing else: an earlier export there is replaced when the new one is
/// complete. docs/exports.md describes every file.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The flags of every stage.
    #[command(flatten)]
    pub stage: StageArgs,
    /// What is written; several names are separated by commas.
    #[arg(long, value_enum, value_name = "FORMAT", required = true, value_delimiter = ',')]
    pub format: Vec<ExportFormat>,
    /// The folder to write. Where it is not given: `export` in the folder of the run.
    #[arg(long, value_name = "FOLDER")]
    pub out: Option<PathBuf>,
    /// The length of a list, in place of the pipeline's `recommend.top`.
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub top: Option<u32>,
}

/// What can be exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum ExportFormat {
    /// The best items for every user, a row per user: `lists/lists.parquet`.
    ListsParquet,
    /// The same, a JSON object per user: `lists/lists.jsonl`.
    ListsJsonl,
    /// The same, a row per listed item: `lists/lists.csv`.
    ListsCsv,
    /// Vectors of items and queries with the histories of queries as `.npy` files: `vectors/`.
    VectorsNpy,
    /// The same as one safetensors file: `vectors/vectors.safetensors`.
    VectorsSafetensors,
    /// The same as `vectors/items.parquet` and `vectors/queries.parquet`.
    VectorsParquet,
    /// The dataset and its features as RecBole's atomic files: `recbole/DATASET/`.
    Recbole,
    /// The dataset and its features as MMRec reads them: `mmrec/DATASET/`.
    Mmrec,
    /// A model folder as on the Hugging Face hub, from which this program recommends: `huggingface/`.
    Huggingface,
}

impl ExportFormat {
    fn vectors(self) -> Option<VectorForm> {
        match self {
            Self::VectorsNpy => Some(VectorForm::Npy),
            Self::VectorsSafetensors => Some(VectorForm::Safetensors),
            Self::VectorsParquet => Some(VectorForm::Parquet),
            _ => None,
        }
    }
}

/// What every format is made from.
pub(crate) struct Export<'a> {
    /// The run's configuration and folders.
    pub context: &'a Context,
    /// The run with the items that were added to it.
    pub run: &'a LoadedRun,
    /// The run ready to rank.
    pub answerer: &'a Answerer<'a>,
    /// One per user with an event.
    pub histories: &'a [UserHistory<'a>],
    /// The length of a list.
    pub top: usize,
}

/// Runs the command.
pub fn run(args: &Args, models: &Arc<ModelCatalog>) -> anyhow::Result<()> {
    mp4sr_ops::start_threads();
    let context = args.stage.context(models)?;
    let mut formats = args.format.clone();
    formats.sort_unstable();
    formats.dedup();
    let out = args.out.clone().unwrap_or_else(|| context.layout.run().join("export"));
    folder::check(&out, EXPORT)?;
    let run = LoadedRun::load(&context.layout, &context.config)?;
    if formats.iter().any(|format| format.vectors().is_some()) {
        vectors::expect_vectors(run.trained.model.as_ref(), &context.config.model.name)?;
    }
    for warning in run.trained.warnings(&context.config, &BTreeMap::new()) {
        context.progress.log(format!("export: warning: {warning}"));
    }
    let answerer = run.answerer()?;
    let histories = histories(&run.trained.inputs.sequences, context.config.recommend.before_test_item);
    let top = args.top.map_or(context.config.recommend.top, |top| top as usize);
    let export = Export { context: &context, run: &run, answerer: &answerer, histories: &histories, top };
    folder::write(&out, EXPORT, |made| {
        Ok(json!({
            "files": write_formats(&export, &formats, made)?,
            "program": env!("CARGO_PKG_VERSION"),
            "dataset": context.config.dataset.name,
            "run": context.layout.run_name(),
            "model": context.config.model.name,
        }))
    })?;
    context.progress.log(format!("export: `{}` is complete", out.display()));
    Ok(())
}

fn write_formats(export: &Export<'_>, formats: &[ExportFormat], made: &Path) -> anyhow::Result<Vec<String>> {
    let mut paths = Vec::new();
    let forms: Vec<_> = formats.iter().filter_map(|format| lists::form(*format)).collect();
    if !forms.is_empty() {
        paths.extend(lists::write(export, &forms, &made.join("lists"))?);
    }
    let forms: Vec<VectorForm> = formats.iter().filter_map(|format| format.vectors()).collect();
    if !forms.is_empty() {
        paths.extend(vectors::write(export, &forms, &made.join("vectors"))?);
    }
    let dataset = &export.context.config.dataset.name;
    for format in formats {
        match format {
            ExportFormat::Recbole => paths.extend(recbole::write(export, &made.join("recbole").join(dataset))?),
            ExportFormat::Mmrec => paths.extend(mmrec::write(export, &made.join("mmrec").join(dataset))?),
            ExportFormat::Huggingface => paths.extend(huggingface::write(export, &made.join("huggingface"))?),
            _ => {}
        }
    }
    let relative = |path: &PathBuf| path.strip_prefix(made).map(|path| path.display().to_string());
    paths.iter().map(relative).collect::<Result<_, _>>().context("a file lies outside of the export")
}
