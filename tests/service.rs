//! Tests the service over HTTP. `make test` builds the program first.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking and says what it leaves out"
)]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mp4sr_artifact::{Table, files};
use mp4sr_ops::ComputeDevice;
use mp4sr_tests::service::{Service, base64, parse};
use mp4sr_tests::{Project, command, root};
use serde_json::{Value, json};

fn trained() -> Project {
    let world = Project::small();
    world.run("run", &["--until", "recommend"]);
    world
}

/// The ids and scores of a list, best first.
type List = Vec<(String, f32)>;

/// The histories and lists that the stage wrote.
fn of_stage(world: &Project) -> Vec<(Vec<String>, List)> {
    let mut table = Table::read(&world.path("a/runs/mp4sr/recommendations.parquet"), "").unwrap();
    let (histories, items) = (table.take_texts("history").unwrap(), table.take_texts("items").unwrap());
    let lists = items.into_iter().zip(table.take_f32s("scores").unwrap());
    let lists = lists.map(|(items, scores)| items.into_iter().zip(scores).collect());
    histories.into_iter().zip(lists).collect()
}

#[test]
fn a_service_on_a_gpu_answers_with_the_lists_of_the_cpu_up_to_rounding() {
    if let Err(error) = ComputeDevice::Cuda(0).open() {
        println!("skipped: the service is not run on a GPU: {error}");
        return;
    }
    let world = trained();
    let service = Service::start(&world, &["--set", "run.device=\"cuda:0\""]);
    for (history, list) in of_stage(&world) {
        let answer = service.post("/v1/recommend", &json!({ "history": history, "k": list.len() })).list();
        assert_eq!(answer.len(), list.len());
        for (at, ((item, score), (_, expected))) in answer.iter().zip(&list).enumerate() {
            assert!((score - expected).abs() < 1e-4, "{history:?}: score {at} is {score} instead of {expected}");
            let own = list.iter().find(|(other, _)| other == item).map_or(list[list.len() - 1].1, |(_, own)| *own);
            assert!((score - own).abs() < 1e-4, "{history:?}: {item} has {score}, on the CPU {own}");
        }
    }
}

#[test]
fn answers_equal_the_lists_of_the_stage_under_concurrent_requests_and_reloads() {
    let world = trained();
    let expected = of_stage(&world);
    let service = Service::start(&world, &["--queue", "10000"]);
    let (stop, answered) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for client in 0..8 {
            let (service, expected, stop, answered) = (&service, &expected, &stop, &answered);
            scope.spawn(move || {
                for at in (client..).step_by(7).take_while(|_| !stop.load(Ordering::Relaxed)) {
                    let (history, list) = &expected[at % expected.len()];
                    let answer = service.post("/v1/recommend", &json!({ "history": history, "k": 10 }));
                    assert_eq!(&answer.list(), list);
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for generation in 2..=4 {
            // Some requests are answered before each swap, however fast the machine is.
            let (before, start) = (answered.load(Ordering::Relaxed), Instant::now());
            while answered.load(Ordering::Relaxed) < before + 20 {
                assert!(start.elapsed() < Duration::from_mins(1), "no answers");
                std::thread::sleep(Duration::from_millis(1));
            }
            service.signal("HUP");
            let start = Instant::now();
            while service.get("/readyz").json()["generation"] != generation {
                assert!(start.elapsed() < Duration::from_mins(1), "no swap");
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    // No more than `k` items are listed, and excluded items are not.
    let (history, list) = &expected[0];
    let best = &list[0].0;
    let answer = service.post("/v1/recommend", &json!({ "history": history, "k": 9, "exclude": [best, "zzz"] }));
    assert_eq!(answer.list(), list[1..]);
    assert_eq!(answer.json()["unknown_exclude"], json!(["zzz"]));
    let given = json!({ "history": ["i3", "gone"], "exclude": ["i4", "away"], "only": ["i7", "i9", "lost"] });
    let answer = service.post("/v1/recommend", &given).json();
    let unknown = ["unknown", "unknown_exclude", "unknown_only"].map(|field| answer[field].clone());
    assert_eq!(unknown, [json!(["gone"]), json!(["away"]), json!(["lost"])]);
    let answer = service.post("/v1/recommend", &json!({ "history": history, "only": [best, list[4].0] }));
    assert_eq!(answer.list(), [list[0].clone(), list[4].clone()]);
    let answer = service.post("/v1/recommend", &json!({ "history": ["nope"], "k": 3 }));
    assert_eq!((answer.json()["fallback"].as_str(), answer.list().len()), (Some("popular"), 3));
}

#[test]
fn requests_that_cannot_be_answered_are_refused_with_the_reason() {
    let world = trained();
    let limits = [
        "--body-limit",
        "2000",
        "--top-limit",
        "20",
        "--history-limit",
        "5",
        "--ids-limit",
        "6",
        "--item-body-limit",
        "5000",
    ];
    let service = Service::start(&world, &limits);
    let ids = |count: usize| (0..count).map(|at| format!("i{at}")).collect::<Vec<_>>();
    for (method, path, body, status, part) in [
        ("POST", "/v1/recommend", "{".to_owned(), 400, "the body: EOF"),
        ("POST", "/v1/recommend", json!({ "histroy": [] }).to_string(), 400, "unknown field `histroy`"),
        ("POST", "/v1/recommend", json!({ "history": [1] }).to_string(), 400, "invalid type"),
        ("POST", "/v1/recommend", json!({ "k": 0 }).to_string(), 400, "`k` is 0, expected 1 to 20"),
        ("POST", "/v1/recommend", json!({ "k": 21 }).to_string(), 400, "`k` is 21"),
        ("POST", "/v1/recommend", json!({ "history": ids(6) }).to_string(), 400, "`history` has more than 5 ids"),
        ("POST", "/v1/recommend", json!({ "exclude": ids(7) }).to_string(), 400, "`exclude` has more than 6 ids"),
        ("POST", "/v1/recommend", json!({ "only": ["nope"] }).to_string(), 422, "no id of `only`"),
        ("POST", "/v1/recommend?k=3", json!({ "history": null }).to_string(), 400, "the URL has the parameters `k=3`"),
        ("POST", "/v1/recommend", json!({ "only": [] }).to_string(), 422, "`only` has no id"),
        ("POST", "/v1/similar", json!({ "item_id": "i1", "only": [] }).to_string(), 422, "`only` has no id"),
        (
            "POST",
            "/v1/similar",
            json!({ "item_id": "i1", "only": ["i1"] }).to_string(),
            422,
            "leave none of the 30 items",
        ),
        (
            "POST",
            "/v1/recommend",
            json!({ "history": ["i3"], "only": ["i7"], "exclude": ["i7"] }).to_string(),
            422,
            "leave none of the 30 items of the run; relax these conditions",
        ),
        ("POST", "/v1/recommend", format!("{{{}}}", " ".repeat(3000)), 413, "more than 2000 bytes"),
        ("POST", "/v1/similar", json!({}).to_string(), 400, "give either"),
        ("POST", "/v1/similar", json!({ "item_id": "i1", "text": "x" }).to_string(), 400, "give either"),
        ("POST", "/v1/similar", json!({ "item_id": "nope" }).to_string(), 404, "`nope` is not an item"),
        ("POST", "/v1/similar", json!({ "image": "???" }).to_string(), 400, "`image` is not base64"),
        ("POST", "/v1/similar", json!({ "image": "AAAA" }).to_string(), 422, "`image`: no usable text or image"),
        ("POST", "/v1/similar", json!({ "text": "x", "image": "AAAA" }).to_string(), 422, "the image cannot be used"),
        ("POST", "/v1/recommend", "[]".to_owned(), 400, "the body is not a JSON object"),
        ("PUT", "/v1/items", json!({ "items": [["X5", "arr"]] }).to_string(), 400, "invalid type: sequence"),
        ("PUT", "/v1/items", json!({ "items": [] }).to_string(), 400, "`items` is empty"),
        ("PUT", "/v1/items", json!({ "items": [{ "item_id": " " }] }).to_string(), 400, "empty `item_id`"),
        (
            "PUT",
            "/v1/items",
            json!({ "items": [{ "item_id": "n" }] }).to_string(),
            422,
            "without a usable text or image",
        ),
        (
            "PUT",
            "/v1/items",
            json!({ "items": [{ "item_id": "nan" }] }).to_string(),
            422,
            "`nan` marks a missing value",
        ),
        (
            "PUT",
            "/v1/items",
            json!({ "items": [{ "item_id": "n", "title": "A" }, { "item_id": "n", "title": "B" }] }).to_string(),
            422,
            "the item `n` is given twice",
        ),
        (
            "PUT",
            "/v1/items",
            json!({ "items": [{ "item_id": "i3", "title": "x" }] }).to_string(),
            422,
            "already in the dataset",
        ),
        ("DELETE", "/v1/items", json!({ "item_ids": ["i3"] }).to_string(), 422, "not added to the run"),
        ("DELETE", "/v1/items", " ".repeat(6000), 413, "more than 5000 bytes"),
        (
            "PUT",
            "/v1/items",
            json!({ "items": [{ "item_id": "n", "title": "A", "images": ["AAAA", "???"] }] }).to_string(),
            400,
            "`images` of the item `n`, number 2, is not base64",
        ),
        ("GET", "/v1/items/nope", String::new(), 404, "`nope` is not an item"),
        ("GET", "/v1/items/no%0ape%1b", String::new(), 404, r"`no\npe\u{1b}` is not an item"),
        ("GET", "/v1/items/%ff", String::new(), 400, "the path is not UTF-8"),
        ("GET", "/v1/items/i0/images/7", String::new(), 404, "the last image of `i0` has the number 0"),
        ("GET", "/v1/items/i0/images/x", String::new(), 400, "a whole number"),
        ("GET", "/v1/items?limit=0", String::new(), 400, "`limit` is 0"),
        ("GET", "/v1/items?limt=3", String::new(), 400, "unknown field"),
        ("GET", "/v2", String::new(), 404, "the path `/v2` does not exist"),
        ("DELETE", "/readyz", String::new(), 405, "does not support this method"),
    ] {
        let answer = service.send(method, path, "", body.as_bytes());
        let message = answer.json()["error"]["message"].as_str().unwrap().to_owned();
        assert_eq!(answer.status, status, "{method} {path} {body}: {message}");
        assert!(message.contains(part), "{method} {path} {body}: {message}");
        assert_eq!(answer.headers["content-type"], "application/json");
    }
    assert_eq!(service.send("MADEUP", "/readyz", "", b"").status, 405);
    let metrics = service.get("/metrics").body;
    assert!(metrics.contains(r#"route="/readyz",method="other",status="405""#) && !metrics.contains("MADEUP"));
    // The service does not wait for a body that will be too large.
    let mut stream = TcpStream::connect(&service.address).unwrap();
    let header = "POST /v1/similar HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n";
    stream.write_all(format!("{header}content-length: 99999999999\r\n\r\n{{").as_bytes()).unwrap();
    let mut start = [0; 12];
    stream.read_exact(&mut start).unwrap();
    assert_eq!(&start, b"HTTP/1.1 413");
    // A client that sends a large body learns why it is refused, and a compressed body is not taken for a broken one.
    let refused = service.send("POST", "/v1/recommend", "", &vec![b' '; 30_000_000]);
    assert_eq!(refused.status, 413, "{}", refused.body);
    let compressed = service.send("POST", "/v1/recommend", "content-encoding: gzip\r\n", b"\x1f\x8b\x08");
    assert!(compressed.status == 415 && compressed.body.contains("gzip"), "{}", compressed.body);
    // Small bodies in chunks are answered, however many large ones are being sent.
    let stalled: Vec<TcpStream> = (0..12)
        .map(|_| {
            let mut stream = TcpStream::connect(&service.address).unwrap();
            let header = "PUT /v1/items HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n";
            stream.write_all(format!("{header}content-length: 4000\r\n\r\n{{").as_bytes()).unwrap();
            stream
        })
        .collect();
    let mut stream = TcpStream::connect(&service.address).unwrap();
    let header =
        "POST /v1/recommend HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n";
    stream.write_all(format!("{header}13\r\n{{\"history\": [\"i3\"]}}\r\n0\r\n\r\n").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    drop(stalled);
    // A request that is not HTTP ends the connection, and nothing else.
    let mut stream = TcpStream::connect(&service.address).unwrap();
    stream.write_all(b"\x16\x03\x01 this is not a request\r\n\r\n").unwrap();
    stream.read_to_end(&mut Vec::new()).unwrap();
    assert_eq!(service.get("/healthz").status, 200);
    assert_eq!(service.send("GET", "/healthz", "x-request-id: mine-1\r\n", b"").headers["x-request-id"], "mine-1");
}

/// The run is named relative to a working directory that is not that of the data.
#[test]
fn lists_are_as_long_as_a_service_with_a_low_limit_allows() {
    let world = trained();
    let service = Service::start(&world, &["--top-limit", "4"]);
    let found = [
        service.post("/v1/recommend", &json!({ "history": ["i3"] })),
        service.post("/v1/similar", &json!({ "item_id": "i3" })),
        service.get("/v1/items?q=thing"),
    ];
    assert_eq!(found.map(|answer| answer.json()["items"].as_array().unwrap().len()), [4, 4, 4]);
}

#[test]
fn images_of_new_items_are_read_from_any_working_directory() {
    let world = trained();
    let name = world.folder().file_name().unwrap().to_string_lossy().into_owned();
    let mut serve = command("serve");
    serve.current_dir(world.folder().parent().unwrap()).env_remove("CARGO_MANIFEST_DIR");
    let service = Service::spawn({
        serve.args(["--port", "0", "--run", &format!("{name}/artifacts/a/runs/mp4sr")]);
        serve
    });
    let image = base64(&files::read(&root().join("fuzz/seeds/image/one.png")).unwrap());
    let items = json!({ "items": [{ "item_id": "new", "title": "A thing", "images": [image] }] });
    let answer = service.send("PUT", "/v1/items", "", items.to_string().as_bytes());
    assert_eq!((answer.status, &answer.json()["notes"]), (200, &json!([])), "{}", answer.body);
    assert_eq!(service.get("/v1/items/new/images/0").status, 200);
    let broken = json!({ "items": [{ "item_id": "other", "title": "A thing", "images": ["AAAA"] }] });
    let notes = service.send("PUT", "/v1/items", "", broken.to_string().as_bytes()).json()["notes"].to_string();
    assert!(notes.contains("image 1 of `other` cannot be used"), "{notes}");
    assert_eq!(service.get("/v1/items/other").json()["images"], json!([]));
    let both = json!({ "text": "A thing", "image": image, "k": 2 });
    assert_eq!(service.post("/v1/similar", &both).list()[0].0, "new");
    // A file that is there but cannot be read is a fault of the machine, and not of the request.
    let file = world.folder().join("one.png");
    let shown = || service.get("/v1/items/i0/images/0");
    assert_eq!(shown().status, 200);
    std::fs::remove_file(&file).unwrap();
    assert_eq!(shown().status, 404);
    std::fs::create_dir(&file).unwrap();
    let answer = shown();
    assert!(answer.status == 500 && answer.body.contains("cannot be read; see the log"), "{}", answer.body);
}

#[test]
fn new_items_are_in_service_at_once_and_after_a_restart() {
    let world = trained();
    let image = files::read(&root().join("fuzz/seeds/image/one.png")).unwrap();
    let image = base64(&image);
    let request = json!({ "history": ["i3", "i4"], "k": 40 });
    let service = Service::start(&world, &["--watch"]);
    let before = service.post("/v1/recommend", &request).list();
    let items = json!({ "items": [
        { "item_id": "new/one", "title": "A thing of group 3", "texts": ["It is <b>red</b>. It is new."], "images": [image], "categories": ["Things"] },
        { "item_id": "two", "title": "A thing of group 3" },
    ]});
    let answer = service.send("PUT", "/v1/items", "", items.to_string().as_bytes());
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(answer.json()["added"], json!(["new/one", "two"]));
    let item = service.get("/v1/items/new%2Fone").json();
    assert_eq!(item["sentences"], json!(["A thing of group 3", "It is red.", "It is new."]));
    assert_eq!((&item["is_new"], &item["events"], &item["categories"]), (&json!(true), &json!(0), &json!(["Things"])));
    let response = service.get(item["images"][0].as_str().unwrap());
    assert_eq!((response.status, response.headers["content-type"].as_str()), (200, "image/png"));
    let after = service.post("/v1/recommend", &request).list();
    assert_eq!(after.len(), before.len() + 2);
    // An item's neighbours must be the same whether they are requested by its id or by its text.
    let near = service.post("/v1/similar", &json!({ "item_id": "two", "k": 3, "exclude": ["new/one"] })).list();
    let by_text =
        service.post("/v1/similar", &json!({ "text": "A thing of group 3", "k": 4, "exclude": ["new/one"] })).list();
    assert_eq!(by_text[0].0, "two");
    let alike = |a: &(String, f32), b: &(String, f32)| a.0 == b.0 && (a.1 - b.1).abs() < 1e-5;
    assert!(by_text[0].1 > 0.99999 && near.iter().zip(&by_text[1..]).all(|(a, b)| alike(a, b)), "{near:?} {by_text:?}");
    let by_both = json!({ "text": "A thing of group 3", "image": format!("data:image/png;base64,{image}"), "k": 2 });
    assert_eq!(service.post("/v1/similar", &by_both).list().len(), 2);
    drop(service);

    let service = Service::start(&world, &["--watch"]);
    assert_eq!(service.post("/v1/recommend", &request).list(), after);
    let removed =
        service.send("DELETE", "/v1/items", "", json!({ "item_ids": ["two", "new/one"] }).to_string().as_bytes());
    assert_eq!((removed.status, &removed.json()["removed"]), (200, &json!(2)));
    assert_eq!(service.post("/v1/recommend", &request).list(), before);
    // With `--watch`, items that the command line adds come into service, too.
    world.write("new.jsonl", "{\"item_id\": \"three\", \"title\": \"A thing of group 5\"}\n");
    world.run("items", &["add", "--items", &world.folder().join("new.jsonl").display().to_string()]);
    let start = Instant::now();
    while service.get("/v1/items/three").status == 404 {
        assert!(start.elapsed() < Duration::from_mins(1), "not noticed");
        std::thread::sleep(Duration::from_millis(50));
    }
    // So do features that are computed again, and another configuration.
    let generation = || service.get("/readyz").json()["generation"].clone();
    for file in ["a/features/text.tiny-sentence.safetensors", "a/runs/mp4sr/config.toml"] {
        let (before, path) = (generation(), world.path(file));
        files::write_bytes(&path, &files::read(&path).unwrap()).unwrap();
        let start = Instant::now();
        while generation() == before {
            assert!(start.elapsed() < Duration::from_mins(1), "`{file}` is not noticed");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    // Weights that cannot be loaded are reported until others can be.
    let failed_reloads = || service.get("/readyz").json()["failed_reloads"].clone();
    let path = world.path("a/runs/mp4sr/finetune.safetensors");
    let sound = files::read(&path).unwrap();
    for (bytes, fails) in [(&sound[..sound.len() / 2], true), (&sound, false)] {
        files::write_bytes(&path, bytes).unwrap();
        let start = Instant::now();
        while (failed_reloads() != 0) != fails {
            assert!(start.elapsed() < Duration::from_mins(1), "{}", failed_reloads());
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

#[test]
fn texts_and_images_of_new_items_are_those_of_a_file_and_leave_nothing_behind() {
    let world = trained();
    let service = Service::start(&world, &[]);
    let put = |items: Value| service.send("PUT", "/v1/items", "", json!({ "items": items }).to_string().as_bytes());
    let texts = json!(["Made of glass", "Has a red cord", "Comes with a bulb"]);
    assert_eq!(
        put(json!([{ "item_id": "lamp", "title": "Lamp", "texts": texts }, { "item_id": "mug", "title": "Mug" }]))
            .status,
        200
    );
    let sentences = service.get("/v1/items/lamp").json()["sentences"].clone();
    assert_eq!(sentences, json!(["Lamp", "Made of glass", "Has a red cord", "Comes with a bulb"]));
    // Images of requests that are refused are removed at once, and those of items that are replaced or removed by the next change.
    let stored = || mp4sr_artifact::files::list(&world.path("a/runs/mp4sr/new-items/images")).unwrap().len();
    let mut image = files::read(&root().join("fuzz/seeds/image/one.png")).unwrap();
    for (id, status, left) in [("lamp", 200, 1), ("i3", 422, 1), ("lamp", 200, 2), ("mug", 200, 2)] {
        // Bytes after the image make it another file.
        image.push(0);
        let answer = put(json!([{ "item_id": id, "title": "A thing", "images": [base64(&image)] }]));
        assert_eq!((answer.status, stored()), (status, left), "{id}: {}", answer.body);
    }
    for (id, left) in [("lamp", 2), ("mug", 1)] {
        let removed = service.send("DELETE", "/v1/items", "", json!({ "item_ids": [id] }).to_string().as_bytes());
        assert_eq!((removed.status, stored()), (200, left), "{id}");
    }
    let many = put(json!([{ "item_id": "lamp", "title": "Lamp", "texts": vec!["A text"; 101] }]));
    assert!(many.status == 400 && many.body.contains("more than 100 texts"), "{}", many.body);
}

#[test]
fn every_image_that_is_not_used_has_a_note_and_is_not_kept() {
    let world = trained();
    let service = Service::start(&world, &[]);
    let sound = files::read(&root().join("fuzz/seeds/image/one.png")).unwrap();
    // Bytes after the image make it another file.
    let number = |at: u8| [sound.as_slice(), &[at]].concat();
    let broken = base64(&sound[..sound.len() * 2 / 3]);
    let many: Vec<String> = (0..12).map(|at| base64(&number(at))).collect();
    let late: Vec<String> = (0..10).map(|_| broken.clone()).chain([base64(&sound)]).collect();
    let items = json!({ "items": [
        { "item_id": "a", "title": "A thing", "images": [broken] },
        { "item_id": "b", "title": null, "texts": ["A thing"], "images": [base64(&sound), broken] },
        { "item_id": "many", "title": "A thing", "images": many },
        { "item_id": "late", "images": late },
    ]});
    let answer = service.send("PUT", "/v1/items", "", items.to_string().as_bytes());
    assert_eq!(answer.status, 200, "{}", answer.body);
    let notes = answer.json()["notes"].as_array().unwrap().iter().map(Value::to_string).collect::<Vec<_>>();
    for part in ["image 1 of `a`", "image 2 of `b`", "first 10 usable of 12 images of `many`", "image 10 of `late`"] {
        assert_eq!(notes.iter().filter(|note| note.contains(part)).count(), 1, "{part}: {notes:?}");
    }
    assert_eq!(notes.len(), 13, "{notes:?}");
    for (id, images) in [("a", 0), ("b", 1), ("many", 10), ("late", 1)] {
        let item = service.get(&format!("/v1/items/{id}")).json();
        assert_eq!(item["images"].as_array().unwrap().len(), images, "{id}");
    }
}

#[test]
fn damage_of_the_run_is_an_error_of_the_service_and_not_of_the_client() {
    let world = trained();
    let service = Service::start(&world, &[]);
    let put = || {
        let items = json!({ "items": [{ "item_id": "new", "title": "A thing of group 3" }] }).to_string();
        service.send("PUT", "/v1/items", "", items.as_bytes())
    };
    assert_eq!(put().status, 200);
    let files_of_run =
        ["a/features/text.tiny-sentence.safetensors", "a/dataset/items.parquet", "a/runs/mp4sr/new-items/current.json"];
    for file in files_of_run.map(|file| world.path(file)) {
        let sound = files::read(&file).unwrap();
        let mut damaged = sound.clone();
        let middle = damaged.len() / 2;
        damaged[middle] ^= 4;
        damaged.truncate(sound.len() - 1);
        files::write_bytes(&file, &damaged).unwrap();
        let answer = put();
        assert_eq!((answer.status, &answer.json()["error"]["code"]), (500, &json!("internal")), "{}", answer.body);
        files::write_bytes(&file, &sound).unwrap();
    }
    assert_eq!(put().status, 200);
}

#[test]
fn a_request_whose_client_disconnects_is_logged_and_ids_of_requests_are_kept() {
    let world = trained();
    let log = world.folder().join("log");
    let mut command = world.command("serve", &["--port", "0"]);
    let mut child = command.stdout(Stdio::piped()).stderr(std::fs::File::create(&log).unwrap()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let service = Service { child, address: line.trim().trim_start_matches("http://").to_owned() };
    let answer = service.send("GET", "/healthz", "x-request-id: Root=1-67891233/a:b\r\n", b"");
    assert_eq!((answer.status, answer.headers["x-request-id"].as_str()), (200, "Root=1-67891233/a:b"));
    let begin = |method: &str, path: &str, id: &str, body: &Value| {
        let mut stream = TcpStream::connect(&service.address).unwrap();
        let (body, host) = (body.to_string(), "host: localhost");
        let length = body.len();
        let head =
            format!("{method} {path} HTTP/1.1\r\n{host}\r\nx-request-id: {id}\r\ncontent-length: {length}\r\n\r\n");
        stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
        stream
    };
    let logged = |id: &str| -> Value {
        let start = Instant::now();
        loop {
            let text = files::read_to_string(&log).unwrap();
            if let Some(line) = text.lines().find(|line| line.contains(&format!("\"{id}\""))) {
                return serde_json::from_str(line).unwrap();
            }
            assert!(start.elapsed() < Duration::from_mins(1), "{id} is missing in {text}");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    // Many of these are read after their clients have disconnected.
    let ids: Vec<String> = (0..100).map(|number| format!("gone{number}")).collect();
    ids.iter().for_each(|id| drop(begin("POST", "/v1/recommend", id, &json!({ "history": [] }))));
    let mut statuses: Vec<Value> = Vec::new();
    for id in &ids {
        let line = logged(id);
        assert_eq!(line["route"], "/v1/recommend");
        statuses.push(line["status"].clone());
    }
    assert!(statuses.contains(&json!(499)), "{statuses:?}");
    // A change goes on without its client, once the service has begun to make it.
    let mut changes = Vec::new();
    let is_made = (0..100).any(|attempt| {
        let id = format!("change{attempt}");
        let stream = begin("PUT", "/v1/items", &id, &json!({ "items": [{ "item_id": id, "title": "A thing" }] }));
        std::thread::sleep(Duration::from_millis(attempt));
        drop(stream);
        changes.extend((logged(&id)["status"] == 499).then_some(id));
        std::thread::sleep(Duration::from_millis(500));
        changes.iter().any(|id| service.get(&format!("/v1/items/{id}")).status == 200)
    });
    assert!(is_made);
}

#[test]
fn a_log_that_nobody_reads_does_not_stop_the_service() {
    let world = trained();
    let mut command = world.command("serve", &["--port", "0"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let mut service = Service { child, address: line.trim().trim_start_matches("http://").to_owned() };
    // More lines than a pipe holds, and than wait for it.
    let request = |more: &str| format!("GET /healthz HTTP/1.1\r\nhost: localhost\r\n{more}\r\n");
    let requests = request("").repeat(11_499) + &request("connection: close\r\n");
    let mut stream = TcpStream::connect(&service.address).unwrap();
    let mut reader = stream.try_clone().unwrap();
    reader.set_read_timeout(Some(Duration::from_mins(1))).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || stream.write_all(requests.as_bytes()).unwrap());
        let mut answers = String::new();
        reader.read_to_string(&mut answers).unwrap();
        assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 11_500);
    });
    stops_on_sigterm(&mut service);
    let mut log = String::new();
    service.child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    assert!(log.lines().count() < 11_500, "the pipe was full");
}

/// A change that the service cannot load or store at once leaves everything unchanged.
#[test]
fn items_are_stored_only_if_the_run_can_be_loaded_with_them() {
    let world = trained();
    let service = Service::start(&world, &[]);
    let put = |id: &str| {
        let items = json!({ "items": [{ "item_id": id, "title": "A thing of group 3" }] }).to_string();
        service.send("PUT", "/v1/items", "", items.as_bytes())
    };
    let delete = |id: &str| service.send("DELETE", "/v1/items", "", json!({ "item_ids": [id] }).to_string().as_bytes());
    assert_eq!(put("first").status, 200);
    let listed = || world.run("items", &["list"]);
    let before = listed();
    let weights = world.path("a/runs/mp4sr/finetune.safetensors");
    let sound = files::read(&weights).unwrap();
    files::write_bytes(&weights, &sound[..sound.len() / 2]).unwrap();
    for answer in [put("second"), delete("first")] {
        assert_eq!(listed(), before, "{}", answer.body);
        assert_eq!(service.get("/v1/items/first").status, 200, "the previous run stays in service");
        let says = ["nothing was changed", "finetune.safetensors"].iter().all(|part| answer.body.contains(part));
        assert!(answer.status == 500 && says, "{}", answer.body);
    }
    files::write_bytes(&weights, &sound).unwrap();

    // Another process, such as `mp4sr items add`, is changing the items.
    let folder = world.path("a/runs/mp4sr/new-items");
    let lock = mp4sr_artifact::Lock::acquire(&folder, "items").unwrap();
    for answer in [put("second"), delete("first")] {
        assert_eq!((answer.status, answer.headers.contains_key("retry-after")), (503, true), "{}", answer.body);
        assert_eq!(answer.json()["error"]["code"], "locked");
    }
    drop(lock);
    assert_eq!((put("second").status, delete("first").status), (200, 200));
    assert_eq!(listed(), "second\tA thing of group 3\n");
    let folders = files::list(&folder).unwrap().into_iter().filter(|path| path.is_dir() && !path.ends_with("images"));
    assert_eq!(folders.count(), 1, "no other generation is left");
}

/// When the index of each encoder's cached vectors was last opened, and the number of files with vectors.
fn cached(world: &Project) -> (Vec<std::time::SystemTime>, usize) {
    let folders: Vec<_> = files::list(&world.path(".cache/vectors")).unwrap();
    let opened = folders.iter().map(|folder| std::fs::metadata(folder.join("about.json")).unwrap().modified().unwrap());
    let of = |folder: &std::path::PathBuf| {
        files::list(folder)
            .unwrap()
            .iter()
            .filter(|path| path.extension().is_some_and(|end| end == "safetensors"))
            .count()
    };
    (opened.collect(), folders.iter().map(of).sum())
}

#[test]
fn encoders_are_reopened_only_when_what_they_read_has_changed_and_queries_leave_no_vectors() {
    let world = trained();
    let service = Service::start(&world, &[]);
    let image = base64(&files::read(&root().join("fuzz/seeds/image/one.png")).unwrap());
    let ask = |text: &str| service.post("/v1/similar", &json!({ "text": text, "image": image, "k": 5 })).list();
    let before = cached(&world);
    let first = ask("A thing of group 3 that nobody has asked for");
    let opened = cached(&world);
    assert!(opened.0 != before.0 && opened.1 == before.1, "{before:?} {opened:?}");
    for question in ["Something else", "A thing of group 3 that nobody has asked for"] {
        ask(question);
    }
    assert_eq!(cached(&world), opened, "opened again, or written");
    // The service reloads a run with the same encoders.
    service.signal("HUP");
    let start = Instant::now();
    while service.get("/readyz").json()["generation"] != 2 {
        assert!(start.elapsed() < Duration::from_mins(1), "no swap");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(ask("A thing of group 3 that nobody has asked for"), first);
    assert_eq!(cached(&world), opened);
    let items = json!({ "items": [{ "item_id": "new", "title": "A thing with words of its own" }] }).to_string();
    assert_eq!(service.send("PUT", "/v1/items", "", items.as_bytes()).status, 200);
    let added = cached(&world);
    assert_eq!(added.1, opened.1 + 1, "what an item says stays");
    // The words of the dataset's items are part of the dictionary, so a changed item table opens the encoders again.
    let table = world.path("a/dataset/items.parquet");
    files::write_bytes(&table, &files::read(&table).unwrap()).unwrap();
    let without_new = |list: List| list.into_iter().filter(|(id, _)| id != "new").take(4).collect::<Vec<_>>();
    assert_eq!(without_new(ask("A thing of group 3 that nobody has asked for")), without_new(first));
    assert!(cached(&world).0 != added.0, "not opened again");
}

#[test]
fn keys_and_hosts_decide_which_requests_are_answered() {
    let world = trained();
    let service = Service::start(&world, &[]);
    let elsewhere = |service: &Service, host: &str| {
        let mut stream = TcpStream::connect(&service.address).unwrap();
        stream
            .write_all(format!("GET /readyz HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n").as_bytes())
            .unwrap();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        parse(&bytes).status
    };
    assert_eq!((elsewhere(&service, "shop.example"), elsewhere(&service, "127.0.0.1:1")), (421, 200));
    drop(service);
    let refused = world.run_failing("serve", &["--host", "0.0.0.0", "--port", "0"]);
    assert!(refused.contains("give `--keys FILE`"), "{refused}");
    world.write("keys", "# shop\nabcdefghijklmnop\n");
    let keys = world.folder().join("keys").display().to_string();
    let service = Service::start(&world, &["--host", "0.0.0.0", "--keys", &keys]);
    let body = json!({ "history": ["i1"] }).to_string();
    let ask = |headers: &str| service.send("POST", "/v1/recommend", headers, body.as_bytes()).status;
    assert_eq!(ask(""), 401);
    assert_eq!(ask("authorization: Bearer abcdefghijklmnoq\r\n"), 401);
    assert_eq!(ask("authorization: Bearer abcdefghijklmnop\r\n"), 200);
    let open =
        ["/", "/page.js", "/page.css", "/openapi.json", "/healthz", "/readyz"].map(|path| service.get(path).status);
    assert_eq!(open, [200; 6]);
    assert_eq!(["/metrics", "/v1/items", "/v1/items/i1"].map(|path| service.get(path).status), [401; 3]);
    assert_eq!(elsewhere(&service, "shop.example"), 200);
}

#[test]
fn a_service_that_is_still_loading_its_run_stops_at_once() {
    let world = trained();
    // Nobody writes into the pipe, so loading never ends.
    let weights = world.path("a/runs/mp4sr/finetune.safetensors");
    std::fs::remove_file(&weights).unwrap();
    assert!(Command::new("mkfifo").arg(&weights).status().unwrap().success());
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let child = world.command("serve", &["--port", &port]).stderr(Stdio::null()).spawn().unwrap();
    let mut service = Service { child, address: format!("127.0.0.1:{port}") };
    let start = Instant::now();
    while TcpStream::connect(&service.address).is_err() {
        assert!(start.elapsed() < Duration::from_mins(1), "the service does not listen");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!((service.get("/healthz").status, service.get("/readyz").status), (200, 503));
    stops_on_sigterm(&mut service);
}

#[test]
fn a_service_that_is_loading_another_run_stops_at_once() {
    let world = trained();
    let mut service = Service::start(&world, &[]);
    let weights = world.path("a/runs/mp4sr/finetune.safetensors");
    std::fs::remove_file(&weights).unwrap();
    assert!(Command::new("mkfifo").arg(&weights).status().unwrap().success());
    service.signal("HUP");
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(service.get("/readyz").status, 200);
    stops_on_sigterm(&mut service);
}

fn stops_on_sigterm(service: &mut Service) {
    service.signal("TERM");
    let start = Instant::now();
    while service.child.try_wait().unwrap().is_none() {
        assert!(start.elapsed() < Duration::from_mins(1), "the service does not stop");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(service.child.wait().unwrap().success());
}

#[test]
fn too_many_and_too_slow_requests_are_asked_to_retry_and_a_stop_answers_open_requests() {
    let world = trained();
    let mut service = Service::start(&world, &["--queue", "1", "--batch", "1"]);
    let body = json!({ "history": (0..900).map(|at| format!("i{}", at % 30)).collect::<Vec<_>>(), "k": 30 });
    let (start, refused) = (Instant::now(), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                while refused.load(Ordering::Relaxed) == 0 && start.elapsed() < Duration::from_secs(30) {
                    let answer = service.post("/v1/recommend", &body);
                    match answer.status {
                        200 => assert_eq!(answer.list().len(), 30),
                        429 => {
                            assert_eq!(answer.headers["retry-after"], "1");
                            refused.fetch_add(1, Ordering::Relaxed);
                        }
                        other => panic!("{other}: {}", answer.body),
                    }
                }
            });
        }
    });
    assert!(refused.load(Ordering::Relaxed) > 0, "nobody was refused");
    let metrics = service.get("/metrics").body;
    assert!(metrics.contains("mp4sr_queued_requests 0\n"), "{metrics}");
    // There are so many items that they are still being encoded when the signal arrives.
    let items: Vec<Value> = (0..400)
        .map(|at| json!({ "item_id": format!("n{at}"), "title": format!("A thing of kind {at}"), "texts": [format!("It is number {at}.")] }))
        .collect();
    let body = json!({ "items": items }).to_string();
    let answer = std::thread::scope(|scope| {
        let open = scope.spawn(|| service.send("PUT", "/v1/items", "", body.as_bytes()));
        // The connection that requests the metrics is one of the two.
        while !service.get("/metrics").body.contains("mp4sr_connections 2") && !open.is_finished() {}
        std::thread::sleep(Duration::from_millis(20));
        service.signal("TERM");
        open.join().unwrap()
    });
    assert_eq!((answer.status, answer.json()["added"].as_array().map(Vec::len)), (200, Some(400)));
    assert!(service.child.wait().unwrap().success());

    let service = Service::start(&world, &["--time-limit", "1"]);
    let answer = service.post("/v1/similar", &json!({ "text": "A thing", "k": 2 }));
    assert_eq!((answer.status, answer.headers["retry-after"].as_str()), (503, "1"), "{}", answer.body);
    // Requests that wait for others beyond their time get the same answer as one that takes too long itself.
    let service = Service::start(&world, &["--time-limit", "2", "--batch", "1"]);
    let lists = of_stage(&world);
    let history: Vec<&String> = lists[0].0.iter().cycle().take(50).collect();
    let answers: Vec<(u16, bool)> = std::thread::scope(|scope| {
        let ask = || {
            let body = json!({ "history": history, "k": 100 });
            let answers = (0..40).map(|_| service.post("/v1/recommend", &body));
            answers.map(|answer| (answer.status, answer.headers.contains_key("retry-after"))).collect::<Vec<_>>()
        };
        let open: Vec<_> = (0..24).map(|_| scope.spawn(ask)).collect();
        open.into_iter().flat_map(|open| open.join().unwrap()).collect()
    });
    assert!(answers.iter().all(|answer| [(200, false), (429, true), (503, true)].contains(answer)), "{answers:?}");
    assert!(answers.iter().any(|(status, _)| *status == 503), "no request was too slow");
    assert_eq!(service.get("/healthz").status, 200);
}

#[test]
fn the_index_finds_what_the_exact_search_finds_and_is_verified_when_it_is_read() {
    let world = trained();
    let words = ["--index", "hnsw"];
    let search = |service: &Service| service.get("/readyz").json()["search"].as_str().unwrap().to_owned();
    let service = Service::start(&world, &words);
    // With so few items, the graph misses none of them.
    assert!(search(&service).starts_with("hnsw, recall@10 1.0000 of 60 histories"), "{}", search(&service));
    for (history, list) in of_stage(&world).iter().take(20) {
        let found = service.post("/v1/recommend", &json!({ "history": history, "k": 10 })).list();
        assert_eq!(found.len(), 10);
        for ((id, score), (expected, exact)) in found.iter().zip(list) {
            assert!(id == expected && (score - exact).abs() <= 1e-5 * exact.abs().max(1.0), "{found:?} {list:?}");
        }
        let only = [&list[3].0, &list[7].0];
        let found = service.post("/v1/recommend", &json!({ "history": history, "only": only })).list();
        assert_eq!(found, [list[3].clone(), list[7].clone()]);
        let found = service.post("/v1/recommend", &json!({ "history": history, "exclude": only, "k": 8 })).list();
        assert!(found.len() == 8 && found.iter().all(|(id, _)| !only.contains(&id)));
    }
    let items = json!({ "items": [{ "item_id": "new", "title": "A thing of group 3" }] }).to_string();
    assert_eq!(service.send("PUT", "/v1/items", "", items.as_bytes()).status, 200);
    let all = service.post("/v1/recommend", &json!({ "history": ["i9"], "k": 40 })).list();
    assert!(all.len() == 31 && all.iter().any(|(id, _)| id == "new"));
    // Items with the same vector are all found.
    let copies: Vec<Value> =
        (0..300).map(|at| json!({ "item_id": format!("copy {at}"), "title": "A thing of group 3" })).collect();
    let copies = json!({ "items": copies }).to_string();
    assert_eq!(service.send("PUT", "/v1/items", "", copies.as_bytes()).status, 200);
    assert!(search(&service).starts_with("hnsw, recall@10 1.0000"), "{}", search(&service));
    for k in [20, 331] {
        let history = json!({ "history": ["i9", "i10"], "k": k });
        let found = service.post("/v1/recommend", &history).list();
        let exact = Service::start(&world, &[]).post("/v1/recommend", &history).list();
        assert_eq!(found.len(), k);
        assert!(found.iter().zip(&exact).all(|((_, a), (_, b))| (a - b).abs() <= 1e-5 * b.abs().max(1.0)), "{k}");
    }
    drop(service);
    let saved = world.bytes("a/runs/mp4sr/index.usearch");
    drop(Service::start(&world, &words));
    assert!(world.bytes("a/runs/mp4sr/index.usearch") == saved, "it is used again");
    let mut damaged = saved.clone();
    damaged[saved.len() / 2] ^= 1;
    files::write_bytes(&world.path("a/runs/mp4sr/index.usearch"), &damaged).unwrap();
    let service = Service::start(&world, &words);
    assert!(search(&service).starts_with("hnsw, recall@10 1.0000"));
    assert!(world.bytes("a/runs/mp4sr/index.usearch") != damaged, "it is rebuilt");
}

#[test]
fn the_description_names_every_path_and_the_page_needs_no_other_host() {
    let world = trained();
    let service = Service::start(&world, &[]);
    let description = service.get("/openapi.json").json();
    let paths = description["paths"].as_object().unwrap();
    assert_eq!(paths.len(), 8, "{:?}", paths.keys());
    let places = |path: &str, method: &str| -> Vec<String> {
        let parameters = paths[path][method]["parameters"].as_array().unwrap();
        parameters.iter().map(|own| format!("{} {} {}", own["name"], own["in"], own["required"])).collect()
    };
    assert_eq!(places("/v1/items", "get"), [r#""q" "query" false"#, r#""limit" "query" false"#]);
    assert_eq!(places("/v1/items/{id}", "get"), [r#""id" "path" true"#]);
    assert!(paths["/v1/items"]["put"]["responses"]["421"].is_object());
    for (path, methods) in paths {
        for method in methods.as_object().unwrap().keys().map(|method| method.to_uppercase()) {
            let path = path.replace("{id}", "i0").replace("{number}", "0");
            let status = service.send(&method, &path, "", b"{}").status;
            assert!([200, 400].contains(&status), "{method} {path}: {status}");
        }
    }
    let page = service.get("/");
    assert!(page.headers["content-security-policy"].starts_with("default-src 'none'"));
    for path in ["/", "/page.js", "/page.css"] {
        let text = service.get(path).body;
        assert!(!text.contains("//") || !text.contains("http"), "{path} names another host");
    }
    assert!(page.body.contains("name=\"viewport\"") && page.body.contains("<label for=\"query\">"));
    let metrics = service.get("/metrics").body;
    for name in [
        "mp4sr_http_requests_total{",
        "mp4sr_http_request_seconds_bucket{",
        "mp4sr_items 30",
        "mp4sr_generation 1",
        "mp4sr_batch_size_sum",
    ] {
        assert!(metrics.contains(name), "{name}: {metrics}");
    }
}

#[test]
fn logs_have_ids_and_no_histories_unless_requested() {
    let world = trained();
    for (words, has_history) in [(&[][..], false), (&["--log-histories"], true)] {
        let log = world.folder().join("log");
        let mut command = world.command("serve", &[&["--port", "0"][..], words].concat());
        let file = std::fs::File::create(&log).unwrap();
        let mut child = command.stdout(Stdio::piped()).stderr(file).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let service = Service { child, address: line.trim().trim_start_matches("http://").to_owned() };
        let body = json!({ "history": ["i17"] }).to_string();
        let answer = service.send("POST", "/v1/recommend", "x-request-id: asked-1\r\n", body.as_bytes());
        assert_eq!((answer.status, answer.headers["x-request-id"].as_str()), (200, "asked-1"));
        let items = json!({ "items": [{ "item_id": "new", "title": "A thing" }] });
        assert_eq!(service.send("PUT", "/v1/items", "", items.to_string().as_bytes()).status, 200);
        drop(service);
        let text = files::read_to_string(&log).unwrap();
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let request = lines.iter().find(|line| line["request_id"] == "asked-1").unwrap();
        assert_eq!((&request["route"], &request["status"]), (&json!("/v1/recommend"), &json!(200)));
        assert_eq!(text.contains("i17"), has_history, "{text}");
    }
}
