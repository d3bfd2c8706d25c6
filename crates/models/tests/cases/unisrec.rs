use candle_core::Tensor;
use mp4sr_models::unisrec::Augmented;
use mp4sr_models::{Batch, FINETUNE, Model, PRETRAIN, Query, RngKey, UniSRec, augment, trace};
use mp4sr_ops::{PackedOffsets, normalize};

use super::{batch, compare_same_shape, compare_tokens, data, histories};
use crate::common::{GoldenCase, flat};
use crate::{compare_ranks, numbers, ranks, set_used, transformer};

/// The real positions of a padded `[B, n, k]` of the case, `[T, k]`.
fn real(case: &GoldenCase, name: &str, offsets: &PackedOffsets) -> Tensor {
    let padded = case.tensor(name);
    let rows = (0..offsets.count()).map(|j| padded.get(j).unwrap().narrow(0, 0, offsets.range(j).len()).unwrap());
    Tensor::cat(&rows.collect::<Vec<_>>(), 0).unwrap()
}

pub fn compare(case: &mut GoldenCase) {
    let switches = case.meta["switches"].clone();
    let noisy = switches["noise"] == true;
    let config = serde_json::json!({
        "experts": case.size("experts"),
        "noise": noisy,
        "temperature": case.scalar("tau"),
        "lambda": case.scalar("lambda"),
        "false_negatives": match case.switch("same_target") {
            "leave_out" => "exclude",
            "zero" => "zero_logit",
            other => other,
        },
        "fix_encoder": switches["fix_encoder"],
        "id_embedding": switches["id_embedding"],
    });
    let config = serde_json::from_value(config).unwrap();
    let mut model = UniSRec::new(config, transformer(case), &data(case), RngKey::new(1)).unwrap();
    let batch = batch(case);
    if case.meta["stage"] == FINETUNE {
        set_used(case, &model, FINETUNE);
        return finetune(case, &model, &batch);
    }
    set_used(case, &model, PRETRAIN);
    let augmented = if case.switch("augment") == "rows" {
        let keep: Vec<Vec<i64>> =
            case.names("modalities").iter().map(|m| case.int(&format!("in.row_keep.{m}")).to_vec()).collect();
        model.set_second_vectors(|m, row| keep[m][row] == 1).unwrap();
        let lengths: Vec<usize> = histories(case).iter().map(Vec::len).collect();
        let replaced =
            crate::cut(case, "in.replaced", &lengths).concat().iter().map(|&replaced| replaced == 1).collect();
        Augmented { batch: batch.clone(), replaced }
    } else {
        let lengths: Vec<usize> = histories(case).iter().map(Vec::len).collect();
        let keep = crate::cut(case, "in.keep", &lengths).concat();
        let own = augment::close_up(&batch, |token| keep[token] == 1).unwrap();
        Augmented { replaced: vec![false; own.items.len()], batch: own }
    };
    let items = case.size("items");
    let features = model.features();
    case.compare_if_present("out.pooled", &features.narrow(0, 0, items).unwrap());
    case.compare_if_present("out.pooled_augmented", &features.narrow(0, items, items).unwrap());
    let lengths: Vec<usize> = (0..batch.count()).map(|j| augmented.batch.offsets.range(j).len()).collect();
    let n = case.size("positions");
    let padded = (0..batch.count()).flat_map(|j| {
        let own = &augmented.batch.items[augmented.batch.offsets.range(j)];
        own.iter().map(|&item| i64::from(item)).chain(std::iter::repeat_n(0, n - lengths[j])).collect::<Vec<_>>()
    });
    compare_ranks(case, "out.items_augmented", &padded.collect::<Vec<_>>());
    let noise = noisy.then(|| {
        let parts = [
            real(case, "in.noise.items", &batch.offsets),
            case.tensor("in.noise.targets"),
            real(case, "in.noise.augmented", &augmented.batch.offsets),
        ];
        Tensor::cat(&parts, 0).unwrap()
    });
    let (_, mut values) = trace::collect(|| model.pretrain_loss(&batch, &augmented, noise.as_ref(), None).unwrap());
    let input = values.remove("input").unwrap();
    let (own, other) = (batch.items.len(), augmented.batch.items.len());
    compare_tokens(case, "out.input", &input.narrow(0, 0, own).unwrap(), &batch.offsets);
    compare_tokens(case, "out.input_augmented", &input.narrow(0, own, other).unwrap(), &augmented.batch.offsets);
    compare_same_shape(case, &values);
    let loss = model.pretrain_loss(&batch, &augmented, noise.as_ref(), None).unwrap();
    case.compare_training(model.parameters(), &loss);
}

fn finetune(case: &mut GoldenCase, model: &UniSRec, batch: &Batch) {
    let tau = case.scalar("tau");
    let noise = case.has("in.noise.items").then(|| {
        let parts = [real(case, "in.noise.items", &batch.offsets), case.tensor("in.noise.candidates")];
        Tensor::cat(&parts, 0).unwrap()
    });
    let noise = noise.as_ref();
    let (_, values) = trace::collect(|| model.finetune_loss(batch, noise, None).unwrap());
    compare_tokens(case, "out.input", &values["input"], &batch.offsets);
    for l in 0..case.size("layers") {
        compare_tokens(case, &format!("out.layer.{l}"), &values[&format!("{l}.layer")], &batch.offsets);
    }
    case.compare_if_present("out.h", &values["h"]);
    case.compare_if_present("out.candidates", &values["candidates"]);
    let cosines =
        normalize(&values["h"]).unwrap().matmul(&normalize(&values["candidates"]).unwrap().t().unwrap()).unwrap();
    case.compare_if_present("out.logits", &(cosines / tau).unwrap());
    let histories = histories(case);
    let queries: Vec<Query<'_>> = histories.iter().map(|history| Query::of_history(history)).collect();
    let (scores, values) = trace::collect(|| {
        let scorer = model.scorer(model.phases().last().unwrap()).unwrap();
        scorer.queries(&queries).unwrap().matmul(&scorer.items().t().unwrap()).unwrap()
    });
    case.compare_if_present("out.scoring.h", &values["h"]);
    case.compare_if_present("out.scoring.candidates", &values["candidates"]);
    case.compare_if_present("out.scores", &(&scores / tau).unwrap());
    compare_ranks(case, "out.ranks", &ranks(&scores, &numbers(case, "in.targets"), |_, _| false));
    assert!(flat(&scores).iter().all(|score| score.abs() <= 1.0 + 1e-5));
    let loss = model.finetune_loss(batch, noise, None).unwrap();
    case.compare_training(model.parameters(), &loss);
}
