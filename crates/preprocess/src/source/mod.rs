//! The meaning of the fields in each format of raw data.

mod clock;
mod events;
mod format;
mod ids;
mod items;
mod named;
mod times;
mod values;

pub use clock::{EARLIEST, Notation, iso};
pub use events::{Budget, Events, count as count_events};
pub use format::SourceFormat;
pub use ids::NumberedIds;
pub use items::{ItemCatalogue, RawItem, Reading, count as count_items};
pub use named::{NamedFrame, TextLocation};
pub use values::{entries, images as image_names};
