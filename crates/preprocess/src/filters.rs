//! The filters of interactions, one function each, as polars expressions.
//!
//! A frame of interactions has a row per event: `user` and `item` (`u32`, numbered in the order of their first event), `time` (`i64`, in
//! the unit of the file). Rows are in the order of the input before [`ordered`], and in the order of user, time and input after it. Each
//! function extends a query; nothing runs before it is collected.

use mp4sr_pipeline::config::Repeated;
use polars::prelude::*;

/// The column of users.
pub const USER: &str = "user";
/// The column of items.
pub const ITEM: &str = "item";
/// The column of times.
pub const TIME: &str = "time";
/// The column of the number of events, in frames that have a row per user or per item.
pub const EVENTS: &str = "events";
/// Whether an event satisfies `preprocess.where`; null if that depends on a missing value. Absent without the key.
pub const SATISFIES: &str = "satisfies";

/// Events that satisfy `preprocess.where`.
pub fn satisfying(events: LazyFrame) -> LazyFrame {
    events.filter(col(SATISFIES)).select([col(USER), col(ITEM), col(TIME)])
}

/// Events from `since` on and before `until`.
pub fn within(events: LazyFrame, since: Option<i64>, until: Option<i64>) -> LazyFrame {
    let from = since.map(|since| col(TIME).gt_eq(lit(since)));
    let to = until.map(|until| col(TIME).lt(lit(until)));
    from.into_iter().chain(to).fold(events, LazyFrame::filter)
}

/// Events in the order of user, time and input.
///
/// A single key, made of the user and the time since `first`, sorts in a fifth of the time that two columns take. The key has `span` values
/// per user; if it would not fit into 64 bits, two columns are used.
pub fn ordered(events: LazyFrame, users: u64, first: i64, span: u64) -> LazyFrame {
    const KEY: &str = "key";
    let stable = SortMultipleOptions::default().with_maintain_order(true);
    if users.checked_mul(span).is_none() {
        return events.sort([USER, TIME], stable);
    }
    let key = col(USER).cast(DataType::UInt64) * lit(span) + (col(TIME) - lit(first)).cast(DataType::UInt64);
    events.with_column(key.alias(KEY)).sort([KEY], stable).select([col(USER), col(ITEM), col(TIME)])
}

/// Keeps the last or the first of a user's events with the same item, or all of them. The events must be ordered. With `cuts`, the times at
/// which sets begin, the last one is kept in each set, because a later event must not remove one of an earlier set.
pub fn without_repeats(events: LazyFrame, repeated: Repeated, cuts: &[i64]) -> LazyFrame {
    let pair = |group: Expr| group * lit(1_u64 << 32) + col(ITEM).cast(DataType::UInt64);
    match repeated {
        Repeated::Last => events.filter(pair(user_and_set(cuts)).is_last_distinct()),
        Repeated::First => events.filter(pair(user_and_set(&[])).is_first_distinct()),
        Repeated::All => events,
    }
}

/// Whether an event is one of the last `count` of its user, or of its user in its set. The events must be ordered.
pub fn is_recent(count: u32, cuts: &[i64]) -> PolarsResult<Expr> {
    Ok(col(USER).cum_count(true).over([user_and_set(cuts)])?.lt_eq(lit(count)))
}

/// A number per user and set; sets begin at the times `cuts`.
fn user_and_set(cuts: &[i64]) -> Expr {
    let user = col(USER).cast(DataType::UInt64) * lit(cuts.len() as u64 + 1);
    cuts.iter().fold(user, |number, &cut| number + col(TIME).gt_eq(lit(cut)).cast(DataType::UInt64))
}

/// Events of the items that `items` lists.
pub fn of_items(events: LazyFrame, items: LazyFrame) -> LazyFrame {
    join(events, items, ITEM, JoinType::Semi)
}

/// The number of events of each user or item, in the column `events` beside the key. [`added_up`] sums them over partitions.
pub fn frequency(events: LazyFrame, key: &str) -> LazyFrame {
    events.group_by([col(key)]).agg([len().alias(EVENTS)])
}

/// The sum of numbers of events by key.
pub fn added_up(frequencies: LazyFrame, key: &str) -> LazyFrame {
    frequencies.group_by([col(key)]).agg([col(EVENTS).sum()])
}

/// The users or items with fewer than `bound` events.
pub fn small(frequencies: LazyFrame, key: &str, bound: u32) -> LazyFrame {
    frequencies.filter(col(EVENTS).lt(lit(bound))).select([col(key)])
}

/// Events of all users or items but those that `dropped` lists.
pub fn without(events: LazyFrame, key: &str, dropped: LazyFrame) -> LazyFrame {
    join(events, dropped, key, JoinType::Anti)
}

/// The first and the last time, as one row.
pub fn times(events: LazyFrame) -> LazyFrame {
    events.select([col(TIME).min().alias("first"), col(TIME).max().alias("last")])
}

/// The number of users, as one value.
pub fn users(events: LazyFrame) -> LazyFrame {
    events.select([col(USER).n_unique()])
}

/// Each item that has an event, once.
pub fn distinct_items(events: LazyFrame) -> LazyFrame {
    events.select([col(ITEM).unique()])
}

/// The number of events that share user and time with the event before, as one value. The events must be ordered.
pub fn ties(events: LazyFrame) -> LazyFrame {
    let same = |column: &str| col(column).eq(col(column).shift(lit(1)));
    events.select([same(USER).and(same(TIME)).sum()])
}

/// The minimum, the median (the lower one of two) and the maximum of the users' numbers of events, as one row.
pub fn spread(frequencies: LazyFrame) -> LazyFrame {
    frequencies.select([
        col(EVENTS).min().alias("shortest"),
        col(EVENTS).quantile(lit(0.5), QuantileMethod::Lower).alias("median"),
        col(EVENTS).max().alias("longest"),
    ])
}

fn join(events: LazyFrame, keys: LazyFrame, key: &str, how: JoinType) -> LazyFrame {
    let join = events.join_builder().with(keys).on([col(key)]).how(how);
    join.maintain_order(MaintainOrderJoin::Left).finish()
}
