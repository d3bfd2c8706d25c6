use mp4sr_models::{Fdsa, Model, RngKey, trace};

use super::{batch, compare_same_shape, compare_scores, compare_tokens, data};
use crate::common::GoldenCase;
use crate::{set_all, transformer};

pub fn compare(case: &mut GoldenCase) {
    let fields = match (case.meta["switches"]["use_categories"] == true, case.names("modalities").is_empty()) {
        (false, _) => "features",
        (true, false) => "features_and_categories",
        (true, true) => "categories",
    };
    let config = serde_json::json!({
        "fields": fields,
        "adapter": case.switch("adapter"),
        "pooling": case.switch("pooling"),
        "norms": case.switch("norms"),
    });
    let config = serde_json::from_value(config).unwrap();
    let model = Fdsa::new(config, transformer(case), &data(case), RngKey::new(1)).unwrap();
    set_all(case, &model);
    let batch = batch(case);
    // The scorer computes the fields of all items, the loss only those of the batch.
    let ((), values) = trace::collect(|| drop(model.scorer(&model.phases()[0]).unwrap()));
    compare_same_shape(case, &values);
    let (_, values) = trace::collect(|| model.finetune_loss(&batch, None).unwrap());
    for branch in ["item", "feature"] {
        compare_tokens(case, &format!("out.{branch}.input"), &values[&format!("{branch}.input")], &batch.offsets);
        for l in 0..case.size("layers") {
            let layer = &values[&format!("{branch}.{l}.layer")];
            compare_tokens(case, &format!("out.{branch}.layer.{l}"), layer, &batch.offsets);
        }
        case.compare_if_present(&format!("out.h.{branch}"), &values[&format!("h.{branch}")]);
    }
    case.compare_if_present("out.h", &values["h"]);
    compare_scores(case, "out.logits", &model);
    // Without a trace, as in training, the top layers are computed only at the last tokens.
    let loss = model.finetune_loss(&batch, None).unwrap();
    case.compare_training(model.parameters(), &loss);
}
