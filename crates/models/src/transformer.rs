//! The transformer over packed sequences (specification, section 4): post-norm layers with causal attention, as in RecBole's
//! SASRec.

use candle_core::{Tensor, Var};
use mp4sr_ops::{
    Dropout, LayerDropout, LayerSizes, PackedOffsets, Result, RngKey, Rows, dropout_tokens, gather, plain,
    sequence_input, transformer_layer,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Initial, PackedParameter, Parameters, Refused, Renamed, trace};

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
    /// n, the maximum number of items that the model reads: the most recent ones of a history.
    #[schemars(range(min = 1, max = 10000))]
    pub max_sequence_length: usize,
    /// The dropout probability on inputs, attention weights and residual branches.
    #[schemars(range(min = 0.0, max = 0.95))]
    pub dropout: f64,
}

/// The settings of the MP4SR paper.
impl Default for TransformerConfig {
    fn default() -> Self {
        Self { width: 64, layers: 2, heads: 2, feed_forward: 256, max_sequence_length: 50, dropout: 0.2 }
    }
}

impl TransformerConfig {
    /// Keys that were in `[model]` in earlier releases.
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

/// A transformer with learned positions.
#[derive(Debug)]
pub struct Transformer {
    config: TransformerConfig,
    /// `[n + 2, d_0]`: the positions, then the weight and the bias of the input's LayerNorm.
    input: Var,
    layers: LayerStack,
}

/// The options of one pass through a transformer, which by default is causal, returns the outputs at the last tokens, and has gradients.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pass {
    /// Whether tokens also attend to later tokens.
    pub bidirectional: bool,
    /// Whether the output has a row for every token.
    pub all_tokens: bool,
    /// Whether the layers are treated as constants without a gradient.
    pub fixed: bool,
    /// Whether only the last layer runs, on the input.
    pub last_layer: bool,
}

/// The layers of a transformer, without positions and the input's LayerNorm.
#[derive(Debug)]
pub struct LayerStack {
    config: TransformerConfig,
    /// The prefix of the names of its parameters and traced values.
    prefix: String,
    /// The parameters of each layer.
    layers: Vec<Var>,
}

/// The parameters of the transformer's input.
fn input(config: &TransformerConfig) -> [PackedParameter; 3] {
    let TransformerConfig { width: d, max_sequence_length: n, .. } = *config;
    let part = |name: &str, shape: &[usize], initial, start| PackedParameter {
        name: name.to_owned(),
        shape: shape.to_vec(),
        initial,
        start,
        stride: None,
    };
    [
        part("position", &[n, d], Initial::Normal, 0),
        part("input_norm.weight", &[d], Initial::Ones, n * d),
        part("input_norm.bias", &[d], Initial::Zeros, (n + 1) * d),
    ]
}

/// The parameters of a layer under `prefix`. The weights of keys and values are columns of the same rows.
fn layer(prefix: &str, sizes: LayerSizes) -> Vec<PackedParameter> {
    let LayerSizes { width: d, feed_forward: f, .. } = sizes;
    let at = sizes.ranges();
    let part = |name: &str, shape: &[usize], initial, start, stride| PackedParameter {
        name: format!("{prefix}.{name}"),
        shape: shape.to_vec(),
        initial,
        start,
        stride,
    };
    let mut parts = Vec::new();
    let mut linear = |name: &str, [input, output]: [usize; 2], weight: usize, bias: usize, stride: Option<usize>| {
        parts.push(part(&format!("{name}.weight"), &[input, output], Initial::Normal, weight, stride));
        parts.push(part(&format!("{name}.bias"), &[output], Initial::Zeros, bias, None));
    };
    linear("attention.query", [d, d], at.query.start, at.query_bias.start, None);
    linear("attention.key", [d, d], at.key_value.start, at.key_value_bias.start, Some(2 * d));
    linear("attention.value", [d, d], at.key_value.start + d, at.key_value_bias.start + d, Some(2 * d));
    linear("attention.output", [d, d], at.output.start, at.output_bias.start, None);
    linear("feed_forward.up", [d, f], at.up.start, at.up_bias.start, None);
    linear("feed_forward.down", [f, d], at.down.start, at.down_bias.start, None);
    let mut norm = |name: &str, weight: usize, bias: usize| {
        parts.push(part(&format!("{name}.weight"), &[d], Initial::Ones, weight, None));
        parts.push(part(&format!("{name}.bias"), &[d], Initial::Zeros, bias, None));
    };
    norm("attention.norm", at.attention_norm.start, at.attention_norm_bias.start);
    norm("feed_forward.norm", at.feed_forward_norm.start, at.feed_forward_norm_bias.start);
    parts
}

impl TransformerConfig {
    fn sizes(&self, bidirectional: bool) -> LayerSizes {
        LayerSizes { width: self.width, heads: self.heads, feed_forward: self.feed_forward, bidirectional }
    }
}

impl Transformer {
    /// A transformer with parameters `position`, `input_norm.*`, `layer.*`.
    pub fn new(parameters: &mut Parameters, config: TransformerConfig, key: RngKey) -> Result<Self> {
        let shape = [config.max_sequence_length + 2, config.width];
        let input = parameters.add_packed(&shape, &input(&config), key)?;
        let layers = LayerStack::new(parameters, "", config, key)?;
        Ok(Self { config, input, layers })
    }

    /// h, the output at the last token of every sequence, `[sequences, d_0]`. Tokens are rows of `z`, to which rows of `ids` are added if
    /// there are any. Without `key` nothing is dropped.
    ///
    /// If a trace is collected, the top layer is computed for every token; the values at the last tokens are the same.
    pub fn forward(
        &self,
        z: Rows<'_>,
        ids: Option<Rows<'_>>,
        offsets: &PackedOffsets,
        key: Option<RngKey>,
    ) -> Result<Tensor> {
        self.run(z, ids, offsets, Pass::default(), key)
    }

    /// Like [`forward`](Self::forward), with the options of `pass`.
    pub(crate) fn run(
        &self,
        z: Rows<'_>,
        ids: Option<Rows<'_>>,
        offsets: &PackedOffsets,
        pass: Pass,
        key: Option<RngKey>,
    ) -> Result<Tensor> {
        let dropout = drop(key, "input", self.config.dropout);
        let positions = offsets.positions();
        let input = |dropout| sequence_input(z, ids, Rows::new(&self.input, &positions), dropout);
        let x = if offsets.is_share() {
            dropout_tokens(&input(Dropout::NONE)?, dropout, offsets)?
        } else {
            input(dropout)?
        };
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
        let sizes = config.sizes(false);
        let layers = (0..config.layers)
            .map(|l| parameters.add_packed(&[sizes.count()], &layer(&format!("{prefix}layer.{l}"), sizes), key))
            .collect::<Result<_>>()?;
        Ok(Self { config, prefix: prefix.to_owned(), layers })
    }

    /// The output at the last token of every sequence, `[sequences, d_0]`, for the input `x` `[tokens, d_0]`. Without `key` nothing is
    /// dropped. If a trace is collected, the top layer is computed for every token; the values at the last tokens are the same.
    pub fn forward(&self, x: Tensor, offsets: &PackedOffsets, key: Option<RngKey>) -> Result<Tensor> {
        self.run(x, offsets, Pass::default(), key)
    }

    /// Like [`forward`](Self::forward), with the options of `pass`.
    pub(crate) fn run(
        &self,
        mut x: Tensor,
        offsets: &PackedOffsets,
        pass: Pass,
        key: Option<RngKey>,
    ) -> Result<Tensor> {
        let (prefix, p) = (&self.prefix, self.config.dropout);
        let sizes = self.config.sizes(pass.bidirectional);
        let first = if pass.last_layer { self.layers.len().saturating_sub(1) } else { 0 };
        for (l, layer) in self.layers.iter().enumerate().skip(first) {
            let key = key.map(|key| key.fold_in("layer").fold_in_index(l as u64));
            let dropout = LayerDropout {
                weights: drop(key, "weights", p),
                attention: drop(key, "attention", p),
                feed_forward: drop(key, "feed_forward", p),
            };
            let packed = if pass.fixed { layer.detach() } else { layer.as_tensor().clone() };
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
