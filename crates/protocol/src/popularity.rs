//! The ranks that the list of the most popular items would give.

use mp4sr_artifact::Sequences;

use crate::{EvalCase, Metric, MetricMeans, Split, training_events};

/// One rank per user if all users get the same list, the items ordered by their number of training events; 0 for a user without a case.
/// Ties count against the target. With `removes_seen`, items of the history are not candidates.
fn popularity_ranks(sequences: &Sequences, split: Split, removes_seen: bool) -> Vec<u32> {
    let events = training_events(sequences);
    let mut ascending = events.clone();
    ascending.sort_unstable();
    let count = |item: u32| events[item as usize - 1];
    let rank = |case: EvalCase<'_>| {
        let own = count(case.target);
        let mut seen: Vec<u32> = if removes_seen { case.history.to_vec() } else { Vec::new() };
        seen.retain(|&item| item != case.target && count(item) >= own);
        seen.sort_unstable();
        seen.dedup();
        let at_least = ascending.len() - ascending.partition_point(|&other| other < own);
        (at_least - seen.len()) as u32
    };
    (0..sequences.user_count()).map(|user| EvalCase::of(sequences, user, split).map_or(0, rank)).collect()
}

/// The value of a metric on the validation set if items are ranked by popularity; `None` if it is 1, that of every ranking of a few items,
/// or if no user has a case.
pub fn popularity_value(sequences: &Sequences, metric: Metric, removes_seen: bool) -> Option<f64> {
    let ranks = popularity_ranks(sequences, Split::Validation, removes_seen);
    let means = MetricMeans::of(&ranks, &[metric]);
    means.get(metric).filter(|&value| means.users > 0 && value < 1.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::rank;

    fn sequences(users: &[Vec<u32>], item_count: usize) -> Sequences {
        let users: Vec<&[u32]> = users.iter().map(Vec::as_slice).collect();
        Sequences { item_count, ..crate::split::tests::sequences(&users, None) }
    }

    #[test]
    fn ties_count_against_the_target_and_seen_items_are_no_candidates_on_request() {
        // In training, item 1 occurs twice, items 2 and 3 once, items 4 and 5 never. The validation targets are 3 and 4; the last user has
        // no case.
        let data = sequences(&[vec![1, 2, 3, 5], vec![1, 3, 4, 5], vec![4, 5]], 5);
        assert_eq!(popularity_ranks(&data, Split::Validation, false), [3, 5, 0]);
        assert_eq!(popularity_ranks(&data, Split::Validation, true), [1, 3, 0]);
        let mrr = |users: &[Vec<u32>]| popularity_value(&sequences(users, 5), Metric::ReciprocalRank, false);
        assert_eq!(mrr(&[vec![4, 5], vec![1]]), None, "nobody has a case");
        assert!(mrr(&[vec![1, 2, 3, 5], vec![1, 3, 4, 5]]).is_some());
    }

    proptest! {
        #[test]
        fn ranks_equal_those_of_scores(
            users in prop::collection::vec(prop::collection::vec(1u32..12, 0..9), 1..12),
            removes_seen: bool,
            is_test: bool,
        ) {
            let data = sequences(&users, 11);
            let split = if is_test { Split::Test } else { Split::Validation };
            let scores: Vec<f32> = training_events(&data).iter().map(|&count| count as f32).collect();
            for (user, found) in popularity_ranks(&data, split, removes_seen).into_iter().enumerate() {
                let expected = EvalCase::of(&data, user, split).map_or(0, |case| {
                    rank(&scores, case.target, |item| removes_seen && case.history.contains(&item)).unwrap()
                });
                prop_assert_eq!(found, expected);
            }
        }
    }
}
