//! `mp4sr-bench`: times training steps and ranking; prints one JSON object a line.
//!
//! In: sizes, or a workload file of the PyTorch peer. Out: medians, spreads, memory. Must not know: real data.

mod step;
mod workload;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use mp4sr_pipeline::{print, run_main};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Times training steps and ranking.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// A training step of MP4SR: forward, backward, clipping, Adam.
    Step(step::StepArgs),
}

fn main() -> ExitCode {
    mp4sr_ops::start_threads();
    mp4sr_ops::keep_memory();
    let arguments = Arguments::parse();
    run_main(move || match arguments.what {
        What::Step(args) => print(&format!("{}\n", step::run(&args)?)),
    })
}

/// Median, least and most of some times.
struct Spread {
    median: f64,
    least: f64,
    most: f64,
}

impl Spread {
    fn of(times: &[f64]) -> Self {
        let mut sorted = times.to_vec();
        sorted.sort_by(f64::total_cmp);
        let round = |time: f64| (time * 100.0).round() / 100.0;
        let at = |at: usize| sorted.get(at).copied().unwrap_or(0.0);
        let (count, half) = (sorted.len(), sorted.len() / 2);
        let median = if count.is_multiple_of(2) { f64::midpoint(at(half.max(1) - 1), at(half)) } else { at(half) };
        Self { median: round(median), least: round(at(0)), most: round(at(count.max(1) - 1)) }
    }
}

/// The threads that operators use.
fn threads() -> usize {
    mp4sr_ops::threads()
}

/// The most memory that this process held, MiB, where the system tells.
fn peak_mib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().trim_end_matches(" kB").parse::<u64>().ok()? / 1024)
}
