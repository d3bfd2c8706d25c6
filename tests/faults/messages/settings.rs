//! Wrong settings and flags, raw files, runs that are not there, studies that lack something.

use std::fs;

use mp4sr_artifact::{Lock, Tensor, TensorFile, write_tensors};
use mp4sr_tests::{command, said};

use super::Told;

pub fn tell(told: &mut Told) {
    told.set("a key that does not exist", "preprocess", "model.transformer.widht=3", "model.transformer.widht");
    told.set("a value out of range", "pretrain", "finetune.batch=0", "finetune.batch");
    told.set("a value of another type", "pretrain", "finetune.batch=\"many\"", "finetune.batch");
    told.set("an assignment without a value", "pretrain", "finetune.batch", "--set finetune.batch");
    told.set("widths that do not fit", "pretrain", "model.transformer.heads=3", "model.transformer.heads");
    told.set("a modality twice", "pretrain", "model.modalities=[{name=\"a\"},{name=\"a\"}]", "model.modalities");
    told.set("no modality", "pretrain", "model.modalities=[]", "model.modalities");
    let no_loss = ["--run", "none", "--set", "model.mp4sr.nip_weight=0.0", "--set", "model.mp4sr.lambda=0.0"];
    told.case("no losses", "pretrain", &no_loss, "model.mp4sr.nip_weight");
    told.set(
        "a modality of the logits that is none",
        "finetune",
        "model.mp4sr.logit_modalities=[\"x\"]",
        "logit_modalities",
    );
    told.set("a row of Table 1 that is none", "preprocess", "dataset.table1=\"Books\"", "dataset.table1");
    told.case("a name that leads out of the folder", "finetune", &["--run", "../x"], "../x");
}

pub fn tell_raw(told: &mut Told) {
    let raw = |name: &str, bytes: &[u8]| fs::write(told.world.folder().join(name), bytes).unwrap();
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
    fs::create_dir(told.world.folder().join("folder")).unwrap();
    for (what, file) in [
        ("a raw file that is not there", "gone.tsv"),
        ("a web page in place of data", "page.jsonl"),
        ("an empty file", "empty.jsonl"),
        ("a file of blank lines", "blank.tsv"),
        ("a header without lines", "header.tsv"),
        ("a header with an open quotation", "open.csv"),
        ("no Parquet file", "no.parquet"),
        ("a gzip file cut short", "cut.tsv.gz"),
        ("no gzip file", "plain.tsv.gz"),
        ("a folder in place of a file", "folder"),
        ("a name that does not tell the form", "a.dat"),
        ("no line that can be used", "bad.jsonl"),
    ] {
        told.set(what, "preprocess", &format!("source.interactions=[\"{file}\"]"), file);
    }
    told.set("no raw file named", "preprocess", "source.interactions=[]", "source.interactions");
    told.set("a file in place of a folder of images", "preprocess", "source.images=\"a.tsv\"", "a.tsv");
    told.set("a column that is not there", "preprocess", "source.columns.user=\"who\"", "who");
    told.set("a column without a name", "preprocess", "source.columns.user=\"\"", "source.columns.user");
    told.set("no column that orders events", "preprocess", "source.columns.time=\"\"", "source.columns.time");
    let few = ["--set", "source.interactions=[\"bad.jsonl\"]", "--set", "preprocess.max_bad_lines=1"];
    told.case("more bad lines than allowed", "preprocess", &few, "bad.jsonl");
    told.set("filters that leave nothing", "preprocess", "preprocess.user_core=99", "preprocess.user_core");
    let bare = ["--set", "source.columns.images=\"\"", "--set", "preprocess.missing=\"drop\""];
    told.case("items without pictures left out", "preprocess", &bare, "preprocess.missing");

    let file = |rest: &str| format!("download.files=[{{path=\"a.tsv\",url=\"http://127.0.0.1:9/a\"{rest}}}]");
    let other = file(&format!(",sha256=\"{}\"", "0".repeat(64)));
    told.set("a raw file of another checksum", "download", &other, "a.tsv");
    let gone = file("").replace("a.tsv", "b.tsv");
    told.set("a raw file on a private address", "download", &gone, "b.tsv");
    told.case("a raw file to fetch, offline", "download", &["--set", &gone, "--set", "download.offline=true"], "b.tsv");
    told.set("a folder where a raw file belongs", "download", &gone.replace("b.tsv", "folder"), "folder");
    told.set("a place outside the data folder", "download", &gone.replace("b.tsv", "../b.tsv"), "download.files");
    let local = gone.replace("http://127.0.0.1:9/a", "file:///etc/passwd");
    told.set("an address of a file", "download", &local, "file:///etc/passwd");
}

pub fn tell_rest(told: &mut Told) {
    let sound = "model.modalities=[{name=\"sound\",features=\"mine\"}]";
    told.set("features that nobody made", "pretrain", sound, "sound.mine");
    let nobody = "pretrain.from=\"a/nobody\"";
    told.set("pre-trained weights of a run that is not there", "finetune", nobody, "nobody");
    let bare = "pretrain.from=\"nobody\"";
    told.set("a place for pre-trained weights that is none", "finetune", bare, "pretrain.from");
    told.set("weights of another model", "evaluate", "model.transformer.layers=3", "finetune.safetensors");
    told.set("weights of another shape", "evaluate", "model.transformer.feed_forward=8", "finetune.safetensors");
    told.case("a run without weights", "evaluate", &["--run", "nobody"], "finetune.safetensors");
    diverge(told);
    told.set("a run beside this one that is not there", "report", "report.beside=[\"nobody\"]", "nobody");
    told.case("a run to compare that is not there", "compare", &["mp4sr", "nobody"], "nobody");
    told.case("a measure that is none", "compare", &["mp4sr", "--measures", "Q@5"], "Q@5");
    told.case("a grid that is none", "search", &["--grid", "finetune.batch"], "finetune.batch");
    let alike = ["--grid", "finetune.batch=32,32"];
    told.case("cells of one name", "search", &alike, "same name");
    let failing = ["--grid", "finetune.learning_rate=1e-4", "--set", sound];
    told.case("a search whose cells fail", "search", &failing, "runs that are not finished");
    told.case("a study without what it needs", "study", &["table5"], "WITH");
    let alone = ["--set", "model.modalities=[{name=\"text\"}]"];
    for (what, study, names) in [
        ("a study of modalities of a pipeline with one", "study-mixup", "two modalities"),
        ("a study of pictures of a pipeline without", "study-image-features", "image"),
        ("a sweep over words of a pipeline without pictures", "fig5", "image"),
    ] {
        told.case(what, "study", &[&[study][..], &alone].concat(), names);
    }
    let pictures = ["study-image-features", "--set", "model.modalities=[{name=\"image\"}]"];
    told.case("a study of a pipeline with pictures alone", "study", &pictures, "image");
    told.case("a study whose rows fail", "study", &["table6", "--seeds", "1", "--set", sound], "run");

    let here = |file: &str| told.world.folder().join(file);
    let missing = command("preprocess").args(["--pipeline", "nowhere.toml"]).output().unwrap();
    fs::write(here("broken.toml"), "[dataset\n").unwrap();
    let broken = command("preprocess").arg("--pipeline").arg(here("broken.toml")).output().unwrap();
    let sample = command("sample").arg("--out").arg(here("")).output().unwrap();
    let lock = Lock::acquire(&told.world.path("a/dataset"), "preprocess").unwrap();
    let held = told.world.output("preprocess", &[]);
    drop(lock);
    told.tell("a pipeline that is not there", "nowhere.toml", &missing);
    told.tell("a pipeline that is no TOML", "broken.toml", &broken);
    told.tell("a folder that is in use for something else", "--out", &sample);
    let holder = format!("is in use by process {} on ", std::process::id());
    assert!(said(&held).contains(&holder) && said(&held).contains(" since 2"), "{}", said(&held));
}

/// Fine-tunes from weights so large that products overflow.
fn diverge(told: &mut Told) {
    let weights = told.world.path("a/runs/mp4sr/pretrain.safetensors");
    let mut file = TensorFile::read(&weights, "checkpoint", 1, "").unwrap();
    let header = file.header().clone();
    let mut large = |name: String| {
        let (values, shape) = file.take_f32(&name).unwrap();
        (name, Tensor::F32(values.iter().map(|value| value * 1e38).collect(), shape))
    };
    let names = TensorFile::read(&weights, "checkpoint", 1, "").unwrap().names();
    let tensors: Vec<_> = names.into_iter().map(&mut large).collect();
    write_tensors(&told.world.path("a/runs/wild/pretrain.safetensors"), &header, &tensors).unwrap();
    told.case("a loss that is no number", "finetune", &["--run", "wild"], "diverged.finetune.safetensors");
}
