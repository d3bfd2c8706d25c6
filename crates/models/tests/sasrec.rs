//! SASRec: its loss is compared with the softmax of its own scores by plain operations, and its gradients are finite and not zero. Its
//! transformer is compared with PyTorch's in `golden.rs`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use candle_core::{D, Device};
use mp4sr_models::{Batch, FINETUNE, Model, Phase, Query, RngKey, SasRec, Step, TransformerConfig};

const ITEMS: usize = 23;

fn model() -> SasRec {
    let config =
        TransformerConfig { width: 16, layers: 2, heads: 2, feed_forward: 12, max_sequence_length: 6, dropout: 0.2 };
    SasRec::new(config, ITEMS, &Device::Cpu, RngKey::new(3)).unwrap()
}

fn histories() -> Vec<Vec<u32>> {
    let item = |at: u64| 1 + (RngKey::new(5).uniform(at) * ITEMS as f64) as u32;
    (0..12_u64).map(|j| (0..=j % 9).map(|t| item(100 * j + t)).collect()).collect()
}

fn targets() -> Vec<u32> {
    (0..12).map(|j| 1 + (7 * j) % ITEMS as u32).collect()
}

fn batch() -> Batch {
    let (histories, targets) = (histories(), targets());
    Batch::of_histories(histories.iter().map(Vec::as_slice).zip(targets), 6).unwrap()
}

#[test]
fn the_loss_is_the_cross_entropy_of_the_scores_that_rank() {
    let model = model();
    let scorer = model.scorer(&Phase::of_prefixes(FINETUNE)).unwrap();
    let histories = histories();
    let queries: Vec<Query<'_>> = histories.iter().map(|history| Query::of_history(history)).collect();
    let sequences = scorer.queries(&queries).unwrap();
    assert_eq!(scorer.items().dims(), [ITEMS, 16]);
    let scores = sequences.matmul(&scorer.items().t().unwrap()).unwrap();
    let shares: Vec<Vec<f32>> = candle_nn::ops::log_softmax(&scores, D::Minus1).unwrap().to_vec2().unwrap();
    let rows = shares.iter().zip(targets());
    let expected = -rows.map(|(row, target)| row[target as usize - 1]).sum::<f32>() / 12.0;
    let loss = model.finetune_loss(&batch(), None).unwrap().to_scalar::<f32>().unwrap();
    assert!((loss - expected).abs() < 1e-5, "{loss} {expected}");
}

#[test]
fn every_parameter_has_a_gradient_that_is_finite_and_not_zero() {
    let model = model();
    let key = RngKey::new(9);
    let step = Step { epoch: 1, index: 0, global: 0, epoch_key: key, key };
    let gradients = model.loss(&model.phases()[0], &batch(), &step).unwrap().backward().unwrap();
    let named = model.parameters().gradients(&gradients).unwrap();
    assert_eq!(named.len(), model.parameters().names().count());
    for (name, gradient) in named {
        let gradient: Vec<f32> = gradient.flatten_all().unwrap().to_vec1().unwrap();
        assert!(gradient.iter().all(|g| g.is_finite()), "{name}");
        // A key's bias shifts all scores of a query alike.
        assert!(name.ends_with(".attention.key.bias") || gradient.iter().any(|&g| g != 0.0), "{name}");
    }
}
