//! Popularity: an item's score is its number of training events. It is the baseline that every model must beat.

use candle_core::{DType, Device, Tensor};
use mp4sr_ops::{Error, Result, RngKey};

use crate::recipe::{NoKeys, Reads, Recipe, Section, Supports};
use crate::{Batch, Data, Initial, Model, Parameters, Phase, Query, Scorer, Step, TrainingSequences};

/// How popularity is named and built.
pub static RECIPE: Recipe = Recipe {
    name: "popularity",
    title: "popularity",
    summary: "Items by their number of training events.",
    paper: "",
    reads: Reads { features: false, transformer: false, categories: &[] },
    supports: Supports::NOTHING,
    section: Section::of::<NoKeys>(),
    phase_reads: |_, _, _| true,
    defaults: "",
    presets: &[],
    grid: &[],
    renamed: &[],
    item_tables: |_| None,
    check: |_| Ok(()),
    phases: |_| Ok(PHASES.to_vec()),
    build: |_, data: Data, _| Ok(Box::new(Popularity::new(data.items, &data.training, &data.device)?)),
};

const PHASES: [Phase; 1] = [Phase::untrained()];

/// Ranks items by their number of training events.
#[derive(Debug)]
pub struct Popularity {
    parameters: Parameters,
}

impl Popularity {
    /// Counts the events of items `1..=items` in the training parts.
    pub fn new(items: usize, training: &TrainingSequences, device: &Device) -> Result<Self> {
        let mut counts = vec![0.0f32; items];
        for item in &training.items {
            counts[*item as usize - 1] += 1.0;
        }
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
