//! Data that are valid but extreme must give a correct result, or an error in one sentence.

use std::fmt::Write as _;
use std::fs;

use mp4sr_artifact::Sequences;
use mp4sr_tests::{Project, stages, stderr_of};

/// Writes the items of users as the events of the world, one second apart.
fn write(world: &Project, users: impl IntoIterator<Item = (String, Vec<usize>)>) {
    let mut text = String::from("user_id\titem_id\ttimestamp\n");
    for (user, items) in users {
        for (at, item) in items.into_iter().enumerate() {
            let _ = writeln!(text, "{user}\ti{item}\t{}", 1_600_000_000 + at);
        }
    }
    fs::write(world.folder().join("a.tsv"), text).unwrap();
}

const NO_CORE: [&str; 4] = ["--set", "preprocess.user_core=0", "--set", "preprocess.item_core=0"];
const ALL_EVENTS: [&str; 2] = ["--set", "preprocess.repeated=\"all\""];

/// Runs all stages, and returns the error of the first one that fails.
fn walk(world: &Project, words: &[&str]) -> Result<(), String> {
    for stage in stages() {
        let output = world.output(stage, words);
        if !output.status.success() {
            let message = stderr_of(&output);
            let last = message.lines().last().unwrap_or_default().to_owned();
            assert_eq!(output.status.code(), Some(1), "{stage}: {message}");
            assert!(last.starts_with("error: ") && !message.contains("internal error"), "{stage}: {message}");
            return Err(last);
        }
    }
    Ok(())
}

fn ranks(world: &Project) -> Vec<u32> {
    let bytes = fs::read(world.path("a/runs/mp4sr/ranks.test.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    file.tensor("rank").unwrap().data().as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect()
}

#[test]
fn one_user_with_a_few_items() {
    let world = Project::small();
    write(&world, [("u".to_owned(), vec![1, 2, 3, 4, 5])]);
    walk(&world, &NO_CORE).unwrap();
    let ranks = ranks(&world);
    assert!(ranks.len() == 1 && (1..=5).contains(&ranks[0]), "{ranks:?}");
}

#[test]
fn one_item_alone_is_always_found() {
    let world = Project::small();
    write(&world, (0..5).map(|user| (format!("u{user}"), vec![1; 6])));
    // The item has no image.
    let words = [&NO_CORE[..], &ALL_EVENTS, &["--set", r#"model.modalities=[{name="text"}]"#]].concat();
    walk(&world, &words).unwrap();
    assert_eq!(ranks(&world), [1; 5], "there is nothing else to recommend");
}

#[test]
fn all_users_alike_and_an_item_in_every_sequence() {
    let world = Project::small();
    write(&world, (0..40).map(|user| (format!("u{user}"), vec![0, 1, 2, 3, 4, 5, 6])));
    walk(&world, &["--set", "finetune.epochs=30", "--set", "finetune.learning_rate=0.01"]).unwrap();
    let ranks = ranks(&world);
    assert!(ranks.iter().all(|rank| *rank == ranks[0]), "identical users get identical ranks: {ranks:?}");
}

#[test]
fn a_user_with_100_000_events() {
    let world = Project::small();
    let long = (0..100_000).map(|at| (at * 7919) % 30).collect();
    let others = (0..20).map(|user| (format!("u{user}"), (0..8).map(|at| (user + at) % 30).collect()));
    write(&world, others.chain([("long".to_owned(), long)]));
    let words = [
        &ALL_EVENTS[..],
        &["--set", "pretrain.epochs=1", "--set", "finetune.epochs=1", "--set", "finetune.batch=1024"],
    ]
    .concat();
    walk(
        &world,
        &[&words[..], &["--set", "pretrain.enabled=false", "--set", "model.transformer.max_sequence_length=10"]]
            .concat(),
    )
    .unwrap();
    let sequences = Sequences::read(&world.path("a/dataset/sequences.safetensors")).unwrap();
    assert_eq!((0..21).map(|user| sequences.of(user).len()).max(), Some(100_000));
}

#[test]
fn no_item_with_text_or_image() {
    let world = Project::small();
    let items: String = world
        .raw_text("a.jsonl")
        .lines()
        .map(|line| line.split(", \"title").next().unwrap().to_owned() + "}\n")
        .collect();
    fs::write(world.folder().join("a.jsonl"), items).unwrap();
    // The image column has no values either, which is an error if it is configured.
    let error = walk(&world, &[]).unwrap_err();
    assert!(error.contains("has no field `image` in any line"), "{error}");
    let bare = ["--set", "source.columns.images=\"\""];
    let walk = |world: &Project, words: &[&str]| walk(world, &[&bare[..], words].concat());
    let error = walk(&world, &[]).unwrap_err();
    assert!(error.contains("no item has a row of `text`") && error.contains("`model.modalities`"), "{error}");
    // A model that reads no features can be trained.
    walk(&world, &["--set", "model.name=sasrec"]).unwrap();
    assert!(ranks(&world).iter().all(|rank| *rank > 0));
    // If items without features are dropped, nothing is left, which is an error.
    let error = walk(&world, &["--set", "preprocess.missing=\"drop\"", "--run", "other"]).unwrap_err();
    assert!(error.contains("items without text or image") && error.contains("preprocess.missing"), "{error}");
}

#[test]
fn filters_that_leave_nothing_and_sequences_too_short_to_train_are_reported() {
    let world = Project::small();
    let error = walk(&world, &["--set", "preprocess.user_core=50"]).unwrap_err();
    assert!(error.contains("50 events per user") && error.contains("preprocess.user_core"), "{error}");
    write(&world, (0..9).map(|user| (format!("u{user}"), vec![user, user + 1])));
    let error = walk(&world, &NO_CORE).unwrap_err();
    assert!(error.contains("no training data"), "{error}");
}

#[test]
fn targets_that_nobody_ever_trained_on_are_ranked_by_their_features() {
    let world = Project::small();
    // The last item of each user does not occur in training.
    write(
        &world,
        (0..10).map(|user| (format!("u{user}"), vec![user, user + 1, user + 2, user + 3, 11 + user % 2, 20 + user])),
    );
    walk(&world, &NO_CORE).unwrap();
    let ranks = ranks(&world);
    assert!(ranks.len() == 10 && ranks.iter().all(|rank| (1..=30).contains(rank)), "{ranks:?}");
    let page = world.text("a/runs/mp4sr/report/index.html");
    assert!(page.contains("R@20"));
}
