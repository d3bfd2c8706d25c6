//! Finds the pair of columns that hold the same ids in interactions and items, by their names and by the share of values that match.

use std::collections::HashMap;

use mp4sr_pipeline::text::tokens;
use mp4sr_preprocess::survey::{ColumnSurvey, Survey};

use crate::Result;
use crate::words::Role;

/// The number of rows of interactions whose ids are looked up.
pub const EVENT_ROWS: u64 = 100_000;
/// The number of rows of items whose ids are looked up.
pub const ITEM_ROWS: u64 = 500_000;
/// The largest number of columns per file that are compared.
const CANDIDATES: usize = 8;
/// The largest mean numbers of characters and of words in a column of ids.
const LONGEST_ID: f64 = 64.0;
const WORDS_OF_AN_ID: f64 = 3.0;

/// The score of a name that as a whole denotes a role exceeds this one.
const WHOLE_NAME: f64 = 8.0;
/// The scores of equal names in both files, and of the item's usual position in a table without column names. A share of 1 scores 10.
const SAME: f64 = 5.0;
const SECOND: f64 = 2.0;

/// Two columns that may hold the same ids.
#[derive(Clone, Debug, PartialEq)]
pub struct Join {
    /// The column of interactions.
    pub item: String,
    /// The separator of several ids in one of its cells; empty if a cell holds one id.
    pub separator: String,
    /// The column of items.
    pub id: String,
    /// The share of the interactions' ids that are found among the items' ids.
    pub share: f64,
    /// The share of the items' ids that occur in interactions.
    pub coverage: f64,
    /// The score of how well names and values match; higher is better.
    pub score: f64,
}

/// The columns that the user has named.
#[derive(Clone, Copy, Debug, Default)]
pub struct NamedIds<'n> {
    /// The column of interactions that holds the item's id.
    pub item: Option<&'n str>,
    /// The column of items that holds the item's id.
    pub id: Option<&'n str>,
    /// The column of interactions that holds the user's id, and therefore not the item's.
    pub user: Option<&'n str>,
}

/// Whether the cells of a column hold several short values.
pub fn holds_several(column: &ColumnSurvey) -> bool {
    column.objects == 0 && (column.lists * 2 > column.filled || clear_separator(column).is_some())
}

/// The separator of several short values in most cells of a column, with the share of cells that have it. Names contain spaces, and so do
/// dates and long numbers, so spaces separate only several numbers, unless a table of items confirms that they separate other ids.
pub fn clear_separator(column: &ColumnSurvey) -> Option<&(String, f64)> {
    let is_time = column.time.is_some() && column.time_separator.is_empty();
    let is_list_of_numbers = column.separates_numbers && !is_time;
    let is_clear =
        |(separator, share): &&(String, f64)| *share >= 0.5 && (!separator.contains(' ') || is_list_of_numbers);
    column.separator.as_ref().filter(is_clear)
}

/// Whether the values of a column may be ids.
pub fn may_be_id(column: &ColumnSurvey, rows: u64) -> bool {
    let is_fraction = column.numbers > column.whole;
    let is_text = column.characters > LONGEST_ID || (column.words > WORDS_OF_AN_ID && column.lists == 0);
    column.filled * 2 >= rows
        && !is_fraction
        && !is_text
        && column.truths < column.filled
        && column.urls * 2 < column.filled
}

/// The pairs of columns that may hold the same ids, the best first.
pub fn joins(events: &Survey, items: &Survey, named: NamedIds<'_>) -> Result<Vec<Join>> {
    let user = named.user.or_else(|| user_by_name(events));
    let sequences = |column: &&ColumnSurvey| column.separator.is_some() && column.numbers < column.filled;
    let of_events: Vec<&ColumnSurvey> = best(events, |column| {
        let is_item = named.item.is_some_and(|name| name == column.name);
        let wanted = is_item || named.item.is_none() && user.is_none_or(|name| name != column.name);
        let may_be =
            may_be_id(column, events.rows) && !is_quantity(column) || sequences(&column) || holds_several(column);
        (wanted && (may_be || is_item)).then(|| Role::Item.score(&column.name) - 0.7 * Role::User.score(&column.name))
    });
    let of_items: Vec<&ColumnSurvey> = best(items, |column| {
        let is_unique = column.distinct * 5 >= column.filled * 4 && column.filled * 5 >= items.rows * 4;
        // Some items may have several lines, of which the first is read.
        let is_shared = Role::Item.fits(&column.name) && events.column(&column.name).is_some();
        let may_be = (may_be_id(column, items.rows) && (is_unique || is_shared)) || named.id.is_some();
        (named.id.is_none_or(|name| name == column.name) && may_be).then(|| id_score(&column.name))
    });
    if of_events.is_empty() || of_items.is_empty() {
        return Ok(Vec::new());
    }
    let names: Vec<&str> = of_items.iter().map(|column| column.name.as_str()).collect();
    let (ids, _) = items.values(&names, "", ITEM_ROWS)?;
    let mut found = Vec::new();
    for column in of_events {
        let several = column.separator.as_ref().filter(|_| sequences(&column)).map(|(separator, _)| separator.clone());
        for separator in std::iter::once(String::new()).chain(several) {
            let (values, _) = events.values(&[&column.name], &separator, EVENT_ROWS)?;
            let values = values.into_iter().next().unwrap_or_default();
            for (id, ids) in of_items.iter().zip(&ids) {
                let mut join = compared(column, &separator, &values, id, ids);
                let is_second = events.columns.get(1).is_some_and(|second| second.name == column.name);
                // In a table without column names, the second column is the item, as in all published datasets.
                if !events.has_header && is_second {
                    join.score += SECOND;
                }
                // Names that were made from positions are equal by chance, so their score is taken back.
                if !(events.has_header && items.has_header) && join.item == join.id {
                    join.score -= SAME;
                }
                found.push(join);
            }
        }
    }
    found.sort_by(|a, b| b.score.total_cmp(&a.score));
    Ok(found)
}

/// The columns of a file that have a score, the best first and at most [`CANDIDATES`]; equal ones stay in the order of the file.
fn best(survey: &Survey, score: impl Fn(&ColumnSurvey) -> Option<f64>) -> Vec<&ColumnSurvey> {
    let mut scored: Vec<(f64, &ColumnSurvey)> =
        survey.columns.iter().filter_map(|column| Some((score(column)?, column))).collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0));
    scored.into_iter().take(CANDIDATES).map(|(_, column)| column).collect()
}

/// The column whose name as a whole denotes the user, the most certain first.
fn user_by_name(survey: &Survey) -> Option<&str> {
    let named = survey.columns.iter().map(|column| (Role::User.score(&column.name), column.name.as_str()));
    let certain = named.filter(|(score, name)| *score > WHOLE_NAME && !Role::Item.fits(name));
    certain.max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, name)| name)
}

/// Whether a column has numbers that may equal the numbers of items by chance, judging by its name.
fn is_quantity(column: &ColumnSurvey) -> bool {
    let others = [Role::Price, Role::Rating, Role::Time, Role::Position];
    let is_named = !Role::Item.fits(&column.name) && others.iter().any(|role| role.fits(&column.name));
    is_named && column.numbers == column.filled
}

fn id_score(name: &str) -> f64 {
    let of_item = Role::Item.score(name);
    let is_id = tokens(name).iter().any(|token| token == "id");
    of_item.max(if is_id { 6.0 } else { 0.0 }) - 0.7 * Role::User.score(name)
}

fn compared(
    column: &ColumnSurvey,
    separator: &str,
    values: &HashMap<String, u64>,
    id: &ColumnSurvey,
    ids: &HashMap<String, u64>,
) -> Join {
    let total: u64 = values.values().sum();
    let (mut events, mut distinct) = (0, 0_u64);
    for (value, count) in values.iter().filter(|(value, _)| ids.contains_key(*value)) {
        debug_assert!(!value.is_empty());
        events += count;
        distinct += 1;
    }
    let share = events as f64 / total.max(1) as f64;
    let coverage = distinct as f64 / ids.len().max(1) as f64;
    let same = tokens(&column.name) == tokens(&id.name);
    let names = Role::Item.score(&column.name) - 0.7 * Role::User.score(&column.name) + id_score(&id.name);
    let score = 10.0 * share + 4.0 * coverage + names + if same { SAME } else { 0.0 };
    // If reading one id per cell finds as many as reading several, one per cell is preferred.
    let score = if separator.is_empty() { score } else { score - 0.5 };
    Join { item: column.name.clone(), separator: separator.to_owned(), id: id.name.clone(), share, coverage, score }
}
