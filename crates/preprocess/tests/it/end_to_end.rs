use std::collections::BTreeMap;
use std::fmt::Write as _;

use mp4sr_tests::{Project, gzip};

use crate::harness::{dataset_of, shop_of};

const SHOP: &str = "[source]\nformat = \"amazon-2018\"\ninteractions = [\"reviews.json.gz\"]\nitems = [\"meta.json.gz\"]\n\
                    images = \"images\"\n";

/// Six users with six items each, and what real files contain: a repeat, a small user, a small item, lines with every kind of fault.
fn shop() -> Project {
    let world = shop_of(SHOP);
    let mut reviews = String::new();
    for event in 0..36 {
        let (user, item) = (event / 6, event % 6);
        // Later items come first, and every time occurs twice, so that the input decides between equal times.
        let time = 1_500_000_000 + (5 - item) / 2;
        let _ =
            writeln!(reviews, "{{\"reviewerID\": \"u{user}\", \"asin\": \"00{item}\", \"unixReviewTime\": {time}}}");
    }
    reviews.push_str("{\"reviewerID\": \"u0\", \"asin\": \"000\", \"unixReviewTime\": 1600000000}\n");
    reviews.push_str("{\"reviewerID\": \"small\", \"asin\": \"000\", \"unixReviewTime\": 1}\n");
    reviews.push_str("{\"reviewerID\": \"u0\", \"asin\": \"rare\", \"unixReviewTime\": 1}\n");
    reviews
        .push_str("{\"reviewerID\": \"u0\", \"asi\n\n{\"reviewerID\": \"\", \"asin\": \"1\", \"unixReviewTime\": 1}\n");
    reviews.push_str("{\"reviewerID\": \"u\", \"asin\": \"1\", \"unixReviewTime\": 1500000000000}\n");
    let mut items = String::new();
    for item in 0..5 {
        let _ = writeln!(
            items,
            "{{\"asin\": \"00{item}\", \"title\": \"Item &#8470;{item}\", \"description\": [\"<b>Soft</b>. Warm.\"], \
             \"imageURLHighRes\": [\"https://images/{item}.jpg\"]}}"
        );
    }
    items.push_str("{\"asin\": \"000\", \"title\": \"again\"}\n{\"asin\": \"unseen\"}\n{\"asin\": \"002\n");
    world.write_raw("reviews.json.gz", gzip(&reviews)).write_raw("meta.json.gz", gzip(&items));
    world.write_raw("images/001.jpg", "x").write_raw("images/001_2.png", "x").write_raw("images/note.txt", "x");
    world
}

#[test]
fn a_small_shop_is_preprocessed_and_every_line_and_event_is_accounted_for() {
    let world = shop();
    world.run_stderr("preprocess", &[]);
    let made = dataset_of(&world);
    assert_eq!(made.users.ids, ["u0", "u1", "u2", "u3", "u4", "u5"]);
    assert_eq!(made.items.ids, ["000", "001", "002", "003", "004", "005"]);
    // The repeat has moved item 000 of u0 to the end.
    assert_eq!(made.sequences.of(0), [5, 6, 3, 4, 2, 1]);
    assert_eq!(made.sequences.of(1), [5, 6, 3, 4, 1, 2]);
    assert_eq!(made.sequences.times[5], 1_600_000_000);
    assert_eq!(made.items.sentences[0], ["Item \u{2116}0", "Soft.", "Warm."]);
    assert_eq!(made.items.sentences[5], Vec::<String>::new());
    assert_eq!(made.items.images[0], ["https://images/0.jpg"]);
    assert_eq!(made.items.images[1], ["images/001.jpg", "images/001_2.png"], "they start in the data folder");

    let report = made.report;
    let lines = &report.interactions.files[0];
    assert_eq!((lines.lines, lines.accepted, lines.rejected), (43, 39, 4));
    let reasons: Vec<(&str, u64)> =
        report.interactions.rejected.0.iter().map(|(reason, rejected)| (reason.as_str(), rejected.count)).collect();
    assert_eq!(
        reasons,
        [
            ("`unixReviewTime` is after the year 2100 (milliseconds?)", 1),
            ("blank line", 1),
            ("broken JSON", 1),
            ("empty `reviewerID`", 1)
        ]
    );
    let broken = &report.interactions.rejected.0["broken JSON"].examples[0];
    assert_eq!((broken.line, broken.file.clone()), (40, world.raw("reviews.json.gz")));
    let dropped = BTreeMap::from(
        [("item below 5 events", 1), ("repeated event", 1), ("user below 5 events", 1)].map(|(r, n)| (r.to_owned(), n)),
    );
    assert_eq!((report.events.read, report.events.kept, &report.events.dropped), (39, 36, &dropped));
    assert_eq!((report.items.repeated, report.items.without_events, report.items.without_line), (1, 1, 2));
    assert_eq!(report.items.rejected.total(), 1);
    let found = report.statistics;
    assert_eq!((found.items_without_text, found.items_without_image, found.items_with_urls_only), (1, 1, 4));
    assert_eq!((found.shortest, found.median_length, found.longest), (6, 6, 6));
}

#[test]
fn a_stage_with_nothing_to_do_reports_it_and_runs_when_a_setting_an_image_or_a_file_changes() {
    let world = shop();
    let first = world.output("preprocess", &[]);
    assert!(String::from_utf8(first.stdout).unwrap().contains("items without text"));
    let again = world.output("preprocess", &[]);
    assert!(String::from_utf8(again.stderr).unwrap().contains("preprocess: up to date"));
    assert!(again.stdout.is_empty());
    world.write_raw("images/002.jpg", "x");
    assert!(world.run_stderr("preprocess", &[]).contains("the names of the images changed"));
    assert_eq!(dataset_of(&world).report.statistics.items_with_urls_only, 3);
    assert!(
        world
            .run_stderr("preprocess", &["--set", "preprocess.max_sentences=1"])
            .contains("`preprocess.max_sentences` changed")
    );
    assert_eq!(dataset_of(&world).items.sentences[0].len(), 1);
    let bytes = std::fs::read(world.path("shop/dataset/sequences.safetensors")).unwrap();
    world.run_stderr("preprocess", &["--set", "preprocess.max_sentences=2"]);
    world.run_stderr("preprocess", &["--set", "preprocess.max_sentences=1"]);
    assert_eq!(std::fs::read(world.path("shop/dataset/sequences.safetensors")).unwrap(), bytes);
}

#[test]
fn items_without_text_or_image_are_dropped_with_their_events_before_the_core_filter() {
    let world = shop();
    world.run_stderr("preprocess", &["--set", "preprocess.missing=drop"]);
    let made = dataset_of(&world);
    assert_eq!(made.items.ids, ["000", "001", "002", "003", "004"]);
    // These are the six events of the item without metadata and the one of the rare item; the core drops the small user.
    assert_eq!(made.report.events.dropped["item without text or image"], 7);
    assert_eq!(made.report.events.dropped["user below 5 events"], 1);
    assert_eq!(made.report.events.kept, 30);
}

#[test]
fn the_table_is_printed_next_to_that_of_the_paper() {
    let world = shop();
    let output = world.output("preprocess", &["--set", "dataset.table1=Pantry"]);
    let table = String::from_utf8(output.stdout).unwrap();
    for expected in
        ["paper (Pantry)", "131,311", "9.65", "reviews.json.gz:40:", "1 repeat an item that was already described"]
    {
        assert!(table.contains(expected), "{expected}\n{table}");
    }
}

#[test]
fn milliseconds_order_events_within_a_second() {
    let world = shop_of(
        "[source]\nformat = \"amazon-2023\"\ninteractions = [\"r.jsonl\"]\n[preprocess]\nuser_core = 0\nitem_core = 0\n",
    );
    let line =
        |item: &str, time: u64| format!("{{\"user_id\": \"u\", \"parent_asin\": \"{item}\", \"timestamp\": {time}}}\n");
    world.write_raw("r.jsonl", [line("b", 1_600_000_000_900), line("a", 1_600_000_000_100)].concat());
    assert!(world.run_stderr("preprocess", &[]).contains("no item has text"));
    let made = dataset_of(&world);
    assert_eq!((made.items.ids, made.sequences.items), (vec!["b".to_owned(), "a".to_owned()], vec![2, 1]));
    assert_eq!(made.sequences.times, [1_600_000_000, 1_600_000_000]);
    assert_eq!((made.report.statistics.users, made.report.statistics.ties), (1, 0));
}

#[test]
fn ids_of_any_kind_are_kept_as_written() {
    let world = shop_of(
        "[source]\nformat = \"tabular\"\ninteractions = [\"e.tsv\"]\n[preprocess]\nuser_core = 1\nitem_core = 1\n",
    );
    world.write_raw(
        "e.tsv",
        "\u{feff}user_id\titem_id\ttimestamp\r\n007\t\"x\"\t1\r\n7\t\u{1f600}\t1\r\n007\t../../etc\t1\r\n",
    );
    world.run_stderr("preprocess", &[]);
    let made = dataset_of(&world);
    assert_eq!(made.users.ids, ["007", "7"]);
    assert_eq!(made.items.ids, ["\"x\"", "\u{1f600}", "../../etc"]);
}
