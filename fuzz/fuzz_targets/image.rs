//! Any bytes as a picture: pixels of the encoder's size, or why they are none.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use mp4sr_extract::{ImageEncoder, load_image_encoder};

static ENCODER: OnceLock<Box<dyn ImageEncoder>> = OnceLock::new();

fuzz_target!(|bytes: &[u8]| {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../data/encoders/tiny-clip");
    let processor = ENCODER.get_or_init(|| load_image_encoder(folder).unwrap()).processor();
    if let Ok(pixels) = processor.read(bytes) {
        assert_eq!(pixels.len(), 3 * processor.side() * processor.side());
        assert!(pixels.iter().all(|value| value.is_finite()));
    }
});
