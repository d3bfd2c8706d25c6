use std::path::Path;

use mp4sr_artifact::files;
use mp4sr_tests::{Project, stages, stderr_of};

use crate::{finished, manifest};

/// Artifacts, each with a stage that reads it.
const READ: [(&str, &str); 14] = [
    ("dataset/sequences.safetensors", "pretrain"),
    ("dataset/items.parquet", "extract"),
    ("dataset/users.parquet", "recommend"),
    ("features/text.tiny-sentence.safetensors", "finetune"),
    ("features/image.tiny-clip-15-words-tiny-sentence.safetensors", "pretrain"),
    ("runs/mp4sr/pretrain.safetensors", "finetune"),
    ("runs/mp4sr/finetune.safetensors", "evaluate"),
    ("runs/mp4sr/ranks.test.safetensors", "report"),
    ("runs/mp4sr/ranks.validation.safetensors", "report"),
    ("features/image.tiny-clip-15-words-tiny-sentence.words.parquet", "report"),
    ("runs/mp4sr/metrics.jsonl", "report"),
    ("dataset/report.json", "report"),
    ("features/report.json", "report"),
    ("runs/mp4sr/recommendations.parquet", "report"),
];

const OTHER: &str = "of another dataset";

/// Replaces an artifact by `bytes`, runs the stage again, and restores the artifact. The stage must reject the file in one sentence that
/// names it, and then this returns true. Otherwise, the stage must write the same outputs as before.
fn refused(world: &Project, artifact: &str, stage: &str, bytes: &[u8], how: &str) -> bool {
    let path = world.path("a").join(artifact);
    let (whole, before) = (files::read(&path).unwrap(), finished(world));
    let manifest = manifest(world, stage);
    let record = files::read(&manifest).unwrap();
    std::fs::write(&path, bytes).unwrap();
    std::fs::remove_file(&manifest).unwrap();
    let output = world.output(stage, &[]);
    let (message, success) = (stderr_of(&output), output.status.success());
    std::fs::write(&path, &whole).unwrap();
    if success {
        for (found, bytes) in finished(world) {
            assert!(before[&found] == bytes, "{artifact}, {how}: {stage} made another {}", found.display());
        }
        return false;
    }
    let name = path.file_name().unwrap().to_string_lossy();
    let last = message.lines().last().unwrap_or_default();
    assert_eq!(output.status.code(), Some(1), "{artifact}, {how}: {message}");
    // If the whole dataset was exchanged, the error may name the next file that does not match.
    let named = last.contains(&*name) || (how == OTHER && last.contains("built for a different item list"));
    assert!(last.starts_with("error: ") && named && last.contains(';'), "{artifact}, {how}: {message}");
    std::fs::write(&manifest, record).unwrap();
    true
}

/// Each artifact has a bit flipped at thirty positions, is truncated at eight lengths, is emptied, and is replaced by every other kind of
/// file and by the same file of another dataset.
#[test]
fn every_damaged_artifact_is_refused_by_name() {
    let world = Project::small();
    for stage in stages() {
        world.run(stage, &[]);
    }
    let other = Project::small();
    other.add("a", 7);
    // The other world has other item and user ids, so that none of its files match.
    let items =
        other.raw_text("a.jsonl").replace("\"i", "\"j").replace("\"jtem", "\"item").replace("\"jmage", "\"image");
    let events = other.raw_text("a.tsv").replace("\ti", "\tj").replace("\tjtem", "\titem").replace("\nu", "\nv");
    for (name, text) in [("a.jsonl", items), ("a.tsv", events)] {
        files::write_bytes(&other.folder().join(name), text.as_bytes()).unwrap();
    }
    for stage in stages() {
        other.run(stage, &[]);
    }
    let mut refusals = 0;
    for (artifact, stage) in READ {
        let whole = files::read(&world.path("a").join(artifact)).unwrap();
        for step in 0..30 {
            let mut flipped = whole.clone();
            let at = step * (whole.len() - 1) / 29;
            flipped[at] ^= 1 << (step % 8);
            refusals += usize::from(refused(&world, artifact, stage, &flipped, &format!("bit at {at}")));
        }
        for part in 0..8 {
            let cut = &whole[..part * whole.len() / 8];
            assert!(refused(&world, artifact, stage, cut, &format!("cut to {} bytes", cut.len())));
        }
        for (another, _) in READ.iter().filter(|(another, _)| Path::new(another) != Path::new(artifact)) {
            let bytes = files::read(&world.path("a").join(another)).unwrap();
            let is_same_kind = another.contains("features/") && artifact.contains("features/");
            // The lists also have the columns of the users' table, with the same content.
            let holds_it = artifact.contains("users") && another.contains("recommendations");
            if !is_same_kind && !holds_it {
                let how = format!("{another} in its place");
                assert!(refused(&world, artifact, stage, &bytes, &how), "{artifact}: {how} is taken");
            }
        }
        // The extract stage reads only the items, and accepts any of them; the features then do not match other sequences. A log does not
        // say to which run it belongs.
        if !["dataset/items.parquet", "runs/mp4sr/metrics.jsonl"].contains(&artifact) {
            let bytes = files::read(&other.path("a").join(artifact)).unwrap();
            assert!(refused(&world, artifact, stage, &bytes, OTHER), "{artifact} of other items is taken");
        }
    }
    assert!(refusals > 200, "only {refusals} of 420 flipped bits were refused");
}

/// Headers that state a wrong length for themselves, tensors beyond the end of the file, and sizes that exceed all memory.
#[test]
fn headers_that_claim_more_than_the_file_has_are_refused() {
    let world = Project::small();
    for stage in stages() {
        world.run(stage, &[]);
    }
    for (artifact, stage) in READ.iter().filter(|(artifact, _)| artifact.ends_with(".safetensors")) {
        let whole = files::read(&world.path("a").join(artifact)).unwrap();
        let length = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
        let header = String::from_utf8(whole[8..8 + length].to_vec()).unwrap();
        let with = |text: &str| {
            let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
            bytes.extend(text.as_bytes());
            bytes.extend(&whole[8 + length..]);
            bytes
        };
        for claimed in [0, 7, length as u64 + 1, 1 << 40, u64::MAX] {
            let mut bytes = whole.clone();
            bytes[..8].copy_from_slice(&claimed.to_le_bytes());
            assert!(refused(&world, artifact, stage, &bytes, &format!("a header of {claimed} bytes")));
        }
        let data = header.rfind("\"data_offsets\":[").unwrap();
        let end = header[data..].find(']').unwrap() + data;
        let start = header[..end].rfind(',').unwrap() + 1;
        for claimed in ["1152921504606846976", "18446744073709551615", "99999999"] {
            let text = format!("{}{claimed}{}", &header[..start], &header[end..]);
            assert!(refused(&world, artifact, stage, &with(&text), &format!("a tensor that ends at {claimed}")));
        }
        let huge = header.replacen("\"shape\":[", "\"shape\":[4294967296,4294967296,", 1);
        assert!(refused(&world, artifact, stage, &with(&huge), "a shape beyond all memory"));
        let older = header.replacen("\\\"version\\\":", "\\\"version\\\":9", 1);
        assert!(refused(&world, artifact, stage, &with(&older), "another format version"));
    }
}

/// The library that reads tables panics on some footers. This must be reported like any other damage.
#[test]
fn a_footer_that_the_library_panics_at_is_refused_in_one_sentence() {
    let world = Project::small();
    world.run("preprocess", &[]);
    let artifact = "dataset/items.parquet";
    let path = world.path("a").join(artifact);
    let whole = files::read(&path).unwrap();
    let copy = world.folder().join("copy.parquet");
    let flipped = (0..whole.len() * 8).rev().find_map(|bit| {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        std::fs::write(&copy, &bytes).unwrap();
        let message = mp4sr_artifact::Items::read(&copy).err()?.to_string();
        message.contains("metadata is inconsistent").then_some(bytes)
    });
    std::fs::write(&path, flipped.expect("no bit makes the library panic")).unwrap();
    let output = world.output("extract", &["--quiet"]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr_of(&output));
    let message = stderr_of(&output);
    assert!(
        message.starts_with("error: `") && message.contains("items.parquet` cannot be used: it is not a complete"),
        "{message}"
    );
    assert_eq!(message.lines().count(), 1, "{message}");
}

/// Files of other programs have no checksum; their content must be checked nevertheless.
#[test]
fn impossible_content_is_refused_even_without_a_checksum() {
    let world = Project::small();
    for stage in stages() {
        world.run(stage, &[]);
    }
    let strip = |artifact: &str, change: &dyn Fn(&mut Vec<u8>, usize)| {
        let whole = files::read(&world.path("a").join(artifact)).unwrap();
        let length = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
        let header = String::from_utf8(whole[8..8 + length].to_vec()).unwrap();
        let at = header.find("\\\"checksum\\\":").unwrap();
        let end = header[at..].find(',').unwrap() + at + 1;
        let mut text = format!("{}{}", &header[..at], &header[end..]);
        text.push_str(&" ".repeat(text.len().next_multiple_of(8) - text.len()));
        let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
        bytes.extend(text.as_bytes());
        let start = bytes.len();
        bytes.extend(&whole[8 + length..]);
        change(&mut bytes, start);
        bytes
    };
    let features = "features/text.tiny-sentence.safetensors";
    let nan = strip(features, &|bytes, _| {
        let end = bytes.len();
        bytes[end - 2..].copy_from_slice(&0x7e00u16.to_le_bytes());
    });
    assert!(refused(&world, features, "finetune", &nan, "NaN"));
    // Safetensors stores wider types first, so these bytes are offsets.
    let falling = strip(features, &|bytes, start| bytes[start + 8..start + 16].copy_from_slice(&99i64.to_le_bytes()));
    assert!(refused(&world, features, "finetune", &falling, "offsets that fall"));
    let negative = strip(features, &|bytes, start| bytes[start..start + 8].copy_from_slice(&(-1i64).to_le_bytes()));
    assert!(refused(&world, features, "finetune", &negative, "a negative offset"));
    let sequences = "dataset/sequences.safetensors";
    let beyond = strip(sequences, &|bytes, _| {
        let end = bytes.len();
        bytes[end - 4..].copy_from_slice(&4_000_000_000u32.to_le_bytes());
    });
    assert!(refused(&world, sequences, "pretrain", &beyond, "an item beyond the last"));
    for value in [f32::NAN, f32::INFINITY] {
        let weights = "runs/mp4sr/finetune.safetensors";
        let bad = strip(weights, &|bytes, start| {
            bytes[start..].as_chunks_mut::<4>().0.iter_mut().for_each(|number| *number = value.to_le_bytes());
        });
        assert!(refused(&world, weights, "evaluate", &bad, "weights that are not numbers"));
    }
    let ranks = "runs/mp4sr/ranks.test.safetensors";
    let beyond = strip(ranks, &|bytes, start| bytes[start..start + 4].copy_from_slice(&77_777u32.to_le_bytes()));
    assert!(refused(&world, ranks, "report", &beyond, "a rank beyond the last item"));
}
