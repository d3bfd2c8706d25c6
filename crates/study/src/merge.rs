//! Merges several datasets into one, to pre-train on all of them (variant `Larger`).

use std::collections::BTreeSet;
use std::path::PathBuf;

use mp4sr_artifact::{
    Error, FeatureType, Features, Items, Layout, Lock, Manifest, Result, RowsHeader, SequenceParts, Sequences, Stage,
    StageSettings, Status, TimeKind, Users, files, hash_ids, recorded_settings, role,
};
use serde_json::json;

/// The name of the stage that writes other datasets.
const PREPROCESS: &str = "preprocess";
/// The setting in the header of merged sequences that names the datasets.
const UNION_OF: &str = "union_of";
/// The name of the step in its record.
const NAME: &str = "merge";
/// The version of the merged files.
const VERSION: u32 = 1;

/// One of the datasets to merge.
#[derive(Clone, Debug)]
pub struct MergeSource {
    /// The name of the dataset; the ids of its items and users get it as a prefix.
    pub name: String,
    /// The layout of its files.
    pub layout: Layout,
    /// The modalities that it has, each with the encoder's name in the name of the feature file.
    pub features: Vec<(String, String)>,
}

/// Writes the union of all sources: `dataset/` and, for every modality of the first source, `features/<modality>.<encoder>.safetensors`. It
/// has all items and users of all sources, none of them shared. The items of a source without a modality get no rows. Sequences, items and
/// the features of one modality are held in memory. Does nothing if the record says that the files are up to date. A dataset of this name
/// that no merge has written is an error, because its files would be lost.
pub fn merge(sources: &[MergeSource], to: &Layout) -> Result<()> {
    let Some(first) = sources.first() else { return Ok(()) };
    let mut inputs: Vec<(String, PathBuf)> = Vec::new();
    for MergeSource { name, layout, features } in sources {
        for (role, path) in
            [(role::SEQUENCES, layout.sequences()), (role::ITEMS, layout.items()), (role::USERS, layout.users())]
        {
            inputs.push((format!("{role} of {name}"), path));
        }
        for (modality, encoder) in features {
            inputs.push((format!("{modality} of {name}"), layout.feature_file(modality, encoder)));
        }
    }
    let _lock = Lock::acquire(to.root(), NAME)?;
    // A merge that was interrupted has left its sequences, but no record. A dataset that replaced a union has a record of its own.
    let is_union = || {
        !Manifest::path(&to.dataset(), PREPROCESS).exists()
            && (Manifest::path(to.root(), NAME).exists()
                || recorded_settings(&to.sequences()).is_some_and(|settings| settings[UNION_OF].is_array()))
    };
    if to.sequences().exists() && !is_union() {
        return Err(Error::unusable(
            &to.dataset(),
            "the union of the datasets would replace this dataset, which has the same name",
            "give this dataset another `dataset.name`, or move its folder",
        ));
    }
    for folder in [to.root().to_owned(), to.dataset(), to.features()] {
        files::clean_folder(&folder)?;
    }
    let stage = Stage::new(NAME, VERSION, to.root(), StageSettings::of(json!(first.features)), &inputs)?;
    if stage.status()? == Status::UpToDate {
        return Ok(());
    }
    stage.begin()?;
    let mut outputs = vec![to.items(), to.users(), to.sequences()];
    let hash = merge_dataset(sources, to)?;
    for (modality, encoder) in &first.features {
        let path = to.feature_file(modality, encoder);
        merge_features(sources, modality, encoder, &hash, &path)?;
        outputs.push(path);
    }
    stage.expect_unchanged_inputs()?;
    stage.finish(&outputs)
}

fn merge_dataset(sources: &[MergeSource], to: &Layout) -> Result<mp4sr_artifact::Fingerprint> {
    let (mut items, mut users) = (Items::default(), Users::default());
    let mut all = Sequences {
        offsets: vec![0],
        items: Vec::new(),
        times: Vec::new(),
        item_hash: hash_ids([]),
        item_count: 0,
        user_hash: None,
        time_kind: TimeKind::Unstated,
        parts: None,
    };
    // If any dataset records where its validation and test events begin, this is recorded for the others as well.
    let mut kinds = BTreeSet::new();
    let (mut parts, mut any_parts) = (SequenceParts::default(), false);
    for MergeSource { name, layout, .. } in sources {
        let own = |id: String| format!("{name}/{id}");
        let (more, sequences) = (Items::read(&layout.items())?, Sequences::read(&layout.sequences())?);
        let others = Users::read(&layout.users())?;
        sequences.expect_tables(layout, &more, &others)?;
        let (events, before) = (all.items.len() as i64, items.len() as u32);
        items.ids.extend(more.ids.into_iter().map(own));
        items.titles.extend(more.titles);
        items.sentences.extend(more.sentences);
        items.images.extend(more.images);
        items.categories.extend(more.categories);
        items.sounds.extend(more.sounds);
        users.ids.extend(others.ids.into_iter().map(own));
        let starts = (0..sequences.user_count()).map(|user| sequences.parts_of(user));
        starts.for_each(|(validation, test)| {
            parts.validation.push(validation as u32);
            parts.test.push(test as u32);
        });
        any_parts |= sequences.parts.is_some();
        all.offsets.extend(sequences.offsets[1..].iter().map(|offset| events + offset));
        all.items.extend(sequences.items.iter().map(|item| before + item));
        all.times.extend(sequences.times);
        kinds.insert(sequences.time_kind);
    }
    all.time_kind = match kinds.len() {
        1 => kinds.first().copied().unwrap_or_default(),
        _ if kinds.contains(&TimeKind::Positions) => TimeKind::Positions,
        _ => TimeKind::Unstated,
    };
    all.parts = any_parts.then_some(parts);
    (all.item_hash, all.item_count, all.user_hash) = (items.hash(), items.len(), Some(users.hash()));
    items.write(&to.items())?;
    users.write(&to.users())?;
    let names: Vec<&str> = sources.iter().map(|source| source.name.as_str()).collect();
    all.write(&to.sequences(), json!({ UNION_OF: names }))?;
    Ok(all.item_hash)
}

fn merge_features(
    sources: &[MergeSource],
    modality: &str,
    encoder: &str,
    hash: &mp4sr_artifact::Fingerprint,
    path: &std::path::Path,
) -> Result<()> {
    const REMEDY: &str = "extract the datasets of `--with` with the same encoders";
    let (mut offsets, mut values, mut width) = (vec![0i64], Vec::new(), None);
    for MergeSource { layout, features, .. } in sources {
        let sequences = Sequences::read(&layout.sequences())?;
        let last = *offsets.last().unwrap_or(&0);
        let Some((_, own)) = features.iter().find(|(name, _)| name == modality) else {
            offsets.extend(std::iter::repeat_n(last, sequences.item_count));
            continue;
        };
        let path = layout.feature_file(modality, own);
        let features = Features::read(&path, &sequences.item_hash, sequences.item_count)?;
        let expected = *width.get_or_insert(features.width());
        if own != encoder || features.width() != expected {
            let found =
                format!("rows of {} from `{own}`, expected rows of {expected} from `{encoder}`", features.width());
            return Err(Error::unusable(&path, found, REMEDY));
        }
        offsets.extend(features.offsets[1..].iter().map(|offset| last + offset));
        values.extend(features.to_f32());
    }
    let width = width.unwrap_or(1).max(1);
    // Converting stored values of any type to f32 loses nothing.
    let header = RowsHeader {
        stage: "merge",
        settings: json!(null),
        item_hash: hash.clone(),
        offsets: &offsets,
        width,
        as_type: FeatureType::F32,
    };
    let written = Features::write_rows(path, header, || values.chunks(width))?;
    match written {
        None => Ok(()),
        Some(row) => Err(Error::unusable(path, format!("row {row} is not finite"), REMEDY)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mp4sr_artifact::Tensor;

    fn source(folder: &std::path::Path, name: &str, users: &[&[u32]], rows: &[usize]) -> MergeSource {
        let layout = Layout::new(folder, name, "r");
        let items = Items {
            ids: (0..rows.len()).map(|i| format!("i{i}")).collect(),
            titles: vec![name.to_owned(); rows.len()],
            sentences: vec![vec![]; rows.len()],
            images: vec![vec![]; rows.len()],
            categories: vec![vec![name.to_owned()]; rows.len()],
            sounds: vec![vec![format!("{name}.wav")]; rows.len()],
        };
        let mut offsets = vec![0i64];
        users.iter().for_each(|user| offsets.push(offsets.last().unwrap() + user.len() as i64));
        let all = users.concat();
        let times = (0..all.len() as i64).collect();
        items.write(&layout.items()).unwrap();
        Users { ids: (0..users.len()).map(|u| format!("u{u}")).collect() }.write(&layout.users()).unwrap();
        let item_count = rows.len();
        Sequences {
            offsets,
            items: all,
            times,
            item_hash: items.hash(),
            item_count,
            user_hash: None,
            time_kind: TimeKind::Unstated,
            parts: None,
        }
        .write(&layout.sequences(), json!(null))
        .unwrap();
        let offsets: Vec<i64> = (0..=rows.len()).map(|i| rows[..i].iter().sum::<usize>() as i64).collect();
        let count = *offsets.last().unwrap() as usize;
        let values = (0..2 * count).map(|v| v as f32 + name.len() as f32).collect();
        let values = Tensor::F32(values, vec![count, 2]);
        Features { offsets, values, item_hash: items.hash() }
            .write(&layout.feature_file("text", "tiny"), "test", json!(null))
            .unwrap();
        MergeSource { name: name.to_owned(), layout, features: vec![("text".to_owned(), "tiny".to_owned())] }
    }

    #[test]
    fn a_dataset_of_the_name_of_the_union_is_kept_and_an_interrupted_merge_is_repeated() {
        let folder = tempfile::tempdir().unwrap();
        let [a, b, own] = ["a", "bb", "a_bb"].map(|name| source(folder.path(), name, &[&[2, 1]], &[2, 1]));
        let before = files::read(&own.layout.sequences()).unwrap();
        let message = merge(&[a.clone(), b.clone()], &own.layout).unwrap_err().to_string();
        assert!(message.contains("the union of the datasets would replace this dataset"), "{message}");
        assert_eq!(files::read(&own.layout.sequences()).unwrap(), before);
        let to = Layout::new(folder.path(), "both", "r");
        merge(&[a.clone(), b.clone()], &to).unwrap();
        files::remove_if_present(&Manifest::path(to.root(), NAME)).unwrap();
        merge(&[a, b], &to).unwrap();
    }

    #[test]
    fn the_union_has_all_users_items_events_and_rows_and_an_absent_modality_has_no_rows() {
        let folder = tempfile::tempdir().unwrap();
        let a = source(folder.path(), "a", &[&[1, 2, 3], &[3]], &[1, 0, 2]);
        let mut b = source(folder.path(), "bb", &[&[2, 1]], &[2, 1]);
        let to = Layout::new(folder.path(), "both", "r");
        merge(&[a.clone(), b.clone()], &to).unwrap();
        let sequences = Sequences::read(&to.sequences()).unwrap();
        assert_eq!((sequences.of(0), sequences.of(1), sequences.of(2)), (&[1, 2, 3][..], &[3][..], &[5, 4][..]));
        assert_eq!(Items::read(&to.items()).unwrap().ids, ["a/i0", "a/i1", "a/i2", "bb/i0", "bb/i1"]);
        assert_eq!(Items::read(&to.items()).unwrap().categories.concat(), ["a", "a", "a", "bb", "bb"]);
        let sounds = ["a.wav", "a.wav", "a.wav", "bb.wav", "bb.wav"];
        assert_eq!(Items::read(&to.items()).unwrap().sounds.concat(), sounds);
        assert_eq!(Users::read(&to.users()).unwrap().ids, ["a/u0", "a/u1", "bb/u0"]);
        let features = Features::read(&to.feature_file("text", "tiny"), &sequences.item_hash, 5).unwrap();
        assert_eq!(features.offsets, [0, 1, 1, 3, 5, 6]);
        let expected: Vec<f32> = (0..6).map(|v| v as f32 + 1.0).chain((0..6).map(|v| v as f32 + 2.0)).collect();
        assert_eq!(features.to_f32(), expected);

        b.features.clear();
        merge(&[a.clone(), b], &to).unwrap();
        let sequences = Sequences::read(&to.sequences()).unwrap();
        let features = Features::read(&to.feature_file("text", "tiny"), &sequences.item_hash, 5).unwrap();
        assert_eq!(features.offsets, [0, 1, 1, 3, 3, 3]);

        let mut other = source(folder.path(), "c", &[&[1]], &[1]);
        other.features[0].1 = "big".to_owned();
        let from = other.layout.feature_file("text", "tiny");
        files::write_bytes(&other.layout.feature_file("text", "big"), &files::read(&from).unwrap()).unwrap();
        let message = merge(&[a, other], &to).unwrap_err().to_string();
        assert!(message.contains("from `big`, expected rows of 2 from `tiny`"), "{message}");
    }
}
