//! Computes the vectors of image files and adds them to the cache.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use mp4sr_artifact::{Downloads, EncoderWork, UnusableImage, VectorKey, vector_key};
use mp4sr_image::ImageError;
use rayon::prelude::*;

use super::extraction::Extraction;
use crate::cache::{CachedEncoder, EncoderCache};
use crate::device::{EncoderDevice, overlap};
use crate::encoder::ImageEncoder;
use crate::error::Result;
use crate::folder::ModelFolder;
use crate::open::{image_encoder, image_encoder_files};

/// The number of images whose vectors are computed before they are added to the cache.
const IMAGES: usize = 256;

/// The key of an image's vector in the cache, or the reason why it has none.
pub(super) type ImageKey = std::result::Result<VectorKey, String>;

/// The image encoder with its vectors in the cache.
pub(super) struct Images {
    pub encoder: Box<dyn ImageEncoder>,
    pub cache: EncoderCache,
}

impl Images {
    pub(super) fn open(extraction: &Extraction<'_>, folder: &ModelFolder, device: &EncoderDevice) -> Result<Self> {
        let encoder = image_encoder(folder, device)?;
        let (files, width) = (image_encoder_files(folder)?, encoder.width());
        let about = CachedEncoder { folder, content: "images", files, width, precision: device.precision() };
        Ok(Self { encoder, cache: extraction.open_cache(&about)? })
    }
}

/// The keys in the cache of the vectors of all image files.
pub(super) struct ImageVectors {
    /// The key of each file, in the order of the files.
    pub keys: Vec<ImageKey>,
    /// How many vectors were computed.
    pub work: EncoderWork,
}

impl Extraction<'_> {
    /// Adds the vectors of all image files to the cache.
    pub(super) fn embed_images(&self, images: &mut Images) -> Result<ImageVectors> {
        let Images { encoder, cache } = images;
        let encoder = encoder.as_ref();
        let start = Instant::now();
        let vectors = &mut cache.vectors;
        let bar = self.context.progress.bar("images", "images", self.files.paths.len() as u64);
        let named: Vec<(&String, &PathBuf)> = self.files.names.iter().zip(&self.files.paths).collect();
        let failures = if named.iter().any(|(name, path)| is_absent(name, path)) {
            Downloads::new(Path::new(&self.context.config.dataset.data)).failures()
        } else {
            HashMap::new()
        };
        let mut all: Vec<ImageKey> =
            named.par_iter().map(|(name, path)| key_of(name, path, &failures)).collect::<Result<_>>()?;
        let keys = all.iter().enumerate().filter_map(|(index, key)| key.as_ref().ok().map(|key| (*key, index)));
        let mut new: Vec<(VectorKey, usize)> = keys.filter(|(key, _)| !vectors.contains(*key)).collect();
        new.sort_unstable();
        new.dedup_by_key(|(key, _)| *key);
        // Neighbouring files are read one after the other.
        new.sort_unstable_by_key(|(_, index)| *index);
        bar.add((all.len() - new.len()) as u64);
        let mut work = EncoderWork::default();
        let mut broken: HashMap<VectorKey, String> = HashMap::new();
        let mut keep = |EmbeddedBlock { keys, vectors: new, unusable }: EmbeddedBlock| {
            work.computed += keys.len() as u64;
            bar.add((keys.len() + unusable.len()) as u64);
            broken.extend(unusable);
            vectors.add(&keys, &new)
        };
        let paths = &self.files.paths;
        if encoder.is_on_gpu() {
            let read = |block: &[(VectorKey, usize)]| read_block(encoder, block, paths);
            overlap(new.chunks(encoder.images_at_once()), read, |block| Result::Ok(keep(block.embed(encoder)?)?))?;
        } else {
            for chunk in new.chunks(IMAGES) {
                let blocks: Vec<&[(VectorKey, usize)]> = chunk.chunks(encoder.images_at_once()).collect();
                let embed = |block: &&[(VectorKey, usize)]| read_block(encoder, block, paths).embed(encoder);
                let embedded: Vec<_> = blocks.par_iter().with_max_len(1).map(embed).collect();
                embedded.into_iter().try_for_each(|block| Result::Ok(keep(block?)?))?;
            }
        }
        for key in &mut all {
            if let Some(reason) = key.as_ref().ok().and_then(|key| broken.get(key)) {
                *key = Err(reason.clone());
            }
        }
        self.keep(cache, work.computed, start)?;
        let mut distinct: Vec<VectorKey> = all.iter().filter_map(|key| key.as_ref().ok().copied()).collect();
        distinct.sort_unstable();
        distinct.dedup();
        work.distinct = distinct.len() as u64;
        Ok(ImageVectors { keys: all, work })
    }

    /// Names and keys of the images of an item that have a vector.
    pub(super) fn usable<'n>(&self, names: &'n [String], keys: &[ImageKey]) -> Vec<(&'n String, VectorKey)> {
        let key = |name: &String| keys[self.files.index(name)].as_ref().ok().copied();
        names.iter().filter_map(|name| key(name).map(|key| (name, key))).collect()
    }

    /// Images without a vector, in the order of the items.
    pub(super) fn unusable(&self, keys: &[ImageKey]) -> Vec<UnusableImage> {
        let named = self
            .items
            .ids
            .iter()
            .zip(&self.items.images)
            .flat_map(|(id, names)| names.iter().map(move |name| (id, name)));
        named
            .filter_map(|(id, name)| {
                let reason = keys[self.files.index(name)].as_ref().err()?.clone();
                Some(UnusableImage { item_id: id.clone(), image: Downloads::shown(name), reason })
            })
            .collect()
    }
}

/// Whether an image is a URL that has not been downloaded.
fn is_absent(name: &str, path: &Path) -> bool {
    Downloads::is_url(name) && !path.is_file()
}

/// The key of an image file's content. `failures` says why URLs could not be downloaded.
fn key_of(name: &str, path: &Path, failures: &HashMap<u128, String>) -> Result<ImageKey> {
    if is_absent(name, path) {
        let known = failures.get(&Downloads::key(name)).cloned();
        return Ok(Err(known.unwrap_or_else(|| "it was not downloaded; run `mp4sr download`".to_owned())));
    }
    match mp4sr_image::read(path) {
        Ok(bytes) => Ok(Ok(vector_key(&bytes))),
        // Features without this image would be up to date even when the disk can be read again.
        Err(ImageError::Read(error)) if !is_of_path(&error) => {
            Err(mp4sr_artifact::Error::io("read", path, error).into())
        }
        Err(error) => Ok(Err(error.to_string())),
    }
}

/// Whether the path is at fault that a file cannot be read, and not the disk or the system.
fn is_of_path(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{InvalidFilename, InvalidInput, IsADirectory, NotADirectory, NotFound, PermissionDenied};
    matches!(error.kind(), NotFound | PermissionDenied | NotADirectory | IsADirectory | InvalidInput | InvalidFilename)
}

/// The vectors of a few images, and the reasons why others have none.
struct EmbeddedBlock {
    keys: Vec<VectorKey>,
    vectors: Vec<f32>,
    unusable: Vec<(VectorKey, String)>,
}

/// The pixels of a few images, and the reasons why others have none.
struct ReadBlock {
    keys: Vec<VectorKey>,
    pixels: Vec<f32>,
    unusable: Vec<(VectorKey, String)>,
}

impl ReadBlock {
    fn embed(self, encoder: &dyn ImageEncoder) -> Result<EmbeddedBlock> {
        Ok(EmbeddedBlock { vectors: encoder.embed(&self.pixels)?, keys: self.keys, unusable: self.unusable })
    }
}

fn read_block(encoder: &dyn ImageEncoder, block: &[(VectorKey, usize)], paths: &[PathBuf]) -> ReadBlock {
    let read = |&(key, index): &(VectorKey, usize)| {
        let bytes = mp4sr_image::read(&paths[index]).map_err(|e| e.to_string())?;
        // All datasets share the cache, so it must not have the vector of another content under this key.
        if vector_key(&bytes) != key {
            return Err("it was replaced while it was read; run `mp4sr extract` again".to_owned());
        }
        encoder.processor().read(&bytes).map_err(|e| e.to_string())
    };
    // For a GPU, all threads read the same block; on the CPU, every thread has its own block.
    let images: Vec<_> =
        if encoder.is_on_gpu() { block.par_iter().map(read).collect() } else { block.iter().map(read).collect() };
    let mut found = ReadBlock { keys: Vec::new(), pixels: Vec::new(), unusable: Vec::new() };
    for (&(key, _), image) in block.iter().zip(images) {
        match image {
            Ok(values) => {
                found.keys.push(key);
                found.pixels.extend(values);
            }
            Err(reason) => found.unusable.push((key, reason)),
        }
    }
    found
}
