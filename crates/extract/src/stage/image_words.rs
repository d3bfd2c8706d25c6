//! The words of a dictionary that describe each image.

use std::path::Path;
use std::time::Instant;

use mp4sr_artifact::{Column, EncoderWork, Items, Table, VectorCache, VectorKey, vector_key};
use rayon::prelude::*;

use super::extraction::{DictionaryItems, Extraction};
use super::images::Images;
use crate::cache::{CachedEncoder, EncoderCache};
use crate::device::EncoderDevice;
use crate::dictionary;
use crate::encoder::WordEncoder;
use crate::error::{Error, Result};
use crate::folder::ModelFolder;
use crate::open::image_encoder_files;
use crate::words::WordVectors;

/// The words that may describe an image, with their vectors.
pub(super) struct Dictionary {
    pub words: Vec<String>,
    vectors: WordVectors,
    /// The number of vectors that were computed, rather than found in the cache, since `take_work` was last called.
    computed: u64,
}

impl Dictionary {
    /// The dictionary of the encoder of `images`, which is in `folder`.
    pub(super) fn open(
        extraction: &Extraction<'_>,
        folder: &ModelFolder,
        device: &EncoderDevice,
        images: &Images,
    ) -> Result<Self> {
        let Some(encoder) = images.encoder.word_encoder() else {
            let found = folder.model_type()?;
            return Err(folder.config.error(format!("model_type: expected clip, found {found}")));
        };
        let words = extraction.dictionary()?;
        let (found, wanted) = (words.len(), extraction.context.config.extract.image.words);
        if found < wanted {
            let reason = format!(
                "the dictionary has {found} words, so every image gets {found} instead of `extract.image.words` = {wanted}; in a dictionary \
                 file, `#` starts a comment"
            );
            extraction.context.progress.warn("extract", reason);
        }
        let (files, width) = (image_encoder_files(folder)?, images.encoder.width());
        let about = CachedEncoder { folder, content: "words", files, width, precision: device.precision() };
        let (vectors, computed) =
            embed_words(encoder, extraction.open_cache(&about)?, width, &words, !extraction.keep)?;
        Ok(Self { words, vectors, computed })
    }

    /// The work since the last call.
    pub(super) fn take_work(&mut self) -> EncoderWork {
        EncoderWork { distinct: self.words.len() as u64, computed: std::mem::take(&mut self.computed) }
    }
}

impl Extraction<'_> {
    /// The configured dictionary, or one of the visual words and the frequent words of the dataset's texts.
    fn dictionary(&self) -> Result<Vec<String>> {
        let settings = &self.context.config.extract.image;
        if !settings.dictionary.is_empty() {
            return dictionary::read(Path::new(&settings.dictionary));
        }
        match self.dictionary_items {
            DictionaryItems::These(items) => Ok(dictionary::build(&items.sentences, settings.text_words)),
            DictionaryItems::OfDataset(layout) => {
                let items = Items::read(&layout.items()).map_err(Error::from)?;
                Ok(dictionary::build(&items.sentences, settings.text_words))
            }
        }
    }

    /// Chooses the words of every usable image and writes the table of words to `path`. Returns, for each item, a text per
    /// image: its words joined by spaces.
    pub(super) fn choose_words(
        &self,
        path: &Path,
        usable: &[Vec<(&String, VectorKey)>],
        vectors: &VectorCache,
        dictionary: &Dictionary,
    ) -> Result<Vec<Vec<String>>> {
        let words = &dictionary.words;
        let count = self.context.config.extract.image.words;
        let owned: Vec<(usize, &String, VectorKey)> = usable
            .iter()
            .enumerate()
            .flat_map(|(item, images)| images.iter().map(move |&(name, key)| (item, name, key)))
            .collect();
        let found: Vec<_> = owned
            .par_iter()
            .map(|&(_, _, key)| dictionary.vectors.nearest(vectors.get(key).unwrap_or_default(), count))
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

/// The vectors of the dictionary's words, and how many were computed. A word's vector is computed once, even if several dictionaries
/// contain it. With `may_lack_cache`, a cache that is read-only is no error.
fn embed_words(
    encoder: &dyn WordEncoder,
    mut cache: EncoderCache,
    width: usize,
    words: &[String],
    may_lack_cache: bool,
) -> Result<(WordVectors, u64)> {
    let keys: Vec<VectorKey> = words.iter().map(|word| vector_key(word.as_bytes())).collect();
    let (new_keys, new): (Vec<VectorKey>, Vec<&str>) = keys
        .iter()
        .copied()
        .zip(words.iter().map(String::as_str))
        .filter(|(key, _)| !cache.vectors.contains(*key))
        .unzip();
    let start = Instant::now();
    cache.vectors.add(&new_keys, &encoder.embed_words(&new)?)?;
    match cache.vectors.flush() {
        Err(error) if may_lack_cache && error.is_read_only() => {}
        stored => {
            stored?;
            cache.note(new.len() as u64, start.elapsed())?;
        }
    }
    let vectors: Vec<f32> = keys.iter().filter_map(|key| cache.vectors.get(*key)).flatten().copied().collect();
    Ok((WordVectors::new(vectors, width), new.len() as u64))
}
