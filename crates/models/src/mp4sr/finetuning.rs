//! Fine-tuning: cross-entropy over all items by the sum of the modalities' similarities (paper, equation 12; specification,
//! section 6).

use std::ops::Range;

use candle_core::{Tensor, Var};
use mp4sr_ops::{GatherIndex, Result, RngKey, Rows, candidates, cross_entropy, normalize};

use super::{Encoding, ID_TABLE, Logits, Mp4sr, TokenEmbeddings};
use crate::features::DistinctItems;
use crate::group_batch::{SharedBatch, all_rows};
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
        let spaces = self.logit_modalities.len();
        let embeddings = TokenEmbeddings { z: &z, spaces, rows: uses.count(), tokens: &each };
        let ids = self.id_embedding.as_ref().map(Var::as_tensor);
        let id_rows = ids.map(|ids| Rows::new(ids, &batch.items));
        let h = self.sequences(embeddings, batch, None, id_rows, key)?;
        let rows = tokens..tokens + items;
        let (sequences, candidates) = (self.logit_side(&h)?, self.candidates(&z, uses.count(), rows, ids)?);
        let columns: Vec<u32> = batch.targets.iter().map(|t| t - 1).collect();
        cross_entropy(&sequences, &candidates, &columns, self.logit_scale() as f32)?.mean_all()
    }

    /// What this process of a group adds to [`finetune_loss`](Self::finetune_loss): it encodes the items of its own tokens and its share
    /// of the catalogue.
    pub(super) fn shared_finetune_loss(&self, shared: &SharedBatch<'_>, key: RngKey) -> Result<Tensor> {
        let (own, group, first) = (&shared.own, shared.group, shared.first_token());
        let tokens = own.items.len();
        let block = group.share(self.item_count());
        let candidates = block.clone().map(|item| item as u32);
        let used: Vec<u32> = own.items.iter().map(|i| i - 1).chain(candidates).collect();
        let distinct = DistinctItems::of_rows(&used);
        let blocks = block.clone().map(|item| shared.all.items.len() + item);
        let numbers = (first..first + tokens).chain(blocks).map(|number| number as u32).collect();
        let uses = GatherIndex::new(distinct.uses, distinct.rows.len()).numbered(numbers);
        let items = Some(&distinct.rows[..]);
        let encoding =
            Encoding { modalities: &self.logit_modalities, items, uses: &uses, key: Some(key), learns: true };
        let z = self.embed(&encoding)?;
        let each: Vec<u32> = (0..tokens as u32).collect();
        let spaces = self.logit_modalities.len();
        let embeddings = TokenEmbeddings { z: &z, spaces, rows: uses.count(), tokens: &each };
        let ids = self.id_embedding.as_ref().map(Var::as_tensor);
        let id_rows = ids.map(|ids| shared.token_rows(ids, self.id_rows(), 1)).transpose()?;
        let id_rows = id_rows.as_ref().map(|ids| Rows::new(&ids.table, &ids.rows));
        let h = self.sequences(embeddings, own, None, id_rows, Some(key))?;
        let rows = tokens..tokens + block.len();
        let candidates = self.candidates(&z, uses.count(), rows, ids)?;
        shared.cross_entropy(&self.logit_side(&h)?, &candidates, &block, self.logit_scale() as f32)
    }

    /// The rows of the table of ids that each process of a group has.
    fn id_rows(&self) -> &[Range<usize>] {
        self.parameters.table_rows(ID_TABLE).unwrap_or_default()
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

    /// F + E of items and modalities of the logits, `[items, modalities d_0]`. `z` stacks the modalities' embeddings, `count` of
    /// them each, of which `rows` are the items'. The last rows of `ids` are theirs.
    fn candidates(&self, z: &Tensor, count: usize, rows: Range<usize>, ids: Option<&Tensor>) -> Result<Tensor> {
        let items = rows.len();
        let starts: Vec<usize> = (0..z.dim(0)? / count).map(|m| m * count + rows.start).collect();
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
        let spaces = z.dim(0)? / self.item_count();
        let embeddings = TokenEmbeddings { z, spaces, rows: self.item_count(), tokens: &tokens };
        self.sequences(embeddings, &batch, None, ids.map(|ids| Rows::new(ids, &batch.items)), None)
    }

    pub(super) fn finetuned_scorer(&self) -> Result<Box<dyn Scorer + '_>> {
        let z = self.item_embeddings(FINETUNE, false)?;
        let own = self.id_embedding.as_ref().map(|table| table.as_tensor().detach());
        let ids = match (own, &self.group) {
            (Some(own), Some(group)) => Some(all_rows(group, &own, self.id_rows())?),
            (own, _) => own,
        };
        let items = self.candidates(&z, self.item_count(), 0..self.item_count(), ids.as_ref())?;
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
