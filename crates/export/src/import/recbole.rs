//! Reads RecBole's atomic files of any dataset: <https://recbole.io/docs/user_guide/data/atomic_files.html>.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use indexmap::IndexMap;
use mp4sr_artifact::files;

use super::args::ImportArgs;
use super::events::{EventSet, ImportedEvent, Interactions};
use super::items::ImportedItem;
use super::sequences::{Joined, Location, SequenceLine};
use super::table::TabTable;
use super::write::{Imported, exported_items, features_of, file_with};
use crate::dataset::{About, ModalityFeatures, place_of_modality, read_about};

/// The names of the user column: RecBole's default, and the one in its session-based datasets.
const USER: [&str; 2] = ["user_id", "session_id"];
const ITEM: &str = "item_id";
const TIME: &str = "timestamp";
/// The column with the items before an event, if a dataset has it.
const LIST: &str = "item_id_list";
/// The names of the sets in file names.
const SETS: [(&[&str], EventSet); 3] =
    [(&["train"], EventSet::Training), (&["valid", "validation"], EventSet::Validation), (&["test"], EventSet::Test)];
/// The item columns that may hold a title; the first one that exists is used.
const TITLES: [&str; 6] = ["title", "movie_title", "item_name", "name", "product_name", "headline"];
/// The item columns that hold texts; categories are separate.
const TEXTS: [&str; 8] = ["sentences", "description", "text", "brand", "summary", "abstract", "overview", "review"];
/// The item columns that hold categories.
const CATEGORIES: [&str; 7] = ["categories", "category", "class", "genre", "genres", "tags", "tag"];

/// The items by id, and the vectors of item columns and of separate files.
#[derive(Default)]
struct ItemTable {
    items: IndexMap<String, ImportedItem>,
    vectors: Vec<FeatureVectors>,
}

/// The vectors of one modality by item id.
struct FeatureVectors {
    modality: String,
    path: PathBuf,
    width: usize,
    by_id: HashMap<String, Vec<f32>>,
}

/// Reads the folder of `args`.
pub fn read(args: &ImportArgs) -> anyhow::Result<Imported> {
    let folder = &args.folder;
    let paths = files::list(folder)?;
    let about = read_about(folder)?;
    let mut notes = Vec::new();
    let (name, inters) = interaction_files(folder, &paths)?;
    let mut table = ItemTable::default();
    let item_file = file_with(&paths, &format!("{name}.item"));
    if let Some(path) = &item_file {
        table.read_items(path, &mut notes)?;
    }
    for path in &paths {
        table.read_vectors(path, &name)?;
    }
    let mut interactions = Interactions { is_timed: true, is_divided: inters.len() > 1, ..Interactions::default() };
    interactions.items.extend(table.items.keys().cloned());
    let with_line = interactions.items.len();
    // If the folder also has the undivided file, it determines the order of the users.
    if let Some(whole) = file_with(&paths, &format!("{name}.inter")).filter(|_| interactions.is_divided) {
        let whole = TabTable::read(&whole, true)?;
        let user = whole.expect(&USER)?;
        whole.each(|_, cells| {
            interactions.users.extend(Some(plain(cells[user])).filter(|user| !user.trim().is_empty()));
            Ok(())
        })?;
    }
    read_interactions(&inters, &mut interactions, &mut notes)?;
    ensure!(!interactions.events.is_empty(), "`{}` has no interaction after its header", inters[0].0.display());
    let new = interactions.items.len() - with_line;
    if item_file.is_some() && new > 0 {
        notes.push(format!("{new} items of the interactions have no line in `{name}.item`"));
    }
    let without = with_line
        - interactions
            .events
            .iter()
            .map(|event| event.item)
            .filter(|&item| (item as usize) < with_line)
            .collect::<std::collections::HashSet<_>>()
            .len();
    if without > 0 {
        notes.push(format!(
            "{without} items of `{name}.item` have no event; they are candidates, as in RecBole (`preprocess.items_without_events`)"
        ));
    }
    let known_items =
        item_file.as_deref().map_or(Ok(false), |path| about.as_ref().map_or(Ok(false), |about| about.knows(path)))?;
    let exported = about.as_ref().filter(|_| known_items);
    let items = match exported_items(args, exported, interactions.items.iter(), &mut notes)? {
        Some(items) => items,
        None => {
            let mut own = table.items;
            interactions.items.iter().map(|id| own.swap_remove(id).unwrap_or_else(|| ImportedItem::of_id(id))).collect()
        }
    };
    table.vectors.sort_by_key(|own| place_of_modality(about.as_ref(), &own.modality));
    let features = table
        .vectors
        .iter()
        .map(|own| own.in_order(folder, &interactions, about.as_ref(), &mut notes))
        .collect::<Result<_, _>>()?;
    Ok(Imported { format: "recbole", default_name: name, interactions, items, features, about, notes })
}

/// The name of the dataset, and its interaction files with their sets; a single file counts as the training set.
fn interaction_files(folder: &Path, paths: &[PathBuf]) -> anyhow::Result<(String, Vec<(PathBuf, EventSet)>)> {
    let stems: Vec<String> = paths
        .iter()
        .filter(|path| path.extension().is_some_and(|end| end == "inter"))
        .filter_map(|path| Some(path.file_stem()?.to_string_lossy().into_owned()))
        .collect();
    ensure!(
        !stems.is_empty(),
        "`{}` has no file `NAME.inter`; name the folder of RecBole's atomic files",
        folder.display()
    );
    let set_of = |stem: &str| {
        let (name, set) = stem.rsplit_once('.')?;
        let (_, set) = SETS.into_iter().find(|(names, _)| names.contains(&set))?;
        Some((name.to_owned(), set))
    };
    let sets: Vec<(String, (String, EventSet))> =
        stems.iter().filter_map(|stem| Some((stem.clone(), set_of(stem)?))).collect();
    let whole: Vec<&String> = stems.iter().filter(|stem| set_of(stem).is_none()).collect();
    let path = |stem: &str| folder.join(format!("{stem}.inter"));
    let Some((_, (name, _))) = sets.first() else {
        return match &whole[..] {
            [one] => Ok(((*one).clone(), vec![(path(one), EventSet::Training)])),
            several => bail!(
                "`{}` has {} files of interactions, {}; leave one, or name the sets as in `NAME.train.inter`, `NAME.valid.inter`, `NAME.test.inter`",
                folder.display(),
                several.len(),
                several.iter().map(|stem| format!("`{stem}.inter`")).collect::<Vec<_>>().join(", ")
            ),
        };
    };
    for (names, set) in SETS {
        let count = sets.iter().filter(|(_, (own, at))| own == name && *at == set).count();
        ensure!(
            count == 1,
            "`{}` has {count} files of the `{}` set of `{name}`, expected one",
            folder.display(),
            names[0]
        );
    }
    ensure!(
        sets.iter().all(|(_, (own, _))| own == name),
        "`{}` has sets of several datasets; keep the files of one dataset",
        folder.display()
    );
    let mut found: Vec<(PathBuf, EventSet)> = sets.iter().map(|(stem, (_, set))| (path(stem), *set)).collect();
    found.sort_by_key(|(_, set)| *set);
    Ok((name.clone(), found))
}

/// The columns of a file of interactions.
struct InteractionColumns {
    user: usize,
    item: usize,
    time: Option<usize>,
    /// The items before the event.
    list: Option<usize>,
    further: Vec<usize>,
}

impl InteractionColumns {
    fn of(table: &TabTable, path: &Path) -> anyhow::Result<Self> {
        let (user, item) = (table.expect(&USER)?, table.expect(&[ITEM])?);
        for column in [user, item] {
            let (name, kind) = &table.columns[column];
            ensure!(
                kind == "token",
                "`{}`, line 1: the column `{name}` has the type `{kind}`, expected `token`; {}",
                path.display(),
                if kind.ends_with("_seq") { "write one event per line" } else { "correct the type" }
            );
        }
        let (time, list) = (table.find(TIME), table.find(LIST));
        let used = [Some(user), Some(item), time, list];
        let further = (0..table.columns.len()).filter(|&column| !used.contains(&Some(column))).collect();
        Ok(Self { user, item, time, list, further })
    }
}

/// Reads the files of interactions with their sets. If lines contain the items before an event, they are joined into sequences.
fn read_interactions(
    inters: &[(PathBuf, EventSet)],
    interactions: &mut Interactions,
    notes: &mut Vec<String>,
) -> anyhow::Result<()> {
    let (mut missing, mut joined, mut any_time) = (0_u64, None::<Joined>, false);
    for (at, (path, set)) in inters.iter().enumerate() {
        let table = TabTable::read(path, true)?;
        let InteractionColumns { user, item, time, list, further } = InteractionColumns::of(&table, path)?;
        any_time |= time.is_some();
        interactions.is_timed &= time.is_some() && list.is_none();
        let columns: Vec<String> = further.iter().map(|&column| table.columns[column].0.clone()).collect();
        if at == 0 {
            interactions.columns = columns;
            joined = list.map(|_| Joined::default());
        } else {
            ensure!(
                interactions.columns == columns && joined.is_some() == list.is_some(),
                "`{}` has different columns from `{}`; the files of all sets need the same columns",
                path.display(),
                inters[0].0.display()
            );
        }
        table.each(|line, cells| {
            let (user, item) = (plain(cells[user]), plain(cells[item]));
            if user.trim().is_empty() || item.trim().is_empty() {
                missing += 1;
                return Ok(());
            }
            let user = interactions.users.insert_full(user).0 as u32;
            let item = interactions.items.insert_full(item).0 as u32;
            if let (Some(joined), Some(list)) = (&mut joined, list) {
                let before = cells[list].split(' ').filter(|id| !id.is_empty());
                let before: Vec<u32> =
                    before.map(|id| interactions.items.insert_full(id.to_owned()).0 as u32).collect();
                let location = Location { path: path.clone(), line };
                joined.add(user, SequenceLine { set: *set, before, item, location });
                return Ok(());
            }
            interactions.events.push(ImportedEvent {
                user,
                item,
                time: time.map_or(Ok(0.0), |column| table.time(line, column, cells[column]))?,
                set: *set,
                further: further.iter().map(|&column| cells[column].to_owned()).collect(),
            });
            Ok(())
        })?;
    }
    if missing > 0 {
        notes.push(format!("{missing} lines without a user or an item are dropped, as RecBole does"));
    }
    if let Some(joined) = joined {
        note_joined(&std::mem::take(&mut interactions.columns), any_time, notes);
        interactions.events = joined.finish(interactions.is_divided)?;
    }
    Ok(())
}

/// Notes that lines are joined, and the columns that are not read because of it.
fn note_joined(unread: &[String], any_time: bool, notes: &mut Vec<String>) {
    if !unread.is_empty() {
        notes.push(format!(
            "columns that are not read, because the items before an event (`{LIST}`) have no values of them: {}",
            unread.join(", ")
        ));
    }
    if any_time {
        notes.push(format!("`{TIME}` is not read, because the items before an event (`{LIST}`) have no times"));
    }
    notes.push(format!(
        "lines contain the items before an event (`{LIST}`): they are joined into one sequence per user"
    ));
}

/// A cell as pandas reads it, without surrounding quotation marks.
fn plain(cell: &str) -> String {
    match cell.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        Some(quoted) => quoted.replace("\"\"", "\""),
        None => cell.to_owned(),
    }
}

impl ItemTable {
    fn read_items(&mut self, path: &Path, notes: &mut Vec<String>) -> anyhow::Result<()> {
        let table = TabTable::read(path, true)?;
        let id = table.expect(&[ITEM])?;
        let title = TITLES.iter().find_map(|name| table.find(name));
        let some = |names: &[&str]| names.iter().filter_map(|name| table.find(name)).collect::<Vec<_>>();
        let (categories, texts) = (some(&CATEGORIES), some(&TEXTS));
        let vectors: Vec<usize> = (0..table.columns.len()).filter(|&at| table.columns[at].1 == "float_seq").collect();
        let used = |at: &usize| {
            *at == id || Some(*at) == title || [&categories, &texts, &vectors].iter().any(|own| own.contains(at))
        };
        let others: Vec<&str> =
            (0..table.columns.len()).filter(|at| !used(at)).map(|at| table.columns[at].0.as_str()).collect();
        if !others.is_empty() {
            notes.push(format!("the columns {} of `{}` are not used", others.join(", "), path.display()));
        }
        let is_list = |at: usize| table.columns[at].1 == "token_seq";
        let mut dropped = 0_u64;
        let mut found: Vec<FeatureVectors> =
            vectors.iter().map(|&at| FeatureVectors::new(&table.columns[at].0, path)).collect();
        table.each(|line, cells| {
            let item_id = plain(cells[id]);
            if item_id.trim().is_empty() || self.items.contains_key(&item_id) {
                dropped += 1;
                return Ok(());
            }
            let names = categories.iter().flat_map(|&at| {
                let cell = plain(cells[at]);
                let names: Vec<String> =
                    if is_list(at) { cell.split(' ').map(str::to_owned).collect() } else { vec![cell] };
                names.into_iter().filter(|name| !name.is_empty())
            });
            let names: Vec<String> = names.collect();
            let mut own: Vec<String> =
                texts.iter().map(|&at| plain(cells[at])).filter(|text| !text.trim().is_empty()).collect();
            if !names.is_empty() {
                own.push(names.join(", "));
            }
            for (vectors, &at) in found.iter_mut().zip(&vectors) {
                vectors.add(&table, line, at, &item_id, cells[at])?;
            }
            let title = title.map(|at| plain(cells[at])).unwrap_or_default();
            let item = ImportedItem { title, texts: own, categories: names, ..ImportedItem::of_id(&item_id) };
            self.items.insert(item_id, item);
            Ok(())
        })?;
        if dropped > 0 {
            notes.push(format!("{dropped} lines of `{}` have no id or repeat one, and are ignored", path.display()));
        }
        self.vectors.append(&mut found);
        Ok(())
    }

    /// Reads vectors from a separate file: `NAME.<suffix>` with an id column and a `float_seq` column.
    fn read_vectors(&mut self, path: &Path, name: &str) -> anyhow::Result<()> {
        let file = path.file_name().map(|file| file.to_string_lossy().into_owned()).unwrap_or_default();
        let suffix = file.strip_prefix(name).and_then(|rest| rest.strip_prefix('.'));
        let others = ["inter", "item", "user", "link", "kg", "net", "yaml", "yml", "json"];
        let Some(suffix) = suffix.filter(|suffix| !suffix.contains('.') && !others.contains(suffix)) else {
            return Ok(());
        };
        let table = TabTable::read(path, true)?;
        let of_type = |kind: &str| table.columns.iter().position(|(_, own)| own == kind);
        let (Some(id), Some(vector)) = (of_type("token"), of_type("float_seq")) else { return Ok(()) };
        let mut vectors = FeatureVectors::new(suffix, path);
        table.each(|line, cells| vectors.add(&table, line, vector, &plain(cells[id]), cells[vector]))?;
        self.vectors.push(vectors);
        Ok(())
    }
}

impl FeatureVectors {
    /// Vectors from a file or a column of this name: `textemb`, `text_emb` and `text_feat` all mean the modality `text`.
    fn new(name: &str, path: &Path) -> Self {
        let plain = ["_embedding", "_emb", "_feat", "emb"].iter().find_map(|end| name.strip_suffix(end));
        let modality = plain.filter(|plain| !plain.is_empty()).unwrap_or(name);
        let allowed = |c: char| if c.is_ascii_alphanumeric() || "-_".contains(c) { c } else { '-' };
        let modality = modality.chars().map(allowed).collect();
        Self { modality, path: path.to_owned(), width: 0, by_id: HashMap::new() }
    }

    fn add(&mut self, table: &TabTable, line: u64, column: usize, id: &str, cell: &str) -> anyhow::Result<()> {
        let numbers = plain(cell);
        let numbers = numbers.split(' ').filter(|number| !number.is_empty());
        let vector: Vec<f32> = numbers.map(|number| table.number(line, column, number)).collect::<Result<_, _>>()?;
        if vector.is_empty() {
            return Ok(());
        }
        if self.width == 0 {
            self.width = vector.len();
        }
        ensure!(
            vector.len() == self.width && vector.iter().all(|value| value.is_finite()),
            "`{}`, line {line}: the vector of {id:?} has {} numbers, expected {} finite ones",
            self.path.display(),
            vector.len(),
            self.width
        );
        let known = self.by_id.insert(id.to_owned(), vector);
        ensure!(known.is_none(), "`{}`, line {line}: {id:?} has two vectors", self.path.display());
        Ok(())
    }

    fn in_order(
        &self,
        folder: &Path,
        interactions: &Interactions,
        about: Option<&About>,
        notes: &mut Vec<String>,
    ) -> anyhow::Result<ModalityFeatures> {
        let (mut offsets, mut values) = (vec![0_i64], Vec::new());
        for id in &interactions.items {
            values.extend(self.by_id.get(id).into_iter().flatten());
            offsets.push((values.len() / self.width.max(1)) as i64);
        }
        let found = offsets.last().copied().unwrap_or(0) as usize;
        ensure!(
            found > 0,
            "none of the ids in `{}` is an item of the dataset; use the item ids of the interactions",
            self.path.display()
        );
        if found < self.by_id.len() {
            let (count, path) = (self.by_id.len() - found, self.path.display());
            notes.push(format!("{count} vectors of `{path}` belong to items that the dataset does not have"));
        }
        let own = ModalityFeatures { modality: self.modality.clone(), offsets, values, width: self.width };
        features_of(folder, &self.path, about, &interactions.items, own)
            .with_context(|| format!("features of `{}`", self.modality))
    }
}
