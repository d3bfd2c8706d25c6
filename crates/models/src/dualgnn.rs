//! DualGNN: a graph convolution over users and items for each modality, then one over users who share items.
//!
//! Wang et al., DualGNN: Dual Graph Neural Network for Multimedia Recommendation, IEEE Transactions on Multimedia 2021, as in the authors'
//! code and in MMRec. For each modality, items are unit vectors of their features through two maps, and users are unit vectors of
//! preferences; r = x + A x + A A x with A_ui = 1 / sqrt(d_u d_i). The vector of an item is the sum of its r. For a user, t is the sum of
//! the r weighted by the user's own weights, and the vector is t plus the t of the k users who share the most items, weighted by the
//! softmax of how many they share. The loss is Bayesian personalised ranking, with binary logarithms. Where sources differ, a key of
//! [`Config`] selects the reading.
//!
//! The modalities pass through the graph side by side.

use std::cell::RefCell;
use std::sync::Arc;

use candle_core::{Tensor, Var};
use mp4sr_ops::plain::leaky_relu;
use mp4sr_ops::{
    Error, Result, RngKey, SparseEntry, SparseMatrix, gather, linear, normalize, propagate, sparse_product,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::features::{DistinctItems, RowMean, expect_modalities, mean_rows};
use crate::graph::{VectorScorer, adjacency, bpr, items_of_users};
use crate::interface::FINETUNE;
use crate::maps::Linear;
use crate::recipe::{Reads, Recipe, Section, Supports};
use crate::{
    Batch, Data, Initial, Model, NegativeSampler, Parameters, Phase, Samples, Scorer, Step, Stop, TrainingSequences,
    trace,
};

/// How DualGNN is named, configured and built. Its regularisation takes the place of weight decay.
pub static RECIPE: Recipe = Recipe {
    name: "dualgnn",
    title: "DualGNN",
    summary: "Graph convolutions over users and items, one per modality, and over users who share items.",
    paper: "Wang et al., DualGNN: Dual Graph Neural Network for Multimedia Recommendation, 2021",
    reads: Reads { features: true, transformer: false, categories: &[] },
    supports: Supports::NOTHING,
    section: Section::of::<Config>(),
    phase_reads: |_, _, _| true,
    defaults: "finetune.weight_decay = 0.0\nfinetune.epochs = 1000",
    presets: &[],
    grid: &[
        "finetune.learning_rate=1e-4,5e-4,1e-3",
        "finetune.batch=256,512,1024",
        "model.dualgnn.reg_weight=1e-4,1e-3,1e-2",
    ],
    renamed: &[],
    item_tables: |_| None,
    check: |_| Ok(()),
    phases: |_| Ok(PHASES.to_vec()),
    build: |settings, data, key| Ok(Box::new(DualGnn::new(settings.own()?, &data, key)?)),
};

const PHASES: [Phase; 1] = [Phase { name: FINETUNE, samples: Samples::Events, stop: Stop::Validation { warm_up: 0 } }];

/// The number of hops over the graph of users and items.
const HOPS: usize = 2;

/// How a user's vectors for the modalities are combined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum UserFusion {
    /// Each modality is weighted by the user's own weight for it (authors' code).
    #[default]
    Separate,
    /// The sum of all modalities is weighted by the user's weight for the last one (MMRec).
    Summed,
}

/// What the list of a user with fewer than k neighbours holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NeighbourLists {
    /// Each neighbour once.
    #[default]
    Once,
    /// In training, k entries, filled up with random repeats that are resampled in each epoch (published code).
    Resampled,
}

/// `[model.dualgnn]`: hyper-parameters of DualGNN.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// d, the width of users and items; the maps of features are four times as wide inside.
    #[schemars(range(min = 1, max = 4096))]
    pub width: usize,
    /// k, the number of neighbours per user.
    #[schemars(range(min = 1, max = 10000))]
    pub neighbours: usize,
    /// What the list of a user with fewer neighbours holds.
    pub neighbour_lists: NeighbourLists,
    /// How a user's vectors for the modalities are combined.
    pub user_fusion: UserFusion,
    /// The weight of the regularisation.
    #[schemars(range(min = 0.0, max = 1000.0))]
    pub reg_weight: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            width: 64,
            neighbours: 40,
            neighbour_lists: NeighbourLists::default(),
            user_fusion: UserFusion::default(),
            reg_weight: 1e-3,
        }
    }
}

/// For each user, from 0, the users who share the most items and how many they share, by descending count, then by ascending user.
pub type Neighbours = Vec<Vec<(u32, u32)>>;

/// Finds the k users who share the most distinct training items with each user.
pub fn neighbours(data: &Data, k: usize) -> Neighbours {
    let items_of = items_of_users(data);
    let mut users_of = vec![Vec::new(); data.items];
    for (user, items) in items_of.iter().enumerate() {
        items.iter().for_each(|&item| users_of[item as usize].push(user as u32));
    }
    let mut counts = vec![0u32; items_of.len()];
    let mut of_user = |(user, items): (usize, &Vec<u32>)| {
        let mut met = Vec::new();
        for &other in items.iter().flat_map(|&item| &users_of[item as usize]).filter(|&&other| other as usize != user) {
            if counts[other as usize] == 0 {
                met.push(other);
            }
            counts[other as usize] += 1;
        }
        let mut own: Vec<(u32, u32)> =
            met.into_iter().map(|other| (other, std::mem::take(&mut counts[other as usize]))).collect();
        own.sort_unstable_by_key(|&(other, count)| (std::cmp::Reverse(count), other));
        own.truncate(k);
        own
    };
    items_of.iter().enumerate().map(&mut of_user).collect()
}

/// The matrix that sums the neighbours of every user, each weighted by the softmax of the counts in the user's list. A list may contain an
/// entry several times.
pub fn neighbour_matrix(lists: &Neighbours) -> Result<SparseMatrix> {
    let mut entries = Vec::new();
    for (row, list) in lists.iter().enumerate() {
        let top = list.iter().map(|&(_, count)| count).max().unwrap_or(0);
        let weight = |count: u32| (f64::from(count) - f64::from(top)).exp();
        let total: f64 = list.iter().map(|&(_, count)| weight(count)).sum();
        let mut sorted = list.clone();
        sorted.sort_unstable();
        for run in sorted.chunk_by(|a, b| a.0 == b.0) {
            let share = run.iter().map(|&(_, count)| weight(count)).sum::<f64>() / total;
            entries.push(SparseEntry { row: row as u32, column: run[0].0, weight: share as f32 });
        }
    }
    SparseMatrix::new(lists.len(), lists.len(), entries)
}

/// One modality.
#[derive(Debug)]
struct View {
    name: String,
    /// The means of the items' rows, `[I, width]`.
    means: Tensor,
    hidden: Linear,
    output: Linear,
    /// `[U, d]`.
    preference: Var,
}

/// The model with its parameters and its two graphs.
#[derive(Debug)]
pub struct DualGnn {
    config: Config,
    users: usize,
    items: usize,
    adjacency: SparseMatrix,
    neighbours: Neighbours,
    /// The graph of users, with each neighbour once.
    once: SparseMatrix,
    /// The graph of users for an epoch, if lists are resampled, and the key that determines it.
    resampled: RefCell<Option<(RngKey, SparseMatrix)>>,
    training: Arc<TrainingSequences>,
    negatives: NegativeSampler,
    parameters: Parameters,
    views: Vec<View>,
    /// `[U, M]`.
    modality_weight: Var,
}

impl DualGnn {
    /// Creates a model whose initial parameters are determined by `key`.
    pub fn new(config: Config, data: &Data, key: RngKey) -> Result<Self> {
        let key = key.fold_in("initial");
        expect_modalities(&data.modalities, data.items)?;
        let mut parameters = Parameters::new(&data.device);
        let p = &mut parameters;
        let (users, d, count) = (data.training.users(), config.width, data.modalities.len());
        let mut views = Vec::new();
        for modality in &data.modalities {
            let (name, width) = (modality.name.clone(), modality.features.width());
            let deviation = (2.0 / (users + d) as f64).sqrt();
            let preference = p.add(&format!("preference.{name}"), &[users, d], Initial::Scaled(deviation), key)?;
            let mut map = |part: &str, a: usize, b: usize| {
                let prefix = format!("feature.{name}.{part}");
                let weight = p.add(&format!("{prefix}.weight"), &[a, b], Initial::Uniform(a), key)?;
                let bias = p.add(&format!("{prefix}.bias"), &[b], Initial::Uniform(a), key)?;
                Ok::<_, Error>(Linear { weight, bias })
            };
            let (hidden, output) = (map("hidden", width, 4 * d)?, map("output", 4 * d, d)?);
            let means = mean_rows(&modality.features, RowMean::Mean, preference.device())?;
            views.push(View { name, means, hidden, output, preference });
        }
        let deviation = (2.0 / (users + count) as f64).sqrt();
        let modality_weight = p.add("modality_weight", &[users, count], Initial::Scaled(deviation), key)?;
        // The weights start on the simplex and may leave it.
        modality_weight.set(&mp4sr_ops::plain::softmax(&modality_weight.detach())?)?;
        let neighbours = neighbours(data, config.neighbours);
        Ok(Self {
            users,
            items: data.items,
            adjacency: adjacency(data)?,
            once: neighbour_matrix(&neighbours)?,
            neighbours,
            resampled: RefCell::default(),
            training: data.training.clone(),
            negatives: NegativeSampler::new(data)?,
            parameters,
            views,
            modality_weight,
            config,
        })
    }

    /// Lists of k entries, determined by the key: the neighbours, then random repeats of them.
    fn resampled_lists(&self, key: RngKey) -> Neighbours {
        let of_user = |(user, list): (usize, &Vec<(u32, u32)>)| {
            let (key, missing) = (key.fold_in_index(user as u64), self.config.neighbours - list.len());
            let repeat = |at: u64| list[(key.uniform(at) * list.len() as f64) as usize];
            let repeats = if list.is_empty() { 0 } else { missing as u64 };
            list.iter().copied().chain((0..repeats).map(repeat)).collect()
        };
        self.neighbours.iter().enumerate().map(of_user).collect()
    }

    /// The graph of users in an epoch.
    fn epoch_graph(&self, epoch_key: RngKey) -> Result<SparseMatrix> {
        if self.config.neighbour_lists == NeighbourLists::Once {
            return Ok(self.once.clone());
        }
        let mut kept = self.resampled.borrow_mut();
        match &*kept {
            Some((key, graph)) if *key == epoch_key => Ok(graph.clone()),
            _ => {
                let graph = neighbour_matrix(&self.resampled_lists(epoch_key.fold_in("neighbours")))?;
                *kept = Some((epoch_key, graph.clone()));
                Ok(graph)
            }
        }
    }

    /// t of all users, and the vectors of all items.
    fn vectors(&self) -> Result<(Tensor, Tensor)> {
        let d = self.config.width;
        let mut sides = Vec::new();
        for view in &self.views {
            let hidden = leaky_relu(&linear(&view.means, &view.hidden.weight, &view.hidden.bias)?)?;
            let feature = linear(&hidden, &view.output.weight, &view.output.bias)?;
            sides.push(Tensor::cat(&[normalize(&view.preference)?, normalize(&feature)?], 0)?);
        }
        // `propagate` gives the mean of the hops, which is scaled to their sum.
        let passed = (propagate(&self.adjacency, &Tensor::cat(&sides, 1)?, HOPS)? * (HOPS + 1) as f64)?;
        let mut of_users = Vec::new();
        let mut items = Tensor::zeros((self.items, d), passed.dtype(), passed.device())?;
        for (m, view) in self.views.iter().enumerate() {
            let own = passed.narrow(1, m * d, d)?;
            let (users, own_items) = (own.narrow(0, 0, self.users)?, own.narrow(0, self.users, self.items)?);
            trace::record(|| format!("users.{}", view.name), &users);
            trace::record(|| format!("items.{}", view.name), &own_items);
            of_users.push(users);
            items = (items + own_items)?;
        }
        if self.config.user_fusion == UserFusion::Summed {
            let sum = Tensor::stack(&of_users, 0)?.sum(0)?;
            let last = of_users.len() - 1;
            of_users[last] = sum;
        }
        let weighted =
            of_users.iter().enumerate().map(|(m, users)| users.broadcast_mul(&self.modality_weight.narrow(1, m, 1)?));
        let fused = Tensor::stack(&weighted.collect::<Result<Vec<_>>>()?, 0)?.sum(0)?;
        trace::record(|| "fused".to_owned(), &fused);
        trace::record(|| "item_vectors".to_owned(), &items);
        Ok((fused, items))
    }

    /// The vectors of all users: t, plus the weighted t of their neighbours.
    fn with_neighbours(fused: &Tensor, graph: &SparseMatrix) -> Result<Tensor> {
        let gathered = sparse_product(graph, fused)?;
        let users = (fused + &gathered)?;
        trace::record(|| "gathered".to_owned(), &gathered);
        trace::record(|| "user_vectors".to_owned(), &users);
        Ok(users)
    }

    /// The loss of a batch of events with a graph of users: `users` from 0, `positives` and `negatives` 1-based, all `[B]`.
    pub fn bpr_loss(
        &self,
        graph: &SparseMatrix,
        users: &[u32],
        positives: &[u32],
        negatives: &[u32],
    ) -> Result<Tensor> {
        let (fused, of_items) = self.vectors()?;
        let bpr = if trace::is_on() {
            bpr(&Self::with_neighbours(&fused, graph)?, &of_items, users, positives, negatives)?
        } else {
            // Of the graph of users, only the rows of the batch's users are needed.
            let distinct = DistinctItems::of_rows(users);
            let gathered = sparse_product(&graph.select_rows(&distinct.rows)?, &fused)?;
            let of_users = (gather(&fused, &distinct.rows)? + gathered)?;
            bpr(&of_users, &of_items, &distinct.inverse, positives, negatives)?
        };
        let bpr = (bpr / std::f64::consts::LN_2)?;
        let mut regularisation = self.modality_weight.sqr()?.mean_all()?;
        for view in &self.views {
            regularisation = (regularisation + gather(&view.preference, users)?.sqr()?.mean_all()?)?;
        }
        trace::record(|| "bpr".to_owned(), &bpr);
        trace::record(|| "regularisation".to_owned(), &regularisation);
        bpr + (regularisation * self.config.reg_weight)?
    }
}

impl Model for DualGnn {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn phases(&self) -> &[Phase] {
        &PHASES
    }

    fn loss(&self, _: &Phase, batch: &Batch, step: &Step) -> Result<Tensor> {
        let negatives = self.negatives.draw_all(&batch.users, step.key);
        self.bpr_loss(&self.epoch_graph(step.epoch_key)?, &batch.users, &batch.targets, &negatives)
    }

    fn scorer(&self, _: &Phase) -> Result<Box<dyn Scorer + '_>> {
        let (fused, items) = self.vectors()?;
        let users = Self::with_neighbours(&fused, &self.once)?;
        Ok(Box::new(VectorScorer::new("DualGNN", &users, &items, &self.training)?))
    }

    fn is_sequential(&self) -> bool {
        false
    }
    fn has_user_vectors(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Modality, Ragged, TrainingSequences};

    fn data() -> Data {
        let users: [&[u32]; 5] = [&[1, 2, 3, 2], &[3, 2], &[4], &[2, 3, 1], &[1]];
        let features = Ragged::new(vec![1.0; 8], 2, &[0, 1, 2, 3, 4]).unwrap();
        let modalities = vec![Modality { name: "text".to_owned(), features }];
        Data {
            items: 4,
            training: TrainingSequences::new(users).into(),
            modalities,
            categories: None,
            device: crate::Device::Cpu,
            group: None,
        }
    }

    #[test]
    fn neighbours_share_most_items_and_the_lower_number_wins_ties() {
        assert_eq!(
            neighbours(&data(), 2),
            [vec![(3, 3), (1, 2)], vec![(0, 2), (3, 2)], vec![], vec![(0, 3), (1, 2)], vec![(0, 1), (3, 1)]]
        );
    }

    #[test]
    fn lists_are_filled_with_uniform_repeats_of_their_own_entries() {
        let config =
            Config { width: 4, neighbours: 8, neighbour_lists: NeighbourLists::Resampled, ..Config::default() };
        let data = Data { items: 5, modalities: Vec::new(), ..data() };
        let features = Ragged::new(vec![1.0; 10], 2, &[0, 1, 2, 3, 4, 5]).unwrap();
        let data = Data { modalities: vec![Modality { name: "text".to_owned(), features }], ..data };
        let model = DualGnn::new(config, &data, RngKey::new(3)).unwrap();
        let rounds = 6000;
        let mut counts = [0u32; 5];
        for round in 0..rounds {
            let lists = model.resampled_lists(RngKey::new(9).fold_in_index(round));
            assert!(lists[2].is_empty());
            assert_eq!(lists[0][..3], model.neighbours[0], "the neighbours come first");
            assert!([0, 1, 3, 4].iter().all(|&user: &usize| lists[user].len() == 8));
            lists[0][3..].iter().for_each(|&(other, _)| counts[other as usize] += 1);
        }
        let draws = 5.0 * rounds as f64;
        for other in [1, 3, 4] {
            let count = f64::from(counts[other]);
            assert!((count - draws / 3.0).abs() < 5.0 * (draws * 2.0 / 9.0).sqrt(), "{other}: {count}");
        }
        let [a, b] = [1, 2].map(|seed| model.epoch_graph(RngKey::new(seed)).unwrap());
        assert_eq!((a.entries(), b.entries()), (model.once.entries(), model.once.entries()));
    }
}
