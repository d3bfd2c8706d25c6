//! The time and memory that each stage used.

use maud::{Markup, html};
use mp4sr_artifact::Timing;
use mp4sr_pipeline::text::{bytes, duration};

pub(super) fn table(timings: &[Timing]) -> Markup {
    html! {
        div.wide { table {
            thead { tr {
                th { "stage" } th { "time" } th { "peak memory" } th { "threads" } th { "device" } th { "finished" } th { "version" }
            } }
            tbody { @for timing in timings {
                tr {
                    th { (timing.stage) }
                    td { (duration(timing.seconds)) }
                    td { (timing.peak_memory_bytes.map_or_else(|| "-".to_owned(), bytes)) }
                    td { (timing.threads) }
                    td { (timing.device) }
                    td { (timing.finished) }
                    td { (timing.program) }
                }
            } }
        } }
        p.soft { "Times are those of the process that finished the stage; for a resumed training, only the last process is counted." }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_content_of_a_file_is_shown_as_text() {
        let timing = Timing {
            stage: "<b>".into(),
            program: "<i>".into(),
            seconds: f64::MAX,
            peak_memory_bytes: None,
            threads: 2,
            device: "cuda:0".to_owned(),
            finished: "<u>".into(),
        };
        let text = table(&[timing]).into_string();
        assert!(["&lt;b&gt;", "&lt;i&gt;", "&lt;u&gt;", "<td>-</td>"].iter().all(|part| text.contains(part)), "{text}");
    }
}
