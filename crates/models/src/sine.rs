//! SINE: a few interests per user, chosen from a pool of prototypes.
//!
//! Tan et al., Sparse-Interest Network for Sequential Recommendation, WSDM 2021 (arXiv 2102.09267), as implemented in RecBole. Concept
//! activation: z = sum of a_t x_t with a = softmax of tanh(x W1) . w2, and the K prototypes with the largest inner product with z.
//! Intention assignment P(k|t) = softmax over k of unit(x_t W3) . LN(c_k), attention weighting P(t|k) = softmax over t of tanh(x W1_k) .
//! w2_k, interests delta_k = unit(sum of P(k|t) P(t|k) x_t). Aggregation: an intention u from y_t = sum of P(k|t) c_k, and v, the mixture
//! of the interests by softmax of delta_k . u / tau. The loss is the cross-entropy over all items by v.
//!
//! Without positions, everything before a softmax over a history depends only on the item and is computed once per distinct item.

use candle_core::{D, DType, Device, Tensor, Var};
use mp4sr_ops::plain::{sigmoid, softmax};
use mp4sr_ops::{
    PackedOffsets, Result, RngKey, additive_scores, cross_entropy, gather, layer_norm, normalize, product, segment_dot,
    segment_mix, segment_softmax, segment_sum,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::features::DistinctItems;
use crate::interface::FINETUNE;
use crate::maps::Norm;
use crate::recipe::{DECAY_GRID, ModelSettings, Reads, Recipe, Section, Supports};
use crate::{
    Batch, Buffer, BufferValues, Buffers, Initial, Model, Parameters, Phase, Query, Refused, Scorer, Step, trace,
};

/// How SINE is named, configured and built.
pub static RECIPE: Recipe = Recipe {
    name: "sine",
    title: "SINE",
    summary: "A few interests per user, chosen from a pool of prototypes.",
    paper: "Tan et al., Sparse-Interest Network for Sequential Recommendation, 2021 (arXiv 2102.09267)",
    reads: Reads { features: false, transformer: false, categories: &[] },
    supports: Supports::NOTHING,
    section: Section::of::<Config>(),
    phase_reads: |_, _, _| true,
    defaults: "",
    presets: &[],
    grid: DECAY_GRID,
    renamed: &[],
    item_tables: |_| None,
    check,
    phases: |_| Ok(PHASES.to_vec()),
    build: |settings, data, key| Ok(Box::new(Sine::new(settings.own()?, data.items, &data.device, key)?)),
};

const PHASES: [Phase; 1] = [Phase::of_prefixes(FINETUNE)];

/// Whether padding takes part in the softmaxes over a history.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Padding {
    /// A softmax runs over the history's own items (authors' code).
    #[default]
    Masked,
    /// Every history is padded to the longest length with one constant vector, which takes part like an item (RecBole).
    Unmasked,
}

/// `[model.sine]`: hyper-parameters of SINE.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// d, the width of the embeddings.
    #[schemars(range(min = 1, max = 4096))]
    pub width: usize,
    /// C, the number of prototypes.
    #[schemars(range(min = 1, max = 100_000))]
    pub prototypes: usize,
    /// K, the number of interests per user, at most the number of prototypes.
    #[schemars(range(min = 1, max = 64))]
    pub interests: usize,
    /// tau, the temperature of the mixture of interests.
    #[schemars(range(min = 0.0001, max = 100.0))]
    pub temperature: f64,
    /// n, the maximum number of items that the model reads: the most recent ones of a history.
    #[schemars(range(min = 1, max = 10000))]
    pub max_sequence_length: usize,
    /// rho, the weight of the regulariser, which makes prototypes orthogonal to each other.
    #[schemars(range(min = 0.0, max = 1000.0))]
    pub regularizer: f64,
    /// Whether learned position embeddings are added to the items when the softmaxes over a history are scored (authors' code). Without
    /// them, the order of a history has no effect.
    pub positions: bool,
    /// Whether padding takes part in the softmaxes over a history.
    pub padding: Padding,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            width: 64,
            prototypes: 50,
            interests: 3,
            temperature: 0.1,
            max_sequence_length: 50,
            regularizer: 0.0,
            positions: false,
            padding: Padding::default(),
        }
    }
}

fn check(settings: &ModelSettings<'_>) -> std::result::Result<(), Refused> {
    let config: Config = settings.own().map_err(|e| Refused::new("model.sine", &"...", e.to_string()))?;
    if config.interests <= config.prototypes {
        return Ok(());
    }
    let allowed = format!("at most model.sine.prototypes = {}", config.prototypes);
    Err(Refused::new("model.sine.interests", &config.interests, allowed))
}

const PADDING: &str = "padding";

/// The model with its parameters.
#[derive(Debug)]
pub struct Sine {
    config: Config,
    parameters: Parameters,
    buffers: Option<Buffers>,
    /// `[I, d]`: row i-1 is item i.
    items: Var,
    /// `[C, d]`.
    prototypes: Var,
    /// `[d, d]` and `[d]`: W1 and w2 of the concept activation.
    concept: (Var, Var),
    /// `[d, d]` and `[d]`: W3, used twice, and w4.
    intention: (Var, Var),
    /// `[K, d, d]` and `[K, d]`: W1_k and w2_k of the interests.
    interest: (Var, Var),
    concept_norm: Norm,
    intention_norm: Norm,
    /// `[n, d]`.
    position: Option<Var>,
}

/// The inputs of the softmaxes over a history, with a row per item; with positions, the scores are computed per token instead.
struct ItemParts {
    /// x, `[rows, d]`.
    vectors: Tensor,
    /// unit(x W3), `[rows, d]`.
    keys: Tensor,
    /// The concept's score, then those of the interests, `[rows, 1 + K]`; `None` if they depend on the position.
    scores: Option<Tensor>,
}

impl Sine {
    /// Creates a model over `items` items, whose initial parameters are determined by `key`.
    pub fn new(config: Config, items: usize, device: &Device, key: RngKey) -> Result<Self> {
        let key = key.fold_in("initial");
        let mut parameters = Parameters::new(device);
        let (d, k) = (config.width, config.interests);
        let xavier = |rows: usize| Initial::Scaled((2.0 / (rows + d) as f64).sqrt());
        let table = parameters.add("item_embedding", &[items, d], xavier(items + 1), key)?;
        let prototypes = parameters.add("prototype", &[config.prototypes, d], xavier(config.prototypes), key)?;
        let mut add = |name: &str, shape: &[usize]| parameters.add(name, shape, Initial::Scaled(0.01), key);
        let concept = (add("concept.w1", &[d, d])?, add("concept.w2", &[d])?);
        let intention = (add("intention.w3", &[d, d])?, add("intention.w4", &[d])?);
        let interest = (add("interest.w1", &[k, d, d])?, add("interest.w2", &[k, d])?);
        let position = config.positions.then(|| add("position", &[config.max_sequence_length, d])).transpose()?;
        let concept_norm = Norm::new(&mut parameters, "concept_norm", d, key)?;
        let intention_norm = Norm::new(&mut parameters, "intention_norm", d, key)?;
        let buffers = (config.padding == Padding::Unmasked).then(|| {
            let (key, deviation) = (key.fold_in(PADDING), (2.0 / (items + 1 + d) as f64).sqrt());
            let values = (0..d as u64).map(|at| (deviation * key.normal(at)) as f32).collect();
            Buffers::new([(PADDING.to_owned(), Buffer::f32(values, &[d]))])
        });
        Ok(Self {
            config,
            parameters,
            buffers,
            items: table,
            prototypes,
            concept,
            intention,
            interest,
            concept_norm,
            intention_norm,
            position,
        })
    }

    /// The item vectors, followed by the vector of the padding if it takes part.
    fn table(&self) -> Result<Tensor> {
        let Some(buffers) = &self.buffers else { return Ok(self.items.as_tensor().clone()) };
        let values = buffers.read(PADDING, |buffer| match &buffer.values {
            BufferValues::F32(values) => values.clone(),
            BufferValues::I64(_) => Vec::new(),
        })?;
        let padding = Tensor::from_vec(values, (1, self.config.width), self.items.device())?;
        Tensor::cat(&[self.items.as_tensor(), &padding], 0)
    }

    /// The batch's histories as item numbers, padded if the padding takes part; the number of the padding is the one after the last item.
    fn histories(&self, batch: &Batch) -> Result<(Vec<u32>, PackedOffsets)> {
        if self.buffers.is_none() {
            return Ok((batch.items.clone(), batch.offsets.clone()));
        }
        let (n, padding) = (self.config.max_sequence_length, self.items.dim(0)? as u32 + 1);
        let mut items = Vec::with_capacity(batch.count() * n);
        for j in 0..batch.count() {
            let own = batch.offsets.range(j);
            let missing = n - own.len();
            items.extend_from_slice(&batch.items[own]);
            items.extend(std::iter::repeat_n(padding, missing));
        }
        Ok((items, PackedOffsets::from_lengths(vec![n; batch.count()])?))
    }

    /// W1 of the concept and of the interests side by side, `[d, (1 + K) d]`, and their w2, `[1 + K, d]`.
    fn score_maps(&self) -> Result<(Tensor, Tensor)> {
        let mut maps = vec![self.concept.0.as_tensor().clone()];
        for k in 0..self.config.interests {
            maps.push(self.interest.0.get(k)?);
        }
        let w2 = Tensor::cat(&[&self.concept.1.unsqueeze(0)?, self.interest.1.as_tensor()], 0)?;
        Ok((Tensor::cat(&maps, 1)?, w2))
    }

    /// The parts of the items that are the rows of `vectors`.
    fn parts(&self, vectors: Tensor) -> Result<ItemParts> {
        let w3 = self.intention.0.as_tensor();
        if self.position.is_some() {
            return Ok(ItemParts { keys: normalize(&product(&vectors, w3)?)?, scores: None, vectors });
        }
        let (maps, w2) = self.score_maps()?;
        let width = maps.dim(1)?;
        let all = product(&vectors, &Tensor::cat(&[&maps, w3], 1)?)?;
        let scores = additive_scores(&all.narrow(1, 0, width)?.contiguous()?, &w2)?;
        let keys = normalize(&all.narrow(1, width, self.config.width)?.contiguous()?)?;
        Ok(ItemParts { keys, scores: Some(scores), vectors })
    }

    /// The user vector v of every history, `[B, d]`: token t is row `rows[t]` of the parts.
    fn users(&self, parts: &ItemParts, rows: &[u32], offsets: &PackedOffsets) -> Result<Tensor> {
        let (count, k, d) = (offsets.count(), self.config.interests, self.config.width);
        let x = gather(&parts.vectors, rows)?;
        let positions = self.position.as_ref().map(|table| gather(table, &offsets.positions())).transpose()?;
        let scores = if let Some(scores) = &parts.scores {
            gather(scores, rows)?
        } else {
            let (maps, w2) = self.score_maps()?;
            let placed = positions.as_ref().map_or_else(|| Ok(x.clone()), |positions| &x + positions)?;
            additive_scores(&product(&placed, &maps)?, &w2)?
        };
        let attention = segment_softmax(&scores, offsets)?;
        let concept_weights = attention.narrow(1, 0, 1)?.contiguous()?;
        let attention = attention.narrow(1, 1, k)?.contiguous()?;
        let concept = segment_sum(&concept_weights, &x, offsets)?;
        let concepts = self.concepts(&concept)?;
        let normed = layer_norm(&concepts, &self.concept_norm.weight, &self.concept_norm.bias)?;
        let assignment = softmax(&segment_dot(&gather(&parts.keys, rows)?, &normed, offsets)?)?;
        let interests = normalize(&segment_sum(&(&assignment * &attention)?, &x, offsets)?)?;

        let w3 = self.intention.0.as_tensor();
        let mut hidden = segment_mix(&assignment, &product(&concepts, w3)?, offsets)?;
        if let Some(positions) = &positions {
            hidden = (hidden + product(positions, w3)?)?;
        }
        let intention_weights = segment_softmax(&additive_scores(&hidden, &self.intention.1.unsqueeze(0)?)?, offsets)?;
        let shares = segment_sum(&intention_weights, &assignment, offsets)?;
        let pooled = concepts.reshape((count, k, d))?.broadcast_mul(&shares.unsqueeze(2)?)?.sum(1)?;
        let intention = layer_norm(&pooled, &self.intention_norm.weight, &self.intention_norm.bias)?;
        let interests = interests.reshape((count, k, d))?;
        let similar = interests.broadcast_mul(&intention.unsqueeze(1)?)?.sum(D::Minus1)?;
        let mixture = softmax(&(similar / self.config.temperature)?)?;
        let user = interests.broadcast_mul(&mixture.unsqueeze(2)?)?.sum(1)?;
        for (name, value) in [
            ("concept_weights", &concept_weights),
            ("concept", &concept),
            ("assignment", &assignment),
            ("attention", &attention),
            ("interests", &interests),
            ("intention_weights", &intention_weights),
            ("intention", &intention),
            ("mixture", &mixture),
            ("user", &user),
        ] {
            trace::record(|| name.to_owned(), value);
        }
        Ok(user)
    }

    /// c_k = sigmoid(s_k) C_k of the K prototypes nearest to each concept, the nearest one last: `[B K, d]`. The choice itself has
    /// no gradient.
    fn concepts(&self, concept: &Tensor) -> Result<Tensor> {
        let k = self.config.interests;
        let scores = product(&concept.detach(), &self.prototypes.detach().t()?.contiguous()?)?;
        let mut chosen = Vec::with_capacity(concept.dim(0)? * k);
        for row in scores.to_vec2::<f32>()? {
            let mut order: Vec<u32> = (0..row.len() as u32).collect();
            let score = |&at: &u32| row[at as usize];
            order.sort_by(|a, b| score(a).total_cmp(&score(b)).then(b.cmp(a)));
            chosen.extend_from_slice(&order[order.len() - k..]);
        }
        if trace::is_on() {
            trace::record(|| "prototype_scores".to_owned(), &scores);
            let rows = Tensor::from_slice(&chosen, (concept.dim(0)?, k), concept.device())?.to_dtype(DType::F32)?;
            trace::record(|| "chosen".to_owned(), &rows);
        }
        let kept = gather(&self.prototypes, &chosen)?;
        let own: Vec<u32> = (0..chosen.len()).map(|at| (at / k) as u32).collect();
        let scores = (&kept * gather(concept, &own)?)?.sum_keepdim(D::Minus1)?;
        kept.broadcast_mul(&sigmoid(&scores)?)
    }

    /// R: half the sum of squares of the covariances of different prototypes.
    fn regularizer(&self) -> Result<Tensor> {
        let centred = self.prototypes.broadcast_sub(&self.prototypes.mean_keepdim(1)?)?;
        let covariance = (product(&centred, &centred.t()?.contiguous()?)? / self.config.width as f64)?;
        let variances = (centred.sqr()?.sum(1)? / self.config.width as f64)?;
        (covariance.sqr()?.sum_all()? - variances.sqr()?.sum_all()?)? * 0.5
    }

    /// The loss of a batch.
    pub fn finetune_loss(&self, batch: &Batch) -> Result<Tensor> {
        let (items, offsets) = self.histories(batch)?;
        let distinct = DistinctItems::of(&items);
        let parts = self.parts(gather(&self.table()?, &distinct.rows)?)?;
        let users = self.users(&parts, &distinct.inverse, &offsets)?;
        let targets: Vec<u32> = batch.targets.iter().map(|target| target - 1).collect();
        let rows = cross_entropy(&users, self.items.as_tensor(), &targets, 1.0)?;
        let main = rows.mean_all()?;
        trace::record(|| "cross_entropy_rows".to_owned(), &rows);
        trace::record(|| "cross_entropy".to_owned(), &main);
        if self.config.regularizer <= 0.0 && !trace::is_on() {
            return Ok(main);
        }
        let regularizer = self.regularizer()?;
        trace::record(|| "regularizer".to_owned(), &regularizer);
        main + (regularizer * self.config.regularizer)?
    }
}

impl Model for Sine {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn buffers(&self) -> Option<&Buffers> {
        self.buffers.as_ref()
    }

    fn phases(&self) -> &[Phase] {
        &PHASES
    }

    fn max_sequence_length(&self) -> usize {
        self.config.max_sequence_length
    }

    fn loss(&self, _: &Phase, batch: &Batch, _: &Step) -> Result<Tensor> {
        self.finetune_loss(batch)
    }

    fn scorer(&self, _: &Phase) -> Result<Box<dyn Scorer + '_>> {
        let parts = self.parts(self.table()?.detach())?;
        Ok(Box::new(SineScorer { model: self, parts, items: self.items.as_tensor().detach() }))
    }
}

struct SineScorer<'a> {
    model: &'a Sine,
    /// The parts of all items.
    parts: ItemParts,
    items: Tensor,
}

impl Scorer for SineScorer<'_> {
    fn items(&self) -> &Tensor {
        &self.items
    }

    fn queries(&self, queries: &[Query<'_>]) -> Result<Tensor> {
        let batch = Batch::of_queries(queries, self.model.config.max_sequence_length)?;
        let (items, offsets) = self.model.histories(&batch)?;
        let rows: Vec<u32> = items.iter().map(|item| item - 1).collect();
        Ok(self.model.users(&self.parts, &rows, &offsets)?.detach())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users(config: &Config, histories: &[&[u32]]) -> Vec<Vec<f32>> {
        let model =
            Sine::new(Config { width: 8, prototypes: 6, ..config.clone() }, 20, &Device::Cpu, RngKey::new(3)).unwrap();
        let scorer = model.scorer(&PHASES[0]).unwrap();
        let queries: Vec<Query<'_>> = histories.iter().map(|history| Query::of_history(history)).collect();
        scorer.queries(&queries).unwrap().to_vec2().unwrap()
    }

    #[test]
    fn the_order_of_a_history_matters_only_with_positions() {
        let histories: [&[u32]; 2] = [&[3, 9, 4, 17], &[17, 4, 3, 9]];
        let far = |config: &Config| {
            let users = users(config, &histories);
            users[0].iter().zip(&users[1]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
        };
        assert!(far(&Config::default()) < 1e-6);
        assert!(far(&Config { positions: true, ..Config::default() }) > 1e-6);
    }

    #[test]
    fn a_user_vector_does_not_depend_on_the_rest_of_the_batch() {
        let config = Config { max_sequence_length: 6, padding: Padding::Unmasked, ..Config::default() };
        for config in [Config::default(), config] {
            let together = users(&config, &[&[1, 2, 3], &[5], &[9, 9, 2, 7, 6, 5, 4]]);
            assert_eq!(users(&config, &[&[5]])[0], together[1]);
            assert!(together.iter().all(|user| user.iter().map(|x| x * x).sum::<f32>() <= 1.0 + 1e-5));
        }
    }
}
