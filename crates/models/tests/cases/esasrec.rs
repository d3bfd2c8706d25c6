use mp4sr_models::esasrec::Pairs;
use mp4sr_models::{ESasRec, Model, RngKey, trace};
use mp4sr_ops::PackedOffsets;

use super::{compare_scores, compare_tokens, graph_data, histories};
use crate::common::GoldenCase;
use crate::{cut, numbers, set_all, transformer};

pub fn compare(case: &mut GoldenCase) {
    let is_on = |name: &str| case.switch(name) == "on";
    let config = serde_json::json!({
        "layers": case.switch("layers"),
        "loss": case.switch("loss"),
        "negatives": case.size("negatives"),
        "log_q": is_on("log_q"),
        "calibration": case.scalar("calibration"),
        "positions": case.switch("positions"),
        "feed_forward_bias": is_on("feed_forward_bias"),
        "final_norm": is_on("final_norm"),
    });
    let config = serde_json::from_value(config).unwrap();
    let model = ESasRec::new(config, transformer(case), &graph_data(case), RngKey::new(1)).unwrap();
    set_all(case, &model);
    let histories = histories(case);
    let lengths: Vec<usize> = histories.iter().map(Vec::len).collect();
    let negatives = if case.has("in.negatives") { numbers(case, "in.negatives") } else { Vec::new() };
    let offsets = PackedOffsets::from_lengths(lengths.clone()).unwrap();
    let targets = cut(case, "in.follow", &lengths).concat();
    let pairs = Pairs { offsets: offsets.clone(), items: histories.concat(), targets, negatives };
    let (loss, mut values) = trace::collect(|| model.sequence_loss(&pairs, None).unwrap());
    case.compare_tensor("out.loss_rows", &values.remove("loss_rows").unwrap());
    for (name, value) in &values {
        compare_tokens(case, &format!("out.{name}"), value, &offsets);
    }
    // Ranking computes the top layer only at the last tokens.
    compare_scores(case, "out.scores", &model);
    case.compare_training(model.parameters(), &loss);
}
