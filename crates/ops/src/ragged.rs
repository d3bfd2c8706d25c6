//! Rows of features, of which every item has any number.

use std::sync::Arc;

use candle_core::{Result, bail};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// Values as they are stored, in memory or in a mapped file.
#[derive(Clone)]
pub enum StoredValues {
    /// Single precision.
    F32(Arc<dyn AsRef<[f32]> + Send + Sync>),
    /// IEEE half precision.
    F16(Arc<dyn AsRef<[f16]> + Send + Sync>),
    /// bfloat16.
    Bf16(Arc<dyn AsRef<[bf16]> + Send + Sync>),
}

impl StoredValues {
    /// The size of all values in bytes.
    #[cfg(feature = "cuda")]
    pub(crate) fn bytes(&self) -> usize {
        self.len() * if matches!(self, Self::F32(_)) { 4 } else { 2 }
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Self::F32(values) => (**values).as_ref().len(),
            Self::F16(values) => (**values).as_ref().len(),
            Self::Bf16(values) => (**values).as_ref().len(),
        }
    }

    fn to_f32(&self) -> Vec<f32> {
        match self {
            Self::F32(values) => (**values).as_ref().to_vec(),
            Self::F16(values) => (**values).as_ref().iter().map(|value| value.to_f32()).collect(),
            Self::Bf16(values) => (**values).as_ref().iter().map(|value| value.to_f32()).collect(),
        }
    }
}

impl std::fmt::Debug for StoredValues {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = match self {
            Self::F32(_) => "f32",
            Self::F16(_) => "f16",
            Self::Bf16(_) => "bf16",
        };
        write!(f, "{} values of {name}", self.len())
    }
}

fn both<T: Copy + Send + Sync + 'static>(
    a: &Arc<dyn AsRef<[T]> + Send + Sync>,
    b: &[T],
) -> Arc<dyn AsRef<[T]> + Send + Sync> {
    Arc::new([(**a).as_ref(), b].concat())
}

/// Constant rows of items, of which each has any number: item i owns a range of the rows of `values` `[rows, width]`. This is a view, so
/// choosing other items does not copy the values.
#[derive(Clone, Debug)]
pub struct Ragged {
    pub(crate) values: StoredValues,
    pub(crate) width: usize,
    pub(crate) rows: Arc<Vec<(usize, usize)>>,
    #[cfg(feature = "cuda")]
    pub(crate) longest: Arc<std::sync::OnceLock<usize>>,
    #[cfg(feature = "cuda")]
    pub(crate) gpu: crate::cuda::GpuFeatures,
}

impl Ragged {
    /// All items of a feature table of f32. `offsets` must start at 0, never decrease, and end at the number of rows.
    pub fn new(values: Vec<f32>, width: usize, offsets: &[usize]) -> Result<Self> {
        Self::stored(StoredValues::F32(Arc::new(values)), width, offsets)
    }

    /// All items of a feature table. `offsets` must start at 0, never decrease, and end at the number of rows.
    pub fn stored(values: StoredValues, width: usize, offsets: &[usize]) -> Result<Self> {
        let ordered = offsets.first() == Some(&0) && offsets.is_sorted();
        if width == 0 || !ordered || offsets.last().is_none_or(|&end| end * width != values.len()) {
            bail!("ragged rows: offsets do not cut {} values of width {width}", values.len());
        }
        let rows = offsets.windows(2).map(|w| (w[0], w[1])).collect();
        Ok(Self {
            values,
            width,
            rows: Arc::new(rows),
            #[cfg(feature = "cuda")]
            longest: Arc::default(),
            #[cfg(feature = "cuda")]
            gpu: crate::cuda::GpuFeatures::default(),
        })
    }

    /// The items `items` (0-based), in that order.
    #[must_use]
    pub fn select(&self, items: &[u32]) -> Self {
        self.with_rows(items.iter().map(|&i| self.rows[i as usize]).collect())
    }

    /// A view with one item per entry of `sources`: it has the rows of the item that the entry names (0-based), or none.
    #[must_use]
    pub fn rearranged(&self, sources: &[Option<u32>]) -> Self {
        self.with_rows(sources.iter().map(|source| source.map_or((0, 0), |i| self.rows[i as usize])).collect())
    }

    /// These items, followed by the items of `others`, whose rows must have the same width. All values are copied; those of different types
    /// become f32.
    pub fn joined(&self, others: &Self) -> Result<Self> {
        if self.width != others.width {
            bail!("ragged rows of width {} cannot follow those of width {}", others.width, self.width);
        }
        let values = match (&self.values, &others.values) {
            (StoredValues::F32(a), StoredValues::F32(b)) => StoredValues::F32(both(a, (**b).as_ref())),
            (StoredValues::F16(a), StoredValues::F16(b)) => StoredValues::F16(both(a, (**b).as_ref())),
            (StoredValues::Bf16(a), StoredValues::Bf16(b)) => StoredValues::Bf16(both(a, (**b).as_ref())),
            (a, b) => StoredValues::F32(Arc::new([a.to_f32(), b.to_f32()].concat())),
        };
        let before = self.values.len() / self.width;
        let rows = self.rows.iter().copied();
        let rows = rows.chain(others.rows.iter().map(|&(start, end)| (before + start, before + end)));
        Ok(Self {
            values,
            width: self.width,
            rows: Arc::new(rows.collect()),
            #[cfg(feature = "cuda")]
            longest: Arc::default(),
            #[cfg(feature = "cuda")]
            gpu: crate::cuda::GpuFeatures::default(),
        })
    }

    fn with_rows(&self, rows: Vec<(usize, usize)>) -> Self {
        Self {
            values: self.values.clone(),
            width: self.width,
            rows: Arc::new(rows),
            #[cfg(feature = "cuda")]
            longest: Arc::default(),
            #[cfg(feature = "cuda")]
            gpu: self.gpu.other_view(),
        }
    }

    /// The number of items.
    pub fn count(&self) -> usize {
        self.rows.len()
    }

    /// The number of rows of all items together.
    pub fn row_count(&self) -> usize {
        self.rows.iter().map(|(start, end)| end - start).sum()
    }

    /// The width of a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The number of rows of item `i`.
    pub fn rows_of(&self, i: usize) -> usize {
        self.rows[i].1 - self.rows[i].0
    }

    /// The largest number of rows of an item.
    #[cfg(feature = "cuda")]
    pub(crate) fn longest(&self) -> usize {
        *self.longest.get_or_init(|| self.rows.iter().map(|(start, end)| end - start).max().unwrap_or(0))
    }

    /// The rows of item `i` as f32, `[n_i, width]`: borrowed if they are stored as f32, otherwise converted into `room`.
    pub fn rows<'a>(&'a self, i: usize, room: &'a mut Vec<f32>) -> &'a [f32] {
        let (start, end) = self.rows[i];
        let range = start * self.width..end * self.width;
        if !matches!(self.values, StoredValues::F32(_)) {
            room.resize(range.len(), 0.0);
        }
        match &self.values {
            StoredValues::F32(values) => return &(**values).as_ref()[range],
            StoredValues::F16(values) => (**values).as_ref()[range].convert_to_f32_slice(room),
            StoredValues::Bf16(values) => (**values).as_ref()[range].convert_to_f32_slice(room),
        }
        room
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joined_rows_of_different_types_keep_their_values() {
        let values = [0.5, 1.0 + 1.0 / 1024.0, -3.0];
        let of = |values| Ragged::stored(values, 1, &[0, 1, 3]).unwrap();
        let f32s = of(StoredValues::F32(Arc::new(values.to_vec())));
        let f16s = of(StoredValues::F16(Arc::new(values.map(f16::from_f32))));
        let bf16s = of(StoredValues::Bf16(Arc::new(values.map(bf16::from_f32))));
        let last = |joined: &Ragged| joined.rows(3, &mut Vec::new()).to_vec();
        for (first, second, kind, expected) in [
            (&f32s, &f32s, "f32", [values[1], -3.0]),
            (&f16s, &f16s, "f16", [values[1], -3.0]),
            (&bf16s, &bf16s, " bf16", [1.0, -3.0]),
            (&f16s, &bf16s, " f32", [1.0, -3.0]),
            (&bf16s, &f16s, " f32", [values[1], -3.0]),
        ] {
            let joined = first.joined(second).unwrap();
            assert!(format!("{:?}", joined.values).ends_with(kind));
            assert_eq!((joined.count(), last(&joined).as_slice()), (4, &expected[..]));
        }
    }
}
