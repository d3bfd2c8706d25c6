//! Packing for the products of bf16: values are rounded to bf16, and those of neighbouring k become a pair.

use std::arch::x86_64::{
    __m512, __m512bh, __m512i, __mmask16, _mm512_cvtne2ps_pbh, _mm512_maskz_loadu_ps, _mm512_permutexvar_epi16,
    _mm512_setzero_si512, _mm512_shuffle_i32x4, _mm512_storeu_si512, _mm512_unpackhi_epi32, _mm512_unpackhi_epi64,
    _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
};
use std::mem::transmute;

use super::super::Mat;
use crate::scratch::Scratch;

/// The lanes of a vector, which hold columns of b or pairs of k.
pub(super) const LANES: usize = 16;
/// The columns of a panel of b.
pub(super) const COLUMNS: usize = 2 * LANES;

/// Packed panels. They start at a cache line, because vectors and rows of tiles that straddle two lines take several times as long to load.
pub(super) struct Panels(Scratch);

impl Panels {
    /// Makes room for `pairs` pairs.
    pub fn of(pairs: usize) -> Self {
        Self(Scratch::take(pairs + LANES - 1))
    }

    pub fn start(&mut self) -> *mut u32 {
        let start = self.0.as_mut_ptr().cast::<u32>();
        start.wrapping_add(start.align_offset(LANES * size_of::<u32>()))
    }
}

/// The mask of the first `count` lanes.
pub(super) fn mask(count: usize) -> __mmask16 {
    if count >= LANES { u16::MAX } else { (1 << count) - 1 }
}

/// Rounds two vectors to bf16, one after the other.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn rounded(low: __m512, high: __m512) -> __m512i {
    // SAFETY: both are 64 bytes of plain values.
    unsafe { transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low)) }
}

/// Rounds two vectors to bf16 and takes their values in turn, so that the values of a lane are a pair.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn interleaved(low: __m512, high: __m512) -> __m512i {
    const TURNS: [u16; 2 * LANES] = {
        let mut turns = [0; 2 * LANES];
        let mut at = 0;
        while at < 2 * LANES {
            turns[at] = (at / 2 + at % 2 * LANES) as u16;
            at += 1;
        }
        turns
    };
    // SAFETY: both are 64 bytes of plain values.
    let turns = unsafe { transmute::<[u16; 2 * LANES], __m512i>(TURNS) };
    _mm512_permutexvar_epi16(turns, rounded(low, high))
}

/// Packs `depth` rows of b from `first_k` and `columns` columns from `first_n` into panels of `COLUMNS` columns, each with the pairs of
/// k one after the other, `pairs` in all. Missing columns and pairs of a panel are zeros.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) unsafe fn pack_b(
    to: *mut u32,
    pairs: usize,
    b: Mat<'_>,
    [first_k, depth]: [usize; 2],
    [first_n, columns]: [usize; 2],
) {
    let whole = columns.next_multiple_of(COLUMNS);
    let wide = |column: usize| columns.saturating_sub(column).min(LANES);
    // Where the pairs of `LANES` columns start: panel p starts at p COLUMNS pairs.
    let target = |column: usize| to.wrapping_add(column / COLUMNS * COLUMNS * pairs + column % COLUMNS);
    // SAFETY: the numbers of columns and values restrict the reads, and the panels have room for all columns and pairs.
    unsafe {
        if b.column_stride == 1 {
            // The loop goes row after row, so that the processor can prefetch what comes next.
            for pair in 0..depth.div_ceil(2) {
                let rows = b.sub(first_k + 2 * pair, first_n);
                let count = (depth - 2 * pair).min(2);
                for column in (0..whole).step_by(LANES) {
                    let values = two_rows(rows.wrapping_add(column), b.row_stride, [count, wide(column)]);
                    _mm512_storeu_si512(target(column).add(pair * COLUMNS).cast(), values);
                }
            }
        } else {
            for column in (0..whole).step_by(LANES) {
                let from = b.sub(first_k, first_n + column.min(columns));
                pair_up(target(column), COLUMNS, from, b.column_stride, [wide(column), depth]);
            }
        }
        for column in (0..whole).step_by(LANES) {
            for pair in depth.div_ceil(2)..pairs {
                _mm512_storeu_si512(target(column).add(pair * COLUMNS).cast(), _mm512_setzero_si512());
            }
        }
    }
}

/// The pairs of the values of two rows (one, if `rows` is 1) in `wide` neighbouring columns. The missing lanes are zeros.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) unsafe fn two_rows(from: *const f32, row_stride: usize, [rows, wide]: [usize; 2]) -> __m512i {
    // SAFETY: the masks restrict the reads to the `wide` columns of rows that exist.
    unsafe {
        let low = _mm512_maskz_loadu_ps(mask(wide), from);
        let high = _mm512_maskz_loadu_ps(if rows == 2 { mask(wide) } else { 0 }, from.wrapping_add(row_stride));
        interleaved(low, high)
    }
}

/// Packs `wide` lines that are `line_stride` apart and hold `depth` neighbouring values each: two successive values of a line are a pair.
/// The output advances by `to_step` pairs from one pair of a line to the next.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) unsafe fn pair_up(
    to: *mut u32,
    to_step: usize,
    from: *const f32,
    line_stride: usize,
    [wide, depth]: [usize; 2],
) {
    for at in (0..depth).step_by(2 * LANES) {
        let mut lines = [_mm512_setzero_si512(); LANES];
        for (i, pairs) in lines.iter_mut().enumerate().take(wide) {
            // SAFETY: the line has `depth` values.
            *pairs = unsafe { line(from.wrapping_add(i * line_stride + at), depth - at) };
        }
        let pairs = (depth - at).min(2 * LANES).div_ceil(2);
        for (pair, values) in transposed(&lines).into_iter().enumerate().take(pairs) {
            // SAFETY: `to` has room for `LANES` lines at every pair.
            unsafe { _mm512_storeu_si512(to.add((at / 2 + pair) * to_step).cast(), values) };
        }
    }
}

/// The pairs of the first `2 LANES` of `left` neighbouring values; the missing ones are zeros.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn line(from: *const f32, left: usize) -> __m512i {
    // SAFETY: the masks restrict the reads to the values.
    unsafe {
        let low = _mm512_maskz_loadu_ps(mask(left), from);
        let high = _mm512_maskz_loadu_ps(mask(left.saturating_sub(LANES)), from.wrapping_add(LANES));
        rounded(low, high)
    }
}

/// Packs `rows` rows of `a` from `first_m` and `depth` columns from `first_k` into panels of `LANES` rows, as tiles: each has the pairs of
/// `LANES` rows, row after row, for `2 LANES` values of k. A panel has `pairs` pairs per row. The missing rows
/// and pairs of a panel are zeros.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) unsafe fn pack_tiles(
    to: *mut u32,
    pairs: usize,
    a: Mat<'_>,
    [first_m, rows]: [usize; 2],
    [first_k, depth]: [usize; 2],
) {
    let tile = |row: usize, at: usize| to.wrapping_add(row / LANES * LANES * pairs + at / 2 * LANES);
    // SAFETY: the numbers of rows and values restrict the reads, and the panels have room for all rows and pairs.
    unsafe {
        if a.column_stride == 1 {
            for row in 0..rows.next_multiple_of(LANES) {
                let (from, exists) = (a.sub(first_m + row.min(rows), first_k), row < rows);
                for at in (0..depth).step_by(2 * LANES) {
                    let values = if exists { line(from.wrapping_add(at), depth - at) } else { _mm512_setzero_si512() };
                    _mm512_storeu_si512(tile(row, at).add(row % LANES * LANES).cast(), values);
                }
            }
            return;
        }
        for at in (0..depth).step_by(2 * LANES) {
            let left = (depth - at).min(2 * LANES);
            for row in (0..rows).step_by(LANES) {
                let from = a.sub(first_m + row, first_k + at);
                let mut columns = [_mm512_setzero_si512(); LANES];
                for (pair, values) in columns.iter_mut().enumerate().take(left.div_ceil(2)) {
                    let two = from.wrapping_add(2 * pair * a.column_stride);
                    let shape = [(left - 2 * pair).min(2), (rows - row).min(LANES)];
                    *values = two_rows(two, a.column_stride, shape);
                }
                for (line, values) in transposed(&columns).into_iter().enumerate() {
                    _mm512_storeu_si512(tile(row, at).add(line * LANES).cast(), values);
                }
            }
        }
    }
}

/// The transpose of a matrix of 16 x 16.
#[inline]
#[target_feature(enable = "avx512f")]
fn transposed(rows: &[__m512i; LANES]) -> [__m512i; LANES] {
    let mut pairs = *rows;
    for i in 0..8 {
        pairs[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
        pairs[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
    }
    let mut fours = pairs;
    for i in 0..4 {
        let own = &pairs[4 * i..4 * i + 4];
        fours[4 * i] = _mm512_unpacklo_epi64(own[0], own[2]);
        fours[4 * i + 1] = _mm512_unpackhi_epi64(own[0], own[2]);
        fours[4 * i + 2] = _mm512_unpacklo_epi64(own[1], own[3]);
        fours[4 * i + 3] = _mm512_unpackhi_epi64(own[1], own[3]);
    }
    // Vector 4 i + c has, in its 128-bit lane l, column 4 l + c of rows 4 i to 4 i + 3.
    let mut out = fours;
    for c in 0..4 {
        let [a, b, d, e] = [fours[c], fours[4 + c], fours[8 + c], fours[12 + c]];
        let (low, high) = (_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0xdd>(a, b));
        let (low_2, high_2) = (_mm512_shuffle_i32x4::<0x88>(d, e), _mm512_shuffle_i32x4::<0xdd>(d, e));
        out[c] = _mm512_shuffle_i32x4::<0x88>(low, low_2);
        out[8 + c] = _mm512_shuffle_i32x4::<0xdd>(low, low_2);
        out[4 + c] = _mm512_shuffle_i32x4::<0x88>(high, high_2);
        out[12 + c] = _mm512_shuffle_i32x4::<0xdd>(high, high_2);
    }
    out
}
