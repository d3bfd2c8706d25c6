//! Computes the features of sound files.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use mp4sr_artifact::{EncoderWork, ExtractReport, UnusableSound, VectorKey, files, vector_key};
use rayon::prelude::*;

use super::extraction::Extraction;
use crate::adapter::audio::AudioEncoder;
use crate::audio::{LogMel, decode};
use crate::cache::{CachedEncoder, EncoderCache};
use crate::device::EncoderDevice;
use crate::error::Result;
use crate::folder::ModelFolder;

/// The number of files whose vectors are computed before they are added to the cache.
const SOUNDS: usize = 64;

/// The key of a file's vector in the cache, or the reason why it has none.
type SoundKey = std::result::Result<VectorKey, String>;

/// A file's vector, or the reason why it has none.
type SoundVector = std::result::Result<Vec<f32>, String>;

/// The audio encoder with its vectors in the cache.
pub(super) struct Sounds {
    encoder: AudioEncoder,
    pub cache: EncoderCache,
}

impl Sounds {
    pub(super) fn open(extraction: &Extraction<'_>, folder: &ModelFolder, device: &EncoderDevice) -> Result<Self> {
        device.check_f32(&folder.architecture()?)?;
        let encoder = AudioEncoder::from_folder(folder)?;
        let (files, width) = (AudioEncoder::files(folder)?, encoder.width());
        let about = CachedEncoder { folder, content: "sounds", files, width, precision: device.precision() };
        Ok(Self { encoder, cache: extraction.open_cache(&about)? })
    }
}

impl Extraction<'_> {
    /// Writes the features of items' sounds.
    pub(super) fn extract_sounds(&self, sounds: &mut Sounds, report: &mut ExtractReport) -> Result<PathBuf> {
        let Sounds { encoder, cache } = sounds;
        let mut names: Vec<&String> = self.items.sounds.iter().flatten().collect();
        names.sort_unstable();
        names.dedup();
        let bar = self.context.progress.bar("sounds", "sounds", names.len() as u64);
        let start = Instant::now();
        let mut keys: HashMap<&String, SoundKey> = HashMap::new();
        let mut work = EncoderWork::default();
        for chunk in names.chunks(SOUNDS) {
            let read: Vec<std::result::Result<Vec<u8>, String>> =
                chunk.par_iter().map(|name| files::read(Path::new(name)).map_err(|e| e.to_string())).collect();
            let mut new: HashMap<VectorKey, &[u8]> = HashMap::new();
            for (name, bytes) in chunk.iter().zip(&read) {
                let key = bytes.as_ref().map(|bytes| vector_key(bytes)).map_err(Clone::clone);
                if let (Ok(key), Ok(bytes)) = (&key, bytes)
                    && !cache.vectors.contains(*key)
                {
                    new.insert(*key, bytes);
                }
                keys.insert(name, key);
            }
            let mut new: Vec<(VectorKey, &[u8])> = new.into_iter().collect();
            new.sort_unstable_by_key(|(key, _)| *key);
            let embed = |&(key, bytes): &(VectorKey, &[u8])| match decode(bytes, LogMel::RATE) {
                Ok(samples) => Ok((key, Ok(encoder.embed(&samples)?))),
                Err(reason) => Ok((key, Err(reason.to_string()))),
            };
            let found: Vec<(VectorKey, SoundVector)> =
                new.par_iter().with_max_len(1).map(embed).collect::<Result<_>>()?;
            let mut broken: HashMap<VectorKey, String> = HashMap::new();
            for (key, vector) in found {
                match vector {
                    Ok(vector) => {
                        cache.vectors.add(&[key], &vector)?;
                        work.computed += 1;
                    }
                    Err(reason) => {
                        broken.insert(key, reason);
                    }
                }
            }
            for name in chunk {
                if let Some(found) = keys.get_mut(name)
                    && let Some(reason) = found.as_ref().ok().and_then(|key| broken.get(key))
                {
                    *found = Err(reason.clone());
                }
            }
            bar.add(chunk.len() as u64);
        }
        self.keep(cache, work.computed, start)?;
        let mut distinct: Vec<VectorKey> = keys.values().filter_map(|key| key.as_ref().ok().copied()).collect();
        distinct.sort_unstable();
        distinct.dedup();
        work.distinct = distinct.len() as u64;
        let usable = |names: &Vec<String>| -> Vec<VectorKey> {
            names.iter().filter_map(|name| keys.get(name)?.as_ref().ok().copied()).collect()
        };
        let of_items: Vec<Vec<VectorKey>> = self.items.sounds.iter().map(usable).collect();
        let path = self.context.layout.feature_file("audio", &self.context.config.extract.audio.encoder_name());
        self.write(&path, &["audio"], cache, &cache.fingerprint, &of_items)?;
        report.items_without_sound = of_items.iter().filter(|keys| keys.is_empty()).count();
        report.audio_encoder = work;
        for (id, names) in self.items.ids.iter().zip(&self.items.sounds) {
            for name in names {
                if let Some(Err(reason)) = keys.get(name) {
                    let (item_id, sound, reason) = (id.clone(), name.clone(), reason.clone());
                    report.unusable_sounds.push(UnusableSound { item_id, sound, reason });
                }
            }
        }
        Ok(path)
    }
}
