//! Files of features: rows of vectors for each item.

use std::io;
use std::marker::PhantomData;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use half::{bf16, f16};
use safetensors::Dtype;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::map::MappedFile;
use crate::tensors::{check_offsets, other_items, parse, write_ragged};
use crate::{Error, Fingerprint, Header, Result, Tensor, TensorFile, write_tensors};

const REMEDY: &str = "run `mp4sr extract` again, or the program that wrote it";

/// How feature values are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FeatureType {
    /// IEEE half precision, 2 bytes per value.
    #[default]
    F16,
    /// bfloat16, 2 bytes per value.
    Bf16,
    /// Single precision, 4 bytes per value.
    F32,
}

/// Ragged features of items in one modality (`<modality>.<encoder>.safetensors`): item i owns rows
/// `offsets[i-1]..offsets[i]` of `values` `[rows, width]`; an item may own none.
#[derive(Clone, Debug, PartialEq)]
pub struct Features {
    /// `[I+1]`: the offsets of each item's rows.
    pub offsets: Vec<i64>,
    /// `[rows, width]`, F16, BF16 or F32.
    pub values: Tensor,
    /// The hash of the ordered original item ids.
    pub item_hash: Fingerprint,
}

/// What [`Features::write_rows`] stores in addition to the rows.
#[derive(Clone, Debug)]
pub struct RowsHeader<'a> {
    /// The name of the writer.
    pub stage: &'a str,
    /// The writer's settings.
    pub settings: serde_json::Value,
    /// The hash of the ordered original item ids.
    pub item_hash: Fingerprint,
    /// `[I+1]`: the offsets of each item's rows.
    pub offsets: &'a [i64],
    /// d, the width of a row.
    pub width: usize,
    /// The type in which values are stored.
    pub as_type: FeatureType,
}

impl Features {
    const FORMAT: &'static str = "features";
    const VERSION: u32 = 1;

    /// Converts f32 rows to the type in which they are stored; `None` if a value is not finite in this type.
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
        let header = Self::header(self.item_hash.clone(), stage, settings);
        let tensors = [
            ("offsets".to_owned(), Tensor::I64(self.offsets.clone(), vec![self.offsets.len()])),
            ("values".to_owned(), self.values.clone()),
        ];
        write_tensors(path, &header, &tensors)
    }

    /// Writes the same file from rows that are never all in memory: each call of `rows` returns all of them, in order. If the type cannot
    /// represent a row, nothing is written and the index of the first such row is returned.
    pub fn write_rows<'r, I: Iterator<Item = &'r [f32]>>(
        path: &Path,
        RowsHeader { stage, settings, item_hash, offsets, width, as_type }: RowsHeader<'_>,
        rows: impl Fn() -> I,
    ) -> Result<Option<usize>> {
        let overflows = |row: &[f32]| match as_type {
            FeatureType::F16 => row.iter().any(|&v| !f16::from_f32(v).is_finite()),
            FeatureType::Bf16 => row.iter().any(|&v| !bf16::from_f32(v).is_finite()),
            FeatureType::F32 => row.iter().any(|v| !v.is_finite()),
        };
        if let Some(row) = rows().position(overflows) {
            return Ok(Some(row));
        }
        let dtype = match as_type {
            FeatureType::F16 => Dtype::F16,
            FeatureType::Bf16 => Dtype::BF16,
            FeatureType::F32 => Dtype::F32,
        };
        let values = |take: &mut dyn FnMut(&[u8]) -> io::Result<()>| {
            rows().try_for_each(|row| match as_type {
                FeatureType::F16 => {
                    take(bytemuck::cast_slice(&row.iter().map(|&v| f16::from_f32(v)).collect::<Vec<_>>()))
                }
                FeatureType::Bf16 => {
                    take(bytemuck::cast_slice(&row.iter().map(|&v| bf16::from_f32(v)).collect::<Vec<_>>()))
                }
                FeatureType::F32 => take(bytemuck::cast_slice(row)),
            })
        };
        write_ragged(path, &Self::header(item_hash, stage, settings), offsets, dtype, width, &values)?;
        Ok(None)
    }

    /// The number of rows of a file; `None` if it cannot be read.
    pub fn stored_rows(path: &Path) -> Option<usize> {
        let map = MappedFile::open(path).ok()?;
        let (_, file) = parse(path, &map, Self::FORMAT, Self::VERSION, REMEDY).ok()?;
        file.tensor("values").ok()?.shape().first().copied()
    }

    fn header(items: Fingerprint, stage: &str, settings: serde_json::Value) -> Header {
        Header {
            format: Self::FORMAT.to_owned(),
            version: Self::VERSION,
            stage: stage.to_owned(),
            items,
            settings,
            inputs: std::collections::BTreeMap::new(),
        }
    }

    /// Reads and verifies the file for a dataset of `item_count` items with the hash `item_hash`.
    pub fn read(path: &Path, item_hash: &Fingerprint, item_count: usize) -> Result<Self> {
        let mut file = TensorFile::read(path, Self::FORMAT, Self::VERSION, REMEDY)?;
        file.expect_items(item_hash, REMEDY)?;
        let offsets = file.take_i64("offsets")?;
        let values = file.take("values")?;
        if values.shape().len() != 2 {
            return Err(file.wrong(format!("`values`: expected [rows, width], found {:?}", values.shape())));
        }
        if values.shape()[1] == 0 {
            return Err(file.wrong("`values`: its rows have no values"));
        }
        if offsets.len() != item_count + 1 {
            return Err(file.wrong(format!("`offsets`: expected [{}], found [{}]", item_count + 1, offsets.len())));
        }
        check_offsets(&offsets, values.shape()[0]).map_err(|reason| file.wrong(reason))?;
        let Some(floats) = to_f32(&values) else {
            return Err(file.wrong("`values`: expected F16, BF16 or F32"));
        };
        if let Some(at) = floats.iter().position(|v| !v.is_finite()) {
            let row = at / values.shape()[1];
            return Err(Error::unusable(path, format!("`values` contains {} in row {row}", floats[at]), REMEDY));
        }
        Ok(Self { offsets, values, item_hash: item_hash.clone() })
    }
}

/// Features as training reads them: values keep their stored type and are read from the memory map.
pub struct MappedFeatures {
    /// `[I+1]`: the offsets of each item's rows.
    pub offsets: Vec<i64>,
    /// d, the width of a row.
    pub width: usize,
    /// `[rows, width]`.
    pub values: MappedValues,
    /// The settings that the writer of the file recorded.
    pub settings: serde_json::Value,
}

/// Values in their stored type.
pub enum MappedValues {
    /// IEEE half precision.
    F16(Values<f16>),
    /// The bfloat16 format.
    Bf16(Values<bf16>),
    /// IEEE single precision.
    F32(Values<f32>),
}

/// A slice that may be part of a mapped file.
pub type Values<T> = Arc<dyn AsRef<[T]> + Send + Sync>;

impl MappedFeatures {
    /// Maps and verifies the file for a dataset of `item_count` items with the hash `item_hash`.
    pub fn open(path: &Path, item_hash: &Fingerprint, item_count: usize) -> Result<Self> {
        let map = Arc::new(MappedFile::open(path)?);
        let wrong = |reason: String| Error::unusable(path, reason, REMEDY);
        let (header, file) = parse(path, &map, Features::FORMAT, Features::VERSION, REMEDY)?;
        if header.items != *item_hash {
            return Err(other_items(path, &header, item_hash, REMEDY));
        }
        let tensor = |name: &str| file.tensor(name).map_err(|_| wrong(format!("tensor `{name}` is missing")));
        let (offsets, values) = (tensor("offsets")?, tensor("values")?);
        let &[rows, width] = values.shape() else {
            return Err(wrong(format!("`values`: expected [rows, width], found {:?}", values.shape())));
        };
        if offsets.dtype() != Dtype::I64 || offsets.shape() != [item_count + 1] {
            let found = format!("{:?} {:?}", offsets.dtype(), offsets.shape());
            return Err(wrong(format!("`offsets`: expected I64 [{}], found {found}", item_count + 1)));
        }
        let offsets: Vec<i64> = offsets.data().as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect();
        check_offsets(&offsets, rows).map_err(wrong)?;
        let start = values.data().as_ptr() as usize - map.as_ptr() as usize;
        let range = start..start + values.data().len();
        let values = match values.dtype() {
            Dtype::F16 => MappedValues::F16(view(&map, range, f16::from_le_bytes)),
            Dtype::BF16 => MappedValues::Bf16(view(&map, range, bf16::from_le_bytes)),
            Dtype::F32 => MappedValues::F32(view(&map, range, f32::from_le_bytes)),
            other => return Err(wrong(format!("`values`: expected F16, BF16 or F32, found {other:?}"))),
        };
        if let Some((at, value)) = values.not_finite() {
            return Err(wrong(format!("`values` contains {value} in row {}", at / width.max(1))));
        }
        Ok(Self { offsets, width, values, settings: header.settings })
    }
}

impl MappedValues {
    /// Adds the values that begin at `start` to `sums`, element by element.
    pub fn add_to(&self, start: usize, sums: &mut [f64]) {
        fn add<T: Copy>(values: &[T], sums: &mut [f64], read: fn(T) -> f64) {
            sums.iter_mut().zip(values).for_each(|(sum, &value)| *sum += read(value));
        }
        match self {
            Self::F16(values) => add(&(**values).as_ref()[start..], sums, f16::to_f64),
            Self::Bf16(values) => add(&(**values).as_ref()[start..], sums, bf16::to_f64),
            Self::F32(values) => add(&(**values).as_ref()[start..], sums, f64::from),
        }
    }

    /// The position and value of the first number that is not finite. The 16-bit types are tested by their bits: all bits of the exponent
    /// are 1.
    fn not_finite(&self) -> Option<(usize, f32)> {
        const BLOCK: usize = 1 << 12;
        fn first<T: Copy>(values: &[T], bad: fn(T) -> bool) -> Option<usize> {
            let within = |block: &[T]| block.iter().fold(false, |any, &v| any | bad(v));
            let block = values.chunks(BLOCK).position(within)?;
            values[block * BLOCK..].iter().position(|&v| bad(v)).map(|at| block * BLOCK + at)
        }
        match self {
            Self::F16(values) => {
                let values = (**values).as_ref();
                first(values, |v: f16| v.to_bits() & 0x7c00 == 0x7c00).map(|at| (at, values[at].to_f32()))
            }
            Self::Bf16(values) => {
                let values = (**values).as_ref();
                first(values, |v: bf16| v.to_bits() & 0x7f80 == 0x7f80).map(|at| (at, values[at].to_f32()))
            }
            Self::F32(values) => {
                let values = (**values).as_ref();
                first(values, |v: f32| !v.is_finite()).map(|at| (at, values[at]))
            }
        }
    }
}

/// A range of a mapped file, read as numbers.
struct MappedRange<T> {
    map: Arc<MappedFile>,
    range: Range<usize>,
    kind: PhantomData<fn() -> T>,
}

impl<T: bytemuck::Pod> AsRef<[T]> for MappedRange<T> {
    fn as_ref(&self) -> &[T] {
        bytemuck::try_cast_slice(&self.map[self.range.clone()]).unwrap_or_default()
    }
}

/// The bytes in `range` as numbers: borrowed from the map, or copied if they are not aligned in the file.
pub(crate) fn view<T: bytemuck::Pod + Send + Sync, const N: usize>(
    map: &Arc<MappedFile>,
    range: Range<usize>,
    read: fn([u8; N]) -> T,
) -> Values<T> {
    let bytes = &map[range.clone()];
    if cfg!(target_endian = "little") && bytemuck::try_cast_slice::<u8, T>(bytes).is_ok() {
        return Arc::new(MappedRange { map: map.clone(), range, kind: PhantomData });
    }
    Arc::new(bytes.as_chunks::<N>().0.iter().map(|b| read(*b)).collect::<Vec<T>>())
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
    use crate::{files, hash_ids};

    #[test]
    fn rows_written_one_by_one_give_the_same_file() {
        let folder = tempfile::tempdir().unwrap();
        let (whole, parts) = (folder.path().join("whole"), folder.path().join("parts"));
        let values = [0.5, 1.0, -2.0, 0.25, 7.0, 1.0 / 3.0];
        for as_type in [FeatureType::F16, FeatureType::Bf16, FeatureType::F32] {
            let settings = || serde_json::json!({"storage": "any"});
            let hash = hash_ids(["a", "b"]);
            let features = Features::from_f32(vec![0, 0, 3], &values, 2, as_type, hash.clone()).unwrap();
            features.write(&whole, "extract", settings()).unwrap();
            let (item_hash, offsets) = (hash, &[0, 0, 3]);
            let header = RowsHeader { stage: "extract", settings: settings(), item_hash, offsets, width: 2, as_type };
            let misfit = Features::write_rows(&parts, header, || values.chunks_exact(2)).unwrap();
            assert_eq!((misfit, crate::files::read(&parts).unwrap()), (None, crate::files::read(&whole).unwrap()));
        }
        let rows = || [[1.0, 2.0], [0.0, 1.0e5]].into_iter();
        let rows: Vec<[f32; 2]> = rows().collect();
        let path = folder.path().join("none");
        let of = |as_type| {
            let (item_hash, settings) = (hash_ids(["a"]), serde_json::Value::Null);
            let header = RowsHeader { stage: "extract", settings, item_hash, offsets: &[0, 2], width: 2, as_type };
            Features::write_rows(&path, header, || rows.iter().map(|row| &row[..])).unwrap()
        };
        assert_eq!((of(FeatureType::F16), path.exists(), of(FeatureType::Bf16)), (Some(1), false, None));
    }

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
        assert!(other.contains("a different item list"), "{other}");
        features.values = Tensor::F32(vec![0.0, f32::NAN, 0.0, 0.0], vec![2, 2]);
        features.write(&path, "extract", serde_json::Value::Null).unwrap();
        assert!(Features::read(&path, &hash, 2).unwrap_err().to_string().contains("row 0"));
    }

    #[test]
    fn mapped_features_equal_those_read_in_every_type_and_the_same_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("text.x.safetensors");
        let hash = hash_ids(["a", "b"]);
        let values = [0.5, 1.0, -2.0, 0.25];
        for as_type in [FeatureType::F16, FeatureType::Bf16, FeatureType::F32] {
            let features = Features::from_f32(vec![0, 0, 2], &values, 2, as_type, hash.clone()).unwrap();
            features.write(&path, "extract", serde_json::Value::Null).unwrap();
            let mapped = MappedFeatures::open(&path, &hash, 2).unwrap();
            let found: Vec<f32> = match &mapped.values {
                MappedValues::F16(v) => (**v).as_ref().iter().map(|x| x.to_f32()).collect(),
                MappedValues::Bf16(v) => (**v).as_ref().iter().map(|x| x.to_f32()).collect(),
                MappedValues::F32(v) => (**v).as_ref().to_vec(),
            };
            assert_eq!((found, mapped.offsets, mapped.width), (values.to_vec(), vec![0, 0, 2], 2));
        }
        let refusal = |hash: &Fingerprint, count: usize| {
            let read = Features::read(&path, hash, count).unwrap_err().to_string();
            let mapped = MappedFeatures::open(&path, hash, count).err().unwrap().to_string();
            assert!(mapped.contains("text.x.safetensors"), "{mapped}");
            (read, mapped)
        };
        let (read, mapped) = refusal(&hash_ids(["a", "c"]), 2);
        assert_eq!(read, mapped);
        assert!(refusal(&hash, 3).1.contains("`offsets`: expected I64 [4], found I64 [3]"));
        let (one, shape) = (f16::ONE, vec![2, 2]);
        let brain = bf16::from_f32;
        for (values, expected) in [
            (Tensor::F16(vec![one, one, one, f16::INFINITY], shape.clone()), "inf in row 1"),
            (Tensor::F16(vec![one, f16::NAN, one, f16::MAX], shape.clone()), "NaN in row 0"),
            (Tensor::Bf16(vec![brain(1.0), bf16::MAX, bf16::NEG_INFINITY, bf16::MIN], shape.clone()), "-inf in row 1"),
            (Tensor::F32(vec![f32::MAX, f32::MIN, 0.0, f32::NAN], shape), "NaN in row 1"),
        ] {
            let features = Features { offsets: vec![0, 0, 2], values, item_hash: hash.clone() };
            features.write(&path, "extract", serde_json::Value::Null).unwrap();
            let (_, mapped) = refusal(&hash, 2);
            assert!(mapped.contains(expected), "{mapped} lacks {expected}");
        }
        files::write_bytes(&path, b"").unwrap();
        refusal(&hash, 2);
    }
}
