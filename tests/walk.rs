//! The whole path from raw files to a report, run by the real programs on the sample world: complete, up to date, repeatable, resumable,
//! and with clear errors. `make test` builds the programs first.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking and says what it leaves out"
)]

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime};

use mp4sr_artifact::{FeatureType, Features, Items, Sequences, files};
use mp4sr_ops::{ComputeDevice, Precision, check_precision};
use mp4sr_pipeline::Config;
use mp4sr_run::model_catalog;
use mp4sr_tests::{Project, command, copy_folder, root, stderr_of};

/// Settings that shorten training.
const SHORT: &[&str] = &[
    "--set",
    "pretrain.epochs=2",
    "--set",
    "finetune.epochs=2",
    "--set",
    "model.mp4sr.experts=2",
    "--set",
    "model.transformer.width=32",
    "--set",
    "model.transformer.feed_forward=32",
];

/// A project of the sample pipeline, over raw files that all tests share.
fn sample() -> Project {
    Project::of_pipeline("sample", &raw())
}

/// A project with the dataset and the features of the whole sample world.
fn after_extract() -> Project {
    copy_of("whole")
}

/// A project with the dataset and the features of about a quarter of the users, for tests that train several times.
fn after_extract_of_few_users() -> Project {
    copy_of("few-users")
}

fn copy_of(made: &str) -> Project {
    let (made, project) = (Project::of_pipeline_in(&shared().join(made), "sample", &raw()), sample());
    std::fs::create_dir_all(project.path("sample")).unwrap();
    for folder in ["sample/dataset", "sample/features"] {
        copy_folder(&made.path(folder), &project.path(folder));
    }
    project
}

/// The raw sample world, which tests of other crates read, too.
fn raw() -> PathBuf {
    static RAW: OnceLock<PathBuf> = OnceLock::new();
    let made = RAW.get_or_init(|| {
        mp4sr_tests::shared(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("sample"), |folder| {
            assert!(command("sample").arg("--out").arg(folder.join("raw")).status().unwrap().success());
        })
    });
    made.join("raw")
}

/// The project with the dataset and the features of the whole sample world, which is created once.
fn extracted() -> Project {
    Project::of_pipeline_in(&shared().join("whole"), "sample", &raw())
}

fn shared() -> &'static Path {
    static SHARED: OnceLock<PathBuf> = OnceLock::new();
    SHARED.get_or_init(|| {
        mp4sr_tests::shared(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("walk"), |folder| {
            let whole = Project::of_pipeline_in(&folder.join("whole"), "sample", &raw());
            let few_users = Project::of_pipeline_in(&folder.join("few-users"), "sample", &raw());
            whole.run("preprocess", &[]);
            whole.run("extract", &[]);
            std::fs::create_dir_all(few_users.path("")).unwrap();
            copy_folder(&whole.path(".cache"), &few_users.path(".cache"));
            few_users.run("preprocess", &["--set", "preprocess.where=reviewerID < 'AA'"]);
            few_users.run("extract", &[]);
            let sequences = Sequences::read(&few_users.path("sample/dataset/sequences.safetensors")).unwrap();
            assert!(sequences.user_count() > 800, "{} users are too few for several threads", sequences.user_count());
        })
    })
}

const TRAINED: [&str; 4] = [
    "sample/runs/mp4sr/pretrain.safetensors",
    "sample/runs/mp4sr/finetune.safetensors",
    "sample/runs/mp4sr/ranks.validation.safetensors",
    "sample/runs/mp4sr/ranks.test.safetensors",
];

fn train_and_evaluate(world: &Project, threads: &str, keys: &[&str]) {
    for stage in ["pretrain", "finetune", "evaluate"] {
        let mut command = world.command(stage, SHORT);
        command.args(keys.iter().flat_map(|key| ["--set", key])).env("RAYON_NUM_THREADS", threads);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{stage}: {}", stderr_of(&output));
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
    let world = after_extract();
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
    let page = String::from_utf8(world.bytes("sample/runs/mp4sr/report/index.html")).unwrap();
    assert!(page.contains("popularity") && page.contains("data:image/"));
    let table = world.run("evaluate", SHORT);
    assert!(table.contains("| mp4sr | test "), "{table}");

    let sequences = Sequences::read(&world.path("sample/dataset/sequences.safetensors")).unwrap();
    let items = Items::read(&world.path("sample/dataset/items.parquet")).unwrap();
    assert!(items.len() >= 1500 && sequences.user_count() >= 4000 && sequences.items.len() >= 40_000);
    for stage in ["preprocess", "extract", "pretrain", "finetune", "evaluate", "recommend", "report"] {
        let message = world.run_stderr(stage, &beside);
        assert!(message.contains("up to date"), "{stage}: {message}");
    }
}

#[test]
fn every_planted_fault_is_counted() {
    let world = extracted();
    let json = |bytes: Vec<u8>| serde_json::from_slice::<serde_json::Value>(&bytes).unwrap();
    let faults = json(files::read(&raw().join("truth.json")).unwrap())["faults"].clone();
    let counted = json(world.bytes("sample/dataset/report.json"));
    let image_report = json(world.bytes("sample/features/report.json"));
    let rejected = counted["interactions"]["rejected"].as_object().unwrap();
    let rejected: u64 = rejected.values().map(|reason| reason["count"].as_u64().unwrap()).sum();
    assert_eq!(rejected, faults["cut_review_lines"]);
    assert_eq!(counted["events"]["dropped"]["repeated event"], faults["repeated_events"]);
    assert_eq!(counted["items"]["cleaned_titles"], faults["titles_with_markup"]);
    assert_eq!(counted["items"]["cleaned_texts"], faults["descriptions_with_markup"]);
    assert_eq!(counted["items"]["without_line"], faults["items_without_metadata"]);
    assert_eq!(counted["items"]["without_events"], faults["items_without_reviews"]);
    // The items without a metadata line have neither text nor image.
    let without =
        |key: &str| counted["statistics"][key].as_u64().unwrap() - faults["items_without_metadata"].as_u64().unwrap();
    assert_eq!(without("items_without_text"), faults["items_without_text"]);
    assert_eq!(without("items_without_image"), faults["items_without_image"]);
    assert_eq!(image_report["unusable"].as_array().unwrap().len() as u64, faults["images_that_do_not_decode"]);
    // Events that were read = events that were kept + events that were dropped.
    let dropped: u64 = counted["events"]["dropped"].as_object().unwrap().values().map(|n| n.as_u64().unwrap()).sum();
    assert_eq!(counted["events"]["read"].as_u64().unwrap(), counted["events"]["kept"].as_u64().unwrap() + dropped);
}

#[test]
fn one_seed_gives_the_same_bytes_with_any_number_of_threads_and_another_seed_others() {
    let (one, two, other) = (after_extract_of_few_users(), after_extract_of_few_users(), after_extract_of_few_users());
    train_and_evaluate(&one, "1", &["run.seed=7"]);
    train_and_evaluate(&two, "2", &["run.seed=7"]);
    train_and_evaluate(&other, "2", &["run.seed=8"]);
    for file in TRAINED {
        assert!(one.bytes(file) == two.bytes(file), "{file} differs between one and two threads");
        assert!(one.bytes(file) != other.bytes(file), "{file} is the same for another seed");
    }
}

/// Starts a command and kills it as soon as `is_due` is true. Returns whether it was still running then.
fn killed_when(mut command: Command, mut is_due: impl FnMut() -> bool) -> bool {
    let mut child = command.arg("--quiet").spawn().unwrap();
    while !is_due() {
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "{command:?} failed");
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    !child.wait().unwrap().success()
}

/// Well-spread shares between 0 and 1: the fractional parts of multiples of the golden ratio.
fn shares() -> impl Iterator<Item = f64> {
    (1..).map(|i| (f64::from(i) * 0.618_034).fract())
}

/// The values that distinguish a file from an earlier one of the same name.
fn version(path: &Path) -> Option<(u64, SystemTime)> {
    let file = std::fs::metadata(path).ok()?;
    Some((file.ino(), file.modified().ok()?))
}

/// Each phase is killed five times and started again. The state is written after every step, and a kill follows a number of steps, however
/// long they take.
#[test]
fn a_training_killed_five_times_in_each_phase_ends_with_the_same_bytes() {
    let (whole, killed) = (after_extract_of_few_users(), after_extract_of_few_users());
    train_and_evaluate(&whole, "2", &["run.seed=7"]);
    let arguments = [SHORT, &["--set", "run.seed=7", "--set", "run.save_seconds=0"]].concat();
    let mut shares = shares();
    for phase in ["pretrain", "finetune"] {
        let state = killed.path(&format!("sample/runs/mp4sr/state.{phase}.safetensors"));
        for kill in 1..=5 {
            let (mut seen, mut steps) = (version(&state), 1 + (6.0 * shares.next().unwrap()) as usize);
            let after_steps = || {
                let now = version(&state);
                steps -= usize::from(now.is_some() && std::mem::replace(&mut seen, now) != now);
                steps == 0
            };
            assert!(
                killed_when(killed.command(phase, &arguments), after_steps),
                "{phase} ended before kill {kill}; it is too short"
            );
        }
        // Another setting is rejected, and the state is kept.
        let refused = killed.run_failing(phase, &[SHORT, &["--set", &format!("{phase}.learning_rate=0.5")]].concat());
        assert!(refused.contains("state of an unfinished run with another"), "{refused}");
        let resumed = killed.run_stderr(phase, &[SHORT, &["--set", "run.seed=7"]].concat());
        assert!(resumed.contains("resuming after epoch"), "{resumed}");
        assert!(!state.exists(), "a finished phase leaves no state");
    }
    killed.run("evaluate", &[SHORT, &["--set", "run.seed=7"]].concat());
    for file in TRAINED {
        assert!(whole.bytes(file) == killed.bytes(file), "{file} differs after five kills");
    }
}

/// The stage is killed at many moments and started again each time; the cache keeps what was computed, and nothing in it is wrong. The
/// moments are shares of the time that the stage takes on this machine. If it ends before it is killed, it starts from the beginning.
#[test]
fn an_extraction_killed_many_times_ends_with_the_same_bytes() {
    // A quarter of the items.
    let few_items = ["--set", "preprocess.where=asin < 'B09'", "--set", "preprocess.user_core=1"];
    let (whole, killed) = (sample(), sample());
    whole.run("preprocess", &few_items);
    killed.run("preprocess", &few_items);
    let restart = || {
        files::remove_dir_if_present(&killed.path("sample/features")).unwrap();
        files::remove_dir_if_present(&killed.path(".cache")).unwrap();
    };
    let started = Instant::now();
    whole.run("extract", &[]);
    let takes = started.elapsed();
    let mut kills = 0;
    for share in shares().take(200) {
        let started = Instant::now();
        if killed_when(killed.command("extract", &[]), || started.elapsed() >= takes.mul_f64(share)) {
            kills += 1;
        } else {
            restart();
        }
        if kills == 12 {
            break;
        }
    }
    assert_eq!(kills, 12, "the stage cannot be killed before its end");
    killed.run("extract", &[]);
    for path in files::list(&whole.path("sample/features")).unwrap() {
        let name = path.file_name().unwrap().to_str().unwrap();
        if name.ends_with(".safetensors") || name.ends_with(".parquet") {
            let relative = format!("sample/features/{name}");
            assert!(whole.bytes(&relative) == killed.bytes(&relative), "{name} differs after {kills} kills");
        }
    }
    let leftovers =
        |folder: &Path| files::list(folder).unwrap().iter().filter(|p| p.to_string_lossy().contains("-tmp-")).count();
    assert_eq!(leftovers(&killed.path("sample/features")), 0);
}

/// Runs Python examples that write features, and trains with the settings that their documentation gives.
#[test]
fn features_written_by_the_python_examples_train() {
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let examples: [(&str, &[&str], &str, &str); 4] = [
        (
            "own_features.py",
            &[],
            "safetensors.numpy, numpy",
            r#"model.modalities=[{name="text"}, {name="audio", features="mine"}]"#,
        ),
        (
            "tfidf_features.py",
            &[],
            "safetensors.numpy, numpy, pyarrow, sklearn",
            r#"model.modalities=[{name="text", features="tfidf"}, {name="image"}]"#,
        ),
        (
            "control_features.py",
            &["text.tiny-sentence", "random"],
            "safetensors.numpy, numpy",
            r#"model.modalities=[{name="text", features="random"}, {name="image"}]"#,
        ),
        (
            "control_features.py",
            &["text.tiny-sentence", "whitened"],
            "safetensors.numpy, numpy",
            r#"model.modalities=[{name="text", features="whitened"}, {name="image"}]"#,
        ),
    ];
    for (script, more, needs, modalities) in examples {
        let has = Command::new(&python).args(["-c", &format!("import {needs}")]).output();
        if !has.is_ok_and(|has| has.status.success()) {
            println!("skipped: `{python}` lacks one of {needs} (name another one with PYTHON)");
            continue;
        }
        let world = after_extract_of_few_users();
        let folder = world.path("sample/dataset").parent().unwrap().to_owned();
        let path = root().join("examples").join(script);
        assert!(Command::new(&python).arg(path).arg(folder).args(more).status().unwrap().success(), "{script}");
        let arguments = [SHORT, &["--set", modalities]].concat();
        for phase in ["pretrain", "finetune"] {
            world.run(phase, &arguments);
        }
        let table = world.run("evaluate", &arguments);
        assert!(table.contains("| mp4sr | test "), "{script}: {table}");
    }
}

/// A third feature file, as another program would write it, is added to text and image.
#[test]
fn a_third_modality_trains_and_evaluates() {
    let world = after_extract_of_few_users();
    let items = Items::read(&world.path("sample/dataset/items.parquet")).unwrap();
    let values: Vec<f32> = (0..5 * items.len()).map(|i| (i as f32).sin()).collect();
    let offsets = (0..=items.len() as i64).collect();
    let features = Features::from_f32(offsets, &values, 5, FeatureType::F32, items.hash()).unwrap();
    features
        .write(&world.path("sample/features/sound.mine.safetensors"), "my-script", serde_json::Value::Null)
        .unwrap();
    let modalities = r#"model.modalities=[{name="text"}, {name="image"}, {name="sound", features="mine"}]"#;
    let arguments = [SHORT, &["--set", modalities]].concat();
    for phase in ["pretrain", "finetune"] {
        world.run(phase, &arguments);
    }
    let table = world.run("evaluate", &arguments);
    assert!(table.contains("| mp4sr | test "), "{table}");
    let gate = tensor_bytes(&world, "sample/runs/mp4sr/finetune.safetensors", "encoder.sound.gate.weight");
    assert!(gate.iter().any(|&byte| byte != 0), "the gate of the third modality, which starts at 0, was not trained");
}

/// The bytes of one tensor of a file.
fn tensor_bytes(world: &Project, relative: &str, name: &str) -> Vec<u8> {
    let bytes = world.bytes(relative);
    safetensors::SafeTensors::deserialize(&bytes).unwrap().tensor(name).unwrap().data().to_vec()
}

/// Matrix products in bf16, if the processor supports it, and a softmax over sampled candidates.
#[test]
fn bf16_and_sampled_candidates_give_the_same_bytes_with_any_number_of_threads() {
    let mut keys = vec!["finetune.candidates=50"];
    match check_precision(ComputeDevice::Cpu, Precision::Bf16) {
        Ok(()) => keys.push("train.precision=bf16"),
        Err(reason) => println!("bf16 is not tested: {reason}"),
    }
    let (one, two, plain) = (after_extract_of_few_users(), after_extract_of_few_users(), after_extract_of_few_users());
    train_and_evaluate(&one, "1", &keys);
    train_and_evaluate(&two, "2", &keys);
    train_and_evaluate(&plain, "2", &keys[..1]);
    for file in TRAINED {
        assert!(one.bytes(file) == two.bytes(file), "{file} differs between one and two threads");
        let in_bf16 = String::from_utf8_lossy(&one.bytes(file)).contains("\\\"precision\\\":\\\"bf16\\\"");
        assert_eq!(in_bf16, keys.len() > 1, "{file} has another precision in its header");
        assert_eq!(one.bytes(file) != plain.bytes(file), keys.len() > 1, "{file}");
    }
    let message = stderr_of(&one.command("finetune", &["--set", "train.precision=tf32"]).output().unwrap());
    assert!(message.contains("`train.precision` = \"tf32\" on the CPU is not allowed"), "{message}");
}

/// Every variant of the paper is a set of keys. Each one trains and evaluates.
#[test]
fn every_variant_is_a_configuration() {
    let variants: [(&str, &[&str]); 14] = [
        ("no-nip", &["model.mp4sr.nip_weight=0"]),
        ("no-cmcl", &["model.mp4sr.lambda=0"]),
        ("no-mixup", &["model.mp4sr.mixup_max=0"]),
        ("no-pretraining", &["pretrain.enabled=false"]),
        ("no-projection", &["model.mp4sr.projection=off"]),
        ("end-to-end", &["model.mp4sr.end_to_end=true"]),
        ("shared", &["model.mp4sr.shared_encoder=true"]),
        ("text", &["model.mp4sr.logit_modalities=[\"text\"]"]),
        ("image", &["model.mp4sr.logit_modalities=[\"image\"]"]),
        ("layers", &["model.transformer.layers=1"]),
        ("experts", &["model.mp4sr.experts=1"]),
        ("rho-and-lambda", &["model.mp4sr.rho=0.5", "model.mp4sr.lambda=0.1"]),
        ("paper", &["run.preset=paper"]),
        ("released", &["run.preset=released"]),
    ];
    let world = after_extract_of_few_users();
    for (name, keys) in variants {
        let keys = keys.iter().flat_map(|key| ["--set", key]);
        let small = [
            "pretrain.epochs=1",
            "finetune.epochs=1",
            "model.transformer.width=16",
            "pretrain.batch=1024",
            "finetune.batch=1024",
        ];
        let small = small.iter().flat_map(|key| ["--set", key]);
        let arguments: Vec<&str> = SHORT.iter().copied().chain(small).chain(["--run", name]).chain(keys).collect();
        for phase in ["pretrain", "finetune"] {
            world.run(phase, &arguments);
        }
        let table = world.run("evaluate", &arguments);
        assert!(table.contains(&format!("| {name} | test ")), "{table}");
    }
}

/// A checkpoint that Python's safetensors rewrote, with another header and the pooling biases that other programs may store, gives the same
/// ranks; changed weights give others.
#[test]
fn a_checkpoint_written_by_python_is_evaluated() {
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let has = Command::new(&python).args(["-c", "import numpy, safetensors.numpy"]).output();
    if !has.is_ok_and(|output| output.status.success()) {
        println!("skipped: `{python}` has no numpy and safetensors");
        return;
    }
    let world = after_extract_of_few_users();
    train_and_evaluate(&world, "2", &["run.seed=7"]);
    let (ranks, checkpoint) = ("sample/runs/mp4sr/ranks.test.safetensors", "sample/runs/mp4sr/finetune.safetensors");
    let before = tensor_bytes(&world, ranks, "rank");
    let rewrite = |change: &str| {
        let script = format!(
            r#"
import json, sys, numpy, safetensors, safetensors.numpy
path = sys.argv[1]
with safetensors.safe_open(path, "numpy") as file:
    header = json.loads(file.metadata()["mp4sr"])
    tensors = {{name: file.get_tensor(name) for name in file.keys()}}
assert tensors["layer.0.attention.query.weight"].shape == (32, 32)
tensors["encoder.text.pool.b1"] = numpy.ones(32, numpy.float32)
{change}
own = {{"format": "checkpoint", "version": 1, "stage": "my-script", "items": header["items"]}}
safetensors.numpy.save_file(tensors, path, {{"mp4sr": json.dumps(own)}})
"#
        );
        let output = Command::new(&python).args(["-c", &script]).arg(world.path(checkpoint)).output().unwrap();
        assert!(output.status.success(), "{}", stderr_of(&output));
        world.run("evaluate", &[SHORT, &["--set", "run.seed=7"]].concat());
        tensor_bytes(&world, ranks, "rank")
    };
    assert_eq!(rewrite(""), before);
    assert_ne!(rewrite("tensors['id_embedding'] *= 0.0"), before);
}

#[test]
fn benchmarks_print_a_json_object_per_line() {
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
        assert!(output.status.success(), "{}", stderr_of(&output));
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
fn errors_are_reported_in_one_line_with_exit_code_1() {
    let world = sample();
    let broken = tempfile::tempdir().unwrap();
    let raw_reviews = files::read(&raw().join("reviews.json.gz")).unwrap();
    files::write_bytes(&broken.path().join("reviews.json.gz"), &raw_reviews[..raw_reviews.len() / 2]).unwrap();
    std::fs::copy(raw().join("meta.json.gz"), broken.path().join("meta.json.gz")).unwrap();
    let broken = broken.path().to_str().unwrap();

    let cases: [(&str, &[&str], &[&str]); 5] = [
        ("preprocess", &["--data", "/nowhere"], &["/nowhere/reviews.json.gz"]),
        ("preprocess", &["--data", broken], &["reviews.json.gz", "truncated"]),
        (
            "preprocess",
            &["--set", "preprocess.user_cores=5"],
            &["unknown key `preprocess.user_cores`", "did you mean `user_core`?"],
        ),
        ("finetune", &["--set", "finetune.batch=0"], &["`finetune.batch` = 0", "from 1 to"]),
        ("evaluate", &[], &["sequences.safetensors"]),
    ];
    for (stage, arguments, expected) in cases {
        let error = world.run_failing(stage, arguments);
        for part in expected {
            assert!(error.contains(part), "{stage}: {error:?} lacks {part:?}");
        }
    }
}

/// Sends a signal to a process that this test started.
fn signal(name: &str, process: u32) {
    assert!(Command::new("kill").args([name, &process.to_string()]).status().unwrap().success());
}

#[test]
fn concurrent_runs_notice_each_other() {
    let world = after_extract_of_few_users();
    let mut first = world.command("pretrain", SHORT).arg("--quiet").spawn().unwrap();
    let lock = world.path("sample/runs/mp4sr/.train.lock");
    while files::read(&lock).map_or(true, |holder| holder.is_empty()) {
        assert!(first.try_wait().unwrap().is_none(), "the first ended without a lock");
        std::thread::sleep(Duration::from_millis(1));
    }
    // The process keeps the lock while the second one starts.
    signal("-STOP", first.id());
    let refused = world.run_failing("pretrain", SHORT);
    first.kill().unwrap();
    first.wait().unwrap();
    assert!(refused.contains(&format!("in use by process {}", first.id())), "{refused}");
    // The killed process no longer holds the lock.
    world.run("pretrain", SHORT);
}
