//! Exports top-K lists for all users, in the formats of `mp4sr recommend --out`.

use std::path::{Path, PathBuf};

use mp4sr_artifact::Users;
use mp4sr_models::Query;
use mp4sr_recommend::Answer;
use mp4sr_recommend::lists::{self, ListFormat, ListRow};
use mp4sr_run::removes_seen;

use crate::exported::Export;
use crate::format::ExportFormat;
use crate::histories::UserHistory;

/// The list format of an export format, if it is one of lists.
pub fn list_format(format: ExportFormat) -> Option<ListFormat> {
    match format {
        ExportFormat::ListsParquet => Some(ListFormat::Parquet),
        ExportFormat::ListsJsonl => Some(ListFormat::Jsonl),
        ExportFormat::ListsCsv => Some(ListFormat::Csv),
        _ => None,
    }
}

/// Writes the lists in every format, and returns the paths of the files.
pub fn write(export: &Export<'_>, formats: &[ListFormat], folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let rows = rows(export)?;
    let name = |format: &ListFormat| match format {
        ListFormat::Parquet => "lists.parquet",
        ListFormat::Csv => "lists.csv",
        ListFormat::Jsonl | ListFormat::Table => "lists.jsonl",
    };
    let mut paths = Vec::new();
    for format in formats {
        let path = folder.join(name(format));
        lists::write(rows.clone(), *format, &path)?;
        paths.push(path);
    }
    Ok(paths)
}

fn rows(export: &Export<'_>) -> anyhow::Result<Vec<ListRow>> {
    let Export { context, run, answerer, histories, top, .. } = export;
    let users = Users::read(&context.layout.users())?;
    let remove_seen = removes_seen(&context.config, run.trained.model.as_ref());
    let recommender = answerer.recommender()?;
    let bar = context.progress.bar("export", "users", histories.len() as u64);
    let mut rows = Vec::with_capacity(histories.len());
    for block in histories.chunks(context.config.evaluate.batch) {
        let queries: Vec<Query<'_>> = block.iter().map(UserHistory::query).collect();
        let targets: Vec<Option<u32>> = block.iter().map(|own| own.target).collect();
        let lists = recommender.top_k_of_targets(&queries, &targets, *top, remove_seen)?;
        rows.extend(block.iter().zip(lists).map(|(own, list)| {
            let answer = Answer { list, unknown: Vec::new(), fallback: None };
            ListRow::new(users.ids[own.user].clone(), answer, &run.catalogue)
        }));
        bar.add(block.len() as u64);
    }
    Ok(rows)
}
