//! Writes the folder that MMRec reads: <https://github.com/enoche/MMRec>, `src/utils/dataset.py` and `preprocessing/`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use mp4sr_artifact::files;
use mp4sr_pipeline::Context;

use crate::dataset::{ExportedDataset, ModalityFeatures, mean_of};
use crate::npy;

/// Writes `<name>.inter`, the ids of users and items, one feature matrix per modality, and the settings of the dataset.
pub fn write(context: &Context, folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let name = &context.config.dataset.name;
    let dataset = ExportedDataset::read(context)?;
    let inter = folder.join(format!("{name}.inter"));
    let mut text = "userID\titemID\trating\ttimestamp\tx_label\n".to_owned();
    for (user, item, time, set) in dataset.events() {
        let _ = writeln!(text, "{user}\t{}\t1.0\t{time}\t{set}", item - 1);
    }
    files::write_bytes(&inter, text.as_bytes())?;
    let (users, items) = (folder.join("u_id_mapping.csv"), folder.join("i_id_mapping.csv"));
    files::write_bytes(&users, &mapping(["user_id", "userID"], &dataset.users.ids)?)?;
    files::write_bytes(&items, &mapping(["asin", "itemID"], &dataset.items.ids)?)?;
    let mut paths = vec![inter, users, items];
    for own in &dataset.features {
        let path = folder.join(feature_file(&own.modality));
        npy::write(&path, &matrix(own), &[dataset.items.len(), own.width])?;
        paths.push(path);
    }
    paths.extend(dataset.write_extra(folder, &paths)?);
    let yaml = folder.join(format!("{name}.yaml"));
    files::write_bytes(&yaml, settings(name).as_bytes())?;
    paths.push(yaml);
    Ok(paths)
}

/// The file name of a modality's matrix.
pub fn feature_file(modality: &str) -> String {
    format!("{modality}_feat.npy")
}

/// The ids with their numbers from 0, in a tab-separated file as `pandas` writes it.
fn mapping(header: [&str; 2], ids: &[String]) -> anyhow::Result<Vec<u8>> {
    let mut writer = csv::WriterBuilder::new().delimiter(b'\t').from_writer(Vec::new());
    writer.write_record(header)?;
    for (number, id) in ids.iter().enumerate() {
        writer.write_record([id, &number.to_string()])?;
    }
    Ok(writer.into_inner()?)
}

/// The feature matrix, `[I * width]`: the mean of each item's rows. As in MMRec's own preprocessing, an item without rows gets the mean of
/// all others, because models divide by the norm of a row.
fn matrix(own: &ModalityFeatures) -> Vec<f32> {
    let rows: Vec<Option<Vec<f32>>> = (0..own.offsets.len() - 1).map(|row| own.mean(row)).collect();
    let known: Vec<f32> = rows.iter().flatten().flatten().copied().collect();
    let usual = mean_of(&known, own.width).unwrap_or_else(|| vec![0.0; own.width]);
    rows.into_iter().flat_map(|row| row.unwrap_or_else(|| usual.clone())).collect()
}

fn settings(name: &str) -> String {
    format!(
        "# For `src/configs/dataset/` of MMRec.\nUSER_ID_FIELD: userID\nITEM_ID_FIELD: itemID\nTIME_FIELD: timestamp\n\
         filter_out_cod_start_users: True\ninter_file_name: '{name}.inter'\nvision_feature_file: 'image_feat.npy'\n\
         text_feature_file: 'text_feat.npy'\nuser_graph_dict_file: 'user_graph_dict.npy'\nfield_separator: \"\\t\"\n"
    )
}
