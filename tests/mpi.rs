//! Training by processes that mpirun starts. If there is no mpirun, or the program was built without MPI, the tests are skipped with a
//! message. `make test-mpi` builds it with MPI.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails by panicking and says what it leaves out")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use mp4sr_artifact::{EpochLine, files};
use mp4sr_tests::{Project, said};

/// A world with features; its training phases have many short steps.
fn world() -> Project {
    let world = Project::small();
    world.run("run", &["--until", "extract"]);
    world
}

/// The program that starts processes: `MPIRUN`, where several implementations of MPI are installed.
fn launcher() -> String {
    std::env::var("MPIRUN").unwrap_or_else(|_| "mpirun".to_owned())
}

/// The command that runs a stage in `size` processes.
fn mpirun(world: &Project, size: usize, stage: &str, words: &[&str]) -> Command {
    let one = world.command(stage, words);
    let mut command = Command::new(launcher());
    command.args(["-n", &size.to_string()]).arg(one.get_program()).args(one.get_args());
    command.current_dir(one.get_current_dir().unwrap_or(Path::new(".")));
    for (key, value) in one.get_envs() {
        match value {
            Some(value) => command.env(key, value),
            None => command.env_remove(key),
        };
    }
    // By default, Open MPI does not run as root, nor with more processes than cores.
    for key in ["OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "OMPI_MCA_rmaps_base_oversubscribe"] {
        command.env(key, "1");
    }
    command.env("RAYON_NUM_THREADS", "1").stdin(Stdio::null());
    command
}

fn run(world: &Project, size: usize, stage: &str, words: &[&str]) -> Output {
    mpirun(world, size, stage, words).output().unwrap()
}

fn succeed(world: &Project, size: usize, stage: &str, words: &[&str]) -> String {
    let output = run(world, size, stage, words);
    assert!(output.status.success(), "{stage} by {size}: {}", said(&output));
    said(&output)
}

/// Whether the program was built with MPI. If it was not, it must still refuse to be one of several processes.
fn has_mpi(world: &Project) -> bool {
    let started = Command::new(launcher()).arg("--version").output();
    if !started.is_ok_and(|output| output.status.success()) {
        println!("skipped: there is no mpirun");
        return false;
    }
    let alone =
        world.command("pretrain", &[]).env("PMI_SIZE", "2").env_remove("OMPI_COMM_WORLD_SIZE").output().unwrap();
    assert!(!alone.status.success(), "a second process is not there");
    if said(&alone).contains("was built without MPI") {
        println!("skipped: the program was built without MPI");
        return false;
    }
    true
}

fn checkpoint(world: &Project, phase: &str) -> PathBuf {
    world.path(&format!("a/runs/mp4sr/{phase}.safetensors"))
}

fn losses(world: &Project) -> Vec<f64> {
    let text = files::read_to_string(&world.path("a/runs/mp4sr/metrics.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str::<EpochLine>(line).unwrap().loss).collect()
}

#[test]
fn a_program_without_mpi_refuses_to_train_twice_in_one_folder() {
    let world = world();
    for (key, value) in [("OMPI_COMM_WORLD_SIZE", "2"), ("PMI_SIZE", "3")] {
        let output = world.command("pretrain", &[]).env(key, value).output().unwrap();
        if !said(&output).contains("was built without MPI") {
            println!("not tested: the program was built with MPI");
            return;
        }
        assert_eq!(output.status.code(), Some(1));
        assert!(said(&output).contains("--features mp4sr-train/mpi"), "{}", said(&output));
    }
    assert!(!world.path("a/runs").exists());
}

#[test]
fn two_and_four_processes_train_like_one_and_always_to_the_same_bytes() {
    let alone = world();
    if !has_mpi(&alone) {
        return;
    }
    for phase in ["pretrain", "finetune"] {
        alone.run(phase, &[]);
    }
    for size in [2, 4] {
        let world = world();
        let bytes = || {
            files::remove_dir_if_present(&world.path("a/runs")).unwrap();
            for phase in ["pretrain", "finetune"] {
                let reported = succeed(&world, size, phase, &[]);
                assert_eq!(
                    reported.matches(&format!("{phase}: done in")).count(),
                    1,
                    "one process writes messages: {reported}"
                );
            }
            for (a, b) in losses(&alone).iter().zip(losses(&world)) {
                assert!((a - b).abs() < 1e-4 * a, "{size} processes: {:?} {:?}", losses(&alone), losses(&world));
            }
            assert!(succeed(&world, size, "finetune", &[]).contains("finetune: up to date"));
            // The run is evaluated like any other.
            world.run("evaluate", &[]);
            ["pretrain", "finetune"].map(|phase| files::read(&checkpoint(&world, phase)).unwrap())
        };
        assert!(bytes() == bytes(), "{size} processes");
    }
}

/// The child processes of a process.
fn children(parent: u32) -> Vec<u32> {
    let tasks = std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let parent_of = |id: u32| -> Option<u32> {
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
    };
    tasks.filter(|&id| parent_of(id) == Some(parent)).collect()
}

/// The processes that have no children of their own: MPICH starts them through a proxy, Open MPI does not.
fn workers(parent: u32) -> Vec<u32> {
    match children(parent) {
        none if none.is_empty() => vec![parent],
        started => started.into_iter().flat_map(workers).collect(),
    }
}

/// Kills one of the processes of mpirun after an epoch of fine-tuning; mpirun then ends the others.
fn kill_one(mpirun: &mut Child, log: &Path) {
    let started = Instant::now();
    let is_under_way = || files::read_to_string(log).is_ok_and(|text| text.contains("finetune"));
    while !is_under_way() {
        assert!(started.elapsed() < Duration::from_mins(2), "no epoch was finished");
        assert!(mpirun.try_wait().unwrap().is_none(), "training ended before it could be killed");
        std::thread::sleep(Duration::from_millis(2));
    }
    let last = workers(mpirun.id()).into_iter().max().unwrap();
    Command::new("kill").args(["-9", &last.to_string()]).status().unwrap();
    assert!(!mpirun.wait().unwrap().success(), "mpirun fails when a process was killed");
}

#[test]
fn after_a_process_was_killed_training_resumes_to_the_same_bytes() {
    let world = world();
    if !has_mpi(&world) {
        return;
    }
    let words = ["--set", "finetune.epochs=12", "--set", "finetune.patience=12", "--set", "finetune.batch=16"];
    succeed(&world, 2, "pretrain", &words);
    succeed(&world, 2, "finetune", &words);
    let bytes = || files::read(&checkpoint(&world, "finetune")).unwrap();
    let unkilled = bytes();
    files::remove_dir_if_present(&world.path("a/runs")).unwrap();
    succeed(&world, 2, "pretrain", &words);
    let mut killed = mpirun(&world, 2, "finetune", &words).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    kill_one(&mut killed, &world.path("a/runs/mp4sr/metrics.jsonl"));
    assert!(!checkpoint(&world, "finetune").exists());
    assert!(world.path("a/runs/mp4sr/state.finetune.safetensors").exists());
    let reported = succeed(&world, 2, "finetune", &words);
    assert!(reported.contains("resuming after epoch"), "{reported}");
    assert!(bytes() == unkilled);
}

#[test]
fn what_cannot_be_trained_is_refused_once_and_by_a_sentence() {
    let world = world();
    if !has_mpi(&world) {
        return;
    }
    let refusals = [
        (vec!["--set", "model.name=\"sine\""], "`sine` is trained by one process, found 4"),
        (
            vec!["--set", "pretrain.enabled=false", "--set", "finetune.batch=3"],
            "`finetune.batch` is 3, which cannot be divided among 4",
        ),
        (vec!["--set", "run.seeds=3"], "run.seeds"),
    ];
    // The first process cannot write its log. The others wait for it, and must be stopped.
    let log = world.path("a/runs/mp4sr/metrics.jsonl");
    std::fs::create_dir_all(&log).unwrap();
    let output = run(&world, 3, "pretrain", &[]);
    assert!(!output.status.success());
    assert_eq!(said(&output).matches("error: ").count(), 1, "{}", said(&output));
    assert!(said(&output).contains("error: process 1 of 3: failed to write"), "{}", said(&output));
    files::remove_dir_if_present(&world.path("a/runs")).unwrap();
    for (words, sentence) in refusals {
        let output = run(&world, 4, "finetune", &words);
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        assert_eq!(said(&output).matches("error: ").count(), 1, "{}", said(&output));
        assert!(said(&output).contains(sentence), "{}", said(&output));
    }
}
