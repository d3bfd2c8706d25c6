use std::time::{Duration, Instant};

use mp4sr_artifact::files;
use mp4sr_tests::{STAGES, SmallWorld, said};

use crate::{TEMPORARY, assert_same, finished, forget, undisturbed};

/// A draw of SplitMix64: the moments are the same in every run of the test.
struct Draw(u64);

impl Draw {
    /// From 0 to 1.
    fn share(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// In each stage.
const KILLS: usize = 8;

/// 56 SIGKILLs at seeded shares of the time that the stage takes.
#[test]
fn killed_at_any_moment_a_stage_ends_with_the_same_bytes() {
    let (world, expected) = undisturbed();
    let mut draw = Draw(2020);
    for stage in STAGES {
        // How long the stage takes here: in a world of its own, so that this one stays without it.
        let other = SmallWorld::new();
        STAGES.iter().take_while(|s| **s != stage).for_each(|s| {
            other.run(s, &[]);
        });
        let started = Instant::now();
        other.run(stage, &[]);
        let takes = started.elapsed();
        let mut killed = 0;
        for _ in 0..40 * KILLS {
            let mut child = world.command(stage, &["--quiet"]).stdout(std::process::Stdio::null()).spawn().unwrap();
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
        assert_eq!(killed, KILLS, "{stage} can't be killed before its end");
        let output = world.output(stage, &[]);
        assert!(output.status.success(), "{stage}: {}", said(&output));
    }
    assert_same(&finished(&world), &expected, "after kills");
}

/// The next start removes what a killed one left, and only that.
#[test]
fn leftovers_of_a_killed_run_are_removed_by_the_next_start() {
    let (world, expected) = undisturbed();
    STAGES.iter().for_each(|stage| {
        world.run(stage, &[]);
    });
    for folder in ["a/dataset", "a/features", "a/runs/mp4sr"] {
        files::write_bytes(&world.path(folder).join(format!("x.safetensors{TEMPORARY}4999999999")), b"half").unwrap();
    }
    for (stage, output) in [("preprocess", "dataset/report.json"), ("extract", "features/report.json")] {
        files::remove_if_present(&world.path("a").join(output)).unwrap();
        world.run(stage, &[]);
    }
    files::remove_if_present(&world.path("a/runs/mp4sr/ranks.test.safetensors")).unwrap();
    world.run("evaluate", &[]);
    assert_same(&finished(&world), &expected, "after cleaning");
}
