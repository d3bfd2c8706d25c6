//! `mp4sr sample`: writes the sample world.

use std::path::PathBuf;

use mp4sr_pipeline::{Progress, switch};
use mp4sr_sample::{SEED, SampleFormat, SampleOutcome, ensure};

/// Writes the sample world: a small generated shop.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The folder to write; a folder that this program wrote before with the same seed and format is left unchanged.
    #[arg(long, env = "MP4SR_SAMPLE_OUT", default_value = "artifacts/sample/raw")]
    pub out: PathBuf,
    /// The seed of the world; the same seed gives the same bytes.
    #[arg(long, env = "MP4SR_SAMPLE_SEED", default_value_t = SEED)]
    pub seed: u64,
    /// The format of the files.
    #[arg(long, alias = "form", env = "MP4SR_SAMPLE_FORMAT", value_enum, value_name = "FORMAT", default_value_t)]
    pub format: SampleFormat,
    /// Prints only errors.
    #[arg(long, short, env = "MP4SR_QUIET", value_parser = switch)]
    pub quiet: bool,
}

/// Runs `mp4sr sample`.
pub fn run(args: &Args) -> anyhow::Result<()> {
    anyhow::ensure!(
        std::env::var_os("MP4SR_SAMPLE_FORM").is_none(),
        "the variable `MP4SR_SAMPLE_FORM` was renamed; set `MP4SR_SAMPLE_FORMAT` instead"
    );
    let started = std::time::Instant::now();
    let outcome = ensure(&args.out, args.seed, args.format)?;
    let (out, seed) = (args.out.display(), args.seed);
    Progress::new(args.quiet).log(match outcome {
        SampleOutcome::UpToDate => format!("sample: up to date (`{out}`, seed {seed})"),
        SampleOutcome::Written => {
            format!("sample: wrote `{out}` (seed {seed}) in {:.1} s", started.elapsed().as_secs_f32())
        }
    });
    Ok(())
}
