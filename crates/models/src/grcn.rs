//! GRCN: a graph convolution over ids whose edges are weighted, and pruned, by how well the contents of items match the tastes of users.
//!
//! Wei et al., Graph-Refined Convolutional Network for Multimedia Recommendation with Implicit Feedback, ACM MM 2020 (arXiv 2111.02036), as
//! in the authors' code and in MMRec. For each modality, a user's prototype is routed towards the user's items: p <- unit(p + sum of a f),
//! where a is the softmax of p . f over the items. The softmaxes of p . f over either end of the edges give the contents and, multiplied by
//! the confidence of the node that a message leaves, the weights of the edges: the largest over the modalities, if it is positive. Two
//! layers propagate the ids over these edges. The vectors are ids and contents side by side. The loss is Bayesian personalised ranking.
//! Where sources differ, a key of [`Config`] selects the reading: `routing = 0` is what the published code computes, in which messages
//! never reach users.

use std::sync::Arc;

use candle_core::{Tensor, Var};
use mp4sr_ops::plain::leaky_relu;
use mp4sr_ops::{Edges, Result, RngKey, Side, edge_dot, edge_softmax, edge_sum, gather, linear, normalize};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::features::{RowMean, expect_modalities, mean_rows};
use crate::graph::{VectorScorer, bpr, edges, rows_of};
use crate::interface::FINETUNE;
use crate::recipe::{Reads, Recipe, Section, Supports};
use crate::{
    Batch, Data, Initial, Model, NegativeSampler, Parameters, Phase, Samples, Scorer, Step, Stop, TrainingSequences,
    trace,
};

/// How GRCN is named, configured and built. Its regularisation takes the place of weight decay.
pub static RECIPE: Recipe = Recipe {
    name: "grcn",
    title: "GRCN",
    summary: "A graph convolution over users and items whose edges are refined by the items' features.",
    paper: "Wei et al., Graph-Refined Convolutional Network for Multimedia Recommendation, 2020 (arXiv 2111.02036)",
    reads: Reads { features: true, transformer: false, categories: &[] },
    supports: Supports::NOTHING,
    section: Section::of::<Config>(),
    phase_reads: |_, _, _| true,
    defaults: "finetune.weight_decay = 0.0\nfinetune.epochs = 1000",
    presets: &[],
    grid: &[
        "finetune.learning_rate=1e-4,5e-4,1e-3",
        "finetune.batch=256,512,1024",
        "model.grcn.reg_weight=1e-4,1e-3,1e-2",
    ],
    renamed: &[],
    item_tables: |_| None,
    check: |_| Ok(()),
    phases: |_| Ok(PHASES.to_vec()),
    build: |settings, data, key| Ok(Box::new(Grcn::new(settings.own()?, &data, key)?)),
};

const PHASES: [Phase; 1] = [Phase { name: FINETUNE, samples: Samples::Events, stop: Stop::Validation { warm_up: 0 } }];

/// The number of layers of the convolution over ids.
const LAYERS: usize = 2;

/// How the weights that the modalities give an edge are combined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Weights {
    /// The largest weight, multiplied by the confidence of the node that the message leaves.
    #[default]
    Confidence,
    /// The largest weight.
    Max,
    /// The mean of the weights.
    Mean,
}

/// What the vectors of users and items are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Fusion {
    /// The convolved ids and the contents of all modalities, side by side.
    #[default]
    Concat,
    /// The convolved ids.
    Id,
}

/// `[model.grcn]`: hyper-parameters of GRCN.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// d, the width of the ids.
    #[schemars(range(min = 1, max = 4096))]
    pub width: usize,
    /// c, the width of a modality's content.
    #[schemars(range(min = 1, max = 4096))]
    pub content_width: usize,
    /// T, the number of routing rounds; 0 gives what the published code computes.
    #[schemars(range(min = 0, max = 16))]
    pub routing: usize,
    /// How the weights that the modalities give an edge are combined.
    pub weights: Weights,
    /// Whether edges of negative weight are removed.
    pub pruning: bool,
    /// What the vectors of users and items are.
    pub fusion: Fusion,
    /// The weight of the regularisation.
    #[schemars(range(min = 0.0, max = 1000.0))]
    pub reg_weight: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            width: 64,
            content_width: 64,
            routing: 3,
            weights: Weights::default(),
            pruning: true,
            fusion: Fusion::default(),
            reg_weight: 1e-3,
        }
    }
}

/// One modality.
#[derive(Debug)]
struct Content {
    name: String,
    /// The means of the items' rows, `[I, width]`.
    means: Tensor,
    /// `[width, c]`.
    weight: Var,
    /// `[c]`.
    bias: Var,
    /// `[U, c]`.
    preference: Var,
}

/// The model with its parameters and the graph of the training set.
#[derive(Debug)]
pub struct Grcn {
    config: Config,
    edges: Edges,
    training: Arc<TrainingSequences>,
    negatives: NegativeSampler,
    parameters: Parameters,
    /// `[U, d]`.
    users: Var,
    /// `[I, d]`: row i-1 is item i.
    items: Var,
    contents: Vec<Content>,
    /// The confidences of users, `[U, M]`, and of items, `[I, M]`.
    confidence: (Var, Var),
}

/// Values of both kinds of nodes, or of the messages to them: users, then items.
type Both = (Tensor, Tensor);

impl Grcn {
    /// Creates a model whose initial parameters are determined by `key`.
    pub fn new(config: Config, data: &Data, key: RngKey) -> Result<Self> {
        let key = key.fold_in("initial");
        expect_modalities(&data.modalities, data.items)?;
        let mut parameters = Parameters::new(&data.device);
        let p = &mut parameters;
        let (users, items, d, c) = (data.training.users(), data.items, config.width, config.content_width);
        let xavier = |a: usize, b: usize| Initial::Scaled((2.0 / (a + b) as f64).sqrt());
        let user_table = p.add("user_embedding", &[users, d], xavier(users + items, d), key)?;
        let item_table = p.add("item_embedding", &[items, d], xavier(users + items, d), key)?;
        let mut contents = Vec::new();
        for modality in &data.modalities {
            let (name, width) = (modality.name.clone(), modality.features.width());
            let preference = p.add(&format!("preference.{name}"), &[users, c], xavier(users, c), key)?;
            let weight = p.add(&format!("feature.{name}.weight"), &[width, c], xavier(width, c), key)?;
            // With a bias of zero, an item without rows would have a vector of zeros, whose normalisation has an exploding gradient.
            let bias = p.add(&format!("feature.{name}.bias"), &[c], Initial::Uniform(width), key)?;
            let means = mean_rows(&modality.features, RowMean::Mean, weight.device())?;
            contents.push(Content { name, means, weight, bias, preference });
        }
        let count = contents.len();
        let mut add = |name: &str, rows| p.add(name, &[rows, count], xavier(users + items, count), key);
        let confidence = (add("confidence.users", users)?, add("confidence.items", items)?);
        let (edges, negatives) = (edges(data)?, NegativeSampler::new(data)?);
        Ok(Self {
            config,
            edges,
            training: data.training.clone(),
            negatives,
            parameters,
            users: user_table,
            items: item_table,
            contents,
            confidence,
        })
    }

    /// The contents of users and items for one modality, and its weights of the messages to users and to items.
    fn content(&self, content: &Content) -> Result<(Both, Both)> {
        let mapped = linear(&content.means, &content.weight, &content.bias)?;
        let feature = normalize(&leaky_relu(&mapped)?)?;
        let mut prototype = normalize(&content.preference)?;
        for _ in 0..self.config.routing {
            let routes = edge_softmax(&edge_dot(&prototype, &feature, &self.edges)?, &self.edges, Side::Rows)?;
            prototype = normalize(&(prototype + edge_sum(&routes, &feature, &self.edges, Side::Rows)?)?)?;
        }
        let scores = edge_dot(&prototype, &feature, &self.edges)?;
        let to_user = edge_softmax(&scores, &self.edges, Side::Rows)?;
        let to_item = edge_softmax(&scores, &self.edges, Side::Columns)?;
        let name = &content.name;
        trace::record(|| format!("feature.{name}"), &feature);
        trace::record(|| format!("prototype.{name}"), &prototype);
        trace::record(|| format!("to_user.{name}"), &to_user);
        trace::record(|| format!("to_item.{name}"), &to_item);
        let users = (&prototype + edge_sum(&to_user, &feature, &self.edges, Side::Rows)?)?;
        let items = (&feature + edge_sum(&to_item, &prototype, &self.edges, Side::Columns)?)?;
        trace::record(|| format!("content_users.{name}"), &users);
        trace::record(|| format!("content_items.{name}"), &items);
        Ok(((users, items), (to_user, to_item)))
    }

    /// The weights of the messages that leave the nodes of a side, `[E]`, combined from those of the modalities.
    fn weights(&self, by_modality: &[Tensor], from: Side) -> Result<Tensor> {
        let all = Tensor::stack(by_modality, 1)?;
        let confidence = match from {
            Side::Rows => &self.confidence.0,
            Side::Columns => &self.confidence.1,
        };
        let weights = match self.config.weights {
            Weights::Confidence => (all * gather(confidence, &self.edges.ends(from))?)?.max(1)?,
            Weights::Max => all.max(1)?,
            Weights::Mean => all.mean(1)?,
        };
        if self.config.pruning { weights.relu() } else { Ok(weights) }
    }

    /// The vectors of all users and all items.
    fn vectors(&self) -> Result<Both> {
        let (mut of_users, mut of_items) = (Vec::new(), Vec::new());
        let (mut to_users, mut to_items) = (Vec::new(), Vec::new());
        for content in &self.contents {
            let ((users, items), (to_user, to_item)) = self.content(content)?;
            of_users.push(users);
            of_items.push(items);
            to_users.push(to_user);
            to_items.push(to_item);
        }
        let (to_user, to_item) = (self.weights(&to_users, Side::Columns)?, self.weights(&to_items, Side::Rows)?);
        trace::record(|| "edge.to_user".to_owned(), &to_user);
        trace::record(|| "edge.to_item".to_owned(), &to_item);
        let (mut users, mut items) = (normalize(&self.users)?, normalize(&self.items)?);
        let (mut user_sum, mut item_sum) = (users.clone(), items.clone());
        for _ in 0..LAYERS {
            let next = edge_sum(&to_user, &items, &self.edges, Side::Rows)?;
            items = edge_sum(&to_item, &users, &self.edges, Side::Columns)?;
            users = next;
            (user_sum, item_sum) = ((user_sum + &users)?, (item_sum + &items)?);
        }
        trace::record(|| "id_users".to_owned(), &user_sum);
        trace::record(|| "id_items".to_owned(), &item_sum);
        if self.config.fusion == Fusion::Concat {
            of_users.insert(0, user_sum);
            of_items.insert(0, item_sum);
            (user_sum, item_sum) = (Tensor::cat(&of_users, 1)?, Tensor::cat(&of_items, 1)?);
        }
        trace::record(|| "user_vectors".to_owned(), &user_sum);
        trace::record(|| "item_vectors".to_owned(), &item_sum);
        Ok((user_sum, item_sum))
    }

    /// The loss of a batch of events: `users` from 0, `positives` and `negatives` 1-based, all `[B]`.
    pub fn bpr_loss(&self, users: &[u32], positives: &[u32], negatives: &[u32]) -> Result<Tensor> {
        let (of_users, of_items) = self.vectors()?;
        let bpr = bpr(&of_users, &of_items, users, positives, negatives)?;
        let mean = |table: &Var, rows: &[u32]| gather(table, rows)?.sqr()?.mean_all();
        let items = (mean(&self.items, &rows_of(positives))? + mean(&self.items, &rows_of(negatives))?)?;
        let mut regularisation = (mean(&self.users, users)? + (items * 0.5)?)?;
        for content in &self.contents {
            regularisation = (regularisation + mean(&content.preference, users)?)?;
        }
        trace::record(|| "bpr".to_owned(), &bpr);
        trace::record(|| "regularisation".to_owned(), &regularisation);
        bpr + (regularisation * self.config.reg_weight)?
    }
}

impl Model for Grcn {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn phases(&self) -> &[Phase] {
        &PHASES
    }

    fn trains(&self, _: &Phase, name: &str) -> bool {
        self.config.weights == Weights::Confidence || !name.starts_with("confidence.")
    }

    fn loss(&self, _: &Phase, batch: &Batch, step: &Step) -> Result<Tensor> {
        self.bpr_loss(&batch.users, &batch.targets, &self.negatives.draw_all(&batch.users, step.key))
    }

    fn scorer(&self, _: &Phase) -> Result<Box<dyn Scorer + '_>> {
        let (users, items) = self.vectors()?;
        Ok(Box::new(VectorScorer::new("GRCN", &users, &items, &self.training)?))
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

    fn vectors(users: &[&[u32]], config: &Config) -> (Vec<Vec<f32>>, Vec<Vec<f32>>) {
        let key = RngKey::new(2);
        let values: Vec<f32> = (0..3 * 8).map(|at| key.normal(at) as f32).collect();
        let features = Ragged::new(values, 3, &(0..=8).collect::<Vec<_>>()).unwrap();
        let modalities = vec![Modality { name: "text".to_owned(), features }];
        let training = TrainingSequences::new(users.iter().copied()).into();
        let data = Data { items: 8, training, modalities, categories: None, device: crate::Device::Cpu, group: None };
        let (users, items) = Grcn::new(config.clone(), &data, RngKey::new(3)).unwrap().vectors().unwrap();
        (users.to_vec2().unwrap(), items.to_vec2().unwrap())
    }

    #[test]
    fn a_node_without_edges_keeps_its_own_vector_and_repeated_events_are_one_edge() {
        let config = Config { width: 4, content_width: 5, ..Config::default() };
        let (users, items) = vectors(&[&[1, 2], &[], &[2, 3, 2]], &config);
        let (once, _) = vectors(&[&[1, 2], &[], &[2, 3]], &config);
        assert_eq!(users, once);
        let (other_users, other_items) = vectors(&[&[1, 4], &[], &[2, 3]], &config);
        assert_eq!((&users[1], &items[7]), (&other_users[1], &other_items[7]), "no edge reaches them");
        assert_ne!(users[0], other_users[0]);
        let length = |vector: &[f32]| vector.iter().map(|x| x * x).sum::<f32>().sqrt();
        assert!((length(&users[1][..4]) - 1.0).abs() < 1e-5 && (length(&items[7][4..]) - 1.0).abs() < 1e-5);
    }
}
