//! Which fields of which form of raw data mean what.

mod clock;
mod events;
mod form;
mod items;
mod named;
mod values;

pub use clock::Clock;
pub use events::{Budget, Events, Ids, count as count_events};
pub use form::SourceForm;
#[cfg(test)]
pub use items::ItemRecord;
pub use items::{Catalogue, Reading, count as count_items};
pub use named::{NamedFrame, TextPlace};
