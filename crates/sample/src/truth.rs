//! What only the generator knows about the shop: `truth.json`.

use serde::{Deserialize, Serialize};

use crate::vocabulary::{BRANDS, COLOURS, KINDS, PATTERNS, SHAPES, STYLES, USES};

/// The content of `truth.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Truth {
    /// Version of the generator.
    pub version: u32,
    /// Seed of the world.
    pub seed: u64,
    /// Values of each attribute, by attribute.
    pub vocabulary: Vocabulary,
    /// What the raw files hold.
    pub raw: Raw,
    /// Planted faults, each an exact count.
    pub faults: Faults,
    /// What is left after removing repeats and filtering users and items to five events each.
    pub five_core: Core,
    /// Recall@10 on each usual user's last event of someone who knows the taste behind it: no recommender gets above it
    /// by more than luck.
    pub oracle_recall_10: f64,
    /// Every item, in the order of the metadata file.
    pub items: Vec<TruthItem>,
}

/// The attributes' values.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Vocabulary {
    /// Kinds of goods, visible and written, each with the nouns that the texts use.
    pub kind: Vec<Vec<String>>,
    /// Visible only.
    pub colour: Vec<String>,
    /// Visible only.
    pub pattern: Vec<String>,
    /// Visible only.
    pub shape: Vec<String>,
    /// Written only.
    pub brand: Vec<String>,
    /// Written only.
    pub material: Vec<String>,
    /// Written only.
    pub usage: Vec<String>,
    /// Written only.
    pub style: Vec<String>,
}

impl Vocabulary {
    pub(crate) fn of_the_world() -> Self {
        let owned = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        let mut material: Vec<_> = KINDS.iter().flat_map(|kind| kind.materials).map(str::to_owned).collect();
        material.sort();
        material.dedup();
        Self {
            kind: KINDS.iter().map(|kind| owned(&kind.nouns)).collect(),
            colour: COLOURS.iter().map(|(name, _)| (*name).to_owned()).collect(),
            pattern: owned(&PATTERNS),
            shape: owned(&SHAPES),
            brand: owned(&BRANDS),
            material,
            usage: USES.iter().map(|written| written.name.to_owned()).collect(),
            style: STYLES.iter().map(|written| written.name.to_owned()).collect(),
        }
    }
}

/// Counts of what was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Raw {
    /// Lines of `reviews.json.gz`: events, repeats and cut lines.
    pub review_lines: usize,
    /// Lines of `meta.json.gz`.
    pub metadata_lines: usize,
    /// Files in `images/`, readable or not.
    pub image_files: usize,
    /// Distinct users in whole review lines.
    pub users: usize,
    /// Distinct items in whole review lines.
    pub items: usize,
    /// Distinct (user, item) pairs in whole review lines.
    pub events: usize,
}

/// Planted faults.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Faults {
    /// Metadata lines whose title holds entities or tags.
    pub titles_with_markup: usize,
    /// Metadata lines whose description holds entities or tags.
    pub descriptions_with_markup: usize,
    /// Review lines that repeat an earlier (user, item) pair.
    pub repeated_events: usize,
    /// Review lines cut in half.
    pub cut_review_lines: usize,
    /// Metadata lines without title, description, features, brand.
    pub items_without_text: usize,
    /// Items of the metadata without an image file.
    pub items_without_image: usize,
    /// Image files that do not decode.
    pub images_that_do_not_decode: usize,
    /// Items in reviews that have no metadata line (and no image file).
    pub items_without_metadata: usize,
    /// Items of the metadata without a review.
    pub items_without_reviews: usize,
    /// Users with one to four distinct items.
    pub users_under_five: usize,
    /// Items with one to four distinct users.
    pub items_under_five: usize,
}

/// The size of a filtered data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Core {
    /// Users left.
    pub users: usize,
    /// Items left.
    pub items: usize,
    /// Events left.
    pub events: usize,
}

/// One item as the generator knows it.
#[expect(clippy::struct_excessive_bools, reason = "a record of independent facts")]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TruthItem {
    /// Identifier in the raw files.
    pub asin: String,
    /// Visible and written.
    pub kind: String,
    /// Visible only.
    pub colour: String,
    /// Visible only.
    pub pattern: String,
    /// Visible only.
    pub shape: String,
    /// Written only.
    pub brand: String,
    /// Written only.
    pub material: String,
    /// Written only.
    pub usage: String,
    /// Written only.
    pub style: String,
    /// Day since opening on which it appeared.
    pub released_day: u32,
    /// Its image file, relative to the folder of `truth.json`.
    pub image: Option<String>,
    /// Whether the image file decodes.
    pub image_decodes: bool,
    /// Whether the metadata line has text.
    pub has_text: bool,
    /// Whether there is a metadata line.
    pub has_metadata: bool,
    /// Whether it was kept from the training of the carried encoders.
    pub held_out: bool,
}
