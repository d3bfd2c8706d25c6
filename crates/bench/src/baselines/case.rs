//! A training step of every baseline, with the random samples that were drawn for it.

use std::rc::Rc;

use candle_core::Tensor;
use mp4sr_models::cl4srec::Operation;
use mp4sr_models::masr::Memory;
use mp4sr_models::{
    Batch, Buffer, BufferValues, Cl4sRec, ClcRec, DifSr, DualGnn, FINETUNE, Fdsa, Grcn, LightGcn, Masr, Model, MvRnn,
    NegativeSampler, PRETRAIN, Phase, Ragged, Result, RngKey, S3Rec, SasRec, Sine, TransformerConfig, UniSRec, cl4srec,
    clcrec, difsr, dualgnn, fdsa, grcn, lightgcn, masr, mean_rows, mvrnn, s3rec, sine, unisrec,
};
use serde_json::{Value, json};

use super::world::BaselineWorld;

/// A step of training: a model and, where it has two, its phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum StepOf {
    /// SASRec.
    Sasrec,
    /// CL4SRec.
    Cl4srec,
    /// SINE.
    Sine,
    /// FDSA.
    Fdsa,
    /// DIF-SR.
    Difsr,
    /// Pre-training of S3-Rec; its fine-tuning is a step of SASRec.
    S3rec,
    /// Pre-training of UniSRec.
    UnisrecPretrain,
    /// Fine-tuning of UniSRec.
    UnisrecFinetune,
    /// LightGCN.
    Lightgcn,
    /// GRCN.
    Grcn,
    /// DualGNN.
    Dualgnn,
    /// MV-RNN.
    Mvrnn,
    /// CLCRec.
    Clcrec,
    /// MASR after its warm-up, with banks that are full.
    Masr,
}

/// The values of a tensor for the PyTorch peer.
pub enum Values {
    /// Floating-point numbers.
    F32(Vec<f32>),
    /// Counts and indices.
    I64(Vec<i64>),
}

/// A tensor for the PyTorch peer.
pub struct Input {
    /// The name of the tensor, after the prefix `in.`.
    pub name: String,
    /// The values, in row-major order.
    pub values: Values,
    /// The shape.
    pub shape: Vec<usize>,
}

/// Computes the loss with the samples that were drawn. Without a key, dropout is disabled.
type Loss = Box<dyn Fn(Option<RngKey>) -> Result<Tensor>>;

/// A model, a batch, and the loss of the samples that were drawn for it.
pub struct BaselineCase {
    /// The model.
    pub model: Rc<dyn Model>,
    /// The phase to which the step belongs.
    pub phase: Phase,
    /// The batch of the step.
    pub batch: Batch,
    /// The loss of the batch with the samples that were drawn.
    pub loss: Loss,
    /// The inputs of the PyTorch peer.
    pub inputs: Vec<Input>,
    /// The settings of the model, by section.
    pub settings: Value,
    /// The weight decay of the model's recipe.
    pub weight_decay: f64,
}

fn ints(name: &str, values: impl IntoIterator<Item = i64>) -> Input {
    let values: Vec<i64> = values.into_iter().collect();
    Input { name: name.to_owned(), shape: vec![values.len()], values: Values::I64(values) }
}

fn ids(name: &str, values: &[u32]) -> Input {
    ints(name, values.iter().map(|&value| i64::from(value)))
}

fn offsets(name: &str, count: usize, length: impl Fn(usize) -> usize) -> Input {
    let ends = (0..count).scan(0, |end, j| {
        *end += length(j) as i64;
        Some(*end)
    });
    ints(name, std::iter::once(0).chain(ends))
}

fn flags(name: &str, values: &[bool]) -> Input {
    ints(name, values.iter().map(|&value| i64::from(value)))
}

fn floats(name: &str, tensor: &Tensor) -> Result<Input> {
    let values = Values::F32(tensor.flatten_all()?.to_vec1()?);
    Ok(Input { name: name.to_owned(), values, shape: tensor.dims().to_vec() })
}

/// The tensors of the batch, for the peer.
fn batch_inputs(batch: &Batch) -> Vec<Input> {
    let lengths = |j| batch.offsets.range(j).len();
    vec![
        ids("users", &batch.users),
        ids("items", &batch.items),
        offsets("offsets", batch.offsets.count(), lengths),
        ids("targets", &batch.targets),
    ]
}

/// The mean feature row of each item, by modality.
fn means(world: &BaselineWorld) -> Result<Vec<Input>> {
    let mean = |features: &Ragged| mean_rows(features, mp4sr_models::RowMean::Mean, &world.data.device);
    world.data.modalities.iter().map(|m| floats(&format!("means.{}", m.name), &mean(&m.features)?)).collect()
}

/// The training sequences of all users.
fn training(world: &BaselineWorld) -> Vec<Input> {
    let training = &world.data.training;
    let length = |user: usize| training.of(user).len();
    vec![ids("train.items", &training.items), offsets("train.offsets", training.users(), length)]
}

fn with(mut inputs: Vec<Input>, more: impl IntoIterator<Item = Input>) -> Vec<Input> {
    inputs.extend(more);
    inputs
}

/// The phase of a model with this name.
fn phase(model: &dyn Model, name: &str) -> anyhow::Result<Phase> {
    let found = model.phases().iter().find(|phase| phase.name == name).copied();
    found.ok_or_else(|| anyhow::anyhow!("the model has no phase `{name}`"))
}

const BATCH: usize = 1024;
const WEIGHT_DECAY: f64 = 1e-4;

impl StepOf {
    /// Builds the step in a world; the samples that it draws depend only on the key.
    pub fn case(self, world: &BaselineWorld, key: RngKey) -> anyhow::Result<BaselineCase> {
        match self {
            Self::Sasrec => sasrec_case(world, key),
            Self::Cl4srec => cl4srec_case(world, key),
            Self::Sine => sine_case(world, key),
            Self::Fdsa => fdsa_case(world, key),
            Self::Difsr => difsr_case(world, key),
            Self::S3rec => s3rec_case(world, key),
            Self::UnisrecPretrain => unisrec_pretrain_case(world, key),
            Self::UnisrecFinetune => unisrec_finetune_case(world, key),
            Self::Lightgcn => lightgcn_case(world, key),
            Self::Grcn => grcn_case(world, key),
            Self::Dualgnn => dualgnn_case(world, key),
            Self::Mvrnn => mvrnn_case(world, key),
            Self::Clcrec => clcrec_case(world, key),
            Self::Masr => masr_case(world, key),
        }
    }
}

fn sasrec_case(world: &BaselineWorld, key: RngKey) -> anyhow::Result<BaselineCase> {
    let transformer = TransformerConfig::default();
    let model = Rc::new(SasRec::new(transformer, world.data.items, &world.data.device, key)?);
    let batch = world.prefixes(BATCH, transformer.max_sequence_length)?;
    Ok(BaselineCase {
        phase: phase(&*model, FINETUNE)?,
        inputs: batch_inputs(&batch),
        settings: json!({ "transformer": transformer }),
        weight_decay: 0.0,
        loss: {
            let (model, batch) = (model.clone(), batch.clone());
            Box::new(move |key| model.finetune_loss(&batch, key))
        },
        model,
        batch,
    })
}

fn cl4srec_case(world: &BaselineWorld, key: RngKey) -> anyhow::Result<BaselineCase> {
    let (config, transformer) = (cl4srec::Config::default(), TransformerConfig::default());
    let model = Rc::new(Cl4sRec::new(config.clone(), transformer, world.data.items, &world.data.device, key)?);
    let batch = world.prefixes(BATCH, transformer.max_sequence_length)?;
    let of = |j: usize| model.operations(batch.offsets.range(j).len(), key.fold_in_index(j as u64));
    let operations: Vec<[Operation; 2]> = (0..batch.count()).map(of).collect();
    let views = model.views(&batch, Some(&operations))?;
    let inputs = with(
        batch_inputs(&batch),
        [
            ids("views.rows", &views.rows),
            offsets("views.offsets", views.offsets.count(), |j| views.offsets.range(j).len()),
        ],
    );
    Ok(BaselineCase {
        phase: phase(&*model, FINETUNE)?,
        inputs,
        settings: json!({ "own": config, "transformer": transformer }),
        weight_decay: WEIGHT_DECAY,
        loss: {
            let (model, targets) = (model.clone(), batch.targets.clone());
            Box::new(move |key| model.loss_of_views(&views, &targets, key))
        },
        model,
        batch,
    })
}

fn sine_case(world: &BaselineWorld, key: RngKey) -> anyhow::Result<BaselineCase> {
    let config = sine::Config::default();
    let model = Rc::new(Sine::new(config.clone(), world.data.items, &world.data.device, key)?);
    let batch = world.prefixes(BATCH, config.max_sequence_length)?;
    Ok(BaselineCase {
        phase: phase(&*model, FINETUNE)?,
        inputs: batch_inputs(&batch),
        settings: json!({ "own": config }),
        weight_decay: WEIGHT_DECAY,
        loss: {
            let (model, batch) = (model.clone(), batch.clone());
            Box::new(move |_| model.finetune_loss(&batch))
        },
        model,
        batch,
    })
}

fn fdsa_case(world: &BaselineWorld, key: RngKey) -> anyhow::Result<BaselineCase> {
    let (config, transformer) = (fdsa::Config::default(), TransformerConfig::default());
    let model = Fdsa::new(config.clone(), transformer, &world.data, key)?;
    feature_case(world, model, &json!(config), transformer, Fdsa::finetune_loss)
}

fn difsr_case(world: &BaselineWorld, key: RngKey) -> anyhow::Result<BaselineCase> {
    let (config, transformer) = (difsr::Config::default(), TransformerConfig::default());
    let model = DifSr::new(config, transformer, &world.data, key)?;
    feature_case(world, model, &json!(config), transformer, DifSr::finetune_loss)
}

/// Builds the fine-tuning step of a transformer that reads the items' mean features.
fn feature_case<M: Model + 'static>(
    world: &BaselineWorld,
    model: M,
    own: &Value,
    transformer: TransformerConfig,
    loss: fn(&M, &Batch, Option<RngKey>) -> Result<Tensor>,
) -> anyhow::Result<BaselineCase> {
    let model = Rc::new(model);
    let batch = world.prefixes(BATCH, transformer.max_sequence_length)?;
    Ok(BaselineCase {
        phase: phase(&*model, FINETUNE)?,
        inputs: with(batch_inputs(&batch), means(world)?),
        settings: json!({ "own": own, "transformer": transformer }),
        weight_decay: WEIGHT_DECAY,
        loss: {
            let (model, batch) = (model.clone(), batch.clone());
            Box::new(move |key| loss(&model, &batch, key))
        },
        model,
        batch,
    })
}

fn s3rec_case(world: &BaselineWorld, key: RngKey) -> anyhow::Result<BaselineCase> {
    let (config, transformer) = (s3rec::Config::default(), TransformerConfig::default());
    let model = Rc::new(S3Rec::new(config.clone(), transformer, &world.data, key)?);
    let n = transformer.max_sequence_length;
    let batch = world.prefixes(BATCH, n)?;
    // A sample is a history with its target appended.
    let joined: Vec<Vec<u32>> = batch
        .targets
        .iter()
        .enumerate()
        .map(|(j, &target)| batch.items[batch.offsets.range(j)].iter().copied().chain([target]).collect())
        .collect();
    let samples = Batch::of_histories(joined.iter().map(|items| (items.as_slice(), 1)), n)?;
    let samples = Batch { targets: Vec::new(), ..samples };
    let draws = model.draws(&samples, key)?;
    let starts: Vec<u32> = draws.segments.iter().map(|(tokens, _)| tokens.start as u32).collect();
    let others: Vec<u32> = draws.segments.iter().flat_map(|(_, others)| others.iter().copied()).collect();
    let inputs = with(
        with(batch_inputs(&samples), means(world)?),
        [
            flags("masked", &draws.masked),
            ids("negatives", &draws.negatives),
            ids("segments.starts", &starts),
            ids("segments.items", &others),
            offsets("segments.offsets", draws.segments.len(), |j| draws.segments[j].1.len()),
        ],
    );
    Ok(BaselineCase {
        phase: phase(&*model, PRETRAIN)?,
        inputs,
        settings: json!({ "own": config, "transformer": transformer }),
        weight_decay: WEIGHT_DECAY,
        loss: {
            let model = model.clone();
            Box::new(move |key| model.pretrain_loss(&samples, &draws, key))
        },
        model,
        batch,
    })
}

fn noise(count: usize, experts: usize, key: RngKey) -> Result<Tensor> {
    let values = (0..(count * experts) as u64).map(|at| key.normal(at) as f32).collect();
    Tensor::from_vec(values, (count, experts), &mp4sr_models::Device::Cpu)
}

fn unisrec_pretrain_case(world: &BaselineWorld, key: RngKey) -> anyhow::Result<BaselineCase> {
    let (config, transformer) = (unisrec::Config::default(), TransformerConfig::default());
    let model = Rc::new(UniSRec::new(config, transformer, &world.data, key)?);
    let batch = world.prefixes(BATCH, transformer.max_sequence_length)?;
    let augmented = model.augment(&batch, key.fold_in("augmentation"))?;
    let count = batch.items.len() + batch.count() + augmented.batch.items.len();
    let noise = noise(count, config.experts, key.fold_in("noise"))?;
    let own = &augmented.batch;
    let inputs = with(
        batch_inputs(&batch),
        [
            floats("features", model.features())?,
            ids("augmented.items", &own.items),
            offsets("augmented.offsets", own.offsets.count(), |j| own.offsets.range(j).len()),
            flags("augmented.replaced", &augmented.replaced),
            floats("noise", &noise)?,
        ],
    );
    Ok(BaselineCase {
        phase: phase(&*model, PRETRAIN)?,
        inputs,
        settings: json!({ "own": config, "transformer": transformer }),
        weight_decay: WEIGHT_DECAY,
        loss: {
            let (model, batch) = (model.clone(), batch.clone());
            Box::new(move |key| model.pretrain_loss(&batch, &augmented, Some(&noise), key))
        },
        model,
        batch,
    })
}

fn unisrec_finetune_case(world: &BaselineWorld, key: RngKey) -> anyhow::Result<BaselineCase> {
    let (config, transformer) = (unisrec::Config::default(), TransformerConfig::default());
    let model = Rc::new(UniSRec::new(config, transformer, &world.data, key)?);
    let batch = world.prefixes(BATCH, transformer.max_sequence_length)?;
    let noise = noise(batch.items.len() + world.data.items, config.experts, key.fold_in("noise"))?;
    let inputs = with(batch_inputs(&batch), [floats("features", model.features())?, floats("noise", &noise)?]);
    Ok(BaselineCase {
        phase: phase(&*model, FINETUNE)?,
        inputs,
        settings: json!({ "own": config, "transformer": transformer }),
        weight_decay: WEIGHT_DECAY,
        loss: {
            let (model, batch) = (model.clone(), batch.clone());
            Box::new(move |key| model.finetune_loss(&batch, Some(&noise), key))
        },
        model,
        batch,
    })
}

/// The inputs of a model that trains on events, with one negative per event.
fn event_inputs(world: &BaselineWorld, batch: &Batch, negatives: &[u32]) -> Vec<Input> {
    let own = [ids("users", &batch.users), ids("positives", &batch.targets), ids("negatives", negatives)];
    with(training(world), own)
}

fn lightgcn_case(world: &BaselineWorld, key: RngKey) -> anyhow::Result<BaselineCase> {
    let config = lightgcn::Config::default();
    let model = Rc::new(LightGcn::new(config.clone(), &world.data, key)?);
    let batch = world.single_events(BATCH)?;
    let negatives = NegativeSampler::new(&world.data)?.draw_all(&batch.users, key);
    Ok(BaselineCase {
        phase: phase(&*model, FINETUNE)?,
        inputs: event_inputs(world, &batch, &negatives),
        settings: json!({ "own": config }),
        weight_decay: 0.0,
        loss: {
            let (model, batch) = (model.clone(), batch.clone());
            Box::new(move |_| model.bpr_loss(&batch.users, &batch.targets, &negatives))
        },
        model,
        batch,
    })
}

fn grcn_case(world: &BaselineWorld, key: RngKey) -> anyhow::Result<BaselineCase> {
    let config = grcn::Config::default();
    let model = Rc::new(Grcn::new(config.clone(), &world.data, key)?);
    let batch = world.single_events(BATCH)?;
    let negatives = NegativeSampler::new(&world.data)?.draw_all(&batch.users, key);
    Ok(BaselineCase {
        phase: phase(&*model, FINETUNE)?,
        inputs: with(event_inputs(world, &batch, &negatives), means(world)?),
        settings: json!({ "own": config }),
        weight_decay: 0.0,
        loss: {
            let (model, batch) = (model.clone(), batch.clone());
            Box::new(move |_| model.bpr_loss(&batch.users, &batch.targets, &negatives))
        },
        model,
        batch,
    })
}

fn dualgnn_case(world: &BaselineWorld, key: RngKey) -> anyhow::Result<BaselineCase> {
    let config = dualgnn::Config::default();
    let model = Rc::new(DualGnn::new(config.clone(), &world.data, key)?);
    let batch = world.single_events(BATCH)?;
    let negatives = NegativeSampler::new(&world.data)?.draw_all(&batch.users, key);
    let lists = dualgnn::neighbours(&world.data, config.neighbours);
    let graph = dualgnn::neighbour_matrix(&lists)?;
    let entries = lists.iter().flatten();
    let inputs = with(
        with(event_inputs(world, &batch, &negatives), means(world)?),
        [
            ints("neighbours.users", entries.clone().map(|&(user, _)| i64::from(user))),
            ints("neighbours.counts", entries.map(|&(_, count)| i64::from(count))),
            offsets("neighbours.offsets", lists.len(), |user| lists[user].len()),
        ],
    );
    Ok(BaselineCase {
        phase: phase(&*model, FINETUNE)?,
        inputs,
        settings: json!({ "own": config }),
        weight_decay: 0.0,
        loss: {
            let (model, batch) = (model.clone(), batch.clone());
            Box::new(move |_| model.bpr_loss(&graph, &batch.users, &batch.targets, &negatives))
        },
        model,
        batch,
    })
}

fn mvrnn_case(world: &BaselineWorld, key: RngKey) -> anyhow::Result<BaselineCase> {
    let config = mvrnn::Config::default();
    let model = Rc::new(MvRnn::new(config, &world.data, key)?);
    let wanted = world.batch_size(BATCH);
    let batch = world.whole_sequences(config.max_sequence_length, |_, pairs| pairs >= wanted)?;
    let drawn = model.pairs(&batch, key)?;
    let inputs = with(
        means(world)?,
        [
            ids("items", &drawn.items),
            offsets("offsets", drawn.offsets.count(), |j| drawn.offsets.range(j).len()),
            ids("targets", &drawn.targets),
            ids("negatives", &drawn.negatives),
        ],
    );
    Ok(BaselineCase {
        phase: phase(&*model, FINETUNE)?,
        inputs,
        settings: json!({ "own": config }),
        weight_decay: WEIGHT_DECAY,
        loss: {
            let model = model.clone();
            Box::new(move |_| model.sequence_loss(&drawn))
        },
        model,
        batch,
    })
}

fn clcrec_case(world: &BaselineWorld, key: RngKey) -> anyhow::Result<BaselineCase> {
    let config = clcrec::Config::default();
    let model = Rc::new(ClcRec::new(config.clone(), &world.data, key)?);
    let batch = world.single_events(256)?;
    let drawn = model.sample(&batch.users, &batch.targets, key);
    let inputs = with(
        means(world)?,
        [ids("users", &batch.users), ids("sampled", &drawn.items), flags("replaced", &drawn.replaced)],
    );
    Ok(BaselineCase {
        phase: phase(&*model, FINETUNE)?,
        inputs,
        settings: json!({ "own": config }),
        weight_decay: 0.0,
        loss: {
            let (model, users) = (model.clone(), batch.users.clone());
            Box::new(move |_| model.event_loss(&users, &drawn))
        },
        model,
        batch,
    })
}

/// Marks the items with the most training events, which are the share `share` of all items.
fn head_items(world: &BaselineWorld, share: f64) -> Vec<bool> {
    let mut events = vec![0usize; world.data.items];
    world.data.training.items.iter().for_each(|&item| events[item as usize - 1] += 1);
    let mut order: Vec<usize> = (0..events.len()).collect();
    order.sort_by_key(|&row| (std::cmp::Reverse(events[row]), row));
    let mut is_head = vec![false; events.len()];
    order[..(share * events.len() as f64) as usize].iter().for_each(|&row| is_head[row] = true);
    is_head
}

fn buffer_input((name, buffer): (String, Buffer)) -> Input {
    let values = match buffer.values {
        BufferValues::F32(values) => Values::F32(values),
        BufferValues::I64(values) => Values::I64(values),
    };
    Input { name: format!("buffer.{name}"), values, shape: buffer.shape }
}

fn masr_case(world: &BaselineWorld, key: RngKey) -> anyhow::Result<BaselineCase> {
    let config = masr::Config::default();
    // The dropout of the model's recipe.
    let transformer = TransformerConfig { dropout: 0.1, ..TransformerConfig::default() };
    let is_head = head_items(world, config.head_share);
    let model = Masr::new(config.clone(), transformer, &world.data, key)?.with_head_items(is_head.clone());
    // There are as many states as training events, so that the banks are as full as in later epochs.
    let events = &world.data.training.items;
    let width = transformer.width;
    let states: Vec<f32> = (0..(events.len() * width) as u64).map(|at| key.normal(at) as f32).collect();
    model.write_states(&Tensor::from_vec(states, (events.len(), width), &world.data.device)?, events)?;
    model.set_epoch(config.warmup + 1)?;
    let wanted = world.batch_size(BATCH);
    let batch = world.whole_sequences(transformer.max_sequence_length, |sequences, _| sequences >= wanted)?;
    let cloze = model.cloze(&batch, key)?;
    let cloze = cloze.ok_or_else(|| anyhow::anyhow!("no token of the batch is a target; raise `--batch`"))?;
    let is_label = |item: u32| cloze.labels.contains(&item);
    let open = key.fold_in("negatives").permutation(world.data.items).into_iter().map(|row| row + 1);
    let open = open.filter(|&item| !is_head[item as usize - 1] && !is_label(item) && events.contains(&item));
    let negatives: Vec<u32> = open.take(config.memory_negatives).collect();
    let buffers = model.buffers().map(mp4sr_models::Buffers::snapshot).unwrap_or_default();
    let inputs = [
        ids("items", &cloze.items),
        offsets("offsets", cloze.offsets.count(), |j| cloze.offsets.range(j).len()),
        ids("labels", &cloze.labels),
        ids("negatives", &negatives),
        flags("is_head", &is_head),
    ];
    let model = Rc::new(model);
    Ok(BaselineCase {
        phase: phase(&*model, FINETUNE)?,
        inputs: inputs.into_iter().chain(buffers.into_iter().map(buffer_input)).collect(),
        settings: json!({ "own": config, "transformer": transformer }),
        weight_decay: WEIGHT_DECAY,
        loss: {
            let model = model.clone();
            Box::new(move |key| model.cloze_loss(&cloze, Memory::Given(&negatives), key))
        },
        model,
        batch,
    })
}
