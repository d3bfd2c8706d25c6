use candle_core::{DType, Tensor};
use mp4sr_models::masr::{Cloze, Memory};
use mp4sr_models::{Buffer, BufferValues, Masr, Model, Query, RngKey, trace};
use mp4sr_ops::PackedOffsets;

use super::{compare_numbers, compare_same_shape, compare_tokens, data};
use crate::common::{GoldenCase, device, flat};
use crate::{compare_ranks, cut, numbers, ranks, set_all, transformer};

fn build(case: &GoldenCase) -> Masr {
    let number = |name: &str, default: f64| case.meta["scalars"][name].as_f64().unwrap_or(default);
    let size = |name: &str, default: usize| case.meta["dims"][name].as_u64().map_or(default, |size| size as usize);
    let switch = |name: &str, default: &str| case.meta["switches"][name].as_str().unwrap_or(default).to_owned();
    let most = if case.has("in.tail_bank.items") {
        let items = case.int("in.tail_bank.items");
        items.iter().map(|item| items.iter().filter(|other| *other == item).count()).max().unwrap_or(1)
    } else {
        size("tail_slots", 7)
    };
    let config = serde_json::json!({
        "encoder": switch("encoder", "pre_norm"),
        "blocks": switch("blocks", "stacked"),
        "top_tail": number("top_tail", 7.0) as usize,
        "top_head": number("top_head", 1.0) as usize,
        "margin": number("margin", 0.5),
        "omega": number("omega", 1.0),
        "head_bank": size("head_bank", 100),
        "tail_slots": most,
    });
    let config = serde_json::from_value(config).unwrap();
    let transformer = if case.meta["stage"] == "state" {
        mp4sr_models::TransformerConfig { width: case.size("model"), ..Default::default() }
    } else {
        transformer(case)
    };
    let model = Masr::new(config, transformer, &data(case), RngKey::new(1)).unwrap();
    if !case.has("in.is_head") {
        return model;
    }
    let is_head = case.int("in.is_head").iter().map(|&head| head == 1).collect();
    model.with_head_items(is_head)
}

/// Puts the case's entries and centroids into the banks.
fn fill(case: &GoldenCase, model: &Masr) {
    let buffers = model.buffers().unwrap();
    let mut all = buffers.snapshot();
    let d = case.size("model");
    let (features, items) = (case.floats["in.tail_bank.features"].0.clone(), numbers(case, "in.tail_bank.items"));
    let slots = all["tail_bank.slots"].shape[1];
    let mut written = vec![0i64; case.size("items")];
    let mut values = vec![0.0; all["tail_bank.slots"].shape.iter().product()];
    for (item, state) in items.iter().zip(features.chunks(d)) {
        let row = *item as usize - 1;
        let slot = row * slots + written[row] as usize;
        values[slot * d..][..d].copy_from_slice(state);
        written[row] += 1;
    }
    let mut set = |name: &str, values: BufferValues| {
        let shape = all[name].shape.clone();
        all.insert(name.to_owned(), Buffer { values, shape });
    };
    set("tail_bank.slots", BufferValues::F32(values));
    set("tail_bank.written", BufferValues::I64(written));
    set("centroid.features", BufferValues::F32(case.floats["in.centroid.features"].0.clone()));
    set("centroid.filled", BufferValues::I64(case.int("in.centroid.filled").to_vec()));
    buffers.restore(all).unwrap();
    model.set_epoch(1000).unwrap();
}

pub fn compare(case: &mut GoldenCase) {
    let model = build(case);
    match case.meta["stage"].as_str().unwrap() {
        "state" => state(case, &model),
        "score" => score(case, &model),
        _ => train(case, &model),
    }
}

fn state(case: &mut GoldenCase, model: &Masr) {
    for batch in 1..=case.size("batches") {
        let states = case.tensor(&format!("in.{batch}.states"));
        model.write_states(&states, &numbers(case, &format!("in.{batch}.labels"))).unwrap();
        for (name, buffer) in model.buffers().unwrap().snapshot() {
            let key = format!("out.{batch}.{name}");
            match buffer.values {
                BufferValues::F32(values) if case.has(&key) => case.compare(&key, &values, |_| true),
                BufferValues::I64(values) if case.has(&key) => compare_ranks(case, &key, &values),
                _ => assert_eq!(name, "epoch"),
            }
        }
    }
}

fn score(case: &mut GoldenCase, model: &Masr) {
    set_all(case, model);
    fill(case, model);
    let n = case.ints["in.history"].1[1];
    let all = case.int("in.history").to_vec();
    let lengths: Vec<usize> = all.chunks(n).map(|row| row.iter().filter(|&&item| item > 0).count()).collect();
    let histories = cut(case, "in.history", &lengths);
    let queries: Vec<Query<'_>> = histories.iter().map(|history| Query::of_history(history)).collect();
    let scorer = model.scorer(&model.phases()[0]).unwrap();
    let (users, mut values) = trace::collect(|| scorer.queries(&queries).unwrap());
    compare_retrieved(case, &mut values);
    compare_same_shape(case, &values);
    case.compare_tensor("out.users", &users);
    case.compare_tensor("out.items", scorer.items());
    let scores = users.matmul(&scorer.items().t().unwrap()).unwrap();
    case.compare_tensor("out.scores", &scores);
    compare_ranks(case, "out.ranks", &ranks(&scores, &numbers(case, "in.targets"), |_, _| false));
}

fn compare_retrieved(case: &mut GoldenCase, values: &mut std::collections::BTreeMap<String, Tensor>) {
    for name in ["tail_items", "head_items", "memory_push_pairs"] {
        if let Some(value) = values.remove(name).filter(|_| case.ints.contains_key(&format!("out.{name}"))) {
            compare_numbers(case, &format!("out.{name}"), &value);
        }
    }
}

fn train(case: &mut GoldenCase, model: &Masr) {
    let with_memory = case.switch("memory") == "on";
    if with_memory {
        set_all(case, model);
    } else {
        // A case of the warm-up has only the parameters that x needs.
        for (name, (values, shape)) in case.floats.iter().filter(|(name, _)| name.starts_with("param.")) {
            model.parameters().set(name.trim_start_matches("param."), values, shape).unwrap();
        }
    }
    let lengths: Vec<usize> = case.int("in.lengths").iter().map(|&length| length as usize).collect();
    let of_tokens = |name: &str| cut(case, name, &lengths).concat();
    let offsets = PackedOffsets::from_lengths(lengths.clone()).unwrap();
    let cloze = Cloze { offsets: offsets.clone(), items: of_tokens("in.items"), labels: of_tokens("in.labels") };
    let negatives = if with_memory {
        fill(case, model);
        numbers(case, "in.negatives")
    } else {
        Vec::new()
    };
    let memory = if with_memory { Memory::Given(&negatives) } else { Memory::WarmUp };
    let (_, mut values) = trace::collect(|| model.cloze_loss(&cloze, memory, None).unwrap());
    for l in 0..case.size("layers") {
        let post_norm = values.remove(&format!("{l}.layer"));
        if let Some(value) = values.remove(&format!("sequence.layer.{l}")).or(post_norm) {
            compare_tokens(case, &format!("out.sequence.layer.{l}"), &value, &offsets);
        }
    }
    compare_tokens(case, "out.sequence.input", &values.remove("sequence.input").unwrap(), &offsets);
    let is_head = |label: &u32| *label == 0 || case.int("in.is_head")[*label as usize - 1] == 1;
    if with_memory && cloze.labels.iter().all(is_head) {
        // The memory loss is zero because no target is a tail item.
        for name in ["memory_pull", "memory_push", "memory_push_pairs"] {
            values.insert(name.to_owned(), Tensor::zeros((), DType::F32, &device()).unwrap());
        }
    }
    compare_retrieved(case, &mut values);
    compare_same_shape(case, &values);
    assert!(flat(&values["hidden"]).iter().all(|value| value.is_finite()));
    let loss = model.cloze_loss(&cloze, memory, None).unwrap();
    case.compare_training(model.parameters(), &loss);
}
