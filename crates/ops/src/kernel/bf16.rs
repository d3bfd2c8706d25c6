//! Matrix products of bf16 with sums in f32, by the instructions of AVX-512-BF16.
//!
//! Both matrices are rounded to bf16 (to nearest, ties to even) while they are packed in pairs of neighbouring k: `vdpbf16ps` adds the
//! products of such a pair to a sum in f32. Every sum runs over k in ascending blocks on one thread, so its order depends on the shapes
//! alone. `unsafe` is needed for the intrinsics and for the packed panels, whose sizes are computed here; the result is tested against the
//! plain loop over rounded values.

#![allow(unsafe_code)]

use super::Mat;

/// With fewer elements of b, packing costs more than it gains.
const LEAST: usize = 1 << 10;

/// Whether a product with a matrix b `[k, n]` is computed from bf16. The number of rows of a plays no part, so that a row of the result
/// does not depend on the number of rows beside it.
pub(crate) fn pays(k: usize, n: usize) -> bool {
    k * n >= LEAST && k >= 16
}

/// Whether the processor has the instructions.
pub fn is_available() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512bf16")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

/// out = a b, or out += a b if `add`, from bf16; `out` is row after row. Panics unless [`is_available`].
pub(crate) fn matmul(out: &mut [f32], a: Mat<'_>, b: Mat<'_>, add: bool) {
    assert!(is_available(), "this processor has no products of bf16");
    assert!(
        b.rows == a.columns && out.len() == a.rows * b.columns && a.fits() && b.fits(),
        "matrix product of wrong shapes"
    );
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the processor has the instructions, and the assertion bounds every element that the strides reach.
    unsafe {
        x86::matmul(out, a, b, add);
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = add;
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m512, __m512bh, __m512i, __mmask16, _mm512_add_ps, _mm512_cvtne2ps_pbh, _mm512_dpbf16_ps, _mm512_loadu_ps,
        _mm512_loadu_si512, _mm512_mask_loadu_ps, _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps,
        _mm512_permutexvar_epi16, _mm512_set1_epi32, _mm512_setzero_ps, _mm512_setzero_si512, _mm512_shuffle_i32x4,
        _mm512_storeu_si512, _mm512_unpackhi_epi32, _mm512_unpackhi_epi64, _mm512_unpacklo_epi32,
        _mm512_unpacklo_epi64,
    };
    use std::mem::transmute;

    use super::super::Mat;
    use crate::scratch::Scratch;

    /// The lanes of a vector, which hold columns of b or pairs of k.
    const LANES: usize = 16;
    /// The rows and columns of the result that a kernel holds in registers.
    const ROWS: usize = 12;
    const COLUMNS: usize = 2 * LANES;
    /// A block of b is K x N and one of a is M x K: packed, they take 384 KiB and 120 KiB of bf16, and a panel of b takes 24 KiB.
    const K: usize = 384;
    const N: usize = 512;
    const M: usize = 10 * ROWS;

    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub(super) unsafe fn matmul(out: &mut [f32], a: Mat<'_>, b: Mat<'_>, add: bool) {
        let (m, n, k) = (a.rows, b.columns, a.columns);
        if k == 0 {
            if !add {
                out.fill(0.0);
            }
            return;
        }
        let pairs_most = k.min(K).div_ceil(2).next_multiple_of(LANES);
        let mut packed_b = Scratch::take(n.min(N).next_multiple_of(COLUMNS) * pairs_most);
        let mut packed_a = Scratch::take(m.min(M).div_ceil(ROWS) * LANES * pairs_most);
        for first_n in (0..n).step_by(N) {
            let columns = N.min(n - first_n);
            for first_k in (0..k).step_by(K) {
                let depth = K.min(k - first_k);
                let pairs = depth.div_ceil(2);
                // SAFETY: the buffers are as large as what the loops below read of them.
                unsafe {
                    pack_b(packed_b.as_mut_ptr().cast(), b, [first_k, depth], [first_n, columns]);
                    for first_m in (0..m).step_by(M) {
                        let rows = M.min(m - first_m);
                        pack_a(packed_a.as_mut_ptr().cast(), a, [first_m, rows], [first_k, depth]);
                        let added = add || first_k > 0;
                        for column in (0..columns).step_by(COLUMNS) {
                            let panel = packed_b.as_ptr().cast::<u32>().add(column * pairs);
                            let wide = COLUMNS.min(columns - column);
                            for row in (0..rows).step_by(ROWS) {
                                let own = packed_a.as_ptr().cast::<u32>().add(row / ROWS * LANES * pairs);
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

    /// The mask of the first `count` lanes.
    fn mask(count: usize) -> __mmask16 {
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
    /// k one after the other. Missing columns of a panel are zeros.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn pack_b(to: *mut u32, b: Mat<'_>, [first_k, depth]: [usize; 2], [first_n, columns]: [usize; 2]) {
        let pairs = depth.div_ceil(2);
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
            }
        }
    }

    /// Packs `rows` rows of a from `first_m` and `depth` columns from `first_k` into panels of `ROWS` rows, each with the pairs of k one
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
                    pair_up(to, LANES, from, a.row_stride, [wide, depth], a.column_stride);
                }
            }
        }
    }

    /// Packs `wide` neighbouring values of each of `depth` rows: the values of a column in two successive rows are a pair. The output
    /// advances by `to_step` pairs from two rows to the next two.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn interleave(to: *mut u32, to_step: usize, from: *const f32, row_stride: usize, [depth, wide]: [usize; 2]) {
        let mask = mask(wide);
        for pair in 0..depth.div_ceil(2) {
            let row = from.wrapping_add(2 * pair * row_stride);
            let second = if 2 * pair + 1 < depth { mask } else { 0 };
            // SAFETY: the masks restrict the reads to the `wide` columns of rows that exist.
            unsafe {
                let low = _mm512_maskz_loadu_ps(mask, row);
                let high = _mm512_maskz_loadu_ps(second, row.wrapping_add(row_stride));
                _mm512_storeu_si512(to.add(pair * to_step).cast(), interleaved(low, high));
            }
        }
    }

    /// Like [`interleave`], from `wide` lines that are `line_stride` apart and hold `depth` values each, `value_stride` apart.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn pair_up(
        to: *mut u32,
        to_step: usize,
        from: *const f32,
        line_stride: usize,
        [wide, depth]: [usize; 2],
        value_stride: usize,
    ) {
        for at in (0..depth).step_by(2 * LANES) {
            let left = (depth - at).min(2 * LANES);
            let mut lines = [_mm512_setzero_si512(); LANES];
            for (line, pairs) in lines.iter_mut().enumerate().take(wide) {
                let from = from.wrapping_add(line * line_stride + at * value_stride);
                // SAFETY: the masks and `left` restrict the reads to the `depth` values.
                *pairs = unsafe {
                    if value_stride == 1 {
                        let low = _mm512_maskz_loadu_ps(mask(left), from);
                        let high = mask(left.saturating_sub(LANES));
                        rounded(low, _mm512_maskz_loadu_ps(high, from.wrapping_add(LANES)))
                    } else {
                        let mut values = [0.0f32; 2 * LANES];
                        for (i, value) in values.iter_mut().enumerate().take(left) {
                            *value = *from.wrapping_add(i * value_stride);
                        }
                        rounded(_mm512_loadu_ps(values.as_ptr()), _mm512_loadu_ps(values.as_ptr().add(LANES)))
                    }
                };
            }
            for (pair, values) in transposed(&lines).into_iter().enumerate().take(left.div_ceil(2)) {
                // SAFETY: `to` has room for `LANES` lines at every pair.
                unsafe { _mm512_storeu_si512(to.add((at / 2 + pair) * to_step).cast(), values) };
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn products_agree_with_the_plain_loop_over_rounded_values(
            m in 1usize..40, n in 1usize..80, k in 1usize..900, ta: bool, tb: bool, add: bool
        ) {
            if !is_available() {
                return Ok(());
            }
            let key = crate::RngKey::new((m * 100_000 + n * 1000 + k) as u64);
            let fill = |s: crate::RngKey, len: usize| (0..len as u64).map(|i| s.normal(i) as f32).collect::<Vec<_>>();
            let (x, y) = (fill(key.fold_in_index(0), m * k), fill(key.fold_in_index(1), k * n));
            let a = if ta { Mat::new(&x, k, m).t() } else { Mat::new(&x, m, k) };
            let b = if tb { Mat::new(&y, n, k).t() } else { Mat::new(&y, k, n) };
            let before = fill(key.fold_in_index(2), m * n);
            let mut out = before.clone();
            matmul(&mut out, a, b, add);
            let at = |mat: &Mat<'_>, i: usize, j: usize| {
                bf16::from_f32(mat.data[i * mat.row_stride + j * mat.column_stride]).to_f64()
            };
            for (x, (got, before)) in out.iter().zip(before).enumerate() {
                let sum: f64 = (0..k).map(|l| at(&a, x / n, l) * at(&b, l, x % n)).sum();
                let want = sum + if add { f64::from(before) } else { 0.0 };
                prop_assert!((f64::from(*got) - want).abs() < 2e-4, "{got} {want}");
            }
        }
    }
}
