//! The paper's printed numbers, which a study shows beside its own.

use std::path::{Path, PathBuf};

use mp4sr_artifact::{Error, files};
use mp4sr_pipeline::text::TextTable;
use serde::Deserialize;

#[derive(Clone, Debug, Deserialize)]
struct PrintedValue {
    table: String,
    dataset: String,
    model: String,
    metric: String,
    value: String,
}

/// The folder of the paper's numbers in the repository; the program embeds its files.
const FOLDER: &str = "data/paper";
const TABLE_1: &str = include_str!("../../../data/paper/table1.csv");
const TABLES: &str = include_str!("../../../data/paper/tables.csv");

/// Reads a file with the paper's numbers, and returns its path and text. Without `folder`, they are those that the program embeds.
fn read(folder: Option<&Path>, name: &str, built_in: &str) -> Result<(PathBuf, String), Error> {
    match folder {
        Some(folder) => {
            let path = folder.join(name);
            let text = files::read_to_string(&path)?;
            Ok((path, text))
        }
        None => Ok((Path::new(FOLDER).join(name), built_in.to_owned())),
    }
}

/// Reads a table of the paper: one row per dataset and model and one column per metric, in their printed order.
pub fn printed(folder: Option<&Path>, table: u32) -> anyhow::Result<TextTable> {
    if table == 1 {
        return statistics(folder);
    }
    let (path, text) = read(folder, "tables.csv", TABLES)?;
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let lines: Vec<PrintedValue> = reader.deserialize().collect::<Result<_, _>>().map_err(|e| unreadable(&path, &e))?;
    let lines: Vec<PrintedValue> = lines.into_iter().filter(|line| line.table == table.to_string()).collect();
    let mut metrics: Vec<&str> = Vec::new();
    let mut rows: Vec<(&str, &str)> = Vec::new();
    for line in &lines {
        if !metrics.contains(&line.metric.as_str()) {
            metrics.push(&line.metric);
        }
        if !rows.contains(&(&line.dataset, &line.model)) {
            rows.push((&line.dataset, &line.model));
        }
    }
    let mut found = TextTable::new(["dataset", "model"].into_iter().chain(metrics.iter().copied()));
    for (dataset, model) in rows {
        let value = |metric: &&str| {
            let line = lines.iter().find(|l| l.dataset == dataset && l.model == model && l.metric == *metric);
            line.map_or(String::new(), |line| line.value.clone())
        };
        let mut row = vec![dataset.to_owned(), model.to_owned()];
        row.extend(metrics.iter().map(value));
        found.rows.push(row);
    }
    Ok(found)
}

fn statistics(folder: Option<&Path>) -> anyhow::Result<TextTable> {
    let (path, text) = read(folder, "table1.csv", TABLE_1)?;
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let mut found = TextTable::new(["dataset", "users", "items", "events", "average length"]);
    for line in reader.records() {
        let line = line.map_err(|e| unreadable(&path, &e))?;
        found.rows.push(line.iter().map(str::to_owned).collect());
    }
    Ok(found)
}

fn unreadable(path: &Path, error: &csv::Error) -> Error {
    Error::unusable(path, error.to_string(), "restore it, or name another folder with `--paper`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_tables_are_complete() {
        // The number of printed rows: datasets times models.
        for (table, rows) in [(1, 4), (2, 48), (3, 12), (4, 18), (5, 4), (6, 9)] {
            let found = printed(None, table).unwrap();
            assert_eq!(found.rows.len(), rows, "Table {table}");
            assert!(found.rows.iter().flatten().all(|run| !run.is_empty()), "Table {table}: {found:?}");
        }
        let message = printed(Some(Path::new("nowhere")), 2).unwrap_err().to_string();
        assert!(message.contains("nowhere/tables.csv"), "{message}");
    }
}
