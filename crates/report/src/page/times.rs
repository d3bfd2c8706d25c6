//! What the stages took.

use maud::{Markup, html};
use mp4sr_pipeline::Timing;

pub(super) fn table(timings: &[Timing]) -> Markup {
    html! {
        div.wide { table {
            thead { tr {
                th { "stage" } th { "time" } th { "peak memory" } th { "threads" } th { "finished" } th { "version" }
            } }
            tbody { @for timing in timings {
                tr {
                    th { (timing.stage) }
                    td { (duration(timing.seconds)) }
                    td { (timing.peak_memory_bytes.map_or_else(|| "-".to_owned(), memory)) }
                    td { (timing.threads) }
                    td { (timing.finished) }
                    td { (timing.program) }
                }
            } }
        } }
        p.soft { "Of the process that finished the stage: where a training was cut and gone on with, its last part." }
    }
}

fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        _ if seconds < 59.95 => format!("{seconds:.1} s"),
        0..3600 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
    }
}

fn memory(bytes: u64) -> String {
    let mebibytes = bytes as f64 / f64::from(1 << 20);
    if mebibytes < 1023.5 { format!("{mebibytes:.0} MiB") } else { format!("{:.1} GiB", mebibytes / 1024.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes_are_told_in_units_that_fit() {
        let told = [0.04, 59.94, 59.96, 3599.4, 3599.6, 7325.0].map(duration);
        assert_eq!(told, ["0.0 s", "59.9 s", "1 min 0 s", "59 min 59 s", "1 h 0 min", "2 h 2 min"]);
        assert_eq!([126_418_944, 1 << 30, 1_610_612_736].map(memory), ["121 MiB", "1.0 GiB", "1.5 GiB"]);
    }

    #[test]
    fn what_a_file_holds_appears_as_text() {
        let timing = Timing {
            stage: "<b>".into(),
            program: "<i>".into(),
            seconds: f64::MAX,
            peak_memory_bytes: None,
            threads: 2,
            finished: "<u>".into(),
        };
        let text = table(&[timing]).into_string();
        assert!(["&lt;b&gt;", "&lt;i&gt;", "&lt;u&gt;", "<td>-</td>"].iter().all(|part| text.contains(part)), "{text}");
    }
}
