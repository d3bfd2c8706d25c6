//! Exports of trained runs, and imports of datasets of other programs. `make test` builds the program first.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, reason = "a test says what it skips")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use mp4sr_artifact::{Features, Items, Sequences, Table, TimeKind, Users, files};
use mp4sr_pipeline::config::ModelType;
use mp4sr_protocol::{EvalCase, Split, training_items};
use mp4sr_run::model_catalog;
use mp4sr_tests::{Project, command, root, stderr_of};
use safetensors::SafeTensors;
use serde_json::{Value, json};

/// A user's id, with the ids and scores of the user's list, best first.
type List = (String, Vec<String>, Vec<f32>);

/// The output of a Python script; `None` if Python lacks the packages that it needs. `PYTHON` names the interpreter.
fn python(script: &str, needs: &str, arguments: &[&Path], words: &[&str]) -> Option<String> {
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let has = Command::new(&python).args(["-c", &format!("import {needs}")]).output();
    if !has.is_ok_and(|has| has.status.success()) {
        println!("skipped: `{python}` lacks one of {needs} (name another one with PYTHON)");
        return None;
    }
    let script = root().join("tests/exports").join(script);
    let output = Command::new(&python).arg(&script).args(arguments).args(words).output().unwrap();
    assert!(output.status.success(), "{}: {}", script.display(), stderr_of(&output));
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The JSON in the output of a script.
fn found(printed: &str) -> Value {
    let line = printed.lines().find_map(|line| line.strip_prefix("FOUND")).unwrap();
    serde_json::from_str(line).unwrap()
}

fn export(world: &Project, words: &[&str]) -> PathBuf {
    let out = world.folder().join("out");
    world.run("export", &[words, &["--out", &out.display().to_string()]].concat());
    out
}

fn lists_of_json(path: &Path) -> Vec<List> {
    let texts = |value: &Value| value.as_array().unwrap().iter().map(|own| own.as_str().unwrap().to_owned()).collect();
    let list = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap();
        let scores = line["scores"].as_array().unwrap().iter().map(|score| score.as_f64().unwrap() as f32).collect();
        (line["user_id"].as_str().unwrap().to_owned(), texts(&line["items"]), scores)
    };
    files::read_to_string(path).unwrap().lines().map(list).collect()
}

fn lists_of_table(path: &Path) -> Vec<List> {
    let mut table = Table::read(path, "").unwrap();
    let (users, items) = (table.take_text("user_id").unwrap(), table.take_texts("items").unwrap());
    let scores = table.take_f32s("scores").unwrap();
    users.into_iter().zip(items.into_iter().zip(scores)).map(|(user, (items, scores))| (user, items, scores)).collect()
}

#[test]
fn lists_equal_those_of_the_stage_in_every_format() {
    let world = Project::small();
    world.run("run", &["--until", "recommend"]);
    let out = export(&world, &["--format", "lists-parquet,lists-jsonl,lists-csv"]);
    let expected = lists_of_table(&world.path("a/runs/mp4sr/recommendations.parquet"));
    assert_eq!(lists_of_table(&out.join("lists/lists.parquet")), expected, "scores to the bit");
    assert_eq!(lists_of_json(&out.join("lists/lists.jsonl")), expected);
    let csv = files::read_to_string(&out.join("lists/lists.csv")).unwrap();
    assert_eq!(csv.lines().count(), 1 + expected.iter().map(|list| list.1.len()).sum::<usize>());
    assert!(csv.lines().nth(1).unwrap().starts_with(&format!("{},1,{},", expected[0].0, expected[0].1[0])));
    // Lists of another length, and for whole histories, must equal the answer of `recommend --histories` for a known user.
    let out = export(&world, &["--format", "lists-jsonl", "--top", "3", "--set", "recommend.before_test_item=false"]);
    assert!(!out.join("lists/lists.csv").exists(), "the earlier export is replaced as a whole");
    let whole = lists_of_json(&out.join("lists/lists.jsonl"));
    assert_eq!(whole.len(), 60);
    world.write("known.jsonl", "{\"user_id\": \"u7\", \"history\": []}\n");
    let known = world.folder().join("known.jsonl").display().to_string();
    let answer: Value =
        serde_json::from_str(world.run("recommend", &["--histories", &known, "--top", "3"]).trim()).unwrap();
    let own = whole.iter().find(|list| list.0 == "u7").unwrap();
    assert_eq!(answer["items"], json!(own.1));
}

/// The values of a matrix, and its width.
fn matrix(bytes: &[u8], name: &str) -> (Vec<f32>, usize) {
    let file = SafeTensors::deserialize(bytes).unwrap();
    let tensor = file.tensor(name).unwrap();
    let values = tensor.data().chunks_exact(4).map(|own| f32::from_le_bytes(own.try_into().unwrap())).collect();
    (values, tensor.shape()[1])
}

/// A plain search through a model's vectors must give the model's lists. The models include some with several interests, and some that rank
/// by the user.
#[test]
fn vectors_give_the_lists_of_every_model() {
    let world = Project::small();
    world.run("run", &["--until", "finetune"]);
    world.run("run", &["--until", "extract"]);
    let models = model_catalog().models().map(ModelType::name);
    for model in models.filter(|name| *name != "popularity") {
        let name = format!("model.name={model}");
        let set = ["--run", model, "--set", &name, "--set", "pretrain.epochs=1", "--set", "finetune.epochs=1"];
        if model != "mp4sr" {
            world.run("run", &[&["--until", "finetune"], &set[..]].concat());
        }
        let formats = ["--format", "lists-jsonl,vectors-npy,vectors-safetensors,vectors-parquet", "--top", "5"];
        let set = if model == "mp4sr" { &[][..] } else { &set };
        let out = export(&world, &[&formats[..], set].concat());
        let about: Value = serde_json::from_slice(&files::read(&out.join("vectors/vectors.json")).unwrap()).unwrap();
        let ids: Vec<String> =
            serde_json::from_slice(&files::read(&out.join("vectors/item_ids.json")).unwrap()).unwrap();
        let bytes = files::read(&out.join("vectors/vectors.safetensors")).unwrap();
        let ((items, width), (queries, _)) = (matrix(&bytes, "items"), matrix(&bytes, "queries"));
        let interests = about["interests"].as_u64().unwrap() as usize;
        assert_eq!((about["width"].as_u64().unwrap() as usize, items.len() / width), (width, ids.len()), "{model}");
        let seen = seen_items(&bytes);
        for (user, (_, listed, scores)) in lists_of_json(&out.join("lists/lists.jsonl")).iter().enumerate() {
            let own = &queries[user * interests * width..(user + 1) * interests * width];
            let product =
                |item: &[f32], query: &[f32]| item.iter().zip(query).map(|(a, b)| f64::from(a * b)).sum::<f64>();
            let score =
                |item| own.chunks_exact(width).map(|query| product(item, query)).fold(f64::NEG_INFINITY, f64::max);
            let mut all: Vec<(f64, &String)> = items.chunks_exact(width).map(score).zip(&ids).collect();
            if about["removes_seen_items"] == true {
                all.retain(|(_, id)| !seen[user].iter().any(|&item| ids[item - 1] == **id));
            }
            all.sort_by(|a, b| b.0.total_cmp(&a.0));
            for ((score, _), expected) in all.iter().zip(scores) {
                assert!(
                    (score - f64::from(*expected)).abs() < 1e-4 * score.abs().max(1.0),
                    "{model}: {score} {expected}"
                );
            }
            let by_id: BTreeMap<&String, f64> = all.iter().map(|(score, id)| (*id, *score)).collect();
            for (id, expected) in listed.iter().zip(scores) {
                assert!((by_id[id] - f64::from(*expected)).abs() < 1e-4 * by_id[id].abs().max(1.0), "{model}: {id}");
            }
        }
        if let Some(message) = python("neighbours.py", "faiss, lancedb, pyarrow, safetensors", &[&out], &[]) {
            assert!(message.contains("faiss: ") && message.contains("lancedb: "), "{message}");
        }
    }
}

/// The history of each user, as item numbers, from the file of vectors.
fn seen_items(bytes: &[u8]) -> Vec<Vec<usize>> {
    let file = SafeTensors::deserialize(bytes).unwrap();
    let numbers = |name: &str| -> Vec<usize> {
        let tensor = file.tensor(name).unwrap();
        tensor.data().chunks_exact(8).map(|own| i64::from_le_bytes(own.try_into().unwrap()) as usize).collect()
    };
    let (offsets, items) = (numbers("history_offsets"), numbers("histories"));
    offsets.windows(2).map(|pair| items[pair[0]..pair[1]].to_vec()).collect()
}

#[test]
fn items_that_were_added_have_vectors_and_are_listed() {
    let world = Project::small();
    world.run("run", &["--until", "finetune"]);
    world.write("new.jsonl", "{\"item_id\": \"new\", \"title\": \"A thing of group 3\"}\n");
    world.run("items", &["add", "--items", &world.folder().join("new.jsonl").display().to_string()]);
    let formats = "lists-jsonl,vectors-npy,vectors-safetensors,vectors-parquet,huggingface";
    let out = export(&world, &["--format", formats, "--top", "31"]);
    let ids: Vec<String> = serde_json::from_slice(&files::read(&out.join("vectors/item_ids.json")).unwrap()).unwrap();
    assert_eq!((ids.len(), ids.last().unwrap().as_str()), (31, "new"));
    let lists = lists_of_json(&out.join("lists/lists.jsonl"));
    assert!(lists.iter().all(|list| list.1.contains(&"new".to_owned())));
    python("neighbours.py", "faiss, lancedb, pyarrow, safetensors", &[&out], &[]);
    // The added items are part of the model folder.
    let run = out.join("huggingface/artifacts/a/runs/mp4sr").display().to_string();
    let answer = command("recommend").args(["--run", &run, "--history", "i1", "--top", "31"]).output().unwrap();
    assert!(
        answer.status.success() && String::from_utf8_lossy(&answer.stdout).contains("\"new\""),
        "{}",
        stderr_of(&answer)
    );
}

/// A folder of a run may be named from any working directory, and by a link.
#[test]
fn a_run_is_found_by_any_path_to_its_folder() {
    let world = Project::small();
    world.run("run", &["--until", "finetune", "--run", "r", "--set", "model.name=popularity"]);
    let run = world.path("a/runs/r");
    std::os::unix::fs::symlink(&run, world.folder().join("link")).unwrap();
    let dataset = run.parent().unwrap().parent().unwrap();
    for (folder, name) in [
        (&run, "."),
        (&run, "../r"),
        (&run.parent().unwrap().to_owned(), "./r"),
        (&run.parent().unwrap().to_owned(), "../runs/r"),
        (&dataset.to_owned(), "runs/r"),
        (&dataset.parent().unwrap().to_owned(), "a/runs/r"),
        (&world.folder().to_owned(), "./link"),
        (&world.folder().to_owned(), "link"),
    ] {
        let mut command = command("recommend");
        command.current_dir(folder).env_remove("CARGO_MANIFEST_DIR");
        let answer = command.args(["--run", name, "--history", "i1"]).output().unwrap();
        assert!(answer.status.success(), "{} {name}: {}", folder.display(), stderr_of(&answer));
    }
}

#[test]
fn unsupported_exports_are_refused_and_nothing_is_lost() {
    let world = Project::small();
    world.run("run", &["--until", "finetune", "--set", "model.name=popularity"]);
    let popular = ["--set", "model.name=popularity", "--format"];
    let out = world.folder().join("out").display().to_string();
    let to = ["--out", &out];
    for format in ["vectors-npy", "vectors-safetensors", "vectors-parquet", "lists-csv,vectors-npy"] {
        let refused = world.run_failing("export", &[&popular[..], &[format], &to].concat());
        assert!(refused.contains("`popularity` has no vectors"), "{refused}");
        assert!(!world.folder().join("out").exists(), "nothing is half written");
    }
    world.run("export", &[&popular[..], &["lists-csv"], &to].concat());
    world.run("export", &[&popular[..], &["huggingface"], &to].concat());
    let before = files::list(&world.folder().join("out")).unwrap();
    world.run_failing("export", &[&popular[..], &["vectors-npy"], &to].concat());
    assert_eq!(files::list(&world.folder().join("out")).unwrap(), before, "what failed replaces nothing");
    for foreign in ["out/mine.txt", "out/huggingface/notes/mine.txt"] {
        std::fs::create_dir_all(world.folder().join(foreign).parent().unwrap()).unwrap();
        world.write(foreign, "mine");
        let refused = world.run_failing("export", &[&popular[..], &["lists-csv"], &to].concat());
        assert!(refused.contains("mine.txt` was not written by this command and would be lost"), "{refused}");
        std::fs::remove_file(world.folder().join(foreign)).unwrap();
    }
    // A link to a folder stays one.
    let (target, link) = (world.folder().join("target"), world.folder().join("link"));
    std::fs::create_dir(&target).unwrap();
    std::os::unix::fs::symlink(&target, &link).unwrap();
    world.run("export", &[&popular[..], &["lists-csv", "--out", &link.display().to_string()]].concat());
    assert!(link.is_symlink() && target.join("lists/lists.csv").exists());
    let refused = world.run_failing("export", &[&popular[..], &["recbole", "--top", "3"], &to].concat());
    assert!(refused.contains("`--top` has no effect"), "{refused}");
    let own = world.folder().display().to_string();
    let refused = world.run_failing("export", &[&popular[..], &["lists-csv", "--out", &own]].concat());
    assert!(refused.contains("name another folder in `--out`"), "{refused}");
    let file = world.folder().join("a.tsv").display().to_string();
    let refused = world.run_failing("export", &[&popular[..], &["lists-csv", "--out", &file]].concat());
    assert!(refused.contains("is a file"), "{refused}");
    let unknown = world.output("export", &["--format", "lists-xml"]);
    assert!(stderr_of(&unknown).contains("lists-parquet"), "{}", stderr_of(&unknown));
}

/// A dataset with its features by modality.
#[derive(Debug, PartialEq)]
struct World {
    sequences: Sequences,
    items: Items,
    users: Users,
    features: BTreeMap<String, (Vec<i64>, Vec<u32>)>,
}

impl World {
    fn read(folder: &Path, features: &[(&str, &str)]) -> Self {
        let sequences = Sequences::read(&folder.join("dataset/sequences.safetensors")).unwrap();
        let read = |(modality, name): &(&str, &str)| {
            let path = folder.join(format!("features/{modality}.{name}.safetensors"));
            let own = Features::read(&path, &sequences.item_hash, sequences.item_count).unwrap();
            let bits = own.to_f32().iter().map(|value| value.to_bits()).collect();
            ((*modality).to_owned(), (own.offsets, bits))
        };
        Self {
            features: features.iter().map(read).collect(),
            items: Items::read(&folder.join("dataset/items.parquet")).unwrap(),
            users: Users::read(&folder.join("dataset/users.parquet")).unwrap(),
            sequences,
        }
    }
}

fn import(world: &Project, format: &str, folder: &Path, words: &[&str]) -> (PathBuf, PathBuf) {
    let (out, artifacts) = (world.folder().join("in"), world.folder().join("imported"));
    let mut command = command("import");
    command.args([format]).arg(folder).arg("--out").arg(&out).arg("--artifacts").arg(&artifacts).args(words);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", stderr_of(&output));
    (out.join("pipeline.toml"), artifacts)
}

/// Trains and ranks with an imported pipeline, and returns the output.
fn run_imported(pipeline: &Path, artifacts: &Path) -> String {
    let small = ["model.mp4sr.experts=2", "model.transformer.feed_forward=16", "model.transformer.width=16"];
    let epochs = ["pretrain.epochs=1", "finetune.epochs=1", "pretrain.batch=64", "finetune.batch=64"];
    let mut command = command("run");
    command.args(["--until", "evaluate", "--pipeline"]).arg(pipeline).arg("--artifacts").arg(artifacts);
    let output = command.args(small.iter().chain(&epochs).flat_map(|key| ["--set", key])).output().unwrap();
    assert!(output.status.success(), "{}", stderr_of(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_dataset_round_trips_whatever_its_split() {
    let splits: [&[&str]; 3] = [
        &[],
        &["preprocess.split=ratio", "preprocess.split_ratio=[0.7, 0.1, 0.2]"],
        &["preprocess.split=time", "preprocess.split_at=2020-10-13", "preprocess.split_test_at=2020-11-01"],
    ];
    for split in splits {
        let world = Project::small();
        // The lines of the raw files are reversed, so that items and users are numbered in another order than that in which events are
        // exported.
        let raw = files::read_to_string(&world.folder().join("a.tsv")).unwrap();
        let (header, lines) = raw.split_once('\n').unwrap();
        let turned: Vec<&str> = lines.lines().rev().collect();
        world.write("a.tsv", format!("{header}\n{}\n", turned.join("\n")));
        let set: Vec<&str> = split.iter().flat_map(|key| ["--set", key]).collect();
        world.run("run", &[&["--until", "extract"], &set[..]].concat());
        let image = image_features(&world);
        let before = World::read(&world.path("a"), &[("text", "tiny-sentence"), ("image", &image)]);
        let out = export(&world, &[&["--format", "recbole,mmrec"], &set[..]].concat());
        let images = world.folder().display().to_string();
        for format in ["recbole", "mmrec"] {
            let folder = out.join(format).join("a");
            let (pipeline, artifacts) = import(&world, format, &folder, &["--images", &images]);
            let after = World::read(&artifacts.join("a"), &[("text", format), ("image", format)]);
            assert_eq!(before.sequences, after.sequences, "{format} {split:?}");
            assert_eq!(before, after, "{format} {split:?}");
            assert!(run_imported(&pipeline, &artifacts).contains("| mp4sr | test "));
            // Without the image files, everything except the images is imported.
            let (_, artifacts) = import(&world, format, &folder, &[]);
            let after = World::read(&artifacts.join("a"), &[("text", format), ("image", format)]);
            assert_eq!((before.sequences.clone(), before.features.clone()), (after.sequences, after.features));
            assert!(before.items.sentences == after.items.sentences && after.items.images.iter().all(Vec::is_empty));
        }
        programs_read(&before, &out);
    }
}

/// Times from 1970, positions in place of times, and sets that leave-one-out would also give.
#[test]
fn times_of_any_kind_round_trip() {
    for (key, times) in [
        ("", ["1970-01-05", "1970-01-02", "1970-01-01", "1970-01-03"]),
        ("position = \"timestamp\"\n", ["3", "7", "1", "9"]),
    ] {
        let source = format!("[source]\nformat = \"tabular\"\ninteractions = [\"e.csv\"]\n[source.columns]\n{key}");
        let filters = "[preprocess]\nuser_core = 0\nitem_core = 0\n[model]\nmodalities = [{ name = \"text\" }]\n";
        let world = Project::new("x", &(source + filters));
        let lines: Vec<String> = times
            .iter()
            .zip(["a", "b", "c", "d"])
            .map(|(time, item)| format!("u,{item},{time}\nv,{item},{time}\n"))
            .collect();
        world.write_raw("e.csv", "user_id,item_id,timestamp\n".to_owned() + &lines.concat());
        let by_time =
            ["preprocess.split=time", "preprocess.split_at=1970-01-03", "preprocess.split_test_at=1970-01-04"];
        let splits: &[&[&str]] = if key.is_empty() { &[&[], &by_time] } else { &[&[]] };
        for split in splits {
            let set: Vec<&str> = split.iter().flat_map(|key| ["--set", key]).collect();
            world.run("preprocess", &set);
            let before = World::read(&world.path("x"), &[]);
            let out = export(&world, &[&["--format", "recbole,mmrec"], &set[..]].concat());
            for format in ["recbole", "mmrec"] {
                let (_, artifacts) = import(&world, format, &out.join(format).join("x"), &[]);
                assert_eq!(World::read(&artifacts.join("x"), &[]), before, "{format} {key} {split:?}");
            }
        }
    }
}

#[test]
fn an_existing_dataset_is_not_replaced_by_another_of_the_same_name() {
    let world = Project::small();
    world.run("run", &["--until", "extract"]);
    let out = export(&world, &["--format", "mmrec"]);
    let import = |words: &[&str]| {
        let mut command = command("import");
        command.arg("mmrec").arg(out.join("mmrec/a")).arg("--out").arg(world.folder().join("in"));
        command.arg("--artifacts").arg(world.path("")).args(words).output().unwrap()
    };
    let before = world.bytes("a/dataset/sequences.safetensors");
    let refused = import(&[]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr_of(&refused).contains("another name with `--name`"), "{}", stderr_of(&refused));
    assert_eq!(world.bytes("a/dataset/sequences.safetensors"), before);
    let refused = import(&["--name", "a b"]);
    assert!(
        stderr_of(&refused).contains("dataset.name") && !world.folder().join("in").exists(),
        "{}",
        stderr_of(&refused)
    );
    for _ in 0..2 {
        let output = import(&["--name", "b"]);
        assert!(output.status.success(), "{}", stderr_of(&output));
    }
}

/// The item lines are in another order, and the feature rows are stored beside the format; both must be matched by id.
#[test]
fn exported_rows_are_in_the_order_of_their_items() {
    let world = Project::small();
    world.run("run", &["--until", "extract"]);
    let out = export(&world, &["--format", "recbole"]);
    let path = out.join("recbole/a/a.item");
    let text = files::read_to_string(&path).unwrap();
    let (header, lines) = text.split_once('\n').unwrap();
    let turned: Vec<&str> = lines.lines().rev().collect();
    files::write_bytes(&path, format!("{header}\n{}\n", turned.join("\n")).as_bytes()).unwrap();
    let (_, artifacts) = import(&world, "recbole", &out.join("recbole/a"), &[]);
    let after = World::read(&artifacts.join("a"), &[("image", "recbole")]);
    let before = World::read(&world.path("a"), &[("image", &image_features(&world))]);
    let rows = |own: &World, id: &str| {
        let (offsets, bits) = &own.features["image"];
        let item = own.items.ids.iter().position(|own| own == id).unwrap();
        let width = bits.len() / *offsets.last().unwrap() as usize;
        bits[offsets[item] as usize * width..offsets[item + 1] as usize * width].to_vec()
    };
    assert_ne!(before.items.ids, after.items.ids);
    for id in &before.items.ids {
        assert_eq!(rows(&before, id), rows(&after, id), "{id}");
    }
}

/// The name of the encoder in the name of the file of image features.
fn image_features(world: &Project) -> String {
    let paths = files::list(&world.path("a/features")).unwrap();
    let mut names = paths.iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned());
    let encoder = |name: &String| Some(name.strip_prefix("image.")?.strip_suffix(".safetensors")?.to_owned());
    names.find_map(|name| encoder(&name)).unwrap()
}

/// RecBole itself, and a script that reads as MMRec does, must see the same events, sets and features.
fn programs_read(world: &World, out: &Path) {
    let World { sequences, items, users, .. } = world;
    let named = |user: usize, item: u32| (users.ids[user].clone(), items.ids[item as usize - 1].clone());
    if let Some(printed) = python("recbole_reads.py", "recbole.data", &[&out.join("recbole")], &["a", "BPR"]) {
        let found = found(&printed);
        assert_eq!(
            (found["users"].as_u64(), found["items"].as_u64(), found["events"].as_u64()),
            (Some(60), Some(items.len() as u64), Some(sequences.items.len() as u64))
        );
        let set = |start: &dyn Fn(usize) -> (usize, usize)| {
            let mut rows = Vec::new();
            for user in 0..users.ids.len() {
                let (start, end) = start(user);
                rows.extend(sequences.of(user)[start..end].iter().map(|&item| named(user, item)));
            }
            rows.sort();
            json!(rows)
        };
        assert_eq!(found["train"], set(&|user| (0, sequences.parts_of(user).0)));
        assert_eq!(found["valid"], set(&|user| sequences.parts_of(user)));
        assert_eq!(found["test"], set(&|user| (sequences.parts_of(user).1, sequences.of(user).len())));
        // An item with one row has that row; an item without rows has the zeros with which RecBole pads.
        let (offsets, bits) = &world.features["image"];
        let width = bits.len() / *offsets.last().unwrap() as usize;
        for (id, pair) in items.ids.iter().zip(offsets.windows(2)) {
            let own = &bits[pair[0] as usize * width..pair[1] as usize * width];
            let expected: Vec<u32> = if own.is_empty() { vec![0; width] } else { own.to_vec() };
            let read = found["image_iid"][id].as_array().unwrap().iter();
            assert_eq!(
                read.map(|value| (value.as_f64().unwrap() as f32).to_bits()).collect::<Vec<_>>(),
                expected,
                "{id}"
            );
        }
        assert_eq!(found["text_iid"].as_object().unwrap().len(), items.len());
    }
    if let Some(printed) = python("mmrec_reads.py", "pandas, numpy, yaml", &[&out.join("mmrec/a")], &[]) {
        let found = found(&printed);
        assert_eq!((&found["userID"], &found["itemID"]), (&json!(users.ids), &json!(items.ids)));
        let set = |range: &dyn Fn(usize) -> (usize, usize)| {
            let rows = (0..users.ids.len()).flat_map(|user| {
                let (start, end) = range(user);
                sequences.of(user)[start..end].iter().map(move |&item| [user, item as usize - 1])
            });
            json!(rows.collect::<Vec<_>>())
        };
        assert_eq!(found["train"], set(&|user| (0, training_items(sequences, user).len())));
        assert_eq!(found["valid"], set(&|user| sequences.parts_of(user)));
        assert_eq!(found["test"], set(&|user| (sequences.parts_of(user).1, sequences.of(user).len())));
        assert_eq!(found["text"][0], json!(items.len()));
    }
}

#[test]
fn changed_features_are_imported() {
    let world = Project::small();
    world.run("run", &["--until", "extract"]);
    let out = export(&world, &["--format", "mmrec"]);
    let path = out.join("mmrec/a/image_feat.npy");
    let mut bytes = files::read(&path).unwrap();
    let last = bytes.len() - 4;
    bytes[last..].copy_from_slice(&7.5_f32.to_le_bytes());
    files::write_bytes(&path, &bytes).unwrap();
    let (_, artifacts) = import(&world, "mmrec", &out.join("mmrec/a"), &[]);
    let own = World::read(&artifacts.join("a"), &[("image", "mmrec")]);
    let (offsets, bits) = &own.features["image"];
    assert_eq!((offsets.len(), offsets[30]), (31, 30), "a row per item, as the matrix has them");
    assert_eq!(*bits.last().unwrap(), 7.5_f32.to_bits());
}

/// Files in the form in which RecBole publishes them: types in the header, quoted cells, sequences of tokens, sessions, and times as
/// floats.
#[test]
fn datasets_of_recbole_are_imported() {
    let world = Project::new("x", "");
    world.write_raw(
        "ml.inter",
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n7\tb\t4\t978300760.0\n7\ta\t3\t9.78300019e8\n9\tb\t5\t978301968\n\
         7\tc\t1\t978300800\n9\ta\t2\t978302109\n9\tc\t2\t978302268\n\tc\t2\t978302268\n",
    );
    world.write_raw(
        "ml.item",
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\tvec:float_seq\na\tToy Story\t1995\tAnimation Comedy\t0.5 1\n\
         c\t\"\"\"Heat\"\"\"\t1995\tAction\t\nb\t\t\t\t1e-3 -2\nz\tNobody's\t1990\t\t3 4\n",
    );
    let (pipeline, artifacts) = import(&world, "recbole", &world.raw(""), &[]);
    let own = World::read(&artifacts.join("ml"), &[("vec", "recbole")]);
    assert_eq!(
        (&own.users.ids, &own.items.ids),
        (&vec!["7".into(), "9".into()], &["a", "c", "b", "z"].map(str::to_owned).to_vec())
    );
    assert_eq!((own.sequences.of(0), own.sequences.of(1)), (&[1, 3, 2][..], &[3, 1, 2][..]));
    assert_eq!(own.sequences.times[..3], [978_300_019, 978_300_760, 978_300_800]);
    assert_eq!(own.items.titles, ["Toy Story", "\"Heat\"", "", "Nobody's"]);
    assert_eq!(own.items.categories[0], ["Animation", "Comedy"]);
    assert_eq!(own.items.sentences[0], ["Toy Story", "Animation, Comedy"]);
    assert_eq!(own.features["vec"].0, [0, 1, 1, 2, 3]);
    assert_eq!(own.features["vec"].1[2], 1e-3_f32.to_bits());
    let text = files::read_to_string(&pipeline).unwrap();
    assert!(text.contains("features = \"recbole\""), "{text}");
    // A condition can use a column that was imported along with the events.
    let mut preprocess = command("preprocess");
    preprocess.arg("--pipeline").arg(&pipeline).arg("--artifacts").arg(world.folder().join("other"));
    let output = preprocess.args(["--set", "preprocess.where=\"rating >= 2\""]).output().unwrap();
    assert!(output.status.success(), "{}", stderr_of(&output));
    assert_eq!(World::read(&world.folder().join("other/ml"), &[]).sequences.items.len(), 5);
}

#[test]
fn sets_and_lists_of_recbole_become_sets_and_sequences() {
    let world = Project::new("x", "");
    let header = "session_id:token\titem_id_list:token_seq\titem_id:token\n";
    world.write_raw("d.train.inter", format!("{header}s1\ta\tb\ns1\ta b\tc\ns2\tc\ta\ns3\ta\tb\n"));
    world.write_raw("d.valid.inter", format!("{header}s1\ta b c\td\ns2\tc a\tb\n"));
    world.write_raw("d.test.inter", format!("{header}s1\ta b c d\te\ns2\tc a b\td\n"));
    let (pipeline, artifacts) = import(&world, "recbole", &world.raw(""), &["--name", "other"]);
    let own = World::read(&artifacts.join("other"), &[]);
    assert_eq!(own.sequences.time_kind, TimeKind::Positions);
    let names = |user: usize| {
        own.sequences.of(user).iter().map(|&item| own.items.ids[item as usize - 1].as_str()).collect::<String>()
    };
    assert_eq!((names(0), names(1), names(2)), ("abcde".into(), "cabd".into(), "ab".into()));
    assert_eq!([0, 1, 2].map(|user| own.sequences.parts_of(user)), [(3, 4), (2, 3), (2, 2)]);
    assert!(
        files::read_to_string(&pipeline).unwrap().contains("name = \"sasrec\""),
        "there is neither text nor features"
    );
}

#[test]
fn timestamps_beside_a_list_of_recbole_are_named_as_not_read() {
    let world = Project::new("x", "");
    let lines = "u1\ta\tb\t7\nu1\ta b\tc\t8\nu1\ta b c\td\t9\n";
    let header = "user_id:token\titem_id_list:token_seq\titem_id:token\ttimestamp:float\n";
    world.write_raw("t.inter", format!("{header}{lines}"));
    let mut import = command("import");
    import.arg("recbole").arg(world.raw("")).arg("--out").arg(world.folder().join("in"));
    let output = import.arg("--artifacts").arg(world.folder().join("imported")).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned() + &stderr_of(&output);
    assert!(output.status.success(), "{printed}");
    assert!(printed.contains("`timestamp` is not read, because the items before an event"), "{printed}");
}

/// A random division, as in MMRec's preprocessing, is kept, and test events are not trained on.
#[test]
fn datasets_of_mmrec_are_imported() {
    let world = Project::new("x", "");
    world.write_raw(
        "baby.inter",
        "userID\titemID\trating\ttimestamp\tx_label\n0\t2\t5.0\t1390694400\t0\n0\t0\t4.0\t1390694500\t2\n0\t1\t3.0\t1390694600\t0\n\
         0\t3\t3.0\t1390694700\t1\n1\t3\t3.0\t1390694000\t0\n1\t2\t3.0\t1390694100\t0\n1\t0\t3.0\t1390694200\t0\n",
    );
    world.write_raw("u_id_mapping.csv", "user_id\tuserID\nAIX\t0\nA1L\t1\n");
    world.write_raw("i_id_mapping.csv", "asin\titemID\n01\t0\n02\t1\n\"0\"\"3\"\t2\n04\t3\n05\t4\n");
    let values: Vec<u8> = (0..10).flat_map(|at| (f64::from(at) / 3.0).to_le_bytes()).collect();
    let header = format!("{:<117}\n", "{'descr': '<f8', 'fortran_order': False, 'shape': (5, 2), }");
    let npy = [b"\x93NUMPY\x01\x00\x76\x00", header.as_bytes(), &values].concat();
    world.write_raw("text_feat.npy", &npy);
    let (pipeline, artifacts) = import(&world, "mmrec", &world.raw(""), &[]);
    let own = World::read(&artifacts.join("baby"), &[("text", "mmrec")]);
    assert_eq!((&own.users.ids[0], &own.items.ids[2], own.items.len()), (&"AIX".to_owned(), &"0\"3".to_owned(), 5));
    assert_eq!(own.sequences.of(0), [3, 2, 4, 1], "training by time, then validation, then test");
    assert_eq!(training_items(&own.sequences, 0), [3, 2]);
    assert_eq!(EvalCase::of(&own.sequences, 0, Split::Validation).unwrap().target, 4);
    assert_eq!(EvalCase::of(&own.sequences, 0, Split::Test).unwrap().target, 1);
    assert_eq!(training_items(&own.sequences, 1), [4, 3, 1]);
    let expected: Vec<u32> = (0..10).map(|at| ((f64::from(at) / 3.0) as f32).to_bits()).collect();
    assert_eq!(own.features["text"], ((0..=5).collect(), expected));
    assert!(run_imported(&pipeline, &artifacts).contains("| mp4sr | test "));
}

#[test]
fn folders_that_cannot_be_imported_are_refused_by_file_and_line() {
    let inter = "userID\titemID\trating\ttimestamp\tx_label\n";
    let typed = "user_id:token\titem_id:token\ttimestamp:float\n";
    // The program, its files with their content, and a part of the expected message.
    type ImportCase<'c> = (&'c str, &'c [(&'c str, &'c str)], &'c str);
    let cases: [ImportCase<'_>; 10] = [
        ("mmrec", &[], "has no file `NAME.inter`"),
        ("mmrec", &[("a.inter", "user\titemID\n1\t2\n")], "line 1: no column `userID`"),
        ("mmrec", &[("a.inter", &format!("{inter}0\t0\t1\t5\t3\n"))], "line 2: `x_label` is 3"),
        ("mmrec", &[("a.inter", &format!("{inter}0\t0\t1\t5\t0\n0\tx\t1\t5\t0\n"))], "line 3, column `itemID`"),
        (
            "mmrec",
            &[("a.inter", &format!("{inter}0\t9\t1\t5\t0\n")), ("i_id_mapping.csv", "asin\titemID\na\t0\n")],
            "has ids for the numbers up to 0 only, and the interactions use numbers up to 9",
        ),
        ("mmrec", &[("a.inter", &format!("{inter}0\t0\t1\t5\t0\n")), ("text_feat.npy", "x")], "is not a `.npy` file"),
        ("recbole", &[("a.inter", typed), ("b.inter", typed)], "has 2 files of interactions"),
        ("recbole", &[("a.inter", "user_id\titem_id\n1\t2\n")], "has no type"),
        ("recbole", &[("a.inter", &format!("{typed}1\t2\n"))], "line 2: 2 columns separated by tabs, expected 3"),
        ("recbole", &[("a.train.inter", typed), ("a.test.inter", typed)], "0 files of the `valid` set"),
    ];
    for (format, content, part) in cases {
        let world = Project::new("x", "");
        content.iter().for_each(|(name, text)| _ = world.write_raw(name, text));
        let out = world.folder().join("in");
        let mut command = command("import");
        command.args([format]).arg(world.raw("")).arg("--out").arg(&out).arg("--artifacts").arg(world.path(""));
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", stderr_of(&output));
        assert!(stderr_of(&output).contains(part), "{part}: {}", stderr_of(&output));
        assert!(!out.exists() && !world.path("").exists(), "{part}");
    }
}

/// The folder must suffice on a machine that has nothing else.
#[test]
fn a_model_folder_recommends_wherever_it_is() {
    let world = Project::small();
    world.run("run", &["--until", "evaluate"]);
    let out = export(&world, &["--format", "huggingface"]);
    let histories: String = (0..20)
        .map(|at| json!({ "user_id": format!("n{at}"), "history": [format!("i{at}"), "i3"] }).to_string() + "\n")
        .collect();
    world.write("new.jsonl", &histories);
    let new = world.folder().join("new.jsonl").display().to_string();
    let expected = world.run("recommend", &["--histories", &new]);
    let elsewhere = tempfile::tempdir().unwrap();
    let copied = Command::new("cp").arg("-r").arg(out.join("huggingface")).arg(elsewhere.path()).status().unwrap();
    assert!(copied.success());
    std::fs::remove_dir_all(world.path("")).unwrap();
    let folder = elsewhere.path().join("huggingface");
    let mut command = command("recommend");
    command.current_dir(&folder).args(["--run", "artifacts/a/runs/mp4sr", "--histories", &new]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", stderr_of(&output));
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "scores to the bit");
    let config = files::read_to_string(&folder.join("artifacts/a/runs/mp4sr/config.toml")).unwrap();
    assert!(!config.contains(&world.folder().display().to_string()), "{config}");
    if let Some(printed) = python("card.py", "huggingface_hub, yaml, safetensors, numpy", &[&folder], &[]) {
        let found = found(&printed);
        assert!(found["results"]["R@10"].as_f64().is_some() && found["results"]["MRR"].as_f64().is_some(), "{found}");
        assert_eq!((&found["settings"]["items"], &found["settings"]["model_type"]), (&json!(30), &json!("mp4sr")));
        assert!(found["shapes"]["position"].is_array(), "{found}");
    }
}

/// Runs the Python code of docs/exports.md on the folder that the command in it writes.
#[test]
fn the_guide_s_python_finds_the_lists() {
    let world = Project::small();
    world.run("run", &["--until", "finetune"]);
    let out = world.folder().join("exports").display().to_string();
    world.run("export", &["--format", "lists-jsonl,vectors-npy,vectors-parquet", "--out", &out]);
    let guide = files::read_to_string(&root().join("docs/exports.md")).unwrap();
    let code = |part: &str| part.split_once("```").unwrap().0.to_owned();
    let code: Vec<String> = guide.split("```python\n").skip(1).map(code).collect();
    assert_eq!(code.len(), 2);
    world.write("guide.py", code.concat());
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let has = Command::new(&python).args(["-c", "import faiss, lancedb, pyarrow, qdrant_client"]).output();
    if !has.is_ok_and(|has| has.status.success()) {
        println!(
            "skipped: `{python}` lacks one of faiss, lancedb, pyarrow, qdrant_client (name another one with PYTHON)"
        );
        return;
    }
    let output = Command::new(&python).arg("guide.py").current_dir(world.folder()).output().unwrap();
    assert!(output.status.success(), "{}", stderr_of(&output));
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let lists: Vec<&str> = printed.lines().collect();
    let expected = &lists_of_json(&world.folder().join("exports/lists/lists.jsonl"))[0].1;
    let expected = format!("[{}]", expected.iter().map(|id| format!("'{id}'")).collect::<Vec<_>>().join(", "));
    assert_eq!(lists, [&expected; 3]);
}
