//! Keeps bodies as servers store them: a body with `Content-Encoding: gzip` is not decompressed.
//!
//! The HTTP library silently decompresses such a body if any dependency of the program enables that feature, even if the request asked for
//! `identity`. The header is therefore renamed before the library reads it.

use ureq::Error;
use ureq::unversioned::transport::{Buffers, ConnectionDetails, Connector, NextTimeout, Transport};

/// The header that makes the library decompress.
const ENCODING: &[u8] = b"content-encoding:";
/// The end of a response's head.
const END: &[u8] = b"\r\n\r\n";
/// The number of bytes after which an unfinished head is passed on; the library rejects it.
const LONGEST_HEAD: usize = 1 << 20;

/// Wraps connections so that bodies arrive as they are stored.
#[derive(Debug)]
pub struct AsStored;

impl<In: Transport> Connector<In> for AsStored {
    type Out = StoredBodies<In>;

    fn connect(&self, _: &ConnectionDetails<'_>, inner: Option<In>) -> Result<Option<Self::Out>, Error> {
        Ok(inner.map(|inner| StoredBodies { inner, input: Vec::new(), start: 0, head: None, made_progress: false }))
    }
}

/// A connection whose responses have no `Content-Encoding`.
#[derive(Debug)]
pub struct StoredBodies<In> {
    inner: In,
    /// The bytes that have arrived; the library has consumed those before `start`.
    input: Vec<u8>,
    start: usize,
    /// The head of a response as far as it has arrived; `None` within a body.
    head: Option<Vec<u8>>,
    made_progress: bool,
}

impl<In: Transport> StoredBodies<In> {
    /// Takes over what the connection has read. Returns whether the library can read more than before.
    fn take_over(&mut self, has_ended: bool) -> bool {
        let read = self.inner.buffers().input();
        let count = read.len();
        self.input.drain(..self.start);
        self.start = 0;
        let before = self.input.len();
        match self.head.take() {
            None => self.input.extend_from_slice(read),
            Some(mut head) => {
                let from = head.len().saturating_sub(END.len());
                head.extend_from_slice(read);
                let end = head[from..].windows(END.len()).position(|bytes| bytes == END).map(|at| from + at);
                if end.is_some() || has_ended || head.len() > LONGEST_HEAD {
                    let end = end.unwrap_or(head.len());
                    rename(&mut head[..end]);
                    self.input.append(&mut head);
                } else {
                    self.head = Some(head);
                }
            }
        }
        self.inner.buffers().input_consume(count);
        self.input.len() > before
    }
}

/// Renames the header to another name of the same length.
fn rename(head: &mut [u8]) {
    let starts = (2..head.len()).filter(|&at| &head[at - 2..at] == b"\r\n");
    let of_header =
        |at: &usize| head.get(*at..at + ENCODING.len()).is_some_and(|name| name.eq_ignore_ascii_case(ENCODING));
    let found: Vec<usize> = starts.filter(of_header).collect();
    found.into_iter().for_each(|at| head[at] = b'x');
}

impl<In: Transport> Buffers for StoredBodies<In> {
    fn output(&mut self) -> &mut [u8] {
        self.inner.buffers().output()
    }

    fn input(&self) -> &[u8] {
        &self.input[self.start..]
    }

    fn input_append_buf(&mut self) -> &mut [u8] {
        self.inner.buffers().input_append_buf()
    }

    fn input_appended(&mut self, amount: usize) {
        self.inner.buffers().input_appended(amount);
    }

    fn input_consume(&mut self, amount: usize) {
        self.made_progress = amount > 0;
        self.start += amount;
    }

    fn tmp_and_output(&mut self) -> (&mut [u8], &mut [u8]) {
        self.inner.buffers().tmp_and_output()
    }

    fn can_use_input(&self) -> bool {
        self.start < self.input.len() && self.made_progress
    }
}

impl<In: Transport> Transport for StoredBodies<In> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        // The input that follows is the response to this request.
        self.head = Some(Vec::new());
        self.inner.transmit_output(amount, timeout)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        loop {
            let progress = self.inner.await_input(timeout)?;
            let more = self.take_over(!progress);
            if more || !progress {
                return Ok(more);
            }
        }
    }

    fn is_open(&mut self) -> bool {
        self.inner.is_open()
    }

    fn is_tls(&self) -> bool {
        self.inner.is_tls()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_header_is_renamed() {
        let mut head =
            b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nX: content-encoding: a\r\nContent-Length: 3".to_vec();
        rename(&mut head);
        let head = String::from_utf8(head).unwrap();
        assert_eq!(head, "HTTP/1.1 200 OK\r\nxontent-Encoding: gzip\r\nX: content-encoding: a\r\nContent-Length: 3");
    }
}
