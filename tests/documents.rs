//! Checks that everything that the documents name exists: files that they link to or mention, functions, tests, keys of a pipeline file,
//! make targets, subcommands and flags. Also checks that the book holds every document and that its links work.

#![allow(clippy::disallowed_methods, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use mp4sr_artifact::{Result, files};
use mp4sr_tests::{command, root};

/// All Markdown documents except the changelog, which names things that earlier releases had.
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

fn is_source(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|end| end == "rs")
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

/// The sections and keys of docs/configuration.md, as `section` and `section.key`. Another test compares that page with the types.
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
        for command in commands(&text).filter(|command| command.starts_with("make ")) {
            let target = command.split_whitespace().skip(1).find(|word| !word.contains('=')).unwrap_or("help");
            if target.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') && !phony.contains(target) {
                unknown.push(format!("{}: {command}", path.display()));
            }
        }
    }
    assert!(unknown.is_empty(), "{unknown:#?}");
}

/// The commands of a document: the texts between backticks, and indented lines.
fn commands(text: &str) -> impl Iterator<Item = &str> {
    let indented = text.lines().filter_map(|line| line.strip_prefix("    ")).map(str::trim_start);
    text.lines().flat_map(code_spans).chain(indented)
}

/// The help of `mp4sr` with the words of a subcommand; `None` if there is no such subcommand.
fn help(words: &[&str]) -> Option<String> {
    let output = command("demo").get_program().to_owned();
    let output = Command::new(output).args(words).arg("--help").output().expect("the program starts");
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What is wrong with the words that follow `mp4sr` in a command; `None` if its subcommand and all of its flags exist.
fn fault(words: &[&str], helps: &mut BTreeMap<String, Option<String>>) -> Option<String> {
    let mut of = |words: &[&str]| helps.entry(words.join(" ")).or_insert_with(|| help(words)).clone();
    let is_name = |word: &&str| word.chars().all(|c| c.is_ascii_lowercase() || c == '-') && !word.starts_with('-');
    let names: Vec<&str> = words.iter().copied().take_while(is_name).collect();
    let mut found = of(&names[..names.len().min(1)]);
    if names.len() > 1 && found.as_ref().is_some_and(|help| help.contains("\nCommands:\n")) {
        found = of(&names[..2]);
    }
    let Some(help) = found else { return Some(format!("no subcommand `{}`", names.join(" "))) };
    let flags = words.iter().filter(|word| word.starts_with("--") && word.len() > 2);
    let flags = flags.map(|word| word.split('=').next().unwrap_or(word).trim_end_matches([')', ',', '.', ';', ']']));
    let has = |flag: &str| help.split([' ', ',', '\n', '<', '[', '=']).any(|word| word == flag);
    flags.filter(|flag| !has(flag)).map(|flag| format!("no flag `{flag}`")).next()
}

#[test]
fn every_subcommand_and_flag_that_a_document_names_exists() {
    let (mut seen, mut faults, mut helps) = (0, Vec::new(), BTreeMap::new());
    for (path, text) in documents().unwrap() {
        for command in commands(&text) {
            let command = command.split(['#', '|', '&', ';', '>']).next().unwrap_or_default();
            let words: Vec<&str> = command.split_whitespace().map(|word| word.trim_matches(['[', ']'])).collect();
            // `mp4sr <stage>` stands for any of them.
            let Some(at) = words.iter().position(|word| *word == "mp4sr").filter(|at| at + 1 < words.len()) else {
                continue;
            };
            if at > 0 && !["mpirun", "srun"].contains(&words[0]) && !words[0].contains('=')
                || words[at + 1].starts_with('<')
            {
                continue;
            }
            seen += 1;
            faults.extend(
                fault(&words[at + 1..], &mut helps).map(|fault| format!("{}: {command}: {fault}", path.display())),
            );
        }
    }
    assert!(seen > 80, "{seen}");
    assert!(faults.is_empty(), "{faults:#?}");
}

/// The question of each crate in ARCHITECTURE.md is answered by files of that crate.
#[test]
fn every_file_that_the_architecture_names_is_in_its_crate() {
    let text = files::read_to_string(&root().join("ARCHITECTURE.md")).unwrap();
    let (_, list) = text.split_once("## Where to look").unwrap();
    let (list, _) = list.split_once("\n## ").unwrap();
    let (mut seen, mut missing) = (0, Vec::new());
    for bullet in list.split("\n- **").skip(1) {
        let (question, answer) = bullet.split_once("**").unwrap();
        let name = question.split('`').nth(1).unwrap();
        let source = root().join("crates").join(name).join("src");
        for file in answer.lines().flat_map(code_spans).filter(|span| is_source(span) || span.ends_with('/')) {
            seen += 1;
            if !source.join(file).exists() {
                missing.push(format!("{name}: {file}"));
            }
        }
    }
    assert!(seen > 60, "{seen}");
    assert!(missing.is_empty(), "{missing:#?}");
}

/// Every function, test and golden case in the tables of docs/paper.md exists: a name behind a file is in that file, and any other name
/// is a test or a golden case.
#[test]
fn every_function_and_test_that_the_paper_s_tables_name_exists() {
    let text = files::read_to_string(&root().join("docs/paper.md")).unwrap();
    let golden: BTreeSet<String> = entries(&root().join("tests/golden"))
        .iter()
        .filter_map(|path| path.file_stem()?.to_str().map(str::to_owned))
        .collect();
    let tests = ["tests/studies.rs", "tests/walk.rs", "crates/run/tests/configuration.rs"];
    let tests: String = tests.iter().map(|file| files::read_to_string(&root().join(file)).unwrap()).collect();
    let is_name = |span: &str| span.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':');
    let (mut seen, mut missing) = (0, Vec::new());
    for cell in text.lines().filter(|line| line.starts_with('|')).flat_map(|line| line.split(" | ")) {
        let mut file = None;
        for span in code_spans(cell) {
            if is_source(span) {
                let folder = if span.contains('/') { root() } else { root().join("crates/study/src/experiment") };
                // A unit test is named by its file, which the row names in full in another column.
                file = files::read_to_string(&folder.join(span)).ok();
                continue;
            }
            if !is_name(span) {
                continue;
            }
            seen += 1;
            let name = span.rsplit("::").next().unwrap_or(span);
            let is_in =
                |text: &str| ["fn", "struct", "enum"].iter().any(|kind| text.contains(&format!("{kind} {name}")));
            if !file.as_deref().is_some_and(is_in) && !is_in(&tests) && !golden.contains(name) {
                missing.push(format!("{span} in {cell}"));
            }
        }
    }
    assert!(seen > 60, "{seen}");
    assert!(missing.is_empty(), "{missing:#?}");
}

/// The text of every file below `folder`, except binary files.
fn texts_below(folder: &Path) -> Vec<String> {
    let below = |path: PathBuf| {
        if path.is_dir() { texts_below(&path) } else { files::read_to_string(&path).into_iter().collect() }
    };
    entries(folder).into_iter().flat_map(below).collect()
}

/// A checklist that names a type, a constant or a function under an earlier name cannot be followed.
#[test]
fn every_identifier_that_the_contributors_documents_name_is_in_the_code() {
    let code: Vec<String> =
        ["crates", "tests", "tools", "examples"].iter().flat_map(|folder| texts_below(&root().join(folder))).collect();
    let is_of_identifier = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words: BTreeSet<&str> = code.iter().flat_map(|text| text.split(|c| !is_of_identifier(c))).collect();
    let (mut seen, mut missing) = (0, Vec::new());
    for name in ["CONTRIBUTING.md", "ARCHITECTURE.md"] {
        let text = files::read_to_string(&root().join(name)).unwrap();
        for span in text.lines().flat_map(code_spans) {
            let identifier = span.trim_end_matches("()").rsplit("::").next().unwrap_or_default();
            if identifier.len() > 2 && identifier.chars().all(is_of_identifier) {
                seen += 1;
                if !words.contains(identifier) {
                    missing.push(format!("{name}: `{span}`"));
                }
            }
        }
    }
    assert!(seen > 60, "{seen}");
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn the_book_lists_every_document() {
    let summary = files::read_to_string(&root().join("docs/SUMMARY.md")).unwrap();
    let mut missing: Vec<String> = entries(&root().join("docs"))
        .iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
        .filter_map(|path| path.file_name()?.to_str().map(str::to_owned))
        .filter(|name| name != "SUMMARY.md")
        .collect();
    let roots = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "data/README.md"];
    missing.extend(roots.map(|name| format!("../{name}")));
    missing.retain(|name| !summary.contains(&format!("]({name})")));
    assert!(missing.is_empty(), "{missing:?}");
}

/// The book shows a drawing in place of the Mermaid diagram. The drawing holds the text of the diagram from which it was drawn.
#[test]
fn the_drawing_of_the_architecture_is_that_of_its_diagram() {
    let text = files::read_to_string(&root().join("ARCHITECTURE.md")).unwrap();
    let (_, rest) = text.split_once("```mermaid\n").unwrap();
    let (diagram, rest) = rest.split_once("\n```").unwrap();
    assert!(!rest.contains("```mermaid"), "tools/book/build.sh knows one diagram");
    let drawing = files::read_to_string(&root().join("docs/images/architecture.svg")).unwrap();
    let source = drawing.split("<desc>").nth(1).and_then(|rest| rest.split("</desc>").next()).unwrap();
    let source = source.replace("&gt;", ">").replace("&lt;", "<").replace("&amp;", "&");
    assert_eq!(source, diagram, "draw docs/images/architecture.svg again, as CONTRIBUTING.md says");
}

/// The values of an attribute in HTML.
fn attribute<'a>(html: &'a str, name: &str) -> impl Iterator<Item = &'a str> {
    html.split(&format!(" {name}=\"")).skip(1).filter_map(|rest| rest.split('"').next()).collect::<Vec<_>>().into_iter()
}

#[test]
fn every_link_of_the_book_works() {
    if Command::new("mdbook").arg("--version").output().is_err() {
        println!("skipped: mdbook is not installed");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let book = folder.path().join("book");
    let built =
        Command::new("sh").arg(root().join("tools/book/build.sh")).arg(&book).env("RUST_LOG", "warn").output().unwrap();
    let message = String::from_utf8_lossy(&built.stderr);
    assert!(built.status.success() && !message.contains("WARN"), "{message}");
    let folders = [".", "docs", "data", "deploy", "crates", "tests"].map(|folder| book.join(folder));
    let pages = folders.iter().flat_map(|folder| entries(folder));
    // The page for unknown paths refers to its files from the root of the site.
    let pages: Vec<PathBuf> =
        pages.filter(|page| page.extension().is_some_and(|end| end == "html") && !page.ends_with("404.html")).collect();
    let mut links = 0;
    let mut broken = Vec::new();
    for page in &pages {
        let html = files::read_to_string(page).unwrap();
        for link in attribute(&html, "href").chain(attribute(&html, "src")) {
            let (file, fragment) = link.split_once('#').unwrap_or((link, ""));
            if file.contains(':') || file.starts_with("//") {
                continue;
            }
            links += 1;
            let target = if file.is_empty() { page.clone() } else { page.parent().unwrap().join(file) };
            let target = if target.is_dir() { target.join("index.html") } else { target };
            let is_found = target.is_file()
                && (fragment.is_empty()
                    || files::read_to_string(&target).unwrap().contains(&format!("id=\"{fragment}\"")));
            if !is_found {
                broken.push(format!("{}: {link}", page.strip_prefix(&book).unwrap().display()));
            }
        }
    }
    assert!(pages.len() > 20 && links > 500, "{} pages, {links} links", pages.len());
    assert!(broken.is_empty(), "{broken:#?}");
}
