//! What follows the language model of a sentence encoder: pooling, and the modules after it.
//!
//! Reference: the modules `Pooling`, `Dense`, `LayerNorm` and `Normalize` of sentence-transformers.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::pooling::Pooling;
use crate::error::Result;
use crate::folder::{JsonFile, ModelFolder};
use crate::model_files::{MODULES, WEIGHTS};

/// The smallest norm that a vector is divided by, as in the reference.
const SMALLEST_NORM: f32 = 1e-12;
/// Added to the variance in the module `LayerNorm`.
const EPS: f32 = 1e-5;

#[derive(Deserialize)]
pub(super) struct Module {
    path: String,
    #[serde(rename = "type")]
    kind: String,
}

impl Module {
    /// The name of its class without its Python module, which changes between releases.
    fn class(&self) -> &str {
        self.kind.rsplit('.').next().unwrap_or_default()
    }

    fn settings_file(&self) -> String {
        format!("{}/config.json", self.path)
    }

    /// The files that decide what it computes.
    pub fn files(&self) -> Vec<String> {
        match self.class() {
            "Pooling" => vec![self.settings_file()],
            "Dense" | "LayerNorm" => vec![self.settings_file(), format!("{}/{WEIGHTS}", self.path)],
            _ => Vec::new(),
        }
    }
}

/// `modules.json` and the modules that it names; `None` if the file is missing.
pub(super) fn modules(folder: &ModelFolder) -> Result<Option<(JsonFile, Vec<Module>)>> {
    let file = folder.optional_json(MODULES)?;
    file.map(|file| file.parse().map(|modules| (file, modules))).transpose()
}

/// A layer that is applied to the pooled vector.
enum Layer {
    Dense(Dense),
    Norm { weight: Vec<f32>, bias: Vec<f32> },
    Normalise,
}

/// A linear map with its activation.
struct Dense {
    inputs: usize,
    /// `[out, in]`.
    weight: Vec<f32>,
    /// The bias; zeros if there is none.
    bias: Vec<f32>,
    activation: Activation,
    residual: Residual,
}

enum Residual {
    None,
    Input,
    /// A linear map of the input, `[out, in]`.
    Map(Vec<f32>),
}

#[derive(Clone, Copy)]
enum Activation {
    Identity,
    Tanh,
    Relu,
    Gelu,
    Sigmoid,
}

/// How the vectors of tokens become the vector of a text.
pub(super) struct Head {
    /// The poolings, whose results are concatenated.
    pub poolings: Vec<Pooling>,
    layers: Vec<Layer>,
    /// The number of leading values of the vector that are kept, if not all are.
    truncate: Option<usize>,
}

impl Head {
    /// Reads the modules of a folder. Without any, the tokens are pooled by mean, as in the reference.
    pub fn read(folder: &ModelFolder, truncate: Option<usize>, has_prompt: bool) -> Result<Self> {
        let mut head = Self { poolings: vec![Pooling::Mean], layers: Vec::new(), truncate };
        let Some((file, modules)) = modules(folder)? else { return Ok(head) };
        let mut is_pooled = false;
        for (at, module) in modules.iter().enumerate() {
            match module.class() {
                "Transformer" if at == 0 => {}
                "Pooling" if !is_pooled => {
                    let settings = folder.json(&module.settings_file())?;
                    head.poolings =
                        poolings(&settings.parse()?, has_prompt).map_err(|reason| settings.error(reason))?;
                    is_pooled = true;
                }
                // Dropout does nothing when vectors are computed.
                "Dropout" => {}
                "Dense" if is_pooled => head.layers.push(Layer::Dense(Dense::read(folder, module)?)),
                "LayerNorm" if is_pooled => head.layers.push(norm(folder, module)?),
                "Normalize" if is_pooled => head.layers.push(Layer::Normalise),
                other => {
                    return Err(file.error(format!(
                        "module {at} is {other}: expected Transformer, Pooling, and then Dense, LayerNorm or Normalize"
                    )));
                }
            }
        }
        if !is_pooled {
            return Err(file.error("no module is Pooling, so that a text has one vector per token and none of its own"));
        }
        Ok(head)
    }

    /// The width of a text's vector, if its tokens' vectors have the width `width`.
    pub fn width(&self, width: usize) -> usize {
        let pooled = width * self.poolings.len();
        let last = self.layers.iter().rev().find_map(|layer| match layer {
            Layer::Dense(dense) => Some(dense.bias.len()),
            _ => None,
        });
        let whole = last.unwrap_or(pooled);
        self.truncate.map_or(whole, |kept| kept.min(whole))
    }

    /// Refuses layers that do not fit each other.
    pub fn check(&self, folder: &ModelFolder, width: usize) -> Result<()> {
        let mut found = width * self.poolings.len();
        for layer in &self.layers {
            let (name, expected) = match layer {
                Layer::Dense(dense) => ("Dense", dense.inputs),
                Layer::Norm { weight, .. } => ("LayerNorm", weight.len()),
                Layer::Normalise => continue,
            };
            if expected != found {
                return Err(folder.config.error(format!(
                    "module {name} expects vectors of {expected} numbers, but those before it have {found}"
                )));
            }
            if let Layer::Dense(dense) = layer {
                found = dense.bias.len();
            }
        }
        Ok(())
    }

    /// Applies the layers to a pooled vector.
    pub fn forward(&self, pooled: Vec<f32>) -> Vec<f32> {
        let mut vector = self.layers.iter().fold(pooled, |vector, layer| match layer {
            Layer::Dense(dense) => dense.forward(&vector),
            Layer::Norm { weight, bias } => normed(vector, weight, bias),
            Layer::Normalise => normalised(vector),
        });
        // The vector is not normalised again, as in the reference.
        vector.truncate(self.truncate.unwrap_or(usize::MAX));
        vector
    }
}

/// Reads the modes from a pooling module's settings: a flag per mode, or in newer files the modes by name.
fn poolings(settings: &Map<String, Value>, has_prompt: bool) -> std::result::Result<Vec<Pooling>, String> {
    if has_prompt && settings.get("include_prompt") == Some(&Value::Bool(false)) {
        return Err("include_prompt: expected true where the model has a default prompt, found false".to_owned());
    }
    // The order of the reference, in which the results of several modes are concatenated.
    const FLAGS: [(&str, &str); 6] = [
        ("pooling_mode_cls_token", "cls"),
        ("pooling_mode_max_tokens", "max"),
        ("pooling_mode_mean_tokens", "mean"),
        ("pooling_mode_mean_sqrt_len_tokens", "mean_sqrt_len_tokens"),
        ("pooling_mode_weightedmean_tokens", "weightedmean"),
        ("pooling_mode_lasttoken", "lasttoken"),
    ];
    let is_set = |flag: &str| settings.get(flag).and_then(Value::as_bool) == Some(true);
    let modes: Vec<String> = match settings.get("pooling_mode") {
        Some(Value::String(mode)) => vec![mode.clone()],
        Some(Value::Array(modes)) => modes.iter().map(|mode| mode.as_str().unwrap_or_default().to_owned()).collect(),
        _ => FLAGS.iter().filter(|(flag, _)| is_set(flag)).map(|(_, mode)| (*mode).to_owned()).collect(),
    };
    let unknown = settings.keys().find(|key| {
        let known = ["embedding_dimension", "include_prompt", "pooling_mode", "word_embedding_dimension"];
        !known.contains(&key.as_str()) && !FLAGS.iter().any(|(flag, _)| flag == key)
    });
    if let Some(key) = unknown {
        return Err(format!("{key}: this key is not supported, and it may change the vectors"));
    }
    if modes.is_empty() {
        return Ok(vec![Pooling::Mean]);
    }
    modes.iter().map(|mode| Pooling::named(mode)).collect()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DenseSettings {
    in_features: usize,
    out_features: usize,
    #[serde(default = "yes")]
    bias: bool,
    #[serde(default = "tanh")]
    activation_function: String,
    module_input_name: Option<String>,
    module_output_name: Option<String>,
    #[serde(default)]
    use_residual: bool,
}

fn yes() -> bool {
    true
}

fn tanh() -> String {
    "torch.nn.modules.activation.Tanh".to_owned()
}

impl Dense {
    fn read(folder: &ModelFolder, module: &Module) -> Result<Self> {
        let file = folder.json(&module.settings_file())?;
        let settings: DenseSettings = file.parse()?;
        let activation = match settings.activation_function.as_str() {
            "torch.nn.modules.linear.Identity" => Activation::Identity,
            "torch.nn.modules.activation.Tanh" => Activation::Tanh,
            "torch.nn.modules.activation.ReLU" => Activation::Relu,
            "torch.nn.modules.activation.GELU" => Activation::Gelu,
            "torch.nn.modules.activation.Sigmoid" => Activation::Sigmoid,
            other => {
                return Err(file.error(format!(
                    "activation_function: expected Identity, Tanh, ReLU, GELU or Sigmoid of torch.nn.modules, found {other}"
                )));
            }
        };
        let names =
            [("module_input_name", settings.module_input_name), ("module_output_name", settings.module_output_name)];
        for (key, name) in names {
            if let Some(name) = name.filter(|name| name != "sentence_embedding") {
                return Err(file.error(format!("{key}: expected sentence_embedding, found {name}")));
            }
        }
        let (inputs, outputs) = (settings.in_features, settings.out_features);
        let weights = folder.module_weights(&module.path)?;
        let weights = weights.tensors(&[""], "linear.weight")?;
        let bias = if settings.bias { weights.read("linear.bias", &[outputs])? } else { vec![0.0; outputs] };
        let residual = match (settings.use_residual, inputs == outputs) {
            (false, _) => Residual::None,
            (true, true) => Residual::Input,
            (true, false) => Residual::Map(weights.read("residual.weight", &[outputs, inputs])?),
        };
        Ok(Self { inputs, weight: weights.read("linear.weight", &[outputs, inputs])?, bias, activation, residual })
    }

    fn forward(&self, x: &[f32]) -> Vec<f32> {
        let mut out = product(&self.weight, x);
        out.iter_mut().zip(&self.bias).for_each(|(y, bias)| *y = self.activation.of(*y + bias));
        match &self.residual {
            Residual::None => {}
            Residual::Input => out.iter_mut().zip(x).for_each(|(y, x)| *y += x),
            Residual::Map(weight) => out.iter_mut().zip(product(weight, x)).for_each(|(y, x)| *y += x),
        }
        out
    }
}

/// The product of a matrix `[out, in]` and a vector. The order of the additions depends only on the sizes.
fn product(weight: &[f32], x: &[f32]) -> Vec<f32> {
    weight.chunks_exact(x.len()).map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum()).collect()
}

impl Activation {
    fn of(self, x: f32) -> f32 {
        match self {
            Self::Identity => x,
            Self::Tanh => x.tanh(),
            Self::Relu => x.max(0.0),
            Self::Gelu => 0.5 * x * (1.0 + candle_core::cpu::erf::erf_f32(x / std::f32::consts::SQRT_2)),
            Self::Sigmoid => 1.0 / (1.0 + (-x).exp()),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NormSettings {
    dimension: usize,
}

fn norm(folder: &ModelFolder, module: &Module) -> Result<Layer> {
    let NormSettings { dimension } = folder.json(&module.settings_file())?.parse()?;
    let weights = folder.module_weights(&module.path)?;
    let weights = weights.tensors(&[""], "norm.weight")?;
    Ok(Layer::Norm {
        weight: weights.read("norm.weight", &[dimension])?,
        bias: weights.read("norm.bias", &[dimension])?,
    })
}

fn normed(mut x: Vec<f32>, weight: &[f32], bias: &[f32]) -> Vec<f32> {
    let count = x.len() as f32;
    let mean = x.iter().sum::<f32>() / count;
    let variance = x.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / count;
    let scale = 1.0 / (variance + EPS).sqrt();
    x.iter_mut().zip(weight.iter().zip(bias)).for_each(|(x, (weight, bias))| *x = (*x - mean) * scale * weight + bias);
    x
}

fn normalised(mut x: Vec<f32>) -> Vec<f32> {
    let norm = x.iter().map(|x| x * x).sum::<f32>().sqrt().max(SMALLEST_NORM);
    x.iter_mut().for_each(|x| *x /= norm);
    x
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pooling_is_read_from_flags_and_from_names() {
        let read = |text: &str| poolings(&serde_json::from_str(text).unwrap(), true);
        let flags = r#"{"pooling_mode_cls_token": false, "pooling_mode_mean_tokens": true}"#;
        assert_eq!(read(flags), Ok(vec![Pooling::Mean]));
        assert_eq!(read(r#"{"pooling_mode": "cls", "include_prompt": true}"#), Ok(vec![Pooling::First]));
        assert_eq!(read(r#"{"pooling_mode": ["max", "cls"]}"#), Ok(vec![Pooling::Max, Pooling::First]));
        let both = r#"{"pooling_mode_mean_tokens": true, "pooling_mode_cls_token": true}"#;
        assert_eq!(read(both), Ok(vec![Pooling::First, Pooling::Mean]), "the reference's order");
        let message = read(r#"{"pooling_mode": "median"}"#).unwrap_err();
        assert!(message.contains("median") && message.contains("expected one of"), "{message}");
        let message = read(r#"{"pooling_mode": "cls", "include_prompt": false}"#).unwrap_err();
        assert!(message.contains("include_prompt"), "{message}");
        let message = read(r#"{"pooling_mode": "cls", "skip_first": 2}"#).unwrap_err();
        assert!(message.contains("skip_first"), "{message}");
    }

    #[test]
    fn layers_match_hand_computed_cases() {
        let dense = |residual| Dense {
            inputs: 2,
            weight: vec![1.0, 2.0, 0.0, -1.0],
            bias: vec![0.5, 0.0],
            activation: Activation::Relu,
            residual,
        };
        assert_eq!(dense(Residual::None).forward(&[1.0, 1.0]), [3.5, 0.0]);
        assert_eq!(dense(Residual::Input).forward(&[1.0, 1.0]), [4.5, 1.0]);
        assert_eq!(dense(Residual::Map(vec![1.0, 0.0, 0.0, 3.0])).forward(&[1.0, 1.0]), [4.5, 3.0]);
        let normed = normed(vec![1.0, 3.0], &[1.0, 2.0], &[0.0, 1.0]);
        assert!((normed[0] + 1.0).abs() < 1e-4 && (normed[1] - 3.0).abs() < 1e-4, "{normed:?}");
        assert_eq!(normalised(vec![3.0, 4.0]), [0.6, 0.8]);
    }
}
