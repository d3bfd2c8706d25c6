//! The command line of `mp4sr doctor`, and `--dry-run` of the stages.

use std::path::PathBuf;
use std::sync::Arc;

use mp4sr_artifact::{Downloads, files, role};
use mp4sr_download::ImagePlan;
use mp4sr_extract::encoders;
use mp4sr_pipeline::config::ModelCatalog;
use mp4sr_pipeline::text::{bytes, count};
use mp4sr_pipeline::{Context, StageArgs, StageName, print};
use mp4sr_run::{TrainedModel, other_settings};

use crate::estimate::{Cost, Estimator};
use crate::page::{page, spoken_cost};
use crate::plan::{Plan, Question, Scope};
use crate::sizes::DatasetSizes;

/// Reports what `mp4sr run` would do with a pipeline, without doing it: which stages are up to date and why the others are not,
/// whether files, encoders, disk space and memory are available, and roughly how much time and memory each stage takes.
///
/// Exits with code 1 if something would stop the run. Writes nothing, and does not use the network without `--online`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The last stage to run.
    #[arg(long, value_enum, value_name = "STAGE", default_value_t = StageName::Report)]
    until: StageName,
    /// Asks the Hugging Face hub for the sizes of the encoders that are not on this machine.
    #[arg(long)]
    online: bool,
    #[command(flatten)]
    stage: StageArgs,
}

/// Runs `mp4sr doctor`.
pub fn run(args: &Args, models: &Arc<ModelCatalog>) -> anyhow::Result<()> {
    report(&args.stage, models, Scope::Until(args.until), args.online)
}

/// Prints what a stage, or all stages up to one, would do. Fails if something would stop it.
pub fn dry_run(args: &StageArgs, models: &Arc<ModelCatalog>, scope: Scope) -> anyhow::Result<()> {
    report(args, models, scope, false)
}

fn report(args: &StageArgs, models: &Arc<ModelCatalog>, scope: Scope, online: bool) -> anyhow::Result<()> {
    let context = args.context_of_plan(models)?;
    let is_sample_world = args.reads_sample_world(&context);
    let plan = Plan::of(&context, Question { pipeline: &args.pipeline, scope, online, is_sample_world });
    print(&page(&plan, &context))?;
    refuse(&plan.problems)
}

fn refuse(problems: &[String]) -> anyhow::Result<()> {
    match problems {
        [] => Ok(()),
        [one] => anyhow::bail!("found a problem: {one}"),
        [first, others @ ..] => {
            anyhow::bail!("found {} problems: {first}; for the others, see above", others.len() + 1)
        }
    }
}

/// What a command on a trained run would do.
#[derive(Clone, Debug, Default)]
pub struct TrainedWork {
    /// What it would do, one sentence each.
    pub sentences: Vec<String>,
    /// The number of histories for which it computes lists; `None` means every user of the dataset.
    pub histories: Option<usize>,
    /// The number of new items that it encodes; `None` if it does not encode items.
    pub new_items: Option<usize>,
}

/// Prints what a command on a trained run would do: the files of the run and `more` new items that it would read, what `check` finds, and
/// how long it would take. Fails if something would stop it.
pub fn dry_run_of_trained(
    args: &StageArgs,
    models: &Arc<ModelCatalog>,
    more: &[PathBuf],
    check: impl FnOnce(&Context) -> anyhow::Result<TrainedWork>,
) -> anyhow::Result<()> {
    let context = args.context_of_plan(models)?;
    let mut reads = TrainedModel::files(&context.layout, &context.config);
    reads.push((role::ITEMS.to_owned(), context.layout.items()));
    reads.extend(more.iter().map(|path| ("new items".to_owned(), path.clone())));
    let (text, mut problems) = listed(&reads);
    print(&text)?;
    if problems.is_empty() {
        match check(&context) {
            Ok(work) => print(&described(&context, &work))?,
            Err(error) => {
                let problem = format!("{error:#}");
                print(&format!("problem: {problem}\n"))?;
                problems.push(problem);
            }
        }
    }
    refuse(&problems)
}

/// What a command would do, and its estimated cost.
fn described(context: &Context, work: &TrainedWork) -> String {
    let mut text = String::new();
    work.sentences.iter().for_each(|sentence| text.push_str(&format!("would  {sentence}\n")));
    let settings = other_settings(&context.layout, &context.config);
    settings.iter().for_each(|warning| text.push_str(&format!("note   {warning}\n")));
    let estimate = match DatasetSizes::of_dataset(&context.layout, &context.config, &[]) {
        Some(sizes) => spoken_cost(&cost_of(context, sizes, work)),
        None => format!("unknown, because `{}` is missing", context.layout.statistics().display()),
    };
    text.push_str(&format!("takes  {estimate}\n"));
    text
}

/// The cost of loading the run, computing lists and encoding items.
fn cost_of(context: &Context, mut sizes: DatasetSizes, work: &TrainedWork) -> Cost {
    let encoders = work.new_items.map_or(Vec::new(), |_| encoders(context, false));
    let threads = rayon::current_num_threads();
    if let Some(count) = work.histories {
        sizes.users = (count as f64, count as f64);
    }
    if let Some(count) = work.new_items {
        sizes.items = (count as f64, count as f64);
    }
    let stage = if work.new_items.is_some() { StageName::Extract } else { StageName::Recommend };
    Estimator { context, sizes, encoders: &encoders, threads }.cost(stage)
}

/// Lists files with their sizes. Missing files are problems.
fn listed(reads: &[(String, PathBuf)]) -> (String, Vec<String>) {
    let mut text = String::new();
    let mut problems = Vec::new();
    for (role, path) in reads {
        match files::length(path) {
            Ok(Some(size)) => text.push_str(&format!("reads  {role}: {}, {}\n", path.display(), bytes(size))),
            Ok(None) => problems
                .push(format!("`{}` ({role}) is missing; `mp4sr run` creates the files of the run", path.display())),
            Err(error) => problems.push(error.to_string()),
        }
    }
    problems.iter().for_each(|problem| text.push_str(&format!("problem: {problem}\n")));
    (text, problems)
}

/// The average size of an image in bytes.
const IMAGE: u64 = 120_000;

/// Prints what a download would fetch.
pub fn dry_run_of_download(args: &StageArgs, models: &Arc<ModelCatalog>) -> anyhow::Result<()> {
    let context = args.context_of_plan(models)?;
    print(&downloads(&context)?)
}

fn downloads(context: &Context) -> anyhow::Result<String> {
    let data = PathBuf::from(&context.config.dataset.data);
    let mut text = String::new();
    for file in &context.config.download.files {
        let path = data.join(&file.path);
        match files::length(&path)?.filter(|&size| size > 0) {
            Some(size) => text.push_str(&format!("exists    {}, {}\n", path.display(), bytes(size))),
            None => text.push_str(&format!("download  {} to {}\n", Downloads::shown(&file.url), path.display())),
        }
    }
    let items = context.layout.items();
    if files::length(&items)?.is_none() {
        text.push_str(&format!(
            "images are downloaded after `mp4sr preprocess`; `{}` does not exist yet\n",
            items.display()
        ));
        return Ok(text);
    }
    let ImagePlan { done, given_up, wanted } = ImagePlan::of(&context.config.download, &data, &items)?;
    text.push_str(&format!(
        "images {} URLs are downloaded, {} have no usable image, {} are not downloaded: about {} to download, at {} each\n",
        count(done),
        count(given_up),
        count(wanted),
        bytes(wanted * IMAGE),
        bytes(IMAGE)
    ));
    Ok(text)
}
