//! Packing for the products of bf16: values are rounded to bf16, and those of neighbouring k become a pair.

use std::arch::x86_64::{
    __m512, __m512bh, __m512i, __mmask16, _mm512_cvtne2ps_pbh, _mm512_loadu_ps, _mm512_maskz_loadu_ps,
    _mm512_permutexvar_epi16, _mm512_setzero_si512, _mm512_shuffle_i32x4, _mm512_storeu_si512, _mm512_unpackhi_epi32,
    _mm512_unpackhi_epi64, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
};
use std::mem::transmute;

use super::super::Mat;

/// The lanes of a vector, which hold columns of b or pairs of k.
pub(super) const LANES: usize = 16;
/// The columns of a panel of b.
pub(super) const COLUMNS: usize = 2 * LANES;

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
    for column in (0..columns.next_multiple_of(COLUMNS)).step_by(LANES) {
        let (panel, half) = (column / COLUMNS, column % COLUMNS);
        // SAFETY: panel p starts at p COLUMNS pairs.
        unsafe {
            let to = to.add(panel * COLUMNS * pairs + half);
            let wide = columns.saturating_sub(column).min(LANES);
            let from = b.sub(first_k, first_n + column.min(columns));
            if b.column_stride == 1 {
                interleave(to, COLUMNS, from, b.row_stride, [depth, wide]);
            } else {
                pair_up(to, COLUMNS, from, b.column_stride, [wide, depth], b.row_stride);
            }
            for pair in depth.div_ceil(2)..pairs {
                _mm512_storeu_si512(to.add(pair * COLUMNS).cast(), _mm512_setzero_si512());
            }
        }
    }
}

/// Packs `wide` neighbouring values of each of `depth` rows: the values of a column in two successive rows are a pair. The output
/// advances by `to_step` pairs from two rows to the next two.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) unsafe fn interleave(
    to: *mut u32,
    to_step: usize,
    from: *const f32,
    row_stride: usize,
    [depth, wide]: [usize; 2],
) {
    for pair in 0..depth.div_ceil(2) {
        let rows = from.wrapping_add(2 * pair * row_stride);
        // SAFETY: `to` has room for `LANES` columns at every pair.
        unsafe {
            let pairs = two_rows(rows, row_stride, [(depth - 2 * pair).min(2), wide]);
            _mm512_storeu_si512(to.add(pair * to_step).cast(), pairs);
        }
    }
}

/// The pairs of the values of two rows (one, if `rows` is 1) in `wide` neighbouring columns. The missing lanes are zeros.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn two_rows(from: *const f32, row_stride: usize, [rows, wide]: [usize; 2]) -> __m512i {
    // SAFETY: the masks restrict the reads to the `wide` columns of rows that exist.
    unsafe {
        let low = _mm512_maskz_loadu_ps(mask(wide), from);
        let high = _mm512_maskz_loadu_ps(if rows == 2 { mask(wide) } else { 0 }, from.wrapping_add(row_stride));
        interleaved(low, high)
    }
}

/// Like [`interleave`], from `wide` lines that are `line_stride` apart and hold `depth` values each, `value_stride` apart.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) unsafe fn pair_up(
    to: *mut u32,
    to_step: usize,
    from: *const f32,
    line_stride: usize,
    [wide, depth]: [usize; 2],
    value_stride: usize,
) {
    for at in (0..depth).step_by(2 * LANES) {
        let left = (depth - at).min(2 * LANES);
        // SAFETY: `left` restricts the reads to the `depth` values; `to` has room for `LANES` lines at every pair.
        unsafe {
            let lines = lines(from.wrapping_add(at * value_stride), line_stride, [wide, left], value_stride);
            for (pair, values) in transposed(&lines).into_iter().enumerate().take(left.div_ceil(2)) {
                _mm512_storeu_si512(to.add((at / 2 + pair) * to_step).cast(), values);
            }
        }
    }
}

/// Packs `wide` lines of `depth` values, at most [`LANES`] and twice as many, as a tile: the pairs of a line are neighbours. The missing
/// lines and pairs are zeros.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) unsafe fn pack_tile(
    to: *mut u32,
    from: *const f32,
    line_stride: usize,
    [wide, depth]: [usize; 2],
    value_stride: usize,
) {
    // SAFETY: the numbers of lines and values restrict the reads; `to` has room for `LANES` vectors.
    unsafe {
        let lines = if line_stride == 1 {
            let mut pairs = [_mm512_setzero_si512(); LANES];
            for (pair, values) in pairs.iter_mut().enumerate().take(depth.div_ceil(2)) {
                let rows = from.wrapping_add(2 * pair * value_stride);
                *values = two_rows(rows, value_stride, [(depth - 2 * pair).min(2), wide]);
            }
            transposed(&pairs)
        } else {
            lines(from, line_stride, [wide, depth], value_stride)
        };
        for (line, values) in lines.into_iter().enumerate() {
            _mm512_storeu_si512(to.add(line * LANES).cast(), values);
        }
    }
}

/// `wide` lines of `depth` values, at most [`LANES`] and twice as many: the lanes of a line are its pairs. The missing ones are zeros.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn lines(
    from: *const f32,
    line_stride: usize,
    [wide, depth]: [usize; 2],
    value_stride: usize,
) -> [__m512i; LANES] {
    let mut lines = [_mm512_setzero_si512(); LANES];
    for (line, pairs) in lines.iter_mut().enumerate().take(wide) {
        let from = from.wrapping_add(line * line_stride);
        // SAFETY: the masks and `depth` restrict the reads to the values.
        *pairs = unsafe {
            if value_stride == 1 {
                let low = _mm512_maskz_loadu_ps(mask(depth), from);
                let high = mask(depth.saturating_sub(LANES));
                rounded(low, _mm512_maskz_loadu_ps(high, from.wrapping_add(LANES)))
            } else {
                let mut values = [0.0f32; 2 * LANES];
                for (i, value) in values.iter_mut().enumerate().take(depth) {
                    *value = *from.wrapping_add(i * value_stride);
                }
                rounded(_mm512_loadu_ps(values.as_ptr()), _mm512_loadu_ps(values.as_ptr().add(LANES)))
            }
        };
    }
    lines
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
