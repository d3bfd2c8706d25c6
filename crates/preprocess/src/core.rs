//! The largest part of the data in which every user and every item has enough events.

use std::collections::BTreeMap;

use polars::prelude::*;

use crate::Result;
use crate::filters::{ITEM, USER, added_up, frequency, small, without};
use crate::partitions::{Partition, Partitions};

/// The minimum number of events per user and per item; 0 and 1 keep all.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub user: u32,
    pub item: u32,
}

/// Drops the events outside the core in rounds: first those of users below their bound, then those of items, until nothing changes. The
/// core is the same in any order, but the bound that a dropped event is attributed to is not, so the order is fixed.
///
/// A user's events are in one partition, an item's in many. A round is therefore one pass: it drops the items that the previous pass found
/// below their bound, then the users below theirs, and counts the events of items. Returns the dropped events by reason.
pub fn core(events: &mut Partitions, bounds: Bounds) -> Result<BTreeMap<String, u64>> {
    let mut dropped = BTreeMap::new();
    let mut few_items: Option<DataFrame> = None;
    loop {
        let mut frequencies = Vec::new();
        events.replace(|part| {
            let before = part.count();
            let mut left = part.clone();
            if let Some(few) = &few_items {
                left = drop_keys(&left, ITEM, few, bounds.item, &mut dropped)?;
            }
            if bounds.user > 1 {
                let few = left.query(|events| small(frequency(events, USER), USER, bounds.user))?;
                left = drop_keys(&left, USER, &few, bounds.user, &mut dropped)?;
            }
            if bounds.item > 1 {
                frequencies.push(left.query(|events| frequency(events, ITEM))?.lazy());
            }
            if left.count() < before { left.query(|events| events).map(Some) } else { Ok(None) }
        })?;
        if frequencies.is_empty() {
            return Ok(dropped);
        }
        let frequencies = added_up(concat(frequencies, UnionArgs::default())?, ITEM);
        let few = small(frequencies, ITEM, bounds.item).collect()?;
        if few.height() == 0 {
            return Ok(dropped);
        }
        few_items = Some(few);
    }
}

/// A partition without the events of the users or items in `few`; it is in memory unless `few` is empty.
fn drop_keys(
    part: &Partition,
    key: &str,
    few: &DataFrame,
    bound: u32,
    dropped: &mut BTreeMap<String, u64>,
) -> Result<Partition> {
    if few.height() == 0 {
        return Ok(part.clone());
    }
    let left = Partition::in_memory(part.query(|events| without(events, key, few.clone().lazy()))?);
    let number = part.count() - left.count();
    if number > 0 {
        *dropped.entry(format!("{key} below {bound} events")).or_default() += number;
    }
    Ok(left)
}
