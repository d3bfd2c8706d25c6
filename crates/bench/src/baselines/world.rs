//! A synthetic world of users, items and features, and batches like those of training.

use anyhow::Context as _;
use mp4sr_models::{Batch, Data, Device, Modality, RngKey, Sample, TrainingSequences};

use crate::workload::{FeatureType, modality};

/// Sizes of the world; the defaults are near those of the recent events of MovieLens 1M.
#[derive(Clone, Debug, clap::Args)]
pub struct WorldSizes {
    /// The number of users.
    #[arg(long, default_value_t = 6040)]
    pub users: usize,
    /// The number of items.
    #[arg(long, default_value_t = 3400)]
    pub items: usize,
    /// The mean number of training events per user, at least 5.
    #[arg(long, default_value_t = 30.0)]
    pub events: f64,
    /// The number of samples per step, instead of the model's default.
    #[arg(long)]
    pub batch: Option<usize>,
    /// The width of the features.
    #[arg(long, default_value_t = 384)]
    pub dim: usize,
    /// The seed of the world and of all random draws.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// The fewest training events per user.
const FEWEST: usize = 4;
/// The mean numbers of text rows and image rows per item.
const ROWS: [(&str, f64); 2] = [("text", 2.0), ("image", 1.2)];

/// The users, items and features of the world.
pub struct BaselineWorld {
    sizes: WorldSizes,
    key: RngKey,
    /// The data from which models are built.
    pub data: Data,
}

impl BaselineWorld {
    /// Draws sequences of popular and rare items without repeats, with lengths from a geometric distribution, and features.
    pub fn draw(sizes: &WorldSizes) -> anyhow::Result<Self> {
        anyhow::ensure!(sizes.events >= 5.0, "`--events`: expected at least 5, found {}", sizes.events);
        anyhow::ensure!(sizes.users > 0 && sizes.items >= 20, "`--users` and `--items`: expected at least 1 and 20");
        let key = RngKey::new(sizes.seed).fold_in("world");
        let most = sizes.items / 2;
        let sequences: Vec<Vec<u32>> = (0..sizes.users as u64)
            .map(|user| {
                let key = key.fold_in("sequences").fold_in_index(user);
                let u = key.fold_in("length").uniform(0);
                let more = ((1.0 - u).ln() / (1.0 - 1.0 / (sizes.events - FEWEST as f64 + 1.0)).ln()).floor();
                let length = (FEWEST + more.max(0.0) as usize).min(most);
                let mut seen = std::collections::HashSet::with_capacity(length);
                let item = |at: u64| 1 + (sizes.items as f64 * key.uniform(at).powf(2.2)) as u32;
                (0..).map(item).filter(|&item| seen.insert(item)).take(length).collect()
            })
            .collect();
        let modalities = ROWS.iter().map(|&(name, mean)| {
            modality(name, sizes.items, sizes.dim, mean, FeatureType::F32, key.fold_in("features"))
        });
        let data = Data {
            items: sizes.items,
            training: TrainingSequences::new(sequences.iter().map(Vec::as_slice)).into(),
            modalities: modalities.collect::<anyhow::Result<Vec<Modality>>>()?,
            categories: None,
            device: Device::Cpu,
            group: None,
        };
        Ok(Self { sizes: sizes.clone(), key: key.fold_in("batch"), data })
    }

    /// The batch size of a phase whose default is `default`.
    pub fn batch_size(&self, default: usize) -> usize {
        self.sizes.batch.unwrap_or(default)
    }

    /// A number below `bound`, determined by the purpose and the index.
    fn below(&self, purpose: &str, index: u64, bound: usize) -> usize {
        (self.key.fold_in(purpose).uniform(index) * bound as f64) as usize
    }

    /// Draws events uniformly, and returns the index of each among all events and its user. If `later`, first events of users are skipped.
    fn events(&self, count: usize, later: bool) -> anyhow::Result<Vec<(usize, usize)>> {
        let training = &self.data.training;
        let events = (0..).map(|at| self.below("events", at, training.items.len())).map(|event| {
            let user = training.offsets.partition_point(|&offset| offset <= event) - 1;
            (event, user)
        });
        let events: Vec<_> =
            events.filter(|&(event, user)| !later || event > training.offsets[user]).take(count).collect();
        anyhow::ensure!(!events.is_empty(), "`--batch`: expected at least 1, found 0");
        Ok(events)
    }

    /// A batch of prefixes: histories of at most `longest` items, each with the item that follows.
    pub fn prefixes(&self, default: usize, longest: usize) -> anyhow::Result<Batch> {
        let training = &self.data.training;
        let events = self.events(self.batch_size(default), true)?;
        let sample = |&(event, user): &(usize, usize)| Sample {
            user: user as u32,
            history: &training.items[training.offsets[user]..event],
            target: Some(training.items[event]),
        };
        Ok(Batch::new(events.iter().map(sample), longest)?)
    }

    /// A batch of single events.
    pub fn single_events(&self, default: usize) -> anyhow::Result<Batch> {
        let training = &self.data.training;
        let events = self.events(self.batch_size(default), false)?;
        let sample = |&(event, user): &(usize, usize)| Sample {
            user: user as u32,
            history: &[],
            target: Some(training.items[event]),
        };
        Ok(Batch::new(events.iter().map(sample), 0)?)
    }

    /// A batch of whole training sequences, of which the last `longest` items are kept. Sequences are added until `enough` is true for
    /// their number and the number of pairs of neighbouring events in them.
    pub fn whole_sequences(&self, longest: usize, enough: impl Fn(usize, usize) -> bool) -> anyhow::Result<Batch> {
        let training = &self.data.training;
        let (mut users, mut pairs) = (Vec::new(), 0);
        for user in self.key.fold_in("users").permutation(training.users()) {
            if enough(users.len(), pairs) {
                break;
            }
            pairs += training.of(user as usize).len().min(longest) - 1;
            users.push(user);
        }
        let sample = |&user: &u32| Sample { user, history: training.of(user as usize), target: None };
        Batch::new(users.iter().map(sample), longest).context("failed to pack the sequences")
    }
}
