//! The keys of the service, read from a file with one key per line.

use std::path::Path;

use anyhow::ensure;
use axum::http::{HeaderMap, header};
use mp4sr_artifact::files;

/// The shortest key that is accepted.
const LEAST: usize = 16;

/// The hashes of the known keys.
#[derive(Debug, Default)]
pub struct ApiKeys(Vec<blake3::Hash>);

impl ApiKeys {
    /// Reads a file of keys; blank lines and lines that begin with `#` are ignored.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        ensure!(!path.is_dir(), "`--keys` names the folder `{}`; name a file with one key per line", path.display());
        let text = files::read_to_string(path)?;
        let mut keys = Vec::new();
        for (number, line) in (1..).zip(text.lines().map(str::trim)) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let is_sound = line.len() >= LEAST && line.chars().all(|c| c.is_ascii_graphic());
            ensure!(
                is_sound,
                "line {number} of `{}` is not a valid API key; write at least {LEAST} ASCII letters, digits and symbols without spaces",
                path.display()
            );
            keys.push(blake3::hash(line.as_bytes()));
        }
        ensure!(!keys.is_empty(), "`{}` has no key; write one per line", path.display());
        Ok(Self(keys))
    }

    /// Whether no key is needed.
    pub fn is_off(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the headers hold a known key. Hashes are compared in constant time.
    pub fn allow(&self, headers: &HeaderMap) -> bool {
        let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let key = given.and_then(|value| value.split_once(' ')).filter(|(kind, _)| kind.eq_ignore_ascii_case("bearer"));
        let Some((_, key)) = key else { return self.is_off() };
        let hash = blake3::hash(key.trim().as_bytes());
        self.is_off() || self.0.iter().filter(|own| **own == hash).count() > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_and_compared() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        std::fs::write(&path, "# of the shop\n\nabcdefghijklmnop\nsecond-key-0123456789\n").unwrap();
        let keys = ApiKeys::read(&path).unwrap();
        let with = |value: &str| HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().unwrap())]);
        assert!(keys.allow(&with("Bearer second-key-0123456789")) && keys.allow(&with("bearer abcdefghijklmnop")));
        assert!(!keys.allow(&with("Bearer abcdefghijklmno")) && !keys.allow(&HeaderMap::new()));
        assert!(!keys.allow(&with("abcdefghijklmnop")));
        assert!(ApiKeys::default().allow(&HeaderMap::new()));
        let message = ApiKeys::read(folder.path()).unwrap_err().to_string();
        assert!(message.contains("name a file with one key per line"), "{message}");
        for (text, part) in
            [("short\n", "line 1 of"), ("# none\n", "has no key"), ("abcdefgh ijklmnopqrst\n", "line 1")]
        {
            std::fs::write(&path, text).unwrap();
            assert!(ApiKeys::read(&path).unwrap_err().to_string().contains(part), "{text}");
        }
    }
}
