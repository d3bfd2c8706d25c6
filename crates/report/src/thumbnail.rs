//! Pictures small enough to lie inside the page.

use std::io::Cursor;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image::codecs::jpeg::JpegEncoder;
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageReader, Limits, Rgb, RgbImage};
use mp4sr_artifact::{Downloads, files};

/// The longest side in pixels.
const SIDE: u32 = 96;
/// JPEG quality.
const QUALITY: u8 = 80;
/// A picture that needs more than this while it is decoded is taken for damaged.
const MOST_BYTES: u64 = 512 << 20;

/// What stands where an item's picture belongs.
#[derive(Clone, Debug, PartialEq)]
pub enum Picture {
    /// A `data:` address of a JPEG.
    Shown(String),
    /// The item has none.
    None,
    /// It has addresses, but no file yet.
    NotFetched,
    /// None of its files is where it was.
    Missing,
    /// None of its files can be decoded.
    Broken,
}

/// The first of an item's pictures that can be shown.
pub fn thumbnail(images: &[String]) -> Picture {
    if images.is_empty() {
        return Picture::None;
    }
    if images.iter().all(|image| Downloads::is_address(image)) {
        return Picture::NotFetched;
    }
    if is_missing(images) {
        return Picture::Missing;
    }
    let shown = local(images).find_map(shrink);
    shown.map_or(Picture::Broken, |jpeg| Picture::Shown(format!("data:image/jpeg;base64,{}", STANDARD.encode(jpeg))))
}

/// Whether there should be files and there is none.
pub(crate) fn is_missing(images: &[String]) -> bool {
    local(images).next().is_some() && !local(images).any(Path::exists)
}

fn local(images: &[String]) -> impl Iterator<Item = &Path> {
    images.iter().filter(|image| !Downloads::is_address(image)).map(Path::new)
}

fn shrink(path: &Path) -> Option<Vec<u8>> {
    let bytes = files::read(path).ok()?;
    let mut reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().ok()?;
    let mut limits = Limits::default();
    limits.max_alloc = Some(MOST_BYTES);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().ok()?;
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let mut picture = DynamicImage::from_decoder(decoder).ok()?;
    if picture.width() > SIDE || picture.height() > SIDE {
        picture = picture.thumbnail(SIDE, SIDE);
    }
    picture.apply_orientation(orientation);
    let mut jpeg = Vec::new();
    on_white(&picture).write_with_encoder(JpegEncoder::new_with_quality(&mut jpeg, QUALITY)).ok()?;
    Some(jpeg)
}

/// JPEG knows no transparency; what shows through is the page, which is white.
fn on_white(picture: &DynamicImage) -> RgbImage {
    if !picture.color().has_alpha() {
        return picture.to_rgb8();
    }
    let source = picture.to_rgba8();
    RgbImage::from_fn(source.width(), source.height(), |x, y| {
        let [r, g, b, a] = source.get_pixel(x, y).0.map(u32::from);
        Rgb([r, g, b].map(|c| ((c * a + 255 * (255 - a)) / 255) as u8))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{ImageFormat, Rgba, RgbaImage};

    fn decoded(picture: &Picture) -> RgbImage {
        let Picture::Shown(address) = picture else { panic!("{picture:?}") };
        let jpeg = STANDARD.decode(address.strip_prefix("data:image/jpeg;base64,").unwrap()).unwrap();
        image::load_from_memory(&jpeg).unwrap().to_rgb8()
    }

    #[test]
    fn broken_missing_and_unfetched_pictures_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let mut png = Cursor::new(Vec::new());
        RgbImage::from_pixel(300, 150, Rgb([200, 10, 10])).write_to(&mut png, ImageFormat::Png).unwrap();
        let png = png.into_inner();
        files::write_bytes(Path::new(&path("whole.jpg")), &png).unwrap();
        files::write_bytes(Path::new(&path("half.png")), &png[..png.len() / 2]).unwrap();
        files::write_bytes(Path::new(&path("text.jpg")), b"<html>not found</html>").unwrap();
        files::write_bytes(Path::new(&path("empty.jpg")), b"").unwrap();

        assert_eq!(thumbnail(&[]), Picture::None);
        assert_eq!(thumbnail(&["https://x/y.jpg".to_owned()]), Picture::NotFetched);
        for broken in ["half.png", "text.jpg", "empty.jpg"] {
            assert_eq!(thumbnail(&[path(broken)]), Picture::Broken, "{broken}");
        }
        assert_eq!(thumbnail(&[path("gone.jpg")]), Picture::Missing);
        let small = decoded(&thumbnail(&[path("half.png"), "https://x/y.jpg".to_owned(), path("whole.jpg")]));
        assert_eq!(small.dimensions(), (96, 48), "whatever its name says, it is decoded as what it is");
    }

    #[test]
    fn what_is_transparent_becomes_white_and_small_pictures_stay_small() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("clear.png");
        let mut png = Cursor::new(Vec::new());
        RgbaImage::from_pixel(8, 8, Rgba([0, 0, 0, 0])).write_to(&mut png, ImageFormat::Png).unwrap();
        files::write_bytes(&path, &png.into_inner()).unwrap();
        let small = decoded(&thumbnail(&[path.display().to_string()]));
        assert_eq!(small.dimensions(), (8, 8));
        assert!(small.pixels().all(|pixel| pixel.0.iter().all(|&c| c > 250)));
    }
}
