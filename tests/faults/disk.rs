use std::path::{Path, PathBuf};
use std::process::Command;

use mp4sr_tests::{Project, root, stages, stderr_of};

use crate::{assert_same, finished, forget, undisturbed};

/// The faults: the call that fails, the system error, and how it is reported.
const FAULTS: [(&str, &str, &str); 4] = [
    ("write", "28", "No space left on device"),
    ("fsync", "5", "Input/output error"),
    ("rename", "1", "Operation not permitted"),
    ("open", "30", "Read-only file system"),
];

/// Builds the library that makes calls fail; `None` without a C compiler, or on systems other than Linux.
fn injector(folder: &Path) -> Option<PathBuf> {
    let library = folder.join("inject.so");
    let source = root().join("tests/faults/inject.c");
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source).arg("-ldl");
    compiler.status().is_ok_and(|status| status.success() && cfg!(target_os = "linux")).then_some(library)
}

/// In every stage, each write, fsync, rename and open fails once, together with all calls of its kind that follow. The stage must report it
/// in one sentence with exit code 1 and leave the earlier files unchanged, and the next start must end with the same bytes.
#[test]
fn a_disk_failure_at_any_call_loses_nothing() {
    let (world, expected) = undisturbed();
    let Some(library) = injector(world.folder()) else {
        println!("skipped: no C compiler, or not Linux");
        return;
    };
    let mut faults = 0;
    for stage in stages() {
        let before = finished(&world);
        for (call, errno, reported) in FAULTS {
            for at in 0.. {
                let mut command = world.command(stage, &[]);
                command.env("LD_PRELOAD", &library).env("MP4SR_FAULT", call);
                let output =
                    command.env("MP4SR_FAULT_AT", at.to_string()).env("MP4SR_FAULT_ERRNO", errno).output().unwrap();
                if output.status.success() {
                    break;
                }
                faults += 1;
                let message = stderr_of(&output);
                let last = message.lines().last().unwrap_or_default();
                let when = format!("{stage}, {call} {at}");
                assert_eq!(output.status.code(), Some(1), "{when}: {message}");
                assert!(
                    last.starts_with("error: ") && last.contains(reported) && last.contains("artifacts"),
                    "{when}: {message}"
                );
                let now = finished(&world);
                for (path, bytes) in &now {
                    assert!(expected.get(path) == Some(bytes), "{when}: {} is not what it should be", path.display());
                }
                assert!(before.keys().all(|path| now.contains_key(path)), "{when}: something is gone");
            }
            forget(&world, stage);
        }
        world.run(stage, &[]);
    }
    assert_same(&finished(&world), &expected, "after faults");
    assert!(faults > 60, "only {faults} faults happened");
}

/// An artifacts folder that cannot be created is an error.
#[test]
fn a_folder_that_cannot_be_created_is_reported() {
    let world = Project::small();
    for path in ["/proc/mp4sr", "/dev/null/mp4sr"] {
        let mut command = mp4sr_tests::command("preprocess");
        command.arg("--pipeline").arg(world.pipeline("a")).args(["--artifacts", path]);
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(
            stderr_of(&output).contains(path) && !stderr_of(&output).contains("internal error"),
            "{}",
            stderr_of(&output)
        );
    }
}
