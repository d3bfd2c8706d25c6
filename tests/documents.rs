//! What the documents name exists: files that they link to or mention, keys of a pipeline file, and make targets.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use mp4sr_artifact::{Result, files};
use mp4sr_tests::root;

/// Every document in Markdown but the changelog, which names what an earlier release had.
fn documents() -> Result<Vec<(PathBuf, String)>> {
    let mut folders = vec![root(), root().join("docs"), root().join("deploy")];
    for parent in ["crates", "data", "tests", "examples", "tools"] {
        folders.push(root().join(parent));
        folders.extend(entries(&root().join(parent)).into_iter().filter(|path| path.is_dir()));
    }
    let documents = folders.iter().flat_map(|folder| entries(folder)).filter(|path| {
        path.extension().is_some_and(|end| end == "md") && path.file_name().is_some_and(|name| name != "CHANGELOG.md")
    });
    documents.map(|path| Ok((path.clone(), files::read_to_string(&path)?))).collect()
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// The texts between single backticks of one line.
fn code_spans(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

#[test]
fn every_relative_link_and_every_file_that_a_document_names_exists() {
    let mut links = 0;
    let mut missing = Vec::new();
    for (path, text) in documents().unwrap() {
        let folder = path.parent().unwrap();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = target.split('#').next().unwrap_or_default();
            if target.contains("://") || file.is_empty() {
                continue;
            }
            links += 1;
            if !folder.join(file).exists() {
                missing.push(format!("{}: link {target}", path.display()));
            }
        }
        let ends = ["rs", "py", "sh", "md", "cu", "sql", "conf"];
        for span in text.lines().flat_map(code_spans) {
            let named = Path::new(span);
            let is_ours = ["crates", "tests", "tools", "docs", "examples", "deploy", "data"]
                .iter()
                .any(|first| named.starts_with(first));
            let is_file = named.extension().is_some_and(|end| ends.iter().any(|own| end == *own));
            if is_ours && is_file && !span.contains([' ', '<', '*', '{']) && !root().join(named).exists() {
                missing.push(format!("{}: file {span}", path.display()));
            }
        }
    }
    assert!(links > 60, "{links}");
    assert!(missing.is_empty(), "{missing:#?}");
}

/// The keys of docs/configuration.md, which a test of its own holds against the types, as `section.key`; and the sections.
fn known_keys() -> Result<BTreeSet<String>> {
    let text = files::read_to_string(&root().join("docs/configuration.md"))?;
    let mut section = String::new();
    let mut keys = BTreeSet::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("## `[").and_then(|rest| rest.strip_suffix("]`")) {
            name.clone_into(&mut section);
            keys.insert(section.clone());
        } else if let Some(key) = line.strip_prefix("| `").and_then(|rest| rest.split('`').next()) {
            keys.insert(format!("{section}.{key}"));
        }
    }
    Ok(keys)
}

#[test]
fn every_key_that_a_document_names_exists() {
    let known = known_keys().unwrap();
    let sections: BTreeSet<&str> = known.iter().filter_map(|key| key.split('.').next()).collect();
    let mut seen = 0;
    let mut unknown = Vec::new();
    for (path, text) in documents().unwrap() {
        for word in text.lines().flat_map(code_spans).flat_map(str::split_whitespace) {
            let name = word.split('=').next().unwrap_or_default().trim_matches('"');
            let parts: Vec<&str> = name.split('.').collect();
            let is_key = parts.len() > 1
                && sections.contains(parts[0])
                && parts.iter().all(|part| {
                    !part.is_empty() && part.chars().all(|c| c.is_ascii_lowercase() || c == '_' || c.is_ascii_digit())
                });
            let ends = [
                "safetensors",
                "parquet",
                "toml",
                "json",
                "jsonl",
                "rs",
                "md",
                "py",
                "html",
                "sh",
                "inter",
                "item",
                "csv",
            ];
            if !is_key || ends.contains(&parts[parts.len() - 1]) {
                continue;
            }
            seen += 1;
            if !known.contains(name) {
                unknown.push(format!("{}: {name}", path.display()));
            }
        }
    }
    assert!(seen > 100, "{seen}");
    assert!(unknown.is_empty(), "{unknown:#?}");
}

#[test]
fn every_make_target_that_a_document_names_exists() {
    let makefile = files::read_to_string(&root().join("Makefile")).unwrap().replace("\\\n", " ");
    let phony: BTreeSet<&str> = makefile
        .lines()
        .filter_map(|line| line.split_once(':'))
        .flat_map(|(left, right)| left.split_whitespace().chain(right.split_whitespace()))
        .collect();
    let mut unknown = Vec::new();
    for (path, text) in documents().unwrap() {
        for span in text.lines().flat_map(code_spans).filter(|span| span.starts_with("make ")) {
            let target = span.split_whitespace().skip(1).find(|word| !word.contains('=')).unwrap_or("help");
            if target.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') && !phony.contains(target) {
                unknown.push(format!("{}: {span}", path.display()));
            }
        }
    }
    assert!(unknown.is_empty(), "{unknown:#?}");
}
