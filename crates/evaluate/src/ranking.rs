use mp4sr_models::{Error, Scorer};
use mp4sr_run::{Case, Split};
use rayon::prelude::*;

use crate::rank::BadScore;

/// Users scored at once, and whether items of the history are candidates.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Protocol {
    /// Users scored at once.
    pub batch: usize,
    /// Whether a history's items are removed from the candidates.
    pub remove_seen: bool,
}

/// What can go wrong while ranking.
#[derive(Debug, thiserror::Error)]
pub enum RankError {
    /// A score that is no number.
    #[error("user {user}: {source}; the model is not usable, train it again with a smaller learning rate")]
    Score {
        /// The user, 1-based.
        user: usize,
        /// Which item, which score.
        source: BadScore,
    },
    /// The model failed.
    #[error(transparent)]
    Model(#[from] Error),
}

/// One rank a user; 0 for a user whose sequence is too short for the split.
pub type Ranks = Vec<u32>;

/// Ranks the target of every user among all items. `sequence(u)` is the whole sequence of user u (0-based); of it only what
/// the split allows is read.
pub fn rank_users<'a>(
    scorer: &dyn Scorer,
    users: usize,
    sequence: impl Fn(usize) -> &'a [u32],
    split: Split,
    protocol: Protocol,
    mut progress: impl FnMut(u64),
) -> Result<Ranks, RankError> {
    let cases: Vec<(usize, Case<'a>)> =
        (0..users).filter_map(|user| Case::of(sequence(user), split).map(|case| (user, case))).collect();
    let mut ranks = vec![0; users];
    let items = scorer.items().t()?.contiguous()?;
    for block in cases.chunks(protocol.batch) {
        let histories: Vec<&[u32]> = block.iter().map(|(_, case)| case.history).collect();
        let scores = mp4sr_ops::product(&scorer.sequences(&histories)?, &items)?;
        let count = scores.dim(1)?;
        let scores = scores.flatten_all()?.to_vec1::<f32>()?;
        let found: Vec<Result<u32, RankError>> = scores
            .par_chunks(count)
            .zip(block)
            .map(|(scores, (user, case))| {
                let seen = |item: u32| protocol.remove_seen && case.history.contains(&item);
                crate::rank(scores, case.target, seen).map_err(|source| RankError::Score { user: user + 1, source })
            })
            .collect();
        for ((user, _), rank) in block.iter().zip(found) {
            ranks[*user] = rank?;
        }
        progress(block.len() as u64);
    }
    Ok(ranks)
}
