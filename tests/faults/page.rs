//! Opens the report page in a real browser, with titles and ids that contain markup and scripts.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, Stdio};

use mp4sr_artifact::files;
use mp4sr_tests::{Project, stages};

/// Texts that would set an attribute on the page's root if they were executed.
const HOSTILE: [&str; 6] = [
    "<script>document.documentElement.dataset.hit='script'</script>",
    "<img src=x onerror=\"document.documentElement.dataset.hit='image'\">",
    "\"'><svg onload=\"document.documentElement.dataset.hit='svg'\">",
    "</title></style></script><body onload=\"document.documentElement.dataset.hit='body'\">",
    "<iframe srcdoc=\"<script>parent.document.documentElement.dataset.hit='frame'</script>\"></iframe>",
    "<math><mi xlink:href=\"javascript:document.documentElement.dataset.hit='link'\">A &amp; B</mi></math>",
];

/// The browser that `CHROMIUM` names, or one that is on the path.
fn browser() -> Option<OsString> {
    let names = ["chromium", "chromium-browser", "google-chrome"].map(OsString::from);
    let works = |name: &OsString| Command::new(name).arg("--version").stdout(Stdio::null()).status().is_ok();
    std::env::var_os("CHROMIUM").or_else(|| names.into_iter().find(works))
}

/// The document of a page after its scripts ran.
fn shown(browser: &OsString, page: &Path) -> String {
    let profile = tempfile::tempdir().unwrap();
    let quiet = ["--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"];
    let output = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--no-first-run", "--dump-dom", "--virtual-time-budget=5000"])
        .args(quiet)
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(format!("file://{}", page.display()))
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn scripts_in_data_do_not_run_on_the_report_page() {
    let Some(browser) = browser() else {
        eprintln!("skipped: no Chromium here; install one, or name it with CHROMIUM");
        return;
    };
    let world = Project::small();
    let (mut items, mut events) = (world.raw_text("a.jsonl"), world.raw_text("a.tsv"));
    for item in 0..30 {
        // Tags are removed from titles; ids are kept unchanged.
        let hostile = HOSTILE[item % HOSTILE.len()];
        let id = format!("{hostile}{item}");
        let line =
            serde_json::json!({ "item_id": id, "title": hostile.replace('<', "&lt;"), "image": "one.png" }).to_string();
        let old = items.lines().find(|line| line.contains(&format!("\"i{item}\""))).unwrap().to_owned();
        items = items.replace(&old, &line);
        events = events.replace(&format!("\ti{item}\t"), &format!("\t{id}\t"));
    }
    events = events.replace("u1\t", &format!("{}1\t", HOSTILE[0]));
    files::write_bytes(&world.folder().join("a.jsonl"), items.as_bytes()).unwrap();
    files::write_bytes(&world.folder().join("a.tsv"), events.as_bytes()).unwrap();
    for stage in stages() {
        world.run(stage, &[]);
    }

    let control = world.folder().join("control.html");
    for hostile in &HOSTILE[..5] {
        let page = format!("<!DOCTYPE html><html><head></head><body>{hostile}</body></html>");
        files::write_bytes(&control, page.as_bytes()).unwrap();
        assert!(shown(&browser, &control).contains("data-hit="), "the browser does not run {hostile}");
    }
    let page = shown(&browser, &world.path("a/runs/mp4sr/report/index.html"));
    assert!(page.contains("R@20") && page.contains("&lt;script&gt;") && page.contains("onerror="), "{page}");
    let root = page.split('>').find(|tag| tag.contains("<html")).unwrap();
    assert!(!root.contains("data-hit"), "{root}");
}
