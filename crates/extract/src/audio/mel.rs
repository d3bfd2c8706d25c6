//! The log-mel spectrogram: the logarithm of a sound's power in bands of the mel scale.
//!
//! Reference: `WhisperFeatureExtractor` of transformers, which follows librosa: windows of 25 ms every 10 ms (Hann, the sound
//! mirrored at its ends), bands of equal area on Slaney's mel scale up to 8 kHz, and a floor eight powers of ten below the loudest.

use std::sync::Arc;

use realfft::{RealFftPlanner, RealToComplex};

/// The lowest and the highest frequency of the bands, in hertz.
const RANGE: (f64, f64) = (0.0, 8000.0);
/// The minimum power, which replaces smaller values before the logarithm is taken.
const SMALLEST: f64 = 1e-10;

/// Computes log-mel spectrograms.
pub(crate) struct LogMel {
    bands: usize,
    /// The weight of every frequency in a band, `[bands, frequencies]`.
    filters: Vec<f64>,
    window: Vec<f64>,
    transform: Arc<dyn RealToComplex<f64>>,
}

impl LogMel {
    /// The number of samples per second.
    pub const RATE: usize = 16_000;
    /// The number of samples from one step to the next.
    pub const HOP: usize = 160;
    /// The number of samples in a step's window.
    pub const WINDOW: usize = 400;
    /// The number of frequencies in the transform of a window.
    const FREQUENCIES: usize = Self::WINDOW / 2 + 1;

    pub fn new(bands: usize) -> Self {
        let turn = |at: usize| 2.0 * std::f64::consts::PI * at as f64 / Self::WINDOW as f64;
        Self {
            bands,
            filters: filters(bands),
            window: (0..Self::WINDOW).map(|at| 0.5 - 0.5 * turn(at).cos()).collect(),
            transform: RealFftPlanner::new().plan_fft_forward(Self::WINDOW),
        }
    }

    /// The number of bands.
    pub fn bands(&self) -> usize {
        self.bands
    }

    /// The log-mel spectrogram `[bands, steps]` of samples, one step per [`Self::HOP`] samples. There must be more samples than half a
    /// window.
    pub fn of(&self, samples: &[f32]) -> Vec<f32> {
        let steps = samples.len() / Self::HOP;
        let mut spectrum = vec![0.0; self.bands * steps];
        let mut input = self.transform.make_input_vec();
        let mut output = self.transform.make_output_vec();
        let mut loudest = f64::MIN;
        for step in 0..steps {
            let first = (step * Self::HOP) as i64 - (Self::WINDOW / 2) as i64;
            for (at, (value, weight)) in input.iter_mut().zip(&self.window).enumerate() {
                *value = f64::from(samples[mirrored(first + at as i64, samples.len())]) * weight;
            }
            if self.transform.process(&mut input, &mut output).is_err() {
                // The transform refuses only lengths other than the planned ones.
                continue;
            }
            let power: Vec<f64> = output.iter().map(realfft::num_complex::Complex::norm_sqr).collect();
            for (band, filter) in self.filters.chunks_exact(Self::FREQUENCIES).enumerate() {
                let sum: f64 = filter.iter().zip(&power).map(|(weight, power)| weight * power).sum();
                let level = sum.max(SMALLEST).log10();
                loudest = loudest.max(level);
                spectrum[band * steps + step] = level;
            }
        }
        spectrum.into_iter().map(|level| ((level.max(loudest - 8.0) + 4.0) / 4.0) as f32).collect()
    }
}

/// The index of a sample; beyond the ends, it is mirrored at the first or the last one.
fn mirrored(at: i64, count: usize) -> usize {
    let last = count as i64 - 1;
    let at = at.abs();
    (if at > last { 2 * last - at } else { at }).max(0) as usize
}

/// Slaney's mel scale: linear up to 1 kHz, logarithmic above.
fn mel_of(hertz: f64) -> f64 {
    if hertz < 1000.0 { 3.0 * hertz / 200.0 } else { 15.0 + (hertz / 1000.0).ln() * 27.0 / 6.4_f64.ln() }
}

fn hertz_of(mel: f64) -> f64 {
    if mel < 15.0 { 200.0 * mel / 3.0 } else { 1000.0 * ((mel - 15.0) * 6.4_f64.ln() / 27.0).exp() }
}

/// Triangles between neighbouring bands, each of area one, `[bands, frequencies]`.
fn filters(bands: usize) -> Vec<f64> {
    let (low, high) = (mel_of(RANGE.0), mel_of(RANGE.1));
    let edge = |at: usize| hertz_of(low + (high - low) * at as f64 / (bands + 1) as f64);
    let frequency = |at: usize| at as f64 * LogMel::RATE as f64 / LogMel::WINDOW as f64;
    (0..bands)
        .flat_map(|band| {
            let [from, centre, to] = [edge(band), edge(band + 1), edge(band + 2)];
            (0..LogMel::FREQUENCIES).map(move |at| {
                let rising = (frequency(at) - from) / (centre - from);
                let falling = (to - frequency(at)) / (to - centre);
                rising.min(falling).max(0.0) * 2.0 / (to - from)
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mel_scale_matches_known_points_and_round_trips() {
        assert!((mel_of(1000.0) - 15.0).abs() < 1e-12 && (mel_of(6400.0) - 42.0).abs() < 1e-12);
        for hertz in [0.0, 60.0, 999.0, 1000.0, 4000.0, 8000.0] {
            assert!((hertz_of(mel_of(hertz)) - hertz).abs() < 1e-9);
        }
    }

    #[test]
    fn ends_are_mirrored() {
        assert_eq!([-2, -1, 0, 4, 5, 6].map(|at| mirrored(at, 5)), [2, 1, 0, 4, 3, 2]);
    }
}
