use candle_core::Tensor;
use mp4sr_models::{DifSr, Model, RngKey, trace};

use super::{batch, compare_same_shape, compare_scores, compare_tokens, data};
use crate::common::{GoldenCase, flat};
use crate::{set_all, transformer};

/// Turns `[B, H, n, k]` of the case into `[B, n, H k]`.
fn heads_last(case: &mut GoldenCase, name: &str) {
    let (values, shape) = case.floats[name].clone();
    let tensor = Tensor::from_vec(values, shape.as_slice(), &candle_core::Device::Cpu).unwrap();
    let tensor = tensor.transpose(1, 2).unwrap().contiguous().unwrap();
    case.floats.insert(name.to_owned(), (flat(&tensor), vec![shape[0], shape[2], shape[1] * shape[3]]));
}

pub fn compare(case: &mut GoldenCase) {
    let config = serde_json::json!({
        "attributes": case.switch("attributes"),
        "attribute_width": case.size("attribute"),
        "fusion": case.switch("fusion"),
        "keys": case.switch("keys"),
        "predictor": case.switch("predictor") == "on",
        "attribute_weight": case.scalar("weight"),
        "category_embedding": case.meta["switches"]["category_embedding"].as_str().unwrap_or("trained"),
    });
    let config = serde_json::from_value(config).unwrap();
    let model = DifSr::new(config, transformer(case), &data(case), RngKey::new(1)).unwrap();
    set_all(case, &model);
    let batch = batch(case);
    let (_, values) = trace::collect(|| model.finetune_loss(&batch, None).unwrap());
    let ((), of_all) = trace::collect(|| drop(model.scorer(&model.phases()[0]).unwrap()));
    compare_same_shape(case, &of_all);
    compare_tokens(case, "out.input", &values["input"], &batch.offsets);
    for l in 0..case.size("layers") {
        compare_tokens(case, &format!("out.layer.{l}"), &values[&format!("layer.{l}")], &batch.offsets);
        for part in ["gate", "attention_weights"] {
            let name = format!("out.{part}.{l}");
            if case.has(&name) {
                heads_last(case, &name);
                let found = &values[&format!("{part}.{l}")];
                compare_tokens(case, &name, found, &batch.offsets);
            }
        }
    }
    for (name, value) in values.iter().filter(|(name, _)| *name == "h" || name.contains("loss")) {
        case.compare_if_present(&format!("out.{name}"), value);
    }
    compare_scores(case, "out.logits", &model);
    // Without a trace, as in training, the top layer is computed only at the last tokens.
    let loss = model.finetune_loss(&batch, None).unwrap();
    case.compare_training(model.parameters(), &loss);
}
