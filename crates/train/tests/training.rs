//! Compares training with cases worked by hand: what it reads of a dataset, when it stops, which weights it keeps, how it resumes.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use candle_core::{Device, Tensor};
use mp4sr_artifact::{EpochLine, SequenceParts, Sequences, StageSettings, files, hash_ids};
use mp4sr_evaluate::RankOptions;
use mp4sr_models::mp4sr::Config;
use mp4sr_models::{
    Batch, BatchUnit, Buffer, BufferValues, Buffers, Error, FINETUNE, Initial, Modality, Model, Mp4sr, Parameters,
    Phase, Query, Ragged, Result, RngKey, Samples, Scorer, Step, Stop, TransformerConfig,
};
use mp4sr_pipeline::config::{PhaseSettings, Pretrain};
use mp4sr_protocol::Metric;
use mp4sr_run::{Inputs, model_catalog};
use mp4sr_train::{PhaseOutcome, TrainError, TrainSettings, Training};

const PHASE: Phase = Phase::of_prefixes(FINETUNE);

/// Sequences over the items `1..=items`.
fn sequences(of_users: &[&[u32]], items: usize) -> Sequences {
    let mut offsets = vec![0];
    offsets.extend(of_users.iter().scan(0, |end, events| {
        *end += events.len() as i64;
        Some(*end)
    }));
    let events = of_users.concat();
    let ids: Vec<String> = (1..=items).map(|item| item.to_string()).collect();
    Sequences {
        offsets,
        times: (0..events.len() as i64).collect(),
        items: events,
        item_hash: hash_ids(ids.iter().map(String::as_str)),
        item_count: items,
        user_hash: None,
        time_kind: mp4sr_artifact::TimeKind::Unstated,
        parts: None,
    }
}

fn settings(epochs: usize, patience: usize, batch: usize) -> TrainSettings {
    TrainSettings {
        phase: PhaseSettings {
            epochs,
            patience,
            batch,
            learning_rate: 0.1,
            clip_norm: 1.0,
            ..Pretrain::default().settings
        },
        metric: Metric::Recall(20),
        k: vec![20],
        warm_items: false,
        log_test_loss: false,
        rank_options: RankOptions { batch: 64, remove_seen: false, history: None },
        seed: 1,
        save_every: Duration::ZERO,
    }
}

fn train(
    model: &dyn Model,
    sequences: &Sequences,
    settings: TrainSettings,
    folder: &Path,
) -> std::result::Result<PhaseOutcome, TrainError> {
    train_with_log(model, sequences, settings, folder, |_| ())
}

fn train_with_log(
    model: &dyn Model,
    sequences: &Sequences,
    settings: TrainSettings,
    folder: &Path,
    log: impl FnMut(&str),
) -> std::result::Result<PhaseOutcome, TrainError> {
    let training = Training {
        model,
        phase: model.phases()[0],
        sequences,
        settings,
        state_path: folder.join("state.safetensors"),
        log_path: folder.join("metrics.jsonl"),
        identity: &StageSettings::of(serde_json::json!({"own": {"data": "x"}})),
        inputs: BTreeMap::new(),
    };
    training.run(log, |_| ())
}

fn lines(folder: &Path) -> Vec<EpochLine> {
    let text = files::read_to_string(&folder.join("metrics.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A model with one weight x and the loss 3 x, which records the samples that it is given and whose hits in validation follow a script. The
/// target of a history must be the item with the next number.
struct Recorder {
    parameters: Parameters,
    items: Tensor,
    seen: RefCell<Vec<(Vec<u32>, u32)>>,
    scored: RefCell<Vec<Vec<u32>>>,
    /// The number of users hit in validation, by epoch.
    hits: Vec<usize>,
    validations: Cell<usize>,
    /// The number of samples after which `loss` fails, as if the process were killed.
    fails_at: Cell<Option<usize>>,
}

impl Recorder {
    fn new(items: usize, hits: &[usize]) -> Self {
        let mut parameters = Parameters::default();
        parameters.add("x", &[1], Initial::Ones, RngKey::new(0)).unwrap();
        Self {
            parameters,
            items: Tensor::eye(items, candle_core::DType::F32, &Device::Cpu).unwrap(),
            seen: RefCell::default(),
            scored: RefCell::default(),
            hits: hits.to_vec(),
            validations: Cell::new(0),
            fails_at: Cell::new(None),
        }
    }

    fn x(&self) -> f32 {
        self.parameters.get("x").unwrap().to_vec1::<f32>().unwrap()[0]
    }
}

impl Model for Recorder {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn phases(&self) -> &[Phase] {
        &[PHASE]
    }

    fn loss(&self, _: &Phase, batch: &Batch, _: &Step) -> Result<Tensor> {
        if self.fails_at.get() == Some(self.seen.borrow().len()) {
            return Err(Error::Msg("killed".to_owned()));
        }
        for j in 0..batch.count() {
            self.seen.borrow_mut().push((batch.items[batch.offsets.range(j)].to_vec(), batch.targets[j]));
        }
        (self.parameters.get("x").unwrap() * 3.0)?.sum_all()
    }

    fn scorer(&self, _: &Phase) -> Result<Box<dyn Scorer + '_>> {
        self.validations.set(self.validations.get() + 1);
        Ok(Box::new(Script(self, self.hits[self.validations.get() - 1])))
    }
}

struct Script<'a>(&'a Recorder, usize);

impl Scorer for Script<'_> {
    fn items(&self) -> &Tensor {
        &self.0.items
    }

    fn queries(&self, queries: &[Query<'_>]) -> Result<Tensor> {
        let items = self.0.items.dim(0)?;
        let mut scores = vec![0.5f32; queries.len() * items];
        for (j, query) in queries.iter().enumerate() {
            self.0.scored.borrow_mut().push(query.history.to_vec());
            scores[j * items + *query.history.last().unwrap() as usize] = if j < self.1 { 1.0 } else { 0.0 };
        }
        Tensor::from_vec(scores, (queries.len(), items), &Device::Cpu)
    }
}

/// Ten users, each with four events whose items have consecutive numbers.
fn rising() -> Sequences {
    let users: Vec<Vec<u32>> = (0..10).map(|u| (2 * u + 1..2 * u + 5).collect()).collect();
    sequences(&users.iter().map(Vec::as_slice).collect::<Vec<_>>(), 40)
}

#[test]
fn training_stops_after_patience_epochs_without_a_better_recall_and_keeps_the_best() {
    // Epoch 3 is as good as epoch 2 and therefore not better, and training stops three epochs after epoch 2. The learning rate is 0.1 and
    // all gradients are equal, so Adam moves x by 0.1 per step, and there is one step per epoch.
    let folder = tempfile::tempdir().unwrap();
    let model = Recorder::new(40, &[2, 5, 5, 4, 3, 9, 9]);
    let outcome = train(&model, &rising(), settings(300, 3, 1024), folder.path()).unwrap();
    // Nine of the targets are among the twenty items that occur once in training, and the tenth never occurs.
    let popularity = Some(0.9);
    assert_eq!(
        outcome,
        PhaseOutcome { best_epoch: 2, epochs: 5, best_value: 0.5, recall_20: 0.5, is_indifferent: false, popularity }
    );
    assert!((model.x() - 0.8).abs() < 1e-6, "{}", model.x());
    let recalls: Vec<(usize, f64, bool)> =
        lines(folder.path()).iter().map(|line| (line.epoch, line.validation["R@20"], line.best)).collect();
    assert_eq!(recalls, [(1, 0.2, true), (2, 0.5, true), (3, 0.5, false), (4, 0.4, false), (5, 0.3, false)]);
    // The mean loss of epoch 2 is 3 x before its one step, at x = 0.9; the norm of the gradient is 3 before clipping.
    let second = &lines(folder.path())[1];
    assert!((second.loss - 2.7).abs() < 1e-6 && (second.gradient_norm - 3.0).abs() < 1e-6, "{second:?}");
}

#[test]
fn training_stops_at_the_last_epoch() {
    let folder = tempfile::tempdir().unwrap();
    let model = Recorder::new(40, &[1, 2, 3]);
    let outcome = train(&model, &rising(), settings(3, 1, 4), folder.path()).unwrap();
    assert_eq!((outcome.best_epoch, outcome.epochs, outcome.best_value), (3, 3, 0.3));
    // Ten samples in batches of four are three steps per epoch.
    assert!((model.x() - (1.0 - 0.9)).abs() < 1e-5, "{}", model.x());
}

/// The settings with a warm-up of two epochs, after which the learning rate is halved every epoch.
fn scheduled(epochs: usize, patience: usize, batch: usize) -> TrainSettings {
    let mut settings = settings(epochs, patience, batch);
    settings.phase.learning_rate_warm_up = 2;
    settings.phase.learning_rate_decay = 0.5;
    settings
}

#[test]
fn the_learning_rate_follows_its_schedule_step_by_step() {
    let folder = tempfile::tempdir().unwrap();
    let model = Recorder::new(40, &[1, 2, 3, 4]);
    train(&model, &rising(), scheduled(4, 4, 4), folder.path()).unwrap();
    // Three steps per epoch, each of which moves x by the learning rate: 0.1 (1 + 2 + 3) / 6, 0.1 (4 + 5 + 6) / 6, 0.3 and 0.15.
    assert!((model.x() - (1.0 - 0.1 - 0.25 - 0.3 - 0.15)).abs() < 1e-5, "{}", model.x());
}

#[test]
fn a_run_that_stopped_at_any_step_resumes_with_its_patience_moments_and_sums() {
    let hits = [2, 5, 5, 4, 3, 9];
    let whole = Recorder::new(40, &hits);
    let whole_folder = tempfile::tempdir().unwrap();
    let expected = train(&whole, &rising(), scheduled(300, 3, 4), whole_folder.path()).unwrap();
    let without_time = |folder: &Path| {
        lines(folder).into_iter().map(|line| EpochLine { seconds: (0.0, 0.0), ..line }).collect::<Vec<_>>()
    };
    // Each run fails before one of the steps of epochs 2 and 4, and is resumed with a fresh model.
    for sample in [10, 14, 18, 30, 34, 38] {
        let folder = tempfile::tempdir().unwrap();
        let killed = Recorder::new(40, &hits);
        killed.fails_at.set(Some(sample));
        assert!(train(&killed, &rising(), scheduled(300, 3, 4), folder.path()).is_err());
        let resumed = Recorder::new(40, &hits);
        resumed.validations.set(killed.validations.get());
        let outcome = train(&resumed, &rising(), scheduled(300, 3, 4), folder.path()).unwrap();
        assert_eq!((outcome, resumed.x().to_bits()), (expected.clone(), whole.x().to_bits()), "sample {sample}");
        let all = [killed.seen.into_inner(), resumed.seen.into_inner()].concat();
        assert_eq!(all, *whole.seen.borrow(), "every sample once, in the same order");
        assert_eq!(without_time(folder.path()), without_time(whole_folder.path()));
    }
}

/// The events of a user are numbered by time, so that an event out of place shows as a number out of place.
#[test]
fn training_reads_prefixes_of_the_training_events_and_validation_reads_what_precedes_its_target() {
    let folder = tempfile::tempdir().unwrap();
    let model = Recorder::new(40, &[1, 1]);
    let data = sequences(&[&[1, 2, 3, 4, 5, 6], &[11, 12, 13, 14], &[21, 22, 23], &[31, 32]], 40);
    train(&model, &data, settings(2, 10, 2), folder.path()).unwrap();
    let mut seen = model.seen.into_inner();
    seen.sort();
    let once = [(vec![1], 2), (vec![1, 2], 3), (vec![1, 2, 3], 4), (vec![11], 12)];
    let twice: Vec<_> = once.iter().flat_map(|sample| [sample.clone(), sample.clone()]).collect();
    assert_eq!(seen, twice, "two epochs");
    // The users with two and three events have no sample to train on, and the one with two has no validation target either.
    let validated = [vec![1, 2, 3, 4], vec![11, 12], vec![21]];
    assert_eq!(model.scored.into_inner(), [validated.clone(), validated].concat());
}

fn m2se(items: usize) -> Mp4sr {
    let features = |name: &str, seed| {
        let stream = RngKey::new(seed);
        let values = (0..6 * items as u64).map(|i| stream.normal(i) as f32).collect();
        let features = Ragged::new(values, 6, &(0..=items).collect::<Vec<_>>()).unwrap();
        Modality { name: name.to_owned(), features }
    };
    let config = Config { attention: 4, experts: 2, end_to_end: true, ..Config::default() };
    let transformer =
        TransformerConfig { width: 8, layers: 1, heads: 2, feed_forward: 8, ..TransformerConfig::default() };
    Mp4sr::new(config, transformer, vec![features("text", 1), features("image", 2)], &Device::Cpu, RngKey::new(3))
        .unwrap()
}

/// Random sequences whose last and second last events come from `last(user)` and `second_last(user)`.
fn random(last: impl Fn(usize) -> u32, second_last: impl Fn(usize) -> u32) -> Sequences {
    let key = RngKey::new(4);
    let users: Vec<Vec<u32>> = (0..30usize)
        .map(|u| {
            let training = (0..3 + u % 5).map(|t| 1 + (key.uniform((100 * u + t) as u64) * 30.0) as u32);
            training.chain([second_last(u), last(u)]).collect()
        })
        .collect();
    sequences(&users.iter().map(Vec::as_slice).collect::<Vec<_>>(), 50)
}

/// The bits of all weights after training, the log without its times, and the outcome.
fn trained(data: &Sequences) -> (Vec<u32>, Vec<EpochLine>, PhaseOutcome) {
    let folder = tempfile::tempdir().unwrap();
    let model = m2se(50);
    let outcome = train(&model, data, settings(4, 2, 16), folder.path()).unwrap();
    let values = model.parameters().values().unwrap();
    let bits = values.iter().flat_map(|(_, values, _)| values.iter().map(|v| v.to_bits())).collect();
    let lines = lines(folder.path()).into_iter().map(|line| EpochLine { seconds: (0.0, 0.0), ..line }).collect();
    (bits, lines, outcome)
}

#[test]
fn the_test_set_is_not_read_by_training() {
    let one = trained(&random(|u| 31 + u as u32 % 20, |u| 1 + u as u32));
    let other = trained(&random(|u| 50 - u as u32 % 20, |u| 1 + u as u32));
    assert_eq!(one, other);
}

#[test]
fn validation_events_choose_the_epoch_and_change_nothing_else() {
    let one = trained(&random(|_| 1, |u| 1 + u as u32 % 20));
    let other = trained(&random(|_| 1, |u| 40 - u as u32 % 20));
    let losses = |lines: &[EpochLine]| lines.iter().map(|l| l.loss.to_bits()).collect::<Vec<_>>();
    let common = one.1.len().min(other.1.len());
    assert!(common >= 2);
    assert_eq!(losses(&one.1[..common]), losses(&other.1[..common]));
    assert_ne!(one.1[0].validation, other.1[0].validation, "the validation events are read where they should be");
    // A changed training event does change the losses, so the comparison above can fail.
    let mut changed = random(|_| 1, |u| 1 + u as u32 % 20);
    changed.items[0] = 30 - changed.items[0].min(29);
    assert_ne!(losses(&trained(&changed).1[..1]), losses(&one.1[..1]));
}

/// Items 31 to 50 occur only as the last and the second last event of users, so popularity must not count them.
#[test]
fn popularity_counts_the_training_set_alone() {
    let data = random(|u| 31 + u as u32 % 20, |u| 31 + (u as u32 + 7) % 20);
    let text = "dataset.name = \"x\"\nmodel.name = \"popularity\"";
    let (config, _) = mp4sr_pipeline::Config::parse(text, "x", &[], model_catalog()).unwrap();
    let inputs =
        Inputs { sequences: data.clone(), modalities: Vec::new(), encoders: BTreeMap::default(), categories: None };
    let model = mp4sr_run::build_model(&config, &inputs).unwrap();
    let counts = model.scorer(&model.phases()[0]).unwrap().items().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert!(counts[30..].iter().all(|&count| count == 0.0), "{counts:?}");
    let training: usize = (0..30).map(|u| 3 + u % 5).sum();
    assert_eq!(counts.iter().sum::<f32>() as usize, training);
}

/// Models build their graphs and counts from the same training sequences.
#[test]
fn popularity_of_a_dataset_split_by_time_knows_nothing_after_the_cut_off() {
    let mut data = random(|u| 1 + u as u32 % 20, |u| 1 + (u as u32 + 7) % 20);
    let starts: Vec<u32> = (0..data.user_count()).map(|user| user as u32 % 4).collect();
    for (ends, &start) in data.offsets.windows(2).zip(&starts) {
        let (start, end) = (ends[0] as usize + start as usize, ends[1] as usize);
        data.items[start..end].fill(50);
    }
    let test = (0..data.user_count()).map(|user| data.of(user).len() as u32).collect();
    data.parts = Some(SequenceParts { validation: starts.clone(), test });
    let text = "dataset.name = \"x\"\nmodel.name = \"popularity\"";
    let (config, _) = mp4sr_pipeline::Config::parse(text, "x", &[], model_catalog()).unwrap();
    let inputs = Inputs { sequences: data, modalities: Vec::new(), encoders: BTreeMap::default(), categories: None };
    let model = mp4sr_run::build_model(&config, &inputs).unwrap();
    let counts = model.scorer(&model.phases()[0]).unwrap().items().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert!(counts[49].abs() < f32::EPSILON, "{counts:?}");
    assert_eq!(counts.iter().sum::<f32>() as u32, starts.iter().sum::<u32>());
}

#[test]
fn a_state_of_other_settings_or_data_or_a_damaged_one_is_refused_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.safetensors");
    let model = Recorder::new(40, &[1, 2, 3, 4]);
    train(&model, &rising(), settings(2, 10, 4), folder.path()).unwrap();
    let whole = files::read(&path).unwrap();
    let refusal = |identity: serde_json::Value, data: &Sequences| {
        let model = Recorder::new(40, &[1, 2, 3, 4]);
        let training = Training {
            model: &model,
            phase: PHASE,
            sequences: data,
            settings: settings(4, 10, 4),
            state_path: path.clone(),
            log_path: folder.path().join("metrics.jsonl"),
            identity: &StageSettings::of(identity),
            inputs: BTreeMap::new(),
        };
        let message = training.run(|_| (), |_| ()).err().map(|e| e.to_string());
        assert!(message.is_none() || model.x().to_bits() == 1.0f32.to_bits(), "a refused state changed the model");
        message
    };
    let same = || serde_json::json!({"own": {"data": "x"}});
    let message = refusal(serde_json::json!({"own": {"data": "y"}}), &rising()).unwrap();
    assert!(message.contains("another `own.data`") && message.contains("state.safetensors"), "{message}");
    let message = refusal(same(), &sequences(&[&[1, 2, 3, 4]], 41)).unwrap();
    assert!(message.contains("different item list"), "{message}");

    // Any damage is detected: a flipped bit anywhere, a truncated file, an empty file.
    for at in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 1 << (at % 8);
        files::write_bytes(&path, &damaged).unwrap();
        let message = refusal(same(), &rising()).unwrap_or_else(|| panic!("a flipped bit in byte {at} was accepted"));
        assert!(message.contains("state.safetensors"), "byte {at}: {message}");
    }
    for length in [0, 1, 8, whole.len() / 2, whole.len() - 1] {
        files::write_bytes(&path, &whole[..length]).unwrap();
        let message = refusal(same(), &rising()).unwrap();
        assert!(message.contains("state.safetensors"), "{length}: {message}");
    }
    files::write_bytes(&path, &whole).unwrap();
    assert_eq!(refusal(same(), &rising()), None);
}

/// A non-finite loss or gradient stops training at that step, and the file that is kept of the step reproduces it.
#[test]
fn a_non_finite_step_is_kept_and_can_be_reproduced() {
    struct Breaking(Recorder, f32);
    impl Model for Breaking {
        fn parameters(&self) -> &Parameters {
            self.0.parameters()
        }
        fn phases(&self) -> &[Phase] {
            self.0.phases()
        }
        // Below the bound the square root has no real value.
        fn loss(&self, phase: &Phase, batch: &Batch, step: &Step) -> Result<Tensor> {
            let _ = self.0.loss(phase, batch, step)?;
            (self.0.parameters.get("x").unwrap() - f64::from(self.1))?.sqrt()?.sum_all()
        }
        fn scorer(&self, phase: &Phase) -> Result<Box<dyn Scorer + '_>> {
            self.0.scorer(phase)
        }
    }
    let data = sequences(&[&[1, 2, 3, 4, 5, 6], &[2, 3, 4, 5, 6, 7]], 8);
    let folder = tempfile::tempdir().unwrap();
    let run = |model: &Breaking| match train(model, &data, settings(50, 50, 2), folder.path()) {
        Err(TrainError::Diverged { epoch, step, inputs, .. }) => (epoch, step, inputs),
        other => panic!("{other:?}"),
    };
    // x falls by about 0.1 per step, and there are three steps per epoch, so x passes the bound in epoch 2.
    let first = run(&Breaking(Recorder::new(8, &[2; 50]), 0.55));
    assert_eq!((first.0, first.1), (2, 3));
    let kept = files::read(&first.2).unwrap();
    let file = safetensors::SafeTensors::deserialize(&kept).unwrap();
    assert_eq!(file.tensor("batch.offsets").unwrap().shape(), [3], "the samples of the step");
    assert!(folder.path().join("state.safetensors").exists(), "what was saved before stays");

    std::fs::rename(&first.2, folder.path().join("state.safetensors")).unwrap();
    let again = Breaking(Recorder::new(8, &[2; 50]), 0.55);
    assert_eq!(run(&again), first);
    assert_eq!(again.0.seen.borrow().len(), 2, "nothing but that step");
    assert_eq!(files::read(&first.2).unwrap(), kept);
}

/// If a run is killed after the last state and before the last line of the log was written, the next start, which has nothing left to
/// train, completes the log.
#[test]
fn a_log_truncated_by_a_kill_is_repaired_at_the_next_start() {
    let data = sequences(&[&[1, 2, 3, 4, 5, 6], &[2, 3, 4, 5, 6, 7]], 8);
    let folder = tempfile::tempdir().unwrap();
    let run = || train(&Recorder::new(8, &[2; 50]), &data, settings(3, 50, 2), folder.path()).unwrap();
    run();
    let log = folder.path().join("metrics.jsonl");
    let whole = files::read_to_string(&log).unwrap();
    let cut: String = whole.split_inclusive('\n').take(2).collect();
    files::write_bytes(&log, cut.as_bytes()).unwrap();
    run();
    assert_eq!(files::read_to_string(&log).unwrap(), whole);
}

/// The users and the number of tokens of a batch, the epoch of the step, and the number of the step in the phase.
type SeenStep = (Vec<u32>, usize, usize, u64);

/// A model whose loss pulls a weight towards a buffer, which every step moves; the second weight is used but never trained.
struct Remembering {
    parameters: Parameters,
    buffers: Buffers,
    phase: Phase,
    seen: RefCell<Vec<SeenStep>>,
    fails_at: Option<u64>,
}

impl Remembering {
    fn new(phase: Phase, fails_at: Option<u64>) -> Self {
        let mut parameters = Parameters::default();
        for name in ["x", "fixed"] {
            parameters.add(name, &[1], Initial::Ones, RngKey::new(0)).unwrap();
        }
        let buffers = Buffers::new([
            ("memory".to_owned(), Buffer::f32(vec![0.5, 0.0], &[2])),
            ("count".to_owned(), Buffer::i64(vec![0], &[1])),
        ]);
        Self { parameters, buffers, phase, seen: RefCell::default(), fails_at }
    }

    fn memory(&self) -> Vec<f32> {
        let values = |buffer: &Buffer| match &buffer.values {
            BufferValues::F32(values) => values.clone(),
            BufferValues::I64(_) => panic!("a memory of numbers"),
        };
        self.buffers.read("memory", values).unwrap()
    }
}

impl Model for Remembering {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }
    fn buffers(&self) -> Option<&Buffers> {
        Some(&self.buffers)
    }
    fn phases(&self) -> &[Phase] {
        std::slice::from_ref(&self.phase)
    }
    fn trains(&self, _: &Phase, name: &str) -> bool {
        name == "x"
    }
    fn loss(&self, _: &Phase, batch: &Batch, step: &Step) -> Result<Tensor> {
        if self.fails_at == Some(step.global) {
            return Err(Error::Msg("killed".to_owned()));
        }
        self.seen.borrow_mut().push((batch.users.clone(), batch.items.len(), step.epoch, step.global));
        let distance = (self.parameters.get("x").unwrap() - f64::from(self.memory()[0]))?;
        (distance.sqr()? + self.parameters.get("fixed").unwrap())?.sum_all()
    }
    fn after_step(&self, _: &Phase, batch: &Batch, _: &Step) -> Result<()> {
        self.buffers.update("memory", |values| match values {
            BufferValues::F32(values) => values[0] = 0.9 * values[0] - 0.1 * batch.count() as f32,
            BufferValues::I64(_) => panic!("a memory of numbers"),
        })?;
        self.buffers.update("count", |values| match values {
            BufferValues::I64(values) => values[0] += 1,
            BufferValues::F32(_) => panic!("a count"),
        })
    }
    fn scorer(&self, _: &Phase) -> Result<Box<dyn Scorer + '_>> {
        assert!(matches!(self.phase.stop, Stop::Validation { .. }), "a phase without validation ranks nothing");
        Ok(Box::new(Flat(Tensor::ones((40, 1), candle_core::DType::F32, &Device::Cpu)?)))
    }
}

/// The messages of training a model for one epoch.
fn messages_of_one_epoch(model: &dyn Model) -> String {
    let folder = tempfile::tempdir().unwrap();
    let mut messages = String::new();
    train_with_log(model, &rising(), settings(1, 1, 1024), folder.path(), |line| messages += line).unwrap();
    messages
}

#[test]
fn a_loss_that_no_trained_parameter_changes_is_reported() {
    struct Idle(Remembering);
    impl Model for Idle {
        fn parameters(&self) -> &Parameters {
            self.0.parameters()
        }
        fn phases(&self) -> &[Phase] {
            self.0.phases()
        }
        fn trains(&self, phase: &Phase, name: &str) -> bool {
            self.0.trains(phase, name)
        }
        fn loss(&self, _: &Phase, _: &Batch, _: &Step) -> Result<Tensor> {
            self.0.parameters.get("fixed").unwrap().sum_all()
        }
        fn scorer(&self, phase: &Phase) -> Result<Box<dyn Scorer + '_>> {
            self.0.scorer(phase)
        }
    }
    let model = || Remembering::new(PHASE, None);
    let (idle, other) = (messages_of_one_epoch(&Idle(model())), messages_of_one_epoch(&model()));
    assert!(idle.contains("the gradient was 0 in every step of epoch 1"), "{idle}");
    assert!(!other.contains("warning"), "{other}");
}

/// A scorer for which all items are equal, so no epoch is better than the first.
struct Flat(Tensor);

impl Scorer for Flat {
    fn items(&self) -> &Tensor {
        &self.0
    }
    fn queries(&self, queries: &[Query<'_>]) -> Result<Tensor> {
        Tensor::ones((queries.len(), 1), candle_core::DType::F32, &Device::Cpu)
    }
}

#[test]
fn a_scorer_with_another_number_of_rows_than_items_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let data = sequences(&[&[1, 2, 3, 4, 5, 6], &[2, 3, 4, 5, 6, 7]], 41);
    let error = train(&Remembering::new(PHASE, None), &data, settings(1, 1, 8), folder.path()).unwrap_err();
    assert!(error.to_string().contains("item matrix of [40, 1], expected a row for each of 41 items"), "{error}");
}

#[test]
fn buffers_and_the_number_of_steps_survive_a_kill_to_the_bit() {
    for samples in [Samples::Events, Samples::Sequences { at_least: 1, batch: BatchUnit::Sequences }] {
        let phase = Phase { name: FINETUNE, samples, stop: Stop::Epochs };
        let folder = tempfile::tempdir().unwrap();
        let whole = Remembering::new(phase, None);
        train(&whole, &rising(), settings(3, 1, 4), folder.path()).unwrap();
        for step in 1..whole.seen.borrow().len() as u64 {
            let folder = tempfile::tempdir().unwrap();
            let killed = Remembering::new(phase, Some(step));
            let error = train(&killed, &rising(), settings(3, 1, 4), folder.path()).unwrap_err();
            // Twenty samples, or ten users, make five steps per epoch of four samples each, or three.
            let per_epoch = whole.seen.borrow().len() as u64 / 3;
            let place = format!("finetune epoch {}, step {}", step / per_epoch + 1, step % per_epoch + 1);
            assert!(error.to_string().contains(&place), "{error}, not {place}");
            let resumed = Remembering::new(phase, None);
            train(&resumed, &rising(), settings(3, 1, 4), folder.path()).unwrap();
            assert_eq!(resumed.buffers.snapshot(), whole.buffers.snapshot(), "step {step}");
            let bits = |model: &Remembering| {
                let values = model.parameters.values().unwrap();
                values.iter().map(|(_, values, _)| values[0].to_bits()).collect::<Vec<_>>()
            };
            assert_eq!(bits(&resumed), bits(&whole), "step {step}");
            let seen = [killed.seen.into_inner(), resumed.seen.into_inner()].concat();
            assert_eq!(seen, *whole.seen.borrow(), "the same samples under the same numbers");
        }
        let fixed = whole.parameters.get("fixed").unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(fixed, [1.0], "what is not trained stays, whatever its gradient");
        assert!(whole.memory()[0] < 0.0);
    }
}

#[test]
fn a_phase_without_validation_trains_all_epochs_and_keeps_the_last() {
    let folder = tempfile::tempdir().unwrap();
    let phase = Phase { name: FINETUNE, samples: Samples::Events, stop: Stop::Epochs };
    let model = Remembering::new(phase, None);
    let outcome = train(&model, &rising(), settings(4, 1, 1024), folder.path()).unwrap();
    assert_eq!((outcome.best_epoch, outcome.epochs), (4, 4));
    let lines = lines(folder.path());
    assert!(lines.iter().all(|line| line.validation.is_empty() && line.best) && lines.len() == 4);
    // Each of ten users has two training events, and there is one step per epoch.
    let seen = model.seen.borrow();
    assert_eq!(
        seen.iter().map(|(users, tokens, epoch, global)| (users.len(), *tokens, *epoch, *global)).collect::<Vec<_>>(),
        [(20, 0, 1, 0), (20, 0, 2, 1), (20, 0, 3, 2), (20, 0, 4, 3)]
    );
}

#[test]
fn epochs_of_warm_up_neither_compete_nor_count_for_patience() {
    let run = |warm_up| {
        let folder = tempfile::tempdir().unwrap();
        let phase = Phase { stop: Stop::Validation { warm_up }, ..PHASE };
        let model = Remembering::new(phase, None);
        train(&model, &rising(), settings(300, 2, 1024), folder.path()).unwrap()
    };
    // All epochs are equal, so the first one that competes is the best.
    assert_eq!((run(0).best_epoch, run(0).epochs), (1, 3));
    assert_eq!((run(3).best_epoch, run(3).epochs), (4, 6));
}

#[test]
fn samples_of_users_are_whole_sequences_cut_to_what_the_model_is_given() {
    struct Short(Remembering);
    impl Model for Short {
        fn parameters(&self) -> &Parameters {
            self.0.parameters()
        }
        fn phases(&self) -> &[Phase] {
            self.0.phases()
        }
        fn max_sequence_length(&self) -> usize {
            2
        }
        // The model is given one item more than it reads, which is only a target.
        fn training_sequence_length(&self) -> usize {
            self.max_sequence_length() + 1
        }
        fn loss(&self, phase: &Phase, batch: &Batch, step: &Step) -> Result<Tensor> {
            assert!(batch.targets.is_empty());
            self.0.loss(phase, batch, step)
        }
        fn scorer(&self, phase: &Phase) -> Result<Box<dyn Scorer + '_>> {
            self.0.scorer(phase)
        }
    }
    let samples = Samples::Sequences { at_least: 2, batch: BatchUnit::Sequences };
    let model = Short(Remembering::new(Phase { name: FINETUNE, samples, stop: Stop::Epochs }, None));
    let data = sequences(&[&[1, 2, 3, 4, 5, 6], &[11, 12, 13, 14], &[21, 22, 23]], 40);
    let folder = tempfile::tempdir().unwrap();
    train(&model, &data, settings(1, 1, 8), folder.path()).unwrap();
    let seen = model.0.seen.borrow();
    let mut users = seen[0].0.clone();
    users.sort_unstable();
    // The users have four, two and one training events: the first sequence is cut to three, and the last is too short.
    assert_eq!((users, seen[0].1), (vec![0, 1], 5));
}
