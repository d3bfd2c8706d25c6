//! `model.mp4sr.id_dropout`: some items of the histories are read without their id embeddings.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use candle_core::Device;
use mp4sr_models::mp4sr::Config;
use mp4sr_models::{Batch, Modality, Model, Mp4sr, Ragged, RngKey, TransformerConfig, trace};

const ITEMS: usize = 30;

fn model(id_dropout: f64) -> Mp4sr {
    let modality = |name: &str, width: usize| {
        let key = RngKey::new(11).fold_in(name);
        let values = (0..(ITEMS * width) as u64).map(|i| key.normal(i) as f32).collect();
        let offsets: Vec<usize> = (0..=ITEMS).collect();
        Modality { name: name.to_owned(), features: Ragged::new(values, width, &offsets).unwrap() }
    };
    let transformer =
        TransformerConfig { width: 8, layers: 1, heads: 2, feed_forward: 12, max_sequence_length: 6, dropout: 0.0 };
    let config = Config { attention: 5, experts: 3, expert_dropout: 0.0, id_dropout, ..Config::default() };
    let modalities = vec![modality("text", 10), modality("image", 6)];
    Mp4sr::new(config, transformer, modalities, &Device::Cpu, RngKey::new(3)).unwrap()
}

fn batch() -> Batch {
    let item = |at: u64| 1 + (RngKey::new(5).uniform(at) * ITEMS as f64) as u32;
    let histories: Vec<Vec<u32>> = (0..200).map(|j| (0..5).map(|t| item(10 * j + t)).collect()).collect();
    let samples = histories.iter().enumerate().map(|(j, history)| (history.as_slice(), item(5000 + j as u64)));
    Batch::of_histories(samples, 6).unwrap()
}

/// The vectors of the tokens, by modality and token.
fn tokens(model: &Mp4sr, batch: &Batch, key: Option<RngKey>) -> Vec<Vec<f32>> {
    let (loss, values) = trace::collect(|| model.finetune_loss(batch, key).unwrap());
    let gradients = loss.backward().unwrap();
    let table = &model.parameters().variables(|name| name == "id_embedding").unwrap()[0];
    let padding = gradients.get(table).unwrap().to_vec2::<f32>().unwrap().swap_remove(0);
    assert!(padding.iter().all(|value| *value == 0.0), "the row of the padding is not trained");
    values["mixed"].to_vec2().unwrap()
}

#[test]
fn tokens_lose_their_id_embedding_with_the_given_probability_and_in_all_modalities_alike() {
    let (batch, key) = (batch(), RngKey::new(9));
    let ids = model(0.0).parameters().get("id_embedding").unwrap().to_vec2::<f32>().unwrap();
    let (whole, count) = (tokens(&model(0.0), &batch, Some(key)), batch.items.len());
    for probability in [0.3, 1.0] {
        let found = tokens(&model(probability), &batch, Some(key));
        assert_eq!(found.len(), 2 * count);
        let mut dropped = vec![Vec::new(); count];
        for (at, (with, without)) in whole.iter().zip(&found).enumerate() {
            let id = &ids[batch.items[at % count] as usize];
            let rest = |id_share: f32| {
                let gaps = with.iter().zip(without).zip(id).map(|((a, b), id)| (a - b - id_share * id).abs());
                gaps.fold(0.0, f32::max)
            };
            assert!(rest(0.0).min(rest(1.0)) < 1e-5, "token {at} lost something other than its id embedding");
            dropped[at % count].push(rest(1.0) < 1e-5);
        }
        assert!(dropped.iter().all(|of_modalities| of_modalities[0] == of_modalities[1]));
        let share = dropped.iter().filter(|of_modalities| of_modalities[0]).count() as f64 / count as f64;
        // The standard deviation of the share is at most 0.015.
        assert!((share - probability).abs() < 0.06, "{share}");
    }
    assert_eq!(tokens(&model(0.3), &batch, None), tokens(&model(0.0), &batch, None), "without a key nothing is drawn");
}
