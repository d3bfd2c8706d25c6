//! Downloads of raw files.

use std::fmt::Write as _;

use ring::digest::{SHA256, digest};

use crate::harness::{World, files_below, text};
use mp4sr_tests::server::{Server, reply, serve_file};

const TAG: &str = "\"v1\"";

fn content() -> Vec<u8> {
    (0..200_000_u32).flat_map(u32::to_le_bytes).collect()
}

fn sum(bytes: &[u8]) -> String {
    digest(&SHA256, bytes).as_ref().iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn server() -> Server {
    Server::start(|request, stream| match request.path.as_str() {
        "/a" => serve_file(request, stream, &content(), TAG, if request.nth == 0 { 300_000 } else { usize::MAX }),
        "/b" => reply(stream, 200, &[], b"b"),
        "/page" => reply(stream, 200, &[], b"<!DOCTYPE html><p>Fill in this form first"),
        _ => reply(stream, 404, &[], b""),
    })
}

fn world(server: &Server, files: &[(&str, &str, &str)]) -> World {
    let line = |(from, path, sum): &(&str, &str, &str)| {
        format!("{{ url = \"{}\", path = \"{path}\", sha256 = \"{sum}\" }}", server.url(from))
    };
    World::new(&format!("files = [{}]", files.iter().map(line).collect::<Vec<_>>().join(", ")))
}

#[test]
fn raw_files_are_fetched_once_resumed_and_verified() {
    let server = server();
    let world = world(&server, &[("/a", "deep/a.bin", &sum(&content()).to_uppercase()), ("/b", "b.txt", "")]);
    let report = world.run_well(&[]);
    assert!(std::fs::read(world.data("deep/a.bin")).unwrap() == content());
    assert_eq!(std::fs::read(world.data("b.txt")).unwrap(), b"b");
    assert_eq!(server.asked_for("/a")[1].header("range"), Some("bytes=300000-"));
    assert!(report.files[0].verified && report.files[0].fetched && !report.files[1].verified);
    let report = world.run_well(&[]);
    assert_eq!(server.asked().len(), 3, "what is there is not fetched again");
    assert!(report.files[0].verified && !report.files[0].fetched);
    std::fs::write(world.data("deep/a.bin"), "other").unwrap();
    let message = world.run_failing(&[]);
    assert!(
        message.contains("deep/a.bin") && message.contains(&sum(b"other")) && message.contains("remove it"),
        "{message}"
    );
    assert_eq!(std::fs::read(world.data("deep/a.bin")).unwrap(), b"other", "nobody's file is removed");
}

#[test]
fn a_wrong_checksum_is_reported_with_both_values_and_leaves_no_file() {
    let (server, wrong) = (server(), "0".repeat(64));
    let world = world(&server, &[("/a", "a.bin", &wrong)]);
    let message = world.run_failing(&[]);
    assert!(message.contains("a.bin`") && message.contains(&wrong) && message.contains(&sum(&content())), "{message}");
    let left: Vec<_> = files_below(&world.data("")).into_iter().filter(|path| path.contains("a.bin")).collect();
    assert_eq!(left, Vec::<String>::new());
}

#[test]
fn a_file_that_cannot_be_downloaded_is_an_error_once_the_others_are_complete() {
    let server = server();
    let world = world(&server, &[("/none", "none.json", ""), ("/page", "c.json.gz", ""), ("/b", "b.json", "")]);
    let message = world.run_failing(&[]);
    assert!(message.contains("none.json") && message.contains("answered 404"), "{message}");
    assert!(message.contains("c.json.gz") && message.contains("is a web page"), "{message}");
    assert!(world.data("b.json").is_file() && !world.data("c.json.gz").exists());
}

#[test]
fn offline_mode_reports_missing_files_and_requests_nothing() {
    let server = server();
    let world = world(&server, &[("/a", "a.bin", ""), ("/b", "b.json", "")]);
    std::fs::create_dir_all(world.data("")).unwrap();
    std::fs::write(world.data("a.bin"), "mine").unwrap();
    let message = world.run_failing(&["download.offline=true"]);
    assert!(message.contains("b.json") && message.contains("offline") && !message.contains("a.bin"), "{message}");
    assert!(server.asked().is_empty());
}

#[test]
fn no_path_leaves_the_data_folder_and_no_private_server_is_requested() {
    let server = server();
    let escaping = world(&server, &[("/b", "../b.json", "")]);
    let message = escaping.run_failing(&[]);
    assert!(message.contains("`download.files[0].path` = \"../b.json\" is not allowed"), "{message}");
    let private = world(&server, &[("/b", "b.json", "")]);
    let output = private.run(&["download.allow_private=false"]);
    assert!(text(&output.stderr).contains("this machine (127.0.0.1)"), "{}", text(&output.stderr));
    assert!(server.asked().is_empty() && !escaping.data("../b.json").exists());
}

#[test]
fn a_body_is_stored_unchanged_whatever_encoding_the_server_names() {
    let stored = mp4sr_tests::gzip("user_id,item_id,timestamp\nu1,a,1\n");
    let body = stored.clone();
    let server = Server::start(move |request, stream| match request.path.as_str() {
        "/whole" => reply(stream, 200, &[("Content-Encoding", "gzip"), ("ETag", TAG)], &body),
        // The response arrives in small pieces, so that the name of the header is split too.
        _ => {
            let length = body.len();
            let head = format!("HTTP/1.1 200 OK\r\nCONTENT-encoding: gzip\r\nContent-Length: {length}\r\n\r\n");
            for piece in [head.as_bytes(), &body].concat().chunks(7) {
                let _ = std::io::Write::write_all(stream, piece);
                let _ = std::io::Write::flush(stream);
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
        }
    });
    let world = world(&server, &[("/whole", "a.csv.gz", ""), ("/pieces", "b.csv.gz", "")]);
    world.run_well(&[]);
    for name in ["a.csv.gz", "b.csv.gz"] {
        assert_eq!(std::fs::read(world.data(name)).unwrap(), stored, "{name}");
    }
}

#[test]
fn the_rest_of_another_version_is_not_appended() {
    let server = Server::start(|request, stream| {
        let (old, new) = (vec![1_u8; 5000], vec![2_u8; 5000]);
        match request.nth {
            0 => serve_file(request, stream, &old, TAG, 700),
            // A cache that ignores `If-Range` and sends the current version.
            1 => {
                let span = [("Content-Range", "bytes 700-4999/5000"), ("ETag", "\"v2\"")];
                reply(stream, 206, &span, &new[700..]);
            }
            _ => serve_file(request, stream, &new, "\"v2\"", usize::MAX),
        }
    });
    let world = world(&server, &[("/a", "a.bin", "")]);
    world.run_well(&[]);
    assert!(std::fs::read(world.data("a.bin")).unwrap() == [2; 5000]);
}

#[test]
fn an_empty_file_is_not_kept_and_is_fetched_again() {
    let server = Server::start(|request, stream| match request.nth {
        0 => reply(stream, 200, &[], b""),
        _ => reply(stream, 200, &[], b"a file"),
    });
    let world = world(&server, &[("/a", "a.csv", "")]);
    let message = world.run_failing(&[]);
    assert!(message.contains("a.csv` was not kept") && message.contains("is empty"), "{message}");
    // An earlier release kept such a file.
    std::fs::write(world.data("a.csv"), "").unwrap();
    world.run_well(&[]);
    assert_eq!(std::fs::read(world.data("a.csv")).unwrap(), b"a file");
}

#[test]
fn no_password_signature_or_token_is_shown() {
    let server = Server::start(|_, stream| reply(stream, 404, &[], b""));
    let url = server.url("/a.csv").replace("http://", "http://me:hunter2@") + "?X-Signature=s3cr3t&token=t0k3n";
    let world = World::new(&format!("retries = 0\nfiles = [{{ url = \"{url}\", path = \"a.csv\" }}]"));
    let message = world.run_failing(&[]);
    assert!(message.contains("/a.csv?...: the server answered 404"), "{message}");
    for secret in ["hunter2", "me:", "s3cr3t", "t0k3n"] {
        assert!(!message.contains(secret), "{message}");
    }
}

#[cfg(unix)]
#[test]
fn a_download_does_not_leave_the_data_folder_through_a_link() {
    let server = server();
    let world = world(&server, &[("/b", "linked/b.txt", "")]);
    let elsewhere = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(world.data("")).unwrap();
    std::os::unix::fs::symlink(elsewhere.path(), world.data("linked")).unwrap();
    let message = world.run_failing(&[]);
    assert!(message.contains("linked` is a link") && message.contains("must stay within the data folder"), "{message}");
    assert_eq!(std::fs::read_dir(elsewhere.path()).unwrap().count(), 0);
    assert!(server.asked().is_empty());
}
