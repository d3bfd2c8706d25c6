//! MV-RNN: a recurrent network over a latent view of each item and views of its features.
//!
//! Cui et al., MV-RNN: A Multi-View Recurrent Neural Network for Sequential Recommendation, TKDE 2018 (arXiv 1611.06668), as in the
//! authors' code. A view is v^m = f^m V_m, where f^m is the unit mean of the item's rows. An item vector is its latent view side by side
//! with the views, or with their sum; an LSTM or a GRU reads them; the loss is -log sigmoid(h . (e_next - e_negative)) after every step.
//! The full model also hides views at random and reconstructs the features from their sum. [`Config::variant`] selects one of the four
//! variants.
//!
//! A sample is a whole sequence, which is read once. One product multiplies the inputs of all tokens with the cell's map; only the product
//! with the state runs step by step.

use candle_core::{D, Tensor, Var};
use mp4sr_ops::plain::softplus;
use mp4sr_ops::{Cell, PackedOffsets, Result, RngKey, gather, linear, normalize, product, recurrent};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::features::{DistinctItems, RowMean, expect_modalities, mean_rows};
use crate::graph::rows_of;
use crate::interface::FINETUNE;
use crate::recipe::{DECAY_GRID, Reads, Recipe, Section, Supports};
use crate::{
    Batch, BatchUnit, Data, Initial, Model, NegativeSampler, Parameters, Phase, Query, Samples, Scorer, Step, Stop,
    trace,
};

/// How MV-RNN is named, configured and built.
pub static RECIPE: Recipe = Recipe {
    name: "mvrnn",
    title: "MV-RNN",
    summary: "A recurrent network over latent and feature views of items.",
    paper: "Cui et al., MV-RNN: A Multi-View Recurrent Neural Network for Sequential Recommendation, 2018 (arXiv 1611.06668)",
    reads: Reads { features: true, transformer: false, categories: &[] },
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
    build: |settings, data, key| Ok(Box::new(MvRnn::new(settings.own()?, &data, key)?)),
};

const PHASES: [Phase; 1] = [Phase {
    name: FINETUNE,
    samples: Samples::Sequences { at_least: 2, batch: BatchUnit::Pairs },
    stop: Stop::Validation { warm_up: 0 },
}];

/// What an item vector is made of, and what is added to the ranking loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Variant {
    /// The latent view and all views side by side.
    #[default]
    Con,
    /// The latent view and the sum of the views.
    Add,
    /// As `add`, with hidden views and reconstruction.
    Fusion,
    /// As `fusion`, with a separate cell for each of the two parts of an item vector.
    Separate,
}

/// `[model.mvrnn]`: hyper-parameters of MV-RNN.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// d, the width of each view.
    #[schemars(range(min = 1, max = 4096))]
    pub width: usize,
    /// What an item vector is made of, and what is added to the ranking loss.
    pub variant: Variant,
    /// The recurrent cell.
    pub cell: Cell,
    /// The probability that a view of an occurrence of an item is hidden in training, in `fusion` and `separate`.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub mask: f64,
    /// lambda, the weight of the reconstruction in `fusion` and `separate`.
    #[schemars(range(min = 0.0, max = 1000.0))]
    pub lambda: f64,
    /// n, the maximum number of items that the model reads: the most recent ones of a history or of a training sequence.
    #[schemars(range(min = 2, max = 10000))]
    pub max_sequence_length: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            width: 64,
            variant: Variant::default(),
            cell: Cell::default(),
            mask: 0.3,
            lambda: 0.001,
            max_sequence_length: 50,
        }
    }
}

/// One view of the items.
#[derive(Debug)]
struct View {
    name: String,
    /// f, the unit means of the items' rows, `[I, d_m]`.
    features: Tensor,
    /// V_m, `[d_m, d]`.
    projection: Var,
}

/// The maps of one cell.
#[derive(Debug)]
struct CellMaps {
    input: Var,
    hidden: Var,
    bias: Var,
}

/// Sequences with the next item of each step, and a negative.
#[derive(Clone, Debug)]
pub struct Pairs {
    /// The offsets of the sequences.
    pub offsets: PackedOffsets,
    /// `[tokens]`: the items that the steps read.
    pub items: Vec<u32>,
    /// `[tokens]`: the items that the steps predict; 0 for a step that is not scored.
    pub targets: Vec<u32>,
    /// `[tokens]`: items that the user has no training event with; 0 for a step that is not scored.
    pub negatives: Vec<u32>,
    /// For each view, whether it is kept for every item, then for every scored target, then for every scored negative; empty if nothing is
    /// hidden.
    pub kept: Vec<Vec<bool>>,
}

/// The model with its parameters and the items' features.
#[derive(Debug)]
pub struct MvRnn {
    config: Config,
    count: usize,
    negatives: NegativeSampler,
    parameters: Parameters,
    /// `[I, d]`: row i-1 is item i.
    items: Var,
    views: Vec<View>,
    /// One cell, or one for each of the two parts of an item vector.
    cells: Vec<CellMaps>,
}

impl MvRnn {
    /// Creates a model whose initial parameters are determined by `key`.
    pub fn new(config: Config, data: &Data, key: RngKey) -> Result<Self> {
        let key = key.fold_in("initial");
        expect_modalities(&data.modalities, data.items)?;
        let mut parameters = Parameters::new(&data.device);
        let (p, d) = (&mut parameters, config.width);
        let items = p.add("item_embedding", &[data.items, d], Initial::Normal, key)?;
        let mut views = Vec::new();
        for modality in &data.modalities {
            let (name, width) = (modality.name.clone(), modality.features.width());
            let projection = p.add(&format!("projection.{name}.weight"), &[width, d], Initial::Uniform(width), key)?;
            let features = normalize(&mean_rows(&modality.features, RowMean::Mean, items.device())?)?;
            views.push(View { name, features, projection });
        }
        let parts: &[(&str, usize)] = match config.variant {
            Variant::Con => &[("cell", (views.len() + 1) * d)],
            Variant::Add | Variant::Fusion => &[("cell", 2 * d)],
            Variant::Separate => &[("cell.id", d), ("cell.view", d)],
        };
        let mut cells = Vec::new();
        for &(name, w) in parts {
            let wide = config.cell.gates() * w;
            cells.push(CellMaps {
                input: p.add(&format!("{name}.input.weight"), &[w, wide], Initial::Uniform(w), key)?,
                hidden: p.add(&format!("{name}.hidden.weight"), &[w, wide], Initial::Uniform(w), key)?,
                bias: p.add(&format!("{name}.bias"), &[wide], Initial::Zeros, key)?,
            });
        }
        let (count, negatives) = (data.items, NegativeSampler::new(data)?);
        Ok(Self { config, count, negatives, parameters, items, views, cells })
    }

    fn hides(&self) -> bool {
        matches!(self.config.variant, Variant::Fusion | Variant::Separate)
    }

    /// The views of uses of items, `[uses, d]` each. Use u is of row `rows[u]`, and its views are zero where `kept` is false.
    fn views(&self, rows: &[u32], kept: &[Vec<bool>]) -> Result<Vec<Tensor>> {
        let distinct = DistinctItems::of_rows(rows);
        let view = |(m, view): (usize, &View)| {
            let all = product(&gather(&view.features, &distinct.rows)?, &view.projection)?;
            let own = gather(&all, &distinct.inverse)?;
            let Some(kept) = kept.get(m) else { return Ok(own) };
            let kept = Tensor::from_iter(kept.iter().map(|&kept| if kept { 1.0f32 } else { 0.0 }), own.device())?;
            own.broadcast_mul(&kept.unsqueeze(1)?)
        };
        self.views.iter().enumerate().map(view).collect()
    }

    /// Item vectors of uses, `[uses, w]`, from their views.
    fn vectors(&self, rows: &[u32], views: &[Tensor]) -> Result<Tensor> {
        let mut parts = vec![gather(&self.items, rows)?];
        match self.config.variant {
            Variant::Con => parts.extend_from_slice(views),
            _ => parts.push(sum(views)?),
        }
        Tensor::cat(&parts, 1)
    }

    /// h after every token, `[tokens, w]`.
    fn states(&self, vectors: &Tensor, offsets: &PackedOffsets) -> Result<Tensor> {
        let mut states = Vec::new();
        let mut from = 0;
        for cell in &self.cells {
            let width = cell.hidden.dim(0)?;
            let own = vectors.narrow(1, from, width)?.contiguous()?;
            from += width;
            let gates = linear(&own, &cell.input, &cell.bias)?;
            states.push(recurrent(&gates, &cell.hidden, offsets, self.config.cell)?);
        }
        Tensor::cat(&states, 1)
    }

    /// The pairs of a batch of whole training sequences, with negatives and hidden views that are determined by the key.
    pub fn pairs(&self, batch: &Batch, key: RngKey) -> Result<Pairs> {
        let (negatives_key, views_key) = (key.fold_in("negatives"), key.fold_in("views"));
        let (mut items, mut targets, mut negatives, mut lengths) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (j, &user) in batch.users.iter().enumerate() {
            let own = &batch.items[batch.offsets.range(j)];
            items.extend_from_slice(&own[..own.len() - 1]);
            targets.extend_from_slice(&own[1..]);
            for _ in 1..own.len() {
                negatives.push(self.negatives.draw(user, negatives_key.fold_in_index(negatives.len() as u64)));
            }
            lengths.push(own.len() - 1);
        }
        let mut kept = Vec::new();
        if self.hides() {
            let count = 3 * items.len() as u64;
            for m in 0..self.views.len() as u64 {
                let key = views_key.fold_in_index(m);
                kept.push((0..count).map(|index| key.uniform(index) >= self.config.mask).collect());
            }
        }
        Ok(Pairs { offsets: PackedOffsets::from_lengths(lengths)?, items, targets, negatives, kept })
    }

    /// The loss of sequences.
    pub fn sequence_loss(&self, pairs: &Pairs) -> Result<Tensor> {
        let scored: Vec<u32> =
            (0..pairs.items.len() as u32).filter(|&token| pairs.targets[token as usize] > 0).collect();
        let of_scored = |items: &[u32]| -> Vec<u32> { scored.iter().map(|&token| items[token as usize] - 1).collect() };
        let (tokens, count) = (pairs.items.len(), scored.len());
        let rows = [rows_of(&pairs.items), of_scored(&pairs.targets), of_scored(&pairs.negatives)].concat();
        let views = self.views(&rows, &pairs.kept)?;
        let vectors = self.vectors(&rows, &views)?;
        let states = self.states(&vectors.narrow(0, 0, tokens)?.contiguous()?, &pairs.offsets)?;
        trace::record(|| "h".to_owned(), &states);
        let part = |of: &Tensor, at: usize| of.narrow(0, tokens + at * count, count);
        let difference = (part(&vectors, 0)? - part(&vectors, 1)?)?;
        let margin = (gather(&states, &scored)? * difference)?.sum(D::Minus1)?;
        let rows_of_ranking = softplus(&margin.neg()?)?;
        let ranking = rows_of_ranking.mean_all()?;
        trace::record(|| "margin".to_owned(), &margin);
        trace::record(|| "ranking_rows".to_owned(), &rows_of_ranking);
        trace::record(|| "ranking".to_owned(), &ranking);
        if !self.hides() {
            return Ok(ranking);
        }
        let joined = sum(&views)?.narrow(0, tokens, 2 * count)?.contiguous()?;
        let mut loss = ranking;
        for view in &self.views {
            let whole = gather(&view.features, &rows[tokens..])?;
            let error = (whole - product(&joined, &view.projection.t()?.contiguous()?)?)?.sqr()?.sum_all()?;
            let own = (error / (count * view.features.dim(1)?) as f64)?;
            trace::record(|| format!("reconstruction.{}", view.name), &own);
            loss = (loss + (own * (self.config.lambda / 2.0))?)?;
        }
        Ok(loss)
    }
}

fn sum(views: &[Tensor]) -> Result<Tensor> {
    Tensor::stack(views, 0)?.sum(0)
}

impl Model for MvRnn {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn phases(&self) -> &[Phase] {
        &PHASES
    }

    fn max_sequence_length(&self) -> usize {
        self.config.max_sequence_length
    }

    fn loss(&self, _: &Phase, batch: &Batch, step: &Step) -> Result<Tensor> {
        self.sequence_loss(&self.pairs(batch, step.key)?)
    }

    fn scorer(&self, _: &Phase) -> Result<Box<dyn Scorer + '_>> {
        for view in &self.views {
            trace::record(|| format!("pooled.{}", view.name), &view.features);
        }
        let all: Vec<u32> = (0..self.count as u32).collect();
        let items = self.vectors(&all, &self.views(&all, &[])?)?.detach();
        Ok(Box::new(MvRnnScorer { model: self, items }))
    }
}

struct MvRnnScorer<'a> {
    model: &'a MvRnn,
    items: Tensor,
}

impl Scorer for MvRnnScorer<'_> {
    fn items(&self) -> &Tensor {
        &self.items
    }

    fn queries(&self, queries: &[Query<'_>]) -> Result<Tensor> {
        let batch = Batch::of_queries(queries, self.model.config.max_sequence_length)?;
        let vectors = gather(&self.items, &rows_of(&batch.items))?;
        let states = self.model.states(&vectors, &batch.offsets)?;
        Ok(gather(&states, &batch.offsets.last_tokens())?.detach())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Modality, Ragged, Sample, TrainingSequences};

    fn model(config: Config) -> MvRnn {
        let key = RngKey::new(2);
        let features = |name: &str, width: usize| {
            let values = (0..(width * 10) as u64).map(|at| key.fold_in(name).normal(at) as f32).collect();
            Modality {
                name: name.to_owned(),
                features: Ragged::new(values, width, &(0..=10).collect::<Vec<_>>()).unwrap(),
            }
        };
        let users: [&[u32]; 3] = [&[1, 2, 3, 4, 5], &[3], &[9, 3]];
        let training = TrainingSequences::new(users).into();
        let data = Data {
            items: 10,
            training,
            modalities: vec![features("text", 3), features("image", 4)],
            categories: None,
            device: crate::Device::Cpu,
            group: None,
        };
        MvRnn::new(Config { width: 4, ..config }, &data, RngKey::new(3)).unwrap()
    }

    fn batch() -> Batch {
        let samples: [(u32, &[u32]); 2] = [(0, &[1, 2, 3, 4, 5]), (2, &[9, 3])];
        let sample = |(user, history)| Sample { user, history, target: None };
        Batch::new(samples.map(sample), 50).unwrap()
    }

    #[test]
    fn every_step_scores_the_next_item_against_one_that_the_user_does_not_have() {
        let model = model(Config { variant: Variant::Fusion, ..Config::default() });
        let (rounds, mut counts, mut hidden) = (4000u64, [0u32; 11], [0u32; 2]);
        for round in 0..rounds {
            let pairs = model.pairs(&batch(), RngKey::new(5).fold_in_index(round)).unwrap();
            assert_eq!(pairs.items, [1, 2, 3, 4, 9]);
            assert_eq!(pairs.targets, [2, 3, 4, 5, 3]);
            assert!(![3, 9].contains(&pairs.negatives[4]));
            pairs.negatives[..4].iter().for_each(|&item| counts[item as usize] += 1);
            for (m, kept) in pairs.kept.iter().enumerate() {
                assert_eq!(kept.len(), 15);
                hidden[m] += kept.iter().filter(|&&kept| !kept).count() as u32;
            }
        }
        let draws = 4.0 * rounds as f64;
        for item in 1..=10 {
            let share = if item > 5 { 0.2 } else { 0.0 };
            let error = (f64::from(counts[item]) - share * draws).abs();
            assert!(error <= 5.0 * (draws * share * (1.0 - share)).sqrt(), "{item}: {counts:?}");
        }
        let count_each = 15.0 * rounds as f64;
        assert!(
            hidden.iter().all(|&count| (f64::from(count) - 0.3 * count_each).abs() < 5.0 * (count_each * 0.21).sqrt()),
            "{hidden:?}"
        );
        let whole = self::model(Config::default()).pairs(&batch(), RngKey::new(5)).unwrap();
        assert!(whole.kept.is_empty(), "nothing is hidden in `con`");
    }

    #[test]
    fn a_state_does_not_depend_on_the_rest_of_the_batch() {
        for (variant, cell) in [(Variant::Con, Cell::Lstm), (Variant::Separate, Cell::Gru)] {
            let model = model(Config { variant, cell, ..Config::default() });
            let scorer = model.scorer(&PHASES[0]).unwrap();
            let histories: [&[u32]; 3] = [&[1, 2, 3], &[5], &[9, 9, 2, 7]];
            let vectors = |histories: &[&[u32]]| {
                let queries: Vec<Query<'_>> = histories.iter().map(|history| Query::of_history(history)).collect();
                scorer.queries(&queries).unwrap().to_vec2::<f32>().unwrap()
            };
            let together = vectors(&histories);
            for (history, together) in histories.iter().zip(together) {
                let alone = &vectors(&[history])[0];
                assert!(alone.iter().zip(&together).all(|(a, b)| (a - b).abs() < 1e-6));
            }
        }
    }
}
