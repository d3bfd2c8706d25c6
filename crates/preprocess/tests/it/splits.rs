//! Tests what a split writes beside the sequences.

use mp4sr_protocol::{EvalCase, Split, training_events, training_items};

use crate::harness::{dataset_of, shop_of};

const TABLE: &str =
    "[source]\nformat = \"tabular\"\ninteractions = [\"e.tsv\"]\n[preprocess]\nuser_core = 0\nitem_core = 0\n";

fn lines(events: &[(&str, &str, u32)]) -> String {
    let lines: Vec<String> = events.iter().map(|(user, item, time)| format!("{user}\t{item}\t{time}\n")).collect();
    format!("user_id\titem_id\ttimestamp\n{}", lines.concat())
}

#[test]
fn nothing_after_the_cut_off_is_used_for_training() {
    let shop = shop_of(TABLE);
    // The second user's events end before the first cut-off, and the third user's begin after the last.
    let events = [
        ("a", "x", 10),
        ("a", "y", 20),
        ("a", "z", 50),
        ("a", "p", 70),
        ("a", "q", 90),
        ("b", "x", 1),
        ("b", "y", 2),
        ("b", "z", 3),
        ("c", "q", 80),
        ("c", "z", 95),
    ];
    shop.write_raw("e.tsv", lines(&events));
    shop.run_stderr(
        "preprocess",
        &["--set", "preprocess.split=time", "--set", "preprocess.split_at=40", "--set", "preprocess.split_test_at=60"],
    );
    let made = dataset_of(&shop);
    let sequences = made.sequences;
    for user in 0..sequences.user_count() {
        let start = sequences.offsets[user] as usize;
        let training = training_items(&sequences, user).len();
        assert!(sequences.times[start..start + training].iter().all(|&time| time < 40), "user {user}");
        let after = start + training..sequences.offsets[user + 1] as usize;
        assert!(sequences.times[after].iter().all(|&time| time >= 40), "all that is before is for training");
        for (split, cut_off) in [(Split::Validation, 40), (Split::Test, 60)] {
            let Some(case) = EvalCase::of(&sequences, user, split) else { continue };
            let at = start + case.history.len();
            assert!(sequences.times[at] >= cut_off && sequences.times[at - 1] < cut_off, "user {user}, {split:?}");
        }
    }
    let id = |item: u32| made.items.ids[item as usize - 1].as_str();
    let target = |user, split| EvalCase::of(&sequences, user, split).map(|case| id(case.target));
    assert_eq!([0, 1, 2].map(|user| target(user, Split::Validation)), [Some("z"), None, None]);
    assert_eq!([0, 1, 2].map(|user| target(user, Split::Test)), [Some("p"), None, None]);
    // Items that only occur later have no events in training, however often they occur then.
    let counts: Vec<(&str, u32)> = made.items.ids.iter().map(String::as_str).zip(training_events(&sequences)).collect();
    assert_eq!(counts, [("x", 2), ("y", 2), ("z", 1), ("p", 0), ("q", 0)]);
}

#[test]
fn no_later_event_decides_what_is_trained_on() {
    let trained_on = |later: &[(&str, &str, u32)], key: &str| {
        let shop = shop_of(TABLE);
        let events = [("a", "x", 10), ("a", "y", 20), ("a", "z", 30), ("a", "p", 50), ("a", "q", 70)];
        shop.write_raw("e.tsv", lines(&[&events, later].concat()));
        let keys = ["preprocess.split=time", "preprocess.split_at=40", "preprocess.split_test_at=60", key];
        shop.run_stderr("preprocess", &keys.iter().flat_map(|key| ["--set", key]).collect::<Vec<_>>());
        let made = dataset_of(&shop);
        let id = |item: &u32| made.items.ids[*item as usize - 1].clone();
        training_items(&made.sequences, 0).iter().map(id).collect::<Vec<_>>()
    };
    let again = [("a", "x", 55), ("a", "y", 80), ("a", "z", 81)];
    for (key, expected) in [
        ("preprocess.repeated=last", &["x", "y", "z"][..]),
        ("preprocess.repeated=first", &["x", "y", "z"]),
        ("preprocess.recent=2", &["y", "z"]),
    ] {
        assert_eq!(trained_on(&[], key), expected, "{key}");
        assert_eq!(trained_on(&again, key), expected, "{key}");
    }
}

#[test]
fn a_dataset_split_by_time_in_an_earlier_release_is_rebuilt() {
    let shop = shop_of(TABLE);
    shop.write_raw("e.tsv", lines(&[("a", "x", 10), ("a", "y", 20), ("a", "z", 50), ("a", "p", 70)]));
    let record = shop.path("shop/dataset/preprocess.manifest.json");
    let again_without = |key: &str, keys: &[&str]| {
        let keys: Vec<&str> = keys.iter().flat_map(|key| ["--set", key]).collect();
        shop.run_stderr("preprocess", &keys);
        let mut manifest: serde_json::Value = serde_json::from_slice(&std::fs::read(&record).unwrap()).unwrap();
        manifest["settings"].as_object_mut().unwrap().remove(key);
        std::fs::write(&record, manifest.to_string()).unwrap();
        shop.run_stderr("preprocess", &keys)
    };
    let by_time = ["preprocess.split=time", "preprocess.split_at=40", "preprocess.split_test_at=60"];
    let reported = again_without("kept_within", &by_time);
    assert!(reported.contains("running, setting `preprocess.split` changed"), "{reported}");
    let reported = again_without("kept_within", &[]);
    assert!(reported.contains("up to date"), "other splits did not leak: {reported}");
}

#[test]
fn a_split_that_leaves_nobody_to_evaluate_is_refused() {
    let shop = shop_of(TABLE);
    shop.write_raw("e.tsv", lines(&[("a", "x", 10), ("a", "y", 20), ("b", "x", 30), ("b", "z", 40)]));
    let refused = |keys: &[&str]| {
        let keys: Vec<&str> = keys.iter().flat_map(|key| ["--set", key]).collect();
        shop.run_failing("preprocess", &keys)
    };
    let late = refused(&["preprocess.split=time", "preprocess.split_at=50", "preprocess.split_test_at=60"]);
    assert!(late.contains("no user with an event in the validation set") && late.contains("00:00:40Z"), "{late}");
    let late = refused(&["preprocess.split=time", "preprocess.split_at=15", "preprocess.split_test_at=60"]);
    assert!(late.contains("no user with an event in the test set") && late.contains("split_test_at"), "{late}");
    // Leave-one-out needs no time and three events for validation.
    let reported = shop.run_stderr("preprocess", &["--set", "preprocess.split_at=50"]);
    assert!(reported.contains("`preprocess.split_at` is set but not read"), "{reported}");
    assert!(reported.contains("no user has three events"), "{reported}");
}

#[test]
fn shares_of_each_users_events() {
    let shop = shop_of(TABLE);
    let events: Vec<(String, u32)> = (0..30).map(|event| (format!("i{event}"), event)).collect();
    let events: Vec<(&str, &str, u32)> = events.iter().map(|(item, time)| ("u", item.as_str(), *time)).collect();
    shop.write_raw("e.tsv", lines(&events));
    shop.run_stderr("preprocess", &["--set", "preprocess.split=ratio"]);
    let sequences = dataset_of(&shop).sequences;
    assert_eq!(sequences.parts_of(0), (24, 27));
    shop.run_stderr(
        "preprocess",
        &["--set", "preprocess.split=ratio", "--set", "preprocess.split_ratio=[0.5, 0.2, 0.3]"],
    );
    assert_eq!(dataset_of(&shop).sequences.parts_of(0), (15, 21));
    shop.run_stderr("preprocess", &[]);
    assert_eq!(dataset_of(&shop).sequences.parts, None, "leave-one-out needs nothing");
}

#[test]
fn keys_of_a_split_are_checked_before_anything_is_read() {
    let shop = shop_of(TABLE);
    shop.write_raw("e.tsv", "what is in here does not matter");
    let refused =
        |set: &[&str]| shop.run_failing("preprocess", &set.iter().flat_map(|set| ["--set", set]).collect::<Vec<_>>());
    assert!(refused(&["preprocess.split=time"]).contains("needs `preprocess.split_at`"));
    assert!(refused(&["preprocess.split=ratio", "preprocess.split_ratio=[0.5, 0.6, 0.1]"]).contains("whose sum is 1"));
    assert!(refused(&["preprocess.memory=4GB"]).contains("is not an amount of memory"));
}
