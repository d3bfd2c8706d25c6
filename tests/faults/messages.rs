//! What a user reads when something is wrong: one sentence that says what, where and what to do. `docs/reliability.md` holds these
//! sentences as they come from the programs; `MP4SR_BLESS=1` writes them there.

use std::fs;
use std::path::Path;
use std::process::Command;

use mp4sr_artifact::{Lock, Tensor, TensorFile, files, write_tensors};
use mp4sr_tests::{STAGES, SmallWorld, command, said};

/// A wrong situation: what it is, and how to get into it.
struct Case {
    what: &'static str,
    program: &'static str,
    words: Vec<String>,
    /// What must be named: a file, a key, a flag.
    names: &'static str,
}

fn case(what: &'static str, program: &'static str, words: &[&str], names: &'static str) -> Case {
    Case { what, program, words: words.iter().map(|&word| word.to_owned()).collect(), names }
}

fn set(assignment: &str) -> [&str; 2] {
    ["--set", assignment]
}

/// Cases on a world in which every stage has run.
fn on_finished() -> Vec<Case> {
    vec![
        case("a key that does not exist", "preprocess", &set("model.widht=3"), "model.widht"),
        case("a value out of range", "pretrain", &set("finetune.batch=0"), "finetune.batch"),
        case("a value of another type", "pretrain", &set("finetune.batch=\"many\""), "finetune.batch"),
        case("an assignment without a value", "pretrain", &set("finetune.batch"), "--set finetune.batch"),
        case("widths that do not fit", "pretrain", &set("model.heads=3"), "model.heads"),
        case("a modality twice", "pretrain", &set("model.modalities=[{name=\"a\"},{name=\"a\"}]"), "model.modalities"),
        case(
            "a modality of the logits that is none",
            "finetune",
            &set("model.logit_modalities=[\"x\"]"),
            "logit_modalities",
        ),
        case("a name that leads out of the folder", "finetune", &["--run", "../x"], "../x"),
        case("a raw file that is not there", "preprocess", &set("source.interactions=[\"gone.tsv\"]"), "gone.tsv"),
        case("a web page in place of data", "preprocess", &set("source.interactions=[\"page.jsonl\"]"), "page.jsonl"),
        case("an empty file", "preprocess", &set("source.interactions=[\"empty.jsonl\"]"), "empty.jsonl"),
        case("a gzip file cut short", "preprocess", &set("source.interactions=[\"cut.tsv.gz\"]"), "cut.tsv.gz"),
        case("no gzip file", "preprocess", &set("source.interactions=[\"plain.tsv.gz\"]"), "plain.tsv.gz"),
        case("a folder in place of a file", "preprocess", &set("source.interactions=[\"folder\"]"), "folder"),
        case("a column that is not there", "preprocess", &set("source.columns.user=\"who\""), "who"),
        case(
            "more bad lines than allowed",
            "preprocess",
            &["--set", "source.interactions=[\"bad.jsonl\"]", "--set", "preprocess.max_bad_lines=1"],
            "bad.jsonl",
        ),
        case("no line that can be used", "preprocess", &set("source.interactions=[\"bad.jsonl\"]"), "bad.jsonl"),
        case("filters that leave nothing", "preprocess", &set("preprocess.user_core=99"), "preprocess.user_core"),
        case("an encoder that is not there", "extract", &set("extract.text.model=\"./nowhere\""), "nowhere"),
        case("an encoder without safetensors", "extract", &set("extract.text.model=\"PICKLE\""), "pickle"),
        case(
            "features that nobody made",
            "pretrain",
            &set("model.modalities=[{name=\"sound\",features=\"mine\"}]"),
            "sound.mine",
        ),
        case(
            "pre-trained weights of a run that is not there",
            "finetune",
            &set("pretrain.from=\"a/nobody\""),
            "nobody",
        ),
        case(
            "a place for pre-trained weights that is none",
            "finetune",
            &set("pretrain.from=\"nobody\""),
            "pretrain.from",
        ),
        case("weights of another model", "evaluate", &set("model.layers=3"), "finetune.safetensors"),
        case("a run without weights", "evaluate", &["--run", "nobody"], "finetune.safetensors"),
        case("a loss that is no number", "finetune", &["--run", "wild"], "diverged.finetune.safetensors"),
        case("a run beside this one that is not there", "report", &set("report.beside=[\"nobody\"]"), "nobody"),
        case("a run to compare that is not there", "compare", &["mp4sr", "nobody"], "nobody"),
        case("a measure that is none", "compare", &["mp4sr", "--measures", "P@5"], "P@5"),
        case("a grid that is none", "search", &["--grid", "finetune.batch"], "finetune.batch"),
        case("a study without what it needs", "study", &["table5"], "WITH"),
        case(
            "a study of modalities of a pipeline with one",
            "study",
            &["study-mixup", "--set", "model.modalities=[{name=\"text\"}]"],
            "two modalities",
        ),
    ]
}

/// What never belongs into a sentence for a user.
const NEVER: [&str; 12] = [
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
];

#[test]
fn every_sentence_says_what_where_and_what_to_do_and_stands_in_the_documents() {
    let world = SmallWorld::new();
    for stage in STAGES {
        world.run(stage, &[]);
    }
    // Weights so large that products overflow.
    let weights = world.path("a/runs/mp4sr/pretrain.safetensors");
    let mut file = TensorFile::read(&weights, "checkpoint", 1, "").unwrap();
    let header = file.header().clone();
    let mut large = |name: String| {
        let (values, shape) = file.take_f32(&name).unwrap();
        (name, Tensor::F32(values.iter().map(|value| value * 1e38).collect(), shape))
    };
    let tensors: Vec<_> = names(&weights).into_iter().map(&mut large).collect();
    write_tensors(&world.path("a/runs/wild/pretrain.safetensors"), &header, &tensors).unwrap();
    let raw = |name: &str, bytes: &[u8]| fs::write(world.folder().join(name), bytes).unwrap();
    raw("page.jsonl", b"<!DOCTYPE html><html></html>");
    raw("empty.jsonl", b"");
    raw("plain.tsv.gz", b"user_id\titem_id\ttimestamp\n");
    raw("cut.tsv.gz", &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 0x4b]);
    raw("bad.jsonl", b"{\n{\n{\n");
    fs::create_dir(world.folder().join("folder")).unwrap();
    let pickle = world.folder().join("pickle");
    fs::create_dir(&pickle).unwrap();
    for name in ["config.json", "tokenizer.json"] {
        let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/encoders/tiny-sentence").join(name);
        fs::copy(own, pickle.join(name)).unwrap();
    }
    fs::write(pickle.join("pytorch_model.bin"), b"PK").unwrap();

    let (mut table, mut problems): (Vec<(String, String)>, Vec<String>) = (Vec::new(), Vec::new());
    let mut tell = |what: &str, names: &str, output: &std::process::Output| {
        let said = said(output);
        let last = said.lines().last().unwrap_or_default().to_owned();
        // Of wrong flags, the library that reads them tells the usage too, with its own code.
        let line = said.lines().find(|line| line.starts_with("error: ")).unwrap_or(&last).to_owned();
        let mut wrong = |is: bool, why: &str| {
            if is {
                problems.push(format!("{what}: {why}: {line}"));
            }
        };
        wrong(!matches!(output.status.code(), Some(1 | 2)), "it has another exit code");
        wrong(!line.starts_with("error: ") || !line.contains(names), "it does not name what is wrong");
        let names_remedy = [";", "use ", "run ", "expected", "write "].iter().any(|sign| line.contains(sign));
        wrong(!names_remedy, "it does not say what to do");
        for never in NEVER {
            wrong(line.contains(never), never);
        }
        let place = world.folder().display().to_string();
        table.push((what.to_owned(), line.trim_start_matches("error: ").replace(&place, "...")));
    };

    for case in on_finished() {
        let words: Vec<String> =
            case.words.iter().map(|word| word.replace("PICKLE", &pickle.display().to_string())).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        tell(case.what, case.names, &world.output(case.program, &words));
    }

    let mut missing = command("preprocess");
    tell(
        "a pipeline that is not there",
        "nowhere.toml",
        &missing.args(["--pipeline", "nowhere.toml"]).output().unwrap(),
    );
    raw("broken.toml", b"[dataset\n");
    let broken = world.folder().join("broken.toml");
    tell(
        "a pipeline that is no TOML",
        "broken.toml",
        &command("preprocess").arg("--pipeline").arg(broken).output().unwrap(),
    );

    // Of features that fit no more, and of a state of other settings.
    let features = world.path("a/features/text.tiny-sentence.safetensors");
    let whole = files::read(&features).unwrap();
    fs::write(&features, &whole[..whole.len() / 2]).unwrap();
    tell("features cut short", "text.tiny-sentence", &world.output("pretrain", &["--run", "other"]));
    fs::write(&features, &whole).unwrap();
    fs::remove_file(world.path("a/runs/mp4sr/finetune.manifest.json")).unwrap();
    fs::write(world.path("a/runs/mp4sr/state.finetune.safetensors"), b"nothing").unwrap();
    tell("a state that can't be read", "state.finetune.safetensors", &world.output("finetune", &[]));
    fs::remove_file(world.path("a/runs/mp4sr/state.finetune.safetensors")).unwrap();

    let lock = Lock::take(&world.path("a/dataset"), "preprocess").unwrap();
    let held = world.output("preprocess", &[]);
    let holder = format!("process {}", std::process::id());
    assert!(said(&held).contains(&holder), "{}", said(&held));
    drop(lock);

    let sample = Command::new(mp4sr_tests::program("sample")).arg("--out").arg(world.folder()).output().unwrap();
    tell("a folder that is in use for something else", "--out", &sample);
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    check_document(&table);
}

fn names(path: &Path) -> Vec<String> {
    TensorFile::read(path, "checkpoint", 1, "").unwrap().names()
}

const DOCUMENT: &str = "docs/reliability.md";
const START: &str = "<!-- sentences: written by tests/faults/messages.rs with MP4SR_BLESS=1 -->\n";

/// The table of the document is that of the programs.
fn check_document(table: &[(String, String)]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(DOCUMENT);
    let text = files::read_to_string(&path).unwrap();
    let (before, found) = text.split_once(START).unwrap();
    let mut expected = String::from("\n| when | what is said |\n|---|---|\n");
    for (what, line) in table {
        expected += &format!("| {what} | {} |\n", line.replace('|', "\\|"));
    }
    if std::env::var_os("MP4SR_BLESS").is_some() {
        files::write_bytes(&path, format!("{before}{START}{expected}").as_bytes()).unwrap();
        return;
    }
    assert!(found == expected, "{DOCUMENT} is not what the programs say; MP4SR_BLESS=1 writes it anew:\n{expected}");
}
