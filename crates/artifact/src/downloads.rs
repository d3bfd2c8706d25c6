use std::path::{Path, PathBuf};

/// Where fetched pictures lie: `<data folder>/downloads`, by the addresses that they were fetched from.
#[derive(Clone, Debug)]
pub struct Downloads {
    folder: PathBuf,
}

impl Downloads {
    /// The downloads of the data folder `data`.
    pub fn new(data: &Path) -> Self {
        Self { folder: data.join("downloads") }
    }

    /// `<data folder>/downloads`.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What stands for an address in names: the first 128 bits of its BLAKE3 hash. The address is taken letter for letter.
    pub fn key(url: &str) -> u128 {
        let mut bits = [0; 16];
        bits.copy_from_slice(&blake3::hash(url.as_bytes()).as_bytes()[..16]);
        u128::from_be_bytes(bits)
    }

    /// The picture fetched from `url`. The name has no extension: readers guess the form by content. A file that stands
    /// there is complete and was decoded once.
    pub fn image(&self, url: &str) -> PathBuf {
        let name = format!("{:032x}", Self::key(url));
        self.folder.join("images").join(&name[..2]).join(name)
    }

    /// Whether an image's name is an address, and not a path.
    pub fn is_address(name: &str) -> bool {
        name.starts_with("http://") || name.starts_with("https://")
    }

    /// Where the image of this name lies, or would once it is fetched.
    pub fn file(&self, name: &str) -> PathBuf {
        if Self::is_address(name) { self.image(name) } else { PathBuf::from(name) }
    }

    /// What became of each address, a JSON object a line; the last line about an address counts.
    pub fn ledger(&self) -> PathBuf {
        self.folder.join("ledger.jsonl")
    }

    /// Counts of the last run.
    pub fn report(&self) -> PathBuf {
        self.folder.join("report.json")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The hash of the empty text is published with BLAKE3's test vectors.
    #[test]
    fn a_picture_lies_under_the_hash_of_its_address() {
        let path = Downloads::new(Path::new("data")).image("");
        assert_eq!(path, Path::new("data/downloads/images/af/af1349b9f5f9a1a6a0404dea36dcc949"));
        let downloads = Downloads::new(Path::new("data"));
        assert_eq!(downloads.file("https://x/y.jpg"), downloads.image("https://x/y.jpg"));
        assert_eq!(downloads.file("http.jpg"), Path::new("http.jpg"));
    }
}
