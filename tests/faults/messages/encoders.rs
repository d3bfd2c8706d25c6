//! Encoders that do not exist, are incomplete, or have an unsupported architecture.

use std::fs;

use mp4sr_artifact::files;
use mp4sr_tests::root;
use serde_json::{Value, json};

use super::MessageChecks;

/// A copy of one of the project's encoders in the world's folder, with `file` changed.
fn changed(checks: &MessageChecks, encoder: &str, file: &str, change: &dyn Fn(&mut Value)) {
    let own = root().join("data/encoders").join(encoder);
    let copy = checks.world.folder().join("encoder");
    files::remove_dir_if_present(&copy).unwrap();
    fs::create_dir_all(copy.join("1_Pooling")).unwrap();
    for path in files::list(&own).unwrap() {
        if path.is_file() {
            fs::copy(&path, copy.join(path.file_name().unwrap())).unwrap();
        }
    }
    if own.join("1_Pooling").exists() {
        fs::copy(own.join("1_Pooling/config.json"), copy.join("1_Pooling/config.json")).unwrap();
    }
    let mut value = serde_json::from_str(&files::read_to_string(&copy.join(file)).unwrap()).unwrap();
    change(&mut value);
    fs::write(copy.join(file), value.to_string()).unwrap();
}

pub fn check(checks: &mut MessageChecks) {
    checks.set("an encoder that does not exist", "extract", "extract.text.model=\"./nowhere\"", "nowhere");
    let text = "extract.text.model=\"WORLD/encoder\"";
    let config = "config.json";
    for (what, key, value) in [
        ("an encoder of another kind", "model_type", json!("longformer")),
        ("an activation that is not supported", "hidden_act", json!("relu")),
        ("positions that are not supported", "position_embedding_type", json!("relative_key")),
        ("heads that do not fit", "num_attention_heads", json!(5)),
        ("layers without weights", "num_hidden_layers", json!(3)),
        ("weights of another shape than configured", "intermediate_size", json!(64)),
        ("fewer tokens than the tokenizer has", "vocab_size", json!(7)),
    ] {
        changed(checks, "tiny-sentence", config, &|config| config[key] = value.clone());
        checks.set(what, "extract", text, "encoder/");
    }
    changed(checks, "tiny-sentence", "modules.json", &|modules| modules[1]["type"] = json!("models.CNN"));
    checks.set("a module that is not supported", "extract", text, "modules.json");
    changed(checks, "tiny-sentence", config, &|_| ());
    let weights = checks.world.folder().join("encoder/model.safetensors");
    let whole = files::read(&weights).unwrap();
    fs::write(&weights, &whole[..whole.len() / 2]).unwrap();
    checks.set("truncated weights", "extract", text, "model.safetensors");
    fs::remove_file(&weights).unwrap();
    fs::write(weights.with_file_name("pytorch_model.bin"), b"PK").unwrap();
    checks.set("an encoder without safetensors", "extract", text, "encoder");

    // An image encoder is only loaded if there are images.
    let item_with_image = |checks: &MessageChecks, name: &str| {
        let items = checks.world.raw_text("a.jsonl");
        let (_, others) = items.split_once('\n').unwrap();
        let line = format!("{{\"item_id\":\"i0\",\"title\":\"A thing\",\"image\":\"{name}\"}}\n{others}");
        fs::write(checks.world.folder().join("with-image.jsonl"), line).unwrap();
    };
    fs::copy(root().join("fuzz/seeds/image/one.png"), checks.world.folder().join("one.png")).unwrap();
    item_with_image(checks, "one.png");
    let images = ["--set", "source.items=[\"with-image.jsonl\"]", "--set", "source.columns.images=\"image\""];
    let image = "extract.image.model=\"WORLD/encoder\"";
    let pipeline = ["--set", "dataset.name=\"with-image\""];
    let flags = [&images[..], &pipeline, &["--set", image]].concat();
    checks.world.run("preprocess", &flags[..6]);
    for (what, file, path, value) in [
        ("an encoder of images of another kind", config, "/model_type", json!("swin")),
        ("images of one colour", config, "/vision_config/num_channels", json!(1)),
        ("patches that do not fit", config, "/vision_config/patch_size", json!(7)),
        ("another resampling", "preprocessor_config.json", "/resample", json!(5)),
        ("images of another size", "preprocessor_config.json", "/crop_size/width", json!(32)),
        ("a deviation of zero", "preprocessor_config.json", "/image_std/0", json!(0.0)),
    ] {
        changed(checks, "tiny-clip", file, &|value_of| *value_of.pointer_mut(path).unwrap() = value.clone());
        checks.case(what, "extract", &flags, file);
    }
    changed(checks, "tiny-clip", config, &|_| ());
    fs::write(checks.world.folder().join("words.txt"), "\n").unwrap();
    let dictionary = ["--set", "extract.image.dictionary=\"WORLD/words.txt\"", "--set", "extract.image.text_words=0"];
    checks.case("a dictionary without words", "extract", &[&flags[..], &dictionary].concat(), "words.txt");
}
