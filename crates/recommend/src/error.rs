//! The errors of recommending.

use mp4sr_models::Error;

/// The errors of recommending.
#[derive(Debug, thiserror::Error)]
pub enum RecommendError {
    /// A score is not a finite number.
    #[error(
        "the score of item {item} for history {history} is {score}, so the model cannot be used; train it again with a smaller learning rate"
    )]
    Score {
        /// The index of the history, from 0.
        history: usize,
        /// The item, 1-based.
        item: usize,
        /// The item's score.
        score: f32,
    },
    /// The model ranks by users of the dataset, and this user is not one of them.
    #[error(
        "{who} has no training event in the dataset, and `{model}` ranks only for users of its training; use a \
         model that reads histories, or train on a dataset with such events"
    )]
    UnknownUser {
        /// A description of the user.
        who: String,
        /// The model's name in the configuration.
        model: String,
    },
    /// The request selects candidates, and no item is among them.
    #[error(
        "the items to list and those to exclude leave none of the {items} items of the run; relax these conditions"
    )]
    NoCandidate {
        /// I, the number of items of the run.
        items: usize,
    },
    /// The index could not be searched.
    #[error("the index cannot be searched ({0}); remove `index.usearch` from the run, so that it is rebuilt")]
    Index(String),
    /// The model failed.
    #[error(transparent)]
    Model(#[from] Error),
}
