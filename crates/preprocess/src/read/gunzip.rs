//! Decompresses gzip, and reports files that are truncated or have other bytes at their end.

use std::io::{self, BufRead, Chain, Cursor, Read};

use flate2::bufread::GzDecoder;

/// The two bytes that every gzip member begins with.
pub const MAGIC: [u8; 2] = [0x1f, 0x8b];

/// Decodes gzip of any number of members, each with flate2. Zeros after the last member are skipped, because tapes and some mirrors pad
/// files; other bytes there are an error, because a member whose first byte is damaged would otherwise be lost silently.
///
/// flate2's own `MultiGzDecoder` refuses the padding ("invalid gzip header"), and reports fewer than ten bytes of anything after the last
/// member as a member that is cut short.
pub struct Gunzip<R: BufRead> {
    member: Option<GzDecoder<Ahead<R>>>,
}

/// The input, preceded by a byte that was read to look ahead.
type Ahead<R> = Chain<Cursor<Vec<u8>>, R>;

impl<R: BufRead> Gunzip<R> {
    pub fn new(inner: R) -> Self {
        Self { member: Some(GzDecoder::new(Cursor::new(Vec::new()).chain(inner))) }
    }
}

impl<R: BufRead> Read for Gunzip<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        loop {
            let Some(decoder) = &mut self.member else { return Ok(0) };
            let read = decoder.read(out)?;
            if read > 0 || out.is_empty() {
                return Ok(read);
            }
            self.member = match self.member.take() {
                Some(ended) => next_member(ended.into_inner().into_inner().1)?,
                None => None,
            };
        }
    }
}

fn next_member<R: BufRead>(mut inner: R) -> io::Result<Option<GzDecoder<Ahead<R>>>> {
    let mut taken = Vec::new();
    if inner.fill_buf()? == &MAGIC[..1] {
        // The buffer ends between the two bytes, and is refilled only when it is empty.
        taken.push(MAGIC[0]);
        inner.consume(1);
    }
    let expected = &MAGIC[taken.len()..];
    if inner.fill_buf()?.starts_with(expected) {
        return Ok(Some(GzDecoder::new(Cursor::new(taken).chain(inner))));
    }
    while taken.is_empty() {
        let rest = inner.fill_buf()?;
        if rest.is_empty() {
            return Ok(None);
        }
        let length = rest.len();
        taken.extend(rest.iter().find(|&&byte| byte != 0));
        inner.consume(length);
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "bytes after the end of its gzip data"))
}

#[cfg(test)]
mod tests {
    use super::super::testing::gzip;
    use super::*;

    fn read(bytes: &[u8]) -> io::Result<String> {
        let mut text = String::new();
        Gunzip::new(bytes).read_to_string(&mut text).map(|_| text)
    }

    #[test]
    fn members_follow_each_other_padding_is_not_data_and_anything_else_is_an_error() {
        let members = [gzip(b"one\n"), gzip(b""), gzip(b"two\n")].concat();
        assert_eq!(read(&members).unwrap(), "one\ntwo\n");
        assert_eq!(read(&[members.as_slice(), &[0; 512]].concat()).unwrap(), "one\ntwo\n");
        for rest in [&b"garbage"[..], b"\0\0x", &[0x1f], &[0x1f, 0x00], &[0x1f, 0x8c, 8, 0]] {
            let error = read(&[members.as_slice(), rest].concat()).unwrap_err().to_string();
            assert!(error.contains("after the end"), "{rest:?}: {error}");
        }
    }

    #[test]
    fn no_member_is_lost_wherever_the_buffer_ends() {
        let members = [gzip(b"one\n"), gzip(b"two\n"), gzip(b"three\n")].concat();
        for size in 1..members.len() {
            let mut text = String::new();
            let buffered = io::BufReader::with_capacity(size, members.as_slice());
            Gunzip::new(buffered).read_to_string(&mut text).unwrap();
            assert_eq!(text, "one\ntwo\nthree\n", "buffer of {size}");
        }
    }

    #[test]
    fn a_cut_or_damaged_member_is_an_error() {
        let whole = gzip(b"a line that is long enough to be cut\n");
        assert_eq!(read(&whole[..whole.len() - 9]).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        let mut damaged = whole.clone();
        let at = damaged.len() - 6;
        damaged[at] ^= 0xff;
        assert_ne!(read(&damaged).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
