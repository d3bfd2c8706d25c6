//! How different the items of a list are from each other, by their features.

use mp4sr_artifact::MappedFeatures;

/// Unit vectors of all items, one set per modality. They take 4 bytes x I x the width of the features.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ItemVectors {
    modalities: Vec<UnitVectors>,
}

/// The direction of the mean row of each item.
#[derive(Clone, Debug, PartialEq)]
struct UnitVectors {
    width: usize,
    /// `[I, width]`; zeros for an item without rows.
    values: Vec<f32>,
}

impl ItemVectors {
    /// Adds the vectors of a modality.
    pub fn add(&mut self, features: &MappedFeatures) {
        let width = features.width;
        let mut values = Vec::with_capacity(features.offsets.len().saturating_sub(1) * width);
        let mut mean = vec![0.0; width];
        for ends in features.offsets.windows(2) {
            mean.fill(0.0);
            for row in ends[0] as usize..ends[1] as usize {
                features.values.add_to(row * width, &mut mean);
            }
            let length = mean.iter().map(|value| value * value).sum::<f64>().sqrt();
            let scale = if length > 0.0 { length.recip() } else { 0.0 };
            values.extend(mean.iter().map(|value| (value * scale) as f32));
        }
        self.modalities.push(UnitVectors { width, values });
    }

    /// The mean over all pairs of listed items (1-based) of 1 minus their cosine similarity (intra-list diversity; Smyth and McClave,
    /// 2001), averaged over the modalities in which at least two of the items have features. `None` if no modality has two such items.
    pub fn diversity(&self, list: &[u32]) -> Option<f64> {
        let of_modalities: Vec<f64> = self.modalities.iter().filter_map(|modality| modality.diversity(list)).collect();
        (!of_modalities.is_empty()).then(|| of_modalities.iter().sum::<f64>() / of_modalities.len() as f64)
    }
}

impl UnitVectors {
    /// The sum s of n unit vectors has |s|^2 = n + 2 x the sum of the cosines of all pairs, so no pair has to be visited.
    fn diversity(&self, list: &[u32]) -> Option<f64> {
        let mut sum = vec![0.0; self.width];
        let mut count = 0.0;
        for vector in list.iter().filter_map(|&item| self.of(item)) {
            sum.iter_mut().zip(vector).for_each(|(sum, &value)| *sum += f64::from(value));
            count += 1.0;
        }
        let cosines = (sum.iter().map(|value| value * value).sum::<f64>() - count) / 2.0;
        (count > 1.0).then(|| 1.0 - cosines / (count * (count - 1.0) / 2.0))
    }

    /// The vector of an item (1-based), if it has one.
    fn of(&self, item: u32) -> Option<&[f32]> {
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
    fn diversity_matches_hand_computed_values() {
        // Item 1 points to (1, 0), item 2 (the mean of two rows) to (1, 1), item 3 to (-1, 0), and item 4 has no row.
        let one = vectors(&[(&[0, 1, 3, 4, 4], &[2.0, 0.0, 4.0, 0.0, 0.0, 4.0, -0.5, 0.0])]);
        let half = 0.5f64.sqrt();
        let close = |found: Option<f64>, expected: f64| assert!((found.unwrap() - expected).abs() < 1e-6, "{found:?}");
        close(one.diversity(&[1, 2]), 1.0 - half);
        close(one.diversity(&[1, 2, 3, 4]), ((1.0 - half) + 2.0 + (1.0 + half)) / 3.0);
        assert_eq!((one.diversity(&[1, 4]), one.diversity(&[2]), one.diversity(&[])), (None, None, None));
        close(one.diversity(&[2, 2]), 0.0);
        // The third item has no row of the first modality, whose only pair is (1, 2).
        let two = vectors(&[(&[0, 1, 2, 2], &[1.0, 0.0, 0.0, 1.0]), (&[0, 1, 2, 3], &[3.0, 0.0, 3.0, 0.0, 0.0, 5.0])]);
        close(two.diversity(&[1, 2]), 0.5);
        close(two.diversity(&[1, 3]), 1.0);
        close(two.diversity(&[1, 2, 3]), f64::midpoint(1.0, 2.0 / 3.0));
        assert_eq!(ItemVectors::default().diversity(&[1, 2]), None);
    }
}
