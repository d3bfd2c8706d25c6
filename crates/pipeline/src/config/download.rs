//! `[download]`: the files and images that are fetched from the network.

use std::path::{Component, Path};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::refused::RefusedValue;

/// A raw file and its URL.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawFile {
    /// The `http` or `https` URL.
    pub url: String,
    /// The path of the file within the data folder.
    pub path: String,
    /// The SHA-256 checksum in hexadecimal. Empty: the file is not verified.
    pub sha256: String,
}

/// `[download]`: how raw files and the images of items are downloaded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Download {
    /// The raw files to download into the data folder: `[{ url = "https://...", path = "reviews.json.gz", sha256 = "..." }]`;
    /// `sha256` is optional.
    pub files: Vec<RawFile>,
    /// The number of simultaneous transfers.
    #[schemars(range(min = 1, max = 256))]
    pub connections: usize,
    /// The number of simultaneous transfers from one host.
    #[schemars(range(min = 1, max = 256))]
    pub per_host: usize,
    /// The number of further attempts after a failed one.
    #[schemars(range(min = 0, max = 20))]
    pub retries: u32,
    /// The number of seconds within which a connection must be established, and within which the next byte must arrive.
    #[schemars(range(min = 1, max = 3600))]
    pub timeout_seconds: u64,
    /// The maximum size of an image in bytes; larger images are not kept.
    #[schemars(range(min = 1))]
    pub max_bytes: u64,
    /// The maximum number of pixels of an image; larger images are neither decoded nor kept.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub max_pixels: u64,
    /// Whether to retry URLs that were gone, refused, too large or not an image.
    pub again: bool,
    /// Whether to work offline: nothing is downloaded, and missing files are reported.
    pub offline: bool,
    /// Whether hosts in private networks and on this machine may be contacted, and whether the proxy that the environment names may
    /// be used.
    pub allow_private: bool,
    /// A contact address for operators of servers, sent after the program's name in every request. Empty: none is sent.
    pub contact: String,
}

impl Default for Download {
    fn default() -> Self {
        Self {
            files: Vec::new(),
            connections: 16,
            per_host: 4,
            retries: 4,
            timeout_seconds: 30,
            max_bytes: 20_000_000,
            max_pixels: 64_000_000,
            again: false,
            offline: false,
            allow_private: false,
            contact: String::new(),
        }
    }
}

impl Download {
    /// Checks what the type and range of a single key cannot express.
    pub(super) fn check(&self) -> Result<(), RefusedValue> {
        let fail = |key: String, value: &str, allowed: &str| {
            Err(RefusedValue { key, value: format!("{value:?}"), allowed: allowed.to_owned() })
        };
        for (at, file) in self.files.iter().enumerate() {
            let key = |name: &str| format!("download.files[{at}].{name}");
            if !is_inside(&file.path) {
                return fail(key("path"), &file.path, "a file's path below the data folder, without `..`");
            }
            if self.files[..at].iter().any(|other| other.path == file.path) {
                return fail(key("path"), &file.path, "a path that no other file has");
            }
            let sum = &file.sha256;
            if !sum.is_empty() && (sum.len() != 64 || !sum.bytes().all(|b| b.is_ascii_hexdigit())) {
                return fail(key("sha256"), sum, "64 hexadecimal digits");
            }
        }
        if !self.contact.bytes().all(|b| b == b' ' || b.is_ascii_graphic()) {
            return fail("download.contact".to_owned(), &self.contact, "printable ASCII");
        }
        Ok(())
    }
}

/// Whether a path names a file below the folder that it starts from, and not one of the program's own.
fn is_inside(path: &str) -> bool {
    let path = Path::new(path);
    let normal = |part: Component<'_>| matches!(part, Component::Normal(_));
    path.components().all(normal) && path.file_name().is_some() && !path.starts_with("downloads")
}

#[cfg(test)]
mod tests {
    use crate::Config;

    fn message(file: &str) -> String {
        let text = format!("dataset.name = \"x\"\ndownload.files = [{{ url = \"https://x.org/a\", {file} }}]");
        Config::parse(&text, "x.toml", &[], &crate::config::ModelCatalog::unchecked())
            .map_or_else(|e| e.to_string(), |_| "accepted".to_owned())
    }

    #[test]
    fn raw_files_stay_in_the_data_folder() {
        assert_eq!(message("path = \"a/b.json.gz\""), "accepted");
        for path in ["../b", "/b", "a/../../b", "", "downloads/ledger.jsonl", "./downloads/x"] {
            let message = message(&format!("path = \"{path}\""));
            assert!(
                message.contains("`download.files[0].path`") && message.contains("below the data folder"),
                "{message}"
            );
        }
        assert!(message("path = \"b\", sha256 = \"12\"").contains("64 hexadecimal digits"));
    }
}
