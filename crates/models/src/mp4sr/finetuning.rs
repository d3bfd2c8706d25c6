//! Fine-tuning: cross-entropy over all items by the sum of the modalities' similarities (paper, equations 12 and 13; specification,
//! section 6).

use std::ops::Range;

use candle_core::{Tensor, Var};
use mp4sr_ops::{
    GatherIndex, Result, RngKey, Rows, candidates, cross_entropy, gather, normalize, sampled_cross_entropy,
};

use super::{Encoding, ID_TABLE, Logits, Mp4sr, TokenEmbeddings};
use crate::candidates::add_history;
use crate::features::DistinctItems;
use crate::group_batch::{SharedBatch, TokenRows};
use crate::interface::FINETUNE;
use crate::{Batch, Query, SampledItems, Scorer, trace};

/// The items of a step.
struct StepItems {
    /// The rows of the items that are encoded, from 0, the candidates first; `None` if all items are encoded, in their order.
    encoded: Option<Vec<u32>>,
    /// The number of candidates.
    count: usize,
    /// `[tokens]`: the index of each token's item among those that are encoded.
    tokens: Vec<u32>,
    /// `[B]`: the index of each target among the candidates.
    targets: Vec<u32>,
    /// `[count]`: the values that are added to the candidates' logits, if the candidates are a sample.
    shifts: Option<Vec<f32>>,
}

impl Mp4sr {
    /// The loss of fine-tuning: cross-entropy over all items, or over a sample of them. Without `key` nothing is dropped or drawn.
    pub fn finetune_loss(&self, batch: &Batch, key: Option<RngKey>) -> Result<Tensor> {
        let StepItems { encoded, count, tokens, targets, shifts } = self.step_items(batch, key);
        let encodings = encoded.as_ref().map_or(self.item_count(), Vec::len);
        let index = GatherIndex::new(tokens.iter().copied().chain(0..count as u32).collect(), encodings);
        let modalities = &self.logit_modalities;
        let z = self.embed(&Encoding { modalities, items: encoded.as_deref(), index: &index, key, learns: true })?;
        let each: Vec<u32> = (0..tokens.len() as u32).collect();
        let embeddings = TokenEmbeddings { z: &z, spaces: modalities.len(), rows: index.count(), tokens: &each };
        let ids = self.id_embedding.as_ref().map(|table| step_ids(table, encoded.as_deref())).transpose()?;
        let rows_of_ids =
            |ids: &Tensor| TokenRows { table: ids.clone(), rows: tokens.iter().map(|row| row + 1).collect() };
        let token_ids = ids.as_ref().map(|ids| self.drop_ids(rows_of_ids(ids), 0, key)).transpose()?;
        let id_rows = token_ids.as_ref().map(|ids| Rows::new(&ids.table, &ids.rows));
        let h = self.sequences(embeddings, batch, None, id_rows, key)?;
        let ids = ids.map(|ids| ids.narrow(0, 0, count + 1)).transpose()?;
        let rows = tokens.len()..tokens.len() + count;
        let (sequences, candidates) = (self.logit_side(&h)?, self.candidates(&z, index.count(), rows, ids.as_ref())?);
        let scale = self.logit_scale() as f32;
        match shifts {
            Some(shifts) => sampled_cross_entropy(&sequences, &candidates, &targets, &shifts, scale)?.mean_all(),
            None => cross_entropy(&sequences, &candidates, &targets, scale)?.mean_all(),
        }
    }

    /// All items; or, if the model has a sampler, a sample of them and the items of the batch's histories.
    fn step_items(&self, batch: &Batch, key: Option<RngKey>) -> StepItems {
        let Some((sampler, key)) = self.candidate_sampler.as_ref().zip(key) else {
            return StepItems {
                encoded: None,
                count: self.item_count(),
                tokens: batch.items.iter().map(|item| item - 1).collect(),
                targets: batch.targets.iter().map(|target| target - 1).collect(),
                shifts: None,
            };
        };
        let SampledItems { items: mut encoded, targets, shifts } =
            sampler.draw(&batch.targets, key.fold_in("candidates"));
        let count = encoded.len();
        let tokens = add_history(&mut encoded, batch);
        StepItems { encoded: Some(encoded), count, tokens, targets, shifts: Some(shifts) }
    }

    /// This process's part of [`finetune_loss`](Self::finetune_loss) in a group: it encodes the items of its own tokens and its share of
    /// the catalogue.
    pub(super) fn shared_finetune_loss(&self, shared: &SharedBatch<'_>, key: RngKey) -> Result<Tensor> {
        let (own, group, first) = (&shared.own, shared.group, shared.first_token());
        let tokens = own.items.len();
        let block = group.share(self.item_count());
        let candidates = block.clone().map(|item| item as u32);
        let used: Vec<u32> = own.items.iter().map(|i| i - 1).chain(candidates).collect();
        let distinct = DistinctItems::of_rows(&used);
        let blocks = block.clone().map(|item| shared.all.items.len() + item);
        let numbers = (first..first + tokens).chain(blocks).map(|number| number as u32).collect();
        let index = GatherIndex::new(distinct.inverse, distinct.rows.len()).numbered(numbers);
        let items = Some(&distinct.rows[..]);
        let encoding =
            Encoding { modalities: &self.logit_modalities, items, index: &index, key: Some(key), learns: true };
        let z = self.embed(&encoding)?;
        let each: Vec<u32> = (0..tokens as u32).collect();
        let spaces = self.logit_modalities.len();
        let embeddings = TokenEmbeddings { z: &z, spaces, rows: index.count(), tokens: &each };
        let ids = self.id_embedding.as_ref().map(Var::as_tensor);
        let fetched = |ids| self.drop_ids(shared.token_rows(ids, self.id_rows(), 1)?, first, Some(key));
        let token_ids = ids.map(fetched).transpose()?;
        let id_rows = token_ids.as_ref().map(|ids| Rows::new(&ids.table, &ids.rows));
        let h = self.sequences(embeddings, own, None, id_rows, Some(key))?;
        let rows = tokens..tokens + block.len();
        let candidates = self.candidates(&z, index.count(), rows, ids)?;
        shared.cross_entropy(&self.logit_side(&h)?, &candidates, &block, self.logit_scale() as f32)
    }

    /// Replaces the id embeddings of dropped tokens by zeros. `first` is the number of the first token in the batch. Without `key` nothing is
    /// dropped.
    fn drop_ids(&self, ids: TokenRows, first: usize, key: Option<RngKey>) -> Result<TokenRows> {
        let probability = self.config.id_dropout;
        let Some(key) = key.filter(|_| probability > 0.0) else { return Ok(ids) };
        let key = key.fold_in("id_dropout");
        let TokenRows { table, mut rows } = ids;
        let (zero, width) = table.dims2()?;
        for (number, row) in (first as u64..).zip(&mut rows) {
            if key.uniform(number) < probability {
                *row = zero as u32;
            }
        }
        let zeros = Tensor::zeros((1, width), table.dtype(), table.device())?;
        Ok(TokenRows { table: Tensor::cat(&[&table, &zeros], 0)?, rows })
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

    /// F + E of items for the modalities of the logits, `[items, modalities d_0]`. `z` stacks the modalities' embeddings, `count` rows
    /// each, of which `rows` belong to the items. The last rows of `ids` belong to them too.
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

    /// The vectors of queries. `join` computes them from h of the histories, a tensor `[B, d_0]` per modality, without dropout or mixup.
    /// `z` has the embeddings of the items that this process scores, and `ids` its rows of the table of ids.
    pub(super) fn query_vectors(
        &self,
        z: &Tensor,
        ids: Option<&Tensor>,
        queries: &[Query<'_>],
        join: impl Fn(&[Tensor]) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let batch = Batch::of_queries(queries, self.max_sequence_length)?;
        let count = self.scored_items().len();
        let spaces = z.dim(0)? / count;
        let Some(group) = &self.group else {
            let tokens: Vec<u32> = batch.items.iter().map(|i| i - 1).collect();
            let embeddings = TokenEmbeddings { z, spaces, rows: count, tokens: &tokens };
            let ids = ids.map(|ids| Rows::new(ids, &batch.items));
            return join(&self.sequences(embeddings, &batch, None, ids, None)?);
        };
        let (shared, owned) = (SharedBatch::new(group, &batch), group.shares(self.item_count()));
        let of_space = |m: usize| shared.token_rows(&z.narrow(0, m * count, count)?, &owned, 0);
        let fetched = (0..spaces).map(of_space).collect::<Result<Vec<_>>>()?;
        let tables: Vec<&Tensor> = fetched.iter().map(|rows| &rows.table).collect();
        let (z, tokens) = (Tensor::cat(&tables, 0)?, fetched.first().map_or(&[][..], |rows| &rows.rows));
        let embeddings =
            TokenEmbeddings { z: &z, spaces, rows: tables.first().map_or(Ok(0), |own| own.dim(0))?, tokens };
        let ids = ids.map(|ids| shared.token_rows(ids, self.id_rows(), 1)).transpose()?;
        let ids = ids.as_ref().map(|ids| Rows::new(&ids.table, &ids.rows));
        shared.gather_queries(&join(&self.sequences(embeddings, &shared.own, None, ids, None)?)?)
    }

    pub(super) fn finetuned_scorer(&self) -> Result<Box<dyn Scorer + '_>> {
        let z = self.scored_embeddings(FINETUNE)?;
        let ids = self.id_embedding.as_ref().map(|table| table.as_tensor().detach());
        let count = self.scored_items().len();
        let items = self.candidates(&z, count, 0..count, ids.as_ref())?;
        Ok(Box::new(FinetunedScorer { model: self, z, ids, items }))
    }
}

/// The id embeddings of the encoded items, after the row of the padding: `[encoded + 1, d_0]`.
fn step_ids(table: &Var, encoded: Option<&[u32]>) -> Result<Tensor> {
    match encoded {
        Some(encoded) => {
            let rows: Vec<u32> = std::iter::once(0).chain(encoded.iter().map(|item| item + 1)).collect();
            gather(table, &rows)
        }
        None => Ok(table.as_tensor().clone()),
    }
}

/// The scorer after fine-tuning, whose scores are the logits.
struct FinetunedScorer<'a> {
    model: &'a Mp4sr,
    /// `[modalities I, d_0]`; in a group, only for this process's items.
    z: Tensor,
    /// The rows of the table of ids that this process has.
    ids: Option<Tensor>,
    items: Tensor,
}

impl Scorer for FinetunedScorer<'_> {
    fn items(&self) -> &Tensor {
        &self.items
    }

    fn first_item(&self) -> usize {
        self.model.scored_items().start
    }

    fn queries(&self, queries: &[Query<'_>]) -> Result<Tensor> {
        let join = |h: &[Tensor]| self.model.logit_side(h)? * self.model.logit_scale();
        Ok(self.model.query_vectors(&self.z, self.ids.as_ref(), queries, join)?.detach())
    }
}
