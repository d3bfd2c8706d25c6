//! The outcomes for images.

use std::io::Write;
use std::net::TcpStream;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use image::ImageFormat::{Jpeg, Png};
use mp4sr_artifact::Downloads;
use mp4sr_download::Fate;

use crate::harness::{World, files_below, image, text};
use mp4sr_tests::server::{Request, Server, head, reply};

/// A PNG whose header claims 60,000 x 60,000 pixels.
fn bomb() -> Vec<u8> {
    let mut bytes = image(Png);
    bytes[16..20].copy_from_slice(&60_000_u32.to_be_bytes());
    bytes[20..24].copy_from_slice(&60_000_u32.to_be_bytes());
    let sum = crc32(&bytes[12..29]);
    bytes[29..33].copy_from_slice(&sum.to_be_bytes());
    bytes
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| (sum >> 1) ^ (0xedb8_8320 & (sum & 1).wrapping_neg()))
    })
}

fn shop(request: &Request, stream: &mut TcpStream) {
    let redirect = |stream: &mut TcpStream, to: &str| reply(stream, 302, &[("Location", to)], b"");
    match request.path.as_str() {
        "/ok.jpg" | "/a%20b.jpg" | "/ok.jpg?from=moved" => reply(stream, 200, &[], &image(Jpeg)),
        "/ok.png" => reply(stream, 200, &[("Content-Type", "text/plain")], &image(Png)),
        "/gone" => reply(stream, 410, &[], b""),
        "/forbidden" => reply(stream, 403, &[], b""),
        "/page.jpg" => reply(stream, 200, &[("Content-Type", "image/jpeg")], b"<html><p>Sold out</html>"),
        "/empty.jpg" => reply(stream, 200, &[], b""),
        "/cut.jpg" => reply(stream, 200, &[], &image(Jpeg)[..2000]),
        "/bomb.png" => reply(stream, 200, &[], &bomb()),
        "/moved" => redirect(stream, "/ok.jpg?from=moved"),
        "/circle" => redirect(stream, "/elcric"),
        "/elcric" => redirect(stream, "/circle"),
        "/ftp" => redirect(stream, "ftp://example.org/a.jpg"),
        path if path.starts_with("/dead/") => redirect(stream, "http://127.0.0.1:1/x.jpg"),
        path if path.starts_with("/far/") => redirect(stream, &format!("{path}x")),
        _ => reply(stream, 404, &[], b"<html>Not here</html>"),
    }
}

#[test]
fn every_url_has_one_outcome_and_a_second_run_requests_only_what_failed() {
    let server = Server::start(shop);
    let world = World::new("retries = 0");
    let paths = [
        "/ok.jpg",
        "/ok.png",
        "/a b.jpg",
        "/moved",
        "/gone",
        "/none.jpg",
        "/forbidden",
        "/page.jpg",
        "/empty.jpg",
        "/cut.jpg",
        "/bomb.png",
        "/circle",
        "/ftp",
        "/far/",
    ];
    let mut images: Vec<Vec<String>> = paths.iter().map(|path| vec![server.url(path)]).collect();
    images.push(vec![server.url("/ok.jpg"), "images/local.jpg".to_owned(), "https://".to_owned()]);
    images.push(Vec::new());
    let report = world.items(images).run_well(&[]);

    let url = |path: &str| server.url(path);
    world.is_done(&url("/ok.jpg"), &image(Jpeg));
    world.is_done(&url("/ok.png"), &image(Png));
    world.is_done(&url("/a b.jpg"), &image(Jpeg));
    world.is_done(&url("/moved"), &image(Jpeg));
    world.is_lost(&url("/gone"), Fate::Gone, "answered 410");
    world.is_lost(&url("/none.jpg"), Fate::Gone, "answered 404");
    world.is_lost(&url("/forbidden"), Fate::Failed, "answered 403");
    world.is_lost(&url("/page.jpg"), Fate::NotAnImage, "is a web page");
    world.is_lost(&url("/empty.jpg"), Fate::NotAnImage, "is empty");
    world.is_lost(&url("/cut.jpg"), Fate::NotAnImage, "truncated");
    world.is_lost(&url("/bomb.png"), Fate::TooLarge, "60000 x 60000 pixels");
    world.is_lost(&url("/circle"), Fate::Failed, "redirect loop: ");
    world.is_lost(&url("/ftp"), Fate::Refused, "neither http nor https");
    world.is_lost(&url("/far/"), Fate::Failed, "more than 5 redirects");
    world.is_lost("https://", Fate::Refused, "not a valid URL");
    assert_eq!(world.ledger().len(), 15);
    assert_eq!(report.images.unwrap().urls, 15, "a URL that occurs twice counts once, a path not at all");
    assert_eq!(world.ledger()[&url("/ok.png")].width, Some(64));
    assert_eq!(server.asked_for("/far/xxxxx").len(), 1);
    assert_eq!(server.asked_for("/far/xxxxxx").len(), 0);
    assert_eq!(files_below(&world.downloads().folder().join("images")).len(), 4, "no part is left");

    let before = server.asked().len();
    world.run_well(&[]);
    let mut asked: Vec<_> = server.asked()[before..].iter().map(|request| request.path.clone()).collect();
    asked.sort();
    asked.retain(|path| !path.starts_with("/far/"));
    assert_eq!(asked, ["/circle", "/elcric", "/forbidden"]);

    world.run_well(&["download.again=true"]);
    assert_eq!(server.asked_for("/none.jpg").len(), 2);
    assert_eq!(server.asked_for("/ok.jpg").len(), 1);
}

#[test]
fn a_second_run_fetches_nothing_and_offline_fetches_nothing_at_all() {
    let server = Server::start(|_, stream| reply(stream, 200, &[], &image(Jpeg)));
    let world = World::new("");
    let urls: Vec<_> = (0..20).map(|n| server.url(&format!("/{n}.jpg"))).collect();
    let first = world.urls(&urls[..15]).run_well(&[]).images.unwrap();
    assert_eq!((server.asked().len(), first.fates[&Fate::Done], first.settled_now[&Fate::Done]), (15, 15, 15));
    let second = world.run_well(&[]).images.unwrap();
    assert_eq!((server.asked().len(), second.fates[&Fate::Done], second.bytes), (15, 15, 0));
    let third = world.urls(&urls).run_well(&["download.offline=true"]).images.unwrap();
    assert_eq!((server.asked().len(), third.fates[&Fate::Done], third.missing), (15, 15, 5));

    let lost = Downloads::image(&world.downloads(), &urls[3]);
    std::fs::remove_file(lost).unwrap();
    std::fs::write(Downloads::image(&world.downloads(), &urls[4]), "damaged").unwrap();
    world.run_well(&[]);
    assert_eq!(server.asked().len(), 15 + 5 + 2, "an image that was lost or damaged is fetched again");
    world.is_done(&urls[4], &image(Jpeg));
}

#[test]
fn private_addresses_are_refused_without_a_request() {
    let server = Server::start(shop);
    let world = World::new("");
    let port = server.url("").rsplit_once(':').unwrap().1.to_owned();
    let hosts = ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0", "2130706433"];
    let urls: Vec<_> = hosts.iter().map(|host| format!("http://{host}:{port}/ok.jpg")).collect();
    world.urls(&urls).run_well(&["download.allow_private=false"]);
    for url in &urls {
        world.is_lost(url, Fate::Refused, "download.allow_private");
    }
    assert!(server.asked().is_empty());
}

#[test]
fn retries_wait_as_the_server_asks_and_give_up_when_it_asks_for_too_long() {
    let server = Server::start(|request, stream| match (request.path.as_str(), request.nth) {
        ("/busy", 0) => reply(stream, 429, &[("Retry-After", "1")], b""),
        ("/broken", 0 | 1) => reply(stream, 500, &[], b""),
        ("/closed", _) => reply(stream, 503, &[("Retry-After", "86400")], b""),
        ("/never", _) => reply(stream, 502, &[], b""),
        _ => reply(stream, 200, &[], &image(Jpeg)),
    });
    let world = World::new("retries = 2");
    let urls = ["/busy", "/broken", "/closed", "/never"].map(|path| server.url(path));
    world.urls(&urls).run_well(&[]);
    world.is_done(&urls[0], &image(Jpeg));
    world.is_done(&urls[1], &image(Jpeg));
    world.is_lost(&urls[2], Fate::Failed, "answered 503 and asks to wait 86400 s");
    world.is_lost(&urls[3], Fate::Failed, "answered 502");
    let asked = ["/busy", "/broken", "/closed", "/never"].map(|path| server.asked_for(path).len());
    assert_eq!(asked, [2, 3, 1, 3]);
}

#[test]
fn a_stalled_server_times_out_before_and_within_the_body() {
    let server = Server::start(|request, stream| {
        if request.path == "/body" {
            head(stream, 200, &[("Content-Length", "5000")]);
            let _ = stream.write_all(&image(Jpeg)[..100]);
        }
        std::thread::sleep(Duration::from_mins(10));
    });
    let world = World::new("retries = 0\ntimeout_seconds = 1");
    let urls = ["/head", "/body"].map(|path| server.url(path));
    world.urls(&urls).run_well(&[]);
    urls.iter().for_each(|url| world.is_lost(url, Fate::Failed, "no data arrived for 1 s"));
}

#[test]
fn the_content_of_a_body_decides_and_not_its_headers() {
    let server = Server::start(|request, stream| match request.path.as_str() {
        // The server announces less than it sends; only what was announced is read.
        "/less" => {
            head(stream, 200, &[("Content-Length", "1000")]);
            let _ = stream.write_all(&image(Jpeg));
        }
        "/more" => {
            head(stream, 200, &[("Content-Length", "900000000000")]);
            let _ = stream.write_all(&image(Jpeg));
        }
        "/chunks" => {
            head(stream, 200, &[("Transfer-Encoding", "chunked")]);
            while stream.write_all(b"400\r\n").is_ok()
                && stream.write_all(&[7; 1024]).is_ok()
                && stream.write_all(b"\r\n").is_ok()
            {}
        }
        _ => {
            head(stream, 200, &[]);
            while stream.write_all(&[7; 1024]).is_ok() {}
        }
    });
    let world = World::new("retries = 1\nmax_bytes = 100000");
    let urls = ["/less", "/more", "/chunks", "/endless"].map(|path| server.url(path));
    world.urls(&urls).run_well(&[]);
    world.is_lost(&urls[0], Fate::NotAnImage, "");
    world.is_lost(&urls[1], Fate::Failed, "the connection was closed");
    assert_eq!(server.asked_for("/more").len(), 2);
    world.is_lost(&urls[2], Fate::TooLarge, "more than 100000 bytes");
    world.is_lost(&urls[3], Fate::TooLarge, "more than 100000 bytes");
}

#[test]
fn a_host_never_gets_more_connections_than_allowed() {
    let busy = Arc::new((Mutex::new((0, 0)), Condvar::new()));
    let count = busy.clone();
    let server = Server::start(move |request, stream| {
        let (state, changed) = &*count;
        let mut now = state.lock().unwrap();
        now.0 += 1;
        now.1 = now.1.max(now.0);
        changed.notify_all();
        // The first requests wait for each other, so that a limit that is never reached fails the test too.
        let all_here = |now: &mut (usize, usize)| now.1 < 3;
        now = changed.wait_timeout_while(now, Duration::from_mins(10), all_here).unwrap().0;
        drop(now);
        std::thread::sleep(Duration::from_millis(20));
        // This comes before the response, because the program may send the next request as soon as it arrives.
        state.lock().unwrap().0 -= 1;
        match request.path.strip_prefix("/moved") {
            Some(path) => reply(stream, 302, &[("Location", path)], b""),
            None => reply(stream, 200, &[], &image(Jpeg)),
        }
    });
    let world = World::new("per_host = 3");
    let urls: Vec<_> =
        (0..24).map(|n| server.url(&format!("{}/{n}", if n % 3 == 0 { "/moved" } else { "" }))).collect();
    world.urls(&urls).run_well(&[]);
    urls.iter().for_each(|url| world.is_done(url, &image(Jpeg)));
    assert_eq!(busy.0.lock().unwrap().1, 3);
}

#[test]
fn a_host_that_never_answers_is_not_requested_for_every_image() {
    // The port is below those that the system assigns, so that no server of another test can listen on it.
    let closed = "127.0.0.1:1";
    let world = World::new("retries = 0\nper_host = 1");
    let urls: Vec<_> = (0..30).map(|n| format!("http://{closed}/{n}.jpg")).collect();
    world.urls(&urls).run_well(&[]);
    let asked = urls.iter().filter(|url| !world.fate(url).1.contains("was not contacted again")).count();
    assert_eq!((asked, world.ledger().len()), (10, 30));
}

#[test]
fn a_host_that_redirects_is_not_blocked_for_one_that_never_answers() {
    let server = Server::start(shop);
    let world = World::new("retries = 0\nper_host = 1\nconnections = 1");
    let dead: Vec<_> = (0..30).map(|n| server.url(&format!("/dead/{n}"))).collect();
    let urls: Vec<_> = dead.iter().cloned().chain([server.url("/ok.jpg")]).collect();
    world.urls(&urls).run_well(&[]);
    world.is_done(&urls[30], &image(Jpeg));
    let left_out = dead.iter().filter(|url| world.fate(url).1.contains("was not contacted again")).count();
    assert_eq!(left_out, 20, "the other host is asked for ten images");
}

#[test]
fn the_program_identifies_itself_and_reports_what_it_found() {
    let server = Server::start(shop);
    let world = World::new("contact = \"https://example.org/crawler\"");
    let output = world.run(&[]);
    assert!(output.status.success() && text(&output.stderr).contains("images are downloaded after `mp4sr preprocess`"));
    let output = world.urls(&[server.url("/ok.jpg"), server.url("/none.jpg")]).run(&[]);
    let table = text(&output.stdout);
    let row = |name: &str| {
        let line = table.lines().find(|line| line.trim_start().starts_with(name)).unwrap();
        line.split_whitespace().filter_map(|word| word.parse::<u64>().ok()).collect::<Vec<_>>()
    };
    assert_eq!(
        (row("done"), row("gone"), row("failed"), row("total")),
        (vec![1, 1], vec![1, 1], vec![0, 0], vec![2, 2])
    );
    let name = format!("mp4sr/{} (https://example.org/crawler)", env!("CARGO_PKG_VERSION"));
    let request = &server.asked()[0];
    assert_eq!(
        (request.header("user-agent"), request.header("accept-encoding")),
        (Some(name.as_str()), Some("identity"))
    );
}
