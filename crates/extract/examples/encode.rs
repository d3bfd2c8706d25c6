//! Prints the vector of every line of standard input as a JSON array: to compare an encoder with another implementation.
//!
//!     cargo run --release -p mp4sr-extract --example encode -- data/encoders/tiny-sentence < sentences.txt

use std::io::{BufRead, Write};

fn main() -> anyhow::Result<()> {
    let name = std::env::args().nth(1).unwrap_or_else(|| "data/encoders/tiny-sentence".to_owned());
    let encoder = mp4sr_extract::SentenceEncoder::load(&name)?;
    let lines = std::io::stdin().lock().lines().collect::<Result<Vec<_>, _>>()?;
    let vectors = encoder.encode(&lines, |_| {})?;
    let mut out = std::io::stdout().lock();
    for vector in vectors.chunks_exact(encoder.width()) {
        serde_json::to_writer(&mut out, vector)?;
        out.write_all(b"\n")?;
    }
    Ok(())
}
