//! The paper's printed numbers, beside which a study shows its own.

use std::path::Path;

use serde::Deserialize;

use crate::text::Rows;

#[derive(Clone, Debug, Deserialize)]
struct Line {
    table: String,
    dataset: String,
    model: String,
    metric: String,
    value: String,
}

/// A table of the paper: a row a dataset and model, a column a metric, in their printed order.
pub fn printed(folder: &Path, table: u32) -> anyhow::Result<Rows> {
    if table == 1 {
        return statistics(folder);
    }
    let path = folder.join("tables.csv");
    let mut reader = csv::Reader::from_path(&path).map_err(|e| unreadable(&path, &e))?;
    let lines: Vec<Line> = reader.deserialize().collect::<Result<_, _>>().map_err(|e| unreadable(&path, &e))?;
    let lines: Vec<Line> = lines.into_iter().filter(|line| line.table == table.to_string()).collect();
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
    let mut found = Rows::new(["dataset", "model"].into_iter().chain(metrics.iter().copied()));
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

fn statistics(folder: &Path) -> anyhow::Result<Rows> {
    let path = folder.join("table1.csv");
    let mut reader = csv::Reader::from_path(&path).map_err(|e| unreadable(&path, &e))?;
    let mut found = Rows::new(["dataset", "users", "items", "events", "average length"]);
    for line in reader.records() {
        let line = line.map_err(|e| unreadable(&path, &e))?;
        found.rows.push(line.iter().map(str::to_owned).collect());
    }
    Ok(found)
}

fn unreadable(path: &Path, error: &csv::Error) -> mp4sr_artifact::Error {
    mp4sr_artifact::Error::unusable(path, error.to_string(), "restore it, or name another folder with --paper")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_carried_tables_are_whole() {
        let folder = Path::new(&std::env::var("CARGO_MANIFEST_DIR").unwrap()).join("../../data/paper");
        // Rows as printed: datasets times models.
        for (table, rows) in [(1, 4), (2, 48), (3, 12), (4, 18), (5, 4), (6, 9)] {
            let found = printed(&folder, table).unwrap();
            assert_eq!(found.rows.len(), rows, "Table {table}");
            assert!(found.rows.iter().flatten().all(|run| !run.is_empty()), "Table {table}: {found:?}");
        }
        let message = printed(Path::new("nowhere"), 2).unwrap_err().to_string();
        assert!(message.contains("nowhere/tables.csv"), "{message}");
    }
}
