//! The formats of the world and the names of its files.

use serde::{Deserialize, Serialize};

/// Incremented with every change to the output of a seed.
pub const GENERATOR_VERSION: u32 = 2;
/// The review file.
pub const REVIEWS: &str = "reviews.json.gz";
/// The metadata file.
pub const META: &str = "meta.json.gz";
/// The table of purchases.
pub const PURCHASES: &str = "purchases.csv";
/// The table of products.
pub const PRODUCTS: &str = "products.csv";
/// The folder of images.
pub const IMAGES: &str = "images";
/// The file of what only the generator knows.
pub const TRUTH: &str = "truth.json";

/// How the world is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SampleFormat {
    /// Reviews and metadata in the format of Amazon's files of 2018, with some truncated lines.
    #[default]
    Amazon,
    /// Purchases and products as CSV files, as a shop's own database exports them.
    Tables,
}

impl SampleFormat {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes fields by reference")]
    pub(crate) fn is_amazon(&self) -> bool {
        *self == Self::Amazon
    }

    /// The files of interactions and of items.
    pub(crate) fn files(self) -> [&'static str; 2] {
        match self {
            Self::Amazon => [REVIEWS, META],
            Self::Tables => [PURCHASES, PRODUCTS],
        }
    }
}
