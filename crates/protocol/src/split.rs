//! Leave-one-out (specification, section 1): a user's last item is the test target, the second last the validation target,
//! the rest is training. This is the only place that cuts sequences.

/// Which target is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// The second last item.
    Validation,
    /// The last item; the history then includes the validation target.
    Test,
}

impl Split {
    /// Its name in files and tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Validation => "validation",
            Self::Test => "test",
        }
    }
}

/// One user to rank for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EvalCase<'a> {
    /// All items before the target, oldest first; never empty.
    pub history: &'a [u32],
    /// The item that came next.
    pub target: u32,
}

impl<'a> EvalCase<'a> {
    /// The case of a user's sequence, or none where the history would be empty.
    pub fn of(sequence: &'a [u32], split: Split) -> Option<Self> {
        let at = sequence.len().checked_sub(if split == Split::Test { 1 } else { 2 })?;
        (at > 0).then(|| EvalCase { history: &sequence[..at], target: sequence[at] })
    }
}

/// The events that training may read: all but the last two.
pub fn training_part(sequence: &[u32]) -> &[u32] {
    &sequence[..sequence.len().saturating_sub(2)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_is_test_the_second_last_validation_the_rest_training() {
        let sequence = [7, 8, 9, 5];
        assert_eq!(training_part(&sequence), [7, 8]);
        assert_eq!(EvalCase::of(&sequence, Split::Validation).unwrap(), EvalCase { history: &[7, 8], target: 9 });
        assert_eq!(EvalCase::of(&sequence, Split::Test).unwrap(), EvalCase { history: &[7, 8, 9], target: 5 });
    }

    #[test]
    fn short_sequences_have_no_case_rather_than_an_empty_history() {
        assert_eq!(EvalCase::of(&[1, 2], Split::Validation), None);
        assert_eq!(EvalCase::of(&[1, 2], Split::Test), Some(EvalCase { history: &[1], target: 2 }));
        assert_eq!(EvalCase::of(&[1], Split::Test), None);
        assert_eq!(EvalCase::of(&[], Split::Validation), None);
        assert!(training_part(&[1, 2]).is_empty() && training_part(&[]).is_empty());
    }
}
