use mp4sr_models::s3rec::Draws;
use mp4sr_models::{Batch, Categories, FINETUNE, Model, PRETRAIN, RngKey, S3Rec, trace};

use super::{batch, compare_same_shape, compare_scores, compare_tokens, data, histories};
use crate::common::GoldenCase;
use crate::{cut, numbers, set_used, transformer};

pub fn compare(case: &mut GoldenCase) {
    let config = serde_json::json!({
        "attributes": case.switch("attributes"),
        "aap_weight": case.scalar("aap"),
        "mip_weight": case.scalar("mip"),
        "map_weight": case.scalar("map"),
        "sp_weight": case.scalar("sp"),
        "pair": case.switch("pair"),
        "reduction": case.switch("reduction"),
    });
    let config = serde_json::from_value(config).unwrap();
    let is_finetuned = case.meta["stage"] == FINETUNE;
    let mut data = data(case);
    if is_finetuned && case.switch("attributes") == "categories" && data.categories.is_none() {
        // Fine-tuning does not read the attributes, so a case of it may lack them.
        data.categories = Some(Categories { count: 1, offsets: vec![0; data.items + 1], ids: Vec::new() });
    }
    let model = S3Rec::new(config, transformer(case), &data, RngKey::new(1)).unwrap();
    if is_finetuned {
        set_used(case, &model, FINETUNE);
        let batch = batch(case);
        let (_, values) = trace::collect(|| model.finetune_loss(&batch, None).unwrap());
        case.compare_if_present("out.h", &values["h"]);
        compare_scores(case, "out.logits", &model);
        let loss = model.finetune_loss(&batch, None).unwrap();
        return case.compare_training(model.parameters(), &loss);
    }
    set_used(case, &model, PRETRAIN);
    let samples = histories(case);
    let lengths: Vec<usize> = samples.iter().map(Vec::len).collect();
    let of_tokens = |name: &str| cut(case, name, &lengths).concat();
    let (starts, sizes) = (numbers(case, "in.segment_start"), numbers(case, "in.segment_length"));
    let others = cut(case, "in.segment_negative", &lengths);
    let segments = starts.iter().zip(&sizes).zip(others).map(|((&start, &size), others)| {
        let range = start as usize..(start + size) as usize;
        let others = others[range.clone()].to_vec();
        (range, others)
    });
    let draws = Draws {
        masked: of_tokens("in.masked").iter().map(|&masked| masked == 1).collect(),
        negatives: of_tokens("in.negatives"),
        segments: segments.collect(),
    };
    let samples = samples.iter().map(|items| (items.as_slice(), 1));
    let samples = Batch { targets: Vec::new(), ..Batch::of_histories(samples, case.size("positions")).unwrap() };
    let (_, mut values) = trace::collect(|| model.pretrain_loss(&samples, &draws, None).unwrap());
    compare_tokens(case, "out.h", &values.remove("h").unwrap(), &samples.offsets);
    compare_same_shape(case, &values);
    let loss = model.pretrain_loss(&samples, &draws, None).unwrap();
    case.compare_training(model.parameters(), &loss);
}
