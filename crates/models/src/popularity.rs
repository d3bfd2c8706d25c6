//! Popularity: an item's score is its number of training events, or of the latest of them. It is the baseline that every model must beat.

use candle_core::{DType, Device, Tensor};
use mp4sr_ops::{Error, Result, RngKey};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::recipe::{Reads, Recipe, Section, Supports};
use crate::{Batch, Data, Initial, Model, Parameters, Phase, Query, Scorer, Step, TrainingSequences};

/// How popularity is named and built.
pub static RECIPE: Recipe = Recipe {
    name: "popularity",
    title: "popularity",
    summary: "Items by their number of training events.",
    paper: "",
    reads: Reads { features: false, transformer: false, categories: &[] },
    supports: Supports::NOTHING,
    section: Section::of::<Config>(),
    phase_reads: |_, _, _| true,
    defaults: "",
    presets: &[],
    grid: &[],
    renamed: &[],
    item_tables: |_| None,
    check: |_| Ok(()),
    phases: |_| Ok(PHASES.to_vec()),
    build: |settings, data: Data, _| {
        Ok(Box::new(Popularity::new(settings.own()?, data.items, &data.training, &data.device)?))
    },
};

/// `[model.popularity]`: the events that are counted.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The share of the training events, the most recent ones, that are counted; 1 counts all of them. Less than 1 needs data with times;
    /// all training events then decide between items with equal counts.
    #[schemars(range(min = 0.000_001, max = 1.0))]
    pub latest_share: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self { latest_share: 1.0 }
    }
}

/// Counts the training events of items `1..=items`, but only the latest events, the share `latest_share` of all, and those at the same time
/// as the earliest of these. It is an error, which names the share's `key`, if the share is less than 1 and the data has no timestamps.
pub fn count_latest(training: &TrainingSequences, items: usize, latest_share: f64, key: &str) -> Result<Vec<u32>> {
    let mut counts = vec![0; items];
    let mut count = |item: u32| counts[item as usize - 1] += 1;
    if latest_share >= 1.0 {
        training.items.iter().copied().for_each(count);
        return Ok(counts);
    }
    let times = training.times.as_ref().ok_or_else(|| {
        Error::Msg(format!(
            "`{key}` = {latest_share} needs the times of events, and this dataset has only their order; set it to 1, or preprocess \
             data with timestamps"
        ))
    })?;
    // Without a tolerance, 0.07 of 100 events would be 8 of them.
    let share = latest_share * times.len() as f64;
    let counted = (share * (1.0 - 1e-12)).ceil() as usize;
    let mut latest_first = times.clone();
    latest_first.sort_unstable_by(|a, b| b.cmp(a));
    let earliest = latest_first.get(counted.max(1) - 1);
    let is_counted = |time: &i64| earliest.is_some_and(|earliest| time >= earliest);
    training.items.iter().zip(times).filter(|(_, time)| is_counted(time)).for_each(|(&item, _)| count(item));
    Ok(counts)
}

/// The scores of items by popularity: the counts of [`count_latest`]. If not all events are counted, a fraction of at most one half is
/// added, which orders items with equal counts by the number of all their training events.
pub fn popularity_scores(training: &TrainingSequences, items: usize, latest_share: f64, key: &str) -> Result<Vec<f32>> {
    let latest = count_latest(training, items, latest_share, key)?;
    if latest_share >= 1.0 {
        return Ok(latest.into_iter().map(|count| count as f32).collect());
    }
    let all = count_latest(training, items, 1.0, key)?;
    let most = f64::from(all.iter().copied().max().unwrap_or(0).max(1));
    let score = |(latest, all): (u32, u32)| (f64::from(latest) + 0.5 * f64::from(all) / most) as f32;
    Ok(latest.into_iter().zip(all).map(score).collect())
}

const PHASES: [Phase; 1] = [Phase::untrained()];

/// Ranks items by their number of training events, or of the latest of them.
#[derive(Debug)]
pub struct Popularity {
    parameters: Parameters,
}

impl Popularity {
    /// Counts the events of items `1..=items` in the training sequences.
    pub fn new(config: Config, items: usize, training: &TrainingSequences, device: &Device) -> Result<Self> {
        let counts = popularity_scores(training, items, config.latest_share, "model.popularity.latest_share")?;
        let mut parameters = Parameters::new(device);
        parameters.add("counts", &[items, 1], Initial::Zeros, RngKey::new(0))?;
        parameters.set("counts", &counts, &[items, 1])?;
        Ok(Self { parameters })
    }
}

impl Model for Popularity {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn phases(&self) -> &[Phase] {
        &PHASES
    }

    fn loss(&self, _: &Phase, _: &Batch, _: &Step) -> Result<Tensor> {
        Err(Error::Msg("popularity has no loss".to_owned()))
    }

    fn scorer(&self, _: &Phase) -> Result<Box<dyn Scorer + '_>> {
        let counts = self.parameters.get("counts").ok_or_else(|| Error::Msg("popularity has no counts".to_owned()))?;
        Ok(Box::new(Counts(counts)))
    }

    fn is_sequential(&self) -> bool {
        false
    }
}

struct Counts(Tensor);

impl Scorer for Counts {
    fn items(&self) -> &Tensor {
        &self.0
    }

    fn queries(&self, queries: &[Query<'_>]) -> Result<Tensor> {
        Tensor::ones((queries.len(), 1), DType::F32, self.0.device())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    /// Items 1 2 1 | 2 3 | 3, whose events happen at 10 20 50 | 30 40 | 40.
    fn training() -> TrainingSequences {
        let users: [&[u32]; 3] = [&[1, 2, 1], &[2, 3], &[3]];
        TrainingSequences { times: Some(vec![10, 20, 50, 30, 40, 40]), ..TrainingSequences::new(users) }
    }

    #[test]
    fn all_events_decide_between_equal_counts_of_the_latest() {
        // The latest event is that of item 1; items 2 and 3 have two events each, and item 4 has none.
        let scores = popularity_scores(&training(), 4, 1.0 / 6.0, "key").unwrap();
        assert_eq!(scores, [1.5, 0.5, 0.5, 0.0]);
        assert_eq!(popularity_scores(&training(), 4, 1.0, "key").unwrap(), [2.0, 2.0, 2.0, 0.0]);
    }

    #[test]
    fn the_latest_events_are_counted_with_all_of_the_same_time() {
        let counts = |share: f64| count_latest(&training(), 4, share, "key").unwrap();
        assert_eq!(counts(1.0), [2, 2, 2, 0]);
        assert_eq!(counts(0.1), [1, 0, 0, 0], "one event of six, rounded up");
        assert_eq!(counts(0.3), [1, 0, 2, 0], "two events, and a third one at the time of the second");
        assert_eq!(counts(0.6), [1, 1, 2, 0]);
    }

    #[test]
    fn a_share_that_is_a_whole_number_of_events_is_not_rounded_up() {
        // As floating-point numbers, 0.07 times 100 is more than 7.
        let training = TrainingSequences { times: Some((0..100).collect()), ..TrainingSequences::new([&[1; 100][..]]) };
        assert_eq!(count_latest(&training, 1, 0.07, "key").unwrap(), [7]);
        assert_eq!(count_latest(&training, 1, 0.071, "key").unwrap(), [8]);
    }

    #[test]
    fn without_a_clock_only_all_events_can_be_counted() {
        let training = TrainingSequences { times: None, ..training() };
        assert_eq!(count_latest(&training, 3, 1.0, "key").unwrap(), [2, 2, 2]);
        let error = Popularity::new(Config { latest_share: 0.5 }, 3, &training, &Device::Cpu).unwrap_err().to_string();
        assert!(error.contains("`model.popularity.latest_share` = 0.5"), "{error}");
        let empty = TrainingSequences { times: Some(Vec::new()), ..TrainingSequences::new([]) };
        assert_eq!(count_latest(&empty, 2, 0.5, "key").unwrap(), [0, 0]);
    }
}
