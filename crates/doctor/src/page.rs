//! Formats a plan as text.

use mp4sr_extract::{EncoderFacts, EncoderLocation, EncoderRole};
use mp4sr_pipeline::Context;
use mp4sr_pipeline::text::{TextTable, bytes, count};

use crate::estimate::{Cost, Range};
use crate::plan::{Plan, StagePlan, StageVerdict};
use crate::sizes::{DatasetSizes, SizeBasis};

/// The plan as text.
pub fn page(plan: &Plan, context: &Context) -> String {
    let config = &context.config;
    let mut lines: Vec<String> = Vec::new();
    let mut line = |name: &str, text: String| lines.push(format!("{name:<13} {text}"));
    line(
        "pipeline",
        format!("dataset `{}`, run `{}`, model `{}`", config.dataset.name, config.run.name, config.model.name),
    );
    for file in &plan.raw {
        let rows = match &file.rows {
            Ok(rows) if rows.is_exact => format!("{} lines", count(rows.rows)),
            Ok(rows) => format!("about {} lines", count(rounded(rows.rows))),
            Err(problem) => problem.clone(),
        };
        line(
            file.role.split('[').next().unwrap_or("file"),
            format!("{}: {}, {rows}", file.path.display(), bytes(file.bytes)),
        );
    }
    if let Some((folder, files)) = &plan.images {
        let there = match files {
            Some(files) => format!("{} entries", count(*files as u64)),
            None => "does not exist, so no item has an image from it".to_owned(),
        };
        line("images", format!("{}: {there}", folder.display()));
    }
    plan.encoders.iter().for_each(|encoder| line("encoder", described(encoder)));
    let machine = &plan.machine;
    let disk = machine.disk.map_or("unknown disk space".to_owned(), |free| format!("{} free", bytes(free)));
    line(
        "machine",
        format!(
            "{disk} on the disk of the artifacts, {} of memory free, {} threads, device `{}`",
            bytes(machine.memory),
            machine.threads,
            config.run.device
        ),
    );
    if let Some(sizes) = &plan.sizes {
        line("size", sized(sizes));
    }
    let mut text = lines.join("\n") + "\n\n" + &table(plan).markdown();
    if let Some(total) = total(plan) {
        text.push_str(&format!("\ntotal {total}\n"));
    }
    for (title, sentences) in [("notes", &plan.notes), ("problems", &plan.problems)] {
        if !sentences.is_empty() {
            text.push_str(&format!("\n{title}\n"));
            sentences.iter().for_each(|one| text.push_str(&format!("- {one}\n")));
        }
    }
    text
}

fn described(encoder: &EncoderFacts) -> String {
    let role = match encoder.role {
        EncoderRole::Sentences => "sentences",
        EncoderRole::Images => "images",
        EncoderRole::Sounds => "sounds",
    };
    let size = encoder.weight_bytes.map(bytes);
    let location = match &encoder.location {
        EncoderLocation::BuiltIn => "built into the program".to_owned(),
        EncoderLocation::Folder => "a folder with all of its files".to_owned(),
        EncoderLocation::Cached => "in the hub's cache".to_owned(),
        EncoderLocation::Hub if size.is_some() => "not in the hub's cache: extraction downloads it".to_owned(),
        EncoderLocation::Hub => {
            "not in the hub's cache: extraction downloads it; `--online` asks for its size".to_owned()
        }
        EncoderLocation::Unusable(why) => why.clone(),
    };
    let width = encoder.width.map(|width| format!("vectors of {width} numbers"));
    let more: Vec<String> = [Some(location), size, width].into_iter().flatten().collect();
    format!("{role}: `{}`, {}", encoder.name, more.join(", "))
}

fn sized(sizes: &DatasetSizes) -> String {
    let basis = match sizes.basis {
        SizeBasis::Dataset => "exact, from the dataset",
        SizeBasis::RawFiles => "from the complete raw files",
        SizeBasis::Sample => "estimated from the size of the raw files and their first lines",
        SizeBasis::SampleWorld => "from the sample world",
    };
    let one = |(low, high): (f64, f64)| {
        if low.round() >= high.round() {
            count(high as u64)
        } else {
            format!("{} to {}", count(rounded(low as u64)), count(rounded(high as u64)))
        }
    };
    format!(
        "{} users, {} items, {} events ({basis}); {:.1} sentences and {:.1} image files per item",
        one(sizes.users),
        one(sizes.items),
        one(sizes.events),
        sizes.sentences,
        sizes.images
    )
}

/// Rounds a number up to two significant digits.
fn rounded(number: u64) -> u64 {
    let unit = 10_u64.pow(number.checked_ilog10().unwrap_or(0).saturating_sub(1));
    number.div_ceil(unit) * unit
}

fn table(plan: &Plan) -> TextTable {
    let mut table = TextTable::new(["stage", "what", "time", "memory", "writes"]);
    table.rows = plan.stages.iter().map(row).collect();
    table
}

fn row(planned: &StagePlan) -> Vec<String> {
    let what = match &planned.verdict {
        StageVerdict::UpToDate => "up to date".to_owned(),
        StageVerdict::Runs(why) => format!("would run: {why}"),
        StageVerdict::Nothing(why) => format!("nothing to do: {why}"),
        StageVerdict::BlockedBy(stage) => format!("blocked: `{}` is", stage.name()),
        // The cause is listed below the table.
        StageVerdict::Blocked(_) => "blocked, see below".to_owned(),
    };
    let (mut time, mut memory, mut writes) = (String::new(), String::new(), String::new());
    if let Some(took) = &planned.took {
        time = format!("took {}", mp4sr_pipeline::text::duration(took.seconds));
        memory = took.peak_memory_bytes.map_or(String::new(), bytes);
    }
    if let Some(cost) = &planned.cost {
        time = match (cost.epoch, cost.epochs) {
            (Some(epoch), Some((least, most))) if least < most => {
                format!("{}: {least} to {most} epochs of {}", spoken(cost.seconds), spoken(epoch))
            }
            (Some(_), Some((_, 1))) => format!("{}: 1 epoch", spoken(cost.seconds)),
            (Some(_), Some((_, most))) => format!("{}: {most} epochs", spoken(cost.seconds)),
            _ => spoken(cost.seconds),
        };
        memory = sizes_spoken(cost.memory);
        writes = format!("{}, up to {}", planned.writes.display(), bytes(cost.disk as u64));
    } else if matches!(planned.verdict, StageVerdict::Blocked(_) | StageVerdict::BlockedBy(_)) {
        // The size is known only from a dataset, or from raw files from which one can be built.
        time.push_str("unknown, because the size of the dataset is unknown");
    }
    vec![planned.stage.name().to_owned(), what, time, memory, writes]
}

fn total(plan: &Plan) -> Option<String> {
    let costs: Vec<_> = plan.running().map(|(_, cost)| cost).collect();
    if costs.len() < 2 {
        return None;
    }
    let seconds = costs.iter().fold(Range::default(), |sum, cost| Range {
        low: sum.low + cost.seconds.low,
        high: sum.high + cost.seconds.high,
    });
    let memory = costs.iter().map(|cost| cost.memory.high).fold(0.0, f64::max);
    let disk: f64 = costs.iter().map(|cost| cost.disk).sum();
    Some(format!(
        "{}, up to {} of memory, up to {} on the disk; training that stops early takes less",
        spoken(seconds),
        bytes(memory as u64),
        bytes(disk as u64)
    ))
}

/// The units of memory in bytes.
const MIB: f64 = (1_u64 << 20) as f64;
const GIB: f64 = (1_u64 << 30) as f64;

/// The time and the memory of a cost.
pub fn spoken_cost(cost: &Cost) -> String {
    format!("{}, {} of memory", spoken(cost.seconds), sizes_spoken(cost.memory))
}

/// A range of bytes, such as `60 to 200 MiB`.
fn sizes_spoken(range: Range) -> String {
    let unit = |size: f64| if size < GIB { (MIB, "MiB") } else { (GIB, "GiB") };
    let number = |size: f64, by: f64| if by < GIB { format!("{:.0}", size / by) } else { format!("{:.1}", size / by) };
    let ((by_low, low_unit), (by_high, high_unit)) = (unit(range.low), unit(range.high));
    let (low, high) = (number(range.low, by_low), number(range.high, by_high));
    if low_unit == high_unit {
        format!("{low} to {high} {high_unit}")
    } else {
        format!("{low} {low_unit} to {high} {high_unit}")
    }
}

/// A range of seconds, in one unit if it suits both ends, such as `about 3 to 10 minutes`.
pub fn spoken(range: Range) -> String {
    let unit = |seconds: f64| match seconds {
        s if s < 90.0 => (1.0, "seconds"),
        s if s < 90.0 * 60.0 => (60.0, "minutes"),
        s if s < 48.0 * 3600.0 => (3600.0, "hours"),
        _ => (86_400.0, "days"),
    };
    let number = |value: f64| {
        if value < 0.005 {
            "0".to_owned()
        } else if value < 0.095 {
            format!("{value:.2}")
        } else if value < 10.0 {
            let text = format!("{value:.1}");
            text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
        } else {
            format!("{value:.0}")
        }
    };
    let ((by_low, low_unit), (by_high, high_unit)) = (unit(range.low), unit(range.high));
    let (low, high) = (number(range.low / by_low), number(range.high / by_high));
    if low_unit == high_unit {
        format!("about {low} to {high} {high_unit}")
    } else {
        format!("about {low} {low_unit} to {high} {high_unit}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_reported_in_units_that_fit() {
        for (low, high, expected) in [
            (0.05, 0.5, "about 0.05 to 0.5 seconds"),
            (180.0, 600.0, "about 3 to 10 minutes"),
            (40.0, 600.0, "about 40 seconds to 10 minutes"),
            (7200.0, 90_000.0, "about 2 to 25 hours"),
        ] {
            assert_eq!(spoken(Range { low, high }), expected);
        }
        assert_eq!(sizes_spoken(Range { low: 60.4 * MIB, high: 200.0 * MIB }), "60 to 200 MiB");
        assert_eq!(sizes_spoken(Range { low: 60.0 * MIB, high: 1.5 * GIB }), "60 MiB to 1.5 GiB");
        assert_eq!([0, 9, 1234, 99_001].map(rounded), [0, 9, 1300, 100_000]);
    }
}
