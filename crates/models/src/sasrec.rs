//! SASRec: a causal transformer over item embeddings, cross-entropy over all items by inner product.
//!
//! Kang and McAuley, Self-Attentive Sequential Recommendation, 2018 (arXiv 1808.09781), as RecBole has it: LayerNorm after each
//! residual sum, GELU, a softmax over the whole catalogue in place of one sampled negative. RecBole's padding row, which is one
//! more class of its softmax, has no counterpart: nothing is padded here.

use candle_core::{Tensor, Var};
use mp4sr_ops::{Error, Result, RngKey, cross_entropy};

use crate::{Batch, Initial, Model, Parameters, Phase, Scorer, Trace, Transformer, TransformerConfig};

/// The model with its parameters.
#[derive(Debug)]
pub struct SasRec {
    config: TransformerConfig,
    parameters: Parameters,
    /// `[I, d_0]`: row i-1 is item i.
    items: Var,
    transformer: Transformer,
}

impl SasRec {
    /// A fresh model over `items` items whose start is a function of `key`.
    pub fn new(config: TransformerConfig, items: usize, key: RngKey) -> Result<Self> {
        let key = key.fold_in("initial");
        let mut parameters = Parameters::default();
        let table = parameters.add("item_embedding", &[items, config.width], Initial::Normal, key)?;
        let transformer = Transformer::new(&mut parameters, config, key)?;
        Ok(Self { config, parameters, items: table, transformer })
    }

    /// The vector after the last item of each history, `[B, d_0]`.
    fn sequences(&self, batch: &Batch, key: Option<RngKey>) -> Result<Tensor> {
        let rows: Vec<u32> = batch.items.iter().map(|item| item - 1).collect();
        self.transformer.forward((self.items.as_tensor(), &rows), None, &batch.offsets, key, &Trace::OFF)
    }

    /// Cross-entropy of the next item; without `key` nothing is dropped.
    pub fn finetune_loss(&self, batch: &Batch, key: Option<RngKey>) -> Result<Tensor> {
        let targets: Vec<u32> = batch.targets.iter().map(|target| target - 1).collect();
        cross_entropy(&self.sequences(batch, key)?, self.items.as_tensor(), &targets, 1.0)?.mean_all()
    }
}

impl Model for SasRec {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn phases(&self) -> &'static [Phase] {
        &[Phase::Finetune]
    }

    fn uses(&self, _: Phase, _: &str) -> bool {
        true
    }

    fn loss(&self, phase: Phase, batch: &Batch, key: RngKey) -> Result<Tensor> {
        match phase {
            Phase::Pretrain => Err(Error::Msg("SASRec has no pre-training".to_owned())),
            Phase::Finetune => self.finetune_loss(batch, Some(key)),
        }
    }

    fn scorer(&self, _: Phase) -> Result<Box<dyn Scorer + '_>> {
        Ok(Box::new(SasRecScorer { model: self, items: self.items.as_tensor().detach() }))
    }

    fn is_sequential(&self) -> bool {
        true
    }
}

struct SasRecScorer<'a> {
    model: &'a SasRec,
    items: Tensor,
}

impl Scorer for SasRecScorer<'_> {
    fn items(&self) -> &Tensor {
        &self.items
    }

    fn sequences(&self, histories: &[&[u32]]) -> Result<Tensor> {
        let batch = Batch::new(histories.iter().map(|history| (*history, 1)), self.model.config.positions)?;
        Ok(self.model.sequences(&batch, None)?.detach())
    }
}
