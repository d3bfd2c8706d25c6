//! Sequence dropout and complementary mixup (specification, section 4), which pre-training draws before the encoder runs.

use mp4sr_ops::{PackedOffsets, Result, RngKey};

use crate::Batch;

/// Drops each item, except the first of a history, with probability `rho`. The remaining items close up in order.
pub fn sequence_dropout(batch: &Batch, rho: f64, key: RngKey) -> Result<Batch> {
    close_up(batch, |token| key.uniform(token as u64) >= rho)
}

/// Keeps the first token of every history and those for which `keep` is true. The remaining tokens close up in order.
pub fn close_up(batch: &Batch, keep: impl Fn(usize) -> bool) -> Result<Batch> {
    let mut items = Vec::with_capacity(batch.items.len());
    let mut lengths = Vec::with_capacity(batch.count());
    for j in 0..batch.count() {
        let before = items.len();
        for (position, token) in batch.offsets.range(j).enumerate() {
            if position == 0 || keep(token) {
                items.push(batch.items[token]);
            }
        }
        lengths.push(items.len() - before);
    }
    let offsets = PackedOffsets::from_lengths(lengths)?;
    Ok(Batch { users: batch.users.clone(), offsets, items, targets: batch.targets.clone() })
}

/// Draws the modality shift of each token: mixed sequence m has modality (m + shift) mod M there. A token is swapped with probability `p`,
/// by a random non-zero shift. With two modalities, M^t and M^v are complements.
pub fn mixup(tokens: usize, modalities: usize, p: f64, key: RngKey) -> Vec<u32> {
    let shift = |token: u64| {
        if modalities < 2 || key.uniform(2 * token) >= p {
            return 0;
        }
        1 + (key.uniform(2 * token + 1) * (modalities - 1) as f64) as u32
    };
    (0..tokens as u64).map(shift).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch() -> Batch {
        let histories: Vec<Vec<u32>> = (0..2000).map(|j| (1..=1 + j % 10).collect()).collect();
        Batch::of_histories(histories.iter().map(|h| (h.as_slice(), 1)), 50).unwrap()
    }

    #[test]
    fn sequence_dropout_keeps_first_items_and_the_order_and_drops_the_expected_share() {
        let before = batch();
        let after = sequence_dropout(&before, 0.2, RngKey::new(5)).unwrap();
        for j in 0..after.count() {
            let kept = &after.items[after.offsets.range(j)];
            assert_eq!(kept[0], 1);
            assert!(kept.is_sorted() && kept.windows(2).all(|w| w[0] < w[1]));
            assert!(*kept.last().unwrap() as usize <= before.offsets.range(j).len());
        }
        let could = (before.items.len() - before.count()) as f64;
        let dropped = (before.items.len() - after.items.len()) as f64 / could;
        assert!((dropped - 0.2).abs() < 5.0 * (0.16 / could).sqrt(), "{dropped}");
        assert_eq!(sequence_dropout(&before, 0.0, RngKey::new(5)).unwrap().items, before.items);
        assert_eq!(sequence_dropout(&before, 1.0, RngKey::new(5)).unwrap().items, vec![1; before.count()]);
    }

    #[test]
    fn mixup_swaps_the_expected_share_and_every_shift_is_equally_likely() {
        for modalities in [2, 3, 4] {
            let shifts = mixup(60_000, modalities, 0.3, RngKey::new(6));
            for shift in 1..modalities as u32 {
                let share = shifts.iter().filter(|&&s| s == shift).count() as f64 / 60_000.0;
                let expected = 0.3 / (modalities - 1) as f64;
                assert!((share - expected).abs() < 5.0 * (expected / 60_000.0).sqrt(), "{modalities} {shift} {share}");
            }
            assert!(shifts.iter().all(|&s| (s as usize) < modalities));
        }
        assert_eq!(mixup(5, 1, 1.0, RngKey::new(6)), [0; 5]);
    }
}
