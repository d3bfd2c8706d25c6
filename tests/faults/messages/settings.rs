//! Wrong settings and flags, raw files, runs that do not exist, and studies that lack an input.

use std::fs;

use mp4sr_artifact::{Lock, Tensor, TensorFile, write_tensors};
use mp4sr_tests::{command, stderr_of};

use super::MessageChecks;

pub fn check(checks: &mut MessageChecks) {
    checks.set("a key that does not exist", "preprocess", "model.transformer.widht=3", "model.transformer.widht");
    checks.set("a value out of range", "pretrain", "finetune.batch=0", "finetune.batch");
    checks.set("a value of another type", "pretrain", "finetune.batch=\"many\"", "finetune.batch");
    checks.set("an assignment without a value", "pretrain", "finetune.batch", "--set finetune.batch");
    checks.set("widths that do not fit", "pretrain", "model.transformer.heads=3", "model.transformer.heads");
    checks.set("a modality twice", "pretrain", "model.modalities=[{name=\"a\"},{name=\"a\"}]", "model.modalities");
    checks.set("no modality", "pretrain", "model.modalities=[]", "model.modalities");
    let no_loss = ["--run", "none", "--set", "model.mp4sr.nip_weight=0.0", "--set", "model.mp4sr.lambda=0.0"];
    checks.case("no losses", "pretrain", &no_loss, "model.mp4sr.nip_weight");
    checks.set(
        "an unknown modality in the logits",
        "finetune",
        "model.mp4sr.logit_modalities=[\"x\"]",
        "logit_modalities",
    );
    checks.set("an unknown row of Table 1", "preprocess", "dataset.table1=\"Books\"", "dataset.table1");
    checks.case("a name that leads out of the folder", "finetune", &["--run", "../x"], "../x");
}

pub fn check_raw(checks: &mut MessageChecks) {
    let raw = |name: &str, bytes: &[u8]| fs::write(checks.world.folder().join(name), bytes).unwrap();
    raw("page.jsonl", b"<!DOCTYPE html><html></html>");
    raw("empty.jsonl", b"");
    raw("blank.tsv", b"\n\n");
    raw("header.tsv", b"user_id\titem_id\ttimestamp\n");
    raw("open.csv", b"user_id,\"item_id,timestamp\nu,i,1\n");
    raw("no.parquet", b"PAR1 and no more PAR1");
    raw("a.dat", b"u i 1\n");
    raw("plain.tsv.gz", b"user_id\titem_id\ttimestamp\n");
    raw("cut.tsv.gz", &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 0x4b]);
    raw("bad.jsonl", b"{\n{\n{\n");
    fs::create_dir(checks.world.folder().join("folder")).unwrap();
    for (what, file) in [
        ("a raw file that does not exist", "gone.tsv"),
        ("a web page in place of data", "page.jsonl"),
        ("an empty file", "empty.jsonl"),
        ("a file of blank lines", "blank.tsv"),
        ("a header without lines", "header.tsv"),
        ("a header with an open quotation", "open.csv"),
        ("a file that is not Parquet", "no.parquet"),
        ("a truncated gzip file", "cut.tsv.gz"),
        ("a file that is not gzip", "plain.tsv.gz"),
        ("a folder in place of a file", "folder"),
        ("a name that does not show the format", "a.dat"),
        ("no line that can be used", "bad.jsonl"),
    ] {
        checks.set(what, "preprocess", &format!("source.interactions=[\"{file}\"]"), file);
    }
    checks.set("no raw file named", "preprocess", "source.interactions=[]", "source.interactions");
    checks.set("a file in place of a folder of images", "preprocess", "source.images=\"a.tsv\"", "a.tsv");
    checks.set("a column that does not exist", "preprocess", "source.columns.user=\"who\"", "who");
    checks.set("a column without a name", "preprocess", "source.columns.user=\"\"", "source.columns.user");
    checks.set("no column that orders events", "preprocess", "source.columns.time=\"\"", "source.columns.time");
    let few = ["--set", "source.interactions=[\"bad.jsonl\"]", "--set", "preprocess.max_bad_lines=1"];
    checks.case("more bad lines than allowed", "preprocess", &few, "bad.jsonl");
    checks.set("filters that leave nothing", "preprocess", "preprocess.user_core=99", "preprocess.user_core");
    let bare = ["--set", "source.columns.images=\"\"", "--set", "preprocess.missing=\"drop\""];
    checks.case("items without images left out", "preprocess", &bare, "preprocess.missing");

    let file = |rest: &str| format!("download.files=[{{path=\"a.tsv\",url=\"http://127.0.0.1:9/a\"{rest}}}]");
    let other = file(&format!(",sha256=\"{}\"", "0".repeat(64)));
    checks.set("a raw file of another checksum", "download", &other, "a.tsv");
    let gone = file("").replace("a.tsv", "b.tsv");
    checks.set("a raw file on a private address", "download", &gone, "b.tsv");
    checks.case(
        "a raw file to fetch, offline",
        "download",
        &["--set", &gone, "--set", "download.offline=true"],
        "b.tsv",
    );
    checks.set("a folder where a raw file belongs", "download", &gone.replace("b.tsv", "folder"), "folder");
    checks.set("a path outside the data folder", "download", &gone.replace("b.tsv", "../b.tsv"), "download.files");
    let local = gone.replace("http://127.0.0.1:9/a", "file:///etc/passwd");
    checks.set("a URL of a file", "download", &local, "file:///etc/passwd");
}

pub fn check_rest(checks: &mut MessageChecks) {
    let sound = "model.modalities=[{name=\"sound\",features=\"mine\"}]";
    checks.set("features that do not exist", "pretrain", sound, "sound.mine");
    let nobody = "pretrain.from=\"a/nobody\"";
    checks.set("pre-trained weights of a run that does not exist", "finetune", nobody, "nobody");
    let bare = "pretrain.from=\"nobody\"";
    checks.set("an invalid path of pre-trained weights", "finetune", bare, "pretrain.from");
    checks.set("weights of another model", "evaluate", "model.transformer.layers=3", "finetune.safetensors");
    checks.set("weights of another shape", "evaluate", "model.transformer.feed_forward=8", "finetune.safetensors");
    checks.case("a run without weights", "evaluate", &["--run", "nobody"], "finetune.safetensors");
    diverge(checks);
    checks.set("a run beside this one that does not exist", "report", "report.beside=[\"nobody\"]", "nobody");
    checks.case("a run to compare that does not exist", "compare", &["mp4sr", "nobody"], "nobody");
    checks.case("an unknown metric", "compare", &["mp4sr", "--metrics", "Q@5"], "Q@5");
    checks.case("an invalid grid", "search", &["--grid", "finetune.batch"], "finetune.batch");
    let alike = ["--grid", "finetune.batch=32,32"];
    checks.case("runs of one name", "search", &alike, "same name");
    let failing = ["--grid", "finetune.learning_rate=1e-4", "--set", sound];
    checks.case("a search whose runs fail", "search", &failing, "unfinished runs");
    checks.case("a study without what it needs", "study", &["table5"], "--with");
    let alone = ["--set", "model.modalities=[{name=\"text\"}]"];
    for (what, study, names) in [
        ("a study of modalities of a pipeline with one modality", "study-mixup", "two modalities"),
        ("a study of images of a pipeline without images", "study-image-features", "image"),
        ("a sweep over words of a pipeline without images", "fig5", "image"),
    ] {
        checks.case(what, "study", &[&[study][..], &alone].concat(), names);
    }
    let images_alone = ["study-image-features", "--set", "model.modalities=[{name=\"image\"}]"];
    checks.case("a study of a pipeline with images alone", "study", &images_alone, "image");
    checks.case("a study whose rows fail", "study", &["table6", "--seeds", "1", "--set", sound], "run");

    let here = |file: &str| checks.world.folder().join(file);
    let missing = command("preprocess").args(["--pipeline", "nowhere.toml"]).output().unwrap();
    fs::write(here("broken.toml"), "[dataset\n").unwrap();
    let broken = command("preprocess").arg("--pipeline").arg(here("broken.toml")).output().unwrap();
    let sample = command("sample").arg("--out").arg(here("")).output().unwrap();
    let lock = Lock::acquire(&checks.world.path("a/dataset"), "preprocess").unwrap();
    let held = checks.world.output("preprocess", &[]);
    drop(lock);
    checks.check("a pipeline that does not exist", "nowhere.toml", &missing);
    checks.check("a pipeline that is not TOML", "broken.toml", &broken);
    checks.check("a folder that is in use for something else", "--out", &sample);
    let holder = format!("is in use by process {} on ", std::process::id());
    assert!(stderr_of(&held).contains(&holder) && stderr_of(&held).contains(" since 2"), "{}", stderr_of(&held));
}

/// Fine-tunes from weights that are so large that matrix products overflow.
fn diverge(checks: &mut MessageChecks) {
    let weights = checks.world.path("a/runs/mp4sr/pretrain.safetensors");
    let mut file = TensorFile::read(&weights, "checkpoint", 1, "").unwrap();
    let header = file.header().clone();
    let mut large = |name: String| {
        let (values, shape) = file.take_f32(&name).unwrap();
        (name, Tensor::F32(values.iter().map(|value| value * 1e38).collect(), shape))
    };
    let names = TensorFile::read(&weights, "checkpoint", 1, "").unwrap().names();
    let tensors: Vec<_> = names.into_iter().map(&mut large).collect();
    write_tensors(&checks.world.path("a/runs/wild/pretrain.safetensors"), &header, &tensors).unwrap();
    checks.case("a loss that is not a number", "finetune", &["--run", "wild"], "diverged.finetune.safetensors");
}
