//! Describes what was found, for the output and for the comments of the pipeline file.

use mp4sr_pipeline::text::count;
use mp4sr_preprocess::survey::{ColumnSurvey, Survey};

use crate::{Error, Result};

/// A guess that is uncertain, and what changes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Doubt {
    /// What is uncertain, as a sentence without its full stop.
    pub what: String,
    /// The flags and keys that change it.
    pub remedy: String,
}

impl Doubt {
    /// A doubt that `remedy` removes.
    pub fn new(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what: what.into(), remedy: remedy.into() }
    }
}

/// Finds the column that a flag names; it is an error if the column does not exist.
pub fn named<'s>(survey: &'s Survey, flag: &'static str, name: &str) -> Result<&'s ColumnSurvey> {
    if let Some((_, kind)) = survey.unread.iter().find(|(unread, _)| unread == name) {
        return Err(Error::Unknown(format!(
            "`{flag} {name}`: `{}` has `{name}` of type {kind}, which is not read; write it as text or numbers",
            survey.path.display()
        )));
    }
    let names: Vec<&str> = survey.columns.iter().map(|column| column.name.as_str()).collect();
    survey.column(name).ok_or_else(|| Error::NoColumn {
        flag,
        name: name.to_owned(),
        path: survey.path.clone(),
        near: mp4sr_pipeline::nearest(name, &names).map_or(String::new(), |near| format!(" (did you mean `{near}`?)")),
        known: listed(&names),
    })
}

/// Describes the values of a column, of which texts lose their HTML and ids do not.
pub fn values(column: &ColumnSurvey, rows: u64, is_id: bool) -> String {
    let mut parts = Vec::new();
    if column.filled < rows {
        parts.push(format!("{} of {} lines have none", count(rows - column.filled), count(rows)));
    }
    if column.filled > 0 {
        parts.push(format!(
            "such as {}",
            column.examples.iter().map(|e| format!("`{e}`")).collect::<Vec<_>>().join(", ")
        ));
    }
    if column.html > 0 && !is_id {
        parts.push("HTML in it is removed".to_owned());
    }
    parts.join("; ")
}

/// The largest number of names in a list of columns.
const LISTED: usize = 30;

/// The names of columns, of which the first are shown if there are many.
pub fn listed(names: &[&str]) -> String {
    let shown = names[..names.len().min(LISTED)].join(", ");
    if names.len() > LISTED { format!("{shown} and {} more", names.len() - LISTED) } else { shown }
}

/// The largest number of unread columns that are described.
const SHOWN: usize = 8;

/// Describes the content of the columns that are not read.
pub fn unused(survey: &Survey, names: &[String]) -> String {
    let known = names.iter().filter_map(|name| survey.column(name));
    let mut shown: Vec<String> = known.take(SHOWN).map(held).collect();
    if names.len() > SHOWN {
        shown.push(format!("and {} more", names.len() - SHOWN));
    }
    shown.join(", ")
}

fn held(column: &ColumnSurvey) -> String {
    let kind = if column.filled == 0 {
        "empty".to_owned()
    } else if column.numbers == column.filled {
        match column.range {
            Some((least, most)) if least < most => format!("numbers from {least} to {most}"),
            _ => "numbers".to_owned(),
        }
    } else if column.urls * 2 > column.filled {
        "URLs".to_owned()
    } else {
        format!("such as `{}`", column.examples.first().map_or("", String::as_str))
    };
    format!("`{}` ({kind})", column.name)
}
