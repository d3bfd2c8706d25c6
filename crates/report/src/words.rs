//! The words that CLIP chose for images, read from the table that the extract stage writes.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::Path;

use mp4sr_artifact::{Error, Table};

use crate::Result;
use crate::users::spread;

/// The words of one image.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Described {
    /// The row of the item.
    pub(crate) item: usize,
    /// The image, as the item names it.
    pub(crate) image: String,
    /// The words, best first, with their cosine similarities.
    pub(crate) words: Vec<(String, f32)>,
}

/// The words that the page shows.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Words {
    /// The first images of some items, with their words.
    pub(crate) samples: Vec<Described>,
    /// The most frequent words with their numbers of items, most frequent first.
    pub(crate) frequent: Vec<(String, usize)>,
    /// The number of items with an image that has words.
    pub(crate) items: usize,
}

impl Words {
    /// Selects `count` samples among the items in `shown`, evenly spaced, and the `most` most frequent words of all items.
    pub(crate) fn of(described: &[Described], shown: &BTreeSet<usize>, count: usize, most: usize) -> Self {
        let mut first: HashMap<usize, usize> = HashMap::new();
        for (row, found) in described.iter().enumerate() {
            first.entry(found.item).or_insert(row);
        }
        let rows: Vec<usize> = shown.iter().filter_map(|item| first.get(item).copied()).collect();
        let samples = spread(&rows, count, 2).into_iter().map(|row| described[row].clone()).collect();
        Self { samples, frequent: frequent(described, most), items: first.len() }
    }
}

/// Reads the table of words. `is_of` checks whether an image belongs to an item (0-based row).
pub(crate) fn read_words(
    path: &Path,
    data: &Path,
    item_count: usize,
    is_of: impl Fn(usize, &str) -> bool,
) -> Result<Vec<Described>> {
    const REMEDY: &str = "run `mp4sr extract` again";
    let mut table = Table::read(path, REMEDY)?;
    let (items, images) = (table.take_u32("item")?, table.take_files("image", data)?);
    let (words, scores) = (table.take_texts("words")?, table.take_f32s("scores")?);
    let rows = items.into_iter().zip(images).zip(words.into_iter().zip(scores)).enumerate();
    rows.map(|(row, ((item, image), (words, scores)))| {
        let wrong = |reason: String| Error::unusable(path, format!("row {}: {reason}", row + 1), REMEDY);
        if item == 0 || item as usize > item_count {
            return Err(wrong(format!("found item {item} among {item_count} items")).into());
        }
        if !is_of(item as usize - 1, &image) {
            return Err(wrong(format!("item {item} has no image `{image}`")).into());
        }
        if words.len() != scores.len() {
            return Err(wrong(format!("expected {} scores, found {}", words.len(), scores.len())).into());
        }
        Ok(Described { item: item as usize - 1, image, words: words.into_iter().zip(scores).collect() })
    })
    .collect()
}

/// The most frequent words, by their number of items: a word counts once per item, however many of its images have it. Equal counts are
/// ordered alphabetically.
fn frequent(described: &[Described], most: usize) -> Vec<(String, usize)> {
    let mut items: HashMap<&str, HashSet<usize>> = HashMap::new();
    for found in described {
        found.words.iter().for_each(|(word, _)| {
            items.entry(word).or_default().insert(found.item);
        });
    }
    let mut counts: Vec<(&str, usize)> = items.into_iter().map(|(word, items)| (word, items.len())).collect();
    counts.sort_unstable_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
    counts.into_iter().take(most).map(|(word, count)| (word.to_owned(), count)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use mp4sr_artifact::Column;

    fn described(item: usize, image: &str, words: &[&str]) -> Described {
        let words = words.iter().map(|&word| (word.to_owned(), 0.25)).collect();
        Described { item, image: image.to_owned(), words }
    }

    #[test]
    fn a_word_counts_once_per_item_and_samples_are_first_images_of_shown_items() {
        let all = [
            described(0, "a", &["red", "shoe"]),
            described(0, "b", &["red", "boot"]),
            described(1, "c", &["shoe", "red"]),
            described(4, "d", &["shoe"]),
            described(5, "e", &[]),
        ];
        let words = Words::of(&all, &BTreeSet::from([0, 2, 4]), 8, 2);
        assert_eq!(words.frequent, [("shoe".to_owned(), 3), ("red".to_owned(), 2)], "red is in two images of item 0");
        assert_eq!(words.items, 4);
        assert_eq!(words.samples, [all[0].clone(), all[3].clone()], "item 2 has no words");
        assert_eq!(Words::of(&all, &BTreeSet::from([0, 1, 4]), 1, 0).samples, [all[2].clone()]);
        assert_eq!(Words::of(&[], &BTreeSet::from([0]), 8, 30), Words::default());
    }

    #[test]
    fn a_table_that_does_not_match_the_items_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image.x.words.parquet");
        let write = |item: u32, scores: Vec<f32>| {
            Table::new(vec![
                ("item", Column::U32(vec![1, item])),
                ("image", Column::Text(vec!["a".into(), "b".into()])),
                ("words", Column::Texts(vec![vec![], vec!["red".into()]])),
                ("scores", Column::F32s(vec![vec![], scores])),
            ])
            .write(&path)
            .unwrap();
        };
        write(2, vec![0.5]);
        let is_own = |item: usize, image: &str| ["a", "b"][item] == image;
        let read = read_words(&path, Path::new("data"), 2, is_own).unwrap();
        assert_eq!(read[1], Described { item: 1, image: "b".into(), words: vec![("red".into(), 0.5)] });
        for (item, scores, expected) in [
            (3, vec![0.5], "row 2: found item 3 among 2 items"),
            (1, vec![0.5], "row 2: item 1 has no image `b`"),
            (2, vec![], "row 2: expected 1 scores, found 0"),
        ] {
            write(item, scores);
            let message = read_words(&path, Path::new("data"), 2, is_own).unwrap_err().to_string();
            assert!(message.contains(expected) && message.ends_with("run `mp4sr extract` again"), "{message}");
        }
    }
}
