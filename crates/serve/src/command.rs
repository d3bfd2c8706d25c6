//! The command line of `mp4sr serve`.

use std::cell::Cell;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use mp4sr_pipeline::config::ModelCatalog;
use mp4sr_pipeline::{Context, StageArgs, print, switch};
use mp4sr_recommend::LoadedRun;
use mp4sr_store::ItemStore;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::engine::EngineOptions;
use crate::index::IndexChoice;
use crate::keys::ApiKeys;
use crate::limits::{LOG_TIME, STOP_TIME, ServiceLimits};
use crate::log::{finish, log};
use crate::metrics::Metrics;
use crate::state::App;
use crate::{routes, server, watch};

/// Serves a trained run over HTTP: recommendations for any history, similar items, new items, and a page to try it.
///
/// The paths are described in /openapi.json. SIGHUP reloads the run without losing a request; SIGTERM and SIGINT stop the service
/// after it has answered open requests.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The flags of every stage.
    #[command(flatten)]
    pub stage: StageArgs,
    /// The address to listen on. Any address other than a loopback address requires `--keys`.
    #[arg(long, env = "MP4SR_HOST", value_name = "ADDRESS", default_value = "127.0.0.1")]
    host: IpAddr,
    /// The port to listen on; 0 picks a free one. The address is printed on standard output.
    #[arg(long, env = "MP4SR_PORT", value_name = "PORT", default_value_t = 8080)]
    port: u16,
    /// A file with one API key per line. Requests must send one of them as `Authorization: Bearer KEY`, except for the page, /openapi.json,
    /// /healthz and /readyz.
    #[arg(long, env = "MP4SR_KEYS", value_name = "FILE")]
    keys: Option<PathBuf>,
    /// How the best items are found.
    #[arg(long, env = "MP4SR_INDEX", value_enum, value_name = "INDEX", default_value_t = IndexChoice::Exact)]
    index: IndexChoice,
    /// Reloads the run when its files change.
    #[arg(long, env = "MP4SR_WATCH", value_parser = switch)]
    watch: bool,
    /// The maximum number of requests that wait for the model; further ones are answered with 429.
    #[arg(long, env = "MP4SR_QUEUE", value_name = "REQUESTS", default_value_t = 1024, value_parser = at_least_one)]
    queue: usize,
    /// The maximum number of requests that are answered together.
    #[arg(long, env = "MP4SR_BATCH", value_name = "REQUESTS", default_value_t = 64, value_parser = at_least_one)]
    batch: usize,
    /// The number of milliseconds after which a request is answered with 503; requests that add or remove items may take 10 minutes.
    #[arg(long, env = "MP4SR_TIME_LIMIT", value_name = "MILLISECONDS", default_value_t = 5000, value_parser = at_least_one)]
    time_limit: usize,
    /// The maximum number of bytes of a request's body.
    #[arg(long, env = "MP4SR_BODY_LIMIT", value_name = "BYTES", default_value_t = 1 << 20, value_parser = at_least_one)]
    body_limit: usize,
    /// The maximum number of bytes of a body with items or an image.
    #[arg(long, env = "MP4SR_ITEM_BODY_LIMIT", value_name = "BYTES", default_value_t = 32 << 20, value_parser = at_least_one)]
    item_body_limit: usize,
    /// The maximum length of a list.
    #[arg(long, env = "MP4SR_TOP_LIMIT", value_name = "K", default_value_t = 1000, value_parser = at_least_one)]
    top_limit: usize,
    /// The maximum number of ids in a history.
    #[arg(long, env = "MP4SR_HISTORY_LIMIT", value_name = "IDS", default_value_t = 1000, value_parser = at_least_one)]
    history_limit: usize,
    /// The maximum number of ids in `exclude` and in `only`.
    #[arg(long, env = "MP4SR_IDS_LIMIT", value_name = "IDS", default_value_t = 10_000, value_parser = at_least_one)]
    ids_limit: usize,
    /// The maximum number of simultaneous connections.
    #[arg(long, env = "MP4SR_CONNECTIONS", value_name = "CONNECTIONS", default_value_t = 1024, value_parser = at_least_one)]
    connections: usize,
    /// Writes histories to the log, which otherwise never contains them.
    #[arg(long, env = "MP4SR_LOG_HISTORIES", value_parser = switch)]
    log_histories: bool,
}

fn at_least_one(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&number| number > 0).ok_or_else(|| "expected a whole number from 1".to_owned())
}

/// The error of listening on an address, with what to do about it.
fn cannot_listen(address: SocketAddr, error: &std::io::Error) -> anyhow::Error {
    let remedy = match error.kind() {
        ErrorKind::AddrInUse => "stop the program that uses it, or give another `--port`; 0 picks a free one",
        ErrorKind::AddrNotAvailable => "give `--host` an address of this machine",
        ErrorKind::PermissionDenied => "give a `--port` from 1024, or grant the permission",
        _ => "give another `--host` or `--port`",
    };
    anyhow::anyhow!("failed to listen on {address}: {error}; {remedy}")
}

/// Runs `mp4sr serve` until SIGTERM or SIGINT.
///
/// ```no_run
/// use clap::Parser;
/// use mp4sr_serve::{Args, run};
///
/// #[derive(Parser)]
/// struct Command {
///     #[command(flatten)]
///     args: Args,
/// }
///
/// // The run that `mp4sr demo` trains. The service runs until SIGTERM or SIGINT.
/// let command = Command::parse_from(["serve", "--run", "artifacts/sample/runs/mp4sr", "--port", "8080"]);
/// run(&command.args, mp4sr_run::model_catalog())?;
/// # Ok::<(), anyhow::Error>(())
/// ```
pub fn run(args: &Args, models: &Arc<ModelCatalog>) -> anyhow::Result<()> {
    mp4sr_ops::avoid_huge_pages();
    mp4sr_ops::start_threads();
    let keys = keys(args)?;
    // The store is opened and dropped outside the runtime because its client blocks on its own runtime.
    let context = args.stage.context(models)?;
    let store = Arc::new(ItemStore::open(&context)?);
    let poll = Duration::from_secs_f64(context.config.serve.poll_seconds);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .on_thread_park(release_memory_of_bursts)
        .build()
        .context("failed to start threads")?;
    let served = runtime.block_on(serve(args, models, keys, store.clone(), poll));
    // Tasks end at once, before the store is dropped. A thread that loads a run may need long, and changes nothing.
    runtime.shutdown_timeout(Duration::from_secs(1));
    finish(LOG_TIME);
    served
}

/// Returns to the system, at most once per second, the memory that a thread of the runtime has freed. The memory of a burst of requests
/// would otherwise stay with the thread until it serves as many requests again.
fn release_memory_of_bursts() {
    const PAUSE: Duration = Duration::from_secs(1);
    thread_local!(static RELEASED: Cell<Option<Instant>> = const { Cell::new(None) });
    if RELEASED.get().is_none_or(|released| released.elapsed() >= PAUSE) {
        RELEASED.set(Some(Instant::now()));
        mp4sr_ops::release_thread_memory();
    }
}

/// Reads the keys of the service, without which it listens only on this machine.
fn keys(args: &Args) -> anyhow::Result<ApiKeys> {
    let keys = args.keys.as_deref().map(ApiKeys::read).transpose()?.unwrap_or_default();
    ensure!(
        args.host.is_loopback() || !keys.is_off(),
        "without keys, the service listens only on this machine; give `--keys FILE`, or leave `--host {}` out",
        args.host
    );
    Ok(keys)
}

/// Reads everything that the service of a run needs, without serving it, and returns a sentence on what would be done.
pub fn check(args: &Args, context: &Context) -> anyhow::Result<String> {
    let keys = keys(args)?;
    let address = SocketAddr::new(args.host, args.port);
    drop(std::net::TcpListener::bind(address).map_err(|error| cannot_listen(address, &error))?);
    let run = LoadedRun::load(&context.layout, &context.config, ItemStore::peek(context)?)?;
    let (items, new) = (run.catalogue.items.len(), run.catalogue.new_items);
    let who = if keys.is_off() { "without keys" } else { "with keys" };
    let new = if ItemStore::is_folder_of(context) {
        format!("{new} of them added")
    } else {
        "and those in PostgreSQL".to_owned()
    };
    Ok(format!("serve `{}` with {items} items, {new}, at http://{address}, {who}", context.config.model.name))
}

async fn serve(
    args: &Args,
    models: &Arc<ModelCatalog>,
    keys: ApiKeys,
    store: Arc<ItemStore>,
    poll: Duration,
) -> anyhow::Result<()> {
    let limits = ServiceLimits {
        time: Duration::from_millis(args.time_limit as u64),
        body: args.body_limit,
        item_body: args.item_body_limit,
        top: args.top_limit,
        history: args.history_limit,
        ids: args.ids_limit,
        connections: args.connections,
    };
    let metrics = Arc::new(Metrics::new());
    let (queue, batch, index) = (args.queue, args.batch, args.index);
    let options = EngineOptions { queue, batch, index, metrics: metrics.clone() };
    let app = App::new(args.stage.clone(), models.clone(), options, store, limits, keys, args.log_histories);
    let app = Arc::new(app);
    let address = SocketAddr::new(args.host, args.port);
    let listener = TcpListener::bind(address).await.map_err(|error| cannot_listen(address, &error))?;
    let address = listener.local_addr().context("failed to read the address of the listener")?;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    // The service answers `/healthz` while the run is being loaded; `/readyz` succeeds once it is loaded.
    let serving = tokio::spawn(server::serve(listener, routes::router(&app), limits.connections, metrics, async {
        drop(stopped.await);
    }));
    let mut interrupt = signal(SignalKind::interrupt()).context("failed to listen for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("failed to listen for SIGTERM")?;
    let hangups = signal(SignalKind::hangup()).context("failed to listen for SIGHUP")?;
    let generation = tokio::select! {
        generation = app.reload() => generation?,
        _ = interrupt.recv() => return Ok(()),
        _ = terminate.recv() => return Ok(()),
    };
    print(&format!("http://{address}\n"))?;
    let hangup = tokio::spawn(watch::on_signal(app.clone(), hangups));
    let changes = args.watch.then(|| tokio::spawn(watch::on_change(app.clone())));
    drop(generation);
    let additions = tokio::spawn(watch::on_additions(app.clone(), poll));
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    hangup.abort();
    additions.abort();
    changes.iter().for_each(tokio::task::JoinHandle::abort);
    let deadline = tokio::time::Instant::now() + STOP_TIME;
    let _ = stop.send(());
    serving.await.context("the service failed unexpectedly")?;
    // A change of items goes on after its request has timed out. One that is cut off is stored as a whole or not at all.
    if tokio::time::timeout_at(deadline, app.editing.lock()).await.is_err() {
        let event = "stopped during a change of the added items; `mp4sr items list` shows whether it was stored";
        log("error", &json!({ "event": event }));
    }
    Ok(())
}
