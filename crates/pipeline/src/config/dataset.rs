//! `[dataset]`, `[source]` and `[preprocess]`: the raw files, how they are read, and which events are kept.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

/// `[dataset]`: the name of the dataset and the folder of its raw files.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Dataset {
    /// The name of the dataset, and of its folder `artifacts/<name>`.
    pub name: String,
    /// The folder that the paths of `[source]` are relative to; `DATA=` and `--data` replace it. Empty: `data`.
    pub data: String,
    /// The row of the paper's Table 1 to print next to the counts: Poetry, Pantry, Arts or Office. Empty: none.
    pub table1: String,
}

/// The format of the raw files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Format {
    /// Amazon reviews and metadata of 2014 (metadata lines may be Python literals).
    #[serde(rename = "amazon-2014")]
    Amazon2014,
    /// Amazon reviews and metadata of 2018.
    #[default]
    #[serde(rename = "amazon-2018")]
    Amazon2018,
    /// Amazon reviews and metadata of 2023.
    #[serde(rename = "amazon-2023")]
    Amazon2023,
    /// `GoodReads` interactions and books.
    #[serde(rename = "goodreads")]
    GoodReads,
    /// `RecBole` atomic `.inter` and `.item`.
    #[serde(rename = "recbole")]
    RecBole,
    /// CSV, TSV, JSON lines or Parquet (recognised by the file's name) with the columns of `[source.columns]`.
    #[serde(rename = "tabular")]
    Tabular,
}

/// `[source]`: how to read the raw files.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Source {
    /// The format of the raw files.
    pub format: Format,
    /// The files of interactions, relative to the data folder; they may be compressed (`.gz`).
    pub interactions: Vec<String>,
    /// The files of items, relative to the data folder; they may be compressed (`.gz`).
    pub items: Vec<String>,
    /// The folder of the images, relative to the data folder, or a pattern such as `images/{id:3}/{id}.jpg`. In a folder, images are named
    /// by item id (`<id>.jpg`, `<id>_2.png`) or by a column; in a pattern, `{id:3}` is the first three characters of the id and `*` any
    /// text. Empty: none.
    pub images: String,
    /// How times are written: `s`, `ms`, `us` or `ns` (Unix time), `iso` (dates, and dates with times), a `strptime` pattern such
    /// as `%d.%m.%Y`, `line-order` (no time is read, and events are in the order of their lines), or `mixed` (each value is recognised
    /// separately). Empty: the unit of the format; in the tabular and RecBole formats, the unit is recognised for each file.
    pub time: String,
    /// The separator of columns in text files: one or more characters, such as `::`. Empty: the separator that the file's extension
    /// implies, or else the one that yields the named columns.
    pub separator: String,
    /// The names of the columns of interactions, in order, for files without a header line. Empty: the files have a header line.
    pub interactions_header: Vec<String>,
    /// The names of the columns of items, in order, for files without a header line. Empty: the files have a header line.
    pub items_header: Vec<String>,
    /// The encoding of text files, such as `latin-1`, `utf-16` or `gbk`. Empty: UTF-8, or UTF-16 for files that begin with its byte
    /// order mark.
    pub encoding: String,
    /// How quotation marks around a field of a text file are read.
    pub quoting: Quoting,
    /// The character that escapes a quotation mark within a quoted field: `\`. Empty: quotation marks are doubled.
    pub quote_escape: String,
    /// Whether numbers have a decimal comma. In files whose columns are separated by `;`, both a comma and a point are accepted.
    pub decimal_comma: bool,
    /// The columns or fields of items from which HTML is removed. Unset: all of them. Only names of HTML elements count as tags.
    pub html: Option<Vec<String>>,
    /// The names of columns, for the tabular and RecBole formats.
    pub columns: Columns,
}

/// How quotation marks around a field of a text file are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Quoting {
    /// Fields between commas or semicolons may be quoted. With other separators, a field counts as quoted only if it needs the
    /// quotation marks, as in files that pandas writes.
    #[default]
    Recognised,
    /// Any field may be quoted.
    Always,
    /// Quotation marks are part of the text.
    Never,
}

/// `[source.columns]`: the names of columns, for the tabular and RecBole formats.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Columns {
    /// The column of interactions that holds the user id.
    pub user: String,
    /// The column of interactions that holds the item id.
    pub item: String,
    /// The separator of items in a cell that holds a sequence of items, in order; the cell of times may hold as many times. Empty: a
    /// cell holds one item, or a list in a JSON or Parquet file.
    pub item_separator: String,
    /// The column of interactions that holds the time of the event, in the notation of `source.time`. If it is empty, events have no
    /// time; see `position`.
    pub time: String,
    /// The column of interactions that holds the position in the user's sequence, for data without times. Empty: none. A column that is
    /// named in `time` as well is refused.
    pub position: String,
    /// The column of items that holds the item id.
    pub item_id: String,
    /// The column of items that holds the title. Empty: none.
    pub title: String,
    /// The columns of items that hold further texts, in this order; lists are joined.
    pub texts: Vec<String>,
    /// The separator of several texts in a cell of `texts`, such as genres. Empty: a cell is one text or a list.
    pub text_separator: String,
    /// The column of items that holds the name of an image file (relative to the folder of the items' file, the data folder or
    /// `source.images`), a URL, or a list of these. Files that are named by item id stand in for URLs and missing files. Empty: none.
    pub images: String,
    /// The separator of several images in a cell. Empty: spaces, `|`, `,` and `;` before a URL, or between names of image files.
    pub image_separator: String,
    /// The columns of items that hold categories such as genres or departments: a list, or a text with several categories. Some
    /// models read them.
    pub categories: Vec<String>,
    /// The separator of categories in a text. Empty: a space in the RecBole format; in other formats, a text is one category.
    pub category_separator: String,
    /// The column of items that holds the path of a sound file, WAV or FLAC (relative to the items' file), or a list of paths. Empty: none.
    pub sounds: String,
    /// The column of items that holds a list of sentences. They are used unchanged, after those of the title and before those of
    /// `texts`. Empty: none.
    pub sentences: String,
}

impl Default for Columns {
    fn default() -> Self {
        Self {
            user: "user_id".to_owned(),
            item: "item_id".to_owned(),
            item_separator: String::new(),
            time: "timestamp".to_owned(),
            position: String::new(),
            item_id: "item_id".to_owned(),
            title: "title".to_owned(),
            texts: Vec::new(),
            text_separator: String::new(),
            images: String::new(),
            image_separator: String::new(),
            categories: Vec::new(),
            category_separator: String::new(),
            sounds: String::new(),
            sentences: String::new(),
        }
    }
}

/// An interpretation of the paper's data preparation; single keys take precedence over it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DataPreset {
    /// Users and items have at least five events; items that lack a modality are kept.
    #[default]
    #[serde(rename = "strict-5core")]
    Strict5Core,
    /// Matches the paper's Table 1: users have at least five events, and items have both modalities.
    #[serde(rename = "table1")]
    Table1,
    /// As in the released code: users have at least five events, and all items are kept.
    #[serde(rename = "released")]
    Released,
}

/// Which of a user's repeated events with the same item are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Repeated {
    /// The last event.
    #[default]
    Last,
    /// The first event.
    First,
    /// All events.
    All,
}

/// What happens to items without a line in the items' files, without text or without image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Missing {
    /// They are kept, with no feature rows in that modality.
    Keep,
    /// They are dropped, with their events.
    Drop,
    /// Items without a line in the items' files are dropped, with their events: those that have left the catalogue, for example. Others
    /// are kept.
    DropUndescribed,
}

/// What happens to items of the items' files that have no event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WithoutEvents {
    /// They are dropped.
    #[default]
    Drop,
    /// They are kept, numbered after the others, as candidates of rankings and lists.
    Keep,
}

/// The order in which items are numbered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ItemOrder {
    /// The order of each item's first event in the files of interactions.
    #[default]
    Interactions,
    /// The order of lines in the items' files; items with events and without a line follow in the order of their first event. Items
    /// without events, if they are kept, come last, also in the order of their lines.
    Items,
}

/// How a user's events are divided into the training, validation and test sets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SplitBy {
    /// The last event is the test target, and the one before it the validation target.
    #[default]
    LeaveOneOut,
    /// The same shares of each user's events, in order of time, as `RecBole` splits them.
    Ratio,
    /// Events before a global cut-off time are for training, whichever user they belong to, so that no model is trained on events
    /// later than those that it is tested on.
    Time,
}

/// The keys of `[preprocess]` that hold a time.
const TIMES: [&str; 4] = ["since", "until", "split_at", "split_test_at"];

/// A time may be written without quotes: TOML has dates, and a unit of the file may be a number.
pub(super) fn times_as_text(pipeline: &mut Table) {
    let Some(keys) = pipeline.get_mut("preprocess").and_then(Value::as_table_mut) else { return };
    for (_, value) in keys.iter_mut().filter(|(key, _)| TIMES.contains(&key.as_str())) {
        if matches!(value, Value::Datetime(_) | Value::Integer(_) | Value::Float(_)) {
            *value = Value::String(value.to_string());
        }
    }
}

/// `[preprocess]`: filters and text cleaning.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Preprocess {
    /// An interpretation of the paper's data preparation; the keys of this section take precedence over it.
    pub preset: DataPreset,
    /// A condition on the columns of the interactions as an SQL expression, such as `rating >= 4 AND verified`. Events that do not satisfy
    /// it are dropped before all other filters, and so are events for which it evaluates to null because a value is missing. Empty: no
    /// condition.
    pub r#where: String,
    /// Events before this time are dropped: a date, a date and a time (UTC unless they have an offset), or a number in the unit of
    /// the file. Empty: no lower limit.
    pub since: String,
    /// Events at or after this time are dropped; the notation is that of `since`. Empty: no upper limit.
    pub until: String,
    /// The number of most recent events to keep per user, before `user_core` and `item_core` apply; 0 keeps all.
    #[schemars(range(min = 0, max = 1_000_000_000))]
    pub recent: u32,
    /// The minimum number of events per user; 0 disables the limit. Unset: the value of the preset.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub user_core: Option<u32>,
    /// The minimum number of events per item; 0 disables the limit. Unset: the value of the preset.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub item_core: Option<u32>,
    /// What happens to items without a line, a text or an image. Unset: the value of the preset.
    pub missing: Option<Missing>,
    /// What happens to items of the items' files that have no event left after the filters.
    pub items_without_events: WithoutEvents,
    /// The order in which items are numbered: that of events, or that of lines in the items' files.
    pub item_order: ItemOrder,
    /// The minimum share of events whose item has a line in the items' files. Below it, the stage stops, because the ids in the files
    /// do not match. 0 disables the check.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub min_described: f64,
    /// Further texts that denote a missing value, in addition to `nan`, `NULL`, `None`, `N/A`, `\N`, `(no genres listed)` and similar ones.
    pub placeholders: Vec<String>,
    /// Which of a user's repeated events with the same item are kept.
    pub repeated: Repeated,
    /// How each user's events are divided into the training, validation and test sets. A user's target in the validation set
    /// or the test set is the first of the user's events there.
    pub split: SplitBy,
    /// With `split = "ratio"`, the shares of training, validation and test: three numbers above 0 whose sum is 1.
    #[schemars(length(min = 3, max = 3))]
    pub split_ratio: Vec<f64>,
    /// With `split = "time"`, the time at which training ends: events at or after it are for validation or the test. The notation is that
    /// of `since`.
    pub split_at: String,
    /// With `split = "time"`, the time at which the test begins. Events between the two times are for validation.
    pub split_test_at: String,
    /// The maximum memory for interactions, such as `"4GiB"`; beyond it, they are spilled to disk next to the dataset. The dataset is the
    /// same, except for rounding if `where` compares with a sum or an average of fractional numbers. Empty: all interactions stay in
    /// memory.
    pub memory: String,
    /// The maximum number of sentences per item.
    #[schemars(range(min = 1, max = 1000))]
    pub max_sentences: usize,
    /// The maximum number of images per item.
    #[schemars(range(min = 0, max = 1000))]
    pub max_images: usize,
    /// The maximum number of rejected lines; with more, the stage stops.
    pub max_bad_lines: u64,
    /// The maximum share of rejected lines among those of interactions, and among those of items; with more, the stage stops, because the
    /// format of the files is probably not the one that was assumed.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub max_bad_share: f64,
}

impl Default for Preprocess {
    fn default() -> Self {
        Self {
            preset: DataPreset::default(),
            r#where: String::new(),
            since: String::new(),
            until: String::new(),
            recent: 0,
            user_core: None,
            item_core: None,
            missing: None,
            items_without_events: WithoutEvents::default(),
            item_order: ItemOrder::default(),
            min_described: 0.05,
            placeholders: Vec::new(),
            repeated: Repeated::default(),
            split: SplitBy::default(),
            split_ratio: vec![0.8, 0.1, 0.1],
            split_at: String::new(),
            split_test_at: String::new(),
            memory: String::new(),
            max_sentences: 10,
            max_images: 10,
            max_bad_lines: 1_000_000,
            max_bad_share: 0.5,
        }
    }
}

impl Preprocess {
    /// The settings that decide what a dataset contains: all but the limit of memory, which decides how it is built.
    pub fn deciding(&self) -> serde_json::Value {
        let mut settings = serde_json::to_value(self).unwrap_or_default();
        if let Some(keys) = settings.as_object_mut() {
            keys.remove("memory");
        }
        settings
    }

    pub(super) fn resolve(&mut self) {
        let (user_core, item_core, missing) = match self.preset {
            DataPreset::Strict5Core => (5, 5, Missing::Keep),
            DataPreset::Released => (5, 0, Missing::Keep),
            DataPreset::Table1 => (5, 0, Missing::Drop),
        };
        self.user_core.get_or_insert(user_core);
        self.item_core.get_or_insert(item_core);
        self.missing.get_or_insert(missing);
    }
}
