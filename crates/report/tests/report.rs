//! A whole report from generated files.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::path::Path;

use image::{Rgb, RgbImage};
use mp4sr_artifact::{Column, Items, Layout, Sequences, Table, files};
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
                2 => files::write_bytes(&path, b"no picture").unwrap(),
                _ => RgbImage::from_fn(200, 150, |x, y| Rgb([x as u8, y as u8, 30 * item as u8])).save(&path).unwrap(),
            }
            items.images.push(if item == 3 { vec![] } else { vec![path.display().to_string()] });
        }
        items.write(&layout.items()).unwrap();
        let world = Self { context: Context { config, layout, progress: Progress::new(true) }, folder, items };
        world.write_sequences();
        world.write_ranks("mine", 1);
        world.write_lists();
        world
    }

    fn write_ranks(&self, run: &str, step: u32) {
        for split in [Split::Validation, Split::Test] {
            let ranks: Vec<u32> = (0..USERS).map(|user| user * step).collect();
            let info = RanksInfo { split: split.name().to_owned(), history: None, config: serde_json::Value::Null };
            let path = self.context.layout.with_run(run).ranks(split.name());
            StoredRanks { ranks, info }.write(&path, &self.items.hash(), BTreeMap::new()).unwrap();
        }
    }

    /// Users of three to seven events at times of days, with all items among them.
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

    fn run(&self) -> anyhow::Result<()> {
        mp4sr_report::run(&self.context, Path::new("pipelines/tiny.toml"))
    }

    fn text(&self, name: &str) -> String {
        files::read_to_string(&self.context.layout.report().join(name)).unwrap()
    }
}

#[test]
fn a_page_tables_and_curves_that_need_nothing_beside_them() {
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
    assert!(page.contains("no picture") && page.contains("picture does not decode"));
    assert!(page.contains("true next item"));
    assert_eq!(page.matches("<section class=\"user\"").count(), 8);
    assert_eq!(page.matches("<svg").count(), 6);
    assert!(page.contains("without a curve: popular"), "popularity is not trained in epochs");
    assert!(page.len() < 3_000_000);

    // Of 12 users one has no rank; 5 of the others are within the first 5, against 1 (rank 3) of popularity.
    let markdown = world.text("metrics.md");
    let row = |name: &str| markdown.lines().find(|line| line.starts_with(&format!("| {name} "))).unwrap().to_owned();
    assert!(row("mine").contains("|    11 | **0.4545** |"), "{markdown}");
    assert!(row("popular").contains("|    11 |     0.0909 |"), "{markdown}");
    assert!(row("over the best other").contains("+400.0 %"), "{markdown}");
    let csv = world.text("metrics.csv");
    assert_eq!(csv.lines().count(), 5);
    assert!(csv.starts_with("run,split,users,R@5,R@10,R@20,N@5,N@10,N@20,MRR\npopular,test,11,"), "{csv}");
    assert!(world.text("curves.svg").contains("pretrain: training loss"));

    // The same files give the same page; an up-to-date report is left alone.
    world.run().unwrap();
    files::remove_if_present(&world.context.layout.report().join("index.html")).unwrap();
    world.run().unwrap();
    assert_eq!(world.text("index.html"), page);
    keep(&world);

    // A picture that is mended afterwards comes onto the page.
    RgbImage::new(9, 9).save(world.folder.path().join("2.png")).unwrap();
    world.run().unwrap();
    assert!(!world.text("index.html").contains("picture does not decode"));
}

/// For a look at the page: the folder of a report to copy this one to.
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
fn what_is_missing_says_which_run_and_which_command_makes_it() {
    let world = World::new(&["popular"]);
    let message = world.run().unwrap_err().to_string();
    assert!(message.starts_with("run `popular` has no ranks (`"), "{message}");
    assert!(message.contains("`make evaluate PIPELINE=pipelines/tiny.toml RUN=popular`"), "{message}");
    world.write_ranks("popular", 3);
    files::remove_if_present(&world.context.layout.recommendations()).unwrap();
    let message = world.run().unwrap_err().to_string();
    assert!(message.contains("`make recommend PIPELINE=pipelines/tiny.toml RUN=mine`"), "{message}");
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
    assert!(message.contains("it is about other items") && message.contains("make evaluate"), "{message}");
}
