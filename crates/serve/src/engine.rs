//! The thread that owns a model: it answers waiting requests in batches until all senders are dropped.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mp4sr_pipeline::Context;
use mp4sr_recommend::{
    Answer, Answerer, CandidateItems, LoadedRun, Neighbours, Recommender, Request, RunCatalogue, Scored, Search,
};
use mp4sr_run::NewItems;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::oneshot;

use crate::error::ApiError;
use crate::file_states::FileStates;
use crate::index::{HnswSearch, IndexChoice};
use crate::metrics::Metrics;

/// A request to the model.
pub enum Task {
    /// A list of items for a history.
    Recommend(Request),
    /// The neighbours of an item of the catalogue, or of one that is not in it.
    Similar(Similar),
}

/// A query for neighbours.
pub struct Similar {
    /// The item whose neighbours are listed.
    pub of: SimilarTo,
    /// The length of the list.
    pub k: usize,
    /// For each item, whether it may be listed; `None` means every item.
    pub allowed: Option<Arc<Vec<bool>>>,
    /// The items that must not be listed, 1-based, ascending.
    pub removed: Vec<u32>,
}

/// The item whose neighbours are listed.
pub enum SimilarTo {
    /// An item of the catalogue, 1-based.
    Item(u32),
    /// The features of one item that is not in the catalogue.
    Features(Box<NewItems>),
}

/// A task and the channel for its answer.
struct Job {
    task: Task,
    deadline: Instant,
    reply: oneshot::Sender<Result<Answer, ApiError>>,
}

/// A job in the queue, which the metric of queued requests counts until it is taken out or the queue is dropped.
struct QueuedJob {
    job: Job,
    place: QueuePlace,
}

struct QueuePlace(Gauge);

impl QueuedJob {
    fn new(job: Job, metrics: &Metrics) -> Self {
        metrics.queued.inc();
        Self { job, place: QueuePlace(metrics.queued.clone()) }
    }

    fn taken(self) -> Job {
        drop(self.place);
        self.job
    }
}

impl Drop for QueuePlace {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// A run in service.
pub struct Generation {
    /// The number of this generation. It starts at 1 and increases with every attempt to load a run, including failed ones.
    pub number: u64,
    /// The items and users of the run by their ids.
    pub catalogue: Arc<RunCatalogue>,
    /// The model's name in the configuration.
    pub model: String,
    /// How candidates are found, in words.
    pub search: String,
    /// The context that the run was loaded with.
    pub context: Arc<Context>,
    /// The states of its files before they were read.
    pub files: FileStates,
    /// The folder of the run, by a path without links, whose targets may change.
    pub folder: PathBuf,
    jobs: SyncSender<QueuedJob>,
    metrics: Arc<Metrics>,
    thread: JoinHandle<()>,
}

/// The options of an engine.
#[derive(Clone)]
pub struct EngineOptions {
    /// The maximum number of requests that wait for the model.
    pub queue: usize,
    /// The maximum number of requests that are answered together.
    pub batch: usize,
    /// How candidates are found.
    pub index: IndexChoice,
    /// The counters of the service.
    pub metrics: Arc<Metrics>,
}

impl Generation {
    /// Loads a run with these added items in a separate thread, and returns when it can answer. `files` are the states of its files before
    /// any of them was read.
    pub fn start(
        number: u64,
        context: Arc<Context>,
        options: &EngineOptions,
        new_items: Option<NewItems>,
        files: FileStates,
    ) -> anyhow::Result<Self> {
        let folder = context.layout.resolved().run();
        let (jobs, waiting) = sync_channel(options.queue);
        let (ready, loaded) = sync_channel(1);
        let (own, inner) = (options.clone(), context.clone());
        let engine = std::thread::Builder::new().name(format!("engine-{number}"));
        let thread = engine.spawn(move || {
            if let Err(error) = serve(&inner, &own, new_items, &waiting, &ready) {
                // Callers that wait for the run learn why it failed to load.
                drop(ready.try_send(Err(error)));
            }
            mp4sr_ops::release_memory();
        })?;
        let Ready { catalogue, search } = loaded
            .recv()
            .map_err(|_| anyhow::anyhow!("the thread of the model ended while the run was loaded; see the log"))??;
        let model = context.config.model.name.clone();
        Ok(Self {
            number,
            catalogue,
            model,
            search,
            context,
            files,
            folder,
            jobs,
            metrics: options.metrics.clone(),
            thread,
        })
    }

    /// Whether the model can still answer: a panic may have ended its thread.
    pub fn is_alive(&self) -> bool {
        !self.thread.is_finished()
    }

    /// Sends a task to the model and waits for the answer. Fails at once if too many requests are waiting.
    pub async fn ask(&self, task: Task, deadline: Instant) -> Result<Answer, ApiError> {
        let (reply, answer) = oneshot::channel();
        let job = Job { task, deadline, reply };
        self.jobs.try_send(QueuedJob::new(job, &self.metrics)).map_err(|e| match e {
            TrySendError::Full(_) => ApiError::busy(),
            TrySendError::Disconnected(_) => ApiError::internal("the model's thread has ended"),
        })?;
        // A job whose deadline has passed is dropped before it is computed.
        answer.await.map_err(|_| {
            if Instant::now() < deadline {
                ApiError::internal("the model's thread ended before it answered")
            } else {
                ApiError::too_slow()
            }
        })?
    }
}

/// What a loaded engine reports back.
struct Ready {
    catalogue: Arc<RunCatalogue>,
    search: String,
}

fn serve(
    context: &Context,
    options: &EngineOptions,
    new_items: Option<NewItems>,
    waiting: &Receiver<QueuedJob>,
    ready: &SyncSender<anyhow::Result<Ready>>,
) -> anyhow::Result<()> {
    let run = LoadedRun::load(&context.layout, &context.config, new_items)?;
    run.warnings(&context.layout).iter().for_each(|warning| context.progress.warn("serve", warning));
    let answerer = run.answerer()?;
    let exact = answerer.recommender()?;
    let hnsw = match options.index {
        IndexChoice::Exact => None,
        IndexChoice::Hnsw => Some(HnswSearch::open(context, &run, &answerer, &exact)?),
    };
    let search = hnsw.as_ref().map_or_else(|| "exact".to_owned(), HnswSearch::described);
    options.metrics.recall.set(hnsw.as_ref().map_or(1.0, HnswSearch::recall));
    let engine =
        Engine { run: &run, answerer: &answerer, exact: &exact, hnsw: hnsw.as_ref(), neighbours: None, context };
    ready.send(Ok(Ready { catalogue: run.catalogue.clone(), search }))?;
    engine.work(options, waiting);
    Ok(())
}

struct Engine<'a> {
    run: &'a LoadedRun,
    answerer: &'a Answerer<'a>,
    exact: &'a Recommender<'a>,
    hnsw: Option<&'a HnswSearch<'a>>,
    /// Built on the first query for neighbours.
    neighbours: Option<Neighbours>,
    context: &'a Context,
}

impl Engine<'_> {
    fn work(mut self, options: &EngineOptions, waiting: &Receiver<QueuedJob>) {
        while let Some(first) = next(waiting) {
            let mut jobs = vec![first.taken()];
            while jobs.len() < options.batch {
                match waiting.try_recv() {
                    Ok(job) => jobs.push(job.taken()),
                    Err(_) => break,
                }
            }
            // A client that has disconnected, or whose request has timed out, needs no answer.
            let now = Instant::now();
            jobs.retain(|job| !job.reply.is_closed() && job.deadline > now);
            if !jobs.is_empty() {
                options.metrics.batches.observe(jobs.len() as f64);
                self.answer(jobs);
            }
        }
    }

    fn answer(&mut self, jobs: Vec<Job>) {
        let (mut requests, mut replies) = (Vec::new(), Vec::new());
        for Job { task, reply, .. } in jobs {
            match task {
                Task::Recommend(request) => match self.answerer.refusal(&request) {
                    Some(refusal) => send(reply, Err(ApiError::refused(refusal.to_string()))),
                    None => {
                        requests.push(request);
                        replies.push(reply);
                    }
                },
                Task::Similar(similar) => {
                    // Popularity has a number per item, which says nothing about how similar two items are.
                    let answer = if self.answerer.scorer().items().dims()[1] > 1 {
                        self.similar(&similar).map_err(|error| ApiError::internal(&format!("{error:#}")))
                    } else {
                        let model = &self.run.config.model.name;
                        Err(ApiError::refused(format!(
                            "`{model}` has no item vectors to compare; use a run of a model that has item vectors"
                        )))
                    };
                    send(reply, answer);
                }
            }
        }
        if requests.is_empty() {
            return;
        }
        let search: &dyn Search = match self.hnsw {
            Some(hnsw) => hnsw,
            None => self.exact,
        };
        replies.into_iter().zip(self.lists(search, &requests)).for_each(|(reply, answer)| send(reply, answer));
    }

    /// The answers to requests. If they cannot be computed together, each is computed alone, so that only those at fault fail.
    fn lists(&self, search: &dyn Search, requests: &[Request]) -> Vec<Result<Answer, ApiError>> {
        match self.answerer.answer(search, requests) {
            Ok(answers) => answers.into_iter().map(Ok).collect(),
            Err(_) if requests.len() > 1 => {
                requests.iter().flat_map(|request| self.lists(search, std::slice::from_ref(request))).collect()
            }
            Err(error) => vec![Err(ApiError::internal(&error.to_string()))],
        }
    }

    fn similar(&mut self, similar: &Similar) -> anyhow::Result<Answer> {
        let items = self.answerer.scorer().items();
        let vector = match &similar.of {
            SimilarTo::Item(item) => items.narrow(0, *item as usize - 1, 1)?,
            SimilarTo::Features(features) => {
                self.run.trained.item_vectors(&self.context.layout, &self.context.config, features)?
            }
        };
        let neighbours = match self.neighbours.take() {
            Some(neighbours) => neighbours,
            None => Neighbours::new(items)?,
        };
        let neighbours = self.neighbours.insert(neighbours);
        let candidates = CandidateItems {
            allowed: similar.allowed.as_ref().map(|allowed| allowed.as_slice()),
            removed: &similar.removed,
        };
        let mut lists: Vec<Vec<Scored>> = neighbours.nearest(&vector, similar.k, &[candidates])?;
        Ok(Answer { list: lists.pop().unwrap_or_default(), unknown: Vec::new(), fallback: None })
    }
}

/// Waits for a job; `None` if no further job can arrive. After a second without one, the memory of earlier jobs goes back to the system.
fn next(waiting: &Receiver<QueuedJob>) -> Option<QueuedJob> {
    match waiting.recv_timeout(Duration::from_secs(1)) {
        Ok(job) => Some(job),
        Err(RecvTimeoutError::Disconnected) => None,
        Err(RecvTimeoutError::Timeout) => {
            mp4sr_ops::release_memory();
            waiting.recv().ok()
        }
    }
}

/// Sends an answer, and ignores that the client may have disconnected.
fn send(reply: oneshot::Sender<Result<Answer, ApiError>>, answer: Result<Answer, ApiError>) {
    drop(reply.send(answer));
}
