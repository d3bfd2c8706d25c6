//! The rank of each user's target among all candidates.

use std::borrow::Cow;
use std::ops::Range;

use mp4sr_models::{Error, ProcessGroup, Query, Scorer};
use mp4sr_ops::{Removed, ScoreBlocks, count_at_least};
use mp4sr_protocol::{BadScore, EvalCase};

/// How users are ranked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RankOptions {
    /// The number of users that are scored at once.
    pub batch: usize,
    /// Whether a history's items are removed from the candidates.
    pub remove_seen: bool,
    /// The number of last events of every history that the model is given, as if there were no others and the users were new; `None` for
    /// all events. Only models that rank for new users can do without all events.
    pub history: Option<usize>,
}

/// An error that ended the ranking.
#[derive(Debug, thiserror::Error)]
pub enum RankError {
    /// A score that is not a finite number.
    #[error("user {user}: {source}, so the model cannot be used; train it again with a smaller learning rate")]
    Score {
        /// The user, 1-based.
        user: usize,
        /// The item and its score.
        source: BadScore,
    },
    /// The model failed.
    #[error(transparent)]
    Model(#[from] Error),
}

/// One rank per user; 0 for a user without a target in the evaluated set.
pub type Ranks = Vec<u32>;

/// Ranks the target of every user among all candidates. Blocks of users are scored against blocks of items, so that the scores are never
/// all held at once and the memory beyond the item matrix does not grow with the catalogue. `case(user)` is the case of user `user`
/// (0-based); a user without a case has the rank 0. `progress` is called with the number of users of each finished block.
///
/// ```
/// use mp4sr_evaluate::{RankOptions, rank_users};
/// use mp4sr_protocol::{EvalCase, Split};
/// # use mp4sr_artifact::{Sequences, hash_ids};
/// # use mp4sr_pipeline::Config;
/// # use mp4sr_run::{Inputs, build_model, last_phase, model_catalog};
///
/// # let text = "[dataset]\nname = \"shop\"\n[model]\nname = \"popularity\"";
/// # let (config, _) = Config::parse(text, "example", &[], model_catalog())?;
/// # let sequences = Sequences {
/// #     offsets: vec![0, 4, 8],
/// #     items: vec![2, 3, 1, 3, 2, 1, 1, 3],
/// #     times: vec![1, 2, 3, 4, 1, 2, 3, 4],
/// #     item_hash: hash_ids(["cup", "pot", "pan"]),
/// #     item_count: 3,
/// #     user_hash: None,
/// #     time_kind: mp4sr_artifact::TimeKind::Unstated,
/// #     parts: None,
/// # };
/// # let inputs = Inputs { sequences: sequences.clone(), modalities: Vec::new(), encoders: Default::default(), categories: None };
/// # let model = build_model(&config, &inputs)?;
/// # let scorer = model.scorer(last_phase(model.as_ref())?)?;
/// // `scorer` is that of a `mp4sr_run::TrainedModel`, and `sequences` are those that it was trained on.
/// let options = RankOptions { batch: 256, remove_seen: false, history: None };
/// let users = sequences.user_count();
/// let ranks = rank_users(scorer.as_ref(), users, |user| EvalCase::of(&sequences, user, Split::Test), options, |_| ())?;
/// assert_eq!(ranks, [3, 3], "both targets are item 3, which occurs least often or as often as another");
/// # Ok::<(), anyhow::Error>(())
/// ```
pub fn rank_users<'a>(
    scorer: &dyn Scorer,
    users: usize,
    case: impl Fn(usize) -> Option<EvalCase<'a>>,
    options: RankOptions,
    mut progress: impl FnMut(u64),
) -> Result<Ranks, RankError> {
    let cases = cases(users, case, options);
    let mut ranks = vec![0; users];
    let (blocks, interests) = (ScoreBlocks::new(scorer.items())?, scorer.interests());
    for chunk in cases.chunks(options.batch) {
        let block = &*of_several_rows(chunk);
        let vectors = scorer.queries(&queries(block, options))?;
        let targets: Vec<u32> = block.iter().map(|(_, case)| case.target - 1).collect();
        let counted = match interests {
            1 => blocks.count_ahead(&vectors, &targets, &removed(block, options))?,
            _ => None,
        };
        if let Some(counted) = counted {
            block.iter().zip(counted).for_each(|((user, _), ahead)| ranks[*user] = ahead + 1);
            progress(chunk.len() as u64);
            continue;
        }
        let mut states: Vec<RankState> = vectors
            .to_vec2::<f32>()?
            .chunks(interests)
            .zip(block)
            .map(|(vectors, (_, case))| {
                RankState::new(score(&blocks, vectors, case.target as usize - 1), case, options)
            })
            .collect();
        blocks.scan(&vectors, interests, &mut states, RankState::visit)?;
        // If the score of a target was rounded differently in its block, the others must be compared with the score in the block, in a
        // second scan.
        if states.iter().any(|state| state.own.to_bits() != state.found.to_bits()) {
            states.iter_mut().for_each(RankState::again);
            blocks.scan(&vectors, interests, &mut states, RankState::visit)?;
        }
        for ((user, _), state) in block.iter().zip(states) {
            ranks[*user] = match state.bad {
                Some(source) => return Err(RankError::Score { user: user + 1, source }),
                None => state.ahead + 1,
            };
        }
        progress(chunk.len() as u64);
    }
    Ok(ranks)
}

/// Like [`rank_users`], computed by a group of processes, each of which scores the queries of all users against its own share of the items.
/// `scorer` is that of a model that the group computes together. This is a collective operation: every process gets all ranks.
pub fn rank_users_in_group<'a>(
    group: &ProcessGroup,
    scorer: &dyn Scorer,
    users: usize,
    case: impl Fn(usize) -> Option<EvalCase<'a>>,
    options: RankOptions,
) -> Result<Ranks, RankError> {
    let cases = cases(users, case, options);
    let mut ranks = vec![0; users];
    let (blocks, interests, first) = (ScoreBlocks::new(scorer.items())?, scorer.interests(), scorer.first_item());
    let own = first..first + blocks.count();
    for chunk in cases.chunks(options.batch) {
        let block = &*of_several_rows(chunk);
        let vectors = scorer.queries(&queries(block, options))?;
        let rows = vectors.to_vec2::<f32>()?;
        let target_score = |(vectors, (_, case)): (&[Vec<f32>], &(usize, EvalCase<'a>))| {
            let target = case.target as usize - 1;
            if own.contains(&target) { f64::from(score(&blocks, vectors, target - first)) } else { 0.0 }
        };
        // The score of each target comes from the process that has the item; the other processes contribute zeros.
        let targets: Vec<f64> = rows.chunks(interests).zip(block).map(target_score).collect();
        let targets = sums(&group.scalars(&targets)?);
        let states = targets.iter().zip(block).map(|(&own, (_, case))| RankState::new(own as f32, case, options));
        let mut states: Vec<RankState> = states.collect();
        let scan = |states: &mut [RankState]| -> Result<Vec<Counted>, Error> {
            blocks.scan(&vectors, interests, states, |state, at, scores| state.visit(first + at, scores))?;
            let counted: Vec<f64> = states.iter().flat_map(|state| state.counted(&own)).collect();
            let of_all = group.scalars(&counted)?;
            Ok((0..states.len()).map(|index| Counted::of(&of_all, index)).collect())
        };
        let mut counted = scan(&mut states)?;
        if counted.iter().any(|counted| counted.is_rounded_otherwise) {
            for (state, counted) in states.iter_mut().zip(&counted) {
                state.found = counted.found;
                state.again();
            }
            counted = scan(&mut states)?;
        }
        for ((user, _), counted) in block.iter().zip(counted) {
            ranks[*user] = match counted.bad {
                Some(source) => return Err(RankError::Score { user: user + 1, source }),
                None => counted.ahead + 1,
            };
        }
    }
    Ok(ranks)
}

/// Sums the values of all processes element by element.
fn sums(of_all: &[Vec<f64>]) -> Vec<f64> {
    let indices = 0..of_all.first().map_or(0, Vec::len);
    indices.map(|at| of_all.iter().map(|of| of[at]).sum()).collect()
}

/// The number of values that a process reports about a [`RankState`].
const COUNTED: usize = 5;

/// The counts of all processes of a group about the rank of one target.
struct Counted {
    ahead: u32,
    /// The target's score in its block.
    found: f32,
    /// Whether `found` differs from the score that the candidates were compared with.
    is_rounded_otherwise: bool,
    bad: Option<BadScore>,
}

impl Counted {
    /// Combines the reports of all processes, in the order of their items, about the state at `index`.
    fn of(of_all: &[Vec<f64>], index: usize) -> Self {
        let of_state = || of_all.iter().map(|of| &of[COUNTED * index..][..COUNTED]);
        let sum = |at: usize| of_state().map(|of| of[at]).sum::<f64>();
        let bad = of_state().find(|of| of[3] > 0.0);
        Self {
            ahead: sum(0) as u32,
            found: sum(1) as f32,
            is_rounded_otherwise: sum(2) > 0.0,
            bad: bad.map(|of| BadScore { item: of[3] as u32, score: of[4] as f32 }),
        }
    }
}

/// The users that are ranked, each with the part of the case that the model is given.
fn cases<'a>(
    users: usize,
    case: impl Fn(usize) -> Option<EvalCase<'a>>,
    options: RankOptions,
) -> Vec<(usize, EvalCase<'a>)> {
    (0..users).filter_map(|user| Some((user, shown(case(user)?, options.history)))).collect()
}

/// The block that is computed for a chunk of the cases. A product of a single row is summed in another order than one of several, so a single
/// user is computed twice: ranks must not depend on how users are divided among blocks and shards.
fn of_several_rows<'c, 'a>(chunk: &'c [(usize, EvalCase<'a>)]) -> Cow<'c, [(usize, EvalCase<'a>)]> {
    match chunk {
        [only] => Cow::Owned(vec![*only; 2]),
        _ => Cow::Borrowed(chunk),
    }
}

/// The queries of a block. Users whose history is shortened count as new users, because what training learned about them would reveal more
/// than the history.
fn queries<'a>(block: &[(usize, EvalCase<'a>)], options: RankOptions) -> Vec<Query<'a>> {
    let user = |user: usize| options.history.is_none().then_some(user as u32);
    block.iter().map(|(row, case)| Query { user: user(*row), history: case.history }).collect()
}

/// The score of a single item: the greatest over the vectors of a query.
fn score(blocks: &ScoreBlocks, vectors: &[Vec<f32>], column: usize) -> f32 {
    vectors.iter().filter_map(|vector| blocks.score(vector, column)).fold(f32::NEG_INFINITY, f32::max)
}

fn shown(case: EvalCase<'_>, history: Option<usize>) -> EvalCase<'_> {
    let hidden = history.map_or(0, |shown| case.history.len().saturating_sub(shown));
    EvalCase { history: &case.history[hidden..], ..case }
}

/// The columns that are not candidates, for each case of a block.
fn removed(block: &[(usize, EvalCase<'_>)], options: RankOptions) -> Removed {
    let mut all = Removed { offsets: vec![0], columns: Vec::new() };
    for (_, case) in block {
        all.columns.extend(removed_columns(case, options).iter().map(|&column| column as u32));
        all.offsets.push(all.columns.len() as u32);
    }
    all
}

/// The columns of the items of the history that are excluded, ascending; never the target's.
fn removed_columns(case: &EvalCase<'_>, options: RankOptions) -> Vec<usize> {
    if !options.remove_seen {
        return Vec::new();
    }
    let others = case.history.iter().filter(|&&item| item != case.target);
    let mut removed: Vec<usize> = others.map(|&item| item as usize - 1).collect();
    removed.sort_unstable();
    removed.dedup();
    removed
}

/// The state of a target's rank while blocks of scores are scanned.
struct RankState {
    target: usize,
    /// The score that candidates are compared with: at first that of the target computed on its own.
    own: f32,
    /// The target's score in its block.
    found: f32,
    /// The number of candidates with a score of at least `own`, without the target.
    ahead: u32,
    /// Excluded items, ascending; never the target.
    removed: Vec<usize>,
    bad: Option<BadScore>,
}

impl RankState {
    fn new(own: f32, case: &EvalCase<'_>, options: RankOptions) -> Self {
        let removed = removed_columns(case, options);
        Self { target: case.target as usize - 1, own, found: own, ahead: 0, removed, bad: None }
    }

    fn again(&mut self) {
        (self.own, self.ahead) = (self.found, 0);
    }

    /// The values that a process with the items `own` reports.
    fn counted(&self, own: &Range<usize>) -> [f64; COUNTED] {
        let found = if own.contains(&self.target) { f64::from(self.found) } else { 0.0 };
        let is_rounded_otherwise = f64::from(u8::from(self.own.to_bits() != self.found.to_bits()));
        let (item, score) = self.bad.as_ref().map_or((0, 0.0), |bad| (bad.item, bad.score));
        [f64::from(self.ahead), found, is_rounded_otherwise, f64::from(item), f64::from(score)]
    }

    fn visit(&mut self, first: usize, scores: &[f32]) {
        if self.bad.is_some() {
            return;
        }
        let Some(ahead) = count_at_least(scores, self.own) else {
            let bad = scores.iter().position(|score| !score.is_finite());
            self.bad = bad.map(|at| BadScore { item: (first + at) as u32 + 1, score: scores[at] });
            return;
        };
        self.ahead += ahead;
        let within = |item: usize| item.checked_sub(first).filter(|&at| at < scores.len());
        if let Some(at) = within(self.target) {
            self.found = scores[at];
            self.ahead -= u32::from(self.found >= self.own);
        }
        let from = self.removed.partition_point(|&item| item < first);
        for at in self.removed[from..].iter().map_while(|&item| within(item)) {
            self.ahead -= u32::from(scores[at] >= self.own);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Tensor};
    use mp4sr_models::RngKey;
    use mp4sr_ops::run_threads;
    use proptest::prelude::*;

    /// A scorer of one process's share of the items, and the row of the first of them among all.
    struct Share(Fixed, usize);

    impl Scorer for Share {
        fn items(&self) -> &Tensor {
            self.0.items()
        }
        fn first_item(&self) -> usize {
            self.1
        }
        fn interests(&self) -> usize {
            self.0.interests()
        }
        fn queries(&self, queries: &[Query<'_>]) -> Result<Tensor, Error> {
            self.0.queries(queries)
        }
    }

    /// A scorer with fixed vectors: the items, the vectors of queries, and the number of interests.
    struct Fixed(Tensor, Tensor, usize);

    impl Scorer for Fixed {
        fn items(&self) -> &Tensor {
            &self.0
        }
        fn interests(&self) -> usize {
            self.2
        }
        fn queries(&self, queries: &[Query<'_>]) -> mp4sr_models::Result<Tensor> {
            // The first item of a history selects its vectors.
            let first = |query: &Query<'_>| query.history[0] as usize;
            let rows: Vec<u32> =
                queries.iter().flat_map(|q| (0..self.2).map(move |at| ((first(q) + 3 * at) % 7) as u32)).collect();
            self.1.index_select(&Tensor::from_vec(rows.clone(), rows.len(), &Device::Cpu)?, 0)
        }
    }

    /// Vectors with few distinct values, so that many scores are equal and all sums are exact in any order.
    fn coarse(seed: u64, rows: usize, d: usize, kinds: u64) -> Tensor {
        let values: Vec<f32> =
            (0..(rows * d) as u64).map(|i| (RngKey::new(seed).bits(i) % kinds) as f32 * 0.5 - 0.5).collect();
        Tensor::from_vec(values, (rows, d), &Device::Cpu).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        /// Compares the streaming ranking, by one process and by several, with counting over all scores at once.
        #[test]
        fn streaming_agrees_with_the_naive_ranking(
            items in prop_oneof![2usize..60, 1000usize..2600],
            d in 1usize..140,
            kinds in 2u64..5,
            users in 1usize..50,
            batch in 1usize..60,
            remove_seen: bool,
            history in prop::option::of(1usize..6),
            interests in 1usize..4,
            processes in 2usize..6,
            seed: u64,
        ) {
            let scorer = Fixed(coarse(seed, items, d, kinds), coarse(seed ^ 1, 7, d, kinds), interests);
            let sequences: Vec<Vec<u32>> = (0..users as u64)
                .map(|u| (0..=u % 9).map(|t| 1 + (RngKey::new(seed).fold_in_index(u).bits(t) % items as u64) as u32).collect())
                .collect();
            let options = RankOptions { batch, remove_seen, history };
            let found = rank_users(&scorer, users, |u| EvalCase::last_of(&sequences[u]), options, |_| ()).unwrap();
            if items >= processes {
                let by_group = run_threads(processes, |group| {
                    let share = group.share(items);
                    let own = scorer.0.narrow(0, share.start, share.len())?;
                    let own = Share(Fixed(own, scorer.1.clone(), interests), share.start);
                    let case = |u: usize| EvalCase::last_of(&sequences[u]);
                    rank_users_in_group(&group, &own, users, case, options).map_err(|e| Error::Msg(e.to_string()))
                });
                for ranks in by_group {
                    prop_assert_eq!(&ranks.unwrap(), &found, "by {} processes", processes);
                }
            }
            let columns = scorer.0.t().unwrap().contiguous().unwrap();
            for (sequence, found) in sequences.iter().zip(found) {
                // The expected rank is computed as if the sequence had no events before those that are kept.
                let known = &sequence[sequence.len() - history.map_or(sequence.len(), |n| sequence.len().min(n + 1))..];
                let Some(case) = EvalCase::last_of(known) else {
                    prop_assert_eq!(found, 0);
                    continue;
                };
                let scores = scorer.queries(&[Query::of_history(case.history)]).unwrap().matmul(&columns).unwrap();
                let scores = scores.max(0).unwrap().to_vec1::<f32>().unwrap();
                let seen = |item| remove_seen && case.history.contains(&item);
                prop_assert_eq!(found, mp4sr_protocol::rank(&scores, case.target, seen).unwrap());
            }
        }
    }

    /// A scorer that rounds a query on its own otherwise than several at once, much coarser than a product does.
    struct RoundsSingleRows(Fixed);

    impl Scorer for RoundsSingleRows {
        fn items(&self) -> &Tensor {
            self.0.items()
        }
        fn queries(&self, queries: &[Query<'_>]) -> Result<Tensor, Error> {
            let vectors = self.0.queries(queries)?;
            if queries.len() == 1 { Ok(vectors.neg()?) } else { Ok(vectors) }
        }
    }

    #[test]
    fn ranks_do_not_depend_on_how_users_are_divided_among_blocks() {
        let scorer = RoundsSingleRows(Fixed(coarse(1, 40, 5, 9), coarse(2, 7, 5, 9), 1));
        let histories = [[1, 2], [3, 4], [5, 6], [2, 9], [4, 1]];
        let ranks = |users: Range<usize>, batch| {
            let options = RankOptions { batch, remove_seen: false, history: None };
            let case = |user: usize| EvalCase::last_of(&histories[users.start + user]);
            let ranks = rank_users(&scorer, users.len(), case, options, |_| ()).unwrap();
            for other in run_threads(1, |group| {
                let ranks = rank_users_in_group(&group, &scorer, users.len(), case, options);
                ranks.map_err(|e| Error::Msg(e.to_string()))
            }) {
                assert_eq!(other.unwrap(), ranks);
            }
            ranks
        };
        let whole = ranks(0..5, 5);
        for batch in 1..5 {
            assert_eq!(ranks(0..5, batch), whole, "in blocks of {batch}");
        }
        assert_eq!(ranks(3..4, 5), whole[3..4], "as a shard");
    }

    #[test]
    fn a_score_that_is_not_finite_names_user_and_item() {
        let items = Tensor::new(&[[1f32], [2.0], [f32::NAN]], &Device::Cpu).unwrap();
        let scorer = Fixed(items, Tensor::ones((7, 1), candle_core::DType::F32, &Device::Cpu).unwrap(), 1);
        let options = RankOptions { batch: 4, remove_seen: false, history: None };
        let case = |_: usize| EvalCase::last_of(&[1, 2]);
        let error = rank_users(&scorer, 2, case, options, |_| ()).unwrap_err().to_string();
        assert!(error.contains("user 1") && error.contains("item 3"), "{error}");
        for other in run_threads(3, |group| {
            let own = scorer.0.narrow(0, group.rank(), 1)?;
            let own = Share(Fixed(own, scorer.1.clone(), 1), group.rank());
            Ok(rank_users_in_group(&group, &own, 2, case, options).unwrap_err().to_string())
        }) {
            assert_eq!(other.unwrap(), error);
        }
    }
}
