//! The training curves.

use maud::{Markup, PreEscaped, html};

use super::Page;

impl Page<'_> {
    pub(super) fn training_section(&self) -> Markup {
        if self.panels.is_empty() {
            return html! {};
        }
        html! {
            section #training {
                h2 { "Training" }
                p {
                    "A large ring marks the epoch whose weights were kept: the one with the best " code { "train.metric" }
                    " on the validation set, or the last epoch of a phase without validation."
                }
                @if !self.untrained.is_empty() {
                    p.soft { "These runs have no curve, because they are not trained in epochs: " (self.untrained.join(", ")) "." }
                }
                div.charts {
                    @for panel in self.panels {
                        figure role="img" aria-label={ (panel.phase) ": " (panel.what) " by epoch" } {
                            (PreEscaped(&panel.svg))
                        }
                    }
                }
            }
        }
    }
}
