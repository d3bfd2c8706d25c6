//! The interface of recommenders for training, evaluation and recommendation: phases, batches, losses, scores.

use candle_core::Tensor;
use mp4sr_ops::{ProcessGroup, Result, RngKey};

use crate::{Batch, Buffers, Parameters, Query};

/// The phase that contrastive and self-supervised models start with.
pub const PRETRAIN: &str = "pretrain";
/// The phase whose weights rank the items; every model has it, and it comes last.
pub const FINETUNE: &str = "finetune";

/// A part of training with its own loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Phase {
    /// The name of the phase in files, messages and the configuration: [`PRETRAIN`] or [`FINETUNE`].
    pub name: &'static str,
    /// The kind of the training samples.
    pub samples: Samples,
    /// When the phase ends, and which epoch's weights are kept.
    pub stop: Stop,
}

impl Phase {
    /// A phase with early stopping that trains on every prefix of the training sequences.
    pub const fn of_prefixes(name: &'static str) -> Self {
        Self { name, samples: Samples::Prefixes, stop: Stop::Validation { warm_up: 0 } }
    }

    /// The only phase of a model that is ready as soon as it is built.
    pub const fn untrained() -> Self {
        Self { name: FINETUNE, samples: Samples::None, stop: Stop::Epochs }
    }
}

/// The kind of the training samples. They are taken only from the training set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Samples {
    /// Nothing is trained.
    None,
    /// Every prefix of a training sequence as the history and the item after it as the target.
    Prefixes,
    /// One sample per user: the user's whole training sequence as the history, without a target.
    Sequences {
        /// The minimum number of events for which a user gives a sample.
        at_least: usize,
        /// What the batch size counts.
        batch: BatchUnit,
    },
    /// Every training event: a user and an item, the target, without a history.
    Events,
}

/// What the batch size of [`Samples::Sequences`] counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchUnit {
    /// Sequences.
    Sequences,
    /// Pairs of neighbouring events: sequences are added to a batch until it holds at least this number of pairs.
    Pairs,
}

/// When a phase ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// After `patience` epochs without a better validation metric. The best epoch's weights are kept.
    Validation {
        /// The number of initial epochs that neither count for patience nor compete; the search for the best epoch starts after them.
        warm_up: usize,
    },
    /// After all epochs, without validation. The last epoch's weights are kept.
    Epochs,
}

/// The position of a step in training, and the keys of its random draws.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// The epoch, from 1.
    pub epoch: usize,
    /// The number of the step in its epoch, from 0.
    pub index: usize,
    /// The number of the step in its phase, from 0.
    pub global: u64,
    /// The key of all draws that belong to the epoch.
    pub epoch_key: RngKey,
    /// The key of all draws that belong to the step.
    pub key: RngKey,
}

/// A recommender.
///
/// ```
/// use mp4sr_models::{Batch, Device, Model, Query, RngKey, SasRec, Step, TransformerConfig};
///
/// let config = TransformerConfig { width: 8, feed_forward: 8, ..TransformerConfig::default() };
/// let model = SasRec::new(config, 3, &Device::Cpu, RngKey::new(2020))?;
/// let phase = model.phases()[0];
///
/// // Training differentiates the loss of a batch; here, item 3 follows the items 1 and 2.
/// let batch = Batch::of_histories([(&[1, 2][..], 3)], model.max_sequence_length())?;
/// let key = RngKey::new(1);
/// let step = Step { epoch: 1, index: 0, global: 0, epoch_key: key, key };
/// let loss = model.loss(&phase, &batch, &step)?.to_scalar::<f32>()?;
/// assert!((loss - 1.0986).abs() < 0.3, "ln 3: an untrained model finds the three items almost equally likely");
///
/// // Ranking multiplies the vectors of queries by those of the items.
/// let scorer = model.scorer(&phase)?;
/// let scores = scorer.queries(&[Query::of_history(&[1, 2])])?.matmul(&scorer.items().t()?)?;
/// assert_eq!(scores.dims(), [1, 3]);
/// # Ok::<(), mp4sr_models::Error>(())
/// ```
pub trait Model {
    /// The named parameters, in a fixed order.
    fn parameters(&self) -> &Parameters;

    /// The state that steps change but the optimiser does not, such as memory banks. An unfinished phase saves and restores it with the
    /// parameters, and checkpoints store it; a later phase begins with the buffers of a new model.
    fn buffers(&self) -> Option<&Buffers> {
        None
    }

    /// The phases in order; the weights of the last one rank the items.
    fn phases(&self) -> &[Phase];

    /// Whether `phase` uses the parameter, and so stores it.
    fn uses(&self, _phase: &Phase, _parameter: &str) -> bool {
        true
    }

    /// Whether `phase` trains the parameter. A parameter that is used but not trained keeps its values from the previous phase.
    fn trains(&self, phase: &Phase, parameter: &str) -> bool {
        self.uses(phase, parameter)
    }

    /// Whether a stored parameter has no effect on the model, in which case checkpoints of other programs may or may not contain it.
    fn has_no_effect(&self, _parameter: &str) -> bool {
        false
    }

    /// The maximum number of items that the model reads: the most recent ones of a history.
    fn max_sequence_length(&self) -> usize {
        usize::MAX
    }

    /// The maximum number of items of a training sample that the model is given: the most recent ones. It is larger than the number that it
    /// reads if whole sequences end with an item that is only a target.
    fn training_sequence_length(&self) -> usize {
        self.max_sequence_length()
    }

    /// The processes that compute the model together; `None` if this process computes it alone.
    fn group(&self) -> Option<&ProcessGroup> {
        None
    }

    /// The loss of a batch, a scalar to differentiate. Every random draw comes from the keys of `step`. In a group, every process is given
    /// the whole batch, and the loss is the sum of the values that the processes return; computing it and its gradient are collective
    /// operations.
    fn loss(&self, phase: &Phase, batch: &Batch, step: &Step) -> Result<Tensor>;

    /// Called after the optimiser has taken a step. Buffers change only here.
    fn after_step(&self, _phase: &Phase, _batch: &Batch, _step: &Step) -> Result<()> {
        Ok(())
    }

    /// The model with the weights that `phase` leaves, ready to rank; nothing is dropped or drawn. Values that depend on all users and
    /// items, such as the propagation over a graph, are computed once, here.
    fn scorer(&self, phase: &Phase) -> Result<Box<dyn Scorer + '_>>;

    /// Whether the order of a history matters. If it does not, items of the history are removed from the candidates by default.
    fn is_sequential(&self) -> bool {
        true
    }

    /// Whether the model has parameters of its own for every user, so that its weights fit only the users of training, in their order.
    fn has_user_vectors(&self) -> bool {
        false
    }
}

/// The scorer of `phase` for a dataset of `items` items. Returns an error if it has another number of rows or no interest: items would be
/// ranked by the scores of others.
pub fn scorer_of<'m>(model: &'m dyn Model, phase: &Phase, items: usize) -> Result<Box<dyn Scorer + 'm>> {
    let scorer = model.scorer(phase)?;
    let (first, dims) = (scorer.first_item(), scorer.items().dims().to_vec());
    let fits = match dims[..] {
        [rows, _] if model.group().is_none() => first == 0 && rows == items,
        [rows, _] => first + rows <= items,
        _ => false,
    };
    if !fits {
        candle_core::bail!(
            "the scorer of the model has an item matrix of {dims:?}, expected a row for each of {items} items; correct the model"
        );
    }
    if scorer.interests() == 0 {
        candle_core::bail!(
            "the scorer of the model has no interest per query, expected at least one; correct the model"
        );
    }
    Ok(scorer)
}

/// The vectors of queries, `[B interests, k]`. A product of a single row is summed in another order than one of several, so a single query is
/// computed twice: vectors must not depend on how many others are computed with them.
pub fn query_vectors(scorer: &dyn Scorer, queries: &[Query<'_>]) -> Result<Tensor> {
    match queries {
        [only] => scorer.queries(&[*only; 2])?.narrow(0, 0, scorer.interests()),
        _ => scorer.queries(queries),
    }
}

/// Scores of items: an item's score is its inner product with the query, or the greatest of those with the query's interests.
///
/// If a group of processes computes the model, every process has a scorer for its own share of the items. Then [`queries`](Self::queries)
/// is a collective operation: all processes pass the same queries, and every process gets the vectors of all.
pub trait Scorer {
    /// The item matrix, `[I, k]`: row i-1 is item i. In a group, it has only the rows of this process's share.
    fn items(&self) -> &Tensor;

    /// The row of the first of these items among all items; 0 unless this process has only a share of them.
    fn first_item(&self) -> usize {
        0
    }

    /// The number of interests per query.
    fn interests(&self) -> usize {
        1
    }

    /// Whether only users whom training has seen can be ranked for; otherwise a history is enough.
    fn needs_known_user(&self) -> bool {
        false
    }

    /// Whether training has seen this user (from 0), which matters only if [`needs_known_user`](Self::needs_known_user).
    fn has_seen(&self, _user: u32) -> bool {
        true
    }

    /// The vectors of queries, `[B interests, k]`, with the interests of a query one after the other. Histories are not empty.
    fn queries(&self, queries: &[Query<'_>]) -> Result<Tensor>;
}
