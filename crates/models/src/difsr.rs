//! DIF-SR: a transformer in which side information takes part only in the attention scores.
//!
//! Xie, Zhou, Kim, Decoupled Side Information Fusion for Sequential Recommendation, SIGIR 2022 (arXiv 2204.11046), as in the authors' code.
//! An attention score has M + 2 sources: each attribute, the item and the position, S^s = (s_i Wq + b) . (s_j Wk + b), which are fused by a
//! gate, a sum or a linear map. Values come from items alone, and neither positions nor attributes enter the input. The loss is the
//! cross-entropy over all items by h . E, plus lambda times the binary cross-entropy of predicting the target's attributes from h.
//! Attributes are the modalities' vectors through an adapter, or lists of categories.
//!
//! The queries and keys of attributes are computed once per distinct item of a step. The scores, their fusion and the softmax are one
//! operator over packed sequences. With `keys = "full"`, histories are padded, because the fusion then sees the scores of the padding.

use candle_core::{D, Tensor, Var};
use mp4sr_ops::plain::softplus;
use mp4sr_ops::{
    Dropout, Error, PackedOffsets, Result, RngKey, ScoreFusion, SourceScope, SourceSizes, SparseMatrix, cross_entropy,
    dropout, gather, gelu, layer_norm, linear, plain, row_softplus, source_attention, sparse_product,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::features::{DistinctItems, RowMean, categories, check_modalities, mean_rows};
use crate::interface::FINETUNE;
use crate::maps::{Linear, Norm, id_table};
use crate::recipe::{DECAY_GRID, ModelSettings, Reads, Recipe, Section, Supports};
use crate::{
    Batch, Categories, Data, Initial, Model, Parameters, Phase, Query, Refused, Scorer, Step, TransformerConfig, trace,
};

/// How DIF-SR is named, configured and built.
pub static RECIPE: Recipe = Recipe {
    name: "difsr",
    title: "DIF-SR",
    summary: "A transformer over items whose attention scores also use side information.",
    paper: "Xie et al., Decoupled Side Information Fusion for Sequential Recommendation, 2022 (arXiv 2204.11046)",
    reads: Reads { features: true, transformer: true, categories: &[("attributes", "categories")] },
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
    build: |settings, data, key| Ok(Box::new(DifSr::new(settings.own()?, settings.transformer()?, &data, key)?)),
};

const PHASES: [Phase; 1] = [Phase::of_prefixes(FINETUNE)];

/// Which keys' scores the fusion sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Keys {
    /// The keys that the query may attend to; others count as 0.
    #[default]
    Masked,
    /// All keys, including later items and padding (authors' code), so that a user's scores depend on the longest length.
    Full,
}

/// What the attributes of an item are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Attributes {
    /// The modalities, each through an adapter.
    #[default]
    Features,
    /// The sum of the embeddings of the item's categories.
    Categories,
}

/// Whether the embeddings of categories are trained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CategoryEmbedding {
    /// They are trained, starting from N(0, 0.02).
    #[default]
    Trained,
    /// They stay at their initial values from N(0, 1) (authors' code, where the optimiser does not include them).
    Fixed,
}

/// `[model.difsr]`: hyper-parameters of DIF-SR.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// What the attributes of an item are.
    pub attributes: Attributes,
    /// `d_a`, the width of attributes, a multiple of the number of heads.
    #[schemars(range(min = 1, max = 4096))]
    pub attribute_width: usize,
    /// Whether the embeddings of categories are trained.
    pub category_embedding: CategoryEmbedding,
    /// How the scores of the sources are combined.
    pub fusion: ScoreFusion,
    /// Which keys' scores the fusion sees.
    pub keys: Keys,
    /// Whether the target's attributes are predicted.
    pub predictor: bool,
    /// lambda, the weight of the prediction of attributes.
    #[schemars(range(min = 0.0, max = 1000.0))]
    pub attribute_weight: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            attributes: Attributes::default(),
            attribute_width: 64,
            category_embedding: CategoryEmbedding::default(),
            fusion: ScoreFusion::default(),
            keys: Keys::default(),
            predictor: true,
            attribute_weight: 10.0,
        }
    }
}

/// Names inside the attention of a layer that a modality must not have.
const RESERVED: [&str; 8] = ["query", "key", "value", "output", "norm", "position", "gate", "concat"];

fn check(settings: &ModelSettings<'_>) -> std::result::Result<(), Refused> {
    let read = |error: Error| Refused::new("model.difsr", &"...", error.to_string());
    let (config, transformer) = (settings.own::<Config>().map_err(read)?, settings.transformer().map_err(read)?);
    if !config.attribute_width.is_multiple_of(transformer.heads) {
        let allowed = format!("a multiple of model.transformer.heads = {}", transformer.heads);
        return Err(Refused::new("model.difsr.attribute_width", &config.attribute_width, allowed));
    }
    match settings.modalities.iter().find(|name| RESERVED.contains(&name.as_str())) {
        Some(name) => {
            let allowed = format!("names other than {}", RESERVED.join(", "));
            Err(Refused::new("model.modalities", name, allowed))
        }
        None => Ok(()),
    }
}

/// One attribute of items.
#[derive(Debug)]
struct Attribute {
    name: String,
    source: Source,
    predictor: Option<Linear>,
}

#[derive(Debug)]
enum Source {
    Features {
        /// The means of the items' rows, `[I, d_m]`.
        means: Tensor,
        adapter: Linear,
        /// The rows of the items that have features.
        present: Vec<u32>,
    },
    Categories {
        /// `[C, d_a]`.
        table: Var,
        sums: SparseMatrix,
        lists: Categories,
    },
}

/// The parameters of a layer.
#[derive(Debug)]
struct Layer {
    /// The query and key maps of the attributes, the item and the position, in the order of the sources.
    sources: Vec<(Linear, Linear)>,
    value: Linear,
    output: Linear,
    /// The maps of the gate, or the map of the concatenation.
    fusion: Vec<Linear>,
    attention_norm: Norm,
    up: Linear,
    down: Linear,
    feed_forward_norm: Norm,
}

/// The model with its parameters and the items' attributes.
#[derive(Debug)]
pub struct DifSr {
    config: Config,
    transformer: TransformerConfig,
    parameters: Parameters,
    count: usize,
    /// `[I + 1, d_0]`: row i is item i, row 0 is not used.
    items: Var,
    position: Var,
    input_norm: Norm,
    attributes: Vec<Attribute>,
    layers: Vec<Layer>,
}

/// The tokens of a batch: the histories, padded if the padding takes part.
struct Tokens {
    offsets: PackedOffsets,
    /// The rows of the table of item embeddings, in which the padding is row 0.
    items: Vec<u32>,
    /// The rows of the attributes, in which the padding is the last row.
    attributes: Vec<u32>,
    /// The lengths of the histories if they are padded.
    real: Option<Vec<usize>>,
}

impl DifSr {
    /// Creates a model whose initial parameters are determined by `key`.
    pub fn new(config: Config, transformer: TransformerConfig, data: &Data, key: RngKey) -> Result<Self> {
        let key = key.fold_in("initial");
        let mut parameters = Parameters::new(&data.device);
        let p = &mut parameters;
        let (d, d_a, n) = (transformer.width, config.attribute_width, transformer.max_sequence_length);
        let items = id_table(p, data.items, d, key)?;
        let position = p.add("position", &[n, d], Initial::Normal, key)?;
        let input_norm = Norm::new(p, "input_norm", d, key)?;
        let attributes = Self::attributes(&config, d, data, p, key)?;
        let mut layers = Vec::new();
        for l in 0..transformer.layers {
            let prefix = format!("layer.{l}.attention");
            let mut linear = |name: &str, a, b| Linear::new(p, &format!("layer.{l}.{name}"), a, b, key);
            let mut sources = Vec::new();
            for attribute in &attributes {
                let mut part = |part: &str| linear(&format!("attention.{}.{part}", attribute.name), d_a, d_a);
                sources.push((part("query")?, part("key")?));
            }
            sources.push((linear("attention.query", d, d)?, linear("attention.key", d, d)?));
            let mut part = |part: &str| linear(&format!("attention.position.{part}"), d, d);
            sources.push((part("query")?, part("key")?));
            let (value, output) = (linear("attention.value", d, d)?, linear("attention.output", d, d)?);
            let fusion = match config.fusion {
                ScoreFusion::Sum => Vec::new(),
                ScoreFusion::Gate => {
                    vec![linear("attention.gate.hidden", n, n)?, linear("attention.gate.score", n, 1)?]
                }
                ScoreFusion::Concat => vec![linear("attention.concat", sources.len() * n, n)?],
            };
            let inner = transformer.feed_forward;
            let (up, down) = (linear("feed_forward.up", d, inner)?, linear("feed_forward.down", inner, d)?);
            let attention_norm = Norm::new(p, &format!("{prefix}.norm"), d, key)?;
            let feed_forward_norm = Norm::new(p, &format!("layer.{l}.feed_forward.norm"), d, key)?;
            layers.push(Layer { sources, value, output, fusion, attention_norm, up, down, feed_forward_norm });
        }
        let count = data.items;
        Ok(Self { config, transformer, parameters, count, items, position, input_norm, attributes, layers })
    }

    fn attributes(
        config: &Config,
        d: usize,
        data: &Data,
        parameters: &mut Parameters,
        key: RngKey,
    ) -> Result<Vec<Attribute>> {
        let d_a = config.attribute_width;
        let mut attributes = Vec::new();
        if config.attributes == Attributes::Categories {
            let lists = categories(data, "model.difsr.attributes")?.clone();
            let initial = match config.category_embedding {
                CategoryEmbedding::Trained => Initial::Normal,
                CategoryEmbedding::Fixed => Initial::Scaled(1.0),
            };
            let table = parameters.add("category_embedding", &[lists.count, d_a], initial, key)?;
            let predictor = config
                .predictor
                .then(|| Linear::new(parameters, "predictor.categories", d, lists.count, key))
                .transpose()?;
            let source = Source::Categories { table, sums: lists.matrix(false)?, lists };
            attributes.push(Attribute { name: "categories".to_owned(), source, predictor });
            return Ok(attributes);
        }
        check_modalities(&data.modalities, data.items)?;
        for modality in &data.modalities {
            let (name, features) = (modality.name.clone(), &modality.features);
            let adapter = Linear::new(parameters, &format!("adapter.{name}.first"), features.width(), d_a, key)?;
            let means = mean_rows(features, RowMean::Mean, adapter.weight.device())?;
            let present = (0..data.items as u32).filter(|&row| features.rows_of(row as usize) > 0).collect();
            let predictor = config
                .predictor
                .then(|| Linear::new(parameters, &format!("predictor.{name}"), d, d_a, key))
                .transpose()?;
            attributes.push(Attribute { name, source: Source::Features { means, adapter, present }, predictor });
        }
        Ok(attributes)
    }

    fn drop(&self, key: Option<RngKey>, name: &str) -> Dropout {
        key.map_or(Dropout::NONE, |key| key.fold_in(name).dropout(self.transformer.dropout))
    }

    /// The vectors of an attribute for the items in the rows `rows`, or for all items, `[rows, d_a]`.
    fn vectors(&self, attribute: &Attribute, rows: Option<&[u32]>) -> Result<Tensor> {
        let vectors = match &attribute.source {
            Source::Features { means, adapter, .. } => {
                let means = rows.map_or_else(|| Ok(means.clone()), |rows| gather(means, rows))?;
                linear(&means, &adapter.weight, &adapter.bias)?.relu()?
            }
            Source::Categories { table, sums, .. } => {
                let fixed = self.config.category_embedding == CategoryEmbedding::Fixed;
                let all = sparse_product(sums, &if fixed { table.detach() } else { table.as_tensor().clone() })?;
                rows.map_or_else(|| Ok(all.clone()), |rows| gather(&all, rows))?
            }
        };
        trace::record(|| format!("attribute.{}", attribute.name), &vectors);
        Ok(vectors)
    }

    /// The tokens of a batch. Token t has row `inverse[t]` of the attributes, which have `rows` rows.
    fn tokens(&self, batch: &Batch, inverse: &[u32], rows: usize) -> Result<Tokens> {
        if self.config.keys == Keys::Masked {
            let (offsets, items, attributes) = (batch.offsets.clone(), batch.items.clone(), inverse.to_vec());
            return Ok(Tokens { offsets, items, attributes, real: None });
        }
        let n = self.transformer.max_sequence_length;
        let (mut items, mut attributes, mut real) = (Vec::new(), Vec::new(), Vec::new());
        for j in 0..batch.count() {
            let own = batch.offsets.range(j);
            let missing = n - own.len();
            real.push(own.len());
            items.extend_from_slice(&batch.items[own.clone()]);
            items.extend(std::iter::repeat_n(0, missing));
            attributes.extend_from_slice(&inverse[own]);
            attributes.extend(std::iter::repeat_n(rows as u32, missing));
        }
        Ok(Tokens {
            offsets: PackedOffsets::from_lengths(vec![n; batch.count()])?,
            items,
            attributes,
            real: Some(real),
        })
    }

    /// h of every history, `[B, d_0]`: token t has row `inverse[t]` of the attributes, `[rows, d_a]` each.
    fn sequences(&self, batch: &Batch, attributes: &[Tensor], inverse: &[u32], key: Option<RngKey>) -> Result<Tensor> {
        let rows = attributes.first().map_or(Ok(0), |vectors| vectors.dim(0))?;
        let tokens = self.tokens(batch, inverse, rows)?;
        // The padding is a constant zero, so the table has no gradient for it.
        let zeros = |table: &Tensor| Tensor::zeros((1, table.dim(1)?), table.dtype(), table.device());
        let table = match tokens.real {
            Some(_) => {
                let items = self.items.narrow(0, 1, self.count)?;
                Tensor::cat(&[&zeros(&self.items)?, &items], 0)?
            }
            None => self.items.as_tensor().clone(),
        };
        let attributes = attributes.iter().map(|vectors| match tokens.real {
            Some(_) => Tensor::cat(&[vectors, &zeros(vectors)?], 0),
            None => Ok(vectors.clone()),
        });
        let attributes = attributes.collect::<Result<Vec<_>>>()?;
        let input = layer_norm(&gather(&table, &tokens.items)?, &self.input_norm.weight, &self.input_norm.bias)?;
        let mut x = dropout(&input, self.drop(key, "input"))?;
        self.record("input", &x, &tokens, 1)?;
        for (l, layer) in self.layers.iter().enumerate() {
            let key = key.map(|key| key.fold_in("layer").fold_in_index(l as u64));
            let top = l + 1 == self.layers.len() && !trace::is_on();
            x = self.layer(l, layer, &x, &attributes, &tokens, top, key)?;
            self.record(&format!("layer.{l}"), &x, &tokens, 1)?;
        }
        let h = if trace::is_on() { gather(&x, &last_tokens(&tokens))? } else { x };
        trace::record(|| "h".to_owned(), &h);
        Ok(h)
    }

    /// Records the values of the real tokens, `parts` rows each.
    fn record(&self, name: &str, values: &Tensor, tokens: &Tokens, parts: usize) -> Result<()> {
        if !trace::is_on() {
            return Ok(());
        }
        let Some(real) = &tokens.real else {
            trace::record(|| name.to_owned(), values);
            return Ok(());
        };
        let n = self.transformer.max_sequence_length * parts;
        let rows = real.iter().enumerate().flat_map(|(j, length)| j * n..j * n + length * parts);
        let rows: Vec<u32> = rows.map(|row| row as u32).collect();
        trace::record(|| name.to_owned(), &gather(values, &rows)?);
        Ok(())
    }

    /// The queries of a layer, one per source, and its keys, followed by the values: the columns of two matrices. `queried` are the rows
    /// of `x` that ask: all of them, or those of the last tokens.
    fn projections(
        &self,
        layer: &Layer,
        x: &Tensor,
        attributes: &[Tensor],
        tokens: &Tokens,
        (last, queried): (Option<&[u32]>, &Tensor),
    ) -> Result<(Tensor, Tensor)> {
        let token_positions = tokens.offsets.positions();
        let pick = |all: &[u32]| -> Vec<u32> {
            last.map_or_else(|| all.to_vec(), |last| last.iter().map(|&at| all[at as usize]).collect())
        };
        let (mut queries, mut keys) = (Vec::new(), Vec::new());
        for (source, (query, key)) in layer.sources.iter().enumerate() {
            let map = |x: &Tensor, map: &Linear| linear(x, &map.weight, &map.bias);
            let of_attribute = attributes.get(source).map(|vectors| (vectors, &tokens.attributes));
            let of_position = (source > attributes.len()).then_some((self.position.as_tensor(), &token_positions));
            // The queries and keys of attributes and positions are computed once per row and gathered for the tokens.
            if let Some((vectors, rows)) = of_attribute.or(of_position) {
                queries.push(gather(&map(vectors, query)?, &pick(rows))?);
                keys.push(gather(&map(vectors, key)?, rows)?);
            } else {
                queries.push(map(queried, query)?);
                keys.push(map(x, key)?);
            }
        }
        keys.push(linear(x, &layer.value.weight, &layer.value.bias)?);
        Ok((Tensor::cat(&queries, 1)?, Tensor::cat(&keys, 1)?))
    }

    fn record_attention(&self, l: usize, steps: &plain::SourceSteps, sources: usize, tokens: &Tokens) -> Result<()> {
        let TransformerConfig { heads, max_sequence_length: n, .. } = self.transformer;
        // The rows are ordered by token, then by head.
        let by_token = |all: &[Tensor], width: usize| {
            let padded = all.iter().map(|part| {
                let missing = width - part.dim(2)?;
                part.pad_with_zeros(2, 0, missing)?.transpose(0, 1)?.contiguous()?.reshape(((), width))
            });
            Tensor::cat(&padded.collect::<Result<Vec<_>>>()?, 0)
        };
        self.record(&format!("attention_weights.{l}"), &by_token(&steps.weights, n)?, tokens, heads)?;
        if !steps.gates.is_empty() {
            self.record(&format!("gate.{l}"), &by_token(&steps.gates, sources)?, tokens, heads)?;
        }
        Ok(())
    }

    fn layer(
        &self,
        l: usize,
        layer: &Layer,
        x: &Tensor,
        attributes: &[Tensor],
        tokens: &Tokens,
        last_only: bool,
        key: Option<RngKey>,
    ) -> Result<Tensor> {
        let TransformerConfig { width: d, heads, max_sequence_length: n, .. } = self.transformer;
        let last = last_only.then(|| last_tokens(tokens));
        let queried = last.as_ref().map_or_else(|| Ok(x.clone()), |last| gather(x, last))?;
        let (query, key_value) = self.projections(layer, x, attributes, tokens, (last.as_deref(), &queried))?;
        let mut sources = vec![self.config.attribute_width; attributes.len()];
        sources.extend([d, d]);
        let sizes = SourceSizes { sources, width: d, heads, max_sequence_length: n, fusion: self.config.fusion };
        let parameters = layer.fusion.iter().flat_map(|map| [&map.weight, &map.bias]);
        let parameters = parameters.map(|var| var.flatten_all()).collect::<Result<Vec<_>>>()?;
        let parameters = if parameters.is_empty() { None } else { Some(Tensor::cat(&parameters, 0)?) };
        let parameters = parameters.as_ref();
        let scope = SourceScope { real: tokens.real.as_deref(), last_only, bidirectional: false };
        let offsets = &tokens.offsets;
        if trace::is_on() {
            let whole = Dropout::NONE;
            let steps = plain::source_attention_steps(&query, &key_value, parameters, &sizes, offsets, scope, whole)?;
            self.record_attention(l, &steps, sizes.sources.len(), tokens)?;
        }
        let drop = self.drop(key, "weights");
        let attended = source_attention(&query, &key_value, parameters, &sizes, offsets, scope, drop)?;
        let add_norm = |x: &Tensor, branch: &Tensor, norm: &Norm, name: &str| {
            let branch = dropout(branch, self.drop(key, name))?;
            layer_norm(&(x + branch)?, &norm.weight, &norm.bias)
        };
        let branch = linear(&attended, &layer.output.weight, &layer.output.bias)?;
        let x = add_norm(&queried, &branch, &layer.attention_norm, "attention")?;
        let hidden = gelu(&linear(&x, &layer.up.weight, &layer.up.bias)?)?;
        let branch = linear(&hidden, &layer.down.weight, &layer.down.bias)?;
        add_norm(&x, &branch, &layer.feed_forward_norm, "feed_forward")
    }

    /// E of all items, `[I, d_0]`.
    fn candidates(&self) -> Result<Tensor> {
        self.items.narrow(0, 1, self.count)?.contiguous()
    }

    /// The cross-entropy of the next item plus the weighted loss of predicting its attributes; without `key` nothing is dropped.
    pub fn finetune_loss(&self, batch: &Batch, key: Option<RngKey>) -> Result<Tensor> {
        let targets: Vec<u32> = batch.targets.iter().map(|target| target - 1).collect();
        // The prediction needs the vectors of all items.
        let (rows, inverse) = if self.config.predictor {
            (None, batch.items.iter().map(|item| item - 1).collect())
        } else {
            let distinct = DistinctItems::of(&batch.items);
            (Some(distinct.rows), distinct.inverse)
        };
        let vectors = self.attributes.iter().map(|attribute| self.vectors(attribute, rows.as_deref()));
        let vectors = vectors.collect::<Result<Vec<_>>>()?;
        let h = self.sequences(batch, &vectors, &inverse, key)?;
        let mut loss = cross_entropy(&h, &self.candidates()?, &targets, 1.0)?.mean_all()?;
        trace::record(|| "item_loss".to_owned(), &loss);
        for (attribute, vectors) in self.attributes.iter().zip(&vectors) {
            let Some(predictor) = &attribute.predictor else { continue };
            let predicted = linear(&h, &predictor.weight, &predictor.bias)?;
            if let Some(own) = attribute.loss(&predicted, vectors, &targets)? {
                trace::record(|| format!("attribute_loss.{}", attribute.name), &own);
                loss = (loss + (own * self.config.attribute_weight)?)?;
            }
        }
        Ok(loss)
    }
}

impl Attribute {
    /// The mean over samples and labels of the binary cross-entropy; `None` if there are no labels.
    fn loss(&self, predicted: &Tensor, vectors: &Tensor, targets: &[u32]) -> Result<Option<Tensor>> {
        match &self.source {
            Source::Features { present, .. } => {
                if present.is_empty() {
                    return Ok(None);
                }
                let all = row_softplus(predicted, &gather(vectors, present)?)?.sum_all()?;
                let has = |target: &u32| if present.binary_search(target).is_ok() { 1.0f32 } else { 0.0 };
                let has = Tensor::from_iter(targets.iter().map(has), predicted.device())?;
                let own = ((predicted * gather(vectors, targets)?)?.sum(D::Minus1)? * has)?.sum_all()?;
                Ok(Some(((all - own)? / (targets.len() * present.len()) as f64)?))
            }
            Source::Categories { lists, .. } => {
                let mut labels = vec![0.0f32; targets.len() * lists.count];
                for (labels, &target) in labels.chunks_exact_mut(lists.count).zip(targets) {
                    lists.of(target as usize).iter().for_each(|&id| labels[id as usize - 1] = 1.0);
                }
                let labels = Tensor::from_vec(labels, predicted.shape(), predicted.device())?;
                Ok(Some((softplus(predicted)? - (predicted * labels)?)?.mean_all()?))
            }
        }
    }
}

/// The last real token of each sequence.
fn last_tokens(tokens: &Tokens) -> Vec<u32> {
    match &tokens.real {
        Some(real) => {
            real.iter().enumerate().map(|(j, length)| (tokens.offsets.range(j).start + length) as u32 - 1).collect()
        }
        None => tokens.offsets.last_tokens(),
    }
}

impl Model for DifSr {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn phases(&self) -> &[Phase] {
        &PHASES
    }

    fn trains(&self, _: &Phase, name: &str) -> bool {
        name != "category_embedding" || self.config.category_embedding == CategoryEmbedding::Trained
    }

    fn max_sequence_length(&self) -> usize {
        self.transformer.max_sequence_length
    }

    fn loss(&self, _: &Phase, batch: &Batch, step: &Step) -> Result<Tensor> {
        self.finetune_loss(batch, Some(step.key))
    }

    fn scorer(&self, _: &Phase) -> Result<Box<dyn Scorer + '_>> {
        let attributes = self.attributes.iter().map(|attribute| Ok(self.vectors(attribute, None)?.detach()));
        let attributes = attributes.collect::<Result<Vec<_>>>()?;
        Ok(Box::new(DifSrScorer { model: self, attributes, items: self.candidates()?.detach() }))
    }
}

struct DifSrScorer<'a> {
    model: &'a DifSr,
    /// The vectors of all items, by attribute.
    attributes: Vec<Tensor>,
    items: Tensor,
}

impl Scorer for DifSrScorer<'_> {
    fn items(&self) -> &Tensor {
        &self.items
    }

    fn queries(&self, queries: &[Query<'_>]) -> Result<Tensor> {
        let batch = Batch::of_queries(queries, self.model.transformer.max_sequence_length)?;
        let rows: Vec<u32> = batch.items.iter().map(|item| item - 1).collect();
        Ok(self.model.sequences(&batch, &self.attributes, &rows, None)?.detach())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Modality, Ragged, TrainingSequences};

    fn data() -> Data {
        let key = RngKey::new(2);
        let values: Vec<f32> = (0..3 * 19).map(|at| key.normal(at) as f32).collect();
        let offsets: Vec<usize> = (0..=19).chain([19]).collect();
        let features = Ragged::new(values, 3, &offsets).unwrap();
        let modalities = vec![Modality { name: "text".to_owned(), features }];
        let categories =
            Categories { count: 3, offsets: (0..=20).collect(), ids: (0..20).map(|item| 1 + item % 3).collect() };
        let training = TrainingSequences::new(std::iter::empty()).into();
        Data { items: 20, training, modalities, categories: Some(categories), device: crate::Device::Cpu, group: None }
    }

    fn model(config: Config, max_sequence_length: usize) -> DifSr {
        let transformer =
            TransformerConfig { width: 8, layers: 2, max_sequence_length, ..TransformerConfig::default() };
        DifSr::new(Config { attribute_width: 6, ..config }, transformer, &data(), RngKey::new(3)).unwrap()
    }

    #[test]
    fn a_score_does_not_depend_on_the_rest_of_the_batch() {
        let histories: [&[u32]; 3] = [&[3, 9, 4], &[8], &[10, 5, 20, 1, 1, 2, 7]];
        for fusion in [ScoreFusion::Gate, ScoreFusion::Sum, ScoreFusion::Concat] {
            for keys in [Keys::Masked, Keys::Full] {
                let model = model(Config { fusion, keys, ..Config::default() }, 6);
                let scorer = model.scorer(&PHASES[0]).unwrap();
                let vectors = |histories: &[&[u32]]| {
                    let queries: Vec<Query<'_>> = histories.iter().map(|history| Query::of_history(history)).collect();
                    scorer.queries(&queries).unwrap().to_vec2::<f32>().unwrap()
                };
                let together = vectors(&histories);
                for (alone, together) in histories.iter().zip(together) {
                    assert_eq!(vectors(&[alone])[0], together, "{fusion:?} {keys:?}");
                }
            }
        }
    }

    #[test]
    fn a_fixed_table_of_categories_has_no_gradient() {
        let batch = Batch::of_histories([(&[1, 2, 1, 4][..], 5), (&[7][..], 20)], 6).unwrap();
        for (category_embedding, learns) in [(CategoryEmbedding::Trained, true), (CategoryEmbedding::Fixed, false)] {
            let config = Config { attributes: Attributes::Categories, category_embedding, ..Config::default() };
            let model = model(config, 6);
            let gradients = model.finetune_loss(&batch, None).unwrap().backward().unwrap();
            let gradients = model.parameters().gradients(&gradients).unwrap();
            assert_eq!(gradients.iter().any(|(name, _)| *name == "category_embedding"), learns);
            assert_eq!(model.trains(&PHASES[0], "category_embedding"), learns);
        }
    }
}
