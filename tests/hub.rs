//! Models from a hub that runs on this machine: the cache, revisions, tokens, and the errors for missing files.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Output;

use mp4sr_tests::server::{Request, Server, reply};
use mp4sr_tests::{Project, root, stderr_of};

/// A hub with the models `me/words`, `me/gated` (requires the token `secret`), `me/busy` (too many requests), and `me/pickled` (no
/// safetensors on `main`). All revisions of a model have the same files, except that `main` of `me/pickled` is pickled.
fn hub() -> Server {
    Server::start(|request: &Request, stream: &mut TcpStream| {
        let parts: Vec<&str> = request.path.trim_matches('/').split('/').collect();
        let (repo, revision, file) = (parts[..2].join("/"), parts[3], parts[4..].join("/"));
        if repo == "me/busy" {
            return reply(stream, 429, &[], b"");
        }
        if repo == "me/gated" && request.header("authorization") != Some("Bearer secret") {
            return reply(stream, 401, &[], b"");
        }
        let known = ["me/words", "me/gated", "me/pickled"].contains(&repo.as_str());
        let path = root().join("data/encoders/tiny-sentence").join(&file);
        let is_pickled = repo == "me/pickled" && revision == "main";
        let body = match std::fs::read(&path) {
            _ if !known || (is_pickled && file == "model.safetensors") => None,
            _ if is_pickled && file == "pytorch_model.bin" => Some(b"PK".to_vec()),
            read => read.ok(),
        };
        let Some(body) = body else { return reply(stream, 404, &[], b"") };
        let tag = format!("\"{}-{}\"", file.replace('/', "-"), body.len());
        let commit = if revision == "main" { "c0ffee" } else { "decade" };
        let about = [("x-repo-commit", commit), ("etag", tag.as_str())];
        let Some(range) = request.header("range") else { return reply(stream, 200, &about, &body) };
        let (start, end) = range["bytes=".len()..].split_once('-').unwrap();
        let start: usize = start.parse().unwrap();
        let end = end.parse().unwrap_or(usize::MAX).min(body.len() - 1);
        let span = format!("bytes {start}-{end}/{}", body.len());
        reply(stream, 206, &[&about[..], &[("Content-Range", &span)]].concat(), &body[start..=end]);
    })
}

struct World {
    project: Project,
    home: PathBuf,
}

impl World {
    fn new() -> Self {
        let project = Project::small();
        project.run("preprocess", &[]);
        let home = project.folder().join("home");
        Self { project, home }
    }

    fn extract(&self, model: &str, endpoint: &str, variables: &[(&str, &str)]) -> Output {
        let text = format!("extract.text.model={model:?}");
        let words = ["--set", &text, "--set", r#"model.modalities=[{name="text"}]"#];
        let mut command = self.project.command("extract", &words);
        for name in ["HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE"] {
            command.env_remove(name);
        }
        command.env("HF_HOME", &self.home).env("HF_ENDPOINT", endpoint).envs(variables.iter().copied());
        command.output().unwrap()
    }

    fn succeeds(&self, model: &str, endpoint: &str, variables: &[(&str, &str)]) -> String {
        let output = self.extract(model, endpoint, variables);
        assert!(output.status.success(), "{model}: {}", stderr_of(&output));
        stderr_of(&output)
    }

    fn fails(&self, model: &str, endpoint: &str, variables: &[(&str, &str)]) -> String {
        let output = self.extract(model, endpoint, variables);
        assert_eq!(output.status.code(), Some(1), "{model}: {}", stderr_of(&output));
        stderr_of(&output)
    }
}

/// An address on which no server listens.
const NOWHERE: &str = "http://127.0.0.1:9";

#[test]
fn a_model_is_fetched_once_and_then_served_from_the_cache() {
    let (world, hub) = (World::new(), hub());
    world.succeeds("me/words", &hub.url(""), &[]);
    let of_folder = world.project.bytes("a/features/text.words.safetensors");
    // Files that the model lacks were requested once, and are remembered in the same way as by the Python library.
    let lacked: Vec<Request> = hub.asked_for("/me/words/resolve/main/tokenizer_config.json");
    assert!(!lacked.is_empty());
    assert!(world.home.join("hub/models--me--words/.no_exist/c0ffee/tokenizer_config.json").exists());
    // The weights come last: without a network, a cache that has them counts as complete.
    let first_of = |file: &str| hub.asked().iter().position(|request| request.path.ends_with(file)).unwrap();
    assert!(first_of("/tokenizer_config.json") < first_of("/model.safetensors"));
    let asked = hub.asked().len();
    for (endpoint, variables) in
        [(hub.url(""), &[][..]), (NOWHERE.to_owned(), &[]), (NOWHERE.to_owned(), &[("HF_HUB_OFFLINE", "1")])]
    {
        let reported = world.succeeds("me/words", &endpoint, variables);
        assert!(reported.contains("up to date"), "{reported}");
    }
    assert_eq!(hub.asked().len(), asked, "nothing is asked for again");
    // The same model without its features: they are computed again, without a hub.
    std::fs::remove_dir_all(world.project.path("a/features")).unwrap();
    world.succeeds("me/words", NOWHERE, &[]);
    assert_eq!(world.project.bytes("a/features/text.words.safetensors"), of_folder);
}

#[test]
fn a_cache_that_another_program_filled_serves_without_a_network_if_it_is_complete() {
    let world = World::new();
    let model = world.home.join("hub/models--me--words");
    copy_folder(&root().join("data/encoders/tiny-sentence"), &model.join("snapshots/abc123"));
    std::fs::create_dir_all(model.join("refs")).unwrap();
    std::fs::write(model.join("refs/main"), "abc123").unwrap();
    world.succeeds("me/words", NOWHERE, &[]);
    world.succeeds("me/words@abc123", NOWHERE, &[("HF_HUB_OFFLINE", "1")]);
    // Without `modules.json` in the cache, it is unknown whether the model has one.
    std::fs::remove_file(model.join("snapshots/abc123/modules.json")).unwrap();
    let reported = world.fails("me/words", NOWHERE, &[]);
    assert!(reported.contains("has no `modules.json` in the hub's cache, and the hub cannot be reached"), "{reported}");
    std::fs::remove_file(model.join("snapshots/abc123/model.safetensors")).unwrap();
    let reported = world.fails("me/words", NOWHERE, &[("HF_HUB_OFFLINE", "1")]);
    assert!(reported.contains("`HF_HUB_OFFLINE` is on"), "{reported}");
}

#[test]
fn each_failure_of_the_hub_has_its_own_message() {
    let (world, hub) = (World::new(), hub());
    let url = hub.url("");
    let reported = world.fails("me/pickled", &url, &[]);
    assert!(
        reported.contains("the encoder `me/pickled` has no `model.safetensors`, only `pytorch_model.bin`"),
        "{reported}"
    );
    assert!(reported.contains("`owner/name@revision`"), "{reported}");
    world.succeeds("me/pickled@refs/pr/15", &url, &[]);
    assert!(world.project.path("a/features/text.pickled-refs-pr-15.safetensors").exists());
    let reported = world.fails("me/gated", &url, &[]);
    assert!(reported.contains("401 or 403") && reported.contains("`HF_TOKEN`"), "{reported}");
    world.succeeds("me/gated", &url, &[("HF_TOKEN", "secret")]);
    let reported = world.fails("me/busy", &url, &[]);
    assert!(reported.contains("too many requests (429)"), "{reported}");
    let reported = world.fails("me/nobody", &url, &[]);
    assert!(reported.contains("has no `config.json` on the hub at the revision `main`"), "{reported}");
    let reported = world.fails("me/words", NOWHERE, &[]);
    assert!(reported.contains("in the hub's cache, and the hub cannot be reached"), "{reported}");
}

#[test]
fn folders_of_early_and_of_late_releases_are_read() {
    let world = World::new();
    let whole = world.project.folder().join("whole");
    copy_folder(&root().join("data/encoders/tiny-sentence"), &whole);
    world.succeeds(whole.to_str().unwrap(), NOWHERE, &[]);
    let expected = world.project.bytes("a/features/text.whole.safetensors");
    // Early releases of sentence-transformers keep the transformer in a separate folder.
    let early = world.project.folder().join("early");
    copy_folder(&whole, &early.join("0_Transformer"));
    for file in ["1_Pooling", "modules.json"] {
        std::fs::rename(early.join("0_Transformer").join(file), early.join(file)).unwrap();
    }
    let modules = std::fs::read_to_string(early.join("modules.json")).unwrap();
    let mut modules: serde_json::Value = serde_json::from_str(&modules).unwrap();
    modules[0]["path"] = "0_Transformer".into();
    std::fs::write(early.join("modules.json"), modules.to_string()).unwrap();
    world.succeeds(early.to_str().unwrap(), NOWHERE, &[]);
    let values = |bytes: &[u8]| bytes[bytes.len() - 30 * 96 * 2..].to_vec();
    assert_eq!(values(&world.project.bytes("a/features/text.early.safetensors")), values(&expected));
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}
