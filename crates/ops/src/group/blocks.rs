//! Lets the first process read values that are divided among processes, in blocks, so that it can write them to a file without ever holding
//! all of them.

use std::ops::Range;

use candle_core::Result;

use super::ProcessGroup;

/// Values of which every process has one run.
#[derive(Clone, Debug, PartialEq)]
pub struct DividedValues<'a> {
    /// The run of this process.
    pub own: &'a [f32],
    /// The lengths of the runs of all processes, by rank.
    pub lengths: Vec<usize>,
}

impl DividedValues<'_> {
    /// The number of values of all processes.
    pub fn count(&self) -> usize {
        self.lengths.iter().sum()
    }

    /// Sends this process's values in `range` to the first process, which receives those of all processes. A collective operation.
    fn gather(&self, group: &ProcessGroup, range: &Range<usize>) -> Result<Vec<f32>> {
        let mut start = 0;
        let mut within = Vec::with_capacity(self.lengths.len());
        for &length in &self.lengths {
            let from = range.start.clamp(start, start + length);
            within.push(from - start..range.end.clamp(from, start + length) - start);
            start += length;
        }
        let lengths: Vec<usize> = within.iter().map(Range::len).collect();
        group.gather_to_first("tables to store", &self.own[within[group.rank()].clone()], &lengths)
    }
}

/// Reads divided values for the first process.
#[derive(Debug)]
pub struct BlockReader<'a> {
    group: &'a ProcessGroup,
    arrays: &'a [DividedValues<'a>],
}

impl BlockReader<'_> {
    /// The values at `range` of an array.
    pub fn read(&self, array: usize, range: Range<usize>) -> Result<Vec<f32>> {
        self.group.scalars(&[1.0 + array as f64, range.start as f64, range.end as f64])?;
        self.arrays[array].gather(self.group, &range)
    }
}

/// Runs `work` on the first process, which may read the arrays of all processes block by block, in any order and any number of times. The
/// other processes send the blocks that it requests until the work is done, whether it succeeded or not, and return `None`. A collective
/// operation.
pub fn lend_blocks<T>(
    group: &ProcessGroup,
    arrays: &[DividedValues<'_>],
    work: impl FnOnce(&BlockReader<'_>) -> T,
) -> Result<Option<T>> {
    const DONE: [f64; 3] = [0.0; 3];
    if group.is_first() {
        let outcome = work(&BlockReader { group, arrays });
        group.scalars(&DONE)?;
        return Ok(Some(outcome));
    }
    loop {
        let request = group.scalars(&DONE)?.swap_remove(0);
        match request.iter().map(|&number| number as usize).collect::<Vec<_>>()[..] {
            [array, start, end] if array > 0 => arrays[array - 1].gather(group, &(start..end))?,
            _ => return Ok(None),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run_threads;

    #[test]
    fn the_first_process_reads_any_block_of_the_values_of_all_processes() {
        let whole: Vec<f32> = (0..10).map(|at| at as f32).collect();
        let lengths = vec![4, 0, 5, 1];
        let found = run_threads(4, |group| {
            let start = lengths[..group.rank()].iter().sum();
            let own = &whole[start..start + lengths[group.rank()]];
            let arrays =
                [DividedValues { own: &[], lengths: vec![0; 4] }, DividedValues { own, lengths: lengths.clone() }];
            lend_blocks(&group, &arrays, |reader| {
                for (start, end) in (0..=10).flat_map(|start| (start..=10).map(move |end| (start, end))) {
                    assert_eq!(reader.read(1, start..end)?, whole[start..end]);
                }
                reader.read(0, 0..0)
            })
        });
        let found: Vec<_> = found.into_iter().map(|found| found.unwrap().map(Result::unwrap)).collect();
        assert_eq!(found, [Some(vec![]), None, None, None]);
    }
}
