//! The command line of `mp4sr search`: trains a grid of settings and sorts them by the validation split.

use mp4sr_pipeline::config::ModelCatalog;
use mp4sr_pipeline::{StageArgs, print};
use std::sync::Arc;

use crate::{Grid, Runner, search};

/// Trains every combination of settings as a run of its own and sorts them by validation R@20; the test split is not read.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    stage: StageArgs,
    /// A key of the pipeline with the values to try; may be given several times.
    #[arg(long = "grid", value_name = "SECTION.KEY=VALUE,VALUE", required = true)]
    grids: Vec<Grid>,
    /// The name of the search; its runs begin with it.
    #[arg(long, default_value = "search")]
    name: String,
    /// Runs made at once, on the machine's cores together.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    jobs: u16,
}

/// Runs the command.
pub fn run(args: Args, models: &Arc<ModelCatalog>) -> anyhow::Result<()> {
    let Args { stage, grids, name, jobs } = args;
    let (text, failures) = search(&Runner::new(stage, jobs.into(), models)?, &name, &grids)?;
    print(&text)?;
    anyhow::ensure!(
        failures == 0,
        "runs that are not finished: {failures}, see the table; what is done is kept: run it again"
    );
    Ok(())
}
