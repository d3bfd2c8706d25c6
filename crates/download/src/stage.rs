//! The stage: downloads raw files, then images, and writes the report.

use std::path::Path;

use mp4sr_artifact::{Downloads, Lock, files};
use mp4sr_pipeline::{Context, print};

use crate::report::DownloadReport;
use crate::{Result, images, raw};

/// Fetches what is missing and prints the outcome.
///
/// ```
/// use std::sync::Arc;
///
/// use mp4sr_artifact::{Downloads, Layout, files};
/// use mp4sr_download::{DownloadReport, RawReport};
/// use mp4sr_pipeline::config::ModelCatalog;
/// use mp4sr_pipeline::{Config, Context, Progress};
///
/// # let folder = tempfile::tempdir()?;
/// # let overrides = [format!("dataset.data={:?}", folder.path())];
/// let text = r#"
///     dataset.name = "shop"
///     [[download.files]]
///     url = "https://example.org/sales.csv"
///     path = "sales.csv"
///     sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
/// "#;
/// let models = Arc::new(ModelCatalog::unchecked());
/// let (config, _) = Config::parse(text, "shop.toml", &overrides, &models)?;
/// let layout = Layout::new(&folder.path().join("artifacts"), "shop", "mp4sr");
/// let context = Context { config, layout, progress: Progress::new(true), models };
///
/// // The file is in the data folder already, so nothing is downloaded, and only its checksum is compared.
/// files::write_bytes(&folder.path().join("sales.csv"), b"abc")?;
/// mp4sr_download::run(&context)?;
/// let report: DownloadReport = serde_json::from_slice(&files::read(&Downloads::new(folder.path()).report())?)?;
/// assert_eq!(report.files, [RawReport { path: "sales.csv".to_owned(), fetched: false, verified: true, bytes: 3 }]);
/// # Ok::<(), anyhow::Error>(())
/// ```
pub fn run(context: &Context) -> anyhow::Result<()> {
    let downloads = Downloads::new(Path::new(&context.config.dataset.data));
    let _lock = Lock::acquire(downloads.folder(), "download")?;
    files::remove_leftovers(downloads.folder())?;
    let report = download(context, &downloads)?;
    files::write_json(&downloads.report(), &report)?;
    print(&report.table())
}

fn download(context: &Context, downloads: &Downloads) -> Result<DownloadReport> {
    let (settings, progress) = (&context.config.download, &context.progress);
    let files = raw::fetch(settings, Path::new(&context.config.dataset.data), progress)?;
    let items = context.layout.items();
    if files::length(&items)?.is_none() {
        progress.log(format!(
            "download: images are downloaded after `mp4sr preprocess`; `{}` does not exist yet",
            items.display()
        ));
        return Ok(DownloadReport { files, images: None });
    }
    Ok(DownloadReport { files, images: Some(images::fetch(settings, downloads, &items, progress)?) })
}
