//! Opens raw files: gzip, encodings and byte order marks.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use encoding_rs::{Encoding, UTF_8, UTF_16BE, UTF_16LE};
use mp4sr_artifact::files;
use mp4sr_pipeline::Bar;

use super::FileFormat;
use super::decode::Decoded;
use super::gunzip::{Gunzip, MAGIC};
use super::lines::{Lines, failure};
use crate::{Error, Result};

const BUFFER: usize = 1 << 18;

/// What is wrong with an empty file.
pub const NO_DATA: &str = "contains no data; fetch it again, or remove it if nothing belongs in it";

/// Opens a text file, plain or gzip, and refuses any other file at once.
pub fn open<'b>(path: &Path, format: &FileFormat, bar: &'b Bar) -> Result<Lines<'b>> {
    let json = format.is_json();
    let file = Counted { file: files::open(path)?, bar };
    let mut raw = BufReader::with_capacity(BUFFER, file);
    let failed = |e: std::io::Error| Error::raw(path, failure(&e, 0));
    let named_gzip = path.extension().is_some_and(|end| end.eq_ignore_ascii_case("gz"));
    let start = raw.fill_buf().map_err(failed)?;
    let mut reader: Box<dyn BufRead + 'b> = if start.starts_with(&MAGIC) {
        Box::new(BufReader::with_capacity(BUFFER, Gunzip::new(raw)))
    } else {
        if let Some(other) = other_form(start, json) {
            return Err(Error::raw(path, other));
        }
        if named_gzip {
            return Err(Error::raw(
                path,
                "is named .gz but is not a gzip file; fetch it again, or rename it without `.gz`",
            ));
        }
        Box::new(raw)
    };
    let start = reader.fill_buf().map_err(failed)?;
    if start.is_empty() {
        return Err(Error::raw(path, NO_DATA));
    }
    if start.starts_with(&MAGIC) {
        return Err(Error::raw(path, "is compressed by gzip twice; unpack it once"));
    }
    if is_tar(start) {
        return Err(Error::raw(path, "is a tar archive; unpack it"));
    }
    if is_utf_32(start) {
        return Err(Error::raw(path, "appears to be UTF-32 text, which is not read; save it as UTF-8"));
    }
    if let Some(encoding) = format.dialect.encoding.or_else(|| marked(start)).filter(|encoding| *encoding != UTF_8) {
        reader = Box::new(BufReader::with_capacity(BUFFER, Decoded::new(reader, encoding)));
    } else if let Some(encoding) = utf_16(start) {
        let name = encoding.name().to_ascii_lowercase();
        return Err(Error::raw(
            path,
            format!(
                "appears to be UTF-16 text without a byte order mark; name its encoding: `source.encoding = \"{name}\"`"
            ),
        ));
    }
    let start = reader.fill_buf().map_err(failed)?;
    if let Some(other) = other_form(start, json) {
        return Err(Error::raw(path, other));
    }
    Ok(Lines::new(path, reader))
}

/// The byte order of UTF-16 text without its mark; `None` if it is another text.
pub fn unmarked_utf_16(path: &Path) -> Result<Option<&'static Encoding>> {
    let failed = |e: std::io::Error| Error::raw(path, failure(&e, 0));
    let mut reader: Box<dyn BufRead> = Box::new(BufReader::new(files::open(path)?));
    if reader.fill_buf().map_err(failed)?.starts_with(&MAGIC) {
        reader = Box::new(BufReader::new(Gunzip::new(reader)));
    }
    let start = reader.fill_buf().map_err(failed)?;
    Ok(utf_16(start).filter(|_| marked(start).is_none() && !is_tar(start) && !is_utf_32(start)))
}

/// The byte order of UTF-16, if the file begins with its byte order mark.
fn marked(start: &[u8]) -> Option<&'static Encoding> {
    let (encoding, _) = Encoding::for_bom(start)?;
    [UTF_16LE, UTF_16BE].contains(&encoding).then_some(encoding)
}

/// The byte order of text in which every other byte is zero, as in Latin letters of UTF-16.
fn utf_16(start: &[u8]) -> Option<&'static Encoding> {
    let start = &start[..start.len().min(64) / 2 * 2];
    let zeros = |from: usize| start.iter().skip(from).step_by(2).filter(|&&byte| byte == 0).count();
    let is_zero = |from: usize| start.len() >= 4 && zeros(from) * 4 > start.len();
    if is_zero(0) {
        Some(UTF_16BE)
    } else if is_zero(1) {
        Some(UTF_16LE)
    } else {
        None
    }
}

/// Whether text begins with the byte order mark of UTF-32, or three of every four bytes are zero, as in its Latin letters.
fn is_utf_32(start: &[u8]) -> bool {
    if start.starts_with(b"\xff\xfe\0\0") || start.starts_with(b"\0\0\xfe\xff") {
        return true;
    }
    let start = &start[..start.len().min(64) / 4 * 4];
    let is = |zeros: [usize; 3]| start.chunks_exact(4).all(|letter| zeros.iter().all(|&at| letter[at] == 0));
    start.len() >= 8 && (is([0, 1, 2]) || is([1, 2, 3]))
}

/// Whether a file begins as tar archives do, by the mark of POSIX in the header of its first file.
fn is_tar(start: &[u8]) -> bool {
    start.get(257..262) == Some(b"ustar")
}

/// Describes what a file is that does not consist of lines of text.
fn other_form(start: &[u8], json: bool) -> Option<String> {
    let archives: [(&[u8], &str); 10] = [
        (
            b"version https://git-lfs.github.com/",
            "a pointer of Git LFS, and not the file itself; fetch it with `git lfs pull`",
        ),
        (b"PK\x03\x04", "a zip archive or a spreadsheet; unpack it, or save the table as CSV"),
        (b"\x28\xb5\x2f\xfd", "zstd data; unpack it"),
        (b"BZh", "bzip2 data; unpack it"),
        (b"\xfd7zXZ", "xz data; unpack it"),
        (b"7z\xbc\xaf", "a 7z archive; unpack it"),
        (b"PAR1", "a Parquet file; name it .parquet"),
        (b"\xd0\xcf\x11\xe0", "an old spreadsheet or document of Microsoft Office; save the table as CSV"),
        (b"SQLite format 3\0", "an SQLite database; export the table as CSV"),
        (b"\x89HDF", "an HDF5 file; write the table as CSV or Parquet"),
    ];
    if let Some((_, what)) = archives.iter().find(|(magic, _)| start.starts_with(magic)) {
        return Some(format!("is {what}"));
    }
    let text = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start).trim_ascii_start();
    let begins = |tag: &str| text.len() >= tag.len() && text[..tag.len()].eq_ignore_ascii_case(tag.as_bytes());
    let page = ["<!doctype", "<html", "<head", "<?xml", "<!--"].iter().any(|tag| begins(tag));
    (page || (json && begins("<")))
        .then(|| "is a web page, not data: the download failed or needs a login; fetch it again".to_owned())
}

/// Moves the bar with the bytes that leave the disk.
struct Counted<'b> {
    file: File,
    bar: &'b Bar,
}

impl Read for Counted<'_> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let read = self.file.read(out)?;
        self.bar.add(read as u64);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{gzip, rows_of};

    #[test]
    fn a_file_of_another_kind_is_recognised_by_its_content() {
        for (name, content, expected) in [
            ("a.json.gz", b"<!DOCTYPE html><p>Not found".to_vec(), "is a web page"),
            (
                "a.csv",
                b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n".to_vec(),
                "is a pointer of Git LFS",
            ),
            ("a.json.gz", gzip(b"\n <HTML>"), "is a web page"),
            ("a.json", b"  <error>no</error>".to_vec(), "is a web page"),
            ("a.tsv", b"<html>".to_vec(), "is a web page"),
            ("a.json.gz", b"{\"a\": 1}\n".to_vec(), "named .gz but is not a gzip file"),
            ("a.json.gz", gzip(b""), "contains no data"),
            ("a.csv", b"PK\x03\x04...".to_vec(), "a zip archive or a spreadsheet; unpack it, or save the table as CSV"),
            (
                "a.csv",
                b"a\0,\0b\0".to_vec(),
                "without a byte order mark; name its encoding: `source.encoding = \"utf-16le\"`",
            ),
            ("a.csv", b"\0a\0,\0b".to_vec(), "`source.encoding = \"utf-16be\"`"),
            ("a.csv", b"a\0\0\0,\0\0\0b\0\0\0".to_vec(), "UTF-32 text, which is not read"),
            ("a.csv", b"\xff\xfe\0\0a\0\0\0".to_vec(), "UTF-32 text, which is not read"),
            ("a.tgz", gzip(&[&b"a.csv"[..], &[0; 252], b"ustar\0"].concat()), "is a tar archive; unpack it"),
            ("a.csv", gzip(&gzip(b"a,b\n")), "compressed by gzip twice"),
            ("a.csv", b"\xff\xfea\0\0\xd8".to_vec(), "bytes that are not UTF-16LE"),
            ("a.csv", b"\xd0\xcf\x11\xe0\xa1".to_vec(), "old spreadsheet"),
        ] {
            let message = rows_of(name, &content, &["a"]).unwrap_err().to_string();
            assert!(message.contains(name) && message.contains(expected), "{message}");
        }
    }

    #[test]
    fn utf_16_is_recognised_by_its_mark() {
        let text = "\u{feff}a,b\n1,\u{e9}\u{1f600}\n";
        let little: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let big: Vec<u8> = text.encode_utf16().flat_map(u16::to_be_bytes).collect();
        for bytes in [little.clone(), big, gzip(&[&b""[..], &little].concat())] {
            assert_eq!(rows_of("a.csv", &bytes, &["b"]).unwrap(), ["2: \u{e9}\u{1f600}"]);
        }
    }

    #[test]
    fn gzip_is_recognised_by_content_and_a_truncated_file_reports_how_far_it_was_read() {
        assert_eq!(rows_of("a.json", &gzip(b"{\"a\": 1}\n"), &["a"]).unwrap(), ["1: 1"]);
        let mut content = Vec::new();
        for n in 0..50_000_u64 {
            content.extend(format!("{{\"a\": \"{:x}\"}}\n", n.wrapping_mul(0x9e37_79b9_7f4a_7c15)).bytes());
        }
        let whole = gzip(&content);
        let message = rows_of("a.json.gz", &whole[..whole.len() / 2], &["a"]).unwrap_err().to_string();
        let after: u64 = message.split("after ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
        assert!(message.contains("is truncated") && (10_000..40_000).contains(&after), "{message}");
    }
}
