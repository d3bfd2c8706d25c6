//! MP4SR: M2SE with modality-specific next item prediction and cross-modality contrastive learning.
//!
//! Paper: "Multimodal Pre-training Framework for Sequential Recommendation via Contrastive Learning" (arXiv 2303.11879). Item encoders:
//! equations 3 to 5. Mixup and transformer: section 3.3. NIP and CMCL: equations 7 to 11. Fine-tuning: equations 12 and 13. Where the paper and the
//! authors' released code (github.com/lzz0007/MP4SR) differ, a key of [`Config`] selects the reading.
//!
//! Sequences are packed, never padded. Every item is encoded once per step: in pre-training those of the batch, in fine-tuning also the
//! candidates, which are the catalogue or a sample of it.

mod config;
mod finetuning;
mod pretraining;
mod recipe;

pub use config::{Config, Logits, NipCandidates, PoolingRows, Projection, SequenceDropout};
pub use recipe::RECIPE;

use std::ops::Range;

use candle_core::{Device, Tensor, Var};
use mp4sr_ops::{Dropout, Error, GatherIndex, MixtureSizes, ProcessGroup, Result, RngKey, Rows, gather};

use crate::group_batch::SharedBatch;
use crate::interface::PRETRAIN;
use crate::{
    Batch, CandidateSampler, Initial, ItemEncoder, Modality, Model, Parameters, Phase, Scorer, Step, Transformer,
    TransformerConfig, trace,
};

/// The name of the table of id embeddings.
const ID_TABLE: &str = "id_embedding";

/// The model with its parameters and the items' features.
#[derive(Debug)]
pub struct Mp4sr {
    config: Config,
    max_sequence_length: usize,
    width: usize,
    phases: Vec<Phase>,
    modalities: Vec<Modality>,
    /// The indices of the modalities in the logits.
    logit_modalities: Vec<usize>,
    parameters: Parameters,
    encoders: Vec<ItemEncoder>,
    transformer: Transformer,
    projections: Vec<(Var, Var)>,
    id_embedding: Option<Var>,
    /// The sampler of the candidates of fine-tuning; without it, all items are candidates.
    candidate_sampler: Option<CandidateSampler>,
    /// The items that pre-training reads, 1-based, ascending.
    pretrain_items: Vec<u32>,
    group: Option<ProcessGroup>,
}

/// The embeddings of items by modality, and the rows of them that the tokens of a batch use.
#[derive(Clone, Copy)]
struct TokenEmbeddings<'a> {
    /// `[modalities rows, d_0]`: `rows` of each modality, one modality after the other.
    z: &'a Tensor,
    /// The number of modalities.
    spaces: usize,
    /// The number of rows per modality.
    rows: usize,
    /// `[tokens]`: the row of each token within a modality.
    tokens: &'a [u32],
}

/// The items to encode in a step, and how.
struct Encoding<'a> {
    /// The indices of the modalities.
    modalities: &'a [usize],
    /// The items, 0-based; `None` for all items.
    items: Option<&'a [u32]>,
    /// The uses of these items, with explicit numbers if they are a share of a larger batch.
    index: &'a GatherIndex,
    /// The key of the dropout; `None` for no dropout.
    key: Option<RngKey>,
    /// Whether the result has a gradient.
    learns: bool,
}

impl Mp4sr {
    /// Creates a model whose initial parameters are determined by `key`.
    pub fn new(
        config: Config,
        transformer: TransformerConfig,
        modalities: Vec<Modality>,
        device: &Device,
        key: RngKey,
    ) -> Result<Self> {
        Self::in_group(config, transformer, modalities, device, key, None)
    }

    /// Creates this process's share of a model that the processes of a group compute together: all of it except the ids of other processes'
    /// items.
    pub fn in_group(
        config: Config,
        transformer: TransformerConfig,
        modalities: Vec<Modality>,
        device: &Device,
        key: RngKey,
        group: Option<ProcessGroup>,
    ) -> Result<Self> {
        let key = key.fold_in("initial");
        let mut parameters = Parameters::new(device);
        let width = transformer.width;
        let items = modalities.first().map_or(0, |m| m.features.count());
        if items == 0 || modalities.iter().any(|m| m.features.count() != items) {
            return Err(Error::Msg("every modality needs an entry for each of at least one item".to_owned()));
        }
        let mut encoders = Vec::new();
        let encoder_of = if config.shared_encoder { &modalities[..1] } else { &modalities[..] };
        for modality in encoder_of {
            let name = if config.shared_encoder { "shared" } else { &modality.name };
            let sizes = MixtureSizes { features: modality.features.width(), experts: config.experts, width };
            let prefix = format!("encoder.{name}");
            encoders.push(ItemEncoder::new(&mut parameters, &prefix, sizes, config.pooling(), key)?);
        }
        let other = modalities.iter().find(|m| m.features.width() != modalities[0].features.width());
        if let Some(other) = other.filter(|_| config.shared_encoder) {
            let (a, b) = (modalities[0].features.width(), other.features.width());
            return Err(Error::Msg(format!(
                "a shared encoder needs features of one width, found {a} and {b}; set `model.mp4sr.shared_encoder = false`"
            )));
        }
        let max_sequence_length = transformer.max_sequence_length;
        let transformer = Transformer::new(&mut parameters, transformer, key)?;
        let mut projections = Vec::new();
        if config.projection == Projection::On {
            for modality in &modalities {
                let name = format!("projection.{}", modality.name);
                let weight = parameters.add(&format!("{name}.weight"), &[width, width], Initial::Normal, key)?;
                let bias = parameters.add(&format!("{name}.bias"), &[width], Initial::Uniform(width), key)?;
                projections.push((weight, bias));
            }
        }
        let mut id_embedding = None;
        if config.id_embedding {
            let shape = [items + 1, width];
            let table = parameters.add_table(ID_TABLE, shape, items, Initial::Normal, key, group.as_ref())?;
            if group.as_ref().is_none_or(ProcessGroup::is_first) {
                let padding = Tensor::zeros((1, width), table.dtype(), table.device())?;
                table.set(&Tensor::cat(&[&padding, &table.narrow(0, 1, table.dim(0)? - 1)?], 0)?)?;
            }
            id_embedding = Some(table);
        }
        let in_logits =
            |m: &usize| config.logit_modalities.is_empty() || config.logit_modalities.contains(&modalities[*m].name);
        Ok(Self {
            logit_modalities: (0..modalities.len()).filter(in_logits).collect(),
            phases: config::phases(&config),
            config,
            max_sequence_length,
            width,
            modalities,
            parameters,
            encoders,
            transformer,
            projections,
            id_embedding,
            candidate_sampler: None,
            pretrain_items: (1..=items as u32).collect(),
            group,
        })
    }

    /// Returns the model with `sampler`, so that its steps of fine-tuning compare with a sample of the items.
    #[must_use]
    pub fn with_candidates(self, sampler: CandidateSampler) -> Self {
        Self { candidate_sampler: Some(sampler), ..self }
    }

    /// Returns the model with the items that pre-training reads, 1-based, ascending, instead of all items.
    #[must_use]
    pub fn with_pretrain_items(self, items: Vec<u32>) -> Self {
        Self { pretrain_items: items, ..self }
    }

    /// I, the number of items.
    pub fn item_count(&self) -> usize {
        self.modalities[0].features.count()
    }

    /// The names of the modalities, in order.
    pub fn modality_names(&self) -> impl Iterator<Item = &str> {
        self.modalities.iter().map(|m| m.name.as_str())
    }

    /// The modalities that a phase reads: all in pre-training, those of the logits in fine-tuning.
    fn active(&self, phase: &str) -> Vec<usize> {
        if phase == PRETRAIN { (0..self.modalities.len()).collect() } else { self.logit_modalities.clone() }
    }

    /// z of every use of the items, one modality after the other: `[modalities uses, d_0]`.
    fn embed(&self, encoding: &Encoding<'_>) -> Result<Tensor> {
        let &Encoding { modalities: active, items, index, key, learns } = encoding;
        let (mut rows, mut ws, mut packed) = (Vec::new(), Vec::new(), Vec::new());
        for &m in active {
            let modality = &self.modalities[m];
            let encoder = &self.encoders[if self.config.shared_encoder { 0 } else { m }];
            let features = items.map_or_else(|| modality.features.clone(), |items| modality.features.select(items));
            let dropout = match key {
                Some(key) => key.fold_in("experts").fold_in_index(m as u64).dropout(self.config.expert_dropout),
                None => Dropout::NONE,
            };
            let own = encoder.rows(features, dropout);
            encoder.trace(&own, &modality.name)?;
            rows.push(own);
            ws.push(encoder.pooling_vector()?);
            packed.push(encoder.packed());
        }
        let (w, packed) = (Tensor::cat(&ws, 0)?, Tensor::cat(&packed, 0)?);
        let (w, packed) = if learns { (w, packed) } else { (w.detach(), packed.detach()) };
        let z = mp4sr_ops::encode(&rows, &w, &packed, index)?;
        for (at, &m) in active.iter().enumerate().filter(|_| trace::is_on()) {
            let own = z.narrow(0, at * index.count(), index.count())?;
            trace::record(|| format!("z.{}", self.modalities[m].name), &own);
        }
        Ok(z)
    }

    /// z of every item without dropout, as scoring uses it, one modality after the other: `[modalities I, d_0]`. Without `learns` it has no
    /// gradient.
    pub fn item_embeddings(&self, phase: &str, learns: bool) -> Result<Tensor> {
        let index = GatherIndex::each_once(self.item_count());
        self.embed(&Encoding { modalities: &self.active(phase), items: None, index: &index, key: None, learns })
    }

    /// The items that this process scores, from 0: all, or its share of them.
    fn scored_items(&self) -> Range<usize> {
        let items = self.item_count();
        self.group.as_ref().map_or(0..items, |group| group.share(items))
    }

    /// z of the items that this process scores, in the layout of [`item_embeddings`](Self::item_embeddings).
    fn scored_embeddings(&self, phase: &str) -> Result<Tensor> {
        if self.group.is_none() {
            return self.item_embeddings(phase, false);
        }
        let items: Vec<u32> = self.scored_items().map(|item| item as u32).collect();
        let (modalities, index) = (self.active(phase), GatherIndex::each_once(items.len()));
        self.embed(&Encoding { modalities: &modalities, items: Some(&items), index: &index, key: None, learns: false })
    }

    /// h of every mixed sequence, a tensor `[B, d_0]` per modality: the transformer runs over M packed sequences per sample. `shift` has
    /// the modality shift that mixup drew for each token, and `ids` the id embedding of each token, if ids are added.
    fn sequences(
        &self,
        embeddings: TokenEmbeddings<'_>,
        batch: &Batch,
        shift: Option<&[u32]>,
        ids: Option<Rows<'_>>,
        key: Option<RngKey>,
    ) -> Result<Vec<Tensor>> {
        let TokenEmbeddings { z, spaces, rows, tokens } = embeddings;
        let offsets = batch.offsets.repeat(spaces);
        let row = |m: usize, t: usize| {
            let modality = shift.map_or(m, |shift| (m + shift[t] as usize) % spaces);
            (modality * rows) as u32 + tokens[t]
        };
        let mixed: Vec<u32> = (0..spaces).flat_map(|m| (0..tokens.len()).map(move |t| row(m, t))).collect();
        let id_rows = ids.map_or(Vec::new(), |ids| ids.rows.repeat(spaces));
        if trace::is_on() {
            let mut joined = gather(z, &mixed)?;
            if let Some(ids) = ids {
                joined = (joined + gather(ids.table, &id_rows)?)?;
            }
            trace::record(|| "mixed".to_owned(), &joined);
        }
        let ids = ids.map(|ids| Rows::new(ids.table, &id_rows));
        let h = self.transformer.forward(Rows::new(z, &mixed), ids, &offsets, key)?;
        trace::record(|| "h".to_owned(), &h);
        let count = batch.count();
        (0..spaces).map(|m| h.narrow(0, m * count, count)).collect()
    }
}

impl Model for Mp4sr {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn phases(&self) -> &[Phase] {
        &self.phases
    }

    fn uses(&self, phase: &Phase, name: &str) -> bool {
        match phase.name {
            PRETRAIN => name != ID_TABLE,
            _ => self.config.end_to_end || !name.starts_with("projection."),
        }
    }

    /// The biases of attention pooling cancel in its softmax, but other programs may store them.
    fn has_no_effect(&self, name: &str) -> bool {
        name.ends_with(".pool.b1") || name.ends_with(".pool.b2")
    }

    fn max_sequence_length(&self) -> usize {
        self.max_sequence_length
    }

    fn group(&self) -> Option<&ProcessGroup> {
        self.group.as_ref()
    }

    fn loss(&self, phase: &Phase, batch: &Batch, step: &Step) -> Result<Tensor> {
        let finetune_loss = || match &self.group {
            Some(group) => self.shared_finetune_loss(&SharedBatch::new(group, batch), step.key),
            None => self.finetune_loss(batch, Some(step.key)),
        };
        match phase.name {
            PRETRAIN => self.augmented_loss(batch, step.key),
            _ if self.config.end_to_end => {
                let contrastive = self.augmented_loss(batch, step.key.fold_in("contrastive"))?;
                finetune_loss()? + contrastive
            }
            _ => finetune_loss(),
        }
    }

    fn scorer(&self, phase: &Phase) -> Result<Box<dyn Scorer + '_>> {
        match phase.name {
            PRETRAIN => self.pretrained_scorer(),
            _ => self.finetuned_scorer(),
        }
    }
}
