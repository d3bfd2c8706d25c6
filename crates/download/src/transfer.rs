//! Downloads one file from one URL, in several attempts if necessary. Each one resumes where the one before was interrupted.

use std::fs::File;
use std::io::{Read, Write};

use jiff::Timestamp;
use mp4sr_artifact::{Downloads, Error};
use ureq::Body;
use ureq::http::{HeaderMap, HeaderName, Response, header};
use url::Url;

use crate::client::Client;
use crate::outcome::{Fate, Trouble, Verdict};
use crate::part::{PartialFile, PartialState};
use crate::retry;

/// The progress in bytes after which the count of attempts starts again.
const HEADWAY: u64 = 1 << 20;

/// What to download, and how.
pub struct Transfer<'a> {
    pub client: &'a Client,
    pub url: &'a Url,
    pub part: &'a PartialFile,
    /// The largest number of bytes allowed, if there is a limit.
    pub limit: Option<u64>,
    /// The number of further attempts after a failed one.
    pub retries: u32,
    /// Called with the number of bytes so far, and the total number if it is known.
    pub watch: &'a dyn Fn(u64, Option<u64>),
}

/// A file that is complete, still under the name of its part.
#[derive(Debug)]
pub struct CompleteFile {
    pub status: u16,
    pub bytes: u64,
}

impl Transfer<'_> {
    /// Downloads the file into its part. `enter` is called with each URL before it is requested, and may refuse it.
    pub fn run(&self, enter: &mut dyn FnMut(&Url) -> Result<(), Trouble>) -> Result<CompleteFile, Trouble> {
        let key = Downloads::key(self.url.as_str());
        let (mut tried, mut furthest) = (0, 0);
        loop {
            let (verdict, wait) = match self.attempt(enter) {
                Err(Trouble::Passing(verdict, wait)) => (verdict, wait),
                settled => return settled,
            };
            let length = self.part.length()?;
            if length >= furthest + HEADWAY {
                (tried, furthest) = (0, length);
            }
            if tried == self.retries {
                return Err(Trouble::Final(verdict));
            }
            let wait = wait.unwrap_or_else(|| retry::backoff(tried, key));
            if wait > retry::LONGEST {
                let reason = format!("{} and asks to wait {} s", verdict.reason, wait.as_secs());
                return Err(Trouble::Final(Verdict { reason, ..verdict }));
            }
            std::thread::sleep(wait);
            tried += 1;
        }
    }

    fn attempt(&self, enter: &mut dyn FnMut(&Url) -> Result<(), Trouble>) -> Result<CompleteFile, Trouble> {
        if let Some(held) = self.part.held(self.url.as_str())? {
            let response = self.client.get(self.url, Some(&held), enter)?;
            match response.status().as_u16() {
                206 if fits(response.headers(), &held) => {
                    return self.resume(response, &held);
                }
                // The bytes so far do not fit the server's current version.
                206 | 416 => self.part.discard()?,
                _ => return self.begin(response),
            }
        }
        self.begin(self.client.get(self.url, None, enter)?)
    }

    fn begin(&self, response: Response<Body>) -> Result<CompleteFile, Trouble> {
        let status = response.status().as_u16();
        if status != 200 {
            let trouble = refusal(status, response.headers());
            if matches!(trouble, Trouble::Final(_)) {
                self.part.discard()?;
            }
            return Err(trouble);
        }
        let file = self.part.begin(self.url.as_str(), validator(response.headers()))?;
        let expected = response.body().content_length();
        self.copy(response, file, 0, expected)
    }

    fn resume(&self, response: Response<Body>, held: &PartialState) -> Result<CompleteFile, Trouble> {
        let total = range(response.headers()).and_then(|(_, total)| total);
        let expected = total.or_else(|| response.body().content_length().map(|rest| held.length + rest));
        self.copy(response, self.part.resume()?, held.length, expected)
    }

    /// Appends the body to the `length` bytes so far. Only bytes that arrive are counted; the length that the server states only shows
    /// whether the body is incomplete or too long.
    fn copy(
        &self,
        response: Response<Body>,
        mut file: File,
        mut length: u64,
        expected: Option<u64>,
    ) -> Result<CompleteFile, Trouble> {
        let status = response.status().as_u16();
        let mut body = response.into_body().into_with_config().limit(u64::MAX).reader();
        let mut buffer = vec![0; 64 << 10];
        (self.watch)(length, expected);
        loop {
            let read = match body.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(e) => return Err(self.client.trouble(e.into()).with_status(status)),
            };
            length += read as u64;
            if let Some(limit) = self.limit.filter(|limit| length > *limit) {
                let reason = format!("it has more than {limit} bytes (`download.max_bytes`)");
                self.part.discard()?;
                return Err(Trouble::lasting(Fate::TooLarge, reason).with_status(status));
            }
            file.write_all(&buffer[..read]).map_err(|e| Error::io("write", self.part.path(), e))?;
            (self.watch)(length, expected);
        }
        match expected {
            Some(expected) if length < expected => {
                Err(Trouble::passing(format!("the connection was closed after {length} of {expected} bytes"))
                    .with_status(status))
            }
            Some(expected) if length > expected => {
                self.part.discard()?;
                Err(Trouble::passing(format!("received {length} bytes, expected {expected}")).with_status(status))
            }
            _ => Ok(CompleteFile { status, bytes: length }),
        }
    }
}

/// Classifies a response whose body is not kept.
fn refusal(status: u16, headers: &HeaderMap) -> Trouble {
    let reason = format!("the server answered {status}");
    let trouble = match status {
        404 | 410 => Trouble::lasting(Fate::Gone, reason),
        408 | 429 | 500 | 502 | 503 | 504 => {
            let wait = text(headers, header::RETRY_AFTER).and_then(|value| retry::after(&value, Timestamp::now()));
            Trouble::Passing(Verdict::new(Fate::Failed, reason), wait)
        }
        _ => Trouble::lasting(Fate::Failed, reason),
    };
    trouble.with_status(status)
}

/// Whether a response is the rest of the held part: it continues where the part ends, and has the same version.
fn fits(headers: &HeaderMap, held: &PartialState) -> bool {
    let name = if held.validator.starts_with('"') { header::ETAG } else { header::LAST_MODIFIED };
    // A server must repeat an ETag, but need not repeat a time.
    let may_be_missing = name == header::LAST_MODIFIED;
    let same = text(headers, name).map_or(may_be_missing, |now| now == held.validator);
    same && range(headers).is_some_and(|(start, _)| start == held.length)
}

/// The header that identifies this version of the content. A weak ETag does not: the bytes may differ under it.
fn validator(headers: &HeaderMap) -> Option<String> {
    let strong = text(headers, header::ETAG).filter(|tag| tag.starts_with('"'));
    strong.or_else(|| text(headers, header::LAST_MODIFIED))
}

/// `Content-Range: bytes START-END/TOTAL`: the start, and the total if it is known.
fn range(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let value = text(headers, header::CONTENT_RANGE)?;
    let (range, total) = value.trim().strip_prefix("bytes")?.trim_start().split_once('/')?;
    Some((range.split_once('-')?.0.parse().ok()?, total.parse().ok()))
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}
