//! The largest part of the data in which every user and every item has enough events.

use std::collections::BTreeMap;

use polars::prelude::*;

use crate::Result;
use crate::filters::{ITEM, USER, small, without};

/// How many events users and items need; 0 or 1: any.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub user: u32,
    pub item: u32,
}

/// Drops the events outside of the core, in rounds: first those of users below their bound, then those of items, until nothing
/// changes. The core is the same in any order; which bound is said to have dropped an event is not, hence the fixed one.
///
/// Returns the core, and the dropped events by reason.
pub fn core(mut events: DataFrame, bounds: Bounds) -> Result<(DataFrame, BTreeMap<String, u64>)> {
    let mut dropped = BTreeMap::new();
    loop {
        let before = events.height();
        for (key, bound) in [(USER, bounds.user), (ITEM, bounds.item)] {
            if bound < 2 {
                continue;
            }
            let few = small(events.clone().lazy(), key, bound).collect()?;
            if few.height() > 0 {
                let held = events.height();
                events = without(events.lazy(), key, few.lazy()).collect()?;
                *dropped.entry(format!("{key} below {bound} events")).or_default() += (held - events.height()) as u64;
            }
        }
        if events.height() == before {
            return Ok((events, dropped));
        }
    }
}
