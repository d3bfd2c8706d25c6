//! `mp4sr demo`: runs all stages on the sample world.

use std::path::PathBuf;
use std::sync::Arc;

use mp4sr_artifact::{Layout, files};
use mp4sr_pipeline::config::ModelCatalog;
use mp4sr_pipeline::{
    ARTIFACTS_VARIABLE, Assignments, DEFAULT_ARTIFACTS, StageArgs, StageName, artifacts_folder, print, switch,
};

use crate::run::run_until;

/// The pipeline of the sample world.
const PIPELINE: &str = include_str!("../../../pipelines/sample.toml");
const RUN: &str = "mp4sr";

/// Runs all stages on the built-in sample world for three models (popularity, MP4SR without pre-training, and MP4SR) and compares them on
/// one page.
///
/// It needs neither files nor a network, and takes a few minutes.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The folder of all artifacts.
    #[arg(long, env = ARTIFACTS_VARIABLE, value_name = "FOLDER", default_value = DEFAULT_ARTIFACTS, value_parser = artifacts_folder)]
    artifacts: PathBuf,
    /// Sets one key, instead of its value in the sample pipeline. May be given several times.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    overrides: Vec<String>,
    /// Prints only results and errors.
    #[arg(long, short, env = "MP4SR_QUIET", value_parser = switch)]
    quiet: bool,
}

/// Runs `mp4sr demo`.
pub fn run(args: &Args, models: &Arc<ModelCatalog>) -> anyhow::Result<()> {
    let layout = Layout::new(&args.artifacts, "sample", RUN);
    let pipeline = layout.root().join("pipeline.toml");
    files::write_bytes(&pipeline, PIPELINE.as_bytes())?;
    let stage = |run: &str, assignment: &str| StageArgs {
        pipeline: pipeline.clone(),
        run: Some(run.to_owned()),
        artifacts: args.artifacts.clone(),
        overrides: Assignments::last_of_each(&[args.overrides.as_slice(), &[assignment.to_owned()]].concat()),
        quiet: args.quiet,
        ..StageArgs::default()
    };
    run_until(&stage("popularity", "model.name=popularity"), StageName::Evaluate, false, models)?;
    run_until(&stage("mp4sr-without-pretraining", "pretrain.enabled=false"), StageName::Evaluate, false, models)?;
    let beside = r#"report.beside=["popularity","mp4sr-without-pretraining"]"#;
    run_until(&stage(RUN, beside), StageName::Report, false, models)?;
    print(&format!("The page: {}\n", layout.run().join("report/index.html").display()))
}
