//! A project whose items have image URLs, and checks of what the stage kept for them.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use image::{ImageFormat, Rgb, RgbImage};
use mp4sr_artifact::{Downloads, Items};
use mp4sr_download::{DownloadReport, Fate, LedgerEntry};
use mp4sr_tests::Project;

pub struct World(Project);

impl World {
    /// A pipeline with these keys of `[download]`. Every test allows private addresses, because its server runs on this machine.
    pub fn new(keys: &str) -> Self {
        Self(Project::new("shop", &format!("[download]\nallow_private = true\n{keys}")))
    }

    /// The path of a file in the data folder, or of that folder if `name` is empty.
    pub fn data(&self, name: &str) -> PathBuf {
        self.0.raw(name)
    }

    /// Writes items whose images have these URLs.
    pub fn items(&self, images: Vec<Vec<String>>) -> &Self {
        let named = |what: &str| (0..images.len()).map(|at| format!("{what}{at}")).collect::<Vec<_>>();
        let none = vec![Vec::new(); images.len()];
        let items = Items {
            ids: named("id"),
            titles: named("title "),
            sentences: none.clone(),
            images,
            categories: none.clone(),
            sounds: none,
        };
        items.write(&self.0.path("shop/dataset/items.parquet")).unwrap();
        self
    }

    /// Writes one item per URL.
    pub fn urls(&self, urls: &[String]) -> &Self {
        self.items(urls.iter().map(|url| vec![url.clone()]).collect())
    }

    pub fn command(&self, set: &[&str]) -> Command {
        let mut command = self.0.command("download", &words(set));
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub fn run(&self, set: &[&str]) -> Output {
        self.command(set).output().unwrap()
    }

    /// Runs the stage, expects success, and returns the report after comparing it with the ledger.
    pub fn run_well(&self, set: &[&str]) -> DownloadReport {
        let output = self.run(set);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let report: DownloadReport =
            serde_json::from_slice(&std::fs::read(self.downloads().report()).unwrap()).unwrap();
        if let Some(images) = &report.images {
            let mut fates = BTreeMap::new();
            for entry in self.ledger().values() {
                *fates.entry(entry.fate).or_insert(0) += 1;
            }
            let reported: BTreeMap<_, _> =
                images.fates.iter().filter(|(_, n)| **n > 0).map(|(f, n)| (*f, *n)).collect();
            assert_eq!(images.urls, reported.values().sum::<u64>() + images.missing);
            if images.missing == 0 {
                assert_eq!(reported, fates, "report and ledger tell the same");
            }
        }
        report
    }

    /// Runs the stage, expects exit code 1 and one line on standard error, and returns that line.
    pub fn run_failing(&self, set: &[&str]) -> String {
        self.0.run_failing("download", &words(set))
    }

    pub fn downloads(&self) -> Downloads {
        Downloads::new(&self.data(""))
    }

    /// The last entry for each URL.
    pub fn ledger(&self) -> BTreeMap<String, LedgerEntry> {
        let text = std::fs::read_to_string(self.downloads().ledger()).unwrap();
        let entries = text.lines().filter_map(|line| serde_json::from_str::<LedgerEntry>(line).ok());
        entries.map(|entry| (entry.url.clone(), entry)).collect()
    }

    /// The outcome for a URL. Checks that the file has its final name if and only if it is complete.
    pub fn fate(&self, url: &str) -> (Fate, String) {
        let entry = self.ledger().remove(url).unwrap();
        let path = self.downloads().image(url);
        assert_eq!(path.is_file(), entry.fate == Fate::Done, "{entry:?}");
        if entry.fate == Fate::Done {
            assert_eq!(entry.bytes, Some(std::fs::read(&path).unwrap().len() as u64));
        }
        (entry.fate, entry.reason)
    }

    pub fn is_done(&self, url: &str, content: &[u8]) {
        let (fate, reason) = self.fate(url);
        assert_eq!(fate, Fate::Done, "{url}: {reason}");
        assert!(std::fs::read(self.downloads().image(url)).unwrap() == content, "{url}: not what the server has");
    }

    /// Checks that a URL has this outcome, for a reason that contains these words.
    pub fn is_lost(&self, url: &str, fate: Fate, words: &str) {
        let found = self.fate(url);
        assert!(found.0 == fate && found.1.contains(words), "{url}: {found:?}");
    }
}

fn words<'a>(set: &[&'a str]) -> Vec<&'a str> {
    set.iter().flat_map(|assignment| ["--set", assignment]).collect()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// An image in this format, of some kilobytes.
pub fn image(format: ImageFormat) -> Vec<u8> {
    let noise = |x: u32, y: u32| (x.wrapping_mul(2_654_435_761) ^ y.wrapping_mul(40_503)).wrapping_mul(97) as u8;
    let image = RgbImage::from_fn(64, 48, |x, y| Rgb([noise(x, y), noise(y, x), noise(x + y, y)]));
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// The paths of all files below a folder.
pub fn files_below(folder: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path.display().to_string()] }).collect()
}
