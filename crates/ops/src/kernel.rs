//! The arithmetic under the fused operators: matrix products, exponentials, row sums. The only module with `unsafe`: one
//! call into `gemm`, whose bounds are checked here and whose result is tested against the plain loop, one into the
//! environment, and one into the allocator's options.

#![allow(unsafe_code)]

use multiversion::multiversion;

const THREADS: &str = "RAYON_NUM_THREADS";

/// Gives the operators as many threads as `RAYON_NUM_THREADS` says, or the machine has, and candle one: its own pool spins
/// while it waits, which costs more than it brings beside rayon's. Call it before any thread starts; later calls do nothing.
pub fn start_threads() {
    static STARTED: std::sync::Once = std::sync::Once::new();
    STARTED.call_once(set_threads);
}

fn set_threads() {
    let asked = std::env::var(THREADS).ok().and_then(|text| text.parse().ok()).filter(|&n| n > 0);
    let threads = asked.or_else(|| std::thread::available_parallelism().ok().map(usize::from)).unwrap_or(1);
    // A pool that stands already keeps its size.
    let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
    // SAFETY: rayon's threads read no environment, and by contract of this function no others run yet.
    unsafe { std::env::set_var(THREADS, "1") };
}

/// Tells mimalloc, where it is the program's allocator, to keep memory that is freed: steps free and ask for the same large
/// blocks over and over, and the system would clear each anew. Call it in `main` of programs that train.
pub fn keep_memory() {
    // `mi_option_purge_delay` of mimalloc.h, for which the crate has no name; -1 means never.
    const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
    // SAFETY: the call stores a number in the allocator's table of options, of which 15 is one in versions 2 and 3.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, -1) };
}

/// The threads that operators use.
pub fn threads() -> usize {
    rayon::current_num_threads()
}

/// A matrix in a slice, with its strides in elements.
#[derive(Clone, Copy)]
pub(crate) struct Mat<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Mat<'a> {
    /// `rows` x `columns`, row after row.
    pub fn new(data: &'a [f32], rows: usize, columns: usize) -> Self {
        Self { data, rows, columns, row_stride: columns, column_stride: 1 }
    }

    /// `rows` x `columns`, rows `row_stride` apart.
    pub fn strided(data: &'a [f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        Self { data, rows, columns, row_stride, column_stride: 1 }
    }

    /// The transposed view.
    pub fn t(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    fn fits(&self) -> bool {
        let last = (self.rows.max(1) - 1) * self.row_stride + (self.columns.max(1) - 1) * self.column_stride;
        self.rows * self.columns == 0 || last < self.data.len()
    }
}

/// out = a b, or out += a b when `add`; `out` is row after row. On one thread, so the order of sums is fixed.
pub(crate) fn matmul(out: &mut [f32], a: Mat<'_>, b: Mat<'_>, add: bool) {
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

/// `to` `[columns, rows]` becomes the transpose of `from` `[rows, columns]`. A product whose right matrix is transposed first
/// is faster than one of a transposed view as soon as it is used a few times.
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

/// e^x to about one unit in the last place; 0 below -87.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Cody and Waite's reduction, then the polynomial of Cephes' expf.
    let clamped = x.clamp(-87.3, 88.3);
    // Adding 1.5 * 2^23 rounds to the nearest integer in every vector width, and leaves it in the low bits: a cast to an
    // integer would be done value by value.
    let magic = 12_582_912.0f32;
    let rounded = clamped * std::f32::consts::LOG2_E + magic;
    let n = rounded - magic;
    let r = clamped - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let mut p = 1.987_569_1e-4f32;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let power = f32::from_bits(rounded.to_bits().wrapping_add(127) << 23);
    let value = (p * r * r + r + 1.0) * power;
    if x < -87.3 { 0.0 } else { value }
}

/// The error function to about 3e-7 (the rational approximation of Eigen's float path).
#[inline(always)]
pub(crate) fn erf(x: f32) -> f32 {
    let x = x.clamp(-4.0, 4.0);
    let y = x * x;
    let mut p = -2.726_142_3e-10f32;
    p = p * y + 2.770_681_4e-8;
    p = p * y - 2.101_024e-6;
    p = p * y - 5.692_506_4e-5;
    p = p * y - 7.349_906_3e-4;
    p = p * y - 2.954_6e-3;
    p = p * y - 1.609_603_3e-2;
    let mut q = -1.456_607_2e-5f32;
    q = q * y - 2.133_740_6e-4;
    q = q * y - 1.682_827e-3;
    q = q * y - 7.373_329e-3;
    q = q * y - 1.426_474e-2;
    x * p / q
}

const LANES: usize = 16;

/// The first half added to the second. A function of fixed lengths: a loop over them keeps the lanes in memory.
#[inline(always)]
fn halved<const N: usize, const HALF: usize>(lanes: [f32; N]) -> [f32; HALF] {
    std::array::from_fn(|l| lanes[l] + lanes[l + HALF])
}

/// Halves added to halves: four steps that depend on each other instead of fifteen.
#[inline(always)]
fn tree_sum(lanes: [f32; LANES]) -> f32 {
    let four = halved::<8, 4>(halved::<LANES, 8>(lanes));
    (four[0] + four[2]) + (four[1] + four[3])
}

/// Sum of products, in sixteen partial sums.
#[inline(always)]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (a_blocks, a_rest) = a.as_chunks::<LANES>();
    let (b_blocks, b_rest) = b.as_chunks::<LANES>();
    for (x, y) in a_blocks.iter().zip(b_blocks) {
        for l in 0..LANES {
            lanes[l] += x[l] * y[l];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(x, y)| x * y).sum();
    tree_sum(lanes) + rest
}

/// Sum, in sixteen partial sums.
#[inline(always)]
pub(crate) fn sum(a: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (blocks, rest) = a.as_chunks::<LANES>();
    for x in blocks {
        for l in 0..LANES {
            lanes[l] += x[l];
        }
    }
    tree_sum(lanes) + rest.iter().sum::<f32>()
}

/// The greatest, -inf of none; in sixteen partial results, because a fold through `f32::max` stays scalar.
#[inline(always)]
pub(crate) fn max(a: &[f32]) -> f32 {
    let greater = |x: f32, y: f32| if x > y { x } else { y };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (blocks, rest) = a.as_chunks::<LANES>();
    for x in blocks {
        for l in 0..LANES {
            lanes[l] = greater(x[l], lanes[l]);
        }
    }
    lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, greater)
}

/// y += c x.
#[inline(always)]
pub(crate) fn add_scaled(y: &mut [f32], c: f32, x: &[f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += c * x;
    }
}

/// y += c x for rows of a few vectors, whole vectors at a time: of a loop of known short length the compiler makes single
/// values.
#[inline(always)]
pub(crate) fn add_scaled_short(y: &mut [f32], c: f32, x: &[f32]) {
    let (y_blocks, y_rest) = y.as_chunks_mut::<LANES>();
    let (x_blocks, x_rest) = x.as_chunks::<LANES>();
    for (y, x) in y_blocks.iter_mut().zip(x_blocks) {
        *y = std::array::from_fn(|l| y[l] + c * x[l]);
    }
    y_rest.iter_mut().zip(x_rest).for_each(|(y, x)| *y += c * x);
}

/// total += part.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2"))]
pub(crate) fn accumulate(total: &mut [f32], part: &[f32]) {
    for (t, p) in total.iter_mut().zip(part) {
        *t += p;
    }
}

/// total\[c\] += sum over rows of `x` `[rows, c]`.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2"))]
pub(crate) fn add_rows(total: &mut [f32], x: &[f32]) {
    for row in x.chunks_exact(total.len()) {
        for (t, v) in total.iter_mut().zip(row) {
            *t += v;
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

    #[test]
    fn exp_and_erf_agree_with_double_precision() {
        for i in -9000..9000 {
            let x = i as f32 * 0.01;
            if x > -87.0 && x < 88.0 {
                let want = f64::from(x).exp();
                assert!((f64::from(exp(x)) / want - 1.0).abs() < 3e-7, "exp({x})");
            }
        }
        assert!(exp(f32::NEG_INFINITY).abs() < f32::MIN_POSITIVE);
        // Values of the error function from Abramowitz and Stegun, table 7.1.
        for (x, want) in [(0.0, 0.0), (0.5, 0.520_499_9), (1.0, 0.842_700_8), (1.5, 0.966_105_1), (2.0, 0.995_322_3)] {
            assert!((erf(x) - want).abs() < 5e-7 && (erf(-x) + want).abs() < 5e-7, "erf({x}) = {}", erf(x));
        }
        assert!((erf(6.0) - 1.0).abs() < 5e-7);
    }
}
