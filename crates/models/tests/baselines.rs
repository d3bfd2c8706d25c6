//! The baselines against tensors of independent PyTorch references (`MP4SR_GOLDEN_BASELINES`, by default the project's own
//! `tests/golden/baselines`): every result, every gradient, every parameter after a step of Adam, every rank.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;

use candle_core::Tensor;
use common::{GoldenCase, case_files};
use mp4sr_models::lightgcn::Config;
use mp4sr_models::{Data, LightGcn, Model, Query, RngKey, TrainingSequences, trace};

/// Models whose cases are compared. Cases of a model that is not built yet are counted, those of an unknown one fail.
const COMPARED: [&str; 1] = ["lightgcn"];
const NOT_BUILT: [&str; 11] =
    ["cl4srec", "clcrec", "difsr", "dualgnn", "fdsa", "grcn", "masr", "mvrnn", "s3rec", "sine", "unisrec"];

/// The training part of a case of the graph models.
fn training(case: &GoldenCase) -> TrainingSequences {
    let items: Vec<u32> = case.int("in.train.items").iter().map(|&item| item as u32).collect();
    let offsets = case.int("in.train.offsets").windows(2);
    let users: Vec<&[u32]> = offsets.map(|user| &items[user[0] as usize..user[1] as usize]).collect();
    TrainingSequences::new(users)
}

fn numbers(case: &GoldenCase, name: &str) -> Vec<u32> {
    case.int(name).iter().map(|&number| number as u32).collect()
}

/// Users from 0.
fn users(case: &GoldenCase) -> Vec<u32> {
    numbers(case, "in.users").iter().map(|user| user - 1).collect()
}

fn set_all(case: &GoldenCase, model: &dyn Model) {
    let names: Vec<&String> = case.floats.keys().filter(|name| name.starts_with("param.")).collect();
    assert_eq!(names.len(), model.parameters().iter().count(), "as many parameters as the reference has");
    for name in names {
        let (values, shape) = case.floats[name].clone();
        model.parameters().set(name.trim_start_matches("param."), values, &shape).unwrap();
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
    let data = Data { items: case.size("items"), training: training(case).into(), modalities: Vec::new() };
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

/// Scores of users through the scorer that evaluation uses.
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

#[test]
fn golden_cases_of_the_baselines_agree_with_the_reference() {
    let mut not_built = 0;
    for path in case_files("MP4SR_GOLDEN_BASELINES", "tests/golden/baselines") {
        let mut case = GoldenCase::read(&path);
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        match case.meta["model"].as_str().unwrap_or_default() {
            "lightgcn" => lightgcn(&mut case),
            other if NOT_BUILT.contains(&other) => {
                not_built += 1;
                continue;
            }
            other => panic!("{name}: `{other}` is not one of {COMPARED:?}"),
        }
        println!("{}", case.finish(&name));
    }
    if not_built > 0 {
        println!("cases of models that are not built yet: {not_built}");
    }
}
