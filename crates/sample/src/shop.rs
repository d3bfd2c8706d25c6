//! Writes the world as files: reviews and metadata, or tables; images; and the faults that real files have.

use std::collections::BTreeSet;
use std::io::{Cursor, Write};
use std::path::Path;

use flate2::{Compression, GzBuilder};
use image::ImageFormat;
use image::codecs::jpeg::JpegEncoder;
use mp4sr_artifact::files;
use rayon::prelude::*;
use serde::Serialize;

use crate::error::{Error, Result};
use crate::random::Rng;
use crate::text::{self, Texts};
use crate::truth::{Core, Faults, Raw, Truth, TruthItem, Vocabulary};
use crate::vocabulary::{BRANDS, COLOURS, KINDS, PATTERNS, SHAPES, STYLES, USES};
use crate::world::{self, Event, Item, World};
use crate::{GENERATOR_VERSION, IMAGES, META, PRODUCTS, PURCHASES, REVIEWS, SampleFormat, TRUTH, calendar, render};

/// The number of each fault that is planted.
mod planted {
    pub(super) const TITLES_WITH_MARKUP: usize = 120;
    pub(super) const DESCRIPTIONS_WITH_MARKUP: usize = 300;
    pub(super) const REPEATED_EVENTS: usize = 400;
    pub(super) const CUT_LINES: usize = 25;
    pub(super) const WITHOUT_TEXT: usize = 36;
    pub(super) const WITHOUT_IMAGE: usize = 42;
    pub(super) const BROKEN_IMAGES: usize = 8;
    pub(super) const WITHOUT_METADATA: usize = 10;
}

/// One item in this many is held out from the training of the built-in encoders.
const HELD_OUT_EVERY: usize = 10;

#[derive(Serialize)]
struct ReviewLine<'a> {
    overall: f32,
    verified: bool,
    #[serde(rename = "reviewTime")]
    review_time: String,
    #[serde(rename = "reviewerID")]
    reviewer_id: String,
    asin: &'a str,
    #[serde(rename = "reviewerName")]
    reviewer_name: String,
    #[serde(rename = "reviewText")]
    review_text: String,
    summary: &'a str,
    #[serde(rename = "unixReviewTime")]
    unix_review_time: i64,
}

#[derive(Serialize)]
struct MetaLine<'a> {
    category: Vec<&'a str>,
    description: &'a [String],
    title: &'a str,
    brand: &'a str,
    feature: &'a [String],
    rank: Vec<String>,
    also_buy: Vec<String>,
    also_view: Vec<String>,
    main_cat: &'a str,
    price: String,
    asin: &'a str,
    #[serde(rename = "imageURL")]
    image_url: Vec<String>,
    #[serde(rename = "imageURLHighRes")]
    image_url_high_res: Vec<String>,
}

/// Which items have which fault, by item index.
struct FaultyItems {
    title_markup: BTreeSet<usize>,
    description_markup: BTreeSet<usize>,
    without_text: BTreeSet<usize>,
    without_image: BTreeSet<usize>,
    broken_image: BTreeSet<usize>,
    without_metadata: BTreeSet<usize>,
}

impl FaultyItems {
    fn plant(seed: u64, sold: &[usize]) -> Self {
        let mut rng = Rng::new(seed, "faults", 0);
        let mut free = sold.to_vec();
        // An item has at most one fault that removes its text or image. Only items with text get markup.
        let mut take = |free: &mut Vec<usize>, count: usize| -> BTreeSet<usize> {
            let count = rng.choose(free, count).len();
            free.drain(..count).collect()
        };
        let without_metadata = take(&mut free, planted::WITHOUT_METADATA);
        let without_text = take(&mut free, planted::WITHOUT_TEXT);
        let mut textual = free.clone();
        let without_image = take(&mut free, planted::WITHOUT_IMAGE);
        let broken_image = take(&mut free, planted::BROKEN_IMAGES);
        let description_markup = take(&mut textual.clone(), planted::DESCRIPTIONS_WITH_MARKUP);
        let title_markup = take(&mut textual, planted::TITLES_WITH_MARKUP);
        Self { title_markup, description_markup, without_text, without_image, broken_image, without_metadata }
    }
}

/// Writes the whole shop into `folder`, which exists and is empty.
pub(crate) fn write(folder: &Path, seed: u64, format: SampleFormat) -> Result<Truth> {
    let world = world::draw(seed);
    let mut buyers = vec![0_usize; world.items.len()];
    for event in world.users.iter().flatten() {
        buyers[event.item] += 1;
    }
    let sold: Vec<usize> = (0..world.items.len()).filter(|&item| buyers[item] >= 5).collect();
    let faulty = FaultyItems::plant(seed, &sold);

    let (review_lines, metadata_lines) = match format {
        SampleFormat::Amazon => (
            write_reviews(&folder.join(REVIEWS), seed, &world)?,
            write_metadata(&folder.join(META), seed, &world.items, &faulty)?,
        ),
        SampleFormat::Tables => (
            write_purchases(&folder.join(PURCHASES), seed, &world)?,
            write_products(&folder.join(PRODUCTS), seed, &world.items, &faulty)?,
        ),
    };
    let image_files = write_images(&folder.join(IMAGES), seed, &world.items, &faulty)?;

    let pairs: Vec<(usize, usize)> = world.users.iter().flatten().map(|event| (event.user, event.item)).collect();
    let [users, items, events] = world::five_core(&pairs, world.users.len(), world.items.len());
    let truth = Truth {
        version: GENERATOR_VERSION,
        seed,
        vocabulary: Vocabulary::of_the_world(),
        raw: Raw {
            review_lines,
            metadata_lines,
            image_files,
            users: world.users.len(),
            items: buyers.iter().filter(|count| **count > 0).count(),
            events: pairs.len(),
        },
        faults: Faults {
            titles_with_markup: faulty.title_markup.len(),
            descriptions_with_markup: faulty.description_markup.len(),
            repeated_events: planted::REPEATED_EVENTS,
            cut_review_lines: if format == SampleFormat::Amazon { planted::CUT_LINES } else { 0 },
            items_without_text: faulty.without_text.len(),
            items_without_image: faulty.without_image.len(),
            images_that_do_not_decode: faulty.broken_image.len(),
            items_without_metadata: faulty.without_metadata.len(),
            items_without_reviews: buyers.iter().filter(|count| **count == 0).count(),
            users_under_five: world.users.iter().filter(|events| events.len() < 5).count(),
            items_under_five: buyers.iter().filter(|count| (1..5).contains(*count)).count(),
        },
        five_core: Core { users, items, events },
        oracle_recall_10: world.oracle_recall_10,
        items: world.items.iter().enumerate().map(|(index, item)| describe(index, item, &faulty)).collect(),
    };
    let mut json = serde_json::to_vec_pretty(&truth).map_err(|e| Error::write(&folder.join(TRUTH), e))?;
    json.push(b'\n');
    put(&folder.join(TRUTH), &json)?;
    Ok(truth)
}

fn describe(index: usize, item: &Item, faulty: &FaultyItems) -> TruthItem {
    let has_metadata = !faulty.without_metadata.contains(&index);
    let has_image = has_metadata && !faulty.without_image.contains(&index);
    TruthItem {
        asin: item.asin.clone(),
        kind: KINDS[item.kind].name.to_owned(),
        colour: COLOURS[item.colour].0.to_owned(),
        pattern: PATTERNS[item.pattern].to_owned(),
        shape: SHAPES[item.shape].to_owned(),
        brand: BRANDS[item.brand].to_owned(),
        material: KINDS[item.kind].materials[item.material].to_owned(),
        usage: USES[item.usage].name.to_owned(),
        style: STYLES[item.style].name.to_owned(),
        released_day: item.released as u32,
        image: has_image.then(|| format!("{IMAGES}/{}", file_name(index, item))),
        image_decodes: has_image && !faulty.broken_image.contains(&index),
        has_text: has_metadata && !faulty.without_text.contains(&index),
        has_metadata,
        held_out: index % HELD_OUT_EVERY == 3,
    }
}

fn file_name(index: usize, item: &Item) -> String {
    format!("{}.{}", item.asin, if index % 8 == 5 { "png" } else { "jpg" })
}

const PRAISE: [&str; 5] = [
    "Exactly what I was looking for.",
    "Lovely, I bought a second one.",
    "Good quality and quick delivery.",
    "Looks even better than in the picture.",
    "My sister wants one too.",
];
const BLAME: [&str; 5] = [
    "Not quite what I expected.",
    "It is all right for the price.",
    "Smaller than I thought.",
    "Arrived late and badly packed.",
    "I sent it back.",
];
const SUMMARIES: [&str; 5] = ["One Star", "Two Stars", "Three Stars", "Four Stars", "Five Stars"];

fn review<'a>(seed: u64, number: usize, item: &'a Item, event: &Event) -> ReviewLine<'a> {
    let mut rng = Rng::new(seed, "review", number);
    let stars = (3.1 + 0.5 * f64::from(event.matches) + 0.8 * rng.normal()).round().clamp(1.0, 5.0);
    let mut review_text = rng.pick(if stars > 3.0 { &PRAISE } else { &BLAME }).to_owned();
    if rng.chance(0.3) {
        let noun = rng.pick(&KINDS[item.kind].nouns);
        review_text = format!("{review_text} This {noun} is for my {}.", USES[item.usage].name);
    }
    ReviewLine {
        overall: stars as f32,
        verified: rng.chance(0.85),
        review_time: calendar::review_time(event.day),
        reviewer_id: format!("A{}", world::identifier(seed, "reviewer", event.user, 8)),
        asin: &item.asin,
        reviewer_name: format!("Customer {}", event.user + 1),
        review_text,
        summary: SUMMARIES[stars as usize - 1],
        unix_review_time: calendar::unix(event.day),
    }
}

/// All purchases, some of them repeated, in no particular order.
fn with_repeats(world: &World, rng: &mut Rng) -> Vec<Event> {
    let mut events: Vec<Event> = world.users.iter().flatten().cloned().collect();
    let mut order: Vec<usize> = (0..events.len()).collect();
    let repeated = rng.choose(&mut order, planted::REPEATED_EVENTS).to_vec();
    for index in repeated {
        let mut again = events[index].clone();
        // Half of the repeats are the same line again, half are dated earlier. Keeping the last line preserves the original's time in
        // either case.
        if rng.chance(0.5) {
            again.day = again.day.saturating_sub(1 + rng.below(3) as u32);
        }
        events.push(again);
    }
    events
}

/// Returns the number of lines.
fn write_reviews(path: &Path, seed: u64, world: &World) -> Result<usize> {
    let mut rng = Rng::new(seed, "review faults", 0);
    let mut events = with_repeats(world, &mut rng);
    // As in the published files: by item, then by time.
    events.sort_by(|a, b| {
        let key = |event: &Event| (world.items[event.item].asin.clone(), event.day, event.user);
        key(a).cmp(&key(b))
    });
    let mut lines = Vec::with_capacity(events.len() + planted::CUT_LINES);
    for (number, event) in events.iter().enumerate() {
        let line = review(seed, number, &world.items[event.item], event);
        lines.push(serde_json::to_string(&line).map_err(|e| Error::write(path, e))?);
    }
    for _ in 0..planted::CUT_LINES {
        let whole = &lines[rng.below(events.len())];
        let half = whole[..whole.len() / 2].to_owned();
        lines.insert(rng.below(lines.len()), half);
    }
    put_gzip(path, &lines)?;
    Ok(lines.len())
}

/// The texts of an item, with its faults.
fn texts_of(seed: u64, index: usize, item: &Item, faulty: &FaultyItems) -> Texts {
    let mut rng = Rng::new(seed, "markup", index);
    let mut texts =
        if faulty.without_text.contains(&index) { Texts::default() } else { text::write(seed, index, item) };
    if faulty.title_markup.contains(&index) {
        texts.title = text::mark_up_title(&mut rng, &texts.title);
    }
    if faulty.description_markup.contains(&index) {
        text::mark_up_description(&mut rng, &mut texts.description);
    }
    texts
}

/// Returns the number of lines below the header.
fn write_purchases(path: &Path, seed: u64, world: &World) -> Result<usize> {
    let mut rng = Rng::new(seed, "review faults", 0);
    let mut events = with_repeats(world, &mut rng);
    // The order is that of an export from a shop's own database.
    events.sort_by_key(|event| (event.day, event.user, event.item));
    let mut rows = vec![["customer", "product", "bought_on", "stars"].map(str::to_owned)];
    for (number, event) in events.iter().enumerate() {
        let review = review(seed, number, &world.items[event.item], event);
        let stars = format!("{:.0}", review.overall);
        rows.push([review.reviewer_id, review.asin.to_owned(), calendar::iso(event.day), stars]);
    }
    put_csv(path, &rows)?;
    Ok(rows.len() - 1)
}

/// Returns the number of lines below the header.
fn write_products(path: &Path, seed: u64, items: &[Item], faulty: &FaultyItems) -> Result<usize> {
    let mut rows = vec![["sku", "name", "description", "department", "price", "photo"].map(str::to_owned)];
    for (index, item) in items.iter().enumerate() {
        if faulty.without_metadata.contains(&index) {
            continue;
        }
        let texts = texts_of(seed, index, item, faulty);
        let has_text = !faulty.without_text.contains(&index);
        let department = if has_text { KINDS[item.kind].department.to_owned() } else { String::new() };
        let photo = if faulty.without_image.contains(&index) { String::new() } else { file_name(index, item) };
        let description = [texts.description, texts.features].concat().join("\n");
        rows.push([item.asin.clone(), texts.title, description, department, format!("{:.2}", item.price), photo]);
    }
    put_csv(path, &rows)?;
    Ok(rows.len() - 1)
}

/// Returns the number of lines.
fn write_metadata(path: &Path, seed: u64, items: &[Item], faulty: &FaultyItems) -> Result<usize> {
    let mut lines = Vec::with_capacity(items.len());
    for (index, item) in items.iter().enumerate() {
        if faulty.without_metadata.contains(&index) {
            continue;
        }
        let bare = faulty.without_text.contains(&index);
        let texts = texts_of(seed, index, item, faulty);
        let kind = &KINDS[item.kind];
        let line = MetaLine {
            category: if bare { Vec::new() } else { vec!["Home & Stationery", kind.department] },
            description: &texts.description,
            title: &texts.title,
            brand: if bare { "" } else { BRANDS[item.brand] },
            feature: &texts.features,
            rank: Vec::new(),
            also_buy: Vec::new(),
            also_view: Vec::new(),
            main_cat: if bare { "" } else { "Home & Stationery" },
            price: format!("${:.2}", item.price),
            asin: &item.asin,
            image_url: Vec::new(),
            image_url_high_res: Vec::new(),
        };
        lines.push(serde_json::to_string(&line).map_err(|e| Error::write(path, e))?);
    }
    put_gzip(path, &lines)?;
    Ok(lines.len())
}

/// Returns the number of files.
fn write_images(folder: &Path, seed: u64, items: &[Item], faulty: &FaultyItems) -> Result<usize> {
    files::create_dir_all(folder).map_err(|e| Error::write(folder, e))?;
    let with_image: Vec<usize> = (0..items.len())
        .filter(|index| !faulty.without_image.contains(index) && !faulty.without_metadata.contains(index))
        .collect();
    with_image.par_iter().try_for_each(|&index| {
        let path = folder.join(file_name(index, &items[index]));
        let mut bytes = encode(seed, index, &items[index], &path)?;
        if faulty.broken_image.contains(&index) {
            break_image(&mut bytes, index);
        }
        put(&path, &bytes)
    })?;
    Ok(with_image.len())
}

fn encode(seed: u64, index: usize, item: &Item, path: &Path) -> Result<Vec<u8>> {
    let image = render::render(seed, index, item).ok_or_else(|| Error::write(path, "nothing was drawn"))?;
    let mut bytes = Cursor::new(Vec::new());
    let encoded = if path.extension().is_some_and(|extension| extension == "png") {
        image.write_to(&mut bytes, ImageFormat::Png)
    } else {
        image.write_with_encoder(JpegEncoder::new_with_quality(&mut bytes, 90))
    };
    encoded.map_err(|e| Error::write(path, e))?;
    Ok(bytes.into_inner())
}

/// Replaces an image with what a failed download leaves: a web page, a truncated file or an empty file.
fn break_image(bytes: &mut Vec<u8>, index: usize) {
    match index % 3 {
        0 => *bytes = b"<html><body><h1>503 Service Unavailable</h1></body></html>\n".to_vec(),
        1 => bytes.truncate(48),
        _ => bytes.clear(),
    }
}

fn put(path: &Path, bytes: &[u8]) -> Result<()> {
    #[expect(clippy::disallowed_methods, reason = "an unfinished sample is written again from the start")]
    std::fs::write(path, bytes).map_err(|e| Error::write(path, e))
}

fn put_csv<const N: usize>(path: &Path, rows: &[[String; N]]) -> Result<()> {
    let mut out = csv::Writer::from_writer(Vec::new());
    let written = rows.iter().try_for_each(|row| out.write_record(row)).map_err(|e| Error::write(path, e));
    written.and_then(|()| put(path, &out.into_inner().map_err(|e| Error::write(path, e))?))
}

fn put_gzip(path: &Path, lines: &[String]) -> Result<()> {
    // The header has neither a time nor a name, so that the same lines give the same bytes.
    let mut out = GzBuilder::new().mtime(0).write(Vec::new(), Compression::new(6));
    let packed = lines
        .iter()
        .try_for_each(|line| out.write_all(line.as_bytes()).and_then(|()| out.write_all(b"\n")))
        .and_then(|()| out.finish());
    put(path, &packed.map_err(|e| Error::write(path, e))?)
}
