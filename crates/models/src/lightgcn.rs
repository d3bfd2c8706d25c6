//! LightGCN: embeddings of users and items, averaged over the layers of a graph convolution without weights.
//!
//! He et al., LightGCN: Simplifying and Powering Graph Convolution Network for Recommendation, SIGIR 2020 (arXiv 2002.02126), as
//! implemented in RecBole and MMRec: e^(k+1) = A e^(k) with A_ui = 1 / sqrt(d_u d_i) at the edges of the training set, the mean over the
//! layers 0 to K, scores by inner product, Bayesian personalised ranking against one uniform negative per event. Where sources differ in
//! the regularisation, a key of [`Config`] selects the reading.
//!
//! The propagation is linear, so one operator computes the mean of all layers, and its backward pass is the same routine.

use std::sync::Arc;

use candle_core::{D, Tensor, Var};
use mp4sr_ops::plain::softplus;
use mp4sr_ops::{Result, RngKey, SparseMatrix, gather, propagate};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::graph::{VectorScorer, adjacency, items_of_users};
use crate::interface::FINETUNE;
use crate::negatives::NegativeSampler;
use crate::recipe::{Reads, Recipe, Section, Supports};
use crate::{Batch, Data, Initial, Model, Parameters, Phase, Samples, Scorer, Step, Stop, TrainingSequences, trace};

/// How LightGCN is named, configured and built. Its regularisation takes the place of weight decay.
pub static RECIPE: Recipe = Recipe {
    name: "lightgcn",
    title: "LightGCN",
    summary: "A graph convolution over users and items without weights or features.",
    paper: "He et al., LightGCN: Simplifying and Powering Graph Convolution Network for Recommendation, 2020 (arXiv 2002.02126)",
    reads: Reads { features: false, transformer: false, categories: &[] },
    supports: Supports::NOTHING,
    section: Section::of::<Config>(),
    phase_reads: |_, _, _| true,
    defaults: "finetune.weight_decay = 0.0\nfinetune.epochs = 1000",
    presets: &[],
    grid: &[
        "finetune.learning_rate=1e-4,5e-4,1e-3",
        "finetune.batch=256,512,1024",
        "model.lightgcn.reg_weight=1e-4,1e-3,1e-2",
    ],
    renamed: &[],
    item_tables: |_| None,
    check: |_| Ok(()),
    phases: |_| Ok(PHASES.to_vec()),
    build: |settings, data, key| Ok(Box::new(LightGcn::new(settings.own()?, &data, key)?)),
};

const PHASES: [Phase; 1] = [Phase { name: FINETUNE, samples: Samples::Events, stop: Stop::Validation { warm_up: 0 } }];

/// How the embeddings of a batch are regularised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Regularisation {
    /// Half the mean of their squared norms (paper, authors' code).
    #[default]
    Squared,
    /// The norms of the batch's matrices over the batch size (RecBole, MMRec).
    Norm,
}

/// `[model.lightgcn]`: hyper-parameters of LightGCN.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// d, the width of the embeddings.
    #[schemars(range(min = 1, max = 4096))]
    pub width: usize,
    /// K, the number of layers.
    #[schemars(range(min = 0, max = 16))]
    pub layers: usize,
    /// The weight of the regularisation.
    #[schemars(range(min = 0.0, max = 1000.0))]
    pub reg_weight: f64,
    /// How the embeddings of a batch are regularised.
    pub regularisation: Regularisation,
}

impl Default for Config {
    fn default() -> Self {
        Self { width: 64, layers: 3, reg_weight: 1e-4, regularisation: Regularisation::default() }
    }
}

/// The model with its parameters and the graph of the training set.
#[derive(Debug)]
pub struct LightGcn {
    config: Config,
    users: usize,
    adjacency: SparseMatrix,
    /// `[I]`: the number of distinct users of each item.
    degrees: Vec<u32>,
    training: Arc<TrainingSequences>,
    negatives: NegativeSampler,
    parameters: Parameters,
    /// `[U, d]`.
    user_embedding: Var,
    /// `[I, d]`: row i-1 is item i.
    item_embedding: Var,
}

impl LightGcn {
    /// Creates a model whose initial parameters are determined by `key`.
    pub fn new(config: Config, data: &Data, key: RngKey) -> Result<Self> {
        let key = key.fold_in("initial");
        let users = data.training.users();
        let mut parameters = Parameters::new(&data.device);
        let mut table = |name: &str, rows: usize| {
            let bound = (6.0 / (rows + config.width) as f64).sqrt();
            parameters.add(name, &[rows, config.width], Initial::Within(bound), key)
        };
        let (user_embedding, item_embedding) = (table("user_embedding", users)?, table("item_embedding", data.items)?);
        let (adjacency, negatives) = (adjacency(data)?, NegativeSampler::new(data)?);
        let mut degrees = vec![0; data.items];
        items_of_users(data).iter().flatten().for_each(|&item| degrees[item as usize] += 1);
        let training = data.training.clone();
        Ok(Self { config, users, adjacency, degrees, training, negatives, parameters, user_embedding, item_embedding })
    }

    /// The vectors of all users and then all items, `[U + I, d]`.
    fn vectors(&self) -> Result<Tensor> {
        let tables = Tensor::cat(&[self.user_embedding.as_tensor(), self.item_embedding.as_tensor()], 0)?;
        let vectors = propagate(&self.adjacency, &tables, self.config.layers)?;
        if trace::is_on() {
            trace::record(|| "user_vectors".to_owned(), &vectors.narrow(0, 0, self.users)?);
            let items = vectors.dim(0)? - self.users;
            trace::record(|| "item_vectors".to_owned(), &vectors.narrow(0, self.users, items)?);
        }
        Ok(vectors)
    }

    /// The contribution of each item to the vector of a user who was not in the training data, `[I, d]`. The convolution gives such a user
    /// layers, although the user's own embedding is zero, while the layers of the items do not change. Layer k of a user with the items N
    /// is the sum over N of e_i^(k-1) / sqrt(|N| d_i), where d_i counts the new edge too.
    fn fold_in_shares(&self) -> Result<Tensor> {
        let layers = self.config.layers;
        let tables = Tensor::cat(&[self.user_embedding.as_tensor(), self.item_embedding.as_tensor()], 0)?;
        // The mean of the layers 0 to K-1, from which the user's layers 1 to K are computed.
        let below = propagate(&self.adjacency, &tables, layers - 1)?.detach();
        let items = below.narrow(0, self.users, below.dim(0)? - self.users)?;
        let share = |&degree: &u32| layers as f32 / (layers + 1) as f32 / ((degree + 1) as f32).sqrt();
        let shares = Tensor::from_iter(self.degrees.iter().map(share), items.device())?.unsqueeze(1)?;
        items.broadcast_mul(&shares)
    }

    /// The loss of a batch of events: `users` from 0, `positives` and `negatives` 1-based, all `[B]`.
    pub fn bpr_loss(&self, users: &[u32], positives: &[u32], negatives: &[u32]) -> Result<Tensor> {
        let vectors = self.vectors()?;
        let row = |items: &[u32]| items.iter().map(|item| item - 1).collect::<Vec<u32>>();
        let node = |items: &[u32]| items.iter().map(|item| self.users as u32 + item - 1).collect::<Vec<u32>>();
        let of_users = gather(&vectors, users)?;
        let score = |items: &[u32]| (&of_users * gather(&vectors, &node(items))?)?.sum(D::Minus1);
        let (positive, negative) = (score(positives)?, score(negatives)?);
        let bpr = softplus(&(&negative - &positive)?)?.mean_all()?;
        let tables = [
            gather(&self.user_embedding, users)?,
            gather(&self.item_embedding, &row(positives))?,
            gather(&self.item_embedding, &row(negatives))?,
        ];
        let regularisation = self.regularisation(&tables, users.len())?;
        trace::record(|| "positive".to_owned(), &positive);
        trace::record(|| "negative".to_owned(), &negative);
        trace::record(|| "bpr".to_owned(), &bpr);
        trace::record(|| "regularisation".to_owned(), &regularisation);
        bpr + (regularisation * self.config.reg_weight)?
    }

    /// The regularisation of the embeddings of a batch. A row that is used twice counts twice.
    fn regularisation(&self, tables: &[Tensor; 3], batch: usize) -> Result<Tensor> {
        let terms = tables.iter().map(|table| {
            let squared = table.sqr()?.sum_all()?;
            match self.config.regularisation {
                Regularisation::Squared => squared / (2 * batch) as f64,
                Regularisation::Norm => squared.sqrt()? / batch as f64,
            }
        });
        Tensor::stack(&terms.collect::<Result<Vec<_>>>()?, 0)?.sum_all()
    }
}

impl Model for LightGcn {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn phases(&self) -> &[Phase] {
        &PHASES
    }

    fn loss(&self, _: &Phase, batch: &Batch, step: &Step) -> Result<Tensor> {
        let negatives = self.negatives.draw_all(&batch.users, step.key);
        self.bpr_loss(&batch.users, &batch.targets, &negatives)
    }

    fn scorer(&self, _: &Phase) -> Result<Box<dyn Scorer + '_>> {
        let vectors = self.vectors()?.detach();
        let items = vectors.narrow(0, self.users, vectors.dim(0)? - self.users)?;
        let scorer = VectorScorer::new("LightGCN", &vectors.narrow(0, 0, self.users)?, &items, &self.training)?;
        // Without layers, the vector of a user does not depend on items.
        Ok(Box::new(if self.config.layers == 0 { scorer } else { scorer.with_fold_in(|| self.fold_in_shares()) }))
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
    use candle_core::Device;

    use super::*;
    use crate::{Query, TrainingSequences};

    /// Compares with a graph that has the new user as an additional row, whose embedding is zero and whose edges lead only to that user.
    #[test]
    fn a_new_user_has_the_vector_of_the_graph_with_that_user() {
        let users: [&[u32]; 3] = [&[1, 2, 4], &[2, 3], &[4, 2, 4, 5]];
        let data = Data {
            items: 5,
            training: TrainingSequences::new(users).into(),
            modalities: Vec::new(),
            categories: None,
            device: Device::Cpu,
            group: None,
        };
        for layers in [1, 3] {
            let config = Config { width: 4, layers, ..Config::default() };
            let model = LightGcn::new(config, &data, RngKey::new(3)).unwrap();
            let items = model.item_embedding.to_vec2::<f32>().unwrap();
            let tables = [model.user_embedding.to_vec2::<f32>().unwrap(), items].concat();
            let known = |user: usize, item: u32| users[user].contains(&item);
            let degree = |item: u32| (0..3).filter(|&user| known(user, item)).count() as f64;
            let of_user = |user: usize| (1..=5).filter(|&item| known(user, item)).count() as f64;
            // The layers of the three users and five items, and the new user's layer from the layer below of the items.
            let mut layer: Vec<Vec<f64>> =
                tables.iter().map(|row| row.iter().map(|&v| f64::from(v)).collect()).collect();
            let mut expected = vec![0.0; 4];
            for _ in 0..layers {
                for item in [2, 5] {
                    let weight = 1.0 / (2.0 * (degree(item) + 1.0)).sqrt();
                    let own = &layer[2 + item as usize];
                    expected.iter_mut().zip(own).for_each(|(sum, value)| *sum += weight * value / (layers + 1) as f64);
                }
                let mut next = vec![vec![0.0; 4]; 8];
                for user in 0..3 {
                    for item in (1..=5).filter(|&item| known(user, item)) {
                        let (weight, row) = (1.0 / (of_user(user) * degree(item)).sqrt(), 2 + item as usize);
                        for at in 0..4 {
                            next[user][at] += weight * layer[row][at];
                            next[row][at] += weight * layer[user][at];
                        }
                    }
                }
                layer = next;
            }
            let scorer = model.scorer(&PHASES[0]).unwrap();
            assert!(!scorer.needs_known_user());
            let queries = [Query { user: Some(1), history: &[9] }, Query::of_history(&[2, 5, 2])];
            let found = scorer.queries(&queries).unwrap().to_vec2::<f32>().unwrap();
            for (found, expected) in found[1].iter().zip(&expected) {
                assert!((f64::from(*found) - expected).abs() < 1e-6, "{layers}: {found} {expected}");
            }
            let row = scorer.queries(&queries[..1]).unwrap().to_vec2::<f32>().unwrap();
            assert_eq!(found[0], row[0], "a known user keeps the row");
            assert!(scorer.has_seen(1) && !scorer.has_seen(3));
        }
        // A user of the dataset without training events counts as new, except in a model without fold-in.
        let training = TrainingSequences::new([&[1, 2, 4][..], &[], &[4, 2, 4, 5]]);
        let data = Data { training: training.into(), ..data };
        let model = LightGcn::new(Config { width: 4, ..Config::default() }, &data, RngKey::new(3)).unwrap();
        let scorer = model.scorer(&PHASES[0]).unwrap();
        let of_user = |user| scorer.queries(&[Query { user, history: &[2, 5] }]).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(of_user(Some(1)), of_user(None));
        assert_ne!(of_user(Some(2)), of_user(None));
        assert!(!scorer.has_seen(1) && scorer.has_seen(2));
        let none = LightGcn::new(Config { layers: 0, ..Config::default() }, &data, RngKey::new(3)).unwrap();
        let scorer = none.scorer(&PHASES[0]).unwrap();
        assert!(scorer.needs_known_user() && scorer.queries(&[Query::of_history(&[2])]).is_err());
    }
}
