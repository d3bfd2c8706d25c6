//! MASR: a masked-item transformer that copies from memory banks.
//!
//! Hu et al., Memory Bank Augmented Long-tail Sequential Recommendation, CIKM 2022, as in the authors' code. A transformer without a causal
//! mask reads a training sequence with masked positions. For the state x of a masked position, a bank gives the nearest states of tail
//! items, whose item vectors are mixed into a copy t, and the nearest centroids of head items, which are mixed into a copy c. Two gates mix
//! the logits of x, c and t. A memory loss pulls x towards the banked states of its own tail item and pushes it away from those of others.
//! In the first epochs the logits come from x alone, while the banks fill. Where sources differ, a key of [`Config`] selects the reading.
//!
//! The logits are inner products of a row made of x, c, t and the gates with one row per item, so neither the gates nor the ranking need
//! them as a matrix. Only the masked positions leave the encoder.

mod banks;

use std::cell::RefCell;

use banks::{BankSizes, Banks, Entries, head_items};
use candle_core::{DType, Tensor, Var};
use mp4sr_ops::plain::sigmoid;
use mp4sr_ops::{
    Dropout, Neighbour, PackedOffsets, Result, RngKey, Rows, ScoreFusion, SourceScope, SourceSizes, cross_entropy,
    dropout, gather, gelu, linear, nearest, normalize, product, sequence_input, source_attention,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::interface::FINETUNE;
use crate::maps::{Linear, Norm};
use crate::recipe::{DECAY_GRID, ModelSettings, Reads, Recipe, Section, Supports};
use crate::transformer::{LayerStack, Pass};
use crate::{
    Batch, BatchUnit, Buffers, Data, Error, Initial, Model, Parameters, Phase, Query, Refused, Samples, Scorer, Step,
    Stop, TransformerConfig, trace,
};

/// How MASR is named, configured and built.
pub static RECIPE: Recipe = Recipe {
    name: "masr",
    title: "MASR",
    summary: "A masked-item transformer that copies from memory banks, which hold states of popular (head) and other (tail) items.",
    paper: "Hu et al., Memory Bank Augmented Long-tail Sequential Recommendation, 2022",
    reads: Reads { features: false, transformer: true, categories: &[] },
    supports: Supports::NOTHING,
    section: Section::of::<Config>(),
    phase_reads: |_, _, _| true,
    defaults: "model.transformer.dropout = 0.1\nfinetune.batch = 128",
    presets: &[],
    grid: DECAY_GRID,
    renamed: &[],
    item_tables: |_| None,
    check,
    phases: |settings| Ok(phases(&settings.own()?)),
    build: |settings, data, key| Ok(Box::new(Masr::new(settings.own()?, settings.transformer()?, &data, key)?)),
};

/// The mask token at the end of a history takes one of the positions, so another one must be left for an item.
fn check(settings: &ModelSettings<'_>) -> std::result::Result<(), Refused> {
    let key = "model.transformer.max_sequence_length";
    let read = |error: Error| Refused::new(key, &"...", error.to_string());
    let TransformerConfig { max_sequence_length, .. } = settings.transformer().map_err(read)?;
    if max_sequence_length > 1 {
        return Ok(());
    }
    Err(Refused::new(key, &max_sequence_length, "at least 2 for `masr`".to_owned()))
}

/// Where the transformer applies LayerNorm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Encoder {
    /// Before the attention block and the feed-forward block, and neither before nor after the stack (authors' code).
    #[default]
    PreNorm,
    /// After each sum and on the input, as in the other models.
    PostNorm,
}

/// What the layers read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Blocks {
    /// Each reads the output of the one before.
    #[default]
    Stacked,
    /// The last one reads the input, and the others have no effect (authors' code).
    Last,
}

/// `[model.masr]`: hyper-parameters of MASR.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where the transformer applies LayerNorm.
    pub encoder: Encoder,
    /// What the layers read.
    pub blocks: Blocks,
    /// The probability that a position of a training sequence is a target.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub mask: f64,
    /// The share of the items that are head items: those with the most training events. The others are tail items.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub head_share: f64,
    /// The number of states in the bank of head items.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub head_bank: usize,
    /// The number of states in the bank of each tail item.
    #[schemars(range(min = 1, max = 1000))]
    pub tail_slots: usize,
    /// The number of states of tail items that are copied.
    #[schemars(range(min = 1, max = 1000))]
    pub top_tail: usize,
    /// The number of centroids of head items that are copied.
    #[schemars(range(min = 1, max = 1000))]
    pub top_head: usize,
    /// The number of tail items, drawn once per step, that the memory loss pushes states away from.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub memory_negatives: usize,
    /// The inner product above which the memory loss pushes a state away from another.
    #[schemars(range(min = -1.0, max = 1.0))]
    pub margin: f64,
    /// omega, the weight of the memory loss.
    #[schemars(range(min = 0.0, max = 1000.0))]
    pub omega: f64,
    /// The number of initial epochs without copies and without the memory loss. Patience starts to count after them.
    #[schemars(range(min = 0, max = 100_000))]
    pub warmup: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            encoder: Encoder::default(),
            blocks: Blocks::default(),
            mask: 0.15,
            head_share: 0.2,
            head_bank: 10_000,
            tail_slots: 7,
            top_tail: 7,
            top_head: 1,
            memory_negatives: 100,
            margin: 0.5,
            omega: 1.0,
            warmup: 25,
        }
    }
}

fn phases(config: &Config) -> Vec<Phase> {
    let samples = Samples::Sequences { at_least: 1, batch: BatchUnit::Sequences };
    vec![Phase { name: FINETUNE, samples, stop: Stop::Validation { warm_up: config.warmup } }]
}

/// Sequences with masked positions.
#[derive(Clone, Debug)]
pub struct Cloze {
    /// The offsets of the sequences.
    pub offsets: PackedOffsets,
    /// `[tokens]`: the items, 1-based; the mask token is I + 1.
    pub items: Vec<u32>,
    /// `[tokens]`: the true item of a target; 0 elsewhere.
    pub labels: Vec<u32>,
}

/// Whether a step uses the banks.
#[derive(Clone, Copy, Debug)]
pub enum Memory<'a> {
    /// The step does not use them: there are no copies and no memory loss.
    WarmUp,
    /// The step uses them; the tail items that the memory loss pushes states away from are drawn from the key.
    Drawn(RngKey),
    /// The step uses them, and the memory loss pushes states away from these tail items.
    Given(&'a [u32]),
}

/// The copies from the banks for the states of a step. They are constants.
struct Copies {
    /// t, `[P, d]`.
    tail: Tensor,
    /// c, `[P, d]`.
    head: Tensor,
}

/// The states `[P, d]` and their items, which wait for the optimiser's step to be written into the banks.
type Pending = (Tensor, Vec<u32>);

/// The layers of either encoder.
#[derive(Debug)]
enum Layers {
    PreNorm(Vec<PreNormLayer>),
    /// The layers with the LayerNorm of the input.
    PostNorm(Norm, LayerStack),
}

/// A layer whose LayerNorms come before its blocks.
#[derive(Debug)]
struct PreNormLayer {
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    attention_norm: Norm,
    up: Linear,
    down: Linear,
    feed_forward_norm: Norm,
}

impl PreNormLayer {
    fn new(p: &mut Parameters, prefix: &str, config: &TransformerConfig, key: RngKey) -> Result<Self> {
        let (d, inner) = (config.width, config.feed_forward);
        let mut linear = |name: &str, a, b| Linear::new(p, &format!("{prefix}.{name}"), a, b, key);
        let (query, keys) = (linear("attention.query", d, d)?, linear("attention.key", d, d)?);
        let (value, output) = (linear("attention.value", d, d)?, linear("attention.output", d, d)?);
        let (up, down) = (linear("feed_forward.up", d, inner)?, linear("feed_forward.down", inner, d)?);
        let attention_norm = Norm::new(p, &format!("{prefix}.attention.norm"), d, key)?;
        let feed_forward_norm = Norm::new(p, &format!("{prefix}.feed_forward.norm"), d, key)?;
        Ok(Self { query, key: keys, value, output, attention_norm, up, down, feed_forward_norm })
    }
}

/// The model with its parameters and its banks.
#[derive(Debug)]
pub struct Masr {
    config: Config,
    transformer: TransformerConfig,
    phases: Vec<Phase>,
    count: usize,
    is_head: Vec<bool>,
    parameters: Parameters,
    banks: Banks,
    pending: RefCell<Option<Pending>>,
    /// `[I, d]`: row i-1 is item i.
    items: Var,
    /// `[d]`: the embedding of the mask token.
    mask: Var,
    /// `[n, d]`: the last row is the position of the last token.
    position: Var,
    layers: Layers,
    /// The map from x to logits, `[d, I]`.
    output_sequence: Linear,
    /// The map from c to logits, `[d, I]`.
    output_head: Linear,
    /// The map from t to logits, `[d, I]`.
    output_tail: Linear,
    gate_copy: Linear,
    gate_tail: Linear,
}

impl Masr {
    /// Creates a model whose initial parameters are determined by `key`.
    pub fn new(config: Config, transformer: TransformerConfig, data: &Data, key: RngKey) -> Result<Self> {
        let key = key.fold_in("initial");
        let mut parameters = Parameters::new(&data.device);
        let p = &mut parameters;
        let (d, items) = (transformer.width, data.items);
        let table = p.add("item_embedding", &[items, d], Initial::Normal, key)?;
        let mask = p.add("mask_embedding", &[d], Initial::Normal, key)?;
        let position = p.add("position", &[transformer.max_sequence_length, d], Initial::Normal, key)?;
        let layers = match config.encoder {
            Encoder::PreNorm => {
                let layer = |l| PreNormLayer::new(p, &format!("layer.{l}"), &transformer, key);
                Layers::PreNorm((0..transformer.layers).map(layer).collect::<Result<_>>()?)
            }
            Encoder::PostNorm => {
                let norm = Norm::new(p, "input_norm", d, key)?;
                Layers::PostNorm(norm, LayerStack::new(p, "", transformer, key)?)
            }
        };
        let mut map = |name: &str, a, b| Linear::new(p, name, a, b, key);
        let output_sequence = map("output.sequence", d, items)?;
        let (output_head, output_tail) = (map("output.head", d, items)?, map("output.tail", d, items)?);
        let (gate_copy, gate_tail) = (map("gate.copy", 2 * d, 1)?, map("gate.tail", 2 * items, 1)?);
        let banks = Banks::new(BankSizes { items, width: d, head: config.head_bank, slots: config.tail_slots });
        Ok(Self {
            phases: phases(&config),
            is_head: head_items(data, config.head_share),
            config,
            transformer,
            count: items,
            parameters,
            banks,
            pending: RefCell::default(),
            items: table,
            mask,
            position,
            layers,
            output_sequence,
            output_head,
            output_tail,
            gate_copy,
            gate_tail,
        })
    }

    /// Returns the model with other head items; `is_head` has an entry per item.
    #[must_use]
    pub fn with_head_items(mut self, is_head: Vec<bool>) -> Self {
        self.is_head = is_head;
        self
    }

    fn drop(&self, key: Option<RngKey>, name: &str) -> Dropout {
        key.map_or(Dropout::NONE, |key| key.fold_in(name).dropout(self.transformer.dropout))
    }

    /// Draws the masked positions of training sequences, determined by the key. Sequences without a target are left out; `None` if no
    /// sequence has a target.
    pub fn cloze(&self, batch: &Batch, key: RngKey) -> Result<Option<Cloze>> {
        let (targets, kinds, others) = (key.fold_in("targets"), key.fold_in("kinds"), key.fold_in("items"));
        let mask = self.count as u32 + 1;
        let (mut items, mut labels, mut lengths) = (Vec::new(), Vec::new(), Vec::new());
        for j in 0..batch.count() {
            let range = batch.offsets.range(j);
            let is_target = |token: usize| targets.uniform(token as u64) < self.config.mask;
            if !range.clone().any(is_target) {
                continue;
            }
            lengths.push(range.len());
            for token in range {
                let (own, kind) = (batch.items[token], kinds.uniform(token as u64));
                let hidden = match kind {
                    _ if !is_target(token) => own,
                    kind if kind < 0.8 => mask,
                    kind if kind < 0.9 => 1 + (others.uniform(token as u64) * self.count as f64) as u32,
                    _ => own,
                };
                items.push(hidden);
                labels.push(if is_target(token) { own } else { 0 });
            }
        }
        if lengths.is_empty() {
            return Ok(None);
        }
        Ok(Some(Cloze { offsets: PackedOffsets::from_lengths(lengths)?, items, labels }))
    }

    /// The encoder's output at every token.
    fn encode(&self, items: &[u32], offsets: &PackedOffsets, key: Option<RngKey>) -> Result<Tensor> {
        let n = self.transformer.max_sequence_length;
        let table = Tensor::cat(&[self.items.as_tensor(), &self.mask.unsqueeze(0)?], 0)?;
        let rows: Vec<u32> = items.iter().map(|item| item - 1).collect();
        // Positions are counted from the end.
        let position_rows: Vec<u32> = (0..offsets.count())
            .flat_map(|j| {
                let length = offsets.range(j).len();
                (n - length..n).map(|row| row as u32)
            })
            .collect();
        match &self.layers {
            Layers::PreNorm(layers) => {
                let input = (gather(&table, &rows)? + gather(&self.position, &position_rows)?)?;
                trace::record(|| "sequence.input".to_owned(), &input);
                self.pre_norm(layers, dropout(&input, self.drop(key, "input"))?, offsets, key)
            }
            Layers::PostNorm(norm, layers) => {
                let positions = norm.with_positions(&self.position)?;
                let dropout = self.drop(key, "input");
                let x = sequence_input(Rows::new(&table, &rows), None, Rows::new(&positions, &position_rows), dropout)?;
                trace::record(|| "sequence.input".to_owned(), &x);
                let last_layer = self.config.blocks == Blocks::Last;
                let pass = Pass { bidirectional: true, all_tokens: true, last_layer, ..Pass::default() };
                layers.run(x, offsets, pass, key)
            }
        }
    }

    /// The layers with LayerNorm first: x + attention of LN(x), then x + the feed-forward block of LN(x).
    fn pre_norm(
        &self,
        layers: &[PreNormLayer],
        mut x: Tensor,
        offsets: &PackedOffsets,
        key: Option<RngKey>,
    ) -> Result<Tensor> {
        let first = match self.config.blocks {
            Blocks::Stacked => 0,
            Blocks::Last => layers.len() - 1,
        };
        for (l, layer) in layers.iter().enumerate().skip(first) {
            let key = key.map(|key| key.fold_in("layer").fold_in_index(l as u64));
            x = self.pre_norm_layer(layer, &x, offsets, key)?;
            trace::record(|| format!("sequence.layer.{l}"), &x);
        }
        Ok(x)
    }

    fn pre_norm_layer(
        &self,
        layer: &PreNormLayer,
        x: &Tensor,
        offsets: &PackedOffsets,
        key: Option<RngKey>,
    ) -> Result<Tensor> {
        let TransformerConfig { width: d, heads, max_sequence_length: n, .. } = self.transformer;
        let normed = layer.attention_norm.of(x)?;
        let key_value = Tensor::cat(&[layer.key.of(&normed)?, layer.value.of(&normed)?], 1)?;
        let sizes = SourceSizes { sources: vec![d], width: d, heads, max_sequence_length: n, fusion: ScoreFusion::Sum };
        let scope = SourceScope { real: None, last_only: false, bidirectional: true };
        let weights = self.drop(key, "weights");
        let attended = source_attention(&layer.query.of(&normed)?, &key_value, None, &sizes, offsets, scope, weights)?;
        let x = (x + dropout(&layer.output.of(&attended)?, self.drop(key, "attention"))?)?;
        let hidden = gelu(&layer.up.of(&layer.feed_forward_norm.of(&x)?)?)?;
        let hidden = dropout(&hidden, self.drop(key, "hidden"))?;
        let x = (&x + dropout(&layer.down.of(&hidden)?, self.drop(key, "feed_forward"))?)?;
        dropout(&x, self.drop(key, "block"))
    }

    /// The copies from the banks for the states x `[P, d]`.
    fn copies(&self, x: &Tensor, tail: &Entries) -> Result<Copies> {
        let (count, d) = (x.dim(0)?, self.transformer.width);
        let unit: Vec<f32> = normalize(&x.detach())?.flatten_all()?.to_vec1()?;
        let device = x.device();
        let near = nearest(&unit, &tail.features, d, self.config.top_tail)?;
        let embedding = self.items.as_tensor().detach();
        let tail_copy = if tail.items.is_empty() {
            Tensor::zeros((count, d), DType::F32, device)?
        } else {
            let found = near[0].len();
            let rows: Vec<u32> = near.iter().flatten().map(|near| tail.items[near.row as usize] - 1).collect();
            let scores: Vec<f32> = near.iter().flatten().map(|near| near.score).collect();
            let weights = mp4sr_ops::plain::softmax(&Tensor::from_vec(scores, (count, found), device)?)?;
            if trace::is_on() {
                let items = rows.iter().map(|&row| row as f32 + 1.0);
                trace::record(|| "tail_items".to_owned(), &Tensor::from_iter(items, device)?.reshape((count, found))?);
                trace::record(|| "tail_weights".to_owned(), &weights);
            }
            gather(&embedding, &rows)?.reshape((count, found, d))?.broadcast_mul(&weights.unsqueeze(2)?)?.sum(1)?
        };
        let centroids = self.banks.centroids()?;
        let near = nearest(&unit, &centroids.features, d, self.config.top_head)?;
        if trace::is_on() && !centroids.items.is_empty() {
            let items = near.iter().flatten().map(|near| centroids.items[near.row as usize] as f32);
            let items = Tensor::from_iter(items.collect::<Vec<_>>(), device)?.reshape((count, ()))?;
            trace::record(|| "head_items".to_owned(), &items);
        }
        let mean = |near: &Vec<Neighbour>| {
            let mut mean = vec![0.0f32; d];
            for neighbour in near {
                let share = neighbour.score / near.len() as f32;
                let centroid = &centroids.features[neighbour.row as usize * d..][..d];
                mean.iter_mut().zip(centroid).for_each(|(mean, value)| *mean += share * value);
            }
            mean
        };
        let head_copy = Tensor::from_vec(near.iter().flat_map(mean).collect::<Vec<f32>>(), (count, d), device)?;
        trace::record(|| "copy_tail".to_owned(), &tail_copy);
        trace::record(|| "copy_head".to_owned(), &head_copy);
        Ok(Copies { tail: tail_copy, head: head_copy })
    }

    /// The items' side of the logits, `[I, 3 d + 3]`: the weights of c, x and t, then their biases.
    fn item_rows(&self) -> Result<Tensor> {
        let maps = [&self.output_head, &self.output_sequence, &self.output_tail];
        let weights = maps.iter().map(|map| map.weight.t()?.contiguous());
        let biases = maps.iter().map(|map| map.bias.unsqueeze(1));
        Tensor::cat(&weights.chain(biases).collect::<Result<Vec<_>>>()?, 1)
    }

    /// The states' side of the logits, `[P, 3 d + 3]`; without copies, only x contributes.
    fn state_rows(&self, x: &Tensor, copies: Option<&Copies>) -> Result<Tensor> {
        let (count, d) = x.dims2()?;
        let Some(copies) = copies else {
            let zeros = |width: usize| Tensor::zeros((count, width), DType::F32, x.device());
            let one = Tensor::ones((count, 1), DType::F32, x.device())?;
            return Tensor::cat(&[&zeros(d)?, x, &zeros(d + 1)?, &one, &zeros(1)?], 1);
        };
        let Copies { tail, head } = copies;
        let both = Tensor::cat(&[x, head], 1)?;
        let alpha = sigmoid(&linear(&both, &self.gate_copy.weight, &self.gate_copy.bias)?)?;
        let rest = alpha.affine(-1.0, 1.0)?;
        // The gate's sum over all items of logit times weight is computed without the logits.
        let mixed_weight = self.gate_tail.weight.narrow(0, 0, self.count)?.contiguous()?;
        let tail_weight = self.gate_tail.weight.narrow(0, self.count, self.count)?.contiguous()?;
        let along = |x: &Tensor, map: &Linear, weight: &Tensor| {
            let folded = product(&map.weight, weight)?;
            product(x, &folded)?.broadcast_add(&product(&map.bias.unsqueeze(0)?, weight)?.squeeze(0)?)
        };
        let mixed = ((&rest * along(head, &self.output_head, &mixed_weight)?)?
            + (&alpha * along(x, &self.output_sequence, &mixed_weight)?)?)?;
        let argument = (mixed + along(tail, &self.output_tail, &tail_weight)?)?.broadcast_add(&self.gate_tail.bias)?;
        let beta = sigmoid(&argument)?;
        trace::record(|| "gate_copy".to_owned(), &alpha.squeeze(1)?);
        trace::record(|| "gate_tail".to_owned(), &beta.squeeze(1)?);
        let (of_head, of_state, of_tail) = ((&beta * &rest)?, (&beta * &alpha)?, beta.affine(-1.0, 1.0)?);
        let parts = [
            head.broadcast_mul(&of_head)?,
            x.broadcast_mul(&of_state)?,
            tail.broadcast_mul(&of_tail)?,
            of_head,
            of_state,
            of_tail,
        ];
        Tensor::cat(&parts, 1)
    }

    /// Draws tail items that have an entry and are not labels of the step, determined by the key: as many as the memory loss pushes states
    /// away from, or all if there are fewer.
    fn memory_negatives(&self, tail: &Entries, labels: &[u32], key: RngKey) -> Vec<u32> {
        let own = crate::data::distinct(labels);
        let mut open = tail.items.clone();
        open.dedup();
        open.retain(|item| own.binary_search(item).is_err());
        let order = key.permutation(open.len());
        order.iter().take(self.config.memory_negatives).map(|&at| open[at as usize]).collect()
    }

    /// The memory loss of states x `[P, d]` of `labels`; `None` if no label is a tail item.
    fn memory_loss(&self, x: &Tensor, labels: &[u32], tail: &Entries, negatives: &[u32]) -> Result<Option<Tensor>> {
        let d = self.transformer.width;
        let is_tail = |label: u32| !self.is_head[label as usize - 1];
        let indices: Vec<u32> = (0..labels.len() as u32).filter(|&at| is_tail(labels[at as usize])).collect();
        if indices.is_empty() {
            return Ok(None);
        }
        let anchors = normalize(&gather(x, &indices)?)?;
        let share = 1.0 / indices.len() as f64;
        let (mut sums, mut held) = (Vec::with_capacity(indices.len() * d), 0);
        for &at in &indices {
            let own = tail.of(labels[at as usize]);
            let mut sum = vec![0.0f32; d];
            for entry in own.clone() {
                sum.iter_mut().zip(&tail.features[entry * d..][..d]).for_each(|(sum, value)| *sum += value);
            }
            held += own.len();
            sums.extend(sum);
        }
        let sums = Tensor::from_vec(sums, (indices.len(), d), x.device())?;
        let pull = ((anchors.clone() * sums)?.sum_all()?.affine(-1.0, held as f64)? * share)?;
        trace::record(|| "memory_pull".to_owned(), &pull);
        let mut others = Vec::new();
        for &item in negatives {
            let own = tail.of(item);
            others.extend_from_slice(&tail.features[own.start * d..own.end * d]);
        }
        let (push, pairs) = if others.is_empty() {
            (pull.zeros_like()?, pull.zeros_like()?)
        } else {
            let count = others.len() / d;
            let others = Tensor::from_vec(others, (count, d), x.device())?;
            let scores = product(&anchors, &others.t()?.contiguous()?)?;
            let above = scores.detach().gt(self.config.margin)?.to_dtype(DType::F32)?;
            (((scores * &above)?.sum_all()? * share)?, above.sum_all()?)
        };
        trace::record(|| "memory_push".to_owned(), &push);
        trace::record(|| "memory_push_pairs".to_owned(), &pairs);
        Ok(Some((pull + push)?))
    }

    /// The loss of sequences with masked positions. Without `key` nothing is dropped. The states wait until
    /// [`after_step`](Model::after_step) writes them into the banks.
    pub fn cloze_loss(&self, cloze: &Cloze, memory: Memory<'_>, key: Option<RngKey>) -> Result<Tensor> {
        let encoded = self.encode(&cloze.items, &cloze.offsets, key)?;
        let indices: Vec<u32> =
            (0..cloze.labels.len() as u32).filter(|&token| cloze.labels[token as usize] > 0).collect();
        let labels: Vec<u32> = indices.iter().map(|&token| cloze.labels[token as usize]).collect();
        let x = gather(&encoded, &indices)?;
        trace::record(|| "hidden".to_owned(), &x);
        *self.pending.borrow_mut() = Some((x.detach(), labels.clone()));
        let columns: Vec<u32> = labels.iter().map(|label| label - 1).collect();
        let cross_entropy_of = |rows: &Tensor, items: &Tensor| {
            if trace::is_on() {
                trace::record(|| "logits".to_owned(), &rows.matmul(&items.t()?)?);
            }
            let losses = cross_entropy(rows, items, &columns, 1.0)?;
            let mean = losses.mean_all()?;
            trace::record(|| "cross_entropy_rows".to_owned(), &losses);
            trace::record(|| "cross_entropy".to_owned(), &mean);
            Ok::<_, candle_core::Error>(mean)
        };
        if let Memory::WarmUp = memory {
            let map = &self.output_sequence;
            let one = Tensor::ones((x.dim(0)?, 1), DType::F32, x.device())?;
            let items = Tensor::cat(&[map.weight.t()?.contiguous()?, map.bias.unsqueeze(1)?], 1)?;
            return cross_entropy_of(&Tensor::cat(&[&x, &one], 1)?, &items);
        }
        let tail = self.banks.tail()?;
        let negatives = match memory {
            Memory::Drawn(key) => self.memory_negatives(&tail, &labels, key),
            Memory::Given(items) => items.to_vec(),
            Memory::WarmUp => Vec::new(),
        };
        let copies = self.copies(&x, &tail)?;
        let loss = cross_entropy_of(&self.state_rows(&x, Some(&copies))?, &self.item_rows()?)?;
        match self.memory_loss(&x, &labels, &tail, &negatives)? {
            Some(memory) => loss + (memory * self.config.omega)?,
            None => Ok(loss),
        }
    }

    /// Writes the states `[P, d]` of items, 1-based, into the banks of their classes, as unit vectors.
    pub fn write_states(&self, states: &Tensor, items: &[u32]) -> Result<()> {
        let unit: Vec<f32> = normalize(&states.detach())?.flatten_all()?.to_vec1()?;
        self.banks.write(&unit, items, &self.is_head)
    }

    /// Records the epoch that writes into the banks. It determines whether copies are used in scoring.
    pub fn set_epoch(&self, epoch: usize) -> Result<()> {
        self.banks.set_epoch(epoch)
    }
}

impl Model for Masr {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn buffers(&self) -> Option<&Buffers> {
        Some(self.banks.buffers())
    }

    fn phases(&self) -> &[Phase] {
        &self.phases
    }

    fn trains(&self, _: &Phase, name: &str) -> bool {
        let last = format!("layer.{}.", self.transformer.layers - 1);
        self.config.blocks == Blocks::Stacked || !name.starts_with("layer.") || name.starts_with(&last)
    }

    fn max_sequence_length(&self) -> usize {
        self.transformer.max_sequence_length
    }

    fn loss(&self, _: &Phase, batch: &Batch, step: &Step) -> Result<Tensor> {
        let Some(cloze) = self.cloze(batch, step.key.fold_in("cloze"))? else {
            *self.pending.borrow_mut() = None;
            return Tensor::zeros((), DType::F32, self.items.device());
        };
        let warms_up = step.epoch <= self.config.warmup;
        let memory = if warms_up { Memory::WarmUp } else { Memory::Drawn(step.key.fold_in("negatives")) };
        self.cloze_loss(&cloze, memory, Some(step.key))
    }

    fn after_step(&self, _: &Phase, _: &Batch, step: &Step) -> Result<()> {
        self.banks.set_epoch(step.epoch)?;
        match self.pending.borrow_mut().take() {
            Some((states, items)) => self.write_states(&states, &items),
            None => Ok(()),
        }
    }

    fn scorer(&self, _: &Phase) -> Result<Box<dyn Scorer + '_>> {
        let copies = self.banks.epoch()? > self.config.warmup;
        Ok(Box::new(MasrScorer { model: self, copies, tail: self.banks.tail()?, items: self.item_rows()?.detach() }))
    }
}

struct MasrScorer<'a> {
    model: &'a Masr,
    /// Whether the warm-up is over and copies are used.
    copies: bool,
    tail: Entries,
    items: Tensor,
}

impl Scorer for MasrScorer<'_> {
    fn items(&self) -> &Tensor {
        &self.items
    }

    fn queries(&self, queries: &[Query<'_>]) -> Result<Tensor> {
        let model = self.model;
        let (n, mask) = (model.transformer.max_sequence_length, model.count as u32 + 1);
        let (mut items, mut lengths) = (Vec::new(), Vec::new());
        for query in queries {
            let recent = &query.history[query.history.len().saturating_sub(n - 1)..];
            items.extend_from_slice(recent);
            items.push(mask);
            lengths.push(recent.len() + 1);
        }
        let offsets = PackedOffsets::from_lengths(lengths)?;
        let x = gather(&model.encode(&items, &offsets, None)?, &offsets.last_tokens())?;
        trace::record(|| "hidden".to_owned(), &x);
        let copies = self.copies.then(|| model.copies(&x, &self.tail)).transpose()?;
        Ok(model.state_rows(&x, copies.as_ref())?.detach())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TrainingSequences;

    fn model(config: Config) -> Masr {
        let users: [&[u32]; 4] = [&[1, 2, 3, 2], &[3, 2], &[4], &[2, 3, 1]];
        let training = TrainingSequences::new(users).into();
        let data = Data {
            items: 10,
            training,
            modalities: Vec::new(),
            categories: None,
            device: crate::Device::Cpu,
            group: None,
        };
        let transformer = TransformerConfig { width: 4, layers: 1, heads: 2, ..TransformerConfig::default() };
        Masr::new(config, transformer, &data, RngKey::new(3)).unwrap()
    }

    #[test]
    fn head_items_have_most_training_events_and_the_smaller_id_wins_ties() {
        let is_head = model(Config { head_share: 0.55, ..Config::default() }).is_head;
        let head: Vec<usize> = (1..=10).filter(|item| is_head[item - 1]).collect();
        assert_eq!(head, [1, 2, 3, 4, 5], "items 1 to 4 have events, those after them none");
    }

    #[test]
    fn targets_their_kinds_and_random_items_have_the_expected_distributions() {
        let model = model(Config::default());
        let history: Vec<u32> = (0..40).map(|at| 1 + at % 10).collect();
        let batch = Batch { targets: Vec::new(), ..Batch::of_histories([(&history[..], 1)], 50).unwrap() };
        let rounds = 4000u64;
        let (mut targets, mut masked, mut kept, mut drawn) = (0u32, 0u32, 0u32, [0u32; 11]);
        for round in 0..rounds {
            let Some(cloze) = model.cloze(&batch, RngKey::new(5).fold_in_index(round)).unwrap() else { continue };
            for ((&item, &label), &own) in cloze.items.iter().zip(&cloze.labels).zip(&history) {
                assert!(label == 0 && item == own || label == own);
                targets += u32::from(label > 0);
                masked += u32::from(item == 11);
                if label > 0 && item < 11 {
                    kept += u32::from(item == own);
                    drawn[item as usize] += u32::from(item != own);
                }
            }
        }
        let near = |count: u32, draws: f64, share: f64| {
            (f64::from(count) - share * draws).abs() < 5.0 * (draws * share * (1.0 - share)).sqrt()
        };
        let total = f64::from(targets);
        assert!(near(targets, 40.0 * rounds as f64, 0.15), "{targets}");
        assert!(near(masked, total, 0.8), "{masked} of {targets}");
        // A tenth of the targets keep their item, and a tenth of the random items happen to be the same item.
        assert!(near(kept, total, 0.11), "{kept} of {targets}");
        assert!(drawn[1..].iter().all(|&count| near(count, total, 0.009)), "{drawn:?}");
    }

    #[test]
    fn sequences_without_a_target_are_left_out_and_a_step_without_any_changes_nothing() {
        let model = model(Config { mask: 0.0, ..Config::default() });
        let batch = Batch { targets: Vec::new(), ..Batch::of_histories([(&[1, 2][..], 1)], 50).unwrap() };
        assert!(model.cloze(&batch, RngKey::new(1)).unwrap().is_none());
        let key = RngKey::new(1);
        let step = Step { epoch: 1, index: 0, global: 0, epoch_key: key, key };
        let loss = model.loss(&model.phases[0], &batch, &step).unwrap();
        assert!(loss.to_scalar::<f32>().unwrap().abs() < f32::MIN_POSITIVE);
        let gradients = loss.backward().unwrap();
        assert!(model.parameters().gradients(&gradients).unwrap().is_empty());
        model.after_step(&model.phases[0], &batch, &step).unwrap();
        assert!(model.banks.tail().unwrap().items.is_empty());
    }

    #[test]
    fn an_item_whose_states_are_overwritten_within_the_step_keeps_its_centroid() {
        let axis = |at: usize| (0..4).map(|j| if j == at { 1.0f32 } else { 0.0 }).collect::<Vec<_>>();
        let write = |model: &Masr, entries: &[(u32, usize)]| {
            let states: Vec<f32> = entries.iter().flat_map(|&(_, at)| axis(at)).collect();
            let states = Tensor::from_vec(states, (entries.len(), 4), model.items.device()).unwrap();
            model.write_states(&states, &entries.iter().map(|&(item, _)| item).collect::<Vec<_>>()).unwrap();
        };
        // Items 2 and 3 are the head items, and the ring has two entries.
        let config = || Config { head_bank: 2, head_share: 0.2, ..Config::default() };
        let known = model(config());
        write(&known, &[(2, 0)]);
        write(&known, &[(2, 1), (3, 1), (3, 2)]);
        let centroids = known.banks.centroids().unwrap();
        assert_eq!(centroids.items, [2, 3]);
        assert_eq!(centroids.features, [[1.0, 0.0, 0.0, 0.0], [0.0, 0.5, 0.5, 0.0]].concat());
        let unknown = model(config());
        write(&unknown, &[(2, 1), (3, 1), (3, 2)]);
        assert_eq!(unknown.banks.centroids().unwrap().items, [3], "item 2 has never had an entry after a step");
    }

    #[test]
    fn memory_negatives_are_uniform_tail_items_that_are_not_labels() {
        let model = model(Config { memory_negatives: 2, head_share: 0.2, ..Config::default() });
        let items: Vec<u32> = vec![5, 6, 6, 7, 8, 9];
        let states = Tensor::ones((items.len(), 4), DType::F32, model.items.device()).unwrap();
        model.write_states(&states, &items).unwrap();
        let tail = model.banks.tail().unwrap();
        let (rounds, mut counts) = (6000u64, [0u32; 11]);
        for round in 0..rounds {
            let drawn = model.memory_negatives(&tail, &[8, 2, 8], RngKey::new(4).fold_in_index(round));
            assert!(drawn.len() == 2 && drawn[0] != drawn[1]);
            drawn.iter().for_each(|&item| counts[item as usize] += 1);
        }
        for item in 1..=10 {
            let share = if [5, 6, 7, 9].contains(&item) { 0.5 } else { 0.0 };
            let error = (f64::from(counts[item]) - share * rounds as f64).abs();
            assert!(error <= 5.0 * (rounds as f64 * share * (1.0 - share)).sqrt(), "{item}: {counts:?}");
        }
        assert_eq!(model.memory_negatives(&tail, &[5, 6, 7, 8], RngKey::new(4)), [9], "all where there are fewer");
    }
}
