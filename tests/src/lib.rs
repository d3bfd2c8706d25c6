//! What tests that drive the real programs share: where those lie, and a world so small that every stage takes a moment.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

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
/// Where it is not there.
pub fn program(name: &str) -> PathBuf {
    let here = std::env::current_exe().unwrap_or_default();
    let folder = here.parent().and_then(Path::parent).unwrap_or(Path::new("."));
    let path = folder.join(name);
    assert!(path.exists(), "`{}` is not built; run `make test`, which builds it", path.display());
    path
}

/// The root of the repository as Cargo says it when tests run: a build folder may serve several clones.
pub fn root() -> PathBuf {
    let package = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| "tests".into());
    Path::new(&package).join("..")
}

/// A command of `mp4sr`, or of `mp4sr-bench`, in the root of the repository, without the surroundings' settings. The stages have
/// their own names.
pub fn command(name: &str) -> Command {
    let mut command = Command::new(program(if name == "bench" { "mp4sr-bench" } else { "mp4sr" }));
    match STAGES.iter().find(|row| row.name == name) {
        Some(row) => command.args(row.words),
        None => command.args(Some(name).filter(|name| *name != "bench")),
    };
    command.current_dir(root());
    for (key, _) in std::env::vars().filter(|(key, _)| key.starts_with("MP4SR_")) {
        command.env_remove(key);
    }
    command
}

/// What a program said on standard error.
pub fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A folder with small pipelines and the artifacts made of them. Users walk through the items in steps of one or two; titles name
/// neighbours alike; no item has an image.
#[derive(Debug)]
pub struct SmallWorld {
    folder: tempfile::TempDir,
}

impl SmallWorld {
    /// A world with the pipeline `a`.
    ///
    /// # Panics
    ///
    /// Where files can't be written.
    #[allow(clippy::new_without_default, reason = "it writes files")]
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap_or_else(|e| panic!("no temporary folder: {e}"));
        let world = Self { folder };
        world.add("a", 0);
        world
    }

    /// Adds the pipeline `name`, whose users start `shift` items later.
    ///
    /// # Panics
    ///
    /// Where files can't be written.
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
            let _ = writeln!(items, "{{\"item_id\": \"i{item}\", \"title\": \"A thing of group {}\"}}", item / 3);
        }
        let pipeline = format!(
            "[dataset]\nname = \"{name}\"\ndata = \"{}\"\n[source]\nformat = \"tabular\"\n\
             interactions = [\"{name}.tsv\"]\nitems = [\"{name}.jsonl\"]\n[preprocess]\nuser_core = 3\nitem_core = 1\n\
             [model]\nexperts = 2\nfeed_forward = 16\nwidth = 16\n\
             [pretrain]\nepochs = 2\nbatch = 64\n[finetune]\nepochs = 2\nbatch = 64\n[run]\nsave_seconds = 0.0\n",
            self.folder.path().display()
        );
        for (kind, text) in [("tsv", &events), ("jsonl", &items), ("toml", &pipeline)] {
            let path = self.folder.path().join(format!("{name}.{kind}"));
            files::write_bytes(&path, text.as_bytes()).unwrap_or_else(|e| panic!("{e}"));
        }
    }

    /// Gives ten items of pipeline `a` a picture.
    ///
    /// # Panics
    ///
    /// Where files can't be read or written.
    pub fn add_pictures(&self) {
        let picture = root().join("fuzz/seeds/image/one.png");
        let copy = |from: &Path| {
            files::read(from).and_then(|bytes| files::write_bytes(&self.folder().join("one.png"), &bytes))
        };
        copy(&picture).unwrap_or_else(|e| panic!("{e}"));
        let items = self.raw_text("a.jsonl");
        let lines = items.lines().enumerate().map(|(at, line)| match at % 3 {
            0 => format!("{}, \"image\": \"one.png\"}}", line.trim_end_matches('}')),
            _ => line.to_owned(),
        });
        let items = lines.collect::<Vec<_>>().join("\n");
        let pipeline =
            self.raw_text("a.toml").replace("[preprocess]", "[source.columns]\nimages = \"image\"\n[preprocess]");
        for (file, text) in [("a.jsonl", items), ("a.toml", pipeline)] {
            files::write_bytes(&self.folder().join(file), text.as_bytes()).unwrap_or_else(|e| panic!("{e}"));
        }
    }

    /// The folder of everything.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The text of a raw file.
    ///
    /// # Panics
    ///
    /// Where it can't be read.
    pub fn raw_text(&self, file: &str) -> String {
        files::read_to_string(&self.folder().join(file)).unwrap_or_else(|e| panic!("{e}"))
    }

    /// The file of a pipeline.
    pub fn pipeline(&self, name: &str) -> PathBuf {
        self.folder.path().join(format!("{name}.toml"))
    }

    /// A path among the artifacts.
    pub fn path(&self, relative: &str) -> PathBuf {
        self.folder.path().join("artifacts").join(relative)
    }

    /// The text of an artifact.
    ///
    /// # Panics
    ///
    /// Where it can't be read.
    pub fn text(&self, relative: &str) -> String {
        files::read_to_string(&self.path(relative)).unwrap_or_else(|e| panic!("{e}"))
    }

    /// A command of a program or a stage on pipeline `a`.
    pub fn command(&self, name: &str, words: &[&str]) -> Command {
        let mut command = command(name);
        command.args(words).arg("--pipeline").arg(self.pipeline("a")).arg("--artifacts").arg(self.path(""));
        command
    }

    /// Runs it.
    ///
    /// # Panics
    ///
    /// Where it can't be started.
    pub fn output(&self, name: &str, words: &[&str]) -> Output {
        self.command(name, words).output().unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    /// Runs it and gives what it printed.
    ///
    /// # Panics
    ///
    /// Where it fails.
    pub fn run(&self, name: &str, words: &[&str]) -> String {
        let output = self.output(name, words);
        assert!(output.status.success(), "{name} {words:?}: {}", said(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}
