//! `mp4sr-bench`: times training steps, ranking and encoders; prints one JSON object per line.
//!
//! The program takes sizes, or a workload file of the PyTorch peer. It prints medians, ranges and memory. It must not use real data.

mod baselines;
mod epoch;
mod extract;
mod group;
mod measure;
mod rank;
mod serve;
mod step;
mod workload;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use mp4sr_pipeline::{print, run_main};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Times training steps, ranking and encoders.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Times a training step of MP4SR: forward, backward, clipping, Adam.
    Step(step::StepArgs),
    /// Times a training step of a baseline.
    Baseline(baselines::BaselineArgs),
    /// Times epochs of fine-tuning, as the stage trains, in this process or in those that mpirun starts.
    Epoch(epoch::EpochArgs),
    /// Times the ranking of users' targets among all items.
    Rank(rank::RankArgs),
    /// Times the encoding of sentences and images.
    Extract(extract::ExtractArgs),
    /// Times training steps of processes that mpirun starts, or the messages between them, one line per size.
    Group(group::GroupArgs),
    /// Creates an untrained run of a given size for the service.
    ServeWorld(serve::WorldArgs),
    /// Measures the throughput and the latencies of a service under load.
    ServeLoad(serve::LoadArgs),
    /// Times how the cost of a step grows with items, batch size and length, one line per size.
    Growth {
        /// Also times 500,000 items, which takes 12 GiB.
        #[arg(long)]
        large: bool,
    },
}

fn main() -> ExitCode {
    mp4sr_ops::start_threads();
    mp4sr_ops::keep_memory();
    let arguments = Arguments::parse();
    run_main(move || match arguments.what {
        What::Step(args) => print(&format!("{}\n", step::run(&args)?)),
        What::Baseline(args) => print(&format!("{}\n", baselines::run(&args)?)),
        What::Epoch(args) => epoch::run(&args)?.iter().try_for_each(|line| print(&format!("{line}\n"))),
        What::Rank(args) => print(&format!("{}\n", rank::run(&args)?)),
        What::Extract(args) => print(&format!("{}\n", extract::run(&args)?)),
        What::Group(args) => group::run(&args)?.iter().try_for_each(|line| print(&format!("{line}\n"))),
        What::ServeWorld(args) => print(&format!("{}\n", serve::world(&args)?)),
        What::ServeLoad(args) => print(&format!("{}\n", serve::load(&args)?)),
        What::Growth { large } => growth(large),
    })
}

/// Times every size in a separate process, so that the peak memory is that of this size alone.
fn growth(large: bool) -> anyhow::Result<()> {
    let program = std::env::current_exe()?;
    let sizes = |flag: &'static str, values: &[&'static str]| -> Vec<[&'static str; 2]> {
        values.iter().map(|value| [flag, *value]).collect()
    };
    let items = if large { &["1000", "8000", "60000", "500000"][..] } else { &["1000", "8000", "60000"] };
    for stage in ["pretrain", "finetune"] {
        let axes = [sizes("--items", items), sizes("--batch", &["256", "4096"]), sizes("--mean-len", &["3", "30"])];
        for size in axes.into_iter().flatten() {
            let steps = if size[1].len() > 4 { "3" } else { "7" };
            let mut command = std::process::Command::new(&program);
            command.args(["step", "--stage", stage, "--features", "f16", "--warmup", "2", "--steps", steps]).args(size);
            command.env("RAYON_NUM_THREADS", measure::threads().to_string());
            anyhow::ensure!(command.status()?.success(), "the step with {size:?} failed");
        }
    }
    Ok(())
}
