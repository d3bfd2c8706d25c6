//! Tests that interactions on disk give the same dataset as interactions in memory.

use std::fmt::Write as _;

use mp4sr_tests::Project;

use crate::harness::{dataset_of, shop_of};

/// Many users with ties and repeats in two files; some users and items are below their bounds.
fn shop() -> Project {
    let shop = shop_of(
        "[source]\nformat = \"tabular\"\ninteractions = [\"a.tsv\", \"b.jsonl\"]\nitems = [\"items.csv\"]\n\
         [source.columns]\ntexts = [\"text\"]\nimages = \"image\"\n[preprocess]\nuser_core = 3\nitem_core = 4\n",
    );
    let (mut table, mut lines, mut items) =
        ("user_id\titem_id\ttimestamp\trating\n".to_owned(), String::new(), "item_id,title,text,image\n".to_owned());
    let mut state = 1_u64;
    let mut draw = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    for event in 0..30_000 {
        let (user, item, time) = (draw(4000), draw(30) * draw(30), 1_500_000_000 + draw(9));
        if event < 20_000 {
            let rating = if draw(10) == 0 { String::new() } else { draw(6).to_string() };
            let _ = writeln!(table, "u{user}\ti{item}\t{time}\t{rating}");
        } else {
            let rating = draw(6);
            let _ = writeln!(
                lines,
                "{{\"user_id\": \"u{user}\", \"item_id\": \"i{item}\", \"timestamp\": {time}, \"rating\": {rating}}}"
            );
        }
    }
    // Some items have no line, and some lines have no events.
    for item in (0..930).filter(|item| item % 11 != 5) {
        let image = if item % 7 == 0 { String::new() } else { format!("https://images/{item}.jpg") };
        let _ = writeln!(items, "i{item},Item {item},,{image}");
    }
    for item in ["i5", "i16", "i20"] {
        shop.write_raw(&format!("pictures/{item}.jpg"), "not decoded here");
    }
    shop.write_raw("a.tsv", table).write_raw("b.jsonl", lines).write_raw("items.csv", items);
    shop
}

#[test]
fn a_dataset_built_on_disk_has_the_same_bytes_as_one_built_in_memory() {
    let shop = shop();
    for more in [
        &[][..],
        &["preprocess.missing=drop"],
        &["preprocess.where=rating >= 2", "preprocess.recent=4", "preprocess.repeated=first"],
        &["preprocess.where=rating >= AVG(rating)", "preprocess.since=1500000001", "preprocess.repeated=all"],
        &["preprocess.split=time", "preprocess.split_at=1500000004", "preprocess.split_test_at=1500000007"],
        &["preprocess.split=ratio"],
        &["source.images=pictures", "preprocess.items_without_events=keep", "preprocess.item_order=items"],
    ] {
        let made = |memory: &str| {
            let memory = format!("preprocess.memory={memory}");
            let arguments: Vec<&str> =
                more.iter().copied().chain([memory.as_str()]).flat_map(|s| ["--set", s]).collect();
            let _ = std::fs::remove_dir_all(shop.path("shop/dataset"));
            shop.run_stderr("preprocess", &arguments);
            let report = dataset_of(&shop).report;
            let files = ["items.parquet", "users.parquet", "sequences.safetensors"]
                .map(|name| std::fs::read(shop.path("shop/dataset").join(name)));
            assert!(!shop.path("shop/dataset/spill").exists());
            (dataset_of(&shop).sequences, files.map(Result::unwrap), report.filters, report.statistics)
        };
        let (in_memory, on_disk) = (made(""), made("1KiB"));
        assert_eq!(in_memory.0, on_disk.0, "{more:?}");
        assert_eq!(in_memory, on_disk, "{more:?}");
    }
}

#[test]
fn an_error_leaves_no_events_on_disk() {
    let shop = shop();
    let keys = ["--set", "preprocess.memory=1KiB", "--set", "preprocess.where=rating >= 'x'"];
    assert!(shop.run_failing("preprocess", &keys).contains("compares `rating`"));
    assert!(!shop.path("shop/dataset/spill").exists());
}

#[test]
fn another_memory_limit_rebuilds_nothing() {
    let shop = shop();
    shop.run_stderr("preprocess", &[]);
    let again = shop.run_stderr("preprocess", &["--set", "preprocess.memory=1GiB"]);
    assert!(again.contains("up to date"), "{again}");
}
