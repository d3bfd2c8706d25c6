//! Weights, ranks and lists record what they were computed with, and every reader checks it. A setting that does not affect the weights is
//! not an error.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fmt::Write as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use mp4sr_artifact::{FeatureType, Features, Items, Layout, Sequences, Table, TensorFile, files};
use mp4sr_protocol::{Split, StoredRanks};
use mp4sr_tests::{Project, root, stderr_of};

/// Trains and ranks the run `name` of a world, with further arguments.
fn trained(world: &Project, name: &str, words: &[&str]) {
    let words = [&["--run", name][..], words].concat();
    for stage in ["preprocess", "extract", "pretrain", "finetune", "evaluate"] {
        world.run(stage, &words);
    }
}

/// Writes the built-in encoder with another maximum number of tokens, whose vectors have the same width, and returns its setting.
fn other_encoder(world: &Project, folder: &str) -> String {
    let folder = world.folder().join(folder);
    std::fs::create_dir_all(folder.join("1_Pooling")).unwrap();
    for file in ["config.json", "model.safetensors", "tokenizer.json", "modules.json", "1_Pooling/config.json"] {
        std::fs::copy(root().join("data/encoders/tiny-sentence").join(file), folder.join(file)).unwrap();
    }
    std::fs::write(folder.join("sentence_bert_config.json"), "{\"max_seq_length\": 5, \"do_lower_case\": false}")
        .unwrap();
    format!("extract.text.model={:?}", folder.to_str().unwrap())
}

fn settings_of_ranks(world: &Project, run: &str) -> serde_json::Value {
    let path = world.path(&format!("a/runs/{run}/ranks.test.safetensors"));
    TensorFile::read(&path, "ranks", 2, "").unwrap().header().settings["config"].clone()
}

#[test]
fn weights_are_used_under_the_settings_of_their_training_or_not_at_all() {
    let world = Project::small();
    trained(&world, "mp4sr", &[]);
    for (stage, setting) in [("evaluate", "model.mp4sr.logits=\"dot\""), ("recommend", "model.transformer.layers=1")] {
        let refused = world.run_failing(stage, &["--set", setting]);
        let key = setting.split('=').next().unwrap();
        assert!(refused.contains("its weights were trained with") && refused.contains(key), "{refused}");
        assert!(refused.contains("run `mp4sr train finetune`"), "{refused}");
    }
    // Settings that only training reads do not affect trained weights: a difference is reported, and the outputs record the settings of the
    // weights.
    let other = ["--set", "finetune.learning_rate=0.5", "--set", "evaluate.seen_items=\"remove\""];
    let reported = world.run_stderr("evaluate", &other);
    assert!(
        reported.contains("warning: the weights were trained with `finetune.learning_rate` = 0.001, not 0.5"),
        "{reported}"
    );
    let settings = settings_of_ranks(&world, "mp4sr");
    assert_eq!(settings["finetune"]["learning_rate"], 0.001);
    assert_eq!(settings["evaluate"]["seen_items"], "remove", "evaluation's own settings are the command's");
    world.run("recommend", &other);
    let lists = Table::read(&world.path("a/runs/mp4sr/recommendations.parquet"), "").unwrap();
    assert_eq!(lists.source().unwrap()["config"]["finetune"]["learning_rate"], 0.001);
    // Lists of replaced weights are not shown together with the new ones.
    world.run("finetune", &["--set", "finetune.epochs=1"]);
    world.run("evaluate", &["--set", "finetune.epochs=1"]);
    let stale = world.run_failing("report", &["--set", "finetune.epochs=1"]);
    assert!(stale.contains("recommendations.parquet") && stale.contains("run `mp4sr recommend` again"), "{stale}");
}

#[test]
fn settings_with_which_existing_data_and_weights_were_not_made_are_reported_and_not_recorded() {
    let world = Project::small();
    world.run("run", &[]);
    let other = ["--set", "preprocess.user_core=9", "--set", "extract.storage=f32", "--set", "pretrain.epochs=7"];
    let expected = [
        "warning: the dataset was made with `preprocess.user_core` =",
        "warning: the features of `text` were computed with `extract.storage` = \"f16\", not \"f32\"",
        "warning: the weights were trained with `pretrain.epochs` =",
    ];
    // Stages that are up to date report them, too.
    for stage in ["evaluate", "recommend", "report"] {
        let reported = world.run_stderr(stage, &other);
        assert!(reported.contains("up to date"), "{stage}: {reported}");
        for warning in expected {
            assert!(reported.contains(warning), "{stage}, {warning}: {reported}");
        }
    }
    std::fs::remove_file(world.path("a/runs/mp4sr/ranks.test.safetensors")).unwrap();
    world.run("evaluate", &other);
    let reported = world.run_stderr("finetune", &[&other[..], &["--set", "finetune.epochs=2"]].concat());
    assert!(reported.contains(expected[0]) && reported.contains(expected[1]), "{reported}");
    let weights = TensorFile::read(&world.path("a/runs/mp4sr/finetune.safetensors"), "checkpoint", 1, "").unwrap();
    for settings in [&settings_of_ranks(&world, "mp4sr"), &weights.header().settings["config"]] {
        assert_ne!(settings["preprocess"]["user_core"], 9);
        assert_eq!(settings["extract"]["storage"], "f16");
    }
    // With the settings of the data and the weights, nothing is reported.
    let quiet = world.run_stderr("run", &["--set", "finetune.epochs=2"]);
    assert!(!quiet.contains("warning: the"), "{quiet}");
}

#[test]
fn pretrained_weights_of_another_encoder_or_reading_are_refused() {
    let world = Project::small();
    trained(&world, "source", &[]);
    let model = other_encoder(&world, "other");
    let from = ["--set", "pretrain.from=a/source", "--run", "target"];
    let other = [&from[..], &["--set", &model]].concat();
    world.run("extract", &other);
    let expect_refused = |flags: &[&str], reason: &str| {
        let planned = world.output("finetune", &[flags, &["--dry-run"]].concat());
        assert_eq!(planned.status.code(), Some(1));
        for refused in [world.run_failing("finetune", flags), stderr_of(&planned)] {
            assert!(refused.contains(reason), "{refused}");
        }
    };
    expect_refused(&other, "from a different encoder");
    let other_rows = [&from[..], &["--set", "model.mp4sr.pooling_rows=\"unmasked\""]].concat();
    expect_refused(&other_rows, "`model.mp4sr.pooling_rows` = \"masked\"");
    // Files of other programs do not name their encoders.
    let items = Items::read(&world.path("a/dataset/items.parquet")).unwrap();
    let (count, width) = (items.len() as u32, 96);
    let values: Vec<f32> = (0..count * width).map(|at| (at % 7) as f32).collect();
    let own =
        Features::from_f32((0..=i64::from(count)).collect(), &values, width as usize, FeatureType::F32, items.hash())
            .unwrap();
    own.write(&world.path("a/features/text.own.safetensors"), "test", serde_json::Value::Null).unwrap();
    let own = ["--set", "model.modalities=[{name=\"text\",features=\"own\"},{name=\"image\"}]"];
    expect_refused(
        &[&from[..], &own].concat(),
        "other features of `text` (those of `[extract]`) than the pipeline names (`own`",
    );
    // Pre-training with other settings than the pipeline's is reported and recorded.
    let faster = [&from[..], &["--set", "pretrain.learning_rate=0.3"]].concat();
    let reported = world.run_stderr("finetune", &faster);
    assert!(reported.contains("trained with `pretrain.learning_rate` = 0.001, not 0.3"), "{reported}");
    world.run("evaluate", &faster);
    assert_eq!(settings_of_ranks(&world, "target")["pretrain"]["learning_rate"], 0.001);
}

/// Other settings are refused before anything of the finished run changes.
#[test]
fn a_refused_command_leaves_a_finished_run_finished() {
    let world = Project::small();
    world.run("run", &[]);
    let config = world.text("a/runs/mp4sr/config.toml");
    for stage in ["finetune", "evaluate", "recommend"] {
        world.run_failing(stage, &["--set", "model.transformer.width=32"]);
    }
    assert_eq!(world.text("a/runs/mp4sr/config.toml"), config);
    assert_eq!(stderr_of(&world.output("run", &[])).matches("up to date").count(), 7);
}

/// The record of a release that does not know a key lacks it.
#[test]
fn a_key_with_its_default_makes_no_stage_of_an_earlier_release_stale() {
    let world = Project::small();
    world.run("run", &["--until", "report"]);
    for (folder, stage, section, key) in [
        ("a/dataset", "preprocess", "preprocess", "max_bad_share"),
        ("a/features", "extract", "extract", "precision"),
        ("a/runs/mp4sr", "pretrain", "pretrain", "clip_norm"),
        ("a/runs/mp4sr", "finetune", "finetune", "clip_norm"),
        ("a/runs/mp4sr", "evaluate", "evaluate", "seen_items"),
        ("a/runs/mp4sr", "recommend", "recommend", "before_test_item"),
        ("a/runs/mp4sr/report", "report", "", "metrics"),
    ] {
        let record = world.path(&format!("{folder}/{stage}.manifest.json"));
        let mut manifest: serde_json::Value = serde_json::from_slice(&files::read(&record).unwrap()).unwrap();
        let settings = &mut manifest["settings"];
        let keys = if section.is_empty() { settings } else { &mut settings[section] };
        assert!(keys.as_object_mut().unwrap().remove(key).is_some(), "{stage}");
        files::write_json(&record, &manifest).unwrap();
        let reported = stderr_of(&world.output(stage, &[]));
        assert!(reported.contains("up to date"), "{reported}");
    }
}

#[test]
fn incomparable_runs_are_refused_or_marked() {
    let world = Project::small();
    let sasrec = ["--set", "model.name=sasrec"];
    trained(&world, "a", &sasrec);
    trained(&world, "b", &[&sasrec[..], &["--set", "finetune.learning_rate=0.01", "--set", "run.seed=7"]].concat());
    trained(&world, "twin", &sasrec);
    let refused = |words: &[&str]| world.run_failing("compare", words);
    let other = refused(&["x=a,b"]);
    assert!(
        other.contains(
            "its `finetune.learning_rate` is 0.01, but the run `a`, which should differ only by its seed, has 0.001"
        ),
        "{other}"
    );
    // What is only logged may differ.
    trained(
        &world,
        "logged",
        &[&sasrec[..], &["--set", "finetune.log_test_loss=true", "--set", "run.seed=8"]].concat(),
    );
    world.run("compare", &["x=a,logged"]);
    let twice = refused(&["x=a,twin"]);
    assert!(twice.contains("it has the same seed as the run `a`, and each seed counts only once"), "{twice}");
    world.run("evaluate", &[&sasrec[..], &["--run", "twin", "--set", "evaluate.seen_items=\"remove\""]].concat());
    let beside = world.run("compare", &["a", "twin"]);
    assert!(beside.contains("The candidates differ") && beside.contains("left out for twin"), "{beside}");
    assert!(!world.run("compare", &["a", "b"]).contains("candidates differ"));
    // The features change after the ranks were stored.
    trained(&world, "mp4sr", &[]);
    let features = world.path("a/features/text.tiny-sentence.safetensors");
    let mut bytes = std::fs::read(&features).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&features, bytes).unwrap();
    let changed = refused(&["mp4sr"]);
    assert!(changed.contains("the features of text have changed since"), "{changed}");
}

#[test]
fn only_users_that_all_runs_rank_are_compared() {
    let world = Project::small();
    for run in ["a", "b"] {
        world.run("run", &["--until", "evaluate", "--run", run, "--set", "model.name=popularity"]);
    }
    let sequences = Sequences::read(&world.path("a/dataset/sequences.safetensors")).unwrap();
    let users = sequences.user_count();
    // Removes the ranks of every second user of a run, as if its model could not rank for them.
    let remove = |run: &str, remainder: usize| {
        let layout = Layout::new(&world.path(""), "a", run);
        let path = layout.ranks("test");
        let mut stored = StoredRanks::read(&layout, &sequences, Split::Test, None).unwrap();
        stored.ranks.iter_mut().skip(remainder).step_by(2).for_each(|rank| *rank = 0);
        let inputs = TensorFile::read(&path, "ranks", 2, "").unwrap().header().inputs.clone();
        stored.write(&path, &sequences.item_hash, inputs).unwrap();
    };
    remove("a", 0);
    let half = users / 2;
    let text = world.run("compare", &["a", "b"]);
    assert!(text.contains(&format!("Test set, {half} users; {half} users that only some")), "{text}");
    let csv = stderr_of(&world.output("compare", &["a", "b", "--csv"]));
    assert!(csv.contains(&format!("compare: warning: {half} users that only some of the runs rank")), "{csv}");
    remove("b", 1);
    let refused = world.run_failing("compare", &["a", "b"]);
    assert!(refused.contains("no user has a rank in all of these runs"), "{refused}");
}

#[test]
fn a_log_of_another_training_is_not_shown() {
    let world = Project::small();
    trained(&world, "a", &["--set", "finetune.epochs=3", "--set", "run.seed=5"]);
    trained(&world, "mp4sr", &[]);
    world.run("recommend", &[]);
    world.run("report", &[]);
    std::fs::copy(world.path("a/runs/a/metrics.jsonl"), world.path("a/runs/mp4sr/metrics.jsonl")).unwrap();
    let refused = world.run_failing("report", &[]);
    assert!(refused.contains("metrics.jsonl") && refused.contains("of another training"), "{refused}");
    std::fs::remove_file(world.path("a/runs/mp4sr/metrics.jsonl")).unwrap();
    let reported = world.run_stderr("report", &[]);
    assert!(reported.contains("metrics.jsonl` is missing, so the run has no training curves"), "{reported}");
}

/// The paths of images are relative to the data folder, and existing features are not replaced by empty ones.
#[test]
fn images_are_found_from_any_working_directory_or_their_features_are_kept() {
    let world = Project::small();
    let folder = world.folder().to_str().unwrap().to_owned();
    let run = |stage: &str, at: &str, data: &str| {
        let (pipeline, artifacts) = (format!("{folder}/a.toml"), format!("{folder}/artifacts"));
        let mut command = mp4sr_tests::command(stage);
        command.args(["--pipeline", &pipeline, "--artifacts", &artifacts, "--data", data]).current_dir(at);
        command.output().unwrap()
    };
    for stage in ["preprocess", "extract"] {
        assert!(run(stage, &folder, ".").status.success());
    }
    let items = mp4sr_artifact::Items::read(&world.path("a/dataset/items.parquet")).unwrap();
    assert!(items.images.iter().flatten().all(|name| name == "one.png"));
    let features = "a/features/image.tiny-clip-15-words-tiny-sentence.safetensors";
    let (whole, table) = (world.bytes(features), world.bytes("a/dataset/items.parquet"));
    for stage in ["preprocess", "extract"] {
        let output = run(stage, "/", &folder);
        assert!(output.status.success(), "{}", stderr_of(&output));
    }
    assert!(world.bytes(features) == whole && world.bytes("a/dataset/items.parquet") == table);
    let elsewhere = tempfile::tempdir().unwrap();
    let output = run("extract", "/", elsewhere.path().to_str().unwrap());
    assert_eq!(output.status.code(), Some(1), "{}", stderr_of(&output));
    assert!(
        stderr_of(&output).contains("would have none now") && world.bytes(features) == whole,
        "{}",
        stderr_of(&output)
    );
}

/// The share of lists of length K that contain the target equals R@K, whatever the candidates are and however many scores are tied.
#[test]
fn lists_contain_the_target_if_and_only_if_its_rank_is_within_them() {
    let world = Project::small();
    let repeated = ["--set", "preprocess.repeated=\"all\"", "--set", "recommend.top=7"];
    for model in ["popularity", "sasrec", "sine", "lightgcn"] {
        for seen in ["keep", "remove"] {
            let (model_is, seen_is) = (format!("model.name={model}"), format!("evaluate.seen_items={seen:?}"));
            let name = format!("{model}-{seen}");
            let words = [&repeated[..], &["--set", &model_is, "--set", &seen_is]].concat();
            trained(&world, &name, &words);
            world.run("recommend", &[&words[..], &["--run", &name]].concat());
            let layout = Layout::new(&world.path(""), "a", &name);
            let sequences = Sequences::read(&layout.sequences()).unwrap();
            let ranks = StoredRanks::read(&layout, &sequences, Split::Test, None).unwrap().ranks;
            let mut lists = Table::read(&layout.recommendations(), "").unwrap();
            let (users, targets) = (lists.take_u32("user").unwrap(), lists.take_text("target").unwrap());
            let items = lists.take_texts("items").unwrap();
            assert_eq!(users.len(), 60);
            for ((user, target), list) in users.iter().zip(&targets).zip(&items) {
                let rank = ranks[*user as usize - 1];
                let position = list.iter().position(|item| item == target).map(|at| at as u32 + 1);
                assert_eq!(position, Some(rank).filter(|rank| *rank <= 7), "{name}, user {user}");
            }
        }
    }
}

#[test]
fn a_search_does_not_train_over_the_runs_of_another() {
    let world = Project::small();
    world.run("search", &["--grid", "finetune.learning_rate=0.01"]);
    let weights = world.bytes("a/runs/search.learning_rate-0.01/finetune.safetensors");
    for other in [
        &["--grid", "pretrain.learning_rate=0.01"][..],
        &["--grid", "finetune.learning_rate=0.01", "--set", "finetune.batch=32"],
    ] {
        let refused = world.run_failing("search", other);
        assert!(
            refused.contains("`search.learning_rate-0.01` was trained with a different") && refused.contains("--name"),
            "{refused}"
        );
    }
    assert_eq!(world.bytes("a/runs/search.learning_rate-0.01/finetune.safetensors"), weights);
    world.run("search", &["--grid", "finetune.learning_rate=0.01", "--set", "evaluate.batch=8"]);

    let refused = world.run_failing("search", &["--run", "mine", "--grid", "finetune.learning_rate=0.01"]);
    assert!(refused.contains("`--run mine` has no effect here"), "{refused}");

    // A run of a search that was killed belongs to that search, too; it goes on under other limits.
    let endless = ["--set", "finetune.epochs=100000", "--set", "finetune.patience=100000"];
    let killed = ["--name", "killed", "--grid", "finetune.learning_rate=0.01"];
    let mut search = world.command("search", &[&killed[..], &endless].concat());
    let mut search = search.stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    let state = "a/runs/killed.learning_rate-0.01/state.finetune.safetensors";
    wait_for("the first state", || world.path(state).exists());
    search.kill().unwrap();
    search.wait().unwrap();
    let refused = world.run_failing("search", &[&killed[..], &endless, &["--set", "finetune.batch=32"]].concat());
    assert!(refused.contains("`killed.learning_rate-0.01` was trained with a different `finetune.batch`"), "{refused}");
}

/// A training that was killed, and resumed with settings that have not affected the weights so far, ends like one that was not killed.
#[test]
fn a_killed_training_resumes_under_another_evaluation_batch_and_other_limits() {
    let world = Project::small();
    let whole = ["--set", "model.name=sasrec", "--set", "finetune.epochs=40", "--set", "finetune.patience=40"];
    trained(&world, "whole", &whole);
    let endless =
        ["--set", "model.name=sasrec", "--set", "finetune.epochs=100000", "--set", "finetune.patience=100000"];
    let mut training = world.command("finetune", &[&endless[..], &["--run", "killed"]].concat());
    let mut training = training.stderr(Stdio::null()).spawn().unwrap();
    wait_for("the first state", || world.path("a/runs/killed/state.finetune.safetensors").exists());
    training.kill().unwrap();
    training.wait().unwrap();
    let goes_on = [&whole[..], &["--run", "killed", "--set", "evaluate.batch=9"]].concat();
    let output = world.output("finetune", &goes_on);
    if stderr_of(&output).contains("an unfinished run with another `finetune.epochs`") {
        // It had passed the fortieth epoch when it was killed, so it cannot end like the other.
        return;
    }
    assert!(output.status.success(), "{}", stderr_of(&output));
    assert!(stderr_of(&output).contains("resuming after epoch"), "{}", stderr_of(&output));
    let weights = |run: &str| {
        TensorFile::read(&world.path(&format!("a/runs/{run}/finetune.safetensors")), "checkpoint", 1, "").unwrap()
    };
    let (mut a, mut b) = (weights("whole"), weights("killed"));
    for name in a.names() {
        assert_eq!(a.take_f32(&name).unwrap(), b.take_f32(&name).unwrap(), "{name}");
    }
    // A state of another seed is not resumed; a study starts such a run again.
    let mut training = world.command("finetune", &[&endless[..], &["--run", "other"]].concat());
    let mut training = training.stderr(Stdio::null()).spawn().unwrap();
    wait_for("the first state", || world.path("a/runs/other/state.finetune.safetensors").exists());
    training.kill().unwrap();
    training.wait().unwrap();
    let seed = [&whole[..], &["--run", "other", "--set", "run.seed=7"]].concat();
    assert!(world.run_failing("finetune", &seed).contains("an unfinished run with another `run.seed`"));
    // A whole run is refused before its first stage, and `doctor` says so.
    files::remove_dir_if_present(&world.path("a/features")).unwrap();
    let refused = world.run_failing("run", &[&seed[..], &["--until", "finetune"]].concat());
    assert!(refused.contains("with another `run.seed`") && refused.contains("`--restart`"), "{refused}");
    assert!(!world.path("a/features").exists() || files::list(&world.path("a/features")).unwrap().is_empty());
    let found = world.output("doctor", &seed);
    assert!(!found.status.success() && stderr_of(&found).contains("with another `run.seed`"), "{}", stderr_of(&found));
    let anew = world.run_stderr("run", &[&seed[..], &["--until", "finetune", "--restart"]].concat());
    assert!(anew.contains("with another `run.seed` was removed"), "{anew}");
}

/// What a run says about its training stays true when a phase is repeated, and when training with other settings fails.
#[test]
fn settings_that_are_changed_and_restored_leave_a_run_as_it_was() {
    let world = Project::small();
    world.run("run", &[]);
    let names = ["config.toml", "finetune.safetensors", "report/curves.svg"];
    let state = || {
        // The seconds of repeated epochs differ.
        let log = world.text("a/runs/mp4sr/metrics.jsonl");
        let (first, second): (Vec<&str>, Vec<&str>) = log.lines().partition(|line| line.contains("pretrain"));
        let second: Vec<String> = second.into_iter().map(str::to_owned).collect();
        (first.len(), second, names.map(|name| world.bytes(&format!("a/runs/mp4sr/{name}"))))
    };
    let before = state();
    assert_eq!((before.0, before.1.len()), (2, 2));
    world.run("run", &["--until", "pretrain", "--set", "pretrain.epochs=1"]);
    world.run("run", &[]);
    assert!(state() == before, "pre-training was repeated");

    // No file can become larger than 16 KiB, so the first checkpoint cannot be written.
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' XFSZ; ulimit -f 32; exec \"$@\"", "sh"]);
    let failing = world.command("finetune", &["--set", "finetune.learning_rate=0.02"]);
    command.arg(failing.get_program()).args(failing.get_args());
    command.envs(failing.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let output = command.output().unwrap();
    assert!(!output.status.success() && stderr_of(&output).contains("File too large"), "{}", stderr_of(&output));
    assert!(world.run_stderr("finetune", &[]).contains("up to date"));
    world.run("run", &[]);
    assert!(state() == before, "a training failed");

    let timing = world.bytes("a/runs/mp4sr/finetune.timing.json");
    let other = ["--set", "finetune.learning_rate=0.02", "--set", "finetune.epochs=100000"];
    let mut training = world.command("finetune", &[&other[..], &["--set", "finetune.patience=100000"]].concat());
    let mut training = training.stderr(Stdio::null()).spawn().unwrap();
    wait_for("the first state", || world.path("a/runs/mp4sr/state.finetune.safetensors").exists());
    wait_for("the first epoch", || world.path("a/runs/mp4sr/metrics.training.jsonl").exists());
    training.kill().unwrap();
    training.wait().unwrap();
    assert!(state() == before, "a training was killed");
    assert!(world.run_stderr("finetune", &[]).contains("up to date"));
    assert!(state() == before && world.bytes("a/runs/mp4sr/finetune.timing.json") == timing, "a training was killed");
    let left = files::list(&world.path("a/runs/mp4sr")).unwrap();
    let left: Vec<_> = left.iter().map(|path| path.file_name().unwrap().to_string_lossy()).collect();
    assert!(!left.iter().any(|name| name.contains("earlier") || name.contains("training")), "{left:?}");

    // Keys that do not decide the weights are recorded without training.
    let listed = world.run_stderr("finetune", &["--set", "recommend.top=7"]);
    assert!(listed.contains("up to date") && world.text("a/runs/mp4sr/config.toml").contains("top = 7"), "{listed}");
    world.run("finetune", &[]);
    assert!(state() == before, "the configuration of before was recorded");

    // A model without epochs has no curves of the model before it.
    world.run("run", &["--set", "model.name=popularity"]);
    assert!(!world.path("a/runs/mp4sr/report/curves.svg").exists());
}

/// A run without pre-training must not go on from a state that began with pre-trained weights.
#[test]
fn a_state_from_pretrained_weights_is_not_resumed_without_pretraining() {
    let world = Project::small();
    world.run("run", &["--until", "pretrain"]);
    let endless = ["--set", "finetune.epochs=100000", "--set", "finetune.patience=100000"];
    let mut training = world.command("finetune", &endless).stderr(Stdio::null()).spawn().unwrap();
    wait_for("the first state", || world.path("a/runs/mp4sr/state.finetune.safetensors").exists());
    training.kill().unwrap();
    training.wait().unwrap();
    let without = ["--set", "pretrain.enabled=false"];
    let refused = world.run_failing("finetune", &without);
    assert!(refused.contains("its input `pre-trained weights` has changed since"), "{refused}");
    let anew = world.run_stderr("finetune", &[&without[..], &["--restart"]].concat());
    assert!(anew.contains("training from the start") && !anew.contains("resuming"), "{anew}");
}

/// The seed decides which items lose their features, so weights and ranks belong to one seed.
#[test]
fn features_with_noise_are_those_of_the_seed_of_training() {
    let world = Project::small();
    let noisy = "model.modalities=[{ name = \"text\", lost = 0.5 }]";
    let words = ["--set", noisy, "--set", "pretrain.enabled=false"];
    world.run("run", &[&words[..], &["--until", "evaluate"]].concat());
    assert!(world.run_stderr("evaluate", &words).contains("up to date"));
    let other = [&words[..], &["--set", "run.seed=7"]].concat();
    let refused = world.run_failing("evaluate", &other);
    assert!(
        refused.contains("trained with `run.seed` = 2020, but the pipeline sets 7, and the seed decides"),
        "{refused}"
    );
    world.run("run", &[&other[..], &["--until", "evaluate"]].concat());
    assert!(world.run_stderr("evaluate", &other).contains("up to date"));
}

/// Lists do not depend on how users are divided among blocks: 60 users are computed together, or as 59 and one.
#[test]
fn a_block_of_a_single_user_has_the_lists_of_larger_ones() {
    let world = Project::small();
    for model in ["sasrec", "mvrnn", "mp4sr"] {
        let run = ["--run", model, "--set", &format!("model.name={model}")];
        world.run("run", &[&["--until", "recommend"][..], &run].concat());
        let lists = || {
            let mut lists = Table::read(&world.path(&format!("a/runs/{model}/recommendations.parquet")), "").unwrap();
            let scores = lists.take_f32s("scores").unwrap();
            let scores: Vec<Vec<u32>> =
                scores.iter().map(|own| own.iter().map(|score| score.to_bits()).collect()).collect();
            (lists.take_texts("items").unwrap(), scores)
        };
        let whole = lists();
        assert_eq!(whole.0.len(), 60);
        std::fs::remove_file(world.path(&format!("a/runs/{model}/recommend.manifest.json"))).unwrap();
        world.run("recommend", &[&run[..], &["--set", "evaluate.batch=59"]].concat());
        assert!(lists() == whole, "{model}");
    }
}

/// Images may be anywhere in the data folder, so those that were missing are looked for again.
#[test]
fn images_that_appear_later_make_preprocessing_run_again() {
    let world = Project::small();
    let items = world.folder().join("a.jsonl");
    let text = std::fs::read_to_string(&items).unwrap().replace("\"one.png\"", "\"pics/new/one.png\"");
    std::fs::write(&items, text).unwrap();
    world.run("preprocess", &[]);
    assert!(world.run_stderr("preprocess", &[]).contains("up to date"));
    std::fs::create_dir_all(world.folder().join("pics/new")).unwrap();
    std::fs::copy(world.folder().join("one.png"), world.folder().join("pics/new/one.png")).unwrap();
    let reported = world.run_stderr("preprocess", &[]);
    assert!(reported.contains("pics/new/one.png` was missing before"), "{reported}");
    assert!(world.run_stderr("preprocess", &[]).contains("up to date"));
    let images = Items::read(&world.path("a/dataset/items.parquet")).unwrap().images;
    assert_eq!(images.iter().filter(|images| !images.is_empty()).count(), 10);
}

/// Waits until `holds` is true, and fails after a minute.
fn wait_for(what: &str, holds: impl Fn() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_mins(1), "waited a minute for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[cfg(target_os = "linux")]
#[test]
fn processes_started_by_a_study_end_with_it() {
    let world = Project::small();
    let endless = ["--seeds", "1", "--set", "finetune.epochs=100000", "--set", "finetune.patience=100000"];
    let mut study = world.command("study", &[&["table2"][..], &endless].concat());
    let mut study = study.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let number = study.id();
    let children = || -> Vec<String> {
        let tasks = std::fs::read_dir(format!("/proc/{number}/task")).into_iter().flatten().flatten();
        let of_task =
            |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
        tasks.flat_map(|task| of_task(task).split_whitespace().map(str::to_owned).collect::<Vec<_>>()).collect()
    };
    let states = || {
        let runs = std::fs::read_dir(world.path("a/runs")).into_iter().flatten().flatten();
        runs.into_iter().any(|run| run.path().join("state.finetune.safetensors").exists())
    };
    wait_for("a training", || states() && !children().is_empty());
    let started = children();
    // SIGKILL is sent only to the study, as service managers and containers do, so it cannot react.
    study.kill().unwrap();
    study.wait().unwrap();
    let is_alive = |child: &String| {
        let state = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        !state.is_empty() && !state.contains(") Z ")
    };
    wait_for("the study's programs to end", || !started.iter().any(is_alive));
    // With other settings, a study restarts its unfinished runs, without a flag.
    world.run("study", &["table2", "--seeds", "1", "--quiet", "--set", "finetune.batch=32"]);
}

#[test]
fn typed_values_win_over_inherited_ones_and_errors_name_the_source_of_a_value() {
    let world = Project::small();
    let elsewhere = world.folder().join("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    let data = format!("dataset.data={:?}", world.folder().to_str().unwrap());
    let run = |words: &[&str], variables: &[(&str, &str)]| {
        let mut command = world.command("preprocess", words);
        command.envs(variables.iter().copied());
        command.output().unwrap()
    };
    let inherited = [("MP4SR_DATA", elsewhere.to_str().unwrap()), ("MP4SR_RUN", "inherited")];
    assert!(run(&["--set", &data], &inherited).status.success());
    assert!(!run(&[], &inherited).status.success(), "the folder of the variable has no files");
    assert!(run(&["--set", &data], &[("MP4SR_SET", "dataset.data=nowhere")]).status.success());
    let both = run(&["--data", "x", "--set", &data], &[]);
    assert!(
        stderr_of(&both).contains("`--data x` and `--set dataset.data=") && stderr_of(&both).contains("contradict"),
        "{}",
        stderr_of(&both)
    );
    let named = |words: &[&str], variables: &[(&str, &str)]| stderr_of(&run(words, variables));
    let (set, inherited_run) = (["--set-all", "dataset.data=nowhere"], [("MP4SR_DATA", "elsewhere")]);
    assert!(named(&set, &inherited_run).contains("nowhere"), "a typed assignment wins over the variable");
    let inherited_set = [("MP4SR_SET", "dataset.data=nowhere")];
    assert!(named(&["--data", "typed"], &inherited_set).contains("typed"), "a typed flag wins over the variable");
    for (words, variables) in [
        (&["--data", "x", "--set-all", "dataset.data=nowhere"][..], &[][..]),
        (&[], &[("MP4SR_DATA", "x"), ("MP4SR_SET", "dataset.data=nowhere")]),
    ] {
        let both = named(words, variables);
        assert!(both.contains("`--data x` and `--set-all dataset.data=nowhere` contradict each other"), "{both}");
    }
    for (value, is_quiet) in
        [("1", true), ("true", true), ("yes", true), ("0", false), ("false", false), ("no", false), ("", false)]
    {
        let output = run(&[], &[("MP4SR_QUIET", value)]);
        assert!(output.status.success(), "{value:?}: {}", stderr_of(&output));
        assert_eq!(stderr_of(&output).is_empty(), is_quiet, "{value:?}");
    }
    let unclear = stderr_of(&run(&[], &[("MP4SR_QUIET", "disabled")]));
    assert!(unclear.contains("expected 1 or 0 in the environment variable"), "{unclear}");
    let empty = [("MP4SR_ARTIFACTS", ""), ("MP4SR_DATA", ""), ("MP4SR_RUN", "")];
    assert!(run(&[], &empty).status.success());
    let long = "a".repeat(300);
    let refused = run(&["--run", &long], &[]);
    assert!(stderr_of(&refused).contains("a shorter name: it has 300 characters"), "{}", stderr_of(&refused));
    let wrong = stderr_of(&run(&["--set", "finetune.batch=1e3"], &[]));
    assert!(wrong.contains("`--set finetune.batch=1e3`: ") && !wrong.contains("a.toml"), "{wrong}");
}

#[test]
fn make_passes_on_paths_and_values_with_spaces_and_switches_that_are_off() {
    let dry = |variables: &[&str], target: &str| {
        let output = Command::new("make").args(["-n", target]).args(variables).current_dir(root()).output().unwrap();
        let printed = String::from_utf8(output.stdout).unwrap();
        printed.lines().filter(|line| !line.starts_with("cargo build")).collect::<Vec<_>>().join("\n")
    };
    let printed =
        dry(&["PIPELINE=my pipes/x.toml", "DATA=it's data", "SET=source.images=my pictures", "QUIET=0"], "preprocess");
    assert!(printed.contains(r"--pipeline 'my pipes/x.toml' --data 'it'\''s data'"), "{printed}");
    assert!(printed.contains("--set-all 'source.images=my pictures'") && !printed.contains("--quiet"), "{printed}");
    assert!(dry(&["QUIET=1"], "preprocess").contains("--quiet"));
    let searched = dry(&["GRID=model.modalities=[{ name = \"text\" }] finetune.batch=32,64"], "search");
    assert!(searched.contains("--grids 'model.modalities=[{ name = \"text\" }] finetune.batch=32,64'"), "{searched}");
    // The program splits such a value at the right spaces.
    let world = Project::small();
    let found = world.run("search", &["--grids", "model.modalities=[{ name = \"text\" }] finetune.batch=32,64"]);
    assert!(found.contains("search.modalities-") && found.contains("batch-64"), "{found}");
}

#[test]
fn another_metric_selects_the_epoch_if_recall_is_equal_in_all_epochs() {
    let world = Project::small();
    let sasrec = ["--set", "model.name=sasrec", "--set", "preprocess.item_core=1"];
    for stage in ["preprocess", "extract"] {
        world.run(stage, &sasrec);
    }
    for metric in ["R@30", "Hit@30", "P@31"] {
        let set = format!("train.metric={metric}");
        let reported = world.run_stderr("finetune", &[&sasrec[..], &["--set", &set, "--run", &metric[..1]]].concat());
        let warning = format!("{metric} is the same for every ranking of 30 items; epochs are selected by MRR");
        assert!(reported.contains(&warning), "{reported}");
        assert!(reported.contains("validation MRR 0."), "{reported}");
    }
    let reported =
        world.run_stderr("finetune", &[&sasrec[..], &["--set", "train.metric=N@5", "--run", "ndcg"]].concat());
    assert!(reported.contains("validation N@5 0.") && reported.contains("best epoch"), "{reported}");
    let reported =
        world.run_stderr("evaluate", &[&sasrec[..], &["--run", "ndcg", "--set", "evaluate.k=[5, 40]"]].concat());
    assert!(
        reported.contains("R@40 is 1 for every ranking of 30 items") && !reported.contains("R@5 is 1"),
        "{reported}"
    );
    let refused = world.run_failing("finetune", &["--set", "train.metric=Recall"]);
    assert!(refused.contains("`train.metric` = \"Recall\" is not allowed; expected R@K, N@K, Hit@K"), "{refused}");
}

#[test]
fn a_model_that_ranks_no_better_than_popularity_is_reported() {
    let world = Project::small();
    // Item 0 is the third event of even users, and the validation target of odd ones.
    let mut events = String::from("user_id\titem_id\ttimestamp\n");
    for user in 0..30 {
        let mut items = [1 + user % 25, 2 + user % 25, 3 + user % 25, 4 + user % 25, 5 + user % 25];
        items[2 + user % 2] = 0;
        for (at, item) in items.into_iter().enumerate() {
            let _ = writeln!(events, "u{user}\ti{item}\t{}", 1_600_000_000 + 86_400 * at);
        }
    }
    world.write("a.tsv", events);
    let sasrec = ["--set", "model.name=sasrec", "--set", "train.metric=R@5"];
    world.run("preprocess", &sasrec);
    world.run("extract", &sasrec);
    let report = |run: &str, extra: &[&str]| {
        world.run_stderr(
            "finetune",
            &[&sasrec[..], &["--set", "evaluate.seen_items=keep", "--run", run], extra].concat(),
        )
    };
    let warning = "no epoch ranks better than popularity does (validation R@5 ";
    let idle = report("idle", &["--set", "finetune.learning_rate=0", "--set", "finetune.epochs=1"]);
    assert!(idle.contains(warning) && idle.contains("(validation R@5 0.1667 and 0.5667)"), "{idle}");
    let trained = report("trained", &["--set", "finetune.epochs=200", "--set", "finetune.patience=200"]);
    assert!(!trained.contains(warning), "{trained}");
    let short = report("short", &["--set", "finetune.epochs=2", "--set", "finetune.learning_rate_warm_up=3"]);
    let warning = "finetune: warning: training ended after 2 epochs, during the warm-up of 3 epochs";
    assert!(short.contains(warning) && !trained.contains("warm-up"), "{short}");
    // With another seed, the search cannot take the weights of the first run.
    let keep = ["--set", "evaluate.seen_items=keep", "--set", "finetune.epochs=1", "--set", "run.seed=7"];
    let searched = world.run_stderr("search", &[&sasrec[..], &keep, &["--grid", "finetune.learning_rate=0"]].concat());
    assert!(searched.contains("run `search.learning_rate-0`: finetune: warning: no epoch ranks better"), "{searched}");
}

#[test]
fn doctor_reports_features_that_nothing_writes() {
    let world = Project::small();
    let output = world.output("doctor", &["--set", "model.modalities=[{name=\"texts\"}]"]);
    let refused = stderr_of(&output);
    assert!(
        !output.status.success() && refused.contains("name a modality that `extract` computes: text, image, audio"),
        "{refused}"
    );
}

#[test]
fn items_of_another_encoder_are_not_added() {
    let world = Project::small();
    let run = ["--set", "model.mp4sr.id_embedding=false"];
    world.run("run", &[&["--until", "finetune"][..], &run].concat());
    world.write("new.jsonl", "{\"item_id\": \"new\", \"title\": \"A thing of group 3 and many more words\"}\n");
    let new = world.folder().join("new.jsonl").display().to_string();
    let add = [&["add", "--items", &new][..], &run].concat();
    for folder in ["other", "another/tiny-sentence"] {
        let model = other_encoder(&world, folder);
        let refused = world.run_failing("items", &[&add[..], &["--set", &model]].concat());
        assert!(refused.contains("differs from that of the dataset's features"), "{refused}");
    }
    let listed = |words: &[&str]| world.run("recommend", &[&["--history", "i3", "--top", "100"], words, &run].concat());
    assert!(!listed(&[]).contains("\"new\""));
    world.run_stderr("items", &add);
    assert!(listed(&[]).contains("\"new\""));
}
