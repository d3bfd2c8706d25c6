//! Prints one vector per line as a JSON array, for every line of standard input or for every image file that is named, to compare an
//! encoder with another implementation.
//!
//!     cargo run --release -p mp4sr-extract --example encode -- data/encoders/tiny-sentence < sentences.txt
//!     cargo run --release -p mp4sr-extract --example encode -- data/encoders/tiny-clip one.jpg two.png

use std::io::{BufRead, Write};
use std::path::Path;

use mp4sr_extract::{SentenceEncoder, load_image_encoder};

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let model = arguments.next().unwrap_or_else(|| "data/encoders/tiny-sentence".to_owned());
    let files: Vec<String> = arguments.collect();
    let (vectors, width) = if files.is_empty() { sentences(&model)? } else { images(&model, &files)? };
    let mut out = std::io::stdout().lock();
    for vector in vectors.chunks_exact(width) {
        serde_json::to_writer(&mut out, vector)?;
        out.write_all(b"\n")?;
    }
    Ok(())
}

fn sentences(model: &str) -> anyhow::Result<(Vec<f32>, usize)> {
    let encoder = SentenceEncoder::load(model)?;
    let lines = std::io::stdin().lock().lines().collect::<Result<Vec<_>, _>>()?;
    Ok((encoder.encode(&lines, |_| {})?, encoder.width()))
}

fn images(model: &str, files: &[String]) -> anyhow::Result<(Vec<f32>, usize)> {
    let encoder = load_image_encoder(model)?;
    let mut vectors = Vec::new();
    for file in files {
        let bytes = mp4sr_artifact::files::read(Path::new(file))?;
        let pixels = encoder.processor().read(&bytes);
        let pixels = pixels.map_err(|reason| anyhow::anyhow!("`{file}` cannot be read: {reason}"))?;
        vectors.extend(encoder.embed(&pixels)?);
    }
    Ok((vectors, encoder.width()))
}
