//! The text of the pipeline file: each key with a comment that says what was seen.

use std::fmt::Write as _;

use mp4sr_pipeline::config::{Format, ModelCatalog, ModelType};
use mp4sr_preprocess::survey::Survey;
use toml::Value;

use crate::events::{EventOrder, InteractionColumns};
use crate::items::{ImageKind, ItemColumns};
use crate::{Error, Result, found};

/// The sentence encoder that is built into the program.
pub const TINY_TEXT: &str = "builtin:tiny-sentence";
/// The image encoder that is built into the program.
pub const TINY_IMAGE: &str = "builtin:tiny-clip";

/// The columns of both files, or the published format that names them.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one value of it")]
pub enum ColumnRoles {
    /// Columns that were guessed.
    Guessed {
        /// The columns of interactions.
        events: InteractionColumns,
        /// The columns of items, if there are items.
        items: Option<ItemColumns>,
    },
    /// A published format, which fixes the names of the columns.
    Published(Format),
}

/// Which modalities the items have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Modalities {
    /// Sentences.
    pub text: bool,
    /// Images that are files.
    pub image: bool,
    /// Images given as URLs, which `mp4sr download` fetches.
    pub image_urls: bool,
}

/// The numbers of events below which users and items are dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CoreThresholds {
    /// The minimum number of events per user.
    pub user: u32,
    /// The minimum number of events per item.
    pub item: u32,
}

/// The findings and choices from which the text of the pipeline file is written.
pub struct Draft<'d> {
    /// The name of the dataset.
    pub name: String,
    /// The data folder.
    pub data: String,
    /// The files of interactions, relative to the data folder.
    pub interactions: Vec<String>,
    /// The files of items, relative to the data folder.
    pub items: Vec<String>,
    /// The folder of images, relative to the data folder; empty if there is none.
    pub images: String,
    /// The survey of the first file of interactions.
    pub of_events: &'d Survey,
    /// The survey of the first file of items.
    pub of_items: Option<&'d Survey>,
    /// The meaning of the columns.
    pub columns: ColumnRoles,
    /// Whether the user named the notation of times, which then applies to all files.
    pub time_is_given: bool,
    /// The value of `source.encoding`.
    pub encoding: String,
    /// The modalities of the items.
    pub modalities: Modalities,
    /// The bounds on the numbers of events.
    pub core: CoreThresholds,
    /// The reason why the bounds are not the usual ones.
    pub core_reason: String,
    /// The sentence encoder.
    pub encoder: String,
    /// The image encoder.
    pub image_encoder: String,
    /// The model; empty for the one that suits the modalities.
    pub model: String,
    /// The models that a pipeline can name.
    pub models: &'d ModelCatalog,
    /// The path of the pipeline file.
    pub out: String,
}

/// The lines of a pipeline file.
#[derive(Default)]
struct DraftLines(String);

impl DraftLines {
    fn section(&mut self, name: &str) {
        let _ = write!(self.0, "\n[{name}]\n");
    }

    fn comment(&mut self, text: &str) {
        for line in wrapped(text) {
            let _ = writeln!(self.0, "# {line}");
        }
    }

    /// Suggests a condition in a comment of one line, which becomes a key if `# ` is removed.
    fn condition(&mut self, condition: &str) {
        let line: String = condition.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let _ = writeln!(self.0, "# where = {}", Value::String(line));
    }

    fn key(&mut self, key: &str, value: &Value) {
        let _ = writeln!(self.0, "{key} = {value}");
    }

    fn text(&mut self, key: &str, value: &str) {
        self.key(key, &Value::String(value.to_owned()));
    }

    fn texts(&mut self, key: &str, values: &[String]) {
        self.key(key, &Value::Array(values.iter().cloned().map(Value::String).collect()));
    }
}

/// Quotes the name of a column for an SQL expression.
fn quoted(name: &str) -> String {
    let is_plain = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if is_plain { name.to_owned() } else { format!("\"{}\"", name.replace('"', "\"\"")) }
}

/// The largest number of characters in a line of a comment.
const WIDTH: usize = 110;

fn wrapped(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    // Text from a file must not end its comment.
    let plain: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    for word in plain.split_whitespace() {
        let is_full =
            lines.last().is_some_and(|line| !line.is_empty() && line.chars().count() + word.chars().count() >= WIDTH);
        if is_full {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}

impl Draft<'_> {
    /// The text of the pipeline file.
    pub fn text(&self) -> String {
        let mut lines = DraftLines::default();
        lines.comment(&format!(
            "Written by `mp4sr init`, which inspected the first lines of the files. `mp4sr doctor --pipeline {0}` checks it, \
             `mp4sr run --pipeline {0}` runs it; docs/configuration.md describes every key.",
            self.out
        ));
        self.dataset(&mut lines);
        self.source(&mut lines);
        if let ColumnRoles::Guessed { events, items } = &self.columns {
            self.columns(&mut lines, events, items.as_ref());
        }
        self.preprocess(&mut lines);
        self.model(&mut lines);
        lines.0
    }

    /// Rejects a model that reads texts or images if no item has any.
    pub fn expect_features(&self) -> Result<()> {
        let Modalities { text, image, image_urls } = self.modalities;
        let reads = |name: &str| self.models.model(name).is_some_and(ModelType::reads_features);
        if text || image || image_urls || !reads(&self.model) {
            return Ok(());
        }
        Err(Error::Unknown(format!(
            "`--model {}` reads texts or images, and no item has any; give a file of items with `--items`, or a model that reads only ids: {}",
            self.model,
            self.id_models().join(", ")
        )))
    }

    /// The models that read only ids.
    fn id_models(&self) -> Vec<&str> {
        self.models.models().filter(|model| !model.reads_features()).map(ModelType::name).collect()
    }

    fn dataset(&self, lines: &mut DraftLines) {
        lines.section("dataset");
        lines.comment("The name of the dataset, and of the folder artifacts/<name>.");
        lines.text("name", &self.name);
        lines.comment("The folder of the files below, relative to where `mp4sr` is run.");
        lines.text("data", &self.data);
    }

    fn source(&self, lines: &mut DraftLines) {
        lines.section("source");
        match &self.columns {
            ColumnRoles::Published(_) => {
                lines.comment("The fields have the names of this published format, which defines what they mean.");
            }
            ColumnRoles::Guessed { .. } => lines.comment("Columns are named below."),
        }
        let format = match &self.columns {
            ColumnRoles::Guessed { .. } => {
                if self.is_atomic() {
                    Format::RecBole
                } else {
                    Format::Tabular
                }
            }
            ColumnRoles::Published(format) => *format,
        };
        lines.key("format", &Value::try_from(format).unwrap_or_else(|_| Value::String("tabular".to_owned())));
        lines.comment(&format!("Seen: {}.", self.of_events.format));
        lines.texts("interactions", &self.interactions);
        if let Some(items) = self.of_items {
            lines.comment(&format!("Seen: {}.", items.format));
            lines.texts("items", &self.items);
        }
        if !self.images.is_empty() {
            lines.comment("The folder of images, which are named by the item's id, or by a column below.");
            lines.text("images", &self.images);
        }
        self.dialect(lines);
    }

    fn is_atomic(&self) -> bool {
        self.of_events.is_atomic && self.of_items.is_none_or(|items| items.is_atomic)
    }

    fn tables(&self) -> impl Iterator<Item = &Survey> {
        std::iter::once(self.of_events).chain(self.of_items).filter(|survey| survey.is_table)
    }

    fn dialect(&self, lines: &mut DraftLines) {
        if let ColumnRoles::Guessed { events: InteractionColumns { clock, .. }, .. } = &self.columns {
            match clock {
                EventOrder::Time { notation, .. } if !notation.key.is_empty() => {
                    let described = &notation.described;
                    if self.interactions.len() == 1 || self.time_is_given {
                        lines.comment(&format!("Times are {described}."));
                        lines.text("time", &notation.key);
                    } else {
                        let first = &self.interactions[0];
                        lines.comment(&format!(
                            "Times of `{first}` are {described}. Each file has a notation of its own."
                        ));
                    }
                }
                EventOrder::LineOrder => {
                    lines.comment("The data has no timestamps: the last line of a user is the latest event.");
                    lines.text("time", "line-order");
                }
                _ => {}
            }
        }
        // One key applies to both files. If their separators differ, the key is left out, and each separator is detected.
        let separators: std::collections::BTreeSet<&str> =
            self.tables().map(|table| table.separator.as_str()).collect();
        if self.tables().any(|table| !table.separator_is_usual) && separators.len() == 1 {
            lines.comment("The separator of columns.");
            separators.iter().for_each(|separator| lines.text("separator", separator));
        }
        if !self.encoding.is_empty() {
            lines.comment("The files are not UTF-8.");
            lines.text("encoding", &self.encoding);
        }
        if self.tables().any(|table| table.quotes_all) {
            lines.comment("Fields are quoted, also those that do not need it.");
            lines.text("quoting", "always");
        }
        if self.tables().any(|table| table.escapes) {
            lines.comment("A quotation mark in a quoted field is escaped by a backslash.");
            lines.text("quote_escape", "\\");
        }
        let names = |survey: &Survey| survey.columns.iter().map(|column| column.name.clone()).collect::<Vec<_>>();
        if self.of_events.is_table && !self.of_events.has_header {
            lines.comment("The first line does not name the columns, so they are named by their positions.");
            lines.texts("interactions_header", &names(self.of_events));
        }
        if let Some(items) = self.of_items.filter(|items| items.is_table && !items.has_header) {
            lines.comment("The columns of the items' file are also named by their positions.");
            lines.texts("items_header", &names(items));
        }
    }

    fn columns(&self, lines: &mut DraftLines, events: &InteractionColumns, items: Option<&ItemColumns>) {
        let described = |survey: &Survey, name: &str, is_id: bool| {
            survey.column(name).map_or(String::new(), |column| found::values(column, survey.rows, is_id))
        };
        let seen = |survey: &Survey, name: &str| described(survey, name, false);
        lines.section("source.columns");
        lines.comment(&format!("The user's id: {}.", described(self.of_events, &events.user, true)));
        lines.text("user", &events.user);
        lines.comment(&format!("The item's id: {}.", described(self.of_events, &events.item, true)));
        lines.text("item", &events.item);
        if !events.item_separator.is_empty() {
            lines.comment("A cell contains several items, in order.");
            lines.text("item_separator", &events.item_separator);
        }
        match &events.clock {
            EventOrder::Time { column, .. } => {
                lines.comment(&format!("The time of the event: {}.", seen(self.of_events, column)));
                lines.text("time", column);
            }
            EventOrder::Position(column) => {
                lines.comment("The data has no timestamps; this is the position of an event in its user's history.");
                lines.text("position", column);
                lines.text("time", "");
            }
            EventOrder::LineOrder => {}
        }
        let (Some(items), Some(survey)) = (items, self.of_items) else { return };
        let seen = |name: &str| seen(survey, name);
        lines.comment(&format!("The id in the items' file: {}.", described(survey, &items.id, true)));
        lines.text("item_id", &items.id);
        if items.title.is_empty() {
            lines.comment("No column looks like a title.");
        } else {
            lines.comment(&format!("The title: {}.", seen(&items.title)));
        }
        lines.text("title", &items.title);
        if !items.texts.is_empty() {
            lines.comment("Further texts; only the first sentences of an item are used (`preprocess.max_sentences`).");
            items.texts.iter().for_each(|name| lines.comment(&format!("- {name}: {}", seen(name))));
            lines.texts("texts", &items.texts);
        }
        if !items.text_separator.is_empty() {
            lines.comment("The separator of several texts in a cell.");
            lines.text("text_separator", &items.text_separator);
        }
        if !items.categories.is_empty() {
            let readers: Vec<&str> =
                self.models.models().filter(|model| model.reads_categories()).map(ModelType::name).collect();
            lines.comment(&format!("Categories, which some models read ({}).", readers.join(", ")));
            lines.texts("categories", &items.categories);
        }
        if !items.category_separator.is_empty() {
            lines.comment("The separator of several categories in a cell.");
            lines.text("category_separator", &items.category_separator);
        }
        if let Some(images) = &items.images {
            lines.comment(&match images.kind {
                ImageKind::Urls => format!(
                    "URLs of images ({}); `mp4sr download --pipeline {}` downloads them after `mp4sr preprocess`.",
                    seen(&images.name),
                    self.out
                ),
                ImageKind::Embedded => "Images are embedded in the cells.".to_owned(),
                ImageKind::Files | ImageKind::FilesOfFolder => format!("Names of image files: {}.", seen(&images.name)),
            });
            lines.text("images", &images.name);
        }
        if !items.unused.is_empty() {
            lines.comment(&format!("Not read: {}.", found::unused(survey, &items.unused)));
        }
    }

    fn preprocess(&self, lines: &mut DraftLines) {
        lines.section("preprocess");
        let reason = if self.core_reason.is_empty() {
            "Users and items with fewer events are dropped, in rounds until nothing changes; 0 keeps all."
        } else {
            &self.core_reason
        };
        lines.comment(reason);
        lines.key("user_core", &Value::Integer(self.core.user.into()));
        lines.key("item_core", &Value::Integer(self.core.item.into()));
        let ColumnRoles::Guessed { events, .. } = &self.columns else { return };
        if let Some(kind) = events.kind.as_ref().and_then(|kind| self.of_events.column(kind)) {
            let (name, count) = (&kind.name, kind.distinct);
            lines.comment(&format!(
                "`{name}` has {count} kinds of events, and all of them count; to keep only one kind:"
            ));
            // A long value is shown in part.
            let whole = kind.examples.iter().find(|example| !example.ends_with("..."));
            let value = whole.map_or("", String::as_str).replace('\'', "''");
            lines.condition(&format!("{} = '{value}'", quoted(name)));
        }
        let Some(rating) = &events.rating else { return };
        let range = self.of_events.column(rating).and_then(|column| column.range);
        let Some((least, most)) = range else { return };
        lines.comment(&format!(
            "`{rating}` ranges from {least} to {most}. All events count, good and bad; to keep only the good ones:"
        ));
        lines.condition(&format!("{} >= {}", quoted(rating), (least + 0.75 * (most - least)).ceil()));
    }

    fn model(&self, lines: &mut DraftLines) {
        let Modalities { text, image, image_urls } = self.modalities;
        if text || image {
            lines.section("extract.text");
            if self.encoder == TINY_TEXT {
                lines.comment(
                    "The encoder that turns sentences into vectors. This one is built into the program and meant for a first try; for \
                     real results, \
                     use \"sentence-transformers/all-MiniLM-L6-v2\" (`--encoder minilm`), which is downloaded once (90 MB).",
                );
            } else {
                lines.comment("The encoder that turns sentences into vectors: a folder, or a model of the hub, which is downloaded once.");
            }
            lines.text("model", &self.encoder);
        }
        if image || image_urls {
            lines.section("extract.image");
            if self.image_encoder == TINY_IMAGE {
                lines.comment(
                    "The encoder that turns images into words. This one is built into the program and meant for a first try; for real \
                     results, use \
                     \"openai/clip-vit-base-patch32\" (`--image-encoder clip`), which is downloaded once (600 MB).",
                );
            } else {
                lines.comment("The encoder that turns images into words: a folder, or a model of the hub, which is downloaded once.");
            }
            lines.text("model", &self.image_encoder);
        }
        lines.section("model");
        let reads = |name: &str| self.models.model(name).is_some_and(ModelType::reads_features);
        let awaits_images = image_urls && !image && !text && reads(&self.model);
        if !text && !image && !awaits_images {
            lines.comment(&format!(
                "Items have no text and no image file, so the model reads only ids. These models do: {}.",
                self.id_models().join(", ")
            ));
            let chosen = self.models.id_model().map_or("", ModelType::name);
            lines.text("name", if self.model.is_empty() { chosen } else { &self.model });
        } else if !self.model.is_empty() {
            lines.text("name", &self.model);
        }
        let image = image || awaits_images;
        if (text || image) && (self.model.is_empty() || reads(&self.model)) {
            if awaits_images {
                lines.comment("The images are URLs: run `mp4sr download` after `preprocess`.");
            }
            lines.comment("What the model reads of an item in addition to its id.");
            let one = |name: &str| {
                Value::Table(toml::Table::from_iter([("name".to_owned(), Value::String(name.to_owned()))]))
            };
            let named = [("text", text), ("image", image)].into_iter().filter(|(_, is_present)| *is_present);
            lines.key("modalities", &Value::Array(named.map(|(name, _)| one(name)).collect()));
        }
        if image_urls && !image {
            let reader = self.models.models().find(|model| model.reads_features()).map_or("", ModelType::name);
            lines.comment(&if text {
                "Once `mp4sr download` has downloaded the images, `modalities = [{ name = \"text\" }, { name = \"image\" }]` reads them too."
                    .to_owned()
            } else {
                format!(
                    "Once `mp4sr download` has downloaded the images, a model such as {reader} reads them (`name = \"{reader}\"`, \
                     `modalities = [{{ name = \"image\" }}]`)."
                )
            });
        }
        lines.section("evaluate");
        lines.comment("The values of K for the metrics R@K and N@K.");
        lines.key("k", &Value::Array([5, 10, 20].map(Value::Integer).to_vec()));
    }
}
