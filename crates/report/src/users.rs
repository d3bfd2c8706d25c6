//! Selects the users that the page shows, with their histories and lists.

use std::collections::HashMap;
use std::path::Path;

use mp4sr_artifact::{Error, Items, Layout, Table};
use mp4sr_protocol::expect_inputs_of_lists;
use serde_json::Value;

use crate::Result;

/// The content of `recommendations.parquet`.
#[derive(Clone, Debug, Default)]
pub(crate) struct UserLists {
    user: Vec<u32>,
    user_id: Vec<String>,
    history: Vec<Vec<String>>,
    target: Vec<String>,
    items: Vec<Vec<String>>,
    /// The inputs and settings of the lists; `None` if another program wrote them.
    source: Option<Value>,
}

/// One user; items are given by row of [`Items`].
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ShownUser {
    /// The number of the user, 1-based.
    pub(crate) user: u32,
    pub(crate) user_id: String,
    /// The history, oldest first.
    pub(crate) history: Vec<usize>,
    /// The next item, if it is known.
    pub(crate) target: Option<usize>,
    /// The list, best first.
    pub(crate) list: Vec<usize>,
    /// The target's rank among all items.
    pub(crate) rank: Option<u32>,
}

/// The counts of the users from whom those on the page are chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct UserCounts {
    /// The number of users with a list.
    pub(crate) users: usize,
    /// The number of users whose next item is known.
    pub(crate) known: usize,
    /// The number of users whose next item is in their list.
    pub(crate) hits: usize,
}

impl ShownUser {
    /// The end of the history that the page shows. With the next item, it has as many items as the part of the list that is shown.
    pub(crate) fn recent(&self) -> &[usize] {
        &self.history[self.history.len().saturating_sub(9)..]
    }

    /// The start of the list that the page shows.
    pub(crate) fn top(&self) -> &[usize] {
        &self.list[..self.list.len().min(10)]
    }

    /// All items that the page shows.
    pub(crate) fn items(&self) -> impl Iterator<Item = usize> {
        self.recent().iter().chain(self.top()).chain(&self.target).copied()
    }
}

impl UserLists {
    pub(crate) fn read(path: &Path) -> Result<Self> {
        const REMEDY: &str = "run `mp4sr recommend` again";
        let mut table = Table::read(path, REMEDY)?;
        Ok(Self {
            source: table.source().cloned(),
            user: table.take_u32("user")?,
            user_id: table.take_text("user_id")?,
            history: table.take_texts("history")?,
            target: table.take_text("target")?,
            items: table.take_texts("items")?,
        })
    }

    /// Rejects lists that were computed with sequences, weights or features other than those that the run has now.
    pub(crate) fn expect_inputs(&self, layout: &Layout, path: &Path) -> Result<()> {
        Ok(expect_inputs_of_lists(self.source.as_ref(), layout, path)?)
    }

    /// Chooses `count` users: half of them (the larger half) from those whose next item is in their list, and half from the others, each
    /// evenly spaced over the table. If one group has too few users, more of the other are chosen. If no next item is known, all are evenly
    /// spaced.
    pub(crate) fn choose(&self, count: usize) -> (Vec<usize>, UserCounts) {
        let rows = 0..self.user.len();
        let is_hit = |&row: &usize| self.items[row].contains(&self.target[row]);
        let (known, unknown): (Vec<usize>, Vec<usize>) = rows.partition(|&row| !self.target[row].is_empty());
        let (hits, misses): (Vec<usize>, Vec<usize>) = known.iter().partition(|row| is_hit(row));
        let counts = UserCounts { users: self.user.len(), known: known.len(), hits: hits.len() };
        let misses = if known.is_empty() { unknown } else { misses };
        let from_hits = count.div_ceil(2).max(count.saturating_sub(misses.len())).min(hits.len());
        let mut chosen = spread(&hits, from_hits, 1);
        chosen.extend(spread(&misses, count - from_hits, 3));
        chosen.sort_unstable();
        (chosen, counts)
    }

    /// The users in these rows. `ranks` are the ranks of the test targets, one per user.
    pub(crate) fn show(&self, rows: &[usize], items: &Items, ranks: &[u32], path: &Path) -> Result<Vec<ShownUser>> {
        let by_id: HashMap<&str, usize> = items.ids.iter().enumerate().map(|(row, id)| (id.as_str(), row)).collect();
        let find = |id: &String| {
            by_id.get(id.as_str()).copied().ok_or_else(|| {
                Error::unusable(path, format!("item {id:?} is not in the dataset"), "run `mp4sr recommend` again")
            })
        };
        let find_all = |ids: &[String]| ids.iter().map(find).collect::<std::result::Result<Vec<_>, _>>();
        let mut users = Vec::with_capacity(rows.len());
        for &row in rows {
            let target = &self.target[row];
            let target = if target.is_empty() { None } else { Some(find(target)?) };
            let rank = (self.user[row] as usize).checked_sub(1).and_then(|at| ranks.get(at)).copied();
            users.push(ShownUser {
                user: self.user[row],
                user_id: self.user_id[row].clone(),
                history: find_all(&self.history[row])?,
                target,
                list: find_all(&self.items[row])?,
                rank: rank.filter(|&rank| rank > 0 && target.is_some()),
            });
        }
        Ok(users)
    }
}

/// Chooses `count` of the rows, or all if there are fewer: one from each of `count` equal parts, at `quarter` quarters of the part. Hits
/// and misses use different quarters; otherwise neighbouring users would be chosen in pairs.
pub(crate) fn spread(rows: &[usize], count: usize, quarter: usize) -> Vec<usize> {
    let count = count.min(rows.len());
    (0..count).map(|at| rows[(4 * at + quarter) * rows.len() / (4 * count)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Users whose next item is in their list (`h`), is not in it (`m`), or is unknown (`?`).
    fn lists(kinds: &str) -> UserLists {
        let of = |kind| match kind {
            'h' => "a",
            'm' => "z",
            _ => "",
        };
        let count = kinds.chars().count();
        UserLists {
            source: None,
            user: (1..=count as u32).collect(),
            user_id: (1..=count).map(|u| format!("u{u}")).collect(),
            history: vec![vec!["z".into()]; count],
            target: kinds.chars().map(|kind| of(kind).to_owned()).collect(),
            items: vec![vec!["b".into(), "a".into()]; count],
        }
    }

    #[test]
    fn half_are_hits_spaced_evenly_and_a_short_group_is_filled_up() {
        let (rows, counts) = lists("hmhmmmhmhm").choose(4);
        assert_eq!((counts.users, counts.known, counts.hits), (10, 10, 4));
        assert_eq!(rows, [0, 4, 6, 9]);
        assert_eq!(lists("hmmmmm").choose(4).0, [0, 2, 3, 5]);
        assert_eq!(lists("hhhhhm").choose(4).0, [0, 2, 3, 5]);
        assert_eq!(lists("hm").choose(8).0, [0, 1]);
        assert_eq!(lists("mmm").choose(2).0, [1, 2]);
        assert_eq!(lists("????").choose(2).0, [1, 3]);
        assert_eq!(lists("hm").choose(0).0, Vec::<usize>::new());
        assert_eq!(lists("").choose(8).0, Vec::<usize>::new());
    }

    #[test]
    fn items_are_found_by_id_and_unknown_ones_refused() {
        let items = Items { ids: vec!["a".into(), "b".into(), "z".into()], ..Items::default() };
        let path = Path::new("recommendations.parquet");
        let shown = lists("m").show(&[0], &items, &[7], path).unwrap();
        assert_eq!((shown[0].target, shown[0].rank, shown[0].list.as_slice()), (Some(2), Some(7), &[1, 0][..]));
        let fewer = Items { ids: vec!["b".into(), "z".into()], ..Items::default() };
        let message = lists("m").show(&[0], &fewer, &[], path).unwrap_err().to_string();
        assert!(message.contains("item \"a\" is not in the dataset"), "{message}");
    }
}
