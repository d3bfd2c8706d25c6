//! Writes the files of a study.

use std::fmt::Write as _;

use mp4sr_artifact::files;
use mp4sr_figure::Figure;
use mp4sr_pipeline::config::SplitBy;
use mp4sr_pipeline::hide_passwords;
use mp4sr_pipeline::text::TextTable;
use mp4sr_protocol::SIGNIFICANT;

use super::study::Study;
use crate::paper::printed;

/// The part of the paper's numbers that is shown below a study's own.
#[derive(Clone, Copy)]
pub(super) struct PaperTable {
    /// The number of the table.
    table: u32,
    /// The models whose rows are shown; all if empty.
    models: &'static [&'static str],
    /// A note below the heading.
    note: &'static str,
}

impl PaperTable {
    pub(super) const fn whole(table: u32) -> Self {
        Self { table, models: &[], note: "" }
    }
}

/// The row of a table with the figures' default setting; the figures themselves print no values.
pub(super) const DEFAULTS: PaperTable = PaperTable {
    table: 4,
    models: &["MP4SR"],
    note: "The figure prints no values; these belong to its default setting (lambda 0.01, N 15, O 8, rho 0.2).",
};
pub(super) const IMAGES: PaperTable =
    PaperTable { table: 4, models: &["MP4SR[ResNet]", "MP4SR"], note: "Vectors of ResNet, and words of CLIP." };

impl Study<'_> {
    pub(super) fn head(&self, title: &str, users: usize) -> String {
        let mut text = format!("# {title}\n\n{} Test set", self.settings());
        if users > 0 {
            let _ = write!(text, ", {users} users");
        }
        let _ = write!(
            text,
            ". The best value is bold and the second best underlined; \\* marks a best value that is higher than the second best with p \
             < {SIGNIFICANT} (paired t-test over users, Holm-corrected over the other rows)"
        );
        text + if self.options.seeds > 1 { "; ± is the standard deviation over seeds.\n\n" } else { ".\n\n" }
    }

    pub(super) fn settings(&self) -> String {
        let (name, seeds) = (&self.config.dataset.name, self.options.seeds);
        let first = self.config.run.seed;
        let seeds =
            if seeds == 1 { format!("seed {first}") } else { format!("seeds {first} to {}", first + seeds as u64 - 1) };
        let split = match self.config.preprocess.split {
            SplitBy::LeaveOneOut => "leave-one-out",
            SplitBy::Ratio => "split by ratio",
            SplitBy::Time => "split by time",
        };
        let quick = match self.config.preprocess.split {
            _ if !self.options.quick => "",
            SplitBy::LeaveOneOut | SplitBy::Ratio => {
                " This is a smoke run (the last 12 events of each user and a few epochs, unless set otherwise), not a result."
            }
            SplitBy::Time => {
                " This is a smoke run (the last 12 events of each user in each set and a few epochs, unless set otherwise), not a result."
            }
        };
        let set: Vec<String> = self.runner.args().overrides.iter().map(|set| hide_passwords(set)).collect();
        let set = if set.is_empty() { String::new() } else { format!(" Set for all runs: `{}`.", set.join("`, `")) };
        format!("Dataset `{name}`, {split}, {seeds}.{quick}{set}")
    }

    /// Appends the paper's numbers and the notes, writes all files, and returns the Markdown.
    pub(super) fn finish(
        &mut self,
        mut text: String,
        paper: Option<PaperTable>,
        details: &TextTable,
        figure: Option<Figure>,
    ) -> anyhow::Result<String> {
        self.runner.expect_executing()?;
        let folder = self.folder();
        files::clean_folder(&folder)?;
        let mut written = vec!["table.md", "table.csv"];
        if let Some(figure) = figure {
            let drawn = figure.draw()?;
            files::write_bytes(&folder.join("figure.svg"), drawn.svg.as_bytes())?;
            files::write_bytes(&folder.join("figure.png"), &drawn.png)?;
            written.extend(["figure.svg", "figure.png"]);
            text += "\n![figure](figure.svg)\n";
        }
        for note in &self.notes {
            let _ = write!(text, "\nNote: {note}.\n");
        }
        if let Some(PaperTable { table, models, note }) = paper {
            let mut printed = printed(self.options.paper.as_deref(), table)?;
            printed.rows.retain(|row| models.is_empty() || models.contains(&row[1].as_str()));
            let note = if note.is_empty() { String::new() } else { format!("{note}\n\n") };
            let split = match self.config.preprocess.split {
                SplitBy::LeaveOneOut => "",
                SplitBy::Ratio | SplitBy::Time => "The paper's split is leave-one-out, unlike the one above.\n\n",
            };
            let _ = write!(text, "\n## The paper's Table {table}\n\n{note}{split}{}", printed.markdown());
            printed.write_csv(&folder.join("paper.csv"))?;
            written.push("paper.csv");
        }
        files::write_bytes(&folder.join("table.md"), text.as_bytes())?;
        details.write_csv(&folder.join("table.csv"))?;
        self.runner.progress().log(format!("{}: wrote {} to {}", self.slug(), written.join(", "), folder.display()));
        Ok(text)
    }
}
