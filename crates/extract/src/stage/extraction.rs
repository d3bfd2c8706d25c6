//! An extraction: its items and settings, and what all modalities share: texts, the cache of vectors, and the files of features.

use std::collections::HashMap;
use std::path::Path;
use std::time::Instant;

use mp4sr_artifact::{EncoderWork, Features, Fingerprint, Items, Layout, RowsHeader, VectorKey, vector_key};
use mp4sr_pipeline::Context;
use serde_json::json;

use super::image_files::ImageFiles;
use crate::cache::{self, CachedEncoder, EncoderCache};
use crate::device::EncoderDevice;
use crate::error::{Error, Result};
use crate::folder::ModelFolder;
use crate::sentence::SentenceEncoder;

/// Incremented with every change to the outputs of the same inputs.
pub(super) const VERSION: u32 = 4;
pub(super) const NAME: &str = "extract";

/// The sentence encoder with its vectors in the cache, and how much it has computed.
pub(super) struct Sentences {
    pub(super) encoder: SentenceEncoder,
    pub(super) cache: EncoderCache,
    pub(super) work: EncoderWork,
}

impl Sentences {
    pub(super) fn open(extraction: &Extraction<'_>, folder: &ModelFolder, device: &EncoderDevice) -> Result<Self> {
        let encoder = SentenceEncoder::from_folder(folder, device)?;
        let (files, width) = (SentenceEncoder::files(folder)?, encoder.width());
        let about = CachedEncoder { folder, content: "sentences", files, width, precision: device.precision() };
        let cache = extraction.open_cache(&about)?;
        Ok(Self { encoder, cache, work: EncoderWork::default() })
    }
}

/// The items whose words are added to the dictionary.
#[derive(Clone, Copy)]
pub(super) enum DictionaryItems<'x> {
    /// Items in memory.
    These(&'x Items),
    /// The items of a dataset, which are read if a dictionary has to be built.
    OfDataset(&'x Layout),
}

/// The items whose features are written, and where the vectors are kept.
pub(super) struct Extraction<'x> {
    pub(super) context: &'x Context,
    pub(super) items: &'x Items,
    pub(super) dictionary_items: DictionaryItems<'x>,
    pub(super) files: &'x ImageFiles,
    /// Whether vectors of the items stay in the cache.
    pub(super) keep: bool,
}

impl Extraction<'_> {
    /// Opens the cached vectors of an encoder and logs which shards could not be used.
    pub(super) fn open_cache(&self, encoder: &CachedEncoder<'_>) -> Result<EncoderCache> {
        let cache = cache::open(&self.context.layout.vectors(), encoder, self.keep)?;
        cache.vectors.damaged().iter().for_each(|damage| self.context.progress.warn("extract", damage));
        Ok(cache)
    }

    /// Writes the new vectors of a cache and how long they took, unless the vectors are only needed once.
    pub(super) fn keep(&self, cache: &mut EncoderCache, computed: u64, start: Instant) -> Result<()> {
        if !self.keep {
            return Ok(());
        }
        cache.vectors.flush()?;
        cache.note(computed, start.elapsed())
    }

    /// Computes the vectors of the texts that are missing in the cache.
    pub(super) fn encode<'t>(
        &self,
        what: &str,
        sentences: &mut Sentences,
        texts: impl Iterator<Item = &'t String>,
    ) -> Result<()> {
        let Sentences { encoder, cache, work } = sentences;
        let mut seen: HashMap<VectorKey, &String> = HashMap::new();
        for text in texts {
            seen.entry(vector_key(text.as_bytes())).or_insert(text);
        }
        work.distinct += seen.len() as u64;
        let mut new: Vec<(VectorKey, &String)> =
            seen.into_iter().filter(|(key, _)| !cache.vectors.contains(*key)).collect();
        new.sort_unstable();
        let start = Instant::now();
        let bar = self.context.progress.bar(what, "sentences", new.len() as u64);
        for chunk in new.chunks(encoder.texts_at_once()) {
            let texts: Vec<&String> = chunk.iter().map(|(_, text)| *text).collect();
            let vectors = encoder.encode(&texts, |count| bar.add(count))?;
            let keys: Vec<VectorKey> = chunk.iter().map(|(key, _)| *key).collect();
            cache.vectors.add(&keys, &vectors)?;
        }
        let computed = encoder.take_count();
        work.computed += computed;
        self.keep(cache, computed, start)
    }

    /// Writes the features of the items, each with the vectors of its `keys`. `encoder` is the fingerprint of everything that determines an
    /// item's vectors. Only the settings in `sections` are recorded, so that another encoder of images leaves the features of texts as they
    /// are. Existing features are not replaced by empty ones.
    pub(super) fn write(
        &self,
        path: &Path,
        sections: &[&str],
        encoded: &EncoderCache,
        encoder: &Fingerprint,
        keys: &[Vec<VectorKey>],
    ) -> Result<()> {
        if keys.iter().all(Vec::is_empty)
            && let Some(rows) = Features::stored_rows(path).filter(|&rows| rows > 0)
        {
            return Err(Error::Emptied { path: path.to_owned(), rows });
        }
        let mut offsets = vec![0_i64];
        offsets.extend(keys.iter().scan(0, |rows, keys| {
            *rows += keys.len() as i64;
            Some(*rows)
        }));
        let settings = &self.context.config.extract;
        let kind = settings.storage;
        let rows = || keys.iter().flatten().filter_map(|key| encoded.vectors.get(*key));
        if rows().count() != keys.iter().map(Vec::len).sum::<usize>() {
            return Err(Error::Missing { path: path.to_owned() });
        }
        let all = json!(settings);
        let mut recorded = json!({ "storage": all["storage"], "precision": all["precision"], "encoder": encoder });
        sections.iter().for_each(|section| recorded[*section] = all[*section].clone());
        let header = RowsHeader {
            stage: NAME,
            settings: recorded,
            item_hash: self.items.hash(),
            offsets: &offsets,
            width: encoded.width(),
            as_type: kind,
        };
        match Features::write_rows(path, header, rows)? {
            None => Ok(()),
            Some(_) => {
                Err(Error::Storage { path: path.to_owned(), storage: format!("{:?}", settings.storage).to_lowercase() })
            }
        }
    }
}
