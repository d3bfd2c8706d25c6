//! The memory banks of MASR, which hold states of items from earlier training steps. They are buffers, saved and restored with the
//! parameters.

use mp4sr_ops::Result;

use crate::{Buffer, BufferValues, Buffers, Data};

const HEAD_FEATURES: &str = "head_bank.features";
const HEAD_ITEMS: &str = "head_bank.items";
const HEAD_CURSOR: &str = "head_bank.cursor";
const CENTROIDS: &str = "centroid.features";
const FILLED: &str = "centroid.filled";
const SLOTS: &str = "tail_bank.slots";
const WRITTEN: &str = "tail_bank.written";
const EPOCH: &str = "epoch";

/// The sizes of the banks.
#[derive(Clone, Copy, Debug)]
pub(super) struct BankSizes {
    pub items: usize,
    pub width: usize,
    /// The number of entries in the ring of the states of head items.
    pub head: usize,
    /// The number of entries in the ring of each tail item.
    pub slots: usize,
}

/// The banks, stored in buffers.
#[derive(Debug)]
pub(super) struct Banks {
    sizes: BankSizes,
    buffers: Buffers,
}

/// The states, by item, that a search runs over.
#[derive(Debug, Default)]
pub(super) struct Entries {
    /// `[entries, d]`: the states.
    pub features: Vec<f32>,
    /// The item of every entry, 1-based, ascending.
    pub items: Vec<u32>,
}

impl Entries {
    /// The range of an item's entries.
    pub fn of(&self, item: u32) -> std::ops::Range<usize> {
        self.items.partition_point(|&other| other < item)..self.items.partition_point(|&other| other <= item)
    }
}

fn floats(values: &BufferValues) -> &[f32] {
    match values {
        BufferValues::F32(values) => values,
        BufferValues::I64(_) => &[],
    }
}

fn numbers(values: &BufferValues) -> &[i64] {
    match values {
        BufferValues::I64(values) => values,
        BufferValues::F32(_) => &[],
    }
}

impl Banks {
    /// Empty banks.
    pub fn new(sizes: BankSizes) -> Self {
        let BankSizes { items, width, head, slots } = sizes;
        let zeros = |shape: &[usize]| Buffer::f32(vec![0.0; shape.iter().product()], shape);
        let counts = |shape: &[usize]| Buffer::i64(vec![0; shape.iter().product()], shape);
        let all = [
            (HEAD_FEATURES, zeros(&[head, width])),
            (HEAD_ITEMS, counts(&[head])),
            (HEAD_CURSOR, counts(&[1])),
            (CENTROIDS, zeros(&[items, width])),
            (FILLED, counts(&[items])),
            (SLOTS, zeros(&[items, slots, width])),
            (WRITTEN, counts(&[items])),
            (EPOCH, counts(&[1])),
        ];
        Self { sizes, buffers: Buffers::new(all.map(|(name, buffer)| (name.to_owned(), buffer))) }
    }

    pub fn buffers(&self) -> &Buffers {
        &self.buffers
    }

    fn read_numbers(&self, name: &str) -> Result<Vec<i64>> {
        self.buffers.read(name, |buffer| numbers(&buffer.values).to_vec())
    }

    fn with_floats(&self, name: &str, update: impl FnOnce(&mut [f32])) -> Result<()> {
        self.buffers.update(name, |values| {
            if let BufferValues::F32(values) = values {
                update(values);
            }
        })
    }

    fn with_numbers(&self, name: &str, update: impl FnOnce(&mut [i64])) -> Result<()> {
        self.buffers.update(name, |values| {
            if let BufferValues::I64(values) = values {
                update(values);
            }
        })
    }

    /// The last epoch that wrote into the banks.
    pub fn epoch(&self) -> Result<usize> {
        Ok(self.read_numbers(EPOCH)?.first().map_or(0, |&epoch| epoch as usize))
    }

    /// Records the epoch that writes into the banks.
    pub fn set_epoch(&self, epoch: usize) -> Result<()> {
        self.with_numbers(EPOCH, |values| values.fill(epoch as i64))
    }

    /// The entries of all tail items.
    pub fn tail(&self) -> Result<Entries> {
        let BankSizes { width, slots, .. } = self.sizes;
        let written = self.read_numbers(WRITTEN)?;
        self.buffers.read(SLOTS, |buffer| {
            let mut entries = Entries::default();
            for ((item, &written), slots_of) in
                (1..).zip(&written).zip(floats(&buffer.values).chunks_exact(slots * width))
            {
                let held = (written as usize).min(slots);
                entries.features.extend_from_slice(&slots_of[..held * width]);
                entries.items.extend(std::iter::repeat_n(item, held));
            }
            entries
        })
    }

    /// The centroids of the head items that have one.
    pub fn centroids(&self) -> Result<Entries> {
        let width = self.sizes.width;
        let filled = self.read_numbers(FILLED)?;
        self.buffers.read(CENTROIDS, |buffer| {
            let mut entries = Entries::default();
            let all = (1..).zip(&filled).zip(floats(&buffer.values).chunks_exact(width));
            for ((item, _), centroid) in all.filter(|((_, filled), _)| **filled > 0) {
                entries.features.extend_from_slice(centroid);
                entries.items.push(item);
            }
            entries
        })
    }

    /// Writes unit states `[P, d]` of items, 1-based, into the banks of their classes, in order. Then the head items among them get new
    /// centroids, the means of all their entries in the ring; an item without entries keeps its last centroid.
    pub fn write(&self, states: &[f32], items: &[u32], is_head: &[bool]) -> Result<()> {
        let BankSizes { width, head, slots, .. } = self.sizes;
        let of_class = |class: bool| {
            let all = items.iter().zip(states.chunks_exact(width));
            all.filter(move |(item, _)| is_head[**item as usize - 1] == class)
        };
        let first = self.read_numbers(HEAD_CURSOR)?.first().map_or(0, |&cursor| cursor as usize);
        let count = of_class(true).count();
        let indices: Vec<usize> = (first..first + count).map(|at| at % head).collect();
        self.with_floats(HEAD_FEATURES, |features| {
            for (&index, (_, state)) in indices.iter().zip(of_class(true)) {
                features[index * width..][..width].copy_from_slice(state);
            }
        })?;
        self.with_numbers(HEAD_ITEMS, |ring| {
            indices.iter().zip(of_class(true)).for_each(|(&index, (&item, _))| ring[index] = i64::from(item));
        })?;
        self.with_numbers(HEAD_CURSOR, |cursor| cursor.fill(((first + count) % head) as i64))?;
        let mut written = self.read_numbers(WRITTEN)?;
        self.with_floats(SLOTS, |all| {
            for (&item, state) in of_class(false) {
                let count = &mut written[item as usize - 1];
                let slot = (item as usize - 1) * slots + *count as usize % slots;
                all[slot * width..][..width].copy_from_slice(state);
                *count += 1;
            }
        })?;
        self.with_numbers(WRITTEN, |values| values.copy_from_slice(&written))?;
        let met = crate::data::distinct(&of_class(true).map(|(&item, _)| item).collect::<Vec<_>>());
        self.renew_centroids(&met)
    }

    fn renew_centroids(&self, met: &[u32]) -> Result<()> {
        let width = self.sizes.width;
        let ring = self.read_numbers(HEAD_ITEMS)?;
        let (mut sums, mut counts) = (vec![0.0f64; met.len() * width], vec![0.0f64; met.len()]);
        self.buffers.read(HEAD_FEATURES, |buffer| {
            for (&item, state) in ring.iter().zip(floats(&buffer.values).chunks_exact(width)) {
                let Ok(index) = met.binary_search(&(item as u32)) else { continue };
                counts[index] += 1.0;
                let sums = &mut sums[index * width..][..width];
                sums.iter_mut().zip(state).for_each(|(sum, &value)| *sum += f64::from(value));
            }
        })?;
        // If a step has more states than the ring has entries, an item may have none left; it keeps the centroid that it had, if any.
        let held = || met.iter().zip(sums.chunks_exact(width)).zip(&counts).filter(|(_, count)| **count > 0.0);
        self.with_floats(CENTROIDS, |centroids| {
            for ((&item, sums), count) in held() {
                let own = &mut centroids[(item as usize - 1) * width..][..width];
                own.iter_mut().zip(sums).for_each(|(own, sum)| *own = (sum / count) as f32);
            }
        })?;
        self.with_numbers(FILLED, |filled| held().for_each(|((&item, _), _)| filled[item as usize - 1] = 1))
    }
}

/// Marks the share of the items that has the most training events; among equals, the smaller id comes first.
pub(super) fn head_items(data: &Data, share: f64) -> Vec<bool> {
    let mut events = vec![0usize; data.items];
    data.training.items.iter().for_each(|&item| events[item as usize - 1] += 1);
    let mut order: Vec<usize> = (0..data.items).collect();
    order.sort_by_key(|&row| (std::cmp::Reverse(events[row]), row));
    let mut is_head = vec![false; data.items];
    order[..(share * data.items as f64) as usize].iter().for_each(|&row| is_head[row] = true);
    is_head
}
