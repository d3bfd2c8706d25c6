//! The words of a dictionary that describe each image.

use std::path::Path;
use std::time::Instant;

use mp4sr_artifact::{Column, EncoderWork, Table, VectorCache, VectorKey, vector_key};
use rayon::prelude::*;

use super::Extraction;
use crate::cache::EncoderCache;
use crate::dictionary;
use crate::encoder::WordEncoder;
use crate::error::Result;
use crate::words::WordVectors;

impl Extraction<'_> {
    /// The configured dictionary, or one of the visual words and frequent words of the texts of `dictionary_items`.
    pub(super) fn dictionary(&self) -> Result<Vec<String>> {
        let settings = &self.context.config.extract.image;
        if settings.dictionary.is_empty() {
            return Ok(dictionary::build(&self.dictionary_items.sentences, settings.text_words));
        }
        dictionary::read(Path::new(&settings.dictionary))
    }

    /// Chooses the words of every usable image and writes the table of words to `path`. Returns, for each item, a text per
    /// image: its words joined by spaces.
    pub(super) fn choose_words(
        &self,
        path: &Path,
        usable: &[Vec<(&String, VectorKey)>],
        vectors: &VectorCache,
        of_words: &WordVectors,
        words: &[String],
    ) -> Result<Vec<Vec<String>>> {
        let count = self.context.config.extract.image.words;
        let owned: Vec<(usize, &String, VectorKey)> = usable
            .iter()
            .enumerate()
            .flat_map(|(item, images)| images.iter().map(move |&(name, key)| (item, name, key)))
            .collect();
        let found: Vec<_> = owned
            .par_iter()
            .map(|&(_, _, key)| of_words.nearest(vectors.get(key).unwrap_or_default(), count))
            .collect();
        let mut chosen = vec![Vec::new(); usable.len()];
        let (mut column_item, mut column_image) = (Vec::new(), Vec::new());
        let (mut column_words, mut column_scores) = (Vec::new(), Vec::new());
        for (&(item, name, _), found) in owned.iter().zip(found) {
            let list: Vec<String> = found.words.iter().map(|&word| words[word].clone()).collect();
            chosen[item].push(list.join(" "));
            column_item.push(item as u32 + 1);
            column_image.push(name.clone());
            column_words.push(list);
            column_scores.push(found.scores);
        }
        Table::new(vec![
            ("item", Column::U32(column_item)),
            ("image", Column::Text(column_image)),
            ("words", Column::Texts(column_words)),
            ("scores", Column::F32s(column_scores)),
        ])
        .with_files_in("image", Path::new(&self.context.config.dataset.data))
        .write(path)?;
        Ok(chosen)
    }
}

/// Vectors of the dictionary's words. The vector of a word is computed once, whatever dictionaries hold it.
pub(super) fn embed_words(
    encoder: &dyn WordEncoder,
    mut cache: EncoderCache,
    width: usize,
    words: &[String],
) -> Result<(WordVectors, EncoderWork)> {
    let keys: Vec<VectorKey> = words.iter().map(|word| vector_key(word.as_bytes())).collect();
    let (new_keys, new): (Vec<VectorKey>, Vec<&str>) = keys
        .iter()
        .copied()
        .zip(words.iter().map(String::as_str))
        .filter(|(key, _)| !cache.vectors.contains(*key))
        .unzip();
    let start = Instant::now();
    cache.vectors.add(&new_keys, &encoder.embed_words(&new)?)?;
    cache.vectors.flush()?;
    cache.note(new.len() as u64, start.elapsed())?;
    let vectors: Vec<f32> = keys.iter().filter_map(|key| cache.vectors.get(*key)).flatten().copied().collect();
    let work = EncoderWork { distinct: words.len() as u64, computed: new.len() as u64 };
    Ok((WordVectors::new(vectors, width), work))
}
