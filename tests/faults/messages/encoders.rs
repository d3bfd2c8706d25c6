//! Encoders that are not there, are not whole, or are of an architecture that is not followed.

use std::fs;

use mp4sr_artifact::files;
use mp4sr_tests::root;
use serde_json::{Value, json};

use super::Told;

/// A copy of one of the project's encoders in the world's folder, with `file` changed.
fn changed(told: &Told, encoder: &str, file: &str, change: &dyn Fn(&mut Value)) {
    let own = root().join("data/encoders").join(encoder);
    let copy = told.world.folder().join("encoder");
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

pub fn tell(told: &mut Told) {
    told.set("an encoder that is not there", "extract", "extract.text.model=\"./nowhere\"", "nowhere");
    let text = "extract.text.model=\"WORLD/encoder\"";
    let config = "config.json";
    for (what, key, value) in [
        ("an encoder of another kind", "model_type", json!("longformer")),
        ("an activation that is not followed", "hidden_act", json!("relu")),
        ("positions that are not followed", "position_embedding_type", json!("relative_key")),
        ("heads that do not fit", "num_attention_heads", json!(5)),
        ("layers without weights", "num_hidden_layers", json!(3)),
        ("weights of another shape than configured", "intermediate_size", json!(64)),
        ("fewer tokens than the tokenizer has", "vocab_size", json!(7)),
    ] {
        changed(told, "tiny-sentence", config, &|config| config[key] = value.clone());
        told.set(what, "extract", text, "encoder/");
    }
    changed(told, "tiny-sentence", "modules.json", &|modules| modules[1]["type"] = json!("models.CNN"));
    told.set("a module that is not followed", "extract", text, "modules.json");
    changed(told, "tiny-sentence", config, &|_| ());
    let weights = told.world.folder().join("encoder/model.safetensors");
    let whole = files::read(&weights).unwrap();
    fs::write(&weights, &whole[..whole.len() / 2]).unwrap();
    told.set("weights cut short", "extract", text, "model.safetensors");
    fs::remove_file(&weights).unwrap();
    fs::write(weights.with_file_name("pytorch_model.bin"), b"PK").unwrap();
    told.set("an encoder without safetensors", "extract", text, "encoder");

    // An encoder of images is looked at where there are images.
    let picture = |told: &Told, name: &str| {
        let items = told.world.raw_text("a.jsonl");
        let (_, others) = items.split_once('\n').unwrap();
        let line = format!("{{\"item_id\":\"i0\",\"title\":\"A thing\",\"image\":\"{name}\"}}\n{others}");
        fs::write(told.world.folder().join("pictures.jsonl"), line).unwrap();
    };
    fs::copy(root().join("fuzz/seeds/image/one.png"), told.world.folder().join("one.png")).unwrap();
    picture(told, "one.png");
    let pictures = ["--set", "source.items=[\"pictures.jsonl\"]", "--set", "source.columns.images=\"image\""];
    let image = "extract.image.model=\"WORLD/encoder\"";
    let pipeline = ["--set", "dataset.name=\"pictures\""];
    let flags = [&pictures[..], &pipeline, &["--set", image]].concat();
    told.world.run("preprocess", &flags[..6]);
    for (what, file, path, value) in [
        ("an encoder of images of another kind", config, "/model_type", json!("swin")),
        ("pictures of one colour", config, "/vision_config/num_channels", json!(1)),
        ("patches that do not fit", config, "/vision_config/patch_size", json!(7)),
        ("another resampling", "preprocessor_config.json", "/resample", json!(5)),
        ("pictures of another size", "preprocessor_config.json", "/crop_size/width", json!(32)),
        ("a deviation of zero", "preprocessor_config.json", "/image_std/0", json!(0.0)),
    ] {
        changed(told, "tiny-clip", file, &|value_of| *value_of.pointer_mut(path).unwrap() = value.clone());
        told.case(what, "extract", &flags, file);
    }
    changed(told, "tiny-clip", config, &|_| ());
    fs::write(told.world.folder().join("words.txt"), "\n").unwrap();
    let dictionary = ["--set", "extract.image.dictionary=\"WORLD/words.txt\"", "--set", "extract.image.text_words=0"];
    told.case("a dictionary without words", "extract", &[&flags[..], &dictionary].concat(), "words.txt");
}
