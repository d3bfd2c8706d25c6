use mp4sr_models::{Buffer, Model, RngKey, Sine, trace};
use mp4sr_ops::PackedOffsets;

use super::{batch, compare_numbers, compare_same_shape, compare_scores, compare_tokens, swapped};
use crate::common::{GoldenCase, device};
use crate::set_all;

pub fn compare(case: &mut GoldenCase) {
    let config = serde_json::json!({
        "width": case.size("model"),
        "prototypes": case.size("prototypes"),
        "interests": case.size("interests"),
        "temperature": case.scalar("tau"),
        "max_sequence_length": case.size("positions"),
        "regularizer": case.scalar("regularizer"),
        "positions": case.switch("positions") == "on",
        "padding": case.switch("padding"),
    });
    let config = serde_json::from_value(config).unwrap();
    let model = Sine::new(config, case.size("items"), &device(), RngKey::new(1)).unwrap();
    set_all(case, &model);
    if let Some(buffers) = model.buffers() {
        let (padding, shape) = case.floats["in.padding"].clone();
        buffers.restore([("padding".to_owned(), Buffer::f32(padding, &shape))].into()).unwrap();
    }
    let batch = batch(case);
    let (_, mut values) = trace::collect(|| model.finetune_loss(&batch).unwrap());
    compare_numbers(case, "out.chosen", &values.remove("chosen").unwrap());
    if case.has("out.attention") {
        swapped(case, "out.attention");
    }
    // If the padding takes part, every history has the full length.
    let offsets = match model.buffers() {
        Some(_) => PackedOffsets::from_lengths(vec![case.size("positions"); batch.count()]).unwrap(),
        None => batch.offsets.clone(),
    };
    for name in ["concept_weights", "assignment", "attention", "intention_weights"] {
        compare_tokens(case, &format!("out.{name}"), &values.remove(name).unwrap(), &offsets);
    }
    let (count, interests) = (batch.count(), case.size("interests"));
    let delta = values.remove("interests").unwrap().reshape((count, interests, case.size("model"))).unwrap();
    case.compare_if_present("out.interests", &delta);
    compare_same_shape(case, &values);
    compare_scores(case, "out.logits", &model);
    // Without a trace, as in training, values that only a trace needs are not computed.
    let loss = model.finetune_loss(&batch).unwrap();
    case.compare_training(model.parameters(), &loss);
}
