//! The size of a dataset: exact if it exists, otherwise estimated from the size of its raw files and a sample of them.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use mp4sr_artifact::{DatasetStatistics, Downloads, Items, Layout, PreprocessReport};
use mp4sr_pipeline::{Config, Context};
use mp4sr_preprocess::{RowCount, RowLimits, count_rows, trial};

/// The numbers of rows of interactions and of items that are read if the dataset does not exist.
const EVENT_ROWS: u64 = 50_000;
const ITEM_ROWS: u64 = 100_000;
/// The lower bound on the share of items with a line. The sample's sentences and images per item are divided by this share.
const LEAST_DESCRIBED: f64 = 0.05;
/// The factor by which extrapolated numbers of users and events may be off.
const SPREAD: f64 = 3.0;

/// The sizes of the sample world, which `mp4sr sample` generates from its default seed.
const SAMPLE: DatasetSizes = DatasetSizes {
    basis: SizeBasis::SampleWorld,
    users: (4197.0, 4197.0),
    items: (1542.0, 1542.0),
    events: (42_978.0, 42_978.0),
    length: 10.24,
    longest: 43,
    sentences: 6.62,
    images: 0.97,
    image_urls: 0.0,
    categories: 8,
    raw_rows: 60_000,
    raw_bytes: 1_200_000,
};

/// What the sizes are taken from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SizeBasis {
    /// The dataset, if it exists.
    Dataset,
    /// The complete raw files, if they are small.
    RawFiles,
    /// The size of the raw files and their first lines.
    Sample,
    /// The sample world, which is generated.
    SampleWorld,
}

/// The size of a dataset. Pairs are lower and upper bounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DatasetSizes {
    /// The source of the sizes.
    pub basis: SizeBasis,
    /// The number of users.
    pub users: (f64, f64),
    /// The number of items.
    pub items: (f64, f64),
    /// The number of events after all filters.
    pub events: (f64, f64),
    /// The mean number of events per user.
    pub length: f64,
    /// The largest number of events of a user.
    pub longest: u64,
    /// The mean number of sentences per item.
    pub sentences: f64,
    /// The mean number of image files per item.
    pub images: f64,
    /// The mean number of image URLs per item that have not been downloaded.
    pub image_urls: f64,
    /// The number of distinct categories of items, at least.
    pub categories: u64,
    /// The number of lines in all raw files.
    pub raw_rows: u64,
    /// The size of the uncompressed text of all raw files, in bytes.
    pub raw_bytes: u64,
}

/// A raw file and its number of rows.
#[derive(Clone, Debug)]
pub struct InspectedFile {
    /// The role of the file, which starts with `interactions` or `items`.
    pub role: String,
    /// The path of the file.
    pub path: PathBuf,
    /// The size of the file in bytes.
    pub bytes: u64,
    /// The number of rows, or why they cannot be counted.
    pub rows: Result<RowCount, String>,
}

/// The assumed ratio of text to its size under gzip.
const UNPACKED: u64 = 6;

impl InspectedFile {
    /// The approximate size of its uncompressed text, in bytes.
    fn text_bytes(&self) -> u64 {
        let is_gzip = self.path.extension().is_some_and(|end| end.eq_ignore_ascii_case("gz"));
        self.bytes * if is_gzip { UNPACKED } else { 1 }
    }
}

/// Inspects the raw files of a pipeline, which must exist.
pub fn raw_files(config: &Config, files: &[(String, PathBuf)]) -> Vec<InspectedFile> {
    let inspect = |(role, path): &(String, PathBuf)| InspectedFile {
        role: role.clone(),
        path: path.clone(),
        bytes: path.metadata().map_or(0, |about| about.len()),
        rows: count_rows(config, path, role.starts_with("items")).map_err(|error| error.to_string()),
    };
    files.iter().map(inspect).collect()
}

impl DatasetSizes {
    /// The sizes of the sample world.
    pub fn of_sample_world() -> Self {
        SAMPLE
    }

    /// The sizes of a dataset that exists; `None` if its report does not.
    pub fn of_dataset(layout: &Layout, config: &Config, raw: &[InspectedFile]) -> Option<Self> {
        let report = PreprocessReport::read(&layout.statistics()).ok().flatten()?;
        let statistics = &report.statistics;
        let (files, image_urls) = images(&layout.items(), Path::new(&config.dataset.data));
        let items = statistics.items.max(1) as f64;
        let mut sizes = Self::of_statistics(statistics, SizeBasis::Dataset);
        (sizes.images, sizes.image_urls) = (files as f64 / items, image_urls as f64 / items);
        let lines = |files: &[mp4sr_artifact::FileCount]| files.iter().map(|file| file.lines).sum::<u64>();
        sizes.raw_rows = lines(&report.interactions.files) + lines(&report.items.files);
        sizes.raw_bytes = raw.iter().map(InspectedFile::text_bytes).sum();
        Some(sizes)
    }

    /// Estimates the sizes of the dataset that `raw` would give. Fails if the first lines show that it cannot be built.
    pub fn of_raw_files(context: &Context, raw: &[InspectedFile]) -> anyhow::Result<Self> {
        let rows_of = |start: &str| {
            let rows = raw.iter().filter(|file| file.role.starts_with(start)).map(|file| file.rows.as_ref().ok());
            rows.map(|rows| rows.copied().unwrap_or(RowCount { rows: 0, is_exact: false })).collect::<Vec<_>>()
        };
        let (events, items) = (rows_of("interactions"), rows_of("items"));
        let total = |rows: &[RowCount]| rows.iter().map(|count| count.rows).sum::<u64>();
        let is_whole = |rows: &[RowCount], limit: u64| rows.iter().all(|count| count.is_exact && count.rows < limit);
        let limits = RowLimits { interactions: Some(EVENT_ROWS), items: Some(ITEM_ROWS) };
        let whole = is_whole(&events, EVENT_ROWS) && is_whole(&items, ITEM_ROWS);
        let mut config = context.config.clone();
        if !whole {
            // The first lines alone hold neither whole histories nor all items.
            (config.preprocess.user_core, config.preprocess.item_core) = (Some(0), Some(0));
            config.preprocess.min_described =
                if is_whole(&items, ITEM_ROWS) { config.preprocess.min_described } else { 0.0 };
        }
        let report = trial(&config, limits)?;
        let mut sizes =
            Self::of_statistics(&report.statistics, if whole { SizeBasis::RawFiles } else { SizeBasis::Sample });
        sizes.raw_rows = total(&events) + total(&items);
        sizes.raw_bytes = raw.iter().map(InspectedFile::text_bytes).sum();
        if !whole {
            // Items whose lines were not reached have texts too.
            let described = report.join.as_ref().map_or(1.0, |join| join.items_with_line.max(LEAST_DESCRIBED));
            sizes.sentences /= described;
            sizes.images /= described;
            sizes.grow(total(&events) as f64, report.statistics.events as f64, total(&items) as f64);
        }
        Ok(sizes)
    }

    fn of_statistics(statistics: &DatasetStatistics, basis: SizeBasis) -> Self {
        let both = |number: u64| (number as f64, number as f64);
        let with_image = statistics.items.saturating_sub(statistics.items_without_image).max(1) as f64;
        let image_urls = statistics.images.mean * statistics.items_with_urls_only as f64 / with_image;
        Self {
            basis,
            users: both(statistics.users),
            items: both(statistics.items),
            events: both(statistics.events),
            length: statistics.average_length,
            longest: statistics.longest,
            sentences: statistics.sentences.mean,
            images: (statistics.images.mean - image_urls).max(0.0),
            image_urls,
            categories: statistics.categories,
            raw_rows: 0,
            raw_bytes: 0,
        }
    }

    /// Extrapolates from a sample to all lines: events and users grow in proportion to the lines, items more slowly.
    fn grow(&mut self, rows: f64, sampled: f64, item_rows: f64) {
        let factor = (rows / sampled.max(1.0)).max(1.0);
        let around = |number: f64| (number / SPREAD, number * SPREAD);
        self.events = (rows / SPREAD, rows);
        self.users = around(self.users.0 * factor);
        // The number of items lies between those seen and growth in proportion to the events.
        let most = if item_rows > 0.0 { (self.items.0 * factor).min(item_rows) } else { self.items.0 * factor };
        self.items = (self.items.0.min(most), most.max(self.items.0));
    }
}

/// Counts the images that are files or have been downloaded, and the URLs that have not.
fn images(items: &Path, data: &Path) -> (u64, u64) {
    let downloads = Downloads::new(data);
    let (mut files, mut image_urls) = (0, 0);
    let counted = Items::each_image(items, |name| {
        if Downloads::is_url(name) && !downloads.file(name).is_file() {
            image_urls += 1;
        } else {
            files += 1;
        }
        ControlFlow::Continue(())
    });
    if counted.is_err() { (0, 0) } else { (files, image_urls) }
}
