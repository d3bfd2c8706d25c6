//! Reads the histories of users that need not be in the dataset, from a file or from standard input.
//!
//! Three formats: JSON lines with `user_id` and the list `history`; CSV and Parquet with the columns `user_id` and `history`; or CSV and
//! Parquet with one event per row in `user_id`, `item_id` and, unless the rows are in order of time, `timestamp`.

use std::fmt;
use std::io::Read as _;
use std::path::Path;

use mp4sr_artifact::{EventTime, Table, files, json_problem};
use mp4sr_pipeline::text::{quoted, tokens};
use serde::Deserialize;

/// The history of one user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct History {
    /// The user's id, or `line N` if the file gives none.
    pub user_id: String,
    /// Whether the file gives the user's id.
    pub is_named: bool,
    /// The ids of the items, oldest first.
    pub items: Vec<String>,
}

impl History {
    /// The history in line or row `number`. A blank id is none.
    fn of_line(number: u64, user_id: Option<String>, items: Vec<String>) -> Self {
        let user_id = user_id.filter(|id| !id.trim().is_empty());
        let is_named = user_id.is_some();
        Self { user_id: user_id.unwrap_or_else(|| format!("line {number}")), is_named, items }
    }
}

/// The histories of a file.
#[derive(Debug, Default)]
pub struct HistoriesFile {
    /// The histories in the order of the file.
    pub histories: Vec<History>,
    /// What a reader of the lists should know about how the file was read.
    pub warning: Option<String>,
}

/// The format of a file of histories.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum HistoryFormat {
    /// One JSON object per line.
    Jsonl,
    /// A table with a header.
    Csv,
    /// Parquet.
    Parquet,
}

/// The error of reading a file of histories.
#[derive(Debug, thiserror::Error)]
#[error("failed to read histories from `{origin}`: {what}")]
pub struct HistoriesError {
    /// The path of the file, or the name of standard input.
    pub origin: String,
    /// A description of the problem: what is wrong, where, and how to fix it.
    pub what: String,
}

/// The names of the columns in CSV and Parquet.
const USER: &str = "user_id";
const HISTORY: &str = "history";
const ITEM: &str = "item_id";
const TIME: &str = "timestamp";
/// The path that means standard input.
pub const STANDARD_INPUT: &str = "-";

/// Reads histories from a file, or from standard input (`-`). Without `format`, the file extension determines the format, and standard input
/// is read as JSON lines.
pub fn read(path: &Path, format: Option<HistoryFormat>) -> Result<HistoriesFile, HistoriesError> {
    let is_input = path == Path::new(STANDARD_INPUT);
    let origin = if is_input { "standard input".to_owned() } else { path.display().to_string() };
    let refuse = |what: String| HistoriesError { origin: origin.clone(), what };
    let is_gzip = !is_input && path.extension().is_some_and(|end| end.eq_ignore_ascii_case("gz"));
    if is_gzip {
        return Err(refuse("it is compressed with gzip; unpack it".to_owned()));
    }
    let format =
        format.or_else(|| if is_input { Some(HistoryFormat::Jsonl) } else { format_of(path) }).ok_or_else(|| {
            refuse(
                "its format cannot be determined from its name; use .jsonl, .csv or .parquet, or give `--input-format`"
                    .to_owned(),
            )
        })?;
    if format == HistoryFormat::Parquet {
        if is_input {
            return Err(refuse("Parquet cannot be read from a pipe; give the name of a file".to_owned()));
        }
        return of_parquet(path).and_then(not_empty).map_err(refuse);
    }
    let text = if is_input {
        let mut bytes = Vec::new();
        std::io::stdin().read_to_end(&mut bytes).map_err(|e| refuse(e.to_string()))?;
        files::utf8(bytes).map_err(|reason| refuse(format!("{reason}; save it as UTF-8")))?
    } else {
        files::read_to_string(path).map_err(|e| refuse(e.to_string()))?
    };
    let text = text.trim_start_matches('\u{feff}');
    let histories = if format == HistoryFormat::Jsonl { of_json_lines(text) } else { of_csv(text) };
    histories.and_then(not_empty).map_err(refuse)
}

fn not_empty(read: HistoriesFile) -> Result<HistoriesFile, String> {
    if read.histories.is_empty() { Err("it has no history".to_owned()) } else { Ok(read) }
}

fn format_of(path: &Path) -> Option<HistoryFormat> {
    match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
        "jsonl" | "ndjson" | "json" => Some(HistoryFormat::Jsonl),
        "csv" => Some(HistoryFormat::Csv),
        "parquet" => Some(HistoryFormat::Parquet),
        _ => None,
    }
}

/// Parses a history that is given on the command line: ids as in CSV, in one line or several.
pub fn of_argument(text: &str) -> Result<History, HistoriesError> {
    let refuse = |what: String| HistoriesError { origin: "--history".to_owned(), what };
    let mut reader = csv::ReaderBuilder::new();
    let mut reader = reader.has_headers(false).flexible(true).trim(csv::Trim::All).from_reader(text.as_bytes());
    let records = reader.records().collect::<Result<Vec<_>, _>>().map_err(|e| refuse(e.to_string()))?;
    let items: Vec<String> = records.iter().flatten().filter(|id| !id.is_empty()).map(str::to_owned).collect();
    if items.is_empty() {
        return Err(refuse("it names no item; give ids separated by commas, oldest first".to_owned()));
    }
    Ok(History { user_id: "history".to_owned(), is_named: false, items })
}

/// An id as it may be written in JSON.
#[derive(Deserialize)]
#[serde(untagged, expecting = "an id is neither text nor a whole number")]
enum Id {
    Text(String),
    Number(i64),
    Large(u64),
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Number(number) => write!(f, "{number}"),
            Self::Large(number) => write!(f, "{number}"),
        }
    }
}

#[derive(Deserialize)]
struct Line {
    user_id: Option<Id>,
    history: Vec<Id>,
}

/// The first key of an object beside its history, if it has no `user_id`, not even null.
fn key_of_another_name(line: &str) -> Option<String> {
    let object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(line).ok()?;
    if object.contains_key(USER) {
        return None;
    }
    object.into_iter().map(|(key, _)| key).find(|key| key != HISTORY)
}

fn of_json_lines(text: &str) -> Result<HistoriesFile, String> {
    const EXPECTED: &str = r#"expected `{"user_id": "u", "history": ["a", "b"]}` with ids as texts or whole numbers"#;
    let mut histories = Vec::new();
    for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty()) {
        if !line.trim_start().starts_with('{') {
            return Err(format!("line {number}: not an object; {EXPECTED}"));
        }
        let read: Line =
            serde_json::from_str(line).map_err(|e| format!("line {number}: {}; {EXPECTED}", in_line(&e)))?;
        // Other keys are allowed beside those of the users, who would otherwise lose their ids.
        let other = if read.user_id.is_none() { key_of_another_name(line) } else { None };
        if let Some(other) = other {
            return Err(format!(
                "line {number}: it has no `{USER}`, and {} is not read as one; name the key of the user's id `{USER}`, with null for a user \
                 without one, or remove the other keys",
                quoted(&other)
            ));
        }
        let user_id = read.user_id.map(|id| id.to_string());
        histories.push(History::of_line(number, user_id, read.history.iter().map(ToString::to_string).collect()));
    }
    Ok(HistoriesFile { histories, warning: None })
}

/// What is wrong with a line that was parsed alone.
fn in_line(error: &serde_json::Error) -> String {
    json_problem(error).replacen("at line 1 column ", "at column ", 1)
}

fn of_csv(text: &str) -> Result<HistoriesFile, String> {
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let header = reader.headers().map_err(|e| csv_problem(&e))?.clone();
    let names: Vec<&str> = header.iter().map(str::trim).collect();
    let column = |name: &str| names.iter().position(|own| *own == name);
    let layout = HistoryLayout::of(&names)?;
    let (user, item, time) = (column(USER), column(ITEM), column(TIME));
    let (mut histories, mut events) = (Vec::new(), Vec::new());
    for record in reader.records() {
        let record = record.map_err(|e| csv_problem(&e))?;
        let line = record.position().map_or(0, csv::Position::line);
        // A quotation mark that is never closed would make the following lines part of this one.
        if record.iter().any(|cell| cell.trim().contains('\n')) {
            return Err(format!(
                "line {line}: a cell has a line break between quotation marks; close them, or write the ids in one line"
            ));
        }
        let cell = |at: Option<usize>| at.and_then(|at| record.get(at)).unwrap_or_default().trim();
        match layout {
            HistoryLayout::Histories { history } => {
                if is_list(cell(Some(history))) {
                    return Err(format!(
                        "line {line}: `{HISTORY}` is {}, which is a list in the notation of Python or JSON; separate the ids by spaces, as in \
                         `a b`, or write JSON lines",
                        quoted(cell(Some(history)))
                    ));
                }
                let items = cell(Some(history)).split_whitespace().map(str::to_owned).collect();
                histories.push(History::of_line(line, user.map(|_| cell(user).to_owned()), items));
            }
            HistoryLayout::Events => {
                if cell(user).is_empty() || cell(item).is_empty() {
                    return Err(without_id("line", line));
                }
                let at = match time {
                    None => EventTime::default(),
                    Some(_) => EventTime::parse(cell(time)).ok_or_else(|| {
                        let found = quoted(cell(time));
                        format!("line {line}: `{TIME}` is {found}, expected a number, such as Unix seconds")
                    })?,
                };
                events.push((cell(user).to_owned(), cell(item).to_owned(), at));
            }
        }
    }
    if layout == HistoryLayout::Events {
        histories = of_events(events);
    }
    Ok(HistoriesFile { histories, warning: layout.warning(&names) })
}

/// Whether a cell is a list as Python and JSON write it, and not ids that are in brackets themselves.
fn is_list(cell: &str) -> bool {
    cell.starts_with('[') && cell.ends_with(']') && cell.contains(['\'', '"', ','])
}

fn without_id(place: &str, number: u64) -> String {
    format!("{place} {number}: `{USER}` and `{ITEM}` must have a value")
}

/// Describes a CSV error, with its line.
fn csv_problem(error: &csv::Error) -> String {
    match error.kind() {
        csv::ErrorKind::UnequalLengths { pos, expected_len, len } => {
            let line = pos.as_ref().map_or(0, csv::Position::line);
            format!("line {line}: expected {expected_len} cells, as the header has, found {len}")
        }
        _ => error.to_string(),
    }
}

/// The layout of a table.
#[derive(Clone, Copy, PartialEq, Eq)]
enum HistoryLayout {
    /// One history per row.
    Histories {
        /// The index of the column `history`.
        history: usize,
    },
    /// One event per row.
    Events,
}

impl HistoryLayout {
    fn of(names: &[&str]) -> Result<Self, String> {
        let is_twice = |name: &&&str| names.iter().filter(|own| own == name).count() > 1;
        if let Some(name) = [USER, ITEM, TIME, HISTORY].iter().find(is_twice) {
            return Err(format!("it has the column `{name}` twice; remove one of them"));
        }
        // Other columns are allowed beside those of the users, who would otherwise lose their ids.
        let is_clear = names.len() == 1 || names.contains(&USER);
        match (names.iter().position(|name| *name == HISTORY), names.contains(&ITEM)) {
            (Some(history), false) if is_clear => return Ok(Self::Histories { history }),
            (None, true) if names.contains(&USER) => {
                let other = names.iter().find(|name| is_like_time(name)).filter(|_| !names.contains(&TIME));
                return other.map_or(Ok(Self::Events), |other| {
                    Err(format!(
                        "{} is not read as the time of events; name it `{TIME}`, or remove it if the rows are in order of time",
                        quoted(other)
                    ))
                });
            }
            _ => {}
        }
        Err(format!(
            "its columns are {}; expected `{USER}` and `{HISTORY}`, or one event per row in `{USER}`, `{ITEM}` and optionally `{TIME}`",
            names.iter().map(|name| quoted(name)).collect::<Vec<_>>().join(", ")
        ))
    }

    /// Names the columns of events that are not read if one of them may hold the order of the events.
    fn warning(self, names: &[&str]) -> Option<String> {
        let others = names.iter().filter(|name| !["", USER, ITEM].contains(*name)).map(|name| quoted(name));
        let others = others.collect::<Vec<_>>().join(", ");
        let is_doubtful = self == Self::Events && !names.contains(&TIME) && !others.is_empty();
        is_doubtful.then(|| {
            format!(
                "{others}: not read; without a column `{TIME}`, the events of a user are taken in the order of the rows"
            )
        })
    }
}

/// Whether the name of a column denotes times, which must not be ignored: the order of the rows may be another one.
fn is_like_time(name: &str) -> bool {
    const WORDS: [&str; 8] = ["timestamp", "time", "datetime", "date", "ts", "zeit", "datum", "fecha"];
    // These words denote times only as a whole name.
    const NAMES: [&str; 4] = ["day", "when", "created", "epoch"];
    let words = tokens(name);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let is_unix = words.first().is_some_and(|word| ["unix", "epoch"].contains(word));
    let is_moment = words.len() > 1 && words.last() == Some(&"at");
    words.iter().any(|word| WORDS.contains(word))
        || is_unix
        || is_moment
        || matches!(words[..], [one] if NAMES.contains(&one))
}

/// Groups events by user. Users are ordered by their first row; the events of each by time, and those of equal times by row.
fn of_events(events: Vec<(String, String, EventTime)>) -> Vec<History> {
    let mut of_users: indexmap::IndexMap<String, Vec<(EventTime, String)>> = indexmap::IndexMap::new();
    for (user, item, time) in events {
        of_users.entry(user).or_default().push((time, item));
    }
    let history = |(user_id, mut events): (String, Vec<(EventTime, String)>)| {
        events.sort_by_key(|(time, _)| *time);
        History { user_id, is_named: true, items: events.into_iter().map(|(_, item)| item).collect() }
    };
    of_users.into_iter().map(history).collect()
}

fn of_parquet(path: &Path) -> Result<HistoriesFile, String> {
    let text = |e: mp4sr_artifact::Error| e.to_string();
    let mut table = Table::read(path, "write it again").map_err(text)?;
    let names: Vec<String> = table.names().map(str::to_owned).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let layout = HistoryLayout::of(&names)?;
    let users = if table.has(USER) { Some(table.take_ids(USER).map_err(text)?) } else { None };
    if let HistoryLayout::Histories { .. } = layout {
        let histories = (1..).zip(table.take_id_lists(HISTORY).map_err(text)?);
        let mut users = users.into_iter().flatten();
        let histories = histories.map(|(number, items)| History::of_line(number, users.next(), items)).collect();
        return Ok(HistoriesFile { histories, warning: None });
    }
    let items = table.take_ids(ITEM).map_err(text)?;
    let times =
        if table.has(TIME) { table.take_times(TIME).map_err(text)? } else { vec![EventTime::default(); items.len()] };
    let users = users.unwrap_or_default();
    let is_blank = |(user, item): (&String, &String)| user.trim().is_empty() || item.trim().is_empty();
    if let Some(row) = users.iter().zip(&items).position(is_blank) {
        return Err(without_id("row", row as u64 + 1));
    }
    let events = users.into_iter().zip(items).zip(times).map(|((user, item), time)| (user, item, time));
    Ok(HistoriesFile { histories: of_events(events.collect()), warning: layout.warning(&names) })
}

#[cfg(test)]
mod tests {
    use mp4sr_artifact::Column;

    use super::*;

    fn history(user_id: &str, items: &[&str]) -> History {
        let items = items.iter().map(|&item| item.to_owned()).collect();
        History { user_id: user_id.to_owned(), is_named: !user_id.starts_with("line "), items }
    }

    #[test]
    fn the_layouts_agree() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let expected = [history("u1", &["7", "b", "7"]), history("u2", &["c"])];
        std::fs::write(
            path("h.jsonl"),
            "{\"user_id\": \"u1\", \"history\": [7, \"b\", \"7\"], \"note\": 1}\n\n{\"user_id\": \"u2\", \"history\": [\"c\"]}\n",
        )
        .unwrap();
        std::fs::write(path("h.csv"), "\u{feff}user_id,history\nu1,7 b 7\nu2,c\n").unwrap();
        std::fs::write(path("e.csv"), "item_id,user_id,timestamp\nb,u1,20\n7,u1,3.5\nc,u2,1\n7,u1,20\n").unwrap();
        let texts = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<String>>();
        let table = Table::new(vec![
            ("user_id", Column::Text(texts(&["u1", "u2"]))),
            ("history", Column::Texts(vec![texts(&["7", "b", "7"]), texts(&["c"])])),
        ]);
        table.write(&path("h.parquet")).unwrap();
        let table = Table::new(vec![
            ("user_id", Column::Text(texts(&["u1", "u2", "u1", "u1"]))),
            ("item_id", Column::Text(texts(&["b", "c", "7", "7"]))),
            ("timestamp", Column::U32(vec![20, 1, 3, 20])),
        ]);
        table.write(&path("e.parquet")).unwrap();
        for name in ["h.jsonl", "h.csv", "e.csv", "h.parquet", "e.parquet"] {
            assert_eq!(read(&path(name), None).unwrap().histories, expected, "{name}");
        }
        // The extension does not always determine the format.
        std::fs::copy(path("h.csv"), path("h.txt")).unwrap();
        std::fs::write(path("b.csv"), "user_id,history\nu1,[a] b [c]\n").unwrap();
        assert_eq!(read(&path("b.csv"), None).unwrap().histories, [history("u1", &["[a]", "b", "[c]"])]);
        assert_eq!(read(&path("h.txt"), Some(HistoryFormat::Csv)).unwrap().histories, expected);
        assert!(read(&path("h.txt"), None).unwrap_err().to_string().contains("--input-format"));
        assert_eq!(of_json_lines("{\"history\": [1]}").unwrap().histories, [history("line 1", &["1"])]);
    }

    #[test]
    fn blank_ids_are_none_in_every_format() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let texts = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<String>>();
        std::fs::write(
            path("h.jsonl"),
            "{\"user_id\": null, \"history\": [\"a\"], \"x\": 1}\n{\"user_id\": \" \", \"history\": [\"b\"]}\n",
        )
        .unwrap();
        std::fs::write(path("h.csv"), "history,user_id\na, \nb,\n").unwrap();
        let lists = Column::Texts(vec![texts(&["a"]), texts(&["b"])]);
        Table::new(vec![("user_id", Column::Text(texts(&["", " "]))), ("history", lists)])
            .write(&path("h.parquet"))
            .unwrap();
        for (name, lines) in [("h.jsonl", [1, 2]), ("h.csv", [2, 3]), ("h.parquet", [1, 2])] {
            let expected =
                [history(&format!("line {}", lines[0]), &["a"]), history(&format!("line {}", lines[1]), &["b"])];
            assert_eq!(read(&path(name), None).unwrap().histories, expected, "{name}");
        }
        Table::new(vec![("user_id", Column::Text(texts(&["u", ""]))), ("item_id", Column::Text(texts(&["a", "b"])))])
            .write(&path("e.parquet"))
            .unwrap();
        let message = read(&path("e.parquet"), None).unwrap_err().to_string();
        assert!(message.contains("row 2: `user_id` and `item_id` must have a value"), "{message}");
    }

    #[test]
    fn numbers_are_ids_in_parquet_too() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("e.parquet");
        Table::new(vec![("user_id", Column::U32(vec![5, 5])), ("item_id", Column::U32(vec![12, 3]))])
            .write(&path)
            .unwrap();
        assert_eq!(read(&path, None).unwrap().histories, [history("5", &["12", "3"])]);
    }

    #[test]
    fn columns_that_may_have_the_order_of_events_are_refused_or_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("e.csv");
        let read_with = |name: &str| {
            std::fs::write(&path, format!("user_id,item_id,{name}\nu,a,2\nu,b,1\n")).unwrap();
            read(&path, None)
        };
        for name in ["unixReviewTime", "created_at", "viewedAt", "order date", "day", "epoch_ms", "TS", "fecha"] {
            let message = read_with(name).unwrap_err().to_string();
            assert!(message.contains("is not read as the time of events"), "{name}: {message}");
        }
        for name in ["bought_on", "runtime", "price", "created_by", "day_of_week"] {
            let warning = read_with(name).unwrap().warning.unwrap();
            assert!(warning.starts_with(&format!("`{name}`: not read; without a column `timestamp`")), "{warning}");
        }
        for text in ["user_id,item_id,price,timestamp\nu,a,2,1\n", ",user_id,item_id\n0,u,a\n"] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(read(&path, None).unwrap().warning, None);
        }
    }

    #[test]
    fn problems_are_reported_with_their_line() {
        let folder = tempfile::tempdir().unwrap();
        for (name, text, part) in [
            ("a.jsonl", "{\"history\": [\"a\"]}\n{\"user_id\": 1}\n", "line 2: missing field `history`"),
            ("b.jsonl", "{\"history\": [1.5]}\n", "line 1: an id is neither text nor a whole number"),
            ("c.jsonl", "\n", "it has no history"),
            (
                "k.jsonl",
                "{\"user\": \"u\", \"history\": [\"a\"]}\n",
                "line 1: it has no `user_id`, and `user` is not read as one",
            ),
            ("d.csv", "user,items\n1,2\n", "its columns are `user`, `items`; expected `user_id` and `history`"),
            ("e.csv", "user_id,item_id,timestamp\n1,2,noon\n", "line 2: `timestamp` is `noon`"),
            ("f.csv", "user_id,item_id\n1,\n", "line 2: `user_id` and `item_id` must have a value"),
            ("g.csv", "user_id,history\n1,2,3\n", "line 2: expected 2 cells"),
            ("m.csv", "user_id,history\n1,\"['007', 'i1']\"\n", "which is a list in the notation of Python or JSON"),
            ("h.csv", "user_id,history\n1,\"2\n3,4\n", "line 2: a cell has a line break between quotation marks"),
            (
                "k.csv",
                "user_id,item_id,Timestamp\n1,2,3\n",
                "`Timestamp` is not read as the time of events; name it `timestamp`",
            ),
            ("l.csv", "user_id,order-date,item_id\n1,2,3\n", "`order-date` is not read as the time of events"),
            ("i.csv", "user,history\n1,2\n", "its columns are `user`, `history`; expected `user_id` and `history`"),
            ("j.csv", "user_id,history,item_id\n1,2,3\n", "its columns are `user_id`, `history`, `item_id`; expected"),
        ] {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            let message = read(&path, None).unwrap_err().to_string();
            assert!(message.contains(part) && message.contains(name), "{name}: {message}");
        }
        assert!(of_argument(" , ").unwrap_err().to_string().contains("names no item"));
        assert_eq!(of_argument("a,\"b,c\", d").unwrap().items, ["a", "b,c", "d"]);
    }
}
