use mp4sr_models::{Grcn, Model, RngKey, trace};

use super::graph_data;
use crate::common::GoldenCase;
use crate::{compare_values, numbers, score, set_all, users};

pub fn compare(case: &mut GoldenCase) {
    let config = serde_json::json!({
        "width": case.size("model"),
        "content_width": case.size("content"),
        "routing": case.meta["switches"]["routing"],
        "weights": case.switch("weights"),
        "pruning": case.meta["switches"]["pruning"],
        "fusion": case.switch("fusion"),
        "reg_weight": case.scalar("reg_weight"),
    });
    let config = serde_json::from_value(config).unwrap();
    let model = Grcn::new(config, &graph_data(case), RngKey::new(1)).unwrap();
    set_all(case, &model);
    if case.meta["stage"] == "score" {
        return score(case, &model);
    }
    let (positives, negatives) = (numbers(case, "in.positives"), numbers(case, "in.negatives"));
    let (loss, values) = trace::collect(|| model.bpr_loss(&users(case), &positives, &negatives).unwrap());
    compare_values(case, &values);
    case.compare_training(model.parameters(), &loss);
}
