//! The flags that all commands share, the context of a run, and how a stage is brought up to date.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::parser::ValueSource;
use mp4sr_artifact::{Layout, Lock, Manifest, Stage, Status, Timing, files, is_guarded};

use crate::config::ModelCatalog;
use crate::shard::Shard;
use crate::{Assignments, Config, Progress, hide_passwords, timing};

/// `dataset.data` of the sample pipeline. Its raw files are generated inside the artifacts folder, whichever folder that is.
const SAMPLE_DATA: &str = "artifacts/sample/raw";

/// The flags that every stage has; most can also be set by an environment variable.
#[derive(Debug, clap::Args)]
struct StageFlags {
    /// The pipeline file. It may be omitted if `--run` is the folder of a run, such as `artifacts/sample/runs/mp4sr`.
    #[arg(long, env = "MP4SR_PIPELINE", value_name = "FILE", default_value = "", hide_default_value = true, value_parser = path_or_nothing())]
    pipeline: PathBuf,
    /// The folder of the raw files; by default, the pipeline's `dataset.data`.
    #[arg(long, env = DATA_VARIABLE, value_name = "FOLDER")]
    data: Option<String>,
    /// The name of the run, or the folder of a run; by default, the pipeline's `run.name`.
    #[arg(long, env = RUN_VARIABLE, value_name = "NAME")]
    run: Option<String>,
    /// The folder of all artifacts.
    #[arg(long, env = ARTIFACTS_VARIABLE, value_name = "FOLDER", default_value = DEFAULT_ARTIFACTS, value_parser = artifacts_folder)]
    artifacts: PathBuf,
    /// Sets one key, instead of its value in the pipeline file. May be given several times; if a key is set several times, the last value counts.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    overrides: Vec<String>,
    /// Sets several keys, with assignments separated by spaces. Assignments of `--set` take precedence.
    #[arg(long = "set-all", env = "MP4SR_SET", value_name = "ASSIGNMENTS")]
    more_overrides: Option<Assignments>,
    /// Prints only results and errors.
    #[arg(long, short, env = "MP4SR_QUIET", value_parser = switch)]
    quiet: bool,
    /// Prints what would be done, read and used, as `mp4sr doctor` does, without doing it.
    #[arg(long)]
    dry_run: bool,
}

const DATA_VARIABLE: &str = "MP4SR_DATA";
const RUN_VARIABLE: &str = "MP4SR_RUN";
/// The environment variable for `--artifacts`.
pub const ARTIFACTS_VARIABLE: &str = "MP4SR_ARTIFACTS";
/// The default folder of artifacts.
pub const DEFAULT_ARTIFACTS: &str = "artifacts";

/// Parses the folder of all artifacts. An empty text, as from an empty environment variable, means the default.
pub fn artifacts_folder(text: &str) -> Result<PathBuf, std::convert::Infallible> {
    Ok(PathBuf::from(if text.is_empty() { DEFAULT_ARTIFACTS } else { text }))
}

/// The flags that every stage has, and which of them were typed.
#[derive(Clone, Debug, Default)]
pub struct StageArgs {
    /// The pipeline file.
    pub pipeline: PathBuf,
    /// The folder of the raw files; by default, the pipeline's `dataset.data`.
    pub data: Option<String>,
    /// The name of the run; by default, the pipeline's `run.name`.
    pub run: Option<String>,
    /// The folder of all artifacts.
    pub artifacts: PathBuf,
    /// The assignments `section.key=value` that replace keys of the pipeline, as typed.
    pub overrides: Vec<String>,
    /// Further assignments that replace keys of the pipeline; `overrides` take precedence over them.
    pub more_overrides: Option<Assignments>,
    /// Whether only results and errors are printed.
    pub quiet: bool,
    /// Whether the plan is printed and nothing is done.
    pub dry_run: bool,
    /// Whether `data` comes from the environment.
    pub data_is_inherited: bool,
    /// Whether `run` comes from the environment.
    pub run_is_inherited: bool,
    /// Whether `more_overrides` come from the environment.
    pub more_are_inherited: bool,
    /// Whether `artifacts` was typed.
    pub artifacts_are_typed: bool,
}

impl clap::Args for StageArgs {
    fn augment_args(command: clap::Command) -> clap::Command {
        StageFlags::augment_args(command)
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        StageFlags::augment_args_for_update(command)
    }
}

impl clap::FromArgMatches for StageArgs {
    fn from_arg_matches(matches: &clap::ArgMatches) -> Result<Self, clap::Error> {
        let StageFlags { pipeline, data, run, artifacts, overrides, more_overrides, quiet, dry_run } =
            StageFlags::from_arg_matches(matches)?;
        let inherited = |flag| matches.value_source(flag) == Some(ValueSource::EnvVariable);
        let (data_is_inherited, run_is_inherited) = (inherited("data"), inherited("run"));
        let more_are_inherited = inherited("more_overrides");
        Ok(Self {
            pipeline,
            data,
            run,
            artifacts,
            overrides,
            more_overrides,
            quiet,
            dry_run,
            data_is_inherited,
            run_is_inherited,
            more_are_inherited,
            artifacts_are_typed: matches.value_source("artifacts") == Some(ValueSource::CommandLine),
        })
    }

    fn update_from_arg_matches(&mut self, matches: &clap::ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// Flags after a folder of a run in `--run` has been resolved.
struct Located {
    args: StageArgs,
    /// The dataset that the folder belongs to.
    dataset: Option<String>,
}

/// Everything that a stage works with.
#[derive(Debug)]
pub struct Context {
    /// The resolved configuration.
    pub config: Config,
    /// The paths of the artifacts.
    pub layout: Layout,
    /// Messages and progress bars.
    pub progress: Progress,
    /// The models that the configuration may name.
    pub models: Arc<ModelCatalog>,
}

/// The path of a run's folder, made absolute unless it shows the dataset and the artifacts folder.
fn run_folder(folder: &Path) -> PathBuf {
    let written = folder.components().collect::<PathBuf>();
    let is_in_runs = written.parent().and_then(Path::file_name).is_some_and(|name| name == "runs");
    let names_dataset = written.ancestors().nth(2).is_some_and(|dataset| dataset.file_name().is_some());
    let is_clear = is_in_runs && names_dataset && written.file_name().is_some();
    if is_clear { written } else { folder.canonicalize().unwrap_or(written) }
}

/// Parses the value of a switch in an environment variable. An empty text means no. Any other word is refused, because `off` and
/// `disabled` would have opposite meanings otherwise.
pub fn switch(text: &str) -> Result<bool, String> {
    match text.trim().to_ascii_lowercase().as_str() {
        "1" | "yes" | "y" | "true" | "t" | "on" => Ok(true),
        "" | "0" | "no" | "n" | "false" | "f" | "off" => Ok(false),
        _ => Err("expected 1 or 0 in the environment variable of this flag".to_owned()),
    }
}

/// A path that may be empty.
fn path_or_nothing() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(PathBuf::from)
}

impl StageArgs {
    /// The assignments that replace keys of the pipeline, one for each key; those of `overrides` take precedence.
    pub fn all_overrides(&self) -> Vec<String> {
        let more = self.more_overrides.iter().flat_map(|more| &more.0);
        Assignments::last_of_each(&more.chain(&self.overrides).cloned().collect::<Vec<_>>())
    }

    /// Resolves a folder of a run in `--run`. Unless a pipeline is given, it is the configuration that the run was trained with; the
    /// artifacts are those that contain the folder.
    fn located(&self) -> anyhow::Result<Located> {
        let mut own = self.clone();
        // A name without a pipeline can only be that of a folder.
        let is_folder = |run: &&Path| {
            run.components().count() > 1 || self.pipeline == Path::new("") && (run.is_dir() || run.starts_with(".."))
        };
        let Some(folder) = self.run.as_ref().map(Path::new).filter(is_folder) else {
            anyhow::ensure!(
                self.pipeline != Path::new(""),
                "no pipeline was given; give `--pipeline FILE`, or the folder of a run, as in `--run artifacts/sample/runs/mp4sr`"
            );
            return Ok(Located { args: own, dataset: None });
        };
        let location = run_folder(folder);
        let parts = location.file_name().and_then(|name| name.to_str()).zip(location.ancestors().nth(3));
        let is_run = location.parent().is_some_and(|runs| runs.file_name().is_some_and(|name| name == "runs"));
        let (name, artifacts) = parts.filter(|_| is_run).with_context(|| {
            format!(
                "`{}` is not the folder of a run; give one such as `artifacts/sample/runs/mp4sr`, or the name of a run",
                folder.display()
            )
        })?;
        own.run = Some(name.to_owned());
        own.artifacts = if artifacts == Path::new("") { PathBuf::from(".") } else { artifacts.to_owned() };
        let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
        anyhow::ensure!(
            !self.artifacts_are_typed || real(&self.artifacts) == real(&own.artifacts),
            "`--artifacts {}` and `--run {}` contradict each other, because that run is in `{}`; leave out `--artifacts`, or give the name of \
             a run",
            self.artifacts.display(),
            folder.display(),
            own.artifacts.display()
        );
        if self.pipeline == Path::new("") {
            own.pipeline = location.join("config.toml");
            let missing = || {
                format!(
                    "`{}` is missing, so no run was trained there, or the file was removed; give the folder of a trained run, or \
                     `--pipeline FILE` (with it, `mp4sr run` writes the file of a trained run again)",
                    own.pipeline.display()
                )
            };
            anyhow::ensure!(files::is_file(&own.pipeline)?, missing());
        }
        let dataset = location.ancestors().nth(2).and_then(Path::file_name);
        Ok(Located { args: own, dataset: dataset.map(|name| name.to_string_lossy().into_owned()) })
    }

    /// Reads and resolves the pipeline for a command that does its work, and refuses `--dry-run`.
    pub fn context(&self, models: &Arc<ModelCatalog>) -> anyhow::Result<Context> {
        anyhow::ensure!(!self.dry_run, "this command does not support `--dry-run`; use `mp4sr doctor`");
        self.context_of_plan(models)
    }

    /// Reads and resolves the pipeline for a command that writes nothing.
    pub fn context_of_plan(&self, models: &Arc<ModelCatalog>) -> anyhow::Result<Context> {
        let Located { args, dataset } = self.located()?;
        let context = args.context_of_pipeline(models)?;
        let named = &context.config.dataset.name;
        if let Some(dataset) = dataset.filter(|dataset| dataset != named) {
            let pipeline = args.pipeline.display();
            anyhow::bail!(
                "`--run` is a run of the dataset `{dataset}`, but `dataset.name` is `{named}` in `{pipeline}`; give the pipeline of that dataset"
            );
        }
        Ok(context)
    }

    fn context_of_pipeline(&self, models: &Arc<ModelCatalog>) -> anyhow::Result<Context> {
        let progress = Progress::new(self.quiet);
        let (mut config, warnings) = Config::load(&self.pipeline, &self.all_overrides(), models)?;
        // The stages of one process read the same pipeline file: each warning is printed once.
        let mut printed = PRINTED.lock().unwrap_or_else(PoisonError::into_inner);
        for warning in warnings.into_iter().filter(|warning| printed.insert(warning.clone())) {
            // Without the name of a stage, a study does not repeat it for each of its runs.
            progress.log(format!("warning: {warning}"));
        }
        let data = Flag { name: "--data", value: self.data.as_deref(), is_inherited: self.data_is_inherited };
        let run = Flag { name: "--run", value: self.run.as_deref(), is_inherited: self.run_is_inherited };
        if let Some(data) = data.in_place_of("dataset.data", self, &config.dataset.data)? {
            data.clone_into(&mut config.dataset.data);
        } else if config.dataset.data == SAMPLE_DATA {
            config.dataset.data = sample_world(&self.artifacts);
        }
        if let Some(run) = run.in_place_of("run.name", self, &config.run.name)? {
            run.clone_into(&mut config.run.name);
        }
        let name = &config.run.name;
        if let Err(allowed) = crate::config::check_name(name) {
            anyhow::bail!("the run name {name:?} is not allowed; use {allowed}");
        }
        let layout = Layout::new(&self.artifacts, &config.dataset.name, name);
        Ok(Context { config, layout, progress, models: models.clone() })
    }

    /// Whether the raw files of this context are those of the sample world, which are generated.
    pub fn reads_sample_world(&self, context: &Context) -> bool {
        context.config.dataset.data == sample_world(&self.artifacts)
    }
}

/// A flag that sets a key of the pipeline.
struct Flag<'a> {
    name: &'a str,
    value: Option<&'a str>,
    is_inherited: bool,
}

impl<'a> Flag<'a> {
    /// The value of the flag, if it takes effect. What is typed wins over what comes from the environment; if neither the flag nor the key
    /// wins, they must agree. `set` is the key's value without the flag.
    fn in_place_of(&self, key: &str, args: &'a StageArgs, set: &str) -> anyhow::Result<Option<&'a str>> {
        let Some(value) = self.value.filter(|value| !value.is_empty()) else { return Ok(None) };
        let find = |all: &'a [String]| all.iter().find(|assignment| Assignments::key_of(assignment) == key);
        let more = args.more_overrides.as_ref().map_or(&[][..], |more| &more.0);
        let (assignment, flag, is_inherited) = match find(&args.overrides) {
            Some(typed) => (typed, "--set", false),
            None => match find(more) {
                Some(assignment) => (assignment, "--set-all", args.more_are_inherited),
                None => return Ok(Some(value)),
            },
        };
        anyhow::ensure!(
            self.is_inherited != is_inherited || set == value,
            "`{} {value}` and `{flag} {assignment}` contradict each other; give only one of them",
            self.name
        );
        Ok(is_inherited.then_some(value).filter(|_| !self.is_inherited))
    }
}

/// The warnings that this process has printed.
static PRINTED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// The folder of the raw files of the sample world.
fn sample_world(artifacts: &Path) -> String {
    artifacts.join("sample").join("raw").to_string_lossy().into_owned()
}

/// A bug in the program, as opposed to an error that the user can fix: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}; this is a bug in mp4sr, please report it")]
pub struct Bug(pub String);

/// The environment variable by which a program asks a process that it starts to end together with it.
pub const TIED: &str = "MP4SR_TIED";

/// Ends this process when its parent ends, for whatever reason: the parent holds the other end of standard input, and the system closes it.
/// Does nothing unless the parent asks for it. The next run cleans up after a stage that was killed.
#[expect(clippy::exit, reason = "the process has no caller to return to")]
fn end_with_starter() {
    if std::env::var_os(TIED).is_some() {
        std::thread::spawn(|| {
            let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
            std::process::exit(143);
        });
    }
}

/// Runs a program: reports an error once, as one line, and turns it into the exit code (0 for success, 1 for an error that the user can
/// fix, 2 for a bug).
pub fn run_main(program: impl FnOnce() -> anyhow::Result<()> + std::panic::UnwindSafe) -> ExitCode {
    std::panic::set_hook(Box::new(|info| {
        // The reader of a damaged file reports the panic of a library as an error.
        if is_guarded() {
            return;
        }
        let location = info.location().map_or(String::new(), |l| format!(" at {}:{}", l.file(), l.line()));
        let what = info.payload_as_str().unwrap_or("unknown");
        print_error(&format!("internal error{location}: {what}; this is a bug in mp4sr, please report it"));
    }));
    end_with_starter();
    match std::panic::catch_unwind(program) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) if has_no_reader(&error) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            report_error(&error);
            ExitCode::from(if error.chain().any(<dyn std::error::Error>::is::<Bug>) { 2 } else { 1 })
        }
        Err(_) => ExitCode::from(2),
    }
}

/// The error of a process whose failure has already been reported, by itself or by another process.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the failure was already reported")]
pub struct AlreadyReported;

/// Prints an error with its causes as one line, unless another process reports it.
pub fn report_error(error: &anyhow::Error) {
    if !error.is::<AlreadyReported>() {
        print_error(&error_chain(error));
    }
}

fn print_error(message: &str) {
    let _ = writeln!(std::io::stderr(), "error: {}", hide_passwords(message));
}

/// The chain of causes in one line; a cause that its parent already contains is not repeated.
pub fn error_chain(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let text = without_backtrace(&cause.to_string()).replace('\n', " ");
        if line.is_empty() {
            line = text;
        } else if !line.contains(&text) {
            let _ = write!(line, ": {text}");
        }
    }
    line
}

/// A message without the backtrace that candle appends to it if `RUST_BACKTRACE` is set.
fn without_backtrace(message: &str) -> &str {
    message.find("\n   0: ").map_or(message, |at| &message[..at])
}

/// A result that could not be printed.
#[derive(Debug, thiserror::Error)]
#[error("failed to write to standard output: {0}; redirect it to a file on a disk with free space")]
struct PrintError(#[source] std::io::Error);

/// Whether the reader of results has ended, as `head` does: they were printed, or written to a pipe as to a file. A connection that breaks is
/// a failure.
fn has_no_reader(error: &anyhow::Error) -> bool {
    let printed = error.downcast_ref::<PrintError>().map(|PrintError(source)| source);
    let written = error.chain().find_map(|cause| match cause.downcast_ref() {
        Some(mp4sr_artifact::Error::Io { source, .. }) => Some(source),
        _ => None,
    });
    printed.or(written).is_some_and(|source| source.kind() == std::io::ErrorKind::BrokenPipe)
}

/// Prints a result on standard output.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    Ok(out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(PrintError)?)
}

/// Brings a stage that can be divided into shards up to date: only `shard`, or all of it. The whole is merged by `put_together`, which gets
/// the number of shards, if all shards of one division are up to date, and is otherwise computed by `work`. `make_stage` creates a stage by
/// name. The files of shards are removed as soon as the whole is up to date; from then on, a shard is up to date as long as the whole is.
pub fn run_stage_in_shards(
    context: &Context,
    name: &str,
    folder: &Path,
    shard: Option<Shard>,
    make_stage: impl Fn(&str) -> anyhow::Result<Stage>,
    work: impl FnOnce(&Stage) -> anyhow::Result<Vec<PathBuf>>,
    put_together: impl FnOnce(&Stage, usize) -> anyhow::Result<Vec<PathBuf>>,
) -> anyhow::Result<()> {
    if let Some(shard) = shard {
        let shard_name = shard.stage_name(name);
        // Without a manifest, the inputs need not be hashed to see that the whole is not up to date.
        if Manifest::read(folder, name)?.is_some() && make_stage(name)?.status()? == Status::UpToDate {
            context
                .progress
                .log(format!("{shard_name}: up to date, as part of all of `{name}` ({})", folder.display()));
            return Ok(());
        }
        return run_stage(context, &shard_name, folder, || make_stage(&shard_name), work);
    }
    let made = || make_stage(name);
    run_stage(context, name, folder, made, |stage| match Shard::finished(name, folder, &make_stage)? {
        Some(shards) => {
            let outputs = put_together(stage, shards)?;
            context.progress.log(format!("{name}: merged {shards} shards"));
            Ok(outputs)
        }
        None => {
            let reasons = Shard::unfinished(name, folder, &make_stage)?;
            if !reasons.is_empty() {
                context.progress.log(format!(
                    "{name}: the shards cannot be used ({}), so all of it is computed",
                    reasons.join("; ")
                ));
            }
            work(stage)
        }
    })?;
    for shard in Shard::recorded(name, folder)? {
        remove_shard(&shard.stage_name(name), folder, &make_stage)?;
    }
    Ok(())
}

/// Removes the files of a shard of a stage that is up to date as a whole, or the rest of them if a process was killed while it removed them.
/// A shard that another process works on, or that was computed from other inputs or settings, is kept.
fn remove_shard(name: &str, folder: &Path, make_stage: impl Fn(&str) -> anyhow::Result<Stage>) -> anyhow::Result<()> {
    let _lock = match Lock::acquire_to_check(folder, name) {
        Err(mp4sr_artifact::Error::Locked { .. }) => return Ok(()),
        lock => lock?,
    };
    let stage = make_stage(name)?;
    if stage.is_of_last_run() {
        stage.remove()?;
        Timing::remove(folder, name)?;
    }
    Ok(())
}

/// Brings one stage up to date: acquires the folder's lock, for which it waits while another process only checks the stage, removes what a
/// killed process left, checks whether there is anything to do, runs `work`, and records its outputs and timing. `make_stage` is called
/// under the lock.
pub fn run_stage(
    context: &Context,
    name: &str,
    folder: &Path,
    make_stage: impl FnOnce() -> anyhow::Result<Stage>,
    work: impl FnOnce(&Stage) -> anyhow::Result<Vec<PathBuf>>,
) -> anyhow::Result<()> {
    let mut lock = Lock::acquire_to_check(folder, name)?;
    let removed = files::remove_leftovers(folder)?;
    if removed > 0 {
        context.progress.log(format!("{name}: removed {removed} unfinished files of an earlier run"));
    }
    let stage = make_stage()?;
    let location = folder.display();
    match stage.status()? {
        Status::UpToDate => {
            stage.keep()?;
            Timing::put_back(folder, name)?;
            context.progress.log(format!("{name}: up to date ({location})"));
            return Ok(());
        }
        Status::Stale(why) => context.progress.log(format!("{name}: running, {why} ({location})")),
    }
    lock.begin_work()?;
    stage.begin()?;
    timing::start();
    let started = std::time::Instant::now();
    let outputs = match Timing::set_aside(folder, name).map_err(Into::into).and_then(|()| work(&stage)) {
        Ok(outputs) => outputs,
        Err(error) => {
            // The error of the stage is the one to report. If nothing can be put back, the stage runs again.
            if let Ok(true) = stage.give_up() {
                let _ = Timing::put_back(folder, name);
            }
            return Err(error);
        }
    };
    let took = started.elapsed();
    // The record comes last: a stage that is killed in between runs again, and has a timing in the end.
    timing::finished(name, took, &context.config.run.device).write(folder)?;
    stage.finish(&outputs)?;
    context.progress.log(format!("{name}: done in {:.1} s", took.as_secs_f64()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use mp4sr_artifact::StageSettings;

    #[test]
    fn only_a_reader_of_results_that_has_ended_is_not_a_failure() {
        let broken = || std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        assert!(has_no_reader(&anyhow::Error::from(PrintError(broken())).context("failed to list the items")));
        let to_pipe = mp4sr_artifact::Error::io("write", std::path::Path::new("/dev/stdout"), broken());
        assert!(has_no_reader(&anyhow::Error::from(to_pipe).context("failed to write the lists")));
        assert!(!has_no_reader(&anyhow::Error::from(broken()).context("failed to reach the store")));
        assert!(!has_no_reader(&PrintError(std::io::ErrorKind::StorageFull.into()).into()));
    }

    fn run(context: &Context, folder: &std::path::Path, setting: u32, fails: bool) -> anyhow::Result<()> {
        let make_stage = || Ok(Stage::new("work", 1, folder, StageSettings::of(setting), &[])?);
        run_stage(context, "work", folder, make_stage, |_| {
            anyhow::ensure!(!fails, "no luck");
            files::write_bytes(&folder.join("made"), b"made")?;
            Ok(vec![folder.join("made")])
        })
    }

    fn context(folder: &Path) -> Context {
        let layout = Layout::new(folder, "tiny", "run");
        let models = Arc::new(ModelCatalog::unchecked());
        Context { config: Config::default(), layout, progress: Progress::new(true), models }
    }

    #[test]
    fn messages_have_no_backtrace() {
        let error =
            anyhow::anyhow!("cuda:0: built for the CPU\n   0: candle_core::Error::bt\n   1: main").context("failed");
        assert_eq!(error_chain(&error), "failed: cuda:0: built for the CPU");
    }

    #[test]
    fn shards_that_were_partly_removed_are_removed_with_the_next_run() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let run = |shard: Option<Shard>| {
            let made = folder.join(shard.map_or_else(|| "made".to_owned(), |shard| shard.stage_name("made")));
            let make_stage = |name: &str| Ok(Stage::new(name, 1, folder, StageSettings::of(1), &[])?);
            let work = |_: &Stage| -> anyhow::Result<Vec<PathBuf>> {
                files::write_bytes(&made, b"made")?;
                Ok(vec![made.clone()])
            };
            run_stage_in_shards(&context(folder), "work", folder, shard, make_stage, work, |stage, _| work(stage))
                .unwrap();
            made
        };
        let shards: Vec<PathBuf> = Shard::all(2).map(|shard| run(Some(shard))).collect();
        files::remove_if_present(&shards[0]).unwrap();
        run(None);
        let left = files::list(folder).unwrap();
        let is_of_shard = |path: &&PathBuf| {
            path.to_string_lossy().contains("-of-") && path.extension().is_none_or(|extension| extension != "lock")
        };
        assert_eq!(left.iter().filter(is_of_shard).collect::<Vec<_>>(), Vec::<&PathBuf>::new());
    }

    #[test]
    fn shards_after_one_that_is_missing_are_not_looked_at() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let made = std::cell::Cell::new(0);
        let make_stage = |name: &str| {
            made.set(made.get() + 1);
            Ok(Stage::new(name, 1, folder, StageSettings::of(1), &[])?)
        };
        let stage = make_stage(&Shard { number: 1, count: 1_000_000_000 }.stage_name("work")).unwrap();
        stage.begin().unwrap();
        stage.finish(&[]).unwrap();
        made.set(0);
        assert_eq!(Shard::finished("work", folder, make_stage).unwrap(), None);
        assert_eq!(Shard::unfinished("work", folder, make_stage).unwrap().len(), 1);
        assert_eq!(made.get(), 4);
    }

    #[test]
    fn a_stage_whose_input_is_replaced_meanwhile_fails_and_runs_again() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let raw = folder.join("raw");
        files::write_bytes(&raw, b"first").unwrap();
        let made = folder.join("made");
        let copy = |replaced: &[u8]| {
            let inputs = [("events".to_owned(), raw.clone())];
            let make_stage = || Ok(Stage::new("work", 1, folder, StageSettings::of(1), &inputs)?);
            run_stage(&context(folder), "work", folder, make_stage, |stage| {
                files::write_bytes(&made, &files::read(&raw)?)?;
                files::write_bytes(&raw, replaced)?;
                stage.expect_unchanged_inputs()?;
                Ok(vec![made.clone()])
            })
        };
        let error = copy(b"second").unwrap_err().to_string();
        assert!(error.contains("raw`") && error.contains("the input `events` of the stage `work`"), "{error}");
        // The same content at another time is not a change.
        copy(b"second").unwrap();
        assert_eq!(files::read(&made).unwrap(), b"second");
    }

    #[test]
    fn the_folder_of_a_run_determines_the_pipeline_and_the_artifacts() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("made/shop/runs/first");
        let args = |run: &Path, pipeline: &str| StageArgs {
            pipeline: pipeline.into(),
            run: Some(run.to_str().unwrap().to_owned()),
            artifacts: "artifacts".into(),
            quiet: true,
            ..StageArgs::default()
        };
        let models = Arc::new(ModelCatalog::unchecked());
        let refused = |run: &Path, pipeline: &str| args(run, pipeline).context(&models).unwrap_err().to_string();
        assert!(refused(Path::new("first"), "").contains("no pipeline was given"));
        assert!(refused(&folder, "").contains("no run was trained there"));
        assert!(refused(Path::new("a/b"), "").contains("is not the folder of a run"));
        files::write_bytes(&folder.join("config.toml"), b"[dataset]\nname = \"shop\"\n").unwrap();
        for run in [folder.clone(), folder.join("")] {
            let context = args(&run, "").context(&models).unwrap();
            assert_eq!(context.layout.run(), folder);
        }
        let other = StageArgs { artifacts_are_typed: true, ..args(&folder, "") };
        let message = other.context(&models).unwrap_err().to_string();
        assert!(message.contains("`--artifacts artifacts` and `--run ") && message.contains("contradict"), "{message}");
        let same = StageArgs { artifacts: root.path().join("made"), ..other };
        same.context(&models).unwrap();
        files::write_bytes(&folder.join("config.toml"), b"[dataset]\nname = \"other\"\n").unwrap();
        let message = refused(&folder, "");
        assert!(message.contains("a run of the dataset `shop`") && message.contains("`other`"), "{message}");
    }

    #[test]
    fn a_timing_belongs_to_the_outputs_next_to_it_and_never_makes_a_stage_stale() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let context = context(folder);
        let path = Timing::path(folder, "work");
        run(&context, folder, 1, false).unwrap();
        assert_eq!(Timing::read(&path).unwrap().unwrap().stage, "work");
        // A missing timing does not make the stage stale, and a stage with nothing to do writes none.
        files::remove_if_present(&path).unwrap();
        run(&context, folder, 1, true).unwrap();
        assert!(!path.exists(), "the stage was up to date");
        // A stage that fails before it replaces an output leaves the earlier run finished, and one that fails later does not.
        run(&context, folder, 2, false).unwrap();
        run(&context, folder, 3, true).unwrap_err();
        assert!(path.exists());
        run(&context, folder, 2, true).unwrap();
        let make_stage = || Ok(Stage::new("work", 1, folder, StageSettings::of(3_u32), &[])?);
        let late = run_stage(&context, "work", folder, make_stage, |_| {
            files::write_bytes(&folder.join("made"), b"other")?;
            anyhow::bail!("no luck")
        });
        late.unwrap_err();
        assert!(!path.exists());
        run(&context, folder, 2, true).unwrap_err();
    }
}
