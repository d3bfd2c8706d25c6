use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use mp4sr_artifact::files;
use mp4sr_pipeline::Bar;

use super::Shape;
use super::gunzip::{Gunzip, MAGIC};
use super::lines::{Lines, failure};
use crate::{Error, Result};

const BUFFER: usize = 1 << 18;

/// Opens a text file, plain or gzip, and says at once when it is something else.
pub fn open<'b>(path: &Path, shape: Shape, bar: &'b Bar) -> Result<Lines<'b>> {
    let file = Counted { file: files::open(path)?, bar };
    let mut raw = BufReader::with_capacity(BUFFER, file);
    let failed = |e: std::io::Error| Error::raw(path, failure(&e, 0));
    let named_gzip = path.extension().is_some_and(|end| end.eq_ignore_ascii_case("gz"));
    let start = raw.fill_buf().map_err(failed)?;
    let mut reader: Box<dyn BufRead + 'b> = if start.starts_with(&MAGIC) {
        Box::new(BufReader::with_capacity(BUFFER, Gunzip::new(raw)))
    } else {
        if let Some(other) = other_form(start, shape) {
            return Err(Error::raw(path, other));
        }
        if named_gzip {
            return Err(Error::raw(
                path,
                "is named .gz but is not a gzip file; fetch it again, or name it as what it is",
            ));
        }
        Box::new(raw)
    };
    let start = reader.fill_buf().map_err(failed)?;
    if start.is_empty() {
        return Err(Error::raw(path, "holds no data; fetch it again"));
    }
    if let Some(other) = other_form(start, shape) {
        return Err(Error::raw(path, other));
    }
    Ok(Lines::new(path, reader))
}

/// What a file that is not lines of text really is.
fn other_form(start: &[u8], shape: Shape) -> Option<String> {
    let archives: [(&[u8], &str); 8] = [
        (b"PK\x03\x04", "a zip archive; unpack it"),
        (b"\x28\xb5\x2f\xfd", "zstd data; unpack it"),
        (b"BZh", "bzip2 data; unpack it"),
        (b"\xfd7zXZ", "xz data; unpack it"),
        (b"7z\xbc\xaf", "a 7z archive; unpack it"),
        (b"PAR1", "a Parquet file; name it .parquet and use the tabular form"),
        (b"\xff\xfe", "UTF-16 text; save it as UTF-8"),
        (b"\xfe\xff", "UTF-16 text; save it as UTF-8"),
    ];
    if let Some((_, what)) = archives.iter().find(|(magic, _)| start.starts_with(magic)) {
        return Some(format!("is {what}"));
    }
    let text = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start).trim_ascii_start();
    let begins = |tag: &str| text.len() >= tag.len() && text[..tag.len()].eq_ignore_ascii_case(tag.as_bytes());
    let json = matches!(shape, Shape::JsonLines | Shape::JsonOrPythonLines);
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
    fn a_file_of_another_kind_is_named_for_what_it_is() {
        for (name, content, expected) in [
            ("a.json.gz", b"<!DOCTYPE html><p>Not found".to_vec(), "is a web page"),
            ("a.json.gz", gzip(b"\n <HTML>"), "is a web page"),
            ("a.json", b"  <error>no</error>".to_vec(), "is a web page"),
            ("a.tsv", b"<html>".to_vec(), "is a web page"),
            ("a.json.gz", b"{\"a\": 1}\n".to_vec(), "named .gz but is not a gzip file"),
            ("a.json.gz", gzip(b""), "holds no data"),
            ("a.csv", b"PK\x03\x04...".to_vec(), "a zip archive; unpack it"),
            ("a.csv", b"\xff\xfea\0,\0".to_vec(), "UTF-16"),
        ] {
            let message = rows_of(name, &content, &["a"]).unwrap_err().to_string();
            assert!(message.contains(name) && message.contains(expected), "{message}");
        }
    }

    #[test]
    fn gzip_is_told_by_content_and_a_cut_file_says_how_far_it_went() {
        assert_eq!(rows_of("a.json", &gzip(b"{\"a\": 1}\n"), &["a"]).unwrap(), ["1: 1"]);
        let mut content = Vec::new();
        for n in 0..50_000_u64 {
            content.extend(format!("{{\"a\": \"{:x}\"}}\n", n.wrapping_mul(0x9e37_79b9_7f4a_7c15)).bytes());
        }
        let whole = gzip(&content);
        let message = rows_of("a.json.gz", &whole[..whole.len() / 2], &["a"]).unwrap_err().to_string();
        let after: u64 = message.split("after ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
        assert!(message.contains("is cut short") && (10_000..40_000).contains(&after), "{message}");
    }
}
