//! Turns an image file into the pixels that an encoder's own processor computes.
//!
//! Reference: the image processors of the Python library transformers 5.24 on Pillow 13.0 (such as `CLIPImageProcessorPil`), and the
//! transforms of timm 1.0 for its models. The image is turned upright as its EXIF data says, laid on white where it is transparent and
//! converted to RGB; it is resized, the centre is cropped, levels are rescaled, and each channel is normalised by its mean and standard
//! deviation. The first frame of an animation is used; grey is repeated in three channels; of 16-bit levels, only the upper eight bits are
//! used, and grey ones are rounded to eight bits. Settings that are not supported are refused by name.

use image::{DynamicImage, GrayAlphaImage, Rgb, RgbImage, RgbaImage};
use mp4sr_image::{ImageError, MAX_PIXELS};
use serde::Deserialize;
use serde_json::{Map, Value};

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
    do_rescale: bool,
    /// The factor that a level is multiplied by.
    #[serde(default = "rescale_factor")]
    rescale_factor: f64,
    /// Whether 1 is subtracted after rescaling, as EfficientNet's processor can.
    #[serde(default)]
    rescale_offset: bool,
    #[serde(default = "yes")]
    do_normalize: bool,
    resample: Option<u32>,
    image_mean: Option<[f32; 3]>,
    image_std: Option<[f32; 3]>,
    /// Whether channels are divided by their standard deviation once more, as EfficientNet's processor does by default.
    include_top: Option<bool>,
    /// The ratio of the crop to the resized side, in the ConvNext processor, which ResNet uses.
    crop_pct: Option<f64>,
    image_processor_type: Option<String>,
    /// Whether the position of the middle is rounded if the margins cannot be equal, as in timm. Otherwise it is truncated, as in
    /// transformers.
    #[serde(skip)]
    rounds_middle: bool,
    /// All other keys; each must be known to change nothing.
    #[serde(flatten)]
    others: Map<String, Value>,
}

/// A size in one of the forms in which the library has written it.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(untagged)]
enum Size {
    Side(u32),
    ShortestEdge(ShortestEdge),
    Exact(Exact),
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ShortestEdge {
    shortest_edge: u32,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Exact {
    height: u32,
    width: u32,
}

fn yes() -> bool {
    true
}

/// The library's numbers for filters.
const BILINEAR: u32 = 2;
const BICUBIC: u32 = 3;

fn rescale_factor() -> f64 {
    1.0 / 255.0
}

/// The smallest side at which the ConvNext processor stretches images instead of cropping them.
const WARPED: u32 = 384;

/// The models whose image processors are followed.
const CLASSES: [&str; 7] = ["CLIP", "ConvNext", "ViT", "DeiT", "Siglip", "Bit", "EfficientNet"];

/// The side of the cropped middle by default, in the classes that crop by default.
const CROPPED: u32 = 224;
/// Keys that do not change pixels, whatever their value. Neither do keys that are null.
const HARMLESS: [&str; 11] = [
    "_valid_processor_keys",
    "data_format",
    "default_to_square",
    "device",
    "disable_grouping",
    "do_convert_rgb",
    "feature_extractor_type",
    "image_seq_length",
    "input_data_format",
    "processor_class",
    "return_tensors",
];

/// The processor of a timm model, from its `config.json`.
#[derive(Deserialize)]
struct Timm {
    input_size: [u32; 3],
    interpolation: String,
    crop_pct: f64,
    #[serde(default = "center")]
    crop_mode: String,
    mean: [f32; 3],
    std: [f32; 3],
}

fn center() -> String {
    "center".to_owned()
}

impl Processor {
    /// The processor that `pretrained_cfg` of a timm model describes, for evaluation.
    pub(crate) fn of_timm(value: &Value) -> std::result::Result<Self, String> {
        let timm: Timm = serde_json::from_value(value.clone())
            .map_err(|e| format!("pretrained_cfg: {}", mp4sr_artifact::json_problem(&e)))?;
        let [channels, height, width] = timm.input_size;
        let resample = match timm.interpolation.as_str() {
            "bicubic" => 3,
            "bilinear" => 2,
            "lanczos" => 1,
            other => {
                return Err(format!(
                    "pretrained_cfg.interpolation: expected bicubic, bilinear or lanczos, found {other}"
                ));
            }
        };
        let resized = (f64::from(height) / timm.crop_pct).floor();
        if channels != 3 || height != width || !(f64::from(height)..f64::from(u16::MAX)).contains(&resized) {
            return Err(format!(
                "pretrained_cfg: expected an input_size of 3 equal sides and a crop_pct up to 1, found {:?} and {}",
                timm.input_size, timm.crop_pct
            ));
        }
        let exact = |side| Size::Exact(Exact { height: side, width: side });
        let size = match timm.crop_mode.as_str() {
            "center" => Size::ShortestEdge(ShortestEdge { shortest_edge: resized as u32 }),
            "squash" => exact(resized as u32),
            other => return Err(format!("pretrained_cfg.crop_mode: expected center or squash, found {other}")),
        };
        let processor = Self {
            size,
            crop_size: Some(exact(height)),
            do_resize: true,
            do_center_crop: Some(true),
            do_rescale: true,
            rescale_factor: rescale_factor(),
            rescale_offset: false,
            do_normalize: true,
            resample: Some(resample),
            image_mean: Some(timm.mean),
            image_std: Some(timm.std),
            include_top: None,
            crop_pct: None,
            image_processor_type: None,
            rounds_middle: true,
            others: Map::new(),
        };
        processor.check(height as usize).map(|()| processor)
    }

    /// The model whose processor this is, such as `ViT`; empty if the file names no class.
    fn kind(&self) -> &str {
        let old = self.others.get("feature_extractor_type").and_then(Value::as_str);
        let class = self.image_processor_type.as_deref().or(old).unwrap_or_default();
        let class = class.trim_end_matches("Fast").trim_end_matches("Pil");
        class.trim_end_matches("ImageProcessor").trim_end_matches("FeatureExtractor")
    }

    /// Refuses keys that the processor's class in the library does not read, and a missing one that has a default for each class.
    fn expect_keys_of_its_class(&self) -> std::result::Result<(), String> {
        let kind = self.kind();
        if kind.is_empty() {
            let problem = "resample: expected a number where no image_processor_type is named, found none".to_owned();
            return if self.resample.is_none() && self.do_resize { Err(problem) } else { Ok(()) };
        }
        let unread = [
            ("crop_pct", kind != "ConvNext" && self.crop_pct.is_some()),
            ("do_center_crop", kind == "ConvNext" && self.do_center_crop == Some(true)),
            ("rescale_offset", kind != "EfficientNet" && self.rescale_offset),
            ("include_top", kind != "EfficientNet" && self.include_top == Some(true)),
        ];
        let found = unread.iter().find(|(_, is_unread)| *is_unread);
        found.map_or(Ok(()), |(key, _)| Err(format!("{key}: the image processor of {kind} does not read this key")))
    }

    /// Whether earlier releases computed other pixels from the same settings: they had no default crop, and took a number for the shortest
    /// edge in all classes but one. Vectors of that time must not be used.
    pub(crate) fn has_corrected_sizes(&self) -> bool {
        let crops_by_default = ["CLIP", "Bit", "DeiT"].contains(&self.kind())
            && self.do_center_crop != Some(false)
            && self.crop_size.is_none();
        let is_both_sides = ["ViT", "EfficientNet"].contains(&self.kind())
            && matches!(self.size, Size::Side(_))
            && self.crops().is_some();
        crops_by_default || is_both_sides
    }

    /// Sets missing keys to the defaults of the processor's class in the library, and expresses `crop_pct` by the other keys.
    pub(crate) fn resolved(mut self) -> std::result::Result<Self, String> {
        self.expect_keys_of_its_class()?;
        let kind = self.kind().to_owned();
        if kind == "ViT" && self.resample.is_none() {
            self.resample = Some(BILINEAR);
        }
        if kind == "ConvNext" && self.crop_pct.is_none() {
            self.crop_pct = Some(224.0 / 256.0);
        }
        let is_of = |kinds: &[&str]| kinds.contains(&kind.as_str());
        if is_of(&["ViT", "Siglip", "EfficientNet"]) && self.do_center_crop.is_none() {
            self.do_center_crop = Some(false);
        }
        if is_of(&["CLIP", "Bit", "DeiT"]) {
            let crops = *self.do_center_crop.get_or_insert(true);
            if crops && self.crop_size.is_none() {
                self.crop_size = Some(Size::Side(CROPPED));
            }
        }
        // In some classes, a number is always the shortest edge, in others always both sides; in the rest, it is the shortest edge if the
        // middle is cropped.
        let is_shortest = is_of(&["CLIP", "Bit"]);
        let is_both = is_of(&["DeiT", "ViT", "EfficientNet"]);
        if let Size::Side(side) = self.size
            && self.crop_pct.is_none()
        {
            let is_square = is_both || self.crops().is_none() && !is_shortest;
            if let Some(found) =
                self.others.get("default_to_square").and_then(Value::as_bool).filter(|own| *own != is_square)
            {
                return Err(format!(
                    "default_to_square: expected {is_square} for a size of one number, found {found}; write `size` as \
                     {{\"shortest_edge\": {side}}}, or as {{\"height\": {side}, \"width\": {side}}}"
                ));
            }
            if is_square {
                self.size = Size::Exact(Exact { height: side, width: side });
            }
        }
        let (side, Some(share)) = (self.size.side(), self.crop_pct) else { return Ok(self) };
        let exact = Size::Exact(Exact { height: side, width: side });
        if side < WARPED {
            self.size = Size::ShortestEdge(ShortestEdge { shortest_edge: (f64::from(side) / share) as u32 });
            self.crop_size = Some(exact);
            self.do_center_crop = Some(true);
        } else {
            self.size = exact;
            self.do_center_crop = Some(false);
        }
        Ok(self)
    }

    /// Refuses settings that are not supported here. `side` is an example for the message.
    pub(crate) fn check(&self, side: usize) -> std::result::Result<(), String> {
        let is_harmless = |key: &str, value: &Value| {
            value.is_null() || HARMLESS.contains(&key) || (key == "do_pad" && value == &Value::Bool(false))
        };
        if let Some((key, value)) = self.others.iter().find(|(key, value)| !is_harmless(key, value)) {
            return Err(format!("{key}: this key is not supported, and it may change the pixels (found {value})"));
        }
        let class = self.image_processor_type.as_deref().unwrap_or_default();
        if !class.is_empty() && !CLASSES.contains(&self.kind()) {
            return Err(format!(
                "image_processor_type: expected the image processor of {}, found {class}",
                CLASSES.join(", ")
            ));
        }
        if self.filter().is_none() {
            return Err(format!(
                "resample: expected 0 (nearest), 1 (Lanczos), 2 (bilinear) or 3 (bicubic), found {}",
                self.resample.unwrap_or_default()
            ));
        }
        let (width, height) = self.target();
        if width != height || width == 0 {
            return Err(format!("pixels: expected a square such as {side} x {side}, found {width} x {height}"));
        }
        if !self.do_resize && self.crops().is_none() {
            return Err("do_resize: expected true where nothing is cropped, found false".to_owned());
        }
        if self.crops().is_none() && matches!(self.size, Size::Side(_) | Size::ShortestEdge(_)) {
            return Err("do_center_crop: expected true where size is the shortest edge, found false".to_owned());
        }
        if self.do_normalize {
            // The library has defaults for each class of processors.
            let key = if self.image_mean.is_none() { "image_mean" } else { "image_std" };
            let (Some(_), Some(deviations)) = (self.image_mean, self.image_std) else {
                return Err(format!(
                    "{key}: expected a number for each channel where do_normalize is true, found none"
                ));
            };
            if deviations.iter().any(|deviation| deviation.is_nan() || *deviation <= 0.0) {
                return Err(format!("image_std: expected positive numbers, found {deviations:?}"));
            }
        }
        if !self.rescale_factor.is_finite() {
            return Err(format!("rescale_factor: expected a number, found {}", self.rescale_factor));
        }
        Ok(())
    }

    fn filter(&self) -> Option<Filter> {
        match self.resample.unwrap_or(BICUBIC) {
            0 => Some(Filter::Nearest),
            1 => Some(Filter::Lanczos),
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
            Size::Side(side) | Size::ShortestEdge(ShortestEdge { shortest_edge: side }) => (side, side),
            Size::Exact(Exact { height, width }) => (width, height),
        }
    }

    /// Width and height of the result, which is a square.
    pub fn side(&self) -> usize {
        self.target().0 as usize
    }

    /// Decodes an image file to pixels `[3, side, side]`, channel by channel.
    pub fn read(&self, bytes: &[u8]) -> std::result::Result<Vec<f32>, ImageError> {
        Ok(self.pixels(&on_white(mp4sr_image::decode(bytes, MAX_PIXELS)?)))
    }

    fn pixels(&self, image: &RgbImage) -> Vec<f32> {
        let cut = self.cut(image);
        let scale = if self.do_rescale { self.rescale_factor } else { 1.0 };
        let offset = if self.do_rescale && self.rescale_offset { 1.0 } else { 0.0 };
        let divides_again = self.include_top.unwrap_or(self.kind() == "EfficientNet");
        let mut values = Vec::with_capacity(3 * cut.as_raw().len());
        for channel in 0..3 {
            let statistics = self.image_mean.zip(self.image_std).filter(|_| self.do_normalize);
            let (mean, deviation) = statistics.map_or((0.0, 1.0), |(means, stds)| (means[channel], stds[channel]));
            let again = self.image_std.filter(|_| divides_again).map_or(1.0, |deviations| deviations[channel]);
            values.extend(cut.pixels().map(|pixel| {
                let level = (f64::from(pixel[channel]) * scale) as f32 - offset;
                (level - mean) / deviation / again
            }));
        }
        values
    }

    /// The resized and cropped image, whose levels are not normalised yet.
    fn cut(&self, image: &RgbImage) -> RgbImage {
        let resized = self.resized(image);
        let (width, height) = self.target();
        if resized.dimensions() == (width, height) { resized } else { self.centre(&resized, width, height) }
    }

    fn resized(&self, image: &RgbImage) -> RgbImage {
        let Some(filter) = self.filter().filter(|_| self.do_resize) else { return image.clone() };
        let (width, height) = image.dimensions();
        let (new_width, new_height) = match self.size {
            Size::Exact(Exact { height, width }) => (width, height),
            Size::Side(side) | Size::ShortestEdge(ShortestEdge { shortest_edge: side }) => {
                // The long side is truncated, not rounded, as in the reference.
                let long = |long: u32, short: u32| (u64::from(side) * u64::from(long) / u64::from(short)) as u32;
                if width <= height { (side, long(height, width)) } else { (long(width, height), side) }
            }
        };
        // Only the middle is computed, because the whole of a very long image could take gigabytes.
        let (cut_width, cut_height) = self.target();
        let start = |whole: u32, part: u32| self.before(whole.saturating_sub(part));
        let shown = (start(new_width, cut_width), start(new_height, cut_height));
        resize(image, (new_width, new_height), filter, (cut_width, cut_height), shown)
    }

    /// The number of cropped pixels that are before the middle.
    fn before(&self, left_out: u32) -> u32 {
        // Halves go to the even number, as in Python's `round`.
        if self.rounds_middle { left_out / 2 + u32::from(left_out % 4 == 3) } else { left_out / 2 }
    }

    /// The middle of an image, padded with black if the image is too small.
    fn centre(&self, image: &RgbImage, width: u32, height: u32) -> RgbImage {
        let mut middle = RgbImage::new(width, height);
        let offset = |inner: u32, outer: u32| match outer.checked_sub(inner) {
            Some(left_out) => i64::from(self.before(left_out)),
            None => (i64::from(outer) - i64::from(inner)).div_euclid(2),
        };
        let (x, y) = (offset(width, image.width()), offset(height, image.height()));
        image::imageops::replace(&mut middle, image, -x, -y);
        middle
    }
}

impl Size {
    fn side(self) -> u32 {
        match self {
            Self::Side(side)
            | Self::ShortestEdge(ShortestEdge { shortest_edge: side })
            | Self::Exact(Exact { height: side, .. }) => side,
        }
    }
}

/// The image with 8 bits per level; those of 16 bits lose their lower half, which conversions of the library would round.
fn upper_bits(image: DynamicImage) -> DynamicImage {
    let upper = |levels: &[u16]| levels.iter().map(|level| (level >> 8) as u8).collect::<Vec<u8>>();
    let (width, height) = (image.width(), image.height());
    let converted = match &image {
        DynamicImage::ImageRgb16(own) => {
            RgbImage::from_raw(width, height, upper(own.as_raw())).map(DynamicImage::ImageRgb8)
        }
        DynamicImage::ImageRgba16(own) => {
            RgbaImage::from_raw(width, height, upper(own.as_raw())).map(DynamicImage::ImageRgba8)
        }
        DynamicImage::ImageLumaA16(own) => {
            GrayAlphaImage::from_raw(width, height, upper(own.as_raw())).map(DynamicImage::ImageLumaA8)
        }
        _ => None,
    };
    converted.unwrap_or(image)
}

/// Converts an image to RGB. Transparent images are laid on white with the integer arithmetic of Pillow's `alpha_composite`.
fn on_white(image: DynamicImage) -> RgbImage {
    let image = upper_bits(image);
    if !image.color().has_alpha() {
        return image.into_rgb8();
    }
    let image = image.into_rgba8();
    RgbImage::from_fn(image.width(), image.height(), |x, y| {
        let [red, green, blue, alpha] = image.get_pixel(x, y).0;
        Rgb([red, green, blue].map(|level| {
            let (level, alpha) = (u32::from(level), u32::from(alpha));
            let sum = (level * alpha + 255 * (255 - alpha)) * 64 + (0x80 << 6);
            ((((sum >> 8) + sum) >> 8) >> 6) as u8
        }))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn processor(text: &str) -> std::result::Result<Processor, String> {
        let processor = serde_json::from_str::<Processor>(text).map_err(|e| e.to_string())?.resolved()?;
        processor.check(224).map(|()| processor)
    }

    /// The files of google/vit-base-patch16-224, facebook/convnext-tiny-224 and openai/clip-vit-base-patch32 as first published.
    #[test]
    fn early_files_have_the_defaults_of_their_classes() {
        let statistics = "\"image_mean\": [0.5, 0.5, 0.5], \"image_std\": [0.5, 0.5, 0.5]";
        let vit =
            processor(&format!("{{\"size\": 224, \"feature_extractor_type\": \"ViTFeatureExtractor\", {statistics}}}"))
                .unwrap();
        assert!(matches!(vit.size, Size::Exact(Exact { height: 224, width: 224 })));
        assert_eq!(vit.filter(), Some(Filter::Bilinear));
        let convnext = "\"size\": 224, \"feature_extractor_type\": \"ConvNextFeatureExtractor\"";
        let convnext = processor(&format!("{{{convnext}, {statistics}}}")).unwrap();
        assert!(matches!(convnext.size, Size::ShortestEdge(ShortestEdge { shortest_edge: 256 })));
        assert_eq!((convnext.side(), convnext.filter()), (224, Some(Filter::Bicubic)));
        let clip = "\"size\": 224, \"crop_size\": 224, \"do_center_crop\": true, \"resample\": 3";
        let clip = processor(&format!("{{{clip}, {statistics}}}")).unwrap();
        assert!(matches!(clip.size, Size::Side(224)) && clip.side() == 224);
        let deit = "\"size\": 256, \"crop_size\": 224, \"do_center_crop\": true, \"feature_extractor_type\": \"DeiTFeatureExtractor\"";
        let deit = processor(&format!("{{{deit}, {statistics}}}")).unwrap();
        assert!(matches!(deit.size, Size::Exact(Exact { height: 256, width: 256 })) && deit.side() == 224);
    }

    #[test]
    fn keys_that_a_class_does_not_read_are_refused() {
        let settings = |more: &str| {
            let statistics = "\"image_mean\": [0.5, 0.5, 0.5], \"image_std\": [0.5, 0.5, 0.5]";
            processor(&format!("{{\"size\": {{\"height\": 32, \"width\": 32}}, {statistics}{more}}}"))
        };
        for (class, key) in [
            ("ViT", "\"crop_pct\": 0.9"),
            ("Siglip", "\"include_top\": true"),
            ("CLIP", "\"rescale_offset\": true"),
            ("ConvNext", "\"do_center_crop\": true"),
        ] {
            let message =
                settings(&format!(", \"image_processor_type\": \"{class}ImageProcessor\", {key}")).unwrap_err();
            assert!(message.ends_with(&format!("the image processor of {class} does not read this key")), "{message}");
        }
        assert!(settings("").unwrap_err().starts_with("resample: "));
        let efficient = ", \"image_processor_type\": \"EfficientNetImageProcessor\", \"crop_size\": 24";
        assert_eq!(settings(efficient).unwrap().side(), 32);
    }

    #[test]
    fn statistics_of_channels_are_never_assumed() {
        let size = "\"size\": {\"height\": 224, \"width\": 224}, \"image_processor_type\": \"ViTImageProcessor\"";
        for (keys, expected) in [("", "image_mean: "), (", \"image_mean\": [0.5, 0.5, 0.5]", "image_std: ")] {
            let message = processor(&format!("{{{size}{keys}}}")).unwrap_err();
            assert!(message.contains(expected) && message.ends_with("found none"), "{message}");
        }
        processor(&format!("{{{size}, \"do_normalize\": false}}")).unwrap();
    }

    #[test]
    fn the_middle_is_rounded_as_in_python_for_timm_and_truncated_for_transformers() {
        let timm = serde_json::json!({
            "input_size": [3, 8, 8], "interpolation": "bicubic", "crop_pct": 0.9, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]
        });
        let timm = Processor::of_timm(&timm).unwrap();
        assert_eq!([0, 1, 2, 3, 4, 5, 7].map(|left_out| timm.before(left_out)), [0, 0, 1, 2, 2, 2, 4]);
        let cut = Processor { rounds_middle: false, ..timm };
        assert_eq!([0, 1, 2, 3, 4, 5, 7].map(|left_out| cut.before(left_out)), [0, 0, 1, 1, 2, 2, 3]);
    }

    /// Changes every key of every processor of the fixtures. The change must affect the pixels or be refused, unless the key is known to
    /// have no effect.
    #[test]
    fn every_key_of_a_processor_is_supported_or_refused() {
        let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");
        let image =
            RgbImage::from_fn(90, 70, |x, y| Rgb([(x * 7 % 256) as u8, (y * 11 % 256) as u8, (x * y % 256) as u8]));
        let pixels = |settings: &Value| -> std::result::Result<Vec<f32>, String> {
            let processor =
                serde_json::from_value::<Processor>(settings.clone()).map_err(|e| e.to_string())?.resolved()?;
            processor.check(32).map(|()| processor.pixels(&image))
        };
        for encoder in ["clip", "resnet", "adapter/efficientnet", "adapter/dinov2", "adapter/vit", "adapter/siglip"] {
            let text = std::fs::read(format!("{fixtures}/{encoder}/preprocessor_config.json")).unwrap();
            let settings: Value = serde_json::from_slice(&text).unwrap();
            let own = pixels(&settings).unwrap();
            for (key, value) in settings.as_object().unwrap() {
                let mut changed = settings.clone();
                changed[key] = match value {
                    Value::Bool(is) => Value::Bool(!is),
                    Value::Number(number) if number.is_u64() => serde_json::json!((number.as_u64().unwrap() + 2) % 4),
                    Value::Number(number) => serde_json::json!(number.as_f64().unwrap() * 0.7),
                    Value::Array(_) => serde_json::json!([0.3, 0.2, 0.4]),
                    Value::Object(size) => {
                        size.keys().map(|side| (side.clone(), serde_json::json!(24))).collect::<Map<_, _>>().into()
                    }
                    _ => serde_json::json!("AnotherImageProcessor"),
                };
                let is_read = pixels(&changed).map_or(true, |pixels| pixels != own);
                // A crop size has no effect if nothing is cropped.
                let is_idle = key == "crop_size" && settings["do_center_crop"] == false;
                assert!(is_read || is_idle || HARMLESS.contains(&key.as_str()), "{encoder}: {key} = {}", changed[key]);
            }
            let mut unknown = settings.clone();
            unknown["do_sharpen"] = Value::Bool(true);
            assert!(pixels(&unknown).unwrap_err().starts_with("do_sharpen: "), "{encoder}");
        }
    }

    /// Found by comparison with transformers 5.24.
    #[test]
    fn sizes_that_are_numbers_mean_what_they_mean_in_each_class() {
        let statistics = "\"image_mean\": [0.5, 0.5, 0.5], \"image_std\": [0.5, 0.5, 0.5], \"resample\": 3";
        let of = |class: &str, keys: &str| {
            processor(&format!("{{\"image_processor_type\": \"{class}ImageProcessor\", {keys}, {statistics}}}"))
        };
        for class in ["CLIP", "Bit"] {
            let own = of(class, "\"size\": 256").unwrap();
            assert!(matches!(own.size, Size::Side(256)) && own.target() == (224, 224), "{class}");
            let stretched = of(class, "\"size\": 64, \"do_center_crop\": false").err().unwrap();
            assert!(stretched.contains("the shortest edge"), "{stretched}");
        }
        for class in ["ViT", "EfficientNet", "DeiT"] {
            let own = of(class, "\"size\": 256, \"crop_size\": 224, \"do_center_crop\": true").unwrap();
            assert!(matches!(own.size, Size::Exact(Exact { height: 256, width: 256 })), "{class}");
            assert_eq!(own.target(), (224, 224), "{class}");
        }
    }

    #[test]
    fn levels_of_16_bits_lose_their_lower_half() {
        let pixel = image::Rgb([0x60ff_u16, 0x6000, 0xffff]);
        let image = DynamicImage::ImageRgb16(image::ImageBuffer::from_pixel(1, 1, pixel));
        assert_eq!(on_white(image).get_pixel(0, 0).0, [0x60, 0x60, 0xff]);
        let pixel = image::Rgba([0x60ff_u16, 0x6000, 0xffff, 0xffff]);
        let image = DynamicImage::ImageRgba16(image::ImageBuffer::from_pixel(1, 1, pixel));
        assert_eq!(on_white(image).get_pixel(0, 0).0, [0x60, 0x60, 0xff]);
    }

    #[test]
    fn transparent_pixels_are_blended_with_white() {
        let pixel = |rgba| on_white(DynamicImage::ImageRgba8(image::RgbaImage::from_pixel(1, 1, image::Rgba(rgba))));
        assert_eq!(pixel([10, 20, 30, 255]).get_pixel(0, 0).0, [10, 20, 30]);
        assert_eq!(pixel([10, 20, 30, 0]).get_pixel(0, 0).0, [255, 255, 255]);
        assert_eq!(pixel([0, 100, 255, 128]).get_pixel(0, 0).0, [127, 177, 255]);
    }
}
