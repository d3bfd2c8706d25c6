//! Whisper's encoder: maps a sound to the mean of its frames' vectors.
//!
//! Radford et al. 2022 (arXiv 2212.04356). Reference: `WhisperModel.encoder` and `WhisperFeatureExtractor` of transformers. The mean is
//! taken over the frames of 20 ms that the sound covers, without the silence that pads the window. A sound longer than the window of 30
//! seconds goes through the layers window by window, and the mean is taken over the frames of all windows. Layers: candle-nn. Those of
//! candle-transformers use the tanh approximation of GELU and cannot be built without a decoder.

use candle_core::{Device, IndexOp, Module, Result as Computed, Tensor};
use candle_nn::{Conv1d, Conv1dConfig, LayerNorm, Linear, VarBuilder, conv1d, layer_norm};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::layers::{attention, linear};
use super::settings::ArchitectureKeys;
use super::{ArchitectureSettings, Tensors};
use crate::audio::LogMel;
use crate::error::Result;
use crate::folder::{JsonFile, ModelFolder};
use crate::model_files::{CONFIG, PROCESSOR};

/// The values of `model_type` that are supported.
pub(crate) const MODEL_TYPES: [&str; 1] = ["whisper"];
const KEYS: ArchitectureKeys = ArchitectureKeys {
    supported: &[
        "d_model",
        "encoder_attention_heads",
        "encoder_ffn_dim",
        "encoder_layers",
        "max_source_positions",
        "num_mel_bins",
    ],
    only: &[("activation_function", &["\"gelu\""]), ("scale_embedding", &["false"])],
    // Keys of the decoder and of training.
    harmless: &[
        "activation_dropout",
        "apply_spec_augment",
        "classifier_proj_size",
        "decoder_attention_heads",
        "decoder_ffn_dim",
        "decoder_layerdrop",
        "decoder_layers",
        "dropout",
        "encoder_layerdrop",
        "forced_decoder_ids",
        "init_std",
        "lang_ids",
        "mask_feature_length",
        "mask_feature_min_masks",
        "mask_feature_prob",
        "mask_time_length",
        "mask_time_min_masks",
        "mask_time_prob",
        "max_target_positions",
        "median_filter_width",
        "num_hidden_layers",
        "use_weighted_layer_sum",
        "vocab_size",
    ],
};

const EPS: f64 = 1e-5;
/// The number of samples per frame of the encoder: two steps of the spectrogram.
const FRAME: usize = 2 * LogMel::HOP;

/// `preprocessor_config.json`.
#[derive(Deserialize)]
struct Processor {
    feature_size: usize,
    sampling_rate: usize,
    hop_length: usize,
    n_fft: usize,
    chunk_length: usize,
    #[serde(default)]
    padding_value: f64,
    #[serde(default)]
    dither: f64,
    #[serde(default)]
    do_normalize: bool,
    #[serde(flatten)]
    others: Map<String, Value>,
}

/// Keys of the processor that follow from the others, or that change nothing.
const HARMLESS: [&str; 8] = [
    "feature_extractor_type",
    "image_processor_type",
    "mel_filters",
    "n_samples",
    "nb_max_frames",
    "padding_side",
    "processor_class",
    "return_attention_mask",
];

struct Layer {
    norms: [LayerNorm; 2],
    qkv: [Linear; 3],
    out: Linear,
    up: Linear,
    down: Linear,
}

/// An encoder of sound with fixed weights.
pub struct AudioEncoder {
    convolutions: [Conv1d; 2],
    /// `[1, frames, d]`.
    positions: Tensor,
    layers: Vec<Layer>,
    norm: LayerNorm,
    heads: usize,
    mel: LogMel,
    /// The number of samples in a window.
    window: usize,
}

/// Rejects a model of another type.
fn expect_known(folder: &ModelFolder) -> Result<()> {
    let model_type = folder.architecture()?;
    if MODEL_TYPES.contains(&model_type.as_str()) {
        return Ok(());
    }
    let known = MODEL_TYPES.join(", ");
    Err(folder.config.error(format!("model_type: expected one of {known}; found {model_type}")))
}

impl AudioEncoder {
    /// Loads an audio encoder from a folder, or from the hub by its name.
    pub fn load(name: &str) -> Result<Self> {
        Self::from_folder(&ModelFolder::open(name)?)
    }

    /// The files that determine the vectors.
    pub(crate) fn files(folder: &ModelFolder) -> Result<Vec<String>> {
        expect_known(folder)?;
        let files = [CONFIG, PROCESSOR].map(str::to_owned).into_iter();
        Ok(files.chain(folder.weight_files()?).collect())
    }

    pub(crate) fn from_folder(folder: &ModelFolder) -> Result<Self> {
        expect_known(folder)?;
        let settings = ArchitectureSettings::read(folder, &KEYS)?;
        let (d, heads) = (settings.size("d_model")?, settings.size("encoder_attention_heads")?);
        if !d.is_multiple_of(heads) {
            return Err(settings.refused("encoder_attention_heads", "a divisor of d_model", &Value::from(heads)));
        }
        let (bands, frames) = (settings.size_or("num_mel_bins", 80)?, settings.size_or("max_source_positions", 1500)?);
        let file = folder.json(PROCESSOR)?;
        let processor: Processor = file.parse()?;
        processor.check(bands, frames, &file)?;
        let inner = settings.size("encoder_ffn_dim")?;
        let depth = settings.size("encoder_layers")?;
        let tensors = Tensors::read(folder, &["model.encoder.", "encoder."], "conv1.weight")?;
        tensors.build(&[], |builder| {
            let convolution = |inputs, stride, name| {
                let config = Conv1dConfig { padding: 1, stride, ..Conv1dConfig::default() };
                conv1d(inputs, d, 3, config, builder.pp(name))
            };
            let layers = (0..depth).map(|at| Layer::new(d, inner, &builder.pp(format!("layers.{at}"))));
            Ok(Self {
                convolutions: [convolution(bands, 1, "conv1")?, convolution(d, 2, "conv2")?],
                positions: builder.get((frames, d), "embed_positions.weight")?.unsqueeze(0)?,
                layers: layers.collect::<Computed<_>>()?,
                norm: layer_norm(d, EPS, builder.pp("layer_norm"))?,
                heads,
                mel: LogMel::new(bands),
                window: frames * FRAME,
            })
        })
    }

    /// d, the width of a vector.
    pub fn width(&self) -> usize {
        self.positions.dim(2).unwrap_or(0)
    }

    /// The vector of a sound with 16,000 samples per second; zeros for a sound without samples.
    pub fn embed(&self, samples: &[f32]) -> Result<Vec<f32>> {
        let mut sum = vec![0.0; self.width()];
        let mut count = 0;
        for window in samples.chunks(self.window) {
            let covered = window.len().div_ceil(FRAME);
            let states = self.forward(window)?.i((0, ..covered))?.sum(0)?.to_vec1::<f32>()?;
            sum.iter_mut().zip(states).for_each(|(sum, state)| *sum += state);
            count += covered;
        }
        let count = count.max(1) as f32;
        Ok(sum.into_iter().map(|sum| sum / count).collect())
    }

    /// The vectors `[1, frames, d]` of a window, which is padded with silence.
    fn forward(&self, samples: &[f32]) -> Computed<Tensor> {
        let mut whole = samples.to_vec();
        whole.resize(self.window, 0.0);
        let spectrum = self.mel.of(&whole);
        let steps = spectrum.len() / self.mel.bands();
        let mut x = Tensor::from_vec(spectrum, (1, self.mel.bands(), steps), &Device::Cpu)?;
        for convolution in &self.convolutions {
            x = convolution.forward(&x)?.gelu_erf()?;
        }
        let mut x = x.transpose(1, 2)?.broadcast_add(&self.positions)?;
        for layer in &self.layers {
            x = layer.forward(&x, self.heads)?;
        }
        self.norm.forward(&x)
    }
}

impl Processor {
    /// Refuses settings that are not supported here.
    fn check(&self, bands: usize, frames: usize, file: &JsonFile) -> Result<()> {
        let fixed = [
            ("feature_size", self.feature_size, bands),
            ("sampling_rate", self.sampling_rate, LogMel::RATE),
            ("hop_length", self.hop_length, LogMel::HOP),
            ("n_fft", self.n_fft, LogMel::WINDOW),
        ];
        if let Some((key, found, expected)) = fixed.iter().find(|(_, found, expected)| found != expected) {
            return Err(file.error(format!("{key}: expected {expected}, found {found}")));
        }
        if self.chunk_length * self.sampling_rate != frames * FRAME {
            let seconds = (frames * FRAME) as f64 / self.sampling_rate as f64;
            let found = self.chunk_length;
            return Err(file.error(format!("chunk_length: expected {seconds} as in config.json, found {found}")));
        }
        if self.padding_value != 0.0 || self.dither != 0.0 || self.do_normalize {
            return Err(file.error("expected padding_value 0, dither 0 and do_normalize false"));
        }
        match self.others.iter().find(|(key, value)| !value.is_null() && !HARMLESS.contains(&key.as_str())) {
            Some((key, value)) => {
                Err(file
                    .error(format!("{key}: this key is not supported, and it may change the vectors (found {value})")))
            }
            None => Ok(()),
        }
    }
}

impl Layer {
    fn new(d: usize, inner: usize, builder: &VarBuilder<'_>) -> Computed<Self> {
        let norm = |name| layer_norm(d, EPS, builder.pp(name));
        let of = |name: &str, has_bias| linear(d, d, has_bias, builder.pp(format!("self_attn.{name}")));
        Ok(Self {
            norms: [norm("self_attn_layer_norm")?, norm("final_layer_norm")?],
            qkv: [of("q_proj", true)?, of("k_proj", false)?, of("v_proj", true)?],
            out: of("out_proj", true)?,
            up: linear(d, inner, true, builder.pp("fc1"))?,
            down: linear(inner, d, true, builder.pp("fc2"))?,
        })
    }

    fn forward(&self, x: &Tensor, heads: usize) -> Computed<Tensor> {
        let inside = self.norms[0].forward(x)?;
        let [q, k, v] = [&self.qkv[0], &self.qkv[1], &self.qkv[2]].map(|map| map.forward(&inside));
        let x = (x + self.out.forward(&attention(&q?, &k?, &v?, heads)?)?)?;
        let inside = self.up.forward(&self.norms[1].forward(&x)?)?.gelu_erf()?;
        x + self.down.forward(&inside)?
    }
}
