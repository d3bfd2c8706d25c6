//! The stage: raw files, then pictures, then the report.

use std::path::Path;

use mp4sr_artifact::{Downloads, Lock, files};
use mp4sr_pipeline::{Context, print};

use crate::report::Report;
use crate::{Result, images, raw};

/// Fetches what is missing and prints what became of it.
pub fn run(context: &Context) -> anyhow::Result<()> {
    let downloads = Downloads::new(Path::new(&context.config.dataset.data));
    let _lock = Lock::take(downloads.folder(), "download")?;
    files::remove_leftovers(downloads.folder())?;
    let report = bring(context, &downloads)?;
    files::write_json(&downloads.report(), &report)?;
    print(&report.table())
}

fn bring(context: &Context, downloads: &Downloads) -> Result<Report> {
    let (settings, progress) = (&context.config.download, &context.progress);
    let files = raw::fetch(settings, Path::new(&context.config.dataset.data), progress)?;
    let items = context.layout.items();
    if files::length(&items)?.is_none() {
        progress
            .say(format!("download: pictures come after `make preprocess`; `{}` is not there yet", items.display()));
        return Ok(Report { files, images: None });
    }
    Ok(Report { files, images: Some(images::fetch(settings, downloads, &items, progress)?) })
}
