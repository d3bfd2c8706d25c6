//! eSASRec: SASRec's objective with gated pre-norm layers and a softmax over sampled negatives.
//!
//! Tikhonovich et al., eSASRec: Enhancing Transformer-based Recommendations in a Modular Fashion, RecSys 2025 (arXiv 2508.06450), as in the
//! authors' code (transformer_benchmark over RecTools 0.13). A sample is a user's whole sequence; the output after every item predicts the
//! next one. The input is Dropout(e + p), where positions are counted back from the last item. The layers are those of LiGR, which are gated
//! and have the LayerNorm first ([`LayerKind`]). No LayerNorm follows the last layer. Logits are inner products with the item
//! embeddings that the input reads. The loss of a position is the cross-entropy of its target among itself and n items, drawn for that
//! position with replacement from the whole catalogue, so the target can be among them; nothing corrects for the sampling. The mean is over
//! all positions of a batch.
//!
//! In RecTools 0.13, which the authors require, dropout also applies to the table of item embeddings, once per step for inputs and logits
//! alike; later releases do not do this ([`Config::item_dropout`]). The other keys are what the authors compare (layers of SASRec, losses, negatives
//! from the batch, a correction by item frequency), an option of their code (biases of F), and what other pre-norm transformers or SASRec's authors
//! do (a last LayerNorm, positions from the first item, negatives that the user does not have). Three things differ from the authors' code:
//! Adam's second moment decays by 0.999 instead of 0.98, LayerNorm adds 1e-12 to the variance instead of 1e-5, and gradients are clipped.

mod layers;

use candle_core::{D, Tensor, Var};
use mp4sr_ops::plain::softplus;
use mp4sr_ops::{Dropout, PackedOffsets, Result, RngKey, cross_entropy, dropout, gather, picked_dot};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use layers::{Layer, Pass, glorot};

pub use layers::LayerKind;

use crate::data::distinct;
use crate::graph::rows_of;
use crate::interface::FINETUNE;
use crate::maps::Norm;
use crate::negatives::draw_outside;
use crate::recipe::{ModelSettings, Reads, Recipe, Section, Supports};
use crate::{
    Batch, BatchUnit, Data, Initial, Model, NegativeSampler, Parameters, Phase, Query, Refused, Samples, Scorer, Step,
    Stop, TransformerConfig, trace,
};

/// How eSASRec is named, configured and built. The defaults are those with which the authors train on MovieLens-1M.
pub static RECIPE: Recipe = Recipe {
    name: "esasrec",
    title: "eSASRec",
    summary: "A gated pre-norm transformer over whole sequences, with a softmax over sampled negatives.",
    paper: "Tikhonovich et al., eSASRec: Enhancing Transformer-based Recommendations in a Modular Fashion, 2025 (arXiv 2508.06450)",
    reads: Reads { features: false, transformer: true, categories: &[] },
    supports: Supports::NOTHING,
    section: Section::of::<Config>(),
    phase_reads: |settings, _, key| match key {
        "negatives" | "negative_items" | "in_batch" => settings.own["loss"] != "softmax",
        "calibration" => settings.own["loss"] == "gbce",
        _ => true,
    },
    defaults: "model.transformer.heads = 1\nmodel.transformer.max_sequence_length = 200\nmodel.transformer.dropout = 0.1\n\
               finetune.batch = 128\nfinetune.epochs = 100\nfinetune.patience = 50\nfinetune.weight_decay = 0.0",
    presets: &[],
    grid: &[
        "model.transformer.layers=1,2,4",
        "model.transformer.dropout=0.1,0.2,0.3,0.5",
        "model.esasrec.negatives=128,256",
    ],
    renamed: &[],
    item_tables: |_| None,
    check,
    phases: |_| Ok(PHASES.to_vec()),
    build: |settings, data, key| Ok(Box::new(ESasRec::new(settings.own()?, settings.transformer()?, &data, key)?)),
};

const PHASES: [Phase; 1] = [Phase {
    name: FINETUNE,
    samples: Samples::Sequences { at_least: 2, batch: BatchUnit::Sequences },
    stop: Stop::Validation { warm_up: 0 },
}];

/// The loss of a position.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Loss {
    /// The cross-entropy of the target among itself and the negatives.
    #[default]
    SampledSoftmax,
    /// The binary cross-entropy of the target and the negatives, in which the target's probability is raised to a power (gBCE,
    /// Petrov and Macdonald, 2023).
    Gbce,
    /// The cross-entropy over all items, without negatives.
    Softmax,
}

/// The items that negatives are drawn from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NegativeItems {
    /// All items, including the target.
    #[default]
    All,
    /// All items but the target.
    NotTarget,
    /// The items that the user has no training event with (SASRec's authors).
    Unseen,
}

/// Where positions are counted from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Positions {
    /// From the last item of a sequence backwards.
    #[default]
    FromEnd,
    /// From the first item of a sequence onwards.
    FromStart,
}

/// `[model.esasrec]`: hyper-parameters of eSASRec.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The transformer layers.
    pub layers: LayerKind,
    /// The loss of a position.
    pub loss: Loss,
    /// The number of negatives of each position.
    #[schemars(range(min = 1, max = 100_000))]
    pub negatives: usize,
    /// The items that negatives are drawn from.
    pub negative_items: NegativeItems,
    /// The share of the negatives that are drawn from the distinct items in the batch's inputs; `negative_items` determines how the others
    /// are drawn. If such a draw is the target, it is drawn once more, and that result is kept.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub in_batch: f64,
    /// Whether the logarithm of an item's share of the training events is subtracted from its logits in training.
    pub log_q: bool,
    /// t of gBCE: 0 leaves the binary cross-entropy as it is, 1 fully compensates for the negatives that are not drawn.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub calibration: f64,
    /// Whether dropout applies to the table of item embeddings too, once per step (RecTools 0.13; not in later releases).
    pub item_dropout: bool,
    /// Where positions are counted from.
    pub positions: Positions,
    /// Whether the maps of the feed-forward layer have biases.
    pub feed_forward_bias: bool,
    /// Whether a LayerNorm follows the last layer.
    pub final_norm: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            layers: LayerKind::default(),
            loss: Loss::default(),
            negatives: 256,
            negative_items: NegativeItems::default(),
            in_batch: 0.0,
            log_q: false,
            calibration: 0.75,
            item_dropout: true,
            positions: Positions::default(),
            feed_forward_bias: false,
            final_norm: false,
        }
    }
}

fn check(settings: &ModelSettings<'_>) -> std::result::Result<(), Refused> {
    let config: Config = settings.own().map_err(|e| Refused::new("model.esasrec", &"...", e.to_string()))?;
    if config.loss == Loss::Softmax && config.log_q {
        let allowed = "false under `loss = \"softmax\"`, which does not sample, so nothing has to be corrected";
        return Err(Refused::new("model.esasrec.log_q", &config.log_q, allowed));
    }
    Ok(())
}

/// Sequences with the item that follows each token, and the negatives of each token.
#[derive(Clone, Debug)]
pub struct Pairs {
    /// The offsets of the sequences.
    pub offsets: PackedOffsets,
    /// `[tokens]`: the items that the model reads.
    pub items: Vec<u32>,
    /// `[tokens]`: the item that follows each token.
    pub targets: Vec<u32>,
    /// `[tokens, n]`: items that the targets are compared with; empty if the loss has no negatives.
    pub negatives: Vec<u32>,
}

/// The model with its parameters.
#[derive(Debug)]
pub struct ESasRec {
    config: Config,
    transformer: TransformerConfig,
    /// The sampler of items that a user has no training event with; `None` unless negatives are drawn from these.
    unseen: Option<NegativeSampler>,
    /// `[I]`: the logarithm of each item's share of the training events, if logits are corrected by it.
    log_q: Option<Tensor>,
    parameters: Parameters,
    /// `[I, d_0]`: row i-1 is item i.
    items: Var,
    /// `[n, d_0]`: the embeddings of the positions.
    position: Var,
    layers: Vec<Layer>,
    final_norm: Option<Norm>,
}

impl ESasRec {
    /// Creates a model whose initial parameters are determined by `key`.
    pub fn new(config: Config, transformer: TransformerConfig, data: &Data, key: RngKey) -> Result<Self> {
        let key = key.fold_in("initial");
        let mut parameters = Parameters::new(&data.device);
        let p = &mut parameters;
        let (d, n) = (transformer.width, transformer.max_sequence_length);
        let items = p.add("item_embedding", &[data.items, d], Initial::Scaled(glorot(data.items, d)), key)?;
        let position = p.add("position", &[n, d], Initial::Scaled(glorot(n, d)), key)?;
        let layer = |l| Layer::new(p, l, &transformer, config.layers, config.feed_forward_bias, key);
        let layers = (0..transformer.layers).map(layer).collect::<Result<_>>()?;
        let final_norm = config.final_norm.then(|| Norm::new(&mut parameters, "output_norm", d, key)).transpose()?;
        let samples = config.loss != Loss::Softmax;
        let unseen = samples && config.negative_items == NegativeItems::Unseen;
        let unseen = unseen.then(|| NegativeSampler::new(data)).transpose()?;
        let log_q = config.log_q.then(|| log_shares(data)).transpose()?;
        Ok(Self { config, transformer, unseen, log_q, parameters, items, position, layers, final_norm })
    }

    fn drop(&self, key: Option<RngKey>, name: &str) -> Dropout {
        key.map_or(Dropout::NONE, |key| key.fold_in(name).dropout(self.transformer.dropout))
    }

    /// The row of every token in the table of positions.
    fn positions(&self, offsets: &PackedOffsets) -> Vec<u32> {
        match self.config.positions {
            Positions::FromStart => offsets.positions(),
            Positions::FromEnd => (0..offsets.count()).flat_map(|j| (0..offsets.range(j).len() as u32).rev()).collect(),
        }
    }

    /// The output after every token, `[tokens, d_0]`, or after the last token of every sequence, `[sequences, d_0]`. Tokens are the rows
    /// `rows` of `table` `[I, d_0]`. Without `key` nothing is dropped.
    fn outputs(
        &self,
        table: &Tensor,
        rows: &[u32],
        offsets: &PackedOffsets,
        last_only: bool,
        key: Option<RngKey>,
    ) -> Result<Tensor> {
        let input = (gather(table, rows)? + gather(&self.position, &self.positions(offsets))?)?;
        let mut x = dropout(&input, self.drop(key, "input"))?;
        trace::record(|| "input".to_owned(), &x);
        for (l, layer) in self.layers.iter().enumerate() {
            let key = key.map(|key| key.fold_in("layer").fold_in_index(l as u64));
            let pass = Pass { offsets, last_only: last_only && l + 1 == self.layers.len(), key };
            x = layer.of(l, &x, &self.transformer, pass)?;
            trace::record(|| format!("layer.{l}"), &x);
        }
        match &self.final_norm {
            Some(norm) => norm.of(&x),
            None => Ok(x),
        }
    }

    /// The pairs of a batch of whole training sequences, with negatives that are determined by the key.
    pub fn pairs(&self, batch: &Batch, key: RngKey) -> Result<Pairs> {
        let (mut items, mut targets, mut users, mut lengths) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (j, &user) in batch.users.iter().enumerate() {
            let own = &batch.items[batch.offsets.range(j)];
            items.extend_from_slice(&own[..own.len() - 1]);
            targets.extend_from_slice(&own[1..]);
            users.extend(std::iter::repeat_n(user, own.len() - 1));
            lengths.push(own.len() - 1);
        }
        let mut negatives = Vec::new();
        if self.config.loss != Loss::Softmax {
            let key = key.fold_in("negatives");
            let present = distinct(&items);
            negatives.reserve(self.config.negatives * items.len());
            for (token, (&user, &target)) in users.iter().zip(&targets).enumerate() {
                self.draw(&mut negatives, user, target, &present, key.fold_in_index(token as u64));
            }
        }
        Ok(Pairs { offsets: PackedOffsets::from_lengths(lengths)?, items, targets, negatives })
    }

    /// Appends the negatives of one token. `present` has the distinct items that the batch reads, without items that are only targets.
    fn draw(&self, negatives: &mut Vec<u32>, user: u32, target: u32, present: &[u32], key: RngKey) {
        let Config { negatives: count, negative_items, in_batch, .. } = self.config;
        let (count, of_batch) = (count as u64, (count as f64 * in_batch) as u64);
        let (all, again) = (self.items.dims()[0], key.fold_in("again"));
        let below = |key: RngKey, at: u64, bound: usize| (key.uniform(at) * bound as f64) as usize;
        negatives.extend((0..of_batch).map(|at| match present[below(key, at, present.len())] {
            item if item == target => present[below(again, at, present.len())],
            item => item,
        }));
        negatives.extend((of_batch..count).map(|at| match (negative_items, &self.unseen) {
            (NegativeItems::Unseen, Some(unseen)) => unseen.draw(user, key.fold_in_index(at)),
            (NegativeItems::NotTarget, _) if all > 1 => draw_outside(&[target], all, key.fold_in_index(at)),
            _ => 1 + below(key, at, all) as u32,
        }));
    }

    /// The mean loss of all positions. Without `key` nothing is dropped.
    pub fn sequence_loss(&self, pairs: &Pairs, key: Option<RngKey>) -> Result<Tensor> {
        let drop = if self.config.item_dropout { self.drop(key, "items") } else { Dropout::NONE };
        let table = dropout(&self.items, drop)?;
        let h = self.outputs(&table, &rows_of(&pairs.items), &pairs.offsets, false, key)?;
        trace::record(|| "h".to_owned(), &h);
        let losses = match self.config.loss {
            Loss::Softmax => cross_entropy(&h, &table, &rows_of(&pairs.targets), 1.0)?,
            Loss::SampledSoftmax => {
                let logits = self.logits(&h, &table, pairs)?;
                let top = logits.max_keepdim(D::Minus1)?.detach();
                let sum = logits.broadcast_sub(&top)?.exp()?.sum_keepdim(D::Minus1)?;
                (((sum.log()? + top)? - logits.narrow(1, 0, 1)?)?).squeeze(1)?
            }
            Loss::Gbce => {
                let logits = self.logits(&h, &table, pairs)?;
                let count = self.config.negatives;
                let others = softplus(&logits.narrow(1, 1, count)?.contiguous()?)?.sum(D::Minus1)?;
                let own = softplus(&logits.narrow(1, 0, 1)?.contiguous()?.squeeze(1)?.neg()?)?;
                (((own * self.power())? + others)? / (count + 1) as f64)?
            }
        };
        trace::record(|| "loss_rows".to_owned(), &losses);
        losses.mean_all()
    }

    /// Logits of each token's target, then of its negatives: `[tokens, 1 + n]`.
    fn logits(&self, h: &Tensor, table: &Tensor, pairs: &Pairs) -> Result<Tensor> {
        let count = self.config.negatives;
        let mut picked = Vec::with_capacity(pairs.targets.len() * (count + 1));
        for (target, negatives) in pairs.targets.iter().zip(pairs.negatives.chunks_exact(count)) {
            picked.push(target - 1);
            picked.extend(negatives.iter().map(|item| item - 1));
        }
        let mut logits = picked_dot(h, table, &picked)?;
        if let Some(log_q) = &self.log_q {
            logits = (&logits - log_q.index_select(&Tensor::new(picked, h.device())?, 0)?.reshape(logits.shape())?)?;
        }
        trace::record(|| "sampled_logits".to_owned(), &logits);
        Ok(logits)
    }

    /// beta of gBCE: with alpha the share of the other items that is drawn, alpha (t (1 - 1 / alpha) + 1 / alpha).
    fn power(&self) -> f64 {
        let others = self.items.dims()[0].saturating_sub(1).max(1);
        let alpha = self.config.negatives as f64 / others as f64;
        self.config.calibration * (alpha - 1.0) + 1.0
    }
}

/// The logarithm of each item's share of the training events, `[I]`. An item without an event counts as if it had one.
fn log_shares(data: &Data) -> Result<Tensor> {
    let mut counts = vec![0u32; data.items];
    data.training.items.iter().for_each(|&item| counts[item as usize - 1] += 1);
    let all = data.training.items.len().max(1) as f64;
    let shares = counts.iter().map(|&count| (f64::from(count.max(1)) / all).ln() as f32);
    Tensor::from_iter(shares.collect::<Vec<_>>(), &data.device)
}

impl Model for ESasRec {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn phases(&self) -> &[Phase] {
        &PHASES
    }

    fn max_sequence_length(&self) -> usize {
        self.transformer.max_sequence_length
    }

    fn training_sequence_length(&self) -> usize {
        // The last item is only a target.
        self.transformer.max_sequence_length + 1
    }

    fn loss(&self, _: &Phase, batch: &Batch, step: &Step) -> Result<Tensor> {
        self.sequence_loss(&self.pairs(batch, step.key)?, Some(step.key))
    }

    fn scorer(&self, _: &Phase) -> Result<Box<dyn Scorer + '_>> {
        Ok(Box::new(ESasRecScorer { model: self, items: self.items.as_tensor().detach() }))
    }
}

struct ESasRecScorer<'a> {
    model: &'a ESasRec,
    items: Tensor,
}

impl Scorer for ESasRecScorer<'_> {
    fn items(&self) -> &Tensor {
        &self.items
    }

    fn queries(&self, queries: &[Query<'_>]) -> Result<Tensor> {
        let batch = Batch::of_queries(queries, self.model.transformer.max_sequence_length)?;
        Ok(self.model.outputs(&self.items, &rows_of(&batch.items), &batch.offsets, true, None)?.detach())
    }
}

#[cfg(test)]
mod tests {
    use mp4sr_ops::{LayerSizes, plain};

    use super::*;
    use crate::{Sample, TrainingSequences};

    const ITEMS: usize = 8;
    const TRAINING: [&[u32]; 3] = [&[1, 2, 3, 1], &[5, 6], &[7, 7, 2, 4, 1, 3, 8]];

    fn data() -> Data {
        let training = TrainingSequences::new(TRAINING).into();
        Data {
            items: ITEMS,
            training,
            modalities: Vec::new(),
            categories: None,
            device: crate::Device::Cpu,
            group: None,
        }
    }

    fn transformer() -> TransformerConfig {
        TransformerConfig {
            width: 8,
            layers: 2,
            feed_forward: 6,
            max_sequence_length: 4,
            ..TransformerConfig::default()
        }
    }

    fn model(config: Config) -> ESasRec {
        ESasRec::new(config, transformer(), &data(), RngKey::new(3)).unwrap()
    }

    fn batch(model: &ESasRec) -> Batch {
        let samples = (0..).zip(TRAINING).map(|(user, history)| Sample { user, history, target: None });
        Batch::new(samples, model.training_sequence_length()).unwrap()
    }

    #[test]
    fn every_item_of_a_sequence_but_the_first_is_a_target() {
        let model = model(Config { negatives: 3, ..Config::default() });
        let pairs = model.pairs(&batch(&model), RngKey::new(1)).unwrap();
        // The model reads four items, so the third sequence is cut to five.
        assert_eq!(pairs.items, [1, 2, 3, 5, 2, 4, 1, 3]);
        assert_eq!(pairs.targets, [2, 3, 1, 6, 4, 1, 3, 8]);
        assert_eq!((0..3).map(|j| pairs.offsets.range(j)).collect::<Vec<_>>(), [0..3, 3..4, 4..8]);
        assert_eq!(model.positions(&pairs.offsets), [2, 1, 0, 0, 3, 2, 1, 0]);
        assert_eq!(pairs.negatives.len(), 24);
    }

    /// How often each item is drawn, per token of `pairs` and index among its negatives, in 40,000 draws.
    fn frequencies(config: Config) -> Vec<[f64; ITEMS]> {
        let (model, draws) = (model(config), 40_000);
        let batch = batch(&model);
        let mut counts = vec![[0.0; ITEMS]; 8 * config.negatives];
        for draw in 0..draws {
            let pairs = model.pairs(&batch, RngKey::new(5).fold_in_index(draw)).unwrap();
            for (counts, &item) in counts.iter_mut().zip(&pairs.negatives) {
                counts[item as usize - 1] += 1.0 / draws as f64;
            }
        }
        counts
    }

    fn assert_near(found: &[f64; ITEMS], expected: impl Fn(u32) -> f64, what: &str) {
        for item in 1..=ITEMS as u32 {
            let (found, expected) = (found[item as usize - 1], expected(item));
            let deviation = (expected * (1.0 - expected) / 40_000.0).sqrt();
            assert!((found - expected).abs() <= 5.0 * deviation, "{what}, item {item}: {found} against {expected}");
        }
    }

    #[test]
    fn negatives_are_uniform_over_the_allowed_items() {
        let targets = [2, 3, 1, 6, 4, 1, 3, 8];
        let users = [0, 0, 0, 1, 2, 2, 2, 2];
        for negative_items in [NegativeItems::All, NegativeItems::NotTarget, NegativeItems::Unseen] {
            let found = frequencies(Config { negatives: 2, negative_items, ..Config::default() });
            for (at, found) in found.iter().enumerate() {
                let open = |item: u32| match negative_items {
                    NegativeItems::All => true,
                    NegativeItems::NotTarget => item != targets[at / 2],
                    NegativeItems::Unseen => !TRAINING[users[at / 2]].contains(&item),
                };
                let share = 1.0 / (1..=ITEMS as u32).filter(|&item| open(item)).count() as f64;
                let expected = |item| if open(item) { share } else { 0.0 };
                assert_near(found, expected, &format!("{negative_items:?}, negative {at}"));
            }
        }
    }

    #[test]
    fn a_share_of_the_negatives_is_drawn_from_the_distinct_items_of_the_batch() {
        let targets = [2, 3, 1, 6, 4, 1, 3, 8];
        // Half of three negatives, rounded down, is one.
        let found = frequencies(Config { negatives: 3, in_batch: 0.5, ..Config::default() });
        let present = [1, 2, 3, 4, 5];
        for (at, found) in found.iter().enumerate() {
            let target = targets[at / 3];
            // A target is replaced by a second draw, so it remains only if it is drawn twice, and all items share its probability.
            let again = if present.contains(&target) { 1.0 / 25.0 } else { 0.0 };
            let of_batch = |item: u32| match present.contains(&item) {
                true if item == target => again,
                true => 0.2 + again,
                false => 0.0,
            };
            let expected = |item| if at % 3 == 0 { of_batch(item) } else { 0.125 };
            assert_near(found, expected, &format!("negative {at}"));
        }
    }

    #[test]
    fn negatives_of_tokens_and_indices_are_drawn_independently() {
        let model = model(Config { negatives: 2, in_batch: 0.5, ..Config::default() });
        let batch = batch(&model);
        // Two draws agree with a probability of 1 in 8, whether both are uniform or one of them is from the batch.
        let (mut of_indices, mut of_tokens) = (0.0, 0.0);
        for draw in 0..40_000 {
            let own = model.pairs(&batch, RngKey::new(6).fold_in_index(draw)).unwrap().negatives;
            of_indices += f64::from(u8::from(own[0] == own[1])) / 40_000.0;
            of_tokens += f64::from(u8::from(own[1] == own[3])) / 40_000.0;
        }
        let deviation = (0.125f64 * 0.875 / 40_000.0).sqrt();
        for found in [of_indices, of_tokens] {
            assert!((found - 0.125).abs() < 5.0 * deviation, "{of_indices} {of_tokens}");
        }
    }

    /// Compares the loss with that of the plain operators, with dropout wherever the reference has it.
    #[test]
    fn dropout_applies_to_the_table_the_input_the_weights_the_hidden_layer_and_the_branches() {
        for (layers, item_dropout) in [(LayerKind::Ligr, true), (LayerKind::Ligr, false), (LayerKind::Sasrec, true)] {
            let model = model(Config { layers, negatives: 3, item_dropout, ..Config::default() });
            let key = RngKey::new(9);
            let pairs = model.pairs(&batch(&model), key).unwrap();
            let drop = |x: &Tensor, key: RngKey, name: &str| plain::dropout(x, key.fold_in(name).dropout(0.2)).unwrap();
            let table = model.items.as_tensor().clone();
            let table = if item_dropout { drop(&table, key, "items") } else { table };
            let of = |name: &str| model.parameters.get(name).unwrap();
            let map = |x: &Tensor, name: &str| {
                let product = x.matmul(&of(&format!("{name}.weight"))).unwrap();
                let bias = !["switch", "up", "down"].iter().any(|end| name.ends_with(end));
                if bias { product.broadcast_add(&of(&format!("{name}.bias"))).unwrap() } else { product }
            };
            let norm = |x: &Tensor, name: &str| {
                plain::layer_norm(x, &of(&format!("{name}.norm.weight")), &of(&format!("{name}.norm.bias"))).unwrap()
            };
            let positions = plain::gather(&of("position"), &[2, 1, 0, 0, 3, 2, 1, 0]).unwrap();
            let mut x =
                drop(&(plain::gather(&table, &rows_of(&pairs.items)).unwrap() + positions).unwrap(), key, "input");
            for l in 0..2u64 {
                let (at, own) = (format!("layer.{l}"), key.fold_in("layer").fold_in_index(l));
                let attention = format!("{at}.attention");
                let z = norm(&x, &attention);
                // SASRec's authors normalise only what asks.
                let asked = if layers == LayerKind::Ligr { &z } else { &x };
                let part = |x: &Tensor, name: &str| map(x, &format!("{attention}.{name}"));
                let key_value = Tensor::cat(&[part(asked, "key"), part(asked, "value")], 1).unwrap();
                let sizes = LayerSizes { width: 8, heads: 2, feed_forward: 6, bidirectional: false };
                let weights = own.fold_in("weights").dropout(0.2);
                let mixed =
                    plain::attention(&part(&z, "query"), &key_value, &pairs.offsets, sizes, false, weights).unwrap();
                let y = map(&mixed, &format!("{attention}.output"));
                let forward = format!("{at}.feed_forward");
                if layers == LayerKind::Sasrec {
                    let z = norm(&(z + y).unwrap(), &forward);
                    let hidden = drop(&map(&z, &format!("{forward}.up")).relu().unwrap(), own, "hidden");
                    let y = drop(&map(&hidden, &format!("{forward}.down")), own, "feed_forward");
                    x = (z + y).unwrap();
                    continue;
                }
                let y = drop(&y, own, "attention");
                x = (&x + plain::sigmoid(&map(&x, &format!("{attention}.gate"))).unwrap() * y).unwrap();
                let z = norm(&x, &forward);
                let part = |name: &str| map(&z, &format!("{forward}.{name}"));
                let switch = part("switch");
                let hidden = (&switch * plain::sigmoid(&switch).unwrap() * part("up")).unwrap();
                let y = map(&drop(&hidden, own, "hidden"), &format!("{forward}.down"));
                let y = drop(&y, own, "feed_forward");
                x = (&x + plain::sigmoid(&map(&x, &format!("{forward}.gate"))).unwrap() * y).unwrap();
            }
            let mut expected = 0.0;
            let logits = x.matmul(&table.t().unwrap()).unwrap().to_vec2::<f32>().unwrap();
            for (token, row) in logits.iter().enumerate() {
                let of_item = |item: u32| f64::from(row[item as usize - 1]);
                let own = of_item(pairs.targets[token]);
                let others = pairs.negatives[3 * token..][..3].iter().map(|&item| (of_item(item) - own).exp());
                expected += (1.0 + others.sum::<f64>()).ln() / 8.0;
            }
            let found = f64::from(model.sequence_loss(&pairs, Some(key)).unwrap().to_scalar::<f32>().unwrap());
            assert!((found - expected).abs() < 1e-5, "{found} against {expected}");
            let whole = f64::from(model.sequence_loss(&pairs, None).unwrap().to_scalar::<f32>().unwrap());
            assert!((found - whole).abs() > 1e-4, "{found} with dropout, {whole} without");
        }
    }

    #[test]
    fn a_score_depends_on_the_last_items_and_not_on_the_rest_of_the_batch() {
        let histories: [&[u32]; 4] = [&[3, 2, 4], &[8], &[1, 5, 2, 1, 1, 2, 7], &[1, 1, 2, 7]];
        for positions in [Positions::FromEnd, Positions::FromStart] {
            let model = model(Config { positions, final_norm: true, ..Config::default() });
            let scorer = model.scorer(&PHASES[0]).unwrap();
            let vectors = |histories: &[&[u32]]| {
                let queries: Vec<Query<'_>> = histories.iter().map(|history| Query::of_history(history)).collect();
                scorer.queries(&queries).unwrap().to_vec2::<f32>().unwrap()
            };
            let together = vectors(&histories);
            assert_eq!(together[2], together[3], "four items are read");
            for (alone, together) in histories.iter().zip(together) {
                // A product with fewer rows may sum in another order.
                let near = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-6;
                assert!(vectors(&[alone])[0].iter().zip(&together).all(near), "{positions:?}: {alone:?}");
            }
        }
    }

    #[test]
    fn shares_are_computed_from_the_training_events() {
        // Item 1 has three of the thirteen events, item 5 has one.
        let shares: Vec<f32> = log_shares(&data()).unwrap().to_vec1().unwrap();
        assert!((shares[0] - (3.0f32 / 13.0).ln()).abs() < 1e-6 && (shares[4] - (1.0f32 / 13.0).ln()).abs() < 1e-6);
        let of_others = log_shares(&Data { items: 9, ..data() }).unwrap().to_vec1::<f32>().unwrap();
        assert!((of_others[8] - shares[4]).abs() < 1e-6, "an item without an event counts as if it had one");
    }
}
