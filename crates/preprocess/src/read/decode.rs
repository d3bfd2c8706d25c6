//! Converts text in other encodings to UTF-8.

use std::io::{self, BufRead, Read};

use encoding_rs::{CoderResult, Decoder, Encoding};

/// Decodes text of another encoding to UTF-8. Bytes that do not form a character are an error and never become the replacement character.
pub struct Decoded<R> {
    inner: R,
    encoding: &'static Encoding,
    decoder: Decoder,
    text: Vec<u8>,
    at: usize,
    is_over: bool,
}

impl<R: BufRead> Decoded<R> {
    pub fn new(inner: R, encoding: &'static Encoding) -> Self {
        Self { inner, encoding, decoder: encoding.new_decoder(), text: Vec::new(), at: 0, is_over: false }
    }

    fn refill(&mut self) -> io::Result<()> {
        let bytes = self.inner.fill_buf()?;
        let last = bytes.is_empty();
        // A byte becomes at most three, and the decoder may still hold a few bytes of an incomplete character.
        self.text.resize(3 * bytes.len() + 16, 0);
        let (result, read, written, failed) = self.decoder.decode_to_utf8(bytes, &mut self.text, last);
        self.inner.consume(read);
        self.text.truncate(written);
        self.at = 0;
        self.is_over = last && matches!(result, CoderResult::InputEmpty);
        if failed {
            return Err(io::Error::other(format!("it has bytes that are not {}", self.encoding.name())));
        }
        Ok(())
    }
}

impl<R: BufRead> Read for Decoded<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.at == self.text.len() && !self.is_over {
            self.refill()?;
        }
        let count = out.len().min(self.text.len() - self.at);
        out[..count].copy_from_slice(&self.text[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

/// Finds an encoding by any of its usual names.
pub fn encoding(name: &str) -> Option<&'static Encoding> {
    let name = name.trim().to_ascii_lowercase();
    let plain: String = name.chars().filter(|c| !matches!(c, '-' | '_' | ' ')).collect();
    let known = match plain.as_str() {
        "latin1" | "isolatin1" | "iso88591" => "latin1",
        "utf8sig" => "utf-8",
        "utf16" => "utf-16le",
        _ => &name,
    };
    Encoding::for_label(known.as_bytes())
        .or_else(|| Encoding::for_label(name.replace('_', "-").as_bytes()))
        .or_else(|| Encoding::for_label(plain.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodings_have_many_names() {
        for (name, expected) in [
            ("latin-1", "windows-1252"),
            ("Latin1", "windows-1252"),
            ("ISO-8859-1", "windows-1252"),
            ("iso_8859_15", "ISO-8859-15"),
            ("cp1251", "windows-1251"),
            ("utf-8-sig", "UTF-8"),
            ("UTF-16", "UTF-16LE"),
            ("shift_jis", "Shift_JIS"),
            ("GBK", "GBK"),
        ] {
            assert_eq!(encoding(name).map(Encoding::name), Some(expected), "{name}");
        }
        assert_eq!(encoding("klingon"), None);
    }

    #[test]
    fn text_is_decoded_correctly_wherever_the_buffer_ends() {
        let text = "Les Mis\u{e9}rables \u{1f600}\n".repeat(9);
        let bytes: Vec<u8> = text.encode_utf16().flat_map(u16::to_be_bytes).collect();
        for size in 1..9 {
            let buffered = io::BufReader::with_capacity(size, bytes.as_slice());
            let mut read = String::new();
            Decoded::new(buffered, encoding_rs::UTF_16BE).read_to_string(&mut read).unwrap();
            assert_eq!(read, text);
        }
        let mut read = String::new();
        Decoded::new(&b"\xe9"[..], encoding_rs::WINDOWS_1252).read_to_string(&mut read).unwrap();
        assert_eq!(read, "\u{e9}");
        assert!(Decoded::new(&b"\x81"[..], encoding_rs::GBK).read_to_string(&mut read).is_err());
    }
}
