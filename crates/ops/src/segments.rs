use std::sync::Arc;

use candle_core::{Result, bail};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// Packed sequences: sequence j owns tokens `offsets[j]..offsets[j+1]`; none is empty.
#[derive(Clone, Debug)]
pub struct PackedOffsets {
    offsets: Arc<Vec<usize>>,
}

impl PackedOffsets {
    /// From lengths, all at least 1.
    pub fn from_lengths(lengths: impl IntoIterator<Item = usize>) -> Result<Self> {
        let mut offsets = vec![0];
        let mut end = 0;
        for length in lengths {
            if length == 0 {
                bail!("a packed sequence must hold at least one token");
            }
            end += length;
            offsets.push(end);
        }
        Ok(Self { offsets: Arc::new(offsets) })
    }

    /// The number of sequences.
    pub fn count(&self) -> usize {
        self.offsets.len() - 1
    }

    /// The number of tokens.
    pub fn tokens(&self) -> usize {
        self.offsets[self.count()]
    }

    /// The tokens of sequence `j`.
    pub fn range(&self, j: usize) -> std::ops::Range<usize> {
        self.offsets[j]..self.offsets[j + 1]
    }

    /// The last token of every sequence.
    pub fn last_tokens(&self) -> Vec<u32> {
        self.offsets[1..].iter().map(|&end| end as u32 - 1).collect()
    }

    /// The place of every token in its sequence, from 0.
    pub fn positions(&self) -> Vec<u32> {
        (0..self.count()).flat_map(|j| 0..self.range(j).len() as u32).collect()
    }

    /// The same sequences `times` over.
    #[must_use]
    pub fn repeat(&self, times: usize) -> Self {
        let lengths = (0..times * self.count()).map(|j| self.range(j % self.count()).len());
        let mut offsets = vec![0];
        offsets.extend(lengths.scan(0, |end, length| {
            *end += length;
            Some(*end)
        }));
        Self { offsets: Arc::new(offsets) }
    }

    /// Runs of whole sequences with about `tokens` tokens each: a function of the lengths alone.
    pub(crate) fn shards(&self, tokens: usize) -> Vec<std::ops::Range<usize>> {
        let mut shards = Vec::new();
        let mut start = 0;
        for j in 0..self.count() {
            if self.offsets[j + 1] - self.offsets[start] >= tokens || j + 1 == self.count() {
                shards.push(start..j + 1);
                start = j + 1;
            }
        }
        shards
    }
}

/// Values as they are stored, in memory or in a mapped file.
#[derive(Clone)]
pub enum StoredValues {
    /// Single.
    F32(Arc<dyn AsRef<[f32]> + Send + Sync>),
    /// IEEE half.
    F16(Arc<dyn AsRef<[f16]> + Send + Sync>),
    /// Brain half.
    Bf16(Arc<dyn AsRef<[bf16]> + Send + Sync>),
}

impl StoredValues {
    fn len(&self) -> usize {
        match self {
            Self::F32(values) => (**values).as_ref().len(),
            Self::F16(values) => (**values).as_ref().len(),
            Self::Bf16(values) => (**values).as_ref().len(),
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

/// Ragged constant rows: item i owns rows `offsets[i]..offsets[i+1]` of `values` `[rows, width]`. A view of some items; the
/// values are never copied as a whole.
#[derive(Clone, Debug)]
pub struct Ragged {
    values: StoredValues,
    width: usize,
    rows: Arc<Vec<(usize, usize)>>,
}

impl Ragged {
    /// All items of a feature table of f32; `offsets` never fall and end at the number of rows.
    pub fn new(values: Vec<f32>, width: usize, offsets: &[usize]) -> Result<Self> {
        Self::stored(StoredValues::F32(Arc::new(values)), width, offsets)
    }

    /// All items of a feature table; `offsets` never fall and end at the number of rows.
    pub fn stored(values: StoredValues, width: usize, offsets: &[usize]) -> Result<Self> {
        let ordered = offsets.first() == Some(&0) && offsets.is_sorted();
        if width == 0 || !ordered || offsets.last().is_none_or(|&end| end * width != values.len()) {
            bail!("ragged rows: offsets do not cut {} values of width {width}", values.len());
        }
        let rows = offsets.windows(2).map(|w| (w[0], w[1])).collect();
        Ok(Self { values, width, rows: Arc::new(rows) })
    }

    /// The items `items` (0-based), in that order.
    #[must_use]
    pub fn select(&self, items: &[u32]) -> Self {
        let rows = items.iter().map(|&i| self.rows[i as usize]).collect();
        Self { values: self.values.clone(), width: self.width, rows: Arc::new(rows) }
    }

    /// As many items as `sources`, each with the rows of another or its own (0-based), or with none.
    #[must_use]
    pub fn rearranged(&self, sources: &[Option<u32>]) -> Self {
        let rows = sources.iter().map(|source| source.map_or((0, 0), |i| self.rows[i as usize])).collect();
        Self { values: self.values.clone(), width: self.width, rows: Arc::new(rows) }
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

    /// The rows of item `i` as f32, `[n_i, width]`: where they lie, or in `room`.
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

/// Which distinct item each use is of, and the uses of each item.
#[derive(Clone, Debug)]
pub struct GatherIndex {
    item_of: Arc<Vec<u32>>,
    starts: Arc<Vec<u32>>,
    by_item: Arc<Vec<u32>>,
}

impl GatherIndex {
    /// Use u is of item `item_of[u]`, one of `items`.
    pub fn new(item_of: Vec<u32>, items: usize) -> Self {
        let mut starts = vec![0u32; items + 1];
        item_of.iter().for_each(|&i| starts[i as usize + 1] += 1);
        for i in 0..items {
            starts[i + 1] += starts[i];
        }
        let mut next = starts.clone();
        let mut by_item = vec![0u32; item_of.len()];
        for (use_, &item) in item_of.iter().enumerate() {
            by_item[next[item as usize] as usize] = use_ as u32;
            next[item as usize] += 1;
        }
        Self { item_of: Arc::new(item_of), starts: Arc::new(starts), by_item: Arc::new(by_item) }
    }

    /// Every item once, in order.
    pub fn each_once(items: usize) -> Self {
        Self::new((0..items as u32).collect(), items)
    }

    /// The number of uses.
    pub fn count(&self) -> usize {
        self.item_of.len()
    }

    /// The number of items.
    pub fn items(&self) -> usize {
        self.starts.len() - 1
    }

    /// Whether use i is of item i, and there are no others.
    pub(crate) fn are_each_once(&self) -> bool {
        self.count() == self.items() && self.item_of.iter().zip(0..).all(|(&item, at)| item == at)
    }

    /// The item of every use.
    pub fn item_of(&self) -> &[u32] {
        &self.item_of
    }

    /// The uses of item `i`, in order.
    pub fn of(&self, i: usize) -> &[u32] {
        &self.by_item[self.starts[i] as usize..self.starts[i + 1] as usize]
    }
}

/// What becomes of a column whose group is the row's, the row's own column excepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SameGroup {
    /// It is left out.
    LeaveOut,
    /// It stays.
    Keep,
    /// Its logit is 0.
    Zero,
}

/// Which entries of a square matrix of logits join the sum of their row.
#[derive(Clone, Debug)]
pub enum Mask {
    /// All.
    None,
    /// Row j and column j' are in the groups `groups[j]` and `groups[j']`; `diagonal` says whether column j joins row j.
    Groups {
        /// A group for every row, and for every column.
        groups: Arc<Vec<u32>>,
        /// What becomes of other columns of the row's group.
        same: SameGroup,
        /// Whether the row's own column joins.
        diagonal: bool,
    },
}

/// What a mask does to one entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    Keep,
    Drop,
    Zero,
}

impl Mask {
    pub(crate) fn entry(&self, row: usize, column: usize) -> Entry {
        match self {
            Self::None => Entry::Keep,
            Self::Groups { groups, same, diagonal } => match (row == column, groups[row] == groups[column]) {
                (true, _) => {
                    if *diagonal {
                        Entry::Keep
                    } else {
                        Entry::Drop
                    }
                }
                (false, false) => Entry::Keep,
                (false, true) => match same {
                    SameGroup::Keep => Entry::Keep,
                    SameGroup::LeaveOut => Entry::Drop,
                    SameGroup::Zero => Entry::Zero,
                },
            },
        }
    }
}
