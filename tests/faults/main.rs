//! Faults outside of the programs: kills, full and failing disks, damaged artifacts. After each of them, finished work is kept, no wrong
//! file has a final name, and the next start resumes. docs/reliability.md lists the guarantees.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a test fails by panicking")]

mod damage;
mod disk;
mod extreme;
mod kill;
mod memory;
mod messages;
mod page;
mod raw;
mod seeds;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use mp4sr_artifact::files;
use mp4sr_tests::{Project, stages};

/// Files that depend on the clock, on file times or on what an earlier run computed: logs and records with times, locks, the number of
/// vectors that came from the cache, and the page, which shows all of these. A killed stage may leave the records of its last run aside.
const FREE: [&str; 8] = [
    ".lock",
    ".manifest.json",
    ".manifest.earlier.json",
    "metrics.jsonl",
    ".timing.json",
    ".timing.earlier.json",
    "features/report.json",
    "report/index.html",
];
/// The mark in the names of files that are not finished.
const TEMPORARY: &str = ".mp4sr-tmp-";

/// All artifacts that must be the same however they were computed, with their content.
fn finished(world: &Project) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    collect(&world.path(""), &world.path(""), &mut found);
    found.retain(|path, _| {
        let name = path.to_string_lossy();
        // The cache may hold what a killed run computed, divided into other shards.
        !FREE.iter().any(|end| name.ends_with(end)) && !name.starts_with(".cache") && !name.contains("/state.")
    });
    found
}

fn collect(root: &Path, folder: &Path, found: &mut BTreeMap<PathBuf, Vec<u8>>) {
    if !folder.exists() {
        return;
    }
    for path in files::list(folder).unwrap() {
        if path.is_dir() {
            collect(root, &path, found);
        } else {
            let bytes = files::read(&path).unwrap();
            let name = path.strip_prefix(root).unwrap().to_owned();
            found.insert(name, if path.ends_with("table.md") { without_seconds(&bytes) } else { bytes });
        }
    }
}

/// The tables of a study without the column of seconds, which depends on the load of the machine.
fn without_seconds(table: &[u8]) -> Vec<u8> {
    let mut is_timed = false;
    let lines = std::str::from_utf8(table).unwrap().lines().map(|line| {
        is_timed = line.contains("seconds of training") || (is_timed && line.starts_with('|'));
        let whole = line.trim_end_matches('|');
        if is_timed { whole.rsplit_once('|').map_or(line, |(kept, _)| kept) } else { line }
    });
    lines.collect::<Vec<_>>().join("\n").into_bytes()
}

/// A world without artifacts, and the artifacts that all stages write in it without faults. Headers and reports contain the paths of raw
/// files, so both must be of the same world.
fn undisturbed() -> (Project, BTreeMap<PathBuf, Vec<u8>>) {
    let world = Project::small();
    for stage in stages() {
        world.run(stage, &[]);
    }
    let found = finished(&world);
    files::remove_dir_if_present(&world.path("")).unwrap();
    (world, found)
}

/// Checks that both have the same artifacts with the same content.
fn assert_same(found: &BTreeMap<PathBuf, Vec<u8>>, expected: &BTreeMap<PathBuf, Vec<u8>>, when: &str) {
    let names = |files: &BTreeMap<PathBuf, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(found), names(expected), "{when}");
    for (path, bytes) in found {
        assert!(*bytes == expected[path], "{when}: {} differs", path.display());
    }
}

/// The record of a stage's last run.
fn manifest(world: &Project, stage: &str) -> PathBuf {
    let folder = match stage {
        "preprocess" => "a/dataset",
        "extract" => "a/features",
        "report" => "a/runs/mp4sr/report",
        _ => "a/runs/mp4sr",
    };
    world.path(folder).join(format!("{stage}.manifest.json"))
}

/// Removes the record of a stage, so that the stage runs again.
fn forget(world: &Project, stage: &str) {
    std::fs::remove_file(manifest(world, stage)).unwrap();
}
