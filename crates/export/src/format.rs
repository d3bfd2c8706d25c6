//! The formats of exports.

use crate::vectors::VectorFormat;

/// What can be exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum ExportFormat {
    /// The best items for every user, one row per user: `lists/lists.parquet`.
    ListsParquet,
    /// The same lists, one JSON object per user: `lists/lists.jsonl`.
    ListsJsonl,
    /// The same lists, one row per listed item: `lists/lists.csv`.
    ListsCsv,
    /// The vectors of items and queries, and the histories of the queries, as `.npy` files: `vectors/`.
    VectorsNpy,
    /// The same vectors as one safetensors file: `vectors/vectors.safetensors`.
    VectorsSafetensors,
    /// The same vectors as `vectors/items.parquet` and `vectors/queries.parquet`.
    VectorsParquet,
    /// The dataset and its features as RecBole's atomic files: `recbole/DATASET/`.
    Recbole,
    /// The dataset and its features as MMRec reads them: `mmrec/DATASET/`.
    Mmrec,
    /// A model folder as on the Hugging Face hub, from which this program recommends: `huggingface/`.
    Huggingface,
}

impl ExportFormat {
    /// Whether the format needs only the dataset and its features.
    pub(crate) fn is_of_dataset(self) -> bool {
        matches!(self, Self::Recbole | Self::Mmrec)
    }

    pub(crate) fn vectors(self) -> Option<VectorFormat> {
        match self {
            Self::VectorsNpy => Some(VectorFormat::Npy),
            Self::VectorsSafetensors => Some(VectorFormat::Safetensors),
            Self::VectorsParquet => Some(VectorFormat::Parquet),
            _ => None,
        }
    }
}
