use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use mp4sr_artifact::files;
use mp4sr_tests::{Project, stages, stderr_of};

use crate::{TEMPORARY, assert_same, finished, forget, undisturbed};

/// A generator of SplitMix64, so that every run of the test kills at the same shares of the time.
struct Draw(u64);

impl Draw {
    /// A number from 0 to 1.
    fn share(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// The number of kills per stage.
const KILLS: usize = 8;

/// Kills each stage with SIGKILL at pseudo-random shares of the time that it takes.
#[test]
fn a_stage_killed_at_any_moment_ends_with_the_same_bytes() {
    let (world, expected) = undisturbed();
    let mut draw = Draw(2020);
    for stage in stages() {
        // The time of the stage is measured in a separate world, so that this world stays without the stage's outputs.
        let other = Project::small();
        stages().take_while(|s| *s != stage).for_each(|s| {
            other.run(s, &[]);
        });
        let started = Instant::now();
        other.run(stage, &[]);
        let takes = started.elapsed();
        let mut killed = 0;
        for _ in 0..40 * KILLS {
            let mut child = world.command(stage, &["--quiet"]).stdout(Stdio::null()).spawn().unwrap();
            std::thread::sleep(takes.mul_f64(draw.share()).max(Duration::from_millis(1)));
            child.kill().unwrap();
            if child.wait().unwrap().success() {
                forget(&world, stage);
            } else {
                killed += 1;
            }
            for (path, bytes) in finished(&world) {
                let name = path.to_string_lossy().into_owned();
                assert!(
                    name.contains(TEMPORARY) || expected.get(&path) == Some(&bytes),
                    "{stage}: {name} stands there unfinished"
                );
            }
            if killed == KILLS {
                break;
            }
        }
        assert_eq!(killed, KILLS, "{stage} cannot be killed before its end");
        let output = world.output(stage, &[]);
        assert!(output.status.success(), "{stage}: {}", stderr_of(&output));
    }
    assert_same(&finished(&world), &expected, "after kills");
}

/// The next start removes the files that a killed one left, and nothing else.
#[test]
fn leftovers_of_a_killed_run_are_removed_by_the_next_start() {
    let (world, expected) = undisturbed();
    stages().for_each(|stage| {
        world.run(stage, &[]);
    });
    let mut folders = ["a/dataset", "a/features", "a/runs/mp4sr"].map(|folder| world.path(folder)).to_vec();
    // The cache has one folder per encoder.
    let cache = files::list(&world.path(".cache/vectors")).unwrap();
    assert!(!cache.is_empty());
    folders.extend(cache.clone());
    for process in ["4999999999", "4999999999-17"] {
        for folder in &folders {
            files::write_bytes(&folder.join(format!("x.safetensors{TEMPORARY}{process}")), b"half").unwrap();
        }
    }
    for (stage, output) in [("preprocess", "dataset/report.json"), ("extract", "features/report.json")] {
        files::remove_if_present(&world.path("a").join(output)).unwrap();
        world.run(stage, &[]);
    }
    files::remove_if_present(&world.path("a/runs/mp4sr/ranks.test.safetensors")).unwrap();
    world.run("evaluate", &[]);
    assert_same(&finished(&world), &expected, "after cleaning");
    let left = cache.iter().flat_map(|folder| files::list(folder).unwrap());
    let left: Vec<_> = left.filter(|path| path.to_string_lossy().contains(TEMPORARY)).collect();
    assert!(left.is_empty(), "{left:?}");
}

/// A study starts its own processes. If it is killed together with them, the next start resumes. If only the study is killed, the next
/// start may find that one of them still holds its run; then it reports this, and resumes once that process has ended.
#[test]
fn a_killed_study_or_search_resumes_and_ends_with_the_same_files() {
    let grid = ["--name", "lr", "--grid", "finetune.learning_rate=0.001,0.01"];
    for (program, words) in [("study", &["table2", "--seeds", "1"][..]), ("search", &grid[..])] {
        let world = Project::small();
        let words = [words, &["--quiet", "--jobs", "2"]].concat();
        let started = Instant::now();
        world.run(program, &words);
        let (takes, expected) = (started.elapsed(), finished(&world));
        files::remove_dir_if_present(&world.path("")).unwrap();

        let (mut draw, mut killed) = (Draw(7), 0);
        for kill in 0..10 {
            let mut command = world.command(program, &words);
            let mut child = command.process_group(0).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            std::thread::sleep(takes.mul_f64(draw.share() / 5.0));
            if kill % 2 == 0 {
                let group = format!("-{}", child.id());
                Command::new("kill").args(["-9", "--", &group]).stderr(Stdio::null()).status().unwrap();
            } else {
                child.kill().unwrap();
            }
            killed += usize::from(!child.wait().unwrap().success());
        }
        assert!(killed >= 5, "{program} cannot be killed before its end: {killed}");
        let mut last = world.output(program, &words);
        while !last.status.success() {
            let reported = String::from_utf8_lossy(&last.stdout).into_owned() + &stderr_of(&last);
            assert!(reported.contains("in use by process"), "{reported}");
            std::thread::sleep(Duration::from_millis(100));
            last = world.output(program, &words);
        }
        assert_same(&finished(&world), &expected, program);
    }
}
