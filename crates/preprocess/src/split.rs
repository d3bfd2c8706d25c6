//! Where the validation and the test events of each user begin.

use mp4sr_artifact::Sequences;
use mp4sr_pipeline::config::{Preprocess, SplitBy};
use polars::prelude::*;

use crate::filters::{TIME, USER};
use crate::window::{TimeScale, bound};
use crate::{Error, Result};

/// How events are divided.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum SplitRule {
    /// The last event is for the test, and the one before it for validation, as in a dataset that does not record its split.
    LeaveOneOut,
    /// Shares of each user's events for validation and for the test.
    Ratio { validation: f64, test: f64 },
    /// Times from which events are for validation and for the test, in the units of the events.
    Time { validation: i64, test: i64 },
}

impl SplitRule {
    /// Reads the keys.
    pub fn new(preprocess: &Preprocess, scale: TimeScale) -> Result<Self> {
        match preprocess.split {
            SplitBy::LeaveOneOut => Ok(Self::LeaveOneOut),
            SplitBy::Ratio => match preprocess.split_ratio[..] {
                [training, validation, test]
                    if [training, validation, test].iter().all(|&share| share > 0.0)
                        && (training + validation + test - 1.0).abs() < 1e-9 =>
                {
                    Ok(Self::Ratio { validation, test })
                }
                _ => Err(Error::Setting(format!(
                    "`preprocess.split_ratio` = {:?} is not allowed; give three shares above 0 whose sum is 1, of training, \
                     validation and test",
                    preprocess.split_ratio
                ))),
            },
            SplitBy::Time => {
                let read = |key: &str, text: &str| {
                    bound(key, text, scale)?.ok_or_else(|| {
                        Error::Setting(format!(
                            "`preprocess.split` = \"time\" needs `preprocess.{key}`, which is empty; give the time as a date \
                             like \"2018-09-30\""
                        ))
                    })
                };
                let validation = read("split_at", &preprocess.split_at)?;
                let test = read("split_test_at", &preprocess.split_test_at)?;
                if !validation.is_before(test, scale) {
                    return Err(Error::Setting(format!(
                        "`preprocess.split_at` = {:?} is not before `preprocess.split_test_at` = {:?}; validation would be empty",
                        preprocess.split_at, preprocess.split_test_at
                    )));
                }
                Ok(Self::Time { validation: scale.units(validation.time), test: scale.units(test.time) })
            }
        }
    }

    /// A description of how the keys were read; `None` if they are not set.
    pub fn described(&self, scale: TimeScale) -> Option<String> {
        match *self {
            Self::LeaveOneOut => None,
            Self::Ratio { validation, test } => {
                Some(format!("of each user's events {validation} are for validation and the last {test} for the test"))
            }
            Self::Time { validation, test } => Some(format!(
                "events before {} are for training, those from {} on for the test",
                scale.shown(validation),
                scale.shown(test)
            )),
        }
    }

    /// The times at which the validation set and the test set begin, if they are the same for all users.
    pub fn cuts(&self) -> Vec<i64> {
        match *self {
            Self::Time { validation, test } => vec![validation, test],
            Self::LeaveOneOut | Self::Ratio { .. } => Vec::new(),
        }
    }

    /// Whether a dataset has to record where the validation and test events begin.
    pub fn is_stored(&self) -> bool {
        *self != Self::LeaveOneOut
    }

    /// The warnings about keys that this split does not read, and about a dataset on which no epoch can be selected.
    pub fn warnings(&self, preprocess: &Preprocess, sequences: &Sequences) -> Vec<String> {
        let defaults = Preprocess::default();
        let name = serde_json::json!(preprocess.split);
        let is_time = matches!(self, Self::Time { .. });
        let keys = [
            ("split_ratio", preprocess.split_ratio != defaults.split_ratio && !matches!(self, Self::Ratio { .. })),
            ("split_at", !preprocess.split_at.is_empty() && !is_time),
            ("split_test_at", !preprocess.split_test_at.is_empty() && !is_time),
        ];
        let unread = keys.iter().filter(|(_, is_set)| *is_set);
        let mut warnings: Vec<String> = unread
            .map(|(key, _)| format!("`preprocess.{key}` is set but not read, because `preprocess.split` is {name}"))
            .collect();
        if *self == Self::LeaveOneOut && evaluated_users(sequences).0 == 0 {
            warnings.push(
                "no user has three events, so no user has both a validation target and a history before it: training has nothing to \
                 validate on"
                    .to_owned(),
            );
        }
        warnings
    }

    /// Refuses a split by ratio or time that leaves no user with a validation event, or with a test event, after an earlier event.
    pub fn check(&self, sequences: &Sequences) -> Result<()> {
        if !self.is_stored() || sequences.items.is_empty() {
            return Ok(());
        }
        let (set, keys) = match evaluated_users(sequences) {
            (0, _) => ("validation set", "`preprocess.split_at` or `preprocess.split_test_at`"),
            (_, 0) => ("test set", "`preprocess.split_test_at`"),
            _ => return Ok(()),
        };
        let why = match self {
            Self::Time { .. } => {
                let shown = |time: Option<&i64>| {
                    TimeScale::unknown(sequences.time_kind).shown(time.copied().unwrap_or_default())
                };
                let (first, last) = (shown(sequences.times.iter().min()), shown(sequences.times.iter().max()));
                format!("the first event is at {first} and the last one at {last}; choose another {keys}")
            }
            _ => "sequences are too short for `preprocess.split_ratio`; keep longer ones, or choose other shares"
                .to_owned(),
        };
        Err(Error::Setting(format!(
            "`preprocess.split` leaves no user with an event in the {set} and an event before it: {why}"
        )))
    }

    /// Calls `each` with each user's number and the starts of the user's validation and test events. The events must be ordered.
    pub fn starts(&self, events: &DataFrame, mut each: impl FnMut(u32, u32, u32)) -> Result<()> {
        let starts = match *self {
            Self::LeaveOneOut => return Ok(()),
            Self::Ratio { validation, test } => by_ratio(validation, test),
            Self::Time { validation, test } => [before(validation).alias(VALIDATION), before(test).alias(TEST)],
        };
        let starts = starts.map(|start| start.cast(DataType::UInt32));
        let users = events.clone().lazy().group_by([col(USER)]).agg(starts).collect()?;
        let column = |name: &str| users.column(name)?.u32().map(ChunkedArray::into_no_null_iter);
        let (validation, test) = (column(VALIDATION)?, column(TEST)?);
        column(USER)?.zip(validation.zip(test)).for_each(|(user, (validation, test))| each(user, validation, test));
        Ok(())
    }
}

const VALIDATION: &str = "validation";
const TEST: &str = "test";

/// The number of a user's events before a time.
fn before(time: i64) -> Expr {
    col(TIME).lt(lit(time)).sum()
}

/// The starts of the validation and test events as `RecBole` (`_calcu_split_ids`) computes them: shares are rounded down, and a share of
/// less than one event becomes one, first for the test, as long as training keeps one.
fn by_ratio(validation: f64, test: f64) -> [Expr; 2] {
    let events = || len().cast(DataType::Float64);
    // Products such as 0.1 * 30 must not fall below the whole number by rounding.
    let whole = |share: f64| (events() * lit(share) + lit(1e-9)).cast(DataType::Int64);
    let is_less_than_one = |share: f64| (events() * lit(share)).lt(lit(1.0 - 1e-9));
    let count = || len().cast(DataType::Int64);
    let test_size = || {
        let left = count() - whole(validation) - whole(test);
        when(is_less_than_one(test).and(left.gt(lit(1)))).then(lit(1_i64)).otherwise(whole(test))
    };
    let validation_size = || {
        let left = count() - whole(validation) - test_size();
        when(is_less_than_one(validation).and(left.gt(lit(1)))).then(lit(1_i64)).otherwise(whole(validation))
    };
    [(count() - test_size() - validation_size()).alias(VALIDATION), (count() - test_size()).alias(TEST)]
}

/// The numbers of users with a validation target and with a test target, each after an earlier event.
fn evaluated_users(sequences: &Sequences) -> (usize, usize) {
    let users = 0..sequences.user_count();
    let (mut validation, mut test) = (0, 0);
    for (starts, length) in users.map(|user| (sequences.parts_of(user), sequences.of(user).len())) {
        validation += usize::from(0 < starts.0 && starts.0 < starts.1);
        test += usize::from(0 < starts.1 && starts.1 < length);
    }
    (validation, test)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::filters::ITEM;

    const SECONDS: TimeScale = TimeScale { kind: mp4sr_artifact::TimeKind::Unstated, unit: Some(0), digits: 0 };

    fn frame(users: &[u32], times: &[i64]) -> DataFrame {
        df!(USER => users, ITEM => vec![0_u32; users.len()], TIME => times).unwrap()
    }

    /// The starts of the validation and test events by user.
    fn starts(rule: SplitRule, events: &DataFrame) -> BTreeMap<u32, (u32, u32)> {
        let mut found = BTreeMap::new();
        rule.starts(events, |user, validation, test| {
            found.insert(user, (validation, test));
        })
        .unwrap();
        found
    }

    #[test]
    fn a_split_time_applies_to_all_users() {
        let events = frame(&[0, 0, 0, 2, 2, 5], &[1, 5, 9, 6, 7, 9]);
        let found = starts(SplitRule::Time { validation: 5, test: 9 }, &events);
        assert_eq!(found, BTreeMap::from([(0, (1, 2)), (2, (0, 2)), (5, (0, 0))]));
    }

    #[test]
    fn keys_are_checked() {
        let rule = |preprocess: Preprocess| SplitRule::new(&preprocess, SECONDS).map_err(|e| e.to_string());
        let time = |at: &str, test_at: &str| {
            let (split_at, split_test_at) = (at.to_owned(), test_at.to_owned());
            rule(Preprocess { split: SplitBy::Time, split_at, split_test_at, ..Preprocess::default() })
        };
        assert_eq!(rule(Preprocess::default()), Ok(SplitRule::LeaveOneOut));
        assert_eq!(time("10", "1970-01-02"), Ok(SplitRule::Time { validation: 10, test: 86_400 }));
        assert!(time("", "5").unwrap_err().contains("needs `preprocess.split_at`"));
        assert!(time("5", "5").unwrap_err().contains("is not before"));
        let ratio = |split_ratio: &[f64]| {
            rule(Preprocess { split: SplitBy::Ratio, split_ratio: split_ratio.to_vec(), ..Preprocess::default() })
        };
        assert_eq!(ratio(&[0.8, 0.1, 0.1]), Ok(SplitRule::Ratio { validation: 0.1, test: 0.1 }));
        assert!(ratio(&[0.8, 0.1, 0.2]).unwrap_err().contains("whose sum is 1"));
        assert!(ratio(&[1.0, 0.0, 0.0]).unwrap_err().contains("above 0"));
    }

    /// `_calcu_split_ids` of RecBole 1.2, line by line: sizes of training, validation and test.
    fn recbole(total: i64, ratios: [f64; 3]) -> [i64; 3] {
        let share = |at: usize| ratios[at] * total as f64;
        let mut sizes = [0, 1, 2].map(|at| (share(at) + 1e-9) as i64);
        sizes[0] = total - sizes[1] - sizes[2];
        for at in [2, 1] {
            if sizes[0] <= 1 {
                break;
            }
            if 0.0 < share(at) && share(at) < 1.0 - 1e-9 {
                sizes[at] += 1;
                sizes[0] -= 1;
            }
        }
        sizes
    }

    proptest! {
        #[test]
        fn shares_are_those_of_recbole(lengths in proptest::collection::vec(1..40_usize, 1..6), validation in 1..5_u32, test in 1..5_u32) {
            let (validation, test) = (f64::from(validation) / 10.0, f64::from(test) / 10.0);
            let users: Vec<u32> = (0..).zip(&lengths).flat_map(|(user, &length)| vec![user; length]).collect();
            let times: Vec<i64> = (0..users.len() as i64).collect();
            let found = starts(SplitRule::Ratio { validation, test }, &frame(&users, &times));
            for (user, &length) in lengths.iter().enumerate() {
                let [training, in_validation, _] = recbole(length as i64, [1.0 - validation - test, validation, test]);
                let expected = (training as u32, (training + in_validation) as u32);
                prop_assert_eq!(found[&(user as u32)], expected, "{} events", length);
            }
        }
    }
}
