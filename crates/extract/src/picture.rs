//! An image file to the pixels that an encoder's own processor makes of it.
//!
//! Reference: `CLIPImageProcessor` and `ConvNextImageProcessor` of the Python library transformers over Pillow: turned upright
//! as its EXIF data says, RGB, bicubic resize of the short side, centre crop, mean and deviation per channel. Of a moving
//! picture the first frame counts; grey is repeated in three channels; transparency is left out, so that the colours below it
//! show, as in the reference; of 16 bits the upper eight count.

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageReader, RgbImage};
use mp4sr_artifact::{guarded, pictures};
use serde::Deserialize;

use crate::error::{Error, Result};
use crate::jpeg;
use crate::resize::{Filter, resize};
use crate::source::Source;

/// `preprocessor_config.json`.
#[derive(Clone, Debug, Deserialize)]
pub struct Processor {
    size: Size,
    crop_size: Option<Size>,
    #[serde(default = "yes")]
    do_resize: bool,
    do_center_crop: Option<bool>,
    #[serde(default = "yes")]
    do_normalize: bool,
    #[serde(default = "bicubic")]
    resample: u32,
    image_mean: [f32; 3],
    image_std: [f32; 3],
    /// Of the ConvNext processor, which ResNet has: the crop's share of the resized side.
    crop_pct: Option<f64>,
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

/// From this side on the ConvNext processor stretches instead of cropping.
const WARPED: u32 = 384;

impl Processor {
    /// Reads `preprocessor_config.json`; what it gives must have `side` x `side` pixels, as the model expects.
    pub(crate) fn load(source: &Source, side: usize) -> Result<Self> {
        let processor = Self::load_any(source, side)?;
        if processor.side() != side {
            let (width, height) = processor.target();
            let reason = format!("pixels: expected {side} x {side} as in config.json, found {width} x {height}");
            return Err(Error::model(&source.path_of("preprocessor_config.json"), reason));
        }
        Ok(processor)
    }

    /// The same for models that take any square.
    pub(crate) fn load_any(source: &Source, side: usize) -> Result<Self> {
        let processor = source.json::<Self>("preprocessor_config.json")?.resolved();
        processor.check(side).map_err(|reason| Error::model(&source.path_of("preprocessor_config.json"), reason))?;
        Ok(processor)
    }

    /// Writes what `crop_pct` means with the other keys.
    fn resolved(mut self) -> Self {
        let (side, Some(share)) = (self.size.side(), self.crop_pct) else { return self };
        if side < WARPED {
            self.size = Size::ShortestEdge { shortest_edge: (f64::from(side) / share) as u32 };
            self.crop_size = Some(Size::Exact { height: side, width: side });
            self.do_center_crop = Some(true);
        } else {
            self.size = Size::Exact { height: side, width: side };
            self.do_center_crop = Some(false);
        }
        self
    }

    /// What this processor asks for that is not done here, as a sentence.
    fn check(&self, side: usize) -> std::result::Result<(), String> {
        if self.filter().is_none() {
            return Err(format!("resample: expected 2 (bilinear) or 3 (bicubic), found {}", self.resample));
        }
        let (width, height) = self.target();
        if width != height || width == 0 {
            return Err(format!("pixels: expected a square such as {side} x {side}, found {width} x {height}"));
        }
        if self.image_std.iter().any(|deviation| deviation.is_nan() || *deviation <= 0.0) {
            return Err(format!("image_std: expected positive numbers, found {:?}", self.image_std));
        }
        Ok(())
    }

    fn filter(&self) -> Option<Filter> {
        match self.resample {
            2 => Some(Filter::Bilinear),
            3 => Some(Filter::Bicubic),
            _ => None,
        }
    }

    fn crops(&self) -> Option<Size> {
        let wanted = self.do_center_crop.unwrap_or(self.crop_size.is_some());
        self.crop_size.filter(|_| wanted)
    }

    /// Width and height of what [`Self::pixels`] gives.
    fn target(&self) -> (u32, u32) {
        match self.crops().unwrap_or(self.size) {
            Size::Side(side) | Size::ShortestEdge { shortest_edge: side } => (side, side),
            Size::Exact { height, width } => (width, height),
        }
    }

    /// Width and height of what comes out.
    pub fn side(&self) -> usize {
        self.target().0 as usize
    }

    /// The bytes of an image file as `[3, side, side]`, channel by channel; or why they are none.
    pub fn read(&self, bytes: &[u8]) -> std::result::Result<Vec<f32>, String> {
        Ok(self.pixels(&decode(bytes)?))
    }

    fn pixels(&self, picture: &RgbImage) -> Vec<f32> {
        let cut = self.cut(picture);
        let mut values = Vec::with_capacity(3 * cut.as_raw().len());
        for channel in 0..3 {
            let (mean, deviation) =
                if self.do_normalize { (self.image_mean[channel], self.image_std[channel]) } else { (0.0, 1.0) };
            values.extend(cut.pixels().map(|pixel| (f32::from(pixel[channel]) / 255.0 - mean) / deviation));
        }
        values
    }

    /// The picture as it is before its levels become numbers.
    fn cut(&self, picture: &RgbImage) -> RgbImage {
        let resized = self.resized(picture);
        let (width, height) = self.target();
        if resized.dimensions() == (width, height) { resized } else { centre(&resized, width, height) }
    }

    fn resized(&self, picture: &RgbImage) -> RgbImage {
        let Some(filter) = self.filter().filter(|_| self.do_resize) else { return picture.clone() };
        let (width, height) = picture.dimensions();
        let (new_width, new_height) = match self.size {
            Size::Exact { height, width } => (width, height),
            Size::Side(side) | Size::ShortestEdge { shortest_edge: side } => {
                // The long side is cut, not rounded, as in the reference.
                let long = |long: u32, short: u32| (u64::from(side) * u64::from(long) / u64::from(short)) as u32;
                if width <= height { (side, long(height, width)) } else { (long(width, height), side) }
            }
        };
        // Of a very long picture only the middle is ever seen; a whole one could be gigabytes.
        let (cut_width, cut_height) = self.target();
        resize(picture, new_width, new_height, filter, (cut_width, cut_height))
    }
}

impl Size {
    fn side(self) -> u32 {
        match self {
            Self::Side(side) | Self::ShortestEdge { shortest_edge: side } | Self::Exact { height: side, .. } => side,
        }
    }
}

/// The picture in the bytes of a file, upright, in three channels.
pub(crate) fn decode(bytes: &[u8]) -> std::result::Result<RgbImage, String> {
    guarded(|| upright(bytes)).unwrap_or_else(|_| Err("it does not decode".to_owned()))
}

fn upright(bytes: &[u8]) -> std::result::Result<RgbImage, String> {
    let reader = ImageReader::new(std::io::Cursor::new(bytes)).with_guessed_format().map_err(|e| one_line(&e))?;
    let mut decoder = reader.into_decoder().map_err(|e| one_line(&e))?;
    let (width, height) = decoder.dimensions();
    pictures::check_size(width, height)?;
    // Broken EXIF data turns nothing, as in the reference.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let mut picture = if bytes.starts_with(&jpeg::MAGIC) {
        DynamicImage::ImageRgb8(jpeg::decode(bytes)?)
    } else {
        DynamicImage::from_decoder(decoder).map_err(|e| one_line(&e))?
    };
    picture.apply_orientation(orientation);
    Ok(picture.into_rgb8())
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
    image::imageops::replace(&mut middle, picture, -x, -y);
    middle
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The header of a PNG file of 60,000 x 60,000 pixels, and the start of its data.
    const HUGE: &[u8] =
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\xea`\0\0\xea`\x08\x02\0\0\0\x0f\xb0\xe2\x15\0\0\0\0IDAT5\xaf\x06\x1e";

    #[test]
    fn a_picture_that_claims_too_much_is_refused_before_it_is_decoded() {
        assert_eq!(decode(HUGE).unwrap_err(), "it has 60000 x 60000 pixels, more than 67108864");
    }

    #[test]
    fn no_flipped_bit_makes_a_decoder_panic() {
        let folder =
            std::path::Path::new(&std::env::var("CARGO_MANIFEST_DIR").unwrap()).join("tests/fixtures/pictures");
        for name in ["rgb.jpg", "palette.png", "moving.gif", "lossless.webp"] {
            let whole = std::fs::read(folder.join(name)).unwrap();
            assert!(decode(&whole).is_ok(), "{name}");
            for at in 0..whole.len().min(400) {
                let mut bytes = whole.clone();
                bytes[at] ^= 1 << (at % 8);
                assert!(
                    decode(&bytes).map_or_else(|e| !e.contains('\n'), |picture| picture.width() > 0),
                    "{name}: {at}"
                );
            }
        }
    }
}
