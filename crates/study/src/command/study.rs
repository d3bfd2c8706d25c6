//! The command line of `mp4sr study`: executes the runs of a table or figure of the paper, and writes the table or figure.

use mp4sr_pipeline::config::ModelCatalog;
use std::path::PathBuf;
use std::sync::Arc;

use mp4sr_pipeline::{StageArgs, print};

use crate::{Experiment, RunPlan, Runner, StudyOptions, run_experiment};

/// Trains the runs of a table or figure of the paper, and then writes the table or figure itself from their stored ranks.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The study to run.
    #[arg(value_name = "STUDY")]
    experiment: Experiment,
    /// The flags of every stage.
    #[command(flatten)]
    pub stage: StageArgs,
    /// The number of runs per row, each with the next seed; by default 3, 5 for Figure 3, and 1 with --quick.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    seeds: Option<u16>,
    /// Makes a smoke run, which takes minutes and is not a result: it uses the last 12 events of each user and a few epochs.
    #[arg(long)]
    quick: bool,
    /// The number of runs to train at once, which share the machine's cores.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    jobs: u16,
    /// A further pipeline to pre-train on (Table 5). May be given several times.
    #[arg(long, num_args = 1.., value_name = "FILE")]
    with: Vec<PathBuf>,
    /// A pipeline to fine-tune on that pre-training has not seen (Table 5). May be given several times.
    #[arg(long, num_args = 1.., value_name = "FILE")]
    unseen: Vec<PathBuf>,
    /// The ResNet for rows that need one: a folder, or a name on the hub. Without it, these rows are left out.
    #[arg(long, value_name = "MODEL", default_value = "", hide_default_value = true)]
    resnet: String,
    /// A text encoder to compare with the pipeline's (study-encoders): a folder, or a name on the hub. May be given several times.
    #[arg(long, num_args = 1.., value_name = "MODEL")]
    text_encoder: Vec<String>,
    /// An image encoder whose vectors are compared with the pipeline's features (study-encoders). May be given several times.
    #[arg(long, num_args = 1.., value_name = "MODEL")]
    image_encoder: Vec<String>,
    /// Also computes the list of every user for every run and compares the lists: coverage, Gini index, entropy, popularity, tail share,
    /// novelty and diversity. Works for studies that compare rows by their metrics alone, such as table2, table4 and table6.
    #[arg(long)]
    lists: bool,
    /// A folder with the paper's numbers, instead of the built-in ones.
    #[arg(long, value_name = "FOLDER")]
    paper: Option<PathBuf>,
}

/// What the study would execute. An error is one with which it would end before the first run.
pub fn plan(args: &Args, models: &Arc<ModelCatalog>) -> anyhow::Result<RunPlan> {
    let runner = Runner::new(args.stage.clone(), args.jobs.into(), models)?.planning();
    let planned = run_experiment(&runner, args.experiment, &options(args));
    RunPlan::new(&runner, planned.err())
}

fn options(args: &Args) -> StudyOptions {
    let usual = match args.experiment {
        _ if args.quick => 1,
        Experiment::Fig3 => 5,
        _ => 3,
    };
    StudyOptions {
        seeds: args.seeds.map_or(usual, usize::from),
        quick: args.quick,
        with: args.with.clone(),
        unseen: args.unseen.clone(),
        resnet: args.resnet.clone(),
        text_encoders: args.text_encoder.clone(),
        image_encoders: args.image_encoder.clone(),
        lists: args.lists,
        paper: args.paper.clone(),
    }
}

/// Runs `mp4sr study`.
pub fn run(args: &Args, models: &Arc<ModelCatalog>) -> anyhow::Result<()> {
    let runner = Runner::new(args.stage.clone(), args.jobs.into(), models)?.restarting();
    let (text, failures) = run_experiment(&runner, args.experiment, &options(args))?;
    print(&text)?;
    anyhow::ensure!(
        failures == 0,
        "missing rows: {failures} (see the notes); finished runs are kept, so run the command again"
    );
    Ok(())
}
