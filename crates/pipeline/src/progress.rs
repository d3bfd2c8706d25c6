//! Messages, warnings and progress bars.

use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// The text between the name of a stage and its warning.
const WARNING: &str = ": warning: ";

/// The line that reports a warning of a stage.
pub fn warning_line(stage: &str, warning: impl Display) -> String {
    format!("{stage}{WARNING}{warning}")
}

/// Whether a printed line is a warning of a stage.
pub fn is_warning_line(line: &str) -> bool {
    line.contains(WARNING)
}

/// Messages and progress bars on standard error; nothing is shown when quiet.
#[derive(Clone, Debug)]
pub struct Progress {
    quiet: bool,
    bars: indicatif::MultiProgress,
    /// Writes one message.
    write: fn(&str),
}

impl Progress {
    /// Bars appear only on a terminal; messages always, unless `quiet`.
    pub fn new(quiet: bool) -> Self {
        let visible = !quiet && std::io::stderr().is_terminal();
        let target = if visible { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        // The work continues when standard error is closed.
        let write = |message: &str| drop(writeln!(std::io::stderr(), "{message}"));
        Self { quiet, bars: indicatif::MultiProgress::with_draw_target(target), write }
    }

    /// Passes all messages to `write`, and shows no bars.
    pub fn to(write: fn(&str)) -> Self {
        let bars = indicatif::MultiProgress::with_draw_target(ProgressDrawTarget::hidden());
        Self { quiet: false, bars, write }
    }

    /// Prints a line for the user on standard error.
    pub fn log(&self, message: impl AsRef<str>) {
        if !self.quiet {
            self.bars.suspend(|| (self.write)(message.as_ref()));
        }
    }

    /// Prints a warning of a stage.
    pub fn warn(&self, stage: &str, warning: impl Display) {
        self.log(warning_line(stage, warning));
    }

    /// A bar over `total` units called `unit`, with rate and time left; if `total` is 0 (unknown), a spinner with a count.
    pub fn bar(&self, what: &str, unit: &str, total: u64) -> Bar {
        let template = if total > 0 {
            format!("{{msg:18}} {{bar:30}} {{human_pos}}/{{human_len}} {unit} {{per_sec}} {{eta}} left")
        } else {
            format!("{{msg:18}} {{spinner}} {{human_pos}} {unit} {{per_sec}} {{elapsed}}")
        };
        let style = ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = if total > 0 { ProgressBar::new(total) } else { ProgressBar::new_spinner() };
        let bar = self.bars.add(bar.with_style(style).with_message(what.to_owned()));
        bar.enable_steady_tick(Duration::from_millis(500));
        Bar(bar)
    }

    /// A bar over bytes read.
    pub fn bytes(&self, what: &str, total: u64) -> Bar {
        let template = "{msg:18} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta} left";
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = self.bars.add(ProgressBar::new(total).with_style(style).with_message(what.to_owned()));
        bar.enable_steady_tick(Duration::from_millis(500));
        Bar(bar)
    }
}

/// A progress bar; it disappears when dropped.
#[derive(Debug)]
pub struct Bar(ProgressBar);

impl Bar {
    /// Advances the bar by `units`.
    pub fn add(&self, units: u64) {
        self.0.inc(units);
    }

    /// Increases the total by `units`.
    pub fn grow(&self, units: u64) {
        self.0.inc_length(units);
    }

    /// How many units are done.
    pub fn position(&self) -> u64 {
        self.0.position()
    }

    /// Replaces the text before the bar.
    pub fn note(&self, text: impl Into<String>) {
        self.0.set_message(text.into());
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
