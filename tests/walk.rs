//! The walk from raw files to a report, by the real programs on the sample world: complete, up to date, repeatable, resumable,
//! and clear about what is wrong. `make test` builds the programs first.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use mp4sr_artifact::{FeatureType, Features, Items, Sequences, files};
use mp4sr_pipeline::Config;
use mp4sr_run::model_catalog;
use mp4sr_tests::{command, root};

/// Settings that make a walk short.
const SHORT: &[&str] = &[
    "--set",
    "pretrain.epochs=2",
    "--set",
    "finetune.epochs=2",
    "--set",
    "model.experts=2",
    "--set",
    "model.feed_forward=64",
];

/// A folder of artifacts with the sample world in it.
struct World {
    folder: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn stage(&self, name: &str, arguments: &[&str]) -> Command {
        let mut command = command(name);
        command.args(["--pipeline", "pipelines/sample.toml", "--artifacts"]).arg(self.folder.path());
        command.arg("--data").arg(raw()).args(arguments);
        command
    }

    fn run(&self, name: &str, arguments: &[&str]) -> Output {
        let output = self.stage(name, arguments).output().unwrap();
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        output
    }

    fn path(&self, relative: &str) -> PathBuf {
        self.folder.path().join("sample").join(relative)
    }

    fn bytes(&self, relative: &str) -> Vec<u8> {
        files::read(&self.path(relative)).unwrap()
    }

    /// A world whose dataset and features are those of `other`.
    fn after_extract(other: &Self) -> Self {
        let world = Self::new();
        for folder in ["dataset", "features"] {
            std::fs::create_dir_all(world.path(folder)).unwrap();
            for file in files::list(&other.path(folder)).unwrap() {
                std::fs::copy(&file, world.path(folder).join(file.file_name().unwrap())).unwrap();
            }
        }
        world
    }
}

/// The raw sample world, generated once.
fn raw() -> &'static Path {
    static RAW: OnceLock<tempfile::TempDir> = OnceLock::new();
    let folder = RAW.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let status = command("sample").arg("--out").arg(folder.path().join("raw")).status().unwrap();
        assert!(status.success());
        folder
    });
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| folder.path().join("raw"))
}

/// A world with dataset and features, made once.
fn extracted() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| {
        let world = World::new();
        world.run("preprocess", &[]);
        world.run("extract", &[]);
        world
    })
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

const TRAINED: [&str; 4] = [
    "runs/mp4sr/pretrain.safetensors",
    "runs/mp4sr/finetune.safetensors",
    "runs/mp4sr/ranks.validation.safetensors",
    "runs/mp4sr/ranks.test.safetensors",
];

fn train_and_evaluate(world: &World, threads: &str, seed: &str) {
    for stage in ["pretrain", "finetune", "evaluate"] {
        let mut command = world.stage(stage, SHORT);
        command.args(["--set", seed]).env("RAYON_NUM_THREADS", threads);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{stage}: {}", stderr(&output));
    }
}

#[test]
fn every_pipeline_file_parses() {
    let mut count = 0;
    for path in files::list(&root().join("pipelines")).unwrap() {
        let config = Config::load(&path, &[], model_catalog());
        let (config, warnings) = config.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert!(warnings.is_empty(), "{warnings:?}");
        assert_eq!(path.file_stem().unwrap().to_str(), Some(config.dataset.name.as_str()), "named like its file");
        count += 1;
    }
    assert!(count >= 9, "only {count} pipelines");
}

#[test]
fn the_walk_ends_in_a_report_and_a_second_walk_does_nothing() {
    let world = World::after_extract(extracted());
    let popularity = [SHORT, &["--set", "model.name=popularity", "--run", "popularity"]].concat();
    let plain = [SHORT, &["--set", "pretrain.enabled=false", "--run", "mp4sr-without-pretraining"]].concat();
    for arguments in [&popularity, &plain] {
        for stage in ["pretrain", "finetune", "evaluate"] {
            world.run(stage, arguments);
        }
    }
    let beside = [SHORT, &["--set", "report.beside=[\"popularity\", \"mp4sr-without-pretraining\"]"]].concat();
    for stage in ["pretrain", "finetune", "evaluate", "recommend", "report"] {
        world.run(stage, &beside);
    }
    let page = String::from_utf8(world.bytes("runs/mp4sr/report/index.html")).unwrap();
    assert!(page.contains("popularity") && page.contains("data:image/"));
    let table = String::from_utf8(world.run("evaluate", SHORT).stdout).unwrap();
    assert!(table.contains("| mp4sr | test "), "{table}");

    let sequences = Sequences::read(&world.path("dataset/sequences.safetensors")).unwrap();
    let items = Items::read(&world.path("dataset/items.parquet")).unwrap();
    assert!(items.len() >= 1500 && sequences.user_count() >= 4000 && sequences.items.len() >= 40_000);
    for stage in ["preprocess", "extract", "pretrain", "finetune", "evaluate", "recommend", "report"] {
        let said = stderr(&world.run(stage, &beside));
        assert!(said.contains("up to date"), "{stage}: {said}");
    }
}

#[test]
fn every_planted_fault_is_counted() {
    let world = extracted();
    let json = |bytes: Vec<u8>| serde_json::from_slice::<serde_json::Value>(&bytes).unwrap();
    let faults = json(files::read(&raw().join("truth.json")).unwrap())["faults"].clone();
    let counted = json(world.bytes("dataset/report.json"));
    let pictures = json(world.bytes("features/report.json"));
    let rejected = counted["interactions"]["rejected"].as_object().unwrap();
    let rejected: u64 = rejected.values().map(|reason| reason["count"].as_u64().unwrap()).sum();
    assert_eq!(rejected, faults["cut_review_lines"]);
    assert_eq!(counted["events"]["dropped"]["repeated event"], faults["repeated_events"]);
    assert_eq!(counted["items"]["cleaned_titles"], faults["titles_with_markup"]);
    assert_eq!(counted["items"]["cleaned_texts"], faults["descriptions_with_markup"]);
    assert_eq!(counted["items"]["without_line"], faults["items_without_metadata"]);
    assert_eq!(counted["items"]["without_events"], faults["items_without_reviews"]);
    // Ten items have no line and so neither text nor image.
    let without =
        |key: &str| counted["statistics"][key].as_u64().unwrap() - faults["items_without_metadata"].as_u64().unwrap();
    assert_eq!(without("items_without_text"), faults["items_without_text"]);
    assert_eq!(without("items_without_image"), faults["items_without_image"]);
    assert_eq!(pictures["unusable"].as_array().unwrap().len() as u64, faults["images_that_do_not_decode"]);
    // Events in = events kept + events dropped.
    let dropped: u64 = counted["events"]["dropped"].as_object().unwrap().values().map(|n| n.as_u64().unwrap()).sum();
    assert_eq!(counted["events"]["read"].as_u64().unwrap(), counted["events"]["kept"].as_u64().unwrap() + dropped);
}

#[test]
fn one_seed_gives_the_same_bytes_with_any_number_of_threads_and_another_seed_others() {
    let (one, two, other) =
        (World::after_extract(extracted()), World::after_extract(extracted()), World::after_extract(extracted()));
    train_and_evaluate(&one, "1", "run.seed=7");
    train_and_evaluate(&two, "2", "run.seed=7");
    train_and_evaluate(&other, "2", "run.seed=8");
    for file in TRAINED {
        assert!(one.bytes(file) == two.bytes(file), "{file} differs between one and two threads");
        assert!(one.bytes(file) != other.bytes(file), "{file} is the same for another seed");
    }
}

/// Starts a stage and kills it after a delay, or lets it end; whether it was killed.
fn killed_after(world: &World, phase: &str, arguments: &[&str], delay: Duration) -> bool {
    let mut child = world.stage(phase, arguments).arg("--quiet").spawn().unwrap();
    let end = Instant::now() + delay;
    while Instant::now() < end {
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "{phase} failed");
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    !child.wait().unwrap().success()
}

/// Five kills a phase at random moments, each followed by a start; the state is written after every step.
#[test]
fn a_training_killed_five_times_in_each_phase_ends_with_the_same_bytes() {
    let (whole, killed) = (World::after_extract(extracted()), World::after_extract(extracted()));
    train_and_evaluate(&whole, "2", "run.seed=7");
    let arguments = [SHORT, &["--set", "run.seed=7", "--set", "run.save_seconds=0"]].concat();
    // Multiples of the golden ratio fall anywhere between 0 and 1.
    let mut draws = (1..).map(|i| (f64::from(i) * 0.618_034).fract());
    for phase in ["pretrain", "finetune"] {
        let state = killed.path(&format!("runs/mp4sr/state.{phase}.safetensors"));
        for kill in 1..=5 {
            let delay = Duration::from_secs_f64(0.3 + 0.9 * draws.next().unwrap());
            assert!(
                killed_after(&killed, phase, &arguments, delay),
                "{phase} ended before kill {kill}; it is too short"
            );
        }
        assert!(state.exists(), "{phase} left no state to go on from");
        // Another setting is refused, and the state stays.
        let refused =
            killed.stage(phase, SHORT).args(["--set", &format!("{phase}.learning_rate=0.5")]).output().unwrap();
        let said = stderr(&refused);
        assert_eq!(refused.status.code(), Some(1), "{said}");
        assert!(said.contains("state of an unfinished run with another"), "{said}");
        let output = killed.stage(phase, SHORT).args(["--set", "run.seed=7"]).output().unwrap();
        assert!(output.status.success() && stderr(&output).contains("going on after epoch"), "{}", stderr(&output));
        assert!(!state.exists(), "a finished phase leaves no state");
    }
    killed.run("evaluate", &[SHORT, &["--set", "run.seed=7"]].concat());
    for file in TRAINED {
        assert!(whole.bytes(file) == killed.bytes(file), "{file} differs after five kills");
    }
}

/// Kills at moments all over the stage, each followed by a start; what is in the cache stays and nothing in it is wrong.
#[test]
fn an_extraction_killed_many_times_ends_with_the_same_bytes() {
    let whole = extracted();
    let killed = World::new();
    killed.run("preprocess", &[]);
    let mut kills = 0;
    for moment in 0..40 {
        let delay = Duration::from_millis(40 + 35 * moment);
        if !killed_after(&killed, "extract", &[], delay) {
            break;
        }
        kills += 1;
    }
    assert!(kills >= 3, "only {kills} kills; the stage is too short");
    killed.run("extract", &[]);
    for path in files::list(&whole.path("features")).unwrap() {
        let name = path.file_name().unwrap().to_str().unwrap();
        if name.ends_with(".safetensors") || name.ends_with(".parquet") {
            let relative = format!("features/{name}");
            assert!(whole.bytes(&relative) == killed.bytes(&relative), "{name} differs after {kills} kills");
        }
    }
    let leftovers =
        |folder: &Path| files::list(folder).unwrap().iter().filter(|p| p.to_string_lossy().contains("-tmp-")).count();
    assert_eq!(leftovers(&killed.path("features")), 0);
}

/// `examples/own_features.py` with the standard settings of its documentation.
#[test]
fn features_written_by_the_python_example_train() {
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let has = Command::new(&python).args(["-c", "import safetensors.numpy, numpy"]).output();
    if !has.is_ok_and(|has| has.status.success()) {
        println!("skipped: `{python}` has no safetensors and numpy (name another one with PYTHON)");
        return;
    }
    let world = World::after_extract(extracted());
    let folder = world.path("dataset").parent().unwrap().to_owned();
    let script = root().join("examples/own_features.py");
    assert!(Command::new(&python).arg(script).arg(folder).status().unwrap().success());
    let modalities = r#"model.modalities=[{name="text"}, {name="audio", features="mine"}]"#;
    let arguments = [SHORT, &["--set", modalities]].concat();
    for phase in ["pretrain", "finetune"] {
        world.run(phase, &arguments);
    }
    let table = String::from_utf8(world.run("evaluate", &arguments).stdout).unwrap();
    assert!(table.contains("| mp4sr | test "), "{table}");
}

/// A third features file, as another program would write it, joins text and image.
#[test]
fn a_third_modality_trains_and_evaluates() {
    let world = World::after_extract(extracted());
    let items = Items::read(&world.path("dataset/items.parquet")).unwrap();
    let values: Vec<f32> = (0..5 * items.len()).map(|i| (i as f32).sin()).collect();
    let offsets = (0..=items.len() as i64).collect();
    let features = Features::from_f32(offsets, &values, 5, FeatureType::F32, items.hash()).unwrap();
    features.write(&world.path("features/sound.mine.safetensors"), "my-script", serde_json::Value::Null).unwrap();
    let modalities = r#"model.modalities=[{name="text"}, {name="image"}, {name="sound", features="mine"}]"#;
    let arguments = [SHORT, &["--set", modalities]].concat();
    for phase in ["pretrain", "finetune"] {
        world.run(phase, &arguments);
    }
    let table = String::from_utf8(world.run("evaluate", &arguments).stdout).unwrap();
    assert!(table.contains("| mp4sr | test "), "{table}");
    let gate = tensor_bytes(&world, "runs/mp4sr/finetune.safetensors", "encoder.sound.gate.weight");
    assert!(gate.iter().any(|&byte| byte != 0), "the gate of the third modality, which starts at 0, was not trained");
}

/// The bytes of one tensor of a file.
fn tensor_bytes(world: &World, relative: &str, name: &str) -> Vec<u8> {
    let bytes = world.bytes(relative);
    safetensors::SafeTensors::deserialize(&bytes).unwrap().tensor(name).unwrap().data().to_vec()
}

/// Every variant of the paper is a set of keys; each trains and evaluates.
#[test]
fn every_variant_is_a_configuration() {
    let variants: [(&str, &[&str]); 14] = [
        ("no-nip", &["pretrain.nip_weight=0"]),
        ("no-cmcl", &["pretrain.lambda=0"]),
        ("no-mixup", &["pretrain.mixup_max=0"]),
        ("no-pretraining", &["pretrain.enabled=false"]),
        ("no-projection", &["model.projection=off"]),
        ("end-to-end", &["finetune.end_to_end=true"]),
        ("shared", &["model.shared_encoder=true"]),
        ("text", &["model.logit_modalities=[\"text\"]"]),
        ("image", &["model.logit_modalities=[\"image\"]"]),
        ("layers", &["model.layers=1"]),
        ("experts", &["model.experts=1"]),
        ("rho-and-lambda", &["pretrain.rho=0.5", "pretrain.lambda=0.1"]),
        ("paper", &["run.preset=paper"]),
        ("released", &["run.preset=released"]),
    ];
    let world = World::after_extract(extracted());
    for (name, keys) in variants {
        let keys = keys.iter().flat_map(|key| ["--set", key]);
        let small =
            ["pretrain.epochs=1", "finetune.epochs=1", "model.width=16", "pretrain.batch=1024", "finetune.batch=1024"];
        let small = small.iter().flat_map(|key| ["--set", key]);
        let arguments: Vec<&str> = SHORT.iter().copied().chain(small).chain(["--run", name]).chain(keys).collect();
        for phase in ["pretrain", "finetune"] {
            world.run(phase, &arguments);
        }
        let table = String::from_utf8(world.run("evaluate", &arguments).stdout).unwrap();
        assert!(table.contains(&format!("| {name} | test ")), "{table}");
    }
}

/// A checkpoint goes through Python's safetensors and back, with a header of its own making and the pooling biases that
/// another program may store, and gives the same ranks; changed weights give others.
#[test]
fn a_checkpoint_written_by_python_is_evaluated() {
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let has = Command::new(&python).args(["-c", "import numpy, safetensors.numpy"]).output();
    if !has.is_ok_and(|output| output.status.success()) {
        println!("skipped: `{python}` has no numpy and safetensors");
        return;
    }
    let world = World::after_extract(extracted());
    train_and_evaluate(&world, "2", "run.seed=7");
    let (ranks, checkpoint) = ("runs/mp4sr/ranks.test.safetensors", "runs/mp4sr/finetune.safetensors");
    let before = tensor_bytes(&world, ranks, "rank");
    let rewrite = |change: &str| {
        let script = format!(
            r#"
import json, sys, numpy, safetensors, safetensors.numpy
path = sys.argv[1]
with safetensors.safe_open(path, "numpy") as file:
    header = json.loads(file.metadata()["mp4sr"])
    tensors = {{name: file.get_tensor(name) for name in file.keys()}}
assert tensors["layer.0.attention.query.weight"].shape == (64, 64)
tensors["encoder.text.pool.b1"] = numpy.ones(64, numpy.float32)
{change}
own = {{"format": "checkpoint", "version": 1, "stage": "my-script", "items": header["items"]}}
safetensors.numpy.save_file(tensors, path, {{"mp4sr": json.dumps(own)}})
"#
        );
        let output = Command::new(&python).args(["-c", &script]).arg(world.path(checkpoint)).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        world.run("evaluate", &[SHORT, &["--set", "run.seed=7"]].concat());
        tensor_bytes(&world, ranks, "rank")
    };
    assert_eq!(rewrite(""), before);
    assert_ne!(rewrite("tensors['id_embedding'] *= 0.0"), before);
}

#[test]
fn benchmarks_print_a_json_object_a_line() {
    let small = ["--items", "50", "--batch", "8", "--dim", "12", "--steps", "3", "--warmup", "1"];
    let runs: [(&str, &[&str]); 4] = [
        ("step", &["--stage", "pretrain", "--features", "f16"]),
        ("step", &["--stage", "finetune"]),
        ("step", &["--stage", "finetune", "--dropout", "0"]),
        ("rank", &["--items", "3000", "--users", "40", "--rounds", "1"]),
    ];
    for (what, arguments) in runs {
        let mut command = command("bench");
        command.arg(what).args(arguments).args(if what == "step" { &small[..] } else { &[] });
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        let line: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(line["bench"] == what && line["median_ms"].as_f64().unwrap() > 0.0, "{line}");
        if what == "step" {
            let losses: Vec<f64> = line["loss"].as_array().unwrap().iter().map(|loss| loss.as_f64().unwrap()).collect();
            assert!(
                losses.len() == 3 && losses[2] < losses[0],
                "Adam lowers the loss of a batch seen again: {losses:?}"
            );
        }
    }
}

#[test]
fn what_is_wrong_is_told_in_one_line_with_exit_code_1() {
    let world = World::new();
    let broken = tempfile::tempdir().unwrap();
    let raw_reviews = files::read(&raw().join("reviews.json.gz")).unwrap();
    files::write_bytes(&broken.path().join("reviews.json.gz"), &raw_reviews[..raw_reviews.len() / 2]).unwrap();
    std::fs::copy(raw().join("meta.json.gz"), broken.path().join("meta.json.gz")).unwrap();
    let broken = broken.path().to_str().unwrap();

    type Case<'a> = (&'a str, &'a [&'a str], &'a [&'a str]);
    let cases: [Case<'_>; 5] = [
        ("preprocess", &["--data", "/nowhere"], &["/nowhere/reviews.json.gz"]),
        ("preprocess", &["--data", broken], &["reviews.json.gz", "cut"]),
        (
            "preprocess",
            &["--set", "preprocess.user_cores=5"],
            &["unknown key `preprocess.user_cores`", "did you mean `user_core`?"],
        ),
        ("finetune", &["--set", "finetune.batch=0"], &["`finetune.batch` = 0", "from 1 to"]),
        ("evaluate", &[], &["sequences.safetensors"]),
    ];
    for (stage, arguments, expected) in cases {
        // `--data` may be given once; the case's own wins.
        let mut command = if arguments.first() == Some(&"--data") {
            let mut command = command(stage);
            command
                .args(["--pipeline", "pipelines/sample.toml", "--artifacts"])
                .arg(world.folder.path())
                .args(arguments);
            command
        } else {
            world.stage(stage, arguments)
        };
        let output = command.output().unwrap();
        let said = stderr(&output);
        let errors: Vec<&str> = said.lines().filter(|line| line.starts_with("error: ")).collect();
        assert_eq!((output.status.code(), errors.len()), (Some(1), 1), "{stage} {arguments:?}: {said}");
        for part in expected {
            assert!(errors[0].contains(part), "{stage}: {:?} lacks {part:?}", errors[0]);
        }
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn two_at_once_learn_of_each_other() {
    let world = World::after_extract(extracted());
    let mut first = world.stage("pretrain", SHORT).arg("--quiet").spawn().unwrap();
    let lock = world.path("runs/mp4sr/.train.lock");
    let deadline = Instant::now() + Duration::from_mins(1);
    while files::read(&lock).map_or(true, |holder| holder.is_empty()) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    let second = world.stage("pretrain", SHORT).output().unwrap();
    let pid = first.id();
    first.kill().unwrap();
    first.wait().unwrap();
    let said = stderr(&second);
    assert_eq!(second.status.code(), Some(1), "{said}");
    assert!(said.contains(&format!("in use by process {pid}")), "{said}");
    // The killed process holds nothing any more.
    world.run("pretrain", SHORT);
}
