//! Lists by original ids: a table for people, and JSON lines, CSV and Parquet for programs.

use std::fmt::Write as _;
use std::path::Path;

use comfy_table::CellAlignment;
use mp4sr_artifact::{Column, Table, files};
use mp4sr_pipeline::text::terminal_table;
use serde::Serialize;

use crate::{Answer, RunCatalogue};

/// The format of lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum ListFormat {
    /// A table for reading.
    Table,
    /// One JSON object per history.
    Jsonl,
    /// One row per listed item.
    Csv,
    /// One row per history, with list columns.
    Parquet,
}

impl ListFormat {
    /// The format that belongs to a file extension.
    pub fn of(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "jsonl" | "ndjson" => Some(Self::Jsonl),
            "csv" => Some(Self::Csv),
            "parquet" => Some(Self::Parquet),
            "txt" => Some(Self::Table),
            _ => None,
        }
    }
}

impl std::fmt::Display for ListFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Table => "a table",
            Self::Jsonl => "JSON lines",
            Self::Csv => "CSV",
            Self::Parquet => "Parquet",
        })
    }
}

/// The list of one history.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ListRow {
    /// The id of the user.
    pub user_id: String,
    /// The ids of the items, best first.
    pub items: Vec<String>,
    /// The titles of the items.
    pub titles: Vec<String>,
    /// The scores of the items; in a fallback list, those of popularity.
    pub scores: Vec<f32>,
    /// `popular` if the history has no known item; `None` if the model computed the list.
    pub fallback: Option<&'static str>,
    /// The ids of the history that are not items of the run.
    pub unknown: Vec<String>,
}

impl ListRow {
    /// Converts an answer to original ids.
    pub fn new(user_id: String, answer: Answer, catalogue: &RunCatalogue) -> Self {
        Self {
            user_id,
            items: answer.list.iter().map(|(item, _)| catalogue.id(*item).to_owned()).collect(),
            titles: answer.list.iter().map(|(item, _)| catalogue.title(*item).to_owned()).collect(),
            scores: answer.list.iter().map(|(_, score)| *score).collect(),
            fallback: answer.fallback.map(crate::Fallback::name),
            unknown: answer.unknown,
        }
    }
}

/// Formats lists as text.
pub fn text(rows: &[ListRow], format: ListFormat) -> anyhow::Result<String> {
    match format {
        ListFormat::Table | ListFormat::Parquet => Ok(table(rows)),
        ListFormat::Jsonl => {
            let lines = rows.iter().map(serde_json::to_string).collect::<Result<Vec<String>, _>>()?;
            Ok(lines.into_iter().map(|line| line + "\n").collect())
        }
        ListFormat::Csv => csv(rows),
    }
}

/// Writes lists to a file, atomically.
pub fn write(rows: Vec<ListRow>, format: ListFormat, path: &Path) -> anyhow::Result<()> {
    if format != ListFormat::Parquet {
        return Ok(files::write_bytes(path, text(&rows, format)?.as_bytes())?);
    }
    let (mut user_ids, mut items, mut titles) = (Vec::new(), Vec::new(), Vec::new());
    let (mut scores, mut fallbacks, mut unknown) = (Vec::new(), Vec::new(), Vec::new());
    for row in rows {
        user_ids.push(row.user_id);
        items.push(row.items);
        titles.push(row.titles);
        scores.push(row.scores);
        fallbacks.push(row.fallback.unwrap_or_default().to_owned());
        unknown.push(row.unknown);
    }
    let table = Table::new(vec![
        ("user_id", Column::Text(user_ids)),
        ("items", Column::Texts(items)),
        ("titles", Column::Texts(titles)),
        ("scores", Column::F32s(scores)),
        ("fallback", Column::Text(fallbacks)),
        ("unknown", Column::Texts(unknown)),
    ]);
    Ok(table.write(path)?)
}

fn csv(rows: &[ListRow]) -> anyhow::Result<String> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(["user_id", "rank", "item_id", "title", "score", "fallback", "unknown"])?;
    for row in rows {
        // Ids may contain any separator, so the column holds the same JSON array as a JSON line.
        let unknown = if row.unknown.is_empty() { String::new() } else { serde_json::to_string(&row.unknown)? };
        for (at, ((item, title), score)) in row.items.iter().zip(&row.titles).zip(&row.scores).enumerate() {
            let (rank, score) = ((at + 1).to_string(), score.to_string());
            let fallback = row.fallback.unwrap_or_default();
            writer.write_record([&row.user_id, &rank, item, title, &score, fallback, &unknown])?;
        }
    }
    Ok(String::from_utf8(writer.into_inner()?)?)
}

fn table(rows: &[ListRow]) -> String {
    let mut text = String::new();
    for row in rows {
        let mut table = terminal_table(["rank", "item", "title", "score"]);
        for (at, ((item, title), score)) in row.items.iter().zip(&row.titles).zip(&row.scores).enumerate() {
            table.add_row([(at + 1).to_string(), item.clone(), title.clone(), format!("{score:.4}")]);
        }
        for at in [0, 3] {
            if let Some(column) = table.column_mut(at) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        let note = match row.fallback {
            Some(_) => "   no known item in the history; these are the most popular items",
            None => "",
        };
        let _ = writeln!(text, "{}{note}\n{table}\n", row.user_id);
    }
    text
}
