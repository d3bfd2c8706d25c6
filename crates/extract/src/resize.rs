//! Pillow's resize, to the level: encoders were trained on its pixels, and other libraries' bicubic filters round elsewhere.
//!
//! Horizontally, then vertically, each pass to whole levels; a filter is widened by the factor by which the image shrinks,
//! and its weights are fixed-point numbers of 22 bits. Reference: Pillow's `Image.resize` of 8-bit images.

use image::RgbImage;

/// Bits behind the point of a weight.
const PRECISION: u32 = 22;

/// The kernel of a resize.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Filter {
    Bilinear,
    Bicubic,
}

impl Filter {
    fn support(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
        }
    }

    fn value(self, x: f64) -> f64 {
        let x = x.abs();
        match self {
            Self::Bilinear => (1.0 - x).max(0.0),
            // Keys' cubic with a = -1/2.
            Self::Bicubic if x < 1.0 => (1.5 * x - 2.5) * x * x + 1.0,
            Self::Bicubic if x < 2.0 => ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0,
            Self::Bicubic => 0.0,
        }
    }
}

/// The weights of the pixels that make one pixel: the first of them, and 22-bit numbers.
struct Taps {
    first: usize,
    weights: Vec<i32>,
}

/// The taps of `range` out of `to` pixels made of `from` pixels.
fn taps(from: u32, to: u32, filter: Filter, range: std::ops::Range<u32>) -> Vec<Taps> {
    let scale = f64::from(from) / f64::from(to);
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

/// The part of `to` that a centred crop of `wanted` shows, with what the crop needs of it alone.
fn middle(to: u32, wanted: u32) -> std::ops::Range<u32> {
    if to <= wanted {
        return 0..to;
    }
    let start = (to - wanted) / 2;
    start..start + wanted
}

/// `image` at `width` x `height`, of which only the middle `shown` is computed; where that is smaller, the result is.
pub(crate) fn resize(image: &RgbImage, width: u32, height: u32, filter: Filter, shown: (u32, u32)) -> RgbImage {
    let (from_width, from_height) = image.dimensions();
    let columns = taps(from_width, width, filter, middle(width, shown.0));
    let rows = taps(from_height, height, filter, middle(height, shown.1));
    let first = rows.iter().map(|row| row.first).min().unwrap_or(0);
    let last = rows.iter().map(|row| row.first + row.weights.len()).max().unwrap_or(0);
    let input = image.as_raw();
    let stride = from_width as usize * 3;
    let lines = input[first * stride..last * stride].chunks_exact(stride);
    let across: Vec<u8> = lines.flat_map(|line| columns.iter().flat_map(move |taps| pixel(line, taps))).collect();
    let mut sums = vec![0_i32; columns.len() * 3];
    let down: Vec<u8> = rows.iter().flat_map(|row| line(&across, row, first, &mut sums)).collect();
    let (width, height) = (columns.len() as u32, rows.len() as u32);
    RgbImage::from_raw(width, height, down).unwrap_or_else(|| RgbImage::new(width, height))
}

/// One pixel of a line.
fn pixel(line: &[u8], taps: &Taps) -> [u8; 3] {
    let mut sums = [1_i32 << (PRECISION - 1); 3];
    for (pixel, weight) in line[taps.first * 3..].as_chunks::<3>().0.iter().zip(&taps.weights) {
        for channel in 0..3 {
            sums[channel] += i32::from(pixel[channel]) * weight;
        }
    }
    sums.map(level)
}

/// One line of several lines, of which the first is number `first` of the image. `sums` is scratch.
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
    fn bicubic_is_pillows() {
        const PILLOW: [[u8; 8]; 6] = include!("../tests/fixtures/pillow_bicubic.txt");
        let image = RgbImage::from_fn(13, 9, |x, y| {
            let value = ((37 * x + 59 * y + 11 * x * y) % 256) as u8;
            image::Rgb([value, value, value])
        });
        let resized = resize(&image, 8, 6, Filter::Bicubic, (8, 6));
        for (y, row) in PILLOW.iter().enumerate() {
            let found: Vec<u8> = (0..8).map(|x| resized.get_pixel(x, y as u32)[0]).collect();
            assert_eq!(found, row, "line {y}");
        }
    }

    #[test]
    fn the_middle_alone_is_what_the_whole_has_there() {
        let image = RgbImage::from_fn(31, 17, |x, y| image::Rgb([(x * 8) as u8, (y * 15) as u8, (x * y) as u8]));
        for (width, height, shown) in [(20, 11, (11, 11)), (31, 40, (30, 5)), (60, 17, (7, 9)), (9, 5, (50, 50))] {
            let whole = resize(&image, width, height, Filter::Bicubic, (width, height));
            let part = resize(&image, width, height, Filter::Bicubic, shown);
            let (x, y) = (middle(width, shown.0).start, middle(height, shown.1).start);
            for (column, row, pixel) in part.enumerate_pixels() {
                assert_eq!(pixel, whole.get_pixel(x + column, y + row), "{width} x {height}");
            }
        }
    }
}
