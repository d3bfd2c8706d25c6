//! Stages that run in parts, in several processes and on machines without a common file system. `make test` builds the program first.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, reason = "a test says what it skips")]

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use mp4sr_artifact::files;
use mp4sr_tests::{Project, program, root, said};
use serde_json::Value;

/// The wanted files in a folder, by name.
fn content(folder: &Path, is_wanted: impl Fn(&str) -> bool) -> Vec<(String, Vec<u8>)> {
    let mut all: Vec<_> = files::list(folder)
        .unwrap()
        .into_iter()
        .filter(|path| path.is_file())
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), path))
        .filter(|(name, _)| is_wanted(name))
        .map(|(name, path)| (name, files::read(&path).unwrap()))
        .collect();
    all.sort();
    all
}

fn features(world: &Project) -> Vec<(String, Vec<u8>)> {
    content(&world.path("a/features"), |name| name.ends_with(".safetensors") || name.ends_with(".parquet"))
}

/// A world without features and cached vectors, and the features that one process made in it.
fn world_to_extract() -> (Project, Vec<(String, Vec<u8>)>) {
    let world = Project::small();
    world.run("run", &["--until", "extract"]);
    let expected = features(&world);
    assert_eq!(expected.len(), 3, "texts, words of images, and which words they are");
    forget(&world);
    (world, expected)
}

fn forget(world: &Project) {
    files::remove_dir_if_present(&world.path("a/features")).unwrap();
    files::remove_dir_if_present(&world.path(".cache")).unwrap();
}

/// Checks that features are assembled from the cache, and equal those of one process.
fn expect_assembled(world: &Project, expected: &[(String, Vec<u8>)]) {
    let reported = world.run_stderr("extract", &[]);
    assert!(reported.contains("computed 0 of"), "{reported}");
    assert_eq!(features(world), expected);
    let shards = world.path("a/shards");
    let left = if shards.exists() { files::list(&shards).unwrap() } else { Vec::new() };
    assert!(left.iter().all(|path| !path.is_dir()), "nothing is left of parts");
}

#[test]
fn parts_of_an_extraction_give_the_features_of_one_process_whoever_was_killed() {
    let (world, expected) = world_to_extract();
    for delay in [0, 20, 60, 150] {
        let mut part = world.command("extract", &["--shard", "2/3"]);
        let mut part = part.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(delay));
        part.kill().unwrap();
        part.wait().unwrap();
    }
    let parts: Vec<_> = ["1/3", "2/3", "3/3"]
        .into_iter()
        .map(|part| world.command("extract", &["--shard", part]).stderr(Stdio::piped()).spawn().unwrap())
        .collect();
    for part in parts {
        let output = part.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
    }
    assert!(!world.path("a/features").exists(), "parts write no features");
    expect_assembled(&world, &expected);
    let refused = world.output("extract", &["--shard", "4/3"]);
    assert!(!refused.status.success() && said(&refused).contains("part 4 of 3 does not exist"), "{}", said(&refused));
}

#[test]
fn parallel_runs_the_parts_and_puts_them_together() {
    if !Command::new("parallel").arg("--version").output().is_ok_and(|output| output.status.success()) {
        println!("skipped: GNU parallel is not installed");
        return;
    }
    let (world, expected) = world_to_extract();
    let flag = |name: &str, path: &Path| [name.to_owned(), path.display().to_string()];
    let run = |stage: &str| {
        let mut command = Command::new("sh");
        command
            .current_dir(world.folder())
            .arg(root().canonicalize().unwrap().join("deploy/parallel.sh"))
            .args([stage, "3"]);
        command.args(flag("--pipeline", &world.pipeline("a"))).args(flag("--artifacts", &world.path("")));
        let output = command.env("MP4SR", program("mp4sr")).env("JOBS", "3").output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        said(&output)
    };
    let reported = run("extract");
    assert!(reported.contains("the vectors of part 3/3") && reported.contains("computed 0 of"), "{reported}");
    assert_eq!(features(&world), expected);
    world.run("run", &["--until", "finetune"]);
    assert!(run("evaluate").contains("merged 3 parts"));
    assert!(run("recommend").contains("merged 3 parts"));
}

/// Two machines without a common file system, each with a copy of the dataset.
#[test]
fn vectors_of_machines_that_share_nothing_are_merged() {
    let (world, expected) = world_to_extract();
    let place = |host: &str| world.folder().join(host);
    for (host, parts) in [("first", &["1/3"][..]), ("second", &["2/3", "3/3"])] {
        for name in ["items.parquet", "users.parquet", "sequences.safetensors"] {
            let copy = place(host).join("a/dataset").join(name);
            files::write_bytes(&copy, &files::read(&world.path("a/dataset").join(name)).unwrap()).unwrap();
        }
        for part in parts {
            let mut command = mp4sr_tests::command("extract");
            command
                .arg("--pipeline")
                .arg(world.pipeline("a"))
                .arg("--artifacts")
                .arg(place(host))
                .args(["--shard", part]);
            let output = command.output().unwrap();
            assert!(output.status.success(), "{}", said(&output));
        }
    }
    let merge = |places: &[&Path]| {
        let mut command = mp4sr_tests::command("cache");
        command.arg("merge").args(places).arg("--artifacts").arg(world.path("")).output().unwrap()
    };
    // A copy of the second machine's cache, in which one shard was damaged.
    let copy = place("copy");
    let vectors = place("second").join(".cache/vectors");
    let mut damaged = false;
    for encoder in files::list(&vectors).unwrap() {
        for path in files::list(&encoder).unwrap() {
            let mut bytes = files::read(&path).unwrap();
            let relative = path.strip_prefix(&vectors).unwrap();
            // Shards that the first machine has, too, are not copied.
            let is_own = !place("first").join(".cache/vectors").join(relative).exists();
            if !damaged && is_own && path.extension().is_some_and(|end| end == "safetensors") {
                *bytes.last_mut().unwrap() ^= 1;
                damaged = true;
            }
            files::write_bytes(&copy.join(relative), &bytes).unwrap();
        }
    }
    let reported = merge(&[&place("first"), &copy]);
    assert!(
        damaged && !reported.status.success() && said(&reported).contains("1 damaged shards were left out"),
        "{}",
        said(&reported)
    );
    let reported = merge(&[&place("first"), &place("second")]);
    assert!(reported.status.success(), "{}", said(&reported));
    let printed = String::from_utf8_lossy(&reported.stdout).into_owned();
    assert!(printed.contains("1 shards were added") && printed.contains("1 were already present"), "{printed}");
    expect_assembled(&world, &expected);
    let reported = merge(&[world.folder()]);
    assert!(!reported.status.success() && said(&reported).contains("contains no vectors"), "{}", said(&reported));
}

#[test]
fn ranks_and_lists_of_parts_are_those_of_the_whole_and_old_parts_are_not_used() {
    let world = Project::small();
    let short = ["--set", "evaluate.short_histories=[1, 3]"];
    world.run("run", &[&["--until", "recommend"][..], &short].concat());
    world.run("run", &[&["--until", "evaluate"][..], &short].concat());
    let run = world.path("a/runs/mp4sr");
    let results = || {
        let is_whole =
            |name: &str| (name.starts_with("ranks.") || name.starts_with("recommendations.")) && !name.contains("-of-");
        content(&run, is_whole)
    };
    let expected = results();
    assert_eq!(expected.len(), 5);
    let forget = || {
        for (name, _) in &expected {
            files::remove_if_present(&run.join(name)).unwrap();
        }
    };
    forget();
    let stage = |name: &str, more: &[&str]| world.run_stderr(name, &[&short[..], more].concat());
    for part in ["1/3", "3/3"] {
        stage("evaluate", &["--shard", part]);
        stage("recommend", &["--shard", part]);
    }
    // If a part is missing, everything is computed.
    assert!(!stage("evaluate", &[]).contains("merged") && !stage("recommend", &[]).contains("merged"));
    assert_eq!(results(), expected);
    forget();
    stage("evaluate", &["--shard", "2/3"]);
    stage("recommend", &["--shard", "2/3"]);
    assert!(stage("evaluate", &["--shard", "2/3"]).contains("up to date"));
    assert!(stage("evaluate", &[]).contains("merged 3 parts"));
    assert!(stage("recommend", &[]).contains("merged 3 parts"));
    assert_eq!(results(), expected);
    // With other weights or settings, the parts are not used.
    world.run("run", &[&["--until", "finetune", "--set", "run.seed=7"][..], &short].concat());
    assert!(!stage("evaluate", &["--set", "run.seed=7"]).contains("merged"));
    assert!(!stage("recommend", &["--set", "run.seed=7", "--set", "recommend.top=3"]).contains("merged"));
    assert_ne!(results(), expected);
}

/// The files of a dataset that later stages read, by name.
fn dataset(world: &Project, name: &str) -> Vec<(String, Vec<u8>)> {
    content(&world.path(name).join("dataset"), |name| name.ends_with(".safetensors") || name.ends_with(".parquet"))
}

/// A Python with PySpark; `None` if it or Java is not installed.
fn python_with_spark() -> Option<String> {
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let succeeds = |command: &mut Command| command.output().is_ok_and(|output| output.status.success());
    if !succeeds(Command::new(&python).args(["-c", "import pyspark, tomllib"]))
        || !succeeds(Command::new("java").arg("-version"))
    {
        println!("skipped: `{python}` lacks pyspark (name another one with PYTHON), or there is no Java");
        return None;
    }
    Some(python)
}

/// Replaces the interactions `names` of a pipeline by those that Spark keeps, and returns Spark's counts.
fn reduce(python: &str, world: &Project, pipeline: &str, data: &Path, names: &[&str]) -> Value {
    world.write(
        "spark/spark-defaults.conf",
        "spark.master local[2]\nspark.ui.enabled false\nspark.sql.shuffle.partitions 2\n",
    );
    let reduced = world.folder().join("reduced");
    let mut command = Command::new(python);
    command.arg(root().join("deploy/spark_interactions.py")).arg("--pipeline").arg(world.pipeline(pipeline));
    command.arg("--data").arg(data).arg("--out").arg(&reduced).env("SPARK_CONF_DIR", world.folder().join("spark"));
    let output = command.env("SPARK_LOCAL_IP", "127.0.0.1").output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    for name in names {
        let parts = files::list(&reduced.join(name)).unwrap();
        let is_part = |path: &Path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("part-"));
        let joined: Vec<u8> =
            parts.iter().filter(|path| is_part(path)).flat_map(|path| files::read(path).unwrap()).collect();
        files::write_bytes(&data.join(name), &joined).unwrap();
    }
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Checks that Spark's counts equal those in the report on all lines.
fn expect_counts(counts: &Value, report: &Value) {
    for (step, filter) in [("raw", 0), ("without repeats", 1), ("in the core", 2)] {
        for number in ["events", "users", "items"] {
            assert_eq!(counts[step][number], report["filters"][filter][number], "{step}: {number}");
        }
    }
    let files = report["interactions"]["files"].as_array().unwrap();
    for number in ["lines", "rejected"] {
        let sum: u64 = files.iter().map(|file| file[number].as_u64().unwrap()).sum();
        assert_eq!(counts[number], sum, "{number}");
    }
}

#[test]
fn what_spark_reduces_gives_the_dataset_of_all_lines() {
    let Some(python) = python_with_spark() else { return };
    let raw = tempfile::tempdir().unwrap();
    let made = mp4sr_tests::command("sample").args(["--quiet", "--out"]).arg(raw.path()).status().unwrap();
    assert!(made.success());
    let world = Project::of_pipeline("sample", raw.path());
    world.run("preprocess", &[]);
    let expected = dataset(&world, "sample");
    assert_eq!(expected.len(), 3);
    let counted = report(&world, "sample");
    expect_counts(&reduce(&python, &world, "sample", raw.path(), &["reviews.json.gz"]), &counted);
    files::remove_dir_if_present(&world.path("sample")).unwrap();
    world.run("preprocess", &[]);
    assert!(dataset(&world, "sample") == expected, "the dataset of the reduced lines is another one");
    let again = report(&world, "sample");
    assert!(again["filters"][0]["events"].as_u64() < counted["filters"][0]["events"].as_u64());
    let mut differing: Vec<&String> =
        counted.as_object().unwrap().keys().filter(|key| again[key.as_str()] != counted[key.as_str()]).collect();
    differing.sort();
    assert_eq!(differing, ["events", "filters", "interactions", "items", "join"], "as docs/scale.md says");
}

/// Files with columns in different orders and with Windows line ends, a user whose events are in several files, repeated events of which
/// the last file has the latest, a user below the core, and a line without a time.
#[test]
fn several_files_of_delimited_text_are_reduced_together() {
    let Some(python) = python_with_spark() else { return };
    let world = Project::small();
    let names = ["a.tsv", "more.tsv", "last.csv"];
    let pipeline = files::read_to_string(&world.pipeline("a")).unwrap();
    let listed = format!("interactions = {names:?}");
    world.write(
        "a.toml",
        pipeline.replace("interactions = [\"a.tsv\"]", &listed).replace("item_core = 1", "item_core = 5"),
    );
    let mut more = String::from("timestamp\titem_id\tuser_id\r\n");
    let mut last = String::from("item_id,user_id,timestamp\n");
    for at in 0..9 {
        more.push_str(&format!("{}\ti{}\tsplit\r\n", 1_700_000_000 + at, at % 4));
        last.push_str(&format!(
            "i{},split,{}\nrare{at},u{at},{}\n",
            at % 7,
            1_700_000_000 + 2 * at,
            1_500_000_000 + at
        ));
    }
    more.push_str("1700000000\ti3\tseldom\r\n\ti4\tseldom\r\n");
    world.write("more.tsv", more).write("last.csv", last);
    world.run("preprocess", &[]);
    let (expected, counted) = (dataset(&world, "a"), report(&world, "a"));
    expect_counts(&reduce(&python, &world, "a", world.folder(), &names), &counted);
    files::remove_dir_if_present(&world.path("a")).unwrap();
    world.run("preprocess", &[]);
    assert!(dataset(&world, "a") == expected, "the dataset of the reduced lines is another one");
    assert!(report(&world, "a")["filters"][0]["events"].as_u64() < counted["filters"][0]["events"].as_u64());
}

fn report(world: &Project, name: &str) -> Value {
    serde_json::from_slice(&world.bytes(&format!("{name}/dataset/report.json"))).unwrap()
}
