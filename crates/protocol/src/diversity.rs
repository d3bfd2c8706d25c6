//! The diversity of the items of a list, computed from their features.

use mp4sr_artifact::MappedFeatures;

/// Unit vectors of all items, one per modality.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ItemVectors {
    modalities: Vec<UnitVectors>,
}

/// The direction of the mean row of each item.
#[derive(Clone, Debug, PartialEq)]
struct UnitVectors {
    width: usize,
    /// `[I, width]`; zeros for an item without rows.
    values: Vec<f64>,
}

impl ItemVectors {
    /// Adds the vectors of a modality.
    pub fn add(&mut self, features: &MappedFeatures) {
        let width = features.width;
        let mut values = vec![0.0; features.offsets.len().saturating_sub(1) * width];
        for (item, ends) in features.offsets.windows(2).enumerate() {
            let mean = &mut values[item * width..(item + 1) * width];
            for row in ends[0] as usize..ends[1] as usize {
                features.values.add_to(row * width, mean);
            }
            let length = mean.iter().map(|value| value * value).sum::<f64>().sqrt();
            if length > 0.0 {
                mean.iter_mut().for_each(|value| *value /= length);
            }
        }
        self.modalities.push(UnitVectors { width, values });
    }

    /// The mean over all pairs of items (1-based) of 1 minus their cosine similarity (intra-list diversity; Smyth and McClave, 2001). The
    /// cosine similarity of a pair is the mean over the modalities that both items have. `None` if no pair has a common modality.
    pub fn diversity(&self, list: &[u32]) -> Option<f64> {
        let pairs = list.iter().enumerate().flat_map(|(at, a)| list[at + 1..].iter().map(move |b| (*a, *b)));
        let distances: Vec<f64> = pairs.filter_map(|(a, b)| Some(1.0 - self.cosine(a, b)?)).collect();
        (!distances.is_empty()).then(|| distances.iter().sum::<f64>() / distances.len() as f64)
    }

    fn cosine(&self, a: u32, b: u32) -> Option<f64> {
        let both = self.modalities.iter().filter_map(|modality| Some((modality.of(a)?, modality.of(b)?)));
        let cosines: Vec<f64> = both.map(|(a, b)| a.iter().zip(b).map(|(a, b)| a * b).sum()).collect();
        (!cosines.is_empty()).then(|| cosines.iter().sum::<f64>() / cosines.len() as f64)
    }
}

impl UnitVectors {
    /// The vector of an item (1-based), if it has one.
    fn of(&self, item: u32) -> Option<&[f64]> {
        let start = (item as usize - 1) * self.width;
        let vector = self.values.get(start..start + self.width)?;
        vector.iter().any(|&value| value != 0.0).then_some(vector)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mp4sr_artifact::{FeatureType, Features, hash_ids};

    /// The vectors of features that were written to a file and opened.
    fn vectors(modalities: &[(&[i64], &[f32])]) -> ItemVectors {
        let folder = tempfile::tempdir().unwrap();
        let mut vectors = ItemVectors::default();
        for (offsets, values) in modalities {
            let (path, hash) = (folder.path().join("features"), hash_ids(["a"]));
            let features = Features::from_f32(offsets.to_vec(), values, 2, FeatureType::F16, hash.clone()).unwrap();
            features.write(&path, "extract", serde_json::json!({})).unwrap();
            vectors.add(&MappedFeatures::open(&path, &hash, offsets.len() - 1).unwrap());
        }
        vectors
    }

    #[test]
    fn diversity_worked_by_hand() {
        // Item 1 points to (1, 0), item 2 (the mean of two rows) to (1, 1), item 3 to (-1, 0), and item 4 has no row.
        let one = vectors(&[(&[0, 1, 3, 4, 4], &[2.0, 0.0, 4.0, 0.0, 0.0, 4.0, -0.5, 0.0])]);
        let half = 0.5f64.sqrt();
        let close = |found: Option<f64>, expected: f64| assert!((found.unwrap() - expected).abs() < 1e-12, "{found:?}");
        close(one.diversity(&[1, 2]), 1.0 - half);
        close(one.diversity(&[1, 2, 3, 4]), ((1.0 - half) + 2.0 + (1.0 + half)) / 3.0);
        assert_eq!((one.diversity(&[1, 4]), one.diversity(&[2]), one.diversity(&[])), (None, None, None));
        close(one.diversity(&[2, 2]), 0.0);
        // A second modality counts for the pairs that have it.
        let two = vectors(&[(&[0, 1, 2, 2], &[1.0, 0.0, 0.0, 1.0]), (&[0, 1, 2, 3], &[3.0, 0.0, 3.0, 0.0, 0.0, 5.0])]);
        close(two.diversity(&[1, 2]), 0.5);
        close(two.diversity(&[1, 3]), 1.0);
        assert_eq!(ItemVectors::default().diversity(&[1, 2]), None);
    }
}
