//! What requests and answers look like.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The length of a list where a request gives none.
fn ten() -> usize {
    10
}

/// Who wants a list, of what.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RecommendRequest {
    /// Ids of items, oldest first. Empty for a user of the dataset: the history of the dataset.
    #[serde(default)]
    #[schema(example = json!(["B09P5O2CH9", "B0YU0S2NF7"]))]
    pub history: Vec<String>,
    /// The id of a user of the dataset, where the request is of one.
    #[serde(default)]
    pub user_id: Option<String>,
    /// The length of the list.
    #[serde(default = "ten")]
    #[schema(minimum = 1, default = 10)]
    pub k: usize,
    /// Ids of items that are not listed.
    #[serde(default)]
    pub exclude: Vec<String>,
    /// Ids of the only items that may be listed; empty: every item.
    #[serde(default)]
    pub only: Vec<String>,
}

/// An item of a list.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct ListedItem {
    /// The item's id.
    pub item_id: String,
    /// Its title; empty if it has none.
    pub title: String,
    /// Its score; of a fallback, the number of training events; of neighbours, the cosine.
    pub score: f32,
    /// The path of its first image, where it has one.
    pub image: Option<String>,
}

/// A list.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct ListResponse {
    /// Items, best first.
    pub items: Vec<ListedItem>,
    /// `popular` where no item of the history is known; nothing if the model made the list.
    pub fallback: Option<String>,
    /// Ids of the request that are not items of the run.
    pub unknown: Vec<String>,
    /// The number of the run in service that made the list.
    pub generation: u64,
}

/// Whose neighbours are wanted: exactly one of `item_id`, or `text` and `image` or both.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SimilarRequest {
    /// An item of the run.
    #[serde(default)]
    pub item_id: Option<String>,
    /// The description of an item in a request.
    #[serde(default)]
    pub text: Option<String>,
    /// The bytes of an image file, in base64.
    #[serde(default)]
    pub image: Option<String>,
    /// The length of the list.
    #[serde(default = "ten")]
    #[schema(minimum = 1, default = 10)]
    pub k: usize,
    /// Ids of items that are not listed.
    #[serde(default)]
    pub exclude: Vec<String>,
    /// Ids of the only items that may be listed; empty: every item.
    #[serde(default)]
    pub only: Vec<String>,
}

/// A new item.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewItem {
    /// Its id, which no item of the dataset has.
    #[schema(min_length = 1)]
    pub item_id: String,
    /// Its title.
    #[serde(default)]
    pub title: String,
    /// Further texts.
    #[serde(default)]
    pub texts: Vec<String>,
    /// Names of categories.
    #[serde(default)]
    pub categories: Vec<String>,
    /// The bytes of image files, in base64.
    #[serde(default)]
    pub images: Vec<String>,
}

/// Items to add.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PutItemsRequest {
    /// The items; one that was added before takes the place of the earlier one.
    #[schema(min_items = 1)]
    pub items: Vec<NewItem>,
}

/// What adding items did.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct PutItemsResponse {
    /// Ids that the run did not have.
    pub added: Vec<String>,
    /// Ids whose items took the place of earlier ones.
    pub replaced: Vec<String>,
    /// What could not be used, a sentence each.
    pub notes: Vec<String>,
    /// New items of the run in all.
    pub new_items: usize,
    /// The number of the run in service that has them.
    pub generation: u64,
}

/// Items to remove.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DeleteItemsRequest {
    /// Ids of items that were added.
    #[schema(min_items = 1)]
    pub item_ids: Vec<String>,
}

/// What removing items did.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct DeleteItemsResponse {
    /// How many items were removed.
    pub removed: usize,
    /// The number of the run in service that lacks them.
    pub generation: u64,
}

/// An item.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct ItemResponse {
    /// Its id.
    pub item_id: String,
    /// Its title; empty if it has none.
    pub title: String,
    /// Its sentences, the title's first.
    pub sentences: Vec<String>,
    /// Names of its categories.
    pub categories: Vec<String>,
    /// Paths of its images.
    pub images: Vec<String>,
    /// How many events of training it has.
    pub events: u32,
    /// Whether it was added after training.
    pub is_new: bool,
}

/// Items that a search found.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct SearchResponse {
    /// The items with the most training events first; `score` is their number.
    pub items: Vec<ListedItem>,
}

/// What is searched.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
pub struct SearchQuery {
    /// Words of the title, or a part of the id; empty: every item.
    #[serde(default)]
    pub q: String,
    /// The greatest number of items.
    #[serde(default = "ten")]
    #[param(minimum = 1, default = 10)]
    pub limit: usize,
}

/// Whether the service is alive, or ready.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct StatusResponse {
    /// `ok`.
    pub status: String,
    /// The number of the run in service, where there is one.
    pub generation: Option<u64>,
    /// The model's name.
    pub model: Option<String>,
    /// Items in service.
    pub items: Option<usize>,
    /// How the best items are searched.
    pub search: Option<String>,
    /// `reachable` or `unreachable`, where added items are kept in PostgreSQL.
    pub store: Option<String>,
}
