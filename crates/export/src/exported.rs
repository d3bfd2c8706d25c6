//! The run that is exported.

use mp4sr_pipeline::Context;
use mp4sr_recommend::{Answerer, LoadedRun};
use mp4sr_store::ItemStore;

use crate::histories::UserHistory;

/// The inputs of every format.
pub(crate) struct Export<'a> {
    /// The context of the run.
    pub context: &'a Context,
    /// The store of the items that were added to the run.
    pub store: &'a ItemStore,
    /// The run, with the added items.
    pub run: &'a LoadedRun,
    /// The run, ready to rank.
    pub answerer: &'a Answerer<'a>,
    /// The histories, one per user with at least one event.
    pub histories: &'a [UserHistory<'a>],
    /// The length of a list.
    pub top: usize,
}
