//! Transfers that are interrupted.

use std::io::Write;
use std::time::Duration;

use image::ImageFormat::Jpeg;
use mp4sr_download::Fate;

use crate::harness::{World, files_below, image, text};
use mp4sr_tests::server::{Request, Server, head, reply, serve_file};

const TAG: &str = "\"v1\"";

fn ranges(requests: &[Request]) -> Vec<Option<&str>> {
    requests.iter().map(|request| request.header("range")).collect()
}

#[test]
fn a_cut_connection_is_resumed_where_it_was_cut() {
    let server = Server::start(|request, stream| {
        let most = if request.nth < 2 { 700 } else { usize::MAX };
        serve_file(request, stream, &image(Jpeg), TAG, most);
    });
    let world = World::new("");
    let url = server.url("/a.jpg");
    world.urls(std::slice::from_ref(&url)).run_well(&[]);
    world.is_done(&url, &image(Jpeg));
    assert_eq!(ranges(&server.asked()), [None, Some("bytes=700-"), Some("bytes=1400-")]);
    assert_eq!(server.asked()[1].header("if-range"), Some(TAG));
    assert_eq!(files_below(&world.downloads().folder().join("images")).len(), 1, "no part is left");
}

#[test]
fn a_server_that_sends_less_than_the_rest_is_asked_for_the_remainder() {
    let server = Server::start(|request, stream| {
        let whole = image(Jpeg);
        if request.nth == 1 {
            let span = format!("bytes 700-1199/{}", whole.len());
            reply(stream, 206, &[("Content-Range", &span), ("ETag", TAG)], &whole[700..1200]);
        } else {
            serve_file(request, stream, &whole, TAG, if request.nth == 0 { 700 } else { usize::MAX });
        }
    });
    let world = World::new("");
    let url = server.url("/a.jpg");
    world.urls(std::slice::from_ref(&url)).run_well(&[]);
    world.is_done(&url, &image(Jpeg));
    assert_eq!(ranges(&server.asked()), [None, Some("bytes=700-"), Some("bytes=1200-")]);
}

#[test]
fn an_interrupted_download_restarts_if_the_file_has_changed() {
    let server = Server::start(|request, stream| match (request.path.as_str(), request.nth) {
        // Without a validator, it is unknown whether the rest would fit.
        ("/bare", 0) => {
            head(stream, 200, &[("Content-Length", "5000")]);
            let _ = stream.write_all(&[1; 700]);
        }
        (_, 0) => serve_file(request, stream, &[1; 5000], TAG, 700),
        ("/416", 1) => reply(stream, 416, &[], b""),
        ("/elsewhere", 1) => {
            reply(stream, 206, &[("Content-Range", "bytes 0-9/5000"), ("ETag", TAG)], &[1; 10]);
        }
        // Servers may ignore the range.
        ("/ignored", _) => reply(stream, 200, &[], &image(Jpeg)),
        _ => serve_file(request, stream, &image(Jpeg), "\"v2\"", usize::MAX),
    });
    let world = World::new("retries = 1");
    let paths = ["/bare", "/416", "/elsewhere", "/ignored", "/changed"];
    let urls = paths.map(|path| server.url(path));
    world.urls(&urls).run_well(&[]);
    urls.iter().for_each(|url| world.is_done(url, &image(Jpeg)));
    assert_eq!(ranges(&server.asked_for("/bare")), [None, None]);
    for path in &paths[1..] {
        assert_eq!(ranges(&server.asked_for(path))[..2], [None, Some("bytes=700-")], "{path}");
    }
}

#[test]
fn a_failed_download_is_resumed_by_the_next_run() {
    let server = Server::start(|request, stream| {
        serve_file(request, stream, &image(Jpeg), TAG, if request.nth == 0 { 700 } else { usize::MAX });
    });
    let world = World::new("retries = 0");
    let url = server.url("/a.jpg");
    world.urls(std::slice::from_ref(&url)).run_well(&[]);
    world.is_lost(&url, Fate::Failed, "the connection was closed");
    world.run_well(&[]);
    world.is_done(&url, &image(Jpeg));
    assert_eq!(ranges(&server.asked()), [None, Some("bytes=700-")]);
}

#[test]
fn a_killed_run_is_resumed_and_concurrent_runs_are_reported() {
    let server = Server::start(|request, stream| {
        if request.path == "/slow.jpg" && request.nth == 0 {
            serve_file(request, stream, &image(Jpeg), TAG, 700);
            std::thread::sleep(Duration::from_mins(10));
        } else {
            serve_file(request, stream, &image(Jpeg), TAG, usize::MAX);
        }
    });
    let world = World::new("timeout_seconds = 600");
    let urls = ["/a.jpg", "/b.jpg", "/slow.jpg"].map(|path| server.url(path));
    let mut child = world.urls(&urls).command(&[]).spawn().unwrap();
    let slow = world.downloads().image(&urls[2]);
    let part = slow.with_file_name(format!("{}.part", slow.file_name().unwrap().to_str().unwrap()));
    let fast_are_there = || urls[..2].iter().all(|url| world.downloads().image(url).is_file());
    while !(std::fs::metadata(&part).is_ok_and(|part| part.len() == 700) && fast_are_there()) {
        assert!(child.try_wait().unwrap().is_none(), "it ended too soon");
        std::thread::sleep(Duration::from_millis(10));
    }
    let message = world.run_failing(&[]);
    assert!(message.contains(&format!("is in use by process {}", child.id())), "{message}");
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!slow.exists());
    // A kill between the rename and the ledger entry leaves an image that the ledger does not know, its note, and half a line.
    std::fs::write(world.downloads().image(&urls[0]).with_extension("part.json"), "{}").unwrap();
    let ledger = world.downloads().ledger();
    std::fs::write(&ledger, "{\"url\": \"http://x/\", \"fa").unwrap();

    let output = world.run(&[]);
    assert!(output.status.success());
    assert!(text(&output.stderr).contains("1 lines of"), "{}", text(&output.stderr));
    urls.iter().for_each(|url| world.is_done(url, &image(Jpeg)));
    assert_eq!(ranges(&server.asked_for("/slow.jpg")), [None, Some("bytes=700-")]);
    assert_eq!(files_below(&world.downloads().folder().join("images")).len(), 3, "no part and no note is left");
    assert_eq!(server.asked_for("/a.jpg").len(), 1, "an image that stands under its name is complete");
}
