//! The command line of `mp4sr study`: makes the runs of a table or figure of the paper and writes it.

use mp4sr_pipeline::config::ModelCatalog;
use std::path::PathBuf;
use std::sync::Arc;

use mp4sr_pipeline::{StageArgs, print};

use crate::{Experiment, Runner, StudyOptions, run_experiment};

/// Makes the runs of a table or figure of the paper, and the table or figure from their stored ranks.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to study.
    experiment: Experiment,
    /// The flags of every stage.
    #[command(flatten)]
    pub stage: StageArgs,
    /// Runs of every row, each with the next seed; otherwise 3, for Figure 3 it is 5, with --quick 1.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    seeds: Option<u16>,
    /// The last 12 events of each user and a few epochs: a smoke run in minutes, not a result.
    #[arg(long)]
    quick: bool,
    /// Runs made at once, on the machine's cores together.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    jobs: u16,
    /// A pipeline to pre-train on beside the own one (Table 5); may be given several times.
    #[arg(long, num_args = 1.., value_name = "FILE")]
    with: Vec<PathBuf>,
    /// A pipeline to fine-tune on that pre-training has not seen (Table 5); may be given several times.
    #[arg(long, num_args = 1.., value_name = "FILE")]
    unseen: Vec<PathBuf>,
    /// The ResNet of rows with one: a folder, or a name on the hub. Without it these rows are left out.
    #[arg(long, default_value = "")]
    resnet: String,
    /// A text encoder to compare with the pipeline's (study-encoders): a folder, or a name on the hub; may be given several times.
    #[arg(long, num_args = 1.., value_name = "MODEL")]
    text_encoder: Vec<String>,
    /// An image encoder whose vectors are compared with the pipeline's features (study-encoders); may be given several times.
    #[arg(long, num_args = 1.., value_name = "MODEL")]
    image_encoder: Vec<String>,
    /// A folder with the paper's numbers, in place of those that the program carries.
    #[arg(long, value_name = "FOLDER")]
    paper: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: Args, models: &Arc<ModelCatalog>) -> anyhow::Result<()> {
    let Args { experiment, stage, seeds, quick, jobs, with, unseen, resnet, text_encoder, image_encoder, paper } = args;
    let usual = match experiment {
        _ if quick => 1,
        Experiment::Fig3 => 5,
        _ => 3,
    };
    let seeds = seeds.map_or(usual, usize::from);
    let runner = Runner::new(stage, jobs.into(), models)?.restarting();
    let (text_encoders, image_encoders) = (text_encoder, image_encoder);
    let options = StudyOptions { seeds, quick, with, unseen, resnet, text_encoders, image_encoders, paper };
    let (text, failures) = run_experiment(&runner, experiment, &options)?;
    print(&text)?;
    anyhow::ensure!(
        failures == 0,
        "rows that are missing: {failures}, see the notes; what is done is kept: run it again"
    );
    Ok(())
}
