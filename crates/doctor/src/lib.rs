//! What the stages of a pipeline would do, read and take, without running them.
//!
//! In: a pipeline, the files that it names, the artifacts that there are. Out: a [`Plan`]: each stage's verdict by the stage's own
//! record, the files it reads and writes, estimates of time, memory and disk, and what would stop the run. Nothing is written, and
//! nothing is asked of the network unless a user wants it. Must not know: how any stage does its work.

pub mod command;
mod estimate;
mod machine;
mod page;
mod plan;
mod sizes;

pub use estimate::{Cost, Range};
pub use plan::{Plan, Question, Scope, StagePlan, Verdict};
pub use sizes::Sizes;
