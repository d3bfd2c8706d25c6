use mp4sr_ops::{PackedOffsets, Result};

/// Samples of a step: histories, packed one after the other, and the item that follows each.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Where each history lies in `items`.
    pub segments: PackedOffsets,
    /// `[tokens]`: items, 1-based, oldest first.
    pub items: Vec<u32>,
    /// `[B]`: the next item of each history.
    pub targets: Vec<u32>,
}

impl Batch {
    /// Packs histories (none empty) and their targets, keeping the last `positions` items of each.
    pub fn new<'a>(samples: impl IntoIterator<Item = (&'a [u32], u32)>, positions: usize) -> Result<Self> {
        let (mut lengths, mut items, mut targets) = (Vec::new(), Vec::new(), Vec::new());
        for (history, target) in samples {
            let recent = &history[history.len().saturating_sub(positions)..];
            lengths.push(recent.len());
            items.extend_from_slice(recent);
            targets.push(target);
        }
        Ok(Self { segments: PackedOffsets::from_lengths(lengths)?, items, targets })
    }

    /// B, the number of samples.
    pub fn count(&self) -> usize {
        self.segments.count()
    }
}
