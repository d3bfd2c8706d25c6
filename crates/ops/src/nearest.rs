//! The rows of a table with the largest inner products with each query.

use candle_core::{Result, bail};
use rayon::prelude::*;

use crate::kernel::{Mat, matmul_f32, transpose};
use crate::scratch::Scratch;

/// The size of a block of inner products: queries by rows.
const QUERIES: usize = 64;
const ROWS: usize = 512;

/// A row of a table and its inner product with a query.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Neighbour {
    /// The row, from 0.
    pub row: u32,
    /// Its inner product with the query.
    pub score: f32,
}

/// For every query in `queries` `[n, d]`, the `k` rows of `table` `[m, d]` with the largest inner products, the best first, and the lower
/// row first if two are equal. If the table has fewer rows, all of them. The inner products are computed in blocks and never all held at
/// once.
pub fn nearest(queries: &[f32], table: &[f32], d: usize, k: usize) -> Result<Vec<Vec<Neighbour>>> {
    if d == 0 || !queries.len().is_multiple_of(d) || !table.len().is_multiple_of(d) {
        bail!("nearest: {} and {} values cannot be cut into rows of width {d}", queries.len(), table.len());
    }
    let mut transposed = Scratch::take(table.len());
    let blocks = transposed.par_chunks_mut(ROWS * d).zip(table.par_chunks(ROWS * d));
    blocks.for_each(|(to, from)| transpose(to, from, d));
    let of_block = |queries: &[f32]| {
        let n = queries.len() / d;
        let mut best: Vec<Vec<Neighbour>> = vec![Vec::with_capacity(k + 1); n];
        let mut scores = Scratch::take(n * ROWS);
        for (block, rows) in transposed.chunks(ROWS * d).enumerate() {
            let m = rows.len() / d;
            let scores = &mut scores[..n * m];
            matmul_f32(scores, Mat::new(queries, n, d), Mat::new(rows, d, m), false);
            for (best, scores) in best.iter_mut().zip(scores.chunks_exact(m)) {
                for (at, &score) in scores.iter().enumerate() {
                    if best.len() == k && best.last().is_none_or(|last| score <= last.score) {
                        continue;
                    }
                    let index = best.partition_point(|other| other.score >= score);
                    best.insert(index, Neighbour { row: (block * ROWS + at) as u32, score });
                    best.truncate(k);
                }
            }
        }
        best
    };
    Ok(queries.par_chunks(QUERIES * d).flat_map_iter(of_block).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RngKey;

    #[test]
    fn the_nearest_rows_are_those_of_a_whole_sort() {
        for (n, m, d, k) in [(1, 1, 1, 3), (130, 1700, 5, 7), (3, 600, 4, 1), (2, 0, 3, 2), (4, 5, 2, 0)] {
            let fill = |seed: u64, count: usize| {
                // Few different values, so that there are ties.
                (0..count as u64).map(|at| (RngKey::new(seed).bits(at) % 3) as f32 - 1.0).collect::<Vec<_>>()
            };
            let (queries, table) = (fill(1, n * d), fill(2, m * d));
            let found = nearest(&queries, &table, d, k).unwrap();
            assert_eq!(found.len(), n);
            for (query, found) in queries.chunks(d).zip(found) {
                let score = |row: &[f32]| row.iter().zip(query).map(|(a, b)| a * b).sum::<f32>();
                let mut all: Vec<(u32, f32)> = (0..).zip(table.chunks(d).map(score)).collect();
                all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
                let expected: Vec<u32> = all.iter().take(k).map(|(row, _)| *row).collect();
                assert_eq!(found.iter().map(|near| near.row).collect::<Vec<_>>(), expected);
            }
        }
    }
}
