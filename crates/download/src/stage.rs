//! The stage: downloads raw files, then images, and writes the report.

use std::path::Path;

use mp4sr_artifact::{Downloads, Lock, files};
use mp4sr_pipeline::{Context, print};

use crate::report::DownloadReport;
use crate::{Result, images, raw};

/// Fetches what is missing and prints the outcome.
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
            "download: images are downloaded after `make preprocess`; `{}` does not exist yet",
            items.display()
        ));
        return Ok(DownloadReport { files, images: None });
    }
    Ok(DownloadReport { files, images: Some(images::fetch(settings, downloads, &items, progress)?) })
}
