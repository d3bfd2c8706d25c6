//! Pre-training: NIP and CMCL over mixed sequences (paper, equations 7 to 11; specification, sections 4 and 5).

use std::sync::Arc;

use candle_core::Tensor;
use mp4sr_ops::{
    Contrast, Error, GatherIndex, Result, RngKey, candidates, contrastive, contrastive_in_group, linear,
    next_item_prediction, normalize,
};

use super::config::{NipCandidates, SequenceDropout};
use super::{Encoding, Mp4sr, Projection, TokenEmbeddings};
use crate::augment::{mixup, sequence_dropout};
use crate::features::DistinctItems;
use crate::group_batch::SharedBatch;
use crate::interface::PRETRAIN;
use crate::{Batch, Query, Scorer, trace};

impl Mp4sr {
    /// The loss of pre-training on a batch without sequence dropout, mixed by `shift` `[tokens]`. Without `key` nothing is dropped.
    pub fn pretrain_loss(&self, batch: &Batch, shift: &[u32], key: Option<RngKey>) -> Result<Tensor> {
        let used = UsedItems::of(batch, self.nip_candidates(batch));
        let (h, candidates) = self.vectors_and_candidates(batch, shift, used, key)?;
        self.contrastive_loss(&h, &candidates, batch, None)
    }

    /// This process's part of [`pretrain_loss`](Self::pretrain_loss) in a group.
    fn shared_pretrain_loss(&self, shared: &SharedBatch<'_>, shift: &[u32], key: RngKey) -> Result<Tensor> {
        let (own, first, tokens) = (&shared.own, shared.first_token(), shared.all.items.len());
        let used = UsedItems::of(own, self.nip_candidates(own));
        let candidates = if self.compares_all_items() { 0..self.pretrain_items.len() } else { shared.own_samples() };
        let candidates = candidates.map(|candidate| tokens + candidate);
        let numbers = (first..first + own.items.len()).chain(candidates).map(|number| number as u32).collect();
        let shift = &shift[first..first + own.items.len()];
        let (h, candidates) = self.vectors_and_candidates(own, shift, used.numbered(numbers), Some(key))?;
        self.contrastive_loss(&h, &candidates, own, Some(shared))
    }

    /// The items that NIP compares with, 1-based. In a group, every process compares its samples with all of them, or, if they are the
    /// targets, provides those of its own samples.
    fn nip_candidates<'a>(&'a self, batch: &'a Batch) -> &'a [u32] {
        if self.compares_all_items() { &self.pretrain_items } else { &batch.targets }
    }

    /// Whether NIP compares with all items. Without NIP, encoding all items would be wasted work.
    fn compares_all_items(&self) -> bool {
        self.config.nip_candidates == NipCandidates::All && self.config.nip_weight > 0.0
    }

    /// h of the mixed sequences and normalised z of the candidates of NIP, both by modality.
    fn vectors_and_candidates(
        &self,
        batch: &Batch,
        shift: &[u32],
        UsedItems { distinct, index }: UsedItems,
        key: Option<RngKey>,
    ) -> Result<(Vec<Tensor>, Vec<Tensor>)> {
        let modalities = self.active(PRETRAIN);
        // The features of all items need no copy.
        let items = (distinct.len() < self.item_count()).then_some(&distinct[..]);
        let encoding = Encoding { modalities: &modalities, items, index: &index, key, learns: true };
        let z = self.embed(&encoding)?;
        let (rows, tokens) = (index.count(), batch.items.len());
        let each: Vec<u32> = (0..tokens as u32).collect();
        let embeddings = TokenEmbeddings { z: &z, spaces: modalities.len(), rows, tokens: &each };
        let h = self.sequences(embeddings, batch, Some(shift), None, key)?;
        let starts: Vec<usize> = (0..self.modalities.len()).map(|m| m * rows + tokens).collect();
        let candidates = candidates(&z, &starts, rows - tokens, None, true)?;
        let candidates: Vec<Tensor> = (0..starts.len())
            .map(|m| candidates.narrow(1, m * self.width, self.width)?.contiguous())
            .collect::<Result<_>>()?;
        Ok((h, candidates))
    }

    /// The loss of pre-training with sequence dropout and mixup.
    pub(super) fn augmented_loss(&self, batch: &Batch, key: RngKey) -> Result<Tensor> {
        let rho = match self.config.sequence_dropout {
            SequenceDropout::Fixed => self.config.rho,
            SequenceDropout::Uniform => self.config.rho * key.fold_in("rho").uniform(0),
        };
        let batch = sequence_dropout(batch, rho, key.fold_in("sequence dropout"))?;
        let (least, most) = self.config.mixup();
        let p = least + (most - least) * key.fold_in("mixup share").uniform(0);
        let shift = mixup(batch.items.len(), self.modalities.len(), p, key.fold_in("mixup"));
        match &self.group {
            Some(group) => self.shared_pretrain_loss(&SharedBatch::new(group, &batch), &shift, key),
            None => self.pretrain_loss(&batch, &shift, Some(key)),
        }
    }

    /// The weighted sum of NIP and CMCL. `h` belongs to the samples of `batch`, which are part of those of `shared` if that is given; `z`
    /// belongs to the candidates of NIP.
    fn contrastive_loss(
        &self,
        h: &[Tensor],
        z: &[Tensor],
        batch: &Batch,
        shared: Option<&SharedBatch<'_>>,
    ) -> Result<Tensor> {
        let (nip_weight, lambda) = (self.config.nip_weight, self.config.lambda);
        let contrast = Contrast {
            groups: Arc::new(shared.map_or(batch, |shared| shared.all).targets.clone()),
            false_negatives: self.config.false_negatives,
            temperature: self.config.temperature,
            direction: self.config.cmcl_direction,
        };
        let compare = |views: &[Tensor], targets: Option<&Tensor>, cross: bool| match shared {
            Some(shared) => contrastive_in_group(shared.group, &shared.shares, views, targets, cross, &contrast),
            None => contrastive(views, targets, cross, &contrast),
        };
        let mut terms = Vec::new();
        let mut weigh = |kind: &str, name: &str, rows: &Tensor, weight: f64| -> Result<()> {
            let mean = match shared {
                Some(shared) => (rows.sum_all()? / shared.all.count() as f64)?,
                None => rows.mean_all()?,
            };
            trace::record(|| format!("{kind}_rows.{name}"), rows);
            trace::record(|| format!("{kind}.{name}"), &mean);
            terms.push((mean * weight)?);
            Ok(())
        };
        let rows = self.compares_all_items().then(|| self.target_rows(batch)).transpose()?;
        for (m, modality) in self.modalities.iter().enumerate() {
            let views = self.views(m, h)?;
            let candidates = Some(&z[m]).filter(|_| nip_weight > 0.0);
            let mut terms = compare(&views, candidates.filter(|_| rows.is_none()), lambda > 0.0)?;
            if let (Some(candidates), Some(rows)) = (candidates, &rows) {
                terms.nip = Some(next_item_prediction(&views, candidates, rows, self.config.temperature)?);
            }
            if let Some(nip) = terms.nip {
                weigh("nip", &modality.name, &nip, nip_weight)?;
            }
            if let Some(cmcl) = terms.cmcl {
                weigh("cmcl", &modality.name, &cmcl, lambda)?;
            }
        }
        if lambda > 0.0 && self.config.projection == Projection::Off && h.len() > 1 {
            let views = h.iter().map(normalize).collect::<Result<Vec<_>>>()?;
            if let Some(cmcl) = compare(&views, None, true)?.cmcl {
                weigh("cmcl", "all", &cmcl, lambda)?;
            }
        }
        match terms.len() {
            0 => Err(Error::Msg(
                "pre-training has no loss; raise `model.mp4sr.nip_weight`, or `model.mp4sr.lambda` with two modalities"
                    .to_owned(),
            )),
            _ => Tensor::stack(&terms, 0)?.sum_all(),
        }
    }

    /// The row of every sample's target among the items that pre-training reads.
    fn target_rows(&self, batch: &Batch) -> Result<Vec<u32>> {
        let row = |target| match self.pretrain_items.binary_search(target) {
            Ok(row) => Ok(row as u32),
            Err(_) => Err(Error::Msg(format!("the target {target} is not an item that pre-training reads"))),
        };
        batch.targets.iter().map(row).collect()
    }

    /// The normalised views of the sequences in the space of modality m: the sequence vectors of all modalities through its head, its own
    /// first; without heads, only its own vector.
    fn views(&self, m: usize, h: &[Tensor]) -> Result<Vec<Tensor>> {
        let Some((weight, bias)) = self.projections.get(m) else { return Ok(vec![normalize(&h[m])?]) };
        let name = &self.modalities[m].name;
        let others = (0..h.len()).filter(|&a| a != m);
        std::iter::once(m)
            .chain(others)
            .map(|a| {
                let view = linear(&h[a], weight, bias)?;
                let from = &self.modalities[a].name;
                trace::record(|| if a == m { format!("m_hat.{name}") } else { format!("m_til.{name}.{from}") }, &view);
                normalize(&view)
            })
            .collect()
    }

    pub(super) fn pretrained_scorer(&self) -> Result<Box<dyn Scorer + '_>> {
        let z = self.scored_embeddings(PRETRAIN)?;
        let count = self.scored_items().len();
        let starts: Vec<usize> = (0..self.modalities.len()).map(|m| m * count).collect();
        let items = candidates(&z, &starts, count, None, true)?;
        Ok(Box::new(PretrainedScorer { model: self, z, items }))
    }
}

/// The distinct items among the sequences of a batch and the candidates of NIP, and the item of each use.
struct UsedItems {
    distinct: Vec<u32>,
    index: GatherIndex,
}

impl UsedItems {
    fn of(batch: &Batch, candidates: &[u32]) -> Self {
        let used: Vec<u32> = batch.items.iter().chain(candidates).copied().collect();
        let DistinctItems { rows, inverse } = DistinctItems::of(&used);
        let index = GatherIndex::new(inverse, rows.len());
        Self { distinct: rows, index }
    }

    /// The same items, whose uses have explicit numbers.
    fn numbered(self, numbers: Vec<u32>) -> Self {
        Self { index: self.index.numbered(numbers), ..self }
    }
}

/// The scorer after pre-training. A score is the sum over modalities of the cosine between the sequence through its own head and the item.
struct PretrainedScorer<'a> {
    model: &'a Mp4sr,
    /// `[modalities I, d_0]`; in a group, only for this process's items.
    z: Tensor,
    items: Tensor,
}

impl Scorer for PretrainedScorer<'_> {
    fn items(&self) -> &Tensor {
        &self.items
    }

    fn first_item(&self) -> usize {
        self.model.scored_items().start
    }

    fn queries(&self, queries: &[Query<'_>]) -> Result<Tensor> {
        let join = |h: &[Tensor]| {
            let own = (0..h.len()).map(|m| Ok(self.model.views(m, h)?.swap_remove(0)));
            Tensor::cat(&own.collect::<Result<Vec<_>>>()?, 1)
        };
        Ok(self.model.query_vectors(&self.z, None, queries, join)?.detach())
    }
}
