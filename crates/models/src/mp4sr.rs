//! MP4SR: M2SE with modality-specific next item prediction and cross-modality contrastive learning.
//!
//! Paper: "Multimodal Pre-training Framework for Sequential Recommendation via Contrastive Learning" (arXiv 2303.11879).
//! Item encoders: equations 3 and 4. Mixup and transformer: section 3.3. NIP and CMCL: equations 7 to 10. Fine-tuning:
//! equation 12. Where the paper and the authors' released code (github.com/lzz0007/MP4SR) differ, a switch of [`Config`]
//! takes either reading.
//!
//! Sequences are packed, never padded. Items are encoded once per step each: the batch's in pre-training, the catalogue in
//! fine-tuning.

use candle_core::{Tensor, Var};
use mp4sr_ops::{
    Dropout, Error, GatherIndex, Ragged, Result, RngKey, SameGroup, candidates, cross_entropy, gather, linear,
    normalize,
};

use crate::augment::{mixup, sequence_dropout};
use crate::contrastive::{Negatives, cmcl_rows, nip_rows};
use crate::{
    Batch, CmclDirection, Initial, ItemEncoder, Model, Parameters, Phase, PoolingGradient, Scorer, Trace, Transformer,
    TransformerConfig,
};

/// One modality: its name and its features, an entry an item.
#[derive(Clone, Debug)]
pub struct Modality {
    /// `text`, `image`, or any other.
    pub name: String,
    /// Rows of items 1..=I.
    pub features: Ragged,
}

/// The scores of fine-tuning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logits {
    /// Cosine over the temperature.
    Cosine,
    /// Inner product.
    Dot,
}

/// What pre-training draws and weighs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pretraining {
    /// rho: the probability that sequence dropout drops an item, or its greatest value when `uniform_rho`.
    pub rho: f64,
    /// Draw the probability from U(0, rho) once a batch.
    pub uniform_rho: bool,
    /// The swap probability of mixup is drawn from U(min, max) once a batch.
    pub mixup: (f64, f64),
    /// Weight of NIP.
    pub nip_weight: f64,
    /// lambda, the weight of CMCL.
    pub lambda: f64,
}

/// Sizes and switches of the model.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Positions, layers, widths, dropout.
    pub transformer: TransformerConfig,
    /// `d_a`, the width of attention pooling.
    pub attention: usize,
    /// O, the experts of an item encoder.
    pub experts: usize,
    /// Dropout in the experts.
    pub expert_dropout: f64,
    /// tau.
    pub temperature: f64,
    /// One item encoder for all modalities.
    pub shared_encoder: bool,
    /// Item id embeddings in fine-tuning.
    pub id_embedding: bool,
    /// Indices of the modalities in the logits.
    pub logit_modalities: Vec<usize>,
    /// What happens to the gradient of attention pooling.
    pub pooling_gradient: PoolingGradient,
    /// Zero rows that pad every item's pooling; none where only real rows count.
    pub pad_rows: Option<usize>,
    /// Projection heads in pre-training.
    pub projection: bool,
    /// Other samples of the batch with the same target.
    pub same_target: SameGroup,
    /// The second direction of CMCL.
    pub cmcl_direction: CmclDirection,
    /// The scores of fine-tuning.
    pub logits: Logits,
    /// What pre-training draws and weighs.
    pub pretraining: Pretraining,
    /// Fine-tuning adds the loss of pre-training (variant `E2E`).
    pub end_to_end: bool,
}

/// The paper's settings for two modalities.
impl Default for Config {
    fn default() -> Self {
        Self {
            transformer: TransformerConfig::default(),
            attention: 64,
            experts: 8,
            expert_dropout: 0.2,
            temperature: 0.07,
            shared_encoder: false,
            id_embedding: true,
            logit_modalities: vec![0, 1],
            pooling_gradient: PoolingGradient::Learned,
            pad_rows: None,
            projection: true,
            same_target: SameGroup::LeaveOut,
            cmcl_direction: CmclDirection::Symmetric,
            logits: Logits::Cosine,
            pretraining: Pretraining::default(),
            end_to_end: false,
        }
    }
}

impl Default for Pretraining {
    fn default() -> Self {
        Self { rho: 0.2, uniform_rho: false, mixup: (0.0, 0.5), nip_weight: 1.0, lambda: 0.01 }
    }
}

/// The model with its parameters and the items' features.
#[derive(Debug)]
pub struct Mp4sr {
    config: Config,
    modalities: Vec<Modality>,
    parameters: Parameters,
    encoders: Vec<ItemEncoder>,
    transformer: Transformer,
    projections: Vec<(Var, Var)>,
    id_embedding: Option<Var>,
}

impl Mp4sr {
    /// A fresh model whose start is a function of `key`.
    pub fn new(config: Config, modalities: Vec<Modality>, key: RngKey) -> Result<Self> {
        let key = key.fold_in("initial");
        let mut parameters = Parameters::default();
        let width = config.transformer.width;
        let items = modalities.first().map_or(0, |m| m.features.count());
        if items == 0 || modalities.iter().any(|m| m.features.count() != items) {
            return Err(Error::Msg("every modality needs an entry for each of at least one item".to_owned()));
        }
        let mut encoders = Vec::new();
        let encoder_of = if config.shared_encoder { &modalities[..1] } else { &modalities[..] };
        for modality in encoder_of {
            let name = if config.shared_encoder { "shared" } else { &modality.name };
            let sizes = (modality.features.width(), config.attention, width, config.experts);
            let prefix = format!("encoder.{name}");
            let encoder =
                ItemEncoder::new(&mut parameters, &prefix, sizes, config.pooling_gradient, config.pad_rows, key)?;
            encoders.push(encoder);
        }
        let other = modalities.iter().find(|m| m.features.width() != modalities[0].features.width());
        if let Some(other) = other.filter(|_| config.shared_encoder) {
            let (a, b) = (modalities[0].features.width(), other.features.width());
            return Err(Error::Msg(format!(
                "a shared encoder needs features of one width, found {a} and {b}; set `model.shared_encoder = false`"
            )));
        }
        let transformer = Transformer::new(&mut parameters, config.transformer, key)?;
        let mut projections = Vec::new();
        if config.projection {
            for modality in &modalities {
                let name = format!("projection.{}", modality.name);
                let weight = parameters.add(&format!("{name}.weight"), &[width, width], Initial::Normal, key)?;
                let bias = parameters.add(&format!("{name}.bias"), &[width], Initial::Uniform(width), key)?;
                projections.push((weight, bias));
            }
        }
        let mut id_embedding = None;
        if config.id_embedding {
            let table = parameters.add("id_embedding", &[items + 1, width], Initial::Normal, key)?;
            let padding = Tensor::zeros((1, width), table.dtype(), table.device())?;
            table.set(&Tensor::cat(&[&padding, &table.narrow(0, 1, items)?], 0)?)?;
            id_embedding = Some(table);
        }
        Ok(Self { config, modalities, parameters, encoders, transformer, projections, id_embedding })
    }

    /// I, the number of items.
    pub fn item_count(&self) -> usize {
        self.modalities[0].features.count()
    }

    /// The modalities that `phase` reads: all in pre-training, those of the logits in fine-tuning.
    fn active(&self, phase: Phase) -> Vec<usize> {
        match phase {
            Phase::Pretrain => (0..self.modalities.len()).collect(),
            Phase::Finetune => self.config.logit_modalities.clone(),
        }
    }

    /// z of every use of some items (0-based) or all, the modalities of `active` one after the other:
    /// `[modalities uses, d_0]`. Without `learning` it has no gradient.
    fn embed(
        &self,
        active: &[usize],
        items: Option<&[u32]>,
        uses: &GatherIndex,
        key: Option<RngKey>,
        learning: bool,
        trace: &Trace,
    ) -> Result<Tensor> {
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
            encoder.trace(&own, &modality.name, trace)?;
            rows.push(own);
            ws.push(encoder.pooling()?);
            packed.extend(encoder.parameters());
        }
        let (w, packed) = (Tensor::cat(&ws, 0)?, mp4sr_ops::pack(&packed)?);
        let (w, packed) = if learning { (w, packed) } else { (w.detach(), packed.detach()) };
        let z = mp4sr_ops::encode(&rows, &w, &packed, uses)?;
        for (at, &m) in active.iter().enumerate().filter(|_| trace.is_on()) {
            let own = z.narrow(0, at * uses.count(), uses.count())?;
            trace.record(|| format!("z.{}", self.modalities[m].name), &own);
        }
        Ok(z)
    }

    /// z of every item without dropout, the modalities one after the other, `[modalities I, d_0]`: what scoring uses. Without
    /// `learning` it has no gradient.
    pub fn item_embeddings(&self, phase: Phase, learning: bool, trace: &Trace) -> Result<Tensor> {
        let once = GatherIndex::each_once(self.item_count());
        self.embed(&self.active(phase), None, &once, None, learning, trace)
    }

    /// h of every mixed sequence, a tensor `[B, d_0]` a modality: the transformer over M packed sequences a sample. `z` stacks
    /// the modalities' embeddings, `rows` of them each; token t of modality m is row `m * rows + tokens[t]`. `shift` is what
    /// mixup swaps, `ids` whether the items' id embeddings join.
    fn sequences(
        &self,
        (z, rows, tokens): (&Tensor, usize, &[u32]),
        batch: &Batch,
        shift: Option<&[u32]>,
        ids: Option<&Tensor>,
        key: Option<RngKey>,
        trace: &Trace,
    ) -> Result<Vec<Tensor>> {
        let spaces = z.dim(0)? / rows;
        let offsets = batch.offsets.repeat(spaces);
        let row = |m: usize, t: usize| {
            let modality = shift.map_or(m, |shift| (m + shift[t] as usize) % spaces);
            (modality * rows) as u32 + tokens[t]
        };
        let mixed: Vec<u32> = (0..spaces).flat_map(|m| (0..tokens.len()).map(move |t| row(m, t))).collect();
        let items = batch.items.repeat(if ids.is_some() { spaces } else { 0 });
        if trace.is_on() {
            let mut joined = gather(z, &mixed)?;
            if let Some(ids) = ids {
                joined = (joined + gather(ids, &items)?)?;
            }
            trace.record(|| "mixed".to_owned(), &joined);
        }
        let h = self.transformer.forward((z, &mixed), ids.map(|ids| (ids, &items[..])), &offsets, key, trace)?;
        trace.record(|| "h".to_owned(), &h);
        let count = batch.count();
        (0..spaces).map(|m| h.narrow(0, m * count, count)).collect()
    }

    /// The loss of pre-training on a batch as it is, mixed by `shift` `[tokens]`.
    pub fn pretrain_loss(&self, batch: &Batch, shift: &[u32], key: Option<RngKey>, trace: &Trace) -> Result<Tensor> {
        let (distinct, uses) = distinct_items(batch);
        let z = self.embed(&self.active(Phase::Pretrain), Some(&distinct), &uses, key, true, &Trace::OFF)?;
        let (rows, tokens) = (uses.count(), batch.items.len());
        let places: Vec<u32> = (0..tokens as u32).collect();
        let h = self.sequences((&z, rows, &places), batch, Some(shift), None, key, trace)?;
        let starts: Vec<usize> = (0..self.modalities.len()).map(|m| m * rows + tokens).collect();
        let targets = candidates(&z, &starts, batch.count(), None, true)?;
        let width = self.config.transformer.width;
        let targets: Vec<Tensor> =
            (0..starts.len()).map(|m| targets.narrow(1, m * width, width)?.contiguous()).collect::<Result<_>>()?;
        self.contrastive_loss(&h, &targets, &batch.targets, trace)
    }

    /// The loss of pre-training with sequence dropout and mixup.
    fn augmented_loss(&self, batch: &Batch, key: RngKey) -> Result<Tensor> {
        let Pretraining { rho, uniform_rho, mixup: (least, most), .. } = self.config.pretraining;
        let rho = if uniform_rho { rho * key.fold_in("rho").uniform(0) } else { rho };
        let batch = sequence_dropout(batch, rho, key.fold_in("sequence dropout"))?;
        let p = least + (most - least) * key.fold_in("mixup share").uniform(0);
        let shift = mixup(batch.items.len(), self.modalities.len(), p, key.fold_in("mixup"));
        self.pretrain_loss(&batch, &shift, Some(key), &Trace::OFF)
    }

    fn contrastive_loss(&self, h: &[Tensor], z: &[Tensor], targets: &[u32], trace: &Trace) -> Result<Tensor> {
        let Pretraining { nip_weight, lambda, .. } = self.config.pretraining;
        let negatives = Negatives::new(targets, self.config.same_target, self.config.temperature);
        let direction = self.config.cmcl_direction;
        let mut terms = Vec::new();
        let mut weigh = |kind: &str, name: &str, rows: &Tensor, weight: f64| -> Result<()> {
            let mean = rows.mean_all()?;
            trace.record(|| format!("{kind}_rows.{name}"), rows);
            trace.record(|| format!("{kind}.{name}"), &mean);
            terms.push((mean * weight)?);
            Ok(())
        };
        for (m, modality) in self.modalities.iter().enumerate() {
            let views = self.views(m, h, trace)?;
            if nip_weight > 0.0 {
                weigh("nip", &modality.name, &nip_rows(&views, &z[m], &negatives)?, nip_weight)?;
            }
            if lambda > 0.0 && views.len() > 1 {
                weigh("cmcl", &modality.name, &cmcl_rows(&views, direction, &negatives)?, lambda)?;
            }
        }
        if lambda > 0.0 && !self.config.projection && h.len() > 1 {
            let views = h.iter().map(normalize).collect::<Result<Vec<_>>>()?;
            weigh("cmcl", "all", &cmcl_rows(&views, direction, &negatives)?, lambda)?;
        }
        match terms.len() {
            0 => Err(Error::Msg("pre-training has no loss: both its weights are 0".to_owned())),
            _ => Tensor::stack(&terms, 0)?.sum_all(),
        }
    }

    /// The views of the sequences in the space of modality m, normalised: all sequence vectors through its head, its own
    /// first; without heads only its own vector.
    fn views(&self, m: usize, h: &[Tensor], trace: &Trace) -> Result<Vec<Tensor>> {
        let Some((weight, bias)) = self.projections.get(m) else { return Ok(vec![normalize(&h[m])?]) };
        let name = &self.modalities[m].name;
        let others = (0..h.len()).filter(|&a| a != m);
        std::iter::once(m)
            .chain(others)
            .map(|a| {
                let view = linear(&h[a], weight, bias)?;
                let from = &self.modalities[a].name;
                trace.record(|| if a == m { format!("m_hat.{name}") } else { format!("m_til.{name}.{from}") }, &view);
                normalize(&view)
            })
            .collect()
    }

    /// The loss of fine-tuning: cross-entropy over all items.
    pub fn finetune_loss(&self, batch: &Batch, key: Option<RngKey>, trace: &Trace) -> Result<Tensor> {
        let (tokens, items) = (batch.items.len(), self.item_count());
        let used = batch.items.iter().map(|i| i - 1).chain(0..items as u32).collect();
        let uses = GatherIndex::new(used, items);
        let z = self.embed(&self.active(Phase::Finetune), None, &uses, key, true, &Trace::OFF)?;
        let rows = uses.count();
        let places: Vec<u32> = (0..tokens as u32).collect();
        let ids = self.id_embedding.as_ref().map(Var::as_tensor);
        let h = self.sequences((&z, rows, &places), batch, None, ids, key, trace)?;
        let (sequences, candidates) = (self.logit_side(&h)?, self.candidates(&z, rows, tokens, ids, trace)?);
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
    fn candidates(&self, z: &Tensor, rows: usize, first: usize, ids: Option<&Tensor>, trace: &Trace) -> Result<Tensor> {
        let items = self.item_count();
        let starts: Vec<usize> = (0..z.dim(0)? / rows).map(|m| m * rows + first).collect();
        if trace.is_on() {
            for (start, &m) in starts.iter().zip(&self.config.logit_modalities) {
                let raw = candidates(z, &[*start], items, ids, false)?;
                trace.record(|| format!("candidates.{}", self.modalities[m].name), &raw);
            }
        }
        candidates(z, &starts, items, ids, self.config.logits == Logits::Cosine)
    }

    /// Names of the modalities, in order.
    pub fn modality_names(&self) -> impl Iterator<Item = &str> {
        self.modalities.iter().map(|m| m.name.as_str())
    }
}

/// The batch's distinct items (0-based, rising), and its uses of them: the tokens, then the targets.
fn distinct_items(batch: &Batch) -> (Vec<u32>, GatherIndex) {
    let mut distinct: Vec<u32> = batch.items.iter().chain(&batch.targets).map(|i| i - 1).collect();
    distinct.sort_unstable();
    distinct.dedup();
    let largest = distinct.last().map_or(0, |&i| i as usize + 1);
    let mut place = vec![0; largest];
    distinct.iter().enumerate().for_each(|(at, &item)| place[item as usize] = at as u32);
    let used = batch.items.iter().chain(&batch.targets).map(|&i| place[i as usize - 1]).collect();
    let count = distinct.len();
    (distinct, GatherIndex::new(used, count))
}

impl Model for Mp4sr {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn phases(&self) -> &'static [Phase] {
        &[Phase::Pretrain, Phase::Finetune]
    }

    fn uses(&self, phase: Phase, name: &str) -> bool {
        match phase {
            Phase::Pretrain => name != "id_embedding",
            Phase::Finetune => self.config.end_to_end || !name.starts_with("projection."),
        }
    }

    fn loss(&self, phase: Phase, batch: &Batch, key: RngKey) -> Result<Tensor> {
        match phase {
            Phase::Pretrain => self.augmented_loss(batch, key),
            Phase::Finetune if self.config.end_to_end => {
                let contrastive = self.augmented_loss(batch, key.fold_in("contrastive"))?;
                self.finetune_loss(batch, Some(key), &Trace::OFF)? + contrastive
            }
            Phase::Finetune => self.finetune_loss(batch, Some(key), &Trace::OFF),
        }
    }

    fn scorer(&self, phase: Phase) -> Result<Box<dyn Scorer + '_>> {
        let z = self.item_embeddings(phase, false, &Trace::OFF)?;
        let ids =
            self.id_embedding.as_ref().filter(|_| phase == Phase::Finetune).map(|table| table.as_tensor().detach());
        let items = match phase {
            Phase::Finetune => self.candidates(&z, self.item_count(), 0, ids.as_ref(), &Trace::OFF)?,
            Phase::Pretrain => {
                let starts: Vec<usize> = (0..self.modalities.len()).map(|m| m * self.item_count()).collect();
                candidates(&z, &starts, self.item_count(), None, true)?
            }
        };
        Ok(Box::new(Mp4srScorer { model: self, phase, z, ids, items }))
    }

    fn is_sequential(&self) -> bool {
        true
    }
}

/// Scores after fine-tuning are its logits; after pre-training, the sum over modalities of the cosine between the sequence
/// through its own head and the item.
struct Mp4srScorer<'a> {
    model: &'a Mp4sr,
    phase: Phase,
    /// `[modalities I, d_0]`.
    z: Tensor,
    ids: Option<Tensor>,
    items: Tensor,
}

impl Scorer for Mp4srScorer<'_> {
    fn items(&self) -> &Tensor {
        &self.items
    }

    fn sequences(&self, histories: &[&[u32]]) -> Result<Tensor> {
        let model = self.model;
        let batch = Batch::new(histories.iter().map(|h| (*h, 1)), model.config.transformer.positions)?;
        let rows: Vec<u32> = batch.items.iter().map(|i| i - 1).collect();
        let z = (&self.z, model.item_count(), &rows[..]);
        let h = model.sequences(z, &batch, None, self.ids.as_ref(), None, &Trace::OFF)?;
        let vectors = match self.phase {
            Phase::Finetune => (model.logit_side(&h)? * model.logit_scale())?,
            Phase::Pretrain => {
                let own = (0..h.len()).map(|m| Ok(model.views(m, &h, &Trace::OFF)?.swap_remove(0)));
                Tensor::cat(&own.collect::<Result<Vec<_>>>()?, 1)?
            }
        };
        Ok(vectors.detach())
    }
}
