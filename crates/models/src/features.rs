//! What models read about items in addition to their ids: the means of their rows, and categories.

use candle_core::{Device, Tensor};
use mp4sr_ops::{Error, Ragged, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::data::distinct;
use crate::{Categories, Data, Modality};

/// How the rows of an item become one vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RowMean {
    /// The mean of the item's own rows.
    #[default]
    Mean,
    /// The sum of the item's rows over the largest number of rows that any item has.
    PaddedMean,
}

/// The mean of the rows of every item, `[I, d]`; zeros for an item without rows. Sums are computed in double precision.
pub fn mean_rows(features: &Ragged, pooling: RowMean, device: &Device) -> Result<Tensor> {
    let (items, d) = (features.count(), features.width());
    let most = (0..items).map(|i| features.rows_of(i)).max().unwrap_or(0);
    let mut values = vec![0.0f32; items * d];
    let (mut room, mut sums) = (Vec::new(), vec![0.0f64; d]);
    for (i, out) in values.chunks_exact_mut(d).enumerate() {
        let count = match pooling {
            RowMean::Mean => features.rows_of(i),
            RowMean::PaddedMean => most,
        };
        sums.fill(0.0);
        for row in features.rows(i, &mut room).chunks_exact(d) {
            sums.iter_mut().zip(row).for_each(|(sum, &value)| *sum += f64::from(value));
        }
        out.iter_mut().zip(&sums).for_each(|(out, sum)| *out = (sum / count.max(1) as f64) as f32);
    }
    Tensor::from_vec(values, (items, d), device)
}

/// The mean of the rows that each item has in all modalities together, `[I, d]`, zeros for an item without rows. `keep` selects the rows
/// that count, by modality and by the row's index in the modality; an item of which no row would be kept keeps all.
pub(crate) fn joint_means(
    modalities: &[Modality],
    keep: impl Fn(usize, usize) -> bool,
    device: &Device,
) -> Result<Tensor> {
    let Some(first) = modalities.first() else {
        return Err(no_modality());
    };
    let (items, d) = (first.features.count(), first.features.width());
    if let Some(other) = modalities.iter().find(|modality| modality.features.width() != d) {
        let (a, b, found) = (&first.name, &other.name, other.features.width());
        return Err(Error::Msg(format!(
            "features of `{a}` and `{b}` are averaged together and need one width, found {d} and {found}; use encoders of one width"
        )));
    }
    let mut values = vec![0.0f32; items * d];
    let mut next_row = vec![0; modalities.len()];
    let (mut room, mut sums, mut all) = (Vec::new(), vec![0.0f64; d], vec![0.0f64; d]);
    for (item, out) in values.chunks_exact_mut(d).enumerate() {
        sums.fill(0.0);
        all.fill(0.0);
        let (mut kept, mut count) = (0, 0);
        for (m, modality) in modalities.iter().enumerate() {
            for row in modality.features.rows(item, &mut room).chunks_exact(d) {
                let stays = keep(m, next_row[m]);
                next_row[m] += 1;
                count += 1;
                kept += usize::from(stays);
                for (at, &value) in row.iter().enumerate() {
                    all[at] += f64::from(value);
                    sums[at] += if stays { f64::from(value) } else { 0.0 };
                }
            }
        }
        let (sums, share) = if kept > 0 { (&sums, kept) } else { (&all, count.max(1)) };
        out.iter_mut().zip(sums).for_each(|(out, sum)| *out = (sum / share as f64) as f32);
    }
    Tensor::from_vec(values, (items, d), device)
}

/// Returns the categories of a dataset. The error names `key`, the key of the model that needs them.
pub(crate) fn categories<'a>(data: &'a Data, key: &str) -> Result<&'a Categories> {
    let missing = || {
        let message = format!(
            "`{key}` needs categories of items, and the dataset has none; name their column in \
             `source.columns.categories` and run `mp4sr preprocess` again, or use the features of the modalities"
        );
        Error::Msg(message)
    };
    let categories = data.categories.as_ref().ok_or_else(missing)?;
    let fits = categories.offsets.len() == data.items + 1
        && categories.offsets.is_sorted()
        && categories.offsets[data.items] == categories.ids.len()
        && categories.ids.iter().all(|&id| id >= 1 && id as usize <= categories.count);
    if fits {
        Ok(categories)
    } else {
        Err(Error::Msg(format!(
            "the lists of categories do not match {} items; run `mp4sr preprocess` again",
            data.items
        )))
    }
}

fn no_modality() -> Error {
    Error::Msg("the model needs at least one modality; name one in `model.modalities`".to_owned())
}

/// Refuses an empty list of modalities, and what [`check_modalities`] refuses.
pub(crate) fn expect_modalities(modalities: &[Modality], items: usize) -> Result<()> {
    if modalities.is_empty() { Err(no_modality()) } else { check_modalities(modalities, items) }
}

/// Refuses modalities that do not have an entry for each of the items.
pub(crate) fn check_modalities(modalities: &[Modality], items: usize) -> Result<()> {
    match modalities.iter().find(|modality| modality.features.count() != items) {
        Some(other) => {
            let (name, found) = (&other.name, other.features.count());
            Err(Error::Msg(format!(
                "features of `{name}`: expected an entry for each of {items} items, found {found}; compute them again"
            )))
        }
        None => Ok(()),
    }
}

/// The distinct items of a step, and the item of each use.
#[derive(Clone, Debug)]
pub(crate) struct DistinctItems {
    /// The rows of the items, from 0, ascending.
    pub rows: Vec<u32>,
    /// For every use, the index of its item in `rows`.
    pub inverse: Vec<u32>,
}

impl DistinctItems {
    /// Finds the distinct items among uses of items, 1-based.
    pub fn of(items: &[u32]) -> Self {
        Self::of_rows(&items.iter().map(|item| item - 1).collect::<Vec<_>>())
    }

    /// Finds the distinct items among uses of rows, from 0.
    pub fn of_rows(used: &[u32]) -> Self {
        let rows = distinct(used);
        let mut index_of = vec![0; rows.last().map_or(0, |&row| row as usize + 1)];
        rows.iter().zip(0..).for_each(|(&row, at)| index_of[row as usize] = at);
        let inverse = used.iter().map(|&row| index_of[row as usize]).collect();
        Self { rows, inverse }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_are_over_an_items_own_rows_or_over_the_largest_number_of_rows() {
        let features = Ragged::new(vec![1.0, 2.0, 3.0, 6.0, 5.0, 1.0], 2, &[0, 2, 2, 3]).unwrap();
        let mean = |pooling| mean_rows(&features, pooling, &Device::Cpu).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(mean(RowMean::Mean), [[2.0, 4.0], [0.0, 0.0], [5.0, 1.0]]);
        assert_eq!(mean(RowMean::PaddedMean), [[2.0, 4.0], [0.0, 0.0], [2.5, 0.5]]);
    }

    #[test]
    fn distinct_items_map_every_use_to_its_row() {
        let distinct = DistinctItems::of(&[7, 2, 7, 4]);
        assert_eq!((distinct.rows, distinct.inverse), (vec![1, 3, 6], vec![2, 0, 2, 1]));
    }
}
