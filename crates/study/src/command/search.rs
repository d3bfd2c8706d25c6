//! The command line of `mp4sr search`: trains runs for a grid of settings and sorts them by their validation metric.

use mp4sr_pipeline::config::{ModelCatalog, ModelType};
use mp4sr_pipeline::{Assignments, StageArgs, print};
use std::sync::Arc;

use crate::{RunPlan, Runner, SearchGrid, search};

/// Trains every combination of settings as a separate run and sorts the runs by `train.metric` on the validation set; the test set is
/// not read. Without a grid, the model's own grid is searched.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The flags of every stage.
    #[command(flatten)]
    pub stage: StageArgs,
    /// A key of the pipeline with the values to try. May be given several times.
    #[arg(long = "grid", value_name = "SECTION.KEY=VALUE,VALUE")]
    grids: Vec<SearchGrid>,
    /// Several such grids, separated by spaces; spaces within quotes and brackets belong to the values.
    #[arg(long = "grids", value_name = "GRIDS")]
    more_grids: Option<Assignments>,
    /// The name of the search, and the prefix of the names of its runs; by default `search`, or `search-MODEL` for a model's own grid.
    #[arg(long)]
    name: Option<String>,
    /// The number of runs to train at once, which share the machine's cores.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    jobs: u16,
}

/// Runs `mp4sr search`.
pub fn run(args: &Args, models: &Arc<ModelCatalog>) -> anyhow::Result<()> {
    let runner = Runner::new(args.stage.clone(), args.jobs.into(), models)?;
    let (name, grids) = named_grids(args, &runner, models)?;
    let (text, failures) = search(&runner, &name, &grids)?;
    print(&text)?;
    anyhow::ensure!(
        failures == 0,
        "unfinished runs: {failures} (the table names them); finished runs are kept, so run the command again"
    );
    Ok(())
}

/// What the search would execute. An error is one with which it would end before the first run.
pub fn plan(args: &Args, models: &Arc<ModelCatalog>) -> anyhow::Result<RunPlan> {
    let runner = Runner::new(args.stage.clone(), args.jobs.into(), models)?.planning();
    let (name, grids) = named_grids(args, &runner, models)?;
    let planned = search(&runner, &name, &grids);
    RunPlan::new(&runner, planned.err())
}

/// The name of the search and its grids.
fn named_grids(args: &Args, runner: &Runner, models: &ModelCatalog) -> anyhow::Result<(String, Vec<SearchGrid>)> {
    let mut grids = args.grids.clone();
    for grid in args.more_grids.iter().flat_map(|more| &more.0) {
        grids.push(grid.parse()?);
    }
    let name = args.name.clone();
    if grids.is_empty() {
        own_grid(runner, name, models)
    } else {
        Ok((name.unwrap_or_else(|| "search".to_owned()), grids))
    }
}

/// The model's own grid, and the name of the search.
fn own_grid(runner: &Runner, name: Option<String>, models: &ModelCatalog) -> anyhow::Result<(String, Vec<SearchGrid>)> {
    let model = runner.resolve(&runner.study_run("search".to_owned(), Vec::new()))?.config.model.name;
    let grid = models.model(&model).map(ModelType::grid).unwrap_or_default();
    anyhow::ensure!(
        !grid.is_empty(),
        "the model `{model}` does not have its own grid; give the values to try with `--grid`"
    );
    let grids = grid.iter().map(|grid| grid.parse()).collect::<Result<Vec<SearchGrid>, _>>()?;
    Ok((name.unwrap_or_else(|| format!("search-{model}")), grids))
}
