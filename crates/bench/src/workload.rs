//! The data of a step: either drawn from a seed with the distributions of the PyTorch peer, or read from the file that the peer writes
//! (`torch_step.py --dump`), so that both time the same step on the same numbers.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use half::f16;
use mp4sr_models::{Batch, Modality, Ragged, RngKey, Stored, StoredValues};
use safetensors::{Dtype, SafeTensors};

/// Features, a batch, and the initial parameters of the peer.
pub struct Workload {
    /// The features of each modality.
    pub modalities: Vec<Modality>,
    /// The samples of the step; for pre-training, after sequence dropout.
    pub batch: Batch,
    /// The positions that mixup swaps, `[tokens]`; empty for fine-tuning.
    pub shift: Vec<u32>,
    /// The initial parameters, if the file has them.
    pub parameters: Vec<Stored>,
}

/// How features are stored.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum FeatureType {
    /// Single precision.
    F32,
    /// IEEE half precision.
    F16,
}

/// The sizes of a generated workload. The defaults are those of the PyTorch peer.
#[derive(Clone, Debug, clap::Args)]
pub struct WorkloadSizes {
    /// The number of items, I.
    #[arg(long, default_value_t = 7670)]
    pub items: usize,
    /// The batch size, B.
    #[arg(long, default_value_t = 1024)]
    pub batch: usize,
    /// The maximum length of a history, n.
    #[arg(long, default_value_t = 50)]
    pub max_len: usize,
    /// The mean length of a history, before it is cut to n.
    #[arg(long, default_value_t = 9.3)]
    pub mean_len: f64,
    /// The mean number of text rows per item, at most 10.
    #[arg(long, default_value_t = 5.0)]
    pub rows_text: f64,
    /// The mean number of image rows per item, at most 10.
    #[arg(long, default_value_t = 1.5)]
    pub rows_image: f64,
    /// The width of a feature row, d.
    #[arg(long, default_value_t = 768)]
    pub dim: usize,
    /// The type in which features are stored.
    #[arg(long, value_enum, default_value = "f32")]
    pub features: FeatureType,
    /// The seed of the workload and of all random numbers.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

const MAX_ROWS: usize = 10;

/// The probability that mixup swaps a position: the mean of U(0, 0.5).
const SWAP: f64 = 0.25;

/// Draws features of variance 1 for items that have `mean` rows on average, and at least one; they depend only on the key and the name.
pub fn modality(
    name: &str,
    items: usize,
    width: usize,
    mean: f64,
    stored: FeatureType,
    key: RngKey,
) -> anyhow::Result<Modality> {
    let key = key.fold_in(name);
    let extra = (mean - 1.0) / (MAX_ROWS - 1) as f64;
    let rows =
        |item: usize| 1 + (1..MAX_ROWS).filter(|&row| key.uniform((item * MAX_ROWS + row) as u64) < extra).count();
    let mut offsets = vec![0];
    for item in 0..items {
        offsets.push(offsets[item] + rows(item));
    }
    let (uniform, deviation) = (key.fold_in("values"), 12.0f64.sqrt());
    let value = |at: u64| ((uniform.uniform(at) - 0.5) * deviation) as f32;
    let count = (offsets[items] * width) as u64;
    let values = match stored {
        FeatureType::F32 => StoredValues::F32(Arc::new((0..count).map(value).collect::<Vec<f32>>())),
        FeatureType::F16 => {
            StoredValues::F16(Arc::new((0..count).map(|at| f16::from_f32(value(at))).collect::<Vec<f16>>()))
        }
    };
    Ok(Modality { name: name.to_owned(), features: Ragged::stored(values, width, &offsets)? })
}

impl Workload {
    /// Draws ragged features, histories of popular and rare items with lengths from a geometric distribution, targets, and mixup positions.
    pub fn draw(sizes: &WorkloadSizes, pretrains: bool) -> anyhow::Result<Self> {
        let key = RngKey::new(sizes.seed).fold_in("workload");
        let item = |at: u64| 1 + (sizes.items as f64 * key.fold_in("items").uniform(at).powf(2.2)) as u32;
        let length = |j: usize| {
            let u = key.fold_in("lengths").uniform(j as u64);
            let drawn = ((1.0 - u).ln() / (1.0 - 1.0 / sizes.mean_len).ln()).ceil();
            (drawn.max(1.0) as usize).min(sizes.max_len)
        };
        let index = |j: usize, t: usize| (j * (sizes.max_len + 1) + t) as u64;
        let histories: Vec<Vec<u32>> =
            (0..sizes.batch).map(|j| (0..length(j)).map(|t| item(index(j, t))).collect()).collect();
        let targets = (0..sizes.batch).map(|j| item(index(j, sizes.max_len)));
        let batch = Batch::of_histories(histories.iter().map(Vec::as_slice).zip(targets), sizes.max_len)?;
        let swap = |token: u64| u32::from(key.fold_in("shift").uniform(token) < SWAP);
        let shift = if pretrains { (0..batch.items.len() as u64).map(swap).collect() } else { vec![] };
        let modality = |name, mean| modality(name, sizes.items, sizes.dim, mean, sizes.features, key);
        let modalities = vec![modality("text", sizes.rows_text)?, modality("image", sizes.rows_image)?];
        Ok(Self { modalities, batch, shift, parameters: Vec::new() })
    }

    /// Reads the file that `torch_step.py --dump` wrote.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let bytes = mp4sr_artifact::files::read(path)?;
        let file = SafeTensors::deserialize(&bytes)
            .with_context(|| format!("`{}` is not a complete safetensors file", path.display()))?;
        let tensor = |name: &str| file.tensor(name).with_context(|| format!("`{}` has no `{name}`", path.display()));
        let ints = |name: &str| -> anyhow::Result<Vec<i64>> {
            let view = tensor(name)?;
            anyhow::ensure!(view.dtype() == Dtype::I64, "`{name}`: expected I64, found {:?}", view.dtype());
            Ok(view.data().as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect())
        };
        let floats = |name: &str| -> anyhow::Result<(Vec<f32>, Vec<usize>)> {
            let view = tensor(name)?;
            anyhow::ensure!(view.dtype() == Dtype::F32, "`{name}`: expected F32, found {:?}", view.dtype());
            let values = view.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
            Ok((values, view.shape().to_vec()))
        };
        let modality = |name: &str| -> anyhow::Result<Modality> {
            let (values, shape) = floats(&format!("in.features.{name}.values"))?;
            let offsets: Vec<usize> =
                ints(&format!("in.features.{name}.offsets"))?.into_iter().map(|o| o as usize).collect();
            Ok(Modality { name: name.to_owned(), features: Ragged::new(values, shape[1], &offsets)? })
        };
        let lengths: Vec<usize> = ints("in.lengths")?.into_iter().map(|l| l as usize).collect();
        let padded = |name: &str| -> anyhow::Result<Vec<Vec<u32>>> {
            let values = ints(name)?;
            let n = values.len() / lengths.len().max(1);
            Ok(lengths
                .iter()
                .enumerate()
                .map(|(j, &l)| values[j * n..][..l].iter().map(|&x| x as u32).collect())
                .collect())
        };
        let (histories, targets) = (padded("in.items")?, ints("in.targets")?);
        let longest = lengths.iter().copied().max().unwrap_or(1);
        let batch =
            Batch::of_histories(histories.iter().map(Vec::as_slice).zip(targets.iter().map(|&t| t as u32)), longest)?;
        let shift = if file.tensor("in.shift").is_ok() { padded("in.shift")?.concat() } else { Vec::new() };
        let mut parameters: BTreeMap<String, (Vec<f32>, Vec<usize>)> = BTreeMap::new();
        for name in file.names() {
            // The biases of the pooling cancel in its softmax, so the model does not have them.
            let own = name.strip_prefix("param.").filter(|n| !n.ends_with(".pool.b1") && !n.ends_with(".pool.b2"));
            if let Some(own) = own {
                parameters.insert(own.to_owned(), floats(name)?);
            }
        }
        let parameters = parameters.into_iter().map(|(name, (values, shape))| (name, values, shape)).collect();
        Ok(Self { modalities: vec![modality("text")?, modality("image")?], batch, shift, parameters })
    }
}
