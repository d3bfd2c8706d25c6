//! Compares training on an NVIDIA GPU with training on the CPU: the draws are the same, the losses differ only by rounding, and every run
//! on one GPU gives the same bytes. Without a GPU, or without the feature `cuda`, nothing is compared, and the test prints a message. The
//! variable `MP4SR_TEST_MODELS` limits the test to the models that it names, separated by spaces.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking and says what it leaves out"
)]

use std::collections::BTreeMap;

use mp4sr_artifact::{Sequences, hash_ids};
use mp4sr_evaluate::{RankOptions, rank_users};
use mp4sr_models::{Batch, ComputeDevice, Modality, RECIPES, Ragged, Recipe, RngKey, Samples, Step, StoredValues};
use mp4sr_ops::Adam;
use mp4sr_pipeline::Config;
use mp4sr_protocol::{EvalCase, Split};
use mp4sr_run::{Inputs, build_model, last_phase, model_catalog};
use mp4sr_train::SampleList;

const USERS: usize = 300;
const ITEMS: usize = 180;
const STEPS: usize = 20;

fn has_gpu() -> bool {
    match ComputeDevice::Cuda(0).open() {
        Ok(_) => true,
        Err(error) => {
            println!("training on a GPU is not compared: {error}");
            false
        }
    }
}

fn sequences() -> Sequences {
    let key = RngKey::new(4);
    let (mut offsets, mut items) = (vec![0], Vec::new());
    for user in 0..USERS {
        let drawn = |at: usize| 1 + (key.uniform((1000 * user + at) as u64).powi(2) * ITEMS as f64) as u32;
        items.extend((0..5 + user % 30).map(drawn));
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

/// Up to four rows per item, stored as f32 for text and as f16 for images.
fn inputs(recipe: &Recipe) -> Inputs {
    let features = |name: &str, width: usize, half: bool| {
        let offsets: Vec<usize> =
            (0..=ITEMS).scan(0, |end, item| Some(std::mem::replace(end, *end + item % 5))).collect();
        let key = RngKey::new(7).fold_in(name);
        let values: Vec<f32> = (0..(offsets[ITEMS] * width) as u64).map(|i| key.normal(i) as f32).collect();
        let values = if half {
            StoredValues::F16(std::sync::Arc::new(values.iter().map(|&v| half::f16::from_f32(v)).collect::<Vec<_>>()))
        } else {
            StoredValues::F32(std::sync::Arc::new(values))
        };
        Modality { name: name.to_owned(), features: Ragged::stored(values, width, &offsets).unwrap() }
    };
    // UniSRec averages the features of both modalities, which must have the same width.
    let image_width = if recipe.name == "unisrec" { 48 } else { 40 };
    let modalities = [features("text", 48, false), features("image", image_width, true)];
    let modalities = if recipe.reads.features { modalities.into() } else { Vec::new() };
    Inputs { sequences: sequences(), modalities, encoders: BTreeMap::default(), categories: None }
}

/// The losses of the first steps, the bits of the weights after them, and the ranks that these weights give.
struct Trained {
    losses: Vec<f32>,
    weights: Vec<Vec<u32>>,
    ranks: Vec<u32>,
}

fn train(recipe: &Recipe, phase: usize, inputs: &Inputs, device: &str) -> Trained {
    let text = format!(
        "dataset.name = \"x\"\nmodel.name = {:?}\nrun.device = \"{device}\"\nmodel.transformer.width = 32",
        recipe.name
    );
    let (config, _) = Config::parse(&text, recipe.name, &[], model_catalog()).unwrap();
    let model = build_model(&config, inputs).unwrap();
    let phase = model.phases()[phase];
    let samples = SampleList::new(phase.samples, &inputs.sequences, |_| true);
    let vars = model.parameters().variables(|name| model.trains(&phase, name)).unwrap();
    let mut adam = Adam::new(&vars, 1e-3, 1e-4, 5.0).unwrap();
    let mut losses = Vec::new();
    for index in 0..STEPS {
        let key = RngKey::new(11).fold_in_index(index as u64);
        let order = samples.shuffled(key);
        let chosen = order[..96.min(order.len())].iter().map(|&sample| samples.get(sample as usize));
        let batch = Batch::new(chosen, model.max_sequence_length()).unwrap();
        let step = Step { epoch: 1, index, global: index as u64, epoch_key: RngKey::new(11), key };
        let loss = model.loss(&phase, &batch, &step).unwrap();
        let pending = adam.step(&vars, &loss.backward().unwrap(), &loss).unwrap();
        losses.push(adam.finish(&pending).unwrap().loss);
        model.after_step(&phase, &batch, &step).unwrap();
    }
    let values = model.parameters().values().unwrap();
    let weights = values.iter().map(|(_, values, _)| values.iter().map(|v| v.to_bits()).collect()).collect();
    let scorer = model.scorer(last_phase(model.as_ref()).unwrap()).unwrap();
    let options = RankOptions { batch: 64, remove_seen: !model.is_sequential(), history: None };
    let case = |user| EvalCase::of(&inputs.sequences, user, Split::Test);
    let ranks = rank_users(scorer.as_ref(), USERS, case, options, |_| ()).unwrap();
    Trained { losses, weights, ranks }
}

#[test]
fn twenty_steps_on_a_gpu_have_the_losses_of_the_cpu_and_the_same_bytes_twice() {
    if !has_gpu() {
        return;
    }
    let chosen = std::env::var("MP4SR_TEST_MODELS").ok();
    let is_chosen = |name| chosen.as_ref().is_none_or(|names| names.split(' ').any(|chosen| chosen == name));
    for recipe in RECIPES.iter().filter(|recipe| is_chosen(recipe.name)) {
        let inputs = inputs(recipe);
        let text = format!("dataset.name = \"x\"\nmodel.name = {:?}", recipe.name);
        let (config, _) = Config::parse(&text, recipe.name, &[], model_catalog()).unwrap();
        let phases = build_model(&config, &inputs).unwrap().phases().to_vec();
        for (at, phase) in phases.iter().enumerate().filter(|(_, phase)| phase.samples != Samples::None) {
            let what = format!("{} {}", recipe.name, phase.name);
            let (cpu, gpu) = (train(recipe, at, &inputs, "cpu"), train(recipe, at, &inputs, "cuda:0"));
            let again = train(recipe, at, &inputs, "cuda:0");
            assert!(gpu.weights == again.weights, "{what}: two runs on a GPU differ");
            assert_eq!((&gpu.losses, &gpu.ranks), (&again.losses, &again.ranks), "{what}");
            let mut largest = 0.0f32;
            for (a, b) in cpu.losses.iter().zip(&gpu.losses) {
                largest = largest.max((a - b).abs() / a.abs());
            }
            let moved = cpu.ranks.iter().zip(&gpu.ranks).filter(|(a, b)| a != b).count();
            println!("{what}: losses within {largest:.1e}, {moved} of {USERS} ranks differ");
            assert!(largest < 1e-4, "{what}: {:?} {:?}", cpu.losses, gpu.losses);
        }
    }
}
