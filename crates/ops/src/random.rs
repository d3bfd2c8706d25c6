//! Random numbers that a key and a counter determine, so that they do not depend on the order in which they are drawn.

/// A key from which random numbers are derived: it depends on a seed, a name, an epoch, a step and so on, and each of its numbers has an
/// index. Keys have no state that advances, so any part of a run can be recomputed independently.
///
/// ```
/// use mp4sr_ops::RngKey;
///
/// let dropout = RngKey::new(2020).fold_in("dropout");
/// let step = dropout.fold_in_index(7);
/// assert_eq!(step.bits(0), dropout.fold_in_index(7).bits(0), "the same names give the same numbers");
/// assert_ne!(step.bits(0), dropout.fold_in_index(8).bits(0));
/// assert!((0.0..1.0).contains(&step.uniform(3)));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RngKey(u64);

impl RngKey {
    /// The key of a seed.
    pub fn new(seed: u64) -> Self {
        Self(mix64(seed ^ 0x6d70_3473_7221_5eed))
    }

    /// Derives a key for a named purpose.
    #[must_use]
    pub fn fold_in(self, name: &str) -> Self {
        name.bytes().fold(self.fold_in_index(name.len() as u64), |key, byte| key.fold_in_index(u64::from(byte)))
    }

    /// Derives a key for an epoch, a step or an item.
    #[must_use]
    pub fn fold_in_index(self, index: u64) -> Self {
        Self(mix64(self.0 ^ mix64(index.wrapping_add(0x9e37_79b9_7f4a_7c15))))
    }

    /// 64 random bits.
    pub fn bits(self, index: u64) -> u64 {
        mix64(self.0.wrapping_add(mix64(index.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d)))
    }

    /// Uniform in [0, 1), in steps of 2^-53.
    pub fn uniform(self, index: u64) -> f64 {
        (self.bits(index) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Standard normal (Box-Muller).
    pub fn normal(self, index: u64) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform(2 * index)).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform(2 * index + 1)).cos()
    }

    /// A permutation of 0..n (Fisher-Yates).
    pub fn permutation(self, n: usize) -> Vec<u32> {
        let mut order: Vec<u32> = (0..n as u32).collect();
        for i in (1..n).rev() {
            // The upper half of the product of 64 random bits and the bound is uniform up to 2^-64.
            let j = ((u128::from(self.bits(i as u64)) * (i as u128 + 1)) >> 64) as usize;
            order.swap(i, j);
        }
        order
    }

    /// Dropout with probability `p`, drawn from this key.
    pub fn dropout(self, p: f64) -> Dropout {
        Dropout::new(p, self)
    }
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014).
fn mix64(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Inverted dropout whose mask is a function of a key and the element's index, so that backward can draw it again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    threshold: u32,
    scale: f32,
    keys: [u32; 2],
}

impl Dropout {
    /// No dropout.
    pub const NONE: Self = Self { threshold: 0, scale: 1.0, keys: [0, 0] };

    fn new(p: f64, key: RngKey) -> Self {
        if p <= 0.0 {
            return Self::NONE;
        }
        let threshold = (p * 4_294_967_296.0).min(4_294_967_295.0) as u32;
        let bits = key.bits(0);
        Self { threshold, scale: (1.0 / (1.0 - p)) as f32, keys: [bits as u32, (bits >> 32) as u32] }
    }

    /// Whether any element can be dropped.
    pub fn is_active(self) -> bool {
        self.threshold > 0
    }

    /// The threshold, the scale and the keys, from which a kernel draws the same masks.
    #[cfg(feature = "cuda")]
    pub(crate) fn parts(self) -> (u32, f32, [u32; 2]) {
        (self.threshold, self.scale, self.keys)
    }

    /// The factor of element `index`: 0, or 1 / (1 - p). Callers wrap larger indices at 2^32.
    #[inline(always)]
    pub fn factor(self, index: u32) -> f32 {
        let bits = keyed_mix32(index, self.keys);
        if bits >= self.threshold { self.scale } else { 0.0 }
    }
}

/// An integer hash with low bias (Wellons, "Prospecting for Hash Functions", 2018), with a key before each of its rounds. It is a 32-bit
/// hash so that it vectorises.
#[inline(always)]
fn keyed_mix32(x: u32, keys: [u32; 2]) -> u32 {
    let x = x ^ keys[0];
    let x = (x ^ (x >> 16)).wrapping_mul(0x7feb_352d) ^ keys[1];
    let x = (x ^ (x >> 15)).wrapping_mul(0x846c_a68b);
    x ^ (x >> 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_differ_by_seed_name_and_index() {
        let base = RngKey::new(1);
        let streams = [
            base,
            RngKey::new(2),
            base.fold_in("a"),
            base.fold_in("b"),
            base.fold_in("ab"),
            base.fold_in_index(0),
            base.fold_in_index(1),
        ];
        for (i, a) in streams.iter().enumerate() {
            assert_eq!(a.bits(3), a.bits(3));
            for b in &streams[i + 1..] {
                assert_ne!(a.bits(3), b.bits(3));
            }
        }
        assert_ne!(base.fold_in("a").fold_in_index(1).bits(0), base.fold_in_index(1).fold_in("a").bits(0));
    }

    #[test]
    fn uniform_and_normal_have_the_expected_moments() {
        let key = RngKey::new(7).fold_in("moments");
        let n = 200_000u64;
        let mean = |f: &dyn Fn(u64) -> f64| (0..n).map(f).sum::<f64>() / n as f64;
        // The bounds are five standard errors.
        assert!((mean(&|i| key.uniform(i)) - 0.5).abs() < 5.0 * 0.2887 / (n as f64).sqrt());
        assert!(mean(&|i| key.normal(i)).abs() < 5.0 / (n as f64).sqrt());
        assert!((mean(&|i| key.normal(i).powi(2)) - 1.0).abs() < 5.0 * std::f64::consts::SQRT_2 / (n as f64).sqrt());
    }

    #[test]
    fn a_permutation_holds_every_index_and_moves_each_anywhere() {
        let mut first = [0u32; 6];
        for seed in 0..6000 {
            let order = RngKey::new(seed).permutation(6);
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, [0, 1, 2, 3, 4, 5]);
            first[order[0] as usize] += 1;
        }
        // 1000 are expected each; the bound is five standard deviations.
        assert!(
            first.iter().all(|&c| (f64::from(c) - 1000.0).abs() < 5.0 * (6000.0f64 * 5.0 / 36.0).sqrt()),
            "{first:?}"
        );
    }

    #[test]
    fn dropout_drops_the_expected_share_and_keeps_the_mean() {
        let n = 1_000_000u32;
        for p in [0.1, 0.2, 0.5] {
            let dropout = RngKey::new(3).fold_in("dropout").dropout(p);
            let dropped = (0..n).filter(|&i| dropout.factor(i) == 0.0).count() as f64 / f64::from(n);
            assert!((dropped - p).abs() < 5.0 * (p * (1.0 - p) / f64::from(n)).sqrt(), "{p} {dropped}");
            // Neighbours are independent: pairs are dropped with probability p^2.
            let pairs = (1..n).filter(|&i| dropout.factor(i) == 0.0 && dropout.factor(i - 1) == 0.0).count() as f64
                / f64::from(n);
            assert!((pairs - p * p).abs() < 5.0 * (p * p * (1.0 - p * p) / f64::from(n)).sqrt() * 1.5, "{p} {pairs}");
        }
        assert_eq!(RngKey::new(3).dropout(0.0), Dropout::NONE);
    }
}
