//! The subcommands of the program, each with its arguments.

use clap::Subcommand;

use crate::{demo, manual, run, sample};

#[derive(Subcommand)]
pub enum Command {
    Demo(demo::Args),
    Init(mp4sr_init::command::Args),
    Doctor(mp4sr_doctor::command::Args),
    Run(run::Args),
    Download(mp4sr_download::command::Args),
    Preprocess(mp4sr_preprocess::command::Args),
    Extract(mp4sr_extract::command::Args),
    Train(mp4sr_train::command::Args),
    Evaluate(mp4sr_evaluate::command::Args),
    Recommend(mp4sr_recommend::command::Args),
    Items(mp4sr_items::command::Args),
    Serve(mp4sr_serve::Args),
    Export(mp4sr_export::command::Args),
    Import(mp4sr_export::import::Args),
    Report(mp4sr_report::command::Args),
    Compare(mp4sr_study::command::compare::Args),
    Search(mp4sr_study::command::search::Args),
    Study(mp4sr_study::command::study::Args),
    Sample(sample::Args),
    Cache(mp4sr_extract::command::cache::Args),
    Completions(manual::CompletionsArgs),
    Man(manual::ManArgs),
}
