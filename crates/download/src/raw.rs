//! Raw files for the data folder: each one exists, is downloaded, or is an error.

use std::fmt::Write as _;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use mp4sr_artifact::files;
use mp4sr_pipeline::config::{Download, RawFile};
use mp4sr_pipeline::{Bar, Progress};
use ring::digest::{Context, SHA256};
use url::Url;

use crate::client::{Client, ContentKind};
use crate::outcome::Trouble;
use crate::part::{PartialFile, linked_folder};
use crate::report::RawReport;
use crate::schedule::{self, Permit};
use crate::transfer::Transfer;
use crate::{Error, Result, sniff, urls};

/// A file that is in place, or a sentence that says why it could not be fetched.
type RawOutcome = std::result::Result<RawReport, String>;

/// Fetches all missing raw files; once all were tried, the error names every file that could not be fetched.
pub fn fetch(settings: &Download, data: &Path, progress: &Progress) -> Result<Vec<RawReport>> {
    if settings.files.is_empty() {
        return Ok(Vec::new());
    }
    let downloader = RawDownloader {
        settings,
        data,
        client: Client::new(settings, ContentKind::Raw),
        bar: progress.bytes("raw files", 0),
    };
    let outcomes = Mutex::new(Vec::new());
    let produce = |schedule: &schedule::Schedule<usize>| {
        for (at, file) in settings.files.iter().enumerate() {
            let host = urls::parse(&file.url).map(|url| urls::host(&url)).unwrap_or_default();
            schedule.put(host, at);
        }
        Ok(())
    };
    let threads = settings.connections.min(settings.files.len());
    schedule::run(threads, settings.per_host, produce, |at, permit| {
        let outcome = downloader.fetch(&settings.files[at], permit)?;
        outcomes.lock().unwrap_or_else(PoisonError::into_inner).push((at, outcome));
        Ok(())
    })?;
    let mut outcomes = outcomes.into_inner().unwrap_or_else(PoisonError::into_inner);
    outcomes.sort_by_key(|(at, _)| *at);
    let (there, lost): (Vec<_>, Vec<_>) = outcomes.into_iter().map(|(_, outcome)| outcome).partition(RawOutcome::is_ok);
    let lost: Vec<_> = lost.into_iter().filter_map(RawOutcome::err).collect();
    if lost.is_empty() {
        Ok(there.into_iter().filter_map(RawOutcome::ok).collect())
    } else {
        Err(Error::Raw(lost.join("; ")))
    }
}

struct RawDownloader<'a> {
    settings: &'a Download,
    data: &'a Path,
    client: Client,
    bar: Bar,
}

impl RawDownloader<'_> {
    fn fetch(&self, file: &RawFile, permit: &mut Permit<'_, usize>) -> Result<RawOutcome> {
        let path = self.data.join(&file.path);
        if let Some(link) = linked_folder(self.data, &path) {
            return Ok(Err(format!(
                "`{}` was not downloaded: `{}` is a link, and downloads must stay within the data folder; correct its `path` in \
                 `download.files`, or put the file there",
                path.display(),
                link.display()
            )));
        }
        // An earlier release may have kept an empty response; such a file is downloaded again.
        if let Some(bytes) = files::length(&path)?.filter(|&bytes| bytes > 0) {
            return kept(file, &path, bytes);
        }
        let lost = |reason: &str, remedy: &str| {
            Ok(Err(format!(
                "failed to download `{}` from {}: {reason}; {remedy}",
                path.display(),
                urls::shown_text(&file.url)
            )))
        };
        if self.settings.offline {
            return lost("`download.offline` is on", "set `download.offline = false`, or put the file there");
        }
        let url = match urls::parse(&file.url) {
            Ok(url) => url,
            Err(verdict) => return lost(&verdict.reason, "correct `download.files`, or put the file there"),
        };
        let part = PartialFile::beside(&path);
        let meter = Meter { bar: &self.bar, announced: AtomicU64::new(0), counted: AtomicU64::new(0) };
        let transfer = Transfer {
            client: &self.client,
            url: &url,
            part: &part,
            limit: None,
            retries: self.settings.retries,
            watch: &|length, expected| meter.at(length, expected),
        };
        let mut enter = |url: &Url| {
            permit.change(urls::host(url));
            Ok(())
        };
        match transfer.run(&mut enter) {
            Ok(whole) => accept(file, &path, &part, whole.bytes),
            Err(Trouble::Passing(verdict, _) | Trouble::Final(verdict)) => lost(
                &verdict.reason,
                "run the command again if this may pass, correct `download.files`, or put the file there",
            ),
            Err(Trouble::Disk(error)) => Err(error.into()),
        }
    }
}

/// Checks a file that exists already; it is never replaced.
fn kept(file: &RawFile, path: &Path, bytes: u64) -> Result<RawOutcome> {
    if !path.is_file() {
        return Ok(Err(format!("`{}` is not a file; correct its `path` in `download.files`", path.display())));
    }
    let found = if file.sha256.is_empty() { None } else { Some(sum(path)?) };
    if found.as_ref().is_some_and(|found| !found.eq_ignore_ascii_case(&file.sha256)) {
        let found = found.unwrap_or_default();
        return Ok(Err(format!(
            "`{}` has the SHA-256 {found}, expected {}; remove it to download it again, or correct `download.files`",
            path.display(),
            file.sha256
        )));
    }
    Ok(Ok(RawReport { path: file.path.clone(), fetched: false, verified: found.is_some(), bytes }))
}

/// Moves a downloaded file to its final name if it is as expected; otherwise discards it.
fn accept(file: &RawFile, path: &Path, part: &PartialFile, bytes: u64) -> Result<RawOutcome> {
    if let Some(problem) = problem(file, part.path())? {
        part.discard()?;
        return Ok(Err(format!(
            "`{}` was not kept: the file from {} {problem}; correct `download.files`",
            path.display(),
            urls::shown_text(&file.url)
        )));
    }
    part.publish(path)?;
    Ok(Ok(RawReport { path: file.path.clone(), fetched: true, verified: !file.sha256.is_empty(), bytes }))
}

/// What is wrong with a complete file, if anything. Without a checksum, the first bytes show whether the server sent something else
/// instead.
fn problem(file: &RawFile, path: &Path) -> Result<Option<String>> {
    if files::length(path)? == Some(0) {
        return Ok(Some("is empty".to_owned()));
    }
    if !file.sha256.is_empty() {
        let found = sum(path)?;
        let wrong = !found.eq_ignore_ascii_case(&file.sha256);
        return Ok(wrong.then(|| format!("has the SHA-256 {found}, expected {}", file.sha256)));
    }
    let start = sniff::start(path)?;
    let end = PathBuf::from(&file.path).extension().map(|end| end.to_string_lossy().to_lowercase()).unwrap_or_default();
    if sniff::is_web_page(&start) && !matches!(end.as_str(), "html" | "htm") {
        return Ok(Some("is a web page".to_owned()));
    }
    Ok((end == "gz" && !sniff::is_gzip(&start)).then(|| "is not gzip, although its name ends in `.gz`".to_owned()))
}

fn sum(path: &Path) -> Result<String> {
    let mut file = files::open(path)?;
    let (mut context, mut buffer) = (Context::new(&SHA256), vec![0; 1 << 20]);
    loop {
        let read = file.read(&mut buffer).map_err(|e| mp4sr_artifact::Error::io("read", path, e))?;
        if read == 0 {
            return Ok(hexadecimal(context.finish().as_ref()));
        }
        context.update(&buffer[..read]);
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// One file's share of the progress bar. Bytes that are downloaded twice count once.
struct Meter<'a> {
    bar: &'a Bar,
    announced: AtomicU64,
    counted: AtomicU64,
}

impl Meter<'_> {
    fn at(&self, length: u64, expected: Option<u64>) {
        let expected = expected.unwrap_or(length).max(length);
        let announced = self.announced.fetch_max(expected, Ordering::Relaxed);
        self.bar.grow(expected.saturating_sub(announced));
        let counted = self.counted.fetch_max(length, Ordering::Relaxed);
        self.bar.add(length.saturating_sub(counted));
    }
}
