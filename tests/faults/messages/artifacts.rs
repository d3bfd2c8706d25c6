//! Replaces artifacts by ones with impossible content.

use std::fs;

use mp4sr_artifact::{Header, Tensor, TensorFile, files, hash_ids, write_tensors};

use super::MessageChecks;

type Tensors = Vec<(String, Tensor)>;

/// The bytes of an artifact with a changed header or changed tensors.
fn changed(checks: &MessageChecks, artifact: &str, change: &dyn Fn(&mut Header, &mut Tensors)) -> Vec<u8> {
    let path = checks.world.path("a").join(artifact);
    let format = ["sequences", "features", "checkpoint", "ranks"];
    let read = |format: &str| (1..=2).find_map(|version| TensorFile::read(&path, format, version, "").ok());
    let mut file = format.into_iter().find_map(read).unwrap();
    let mut header = file.header().clone();
    let mut tensors: Tensors = file.names().into_iter().map(|name| (name.clone(), file.take(&name).unwrap())).collect();
    change(&mut header, &mut tensors);
    let other = checks.world.folder().join("changed.safetensors");
    write_tensors(&other, &header, &tensors).unwrap();
    files::read(&other).unwrap()
}

fn tensor<'t>(tensors: &'t mut Tensors, name: &str) -> &'t mut Tensor {
    &mut tensors.iter_mut().find(|(found, _)| found == name).unwrap().1
}

fn whole_numbers<'t>(tensors: &'t mut Tensors, name: &str) -> &'t mut Vec<i64> {
    match tensor(tensors, name) {
        Tensor::I64(values, _) => values,
        other => panic!("{name}: {other:?}"),
    }
}

fn counts<'t>(tensors: &'t mut Tensors, name: &str) -> &'t mut Vec<u32> {
    match tensor(tensors, name) {
        Tensor::U32(values, _) => values,
        other => panic!("{name}: {other:?}"),
    }
}

type Change = fn(&mut Header, &mut Tensors);

const SEQUENCES: &str = "dataset/sequences.safetensors";
const FEATURES: &str = "features/text.tiny-sentence.safetensors";
const RANKS: &str = "runs/mp4sr/ranks.test.safetensors";
const WEIGHTS: &str = "runs/mp4sr/finetune.safetensors";

const CHANGES: [(&str, &str, &str, Change); 23] = [
    ("another format version", SEQUENCES, "pretrain", |header, _| header.version = 9),
    ("another kind of file", SEQUENCES, "pretrain", |header, _| "ranks".clone_into(&mut header.format)),
    ("a tensor that is missing", SEQUENCES, "pretrain", |_, tensors| tensors.retain(|(name, _)| name != "times")),
    ("a tensor of another type", SEQUENCES, "pretrain", |_, tensors| {
        *tensor(tensors, "items") = Tensor::F32(vec![1.0], vec![1]);
    }),
    ("offsets that do not start at 0", SEQUENCES, "pretrain", |_, tensors| whole_numbers(tensors, "offsets")[0] = 1),
    ("offsets that fall", SEQUENCES, "pretrain", |_, tensors| whole_numbers(tensors, "offsets")[2] = 1),
    ("offsets that end elsewhere", SEQUENCES, "pretrain", |_, tensors| {
        *whole_numbers(tensors, "offsets").last_mut().unwrap() += 1;
    }),
    ("an item beyond the last", SEQUENCES, "pretrain", |_, tensors| counts(tensors, "items")[0] = 999),
    ("times that are not ordered", SEQUENCES, "pretrain", |_, tensors| whole_numbers(tensors, "times")[0] = i64::MAX),
    ("times of other events", SEQUENCES, "pretrain", |_, tensors| {
        *tensor(tensors, "times") = Tensor::I64(vec![1], vec![1]);
    }),
    ("two counts of items", SEQUENCES, "pretrain", |_, tensors| {
        *tensor(tensors, "item_count") = Tensor::I64(vec![30, 30], vec![2]);
    }),
    ("a count of items that differs from the table", SEQUENCES, "pretrain", |_, tensors| {
        *tensor(tensors, "item_count") = Tensor::I64(vec![1 << 60], vec![1]);
    }),
    ("features of other items", FEATURES, "pretrain", |header, _| header.items = hash_ids(["x"])),
    ("features of fewer items", FEATURES, "pretrain", |_, tensors| {
        *tensor(tensors, "offsets") = Tensor::I64(vec![0, 0], vec![2]);
    }),
    ("features without rows", FEATURES, "pretrain", |_, tensors| {
        *tensor(tensors, "values") = Tensor::F32(vec![1.0], vec![1]);
    }),
    ("features of another type", FEATURES, "pretrain", |_, tensors| {
        *tensor(tensors, "values") = Tensor::U32(vec![1; 30], vec![30, 1]);
    }),
    ("a feature that is not a number", FEATURES, "pretrain", |_, tensors| {
        let shape = tensor(tensors, "values").shape().to_vec();
        *tensor(tensors, "values") = Tensor::F32(vec![f32::NAN; shape.iter().product()], shape);
    }),
    ("a weight that is not a number", WEIGHTS, "evaluate", |_, tensors| {
        let shape = tensors[0].1.shape().to_vec();
        tensors[0].1 = Tensor::F32(vec![f32::NAN; shape.iter().product()], shape);
    }),
    ("weights without their settings", WEIGHTS, "evaluate", |header, _| header.settings = serde_json::json!(1)),
    ("a rank beyond the last item", RANKS, "compare", |_, tensors| counts(tensors, "rank")[0] = 77_777),
    ("ranks of other users", RANKS, "compare", |_, tensors| {
        *tensor(tensors, "rank") = Tensor::U32(vec![1], vec![1]);
    }),
    ("ranks without their settings", RANKS, "compare", |header, _| header.settings = serde_json::json!(1)),
    ("ranks of another set", RANKS, "compare", |header, _| {
        header.settings["split"] = serde_json::json!("validation");
    }),
];

pub fn check(checks: &mut MessageChecks) {
    for (what, artifact, program, change) in CHANGES {
        let bytes = changed(checks, artifact, &change);
        checks.with(what, artifact, &bytes, program);
    }
    let read = |checks: &MessageChecks, artifact: &str| files::read(&checks.world.path("a").join(artifact)).unwrap();
    let mut flipped = read(checks, SEQUENCES);
    *flipped.last_mut().unwrap() ^= 1;
    checks.with("a flipped bit", SEQUENCES, &flipped, "pretrain");
    let whole = read(checks, FEATURES);
    checks.with("a truncated file", FEATURES, &whole[..whole.len() / 2], "pretrain");
    let bare =
        safetensors::serialize(std::iter::empty::<(String, safetensors::tensor::TensorView<'_>)>(), None).unwrap();
    checks.with("a file without a header", FEATURES, &bare, "pretrain");
    let odd = Some([("mp4sr".to_owned(), "{}".to_owned())].into());
    let odd = safetensors::serialize(std::iter::empty::<(String, safetensors::tensor::TensorView<'_>)>(), odd).unwrap();
    checks.with("an empty header", FEATURES, &odd, "pretrain");
    let pretrained = read(checks, "runs/mp4sr/pretrain.safetensors");
    checks.with("weights of another phase", WEIGHTS, &pretrained, "evaluate");

    let items = read(checks, "dataset/items.parquet");
    checks.with("a truncated table", "dataset/items.parquet", &items[..items.len() / 2], "extract");
    let users = read(checks, "dataset/users.parquet");
    checks.with("a table of something else", "dataset/items.parquet", &users, "extract");
    checks.with("a log with a broken line", "runs/mp4sr/metrics.jsonl", b"{\n{}\n", "report");
    checks.with("a report that cannot be read", "dataset/report.json", b"{", "report");

    fs::remove_file(checks.world.path("a/runs/mp4sr/finetune.manifest.json")).unwrap();
    let state = checks.world.path("a/runs/mp4sr/state.finetune.safetensors");
    fs::write(&state, b"nothing").unwrap();
    checks.case("a state that cannot be read", "finetune", &[], "state.finetune.safetensors");
    fs::remove_file(&state).unwrap();
    // Restores the run's own weights for the cases that follow.
    checks.world.run("finetune", &[]);
}
