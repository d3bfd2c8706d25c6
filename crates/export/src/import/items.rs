//! The items of a data set while they are brought over.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::dataset::ItemLine;

/// An item, a line of the file that `mp4sr preprocess` reads.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ImportedItem {
    pub item_id: String,
    pub title: String,
    /// Sentences that are used as they are.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sentences: Vec<String>,
    /// Texts that are cut into sentences.
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
    /// An item of which nothing is known.
    pub fn of_id(item_id: &str) -> Self {
        Self { item_id: item_id.to_owned(), ..Self::default() }
    }

    /// An item that this program exported; files are looked for in `images`, and counted as left out where no folder is named.
    pub fn of_line(line: ItemLine, images: Option<&Path>, left_out: &mut usize) -> Self {
        let mut found = |names: Vec<String>| -> Vec<String> {
            let is_address = |name: &String| name.contains("://");
            let place = |name: String| match images {
                _ if is_address(&name) => Some(name),
                Some(folder) => Some(absolute(&folder.join(name)).display().to_string()),
                None => {
                    *left_out += 1;
                    None
                }
            };
            names.into_iter().filter_map(place).collect()
        };
        let (images, sounds) = (found(line.images), found(line.sounds));
        let ItemLine { item_id, title, sentences, categories, .. } = line;
        Self { item_id, title, sentences, texts: Vec::new(), images, categories, sounds }
    }
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}
