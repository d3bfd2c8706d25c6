//! What only the generator knows about the shop: `truth.json`.

use serde::{Deserialize, Serialize};

use crate::vocabulary::{BRANDS, COLOURS, KINDS, PATTERNS, SHAPES, STYLES, USES};

/// The content of `truth.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Truth {
    /// The version of the generator.
    pub version: u32,
    /// The seed of the world.
    pub seed: u64,
    /// The values of each attribute.
    pub vocabulary: Vocabulary,
    /// The counts of what the raw files contain.
    pub raw: Raw,
    /// The counts of the planted faults, which are exact.
    pub faults: Faults,
    /// What is left after removing repeats and filtering users and items to at least five events each.
    pub five_core: Core,
    /// The Recall@10 on each usual user's last event of an oracle that knows the taste behind it. A recommender exceeds it only by luck.
    pub oracle_recall_10: f64,
    /// Every item, in the order of the metadata file.
    pub items: Vec<TruthItem>,
}

/// The attributes' values.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Vocabulary {
    /// The kinds of goods, in images and texts, each with the nouns that the texts use.
    pub kind: Vec<Vec<String>>,
    /// The colours, which only images show.
    pub colour: Vec<String>,
    /// The patterns, which only images show.
    pub pattern: Vec<String>,
    /// The shapes, which only images show.
    pub shape: Vec<String>,
    /// The brands, which only texts name.
    pub brand: Vec<String>,
    /// The materials, which only texts name.
    pub material: Vec<String>,
    /// The uses, which only texts name.
    pub usage: Vec<String>,
    /// The styles, which only texts name.
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

/// The counts of what was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Raw {
    /// The number of lines of `reviews.json.gz`: events, repeats and cut lines.
    pub review_lines: usize,
    /// The number of lines of `meta.json.gz`.
    pub metadata_lines: usize,
    /// The number of files in `images/`, readable or not.
    pub image_files: usize,
    /// The number of distinct users in whole review lines.
    pub users: usize,
    /// The number of distinct items in whole review lines.
    pub items: usize,
    /// The number of distinct (user, item) pairs in whole review lines.
    pub events: usize,
}

/// The numbers of planted faults.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Faults {
    /// The number of metadata lines whose title holds entities or tags.
    pub titles_with_markup: usize,
    /// The number of metadata lines whose description holds entities or tags.
    pub descriptions_with_markup: usize,
    /// The number of review lines that repeat an earlier (user, item) pair.
    pub repeated_events: usize,
    /// The number of review lines cut in half.
    pub cut_review_lines: usize,
    /// The number of metadata lines without title, description, features and brand.
    pub items_without_text: usize,
    /// The number of items of the metadata without an image file.
    pub items_without_image: usize,
    /// The number of image files that do not decode.
    pub images_that_do_not_decode: usize,
    /// The number of items in reviews that have no metadata line (and no image file).
    pub items_without_metadata: usize,
    /// The number of items of the metadata without a review.
    pub items_without_reviews: usize,
    /// The number of users with one to four distinct items.
    pub users_under_five: usize,
    /// The number of items with one to four distinct users.
    pub items_under_five: usize,
}

/// The size of a filtered dataset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Core {
    /// The number of users left.
    pub users: usize,
    /// The number of items left.
    pub items: usize,
    /// The number of events left.
    pub events: usize,
}

/// One item as the generator knows it.
#[expect(clippy::struct_excessive_bools, reason = "a record of independent facts")]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TruthItem {
    /// The identifier in the raw files.
    pub asin: String,
    /// The kind, in image and texts.
    pub kind: String,
    /// The colour, which only the image shows.
    pub colour: String,
    /// The pattern, which only the image shows.
    pub pattern: String,
    /// The shape, which only the image shows.
    pub shape: String,
    /// The brand, which only the texts name.
    pub brand: String,
    /// The material, which only the texts name.
    pub material: String,
    /// The use, which only the texts name.
    pub usage: String,
    /// The style, which only the texts name.
    pub style: String,
    /// The day on which it appeared, counted from the opening of the shop.
    pub released_day: u32,
    /// Its image file, relative to the folder of `truth.json`.
    pub image: Option<String>,
    /// Whether the image file decodes.
    pub image_decodes: bool,
    /// Whether the metadata line has text.
    pub has_text: bool,
    /// Whether there is a metadata line.
    pub has_metadata: bool,
    /// Whether the item was held out from the training of the built-in encoders.
    pub held_out: bool,
}
