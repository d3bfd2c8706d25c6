//! Negatives of general models: items that a user has no training event with.

use mp4sr_ops::{Error, Result, RngKey};

use crate::Data;
use crate::data::distinct;

/// Draws items that a user has no training event with, uniformly over all such items.
#[derive(Debug)]
pub struct NegativeSampler {
    items: usize,
    /// The distinct items of user u, ascending, are `seen[offsets[u]..offsets[u + 1]]`.
    seen: Vec<u32>,
    offsets: Vec<usize>,
}

impl NegativeSampler {
    /// Reads the training sequences. Refuses a user who has events with all items, because no item is left to draw.
    pub fn new(data: &Data) -> Result<Self> {
        let (mut seen, mut offsets) = (Vec::new(), vec![0]);
        for user in 0..data.training.users() {
            let own = distinct(data.training.of(user));
            expect_negatives(&own, data.items, user)?;
            seen.extend(own);
            offsets.push(seen.len());
        }
        Ok(Self { items: data.items, seen, offsets })
    }
    /// Draws an item (1-based) for `user` (from 0), determined by the key.
    pub fn draw(&self, user: u32, key: RngKey) -> u32 {
        let seen = &self.seen[self.offsets[user as usize]..self.offsets[user as usize + 1]];
        draw_outside(seen, self.items, key)
    }

    /// Draws an item for each of `users`, determined by the key of the step.
    pub fn draw_all(&self, users: &[u32], key: RngKey) -> Vec<u32> {
        let key = key.fold_in("negatives");
        users.iter().enumerate().map(|(at, &user)| self.draw(user, key.fold_in_index(at as u64))).collect()
    }
}

/// Refuses a user, from 0, whose distinct items are all items, because none is left to draw.
pub(crate) fn expect_negatives(distinct: &[u32], items: usize, user: usize) -> Result<()> {
    if distinct.len() < items {
        return Ok(());
    }
    let row = user + 1;
    Err(Error::Msg(format!(
        "user {row} has training events with all {items} items, so that none is left as a negative; use a dataset with more items or a \
         model without negatives"
    )))
}

/// Draws an item of 1..=`items` that is not in `seen`, determined by the key. `seen` is ascending, has no repeats and lacks at least one
/// item.
pub(crate) fn draw_outside(seen: &[u32], items: usize, key: RngKey) -> u32 {
    let open = (items - seen.len()) as f64;
    // Turns the drawn rank among the items that are not seen into the item.
    let mut item = 1 + (key.uniform(0) * open) as u32;
    for &own in seen {
        if own > item {
            break;
        }
        item += 1;
    }
    item
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TrainingSequences;

    fn data(items: usize, users: &[&[u32]]) -> Data {
        let training = TrainingSequences::new(users.iter().copied()).into();
        Data { items, training, modalities: Vec::new(), categories: None, device: crate::Device::Cpu, group: None }
    }

    #[test]
    fn negatives_are_uniform_over_the_items_that_the_user_does_not_have() {
        let sampler = NegativeSampler::new(&data(7, &[&[3, 1, 3], &[7], &[]])).unwrap();
        let draws = 60_000u64;
        for (user, open) in [(0, vec![2, 4, 5, 6, 7]), (1, vec![1, 2, 3, 4, 5, 6]), (2, vec![1, 2, 3, 4, 5, 6, 7])] {
            let key = RngKey::new(4).fold_in_index(u64::from(user));
            let mut counts = [0u32; 8];
            (0..draws).for_each(|at| counts[sampler.draw(user, key.fold_in_index(at)) as usize] += 1);
            let drawn: Vec<u32> = (1..8).filter(|&item| counts[item as usize] > 0).collect();
            assert_eq!(drawn, open);
            let share = 1.0 / open.len() as f64;
            let deviation = (share * (1.0 - share) * draws as f64).sqrt();
            for item in open {
                let count = f64::from(counts[item as usize]);
                assert!((count - share * draws as f64).abs() < 5.0 * deviation, "user {user}, item {item}: {count}");
            }
        }
    }

    #[test]
    fn a_user_who_has_all_items_is_refused() {
        let error = NegativeSampler::new(&data(2, &[&[1], &[2, 1]])).unwrap_err().to_string();
        assert!(error.contains("user 2") && error.contains("all 2 items"), "{error}");
    }
}
