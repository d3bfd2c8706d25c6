//! Scores of rows against all columns, in blocks of columns, so that ranking and top-K lists never hold all scores at once.

use std::ops::Range;

use candle_core::{Result, Tensor, bail};
use multiversion::multiversion;
use rayon::prelude::*;

use crate::fused::with_slices;
use crate::kernel::{Mat, matmul_f32, transpose};
use crate::scratch::Scratch;

/// The number of columns in a block.
const COLUMNS: usize = 1024;

/// The number of rows that are scored together.
const ROWS: usize = 32;

/// The minimum number of multiplications in a run of blocks: with fewer, threads wait for each other longer than they work.
const RUN: usize = 1 << 21;

/// A matrix `[m, d]` whose rows are the columns of the scores.
pub struct ScoreBlocks(BlockStorage);

enum BlockStorage {
    Host(HostBlocks),
    #[cfg(feature = "cuda")]
    Gpu(crate::cuda::GpuScores),
}

/// The columns of each row that are not candidates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Row j owns `columns[offsets[j]..offsets[j + 1]]`.
    pub offsets: Vec<u32>,
    /// The columns. None is the row's target, and none occurs twice in a row.
    pub columns: Vec<u32>,
}

impl ScoreBlocks {
    /// Prepares a matrix `[m, d]`.
    pub fn new(matrix: &Tensor) -> Result<Self> {
        if matrix.dim(1)? == 0 {
            bail!("scores need vectors of at least one value");
        }
        match matrix.device() {
            #[cfg(feature = "cuda")]
            candle_core::Device::Cuda(_) => Ok(Self(BlockStorage::Gpu(crate::cuda::GpuScores::new(matrix)?))),
            _ => Ok(Self(BlockStorage::Host(HostBlocks::new(matrix)?))),
        }
    }

    /// m, the number of columns.
    pub fn count(&self) -> usize {
        match &self.0 {
            BlockStorage::Host(blocks) => blocks.count,
            #[cfg(feature = "cuda")]
            BlockStorage::Gpu(scores) => scores.count(),
        }
    }

    /// The score of a row `[d]` against one column, with the products summed in order; `None` if the scores are computed on a GPU.
    /// [`ScoreBlocks::scan`] may round differently on some machines, so a caller that compares the two must check whether they agree.
    pub fn score(&self, row: &[f32], column: usize) -> Option<f32> {
        match &self.0 {
            BlockStorage::Host(blocks) => Some(blocks.score(row, column)),
            #[cfg(feature = "cuda")]
            BlockStorage::Gpu(_) => None,
        }
    }

    /// The number of candidates that score at least as high as the target of each row of `rows` `[n, d]`, without the target itself, if a
    /// GPU counts them. `None` if it does not, or if a score is not finite; [`ScoreBlocks::scan`] then shows which.
    pub fn count_ahead(&self, rows: &Tensor, targets: &[u32], removed: &Removed) -> Result<Option<Vec<u32>>> {
        match &self.0 {
            BlockStorage::Host(_) => {
                let _ = (rows, targets, removed);
                Ok(None)
            }
            #[cfg(feature = "cuda")]
            BlockStorage::Gpu(scores) => scores.count_ahead(rows, targets, removed),
        }
    }

    /// Calls `visit` for each state with every block of its scores: the block's first column, and the scores. `rows` `[n interests, d]` has
    /// the rows of each state one after the other; a score is the largest over them. Blocks come in order.
    pub fn scan<T: Send>(
        &self,
        rows: &Tensor,
        interests: usize,
        states: &mut [T],
        visit: impl Fn(&mut T, usize, &[f32]) + Sync,
    ) -> Result<()> {
        self.expect_rows(rows, interests, states.len())?;
        match &self.0 {
            BlockStorage::Host(blocks) => blocks.scan(rows, interests, states, 0..blocks.blocks(), visit),
            #[cfg(feature = "cuda")]
            BlockStorage::Gpu(scores) => scores.download(rows, interests, |first, scores| {
                let (columns, first) = (self.count(), first / interests);
                let own = scores.par_chunks(interests * columns);
                states[first..].par_iter_mut().zip(own).for_each(|(state, scores)| {
                    let mut best = scores[..columns].to_vec();
                    scores[columns..].chunks_exact(columns).for_each(|other| keep_greatest(&mut best, other));
                    visit(state, 0, &best);
                });
                Ok(())
            }),
        }
    }

    /// Like [`ScoreBlocks::scan`], for so few rows that a scan would leave threads idle: each thread processes a run of the blocks with its
    /// own states, which `make` creates. Returns the states of all runs in order; if there are many rows, there is a single run.
    pub fn scan_in_runs<T: Send>(
        &self,
        rows: &Tensor,
        interests: usize,
        make: impl Fn() -> Vec<T> + Sync,
        visit: impl Fn(&mut T, usize, &[f32]) + Sync,
    ) -> Result<Vec<Vec<T>>> {
        self.expect_rows(rows, interests, make().len())?;
        let runs = match &self.0 {
            BlockStorage::Host(blocks) => blocks.scan_in_runs(rows, interests, &make, &visit)?,
            #[cfg(feature = "cuda")]
            BlockStorage::Gpu(_) => None,
        };
        if let Some(runs) = runs {
            return Ok(runs);
        }
        let mut states = make();
        self.scan(rows, interests, &mut states, visit)?;
        Ok(vec![states])
    }

    fn expect_rows(&self, rows: &Tensor, interests: usize, states: usize) -> Result<()> {
        let d = match &self.0 {
            BlockStorage::Host(blocks) => blocks.d,
            #[cfg(feature = "cuda")]
            BlockStorage::Gpu(scores) => scores.width(),
        };
        let expected = [states * interests, d];
        if interests == 0 || rows.dims() != expected {
            bail!("scores: expected {expected:?} rows, found {:?}", rows.dims());
        }
        Ok(())
    }
}

/// The matrix as blocks `[d, columns]`.
struct HostBlocks {
    blocks: Vec<f32>,
    count: usize,
    d: usize,
}

impl HostBlocks {
    fn new(matrix: &Tensor) -> Result<Self> {
        let (count, d) = matrix.dims2()?;
        let mut blocks = vec![0.0; count * d];
        with_slices([&matrix.contiguous()?], |[values]| {
            let pieces = blocks.par_chunks_mut(COLUMNS * d).zip(values.par_chunks(COLUMNS * d));
            pieces.for_each(|(to, from)| transpose(to, from, d));
            Ok(())
        })?;
        Ok(Self { blocks, count, d })
    }

    fn score(&self, row: &[f32], column: usize) -> f32 {
        let (block, at) = (column / COLUMNS, column % COLUMNS);
        let columns = COLUMNS.min(self.count - block * COLUMNS);
        let values = self.blocks[block * COLUMNS * self.d + at..].iter().step_by(columns);
        row.iter().zip(values).fold(0.0, |sum, (a, b)| a.mul_add(*b, sum))
    }

    /// The number of blocks.
    fn blocks(&self) -> usize {
        self.count.div_ceil(COLUMNS)
    }

    /// [`ScoreBlocks::scan_in_runs`] if several runs are worth it, otherwise `None`.
    fn scan_in_runs<T: Send>(
        &self,
        rows: &Tensor,
        interests: usize,
        make: &(impl Fn() -> Vec<T> + Sync),
        visit: &(impl Fn(&mut T, usize, &[f32]) + Sync),
    ) -> Result<Option<Vec<Vec<T>>>> {
        let runs = rayon::current_num_threads().min(self.blocks()).min(rows.elem_count() * self.count / RUN);
        if runs < 2 || rows.dim(0)? > ROWS {
            return Ok(None);
        }
        let start = |run: usize| run * self.blocks() / runs;
        let scan = |run: usize| {
            let mut states = make();
            self.scan(rows, interests, &mut states, start(run)..start(run + 1), visit)?;
            Ok(states)
        };
        (0..runs).into_par_iter().map(scan).collect::<Result<_>>().map(Some)
    }

    /// [`ScoreBlocks::scan`] over a range of the blocks.
    fn scan<T: Send>(
        &self,
        rows: &Tensor,
        interests: usize,
        states: &mut [T],
        range: Range<usize>,
        visit: impl Fn(&mut T, usize, &[f32]) + Sync,
    ) -> Result<()> {
        let together = (ROWS / interests).max(1);
        with_slices([&rows.contiguous()?], |[rows]| {
            let pieces = states.par_chunks_mut(together).zip(rows.par_chunks(together * interests * self.d));
            pieces.for_each(|(states, rows)| {
                let count = states.len() * interests;
                let mut scores = Scratch::take(count * COLUMNS);
                let blocks = self.blocks.chunks(COLUMNS * self.d).enumerate().take(range.end).skip(range.start);
                for (block, values) in blocks {
                    let columns = values.len() / self.d;
                    let scores = &mut scores[..count * columns];
                    let (a, b) = (Mat::new(rows, count, self.d), Mat::new(values, self.d, columns));
                    matmul_f32(scores, a, b, false);
                    for (state, scores) in states.iter_mut().zip(scores.chunks_exact_mut(interests * columns)) {
                        let (first, others) = scores.split_at_mut(columns);
                        others.chunks_exact(columns).for_each(|other| keep_greatest(first, other));
                        visit(state, block * COLUMNS, first);
                    }
                }
            });
            Ok(())
        })
    }
}

/// Keeps the larger of each pair; a NaN in either stays visible.
fn keep_greatest(best: &mut [f32], other: &[f32]) {
    for (best, &other) in best.iter_mut().zip(other) {
        if other > *best || other.is_nan() {
            *best = other;
        }
    }
}

/// The number of scores that are at least `bound`; `None` if any score is not finite.
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512bw+avx512vl", "x86_64+avx2"))]
pub fn count_at_least(scores: &[f32], bound: f32) -> Option<u32> {
    let (mut count, mut bad) = (0u32, 0u32);
    for &score in scores {
        count += u32::from(score >= bound);
        bad += u32::from(!score.is_finite());
    }
    (bad == 0).then_some(count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{RngKey, plain};
    use candle_core::Device;

    #[test]
    fn runs_of_blocks_see_every_score_once_like_a_single_scan() {
        let random = |seed: u64, rows: usize| {
            let values: Vec<f32> = (0..(rows * 64) as u64).map(|i| RngKey::new(seed).normal(i) as f32).collect();
            Tensor::from_vec(values, (rows, 64), &Device::Cpu).unwrap()
        };
        let blocks = ScoreBlocks::new(&random(1, 5000)).unwrap();
        let (rows, visit) = (random(2, 16), |all: &mut Vec<(usize, f32)>, first: usize, scores: &[f32]| {
            all.extend(scores.iter().enumerate().map(|(at, &score)| (first + at, score)));
        });
        let mut whole = vec![Vec::new(); 16];
        blocks.scan(&rows, 1, &mut whole, visit).unwrap();
        let threads = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        let runs = threads.install(|| blocks.scan_in_runs(&rows, 1, || vec![Vec::new(); 16], visit)).unwrap();
        assert_eq!(runs.len(), 2, "as many as the work is worth");
        let joined: Vec<Vec<(usize, f32)>> =
            (0..16).map(|row| runs.iter().flat_map(|run| run[row].iter().copied()).collect()).collect();
        assert_eq!(joined, whole);
        // Many rows keep the threads busy by themselves.
        let many = random(3, 40);
        let runs = threads.install(|| blocks.scan_in_runs(&many, 1, || vec![Vec::new(); 40], visit)).unwrap();
        assert_eq!(runs.len(), 1);
    }

    #[test]
    fn a_score_is_the_maximum_over_the_rows_of_a_state() {
        let random = |seed: u64, rows: usize, d: usize| {
            let values: Vec<f32> = (0..(rows * d) as u64).map(|i| RngKey::new(seed).normal(i) as f32).collect();
            Tensor::from_vec(values, (rows, d), &Device::Cpu).unwrap()
        };
        for (states, interests, columns) in [(1, 3, 5), (40, 4, 1030), (9, 40, 70)] {
            let (rows, matrix) = (random(3, states * interests, 6), random(4, columns, 6));
            let mut found = vec![Vec::new(); states];
            let blocks = ScoreBlocks::new(&matrix).unwrap();
            let visit = |seen: &mut Vec<f32>, _, scores: &[f32]| seen.extend_from_slice(scores);
            blocks.scan(&rows, interests, &mut found, visit).unwrap();
            let scores = plain::product(&rows, &matrix.t().unwrap().contiguous().unwrap()).unwrap();
            let expected = scores.reshape((states, interests, columns)).unwrap().max(1).unwrap();
            for (found, expected) in found.iter().zip(expected.to_vec2::<f32>().unwrap()) {
                assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-4));
            }
            assert!(blocks.scan(&rows, 0, &mut found, visit).is_err());
        }
        let mut best = [1.0, 2.0, f32::NAN];
        keep_greatest(&mut best, &[f32::NAN, 3.0, 0.0]);
        assert!(
            best[0].is_nan() && (best[1] - 3.0f32).abs() < 1e-9 && best[2].is_nan(),
            "what is not a number stays visible"
        );
    }

    #[test]
    fn every_score_is_visited_once_in_order() {
        let random = |seed: u64, rows: usize, d: usize| {
            let values: Vec<f32> = (0..(rows * d) as u64).map(|i| RngKey::new(seed).normal(i) as f32).collect();
            Tensor::from_vec(values, (rows, d), &Device::Cpu).unwrap()
        };
        for (n, m, d) in [(1, 1, 1), (33, 1024, 7), (70, 2500, 16), (5, 1025, 130)] {
            let (rows, matrix) = (random(1, n, d), random(2, m, d));
            let blocks = ScoreBlocks::new(&matrix).unwrap();
            let mut states = vec![Vec::new(); n];
            blocks
                .scan(&rows, 1, &mut states, |seen: &mut Vec<f32>, first, scores| {
                    assert_eq!(seen.len(), first);
                    seen.extend_from_slice(scores);
                })
                .unwrap();
            let expected = plain::product(&rows, &matrix.t().unwrap().contiguous().unwrap()).unwrap();
            for (row, (found, expected)) in states.iter().zip(expected.to_vec2::<f32>().unwrap()).enumerate() {
                assert_eq!(found.len(), m);
                let own: Vec<f32> = rows.get(row).unwrap().to_vec1().unwrap();
                for (column, (a, b)) in found.iter().zip(&expected).enumerate() {
                    assert!((a - b).abs() < 1e-4 && (blocks.score(&own, column).unwrap() - b).abs() < 1e-4, "{a} {b}");
                }
            }
        }
    }

    #[test]
    fn counting_refuses_scores_that_are_not_finite() {
        let mut scores = vec![0.5; 100];
        scores[70] = 2.0;
        assert_eq!((count_at_least(&scores, 0.5), count_at_least(&scores, 1.0)), (Some(100), Some(1)));
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            scores[99] = bad;
            assert_eq!(count_at_least(&scores, 1.0), None);
        }
    }
}
