//! CL4SRec: SASRec with a contrastive loss between two augmented views of each history.
//!
//! Xie et al., Contrastive Learning for Sequential Recommendation, ICDE 2022 (arXiv 2010.14395), as the authors of MP4SR implemented it in
//! RecBole. The two views of a history are created by two different operations chosen from crop, mask and reorder. NT-Xent pulls them
//! together against all other views of the batch. The main loss is SASRec's cross-entropy over all items. Views are created from copies, so
//! the histories do not change.
//!
//! Histories and views go through the transformer as one packed batch of three times as many sequences.

use candle_core::{D, Device, Tensor, Var};
use mp4sr_ops::{FalseNegatives, Mask, PackedOffsets, Result, RngKey, Rows, cross_entropy, normalize, row_logsumexp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::interface::FINETUNE;
use crate::recipe::{DECAY_GRID, Reads, Recipe, Section, Supports};
use crate::{Batch, Initial, Model, Parameters, Phase, Query, Scorer, Step, Transformer, TransformerConfig, trace};

/// How CL4SRec is named, configured and built.
pub static RECIPE: Recipe = Recipe {
    name: "cl4srec",
    title: "CL4SRec",
    summary: "SASRec with a contrastive loss between two augmented views of each history.",
    paper: "Xie et al., Contrastive Learning for Sequential Recommendation, 2022 (arXiv 2010.14395)",
    reads: Reads { features: false, transformer: true, categories: &[] },
    supports: Supports::NOTHING,
    section: Section::of::<Config>(),
    phase_reads: |_, _, _| true,
    defaults: "",
    presets: &[],
    grid: DECAY_GRID,
    renamed: &[],
    item_tables: |_| None,
    check: |_| Ok(()),
    phases: |_| Ok(PHASES.to_vec()),
    build: |settings, data, key| {
        let (config, transformer) = (settings.own()?, settings.transformer()?);
        Ok(Box::new(Cl4sRec::new(config, transformer, data.items, &data.device, key)?))
    },
};

const PHASES: [Phase; 1] = [Phase::of_prefixes(FINETUNE)];

/// How two views are compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Similarity {
    /// By their inner product.
    #[default]
    Dot,
    /// By their cosine.
    Cosine,
}

/// `[model.cl4srec]`: hyper-parameters of CL4SRec.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// eta, the share of a history that a crop keeps.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub crop: f64,
    /// gamma, the share of a history's items that a mask hides.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub mask: f64,
    /// beta, the share of a history that a reordering shuffles.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub reorder: f64,
    /// lambda, the weight of the contrastive loss; with 0 the model is SASRec.
    #[schemars(range(min = 0.0, max = 1000.0))]
    pub lambda: f64,
    /// tau, the temperature of the similarities of views.
    #[schemars(range(min = 0.0001, max = 100.0))]
    pub temperature: f64,
    /// How two views are compared.
    pub similarity: Similarity,
}

impl Default for Config {
    fn default() -> Self {
        Self { crop: 0.6, mask: 0.3, reorder: 0.6, lambda: 0.1, temperature: 1.0, similarity: Similarity::default() }
    }
}

/// An operation that makes a view of a history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Keeps a range of consecutive items.
    Crop(std::ops::Range<usize>),
    /// Replaces the items at some positions by the mask token.
    Mask(Vec<usize>),
    /// Gives position j the item of position `order[j]`.
    Reorder(Vec<usize>),
    /// Leaves the history unchanged.
    Keep,
}

impl Operation {
    /// The view of a history that is given as `rows` of the table of items, in which the mask token is row `mask`.
    pub fn view(&self, rows: &[u32], mask: u32) -> Vec<u32> {
        match self {
            Self::Crop(kept) => rows[kept.clone()].to_vec(),
            Self::Mask(positions) => {
                let mut view = rows.to_vec();
                positions.iter().for_each(|&position| view[position] = mask);
                view
            }
            Self::Reorder(order) => order.iter().map(|&position| rows[position]).collect(),
            Self::Keep => rows.to_vec(),
        }
    }
}

/// Histories and, if they are compared, their views, one after the other.
pub struct Views {
    /// `[3 B]` or `[B]` sequences: the histories, then the first views, then the second views.
    pub offsets: PackedOffsets,
    /// `[tokens]`: rows of the table of items, in which the mask token is the row after the last item.
    pub rows: Vec<u32>,
}

/// The model with its parameters.
#[derive(Debug)]
pub struct Cl4sRec {
    config: Config,
    max_sequence_length: usize,
    parameters: Parameters,
    /// `[I, d_0]`: row i-1 is item i.
    items: Var,
    /// `[d_0]`: the embedding of the mask token.
    mask: Var,
    transformer: Transformer,
}

impl Cl4sRec {
    /// Creates a model over `items` items, whose initial parameters are determined by `key`.
    pub fn new(
        config: Config,
        transformer: TransformerConfig,
        items: usize,
        device: &Device,
        key: RngKey,
    ) -> Result<Self> {
        let key = key.fold_in("initial");
        let mut parameters = Parameters::new(device);
        let table = parameters.add("item_embedding", &[items, transformer.width], Initial::Normal, key)?;
        let mask = parameters.add("mask_embedding", &[transformer.width], Initial::Normal, key)?;
        let max_sequence_length = transformer.max_sequence_length;
        let transformer = Transformer::new(&mut parameters, transformer, key)?;
        Ok(Self { config, max_sequence_length, parameters, items: table, mask, transformer })
    }

    /// Draws two different operations for a history of `length` items, determined by the key. All ordered pairs are equally likely.
    pub fn operations(&self, length: usize, key: RngKey) -> [Operation; 2] {
        if length < 2 {
            return [Operation::Keep, Operation::Keep];
        }
        let pair = below(key, 0, 6);
        let (first, second) = (pair / 2, (pair / 2 + 1 + pair % 2) % 3);
        [self.operation(first, length, key.fold_in("first")), self.operation(second, length, key.fold_in("second"))]
    }

    fn operation(&self, kind: usize, length: usize, key: RngKey) -> Operation {
        let share = |ratio: f64| (length as f64 * ratio) as usize;
        match kind {
            0 => {
                let kept = share(self.config.crop).max(1);
                let begin = below(key, 0, length - kept + 1);
                Operation::Crop(begin..begin + kept)
            }
            1 => {
                let positions = key.fold_in("places").permutation(length);
                Operation::Mask(
                    positions[..share(self.config.mask)].iter().map(|&position| position as usize).collect(),
                )
            }
            _ => {
                let moved = share(self.config.reorder);
                let begin = below(key, 0, length - moved + 1);
                let mut order: Vec<usize> = (0..length).collect();
                let shuffled = key.fold_in("order").permutation(moved);
                for (position, &from) in (begin..).zip(&shuffled) {
                    order[position] = begin + from as usize;
                }
                Operation::Reorder(order)
            }
        }
    }

    /// The histories of a batch and the views that `operations` make of them; without operations, only the histories.
    pub fn views(&self, batch: &Batch, operations: Option<&[[Operation; 2]]>) -> Result<Views> {
        let rows: Vec<u32> = batch.items.iter().map(|item| item - 1).collect();
        let Some(operations) = operations else { return Ok(Views { offsets: batch.offsets.clone(), rows }) };
        let mask = self.items.dim(0)? as u32;
        let mut lengths: Vec<usize> = (0..batch.count()).map(|j| batch.offsets.range(j).len()).collect();
        let mut all = rows.clone();
        for view in 0..2 {
            for (j, operations) in operations.iter().enumerate() {
                let own = operations[view].view(&rows[batch.offsets.range(j)], mask);
                lengths.push(own.len());
                all.extend(own);
            }
        }
        Ok(Views { offsets: PackedOffsets::from_lengths(lengths)?, rows: all })
    }

    /// The loss of a batch whose histories and views are packed. Without `key` nothing is dropped.
    pub fn loss_of_views(&self, views: &Views, targets: &[u32], key: Option<RngKey>) -> Result<Tensor> {
        let count = targets.len();
        let table = Tensor::cat(&[self.items.as_tensor(), &self.mask.unsqueeze(0)?], 0)?;
        let outputs = self.transformer.forward(Rows::new(&table, &views.rows), None, &views.offsets, key)?;
        let h = outputs.narrow(0, 0, count)?.contiguous()?;
        let columns: Vec<u32> = targets.iter().map(|target| target - 1).collect();
        let rows = cross_entropy(&h, self.items.as_tensor(), &columns, 1.0)?;
        let main = rows.mean_all()?;
        trace::record(|| "h".to_owned(), &h);
        trace::record(|| "cross_entropy_rows".to_owned(), &rows);
        trace::record(|| "cross_entropy".to_owned(), &main);
        if views.offsets.count() == count {
            return Ok(main);
        }
        let contrast = self.contrast_rows(&outputs.narrow(0, count, 2 * count)?.contiguous()?)?;
        let mean = contrast.mean_all()?;
        trace::record(|| "contrast_rows".to_owned(), &contrast);
        trace::record(|| "contrast".to_owned(), &mean);
        main + (mean * self.config.lambda)?
    }

    /// The NT-Xent loss of each of the views `[2 B, d_0]`, of which all first views come before all second views: `[2 B]`.
    fn contrast_rows(&self, views: &Tensor) -> Result<Tensor> {
        let count = views.dim(0)? / 2;
        let (first, second) = (views.narrow(0, 0, count)?, views.narrow(0, count, count)?);
        trace::record(|| "view.1.h".to_owned(), &first);
        trace::record(|| "view.2.h".to_owned(), &second);
        let views = match self.config.similarity {
            Similarity::Dot => views.clone(),
            Similarity::Cosine => normalize(views)?,
        };
        let partners = Tensor::cat(&[views.narrow(0, count, count)?, views.narrow(0, 0, count)?], 0)?;
        // Every view forms its own group, so all others are negatives, whatever their targets.
        let groups = (0..2 * count as u32).collect::<Vec<_>>().into();
        let mask =
            Mask::FalseNegatives { groups, false_negatives: FalseNegatives::Keep, diagonal: false, first_row: 0 };
        let others = row_logsumexp(&views, &views, (1.0 / self.config.temperature) as f32, &mask)?;
        others - ((&views * partners)?.sum(D::Minus1)? / self.config.temperature)?
    }
}

/// Draws a number below `bound`, determined by the key and the index.
fn below(key: RngKey, index: u64, bound: usize) -> usize {
    (key.uniform(index) * bound as f64) as usize
}

impl Model for Cl4sRec {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn phases(&self) -> &[Phase] {
        &PHASES
    }

    fn uses(&self, _: &Phase, name: &str) -> bool {
        self.config.lambda > 0.0 || name != "mask_embedding"
    }

    fn max_sequence_length(&self) -> usize {
        self.max_sequence_length
    }

    fn loss(&self, _: &Phase, batch: &Batch, step: &Step) -> Result<Tensor> {
        let key = step.key.fold_in("views");
        let operations: Option<Vec<[Operation; 2]>> = (self.config.lambda > 0.0).then(|| {
            let of = |j: usize| self.operations(batch.offsets.range(j).len(), key.fold_in_index(j as u64));
            (0..batch.count()).map(of).collect()
        });
        self.loss_of_views(&self.views(batch, operations.as_deref())?, &batch.targets, Some(step.key))
    }

    fn scorer(&self, _: &Phase) -> Result<Box<dyn Scorer + '_>> {
        Ok(Box::new(Cl4sRecScorer { model: self, items: self.items.as_tensor().detach() }))
    }
}

struct Cl4sRecScorer<'a> {
    model: &'a Cl4sRec,
    items: Tensor,
}

impl Scorer for Cl4sRecScorer<'_> {
    fn items(&self) -> &Tensor {
        &self.items
    }

    fn queries(&self, queries: &[Query<'_>]) -> Result<Tensor> {
        let batch = Batch::of_queries(queries, self.model.max_sequence_length)?;
        let rows: Vec<u32> = batch.items.iter().map(|item| item - 1).collect();
        Ok(self.model.transformer.forward(Rows::new(&self.items, &rows), None, &batch.offsets, None)?.detach())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SasRec;

    fn transformer() -> TransformerConfig {
        TransformerConfig { width: 8, layers: 1, heads: 2, feed_forward: 8, ..TransformerConfig::default() }
    }

    fn model(config: Config) -> Cl4sRec {
        Cl4sRec::new(config, transformer(), 20, &Device::Cpu, RngKey::new(3)).unwrap()
    }

    #[test]
    fn every_ordered_pair_of_different_operations_is_equally_likely() {
        let model = model(Config::default());
        let kind = |operation: &Operation| match operation {
            Operation::Crop(_) => 0,
            Operation::Mask(_) => 1,
            Operation::Reorder(_) => 2,
            Operation::Keep => panic!("a history of ten items is not kept as it is"),
        };
        let mut counts = [[0u32; 3]; 3];
        for draw in 0..60_000 {
            let [first, second] = model.operations(10, RngKey::new(5).fold_in_index(draw));
            counts[kind(&first)][kind(&second)] += 1;
        }
        for (first, counts) in counts.iter().enumerate() {
            for (second, &count) in counts.iter().enumerate() {
                // Each count is 10,000 in expectation; the tolerance is five standard deviations.
                let fits = (f64::from(count) - 10_000.0).abs() < 5.0 * (60_000.0f64 * 5.0 / 36.0).sqrt();
                assert!(if first == second { count == 0 } else { fits }, "{first} {second}: {count}");
            }
        }
    }

    #[test]
    fn crops_masks_and_reorderings_are_uniform_over_their_positions() {
        let model = model(Config::default());
        let (mut begins, mut masked, mut moved) = ([0u32; 5], [0u32; 10], [[0u32; 10]; 10]);
        let draws = 30_000u64;
        for draw in 0..draws {
            let key = RngKey::new(6).fold_in_index(draw);
            let Operation::Crop(kept) = model.operation(0, 10, key) else { panic!("a crop") };
            assert_eq!(kept.len(), 6);
            begins[kept.start] += 1;
            let Operation::Mask(positions) = model.operation(1, 10, key) else { panic!("a mask") };
            assert_eq!(positions.len(), 3);
            positions.iter().for_each(|&position| masked[position] += 1);
            let Operation::Reorder(order) = model.operation(2, 10, key) else { panic!("a reordering") };
            let changed: Vec<usize> = (0..10).filter(|&position| order[position] != position).collect();
            let span = changed.last().map_or(0, |last| last - changed[0] + 1);
            assert!(span <= 6, "{order:?}");
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..10).collect::<Vec<_>>());
            (0..10).for_each(|position| moved[position][order[position]] += 1);
        }
        let near = |count: u32, share: f64| {
            let deviation = (share * (1.0 - share) * draws as f64).sqrt();
            (f64::from(count) - share * draws as f64).abs() < 5.0 * deviation
        };
        assert!(begins.iter().all(|&count| near(count, 0.2)), "{begins:?}");
        assert!(masked.iter().all(|&count| near(count, 0.3)), "{masked:?}");
        // Position 0 is in the shuffled range if that begins there (1 in 5), and then gets each of the six items equally often.
        assert!((1..6).all(|from| near(moved[0][from], 0.2 / 6.0)) && near(moved[0][0], 0.8 + 0.2 / 6.0));
    }

    #[test]
    fn short_histories_keep_at_least_one_item_and_lose_nothing_if_a_share_is_zero() {
        let model = model(Config::default());
        assert_eq!(model.operations(1, RngKey::new(1)), [Operation::Keep, Operation::Keep]);
        for draw in 0..50 {
            let key = RngKey::new(draw);
            assert!(matches!(model.operation(0, 2, key), Operation::Crop(kept) if kept.len() == 1));
            assert_eq!(model.operation(1, 3, key), Operation::Mask(vec![]));
            assert_eq!(model.operation(2, 3, key), Operation::Reorder(vec![0, 1, 2]));
        }
    }

    #[test]
    fn with_weight_zero_there_is_no_contrastive_loss_and_the_model_is_sasrec() {
        let batch = Batch::of_histories([(&[1, 2, 3, 4][..], 5), (&[7][..], 8), (&[9, 3][..], 1)], 50).unwrap();
        let (own, sasrec) = (
            model(Config { lambda: 0.0, ..Config::default() }),
            SasRec::new(transformer(), 20, &Device::Cpu, RngKey::new(3)).unwrap(),
        );
        let key = RngKey::new(8);
        let step = Step { epoch: 1, index: 0, global: 0, epoch_key: key, key };
        let loss = |model: &dyn Model| model.loss(&PHASES[0], &batch, &step).unwrap().to_scalar::<f32>().unwrap();
        assert_eq!(loss(&own).to_bits(), loss(&sasrec).to_bits());
        assert!(!own.uses(&PHASES[0], "mask_embedding"));
    }
}
