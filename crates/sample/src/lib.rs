//! The sample world: a small generated shop, in the format of Amazon's files of 2018 or as the tables of a shop's own database.
//!
//! The crate takes a seed and a format. It writes a folder with `reviews.json.gz` and `meta.json.gz`, or `purchases.csv` and `products.csv`,
//! and in either format `images/<asin>.jpg|png`, and `truth.json` with everything that only the generator knows. The same seed gives the same
//! bytes. The crate must not know how any stage reads what is written here.
//!
//! Every item has latent attributes: colour, pattern and shape appear only in its image; brand, material, use and style only in its texts;
//! its kind in both. Users have a taste in colour, pattern, use and style that drifts along fixed cycles, and the kind of the last purchase
//! influences what is bought next. The order therefore matters, and each modality contains something that the other lacks. The files have
//! the faults of real ones, in numbers that `truth.json` states.

mod calendar;
mod error;
mod format;
mod random;
mod render;
mod shop;
mod text;
mod truth;
mod vocabulary;
mod world;

use std::path::Path;

use mp4sr_artifact::{Lock, files};
use serde::{Deserialize, Serialize};

pub use error::{Error, Result};
pub use format::{GENERATOR_VERSION, IMAGES, META, PRODUCTS, PURCHASES, REVIEWS, SampleFormat, TRUTH};
pub use truth::{Core, Faults, Raw, Truth, TruthItem, Vocabulary};

/// The seed of the world that the sample pipeline reads.
pub const SEED: u64 = 1;

/// The text between the folder's name and the id of the process that is writing it.
const STAGING: &str = ".mp4sr-tmp-";
/// The text between the folder's name and the id of the process that is replacing it.
const REPLACED: &str = ".old.mp4sr-tmp-";

/// The manifest of a finished folder.
const MANIFEST: &str = "sample.manifest.json";

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct SampleManifest {
    generator: String,
    version: u32,
    seed: u64,
    /// Missing for the Amazon format, which was once the only one.
    #[serde(default, rename = "form", skip_serializing_if = "SampleFormat::is_amazon")]
    format: SampleFormat,
    /// The sizes in bytes of the files of interactions, of items and of the truth.
    bytes: [u64; 3],
    image_files: usize,
}

/// What [`ensure`] found or did.
#[derive(Debug, PartialEq, Eq)]
pub enum SampleOutcome {
    /// The folder was complete, with the same seed, format and version.
    UpToDate,
    /// The folder was written.
    Written,
}

/// Makes sure that `out` contains the sample world of `seed` in a format. A process that is killed midway leaves nothing under the final
/// name, and the next start removes what it left beside it.
///
/// ```
/// use mp4sr_sample::{SampleFormat, SampleOutcome, ensure};
///
/// # let folder = tempfile::tempdir()?;
/// let out = folder.path().join("shop");
/// assert_eq!(ensure(&out, 1, SampleFormat::Tables)?, SampleOutcome::Written);
/// assert!(out.join("purchases.csv").is_file() && out.join("products.csv").is_file());
/// assert_eq!(ensure(&out, 1, SampleFormat::Tables)?, SampleOutcome::UpToDate);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn ensure(out: &Path, seed: u64, format: SampleFormat) -> Result<SampleOutcome> {
    let name =
        out.file_name().ok_or_else(|| Error::write(out, "the folder has no name"))?.to_string_lossy().into_owned();
    let parent = out.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let _lock = Lock::acquire(parent, &name)?;
    remove_leftovers(parent, &name)?;
    let found = inspect(out);
    if let Some(manifest) = &found
        && manifest.version == GENERATOR_VERSION
        && manifest.seed == seed
        && manifest.format == format
        && is_whole(out, manifest)
    {
        return Ok(SampleOutcome::UpToDate);
    }
    let occupied = out.symlink_metadata().is_ok() && !(out.is_dir() && files::list(out)?.is_empty());
    if occupied && found.is_none() {
        return Err(Error::NotOurs(out.to_owned()));
    }
    let process = std::process::id();
    let staging = parent.join(format!("{name}{STAGING}{process}"));
    files::create_dir_all(&staging)?;
    if let Err(error) = write_into(&staging, seed, format) {
        // The first error is the one to report.
        let _ = files::remove_dir_if_present(&staging);
        return Err(error);
    }
    let old = parent.join(format!("{name}{REPLACED}{process}"));
    if out.exists() {
        files::rename(out, &old)?;
    }
    files::rename(&staging, out)?;
    files::remove_dir_if_present(&old)?;
    Ok(SampleOutcome::Written)
}

/// Removes what killed processes left of the folder `name`, but not the temporary folder of another world beside it.
fn remove_leftovers(parent: &Path, name: &str) -> Result<()> {
    for path in files::list(parent)? {
        let found = path.file_name().map(|found| found.to_string_lossy().into_owned()).unwrap_or_default();
        let rest = found.strip_prefix(name).unwrap_or_default();
        if rest.starts_with(STAGING) || rest.starts_with(REPLACED) {
            files::remove_dir_if_present(&path)?;
        }
    }
    Ok(())
}

/// Writes the sample world of `seed` into the existing, empty `folder`.
fn write_into(folder: &Path, seed: u64, format: SampleFormat) -> Result<Truth> {
    let truth = shop::write(folder, seed, format)?;
    let manifest = SampleManifest {
        generator: env!("CARGO_PKG_NAME").to_owned(),
        version: GENERATOR_VERSION,
        seed,
        format,
        bytes: sizes(folder, format),
        image_files: truth.raw.image_files,
    };
    files::write_json(&folder.join(MANIFEST), &manifest)?;
    Ok(truth)
}

fn sizes(folder: &Path, format: SampleFormat) -> [u64; 3] {
    let [interactions, items] = format.files();
    [interactions, items, TRUTH].map(|name| folder.join(name).metadata().map_or(0, |meta| meta.len()))
}

fn inspect(folder: &Path) -> Option<SampleManifest> {
    let manifest: SampleManifest = serde_json::from_slice(&files::read(&folder.join(MANIFEST)).ok()?).ok()?;
    (manifest.generator == env!("CARGO_PKG_NAME")).then_some(manifest)
}

fn is_whole(folder: &Path, manifest: &SampleManifest) -> bool {
    let images = files::list(&folder.join(IMAGES)).map_or(0, |paths| paths.len());
    sizes(folder, manifest.format) == manifest.bytes && images == manifest.image_files
}
