//! Lists for users who were not in training, and lists of items that were not, computed by the program. `make test` builds it first.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::Stdio;

use mp4sr_artifact::{Header, Items, Sequences, Table, TensorFile, files, write_tensors};
use mp4sr_protocol::{Split, UserFacts, training_events};
use mp4sr_tests::{Project, root, stderr_of};
use serde_json::Value;

/// A list of ids and scores, best first.
type List = Vec<(String, f32)>;

fn lists(text: &str) -> Vec<(String, List)> {
    let list = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap();
        let items = line["items"].as_array().unwrap().iter().map(|id| id.as_str().unwrap().to_owned());
        let scores = line["scores"].as_array().unwrap().iter().map(|score| score.as_f64().unwrap() as f32);
        (line["user_id"].as_str().unwrap().to_owned(), items.zip(scores).collect())
    };
    text.lines().map(list).collect()
}

fn ids(list: &List) -> Vec<&str> {
    list.iter().map(|(id, _)| id.as_str()).collect()
}

/// The users, histories and lists that the stage wrote.
fn of_stage(world: &Project, run: &str) -> Vec<(String, Vec<String>, List)> {
    let mut table = Table::read(&world.path(&format!("a/runs/{run}/recommendations.parquet")), "").unwrap();
    let users = table.take_text("user_id").unwrap();
    let (histories, items) = (table.take_texts("history").unwrap(), table.take_texts("items").unwrap());
    let scores = table.take_f32s("scores").unwrap();
    let rows = users.into_iter().zip(histories).zip(items.into_iter().zip(scores));
    rows.map(|((user, history), (items, scores))| (user, history, items.into_iter().zip(scores).collect())).collect()
}

#[test]
fn a_new_user_gets_the_list_of_a_known_user_with_the_same_history() {
    let world = Project::small();
    world.run("run", &["--until", "recommend"]);
    let before = world.bytes("a/runs/mp4sr/recommendations.parquet");
    let known = of_stage(&world, "mp4sr");
    let line = |(user, history, _): &(String, Vec<String>, List)| {
        format!("{}\n", serde_json::json!({"user_id": format!("new-{user}"), "history": history}))
    };
    let text: String = known.iter().map(line).collect();
    world.write("new.jsonl", &text);
    let file = world.folder().join("new.jsonl").display().to_string();
    let expected: Vec<(String, List)> =
        known.iter().map(|(user, _, list)| (format!("new-{user}"), list.clone())).collect();
    assert_eq!(lists(&world.run("recommend", &["--histories", &file])), expected, "scores to the bit");

    // The lists must be the same, wherever the histories come from and wherever the lists are written.
    let mut command = world.command("recommend", &["--histories", "-"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(lists(&String::from_utf8(output.stdout).unwrap()), expected);
    for name in ["lists.jsonl", "lists.csv", "lists.parquet", "lists.txt"] {
        let out = world.folder().join(name).display().to_string();
        let printed = world.run("recommend", &["--histories", &file, "--out", &out]);
        assert!(printed.is_empty(), "{name}: {printed}");
    }
    assert_eq!(lists(&world.raw_text("lists.jsonl")), expected);
    let mut table = Table::read(&world.folder().join("lists.parquet"), "").unwrap();
    let stored = table.take_texts("items").unwrap().into_iter().zip(table.take_f32s("scores").unwrap());
    let stored: Vec<List> = stored.map(|(items, scores)| items.into_iter().zip(scores).collect()).collect();
    assert!(stored.iter().zip(&expected).all(|(list, (_, expected))| list == expected));
    let csv = world.raw_text("lists.csv");
    let first: Vec<&str> = csv.lines().nth(1).unwrap().split(',').collect();
    assert_eq!((first[0], first[1], first[2]), (expected[0].0.as_str(), "1", expected[0].1[0].0.as_str()));
    assert_eq!(first[4].parse::<f32>().unwrap().to_bits(), expected[0].1[0].1.to_bits());
    assert_eq!(csv.lines().count(), 1 + expected.iter().map(|(_, list)| list.len()).sum::<usize>());

    // The run's folder names its pipeline, so the command works from any folder.
    let mut command = mp4sr_tests::command("recommend");
    command.current_dir(world.folder()).args([
        "--run",
        "artifacts/a/runs/mp4sr",
        "--histories",
        "new.jsonl",
        "--quiet",
    ]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", stderr_of(&output));
    assert_eq!(lists(&String::from_utf8(output.stdout).unwrap()), expected);
    assert_eq!(world.bytes("a/runs/mp4sr/recommendations.parquet"), before, "the stage's own lists stay");
}

#[test]
fn candidates_are_limited_unknown_ids_are_named_and_every_user_gets_a_list() {
    let world = Project::small();
    world.run("run", &["--until", "finetune"]);
    let all = ["--history", "i3,i4,i5", "--top", "30"];
    let listed = |words: &[&str]| lists(&world.run("recommend", &[&all[..], words].concat()))[0].1.clone();
    let everything = listed(&[]);
    assert_eq!(everything.len(), 30);
    world.write("some.txt", "i7\n\n i9 \nzzz\n");
    let some = world.folder().join("some.txt").display().to_string();
    let kept =
        |wanted: &dyn Fn(&str) -> bool| -> List { everything.iter().filter(|(id, _)| wanted(id)).cloned().collect() };
    let in_file = |id: &str| ["i7", "i9"].contains(&id);
    assert_eq!(listed(&["--only", &some]), kept(&in_file));
    assert_eq!(listed(&["--exclude", &some]), kept(&|id| !in_file(id)));
    let group = "title = 'A thing of group 3'";
    assert_eq!(listed(&["--only-where", group]), kept(&|id| ["i9", "i10", "i11"].contains(&id)));
    assert_eq!(listed(&["--only", &some, "--exclude-where", group]), kept(&|id| id == "i7"));
    assert_eq!(listed(&["--set", "evaluate.seen_items=remove"]), kept(&|id| !["i3", "i4", "i5"].contains(&id)));
    let reported = world.run_stderr("recommend", &[&all[..], &["--exclude-where", "item_id = 'I7'"]].concat());
    assert!(reported.contains("the condition of `--exclude-where` is true for none of the 30 items"), "{reported}");
    let reported = world.run_stderr("recommend", &[&all[..], &["--only", &some]].concat());
    assert!(reported.contains("1 of 3 ids in `") && reported.contains("are not items of the run: `zzz`"), "{reported}");
    assert!(reported.contains("lists shorter than 30, because no further items may be listed: 1"), "{reported}");

    // Histories with some unknown ids, with only unknown ids, and of a user of the dataset.
    world.write("h.csv", "user_id,history\nu,i3 nope i4\nv,nope never\nu7,\n");
    let histories = world.folder().join("h.csv").display().to_string();
    let words = ["--histories", &histories, "--top", "4", "--exclude-where", "item_id = 'i3'"];
    let output = world.output("recommend", &words);
    let reported = stderr_of(&output);
    assert!(
        reported.contains("ids that are not items of the run: 3 of 5, in 2 of 3 histories (`nope`, `never`"),
        "{reported}"
    );
    assert!(
        reported.contains("histories without a known item, which get the most popular items: 1 (`v`)"),
        "{reported}"
    );
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[0]["unknown"], serde_json::json!(["nope"]));
    assert_eq!((&lines[0]["fallback"], &lines[1]["fallback"]), (&Value::Null, &Value::from("popular")));
    assert_eq!(lines[2]["fallback"], Value::Null, "the history of the dataset");
    let of = |line: &Value| lists(&format!("{line}\n"))[0].1.clone();
    assert_eq!(
        of(&lines[0]),
        lists(&world.run("recommend", &["--history", "i3,i4", "--top", "4", "--exclude-where", "item_id = 'i3'"]))[0].1
    );
    // Every format says which ids of a history are unknown.
    let out = |name: &str| world.folder().join(name).display().to_string();
    for name in ["lists.csv", "lists.parquet"] {
        world.run("recommend", &[&words[..], &["--out", &out(name)]].concat());
    }
    let csv = files::read_to_string(&world.folder().join("lists.csv")).unwrap();
    assert!(csv.starts_with("user_id,rank,item_id,title,score,fallback,unknown\n"), "{csv}");
    let unknown = |user: &str| csv.lines().find(|line| line.starts_with(&format!("{user},1,"))).unwrap().to_owned();
    assert!(unknown("u").ends_with(",\"[\"\"nope\"\"]\"") && unknown("u7").ends_with(",,"), "{csv}");
    let mut table = Table::read(&world.folder().join("lists.parquet"), "").unwrap();
    assert_eq!(
        table.take_texts("unknown").unwrap(),
        [vec!["nope".to_owned()], vec!["nope".into(), "never".into()], vec![]]
    );
    let popular = of(&lines[1]);
    assert!(popular.is_sorted_by(|a, b| a.1 >= b.1) && popular.len() == 4 && !ids(&popular).contains(&"i3"));

    let latin = world.folder().join("latin.csv").display().to_string();
    std::fs::write(&latin, b"user_id,history\nM\xfcller,i3\n").unwrap();
    for (words, part) in [
        (&["--history", " , "][..], "names no item"),
        (&["--top", "3"], "no histories are given"),
        (&["--histories", "gone.jsonl"], "gone.jsonl"),
        (&["--history", "i3", "--only-where", "tilte = 'x'"], "did you mean `title`?"),
        (
            &["--history", "i3", "--only-where", "events > 100000"],
            "the items to list and those to exclude leave none of the 30 items",
        ),
        (&["--history", "i3", "--only-where", "events/0 > 1"], "has the operator `/`, which is not supported"),
        (&["--histories", &latin, "--out", &latin], "would replace the file of `--histories`"),
        (&["--histories", &latin], "line 2 is not UTF-8"),
        (&["--history", "i3", "--format", "parquet"], "Parquet cannot be printed"),
        (&["--history", "i3", "--out", "lists.xyz"], "cannot be determined"),
    ] {
        let message = world.run_failing("recommend", words);
        assert!(message.contains(part), "{words:?}: {message}");
    }
}

/// Histories, lists of ids and conditions as shells and editors give them.
#[test]
fn no_input_is_ignored_silently() {
    let world = Project::small();
    world.run("run", &["--until", "finetune"]);
    let list = |words: &[&str]| lists(&world.run("recommend", words))[0].1.clone();
    assert_eq!(list(&["--history", "i3\ni4, i5\n"]), list(&["--history", "i3,i4,i5"]));
    world.write("ids.txt", "\u{feff}i7\ni9\n");
    let only = ["--history", "i3", "--only", &world.folder().join("ids.txt").display().to_string()];
    assert_eq!(list(&only).len(), 2);
    world.write("h.jsonl", "\u{feff}{\"user_id\": \"u\", \"history\": [\"i3\"]}\n");
    let histories = world.folder().join("h.jsonl").display().to_string();
    assert_eq!(list(&["--histories", &histories]), list(&["--history", "i3"]));
    world.write("h.jsonl", "[\"u\", [\"i3\"]]\n");
    assert!(world.run_failing("recommend", &["--histories", &histories]).contains("line 1: not an object"));
    let escape = ["--history", "i3", "--exclude-where", "item_id LIKE 'x_' ESCAPE 'x'"];
    assert!(world.run_failing("recommend", &escape).contains("`ESCAPE`, which is not supported"));
    let empty = world.folder().join("empty.parquet");
    let column = mp4sr_artifact::Column::Texts(Vec::new());
    Table::new(vec![("history", column)]).write(&empty).unwrap();
    let empty = ["--histories", &empty.display().to_string()];
    assert!(world.run_failing("recommend", &empty).contains("it has no history"));
}

/// A link or a pipe in place of the output file is written to and not replaced.
#[test]
fn lists_are_written_through_links_and_pipes() {
    let world = Project::small();
    world.run("run", &["--until", "finetune", "--set", "model.name=popularity"]);
    let path = |name: &str| world.folder().join(name).display().to_string();
    let write = |name: &str| {
        let words = ["--set", "model.name=popularity", "--history", "i3", "--format", "csv", "--out", &path(name)];
        world.run("recommend", &words);
    };
    write("list.csv");
    let expected = files::read(&world.folder().join("list.csv")).unwrap();
    assert!(!expected.is_empty());
    world.write("folder/target.csv", "earlier");
    std::os::unix::fs::symlink("folder/target.csv", world.folder().join("link.csv")).unwrap();
    write("link.csv");
    assert!(world.folder().join("link.csv").is_symlink());
    assert_eq!(files::read(&world.folder().join("folder/target.csv")).unwrap(), expected);
    std::os::unix::fs::symlink("nowhere.csv", world.folder().join("dangling.csv")).unwrap();
    let dangling = ["--set", "model.name=popularity", "--history", "i3", "--out", &path("dangling.csv")];
    assert!(world.run_failing("recommend", &dangling).contains("failed to follow the link `"));
    assert!(std::process::Command::new("mkfifo").arg(path("pipe")).status().unwrap().success());
    let pipe = world.folder().join("pipe");
    let reader = std::thread::spawn(move || std::fs::read(pipe).unwrap());
    write("pipe");
    assert_eq!(reader.join().unwrap(), expected);
}

/// Users without a known item are ranked by the latest events only, if the share is set, as the popularity model is.
#[test]
fn the_fallback_counts_the_latest_events() {
    let world = Project::small();
    world.run("run", &["--until", "finetune", "--set", "model.name=popularity"]);
    let sequences = Sequences::read(&world.path("a/dataset/sequences.safetensors")).unwrap();
    let items = Items::read(&world.path("a/dataset/items.parquet")).unwrap();
    // The training events, which are all but the last two of each user, in the order of time.
    let mut events: Vec<(i64, u32)> = Vec::new();
    for user in 0..sequences.user_count() {
        let range = sequences.offsets[user] as usize..sequences.offsets[user + 1] as usize - 2;
        events.extend(range.map(|at| (sequences.times[at], sequences.items[at])));
    }
    events.sort_unstable();
    let first = events[events.len() - events.len().div_ceil(10)].0;
    let mut counts: BTreeMap<&str, u32> = items.ids.iter().map(|id| (id.as_str(), 0)).collect();
    for (_, item) in events.iter().filter(|(time, _)| *time >= first) {
        *counts.get_mut(items.ids[*item as usize - 1].as_str()).unwrap() += 1;
    }
    let share = ["--set", "model.name=popularity", "--history", "nope", "--top", "30", "--set"];
    let fallback = |key: &str| lists(&world.run("recommend", &[&share[..], &[key]].concat()))[0].1.clone();
    let latest = fallback("recommend.fallback_share=0.1");
    assert_eq!(latest.len(), 30);
    assert!(
        latest.is_sorted_by(|a, b| a.1 >= b.1) && latest.iter().all(|(id, score)| counts[id.as_str()] == *score as u32)
    );
    assert_ne!(latest, fallback("recommend.fallback_share=1"));

    let of_model = ["--set", "model.name=popularity", "--set", "model.popularity.latest_share=0.1", "--run", "latest"];
    world.run("run", &[&["--until", "finetune"][..], &of_model].concat());
    let seen = ["--history", "i3", "--top", "30", "--set", "evaluate.seen_items=keep"];
    assert_eq!(lists(&world.run("recommend", &[&of_model[..], &seen].concat()))[0].1, latest);
}

#[test]
fn general_models_fold_in_new_users_or_refuse_them() {
    let world = Project::small();
    let run = |model: &str, words: &[&str]| {
        let name = format!("model.name={model}");
        let flags = ["--run", model, "--set", &name, "--set", "finetune.epochs=2"];
        world.output("recommend", &[words, &flags[..]].concat())
    };
    for model in ["lightgcn", "grcn", "popularity"] {
        let name = format!("model.name={model}");
        world.run("run", &["--until", "recommend", "--run", model, "--set", &name, "--set", "finetune.epochs=2"]);
    }
    // A user of the dataset keeps the row that was trained.
    let (user, history, list) = of_stage(&world, "lightgcn").swap_remove(0);
    let line = |user: &str| format!("{}\n", serde_json::json!({"user_id": user, "history": history}));
    world.write("h.jsonl", line(&user) + &line("somebody new"));
    let file = world.folder().join("h.jsonl").display().to_string();
    let output = run("lightgcn", &["--histories", &file]);
    assert!(output.status.success(), "{}", stderr_of(&output));
    let found = lists(&String::from_utf8(output.stdout).unwrap());
    assert_eq!(found[0].1, list);
    assert_eq!(found[1].1.len(), list.len());
    assert!(history.iter().all(|id| !ids(&found[1].1).contains(&id.as_str())), "general models list nothing seen");
    // Items that the run no longer has do not make a user of the dataset an unknown one.
    let line = |history: &[&str]| format!("{}\n", serde_json::json!({"user_id": user, "history": history}));
    world.write("stale.jsonl", line(&[]) + &line(&["gone"]));
    let output = run("lightgcn", &["--histories", &world.folder().join("stale.jsonl").display().to_string()]);
    let found = lists(&String::from_utf8(output.stdout).unwrap());
    assert!(found[0].1 == found[1].1 && found[0].1 != list, "the whole history of the dataset");
    let output = run("popularity", &["--histories", &file]);
    let found = lists(&String::from_utf8(output.stdout).unwrap());
    assert_eq!(found[0].1, found[1].1);
    let output = run("grcn", &["--histories", &file]);
    assert_eq!(output.status.code(), Some(1));
    let reported = stderr_of(&output);
    assert!(
        reported.contains("the user `somebody new` has no training event in the dataset, and `grcn` ranks only for users of its training"),
        "{reported}"
    );
}

#[test]
fn weights_with_a_vector_per_user_are_refused_for_other_users() {
    let world = Project::small();
    let clcrec = ["--set", "model.name=clcrec", "--set", "finetune.epochs=1"];
    world.run("run", &[&clcrec[..], &["--until", "finetune"]].concat());
    let raw = world.raw_text("a.tsv");
    let lists = || world.output("recommend", &[&clcrec[..], &["--history", "i1"]].concat());
    // Another order of the same users, and one other user.
    for other in [
        raw.replace("\nu0\t", "\nx\t").replace("\nu1\t", "\nu0\t").replace("\nx\t", "\nu1\t"),
        raw.replace("\nu1\t", "\nnew\t"),
    ] {
        world.write("a.tsv", other);
        world.run("preprocess", &clcrec);
        for stage in ["evaluate", "recommend"] {
            let refused = world.run_failing(stage, &clcrec);
            assert!(refused.contains("the users have changed since; train it again"), "{stage}: {refused}");
        }
        assert!(stderr_of(&lists()).contains("the users have changed since"));
    }
    // More events of the same users.
    world.write("a.tsv", format!("{raw}u0\ti9\t1999999999\n"));
    world.run("preprocess", &clcrec);
    world.run("evaluate", &clcrec);
    // A model without parameters for users ranks for any.
    let sasrec = ["--set", "model.name=sasrec", "--set", "finetune.epochs=1", "--run", "s"];
    world.run("finetune", &sasrec);
    world.write("a.tsv", raw.replace("\nu1\t", "\nnew\t"));
    world.run("preprocess", &sasrec);
    world.run("evaluate", &sasrec);
}

#[test]
fn lists_that_are_empty_are_named_and_the_files_of_a_run_are_not_replaced() {
    let world = Project::small();
    let popular = ["--set", "model.name=popularity", "--set", "evaluate.seen_items=remove"];
    world.run("run", &[&popular[..], &["--until", "finetune"]].concat());
    world.write("only.txt", "i1\n");
    world.write(
        "two.jsonl",
        "{\"user_id\": \"a\", \"history\": [\"i1\"]}\n{\"user_id\": \"b\", \"history\": [\"i2\"]}\n",
    );
    let only = world.folder().join("only.txt").display().to_string();
    let two = world.folder().join("two.jsonl").display().to_string();
    let words = [&popular[..], &["--only", &only]].concat();
    let output = world.output("recommend", &[&words[..], &["--histories", &two]].concat());
    assert!(
        output.status.success() && stderr_of(&output).contains("no item may be listed: 1 (`a`)"),
        "{}",
        stderr_of(&output)
    );
    let refused = world.run_failing("recommend", &[&words[..], &["--history", "i1"]].concat());
    assert!(refused.contains("every list is empty"), "{refused}");
    let weights = world.path("a/runs/mp4sr/finetune.safetensors").display().to_string();
    for (out, part) in [
        (weights.as_str(), "would replace a file of the run"),
        (world.folder().to_str().unwrap(), "is a folder"),
        (&format!("{weights}/lists.csv"), "is below a file"),
    ] {
        for more in [&["--dry-run"][..], &[]] {
            let flags = ["--history", "i2", "--format", "csv", "--out", out];
            let output = world.output("recommend", &[&popular[..], &flags, more].concat());
            let refused = stderr_of(&output);
            assert!(!output.status.success() && refused.contains(part), "{out}: {refused}");
        }
    }
}

/// Without item ids, the model knows an item only by its features, so a copy has the score of the original.
#[test]
fn a_copy_of_an_item_is_ranked_next_to_it_without_training() {
    let world = Project::small();
    let no_ids = ["--run", "r", "--set", "model.mp4sr.id_embedding=false"];
    world.run("run", &[&["--until", "recommend"][..], &no_ids].concat());
    let stage = world.bytes("a/runs/r/recommendations.parquet");
    // Three items share each title, and every third has an image: `copy` equals i9, and `bare` has no image.
    world.write("new.jsonl", "{\"item_id\": \"copy\", \"title\": \"A thing of group 3\", \"image\": \"one.png\"}\n{\"item_id\": \"bare\", \"title\": \"A thing of group 3\"}\n");
    let new = world.folder().join("new.jsonl").display().to_string();
    let listed = |history: &str, top: &str| {
        lists(&world.run("recommend", &[&["--history", history, "--top", top][..], &no_ids].concat()))[0].1.clone()
    };
    let before = listed("i3,i4", "40");
    assert!(
        world.run_stderr("items", &[&["add", "--items", &new][..], &no_ids].concat()).contains("2 added, 0 replaced")
    );
    let after = listed("i3,i4", "40");
    assert_eq!(after.len(), 32);
    let score = |id: &str| after.iter().find(|(own, _)| own == id).unwrap().1.to_bits();
    assert_eq!(score("copy"), score("i9"));
    assert_eq!(score("bare"), score("i10"));
    assert_ne!(score("copy"), score("bare"));
    let without: List = after.iter().filter(|(id, _)| id.starts_with('i')).cloned().collect();
    assert_eq!(without, before, "the scores of the others stay");
    // Added items can be in histories, too.
    assert_eq!(listed("i3,copy", "40"), listed("i3,i9", "40"));
    assert_eq!(
        world.run("items", &[&["list"][..], &no_ids].concat()),
        "copy\tA thing of group 3\nbare\tA thing of group 3\n"
    );

    // Adding an item again replaces it, removing removes it, and neither changes the lists that the stage wrote.
    world.write("again.jsonl", "{\"item_id\": \"bare\", \"title\": \"A thing of group 3\", \"image\": \"one.png\"}\n");
    let again = world.folder().join("again.jsonl").display().to_string();
    assert!(
        world
            .run_stderr("items", &[&["add", "--items", &again][..], &no_ids].concat())
            .contains("0 added, 1 replaced; the run has 2")
    );
    let replaced = listed("i3,i4", "40");
    let score = |id: &str| replaced.iter().find(|(own, _)| own == id).unwrap().1.to_bits();
    assert_eq!(score("bare"), score("copy"));
    world.run("items", &[&["remove", "--item", "copy", "--item", "bare"][..], &no_ids].concat());
    assert_eq!(listed("i3,i4", "40"), before);
    assert!(world.run("items", &[&["list"][..], &no_ids].concat()).is_empty());
    world.run("recommend", &no_ids);
    assert_eq!(world.bytes("a/runs/r/recommendations.parquet"), stage);
    // No earlier generation is left.
    let names = mp4sr_artifact::files::list(&world.path("a/runs/r/new-items")).unwrap();
    assert!(names.iter().all(|path| !path.is_dir()), "{names:?}");
}

/// An edit of items encodes only the items that it names, whatever has happened to the files of the others.
#[test]
fn an_edit_of_items_leaves_the_other_items_unchanged() {
    let world = Project::small();
    world.run("run", &["--until", "finetune"]);
    let image = files::read(&root().join("fuzz/seeds/image/one.png")).unwrap();
    let (own, other) = (world.folder().join("own.png"), world.folder().join("other.png"));
    std::fs::write(&own, &image).unwrap();
    std::fs::write(&other, &image).unwrap();
    let add = |id: &str, image: &str| {
        let line = serde_json::json!({ "item_id": id, "title": "A thing of group 3", "image": image });
        world.write("new.jsonl", format!("{line}\n"));
        world.run_stderr("items", &["add", "--items", &world.folder().join("new.jsonl").display().to_string()])
    };
    let scores = || -> BTreeMap<String, u32> {
        let list = &lists(&world.run("recommend", &["--history", "i3,i4", "--top", "100"]))[0].1;
        list.iter().map(|(id, score)| (id.clone(), score.to_bits())).collect()
    };
    assert!(add("first", "own.png").contains("1 added"));
    let before = scores();
    assert_ne!(before["first"], before["i10"], "the image counts: an item of the same title has none");

    std::fs::write(&own, b"not an image any more").unwrap();
    assert!(add("second", "other.png").contains("1 added"));
    assert_eq!(scores().get("first"), before.get("first"), "another item was added");
    std::fs::remove_file(&own).unwrap();
    assert!(add("third", "other.png").contains("1 added"));
    world.run("items", &["remove", "--item", "second"]);
    let after = scores();
    assert_eq!(after.get("first"), before.get("first"), "another item was removed");
    assert_eq!((after.contains_key("second"), after.contains_key("third")), (false, true));
    world.run("items", &["remove", "--item", "third"]);
    assert_eq!(scores(), before);
}

/// An item that was added and is then bought enters the dataset with the next training, where it has events.
#[test]
fn an_added_item_that_enters_the_dataset_is_taken_from_the_dataset() {
    let world = Project::small();
    world.write("words.txt", "red\nblue\ncircle\nsquare\n");
    let dictionary = format!("extract.image.dictionary={:?}", world.folder().join("words.txt"));
    let own = ["--set", &dictionary];
    let run = |more: &[&str]| world.run("run", &[&["--until", "finetune"][..], &own, more].concat());
    world.write("new.jsonl", "{\"item_id\": \"i5\", \"title\": \"A thing of group 3\"}\n");
    world.write("more.jsonl", "{\"item_id\": \"new\", \"title\": \"A thing of group 4\"}\n");
    let add = |name: &str| {
        let file = world.folder().join(name).display().to_string();
        world.run_stderr("items", &[&["add", "--items", &file][..], &own].concat())
    };
    let recommend = [&["--history", "i3,i4", "--top", "100"][..], &own].concat();
    let expect_items = |count: usize| {
        let list = lists(&world.run("recommend", &recommend)).swap_remove(0).1;
        assert_eq!((ids(&list).iter().filter(|id| **id == "i5").count(), list.len()), (1, count));
    };
    run(&["--set", "preprocess.where=item_id <> 'i5'"]);
    assert!(add("new.jsonl").contains("1 added"));
    run(&[]);
    let warned = world.run_stderr("recommend", &recommend);
    assert!(warned.contains("are in the dataset by now, which is used for them (1 of them: `i5`); remove"), "{warned}");
    expect_items(30);

    assert!(!add("more.jsonl").contains("encoded again"));
    expect_items(31);
    world.write("words.txt", "green\ntriangle\n");
    run(&[]);
    let refused = world.run_failing("recommend", &recommend);
    assert!(refused.contains("or from another dictionary of words"), "{refused}");
    let reported = add("more.jsonl");
    assert!(reported.contains("1 items that were added earlier were encoded again"), "{reported}");
    expect_items(31);
    world.run("items", &[&["remove", "--item", "i5"][..], &own].concat());
    assert!(!world.run_stderr("recommend", &recommend).contains("by now"));
}

/// A damaged file of added items has its own remedy, because no stage of the pipeline writes it.
#[test]
fn a_damaged_generation_of_items_says_what_to_do_about_the_items() {
    let world = Project::small();
    world.run("run", &["--until", "finetune"]);
    world.write("new.jsonl", "{\"item_id\": \"new\", \"title\": \"A thing of group 3\"}\n\n");
    let new = world.folder().join("new.jsonl").display().to_string();
    let folder = world.path("a/runs/mp4sr/new-items");
    let add = || world.run_stderr("items", &["add", "--items", &new]);
    let reported = add();
    assert!(reported.contains("1 added") && !reported.contains("could not be read"), "{reported}");
    let own = folder.join("000001");
    let all = walk(&own).into_iter().filter(|path| {
        let name = path.to_string_lossy();
        name.ends_with("items.parquet") || name.ends_with(".safetensors")
    });
    for path in all.collect::<Vec<_>>() {
        let sound = files::read(&path).unwrap();
        // Features that are missing altogether are computed again (`added_items_are_used_under_other_settings_of_extract`).
        let is_table = path.ends_with("items.parquet");
        let cut = [Some(&sound[..sound.len() / 2]), Some(&b""[..])];
        for damage in cut.into_iter().chain(is_table.then_some(None)) {
            match damage {
                Some(bytes) => std::fs::write(&path, bytes).unwrap(),
                None => std::fs::remove_file(&path).unwrap(),
            }
            for (command, words) in [
                ("recommend", &["--history", "i3"][..]),
                ("items", &["add", "--items", &new]),
                ("items", &["remove", "--item", "new"]),
            ] {
                let message = world.run_failing(command, words);
                let remedy = if is_table {
                    "add the items again with `mp4sr items add`"
                } else {
                    "delete the file if it is there, and add an item with `mp4sr items add`, which encodes all"
                };
                assert!(message.contains(remedy) && message.contains("new-items"), "{words:?}: {message}");
                assert!(!message.contains("mp4sr extract") && !message.contains("preprocess"), "{words:?}: {message}");
            }
        }
        std::fs::write(&path, sound).unwrap();
    }
    std::fs::write(own.join("features/text.tiny-sentence.safetensors"), b"").unwrap();
    std::fs::remove_file(own.join("features/text.tiny-sentence.safetensors")).unwrap();
    assert!(add().contains("1 replaced"), "the remedy helps");
    std::fs::write(folder.join("000002/dataset/items.parquet"), b"").unwrap();
    files::remove_dir_if_present(&folder).unwrap();
    assert!(add().contains("1 added"), "the remedy helps");
}

/// Items that were added under other settings of `[extract]` are converted, encoded again, or refused with a remedy that helps.
#[test]
fn added_items_are_used_under_other_settings_of_extract() {
    let world = Project::small();
    let add = |id: &str, words: &[&str]| {
        world.write("new.jsonl", format!("{{\"item_id\": \"{id}\", \"title\": \"A thing of group 3\"}}\n"));
        let new = world.folder().join("new.jsonl").display().to_string();
        world.run_stderr("items", &[&["add", "--items", &new][..], words].concat())
    };
    let listed = |words: &[&str]| {
        let printed = world.run("recommend", &[&["--history", "i3,i4", "--top", "100"][..], words].concat());
        lists(&printed).swap_remove(0).1.len()
    };
    let train = |words: &[&str]| world.run("run", &[&["--until", "finetune"][..], words].concat());
    train(&[]);
    assert!(add("one", &[]).contains("1 added"));
    assert_eq!(listed(&[]), 31);

    let wide = ["--set", "extract.storage=\"f32\""];
    train(&wide);
    assert_eq!(listed(&wide), 31, "half precision beside single precision");
    assert!(!add("two", &wide).contains("encoded again"));
    assert_eq!(listed(&wide), 32);

    let few = ["--set", "extract.image.words=3"];
    train(&few);
    let recommend = ["--history", "i3"];
    for (command, words, remedies) in [
        ("recommend", &recommend[..], ["encodes all of them again", "restore the settings"]),
        ("items", &["remove", "--item", "two"], ["encodes all of them again", "only all of them can be removed"]),
    ] {
        let refused = world.run_failing(command, &[words, &few].concat());
        assert!(remedies.iter().all(|remedy| refused.contains(remedy)), "{refused}");
    }
    let reported = add("three", &few);
    assert!(reported.contains("2 items that were added earlier were encoded again"), "{reported}");
    assert_eq!(listed(&few), 33);
    // With the earlier setting, they can still be removed together.
    train(&[]);
    assert!(world.run_failing("recommend", &recommend).contains("is missing"));
    world.run("items", &["remove", "--item", "one", "--item", "two", "--item", "three"]);
    assert_eq!(listed(&[]), 30);
}

/// All files below a folder.
fn walk(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let (folders, mut found): (Vec<_>, Vec<_>) =
        files::list(folder).unwrap().into_iter().partition(|path| path.is_dir());
    found.extend(folders.iter().flat_map(|folder| walk(folder)));
    found
}

#[test]
fn items_that_a_run_cannot_use_are_refused_together() {
    let world = Project::small();
    world.run("run", &["--until", "finetune"]);
    world.run("run", &["--until", "finetune", "--run", "sasrec", "--set", "model.name=sasrec"]);
    world.write("new.jsonl", "{\"item_id\": \"n1\", \"title\": \"A thing of group 3\"}\n");
    world.write("known.jsonl", "{\"item_id\": \"i5\", \"title\": \"y\"}\n");
    world.write(
        "both.jsonl",
        "{\"item_id\": \"n2\", \"title\": \"x\"}\n{\"item_id\": \"i5\", \"title\": \"y\"}\nnot an object\n",
    );
    world.write(
        "empty.jsonl",
        "{\"item_id\": \"n3\", \"title\": \"A thing\"}\n{\"item_id\": \"n4\", \"title\": \" \"}\n",
    );
    let path = |name: &str| world.folder().join(name).display().to_string();
    let refused =
        |name: &str, more: &[&str]| world.run_failing("items", &[&["add", "--items", &path(name)][..], more].concat());
    let message = refused("new.jsonl", &["--run", "sasrec", "--set", "model.name=sasrec"]);
    assert!(message.contains("`sasrec` learns every item from its events in training"), "{message}");
    std::fs::write(
        path("latin.jsonl"),
        b"{\"item_id\": \"n\", \"title\": \"A\"}\n{\"item_id\": \"m\", \"title\": \"T\xfcr\"}\n",
    )
    .unwrap();
    let message = refused("latin.jsonl", &[]);
    assert!(message.contains("the first is line 2; save it as UTF-8"), "{message}");
    let message = refused("new.jsonl", &["--run", "popularity", "--set", "model.name=popularity"]);
    assert!(message.contains("`popularity` learns every item from its events in training"), "{message}");
    let unchanged = world.run_stderr("items", &["add", "--items", &path("known.jsonl")]);
    assert!(
        unchanged.contains("all 1 items are already in the dataset") && unchanged.contains("0 added"),
        "{unchanged}"
    );
    assert!(refused("empty.jsonl", &[]).contains("items without a usable text or image"));
    let planned = world.output("items", &["add", "--items", &path("empty.jsonl"), "--dry-run"]);
    assert!(!planned.status.success() && stderr_of(&planned).contains("items without a usable text or image"));
    assert!(world.run_failing("items", &["remove", "--item", "n1"]).contains("not added to the run: `n1`"));
    assert!(world.run("items", &["list"]).is_empty());
    // A catalogue contains both kinds: items of the dataset are skipped.
    let reported = world.run_stderr("items", &["add", "--items", &path("both.jsonl")]);
    assert!(
        reported.contains("1 items are already in the dataset and are not changed") && reported.contains("1 added"),
        "{reported}"
    );
    assert!(reported.contains("1 lines could not be read and are not added: 1 for: broken JSON, first in line 3 of `"));
    assert_eq!(world.run("items", &["list"]), "n2\tx\n");
    // What a killed process left is removed by the next change.
    let folder = world.path("a/runs/mp4sr/new-items");
    std::fs::create_dir(folder.join("000099")).unwrap();
    // Every item is one record of a table with tabs, whatever its id and its title contain.
    world.write("odd.jsonl", "{\"item_id\": \"n\\t5\", \"title\": \"x \\\"y\\\"\"}\n");
    world.run("items", &["add", "--items", &path("odd.jsonl")]);
    assert_eq!(world.run("items", &["list"]), "n2\tx\n\"n\t5\"\t\"x \"\"y\"\"\"\n");
    world.run("items", &["remove", "--item", "n\t5"]);
    world.run("items", &["remove", "--item", "n2"]);
    assert!(!folder.join("000099").exists());
    // In a model with id embeddings, a new item is ranked by its features alone, and is a candidate like all others.
    world.run("items", &["add", "--items", &path("new.jsonl")]);
    let list = &lists(&world.run("recommend", &["--history", "i3,n1", "--top", "40"]))[0].1;
    assert!(list.len() == 31 && ids(list).contains(&"n1"));
}

/// A dataset without its cold items, which `items add` adds to the run again.
struct Cold<'a> {
    world: &'a Project,
    /// The name of the dataset that has all items.
    dataset: &'a str,
    /// A run whose model has no id embeddings, so that its weights fit any catalogue.
    run: &'a str,
    /// The flags of that run.
    flags: &'a [&'a str],
    /// Whether an item (1-based) is cold.
    leaves: &'a dyn Fn(u32) -> bool,
    /// The raw line of each item, by id.
    lines: BTreeMap<String, String>,
}

impl Cold<'_> {
    /// The target and two ranks per user. The first rank is that of `evaluate`, in the dataset with all items. The second is computed from
    /// the lists of `recommend --histories` with the same weights, in the dataset without the cold items, after `items add`.
    fn ranks(&self) -> Vec<(u32, [usize; 2])> {
        let world = self.world;
        let own = |relative: &str| world.path(&format!("{}/{relative}", self.dataset));
        let all = Items::read(&own("dataset/items.parquet")).unwrap();
        let sequences = Sequences::read(&own("dataset/sequences.safetensors")).unwrap();
        let stored = own(&format!("runs/{}/ranks.test.safetensors", self.run));
        let mut ranks = TensorFile::read(&stored, "ranks", 2, "").unwrap();
        let ranks = ranks.take_u32("rank").unwrap();
        let users: Vec<usize> = UserFacts::of(&sequences, Split::Test).iter().map(|facts| facts.user).collect();
        assert_eq!(users.len(), ranks.len());
        self.write_without(&all, &sequences);
        let flags = [self.flags, &["--set", "dataset.name=without"]].concat();
        world.run("extract", &flags);
        let cold = (1..=all.len() as u32).filter(|&item| (self.leaves)(item));
        let lines: Vec<&str> = cold.map(|item| self.lines[&all.ids[item as usize - 1]].as_str()).collect();
        world.write("cold.jsonl", lines.join("\n"));
        let file = world.folder().join("cold.jsonl").display().to_string();
        world.run("items", &[&["add", "--items", &file][..], &flags].concat());
        let id = |item: &u32| all.ids[*item as usize - 1].clone();
        let line = |user: &usize| {
            let own = sequences.of(*user);
            let history: Vec<String> = own[..own.len() - 1].iter().map(id).collect();
            serde_json::json!({ "user_id": format!("n{user}"), "history": history }).to_string()
        };
        world.write("h.jsonl", users.iter().map(line).collect::<Vec<_>>().join("\n"));
        let file = world.folder().join("h.jsonl").display().to_string();
        let top = all.len().to_string();
        let found = lists(&world.run("recommend", &[&["--histories", &file, "--top", &top][..], &flags].concat()));
        assert_eq!(found.len(), users.len());
        let rank = |(((_, list), user), stored): ((&(String, List), &usize), &u32)| {
            let target = *sequences.of(*user).last().unwrap();
            let score = list.iter().find(|(item, _)| *item == id(&target)).unwrap().1;
            (target, [*stored as usize, list.iter().filter(|(_, other)| *other >= score).count()])
        };
        found.iter().zip(&users).zip(&ranks).map(rank).collect()
    }

    /// Writes the dataset without its cold items, and the run's weights for it.
    fn write_without(&self, all: &Items, sequences: &Sequences) {
        let other = |relative: &str| self.world.path(&format!("without/{relative}"));
        let kept: Vec<usize> = (0..all.len()).filter(|&row| !(self.leaves)(row as u32 + 1)).collect();
        let number = |item: u32| kept.iter().position(|&row| row as u32 + 1 == item).unwrap() as u32 + 1;
        let warm = all.select(&kept);
        let (mut offsets, mut events, mut times) = (vec![0], Vec::new(), Vec::new());
        for user in 0..sequences.user_count() {
            let warm = sequences.of(user).iter().copied().filter(|&item| !(self.leaves)(item));
            events.extend(warm.map(number));
            offsets.push(events.len() as i64);
            times.extend(0..offsets[user + 1] - offsets[user]);
        }
        let without = Sequences {
            offsets,
            items: events,
            times,
            item_hash: warm.hash(),
            item_count: warm.len(),
            user_hash: sequences.user_hash.clone(),
            parts: None,
            time_kind: sequences.time_kind,
        };
        warm.write(&other("dataset/items.parquet")).unwrap();
        without.write(&other("dataset/sequences.safetensors"), Value::Null).unwrap();
        let users = files::read(&self.world.path(&format!("{}/dataset/users.parquet", self.dataset))).unwrap();
        files::write_bytes(&other("dataset/users.parquet"), &users).unwrap();
        let relative = format!("runs/{}/finetune.safetensors", self.run);
        let mut weights =
            TensorFile::read(&self.world.path(&format!("{}/{relative}", self.dataset)), "checkpoint", 1, "").unwrap();
        let header = Header { items: warm.hash(), ..weights.header().clone() };
        let tensors: Vec<_> =
            weights.names().into_iter().map(|name| (name.clone(), weights.take(&name).unwrap())).collect();
        write_tensors(&other(&relative), &header, &tensors).unwrap();
    }
}

/// A cold item has the same rank in a dataset that contains it and after `items add`. The study `cold-start` uses these ranks.
#[test]
fn cold_items_rank_as_in_a_dataset_that_has_them() {
    let world = Project::small();
    let flags = ["--set", "model.mp4sr.id_embedding=false", "--set", r#"model.modalities=[{name="text"}]"#];
    world.run("run", &[&["--until", "evaluate"][..], &flags].concat());
    let id = |line: &str| serde_json::from_str::<Value>(line).unwrap()["item_id"].as_str().unwrap().to_owned();
    let lines = world.raw_text("a.jsonl").lines().map(|line| (id(line), line.to_owned())).collect();
    let is_cold = |item: u32| item.is_multiple_of(4);
    let cold = Cold { world: &world, dataset: "a", run: "mp4sr", flags: &flags, leaves: &is_cold, lines };
    let ranks = cold.ranks();
    assert!(ranks.iter().filter(|(target, _)| is_cold(*target)).count() > 5);
    for (user, (_, [stored, listed])) in ranks.iter().enumerate() {
        assert_eq!(stored, listed, "user {user}");
    }
}

/// The lists after `items add` must give the figures of Table 3 on real data: Amazon's gift cards, where 84 of 143 items are cold.
#[test]
#[allow(clippy::print_stdout, reason = "a test that is skipped says so")]
fn cold_items_of_real_data_give_the_figure_of_the_study() {
    let data = root().join("../shared/data");
    let metadata = data.join("gift-cards/meta_Gift_Cards.json.gz");
    if !metadata.exists() {
        println!("skipped: the gift cards are not at hand");
        return;
    }
    let world = Project::of_pipeline("gift-cards", &data);
    let raw = data.display().to_string();
    let table = world.run("study", &["table3", "--quick", "--seeds", "1", "--data", &raw]);
    let (run, dataset) = ("no-id.warm.s2020", "gift-cards-quick");
    let flags = ["--run", run, "--data", &raw, "--set", "model.mp4sr.id_embedding=false"];
    let text = std::io::read_to_string(flate2::read::GzDecoder::new(files::open(&metadata).unwrap())).unwrap();
    let id = |line: &str| serde_json::from_str::<Value>(line).unwrap()["asin"].as_str().unwrap().to_owned();
    let lines = text.lines().map(|line| (id(line), line.to_owned())).collect();
    let sequences = Sequences::read(&world.path(&format!("{dataset}/dataset/sequences.safetensors"))).unwrap();
    let events = training_events(&sequences);
    let is_cold = |item: u32| events[item as usize - 1] < 10;
    let ranks = Cold { world: &world, dataset, run, flags: &flags, leaves: &is_cold, lines }.ranks();
    let cold: Vec<[usize; 2]> =
        ranks.into_iter().filter(|(target, _)| is_cold(*target)).map(|(_, both)| both).collect();
    let hits = |at: usize| cold.iter().filter(|both| both[at] <= 20).count();
    let printed = table.lines().find(|line| line.starts_with("| MP4SR  ")).unwrap();
    let expected = format!("{:.4}", hits(1) as f64 / cold.len() as f64);
    assert!(cold.len() == 170 && hits(0) == hits(1) && printed.contains(&expected), "{expected} in {printed}");
}

/// Compares the ranks by the last event alone with lists that new users get for that event.
#[test]
fn a_shortened_history_is_ranked_as_that_of_a_new_user() {
    let world = Project::small();
    let run = |model: &str| {
        let flags = ["--set", "finetune.epochs=2", "--set", "evaluate.short_histories=[1]"];
        let name = format!("model.name={model}");
        let run = |until| {
            world.run_stderr("run", &[&["--until", until, "--run", model, "--set", &name][..], &flags].concat())
        };
        run("recommend");
        run("evaluate")
    };
    run("lightgcn");
    let path = world.path("a/runs/lightgcn/recommendations.parquet");
    let mut table = Table::read(&path, "").unwrap();
    let (users, targets) = (table.take_u32("user").unwrap(), table.take_text("target").unwrap());
    let last: Vec<String> =
        table.take_texts("history").unwrap().into_iter().map(|mut history| history.pop().unwrap()).collect();
    let line = |(user, last): (&u32, &String)| {
        format!("{}\n", serde_json::json!({"user_id": format!("new-{user}"), "history": [last]}))
    };
    world.write("new.jsonl", users.iter().zip(&last).map(line).collect::<String>());
    let file = world.folder().join("new.jsonl").display().to_string();
    let flags = ["--run", "lightgcn", "--set", "model.name=lightgcn", "--set", "finetune.epochs=2", "--top", "100"];
    let found = lists(&world.run("recommend", &[&["--histories", &file][..], &flags].concat()));
    let mut stored =
        TensorFile::read(&world.path("a/runs/lightgcn/ranks.test.history-1.safetensors"), "ranks", 2, "").unwrap();
    let stored = stored.take_u32("rank").unwrap();
    let mut compared = 0;
    for (((user, target), last), (_, list)) in users.iter().zip(&targets).zip(&last).zip(&found) {
        // An item of the history is a candidate of the evaluation only if it is the target.
        if target == last {
            continue;
        }
        let own = list.iter().find(|(id, _)| id == target).unwrap().1;
        let rank = list.iter().filter(|(_, score)| *score >= own).count();
        assert_eq!(stored[*user as usize - 1] as usize, rank, "user {user}");
        compared += 1;
    }
    assert!(compared > 5, "{compared}");

    let reported = run("grcn");
    assert!(
        reported.contains("no ranks from short histories (`evaluate.short_histories`), because `grcn`"),
        "{reported}"
    );
    assert!(!world.path("a/runs/grcn/ranks.test.history-1.safetensors").exists());
}
