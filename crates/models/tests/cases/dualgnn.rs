use mp4sr_models::dualgnn::{Neighbours, neighbour_matrix, neighbours};
use mp4sr_models::{Data, DualGnn, Model, RngKey, trace};

use super::graph_data;
use crate::common::GoldenCase;
use crate::{compare_ranks, compare_values, numbers, score, set_all, users};

/// Compares the lists of neighbours that the model computes with those of the case.
fn compare_graph(case: &mut GoldenCase, prefix: &str, data: &Data, k: usize) {
    let lists = neighbours(data, k);
    let mut offsets = vec![0];
    lists.iter().for_each(|list| offsets.push(offsets[offsets.len() - 1] + list.len() as i64));
    let pairs: Vec<(u32, u32)> = lists.iter().flatten().copied().collect();
    compare_ranks(case, &format!("{prefix}.offsets"), &offsets);
    let users: Vec<i64> = pairs.iter().map(|&(user, _)| i64::from(user) + 1).collect();
    compare_ranks(case, &format!("{prefix}.users"), &users);
    let counts: Vec<i64> = pairs.iter().map(|&(_, count)| i64::from(count)).collect();
    compare_ranks(case, &format!("{prefix}.counts"), &counts);
    // The product with the identity matrix gives the weight of each neighbour.
    let matrix = neighbour_matrix(&lists).unwrap();
    let device = candle_core::Device::Cpu;
    let eye = candle_core::Tensor::eye(lists.len(), candle_core::DType::F32, &device).unwrap();
    let dense = mp4sr_ops::sparse_product(&matrix, &eye).unwrap().to_vec2::<f32>().unwrap();
    let weights: Vec<f32> = lists
        .iter()
        .zip(dense)
        .flat_map(|(list, row)| list.iter().map(move |&(user, _)| row[user as usize]).collect::<Vec<_>>())
        .collect();
    let name = format!("{prefix}.weights");
    if prefix.starts_with("out.") {
        case.compare(&name, &weights, |_| true);
    } else if let Some((given, _)) = case.floats.get(&name) {
        assert!(
            given.len() == weights.len() && given.iter().zip(&weights).all(|(a, b)| (a - b).abs() < 1e-5),
            "{name}"
        );
    }
}

pub fn compare(case: &mut GoldenCase) {
    let data = graph_data(case);
    let k = case.size("neighbours");
    if case.meta["stage"] == "graph" {
        return compare_graph(case, "out.neighbours", &data, k);
    }
    let config = serde_json::json!({
        "width": case.size("model"),
        "neighbours": k,
        "neighbour_lists": case.switch("neighbours"),
        "user_fusion": case.switch("user_fusion"),
        "reg_weight": case.scalar("reg_weight"),
    });
    let config = serde_json::from_value(config).unwrap();
    let model = DualGnn::new(config, &data, RngKey::new(1)).unwrap();
    set_all(case, &model);
    if case.meta["stage"] == "score" {
        if case.has("in.neighbours.offsets") {
            compare_graph(case, "in.neighbours", &data, k);
        }
        return score(case, &model);
    }
    let lists: Neighbours = if case.switch("neighbours") == "resampled" {
        let (users, counts) = (numbers(case, "in.neighbours"), numbers(case, "in.counts"));
        let entries: Vec<(u32, u32)> = users.into_iter().zip(counts).collect();
        let real = |list: &[(u32, u32)]| {
            list.iter().filter(|entry| entry.0 > 0).map(|&(user, count)| (user - 1, count)).collect()
        };
        entries.chunks(k).map(real).collect()
    } else {
        compare_graph(case, "in.neighbours", &data, k);
        neighbours(&data, k)
    };
    let graph = neighbour_matrix(&lists).unwrap();
    let (positives, negatives) = (numbers(case, "in.positives"), numbers(case, "in.negatives"));
    let (_, values) = trace::collect(|| model.bpr_loss(&graph, &users(case), &positives, &negatives).unwrap());
    compare_values(case, &values);
    // Without a trace, as in training, only the vectors of the batch's users are computed.
    let loss = model.bpr_loss(&graph, &users(case), &positives, &negatives).unwrap();
    case.compare_training(model.parameters(), &loss);
}
