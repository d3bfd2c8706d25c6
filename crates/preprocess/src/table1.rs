//! The paper's statistics of its datasets (arXiv 2303.11879, Table 1), to print beside ours.

use mp4sr_artifact::Table1Row;

use crate::{Error, Result};

const ROWS: [(&str, u64, u64, u64, f64); 4] = [
    ("Poetry", 11_314, 11_231, 108_114, 9.55),
    ("Pantry", 13_614, 7_670, 131_311, 9.65),
    ("Arts", 32_216, 52_557, 264_465, 8.21),
    ("Office", 68_224, 59_705, 527_209, 7.73),
];

/// The row that the pipeline names; `None` for an empty name.
pub fn row(name: &str) -> Result<Option<Table1Row>> {
    if name.is_empty() {
        return Ok(None);
    }
    let found = ROWS.iter().find(|row| row.0.eq_ignore_ascii_case(name));
    let row = found.map(|&(name, users, items, events, average_length)| Table1Row {
        name: name.to_owned(),
        users,
        items,
        events,
        average_length,
    });
    row.map(Some).ok_or_else(|| {
        let known = ROWS.map(|row| row.0).join(", ");
        Error::Setting(format!("`dataset.table1` = {name:?} is not allowed; expected one of {known}, or nothing"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn averages_agree_with_the_counts_and_other_names_are_refused() {
        for (name, users, _, events, average) in ROWS {
            assert!((events as f64 / users as f64 - average).abs() < 0.01, "{name}");
            assert_eq!(row(&name.to_lowercase()).unwrap().unwrap().events, events);
        }
        assert_eq!(row("").unwrap(), None);
        assert!(row("Toys").unwrap_err().to_string().contains("expected one of Poetry, Pantry, Arts, Office"));
    }
}
