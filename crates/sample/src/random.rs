//! The random numbers of the sample world. Every purpose and index has its own generator, so that another draw in one place changes nothing
//! elsewhere.

use rand_xoshiro::SplitMix64;
use rand_xoshiro::rand_core::{RngCore, SeedableRng};

/// The constant that SplitMix64 adds to its state at every step. It is subtracted first if one step is used to mix a number.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// A generator with the distributions that the shop needs.
#[derive(Clone, Debug)]
pub(crate) struct Rng(SplitMix64);

/// The seed of the generator for a purpose and an index: the world's seed, the FNV-1a hash of the purpose and the index, mixed one after
/// the other.
fn seed_of(seed: u64, purpose: &str, index: usize) -> u64 {
    let mix = |number: u64| SplitMix64::seed_from_u64(number.wrapping_sub(STEP)).next_u64();
    let purpose = purpose
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    mix(mix(mix(seed) ^ purpose) ^ index as u64)
}

impl Rng {
    /// The generator for a purpose and an index under `seed`.
    pub(crate) fn new(seed: u64, purpose: &str, index: usize) -> Self {
        Self(SplitMix64::seed_from_u64(seed_of(seed, purpose, index)))
    }

    /// Uniform in [0, 1).
    pub(crate) fn unit(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
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

    /// One of the values, uniformly.
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
