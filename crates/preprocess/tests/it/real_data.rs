//! Tests with real data that cannot be part of the repository. If it is absent, the tests report this and pass.

use mp4sr_artifact::Layout;
use mp4sr_tests::root;

use crate::harness::{Dataset, read, run};

fn dataset(name: &str) -> Option<Dataset> {
    let data = root().join("../shared/data");
    if !data.join("README.md").is_file() {
        eprintln!("skipped: no real data in {}", data.display());
        return None;
    }
    let artifacts = tempfile::tempdir().unwrap();
    let output = run(&root().join(format!("pipelines/{name}.toml")), &data, artifacts.path(), &["--quiet"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(read(&Layout::new(artifacts.path(), name, "default")))
}

fn assert_counts(dataset: &Dataset, users: u64, items: u64, events: u64) {
    let found = &dataset.report.statistics;
    assert_eq!((found.users, found.items, found.events), (users, items, events));
}

#[test]
fn arts_with_titles_is_a_five_core_already() {
    let Some(arts) = dataset("arts-titles") else { return };
    assert_counts(&arts, 22_171, 9_416, 174_079);
    assert_eq!(arts.report.events.read, 174_079);
    assert_eq!(arts.report.statistics.items_without_text, 0);
}

#[test]
fn the_last_twelve_events_of_movielens_shrink_to_their_core() {
    let Some(movies) = dataset("ml-1m-recent") else { return };
    assert_counts(&movies, 6_038, 2_307, 70_394);
    assert!(movies.items.images.iter().flatten().all(|name| root().join("../shared/data").join(name).is_file()));
}

#[test]
fn movielens_100k_has_items_without_a_poster() {
    let Some(movies) = dataset("ml-100k") else { return };
    assert_counts(&movies, 943, 1_349, 99_287);
    assert_eq!(movies.report.statistics.items_without_image, 7);
}

#[test]
fn the_last_twelve_events_of_movielens_100k_are_taken_from_the_whole_file() {
    let Some(movies) = dataset("ml-100k-last12") else { return };
    assert_counts(&movies, 937, 697, 10_011);
}

#[test]
fn gift_cards_are_read_by_the_reader_of_amazon_2018() {
    let Some(cards) = dataset("gift-cards") else { return };
    assert_counts(&cards, 453, 147, 2_941);
    assert_eq!(cards.report.events.dropped["repeated event"], 7);
    assert_eq!(cards.report.statistics.items_with_urls_only, 115);
}
