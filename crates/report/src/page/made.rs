//! The files from which the report was built, and the times of the stages.

use maud::{Markup, html};

use super::{Page, times};

impl Page<'_> {
    pub(super) fn made_section(&self) -> Markup {
        html! {
            section #made {
                h2 { "How this report was made" }
                @if !self.timings.is_empty() { (times::table(self.timings)) }
                div.wide { table {
                    @for (what, which) in self.made_from { tr { th.text { (what) } td.text { code { (which) } } } }
                } }
                details {
                    summary { "Resolved configuration of the run" }
                    pre { (self.config) }
                }
            }
        }
    }
}
