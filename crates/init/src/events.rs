//! Guesses which columns of interactions hold the user, the item, the time and a rating.

use mp4sr_pipeline::text::tokens;
use mp4sr_preprocess::survey::{ColumnSurvey, Survey, TimeNotation};

use crate::found::{Doubt, listed, named};
use crate::join::{Join, clear_separator, holds_several, may_be_id};
use crate::words::Role;
use crate::{Error, Result};

/// 1973-03-03: the largest number of a column must be at least this if its name suggests a time.
const EARLY: f64 = 1e8;
/// The minimum share of values that a notation must read, and of recent times in a column whose name does not suggest a time.
const MOST: f64 = 0.9;
/// The largest number of distinct values of a rating.
const RATINGS: u64 = 101;
/// The largest number of kinds of events.
const KINDS: u64 = 20;
/// Words in the names of times that are not the time of the event.
const OTHER_TIMES: [&str; 21] = [
    "release",
    "launch",
    "launched",
    "publish",
    "published",
    "publication",
    "expire",
    "birth",
    "dob",
    "signup",
    "registered",
    "update",
    "updated",
    "updt",
    "modified",
    "edited",
    "expires",
    "expiry",
    "delivered",
    "shipped",
    "released",
];
/// Names of columns that divide events into sets.
const SETS: [&str; 6] = ["xlabel", "split", "set", "fold", "subset", "partition"];
/// Words in the names of times of a day.
const TIMES_OF_DAY: [&str; 7] = ["hour", "hourmin", "clock", "uhrzeit", "stunde", "timeframe", "timeofday"];
/// The number of milliseconds in a day.
const DAY: f64 = 86_400_000.0;

/// What orders the events of a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventOrder {
    /// A column of times.
    Time {
        /// The name of the column.
        column: String,
        /// The notation of the times.
        notation: TimeNotation,
    },
    /// A column of positions.
    Position(String),
    /// The order of lines.
    LineOrder,
}

/// The columns of interactions.
#[derive(Clone, Debug, PartialEq)]
pub struct InteractionColumns {
    /// The column of the user's id.
    pub user: String,
    /// The column of the item's id.
    pub item: String,
    /// The separator of several items in a cell; empty if a cell holds one item.
    pub item_separator: String,
    /// What orders events.
    pub clock: EventOrder,
    /// The column of a rating, which is not read.
    pub rating: Option<String>,
    /// A column of kinds of events, such as views and purchases, which is not read.
    pub kind: Option<String>,
    /// Further columns that are not read.
    pub unused: Vec<String>,
    /// The guesses that are uncertain.
    pub doubts: Vec<Doubt>,
}

/// What the user states about interactions.
#[derive(Clone, Debug, Default)]
pub struct NamedEvents {
    /// The column of the user.
    pub user: Option<String>,
    /// The column of the item.
    pub item: Option<String>,
    /// The column of the time.
    pub time: Option<String>,
    /// The notation of the time.
    pub time_format: Option<String>,
    /// Whether events are in the order of their lines.
    pub line_order: bool,
}

impl InteractionColumns {
    /// Guesses the columns. `joins` are the pairs of columns that may hold the item's id in both files, the best first.
    pub fn guess(survey: &Survey, joins: &[Join], named_columns: &NamedEvents) -> Result<Self> {
        let mut doubts = Vec::new();
        let (item, item_separator) = item(survey, joins, named_columns, &mut doubts)?;
        let is_sequence =
            !item_separator.is_empty() || survey.column(&item).is_some_and(|column| column.lists * 2 > column.filled);
        let user = user(survey, &item, named_columns, is_sequence, &mut doubts)?;
        let others: Vec<&ColumnSurvey> =
            survey.columns.iter().filter(|column| column.name != user && column.name != item).collect();
        let sequence = is_sequence.then_some(item_separator.as_str());
        let clock = clock(survey, &others, sequence, named_columns, &mut doubts)?;
        let is_clock = |name: &str| match &clock {
            EventOrder::Time { column, .. } | EventOrder::Position(column) => column == name,
            EventOrder::LineOrder => false,
        };
        let rating = others.iter().find(|column| {
            Role::Rating.fits(&column.name)
                && !is_clock(&column.name)
                && column.filled > 0
                && column.numbers == column.filled
                && column.distinct <= RATINGS
        });
        let rating = rating.map(|column| column.name.clone());
        let kind = others.iter().find(|column| {
            Role::Kind.fits(&column.name) && column.numbers == 0 && (2..=KINDS).contains(&column.distinct)
        });
        let kind = kind.map(|column| column.name.clone());
        let is_unused = |name: &&String| {
            !name.is_empty() && !is_clock(name) && Some(*name) != rating.as_ref() && Some(*name) != kind.as_ref()
        };
        let unused = others.iter().map(|column| &column.name).filter(is_unused).cloned().collect();
        doubts.extend(others.iter().filter_map(|column| about_unread(column, &item)));
        Ok(Self { user, item, item_separator, clock, rating, kind, unused, doubts })
    }
}

/// The columns of a file, and what can be done if one of them holds objects.
fn shown_columns(survey: &Survey) -> String {
    let names: Vec<&str> = survey.columns.iter().map(|column| column.name.as_str()).collect();
    let objects = survey.columns.iter().find(|column| column.objects * 2 > column.filled);
    let note = objects.map_or(String::new(), |column| {
        format!(
            " (`{}` holds objects, whose fields are not read; write one line per event, with these fields)",
            column.name
        )
    });
    listed(&names) + &note
}

/// What is lost with a column that divides the events into sets, or that holds the histories before the events.
fn about_unread(column: &ColumnSurvey, item: &str) -> Option<Doubt> {
    let name = &column.name;
    let is_set = SETS.contains(&tokens(name).concat().as_str()) && (2..=5).contains(&column.distinct);
    if is_set {
        return Some(Doubt::new(
            format!("`{name}` seems to divide the events into sets, and is not read: they are divided anew"),
            "`preprocess.split`; `mp4sr import mmrec` keeps the sets of `x_label`",
        ));
    }
    (*name == format!("{item}_list")).then(|| {
        Doubt::new(
            format!("`{name}` seems to hold the history before each event, and is not read"),
            "`mp4sr import recbole` reads it",
        )
    })
}

/// What separates the items in a cell, if no table of items shows it; empty if each cell holds one item.
fn several(survey: &Survey, name: &str, doubts: &mut Vec<Doubt>) -> String {
    let Some((separator, share)) = survey.column(name).and_then(clear_separator) else { return String::new() };
    doubts.push(Doubt::new(
        format!(
            "{:.0} % of the cells of `{name}` contain `{separator}`, so each cell is read as several items",
            100.0 * share
        ),
        "`source.columns.item_separator`, which is empty if a cell is one item",
    ));
    separator.clone()
}

fn item(
    survey: &Survey,
    joins: &[Join],
    named_columns: &NamedEvents,
    doubts: &mut Vec<Doubt>,
) -> Result<(String, String)> {
    if let Some(name) = &named_columns.item {
        named(survey, "--item", name)?;
        let of_join = joins.iter().find(|join| join.item == *name).map(|join| join.separator.clone());
        let separator = of_join.unwrap_or_else(|| several(survey, name, doubts));
        return Ok((name.clone(), separator));
    }
    let by_name = || {
        let scored = survey.columns.iter().map(|column| (Role::Item.score(&column.name), column));
        let fitting =
            scored.filter(|(score, column)| *score > 0.0 && !Role::User.fits(&column.name) && column.filled > 0);
        fitting.max_by(|a, b| a.0.total_cmp(&b.0).then(std::cmp::Ordering::Greater))
    };
    if let Some(best) = joins.first().filter(|join| join.share > 0.0 || Role::Item.fits(&join.item)) {
        let rival = joins.iter().find(|join| join.item != best.item);
        if let Some(rival) = rival.filter(|rival| rival.score + 3.0 > best.score && rival.share > 0.0) {
            doubts.push(Doubt::new(
                format!(
                    "the item is `{}` or `{}`: {:.1} % and {:.1} % of their values are ids of the items",
                    best.item,
                    rival.item,
                    100.0 * best.share,
                    100.0 * rival.share
                ),
                "`--item COLUMN`, `source.columns.item`",
            ));
        }
        let by_its_name = by_name().filter(|(_, column)| {
            !Role::Item.fits(&best.item) && !Role::Price.fits(&column.name) && may_be_id(column, survey.rows)
        });
        if let Some((_, other)) = by_its_name {
            doubts.push(Doubt::new(
                format!(
                    "the item is `{}`, because {:.1} % of its values are ids of the items, although the name `{}` denotes an item",
                    best.item,
                    100.0 * best.share,
                    other.name
                ),
                "`--item COLUMN`, `source.columns.item`",
            ));
        }
        return Ok((best.item.clone(), best.separator.clone()));
    }
    if let Some((_, column)) = by_name() {
        return Ok((column.name.clone(), several(survey, &column.name, doubts)));
    }
    // In a table without column names, the item follows the user, as in all published datasets; a time may be between them.
    let is_id = |column: &&ColumnSurvey| {
        holds_several(column) || may_be_id(column, survey.rows) && time_score(column, survey).is_none()
    };
    if let Some(column) = survey.columns.iter().skip(1).find(is_id).filter(|_| !survey.has_header) {
        doubts.push(Doubt::new(
            format!("the item is `{}`, judging only by its position", column.name),
            "`--item COLUMN`, `source.columns.item`",
        ));
        return Ok((column.name.clone(), several(survey, &column.name, doubts)));
    }
    Err(Error::Unknown(format!(
        "no column of `{}` looks like the id of an item: it has {}; name the column with `--item COLUMN`",
        survey.path.display(),
        shown_columns(survey)
    )))
}

fn user(
    survey: &Survey,
    item: &str,
    named_columns: &NamedEvents,
    is_sequence: bool,
    doubts: &mut Vec<Doubt>,
) -> Result<String> {
    if let Some(name) = &named_columns.user {
        return Ok(named(survey, "--user", name)?.name.clone());
    }
    let mut scored: Vec<(f64, &ColumnSurvey)> = Vec::new();
    for (at, column) in survey.columns.iter().enumerate().filter(|(_, column)| column.name != item) {
        let by_name = Role::User.score(&column.name);
        if column.filled == 0 || (by_name == 0.0 && !may_be_id(column, survey.rows)) {
            continue;
        }
        // A name that suggests a user counts more than any property of the values.
        let is_other = by_name == 0.0
            && (Role::Time.fits(&column.name) || Role::Rating.fits(&column.name) || Role::Price.fits(&column.name));
        let is_time = by_name == 0.0 && matches!(&column.time, Some(Ok(time)) if !time.is_number);
        if is_other || is_time {
            continue;
        }
        let recurs = column.distinct < column.filled;
        let few = column.numbers == column.filled && column.distinct <= RATINGS && by_name == 0.0 && survey.rows > 1000;
        let by_values = if recurs { 1.0 } else { -2.0 } - if few { 4.0 } else { 0.0 } - 0.1 * at as f64;
        scored.push((by_name + by_values, column));
    }
    scored.sort_by(|a, b| b.0.total_cmp(&a.0));
    let Some((score, best)) = scored.first() else {
        return Err(Error::Unknown(format!(
            "no column of `{}` looks like the id of a user: it has {}; name the column with `--user COLUMN`",
            survey.path.display(),
            shown_columns(survey)
        )));
    };
    let remedy = "`--user COLUMN`, `source.columns.user`";
    if !Role::User.fits(&best.name) {
        if survey.has_header && scored.len() > 1 {
            return Err(Error::Unknown(format!(
                "no column of `{}` has a name that suggests a user: it has {}; name the column with `--user COLUMN`",
                survey.path.display(),
                shown_columns(survey)
            )));
        }
        doubts.push(Doubt::new(format!("the user is `{}`, judging by its position and its values", best.name), remedy));
    } else if let Some((_, rival)) =
        scored.get(1).filter(|(other, rival)| Role::User.fits(&rival.name) && other + 5.0 > *score)
    {
        doubts.push(Doubt::new(format!("the user is `{}`; `{}` may be meant too", best.name, rival.name), remedy));
    }
    if best.distinct == best.filled && best.filled > 20 && !is_sequence {
        doubts.push(Doubt::new(
            format!(
                "`{}` differs in each of the first {} lines, so no user would have a history",
                best.name, best.filled
            ),
            "`--user COLUMN`, `source.columns.user`; `source.columns.item_separator`, if each cell of the items has several",
        ));
    }
    Ok(best.name.clone())
}

/// The remedy for a column of times that is not the one that was meant.
const OTHER_TIME: &str = "`--time COLUMN`, `source.columns.time`";

fn clock(
    survey: &Survey,
    others: &[&ColumnSurvey],
    sequence: Option<&str>,
    named_columns: &NamedEvents,
    doubts: &mut Vec<Doubt>,
) -> Result<EventOrder> {
    if named_columns.line_order {
        return Ok(EventOrder::LineOrder);
    }
    let chosen = match &named_columns.time {
        Some(name) => Some(named(survey, "--time", name)?),
        None => match (recognised_time(survey, others, sequence, doubts), &named_columns.time_format) {
            // A notation that the user names may be one that is not recognised, so the name decides.
            (None, Some(_)) => time_by_name(survey, others, doubts),
            (recognised, _) => recognised,
        },
    };
    let Some(column) = chosen else { return without_time(survey, others, doubts) };
    let name = column.name.clone();
    if let Some(format) = &named_columns.time_format {
        let described = format!("times written as `{format}`");
        return Ok(EventOrder::Time {
            column: name,
            notation: TimeNotation { key: format.clone(), described, is_number: false },
        });
    }
    match &column.time {
        Some(Ok(notation)) => {
            doubts.extend(doubts_about_times(column, notation, others));
            Ok(EventOrder::Time { column: name, notation: notation.clone() })
        }
        Some(Err(problem)) => Err(Error::Unknown(format!(
            "`{name}` of `{}` has times whose notation cannot be determined: {}; name the format with `--time-format`, such as \
             `--time-format '%d/%m/%Y'`",
            survey.path.display(),
            problem.split(';').next().unwrap_or(problem)
        ))),
        None => Err(Error::Unknown(format!(
            "`{name}` of `{}` has no time that can be recognised, such as `{}`; name the format with `--time-format`, or use the \
             order of the lines with `--line-order`",
            survey.path.display(),
            column.examples.first().map_or("", String::as_str)
        ))),
    }
}

/// The column whose values are most likely the times of the events.
fn recognised_time<'s>(
    survey: &Survey,
    others: &[&'s ColumnSurvey],
    sequence: Option<&str>,
    doubts: &mut Vec<Doubt>,
) -> Option<&'s ColumnSurvey> {
    // Several times in a cell belong to several items in a cell, which have the same separator.
    let fits = |column: &&&ColumnSurvey| {
        let has_several = column.lists * 2 > column.filled || !column.time_separator.is_empty();
        let is_alike = column.time_separator.is_empty() || sequence == Some(&column.time_separator);
        !has_several || (sequence.is_some() && is_alike)
    };
    let mut scored: Vec<(f64, &ColumnSurvey)> =
        others.iter().filter(fits).filter_map(|column| Some((time_score(column, survey)?, *column))).collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0));
    // Days do not order the events of a day, so a time of the event is better whatever its name is.
    if scored.first().is_some_and(|(_, best)| has_no_clock(best)) {
        let is_finer =
            |column: &ColumnSurvey| !has_no_clock(column) && Role::Time.fits(&column.name) && !is_other_time(column);
        scored.sort_by_key(|(_, column)| !is_finer(column));
    }
    if let [(best_score, best), (score, rival), ..] = scored[..]
        && (score + 2.0 > best_score || has_no_clock(best) != has_no_clock(rival))
    {
        doubts.push(Doubt::new(format!("the time is `{}`; `{}` has times too", best.name, rival.name), OTHER_TIME));
    }
    scored.first().map(|(_, column)| *column)
}

/// What may be wrong with the column that was chosen for the times.
fn doubts_about_times(column: &ColumnSurvey, notation: &TimeNotation, others: &[&ColumnSurvey]) -> Vec<Doubt> {
    let mut doubts = Vec::new();
    let name = &column.name;
    if notation.key == "mixed" {
        doubts.push(Doubt::new(
            format!("`{name}` has times in several notations; each value is recognised separately"),
            "`--time-format FORMAT`, `source.time`",
        ));
    }
    if column.time_share < 1.0 {
        doubts.push(Doubt::new(
            format!(
                "{} of the values of `{name}` are not {}{}",
                percent(1.0 - column.time_share),
                notation.described,
                such_as(column)
            ),
            "`--time-format FORMAT`, `source.time`",
        ));
    }
    let early = column.time_share - column.recent_share;
    if column.recent_share >= MOST && early > 0.0 {
        doubts.push(Doubt::new(
            format!("{} of the values of `{name}` are 0, which is read as a time of 1970", percent(early)),
            "`preprocess.since`, which drops them",
        ));
    }
    if let Some(other) = others.iter().find(|other| is_time_of_day(other)).filter(|_| has_no_clock(column)) {
        doubts.push(Doubt::new(
            format!(
                "`{name}` has dates and `{}` may have the time of day, which is not read: the events of a day are in the order of \
                 their lines; write both into one column, as in `2020-09-13 12:26:40`",
                other.name
            ),
            OTHER_TIME,
        ));
    }
    doubts
}

/// A share in percent, which is not shown as 0 unless it is 0.
fn percent(share: f64) -> String {
    if share > 0.0 && share < 0.0005 { "less than 0.1 %".to_owned() } else { format!("{:.1} %", 100.0 * share) }
}

/// The first value of a column that is not a time in the notation of the others, for the end of a message.
fn such_as(column: &ColumnSurvey) -> String {
    column.first_other_time.as_ref().map_or(String::new(), |other| format!(", such as `{other}`"))
}

/// The column whose name fits best as the time of events, the first of equal ones.
fn time_by_name<'s>(survey: &Survey, others: &[&'s ColumnSurvey], doubts: &mut Vec<Doubt>) -> Option<&'s ColumnSurvey> {
    let mut named: Vec<&ColumnSurvey> = others
        .iter()
        .copied()
        .filter(|column| Role::Time.fits(&column.name) && !is_other_time(column) && column.filled * 2 >= survey.rows)
        .collect();
    named.sort_by(|a, b| Role::Time.score(&b.name).total_cmp(&Role::Time.score(&a.name)));
    let best = named.first().copied()?;
    doubts.push(Doubt::new(
        format!("the time is `{}`, judging only by its name", best.name),
        "`--time COLUMN`, `source.columns.time`",
    ));
    Some(best)
}

/// Whether a column has times of something else than the event, judging by its name.
fn is_other_time(column: &ColumnSurvey) -> bool {
    tokens(&column.name).iter().any(|token| OTHER_TIMES.contains(&token.as_str()))
}

/// Whether a column may have times of a day: such as `23:30` or `11:30:05 PM`, and not durations, or numbers that are called so.
fn is_time_of_day(column: &ColumnSurvey) -> bool {
    let is_time = |text: &String| {
        let mut parts = text.split_whitespace().next().unwrap_or_default().split(':');
        let (hour, minute, rest) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default(), parts.count());
        let below = |part: &str, limit: u32| part.len() <= 2 && part.parse::<u32>().is_ok_and(|value| value < limit);
        below(hour, 24) && minute.len() == 2 && below(minute, 60) && rest <= 1
    };
    let words = tokens(&column.name);
    let has_word = TIMES_OF_DAY.iter().any(|word| words.iter().any(|own| own == word) || words.concat() == *word);
    let is_number = column.whole == column.filled
        && column.range.is_some_and(|(least, most)| least >= 0.0 && most < DAY)
        && column.distinct > 1;
    let is_named = Role::Time.fits(&column.name) || has_word;
    !column.examples.is_empty() && (is_named && column.examples.iter().all(is_time) || has_word && is_number)
}

/// Whether the values of a column are dates without a time of day.
fn has_no_clock(column: &ColumnSurvey) -> bool {
    let is_date = |time: &TimeNotation| !time.is_number && !time.key.contains("%H") && !time.key.contains("%I");
    // In ISO 8601, a time of day follows the ten characters of the date.
    column.time.as_ref().is_some_and(|time| time.as_ref().is_ok_and(is_date))
        && column.examples.iter().all(|text| !text.contains(':') && !text.contains('T'))
}

/// How well a column fits as the time of events; `None` if it does not hold times.
fn time_score(column: &ColumnSurvey, survey: &Survey) -> Option<f64> {
    let by_name = Role::Time.score(&column.name);
    if column.filled * 2 < survey.rows {
        return None;
    }
    let score = match column.time.as_ref()? {
        Err(_) => by_name + 2.0,
        Ok(_) if column.time_share < MOST => return None,
        Ok(notation) if notation.is_number => {
            let unit = match notation.key.as_str() {
                "ms" => 1e3,
                "us" => 1e6,
                "ns" => 1e9,
                _ => 1.0,
            };
            let (_, most) = column.range?;
            let is_named = by_name > 0.0 && most / unit >= EARLY;
            let other = [Role::Item, Role::User, Role::Code, Role::Price].iter().any(|role| role.fits(&column.name));
            let is_recent = column.recent_share >= MOST && !other;
            if !(is_named || is_recent) {
                return None;
            }
            by_name + 1.0
        }
        Ok(_) => by_name + 3.0,
    };
    Some(if is_other_time(column) { score - 8.0 } else { score })
}

/// The order of events without a column of times. A column whose name denotes a time is never ignored, because the order of lines may
/// differ from that of the times.
fn without_time(survey: &Survey, others: &[&ColumnSurvey], doubts: &mut Vec<Doubt>) -> Result<EventOrder> {
    let position = others.iter().find(|column| {
        Role::Position.fits(&column.name) && column.filled == survey.rows && column.whole == column.filled
    });
    if let Some(position) = position {
        doubts.push(Doubt::new(
            format!(
                "no column has times; `{}` is taken as the position of an event in its user's history",
                position.name
            ),
            "`--time COLUMN`, `source.columns.position`",
        ));
        return Ok(EventOrder::Position(position.name.clone()));
    }
    if let Some(column) = others.iter().find(|column| Role::Time.fits(&column.name) && column.filled > 0) {
        let examples = column.examples.iter().map(|example| format!("`{example}`")).collect::<Vec<_>>().join(", ");
        return Err(Error::Unknown(format!(
            "`{}` has values such as {examples}, not all of which are recognised as times of one notation{}; name the notation with \
             `--time-format FORMAT`, another column with `--time`, or give `--line-order` if each user's events are in the order of their lines",
            column.name,
            such_as(column)
        )));
    }
    doubts.push(Doubt::new(
        "no column has times: the events of a user are in the order of their lines, and the last line is the latest event".to_owned(),
        "`--time COLUMN`, `--time-format FORMAT`, `source.time`",
    ));
    Ok(EventOrder::LineOrder)
}
