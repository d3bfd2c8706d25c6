//! Popularity: an item's score is its number of training events. The reference that every model must beat.

use candle_core::{Device, Tensor};
use mp4sr_ops::{Error, Result, RngKey};

use crate::{Batch, Initial, Model, Parameters, Phase, Scorer};

/// Items by their number of training events.
#[derive(Debug)]
pub struct Popularity {
    parameters: Parameters,
}

impl Popularity {
    /// Counts events of items `1..=items` in training sequences.
    pub fn new<'a>(items: usize, training: impl IntoIterator<Item = &'a [u32]>) -> Result<Self> {
        let mut counts = vec![0.0f32; items];
        for item in training.into_iter().flatten() {
            counts[*item as usize - 1] += 1.0;
        }
        let mut parameters = Parameters::default();
        parameters.add("counts", &[items, 1], Initial::Zeros, RngKey::new(0))?;
        parameters.set("counts", counts, &[items, 1])?;
        Ok(Self { parameters })
    }
}

impl Model for Popularity {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn phases(&self) -> &'static [Phase] {
        &[]
    }

    fn uses(&self, _: Phase, _: &str) -> bool {
        true
    }

    fn loss(&self, _: Phase, _: &Batch, _: RngKey) -> Result<Tensor> {
        Err(Error::Msg("popularity has no loss".to_owned()))
    }

    fn scorer(&self, _: Phase) -> Result<Box<dyn Scorer + '_>> {
        let counts = self.parameters.get("counts").ok_or_else(|| Error::Msg("popularity has no counts".to_owned()))?;
        Ok(Box::new(Counts(counts.as_tensor().clone())))
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

    fn sequences(&self, histories: &[&[u32]]) -> Result<Tensor> {
        Tensor::ones((histories.len(), 1), candle_core::DType::F32, &Device::Cpu)
    }
}
