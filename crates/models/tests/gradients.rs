//! Gradient health: on random data, every trainable parameter has a finite gradient that is not zero, in both phases and every variant; the
//! parameters that a variant freezes are listed. Edge cases of batches have finite losses.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use mp4sr_models::augment::mixup;
use mp4sr_models::mp4sr::{Config, Logits, NipCandidates, PoolingRows, Projection, SequenceDropout};
use mp4sr_models::{
    Batch, CmclDirection, FINETUNE, FalseNegatives, Modality, Model, Mp4sr, PRETRAIN, Phase, PoolingGradient, Ragged,
    RngKey, Step, TransformerConfig, trace,
};

const ITEMS: usize = 23;

/// The suffix of the names of parameters whose gradient is zero in every variant: a key's bias shifts all scores of a query alike.
const CANCELS: &str = ".attention.key.bias";

const PHASES: [Phase; 2] = [Phase::of_prefixes(PRETRAIN), Phase::of_prefixes(FINETUNE)];

fn config() -> Config {
    Config { attention: 5, experts: 3, ..Config::default() }
}

fn transformer() -> TransformerConfig {
    TransformerConfig { width: 8, layers: 2, heads: 2, feed_forward: 12, max_sequence_length: 6, dropout: 0.2 }
}

fn step() -> Step {
    let key = RngKey::new(9);
    Step { epoch: 1, index: 0, global: 0, epoch_key: key, key }
}

/// Random rows. Every seventh item has none in the first modality, every fifth none in the second, every third none in the third.
fn modalities(names: &[&str]) -> Vec<Modality> {
    let features = |(m, name): (usize, &&str)| {
        let (width, skip) = (10, [7, 5, 3][m]);
        let key = RngKey::new(11).fold_in_index(m as u64);
        let mut offsets = vec![0];
        for item in 1..=ITEMS {
            let rows = if item % skip == 0 { 0 } else { 1 + item % 3 };
            offsets.push(offsets[item - 1] + rows);
        }
        let values = (0..(offsets[ITEMS] * width) as u64).map(|i| key.normal(i) as f32).collect();
        Modality { name: (*name).to_owned(), features: Ragged::new(values, width, &offsets).unwrap() }
    };
    names.iter().enumerate().map(features).collect()
}

fn model(config: Config) -> Mp4sr {
    Mp4sr::new(config, transformer(), modalities(&["text", "image"]), &Device::Cpu, RngKey::new(3)).unwrap()
}

fn batch() -> Batch {
    let key = RngKey::new(5);
    let item = |at: u64| 1 + (key.uniform(at) * ITEMS as f64) as u32;
    let histories: Vec<Vec<u32>> = (0..12u64).map(|j| (0..=j % 6).map(|t| item(100 * j + t)).collect()).collect();
    let samples = histories.iter().enumerate().map(|(j, h)| (h.as_slice(), item(5000 + j as u64)));
    Batch::of_histories(samples, 6).unwrap()
}

/// The parameters without a gradient or with a zero one, and the loss.
fn without_gradient(model: &Mp4sr, phase: &Phase, batch: &Batch) -> (Vec<String>, f32) {
    let loss = model.loss(phase, batch, &step()).unwrap();
    let value = loss.to_scalar::<f32>().unwrap();
    assert!(value.is_finite(), "{phase:?}: the loss is {value}");
    let gradients = loss.backward().unwrap();
    let mut without = Vec::new();
    let named: BTreeMap<&str, Tensor> = model.parameters().gradients(&gradients).unwrap().into_iter().collect();
    for name in model.parameters().names().filter(|name| model.uses(phase, name)) {
        let values: Vec<f32> =
            named.get(name).map_or_else(Vec::new, |gradient| gradient.flatten_all().unwrap().to_vec1().unwrap());
        assert!(values.iter().all(|g| g.is_finite()), "{phase:?}: the gradient of {name} is not finite");
        if values.iter().all(|&g| g == 0.0) && !name.ends_with(CANCELS) {
            without.push(name.to_owned());
        }
    }
    (without, value)
}

/// A variant, how it differs, and the prefixes of the parameters that it freezes in pre-training and in fine-tuning.
type Variant =
    (&'static str, fn(&mut Config, &mut TransformerConfig), &'static [&'static str], &'static [&'static str]);

const VARIANTS: &[Variant] = &[
    ("MP4SR", |_, _| (), &[], &[]),
    ("w/o NIP", |c, _| c.nip_weight = 0.0, &[], &[]),
    ("w/o CMCL", |c, _| c.lambda = 0.0, &[], &[]),
    ("w/o C-Mixup", |c, _| c.mixup_max = 0.0, &[], &[]),
    ("w/o Proj", |c, _| c.projection = Projection::Off, &[], &[]),
    ("w/o sequence dropout", |c, _| c.rho = 0.0, &[], &[]),
    ("uniform sequence dropout", |c, _| c.sequence_dropout = SequenceDropout::Uniform, &[], &[]),
    ("E2E", |c, _| c.end_to_end = true, &[], &[]),
    ("Shared", |c, _| c.shared_encoder = true, &[], &[]),
    ("T", |c, _| c.logit_modalities = vec!["text".to_owned()], &[], &["encoder.image."]),
    ("V", |c, _| c.logit_modalities = vec!["image".to_owned()], &[], &["encoder.text."]),
    ("T, E2E", |c, _| (c.logit_modalities, c.end_to_end) = (vec!["text".to_owned()], true), &[], &[]),
    ("no item ids", |c, _| c.id_embedding = false, &[], &[]),
    (
        "frozen pooling",
        |c, _| c.pooling_gradient = PoolingGradient::Frozen,
        &["encoder.text.pool.", "encoder.image.pool."],
        &["encoder.text.pool.", "encoder.image.pool."],
    ),
    ("unmasked pooling", |c, _| c.pooling_rows = PoolingRows::Unmasked, &[], &[]),
    ("same targets kept", |c, _| c.false_negatives = FalseNegatives::Keep, &[], &[]),
    ("same targets at zero", |c, _| c.false_negatives = FalseNegatives::ZeroLogit, &[], &[]),
    ("row sums", |c, _| c.cmcl_direction = CmclDirection::RowSums, &[], &[]),
    ("NIP among all items", |c, _| c.nip_candidates = NipCandidates::All, &[], &[]),
    ("NIP among all items, E2E", |c, _| (c.nip_candidates, c.end_to_end) = (NipCandidates::All, true), &[], &[]),
    ("inner products", |c, _| c.logits = Logits::Dot, &[], &[]),
    ("one layer", |_, t| t.layers = 1, &[], &[]),
    ("three layers", |_, t| t.layers = 3, &[], &[]),
    (
        // The softmax over a single expert is always 1, so its gate has no gradient.
        "one expert",
        |c, _| c.experts = 1,
        &["encoder.text.gate.", "encoder.image.gate."],
        &["encoder.text.gate.", "encoder.image.gate."],
    ),
];

#[test]
fn every_trainable_parameter_has_a_gradient_in_both_phases_and_every_variant() {
    for (name, change, frozen_pretrain, frozen_finetune) in VARIANTS {
        let (mut config, mut transformer) = (config(), transformer());
        change(&mut config, &mut transformer);
        let model =
            Mp4sr::new(config, transformer, modalities(&["text", "image"]), &Device::Cpu, RngKey::new(3)).unwrap();
        for (phase, frozen) in PHASES.iter().zip([frozen_pretrain, frozen_finetune]) {
            let (without, _) = without_gradient(&model, phase, &batch());
            let expected: Vec<_> = model
                .parameters()
                .names()
                .filter(|parameter| model.uses(phase, parameter) && frozen.iter().any(|f| parameter.starts_with(f)))
                .collect();
            assert_eq!(without, expected, "{name}, {phase:?}");
        }
    }
}

#[test]
fn three_modalities_have_gradients_too() {
    let model =
        Mp4sr::new(config(), transformer(), modalities(&["text", "image", "sound"]), &Device::Cpu, RngKey::new(3))
            .unwrap();
    for phase in &PHASES {
        assert!(without_gradient(&model, phase, &batch()).0.is_empty(), "{phase:?}");
    }
}

#[test]
fn edge_cases_of_batches_have_finite_losses_and_gradients() {
    type Samples = Vec<(Vec<u32>, u32)>;
    let batches: [(&str, Samples); 8] = [
        ("an item without rows in one modality", vec![(vec![7, 1], 2), (vec![3], 5)]),
        ("only items without text", vec![(vec![7, 14], 21), (vec![14], 7)]),
        ("sequences of length one", vec![(vec![1], 2), (vec![3], 4), (vec![5], 6)]),
        ("sequences of the maximum length", vec![(vec![1, 2, 3, 4, 5, 6], 7), (vec![6, 5, 4, 3, 2, 1], 8)]),
        ("sequences longer than the maximum", vec![((1..=20).collect(), 21), ((3..=22).collect(), 1)]),
        ("a batch of one", vec![(vec![1, 2], 3)]),
        ("all targets the same item", vec![(vec![1], 9), (vec![2, 3], 9), (vec![4], 9)]),
        ("one item everywhere", vec![(vec![4, 4], 4), (vec![4], 4)]),
    ];
    for false_negatives in [FalseNegatives::Exclude, FalseNegatives::Keep, FalseNegatives::ZeroLogit] {
        for end_to_end in [false, true] {
            let model = model(Config { false_negatives, end_to_end, ..config() });
            for (what, samples) in &batches {
                let batch = Batch::of_histories(samples.iter().map(|(h, t)| (h.as_slice(), *t)), 6).unwrap();
                for phase in &PHASES {
                    let (_, loss) = without_gradient(&model, phase, &batch);
                    // Without negatives the loss is 0, up to rounding.
                    assert!(loss > -1e-5, "{what}, {phase:?}: {loss}");
                }
            }
        }
    }
}

/// Items without rows in any modality are treated like others: their embedding is a learned constant.
#[test]
fn items_without_any_rows_have_finite_losses() {
    let empty = |name: &str| Modality {
        name: name.to_owned(),
        features: Ragged::new(Vec::new(), 10, &[0; ITEMS + 1]).unwrap(),
    };
    let model =
        Mp4sr::new(config(), transformer(), vec![empty("text"), empty("image")], &Device::Cpu, RngKey::new(3)).unwrap();
    for phase in &PHASES {
        without_gradient(&model, phase, &batch());
        assert!(model.scorer(phase).unwrap().items().flatten_all().unwrap().to_vec1::<f32>().unwrap()[0].is_finite());
    }
}

/// Without dropout, augmentation and draws, the loss of end-to-end training is the sum of the losses of both phases.
#[test]
fn end_to_end_adds_both_losses() {
    let plain = |end_to_end| {
        let config = Config { end_to_end, expert_dropout: 0.0, rho: 0.0, mixup_max: 0.0, ..config() };
        let transformer = TransformerConfig { dropout: 0.0, ..transformer() };
        Mp4sr::new(config, transformer, modalities(&["text", "image"]), &Device::Cpu, RngKey::new(3)).unwrap()
    };
    let loss = |end_to_end, phase| plain(end_to_end).loss(phase, &batch(), &step()).unwrap().to_scalar::<f32>();
    let (pretrain, finetune) = (loss(false, &PHASES[0]).unwrap(), loss(false, &PHASES[1]).unwrap());
    let both = loss(true, &PHASES[1]).unwrap();
    assert!((both - pretrain - finetune).abs() < 1e-5, "{both} is not {pretrain} + {finetune}");
    assert!(pretrain > 0.1 && finetune > 0.1);
}

/// M^t and M^v are complements: at every position the mixed sequences together hold each modality's embedding once.
#[test]
fn mixed_sequences_are_complements() {
    for names in [&["text", "image"][..], &["text", "image", "sound"][..]] {
        let model = Mp4sr::new(config(), transformer(), modalities(names), &Device::Cpu, RngKey::new(3)).unwrap();
        let batch = batch();
        let shift = mixup(batch.items.len(), names.len(), 0.5, RngKey::new(8));
        assert!(shift.contains(&0) && shift.iter().any(|&s| s > 0));
        let (_, values) = trace::collect(|| model.pretrain_loss(&batch, &shift, None).unwrap());
        let mixed = values["mixed"].to_vec2::<f32>().unwrap();
        let z = model.item_embeddings(PRETRAIN, false).unwrap().to_vec2::<f32>().unwrap();
        let z: Vec<&[Vec<f32>]> = z.chunks(ITEMS).collect();
        let (spaces, tokens) = (names.len(), batch.items.len());
        for (token, &item) in batch.items.iter().enumerate() {
            let mut left: Vec<&Vec<f32>> = z.iter().map(|z| &z[item as usize - 1]).collect();
            for m in 0..spaces {
                let found = &mixed[m * tokens + token];
                let close = |a: &Vec<f32>| a.iter().zip(found).all(|(a, b)| (a - b).abs() < 1e-5);
                let at = left.iter().position(|a| close(a)).expect("an embedding of this item, used once");
                left.remove(at);
                let own = close(&z[m][item as usize - 1]);
                assert!(own || shift[token] > 0, "position {token} was swapped without a shift");
            }
            assert!(left.is_empty());
        }
    }
}
