use std::path::{Component, Path};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A raw file and where it is had.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawFile {
    /// Its `http` or `https` address.
    pub url: String,
    /// Its place below the data folder.
    pub path: String,
    /// Its SHA-256 in hexadecimal. Empty: it is taken as it comes.
    pub sha256: String,
}

/// `[download]`: raw files and items' pictures from elsewhere.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Download {
    /// Raw files for the data folder: `[{ url = "https://...", path = "reviews.json.gz", sha256 = "..." }]`; `sha256` may be
    /// left out.
    pub files: Vec<RawFile>,
    /// Transfers at once.
    #[schemars(range(min = 1, max = 256))]
    pub connections: usize,
    /// Transfers at once from one host.
    #[schemars(range(min = 1, max = 256))]
    pub per_host: usize,
    /// Further attempts after one that failed.
    #[schemars(range(min = 0, max = 20))]
    pub retries: u32,
    /// Seconds that a connection may take, and that may pass without a byte.
    #[schemars(range(min = 1, max = 3600))]
    pub timeout_seconds: u64,
    /// A picture of more bytes is not kept.
    #[schemars(range(min = 1))]
    pub max_bytes: u64,
    /// A picture of more pixels is not decoded and not kept.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub max_pixels: u64,
    /// Whether addresses that were gone, refused, too large or no image are tried again.
    pub again: bool,
    /// Nothing is fetched; what is missing is reported.
    pub offline: bool,
    /// Whether hosts in private networks and on this machine may be asked, and the proxy that the environment names.
    pub allow_private: bool,
    /// Stands behind the program's name in requests: an address that operators of servers can write to. Empty: none.
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
    /// What no single key's type or range can say; else the key, its value, and what would be allowed.
    pub(super) fn check(&self) -> Result<(), (String, String, String)> {
        let fail = |key: String, value: &str, allowed: &str| Err((key, format!("{value:?}"), allowed.to_owned()));
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
