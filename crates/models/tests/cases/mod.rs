//! The comparisons of the golden cases, one file per model, and what they share.

pub mod clcrec;
pub mod difsr;
pub mod dualgnn;
pub mod esasrec;
pub mod fdsa;
pub mod grcn;
pub mod masr;
pub mod mvrnn;
pub mod s3rec;
pub mod sine;
pub mod unisrec;

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use mp4sr_models::{Batch, Categories, Data, Modality, Model, Query, Ragged, TrainingSequences};
use mp4sr_ops::PackedOffsets;

use crate::common::{GoldenCase, device, flat};
use crate::{compare_ranks, cut, numbers, ranks};

/// The values of a switch.
enum Values {
    /// One of these texts, or of the texts `true` and `false` for a boolean.
    Of(&'static [&'static str]),
    /// A whole number.
    Number,
}
use Values::{Number, Of};

const ON: Values = Of(&["on", "off"]);
const TRUE: Values = Of(&["true", "false"]);

/// The model, the stages of its cases, and its switches. Switches that determine only draws are listed too, although a case contains the
/// draws.
type Known = (&'static str, &'static [&'static str], &'static [(&'static str, Values)]);

const KNOWN: [Known; 13] = [
    ("cl4srec", &["train"], &[("similarity", Of(&["dot", "cosine"]))]),
    ("clcrec", &["train", "score"], &[("candidates", Of(&["all", "cold"])), ("negatives", Of(&["all", "warm"]))]),
    (
        "difsr",
        &["train", "finetune"],
        &[
            ("attributes", Of(&["features", "categories"])),
            ("category_embedding", Of(&["trained", "fixed"])),
            ("fusion", Of(&["gate", "sum", "concat"])),
            ("keys", Of(&["masked", "full"])),
            ("predictor", ON),
        ],
    ),
    (
        "dualgnn",
        &["train", "score", "graph"],
        &[("neighbours", Of(&["once", "resampled"])), ("user_fusion", Of(&["separate", "summed"]))],
    ),
    (
        "esasrec",
        &["train"],
        &[
            ("feed_forward_bias", ON),
            ("final_norm", ON),
            ("layers", Of(&["ligr", "sasrec"])),
            ("log_q", ON),
            ("loss", Of(&["sampled_softmax", "gbce", "softmax"])),
            ("positions", Of(&["from_end", "from_start"])),
        ],
    ),
    (
        "fdsa",
        &["train", "finetune"],
        &[
            ("adapter", Of(&["two", "one"])),
            ("norms", Of(&["shared", "separate"])),
            ("pooling", Of(&["mean", "padded_mean"])),
            ("use_categories", TRUE),
        ],
    ),
    (
        "grcn",
        &["train", "score"],
        &[
            ("fusion", Of(&["concat", "id"])),
            ("pruning", TRUE),
            ("routing", Number),
            ("weights", Of(&["confidence", "max", "mean"])),
        ],
    ),
    ("lightgcn", &["train", "score"], &[("regularisation", Of(&["squared", "norm"]))]),
    (
        "masr",
        &["train", "score", "state"],
        &[("blocks", Of(&["stacked", "last"])), ("encoder", Of(&["pre_norm", "post_norm"])), ("memory", ON)],
    ),
    (
        "mvrnn",
        &["train", "score"],
        &[("cell", Of(&["lstm", "gru"])), ("variant", Of(&["con", "add", "fusion", "separate"]))],
    ),
    (
        "s3rec",
        &["pretrain", "finetune"],
        &[
            ("attributes", Of(&["features", "categories"])),
            ("mask_last", TRUE),
            ("pair", Of(&["twice", "once"])),
            ("reduction", Of(&["mean", "sum"])),
        ],
    ),
    ("sine", &["train"], &[("padding", Of(&["masked", "unmasked"])), ("positions", ON)]),
    (
        "unisrec",
        &["pretrain", "finetune"],
        &[
            ("augment", Of(&["items", "rows"])),
            ("fix_encoder", TRUE),
            ("id_embedding", TRUE),
            ("noise", TRUE),
            ("same_target", Of(&["leave_out", "zero", "keep"])),
        ],
    ),
];

/// Fails if the case has a model, a stage, a switch or a constant that no comparison knows.
pub fn check_known(case: &GoldenCase) {
    let text = |value: &serde_json::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let (model, stage) = (text(&case.meta["model"]), text(&case.meta["stage"]));
    let names = KNOWN.map(|(name, ..)| name);
    let found = KNOWN.iter().find(|(name, ..)| *name == model);
    let (_, stages, switches) = found.unwrap_or_else(|| panic!("`{model}` is not one of {names:?}"));
    assert!(stages.contains(&stage.as_str()), "stage `{stage}` is not one of {stages:?}");
    for (name, value) in case.meta["switches"].as_object().into_iter().flatten() {
        let known = switches.iter().find(|(own, _)| own == name);
        let (_, values) = known.unwrap_or_else(|| panic!("`{model}` has no switch `{name}`"));
        match values {
            Of(values) => assert!(values.contains(&text(value).as_str()), "{name} = {value} is not one of {values:?}"),
            Number => assert!(value.is_u64(), "{name} = {value} is not a number"),
        }
    }
    for (name, expected) in [("layer_norm_eps", 1e-12), ("unit_eps", 1e-12), ("cosine_eps", 1e-12), ("leaky", 0.01)] {
        let given = case.meta["scalars"].get(name).and_then(serde_json::Value::as_f64);
        assert!(given.is_none_or(|given| (given - expected).abs() < 1e-15), "{name} is fixed at {expected}");
    }
}

/// The features that the case has, in the order of its modalities.
pub fn modalities(case: &GoldenCase) -> Vec<Modality> {
    let features = |name: &String| {
        let (values, shape) = case.floats[&format!("in.features.{name}.values")].clone();
        let offsets = case.int(&format!("in.features.{name}.offsets"));
        let offsets: Vec<usize> = offsets.iter().map(|&offset| offset as usize).collect();
        Modality { name: name.clone(), features: Ragged::new(values, shape[1], &offsets).unwrap() }
    };
    let stored = |name: &&String| case.has(&format!("in.features.{name}.offsets"));
    case.names("modalities").iter().filter(stored).map(features).collect()
}

/// The case's items with their features and categories, without training events.
pub fn data(case: &GoldenCase) -> Data {
    let categories = case.has("in.categories.offsets").then(|| Categories {
        count: case.size("categories"),
        offsets: case.int("in.categories.offsets").iter().map(|&offset| offset as usize).collect(),
        ids: numbers(case, "in.categories.values"),
    });
    let training = TrainingSequences::new(std::iter::empty()).into();
    Data {
        items: case.size("items"),
        training,
        modalities: modalities(case),
        categories,
        device: device(),
        group: None,
    }
}

/// The case's items with their features and the training events of its users.
pub fn graph_data(case: &GoldenCase) -> Data {
    Data { training: crate::training(case).into(), ..data(case) }
}

/// The case's histories.
pub fn histories(case: &GoldenCase) -> Vec<Vec<u32>> {
    let lengths: Vec<usize> = case.int("in.lengths").iter().map(|&length| length as usize).collect();
    cut(case, "in.items", &lengths)
}

/// The case's histories and targets.
pub fn batch(case: &GoldenCase) -> Batch {
    let (histories, targets) = (histories(case), numbers(case, "in.targets"));
    let samples = histories.iter().map(Vec::as_slice).zip(targets);
    Batch::of_histories(samples, case.size("positions")).unwrap()
}

/// Compares the traced values that have the name and the shape of an output.
pub fn compare_same_shape(case: &mut GoldenCase, values: &BTreeMap<String, Tensor>) {
    for (name, value) in values {
        let key = format!("out.{name}");
        let fits = case.floats.get(&key).is_some_and(|(_, shape)| shape == value.dims());
        if fits {
            case.compare_tensor(&key, value);
        }
    }
}

/// Compares packed tokens `[T, k]`, or `[T]`, with padded `[B, n, k]`, or `[B, n]`.
pub fn compare_tokens(case: &mut GoldenCase, name: &str, found: &Tensor, offsets: &PackedOffsets) {
    if !case.has(name) {
        return;
    }
    let shape = case.floats[name].1.clone();
    if shape.len() == 2 {
        let (values, _) = case.floats.remove(name).unwrap();
        case.floats.insert(name.to_owned(), (values, vec![shape[0], shape[1], 1]));
    }
    case.compare_packed(name, found, offsets);
}

/// Compares the scores of the case's histories, by the scorer that evaluation uses, and the ranks of the targets among all items.
pub fn compare_scores(case: &mut GoldenCase, name: &str, model: &dyn Model) {
    let histories = histories(case);
    let scorer = model.scorer(model.phases().last().unwrap()).unwrap();
    let queries: Vec<Query<'_>> = histories.iter().map(|history| Query::of_history(history)).collect();
    let scores = scorer.queries(&queries).unwrap().matmul(&scorer.items().t().unwrap()).unwrap();
    case.compare_if_present(name, &scores);
    compare_ranks(case, "out.ranks", &ranks(&scores, &numbers(case, "in.targets"), |_, _| false));
}

/// Compares whole numbers that were traced as floats.
pub fn compare_numbers(case: &mut GoldenCase, name: &str, found: &Tensor) {
    let found: Vec<i64> = flat(&found.to_dtype(DType::F32).unwrap()).iter().map(|&value| value as i64).collect();
    compare_ranks(case, name, &found);
}

/// Swaps the last two axes of a tensor of the case.
pub fn swapped(case: &mut GoldenCase, name: &str) {
    let (values, shape) = case.floats[name].clone();
    let tensor = Tensor::from_vec(values, shape, &Device::Cpu).unwrap().transpose(1, 2).unwrap().contiguous().unwrap();
    case.floats.insert(name.to_owned(), (flat(&tensor), tensor.dims().to_vec()));
}
