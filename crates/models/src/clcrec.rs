//! CLCRec: contrastive learning of contents that can replace the ids of items without events.
//!
//! Wei et al., Contrastive Learning for Cold-Start Recommendation, ACM MM 2021 (arXiv 2107.05315), as in the authors' code. A content f is
//! computed by two maps from the unit vectors of the item's modalities side by side. R-E contrasts the id of an event's item with the
//! contents of the item and of K negatives; U-I contrasts the user with their ids, some of which are replaced by contents. Items with few
//! training events are scored by their contents, the others by their ids. Where sources differ, a key of [`Config`] selects the reading.
//!
//! The contents of all items are computed once per step; the scores of sampled items are inner products that do not copy their rows.

use std::sync::Arc;

use candle_core::{D, Tensor, Var};
use mp4sr_ops::plain::leaky_relu;
use mp4sr_ops::{Error, Result, RngKey, gather, linear, normalize, picked_dot};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::features::{RowMean, expect_modalities, mean_rows};
use crate::graph::{VectorScorer, items_of_users, rows_of};
use crate::interface::FINETUNE;
use crate::maps::Linear;
use crate::recipe::{ModelSettings, Reads, Recipe, Section, Supports};
use crate::{Batch, Data, Initial, Model, Parameters, Phase, Samples, Scorer, Step, Stop, TrainingSequences, trace};

/// How CLCRec is named, configured and built. Its regularisation takes the place of weight decay.
pub static RECIPE: Recipe = Recipe {
    name: "clcrec",
    title: "CLCRec",
    summary: "Ids of users and items, and contents that replace the ids of cold items.",
    paper: "Wei et al., Contrastive Learning for Cold-Start Recommendation, 2021 (arXiv 2107.05315)",
    reads: Reads { features: true, transformer: false, categories: &[] },
    supports: Supports::NOTHING,
    section: Section::of::<Config>(),
    phase_reads: |_, _, _| true,
    defaults: "finetune.weight_decay = 0.0\nfinetune.epochs = 1000\nfinetune.batch = 256",
    presets: &[],
    grid: &[
        "finetune.learning_rate=1e-4,5e-4,1e-3",
        "finetune.batch=256,512,1024",
        "model.clcrec.reg_weight=1e-4,1e-3,1e-2",
    ],
    renamed: &[],
    item_tables,
    check: |_| Ok(()),
    phases: |_| Ok(PHASES.to_vec()),
    build: |settings, data, key| Ok(Box::new(ClcRec::new(settings.own()?, &data, key)?)),
};

/// A new item has no events, so it is scored by its content unless `cold_events` is 0.
fn item_tables(settings: &ModelSettings<'_>) -> Option<&'static [&'static str]> {
    let config: Config = settings.own().ok()?;
    (config.cold_events > 0).then_some(&["item_embedding"])
}

const PHASES: [Phase; 1] = [Phase { name: FINETUNE, samples: Samples::Events, stop: Stop::Validation { warm_up: 0 } }];

/// Which items negatives are drawn from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Negatives {
    /// From all items.
    #[default]
    All,
    /// From items that are not cold (authors' code).
    Warm,
}

/// Which items are ranked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Candidates {
    /// All items (MP4SR's interpretation).
    #[default]
    All,
    /// Cold items come before all others (authors' code).
    Cold,
}

/// `[model.clcrec]`: hyper-parameters of CLCRec.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// d, the width of ids and contents.
    #[schemars(range(min = 1, max = 4096))]
    pub width: usize,
    /// The hidden width between the two linear maps that compute contents.
    #[schemars(range(min = 1, max = 16384))]
    pub hidden: usize,
    /// lambda, the weight of R-E; the weight of U-I is 1 - lambda.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub lambda: f64,
    /// tau, the temperature of both losses.
    #[schemars(range(min = 0.0001, max = 100.0))]
    pub temperature: f64,
    /// K, the number of negatives per event; fewer if the user has fewer items left.
    #[schemars(range(min = 1, max = 100_000))]
    pub negatives: usize,
    /// Which items negatives are drawn from.
    pub negative_items: Negatives,
    /// rho, the probability that the content replaces an item's id in U-I.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub replacement: f64,
    /// The weight of the regularisation.
    #[schemars(range(min = 0.0, max = 1000.0))]
    pub reg_weight: f64,
    /// The number of training events below which an item is cold, so that it is scored by its content.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub cold_events: usize,
    /// Which items are ranked.
    pub candidates: Candidates,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            width: 64,
            hidden: 256,
            lambda: 0.5,
            temperature: 1.0,
            negatives: 128,
            negative_items: Negatives::default(),
            replacement: 0.5,
            reg_weight: 1e-3,
            cold_events: 10,
            candidates: Candidates::default(),
        }
    }
}

/// The items of a step's samples: for each sample its own item, then its negatives.
#[derive(Clone, Debug)]
pub struct Sampled {
    /// `[B, 1 + K]`, 1-based; 0 if a user has no more negatives.
    pub items: Vec<u32>,
    /// `[B, 1 + K]`: whether the content replaces the id.
    pub replaced: Vec<bool>,
}

/// The model with its parameters and the items' features.
#[derive(Debug)]
pub struct ClcRec {
    config: Config,
    count: usize,
    /// c, the unit means of the items' rows by modality side by side, `[I, sum of widths]`.
    features: Tensor,
    training: Arc<TrainingSequences>,
    /// The number of training events of each item.
    events: Vec<usize>,
    /// The rows that negatives are drawn from, ascending.
    pool: Vec<u32>,
    /// The rows of the items that each user has, ascending.
    seen: Vec<Vec<u32>>,
    parameters: Parameters,
    /// `[U, d]`.
    users: Var,
    /// `[I, d]`: row i-1 is item i.
    items: Var,
    hidden: Linear,
    output: Linear,
}

impl ClcRec {
    /// Creates a model whose initial parameters are determined by `key`.
    pub fn new(config: Config, data: &Data, key: RngKey) -> Result<Self> {
        let key = key.fold_in("initial");
        expect_modalities(&data.modalities, data.items)?;
        let mut parameters = Parameters::new(&data.device);
        let p = &mut parameters;
        let (users, d) = (data.training.users(), config.width);
        let deviation = Initial::Scaled((2.0 / (users + data.items + d) as f64).sqrt());
        let user_table = p.add("user_embedding", &[users, d], deviation, key)?;
        let items = p.add("item_embedding", &[data.items, d], deviation, key)?;
        let unit =
            |modality: &crate::Modality| normalize(&mean_rows(&modality.features, RowMean::Mean, items.device())?);
        let parts = data.modalities.iter().map(unit).collect::<Result<Vec<_>>>()?;
        let features = Tensor::cat(&parts, 1)?;
        let mut map = |name: &str, a: usize, b: usize| {
            let weight = p.add(&format!("{name}.weight"), &[a, b], Initial::Uniform(a), key)?;
            Ok::<_, Error>(Linear { weight, bias: p.add(&format!("{name}.bias"), &[b], Initial::Uniform(a), key)? })
        };
        let hidden = map("feature.hidden", features.dim(1)?, config.hidden)?;
        let output = map("feature.output", config.hidden, d)?;
        let mut events = vec![0; data.items];
        data.training.items.iter().for_each(|&item| events[item as usize - 1] += 1);
        let warm = |row: &u32| config.negative_items == Negatives::All || events[*row as usize] >= config.cold_events;
        let pool: Vec<u32> = (0..data.items as u32).filter(warm).collect();
        if pool.is_empty() {
            return Err(Error::Msg(format!(
                "no item has {} training events, and with `model.clcrec.negative_items` = \"warm\" negatives are drawn from such items \
                 only; lower `model.clcrec.cold_events`",
                config.cold_events
            )));
        }
        let seen: Vec<Vec<u32>> = items_of_users(data);
        for (row, own) in seen.iter().enumerate().filter(|(_, own)| !own.is_empty()) {
            if own.iter().filter(|item| pool.binary_search(item).is_ok()).count() >= pool.len() {
                let user = row + 1;
                return Err(Error::Msg(format!(
                    "user {user} has training events with all {} items that negatives are drawn from; use a dataset with more items",
                    pool.len()
                )));
            }
        }
        Ok(Self {
            config,
            count: data.items,
            features,
            training: data.training.clone(),
            events,
            pool,
            seen,
            parameters,
            users: user_table,
            items,
            hidden,
            output,
        })
    }

    /// Draws at most K different items that `user` has no training event with, uniformly, determined by the key.
    fn negatives(&self, user: u32, key: RngKey) -> Vec<u32> {
        let (seen, pool, k) = (&self.seen[user as usize], &self.pool, self.config.negatives);
        let is_open = |row: u32| seen.binary_search(&row).is_err();
        if 2 * (k + seen.len()) > pool.len() {
            let order = key.fold_in("order").permutation(pool.len());
            return order
                .into_iter()
                .map(|at| pool[at as usize])
                .filter(|&row| is_open(row))
                .take(k)
                .map(|row| row + 1)
                .collect();
        }
        // Each draw is valid with a probability of at least one half.
        let mut drawn = std::collections::HashSet::with_capacity(k);
        let mut items = Vec::with_capacity(k);
        for at in 0.. {
            let row = pool[(key.uniform(at) * pool.len() as f64) as usize];
            if is_open(row) && drawn.insert(row) {
                items.push(row + 1);
                if items.len() == k {
                    break;
                }
            }
        }
        items
    }

    /// Draws the negatives and replacements of a batch, determined by the key.
    pub fn sample(&self, users: &[u32], positives: &[u32], key: RngKey) -> Sampled {
        let (negatives, replacement, wide) =
            (key.fold_in("negatives"), key.fold_in("replaced"), 1 + self.config.negatives);
        let mut items = Vec::with_capacity(users.len() * wide);
        for (at, (&user, &positive)) in users.iter().zip(positives).enumerate() {
            let start = items.len();
            items.push(positive);
            items.extend(self.negatives(user, negatives.fold_in_index(at as u64)));
            items.resize(start + wide, 0);
        }
        let replaced = (0..items.len() as u64).map(|at| replacement.uniform(at) < self.config.replacement).collect();
        Sampled { items, replaced }
    }

    /// f of all items, `[I, d]`.
    fn contents(&self) -> Result<Tensor> {
        let hidden = leaky_relu(&linear(&self.features, &self.hidden.weight, &self.hidden.bias)?)?;
        let contents = linear(&hidden, &self.output.weight, &self.output.bias)?;
        trace::record(|| "content".to_owned(), &contents);
        Ok(contents)
    }

    /// The loss of a batch of events of `users`, from 0.
    pub fn event_loss(&self, users: &[u32], sampled: &Sampled) -> Result<Tensor> {
        let (count, wide) = (users.len(), sampled.items.len() / users.len().max(1));
        let contents = self.contents()?;
        let rows: Vec<u32> = sampled.items.iter().map(|&item| item.saturating_sub(1)).collect();
        let closed: Vec<f32> =
            sampled.items.iter().map(|&item| if item == 0 { f32::NEG_INFINITY } else { 0.0 }).collect();
        let real = closed.iter().filter(|&&closed| closed >= 0.0).count();
        let closed =
            if real == rows.len() { None } else { Some(Tensor::from_vec(closed, (count, wide), contents.device())?) };
        let loss = |name: &str, logits: Tensor| -> Result<Tensor> {
            let logits = (logits / self.config.temperature)?;
            trace::record(|| format!("{name}_logits"), &logits);
            let own = logits.narrow(1, 0, 1)?;
            let open = closed.as_ref().map_or_else(|| Ok(logits.clone()), |closed| &logits + closed)?;
            let top = open.max_keepdim(1)?.detach();
            let all = (open.broadcast_sub(&top)?.exp()?.sum_keepdim(1)?.log()? + top)?;
            let rows = (all - own)?.squeeze(1)?;
            let mean = rows.mean_all()?;
            trace::record(|| format!("{name}_rows"), &rows);
            trace::record(|| name.to_owned(), &mean);
            Ok(mean)
        };
        let positives: Vec<u32> = rows.iter().step_by(wide.max(1)).copied().collect();
        let anchors = normalize(&gather(&self.items, &positives)?)?;
        let re = loss("re", picked_dot(&anchors, &normalize(&contents)?, &rows)?)?;
        let table = Tensor::cat(&[self.items.as_tensor(), &contents], 0)?;
        let stand_in = |(&row, &replaced): (&u32, &bool)| if replaced { row + self.count as u32 } else { row };
        let stand_ins: Vec<u32> = rows.iter().zip(&sampled.replaced).map(stand_in).collect();
        let of_users = gather(&self.users, users)?;
        let ui = loss("ui", picked_dot(&of_users, &table, &stand_ins)?)?;
        let regularisation = self.regularisation(&of_users, &sampled.items, real)?;
        trace::record(|| "regularisation".to_owned(), &regularisation);
        let lambda = self.config.lambda;
        ((re * lambda)? + (ui * (1.0 - lambda))?)? + (regularisation * self.config.reg_weight)?
    }

    /// Half the sum of the mean length of the users' vectors and that of the sampled items' ids, in which an item counts once per draw.
    fn regularisation(&self, of_users: &Tensor, sampled: &[u32], real: usize) -> Result<Tensor> {
        let length = |vectors: &Tensor| vectors.sqr()?.sum(D::Minus1)?.sqrt();
        let distinct = crate::data::distinct(sampled);
        let drawn: Vec<u32> = distinct.into_iter().filter(|&item| item > 0).collect();
        let mut draws = vec![0.0f32; self.count + 1];
        sampled.iter().for_each(|&item| draws[item as usize] += 1.0);
        let draws: Vec<f32> = drawn.iter().map(|&item| draws[item as usize]).collect();
        let draws = Tensor::from_vec(draws, drawn.len(), of_users.device())?;
        let items = ((length(&gather(&self.items, &rows_of(&drawn))?)? * draws)?.sum_all()? / real as f64)?;
        (length(of_users)?.mean_all()? + items)? * 0.5
    }
}

impl Model for ClcRec {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn phases(&self) -> &[Phase] {
        &PHASES
    }

    fn loss(&self, _: &Phase, batch: &Batch, step: &Step) -> Result<Tensor> {
        self.event_loss(&batch.users, &self.sample(&batch.users, &batch.targets, step.key))
    }

    fn scorer(&self, _: &Phase) -> Result<Box<dyn Scorer + '_>> {
        let table = Tensor::cat(&[self.items.as_tensor(), &self.contents()?], 0)?.detach();
        let is_cold = |row: usize| self.events[row] < self.config.cold_events;
        let rows: Vec<u32> =
            (0..self.count).map(|row| (if is_cold(row) { row + self.count } else { row }) as u32).collect();
        let items = gather(&table, &rows)?;
        if trace::is_on() {
            let numbers = |value: &dyn Fn(usize) -> f32| Tensor::from_iter((0..self.count).map(value), table.device());
            trace::record(|| "events".to_owned(), &numbers(&|row| self.events[row] as f32)?);
            trace::record(|| "cold".to_owned(), &numbers(&|row| f32::from(is_cold(row)))?);
        }
        let users = self.users.as_tensor().detach();
        if self.config.candidates == Candidates::All {
            return Ok(Box::new(VectorScorer::new("CLCRec", &users, &items, &self.training)?));
        }
        // One additional coordinate puts warm items below all cold ones. No product of a user and an item is larger than the bound.
        let bound = longest(&users)? * longest(&items)?;
        let below = (0..self.count).map(|row| if is_cold(row) { 0.0 } else { -WARM_COORDINATE });
        let below = Tensor::from_iter(below, items.device())?.unsqueeze(1)?;
        let scale = Tensor::full((2.0 * bound + 1.0) / WARM_COORDINATE, (users.dim(0)?, 1), users.device())?;
        let (users, items) = (Tensor::cat(&[&users, &scale], 1)?, Tensor::cat(&[&items, &below], 1)?);
        Ok(Box::new(VectorScorer::new("CLCRec", &users, &items, &self.training)?))
    }

    fn is_sequential(&self) -> bool {
        false
    }
    fn has_user_vectors(&self) -> bool {
        true
    }
}

/// The size of the additional coordinate of warm items if cold items come before all others. It is so small that the cosine similarity of
/// items hardly depends on it; that of users is large instead.
const WARM_COORDINATE: f32 = 1.0 / (1 << 20) as f32;

/// The length of the longest row of a matrix.
fn longest(rows: &Tensor) -> Result<f32> {
    Ok(rows.sqr()?.sum(1)?.max(0)?.to_scalar::<f32>()?.sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Modality, Query, Ragged, TrainingSequences};

    fn model(config: Config) -> ClcRec {
        try_model(config).unwrap()
    }

    fn try_model(config: Config) -> Result<ClcRec> {
        let users: [&[u32]; 3] = [&[3, 1, 3], &[7], &[1, 7, 5]];
        let features = Ragged::new(vec![1.0; 24], 2, &(0..=12).collect::<Vec<_>>()).unwrap();
        let modalities = vec![Modality { name: "text".to_owned(), features }];
        let data = Data {
            items: 12,
            training: TrainingSequences::new(users).into(),
            modalities,
            categories: None,
            device: crate::Device::Cpu,
            group: None,
        };
        ClcRec::new(config, &data, RngKey::new(3))
    }

    #[test]
    fn negatives_need_an_item_that_is_not_cold() {
        let config = Config { negative_items: Negatives::Warm, cold_events: 3, ..Config::default() };
        let message = try_model(config).unwrap_err().to_string();
        assert!(message.contains("no item has 3 training events") && message.contains("cold_events"), "{message}");
    }

    #[test]
    fn negatives_are_different_and_uniform_over_the_items_that_the_user_does_not_have() {
        // Few negatives are drawn one by one, many from a permutation.
        for (k, drawn) in [(2, 2), (6, 6), (40, 10)] {
            let model = model(Config { negatives: k, ..Config::default() });
            let rounds = 20_000u64;
            let mut counts = [0u32; 13];
            for round in 0..rounds {
                let own = model.negatives(0, RngKey::new(4).fold_in_index(round));
                assert_eq!(own.len(), drawn);
                assert_eq!(crate::data::distinct(&own).len(), drawn, "no item twice");
                own.iter().for_each(|&item| counts[item as usize] += 1);
            }
            let share = drawn as f64 / 10.0;
            for item in 1..=12 {
                let expected = if [1, 3].contains(&item) { 0.0 } else { share * rounds as f64 };
                let error = (f64::from(counts[item]) - expected).abs();
                assert!(error <= 5.0 * (share * (1.0 - share) * rounds as f64).sqrt(), "{k}: item {item}: {counts:?}");
            }
        }
        let warm = model(Config { negatives: 2, negative_items: Negatives::Warm, cold_events: 1, ..Config::default() });
        assert_eq!(crate::data::distinct(&warm.negatives(0, RngKey::new(1))), [5, 7]);
    }

    #[test]
    fn cold_candidates_come_first_and_nothing_else_changes_their_order() {
        let [all, cold] = [Candidates::All, Candidates::Cold].map(|candidates| {
            let model = model(Config { candidates, cold_events: 1, ..Config::default() });
            let scorer = model.scorer(&PHASES[0]).unwrap();
            let query = Query { user: Some(0), history: &[3, 1] };
            let scores = scorer.queries(&[query]).unwrap().matmul(&scorer.items().t().unwrap()).unwrap();
            let scores: Vec<f32> = scores.flatten_all().unwrap().to_vec1().unwrap();
            let mut order: Vec<usize> = (1..=12).collect();
            order.sort_by(|&a, &b| scores[b - 1].total_cmp(&scores[a - 1]));
            let similarity = normalize(scorer.items()).unwrap();
            let similarity = similarity.matmul(&similarity.t().unwrap()).unwrap();
            (order, similarity.flatten_all().unwrap().to_vec1::<f32>().unwrap())
        });
        let is_warm = |item: &usize| [1, 3, 5, 7].contains(item);
        let (warm, others): (Vec<usize>, Vec<usize>) = all.0.iter().copied().partition(is_warm);
        assert_eq!(cold.0, [others, warm].concat());
        let error = all.1.iter().zip(&cold.1).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(error < 1e-5, "the similarity of items does not depend on the candidates: {error}");
    }

    #[test]
    fn contents_replace_the_expected_share_of_the_ids() {
        let model = model(Config { negatives: 4, replacement: 0.3, ..Config::default() });
        let users = vec![0; 4000];
        let sampled = model.sample(&users, &vec![3; 4000], RngKey::new(5));
        let count = sampled.replaced.iter().filter(|&&replaced| replaced).count() as f64;
        assert!((count - 6000.0).abs() < 5.0 * (20_000.0f64 * 0.21).sqrt(), "{count}");
        assert!(sampled.items.chunks(5).all(|own| own[0] == 3 && !own[1..].contains(&3)));
    }

    #[test]
    fn a_user_with_few_items_left_has_fewer_negatives_and_a_finite_loss() {
        let model = model(Config { negatives: 40, ..Config::default() });
        let sampled = model.sample(&[0, 2], &[3, 5], RngKey::new(5));
        assert_eq!(sampled.items.iter().filter(|&&item| item > 0).count(), 2 + 10 + 9);
        let loss = model.event_loss(&[0, 2], &sampled).unwrap();
        assert!(loss.to_scalar::<f32>().unwrap().is_finite());
        let gradients = loss.backward().unwrap();
        let gradients = model.parameters().gradients(&gradients).unwrap();
        assert_eq!(gradients.len(), model.parameters().names().count());
        for (name, gradient) in gradients {
            let values: Vec<f32> = gradient.flatten_all().unwrap().to_vec1().unwrap();
            assert!(values.iter().all(|value| value.is_finite()), "{name}");
        }
    }
}
