//! A snapshot of every message in the sources, so that any change of one is noticed.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use mp4sr_artifact::files;
use mp4sr_tests::root;

use super::{NEVER, assert_snapshot};

/// The crates whose messages users read.
const CRATES: [&str; 23] = [
    "artifact",
    "pipeline",
    "preprocess",
    "download",
    "extract",
    "models",
    "run",
    "train",
    "evaluate",
    "items",
    "recommend",
    "serve",
    "store",
    "report",
    "study",
    "sample",
    "protocol",
    "init",
    "export",
    "doctor",
    "image-file",
    "figure",
    "mp4sr",
];

/// The crates whose messages are inserted into messages of other crates, which say what to do.
const WITHOUT_REMEDY: [&str; 2] = ["image-file", "export"];

/// The marks of statements whose text is a whole message; below, those of statements whose text is a part of one.
const SENTENCES: [&str; 4] = ["#[error(", "ensure!(", "bail!(", "anyhow!("];
const REASONS: [&str; 14] = [
    "unusable(",
    "unreadable(",
    "Error::raw(",
    "Error::model(",
    "Setting(",
    "Error::Raw(",
    "refuse(",
    "wrong(",
    "lost(",
    "let reason =",
    "Err(",
    "fail(",
    "Error::Msg(",
    "context(",
];

/// Messages that do not say what to do, because they are inserted into one that does, or because nothing can be done.
const INNER: [&str; 14] = [
    "the failure was already reported",
    "another process has failed",
    "process {} of {size}: {source}",
    "MPI is already initialised",
    "`{}` {problem}",
    "the score of item {item} is {score}",
    "its host `{host}` is {kind} ({ip}), which only `download.allow_private = true` allows",
    "the figure `{title}` could not be drawn ({reason})",
    "no run could be trained: {}",
    "run `{}`: {}",
    "the condition {text:?} {what}",
    "failed to read histories from `{origin}`: {what}",
    "the pipeline cannot be read back: {0}",
    "found a problem: {one}",
];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for path in files::list(folder).unwrap() {
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|end| end == "rs") {
            found.push(path);
        }
    }
}

/// The string literals of a source, each with the statement before it, without comments and tests.
fn texts(source: &str) -> Vec<(String, String)> {
    let source = source.split("#[cfg(test)]").next().unwrap_or_default();
    let code: Vec<&str> = source.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let code = code.join("\n");
    let (mut found, mut statement) = (Vec::new(), String::new());
    let mut chars = code.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            ';' | '{' | '}' => statement.clear(),
            // A character literal such as `'"'` or `'\''`; otherwise a lifetime.
            '\'' => {
                let next: String = chars.clone().take(3).collect();
                let length = if next.starts_with('\\') { 3 } else { 2 };
                if next.chars().nth(length - 1) == Some('\'') {
                    chars.nth(length - 1);
                }
            }
            '"' => {
                let mut text = String::new();
                while let Some(c) = chars.next() {
                    match c {
                        '"' => break,
                        '\\' => match chars.next() {
                            Some('\n') => while chars.next_if(|c| c.is_whitespace()).is_some() {},
                            Some('n') => text.push('\n'),
                            Some(escaped) => text.push(escaped),
                            None => {}
                        },
                        c => text.push(c),
                    }
                }
                found.push((statement.clone(), text));
                statement.push('"');
            }
            c => statement.push(c),
        }
    }
    found
}

#[test]
fn every_message_in_the_sources_is_in_the_snapshot() {
    let (mut listed, mut problems, mut count) = (String::new(), Vec::new(), 0);
    for name in CRATES {
        let mut paths = Vec::new();
        sources(&root().join("crates").join(name).join("src"), &mut paths);
        let (mut sentences, mut reasons) = (BTreeSet::new(), BTreeSet::new());
        for path in paths {
            for (statement, text) in texts(&files::read_to_string(&path).unwrap()) {
                // A text inside a call belongs to the message of the enclosing statement.
                let is = |signs: &[&str]| signs.iter().any(|sign| statement.contains(sign));
                let is_message =
                    text.trim().contains(' ') && !statement.contains("allow(") && !statement.contains("expect(");
                if !is_message || text.contains('\n') {
                    continue;
                }
                if is(&SENTENCES) {
                    let stands_alone = !WITHOUT_REMEDY.contains(&name) && text != "{0}" && !INNER.contains(&&*text);
                    if stands_alone && !text.contains(';') {
                        problems.push(format!("{}: it does not say what to do: {text}", path.display()));
                    }
                    sentences.insert(text);
                } else if is(&REASONS) {
                    if is(&["Error::raw("]) && !text.contains(';') && !text.contains("expected") {
                        problems.push(format!("{}: it does not say what to do: {text}", path.display()));
                    }
                    reasons.insert(text);
                }
            }
        }
        for text in sentences.iter().chain(&reasons) {
            problems.extend(NEVER.iter().filter(|never| text.contains(*never)).map(|never| format!("{never}: {text}")));
        }
        count += sentences.len();
        if sentences.len() + reasons.len() > 0 {
            let _ = writeln!(listed, "\n`{name}`\n");
        }
        let line = |text: &String| format!("`` {text} ``");
        for text in &sentences {
            let _ = writeln!(listed, "- {}", line(text));
        }
        if !reasons.is_empty() {
            let _ = writeln!(listed, "- reasons: {}", reasons.iter().map(line).collect::<Vec<_>>().join(", "));
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    assert!(count > 30, "only {count} sentences were found in the sources");
    assert_snapshot("forms", &listed);
}
