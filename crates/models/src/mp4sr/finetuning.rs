//! Fine-tuning: cross-entropy over all items by the sum of the modalities' similarities (paper, equation 12; specification,
//! section 6).

use candle_core::{Tensor, Var};
use mp4sr_ops::{GatherIndex, Result, RngKey, candidates, cross_entropy, normalize};

use super::{Encoding, Logits, Mp4sr, TokenEmbeddings};
use crate::interface::FINETUNE;
use crate::{Batch, Query, Scorer, trace};

impl Mp4sr {
    /// The loss of fine-tuning: cross-entropy over all items. Without `key` nothing is dropped.
    pub fn finetune_loss(&self, batch: &Batch, key: Option<RngKey>) -> Result<Tensor> {
        let (tokens, items) = (batch.items.len(), self.item_count());
        let used = batch.items.iter().map(|i| i - 1).chain(0..items as u32).collect();
        let uses = GatherIndex::new(used, items);
        let modalities = &self.logit_modalities;
        let z = self.embed(&Encoding { modalities, items: None, uses: &uses, key, learns: true })?;
        let each: Vec<u32> = (0..tokens as u32).collect();
        let embeddings = TokenEmbeddings { z: &z, rows: uses.count(), tokens: &each };
        let ids = self.id_embedding.as_ref().map(Var::as_tensor);
        let h = self.sequences(embeddings, batch, None, ids, key)?;
        let (sequences, candidates) = (self.logit_side(&h)?, self.candidates(&z, uses.count(), tokens, ids)?);
        let columns: Vec<u32> = batch.targets.iter().map(|t| t - 1).collect();
        cross_entropy(&sequences, &candidates, &columns, self.logit_scale() as f32)?.mean_all()
    }

    fn logit_scale(&self) -> f64 {
        match self.config.logits {
            Logits::Cosine => 1.0 / self.config.temperature,
            Logits::Dot => 1.0,
        }
    }

    /// The modalities of the logits side by side, so that one product sums their similarities: `[rows, modalities d_0]`.
    fn logit_side(&self, vectors: &[Tensor]) -> Result<Tensor> {
        let side = |vector: &Tensor| match self.config.logits {
            Logits::Cosine => normalize(vector),
            Logits::Dot => Ok(vector.clone()),
        };
        Tensor::cat(&vectors.iter().map(side).collect::<Result<Vec<_>>>()?, 1)
    }

    /// F + E of every item and modality of the logits, `[I, modalities d_0]`. `z` stacks the modalities' embeddings, `rows` of
    /// them each, the items from row `first` on.
    fn candidates(&self, z: &Tensor, rows: usize, first: usize, ids: Option<&Tensor>) -> Result<Tensor> {
        let items = self.item_count();
        let starts: Vec<usize> = (0..z.dim(0)? / rows).map(|m| m * rows + first).collect();
        if trace::is_on() {
            for (start, &m) in starts.iter().zip(&self.logit_modalities) {
                let raw = candidates(z, &[*start], items, ids, false)?;
                trace::record(|| format!("candidates.{}", self.modalities[m].name), &raw);
            }
        }
        candidates(z, &starts, items, ids, self.config.logits == Logits::Cosine)
    }

    /// h of the histories of queries without dropout or mixup, a tensor `[B, d_0]` per modality. `z` has all items' embeddings.
    pub(super) fn history_vectors(
        &self,
        z: &Tensor,
        ids: Option<&Tensor>,
        queries: &[Query<'_>],
    ) -> Result<Vec<Tensor>> {
        let batch = Batch::of_queries(queries, self.max_sequence_length)?;
        let tokens: Vec<u32> = batch.items.iter().map(|i| i - 1).collect();
        let embeddings = TokenEmbeddings { z, rows: self.item_count(), tokens: &tokens };
        self.sequences(embeddings, &batch, None, ids, None)
    }

    pub(super) fn finetuned_scorer(&self) -> Result<Box<dyn Scorer + '_>> {
        let z = self.item_embeddings(FINETUNE, false)?;
        let ids = self.id_embedding.as_ref().map(|table| table.as_tensor().detach());
        let items = self.candidates(&z, self.item_count(), 0, ids.as_ref())?;
        Ok(Box::new(FinetunedScorer { model: self, z, ids, items }))
    }
}

/// Scores after fine-tuning are its logits.
struct FinetunedScorer<'a> {
    model: &'a Mp4sr,
    /// `[modalities I, d_0]`.
    z: Tensor,
    ids: Option<Tensor>,
    items: Tensor,
}

impl Scorer for FinetunedScorer<'_> {
    fn items(&self) -> &Tensor {
        &self.items
    }

    fn queries(&self, queries: &[Query<'_>]) -> Result<Tensor> {
        let h = self.model.history_vectors(&self.z, self.ids.as_ref(), queries)?;
        Ok((self.model.logit_side(&h)? * self.model.logit_scale())?.detach())
    }
}
