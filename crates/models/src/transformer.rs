//! The transformer over packed sequences (specification, section 4): post-norm layers with causal attention, as in RecBole's
//! SASRec.

use candle_core::{Tensor, Var};
use mp4sr_ops::{Result, Segments, Stream, add_norm, attention, dropout, gather, gelu, layer_norm, linear};

use crate::{Initial, Parameters, Trace};

/// Sizes of a transformer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TransformerConfig {
    /// `d_0`, the width of tokens.
    pub width: usize,
    /// L, the number of layers.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// Width between the two maps of a feed-forward block.
    pub feed_forward: usize,
    /// n, the longest sequence.
    pub positions: usize,
    /// Dropout on inputs, attention weights and branches.
    pub dropout: f64,
}

/// Learned positions and layers.
#[derive(Debug)]
pub struct Transformer {
    config: TransformerConfig,
    position: Var,
    input_norm: Norm,
    layers: Vec<Layer>,
}

#[derive(Debug)]
struct Linear {
    weight: Var,
    bias: Var,
}

#[derive(Debug)]
struct Norm {
    weight: Var,
    bias: Var,
}

#[derive(Debug)]
struct Layer {
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    attention_norm: Norm,
    up: Linear,
    down: Linear,
    feed_forward_norm: Norm,
}

impl Linear {
    fn new(parameters: &mut Parameters, prefix: &str, input: usize, output: usize, stream: Stream) -> Result<Self> {
        let weight = parameters.add(&format!("{prefix}.weight"), &[input, output], Initial::Normal, stream)?;
        Ok(Self { weight, bias: parameters.add(&format!("{prefix}.bias"), &[output], Initial::Zeros, stream)? })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        linear(x, &self.weight, &self.bias)
    }
}

impl Norm {
    fn new(parameters: &mut Parameters, prefix: &str, width: usize, stream: Stream) -> Result<Self> {
        let weight = parameters.add(&format!("{prefix}.weight"), &[width], Initial::Ones, stream)?;
        Ok(Self { weight, bias: parameters.add(&format!("{prefix}.bias"), &[width], Initial::Zeros, stream)? })
    }
}

impl Layer {
    fn new(parameters: &mut Parameters, prefix: &str, config: &TransformerConfig, stream: Stream) -> Result<Self> {
        let (d, inner) = (config.width, config.feed_forward);
        let mut linear = |name: &str, a, b| Linear::new(parameters, &format!("{prefix}.{name}"), a, b, stream);
        let (query, key) = (linear("attention.query", d, d)?, linear("attention.key", d, d)?);
        let (value, output) = (linear("attention.value", d, d)?, linear("attention.output", d, d)?);
        let (up, down) = (linear("feed_forward.up", d, inner)?, linear("feed_forward.down", inner, d)?);
        let attention_norm = Norm::new(parameters, &format!("{prefix}.attention.norm"), d, stream)?;
        let feed_forward_norm = Norm::new(parameters, &format!("{prefix}.feed_forward.norm"), d, stream)?;
        Ok(Self { query, key, value, output, attention_norm, up, down, feed_forward_norm })
    }

    /// One layer; with `last`, only for the last token of every sequence, which is all that the top layer is asked for.
    fn forward(
        &self,
        x: &Tensor,
        segments: &Segments,
        config: &TransformerConfig,
        last: Option<&[u32]>,
        (draw, trace, name): (Stream, &Trace, &str),
    ) -> Result<Tensor> {
        let drop = |purpose: &str| draw.purpose(purpose).dropout(config.dropout);
        let queried = match last {
            Some(tokens) => gather(x, tokens)?,
            None => x.clone(),
        };
        let weights = Tensor::cat(&[self.key.weight.as_tensor(), self.value.weight.as_tensor()], 1)?;
        let biases = Tensor::cat(&[self.key.bias.as_tensor(), self.value.bias.as_tensor()], 0)?;
        let key_value = linear(x, &weights, &biases)?;
        let query = self.query.forward(&queried)?;
        trace.record(|| format!("{name}.query"), &query);
        trace.record(|| format!("{name}.key_value"), &key_value);
        let attended = attention(&query, &key_value, segments, config.heads, last.is_some(), drop("weights"))?;
        let branch = self.output.forward(&attended)?;
        let norm = &self.attention_norm;
        let x = add_norm(&queried, &branch, &norm.weight, &norm.bias, drop("attention"))?;
        trace.record(|| format!("{name}.attention"), &x);
        let branch = self.down.forward(&gelu(&self.up.forward(&x)?)?)?;
        let norm = &self.feed_forward_norm;
        let x = add_norm(&x, &branch, &norm.weight, &norm.bias, drop("feed_forward"))?;
        trace.record(|| format!("{name}.layer"), &x);
        Ok(x)
    }
}

impl Transformer {
    /// A transformer with parameters `position`, `input_norm.*`, `layer.*`.
    pub fn new(parameters: &mut Parameters, config: TransformerConfig, stream: Stream) -> Result<Self> {
        let position = parameters.add("position", &[config.positions, config.width], Initial::Normal, stream)?;
        let input_norm = Norm::new(parameters, "input_norm", config.width, stream)?;
        let layers = (0..config.layers)
            .map(|l| Layer::new(parameters, &format!("layer.{l}"), &config, stream))
            .collect::<Result<_>>()?;
        Ok(Self { config, position, input_norm, layers })
    }

    /// h, the output at the last token of every sequence: `[tokens, d_0]` -> `[sequences, d_0]`.
    ///
    /// A trace asks for every token of the top layer too; the values at the last tokens are the same.
    pub fn forward(&self, x: &Tensor, segments: &Segments, draw: Option<Stream>, trace: &Trace) -> Result<Tensor> {
        // Without a stream nothing is drawn: the dropout rate is 0 then.
        let config =
            TransformerConfig { dropout: if draw.is_some() { self.config.dropout } else { 0.0 }, ..self.config };
        let draw = draw.unwrap_or(Stream::new(0));
        let placed = (x + gather(&self.position, &segments.positions())?)?;
        let normed = layer_norm(&placed, &self.input_norm.weight, &self.input_norm.bias)?;
        trace.record(|| "input".to_owned(), &normed);
        let mut x = dropout(&normed, draw.purpose("input").dropout(config.dropout))?;
        let last = segments.last_tokens();
        for (l, layer) in self.layers.iter().enumerate() {
            let top = l + 1 == self.layers.len() && !trace.is_on();
            let draw = draw.purpose("layer").at(l as u64);
            x = layer.forward(&x, segments, &config, top.then_some(&last), (draw, trace, &format!("{l}")))?;
        }
        if trace.is_on() { gather(&x, &last) } else { Ok(x) }
    }
}
