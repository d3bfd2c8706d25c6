//! The built-in encoders, for pipelines that run without the repository.
//!
//! The tiny encoders of `data/encoders` are compiled in. If a pipeline names one of them and the working directory has no such folder, its
//! files are written once below the artifacts' cache and then read like those of any other encoder. The bytes are the same, and therefore
//! so are the vectors and their folder in the cache of vectors.

use std::path::{Path, PathBuf};

use mp4sr_artifact::{Fingerprint, files};
use mp4sr_pipeline::config::BUILTIN;

use crate::error::Result;
use crate::model_files::{Access, CONFIG, WEIGHTS};

/// The folder of the encoders in the repository, which is part of their names in pipelines.
const FOLDER: &str = "data/encoders/";

macro_rules! encoder {
    ($name:literal, $($file:literal),*) => {
        Encoder {
            name: $name,
            files: &[$(($file, include_bytes!(concat!("../../../data/encoders/", $name, "/", $file)))),*],
        }
    };
}

struct Encoder {
    name: &'static str,
    files: &'static [(&'static str, &'static [u8])],
}

static ENCODERS: [Encoder; 2] = [
    encoder!("tiny-clip", "config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json"),
    encoder!(
        "tiny-sentence",
        "1_Pooling/config.json",
        "config.json",
        "model.safetensors",
        "modules.json",
        "sentence_bert_config.json",
        "tokenizer.json"
    ),
];

/// The built-in encoder that `model` names; `None` if it names another, or a folder that exists.
fn built_in(model: &str) -> Option<&'static Encoder> {
    let is_folder = Path::new(model).is_dir();
    let name = model.strip_prefix(BUILTIN).or_else(|| model.strip_prefix(FOLDER).filter(|_| !is_folder))?;
    ENCODERS.iter().find(|encoder| encoder.name == name.trim_end_matches('/'))
}

/// The size of the weights in bytes and the configuration of the built-in encoder that `model` names.
pub(crate) fn contents(model: &str) -> Option<(u64, &'static [u8])> {
    let file = |wanted: &str| built_in(model)?.files.iter().find(|(name, _)| *name == wanted).map(|(_, bytes)| *bytes);
    Some((file(WEIGHTS)?.len() as u64, file(CONFIG)?))
}

/// The folder below `cache` of the built-in encoder that `model` names; `None` if it names another, or a folder that exists. Files that are
/// missing there or differ from the built-in ones are written if `access` allows it.
pub(crate) fn folder(model: &str, cache: &Path, access: Access) -> Result<Option<PathBuf>> {
    let Some(encoder) = built_in(model) else { return Ok(None) };
    let hashes: Vec<String> =
        encoder.files.iter().map(|(file, bytes)| format!("{file} {}\n", Fingerprint::of_bytes(bytes))).collect();
    let content = Fingerprint::of_bytes(hashes.concat().as_bytes()).to_string();
    // Another version of the program may contain other files, so each content has a separate folder.
    let folder = cache.join(content.chars().take(16).collect::<String>()).join(encoder.name);
    for (file, bytes) in encoder.files {
        let path = folder.join(file);
        if access == Access::Full && !files::read(&path).is_ok_and(|found| found == *bytes) {
            files::write_bytes(&path, bytes)?;
        }
    }
    Ok(Some(folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_files_match_the_repository_and_damage_is_repaired() {
        let cache = tempfile::tempdir().unwrap();
        let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/encoders");
        for encoder in &ENCODERS {
            let written = folder(&format!("builtin:{}", encoder.name), cache.path(), Access::Full).unwrap().unwrap();
            let count = |folder: &Path| {
                let nested = |path: PathBuf| if path.is_dir() { files::list(&path).unwrap().len() } else { 1 };
                files::list(folder).unwrap().into_iter().map(nested).sum::<usize>()
            };
            assert_eq!(count(&repository.join(encoder.name)), encoder.files.len(), "every file is carried");
            for (file, _) in encoder.files {
                let built_in = files::read(&written.join(file)).unwrap();
                assert!(built_in == files::read(&repository.join(encoder.name).join(file)).unwrap(), "{file}");
            }
            files::write_bytes(&written.join("config.json"), b"{").unwrap();
            let again = folder(&format!("data/encoders/{}", encoder.name), cache.path(), Access::Full).unwrap();
            assert_eq!(again, Some(written.clone()), "unit tests run in a folder without `data`");
            assert!(files::read(&written.join("config.json")).unwrap().len() > 1);
        }
    }

    #[test]
    fn other_names_are_left_alone() {
        let cache = tempfile::tempdir().unwrap();
        for other in ["builtin:none", "data/encoders/none", "tiny-clip", "sentence-transformers/all-MiniLM-L6-v2"] {
            assert_eq!(folder(other, cache.path(), Access::Full).unwrap(), None, "{other}");
        }
        // An existing folder is used directly and not copied.
        assert_eq!(folder("src", cache.path(), Access::Full).unwrap(), None);
        assert!(files::list(cache.path()).unwrap().is_empty());
    }
}
