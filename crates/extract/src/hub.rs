//! A model of the hub: its files are fetched once and then found in the hub's cache, which the Python libraries share.

use std::path::{Path, PathBuf};

use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, CacheRepo, Repo, RepoType};
use mp4sr_artifact::files;

use crate::error::{Error, Result};
use crate::model_files::{Access, MODULES, PROCESSOR, WEIGHTS, WEIGHTS_INDEX};

/// The revision of a name that does not state one.
const MAIN: &str = "main";
/// The number of further attempts after a failed one.
const RETRIES: usize = 3;

/// A model of the hub at one revision.
pub(crate) struct HubModel {
    /// The name as configured.
    name: String,
    revision: String,
    cache: CacheRepo,
    /// `None` if the hub must not be contacted, as with `HF_HUB_OFFLINE`.
    client: Option<Box<HubClient>>,
}

/// The model as the hub has it.
struct HubClient {
    api: Api,
    repo: ApiRepo,
}

impl HubClient {
    /// The size of a file in bytes; `None` if the model does not have it, or if the hub cannot be reached.
    fn size(&self, file: &str) -> Option<u64> {
        self.api.metadata(&self.repo.url(file)).ok().map(|about| about.size() as u64)
    }
}

/// The answer to a request for a file.
enum HubAnswer {
    Found(PathBuf),
    /// The hub says that the model has no such file.
    Absent,
    /// The hub could not be reached, for this reason.
    Unreachable(String),
    /// The file could not be fetched, with the reason and the remedy.
    Refused(String, String),
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.trim().is_empty())
}

/// Whether `HF_HUB_OFFLINE` keeps programs from requesting anything from the hub.
pub fn is_offline() -> bool {
    let is_on = |value: String| !["0", "false", "no", "off"].contains(&value.trim().to_lowercase().as_str());
    variable("HF_HUB_OFFLINE").is_some_and(is_on)
}

impl HubModel {
    /// Opens `owner/name`, or `owner/name@revision`. The environment variables of the Python library apply: `HF_HOME`, `HF_HUB_CACHE`,
    /// `HF_ENDPOINT`, `HF_TOKEN`, `HF_HUB_OFFLINE`. Nothing is requested yet.
    pub fn open(name: &str, access: Access) -> Result<Self> {
        let refused = |reason: &str| {
            let remedy = "name a folder, or a model of the hub as `owner/name` or `owner/name@revision`";
            Err(Error::Hub { name: name.to_owned(), reason: reason.to_owned(), remedy: remedy.to_owned() })
        };
        let (model, revision) = name.split_once('@').unwrap_or((name, MAIN));
        if !is_hub_name(model) || revision.is_empty() {
            return refused("is neither a folder nor a name on the hub");
        }
        let cache = variable("HF_HUB_CACHE").map_or_else(Cache::from_env, |folder| Cache::new(folder.into()));
        let repo = Repo::with_revision(model.to_owned(), RepoType::Model, revision.to_owned());
        let client = if access == Access::LocalOnly || is_offline() {
            None
        } else {
            let mut builder = ApiBuilder::from_cache(cache.clone()).with_progress(false).with_retries(RETRIES);
            if let Some(endpoint) = variable("HF_ENDPOINT") {
                builder = builder.with_endpoint(endpoint.trim_end_matches('/').to_owned());
            }
            if let Some(token) = variable("HF_TOKEN") {
                builder = builder.with_token(Some(token.trim().to_owned()));
            }
            match builder.build() {
                Ok(api) => Some(Box::new(HubClient { repo: api.repo(repo.clone()), api })),
                Err(error) => return refused(&format!("could not be requested from the hub ({error})")),
            }
        };
        Ok(Self { name: name.to_owned(), revision: revision.to_owned(), cache: cache.repo(repo), client })
    }

    /// The path of a file that the model must have.
    pub fn file(&self, file: &str) -> Result<PathBuf> {
        let (reason, remedy) = match self.ask(file) {
            HubAnswer::Found(path) => return Ok(path),
            HubAnswer::Absent => (
                format!("has no `{file}` on the hub at the revision `{}`", self.revision),
                "check the name, or name another revision as `owner/name@revision`".to_owned(),
            ),
            HubAnswer::Unreachable(why) => (
                format!("has no `{file}` in the hub's cache, and the hub cannot be reached ({why})"),
                "run it once where the hub can be reached, or name a folder".to_owned(),
            ),
            HubAnswer::Refused(reason, remedy) => (reason, remedy),
        };
        Err(Error::Hub { name: self.name.clone(), reason, remedy })
    }

    /// The path of a file that the model may lack. If the hub cannot be reached, a cache that has the weights counts as complete. This does
    /// not hold for the list of modules, because another program may have filled the cache without it.
    pub fn optional_file(&self, file: &str) -> Result<Option<PathBuf>> {
        match self.ask(file) {
            HubAnswer::Found(path) => Ok(Some(path)),
            HubAnswer::Absent => Ok(None),
            HubAnswer::Unreachable(_) if file != MODULES && self.has_cached_weights() => Ok(None),
            HubAnswer::Unreachable(_) if file == MODULES && self.cached(PROCESSOR).is_some() => Ok(None),
            _ => self.file(file).map(Some),
        }
    }

    /// Whether the model has this file, which only Python's pickle can read.
    pub fn has_pickle(&self, file: &str) -> bool {
        self.client.as_ref().is_some_and(|client| client.size(file).is_some())
    }

    /// The size of the weights in bytes, according to the hub; `None` if it cannot be reached, or if the weights are in several files.
    pub fn weight_bytes(&self) -> Option<u64> {
        self.client.as_ref()?.size(WEIGHTS)
    }

    fn has_cached_weights(&self) -> bool {
        [WEIGHTS, WEIGHTS_INDEX].iter().any(|file| self.cached(file).is_some())
    }

    fn ask(&self, file: &str) -> HubAnswer {
        if let Some(path) = self.cached(file) {
            return HubAnswer::Found(path);
        }
        let marker = self.marker(file);
        if marker.as_ref().is_some_and(|marker| marker.exists()) {
            return HubAnswer::Absent;
        }
        let Some(client) = &self.client else { return HubAnswer::Unreachable("`HF_HUB_OFFLINE` is on".to_owned()) };
        let error = match client.repo.get(file) {
            Ok(path) => return HubAnswer::Found(path),
            Err(error) => error,
        };
        let text = error.to_string();
        match status(&error) {
            Some(404) => {
                // The absence is recorded as in the Python library, so that the file is not requested again.
                if let Some(marker) = self.marker(file) {
                    let _ = files::write_bytes(&marker, b"");
                }
                HubAnswer::Absent
            }
            Some(401 | 403) => HubAnswer::Refused(
                "needs permission on the hub, or does not exist (it answered 401 or 403)".to_owned(),
                "check the name; for a private or gated model, accept its terms and set `HF_TOKEN`".to_owned(),
            ),
            Some(429) => HubAnswer::Refused(
                "cannot be downloaded now: the hub received too many requests (429)".to_owned(),
                "wait a few minutes and run the command again; with `HF_TOKEN`, the hub allows more requests"
                    .to_owned(),
            ),
            Some(code) => HubAnswer::Refused(
                format!("cannot be downloaded: the hub answered {code} for `{file}`"),
                "run the command again later".to_owned(),
            ),
            None if matches!(error, ApiError::IoError(_)) => HubAnswer::Refused(
                format!("cannot be stored in the hub's cache ({text})"),
                "free disk space, or name another folder with `HF_HOME`".to_owned(),
            ),
            None => HubAnswer::Unreachable(text),
        }
    }

    /// A file's path in the cache, if it is there.
    fn cached(&self, file: &str) -> Option<PathBuf> {
        let of_commit = || Some(self.cache.pointer_path(&self.revision).join(file)).filter(|path| path.is_file());
        self.cache.get(file).or_else(of_commit)
    }

    /// The folder of the model in the cache.
    fn folder(&self) -> Option<PathBuf> {
        self.cache.pointer_path(MAIN).ancestors().nth(2).map(Path::to_owned)
    }

    /// The file in the cache that records that the model has no such file; `None` before the revision's commit is known.
    fn marker(&self, file: &str) -> Option<PathBuf> {
        let folder = self.folder()?;
        let commit = files::read_to_string(&folder.join("refs").join(&self.revision)).ok()?;
        Some(folder.join(".no_exist").join(commit.trim()).join(file))
    }
}

/// The HTTP status with which the hub refused a request.
fn status(error: &ApiError) -> Option<u16> {
    match error {
        ApiError::RequestError(error) => match **error {
            ureq::Error::StatusCode(code) => Some(code),
            _ => None,
        },
        ApiError::TooManyRetries(last) => status(last),
        _ => None,
    }
}

/// Names on the hub have at most one slash; anything else was meant as a path.
fn is_hub_name(name: &str) -> bool {
    let allowed = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    name.split('/').count() <= 2 && name.split('/').all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_distinguished_from_names_on_the_hub() {
        assert!(is_hub_name("sentence-transformers/all-MiniLM-L6-v2") && is_hub_name("bert-base-uncased"));
        for path in ["data/encoders/none", "/abs", "./rel", "../up", "a//b", ""] {
            assert!(!is_hub_name(path), "{path}");
        }
        let message =
            HubModel::open("data/encoders/none", Access::Full).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(message.contains("`data/encoders/none` is neither a folder"), "{message}");
    }

    #[test]
    fn the_status_is_that_of_the_last_of_several_requests() {
        let refused = || ApiError::RequestError(Box::new(ureq::Error::StatusCode(404)));
        assert_eq!(status(&refused()), Some(404));
        assert_eq!(status(&ApiError::TooManyRetries(Box::new(refused()))), Some(404));
        assert_eq!(status(&ApiError::IoError(std::io::Error::other("connection refused"))), None);
    }
}
