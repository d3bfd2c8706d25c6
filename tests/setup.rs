//! From undescribed files to a working pipeline: `mp4sr init` and `mp4sr doctor`. `make test` builds the program first.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use mp4sr_artifact::{Items, Layout, Sequences, Users, files};
use mp4sr_pipeline::Config;
use mp4sr_run::model_catalog;
use mp4sr_tests::{Project, gzip, root, stderr_of};

/// The pipeline that `init` writes to `p.toml`.
fn guessed_pipeline(project: &Project, words: &[&str]) -> Config {
    project.run("init", &[words, &["--out", "p.toml"]].concat());
    Config::load(&project.raw("p.toml"), &[], model_catalog()).unwrap().0
}

/// Preprocesses a pipeline without filters on the number of events.
fn preprocessed(project: &Project, pipeline: &Path, artifacts: &str, more: &[&str]) -> Dataset {
    let pipeline = pipeline.to_str().unwrap();
    let all = ["--set", "preprocess.user_core=0", "--set", "preprocess.item_core=0", "--set", "dataset.name=x"];
    project.run("preprocess", &[&["--pipeline", pipeline, "--artifacts", artifacts], &all[..], more].concat());
    let layout = Layout::new(&project.raw(artifacts), "x", "mp4sr");
    let images = |name: &String| name.rsplit('/').next().unwrap_or(name).to_owned();
    let items = Items::read(&layout.items()).unwrap();
    Dataset {
        sequences: Sequences::read(&layout.sequences()).unwrap(),
        users: Users::read(&layout.users()).unwrap().ids,
        images: items.images.iter().map(|names| names.iter().map(images).collect()).collect(),
        items,
    }
}

struct Dataset {
    sequences: Sequences,
    users: Vec<String>,
    items: Items,
    /// The last components of the images' paths and URLs.
    images: Vec<Vec<String>>,
}

impl Dataset {
    /// Checks that both have the same events, users, items, titles and images.
    fn expect(&self, other: &Self, name: &str) {
        assert_eq!(self.sequences.items, other.sequences.items, "{name}");
        assert_eq!(self.sequences.times, other.sequences.times, "{name}");
        assert_eq!(self.users, other.users, "{name}");
        assert_eq!((&self.items.ids, &self.items.titles), (&other.items.ids, &other.items.titles), "{name}");
        assert_eq!(self.images, other.images, "{name}");
    }
}

fn latin_1(text: &str) -> Vec<u8> {
    text.chars().map(|c| u8::try_from(u32::from(c)).unwrap()).collect()
}

const USERS: usize = 30;
const ITEMS: usize = 24;

/// Lines of events; `line` gets the user, the item and the number of the event.
fn events(line: impl Fn(usize, usize, usize) -> String) -> String {
    let pairs = (0..USERS).flat_map(|user| (0..7).map(move |at| (user, (user * 5 + at * 3) % ITEMS, at)));
    pairs.map(|(user, item, at)| line(user, item, at)).collect()
}

fn items(line: impl Fn(usize) -> String) -> String {
    (0..ITEMS).map(line).collect()
}

/// A small imitation of a published dataset: the name of the shipped pipeline, the arguments for `init`, and the raw files.
struct Published {
    pipeline: &'static str,
    words: &'static [&'static str],
    raw: Vec<(&'static str, Vec<u8>)>,
    /// Whether the sentences of items are the same, too.
    same_sentences: bool,
}

const GENRES: [&str; 4] = ["Comedy|Drama", "Drama", "Film-Noir|Drama|War", "Comedy"];

fn published() -> Vec<Published> {
    let genre = |item: usize| GENRES[item % 4];
    let time = |user: usize, at: usize| 978_300_000 + 1000 * user + 7 * at;
    let flags = "|0".repeat(19);
    let ml_100k = Published {
        pipeline: "movielens-100k",
        words: &["--interactions", "raw/ml-100k/u.data", "--items", "raw/ml-100k/u.item"],
        raw: vec![
            (
                "raw/ml-100k/u.data",
                events(|u, i, at| format!("{}\t{}\t{}\t{}\n", u + 1, i + 1, at % 5 + 1, time(u, at))).into(),
            ),
            (
                "raw/ml-100k/u.item",
                latin_1(&items(|i| {
                    format!("{}|Les Mis\u{e9}rables {i} (1995)|01-Jan-1995||http://us.imdb.com/{i}{flags}\n", i + 1)
                })),
            ),
        ],
        // The shipped pipeline includes the release date in the texts; `init` does not.
        same_sentences: false,
    };
    let ml_1m = Published {
        pipeline: "movielens-1m",
        words: &["--interactions", "raw/ml-1m/ratings.dat", "--items", "raw/ml-1m/movies.dat"],
        raw: vec![
            (
                "raw/ml-1m/ratings.dat",
                events(|u, i, at| format!("{}::{}::{}::{}\n", u + 1, i + 1, at % 5 + 1, time(u, at))).into(),
            ),
            (
                "raw/ml-1m/movies.dat",
                latin_1(&items(|i| format!("{}::Caf\u{e9}: number {i} (1975)::{}\n", i + 1, genre(i)))),
            ),
        ],
        same_sentences: true,
    };
    let ml_25m = Published {
        pipeline: "movielens-25m",
        words: &["--interactions", "raw/ml-25m/ratings.csv", "--items", "raw/ml-25m/movies.csv"],
        raw: vec![
            (
                "raw/ml-25m/ratings.csv",
                format!(
                    "userId,movieId,rating,timestamp\r\n{}",
                    events(|u, i, at| format!("{},{},{}.5,{}\r\n", u + 1, i + 1, at % 5, time(u, at)))
                )
                .into(),
            ),
            (
                "raw/ml-25m/movies.csv",
                format!(
                    "movieId,title,genres\r\n{}",
                    items(|i| format!(
                        "{},\"American President, The {i} (1995)\",{}\r\n",
                        i + 1,
                        if i == 3 { "(no genres listed)" } else { genre(i) }
                    ))
                )
                .into(),
            ),
        ],
        same_sentences: true,
    };
    let image = |i: usize, size: &str| format!("\"http://images.amazon.com/images/P/{i:010}.01.{size}.jpg\"");
    let book_crossing = Published {
        pipeline: "book-crossing",
        words: &["--interactions", "raw/BX-Book-Ratings.csv", "--items", "raw/BX-Books.csv"],
        raw: vec![
            (
                "raw/BX-Book-Ratings.csv",
                format!(
                    "\"User-ID\";\"ISBN\";\"Book-Rating\"\n{}",
                    events(|u, i, at| format!("\"{}\";\"{:010}\";\"{}\"\n", 276_725 + u, i * 7919, at % 11))
                )
                .into(),
            ),
            (
                "raw/BX-Books.csv",
                latin_1(&format!(
                    "\"ISBN\";\"Book-Title\";\"Book-Author\";\"Year-Of-Publication\";\"Publisher\";\"Image-URL-S\";\"Image-URL-M\";\"Image-URL-L\"\n{}",
                    items(|i| format!(
                        "\"{:010}\";\"Classical \\\"Mythology\\\" {i}; a story\";\"Andr\u{e9} M. &amp; Sons\";\"{}\";\"Oxford House {}\";{};{};{}\n",
                        i * 7919,
                        1990 + i % 9,
                        i % 3,
                        image(i, "THUMBZZZ"),
                        image(i, "MZZZZZZZ"),
                        image(i, "LZZZZZZZ")
                    ))
                )),
            ),
        ],
        // The author is the same everywhere, so `init` does not use it as a text.
        same_sentences: false,
    };
    let steam = Published {
        pipeline: "steam",
        words: &["--interactions", "raw/steam_reviews.json.gz", "--items", "raw/steam_games.json.gz"],
        raw: vec![
            (
                "raw/steam_reviews.json.gz",
                gzip(&events(|u, i, at| {
                    format!(
                        "{{u'username': u'Walker {u}', u'product_id': u'{}', u'date': u'2017-{:02}-{:02}', u'text': u'it\\'s', u'early_access': False, u'hours': {at}.5}}\n",
                        725_280 + i,
                        at + 1,
                        u % 28 + 1
                    )
                })),
            ),
            (
                "raw/steam_games.json.gz",
                gzip(&items(|i| {
                    format!(
                        "{{u'id': u'{}', u'app_name': u'Lost \\u2122 {i}', u'genres': [u'Action', u'{}'], u'developer': u'Kotoshiro {}', u'{}': [u'{}', u'Co-op'], u'price': {i}.99, u'url': u'http://store.steampowered.com/app/{i}/'}}\n",
                        725_280 + i,
                        ["Indie", "Strategy"][i % 2],
                        i % 5,
                        // The fields of a JSON object may come in any order.
                        ["tags", "specs"][i % 2],
                        ["Single-player", "Horror", "Puzzle"][i % 3]
                    )
                })),
            ),
        ],
        same_sentences: true,
    };
    let yelp = Published {
        pipeline: "yelp",
        words: &[
            "--interactions", "raw/yelp_academic_dataset_review.json", "--items", "raw/yelp_academic_dataset_business.json",
        ],
        raw: vec![
            (
                "raw/yelp_academic_dataset_review.json",
                events(|u, i, at| {
                    format!(
                        "{{\"review_id\":\"r{u}x{at}\",\"user_id\":\"q{u}\",\"business_id\":\"b-{i}\",\"stars\":{}.0,\"text\":\"good {u}\",\"date\":\"2018-{:02}-{:02} 22:09:{:02}\"}}\n",
                        at % 5 + 1,
                        at + 1,
                        u % 28 + 1,
                        u
                    )
                })
                .into(),
            ),
            (
                "raw/yelp_academic_dataset_business.json",
                items(|i| {
                    format!(
                        "{{\"business_id\":\"b-{i}\",\"name\":\"Abby Rappoport {i}\",\"city\":\"{}\",\"stars\":4.5,\"is_open\":1,\"attributes\":{},\"categories\":{}}}\n",
                        ["Goleta", "Tucson", "Reno"][i % 3],
                        if i % 3 == 0 { "null".to_owned() } else { format!("{{\"ByAppointmentOnly\":\"{}\"}}", i % 2 == 0) },
                        ["\"Doctors, Health & Medical\"", "null", "\"Shopping, Department Stores\"", "\"Doctors\""][i % 4]
                    )
                })
                .into(),
            ),
        ],
        same_sentences: true,
    };
    let article = |i: usize| format!("0{}", 108_775_015 + 13 * i);
    let mut h_and_m = Published {
        pipeline: "h-and-m",
        words: &["--interactions", "raw/transactions_train.csv", "--items", "raw/articles.csv", "--images", "raw/images"],
        raw: vec![
            (
                "raw/transactions_train.csv",
                format!(
                    "t_dat,customer_id,article_id,price,sales_channel_id\n{}",
                    events(|u, i, at| format!("2018-09-{:02},{u:064x},{},0.0{},2\n", at * 3 + 1, article(i), i + 1))
                )
                .into(),
            ),
            (
                "raw/articles.csv",
                format!(
                    "article_id,product_code,prod_name,product_type_no,product_type_name,colour_group_name,department_name,section_name,detail_desc\n{}",
                    items(|i| format!(
                        "{},{},Atlanta Push {i},{},{},{},{},{},\"Lace bra, lined and soft, with many words that describe what it is made of and for whom it is. Number {i}.\"\n",
                        article(i),
                        108_775 + i,
                        253 + i % 2,
                        ["Bra", "Vest top"][i % 2],
                        ["Black", "White", "Red"][i % 3],
                        ["Expressive Lingerie", "Jersey Basic"][i % 2],
                        ["Lingerie", "Basics"][i % 2]
                    ))
                )
                .into(),
            ),
        ],
        // `init` uses more columns as texts.
        same_sentences: false,
    };
    h_and_m.raw.push(("raw/images/010/0108775015.jpg", b"x".to_vec()));
    let mut microlens = Published {
        pipeline: "microlens",
        words: &[
            "--interactions",
            "raw/MicroLens-50k_pairs.csv",
            "--items",
            "raw/MicroLens-50k_titles.csv",
            "--images",
            "raw/MicroLens-50k_covers",
        ],
        raw: vec![
            (
                "raw/MicroLens-50k_pairs.csv",
                format!(
                    "user,item,timestamp\n{}",
                    events(|u, i, at| format!("{},{},{}\n", u + 1, i + 1, 1_583_378_629_552 + u * 9 + at))
                )
                .into(),
            ),
            (
                "raw/MicroLens-50k_titles.csv",
                format!("item,title\n{}", items(|i| format!("{},\"\u{7f8e}\u{98df} {i}, \"\"one\"\"\"\n", i + 1)))
                    .into(),
            ),
        ],
        same_sentences: true,
    };
    microlens.raw.push(("raw/MicroLens-50k_covers/7.jpg", b"x".to_vec()));
    let amazon_2018 = Published {
        pipeline: "gift-cards",
        words: &[
            "--interactions",
            "raw/gift-cards/Gift_Cards_5.json.gz",
            "--items",
            "raw/gift-cards/meta_Gift_Cards.json.gz",
        ],
        raw: vec![
            (
                "raw/gift-cards/Gift_Cards_5.json.gz",
                gzip(&events(|u, i, at| {
                    format!(
                        "{{\"overall\": 5.0, \"verified\": true, \"reviewerID\": \"A{u}\", \"asin\": \"B{i:05}\", \"reviewText\": \"x\", \"unixReviewTime\": {}}}\n",
                        time(u, at)
                    )
                })),
            ),
            (
                "raw/gift-cards/meta_Gift_Cards.json.gz",
                gzip(&items(|i| {
                    format!(
                        "{{\"category\": [\"Gift Cards\", \"Cards {}\"], \"description\": [\"A card. It is good.\"], \"title\": \"Card &amp; {i}\", \"brand\": \"Amazon\", \"feature\": [\"Never expires\"], \"imageURLHighRes\": [\"https://e.org/{i}.jpg\"], \"asin\": \"B{i:05}\"}}\n",
                        i % 3
                    )
                })),
            ),
        ],
        same_sentences: true,
    };
    vec![ml_100k, ml_1m, ml_25m, book_crossing, steam, yelp, h_and_m, microlens, amazon_2018]
}

#[test]
fn published_datasets_give_the_same_dataset_as_with_the_shipped_pipelines() {
    for Published { pipeline, words, raw, same_sentences } in published() {
        let project = Project::without_pipeline(&raw);
        guessed_pipeline(&project, words);
        let shipped = root().join(format!("pipelines/{pipeline}.toml"));
        let by_hand = preprocessed(&project, &shipped, "by-hand", &["--data", "raw"]);
        let guessed = preprocessed(&project, &project.raw("p.toml"), "guessed", &[]);
        guessed.expect(&by_hand, pipeline);
        // The sentences are compared in any order: that of the texts is a choice, and JSON fields have none.
        let sorted = |made: &Dataset| -> Vec<Vec<String>> {
            let of_item = |sentences: &Vec<String>| {
                let mut sentences = sentences.clone();
                sentences.sort();
                sentences
            };
            made.items.sentences.iter().map(of_item).collect()
        };
        let texts = (sorted(&guessed), sorted(&by_hand));
        assert_eq!(texts.0 == texts.1, same_sentences, "{pipeline}: {texts:?}");
    }
}

#[test]
fn the_amazon_format_of_2023_is_recognised_by_its_fields() {
    let reviews = events(|u, i, at| {
        let (time, rating) = (1_583_378_629_552 + u * 90_000 + at * 1000, at % 5 + 1);
        format!(
            "{{\"rating\": {rating}.0, \"parent_asin\": \"B{i:05}\", \"asin\": \"V{i}{at}\", \"user_id\": \"A{u}\", \"timestamp\": {time}}}\n"
        )
    });
    let meta = items(|i| {
        format!(
            "{{\"main_category\": \"Arts\", \"title\": \"Yarn {i}\", \"features\": [\"Soft.\"], \"images\": [], \"store\": \"S\", \"parent_asin\": \"B{i:05}\"}}\n"
        )
    });
    let project = Project::without_pipeline(&[("reviews.jsonl.gz", gzip(&reviews)), ("meta.jsonl", meta.into())]);
    let config = guessed_pipeline(&project, &["--interactions", "reviews.jsonl.gz", "--items", "meta.jsonl"]);
    assert_eq!(config.source.format, mp4sr_pipeline::config::Format::Amazon2023);
    let made = preprocessed(&project, &project.raw("p.toml"), "made", &[]);
    assert_eq!((made.users.len(), made.items.ids.len()), (USERS, ITEMS));
    assert_eq!(made.items.sentences[0], ["Yarn 0", "S", "Soft."]);
}

/// The export of a German shop: German names, semicolons, Latin-1, day-first dates, HTML, and decimal commas.
fn german() -> Vec<(&'static str, Vec<u8>)> {
    let sales = events(|u, i, at| {
        format!("{};A{i:04};{:02}.{:02}.2023 10:{at:02};{at},50\n", 1000 + u, at * 3 + 5, u % 12 + 1)
    });
    let articles = items(|i| {
        format!(
            "A{i:04};Stuhl {i};\"Ein <b>bequemer</b> Stuhl; aus Eiche, Modell {i}. Sehr leicht gebaut f\u{fc}r jeden Tag.\";M\u{f6}bel {};{i},99\n",
            i % 5
        )
    });
    vec![
        ("laden/kaeufe.csv", latin_1(&format!("Kundennr;Artikelnr;Datum;Preis\n{sales}"))),
        ("laden/artikel.csv", latin_1(&format!("Artikelnr;Bezeichnung;Beschreibung;Marke;Preis\n{articles}"))),
    ]
}

#[test]
fn an_id_may_be_the_word_true() {
    let id = |item: usize| if item == 3 { "TRUE".to_owned() } else { format!("c{item}") };
    let purchases = events(|u, i, at| {
        let time = 1_500_000_000 + u * 1000 + at;
        format!("{{\"user_id\": \"u{u}\", \"item_id\": \"{}\", \"timestamp\": {time}}}\n", id(i))
    });
    let cups = items(|i| format!("{{\"item_id\": \"{}\", \"title\": \"Cup {i}\", \"categories\": [\"x\"]}}\n", id(i)));
    let project = Project::without_pipeline(&[("e.jsonl", purchases.into()), ("i.jsonl", cups.into())]);
    let config = guessed_pipeline(&project, &["--interactions", "e.jsonl", "--items", "i.jsonl"]);
    assert_eq!(config.source.columns.item_id, "item_id");
}

#[test]
fn a_shop_s_export_becomes_a_pipeline_that_runs_at_once() {
    let project = Project::without_pipeline(&german());
    let words = ["init", "--interactions", "laden/kaeufe.csv", "--items", "laden/artikel.csv"];
    let printed = project.run(words[0], &words[1..]);
    for expected in [
        "user         `Kundennr`",
        "item         `Artikelnr`",
        "time         `Datum`: dates written as `%d.%m.%Y %H:%M`",
        "title        `Bezeichnung`",
        "HTML in it is removed",
        "`Preis` (numbers from 0.99 to 23.99)",
        "windows-1252",
        "100.0 % of the events have an item with a line",
        "wrote laden.toml",
    ] {
        assert!(printed.contains(expected), "{expected}: {printed}");
    }
    let text = files::read_to_string(&project.raw("laden.toml")).unwrap();
    assert!(text.contains("data = \"laden\"") && text.contains("interactions = [\"kaeufe.csv\"]"), "{text}");
    // A second run does not replace the file without `--force`.
    let refused = project.run_failing(words[0], &words[1..]);
    assert!(refused.contains("`laden.toml` exists") && refused.contains("--force"), "{refused}");
    project.run(words[0], &[&words[1..], &["--force"]].concat());
    assert!(project.run("doctor", &["--pipeline", "laden.toml"]).contains("| report     | would run"));
    let short = ["--set", "pretrain.epochs=1", "--set", "finetune.epochs=1", "--set", "model.mp4sr.experts=2"];
    let ran = project.run("run", &[&["--pipeline", "laden.toml"], &short[..]].concat());
    assert!(ran.contains("| mp4sr |"), "{ran}");
    let items = Items::read(&project.raw("artifacts/laden/dataset/items.parquet")).unwrap();
    assert!(
        items.sentences[0].iter().any(|text| text == "Ein bequemer Stuhl; aus Eiche, Modell 0."),
        "{:?}",
        items.sentences[0]
    );
    let again = project.run("doctor", &[&["--pipeline", "laden.toml"], &short[..]].concat());
    assert_eq!(again.matches("| up to date |").count(), 7, "{again}");
    let changed = project.run("doctor", &["--pipeline", "laden.toml", "--set", "preprocess.recent=6"]);
    assert!(changed.contains("would run: setting `preprocess.recent` changed"), "{changed}");
}

#[test]
fn file_formats_are_recognised_without_questions() {
    let tsv = events(|u, i, at| format!("{u}\t{i}\t{}\t{}\n", at % 5 + 1, 1_500_000_000 + u * 1000 + at));
    let json = events(|u, i, at| {
        format!("{{\"visitorId\": \"v{u}\", \"itemId\": {i}, \"ts\": \"2023-01-{:02}T10:00:00Z\"}}\n", at + 1)
    });
    let lists = items(|i| {
        format!("{{\"sku\": {i}, \"name\": \"Lamp {i}\", \"tags\": [\"a{}\", \"b\"], \"pic\": \"{i}.png\"}},", i % 3)
    });
    let pair = |u: usize| {
        let [a, b, c, d, e] = [0, 1, 2, 3, 4].map(|at| u % 20 + at);
        format!("{u}\t{a} {b} {c} {d} {e}")
    };
    let pairs = (0..USERS).map(pair).collect::<Vec<_>>().join("\n");
    let project = Project::without_pipeline(&[
        ("plain.tsv", tsv.into()),
        ("events.jsonl", json.into()),
        ("items.json", format!("[{}]", lists.trim_end_matches(',')).into()),
        ("pairs.tsv", pairs.into()),
        ("titles.csv", format!("item,title\n{}", items(|i| format!("{i},Video {i}\n"))).into()),
        ("pics/0.png", b"x".to_vec()),
    ]);
    // No header and no items: the model reads only ids.
    let config = guessed_pipeline(&project, &["--interactions", "plain.tsv"]);
    assert_eq!(config.source.interactions_header, ["column_1", "column_2", "column_3", "column_4"]);
    assert_eq!(
        (&*config.source.columns.user, &*config.source.columns.time, &*config.source.time),
        ("column_1", "column_4", "s")
    );
    assert_eq!(config.model.name, "sasrec");
    let text = files::read_to_string(&project.raw("p.toml")).unwrap().replace("\n# ", " ");
    assert!(text.contains("the model reads only ids. These models do: ") && text.contains(" sasrec"), "{text}");
    // JSON lines and a JSON array, numeric ids, and images in a folder by a column.
    let json = ["--interactions", "events.jsonl", "--items", "items.json", "--images", "pics", "--force"];
    let config = guessed_pipeline(&project, &json);
    let columns = &config.source.columns;
    assert_eq!(
        (&*columns.user, &*columns.item, &*columns.item_id, &*columns.title),
        ("visitorId", "itemId", "sku", "name")
    );
    assert_eq!((&*config.source.images, &*columns.images, &*config.source.time), ("pics", "pic", "iso"));
    assert_eq!(config.model.modality_names(), ["text", "image"]);
    let made = preprocessed(&project, &project.raw("p.toml"), "made", &[]);
    assert_eq!(made.images.iter().flatten().count(), 1);
    // A whole sequence in one cell, in the order of the lines.
    let config = guessed_pipeline(&project, &["--interactions", "pairs.tsv", "--items", "titles.csv", "--force"]);
    assert_eq!((&*config.source.columns.item_separator, &*config.source.time), (" ", "line-order"));
    // Without a table of items, only separators that names do not contain are found.
    let lists = |separator: &str| {
        let line =
            |user: usize| format!("c{user},{}\n", [user, user + 1, user + 2].map(|i| format!("p{i}")).join(separator));
        format!("customer,items\n{}", (0..USERS).map(line).collect::<String>())
    };
    for (separator, expected) in [("|", "|"), (" ", "")] {
        project.write_raw("lists.csv", lists(separator));
        let config = guessed_pipeline(&project, &["--interactions", "lists.csv", "--item", "items", "--force"]);
        assert_eq!(config.source.columns.item_separator, expected);
    }
    // What the user says takes precedence over any guess.
    let config = guessed_pipeline(
        &project,
        &["--interactions", "plain.tsv", "--user", "column_2", "--item", "column_1", "--line-order", "--force"],
    );
    assert_eq!(
        (&*config.source.columns.user, &*config.source.columns.item, &*config.source.time),
        ("column_2", "column_1", "line-order")
    );
}

#[test]
fn the_times_of_sequences_are_found_however_they_are_written() {
    // Some users have a single event.
    let of = |user: usize| {
        let count = if user % 7 == 3 { 1 } else { 4 };
        (0..count).map(move |at| (format!("I{:02}", (user * 5 + at * 3) % ITEMS), 1_600_000_009 - at))
    };
    let joined = |parts: Vec<String>, separator: &str| parts.join(separator);
    let separated = |separator: &str| {
        let line = |user: usize| {
            let (items, times): (Vec<String>, Vec<String>) = of(user).map(|(i, time)| (i, time.to_string())).unzip();
            format!("u{user},{},{}\n", joined(items, separator), joined(times, separator))
        };
        format!("user_id,items,times\n{}", (0..USERS).map(line).collect::<String>())
    };
    let python = |user: usize| {
        let (items, times): (Vec<String>, Vec<usize>) = of(user).unzip();
        format!("u{user},\"{items:?}\",\"{times:?}\"\n").replace('"', "'").replace(",'[", ",\"[").replace("]'", "]\"")
    };
    let json = |user: usize| {
        let (items, times): (Vec<String>, Vec<usize>) = of(user).unzip();
        format!("{{\"user_id\": \"u{user}\", \"items\": {items:?}, \"times\": {times:?}}}\n")
    };
    let project = Project::without_pipeline(&[
        ("items.csv", format!("item_id,title\n{}", items(|i| format!("I{i:02},Lamp {i}\n"))).into()),
        ("spaces.csv", separated(" ").into()),
        ("pipes.csv", separated("|").into()),
        ("python.csv", format!("user_id,items,times\n{}", (0..USERS).map(python).collect::<String>()).into()),
        ("lists.jsonl", (0..USERS).map(json).collect::<String>().into()),
    ]);
    let backwards: Vec<String> = of(0).map(|(item, _)| item).rev().collect();
    for name in ["spaces.csv", "pipes.csv", "python.csv", "lists.jsonl"] {
        let config = guessed_pipeline(&project, &["--interactions", name, "--items", "items.csv", "--force"]);
        assert_eq!(&*config.source.columns.time, "times", "{name}");
        let made = preprocessed(&project, &project.raw("p.toml"), &format!("made.{name}"), &[]);
        let own = made.sequences.of(0).iter().map(|&item| made.items.ids[item as usize - 1].clone());
        assert_eq!(own.collect::<Vec<String>>(), backwards, "{name}");
    }
}

#[test]
fn lists_of_times_and_counts_are_not_the_times_of_single_events() {
    let rows = events(|u, i, at| format!("u{u},I{i:02},{},\"['2020-09-01', '2020-09-02']\"\n", 1_600_000_000 + at));
    let counts = events(|u, i, at| format!("u{u},I{i:02},{}\n", at % 4 + 1));
    let durations = events(|u, i, at| format!("u{u},I{i:02},2020-09-0{},{at}:07\n", at + 1));
    let project = Project::without_pipeline(&[
        ("lists.csv", format!("user_id,item_id,visit_ts,dates\n{rows}").into()),
        ("counts.csv", format!("user_id,item_id,times\n{counts}").into()),
        ("durations.csv", format!("user_id,item_id,date,duration\n{durations}").into()),
    ]);
    for (name, time, notation) in
        [("lists.csv", "visit_ts", "s"), ("counts.csv", "timestamp", "line-order"), ("durations.csv", "date", "iso")]
    {
        let words = ["--interactions", name, "--out", "p.toml", "--force"];
        assert!(!project.run("init", &words).contains("time of day"), "{name}");
        let source = Config::load(&project.raw("p.toml"), &[], model_catalog()).unwrap().0.source;
        assert_eq!((&*source.columns.time, &*source.time), (time, notation), "{name}");
    }
}

#[test]
fn a_time_of_day_beside_the_date_is_reported() {
    let rows = events(|u, i, at| format!("u{u},I{i:02},2020-09-{:02},1{}:30:39\n", at / 3 + 1, 9 - at));
    let project = Project::without_pipeline(&[("events.csv", format!("user_id,item_id,date,time\n{rows}").into())]);
    let printed = project.run("init", &["--interactions", "events.csv", "--out", "p.toml"]);
    assert!(printed.contains("`date` has dates and `time` may have the time of day, which is not read"), "{printed}");
}

/// A day does not order the events of that day, so a column of exact times is better whatever it is called.
#[test]
fn exact_times_are_preferred_to_dates() {
    let exact = events(|u, i, at| {
        format!("u{u},I{i:02},20220408,{},{}\n", 900 + at, 1_649_400_000_000_u64 - 60_000 * at as u64)
    });
    let updated = events(|u, i, at| format!("u{u},I{i:02},2022-04-08,{}\n", 1_649_400_000 - 60 * at));
    let hours = events(|u, i, at| format!("u{u},I{i:02},2022-04-08,{}\n", 20 - at));
    let project = Project::without_pipeline(&[
        ("exact.csv", format!("user_id,item_id,date,hourmin,time_ms\n{exact}").into()),
        ("updated.csv", format!("user_id,item_id,create_date,update_ts\n{updated}").into()),
        ("hours.csv", format!("user_id,item_id,date,hour\n{hours}").into()),
    ]);
    for (name, time, doubt) in [
        ("exact.csv", "time_ms", "the time is `time_ms`; `date` has times too"),
        ("updated.csv", "create_date", "the time is `create_date`; `update_ts` has times too"),
        ("hours.csv", "date", "`hour` may have the time of day, which is not read"),
    ] {
        let printed = project.run("init", &["--interactions", name, "--out", "p.toml", "--force"]);
        assert!(printed.contains(doubt), "{printed}");
        let source = Config::load(&project.raw("p.toml"), &[], model_catalog()).unwrap().0.source;
        assert_eq!(&*source.columns.time, time);
    }
}

#[test]
fn sets_and_histories_that_a_draft_does_not_keep_are_named() {
    let labelled = events(|u, i, at| format!("u{u},I{i:02},{},{}\n", 1_600_000_000 + at, at / 3));
    let listed = events(|u, i, at| format!("u{u}\tI01 I02\tI{i:02}\t{}\n", 1_600_000_000 + at));
    let header = "user_id:token\titem_id_list:token_seq\titem_id:token\ttimestamp:float\n";
    let project = Project::without_pipeline(&[
        ("labelled.csv", format!("user_id,item_id,timestamp,x_label\n{labelled}").into()),
        ("a.train.inter", format!("{header}{listed}").into()),
        ("a.test.inter", format!("{header}{listed}").into()),
    ]);
    let printed =
        |words: &[&str]| project.run("init", &[&["--out", "p.toml", "--force", "--interactions"][..], words].concat());
    let labelled = printed(&["labelled.csv"]);
    assert!(
        labelled.contains("`x_label` seems to divide the events into sets") && labelled.contains("not read"),
        "{labelled}"
    );
    let sets = printed(&["a.train.inter", "a.test.inter"]);
    assert!(
        sets.contains("the sets of a split") && sets.contains("`item_id_list` seems to hold the history"),
        "{sets}"
    );
}

/// The column of the user is never the item, however well its values match, and the length of a list says nothing about its ids.
#[test]
fn long_lists_are_the_items_and_not_the_user() {
    let row = |user: usize| {
        let items: Vec<usize> = (0..30).map(|at| (user * 3 + at) % ITEMS + 1).collect();
        format!("{{\"user_id\": {}, \"account\": \"s{}\", \"item_ids\": {items:?}}}\n", user + 1, user / 3)
    };
    let cells = |user: usize| {
        format!("{user},{}\n", (0..30).map(|at| ((user + at) % ITEMS + 1).to_string()).collect::<Vec<_>>().join(";"))
    };
    let project = Project::without_pipeline(&[
        ("lists.jsonl", (0..USERS).map(row).collect::<String>().into()),
        ("cells.csv", format!("user_id,item_ids\n{}", (0..USERS).map(cells).collect::<String>()).into()),
        ("items.csv", format!("item_id,title\n{}", items(|i| format!("{},Lamp {i}\n", i + 1))).into()),
    ]);
    for name in ["lists.jsonl", "cells.csv"] {
        let config = guessed_pipeline(&project, &["--interactions", name, "--items", "items.csv", "--force"]);
        assert_eq!((&*config.source.columns.user, &*config.source.columns.item), ("user_id", "item_ids"), "{name}");
    }
}

#[test]
fn flags_without_an_effect_and_models_without_features_are_refused() {
    let rows = events(|u, i, at| format!("u{u},I{i:02},{}\n", 1_600_000_000 + at));
    let project = Project::without_pipeline(&[("events.csv", format!("user_id,item_id,timestamp\n{rows}").into())]);
    let words = |words: &[&'static str]| [&["--interactions", "events.csv", "--out", "p.toml"][..], words].concat();
    for flag in ["--title", "--item-id", "--text", "--category", "--image-column"] {
        let refused = project.output("init", &words(&[flag, "name"]));
        assert!(!refused.status.success() && stderr_of(&refused).contains("--items"), "{flag}");
    }
    let message = project.run_failing("init", &words(&["--model", "mp4sr"]));
    assert!(message.contains("`--model mp4sr` reads texts or images, and no item has any"), "{message}");
    mp4sr_artifact::Table::new(vec![("user_id", mp4sr_artifact::Column::Text(vec!["u".to_owned()]))])
        .write(&project.raw("events.parquet"))
        .unwrap();
    let message =
        project.run_failing("init", &["--interactions", "events.parquet", "--separator", ";", "--out", "p.toml"]);
    assert!(message.contains("`--separator` has no effect"), "{message}");
    // A line with a user and all of its items is not an event.
    project.write_raw("train.txt", b"0 0 1 4 6\n1 2 3\n2 5\n");
    let message = project.run_failing("init", &["--interactions", "train.txt", "--separator", " ", "--out", "p.toml"]);
    assert!(message.contains("the same number of columns in each line"), "{message}");
}

#[test]
fn a_folder_with_images_of_items_that_is_not_used_is_named() {
    let rows = events(|u, i, at| format!("u{u},I{i:02},{}\n", 1_600_000_000 + at));
    let titles = items(|i| format!("I{i:02},Lamp {i}\n"));
    let project = Project::without_pipeline(&[
        ("shop/events.csv", format!("user_id,item_id,timestamp\n{rows}").into()),
        ("shop/items.csv", format!("item_id,title\n{titles}").into()),
        ("shop/other/logo.png", vec![1]),
        ("shop/pictures/I03.png", vec![1]),
    ]);
    let words = ["--interactions", "shop/events.csv", "--items", "shop/items.csv", "--out", "p.toml", "--force"];
    let seen = project.run("init", &words);
    assert!(seen.contains("`shop/pictures` has images that are named by 1 of"), "{seen}");
    assert!(seen.contains("`--images shop/pictures`") && !seen.contains("shop/other"), "{seen}");
    let seen = project.run("init", &[&words[..], &["--images", "shop/pictures"]].concat());
    assert!(!seen.contains("not used"), "{seen}");
}

#[test]
fn images_that_are_urls_are_read_once_they_are_downloaded() {
    let rows = events(|u, i, at| format!("u{u},I{i:02},{}\n", 1_600_000_000 + at));
    let pictures = items(|i| format!("I{i:02},https://example.org/{i}.png\n"));
    let project = Project::without_pipeline(&[
        ("events.csv", format!("user_id,item_id,timestamp\n{rows}").into()),
        ("items.csv", format!("item_id,image\n{pictures}").into()),
        (
            "told.csv",
            format!("item_id,title,image\n{}", items(|i| format!("I{i:02},Lamp {i},https://example.org/{i}.png\n")))
                .into(),
        ),
    ]);
    let draft = |items: &str, more: &[&str]| {
        let words = ["--interactions", "events.csv", "--items", items, "--image-encoder", "clip", "--force"];
        let config = guessed_pipeline(&project, &[&words[..], more].concat());
        assert_eq!(config.extract.image.model, "openai/clip-vit-base-patch32", "{items} {more:?}");
        (config, project.raw_text("p.toml").replace("\n# ", " "))
    };
    let modalities =
        |config: &Config| -> Vec<String> { config.model.modalities.iter().map(|own| own.name.clone()).collect() };
    let (config, text) = draft("items.csv", &[]);
    assert!(config.model.name == "sasrec" && text.contains("a model such as mp4sr reads them"), "{text}");
    let (config, _) = draft("items.csv", &["--model", "mp4sr"]);
    assert_eq!((&*config.model.name, modalities(&config)), ("mp4sr", vec!["image".to_owned()]));
    let (config, text) = draft("told.csv", &[]);
    assert_eq!(modalities(&config), ["text"]);
    assert!(text.contains("`modalities = [{ name = \"text\" }, { name = \"image\" }]` reads them too"), "{text}");
}

#[test]
fn parquet_gives_the_pipeline_of_the_table_that_it_holds() {
    use mp4sr_artifact::{Column, Table};
    let project = Project::without_pipeline(&german());
    let rows: Vec<(usize, usize, usize)> =
        (0..USERS).flat_map(|user| (0..7).map(move |at| (user, (user * 5 + at * 3) % ITEMS, at))).collect();
    Table::new(vec![
        ("customer_id", Column::Text(rows.iter().map(|(user, ..)| format!("c{user}")).collect())),
        ("product_id", Column::Text(rows.iter().map(|(_, item, _)| format!("p{item}")).collect())),
        (
            "purchased_at",
            Column::Text(rows.iter().map(|(user, _, at)| format!("2023-02-{:02} 10:{user:02}:00", at + 1)).collect()),
        ),
    ])
    .write(&project.raw("sales.parquet"))
    .unwrap();
    Table::new(vec![
        ("id", Column::Text((0..ITEMS).map(|item| format!("p{item}")).collect())),
        ("product_title", Column::Text((0..ITEMS).map(|item| format!("A lamp {item}")).collect())),
        ("tags", Column::Texts((0..ITEMS).map(|item| vec![format!("t{}", item % 3), "lamp".to_owned()]).collect())),
    ])
    .write(&project.raw("products.parquet"))
    .unwrap();
    let config = guessed_pipeline(&project, &["--interactions", "sales.parquet", "--items", "products.parquet"]);
    let columns = &config.source.columns;
    assert_eq!((&*columns.user, &*columns.item, &*columns.time), ("customer_id", "product_id", "purchased_at"));
    assert_eq!(
        (&*columns.item_id, &*columns.title, &columns.texts[..]),
        ("id", "product_title", &["tags".to_owned()][..])
    );
    let made = preprocessed(&project, &project.raw("p.toml"), "made", &[]);
    assert_eq!((made.users.len(), made.sequences.items.len()), (USERS, USERS * 7));
}

#[test]
fn a_column_of_quantities_is_not_taken_for_the_item() {
    for (quantity, id) in [("price", "item_id"), ("stars", "product_id"), ("qty", "sku"), ("menge", "artikel")] {
        let rows = events(|u, i, at| format!("u{u},{i:05},{},{}\n", 1_500_000_000 + at, (u + at) % ITEMS));
        let project = Project::without_pipeline(&[
            ("sales.csv", format!("user_id,{id},timestamp,{quantity}\n{rows}").into()),
            ("items.csv", format!("number,title\n{}", items(|i| format!("{i},Lamp {i}\n"))).into()),
        ]);
        let words = ["--interactions", "sales.csv", "--items", "items.csv", "--out", "p.toml"];
        let refused = project.run_failing("init", &words);
        assert!(refused.contains("leading zeros"), "{quantity}: {refused}");
    }
    // A column that means nothing by its name may be the item, but this is uncertain.
    let rows = events(|u, i, at| format!("u{u},Lamp {},{},{i}\n", (b'a' + i as u8) as char, 1_500_000_000 + at));
    let project = Project::without_pipeline(&[
        ("sales.csv", format!("user_id,item_name,timestamp,code\n{rows}").into()),
        ("items.csv", format!("number,title\n{}", items(|i| format!("{i},A lamp {i}\n"))).into()),
    ]);
    let printed = project.run("init", &["--interactions", "sales.csv", "--items", "items.csv", "--out", "p.toml"]);
    assert!(printed.contains("the item is `code`") && printed.contains("`item_name` denotes an item"), "{printed}");
}

#[test]
fn markers_of_missing_values_are_not_ids() {
    let table = |user: &dyn Fn(usize) -> String| {
        let rows = events(|u, i, at| format!("{},i{i},{}\n", user(u + at), 1_500_000_000 + at));
        format!("user_id,item_id,timestamp\n{rows}").into_bytes()
    };
    let null = |at: usize| if at.is_multiple_of(9) { "NULL".to_owned() } else { format!("u{at}") };
    let empty = |at: usize| if at.is_multiple_of(9) { String::new() } else { format!("u{at}") };
    let project = Project::without_pipeline(&[("null.csv", table(&null)), ("empty.csv", table(&empty))]);
    let made = |name: &str| {
        guessed_pipeline(&project, &["--interactions", name, "--force"]);
        preprocessed(&project, &project.raw("p.toml"), name.split_once('.').unwrap().0, &[])
    };
    let (null, empty) = (made("null.csv"), made("empty.csv"));
    assert_eq!((null.users.len(), &null.sequences.items), (empty.users.len(), &empty.sequences.items));
}

#[test]
fn input_that_would_give_another_order_or_replace_the_data_is_refused() {
    let table = |time: &dyn Fn(usize) -> String| {
        format!("user_id,item_id,timestamp\n{}", events(|u, i, at| format!("u{u},i{i},{}\n", time(at)))).into_bytes()
    };
    let project = Project::without_pipeline(&[
        ("years.csv", table(&|at| format!("year {at}"))),
        ("seconds.csv", table(&|at| format!("{}", 1_500_000_000 + 86_400 * at))),
        ("days.csv", table(&|at| format!("2018-02-0{}", at + 1))),
        ("short.csv", table(&|at| format!("0{}.02.18", at + 1))),
    ]);
    let refused = project.run_failing("init", &["--interactions", "years.csv", "--out", "p.toml"]);
    assert!(
        refused.contains("`timestamp` has values such as `year") && refused.contains("`--line-order`"),
        "{refused}"
    );
    let config = guessed_pipeline(&project, &["--interactions", "years.csv", "--line-order"]);
    assert_eq!(&*config.source.time, "line-order");
    // A notation that is not recognised is enough to find the column.
    let words = ["--interactions", "short.csv", "--time-format", "%d.%m.%y", "--force"];
    let config = guessed_pipeline(&project, &words);
    assert_eq!((&*config.source.columns.time, &*config.source.time), ("timestamp", "%d.%m.%y"));
    // Each file has its own notation, which no key may fix.
    let both = ["--interactions", "seconds.csv", "--interactions", "days.csv", "--force"];
    let config = guessed_pipeline(&project, &both);
    assert_eq!(&*config.source.time, "");
    let made = preprocessed(&project, &project.raw("p.toml"), "made", &[]);
    assert!(made.sequences.times.iter().all(|&time| time >= 1_500_000_000));
    let before = files::read(&project.raw("days.csv")).unwrap();
    let refused = project.run_failing("init", &["--interactions", "days.csv", "--out", "days.csv", "--force"]);
    assert!(refused.contains("is a file of the data"), "{refused}");
    assert_eq!(files::read(&project.raw("days.csv")).unwrap(), before);
}

#[test]
fn tables_of_other_programs_are_recognised_by_most_of_their_lines() {
    let without_header = |last: &str| {
        format!("{}{last}", events(|u, i, at| format!("{u},{},pv,{}\n", i + 100, 1_500_000_000 - at * 1000)))
    };
    let dates = |last: &str| {
        let dated = events(|u, i, at| format!("u{u},i{i},201502{:02}{:02}\n", 1 + (i + at) % 28, (u + at) % 24));
        format!("user_id,item_id,timestamp\n{dated}{last}")
    };
    let project = Project::without_pipeline(&[
        ("zero.csv", without_header("1,100,pv,0\n").into()),
        ("negative.csv", without_header("1,100,pv,-1500000000\n").into()),
        ("hours.csv", dates("u1,i1,2015023021\n").into()),
        ("lists.tsv", format!("user\titem_list\n{}", items(|i| format!("u{i}\t{i} {} 7 3\n", i + 1))).into()),
        ("quoted.tsv", events(|u, i, at| format!("\"u{u}\"\t\"i{i}\"\t{}\n", 1_500_000_000 + at)).into()),
        ("spreadsheet.csv", format!("customer,product,,\n{}", events(|u, i, _| format!("c{u},p{i},,\n"))).into()),
    ]);
    let guessed = |name: &str| guessed_pipeline(&project, &["--interactions", name, "--force"]).source;
    for name in ["zero.csv", "negative.csv"] {
        let source = guessed(name);
        assert_eq!((&*source.columns.time, &*source.time), ("column_4", "s"), "{name}");
    }
    assert_eq!(guessed("hours.csv").time, "%Y%m%d%H");
    assert_eq!(guessed("lists.tsv").columns.item_separator, " ");
    let source = guessed("spreadsheet.csv");
    assert_eq!((&*source.columns.user, &*source.columns.item), ("customer", "product"));
    assert_eq!(guessed("quoted.tsv").quoting, mp4sr_pipeline::config::Quoting::Always);
    let made = preprocessed(&project, &project.raw("p.toml"), "quoted", &[]);
    assert!(made.users.iter().all(|id| id.starts_with('u')), "{:?}", made.users);
}

#[test]
fn blanks_around_ids_are_not_part_of_them() {
    let padded = events(|u, i, at| {
        let blank = if at % 2 == 0 { " " } else { "" };
        format!("{blank}u{u}{blank}, i{i}{blank},{}\n", 1_500_000_000 + at)
    });
    let project = Project::without_pipeline(&[("padded.csv", format!("user_id,item_id,timestamp\n{padded}").into())]);
    project.run("init", &["--interactions", "padded.csv", "--out", "p.toml"]);
    let made = preprocessed(&project, &project.raw("p.toml"), "made", &[]);
    assert!(made.users.iter().chain(&made.items.ids).all(|id| id.trim() == id), "{:?}", made.users);
    assert_eq!((made.users.len(), made.items.ids.len()), (USERS, ITEMS), "each id counts once");
}

#[test]
fn unrecognised_columns_are_refused_with_a_message_and_nothing_is_written() {
    let header = "user_id,item_id,when\n";
    let ambiguous = format!("{header}{}", events(|u, i, at| format!("u{u},{i},0{}/0{}/2023\n", at + 1, u % 9 + 1)));
    let zeros = format!("{header}{}", events(|u, i, at| format!("u{u},{:08},{}\n", i + 77, 1_500_000_000 + at)));
    let anonymous = format!("a,b,c\n{}", events(|u, i, at| format!("x{u},y{i},{}\n", at * 1000)));
    let project = Project::without_pipeline(&[
        ("ambiguous.csv", ambiguous.into()),
        ("zeros.csv", zeros.into()),
        ("anonymous.csv", anonymous.into()),
        ("items.csv", format!("item_id,title\n{}", items(|i| format!("{},Lamp {i}\n", i + 77))).into()),
        ("sales.zip", b"PK\x03\x04 and so on".to_vec()),
        ("text.txt", b"one line\nand another one that is longer\nthree\n".to_vec()),
        (
            "umlaut.csv",
            latin_1(&format!(
                "user_id,item_id,timestamp\n{}",
                events(|u, i, at| format!("M\u{fc}ller {u},{i},{}\n", 1_500_000_000 + at))
            )),
        ),
        ("utf8.csv", format!("item_id,title\n{}", items(|i| format!("{i},L\u{e4}mpchen {i}\n"))).into()),
    ]);
    for (words, expected) in [
        (&["--interactions", "ambiguous.csv"][..], "whose notation cannot be determined"),
        (&["--interactions", "zeros.csv", "--items", "items.csv"], "leading zeros"),
        (&["--interactions", "anonymous.csv"], "--item COLUMN"),
        (&["--interactions", "sales.zip"], "is a zip archive or a spreadsheet; unpack it"),
        (&["--interactions", "absent.csv"], "does not exist"),
        (&["--interactions", "text.txt"], "--separator"),
        (&["--interactions", "umlaut.csv", "--items", "utf8.csv"], "one encoding"),
        (&["--interactions", "zeros.csv", "--user", "userid"], "did you mean `user_id`?"),
        (&["--interactions", "zeros.csv", "--images", "nowhere"], "is not a folder"),
    ] {
        let message = project.run_failing("init", &[words, &["--out", "p.toml"]].concat());
        assert!(message.contains(expected), "{words:?}: {message}");
        assert!(!project.raw("p.toml").exists(), "{words:?}");
    }
    // The flag that the error suggests helps.
    let config = guessed_pipeline(&project, &["--interactions", "ambiguous.csv", "--time-format", "%d/%m/%Y"]);
    assert_eq!(config.source.time, "%d/%m/%Y");
}

/// Every file and folder below a folder, with its content.
fn snapshot(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for path in files::list(folder).unwrap() {
        if path.is_dir() {
            found.push((path.clone(), Vec::new()));
            found.extend(snapshot(&path));
        } else {
            found.push((path.clone(), files::read(&path).unwrap()));
        }
    }
    found.sort();
    found
}

#[test]
fn doctor_and_dry_runs_write_nothing() {
    let project = Project::without_pipeline(&german());
    project.run("init", &["--interactions", "laden/kaeufe.csv", "--items", "laden/artikel.csv"]);
    let new = "Artikelnr;Bezeichnung;Beschreibung;Marke;Preis\nNEU;Stuhl;Ein Stuhl aus Eiche.;M\u{f6}bel 1;5,99\n";
    std::fs::write(project.raw("laden/neu.csv"), latin_1(new)).unwrap();
    let pipeline = ["--pipeline", "laden.toml"];
    let commands: [(&str, &[&str]); 15] = [
        ("doctor", &[]),
        ("run", &["--dry-run"]),
        ("run", &["--dry-run", "--until", "preprocess"]),
        ("preprocess", &["--dry-run"]),
        ("extract", &["--dry-run"]),
        ("pretrain", &["--dry-run"]),
        ("finetune", &["--dry-run"]),
        ("evaluate", &["--dry-run"]),
        ("recommend", &["--dry-run"]),
        ("report", &["--dry-run"]),
        ("serve", &["--dry-run", "--port", "0"]),
        ("items", &["add", "--items", "laden/neu.csv", "--dry-run"]),
        ("study", &["table2", "--dry-run"]),
        ("download", &["--dry-run"]),
        ("search", &["--dry-run"]),
    ];
    let codes = |more: &[&str]| -> Vec<i32> {
        let before = snapshot(project.folder());
        let code = |(name, words): &(&str, &[&str])| {
            let output = project.output(name, &[*words, &pipeline[..], more].concat());
            assert!(snapshot(project.folder()) == before, "{name} {words:?} changed a file");
            output.status.code().unwrap()
        };
        commands.iter().map(code).collect()
    };
    // Commands of a single stage fail without the outputs of earlier stages; commands that also run the earlier stages succeed.
    assert_eq!(codes(&[]), [0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0]);
    let short = ["--set", "pretrain.epochs=1", "--set", "finetune.epochs=1", "--set", "model.mp4sr.experts=2"];
    project.run("run", &[&pipeline[..], &short[..]].concat());
    assert_eq!(codes(&short), [0; 15]);

    // A dry run finds what would stop the command, and says what it would do and how long that would take.
    let before = snapshot(project.folder());
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = port.local_addr().unwrap().port().to_string();
    for (name, words, part) in [
        ("recommend", &["--histories", "laden/kaeufe.csv"][..], "expected `user_id` and `history`"),
        ("recommend", &["--history", "x", "--out", "lists.xyz"], "cannot be determined"),
        ("recommend", &["--history", "x", "--only-where", "tilte = 'x'"], "did you mean `title`?"),
        ("serve", &["--port", "0", "--keys", "laden"], "name a file with one key per line"),
        ("serve", &["--port", &taken], "give another `--port`"),
        ("serve", &["--port", "0", "--host", "0.0.0.0"], "give `--keys FILE`"),
        ("items", &["add", "--items", "laden/kaeufe.csv"], "laden/kaeufe.csv"),
        ("items", &["remove", "--item", "nope"], "not added to the run: `nope`"),
    ] {
        let output = project.output(name, &[words, &pipeline[..], &short, &["--dry-run"]].concat());
        let message = stderr_of(&output);
        assert!(output.status.code() == Some(1) && message.contains(part), "{name} {words:?}: {message}");
    }
    for (name, words, part) in [
        ("recommend", &["--history", "x", "--top", "3"][..], "would  list the best 3 of "),
        ("serve", &["--port", "0"], "would  serve `mp4sr` with "),
        ("export", &["--format", "lists-csv", "--out", "exported"], "would  write lists-csv to `exported`"),
        ("items", &["add", "--items", "laden/neu.csv"], "would  add 1 items, and replace 0"),
    ] {
        let printed = project.run(name, &[words, &pipeline[..], &short, &["--dry-run"]].concat());
        let takes = printed.lines().find(|line| line.starts_with("takes  about ") && line.contains("of memory"));
        assert!(printed.contains(part) && takes.is_some(), "{name} {words:?}: {printed}");
    }
    let printed = project.run("compare", &[&["mp4sr"], &pipeline[..], &short, &["--dry-run"]].concat());
    assert!(printed.contains("trains and writes nothing") && !printed.contains("would run"), "{printed}");
    assert!(snapshot(project.folder()) == before, "a dry run changed a file");
}

/// A stage that is blocked has an estimate if the size of the data is known, and otherwise says that it is not.
#[test]
fn blocked_stages_have_an_estimate_or_say_why_there_is_none() {
    let project = Project::without_pipeline(&german());
    project.run("init", &["--interactions", "laden/kaeufe.csv", "--items", "laden/artikel.csv"]);
    let row = |words: &[&str], stage: &str| {
        let output = project.output("doctor", &[&["--pipeline", "laden.toml"], words].concat());
        let text = String::from_utf8(output.stdout).unwrap();
        let own = text.lines().find(|line| line.starts_with(&format!("| {stage} ")) && line.contains("blocked"));
        own.unwrap_or_else(|| panic!("`{stage}` is not blocked: {text}")).to_owned()
    };
    assert!(
        row(&["--set", "source.items=[\"none.csv\"]"], "finetune")
            .contains("because the size of the dataset is unknown")
    );
    let own = "model.modalities=[{ name = \"text\" }, { name = \"mine\", features = \"own\" }]";
    let known = row(&["--set", own], "finetune");
    assert!(known.contains("about ") && known.contains("MiB"), "{known}");
}

#[test]
fn doctor_reports_what_would_stop_a_run() {
    let project = Project::without_pipeline(&german());
    project.run("init", &["--interactions", "laden/kaeufe.csv", "--items", "laden/artikel.csv"]);
    let doctor = |words: &[&str]| {
        let output = project.output("doctor", &[&["--pipeline", "laden.toml"], words].concat());
        (output.status.code(), String::from_utf8(output.stdout.clone()).unwrap() + &stderr_of(&output))
    };
    for (words, expected) in [
        (&["--set", "source.items=[\"none.csv\"]"][..], "`laden/none.csv` does not exist"),
        (&["--set", "source.columns.item=Nr"], "has no column `Nr`"),
        (&["--set", "preprocess.usercore=5"], "did you mean `user_core`?"),
        (&["--set", "extract.text.model=nowhere/at/all"], "nowhere/at/all"),
        (&["--set", "preprocess.user_core=500"], "no events are left"),
        (&["--set", "run.device=cuda:0"], "`run.device` = \"cuda:0\" cannot be used"),
        (
            &["--set", "model.modalities=[{ name = \"text\" }, { name = \"mine\", features = \"own\" }]"],
            "mine.own.safetensors",
        ),
        (&["--set", "model.modalities=[{ name = \"image\" }]"], "the modality `image`"),
        (
            &["--set", "report.beside=[\"old\"]"],
            "run `mp4sr evaluate` for the run `old`, or remove it from `report.beside`",
        ),
        (&["--set", "source.items=[]", "--set", "model.name=mp4sr"], "the modality `text`"),
        (
            &[
                "--set",
                "preprocess.recent=3",
                "--set",
                "preprocess.user_core=0",
                "--set",
                "preprocess.item_core=0",
                "--set",
                "model.name=sasrec",
            ],
            "no user has more than 3 events, and `sasrec` needs users with 4: 2 for training",
        ),
        (
            &["--set", "model.name=difsr", "--set", "model.difsr.attributes=categories"],
            "`model.difsr.attributes` needs categories of items, and no item has one",
        ),
    ] {
        let (code, message) = doctor(words);
        assert_eq!(code, Some(1), "{words:?}: {message}");
        assert!(message.contains(expected), "{words:?}: {message}");
    }
    for (set, expected) in [
        ("model.modalities=[{ name = \"txet\" }]", "name a modality that `extract` computes: text, image, audio"),
        ("report.beside=[\"old\"]", "remove it from `report.beside`"),
    ] {
        let refused = project.run_failing("run", &["--pipeline", "laden.toml", "--set", set]);
        assert!(refused.contains(expected), "{refused}");
        assert!(!project.folder().join("artifacts").exists());
    }
    // A run with a device that does not exist stops before its first stage.
    let refused = project.run_failing("run", &["--pipeline", "laden.toml", "--set", "run.device=cuda:0"]);
    assert!(refused.contains("`run.device` = \"cuda:0\" cannot be used"), "{refused}");
    assert!(!project.folder().join("artifacts").exists());
    // Of a user with three events, models of users and items have a training event.
    let (code, message) = doctor(&[
        "--set",
        "preprocess.recent=3",
        "--set",
        "preprocess.user_core=0",
        "--set",
        "preprocess.item_core=0",
        "--set",
        "model.name=lightgcn",
    ]);
    assert_eq!(code, Some(0), "{message}");
    // A model of the hub that is not in the cache is downloaded when it is needed; `doctor` does not use the network.
    let (code, message) = doctor(&["--set", "extract.text.model=sentence-transformers/all-MiniLM-L6-v2"]);
    assert_eq!(code, Some(0), "{message}");
    assert!(message.contains("in the hub's cache"), "{message}");
}

#[test]
fn the_sample_shop_s_tables_become_a_pipeline_with_texts_and_images() {
    let project = Project::without_pipeline(&[]);
    let mut renamed = project.command("sample", &["--out", "shop"]);
    let refused = renamed.env("MP4SR_SAMPLE_FORM", "tables").output().unwrap();
    assert!(!refused.status.success() && stderr_of(&refused).contains("set `MP4SR_SAMPLE_FORMAT`"), "{refused:?}");
    project.run("sample", &["--format", "tables", "--out", "shop"]);
    let words = ["--interactions", "shop/purchases.csv", "--items", "shop/products.csv", "--images", "shop/images"];
    let config = guessed_pipeline(&project, &words);
    let columns = &config.source.columns;
    assert_eq!((&*columns.user, &*columns.item, &*columns.time), ("customer", "product", "bought_on"));
    assert_eq!((&*columns.item_id, &*columns.title), ("sku", "name"));
    assert!(columns.texts.contains(&"description".to_owned()), "{columns:?}");
    assert_eq!(columns.categories, ["department"]);
    assert_eq!(config.model.modality_names(), ["text", "image"]);
    project.run("doctor", &["--pipeline", "p.toml"]);
    let page = project.output("doctor", &["--pipeline", "p.toml", "--set", "extract.image.dictionary=none.txt"]);
    let (code, page) = (page.status.code(), String::from_utf8(page.stdout).unwrap());
    assert!(code == Some(1) && page.contains("`none.txt` is missing; correct `extract.image.dictionary`"), "{page}");
    project.write("empty.txt", "# no words\n");
    let page = project.output("doctor", &["--pipeline", "p.toml", "--set", "extract.image.dictionary=empty.txt"]);
    let (code, page) = (page.status.code(), String::from_utf8(page.stdout).unwrap());
    assert!(code == Some(1) && page.contains("(`empty.txt`) is empty; write one word per line"), "{page}");
    let made = preprocessed(&project, &project.raw("p.toml"), "made", &[]);
    let with_image = made.images.iter().filter(|images| !images.is_empty()).count();
    assert!(with_image * 10 > 9 * made.items.ids.len(), "{with_image} of {}", made.items.ids.len());
}

#[test]
fn messy_tables_are_normal() {
    // Quoted cells with separators, doubled quotation marks and line ends; ids with separators; and an extra column in one line of a
    // hundred.
    let sales = events(|u, i, at| {
        let more = if (u * 7 + at) % 100 == 99 { ",more" } else { "" };
        format!("\"c,{u}\",\"p,{i}\",2023-02-{:02}{more}\n", at + 1)
    });
    let products = items(|i| {
        format!(
            "\"p,{i}\",\"A \"\"red\"\" lamp {i}\",\"Made of oak,\nnumber {i}.\n\nIt is small, and light for every day.\"\n"
        )
    });
    let project = Project::without_pipeline(&[
        ("sales.csv", format!("customer,product,day\n{sales}").into()),
        ("products.csv", format!("product,name,description\n{products}").into()),
    ]);
    let words = ["--interactions", "sales.csv", "--items", "products.csv"];
    let printed = project.run("init", &[&words[..], &["--out", "p.toml"]].concat());
    assert!(printed.contains("2 lines of interactions cannot be used: too many columns, expected 3"), "{printed}");
    // A line is a record below the header, whether it can be used and however many lines of text it takes.
    let (lines, records) = (sales.lines().count(), ITEMS);
    let doctor = project.run("doctor", &["--pipeline", "p.toml"]);
    for (text, ends) in [(&printed, [" lines inspected", " lines inspected"]), (&doctor, [" lines", " lines"])] {
        for (name, number, end) in [("sales.csv", lines, ends[0]), ("products.csv", records, ends[1])] {
            let own = text.lines().find(|line| line.contains(name) && line.ends_with(end));
            let own = own.unwrap_or_else(|| panic!("no line about `{name}` in {text}"));
            assert!(own.ends_with(&format!(" {number}{end}")), "{own}: expected {number}");
        }
    }
    assert!(printed.contains(&format!("all {lines} lines of interactions and {records} of items")), "{printed}");
    let made = preprocessed(&project, &project.raw("p.toml"), "made", &[]);
    assert_eq!((made.users.len(), made.items.ids.len()), (USERS, ITEMS));
    assert_eq!((&*made.users[1], &*made.items.titles[0]), ("c,1", "A \"red\" lamp 0"));
    assert_eq!(made.items.sentences[0].len(), 3);
}
