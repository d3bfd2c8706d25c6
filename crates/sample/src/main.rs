//! `mp4sr-sample`: writes the sample world.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use mp4sr_sample::{Outcome, ensure};

/// Write the sample world: a small generated shop in the raw Amazon 2018 form.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Folder to write; one that this program wrote before with the same seed is left as it is.
    #[arg(long, env = "MP4SR_SAMPLE_OUT", default_value = "artifacts/sample/raw")]
    out: PathBuf,
    /// Seed of the world: the same seed gives the same bytes.
    #[arg(long, env = "MP4SR_SAMPLE_SEED", default_value_t = 1)]
    seed: u64,
    /// Say nothing but errors.
    #[arg(long, short, env = "MP4SR_QUIET")]
    quiet: bool,
}

#[expect(clippy::print_stderr, reason = "a program's messages")]
fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let started = std::time::Instant::now();
    match ensure(&arguments.out, arguments.seed) {
        Ok(outcome) => {
            if !arguments.quiet {
                let out = arguments.out.display();
                match outcome {
                    Outcome::UpToDate => eprintln!("sample: up to date (`{out}`, seed {})", arguments.seed),
                    Outcome::Written => eprintln!(
                        "sample: wrote `{out}` (seed {}) in {:.1} s",
                        arguments.seed,
                        started.elapsed().as_secs_f32()
                    ),
                }
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(1)
        }
    }
}
