//! S3-Rec: four self-supervised tasks, then next-item prediction.
//!
//! Zhou et al., S^3-Rec: Self-Supervised Learning for Sequential Recommendation with Mutual Information Maximization, CIKM 2020 (arXiv
//! 2008.07873), with the tasks, masks and weights of the authors' code. A transformer without a causal mask reads a prefix with masked
//! items. AAP predicts the attributes of the items that are not masked, and MAP those of the masked ones; MIP distinguishes a masked item
//! from a negative, and SP a segment of the prefix from a segment at another position. Fine-tuning is SASRec, starting from those weights.
//! Attributes are the items' vectors by modality, with each item as its own attribute, as in UniSRec's version, or lists of categories.
//! Where sources differ, a key of [`Config`] selects the reading.
//!
//! The scores of all attributes are never held at once: their binary cross-entropy is summed by blocks.

use candle_core::{D, Tensor, Var};
use mp4sr_ops::plain::{sigmoid, softplus};
use mp4sr_ops::{
    Error, PackedOffsets, Result, RngKey, Rows, SparseMatrix, cross_entropy, gather, linear, row_softplus,
    sparse_product,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::data::distinct;
use crate::features::{RowMean, categories, check_modalities, mean_rows};
use crate::interface::{FINETUNE, PRETRAIN};
use crate::maps::{Linear, id_table};
use crate::negatives::{draw_outside, expect_negatives};
use crate::recipe::{DECAY_GRID, ModelSettings, Reads, Recipe, Section, Supports};
use crate::transformer::Pass;
use crate::{
    Batch, BatchUnit, Data, Initial, Model, Parameters, Phase, Query, Refused, Samples, Scorer, Step, Stop,
    TrainingSequences, Transformer, TransformerConfig, trace,
};

/// How S3-Rec is named, configured and built. Pre-training has no validation metric, so it runs for a fixed number of epochs.
pub static RECIPE: Recipe = Recipe {
    name: "s3rec",
    title: "S3-Rec",
    summary: "SASRec after four self-supervised tasks on masked items, segments and attributes.",
    paper: "Zhou et al., S^3-Rec: Self-Supervised Learning for Sequential Recommendation, 2020 (arXiv 2008.07873)",
    reads: Reads { features: true, transformer: true, categories: &[("attributes", "categories")] },
    supports: Supports::NOTHING,
    section: Section::of::<Config>(),
    phase_reads: |_, phase, _| phase == PRETRAIN,
    defaults: "pretrain.epochs = 100\npretrain.batch = 256",
    presets: &[],
    grid: DECAY_GRID,
    renamed: &[],
    item_tables: |_| None,
    check,
    phases: |settings| Ok(phases(&settings.own()?)),
    build: |settings, data, key| Ok(Box::new(S3Rec::new(settings.own()?, settings.transformer()?, &data, key)?)),
};

/// What the attributes of an item are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Attributes {
    /// For each modality, the item's own vector, against those of all items (UniSRec's version).
    #[default]
    Features,
    /// The item's categories (authors' code).
    Categories,
}

/// Where the logistic function is applied in the losses of pairs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Pair {
    /// On both scores and on their difference (published code).
    #[default]
    Twice,
    /// On the difference alone.
    Once,
}

/// How the losses of a batch are reduced to one number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reduction {
    /// Their sum divided by the number of samples.
    #[default]
    Mean,
    /// Their sum (published code).
    Sum,
}

/// What a sample of pre-training holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Sample {
    /// A history and the item after it (authors' code).
    #[default]
    HistoryAndTarget,
    /// A history alone (RecBole, UniSRec).
    History,
}

/// The samples of pre-training.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Sampling {
    /// Every prefix of every training sequence.
    #[default]
    Prefixes,
    /// Every user's whole training sequence, at a fraction of the cost.
    Sequences,
}

/// `[model.s3rec]`: hyper-parameters of S3-Rec.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// What the attributes of an item are.
    pub attributes: Attributes,
    /// The probability that an item of a sample is masked.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub mask: f64,
    /// Whether the last item of a sample is always masked.
    pub mask_last: bool,
    /// The weight of AAP, which predicts the attributes of items that are not masked.
    #[schemars(range(min = 0.0, max = 1000.0))]
    pub aap_weight: f64,
    /// The weight of MIP, which predicts the masked items.
    #[schemars(range(min = 0.0, max = 1000.0))]
    pub mip_weight: f64,
    /// The weight of MAP, which predicts the attributes of masked items.
    #[schemars(range(min = 0.0, max = 1000.0))]
    pub map_weight: f64,
    /// The weight of SP, which predicts segments.
    #[schemars(range(min = 0.0, max = 1000.0))]
    pub sp_weight: f64,
    /// Where the logistic function is applied in MIP and SP.
    pub pair: Pair,
    /// How the losses of a batch are reduced to one number.
    pub reduction: Reduction,
    /// What a sample of pre-training holds.
    pub sample: Sample,
    /// The samples of pre-training.
    pub samples: Sampling,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            attributes: Attributes::default(),
            mask: 0.2,
            mask_last: true,
            aap_weight: 0.2,
            mip_weight: 1.0,
            map_weight: 1.0,
            sp_weight: 0.5,
            pair: Pair::default(),
            reduction: Reduction::default(),
            sample: Sample::default(),
            samples: Sampling::default(),
        }
    }
}

fn check(settings: &ModelSettings<'_>) -> std::result::Result<(), Refused> {
    let config: Config = settings.own().map_err(|e| Refused::new("model.s3rec", &"...", e.to_string()))?;
    if settings.pretrains && config.attributes == Attributes::Features && settings.modalities.is_empty() {
        return Err(Refused::new("model.modalities", &"[]", "at least one modality: its features are the attributes"));
    }
    Ok(())
}

fn phases(config: &Config) -> Vec<Phase> {
    let samples = match config.samples {
        Sampling::Prefixes => Samples::Prefixes,
        Sampling::Sequences => Samples::Sequences { at_least: 2, batch: BatchUnit::Sequences },
    };
    vec![Phase { name: PRETRAIN, samples, stop: Stop::Epochs }, Phase::of_prefixes(FINETUNE)]
}

/// One kind of attributes of items.
#[derive(Debug)]
struct Field {
    name: String,
    source: Source,
}

#[derive(Debug)]
enum Source {
    Features {
        /// The means of the rows of the items that have any, `[F, d_m]`.
        means: Tensor,
        adapter: Linear,
        /// The row of each item in `means`; `None` for an item without rows.
        index_of: Vec<Option<u32>>,
    },
    Categories {
        /// `[C, d_0]`.
        table: Var,
        labels: SparseMatrix,
    },
}

/// The random draws for the samples of a step.
#[derive(Clone, Debug)]
pub struct Draws {
    /// `[tokens]`: whether the item is masked.
    pub masked: Vec<bool>,
    /// `[tokens]`: for every masked item, an item that the sample does not have; 0 elsewhere.
    pub negatives: Vec<u32>,
    /// For every sample, the range of its segment, which is empty if it has none, and as many items from elsewhere.
    pub segments: Vec<(std::ops::Range<usize>, Vec<u32>)>,
}

/// The model with its parameters and the items' attributes.
#[derive(Debug)]
pub struct S3Rec {
    config: Config,
    max_sequence_length: usize,
    phases: Vec<Phase>,
    training: std::sync::Arc<TrainingSequences>,
    count: usize,
    parameters: Parameters,
    /// `[I + 1, d_0]`: row i is item i, row 0 is not used.
    items: Var,
    /// `[d_0]`: the embedding of the mask token.
    mask: Var,
    transformer: Transformer,
    fields: Vec<Field>,
    aap: Linear,
    mip: Linear,
    map: Linear,
    sp: Linear,
}

impl S3Rec {
    /// Creates a model whose initial parameters are determined by `key`.
    pub fn new(config: Config, transformer: TransformerConfig, data: &Data, key: RngKey) -> Result<Self> {
        let key = key.fold_in("initial");
        let mut parameters = Parameters::new(&data.device);
        let p = &mut parameters;
        let d = transformer.width;
        let items = id_table(p, data.items, d, key)?;
        let mask = p.add("mask_embedding", &[d], Initial::Normal, key)?;
        let max_sequence_length = transformer.max_sequence_length;
        let transformer = Transformer::new(p, transformer, key)?;
        let mut fields = Vec::new();
        if config.attributes == Attributes::Categories {
            let lists = categories(data, "model.s3rec.attributes")?;
            let table = p.add("category_embedding", &[lists.count, d], Initial::Normal, key)?;
            let source = Source::Categories { table, labels: lists.labels()? };
            fields.push(Field { name: "categories".to_owned(), source });
        } else {
            check_modalities(&data.modalities, data.items)?;
            for modality in &data.modalities {
                let (name, features) = (modality.name.clone(), &modality.features);
                let adapter = Linear::new(p, &format!("adapter.{name}.first"), features.width(), d, key)?;
                let rows: Vec<u32> = (0..data.items as u32).filter(|&row| features.rows_of(row as usize) > 0).collect();
                let mut index_of = vec![None; data.items];
                rows.iter().zip(0..).for_each(|(&row, at)| index_of[row as usize] = Some(at));
                let means = mean_rows(&features.select(&rows), RowMean::Mean, items.device())?;
                fields.push(Field { name, source: Source::Features { means, adapter, index_of } });
            }
        }
        let mut head = |name: &str| Linear::new(p, name, d, d, key);
        let (aap, mip, map, sp) = (head("aap")?, head("mip")?, head("map")?, head("sp")?);
        let (phases, training, count) = (phases(&config), data.training.clone(), data.items);
        Ok(Self {
            config,
            max_sequence_length,
            phases,
            training,
            count,
            parameters,
            items,
            mask,
            transformer,
            fields,
            aap,
            mip,
            map,
            sp,
        })
    }

    /// The samples of pre-training: the histories, with their targets if the samples include these.
    fn samples(&self, batch: &Batch) -> Result<Batch> {
        if batch.targets.is_empty() || self.config.sample == Sample::History {
            return Ok(Batch { targets: Vec::new(), ..batch.clone() });
        }
        let (mut items, mut lengths) = (Vec::with_capacity(batch.items.len() + batch.count()), Vec::new());
        for (j, &target) in batch.targets.iter().enumerate() {
            let history = &batch.items[batch.offsets.range(j)];
            let recent = &history[(history.len() + 1).saturating_sub(self.max_sequence_length)..];
            items.extend_from_slice(recent);
            items.push(target);
            lengths.push(recent.len() + 1);
        }
        let offsets = PackedOffsets::from_lengths(lengths)?;
        Ok(Batch { users: batch.users.clone(), offsets, items, targets: Vec::new() })
    }

    /// Draws the masks, negatives and segments of samples, determined by the key. Refuses a sample with all items, because no negative is
    /// left.
    pub fn draws(&self, samples: &Batch, key: RngKey) -> Result<Draws> {
        let (masks, negatives, segments) = (key.fold_in("masks"), key.fold_in("negatives"), key.fold_in("segments"));
        let mut draws = Draws { masked: Vec::new(), negatives: Vec::new(), segments: Vec::new() };
        for j in 0..samples.count() {
            let range = samples.offsets.range(j);
            let (own, length) = (distinct(&samples.items[range.clone()]), range.len());
            expect_negatives(&own, self.count, samples.users[j] as usize)?;
            for token in range.clone() {
                let last = self.config.mask_last && token + 1 == range.end;
                let masked = last || masks.uniform(token as u64) < self.config.mask;
                draws.masked.push(masked);
                let negative = || draw_outside(&own, self.count, negatives.fold_in_index(token as u64));
                draws.negatives.push(if masked { negative() } else { 0 });
            }
            let key = segments.fold_in_index(j as u64);
            let below = |index: u64, bound: usize| (key.uniform(index) * bound as f64) as usize;
            let size = if length < 2 { 0 } else { 1 + below(0, length / 2) };
            let all = &self.training.items;
            if size == 0 || all.len() < size {
                draws.segments.push((0..0, Vec::new()));
                continue;
            }
            let (start, from) = (below(1, length - size + 1), below(2, all.len() - size + 1));
            draws.segments.push((start..start + size, all[from..from + size].to_vec()));
        }
        Ok(draws)
    }

    /// The loss of pre-training on samples. Without `key` nothing is dropped.
    pub fn pretrain_loss(&self, samples: &Batch, draws: &Draws, key: Option<RngKey>) -> Result<Tensor> {
        let table = Tensor::cat(&[self.items.as_tensor(), &self.mask.unsqueeze(0)?], 0)?;
        let mask = self.count as u32 + 1;
        let rows: Vec<u32> =
            samples.items.iter().zip(&draws.masked).map(|(&item, &masked)| if masked { mask } else { item }).collect();
        let pass = Pass { bidirectional: true, all_tokens: true, ..Pass::default() };
        let hidden = self.transformer.run(Rows::new(&table, &rows), None, &samples.offsets, pass, key)?;
        trace::record(|| "h".to_owned(), &hidden);
        let tokens = |masked: bool| -> Vec<u32> {
            (0..rows.len() as u32).filter(|&token| draws.masked[token as usize] == masked).collect()
        };
        let (open, masked) = (tokens(false), tokens(true));
        let items_of = |tokens: &[u32]| -> Vec<u32> { tokens.iter().map(|&at| samples.items[at as usize]).collect() };
        let mut losses = Vec::new();
        let share = match self.config.reduction {
            Reduction::Mean => 1.0 / samples.count() as f64,
            Reduction::Sum => 1.0,
        };
        let mut add = |name: &str, sum: Tensor, weight: f64| -> Result<()> {
            let loss = (sum * share)?;
            trace::record(|| name.to_owned(), &loss);
            losses.push((loss * weight)?);
            Ok(())
        };
        let Config { aap_weight, mip_weight, map_weight, sp_weight, .. } = self.config;
        for (name, head, tokens, weight) in
            [("aap", &self.aap, &open, aap_weight), ("map", &self.map, &masked, map_weight)]
        {
            if weight > 0.0 && !tokens.is_empty() && !self.fields.is_empty() {
                let asked = linear(&gather(&hidden, tokens)?, &head.weight, &head.bias)?;
                let items = items_of(tokens);
                let sums = self.fields.iter().map(|field| field.loss(name, &asked, &items));
                add(name, Tensor::stack(&sums.collect::<Result<Vec<_>>>()?, 0)?.sum_all()?, weight)?;
            }
        }
        if mip_weight > 0.0 && !masked.is_empty() {
            let asked = linear(&gather(&hidden, &masked)?, &self.mip.weight, &self.mip.bias)?;
            let negatives: Vec<u32> = masked.iter().map(|&at| draws.negatives[at as usize]).collect();
            let (own, other) = (gather(&self.items, &items_of(&masked))?, gather(&self.items, &negatives)?);
            add("mip", self.pairs(&asked, &own, &other)?, mip_weight)?;
        }
        if sp_weight > 0.0 && draws.segments.iter().any(|(range, _)| !range.is_empty()) {
            add("sp", self.segments(samples, draws, &table, key)?, sp_weight)?;
        }
        if losses.is_empty() {
            return Err(Error::Msg("pre-training of S3-Rec has no loss; raise one of its weights".to_owned()));
        }
        Tensor::stack(&losses, 0)?.sum_all()
    }

    /// The loss SP of the samples that have a segment: contexts, their segments and those from elsewhere go through one packed pass.
    fn segments(&self, samples: &Batch, draws: &Draws, table: &Tensor, key: Option<RngKey>) -> Result<Tensor> {
        let mask = self.count as u32 + 1;
        let with: Vec<usize> = (0..samples.count()).filter(|&j| !draws.segments[j].0.is_empty()).collect();
        let (mut rows, mut lengths) = (Vec::new(), Vec::new());
        for part in 0..3 {
            for &j in &with {
                let (own, (range, others)) = (&samples.items[samples.offsets.range(j)], &draws.segments[j]);
                lengths.push(own.len());
                rows.extend(own.iter().enumerate().map(|(at, &item)| match (part, range.contains(&at)) {
                    (0, false) | (1, true) => item,
                    (2, true) => others[at - range.start],
                    _ => mask,
                }));
            }
        }
        let (offsets, key) = (PackedOffsets::from_lengths(lengths)?, key.map(|key| key.fold_in("segments")));
        let pass = Pass { bidirectional: true, ..Pass::default() };
        let last = self.transformer.run(Rows::new(table, &rows), None, &offsets, pass, key)?;
        let part = |at: usize| last.narrow(0, at * with.len(), with.len())?.contiguous();
        let (context, positive, negative) = (part(0)?, part(1)?, part(2)?);
        trace::record(|| "segment.context".to_owned(), &context);
        trace::record(|| "segment.positive".to_owned(), &positive);
        trace::record(|| "segment.negative".to_owned(), &negative);
        self.pairs(&linear(&context, &self.sp.weight, &self.sp.bias)?, &positive, &negative)
    }

    /// The sum over rows of -log sigmoid of how much higher `own` scores than `other`.
    fn pairs(&self, asked: &Tensor, own: &Tensor, other: &Tensor) -> Result<Tensor> {
        let score = |vectors: &Tensor| {
            let scores = (asked * vectors)?.sum(D::Minus1)?;
            match self.config.pair {
                Pair::Twice => sigmoid(&scores),
                Pair::Once => Ok(scores),
            }
        };
        softplus(&(score(other)? - score(own)?)?)?.sum_all()
    }

    /// The vector after the last item of each history, `[B, d_0]`.
    fn sequences(&self, batch: &Batch, key: Option<RngKey>) -> Result<Tensor> {
        let h = self.transformer.forward(Rows::new(&self.items, &batch.items), None, &batch.offsets, key)?;
        trace::record(|| "h".to_owned(), &h);
        Ok(h)
    }

    /// E of all items, `[I, d_0]`.
    fn candidates(&self) -> Result<Tensor> {
        self.items.narrow(0, 1, self.count)?.contiguous()
    }

    /// Cross-entropy of the next item; without `key` nothing is dropped.
    pub fn finetune_loss(&self, batch: &Batch, key: Option<RngKey>) -> Result<Tensor> {
        let targets: Vec<u32> = batch.targets.iter().map(|target| target - 1).collect();
        cross_entropy(&self.sequences(batch, key)?, &self.candidates()?, &targets, 1.0)?.mean_all()
    }
}

impl Field {
    /// The sum over rows and attributes of the binary cross-entropy of `asked` `[rows, d_0]`, whose items are `items`.
    fn loss(&self, task: &str, asked: &Tensor, items: &[u32]) -> Result<Tensor> {
        let (attributes, hits) = match &self.source {
            Source::Features { means, adapter, index_of } => {
                let attributes = linear(means, &adapter.weight, &adapter.bias)?.relu()?;
                let own = items.iter().zip(0u32..).filter_map(|(&item, row)| Some((row, index_of[item as usize - 1]?)));
                let (rows, indices): (Vec<u32>, Vec<u32>) = own.unzip();
                let hits = if rows.is_empty() {
                    None
                } else {
                    Some((gather(asked, &rows)? * gather(&attributes, &indices)?)?.sum_all()?)
                };
                (attributes, hits)
            }
            Source::Categories { table, labels } => {
                let rows: Vec<u32> = items.iter().map(|item| item - 1).collect();
                let sums = gather(&sparse_product(labels, table)?, &rows)?;
                (table.as_tensor().clone(), Some((asked * sums)?.sum_all()?))
            }
        };
        trace::record(|| format!("attribute.{}", self.name), &attributes);
        let mut loss = row_softplus(asked, &attributes)?.sum_all()?;
        if let Some(hits) = hits {
            loss = (loss - hits)?;
        }
        trace::record(|| format!("{task}.{}", self.name), &loss);
        Ok(loss)
    }
}

impl Model for S3Rec {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn phases(&self) -> &[Phase] {
        &self.phases
    }

    fn uses(&self, phase: &Phase, name: &str) -> bool {
        let shared = ["id_embedding", "position"].contains(&name);
        phase.name == PRETRAIN || shared || name.starts_with("input_norm.") || name.starts_with("layer.")
    }

    fn max_sequence_length(&self) -> usize {
        self.max_sequence_length
    }

    fn loss(&self, phase: &Phase, batch: &Batch, step: &Step) -> Result<Tensor> {
        if phase.name != PRETRAIN {
            return self.finetune_loss(batch, Some(step.key));
        }
        let samples = self.samples(batch)?;
        let draws = self.draws(&samples, step.key.fold_in("draws"))?;
        self.pretrain_loss(&samples, &draws, Some(step.key))
    }

    fn scorer(&self, _: &Phase) -> Result<Box<dyn Scorer + '_>> {
        Ok(Box::new(S3RecScorer { model: self, items: self.candidates()?.detach() }))
    }
}

struct S3RecScorer<'a> {
    model: &'a S3Rec,
    items: Tensor,
}

impl Scorer for S3RecScorer<'_> {
    fn items(&self) -> &Tensor {
        &self.items
    }

    fn queries(&self, queries: &[Query<'_>]) -> Result<Tensor> {
        let batch = Batch::of_queries(queries, self.model.max_sequence_length)?;
        Ok(self.model.sequences(&batch, None)?.detach())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SasRec;

    fn data() -> Data {
        let users: [&[u32]; 3] = [&[1, 2, 3, 4, 5, 6, 7, 8], &[9, 10], &[3]];
        let training = TrainingSequences::new(users).into();
        Data { items: 20, training, modalities: Vec::new(), categories: None, device: crate::Device::Cpu, group: None }
    }

    fn model(config: Config) -> S3Rec {
        let transformer =
            TransformerConfig { width: 8, layers: 1, max_sequence_length: 6, ..TransformerConfig::default() };
        S3Rec::new(config, transformer, &data(), RngKey::new(3)).unwrap()
    }

    fn near(count: u32, draws: f64, share: f64) -> bool {
        (f64::from(count) - share * draws).abs() < 5.0 * (draws * share * (1.0 - share)).sqrt() + 1e-9
    }

    #[test]
    fn masks_negatives_and_segments_have_the_expected_distributions() {
        let model = model(Config::default());
        let samples = Batch::of_histories([(&[4, 9, 4, 1, 7][..], 2)], 6).unwrap();
        let samples = model.samples(&samples).unwrap();
        assert_eq!(samples.items, [4, 9, 4, 1, 7, 2]);
        let rounds = 30_000u64;
        let (mut masked, mut negatives, mut sizes) = ([0u32; 6], [0u32; 21], [0u32; 4]);
        let (mut starts, mut from) = ([[0u32; 6]; 4], [[0u32; 11]; 4]);
        for round in 0..rounds {
            let draws = model.draws(&samples, RngKey::new(7).fold_in_index(round)).unwrap();
            for (position, &hidden) in draws.masked.iter().enumerate() {
                masked[position] += u32::from(hidden);
                assert_eq!(hidden, draws.negatives[position] > 0);
            }
            negatives[draws.negatives[5] as usize] += 1;
            let (range, others) = &draws.segments[0];
            assert_eq!(range.len(), others.len());
            sizes[range.len()] += 1;
            starts[range.len()][range.start] += 1;
            let all = &model.training.items;
            let at = (0..all.len()).find(|&at| all[at..].starts_with(others)).unwrap();
            from[range.len()][at] += 1;
        }
        let rounds = rounds as f64;
        assert!(masked[..5].iter().all(|&count| near(count, rounds, 0.2)), "{masked:?}");
        assert!(near(masked[5], rounds, 1.0));
        for (item, &count) in negatives.iter().enumerate() {
            let drawn = item > 0 && ![4, 9, 1, 7, 2].contains(&item);
            assert!(near(count, rounds, if drawn { 1.0 / 15.0 } else { 0.0 }), "{item}: {count}");
        }
        assert!(sizes[0] == 0 && sizes[1..].iter().all(|&count| near(count, rounds, 1.0 / 3.0)), "{sizes:?}");
        for size in 1..4 {
            let held = f64::from(sizes[size]);
            assert!((0..=6 - size).all(|start| near(starts[size][start], held, 1.0 / (7 - size) as f64)));
            // The sequences of all users have 11 events in a row. Item 3 alone, as a segment, occurs twice among them.
            let starts_of = 12 - size;
            for at in 0..starts_of {
                let twice = if size == 1 && at == 2 {
                    2.0
                } else if size == 1 && at == 10 {
                    0.0
                } else {
                    1.0
                };
                assert!(near(from[size][at], held, twice / starts_of as f64), "{size} {at}: {:?}", from[size]);
            }
        }
    }

    #[test]
    fn without_pre_training_the_model_is_sasrec() {
        let own = model(Config::default());
        let transformer =
            TransformerConfig { width: 8, layers: 1, max_sequence_length: 6, ..TransformerConfig::default() };
        let sasrec = SasRec::new(transformer, 20, &crate::Device::Cpu, RngKey::new(5)).unwrap();
        for (name, values, shape) in sasrec.parameters().values().unwrap() {
            if name == "item_embedding" {
                let values = [vec![0.0; 8], values].concat();
                own.parameters.set("id_embedding", &values, &[21, 8]).unwrap();
            } else {
                own.parameters.set(&name, &values, &shape).unwrap();
            }
        }
        let batch = Batch::of_histories([(&[1, 2, 3, 4][..], 5), (&[7][..], 8), (&[9, 3][..], 1)], 6).unwrap();
        let key = RngKey::new(8);
        let step = Step { epoch: 1, index: 0, global: 0, epoch_key: key, key };
        let loss = |model: &dyn Model| {
            let phase = model.phases().last().unwrap();
            model.loss(phase, &batch, &step).unwrap().to_scalar::<f32>().unwrap()
        };
        assert_eq!(loss(&own).to_bits(), loss(&sasrec).to_bits());
    }

    #[test]
    fn samples_hold_the_last_items_with_or_without_the_target() {
        let batch = Batch::of_histories([(&[1, 2, 3, 4, 5, 6, 7][..], 8), (&[9][..], 3)], 6).unwrap();
        let whole = model(Config::default()).samples(&batch).unwrap();
        assert_eq!(whole.items, [3, 4, 5, 6, 7, 8, 9, 3]);
        let histories = model(Config { sample: Sample::History, ..Config::default() }).samples(&batch).unwrap();
        assert_eq!(histories.items, [2, 3, 4, 5, 6, 7, 9]);
        let draws = model(Config::default()).draws(&histories, RngKey::new(1)).unwrap();
        assert!(draws.segments[1].0.is_empty(), "a sample of one item has no segment");
        let all: Vec<u32> = (1..=20).collect();
        let samples = Batch::of_histories([(&all[..], 1)], 20).unwrap();
        let refused = model(Config::default()).draws(&samples, RngKey::new(1)).unwrap_err().to_string();
        assert!(refused.contains("all 20 items, so that none is left as a negative"), "{refused}");
    }
}
