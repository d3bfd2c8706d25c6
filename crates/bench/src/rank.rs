//! Times full ranking: blocks of users against blocks of items.

use std::time::Instant;

use candle_core::{Device, Tensor};
use mp4sr_evaluate::{RankOptions, rank_users};
use mp4sr_models::{Query, Result, RngKey, Scorer};
use mp4sr_protocol::EvalCase;
use serde_json::json;

/// A ranking and how often it is timed.
#[derive(Clone, Debug, clap::Args)]
pub struct RankArgs {
    /// The number of items, I.
    #[arg(long, default_value_t = 8000)]
    pub items: usize,
    /// The number of users that are ranked.
    #[arg(long, default_value_t = 4096)]
    pub users: usize,
    /// The width of the vectors of all modalities together.
    #[arg(long, default_value_t = 128)]
    pub width: usize,
    /// The number of users that are scored at once.
    #[arg(long, default_value_t = 256)]
    pub batch: usize,
    /// The number of timed rankings, after one that is not timed.
    #[arg(long, default_value_t = 5)]
    pub rounds: usize,
}

/// The vectors of items and of users, who are selected by their only event. The cost of a transformer is not part of the measurement.
struct Vectors(Tensor, Tensor);

impl Scorer for Vectors {
    fn items(&self) -> &Tensor {
        &self.0
    }

    fn queries(&self, queries: &[Query<'_>]) -> Result<Tensor> {
        let rows: Vec<u32> = queries.iter().map(|query| query.history[0] - 1).collect();
        mp4sr_ops::gather(&self.1, &rows)
    }
}

fn random(key: RngKey, rows: usize, width: usize) -> Result<Tensor> {
    let values: Vec<f32> = (0..(rows * width) as u64).map(|i| key.uniform(i) as f32 - 0.5).collect();
    Tensor::from_vec(values, (rows, width), &Device::Cpu)
}

/// Times the ranking and describes it as one JSON object.
pub fn run(args: &RankArgs) -> anyhow::Result<serde_json::Value> {
    let key = RngKey::new(1);
    let users = args.users.min(args.items);
    let scorer = Vectors(
        random(key.fold_in("items"), args.items, args.width)?,
        random(key.fold_in("users"), users, args.width)?,
    );
    let target = |user: usize| 1 + (key.fold_in("targets").bits(user as u64) % args.items as u64) as u32;
    let sequences: Vec<[u32; 2]> = (0..users).map(|user| [user as u32 + 1, target(user)]).collect();
    let protocol = RankOptions { batch: args.batch, remove_seen: false, history: None };
    let mut times = Vec::new();
    for _ in 0..=args.rounds {
        let began = Instant::now();
        rank_users(&scorer, users, |user| EvalCase::last_of(&sequences[user]), protocol, |_| ())?;
        times.push(began.elapsed().as_secs_f64() * 1e3);
    }
    let times = crate::measure::MedianRange::of(&times[1..]);
    Ok(json!({
        "bench": "rank", "items": args.items, "users": users, "width": args.width, "batch": args.batch,
        "threads": crate::measure::threads(), "median_ms": times.median, "min_ms": times.least, "max_ms": times.most,
        "users_per_s": (users as f64 / times.median * 1e3).round(), "peak_mib": crate::measure::peak_mib(),
    }))
}
