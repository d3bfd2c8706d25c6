//! Reads the folder of MMRec: users and items are numbers from 0, and row n of a feature matrix belongs to item n.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use indexmap::IndexSet;
use mp4sr_artifact::files;

use super::args::ImportArgs;
use super::events::{EventSet, ImportedEvent, Interactions};
use super::items::ImportedItem;
use super::table::TabTable;
use super::write::{Imported, exported_items, features_of};
use crate::dataset::{About, ModalityFeatures, place_of_modality, read_about};
use crate::mmrec::feature_file;
use crate::npy::NpyMatrix;

/// Columns that have a fixed meaning.
const KNOWN: [&str; 4] = ["userID", "itemID", "timestamp", "x_label"];

/// Reads the folder of `args`.
pub fn read(args: &ImportArgs) -> anyhow::Result<Imported> {
    let folder = &args.folder;
    let inter = only_inter(folder)?;
    let about = read_about(folder)?;
    let mut notes = Vec::new();
    let table = TabTable::read(&inter, false)?;
    let (user, item) = (table.expect(&["userID"])?, table.expect(&["itemID"])?);
    let (time, set) = (table.find("timestamp"), table.find("x_label"));
    if set.is_none() {
        notes.push(
            "the interactions have no `x_label`: each user's last event is for the test, and the one before it for validation"
                .to_owned(),
        );
    }
    let further: Vec<usize> =
        (0..table.columns.len()).filter(|&at| !KNOWN.contains(&table.columns[at].0.as_str())).collect();
    let (mut events, mut most) = (Vec::new(), (0_u32, 0_u32));
    table.each(|line, cells| {
        let number = |column: usize| table.number::<u32>(line, column, cells[column]);
        let (user, item) = (number(user)?, number(item)?);
        ensure!(
            user < u32::MAX && item < u32::MAX,
            "`{}`, line {line}: found user {user} and item {item}; both numbers must be below {}",
            inter.display(),
            u32::MAX
        );
        let label = set.map(number).transpose()?.unwrap_or(0);
        let set = EventSet::ALL.get(label as usize).copied();
        let set = set
            .with_context(|| format!("`{}`, line {line}: `x_label` is {label}, expected 0, 1 or 2", inter.display()))?;
        most = (most.0.max(user + 1), most.1.max(item + 1));
        events.push(ImportedEvent {
            user,
            item,
            time: time.map_or(Ok(0.0), |column| table.time(line, column, cells[column]))?,
            set,
            further: further.iter().map(|&at| cells[at].to_owned()).collect(),
        });
        Ok(())
    })?;
    ensure!(!events.is_empty(), "`{}` has no interaction after its header", inter.display());
    let users = ids(folder, "u_id_mapping.csv", "userID", most.0, &inter)?;
    let items = ids(folder, "i_id_mapping.csv", "itemID", most.1, &inter)?;
    let mapping = folder.join("i_id_mapping.csv");
    // The exported rows are in the order of the item numbers, so they are only valid if the ids of these numbers are unchanged.
    let exported = match &about {
        Some(about) if mapping.exists() && about.knows(&mapping)? => Some(about),
        _ => None,
    };
    let features = read_features(folder, &items, exported)?;
    let lines = exported_items(args, about.as_ref(), items.iter(), &mut notes)?;
    let imported = lines.unwrap_or_else(|| items.iter().map(|id| ImportedItem::of_id(id)).collect());
    let interactions = Interactions {
        users,
        items,
        events,
        columns: further.iter().map(|&at| table.columns[at].0.clone()).collect(),
        is_timed: time.is_some(),
        is_divided: set.is_some(),
    };
    Ok(Imported {
        format: "mmrec",
        default_name: name_of(&inter),
        interactions,
        items: imported,
        features,
        about,
        notes,
    })
}

fn only_inter(folder: &Path) -> anyhow::Result<PathBuf> {
    let inter = files::list(folder)?.into_iter().filter(|path| path.extension().is_some_and(|end| end == "inter"));
    match &inter.collect::<Vec<_>>()[..] {
        [one] => Ok(one.clone()),
        [] => bail!("`{}` has no file `NAME.inter`; name the folder that MMRec reads", folder.display()),
        several => bail!(
            "`{}` has {} files of interactions, and MMRec reads one; leave only that which `inter_file_name` names",
            folder.display(),
            several.len()
        ),
    }
}

fn name_of(inter: &Path) -> String {
    inter.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default()
}

/// The ids of the numbers from 0 to at least `count` - 1, which the file `inter` uses; the numbers themselves if the file `name` of `folder`
/// does not exist.
fn ids(folder: &Path, name: &str, column: &str, count: u32, inter: &Path) -> anyhow::Result<IndexSet<String>> {
    let path = &folder.join(name);
    if !path.exists() {
        // MMRec numbers ids without gaps. Ids of another kind would become very many that have no event.
        let bytes = std::fs::metadata(inter).map_or(0, |about| about.len());
        ensure!(
            u64::from(count) <= bytes,
            "`{}` has numbers up to {} in the column `{column}`, more than it has bytes, so they are not those of MMRec; number the ids \
             from 0, and write the numbers and the ids to `{name}` in the same folder",
            inter.display(),
            count - 1
        );
        return Ok((0..count).map(|number| number.to_string()).collect());
    }
    let text = files::read(path)?;
    let comma = !text.split(|&byte| byte == b'\n').next().unwrap_or_default().contains(&b'\t');
    let mut reader = csv::ReaderBuilder::new().delimiter(if comma { b',' } else { b'\t' }).from_reader(&text[..]);
    let header = reader.headers().with_context(|| format!("failed to read `{}`", path.display()))?.clone();
    let number = header.iter().position(|name| name == column);
    let number = number.filter(|_| header.len() == 2).with_context(|| {
        format!("`{}`, line 1: expected two columns, an id and `{column}`; found {header:?}", path.display())
    })?;
    let mut found: Vec<Option<String>> = Vec::new();
    for record in reader.records() {
        let record = record.with_context(|| format!("failed to read `{}`", path.display()))?;
        let line = record.position().map_or(0, csv::Position::line);
        let at: usize = record[number].trim().parse().ok().filter(|&at| at < u32::MAX as usize).with_context(|| {
            format!("`{}`, line {line}: {:?} is not a number from 0", path.display(), &record[number])
        })?;
        // A number far beyond the length of the file would allocate memory without bound.
        ensure!(at < text.len(), "`{}`, line {line}: the number {at} is beyond the lines of the file", path.display());
        if found.len() <= at {
            found.resize(at + 1, None);
        }
        ensure!(found[at].is_none(), "`{}`, line {line}: the number {at} occurs twice", path.display());
        found[at] = Some(record[1 - number].to_owned());
    }
    ensure!(
        found.len() >= count as usize,
        "`{}` has ids for the numbers up to {} only, and the interactions use numbers up to {}",
        path.display(),
        found.len().saturating_sub(1),
        count.saturating_sub(1)
    );
    let mut ids = IndexSet::with_capacity(found.len());
    for (at, id) in found.into_iter().enumerate() {
        let id = id.with_context(|| format!("`{}` has no id for the number {at}", path.display()))?;
        ensure!(!id.trim().is_empty(), "`{}`: the id for the number {at} is empty", path.display());
        ensure!(ids.insert(id.clone()), "`{}`: the id {id:?} has two numbers", path.display());
    }
    Ok(ids)
}

/// Reads the matrices of the folder.
fn read_features(
    folder: &Path,
    items: &IndexSet<String>,
    about: Option<&About>,
) -> anyhow::Result<Vec<ModalityFeatures>> {
    let end = feature_file("");
    let mut modalities: Vec<String> = Vec::new();
    for path in files::list(folder)? {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let modality = name.strip_suffix(&end).filter(|modality| !modality.is_empty()).map(str::to_owned);
        modalities.extend(modality);
    }
    modalities.sort_by_key(|modality| place_of_modality(about, modality));
    let mut features = Vec::new();
    for modality in modalities {
        let path = folder.join(feature_file(&modality));
        let matrix = NpyMatrix::read(&path)?;
        ensure!(
            matrix.rows() == items.len(),
            "`{}` has {} rows and the dataset {} items; row n must belong to item number n",
            path.display(),
            matrix.rows(),
            items.len()
        );
        let rows = ModalityFeatures {
            modality,
            offsets: (0..=items.len() as i64).collect(),
            values: matrix.values,
            width: matrix.width,
        };
        features.push(features_of(folder, &path, about, items, rows)?);
    }
    Ok(features)
}
