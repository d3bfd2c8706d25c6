//! The code that tests of the real programs share: the paths of the programs, a temporary project folder, and a way to run commands in it.

#![allow(clippy::disallowed_methods, reason = "a test fails by panicking")]

pub mod server;
pub mod service;

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, PoisonError};

use mp4sr_artifact::files;
use mp4sr_pipeline::STAGES;

const USERS: usize = 60;
const ITEMS: usize = 30;

/// The stages in their order.
pub fn stages() -> impl Iterator<Item = &'static str> {
    STAGES.iter().map(|row| row.name)
}

/// The program `name` beside the running test; `make test` builds it first.
///
/// # Panics
///
/// If it has not been built.
pub fn program(name: &str) -> PathBuf {
    let here = std::env::current_exe().unwrap_or_default();
    let folder = here.parent().and_then(Path::parent).unwrap_or(Path::new("."));
    let path = folder.join(name);
    assert!(path.exists(), "`{}` is not built; run `make test`, which builds it", path.display());
    path
}

/// The root of the repository. It is found at run time from Cargo's variable, because several clones may share a build folder.
pub fn root() -> PathBuf {
    let package = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| "tests".into());
    let package = Path::new(&package);
    let root = package.ancestors().find(|folder| folder.join("Cargo.lock").is_file());
    root.unwrap_or_else(|| Path::new("..")).to_owned()
}

/// A command of `mp4sr`, or of `mp4sr-bench` for the name `bench`, in the root of the repository and without settings from the environment.
/// Stages are called by their own names.
pub fn command(name: &str) -> Command {
    let mut command = Command::new(program(if name == "bench" { "mp4sr-bench" } else { "mp4sr" }));
    match STAGES.iter().find(|row| row.name == name) {
        Some(row) => command.args(row.words),
        None => command.args(Some(name).filter(|name| *name != "bench")),
    };
    command.current_dir(root());
    for (key, _) in std::env::vars_os() {
        let name = key.to_string_lossy().to_lowercase();
        // Tests use their own servers, never a proxy.
        if name.starts_with("mp4sr_") || name.ends_with("_proxy") {
            command.env_remove(key);
        }
    }
    command
}

/// The standard error of a program.
pub fn stderr_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The bytes of a text compressed with gzip.
///
/// # Panics
///
/// Never for texts that fit into memory.
pub fn gzip(content: &str) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let written = encoder.write_all(content.as_bytes()).and_then(|()| encoder.finish());
    written.unwrap_or_else(|e| panic!("failed to compress {} bytes: {e}", content.len()))
}

#[derive(Debug)]
enum Folder {
    Temporary(tempfile::TempDir),
    Kept(PathBuf),
}

/// A temporary folder with pipelines, their raw files and their artifacts, and methods that run commands on its first pipeline, or in the
/// folder if it has none. The folder is removed when the value is dropped.
///
/// Its methods panic, with the output of the program, if files cannot be read or written or a command does not end as expected.
#[derive(Debug)]
pub struct Project {
    folder: Folder,
    first: Option<String>,
    raw: &'static str,
}

#[allow(clippy::missing_panics_doc, reason = "the type says that its methods panic")]
impl Project {
    /// A project with one pipeline over an empty folder of raw files. The dataset is called `name`; `sections` are appended to the
    /// pipeline.
    pub fn new(name: &str, sections: &str) -> Self {
        let project = Self { folder: temporary_folder(), first: Some(name.to_owned()), raw: "raw" };
        let raw = project.raw("");
        std::fs::create_dir(&raw).unwrap_or_else(|e| panic!("failed to create `{}`: {e}", raw.display()));
        let data = raw.display();
        project.write(&format!("{name}.toml"), format!("[dataset]\nname = \"{name}\"\ndata = \"{data}\"\n{sections}"));
        project
    }

    /// A project with the pipeline of `pipelines/<name>.toml`, over the raw files in the folder `data`.
    pub fn of_pipeline(name: &str, data: &Path) -> Self {
        let project = Self { folder: temporary_folder(), first: Some(name.to_owned()), raw: "raw" };
        project.write_pipeline_over(name, data);
        project
    }

    fn write_pipeline_over(&self, name: &str, data: &Path) {
        let file = root().join("pipelines").join(format!("{name}.toml"));
        let text = files::read_to_string(&file).unwrap_or_else(|e| panic!("{e}"));
        let own = |line: &str| {
            if line.starts_with("data = ") { format!("data = \"{}\"\n", data.display()) } else { format!("{line}\n") }
        };
        self.write(&format!("{name}.toml"), text.lines().map(own).collect::<String>());
    }

    /// Like [`of_pipeline`](Self::of_pipeline), in the folder `folder`, which is not removed.
    pub fn of_pipeline_in(folder: &Path, name: &str, data: &Path) -> Self {
        let project = Self { folder: Folder::Kept(folder.to_owned()), first: Some(name.to_owned()), raw: "raw" };
        project.write_pipeline_over(name, data);
        project
    }

    /// A folder with these files and without a pipeline. Commands run in the folder, far from the repository, and get no additional flags.
    pub fn without_pipeline(raw: &[(&str, Vec<u8>)]) -> Self {
        let project = Self { folder: temporary_folder(), first: None, raw: "" };
        for (name, content) in raw {
            project.write_raw(name, content);
        }
        project
    }

    /// A project that is so small that every stage takes only a moment, with the pipeline `a`. Users go through the items in steps of one
    /// or two; neighbouring items share a title; every third item has an image.
    pub fn small() -> Self {
        let project = Self { folder: temporary_folder(), first: Some("a".to_owned()), raw: "" };
        project.add("a", 0);
        project
    }

    /// Adds the small pipeline `name`, whose users start `shift` items later. Every third item has an image.
    pub fn add(&self, name: &str, shift: usize) {
        let mut events = String::from("user_id\titem_id\ttimestamp\n");
        for user in 0..USERS {
            for at in 0..6 + user % 5 {
                let item = (shift + user + at * (1 + user % 2)) % ITEMS;
                let _ = writeln!(events, "u{user}\ti{item}\t{}", 1_600_000_000 + 86_400 * (user + 10 * at));
            }
        }
        let mut items = String::new();
        for item in 0..ITEMS {
            let image = if item % 3 == 0 { ", \"image\": \"one.png\"" } else { "" };
            let _ =
                writeln!(items, "{{\"item_id\": \"i{item}\", \"title\": \"A thing of group {}\"{image}}}", item / 3);
        }
        let image = files::read(&root().join("fuzz/seeds/image/one.png")).unwrap_or_else(|e| panic!("{e}"));
        let pipeline = format!(
            "[dataset]\nname = \"{name}\"\ndata = \"{}\"\n[source]\nformat = \"tabular\"\n\
             interactions = [\"{name}.tsv\"]\nitems = [\"{name}.jsonl\"]\n\
             [source.columns]\nimages = \"image\"\n[preprocess]\nuser_core = 3\nitem_core = 1\n\
             [model]\n[model.mp4sr]\nexperts = 2\n[model.transformer]\nfeed_forward = 16\nwidth = 16\n\
             [pretrain]\nepochs = 2\nbatch = 64\n[finetune]\nepochs = 2\nbatch = 64\n[run]\nsave_seconds = 0.0\n",
            self.folder().display()
        );
        self.write("one.png", image);
        self.write(&format!("{name}.tsv"), events);
        self.write(&format!("{name}.jsonl"), items);
        self.write(&format!("{name}.toml"), pipeline);
    }

    /// The project folder.
    pub fn folder(&self) -> &Path {
        match &self.folder {
            Folder::Temporary(folder) => folder.path(),
            Folder::Kept(folder) => folder,
        }
    }

    /// Writes a file below the folder.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> &Self {
        let path = self.folder().join(name);
        files::write_bytes(&path, content.as_ref()).unwrap_or_else(|e| panic!("{e}"));
        self
    }

    /// Writes a raw file.
    pub fn write_raw(&self, name: &str, content: impl AsRef<[u8]>) -> &Self {
        files::write_bytes(&self.raw(name), content.as_ref()).unwrap_or_else(|e| panic!("{e}"));
        self
    }

    /// The path of a raw file, or of the folder of raw files if `name` is empty.
    pub fn raw(&self, name: &str) -> PathBuf {
        let folder = self.folder().join(self.raw);
        if name.is_empty() { folder } else { folder.join(name) }
    }

    /// The text of a raw file.
    pub fn raw_text(&self, name: &str) -> String {
        files::read_to_string(&self.raw(name)).unwrap_or_else(|e| panic!("{e}"))
    }

    /// The path of a pipeline file.
    pub fn pipeline(&self, name: &str) -> PathBuf {
        self.folder().join(format!("{name}.toml"))
    }

    /// The path of an artifact.
    pub fn path(&self, relative: &str) -> PathBuf {
        self.folder().join("artifacts").join(relative)
    }

    /// The content of an artifact.
    pub fn bytes(&self, relative: &str) -> Vec<u8> {
        files::read(&self.path(relative)).unwrap_or_else(|e| panic!("{e}"))
    }

    /// The text of an artifact.
    pub fn text(&self, relative: &str) -> String {
        files::read_to_string(&self.path(relative)).unwrap_or_else(|e| panic!("{e}"))
    }

    /// A command of a program or a stage, on the first pipeline, or in the folder of a project without one.
    pub fn command(&self, name: &str, words: &[&str]) -> Command {
        let mut command = command(name);
        command.args(words);
        match &self.first {
            Some(first) => command.arg("--pipeline").arg(self.pipeline(first)).arg("--artifacts").arg(self.path("")),
            None => command.current_dir(self.folder()).env_remove("CARGO_MANIFEST_DIR"),
        };
        command
    }

    /// Runs a command and returns its output.
    pub fn output(&self, name: &str, words: &[&str]) -> Output {
        self.command(name, words).output().unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    /// Runs a command, expects success, and returns its standard output.
    pub fn run(&self, name: &str, words: &[&str]) -> String {
        String::from_utf8_lossy(&self.succeeded(name, words).stdout).into_owned()
    }

    /// Runs a command, expects success, and returns its standard error.
    pub fn run_stderr(&self, name: &str, words: &[&str]) -> String {
        stderr_of(&self.succeeded(name, words))
    }

    /// Runs a command, expects exit code 1 and one line with an error, and returns that line.
    pub fn run_failing(&self, name: &str, words: &[&str]) -> String {
        let output = self.output(name, words);
        let message = stderr_of(&output);
        let errors: Vec<&str> = message.lines().filter(|line| line.starts_with("error: ")).collect();
        assert_eq!((output.status.code(), errors.len()), (Some(1), 1), "{name} {words:?}: {message}");
        assert!(!errors[0].contains("Error {") && !errors[0].contains("unwrap"), "{name} {words:?}: {message}");
        assert!(output.stdout.is_empty(), "{name} {words:?} failed and wrote results");
        errors[0].to_owned()
    }

    fn succeeded(&self, name: &str, words: &[&str]) -> Output {
        let output = self.output(name, words);
        assert!(output.status.success(), "{name} {words:?}: {}", stderr_of(&output));
        output
    }
}

/// A folder below `parent` that `make` fills once for all tests of a run, even if every test is a separate process, as with nextest. The
/// next run removes it.
///
/// # Panics
///
/// If files cannot be read or written.
pub fn shared(parent: &Path, make: impl FnOnce(&Path)) -> PathBuf {
    let run = std::env::var("NEXTEST_RUN_ID").unwrap_or_else(|_| std::process::id().to_string());
    let folder = parent.join(&run);
    fill_once(parent, &folder, make).unwrap_or_else(|e| panic!("failed to fill `{}`: {e}", folder.display()));
    folder
}

fn fill_once(parent: &Path, folder: &Path, make: impl FnOnce(&Path)) -> std::io::Result<()> {
    std::fs::create_dir_all(parent)?;
    let lock_of = |folder: &Path| folder.with_extension("lock");
    let lock = File::create(lock_of(folder))?;
    lock.lock()?;
    let done = folder.join("done");
    if !done.exists() {
        for other in std::fs::read_dir(parent)?.map_while(Result::ok).map(|entry| entry.path()) {
            let is_left = || File::open(lock_of(&other)).is_ok_and(|lock| lock.try_lock().is_ok());
            if other.is_dir() && other != folder && is_left() {
                std::fs::remove_dir_all(&other)?;
                std::fs::remove_file(lock_of(&other))?;
            }
        }
        std::fs::create_dir_all(folder)?;
        make(folder);
        std::fs::write(done, "")?;
    }
    // The locks are held until this process ends, so that another run does not remove the folders.
    static IN_USE: Mutex<Vec<File>> = Mutex::new(Vec::new());
    lock.lock_shared()?;
    IN_USE.lock().unwrap_or_else(PoisonError::into_inner).push(lock);
    Ok(())
}

/// Copies a folder with everything below it.
///
/// # Panics
///
/// If files cannot be read or written.
pub fn copy_folder(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).output();
    let is_copied = copied.as_ref().is_ok_and(|output| output.status.success());
    assert!(is_copied, "failed to copy `{}` to `{}`: {copied:?}", from.display(), to.display());
}

fn temporary_folder() -> Folder {
    Folder::Temporary(tempfile::tempdir().unwrap_or_else(|e| panic!("failed to create a temporary folder: {e}")))
}
