//! The items of a dataset during an import.

use serde::Serialize;

use crate::dataset::ItemLine;

/// An item, one line of the file that `mp4sr preprocess` reads.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ImportedItem {
    pub item_id: String,
    pub title: String,
    /// Sentences that are used unchanged.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sentences: Vec<String>,
    /// Texts that are split into sentences.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub texts: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub categories: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sounds: Vec<String>,
}

impl ImportedItem {
    /// An item of which only the id is known.
    pub fn of_id(item_id: &str) -> Self {
        Self { item_id: item_id.to_owned(), ..Self::default() }
    }

    /// An item that this program exported. URLs of images and sounds are kept. File names are kept if `has_files`, and otherwise dropped
    /// and counted in `left_out`.
    pub fn of_line(line: ItemLine, has_files: bool, left_out: &mut usize) -> Self {
        let mut found = |mut names: Vec<String>| -> Vec<String> {
            let all = names.len();
            names.retain(|name| has_files || name.contains("://"));
            *left_out += all - names.len();
            names
        };
        let (images, sounds) = (found(line.images), found(line.sounds));
        let ItemLine { item_id, title, sentences, categories, .. } = line;
        Self { item_id, title, sentences, texts: Vec::new(), images, categories, sounds }
    }
}
