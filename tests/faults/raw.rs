//! Messy data of other programs: broken lines are counted by reason with line numbers, limits are applied, and files without data are an
//! error.

use std::collections::BTreeMap;
use std::fs;

use flate2::Compression;
use flate2::write::GzEncoder;
use mp4sr_tests::{Project, stderr_of};
use std::io::Write as _;

/// Enough clean lines to pass every filter.
fn clean() -> String {
    let mut text = String::new();
    for user in 0..8 {
        for item in 0..6 {
            text += &format!(
                "{{\"user_id\": \"u{user}\", \"item_id\": \"i{item}\", \"timestamp\": {}}}\n",
                1_600_000_000 + item
            );
        }
    }
    text
}

/// Writes `bytes` to a file of this name, and preprocesses it.
fn preprocess(world: &Project, name: &str, bytes: &[u8], words: &[&str]) -> std::process::Output {
    fs::write(world.folder().join(name), bytes).unwrap();
    let source = format!("source.interactions=[\"{name}\"]");
    world.output("preprocess", &[&["--set", &source], words].concat())
}

/// The reasons of rejected lines, each with its count and the line of its first example.
fn rejected(world: &Project) -> BTreeMap<String, (u64, u64)> {
    let report: serde_json::Value = serde_json::from_str(&world.text("a/dataset/report.json")).unwrap();
    let reasons = report["interactions"]["rejected"].as_object().unwrap();
    let read =
        |value: &serde_json::Value| (value["count"].as_u64().unwrap(), value["examples"][0]["line"].as_u64().unwrap());
    reasons.iter().map(|(reason, value)| (reason.clone(), read(value))).collect()
}

#[test]
fn every_kind_of_broken_line_is_counted_with_its_line() {
    let deep = format!(
        "{{\"user_id\": \"u\", \"item_id\": \"i\", \"timestamp\": 1, \"x\": {}{}}}",
        "[".repeat(5000),
        "]".repeat(5000)
    );
    let event = |user: &str, item: &str, time: &str| {
        format!("{{\"user_id\": {user}, \"item_id\": {item}, \"timestamp\": {time}}}")
    };
    // Each line with the expected reason; `None` for a line that is accepted.
    let lines: Vec<(Vec<u8>, Option<&str>)> = vec![
        (b"{\"user_id\": \"caf\xe9\", \"item_id\": \"i1\", \"timestamp\": 1600000000}".to_vec(), Some("invalid UTF-8")),
        (deep.into_bytes(), None),
        (
            b"{\"user_id\": \"u1\", \"user_id\": \"u2\", \"item_id\": \"i1\", \"timestamp\": 1600000000}".to_vec(),
            Some("field `user_id` twice"),
        ),
        (event("\"u1\"", "\"i1\"", "\"1600000001\"").into_bytes(), None),
        (b"{\"user_id\": \"u1\", \"timestamp\": 1600000000}".to_vec(), Some("no `item_id`")),
        (event("null", "\"i1\"", "1600000000").into_bytes(), Some("no `user_id`")),
        (event("\"\"", "\"i1\"", "1600000000").into_bytes(), Some("empty `user_id`")),
        (event("\"u1\"", "\"i1\"", "-5").into_bytes(), Some("`timestamp` is negative")),
        (
            event("\"u1\"", "\"i1\"", "1600000000000").into_bytes(),
            Some("`timestamp` is after the year 2100 (milliseconds?)"),
        ),
        (event("\"u1\"", "\"i1\"", "1600000000.5").into_bytes(), None),
        (event("\"u1\"", "\"i1\"", "\"yesterday\"").into_bytes(), Some("`timestamp` is not a number")),
        (event("\"007\"", "\"i\\t\\\"1\\\"\"", "1600000000").into_bytes(), None),
        (event("\"😀\"", "\"i1\"", "1600000000").into_bytes(), None),
        (b"[1, 2]".to_vec(), Some("not an object")),
        (b"{\"user_id\": \"u1\", \"item".to_vec(), Some("broken JSON")),
    ];
    let world = Project::small();
    let mut bytes = b"\xef\xbb\xbf".to_vec();
    let clean = clean().replace('\n', "\r\n");
    bytes.extend(clean.as_bytes());
    let first = clean.lines().count() as u64 + 1;
    for (line, _) in &lines {
        bytes.extend(line);
        bytes.extend(b"\r\n");
    }
    let output = preprocess(&world, "messy.jsonl", &bytes, &[]);
    assert!(output.status.success(), "{}", stderr_of(&output));
    let found = rejected(&world);
    let mut expected: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for ((_, reason), line) in lines.iter().zip(first..) {
        if let Some(reason) = reason {
            expected.entry((*reason).to_owned()).or_insert((0, line)).0 += 1;
        }
    }
    assert_eq!(found, expected);
    let report: serde_json::Value = serde_json::from_str(&world.text("a/dataset/report.json")).unwrap();
    let file = &report["interactions"]["files"][0];
    assert_eq!(file["lines"].as_u64().unwrap(), first - 1 + lines.len() as u64);
    assert_eq!(
        file["accepted"].as_u64().unwrap() + file["rejected"].as_u64().unwrap(),
        file["lines"].as_u64().unwrap()
    );

    // As many rejected lines as allowed are accepted. If one fewer is allowed, the run fails.
    let total: u64 = found.values().map(|(count, _)| count).sum();
    let limit = |lines: u64| format!("preprocess.max_bad_lines={lines}");
    assert!(preprocess(&world, "messy.jsonl", &bytes, &["--set", &limit(total)]).status.success());
    let output = preprocess(&world, "messy.jsonl", &bytes, &["--set", &limit(total - 1)]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr_of(&output).contains("max_bad_lines") && stderr_of(&output).contains("messy.jsonl"),
        "{}",
        stderr_of(&output)
    );
}

#[test]
fn a_line_of_100_megabytes_is_skipped_and_counted() {
    let world = Project::small();
    let mut bytes = clean().into_bytes();
    bytes.extend(b"{\"user_id\": \"");
    bytes.extend(std::iter::repeat_n(b'x', 100 << 20));
    bytes.extend(b"\"}\n");
    bytes.extend(clean().replace("\"i", "\"j").replace("\"jtem", "\"item").as_bytes());
    let output = preprocess(&world, "long.jsonl", &bytes, &[]);
    assert!(output.status.success(), "{}", stderr_of(&output));
    let found = rejected(&world);
    assert_eq!(found.values().map(|(count, _)| count).sum::<u64>(), 1, "{found:?}");
    assert_eq!(found.values().next().unwrap().1, 49, "{found:?}");
}

#[test]
fn a_file_that_is_not_data_gives_an_error_that_names_it() {
    let world = Project::small();
    let gzip = |text: &str| {
        let mut out = GzEncoder::new(Vec::new(), Compression::fast());
        out.write_all(text.as_bytes()).unwrap();
        out.finish().unwrap()
    };
    let whole = gzip(&clean());
    let cut = whole[..whole.len() - 20].to_vec();
    let mut trailing = whole.clone();
    trailing.extend(b"garbage after the end");
    for (name, bytes, reported) in [
        ("page.jsonl", b"<!DOCTYPE html><html>sign in</html>".to_vec(), "is a web page"),
        ("empty.jsonl", Vec::new(), "is empty"),
        ("cut.jsonl.gz", cut, "cut.jsonl.gz"),
        ("trailing.jsonl.gz", trailing, "bytes after the end of its gzip data"),
        ("plain.jsonl.gz", clean().into_bytes(), "is not a gzip file"),
        ("zip.jsonl", b"PK\x03\x04....".to_vec(), "a zip archive"),
    ] {
        let output = preprocess(&world, name, &bytes, &[]);
        let message = stderr_of(&output);
        assert_eq!(output.status.code(), Some(1), "{name}: {message}");
        assert!(message.contains(name) && message.contains(reported), "{name}: {message}");
        assert!(!world.path("a/dataset/sequences.safetensors").exists());
    }
    // Several gzip members are one file.
    let members = [gzip(&clean()), gzip(&clean().replace("\"i", "\"j").replace("\"jtem", "\"item"))].concat();
    let output = preprocess(&world, "members.jsonl.gz", &members, &[]);
    assert!(output.status.success(), "{}", stderr_of(&output));
    assert!(world.text("a/dataset/report.json").contains("\"lines\": 96"));

    fs::create_dir(world.folder().join("folder.jsonl")).unwrap();
    let fifo = std::process::Command::new("mkfifo").arg(world.folder().join("pipe.jsonl")).status();
    let mut names = vec!["folder.jsonl", "nothing.jsonl"];
    if fifo.is_ok_and(|status| status.success()) {
        names.push("pipe.jsonl");
    }
    for name in names {
        let source = format!("source.interactions=[\"{name}\"]");
        let output = world.output("preprocess", &["--set", &source]);
        assert_eq!(output.status.code(), Some(1), "{name}");
        assert!(stderr_of(&output).contains(name), "{}", stderr_of(&output));
    }
    for outside in ["../../etc/passwd", "/etc/passwd"] {
        let source = format!("source.interactions=[\"{outside}\"]");
        let output = world.output("preprocess", &["--set", &source]);
        assert_eq!(output.status.code(), Some(1), "{outside}: {}", stderr_of(&output));
    }
}
