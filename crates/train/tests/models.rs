//! Properties of every model in the list of recipes: training reads no validation or test event, an interrupted run resumes to
//! the same bits, results do not depend on the number of threads, and every trained parameter has a gradient.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use candle_core::Tensor;
use mp4sr_artifact::{Sequences, StageSettings, hash_ids};
use mp4sr_evaluate::RankOptions;
use mp4sr_models::{
    Batch, BatchUnit, Buffer, Buffers, Categories, Error, Modality, Model, Parameters, Phase, Query, RECIPES, Ragged,
    Recipe, Result, RngKey, Samples, Scorer, Step,
};
use mp4sr_pipeline::Config;
use mp4sr_protocol::Metric;
use mp4sr_run::{Inputs, build_model, model_catalog};
use mp4sr_train::{PhaseOutcome, TrainError, TrainSettings, Training};

const USERS: usize = 30;
const ITEMS: usize = 50;

/// Sequences of random training events, followed for each user by the events that `second_last` and `last` give.
fn sequences(second_last: impl Fn(usize) -> u32, last: impl Fn(usize) -> u32) -> Sequences {
    let key = RngKey::new(4);
    let (mut offsets, mut items) = (vec![0], Vec::new());
    for user in 0..USERS {
        items.extend((0..3 + user % 5).map(|at| 1 + (key.uniform((100 * user + at) as u64) * 30.0) as u32));
        items.extend([second_last(user), last(user)]);
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

fn inputs(recipe: &Recipe, sequences: Sequences) -> Inputs {
    let features = |name: &str, seed| {
        let values = (0..12 * ITEMS as u64).map(|i| RngKey::new(seed).normal(i) as f32).collect();
        let features = Ragged::new(values, 6, &(0..=ITEMS).map(|item| 2 * item).collect::<Vec<_>>()).unwrap();
        Modality { name: name.to_owned(), features }
    };
    let modalities = if recipe.reads.features { vec![features("text", 1), features("image", 2)] } else { Vec::new() };
    let names: Vec<Vec<String>> =
        (0..ITEMS).map(|item| (0..item % 3).map(|at| format!("c{}", (item + at) % 5)).collect()).collect();
    Inputs { sequences, modalities, encoders: BTreeMap::default(), categories: Categories::of_names(&names) }
}

fn config(recipe: &Recipe) -> Config {
    config_with(recipe, "")
}

/// The configuration with additional keys, as TOML.
fn config_with(recipe: &Recipe, keys: &str) -> Config {
    let text = format!("dataset.name = \"x\"\nmodel.name = {:?}\nmodel.transformer.width = 8\n{keys}", recipe.name);
    Config::parse(&text, recipe.name, &[], model_catalog()).unwrap().0
}

/// A model that fails before the step `at` of its phase, as if the process were killed.
struct Killed {
    model: Box<dyn Model>,
    at: Option<u64>,
}

impl Model for Killed {
    fn parameters(&self) -> &Parameters {
        self.model.parameters()
    }
    fn buffers(&self) -> Option<&Buffers> {
        self.model.buffers()
    }
    fn phases(&self) -> &[Phase] {
        self.model.phases()
    }
    fn uses(&self, phase: &Phase, parameter: &str) -> bool {
        self.model.uses(phase, parameter)
    }
    fn trains(&self, phase: &Phase, parameter: &str) -> bool {
        self.model.trains(phase, parameter)
    }
    fn max_sequence_length(&self) -> usize {
        self.model.max_sequence_length()
    }
    fn training_sequence_length(&self) -> usize {
        self.model.training_sequence_length()
    }
    fn loss(&self, phase: &Phase, batch: &Batch, step: &Step) -> Result<Tensor> {
        if self.at == Some(step.global) {
            return Err(Error::Msg("killed".to_owned()));
        }
        self.model.loss(phase, batch, step)
    }
    fn after_step(&self, phase: &Phase, batch: &Batch, step: &Step) -> Result<()> {
        self.model.after_step(phase, batch, step)
    }
    fn scorer(&self, phase: &Phase) -> Result<Box<dyn Scorer + '_>> {
        self.model.scorer(phase)
    }
    fn is_sequential(&self) -> bool {
        self.model.is_sequential()
    }
}

/// The bits of the weights, the buffers, the bits of the epochs' losses, and the outcome.
#[derive(Debug, PartialEq)]
struct Trained {
    weights: Vec<(String, Vec<u32>)>,
    buffers: BTreeMap<String, Buffer>,
    losses: Vec<u64>,
    outcome: PhaseOutcome,
}

fn train(
    recipe: &Recipe,
    phase: usize,
    inputs: &Inputs,
    killed_at: Option<u64>,
    folder: &Path,
) -> std::result::Result<Trained, TrainError> {
    let mut config = config(recipe);
    let model = Killed { model: build_model(&config, inputs).unwrap(), at: killed_at };
    let phase = model.phases()[phase];
    config.finetune.settings.epochs = 2;
    // This gives several steps per epoch, whatever a sample is.
    let of_users = matches!(phase.samples, Samples::Sequences { batch: BatchUnit::Sequences, .. });
    config.finetune.settings.batch = if of_users { 8 } else { 32 };
    let settings = TrainSettings {
        phase: config.finetune.settings.clone(),
        metric: Metric::Recall(20),
        k: vec![20],
        warm_items: false,
        log_test_loss: false,
        rank_options: RankOptions { batch: 64, remove_seen: !model.is_sequential(), history: None },
        seed: 1,
        save_every: Duration::ZERO,
    };
    let training = Training {
        model: &model,
        phase,
        sequences: &inputs.sequences,
        settings,
        state_path: folder.join("state.safetensors"),
        log_path: folder.join("metrics.jsonl"),
        identity: &StageSettings::of(serde_json::json!({})),
        inputs: BTreeMap::new(),
    };
    let outcome = training.run(|_| (), |_| ())?;
    let values = model.parameters().values().unwrap();
    let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect();
    let weights = values.into_iter().map(|(name, values, _)| (name, bits(values))).collect();
    let log = mp4sr_artifact::files::read_to_string(&folder.join("metrics.jsonl")).unwrap();
    let loss =
        |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["loss"].as_f64().unwrap().to_bits();
    let losses = log.lines().map(loss).collect();
    Ok(Trained { weights, buffers: model.buffers().map(Buffers::snapshot).unwrap_or_default(), losses, outcome })
}

fn once(recipe: &Recipe, phase: usize, sequences: Sequences) -> Trained {
    let folder = tempfile::tempdir().unwrap();
    train(recipe, phase, &inputs(recipe, sequences), None, folder.path()).unwrap()
}

/// All phases of all models, except those that are not trained.
fn phases() -> impl Iterator<Item = (&'static Recipe, usize)> {
    let trained = |recipe: &Recipe| {
        let model = build_model(&config(recipe), &inputs(recipe, sequences(|_| 1, |_| 2))).unwrap();
        (0..model.phases().len()).filter(|&at| model.phases()[at].samples != Samples::None).collect::<Vec<_>>()
    };
    RECIPES.iter().flat_map(move |recipe| trained(recipe).into_iter().map(|phase| (*recipe, phase)))
}

#[test]
fn the_test_set_changes_nothing_and_the_validation_set_only_the_selected_epoch() {
    for (recipe, phase) in phases() {
        let trained =
            |second_last: fn(usize) -> u32, last: fn(usize) -> u32| once(recipe, phase, sequences(second_last, last));
        let one = trained(|user| 1 + user as u32, |user| 31 + user as u32 % 20);
        assert_eq!(one, trained(|user| 1 + user as u32, |user| 50 - user as u32 % 20), "{}: test", recipe.name);
        let other = trained(|user| 40 - user as u32, |user| 31 + user as u32 % 20);
        assert_eq!(one.losses, other.losses, "{}: validation", recipe.name);
        assert_eq!(one.losses.len(), 2, "{}", recipe.name);
        // Changed training events do change the losses, so the comparisons above can fail.
        let mut changed = sequences(|user| 1 + user as u32, |user| 31 + user as u32 % 20);
        for &first in &changed.offsets[..USERS] {
            changed.items[first as usize] = 30 - changed.items[first as usize].min(29);
        }
        assert_ne!(once(recipe, phase, changed).losses, one.losses, "{}", recipe.name);
    }
}

#[test]
fn a_run_killed_before_any_step_resumes_to_the_same_bits() {
    for (recipe, phase) in phases() {
        let inputs = inputs(recipe, sequences(|user| 1 + user as u32, |user| 31 + user as u32 % 20));
        let folder = tempfile::tempdir().unwrap();
        let whole = train(recipe, phase, &inputs, None, folder.path()).unwrap();
        let mut kills = 0;
        for step in 1.. {
            let folder = tempfile::tempdir().unwrap();
            if train(recipe, phase, &inputs, Some(step), folder.path()).is_ok() {
                break;
            }
            kills += 1;
            let resumed = train(recipe, phase, &inputs, None, folder.path()).unwrap();
            assert_eq!(resumed, whole, "{}: killed before step {step}", recipe.name);
        }
        assert!(kills > 3, "{}: {kills} kills", recipe.name);
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    for (recipe, phase) in phases() {
        let with = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| once(recipe, phase, sequences(|user| 1 + user as u32, |user| 31 + user as u32 % 20)))
        };
        assert_eq!(with(1), with(3), "{}", recipe.name);
    }
}

/// Readings of the models that differ from the default.
const VARIANTS: [(&str, &str); 53] = [
    ("mp4sr", "\n[finetune]\ncandidates = 5"),
    ("sasrec", "\n[finetune]\ncandidates = \"5\""),
    ("esasrec", "loss = \"softmax\""),
    ("esasrec", "loss = \"gbce\"\ncalibration = 1.0"),
    ("esasrec", "negative_items = \"not_target\""),
    ("esasrec", "negative_items = \"unseen\""),
    ("esasrec", "in_batch = 0.5\nlog_q = true"),
    ("esasrec", "item_dropout = false"),
    ("esasrec", "positions = \"from_start\""),
    ("esasrec", "feed_forward_bias = true"),
    ("esasrec", "final_norm = true"),
    ("esasrec", "layers = \"sasrec\""),
    ("lightgcn", "regularisation = \"norm\""),
    ("cl4srec", "similarity = \"cosine\""),
    ("sine", "positions = true"),
    ("sine", "padding = \"unmasked\""),
    ("sine", "regularizer = 0.5"),
    ("fdsa", "adapter = \"one\""),
    ("fdsa", "pooling = \"padded_mean\""),
    ("fdsa", "norms = \"separate\""),
    ("fdsa", "dropout_draw = \"position\""),
    ("fdsa", "fields = \"features_and_categories\""),
    ("fdsa", "fields = \"categories\""),
    ("difsr", "fusion = \"sum\""),
    ("difsr", "fusion = \"concat\""),
    ("difsr", "keys = \"full\""),
    ("difsr", "predictor = false"),
    ("difsr", "attributes = \"categories\""),
    ("difsr", "attributes = \"categories\"\ncategory_embedding = \"fixed\""),
    ("unisrec", "noise = false"),
    ("unisrec", "false_negatives = \"zero_logit\""),
    ("unisrec", "augment_rows = false"),
    ("unisrec", "item_drop_share = 0.0"),
    ("unisrec", "select = \"last\""),
    ("unisrec", "fix_encoder = false"),
    ("unisrec", "id_embedding = false"),
    ("unisrec", "dropout_draw = \"item\""),
    ("s3rec", "attributes = \"categories\""),
    ("s3rec", "pair = \"once\""),
    ("s3rec", "reduction = \"sum\""),
    ("s3rec", "mask_last = false"),
    ("s3rec", "sample = \"history\""),
    ("s3rec", "samples = \"sequences\""),
    ("grcn", "routing = 0"),
    ("grcn", "weights = \"max\""),
    ("grcn", "fusion = \"id\""),
    ("dualgnn", "user_fusion = \"summed\""),
    ("dualgnn", "neighbour_lists = \"resampled\""),
    ("mvrnn", "variant = \"fusion\""),
    ("mvrnn", "variant = \"separate\"\ncell = \"gru\""),
    ("clcrec", "candidates = \"cold\"\nnegative_items = \"warm\"\ncold_events = 2\nnegatives = 3"),
    ("masr", "encoder = \"post_norm\"\nblocks = \"last\""),
    ("masr", "blocks = \"last\"\nwarmup = 0"),
];

#[test]
fn every_variant_of_a_baseline_trains_and_ranks() {
    for (name, keys) in VARIANTS {
        let recipe = mp4sr_models::recipe(name).unwrap();
        let inputs = inputs(recipe, sequences(|user| 1 + user as u32, |user| 31 + user as u32 % 20));
        let config = config_with(recipe, &format!("[model.{name}]\n{keys}"));
        let model = build_model(&config, &inputs).unwrap();
        for phase in model.phases() {
            let samples = mp4sr_train::SampleList::new(phase.samples, &inputs.sequences, |_| true);
            let all = (0..samples.count()).map(|sample| samples.get(sample));
            let batch = Batch::new(all, model.training_sequence_length()).unwrap();
            for epoch in [1, 1000] {
                let key = RngKey::new(9).fold_in_index(epoch as u64);
                let step = Step { epoch, index: 0, global: 0, epoch_key: key, key };
                let loss = model.loss(phase, &batch, &step).unwrap();
                let gradients = model.parameters().gradients(&loss.backward().unwrap()).unwrap();
                for (parameter, gradient) in gradients {
                    let values: Vec<f32> = gradient.flatten_all().unwrap().to_vec1().unwrap();
                    assert!(values.iter().all(|g| g.is_finite()), "{name}: {keys}: {parameter}");
                }
                model.after_step(phase, &batch, &step).unwrap();
            }
            let scorer = model.scorer(phase).unwrap();
            let history = [3, 9, 9, 20];
            let queries = [Query { user: Some(4), history: &history }];
            let scores = scorer.queries(&queries).unwrap().matmul(&scorer.items().t().unwrap()).unwrap();
            let scores: Vec<f32> = scores.flatten_all().unwrap().to_vec1().unwrap();
            assert_eq!(scores.len(), ITEMS * scorer.interests());
            assert!(scores.iter().all(|score| score.is_finite()), "{name}: {keys}");
        }
    }
}

#[test]
fn every_trained_parameter_has_a_finite_gradient_that_is_not_zero() {
    for (recipe, phase) in phases() {
        let inputs = inputs(recipe, sequences(|user| 1 + user as u32, |user| 31 + user as u32 % 20));
        let model = build_model(&config(recipe), &inputs).unwrap();
        let phase = model.phases()[phase];
        let samples = mp4sr_train::SampleList::new(phase.samples, &inputs.sequences, |_| true);
        let all = (0..samples.count()).map(|sample| samples.get(sample));
        let batch = Batch::new(all, model.training_sequence_length()).unwrap();
        let key = RngKey::new(9);
        let step = |epoch| Step { epoch, index: 0, global: 0, epoch_key: key, key };
        // A first step fills the buffers that later steps read; after the warm-up the loss has all its parts.
        model.loss(&phase, &batch, &step(1)).unwrap();
        model.after_step(&phase, &batch, &step(1)).unwrap();
        let step = step(1000);
        let gradients = model.loss(&phase, &batch, &step).unwrap().backward().unwrap();
        let named: BTreeMap<&str, Tensor> = model.parameters().gradients(&gradients).unwrap().into_iter().collect();
        for name in model.parameters().names().filter(|name| model.trains(&phase, name)) {
            let gradient = named.get(name).unwrap_or_else(|| panic!("{name} has no gradient"));
            let values: Vec<f32> = gradient.flatten_all().unwrap().to_vec1().unwrap();
            assert!(values.iter().all(|g| g.is_finite()), "{}: {name}", recipe.name);
            // The biases of keys, of scores before a softmax over fields, and of the concepts' LayerNorm shift all scores of a softmax
            // alike.
            let cancels = [".attention.key.bias", "fusion.score.bias", "gate.score.bias", "concept_norm.bias"];
            let cancels = cancels.iter().any(|end| name.ends_with(end));
            assert!(cancels || values.iter().any(|&g| g != 0.0), "{}: {name}", recipe.name);
        }
    }
}
