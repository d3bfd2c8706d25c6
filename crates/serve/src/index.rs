//! An HNSW index over the item matrix, for catalogues in which scoring every item takes too long.
//!
//! Malkov and Yashunin, Efficient and robust approximate nearest neighbor search using Hierarchical Navigable Small World graphs, 2018
//! (arXiv 1603.09320), in the implementation of usearch. The index finds candidates, whose scores are then computed exactly. The items of
//! the dataset are indexed once, and that index is saved with the run; added items are inserted when the index is opened. Of items with
//! the same vector, which a graph does not connect with the others, the first stands for all.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use mp4sr_artifact::{Fingerprint, Lock, files};
use mp4sr_models::{Query, query_vectors};
use mp4sr_ops::ScoreBlocks;
use mp4sr_pipeline::{Context, error_chain};
use mp4sr_recommend::{Answerer, CandidateItems, ListQuery, LoadedRun, RecommendError, Recommender, Scored, Search};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use usearch::{Index, IndexOptions, MetricKind, ScalarKind};

/// The number of neighbours per item in the graph.
const CONNECTIVITY: usize = 32;
/// The number of candidates that are kept while the graph is built.
const EXPANSION_ADD: usize = 128;
/// The number of candidates that are kept while the graph is searched.
const EXPANSION_SEARCH: usize = 128;
/// The number of histories on which recall is measured.
const MEASURED: usize = 500;
/// The K of the recall that is measured.
const RECALL_AT: usize = 10;
/// The recall below which the service warns.
const LOW_RECALL: f64 = 0.9;
/// The name of the lock under which an index is saved.
const LOCK: &str = "index";

/// How candidates are found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum IndexChoice {
    /// Every item is scored, as `evaluate` does.
    #[default]
    Exact,
    /// An HNSW index finds the candidates, which are then scored exactly; some of the best items may be missed.
    Hnsw,
}

/// What a saved index was built from. The index is reused only if all of these values are unchanged.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct IndexAbout {
    /// The hash of the dataset's rows of the item matrix.
    matrix: Fingerprint,
    /// The number of these rows.
    rows: usize,
    /// The number of distinct ones; only these are in the index, unlike in one of an earlier release, whose description lacks this number.
    distinct: usize,
    connectivity: usize,
    expansion_add: usize,
    /// The hash of the index file.
    file: Fingerprint,
}

/// The rows of the item matrix in an index.
struct Graph {
    index: Index,
    /// The further rows with the vector of a row in the index.
    alike: HashMap<u64, Vec<u64>>,
}

/// An index that is ready to be searched.
pub struct HnswSearch<'a> {
    graph: Graph,
    exact: &'a Recommender<'a>,
    answerer: &'a Answerer<'a>,
    recall: f64,
    histories: usize,
}

impl<'a> HnswSearch<'a> {
    /// Opens the index that is saved with the run, or builds and saves it, and measures its recall.
    pub fn open(
        context: &Context,
        run: &LoadedRun,
        answerer: &'a Answerer<'a>,
        exact: &'a Recommender<'a>,
    ) -> anyhow::Result<Self> {
        let items = answerer.scorer().items();
        ensure!(items.device().is_cpu(), "an index is searched on the CPU; set `run.device = \"cpu\"`");
        let (count, width) = items.dims2()?;
        let values: Vec<f32> = items.flatten_all()?.to_vec1()?;
        let of_dataset = count - run.catalogue.new_items;
        let DistinctRows { rows, alike } = DistinctRows::of(&values, width);
        let (own, added) = rows.split_at(rows.partition_point(|&row| row < of_dataset as u64));
        let index = of_rows(context, &values[..of_dataset * width], width, own)?;
        reserve(&index, rows.len())?;
        add(&index, &values, width, added)?;
        let mut own = Self { graph: Graph { index, alike }, exact, answerer, recall: 1.0, histories: 0 };
        own.measure(run)?;
        context.progress.log(format!("serve: {}", own.described()));
        if own.recall < LOW_RECALL {
            context.progress.warn(
                "serve",
                format!(
                    "the index finds only {:.1} % of the best items; `--index exact` finds all",
                    100.0 * own.recall
                ),
            );
        }
        Ok(own)
    }

    /// How candidates are found, in words.
    pub fn described(&self) -> String {
        format!("hnsw, recall@{RECALL_AT} {:.4} of {} histories", self.recall, self.histories)
    }

    /// recall@10 measured against the exact search.
    pub fn recall(&self) -> f64 {
        self.recall
    }

    /// Measures the share of the exact top ten that the index finds, on histories of the dataset that are evenly spaced.
    fn measure(&mut self, run: &LoadedRun) -> anyhow::Result<()> {
        let sequences = &run.trained.inputs.sequences;
        let step = sequences.user_count().div_ceil(MEASURED).max(1);
        let users = (0..sequences.user_count()).step_by(step).filter(|&user| !sequences.of(user).is_empty());
        let queries: Vec<ListQuery<'_>> = users
            .map(|user| ListQuery {
                query: Query { user: Some(user as u32), history: sequences.of(user) },
                target: None,
                k: RECALL_AT,
                candidates: CandidateItems::default(),
            })
            .collect();
        if queries.is_empty() {
            return Ok(());
        }
        let (exact, found) = (self.exact.search(&queries)?, self.search(&queries)?);
        let hits = |(exact, found): (&Vec<Scored>, &Vec<Scored>)| {
            exact.iter().filter(|(item, _)| found.iter().any(|(other, _)| other == item)).count()
        };
        let expected: usize = exact.iter().map(Vec::len).sum();
        self.recall = exact.iter().zip(&found).map(hits).sum::<usize>() as f64 / expected.max(1) as f64;
        self.histories = queries.len();
        Ok(())
    }
}

/// The rows of the item matrix with different vectors.
struct DistinctRows {
    /// The first row with each vector, ascending.
    rows: Vec<u64>,
    /// The further rows with the vector of one of these.
    alike: HashMap<u64, Vec<u64>>,
}

impl DistinctRows {
    fn of(values: &[f32], width: usize) -> Self {
        let bits: Vec<u32> = values.iter().map(|value| value.to_bits()).collect();
        let mut first: HashMap<&[u32], u64> = HashMap::with_capacity(bits.len() / width);
        let (mut rows, mut alike) = (Vec::new(), HashMap::<u64, Vec<u64>>::new());
        for (row, vector) in (0..).zip(bits.chunks_exact(width)) {
            let representative = *first.entry(vector).or_insert(row);
            if representative == row {
                rows.push(row);
            } else {
                alike.entry(representative).or_default().push(row);
            }
        }
        Self { rows, alike }
    }
}

impl Graph {
    /// The best candidates for a query, given its vectors one after the other. They may be fewer than there are.
    fn best(
        &self,
        blocks: &ScoreBlocks,
        vectors: &[f32],
        query: &ListQuery<'_>,
    ) -> Result<Vec<Scored>, RecommendError> {
        let width = self.index.dimensions();
        let wanted = query.k + query.candidates.removed.len();
        let mut found: Vec<u32> = Vec::new();
        for vector in vectors.chunks_exact(width) {
            let matches = self.index.search(vector, wanted).map_err(|e| RecommendError::Index(e.to_string()))?;
            for key in matches.keys {
                let alike = self.alike.get(&key).into_iter().flatten().copied();
                found.extend(std::iter::once(key).chain(alike).map(|row| row as u32 + 1));
            }
        }
        found.sort_unstable();
        found.dedup();
        let score = |item: u32| {
            let scores = vectors.chunks_exact(width).filter_map(|vector| blocks.score(vector, item as usize - 1));
            scores.fold(f32::NEG_INFINITY, f32::max)
        };
        let listed = found.into_iter().filter(|&item| query.candidates.has(item));
        let mut list: Vec<Scored> = listed.map(|item| (item, score(item))).collect();
        list.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        list.truncate(query.k);
        Ok(list)
    }
}

/// Queries with a list of allowed items use the exact search, because a graph of all items does not help there.
impl Search for HnswSearch<'_> {
    fn search(&self, queries: &[ListQuery<'_>]) -> Result<Vec<Vec<Scored>>, RecommendError> {
        if queries.iter().any(|query| query.candidates.allowed.is_some()) {
            let one = |query: &ListQuery<'_>| match query.candidates.allowed {
                Some(_) => self.exact.search(std::slice::from_ref(query)),
                None => self.search(std::slice::from_ref(query)),
            };
            let lists = queries.iter().map(one).collect::<Result<Vec<_>, _>>()?;
            return Ok(lists.into_iter().flatten().collect());
        }
        let scorer = self.answerer.scorer();
        let own: Vec<Query<'_>> = queries.iter().map(|query| query.query).collect();
        let vectors = query_vectors(scorer, &own)?;
        let width = vectors.dim(1)?;
        let values: Vec<f32> = vectors.flatten_all()?.to_vec1()?;
        let each = values.par_chunks_exact(width * scorer.interests()).zip(queries);
        let (graph, blocks) = (&self.graph, self.exact.blocks());
        let mut lists: Vec<Vec<Scored>> =
            each.map(|(vectors, query)| graph.best(blocks, vectors, query)).collect::<Result<_, _>>()?;
        let items = scorer.items().dim(0)?;
        for (list, query) in lists.iter_mut().zip(queries) {
            // A graph may not lead to all of its items.
            if list.len() < query.k.min(items - query.candidates.removed.len()) {
                *list = self.exact.search(std::slice::from_ref(query))?.swap_remove(0);
            }
        }
        Ok(lists)
    }
}

fn options(width: usize) -> IndexOptions {
    IndexOptions {
        dimensions: width,
        metric: MetricKind::IP,
        quantization: ScalarKind::F32,
        connectivity: CONNECTIVITY,
        expansion_add: EXPANSION_ADD,
        expansion_search: EXPANSION_SEARCH,
        multi: false,
    }
}

/// The index of the dataset's rows, of which `distinct` have different vectors: loaded from the run's folder, or built and saved there. An
/// index that cannot be saved is used from memory, with a warning.
fn of_rows(context: &Context, values: &[f32], width: usize, distinct: &[u64]) -> anyhow::Result<Index> {
    let (path, about_path) = paths(context);
    let rows = values.len() / width;
    let index = Index::new(&options(width)).context("failed to create an index")?;
    let mut about = IndexAbout {
        matrix: hash(values),
        rows,
        distinct: distinct.len(),
        connectivity: CONNECTIVITY,
        expansion_add: EXPANSION_ADD,
        file: Fingerprint::of_bytes(&[]),
    };
    if let Some(saved) = read_about(&about_path) {
        about.file = saved.file.clone();
        // usearch trusts the content, so it must be exactly what was written, even if another service writes the file now.
        let content = files::read(&path).ok().filter(|content| Fingerprint::of_bytes(content) == saved.file);
        if let Some(content) = content.as_ref().filter(|_| about == saved) {
            let read = index.load_from_buffer(content);
            read.with_context(|| format!("failed to read the index `{}`; remove it", path.display()))?;
            index.change_expansion_search(EXPANSION_SEARCH);
            context.progress.log(format!("serve: index of {rows} items from `{}`", path.display()));
            return Ok(index);
        }
        let why = if content.is_some() { "belongs to another run or to other items" } else { "is damaged or missing" };
        context.progress.log(format!("serve: the index `{}` {why}; it is rebuilt", path.display()));
    }
    reserve(&index, distinct.len())?;
    add(&index, values, width, distinct)?;
    if let Err(error) = save(context, &index, about) {
        let error = error_chain(&error);
        context
            .progress
            .warn("serve", format!("the index is kept in memory only, because it could not be saved: {error}"));
    }
    Ok(index)
}

/// Saves an index with the run. Other services that use the run may do so at the same time; one of them saves its own.
fn save(context: &Context, index: &Index, mut about: IndexAbout) -> anyhow::Result<()> {
    let (path, about_path) = paths(context);
    let _lock = match Lock::acquire(&context.layout.run(), LOCK) {
        Err(mp4sr_artifact::Error::Locked { .. }) => return Ok(()),
        lock => lock?,
    };
    files::remove_if_present(&about_path)?;
    let temporary = path.with_extension("unfinished");
    let name = temporary.to_str().with_context(|| format!("the path `{}` is not UTF-8", temporary.display()))?;
    let written = index.save(name).with_context(|| format!("failed to write the index `{}`", temporary.display()));
    let published = written.and_then(|()| {
        about.file = Fingerprint::of_file(&temporary)?;
        Ok(files::publish(&temporary, &path)?)
    });
    if published.is_err() {
        // What was written may be what fills the disk.
        files::remove_if_present(&temporary)?;
    }
    published?;
    Ok(files::write_json(&about_path, &about)?)
}

/// The paths of the index of a run and of the description of what it was built from.
fn paths(context: &Context) -> (PathBuf, PathBuf) {
    let run = context.layout.run();
    (run.join("index.usearch"), run.join("index.json"))
}

fn read_about(path: &Path) -> Option<IndexAbout> {
    files::read(path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok())
}

fn hash(values: &[f32]) -> Fingerprint {
    let mut hasher = blake3::Hasher::new();
    for chunk in values.chunks(1 << 16) {
        hasher.update(&chunk.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>());
    }
    Fingerprint::of_bytes(hasher.finalize().as_bytes())
}

/// Reserves memory for this number of rows. By default, the library allows only as many threads as there are cores, and rayon may have more.
fn reserve(index: &Index, rows: usize) -> anyhow::Result<()> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = rayon::current_num_threads().max(cores);
    index.reserve_capacity_and_threads(rows, threads).context("failed to reserve memory for the index")
}

/// Adds rows of the item matrix to the index, with their 0-based row numbers as keys.
fn add(index: &Index, values: &[f32], width: usize, rows: &[u64]) -> anyhow::Result<()> {
    rows.into_par_iter().try_for_each(|&row| {
        let vector = &values[row as usize * width..(row as usize + 1) * width];
        index.add(row, vector).with_context(|| format!("failed to add item {} to the index", row + 1))
    })
}
