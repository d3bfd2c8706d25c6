//! Selects a user's training, validation and test events.
//!
//! Leave-one-out (specification, section 1): the last item is the test target, the second last the validation target, the rest is training.
//! A dataset that was split by ratio or by time records where each user's validation and test events begin. The target is the first of
//! them, which follows everything that is known by then. So there is one rank per user in the validation set and one in the test set.

use mp4sr_artifact::Sequences;

/// The evaluated set: the one whose targets are ranked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// The validation set; a user's target is the first validation event.
    Validation,
    /// The test set; a user's target is the first test event, and the history includes the validation events.
    Test,
}

impl Split {
    /// The name of the set in files and tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Validation => "validation",
            Self::Test => "test",
        }
    }
}

/// The target of one user and the history before it.
///
/// ```
/// use mp4sr_protocol::EvalCase;
///
/// let case = EvalCase::last_of(&[7, 8, 9]).expect("a history and a target");
/// assert_eq!(case, EvalCase { history: &[7, 8], target: 9 });
/// assert_eq!(EvalCase::last_of(&[7]), None, "the history would be empty");
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EvalCase<'a> {
    /// All items before the target, oldest first; never empty.
    pub history: &'a [u32],
    /// The item that follows the history.
    pub target: u32,
}

impl<'a> EvalCase<'a> {
    /// The case of user `user` (0-based row); `None` if the user has no event in the set, or none before it.
    pub fn of(sequences: &'a Sequences, user: usize, split: Split) -> Option<Self> {
        let sequence = sequences.of(user);
        let (validation, test) = sequences.parts_of(user);
        let (at, end) = match split {
            Split::Validation => (validation, test),
            Split::Test => (test, sequence.len()),
        };
        (0 < at && at < end).then(|| EvalCase { history: &sequence[..at], target: sequence[at] })
    }

    /// The test case of a sequence whose last item is the target; `None` if the history would be empty.
    pub fn last_of(sequence: &'a [u32]) -> Option<Self> {
        let (&target, history) = sequence.split_last()?;
        (!history.is_empty()).then_some(EvalCase { history, target })
    }
}

/// The items of the training events of user `user` (0-based row): all that precede the validation events.
pub fn training_items(sequences: &Sequences, user: usize) -> &[u32] {
    &sequences.of(user)[..sequences.parts_of(user).0]
}

/// The times of the events in [`training_items`].
pub fn training_times(sequences: &Sequences, user: usize) -> &[i64] {
    &sequences.times_of(user)[..sequences.parts_of(user).0]
}

#[cfg(test)]
pub(crate) mod tests {
    use mp4sr_artifact::{SequenceParts, hash_ids};

    use super::*;

    pub(crate) fn sequences(users: &[&[u32]], parts: Option<[&[u32]; 2]>) -> Sequences {
        let mut offsets = vec![0];
        users.iter().for_each(|user| offsets.push(offsets[offsets.len() - 1] + user.len() as i64));
        let items = users.concat();
        Sequences {
            offsets,
            times: vec![0; items.len()],
            items,
            item_hash: hash_ids(["a"]),
            item_count: 9,
            user_hash: None,
            time_kind: mp4sr_artifact::TimeKind::Unstated,
            parts: parts.map(|[validation, test]| SequenceParts { validation: validation.into(), test: test.into() }),
        }
    }

    #[test]
    fn the_last_is_test_the_second_last_validation_the_rest_training() {
        let one = sequences(&[&[7, 8, 9, 5]], None);
        assert_eq!(training_items(&one, 0), [7, 8]);
        assert_eq!(EvalCase::of(&one, 0, Split::Validation).unwrap(), EvalCase { history: &[7, 8], target: 9 });
        assert_eq!(EvalCase::of(&one, 0, Split::Test).unwrap(), EvalCase { history: &[7, 8, 9], target: 5 });
        assert_eq!(EvalCase::of(&one, 0, Split::Test), EvalCase::last_of(one.of(0)));
    }

    #[test]
    fn short_sequences_have_no_case_rather_than_an_empty_history() {
        let short = sequences(&[&[1, 2], &[1], &[]], None);
        assert_eq!(EvalCase::of(&short, 0, Split::Validation), None);
        assert_eq!(EvalCase::of(&short, 0, Split::Test), Some(EvalCase { history: &[1], target: 2 }));
        for user in [1, 2] {
            assert_eq!(EvalCase::of(&short, user, Split::Validation), None);
            assert_eq!(EvalCase::of(&short, user, Split::Test), None);
            assert_eq!(EvalCase::last_of(short.of(user)), None);
        }
        assert!((0..3).all(|user| training_items(&short, user).is_empty()));
    }

    #[test]
    fn the_target_is_the_first_event_of_the_evaluated_set() {
        // One user has events in all sets, one has no validation event, one no test event, and all events of the last are test events.
        let users: [&[u32]; 4] = [&[1, 2, 3, 4, 5, 6], &[1, 2, 3], &[1, 2, 3], &[1, 2]];
        let cut = sequences(&users, Some([&[2, 2, 1, 0], &[4, 2, 3, 0]]));
        let cases = |user| (EvalCase::of(&cut, user, Split::Validation), EvalCase::of(&cut, user, Split::Test));
        let case = |history, target| Some(EvalCase { history, target });
        assert_eq!(cases(0), (case(&[1, 2], 3), case(&[1, 2, 3, 4], 5)));
        assert_eq!(cases(1), (None, case(&[1, 2], 3)));
        assert_eq!(cases(2), (case(&[1], 2), None));
        assert_eq!(cases(3), (None, None));
        assert_eq!([0, 1, 2, 3].map(|user| training_items(&cut, user).len()), [2, 2, 1, 0]);
    }
}
