//! Guesses which columns of items hold the id, the title, the texts, the categories and the images.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use mp4sr_pipeline::text::tokens;
use mp4sr_preprocess::survey::{ColumnSurvey, Survey};

use crate::Result;
use crate::found::{Doubt, named};
use crate::join::Join;
use crate::words::Role;

/// The mean number of words from which a text counts as long.
const LONG: f64 = 12.0;
/// The share of a column's values that must be of one kind to decide what the column holds.
const MOST: f64 = 0.9;
/// The number of rows above which a column with one distinct value is constant.
const TELLING: u64 = 20;
/// Words that change the meaning of a name: the name of a brand is not a title.
const NOT_A_TITLE: [&str; 14] = [
    "brand",
    "category",
    "department",
    "type",
    "group",
    "section",
    "colour",
    "color",
    "index",
    "file",
    "user",
    "image",
    "code",
    "author",
];
/// Words in the names of columns of larger images, and of smaller ones.
const LARGE: [&str; 7] = ["large", "l", "high", "hires", "highres", "xl", "original"];
const SMALL: [&str; 5] = ["small", "s", "thumb", "thumbnail", "mini"];

/// The columns of items.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ItemColumns {
    /// The column of the id.
    pub id: String,
    /// The column of the title; empty if there is none.
    pub title: String,
    /// The columns of further texts, the most informative first.
    pub texts: Vec<String>,
    /// The separator of several texts in a cell; empty if a cell holds one text.
    pub text_separator: String,
    /// The columns of categories.
    pub categories: Vec<String>,
    /// The separator of several categories in a cell; empty if a cell holds one category.
    pub category_separator: String,
    /// The column of images, if there is one.
    pub images: Option<ImageColumn>,
    /// Columns that are not read.
    pub unused: Vec<String>,
    /// The guesses that are uncertain.
    pub doubts: Vec<Doubt>,
}

/// The column of images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageColumn {
    /// The name of the column.
    pub name: String,
    /// Where the images are.
    pub kind: ImageKind,
}

/// Where the images of a column are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageKind {
    /// Images are downloaded from URLs.
    Urls,
    /// Images are embedded in the cells.
    Embedded,
    /// Images are files beside the items' file.
    Files,
    /// Images are files in the folder of images.
    FilesOfFolder,
}

/// What the user states about items.
#[derive(Clone, Debug, Default)]
pub struct NamedItems {
    /// The column of the id.
    pub id: Option<String>,
    /// The column of the title.
    pub title: Option<String>,
    /// The columns of further texts.
    pub texts: Vec<String>,
    /// The columns of categories.
    pub categories: Vec<String>,
    /// The column of images.
    pub image: Option<String>,
    /// The folder of images.
    pub images: Option<PathBuf>,
}

impl ItemColumns {
    /// Guesses the columns. `join` is the pair of columns that hold the item's id in both files, if one was found.
    pub fn guess(survey: &Survey, join: Option<&Join>, named_columns: &NamedItems) -> Result<Self> {
        let id = match (&named_columns.id, join) {
            (Some(name), _) => named(survey, "--item-id", name)?.name.clone(),
            (None, Some(join)) => join.id.clone(),
            (None, None) => survey.columns.first().map(|column| column.name.clone()).unwrap_or_default(),
        };
        let mut found = Self { id, ..Self::default() };
        if join.is_none() && named_columns.id.is_none() {
            found.doubts.push(Doubt::new(
                format!("no column of items matches the items of interactions; `{}` is taken as the id", found.id),
                "`--item-id COLUMN`, `source.columns.item_id`",
            ));
        }
        found.find_title(survey, named_columns)?;
        found.find_images(survey, named_columns)?;
        found.find_texts(survey, named_columns)?;
        found.find_separators(survey);
        let read = |name: &String| {
            *name == found.id
                || *name == found.title
                || found.texts.contains(name)
                || found.categories.contains(name)
                || found.images.as_ref().is_some_and(|images| images.name == *name)
        };
        let unused = survey.columns.iter().map(|column| &column.name).filter(|name| !read(name));
        found.unused = unused.cloned().collect();
        Ok(found)
    }

    fn find_title(&mut self, survey: &Survey, named_columns: &NamedItems) -> Result<()> {
        if let Some(name) = &named_columns.title {
            named(survey, "--title", name)?.name.clone_into(&mut self.title);
            return Ok(());
        }
        let is_text = |column: &&ColumnSurvey| column.name != self.id && has_content(column, survey.rows);
        let by_name = survey.columns.iter().filter(is_text).filter_map(|column| {
            let score = Role::Title.score(&column.name);
            let is_other = tokens(&column.name).iter().any(|token| NOT_A_TITLE.contains(&token.as_str()));
            (score > 0.0 && (score > 8.0 || !is_other)).then_some((score, column))
        });
        if let Some((_, column)) = by_name.max_by(|a, b| a.0.total_cmp(&b.0).then(std::cmp::Ordering::Greater)) {
            column.name.clone_into(&mut self.title);
            return Ok(());
        }
        // If no name suggests a title, it is the short text with the most distinct values.
        let is_titled = |column: &&ColumnSurvey| {
            column.words < LONG && column.lists == 0 && column.objects == 0 && column.distinct * 2 >= column.filled
        };
        let is_other = |column: &ColumnSurvey| {
            [Role::Maker, Role::Category, Role::LongText].iter().any(|role| role.fits(&column.name))
        };
        let best = survey
            .columns
            .iter()
            .filter(is_text)
            .filter(is_titled)
            .max_by_key(|column| (!is_other(column), column.distinct));
        if let Some(column) = best {
            self.doubts.push(Doubt::new(
                format!("the title is `{}`, judging by its values", column.name),
                "`--title COLUMN`, `source.columns.title`",
            ));
            column.name.clone_into(&mut self.title);
        }
        Ok(())
    }

    fn find_images(&mut self, survey: &Survey, named_columns: &NamedItems) -> Result<()> {
        let column = match &named_columns.image {
            Some(name) => Some(named(survey, "--image-column", name)?),
            None => survey
                .columns
                .iter()
                .filter(|column| image_score(column) > 0.0)
                .max_by(|a, b| image_score(a).total_cmp(&image_score(b)).then(std::cmp::Ordering::Greater)),
        };
        let Some(column) = column else { return Ok(()) };
        let beside = survey.path.parent().unwrap_or(Path::new(".")).to_owned();
        let there = |folder: &Path| column.images.iter().filter(|name| folder.join(name).is_file()).count();
        let kind = if column.image_files > column.image_urls {
            match &named_columns.images {
                // Names are looked up beside the items, too, if the pipeline names a folder.
                Some(folder) if there(folder) > there(&beside) => ImageKind::FilesOfFolder,
                _ if there(&beside) > 0 => ImageKind::Files,
                _ => {
                    self.doubts.push(Doubt::new(
                        format!(
                            "`{}` names image files, such as `{}`, but none of the first ones is beside `{}`, so no image is read",
                            column.name,
                            column.images.first().map_or("", String::as_str),
                            survey.path.display()
                        ),
                        "`--images FOLDER`",
                    ));
                    return Ok(());
                }
            }
        } else if column.urls > 0 {
            ImageKind::Urls
        } else {
            ImageKind::Embedded
        };
        self.images = Some(ImageColumn { name: column.name.clone(), kind });
        Ok(())
    }

    fn find_texts(&mut self, survey: &Survey, named_columns: &NamedItems) -> Result<()> {
        for name in named_columns.texts.iter().chain(&named_columns.categories) {
            named(survey, if named_columns.texts.contains(name) { "--text" } else { "--category" }, name)?;
        }
        let is_image = |column: &ColumnSurvey| self.images.as_ref().is_some_and(|images| images.name == column.name);
        let texts: Vec<&ColumnSurvey> = survey
            .columns
            .iter()
            .filter(|column| column.name != self.id && column.name != self.title && !is_image(column))
            .filter(|column| has_content(column, survey.rows))
            .collect();
        let is_category = |column: &&&ColumnSurvey| {
            Role::Category.fits(&column.name) && !Role::Maker.fits(&column.name) && column.words < LONG
        };
        self.categories = match named_columns.categories.as_slice() {
            [] => texts.iter().filter(is_category).map(|column| column.name.clone()).collect(),
            named => named.to_vec(),
        };
        if !named_columns.texts.is_empty() {
            self.texts.clone_from(&named_columns.texts);
            return Ok(());
        }
        // Only the first sentences are read, so makers and categories must come before a long text.
        let order = |column: &ColumnSurvey| {
            if Role::Maker.fits(&column.name) {
                0
            } else if self.categories.contains(&column.name) {
                1
            } else if column.words >= LONG || Role::LongText.fits(&column.name) {
                2
            } else {
                3
            }
        };
        let mut ordered = texts;
        ordered.sort_by_key(|column| order(column));
        self.texts = ordered.into_iter().map(|column| column.name.clone()).collect();
        Ok(())
    }

    fn find_separators(&mut self, survey: &Survey) {
        let separators = |names: &[String]| -> Vec<(String, String)> {
            let of = |name: &String| Some((name.clone(), survey.column(name)?.separator.clone()?.0));
            names.iter().filter_map(of).collect()
        };
        // A bar is the only separator that does not occur within sentences.
        let bars = separators(&self.texts);
        if bars.iter().any(|(_, separator)| separator == "|") {
            "|".clone_into(&mut self.text_separator);
        }
        let mut of_categories = separators(&self.categories);
        of_categories.retain(|(_, separator)| separator.trim() != "");
        let distinct: BTreeSet<&String> = of_categories.iter().map(|(_, separator)| separator).collect();
        if let Some((name, separator)) = of_categories.first() {
            separator.clone_into(&mut self.category_separator);
            let remedy = "`source.columns.category_separator`";
            if distinct.len() > 1 {
                self.doubts.push(Doubt::new(
                    format!(
                        "categories are separated by several characters; `{separator}`, as in `{name}`, is used for all"
                    ),
                    remedy,
                ));
            } else if separator != "|" {
                self.doubts.push(Doubt::new(
                    format!("`{name}` contains several categories, separated by `{separator}`"),
                    remedy,
                ));
            }
        }
    }
}

/// Whether the values of a column are meaningful words.
fn has_content(column: &ColumnSurvey, rows: u64) -> bool {
    let most = |count: u64| count as f64 >= MOST * column.filled as f64;
    let is_time = matches!(&column.time, Some(Ok(time)) if !time.is_number) && column.time_share >= MOST;
    let is_code = Role::Code.fits(&column.name) && column.words < 2.0 && column.lists == 0;
    let is_url = column.urls * 2 > column.filled;
    let is_constant = column.distinct < 2 && rows > TELLING;
    // The ids of another table are single words with digits, and differ from line to line.
    let has_digits = column.examples.iter().all(|example| example.contains(|c: char| c.is_ascii_digit()));
    let is_id = column.words <= 1.0 && has_digits && column.distinct as f64 >= MOST * column.filled as f64 && rows > 1;
    column.filled > 0
        && !most(column.numbers)
        && !most(column.truths)
        && !is_time
        && !is_code
        && !is_url
        && !is_constant
        && !is_id
        && column.image_files * 2 < column.filled.max(1)
        && column.image_urls * 2 < column.filled.max(1)
}

/// How well a column fits as the column of images; 0 if it does not hold images.
fn image_score(column: &ColumnSurvey) -> f64 {
    let share = (column.image_urls + column.image_files) as f64 / column.filled.max(1) as f64;
    let named = Role::Image.fits(&column.name);
    let is_named_url = named && column.urls * 2 > column.filled;
    if share < 0.5 && !is_named_url {
        return 0.0;
    }
    let words = tokens(&column.name);
    let has = |known: &[&str]| words.iter().any(|word| known.contains(&word.as_str()));
    let size = if has(&LARGE) {
        1.0
    } else if has(&SMALL) {
        -1.0
    } else {
        0.0
    };
    2.0 + share + size + if named { 1.0 } else { 0.0 }
}
