use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Keys of `[model]` that pre-training does not read: changing them never pre-trains again.
pub const FINETUNE_KEYS: [&str; 3] = ["id_embedding", "logit_modalities", "logits"];

/// Which recommender.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ModelName {
    /// The paper's model.
    #[default]
    Mp4sr,
    /// A transformer over item embeddings, in RecBole's reading.
    Sasrec,
    /// Items by their number of training events.
    Popularity,
}

/// One entry of `model.modalities`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Modality {
    /// `text`, `image`, or any other name.
    pub name: String,
    /// The encoder part of `features/<name>.<encoder>.safetensors`. Empty: what `[extract]` writes.
    pub features: String,
    /// The share of items that lose their features of this modality, drawn by `run.seed`: for studies of noise.
    pub lost: f64,
    /// The share of items that get the features of another item in their place: for studies of noise.
    pub swapped: f64,
}

/// What happens to the gradient of attention pooling (specification, section 10).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PoolingGradient {
    /// It trains (paper).
    #[default]
    Learned,
    /// It is cut (released code).
    Frozen,
}

/// Which rows share the softmax of attention pooling.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PoolingRows {
    /// The item's real rows (paper).
    #[default]
    Masked,
    /// All items padded to 10 rows of zeros (released code).
    Unmasked,
}

/// Projection heads in pre-training.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Projection {
    /// One head a modality (paper).
    #[default]
    On,
    /// Losses on the sequence vectors themselves (released code; the paper's `w/o Proj`).
    Off,
}

/// Other samples of the batch with the same target, in the denominators of NIP and CMCL.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SameTarget {
    /// False negatives are left out.
    #[default]
    LeaveOut,
    /// They count like every other (paper).
    Keep,
    /// Their logit is 0, so each adds exp(0) (released code).
    Zero,
}

/// The second direction of CMCL.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CmclDirection {
    /// Its cross sum runs over a column of the first direction's matrix (paper).
    #[default]
    Symmetric,
    /// It uses the row sums of the first direction again (released code).
    RowSums,
}

/// The scores of fine-tuning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Logits {
    /// Cosine over the temperature (released code).
    #[default]
    Cosine,
    /// Inner product (paper).
    Dot,
}

/// `[model]`: the recommender.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Model {
    /// Which recommender.
    pub name: ModelName,
    /// The modalities, in order.
    pub modalities: Vec<Modality>,
    /// `d_0`, the model width.
    #[schemars(range(min = 1, max = 4096))]
    pub width: usize,
    /// `d_a`, the width of attention pooling.
    #[schemars(range(min = 1, max = 4096))]
    pub attention: usize,
    /// O, the experts of a modality's encoder.
    #[schemars(range(min = 1, max = 256))]
    pub experts: usize,
    /// L, transformer layers.
    #[schemars(range(min = 1, max = 64))]
    pub layers: usize,
    /// Attention heads.
    #[schemars(range(min = 1, max = 64))]
    pub heads: usize,
    /// Width between the two maps of a feed-forward block.
    #[schemars(range(min = 1, max = 16384))]
    pub feed_forward: usize,
    /// n, the last items of a history that are read.
    #[schemars(range(min = 1, max = 10000))]
    pub positions: usize,
    /// Dropout in the transformer.
    #[schemars(range(min = 0.0, max = 0.95))]
    pub dropout: f64,
    /// Dropout in the experts.
    #[schemars(range(min = 0.0, max = 0.95))]
    pub expert_dropout: f64,
    /// tau, the temperature of all similarities.
    #[schemars(range(min = 0.0001, max = 100.0))]
    pub temperature: f64,
    /// One item encoder for all modalities (variant `Shared`).
    pub shared_encoder: bool,
    /// Item id embeddings in fine-tuning.
    pub id_embedding: bool,
    /// Modalities in the logits (variants `T`, `V`). Empty: all.
    pub logit_modalities: Vec<String>,
    /// What happens to the gradient of attention pooling.
    pub pooling_gradient: PoolingGradient,
    /// Which rows share the softmax of attention pooling.
    pub pooling_rows: PoolingRows,
    /// Projection heads in pre-training.
    pub projection: Projection,
    /// Other samples of the batch with the same target.
    pub same_target: SameTarget,
    /// The second direction of CMCL.
    pub cmcl_direction: CmclDirection,
    /// The scores of fine-tuning.
    pub logits: Logits,
}

impl Default for Model {
    fn default() -> Self {
        let modality = |name: &str| Modality { name: name.to_owned(), ..Modality::default() };
        Self {
            name: ModelName::default(),
            modalities: vec![modality("text"), modality("image")],
            width: 64,
            attention: 64,
            experts: 8,
            layers: 2,
            heads: 2,
            feed_forward: 256,
            positions: 50,
            dropout: 0.2,
            expert_dropout: 0.2,
            temperature: 0.07,
            shared_encoder: false,
            id_embedding: true,
            logit_modalities: Vec::new(),
            pooling_gradient: PoolingGradient::default(),
            pooling_rows: PoolingRows::default(),
            projection: Projection::default(),
            same_target: SameTarget::default(),
            cmcl_direction: CmclDirection::default(),
            logits: Logits::default(),
        }
    }
}
