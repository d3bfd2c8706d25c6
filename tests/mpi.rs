//! Training by processes that mpirun starts. If there is no mpirun, or the program was built without MPI, the tests are skipped with a
//! message. `make test-mpi` builds it with MPI.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking and says what it leaves out"
)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use mp4sr_artifact::{EpochLine, files};
use mp4sr_tests::{Project, stderr_of};
use safetensors::{Dtype, SafeTensors};

/// The relative tolerance of an epoch's loss after several epochs, between different numbers of processes.
const LOSSES: f64 = 1e-6;
/// The tolerance of weights after several epochs, between different numbers of processes.
const WEIGHTS: f32 = 1e-5;

/// A world with features; its training phases have many short steps.
fn world() -> Project {
    let world = Project::small();
    world.run("run", &["--until", "extract"]);
    world
}

/// The program that starts processes: `MPIRUN`, if several implementations of MPI are installed.
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
    assert!(output.status.success(), "{stage} by {size}: {}", stderr_of(&output));
    stderr_of(&output)
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
    if stderr_of(&alone).contains("was built without MPI") {
        println!("skipped: the program was built without MPI");
        return false;
    }
    true
}

fn checkpoint(world: &Project, phase: &str) -> PathBuf {
    world.path(&format!("a/runs/mp4sr/{phase}.safetensors"))
}

/// Compares the weights of two checkpoints by name, and returns the largest difference between two values.
fn weights_off(a: &[u8], b: &[u8]) -> f32 {
    let (a, b) = (SafeTensors::deserialize(a).unwrap(), SafeTensors::deserialize(b).unwrap());
    let mut names: Vec<&str> = a.names().into_iter().collect();
    let mut others: Vec<&str> = b.names().into_iter().collect();
    names.sort_unstable();
    others.sort_unstable();
    assert_eq!(names, others);
    let mut off = 0.0f32;
    for name in names {
        let (a, b) = (a.tensor(name).unwrap(), b.tensor(name).unwrap());
        assert_eq!((a.dtype(), a.shape()), (b.dtype(), b.shape()), "{name}");
        if a.dtype() != Dtype::F32 {
            assert!(a.data() == b.data(), "{name}");
            continue;
        }
        let values = |data: &[u8]| data.as_chunks().0.iter().map(|&bits| f32::from_le_bytes(bits)).collect::<Vec<_>>();
        for (a, b) in values(a.data()).iter().zip(values(b.data())) {
            assert!(a.is_finite() && b.is_finite(), "{name}");
            off = off.max((a - b).abs());
        }
    }
    off
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
        if !stderr_of(&output).contains("was built without MPI") {
            println!("not tested: the program was built with MPI");
            return;
        }
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr_of(&output).contains("--features mp4sr-train/mpi"), "{}", stderr_of(&output));
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
            let (one, many) = (losses(&alone), losses(&world));
            assert_eq!((one.len(), many.len()), (4, 4), "two epochs of two phases");
            for (a, b) in one.iter().zip(&many) {
                assert!((a - b).abs() < LOSSES * a, "{size} processes: {one:?} {many:?}");
            }
            for phase in ["pretrain", "finetune"] {
                let bytes = |world: &Project| files::read(&checkpoint(world, phase)).unwrap();
                let off = weights_off(&bytes(&alone), &bytes(&world));
                println!("{size} processes: weights of {phase} within {off:.1e}");
                assert!(off < WEIGHTS, "{size} processes, {phase}: weights are off by {off}");
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

/// The processes without child processes: MPICH starts them through a proxy, Open MPI does not.
fn workers(parent: u32) -> Vec<u32> {
    match children(parent) {
        none if none.is_empty() => vec![parent],
        started => started.into_iter().flat_map(workers).collect(),
    }
}

/// The process that writes files, or the last one.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Victim {
    First,
    Last,
}

/// Whether the process is the first of the launch, as its environment says.
fn is_first(process: u32) -> bool {
    let environment = std::fs::read(format!("/proc/{process}/environ")).unwrap_or_default();
    let first = [&b"OMPI_COMM_WORLD_RANK=0"[..], b"PMI_RANK=0"];
    environment.split(|&byte| byte == 0).any(|variable| first.contains(&variable))
}

/// Kills one of the processes of mpirun after an epoch of fine-tuning; mpirun then ends the others. Returns what was written to standard
/// error.
fn kill_one(mut mpirun: Child, victim: Victim, log: &Path) -> String {
    let started = Instant::now();
    let is_under_way = || files::read_to_string(log).is_ok_and(|text| text.contains("finetune"));
    while !is_under_way() {
        assert!(started.elapsed() < Duration::from_mins(2), "no epoch was finished");
        assert!(mpirun.try_wait().unwrap().is_none(), "training ended before it could be killed");
        std::thread::sleep(Duration::from_millis(2));
    }
    let mut workers = workers(mpirun.id());
    workers.retain(|&process| is_first(process) == (victim == Victim::First));
    let process = workers.into_iter().max().unwrap();
    let sent = Command::new("kill").args(["-9", &process.to_string()]).status().unwrap();
    assert!(sent.success(), "the process has ended before it could be killed");
    let output = mpirun.wait_with_output().unwrap();
    assert!(!output.status.success(), "mpirun fails when a process was killed");
    stderr_of(&output)
}

/// Trains until one of two processes is killed.
fn train_and_kill(world: &Project, victim: Victim, words: &[&str]) {
    let started = mpirun(world, 2, "finetune", words).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let reported = kill_one(started, victim, &world.path("a/runs/mp4sr/metrics.jsonl"));
    assert!(reported.matches("error: ").count() <= 1, "{victim:?}: {reported}");
    assert!(!reported.contains("panicked") && !reported.contains("internal error"), "{victim:?}: {reported}");
    assert!(!checkpoint(world, "finetune").exists());
    assert!(world.path("a/runs/mp4sr/state.finetune.safetensors").exists());
}

#[test]
fn after_a_process_was_killed_training_resumes_with_the_same_or_another_number_of_processes() {
    let world = world();
    if !has_mpi(&world) {
        return;
    }
    let words = ["--set", "finetune.epochs=12", "--set", "finetune.patience=12", "--set", "finetune.batch=16"];
    succeed(&world, 2, "pretrain", &words);
    let run = world.path("a/runs/mp4sr");
    let pretrained: Vec<(PathBuf, Vec<u8>)> =
        files::list(&run).unwrap().into_iter().map(|path| (path.clone(), files::read(&path).unwrap())).collect();
    succeed(&world, 2, "finetune", &words);
    let ended = || (files::read(&checkpoint(&world, "finetune")).unwrap(), losses(&world));
    let unkilled = ended();
    let resume_after = |victim: Victim, size: usize| {
        files::remove_dir_if_present(&run).unwrap();
        for (path, bytes) in &pretrained {
            files::write_bytes(path, bytes).unwrap();
        }
        train_and_kill(&world, victim, &words);
        let reported = succeed(&world, size, "finetune", &words);
        assert!(reported.contains("resuming after epoch"), "{reported}");
        ended()
    };
    for victim in [Victim::First, Victim::Last] {
        assert!(resume_after(victim, 2) == unkilled, "{victim:?}");
    }
    // Another number of processes resumes from the same state, and differs by rounding.
    let resumed = resume_after(Victim::Last, 4);
    assert_eq!((unkilled.1.len(), resumed.1.len()), (14, 14), "two epochs and twelve");
    for (a, b) in unkilled.1.iter().zip(&resumed.1) {
        assert!((a - b).abs() < LOSSES * a, "resumed by 4: {:?} {:?}", unkilled.1, resumed.1);
    }
    let off = weights_off(&unkilled.0, &resumed.0);
    println!("resumed by 4: weights within {off:.1e}");
    assert!(off < WEIGHTS, "resumed by 4: weights are off by {off}");
}

/// The command of one process, and that of a second one with further words, after the colon of mpirun.
fn unlike(world: &Project, words: &[&str]) -> Output {
    let mut command = mpirun(world, 1, "pretrain", &[]);
    let second = world.command("pretrain", words);
    command.args([":", "-n", "1"]).arg(second.get_program()).args(second.get_args()).output().unwrap()
}

#[test]
fn processes_with_other_settings_or_files_are_refused() {
    let world = world();
    if !has_mpi(&world) {
        return;
    }
    for (words, part) in [
        (
            &["--set", "pretrain.learning_rate=0.1"][..],
            "process 2 of 2 has other settings (`pretrain`) than the first one",
        ),
        (&["--set", "pretrain.epochs=1"], "process 2 of 2 has other settings (`pretrain`) than the first one"),
        (&["--set", "run.seed=7"], "process 2 of 2 has other settings (`seed`) than the first one"),
        (&["--set", "model.transformer.width=32"], "process 2 of 2 has other settings (`model`) than the first one"),
        (&["--set", "evaluate.batch=9"], "process 2 of 2 has other settings (`evaluate.batch`) than the first one"),
        (&["--run", "other"], "process 2 of 2 has another run than the first one"),
    ] {
        let output = unlike(&world, words);
        let message = stderr_of(&output);
        assert!(!output.status.success(), "{words:?}: {message}");
        assert_eq!(message.matches("error: ").count(), 1, "{words:?}: {message}");
        assert!(message.contains(part), "{words:?}: {message}");
        assert!(!checkpoint(&world, "pretrain").exists(), "{words:?}");
    }
}

#[test]
fn unsupported_training_is_refused_once_with_a_message() {
    let world = world();
    if !has_mpi(&world) {
        return;
    }
    let refusals = [
        (vec!["--set", "model.name=\"sine\""], "`sine` can be trained by only one process, found 4"),
        (
            vec!["--set", "pretrain.enabled=false", "--set", "finetune.batch=3"],
            "`finetune.batch` is 3, which cannot be divided among 4",
        ),
        (vec!["--set", "run.seeds=3"], "run.seeds"),
        (
            vec!["--set", "pretrain.enabled=false", "--set", "run.device=\"cuda:0\""],
            "several processes can train only on the CPU, found `run.device = \"cuda:0\"`",
        ),
        (
            vec!["--set", "pretrain.enabled=false", "--set", "finetune.candidates=64"],
            "several processes can only train with all items as candidates, found `finetune.candidates = 64`",
        ),
    ];
    // The first process cannot read its log. The others wait for it, and must be stopped.
    let log = world.path("a/runs/mp4sr/metrics.jsonl");
    std::fs::create_dir_all(&log).unwrap();
    let output = run(&world, 3, "pretrain", &[]);
    assert!(!output.status.success());
    assert_eq!(stderr_of(&output).matches("error: ").count(), 1, "{}", stderr_of(&output));
    assert!(stderr_of(&output).contains("error: process 1 of 3: failed to read"), "{}", stderr_of(&output));
    files::remove_dir_if_present(&world.path("a/runs")).unwrap();
    for (words, sentence) in refusals {
        let output = run(&world, 4, "finetune", &words);
        assert_eq!(output.status.code(), Some(1), "{}", stderr_of(&output));
        assert_eq!(stderr_of(&output).matches("error: ").count(), 1, "{}", stderr_of(&output));
        assert!(stderr_of(&output).contains(sentence), "{}", stderr_of(&output));
    }
}
