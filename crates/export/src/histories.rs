//! The users and histories for which lists and query vectors are computed.

use mp4sr_artifact::Sequences;
use mp4sr_models::Query;
use mp4sr_protocol::{EvalCase, Split};

/// A user with the history that is given to the model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct UserHistory<'a> {
    /// The row of the user, from 0.
    pub user: usize,
    /// The items of the history, 1-based, oldest first; never empty.
    pub history: &'a [u32],
    /// The test item, if the history ends before it.
    pub target: Option<u32>,
}

impl<'a> UserHistory<'a> {
    /// The query of this user and history.
    pub fn query(&self) -> Query<'a> {
        Query { user: Some(self.user as u32), history: self.history }
    }
}

/// The histories of all users with at least one event. With `before_test_item`, histories end before the test events, and users whose
/// first event is one of these are left out.
pub fn histories(sequences: &Sequences, before_test_item: bool) -> Vec<UserHistory<'_>> {
    let of = |user: usize| {
        let case = if before_test_item { EvalCase::of(sequences, user, Split::Test) } else { None };
        match case {
            Some(EvalCase { history, target }) => UserHistory { user, history, target: Some(target) },
            // A user without a test item has no test event, or no event before it.
            None if before_test_item => {
                UserHistory { user, history: &sequences.of(user)[..sequences.parts_of(user).1], target: None }
            }
            None => UserHistory { user, history: sequences.of(user), target: None },
        }
    };
    (0..sequences.user_count()).map(of).filter(|own| !own.history.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use mp4sr_artifact::{SequenceParts, TimeKind, hash_ids};

    use super::*;

    #[test]
    fn users_have_a_history_unless_all_of_their_events_are_test_events() {
        let sequences = Sequences {
            offsets: vec![0, 3, 4, 4],
            items: vec![1, 2, 3, 2],
            times: vec![0; 4],
            item_hash: hash_ids(["a", "b", "c"]),
            item_count: 3,
            user_hash: None,
            time_kind: TimeKind::Unstated,
            parts: None,
        };
        let case = |user, history, target| UserHistory { user, history, target };
        // The second user's only event is a test event, whether or not the division is stored.
        assert_eq!(histories(&sequences, true), [case(0, &[1, 2], Some(3))]);
        assert_eq!(histories(&sequences, false), [case(0, &[1, 2, 3], None), case(1, &[2], None)]);
        let parts = Some(SequenceParts { validation: vec![1, 0, 0], test: vec![2, 0, 0] });
        let sequences = Sequences { parts, ..sequences };
        assert_eq!(histories(&sequences, true), [case(0, &[1, 2], Some(3))]);
        assert_eq!(histories(&sequences, false).len(), 2);
    }
}
