//! Rebuilds the sequences of users from lines that each hold an event and the items before it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::bail;

use super::events::{EventSet, ImportedEvent};

/// The lines of all users.
#[derive(Debug, Default)]
pub struct Joined {
    users: BTreeMap<u32, Vec<SequenceLine>>,
}

/// A line with an event of a user.
#[derive(Debug)]
pub struct SequenceLine {
    /// The set of the event.
    pub set: EventSet,
    /// The items before the event, oldest first; some datasets keep only the last ones.
    pub before: Vec<u32>,
    /// The item of the event.
    pub item: u32,
    /// Where the line is, for messages.
    pub location: Location,
}

/// A line of a file.
#[derive(Debug)]
pub struct Location {
    /// The file.
    pub path: PathBuf,
    /// The number of the line, from 1.
    pub line: u64,
}

impl Joined {
    /// Adds a line of `user`.
    pub fn add(&mut self, user: u32, line: SequenceLine) {
        self.users.entry(user).or_default().push(line);
    }

    /// The events of each user in order. Items that no line has as its event belong to training, or to the set of the event before them.
    pub fn finish(self, is_divided: bool) -> anyhow::Result<Vec<ImportedEvent>> {
        let mut events = Vec::new();
        for (user, mut lines) in self.users {
            lines.sort_by_key(|line| (line.set, line.before.len()));
            let mut sequence: Vec<(u32, EventSet)> = Vec::new();
            lines.into_iter().try_for_each(|line| append(&mut sequence, line))?;
            events.extend(sequence.into_iter().map(|(item, set)| ImportedEvent {
                user,
                item,
                time: 0.0,
                set: if is_divided { set } else { EventSet::Training },
                further: Vec::new(),
            }));
        }
        Ok(events)
    }
}

fn append(
    sequence: &mut Vec<(u32, EventSet)>,
    SequenceLine { set, before, item, location }: SequenceLine,
) -> anyhow::Result<()> {
    let known: Vec<u32> = sequence.iter().map(|(item, _)| *item).collect();
    if (before.is_empty() || !known.is_empty()) && known.ends_with(&before) {
        sequence.push((item, set));
    } else if before.starts_with(&known) {
        let last = sequence.last().map_or(EventSet::Training, |(_, set)| *set);
        // Items that are not the event of any line come after the known ones and before this line's event.
        sequence.extend(before[known.len()..].iter().map(|&item| (item, last)));
        sequence.push((item, set));
    } else {
        bail!(
            "`{}`, line {}: the items before the event do not continue the user's earlier lines; all lines of a user must belong to \
             one sequence",
            location.path.display(),
            location.line
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(lines: &[(usize, &[u32], u32)]) -> anyhow::Result<Vec<(u32, usize)>> {
        let mut joined = Joined::default();
        for (number, (set, before, item)) in lines.iter().enumerate() {
            let location = Location { path: "x.inter".into(), line: number as u64 + 2 };
            joined.add(0, SequenceLine { set: EventSet::ALL[*set], before: before.to_vec(), item: *item, location });
        }
        Ok(joined.finish(true)?.into_iter().map(|event| (event.item, event.set as usize)).collect())
    }

    #[test]
    fn prefixes_whole_lists_and_last_items_give_the_sequence() {
        let whole = vec![(1, 0), (2, 0), (3, 0), (4, 1), (5, 2)];
        let augmented: [(usize, &[u32], u32); 4] =
            [(0, &[1], 2), (0, &[1, 2], 3), (1, &[1, 2, 3], 4), (2, &[1, 2, 3, 4], 5)];
        assert_eq!(joined(&augmented).unwrap(), whole);
        assert_eq!(joined(&[(2, &[1, 2, 3, 4], 5), (1, &[1, 2, 3], 4), (0, &[1, 2], 3)]).unwrap(), whole);
        assert_eq!(joined(&[(0, &[1, 2], 3), (1, &[2, 3], 4), (2, &[3, 4], 5)]).unwrap(), whole, "the last two alone");
        let other = joined(&[(0, &[1, 2], 3), (1, &[7], 4)]).unwrap_err().to_string();
        assert!(other.contains("x.inter`, line 3"), "{other}");
    }
}
