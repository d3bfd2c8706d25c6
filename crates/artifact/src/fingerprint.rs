//! Hashes of contents, by which a changed file is recognised.

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{Error, Result, files};

/// BLAKE3 hash of content, in lower-case hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fingerprint(String);

impl Fingerprint {
    /// Fingerprints bytes in memory.
    pub fn of_bytes(bytes: &[u8]) -> Self {
        Self(blake3::hash(bytes).to_hex().to_string())
    }

    /// Fingerprints the content of a file, which is read in one pass with bounded memory.
    pub fn of_file(path: &Path) -> Result<Self> {
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(files::open(path)?).map_err(|e| Error::io("read", path, e))?;
        Ok(Self(hasher.finalize().to_hex().to_string()))
    }

    /// Fingerprints a header and tensors by content: names, types, shapes and values, independently of their order in a file.
    pub(crate) fn of_content<'a>(header: &str, tensors: impl IntoIterator<Item = (&'a str, String, &'a [u8])>) -> Self {
        let mut sorted: Vec<_> = tensors.into_iter().collect();
        sorted.sort_unstable_by_key(|(name, ..)| *name);
        let mut content = ContentHasher::new(header);
        for (name, dtype_and_shape, bytes) in sorted {
            content.tensor(name, &dtype_and_shape, bytes.len());
            content.bytes(bytes);
        }
        content.finish()
    }

    /// The hexadecimal form.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Computes the same fingerprint from content that arrives in parts. Tensors must come in the order of their names.
pub(crate) struct ContentHasher(blake3::Hasher);

impl ContentHasher {
    pub fn new(header: &str) -> Self {
        let mut content = Self(blake3::Hasher::new());
        content.part(header.as_bytes());
        content
    }

    /// Begins a tensor of `length` bytes.
    pub fn tensor(&mut self, name: &str, dtype_and_shape: &str, length: usize) {
        self.part(name.as_bytes());
        self.part(dtype_and_shape.as_bytes());
        self.bytes(&(length as u64).to_le_bytes());
    }

    pub fn bytes(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub fn finish(self) -> Fingerprint {
        Fingerprint(self.0.finalize().to_hex().to_string())
    }

    fn part(&mut self, bytes: &[u8]) {
        self.bytes(&(bytes.len() as u64).to_le_bytes());
        self.bytes(bytes);
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Hashes ids in index order, each preceded by its length. The hash of the original item ids ties tensors to items.
pub fn hash_ids<'a>(ids: impl IntoIterator<Item = &'a str>) -> Fingerprint {
    let mut hasher = blake3::Hasher::new();
    for id in ids {
        hasher.update(&(id.len() as u64).to_le_bytes());
        hasher.update(id.as_bytes());
    }
    Fingerprint(hasher.finalize().to_hex().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_join_to_the_same_text_differ() {
        assert_ne!(hash_ids(["ab", "c"]), hash_ids(["a", "bc"]));
        assert_ne!(hash_ids(["a", "b"]), hash_ids(["b", "a"]));
    }

    #[test]
    fn a_file_and_its_bytes_agree_with_the_published_hash() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("abc");
        files::write_bytes(&path, b"abc").unwrap();
        // BLAKE3's value for "abc".
        let expected = "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85";
        assert_eq!(Fingerprint::of_file(&path).unwrap().as_str(), expected);
        assert_eq!(Fingerprint::of_bytes(b"abc").as_str(), expected);
    }
}
