//! SASRec: a causal transformer over item embeddings, cross-entropy over all items by inner product.
//!
//! Kang and McAuley, Self-Attentive Sequential Recommendation, 2018 (arXiv 1808.09781), as implemented in RecBole: LayerNorm after each
//! residual sum, GELU, a softmax over the whole catalogue in place of one sampled negative. RecBole's padding row, which is one more class
//! of its softmax, has no counterpart, because nothing is padded here.

use candle_core::{Device, Tensor, Var};
use mp4sr_ops::{ProcessGroup, Result, RngKey, Rows, cross_entropy, gather, sampled_cross_entropy};

use crate::candidates::add_history;
use crate::group_batch::SharedBatch;
use crate::interface::FINETUNE;
use crate::recipe::{NoKeys, Reads, Recipe, Section, Supports};
use crate::{
    Batch, CandidateSampler, Data, Initial, Model, Parameters, Phase, Query, SampledItems, Scorer, Step, Transformer,
    TransformerConfig,
};

/// How SASRec is named and built. RecBole trains it without weight decay.
pub static RECIPE: Recipe = Recipe {
    name: "sasrec",
    title: "SASRec",
    summary: "A transformer over item embeddings, as RecBole implements it.",
    paper: "Kang and McAuley, Self-Attentive Sequential Recommendation, 2018 (arXiv 1808.09781)",
    reads: Reads { features: false, transformer: true, categories: &[] },
    supports: Supports { candidates: true, processes: true },
    section: Section::of::<NoKeys>(),
    phase_reads: |_, _, _| true,
    defaults: "finetune.weight_decay = 0.0",
    presets: &[],
    grid: &[
        "finetune.learning_rate=1e-4,5e-4,1e-3",
        "finetune.batch=256,512,1024",
        "finetune.weight_decay=0.0,1e-4,5e-4",
    ],
    renamed: &[],
    item_tables: |_| None,
    check: |_| Ok(()),
    phases: |_| Ok(PHASES.to_vec()),
    build: |settings, data: Data, key| {
        let sampler = settings.candidate_sampler(&data)?;
        let model = SasRec::in_group(settings.transformer()?, data.items, &data.device, key, data.group)?;
        Ok(Box::new(match sampler {
            Some(sampler) => model.with_candidates(sampler),
            None => model,
        }))
    },
};

/// The name of the table of item embeddings.
const TABLE: &str = "item_embedding";

const PHASES: [Phase; 1] = [Phase::of_prefixes(FINETUNE)];

/// The model with its parameters.
#[derive(Debug)]
pub struct SasRec {
    config: TransformerConfig,
    parameters: Parameters,
    /// `[I, d_0]`: row i-1 is item i.
    items: Var,
    transformer: Transformer,
    /// The sampler of a step's candidates; without it, all items are candidates.
    candidate_sampler: Option<CandidateSampler>,
    group: Option<ProcessGroup>,
}

impl SasRec {
    /// Creates a model over `items` items, whose initial parameters are determined by `key`.
    pub fn new(config: TransformerConfig, items: usize, device: &Device, key: RngKey) -> Result<Self> {
        Self::in_group(config, items, device, key, None)
    }

    fn in_group(
        config: TransformerConfig,
        items: usize,
        device: &Device,
        key: RngKey,
        group: Option<ProcessGroup>,
    ) -> Result<Self> {
        let key = key.fold_in("initial");
        let mut parameters = Parameters::new(device);
        let shape = [items, config.width];
        let table = parameters.add_table(TABLE, shape, items, Initial::Normal, key, group.as_ref())?;
        let transformer = Transformer::new(&mut parameters, config, key)?;
        Ok(Self { config, parameters, items: table, transformer, candidate_sampler: None, group })
    }

    /// Returns the model with `sampler`, so that its steps compare with a sample of the items.
    #[must_use]
    pub fn with_candidates(self, sampler: CandidateSampler) -> Self {
        Self { candidate_sampler: Some(sampler), ..self }
    }

    /// The vector after the last item of each history, `[B, d_0]`.
    fn sequences(&self, batch: &Batch, key: Option<RngKey>) -> Result<Tensor> {
        let rows: Vec<u32> = batch.items.iter().map(|item| item - 1).collect();
        self.transformer.forward(Rows::new(&self.items, &rows), None, &batch.offsets, key)
    }

    /// The rows of the table that each process has.
    fn owned(&self) -> &[std::ops::Range<usize>] {
        self.parameters.table_rows(TABLE).unwrap_or_default()
    }

    /// This process's part of [`finetune_loss`](Self::finetune_loss) in a group.
    fn shared_loss(&self, group: &ProcessGroup, batch: &Batch, key: RngKey) -> Result<Tensor> {
        let shared = SharedBatch::new(group, batch);
        let tokens = shared.token_rows(&self.items, self.owned(), 0)?;
        let queries =
            self.transformer.forward(Rows::new(&tokens.table, &tokens.rows), None, &shared.own.offsets, Some(key))?;
        shared.cross_entropy(&queries, &self.items, &self.owned()[group.rank()], 1.0)
    }

    /// Cross-entropy of the next item, over all items or over a sample of them. Without `key` nothing is dropped or drawn.
    pub fn finetune_loss(&self, batch: &Batch, key: Option<RngKey>) -> Result<Tensor> {
        let Some((sampler, drawing)) = self.candidate_sampler.as_ref().zip(key) else {
            let targets: Vec<u32> = batch.targets.iter().map(|target| target - 1).collect();
            return cross_entropy(&self.sequences(batch, key)?, self.items.as_tensor(), &targets, 1.0)?.mean_all();
        };
        let SampledItems { mut items, targets, shifts } = sampler.draw(&batch.targets, drawing.fold_in("candidates"));
        let count = items.len();
        let tokens = add_history(&mut items, batch);
        let rows = gather(&self.items, &items)?;
        let h = self.transformer.forward(Rows::new(&rows, &tokens), None, &batch.offsets, key)?;
        sampled_cross_entropy(&h, &rows.narrow(0, 0, count)?, &targets, &shifts, 1.0)?.mean_all()
    }
}

impl Model for SasRec {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn phases(&self) -> &[Phase] {
        &PHASES
    }

    fn max_sequence_length(&self) -> usize {
        self.config.max_sequence_length
    }

    fn group(&self) -> Option<&ProcessGroup> {
        self.group.as_ref()
    }

    fn loss(&self, _: &Phase, batch: &Batch, step: &Step) -> Result<Tensor> {
        match &self.group {
            Some(group) => self.shared_loss(group, batch, step.key),
            None => self.finetune_loss(batch, Some(step.key)),
        }
    }

    fn scorer(&self, _: &Phase) -> Result<Box<dyn Scorer + '_>> {
        Ok(Box::new(SasRecScorer { model: self, items: self.items.as_tensor().detach() }))
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

    fn first_item(&self) -> usize {
        self.model.group.as_ref().map_or(0, |group| self.model.owned()[group.rank()].start)
    }

    fn queries(&self, queries: &[Query<'_>]) -> Result<Tensor> {
        let model = self.model;
        let batch = Batch::of_queries(queries, model.config.max_sequence_length)?;
        let vectors = match &model.group {
            Some(group) => {
                let shared = SharedBatch::new(group, &batch);
                let tokens = shared.token_rows(&self.items, model.owned(), 0)?;
                let rows = Rows::new(&tokens.table, &tokens.rows);
                shared.gather_queries(&model.transformer.forward(rows, None, &shared.own.offsets, None)?)?
            }
            None => model.sequences(&batch, None)?,
        };
        Ok(vectors.detach())
    }
}
