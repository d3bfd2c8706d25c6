use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

/// `[dataset]`: what the dataset is called and where its raw files lie.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Dataset {
    /// Names the folder `artifacts/<name>`.
    pub name: String,
    /// Folder that the paths of `[source]` start from; `DATA=` and `--data` replace it. Empty: `data`.
    pub data: String,
    /// Row of the paper's Table 1 to print beside the counts: Poetry, Pantry, Arts or Office. Empty: none.
    pub table1: String,
}

/// The form of the raw files.
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
    /// CSV, TSV, JSON lines or Parquet (told by the file's name) with the columns of `[source.columns]`.
    #[serde(rename = "tabular")]
    Tabular,
}

/// `[source]`: how to read the raw files.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Source {
    /// The form of the raw files.
    pub format: Format,
    /// Files of interactions, relative to the data folder; `.gz` allowed.
    pub interactions: Vec<String>,
    /// Files of items, relative to the data folder; `.gz` allowed.
    pub items: Vec<String>,
    /// Folder of images named by item id (`<id>.jpg`, `<id>_2.png`) or by a column, relative to the data folder, or a pattern such as
    /// `images/{id:3}/{id}.jpg`, in which `{id:3}` is the first three characters of the id and `*` any text. Empty: none.
    pub images: String,
    /// How times are written: `s`, `ms`, `us` or `ns` (Unix time), `iso` (dates, and dates with times), a `strptime` pattern such
    /// as `%d.%m.%Y`, `line-order` (no time is read: lines are in order), or `mixed` (each value is recognised by itself). Empty:
    /// as the form has it; in the tabular and RecBole forms it is recognised for each file.
    pub time: String,
    /// What separates columns, in files of text: one or more characters, such as `::`. Empty: as the name of the file says,
    /// or what gives the named columns.
    pub separator: String,
    /// Names of the columns of interactions, in order, where their files have no header line. Empty: they have one.
    pub interactions_header: Vec<String>,
    /// Names of the columns of items, in order, where their files have no header line. Empty: they have one.
    pub items_header: Vec<String>,
    /// Encoding of files of text, such as `latin-1`, `utf-16` or `gbk`. Empty: UTF-8, or UTF-16 where the file has its mark.
    pub encoding: String,
    /// How quotation marks around a field are read, in files of text.
    pub quoting: Quoting,
    /// The character before a quotation mark that belongs to a quoted field, where it is not doubled: `\` or nothing.
    pub quote_escape: String,
    /// Whether numbers have a comma in place of a point. Columns that `;` separates may have either.
    pub decimal_comma: bool,
    /// Columns or fields of items whose HTML is removed. Unset: all; only names of HTML elements are tags.
    pub html: Option<Vec<String>>,
    /// Names of columns, for the tabular and RecBole forms.
    pub columns: Columns,
}

/// How quotation marks around a field are read, in files of text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Quoting {
    /// Fields between commas or semicolons may be quoted; elsewhere a field is quoted where it could not stand otherwise, as pandas
    /// writes it.
    #[default]
    Recognised,
    /// A field may be quoted.
    Always,
    /// Quotation marks are text.
    Never,
}

/// `[source.columns]`: names of columns, for the tabular and RecBole forms.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Columns {
    /// User id, in interactions.
    pub user: String,
    /// Item id, in interactions.
    pub item: String,
    /// What separates the items in a cell that holds a sequence of them, in order; times may be as many in their cell. Empty: a cell
    /// holds one item, or a list of a JSON or Parquet file.
    pub item_separator: String,
    /// Time of the event in interactions, written as `source.time` says. Empty: there is no clock, see `position`.
    pub time: String,
    /// Position in the user's sequence, where there is no clock. Empty: none.
    pub position: String,
    /// Item id, in items.
    pub item_id: String,
    /// Title, in items. Empty: none.
    pub title: String,
    /// Further texts, in items, in this order; lists are joined.
    pub texts: Vec<String>,
    /// What separates several texts in a cell of `texts`, such as genres. Empty: a cell is one text or a list.
    pub text_separator: String,
    /// Name of an image file (from the folder of the items' file, the data folder, or `source.images`) or URL, or a list of them, in items.
    /// Empty: none.
    pub images: String,
    /// What separates several images in a cell. Empty: blanks, `|`, `,` and `;` before an address, or between names of image files.
    pub image_separator: String,
    /// Categories such as genres or departments, in items: a list, or a text of several. Some models read them.
    pub categories: Vec<String>,
    /// What separates the categories in a text. Empty: a blank in the RecBole form, and else a text is one category.
    pub category_separator: String,
    /// Path of a sound file, WAV or FLAC (relative to the items file), or a list of them, in items. Empty: none.
    pub sounds: String,
    /// A list of sentences that are used as they are, after the title's and before those of `texts`, in items. Empty: none.
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

/// A reading of the paper's data preparation; single keys win over it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DataPreset {
    /// Users and items with at least five events, items without a modality kept.
    #[default]
    #[serde(rename = "strict-5core")]
    Strict5Core,
    /// What fits the paper's Table 1: users with at least five events, any item that has both modalities.
    #[serde(rename = "table1")]
    Table1,
    /// The released code's: users with at least five events, any item.
    #[serde(rename = "released")]
    Released,
}

/// Which of a user's repeated events with one item count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Repeated {
    /// The last one.
    #[default]
    Last,
    /// The first one.
    First,
    /// All of them.
    All,
}

/// What happens to items without text or without image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Missing {
    /// They stay, with zero feature rows in that modality.
    Keep,
    /// They are dropped, with their events.
    Drop,
}

/// What happens to items of the items' files without an event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WithoutEvents {
    /// They are dropped.
    #[default]
    Drop,
    /// They stay, behind the others, as candidates of rankings and lists.
    Keep,
}

/// What decides the numbers of items.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ItemOrder {
    /// The first event of each item in the files of interactions.
    #[default]
    Interactions,
    /// The line of each item in the items' files; items without a line follow in the order of their first event.
    Items,
}

/// How a user's events are divided into training, validation and test.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SplitBy {
    /// The last event is for the test, the one before it for validation.
    #[default]
    LeaveOneOut,
    /// The same shares of each user's events, in order of time, as `RecBole` divides them.
    Ratio,
    /// What happened before one time is for training, whoever's event it is: a global cut-off, so that no model is trained on
    /// what happens after the events that it is tested on.
    Time,
}

/// Keys of `[preprocess]` that hold a time.
const TIMES: [&str; 4] = ["since", "until", "split_at", "split_test_at"];

/// A time may stand without quotes: TOML has dates, and a unit of the file may be a number.
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
    /// A reading of the paper's data preparation; the keys below win over it.
    pub preset: DataPreset,
    /// A condition on the columns of the interactions as an SQL expression, such as `rating >= 4 AND verified`. Events that do
    /// not satisfy it are dropped before all else, and so are those for which a missing value decides. Empty: no condition.
    pub r#where: String,
    /// Events before this time are dropped: a date, a date and a time (UTC unless they have an offset), or a number in the
    /// unit of the file. Empty: no limit.
    pub since: String,
    /// Events from this time on are dropped, written in the same ways. Empty: no limit.
    pub until: String,
    /// The last events kept of each user, before the bounds below; 0 keeps all.
    #[schemars(range(min = 0, max = 1_000_000_000))]
    pub recent: u32,
    /// Users keep at least this many events; 0 switches the bound off. Unset: from the preset.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub user_core: Option<u32>,
    /// Items keep at least this many events; 0 switches the bound off. Unset: from the preset.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub item_core: Option<u32>,
    /// Items without text or without image. Unset: from the preset.
    pub missing: Option<Missing>,
    /// What happens to items that have a line in the items' files and no event that is left.
    pub items_without_events: WithoutEvents,
    /// What decides the numbers of items: the order of events, or that of the lines in the items' files.
    pub item_order: ItemOrder,
    /// The least share of events whose item has a line in the items' files; below it the stage stops, because the ids of the
    /// files do not fit each other. 0 switches the check off.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub min_described: f64,
    /// Further texts that mean a missing value, beside `nan`, `NULL`, `None`, `N/A`, `\N`, `(no genres listed)` and their like.
    pub placeholders: Vec<String>,
    /// Which of a user's repeated events with one item count.
    pub repeated: Repeated,
    /// How each user's events are divided into training, validation and test. The target of a part is its first event.
    pub split: SplitBy,
    /// The shares of training, validation and test of `split = "ratio"`.
    #[schemars(length(min = 3, max = 3))]
    pub split_ratio: Vec<f64>,
    /// The time from which events are no longer for training, of `split = "time"`; written as `since` is.
    pub split_at: String,
    /// The time from which events are for the test, of `split = "time"`. What lies between the two times is for validation.
    pub split_test_at: String,
    /// How much memory interactions may take, such as `"4GiB"`: they go to disk beyond it, beside the dataset, and the dataset is
    /// the same. Empty: they stay in memory.
    pub memory: String,
    /// Sentences kept of an item.
    #[schemars(range(min = 1, max = 1000))]
    pub max_sentences: usize,
    /// Images kept of an item.
    #[schemars(range(min = 0, max = 1000))]
    pub max_images: usize,
    /// The run stops when more lines than this are rejected.
    pub max_bad_lines: u64,
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
        }
    }
}

impl Preprocess {
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
