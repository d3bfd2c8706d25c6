//! Adds items to a trained run, which can then list them and read them in histories without further training.
//!
//! The crate takes raw items, in the format of the pipeline or as records. It computes features with the dataset's encoders, dictionary
//! and cache, and writes them with an item table to the store that `serve.store` names: to rows of PostgreSQL, or to the run's folder
//! `new-items/`, as an immutable generation that is only replaced as a whole. It must not know scores, lists or HTTP.

mod alone;
mod checks;
pub mod command;
mod editor;
mod leftovers;
mod new_files;
mod records;

pub use alone::encode_alone;
pub use editor::{Added, Approve, Editor, check_removal};
pub use new_files::check_files;
pub use records::ItemRecord;
