//! Sparse matrices in compressed rows.

use std::sync::Arc;

use candle_core::{Result, bail};

/// A sparse matrix `[rows, columns]`, row by row, with its transpose for backward.
#[derive(Clone, Debug)]
pub struct SparseMatrix {
    pub(crate) by_row: Arc<CompressedRows>,
    pub(crate) by_column: Arc<CompressedRows>,
    /// Both on a GPU, once an operator has used them there.
    #[cfg(feature = "cuda")]
    pub(crate) gpu: Arc<std::sync::OnceLock<Arc<crate::cuda::GpuSparse>>>,
}

/// The entries in compressed rows: row r owns `offsets[r]..offsets[r + 1]`, with ascending columns.
#[derive(Debug)]
pub(crate) struct CompressedRows {
    pub(crate) offsets: Vec<usize>,
    pub(crate) columns: Vec<u32>,
    pub(crate) weights: Vec<f32>,
    pub(crate) width: usize,
}

/// One entry of a sparse matrix.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SparseEntry {
    /// The row, from 0.
    pub row: u32,
    /// The column, from 0.
    pub column: u32,
    /// The value.
    pub weight: f32,
}

impl SparseMatrix {
    /// Builds a matrix from entries in any order; no position may occur twice.
    pub fn new(rows: usize, columns: usize, mut entries: Vec<SparseEntry>) -> Result<Self> {
        if let Some(outside) = entries.iter().find(|e| e.row as usize >= rows || e.column as usize >= columns) {
            bail!("sparse matrix: entry ({}, {}) is outside of [{rows}, {columns}]", outside.row, outside.column);
        }
        entries.sort_unstable_by_key(|entry| (entry.row, entry.column));
        let position = |entry: &SparseEntry| (entry.row, entry.column);
        if let Some(twice) = entries.windows(2).find(|pair| position(&pair[0]) == position(&pair[1])) {
            bail!("sparse matrix: entry ({}, {}) occurs twice", twice[0].row, twice[0].column);
        }
        let by_row = CompressedRows::of(rows, columns, entries.iter().map(|e| (e.row, e.column, e.weight)));
        entries.sort_unstable_by_key(|entry| (entry.column, entry.row));
        let by_column = CompressedRows::of(columns, rows, entries.iter().map(|e| (e.column, e.row, e.weight)));
        Ok(Self {
            by_row: Arc::new(by_row),
            by_column: Arc::new(by_column),
            #[cfg(feature = "cuda")]
            gpu: Arc::default(),
        })
    }

    /// The rows `rows`, in that order, as a separate matrix.
    pub fn select_rows(&self, rows: &[u32]) -> Result<Self> {
        let all = &self.by_row;
        if let Some(row) = rows.iter().find(|&&row| row as usize >= self.rows()) {
            bail!("sparse matrix: row {row} of {}", self.rows());
        }
        let entries = rows.iter().zip(0..).flat_map(|(&row, to)| {
            let own = all.offsets[row as usize]..all.offsets[row as usize + 1];
            own.map(move |at| SparseEntry { row: to, column: all.columns[at], weight: all.weights[at] })
        });
        Self::new(rows.len(), self.columns(), entries.collect())
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.by_row.offsets.len() - 1
    }

    /// The number of columns.
    pub fn columns(&self) -> usize {
        self.by_row.width
    }

    /// The number of entries.
    pub fn entries(&self) -> usize {
        self.by_row.columns.len()
    }
}

impl CompressedRows {
    fn of(rows: usize, width: usize, entries: impl Iterator<Item = (u32, u32, f32)>) -> Self {
        let (mut offsets, mut columns, mut weights) = (vec![0; rows + 1], Vec::new(), Vec::new());
        for (row, column, weight) in entries {
            offsets[row as usize + 1] += 1;
            columns.push(column);
            weights.push(weight);
        }
        for row in 0..rows {
            offsets[row + 1] += offsets[row];
        }
        Self { offsets, columns, weights, width }
    }

    /// Runs of rows with about `entries` entries each. They depend on the matrix alone.
    pub(crate) fn shards(&self, entries: usize) -> Vec<std::ops::Range<usize>> {
        let rows = self.offsets.len() - 1;
        let (mut shards, mut start) = (Vec::new(), 0);
        for row in 0..rows {
            // An empty row has a cost too, because its result is written.
            let held = self.offsets[row + 1] - self.offsets[start] + (row + 1 - start);
            if held >= entries || row + 1 == rows {
                shards.push(start..row + 1);
                start = row + 1;
            }
        }
        shards
    }
}
