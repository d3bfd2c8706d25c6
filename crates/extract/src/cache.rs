//! The vectors that encoders computed, shared by all datasets: statistics, merging and cleaning.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use mp4sr_artifact::{EncoderAbout, Fingerprint, Layout, MergedVectors, VectorCache, files, merge_vectors};
use mp4sr_ops::Precision;
use serde::Serialize;

use crate::error::{Error, Result};
use crate::folder::ModelFolder;
use crate::model_files::{PROCESSOR, TOKENIZER};

/// Incremented with every change after which the same file or sentence gets another vector.
const VERSION: u32 = 2;

/// Opens the cached vectors of an encoder. Unless new vectors are to be kept, artifacts that are read-only are no error, even if they have no
/// cache for the encoder.
pub(crate) fn open(root: &Path, encoder: &CachedEncoder<'_>, keeps: bool) -> Result<EncoderCache> {
    let mut identity = format!("{VERSION} {}", encoder.content);
    if encoder.precision != Precision::F32 {
        identity.push_str(&format!("\nprecision {}", encoder.precision));
    }
    let sees = encoder.content != "sounds" && encoder.files.iter().any(|file| file == PROCESSOR);
    if sees && encoder.folder.has_corrected_sizes()? {
        identity.push_str("\nsizes as in the library");
    }
    if encoder.folder.has_corrected_positions()? {
        identity.push_str("\npositions as in the library");
    }
    if encoder.files.iter().any(|file| file == TOKENIZER) && encoder.folder.cuts_starts()? {
        identity.push_str("\nstarts are cut");
    }
    for (name, path) in encoder.folder.inputs("", &encoder.files)? {
        identity.push_str(&format!("\n{name} {}", Fingerprint::of_file(&path)?));
    }
    let fingerprint = Fingerprint::of_bytes(identity.as_bytes());
    let folder = root.join(&fingerprint.as_str()[..32]);
    let opened = match VectorCache::open(&folder, &fingerprint, encoder.width) {
        Err(error) if !keeps && error.is_read_only() => None,
        opened => Some(opened?),
    };
    let earlier = read_about(&folder);
    let is_new = earlier.is_none();
    let about = EncoderAbout {
        model: encoder.folder.name().to_owned(),
        content: encoder.content.to_owned(),
        width: encoder.width,
        computed: earlier.as_ref().map_or(0, |about| about.computed),
        seconds: earlier.map_or(0.0, |about| about.seconds),
    };
    let Some(vectors) = opened else {
        let vectors = VectorCache::empty(&folder, &fingerprint, encoder.width);
        return Ok(EncoderCache { vectors, fingerprint, folder, about });
    };
    // Its modification time is the time of the last use, which a service on artifacts that are read-only cannot record.
    match files::write_json(&folder.join(EncoderAbout::FILE), &about) {
        Err(error) if (!keeps || !is_new) && error.is_read_only() => {}
        recorded => recorded?,
    }
    Ok(EncoderCache { vectors, fingerprint, folder, about })
}

fn read_about(folder: &Path) -> Option<EncoderAbout> {
    files::read(&folder.join(EncoderAbout::FILE)).ok().and_then(|text| serde_json::from_slice(&text).ok())
}

/// The cached vectors of one encoder.
pub(crate) struct EncoderCache {
    /// The vectors by their keys.
    pub vectors: VectorCache,
    /// The fingerprint of everything that determines the vectors.
    pub fingerprint: Fingerprint,
    folder: PathBuf,
    about: EncoderAbout,
}

impl EncoderCache {
    /// d, the width of a vector.
    pub fn width(&self) -> usize {
        self.about.width
    }

    /// Records that `computed` vectors took `time`.
    pub fn note(&mut self, computed: u64, time: Duration) -> Result<()> {
        if computed > 0 {
            self.about.computed += computed;
            self.about.seconds += time.as_secs_f64();
            files::write_json(&self.folder.join(EncoderAbout::FILE), &self.about)?;
        }
        Ok(())
    }
}

/// An encoder whose vectors are cached, with what determines them: the files with weights, settings and preprocessing, and the precision.
pub(crate) struct CachedEncoder<'f> {
    pub folder: &'f ModelFolder,
    /// The content that is encoded: sentences, words, images or sounds.
    pub content: &'static str,
    /// The names of the files that determine the vectors.
    pub files: Vec<String>,
    /// d, the width of a vector.
    pub width: usize,
    /// The precision that the encoder's products are rounded to.
    pub precision: Precision,
}

/// Adds the vectors of other caches to the cache `root`, and returns what was added per encoder. Each of `folders` is a folder of
/// artifacts, or the folder of a cache itself. All folders are checked before anything is copied.
pub fn merge(root: &Path, folders: &[PathBuf]) -> Result<Vec<(EncoderShare, MergedVectors)>> {
    let mut found = Vec::new();
    for folder in folders {
        let own = Layout::new(folder, "any", "any").vectors();
        let from = if own.is_dir() { own } else { folder.clone() };
        let before = found.len();
        for share in shares(&from)? {
            match &share.about {
                Some(about) => found.push((about.clone(), share)),
                None if share.shards > 0 => return Err(Error::NoAbout { path: share.folder.join(EncoderAbout::FILE) }),
                None => {}
            }
        }
        if found.len() == before {
            return Err(Error::NoVectors { path: folder.clone() });
        }
    }
    let mut merged = Vec::new();
    for (own, share) in found {
        let into = root.join(share.folder.file_name().unwrap_or_default());
        let shards = merge_vectors(&share.folder, &into, own.width)?;
        let about = into.join(EncoderAbout::FILE);
        if into.is_dir() && !about.exists() {
            files::write_json(&about, &own)?;
        }
        merged.push((share, shards));
    }
    Ok(merged)
}

/// One encoder's share of the cache.
#[derive(Debug, Serialize)]
pub struct EncoderShare {
    /// The folder of the share.
    pub folder: PathBuf,
    /// The encoder; `None` if `about.json` cannot be read.
    pub about: Option<EncoderAbout>,
    /// The number of files with vectors.
    pub shards: usize,
    /// The size of all files in bytes.
    pub bytes: u64,
    /// The time since the last use.
    pub idle: Duration,
}

/// The shares of all encoders, by folder name.
pub fn shares(root: &Path) -> Result<Vec<EncoderShare>> {
    let folders = if root.is_dir() { files::list(root)? } else { Vec::new() };
    folders.into_iter().filter(|folder| folder.is_dir()).map(share).collect()
}

fn share(folder: PathBuf) -> Result<EncoderShare> {
    let used =
        folder.join(EncoderAbout::FILE).metadata().and_then(|meta| meta.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
    let paths = files::list(&folder)?;
    let mut bytes = 0;
    for path in &paths {
        bytes += files::length(path)?.unwrap_or(0);
    }
    Ok(EncoderShare {
        about: read_about(&folder),
        shards: paths.iter().filter(|path| path.extension().is_some_and(|end| end == "safetensors")).count(),
        bytes,
        // A clock that was set back must not cause a deletion.
        idle: SystemTime::now().duration_since(used).unwrap_or_default(),
        folder,
    })
}

/// Removes the shares that no run has used for `idle`. In the others, removes damaged shards that were set aside and files that are half
/// written. Returns the removed shares and the number of freed bytes.
pub fn prune(root: &Path, idle: Duration) -> Result<(Vec<EncoderShare>, u64)> {
    let mut freed = 0;
    let mut removed = Vec::new();
    for share in shares(root)? {
        if share.idle >= idle {
            files::remove_dir_if_present(&share.folder)?;
            freed += share.bytes;
            removed.push(share);
            continue;
        }
        files::remove_leftovers(&share.folder)?;
        for path in files::list(&share.folder)? {
            if path.extension().is_some_and(|end| end == "damaged") {
                freed += files::length(&path)?.unwrap_or(0);
                files::remove_if_present(&path)?;
            }
        }
    }
    Ok((removed, freed))
}
