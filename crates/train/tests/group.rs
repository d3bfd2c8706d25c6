//! Compares training by a group of processes with training by one: losses and weights differ only by rounding, the same number of processes
//! gives the same bytes, and any number of processes resumes from a state. Threads take the place of processes here; `tests/mpi.rs` starts
//! real ones.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use mp4sr_artifact::{EpochLine, Sequences, StageSettings, files, hash_ids};
use mp4sr_evaluate::{RankError, RankOptions};
use mp4sr_models::{Batch, Error, Modality, Model, ProcessGroup, Ragged, Result, RngKey, Step, Stored};
use mp4sr_ops::{Adam, AdamState, run_threads};
use mp4sr_pipeline::Config;
use mp4sr_pipeline::config::{PhaseSettings, Pretrain};
use mp4sr_protocol::{COLD_EVENTS, Metric, training_events};
use mp4sr_run::{Checkpoint, CheckpointInfo, Inputs, TrainedPhase, build_model_in_group, model_catalog};
use mp4sr_train::{
    PhaseLimits, PhaseParameters, PhaseState, SampleList, StateIdentity, TrainError, TrainSettings, Training,
};

const USERS: usize = 120;
const ITEMS: usize = 90;

fn sequences() -> Sequences {
    let key = RngKey::new(4);
    let (mut offsets, mut items) = (vec![0], Vec::new());
    for user in 0..USERS {
        let drawn = |at: usize| 1 + (key.uniform((1000 * user + at) as u64).powi(2) * ITEMS as f64) as u32;
        items.extend((0..5 + user % 12).map(drawn));
        offsets.push(items.len() as i64);
    }
    let ids: Vec<String> = (1..=ITEMS).map(|item| item.to_string()).collect();
    Sequences {
        offsets,
        times: (0..items.len() as i64).collect(),
        items,
        item_hash: hash_ids(ids.iter().map(String::as_str)),
        item_count: ITEMS,
        user_hash: None,
        time_kind: mp4sr_artifact::TimeKind::Unstated,
        parts: None,
    }
}

/// Up to four rows per item.
fn inputs() -> Inputs {
    inputs_of(|values| values)
}

fn inputs_of(change: impl Fn(Vec<f32>) -> Vec<f32>) -> Inputs {
    let features = |name: &str, width: usize| {
        let offsets: Vec<usize> =
            (0..=ITEMS).scan(0, |end, item| Some(std::mem::replace(end, *end + item % 5))).collect();
        let key = RngKey::new(7).fold_in(name);
        let values = (0..(offsets[ITEMS] * width) as u64).map(|i| key.normal(i) as f32).collect();
        Modality { name: name.to_owned(), features: Ragged::new(change(values), width, &offsets).unwrap() }
    };
    let modalities = vec![features("text", 24), features("image", 20)];
    Inputs { sequences: sequences(), modalities, encoders: BTreeMap::default(), categories: None }
}

/// A training case: a model, the keys of its configuration, and the index of its phase.
#[derive(Clone, Copy)]
struct GroupCase {
    model: &'static str,
    keys: &'static str,
    phase: usize,
    /// The number of samples per step.
    batch: usize,
}

const CASES: [GroupCase; 11] = [
    GroupCase { model: "mp4sr", keys: "", phase: 0, batch: 50 },
    GroupCase { model: "mp4sr", keys: "", phase: 1, batch: 50 },
    GroupCase { model: "sasrec", keys: "", phase: 0, batch: 50 },
    GroupCase {
        model: "mp4sr",
        keys: "model.mp4sr.projection = \"off\"\nmodel.mp4sr.cmcl_direction = \"row_sums\"\n\
               model.mp4sr.false_negatives = \"zero_logit\"\nmodel.mp4sr.lambda = 1.0",
        phase: 0,
        batch: 50,
    },
    GroupCase {
        model: "mp4sr",
        keys: "model.mp4sr.end_to_end = true\nmodel.mp4sr.logits = \"dot\"",
        phase: 0,
        batch: 21,
    },
    GroupCase { model: "mp4sr", keys: "model.mp4sr.id_embedding = false", phase: 1, batch: 50 },
    GroupCase { model: "mp4sr", keys: "model.mp4sr.id_dropout = 0.5", phase: 1, batch: 50 },
    GroupCase { model: "mp4sr", keys: "model.mp4sr.nip_candidates = \"all\"", phase: 0, batch: 50 },
    GroupCase {
        model: "mp4sr",
        keys: "model.mp4sr.nip_candidates = \"all\"\npretrain.items = \"warm\"\nmodel.mp4sr.projection = \"off\"",
        phase: 0,
        batch: 3,
    },
    // Batches so small that some processes have no sample, as the last batch of an epoch can be.
    GroupCase { model: "mp4sr", keys: "model.mp4sr.end_to_end = true", phase: 0, batch: 3 },
    GroupCase { model: "sasrec", keys: "", phase: 0, batch: 1 },
];

impl GroupCase {
    fn name(&self) -> String {
        format!("{} phase {} batch {} {:?}", self.model, self.phase, self.batch, self.keys)
    }

    fn warm_items(&self) -> bool {
        self.keys.contains("pretrain.items = \"warm\"")
    }

    fn build(&self, inputs: &Inputs, group: Option<&ProcessGroup>) -> Box<dyn Model> {
        let text = format!(
            "dataset.name = \"x\"\nmodel.name = {:?}\nmodel.transformer.width = 16\nmodel.transformer.feed_forward = 32\n\
             model.mp4sr.experts = 3\nmodel.mp4sr.attention = 8\n{}",
            self.model, self.keys
        );
        let text = if self.model == "mp4sr" {
            text
        } else {
            text.replace("model.mp4sr.experts = 3\nmodel.mp4sr.attention = 8\n", "")
        };
        let (config, _) = Config::parse(&text, self.model, &[], model_catalog()).unwrap();
        build_model_in_group(&config, inputs, group).unwrap()
    }
}

/// The state of training between two steps.
#[derive(Clone, Default)]
struct Moment {
    loss: f32,
    norm: f64,
    weights: Vec<Stored>,
    adam: AdamState,
}

const STEPS: usize = 4;

/// Takes one step from each of `starts`, or `STEPS` steps one after the other. Returns the state before the first step and after each one,
/// in which the first process has whole tables.
fn steps(
    case: GroupCase,
    inputs: &Inputs,
    group: Option<&ProcessGroup>,
    starts: Option<&[Moment]>,
) -> Result<Vec<Moment>> {
    let model = case.build(inputs, group);
    let phase = model.phases()[case.phase];
    let events = training_events(&inputs.sequences);
    let is_read = |item: u32| !case.warm_items() || events[item as usize - 1] >= COLD_EVENTS;
    let samples = SampleList::new(phase.samples, &inputs.sequences, is_read);
    let parameters = model.parameters();
    let vars = parameters.variables(|name| model.trains(&phase, name))?;
    let mut adam = Adam::new(&vars, 1e-3, 1e-4, 1.0)?;
    let now = |adam: &Adam, loss, norm| -> Result<Moment> {
        let (names, mut state) = parameters.split_state(&vars, &adam.state()?);
        for (at, name) in names.iter().enumerate() {
            for moments in [&mut state.first[at], &mut state.second[at]] {
                *moments = parameters.whole_values(name, std::mem::take(moments))?;
            }
        }
        Ok(Moment { loss, norm, weights: parameters.values()?, adam: state })
    };
    let mut moments = vec![now(&adam, 0.0, 0.0)?];
    for index in 0..STEPS {
        if let Some(start) = starts.map(|starts| &starts[index]) {
            for (name, values, shape) in &start.weights {
                parameters.set(name, values, shape)?;
            }
            adam.restore(parameters.join_state(&vars, &start.adam)?)?;
        }
        let key = RngKey::new(11).fold_in_index(index as u64);
        let order = samples.shuffled(key);
        let chosen = order[..case.batch].iter().map(|&sample| samples.get(sample as usize));
        let batch = Batch::new(chosen, model.max_sequence_length())?;
        let step = Step { epoch: 1, index, global: index as u64, epoch_key: RngKey::new(11), key };
        let loss = model.loss(&phase, &batch, &step)?;
        let gradients = loss.backward()?;
        let pending = match group {
            Some(group) => {
                let vars = vars.iter().map(|var| (var, parameters.is_shard(var)));
                adam.step_in_group(group, vars, &gradients, &loss)?
            }
            None => adam.step(&vars, &gradients, &loss)?,
        };
        let outcome = adam.finish(&pending)?;
        assert!(outcome.is_finite(), "{outcome:?}");
        moments.push(now(&adam, outcome.loss, outcome.norm)?);
    }
    Ok(moments)
}

/// The result of the first process.
fn first<T>(results: Vec<Result<T>>) -> T {
    results.into_iter().map(std::result::Result::unwrap).next().unwrap()
}

#[test]
fn a_step_of_two_and_four_processes_equals_that_of_one() {
    let inputs = inputs();
    for case in CASES {
        let one = steps(case, &inputs, None, None).unwrap();
        for size in [2, 4] {
            let many = first(run_threads(size, |group| steps(case, &inputs, Some(&group), Some(&one))));
            let mut largest = 0.0f32;
            for (step, (a, b)) in one.iter().zip(&many).enumerate() {
                let what = format!("{} by {size}, step {step}", case.name());
                assert!((a.loss - b.loss).abs() <= 1e-6 * a.loss.abs().max(1.0), "{what}: {} {}", a.loss, b.loss);
                assert!((a.norm - b.norm).abs() <= 1e-6 * a.norm, "{what}: {} {}", a.norm, b.norm);
                for ((name, a, shape), (other, b, other_shape)) in a.weights.iter().zip(&b.weights) {
                    assert_eq!((name, shape, a.len()), (other, other_shape, b.len()));
                    let off = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                    assert!(off <= 1e-6, "{what}: `{name}` is off by {off}");
                    largest = largest.max(off);
                }
                assert_eq!(a.adam.steps, b.adam.steps);
            }
            println!("{} by {size}: weights within {largest:.1e}", case.name());
        }
    }
}

/// The end of a phase: the bits of the first process's whole weights, and its log without times.
type Ended = (Vec<u32>, Vec<EpochLine>);

/// The training of a phase of `model`, whose state and log are in `folder`.
fn training<'a>(
    case: GroupCase,
    model: &'a dyn Model,
    sequences: &'a Sequences,
    identity: &'a StageSettings,
    folder: &Path,
    (epochs, learning_rate): (usize, f64),
) -> Training<'a> {
    let phase = PhaseSettings {
        epochs,
        patience: 9,
        batch: case.batch,
        learning_rate,
        clip_norm: 1.0,
        ..Pretrain::default().settings
    };
    Training {
        model,
        phase: model.phases()[case.phase],
        sequences,
        settings: TrainSettings {
            phase,
            metric: Metric::Recall(20),
            k: vec![5],
            warm_items: case.warm_items(),
            log_test_loss: true,
            // The last of 120 users is alone in its block, so most processes have no query there.
            rank_options: RankOptions { batch: 17, remove_seen: false, history: None },
            seed: 1,
            save_every: Duration::ZERO,
        },
        state_path: folder.join("state.safetensors"),
        log_path: folder.join("metrics.jsonl"),
        identity,
        inputs: BTreeMap::new(),
    }
}

/// Trains a phase with `size` processes, resuming from the state in the folder if there is one.
fn train(case: GroupCase, size: usize, folder: &Path, epochs: usize, learning_rate: f64) -> Ended {
    let inputs = inputs();
    let work = |group: Option<&ProcessGroup>| -> Result<Vec<u32>> {
        let identity = StageSettings::of(serde_json::json!({"data": "x"}));
        let model = case.build(&inputs, group);
        let (sequences, epochs) = (&inputs.sequences, (epochs, learning_rate));
        let training = training(case, model.as_ref(), sequences, &identity, folder, epochs);
        training.run(|_| (), |_| ()).map_err(|error| Error::Msg(error.to_string()))?;
        let values = model.parameters().values()?;
        Ok(values.iter().flat_map(|(_, values, _)| values.iter().map(|v| v.to_bits())).collect())
    };
    let bits = if size == 1 { work(None).unwrap() } else { first(run_threads(size, |group| work(Some(&group)))) };
    let text = files::read_to_string(&folder.join("metrics.jsonl")).unwrap();
    let line = |line: &str| EpochLine { seconds: (0.0, 0.0), ..serde_json::from_str(line).unwrap() };
    (bits, text.lines().map(line).collect())
}

/// There are 900 samples: batches of 64 leave a last one of 4, which three processes divide unevenly.
#[test]
fn the_same_number_of_processes_gives_the_same_bytes_and_resumes_from_the_state_of_any_number() {
    for case in
        [GroupCase { batch: 64, ..CASES[0] }, GroupCase { batch: 64, ..CASES[1] }, GroupCase { batch: 64, ..CASES[2] }]
    {
        let folders: Vec<_> = (0..4).map(|_| tempfile::tempdir().unwrap()).collect();
        let train = |size, at: usize, epochs| train(case, size, folders[at].path(), epochs, 1e-3);
        let unbroken = train(3, 0, 3);
        assert!(train(3, 1, 3) == unbroken, "{}: the same number of processes", case.name());
        let broken = train(3, 2, 1);
        for size in [1, 2, 4] {
            assert!(train(size, 2, 1) == broken, "{}: the state of 3 processes read by {size}", case.name());
        }
        assert!(train(3, 2, 3) == unbroken, "{}: gone on from the state of a part", case.name());
        // Several processes read the state of one process.
        let alone = train(1, 3, 1);
        assert!(train(4, 3, 1) == alone, "{}: the state of one process read by 4", case.name());
    }
}

/// Files that processes write from their shares of divided tables have the same bytes as those that one process writes, and any number of
/// processes can read its rows from them.
#[test]
fn states_and_checkpoints_are_written_from_shares_to_the_same_bytes() {
    let inputs = inputs();
    for case in [CASES[1], CASES[2]] {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        train(GroupCase { batch: 64, ..case }, 3, folder.path(), 1, 1e-3);
        let copy = |group: Option<&ProcessGroup>, state: &str, checkpoint: &str| -> Result<()> {
            let model = case.build(&inputs, group);
            let phase = model.phases()[case.phase];
            let names: Vec<String> =
                model.parameters().names().filter(|n| model.uses(&phase, n)).map(Into::into).collect();
            let parameters = PhaseParameters { all: model.parameters(), group, used: &names, trained: &names };
            let settings = StageSettings::of(serde_json::json!({"data": "x"}));
            let limits = PhaseLimits { phase: phase.name, epochs: 9, patience: 9, stops: true };
            let identity = StateIdentity { settings: &settings, inputs: &BTreeMap::new(), limits };
            let items = &inputs.sequences.item_hash;
            let failed = |error: mp4sr_artifact::Error| Error::Msg(error.to_string());
            let read = PhaseState::read(&path("state.safetensors"), items, &identity, parameters).map_err(failed)?;
            read.write(&path(state), items, parameters, None).map_err(failed)?;
            for (name, values, shape) in &read.best.parameters {
                model.parameters().set(name, values, shape)?;
            }
            let weights = TrainedPhase { model: model.as_ref(), phase: &phase };
            let info = CheckpointInfo::default();
            Checkpoint::write(&path(checkpoint), &info, weights, items, BTreeMap::new()).map_err(failed)
        };
        copy(None, "state.1", "checkpoint.1").unwrap();
        first(run_threads(4, |group| copy(Some(&group), "state.4", "checkpoint.4")));
        let bytes = |name: &str| files::read(&path(name)).unwrap();
        assert!(bytes("state.1") == bytes("state.safetensors"), "{}", case.name());
        assert!(bytes("state.4") == bytes("state.safetensors"), "{}", case.name());
        assert!(bytes("checkpoint.4") == bytes("checkpoint.1"), "{}", case.name());
    }
}

/// If the first process fails to write a file, the others do not wait for it.
#[test]
fn other_processes_continue_if_the_first_fails_to_write() {
    let inputs = inputs();
    let folder = tempfile::tempdir().unwrap();
    files::write_bytes(&folder.path().join("file"), b"in the way").unwrap();
    let path = folder.path().join("file").join("checkpoint");
    let written = run_threads(3, |group| {
        let model = CASES[2].build(&inputs, Some(&group));
        let weights = TrainedPhase { model: model.as_ref(), phase: &model.phases()[0] };
        let items = &inputs.sequences.item_hash;
        let written = Checkpoint::write(&path, &CheckpointInfo::default(), weights, items, BTreeMap::new());
        Ok((written.is_err(), group.scalars(&[1.0])?.len()))
    });
    let written: Vec<_> = written.into_iter().map(std::result::Result::unwrap).collect();
    assert_eq!(written, [(true, 3), (false, 3), (false, 3)]);
}

/// With a learning rate of zero the weights do not change, so ranks and losses must not depend on the number of processes.
#[test]
fn validation_by_several_processes_is_that_of_one() {
    for case in CASES {
        let case = GroupCase { batch: 64, ..case };
        let validated = |size| {
            let folder = tempfile::tempdir().unwrap();
            train(case, size, folder.path(), 1, 0.0)
        };
        let one = validated(1);
        assert!(one.1[0].validation["R@20"] > 0.0);
        for size in [2, 4] {
            let many = validated(size);
            assert!(many.0 == one.0, "{}", case.name());
            let (a, b) = (&one.1[0], &many.1[0]);
            assert_eq!(a.validation, b.validation, "{} by {size}", case.name());
            // Sums of exponentials over shares of the items are rounded differently.
            let losses = (a.test_loss.unwrap(), b.test_loss.unwrap());
            assert!((losses.0 - losses.1).abs() < 1e-6 * losses.0, "{} by {size}: {losses:?}", case.name());
            assert!((a.loss - b.loss).abs() < 1e-6 * a.loss, "{} by {size}: {} {}", case.name(), a.loss, b.loss);
        }
    }
}

/// All processes find the same score that is not finite. The first one reports it, and none waits for another.
#[test]
fn a_bad_score_in_validation_is_reported_by_the_first_process_alone() {
    // The last item has no events, so pre-training does not read its features, but validation ranks it.
    let mut inputs = inputs_of(|mut values| {
        *values.last_mut().unwrap() = f32::NAN;
        values
    });
    inputs.sequences.items.iter_mut().filter(|item| **item == ITEMS as u32).for_each(|item| *item = 1);
    let case = GroupCase { batch: 64, ..CASES[0] };
    let folder = tempfile::tempdir().unwrap();
    let ended = run_threads(3, |group| {
        let identity = StageSettings::of(serde_json::json!({"data": "x"}));
        let model = case.build(&inputs, Some(&group));
        let training = training(case, model.as_ref(), &inputs.sequences, &identity, folder.path(), (1, 1e-3));
        let error = training.run(|_| (), |_| ()).unwrap_err();
        // As in the program, the processes then agree about what has failed.
        group.first_failure(true)?;
        Ok(match error {
            TrainError::Rank(RankError::Score { source, .. }) => format!("item {}", source.item),
            TrainError::Elsewhere => "elsewhere".to_owned(),
            other => other.to_string(),
        })
    });
    let ended: Vec<String> = ended.into_iter().map(std::result::Result::unwrap).collect();
    assert_eq!(ended, [format!("item {ITEMS}"), "elsewhere".to_owned(), "elsewhere".to_owned()]);
}

/// Every process holds only its share of the table of ids, of the table's moments, and of the items that validation ranks.
#[test]
fn tables_and_their_moments_are_divided() {
    let inputs = inputs();
    for (case, rows) in [(CASES[1], ITEMS + 1), (CASES[2], ITEMS)] {
        let own = run_threads(4, |group| {
            let model = case.build(&inputs, Some(&group));
            let vars = model.parameters().variables(|_| true)?;
            let moments = Adam::new(&vars, 1e-3, 0.0, 1.0)?.state()?.first;
            let scorer = model.scorer(&model.phases()[case.phase])?;
            assert_eq!(scorer.first_item()..scorer.first_item() + scorer.items().dim(0)?, group.share(ITEMS));
            let tables = vars.iter().zip(moments).filter(|(var, _)| model.parameters().is_shard(var));
            tables.map(|(var, moments)| Ok((var.dim(0)?, moments.len()))).collect::<Result<Vec<_>>>()
        });
        let own: Vec<(usize, usize)> = own.into_iter().flat_map(|own| own.unwrap()).collect();
        assert_eq!(own.iter().map(|(rows, _)| rows).sum::<usize>(), rows);
        assert!(own.iter().all(|&(own, moments)| own <= rows / 4 + 2 && moments == 16 * own), "{own:?}");
    }
}

#[test]
fn a_model_that_one_process_trains_and_too_few_items_are_refused_with_a_message() {
    let inputs = Inputs { modalities: Vec::new(), ..inputs() };
    let refused = |model: &str, inputs: &Inputs| {
        let text = format!("dataset.name = \"x\"\nmodel.name = {model:?}");
        let (config, _) = Config::parse(&text, model, &[], model_catalog()).unwrap();
        let refuse =
            |group: ProcessGroup| Ok(build_model_in_group(&config, inputs, Some(&group)).err().unwrap().to_string());
        first(run_threads(2, refuse))
    };
    let message = refused("sine", &inputs);
    assert!(
        message.starts_with("`sine` can be trained by only one process, found 2; start `mp4sr train` without mpirun"),
        "{message}"
    );
    let few = Inputs { sequences: Sequences { item_count: 1, ..sequences() }, ..inputs };
    assert_eq!(refused("sasrec", &few), "1 items cannot be divided among 2 processes; start at most 1");
}
