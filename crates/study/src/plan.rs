//! What a study or a search would execute.

use std::fmt::Write as _;

use mp4sr_pipeline::text::some_of;
use mp4sr_pipeline::{StageArgs, StageName};

use crate::Runner;
use crate::runner::OnlyPlanned;

/// The runs of a study or a search, before any is executed.
#[derive(Clone, Debug)]
pub struct RunPlan {
    /// What would be executed, as text.
    pub text: String,
    /// The flags of the first run that is missing, and its last stage; `None` if all are finished.
    pub next: Option<(StageArgs, StageName)>,
}

impl RunPlan {
    /// The plan of a runner that only plans. `end` is the error with which the study ended, which is usually that no run was executed.
    pub fn new(runner: &Runner, end: Option<anyhow::Error>) -> anyhow::Result<Self> {
        let runs = runner.planned();
        if let Some(error) = end.filter(|error| !error.is::<OnlyPlanned>()) {
            return Err(error);
        }
        let mut text = String::new();
        let datasets: Vec<&str> = runs.iter().map(|planned| planned.run.config.dataset.name.as_str()).collect();
        let missing: Vec<_> = runs.iter().filter(|planned| !planned.is_finished).collect();
        let names: Vec<&str> = missing.iter().map(|planned| planned.run.spec().name.as_str()).collect();
        let of = if datasets.is_empty() { String::new() } else { format!(" of {}", some_of(&datasets)) };
        let (all, left) = (runs.len(), missing.len());
        let _ = writeln!(text, "runs{of}: {all}; finished: {}; missing: {left}", all - left);
        if !missing.is_empty() {
            let _ = writeln!(text, "missing: {}", some_of(&names));
        }
        if runs.iter().any(|planned| matches!(planned.last, StageName::Preprocess | StageName::Extract)) {
            text += "further runs are known when these data exist\n";
        }
        let next = missing.first().map(|next| Ok::<_, anyhow::Error>((runner.args_of(next.run.spec())?, next.last)));
        Ok(Self { text, next: next.transpose()? })
    }
}
