//! The program on its own: outside of the repository with its embedded files, and through make. `make test` builds it first.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::Command;

use mp4sr_artifact::{FeatureType, Features, Items, files};
use mp4sr_tests::{Project, command, copy_folder, program, root, stderr_of};

/// A command of the program in a folder outside of the repository.
fn elsewhere(folder: &Path, stage: &str) -> Command {
    let mut command = command(stage);
    command.current_dir(folder).env_remove("CARGO_MANIFEST_DIR");
    command
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", stderr_of(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// A folder in which the demo has run, and what it printed.
fn demo() -> (PathBuf, String) {
    let folder = mp4sr_tests::shared(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("demo"), |folder| {
        let mut demo = elsewhere(folder, "demo");
        let printed = run(demo.args(SHORT.split(' ').flat_map(|assignment| ["--set", assignment])));
        files::write_bytes(&folder.join("printed.txt"), printed.as_bytes()).unwrap();
    });
    let printed = files::read_to_string(&folder.join("printed.txt")).unwrap();
    (folder, printed)
}

#[test]
fn the_demo_runs_in_an_empty_folder() {
    let (folder, printed) = demo();
    for row in ["| popularity | test ", "| mp4sr-without-pretraining | test ", "| mp4sr | test ", "over the best other"]
    {
        assert!(printed.contains(row), "{row}: {printed}");
    }
    let last = printed.lines().last().unwrap();
    assert_eq!(last, "The page: artifacts/sample/runs/mp4sr/report/index.html");
    let page = files::read_to_string(&folder.join(last.trim_start_matches("The page: "))).unwrap();
    assert!(page.contains("data:image/"), "with images");
}

#[test]
fn built_in_encoders_give_the_vectors_of_the_repository_and_compute_none_twice() {
    let world = Project::small();
    world.run("preprocess", &[]);
    world.run("extract", &[]);
    let features = || -> Vec<(String, Vec<u8>)> {
        let paths = files::list(&world.path("a/features")).unwrap();
        let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
        let made = paths.iter().filter(|path| name(path).ends_with("safetensors") || name(path).ends_with("parquet"));
        made.map(|path| (name(path), files::read(path).unwrap())).collect()
    };
    let before = features();
    assert_eq!(before.len(), 3);
    // Outside of the repository, the embedded copies are read. Their content is the same, so there is nothing to do.
    let extract = |more: &[&str]| {
        let mut command = elsewhere(world.folder(), "extract");
        command.arg("--pipeline").arg(world.pipeline("a")).arg("--artifacts").arg(world.path("")).args(more);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", stderr_of(&output));
        stderr_of(&output)
    };
    assert!(extract(&[]).contains("up to date"));
    let named = extract(&[
        "--set",
        "extract.text.model=builtin:tiny-sentence",
        "--set",
        "extract.image.model=builtin:tiny-clip",
    ]);
    assert!(named.contains("computed 0 of"), "{named}");
    let after = features();
    let names = |features: &[(String, Vec<u8>)]| features.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&after), names(&before));
    let values = |bytes: &[u8]| bytes[bytes.len() - 64..].to_vec();
    assert!(before.iter().zip(&after).all(|(a, b)| a.1.len() > 64 && values(&a.1) == values(&b.1)));
}

#[test]
fn a_pipeline_of_texts_does_not_open_clip() {
    let world = Project::small();
    let text_only = ["--set", r#"model.modalities=[{name="text"}]"#];
    let no_clip = [&text_only[..], &["--set", "extract.image.model=nowhere/at/all"]].concat();
    world.run("run", &[&["--until", "evaluate"][..], &no_clip].concat());
    assert!(!world.text("a/features/report.json").is_empty());
    let names: Vec<_> = files::list(&world.path("a/features")).unwrap();
    assert!(!names.iter().any(|path| path.to_string_lossy().contains("image")), "{names:?}");
    let refused = world.output("extract", &["--set", "extract.image.model=nowhere/at/all"]);
    assert!(stderr_of(&refused).contains("nowhere/at/all"), "{}", stderr_of(&refused));
    // Runs of one dataset with other modalities do not replace each other's features.
    let text = world.path("a/features/text.tiny-sentence.safetensors");
    let before = files::read(&text).unwrap();
    world.run("extract", &[]);
    assert!(stderr_of(&world.output("extract", &text_only)).contains("up to date"));
    assert!(stderr_of(&world.output("extract", &[])).contains("up to date"));
    // An earlier release has not recorded keys that are new, which now have their defaults.
    let record = world.path("a/features/extract.manifest.json");
    let mut manifest: serde_json::Value = serde_json::from_slice(&files::read(&record).unwrap()).unwrap();
    let keys = manifest["settings"]["extract"].as_object_mut().unwrap();
    assert!(["precision", "storage"].iter().all(|key| keys.remove(*key).is_some()));
    files::write_json(&record, &manifest).unwrap();
    assert!(stderr_of(&world.output("extract", &text_only)).contains("up to date"));
    // Only the header differs, which records the settings; the vectors are the same.
    assert!(files::read(&text).unwrap().ends_with(&before[before.len() - 64..]));
}

#[test]
fn a_pipeline_is_brought_to_a_stage_and_no_further() {
    let world = Project::small();
    let printed = world.run("run", &["--until", "recommend"]);
    assert!(!printed.contains("| mp4sr | test "), "lists need no ranks: {printed}");
    assert!(world.path("a/runs/mp4sr/recommendations.parquet").exists());
    assert!(!world.path("a/runs/mp4sr/ranks.test.safetensors").exists());
    let printed = world.run("run", &[]);
    assert!(printed.contains("| mp4sr | test ") && world.path("a/runs/mp4sr/report/index.html").exists());
    let again = world.output("run", &[]);
    assert_eq!(stderr_of(&again).matches("up to date").count(), 7, "{}", stderr_of(&again));
    let unknown = world.output("run", &["--until", "nothing"]);
    assert!(!unknown.status.success() && stderr_of(&unknown).contains("evaluate"), "{}", stderr_of(&unknown));
}

/// Runs the example of docs/artifacts.md through make, which must not generate the sample world for another pipeline.
#[test]
fn make_accepts_values_with_spaces_and_quotes() {
    let document = files::read_to_string(&root().join("docs/artifacts.md")).unwrap();
    let example = document.split('`').find(|code| code.starts_with("model.modalities = [{")).unwrap();
    let world = Project::small();
    let make = |target: &str, more: &[String]| {
        let mut command = Command::new("make");
        command.current_dir(root()).args(["--no-print-directory", "-o", "build", target]);
        command.arg(format!("BIN={}", program("mp4sr").parent().unwrap().display()));
        command.arg(format!("PIPELINE={}", world.pipeline("a").display()));
        command.arg(format!("ARTIFACTS={}", world.path("").display())).args(more);
        command.env_remove("MAKEFLAGS").env_remove("MP4SR_SET").output().unwrap()
    };
    let output = make("preprocess", &[]);
    assert!(output.status.success(), "{}", stderr_of(&output));
    let items = Items::read(&world.path("a/dataset/items.parquet")).unwrap();
    let offsets: Vec<i64> = (0..=items.len() as i64).collect();
    let rows = vec![0.5; 3 * items.len()];
    let own = Features::from_f32(offsets, &rows, 3, FeatureType::F32, items.hash()).unwrap();
    own.write(&world.path("a/features/audio.mine.safetensors"), "mine", serde_json::Value::Null).unwrap();
    let output = make("evaluate", &[format!("SET=run.seed=7 {example} pretrain.epochs=1")]);
    assert!(output.status.success(), "{}", stderr_of(&output));
    let config = world.text("a/runs/mp4sr/config.toml");
    assert!(config.contains("seed = 7") && config.contains("\"audio\"") && config.contains("\"mine\""), "{config}");
    // A pipeline whose path contains `sample` is not the sample pipeline.
    assert!(!world.path("sample").exists());
    let refused = make("preprocess", &["SET=run.name=\"x".to_owned()]);
    assert!(stderr_of(&refused).contains("is not closed"), "{}", stderr_of(&refused));
}

#[test]
fn the_sample_world_is_generated_for_its_pipeline_wherever_artifacts_go() {
    let folder = tempfile::tempdir().unwrap();
    let stage = |pipeline: &Path| {
        let mut command = elsewhere(folder.path(), "run");
        command.args(["--until", "preprocess", "--artifacts", "made"]).arg("--pipeline").arg(pipeline).output().unwrap()
    };
    let own = folder.path().join("sample-of-mine.toml");
    files::write_bytes(&own, b"[dataset]\nname = \"mine\"\n[source]\ninteractions = [\"x.json\"]\n").unwrap();
    assert!(stderr_of(&stage(&own)).contains("x.json") && !folder.path().join("made/sample").exists());
    let output = stage(&root().canonicalize().unwrap().join("pipelines/sample.toml"));
    assert!(output.status.success(), "{}", stderr_of(&output));
    assert!(folder.path().join("made/sample/raw/reviews.json.gz").exists());
    assert!(!folder.path().join("artifacts").exists());
}

/// Runs the program in `examples/` that uses the crates as libraries.
#[test]
fn the_example_recommends_for_a_history() {
    let world = Project::small();
    world.run("run", &["--until", "finetune"]);
    let example = |history: &[&str]| {
        let mut command = Command::new(program("examples/recommend_for_a_history"));
        command.arg(world.pipeline("a")).arg(world.path("")).args(history).output().unwrap()
    };
    let listed = example(&["i3", "i4", "i5"]);
    assert!(listed.status.success(), "{}", stderr_of(&listed));
    let lines = String::from_utf8(listed.stdout).unwrap();
    let scores: Vec<f64> = lines.lines().map(|line| line.split_whitespace().next().unwrap().parse().unwrap()).collect();
    assert!(scores.len() > 5 && scores.is_sorted_by(|a, b| a >= b) && lines.contains("A thing of group"), "{lines}");
    let unknown = example(&["nothing"]);
    assert!(!unknown.status.success() && stderr_of(&unknown).contains("`nothing` is not in the dataset"));
}

#[test]
fn shells_and_man_know_every_subcommand() {
    for shell in ["bash", "zsh", "fish"] {
        let text = run(command("completions").arg(shell));
        for word in ["preprocess", "finetune", "until", "unused-days"] {
            assert!(text.contains(word), "{shell}: {word}");
        }
    }
    let folder = tempfile::tempdir().unwrap();
    run(command("man").arg(folder.path().join("man1")));
    for page in ["mp4sr", "mp4sr-run", "mp4sr-train-pretrain", "mp4sr-cache-prune"] {
        let text = files::read_to_string(&folder.path().join("man1").join(format!("{page}.1"))).unwrap();
        assert!(text.contains(".SH SYNOPSIS"), "{page}: {text}");
    }
}

#[test]
fn a_pipeline_reads_sounds_as_a_modality() {
    let world = Project::small();
    let fixtures = root().join("crates/extract/tests/fixtures");
    for name in ["short.wav", "long.flac", "stereo.flac"] {
        world.write(name, files::read(&fixtures.join("sounds").join(name)).unwrap());
    }
    let names = ["short.wav", "long.flac", "stereo.flac"];
    let items = world.raw_text("a.jsonl");
    let lines = items.lines().enumerate();
    let lines =
        lines.map(|(at, line)| format!("{}, \"preview\": \"{}\"}}\n", line.trim_end_matches('}'), names[at % 3]));
    world.write("a.jsonl", lines.collect::<String>());
    let columns = "[source.columns]\nsounds = \"preview\"\n";
    let modalities = "[model]\nmodalities = [{ name = \"text\" }, { name = \"audio\" }]\n";
    let pipeline = world.raw_text("a.toml").replace("[source.columns]\n", columns).replace("[model]\n", modalities);
    world.write("a.toml", pipeline);

    let refused = world.run_failing("run", &["--until", "extract"]);
    assert!(refused.contains("extract.audio.model") && refused.contains("Whisper"), "{refused}");
    let model = format!("extract.audio.model={:?}", fixtures.join("adapter/whisper").to_string_lossy());
    let message = world.run_stderr("run", &["--until", "evaluate", "--set", &model]);
    assert!(
        message.contains("0 items without sound; computed 3 of 3") && !message.contains("cannot be used"),
        "{message}"
    );
    assert!(world.path("a/features/audio.whisper.safetensors").exists());
    let ranks: Vec<_> = files::list(&world.path("a/runs")).unwrap();
    assert_eq!(ranks.len(), 1);
    assert!(ranks[0].join("ranks.test.safetensors").exists(), "the model trains and ranks on texts and sounds");
}

/// Runs the commands of docs/serving.md and docs/exports.md, and of their section in the README, on the sample world.
#[test]
fn the_commands_of_the_guides_to_serving_and_exports_work_as_written() {
    let folder = tempfile::tempdir().unwrap();
    copy_folder(&demo().0.join("artifacts"), &folder.path().join("artifacts"));
    let write = |name: &str, text: &str| files::write_bytes(&folder.path().join(name), text.as_bytes()).unwrap();
    write("pipelines/sample.toml", &files::read_to_string(&root().join("pipelines/sample.toml")).unwrap());
    write("new.jsonl", "{\"user_id\": \"u\", \"history\": [\"B09P5O2CH9\"]}\n");
    write("new_items.jsonl", "{\"asin\": \"NEW1\", \"title\": \"A canvas bag for the beach\"}\n");
    let documents = ["docs/serving.md", "README.md", "docs/exports.md"]
        .map(|name| files::read_to_string(&root().join(name)).unwrap());
    let readme = documents[1].split("## Recommending and serving").nth(1).unwrap().split("## ").next().unwrap();
    let commands = shown_commands([&documents[0], readme, &documents[2]].into_iter().flat_map(str::lines));
    let stages = ["run ", "recommend ", "items ", "serve ", "export ", "import "];
    assert!(commands.len() > 10 && stages.iter().all(|stage| commands.iter().any(|own| own.line.starts_with(stage))));
    assert!(commands.iter().any(|own| !own.requests.is_empty()), "requests to a service");
    // Replicas need a PostgreSQL server, which tests/replicas.rs starts.
    let without_server = commands.into_iter().filter(|own| !own.line.contains("serve.store="));
    without_server.for_each(|own| run_as_shown(folder.path(), &own));
}

/// A command that a document shows.
struct ShownCommand<'a> {
    /// The command without the name of the program.
    line: &'a str,
    /// The `curl` commands that follow it.
    requests: Vec<&'a str>,
}

/// The indented commands of lines.
fn shown_commands<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<ShownCommand<'a>> {
    let mut commands: Vec<ShownCommand<'a>> = Vec::new();
    for line in lines {
        if let Some(line) = line.strip_prefix("    mp4sr ") {
            commands.push(ShownCommand { line, requests: Vec::new() });
        } else if let Some(line) = line.strip_prefix("    curl ") {
            commands.last_mut().expect("a service before a request").requests.push(line);
        }
    }
    commands
}

/// Sends the request of a `curl` command that a document shows to the service at `address`, and expects a list for a known history.
fn request_as_shown(address: &str, line: &str) {
    let parsed = line.strip_prefix("-s http://127.0.0.1:8080").and_then(|rest| rest.split_once(" -d '"));
    let (path, body) = parsed.unwrap_or_else(|| panic!("this test cannot run `curl {line}`"));
    let body = body.strip_suffix('\'').unwrap_or_else(|| panic!("`curl {line}` does not close its body"));
    let answer = mp4sr_tests::service::send(address, "POST", path, "", body.as_bytes());
    let expected = serde_json::from_str::<serde_json::Value>(body).unwrap()["k"].as_u64();
    assert_eq!(Some(answer.list().len() as u64), expected, "curl {line}: {}", answer.body);
    assert_eq!(answer.json()["unknown"], serde_json::json!([]), "curl {line}");
}

/// Runs `mp4sr LINE` in a folder with a shell, as a reader would, with little training. A service only answers the requests that are shown
/// with it.
fn run_as_shown(folder: &Path, ShownCommand { line, requests }: &ShownCommand<'_>) {
    let line = *line;
    let mut shell = Command::new("sh");
    let path = std::env::join_paths(
        [program("mp4sr").parent().unwrap().to_owned()]
            .into_iter()
            .chain(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())),
    );
    shell.current_dir(folder).env("PATH", path.unwrap()).env_remove("CARGO_MANIFEST_DIR").env("MP4SR_SET", SHORT);
    if !line.starts_with("serve ") {
        // The demo has its own settings, which only flags replace.
        let line = match line.split(" #").next().map(str::trim_end) {
            Some("demo") => format!("demo --set {}", SHORT.replace(' ', " --set ")),
            _ => line.to_owned(),
        };
        let output = shell.args(["-c", &format!("mp4sr {line}")]).output().unwrap();
        assert!(output.status.success(), "mp4sr {line}: {}", stderr_of(&output));
        return;
    }
    // The port may be in use on this machine; everything else is run as shown.
    shell.env("MP4SR_PORT", "0").stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::null());
    let line = line.replace(" --port 8080", "");
    let mut service = shell.args(["-c", &format!("exec mp4sr {line}")]).spawn().unwrap();
    let mut address = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(service.stdout.take().unwrap()), &mut address).unwrap();
    let service = Running(service);
    let address = address.trim().strip_prefix("http://").unwrap_or_else(|| panic!("mp4sr {line}: {address}"));
    assert!(address.starts_with("127.0.0.1:"), "mp4sr {line}: {address}");
    requests.iter().for_each(|request| request_as_shown(address, request));
    drop(service);
}

/// A process that ends with the test, even if the test fails.
struct Running(std::process::Child);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Settings that shorten training.
const SHORT: &str = "pretrain.epochs=1 finetune.epochs=1 model.mp4sr.experts=2 model.transformer.width=16 \
                     model.transformer.feed_forward=16";

/// Runs the ten commands of docs/guide.md, and the others that it shows, from the generated shop to the service.
#[test]
fn the_commands_of_the_guide_work_as_written() {
    let folder = tempfile::tempdir().unwrap();
    let guide = files::read_to_string(&root().join("docs/guide.md")).unwrap();
    let commands = shown_commands(guide.lines());
    let numbered = guide.lines().filter(|line| line.starts_with("### ")).count();
    assert_eq!((numbered, commands.len()), (10, 14), "ten, the shop, and three to compare with");
    assert_eq!(commands.iter().map(|own| own.requests.len()).sum::<usize>(), 1);
    commands.iter().for_each(|own| run_as_shown(folder.path(), own));
    assert!(folder.path().join("artifacts/shop/runs/mp4sr/report/index.html").exists());
}

/// The commands of a README line that calls make, without optional parts. `a | b` means two targets of one command, or two commands.
fn make_commands(line: &str) -> Vec<String> {
    let mut text = line.split(" #").next().unwrap_or_default().to_owned();
    while let Some((before, rest)) = text.split_once('[') {
        text = format!("{before}{}", rest.split_once(']').map_or("", |(_, after)| after));
    }
    let parts: Vec<&str> = text.split(" | ").map(str::trim).collect();
    if parts.iter().all(|part| part.starts_with("make ")) {
        return parts.into_iter().map(str::to_owned).collect();
    }
    let last = parts.last().copied().unwrap_or_default();
    let values = last.split_once(' ').map_or("", |(_, values)| values);
    let target = |part: &str| part.trim_start_matches("make ").split(' ').next().unwrap_or_default().to_owned();
    parts.iter().map(|part| format!("make {} {values}", target(part))).collect()
}

/// Runs every command that the README shows. For make targets that build everything, use the network or train for minutes, this only checks
/// that make knows them; the program runs the demo.
#[test]
fn every_command_of_the_readme_works() {
    let world = Project::small();
    let folder = world.folder();
    copy_folder(&demo().0.join("artifacts"), &folder.join("artifacts"));
    let every_stage = mp4sr_tests::stages().chain(["download"]).collect::<Vec<_>>().join(" | ");
    let text = files::read_to_string(&root().join("README.md")).unwrap().replace("\n         ", " ");
    let text = text.replace("make <stage> ", &format!("make {every_stage} "));
    let events =
        world.raw_text("a.tsv").replace('\t', ",").replacen("user_id,item_id,timestamp", "customer,sku,bought", 1);
    let titles: Vec<String> = (0..31).map(|item| format!("i{item},A thing of group {}", item / 3)).collect();
    world.write("folder/one.png", files::read(&folder.join("one.png")).unwrap());
    for (name, content) in [
        ("sales.csv", events.as_str()),
        ("products.csv", &format!("sku,name\n{}\n", titles.join("\n"))),
        ("x.toml", &files::read_to_string(&world.pipeline("a")).unwrap()),
        ("pipelines/x.toml", &files::read_to_string(&world.pipeline("a")).unwrap()),
        ("folder/a.tsv", &world.raw_text("a.tsv")),
        ("folder/a.jsonl", &world.raw_text("a.jsonl")),
        ("new.jsonl", "{\"user_id\": \"u\", \"history\": [\"B09P5O2CH9\"]}\n"),
        ("new_items.jsonl", "{\"asin\": \"NEW1\", \"title\": \"A canvas bag for the beach\"}\n"),
    ] {
        world.write(name, content);
    }
    let bin = program("mp4sr").parent().unwrap().display().to_string();
    let make = |words: &str, more: &[&str]| {
        let mut shell = Command::new("sh");
        let words = words.replace("pipelines/x.toml", &folder.join("pipelines/x.toml").display().to_string());
        let command = format!("exec {words} --no-print-directory -o build {} BIN='{bin}'", more.join(" "));
        shell.current_dir(root()).env_remove("MAKEFLAGS").env("MP4SR_SET", SHORT).args(["-c", &command]);
        let output = shell.output().unwrap();
        assert!(output.status.success(), "{command}: {}", stderr_of(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let artifacts = format!("ARTIFACTS='{}'", folder.join("by-make").display());
    let pipeline = format!("PIPELINE='{}'", folder.join("pipelines/x.toml").display());
    let mut shown = 0;
    for line in text.lines().filter_map(|line| line.strip_prefix("    ")) {
        shown += 1;
        if let Some(line) = line.strip_prefix("mp4sr ") {
            // One line may show two commands.
            line.split(" | mp4sr ").for_each(|line| run_as_shown(folder, &ShownCommand { line, requests: Vec::new() }));
            continue;
        }
        if line.starts_with("cargo install --path crates/mp4sr") {
            assert!(root().join("crates/mp4sr/src/main.rs").exists());
            continue;
        }
        assert!(line.starts_with("make "), "the README shows `{line}`, and this test does not run it");
        for command in make_commands(line) {
            let is_known_alone =
                ["make demo", "make test", "make download"].iter().any(|known| command.starts_with(known));
            if is_known_alone || command.contains("MiniLM") {
                let printed = make(&command, &["-n"]);
                assert!(printed.contains("cargo") || printed.contains("mp4sr"), "{command}: {printed}");
                continue;
            }
            let (own, quick) = (!command.contains("PIPELINE="), command.contains("table"));
            let more = [artifacts.as_str(), if own { &pipeline } else { "" }, if quick { "QUICK=1" } else { "" }];
            make(&command, &more);
            // The run that `make compare` compares with.
            if command.starts_with("make all") {
                make("make evaluate RUN=sasrec SET=model.name=sasrec", &[&artifacts, &pipeline]);
            }
        }
    }
    assert!(shown > 15, "{shown}");
}
