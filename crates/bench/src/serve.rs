//! Measures the service under load: creates an untrained run of any size, and runs clients that send requests as fast as they are answered.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use mp4sr_artifact::{Items, Layout, Sequences, TimeKind, Users, files};
use mp4sr_models::{FINETUNE, RngKey};
use mp4sr_pipeline::Config;
use mp4sr_run::{Checkpoint, CheckpointInfo, Inputs, TrainedPhase, build_model, last_phase, model_catalog};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// The number of events per user, and of ids in the history of a request.
const EVENTS: usize = 20;
/// The width of the item vectors.
const WIDTH: usize = 64;
/// The standard deviation of the items of a group around its centre, relative to that of the centres.
const SPREAD: f64 = 0.5;

/// An untrained run for the service.
#[derive(Clone, Debug, clap::Args)]
pub struct WorldArgs {
    /// The folder of the artifacts.
    #[arg(long)]
    pub folder: PathBuf,
    /// The number of items, I.
    #[arg(long, default_value_t = 8000)]
    pub items: usize,
    /// The number of users, U.
    #[arg(long, default_value_t = 1000)]
    pub users: usize,
    /// The seed of the items' vectors; everything else stays the same.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// Writes a SASRec run whose item vectors form groups, as those of trained models do, and returns its description.
pub fn world(args: &WorldArgs) -> anyhow::Result<Value> {
    let text = "[dataset]\nname = \"bench\"\n[model]\nname = \"sasrec\"\n[run]\nname = \"sasrec\"\n";
    let (config, _) = Config::parse(text, "the bench", &[], model_catalog())?;
    let layout = Layout::new(&args.folder, "bench", "sasrec");
    let key = RngKey::new(7);
    let items = Items {
        ids: (0..args.items).map(|item| format!("i{item}")).collect(),
        titles: (0..args.items).map(|item| format!("Item number {item}")).collect(),
        sentences: vec![Vec::new(); args.items],
        images: vec![Vec::new(); args.items],
        categories: vec![Vec::new(); args.items],
        sounds: vec![Vec::new(); args.items],
    };
    let users = Users { ids: (0..args.users).map(|user| format!("u{user}")).collect() };
    let events = args.users * EVENTS;
    let sequences = Sequences {
        offsets: (0..=args.users).map(|user| (user * EVENTS) as i64).collect(),
        items: (0..events as u64).map(|event| 1 + (key.bits(event) % args.items as u64) as u32).collect(),
        times: (0..args.users).flat_map(|_| 0..EVENTS as i64).collect(),
        time_kind: TimeKind::Positions,
        item_hash: items.hash(),
        item_count: args.items,
        user_hash: Some(users.hash()),
        parts: None,
    };
    items.write(&layout.items())?;
    users.write(&layout.users())?;
    sequences.write(&layout.sequences(), Value::Null)?;
    files::write_bytes(&layout.run_config(), config.to_toml()?.as_bytes())?;
    let (item_hash, inputs) = (
        sequences.item_hash.clone(),
        Inputs { sequences, modalities: Vec::new(), encoders: std::collections::BTreeMap::new(), categories: None },
    );
    let model = build_model(&config, &inputs)?;
    model.parameters().set(
        "item_embedding",
        &grouped(key.fold_in("items").fold_in_index(args.seed), args.items),
        &[args.items, WIDTH],
    )?;
    let weights = TrainedPhase { model: model.as_ref(), phase: last_phase(model.as_ref())? };
    let info = CheckpointInfo { phase: FINETUNE.to_owned(), ..CheckpointInfo::default() };
    Checkpoint::write(&layout.checkpoint(FINETUNE), &info, weights, &item_hash, std::collections::BTreeMap::new())?;
    Ok(json!({ "run": layout.run(), "items": args.items }))
}

/// Draws vectors in groups; there are as many groups as items in a group.
fn grouped(key: RngKey, items: usize) -> Vec<f32> {
    let groups = (items as f64).sqrt().ceil() as usize;
    let vector = |item: usize| {
        let (centre, own) =
            (key.fold_in("centres").fold_in_index((item % groups) as u64), key.fold_in_index(item as u64));
        (0..WIDTH as u64).map(move |at| (0.02 * (centre.normal(at) + SPREAD * own.normal(at))) as f32)
    };
    (0..items).flat_map(vector).collect()
}

/// Clients of a service.
#[derive(Clone, Debug, clap::Args)]
pub struct LoadArgs {
    /// The address of the service, such as `127.0.0.1:8080`.
    #[arg(long)]
    pub address: String,
    /// The number of concurrent connections, each with one open request.
    #[arg(long, default_value_t = 16)]
    pub connections: usize,
    /// The number of measured seconds, after one that is not measured.
    #[arg(long, default_value_t = 5.0)]
    pub seconds: f64,
    /// The number of items of the run, whose ids are i0, i1, ...
    #[arg(long, default_value_t = 8000)]
    pub items: usize,
}

/// Requests lists until the time is over, and describes throughput and latencies as one JSON object.
pub fn load(args: &LoadArgs) -> anyhow::Result<Value> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("failed to start")?;
    let began = Instant::now();
    let (from, to) = (began + Duration::from_secs(1), began + Duration::from_secs_f64(1.0 + args.seconds));
    let answers = runtime.block_on(async {
        let clients: Vec<_> =
            (0..args.connections).map(|client| tokio::spawn(ask(args.clone(), client as u64, from, to))).collect();
        let mut answers = Vec::new();
        for client in clients {
            answers.extend(client.await.context("a client ended with a defect")??);
        }
        anyhow::Ok(answers)
    })?;
    let mut times: Vec<f64> = answers.iter().filter(|(status, _)| *status == 200).map(|(_, time)| *time).collect();
    times.sort_by(f64::total_cmp);
    ensure!(!times.is_empty(), "no request was answered in {} s", args.seconds);
    let quantile = |share: f64| times[((times.len() as f64 * share) as usize).min(times.len() - 1)];
    Ok(json!({
        "connections": args.connections, "answers": times.len(), "other": answers.len() - times.len(),
        "per_s": (times.len() as f64 / args.seconds).round(),
        "p50_ms": quantile(0.5), "p99_ms": quantile(0.99), "p999_ms": quantile(0.999),
    }))
}

/// One connection. Returns the status and milliseconds of every answer that arrived between `from` and `to`, whenever it was requested.
async fn ask(args: LoadArgs, client: u64, from: Instant, to: Instant) -> anyhow::Result<Vec<(u16, f64)>> {
    let key = RngKey::new(11).fold_in_index(client);
    let mut stream =
        TcpStream::connect(&args.address).await.with_context(|| format!("failed to connect to {}", args.address))?;
    stream.set_nodelay(true).context("failed to set up a connection")?;
    let (mut answers, mut bytes) = (Vec::new(), Vec::new());
    for request in 0.. {
        let draws = key.fold_in_index(request);
        let ids: Vec<String> =
            (0..EVENTS as u64).map(|at| format!("i{}", draws.bits(at) % args.items as u64)).collect();
        let body = json!({ "history": ids, "k": 10 }).to_string();
        let length = body.len();
        let text = format!(
            "POST /v1/recommend HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        let began = Instant::now();
        if began >= to {
            break;
        }
        stream.write_all(text.as_bytes()).await.context("the service closed a connection")?;
        let status = answer(&mut stream, &mut bytes).await?;
        let ended = Instant::now();
        if ended >= from && ended <= to {
            answers.push((status, (ended - began).as_secs_f64() * 1e3));
        }
    }
    Ok(answers)
}

/// Reads one answer, and returns its status.
async fn answer(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> anyhow::Result<u16> {
    bytes.clear();
    loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = std::str::from_utf8(&bytes[..end]).context("a head that is not text")?.to_ascii_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap_or("0");
            let whole = end + 4 + length.trim().parse::<usize>().context("content-length")?;
            while bytes.len() < whole {
                read(stream, bytes).await?;
            }
            let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
            return status.context("an answer without a status");
        }
        read(stream, bytes).await?;
    }
}

async fn read(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> anyhow::Result<()> {
    let count = stream.read_buf(bytes).await.context("the service closed a connection")?;
    ensure!(count > 0, "the service closed a connection in the middle of an answer");
    Ok(())
}
