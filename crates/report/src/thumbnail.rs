//! Thumbnails that are small enough to be embedded in the page.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image::codecs::jpeg::JpegEncoder;
use image::{DynamicImage, Rgb, RgbImage};
use mp4sr_artifact::Downloads;
use mp4sr_image::MAX_PIXELS;

/// The maximum side length in pixels.
const SIDE: u32 = 96;
/// The JPEG quality.
const QUALITY: u8 = 80;

/// The thumbnail of an item, or the reason why there is none.
#[derive(Clone, Debug, PartialEq)]
pub enum Thumbnail {
    /// A `data:` URL of a JPEG.
    Shown(String),
    /// The item has no images.
    None,
    /// The item's images are URLs that have not been downloaded.
    NotFetched,
    /// None of the item's image files exists.
    Missing,
    /// None of the item's image files can be decoded.
    Broken,
}

/// The thumbnail of the first of an item's images that can be shown.
pub fn thumbnail(images: &[String]) -> Thumbnail {
    if images.is_empty() {
        return Thumbnail::None;
    }
    if images.iter().all(|image| Downloads::is_url(image)) {
        return Thumbnail::NotFetched;
    }
    if is_missing(images) {
        return Thumbnail::Missing;
    }
    let shown = local(images).find_map(shrink);
    shown
        .map_or(Thumbnail::Broken, |jpeg| Thumbnail::Shown(format!("data:image/jpeg;base64,{}", STANDARD.encode(jpeg))))
}

/// Whether image files are expected but none exists.
pub(crate) fn is_missing(images: &[String]) -> bool {
    local(images).next().is_some() && !local(images).any(Path::exists)
}

fn local(images: &[String]) -> impl Iterator<Item = &Path> {
    images.iter().filter(|image| !Downloads::is_url(image)).map(Path::new)
}

fn shrink(path: &Path) -> Option<Vec<u8>> {
    let bytes = mp4sr_image::read(path).ok()?;
    let mut image = mp4sr_image::decode(&bytes, MAX_PIXELS).ok()?;
    if image.width() > SIDE || image.height() > SIDE {
        image = image.thumbnail(SIDE, SIDE);
    }
    let mut jpeg = Vec::new();
    on_white(&image).write_with_encoder(JpegEncoder::new_with_quality(&mut jpeg, QUALITY)).ok()?;
    Some(jpeg)
}

/// Blends transparent pixels with white, the background of the page, because JPEG has no transparency.
fn on_white(image: &DynamicImage) -> RgbImage {
    if !image.color().has_alpha() {
        return image.to_rgb8();
    }
    let source = image.to_rgba8();
    RgbImage::from_fn(source.width(), source.height(), |x, y| {
        let [r, g, b, a] = source.get_pixel(x, y).0.map(u32::from);
        Rgb([r, g, b].map(|c| ((c * a + 255 * (255 - a)) / 255) as u8))
    })
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;
    use image::{ImageFormat, Rgba, RgbaImage};
    use mp4sr_artifact::files;

    fn decoded(shown: &Thumbnail) -> RgbImage {
        let Thumbnail::Shown(url) = shown else { panic!("{shown:?}") };
        let jpeg = STANDARD.decode(url.strip_prefix("data:image/jpeg;base64,").unwrap()).unwrap();
        image::load_from_memory(&jpeg).unwrap().to_rgb8()
    }

    #[test]
    fn broken_missing_and_unfetched_images_are_distinguished() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let mut png = Cursor::new(Vec::new());
        RgbImage::from_pixel(300, 150, Rgb([200, 10, 10])).write_to(&mut png, ImageFormat::Png).unwrap();
        let png = png.into_inner();
        files::write_bytes(Path::new(&path("whole.jpg")), &png).unwrap();
        files::write_bytes(Path::new(&path("half.png")), &png[..png.len() / 2]).unwrap();
        files::write_bytes(Path::new(&path("text.jpg")), b"<html>not found</html>").unwrap();
        files::write_bytes(Path::new(&path("empty.jpg")), b"").unwrap();

        assert_eq!(thumbnail(&[]), Thumbnail::None);
        assert_eq!(thumbnail(&["https://x/y.jpg".to_owned()]), Thumbnail::NotFetched);
        for broken in ["half.png", "text.jpg", "empty.jpg"] {
            assert_eq!(thumbnail(&[path(broken)]), Thumbnail::Broken, "{broken}");
        }
        assert_eq!(thumbnail(&[path("gone.jpg")]), Thumbnail::Missing);
        let small = decoded(&thumbnail(&[path("half.png"), "https://x/y.jpg".to_owned(), path("whole.jpg")]));
        assert_eq!(small.dimensions(), (96, 48), "whatever its name says, it is decoded as what it is");
    }

    /// The header of a PNG file of 60,000 x 60,000 pixels, and the beginning of its data.
    const HUGE: &[u8] =
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\xea`\0\0\xea`\x08\x02\0\0\0\x0f\xb0\xe2\x15\0\0\0\0IDAT5\xaf\x06\x1e";

    #[test]
    fn an_image_that_declares_too_many_pixels_is_broken_and_not_allocated() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("huge.png");
        files::write_bytes(&path, HUGE).unwrap();
        assert_eq!(thumbnail(&[path.display().to_string()]), Thumbnail::Broken);
    }

    #[test]
    fn transparent_pixels_become_white_and_small_images_are_not_enlarged() {
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
