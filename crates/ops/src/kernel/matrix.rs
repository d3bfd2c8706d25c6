//! Matrix products. `unsafe` is needed for one call into `gemm`, whose bounds are checked here and whose result is tested against the plain
//! loop.

#![allow(unsafe_code)]

use super::{Mat, bf16, dot};
use crate::device::{Precision, precision};

/// out = a b, or out += a b if `add`, in the current precision; `out` is row after row. It runs on one thread, so the order of sums is
/// fixed.
pub(crate) fn matmul(out: &mut [f32], a: Mat<'_>, b: Mat<'_>, add: bool) {
    matmul_in(precision(), out, a, b, add);
}

/// The same in a given precision; tf32 is computed as f32.
pub(crate) fn matmul_in(precision: Precision, out: &mut [f32], a: Mat<'_>, b: Mat<'_>, add: bool) {
    match precision {
        Precision::Bf16 if bf16::pays(a.columns, b.columns) => bf16::matmul(out, a, b, add),
        _ => matmul_f32(out, a, b, add),
    }
}

/// Whether a product with a matrix of `rows` x `columns` on the right rounds both matrices to bf16 in the current precision.
pub(crate) fn rounds(rows: usize, columns: usize) -> bool {
    precision() == Precision::Bf16 && bf16::pays(rows, columns)
}

/// The inner product of two rows, from the values that [`matmul`] would use if the right matrix had `columns` columns.
pub(crate) fn dot_as_product(a: &[f32], b: &[f32], columns: usize) -> f32 {
    if !rounds(a.len(), columns) {
        return dot(a, b);
    }
    let rounded = |&value: &f32| half::bf16::from_f32(value).to_f32();
    a.iter().zip(b).map(|(a, b)| rounded(a) * rounded(b)).sum()
}

/// The same as [`matmul`] in f32.
pub(crate) fn matmul_f32(out: &mut [f32], a: Mat<'_>, b: Mat<'_>, add: bool) {
    let (m, n, k) = (a.rows, b.columns, a.columns);
    assert!(b.rows == k && out.len() == m * n && a.fits() && b.fits(), "matrix product of wrong shapes");
    if m * n == 0 {
        return;
    }
    if k == 0 {
        if !add {
            out.fill(0.0);
        }
        return;
    }
    // SAFETY: the assertion above bounds every element that the strides reach, and `out` is borrowed mutably, so it
    // overlaps neither operand.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            n as isize,
            add,
            a.data.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// Writes the transpose of `from` `[rows, columns]` to `to` `[columns, rows]`. A product whose right matrix is transposed first is faster
/// than one with a transposed view as soon as the matrix is used a few times.
pub(crate) fn transpose(to: &mut [f32], from: &[f32], columns: usize) {
    const TILE: usize = 16;
    let rows = from.len() / columns.max(1);
    assert_eq!(to.len(), rows * columns, "transpose of another size");
    for row in (0..rows).step_by(TILE) {
        for column in (0..columns).step_by(TILE) {
            for c in column..columns.min(column + TILE) {
                for r in row..rows.min(row + TILE) {
                    to[c * rows + r] = from[r * columns + c];
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn naive(a: Mat<'_>, b: Mat<'_>) -> Vec<f64> {
        let at = |m: &Mat<'_>, i: usize, j: usize| f64::from(m.data[i * m.row_stride + j * m.column_stride]);
        (0..a.rows * b.columns)
            .map(|x| (0..a.columns).map(|l| at(&a, x / b.columns, l) * at(&b, l, x % b.columns)).sum())
            .collect()
    }

    proptest! {
        #[test]
        fn products_agree_with_the_plain_loop(m in 0usize..20, n in 0usize..20, k in 0usize..40, ta: bool, tb: bool, add: bool) {
            let key = crate::RngKey::new((m * 1000 + n * 50 + k) as u64);
            let fill = |s: crate::RngKey, len: usize| (0..len as u64).map(|i| s.normal(i) as f32).collect::<Vec<_>>();
            let (x, y) = (fill(key.fold_in_index(0), m * k), fill(key.fold_in_index(1), k * n));
            let a = if ta { Mat::new(&x, k, m).t() } else { Mat::new(&x, m, k) };
            let b = if tb { Mat::new(&y, n, k).t() } else { Mat::new(&y, k, n) };
            let before = fill(key.fold_in_index(2), m * n);
            let mut out = before.clone();
            matmul(&mut out, a, b, add);
            for ((got, want), before) in out.iter().zip(naive(a, b)).zip(before) {
                let want = want + if add { f64::from(before) } else { 0.0 };
                prop_assert!((f64::from(*got) - want).abs() < 1e-4, "{got} {want}");
            }
        }
    }

    #[test]
    #[should_panic(expected = "wrong shapes")]
    fn a_product_past_the_end_of_a_slice_is_refused() {
        matmul(&mut [0.0; 4], Mat::new(&[0.0; 3], 2, 2), Mat::new(&[0.0; 4], 2, 2), false);
    }
}
