//! What a user reads when something is wrong: one sentence that says what, where and what to do. `docs/reliability.md` holds these
//! sentences as they come from the programs, and after them the form of every sentence in the sources; `MP4SR_BLESS=1` writes
//! both.

mod artifacts;
mod encoders;
mod forms;
mod settings;

use std::process::Output;

use mp4sr_artifact::files;
use mp4sr_tests::{SmallWorld, root, said, stages};

/// What never belongs into a sentence for a user.
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

/// A world in which every stage has run, and what was said of what went wrong in it.
struct Told {
    world: SmallWorld,
    table: Vec<(String, String)>,
    problems: Vec<String>,
}

impl Told {
    fn new() -> Self {
        let world = SmallWorld::new();
        for stage in stages() {
            world.run(stage, &[]);
        }
        Self { world, table: Vec::new(), problems: Vec::new() }
    }

    /// Runs a program with words in which `WORLD` stands for the world's folder. `names`: what the sentence must name, a file, a
    /// key, a flag.
    fn case(&mut self, what: &str, program: &str, words: &[&str], names: &str) {
        let place = self.world.folder().display().to_string();
        let words: Vec<String> = words.iter().map(|word| word.replace("WORLD", &place)).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let output = self.world.output(program, &words);
        self.tell(what, names, &output);
    }

    /// The same with one key replaced.
    fn set(&mut self, what: &str, program: &str, assignment: &str, names: &str) {
        self.case(what, program, &["--set", assignment], names);
    }

    /// The same with an artifact that holds other bytes for so long.
    fn with(&mut self, what: &str, artifact: &str, bytes: &[u8], program: &str) {
        let path = self.world.path("a").join(artifact);
        let whole = files::read(&path).unwrap();
        std::fs::write(&path, bytes).unwrap();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        self.case(what, program, if program == "compare" { &["mp4sr"] } else { &[] }, &name);
        std::fs::write(&path, whole).unwrap();
    }

    fn tell(&mut self, what: &str, names: &str, output: &Output) {
        let said = said(output);
        let last = said.lines().last().unwrap_or_default().to_owned();
        // Of wrong flags, the library that reads them tells the usage too, with its own code.
        let line = said.lines().find(|line| line.starts_with("error: ")).unwrap_or(&last).to_owned();
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
        let place = self.world.folder().display().to_string();
        self.table.push((what.to_owned(), line.trim_start_matches("error: ").replace(&place, "...")));
    }
}

#[test]
fn every_sentence_says_what_where_and_what_to_do_and_stands_in_the_documents() {
    let mut told = Told::new();
    settings::tell(&mut told);
    settings::tell_raw(&mut told);
    encoders::tell(&mut told);
    artifacts::tell(&mut told);
    settings::tell_rest(&mut told);
    let mut found = String::from("\n| when | what is said |\n|---|---|\n");
    for (what, line) in &told.table {
        found += &format!("| {what} | {} |\n", line.replace('|', "\\|"));
    }
    assert!(told.problems.is_empty(), "{}", told.problems.join("\n"));
    check_document("sentences", &found);
}

/// The part of the document between two marks is `expected`.
fn check_document(part: &str, expected: &str) {
    const DOCUMENT: &str = "docs/reliability.md";
    let path = root().join(DOCUMENT);
    let text = files::read_to_string(&path).unwrap();
    let start = format!("<!-- {part}: written by tests/faults/messages with MP4SR_BLESS=1 -->\n");
    let end = format!("\n<!-- end of {part} -->");
    let (before, rest) = text.split_once(&start).unwrap();
    let (found, after) = rest.split_once(&end).unwrap();
    if std::env::var_os("MP4SR_BLESS").is_some() {
        files::write_bytes(&path, format!("{before}{start}{expected}{end}{after}").as_bytes()).unwrap();
        return;
    }
    assert!(found == expected, "{DOCUMENT} is not what the programs say; MP4SR_BLESS=1 writes it anew:\n{expected}");
}
