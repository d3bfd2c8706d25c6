//! Detects what a file is from its first bytes.

use std::io::Read;
use std::path::Path;

use mp4sr_artifact::{Error, Result, files};

/// Reads as many of a file's first bytes as the functions below need.
pub fn start(path: &Path) -> Result<Vec<u8>> {
    let mut start = Vec::new();
    files::open(path)?.take(512).read_to_end(&mut start).map_err(|e| Error::io("read", path, e))?;
    Ok(start)
}

/// Whether these are the first bytes of HTML.
pub fn is_web_page(start: &[u8]) -> bool {
    let start = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start).trim_ascii_start();
    let tags = ["<!doctype html", "<html", "<head", "<body", "<script", "<!--"];
    tags.iter().any(|tag| start.get(..tag.len()).is_some_and(|found| found.eq_ignore_ascii_case(tag.as_bytes())))
}

/// Whether these are the first bytes of gzip.
pub fn is_gzip(start: &[u8]) -> bool {
    start.starts_with(&[0x1f, 0x8b])
}
