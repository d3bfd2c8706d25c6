//! The files of a dataset: sequences, items and users.

use std::ops::ControlFlow;
use std::path::Path;

use safetensors::Dtype;

use crate::layout::Layout;
use crate::tensors::{check_offsets, write_views};
use crate::{Column, Error, Fingerprint, Header, Result, Table, TensorFile, data_files, hash_ids};

const REMEDY: &str = "run `mp4sr preprocess` again";
/// The role of the users' ids among the inputs in the header of sequences.
const USER_IDS: &str = "user ids";
/// The setting that states the kind of the times, and its value for positions.
const TIMES: &str = "times";
const POSITIONS: &str = "positions";
const SECONDS: &str = "seconds";
/// The names of the tensors of [`SequenceParts`].
const VALIDATION_START: &str = "validation_start";
const TEST_START: &str = "test_start";

/// Users' events in time order (`sequences.safetensors`).
///
/// ```
/// use mp4sr_artifact::{Sequences, hash_ids};
///
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("sequences.safetensors");
/// # let written = Sequences {
/// #     offsets: vec![0, 3, 5],
/// #     items: vec![2, 1, 3, 3, 1],
/// #     times: vec![10, 20, 30, 10, 20],
/// #     item_hash: hash_ids(["cup", "pot", "pan"]),
/// #     item_count: 3,
/// #     user_hash: None,
/// #     time_kind: mp4sr_artifact::TimeKind::default(),
/// #     parts: None,
/// # };
/// # written.write(&path, serde_json::Value::Null)?;
/// // `path` is `artifacts/<dataset>/dataset/sequences.safetensors`.
/// let sequences = Sequences::read(&path)?;
/// assert_eq!(sequences.user_count(), 2);
/// assert_eq!(sequences.of(0), [2, 1, 3]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Sequences {
    /// `[U+1]`: user u (1-based) owns events `offsets[u-1]..offsets[u]`.
    pub offsets: Vec<i64>,
    /// `[E]`: item indices, 1-based.
    pub items: Vec<u32>,
    /// `[E]`: Unix seconds, or positions if the source has no timestamps.
    pub times: Vec<i64>,
    /// The hash of the ordered original item ids.
    pub item_hash: Fingerprint,
    /// I, the number of items.
    pub item_count: usize,
    /// The hash of the ordered original user ids; `None` if the program that wrote the file did not give it.
    pub user_hash: Option<Fingerprint>,
    /// The kind of `times`.
    pub time_kind: TimeKind,
    /// Where each user's validation and test events begin; `None` if the last event is for the test and the one before it for validation.
    pub parts: Option<SequenceParts>,
}

/// The kind of the times of events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum TimeKind {
    /// The kind is not recorded, because the source has bare numbers.
    #[default]
    Unstated,
    /// Unix seconds.
    Seconds,
    /// Positions or the order of lines. They order events, but their differences have no meaning.
    Positions,
}

/// Where the validation and the test events of each user begin, counted from the user's first event. The events before the validation
/// events are the training events.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SequenceParts {
    /// `[U]`: the first validation event.
    pub validation: Vec<u32>,
    /// `[U]`: the first test event. All later events are test events, too.
    pub test: Vec<u32>,
}

impl Sequences {
    const FORMAT: &'static str = "sequences";
    const VERSION: u32 = 1;

    /// U, the number of users.
    pub fn user_count(&self) -> usize {
        self.offsets.len() - 1
    }

    /// The items of user `user` (0-based row), in time order.
    pub fn of(&self, user: usize) -> &[u32] {
        &self.items[self.offsets[user] as usize..self.offsets[user + 1] as usize]
    }

    /// The times of the events of user `user` (0-based row), oldest first.
    pub fn times_of(&self, user: usize) -> &[i64] {
        &self.times[self.offsets[user] as usize..self.offsets[user + 1] as usize]
    }

    /// Where the validation and the test events of user `user` (0-based row) begin, counted from the user's first event.
    pub fn parts_of(&self, user: usize) -> (usize, usize) {
        match &self.parts {
            Some(parts) => (parts.validation[user] as usize, parts.test[user] as usize),
            None => {
                let length = (self.offsets[user + 1] - self.offsets[user]) as usize;
                (length.saturating_sub(2), length.saturating_sub(1))
            }
        }
    }

    /// Writes the file.
    pub fn write(&self, path: &Path, mut settings: serde_json::Value) -> Result<()> {
        match self.time_kind {
            TimeKind::Unstated => {}
            TimeKind::Seconds => settings[TIMES] = SECONDS.into(),
            TimeKind::Positions => settings[TIMES] = POSITIONS.into(),
        }
        let header = Header {
            format: Self::FORMAT.to_owned(),
            version: Self::VERSION,
            stage: "preprocess".to_owned(),
            items: self.item_hash.clone(),
            settings,
            inputs: self.user_hash.iter().map(|hash| (USER_IDS.to_owned(), hash.clone())).collect(),
        };
        let count = [self.item_count as i64];
        let (offsets, events, users) = ([self.offsets.len()], [self.items.len()], [self.user_count()]);
        // This is the largest table, so its columns are written without a copy.
        let mut tensors = vec![
            ("offsets", (Dtype::I64, &offsets[..], bytemuck::cast_slice(&self.offsets))),
            ("items", (Dtype::U32, &events[..], bytemuck::cast_slice(&self.items))),
            ("times", (Dtype::I64, &events[..], bytemuck::cast_slice(&self.times))),
            ("item_count", (Dtype::I64, &[1][..], bytemuck::cast_slice(&count))),
        ];
        if let Some(SequenceParts { validation, test }) = &self.parts {
            let parts = [(VALIDATION_START, validation), (TEST_START, test)];
            tensors.extend(parts.map(|(name, starts)| (name, (Dtype::U32, &users[..], bytemuck::cast_slice(starts)))));
        }
        write_views(path, &header, &tensors)
    }

    /// Reads and verifies the file.
    pub fn read(path: &Path) -> Result<Self> {
        let mut file = TensorFile::read(path, Self::FORMAT, Self::VERSION, REMEDY)?;
        let offsets = file.take_i64("offsets")?;
        let items = file.take_u32("items")?;
        let times = file.take_i64("times")?;
        let item_count = match file.take_i64("item_count")?.as_slice() {
            [count] if *count >= 0 => *count as usize,
            other => {
                return Err(file.wrong(format!("`item_count`: expected one number, found {other:?}")));
            }
        };
        check_offsets(&offsets, items.len()).map_err(|reason| file.wrong(reason))?;
        if times.len() != items.len() {
            return Err(file.wrong(format!("`times` has length {}, expected {}", times.len(), items.len())));
        }
        if let Some(bad) = items.iter().find(|&&i| i == 0 || i as usize > item_count) {
            return Err(file.wrong(format!("item index {bad} is outside 1..={item_count}")));
        }
        for user in offsets.windows(2) {
            if !times[user[0] as usize..user[1] as usize].is_sorted() {
                return Err(file.wrong("a user's events are not in order of time"));
            }
        }
        let has_parts = file.names().iter().any(|name| name == VALIDATION_START);
        let parts = if has_parts { Some(read_parts(&mut file, &offsets)?) } else { None };
        let header = file.header();
        let time_kind = match header.settings[TIMES].as_str() {
            Some(POSITIONS) => TimeKind::Positions,
            Some(SECONDS) => TimeKind::Seconds,
            _ => TimeKind::Unstated,
        };
        let (item_hash, user_hash) = (header.items.clone(), header.inputs.get(USER_IDS).cloned());
        Ok(Self { offsets, items, times, item_hash, item_count, user_hash, time_kind, parts })
    }

    /// Refuses tables whose items or users differ from those of these sequences. `layout` is where all of them were read from.
    pub fn expect_tables(&self, layout: &Layout, items: &Items, users: &Users) -> Result<()> {
        if items.hash() != self.item_hash || items.len() != self.item_count {
            return Err(Error::unusable(
                &layout.items(),
                "it contains different items from the sequences beside it",
                REMEDY,
            ));
        }
        let other_ids = self.user_hash.as_ref().is_some_and(|hash| users.hash() != *hash);
        if other_ids || users.ids.len() != self.user_count() {
            return Err(Error::unusable(
                &layout.users(),
                "it contains different users from the sequences beside it",
                REMEDY,
            ));
        }
        Ok(())
    }
}

/// Items' ids, titles, sentences, categories and paths of files (`items.parquet`), in index order: row i-1 is item i.
///
/// ```
/// use mp4sr_artifact::Items;
///
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("items.parquet");
/// # let texts = |texts: [&str; 2]| texts.map(str::to_owned).to_vec();
/// # let written = Items {
/// #     ids: texts(["cup", "pot"]),
/// #     titles: texts(["A cup", "A pot"]),
/// #     sentences: vec![texts(["A cup.", "It is blue."]), Vec::new()],
/// #     images: vec![Vec::new(); 2],
/// #     categories: vec![texts(["kitchen", "blue"]), Vec::new()],
/// #     sounds: vec![Vec::new(); 2],
/// # };
/// # written.write(&path)?;
/// // `path` is `artifacts/<dataset>/dataset/items.parquet`.
/// let items = Items::read(&path)?;
/// let item = 1;
/// assert_eq!(items.ids[item - 1], "cup");
/// assert_eq!(items.sentences[item - 1][1], "It is blue.");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Items {
    /// The original ids.
    pub ids: Vec<String>,
    /// The titles; empty for items without one.
    pub titles: Vec<String>,
    /// The cleaned sentences; those of the title come first.
    pub sentences: Vec<Vec<String>>,
    /// The paths of local images, or the URLs of images that the download stage fetches.
    pub images: Vec<Vec<String>>,
    /// The names of categories, such as genres or departments. A table in which no item has any may lack the column.
    pub categories: Vec<Vec<String>>,
    /// The paths of local sound files. A table in which no item has any may lack the column.
    pub sounds: Vec<Vec<String>>,
}

impl Items {
    /// I, the number of items.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there are no items.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Hash of the ordered ids.
    pub fn hash(&self) -> Fingerprint {
        hash_ids(self.ids.iter().map(String::as_str))
    }

    /// Appends the items of another table.
    pub fn append(&mut self, others: Self) {
        self.ids.extend(others.ids);
        self.titles.extend(others.titles);
        self.sentences.extend(others.sentences);
        self.images.extend(others.images);
        self.categories.extend(others.categories);
        self.sounds.extend(others.sounds);
    }

    /// The items of the given rows (0-based), in the given order.
    #[must_use]
    pub fn select(&self, rows: &[usize]) -> Self {
        Self {
            ids: rows.iter().map(|&row| self.ids[row].clone()).collect(),
            titles: rows.iter().map(|&row| self.titles[row].clone()).collect(),
            sentences: rows.iter().map(|&row| self.sentences[row].clone()).collect(),
            images: rows.iter().map(|&row| self.images[row].clone()).collect(),
            categories: rows.iter().map(|&row| self.categories[row].clone()).collect(),
            sounds: rows.iter().map(|&row| self.sounds[row].clone()).collect(),
        }
    }

    /// Writes the table.
    pub fn write(&self, path: &Path) -> Result<()> {
        self.clone().into_table().write(path)
    }

    /// Writes the table with the names of images and sounds inside the folder `data` relative to it, so that what is read depends neither
    /// on the working directory nor on the location of the data folder.
    pub fn write_relative(&self, path: &Path, data: &Path) -> Result<()> {
        let relative = |name: &String| data_files::below(data, name);
        let all = |names: &[Vec<String>]| names.iter().map(|names| names.iter().map(relative).collect()).collect();
        let items = Self { images: all(&self.images), sounds: all(&self.sounds), ..self.clone() };
        items.into_table().with_source(&data_files::source()).write(path)
    }

    fn into_table(self) -> Table {
        let mut columns = vec![
            ("item", Column::U32((1..=self.len() as u32).collect())),
            ("item_id", Column::Text(self.ids)),
            ("title", Column::Text(self.titles)),
            ("sentences", Column::Texts(self.sentences)),
            ("images", Column::Texts(self.images)),
        ];
        if self.categories.iter().any(|names| !names.is_empty()) {
            columns.push(("categories", Column::Texts(self.categories)));
        }
        if self.sounds.iter().any(|names| !names.is_empty()) {
            columns.push(("sounds", Column::Texts(self.sounds)));
        }
        Table::new(columns)
    }

    /// Reads and verifies the table. Names of images and sounds are returned unchanged.
    pub fn read(path: &Path) -> Result<Self> {
        Self::of_table(path, Table::read(path, REMEDY)?)
    }

    /// Reads and verifies the table. File names that are relative to the data folder are resolved against `data`.
    pub fn read_in(path: &Path, data: &Path) -> Result<Self> {
        let table = Table::read(path, REMEDY)?;
        let start_in_data = data_files::start_in_data(table.source());
        let mut items = Self::of_table(path, table)?;
        if start_in_data {
            let names = items.images.iter_mut().chain(&mut items.sounds).flatten();
            names.for_each(|name| *name = data_files::within(data, name));
        }
        for name in items.images.iter_mut().flatten() {
            if let Some(stored) = Layout::stored_image(path, name) {
                *name = stored.to_string_lossy().into_owned();
            }
        }
        Ok(items)
    }

    fn of_table(path: &Path, mut table: Table) -> Result<Self> {
        let index = table.take_u32("item")?;
        expect_index(path, &index, "item")?;
        let mut optional = |name: &str| {
            if table.has(name) { table.take_texts(name) } else { Ok(vec![Vec::new(); index.len()]) }
        };
        Ok(Self {
            categories: optional("categories")?,
            sounds: optional("sounds")?,
            ids: table.take_text("item_id")?,
            titles: table.take_text("title")?,
            sentences: table.take_texts("sentences")?,
            images: table.take_texts("images")?,
        })
    }

    /// The number of items of a table, which is read from the metadata alone.
    pub fn count(path: &Path) -> Result<u64> {
        Table::rows(path, REMEDY)
    }

    /// Calls `each` with every image name, in order of items, until it returns [`ControlFlow::Break`]. Memory does not grow with the table.
    pub fn each_image(path: &Path, each: impl FnMut(&str) -> ControlFlow<()>) -> Result<()> {
        Table::each_of_texts(path, "images", REMEDY, each)
    }
}

/// Users' original ids (`users.parquet`), in index order: row u-1 is user u.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Users {
    /// The original ids.
    pub ids: Vec<String>,
}

impl Users {
    /// Writes the table.
    pub fn write(&self, path: &Path) -> Result<()> {
        Table::new(vec![
            ("user", Column::U32((1..=self.ids.len() as u32).collect())),
            ("user_id", Column::Text(self.ids.clone())),
        ])
        .write(path)
    }

    /// Hash of the ordered ids.
    pub fn hash(&self) -> Fingerprint {
        hash_ids(self.ids.iter().map(String::as_str))
    }

    /// Reads and verifies the table.
    pub fn read(path: &Path) -> Result<Self> {
        let mut table = Table::read(path, REMEDY)?;
        expect_index(path, &table.take_u32("user")?, "user")?;
        Ok(Self { ids: table.take_text("user_id")? })
    }
}

fn read_parts(file: &mut TensorFile, offsets: &[i64]) -> Result<SequenceParts> {
    let parts = SequenceParts { validation: file.take_u32(VALIDATION_START)?, test: file.take_u32(TEST_START)? };
    let users = offsets.len() - 1;
    for (name, starts) in [(VALIDATION_START, &parts.validation), (TEST_START, &parts.test)] {
        if starts.len() != users {
            return Err(file.wrong(format!("`{name}`: expected [{users}], found [{}]", starts.len())));
        }
    }
    let lies_outside = |user: &usize| {
        let (validation, test) = (i64::from(parts.validation[*user]), i64::from(parts.test[*user]));
        validation > test || test > offsets[user + 1] - offsets[*user]
    };
    match (0..users).find(lies_outside) {
        Some(user) => {
            Err(file.wrong(format!("the validation and test events of user {} are not within the sequence", user + 1)))
        }
        None => Ok(parts),
    }
}

/// Checks that row n has the number n + 1.
fn expect_index(path: &Path, index: &[u32], what: &str) -> Result<()> {
    match index.iter().enumerate().position(|(row, &number)| number as usize != row + 1) {
        Some(row) => {
            let reason = format!("row {row} contains {what} {}, expected {}", index[row], row + 1);
            Err(Error::unusable(path, reason, REMEDY))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> Sequences {
        Sequences {
            offsets: vec![0, 2, 2, 5],
            items: vec![1, 3, 2, 2, 1],
            times: vec![10, 20, -5, 7, 7],
            item_hash: hash_ids(["a", "b", "c"]),
            item_count: 3,
            user_hash: Some(hash_ids(["u1", "u2", "u3"])),
            time_kind: TimeKind::Unstated,
            parts: None,
        }
    }

    #[test]
    fn sequences_round_trip_and_give_the_same_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (folder.path().join("a"), folder.path().join("b"));
        small().write(&a, serde_json::json!({"user_core": 5, "item_core": 5})).unwrap();
        small().write(&b, serde_json::json!({"user_core": 5, "item_core": 5})).unwrap();
        assert_eq!(Sequences::read(&a).unwrap(), small());
        assert_eq!(crate::files::read(&a).unwrap(), crate::files::read(&b).unwrap());
        for time_kind in [TimeKind::Positions, TimeKind::Seconds] {
            let stated = Sequences { time_kind, ..small() };
            for settings in [serde_json::Value::Null, serde_json::json!({"user_core": 5})] {
                stated.write(&a, settings).unwrap();
                assert_eq!(Sequences::read(&a).unwrap(), stated);
            }
        }
    }

    #[test]
    fn images_of_added_items_move_with_their_folder() {
        let folder = tempfile::tempdir().unwrap();
        let run = |name: &str| folder.path().join(name).join("new-items");
        let table = |name: &str| run(name).join("000001/dataset/items.parquet");
        let sent = run("before").join("images/0a.jpg").display().to_string();
        let items = Items {
            ids: vec!["a".into()],
            titles: vec![String::new()],
            sentences: vec![Vec::new()],
            images: vec![vec![sent.clone(), "/elsewhere/images/0a.jpg".into()]],
            categories: vec![Vec::new()],
            sounds: vec![Vec::new()],
        };
        items.write_relative(&table("after"), Path::new("data")).unwrap();
        let read = || Items::read_in(&table("after"), Path::new("data")).unwrap().images[0].clone();
        assert_eq!(read(), items.images[0], "an image that is not there keeps its name");
        crate::files::write_bytes(&run("after").join("images/0a.jpg"), b"image").unwrap();
        let moved = run("after").join("images/0a.jpg").display().to_string();
        assert_eq!(read(), [moved, "/elsewhere/images/0a.jpg".to_owned()]);
    }

    #[test]
    fn parts_round_trip_and_wrong_ones_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        assert_eq!([0, 1, 2].map(|user| small().parts_of(user)), [(0, 1), (0, 0), (1, 2)]);
        let of = |validation: [u32; 3], test: [u32; 3]| {
            let parts = SequenceParts { validation: validation.to_vec(), test: test.to_vec() };
            Sequences { parts: Some(parts), ..small() }
        };
        let made = of([1, 0, 0], [2, 0, 3]);
        made.write(&path, serde_json::Value::Null).unwrap();
        assert_eq!(Sequences::read(&path).unwrap(), made);
        assert_eq!(made.parts_of(2), (0, 3));
        for wrong in [of([1, 0, 2], [2, 0, 1]), of([0, 0, 0], [2, 0, 4])] {
            wrong.write(&path, serde_json::Value::Null).unwrap();
            let message = Sequences::read(&path).unwrap_err().to_string();
            assert!(message.contains("are not within the sequence"), "{message}");
        }
    }

    #[test]
    fn wrong_sequences_are_refused_with_the_reason() {
        type Damage = fn(&mut Sequences);
        let cases: [(Damage, &str); 5] = [
            (|s| s.offsets[1] = 4, "decreases"),
            (|s| s.offsets[3] = 4, "number of rows"),
            (|s| s.items[0] = 4, "outside 1..=3"),
            (|s| s.items[0] = 0, "outside 1..=3"),
            (|s| s.times[0] = 30, "order of time"),
        ];
        let folder = tempfile::tempdir().unwrap();
        for (damage, reason) in cases {
            let mut sequences = small();
            damage(&mut sequences);
            let path = folder.path().join("s");
            sequences.write(&path, serde_json::Value::Null).unwrap();
            let message = Sequences::read(&path).unwrap_err().to_string();
            assert!(message.contains(reason) && message.ends_with("preprocess` again"), "{message}");
        }
    }

    #[test]
    fn items_round_trip() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("items.parquet");
        let items = Items {
            ids: vec!["007".into(), "\u{1f600}".into()],
            titles: vec!["A".into(), String::new()],
            sentences: vec![vec!["One.".into(), "Two.".into()], vec![]],
            images: vec![vec![], vec!["images/x.jpg".into()]],
            categories: vec![vec!["Garden".into(), "Tools".into()], vec![]],
            sounds: vec![vec![], vec!["sounds/x.flac".into()]],
        };
        items.write(&path).unwrap();
        assert_eq!(Items::read(&path).unwrap(), items);
        let mut names = Vec::new();
        let keep = |name: &str| {
            names.push(name.to_owned());
            ControlFlow::Continue(())
        };
        Items::each_image(&path, keep).unwrap();
        assert_eq!(names, items.images.concat());
    }
}
