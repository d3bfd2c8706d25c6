//! The products by the instructions of AVX-512-BF16.

use std::arch::x86_64::{
    __m512bh, __m512i, _mm512_add_ps, _mm512_dpbf16_ps, _mm512_loadu_si512, _mm512_mask_loadu_ps,
    _mm512_mask_storeu_ps, _mm512_set1_epi32, _mm512_setzero_ps, _mm512_storeu_si512,
};
use std::mem::transmute;

use super::super::Mat;
use super::pack::{COLUMNS, LANES, Panels, mask, pack_b, pair_up, two_rows};

/// The rows of the result that a kernel holds in registers, for [`COLUMNS`] columns.
const ROWS: usize = 12;
/// A block of b is K x N and one of a is M x K: packed, they take 384 KiB and 120 KiB of bf16, and a panel of b takes 24 KiB.
const K: usize = 384;
const N: usize = 512;
const M: usize = 10 * ROWS;

/// The product. The caller has checked the shapes and that the instructions exist.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) unsafe fn matmul(out: &mut [f32], a: Mat<'_>, b: Mat<'_>, add: bool) {
    let (m, n, k) = (a.rows, b.columns, a.columns);
    let pairs_most = k.min(K).div_ceil(2).next_multiple_of(LANES);
    let mut packed_b = Panels::of(n.min(N).next_multiple_of(COLUMNS) * pairs_most);
    let mut packed_a = Panels::of(m.min(M).div_ceil(ROWS) * LANES * pairs_most);
    let (packed_a, packed_b) = (packed_a.start(), packed_b.start());
    for first_n in (0..n).step_by(N) {
        let columns = N.min(n - first_n);
        for first_k in (0..k).step_by(K) {
            let depth = K.min(k - first_k);
            let pairs = depth.div_ceil(2);
            // SAFETY: the buffers have room for all panels, because `pairs` is at most `pairs_most`.
            unsafe {
                pack_b(packed_b, pairs, b, [first_k, depth], [first_n, columns]);
                for first_m in (0..m).step_by(M) {
                    let rows = M.min(m - first_m);
                    pack_a(packed_a, a, [first_m, rows], [first_k, depth]);
                    let added = add || first_k > 0;
                    for column in (0..columns).step_by(COLUMNS) {
                        let panel = packed_b.add(column * pairs);
                        let wide = COLUMNS.min(columns - column);
                        for row in (0..rows).step_by(ROWS) {
                            let own = packed_a.add(row / ROWS * LANES * pairs);
                            let target = out.as_mut_ptr().add((first_m + row) * n + first_n + column);
                            kernel(ROWS.min(rows - row), own, panel, pairs, target, n, wide, added);
                        }
                    }
                }
            }
        }
    }
}

/// Runs the kernel of exactly `rows` rows.
#[allow(clippy::too_many_arguments, reason = "what the innermost loop needs, each in a register")]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn kernel(
    rows: usize,
    a: *const u32,
    b: *const u32,
    pairs: usize,
    out: *mut f32,
    stride: usize,
    columns: usize,
    add: bool,
) {
    macro_rules! of_rows {
        ($($count:literal)*) => {
            match rows {
                // SAFETY: the requirements are those of this function, which its caller meets.
                $($count => unsafe { block::<$count>(a, b, pairs, out, stride, columns, add) },)*
                _ => {}
            }
        };
    }
    of_rows!(1 2 3 4 5 6 7 8 9 10 11 12);
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn block<const R: usize>(
    a: *const u32,
    b: *const u32,
    pairs: usize,
    out: *mut f32,
    stride: usize,
    columns: usize,
    add: bool,
) {
    let mut sums = [[_mm512_setzero_ps(); 2]; R];
    // SAFETY: for each of `pairs`, a panel of b has `COLUMNS` pairs and one of a has `LANES`.
    unsafe {
        for pair in 0..pairs {
            let columns = [load(b.add(pair * COLUMNS)), load(b.add(pair * COLUMNS + LANES))];
            let own = a.add(pair * LANES);
            for (row, sums) in sums.iter_mut().enumerate() {
                let value = broadcast(*own.add(row));
                sums[0] = _mm512_dpbf16_ps(sums[0], value, columns[0]);
                sums[1] = _mm512_dpbf16_ps(sums[1], value, columns[1]);
            }
        }
        let masks = [mask(columns), mask(columns.saturating_sub(LANES))];
        for (row, sums) in sums.iter().enumerate() {
            for (half, (&sum, &mask)) in sums.iter().zip(&masks).enumerate() {
                let at = out.wrapping_add(row * stride + half * LANES);
                let sum = if add { _mm512_add_ps(sum, _mm512_mask_loadu_ps(sum, mask, at)) } else { sum };
                _mm512_mask_storeu_ps(at, mask, sum);
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load(at: *const u32) -> __m512bh {
    // SAFETY: both are 64 bytes of plain values.
    unsafe { transmute::<__m512i, __m512bh>(_mm512_loadu_si512(at.cast())) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn broadcast(pair: u32) -> __m512bh {
    // SAFETY: both are 64 bytes of plain values.
    unsafe { transmute::<__m512i, __m512bh>(_mm512_set1_epi32(pair.cast_signed())) }
}

/// Packs `rows` rows of `a` from `first_m` and `depth` columns from `first_k` into panels of `ROWS` rows, each with the pairs of k one
/// after the other; each pair has room for `LANES` rows.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn pack_a(to: *mut u32, a: Mat<'_>, [first_m, rows]: [usize; 2], [first_k, depth]: [usize; 2]) {
    let pairs = depth.div_ceil(2);
    for row in (0..rows).step_by(ROWS) {
        let (from, wide) = (a.sub(first_m + row, first_k), ROWS.min(rows - row));
        // SAFETY: panel p starts at p LANES pairs.
        unsafe {
            let to = to.add(row / ROWS * LANES * pairs);
            if a.row_stride == 1 {
                interleave(to, LANES, from, a.column_stride, [depth, wide]);
            } else {
                pair_up(to, LANES, from, a.row_stride, [wide, depth]);
            }
        }
    }
}

/// Packs `wide` neighbouring values of each of `depth` rows: the values of a column in two successive rows are a pair. The output
/// advances by `to_step` pairs from two rows to the next two.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn interleave(to: *mut u32, to_step: usize, from: *const f32, row_stride: usize, [depth, wide]: [usize; 2]) {
    for pair in 0..depth.div_ceil(2) {
        let rows = from.wrapping_add(2 * pair * row_stride);
        // SAFETY: `to` has room for `LANES` columns at every pair.
        unsafe {
            let pairs = two_rows(rows, row_stride, [(depth - 2 * pair).min(2), wide]);
            _mm512_storeu_si512(to.add(pair * to_step).cast(), pairs);
        }
    }
}
