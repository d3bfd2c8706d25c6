//! Tests a whole report that is built from generated files.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use image::{Rgb, RgbImage};
use mp4sr_artifact::{Column, Items, Layout, Sequences, Table, Timing, files};
use mp4sr_pipeline::config::ModelCatalog;
use mp4sr_pipeline::{Config, Context, Progress};
use mp4sr_protocol::{RanksInfo, Split, StoredRanks};

const USERS: u32 = 12;
const ITEMS: usize = 40;

struct World {
    folder: tempfile::TempDir,
    context: Context,
    items: Items,
}

impl World {
    fn new(beside: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        "tiny".clone_into(&mut config.dataset.name);
        config.report.beside = beside.iter().map(|&run| run.to_owned()).collect();
        let layout = Layout::new(folder.path(), "tiny", "mine");
        let mut items = Items::default();
        for item in 0..ITEMS {
            items.ids.push(format!("i{item}"));
            items.titles.push(match item {
                0 => "<script>alert(1)</script>".to_owned(),
                1 => String::new(),
                _ => format!("Item number {item} with a longer name"),
            });
            items.sentences.push(vec![]);
            let path = folder.path().join(format!("{item}.png"));
            match item {
                2 => files::write_bytes(&path, b"not an image").unwrap(),
                _ => RgbImage::from_fn(200, 150, |x, y| Rgb([x as u8, y as u8, 30 * item as u8])).save(&path).unwrap(),
            }
            items.images.push(if item == 3 { vec![] } else { vec![path.display().to_string()] });
        }
        items.write(&layout.items()).unwrap();
        let models = Arc::new(ModelCatalog::unchecked());
        let world = Self { context: Context { config, layout, progress: Progress::new(true), models }, folder, items };
        world.write_sequences();
        world.write_ranks("mine", 1);
        world.write_lists();
        world
    }

    fn write_ranks(&self, run: &str, step: u32) {
        for split in [Split::Validation, Split::Test] {
            let ranks: Vec<u32> = (0..USERS).map(|user| user * step).collect();
            let info = RanksInfo {
                split: split.name().to_owned(),
                history: None,
                removes_seen: None,
                config: serde_json::Value::Null,
            };
            let path = self.context.layout.with_run(run).ranks(split.name());
            StoredRanks { ranks, info }.write(&path, &self.items.hash(), BTreeMap::new()).unwrap();
        }
    }

    /// Writes sequences of three to seven events, one day apart, that contain all items.
    fn write_sequences(&self) {
        let lengths: Vec<i64> = (0..i64::from(USERS)).map(|user| 3 + user % 5).collect();
        let offsets: Vec<i64> = (0..=lengths.len()).map(|user| lengths[..user].iter().sum()).collect();
        let events = offsets[lengths.len()];
        let sequences = Sequences {
            items: (0..events).map(|event| 1 + (event as u32 * event as u32) % ITEMS as u32).collect(),
            times: (0..events).map(|event| 1_600_000_000 + 86_400 * event).collect(),
            offsets,
            item_hash: self.items.hash(),
            item_count: ITEMS,
            user_hash: None,
            time_kind: mp4sr_artifact::TimeKind::Unstated,
            parts: None,
        };
        sequences.write(&self.context.layout.sequences(), serde_json::Value::Null).unwrap();
    }

    fn write_lists(&self) {
        let id = |item: usize| self.items.ids[item % ITEMS].clone();
        let users = 1..=USERS;
        let each = || users.clone().map(|user| user as usize);
        Table::new(vec![
            ("user", Column::U32(users.clone().collect())),
            ("user_id", Column::Text(each().map(|user| format!("U{user}")).collect())),
            ("history", Column::Texts(each().map(|user| (0..user + 2).map(id).collect()).collect())),
            ("target", Column::Text(each().map(|user| id(user / 2)).collect())),
            ("items", Column::Texts(each().map(|user| (user..user + 5).map(id).collect()).collect())),
            ("scores", Column::F32s(each().map(|_| vec![0.5; 5]).collect())),
        ])
        .write(&self.context.layout.recommendations())
        .unwrap();
    }

    fn write_log(&self, run: &str) {
        let mut text = String::new();
        for (phase, epochs) in [("pretrain", 30), ("finetune", 18)] {
            for epoch in 1..=epochs {
                let recall = 0.3 * (1.0 - f64::from(-epoch).mul_add(0.1, 0.0).exp());
                let line = serde_json::json!({
                    "phase": phase, "epoch": epoch, "loss": 5.0 + 2.0 / f64::from(epoch), "gradient_norm": 1.0,
                    "validation": {"R@5": recall / 2.0, "R@20": recall, "N@20": recall / 2.0},
                    "best": epoch < epochs - 4, "seconds": [0.1, 0.1],
                });
                text.push_str(&format!("{line}\n"));
            }
        }
        files::write_bytes(&self.context.layout.with_run(run).metrics_log(), text.as_bytes()).unwrap();
    }

    /// Writes words for every image; `each` returns the words for an item's image.
    fn write_words(&self, each: impl Fn(usize) -> Vec<String>) {
        let Context { config, layout, .. } = &self.context;
        let modality = config.model.modalities.iter().find(|modality| modality.name == "image").unwrap();
        let with = || (0..ITEMS).filter(|&item| !self.items.images[item].is_empty());
        Table::new(vec![
            ("item", Column::U32(with().map(|item| item as u32 + 1).collect())),
            ("image", Column::Text(with().map(|item| self.items.images[item][0].clone()).collect())),
            ("words", Column::Texts(with().map(&each).collect())),
            ("scores", Column::F32s(with().map(|item| vec![0.3125; each(item).len()]).collect())),
        ])
        .write(&layout.words_file("image", &config.feature_name(modality)))
        .unwrap();
    }

    fn write_timing(&self, stage: &str, seconds: f64) {
        let layout = &self.context.layout;
        let folder = if stage == "extract" { layout.features() } else { layout.run() };
        let timing = Timing {
            stage: stage.to_owned(),
            program: "9.8.7".to_owned(),
            seconds,
            peak_memory_bytes: Some(1_610_612_736),
            threads: 2,
            device: "cpu".to_owned(),
            finished: "2025-01-02 03:04:05 UTC".to_owned(),
        };
        files::write_json(&Timing::path(&folder, stage), &timing).unwrap();
    }

    /// Whether the next run writes the report again.
    fn is_stale(&self) -> bool {
        let manifest = self.context.layout.report().join("report.manifest.json");
        let modified = || std::fs::metadata(&manifest).unwrap().modified().unwrap();
        let before = modified();
        self.run().unwrap();
        modified() != before
    }

    fn run(&self) -> anyhow::Result<()> {
        mp4sr_report::run(&self.context, Path::new("pipelines/tiny.toml"))
    }

    fn text(&self, name: &str) -> String {
        files::read_to_string(&self.context.layout.report().join(name)).unwrap()
    }
}

#[test]
fn the_page_tables_and_curves_are_self_contained() {
    let world = World::new(&["popular", "mine"]);
    world.write_ranks("popular", 3);
    world.write_log("mine");
    world.run().unwrap();

    let page = world.text("index.html");
    assert!(page.contains("&lt;script&gt;") && !page.contains("<script"));
    assert!(page.contains("data:image/jpeg;base64,"));
    for outside in ["src=\"http", "href=\"http", "url(", "@import", "<link"] {
        assert!(!page.contains(outside), "{outside}");
    }
    assert!(page.contains("no image") && page.contains("image does not decode"));
    assert!(page.contains("true next item"));
    assert_eq!(page.matches("<section class=\"user\"").count(), 8);
    assert_eq!(page.matches("<svg").count(), 6);
    assert!(page.contains("because they are not trained in epochs: popular"));
    assert!(page.len() < 3_000_000);
    assert!(
        !page.contains("Words that CLIP chose") && !page.contains("peak memory"),
        "the run has neither words nor timings"
    );

    // One of the 12 users has no rank. Of the other 11, 5 are within the first 5 ranks, against 1 (rank 3) for popularity.
    let markdown = world.text("metrics.md");
    let row = |name: &str| markdown.lines().find(|line| line.starts_with(&format!("| {name} "))).unwrap().to_owned();
    assert!(row("mine").contains("|    11 | **0.4545** |"), "{markdown}");
    assert!(row("popular").contains("|    11 |     0.0909 |"), "{markdown}");
    assert!(row("over the best other").contains("+400.0 %"), "{markdown}");
    let csv = world.text("metrics.csv");
    assert_eq!(csv.lines().count(), 5);
    assert!(csv.starts_with("run,split,users,R@5,R@10,R@20,N@5,N@10,N@20,MRR\npopular,test,11,"), "{csv}");
    assert!(world.text("curves.svg").contains("pretrain: training loss"));

    // A breakdown contains each user with a rank exactly once.
    let breakdowns = world.text("breakdowns.csv");
    assert!(breakdowns.starts_with("breakdown,group,users,run,metric,value\n"), "{breakdowns}");
    let lengths =
        breakdowns.lines().filter(|line| line.starts_with("sequence length,") && line.contains(",mine,R@20,"));
    let users: Vec<usize> = lengths.map(|line| line.split(',').nth(2).unwrap().parse().unwrap()).collect();
    assert_eq!((users.len(), users.iter().sum::<usize>()), (5, 11), "all but the user of rank 0: {breakdowns}");
    assert!(
        markdown.contains("## Test, by groups of users\n\n| sequence length | users | popular R@20 |"),
        "{markdown}"
    );
    assert!(page.contains("id=\"groups\"") && page.contains("95 % interval") && page.contains("mine against"));

    // The same files give the same page, and an up-to-date report is not rewritten.
    world.run().unwrap();
    files::remove_if_present(&world.context.layout.report().join("index.html")).unwrap();
    world.run().unwrap();
    assert_eq!(world.text("index.html"), page);
    keep(&world);

    // An image that is repaired afterwards is shown on the page.
    RgbImage::new(9, 9).save(world.folder.path().join("2.png")).unwrap();
    world.run().unwrap();
    assert!(!world.text("index.html").contains("image does not decode"));
}

#[test]
fn metrics_of_groups_match_hand_computed_values() {
    let world = World::new(&["popular"]);
    world.write_ranks("popular", 3);
    world.run().unwrap();
    // A history of 2 events: users 0, 5 and 10, with the ranks 0 (none), 5 and 10, and with three times these.
    let ndcg = |ranks: [f64; 2]| {
        ranks.iter().map(|rank| if *rank > 20.0 { 0.0 } else { 1.0 / (rank + 1.0).log2() }).sum::<f64>() / 2.0
    };
    let breakdowns = world.text("breakdowns.csv");
    let value = |run: &str, metric: &str| -> f64 {
        let start = format!("history,2 events,2,{run},{metric},");
        breakdowns
            .lines()
            .find_map(|line| line.strip_prefix(&start))
            .unwrap_or_else(|| panic!("{start} {breakdowns}"))
            .parse()
            .unwrap()
    };
    let found = ["mine", "popular"].map(|run| [value(run, "R@20"), value(run, "N@20")]);
    for (found, expected) in found.as_flattened().iter().zip([1.0, ndcg([5.0, 10.0]), 0.5, ndcg([15.0, 30.0])]) {
        assert!((found - expected).abs() < 1e-12, "{found} is not {expected}");
    }
    // R@20 of 11 users: all of them, against 6 (ranks 3 to 18) for popularity. The difference is 5 / 11: 1 for 5 users and 0 for 6.
    // t = (5 / 11) / (sd / 11^(1/2)) with sd^2 = (5 * 6 / 11) / 10: 2.887; z of Wilcoxon = 5^(1/2), p = 0.0253.
    let markdown = world.text("metrics.md");
    let line = markdown.lines().find(|line| line.starts_with("| popular |    11 | R@20 ")).unwrap();
    assert!(
        line.starts_with("| popular |    11 | R@20   |    +0.4545 |          0.0162 |            0.0253 |"),
        "{line}"
    );
    for metric in ["R@5 ", "N@5 ", "N@20 ", "MRR "] {
        assert!(markdown.contains(&format!("| popular |    11 | {metric}")), "{markdown}");
    }
}

#[test]
fn words_and_times_are_shown_if_their_files_exist_and_follow_changes_to_them() {
    let world = World::new(&[]);
    world.run().unwrap();
    assert!(!world.is_stale());
    let hostile = "<img src=x onerror=alert(1)>";
    world.write_words(|item| vec![format!("word{}", item % 4), if item == 7 { "once" } else { hostile }.to_owned()]);
    assert!(world.is_stale() && !world.is_stale());
    let page = world.text("index.html");
    assert!(page.contains("Words that CLIP chose") && page.contains("39 of 40 items have such words"));
    assert!(!page.contains("<img src=x") && page.contains("&lt;img src=x onerror=alert(1)&gt;"));
    assert!(page.contains("title=\"38 items\" style=\"font-size:220%\">&lt;img") && page.contains("title=\"1 items\""));
    let section = page.split("id=\"words\"").nth(1).unwrap().split("</section>").next().unwrap();
    assert_eq!(section.matches("data:image/jpeg").count() + section.matches("no image to show").count(), 8);
    assert!(section.contains("0.31"));

    world.write_timing("extract", 75.0);
    world.write_timing("finetune", 12.34);
    world.write_timing("report", 99.0);
    assert!(world.is_stale() && !world.is_stale());
    let page = world.text("index.html");
    assert!(page.contains("1m 15s") && page.contains("12.3s") && page.contains("1.50 GiB") && page.contains("9.8.7"));
    assert!(
        !page.contains("timing of") && !page.contains("1m 39s"),
        "neither a fingerprint of them nor the page's own"
    );
}

#[test]
fn the_page_stays_small_whatever_a_dictionary_contains() {
    let world = World::new(&[]);
    world.write_words(|item| (0..20).map(|word| format!("{item} {word} {}", "w".repeat(50_000))).collect());
    world.run().unwrap();
    assert!(world.text("index.html").len() < 3_000_000);
}

/// Copies the report to the folder in `MP4SR_KEEP_REPORT`, for looking at the page.
fn keep(world: &World) {
    if let Some(folder) = std::env::var_os("MP4SR_KEEP_REPORT") {
        files::write_bytes(&Path::new(&folder).join("index.html"), world.text("index.html").as_bytes()).unwrap();
        files::write_bytes(&Path::new(&folder).join("curves.svg"), world.text("curves.svg").as_bytes()).unwrap();
    }
}

#[test]
fn a_run_without_training_has_no_curves() {
    let world = World::new(&[]);
    world.run().unwrap();
    assert!(!world.text("index.html").contains("<svg"));
    assert!(!world.context.layout.report().join("curves.svg").exists());
}

#[test]
fn an_error_about_missing_input_names_the_run_and_the_command_that_creates_it() {
    let world = World::new(&["popular"]);
    let message = world.run().unwrap_err().to_string();
    assert!(message.starts_with("run `popular` has no ranks (`"), "{message}");
    assert!(message.contains("`mp4sr run --until evaluate --pipeline pipelines/tiny.toml --run popular`"), "{message}");
    world.write_ranks("popular", 3);
    files::remove_if_present(&world.context.layout.recommendations()).unwrap();
    let message = world.run().unwrap_err().to_string();
    assert!(message.contains("`mp4sr run --until recommend --pipeline pipelines/tiny.toml --run mine`"), "{message}");
}

#[test]
fn ranks_of_other_items_are_refused() {
    let world = World::new(&[]);
    let mut items = world.items.clone();
    items.ids.swap(0, 1);
    items.write(&world.context.layout.items()).unwrap();
    let other = World { items, ..world };
    other.write_sequences();
    let message = other.run().unwrap_err().to_string();
    assert!(
        message.contains("it was built for a different item list") && message.contains("mp4sr evaluate"),
        "{message}"
    );
}
