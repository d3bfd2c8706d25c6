//! Stages with a hard memory limit, on data that exceed it.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::process::Command;

use mp4sr_tests::{Project, stderr_of};

/// Runs a stage with at most `mebibytes` of writable memory.
fn limited(world: &Project, stage: &str, mebibytes: usize, words: &[&str]) -> std::process::Output {
    let unlimited = world.command(stage, words);
    let mut command = Command::new("sh");
    let script = format!("ulimit -d {}; exec \"$0\" \"$@\"", mebibytes * 1024);
    command.args(["-c", &script]).arg(unlimited.get_program()).args(unlimited.get_args());
    command.env("RAYON_NUM_THREADS", "2").output().unwrap()
}

/// Preprocesses 427 MB of reviews in 128 MiB. Lines are streamed; only columns of numbers and ids are kept. How much memory they take depends
/// on the timing of threads: 80 to 100 MiB.
#[test]
#[cfg(target_os = "linux")]
fn preprocess_reads_files_larger_than_its_memory() {
    const EVENTS: usize = 210_000;
    let world = Project::small();
    let file = File::create(world.folder().join("long.jsonl")).unwrap();
    let mut out = BufWriter::new(file);
    let review = "words of a long review ".repeat(85);
    for event in 0..EVENTS {
        let (user, item) = (event % 20_000, (event * 7919) % 3000);
        writeln!(
            out,
            "{{\"user_id\": \"u{user}\", \"item_id\": \"i{item}\", \"timestamp\": {}, \"text\": \"{review}\"}}",
            1_600_000_000 + event
        )
        .unwrap();
    }
    out.into_inner().unwrap().sync_all().unwrap();
    let size = std::fs::metadata(world.folder().join("long.jsonl")).unwrap().len();
    assert!(size > 3 * (128 << 20), "the file is {size} bytes");
    // Few of the items have a metadata line.
    let words = ["--set", "source.interactions=[\"long.jsonl\"]", "--set", "preprocess.min_described=0.0"];
    let output = limited(&world, "preprocess", 128, &words);
    assert!(output.status.success(), "{}", stderr_of(&output));
    assert!(world.text("a/dataset/report.json").contains(&format!("\"lines\": {EVENTS}")));
    // The limit must be effective: with far less memory, the stage fails.
    assert!(
        !limited(&world, "preprocess", 1, &[&["--set", "preprocess.user_core=2"], &words[..]].concat())
            .status
            .success()
    );
}

/// Ranks with 128 MiB; all scores would take 8,000 users times 40,000 items times 4 bytes, 1.2 GiB.
#[test]
#[cfg(target_os = "linux")]
fn evaluation_ranks_more_scores_than_its_memory_holds() {
    const ITEMS: usize = 40_000;
    let world = Project::small();
    let mut events = String::from("user_id\titem_id\ttimestamp\n");
    for user in 0..8000usize {
        for at in 0..6 {
            let _ = writeln!(events, "u{user}\ti{}\t{}", (user * 5 + at * 4001) % ITEMS, 1_600_000_000 + at);
        }
    }
    std::fs::write(world.folder().join("a.tsv"), events).unwrap();
    let words = [
        "--set",
        "model.name=\"popularity\"",
        "--set",
        "preprocess.item_core=0",
        "--set",
        "preprocess.min_described=0.0",
        "--quiet",
    ];
    world.run("preprocess", &words);
    for stage in ["finetune", "evaluate"] {
        let output = limited(&world, stage, 128, &words);
        assert!(output.status.success(), "{stage}: {}", stderr_of(&output));
    }
}
