//! Compares the baselines with tensors of independent PyTorch references (`MP4SR_GOLDEN_BASELINES`, by default the project's own
//! `tests/golden/baselines`): every result, every gradient, every parameter after a step of Adam, every rank.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a test fails by panicking")]

mod cases;
mod common;

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Tensor;
use common::{GoldenCase, case_files, device};
use mp4sr_models::cl4srec::Operation;
use mp4sr_models::lightgcn::Config;
use mp4sr_models::{Batch, Cl4sRec, Data, LightGcn, Model, Query, RngKey, TrainingSequences, TransformerConfig, trace};

/// The training set of a case of the graph models.
fn training(case: &GoldenCase) -> TrainingSequences {
    let items: Vec<u32> = case.int("in.train.items").iter().map(|&item| item as u32).collect();
    let offsets = case.int("in.train.offsets").windows(2);
    let users: Vec<&[u32]> = offsets.map(|user| &items[user[0] as usize..user[1] as usize]).collect();
    TrainingSequences::new(users)
}

fn numbers(case: &GoldenCase, name: &str) -> Vec<u32> {
    case.int(name).iter().map(|&number| number as u32).collect()
}

/// The users of a case, from 0.
fn users(case: &GoldenCase) -> Vec<u32> {
    numbers(case, "in.users").iter().map(|user| user - 1).collect()
}

fn set_all(case: &GoldenCase, model: &dyn Model) {
    let names: Vec<&String> = case.floats.keys().filter(|name| name.starts_with("param.")).collect();
    assert_eq!(names.len(), model.parameters().names().count(), "as many parameters as the reference has");
    for name in names {
        let (values, shape) = case.floats[name].clone();
        model.parameters().set(name.trim_start_matches("param."), &values, &shape).unwrap();
    }
}

/// Sets the parameters of the case, which are those that `phase` uses.
fn set_used(case: &GoldenCase, model: &dyn Model, phase: &str) {
    let phase = model.phases().iter().find(|own| own.name == phase).unwrap();
    let used = model.parameters().names().filter(|name| model.uses(phase, name)).map(|name| format!("param.{name}"));
    let missing: Vec<String> = used.filter(|name| !case.floats.contains_key(name)).collect();
    assert!(missing.is_empty(), "the reference lacks {missing:?}");
    for (name, (values, shape)) in case.floats.iter().filter(|(name, _)| name.starts_with("param.")) {
        model.parameters().set(name.trim_start_matches("param."), values, shape).unwrap();
    }
}

fn compare_values(case: &mut GoldenCase, values: &BTreeMap<String, Tensor>) {
    for (name, value) in values {
        case.compare_if_present(&format!("out.{name}"), value);
    }
}

/// Ranks of the targets among the items that are not removed.
fn ranks(scores: &Tensor, targets: &[u32], removed: impl Fn(usize, u32) -> bool) -> Vec<i64> {
    let rows = scores.to_vec2::<f32>().unwrap();
    let each = rows.iter().zip(targets).enumerate();
    each.map(|(row, (scores, &target))| {
        i64::from(mp4sr_protocol::rank(scores, target, |item| removed(row, item)).unwrap())
    })
    .collect()
}

fn compare_ranks(case: &mut GoldenCase, name: &str, found: &[i64]) {
    assert_eq!(case.int(name), found, "{name}");
    case.compared.insert(name.to_owned());
}

fn lightgcn(case: &mut GoldenCase) {
    let regularisation = case.meta["switches"]["regularisation"].as_str().unwrap_or("squared");
    let config = serde_json::json!({
        "width": case.size("model"),
        "layers": case.scalar("layers") as usize,
        "reg_weight": case.meta["scalars"]["reg_weight"].as_f64().unwrap_or(0.0),
        "regularisation": regularisation,
    });
    let config: Config = serde_json::from_value(config).unwrap();
    let data = Data {
        items: case.size("items"),
        training: training(case).into(),
        modalities: Vec::new(),
        categories: None,
        device: device(),
        group: None,
    };
    let model = LightGcn::new(config, &data, RngKey::new(1)).unwrap();
    set_all(case, &model);
    if case.meta["stage"] == "score" {
        return score(case, &model);
    }
    let (positives, negatives) = (numbers(case, "in.positives"), numbers(case, "in.negatives"));
    let (loss, values) = trace::collect(|| model.bpr_loss(&users(case), &positives, &negatives).unwrap());
    compare_values(case, &values);
    case.compare_training(model.parameters(), &loss);
}

/// The rows of a padded `[B, n]`, cut to their lengths.
fn cut(case: &GoldenCase, name: &str, lengths: &[usize]) -> Vec<Vec<u32>> {
    let n = case.ints[name].1[1];
    let values = case.int(name);
    lengths.iter().enumerate().map(|(j, &l)| values[j * n..][..l].iter().map(|&x| x as u32).collect()).collect()
}

fn transformer(case: &GoldenCase) -> TransformerConfig {
    TransformerConfig {
        width: case.size("model"),
        layers: case.size("layers"),
        heads: case.size("heads"),
        feed_forward: case.size("feed_forward"),
        max_sequence_length: case.size("positions"),
        dropout: 0.0,
    }
}

fn cl4srec(case: &mut GoldenCase) {
    let config = serde_json::json!({
        "crop": case.scalar("crop"),
        "mask": case.scalar("mask"),
        "reorder": case.scalar("reorder"),
        "lambda": case.scalar("lambda"),
        "temperature": case.scalar("tau"),
        "similarity": case.switch("similarity"),
    });
    let items = case.size("items");
    let config = serde_json::from_value(config).unwrap();
    let model = Cl4sRec::new(config, transformer(case), items, &device(), RngKey::new(1)).unwrap();
    set_all(case, &model);
    let lengths: Vec<usize> = case.int("in.lengths").iter().map(|&length| length as usize).collect();
    let histories = cut(case, "in.items", &lengths);
    let targets = numbers(case, "in.targets");
    let samples = histories.iter().map(Vec::as_slice).zip(targets.iter().copied());
    let batch = Batch::of_histories(samples, case.size("positions")).unwrap();

    let operation = |view: usize, j: usize| {
        let length = lengths[j];
        let own = |name: &str| cut(case, &format!("in.view.{view}.{name}"), &lengths)[j].clone();
        let begin = case.int(&format!("in.view.{view}.begin"))[j] as usize;
        match case.int(&format!("in.view.{view}.operation"))[j] {
            0 => {
                let kept = ((length as f64 * case.scalar("crop")) as usize).max(1);
                Operation::Crop(begin..begin + kept)
            }
            1 => Operation::Mask((0..length).filter(|&position| own("masked")[position] == 1).collect()),
            2 => Operation::Reorder(own("order").iter().map(|&position| position as usize).collect()),
            _ => Operation::Keep,
        }
    };
    let operations: Vec<[Operation; 2]> = (0..lengths.len()).map(|j| [operation(1, j), operation(2, j)]).collect();
    let views = model.views(&batch, Some(&operations)).unwrap();
    for view in 0..2 {
        for j in 0..lengths.len() {
            let found = &views.rows[views.offsets.range((view + 1) * lengths.len() + j)];
            let expected = &cut(case, &format!("in.view.{}.items", view + 1), &vec![found.len(); lengths.len()])[j];
            let found: Vec<u32> = found.iter().map(|row| row + 1).collect();
            assert_eq!(found, *expected, "view {} of history {j}", view + 1);
        }
    }
    let (_, values) = trace::collect(|| model.loss_of_views(&views, &targets, None).unwrap());
    compare_values(case, &values);
    for (name, value) in &values {
        let key = match name.split_once('.') {
            None if name == "input" => "out.sequence.input".to_owned(),
            Some((l, "layer")) => format!("out.sequence.layer.{l}"),
            _ => continue,
        };
        if case.has(&key) {
            let histories = value.narrow(0, 0, batch.items.len()).unwrap();
            case.compare_packed(&key, &histories, &batch.offsets);
        }
    }
    let scorer = model.scorer(&model.phases()[0]).unwrap();
    let queries: Vec<Query<'_>> = histories.iter().map(|history| Query::of_history(history)).collect();
    let logits = scorer.queries(&queries).unwrap().matmul(&scorer.items().t().unwrap()).unwrap();
    case.compare_if_present("out.logits", &logits);
    compare_ranks(case, "out.ranks", &ranks(&logits, &targets, |_, _| false));
    // Without a trace, as in training, the top layer is computed only at the last tokens.
    let loss = model.loss_of_views(&views, &targets, None).unwrap();
    case.compare_training(model.parameters(), &loss);
}

/// Compares the scores of users, by the scorer that evaluation uses, and the ranks of their targets.
fn score(case: &mut GoldenCase, model: &dyn Model) {
    let last = model.phases().last().unwrap();
    let (scorer, values) = trace::collect(|| model.scorer(last).unwrap());
    compare_values(case, &values);
    let users = users(case);
    let queries: Vec<Query<'_>> = users.iter().map(|&user| Query { user: Some(user), history: &[] }).collect();
    let scores = scorer.queries(&queries).unwrap().matmul(&scorer.items().t().unwrap()).unwrap();
    case.compare_tensor("out.scores", &scores);
    let (targets, removed) = (numbers(case, "in.targets"), case.int("in.removed").to_vec());
    let items = case.size("items");
    let is_removed = |row: usize, item: u32| removed[row * items + item as usize - 1] == 1;
    compare_ranks(case, "out.ranks", &ranks(&scores, &targets, is_removed));
    compare_ranks(case, "out.ranks_all", &ranks(&scores, &targets, |_, _| false));
}

/// Compares one case, and returns a line about it.
fn compare(path: &Path) -> String {
    let mut case = GoldenCase::read(path);
    cases::check_known(&case);
    match case.meta["model"].as_str().unwrap() {
        "cl4srec" => cl4srec(&mut case),
        "clcrec" => cases::clcrec::compare(&mut case),
        "difsr" => cases::difsr::compare(&mut case),
        "dualgnn" => cases::dualgnn::compare(&mut case),
        "esasrec" => cases::esasrec::compare(&mut case),
        "fdsa" => cases::fdsa::compare(&mut case),
        "grcn" => cases::grcn::compare(&mut case),
        "lightgcn" => lightgcn(&mut case),
        "masr" => cases::masr::compare(&mut case),
        "mvrnn" => cases::mvrnn::compare(&mut case),
        "s3rec" => cases::s3rec::compare(&mut case),
        "sine" => cases::sine::compare(&mut case),
        "unisrec" => cases::unisrec::compare(&mut case),
        other => panic!("`{other}` is known but not compared"),
    }
    case.finish(&path.file_stem().unwrap().to_string_lossy())
}

#[test]
fn golden_cases_of_the_baselines_agree_with_the_reference() {
    let mut failed = Vec::new();
    for path in case_files("MP4SR_GOLDEN_BASELINES", "tests/golden/baselines") {
        // A case that fails prints its reason and does not hide the others.
        match std::panic::catch_unwind(|| compare(&path)) {
            Ok(line) => println!("{line}"),
            Err(_) => failed.push(path),
        }
    }
    assert!(failed.is_empty(), "these cases fail: {failed:?}");
}
