use mp4sr_tests::gzip;

use crate::harness::{dataset_of, shop_of};

const SOURCE: &str = "[source]\nformat = \"amazon-2018\"\ninteractions = [\"r.json.gz\"]\nitems = [\"m.json.gz\"]\n";

fn reviews(count: usize) -> String {
    let line =
        |n: usize| format!("{{\"reviewerID\": \"u{}\", \"asin\": \"i{}\", \"unixReviewTime\": {n}}}\n", n % 7, n % 11);
    (0..count).map(line).collect()
}

#[test]
fn a_missing_file_is_named_with_a_remedy() {
    let world = shop_of(SOURCE);
    world.write_raw("r.json.gz", gzip(&reviews(500)));
    let error = world.run_failing("preprocess", &[]);
    assert!(error.contains("m.json.gz` does not exist; put the raw file there"), "{error}");
}

#[test]
fn a_truncated_gzip_is_reported_with_the_lines_it_gave_and_leaves_the_dataset_alone() {
    let world = shop_of(SOURCE);
    world.write_raw("r.json.gz", gzip(&reviews(500))).write_raw("m.json.gz", gzip("{\"asin\": \"i0\"}\n"));
    world.run_stderr("preprocess", &[]);
    let before = dataset_of(&world);
    let whole = gzip(&reviews(50_000));
    world.write_raw("r.json.gz", &whole[..whole.len() / 2]);
    let error = world.run_failing("preprocess", &[]);
    assert!(error.contains("r.json.gz` is truncated") && error.contains("complete lines; fetch it again"), "{error}");
    assert_eq!(dataset_of(&world).sequences, before.sequences);
    world.write_raw("r.json.gz", gzip(&reviews(500)));
    assert!(
        world.run_stderr("preprocess", &[]).contains("preprocess: up to date"),
        "the dataset is that of these files"
    );
}

#[test]
fn embedded_images_stay_until_another_dataset_replaces_theirs() {
    let world = shop_of(
        "[source]\nformat = \"tabular\"\ninteractions = [\"e.csv\"]\nitems = [\"i.jsonl\"]\n[source.columns]\nimages = \"image\"\n",
    );
    let event = |n: usize| format!("u{},i{},{n}\n", n % 7, n % 11);
    let events: String = (0..500).map(event).collect();
    let events = format!("user_id,item_id,timestamp\n{events}");
    // The first bytes of a PNG file, and further bytes that differ.
    let item = |number: u8| {
        let image = base64::Engine::encode(
            &base64::engine::general_purpose::STANDARD,
            [b"\x89PNG\r\n\x1a\n".as_slice(), &[number]].concat(),
        );
        format!("{{\"item_id\": \"i{number}\", \"title\": \"T\", \"image\": \"data:image/png;base64,{image}\"}}\n")
    };
    let items = |last: u8| (0..last).map(item).collect::<String>();
    let images = || mp4sr_artifact::files::list(&world.path("shop/dataset/embedded")).unwrap();
    world.write_raw("e.csv", &events).write_raw("i.jsonl", items(3));
    world.run_stderr("preprocess", &[]);
    let before = images();
    assert_eq!(before.len(), 3);
    world.write_raw("e.csv", format!("{events}u1\n"));
    world.run_failing("preprocess", &["--set", "preprocess.max_bad_lines=0"]);
    assert_eq!(images(), before, "the dataset is still up to date");
    mp4sr_artifact::files::write_bytes(&before[0], b"damaged").unwrap();
    world.write_raw("e.csv", &events).write_raw("i.jsonl", items(2));
    world.run_stderr("preprocess", &[]);
    let names: Vec<String> = dataset_of(&world).items.images.into_iter().flatten().collect();
    assert_eq!((images().len(), names.len()), (2, 2), "images that no item names are removed");
    assert!(names.iter().all(|name| std::fs::read(name).unwrap().starts_with(b"\x89PNG")), "{names:?}");
}

#[test]
fn a_filter_that_leaves_nothing_is_named() {
    let world = shop_of(SOURCE);
    world
        .write_raw("r.json.gz", gzip(&reviews(500)))
        .write_raw("m.json.gz", gzip("{\"asin\": \"i0\", \"title\": \"T\"}\n"));
    let error = world.run_failing("preprocess", &["--set", "preprocess.user_core=12"]);
    assert!(error.contains("the filter `12 events per user, 5 per item` dropped the last 77 events"), "{error}");
    let error = world.run_failing("preprocess", &["--set", "preprocess.missing=drop"]);
    assert!(error.contains("`items without text or image` dropped the last 77 events"), "{error}");
}

#[test]
fn too_many_bad_lines_stop_the_run() {
    let world = shop_of(SOURCE);
    world
        .write_raw("r.json.gz", gzip(&format!("{}{{\n[]\n", reviews(500))))
        .write_raw("m.json.gz", gzip("{\n{\"asin\": \"i0\"}\n"));
    let error = world.run_failing("preprocess", &["--set", "preprocess.max_bad_lines=2"]);
    assert!(error.contains("allows 2,") && error.contains("line 1 of") && error.contains("m.json.gz"), "{error}");
    world.run_stderr("preprocess", &["--set", "preprocess.max_bad_lines=3"]);
}

#[test]
fn impossible_settings_are_errors_with_a_remedy() {
    let world = shop_of("[source]\nformat = \"amazon-2018\"\n");
    assert!(world.run_failing("preprocess", &[]).contains("`source.interactions` names no file"));
    let world = shop_of(SOURCE);
    world.write_raw("r.json.gz", gzip(&reviews(500))).write_raw("m.json.gz", gzip("{\"asin\": \"i0\"}\n"));
    let error = world.run_failing("preprocess", &["--set", "dataset.table1=Toys"]);
    assert!(error.contains("expected one of Poetry, Pantry, Arts, Office"), "{error}");
    let error = world.run_failing("preprocess", &["--set", "source.format=tabular", "--set", "source.columns.time="]);
    assert!(error.contains("`source.columns.time` and `source.columns.position` are both empty"), "{error}");
}
