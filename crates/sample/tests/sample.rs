//! Checks the guarantees of the sample world by reading its files again.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use flate2::read::GzDecoder;
use mp4sr_artifact::{Fingerprint, files};
use mp4sr_sample::{IMAGES, META, PRODUCTS, PURCHASES, REVIEWS, SampleFormat, SampleOutcome, TRUTH, Truth, ensure};
use mp4sr_tests::copy_folder;
use serde_json::Value;

/// One world for all tests that only read it, here and in other crates.
static WORLD: LazyLock<PathBuf> = LazyLock::new(|| {
    mp4sr_tests::shared(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("sample"), |folder| {
        assert_eq!(ensure(&folder.join("raw"), 1, SampleFormat::Amazon).unwrap(), SampleOutcome::Written);
    })
});

fn raw() -> PathBuf {
    WORLD.join("raw")
}

fn truth(folder: &Path) -> Truth {
    serde_json::from_slice(&files::read(&folder.join(TRUTH)).unwrap()).unwrap()
}

/// The complete lines, and the number of lines that are not JSON.
fn lines(path: &Path) -> (Vec<Value>, usize) {
    let (mut whole, mut cut) = (Vec::new(), 0);
    for line in BufReader::new(GzDecoder::new(files::open(path).unwrap())).lines() {
        match serde_json::from_str(&line.unwrap()) {
            Ok(value) => whole.push(value),
            Err(_) => cut += 1,
        }
    }
    (whole, cut)
}

/// All paths below `folder`, ascending.
fn paths_below(folder: &Path) -> Vec<PathBuf> {
    let paths = files::list(folder).unwrap();
    let mut below: Vec<PathBuf> =
        paths.into_iter().flat_map(|path| if path.is_dir() { paths_below(&path) } else { vec![path] }).collect();
    below.sort();
    below
}

/// The tiny encoders were trained on this world and results were measured on it, so a change of any byte must raise `GENERATOR_VERSION`.
#[test]
fn seed_1_gives_the_same_bytes_as_ever() {
    let hashes: Vec<String> = paths_below(&raw())
        .iter()
        .map(|path| {
            let name = path.strip_prefix(raw()).unwrap().display().to_string();
            format!("{name} {}", Fingerprint::of_file(path).unwrap())
        })
        .collect();
    assert_eq!(Fingerprint::of_bytes(hashes.join("\n").as_bytes()).to_string(), WORLD_HASH);
}

const WORLD_HASH: &str = "b3ecfbdfd1b2928c14b4b9407d2f1970a1f9d4dae470b46eabfd25e6455e66e8";

fn text(line: &Value, key: &str) -> String {
    line[key].as_str().unwrap().to_owned()
}

/// Distinct (user, item) pairs and the number of repeats.
fn events() -> (BTreeSet<(String, String)>, usize) {
    let (reviews, _) = lines(&raw().join(REVIEWS));
    let mut pairs = BTreeSet::new();
    let repeats = reviews.iter().filter(|line| !pairs.insert((text(line, "reviewerID"), text(line, "asin")))).count();
    (pairs, repeats)
}

fn fingerprints(folder: &Path) -> Vec<(String, Fingerprint)> {
    let images = files::list(&folder.join(IMAGES)).unwrap();
    let all = [REVIEWS, META, TRUTH].iter().map(|name| folder.join(name)).chain(images);
    all.map(|path| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        (name, Fingerprint::of_file(&path).unwrap())
    })
    .collect()
}

#[test]
fn the_same_seed_gives_the_same_bytes_and_another_seed_another_world() {
    let folder = tempfile::tempdir().unwrap();
    let again = folder.path().join("raw");
    copy_folder(&raw(), &again);
    assert_eq!(ensure(&again, 2, SampleFormat::Amazon).unwrap(), SampleOutcome::Written);
    assert_ne!(truth(&raw()).items, truth(&again).items);
    assert_eq!(ensure(&again, 1, SampleFormat::Amazon).unwrap(), SampleOutcome::Written);
    assert_eq!(fingerprints(&raw()), fingerprints(&again));
}

#[test]
fn tables_hold_the_purchases_and_products_of_the_reviews() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("shop");
    assert_eq!(ensure(&out, 1, SampleFormat::Tables).unwrap(), SampleOutcome::Written);
    let rows = |name: &str| -> Vec<Vec<String>> {
        let mut reader = csv::Reader::from_path(out.join(name)).unwrap();
        reader.records().map(|row| row.unwrap().iter().map(str::to_owned).collect()).collect()
    };
    let (reviews, _) = lines(&raw().join(REVIEWS));
    let mut expected: Vec<[String; 3]> = reviews
        .iter()
        .map(|line| {
            let day = jiff::Timestamp::from_second(line["unixReviewTime"].as_i64().unwrap()).unwrap();
            [text(line, "reviewerID"), text(line, "asin"), day.strftime("%Y-%m-%d").to_string()]
        })
        .collect();
    expected.sort();
    let purchases = rows(PURCHASES);
    assert!(purchases.is_sorted_by_key(|row| row[2].clone()));
    let mut found: Vec<[String; 3]> = purchases.into_iter().map(|row| [0, 1, 2].map(|at| row[at].clone())).collect();
    found.sort();
    assert_eq!(found, expected);
    let (metadata, _) = lines(&raw().join(META));
    let titles: BTreeMap<String, String> =
        metadata.iter().map(|line| (text(line, "asin"), text(line, "title"))).collect();
    let products = rows(PRODUCTS);
    assert_eq!(products.iter().map(|row| (row[0].clone(), row[1].clone())).collect::<BTreeMap<_, _>>(), titles);
    let photos = products.iter().filter(|row| !row[5].is_empty());
    assert_eq!(
        photos.inspect(|row| assert!(out.join(IMAGES).join(&row[5]).exists())).count(),
        truth(&raw()).raw.image_files
    );
    assert_eq!(ensure(&out, 1, SampleFormat::Tables).unwrap(), SampleOutcome::UpToDate);
}

#[test]
fn a_finished_world_is_left_alone_and_one_that_is_damaged_or_in_another_format_is_written_again() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("raw");
    copy_folder(&raw(), &out);
    assert_eq!(ensure(&out, 1, SampleFormat::Amazon).unwrap(), SampleOutcome::UpToDate);
    files::remove_if_present(&out.join(META)).unwrap();
    files::write_bytes(&folder.path().join("raw.mp4sr-tmp-1/reviews.json.gz"), b"half").unwrap();
    assert_eq!(ensure(&out, 1, SampleFormat::Amazon).unwrap(), SampleOutcome::Written);
    assert!(out.join(META).exists());
    let names: Vec<_> = files::list(folder.path()).unwrap();
    assert!(names.iter().all(|path| !path.to_string_lossy().contains("mp4sr-tmp")), "a killed run left {names:?}");
    assert_eq!(ensure(&out, 1, SampleFormat::Tables).unwrap(), SampleOutcome::Written);
    assert!(out.join(PURCHASES).exists() && !out.join(REVIEWS).exists());
}

#[test]
fn a_folder_with_other_content_is_refused_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    files::write_bytes(&folder.path().join("raw/thesis.tex"), b"years of work").unwrap();
    let message = ensure(&folder.path().join("raw"), 1, SampleFormat::Amazon).unwrap_err().to_string();
    assert!(message.contains("is not a sample world"), "{message}");
    assert!(folder.path().join("raw/thesis.tex").exists());
}

#[test]
fn review_faults_match_the_stated_counts() {
    let truth = truth(&raw());
    let (reviews, cut) = lines(&raw().join(REVIEWS));
    assert_eq!(cut, truth.faults.cut_review_lines);
    assert_eq!(reviews.len() + cut, truth.raw.review_lines);
    let (pairs, repeats) = events();
    assert_eq!(repeats, truth.faults.repeated_events);
    assert_eq!(pairs.len(), truth.raw.events);
    let (mut users, mut items) = (BTreeMap::new(), BTreeMap::new());
    for (user, item) in &pairs {
        *users.entry(user).or_insert(0) += 1;
        *items.entry(item).or_insert(0) += 1;
    }
    assert_eq!((users.len(), items.len()), (truth.raw.users, truth.raw.items));
    assert_eq!(users.values().filter(|count| **count < 5).count(), truth.faults.users_under_five);
    assert_eq!(items.values().filter(|count| **count < 5).count(), truth.faults.items_under_five);
    let described: BTreeSet<_> = lines(&raw().join(META)).0.iter().map(|line| text(line, "asin")).collect();
    let undescribed = items.keys().filter(|item| !described.contains(item.as_str())).count();
    assert_eq!(undescribed, truth.faults.items_without_metadata);
    let unsold = described.iter().filter(|item| !items.contains_key(item)).count();
    assert_eq!(unsold, truth.faults.items_without_reviews);
}

#[test]
fn metadata_and_image_faults_match_the_stated_counts() {
    let truth = truth(&raw());
    let (meta, cut) = lines(&raw().join(META));
    assert_eq!((meta.len(), cut), (truth.raw.metadata_lines, 0));
    let marked = |value: &Value| value.to_string().contains(['<', '&']);
    let count = |holds: &dyn Fn(&Value) -> bool| meta.iter().filter(|line| holds(line)).count();
    assert_eq!(count(&|line| marked(&line["title"])), truth.faults.titles_with_markup);
    assert_eq!(count(&|line| marked(&line["description"])), truth.faults.descriptions_with_markup);
    let bare = |line: &Value| {
        line["title"] == "" && ["description", "feature"].iter().all(|key| line[key].as_array().unwrap().is_empty())
    };
    assert_eq!(count(&bare), truth.faults.items_without_text);

    let paths = files::list(&raw().join(IMAGES)).unwrap();
    assert_eq!(paths.len(), truth.raw.image_files);
    let broken = paths.iter().filter(|path| image::open(path).is_err()).count();
    assert_eq!(broken, truth.faults.images_that_do_not_decode);
    let with_image: BTreeSet<_> =
        paths.iter().map(|path| path.file_stem().unwrap().to_string_lossy().into_owned()).collect();
    let without_image = meta.iter().filter(|line| !with_image.contains(&text(line, "asin"))).count();
    assert_eq!(without_image, truth.faults.items_without_image);
    for item in &truth.items {
        assert_eq!(item.image.is_some(), with_image.contains(&item.asin), "{}", item.asin);
    }
}

#[test]
fn enough_data_is_left_after_the_five_core() {
    let (mut pairs, _) = events();
    loop {
        let (mut users, mut items) = (BTreeMap::new(), BTreeMap::new());
        for (user, item) in &pairs {
            *users.entry(user.clone()).or_insert(0) += 1;
            *items.entry(item.clone()).or_insert(0) += 1;
        }
        let before = pairs.len();
        pairs.retain(|(user, item)| users[user] >= 5 && items[item] >= 5);
        if pairs.len() == before {
            let core = truth(&raw()).five_core;
            assert_eq!((users.len(), items.len(), before), (core.users, core.items, core.events));
            assert!(core.users >= 4_000 && core.items >= 1_500 && core.events >= 40_000, "{core:?}");
            return;
        }
    }
}

#[test]
fn attributes_that_only_images_show_are_not_in_the_texts() {
    let truth = truth(&raw());
    let (meta, _) = lines(&raw().join(META));
    let visible = [&truth.vocabulary.colour, &truth.vocabulary.pattern, &truth.vocabulary.shape];
    for line in &meta {
        let written = format!("{} {} {}", line["title"], line["description"], line["feature"]).to_lowercase();
        let words: BTreeSet<_> = written.split(|c: char| !c.is_alphabetic()).collect();
        for word in visible.into_iter().flatten() {
            assert!(!words.contains(word.as_str()), "`{word}` in {written}");
        }
    }
}
