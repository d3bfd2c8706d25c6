//! Stages that run in shards, in several processes, and on machines without a shared file system. `make test` builds the program first.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, reason = "a test says what it skips")]

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use mp4sr_artifact::files;
use mp4sr_tests::{Project, program, root, stderr_of};
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
    features_in(&world.path("a/features"))
}

fn features_in(folder: &Path) -> Vec<(String, Vec<u8>)> {
    content(folder, |name| name.ends_with(".safetensors") || name.ends_with(".parquet"))
}

/// A world without features and cached vectors, and the features that one process computed in it.
fn world_to_extract() -> (Project, Vec<(String, Vec<u8>)>) {
    let world = Project::small();
    world.run("run", &["--until", "extract"]);
    let expected = features(&world);
    assert_eq!(expected.len(), 3, "texts, words of images, and which words they are");
    forget(&world);
    (world, expected)
}

/// A world with `count` items, each with a distinct sentence, without features and cached vectors, and the features that one process
/// computed in it.
fn large_world_to_extract(count: usize) -> (Project, Vec<(String, Vec<u8>)>) {
    const EVENTS: usize = 40;
    let world = Project::small();
    let (mut events, mut items) = (String::from("user_id\titem_id\ttimestamp\n"), String::new());
    for item in 0..count {
        let time = 1_600_000_000 + 86_400 * (item % EVENTS);
        events.push_str(&format!("u{}\ti{item}\t{time}\n", item / EVENTS));
        let image = if item % 3 == 0 { ", \"image\": \"one.png\"" } else { "" };
        let words: Vec<String> = (1..7).map(|at| (item * at * 7919 % 9973).to_string()).collect();
        items.push_str(&format!(
            "{{\"item_id\": \"i{item}\", \"title\": \"Thing {item} of {}\"{image}}}\n",
            words.join(" ")
        ));
    }
    world.write("a.tsv", events).write("a.jsonl", items);
    world.run("run", &["--until", "extract"]);
    let expected = features(&world);
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
    assert!(features(world) == expected, "the features are not those of one process");
    let shards = world.path("a/shards");
    let left = if shards.exists() { files::list(&shards).unwrap() } else { Vec::new() };
    assert!(left.iter().all(|path| !path.is_dir()), "nothing is left of shards");
}

#[test]
fn shards_of_an_extraction_give_the_features_of_one_process_whichever_was_killed() {
    let (world, expected) = world_to_extract();
    for delay in [0, 20, 60, 150] {
        let mut shard = world.command("extract", &["--shard", "2/3"]);
        let mut shard = shard.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(delay));
        shard.kill().unwrap();
        shard.wait().unwrap();
    }
    let shards: Vec<_> = ["1/3", "2/3", "3/3"]
        .into_iter()
        .map(|shard| world.command("extract", &["--shard", shard]).stderr(Stdio::piped()).spawn().unwrap())
        .collect();
    for shard in shards {
        let output = shard.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", stderr_of(&output));
    }
    assert!(!world.path("a/features").exists(), "shards write no features");
    expect_assembled(&world, &expected);
    let refused = world.output("extract", &["--shard", "4/3"]);
    assert!(
        !refused.status.success() && stderr_of(&refused).contains("shard 4 of 3 does not exist"),
        "{}",
        stderr_of(&refused)
    );
}

/// The number of bytes that a process has written; `None` if it does not run.
fn written_by(process: &str) -> Option<u64> {
    let folder = Path::new("/proc").join(process);
    // A process that has ended and was not waited for runs no program.
    std::fs::read_link(folder.join("exe")).ok()?;
    let counts = std::fs::read_to_string(folder.join("io")).ok()?;
    counts.lines().find_map(|line| line.strip_prefix("wchar: ")?.parse().ok())
}

/// The command that runs three shards of a stage at once and merges them; `None` if GNU parallel is not installed.
fn parallel(world: &Project, stage: &str) -> Option<Command> {
    if !Command::new("parallel").arg("--version").output().is_ok_and(|output| output.status.success()) {
        println!("skipped: GNU parallel is not installed");
        return None;
    }
    let mut command = Command::new("sh");
    command.arg(root().canonicalize().unwrap().join("deploy/parallel.sh")).args([stage, "3"]);
    command.arg("--pipeline").arg(world.pipeline("a")).arg("--artifacts").arg(world.path(""));
    command.current_dir(world.folder()).env("MP4SR", program("mp4sr")).env("JOBS", "3");
    Some(command)
}

fn succeed(mut command: Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", stderr_of(&output));
    stderr_of(&output)
}

#[test]
fn parallel_runs_the_shards_and_merges_them() {
    let (world, expected) = world_to_extract();
    let Some(extract) = parallel(&world, "extract") else { return };
    let reported = succeed(extract);
    assert!(reported.contains("the vectors of shard 3/3") && reported.contains("computed 0 of"), "{reported}");
    assert_eq!(features(&world), expected);
    world.run("run", &["--until", "finetune"]);
    for stage in ["evaluate", "recommend"] {
        let reported = succeed(parallel(&world, stage).unwrap());
        assert!(reported.contains("merged 3 shards"), "{reported}");
    }
}

#[test]
fn parallel_completes_an_extraction_of_which_a_shard_was_killed_while_it_ran() {
    let (world, expected) = large_world_to_extract(18_000);
    let Some(mut killed) = parallel(&world, "extract") else { return };
    // The encoders are found in the working folder and not copied, so vectors are all that a shard writes.
    std::os::unix::fs::symlink(root().canonicalize().unwrap().join("data"), world.folder().join("data")).unwrap();
    // Every shard writes the number of its process into a file.
    world.write("shard.sh", "#!/bin/sh\necho $$ > \"${3%/*}.process\"\nexec \"$PROGRAM\" \"$@\"\n");
    let wrapper = world.folder().join("shard.sh");
    std::fs::set_permissions(&wrapper, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    killed.env("MP4SR", &wrapper).env("PROGRAM", program("mp4sr")).stderr(Stdio::null()).stdout(Stdio::null());
    let mut killed = killed.spawn().unwrap();
    let mut victims: Vec<String> = Vec::new();
    let status = loop {
        if let Some(status) = killed.try_wait().unwrap() {
            break status;
        }
        let process = std::fs::read_to_string(world.folder().join("2.process")).unwrap_or_default().trim().to_owned();
        // The first attempt is killed after it has stored 4,096 of its 6,000 vectors, and the later ones at once.
        let is_due = |written: u64| !victims.is_empty() || written > 1_000_000;
        if !process.is_empty() && !victims.contains(&process) && written_by(&process).is_some_and(is_due) {
            let sent = Command::new("kill").args(["-9", &process]).status().unwrap();
            assert!(sent.success(), "shard 2 has ended before it could be killed");
            victims.push(process);
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    assert!(!victims.is_empty() && !status.success(), "{victims:?} were killed: {status}");
    assert!(!world.path("a/features").exists());
    let reported = succeed(parallel(&world, "extract").unwrap());
    assert!(reported.contains("the vectors of shard 2/3") && reported.contains("computed 0 of"), "{reported}");
    assert!(features(&world) == expected, "the features are not those of one process");
    let left = files::list(&world.path("a/shards")).unwrap();
    assert!(left.iter().all(|path| !path.is_dir()), "{left:?}");
}

/// Two machines that share the cache and do not see each other's locks: each has its own folder of artifacts. They compute one shard at the
/// same time, and others that only one of them computes.
#[test]
fn hosts_that_do_not_see_each_others_locks_share_a_cache() {
    let (world, expected) = large_world_to_extract(3_000);
    let host = |name: &str| world.folder().join(name);
    let cache = host("cache");
    for name in ["first", "second"] {
        copy_dataset(&world, &host(name));
        files::create_dir_all(&cache).unwrap();
        std::os::unix::fs::symlink(&cache, host(name).join(".cache")).unwrap();
    }
    let command = |name: &str, words: &[&str]| {
        let mut command = mp4sr_tests::command("extract");
        command.args(words).arg("--pipeline").arg(world.pipeline("a")).arg("--artifacts").arg(host(name));
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        command
    };
    let shards = [("first", "1/3"), ("first", "2/3"), ("second", "2/3"), ("second", "3/3")];
    let started: Vec<_> =
        shards.iter().map(|(name, shard)| command(name, &["--shard", shard]).spawn().unwrap()).collect();
    for process in started {
        let output = process.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", stderr_of(&output));
    }
    for name in ["first", "second"] {
        let output = command(name, &[]).output().unwrap();
        assert!(output.status.success() && stderr_of(&output).contains("computed 0 of"), "{}", stderr_of(&output));
        assert!(features_in(&host(name).join("a/features")) == expected, "the features of the {name} host");
        let left: Vec<_> = files::list(&host(name).join("a/shards")).unwrap();
        assert!(left.iter().all(|path| !path.is_dir()), "{left:?}");
    }
    // Merging reads every shard of the cache, and compares vectors that both hosts have computed.
    let mut merge = mp4sr_tests::command("cache");
    let output = merge.arg("merge").arg(host("first")).arg("--artifacts").arg(host("checked")).output().unwrap();
    assert!(output.status.success(), "{}", stderr_of(&output));
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(printed.contains("shards were added, 0 were already present"), "{printed}");
    assert!(!printed.contains("differ"), "{printed}");
}

/// On some network file systems, hosts do not see each other's locks, so two of them may compute the same shard in the same folder. Here,
/// the second process does not see the lock of the first because its file was removed.
#[test]
fn the_same_shard_runs_twice_in_one_folder_without_a_common_lock() {
    let (world, expected) = large_world_to_extract(3_000);
    let start = || world.command("extract", &["--shard", "1/1"]).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = start();
    let lock = world.path("a/shards/.extract.1-of-1.lock");
    while !lock.exists() {
        assert!(first.try_wait().unwrap().is_none(), "the shard ended without a lock");
        std::thread::sleep(Duration::from_millis(1));
    }
    // The holder writes its name into the file after it has acquired the lock.
    while files::read(&lock).unwrap().is_empty() {
        std::thread::sleep(Duration::from_millis(1));
    }
    files::remove_if_present(&lock).unwrap();
    let second = start();
    assert!(first.try_wait().unwrap().is_none(), "both run at the same time");
    for process in [first, second] {
        let output = process.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", stderr_of(&output));
    }
    expect_assembled(&world, &expected);
}

/// Copies the dataset of a world into another folder of artifacts.
fn copy_dataset(world: &Project, artifacts: &Path) {
    for name in ["items.parquet", "users.parquet", "sequences.safetensors"] {
        let copy = artifacts.join("a/dataset").join(name);
        files::write_bytes(&copy, &files::read(&world.path("a/dataset").join(name)).unwrap()).unwrap();
    }
}

/// Two machines without a shared file system, each with a copy of the dataset.
#[test]
fn vectors_of_machines_that_share_nothing_are_merged() {
    let (world, expected) = world_to_extract();
    let machine = |host: &str| world.folder().join(host);
    for (host, shards) in [("first", &["1/3"][..]), ("second", &["2/3", "3/3"])] {
        copy_dataset(&world, &machine(host));
        for shard in shards {
            let mut command = mp4sr_tests::command("extract");
            command
                .arg("--pipeline")
                .arg(world.pipeline("a"))
                .arg("--artifacts")
                .arg(machine(host))
                .args(["--shard", shard]);
            let output = command.output().unwrap();
            assert!(output.status.success(), "{}", stderr_of(&output));
        }
    }
    let merge = |folders: &[&Path]| {
        let mut command = mp4sr_tests::command("cache");
        command.arg("merge").args(folders).arg("--artifacts").arg(world.path("")).output().unwrap()
    };
    // A copy of the second machine's cache, in which one shard was damaged.
    let copy = machine("copy");
    let vectors = machine("second").join(".cache/vectors");
    let mut damaged = false;
    for encoder in files::list(&vectors).unwrap() {
        for path in files::list(&encoder).unwrap() {
            let mut bytes = files::read(&path).unwrap();
            let relative = path.strip_prefix(&vectors).unwrap();
            // Shards that the first machine has, too, are not copied.
            let is_own = !machine("first").join(".cache/vectors").join(relative).exists();
            if !damaged && is_own && path.extension().is_some_and(|end| end == "safetensors") {
                *bytes.last_mut().unwrap() ^= 1;
                damaged = true;
            }
            files::write_bytes(&copy.join(relative), &bytes).unwrap();
        }
    }
    let reported = merge(&[&machine("first"), &copy]);
    assert!(
        damaged
            && !reported.status.success()
            && stderr_of(&reported).contains("1 damaged or foreign vector files were left out"),
        "{}",
        stderr_of(&reported)
    );
    forget(&world);
    let refused = |folders: &[&Path], reason: &str| {
        let reported = merge(folders);
        assert!(!reported.status.success() && stderr_of(&reported).contains(reason), "{}", stderr_of(&reported));
    };
    // If one folder has no vectors, or a folder of an encoder lacks its description, nothing is copied.
    refused(&[&machine("first"), &machine("third")], "third` contains no vectors");
    let about = files::list(&copy).unwrap().into_iter().map(|encoder| encoder.join("about.json")).next_back().unwrap();
    let described = files::read(&about).unwrap();
    files::remove_if_present(&about).unwrap();
    refused(
        &[&machine("first"), &copy],
        &format!("the vectors beside `{}` belong to an unknown encoder", about.display()),
    );
    assert!(!world.path(".cache").exists(), "nothing is copied");
    files::write_bytes(&about, &described).unwrap();
    // A shard in the folder of another encoder is named and not copied.
    let encoders = files::list(&copy).unwrap();
    let shard_in = |folder: &Path| {
        let mut paths = files::list(folder).unwrap().into_iter();
        paths.find(|path| path.extension().is_some_and(|end| end == "safetensors"))
    };
    let (from, shard) = encoders.iter().find_map(|folder| Some((folder, shard_in(folder)?))).unwrap();
    let moved = encoders.iter().find(|folder| *folder != from).unwrap().join(shard.file_name().unwrap());
    files::write_bytes(&moved, &files::read(&shard).unwrap()).unwrap();
    refused(&[&copy], &format!("`{}` cannot be used: it contains another encoder's vectors", moved.display()));
    files::remove_if_present(&moved).unwrap();
    // All but the damaged shard are added, and then that one from the second machine.
    forget(&world);
    refused(&[&machine("first"), &copy], "1 damaged or foreign vector files were left out");
    let reported = merge(&[&machine("first"), &machine("second")]);
    assert!(reported.status.success(), "{}", stderr_of(&reported));
    let printed = String::from_utf8_lossy(&reported.stdout).into_owned();
    assert!(printed.contains("1 shards were added") && printed.contains("1 were already present"), "{printed}");
    expect_assembled(&world, &expected);
    refused(&[world.folder()], "contains no vectors");
    // A damaged shard of the cache itself is replaced.
    let own = files::list(&world.path(".cache/vectors")).unwrap().iter().find_map(|folder| shard_in(folder)).unwrap();
    let whole = files::read(&own).unwrap();
    files::write_bytes(&own, &whole[..whole.len() - 1]).unwrap();
    let reported = merge(&[&machine("first"), &machine("second")]);
    let printed = String::from_utf8_lossy(&reported.stdout).into_owned();
    assert!(
        reported.status.success() && printed.contains(&own.display().to_string()),
        "{printed}{}",
        stderr_of(&reported)
    );
    assert!(files::read(&own).unwrap() == whole);
}

#[test]
fn ranks_and_lists_of_shards_are_those_of_the_whole_and_old_shards_are_not_used() {
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
    let of_shards =
        || content(&run, |name| name.contains("-of-") && Path::new(name).extension().is_none_or(|end| end != "lock"));
    for shard in ["1/3", "3/3"] {
        stage("evaluate", &["--shard", shard]);
        stage("recommend", &["--shard", shard]);
    }
    // If a shard is missing, the stage computes all of it and does not read the other shards.
    assert!(!stage("evaluate", &[]).contains("merged") && !stage("recommend", &[]).contains("merged"));
    assert_eq!(results(), expected);
    assert!(of_shards().is_empty(), "{:?}", of_shards().iter().map(|(name, _)| name).collect::<Vec<_>>());
    forget();
    for shard in ["3/3", "1/3", "2/3"] {
        stage("evaluate", &["--shard", shard]);
        stage("recommend", &["--shard", shard]);
    }
    assert!(stage("evaluate", &["--shard", "2/3"]).contains("up to date"));
    let shards = of_shards();
    assert!(stage("evaluate", &[]).contains("merged 3 shards"));
    assert!(stage("recommend", &[]).contains("merged 3 shards"));
    assert_eq!(results(), expected);
    // The files of shards are removed, and a shard is up to date as long as the whole is.
    assert!(of_shards().is_empty(), "{:?}", of_shards().iter().map(|(name, _)| name).collect::<Vec<_>>());
    assert!(stage("evaluate", &["--shard", "2/3"]).contains("up to date"));
    assert!(of_shards().is_empty());
    // If the process that merged them was killed before it removed them, the next one does.
    for (name, bytes) in &shards {
        files::write_bytes(&run.join(name), bytes).unwrap();
    }
    assert!(stage("evaluate", &[]).contains("up to date") && stage("recommend", &[]).contains("up to date"));
    assert!(of_shards().is_empty());
    forget();
    for shard in ["1/2", "2/2"] {
        stage("evaluate", &["--shard", shard]);
        stage("recommend", &["--shard", shard]);
    }
    assert!(!of_shards().is_empty());
    // With other weights or settings, the shards are not used.
    world.run("run", &[&["--until", "finetune", "--set", "run.seed=7"][..], &short].concat());
    assert!(!stage("evaluate", &["--set", "run.seed=7"]).contains("merged"));
    assert!(!stage("recommend", &["--set", "run.seed=7", "--set", "recommend.top=3"]).contains("merged"));
    assert!(!of_shards().is_empty(), "shards of other weights are kept");
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

/// Python with the settings of Spark's local mode.
fn spark_command(python: &str, world: &Project) -> Command {
    world.write(
        "spark/spark-defaults.conf",
        "spark.master local[2]\nspark.ui.enabled false\nspark.sql.shuffle.partitions 2\n",
    );
    let mut command = Command::new(python);
    command.env("SPARK_CONF_DIR", world.folder().join("spark")).env("SPARK_LOCAL_IP", "127.0.0.1");
    command
}

/// The output of Spark on the interactions of a pipeline, which writes the remaining lines to the folder `reduced`.
fn spark(python: &str, world: &Project, pipeline: &str, data: &Path, flags: &[&OsStr]) -> Output {
    let mut command = spark_command(python, world);
    command.arg(root().join("deploy/spark_interactions.py")).arg("--pipeline").arg(world.pipeline(pipeline));
    command.arg("--data").arg(data).arg("--out").arg(world.folder().join("reduced")).args(flags);
    command.current_dir(world.folder()).output().unwrap()
}

/// Replaces the interactions `names` of a pipeline by those that Spark keeps, and returns Spark's counts.
fn reduce(python: &str, world: &Project, pipeline: &str, data: &Path, names: &[&str]) -> Value {
    let output = spark(python, world, pipeline, data, &[]);
    assert!(output.status.success(), "{}", stderr_of(&output));
    let reduced = world.folder().join("reduced");
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

/// Spark reads the lines in another folder than `dataset.data`, as it would on the disks of a cluster.
#[test]
fn spark_writes_the_dataset_that_preprocess_builds_from_all_lines() {
    let Some(python) = python_with_spark() else { return };
    let raw = tempfile::tempdir().unwrap();
    let made = mp4sr_tests::command("sample").args(["--quiet", "--out"]).arg(raw.path()).status().unwrap();
    assert!(made.success());
    let world = Project::of_pipeline("sample", raw.path());
    world.run("preprocess", &[]);
    let expected = dataset(&world, "sample");
    assert_eq!(expected.len(), 3);
    let counted = report(&world, "sample");

    let (all_lines, cluster) = (raw.path().join("reviews.json.gz"), world.folder().join("cluster"));
    world.write("cluster/reviews.json.gz", files::read(&all_lines).unwrap());
    files::remove_dir_if_present(&world.path("sample")).unwrap();
    let program = program("mp4sr");
    let write_dataset =
        || spark(&python, &world, "sample", &cluster, &[OsStr::new("--preprocess"), program.as_os_str()]);
    let refused = write_dataset();
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr_of(&refused).contains("reviews.json.gz` exists and would be replaced"), "{}", stderr_of(&refused));
    files::remove_if_present(&all_lines).unwrap();
    let output = write_dataset();
    assert!(output.status.success(), "{}", stderr_of(&output));
    expect_counts(&serde_json::from_slice(&output.stdout).unwrap(), &counted);
    assert!(dataset(&world, "sample") == expected, "the dataset of the reduced lines is another one");
    let again = report(&world, "sample");
    assert!(again["filters"][0]["events"].as_u64() < counted["filters"][0]["events"].as_u64());
    let mut differing: Vec<&String> =
        counted.as_object().unwrap().keys().filter(|key| again[key.as_str()] != counted[key.as_str()]).collect();
    differing.sort();
    assert_eq!(differing, ["events", "filters", "interactions", "items", "join"], "as docs/scale.md says");
}

/// Files with columns in different orders and with Windows line ends, a user whose events are in several files, repeated events of which
/// the last file, whose times are in milliseconds, has the latest, a user below the core, a user whose id has blanks around it in one file,
/// an id of blanks, one that marks a missing value, a line without a time, a line that is not UTF-8, and a file of which no event remains.
#[test]
fn several_files_are_reduced_together_by_spark() {
    let Some(python) = python_with_spark() else { return };
    let world = Project::small();
    let names = ["a.tsv", "more.tsv", "old.ndjson", "last.csv", "lone.ndjson"];
    let pipeline = files::read_to_string(&world.pipeline("a")).unwrap();
    let listed = format!("interactions = {names:?}");
    world.write(
        "a.toml",
        pipeline.replace("interactions = [\"a.tsv\"]", &listed).replace("item_core = 1", "item_core = 5"),
    );
    let mut more = String::from("timestamp\titem_id\tuser_id\r\n");
    let mut old = String::new();
    let mut last = String::from("item_id,user_id,timestamp\n");
    for at in 0..9 {
        more.push_str(&format!("{}\ti{}\tsplit\r\n", 1_700_000_000 + at, at % 4));
        old.push_str(&format!(
            "{{\"user_id\": \" split \", \"item_id\": \"i{}\", \"timestamp\": {}}}\n",
            at % 8,
            1_600_000_000 - at
        ));
        last.push_str(&format!(
            "i{},split,{}000\nrare{at},u{at},{}000\n",
            at % 7,
            1_700_000_000 + 2 * at,
            1_500_000_000 + at
        ));
    }
    more.push_str("1700000000\ti3\tseldom\r\n\ti4\tseldom\r\n1700000000\ti3\t\u{2003}\r\n1700000000\ti3\tNULL\r\n");
    let mut more = more.into_bytes();
    more.extend(b"1700000000\ti3\tspl\xefit\r\n");
    world.write("more.tsv", more).write("old.ndjson", old).write("last.csv", last);
    world.write("lone.ndjson", "{\"user_id\": \"lone\", \"item_id\": \"i1\", \"timestamp\": 1700000000}\n");
    world.run("preprocess", &[]);
    let (expected, counted) = (dataset(&world, "a"), report(&world, "a"));
    expect_counts(&reduce(&python, &world, "a", world.folder(), &names), &counted);
    files::remove_dir_if_present(&world.path("a")).unwrap();
    world.run("preprocess", &[]);
    assert!(dataset(&world, "a") == expected, "the dataset of the reduced lines is another one");
    assert!(report(&world, "a")["filters"][0]["events"].as_u64() < counted["filters"][0]["events"].as_u64());
}

/// Calls the job with each of the given pipelines, all in one process of Spark, and prints the sentence with which it refuses each of them.
const CALLS: &str = r#"
import json, sys
sys.dont_write_bytecode = True
job, folder, *pipelines = sys.argv[1:]
sys.path.insert(0, job)
import spark_interactions
for pipeline in pipelines:
    sys.argv = ["job", "--pipeline", pipeline, "--data", folder, "--out", folder + "/reduced"]
    try:
        spark_interactions.main()
        print(json.dumps("no error"))
    except SystemExit as end:
        print(json.dumps(end.code))
"#;

/// Each format and setting that the job does not support is refused in one sentence, and so is a folder that is in use.
#[test]
fn spark_refuses_what_it_does_not_read() {
    let Some(python) = python_with_spark() else { return };
    let world = Project::small();
    let mut cases: Vec<(String, String)> = Vec::new();
    for (key, value) in [
        ("source.format", "\"goodreads\""),
        ("source.time", "\"line-order\""),
        ("source.time", "\"%d.%m.%Y\""),
        ("source.encoding", "\"latin-1\""),
        ("source.quoting", "\"never\""),
        ("source.quote_escape", "\"\\\\\""),
        ("source.decimal_comma", "true"),
        ("source.interactions_header", "[\"user_id\", \"item_id\", \"timestamp\"]"),
        ("source.columns.position", "\"n\""),
        ("source.columns.item_separator", "\" \""),
        ("preprocess.where", "\"rating > 3\""),
        ("preprocess.since", "\"2018-01-01\""),
        ("preprocess.until", "\"2018-01-01\""),
        ("preprocess.recent", "5"),
        ("preprocess.max_bad_lines", "0"),
        ("preprocess.items_without_events", "\"keep\""),
    ] {
        let format = if key == "source.format" { "" } else { "source.format = \"tabular\"\n" };
        let pipeline = format!("source.interactions = [\"a.tsv\"]\n{format}{key} = {value}\n");
        cases.push((pipeline, format!("`{key}` = ")));
    }
    world.write("a.tsv", format!("{}no\tline\n", world.raw_text("a.tsv")));
    let time = |time: &str| format!("user_id\titem_id\ttimestamp\nu\ti\t{time}\n");
    for (name, content, expected) in [
        ("dates.tsv", time("2018-09-30 12:00:00"), "dates.tsv`, such as `2018-09-30 12:00:00`, are not Unix times"),
        ("days.tsv", time("20180930"), "days.tsv`, such as `20180930`, are not Unix times"),
        ("none.tsv", time(""), "none of the 1 lines has a user, an item and a Unix time"),
        (
            "zero.tsv",
            "user_id\titem_id\ttimestamp\nu\ti\t20180930\nu\tj\t20180929\nu\tj\t20181001\nu\tk\t0\n".to_owned(),
            "zero.tsv`, such as `20180930`, are not Unix times",
        ),
        (
            "units.tsv",
            "user_id\titem_id\ttimestamp\nu\ti\t1600000000\nu\tj\t1600000001\nu\tk\t1600000002\nu\tl\t1600000003000\n\
             u\tm\t1600000004000\n"
                .to_owned(),
            "units.tsv` has times in more than one notation",
        ),
        ("blank.tsv", format!("\n{}", time("9")), "has a blank line where its header belongs"),
        ("out.tsv", time("1600000000"), "out.tsv` exists"),
        ("tuples.tsv", "user_id\titem_id\ttimestamp\nu\t('i', 'j')\t9\n".to_owned(), "has lists of items"),
        ("lists.tsv", "user_id\titem_id\ttimestamp\nu\t['i', 'j']\t9\n".to_owned(), "has lists of items"),
        ("quotes.csv", "user_id,item_id,timestamp\nu,\"i,j\",9\n".to_owned(), "quotes.csv` has quotation marks"),
        ("other.csv", "user,item_id,timestamp\nu,i,9\n".to_owned(), "does not name each of the columns"),
        ("python.json", "{'user_id': 'u', 'item_id': 'i', 'timestamp': 9}\n".to_owned(), "has Python dictionaries"),
        ("array.json", "[\n{\"user_id\": 1}]\n".to_owned(), "does not have one JSON object per line"),
        ("a.parquet", "PAR1".to_owned(), "is a Parquet file"),
    ] {
        world.write(name, content);
        let pipeline = format!("source.interactions = [\"{name}\"]\nsource.format = \"tabular\"\n");
        cases.push((pipeline, expected.to_owned()));
    }
    std::fs::create_dir_all(world.folder().join("reduced/out.tsv")).unwrap();
    let mut command = spark_command(&python, &world);
    command.args(["-c", CALLS]).arg(root().join("deploy")).arg(world.folder());
    for (number, (pipeline, _)) in cases.iter().enumerate() {
        world.write(&format!("{number}.toml"), pipeline);
        command.arg(world.pipeline(&number.to_string()));
    }
    let output = command.output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    let sentences: Vec<&str> = printed.lines().collect();
    assert_eq!(sentences.len(), cases.len(), "{printed}{}", stderr_of(&output));
    for (sentence, (pipeline, expected)) in sentences.iter().zip(&cases) {
        let sentence: Value = serde_json::from_str(sentence).unwrap();
        assert!(sentence.as_str().is_some_and(|sentence| sentence.contains(expected)), "{pipeline}: {sentence}");
    }
    assert_eq!(files::list(&world.folder().join("reduced")).unwrap().len(), 1, "something was written");
}

fn report(world: &Project, name: &str) -> Value {
    serde_json::from_slice(&world.bytes(&format!("{name}/dataset/report.json"))).unwrap()
}
