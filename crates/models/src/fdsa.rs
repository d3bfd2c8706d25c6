//! FDSA: self-attention over items and over their features, side by side.
//!
//! Zhang et al., Feature-level Deeper Self-Attention Network for Sequential Recommendation, IJCAI 2019, as the authors of MP4SR implemented
//! it in RecBole. Every modality is a field: the mean of an item's rows through two maps, each with a ReLU. Attention over the fields of an
//! item gives its feature vector g. One causal transformer runs over the item embeddings and another over the g, with one table of
//! positions and one LayerNorm for both; h = LN([a, c] W + b), where a and c are their last outputs. The loss is the cross-entropy over all
//! items by h . E. Where sources differ, a key of [`Config`] selects the reading.
//!
//! The means of rows never change. Fields are computed once per distinct item of a step and gathered for the tokens.

use candle_core::{D, Tensor, Var};
use mp4sr_ops::plain::softmax;
use mp4sr_ops::{
    Dropout, Result, RngKey, Rows, SparseMatrix, cross_entropy, dropout, gather, layer_norm, linear, sequence_input,
    sparse_product,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::features::{DistinctItems, RowMean, categories, expect_modalities, mean_rows};
use crate::interface::FINETUNE;
use crate::maps::{Linear, Norm, id_table};
use crate::recipe::{DECAY_GRID, Reads, Recipe, Section, Supports};
use crate::transformer::LayerStack;
use crate::{Batch, Data, Initial, Model, Parameters, Phase, Query, Scorer, Step, TransformerConfig, trace};

/// How FDSA is named, configured and built.
pub static RECIPE: Recipe = Recipe {
    name: "fdsa",
    title: "FDSA",
    summary: "One transformer over items and one over their features, side by side.",
    paper: "Zhang et al., Feature-level Deeper Self-Attention Network for Sequential Recommendation, 2019",
    reads: Reads {
        features: true,
        transformer: true,
        categories: &[("fields", "features_and_categories"), ("fields", "categories")],
    },
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
    build: |settings, data, key| Ok(Box::new(Fdsa::new(settings.own()?, settings.transformer()?, &data, key)?)),
};

const PHASES: [Phase; 1] = [Phase::of_prefixes(FINETUNE)];

/// What the fields of an item are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Fields {
    /// The modalities.
    #[default]
    Features,
    /// The modalities and, as one more field, the mean of the embeddings of the item's categories.
    FeaturesAndCategories,
    /// The categories alone (RecBole).
    Categories,
}

/// How the vector of a modality is mapped to a field.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Adapter {
    /// Through two maps, each with a ReLU (MP4SR's authors).
    #[default]
    Two,
    /// Through one map with a ReLU (UniSRec's authors).
    One,
}

/// The LayerNorms in addition to those of the layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Norms {
    /// One for the inputs of both transformers and for the output (published code).
    #[default]
    Shared,
    /// One for each of the three positions (paper).
    Separate,
}

/// How often the dropout masks of the adapters are drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DropoutDraw {
    /// Once for every distinct item of a step, so that the adapters run once per item.
    #[default]
    Item,
    /// Once for every position of every history (published code).
    Position,
}

/// `[model.fdsa]`: hyper-parameters of FDSA.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// What the fields of an item are.
    pub fields: Fields,
    /// How the vector of a modality is mapped to a field.
    pub adapter: Adapter,
    /// How the rows of an item become one vector.
    pub pooling: RowMean,
    /// The LayerNorms in addition to those of the layers.
    pub norms: Norms,
    /// How often the dropout masks of the adapters are drawn.
    pub dropout_draw: DropoutDraw,
}

/// One modality as a field.
#[derive(Debug)]
struct Field {
    name: String,
    /// The means of the items' rows, `[I, d_m]`.
    means: Tensor,
    first: Linear,
    second: Option<Linear>,
}

/// The model with its parameters and the items' features.
#[derive(Debug)]
pub struct Fdsa {
    config: Config,
    transformer: TransformerConfig,
    parameters: Parameters,
    count: usize,
    /// `[I + 1, d_0]`: row i is item i, row 0 is not used.
    items: Var,
    fields: Vec<Field>,
    /// The embeddings of the categories, `[C, d_0]`, and the matrix of the means over each item's categories.
    categories: Option<(Var, SparseMatrix)>,
    fusion: (Linear, Linear),
    position: Var,
    /// The LayerNorms of the item branch, the feature branch and the output.
    norms: [Norm; 3],
    item_layers: LayerStack,
    feature_layers: LayerStack,
    output: Linear,
}

impl Fdsa {
    /// Creates a model whose initial parameters are determined by `key`.
    pub fn new(config: Config, transformer: TransformerConfig, data: &Data, key: RngKey) -> Result<Self> {
        let key = key.fold_in("initial");
        let mut parameters = Parameters::new(&data.device);
        let p = &mut parameters;
        let d = transformer.width;
        let items = id_table(p, data.items, d, key)?;
        let mut fields = Vec::new();
        let reads_features = config.fields != Fields::Categories;
        if reads_features {
            expect_modalities(&data.modalities, data.items)?;
        }
        for modality in data.modalities.iter().filter(|_| reads_features) {
            let prefix = format!("adapter.{}", modality.name);
            let first = Linear::new(p, &format!("{prefix}.first"), modality.features.width(), d, key)?;
            let second = (config.adapter == Adapter::Two)
                .then(|| Linear::new(p, &format!("{prefix}.second"), d, d, key))
                .transpose()?;
            let means = mean_rows(&modality.features, config.pooling, items.device())?;
            fields.push(Field { name: modality.name.clone(), means, first, second });
        }
        let categories = match config.fields {
            Fields::Features => None,
            _ => {
                let lists = categories(data, "model.fdsa.fields")?;
                let table = p.add("category_embedding", &[lists.count, d], Initial::Normal, key)?;
                Some((table, lists.matrix(true)?))
            }
        };
        let fusion = (Linear::new(p, "fusion.hidden", d, d, key)?, Linear::new(p, "fusion.score", d, 1, key)?);
        let position = p.add("position", &[transformer.max_sequence_length, d], Initial::Normal, key)?;
        let norms = match config.norms {
            Norms::Shared => {
                let norm = Norm::new(p, "input_norm", d, key)?;
                [norm.clone(), norm.clone(), norm]
            }
            Norms::Separate => [
                Norm::new(p, "item.input_norm", d, key)?,
                Norm::new(p, "feature.input_norm", d, key)?,
                Norm::new(p, "output_norm", d, key)?,
            ],
        };
        let item_layers = LayerStack::new(p, "item.", transformer, key)?;
        let feature_layers = LayerStack::new(p, "feature.", transformer, key)?;
        let output = Linear::new(p, "output", 2 * d, d, key)?;
        let count = data.items;
        Ok(Self {
            config,
            transformer,
            parameters,
            count,
            items,
            fields,
            categories,
            fusion,
            position,
            norms,
            item_layers,
            feature_layers,
            output,
        })
    }

    fn drop(&self, key: Option<RngKey>, name: &str) -> Dropout {
        key.map_or(Dropout::NONE, |key| key.fold_in(name).dropout(self.transformer.dropout))
    }

    /// g of the items that are the rows `rows`, `[rows, d_0]`.
    fn features(&self, rows: &[u32], key: Option<RngKey>) -> Result<Tensor> {
        let mut fields = Vec::new();
        for field in &self.fields {
            let key = key.map(|key| key.fold_in("adapter").fold_in(&field.name));
            let mut x = gather(&field.means, rows)?;
            for (map, name) in [(Some(&field.first), "first"), (field.second.as_ref(), "second")] {
                if let Some(map) = map {
                    x = linear(&dropout(&x, self.drop(key, name))?, &map.weight, &map.bias)?.relu()?;
                }
            }
            trace::record(|| format!("field.{}", field.name), &x);
            fields.push(x);
        }
        if let Some((table, means)) = &self.categories {
            let x = gather(&sparse_product(means, table)?, rows)?;
            trace::record(|| "field.categories".to_owned(), &x);
            fields.push(x);
        }
        let (hidden, score) = &self.fusion;
        let count = fields.len();
        let stacked = Tensor::cat(&fields, 0)?;
        let energy = linear(&linear(&stacked, &hidden.weight, &hidden.bias)?.relu()?, &score.weight, &score.bias)?;
        let weights = softmax(&energy.reshape((count, rows.len()))?.t()?.contiguous()?)?;
        let stacked = stacked.reshape((count, rows.len(), self.transformer.width))?;
        let feature = stacked.broadcast_mul(&weights.t()?.contiguous()?.unsqueeze(D::Minus1)?)?.sum(0)?;
        trace::record(|| "fusion_weights".to_owned(), &weights);
        trace::record(|| "feature".to_owned(), &feature);
        Ok(feature)
    }

    /// h of every history, `[B, d_0]`: token t has the feature vector of row `inverse[t]` of `features`.
    fn sequences(&self, batch: &Batch, features: &Tensor, inverse: &[u32], key: Option<RngKey>) -> Result<Tensor> {
        let positions = batch.offsets.positions();
        let branch = |name: &str, tokens: Rows<'_>, norm: &Norm, layers: &LayerStack| -> Result<Tensor> {
            let key = key.map(|key| key.fold_in(name));
            let table = norm.with_positions(&self.position)?;
            let x = sequence_input(tokens, None, Rows::new(&table, &positions), self.drop(key, "input"))?;
            trace::record(|| format!("{name}.input"), &x);
            let h = layers.forward(x, &batch.offsets, key)?;
            trace::record(|| format!("h.{name}"), &h);
            Ok(h)
        };
        let [item_norm, feature_norm, output_norm] = &self.norms;
        let items = branch("item", Rows::new(&self.items, &batch.items), item_norm, &self.item_layers)?;
        let features = branch("feature", Rows::new(features, inverse), feature_norm, &self.feature_layers)?;
        let joined = linear(&Tensor::cat(&[items, features], 1)?, &self.output.weight, &self.output.bias)?;
        let normed = layer_norm(&joined, &output_norm.weight, &output_norm.bias)?;
        let h = dropout(&normed, self.drop(key, "output"))?;
        trace::record(|| "h".to_owned(), &h);
        Ok(h)
    }

    /// E of all items, `[I, d_0]`.
    fn candidates(&self) -> Result<Tensor> {
        self.items.narrow(0, 1, self.count)?.contiguous()
    }

    /// Cross-entropy of the next item; without `key` nothing is dropped.
    pub fn finetune_loss(&self, batch: &Batch, key: Option<RngKey>) -> Result<Tensor> {
        let (rows, inverse) = match self.config.dropout_draw {
            DropoutDraw::Item => {
                let distinct = DistinctItems::of(&batch.items);
                (distinct.rows, distinct.inverse)
            }
            DropoutDraw::Position => {
                (batch.items.iter().map(|item| item - 1).collect(), (0..batch.items.len() as u32).collect())
            }
        };
        let features = self.features(&rows, key)?;
        let h = self.sequences(batch, &features, &inverse, key)?;
        let targets: Vec<u32> = batch.targets.iter().map(|target| target - 1).collect();
        cross_entropy(&h, &self.candidates()?, &targets, 1.0)?.mean_all()
    }
}

impl Model for Fdsa {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn phases(&self) -> &[Phase] {
        &PHASES
    }

    fn max_sequence_length(&self) -> usize {
        self.transformer.max_sequence_length
    }

    fn loss(&self, _: &Phase, batch: &Batch, step: &Step) -> Result<Tensor> {
        self.finetune_loss(batch, Some(step.key))
    }

    fn scorer(&self, _: &Phase) -> Result<Box<dyn Scorer + '_>> {
        let all: Vec<u32> = (0..self.count as u32).collect();
        let features = self.features(&all, None)?.detach();
        Ok(Box::new(FdsaScorer { model: self, features, items: self.candidates()?.detach() }))
    }
}

struct FdsaScorer<'a> {
    model: &'a Fdsa,
    /// g of all items.
    features: Tensor,
    items: Tensor,
}

impl Scorer for FdsaScorer<'_> {
    fn items(&self) -> &Tensor {
        &self.items
    }

    fn queries(&self, queries: &[Query<'_>]) -> Result<Tensor> {
        let batch = Batch::of_queries(queries, self.model.transformer.max_sequence_length)?;
        let rows: Vec<u32> = batch.items.iter().map(|item| item - 1).collect();
        Ok(self.model.sequences(&batch, &self.features, &rows, None)?.detach())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Modality, Ragged, TrainingSequences};

    fn data(changed: Option<usize>) -> Data {
        let key = RngKey::new(2);
        let mut values: Vec<f32> = (0..3 * 20).map(|at| key.normal(at) as f32).collect();
        if let Some(item) = changed {
            values[3 * (item - 1)..3 * item].fill(2.0);
        }
        let features = Ragged::new(values, 3, &(0..=20).collect::<Vec<_>>()).unwrap();
        let modalities = vec![Modality { name: "text".to_owned(), features }];
        let training = TrainingSequences::new(std::iter::empty()).into();
        Data { items: 20, training, modalities, categories: None, device: crate::Device::Cpu, group: None }
    }

    fn model(data: &Data, config: Config) -> Fdsa {
        let transformer = TransformerConfig { width: 8, layers: 1, ..TransformerConfig::default() };
        Fdsa::new(config, transformer, data, RngKey::new(3)).unwrap()
    }

    #[test]
    fn an_items_features_affect_only_its_own_positions() {
        let histories: [&[u32]; 4] = [&[3, 9, 4], &[8], &[10, 5], &[2, 9]];
        let queries: Vec<Query<'_>> = histories.iter().map(|history| Query::of_history(history)).collect();
        let vectors = |changed| {
            let model = model(&data(changed), Config::default());
            model.scorer(&PHASES[0]).unwrap().queries(&queries).unwrap().to_vec2::<f32>().unwrap()
        };
        let (before, after) = (vectors(None), vectors(Some(9)));
        let moved: Vec<bool> = before.iter().zip(&after).map(|(a, b)| a != b).collect();
        assert_eq!(moved, [true, false, false, true]);
    }

    #[test]
    fn both_dropout_draws_give_the_same_model_without_dropout() {
        let batch = Batch::of_histories([(&[1, 2, 1, 4][..], 5), (&[7][..], 8), (&[7, 3][..], 1)], 50).unwrap();
        let loss = |dropout_draw, key| {
            let model = model(&data(None), Config { dropout_draw, ..Config::default() });
            model.finetune_loss(&batch, key).unwrap().to_scalar::<f32>().unwrap()
        };
        let (item, position) = (DropoutDraw::Item, DropoutDraw::Position);
        assert!((loss(item, None) - loss(position, None)).abs() < 1e-6);
        let dropped = |draw| loss(draw, Some(RngKey::new(4))).to_bits();
        assert_ne!(dropped(item), dropped(position));
    }

    #[test]
    fn categories_that_the_dataset_does_not_have_are_refused() {
        let config = Config { fields: Fields::Categories, ..Config::default() };
        let error =
            Fdsa::new(config, TransformerConfig::default(), &data(None), RngKey::new(3)).unwrap_err().to_string();
        assert!(error.contains("`model.fdsa.fields` needs categories of items"), "{error}");
    }
}
