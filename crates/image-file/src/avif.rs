//! Decodes AVIF, which the image crate reads only with a C library.

use image::{DynamicImage, RgbImage, RgbaImage};
use mp4_atom::{Any, Buf, Colr, DecodeMaybe, Idat, Iinf, Iloc, Iprp, Iref, Ispe, Meta, Pitm};
use re_rav1d::dav1d::pixel::{MatrixCoefficients, YUVRange};
use re_rav1d::dav1d::{Decoder, Picture, PixelLayout, PlanarImageComponent, Settings};

use crate::error::{ImageError, Result};
use crate::pixels::check_pixels;

/// The types that mark an auxiliary item as the alpha plane of another item (ISO/IEC 23000-22, section 4).
const ALPHA: [&str; 2] = ["urn:mpeg:mpegB:cicp:systems:auxiliary:alpha", "urn:mpeg:hevc:2015:auxid:1"];

/// Whether the file declares that it is AVIF, by its major brand or by one of its compatible brands.
pub(crate) fn is_avif(bytes: &[u8]) -> bool {
    let Some((length, rest)) = bytes.split_first_chunk::<4>() else {
        return false;
    };
    let Some(brands) = rest.strip_prefix(b"ftyp") else {
        return false;
    };
    let end = (u32::from_be_bytes(*length) as usize).saturating_sub(8).min(brands.len());
    brands[..end].chunks_exact(4).any(|brand| brand == b"avif" || brand == b"avis")
}

/// Reads the width and height that the file states for its primary image, before any rotation.
pub(crate) fn dimensions(bytes: &[u8]) -> Result<(u32, u32)> {
    let container = Container::read(bytes)?;
    container.size(container.primary)
}

/// Decodes the primary image to 8 bits per channel, with its alpha plane if it has one, and rotates and mirrors it as the file says. The
/// file's crop is ignored, as in Pillow, and film grain is not applied.
pub(crate) fn decode(bytes: &[u8], max_pixels: u64) -> Result<DynamicImage> {
    let container = Container::read(bytes)?;
    let (width, height) = container.size(container.primary)?;
    check_pixels(width, height, max_pixels)?;
    let frame = Frame::decode(container.data(container.primary)?, width, height)?;
    let rgb = frame.to_rgb(container.colours(container.primary))?;
    let image = match container.alpha() {
        None => DynamicImage::ImageRgb8(rgb),
        Some(item) => {
            let alpha = Frame::decode(container.data(item)?, width, height)?;
            DynamicImage::ImageRgba8(with_alpha(&rgb, &alpha, container.is_premultiplied(item)))
        }
    };
    Ok(container.transform(image))
}

fn broken(what: &str) -> ImageError {
    ImageError::Decode(what.to_owned())
}

/// The boxes of the file (ISO/IEC 23008-12) that locate and describe its images.
struct Container<'a> {
    bytes: &'a [u8],
    meta: Meta,
    primary: u32,
}

impl<'a> Container<'a> {
    fn read(bytes: &'a [u8]) -> Result<Self> {
        let mut rest = bytes;
        while rest.has_remaining() {
            let found = Any::decode_maybe(&mut rest).map_err(|e| ImageError::decode(&e))?;
            match found {
                Some(Any::Meta(meta)) => {
                    let primary = meta.get::<Pitm>().ok_or_else(|| broken("it has no primary image"))?.item_id;
                    return Ok(Self { bytes, meta, primary });
                }
                Some(_) => {}
                None => break,
            }
        }
        Err(broken("the box that lists its images is missing"))
    }

    /// The properties of an item, in the order in which they apply.
    fn properties(&self, item: u32) -> Vec<&Any> {
        let Some(iprp) = self.meta.get::<Iprp>() else {
            return Vec::new();
        };
        let of_item = iprp.ipma.iter().flat_map(|ipma| &ipma.item_properties).filter(|p| p.item_id == item);
        let indices = of_item.flat_map(|p| &p.associations).map(|a| usize::from(a.property_index));
        indices.filter_map(|index| iprp.ipco.properties.get(index.checked_sub(1)?)).collect()
    }

    fn size(&self, item: u32) -> Result<(u32, u32)> {
        let found = self.properties(item).into_iter().find_map(|property| match property {
            Any::Ispe(Ispe { width, height }) => Some((*width, *height)),
            _ => None,
        });
        found.ok_or_else(|| broken("its size is missing"))
    }

    /// The matrix and range that the container states, which take precedence over those of the AV1 data.
    fn colours(&self, item: u32) -> Option<(u16, bool)> {
        self.properties(item).into_iter().find_map(|property| match property {
            Any::Colr(Colr::Nclx { matrix_coefficients, full_range_flag, .. }) => {
                Some((*matrix_coefficients, *full_range_flag))
            }
            _ => None,
        })
    }

    /// The item that holds the alpha plane of the primary image.
    fn alpha(&self) -> Option<u32> {
        let references = &self.meta.get::<Iref>()?.references;
        let auxiliary = references.iter().filter(|r| r.reference_type == (*b"auxl").into());
        let of_primary = auxiliary.filter(|r| r.to_item_ids.contains(&self.primary)).map(|r| r.from_item_id);
        let mut alphas = of_primary.filter(|item| {
            let is_alpha =
                |property: &&Any| matches!(property, Any::Auxc(auxc) if ALPHA.contains(&auxc.aux_type.as_str()));
            self.properties(*item).iter().any(is_alpha)
        });
        alphas.next()
    }

    fn is_premultiplied(&self, alpha: u32) -> bool {
        self.meta.get::<Iref>().is_some_and(|iref| {
            let is_premultiplied = (*b"prem").into();
            let mut references = iref.references.iter().filter(|r| r.reference_type == is_premultiplied);
            references.any(|r| r.from_item_id == self.primary && r.to_item_ids.contains(&alpha))
        })
    }

    /// The AV1 data of an item, joined from its extents, which may lie anywhere in the file.
    fn data(&self, item: u32) -> Result<Vec<u8>> {
        let kind = self.meta.get::<Iinf>().and_then(|iinf| iinf.item_infos.iter().find(|info| info.item_id == item));
        match kind.and_then(|info| info.item_type) {
            Some(kind) if kind == (*b"av01").into() => {}
            Some(kind) if kind == (*b"grid").into() => return Err(ImageError::AvifGrid),
            _ => return Err(broken("its image is not AV1")),
        }
        let locations = self.meta.get::<Iloc>().map(|iloc| iloc.item_locations.as_slice()).unwrap_or_default();
        let location = locations.iter().find(|l| l.item_id == item).ok_or_else(|| broken("its data is missing"))?;
        let source = match location.construction_method {
            0 => self.bytes,
            1 => self.meta.get::<Idat>().map(|idat| idat.data.as_slice()).unwrap_or_default(),
            _ => return Err(broken("its data is composed of other items")),
        };
        let mut data = Vec::new();
        for extent in &location.extents {
            let start = location.base_offset.checked_add(extent.offset).and_then(|at| usize::try_from(at).ok());
            let rest = start.and_then(|at| source.get(at..)).ok_or(ImageError::CutShort)?;
            let part = match usize::try_from(extent.length) {
                // A length of 0 means the rest of the source.
                Ok(0) => rest,
                Ok(length) => rest.get(..length).ok_or(ImageError::CutShort)?,
                Err(_) => return Err(ImageError::CutShort),
            };
            // Extents may overlap, but a small file must not expand to more data than it holds.
            if data.len() + part.len() > source.len() {
                return Err(broken("its parts overlap"));
            }
            data.extend_from_slice(part);
        }
        Ok(data)
    }

    fn transform(&self, mut image: DynamicImage) -> DynamicImage {
        for property in self.properties(self.primary) {
            image = match property {
                // Steps of 90 degrees, anticlockwise.
                Any::Irot(irot) => match irot.angle {
                    1 => image.rotate270(),
                    2 => image.rotate180(),
                    3 => image.rotate90(),
                    _ => image,
                },
                Any::Imir(imir) if imir.axis & 1 == 0 => image.flipv(),
                Any::Imir(_) => image.fliph(),
                _ => image,
            };
        }
        image
    }
}

/// A decoded AV1 frame.
struct Frame {
    picture: Picture,
    width: usize,
    height: usize,
}

impl Frame {
    fn decode(data: Vec<u8>, width: u32, height: u32) -> Result<Self> {
        let failed = |e: re_rav1d::dav1d::Error| ImageError::decode(&e);
        let mut settings = Settings::new();
        // Stages decode many images in parallel, so one thread per image is enough.
        settings.set_n_threads(1);
        settings.set_max_frame_delay(1);
        settings.set_frame_size_limit(width.saturating_mul(height));
        settings.set_apply_grain(false);
        let mut decoder = Decoder::with_settings(&settings).map_err(failed)?;
        match decoder.send_data(data, None, None, None) {
            Err(e) if !e.is_again() => return Err(failed(e)),
            _ => {}
        }
        let picture = decoder.get_picture().map_err(|e| if e.is_again() { ImageError::CutShort } else { failed(e) })?;
        if (picture.width(), picture.height()) != (width, height) {
            return Err(broken("the sizes that it states differ"));
        }
        Ok(Self { picture, width: width as usize, height: height as usize })
    }

    /// The samples of one plane, each from 0 to `2^bits - 1`, `[height, width]` of that plane.
    fn plane(&self, component: PlanarImageComponent, width: usize, height: usize) -> Vec<f32> {
        let (stride, _) = self.picture.plane_data_geometry(component);
        let plane = self.picture.plane(component);
        let rows = plane.chunks(stride as usize).take(height);
        if self.picture.bit_depth() == 8 {
            rows.flat_map(|row| row[..width].iter().map(|&sample| f32::from(sample))).collect()
        } else {
            let sample = |pair: &[u8]| f32::from(u16::from_ne_bytes([pair[0], pair[1]]));
            rows.flat_map(|row| row[..2 * width].chunks_exact(2).map(sample)).collect()
        }
    }

    /// The intensities of a plane of full size, from 0 (black) to 1 (white), `[height, width]`.
    fn intensities(&self, component: PlanarImageComponent, full: bool) -> Vec<f32> {
        let (black, white) = self.levels(full, 219.0);
        let samples = self.plane(component, self.width, self.height);
        samples.into_iter().map(|sample| (sample - black) / (white - black)).collect()
    }

    /// The levels of the smallest and the largest value. In limited range, they are `steps` levels of 8 bits apart.
    fn levels(&self, full: bool, steps: f32) -> (f32, f32) {
        let scale = (1 << (self.picture.bit_depth() - 8)) as f32;
        if full { (0.0, 256.0 * scale - 1.0) } else { (16.0 * scale, (16.0 + steps) * scale) }
    }

    /// The samples of a colour difference, from -0.5 to 0.5, upsampled to full size, `[height, width]`.
    fn chroma(&self, component: PlanarImageComponent, full: bool) -> Vec<f32> {
        let (halve_x, halve_y) = match self.picture.pixel_layout() {
            PixelLayout::I420 => (true, true),
            PixelLayout::I422 => (true, false),
            PixelLayout::I444 | PixelLayout::I400 => (false, false),
        };
        let width = if halve_x { self.width.div_ceil(2) } else { self.width };
        let height = if halve_y { self.height.div_ceil(2) } else { self.height };
        let (least, largest) = self.levels(full, 224.0);
        let centre = (128 << (self.picture.bit_depth() - 8)) as f32;
        let mut samples = self.plane(component, width, height);
        for sample in &mut samples {
            *sample = (*sample - centre) / (largest - least);
        }
        if halve_x {
            samples = samples.chunks(width).flat_map(|row| doubled(row, self.width)).collect();
        }
        if !halve_y {
            return samples;
        }
        let columns = (0..self.width).map(|x| {
            let column: Vec<f32> = samples.iter().skip(x).step_by(self.width).copied().collect();
            doubled(&column, self.height)
        });
        let columns: Vec<Vec<f32>> = columns.collect();
        (0..self.height).flat_map(|y| columns.iter().map(move |column| column[y])).collect()
    }

    /// Converts the planes to RGB by the matrix and range (ITU-T H.273) of the container or, if it states none, of the AV1 data.
    fn to_rgb(&self, stated: Option<(u16, bool)>) -> Result<RgbImage> {
        let own = (self.picture.matrix_coefficients() as u16, self.picture.color_range() == YUVRange::Full);
        let (matrix, full) = stated.unwrap_or(own);
        let luma = self.intensities(PlanarImageComponent::Y, full);
        let pixel = |red: f32, green: f32, blue: f32| [red, green, blue].map(to_byte);
        let layout = self.picture.pixel_layout();
        let pixels: Vec<u8> = if layout == PixelLayout::I400 {
            luma.iter().flat_map(|&y| pixel(y, y, y)).collect()
        } else if matrix == MatrixCoefficients::Identity as u16 {
            if layout != PixelLayout::I444 {
                return Err(broken("its colours have no matrix and are not of full size"));
            }
            // The planes hold green, blue and red.
            let blue = self.intensities(PlanarImageComponent::U, full);
            let red = self.intensities(PlanarImageComponent::V, full);
            luma.iter().zip(blue.iter().zip(&red)).flat_map(|(&g, (&b, &r))| pixel(r, g, b)).collect()
        } else {
            let (red_share, blue_share) = shares(matrix)?;
            let green_share = 1.0 - red_share - blue_share;
            let cb = self.chroma(PlanarImageComponent::U, full);
            let cr = self.chroma(PlanarImageComponent::V, full);
            let convert = |(&y, (&cb, &cr)): (&f32, (&f32, &f32))| {
                let red = y + 2.0 * (1.0 - red_share) * cr;
                let blue = y + 2.0 * (1.0 - blue_share) * cb;
                pixel(red, (y - red_share * red - blue_share * blue) / green_share, blue)
            };
            luma.iter().zip(cb.iter().zip(&cr)).flat_map(convert).collect()
        };
        RgbImage::from_raw(self.width as u32, self.height as u32, pixels)
            .ok_or_else(|| broken("its planes are too small"))
    }
}

/// The weights of red and blue in the luma (ITU-T H.273, table 4).
fn shares(matrix: u16) -> Result<(f32, f32)> {
    Ok(match matrix {
        1 => (0.2126, 0.0722),
        4 => (0.30, 0.11),
        // The matrix 2 is unspecified: like libavif, this uses the weights of JPEG files, those of BT.601.
        2 | 5 | 6 => (0.299, 0.114),
        7 => (0.212, 0.087),
        9 => (0.2627, 0.0593),
        other => return Err(broken(&format!("its colour matrix {other} of ITU-T H.273 is not supported; convert it"))),
    })
}

/// Upsamples a row linearly to twice as many samples, or one less. The original samples lie midway between pairs of new ones.
fn doubled(row: &[f32], width: usize) -> Vec<f32> {
    let last = row.len() - 1;
    let sample = |x: usize| {
        let near = x / 2;
        let far = if x.is_multiple_of(2) { near.saturating_sub(1) } else { (near + 1).min(last) };
        0.75 * row[near] + 0.25 * row[far]
    };
    (0..width).map(sample).collect()
}

fn to_byte(value: f32) -> u8 {
    (value * 255.0).round().clamp(0.0, 255.0) as u8
}

fn with_alpha(rgb: &RgbImage, alpha: &Frame, is_premultiplied: bool) -> RgbaImage {
    let levels = alpha.intensities(PlanarImageComponent::Y, alpha.picture.color_range() == YUVRange::Full);
    RgbaImage::from_fn(rgb.width(), rgb.height(), |x, y| {
        let level = levels[y as usize * rgb.width() as usize + x as usize].clamp(0.0, 1.0);
        let [red, green, blue] = rgb.get_pixel(x, y).0.map(|colour| {
            let divisor = if is_premultiplied && level > 0.0 { level } else { 1.0 };
            to_byte(f32::from(colour) / 255.0 / divisor)
        });
        image::Rgba([red, green, blue, to_byte(level)])
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::MAX_PIXELS;

    fn file(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/avif").join(name)
    }

    fn read(name: &str) -> Vec<u8> {
        fs::read(file(&format!("{name}.avif"))).unwrap()
    }

    /// The largest and the mean difference between the channels of two images. Colours are weighted by opacity, because the colour of an
    /// almost transparent pixel is hardly defined.
    fn differences(ours: &DynamicImage, theirs: &DynamicImage) -> (f64, f64) {
        assert_eq!((ours.width(), ours.height()), (theirs.width(), theirs.height()));
        let (ours, theirs) = (ours.to_rgba8(), theirs.to_rgba8());
        let mut all = Vec::new();
        for (a, b) in ours.pixels().zip(theirs.pixels()) {
            let opacity = f64::from(b.0[3]) / 255.0;
            all.extend((0..3).map(|c| f64::from(a.0[c].abs_diff(b.0[c])) * opacity));
            all.push(f64::from(a.0[3].abs_diff(b.0[3])));
        }
        (all.iter().copied().fold(0.0, f64::max), all.iter().sum::<f64>() / all.len() as f64)
    }

    /// `tools/make_avif_fixtures.py` writes the files and what Pillow 13.0.0 decodes from them. For 10 and 12 bits per channel, the
    /// reference is libavif's own conversion, because Pillow loses up to 6 levels there.
    #[test]
    fn images_decode_as_in_pillow() {
        let mut tried = 0;
        for entry in fs::read_dir(file("")).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|e| e != "png") {
                continue;
            }
            let name = path.file_stem().unwrap().to_str().unwrap();
            let ours = crate::decode(&read(name), MAX_PIXELS).unwrap_or_else(|e| panic!("{name}: {e}"));
            let theirs = image::open(&path).unwrap();
            assert_eq!(ours.color().has_alpha(), theirs.color().has_alpha(), "{name}");
            let (most, mean) = differences(&ours, &theirs);
            assert!(most <= 3.0 && mean < 0.5, "{name}: differs by up to {most}, {mean} on average");
            tried += 1;
        }
        assert_eq!(tried, 13);
    }

    #[test]
    fn sizes_are_those_before_rotation_and_limits_hold() {
        assert_eq!(crate::dimensions(&read("turned")).unwrap(), (23, 17));
        let reason = |bytes: &[u8], max_pixels| crate::decode(bytes, max_pixels).unwrap_err().to_string();
        assert_eq!(reason(&read("420"), 23 * 17 - 1), "it has 23 x 17 pixels, more than 390");
        assert_eq!(reason(&read("tiles"), MAX_PIXELS), "it is a tiled AVIF image, which is not supported; convert it");
    }

    #[test]
    fn every_truncation_is_an_error_and_no_flipped_bit_makes_the_decoder_panic() {
        for name in ["420", "alpha", "turned"] {
            let whole = read(name);
            for length in 16..whole.len() {
                let found = crate::decode(&whole[..length], MAX_PIXELS);
                assert!(found.is_err(), "{name}: {length} of {} bytes decode", whole.len());
            }
            for at in 0..whole.len() {
                let mut bytes = whole.clone();
                bytes[at] ^= 1 << (at % 8);
                let found = crate::decode(&bytes, MAX_PIXELS);
                let panics = matches!(found, Err(ImageError::Panic));
                assert!(!panics, "{name}: byte {at}");
            }
        }
    }
}
