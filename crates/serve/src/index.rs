//! An HNSW index over the item matrix, for catalogues in which scoring every item takes too long.
//!
//! Malkov and Yashunin, Efficient and robust approximate nearest neighbor search using Hierarchical Navigable Small World graphs, 2018
//! (arXiv 1603.09320), in the implementation of usearch. The index finds candidates, whose scores are then computed exactly. The items of
//! the dataset are indexed once, and that index is saved with the run; added items are inserted when the index is opened.

use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use mp4sr_artifact::{Fingerprint, files};
use mp4sr_models::Query;
use mp4sr_ops::ScoreBlocks;
use mp4sr_pipeline::Context;
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
    connectivity: usize,
    expansion_add: usize,
    /// The hash of the index file.
    file: Fingerprint,
}

/// An index that is ready to be searched.
pub struct HnswSearch<'a> {
    index: Index,
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
        let index = of_rows(context, &values[..of_dataset * width], width)?;
        add(&index, &values, width, of_dataset..count)?;
        let mut own = Self { index, exact, answerer, recall: 1.0, histories: 0 };
        own.measure(run)?;
        context.progress.log(format!("serve: {}", own.described()));
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

/// The best candidates for a query, given its vectors one after the other.
fn best(
    index: &Index,
    blocks: &ScoreBlocks,
    vectors: &[f32],
    query: &ListQuery<'_>,
) -> Result<Vec<Scored>, RecommendError> {
    let width = index.dimensions();
    let wanted = query.k + query.candidates.removed.len();
    let mut found: Vec<u32> = Vec::new();
    for vector in vectors.chunks_exact(width) {
        let matches = index.search(vector, wanted).map_err(|e| RecommendError::Index(e.to_string()))?;
        found.extend(matches.keys.iter().map(|&key| key as u32 + 1));
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
        let vectors = scorer.queries(&own)?;
        let width = vectors.dim(1)?;
        let values: Vec<f32> = vectors.flatten_all()?.to_vec1()?;
        let each = values.par_chunks_exact(width * scorer.interests()).zip(queries);
        let (index, blocks) = (&self.index, self.exact.blocks());
        each.map(|(vectors, query)| best(index, blocks, vectors, query)).collect()
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

/// The index of the dataset's rows, either loaded from the run's folder, or built and saved there.
fn of_rows(context: &Context, values: &[f32], width: usize) -> anyhow::Result<Index> {
    let (path, about_path) = paths(context);
    let rows = values.len() / width;
    let matrix = hash(values);
    let index = Index::new(&options(width)).context("failed to create an index")?;
    let text = path.to_str().with_context(|| format!("the path `{}` is not UTF-8", path.display()))?;
    if let Some(saved) = read_about(&about_path) {
        let about = IndexAbout {
            matrix: matrix.clone(),
            rows,
            connectivity: CONNECTIVITY,
            expansion_add: EXPANSION_ADD,
            file: saved.file.clone(),
        };
        // usearch trusts the content of the file, so it must be exactly the file that was written.
        let is_whole = path.is_file() && Fingerprint::of_file(&path)? == saved.file;
        if about == saved && is_whole {
            index.load(text).with_context(|| format!("failed to read the index `{}`; remove it", path.display()))?;
            index.change_expansion_search(EXPANSION_SEARCH);
            context.progress.log(format!("serve: index of {rows} items from `{}`", path.display()));
            return Ok(index);
        }
        let why = if is_whole { "belongs to another run or to other items" } else { "is damaged" };
        context.progress.log(format!("serve: the index `{}` {why}; it is rebuilt", path.display()));
    }
    add(&index, values, width, 0..rows)?;
    files::remove_if_present(&about_path)?;
    let temporary = path.with_extension("unfinished");
    let name = temporary.to_str().with_context(|| format!("the path `{}` is not UTF-8", temporary.display()))?;
    index.save(name).with_context(|| format!("failed to write the index `{}`", temporary.display()))?;
    files::publish(&temporary, &path)?;
    let file = Fingerprint::of_file(&path)?;
    let about = IndexAbout { matrix, rows, connectivity: CONNECTIVITY, expansion_add: EXPANSION_ADD, file };
    files::write_json(&about_path, &about)?;
    Ok(index)
}

/// The paths of the index of a run and of the description of what it was built from.
fn paths(context: &Context) -> (PathBuf, PathBuf) {
    let run = context.layout.run();
    (run.join("index.usearch"), run.join("index.json"))
}

fn read_about(path: &std::path::Path) -> Option<IndexAbout> {
    files::read(path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok())
}

fn hash(values: &[f32]) -> Fingerprint {
    let mut hasher = blake3::Hasher::new();
    for chunk in values.chunks(1 << 16) {
        hasher.update(&chunk.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>());
    }
    Fingerprint::of_bytes(hasher.finalize().as_bytes())
}

/// Adds rows of the item matrix to the index, with their 0-based row numbers as keys.
fn add(index: &Index, values: &[f32], width: usize, rows: std::ops::Range<usize>) -> anyhow::Result<()> {
    index.reserve(rows.end).context("failed to reserve memory for the index")?;
    rows.into_par_iter().try_for_each(|row| {
        let vector = &values[row * width..(row + 1) * width];
        index.add(row as u64, vector).with_context(|| format!("failed to add item {} to the index", row + 1))
    })
}
