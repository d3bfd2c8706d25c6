use std::path::Path;

use half::{bf16, f16};

use crate::tensors::check_offsets;
use crate::{Error, Fingerprint, Header, Result, Tensor, TensorFile, write_tensors};

/// How feature values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FeatureType {
    /// IEEE half.
    F16,
    /// Brain half.
    Bf16,
    /// Single.
    F32,
}

/// Ragged features of items in one modality (`<modality>.<encoder>.safetensors`): item i owns rows
/// `offsets[i-1]..offsets[i]` of `values` `[rows, width]`; an item may own none.
#[derive(Clone, Debug, PartialEq)]
pub struct Features {
    /// `[I+1]`.
    pub offsets: Vec<i64>,
    /// `[rows, width]`, F16, BF16 or F32.
    pub values: Tensor,
    /// Hash of the ordered original item ids.
    pub item_hash: Fingerprint,
}

impl Features {
    const FORMAT: &'static str = "features";
    const VERSION: u32 = 1;

    /// Packs f32 rows for storage; refuses values that the type can't hold.
    pub fn from_f32(
        offsets: Vec<i64>,
        values: &[f32],
        width: usize,
        as_type: FeatureType,
        item_hash: Fingerprint,
    ) -> Option<Self> {
        let shape = vec![values.len() / width.max(1), width];
        let stored = match as_type {
            FeatureType::F32 => Tensor::F32(values.to_vec(), shape),
            FeatureType::F16 => Tensor::F16(values.iter().map(|&v| f16::from_f32(v)).collect(), shape),
            FeatureType::Bf16 => Tensor::Bf16(values.iter().map(|&v| bf16::from_f32(v)).collect(), shape),
        };
        let finite = to_f32(&stored).is_some_and(|v| v.iter().all(|x| x.is_finite()));
        finite.then_some(Self { offsets, values: stored, item_hash })
    }

    /// d, the width of a row.
    pub fn width(&self) -> usize {
        self.values.shape()[1]
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.values.shape()[0]
    }

    /// All values as f32, `[rows * width]`.
    pub fn to_f32(&self) -> Vec<f32> {
        to_f32(&self.values).unwrap_or_default()
    }

    /// Writes the file; `stage` names the writer.
    pub fn write(&self, path: &Path, stage: &str, settings: serde_json::Value) -> Result<()> {
        let header = Header {
            format: Self::FORMAT.to_owned(),
            version: Self::VERSION,
            stage: stage.to_owned(),
            items: self.item_hash.clone(),
            settings,
            inputs: std::collections::BTreeMap::new(),
        };
        let tensors = [
            ("offsets".to_owned(), Tensor::I64(self.offsets.clone(), vec![self.offsets.len()])),
            ("values".to_owned(), self.values.clone()),
        ];
        write_tensors(path, &header, &tensors)
    }

    /// Reads and verifies the file for a dataset whose items are `item_hash`, `item_count` of them.
    pub fn read(path: &Path, item_hash: &Fingerprint, item_count: usize) -> Result<Self> {
        const REMEDY: &str = "run `make extract` again, or the program that wrote it";
        let mut file = TensorFile::read(path, Self::FORMAT, Self::VERSION, REMEDY)?;
        file.expect_items(item_hash, REMEDY)?;
        let offsets = file.take_i64("offsets")?;
        let values = file.take("values")?;
        if values.shape().len() != 2 {
            return Err(file.wrong(format!("`values`: expected [rows, width], found {:?}", values.shape())));
        }
        if offsets.len() != item_count + 1 {
            return Err(file.wrong(format!("`offsets`: expected [{}], found [{}]", item_count + 1, offsets.len())));
        }
        check_offsets(&file, &offsets, values.shape()[0])?;
        let Some(floats) = to_f32(&values) else {
            return Err(file.wrong("`values`: expected F16, BF16 or F32"));
        };
        if let Some(at) = floats.iter().position(|v| !v.is_finite()) {
            let row = at / values.shape()[1];
            return Err(Error::unusable(path, format!("`values` holds {} in row {row}", floats[at]), REMEDY));
        }
        Ok(Self { offsets, values, item_hash: item_hash.clone() })
    }
}

fn to_f32(values: &Tensor) -> Option<Vec<f32>> {
    match values {
        Tensor::F32(v, _) => Some(v.clone()),
        Tensor::F16(v, _) => Some(v.iter().map(|x| x.to_f32()).collect()),
        Tensor::Bf16(v, _) => Some(v.iter().map(|x| x.to_f32()).collect()),
        Tensor::I64(..) | Tensor::U32(..) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash_ids;

    #[test]
    fn a_value_too_large_for_its_type_is_refused_at_write_time() {
        let make = |as_type| Features::from_f32(vec![0, 1], &[1.0e5, 0.0], 2, as_type, hash_ids(["a"]));
        assert!(make(FeatureType::F16).is_none());
        assert!(make(FeatureType::Bf16).is_some());
    }

    #[test]
    fn features_round_trip_and_refuse_other_items_and_nan() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("text.x.safetensors");
        let hash = hash_ids(["a", "b"]);
        let mut features =
            Features::from_f32(vec![0, 0, 2], &[0.5, 1.0, -2.0, 0.25], 2, FeatureType::F16, hash.clone()).unwrap();
        features.write(&path, "extract", serde_json::Value::Null).unwrap();
        assert_eq!(Features::read(&path, &hash, 2).unwrap().to_f32(), [0.5, 1.0, -2.0, 0.25]);
        let other = Features::read(&path, &hash_ids(["a", "c"]), 2).unwrap_err().to_string();
        assert!(other.contains("other items"), "{other}");
        features.values = Tensor::F32(vec![0.0, f32::NAN, 0.0, 0.0], vec![2, 2]);
        features.write(&path, "extract", serde_json::Value::Null).unwrap();
        assert!(Features::read(&path, &hash, 2).unwrap_err().to_string().contains("row 0"));
    }
}
