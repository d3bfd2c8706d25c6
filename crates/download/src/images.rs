//! The images of items: selects the URLs that are still needed, downloads them, and records the outcome for each.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use mp4sr_artifact::{Downloads, Items, files};
use mp4sr_pipeline::Progress;
use mp4sr_pipeline::config::Download;
use url::Url;

use crate::client::{Client, ContentKind};
use crate::ledger::{LastOutcome, Ledger, LedgerContent, LedgerEntry, Past};
use crate::outcome::{Fate, Trouble, Verdict};
use crate::part::{PartialFile, linked_folder};
use crate::report::ImageReport;
use crate::schedule::{self, Permit, Schedule};
use crate::transfer::{CompleteFile, Transfer};
use crate::{Result, check, urls};

/// A host that did not respond for this many URLs in a row is not contacted again in this run. Otherwise a dead host would cost its timeout
/// for every image.
const SILENT: u32 = 10;

/// Fetches the missing images of `items`, the path of `items.parquet`.
pub fn fetch(settings: &Download, downloads: &Downloads, items: &Path, progress: &Progress) -> Result<ImageReport> {
    let (ledger, past, broken) = Ledger::open(&downloads.ledger())?;
    if broken > 0 {
        let ledger = downloads.ledger();
        progress.log(format!("download: {broken} lines of `{}` cannot be read and are ignored", ledger.display()));
    }
    let (mut wanted, tally) = plan(settings, downloads, items, &past)?;
    let bar = progress.bar("images", "URLs", wanted.len() as u64);
    let threads = settings.connections.min(wanted.len());
    let downloader = ImageDownloader {
        settings,
        downloads,
        past: &past,
        client: Client::new(settings, ContentKind::Image),
        silent: Mutex::default(),
        records: Mutex::new((ledger, tally)),
    };
    let produce = |schedule: &Schedule<String>| {
        Items::each_image(items, |url| {
            let wanted = wanted.remove(&Downloads::key(url));
            if wanted && !schedule.put(host_of(url), url.to_owned()) {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })?;
        Ok(())
    };
    if threads > 0 {
        schedule::run(threads, settings.per_host, produce, |url, permit| {
            downloader.settle(&url, permit)?;
            bar.add(1);
            Ok(())
        })?;
    }
    let (_, tally) = downloader.records.into_inner().unwrap_or_else(PoisonError::into_inner);
    tally.check()?;
    Ok(tally)
}

/// The numbers of image URLs of items that a download would find in each state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ImagePlan {
    /// URLs whose image is there.
    pub done: u64,
    /// URLs that are not tried again, because the last attempt showed that they have no usable image.
    pub given_up: u64,
    /// URLs that would be tried.
    pub wanted: u64,
}

impl ImagePlan {
    /// Finds what a download would do with the images of `items`, the path of `items.parquet`, without writing anything.
    pub fn of(settings: &Download, data: &Path, items: &Path) -> Result<Self> {
        let downloads = Downloads::new(data);
        let ledger = downloads.ledger();
        let past = if ledger.exists() { LedgerContent::read(&ledger)?.past } else { Past::new() };
        let (mut open, report) = plan(settings, &downloads, items, &past)?;
        let given_up = report.urls - report.fates[&Fate::Done] - open.len() as u64;
        // A file that another program has put there is not fetched either.
        Items::each_image(items, |url| {
            if open.contains(&Downloads::key(url)) && downloads.image(url).is_file() {
                open.remove(&Downloads::key(url));
            }
            ControlFlow::Continue(())
        })?;
        let wanted = open.len() as u64;
        Ok(Self { done: report.urls - given_up - wanted, given_up, wanted })
    }
}

fn host_of(url: &str) -> String {
    urls::parse(url).map(|url| urls::host(&url)).unwrap_or_default()
}

/// Returns the keys of the URLs to try, and a report that counts the others.
fn plan(settings: &Download, downloads: &Downloads, items: &Path, past: &Past) -> Result<(HashSet<u128>, ImageReport)> {
    let (mut seen, mut wanted) = (HashSet::new(), HashSet::new());
    let mut tally = ImageReport { fates: Fate::ALL.map(|fate| (fate, 0)).into(), ..ImageReport::default() };
    let mut outcome = Ok(());
    Items::each_image(items, |url| {
        let key = Downloads::key(url);
        if !Downloads::is_url(url) || !seen.insert(key) {
            return ControlFlow::Continue(());
        }
        tally.urls += 1;
        match past.get(&key).map_or(Ok(None), |known| settled_fate(settings, downloads, url, *known)) {
            Ok(Some(fate)) => count(&mut tally.fates, fate),
            Ok(None) => drop(wanted.insert(key)),
            Err(error) => {
                outcome = Err(error);
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    })?;
    outcome.map(|()| (wanted, tally))
}

/// The outcome of a URL that an earlier run settled, if it still holds.
fn settled_fate(settings: &Download, downloads: &Downloads, url: &str, known: LastOutcome) -> Result<Option<Fate>> {
    let holds = match known.fate {
        Fate::Done => files::length(&downloads.image(url))? == known.bytes,
        Fate::Failed => false,
        Fate::Gone | Fate::NotAnImage | Fate::TooLarge | Fate::Refused => !settings.again || settings.offline,
    };
    Ok(holds.then_some(known.fate))
}

fn count(fates: &mut BTreeMap<Fate, u64>, fate: Fate) {
    *fates.entry(fate).or_default() += 1;
}

struct ImageDownloader<'a> {
    settings: &'a Download,
    downloads: &'a Downloads,
    past: &'a Past,
    client: Client,
    /// The number of URLs without a response since the last response, by host.
    silent: Mutex<HashMap<String, u32>>,
    records: Mutex<(Ledger, ImageReport)>,
}

impl ImageDownloader<'_> {
    /// Determines the outcome for one URL and writes it to the ledger.
    fn settle(&self, url: &str, permit: &mut Permit<'_, String>) -> Result<()> {
        let entry = match self.adopt(url)? {
            Some(entry) => Some(entry),
            None if self.settings.offline => None,
            None => Some(self.fetch(url, permit)?),
        };
        let mut records = lock(&self.records);
        let (ledger, tally) = &mut *records;
        let Some(entry) = entry else {
            tally.missing += 1;
            return Ok(());
        };
        ledger.add(&entry)?;
        count(&mut tally.fates, entry.fate);
        count(&mut tally.settled_now, entry.fate);
        tally.bytes += entry.bytes.unwrap_or(0);
        Ok(())
    }

    /// Adopts an image that a killed process moved to its final name but did not record in the ledger. An image that differs from its
    /// ledger line, or whose header cannot be read, is removed.
    fn adopt(&self, url: &str) -> Result<Option<LedgerEntry>> {
        let path = self.downloads.image(url);
        let Some(bytes) = files::length(&path)? else { return Ok(None) };
        let known = self.past.get(&Downloads::key(url)).is_some_and(|known| known.fate == Fate::Done);
        if let Some(size) = check::size(&path)?.filter(|_| !known) {
            PartialFile::beside(&path).discard()?;
            return Ok(Some(LedgerEntry::kept(url, "already present", None, bytes, size)));
        }
        files::remove_if_present(&path)?;
        Ok(None)
    }

    fn fetch(&self, url: &str, permit: &mut Permit<'_, String>) -> Result<LedgerEntry> {
        let outcome = match urls::parse(url) {
            Ok(parsed) => self.ask(url, &parsed, permit)?,
            Err(verdict) => Err(verdict),
        };
        Ok(match outcome {
            Ok((whole, size)) => LedgerEntry::kept(url, "fetched", Some(whole.status), whole.bytes, size),
            Err(verdict) => LedgerEntry::lost(url, verdict),
        })
    }

    fn ask(
        &self,
        url: &str,
        parsed: &Url,
        permit: &mut Permit<'_, String>,
    ) -> Result<std::result::Result<(CompleteFile, check::ImageSize), Verdict>> {
        let host = urls::host(parsed);
        if let Some(verdict) = self.silence(&host) {
            return Ok(Err(verdict));
        }
        let path = self.downloads.image(url);
        let data = self.downloads.folder().parent().unwrap_or(Path::new(""));
        if let Some(link) = linked_folder(data, &path) {
            let reason = format!("`{}` is a link, and downloads must stay within the data folder", link.display());
            return Ok(Err(Verdict::new(Fate::Failed, reason)));
        }
        let part = PartialFile::beside(&path);
        let transfer = Transfer {
            client: &self.client,
            url: parsed,
            part: &part,
            limit: Some(self.settings.max_bytes),
            retries: self.settings.retries,
            watch: &|_, _| (),
        };
        // A redirect may lead to other hosts, and only the last one may have failed to answer.
        let mut last = host.clone();
        let mut enter = |url: &Url| {
            last = urls::host(url);
            if let Some(verdict) = self.silence(&last).filter(|_| last != host) {
                return Err(Trouble::Final(verdict));
            }
            permit.change(last.clone());
            Ok(())
        };
        let outcome = match transfer.run(&mut enter) {
            Ok(whole) => self.keep(&part, &path, whole)?,
            Err(Trouble::Passing(verdict, _) | Trouble::Final(verdict)) => Err(verdict),
            Err(Trouble::Disk(error)) => return Err(error.into()),
        };
        let no_answer = outcome.as_ref().is_err_and(|v| v.fate == Fate::Failed && v.status.is_none());
        if last != host {
            self.note_answer(host, true);
        }
        self.note_answer(last, !no_answer);
        Ok(outcome)
    }

    /// Why a host is not contacted again; `None` if it is.
    fn silence(&self, host: &str) -> Option<Verdict> {
        let is_silent = lock(&self.silent).get(host).is_some_and(|silent| *silent >= SILENT);
        is_silent.then(|| {
            let reason =
                format!("the host `{host}` did not answer for {SILENT} URLs in a row, and was not contacted again");
            Verdict::new(Fate::Failed, reason)
        })
    }

    /// Moves a downloaded file to its final name if it is an image; otherwise discards it.
    fn keep(
        &self,
        part: &PartialFile,
        path: &Path,
        whole: CompleteFile,
    ) -> Result<std::result::Result<(CompleteFile, check::ImageSize), Verdict>> {
        match check::check(part.path(), self.settings.max_pixels)? {
            Ok(size) => {
                part.publish(path)?;
                Ok(Ok((whole, size)))
            }
            Err(verdict) => {
                part.discard()?;
                Ok(Err(verdict.with_status(whole.status)))
            }
        }
    }

    fn note_answer(&self, host: String, answered: bool) {
        let mut silent = lock(&self.silent);
        if answered {
            silent.remove(&host);
        } else {
            *silent.entry(host).or_default() += 1;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
