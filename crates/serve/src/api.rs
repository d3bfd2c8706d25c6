//! The bodies and parameters of requests, and the bodies of responses.

use std::fmt::Formatter;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

/// Reads a list of objects. Structs can also be read from arrays, which the description does not allow.
fn objects<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    let objects = Vec::<Object<T>>::deserialize(deserializer)?;
    Ok(objects.into_iter().map(|Object(read)| read).collect())
}

/// A value that is written as an object.
struct Object<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OfMap<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for OfMap<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
                f.write_str("a map")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }
        deserializer.deserialize_map(OfMap(PhantomData))
    }
}

/// Reads a field that may be null, which then counts as missing.
fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// A request for the best items for a user or a history.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RecommendRequest {
    /// The ids of the items of the history, oldest first. If it is empty and `user_id` names a user of the dataset, that user's history is
    /// used.
    #[serde(default, deserialize_with = "or_default")]
    #[schema(nullable, example = json!(["B09P5O2CH9", "B0YU0S2NF7"]))]
    pub history: Vec<String>,
    /// The id of a user of the dataset, if the request is for one.
    #[serde(default)]
    pub user_id: Option<String>,
    /// The length of the list; by default 10, or fewer if the service allows fewer.
    #[serde(default)]
    #[schema(minimum = 1)]
    pub k: Option<usize>,
    /// The ids of items that must not be listed.
    #[serde(default, deserialize_with = "or_default")]
    #[schema(nullable)]
    pub exclude: Vec<String>,
    /// The ids of the only items that may be listed; without it, every item may be listed. An empty list is refused.
    #[serde(default)]
    #[schema(min_items = 1)]
    pub only: Option<Vec<String>>,
}

/// An item of a list.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct ListedItem {
    /// The item's id.
    pub item_id: String,
    /// The item's title; empty if it has none.
    pub title: String,
    /// The model's score; in a fallback list, the number of training events, or of the latest of them (`recommend.fallback_share`), plus a
    /// fraction that orders items with equal numbers; in a list of similar items, the cosine similarity.
    pub score: f32,
    /// The path of the item's first image, if it has one.
    pub image: Option<String>,
}

/// A list of items.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct ListResponse {
    /// The items, best first.
    pub items: Vec<ListedItem>,
    /// `popular` if no item of the history is known; null if the model made the list.
    pub fallback: Option<String>,
    /// The ids in `history` that are not items of the run.
    pub unknown: Vec<String>,
    /// The ids in `exclude` that are not items of the run.
    pub unknown_exclude: Vec<String>,
    /// The ids in `only` that are not items of the run.
    pub unknown_only: Vec<String>,
    /// The number of the generation that made the list.
    pub generation: u64,
}

/// A request for the items that are similar to an item (`item_id`) or to a description (`text`, `image` or both).
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SimilarRequest {
    /// The id of an item of the run.
    #[serde(default)]
    pub item_id: Option<String>,
    /// A text that describes an item, which need not be in the catalogue.
    #[serde(default)]
    pub text: Option<String>,
    /// The bytes of an image file, in base64.
    #[serde(default)]
    pub image: Option<String>,
    /// The length of the list; by default 10, or fewer if the service allows fewer.
    #[serde(default)]
    #[schema(minimum = 1)]
    pub k: Option<usize>,
    /// The ids of items that must not be listed.
    #[serde(default, deserialize_with = "or_default")]
    #[schema(nullable)]
    pub exclude: Vec<String>,
    /// The ids of the only items that may be listed; without it, every item may be listed. An empty list is refused.
    #[serde(default)]
    #[schema(min_items = 1)]
    pub only: Option<Vec<String>>,
}

/// A new item.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewItem {
    /// The item's id, which no item of the dataset has.
    #[schema(min_length = 1)]
    pub item_id: String,
    /// The item's title.
    #[serde(default, deserialize_with = "or_default")]
    #[schema(nullable)]
    pub title: String,
    /// Further texts.
    #[serde(default, deserialize_with = "or_default")]
    #[schema(nullable)]
    pub texts: Vec<String>,
    /// The names of the item's categories.
    #[serde(default, deserialize_with = "or_default")]
    #[schema(nullable)]
    pub categories: Vec<String>,
    /// The bytes of image files, in base64.
    #[serde(default, deserialize_with = "or_default")]
    #[schema(nullable)]
    pub images: Vec<String>,
}

/// Items to add.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PutItemsRequest {
    /// The items; an item that was added earlier is replaced.
    #[schema(min_items = 1)]
    #[serde(deserialize_with = "objects")]
    pub items: Vec<NewItem>,
}

/// The result of adding items.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct PutItemsResponse {
    /// The ids that the run did not have.
    pub added: Vec<String>,
    /// The ids of items that were added earlier and are now replaced.
    pub replaced: Vec<String>,
    /// What could not be used, one sentence per problem. Of each item, the first `preprocess.max_images` usable images and the first
    /// `preprocess.max_sentences` sentences are used.
    pub notes: Vec<String>,
    /// The total number of added items of the run.
    pub new_items: usize,
    /// The number of the generation that has the items.
    pub generation: u64,
}

/// Items to remove.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DeleteItemsRequest {
    /// The ids of items that were added.
    #[schema(min_items = 1)]
    pub item_ids: Vec<String>,
}

/// The result of removing items.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct DeleteItemsResponse {
    /// The number of removed items.
    pub removed: usize,
    /// The number of the generation that no longer has the items.
    pub generation: u64,
}

/// An item.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct ItemResponse {
    /// The item's id.
    pub item_id: String,
    /// The item's title; empty if it has none.
    pub title: String,
    /// The item's sentences; those of the title come first.
    pub sentences: Vec<String>,
    /// The names of the item's categories.
    pub categories: Vec<String>,
    /// The paths of the item's images.
    pub images: Vec<String>,
    /// The number of training events of the item.
    pub events: u32,
    /// Whether the item was added after training.
    pub is_new: bool,
}

/// The items that a search found.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct SearchResponse {
    /// The items with the most training events first; `score` is the number of these events.
    pub items: Vec<ListedItem>,
}

/// The parameters of a search.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct SearchQuery {
    /// Words of the title, or a part of the id; if empty, every item matches.
    #[serde(default)]
    pub q: String,
    /// The maximum number of items; by default 10, or fewer if the service allows fewer.
    #[serde(default)]
    #[param(minimum = 1, value_type = usize, required = false, nullable = false)]
    pub limit: Option<usize>,
}

/// Whether the service is alive, or ready.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct StatusResponse {
    /// Always `ok`; a service that is not ready answers with an error.
    pub status: String,
    /// The number of the generation in service, if a run is loaded.
    pub generation: Option<u64>,
    /// The model's name.
    pub model: Option<String>,
    /// The number of items in service.
    pub items: Option<usize>,
    /// How the best items are found.
    pub search: Option<String>,
    /// `reachable` or `unreachable`, if added items are kept in PostgreSQL.
    pub store: Option<String>,
    /// How often a newer state of the run could not be loaded since this one has been in service. The log says why.
    pub failed_reloads: Option<u32>,
}
