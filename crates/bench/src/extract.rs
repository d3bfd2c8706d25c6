//! Times encoders of sentences and images as the extract stage runs them: from text to vectors, and from JPEG files to vectors.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;
use image::{ImageFormat, RgbImage};
use mp4sr_artifact::files;
use mp4sr_extract::{EncoderDevice, ImageEncoder, SentenceEncoder, load_image_encoder_on, overlap};
use mp4sr_ops::{ComputeDevice, Precision, RngKey};
use rayon::prelude::*;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::json;

use crate::measure::{MedianRange, peak_mib, threads};

const SENTENCES: usize = 4000;
const IMAGES: usize = 192;

/// The encoders to time.
#[derive(clap::Args)]
pub struct ExtractArgs {
    /// The folder with `sentences.txt`, `images` and `clip`; if it does not exist, it is created with random weights.
    #[arg(long, value_name = "FOLDER")]
    folder: PathBuf,
    /// A sentence encoder to time over `sentences.txt`: a folder or a name on the hub.
    #[arg(long, value_name = "MODEL")]
    sentences: Option<String>,
    /// Times an image encoder over `images`.
    #[arg(long)]
    images: bool,
    /// The image encoder to time: a folder or a name on the hub; by default, `clip` in the folder.
    #[arg(long, value_name = "MODEL")]
    image_model: Option<String>,
    /// Times the image encoder over pixels that are in memory, without reading and decoding files.
    #[arg(long, requires = "images")]
    pixels: bool,
    /// The number of image files to create.
    #[arg(long, value_name = "N", default_value_t = IMAGES)]
    image_count: usize,
    /// The number of sentences in `sentences.txt` if it is created.
    #[arg(long, value_name = "N", default_value_t = SENTENCES)]
    sentence_count: usize,
    /// The device of the encoders: `cpu`, or `cuda:0` for the first NVIDIA GPU.
    #[arg(long, default_value = "cpu")]
    device: ComputeDevice,
    /// The precision of the matrix products; tf32 needs a GPU, bf16 a GPU or AVX-512-BF16.
    #[arg(long, default_value = "f32")]
    precision: Precision,
    /// A file to which the vectors of the timed encoders are written, as f32 in little-endian order.
    #[arg(long, value_name = "FILE")]
    vectors: Option<PathBuf>,
    /// The number of timed rounds.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

/// Times the selected encoders, and returns one line of JSON for each.
pub fn run(args: &ExtractArgs) -> anyhow::Result<String> {
    prepare(args)?;
    let device = EncoderDevice::open(args.device, args.precision)?;
    let (mut lines, mut vectors) = (Vec::new(), Vec::new());
    if let Some(model) = &args.sentences {
        let encoder = SentenceEncoder::load_on(model, &device)?;
        let text = files::read_to_string(&args.folder.join("sentences.txt"))?;
        let sentences: Vec<&str> = text.lines().collect();
        let (times, found) = timed(args.rounds, || encoder.encode(&sentences, |_| {}))?;
        vectors.extend(found);
        lines.push(line(args, "sentences", model, sentences.len(), &times));
    }
    if args.images {
        let model = args.image_model.clone().unwrap_or_else(|| args.folder.join("clip").to_string_lossy().into_owned());
        let encoder = load_image_encoder_on(&model, &device)?;
        let paths = files::list(&args.folder.join("images"))?;
        let (times, found) = if args.pixels {
            let blocks: Vec<Vec<f32>> = paths
                .chunks(encoder.images_at_once())
                .map(|block| read(encoder.as_ref(), block))
                .collect::<Result<_, _>>()?;
            timed(args.rounds, || embed_pixels(encoder.as_ref(), &blocks))?
        } else {
            timed(args.rounds, || embed(encoder.as_ref(), &paths))?
        };
        vectors.extend(found);
        lines.push(line(args, if args.pixels { "pixels" } else { "images" }, &model, paths.len(), &times));
    }
    if let Some(path) = &args.vectors {
        files::write_bytes(path, bytemuck::cast_slice(&vectors))?;
    }
    Ok(lines.join("\n"))
}

/// The seconds of each round, after one round that is not timed, and the last result.
fn timed<T, E: Into<anyhow::Error>>(
    rounds: usize,
    mut work: impl FnMut() -> Result<T, E>,
) -> anyhow::Result<(Vec<f64>, T)> {
    let mut result = work().map_err(Into::into)?;
    let mut times = Vec::new();
    for _ in 0..rounds {
        let start = Instant::now();
        result = work().map_err(Into::into)?;
        times.push(start.elapsed().as_secs_f64());
    }
    Ok((times, result))
}

fn line(args: &ExtractArgs, what: &str, model: &str, count: usize, times: &[f64]) -> String {
    let rates: Vec<f64> = times.iter().map(|time| count as f64 / time).collect();
    let rate = MedianRange::of(&rates);
    json!({
        "benchmark": "extract", "what": what, "model": model, "count": count, "per_second": rate.median,
        "range_per_second": [rate.least, rate.most], "threads": threads(), "peak_mib": peak_mib(),
        "device": args.device.to_string(), "precision": args.precision.to_string(),
    })
    .to_string()
}

/// The pixels of image files. For an encoder on a GPU, all threads read the images of one block; on the CPU, every thread reads its own
/// block.
fn read(encoder: &dyn ImageEncoder, paths: &[PathBuf]) -> anyhow::Result<Vec<f32>> {
    let read = |path: &PathBuf| encoder.processor().read(&files::read(path)?).map_err(anyhow::Error::msg);
    let images: anyhow::Result<Vec<_>> =
        if encoder.is_on_gpu() { paths.par_iter().map(read).collect() } else { paths.iter().map(read).collect() };
    Ok(images?.concat())
}

fn embed_pixels(encoder: &dyn ImageEncoder, blocks: &[Vec<f32>]) -> anyhow::Result<Vec<f32>> {
    let embed = |block: &Vec<f32>| encoder.embed(block);
    let vectors: Result<Vec<Vec<f32>>, _> = if encoder.is_on_gpu() {
        blocks.iter().map(embed).collect()
    } else {
        blocks.par_iter().with_max_len(1).map(embed).collect()
    };
    Ok(vectors?.concat())
}

fn embed(encoder: &dyn ImageEncoder, paths: &[PathBuf]) -> anyhow::Result<Vec<f32>> {
    if !encoder.is_on_gpu() {
        let blocks = paths.par_chunks(encoder.images_at_once()).with_max_len(1);
        let vectors = blocks.map(|block| Ok(encoder.embed(&read(encoder, block)?)?));
        return Ok(vectors.collect::<anyhow::Result<Vec<_>>>()?.concat());
    }
    let mut vectors = Vec::new();
    let blocks = paths.chunks(encoder.images_at_once());
    overlap(
        blocks,
        |block| read(encoder, block),
        |pixels| {
            vectors.extend(encoder.embed(&pixels?)?);
            anyhow::Ok(())
        },
    )?;
    Ok(vectors)
}

/// Creates the missing files: sentences of 3 to 40 words, JPEG files of 500 x 400 pixels, and a CLIP model of the size of ViT-B/32.
fn prepare(args: &ExtractArgs) -> anyhow::Result<()> {
    let folder = &args.folder;
    let last = folder.join("clip/model.safetensors");
    if last.is_file() {
        return Ok(());
    }
    files::write_bytes(&folder.join("sentences.txt"), sentences(args.sentence_count).as_bytes())?;
    for at in 0..args.image_count {
        let mut bytes = std::io::Cursor::new(Vec::new());
        draw_image(at as u64).write_to(&mut bytes, ImageFormat::Jpeg)?;
        files::write_bytes(&folder.join(format!("images/{at:05}.jpg")), bytes.get_ref())?;
    }
    clip(&folder.join("clip"))
}

fn sentences(count: usize) -> String {
    let words: Vec<&str> =
        include_str!("../../../data/words/visual.txt").lines().filter(|w| !w.starts_with('#')).collect();
    let key = RngKey::new(1);
    let draw = |at: u64, below: usize| (key.uniform(at) * below as f64) as usize;
    let mut at = 0;
    let mut lines = String::new();
    for _ in 0..count {
        // Short sentences are the most frequent, as in titles and descriptions.
        let length = 3 + draw(at, 38) * draw(at + 1, 38) / 38;
        at += 2;
        let sentence: Vec<&str> = (0..length as u64).map(|word| words[draw(at + word, words.len())]).collect();
        at += length as u64;
        lines += &sentence.join(" ");
        lines.push('\n');
    }
    lines
}

fn draw_image(seed: u64) -> RgbImage {
    let key = RngKey::new(2).fold_in_index(seed);
    let wave = |at| 0.01 + 0.05 * key.uniform(at) as f32;
    let waves: Vec<(f32, f32)> = (0..3).map(|channel| (wave(channel), wave(channel + 3))).collect();
    RgbImage::from_fn(500, 400, |x, y| {
        let noise = 20.0 * key.uniform(10 + u64::from(y * 500 + x)) as f32;
        let level = |(a, b): (f32, f32)| (110.0 + 100.0 * (a * x as f32).sin() * (b * y as f32).cos() + noise) as u8;
        image::Rgb([level(waves[0]), level(waves[1]), level(waves[2])])
    })
}

/// The width, the number of layers and the feed-forward width of each tower of ViT-B/32, and the width of their common space.
const VISION: (usize, usize, usize) = (768, 12, 3072);
const TEXT: (usize, usize, usize) = (512, 12, 2048);
const PROJECTION: usize = 512;

fn clip(folder: &Path) -> anyhow::Result<()> {
    let tokenizer = Path::new("data/encoders/tiny-clip/tokenizer.json");
    let tokens = files::read(tokenizer).context("run it from the root of the repository")?;
    let known: serde_json::Value = serde_json::from_slice(&tokens)?;
    let words = known["model"]["vocab"].as_object().map_or(0, serde_json::Map::len) + 2;
    files::write_bytes(&folder.join("tokenizer.json"), &tokens)?;
    let tower = |(width, layers, feed): (usize, usize, usize), heads: usize| json!({"hidden_size": width, "num_hidden_layers": layers, "intermediate_size": feed, "num_attention_heads": heads});
    let (mut text, vision) = (tower(TEXT, 8), tower(VISION, 12));
    text["vocab_size"] = words.into();
    let config =
        json!({"model_type": "clip", "projection_dim": PROJECTION, "text_config": text, "vision_config": vision});
    files::write_json(&folder.join("config.json"), &config)?;
    let processor = json!({
        "image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 224}, "do_convert_rgb": true,
        "crop_size": {"height": 224, "width": 224}, "image_mean": [0.481_454_66, 0.457_827_5, 0.408_210_73],
        "image_std": [0.268_629_54, 0.261_302_58, 0.275_777_11],
    });
    files::write_json(&folder.join("preprocessor_config.json"), &processor)?;
    let shapes = shapes(words);
    let values: Vec<Vec<f32>> =
        shapes.par_iter().enumerate().map(|(at, (name, shape))| draw(at, name, shape)).collect();
    let views = shapes.iter().zip(&values).map(|((name, shape), values)| {
        Ok((name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytemuck::cast_slice(values))?))
    });
    let views = views.collect::<Result<Vec<_>, safetensors::SafeTensorError>>()?;
    files::write_bytes(&folder.join("model.safetensors"), &safetensors::serialize(views, None)?)?;
    Ok(())
}

fn draw(at: usize, name: &str, shape: &[usize]) -> Vec<f32> {
    let count: usize = shape.iter().product();
    if name.contains("norm") && name.ends_with("weight") || name.ends_with("layrnorm.weight") {
        return vec![1.0; count];
    }
    let key = RngKey::new(3).fold_in_index(at as u64);
    (0..count as u64).map(|i| (key.uniform(i) as f32 - 0.5) * 0.06).collect()
}

fn shapes(words: usize) -> Vec<(String, Vec<usize>)> {
    let mut shapes = vec![
        ("text_model.embeddings.token_embedding.weight".to_owned(), vec![words, TEXT.0]),
        ("text_model.embeddings.position_embedding.weight".to_owned(), vec![77, TEXT.0]),
        ("text_projection.weight".to_owned(), vec![PROJECTION, TEXT.0]),
        ("vision_model.embeddings.class_embedding".to_owned(), vec![VISION.0]),
        ("vision_model.embeddings.patch_embedding.weight".to_owned(), vec![VISION.0, 3, 32, 32]),
        ("vision_model.embeddings.position_embedding.weight".to_owned(), vec![50, VISION.0]),
        ("visual_projection.weight".to_owned(), vec![PROJECTION, VISION.0]),
        ("logit_scale".to_owned(), vec![]),
    ];
    let mut pair = |name: String, outputs: usize, inputs: Option<usize>| {
        shapes.push((format!("{name}.weight"), [Some(outputs), inputs].into_iter().flatten().collect()));
        shapes.push((format!("{name}.bias"), vec![outputs]));
    };
    pair("text_model.final_layer_norm".to_owned(), TEXT.0, None);
    pair("vision_model.pre_layrnorm".to_owned(), VISION.0, None);
    pair("vision_model.post_layernorm".to_owned(), VISION.0, None);
    for (tower, (d, layers, feed)) in [("text_model", TEXT), ("vision_model", VISION)] {
        for layer in 0..layers {
            let name = |part: &str| format!("{tower}.encoder.layers.{layer}.{part}");
            for part in ["q_proj", "k_proj", "v_proj", "out_proj"] {
                pair(name(&format!("self_attn.{part}")), d, Some(d));
            }
            pair(name("layer_norm1"), d, None);
            pair(name("layer_norm2"), d, None);
            pair(name("mlp.fc1"), feed, Some(d));
            pair(name("mlp.fc2"), d, Some(feed));
        }
    }
    shapes
}
