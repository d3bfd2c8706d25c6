//! The fuzz targets. `tests/faults/seeds.rs` runs them on the stored seeds and found cases in every test run, without a fuzzer. Each
//! function panics if a guarantee is violated, and returns how much of its input could be used.

use std::path::Path;
use std::sync::OnceLock;

use mp4sr_artifact::{Items, MappedFeatures, Sequences, Stage, StageSettings, TensorFile, Users, hash_ids};
use mp4sr_extract::{ImageEncoder, load_image_encoder};
use mp4sr_pipeline::Config;
use mp4sr_pipeline::config::{Columns, Format, ModelCatalog, Source};

fn write(folder: &Path, name: &str, bytes: &[u8]) -> std::path::PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    path
}

/// A tensor file gives an error, or tensors that satisfy what their readers guarantee.
pub fn tensors(folder: &Path, bytes: &[u8]) -> usize {
    let path = write(folder, "any.safetensors", bytes);
    let mut used = 0;
    for (format, version) in [("sequences", 1), ("features", 1), ("ranks", 2)] {
        if let Ok(mut file) = TensorFile::read(&path, format, version, "make it again") {
            for name in file.names() {
                used += usize::from(file.take(&name).is_ok());
            }
        }
    }
    if let Ok(sequences) = Sequences::read(&path) {
        let events: usize = (0..sequences.user_count()).map(|user| sequences.of(user).len()).sum();
        assert_eq!(events, sequences.items.len());
        assert_eq!(events, sequences.times.len());
        assert!(sequences.items.iter().all(|&item| (1..=sequences.item_count).contains(&(item as usize))));
        used += 1;
    }
    if let Ok(features) = MappedFeatures::open(&path, &hash_ids(["a", "b"]), 2) {
        assert_eq!(features.offsets.len(), 3);
        assert!(features.offsets.is_sorted());
        used += 1;
    }
    used
}

/// A Parquet file, read as a table of a dataset and as raw interactions, gives an error, or columns that satisfy what their readers
/// guarantee.
pub fn parquet(folder: &Path, bytes: &[u8]) -> usize {
    let path = write(folder, "any.parquet", bytes);
    let mut used = 0;
    if let Ok(items) = Items::read(&path) {
        assert!([items.titles.len(), items.sentences.len(), items.images.len()].iter().all(|&n| n == items.len()));
        used += 1;
    }
    used += usize::from(Users::read(&path).is_ok());
    let source = Source { format: Format::Tabular, ..Source::default() };
    if let Ok((rows, events)) = mp4sr_preprocess::count_events(&path, &source) {
        assert!(events <= rows);
        used += events as usize;
    }
    let columns = Columns { texts: vec!["sentences".to_owned()], images: "images".to_owned(), ..Columns::default() };
    if let Ok((rows, items)) = mp4sr_preprocess::count_items(&path, &Source { columns, ..source }) {
        assert!(items <= rows);
        used += items as usize;
    }
    used
}

/// Whatever the record of a stage contains, the stage either runs again or is up to date.
pub fn manifest(folder: &Path, bytes: &[u8]) -> usize {
    write(folder, "work.manifest.json", bytes);
    let input = write(folder, "in", b"in");
    let stage = Stage::new("work", 1, folder, StageSettings::of(1), &[("in".to_owned(), input)])
        .unwrap_or_else(|e| panic!("{e}"));
    usize::from(stage.status().is_ok())
}

/// A pipeline file, whose last line is an override, gives an error, or a configuration that survives being written and read again.
pub fn configuration(_: &Path, bytes: &[u8]) -> usize {
    let Ok(text) = std::str::from_utf8(bytes) else { return 0 };
    let (file, assignment) = text.rsplit_once('\n').unwrap_or((text, ""));
    let overrides = if assignment.is_empty() { vec![] } else { vec![assignment.to_owned()] };
    let models = mp4sr_run::model_catalog();
    let Ok((config, _)) = Config::parse(file, "any", &overrides, models) else { return 0 };
    let again = config.to_toml().and_then(|text| Config::parse(&text, "again", &[], models));
    assert_eq!(again.unwrap_or_else(|e| panic!("{e}")).0, config);
    1
}

/// Raw files of one format, with interactions and, after the first empty line, items, give an error, or an account that includes every
/// line.
fn account(folder: &Path, bytes: &[u8], form: &str, end: &str) {
    let half = bytes.windows(2).position(|two| two == b"\n\n");
    let (events, items) = half.map_or((bytes, bytes), |at| (&bytes[..=at], &bytes[at + 2..]));
    write(folder, &format!("events.{end}"), events);
    write(folder, &format!("items.{end}"), items);
    let pipeline = format!(
        "[dataset]\nname = \"any\"\ndata = \"{}\"\n[source]\nformat = \"{form}\"\ninteractions = [\"events.{end}\"]\n\
         items = [\"items.{end}\"]\n[preprocess]\nuser_core = 1\nitem_core = 1\n",
        folder.display()
    );
    let models = ModelCatalog::unchecked();
    let (config, _) = Config::parse(&pipeline, "any", &[], &models).unwrap_or_else(|e| panic!("{e}"));
    if let Err(error) = mp4sr_preprocess::account(&config) {
        assert!(!error.to_string().contains("defect"), "{error}");
    }
}

/// Reads all lines as interactions in each of `forms`, each with its file extension. If the length is a multiple of 64, also computes the
/// whole account, which is too slow for every input.
fn raw(folder: &Path, bytes: &[u8], forms: &[(Format, &str, &str)]) -> usize {
    let mut used = 0;
    for (format, form, end) in forms {
        let path = write(folder, &format!("any.{end}"), bytes);
        let source = Source { format: *format, ..Source::default() };
        if let Ok((lines, events)) = mp4sr_preprocess::count_events(&path, &source) {
            assert!(events <= lines);
            used += events as usize;
        }
        if bytes.len().is_multiple_of(64) {
            account(folder, bytes, form, end);
        }
    }
    used
}

/// JSON lines in the formats of Amazon and `GoodReads`, and as a table.
pub fn raw_json(folder: &Path, bytes: &[u8]) -> usize {
    let forms = [
        (Format::Amazon2018, "amazon-2018", "jsonl"),
        (Format::Amazon2023, "amazon-2023", "jsonl"),
        (Format::GoodReads, "goodreads", "jsonl"),
        (Format::Tabular, "tabular", "jsonl"),
    ];
    raw(folder, bytes, &forms)
}

/// Lines of Python literals, as in the item files of Amazon 2014.
pub fn raw_python(folder: &Path, bytes: &[u8]) -> usize {
    let path = write(folder, "any.json", bytes);
    let read = mp4sr_preprocess::count_items(&path, &Source { format: Format::Amazon2014, ..Source::default() });
    read.map_or(0, |(_, items)| items as usize) + raw(folder, bytes, &[(Format::Amazon2014, "amazon-2014", "json")])
}

/// CSV, TSV, and atomic files of `RecBole`.
pub fn raw_delimited(folder: &Path, bytes: &[u8]) -> usize {
    let forms = [
        (Format::Tabular, "tabular", "csv"),
        (Format::Tabular, "tabular", "tsv"),
        (Format::RecBole, "recbole", "inter"),
    ];
    raw(folder, bytes, &forms)
}

/// Tables and lines in the formats of other programs. The first byte selects the format and its settings.
pub fn raw_dialects(folder: &Path, bytes: &[u8]) -> usize {
    let Some((&form, bytes)) = bytes.split_first() else { return 0 };
    let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
    let header = names(&["user_id", "item_id", "timestamp", "text", "image"]);
    let columns = Columns {
        texts: names(&["text"]),
        images: "image".to_owned(),
        title: "text".to_owned(),
        item_separator: if form % 8 == 4 { " ".to_owned() } else { String::new() },
        text_separator: if form % 8 == 3 { "|".to_owned() } else { String::new() },
        ..Columns::default()
    };
    let (key, value) = match form % 8 {
        0 => ("time", "mixed"),
        1 => ("encoding", "utf-16"),
        2 => ("encoding", "latin-1"),
        3 => ("separator", "::"),
        4 => ("time", "line-order"),
        6 => ("time", "%d.%m.%Y"),
        _ => ("", ""),
    };
    let of = |name: &str| if key == name { value.to_owned() } else { String::new() };
    let mut source = Source {
        format: Format::Tabular,
        columns,
        time: of("time"),
        encoding: of("encoding"),
        separator: of("separator"),
        quote_escape: if form % 8 == 2 { "\\".to_owned() } else { String::new() },
        decimal_comma: form % 8 == 5,
        ..Source::default()
    };
    if form & 8 != 0 {
        (source.interactions_header, source.items_header) = (header.clone(), header);
    }
    let ends = ["csv", "tsv", "dat", "json", "inter"];
    let path = write(folder, &format!("any.{}", ends[usize::from(form >> 4) % ends.len()]), bytes);
    let read = [mp4sr_preprocess::count_events(&path, &source), mp4sr_preprocess::count_items(&path, &source)];
    let used = |(lines, accepted): (u64, u64)| {
        assert!(accepted <= lines);
        accepted as usize
    };
    read.into_iter().flatten().map(used).sum()
}

/// An image gives the reason why it is invalid, or pixels of the encoder's size.
pub fn image(_: &Path, bytes: &[u8]) -> usize {
    static ENCODER: OnceLock<Box<dyn ImageEncoder>> = OnceLock::new();
    let encoder = ENCODER.get_or_init(|| {
        let folder = std::env::var("CARGO_MANIFEST_DIR").unwrap() + "/../data/encoders/tiny-clip";
        load_image_encoder(&folder).unwrap_or_else(|e| panic!("{e}"))
    });
    let processor = encoder.processor();
    let Ok(pixels) = processor.read(bytes) else { return 0 };
    assert_eq!(pixels.len(), 3 * processor.side() * processor.side());
    assert!(pixels.iter().all(|value| value.is_finite()));
    1
}
