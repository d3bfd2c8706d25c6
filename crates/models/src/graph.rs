//! The shared parts of general models: the graph of the training set, Bayesian personalised ranking, scores of users.

use std::cell::OnceCell;
use std::sync::Arc;

use candle_core::{D, Tensor};
use mp4sr_ops::plain::softplus;
use mp4sr_ops::{Edges, Error, Result, SparseEntry, SparseMatrix, gather};

use crate::data::distinct;
use crate::{Data, Query, Scorer, TrainingSequences, trace};

/// The distinct items of every user's training events as rows, from 0, ascending.
pub(crate) fn items_of_users(data: &Data) -> Vec<Vec<u32>> {
    let own = |user: usize| distinct(data.training.of(user)).into_iter().map(|item| item - 1).collect();
    (0..data.training.users()).map(own).collect()
}

/// The edges between users and items, one per distinct pair in the training set; users are the rows.
pub(crate) fn edges(data: &Data) -> Result<Edges> {
    Edges::new(&items_of_users(data), data.items)
}

/// The graph of the training set over users, then items. Each distinct pair of user and item has an edge of weight 1 / sqrt(d_u d_i) in
/// both directions.
pub(crate) fn adjacency(data: &Data) -> Result<SparseMatrix> {
    let users = data.training.users();
    let items_of = items_of_users(data);
    let mut degree = vec![0u32; data.items];
    items_of.iter().flatten().for_each(|&item| degree[item as usize] += 1);
    let mut entries = Vec::new();
    for (user, items) in items_of.iter().enumerate() {
        for &item in items {
            let weight = 1.0 / (items.len() as f64 * f64::from(degree[item as usize])).sqrt();
            let (user, item, weight) = (user as u32, users as u32 + item, weight as f32);
            entries.push(SparseEntry { row: user, column: item, weight });
            entries.push(SparseEntry { row: item, column: user, weight });
        }
    }
    SparseMatrix::new(users + data.items, users + data.items, entries)
}

/// Converts items (1-based) to rows (from 0).
pub(crate) fn rows_of(items: &[u32]) -> Vec<u32> {
    items.iter().map(|item| item - 1).collect()
}

/// The mean of -log sigmoid(score(u, i) - score(u, j)) over events: `users` from 0, `positives` i and `negatives` j 1-based.
pub(crate) fn bpr(
    of_users: &Tensor,
    of_items: &Tensor,
    users: &[u32],
    positives: &[u32],
    negatives: &[u32],
) -> Result<Tensor> {
    let own = gather(of_users, users)?;
    let score = |items: &[u32]| (&own * gather(of_items, &rows_of(items))?)?.sum(D::Minus1);
    let (positive, negative) = (score(positives)?, score(negatives)?);
    trace::record(|| "positive".to_owned(), &positive);
    trace::record(|| "negative".to_owned(), &negative);
    softplus(&(negative - positive)?)?.mean_all()
}

/// Scores by the inner product of the trained vectors. The history of a user whom training has seen has no effect.
pub(crate) struct VectorScorer<'a> {
    title: &'static str,
    users: Tensor,
    items: Tensor,
    training: Arc<TrainingSequences>,
    fold_in: Option<Box<dyn Fn() -> Result<Tensor> + 'a>>,
    /// The result of `fold_in`.
    shares: OnceCell<Tensor>,
}

impl<'a> VectorScorer<'a> {
    /// The scorer of the model `title` with vectors of users `[U, k]` and items `[I, k]` that were trained on `training`.
    pub fn new(title: &'static str, users: &Tensor, items: &Tensor, training: &Arc<TrainingSequences>) -> Result<Self> {
        trace::record(|| "user_vectors".to_owned(), users);
        trace::record(|| "item_vectors".to_owned(), items);
        let (users, items) = (users.detach().contiguous()?, items.detach().contiguous()?);
        Ok(Self { title, users, items, training: training.clone(), fold_in: None, shares: OnceCell::new() })
    }

    /// Gives users whom training has not seen a vector too: the sum of the rows of `shares` `[I, k]` of their distinct items, divided by
    /// the square root of the number of these items. `shares` is called for the first such user.
    pub fn with_fold_in(self, shares: impl Fn() -> Result<Tensor> + 'a) -> Self {
        Self { fold_in: Some(Box::new(shares)), ..self }
    }

    /// The vector of an unseen user with these items, `[1, k]`.
    fn folded_in(&self, history: &[u32]) -> Result<Tensor> {
        let Some(fold_in) = &self.fold_in else {
            let title = self.title;
            return Err(Error::Msg(format!(
                "{title} has no vector for a user whom training has not seen; use a sequential model"
            )));
        };
        let shares = match self.shares.get() {
            Some(shares) => shares,
            None => {
                let shares = fold_in()?.detach().contiguous()?;
                self.shares.get_or_init(|| shares)
            }
        };
        let rows = rows_of(&distinct(history));
        gather(shares, &rows)?.sum_keepdim(0)? / (rows.len() as f64).sqrt()
    }
}

impl Scorer for VectorScorer<'_> {
    fn items(&self) -> &Tensor {
        &self.items
    }

    fn needs_known_user(&self) -> bool {
        self.fold_in.is_none()
    }

    fn has_seen(&self, user: u32) -> bool {
        (user as usize) < self.training.users() && !self.training.of(user as usize).is_empty()
    }

    fn queries(&self, queries: &[Query<'_>]) -> Result<Tensor> {
        let known = self.users.dim(0)?;
        // Without fold-in, a user without training events keeps the initial vector.
        let has_row = |user: u32| (user as usize) < known && (self.fold_in.is_none() || self.has_seen(user));
        let row = |query: &Query<'_>| query.user.filter(|&user| has_row(user));
        let rows: Vec<u32> = queries.iter().filter_map(row).collect();
        if rows.len() == queries.len() {
            return gather(&self.users, &rows);
        }
        let vector = |query: &Query<'_>| match row(query) {
            Some(user) => gather(&self.users, &[user]),
            None => self.folded_in(query.history),
        };
        Tensor::cat(&queries.iter().map(vector).collect::<Result<Vec<_>>>()?, 0)
    }
}
