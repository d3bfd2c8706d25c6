//! The transformer over packed sequences (specification, section 4): post-norm layers with causal attention, as in RecBole's
//! SASRec.

use candle_core::{Tensor, Var};
use mp4sr_ops::{
    Dropout, LayerDropout, LayerParts, LayerSizes, PackedOffsets, Result, RngKey, Rows, gather, pack_positions, plain,
    sequence_input, transformer_layer,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Initial, Parameters, Refused, Renamed, trace};

/// `[model.transformer]`: the keys that all transformers share.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TransformerConfig {
    /// `d_0`, the width of the model.
    #[schemars(range(min = 1, max = 4096))]
    pub width: usize,
    /// L, the number of layers.
    #[schemars(range(min = 1, max = 64))]
    pub layers: usize,
    /// The number of attention heads, a divisor of the width.
    #[schemars(range(min = 1, max = 64))]
    pub heads: usize,
    /// The width of the feed-forward layer.
    #[schemars(range(min = 1, max = 16384))]
    pub feed_forward: usize,
    /// n, the number of last items of a history that the model reads.
    #[schemars(range(min = 1, max = 10000))]
    pub max_sequence_length: usize,
    /// Dropout on inputs, attention weights and residual branches.
    #[schemars(range(min = 0.0, max = 0.95))]
    pub dropout: f64,
}

/// The paper's.
impl Default for TransformerConfig {
    fn default() -> Self {
        Self { width: 64, layers: 2, heads: 2, feed_forward: 256, max_sequence_length: 50, dropout: 0.2 }
    }
}

impl TransformerConfig {
    /// Keys that stood in `[model]` in earlier releases.
    pub const RENAMED: [Renamed; 6] = [
        Renamed::key("model.width", "model.transformer.width"),
        Renamed::key("model.layers", "model.transformer.layers"),
        Renamed::key("model.heads", "model.transformer.heads"),
        Renamed::key("model.feed_forward", "model.transformer.feed_forward"),
        Renamed::key("model.positions", "model.transformer.max_sequence_length"),
        Renamed::key("model.dropout", "model.transformer.dropout"),
    ];

    /// Refuses heads that do not divide the width.
    pub fn check(&self) -> std::result::Result<(), Refused> {
        if self.width.is_multiple_of(self.heads) {
            return Ok(());
        }
        let allowed = format!("a divisor of model.transformer.width = {}", self.width);
        Err(Refused::new("model.transformer.heads", &self.heads, allowed))
    }
}

/// Learned positions and layers.
#[derive(Debug)]
pub struct Transformer {
    config: TransformerConfig,
    position: Var,
    input_norm: Norm,
    layers: LayerStack,
}

/// One pass through a transformer; by default causal, with the outputs at the last tokens, and with gradients.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pass {
    /// Whether tokens see those after them too.
    pub bidirectional: bool,
    /// Whether the output has a row for every token.
    pub all_tokens: bool,
    /// Whether positions and layers are constants, so that they have no gradient.
    pub fixed: bool,
    /// Whether the last layer alone runs, on the input.
    pub last_layer: bool,
}

/// The layers of a transformer without what comes before them.
#[derive(Debug)]
pub struct LayerStack {
    config: TransformerConfig,
    /// What the names of its parameters and traced values begin with.
    prefix: String,
    pub(crate) layers: Vec<Layer>,
}

/// A linear map.
#[derive(Debug)]
pub(crate) struct Linear {
    pub(crate) weight: Var,
    pub(crate) bias: Var,
}

/// The weight and the bias of a LayerNorm.
#[derive(Clone, Debug)]
pub(crate) struct Norm {
    pub(crate) weight: Var,
    pub(crate) bias: Var,
}

/// The parameters of a layer.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) query: Linear,
    pub(crate) key: Linear,
    pub(crate) value: Linear,
    pub(crate) output: Linear,
    pub(crate) attention_norm: Norm,
    pub(crate) up: Linear,
    pub(crate) down: Linear,
    pub(crate) feed_forward_norm: Norm,
}

impl Linear {
    pub(crate) fn new(
        parameters: &mut Parameters,
        prefix: &str,
        input: usize,
        output: usize,
        key: RngKey,
    ) -> Result<Self> {
        let weight = parameters.add(&format!("{prefix}.weight"), &[input, output], Initial::Normal, key)?;
        Ok(Self { weight, bias: parameters.add(&format!("{prefix}.bias"), &[output], Initial::Zeros, key)? })
    }
}

impl Norm {
    pub(crate) fn new(parameters: &mut Parameters, prefix: &str, width: usize, key: RngKey) -> Result<Self> {
        let weight = parameters.add(&format!("{prefix}.weight"), &[width], Initial::Ones, key)?;
        Ok(Self { weight, bias: parameters.add(&format!("{prefix}.bias"), &[width], Initial::Zeros, key)? })
    }
}

impl Layer {
    fn new(parameters: &mut Parameters, prefix: &str, config: &TransformerConfig, key: RngKey) -> Result<Self> {
        let (d, inner) = (config.width, config.feed_forward);
        let mut linear = |name: &str, a, b| Linear::new(parameters, &format!("{prefix}.{name}"), a, b, key);
        let (query, keys) = (linear("attention.query", d, d)?, linear("attention.key", d, d)?);
        let (value, output) = (linear("attention.value", d, d)?, linear("attention.output", d, d)?);
        let (up, down) = (linear("feed_forward.up", d, inner)?, linear("feed_forward.down", inner, d)?);
        let attention_norm = Norm::new(parameters, &format!("{prefix}.attention.norm"), d, key)?;
        let feed_forward_norm = Norm::new(parameters, &format!("{prefix}.feed_forward.norm"), d, key)?;
        Ok(Self { query, key: keys, value, output, attention_norm, up, down, feed_forward_norm })
    }

    fn packed(&self) -> Result<Tensor> {
        let pair = |f: fn(&Linear) -> &Var, axis: usize| {
            Tensor::cat(&[f(&self.key).as_tensor(), f(&self.value).as_tensor()], axis)
        };
        LayerParts {
            query: self.query.weight.as_tensor(),
            key_value: &pair(|l| &l.weight, 1)?,
            output: &self.output.weight,
            query_bias: &self.query.bias,
            key_value_bias: &pair(|l| &l.bias, 0)?,
            output_bias: &self.output.bias,
            up: &self.up.weight,
            up_bias: &self.up.bias,
            down: &self.down.weight,
            down_bias: &self.down.bias,
            attention_norm: &self.attention_norm.weight,
            attention_norm_bias: &self.attention_norm.bias,
            feed_forward_norm: &self.feed_forward_norm.weight,
            feed_forward_norm_bias: &self.feed_forward_norm.bias,
        }
        .pack()
    }
}

impl Transformer {
    /// A transformer with parameters `position`, `input_norm.*`, `layer.*`.
    pub fn new(parameters: &mut Parameters, config: TransformerConfig, key: RngKey) -> Result<Self> {
        let position = parameters.add("position", &[config.max_sequence_length, config.width], Initial::Normal, key)?;
        let input_norm = Norm::new(parameters, "input_norm", config.width, key)?;
        let layers = LayerStack::new(parameters, "", config, key)?;
        Ok(Self { config, position, input_norm, layers })
    }

    /// h, the output at the last token of every sequence, `[sequences, d_0]`: tokens are rows of `z`, and of `ids` where there
    /// are any. Without `key` nothing is dropped.
    ///
    /// A trace asks for every token of the top layer too; the values at the last tokens are the same.
    pub fn forward(
        &self,
        z: Rows<'_>,
        ids: Option<Rows<'_>>,
        offsets: &PackedOffsets,
        key: Option<RngKey>,
    ) -> Result<Tensor> {
        self.run(z, ids, offsets, Pass::default(), key)
    }

    /// What `pass` asks for of the tokens that [`forward`](Self::forward) takes.
    pub(crate) fn run(
        &self,
        z: Rows<'_>,
        ids: Option<Rows<'_>>,
        offsets: &PackedOffsets,
        pass: Pass,
        key: Option<RngKey>,
    ) -> Result<Tensor> {
        let position = if pass.fixed { self.position.detach() } else { self.position.as_tensor().clone() };
        let table = pack_positions(&position, &self.input_norm.weight, &self.input_norm.bias)?;
        let dropout = drop(key, "input", self.config.dropout);
        let x = sequence_input(z, ids, Rows::new(&table, &offsets.positions()), dropout)?;
        trace::record(|| "input".to_owned(), &x);
        self.layers.run(x, offsets, pass, key)
    }
}

fn drop(key: Option<RngKey>, name: &str, p: f64) -> Dropout {
    key.map_or(Dropout::NONE, |key| key.fold_in(name).dropout(p))
}

impl LayerStack {
    /// Layers with parameters `<prefix>layer.*`.
    pub fn new(parameters: &mut Parameters, prefix: &str, config: TransformerConfig, key: RngKey) -> Result<Self> {
        let layers = (0..config.layers)
            .map(|l| Layer::new(parameters, &format!("{prefix}layer.{l}"), &config, key))
            .collect::<Result<_>>()?;
        Ok(Self { config, prefix: prefix.to_owned(), layers })
    }

    /// The output at the last token of every sequence, `[sequences, d_0]`, of tokens `x` `[tokens, d_0]`. Without `key` nothing
    /// is dropped. A trace asks for every token of the top layer too; the values at the last tokens are the same.
    pub fn forward(&self, x: Tensor, offsets: &PackedOffsets, key: Option<RngKey>) -> Result<Tensor> {
        self.run(x, offsets, Pass::default(), key)
    }

    /// What `pass` asks for of the tokens that [`forward`](Self::forward) takes.
    pub(crate) fn run(
        &self,
        mut x: Tensor,
        offsets: &PackedOffsets,
        pass: Pass,
        key: Option<RngKey>,
    ) -> Result<Tensor> {
        let (prefix, p) = (&self.prefix, self.config.dropout);
        let TransformerConfig { width, heads, feed_forward, .. } = self.config;
        let sizes = LayerSizes { width, heads, feed_forward, bidirectional: pass.bidirectional };
        let first = if pass.last_layer { self.layers.len().saturating_sub(1) } else { 0 };
        for (l, layer) in self.layers.iter().enumerate().skip(first) {
            let key = key.map(|key| key.fold_in("layer").fold_in_index(l as u64));
            let dropout = LayerDropout {
                weights: drop(key, "weights", p),
                attention: drop(key, "attention", p),
                feed_forward: drop(key, "feed_forward", p),
            };
            let packed = layer.packed()?;
            let packed = if pass.fixed { packed.detach() } else { packed };
            if trace::is_on() {
                let steps = plain::layer_steps(&x, &packed, sizes, offsets, false, dropout)?;
                trace::record(|| format!("{prefix}{l}.query"), &steps.query);
                trace::record(|| format!("{prefix}{l}.key_value"), &steps.key_value);
                trace::record(|| format!("{prefix}{l}.attention"), &steps.attention);
                trace::record(|| format!("{prefix}{l}.layer"), &steps.layer);
            }
            let top = l + 1 == self.layers.len() && !pass.all_tokens && !trace::is_on();
            x = transformer_layer(&x, &packed, sizes, offsets, top, dropout)?;
        }
        if trace::is_on() && !pass.all_tokens { gather(&x, &offsets.last_tokens()) } else { Ok(x) }
    }
}
