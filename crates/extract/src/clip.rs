//! CLIP: maps images and words to vectors of one space.
//!
//! Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021 (arXiv 2103.00020). Reference:
//! `CLIPModel` of the Python library transformers.

use mp4sr_ops::{
    Activation, DeviceEncoder, EncoderInput, EncoderParts, InferenceLayer, InferenceLinear, InferenceNorm,
    InferenceShape, InferenceTransformer, Readout,
};
use rayon::prelude::*;
use serde::Deserialize;
use tokenizers::Tokenizer;

use crate::device::EncoderDevice;
use crate::encoder::{ImageEncoder, WordEncoder};
use crate::error::{Error, Result};
use crate::folder::ModelFolder;
use crate::model_files::{CONFIG, PROCESSOR, TOKENIZER};
use crate::processor::Processor;
use crate::weights::Weights;

/// The number of words that go through the layers together.
const WORDS: usize = 64;
/// The number of images that go through the layers together: about 500 tokens with patches of 32 pixels.
const IMAGES: usize = 10;
/// The same for a GPU, which needs many thousands of tokens to be busy.
const WORDS_ON_GPU: usize = 1024;
const IMAGES_ON_GPU: usize = 256;

/// `config.json`; the defaults are those of the reference.
#[derive(Deserialize)]
struct Config {
    model_type: String,
    #[serde(rename = "text_config")]
    text: TextConfig,
    #[serde(rename = "vision_config")]
    vision: VisionConfig,
    #[serde(default = "default_projection")]
    projection_dim: usize,
}

fn default_projection() -> usize {
    512
}

#[derive(Deserialize)]
#[serde(default)]
struct TextConfig {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    max_position_embeddings: usize,
    hidden_act: String,
    layer_norm_eps: f32,
    eos_token_id: u32,
}

impl Default for TextConfig {
    fn default() -> Self {
        Self {
            vocab_size: 49_408,
            hidden_size: 512,
            intermediate_size: 2048,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 77,
            hidden_act: "quick_gelu".to_owned(),
            layer_norm_eps: 1e-5,
            eos_token_id: 49_407,
        }
    }
}

#[derive(Deserialize)]
#[serde(default)]
struct VisionConfig {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_channels: usize,
    image_size: usize,
    patch_size: usize,
    hidden_act: String,
    layer_norm_eps: f32,
}

impl Default for VisionConfig {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            num_channels: 3,
            image_size: 224,
            patch_size: 32,
            hidden_act: "quick_gelu".to_owned(),
            layer_norm_eps: 1e-5,
        }
    }
}

impl Config {
    fn check(&self) -> std::result::Result<(), String> {
        if self.model_type != "clip" {
            return Err(format!("model_type: expected clip, found {}", self.model_type));
        }
        let vision = &self.vision;
        if vision.num_channels != 3 {
            return Err(format!("vision_config.num_channels: expected 3, found {}", vision.num_channels));
        }
        let (side, patch) = (vision.image_size, vision.patch_size);
        if patch == 0 || side < patch {
            return Err(format!("vision_config.patch_size {patch} does not fit image_size {side}"));
        }
        let divides = |d: usize, heads: usize| heads > 0 && d > 0 && d.is_multiple_of(heads);
        let text = &self.text;
        if !divides(vision.hidden_size, vision.num_attention_heads)
            || !divides(text.hidden_size, text.num_attention_heads)
        {
            return Err("hidden_size is not a multiple of num_attention_heads".to_owned());
        }
        Ok(())
    }
}

fn activation(name: &str) -> std::result::Result<Activation, String> {
    match name {
        "quick_gelu" => Ok(Activation::QuickGelu),
        "gelu" => Ok(Activation::Gelu),
        other => Err(format!("hidden_act: expected quick_gelu or gelu, found {other}")),
    }
}

/// The sizes of a tower.
struct Tower {
    name: &'static str,
    layers: usize,
    feed: usize,
    shape: InferenceShape,
}

impl Tower {
    fn load(&self, weights: &Weights<'_>) -> Result<InferenceTransformer> {
        let (d, feed) = (self.shape.width, self.feed);
        let layers = (0..self.layers).map(|at| {
            let full = |name: &str| format!("{}.encoder.layers.{at}.{name}", self.name);
            let qkv = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"].map(full);
            Ok(InferenceLayer {
                qkv: weights.side_by_side(&[qkv[0].as_str(), qkv[1].as_str(), qkv[2].as_str()], d, d)?,
                out: weights.linear(&full("self_attn.out_proj"), d, d)?,
                attention_norm: weights.norm(&full("layer_norm1"), d)?,
                up: weights.linear(&full("mlp.fc1"), d, feed)?,
                down: weights.linear(&full("mlp.fc2"), feed, d)?,
                feed_norm: weights.norm(&full("layer_norm2"), d)?,
            })
        });
        Ok(InferenceTransformer { shape: self.shape, layers: layers.collect::<Result<_>>()?, bias: None })
    }
}

/// Maps tokens to the projected vector of the end token.
struct TextTower {
    stack: InferenceTransformer,
    tokens: Vec<f32>,
    positions: Vec<f32>,
    norm: InferenceNorm,
    projection: InferenceLinear,
    end: u32,
    gpu: Option<DeviceEncoder>,
}

/// Maps patches to the projected vector of the class token.
struct VisionTower {
    stack: InferenceTransformer,
    patches: InferenceLinear,
    class: Vec<f32>,
    positions: Vec<f32>,
    norm_before: InferenceNorm,
    norm_after: InferenceNorm,
    projection: InferenceLinear,
    side: usize,
    patch: usize,
    gpu: Option<DeviceEncoder>,
}

/// A CLIP model with its processor and tokenizer.
pub(crate) struct Clip {
    text: TextTower,
    vision: VisionTower,
    tokenizer: Tokenizer,
    processor: Processor,
}

impl Clip {
    /// The files that determine the vectors, in addition to the weights.
    pub(crate) const FILES: [&str; 3] = [CONFIG, PROCESSOR, TOKENIZER];

    pub(crate) fn load(folder: &ModelFolder, device: &EncoderDevice) -> Result<Self> {
        let config: Config = folder.config.parse()?;
        let wrong = |reason| folder.config.error(reason);
        config.check().map_err(wrong)?;
        let acts = [activation(&config.text.hidden_act), activation(&config.vision.hidden_act)];
        let [text_act, vision_act] = acts;
        let (text_act, vision_act) = (text_act.map_err(wrong)?, vision_act.map_err(wrong)?);
        let processor = folder.processor_of_side(config.vision.image_size)?;
        let limit = config.text.max_position_embeddings;
        let tokenizer = folder.tokenizer(limit, config.text.vocab_size)?;
        let file = folder.weights()?;
        let weights = file.tensors(&[""], "text_model.embeddings.token_embedding.weight")?;
        Ok(Self {
            text: TextTower::load(&config, text_act, &weights, device)?,
            vision: VisionTower::load(&config, vision_act, &weights, device)?,
            tokenizer,
            processor,
        })
    }
}

impl WordEncoder for Clip {
    fn embed_words(&self, words: &[&str]) -> Result<Vec<f32>> {
        let tokens = words
            .par_iter()
            .map(|&word| {
                let encoding = self.tokenizer.encode(word, true);
                let encoding = encoding.map_err(|e| Error::Tokens { text: word.to_owned(), reason: e.to_string() })?;
                Ok(encoding.get_ids().to_vec())
            })
            .collect::<Result<Vec<_>>>()?;
        let vectors = match &self.text.gpu {
            Some(gpu) => tokens.chunks(WORDS_ON_GPU).map(|block| self.text.embed_on(gpu, block)).collect(),
            None => tokens.par_chunks(WORDS).map(|block| Ok(self.text.embed(block))).collect::<Result<Vec<_>>>(),
        };
        Ok(vectors?.concat())
    }
}

impl ImageEncoder for Clip {
    fn width(&self) -> usize {
        self.vision.projection.outputs()
    }

    fn processor(&self) -> &Processor {
        &self.processor
    }

    fn images_at_once(&self) -> usize {
        if self.is_on_gpu() { IMAGES_ON_GPU } else { IMAGES }
    }

    fn is_on_gpu(&self) -> bool {
        self.vision.gpu.is_some()
    }

    fn embed(&self, pixels: &[f32]) -> Result<Vec<f32>> {
        match &self.vision.gpu {
            Some(gpu) => Ok(gpu.embed_images(pixels)?),
            None => Ok(self.vision.embed(pixels)),
        }
    }

    fn word_encoder(&self) -> Option<&dyn WordEncoder> {
        Some(self)
    }
}

impl TextTower {
    fn load(config: &Config, activation: Activation, weights: &Weights<'_>, device: &EncoderDevice) -> Result<Self> {
        let text = &config.text;
        let d = text.hidden_size;
        let shape = InferenceShape {
            width: d,
            heads: text.num_attention_heads,
            eps: text.layer_norm_eps,
            norm_first: true,
            causal: true,
            activation,
            precision: device.precision(),
        };
        let tower = Tower { name: "text_model", layers: text.num_hidden_layers, feed: text.intermediate_size, shape };
        let positions = &[text.max_position_embeddings, d];
        let mut loaded = Self {
            stack: tower.load(weights)?,
            tokens: weights.read("text_model.embeddings.token_embedding.weight", &[text.vocab_size, d])?,
            positions: weights.read("text_model.embeddings.position_embedding.weight", positions)?,
            norm: weights.norm("text_model.final_layer_norm", d)?,
            projection: weights.projection("text_projection", d, config.projection_dim)?,
            end: text.eos_token_id,
            gpu: None,
        };
        loaded.gpu = device.upload(EncoderParts {
            input: EncoderInput::Tokens { table: &loaded.tokens, segment: None },
            positions: &loaded.positions,
            norm: None,
            stack: &loaded.stack,
            output: Some((&loaded.norm, &loaded.projection)),
        })?;
        Ok(loaded)
    }

    fn embed_on(&self, gpu: &DeviceEncoder, texts: &[Vec<u32>]) -> Result<Vec<f32>> {
        let positions: Vec<u32> = texts.iter().flat_map(|tokens| 0..tokens.len() as u32).collect();
        let lengths: Vec<usize> = texts.iter().map(Vec::len).collect();
        let mut first = 0;
        let ends = texts.iter().map(|tokens| {
            let end = first + self.end_of(tokens) as u32;
            first += tokens.len() as u32;
            end
        });
        let ends: Vec<u32> = ends.collect();
        Ok(gpu.embed_tokens(&texts.concat(), &positions, &lengths, Readout::Rows(&ends))?)
    }

    fn embed(&self, texts: &[Vec<u32>]) -> Vec<f32> {
        let d = self.stack.shape.width;
        let mut x = Vec::new();
        for tokens in texts {
            for (position, &token) in tokens.iter().enumerate() {
                let (token, position) = (&self.tokens[token as usize * d..][..d], &self.positions[position * d..][..d]);
                x.extend(token.iter().zip(position).map(|(token, position)| token + position));
            }
        }
        let lengths: Vec<usize> = texts.iter().map(Vec::len).collect();
        self.stack.forward(&mut x, &lengths);
        let mut ends = Vec::with_capacity(texts.len() * d);
        let mut first = 0;
        for tokens in texts {
            ends.extend_from_slice(&x[(first + self.end_of(tokens)) * d..][..d]);
            first += tokens.len();
        }
        self.norm.forward(&mut ends, self.stack.shape.eps);
        project(&self.projection, &ends)
    }

    /// The position of the first end token. Old configurations say 2, which means the highest token id of the text.
    fn end_of(&self, tokens: &[u32]) -> usize {
        let end = if self.end == 2 { tokens.iter().max().copied().unwrap_or(0) } else { self.end };
        tokens.iter().position(|&token| token == end).unwrap_or(0)
    }
}

impl VisionTower {
    fn load(config: &Config, activation: Activation, weights: &Weights<'_>, device: &EncoderDevice) -> Result<Self> {
        let vision = &config.vision;
        let (d, patch) = (vision.hidden_size, vision.patch_size);
        let shape = InferenceShape {
            width: d,
            heads: vision.num_attention_heads,
            eps: vision.layer_norm_eps,
            norm_first: true,
            causal: false,
            activation,
            precision: device.precision(),
        };
        let tower =
            Tower { name: "vision_model", layers: vision.num_hidden_layers, feed: vision.intermediate_size, shape };
        let across = vision.image_size / patch;
        let kernel = weights.read("vision_model.embeddings.patch_embedding.weight", &[d, 3, patch, patch])?;
        let positions = &[across * across + 1, d];
        let mut loaded = Self {
            stack: tower.load(weights)?,
            patches: InferenceLinear::new(&kernel, vec![0.0; d]),
            class: weights.read("vision_model.embeddings.class_embedding", &[d])?,
            positions: weights.read("vision_model.embeddings.position_embedding.weight", positions)?,
            // `layrnorm` is the reference's spelling.
            norm_before: weights.norm("vision_model.pre_layrnorm", d)?,
            norm_after: weights.norm("vision_model.post_layernorm", d)?,
            projection: weights.projection("visual_projection", d, config.projection_dim)?,
            side: vision.image_size,
            patch,
            gpu: None,
        };
        let patches = EncoderInput::Images { patches: &loaded.patches, class: &loaded.class, side: loaded.side, patch };
        loaded.gpu = device.upload(EncoderParts {
            input: patches,
            positions: &loaded.positions,
            norm: Some(&loaded.norm_before),
            stack: &loaded.stack,
            output: Some((&loaded.norm_after, &loaded.projection)),
        })?;
        Ok(loaded)
    }

    /// Maps pixels `[images, 3, side, side]` to vectors `[images, width]`.
    fn embed(&self, pixels: &[f32]) -> Vec<f32> {
        let d = self.stack.shape.width;
        let images = pixels.len() / (3 * self.side * self.side);
        let mut patches = Vec::with_capacity(pixels.len());
        pixels.chunks_exact(3 * self.side * self.side).for_each(|image| self.cut(image, &mut patches));
        let count = self.positions.len() / d - 1;
        let mut of_patches = vec![0.0; images * count * d];
        self.patches.forward(&mut of_patches, &patches);
        let mut x = Vec::with_capacity(images * (count + 1) * d);
        for image in of_patches.chunks_exact(count * d) {
            let tokens = self.class.iter().chain(image);
            x.extend(tokens.zip(&self.positions).map(|(token, position)| token + position));
        }
        self.norm_before.forward(&mut x, self.stack.shape.eps);
        self.stack.forward(&mut x, &vec![count + 1; images]);
        let mut classes: Vec<f32> = x.chunks_exact((count + 1) * d).flat_map(|image| &image[..d]).copied().collect();
        self.norm_after.forward(&mut classes, self.stack.shape.eps);
        project(&self.projection, &classes)
    }

    /// Appends the patches of an image row by row, each of them channel by channel.
    fn cut(&self, image: &[f32], patches: &mut Vec<f32>) {
        let (side, patch) = (self.side, self.patch);
        let across = side / patch;
        for (row, column) in (0..across * across).map(|at| (at / across * patch, at % across * patch)) {
            for line in (0..3).flat_map(|channel| (row..row + patch).map(move |y| channel * side + y)) {
                patches.extend_from_slice(&image[line * side + column..][..patch]);
            }
        }
    }
}

/// Projects one row at a time, because the order of the additions in a product depends on its number of rows.
fn project(projection: &InferenceLinear, rows: &[f32]) -> Vec<f32> {
    let inputs = projection.inputs();
    let mut out = vec![0.0; rows.len() / inputs * projection.outputs()];
    for (out, row) in out.chunks_exact_mut(projection.outputs()).zip(rows.chunks_exact(inputs)) {
        projection.forward(out, row);
    }
    out
}
