//! Shards: the parts into which the work of a stage is divided for several machines.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use mp4sr_artifact::{Stage, Status, files};

/// One of several equal shares of a stage's work, written `2/4`: the second of four.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// The number of this shard, from 1.
    pub number: usize,
    /// The number of shards.
    pub count: usize,
}

impl Shard {
    /// The range of `0..total` that belongs to this shard. The ranges of all shards are consecutive, and their sizes differ by at most one.
    pub fn range(self, total: usize) -> Range<usize> {
        let bound = |number: usize| (total as u128 * number as u128 / self.count as u128) as usize;
        bound(self.number - 1)..bound(self.number)
    }

    /// All shards of a division into `count` shards, in order.
    pub fn all(count: usize) -> impl Iterator<Item = Self> {
        (1..=count).map(move |number| Self { number, count })
    }

    /// The name of this shard in file names: `2-of-4`.
    pub fn file_name(self) -> String {
        format!("{}-of-{}", self.number, self.count)
    }

    /// The name of the stage that computes this shard of `stage`.
    pub fn stage_name(self, stage: &str) -> String {
        format!("{stage}.{}", self.file_name())
    }

    /// The shards of the stage `name` that have a manifest in `folder`, of all divisions.
    pub fn recorded(name: &str, folder: &Path) -> anyhow::Result<Vec<Self>> {
        let start = format!("{name}.");
        let shard = |path: &PathBuf| -> Option<Self> {
            let shard = path.file_name()?.to_str()?.strip_prefix(&start)?.strip_suffix(".manifest.json")?;
            shard.replacen("-of-", "/", 1).parse().ok()
        };
        Ok(files::list(folder)?.iter().filter_map(shard).collect())
    }

    /// The number of shards of the stage `name` in `folder`, if all shards of one division are up to date. `make_stage` creates the stage
    /// of a shard by its name.
    pub fn finished(
        name: &str,
        folder: &Path,
        make_stage: impl Fn(&str) -> anyhow::Result<Stage>,
    ) -> anyhow::Result<Option<usize>> {
        for Self { count, .. } in Self::recorded(name, folder)?.into_iter().filter(|shard| shard.number == 1) {
            if Self::first_unfinished(count, name, &make_stage)?.is_none() {
                return Ok(Some(count));
            }
        }
        Ok(None)
    }

    /// The first of `count` shards that is not up to date, and why. The shards after it are not checked, because checking a shard may read all inputs.
    fn first_unfinished(
        count: usize,
        name: &str,
        make_stage: impl Fn(&str) -> anyhow::Result<Stage>,
    ) -> anyhow::Result<Option<(Self, String)>> {
        for shard in Self::all(count) {
            if let Status::Stale(why) = make_stage(&shard.stage_name(name))?.status()? {
                return Ok(Some((shard, why)));
            }
        }
        Ok(None)
    }

    /// Why the recorded shards of the stage `name` cannot be merged: of each division, the first shard that is not up to date.
    pub fn unfinished(
        name: &str,
        folder: &Path,
        make_stage: impl Fn(&str) -> anyhow::Result<Stage>,
    ) -> anyhow::Result<Vec<String>> {
        let counts: BTreeSet<usize> = Self::recorded(name, folder)?.into_iter().map(|shard| shard.count).collect();
        let mut reasons = Vec::new();
        for count in counts {
            if let Some((shard, why)) = Self::first_unfinished(count, name, &make_stage)? {
                reasons.push(format!("shard {shard}: {why}"));
            }
        }
        Ok(reasons)
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.count)
    }
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers =
            text.split_once('/').and_then(|(number, count)| Some((number.parse().ok()?, count.parse().ok()?)));
        match numbers {
            Some((number, count)) if (1..=count).contains(&number) => Ok(Self { number, count }),
            Some((number, count)) => {
                Err(format!("shard {number} of {count} does not exist; shards are counted from 1"))
            }
            None => Err("expected a shard and the number of shards, as in `2/4`".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_consecutive_and_have_nearly_the_same_size() {
        for (total, count) in [(0, 3), (2, 3), (10, 1), (10, 3), (10, 10), (1001, 7)] {
            let ranges: Vec<Range<usize>> = Shard::all(count).map(|shard| shard.range(total)).collect();
            assert_eq!(ranges.iter().flat_map(Clone::clone).collect::<Vec<_>>(), (0..total).collect::<Vec<_>>());
            let sizes: Vec<usize> = ranges.iter().map(ExactSizeIterator::len).collect();
            assert!(sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 1, "{sizes:?}");
        }
    }

    #[test]
    fn shards_round_trip_through_text_and_invalid_ones_are_refused() {
        let shard: Shard = "2/4".parse().unwrap();
        assert_eq!(
            (shard, shard.to_string(), shard.file_name()),
            (Shard { number: 2, count: 4 }, "2/4".into(), "2-of-4".into())
        );
        for (text, reason) in [
            ("0/4", "shard 0 of 4 does not exist"),
            ("5/4", "shard 5 of 4 does not exist"),
            ("1/0", "shard 1 of 0 does not exist"),
            ("2", "as in `2/4`"),
            ("a/4", "as in `2/4`"),
            ("-1/4", "as in `2/4`"),
        ] {
            assert!(text.parse::<Shard>().unwrap_err().contains(reason), "{text}");
        }
    }
}
