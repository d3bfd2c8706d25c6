//! The messages for users when something is wrong: one sentence that says what is wrong, where, and what to do. The folder `snapshots`
//! holds the messages as the programs print them, and the form of every message in the sources. `INSTA_UPDATE=always` accepts changes.

mod artifacts;
mod encoders;
mod forms;
mod settings;

use std::process::Output;

use mp4sr_artifact::files;
use mp4sr_tests::{Project, stages, stderr_of};

/// Text that must not occur in a message for users.
const NEVER: [&str; 18] = [
    "unwrap",
    "panicked",
    "RUST_BACKTRACE",
    "stack backtrace",
    "internal error",
    "Some(",
    "None",
    "Err(",
    "Os {",
    "::",
    "<T>",
    "&str",
    "usize",
    "u32",
    "u64",
    "i64",
    "f64",
    "struct ",
];

/// A world in which every stage has run, and the messages about errors that were caused in it.
struct MessageChecks {
    world: Project,
    table: Vec<(String, String)>,
    problems: Vec<String>,
}

impl MessageChecks {
    fn new() -> Self {
        let world = Project::small();
        for stage in stages() {
            world.run(stage, &[]);
        }
        Self { world, table: Vec::new(), problems: Vec::new() }
    }

    /// Runs a program with arguments in which `WORLD` stands for the world's folder. The message must contain `names`: a file, a key or a
    /// flag.
    fn case(&mut self, what: &str, program: &str, words: &[&str], names: &str) {
        let folder = self.world.folder().display().to_string();
        let words: Vec<String> = words.iter().map(|word| word.replace("WORLD", &folder)).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let output = self.world.output(program, &words);
        self.check(what, names, &output);
    }

    /// Like [`case`](Self::case), with one key replaced.
    fn set(&mut self, what: &str, program: &str, assignment: &str, names: &str) {
        self.case(what, program, &["--set", assignment], names);
    }

    /// Like [`case`](Self::case), while an artifact is replaced by `bytes`.
    fn with(&mut self, what: &str, artifact: &str, bytes: &[u8], program: &str) {
        let path = self.world.path("a").join(artifact);
        let whole = files::read(&path).unwrap();
        std::fs::write(&path, bytes).unwrap();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        self.case(what, program, if program == "compare" { &["mp4sr"] } else { &[] }, &name);
        std::fs::write(&path, whole).unwrap();
    }

    fn check(&mut self, what: &str, names: &str, output: &Output) {
        let message = stderr_of(output);
        let last = message.lines().last().unwrap_or_default().to_owned();
        // For wrong flags, the argument parser also prints the usage, and exits with its own code.
        let line = message.lines().find(|line| line.starts_with("error: ")).unwrap_or(&last).to_owned();
        let mut wrong = |is: bool, why: &str| {
            if is {
                self.problems.push(format!("{what}: {why}: {line}"));
            }
        };
        wrong(!matches!(output.status.code(), Some(1 | 2)), "it has another exit code");
        wrong(!line.starts_with("error: ") || !line.contains(names), "it does not name what is wrong");
        let names_remedy = [";", "use ", "run ", "expected", "write "].iter().any(|sign| line.contains(sign));
        wrong(!names_remedy, "it does not say what to do");
        for never in NEVER {
            wrong(line.contains(never), never);
        }
        let folder = self.world.folder().display().to_string();
        self.table.push((what.to_owned(), line.trim_start_matches("error: ").replace(&folder, "...")));
    }
}

#[test]
fn every_message_names_a_cause_a_location_and_a_remedy_and_is_in_the_snapshot() {
    let mut checks = MessageChecks::new();
    let mut snapshots = Vec::new();
    type Check = fn(&mut MessageChecks);
    let parts: [(&str, Check); 5] = [
        ("settings", settings::check),
        ("raw_files", settings::check_raw),
        ("encoders", encoders::check),
        ("artifacts", artifacts::check),
        ("runs_and_studies", settings::check_rest),
    ];
    for (name, check) in parts {
        check(&mut checks);
        let messages = checks.table.drain(..).map(|(what, line)| format!("{what}:\n    {line}\n"));
        snapshots.push((name, messages.collect::<String>()));
    }
    assert!(checks.problems.is_empty(), "{}", checks.problems.join("\n"));
    for (name, messages) in snapshots {
        assert_snapshot(name, &messages);
    }
}

/// Compares the messages with the file `snapshots/<name>.snap`.
fn assert_snapshot(name: &str, messages: &str) {
    insta::with_settings!({ prepend_module_to_snapshot => false, omit_expression => true }, {
        insta::assert_snapshot!(name, messages);
    });
}
