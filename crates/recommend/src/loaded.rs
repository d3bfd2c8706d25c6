//! A trained run that answers requests for any history, by the original ids of users and items.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mp4sr_artifact::{Fingerprint, Items, Layout, Manifest, Users};
use mp4sr_models::{FINETUNE, Query, Scorer, popularity_scores};
use mp4sr_pipeline::Config;
use mp4sr_pipeline::text::{quoted, some_of};
use mp4sr_protocol::training_events;
use mp4sr_run::{Inputs, NewItems, TrainedModel, other_settings, removes_seen, training_sequences};

use crate::top::{CandidateItems, ListQuery, order};
use crate::{RecommendError, Recommender, Scored};

/// The tables that translate between ids and rows.
#[derive(Debug)]
pub struct RunCatalogue {
    /// The items of the dataset, then the items that were added to the run.
    pub items: Items,
    /// The numbers of training events of the items, `[I]`.
    pub events: Vec<u32>,
    /// The number of items that were added after training; they are the last ones.
    pub new_items: usize,
    rows: HashMap<String, u32>,
    users: HashMap<String, u32>,
    by_events: Vec<Scored>,
    /// The items with their scores in the fallback, greatest first, ties by item.
    popular: Vec<Scored>,
}

impl RunCatalogue {
    /// The item (1-based) with this id. Blanks around it are ignored, as in the interactions.
    pub fn item(&self, id: &str) -> Option<u32> {
        self.rows.get(id).or_else(|| self.rows.get(id.trim())).copied()
    }

    /// The row (0-based) of the user of the dataset with this id.
    pub fn user(&self, id: &str) -> Option<u32> {
        self.users.get(id).or_else(|| self.users.get(id.trim())).copied()
    }

    /// The id of an item, 1-based.
    pub fn id(&self, item: u32) -> &str {
        &self.items.ids[item as usize - 1]
    }

    /// The title of an item, 1-based; empty if it has none.
    pub fn title(&self, item: u32) -> &str {
        &self.items.titles[item as usize - 1]
    }

    /// All items, 1-based, with their numbers of training events, most events first, ties by item.
    pub fn by_events(&self) -> impl Iterator<Item = Scored> {
        self.by_events.iter().copied()
    }

    /// The `k` candidates with the most events that the fallback counts, ties by item.
    fn popular(&self, k: usize, candidates: CandidateItems<'_>) -> Vec<Scored> {
        self.popular.iter().filter(|(item, _)| candidates.has(*item)).take(k).copied().collect()
    }
}

/// The model of a run with its tables.
pub struct LoadedRun {
    /// The configuration of the run.
    pub config: Config,
    /// The model with its inputs.
    pub trained: TrainedModel,
    /// The items and users by their ids.
    pub catalogue: Arc<RunCatalogue>,
    /// The ids of items that were added to the run and are now in the dataset, whose content is used for them.
    in_dataset: Vec<String>,
    /// The fingerprints of the files that the model was loaded from, by role.
    files: BTreeMap<String, Fingerprint>,
}

/// A way to find the best candidates of queries.
pub trait Search {
    /// The `k` candidates with the highest scores for each query, best first, ties by item.
    fn search(&self, queries: &[ListQuery<'_>]) -> Result<Vec<Vec<Scored>>, RecommendError>;
}

/// Scores every candidate, as `evaluate` does.
impl Search for Recommender<'_> {
    fn search(&self, queries: &[ListQuery<'_>]) -> Result<Vec<Vec<Scored>>, RecommendError> {
        self.top_among(queries)
    }
}

/// A request for one user.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// The user's id, which may or may not be in the dataset.
    pub user: Option<String>,
    /// The ids of the items of the history, oldest first.
    pub history: Vec<String>,
    /// The length of the list.
    pub k: usize,
    /// For each item, whether it may be listed, `[I]`; `None` means every item.
    pub allowed: Option<Arc<Vec<bool>>>,
    /// The items that must not be listed, 1-based, in any order.
    pub removed: Vec<u32>,
}

/// The reason why a list does not come from the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fallback {
    /// The history has no known item, so the items with the most training events are listed (`recommend.fallback_share`).
    Popular,
}

impl Fallback {
    /// The name of the fallback in lists.
    pub fn name(self) -> &'static str {
        match self {
            Self::Popular => "popular",
        }
    }
}

/// The list of one user.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The items, 1-based, with their scores, best first; in a fallback list, the scores are those of popularity.
    pub list: Vec<Scored>,
    /// The ids of the history that are not items of the run, in their order.
    pub unknown: Vec<String>,
    /// The reason why the model did not compute the list, if it did not.
    pub fallback: Option<Fallback>,
}

impl LoadedRun {
    /// Reads and verifies a run to which `new_items` were added.
    pub fn load(layout: &Layout, config: &Config, new_items: Option<NewItems>) -> anyhow::Result<Self> {
        let files = fingerprints(layout, config)?;
        let (trained, in_dataset) = TrainedModel::load_with_new_items(layout, config, new_items)?;
        let mut items = Items::read_in(&layout.items(), Path::new(&config.dataset.data))?;
        let users = Users::read(&layout.users())?;
        let sequences = &trained.inputs.sequences;
        sequences.expect_tables(layout, &items, &users)?;
        if let Some(new) = &trained.new_items {
            items.append(new.items.clone());
        }
        let rows = (1..).zip(&items.ids).map(|(row, id)| (id.clone(), row)).collect();
        let mut events = training_events(sequences);
        events.resize(items.len(), 0);
        let share = config.recommend.fallback_share;
        let by_events = most_first(events.iter().map(|&count| count as f32));
        let popular = if share < 1.0 {
            let training = training_sequences(sequences);
            most_first(popularity_scores(&training, items.len(), share, "recommend.fallback_share")?)
        } else {
            by_events.clone()
        };
        let users = (0..).zip(users.ids).map(|(row, id)| (id, row)).collect();
        let new_items = trained.new_items.as_ref().map_or(0, |new| new.items.len());
        let catalogue = Arc::new(RunCatalogue { items, events, new_items, rows, users, by_events, popular });
        Ok(Self { config: config.clone(), trained, catalogue, in_dataset, files })
    }

    /// Warnings about the items that were added to the run, and about data and settings that have changed since its training.
    pub fn warnings(&self, layout: &Layout) -> Vec<String> {
        let data = self.trained.checkpoint.trained_on_others(&self.files, FINETUNE);
        let settings = other_settings(layout, &self.config);
        self.in_dataset_warnings().into_iter().chain(data).chain(settings).collect()
    }

    /// Warnings about items that were added to the run and are in the dataset by now.
    fn in_dataset_warnings(&self) -> Vec<String> {
        if self.in_dataset.is_empty() {
            return Vec::new();
        }
        let items = &self.catalogue.items;
        let is_bare = |row: &usize| items.sentences[*row].is_empty() && items.images[*row].is_empty();
        let all_bare: HashSet<&str> = (0..items.len()).filter(is_bare).map(|row| items.ids[row].as_str()).collect();
        let (bare, described): (Vec<&str>, Vec<&str>) =
            self.in_dataset.iter().map(String::as_str).partition(|id| all_bare.contains(id));
        let bare_remedy = ", but there they have neither texts nor images; write lines for them into the files of items before you remove \
                           the added ones with `mp4sr items remove`, which deletes what is known of them";
        let groups = [(described, "; remove the added ones with `mp4sr items remove`"), (bare, bare_remedy)];
        let warning = |(named, remedy): (Vec<&str>, &str)| {
            format!(
                "items that were added to the run are in the dataset by now, which is used for them ({} of them: {}){remedy}",
                named.len(),
                some_of(&named)
            )
        };
        groups.into_iter().filter(|(named, _)| !named.is_empty()).map(warning).collect()
    }

    /// Computes the item matrix, and returns the run ready to answer requests.
    pub fn answerer(&self) -> anyhow::Result<Answerer<'_>> {
        Ok(Answerer { run: self, scorer: self.trained.scorer()? })
    }
}

/// The fingerprints of the files that a model is loaded from, by role. Files that have not changed since training are not read for it.
fn fingerprints(layout: &Layout, config: &Config) -> mp4sr_artifact::Result<BTreeMap<String, Fingerprint>> {
    let trained = Manifest::find(&layout.run(), FINETUNE);
    let fingerprint = |(role, path): (String, PathBuf)| {
        let then = trained.as_ref().and_then(|manifest| manifest.inputs.get(&role));
        let unchanged = then.map(|then| then.is_of(&path)).transpose()?.unwrap_or(false);
        let known = then.filter(|_| unchanged).map(|then| then.fingerprint.clone());
        Ok((role, known.map_or_else(|| Fingerprint::of_file(&path), Ok)?))
    };
    Inputs::files(layout, config).into_iter().map(fingerprint).collect()
}

/// The items, 1-based, with their scores, greatest first, ties by item.
fn most_first(scores: impl IntoIterator<Item = f32>) -> Vec<Scored> {
    let mut items: Vec<Scored> = (1..).zip(scores).collect();
    items.sort_by(order(None));
    items
}

/// A run whose item matrix is computed.
pub struct Answerer<'a> {
    run: &'a LoadedRun,
    scorer: Box<dyn Scorer + 'a>,
}

/// A request with its ids resolved to rows.
struct Resolved {
    user: Option<u32>,
    history: Vec<u32>,
    unknown: Vec<String>,
    removed: Vec<u32>,
}

impl Answerer<'_> {
    /// The scorer of the model.
    pub fn scorer(&self) -> &dyn Scorer {
        self.scorer.as_ref()
    }

    /// The scorer with its item matrix prepared for many lists.
    pub fn recommender(&self) -> Result<Recommender<'_>, RecommendError> {
        Recommender::new(self.scorer.as_ref())
    }

    /// The reason why the model cannot rank items for this request; `None` if it can.
    pub fn refusal(&self, request: &Request) -> Option<RecommendError> {
        self.refusal_of(request, &self.resolve(request))
    }

    fn refusal_of(&self, request: &Request, resolved: &Resolved) -> Option<RecommendError> {
        let is_empty = resolved.history.is_empty();
        let known = resolved.user.is_some_and(|user| self.scorer.has_seen(user));
        let unanswerable = !known && self.scorer.needs_known_user();
        let who = || match &request.user {
            Some(id) => format!("the user {}", quoted(id)),
            None => "a user without an id".to_owned(),
        };
        let model = &self.run.config.model.name;
        (unanswerable && !is_empty).then(|| RecommendError::UnknownUser { who: who(), model: model.clone() })
    }

    /// Answers requests in one batch. A user of the dataset keeps the row of the dataset, and the history of the dataset if the request
    /// gives no item that is known; everybody else is ranked by the given history alone, which some models reject.
    pub fn answer(&self, search: &dyn Search, requests: &[Request]) -> Result<Vec<Answer>, RecommendError> {
        let resolved: Vec<Resolved> = requests.iter().map(|request| self.resolve(request)).collect();
        let candidates = |at: usize| CandidateItems {
            allowed: requests[at].allowed.as_ref().map(|allowed| allowed.as_slice()),
            removed: &resolved[at].removed,
        };
        let ranked: Vec<usize> = (0..requests.len()).filter(|&at| !resolved[at].history.is_empty()).collect();
        if let Some(refusal) = ranked.iter().find_map(|&at| self.refusal_of(&requests[at], &resolved[at])) {
            return Err(refusal);
        }
        let queries: Vec<ListQuery<'_>> = ranked
            .iter()
            .map(|&at| ListQuery {
                query: Query { user: resolved[at].user, history: &resolved[at].history },
                target: None,
                k: requests[at].k,
                candidates: candidates(at),
            })
            .collect();
        let lists = if queries.is_empty() { Vec::new() } else { search.search(&queries)? };
        let mut lists = ranked.iter().copied().zip(lists).peekable();
        let answers = resolved.iter().enumerate().map(|(at, own)| match lists.next_if(|(own, _)| *own == at) {
            Some((_, list)) => Answer { list, unknown: own.unknown.clone(), fallback: None },
            None => Answer {
                list: self.run.catalogue.popular(requests[at].k, candidates(at)),
                unknown: own.unknown.clone(),
                fallback: Some(Fallback::Popular),
            },
        });
        Ok(answers.collect())
    }

    fn resolve(&self, request: &Request) -> Resolved {
        let (mut history, mut unknown) = (Vec::new(), Vec::new());
        for id in &request.history {
            match self.run.catalogue.item(id) {
                Some(item) => history.push(item),
                None => unknown.push(id.clone()),
            }
        }
        let user = request.user.as_ref().and_then(|id| self.run.catalogue.user(id));
        if let Some(user) = user.filter(|_| history.is_empty()) {
            history = self.run.trained.inputs.sequences.of(user as usize).to_vec();
        }
        let mut removed = request.removed.clone();
        if removes_seen(&self.run.config, self.run.trained.model.as_ref()) {
            removed.extend_from_slice(&history);
        }
        removed.sort_unstable();
        removed.dedup();
        Resolved { user, history, unknown, removed }
    }
}
