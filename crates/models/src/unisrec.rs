//! UniSRec: items are represented by a whitened mixture of experts over their features, and pre-training contrasts sequences.
//!
//! Hou et al., Towards Universal Sequence Representation Learning for Recommender Systems, KDD 2022 (arXiv 2206.05941), as in the authors'
//! code: z = sum of g_k (Dropout(x) - c_k) W_k with g = softmax of x G plus noise; a causal transformer over z. Pre-training contrasts a
//! sequence with its next item, and with an augmented copy of itself, against those of the other samples of the batch. Transductive
//! fine-tuning adds id embeddings and trains everything except positions and layers. x is the mean of all rows of an item in all
//! modalities. Where sources differ, a key of [`Config`] selects the reading.
//!
//! One operator over the constant features computes the products with the experts' maps: per use of an item if every use draws its own
//! dropout, per distinct item otherwise.

use candle_core::{D, Tensor, Var};
use mp4sr_ops::plain::{softmax, softplus};
use mp4sr_ops::{
    Dropout, FalseNegatives, Mask, PackedOffsets, Result, RngKey, Rows, cross_entropy, expert_products, gather,
    normalize, row_logsumexp, segment_mix, sequence_input,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::augment::sequence_dropout;
use crate::features::{DistinctItems, check_modalities, joint_means};
use crate::interface::{FINETUNE, PRETRAIN};
use crate::maps::{Norm, id_table};
use crate::recipe::{DECAY_GRID, Reads, Recipe, Section, Supports};
use crate::transformer::{LayerStack, Pass};
use crate::{
    Batch, Data, Initial, Modality, Model, Parameters, Phase, Query, Samples, Scorer, Step, Stop, TransformerConfig,
    trace,
};

/// How UniSRec is named, configured and built.
pub static RECIPE: Recipe = Recipe {
    name: "unisrec",
    title: "UniSRec",
    summary: "A transformer over a mixture of experts of the items' features, pre-trained by contrasts of sequences.",
    paper: "Hou et al., Towards Universal Sequence Representation Learning for Recommender Systems, 2022 (arXiv 2206.05941)",
    reads: Reads { features: true, transformer: true, categories: &[] },
    supports: Supports::NOTHING,
    section: Section::of::<Config>(),
    phase_reads: |_, phase, key| match phase {
        PRETRAIN => !FINETUNE_KEYS.contains(&key),
        _ => !PRETRAIN_KEYS.contains(&key),
    },
    defaults: "",
    presets: &[],
    grid: DECAY_GRID,
    renamed: &[],
    item_tables: |_| Some(&["id_embedding"]),
    check: |_| Ok(()),
    phases: |settings| Ok(phases(&settings.own()?)),
    build: |settings, data, key| {
        let config =
            Config { fix_encoder: settings.own::<Config>()?.fix_encoder && settings.pretrains, ..settings.own()? };
        Ok(Box::new(UniSRec::new(config, settings.transformer()?, &data, key)?))
    },
};

/// Keys that pre-training does not read.
const FINETUNE_KEYS: [&str; 2] = ["fix_encoder", "id_embedding"];

/// Keys that fine-tuning does not read.
const PRETRAIN_KEYS: [&str; 8] = [
    "lambda",
    "false_negatives",
    "item_drop_share",
    "item_drop",
    "row_replacement",
    "row_drop",
    "augment_rows",
    "select",
];

/// How often the dropout masks of the experts' input are drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DropoutDraw {
    /// Once for every use of an item, as a position, a target or a candidate (published code).
    #[default]
    Use,
    /// Once for every distinct item of a step, at a fraction of the cost.
    Item,
}

/// Which epoch of pre-training is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Select {
    /// The epoch with the best validation metric.
    #[default]
    Validation,
    /// The last epoch (published code).
    Last,
}

/// `[model.unisrec]`: hyper-parameters of UniSRec.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// O, the number of experts.
    #[schemars(range(min = 1, max = 256))]
    pub experts: usize,
    /// The dropout probability on the experts' input.
    #[schemars(range(min = 0.0, max = 0.95))]
    pub adaptor_dropout: f64,
    /// How often the dropout masks of the experts' input are drawn.
    pub dropout_draw: DropoutDraw,
    /// Whether the gate has noise in training.
    pub noise: bool,
    /// tau, the temperature of all similarities.
    #[schemars(range(min = 0.0001, max = 100.0))]
    pub temperature: f64,
    /// lambda, the weight of the contrast with the augmented sequences.
    #[schemars(range(min = 0.0, max = 1000.0))]
    pub lambda: f64,
    /// How samples of the batch that share the sample's target are treated in pre-training.
    pub false_negatives: FalseNegatives,
    /// The probability that a batch is augmented by dropping items; otherwise, it is augmented by replacing items' vectors.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub item_drop_share: f64,
    /// The probability that an item is dropped from an augmented sequence.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub item_drop: f64,
    /// The probability that an item of an augmented sequence is represented by its second vector, the mean of some of its rows.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub row_replacement: f64,
    /// The probability that a row is left out of an item's second vector.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub row_drop: f64,
    /// Whether items have a second vector; if not, all batches are augmented by dropping items.
    pub augment_rows: bool,
    /// Which epoch of pre-training is kept.
    pub select: Select,
    /// Whether fine-tuning keeps the positions and layers of pre-training fixed. Without pre-training nothing is fixed.
    pub fix_encoder: bool,
    /// Whether items have id embeddings in fine-tuning; without them, the model is the inductive variant.
    pub id_embedding: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            experts: 8,
            adaptor_dropout: 0.2,
            dropout_draw: DropoutDraw::default(),
            noise: true,
            temperature: 0.07,
            lambda: 0.001,
            false_negatives: FalseNegatives::default(),
            item_drop_share: 0.9,
            item_drop: 0.2,
            row_replacement: 0.2,
            row_drop: 0.15,
            augment_rows: true,
            select: Select::default(),
            fix_encoder: true,
            id_embedding: true,
        }
    }
}

fn phases(config: &Config) -> Vec<Phase> {
    let stop = match config.select {
        Select::Validation => Stop::Validation { warm_up: 0 },
        Select::Last => Stop::Epochs,
    };
    vec![Phase { name: PRETRAIN, samples: Samples::Prefixes, stop }, Phase::of_prefixes(FINETUNE)]
}

/// The augmented sequences of a batch.
#[derive(Clone, Debug)]
pub struct Augmented {
    /// The sequences.
    pub batch: Batch,
    /// `[tokens]`: whether the item has its second vector.
    pub replaced: Vec<bool>,
}

/// The model with its parameters and the items' features.
#[derive(Debug)]
pub struct UniSRec {
    config: Config,
    phases: Vec<Phase>,
    count: usize,
    modalities: Vec<Modality>,
    /// x of all items, then their second vectors, `[2 I, d]`; without second vectors `[I, d]`.
    features: Tensor,
    parameters: Parameters,
    /// `[d, O]`.
    gate: Var,
    /// `[d, O]`.
    noise: Option<Var>,
    /// c_k `[d]` and W_k `[d, d_0]`.
    experts: Vec<(Var, Var)>,
    transformer: TransformerConfig,
    /// `[n, d_0]`.
    position: Var,
    input_norm: Norm,
    layers: LayerStack,
    /// `[I + 1, d_0]`: row i is item i, row 0 is not used.
    ids: Option<Var>,
}

impl UniSRec {
    /// Creates a model whose initial parameters are determined by `key`.
    pub fn new(config: Config, transformer: TransformerConfig, data: &Data, key: RngKey) -> Result<Self> {
        let (rows, key) = (key.fold_in("rows"), key.fold_in("initial"));
        let mut parameters = Parameters::new(&data.device);
        let p = &mut parameters;
        check_modalities(&data.modalities, data.items)?;
        let d = data.modalities.first().map_or(1, |modality| modality.features.width());
        let gate = p.add("adaptor.gate.weight", &[d, config.experts], Initial::Zeros, key)?;
        let noise = config
            .noise
            .then(|| p.add("adaptor.noise.weight", &[d, config.experts], Initial::Zeros, key))
            .transpose()?;
        let mut experts = Vec::new();
        for k in 0..config.experts {
            // With a bias of zero, an item without rows would have a vector of zeros, whose normalisation has an exploding gradient.
            let bias = p.add(&format!("adaptor.expert.{k}.bias"), &[d], Initial::Uniform(d), key)?;
            let shape = [d, transformer.width];
            experts.push((bias, p.add(&format!("adaptor.expert.{k}.weight"), &shape, Initial::Normal, key)?));
        }
        let width = transformer.width;
        // Fine-tuning trains the LayerNorm but not the positions, so they are separate parameters.
        let position = p.add("position", &[transformer.max_sequence_length, width], Initial::Normal, key)?;
        let input_norm = Norm::new(p, "input_norm", width, key)?;
        let layers = LayerStack::new(p, "", transformer, key)?;
        let ids = config.id_embedding.then(|| id_table(p, data.items, width, key)).transpose()?;
        let mut model = Self {
            phases: phases(&config),
            count: data.items,
            modalities: data.modalities.clone(),
            features: joint_means(&data.modalities, |_, _| true, gate.device())?,
            parameters,
            gate,
            noise,
            experts,
            transformer,
            position,
            input_norm,
            layers,
            ids,
            config,
        };
        if model.config.augment_rows {
            let drop = model.config.row_drop;
            model.set_second_vectors(|m, row| rows.fold_in_index(m as u64).uniform(row as u64) >= drop)?;
        }
        Ok(model)
    }

    /// Computes the second vector of every item from the rows that `keep` selects, by modality and by the row's index in the modality; an
    /// item of which no row would be kept keeps all.
    pub fn set_second_vectors(&mut self, keep: impl Fn(usize, usize) -> bool) -> Result<()> {
        let first = self.features.narrow(0, 0, self.count)?;
        let second = joint_means(&self.modalities, keep, self.gate.device())?;
        self.features = Tensor::cat(&[&first, &second], 0)?;
        Ok(())
    }

    /// x of all items, followed by their second vectors if items have any, `[2 I, d]`.
    pub fn features(&self) -> &Tensor {
        &self.features
    }

    /// Draws the noise of the gate for `count` uses, `[count, O]`, which is standard normal; `None` if the gate has no noise.
    fn draw_noise(&self, count: usize, key: RngKey) -> Result<Option<Tensor>> {
        if self.noise.is_none() {
            return Ok(None);
        }
        let values: Vec<f32> = (0..(count * self.config.experts) as u64).map(|at| key.normal(at) as f32).collect();
        Tensor::from_vec(values, (count, self.config.experts), self.gate.device()).map(Some)
    }

    /// z of every use, `[uses, d_0]`. Use u is of row `rows[u]` of the features; `noise` is that of the gate, `[uses, O]`, if it has any.
    fn adapt(&self, rows: &[u32], noise: Option<&Tensor>, key: Option<RngKey>) -> Result<Tensor> {
        let experts = self.config.experts;
        let dropout = key.map_or(Dropout::NONE, |key| key.fold_in("experts").dropout(self.config.adaptor_dropout));
        let per_use = dropout.is_active() && self.config.dropout_draw == DropoutDraw::Use;
        let distinct = DistinctItems::of_rows(rows);
        let maps = match (&self.noise, noise) {
            (Some(noise), Some(_)) => Tensor::cat(&[self.gate.as_tensor(), noise.as_tensor()], 1)?,
            _ => self.gate.as_tensor().clone(),
        };
        let gates =
            gather(&expert_products(&self.features, &distinct.rows, &maps, 1, Dropout::NONE)?, &distinct.inverse)?;
        let mut logits = gates.narrow(1, 0, experts)?;
        if let (Some(noise), true) = (noise, gates.dim(1)? > experts) {
            let deviation = (softplus(&gates.narrow(1, experts, experts)?.contiguous()?)? + 0.01)?;
            logits = (logits + (noise * deviation)?)?;
        }
        let gate = softmax(&logits.contiguous()?)?;
        let weights: Vec<&Tensor> = self.experts.iter().map(|(_, weight)| weight.as_tensor()).collect();
        let (weights, width) = (Tensor::cat(&weights, 0)?, weights[0].dim(1)?);
        let products = if per_use {
            expert_products(&self.features, rows, &weights, experts, dropout)?
        } else {
            gather(&expert_products(&self.features, &distinct.rows, &weights, experts, dropout)?, &distinct.inverse)?
        };
        let offsets = PackedOffsets::from_lengths(vec![1; rows.len()])?;
        let mixed = segment_mix(&gate, &products.reshape((rows.len() * experts, width))?, &offsets)?;
        let shifts = self.experts.iter().map(|(bias, weight)| mp4sr_ops::product(&bias.unsqueeze(0)?, weight));
        mixed - mp4sr_ops::product(&gate, &Tensor::cat(&shifts.collect::<Result<Vec<_>>>()?, 0)?)?
    }

    /// The output at the last token of every sequence. If `fixed`, positions and layers are treated as constants.
    fn encode(
        &self,
        z: Rows<'_>,
        ids: Option<Rows<'_>>,
        offsets: &PackedOffsets,
        fixed: bool,
        key: Option<RngKey>,
    ) -> Result<Tensor> {
        let position = if fixed { self.position.detach() } else { self.position.as_tensor().clone() };
        let table = self.input_norm.with_positions(&position)?;
        let dropout = key.map_or(Dropout::NONE, |key| key.fold_in("input").dropout(self.transformer.dropout));
        let x = sequence_input(z, ids, Rows::new(&table, &offsets.positions()), dropout)?;
        trace::record(|| "input".to_owned(), &x);
        self.layers.run(x, offsets, Pass { fixed, ..Pass::default() }, key)
    }

    /// Augments the sequences of a batch in one way, which is drawn from the key and is the same for all of them.
    pub fn augment(&self, batch: &Batch, key: RngKey) -> Result<Augmented> {
        if !self.config.augment_rows || key.fold_in("kind").uniform(0) < self.config.item_drop_share {
            let batch = sequence_dropout(batch, self.config.item_drop, key.fold_in("items"))?;
            let replaced = vec![false; batch.items.len()];
            return Ok(Augmented { batch, replaced });
        }
        let key = key.fold_in("rows");
        let replaced =
            (0..batch.items.len() as u64).map(|token| key.uniform(token) < self.config.row_replacement).collect();
        Ok(Augmented { batch: batch.clone(), replaced })
    }

    /// The loss of pre-training. `noise` is that of the gate for the batch's tokens, its targets, and the augmented tokens, one after
    /// the other. Without `key` nothing is dropped.
    pub fn pretrain_loss(
        &self,
        batch: &Batch,
        augmented: &Augmented,
        noise: Option<&Tensor>,
        key: Option<RngKey>,
    ) -> Result<Tensor> {
        let (tokens, count) = (batch.items.len(), batch.count());
        let second = |(&item, &replaced): (&u32, &bool)| item - 1 + if replaced { self.count as u32 } else { 0 };
        let plain = batch.items.iter().chain(&batch.targets).map(|item| item - 1);
        let rows: Vec<u32> = plain.chain(augmented.batch.items.iter().zip(&augmented.replaced).map(second)).collect();
        let adapted = self.adapt(&rows, noise, key)?;
        let sequences: Vec<u32> = (0..tokens as u32).chain((tokens + count) as u32..rows.len() as u32).collect();
        let lengths = [&batch.offsets, &augmented.batch.offsets];
        let lengths = lengths.into_iter().flat_map(|offsets| (0..count).map(move |j| offsets.range(j).len()));
        let offsets = PackedOffsets::from_lengths(lengths)?;
        let outputs = self.encode(Rows::new(&adapted, &sequences), None, &offsets, false, key)?;
        let h = outputs.narrow(0, 0, count)?.contiguous()?;
        let other = outputs.narrow(0, count, count)?.contiguous()?;
        let z = adapted.narrow(0, tokens, count)?.contiguous()?;
        trace::record(|| "h".to_owned(), &h);
        trace::record(|| "h_augmented".to_owned(), &other);
        trace::record(|| "z".to_owned(), &z);
        let anchor = normalize(&h)?;
        let items = self.contrast("seq_item", &anchor, &normalize(&z)?, &batch.targets)?;
        let sequences = self.contrast("seq_seq", &anchor, &normalize(&other)?, &batch.targets)?;
        items + (sequences * self.config.lambda)?
    }

    /// The mean over the batch of the cross-entropy with which each anchor selects its own vector among those of the batch.
    fn contrast(&self, name: &str, anchors: &Tensor, vectors: &Tensor, targets: &[u32]) -> Result<Tensor> {
        let tau = self.config.temperature;
        let (groups, false_negatives) = (targets.to_vec().into(), self.config.false_negatives);
        let mask = Mask::FalseNegatives { groups, false_negatives, diagonal: true, first_row: 0 };
        let all = row_logsumexp(anchors, vectors, (1.0 / tau) as f32, &mask)?;
        let rows = (all - ((anchors * vectors)?.sum(D::Minus1)? / tau)?)?;
        let mean = rows.mean_all()?;
        trace::record(|| format!("{name}_rows"), &rows);
        trace::record(|| name.to_owned(), &mean);
        Ok(mean)
    }

    /// v of all items, `[I, d_0]`: z, plus the id embeddings if items have any.
    fn candidates(&self, z: &Tensor, phase: &str) -> Result<Tensor> {
        let candidates = match self.ids.as_ref().filter(|_| phase == FINETUNE) {
            Some(ids) => (z + ids.narrow(0, 1, self.count)?)?,
            None => z.clone(),
        };
        trace::record(|| "candidates".to_owned(), &candidates);
        Ok(candidates)
    }

    /// h of every history: token t has row `rows[t]` of `z`.
    fn sequences(&self, z: &Tensor, rows: &[u32], batch: &Batch, phase: &str, key: Option<RngKey>) -> Result<Tensor> {
        let ids = self.ids.as_ref().filter(|_| phase == FINETUNE);
        let ids = ids.map(|ids| Rows::new(ids, &batch.items));
        let fixed = self.config.fix_encoder && phase == FINETUNE;
        let h = self.encode(Rows::new(z, rows), ids, &batch.offsets, fixed, key)?;
        trace::record(|| "h".to_owned(), &h);
        Ok(h)
    }

    /// Cross-entropy of the next item. `noise` is that of the gate for the batch's tokens, then for all items. Without `key` nothing
    /// is dropped.
    pub fn finetune_loss(&self, batch: &Batch, noise: Option<&Tensor>, key: Option<RngKey>) -> Result<Tensor> {
        let tokens = batch.items.len();
        let rows: Vec<u32> = batch.items.iter().map(|item| item - 1).chain(0..self.count as u32).collect();
        let z = self.adapt(&rows, noise, key)?;
        let each: Vec<u32> = (0..tokens as u32).collect();
        let h = self.sequences(&z, &each, batch, FINETUNE, key)?;
        let candidates = self.candidates(&z.narrow(0, tokens, self.count)?.contiguous()?, FINETUNE)?;
        let targets: Vec<u32> = batch.targets.iter().map(|target| target - 1).collect();
        let scale = (1.0 / self.config.temperature) as f32;
        cross_entropy(&normalize(&h)?, &normalize(&candidates)?, &targets, scale)?.mean_all()
    }
}

impl Model for UniSRec {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn phases(&self) -> &[Phase] {
        &self.phases
    }

    fn uses(&self, phase: &Phase, name: &str) -> bool {
        phase.name != PRETRAIN || name != "id_embedding"
    }

    fn trains(&self, phase: &Phase, name: &str) -> bool {
        let fixed = name == "position" || name.starts_with("layer.");
        self.uses(phase, name) && !(phase.name == FINETUNE && self.config.fix_encoder && fixed)
    }

    fn max_sequence_length(&self) -> usize {
        self.transformer.max_sequence_length
    }

    fn loss(&self, phase: &Phase, batch: &Batch, step: &Step) -> Result<Tensor> {
        let (key, noise_key) = (step.key, step.key.fold_in("noise"));
        if phase.name != PRETRAIN {
            let noise = self.draw_noise(batch.items.len() + self.count, noise_key)?;
            return self.finetune_loss(batch, noise.as_ref(), Some(key));
        }
        let augmented = self.augment(batch, key.fold_in("augmentation"))?;
        let count = batch.items.len() + batch.count() + augmented.batch.items.len();
        self.pretrain_loss(batch, &augmented, self.draw_noise(count, noise_key)?.as_ref(), Some(key))
    }

    fn scorer(&self, phase: &Phase) -> Result<Box<dyn Scorer + '_>> {
        let all: Vec<u32> = (0..self.count as u32).collect();
        let z = self.adapt(&all, None, None)?.detach();
        let items = normalize(&self.candidates(&z, phase.name)?.detach())?;
        Ok(Box::new(UniSRecScorer { model: self, phase: phase.name, z, items }))
    }
}

/// A scorer by cosine.
struct UniSRecScorer<'a> {
    model: &'a UniSRec,
    phase: &'static str,
    /// The adapted vectors of all items.
    z: Tensor,
    items: Tensor,
}

impl Scorer for UniSRecScorer<'_> {
    fn items(&self) -> &Tensor {
        &self.items
    }

    fn queries(&self, queries: &[Query<'_>]) -> Result<Tensor> {
        let batch = Batch::of_queries(queries, self.model.transformer.max_sequence_length)?;
        let rows: Vec<u32> = batch.items.iter().map(|item| item - 1).collect();
        Ok(normalize(&self.model.sequences(&self.z, &rows, &batch, self.phase, None)?)?.detach())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Ragged, TrainingSequences};

    const ITEMS: usize = 400;

    /// Item i has i % 4 rows of text and one row of images.
    fn data() -> Data {
        let key = RngKey::new(2);
        let modality = |name: &str, rows: fn(usize) -> usize| {
            let mut offsets = vec![0];
            (0..ITEMS).for_each(|item| offsets.push(offsets[item] + rows(item)));
            let values = (0..(3 * offsets[ITEMS]) as u64).map(|at| key.fold_in(name).normal(at) as f32).collect();
            Modality { name: name.to_owned(), features: Ragged::new(values, 3, &offsets).unwrap() }
        };
        let modalities = vec![modality("text", |item| item % 4), modality("image", |_| 1)];
        let training = TrainingSequences::new(std::iter::empty()).into();
        Data { items: ITEMS, training, modalities, categories: None, device: crate::Device::Cpu, group: None }
    }

    fn model(config: Config) -> UniSRec {
        let transformer = TransformerConfig { width: 8, layers: 1, ..TransformerConfig::default() };
        UniSRec::new(Config { experts: 2, ..config }, transformer, &data(), RngKey::new(3)).unwrap()
    }

    #[test]
    fn augmentation_drops_items_in_the_expected_share_of_the_batches_and_replaces_vectors_in_the_others() {
        let model = model(Config::default());
        let history: Vec<u32> = (1..=40).collect();
        let batch = Batch::of_histories([(&history[..], 1)], 50).unwrap();
        let (mut dropping, mut dropped, mut replaced) = (0.0, 0.0, 0.0);
        let rounds = 4000;
        for round in 0..rounds {
            let own = model.augment(&batch, RngKey::new(6).fold_in_index(round)).unwrap();
            let replaces = own.replaced.iter().any(|&replaced| replaced);
            assert!(!replaces || own.batch.items == batch.items, "one kind of augmentation per batch");
            if own.batch.items.len() < 40 {
                dropping += 1.0;
                dropped += (40 - own.batch.items.len()) as f64 / 39.0;
            } else {
                replaced += own.replaced.iter().filter(|&&replaced| replaced).count() as f64 / 40.0;
            }
        }
        let share: f64 = dropping / rounds as f64;
        assert!((share - 0.9).abs() < 5.0 * (0.09 / rounds as f64).sqrt(), "{share}");
        assert!((dropped / dropping - 0.2).abs() < 5.0 * (0.16 / (39.0 * dropping)).sqrt());
        let others = rounds as f64 - dropping;
        assert!((replaced / others - 0.2).abs() < 5.0 * (0.16 / (40.0 * others)).sqrt(), "{}", replaced / others);
        let always = Config { augment_rows: false, ..Config::default() };
        let own = self::model(always).augment(&batch, RngKey::new(6)).unwrap();
        assert!(own.replaced.iter().all(|&replaced| !replaced));
    }

    #[test]
    fn a_second_vector_drops_some_rows_and_equals_the_first_if_none_would_be_kept() {
        let changed = |row_drop: f64| {
            let features = model(Config { row_drop, ..Config::default() }).features.to_vec2::<f32>().unwrap();
            (0..ITEMS).filter(|&item| features[item] != features[ITEMS + item]).map(|item| item % 4).collect::<Vec<_>>()
        };
        assert!(changed(0.0).is_empty() && changed(1.0).is_empty());
        // For n rows, the probability that none or all are left out is 0.85^n + 0.15^n.
        let changed = changed(0.15);
        for rows in 1..=4i32 {
            let share = 1.0 - 0.85f64.powi(rows) - 0.15f64.powi(rows);
            let found = changed.iter().filter(|&&text| text as i32 + 1 == rows).count() as f64;
            assert!(
                (found - 100.0 * share).abs() < 5.0 * (100.0 * share * (1.0 - share)).sqrt() + 1e-9,
                "{rows}: {found}"
            );
        }
    }

    #[test]
    fn both_dropout_draws_give_the_same_model_without_dropout() {
        let batch = Batch::of_histories([(&[1, 2, 1, 4][..], 5), (&[7][..], 8), (&[7, 3][..], 1)], 50).unwrap();
        let loss = |dropout_draw, key| {
            let model = model(Config { dropout_draw, ..Config::default() });
            model.finetune_loss(&batch, None, key).unwrap().to_scalar::<f32>().unwrap()
        };
        assert!((loss(DropoutDraw::Use, None) - loss(DropoutDraw::Item, None)).abs() < 1e-6);
        let dropped = |draw| loss(draw, Some(RngKey::new(1))).to_bits();
        assert_ne!(dropped(DropoutDraw::Use), dropped(DropoutDraw::Item));
    }
}
