//! Counter-based random numbers: every draw is a function of (seed, purpose, index, position), so that adding a draw in
//! one place moves nothing elsewhere.

/// A stream of random numbers, `SplitMix64` over a key.
#[derive(Clone, Debug)]
pub(crate) struct Rng {
    key: u64,
    position: u64,
}

/// The finaliser of `SplitMix64`.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Rng {
    /// The stream of `purpose` number `index` under `seed`.
    pub(crate) fn new(seed: u64, purpose: &str, index: usize) -> Self {
        let purpose = purpose.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        Self { key: mix(mix(mix(seed) ^ purpose) ^ index as u64), position: 0 }
    }

    fn next(&mut self) -> u64 {
        self.position = self.position.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.key.wrapping_add(self.position))
    }

    /// Uniform in [0, 1).
    pub(crate) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Uniform in [low, high).
    pub(crate) fn range(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// Uniform in 0..n; 0 when n is 0.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        ((self.unit() * n as f64) as usize).min(n.saturating_sub(1))
    }

    /// True with probability `p`.
    pub(crate) fn chance(&mut self, p: f64) -> bool {
        self.unit() < p
    }

    /// One of the values.
    pub(crate) fn pick<'a, T: ?Sized>(&mut self, values: &[&'a T]) -> &'a T {
        values[self.below(values.len())]
    }

    /// Exponentially distributed with the given mean.
    pub(crate) fn exponential(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.unit()).ln()
    }

    /// Standard normal (Box-Muller).
    pub(crate) fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }

    /// Moves `count` distinct values, chosen at random, to the front of `values` and returns them.
    pub(crate) fn choose<'a, T>(&mut self, values: &'a mut [T], count: usize) -> &'a [T] {
        let count = count.min(values.len());
        for i in 0..count {
            let j = i + self.below(values.len() - i);
            values.swap(i, j);
        }
        &values[..count]
    }
}
