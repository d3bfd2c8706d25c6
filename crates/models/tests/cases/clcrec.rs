use mp4sr_models::clcrec::Sampled;
use mp4sr_models::{ClcRec, Model, Query, RngKey, trace};

use super::{compare_numbers, graph_data};
use crate::common::{GoldenCase, flat};
use crate::{compare_ranks, compare_values, numbers, ranks, set_all, users};

pub fn compare(case: &mut GoldenCase) {
    let number = |name: &str, default: f64| case.meta["scalars"][name].as_f64().unwrap_or(default);
    let config = serde_json::json!({
        "width": case.size("model"),
        "hidden": case.size("hidden"),
        "lambda": case.scalar("lambda"),
        "temperature": case.scalar("tau"),
        "negatives": case.size("negatives"),
        "reg_weight": case.scalar("reg_weight"),
        "cold_events": number("cold", 10.0) as usize,
        "candidates": case.meta["switches"]["candidates"].as_str().unwrap_or("all"),
    });
    let config = serde_json::from_value(config).unwrap();
    let model = ClcRec::new(config, &graph_data(case), RngKey::new(1)).unwrap();
    set_all(case, &model);
    if case.meta["stage"] == "score" {
        return score(case, &model);
    }
    let replaced = case.int("in.replaced").iter().map(|&replaced| replaced == 1).collect();
    let sampled = Sampled { items: numbers(case, "in.items"), replaced };
    let (loss, values) = trace::collect(|| model.event_loss(&users(case), &sampled).unwrap());
    compare_values(case, &values);
    case.compare_training(model.parameters(), &loss);
}

fn score(case: &mut GoldenCase, model: &ClcRec) {
    let (scorer, mut values) = trace::collect(|| model.scorer(&model.phases()[0]).unwrap());
    for name in ["events", "cold"] {
        compare_numbers(case, &format!("out.{name}"), &values.remove(name).unwrap());
    }
    let cold_only = case.switch("candidates") == "cold";
    for name in ["user_vectors", "item_vectors"] {
        let width = case.size("model");
        let found = values.remove(name).unwrap().narrow(1, 0, width).unwrap();
        case.compare_tensor(&format!("out.{name}"), &found);
    }
    compare_values(case, &values);
    let queries: Vec<Query<'_>> =
        users(case).into_iter().map(|user| Query { user: Some(user), history: &[] }).collect();
    let scores = scorer.queries(&queries).unwrap().matmul(&scorer.items().t().unwrap()).unwrap();
    let (items, cold) = (case.size("items"), case.int("out.cold").to_vec());
    case.compare("out.scores", &flat(&scores), |at| !cold_only || cold[at % items] == 1);
    // The scores of all items, and their ranks, are those of the vectors without the additional coordinate.
    let width = case.size("model");
    let plain = scorer.queries(&queries).unwrap().narrow(1, 0, width).unwrap().contiguous().unwrap();
    let plain = plain.matmul(&scorer.items().narrow(1, 0, width).unwrap().contiguous().unwrap().t().unwrap()).unwrap();
    case.compare_tensor("out.scores", &plain);
    let (targets, removed) = (numbers(case, "in.targets"), case.int("in.removed").to_vec());
    let is_removed = |row: usize, item: u32| removed[row * items + item as usize - 1] == 1;
    compare_ranks(case, "out.ranks", &ranks(&scores, &targets, is_removed));
    compare_ranks(case, "out.ranks_all", &ranks(&plain, &targets, |_, _| false));
}
