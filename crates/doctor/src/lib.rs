//! Reports what the stages of a pipeline would do, read and cost, without running them.
//!
//! The crate reads a pipeline, the files that it names, and the artifacts that exist. It returns a [`Plan`]: the verdict on each stage from
//! its own manifest, the files that it reads and writes, estimates of time, memory and disk space, and what would stop the run. Nothing is
//! written, and the network is used only if the user asks for it. The crate must not know how any stage does its work.

pub mod command;
mod estimate;
mod machine;
mod page;
mod plan;
mod sizes;

pub use estimate::{Cost, Range};
pub use plan::{Plan, Question, Scope, StagePlan, StageVerdict, check_inputs, check_states, expect_devices};
pub use sizes::DatasetSizes;
