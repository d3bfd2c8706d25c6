//! What encoders computed, for all datasets: statistics and cleaning.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use mp4sr_artifact::{Fingerprint, VectorCache, files};
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::source::Source;

/// Raised whenever the same file or sentence would get another vector.
const VERSION: u32 = 1;
const ABOUT: &str = "about.json";

/// What an encoder's folder is about (`about.json`); rewritten at every use, so that its time tells the last one.
#[derive(Debug, Serialize, Deserialize)]
pub struct About {
    /// The model as it was named.
    pub model: String,
    /// What it was given: sentences, words, images.
    pub content: String,
    /// d, the width of a vector.
    pub width: usize,
}

/// Opens the vectors of an encoder: its files (weights, settings, preprocessing) decide which they are.
pub(crate) fn open(root: &Path, source: &Source, role: &Role, width: usize) -> Result<VectorCache> {
    let mut identity = format!("{VERSION} {}", role.content);
    for (name, path) in source.inputs("", &role.files)? {
        identity.push_str(&format!("\n{name} {}", Fingerprint::of_file(&path)?));
    }
    let encoder = Fingerprint::of_bytes(identity.as_bytes());
    let folder = root.join(&encoder.as_str()[..32]);
    let cache = VectorCache::open(&folder, &encoder, width)?;
    let about = About { model: source.name().to_owned(), content: role.content.to_owned(), width };
    files::write_json(&folder.join(ABOUT), &about)?;
    Ok(cache)
}

/// What an encoder is used for, and the files that decide what it computes.
pub(crate) struct Role {
    pub content: &'static str,
    pub files: Vec<String>,
}

/// One encoder's share of the cache.
#[derive(Debug, Serialize)]
pub struct Share {
    /// Where it lies.
    pub folder: PathBuf,
    /// Whose it is; nothing where that can't be read.
    pub about: Option<About>,
    /// Files of vectors.
    pub shards: usize,
    /// Of all files.
    pub bytes: u64,
    /// Since its last use.
    pub idle: Duration,
}

/// All encoders' shares, by folder name.
pub fn shares(root: &Path) -> Result<Vec<Share>> {
    let folders = if root.is_dir() { files::list(root)? } else { Vec::new() };
    folders.into_iter().filter(|folder| folder.is_dir()).map(share).collect()
}

fn share(folder: PathBuf) -> Result<Share> {
    let about = folder.join(ABOUT);
    let used = about.metadata().and_then(|meta| meta.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
    let paths = files::list(&folder)?;
    let mut bytes = 0;
    for path in &paths {
        bytes += files::length(path)?.unwrap_or(0);
    }
    Ok(Share {
        about: files::read(&about).ok().and_then(|text| serde_json::from_slice(&text).ok()),
        shards: paths.iter().filter(|path| path.extension().is_some_and(|end| end == "safetensors")).count(),
        bytes,
        // A clock that was set back is no reason to delete anything.
        idle: SystemTime::now().duration_since(used).unwrap_or_default(),
        folder,
    })
}

/// Removes the shares that no run has used for `idle`, and in the others what was set aside or left half written; gives
/// what it freed.
pub fn prune(root: &Path, idle: Duration) -> Result<(Vec<Share>, u64)> {
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
