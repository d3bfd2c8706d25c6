//! Which fields of which form of raw data mean what.

mod clock;
mod events;
mod form;
mod ids;
mod items;
mod named;
mod values;

pub use clock::Clock;
pub use events::{Budget, Events, count as count_events};
pub use form::SourceForm;
pub use ids::{Ids, UserIds, names_of};
#[cfg(test)]
pub use items::ItemRecord;
pub use items::{Catalogue, Reading, count as count_items, item_ids};
pub use named::{NamedFrame, TextPlace};
