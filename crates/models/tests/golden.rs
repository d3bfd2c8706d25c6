//! Compares the model with tensors of an independent PyTorch reference (`MP4SR_GOLDEN`, by default the project's own `tests/golden`): every
//! result, every gradient, every parameter after a step of Adam.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{Tensor, Var};
use mp4sr_models::augment::close_up;
use mp4sr_models::mp4sr::{Config, PoolingRows, Projection};
use mp4sr_models::{
    Batch, FINETUNE, Modality, Model, Mp4sr, PRETRAIN, Parameters, Phase, Query, Ragged, RngKey, Transformer,
    TransformerConfig, trace,
};
use mp4sr_ops::{Adam, PackedOffsets, Rows};

use common::{GoldenCase, case_files, device, flat, is_bf16, run_in_bf16};

/// The methods that only cases of MP4SR need.
trait Mp4srCase {
    fn transformer_config(&self) -> TransformerConfig;
    fn model(&self) -> Mp4sr;
    fn load(&self, parameters: &Parameters);
    fn lengths(&self) -> Vec<usize>;
    fn rows(&self, name: &str, lengths: &[usize]) -> Vec<Vec<u32>>;
    fn batch(&self, name: &str, lengths: &[usize]) -> Batch;
}

impl Mp4srCase for GoldenCase {
    fn transformer_config(&self) -> TransformerConfig {
        TransformerConfig {
            width: self.size("model"),
            layers: self.size("layers"),
            heads: self.size("heads"),
            feed_forward: self.size("feed_forward"),
            max_sequence_length: self.size("positions"),
            dropout: 0.2,
        }
    }

    fn model(&self) -> Mp4sr {
        assert_eq!((self.scalar("cosine_eps"), self.scalar("layer_norm_eps")), (1e-12, 1e-12));
        let names = self.names("modalities");
        let features = |m: &String| {
            let (values, shape) = self.floats[&format!("in.features.{m}.values")].clone();
            let offsets: Vec<usize> =
                self.int(&format!("in.features.{m}.offsets")).iter().map(|&o| o as usize).collect();
            Modality { name: m.clone(), features: Ragged::new(values, shape[1], &offsets).unwrap() }
        };
        // The reference has other names for two values of this key.
        let false_negatives = match self.switch("same_target") {
            "leave_out" => "exclude",
            "zero" => "zero_logit",
            other => other,
        };
        let switches = &self.meta["switches"];
        let config = serde_json::json!({
            "attention": self.size("attention"),
            "experts": self.size("experts"),
            "expert_dropout": 0.0,
            "temperature": self.scalar("tau"),
            "lambda": self.scalar("lambda"),
            "logit_modalities": switches["logit_modalities"],
            "pooling_gradient": self.switch("pooling_gradient"),
            "pooling_rows": self.switch("pooling_rows"),
            "padded_rows": self.meta["scalars"]["pad_rows"].as_u64().unwrap_or(1),
            "projection": self.switch("projection"),
            "false_negatives": false_negatives,
            "cmcl_direction": switches["cmcl_direction"].as_str().unwrap_or("symmetric"),
            "logits": self.switch("logits"),
        });
        let mut config: Config = serde_json::from_value(config).unwrap();
        // A file holds the parameters of its phase alone.
        let finetunes = self.meta["stage"] == "finetune";
        config.id_embedding = finetunes && switches["id_embedding"].as_bool().unwrap();
        if self.meta["stage"] != "pretrain" {
            config.projection = Projection::Off;
        }
        assert!(config.pooling_rows == PoolingRows::Masked || self.scalar("pad_rows") >= 1.0);
        let modalities = names.iter().map(features).collect();
        let model = Mp4sr::new(config, self.transformer_config(), modalities, &device(), RngKey::new(1)).unwrap();
        self.load(model.parameters());
        model
    }

    /// Sets every parameter. The biases of the pooling are skipped: they cancel in the softmax, and the model has none.
    fn load(&self, parameters: &Parameters) {
        let mut open: BTreeSet<String> = parameters.names().map(str::to_owned).collect();
        if self.meta["stage"] == "encoder" {
            open.retain(|name| name.starts_with("encoder."));
        }
        for (key, (values, shape)) in &self.floats {
            let Some(name) = key.strip_prefix("param.") else { continue };
            if name.ends_with("pool.b1") || name.ends_with("pool.b2") {
                continue;
            }
            parameters.set(name, values, shape).unwrap();
            open.remove(name);
        }
        assert!(open.is_empty(), "parameters without a value: {open:?}");
    }

    fn lengths(&self) -> Vec<usize> {
        self.int("in.lengths").iter().map(|&l| l as usize).collect()
    }

    /// The rows of a padded `[B, n]`, cut to their lengths.
    fn rows(&self, name: &str, lengths: &[usize]) -> Vec<Vec<u32>> {
        let n = self.ints[name].1[1];
        let values = self.int(name);
        lengths.iter().enumerate().map(|(j, &l)| values[j * n..][..l].iter().map(|&x| x as u32).collect()).collect()
    }

    fn batch(&self, name: &str, lengths: &[usize]) -> Batch {
        let targets = self.int("in.targets").iter().map(|&t| t as u32);
        let rows = self.rows(name, lengths);
        Batch::of_histories(rows.iter().map(Vec::as_slice).zip(targets), self.size("positions")).unwrap()
    }
}

fn encoder(case: &mut GoldenCase) {
    let model = case.model();
    let (z, values) = trace::collect(|| model.item_embeddings(PRETRAIN, true).unwrap());
    let mut loss = Vec::new();
    for (m, name) in case.names("modalities").iter().enumerate() {
        let z = z.narrow(0, m * model.item_count(), model.item_count()).unwrap();
        loss.push((z * case.tensor(&format!("in.cotangent.{name}"))).unwrap().sum_all().unwrap());
    }
    for (name, value) in values {
        case.compare_tensor(&format!("out.{name}"), &value);
    }
    case.compare_training(model.parameters(), &Tensor::stack(&loss, 0).unwrap().sum_all().unwrap());
}

fn transformer(case: &mut GoldenCase) {
    let mut parameters = Parameters::new(&device());
    let model = Transformer::new(&mut parameters, case.transformer_config(), RngKey::new(1)).unwrap();
    case.load(&parameters);
    let lengths = case.lengths();
    let offsets = PackedOffsets::from_lengths(lengths.clone()).unwrap();
    let (padded, shape) = case.floats["in.x"].clone();
    let (n, d) = (shape[1], shape[2]);
    let packed: Vec<f32> =
        lengths.iter().enumerate().flat_map(|(j, l)| padded[j * n * d..][..l * d].to_vec()).collect();
    let x = Var::from_tensor(&Tensor::from_vec(packed, (offsets.tokens(), d), &device()).unwrap()).unwrap();

    let rows: Vec<u32> = (0..offsets.tokens() as u32).collect();
    let forward = || model.forward(Rows::new(&x, &rows), None, &offsets, None).unwrap();
    let (_, values) = trace::collect(forward);
    case.compare_packed("out.input", &values["input"], &offsets);
    let heads = case.size("heads");
    for l in 0..case.size("layers") {
        case.compare_packed(&format!("out.attention.{l}"), &values[&format!("{l}.attention")], &offsets);
        case.compare_packed(&format!("out.layer.{l}"), &values[&format!("{l}.layer")], &offsets);
        let (query, key_value) = (&values[&format!("{l}.query")], &values[&format!("{l}.key_value")]);
        let mut weights = vec![0.0; offsets.count() * heads * n * n];
        for j in 0..offsets.count() {
            for head in 0..heads {
                let range = offsets.range(j);
                let part = |t: &Tensor| {
                    let rows = t.narrow(0, range.start, range.len()).unwrap();
                    rows.narrow(1, head * d / heads, d / heads).unwrap().contiguous().unwrap()
                };
                let found = flat(&mp4sr_ops::plain::attention_weights(&part(query), &part(key_value), false).unwrap());
                for (i, row) in found.chunks(range.len()).enumerate() {
                    weights[((j * heads + head) * n + i) * n..][..range.len()].copy_from_slice(row);
                }
            }
        }
        let real = |at: usize| at / n % n < lengths[at / n / n / heads];
        case.compare(&format!("out.attention_weights.{l}"), &weights, real);
    }
    // The gradients come from the path of training, which computes the top layer only at the last tokens.
    let h = forward();
    case.compare_tensor("out.h", &h);
    let loss = (&h * case.tensor("in.cotangent")).unwrap().sum_all().unwrap();
    let gradients = loss.backward().unwrap();
    case.compare_packed("grad.in.x", gradients.get(x.as_tensor()).unwrap(), &offsets);
    case.compare_training(&parameters, &loss);
}

fn pretrain(case: &mut GoldenCase) {
    let model = case.model();
    let names = case.names("modalities");
    let lengths = case.lengths();
    let batch = case.batch("in.items", &lengths);

    let n = case.ints["in.items_before"].1[1];
    let before_lengths: Vec<usize> =
        case.int("in.items_before").chunks(n).map(|row| row.iter().filter(|&&i| i > 0).count()).collect();
    let keep: Vec<u32> = case.rows("in.keep", &before_lengths).concat();
    let closed = close_up(&case.batch("in.items_before", &before_lengths), |token| keep[token] == 1).unwrap();
    assert_eq!((closed.items, closed.offsets.last_tokens()), (batch.items.clone(), batch.offsets.last_tokens()));

    let shift: Vec<u32> = case.rows("in.shift", &lengths).concat();
    let (_, values) = trace::collect(|| model.pretrain_loss(&batch, &shift, None).unwrap());
    compare_sequences(case, &names, &batch.offsets, values);
    compare_items(case, &model, PRETRAIN);
    let loss = model.pretrain_loss(&batch, &shift, None).unwrap();
    case.compare_training(model.parameters(), &loss);
}

fn finetune(case: &mut GoldenCase) {
    let model = case.model();
    let logit_names: Vec<String> = case.meta["switches"]["logit_modalities"]
        .as_array()
        .unwrap()
        .iter()
        .map(|v| v.as_str().unwrap().to_owned())
        .collect();
    let batch = case.batch("in.items", &case.lengths());
    let (_, values) = trace::collect(|| model.finetune_loss(&batch, None).unwrap());
    compare_sequences(case, &logit_names, &batch.offsets, values);
    compare_items(case, &model, FINETUNE);

    let scorer = model.scorer(&Phase::of_prefixes(FINETUNE)).unwrap();
    let histories = case.rows("in.items", &case.lengths());
    let queries: Vec<Query<'_>> = histories.iter().map(|history| Query::of_history(history)).collect();
    let logits = scorer.queries(&queries).unwrap().matmul(&scorer.items().t().unwrap()).unwrap();
    case.compare_tensor("out.logits", &logits);
    let ranks: Vec<i64> = logits
        .to_vec2::<f32>()
        .unwrap()
        .iter()
        .zip(&batch.targets)
        .map(|(scores, &target)| i64::from(mp4sr_protocol::rank(scores, target, |_| false).unwrap()))
        .collect();
    // In bf16, items with nearly equal scores may swap ranks.
    assert!(is_bf16() || case.int("out.ranks") == ranks, "{ranks:?}");
    case.compared.insert("out.ranks".to_owned());
    drop(scorer);
    let loss = model.finetune_loss(&batch, None).unwrap();
    case.compare_training(model.parameters(), &loss);
}

/// Compares the traced values of a loss with those of the file, under their names there.
fn compare_sequences(
    case: &mut GoldenCase,
    names: &[String],
    offsets: &PackedOffsets,
    values: BTreeMap<String, Tensor>,
) {
    // Here the steps of the item encoders are those of the batch's items; `compare_items` compares those of all items.
    const OF_ITEMS: [&str; 5] = ["alpha", "pooled", "gate", "experts", "z"];
    let (tokens, count) = (offsets.tokens(), offsets.count());
    for (name, value) in
        values.into_iter().filter(|(name, _)| !OF_ITEMS.iter().any(|of| name.split('.').next() == Some(of)))
    {
        let part = |m: usize, rows: usize| value.narrow(0, m * rows, rows).unwrap();
        for (m, modality) in names.iter().enumerate() {
            let packed = match name.split_once('.') {
                None if name == "mixed" || name == "input" => Some(format!("out.sequence.{modality}.{name}")),
                Some((l, "layer")) => Some(format!("out.sequence.{modality}.layer.{l}")),
                _ => None,
            };
            if let Some(key) = packed.filter(|key| case.has(key)) {
                case.compare_packed(&key, &part(m, tokens), offsets);
            } else if name == "h" {
                case.compare_if_present(&format!("out.h.{modality}"), &part(m, count));
            }
        }
        if name != "h" {
            case.compare_if_present(&format!("out.{name}"), &value);
        }
    }
}

/// Compares the values that scoring computes for all items.
fn compare_items(case: &mut GoldenCase, model: &Mp4sr, phase: &str) {
    let (_, values) = trace::collect(|| model.item_embeddings(phase, false).unwrap());
    for (name, value) in values {
        case.compare_if_present(&format!("out.{name}"), &value);
    }
}

fn optimizer(case: &mut GoldenCase) {
    let adam = case.meta["adam"].clone();
    let get = |key: &str| adam[key].as_f64().unwrap();
    let names: Vec<String> = case.floats.keys().filter_map(|k| k.strip_prefix("param.")).map(str::to_owned).collect();
    let vars: Vec<Var> = names.iter().map(|n| Var::from_tensor(&case.tensor(&format!("param.{n}"))).unwrap()).collect();
    let mut adam = Adam::new(&vars, get("lr"), get("weight_decay"), get("clip_norm")).unwrap();
    for step in 1.. {
        if !case.has(&format!("out.grad_norm.{step}")) {
            assert!(step > 1);
            break;
        }
        // A loss whose gradient is the stored one.
        let mut terms = Vec::new();
        for (name, var) in names.iter().zip(&vars) {
            let key = format!("grad.{step}.{name}");
            if case.names("without_grad").contains(name) {
                if case.has(&key) {
                    let zeros = vec![0.0; var.elem_count()];
                    case.compare(&key, &zeros, |_| true);
                }
                continue;
            }
            terms.push((var.as_tensor() * case.tensor(&key)).unwrap().sum_all().unwrap());
            case.compared.insert(key);
        }
        let loss = Tensor::stack(&terms, 0).unwrap().sum_all().unwrap();
        let pending = adam.step(&vars, &loss.backward().unwrap(), &loss).unwrap();
        let norm = adam.finish(&pending).unwrap().norm;
        case.compare(&format!("out.grad_norm.{step}"), &[norm as f32], |_| true);
        for (name, var) in names.iter().zip(&vars) {
            let key = format!("adam.{step}.{name}");
            if case.has(&key) {
                case.compare_tensor(&key, var);
            }
        }
    }
}

fn metrics(case: &mut GoldenCase) {
    use mp4sr_protocol::{Metric, means, rank};
    let items = case.size("items");
    let (scores, removed) = (case.floats["in.scores"].0.clone(), case.int("in.removed").to_vec());
    let targets = case.int("in.targets").to_vec();
    for (prefix, remove) in [("out", false), ("out.removed", true)] {
        let ranks: Vec<u32> = scores
            .chunks(items)
            .zip(removed.chunks(items))
            .zip(&targets)
            .map(|((scores, gone), &t)| rank(scores, t as u32, |i| remove && gone[i as usize - 1] == 1).unwrap())
            .collect();
        let key = format!("{prefix}.ranks");
        assert_eq!(case.int(&key), ranks.iter().map(|&r| i64::from(r)).collect::<Vec<_>>(), "{key}");
        case.compared.insert(key);
        for k in [5, 10, 20] {
            for (name, metric) in [("recall", Metric::Recall(k)), ("ndcg", Metric::Ndcg(k))] {
                let each: Vec<f32> = ranks.iter().map(|&rank| metric.of(rank) as f32).collect();
                case.compare(&format!("{prefix}.{name}.{k}"), &each, |_| true);
                let mean = means(&ranks, &[metric])[0] as f32;
                case.compare(&format!("{prefix}.{name}.{k}.mean"), &[mean], |_| true);
            }
        }
    }
    let bad = case.floats["in.scores_bad"].0.clone();
    for (scores, &target) in bad.chunks(items).zip(case.int("in.targets_bad")) {
        assert!(rank(scores, target as u32, |_| false).is_err(), "a score that is not a number got a rank");
    }
}

#[test]
fn golden_cases_agree_with_the_reference() {
    let files = case_files("MP4SR_GOLDEN", "tests/golden");
    for path in files {
        let mut case = GoldenCase::read(&path);
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        match case.meta["stage"].as_str().unwrap_or_default() {
            "encoder" => encoder(&mut case),
            "transformer" => transformer(&mut case),
            "pretrain" => pretrain(&mut case),
            "finetune" => finetune(&mut case),
            "optimizer" => optimizer(&mut case),
            "metrics" => metrics(&mut case),
            other => panic!("{name}: unknown stage `{other}`"),
        }
        println!("{}", case.finish(&name));
    }
}

#[test]
fn golden_cases_agree_with_the_reference_in_bf16() {
    if !is_bf16() {
        run_in_bf16("golden_cases_agree_with_the_reference");
    }
}
