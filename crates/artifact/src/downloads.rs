//! Where downloaded images are stored, and the names under which they are shown.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// What a line of the ledger says about a URL.
#[derive(Deserialize)]
struct LedgerLine {
    url: String,
    fate: String,
    reason: String,
}

/// The folder of downloaded images, `<data folder>/downloads`, in which images are stored by the URLs that they came from.
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

    /// The first 128 bits of the BLAKE3 hash of a URL, by which its file is named. The URL is not normalised.
    pub fn key(url: &str) -> u128 {
        let mut bits = [0; 16];
        bits.copy_from_slice(&blake3::hash(url.as_bytes()).as_bytes()[..16]);
        u128::from_be_bytes(bits)
    }

    /// The path of the image that was fetched from `url`. The name has no extension: readers detect the format by content. A file of that
    /// name is complete, and its image could be decoded when it was downloaded.
    pub fn image(&self, url: &str) -> PathBuf {
        let name = format!("{:032x}", Self::key(url));
        self.folder.join("images").join(&name[..2]).join(name)
    }

    /// Whether an image's name is a URL, and not a path.
    pub fn is_url(name: &str) -> bool {
        let scheme = name.split_once(':').map_or("", |(scheme, _)| scheme);
        scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https")
    }

    /// The name of an image for messages and reports. A URL is shown without user name and password, and without its parameters, query and
    /// fragment, which may contain signatures and tokens.
    pub fn shown(name: &str) -> String {
        let Some((scheme, rest)) = name.split_once("://") else { return name.to_owned() };
        let (address, hidden) = match rest.find(['?', '#', ';']) {
            Some(at) => (&rest[..at], &rest[at..=at]),
            None => (rest, ""),
        };
        let host_at = address[..address.find('/').unwrap_or(address.len())].rfind('@').map_or(0, |at| at + 1);
        let dots = if hidden.is_empty() { "" } else { "..." };
        format!("{scheme}://{}{hidden}{dots}", &address[host_at..])
    }

    /// The path of the image of this name, whether or not it has been downloaded yet.
    pub fn file(&self, name: &str) -> PathBuf {
        if Self::is_url(name) { self.image(name) } else { PathBuf::from(name) }
    }

    /// The outcome for each URL, one JSON object per line; the last line of a URL counts.
    pub fn ledger(&self) -> PathBuf {
        self.folder.join("ledger.jsonl")
    }

    /// Why images were not downloaded, with what to do, by [`key`](Self::key), as far as the ledger can be read.
    pub fn failures(&self) -> HashMap<u128, String> {
        let mut failures = HashMap::new();
        let Ok(mut file) = File::open(self.ledger()).map(BufReader::new) else { return failures };
        let mut line = Vec::new();
        while file.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
            if let Ok(LedgerLine { url, fate, reason }) = serde_json::from_slice(&line) {
                let remedy = match fate.as_str() {
                    "failed" => "run `mp4sr download` to try again",
                    "refused" => "name another image",
                    _ => "to try again, run `mp4sr download` with `download.again=true`",
                };
                let key = Self::key(&url);
                match fate.as_str() {
                    "done" => failures.remove(&key),
                    _ => failures.insert(key, format!("it was not downloaded: {reason}; {remedy}")),
                };
            }
            line.clear();
        }
        failures
    }

    /// The counts of the last run of the download stage.
    pub fn report(&self) -> PathBuf {
        self.folder.join("report.json")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_shown_without_secrets() {
        for (name, shown) in [
            ("https://u:secret@h/a.jpg?sig=secret#x", "https://h/a.jpg?..."),
            ("http://h/a;jsessionid=secret.jpg", "http://h/a;..."),
            ("https://h/u@v.jpg", "https://h/u@v.jpg"),
            ("file:///a.jpg?secret", "file:///a.jpg?..."),
            ("covers/a;b#c?d.jpg", "covers/a;b#c?d.jpg"),
        ] {
            assert_eq!(Downloads::shown(name), shown);
        }
    }

    /// The hash of the empty text is published with BLAKE3's test vectors.
    #[test]
    fn an_image_is_named_by_the_hash_of_its_url() {
        let path = Downloads::new(Path::new("data")).image("");
        assert_eq!(path, Path::new("data/downloads/images/af/af1349b9f5f9a1a6a0404dea36dcc949"));
        let downloads = Downloads::new(Path::new("data"));
        assert_eq!(downloads.file("https://x/y.jpg"), downloads.image("https://x/y.jpg"));
        assert_eq!(downloads.file("HTTPS://x/y.jpg"), downloads.image("HTTPS://x/y.jpg"));
        assert_eq!(downloads.file("http.jpg"), Path::new("http.jpg"));
    }
}
