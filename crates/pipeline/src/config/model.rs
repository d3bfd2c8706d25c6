//! `[model]`: the model, its modalities and its hyper-parameters.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// One entry of `model.modalities`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Modality {
    /// `text`, `image`, `audio`, or any other name.
    pub name: String,
    /// The encoder part of `features/<name>.<encoder>.safetensors`. Empty: what `[extract]` writes.
    pub features: String,
    /// The share of items that lose their features of this modality, for studies of noise. `run.seed` determines which ones.
    pub lost: f64,
    /// The share of items whose features are replaced by those of another item; for studies of noise. With `lost`, it is at most 1.
    pub swapped: f64,
}

/// `[model]`: the recommender.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Model {
    /// The name of the model.
    pub name: String,
    /// The modalities of the items, in order.
    pub modalities: Vec<Modality>,
    /// Sections of models, `[model.<name>]`, and of what several models share. The [`ModelCatalog`](super::ModelCatalog) defines which
    /// sections and keys exist.
    #[serde(flatten)]
    #[schemars(skip)]
    pub sections: BTreeMap<String, Value>,
}

impl Default for Model {
    fn default() -> Self {
        let modality = |name: &str| Modality { name: name.to_owned(), ..Modality::default() };
        Self { name: String::new(), modalities: vec![modality("text"), modality("image")], sections: BTreeMap::new() }
    }
}

impl Model {
    /// The model's own section; null if it has none.
    pub fn own(&self) -> &Value {
        self.section(&self.name)
    }

    /// A section by name; null if there is none.
    pub fn section(&self, name: &str) -> &Value {
        self.sections.get(name).unwrap_or(&Value::Null)
    }

    /// The names of the modalities, in order.
    pub fn modality_names(&self) -> Vec<String> {
        self.modalities.iter().map(|modality| modality.name.clone()).collect()
    }
}
