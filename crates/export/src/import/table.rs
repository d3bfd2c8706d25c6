//! Tab-separated tables, as RecBole and MMRec write them.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use mp4sr_artifact::files;

/// The text of a table, with its columns.
pub struct TabTable {
    path: PathBuf,
    text: String,
    /// The names and types of the columns; the type is empty if the header has none.
    pub columns: Vec<(String, String)>,
}

impl TabTable {
    /// Reads a table. If `typed`, each name in the header is followed by `:` and a type.
    pub fn read(path: &Path, typed: bool) -> anyhow::Result<Self> {
        let text = files::read_to_string(path)
            .with_context(|| format!("`{}` has to be UTF-8, as RecBole and MMRec write it", path.display()))?;
        let text = text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text);
        let header = text.lines().next().unwrap_or_default();
        let mut columns = Vec::new();
        for cell in header.split('\t') {
            columns.push(match cell.rsplit_once(':') {
                Some((name, kind)) if typed => (name.to_owned(), kind.to_owned()),
                _ if typed => bail!(
                    "`{}`, line 1: the column `{cell}` has no type; RecBole's headers look like `user_id:token`, separated by tabs",
                    path.display()
                ),
                _ => (cell.to_owned(), String::new()),
            });
        }
        const TYPES: [&str; 4] = ["token", "token_seq", "float", "float_seq"];
        if let Some((name, kind)) = columns.iter().find(|(_, kind)| typed && !TYPES.contains(&kind.as_str())) {
            bail!(
                "`{}`, line 1: the column `{name}` has the type `{kind}`, expected one of {}",
                path.display(),
                TYPES.join(", ")
            );
        }
        Ok(Self { path: path.to_owned(), text, columns })
    }

    /// The index of a column.
    pub fn find(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|(column, _)| column == name)
    }

    /// The index of the first of `names` that is a column; an error if none is.
    pub fn expect(&self, names: &[&str]) -> anyhow::Result<usize> {
        let found = names.iter().find_map(|name| self.find(name));
        found.with_context(|| {
            let known: Vec<&str> = self.columns.iter().map(|(name, _)| name.as_str()).collect();
            format!(
                "`{}`, line 1: no column `{}`; it has {}; rename the column",
                self.path.display(),
                names.join("` or `"),
                known.join(", ")
            )
        })
    }

    /// Calls `visit` with the number and the cells of each line after the header.
    pub fn each<'t>(&'t self, mut visit: impl FnMut(u64, &[&'t str]) -> anyhow::Result<()>) -> anyhow::Result<()> {
        for (line, number) in self.text.lines().zip(1..).skip(1) {
            if line.is_empty() {
                continue;
            }
            let cells: Vec<&str> = line.split('\t').collect();
            ensure!(
                cells.len() == self.columns.len(),
                "`{}`, line {number}: {} columns separated by tabs, expected {}; correct the line",
                self.path.display(),
                cells.len(),
                self.columns.len()
            );
            visit(number, &cells)?;
        }
        Ok(())
    }

    /// Parses the time in a cell.
    pub fn time(&self, line: u64, column: usize, cell: &str) -> anyhow::Result<f64> {
        let time: f64 = self.number(line, column, cell)?;
        let name = &self.columns[column].0;
        ensure!(
            time.is_finite(),
            "`{}`, line {line}, column `{name}`: {cell:?} is not a time; correct the cell, or remove the line",
            self.path.display()
        );
        Ok(time)
    }

    /// Parses the number in a cell.
    pub fn number<T: std::str::FromStr>(&self, line: u64, column: usize, cell: &str) -> anyhow::Result<T> {
        cell.trim().parse().ok().with_context(|| {
            let name = &self.columns[column].0;
            format!(
                "`{}`, line {line}, column `{name}`: {cell:?} is not a number of the kind that this column needs; correct the cell, or remove the line",
                self.path.display()
            )
        })
    }
}
