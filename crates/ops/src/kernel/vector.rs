//! Exponentials, the error function, and sums over slices, written so that they vectorise.

use multiversion::multiversion;

/// e^x to about one unit in the last place; 0 below -87.3, and constant above 88.3.
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

/// Adds the first half to the second. The lengths are fixed at compile time, because a loop over them would keep the lanes in memory.
#[inline(always)]
fn halved<const N: usize, const HALF: usize>(lanes: [f32; N]) -> [f32; HALF] {
    std::array::from_fn(|l| lanes[l] + lanes[l + HALF])
}

/// Adds halves to halves: four steps that depend on each other instead of fifteen.
#[inline(always)]
fn tree_sum(lanes: [f32; LANES]) -> f32 {
    let four = halved::<8, 4>(halved::<LANES, 8>(lanes));
    (four[0] + four[2]) + (four[1] + four[3])
}

/// The inner product, in sixteen partial sums.
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

/// The sum, in sixteen partial sums.
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

/// The largest value, or -inf of no values; in sixteen partial results, because a fold through `f32::max` stays scalar.
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

/// y += c x for rows of a few vectors, one whole vector at a time: the compiler generates scalar code for a loop with a known short length.
#[inline(always)]
pub(crate) fn add_scaled_short(y: &mut [f32], c: f32, x: &[f32]) {
    let (y_blocks, y_rest) = y.as_chunks_mut::<LANES>();
    let (x_blocks, x_rest) = x.as_chunks::<LANES>();
    for (y, x) in y_blocks.iter_mut().zip(x_blocks) {
        *y = std::array::from_fn(|l| y[l] + c * x[l]);
    }
    y_rest.iter_mut().zip(x_rest).for_each(|(y, x)| *y += c * x);
}

/// y += the sum of c x over weighted rows, in order. Columns are processed four vectors at a time, whose sums stay in registers: the
/// compiler turns a loop over the vectors of a row into gathers.
#[inline(always)]
pub(crate) fn add_weighted_rows<'a>(y: &mut [f32], rows: impl Iterator<Item = (f32, &'a [f32])> + Clone) {
    let (whole, rest) = y.as_chunks_mut::<{ 4 * LANES }>();
    for (block, y) in whole.iter_mut().enumerate() {
        add_weighted_columns(y, block * 4 * LANES, rows.clone());
    }
    if !rest.is_empty() {
        let from = whole.len() * 4 * LANES;
        for (c, x) in rows {
            add_scaled_short(rest, c, &x[from..]);
        }
    }
}

/// Four vectors of [`add_weighted_rows`], for the columns from `at` on. The sums are separate variables, because an array of them would be
/// kept in memory.
#[inline(always)]
fn add_weighted_columns<'a>(y: &mut [f32; 4 * LANES], at: usize, rows: impl Iterator<Item = (f32, &'a [f32])>) {
    let (y, _) = y.as_chunks_mut::<LANES>();
    let [y0, y1, y2, y3] = y else { return };
    let (mut s0, mut s1, mut s2, mut s3) = (*y0, *y1, *y2, *y3);
    for (c, x) in rows {
        let (x, _) = x[at..at + 4 * LANES].as_chunks::<LANES>();
        let [x0, x1, x2, x3] = x else { return };
        for l in 0..LANES {
            s0[l] += c * x0[l];
        }
        for l in 0..LANES {
            s1[l] += c * x1[l];
        }
        for l in 0..LANES {
            s2[l] += c * x2[l];
        }
        for l in 0..LANES {
            s3[l] += c * x3[l];
        }
    }
    (*y0, *y1, *y2, *y3) = (s0, s1, s2, s3);
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
