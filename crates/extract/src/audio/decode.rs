//! Decodes WAV and FLAC files to samples.

use std::io::Cursor;

use mp4sr_artifact::guarded;
use rubato::audioadapter::Adapter;
use rubato::audioadapter_buffers::direct::SequentialSliceOfVecs;
use rubato::{Fft, FixedSync, Resampler, WindowFunction};
use symphonia::core::codecs::audio::AudioDecoderOptions;
use symphonia::core::errors::Error as SymphoniaError;
use symphonia::core::formats::probe::Hint;
use symphonia::core::formats::{FormatOptions, TrackType};
use symphonia::core::io::{MediaSourceStream, MediaSourceStreamOptions};
use symphonia::core::meta::MetadataOptions;

/// The longest sound that is decoded, in seconds. A damaged file can claim to last for days.
const LONGEST: u64 = 3600;
/// The maximum number of samples that are decoded, an hour at 48,000 Hz: an hour at the highest rate would take 16 GB.
const MOST_SAMPLES: u64 = 48_000 * LONGEST;
/// The sampling rates that are resampled, in hertz.
const RATES: std::ops::RangeInclusive<u32> = 4000..=384_000;
/// The number of samples that the resampler takes at once.
const BLOCK: usize = 1024;

/// The reasons why a sound file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AudioError {
    /// The file is empty.
    #[error("it is empty; fetch it again")]
    Empty,
    /// The file is neither WAV nor FLAC, or has a codec that is not supported.
    #[error("it is neither WAV nor FLAC ({0}); convert it")]
    Format(String),
    /// The file is damaged or cut off.
    #[error("it is damaged ({0}); fetch it again")]
    Damaged(String),
    /// The file has no samples.
    #[error("it has no samples; fetch it again")]
    NoSamples,
    /// The sound is longer than an hour, or has too many samples.
    #[error(
        "it is longer than {LONGEST} seconds, or has more than {MOST_SAMPLES} samples; shorten it, or resample it to 16000 Hz"
    )]
    TooLong,
    /// The sampling rate cannot be resampled.
    #[error(
        "its sampling rate of {} Hz cannot be used ({} to {} Hz are supported); resample it to 16000 Hz",
        .0, RATES.start(), RATES.end()
    )]
    Rate(u32),
    /// A sample is not finite.
    #[error("it has samples that are not finite; encode it again")]
    NotFinite,
    /// The decoder panicked.
    #[error("the decoder failed on it; convert it with another program")]
    Panic,
}

/// Decodes a WAV or FLAC file to samples between -1 and 1 at `rate` per second. Channels are averaged, and other rates are resampled (FFT,
/// rubato).
pub fn decode(bytes: &[u8], rate: usize) -> Result<Vec<f32>, AudioError> {
    if bytes.is_empty() {
        return Err(AudioError::Empty);
    }
    guarded(|| {
        let (samples, found) = mono(bytes)?;
        if samples.is_empty() {
            return Err(AudioError::NoSamples);
        }
        if !samples.iter().all(|sample| sample.is_finite()) {
            return Err(AudioError::NotFinite);
        }
        if found as usize == rate { Ok(samples) } else { resampled(samples, found, rate) }
    })
    .unwrap_or(Err(AudioError::Panic))
}

/// The mean of the channels, and the rate.
fn mono(bytes: &[u8]) -> Result<(Vec<f32>, u32), AudioError> {
    let format = |error: &SymphoniaError| AudioError::Format(error.to_string());
    let damaged = |error: &SymphoniaError| AudioError::Damaged(error.to_string());
    let source = MediaSourceStream::new(Box::new(Cursor::new(bytes.to_vec())), MediaSourceStreamOptions::default());
    let mut reader = symphonia::default::get_probe()
        .probe(&Hint::new(), source, FormatOptions::default(), MetadataOptions::default())
        .map_err(|e| format(&e))?;
    let unknown = || AudioError::Format("it has no audio track".to_owned());
    let track = reader.default_track(TrackType::Audio).ok_or_else(unknown)?;
    let (number, expected) = (track.id, track.num_frames);
    let parameters = track.codec_params.as_ref().and_then(|codec| codec.audio()).ok_or_else(unknown)?;
    let rate = parameters.sample_rate.ok_or_else(unknown)?;
    if !RATES.contains(&rate) {
        return Err(AudioError::Rate(rate));
    }
    let mut decoder = symphonia::default::get_codecs()
        .make_audio_decoder(parameters, &AudioDecoderOptions::default())
        .map_err(|e| format(&e))?;
    let (mut samples, mut block): (Vec<f32>, Vec<f32>) = (Vec::new(), Vec::new());
    while let Some(packet) = reader.next_packet().map_err(|e| damaged(&e))? {
        if packet.track_id != number {
            continue;
        }
        let sound = decoder.decode(&packet).map_err(|e| damaged(&e))?;
        let channels = sound.num_planes().max(1);
        sound.copy_to_vec_interleaved(&mut block);
        samples.extend(block.chunks_exact(channels).map(|values| values.iter().sum::<f32>() / channels as f32));
        if samples.len() as u64 > MOST_SAMPLES.min(u64::from(rate) * LONGEST) {
            return Err(AudioError::TooLong);
        }
    }
    match expected.filter(|&expected| expected > samples.len() as u64) {
        Some(expected) => Err(AudioError::Damaged(format!("{} of {expected} samples are present", samples.len()))),
        None => Ok((samples, rate)),
    }
}

fn resampled(samples: Vec<f32>, from: u32, to: usize) -> Result<Vec<f32>, AudioError> {
    let refused = || AudioError::Rate(from);
    let count = samples.len();
    let channel = [samples.into_iter().map(f64::from).collect::<Vec<f64>>()];
    let input = SequentialSliceOfVecs::new(&channel, 1, count).map_err(|_| refused())?;
    // The output is delayed by half a block. If a block is an even number of the smallest blocks, the delay is a whole number of samples,
    // which `process_all` cuts off; otherwise a delay of half a sample would remain.
    let smallest = from as usize / greatest_common_divisor(from as usize, to);
    let block = BLOCK.next_multiple_of(2 * smallest);
    let window = WindowFunction::BlackmanHarris2;
    let mut resampler =
        Fft::<f64>::new_custom(from as usize, to, block, 1, 1, window, FixedSync::Input).map_err(|_| refused())?;
    let output = resampler.process_all(&input, count, None).map_err(|_| refused())?;
    Ok((0..output.frames()).map(|at| output.read_sample(0, at).unwrap_or(0.0) as f32).collect())
}

fn greatest_common_divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A WAV file of 16-bit samples with `channels` identical channels.
    fn wav(samples: &[i16], rate: u32, channels: u16) -> Vec<u8> {
        let data = samples.len() as u32 * 2 * u32::from(channels);
        let mut bytes = b"RIFF".to_vec();
        bytes.extend((36 + data).to_le_bytes());
        bytes.extend(b"WAVEfmt \x10\0\0\0\x01\0");
        bytes.extend(channels.to_le_bytes());
        bytes.extend(rate.to_le_bytes());
        bytes.extend((rate * 2 * u32::from(channels)).to_le_bytes());
        bytes.extend((2 * channels).to_le_bytes());
        bytes.extend(b"\x10\0data");
        bytes.extend(data.to_le_bytes());
        for sample in samples {
            (0..channels).for_each(|_| bytes.extend(sample.to_le_bytes()));
        }
        bytes
    }

    fn sine(rate: u32, seconds: f64) -> Vec<i16> {
        let count = (f64::from(rate) * seconds) as usize;
        let at = |at: usize| (2.0 * std::f64::consts::PI * 440.0 * at as f64 / f64::from(rate)).sin();
        (0..count).map(|sample| (at(sample) * 16_000.0).round() as i16).collect()
    }

    #[test]
    fn samples_are_exact_and_channels_are_averaged() {
        let found = decode(&wav(&[0, 16_384, -32_768], 16_000, 2), 16_000).unwrap();
        assert_eq!(found, [0.0, 0.5, -1.0]);
    }

    #[test]
    fn a_tone_at_another_rate_is_the_same_tone() {
        for rate in [8000, 22_050, 44_100, 48_000] {
            let found = decode(&wav(&sine(rate, 1.0), rate, 1), 16_000).unwrap();
            assert!(found.len().abs_diff(16_000) <= 1, "{rate}: {}", found.len());
            let expected = decode(&wav(&sine(16_000, 1.0), 16_000, 1), 16_000).unwrap();
            // The ends are left out, because the tone starts and stops abruptly.
            let apart = (2000..14_000).map(|at| (found[at] - expected[at]).abs()).fold(0.0, f32::max);
            assert!(apart < 2e-4, "{rate}: {apart}");
        }
    }

    #[test]
    fn unusable_files_are_reported_with_the_reason() {
        let reason = |bytes: &[u8]| decode(bytes, 16_000).unwrap_err().to_string();
        assert_eq!(reason(b""), "it is empty; fetch it again");
        assert!(reason(b"\x89PNG\r\n\x1a\n, and so on").starts_with("it is neither WAV nor FLAC"));
        assert_eq!(reason(&wav(&[], 16_000, 1)), "it has no samples; fetch it again");
        assert_eq!(
            reason(&wav(&[1; 100], 1000, 1)),
            "its sampling rate of 1000 Hz cannot be used (4000 to 384000 Hz are supported); resample it to 16000 Hz"
        );
        let whole = wav(&sine(16_000, 1.0), 16_000, 1);
        assert!(
            reason(&whole[..whole.len() / 2]).starts_with("it is damaged"),
            "{}",
            reason(&whole[..whole.len() / 2])
        );
    }
}
