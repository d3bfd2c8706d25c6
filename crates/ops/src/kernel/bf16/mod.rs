//! Matrix products of bf16 with sums in f32, by AMX tiles if the processor has them, otherwise by AVX-512-BF16.
//!
//! Both matrices are rounded to bf16 (to nearest, ties to even) while they are packed in pairs of neighbouring k: the instructions add the
//! products of such pairs to sums in f32. Every sum runs over k in ascending blocks on one thread, so its order depends on the shapes and
//! on which of the instructions are used alone. `unsafe` is needed for the instructions and for the packed panels, whose sizes are computed here; the
//! results are tested against the plain loop over rounded values.

#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod pack;

use super::Mat;

/// With fewer elements of b, packing costs more than it gains.
const LEAST: usize = 1 << 10;

/// Whether a product with a matrix `b` `[k, n]` is computed from bf16. The number of rows of `a` does not matter, so a row of the result does
/// not depend on the number of rows beside it.
pub(crate) fn pays(k: usize, n: usize) -> bool {
    k * n >= LEAST && k >= 16
}

/// Whether the processor has the instructions.
pub fn is_available() -> bool {
    // Products by tiles need them, too: they pack with them.
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
    check(out, a, b);
    if out.is_empty() || a.columns == 0 {
        if !add {
            out.fill(0.0);
        }
        return;
    }
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the processor has the instructions, and the shapes were checked.
    unsafe {
        if amx::has_tiles() {
            amx::matmul(out, a, b, add);
        } else {
            avx512::matmul(out, a, b, add);
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = add;
}

/// Asserts that the processor has the instructions, and bounds every element that the strides reach.
fn check(out: &[f32], a: Mat<'_>, b: Mat<'_>) {
    assert!(is_available(), "this processor has no products of bf16");
    assert!(
        b.rows == a.columns && out.len() == a.rows * b.columns && a.fits() && b.fits(),
        "matrix product of wrong shapes"
    );
    assert!(a.has_neighbours() && b.has_neighbours(), "matrix without neighbouring elements");
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;
    use crate::scratch::Scratch;
    use half::bf16;
    use proptest::prelude::*;

    type Product = unsafe fn(&mut [f32], Mat<'_>, Mat<'_>, bool);

    /// The implementations that this processor has.
    fn implementations() -> Vec<Product> {
        if !is_available() {
            return Vec::new();
        }
        let tiles = amx::has_tiles().then_some(amx::matmul as Product);
        tiles.into_iter().chain([avx512::matmul as Product]).collect()
    }

    proptest! {
        #[test]
        fn products_agree_with_the_plain_loop_over_rounded_values(
            m in 1usize..140, n in 1usize..80, k in 1usize..900, ta: bool, tb: bool, add: bool
        ) {
            let key = crate::RngKey::new((m * 100_000 + n * 1000 + k) as u64);
            let fill = |s: crate::RngKey, len: usize| (0..len as u64).map(|i| s.normal(i) as f32).collect::<Vec<_>>();
            let (x, y) = (fill(key.fold_in_index(0), m * k), fill(key.fold_in_index(1), k * n));
            let a = if ta { Mat::new(&x, k, m).t() } else { Mat::new(&x, m, k) };
            let b = if tb { Mat::new(&y, n, k).t() } else { Mat::new(&y, k, n) };
            let before = fill(key.fold_in_index(2), m * n);
            let at = |mat: &Mat<'_>, i: usize, j: usize| {
                bf16::from_f32(mat.data[i * mat.row_stride + j * mat.column_stride]).to_f64()
            };
            for product in implementations() {
                let mut out = before.clone();
                check(&out, a, b);
                // SAFETY: the processor has the instructions, and the shapes were checked.
                unsafe { product(&mut out, a, b, add) };
                for (x, (got, before)) in out.iter().zip(&before).enumerate() {
                    let sum: f64 = (0..k).map(|l| at(&a, x / n, l) * at(&b, l, x % n)).sum();
                    let want = sum + if add { f64::from(*before) } else { 0.0 };
                    prop_assert!((f64::from(*got) - want).abs() < 2e-4, "{got} {want}");
                }
            }
        }

        #[test]
        fn a_row_does_not_depend_on_the_rows_beside_it(m in 2usize..70, n in 1usize..70, k in 1usize..500, add: bool) {
            let key = crate::RngKey::new((m * 100_000 + n * 1000 + k) as u64);
            let fill = |s: crate::RngKey, len: usize| (0..len as u64).map(|i| s.normal(i) as f32).collect::<Vec<_>>();
            let (x, y) = (fill(key.fold_in_index(0), m * k), fill(key.fold_in_index(1), k * n));
            let before = fill(key.fold_in_index(2), m * n);
            for product in implementations() {
                let (mut all, mut last) = (before.clone(), before[(m - 1) * n..].to_vec());
                let (a, b) = (Mat::new(&x, m, k), Mat::new(&y, k, n));
                let row = Mat::new(&x[(m - 1) * k..], 1, k);
                check(&all, a, b);
                check(&last, row, b);
                // SAFETY: the processor has the instructions, and the shapes were checked.
                unsafe {
                    product(&mut all, a, b, add);
                    product(&mut last, row, b, add);
                }
                prop_assert_eq!(&all[(m - 1) * n..], &last[..]);
            }
        }
    }
    #[test]
    fn several_blocks_and_strided_views_agree_with_the_plain_loop() {
        let key = crate::RngKey::new(7);
        let fill =
            |i: u64, len: usize| (0..len as u64).map(|j| key.fold_in_index(i).normal(j) as f32).collect::<Vec<_>>();
        let (m, n, k, width) = (129, 1025, 769, 1100);
        let (x, y) = (fill(0, k * width), fill(1, k * width));
        let views = [
            (Mat::strided(&x, m, k, width), Mat::strided(&y, k, n, width)),
            (Mat::strided(&x, k, m, width).t(), Mat::strided(&y[..n * k], n, k, k).t()),
        ];
        for (a, b) in views {
            let rounded = |mat: &Mat<'_>, i: usize, j: usize| {
                bf16::from_f32(mat.data[i * mat.row_stride + j * mat.column_stride]).to_f64()
            };
            for product in implementations() {
                let mut out = vec![0.0; m * n];
                check(&out, a, b);
                // SAFETY: the processor has the instructions, and the shapes were checked.
                unsafe { product(&mut out, a, b, false) };
                for (x, got) in out.iter().enumerate().step_by(37) {
                    let want: f64 = (0..k).map(|l| rounded(&a, x / n, l) * rounded(&b, l, x % n)).sum();
                    assert!((f64::from(*got) - want).abs() < 2e-4, "{x}: {got} {want}");
                }
            }
        }
    }

    /// Leaves buffers of NaN behind, as an earlier product may.
    fn leave_dirty_buffers() {
        let dirty = |power: u32| {
            let mut buffer = Scratch::take(1 << power);
            buffer.fill(f32::NAN);
            buffer
        };
        let buffers: Vec<Scratch> = (6..16).flat_map(|power| [power, power]).map(dirty).collect();
        drop(buffers);
    }

    #[test]
    fn infinity_and_stale_values_of_a_buffer_do_not_reach_other_rows() {
        let (m, n, k) = (20, 20, 33);
        let (mut x, y) = (vec![1.0; m * k], vec![1.0; k * n]);
        x[5 * k + k - 1] = f32::INFINITY;
        for product in implementations() {
            leave_dirty_buffers();
            let mut out = vec![0.0; m * n];
            let (a, b) = (Mat::new(&x, m, k), Mat::new(&y, k, n));
            check(&out, a, b);
            // SAFETY: the processor has the instructions, and the shapes were checked.
            unsafe { product(&mut out, a, b, false) };
            for (row, values) in out.chunks_exact(n).enumerate() {
                let want = if row == 5 { f32::INFINITY } else { k as f32 };
                assert!(values.iter().all(|&value| value.to_bits() == want.to_bits()), "{row}: {values:?}");
            }
        }
    }

    #[test]
    fn a_product_without_elements_or_without_terms_is_defined() {
        if is_available() {
            matmul(&mut [], Mat::new(&[0.0; 15], 3, 5), Mat::new(&[], 5, 0), false);
            matmul(&mut [], Mat::new(&[], 0, 5), Mat::new(&[0.0; 15], 5, 3), true);
            let mut out = [1.0; 6];
            matmul(&mut out, Mat::new(&[], 2, 0), Mat::new(&[], 0, 3), true);
            assert!(out.iter().all(|&value| value > 0.0));
            matmul(&mut out, Mat::new(&[], 2, 0), Mat::new(&[], 0, 3), false);
            assert!(out.iter().all(|&value| value.to_bits() == 0));
        }
    }
}
