//! `finetune.candidates`: a softmax over a sample of the items against the softmax over all of them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use mp4sr_models::mp4sr::{Config, Logits};
use mp4sr_models::{
    Batch, CandidateSampler, Modality, Model, Mp4sr, Ragged, RngKey, SasRec, Step, TrainingSequences, TransformerConfig,
};

const ITEMS: usize = 29;

/// Nothing is dropped, so that a step is a function of its candidates.
fn transformer() -> TransformerConfig {
    TransformerConfig { width: 8, layers: 2, heads: 2, feed_forward: 12, max_sequence_length: 6, dropout: 0.0 }
}

fn item(at: u64) -> u32 {
    1 + (RngKey::new(5).uniform(at) * ITEMS as f64) as u32
}

fn training() -> TrainingSequences {
    let users: Vec<Vec<u32>> = (0..20).map(|user| (0..5).map(|t| item(100 * user + t)).collect()).collect();
    TrainingSequences::new(users.iter().map(Vec::as_slice))
}

fn modality(name: &str, width: usize) -> Modality {
    let offsets: Vec<usize> = (0..=ITEMS).map(|item| 2 * item).collect();
    let key = RngKey::new(11).fold_in(name);
    let values = (0..(2 * ITEMS * width) as u64).map(|i| key.normal(i) as f32).collect();
    Modality { name: name.to_owned(), features: Ragged::new(values, width, &offsets).unwrap() }
}

/// The models that can compare with a sample, with `drawn` items in addition to the targets.
fn models(drawn: Option<usize>) -> Vec<(&'static str, Box<dyn Model>)> {
    let sampler = || drawn.map(|drawn| CandidateSampler::new(drawn, ITEMS, &training()).unwrap());
    let mp4sr = |logits, id_embedding| -> Box<dyn Model> {
        let config =
            Config { attention: 5, experts: 3, expert_dropout: 0.0, logits, id_embedding, ..Config::default() };
        let modalities = vec![modality("text", 10), modality("image", 6)];
        let model = Mp4sr::new(config, transformer(), modalities, &Device::Cpu, RngKey::new(3)).unwrap();
        Box::new(match sampler() {
            Some(sampler) => model.with_candidates(sampler),
            None => model,
        })
    };
    let sasrec = SasRec::new(transformer(), ITEMS, &Device::Cpu, RngKey::new(3)).unwrap();
    let sasrec: Box<dyn Model> = Box::new(match sampler() {
        Some(sampler) => sasrec.with_candidates(sampler),
        None => sasrec,
    });
    vec![
        ("MP4SR", mp4sr(Logits::Cosine, true)),
        ("MP4SR without ids", mp4sr(Logits::Cosine, false)),
        ("MP4SR, inner products", mp4sr(Logits::Dot, true)),
        ("SASRec", sasrec),
    ]
}

fn batch(samples: u64) -> Batch {
    let histories: Vec<Vec<u32>> =
        (0..samples).map(|j| (0..=j % 6).map(|t| item(1000 + 10 * j + t)).collect()).collect();
    let samples = histories.iter().enumerate().map(|(j, history)| (history.as_slice(), item(5000 + j as u64)));
    Batch::of_histories(samples, 6).unwrap()
}

fn loss(model: &dyn Model, batch: &Batch, key: RngKey) -> Tensor {
    let phase = *model.phases().last().unwrap();
    model.loss(&phase, batch, &Step { epoch: 1, index: 0, global: 0, epoch_key: key, key }).unwrap()
}

#[test]
fn a_sample_of_all_items_gives_the_loss_and_the_gradients_of_the_whole_softmax() {
    let (batch, key) = (batch(9), RngKey::new(9));
    for ((name, whole), (_, sampled)) in models(None).into_iter().zip(models(Some(ITEMS))) {
        let (expected, found) = (loss(whole.as_ref(), &batch, key), loss(sampled.as_ref(), &batch, key));
        let value = |loss: &Tensor| loss.to_scalar::<f32>().unwrap();
        assert!((value(&expected) - value(&found)).abs() < 1e-5, "{name}: {expected} {found}");
        let gradients = |model: &dyn Model, loss: &Tensor| -> BTreeMap<String, Vec<f32>> {
            let gradients = model.parameters().gradients(&loss.backward().unwrap()).unwrap();
            let flat = |gradient: Tensor| gradient.flatten_all().unwrap().to_vec1().unwrap();
            gradients.into_iter().map(|(name, gradient)| (name.to_owned(), flat(gradient))).collect()
        };
        let (expected, found) = (gradients(whole.as_ref(), &expected), gradients(sampled.as_ref(), &found));
        assert!(expected.keys().eq(found.keys()), "{name}");
        for (parameter, expected) in &expected {
            let largest = expected.iter().fold(0.0f32, |top, value| top.max(value.abs()));
            for (a, b) in expected.iter().zip(&found[parameter]) {
                assert!((a - b).abs() <= 1e-5 + 1e-4 * largest, "{name}, {parameter}: {a} {b}");
            }
        }
    }
}

/// The exponential of a cross-entropy is the sum of all exponentials divided by the target's, which is what a sample estimates.
#[test]
fn the_expected_sum_of_exponentials_over_a_sample_is_that_over_all_items() {
    let batch = batch(1);
    for ((name, whole), (_, sampled)) in models(None).into_iter().zip(models(Some(6))) {
        let ratio = |model: &dyn Model, step: u64| {
            f64::from(loss(model, &batch, RngKey::new(13).fold_in_index(step)).to_scalar::<f32>().unwrap()).exp()
        };
        let expected = ratio(whole.as_ref(), 0);
        let draws: Vec<f64> = (0..400).map(|step| ratio(sampled.as_ref(), step)).collect();
        let mean = draws.iter().sum::<f64>() / draws.len() as f64;
        let variance = draws.iter().map(|draw| (draw - mean).powi(2)).sum::<f64>() / (draws.len() - 1) as f64;
        let error = (variance / draws.len() as f64).sqrt();
        assert!((mean - expected).abs() < 4.0 * error, "{name}: {mean} ± {error}, expected {expected}");
        // The sums of single samples do differ, so the comparison is not trivial.
        assert!(error > 0.001 * expected, "{name}: {error}");
    }
}

#[test]
fn without_a_key_all_items_are_candidates() {
    let batch = batch(4);
    let model = || SasRec::new(transformer(), ITEMS, &Device::Cpu, RngKey::new(3)).unwrap();
    let sampled = model().with_candidates(CandidateSampler::new(2, ITEMS, &training()).unwrap());
    let loss = |model: &SasRec| model.finetune_loss(&batch, None).unwrap().to_scalar::<f32>().unwrap();
    assert_eq!(loss(&model()).to_bits(), loss(&sampled).to_bits());
}
