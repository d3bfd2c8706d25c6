//! Resizes as Pillow does, exact to the level. Encoders were trained on its pixels, and the filters of other libraries round differently.
//!
//! There is a horizontal and a vertical pass, each of which rounds to whole levels. A filter is widened by the factor by which the image
//! shrinks, and its weights are fixed-point numbers of 22 bits. Reference: `Image.resize` of 8-bit images in Pillow 13, which starts with
//! the vertical pass if that removes more than twice as many rows as the horizontal pass removes columns; earlier releases always started
//! with the horizontal pass.

use image::RgbImage;

/// The number of fractional bits of a weight.
const PRECISION: u32 = 22;

/// The kernel of a resize.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Filter {
    /// The pixel under the centre; nothing is averaged.
    Nearest,
    Lanczos,
    Bilinear,
    Bicubic,
}

impl Filter {
    fn support(self) -> f64 {
        match self {
            Self::Nearest => 0.5,
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    fn value(self, x: f64) -> f64 {
        let x = x.abs();
        match self {
            // Its pixels are selected and not weighted.
            Self::Nearest => 1.0,
            Self::Lanczos if x < 3.0 => sinc(x) * sinc(x / 3.0),
            Self::Bilinear => (1.0 - x).max(0.0),
            // Keys' cubic with a = -1/2.
            Self::Bicubic if x < 1.0 => (1.5 * x - 2.5) * x * x + 1.0,
            Self::Bicubic if x < 2.0 => ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0,
            Self::Bicubic | Self::Lanczos => 0.0,
        }
    }
}

fn sinc(x: f64) -> f64 {
    let x = x * std::f64::consts::PI;
    if x == 0.0 { 1.0 } else { x.sin() / x }
}

/// The weights of the source pixels of one pixel: the index of the first of them, and 22-bit fixed-point numbers.
struct Taps {
    first: usize,
    weights: Vec<i32>,
}

/// The taps of the pixels `range` if `from` pixels are resized to `to` pixels.
fn taps(from: u32, to: u32, filter: Filter, range: std::ops::Range<u32>) -> Vec<Taps> {
    let scale = f64::from(from) / f64::from(to);
    if filter == Filter::Nearest {
        return range.map(|at| Taps { first: nearest(from, to, at), weights: vec![1 << PRECISION] }).collect();
    }
    let stretch = scale.max(1.0);
    let support = filter.support() * stretch;
    range
        .map(|at| {
            let centre = (f64::from(at) + 0.5) * scale;
            let first = ((centre - support + 0.5) as i64).max(0);
            let last = ((centre + support + 0.5) as i64).min(i64::from(from));
            let weights: Vec<f64> =
                (first..last).map(|x| filter.value((x as f64 - centre + 0.5) * (1.0 / stretch))).collect();
            let total: f64 = weights.iter().sum();
            let total = if total == 0.0 { 1.0 } else { total };
            let fixed = |weight: f64| {
                let scaled = weight / total * f64::from(1 << PRECISION);
                (if scaled < 0.0 { scaled - 0.5 } else { scaled + 0.5 }) as i32
            };
            Taps { first: first as usize, weights: weights.into_iter().map(fixed).collect() }
        })
        .collect()
}

/// The pixel that the nearest filter selects. The reference adds the scale up, which rounds every sum.
fn nearest(from: u32, to: u32, at: u32) -> usize {
    let scale = f64::from(from) / f64::from(to);
    let centre = (0..at).fold(scale * 0.5, |position, _| position + scale);
    (centre as usize).min(from as usize - 1)
}

/// The `wanted` pixels from `start` on, or all `to` pixels if there are no more than that.
fn part(to: u32, wanted: u32, start: u32) -> std::ops::Range<u32> {
    if to <= wanted { 0..to } else { start..start + wanted }
}

/// Resizes `image` to (width, height), but computes only a part of `shown` (width, height) pixels from `start` (column, row) on. In a
/// dimension that has fewer pixels than `shown`, the result has all of them.
pub(crate) fn resize(
    image: &RgbImage,
    (width, height): (u32, u32),
    filter: Filter,
    shown: (u32, u32),
    start: (u32, u32),
) -> RgbImage {
    let (from_width, from_height) = image.dimensions();
    let columns = taps(from_width, width, filter, part(width, shown.0, start.0));
    let rows = taps(from_height, height, filter, part(height, shown.1, start.1));
    let (taken_rows, taken_columns) =
        (i64::from(from_height) - i64::from(height), i64::from(from_width) - i64::from(width));
    let is_vertical_first = taken_rows > 0 && taken_rows > 2 * taken_columns;
    let pixels = if is_vertical_first {
        let used = used(&columns);
        let needed = |line: &[u8]| line[used.start * 3..used.end * 3].to_vec();
        let lines: Vec<u8> = image.as_raw().chunks_exact(from_width as usize * 3).flat_map(needed).collect();
        across(&down(&lines, used.len(), &rows, 0), used.len(), &columns, used.start)
    } else {
        let used = used(&rows);
        let stride = from_width as usize * 3;
        let lines = across(&image.as_raw()[used.start * stride..used.end * stride], from_width as usize, &columns, 0);
        down(&lines, columns.len(), &rows, used.start)
    };
    let (width, height) = (columns.len() as u32, rows.len() as u32);
    RgbImage::from_raw(width, height, pixels).unwrap_or_else(|| RgbImage::new(width, height))
}

/// The range of pixels that the taps use.
fn used(taps: &[Taps]) -> std::ops::Range<usize> {
    let first = taps.iter().map(|taps| taps.first).min().unwrap_or(0);
    first..taps.iter().map(|taps| taps.first + taps.weights.len()).max().unwrap_or(0)
}

/// Applies the columns' taps to every line of `width` pixels. Lines begin at pixel `first` of the image.
fn across(lines: &[u8], width: usize, columns: &[Taps], first: usize) -> Vec<u8> {
    let lines = lines.chunks_exact(width * 3);
    lines.flat_map(|line| columns.iter().flat_map(move |taps| pixel(line, taps, first))).collect()
}

/// Applies the rows' taps to lines of `width` pixels. The lines begin at line `first` of the image.
fn down(lines: &[u8], width: usize, rows: &[Taps], first: usize) -> Vec<u8> {
    let mut sums = vec![0_i32; width * 3];
    rows.iter().flat_map(|row| line(lines, row, first, &mut sums)).collect()
}

/// Computes one pixel from a line, which begins at pixel `first` of the image.
fn pixel(line: &[u8], taps: &Taps, first: usize) -> [u8; 3] {
    let mut sums = [1_i32 << (PRECISION - 1); 3];
    for (pixel, weight) in line[(taps.first - first) * 3..].as_chunks::<3>().0.iter().zip(&taps.weights) {
        for channel in 0..3 {
            sums[channel] += i32::from(pixel[channel]) * weight;
        }
    }
    sums.map(level)
}

/// Computes one line from several lines, of which the first is line `first` of the image. `sums` is scratch space.
fn line(lines: &[u8], taps: &Taps, first: usize, sums: &mut [i32]) -> Vec<u8> {
    sums.fill(1 << (PRECISION - 1));
    let lines = lines[(taps.first - first) * sums.len()..].chunks_exact(sums.len());
    for (line, weight) in lines.zip(&taps.weights) {
        for (sum, &value) in sums.iter_mut().zip(line) {
            *sum += i32::from(value) * weight;
        }
    }
    sums.iter().map(|&sum| level(sum)).collect()
}

fn level(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Red channel of a 13 x 9 image with pixel (x, y) = (37 x + 59 y + 11 x y) mod 256, resized bicubically to 8 x 6
    /// by Pillow 13.0.
    #[test]
    fn bicubic_resizing_matches_pillow() {
        const PILLOW: [[u8; 8]; 6] = include!("../tests/fixtures/pillow_bicubic.txt");
        let image = RgbImage::from_fn(13, 9, |x, y| {
            let value = ((37 * x + 59 * y + 11 * x * y) % 256) as u8;
            image::Rgb([value, value, value])
        });
        let resized = resize(&image, (8, 6), Filter::Bicubic, (8, 6), (0, 0));
        for (y, row) in PILLOW.iter().enumerate() {
            let found: Vec<u8> = (0..8).map(|x| resized.get_pixel(x, y as u32)[0]).collect();
            assert_eq!(found, row, "line {y}");
        }
    }

    /// Red channels of images with pixel (x, y) = (37 x + 59 y + 11 x y) mod 256, resized by Pillow 13.0. A tall image that shrinks starts
    /// with the vertical pass.
    #[test]
    fn tall_images_are_resized_vertically_first_as_in_pillow() {
        type ResizeCase = (u32, u32, u32, u32, Filter, &'static [u8]);
        const CASES: &[ResizeCase] = &include!("../tests/fixtures/pillow_resize.txt");
        for &(width, height, new_width, new_height, filter, expected) in CASES {
            let image = RgbImage::from_fn(width, height, |x, y| {
                let value = ((37 * x + 59 * y + 11 * x * y) % 256) as u8;
                image::Rgb([value, value, value])
            });
            let resized = resize(&image, (new_width, new_height), filter, (new_width, new_height), (0, 0));
            let found: Vec<u8> = resized.pixels().map(|pixel| pixel[0]).collect();
            assert_eq!(found, expected, "{width} x {height} to {new_width} x {new_height}, {filter:?}");
        }
    }

    #[test]
    fn a_crop_computed_alone_equals_that_part_of_the_whole() {
        let image = RgbImage::from_fn(31, 17, |x, y| image::Rgb([(x * 8) as u8, (y * 15) as u8, (x * y) as u8]));
        for (width, height, shown) in
            [(20, 11, (11, 11)), (31, 40, (30, 5)), (60, 17, (7, 9)), (9, 5, (50, 50)), (31, 8, (9, 3))]
        {
            let whole = resize(&image, (width, height), Filter::Bicubic, (width, height), (0, 0));
            let (x, y) = (width.saturating_sub(shown.0) / 2, height.saturating_sub(shown.1) / 3);
            let part = resize(&image, (width, height), Filter::Bicubic, shown, (x, y));
            for (column, row, pixel) in part.enumerate_pixels() {
                assert_eq!(pixel, whole.get_pixel(x + column, y + row), "{width} x {height}");
            }
        }
    }
}
