//! An image file to the pixels that an encoder's own processor makes of it.
//!
//! Reference: `CLIPImageProcessor` and `ConvNextImageProcessor` of the Python library transformers over Pillow: the image is
//! turned upright as its EXIF data says and converted to RGB, its short side is resized (bicubic), the centre is cropped, and
//! each channel is normalised by its mean and standard deviation. The first frame of an animation is used; grey is repeated in
//! three channels; transparency is ignored, so that the colours below it show, as in the reference; of 16 bits the upper eight
//! are used.

use image::RgbImage;
use mp4sr_image::{ImageError, MAX_PIXELS};
use serde::Deserialize;

use crate::resize::{Filter, resize};

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
    /// The crop's share of the resized side, in the ConvNext processor, which ResNet uses.
    crop_pct: Option<f64>,
}

/// A size in one of the forms in which the library has written it.
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

/// The library's number for the bicubic filter.
fn bicubic() -> u32 {
    3
}

/// The smallest side at which the ConvNext processor stretches images instead of cropping them.
const WARPED: u32 = 384;

impl Processor {
    /// Expresses `crop_pct` by the other keys.
    pub(crate) fn resolved(mut self) -> Self {
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

    /// Refuses settings that are not followed here. `side` is an example for the message.
    pub(crate) fn check(&self, side: usize) -> std::result::Result<(), String> {
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

    /// Width and height of the result.
    fn target(&self) -> (u32, u32) {
        match self.crops().unwrap_or(self.size) {
            Size::Side(side) | Size::ShortestEdge { shortest_edge: side } => (side, side),
            Size::Exact { height, width } => (width, height),
        }
    }

    /// Width and height of the result, which is a square.
    pub fn side(&self) -> usize {
        self.target().0 as usize
    }

    /// Decodes an image file to pixels `[3, side, side]`, channel by channel.
    pub fn read(&self, bytes: &[u8]) -> std::result::Result<Vec<f32>, ImageError> {
        Ok(self.pixels(&mp4sr_image::decode(bytes, MAX_PIXELS)?.into_rgb8()))
    }

    fn pixels(&self, image: &RgbImage) -> Vec<f32> {
        let cut = self.cut(image);
        let mut values = Vec::with_capacity(3 * cut.as_raw().len());
        for channel in 0..3 {
            let (mean, deviation) =
                if self.do_normalize { (self.image_mean[channel], self.image_std[channel]) } else { (0.0, 1.0) };
            values.extend(cut.pixels().map(|pixel| (f32::from(pixel[channel]) / 255.0 - mean) / deviation));
        }
        values
    }

    /// The resized and cropped image, whose levels are not normalised yet.
    fn cut(&self, image: &RgbImage) -> RgbImage {
        let resized = self.resized(image);
        let (width, height) = self.target();
        if resized.dimensions() == (width, height) { resized } else { centre(&resized, width, height) }
    }

    fn resized(&self, image: &RgbImage) -> RgbImage {
        let Some(filter) = self.filter().filter(|_| self.do_resize) else { return image.clone() };
        let (width, height) = image.dimensions();
        let (new_width, new_height) = match self.size {
            Size::Exact { height, width } => (width, height),
            Size::Side(side) | Size::ShortestEdge { shortest_edge: side } => {
                // The long side is cut, not rounded, as in the reference.
                let long = |long: u32, short: u32| (u64::from(side) * u64::from(long) / u64::from(short)) as u32;
                if width <= height { (side, long(height, width)) } else { (long(width, height), side) }
            }
        };
        // Only the middle of a very long image is used, and the whole could take gigabytes.
        let (cut_width, cut_height) = self.target();
        resize(image, new_width, new_height, filter, (cut_width, cut_height))
    }
}

impl Size {
    fn side(self) -> u32 {
        match self {
            Self::Side(side) | Self::ShortestEdge { shortest_edge: side } | Self::Exact { height: side, .. } => side,
        }
    }
}

/// The middle of an image, black where the image is too small.
fn centre(image: &RgbImage, width: u32, height: u32) -> RgbImage {
    let mut middle = RgbImage::new(width, height);
    let offset = |inner: u32, outer: u32| (i64::from(outer) - i64::from(inner)).div_euclid(2);
    let (x, y) = (offset(width, image.width()), offset(height, image.height()));
    image::imageops::replace(&mut middle, image, -x, -y);
    middle
}
