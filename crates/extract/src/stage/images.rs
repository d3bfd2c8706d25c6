//! Image files to vectors in the cache.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use mp4sr_artifact::{Downloads, EncoderWork, UnusableImage, VectorCache, VectorKey, vector_key};
use rayon::prelude::*;

use super::Extraction;
use crate::encoder::ImageEncoder;
use crate::error::Result;

/// Image files that are read before their vectors go to the cache.
const IMAGES: usize = 256;

/// The key of an image's vector in the cache, or the reason why it has none.
type ImageKey = std::result::Result<VectorKey, String>;

/// The vectors of all image files.
pub(super) struct ImageVectors {
    /// The key of each file, in the order of the files.
    keys: Vec<ImageKey>,
    /// The cache that holds the vectors.
    pub vectors: VectorCache,
    /// What was computed.
    pub work: EncoderWork,
}

impl Extraction<'_> {
    /// Brings the vectors of all image files into the cache.
    pub(super) fn embed_images(&self, encoder: &dyn ImageEncoder, mut vectors: VectorCache) -> Result<ImageVectors> {
        let bar = self.context.progress.bar("images", "images", self.files.paths.len() as u64);
        let mut all = Vec::with_capacity(self.files.paths.len());
        let mut work = EncoderWork::default();
        for (names, paths) in self.files.names.chunks(IMAGES).zip(self.files.paths.chunks(IMAGES)) {
            let mut keys: Vec<ImageKey> = names.par_iter().zip(paths).map(|(name, path)| key_of(name, path)).collect();
            let mut new: Vec<(VectorKey, usize)> = keys
                .iter()
                .enumerate()
                .filter_map(|(index, key)| key.as_ref().ok().map(|key| (*key, index)))
                .filter(|(key, _)| !vectors.contains(*key))
                .collect();
            new.sort_unstable();
            new.dedup_by_key(|(key, _)| *key);
            let blocks: Vec<&[(VectorKey, usize)]> = new.chunks(encoder.images_at_once()).collect();
            let embedded: Vec<_> = blocks
                .par_iter()
                .with_max_len(1)
                .map(|block| {
                    let embedded = embed(encoder, block, paths);
                    bar.add(block.len() as u64);
                    embedded
                })
                .collect();
            let mut broken: HashMap<VectorKey, String> = HashMap::new();
            for block in embedded {
                let EmbeddedBlock { keys, vectors: new, unusable } = block?;
                work.computed += keys.len() as u64;
                vectors.add(&keys, &new)?;
                broken.extend(unusable);
            }
            for key in &mut keys {
                if let Some(reason) = key.as_ref().ok().and_then(|key| broken.get(key)) {
                    *key = Err(reason.clone());
                }
            }
            bar.add((keys.len() - new.len()) as u64);
            all.extend(keys);
        }
        vectors.flush()?;
        let mut distinct: Vec<VectorKey> = all.iter().filter_map(|key| key.as_ref().ok().copied()).collect();
        distinct.sort_unstable();
        distinct.dedup();
        work.distinct = distinct.len() as u64;
        Ok(ImageVectors { keys: all, vectors, work })
    }

    /// Names and keys of the images of an item that have a vector.
    pub(super) fn usable<'n>(&self, names: &'n [String], images: &ImageVectors) -> Vec<(&'n String, VectorKey)> {
        let key = |name: &String| images.keys[self.files.index(name)].as_ref().ok().copied();
        names.iter().filter_map(|name| key(name).map(|key| (name, key))).collect()
    }

    /// Images without a vector, in the order of the items.
    pub(super) fn unusable(&self, images: &ImageVectors) -> Vec<UnusableImage> {
        let named = self
            .items
            .ids
            .iter()
            .zip(&self.items.images)
            .flat_map(|(id, names)| names.iter().map(move |name| (id, name)));
        named
            .filter_map(|(id, name)| {
                let reason = images.keys[self.files.index(name)].as_ref().err()?.clone();
                Some(UnusableImage { item_id: id.clone(), image: name.clone(), reason })
            })
            .collect()
    }
}

/// The key of an image file's content.
fn key_of(name: &str, path: &Path) -> ImageKey {
    if Downloads::is_address(name) && !path.is_file() {
        return Err("it was not fetched; run `make download`".to_owned());
    }
    Ok(vector_key(&mp4sr_image::read(path).map_err(|e| e.to_string())?))
}

/// The vectors of a few images, and why others have none.
struct EmbeddedBlock {
    keys: Vec<VectorKey>,
    vectors: Vec<f32>,
    unusable: Vec<(VectorKey, String)>,
}

fn embed(encoder: &dyn ImageEncoder, block: &[(VectorKey, usize)], paths: &[PathBuf]) -> Result<EmbeddedBlock> {
    let (mut keys, mut pixels, mut unusable) = (Vec::new(), Vec::new(), Vec::new());
    for &(key, index) in block {
        match mp4sr_image::read(&paths[index]).and_then(|bytes| encoder.processor().read(&bytes)) {
            Ok(values) => {
                keys.push(key);
                pixels.extend(values);
            }
            Err(reason) => unusable.push((key, reason.to_string())),
        }
    }
    Ok(EmbeddedBlock { vectors: encoder.embed(&pixels)?, keys, unusable })
}
