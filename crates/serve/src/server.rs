//! Accepts connections: a limited number at once, with time limits for reading the head of a request and for writing the response, and a
//! shutdown that waits for open requests.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use axum::Router;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_io_timeout::TimeoutStream;

use crate::limits::{HEAD_TIME, STOP_TIME, WRITE_TIME};
use crate::log::log;
use crate::metrics::Metrics;

/// Serves until `stop` is done; then it finishes open requests and accepts no new ones.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    connections: usize,
    metrics: Arc<Metrics>,
    stop: impl Future<Output = ()>,
) {
    let graceful = GracefulShutdown::new();
    let permits = Arc::new(Semaphore::new(connections));
    let mut stop = pin!(stop);
    loop {
        let accepted = async {
            // A connection beyond the limit waits in the system's queue until another one ends.
            let permit = permits.clone().acquire_owned().await;
            (permit, listener.accept().await)
        };
        let (permit, stream) = tokio::select! {
            () = &mut stop => break,
            (permit, stream) = accepted => (permit, stream),
        };
        let stream = match stream {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Most likely no file descriptors are left; connections that end release some.
                log("error", &json!({ "event": "failed to accept a connection", "error": error.to_string() }));
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                continue;
            }
        };
        drop(stream.set_nodelay(true));
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(WRITE_TIME));
        let router = TowerToHyperService::new(router.clone());
        let service = service_fn(move |request| begun(router.call(request)));
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIME)
            .serve_connection(TokioIo::new(Box::pin(stream)), service);
        let connection = graceful.watch(connection);
        let metrics = metrics.clone();
        tokio::spawn(async move {
            metrics.connections.inc();
            // A client that disconnects is not worth a log line.
            drop(connection.await);
            metrics.connections.dec();
            drop(permit);
        });
    }
    drop(listener);
    tokio::select! {
        () = graceful.shutdown() => {}
        () = tokio::time::sleep(STOP_TIME) => log("error", &json!({ "event": "stopped with open requests" })),
    }
}

/// Begins the work on a request at once. hyper drops a request that it has read, without beginning it, if its client has already
/// disconnected, and such a request would not be counted or logged.
fn begun<F: Future>(work: F) -> impl Future<Output = F::Output> {
    let mut work = Box::pin(work);
    // hyper polls the work again, with the waker that counts.
    let first = work.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    async move {
        match first {
            Poll::Ready(response) => response,
            Poll::Pending => work.await,
        }
    }
}
