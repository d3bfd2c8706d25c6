//! An image file to the pixels that CLIP's own processor makes of it.
//!
//! Reference: `CLIPImageProcessor` of the Python library transformers: RGB, bicubic resize of the short side, centre crop,
//! mean and deviation per channel.

use std::path::Path;

use image::imageops::{self, FilterType};
use image::{ImageReader, RgbImage};
use serde::Deserialize;

/// `preprocessor_config.json`.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Processor {
    size: Size,
    crop_size: Size,
    #[serde(default = "yes")]
    do_resize: bool,
    #[serde(default = "yes")]
    do_center_crop: bool,
    #[serde(default = "yes")]
    do_normalize: bool,
    #[serde(default = "bicubic")]
    resample: u32,
    image_mean: [f32; 3],
    image_std: [f32; 3],
}

/// A side in one of the ways that the library has written it.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(untagged)]
enum Size {
    Side(u32),
    ShortestEdge { shortest_edge: u32 },
    Exact { height: u32, width: u32 },
}

fn yes() -> bool {
    true
}

/// The library's number for it.
fn bicubic() -> u32 {
    3
}

impl Processor {
    /// What this processor asks for that is not done here, as a sentence.
    pub(crate) fn check(&self, side: usize) -> Result<(), String> {
        if !matches!(self.resample, 2 | 3) {
            return Err(format!("resample: expected 2 (bilinear) or 3 (bicubic), found {}", self.resample));
        }
        let (width, height) = self.target();
        if (width as usize, height as usize) != (side, side) {
            return Err(format!("pixels: expected {side} x {side} as in config.json, found {width} x {height}"));
        }
        if self.image_std.iter().any(|deviation| deviation.is_nan() || *deviation <= 0.0) {
            return Err(format!("image_std: expected positive numbers, found {:?}", self.image_std));
        }
        Ok(())
    }

    /// Width and height of what [`Self::pixels`] gives.
    fn target(&self) -> (u32, u32) {
        let size = if self.do_center_crop { self.crop_size } else { self.size };
        match size {
            Size::Side(side) | Size::ShortestEdge { shortest_edge: side } => (side, side),
            Size::Exact { height, width } => (width, height),
        }
    }

    /// Decodes the file at `path` into `[3, side, side]`, channel by channel.
    pub(crate) fn read(&self, path: &Path) -> Result<Vec<f32>, String> {
        let reader = ImageReader::open(path).and_then(ImageReader::with_guessed_format).map_err(|e| one_line(&e))?;
        let picture = reader.decode().map_err(|e| one_line(&e))?.to_rgb8();
        if picture.width() == 0 || picture.height() == 0 {
            return Err("it has no pixels".to_owned());
        }
        Ok(self.pixels(&picture))
    }

    fn pixels(&self, picture: &RgbImage) -> Vec<f32> {
        let resized = self.resized(picture);
        let (width, height) = self.target();
        let cropped = if self.do_center_crop { centre(&resized, width, height) } else { resized };
        let mut values = Vec::with_capacity(3 * (width * height) as usize);
        for channel in 0..3 {
            let (mean, deviation) =
                if self.do_normalize { (self.image_mean[channel], self.image_std[channel]) } else { (0.0, 1.0) };
            values.extend(cropped.pixels().map(|pixel| (f32::from(pixel[channel]) / 255.0 - mean) / deviation));
        }
        values
    }

    fn resized(&self, picture: &RgbImage) -> RgbImage {
        if !self.do_resize {
            return picture.clone();
        }
        let (width, height) = picture.dimensions();
        let (new_width, new_height) = match self.size {
            Size::Exact { height, width } => (width, height),
            Size::Side(side) | Size::ShortestEdge { shortest_edge: side } => {
                // The long side is cut, not rounded, as in the reference.
                let long = |long: u32, short: u32| (u64::from(side) * u64::from(long) / u64::from(short)) as u32;
                if width <= height { (side, long(height, width)) } else { (long(width, height), side) }
            }
        };
        if (width, height) == (new_width, new_height) {
            return picture.clone();
        }
        // Catmull-Rom is the cubic with a = -1/2, which is the reference's "bicubic".
        let filter = if self.resample == 2 { FilterType::Triangle } else { FilterType::CatmullRom };
        imageops::resize(picture, new_width, new_height, filter)
    }
}

/// Decoders end some of their messages with a line break.
fn one_line(error: &impl ToString) -> String {
    error.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The middle of a picture; black where the picture is too small.
fn centre(picture: &RgbImage, width: u32, height: u32) -> RgbImage {
    let mut middle = RgbImage::new(width, height);
    let offset = |inner: u32, outer: u32| (i64::from(outer) - i64::from(inner)).div_euclid(2);
    let (x, y) = (offset(width, picture.width()), offset(height, picture.height()));
    imageops::replace(&mut middle, picture, -x, -y);
    middle
}

#[cfg(test)]
mod tests {
    use super::*;

    fn processor(side: u32) -> Processor {
        Processor {
            size: Size::ShortestEdge { shortest_edge: side },
            crop_size: Size::Exact { height: side, width: side },
            do_resize: true,
            do_center_crop: true,
            do_normalize: true,
            resample: 3,
            image_mean: [0.5, 0.25, 0.0],
            image_std: [0.5, 0.25, 1.0],
        }
    }

    #[test]
    fn one_colour_stays_one_colour_and_is_normalised_by_channel() {
        let picture = RgbImage::from_pixel(11, 7, image::Rgb([255, 0, 51]));
        let values = processor(4).pixels(&picture);
        assert_eq!(values.len(), 3 * 16);
        for (channel, expected) in [1.0, -1.0, 0.2].into_iter().enumerate() {
            assert!(values[channel * 16..(channel + 1) * 16].iter().all(|v| (v - expected).abs() < 1e-6));
        }
    }

    /// Red channel of a 13 x 9 picture with pixel (x, y) = (37 x + 59 y + 11 x y) mod 256, resized bicubically to 8 x 6
    /// by Pillow 13.0.
    #[test]
    fn bicubic_agrees_with_pillow_within_a_level() {
        const PILLOW: [[u8; 8]; 6] = include!("../tests/fixtures/pillow_bicubic.txt");
        let picture = RgbImage::from_fn(13, 9, |x, y| {
            let value = ((37 * x + 59 * y + 11 * x * y) % 256) as u8;
            image::Rgb([value, value, value])
        });
        let mut exact = processor(6);
        exact.size = Size::Exact { height: 6, width: 8 };
        let resized = exact.resized(&picture);
        for (y, row) in PILLOW.iter().enumerate() {
            for (x, expected) in row.iter().enumerate() {
                let found = resized.get_pixel(x as u32, y as u32)[0];
                assert!(found.abs_diff(*expected) <= 1, "({x}, {y}): expected {expected}, found {found}");
            }
        }
    }

    #[test]
    fn the_crop_is_the_middle() {
        let picture = RgbImage::from_fn(10, 4, |x, _| image::Rgb([x as u8, 0, 0]));
        let middle = centre(&picture, 4, 4);
        assert_eq!((0..4).map(|x| middle.get_pixel(x, 0)[0]).collect::<Vec<_>>(), [3, 4, 5, 6]);
    }
}
