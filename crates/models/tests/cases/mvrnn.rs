use candle_core::Tensor;
use mp4sr_models::mvrnn::Pairs;
use mp4sr_models::{Model, MvRnn, Query, RngKey, trace};
use mp4sr_ops::PackedOffsets;

use super::{compare_same_shape, compare_tokens, data};
use crate::common::{GoldenCase, flat};
use crate::{compare_ranks, cut, numbers, ranks, set_all};

/// The values of the scored tokens, with zeros for the other tokens.
fn spread(found: &Tensor, targets: &[u32]) -> Tensor {
    let mut values = flat(found).into_iter();
    let all = targets.iter().map(|&target| if target > 0 { values.next().unwrap() } else { 0.0 });
    Tensor::from_iter(all.collect::<Vec<_>>(), found.device()).unwrap()
}

pub fn compare(case: &mut GoldenCase) {
    let number = |name: &str, default: f64| case.meta["scalars"][name].as_f64().unwrap_or(default);
    let n = case.ints["in.items"].1[1];
    let config = serde_json::json!({
        "width": case.size("model"),
        "variant": case.switch("variant"),
        "cell": case.switch("cell"),
        "lambda": number("lambda", 0.001),
        "max_sequence_length": n,
    });
    let config = serde_json::from_value(config).unwrap();
    let model = MvRnn::new(config, &data(case), RngKey::new(1)).unwrap();
    set_all(case, &model);
    let rows = case.ints["in.items"].1[0];
    let items = case.int("in.items").to_vec();
    let lengths: Vec<usize> = (0..rows).map(|j| items[j * n..][..n].iter().filter(|&&item| item > 0).count()).collect();
    let histories = cut(case, "in.items", &lengths);
    let (scorer, values) = trace::collect(|| model.scorer(&model.phases()[0]).unwrap());
    compare_same_shape(case, &values);
    case.compare_if_present("out.items", scorer.items());
    if case.meta["stage"] == "score" {
        let queries: Vec<Query<'_>> = histories.iter().map(|history| Query::of_history(history)).collect();
        let users = scorer.queries(&queries).unwrap();
        case.compare_tensor("out.users", &users);
        let scores = users.matmul(&scorer.items().t().unwrap()).unwrap();
        case.compare_tensor("out.scores", &scores);
        return compare_ranks(case, "out.ranks", &ranks(&scores, &numbers(case, "in.targets"), |_, _| false));
    }
    let of_tokens = |name: &str| cut(case, name, &lengths).concat();
    let (targets, negatives) = (of_tokens("in.targets"), of_tokens("in.negatives"));
    let kept = |m: &String| {
        let flags = |part: &str| of_tokens(&format!("in.keep.{part}.{m}"));
        let scored =
            |flags: Vec<u32>| flags.into_iter().zip(&targets).filter(|(_, target)| **target > 0).map(|(flag, _)| flag);
        let all = flags("items").into_iter().chain(scored(flags("targets"))).chain(scored(flags("negatives")));
        all.map(|flag| flag == 1).collect::<Vec<bool>>()
    };
    let hides = ["fusion", "separate"].contains(&case.switch("variant"));
    let names = case.names("modalities");
    let kept = if hides { names.iter().map(kept).collect() } else { Vec::new() };
    let offsets = PackedOffsets::from_lengths(lengths.clone()).unwrap();
    let pairs =
        Pairs { offsets: offsets.clone(), items: histories.concat(), targets: targets.clone(), negatives, kept };
    let (loss, mut values) = trace::collect(|| model.sequence_loss(&pairs).unwrap());
    compare_tokens(case, "out.h", &values.remove("h").unwrap(), &offsets);
    for name in ["margin", "ranking_rows"] {
        compare_tokens(case, &format!("out.{name}"), &spread(&values.remove(name).unwrap(), &targets), &offsets);
    }
    compare_same_shape(case, &values);
    case.compare_training(model.parameters(), &loss);
}
